"""Figures with their uncertainty, and paired tests, by what is independent: people, images, classes, folds.

This is the one place where intervals and p-values are worked out. N test items belong to U units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm
from scipy.stats import t as student

from vdvae_repr.errors import counted
from vdvae_repr.results import ALPHA, UNDECIDED

RESAMPLES = 2_000  # of an interval
FLIPS = 10_000  # of signs, where there are more than can all be gone through
EVERY_FLIP = 13  # units, of which all 2^13 flips are
FEWEST = 6  # units of a test: of five the smallest p is 2 / 2^5, above 0.05
FEW = 20  # units, below which nothing is bootstrapped
LEVEL = 0.95  # of intervals
AT_ONCE = 500  # resamples, so that memory stays small

Values = NDArray[np.float64]
Span = tuple[float, float]
PROPORTION: Span = (0.0, 1.0)
CORRELATIONS = ("pearson", "spearman", "kendall_tau_a", "cosine", "cka")
SPANS: dict[str, Span] = {"r2": (-np.inf, 1.0)} | dict.fromkeys(CORRELATIONS, (-1.0, 1.0)) | dict.fromkeys(
    (
        "accuracy", "balanced_accuracy", "top5", "rank1", "rank5", "auc", "eer", "tar", "dir", "error",
    ),
    PROPORTION,
)  # fmt: skip
"""Between which values a metric lies; one of a user's anywhere."""


class Items(NamedTuple):
    """A metric as a ratio of sums over test items: what each adds (N,), and its share of the whole (N,)."""

    adds: Values
    shares: Values

    @classmethod
    def mean_of(cls, values: NDArray[Any], weights: NDArray[Any] | None = None) -> Items:
        """Make a weighted mean of values (N,)."""
        shares = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
        return cls(np.asarray(values, np.float64) * shares, shares)

    @classmethod
    def balanced(cls, right: NDArray[Any], truth: NDArray[Any]) -> Items:
        """Make the mean over classes of the share that is right (N,)."""
        _, which, counts = np.unique(truth, return_inverse=True, return_counts=True)
        return cls.mean_of(right, 1 / counts[which])

    @classmethod
    def r2(cls, errors: Values, truth: Values) -> Items:
        """Make R2 of squared errors (N,) and truth (N,)."""
        squares = (truth - truth.mean()) ** 2
        return cls(squares - errors, squares)

    @classmethod
    def pearson(cls, predicted: Values, truth: Values) -> Items:
        """Make Pearson's r of numbers (N,) and truth (N,), by means and deviations of all items; else 0."""
        x, y = _centred(predicted), _centred(truth)
        varying = all(np.ptp(values) > 0 for values in (predicted, truth))
        return cls.mean_of(x * y / (x.std() * y.std()) if varying else np.zeros(len(x)))

    @property
    def value(self) -> float:
        """The metric of all items."""
        return float(self.adds.sum() / max(self.shares.sum(), 1e-300))


class Figure(NamedTuple):
    """A metric's value, with what is known of its uncertainty; `interval` says how the bounds were found."""

    value: float
    low: float | None = None
    high: float | None = None
    interval: str | None = None
    se: float | None = None
    std: float | None = None
    chance: float | None = None
    units: int | None = None


