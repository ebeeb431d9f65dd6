"""Face verification (protocols `lfw-view1`, `lfw-view2`): accuracy, AUC, EER and TAR at FAR of pairs.

P pairs; `same` (P,) says which are of one person. A pair is accepted where its similarity reaches a
threshold.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from vdvae_repr.errors import TaskError
from vdvae_repr.heads.neighbors import BLOCK, unit
from vdvae_repr.heads.parameters import whole
from vdvae_repr.heads.scores import validated
from vdvae_repr.heads.spectrum import Spectrum

FARS = (0.1, 0.01, 0.001)  # false accept rates, where there are impostors enough
PASSING = 10  # impostors that must pass at a FAR for its TAR to be an estimate

Scores = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Centred(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Features with the training samples' mean subtracted, to be compared by cosine.

    Attributes:
        mean_: (D,).

    Examples:
        >>> import numpy as np
        >>> Centred().fit(np.array([[0.0, 2.0], [2.0, 4.0]])).transform(np.array([[1.0, 5.0]]))
        array([[0., 2.]])
    """

    rotations_change_nothing = True
    scaling: ClassVar[str] = "centred"
    version: ClassVar[int] = 1

    def fit(self, X: Any, y: Any = None) -> Centred:
        """Average X (N, D)."""
        X = validated(self, X, dtype=[np.float32, np.float64])
        self.mean_ = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Return X (M, D), centred."""
        check_is_fitted(self)
        X = validated(self, X, dtype=[np.float32, np.float64], reset=False)
        return np.asarray(X - self.mean_)


class Whitened(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Principal components of the training samples, scaled to equal variance, to be compared by cosine.

    Args:
        components: at most.

    Attributes:
        spectrum_: the principal axes.

    Examples:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(50, 3))
        >>> np.allclose(Whitened(2).fit(X).transform(X).std(axis=0, ddof=1), 1)
        True
    """

    rotations_change_nothing = True
    scaling: ClassVar[str] = "standardised"
    version: ClassVar[int] = 1

    def __init__(self, components: int = 128) -> None:
        self.components = components

    def fit(self, X: Any, y: Any = None) -> Whitened:
        """Decompose X (N, D), N at least 2.

        Raises:
            ValueError: NaN, other shapes, or a number of components that is none.
        """
        components = whole("components", self.components)
        X = validated(self, X, dtype=[np.float32, np.float64], ensure_min_samples=2)
        self.spectrum_ = Spectrum.of(X, min(components, len(X) - 1, X.shape[1]))
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """Return components (M, r) of X (M, D)."""
        check_is_fitted(self)
        X = validated(self, X, dtype=[np.float32, np.float64], reset=False)
        return np.asarray(self.spectrum_.project(X) / self.spectrum_.deviations)


def cosine_similarity(X: NDArray[Any], first: NDArray[np.intp], second: NDArray[np.intp]) -> Scores:
    """Return the cosine similarity (P,) of rows `first` (P,) and `second` (P,) of features X (N, D)."""
    similarity = np.empty(len(first))
    for start in range(0, len(first), BLOCK):
        # In float64: of samples far from 0 all angles are small.
        pairs = slice(start, start + BLOCK)
        one, other = (unit(X[rows[pairs]].astype(np.float64)) for rows in (first, second))
        similarity[pairs] = np.einsum("pd,pd->p", one, other)
    return similarity


def best_threshold(similarity: Scores, same: Flags) -> float:
    """Return the threshold of the highest accuracy, the lowest of equals, midway between two similarities."""
    order = np.argsort(similarity)
    ascending, truth = similarity[order], same[order]
    # With the threshold below item i: what lies below is refused.
    right = np.concatenate([[0], np.cumsum(~truth)]) + np.concatenate(
        [np.cumsum(truth[::-1])[::-1], [0]]
    )
    edges = np.concatenate([[ascending[0] - 1], ascending, [ascending[-1] + 1]])
    open_gaps = edges[1:] > edges[:-1]  # no threshold separates equal similarities
    best = int(np.argmax(np.where(open_gaps, right, -1)))
    return float((edges[best] + edges[best + 1]) / 2)


def accuracy(similarity: Scores, same: Flags, threshold: float) -> float:
    """Return the share of pairs that a threshold gets right."""
    return float(np.mean((similarity >= threshold) == same))


def enough(impostors: int) -> list[float]:
    """Return the false accept rates of FARS that so many impostors are enough for."""
    return [rate for rate in FARS if rate * impostors >= PASSING - 1e-9]


def check_far(far: float, impostors: int) -> None:
    """Refuse what is no rate, and one at which fewer than 10 impostors may pass.

    Raises:
        TaskError: the rate there would be no estimate.
    """
    if not 0 < far <= 1:
        raise TaskError(f"far={far:g}: expected a rate above 0, and 1 at most")
    if far * impostors < PASSING - 1e-9:
        advice = "take more of them"
        if impostors >= PASSING:
            advice = f"ask for a FAR of {finest(impostors):g} or more"
        raise TaskError(
            f"far={far:g}: expected at least {PASSING} impostors to pass, found "
            f"{far * impostors:g} of {impostors}; {advice}"
        )


def finest(impostors: int) -> float:
    """Return the lowest false accept rate, of two digits, that so many impostors are enough for."""
    least = PASSING / impostors
    step = 10.0 ** (math.floor(math.log10(least)) - 1)
    return float(f"{math.ceil(least / step - 1e-9) * step:.2g}")


def roc(similarity: Scores, same: Flags, weights: Scores | None = None) -> tuple[Scores, Scores]:
    """Return false and true accept rates (R, G), strictest first, under R weightings (R, P) of the pairs.

    Without weights every pair counts once, R = 1. G counts the distinct similarities, and the threshold above
    all of them. A weighting must leave some weight to either side.
    """
    if weights is None:
        weights = np.ones((1, len(same)))
    order = np.argsort(-similarity, kind="stable")
    starts = np.flatnonzero(np.diff(similarity[order], prepend=np.inf))
    rates = []
    for side in (~same, same):
        counted = np.add.reduceat(weights[:, order] * side[order], starts, axis=1)
        summed = np.cumsum(counted, axis=1)
        none = np.zeros((len(weights), 1))
        rates.append(np.concatenate([none, summed / summed[:, -1:]], axis=1))
    return rates[0], rates[1]


def auc(far: Scores, tar: Scores) -> Scores:
    """Return the area under each of R curves (R, G)."""
    return np.asarray(np.trapezoid(tar, far, axis=1))


def equal_error_rate(far: Scores, tar: Scores) -> Scores:
    """Return where false accepts and false rejects are equal, between two points of each curve (R, G)."""
    gap = far - (1 - tar)  # ascending from -1 to 1
    rows, after = np.arange(len(far)), np.argmax(gap >= 0, axis=1)
    low, high = gap[rows, after - 1], gap[rows, after]
    share = -low / (high - low)
    return np.asarray(far[rows, after - 1] + share * (far[rows, after] - far[rows, after - 1]))


def tar_at_far(far: Scores, tar: Scores, rate: float) -> Scores:
    """Return the highest true accept rate of each curve (R, G) at a false accept rate of at most `rate`."""
    return np.asarray(np.where(far <= rate + 1e-12, tar, 0).max(axis=1))
