"""The options of an extraction: values that travel together, checked where they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, cast

from vdvae_repr.config import keep_truths, keep_whole_numbers, suggestion, whole_number
from vdvae_repr.errors import StoreError
from vdvae_repr.model.precision import Precision


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise StoreError(f"{name}: expected {' or '.join(allowed)}, found {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """What each layer sends down."""

    z: Literal["mean", "sample"] = "mean"
    """Its mean, or a draw that depends on (seed, image id, layer) alone."""
    draws: int | None = None
    """Passes of draws that the feature `z` keeps, on a second axis; the kl is their mean."""
    seed: int = 0
    """Random seed of the draws."""

    def __post_init__(self) -> None:
        """Refuse another word for z, and what is no seed."""
        _one_of("z", self.z, ("mean", "sample"))
        keep_whole_numbers(self, draws=1, seed=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What is taken of each image, and what happens where one cannot be read."""

    crop: int | None = None
    """Side of the central square taken before the encoder's own transform, pixels."""
    align: bool = False
    """Bring a face's eyes, nose and mouth to fixed places, by MTCNN; instead of `crop`. Of several faces it
    is the most central of those at least half as large as the largest."""
    resize: Literal["bicubic", "bilinear"] | None = None
    """How a VDVAE's square is resized, `bicubic` (if not given) or `bilinear`; both antialiased."""
    on_error: Literal["raise", "skip"] = "raise"
    """Of an image that cannot be read, or whose values are not finite: an error, or leave it out and list it
    in the store."""

    def __post_init__(self) -> None:
        """Refuse another word for on_error, and squares of nothing."""
        _one_of("on_error", self.on_error, ("raise", "skip"))
        keep_truths(self, "align")
        keep_whole_numbers(self, crop=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """What is kept on the disk."""

    dtype: Literal["float32", "float16"] = "float32"
    """Of the features. float16 keeps three digits of each value: little of what varies far from 0."""
    pool: str | None = None
    """None keeps the grid, "avg" its mean, "avg:4" a 4x4 grid of means."""
    layout: Literal["single", "virtual"] = "single"
    """`virtual` leaves the features in the parts, and the store refers to them: half the disk."""
    images: bool = True
    """Keep images, which the controls need: a VDVAE's input, of others at most 64 pixels a side."""
    mirror: bool = False
    """Read the mirrored images too, into /mirror."""

    def __post_init__(self) -> None:
        """Refuse another dtype or layout."""
        _one_of("dtype", self.dtype, ("float32", "float16"))
        _one_of("layout", self.layout, ("single", "virtual"))
        keep_truths(self, "images", "mirror")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """How the work is done."""

    precision: Precision = "fp32"
    """bf16 and tf32 (GPUs) trade exactness for speed."""
    batch_size: int | Literal["auto"] = 32
    """Images a forward pass, cut at fixed indices; "auto" times some sizes and takes the smallest within 5 %
    of the fastest."""
    num_workers: int | None = None
    """Threads that read and decode images, and draw, ahead of the model: the cores less one, if not given.
    The store is the same with any number."""

    def __post_init__(self) -> None:
        """Refuse another precision and batches of nothing."""
        _one_of("precision", self.precision, ("fp32", "tf32", "bf16"))
        if self.batch_size != "auto":
            size = whole_number("batch_size", self.batch_size, 1, what='a whole number, or "auto"')
            object.__setattr__(self, "batch_size", size)
        keep_whole_numbers(self, num_workers=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """All options of an extraction."""

    sampling: Sampling = field(default_factory=Sampling)
    frame: Frame = field(default_factory=Frame)
    storage: Storage = field(default_factory=Storage)
    compute: Compute = field(default_factory=Compute)


def resolve_options(groups: Sequence[object], keywords: Mapping[str, Any]) -> Options:
    """Return options from groups, as `Sampling(z="sample")`, and plain keywords, as z="sample".

    A keyword goes into the group that has a field of its name, over what a group given says.

    Raises:
        TypeError: an unknown keyword, something that is no group, or a group twice.
        StoreError: a value that its group does not allow.

    Examples:
        >>> resolve_options([Sampling(seed=3)], {"z": "sample"}).sampling
        Sampling(z='sample', draws=None, seed=3)
    """
    kinds: dict[str, type[Any]] = {
        "sampling": Sampling, "frame": Frame, "storage": Storage, "compute": Compute
    }  # fmt: skip
    owner = {f.name: name for name, kind in kinds.items() for f in fields(kind)}
    unknown = [keyword for keyword in keywords if keyword not in owner]
    if unknown:
        others = ("layers", "features", "overwrite", "report", "progress")
        raise TypeError(
            f"unknown option {unknown[0]!r}{suggestion(unknown[0], [*owner, *others])}; "
            f"options are {', '.join(owner)}"
        )
    given: dict[str, Any] = {}
    for group in groups:
        name = next((name for name, kind in kinds.items() if type(group) is kind), None)
        if name is None or name in given:
            raise TypeError(
                f"expected Sampling, Frame, Storage or Compute, each once at most, found {group!r}"
            )
        given[name] = group
    for name, kind in kinds.items():
        own = {key: value for key, value in keywords.items() if owner[key] == name}
        given[name] = replace(cast(Any, given.get(name, kind())), **own)
    return Options(**given)
