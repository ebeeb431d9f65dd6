"""A model's layers, without its weights where its configuration tells them: at once, and without torch."""

from __future__ import annotations

import json
from pathlib import Path

from vdvae_repr.config import (
    MOST_HEADER,
    WEIGHTS_FOLDER,
    AnyModelConfig,
    PixelCNNConfig,
    model_config_from_json,
)
from vdvae_repr.errors import ConfigError
from vdvae_repr.model.layers import LayerSpec, layers_of_config


def layers_of(
    model: str, *, preset: str | None = None, download: bool = False
) -> tuple[LayerSpec, ...]:
    """Return the layers of what `vr.load` takes, coarsest first.

    Those of a file of this package are read from its header; of anything else after loading it.

    Raises:
        CheckpointError: as `vr.load`.
    """
    config = None if preset else _config_of(model)
    if config is not None and not isinstance(config, PixelCNNConfig):
        return layers_of_config(config)
    from vdvae_repr.encoders.load import as_encoder, load

    return as_encoder(load(model, preset=preset, download=download)).layers


def _config_of(model: str) -> AnyModelConfig | None:
    """Return the configuration in the header of a file of this package; None where there is none."""
    try:
        path = WEIGHTS_FOLDER / f"{model}.safetensors"
        if "/" in model or not path.is_file():
            path = Path(model, "model.safetensors") if Path(model).is_dir() else Path(model)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= MOST_HEADER:
                return None
            header = json.loads(file.read(length))
        return model_config_from_json(header["__metadata__"]["config"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError):
        return None  # what is wrong with it is said where it is loaded
