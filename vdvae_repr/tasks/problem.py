"""What a task is to `run_task`: it scores features under heads, and makes figures of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from vdvae_repr.baselines import Features
from vdvae_repr.errors import TaskError


@dataclass(frozen=True)
class Scored:
    """Features under a head: what training data say of them, and what the problem's figures are made of."""

    features: Features
    standardised: bool
    training_score: float | None
    outcome: Any
    seconds: float
    chosen: bool = False
    p_value: float | None = None


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
        metrics: of a row; the first is the one that is compared.
        notice: what the reader must know of the split.
        n_train, n_test: sizes that a row states.
        mirrored: whether features of mirrored images are added.
    """

    heads: tuple[str, ...]
    metrics: tuple[str, ...]
    notice: str
    n_train: int
    n_test: int
    mirrored: bool

    def protocol(self, head: str) -> str:
        """Return the protocol's name."""
        ...

    def pca(self, raw: Features, dims: Sequence[int]) -> list[Features]:
        """Return PCA of pixels, fitted on training rows, at these dimensions and at sizes to choose from."""
        ...

    def score(self, head: str, features: Features, seed: int, shuffled: bool = False) -> Scored:
        """Score features; shuffled: under shuffled labels."""
        ...

    def figures(self, metric: str, scored: Sequence[Scored], seed: int) -> list[Figure]:
        """Return a metric of each."""
        ...

    def p_value(self, a: Scored, b: Scored, seed: int) -> float:
        """Return the two-sided p-value that the first metric of two differs."""
        ...


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
