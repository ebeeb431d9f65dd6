"""What a run is to do: a configuration and ways to compute it, from what is given and what its folder holds.

A run folder keeps both, in `config.toml` and `run.json`, so that a resumed run needs no flag again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.config import (
    Config,
    PixelCNNConfig,
    Tables,
    TrainConfig,
    build_config,
    build_model_config,
    build_table,
    find_config,
    keep_truths,
    keep_whole_numbers,
    parse_overrides,
    path_of,
    preset_names,
    preset_path,
    problems,
    python_number,
    raise_all,
    read_tables,
    sections,
    shown,
    whole_number,
)
from vdvae_repr.data.source import Source
from vdvae_repr.errors import ConfigError, TrainingError, first_line
from vdvae_repr.model.build import check_buildable
from vdvae_repr.model.structure import check_all_is_used, parse_blocks, parse_widths
from vdvae_repr.training.checkpoints import checkpoint_steps
from vdvae_repr.training.sealed import read_sealed_json, seal_of_toml, sealed_json

MEASURED = ("model.shift", "model.scale")  # on the training images, where they are not given
KEPT = {"options", "data", "preset_values", "fingerprint", "left_out"}  # in `run.json`
WRITTEN = (
    "run.json",
    "config.toml",
    "log.jsonl",
    "model.safetensors",
    "trained_on.npy",
    "checkpoints",
    "samples",
)
FIXED = ("train.seed", "train.hold_back")  # of a run that is resumed


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is computed and watched, as `train` explains; kept in `run.json`."""

    name: str = "vdvae"
    crop: int | None = None
    precision: str = "fp32"
    accumulate: int = 1
    compile: bool = False
    channels_last: bool = False
    recompute: Sequence[int] = ()
    on_error: str = "raise"
    log_with: str | None = None
    probe_every: int = 0
    probe_data: str | dict[str, Any] | None = None
    probe_layers: str | Sequence[str] = "all"
    init_from: str | None = None
    teacher: str | None = None
    """Of a student, what loads its teacher; None of one that was in memory."""
    teacher_sha256: str | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        choices = {"precision": ("fp32", "bf16"), "on_error": ("raise", "skip")}
        for key, allowed in choices.items():
            if (value := getattr(self, key)) not in allowed:
                raise ConfigError(f"{key}: expected {' or '.join(allowed)}, found {shown(value)}")
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"name: expected a text, found {shown(self.name)}")
        keep_truths(self, "compile", "channels_last")
        keep_whole_numbers(self, crop=1, accumulate=1, probe_every=0)
        if isinstance(self.recompute, str) or not isinstance(self.recompute, Sequence):
            raise ConfigError(
                f"recompute: expected resolutions in a list, as [64], found {shown(self.recompute)}"
            )
        resolutions = [whole_number("recompute", side, 1) for side in self.recompute]
        object.__setattr__(self, "recompute", tuple(resolutions))


