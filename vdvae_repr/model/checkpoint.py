"""Weights on disk: safetensors with the config inside, and the published `.th` files.

A file written here carries `config` (JSON) and `record` (JSON: how it was trained) as metadata.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vdvae_repr.config import ModelConfig, preset_names, suggestion
from vdvae_repr.errors import CheckpointError
from vdvae_repr.model.backbones import Backbone
from vdvae_repr.model.inference import compile_inference
from vdvae_repr.model.vdvae import VDVAE, from_published_names

FORMAT = "vdvae-repr/1"
WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"


def load(
    model: str | Path,
    *,
    preset: str | None = None,
    device: str | torch.device = "cpu",
    compile: bool = False,
) -> VDVAE:
    """Load a VDVAE in eval mode, float32.

    Args:
        model: a packaged name ("faces64"), a run folder, a `.safetensors` of this package, a
            published `.th` file, or "PRESET@random" for a preset's architecture with its initial weights.
        preset: the architecture of a `.th` file, where its shapes do not tell.
        device: where the parameters go.
        compile: read posteriors through torch.compile.

    Raises:
        CheckpointError: no such weights, a damaged or unsafe file, another architecture.
    """
    if str(model).endswith("@random"):
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same ones each time
            config = ModelConfig.from_preset(str(model).removesuffix("@random"))
            net = VDVAE(config, name=str(model))
    else:
        path = _find(model)
        own = path.suffix == ".safetensors"
        net = _load_own(path) if own else _load_published(path, preset)
    try:
        net = net.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"device {device!s} cannot be used ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    if compile:
        compile_inference(net)
    return net


def save(
    model: VDVAE, path: str | Path, *, record: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write weights, config and training record; the file appears whole, by a rename."""
    path = Path(path)
    tensors = {k: v.detach().cpu().to(dtype).contiguous() for k, v in model.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "name": model.name,
        "config": model.config.to_json(),
        "record": json.dumps(dict(record), sort_keys=True),
    }
    aside = path.with_name(path.name + ".part")
    save_file(tensors, aside, metadata=metadata)
    aside.replace(path)


def weights_sha256(model: VDVAE | Backbone) -> str:
    """Return the SHA-256 of config and float32 parameters: the identity of a model."""
    digest = hashlib.sha256(model.config.to_json().encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def packaged_names() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors"))


def _find(model: str | Path) -> Path:
    if str(model) in packaged_names():
        return WEIGHTS_FOLDER / f"{model}.safetensors"
    path = Path(model)
    if path.is_dir():
        inside = path / "model.safetensors"
        if not inside.is_file():
            raise CheckpointError(
                f"{path}: expected a run folder with model.safetensors, found none"
            )
        return inside
    if not path.is_file():
        names = packaged_names()
        raise CheckpointError(
            f"{model}: no such file or packaged model{suggestion(str(model), names)}; "
            f"packaged are {', '.join(names) or 'none'}"
        )
    if path.suffix not in (".safetensors", ".th", ".pt", ".pth"):
        raise CheckpointError(f"{path}: expected a .safetensors or a published .th file")
    return path


def _load_own(path: Path) -> VDVAE:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: expected weights saved by vdvae-repr (format {FORMAT}), "
            f"found {metadata.get('format', 'no format')}"
        )
    model = VDVAE(ModelConfig.from_json(metadata["config"]), name=metadata.get("name", path.stem))
    return model.load_weights(weights, str(path))


def _load_published(path: Path, preset: str | None) -> VDVAE:
    state = read_th(path)
    if not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path}: expected a dictionary of tensors, as the published files hold"
        )
    weights = from_published_names(state)
    candidates = [preset] if preset else [n for n in preset_names() if _fits(weights, n)]
    if len(candidates) != 1:
        found = f"fits {' and '.join(candidates)}" if candidates else "fits no preset"
        raise CheckpointError(f"{path}: {found}; name the architecture with --preset")
    config = ModelConfig.from_preset(candidates[0])
    return VDVAE(config, name=candidates[0]).load_weights(weights, str(path))


def read_th(path: Path) -> dict[str, Any]:
    """Read a dictionary that torch.save wrote, onto the CPU; pickled code is never run.

    Raises:
        CheckpointError: no such file, a damaged one, or one that holds other objects.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what matters raises
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds pickled code or objects other than tensors; refused, nothing was run"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: expected a dictionary, found {type(state).__name__}")
    return dict(state)


def _fits(weights: Mapping[str, Tensor], preset: str) -> bool:
    """Whether a preset's parameters have these names and shapes; builds nothing in memory."""
    with torch.device("meta"):
        expected = VDVAE(ModelConfig.from_preset(preset)).state_dict()
    return {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in weights.items()}
