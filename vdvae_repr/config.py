"""Configuration: frozen dataclasses, checked where they are made, read from TOML.

A preset is a file of `configs/`; `--set train.lr=1e-4` overrides one key. A file's mistakes are named all
at once: keys that are not known, with the one that was probably meant, values of another type or out of
range, and keys that are missing.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import math
import os
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

from vdvae_repr.errors import ConfigError, first_line

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
MOST_BYTES = 2**16  # of a TOML, or of a configuration in JSON
MOST_DOTS = 1000  # in a line of a TOML, as tomllib takes hours over the key a.a.a.a. ...
MOST_CHARACTERS = 10_000  # of a block string
MOST_MISTAKES = 50  # in one message
MOST_STEPS = 99_999_999  # a checkpoint's name has eight digits
MOST_CHANNELS = 2**16
MOST_SCALE = 1 / 8  # of pixels, one that is given; 8-bit images deviate by 10 to 127
MOST_HEADER = 2**24  # bytes, of a safetensors file; those of 10,000 tensors have less than 2 MB
WEIGHTS_FOLDER = Path(__file__).parent / "weights"  # of the packaged models
Tables = dict[str, dict[str, Any]]
"""A configuration as its file holds it, unchecked: `{"model": {"width": 32, ...}, "train": {...}}`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """Input is `(pixel + shift) * scale`; the likelihood sees `bits` bits of each pixel."""

    image_size: int
    shift: float
    scale: float
    bits: int = 8