UNCHANGED = (
    "crop",
    "precision",
    "on_error",
    "init_from",
    "teacher_sha256",
)  # options that a resumed run cannot change


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before its data are opened; the tables have been checked, and may lack what is `MEASURED`."""

    out: Path
    tables: Tables
    options: RunOptions
    data: str | dict[str, Any] | None = None
    """What opens the images that it was trained on (`Source.opened`); None of images in memory."""
    preset_values: Mapping[str, Any] = field(default_factory=dict)
    """The preset's own values of the keys that were set by name: a resumed run may leave them out."""
    fingerprint: str | None = None
    """The source's."""
    checksums: Sequence[int] | None = None
    """Of the images, or of some of many: see `reading.content_checksums`; None in earlier run folders."""
    left_out: Mapping[str, str] | None = None
    """Of the images that could not be read, by id, the reason; None before they were looked for."""
    older: bool = False
    """The folder is of a version that kept no `run.json`, nor `ema_warmup`."""

    def __post_init__(self) -> None:
        """Refuse what a damaged `run.json` may hold.

        Raises:
            ConfigError: a value of another type.
        """
        kinds: dict[str, Any] = {
            "data": str | dict | None,
            "preset_values": Mapping,
            "fingerprint": str | None,
            "checksums": Sequence | None,
            "left_out": Mapping | None,
        }
        for key, kind in kinds.items():
            if not isinstance(value := getattr(self, key), kind):
                raise ConfigError(f"{key}: found {shown(value)}")

    def refuse_replaced(
        self, source: Source, indices: NDArray[np.intp], checksums: Sequence[int]
    ) -> None:
        """Refuse images that stand in place of those trained on, under their names and of their sizes.

        Args:
            source: of the same fingerprint.
            indices: of the images that are compared.
            checksums: of these now: see `reading.content_checksums`.

        Raises:
            TrainingError: some were replaced; one is named.
        """
        if self.checksums is None:
            return
        pairs = zip(indices, self.checksums, checksums, strict=True)
        if replaced := [source.ids[index] for index, before, now in pairs if before != now]:
            raise TrainingError(
                f"{self.out}: was trained on other images than those of {source.name} now: {len(replaced)} "
                f"of {len(indices)} that were looked at have been replaced, as {replaced[0]!r}; put them "
                "back, or train in another folder"
            )

    @property
    def recipe(self) -> TrainConfig:
        """The [train] table."""
        return build_table(TrainConfig, self.tables["train"])

    def config(self, measured: Mapping[str, float]) -> Config:
        """Return the configuration, completed by what was measured."""
        return build_config({**self.tables, "model": {**self.tables["model"], **measured}}, "train")

    def to_json(self) -> str:
        """Write what `run.json` holds."""
        kept = {
            "options": asdict(self.options),
            "data": self.data,
            "preset_values": dict(self.preset_values),
            "fingerprint": self.fingerprint,
            "checksums": None if self.checksums is None else list(self.checksums),
            "left_out": None if self.left_out is None else dict(self.left_out),
        }
        return sealed_json(kept)


def make_plan(
    config: Config | str | Path,
    out: str | Path | None,
    *,
    resume: bool,
    changed: Sequence[str],
    train_keys: Mapping[str, Any],
    options: Mapping[str, Any],
    model_keys: Mapping[str, Any] | None = None,
) -> Plan:
    """Return what a run is to do, new or resumed.

    Args:
        config: a preset's name, a TOML, a run folder or a configuration.
        out: the run folder; the one that `config` names, else `runs/NAME`, if not given.
        resume: take over what the folder holds, if it holds a run.
        changed: `train.lr=1e-4`, a value in place of the configuration's; or `train.lr`, a key of `config`
            whose value may differ from that of the run that is resumed.
        train_keys: values of the [train] table, by key.
        options: those of `RunOptions`; None where one was not given.
        model_keys: values of the [model] table, by key.

    Raises:
        ConfigError: mistakes, all in one message; or a value that contradicts the run that is resumed.
        TrainingError: an option that does.
    """
    given, where, name = read_given(config)
    given_options = {key: value for key, value in options.items() if value is not None}
    folder = None if isinstance(config, Config) else run_folder(config)
    several = isinstance(changed, Sequence) and not isinstance(changed, str)
    if not several or not all(isinstance(item, str) for item in changed):
        raise ConfigError(
            f"changed: expected a list of texts as 'train.lr=1e-4', found {shown(changed)}"
        )
    named = [item for item in changed if "=" not in item and isinstance(config, Config)]
    values = parse_overrides([item for item in changed if item not in named])
    by_keyword = {f"train.{key}": python_number(value) for key, value in train_keys.items()}
    if twice := sorted(values.keys() & by_keyword.keys()):
        raise ConfigError(f"{twice[0]}: expected one value, found it in changed and as a keyword")
    values |= by_keyword
    fixed = {f"model.{key}": value for key, value in (model_keys or {}).items()}
    for key in values.keys() & fixed.keys():
        if values[key] != fixed[key]:
            raise ConfigError(
                f"{key}: expected {shown(fixed[key])}, which is given by the teacher, found "
                f"{shown(values[key])}; leave it out"
            )
    values |= fixed
    preset_values = {}
    for key, value in values.items():
        section, _, word = key.partition(".")
        table = given.setdefault(section, {})
        if isinstance(table, dict):  # else its mistake is named below
            before = table.get(word)
            if isinstance(before, int | str) or (isinstance(before, float) and isfinite(before)):
                preset_values[key] = before
            table[word] = value
    raise_all(_problems(given), where)
    if "train" not in given:
        raise ConfigError(f"{where}: no [train] table, so no recipe; {_trainable()}")
    chosen = RunOptions(**{"name": name} | given_options)
    out = (folder or Path("runs") / chosen.name) if out is None else path_of("out", out)
    if not (resume and (out / "config.toml").is_file()):
        refuse_strangers(out)
        try:
            check_all_is_used(build_model_config({"shift": 0, "scale": 1, **given["model"]}))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        return Plan(out=out, tables=given, options=chosen, preset_values=preset_values)
    kept = read_run(out)
    if kept.older:
        refuse_strangers(out)
    if isinstance(config, Config) and kept.older and "train.ema_warmup" not in values:
        given["train"].pop("ema_warmup", None)  # a default of today, no wish
    if not kept.older:
        _refuse_other_options(kept, given_options)
    return replace(
        kept,
        tables=_merged(kept, given, set_now=set(values), may_differ={*values, *named}),
        options=replace(kept.options, **given_options),
        preset_values=preset_values | dict(kept.preset_values),
    )


