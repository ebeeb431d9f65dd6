"""Weights on disk: what this package saves, the published files, and what people wrap around either.

A file written here is safetensors with `config` (JSON) and `record` (JSON: how it was trained) as metadata.
Every file is judged by its content, not by its ending, and pickled code is never run.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import pickle
import re
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vdvae_repr.config import (
    MOST_HEADER,
    WEIGHTS_FOLDER,
    AnyModelConfig,
    Architecture,
    about_pixels,
    architecture,
    model_config_from_json,
    preset_architecture,
    preset_names,
    read_tables,
    shortened,
    shown,
    suggestion,
    whole_number,
)
from vdvae_repr.errors import CheckpointError, ConfigError, counted, first_line, printable
from vdvae_repr.model.base import SavedModel
from vdvae_repr.model.build import build, check_buildable, on_meta
from vdvae_repr.model.graphs import graph_inference
from vdvae_repr.model.inference import compile_inference
from vdvae_repr.model.pixelcnn import PixelCNN
from vdvae_repr.model.precision import arithmetic
from vdvae_repr.model.published import from_published_names
from vdvae_repr.model.student import Student
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.output import aside_of, replacing

FORMAT = "vdvae-repr/1"
RAW_ENDING, EMA_ENDING = "-model.th", "-model-ema.th"
AVERAGE_FILE = "average.safetensors"  # of a run's checkpoint, beside its model.safetensors
TRAINED_ON_FILE = "trained_on.npy"  # of a run folder: hashes of the images trained on, sorted
NAME_IT = "load it with vr.load(..., preset=NAME), a preset's name or a TOML"
NO_WEIGHTS = re.compile(  # keys under which tensors are called as the weights are
    r"(?i)(?:.*[\W_])?(?:grads?|gradients?|deltas?|diffs?|moments?|exp_avg(?:_sq)?|optimi[sz]ers?|momentum)"
    r"(?!_(?:backbone|cam|decoder|encoder|model|net|network|student|teacher|vit)(?:[\W_]|$))(?:[\W_].*)?"
)
ADAPTER = re.compile(r"(?i)(?<![a-z])(?:lora|dora|loha|lokr|ia3)(?![a-z])")
AVERAGED = re.compile(r"(?i)(?<![a-z])(?:ema|swa|averaged?|avg|shadow)(?![a-z])")  # of steps
INSIDE = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch puts into names where it compiles, shards or recomputes a module."""
SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.\w+")
JOIN = "join the shards into one file, with safetensors.torch.load_file and save_file"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HEAD_BYTES = 512  # of a file, enough to tell what it is
MOST_WRAPPERS = 32  # dictionaries around the weights

Model = TypeVar("Model", bound=torch.nn.Module)


def load(
    model: str | Path,
    *,
    preset: Architecture | None = None,
    device: str | torch.device = "cpu",
    compile: bool = False,
    cuda_graphs: bool = False,
) -> VDVAE | PixelCNN | Student:
    """Load a VDVAE, a PixelCNN or a student in eval mode, float32.

    Names and shapes of a file's tensors are compared with its architecture before memory is taken for any.

    Args:
        model: a packaged name ("faces64"), a run folder, a `.safetensors` of this package, a published
            `.th` file or one like it, or "PRESET@random" for a preset's architecture with its initial
            weights.
        preset: the architecture of a file that holds no config, where its shapes do not tell: a preset's
            name, a TOML, or a configuration.
        device: where the parameters go.
        compile: read posteriors through torch.compile.
        cuda_graphs: on a CUDA device, record a pass that comes again and replay it.

    Raises:
        ConfigError: CUDA graphs elsewhere. CheckpointError: no such weights, a damaged or unsafe file,
            another architecture, values that are not finite.
    """
    if not isinstance(model, str | os.PathLike):
        raise CheckpointError(
            f"model: expected a name or a file, as 'faces64', found {type(model).__name__}"
        )
    if not str(model).strip():
        raise CheckpointError(
            "model: expected a name or a file, found an empty text; is a variable not set?"
        )
    if isinstance(model, str) and model.endswith("@random"):
        refuse_preset(model, preset)
        config = preset_architecture(model.removesuffix("@random"))
        net = random_weights(config, model, seed=0)  # the same ones each time
    else:
        net = _load_file(_find(model), preset)
    net = on_device(net, device).eval()
    if (compile or cuda_graphs) and not isinstance(net, VDVAE):
        raise ConfigError(f"{model}: compile and cuda_graphs are for VDVAEs, found {net!r}")
    if compile:
        compile_inference(net)
    if cuda_graphs:
        graph_inference(net)
    return cast(VDVAE | PixelCNN | Student, net)


