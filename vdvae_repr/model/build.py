"""A model of its configuration, whatever its kind."""

from __future__ import annotations

from functools import lru_cache

import torch

from vdvae_repr.config import AnyModelConfig, ModelConfig, PixelCNNConfig, StudentConfig
from vdvae_repr.errors import ConfigError
from vdvae_repr.model.base import SavedModel
from vdvae_repr.model.pixelcnn import PixelCNN
from vdvae_repr.model.student import Student
from vdvae_repr.model.vdvae import VDVAE

MOST_PARAMETERS = 10**10
_MODELS: dict[type, type] = {ModelConfig: VDVAE, PixelCNNConfig: PixelCNN, StudentConfig: Student}


def build(config: AnyModelConfig, name: str) -> SavedModel:
    """Return the model that a configuration describes, with its initial weights.

    Raises:
        ConfigError: a configuration that makes no model.
    """
    model: SavedModel = _MODELS[type(config)](config, name=name)
    return model


@lru_cache(maxsize=16)
def check_buildable(config: AnyModelConfig) -> None:
    """Refuse a configuration that no model can be made of, before memory is taken; one that passed is known.

    Raises:
        ConfigError: a configuration that makes no model, or one of more parameters than any machine holds.
    """
    on_meta(config)


def on_meta(config: AnyModelConfig, name: str = "vdvae") -> SavedModel:
    """Return a model whose parameters have shapes and take no memory.

    Raises:
        ConfigError: a configuration that makes no model, or one of more parameters than any machine holds.
    """
    with torch.device("meta"):
        model = build(config, name)
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MOST_PARAMETERS:
        raise ConfigError(
            f"model: expected {MOST_PARAMETERS:,} parameters at most, found {count:,}; lower the widths or "
            "the numbers of blocks"
        )
    return model
