"""A run's complete states on disk: written aside and renamed, checked by SHA-256 when read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vdvae_repr.config import MOST_STEPS, shown, whole_number
from vdvae_repr.encoders.load import load, refuse_unfetched
from vdvae_repr.errors import CheckpointError, ConfigError, TrainingError, first_line
from vdvae_repr.model.base import ImageModel
from vdvae_repr.model.weights import (
    check_finite,
    packaged_names,
    read_parameters,
    read_th,
    write_tensors,
)
from vdvae_repr.output import make_folder, put_in_place
from vdvae_repr.training.sealed import read_sealed_json, sealed_json

logger = logging.getLogger(__name__)
Tensors = Mapping[str, Mapping[str, Tensor]]
GROUPS = ("model", "average", "adamw")


def announce_checkpoint(folder: Path, step: int) -> None:
    """Make the folder that a checkpoint is written in, before anything of its run is replaced.

    It stays until the checkpoint is whole, so that a run without checkpoints is known to have been stopped at
    its first, and not to have lost them.
    """
    make_folder(_aside(folder, step))


def is_announced(folder: Path) -> bool:
    """Whether a checkpoint was begun there and is not whole."""
    return any(folder.glob(".step-*.part"))


def write_checkpoint(folder: Path, step: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
    """Write `folder/step-SSSSSSSS`: a safetensors a group, and `state.json` with their checksums.

    Raises:
        TrainingError: it cannot be written; the checkpoints before it are untouched.
    """
    final = folder / f"step-{step:08d}"
    aside = _aside(folder, step)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        make_folder(aside)
        digests = {}
        for name, group in tensors.items():
            path = aside / f"{name}.safetensors"
            write_tensors({k: v.detach().cpu().contiguous() for k, v in group.items()}, path)
            digests[path.name] = _digest(path)
        text = sealed_json({"step": step, **state, "sha256": digests})
        (aside / "state.json").write_text(text, encoding="utf-8")
        put_in_place(aside, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):
            announce_checkpoint(folder, step)
        kept = checkpoint_steps(folder)
        last = f"the last good one is step {kept[-1]}" if kept else "there is none before it"
        raise TrainingError(
            f"{final}: the checkpoint cannot be written ({error}); {last}; make room, and "
            "go on with resume=True"
        ) from error


def _aside(folder: Path, step: int) -> Path:
    return folder / f".step-{step:08d}.part"


def read_newest(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Return tensors and state of the newest whole checkpoint; None where there is no checkpoint.

    A damaged one is passed over for the one before, with a warning.

    Raises:
        TrainingError: every checkpoint is damaged.
    """
    steps = checkpoint_steps(folder)
    for step in reversed(steps):
        path = folder / f"step-{step:08d}"
        try:
            state = _read_state(path / "state.json", step)
            tensors = {}
            for name in GROUPS:
                file = path / f"{name}.safetensors"
                if _digest(file) != state["sha256"].get(file.name):
                    raise ValueError(f"{file.name} does not match its checksum")
                # clones, because loaded tensors are views of a file that pruning may remove
                tensors[name] = {k: v.clone() for k, v in load_file(file).items()}
            return tensors, state
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("%s is damaged (%s); trying the one before", path, first_line(error))
    if steps:
        raise TrainingError(
            f"{folder}: expected a whole checkpoint, found {len(steps)} damaged; choose another path, or "
            "remove them to start anew"
        )
    return None


def _read_state(path: Path, step: int) -> dict[str, Any]:
    """Return what a checkpoint holds beside its tensors, checked key by key.

    Raises:
        ValueError: it is damaged. OSError: it cannot be read.
    """
    state = read_sealed_json(path)
    for key in ("begun_at", "at_rate_0"):  # which the first version did not write
        state.setdefault(key, 0)
    kinds: dict[str, Any] = {
        "step": int, "images_seen": int, "skipped": int, "begun_at": int, "at_rate_0": int, "source": str,
        "images": str, "crop": int | None, "sha256": dict,
    }  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(value := state.get(key), kind) or (kind is int and value < 0):
            raise ValueError(f"state.json holds {shown(value)} as {key}")
    if unknown := state.keys() - kinds.keys() - {"failure"}:
        raise ValueError(f"state.json holds {shown(min(unknown))}, which no run writes")
    if state["step"] != step or state["skipped"] > step or state["begun_at"] > step:
        raise ValueError("state.json is of another step")
    if not isinstance(state.setdefault("failure", None), str | None):
        raise ValueError("state.json holds no reason of its failure")
    return state