def refuse_preset(model: str | Path, preset: Architecture | None) -> None:
    """Refuse a preset beside a model whose architecture is known.

    Raises:
        CheckpointError: one is given.
    """
    if preset is not None:
        raise CheckpointError(
            f"{model}: says its own architecture, so that preset {str(preset)!r} would say "
            "nothing; leave preset out"
        )


def on_device(model: Model, device: str | torch.device) -> Model:
    """Move a model to a device.

    Raises:
        CheckpointError: there is no such device.
    """
    kinds = ("cpu", "cuda", "mps", "xpu", "meta")  # torch knows twenty, of which it names all
    if isinstance(device, str) and device.partition(":")[0] not in kinds:
        raise CheckpointError(f"device: expected cpu, cuda or cuda:1, found {shown(device)}")
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError, TypeError) as error:
        raise CheckpointError(
            f'device {device!s} cannot be used ({first_line(error)}); try device="cpu"'
        ) from error


def random_weights(config: AnyModelConfig, name: str, seed: int) -> SavedModel:
    """Return a model with its initial weights, drawn from a seed.

    Raises:
        ConfigError: a configuration that makes no model, or one that is too large.
    """
    check_buildable(config)
    # On the CPU, and from its generator alone, which is left as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), arithmetic():
        torch.default_generator.manual_seed(seed)
        return build(config, name)