def refuse_strangers(out: Path) -> None:
    """Refuse a folder in which somebody keeps other files under the names that a run writes.

    Raises:
        TrainingError: names the first of them.
    """
    if checkpoint_steps(out / "checkpoints"):
        return
    with suppress(OSError, ValueError):
        if isinstance(read_sealed_json(out / "run.json").get("options"), dict):
            return
    for path in (out / name for name in WRITTEN):
        empty = path.is_dir() and not any(path.iterdir())
        if (path.exists() or path.is_symlink()) and not empty:
            raise TrainingError(
                f"{path}: is in the way, and of no run of this package; move it, or choose another path"
            )


def _merged(kept: Plan, given: Tables, *, set_now: set[str], may_differ: set[str]) -> Tables:
    """Return the tables of a run that is resumed, with the values that it is given anew.

    A preset that is given again, without a value that was set by name at first, is no contradiction.

    Raises:
        ConfigError: values that differ from the run's, and may not.
    """
    merged = {section: dict(table) for section, table in kept.tables.items()}
    contradictions = []
    for section, table in given.items():
        for word, value in table.items():
            key = f"{section}.{word}"
            if merged[section].get(word) == value:
                continue
            if key in may_differ and section == "train" and key not in FIXED:
                merged[section][word] = value
            elif key in set_now or kept.preset_values.get(key) != value:
                contradictions.append(key)
    if contradictions:
        may_change = all(key.startswith("train.") and key not in FIXED for key in contradictions)
        instead = (
            "change train keys alone, as train.steps=2000" if may_change else "choose another path"
        )
        raise ConfigError(
            f"{kept.out}: the run to resume differs in {', '.join(contradictions)}; give its values, or "
            f"{instead}"
        )
    return merged


def _refuse_other_options(kept: Plan, given: Mapping[str, Any]) -> None:
    """Refuse options that would change what a resumed run computes.

    Raises:
        TrainingError: there are some.
    """
    for key in UNCHANGED:
        before = getattr(kept.options, key)
        if key in given and given[key] != before:
            of_teacher = key == "teacher_sha256"  # which was not given by itself
            remedy = "give that teacher" if of_teacher else "leave it out"
            raise TrainingError(
                f"{kept.out}: was trained with another {key}, {before}, found {given[key]}; {remedy} to "
                "go on, or choose another out"
            )


def read_given(config: Config | str | Path) -> tuple[Tables, str, str]:
    """Return a configuration's tables, where they are from, and a model's name."""
    if isinstance(config, Config):
        tables = {"model": asdict(config.model)}
        if config.train is not None:
            tables["train"] = asdict(config.train)
        kind = "pixelcnn" if isinstance(config.model, PixelCNNConfig) else "vdvae"
        return tables, "config", kind
    path, folder = find_config(config), run_folder(config)
    return read_tables(path), str(config), folder.resolve().name if folder else path.stem


def run_folder(config: str | Path) -> Path | None:
    """Return the folder, if `config` is one; a preset's name is none whatever lies in the working folder."""
    preset = isinstance(config, str) and config in preset_names()
    return Path(config) if not preset and Path(config).is_dir() else None