def read_start(
    path: str | Path, say: Callable[[str], None] = logger.warning
) -> tuple[dict[str, dict[str, Tensor]], int]:
    """Return tensors and step to start a new run from.

    A published run's `NAME-model.th` brings its `NAME-model-ema.th`, `NAME-opt.th` and `NAME-log.jsonl`
    (openai/vdvae train_helpers.py), each where it lies beside it; of those that lack `say` receives a line.
    Any other VDVAE or PixelCNN that `load` takes, and a file of any architecture, gives the weights of both
    the model and its average, at step 0.

    Raises:
        CheckpointError: no VDVAE, damaged files, values that are not finite, moments of another model, or
            moments without the log that tells their step.
    """
    if not isinstance(path, str | os.PathLike):
        raise CheckpointError(f"init_from: expected a name or a file, found {type(path).__name__}")
    start, path = path, Path(path)
    if start in packaged_names() or not path.is_file():  # a Path is no name
        refuse_unfetched(start, "a VDVAE or a PixelCNN")
        model = load(start)
        if not isinstance(model, ImageModel):
            raise CheckpointError(
                f"{start}: expected the weights of a VDVAE or a PixelCNN to start from"
            )
        weights = model.state_dict()
        return {"model": weights, "average": weights, "adamw": {}}, 0
    if not path.name.endswith("-model.th"):
        weights = read_parameters(path)
        return {"model": weights, "average": weights, "adamw": {}}, 0
    average, moments, log = (
        path.with_name(path.name.removesuffix("-model.th") + ending)
        for ending in ("-model-ema.th", "-opt.th", "-log.jsonl")
    )
    if moments.is_file() and not log.is_file():
        raise CheckpointError(f"{moments}: expected {log.name} beside it, which tells the step")
    weights = read_parameters(path)
    lacking = {
        average: "the moving average starts from the raw weights",
        moments: "AdamW's moments start afresh",
        log: "the run starts at step 0",
    }
    if without := {file.name: what for file, what in lacking.items() if not file.is_file()}:
        say(
            f"{path}: beside it {'is' if len(without) == 1 else 'are'} no {', '.join(without)}, so that "
            f"{', '.join(without.values())}; put the run's own files there to go on with it"
        )
    tensors = {
        "model": weights,
        "average": read_parameters(average) if average.is_file() else weights,
        "adamw": _published_moments(moments, weights) if moments.is_file() else {},
    }
    if not log.is_file():
        return tensors, 0
    try:
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        steps = [row["step"] for row in rows if row.get("type") == "train_loss"]
        if not steps:
            raise ValueError("there is none of that type")
        return tensors, max(whole_number("step", step, 0, MOST_STEPS) for step in steps)
    except (ValueError, KeyError, AttributeError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"{log}: expected lines of JSON, one of type train_loss with its step ({first_line(error)})"
        ) from error


def _published_moments(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the moments of an AdamW state by parameter; apex keeps `step` in the parameter group."""
    saved = read_th(path)
    try:
        (group,) = saved["param_groups"]
        entries = [saved["state"][key] for key in group["params"]]
        moments = {}
        for entry, (name, weight) in zip(entries, weights.items(), strict=True):
            for key in ("exp_avg", "exp_avg_sq"):
                if entry[key].shape != weight.shape:
                    raise ValueError(f"{key} of {name} is {tuple(entry[key].shape)}")
                moments[f"{key}.{name}"] = entry[key].float()
            step = entry["step"] if "step" in entry else group["step"]
            moments[f"step.{name}"] = torch.as_tensor(step, dtype=torch.float32)
            if (moments[f"exp_avg_sq.{name}"] < 0).any():
                raise ValueError(f"exp_avg_sq of {name} is below 0")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: expected AdamW's moments of {len(weights)} parameters, found others "
            f"({first_line(error)})"
        ) from error
    check_finite(moments, path)
    return moments


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints there, ascending."""
    names = (path.name for path in folder.glob("step-*"))
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{8}", name))


def prune(folder: Path, step: int, keep_last: int, keep_every: int) -> None:
    """Remove checkpoints but the `keep_last` up to `step` and those of steps that `keep_every` divides.

    Later ones, which a resumed run passed over as damaged, count for nothing.
    """
    for step in [found for found in checkpoint_steps(folder) if found <= step][:-keep_last]:
        if not (keep_every and step % keep_every == 0):
            shutil.rmtree(folder / f"step-{step:08d}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
