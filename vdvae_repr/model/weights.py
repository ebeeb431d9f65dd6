"""Weights on disk: what this package saves, the published files, and what people wrap around either.

A file written here is safetensors with `config` (JSON) and `record` (JSON: how it was trained) as metadata.
Every file is judged by its content, not by its ending, and pickled code is never run.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vdvae_repr.config import ModelConfig, preset_names, suggestion
from vdvae_repr.errors import CheckpointError, ConfigError, first_line
from vdvae_repr.model.graphs import graph_inference
from vdvae_repr.model.inference import compile_inference
from vdvae_repr.model.published import from_published_names
from vdvae_repr.model.vdvae import VDVAE

FORMAT = "vdvae-repr/1"
WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"
RAW_ENDING, EMA_ENDING = "-model.th", "-model-ema.th"
HEAD_BYTES = 512  # of a file, enough to tell what it is

Model = TypeVar("Model", bound=torch.nn.Module)


def load(
    model: str | Path,
    *,
    preset: str | None = None,
    device: str | torch.device = "cpu",
    compile: bool = False,
    cuda_graphs: bool = False,
) -> VDVAE:
    """Load a VDVAE in eval mode, float32.

    Args:
        model: a packaged name ("faces64"), a run folder, a `.safetensors` of this package, a published
            `.th` file or one like it, or "PRESET@random" for a preset's architecture with its initial
            weights.
        preset: the architecture of a file that holds no config, where its shapes do not tell.
        device: where the parameters go.
        compile: read posteriors through torch.compile.
        cuda_graphs: on a CUDA device, record a pass that comes again and replay it.

    Raises:
        ConfigError: CUDA graphs elsewhere. CheckpointError: no such weights, a damaged or unsafe file,
            another architecture, values that are not finite.
    """
    if str(model).endswith("@random"):
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same ones each time
            config = ModelConfig.from_preset(str(model).removesuffix("@random"))
            net = VDVAE(config, name=str(model))
    else:
        net = _load_file(_find(model), preset)
    net = on_device(net, device).eval()
    if compile:
        compile_inference(net)
    if cuda_graphs:
        graph_inference(net)
    return net


def on_device(model: Model, device: str | torch.device) -> Model:
    """Move a model to a device.

    Raises:
        CheckpointError: there is no such device.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"device {device!s} cannot be used ({first_line(error)}); try --device cpu"
        ) from error


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


def weights_sha256(model: VDVAE) -> str:
    """Return the SHA-256 of config and float32 parameters: the identity of a model."""
    return hash_weights(model.config.to_json(), model.state_dict())


