"""Bootstraps over units (people, images, episodes): intervals, and whether two rows differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
AT_ONCE = 500  # resamples, so that memory stays small

Values = NDArray[np.float64]


def interval(resampled: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the bounds of the central 95 % of (RESAMPLES, ...)."""
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return low, high


def paired_bootstrap(
    pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]], units: NDArray[np.int64], seed: int
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
    units: NDArray[np.int64],
    seed: int,
    strata: NDArray[np.int64] | None = None,
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