def save(
    model: SavedModel,
    path: str | Path,
    *,
    record: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write weights, config and training record; the file appears whole, as `output.replacing` says."""
    path = Path(path)
    tensors = {k: v.detach().cpu().to(dtype).contiguous() for k, v in model.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "name": model.name,
        "config": model.config.to_json(),
        "record": json.dumps(dict(record), sort_keys=True),
    }
    metadata["weights_sha256"] = hash_weights(metadata["config"], tensors)
    with replacing(path):
        write_tensors(tensors, aside_of(path), metadata)


def write_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors, contiguous and on the CPU, as safetensors, in a file that others may read as any other.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata=metadata)  # leaves a file that its owner alone can read
    path.chmod(mode)


def weights_sha256(model: SavedModel) -> str:
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
    if isinstance(model, str) and model in packaged_names():
        return WEIGHTS_FOLDER / f"{model}.safetensors"
    path = Path(model)
    try:
        folder, file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        folder = file = False
    if folder:
        inside = path / "model.safetensors"
        if not inside.is_file():
            shards = sum(bool(SHARD.fullmatch(file.name)) for file in path.iterdir())
            found = f"{shards} shards; {JOIN}" if shards else "none"
            raise CheckpointError(
                f"{path}: expected a run folder with model.safetensors, found {found}"
            )
        return inside
    if not file:
        names = packaged_names()
        raise CheckpointError(
            f"{shortened(str(model))}: no such file or packaged model{suggestion(str(model), names)}; "
            f"the packaged models are {', '.join(names) or 'none'}"
        )
    return path


@dataclass(frozen=True)
class _WeightsFile:
    """A file of weights whose tensors have not been read yet."""

    path: Path
    stored: Mapping[str, str]
    """The name that a tensor has in the file, by its plain one: without what torch puts into names."""
    shapes: Mapping[str, tuple[int, ...]]
    """By plain names."""
    metadata: Mapping[str, str]
    """Of a safetensors file; those of this package have its `config` there."""

    @property
    def is_own(self) -> bool:
        """Whether this package wrote it."""
        return self.metadata.get("format") == FORMAT

    @classmethod
    def open(cls, path: Path) -> _WeightsFile:
        """Read names and shapes alone.

        Raises:
            CheckpointError: no such file, a damaged one, or none that holds weights.
        """
        metadata: Mapping[str, str] = {}
        if _is_safetensors(_head(path)):
            with _safetensors(path) as file:
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        else:
            tensors = unwrapped(read_th(path, lazily=True), path)
            shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        stored = {INSIDE.sub("", name): name for name in shapes}
        if len(stored) < len(shapes):  # two names would be one
            stored = {name: name for name in shapes}
        shapes = {name: shapes[key] for name, key in stored.items()}
        plain = _without_wrapper({name: name for name in shapes})
        for beginning in {name.removesuffix(own) for own, name in plain.items()}:
            refuse_no_weights(beginning.rstrip("."), path)
        if adapters := [name for name in shapes if ADAPTER.search(name)]:
            raise CheckpointError(
                f"{path}: expected a network's own weights, found {counted(len(adapters), 'tensor')} of "
                f"adapters to them, as {adapters[0]}; merge these into the weights, as merge_and_unload of "
                "peft does, or save the weights without them"
            )
        if (count := _count_of_average(shapes)) is not None:
            del stored[count], shapes[count]
        return cls(path, stored, shapes, metadata)

    def read(self) -> dict[str, Tensor]:
        """Read the tensors onto the CPU."""
        if _is_safetensors(_head(self.path)):
            with _safetensors(self.path) as file:
                return {name: file.get_tensor(key) for name, key in self.stored.items()}
        tensors = unwrapped(read_th(self.path), self.path)
        return {name: tensors[key] for name, key in self.stored.items()}


def _load_file(path: Path, preset: Architecture | None) -> SavedModel:
    file = _WeightsFile.open(path)
    rename = _published_renaming(file.shapes)
    if len(set(rename.values())) < len(rename):
        raise CheckpointError(
            f"{path}: holds tensors under two names of one parameter (its names begin with "
            f"{_some(file.shapes)}); save the one that is meant"
        )
    shapes = {rename[key]: shape for key, shape in file.shapes.items()}
    config, name, remedy = _architecture_of(file, shapes, preset)
    try:
        net = on_meta(config, name)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration makes no model ({error})") from error
    if net.state_dict().keys() - shapes.keys():
        remedy = about_shard(path) or remedy
    net.check_shapes(shapes, str(path), remedy)
    weights = {rename[key]: value for key, value in file.read().items()}
    if file.is_own and preset is None:
        _check_hash(file, weights)
    check_finite(weights, path)
    if path.name.endswith(RAW_ENDING) and not file.is_own:
        warnings.warn(
            f"{path.name}: holds raw weights; published figures belong to their moving average, "
            f"{path.name.removesuffix(RAW_ENDING)}{EMA_ENDING}",
            stacklevel=6,  # where the caller of vr.load stands
        )
    if preset is not None and (line := _about_preset(preset, config)):
        warnings.warn(line, stacklevel=6)
    average = path.with_name(AVERAGE_FILE)
    if path.name == "model.safetensors" and average.is_file():
        warnings.warn(
            f"{path}: holds the raw weights of a checkpoint; a run's figures belong to their moving average, "
            f"{AVERAGE_FILE} beside it",
            stacklevel=6,
        )
    _recall_training(net, file)
    net.to_empty(device="cpu").load_weights(weights, str(path))
    return net


def _recall_training(net: SavedModel, file: _WeightsFile) -> None:
    """Give a model what its file, or the run folder that it lies in, says of its training."""
    folder = file.path.absolute().parent
    state = _checkpoint_state(folder)
    net.record = _record(file)
    if state and not net.record:
        net.record = {"data_sha256": state.get("source"), "crop": state.get("crop")}
        hashes = read_trained_on(folder.parents[1])
        # A run that went on has trained on more since, if its images had not all been seen by then.
        if hashes is not None and len(hashes) <= state.get("images_seen", 0):
            net.trained_on = hashes
    elif file.path.name == "model.safetensors":
        net.trained_on = read_trained_on(folder)
    net.trained_crop = _trained_crop(net.record)


def _checkpoint_state(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint of a run, `RUN/checkpoints/step-00000100`, says of itself; empty of others."""
    if not re.fullmatch(r"step-\d{8}", folder.name):
        return {}
    try:
        state = json.loads((folder / "state.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) and isinstance(state.get("images_seen"), int) else {}


def read_trained_on(folder: Path) -> NDArray[np.uint64] | None:
    """Return the hashes of the images that a run was trained on; None of no whole file of them."""
    try:  # mapped, so that a damaged header takes no memory
        hashes = np.lib.format.open_memmap(folder / TRAINED_ON_FILE, mode="r")
        if hashes.dtype != np.uint64 or hashes.ndim != 1 or (hashes[1:] <= hashes[:-1]).any():
            return None
        return np.array(hashes)
    except (OSError, ValueError, EOFError, OverflowError, AttributeError):
        return None


def _record(file: _WeightsFile) -> dict[str, Any]:
    """Return the record of a run's file; empty where there is none, or a damaged one."""
    try:
        record = json.loads(file.metadata.get("record", "{}"))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _trained_crop(record: Mapping[str, Any]) -> int | None:
    """Return the central square that the record of a run's file names; None where nothing tells."""
    try:
        crop = record["crop"]
        return None if crop is None else whole_number("crop", crop, 1)
    except (TypeError, KeyError, ConfigError):  # another's
        return None


def without_weights(model: str | Path) -> SavedModel | None:
    """Return a model on torch's device `meta`, its tensors unread; None where its file does not tell."""
    try:
        file = _WeightsFile.open(_find(model))
        rename = _published_renaming(file.shapes)
        shapes = {rename[key]: shape for key, shape in file.shapes.items()}
        config, name, _ = _architecture_of(file, shapes, None)
        net = on_meta(config, name)
    except (CheckpointError, ConfigError):
        return None
    _recall_training(net, file)
    return net


def _architecture_of(
    file: _WeightsFile, shapes: Mapping[str, tuple[int, ...]], preset: Architecture | None
) -> tuple[AnyModelConfig, str, str]:
    """Return what a file's weights are of, the model's name, and what to do if they are of another.

    Raises:
        CheckpointError: nothing tells, or two things do.
    """
    if file.is_own:
        remedy = "the file's config is of other weights: get it again"
        return _own_config(file, preset), file.metadata.get("name", file.path.stem), remedy
    if preset is not None:
        name = Path(preset).stem if isinstance(preset, str | os.PathLike) else file.path.stem
        return architecture(preset), name, ""
    fitting = [name for name in preset_names() if _fits(shapes, name)]
    if len(fitting) != 1:
        found = f"fits {' and '.join(fitting)}" if fitting else "fits no preset"
        raise CheckpointError(
            f"{file.path}: {found} (its names of tensors, {len(shapes)} in all, begin with "
            f"{_some(file.shapes)}); {about_shard(file.path) or NAME_IT}"
        )
    return preset_architecture(fitting[0]), fitting[0], ""


def _own_config(file: _WeightsFile, preset: Architecture | None) -> AnyModelConfig:
    """Return the configuration in a file of this package, or that of `preset` if it cannot be read.

    Raises:
        CheckpointError: neither, or both.
    """
    if "config" in file.metadata:
        try:
            config = model_config_from_json(file.metadata["config"])
        except ConfigError as error:
            reason = f"the config in its metadata cannot be read ({first_line(error)})"
        else:
            refuse_preset(file.path, preset)
            return config
    else:
        reason = f"expected the model's config in the metadata of format {FORMAT}, found none"
    if preset is None:
        raise CheckpointError(f"{file.path}: {reason}; {NAME_IT}")
    return architecture(preset)


def _about_preset(preset: Architecture, config: AnyModelConfig) -> str:
    """Say where a preset's shift and scale are not those of any images; else nothing."""
    path = Path(preset) if isinstance(preset, str | os.PathLike) else None
    of_run = path is not None and path.is_dir()  # whose training measured them, or said so
    line = about_pixels(config, () if of_run else ("shift", "scale"))
    return line and f"{path or 'preset'}: {line}, of the images that the weights were trained on"


def _check_hash(file: _WeightsFile, weights: Mapping[str, Tensor]) -> None:
    """Compare the config and weights of a file of this package with what it says of them, if it does.

    Raises:
        CheckpointError: they differ.
    """
    expected = file.metadata.get("weights_sha256")
    if expected not in (None, hash_weights(file.metadata["config"], weights)):
        raise CheckpointError(
            f"{file.path}: its config and weights do not match their SHA-256; the file is damaged, or they "
            "were changed since, as to float16: get it again, let the run write it again, or save changed "
            "weights without the metadata, and name their architecture with preset"
        )


def _fits(shapes: Mapping[str, tuple[int, ...]], preset: str) -> bool:
    """Whether a preset's parameters have these names and shapes; builds nothing in memory."""
    return _shapes_of(preset_architecture(preset)) == dict(shapes)


@cache
def _shapes_of(config: AnyModelConfig) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in on_meta(config).state_dict().items()}


def _published_renaming(names: Iterable[str]) -> dict[str, str]:
    """Return by a file's name of each tensor this package's name."""
    plain = _without_wrapper({name: name for name in names})
    return {own: name for key, own in plain.items() for name in from_published_names({key: own})}


def _without_wrapper(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Take away what every parameter's name begins with, as `module.`.

    Models have two halves, so that nothing of its own begins every name.
    """
    weights = dict(weights)
    while len(firsts := {key.partition(".")[0] for key in weights}) == 1:
        (first,) = firsts
        if first in ("encoder", "decoder", "bottom_up", "top_down") or first in weights:
            break
        weights = {key.removeprefix(f"{first}."): value for key, value in weights.items()}
    return weights


def _count_of_average(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the name of the count that torch's AveragedModel keeps beside the weights; None without one."""
    for name, shape in shapes.items():
        wrapper, _, last = name.rpartition("n_averaged")
        if not last and shape == () and len(shapes) > 1:
            inside = f"{wrapper}module."
            return name if all(k.startswith(inside) for k in shapes if k != name) else None
    return None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of any weights file onto the CPU, by name.

    Safetensors and what torch.save wrote are told by their content. A dictionary around the weights, as
    `{"state_dict": ..., "epoch": 3}`, is taken away where one key alone holds tensors, and so is what torch
    puts into names, as `_orig_mod.`.

    Raises:
        CheckpointError: no such file, a damaged one, none that holds weights, several sets of weights, or
            values that are not finite.
    """
    weights = _WeightsFile.open(path).read()
    check_finite(weights, path)
    return weights


def read_parameters(path: Path) -> dict[str, Tensor]:
    """Read a model's parameters, by this package's names, out of any file that `load` takes.

    The architecture need not be that of a preset.

    Raises:
        CheckpointError: as `read_weights`.
    """
    weights = read_weights(path)
    rename = _published_renaming(weights)
    return {rename[key]: value for key, value in weights.items()}


def about_shard(file: str | Path) -> str:
    """Say, for where tensors are missing, that a file is one of several by its name; else nothing."""
    shard = SHARD.fullmatch(Path(file).name)
    if shard is None or int(shard["count"]) < 2:
        return ""
    return f"by its name it is shard {int(shard['number'])} of {int(shard['count'])}: {JOIN}"


def check_readable(path: Path) -> None:
    """Refuse what stands in place of weights, or is cut short; values are not read where the file allows it.

    Raises:
        CheckpointError: names what the file is.
    """
    if _is_safetensors(_head(path)):
        with _safetensors(path):
            return
    read_th(path, lazily=True)


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    if (header := int.from_bytes(_head(path)[:8], "little")) > MOST_HEADER:
        raise CheckpointError(
            f"{path}: not a readable safetensors file, {_size(path)}; expected {MOST_HEADER:,} bytes of "
            f"header at most, found {header:,}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file, {_size(path)} ({first_line(error)}); "
            "it is damaged or cut short: get it again"
        ) from error


def read_th(path: Path, *, lazily: bool = False) -> dict[str, Any]:
    """Read a dictionary that torch.save wrote, onto the CPU; pickled code is never run.

    Args:
        path: the file.
        lazily: where the file allows it, leave the values in it until they are used, their checksums unread.

    Raises:
        CheckpointError: no such file, a damaged one, one of another kind, or one that holds other objects.
    """
    _refuse_what_is_no_checkpoint(path)
    zipped = _head(path)[:2] == b"PK"
    if zipped:
        _refuse_archive(path, whole=not lazily)
    try:
        # What training scripts keep beside the weights; it is a plain record and runs nothing.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of pickle protocols: what matters raises
            how: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
            if path.suffix.lower() == ".safetensors":  # by which alone torch reads it as such
                with path.open("rb") as file:
                    state = torch.load(file, **how)
            else:
                state = torch.load(path, mmap=lazily and zipped, **how)
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
        # EINVAL is a seek past a cut file's end.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
        # of a damaged file torch raises whatever the bytes lead it to
        reason = first_line(error)
        if "weights_only" in reason:  # which torch advises to switch off
            reason = type(error).__name__
        raise CheckpointError(
            f"{path}: not a readable checkpoint, {_size(path)} ({reason}); "
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
    whole = f"torch.load({str(path)!r})"  # what leads to the dictionary that is looked at
    for _ in range(MOST_WRAPPERS):
        if strange := [key for key in state if not isinstance(key, str)]:
            raise CheckpointError(
                f"{path}: expected tensors by the names of parameters, found the key {shown(strange[0])} of "
                f"type {type(strange[0]).__name__}; save it with torch.save(model.state_dict(), FILE)"
            )
        inside = [key for key, value in state.items() if _holds_tensors(value)]
        if len(inside) != 1:
            break
        if _named_alike(state, state[inside[0]]):
            raise CheckpointError(
                f"{path}: holds two sets of weights, one under {shown(inside[0])} and one beside it; save "
                f"the one that is meant: torch.save({whole}[{inside[0]!r}], FILE)"
            )
        refuse_no_weights(inside[0], path)
        if not isinstance(state[inside[0]], Mapping):
            raise CheckpointError(
                f"{path}: expected tensors by the names of parameters, found a list under "
                f"{shown(inside[0])}; copy an average into the model, and save that: "
                "torch.save(model.state_dict(), FILE)"
            )
        state, whole = state[inside[0]], f"{whole}[{inside[0]!r}]"
    if inside:
        meant = [key for key in inside if not NO_WEIGHTS.fullmatch(key)]
        places = [_place(state, key) for key in meant]
        if len(places) > 1:  # which is not known but of averages
            places = [(place, named) for place, named in places if AVERAGED.search(place)] or [
                ("[KEY]", True)
            ]
        advice = "copy the one that is meant into the model: torch.save(model.state_dict(), FILE)"
        if places and places[0][1]:
            advice = f"save the one that is meant: torch.save({whole}{places[0][0]}, FILE)"
        raise CheckpointError(
            f"{path}: holds {len(inside)} sets of weights, {_some(inside)}; {advice}"
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
            f"{type(state[others[0]]).__name__} under {shown(others[0])}; save the tensors alone"
        )
    for key, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            what = "a sparse, quantised or empty tensor"
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
            what = f"a view of {value.numel():,} values, which repeats fewer"
        else:
            continue
        raise CheckpointError(
            f"{path}: expected tensors that hold their values, found {what} under {shown(key)}; "
            "save plain tensors, value.contiguous()"
        )
    storages = {v.untyped_storage().data_ptr(): v.untyped_storage() for v in tensors.values()}
    claimed = sum(storage.nbytes() for storage in storages.values())
    if claimed > path.stat().st_size:
        raise CheckpointError(
            f"{path}: expected values that stand in the file, found tensors of {claimed:,} bytes in "
            f"{_size(path)}; get it again"
        )
    return tensors


def refuse_no_weights(place: str, where: str | Path) -> None:
    """Refuse tensors that lie under a key, or a beginning of all names, of gradients or moments, say.

    Raises:
        CheckpointError: as described.
    """
    if NO_WEIGHTS.fullmatch(place):
        raise CheckpointError(
            f"{where}: expected weights, found tensors under {shown(place)}, which are none; save "
            "weights with torch.save(model.state_dict(), FILE)"
        )


def _refuse_archive(path: Path, whole: bool) -> None:
    """Refuse an archive that is larger unpacked, as torch.save compresses nothing, or that is damaged.

    Args:
        path: the file.
        whole: compare all that it holds with its checksums, which torch does not; else all but the values of
            tensors. There are none where `torch.serialization.set_crc32_options(False)` was called before it
            was saved.

    Raises:
        CheckpointError: as described.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if not any(entry.filename.endswith("data.pkl") for entry in entries):
                listed = ", ".join(printable(entry.filename) for entry in entries[:3])
                raise CheckpointError(
                    f"{path}: is an archive, and not one of torch.save; it holds {listed or 'nothing'}: "
                    "unpack it"
                )
            if any(entry.filename.endswith("constants.pkl") for entry in entries):
                raise CheckpointError(
                    f"{path}: is a TorchScript archive (torch.jit.save), which holds code; refused, nothing "
                    "was run: save the tensors alone, torch.save(model.state_dict(), FILE)"
                )
            if unpacked > path.stat().st_size:
                raise CheckpointError(
                    f"{path}: is an archive of {unpacked:,} bytes in {_size(path)}, expected an uncompressed "
                    "one as torch.save writes; unpack it, or get it again"
                )
            compared = [entry for entry in entries if whole or "/data/" not in entry.filename]
            for entry in compared if any(entry.CRC for entry in entries) else []:
                try:
                    with archive.open(entry) as member:
                        while member.read(2**20):
                            pass
                except zipfile.BadZipFile as error:
                    raise ValueError(
                        f"the bytes of {entry.filename} do not match their checksum"
                    ) from error
    except (
        zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"{path}: not a readable checkpoint, {_size(path)} ({first_line(error)}); "
            "it is damaged or cut short: get it again"
        ) from error


def _place(state: Mapping[str, Any], key: str) -> tuple[str, bool]:
    """Return what leads to the tensors under a key, as `['callbacks']['EMA']`, and whether they have names.

    Those in a list, or under numbers, have none.
    """
    place, inside = f"[{key!r}]", state[key]
    while isinstance(inside, Mapping):
        holding = [name for name, value in inside.items() if _holds_tensors(value)]
        if len(holding) != 1:
            break
        place, inside = f"{place}[{holding[0]!r}]", inside[holding[0]]
    return place, isinstance(inside, Mapping) and all(isinstance(name, str) for name in inside)


def _holds_tensors(value: Any) -> bool:
    """Whether a value holds a list or dictionary of tensors, at whatever depth.

    Single numbers do not count, nor do whole numbers, as states of generators are.
    """
    return any(
        isinstance(v, Tensor) and v.ndim and v.is_floating_point()
        for _, values in _tables(value, by_texts=True)
        for v in values
    )


def _named_alike(state: Mapping[str, Any], inside: Any) -> bool:
    """Whether tensors of a dictionary have the names of some in a value of it, as of a second network."""

    def short(
        name: object,
    ) -> str:  # without what may stand before a parameter's name, as `module.`
        return ".".join(str(name).split(".")[-2:])

    own = {short(key) for key, value in state.items() if isinstance(value, Tensor) and value.ndim}
    return any(not own.isdisjoint(map(short, keys)) for keys, _ in _tables(inside))


def _tables(
    value: Any, *, by_texts: bool = False
) -> Iterator[tuple[Collection[Any], Collection[Any]]]:
    """Yield keys and values of the dictionaries in a value, at whatever depth, each once; of lists no keys.

    Dictionaries of others than tensors whose keys are not all texts, as an optimizer's state by numbers, and
    what they hold, are passed over if `by_texts`.
    """
    waiting, seen = [value], set[int]()
    while waiting:
        table = waiting.pop()
        if id(table) in seen or not isinstance(table, Mapping | list | tuple):
            continue
        seen.add(id(table))
        keys, values = (table, table.values()) if isinstance(table, Mapping) else ((), table)
        named = all(isinstance(key, str) for key in keys)
        if by_texts and not named and not all(isinstance(value, Tensor) for value in values):
            continue
        yield keys, values
        waiting += values


def check_finite(weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Refuse weights that are NaN or infinite, or of a type of 8 bits, which holds a part of a number.

    Raises:
        CheckpointError: names the first such parameter.
    """
    for name, value in weights.items():
        if value.is_floating_point() and value.dtype not in FLOATS:
            raise CheckpointError(
                f"{where}: expected float32, float16, bfloat16 or float64, found "
                f"{str(value.dtype).removeprefix('torch.')} in {name}; save the weights in one of these"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{where}: expected finite weights, found NaN or infinity in {name}; "
                "the training that made them went wrong, or the file is damaged"
            )


def _some(names: Collection[str], count: int = 3) -> str:
    more = ", ..." if len(names) > count else ""
    return ", ".join(shortened(name) for name in list(names)[:count]) + more


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
    except IsADirectoryError as error:
        held = [
            name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()
        ]
        raise CheckpointError(
            f"{path}: expected a file of weights, found a folder"
            f"{f'; name {held[0]} in it' if held else ''}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def _is_configuration(path: Path) -> bool:
    """Whether a file is a TOML with a `[model]` or a `[train]` table."""
    try:
        tables = read_tables(path)
    except ConfigError:
        return False
    return any(isinstance(tables.get(section), dict) for section in ("model", "train"))


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
    if path.name.endswith(".index.json"):
        raise CheckpointError(f"{path}: is the index of shards, and holds no weights; {JOIN}")
    if _is_configuration(path):
        raise CheckpointError(
            f"{path}: is a configuration (TOML), which holds no weights; train with it, or name a file of "
            "weights, and give it as preset"
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