def hash_weights(config: str, weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a description and of tensors as float32, in the order of their names."""
    digest = hashlib.sha256(config.encode())
    for name, value in sorted(weights.items()):
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
    return path


def _load_file(path: Path, preset: str | None) -> VDVAE:
    if _is_safetensors(_head(path)):
        weights, metadata = _read_safetensors(path)
        if metadata.get("format") == FORMAT:
            if preset is not None:
                raise CheckpointError(
                    f"{path}: holds its own configuration, so that preset {preset!r} would say nothing; "
                    "leave --preset out"
                )
            return _load_own(path, weights, metadata)
        state: Mapping[str, Any] = weights
    else:
        state = read_th(path)
    state = unwrapped(state, path)
    named = from_published_names(_without_wrapper(state))
    weights = {key: value.float() for key, value in named.items()}
    candidates = [preset] if preset else [n for n in preset_names() if _fits(weights, n)]
    if len(candidates) != 1:
        found = f"fits {' and '.join(candidates)}" if candidates else "fits no preset"
        raise CheckpointError(
            f"{path}: {found} (its names of tensors, {len(state)} in all, begin with {_some(state)}); "
            "name the architecture with --preset"
        )
    check_finite(weights, path)
    if path.name.endswith(RAW_ENDING):
        warnings.warn(
            f"{path.name}: holds raw weights; published figures belong to their moving average, "
            f"{path.name.removesuffix(RAW_ENDING)}{EMA_ENDING}",
            stacklevel=4,  # where the caller of vr.load stands
        )
    config = ModelConfig.from_preset(candidates[0])
    return VDVAE(config, name=candidates[0]).load_weights(weights, str(path))


def _load_own(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> VDVAE:
    if "config" not in metadata:
        raise CheckpointError(
            f"{path}: expected the model's config in the metadata of format {FORMAT}, found none; "
            "save it again with the package"
        )
    try:
        config = ModelConfig.from_json(metadata["config"])
    except (ConfigError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: the config in its metadata cannot be read ({first_line(error)}); "
            "save it again with the package"
        ) from error
    weights = {key: value.float() for key, value in weights.items()}
    check_finite(weights, path)
    return VDVAE(config, name=metadata.get("name", path.stem)).load_weights(weights, str(path))


def _fits(weights: Mapping[str, Tensor], preset: str) -> bool:
    """Whether a preset's parameters have these names and shapes; builds nothing in memory."""
    with torch.device("meta"):
        expected = VDVAE(ModelConfig.from_preset(preset)).state_dict()
    return {k: v.shape for k, v in expected.items()} == {k: v.shape for k, v in weights.items()}


def _without_wrapper(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take away what every parameter's name begins with, as `module.` or `_orig_mod.`.

    A VDVAE has two halves, so that nothing of its own begins every name.
    """
    weights = dict(weights)
    while len(firsts := {key.partition(".")[0] for key in weights}) == 1:
        (first,) = firsts
        if first in ("encoder", "decoder", "bottom_up", "top_down") or first in weights:
            break
        weights = {key.removeprefix(f"{first}."): value for key, value in weights.items()}
    return weights


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of any weights file onto the CPU, by name.

    Safetensors and what torch.save wrote are told by their content. A dictionary around the weights, as
    `{"state_dict": ..., "epoch": 3}`, is taken away where one key alone holds tensors.

    Raises:
        CheckpointError: no such file, a damaged one, none that holds weights, several sets of weights, or
            values that are not finite.
    """
    if _is_safetensors(_head(path)):
        weights, _ = _read_safetensors(path)
    else:
        weights = unwrapped(read_th(path), path)
    check_finite(weights, path)
    return weights


def read_parameters(path: Path) -> dict[str, Tensor]:
    """Read a VDVAE's parameters, float32, by this package's names, out of any file that `load` takes.

    The architecture need not be that of a preset.

    Raises:
        CheckpointError: as `read_weights`.
    """
    named = from_published_names(_without_wrapper(read_weights(path)))
    return {key: value.float() for key, value in named.items()}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file, {_size(path)} ({first_line(error)}); "
            "it is damaged or cut short: get it again"
        ) from error


def read_th(path: Path) -> dict[str, Any]:
    """Read a dictionary that torch.save wrote, onto the CPU; pickled code is never run.

    Raises:
        CheckpointError: no such file, a damaged one, one of another kind, or one that holds other objects.
    """
    _refuse_what_is_no_checkpoint(path)
    try:
        # What training scripts keep beside the weights; it is a plain record and runs nothing.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of pickle protocols: what matters raises
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        head = _head(path)
        known = head[:2] == b"PK" or (head[:1] == b"\x80" and head[1] <= pickle.HIGHEST_PROTOCOL)
        if named is None and not known:
            raise CheckpointError(
                f"{path}: not a readable checkpoint, {_size(path)}; expected safetensors or what "
                "torch.save writes: get it again"
            ) from error
        what = f" ({named[1]})" if named else ""
        raise CheckpointError(
            f"{path}: holds pickled code or objects other than tensors{what}; refused, nothing was run: "
            "save the tensors alone, torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # that is a seek past a cut file's end
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path}: is a TorchScript archive, which holds code; refused, nothing was run: "
                "save the tensors alone, torch.save(model.state_dict(), FILE)"
            ) from error
        # of a damaged file torch raises whatever the bytes lead it to
        raise CheckpointError(
            f"{path}: not a readable checkpoint, {_size(path)} ({first_line(error)}); "
            "it is damaged or cut short: get it again"
        ) from error
    if not isinstance(state, Mapping):
        what = "a whole model" if isinstance(state, torch.nn.Module) else type(state).__name__
        raise CheckpointError(
            f"{path}: expected a dictionary of tensors, found {what}; "
            "save it with torch.save(model.state_dict(), FILE)"
        )
    return dict(state)