def about_configuration_alone(config: Config | str | Path, plan: Plan, *, resume: bool) -> str:
    """Say that a new run takes another run's configuration and not its weights; empty where it does not."""
    folder = None if isinstance(config, Config) else run_folder(config)
    if (
        folder is None
        or plan.options.init_from is not None
        or folder.resolve() == plan.out.resolve()
    ):
        return ""
    if resume and (plan.out / "config.toml").is_file():
        return ""
    line = f"{folder}: gives its configuration alone, and {plan.out} starts from nothing"
    if resume:
        line += ", as it holds no run to resume"
    if plan.options.teacher_sha256 is not None:  # a student starts from no weights
        return line
    return f"{line}; init_from={str(folder)!r} (--init-from {folder}) starts from its weights"


def read_run(out: Path) -> Plan:
    """Return what a run folder holds: `config.toml`, and `run.json`, which earlier versions did not write.

    Raises:
        ConfigError: no run is there, or a damaged file.
    """
    path = out / "run.json"
    tables = _read_kept_config(out / "config.toml", older=not path.is_file())
    if not path.is_file():
        return Plan(out=out, tables=tables, options=RunOptions(name=out.name), older=True)
    try:
        kept = read_sealed_json(path)
        known = {field.name for field in fields(RunOptions)}
        if lost := KEPT - kept.keys():
            raise ValueError(f"it lacks {', '.join(sorted(lost))}")
        options = RunOptions(**{k: v for k, v in kept.pop("options").items() if k in known})
        return Plan(out=out, tables=tables, options=options, **kept)
    except (
        OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError,
    ) as error:  # fmt: skip
        raise ConfigError(
            f"{path}: expected how the run was computed, found a damaged file ({first_line(error)}); remove "
            "it, and give the run's flags again"
        ) from error


def _read_kept_config(path: Path, *, older: bool) -> Tables:
    """Return the tables of a run's configuration, which its folder holds whole.

    Raises:
        ConfigError: it is not as it was written, or cut short.
    """
    tables = read_tables(path)
    raise_all(problems(tables), str(path))
    if "train" not in tables:
        raise ConfigError(f"{path}: expected a [train] table, found none")
    if older:
        tables["train"].setdefault(
            "ema_warmup", False
        )  # the only behaviour before there was the key
        return tables
    seal = seal_of_toml(path)
    if seal is False:
        raise ConfigError(
            f"{path}: expected it as the run wrote it, found another text: it was damaged, or changed by "
            "hand; put it back, and give what is to change by name, as train.steps=2000"
        )
    lost = [
        f"{section}.{item.name}"
        for section, cls in sections(tables).items()
        for item in fields(cls)
        if item.name not in tables[section] and item.name != "ema_warmup"
    ]
    if seal is None and lost:
        raise ConfigError(
            f"{path}: expected every key of the run, found no {', '.join(lost[:3])}; the file is cut short: "
            "put it back"
        )
    tables["train"].setdefault("ema_warmup", False)
    return tables


def _problems(tables: Tables) -> list[str]:
    """Return the mistakes of some tables, those of the blocks included."""
    found = problems(tables, may_lack=MEASURED)
    model = tables.get("model")
    if not isinstance(model, dict):
        return found
    unreadable = _problems_of_strings(model)
    if unreadable or any("model" in text for text in found):  # no model can be built
        return found + unreadable
    try:
        check_buildable(build_model_config({"shift": 0, "scale": 1, **model}))
    except ConfigError as error:
        found.append(str(error))
    return found


def _problems_of_strings(model: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with `bottom_up`, `top_down` and `widths`, read one by one."""
    found = []
    for key in ("bottom_up", "top_down", "widths"):
        text = model.get(key)
        if not isinstance(text, str):
            continue
        try:
            if key == "widths":
                parse_widths(text)
            else:
                parse_blocks(text, key=f"model.{key}")
        except ConfigError as error:
            found.append(str(error))
    return found


def _trainable() -> str:
    names = [name for name in preset_names() if "train" in read_tables(preset_path(name))]
    return f"the presets that have one are {', '.join(names)}"