class Difference(NamedTuple):
    """How much better one is than another, above 0, with an interval; `why` says why there is no p."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    why: str | None
    units: int


class Units:
    """Which test items are independent: those of a unit are drawn together, and units with replacement.

    Args:
        units: who each item is of (N,).
        seed: of the draws.
        nested: the items of a drawn unit are drawn too, each by itself.
        number: how many of the units stand behind a value; all of them if not given.

    Attributes:
        number: as given, or found.
        alone: whether each item is a unit by itself.
    """

    def __init__(
        self, units: NDArray[Any], seed: int, *, nested: bool = False, number: int | None = None
    ) -> None:
        _, self._unit = np.unique(units, return_inverse=True)
        self._count = int(self._unit.max()) + 1
        self.number = self._count if number is None else number
        self.seed, self._nested = seed, nested
        self.alone = self._count == len(units)

    def sums(self, values: Values) -> Values:
        """Sum values (N, ...) by unit, (U, ...)."""
        if self.alone:
            summed = np.empty_like(values)
            summed[self._unit] = values
            return summed
        order = np.argsort(self._unit, kind="stable")
        starts = np.searchsorted(self._unit[order], np.arange(self._count))
        return np.asarray(np.add.reduceat(values[order], starts, axis=0))

    def cells(self, values: Values) -> Values:
        """Sum values (N, ...) by what `draws` counts, (C, ...): units, or items where these are drawn too."""
        return values if self._nested else self.sums(values)

    def draws(self) -> Iterator[Values]:
        """Yield how often each cell is in each resample, (AT_ONCE, C), RESAMPLES in all."""
        drawn = self._nested_draws if self._nested else _draws(self._count, self.seed)
        for start in range(0, RESAMPLES, AT_ONCE):
            yield drawn[start : start + AT_ONCE].astype(np.float64)

    def left_out(self) -> Values:
        """Return how often each cell is there where each unit is left out, (U, C)."""
        others = 1 - np.eye(self._count)
        return others[:, self._unit] if self._nested else others

    def of_items(self, draws: Values) -> Values:
        """Return how often each item is there, (R, N), where cells are drawn so often, (R, C)."""
        return draws if self._nested else draws[:, self._unit]

    @cached_property
    def _nested_draws(self) -> NDArray[np.uint16]:
        rng = np.random.default_rng([self.seed, 1])
        often = _draws(self._count, self.seed)
        drawn = np.empty((RESAMPLES, len(self._unit)), np.uint16)
        for unit in range(self._count):
            own = np.flatnonzero(self._unit == unit)
            total = often[:, unit].astype(np.int64) * len(own)
            drawn[:, own] = rng.multinomial(total, np.full(len(own), 1 / len(own)))
        return drawn


@lru_cache(maxsize=4)
def _draws(number: int, seed: int) -> NDArray[np.uint8]:
    """Return how often each unit is in each resample, (RESAMPLES, number)."""
    rng = np.random.default_rng(seed)
    shares = np.full(number, 1 / number)
    return np.concatenate(
        [
            rng.multinomial(number, shares, size=AT_ONCE).astype(np.uint8)
            for _ in range(0, RESAMPLES, AT_ONCE)
        ]
    )


class PairUnits(Units):
    """People, of whom items are pairs: one of a single person counts as often as the person is drawn.

    One of two people counts as their product, over its mean of 1 - 1/U: each pair once on average, so that
    draws keep the balance of the list. Tests turn the signs of whole people: a pair of two is in the sums of
    both, because it changes with both, while the difference that the turned sums are held against counts it
    once. What is turned so varies more than the difference does, not less, and p is rather too large.

    Args:
        first: a person of each pair (P,).
        second: the other, or the same.
        seed: of the draws.
    """

    def __init__(self, first: NDArray[Any], second: NDArray[Any], seed: int) -> None:
        people, of = np.unique(np.concatenate([first, second]), return_inverse=True)
        super().__init__(np.arange(len(people)), seed)
        self.alone = False
        self._first, self._second = np.split(of, 2)
        self._one = self._first == self._second

    def sums(self, values: Values) -> Values:
        """Sum values (P, ...) by person, (U, ...): of two people with both, so that these sum to more."""
        summed = np.zeros((self.number, *values.shape[1:]))
        np.add.at(summed, self._first, values)
        np.add.at(summed, self._second[~self._one], values[~self._one])
        return summed

    def cells(self, values: Values) -> Values:
        """Return values (P, ...) as they are: draws count pairs."""
        return values

    def draws(self) -> Iterator[Values]:
        """Yield how often each pair is in each resample, (AT_ONCE, P), RESAMPLES in all."""
        mean = 1 - 1 / self.number
        for often in super().draws():
            second = np.where(self._one, 1, often[:, self._second] / mean)
            yield often[:, self._first] * second

    def of_items(self, draws: Values) -> Values:
        """Return draws (R, P), which are of items already."""
        return draws


def weighted(items: Sequence[Items], units: Units, draws: Iterable[Values]) -> Values:
    """Return metrics of the same items under draws of their units, (R, M)."""
    adds = units.cells(np.stack([item.adds for item in items], axis=1))
    shares = units.cells(items[0].shares)
    with np.errstate(invalid="ignore"):  # a draw without any item of weight is of no use
        return np.concatenate([(d @ adds) / (d @ shares)[:, None] for d in draws])


def _centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values (N,) without their mean, scaled to below 1 for a correlation.

    Scaled by a power of two, so that products of variances neither vanish nor overflow, and r is the same
    to the last bit.
    """
    centred = values - values.mean()
    return np.asarray(np.ldexp(centred, -np.frexp(np.abs(centred).max(initial=0))[1]))