def unwrapped(state: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors by name, out of the dictionary that one key of a checkpoint holds.

    Raises:
        CheckpointError: keys that are no strings, no tensors, other values among them, or several sets of
            tensors; the message lists the keys.
    """
    if strange := [key for key in state if not isinstance(key, str)]:
        raise CheckpointError(
            f"{path}: expected tensors by the names of parameters, found the key {strange[0]!r} of type "
            f"{type(strange[0]).__name__}; save it with torch.save(model.state_dict(), FILE)"
        )
    inside = [key for key, value in state.items() if _holds_tensors(value)]
    if len(inside) == 1:
        return unwrapped(state[inside[0]], path)
    if inside:
        raise CheckpointError(
            f"{path}: holds {len(inside)} sets of weights, {', '.join(inside)}; save the one that is meant: "
            f"torch.save(torch.load({path.name!r})[{inside[-1]!r}], FILE)"
        )
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        found = f"the keys {_some(state)}" if state else "an empty dictionary"
        raise CheckpointError(
            f"{path}: expected a dictionary of tensors, as the published files hold, found {found}; "
            "save it with torch.save(model.state_dict(), FILE)"
        )
    if others := [key for key in state if key not in tensors]:
        raise CheckpointError(
            f"{path}: expected a dictionary of tensors, as the published files hold, found "
            f"{type(state[others[0]]).__name__} under {others[0]!r}; save the tensors alone"
        )
    return tensors


def _holds_tensors(value: Any) -> bool:
    """Whether a value is a dictionary of tensors by name, at whatever depth; single numbers do not count."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    return any((isinstance(v, Tensor) and v.ndim) or _holds_tensors(v) for v in value.values())


def check_finite(weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        CheckpointError: names the first such parameter.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{where}: expected finite weights, found NaN or infinity in {name}; "
                "the training that made them went wrong, or the file is damaged"
            )


def _some(state: Mapping[str, Any], count: int = 3) -> str:
    more = ", ..." if len(state) > count else ""
    return ", ".join(list(state)[:count]) + more


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes"


def _head(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def _is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors: eight bytes of length, then a JSON object."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def _refuse_what_is_no_checkpoint(path: Path) -> None:
    """Refuse what people have in place of weights, and say what it is.

    Raises:
        CheckpointError: a Git LFS pointer, a web page, an archive, a text, or nothing.
    """
    head = _head(path)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise CheckpointError(f"{path}: is empty, 0 bytes; get it again")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, {_size(path)}, in place of the weights; "
            "run git lfs pull, or download the file itself"
        )
    kinds = (
        ((b"<",), "a web page (HTML or XML)"),
        ((b"{", b"["), "a JSON text"),
        ((b"\x1f\x8b",), "compressed by gzip"),
        ((b"\x89hdf",), "an HDF5 file"),
        ((b"\x93numpy",), "a NumPy array"),
        ((b"rar!", b"7z\xbc\xaf", b"\xfd7zxz", b"bzh"), "an archive"),
    )
    for starts, what in kinds:
        if text.startswith(starts):
            raise CheckpointError(
                f"{path}: is {what}, {_size(path)}, in place of the weights; "
                "expected safetensors or what torch.save writes: download it again"
            )
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        raise CheckpointError(
            f"{path}: not a readable checkpoint but a text, {_size(path)}; download it again"
        )
