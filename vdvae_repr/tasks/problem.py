"""What a task is to `run_task`: it scores features under heads, and makes figures of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from vdvae_repr.errors import TaskError
from vdvae_repr.features import Features
from vdvae_repr.latents.base import Latents

Kind = type | UnionType | tuple[type, ...]


@dataclass(frozen=True)
class Scored:
    """Features under a head: what training data say of them, and what the problem's figures are made of.

    `outcome` is an array that the problem knows how to read.
    """

    features: Features
    standardised: bool
    training_score: float | None
    outcome: NDArray[Any]
    seconds: float
    chosen: bool = False
    p_value: float | None = None


@dataclass(frozen=True)
class Curve:
    """What rows hold points of: `cmc` (x ranks, y identified) or `roc` (false, true accept rates)."""

    kind: str
    head: str
    model: str
    layer: str | None
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """A metric's value, with what is known of its uncertainty."""

    value: float
    low: float | None = None
    high: float | None = None
    se: float | None = None
    std: float | None = None
    chance: float | None = None

    @classmethod
    def of_mean(cls, values: NDArray[np.float64], chance: float) -> Figure:
        """Return the mean of values (N,), with t(.975, N - 1) standard errors on either side."""
        mean, std = float(values.mean()), float(values.std(ddof=1))
        se = std / len(values) ** 0.5
        half = float(student.ppf(0.975, len(values) - 1)) * se
        return cls(mean, mean - half, mean + half, se, std, chance)


class Problem(Protocol):
    """One task on one store.

    Attributes:
        heads: names of all it knows.
        notice: what the reader must know of the split.
        n_train, n_test: sizes that a row states.
        mirrored: whether features of mirrored images are added.
        fitted: numbers of the images that something may be learned of.
    """

    heads: tuple[str, ...]
    notice: str
    n_train: int
    n_test: int
    mirrored: bool
    fitted: NDArray[np.intp]

    def metrics_of(self, head: str) -> tuple[str, ...]:
        """Return the metrics of a head's rows; the first is the one that is compared."""
        ...

    def protocol(self, head: str) -> str:
        """Return the protocol's name."""
        ...

    def pca(self, X: NDArray[Any], dims: Sequence[int]) -> list[Features]:
        """Return PCA of pixels (N, D), fitted on `fitted`: at these sizes, and at some to choose from."""
        ...

    def score(self, head: str, features: Features, seed: int, shuffled: bool = False) -> Scored:
        """Score features; shuffled: under shuffled labels."""
        ...

    def figures(self, metric: str, scored: Sequence[Scored], seed: int) -> list[Figure]:
        """Return a metric of each."""
        ...

    def p_values(self, pairs: Sequence[tuple[Scored, Scored]], seed: int) -> list[float]:
        """Return the two-sided p-value that the first metric of two differs, for each pair."""
        ...

    def curve(self, head: str, scored: Scored) -> Curve | None:
        """Return the curve that goes with the metrics, if there is one."""
        ...


def expect_store(store: object, name: str = "store") -> None:
    """Refuse what is no open store, as a path to one.

    Raises:
        TaskError: names the parameter.
    """
    if not isinstance(store, Latents):
        found = repr(store) if isinstance(store, str | Path | None) else type(store).__name__
        raise TaskError(
            f"{name}: expected an open store, found {found}; vr.open('latents.h5') opens one"
        )


def expect_several(values: object, name: str, kind: Kind, words: str) -> None:
    """Refuse what is no sequence of values of a type.

    Raises:
        TaskError: names the parameter.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TaskError(f"{name}: expected a list of {words}, found {type(values).__name__}")
    for value in values:
        expect(value, name, kind, words)


def expect(value: object, name: str, kind: Kind, words: str) -> None:
    """Refuse a value of another type.

    Raises:
        TaskError: names the parameter.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        found = f"{type(value).__name__} {value!r:.80}"
        raise TaskError(f"{name}: expected {words}, found {found}")


def has_splits(splits: NDArray[np.str_], name: object) -> bool:
    """Return whether images (N,) are split into train and others; False where all are of one split.

    Raises:
        TaskError: they are of several splits, none of which is `train`.
    """
    if (splits == "train").any():
        return True
    if len(known := sorted(set(splits.tolist()))) > 1:
        raise TaskError(
            f"{name}: expected a split train, found {', '.join(split or 'no split' for split in known)}; "
            "extract with splits called train, val and test, or with none"
        )
    return False


def first_halves(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Flag the first half of each label's images, of labels (N,), -1 where none: a gallery without splits."""
    first = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        first[members[: len(members) // 2]] = True
    return first


def refuse_leaks(
    images: NDArray[Any], ids: Sequence[str], sides: Sequence[tuple[str, NDArray[np.intp]]]
) -> None:
    """Refuse an image that is in two sides, or twice in one under two ids.

    Raises:
        TaskError: names both.
    """
    seen: dict[bytes, tuple[int, str]] = {}
    for name, side in sides:
        here = {}
        for i in side:
            image = images[i].tobytes()
            if twin := seen.get(image):
                raise TaskError(
                    f"{ids[i]} in the {name} is the same image as {ids[twin[0]]} in the {twin[1]}; remove one"
                )
            here[image] = int(i), name
        seen |= here