# Keyed by the published `dataset` name; openai/vdvae data.py. FFHQ-1024 is read there in [0, 1].
PUBLISHED_NORMALISATION = {
    "cifar10": Normalisation(image_size=32, shift=-120.63838, scale=1 / 64.16736),
    "imagenet32": Normalisation(image_size=32, shift=-116.2373, scale=1 / 69.37404),
    "imagenet64": Normalisation(image_size=64, shift=-115.92961967, scale=1 / 69.37404),
    "ffhq_256": Normalisation(image_size=256, shift=-112.8666757481, scale=1 / 69.84780273, bits=5),
    "ffhq_1024": Normalisation(image_size=1024, shift=-0.4387 * 255, scale=1 / (0.2743 * 255)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Architecture and normalisation of a VDVAE (Child 2020, arXiv:2011.10650)."""

    image_size: int
    """Side of the square image, pixels."""
    width: int
    """Channels at every resolution that `widths` does not name."""
    zdim: int
    """Latent channels of each stochastic layer."""
    bottom_up: str
    """Block string of the encoder: `32x11` eleven blocks at 32x32, `32d2` one that pools by 2."""
    top_down: str
    """Block string of the decoder: `4x2` two layers at 4x4, `8m4` one that mixes 4x4 in."""
    widths: str = ""
    """Channels by resolution, `16:128,8:192`."""
    bottleneck_multiple: float = 0.25
    """Inner width of a block over its outer width."""
    no_bias_above: int = 64
    """Largest resolution with a learned constant."""
    num_mixtures: int = 10
    """Components of the discretised logistic mixture."""
    bits: int = 8
    """Bits of a pixel that the likelihood models: 8 or 5."""
    unpool: str = "nearest"
    """How `8m4` enlarges the 4x4 state: `nearest` as published, or `transposed`, a learned convolution."""
    shift: float
    """Added to a pixel of 0..255 before scaling."""
    scale: float
    """Multiplies the shifted pixel."""

    def __post_init__(self) -> None:
        """Check what can be checked without building the model."""
        _check_fields(self, "model")

    @classmethod
    def from_published(cls, hyperparameters: Mapping[str, Any]) -> ModelConfig:
        """Build from the published hyperparameter names (openai/vdvae hps.py).

        `dataset` brings its normalisation and bits; `image_size` overrides the data set's; keys
        that do not describe the model are ignored.

        Raises:
            ConfigError: a needed key is missing, or `dataset` is not a published one.
        """
        if not isinstance(hyperparameters, Mapping):
            raise ConfigError(
                f"expected published hyperparameters by name, found {type(hyperparameters).__name__}"
            )
        h = dict(hyperparameters)
        missing = [
            key for key in ("width", "enc_blocks", "dec_blocks", "dataset") if not h.get(key)
        ]
        if missing:
            raise ConfigError(f"published hyperparameters lack {', '.join(missing)}")
        if h["dataset"] not in PUBLISHED_NORMALISATION:
            raise ConfigError(
                f"unknown published dataset {h['dataset']!r}; "
                f"expected one of {', '.join(PUBLISHED_NORMALISATION)}"
            )
        norm = PUBLISHED_NORMALISATION[h["dataset"]]
        return cls(
            image_size=h.get("image_size") or norm.image_size,
            width=h["width"],
            zdim=h.get("zdim", 16),
            bottom_up=h["enc_blocks"],
            top_down=h["dec_blocks"],
            widths=h.get("custom_width_str") or "",
            bottleneck_multiple=h.get("bottleneck_multiple", 0.25),
            no_bias_above=h.get("no_bias_above", 64),
            num_mixtures=h.get("num_mixtures", 10),
            bits=norm.bits,
            shift=norm.shift,
            scale=norm.scale,
        )

    @classmethod
    def from_preset(cls, name: str) -> ModelConfig:
        """Return the architecture of a shipped preset.

        Raises:
            ConfigError: there is none of this name, or it is of no VDVAE.
        """
        return expect_vdvae(load_config(preset_path(name)).model, name)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Inverse of `to_json`.

        Raises:
            ConfigError: no JSON, no VDVAE, or a key that is unknown, missing or of another type or range.
        """
        return expect_vdvae(model_config_from_json(text), "model")

    def to_json(self) -> str:
        """Serialise to one line of JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelCNNConfig:
    """Architecture and normalisation of a PixelCNN++ (Salimans 2017, arXiv:1701.05517).

    In a TOML it is the `[model]` table too, with `kind = "pixelcnn"`.
    """

    bits: ClassVar[int] = 8

    kind: str = "pixelcnn"
    """Tells a `[model]` table from that of a VDVAE, which has no `kind`."""
    image_size: int
    """Side of the square image, pixels."""
    width: int
    """Channels of both streams at every resolution."""
    blocks: int = 5
    """Gated residual blocks a resolution, in each stream, before the way back to the image's."""
    resolutions: int = 3
    """The image's resolution, its half, and so on."""
    dropout: float = 0.5
    """Share of a block's inner activations that a training step leaves out."""
    num_mixtures: int = 10
    """Components of the discretised logistic mixture."""
    shift: float
    """Added to a pixel of 0..255 before scaling."""
    scale: float
    """Multiplies the shifted pixel."""

    def __post_init__(self) -> None:
        """Check what can be checked without building the model."""
        _check_fields(self, "model")
        coarsest = 2 ** (self.resolutions - 1)
        if self.image_size % coarsest:
            raise ConfigError(
                f"model.image_size: expected a multiple of {coarsest}, as it is halved "
                f"{self.resolutions - 1} times, found {self.image_size}; lower model.resolutions"
            )

    def to_json(self) -> str:
        """Serialise to one line of JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig:
    """Architecture of a student: a bottom-up network that predicts a VDVAE's posterior at chosen layers.

    In a TOML it is the `[model]` table too, with `kind = "student"`. What is said to be the teacher's,
    `distill` takes from the teacher.
    """

    kind: str = "student"
    """Tells a `[model]` table from that of a VDVAE, which has no `kind`."""
    image_size: int
    """Side of the square image, pixels; the teacher's."""
    width: int
    """Channels at every resolution that `widths` does not name."""
    zdim: int
    """Latent channels of each of the teacher's layers."""
    bottom_up: str
    """Block string of the student: `32x2` two blocks at 32x32, `32d2` one that pools by 2."""
    top_down: str
    """The teacher's block string, which names its layers."""
    layers: str = "all"
    """Selector of the teacher's layers that are predicted, `<=16x16`."""
    widths: str = ""
    """Channels by resolution, `16:128,8:192`."""
    bottleneck_multiple: float = 0.25
    """Inner width of a block over its outer width."""
    shift: float
    """Added to a pixel of 0..255 before scaling; the teacher's."""
    scale: float
    """Multiplies the shifted pixel; the teacher's."""

    def __post_init__(self) -> None:
        """Check what can be checked without building the model."""
        _check_fields(self, "model")

    def to_json(self) -> str:
        """Serialise to one line of JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)


AnyModelConfig = ModelConfig | PixelCNNConfig | StudentConfig
"""What a `[model]` table describes."""


def about_pixels(model: AnyModelConfig, given: Collection[str]) -> str:
    """Say where a shift and scale are not those of any images, or of such as hardly vary; else nothing.

    Args:
        model: what has them.
        given: which of `shift` and `scale` somebody wrote; the others were measured.
    """
    low, high = model.shift * model.scale, (255 + model.shift) * model.scale
    # As of pixels from 0 to 1 or from -1 to 1, or a mean by its deviation.
    fraction = "shift" in given and -4 < model.shift < 0
    # Dark images may deviate by little, which is measured; who writes so large a scale took the deviation
    # itself, or one of pixels from 0 to 1. 1 / 255 brings them to 0..1.
    most = MOST_SCALE if "scale" in given else 1
    if low <= 0 <= high and 1 / 256 < model.scale < most and not fraction:
        return ""
    return (
        f"model.shift = {model.shift:g} and model.scale = {model.scale:g} bring pixels of 0..255 to "
        f"{low:.3g}..{high:.3g}: the shift is minus the images' mean, the scale 1 by their deviation"
    )


def model_config_from_json(text: str) -> AnyModelConfig:
    """Inverse of `to_json`, of whatever kind the configuration is.

    Raises:
        ConfigError: no JSON, or a key that is unknown, missing, of another type or out of range.
    """
    try:
        if len(text) > MOST_BYTES:
            raise ValueError(f"{len(text):,} characters")
        table = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"model: expected a configuration in JSON, found {first_line(error)}"
        ) from error
    raise_all(problems({"model": table}))
    return build_model_config(table)


def build_model_config(table: Mapping[str, Any]) -> AnyModelConfig:
    """Make a model's configuration of a table that has been checked."""
    return build_table(sections({"model": table})["model"], table)


def expect_likelihood(tables: Mapping[str, Any]) -> None:
    """Refuse the tables of a student, which is trained by its teacher and not by a likelihood.

    Raises:
        ConfigError: they are a student's.
    """
    if sections(tables)["model"] is StudentConfig:
        raise ConfigError(
            "model.kind: expected a VDVAE or a PixelCNN to train, found a student, which learns from a "
            "teacher; use vr.distill, or vdvae-repr distill"
        )


def expect_vdvae(config: AnyModelConfig, where: str) -> ModelConfig:
    """Return the configuration of a VDVAE.

    Raises:
        ConfigError: it is of another kind of model.
    """
    if isinstance(config, ModelConfig):
        return config
    raise ConfigError(f"{where}: expected a VDVAE, found kind {config.kind!r}; name another preset")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Recipe of a training run; AdamW with betas 0.9, 0.9 as published.

    Gradient norms are those of the loss in nats per dimension, the published unit.
    """

    steps: int
    """Optimiser steps, skipped ones included."""
    batch_size: int
    """Images a step, over all processes."""
    lr: float
    """AdamW step size after warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up from 0; the first step's rate is 0, as published."""
    weight_decay: float = 0.01
    """AdamW decoupled weight decay."""
    grad_clip: float = 200.0
    """Gradient norm above which gradients are scaled down to it."""
    skip_threshold: float = 400.0
    """Gradient norm above which the update is dropped."""
    ema_rate: float = 0.9999
    """Decay of the moving average of the weights."""
    ema_warmup: bool = True
    """Let the average begin short: its rate is at most (1 + t) / (10 + t) after t updates. Without, as
    published, a run much shorter than 1 / (1 - ema_rate) updates ends with its untrained weights."""
    kl_warmup_steps: int = 0
    """Steps over which the rate's weight in the loss grows from 0 to 1; 0 as published."""
    flip: bool = False
    """Mirror half of the images, drawn anew for each batch."""
    hold_back: str = "images"
    """What a tenth of is held back where the data have no `val` split: `images` of each label, or `labels`
    (people: no one is on both sides)."""
    log_every: int = 100
    """Steps that a row of the log averages over."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep_last: int = 2
    """Checkpoints kept, the newest; at least two, so that a damaged one can be passed over."""
    keep_every: int = 0
    """Also keep the checkpoints of steps that this divides; 0 for none."""
    seed: int = 0
    """Of initialisation, order, flips and noise."""

    def __post_init__(self) -> None:
        """Check types and ranges."""
        _check_fields(self, "train")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A preset: a model and, where it is one to train, a recipe."""

    model: AnyModelConfig
    train: TrainConfig | None = None

    def __post_init__(self) -> None:
        """Check types."""
        expected: dict[str, tuple[type, ...]] = {
            "model": (ModelConfig, *KINDS.values()),
            "train": (TrainConfig, type(None)),
        }
        for section, classes in expected.items():
            if not isinstance(table := getattr(self, section), classes):
                raise ConfigError(
                    f"{section}: expected a {classes[0].__name__}, found {type(table).__name__}"
                )

    def to_toml(self) -> str:
        """Write every value, defaults included, in the form that `load_config` reads."""
        lines = []
        for section in ("model", "train"):
            table = getattr(self, section)
            if table is not None:
                lines.append(f"[{section}]")
                lines += [f"{k} = {json.dumps(v)}" for k, v in dataclasses.asdict(table).items()]
        return "\n".join(lines) + "\n"


Architecture = str | Path | Config | AnyModelConfig
"""A preset's name, a TOML, a run folder, or a configuration."""


def architecture(preset: Architecture) -> AnyModelConfig:
    """Return the architecture that a preset's name, a TOML, a run folder or a configuration stands for.

    Raises:
        ConfigError: none of them, or mistakes in the file.
    """
    if isinstance(preset, Config):
        return preset.model
    if isinstance(preset, AnyModelConfig):
        return preset
    return load_config(find_config(preset)).model


def preset_architecture(name: str) -> AnyModelConfig:
    """Return the architecture of a shipped preset, of whatever kind.

    Raises:
        ConfigError: there is none of this name.
    """
    return load_config(preset_path(name)).model


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML preset; each override is `section.key=value`, the value in TOML's syntax.

    Raises:
        ConfigError: no such file, bad TOML, or mistakes in it, all of them in one message.
    """
    return build_config(read_tables(path, overrides), str(path))


def read_tables(path: str | Path, overrides: Sequence[str] = ()) -> Tables:
    """Read a TOML file and set the overrides in it; the values are checked by `problems`.

    Raises:
        ConfigError: no such file, no TOML, or an override that is not `section.key=value`.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(
                f"{path}: expected a configuration of {MOST_BYTES:,} bytes at most, found more; is it one?"
            )
        if max(line.count(b".") for line in content.split(b"\n")) > MOST_DOTS:
            raise RecursionError
        tables = tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: expected TOML in UTF-8, found another encoding; save it as UTF-8"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: expected TOML of two levels, found a deep nesting") from error
    except ValueError as error:  # TOML's own, and numbers of thousands of digits
        raise ConfigError(f"{path}: expected TOML, found {first_line(error)}") from error
    for key, value in parse_overrides(overrides).items():
        section, _, name = key.partition(".")
        table = tables.setdefault(section, {})
        if isinstance(table, dict):  # else `problems` says so
            table[name] = value
    return tables


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Read `section.key=value` items into {"section.key": value}; a value that is no TOML is a string.

    Raises:
        ConfigError: an item of another form.
    """
    values: dict[str, Any] = {}
    several = isinstance(overrides, Iterable) and not isinstance(overrides, str)
    if not several or not all(isinstance(item, str) for item in overrides):
        raise ConfigError(
            f"changed: expected items as 'train.lr=1e-4' in a list, found {shown(overrides)}"
        )
    for override in overrides:
        key, separator, value = override.partition("=")
        if not (separator and "." in key):
            known = {f.name: "model" for f in dataclasses.fields(ModelConfig)}
            known |= {f.name: "train" for f in dataclasses.fields(TrainConfig)}
            meant = known.get(key.strip())
            example = f"{meant}.{override}" if meant and separator else "train.lr=1e-4"
            raise ConfigError(f"{override}: expected section.key=value, as {example}")
        if key.strip() in values:
            raise ConfigError(f"{key.strip()}: expected one value, found it given twice")
        try:
            values[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            values[key.strip()] = value.strip()
    return values


def build_config(tables: Tables, where: str) -> Config:
    """Make a configuration from its tables; `where` names their file.

    Raises:
        ConfigError: all mistakes in one message.
    """
    raise_all(problems(tables), where)
    return Config(
        model=build_model_config(tables["model"]),
        train=build_table(TrainConfig, tables["train"]) if "train" in tables else None,
    )


def problems(tables: Mapping[str, Any], may_lack: Collection[str] = ()) -> list[str]:
    """Return every mistake of some tables, one sentence each; `may_lack` holds keys as `model.shift`."""
    found: list[str] = []
    known = sections(tables)
    for section in tables:
        if section not in known and len(found) < MOST_MISTAKES:
            found.append(f"unknown key {shortened(section)}{_suggest_key(section, '', known)}")
    if "model" not in tables:
        found.append("expected a [model] table, found none")
    for section, cls in known.items():
        table = tables.get(section, {})
        if not isinstance(table, Mapping):
            found.append(f"{section}: expected a table, found {shown(table)}")
        elif section in tables:
            own = _problems_of_table(cls, table, section, may_lack)
            # Of an unknown kind, nothing says which keys there are.
            found += [line for line in own if line.startswith("model.kind:")] or own
    train = tables.get("train")
    warmup = train.get("kl_warmup_steps") if isinstance(train, Mapping) else 0
    if warmup and known["model"] is not ModelConfig:
        what = "a PixelCNN, which has no KL" if known["model"] is PixelCNNConfig else "a student"
        found.append(f"train.kl_warmup_steps: expected a VDVAE, found {what}; leave it out")
    return found


def sections(tables: Mapping[str, Any]) -> dict[str, type]:
    """Return what each table of a configuration describes; a VDVAE's `[model]` has no `kind`."""
    model = tables.get("model")
    if not isinstance(model, Mapping) or "kind" not in model:
        return {"model": ModelConfig, "train": TrainConfig}
    kind = model["kind"]
    described = KINDS.get(kind, PixelCNNConfig) if isinstance(kind, str) else PixelCNNConfig
    return {"model": described, "train": TrainConfig}


def find_config(config: str | Path) -> Path:
    """Return the TOML that a preset's name, a file or a run folder stands for.

    A preset's name is that preset whatever lies in the working folder; `./faces64`, or a `Path`, is a file.

    Raises:
        ConfigError: none of them.
    """
    if isinstance(config, str) and config in preset_names():
        return preset_path(config)
    if not isinstance(config, str | os.PathLike):
        raise ConfigError(
            f"config: expected a preset's name, a TOML or a Config, found {type(config).__name__}"
        )
    if not str(config).strip():
        raise ConfigError(
            "config: expected a preset's name or a TOML, found an empty text; is a variable not set?"
        )
    path = Path(config)
    try:
        folder, file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        folder = file = False
    if folder:
        if not (path / "config.toml").is_file():
            raise ConfigError(
                f"{config}: expected a run folder with config.toml, found none in it; give a preset's name, "
                f"{', '.join(preset_names())}, or a TOML"
            )
        return path / "config.toml"
    if str(config) == "" or not file:
        names = preset_names()
        raise ConfigError(
            f"{shortened(str(config))}: no such preset or file{suggestion(str(config), names)}; expected a "
            f"TOML, or one of {', '.join(names)}"
        )
    return path


def preset_names() -> list[str]:
    """Return the names of the shipped presets, sorted."""
    return sorted(path.stem for path in _configs_folder().glob("*.toml"))


def preset_path(name: str) -> Path:
    """Return the file of a shipped preset.

    Raises:
        ConfigError: no preset has this name.
    """
    names = preset_names()
    if name not in names:
        hint = suggestion(str(name), names)
        raise ConfigError(f"unknown preset {name!r}{hint}; the presets are {', '.join(names)}")
    return _configs_folder() / f"{name}.toml"


def suggestion(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def with_hints(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that is called with a keyword it does not know name the one that is most like it.

    Examples:
        >>> with_hints(sorted)([1], revers=True)
        Traceback (most recent call last):
        TypeError: sorted: unknown keyword 'revers'; did you mean 'reverse'?
    """
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def hinted(*arguments: P.args, **keywords: P.kwargs) -> R:
        for word in keywords:
            if word not in known and (hint := suggestion(word, known)):
                raise TypeError(f"{function.__name__}: unknown keyword {word!r}{hint}")
        return function(*arguments, **keywords)

    return hinted


def _configs_folder() -> Path:
    """The wheel carries the presets inside the package; a checkout has them beside it."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


@dataclass(frozen=True)
class _Range:
    """The numbers that a key may hold, `lowest` itself only if `closed`; all of them are finite."""

    lowest: float
    highest: float = 2**63 - 1  # TOML's own integers
    closed: bool = True


_POSITIVE = _Range(0, math.inf, closed=False)
_RANGES = {
    "model.image_size": _Range(1, 2**12),
    "model.width": _Range(1, MOST_CHANNELS),
    "model.blocks": _Range(1, 100),
    "model.resolutions": _Range(1, 8),
    "model.dropout": _Range(0, math.nextafter(1, 0)),
    "model.zdim": _Range(1, MOST_CHANNELS),
    "model.num_mixtures": _Range(1, 2**10),
    "model.bottleneck_multiple": _Range(0, 1, closed=False),
    "model.no_bias_above": _Range(0),
    "model.shift": _Range(-1e9, 1e9),
    "model.scale": _Range(0, 3.4e38, closed=False),  # what float32 holds
    "train.steps": _Range(1, MOST_STEPS),
    "train.batch_size": _Range(1, 2**20),
    "train.lr": _POSITIVE,
    "train.warmup_steps": _Range(0),
    "train.weight_decay": _Range(0, math.inf),
    "train.grad_clip": _POSITIVE,
    "train.skip_threshold": _POSITIVE,
    "train.ema_rate": _Range(0, math.nextafter(1, 0)),  # at 1 the average never moves
    "train.kl_warmup_steps": _Range(0),
    "train.log_every": _Range(1),
    "train.checkpoint_every": _Range(1),
    "train.keep_last": _Range(2),
    "train.keep_every": _Range(0),
    "train.seed": _Range(0),
}
KINDS: dict[str, type] = {"pixelcnn": PixelCNNConfig, "student": StudentConfig}
"""What a `[model]` table describes, by its `kind`; one of a VDVAE has none."""
_CHOICES: dict[str, tuple[Any, ...]] = {
    "model.bits": (5, 8),
    "model.kind": tuple(KINDS),
    "model.unpool": ("nearest", "transposed"),
    "train.hold_back": ("images", "labels"),
}
_INSTEAD = {"model.kind": " (of a VDVAE no kind)"}

# What other trainers call a key, without case, _ and -; the published names of openai/vdvae among them.
_ALIASES = {
    "lr": "learningrate stepsize baselr maxlr initlr initiallr lrate alpha",
    "steps": "epochs epoch numepochs nepochs maxepochs iterations iters niter numiters maxiters maxsteps "
    "numsteps totalsteps trainsteps maxiterations nsteps",
    "batch_size": "batch nbatch bs bsz minibatch minibatchsize trainbatchsize perdevicetrainbatchsize",
    "weight_decay": "wd l2 decay adamwd",
    "grad_clip": "clip clipgrad gradientclip gradclipnorm clipgradnorm maxgradnorm gradnorm gradientclipval "
    "gradientclipping maxnorm",
    "skip_threshold": "gradskip skipthresh",
    "ema_rate": "ema emadecay emabeta emamomentum averagedecay",
    "ema_warmup": "emarampup",
    "warmup_steps": "warmup warmupiters warmupiterations numwarmupsteps lrwarmup warmupepochs",
    "kl_warmup_steps": "klwarmup klanneal klannealing betawarmup klannealsteps",
    "flip": "hflip horizontalflip mirror randomflip fliplr",
    "hold_back": "valsplit validationsplit valfraction valratio",
    "log_every": "loginterval loggingsteps logfreq printfreq itersperprint logsteps",
    "checkpoint_every": "saveevery saveinterval savesteps savefreq itersperckpt itersperave iterspersave "
    "checkpointinterval",
    "keep_last": "savetotallimit keepcheckpoints",
    "seed": "randomseed rngseed manualseed randomstate",
    "image_size": "imgsize imsize resolution inputsize size",
    "width": "channels nchannels basechannels hiddendim hiddensize dim nrfilters filters nfilters",
    "zdim": "latentdim latentdims latentsize latentchannels zchannels zsize nlatent",
    "bottom_up": "encoder encblocks encoderblocks",
    "top_down": "decoder decblocks decoderblocks",
    "widths": "customwidthstr",
    "num_mixtures": "nmixtures nmix nummix mixtures nrlogisticmix",
    "blocks": "nrresnet numblocks numresnet",
    "dropout": "dropoutp droprate",
    "bits": "nbits",
    "shift": "mean",
    "scale": "std",
}
_KEY_OF = {alias: key for key, aliases in _ALIASES.items() for alias in aliases.split()}
_NOTES = {
    "epochs": " (updates: epochs x images / batch_size)",
    "mean": " (minus the mean)",
    "std": " (1 / std)",
}


def _suggest_key(name: str, section: str, known: Mapping[str, type]) -> str:
    """Return "; did you mean 'lr'?" for the key that was probably meant, or nothing."""
    name = name[:100]
    of = {
        f.name: other
        for other, cls in reversed(list(known.items()))
        for f in dataclasses.fields(cls)
    }
    plain = name.lower().replace("_", "").replace("-", "").replace(" ", "")
    same = {key.replace("_", ""): key for key in of}
    key = same.get(plain) or _KEY_OF.get(plain)
    if key is None:
        words = [key for key, other in of.items() if other == section] or [*known, *of]
        return suggestion(name.lower(), words)
    note = next((text for word, text in _NOTES.items() if word in plain), "")
    return f"; did you mean {key if of[key] == section else f'{of[key]}.{key}'!r}?{note}"


def _check_fields(config: Any, section: str) -> None:
    """Refuse a configuration's values of other types or out of range; NumPy's numbers become Python's.

    Raises:
        ConfigError: all mistakes in one message.
    """
    for name, value in dataclasses.asdict(config).items():
        object.__setattr__(config, name, python_number(value))
    raise_all(_problems_of_table(type(config), dataclasses.asdict(config), section))


def _problems_of_table(
    cls: type, table: Mapping[str, Any], section: str, may_lack: Collection[str] = ()
) -> list[str]:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    found: list[str] = []
    meant, usable = set(), {}
    for name, value in table.items():
        if len(found) == MOST_MISTAKES:
            return found
        if name not in fields:
            hint = _suggest_key(name, section, sections({}) | {section: cls})
            meant.add(hint)
            found.append(f"unknown key {section}.{shortened(name)}{hint}")
            continue
        expected = str(fields[name].type)
        if type(value).__name__ == expected:
            usable[name] = value
        elif expected == "float" and type(value) is int and abs(value) < 1e300:
            usable[name] = float(value)
        else:
            found.append(f"{section}.{name}: expected {expected}, found {shown(value)}")
    found += _out_of_range(section, usable)
    missing = [
        name
        for name, field in fields.items()
        if name not in table
        and field.default is dataclasses.MISSING
        and f"{section}.{name}" not in may_lack
        and not any(f"'{name}'" in hint for hint in meant)
    ]
    if missing:
        are = "are" if len(missing) > 1 else "is"
        found.append(f"{', '.join(f'{section}.{name}' for name in missing)} {are} missing")
    return found


def _out_of_range(section: str, values: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each value, of the right type, that its key may not hold."""
    found = []
    for name, value in values.items():
        key = f"{section}.{name}"
        if type(value) is float and not math.isfinite(value):
            found.append(f"{key} must be finite, found {value}")
        elif type(value) is str and len(value) > MOST_CHARACTERS:
            found.append(
                f"{key}: expected {MOST_CHARACTERS:,} characters at most, found {len(value):,}"
            )
        elif key in _CHOICES and value not in _CHOICES[key]:
            choices = " or ".join(map(repr, _CHOICES[key])) + _INSTEAD.get(key, "")
            found.append(f"{key}: expected {choices}, found {shown(value)}")
        elif limits := _RANGES.get(key):
            if value < limits.lowest or (value == limits.lowest and not limits.closed):
                least = f"{'at least' if limits.closed else 'above'} {limits.lowest}"
                found.append(f"{key} must be {least}, found {shown(value)}")
            elif value > limits.highest:
                found.append(f"{key} must be at most {limits.highest}, found {shown(value)}")
    return found


def shown(value: Any) -> str:
    """Return a value's text, cut where it is long."""
    if type(value) is int and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value[:100] if isinstance(value, str | list | tuple) else value)
    except RecursionError:
        text = f"a deep nesting of {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


MOST_SEED = 2**32 - 1
"""Of a probe: what scikit-learn's folds take."""


def python_number(value: Any) -> Any:
    """Return a number or bool of another library, as NumPy's, as Python's, and anything else as it is."""
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def keep_whole_numbers(options: Any, **lowest: int) -> None:
    """Make fields of a frozen dataclass ints, as `whole_number` does; None stays where it is the default.

    Raises:
        ConfigError: one is no whole number, or below its lowest.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name, least in lowest.items():
        if (value := getattr(options, name)) is not None or defaults[name] is not None:
            object.__setattr__(options, name, whole_number(name, value, least))


def whole_number(
    name: str, value: Any, lowest: int, highest: int = 2**63 - 1, what: str = "a whole number"
) -> int:
    """Return a parameter's value as an int; NumPy's integers are taken, bools are not.

    Raises:
        ConfigError: it is no whole number, or out of range.
    """
    value = python_number(value)
    if type(value) is int and lowest <= value <= highest:
        return value
    upto = f" to {highest}" if highest < 2**63 - 1 else ""
    raise ConfigError(f"{name}: expected {what}, from {lowest}{upto}, found {shown(value)}")


def true_or_false(name: str, value: Any) -> bool:
    """Return a parameter that is True or False; NumPy's are taken, 0, 1 and words are not.

    Raises:
        ConfigError: it is neither.
    """
    value = python_number(value)
    if type(value) is not bool:
        raise ConfigError(f"{name}: expected True or False, found {shown(value)}")
    return value


def keep_truths(options: Any, *names: str) -> None:
    """Make fields of a frozen dataclass bools, as `true_or_false` does.

    Raises:
        ConfigError: one is neither True nor False.
    """
    for name in names:
        object.__setattr__(options, name, true_or_false(name, getattr(options, name)))


def hidden_by_mask(array: Any, what: str, argument: str, stands_for: str = "0") -> str:
    """Say that a mask hides values of an array, which NumPy and torch would leave out; empty where none is.

    Args:
        array: of any kind, or a list of some.
        what: was expected: `pixels`.
        argument: what the caller calls it.
        stands_for: the value that is advised in place of a hidden one.
    """
    import numpy as np  # takes a while, and most of what reads configurations needs none

    arrays = array if isinstance(array, list | tuple) else [array]
    hidden = sum(
        int(np.ma.getmaskarray(each).sum())
        for each in arrays
        if isinstance(each, np.ma.MaskedArray)
    )
    if not hidden:
        return ""
    return (
        f"expected {what}, found a masked array, {hidden} values of which are hidden; say what they are, as "
        f"{argument}.filled({stands_for})"
    )


def without_order(values: Any, what: str) -> str:
    """Say that values cannot be taken one by one in their order; empty where they can.

    Args:
        values: a set and a mapping have no order that rows could follow, and a text would be taken by its
            letters.
        what: was expected: `ids`.
    """
    if isinstance(values, str | bytes):
        return f"expected a list of {what}, found {shown(values)}; give one as [{shown(values)}]"
    if isinstance(values, set | frozenset | Mapping) or not isinstance(values, Iterable):
        found = type(values).__name__
        return f"expected {what} in order, found {found}; give them as a list"
    return ""


def path_of(name: str, value: Any) -> Path:
    """Return a parameter's path; "" is none, though Python takes it for the working folder.

    Raises:
        ConfigError: a text without a character to see, or no path at all.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name}: expected a path, found {shown(value)}")
    if isinstance(value, str) and not value.strip():
        raise ConfigError(f"{name}: expected a path, found an empty text; is a variable not set?")
    return Path(value)


def shortened(text: str) -> str:
    """Return a text as messages show it: control characters escaped, cut where it is long."""
    text = repr(text)[1:-1]
    return text if len(text) <= 200 else f"{text[:197]}..."


def raise_all(found: Sequence[str], where: str = "") -> None:
    """Raise one error of all mistakes; nothing where there are none.

    Raises:
        ConfigError: there are some.
    """
    if found:
        start = f"{where}: " if where else ""
        if len(found) > 1:
            numbered = " ".join(f"({i}) {text}" for i, text in enumerate(found, start=1))
            raise ConfigError(f"{start}{len(found)} mistakes: {numbered}")
        raise ConfigError(start + found[0])


def build_table(cls: type[T], table: Mapping[str, Any]) -> T:
    """Make a dataclass of scalars from a table that has been checked."""
    fields = {field.name: str(field.type) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{k: float(v) if fields[k] == "float" else v for k, v in table.items()})