def pearson(
    predicted: NDArray[np.float64], truth: NDArray[np.float64], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return Pearson's r of two (N,) where each item counts `times` (R, N); NaN where one does not vary."""
    x, y = _centred(predicted), _centred(truth)
    count = times.sum(axis=1)
    with np.errstate(invalid="ignore"):  # a draw without any item is of no use
        mean_x, mean_y, xx, yy, xy = (times @ v / count for v in (x, y, x * x, y * y, x * y))
    spread_x, spread_y = xx - mean_x**2, yy - mean_y**2
    varying = (spread_x > 1e-12 * x.var()) & (spread_y > 1e-12 * y.var())
    safe = np.where(varying, spread_x * spread_y, 1.0)
    return np.where(varying, (xy - mean_x * mean_y) / np.sqrt(safe), np.nan)


# Intervals


def wilson(successes: float, number: int) -> tuple[float, float]:
    """Return Wilson's interval of a share of independent items."""
    z = float(norm.ppf((1 + LEVEL) / 2))
    share, spread = successes / number, z**2 / number
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / number + spread / (4 * number)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def clopper_pearson(successes: float, number: int) -> tuple[float, float]:
    """Return the interval of Clopper and Pearson; successes of units of several items need not be whole."""
    tail = (1 - LEVEL) / 2
    successes = min(max(successes, 0.0), float(number))
    failures = number - successes
    low = float(beta.ppf(tail, successes, failures + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, failures)) if failures > 0 else 1.0
    return low, high


def percentiles(resampled: Values, units: int) -> tuple[Values, Values]:
    """Return bounds of the central 95 % of (R, ...), widened as Student's t is for so few units.

    The expanded percentile interval of Hesterberg 2015, The American Statistician 69(4).
    """
    tail = float(student.ppf((1 - LEVEL) / 2, units - 1)) * (units / (units - 1)) ** 0.5
    low, high = np.quantile(resampled, [norm.cdf(tail), norm.cdf(-tail)], axis=0)
    return np.round(low, 12), np.round(high, 12)  # without the rounding errors of equal resamples


def over_folds(values: Values, people: int, chance: float | None = None) -> Figure:
    """Return the mean of values by fold and draw (F, I), with Student's interval over folds from 0 to 1.

    Where all folds are alike the interval is that of Clopper and Pearson, on people.
    """
    folds, draws = values.shape
    mean, std = float(values.mean()), float(values.mean(axis=1).std(ddof=1))
    se = std / folds**0.5
    spread = float(values.mean(axis=0).var(ddof=1)) / draws if draws > 1 else 0.0
    half = float(student.ppf((1 + LEVEL) / 2, folds - 1)) * (se**2 + spread) ** 0.5
    if half < 1e-12:
        low, high = clopper_pearson(mean * people, people)
        return Figure(mean, low, high, "clopper-pearson", se, std, chance, people)
    return Figure(
        mean, max(0.0, mean - half), min(1.0, mean + half), "student", se, std, chance, folds
    )


def figure(
    values: Values,
    resampled: Values,
    left_out: Values,
    units: Units,
    span: Span,
    binary: bool = False,
    chance: float | None = None,
) -> Figure:
    """Return a metric with its interval.

    Args:
        values: of I draws of what is measured (I,), as initialisations; of what is not drawn one.
        resampled: of each under the draws of `units`, (R, I).
        left_out: of each where a unit is left out, (U, I); for metrics that are no proportions.
        units: what is independent.
        span: between which values the metric lies.
        binary: whether items count equally and are 0 or 1.
        chance: the value of a guess.
    """
    value, number = float(values.mean()), units.number

    def found(low: float, high: float, how: str) -> Figure:
        low, high = max(low, span[0]), min(high, span[1])
        if low >= high:  # nothing tells how far it may be off
            return Figure(value, chance=chance, units=number)
        return Figure(value, low, high, how, chance=chance, units=number)

    if binary and units.alone and len(values) == 1 and span == PROPORTION:
        return found(*wilson(value * number, number), "wilson")
    together = _over_draws(resampled, units.seed)
    # Where less than one unit is wrong, or right, resamples hardly differ.
    rarer = min(value, 1 - value) * number if span == PROPORTION else np.inf
    if number >= FEW and rarer >= 1 and len(together) > 1:
        low, high = (float(bound) for bound in percentiles(together, number))
        if low < high:
            return found(low, high, "bootstrap")
    if span == PROPORTION:
        return found(*clopper_pearson(value * number, number), "clopper-pearson")
    return found(*_jackknife(value, values, left_out), "student")


def spread(values: NDArray[Any], most: int = 60) -> NDArray[Any]:
    """Return some of ascending values (G,) from the first to the last, closer together at the beginning.

    A curve changes most there; `band` says what holds between them.
    """
    places = np.geomspace(1, len(values), min(most, len(values))).round().astype(int) - 1
    return np.asarray(values[np.unique(places)])


def band(
    x: NDArray[Any],
    some: NDArray[Any],
    values: Values,
    resampled: Values,
    units: Units,
    binary: bool = False,
) -> tuple[Values, Values]:
    """Return bounds (G,) of a curve that never falls, by the intervals of some of its points.

    Each of these is by itself, as `figure` finds that of a share; its bounds hold for the points after it, or
    before it, too.

    Args:
        x: where the curve is, ascending, (G,).
        some: those of x that are measured, (S,).
        values: what is measured there, (S,).
        resampled: the same under the draws of `units`, (R, S).
        units: what is independent.
        binary: as in `figure`.
    """
    ends = [
        figure(value, drawn, np.zeros((0, 1)), units, PROPORTION, binary)
        for value, drawn in zip(values[:, None], resampled.T[:, :, None], strict=True)
    ]
    low = np.maximum.accumulate([end.value if end.low is None else end.low for end in ends])
    highest = [end.value if end.high is None else end.high for end in ends]
    high = np.minimum.accumulate(highest[::-1])[::-1]
    before = np.searchsorted(some, x, side="right") - 1
    after = np.minimum(np.searchsorted(some, x), len(some) - 1)
    return np.where(before >= 0, low[before], 0.0), high[after]


def _over_draws(resampled: Values, seed: int) -> Values:
    """Return means over draws (R,) of what is finite of (R, I): of I - 1 of them, drawn too.

    Of I - 1, because the variance of the mean of so many is then that of the mean of I, without bias.
    """
    resampled = resampled[np.isfinite(resampled).all(axis=1)]
    count = resampled.shape[1]
    if count == 1:
        return resampled[:, 0]
    rng = np.random.default_rng([seed, count])
    often = rng.multinomial(count - 1, np.full(count, 1 / count), size=len(resampled))
    return np.asarray((resampled * often).sum(axis=1) / (count - 1))


def _jackknife(value: float, values: Values, left_out: Values) -> tuple[float, float]:
    number = len(left_out)
    if number < 2 or not np.isfinite(left_out).all():
        return value, value
    means = left_out.mean(axis=1)
    variance = (number - 1) / number * float(((means - means.mean()) ** 2).sum())
    if len(values) > 1:
        variance += float(values.var(ddof=1)) / len(values)
    half = float(student.ppf((1 + LEVEL) / 2, number - 1)) * variance**0.5
    return value - half, value + half


# Tests


def sign_flip(
    differences: Values, seed: int, observed: Values | None = None
) -> NDArray[np.float64]:
    """Return the two-sided p (M,) of sums of differences (U, M) by unit, under flips of the units' signs.

    All flips, where those of units that differ are at most 2^13; else FLIPS seeded, and (k + 1) / (n + 1).

    Args:
        differences: of each unit.
        seed: of the flips.
        observed: what the flipped sums are held against (M,), where units share items, so that their
            differences sum to more; their sum if not given.
    """
    differing = differences[(differences != 0).any(axis=1)]
    count = len(differing)
    if not count:
        return np.ones(differences.shape[1])
    observed = differing.sum(axis=0) if observed is None else observed
    least = np.abs(observed) - 1e-9 * np.abs(differing).sum(axis=0)
    if count <= EVERY_FLIP:
        # Of the last unit one sign alone: with all signs turned the sum is as far from 0.
        bits = np.arange(2 ** (count - 1))[:, None] >> np.arange(count) & 1
        as_far = np.abs((1.0 - 2 * bits) @ differing) >= least
        as_far[0] = True  # what was observed, without a flip
        return np.asarray(as_far.mean(axis=0))
    rng = np.random.default_rng(seed)
    reached = np.zeros(differences.shape[1])
    for _ in range(0, FLIPS, AT_ONCE):
        signs = 1.0 - 2 * rng.integers(0, 2, (AT_ONCE, count), dtype=np.int8)
        reached += (np.abs(signs @ differing) >= least).sum(axis=0)
    return (reached + 1) / (FLIPS + 1)


def compare(
    ours: Sequence[Items], theirs: Sequence[Items], units: Units, span: Span, sign: int = 1
) -> Difference:
    """Compare two by the same items: their difference, its interval, and p by flips of the units' signs.

    The interval is a bootstrap's; below FEW units Student's, over the units' differences. Where all units are
    alike, it is as wide as so many units may miss of what others do. It holds the spread of draws.

    Args:
        ours: draws of one, as initialisations; 1 of what is not drawn.
        theirs: draws of the other.
        units: what is independent.
        span: between which values the metric lies.
        sign: -1 where lower is better.
    """
    whole = max(float(ours[0].shares.sum()), 1e-300)
    shares = ours[0].shares / whole
    mean = np.mean([item.adds for item in ours], axis=0)
    gaps = np.stack([sign * (mean - item.adds) / whole for item in theirs], axis=1)
    value, number = float(gaps.sum(axis=0).mean()), units.number
    low, high = _difference_interval(gaps, shares, units, span)
    if number < FEWEST:
        few = counted(number, "independent unit", "is", "are")
        why = f"{few} too few for a test, which takes {FEWEST}"
        return Difference(value, low, high, None, why, number)
    gap = gaps.mean(axis=1, keepdims=True)
    (p,) = sign_flip(units.sums(gap), units.seed, gap.sum(axis=0))
    return Difference(value, low, high, float(p), None, number)


def _difference_interval(
    gaps: Values, shares: Values, units: Units, span: Span
) -> tuple[float | None, float | None]:
    """Return the interval of the sum of gaps (N,) of draws, (N, I)."""
    number, value = units.number, float(gaps.sum(axis=0).mean())
    low = high = value
    if number >= FEW:
        items = [Items(gap, shares) for gap in gaps.T]
        together = _over_draws(weighted(items, units, units.draws()), units.seed)
        if not len(together):  # in no draw is there anything of weight
            return None, None
        low, high = (float(bound) for bound in percentiles(together, number))
    elif number > 1:
        # How far each unit is from the whole, for its share of it.
        apart = units.sums(gaps.mean(axis=1)) - value * units.sums(shares)
        variance = number / (number - 1) * float((apart**2).sum())
        if gaps.shape[1] > 1:
            variance += float(gaps.sum(axis=0).var(ddof=1)) / gaps.shape[1]
        half = float(student.ppf((1 + LEVEL) / 2, number - 1)) * variance**0.5
        low, high = value - half, value + half
    widest = span[1] - span[0]
    if high - low < 1e-12:
        if not np.isfinite(widest):
            return None, None
        missed = clopper_pearson(0, number)[1] * widest
        low, high = value - missed, value + missed
    return max(low, -widest), min(high, widest)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return p-values after Holm's correction for their number; None stays, and counts."""
    adjusted: list[float | None] = [None] * len(p)
    known = sorted((value, index) for index, value in enumerate(p) if value is not None)
    highest = 0.0
    for rank, (value, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(p) - rank) * value))
        adjusted[index] = highest
    return adjusted


def verdict(differences: Sequence[float], p: Sequence[float | None]) -> str:
    """Say in words how one stands beside its rivals, by adjusted p-values."""
    told = [None if value is None or value >= ALPHA else value for value in p]
    if any(d < 0 and value is not None for d, value in zip(differences, told, strict=True)):
        return "worse"
    if all(d > 0 and value is not None for d, value in zip(differences, told, strict=True)):
        return "better"
    return UNDECIDED
