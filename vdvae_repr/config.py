"""Configuration: frozen dataclasses, checked where they are made, read from TOML without defaults in hiding.

A preset is a file of `configs/`; `--set train.lr=1e-4` overrides one key. Unknown keys are errors.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vdvae_repr.errors import ConfigError

T = TypeVar("T")


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
        for name in ("image_size", "width", "zdim", "num_mixtures"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} must be at least 1, found {getattr(self, name)}")
        if self.bits not in (5, 8):
            raise ConfigError(f"model.bits must be 8 or 5, found {self.bits}")
        if self.unpool not in ("nearest", "transposed"):
            raise ConfigError(
                f"model.unpool: expected 'nearest' or 'transposed', found {self.unpool!r}"
            )
        if not 0 < self.bottleneck_multiple <= 1:
            raise ConfigError(
                f"model.bottleneck_multiple must be in (0, 1], found {self.bottleneck_multiple}"
            )

    @classmethod
    def from_published(cls, hyperparameters: Mapping[str, Any]) -> ModelConfig:
        """Build from the published hyperparameter names (openai/vdvae hps.py).

        `dataset` brings its normalisation and bits; `image_size` overrides the data set's; keys
        that do not describe the model are ignored.

        Raises:
            ConfigError: a needed key is missing, or `dataset` is not a published one.
        """
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
        """Return the architecture of a shipped preset."""
        return load_config(preset_path(name)).model

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Inverse of `to_json`."""
        return _build(cls, json.loads(text), "model")

    def to_json(self) -> str:
        """Serialise to one line of JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


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
        """Check ranges."""
        for name in (
            "steps",
            "batch_size",
            "lr",
            "grad_clip",
            "skip_threshold",
            "checkpoint_every",
            "log_every",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"train.{name} must be above 0, found {getattr(self, name)}")
        if not math.isfinite(self.lr):
            raise ConfigError(f"train.lr must be finite, found {self.lr}")
        if not 0 <= self.ema_rate < 1:
            raise ConfigError(f"train.ema_rate must be in [0, 1), found {self.ema_rate}")
        for name in ("warmup_steps", "kl_warmup_steps", "weight_decay", "keep_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} must be at least 0, found {getattr(self, name)}")
        if self.keep_last < 2:
            raise ConfigError(f"train.keep_last must be at least 2, found {self.keep_last}")
        if self.hold_back not in ("images", "labels"):
            raise ConfigError(
                f"train.hold_back: expected 'images' or 'labels', found {self.hold_back!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A preset: a model and, where it is one to train, a recipe."""

    model: ModelConfig
    train: TrainConfig | None = None

    def to_toml(self) -> str:
        """Write every value, defaults included, in the form that `load_config` reads."""
        lines = []
        for section in ("model", "train"):
            table = getattr(self, section)
            if table is not None:
                lines.append(f"[{section}]")
                lines += [f"{k} = {json.dumps(v)}" for k, v in dataclasses.asdict(table).items()]
        return "\n".join(lines) + "\n"

    def differences(self, other: Config) -> list[str]:
        """Return the keys whose values differ, as `train.lr`."""
        tables = [dataclasses.asdict(config) for config in (self, other)]
        return [
            f"{section}.{key}"
            for section in ("model", "train")
            for key in (tables[0][section] or tables[1][section] or {})
            if (tables[0][section] or {}).get(key) != (tables[1][section] or {}).get(key)
        ]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML preset; each override is `section.key=value`, the value in TOML's syntax.

    Raises:
        ConfigError: no such file, bad TOML, unknown or missing key, value of another type.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML, found {error}") from error
    for override in overrides:
        key, separator, value = override.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (separator and dot):
            raise ConfigError(f"--set {override}: expected section.key=value, as train.lr=1e-4")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value.strip()
        tables.setdefault(section, {})[name] = parsed
    _refuse_unknown(tables, ["model", "train"], "")
    if "model" not in tables:
        raise ConfigError(f"{path}: expected a [model] table, found none")
    train = _build(TrainConfig, tables["train"], "train") if "train" in tables else None
    return Config(model=_build(ModelConfig, tables["model"], "model"), train=train)


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
        hint = suggestion(name, names)
        raise ConfigError(f"unknown preset {name!r}{hint}; the presets are {', '.join(names)}")
    return _configs_folder() / f"{name}.toml"


def suggestion(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _configs_folder() -> Path:
    """The wheel carries the presets inside the package; a checkout has them beside it."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def _refuse_unknown(table: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"unknown key {prefix}{key}{suggestion(key, known)}")


def _build(cls: type[T], table: Mapping[str, Any], section: str) -> T:
    """Make a dataclass of scalars from a table, strictly."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    _refuse_unknown(table, list(fields), f"{section}.")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in table:
            if field.default is dataclasses.MISSING:
                raise ConfigError(f"{section}.{name} is missing; every preset must give it")
            continue
        value = table[name]
        wanted = {"int": int, "float": float, "str": str, "bool": bool}[str(field.type)]
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise ConfigError(f"{section}.{name}: expected {wanted.__name__}, found {value!r}")
        values[name] = value
    return cls(**values)
