"""Figures with their uncertainty: bootstraps over units (people, images, episodes), and paired tests.

This is the one place where intervals and p-values are worked out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

RESAMPLES = 10_000
AT_ONCE = 500  # resamples, so that memory stays small

Values = NDArray[np.float64]


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
    def of_mean(cls, values: Values, chance: float) -> Figure:
        """Return the mean of values (N,), with t(.975, N - 1) standard errors on either side."""
        mean, std = float(values.mean()), float(values.std(ddof=1))
        se = std / len(values) ** 0.5
        half = float(student.ppf(0.975, len(values) - 1)) * se
        return cls(mean, mean - half, mean + half, se, std, chance)


def mean_figures(
    values: Values, units: NDArray[Any], seed: int, chance: float | None = None
) -> list[Figure]:
    """Return the means of values (N, M), with a bootstrap's intervals over units (N,)."""
    low, high = interval(resampled_means(values, units, seed))
    return [
        Figure(float(v), float(lo), float(hi), chance=chance)
        for v, lo, hi in zip(values.mean(axis=0), low, high, strict=True)
    ]


def r2_figures(errors: Values, truth: Values, units: NDArray[Any], seed: int) -> list[Figure]:
    """Return R2 of squared errors (N, M) of a truth (N,), with a bootstrap's intervals over units (N,)."""
    resampled = resampled_means(np.column_stack([errors, truth, truth**2]), units, seed)
    spread = resampled[:, -1] - resampled[:, -2] ** 2
    whole = float(truth.var())
    varying = spread > 1e-9 * whole  # R2 is of none where a resample's units are all alike
    bounds: list[list[Any]] = [[None] * errors.shape[1]] * 2
    if varying.any():
        ratios = 1 - resampled[varying, :-2] / spread[varying, None]
        bounds = [bound.tolist() for bound in interval(ratios)]
    return [
        Figure(float(1 - error / whole), low, high, chance=0.0)
        for error, low, high in zip(errors.mean(axis=0), *bounds, strict=True)
    ]


def interval(resampled: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the bounds of the central 95 % of (RESAMPLES, ...)."""
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return low, high


def paired_bootstrap(
    pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]], units: NDArray[Any], seed: int
) -> list[float]:
    """Two-sided p-values that two scores (N,) of the same items differ; `units` (N,) are resampled."""
    gaps = np.stack([a.astype(float) - b.astype(float) for a, b in pairs], axis=1)
    return [two_sided(gap) for gap in resampled_means(gaps, units, seed).T]


def two_sided(differences: NDArray[Any]) -> float:
    """Two-sided p-value of resampled differences; never below what so many resamples can tell."""
    low, high = float(np.mean(differences <= 0)), float(np.mean(differences >= 0))
    return min(1.0, 2 * max(min(low, high), 1 / RESAMPLES))


def weights(num_units: int, seed: int) -> Iterator[Values]:
    """Yield how often each unit is in each resample, (AT_ONCE, num_units), RESAMPLES in all."""
    rng = np.random.default_rng(seed)
    for _ in range(0, RESAMPLES, AT_ONCE):
        shares = np.full(num_units, 1 / num_units)
        yield rng.multinomial(num_units, shares, size=AT_ONCE).astype(float)


def resampled_means(
    values: Values,
    units: NDArray[Any],
    seed: int,
    strata: NDArray[Any] | None = None,
) -> Values:
    """Means of values (N, M), or of strata's means, over resamples of units (N,): (RESAMPLES, M)."""
    _, unit = np.unique(units, return_inverse=True)
    _, stratum = np.unique(np.zeros_like(units) if strata is None else strata, return_inverse=True)
    members = [np.flatnonzero(stratum == i) for i in range(stratum.max() + 1)]
    means = []
    for draws in weights(int(unit.max()) + 1, seed):
        total, present = np.zeros((len(draws), values.shape[1])), np.zeros((len(draws), 1))
        for rows in members:
            times = draws[:, unit[rows]]
            count = times.sum(axis=1, keepdims=True)  # 0 where a stratum is missing from a resample
            total += times @ values[rows] / np.maximum(count, 1)
            present += count > 0
        means.append(total / present)
    return np.concatenate(means)
