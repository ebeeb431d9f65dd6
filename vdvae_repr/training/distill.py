"""Distillation: a student learns a VDVAE's posterior at chosen layers, in a run folder like any other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.config import Config, StudentConfig, path_of, sections, true_or_false
from vdvae_repr.data.source import Source
from vdvae_repr.encoders.load import load, refuse_unfetched
from vdvae_repr.errors import CheckpointError, ConfigError, TrainingError
from vdvae_repr.model.build import on_meta
from vdvae_repr.model.layers import LayerSpec, split_selector
from vdvae_repr.model.precision import arithmetic
from vdvae_repr.model.student import Student, multiply_adds
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.model.weights import weights_sha256
from vdvae_repr.training.objective import Distillation
from vdvae_repr.training.plan import (
    about_configuration_alone,
    make_plan,
    read_given,
    read_run,
    run_folder,
)
from vdvae_repr.training.trainer import place_of, run_plan

STUDENT = "student64"  # the preset that is taken where no configuration is given
TAUGHT = (
    "image_size",
    "zdim",
    "top_down",
    "shift",
    "scale",
)  # keys of [model] that are the teacher's


@arithmetic()
def distill(
    teacher: VDVAE | str | Path | None = None,
    data: str | Path | Source | NDArray[np.uint8] | None = None,
    out: str | Path | None = None,
    *,
    config: Config | str | Path | None = None,
    layers: str | int | Sequence[str | int] | None = None,
    resume: bool = False,
    changed: Sequence[str] = (),
    name: str | None = None,
    crop: int | None = None,
    on_error: str | None = None,
    device: str = "cpu",
    precision: str | None = None,
    accumulate: int | None = None,
    num_workers: int | None = None,
    log_with: str | None = None,
    progress: Callable[[str], None] | None = None,
    **train_keys: Any,
) -> Path:
    """Train a student of a VDVAE into the run folder `out`, and return that.

    The student, bottom-up alone, predicts mean and log standard deviation of the teacher's posterior at
    chosen layers. The loss is the KL of the teacher's posterior to the student's, summed over layers, in nats
    per dimension of the image; the log has it by layer, of the images trained on and of those held back. The
    teacher sends its means down, as `extract` does. The run folder is that of `train`, and a run is resumed,
    divided among processes and stopped in the same ways; `vr.load` takes the folder.

    Args:
        teacher: a VDVAE, or what `load` takes. A resumed run that was given a name or a path knows it.
        data: what `--data` takes, as of `train`.
        out: the run folder; `config` where that is one, else `runs/NAME`, if not given.
        config: of the student, with `kind = "student"`: a preset's name, a TOML, a run folder or a
            configuration; `student64`, if not given. Its image_size, zdim, top_down, shift and scale are the
            teacher's, and may be missing.
        layers: selector of the teacher's layers, in place of the configuration's `model.layers`.
        resume: go on from the newest checkpoint; without any, start. A finished run is left alone.
        changed: `train.lr=1e-4`, a value in place of the configuration's, as of `train`.
        name: the student's name in its file; that of the teacher with `-student`, if not given.
        crop: central square to take first, pixels.
        on_error: "raise", if not given; "skip" leaves out images that cannot be read.
        device: "cpu", "cuda"; never chosen silently.
        precision: of the student, "fp32", if not given, or "bf16"; the teacher's is fp32.
        accumulate: micro-batches that a process divides its share of the batch into.
        num_workers: threads that read and decode batches ahead; by default the cores less one.
        log_with: a tracker that accelerate knows, which receives the log's numbers too.
        progress: receives what is said, and a line at each row of the log.
        train_keys: keys of the [train] table by name, as `steps=2000`.

    Raises:
        CheckpointError: no teacher, or one that is no VDVAE.
        ConfigError: no student's configuration, mistakes in it, or layers that it cannot have.
        DataError, TrainingError: as `train`.

    Example:
        >>> vr.distill("faces64", "photos/", "runs/student", steps=2000)  # doctest: +SKIP
    """
    resume, out = true_or_false("resume", resume), None if out is None else path_of("out", out)
    if teacher is None and resume and out is not None and (out / "config.toml").is_file():
        teacher = read_run(out).options.teacher
    if teacher is None:
        if resume and out is not None and not (out / "config.toml").is_file():
            raise TrainingError(
                f"{out}: expected a run to go on with, found none; choose its folder, or give a teacher"
            )
        raise CheckpointError(
            'teacher: expected a VDVAE, or what loads it, as teacher="faces64", found none'
        )
    taught_by = None if isinstance(teacher, VDVAE) else place_of("teacher", teacher)
    refuse_unfetched(teacher, "a VDVAE")
    model = copy.deepcopy(teacher) if isinstance(teacher, VDVAE) else load(teacher)
    if not isinstance(model, VDVAE):
        raise CheckpointError(f"teacher: expected a VDVAE, found {model!r}; load a VDVAE")
    model = model.eval().requires_grad_(False)
    own = None if config is None or isinstance(config, Config) else run_folder(config)
    folder = Path(out or own or Path("runs") / (name or f"{model.name}-student"))
    begun = resume and (folder / "config.toml").is_file()
    if config is None:
        config = folder if begun else STUDENT
    tables, where, _ = read_given(config)
    if sections(tables)["model"] is not StudentConfig:
        raise ConfigError(
            f'{where}: expected the configuration of a student, with model.kind = "student", found another; '
            f"take {STUDENT}, or a TOML like it"
        )
    taught = {key: getattr(model.config, key) for key in TAUGHT}
    keys = taught if layers is None else taught | {"layers": ",".join(split_selector(layers))}
    plan = make_plan(
        config, folder, resume=resume, changed=changed, train_keys=train_keys, model_keys=keys,
        options={
            "name": name or (None if begun else f"{model.name}-student"), "crop": crop,
            "on_error": on_error, "precision": precision, "accumulate": accumulate, "log_with": log_with,
            "teacher": taught_by, "teacher_sha256": weights_sha256(model),
        },
    )  # fmt: skip
    student = cast(Student, on_meta(plan.config({}).model, plan.options.name))
    notices = [*_replaced(where, tables, taught), _cost(student, model)]
    if line := about_configuration_alone(config, plan, resume=resume):
        notices.append(line)
    if line := model.about_crop(plan.options.crop):
        notices.append(line)
    return run_plan(
        plan, Distillation(model, student.layers), data, resume=resume, device=device,
        num_workers=num_workers, notices=notices, progress=progress,
    )  # fmt: skip


def _replaced(where: str, tables: Mapping[str, Any], taught: Mapping[str, Any]) -> list[str]:
    """Say what of a configuration the teacher's values take the place of."""
    given = tables["model"]
    other = [key for key, value in taught.items() if key in given and given[key] != value]
    if not other:
        return []
    keys, are = ", ".join(f"model.{key}" for key in other), "are" if len(other) > 1 else "is"
    those = "those" if len(other) > 1 else "the one"
    return [f"{where}: {keys} {are} the teacher's, and not {those} given"]


def _cost(student: Student, teacher: VDVAE) -> str:
    """Say how large a student is, and what it costs beside the same layers of its teacher."""
    layers: tuple[LayerSpec, ...] = student.layers
    own, whole = multiply_adds(student, layers), multiply_adds(teacher, layers)
    return (
        f"{student!r}: {own / 1e6:.1f} million multiply-adds an image, {own / whole:.2f} of what the teacher "
        "takes for these layers"
    )
