"""Neighbours by cosine similarity: the nearest, and the votes of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted

from vdvae_repr.heads.gram import (
    Fold,
    Gram,
    Matrix,
    ProductHead,
    Scaling,
    centre_and_scale,
    left_out_accuracy,
)
from vdvae_repr.heads.parameters import flag, positive, whole
from vdvae_repr.heads.scores import ScoresClasses, classes_of, validated

BLOCK = 1024  # samples scored at once


class _CosineNeighbors(ScoresClasses, ProductHead, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Samples compared by cosine similarity; `_scores` makes class scores of similarities."""

    version: ClassVar[int] = 2
    center: bool
    standardize: bool | None
    precomputed: bool

    def __sklearn_tags__(self) -> Any:
        """Say whether X is pairwise."""
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.precomputed
        return tags

    @property
    def scaling(self) -> Scaling:
        """Raw, centred, or standardised where that is asked for."""
        if not self.center:
            return "raw"
        return "standardised" if self.standardize else "centred"

    def alternatives(self) -> list[Self]:
        """Return one that centres alone and one that standardises, where that is to be chosen."""
        if not self.center or self.standardize is not None:
            return [self]
        return [clone(self).set_params(standardize=flag) for flag in (False, True)]

    def kernel(self, gram: Gram) -> Matrix:
        """Return cosines."""
        return gram.cosines()

    def fit_judged(
        self,
        X: Any,
        y: Any,
        validation: tuple[Any, Any] | None = None,
        folds: Sequence[Fold] | None = None,
    ) -> float | None:
        """Fit, and return the accuracy on validation samples, else of each sample left out."""
        self.fit(X, y)
        if validation is not None:
            return float(self.score(*validation))
        return left_out_accuracy(self, y)

    def fit(self, X: Any, y: Any) -> Self:
        """Store the samples X (N, D), precomputed their cosines (N, N), and y (N,).

        Raises:
            ValueError: NaN, other shapes, a parameter that is none, or `standardize` without `center`.
        """
        self._check_parameters()
        X, y = validated(self, X, y, dtype=[np.float32, np.float64])
        self.classes_, self._labels = classes_of(y)
        if self.standardize and not self.center:
            raise ValueError("standardize: expected center=True with it, found center=False")
        if self.precomputed:
            if X.shape[0] != X.shape[1]:
                raise ValueError(f"expected cosines (N, N), found {X.shape}")
            self._samples = X
            return self
        self._store(X, bool(self.standardize))
        if self.center and self.standardize is None:
            centred = left_out_accuracy(self, y)
            self._store(X, True)
            if centred is None or (left_out_accuracy(self, y) or 0) <= centred:
                self._store(X, False)
        return self

    def _check_parameters(self) -> None:
        """Refuse what is none.

        Raises:
            ValueError: names the first.
        """
        flag("center", self.center)
        if self.standardize is not None:
            flag("standardize", self.standardize)
        flag("precomputed", self.precomputed)

    def class_scores(self, X: Any) -> NDArray[np.float64]:
        """Return a score for each class, (N, K), columns in the order of `classes_`."""
        check_is_fitted(self)
        X = validated(self, X, dtype=[np.float32, np.float64], reset=False)
        return _by_blocks(X if self.precomputed else self._unit(X), self._similarity, self._scores)

    def leave_one_out(self) -> NDArray[Any]:
        """Predict each sample from the others: how to choose a scaling, or a layer, on training data."""
        scores = _by_blocks(self._samples, self._similarity, self._scores, without_self=True)
        return np.asarray(self.classes_[scores.argmax(axis=1)])

    def _store(self, X: NDArray[Any], standardize: bool) -> None:
        self.standardize_ = standardize
        self._mean, self._scale = (
            centre_and_scale(X, standardize) if self.center else (np.zeros(1), np.ones(1))
        )
        self._samples = self._unit(X)

    def _unit(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return samples (M, D) as they are compared: scaled as the fitted ones are, of length 1."""
        if not self.center:  # angles between samples far from 0 are less than float32 tells apart
            return unit(np.asarray(X, np.float64))
        return np.asarray(unit((X - self._mean) / self._scale), X.dtype)

    def _similarity(self, X: NDArray[Any]) -> NDArray[Any]:
        return X.copy() if self.precomputed else X @ self._samples.T

    def _scores(self, similarity: NDArray[Any]) -> NDArray[np.float64]:
        raise NotImplementedError

    def _best_of_class(self, similarity: NDArray[Any]) -> NDArray[np.float64]:
        """Return the highest of the similarities (N, n) to the samples of each class, (N, K)."""
        by_class = np.argsort(self._labels, kind="stable")
        starts = np.searchsorted(self._labels[by_class], np.arange(len(self.classes_)))
        best = np.maximum.reduceat(similarity[:, by_class], starts, axis=1)
        return np.asarray(best, np.float64)


class NearestNeighbor(_CosineNeighbors):
    """The class of the sample of highest cosine similarity; a zero vector is similar to none.

    A class's score is its best similarity.

    Args:
        center: subtract the samples' mean first. Without it samples are kept and compared in float64.
        standardize: give each feature deviation 1 on the samples too; None does so where it leaves fewer
            errors on the samples, each left out once.
        precomputed: X holds cosines, of N samples with each other (N, N) and of others with them (M, N).

    Attributes:
        classes_: the classes (K,), in the order of `class_scores`.
        standardize_: whether features were given deviation 1; not precomputed alone.

    Examples:
        >>> NearestNeighbor().fit([[1.0, 0.0], [0.0, 1.0]], ["east", "north"]).predict([[3.0, 1.0]])
        array(['east'], dtype='<U5')
    """

    def __init__(
        self, *, center: bool = True, standardize: bool | None = None, precomputed: bool = False
    ) -> None:
        self.center = center
        self.standardize = standardize
        self.precomputed = precomputed

    def _scores(self, similarity: NDArray[Any]) -> NDArray[np.float64]:
        return self._best_of_class(similarity)


class WeightedNeighbors(_CosineNeighbors):
    """Protocol `knn`: the k samples of highest cosine similarity s vote with weight exp(s / temperature).

    A class's score is its share of the votes. A class without votes comes after all that have some, and is
    scored by its best similarity, less 2. Source: DINO (Caron et al. 2021) and DINOv2, `eval/knn.py`;
    20 and 0.07 are theirs. They compare features as they are (protocol `knn-dino`): `center=False`.

    Args:
        k: voters; all samples where there are fewer.
        temperature: of the votes.
        center: as of `NearestNeighbor`.
        standardize: as of `NearestNeighbor`.
        precomputed: X holds cosines, of N samples with each other (N, N) and of others with them (M, N).

    Attributes:
        classes_: the classes (K,), in the order of `class_scores`.
        standardize_: whether features were given deviation 1; not precomputed alone.

    Examples:
        >>> X = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]
        >>> WeightedNeighbors(k=2).fit(X, ["east", "east", "north"]).predict([[1.0, 0.0]])
        array(['east'], dtype='<U5')
    """

    def __init__(
        self,
        *,
        k: int = 20,
        temperature: float = 0.07,
        center: bool = True,
        standardize: bool | None = None,
        precomputed: bool = False,
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.center = center
        self.standardize = standardize
        self.precomputed = precomputed

    def _check_parameters(self) -> None:
        super()._check_parameters()
        whole("k", self.k)
        positive("temperature", self.temperature)

    def _scores(self, similarity: NDArray[Any]) -> NDArray[np.float64]:
        n, k = len(similarity), min(self.k, similarity.shape[1])
        voters = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        s = np.take_along_axis(similarity, voters, axis=1).astype(np.float64)
        weight = np.exp((s - s.max(axis=1, keepdims=True)) / self.temperature)
        votes = np.zeros((n, len(self.classes_)))
        np.add.at(votes, (np.arange(n)[:, None], self._labels[voters]), weight)
        votes /= weight.sum(axis=1, keepdims=True)
        return np.where(votes > 0, votes, self._best_of_class(similarity) - 2)


def _by_blocks(
    X: NDArray[Any],
    similarity_to_samples: Callable[[NDArray[Any]], NDArray[Any]],
    score: Callable[[NDArray[Any]], NDArray[np.float64]],
    without_self: bool = False,
) -> NDArray[np.float64]:
    """Score similarities of X to the samples block by block, so that they never stand in memory at once."""
    scores = []
    for start in range(0, len(X), BLOCK):
        similarity = similarity_to_samples(X[start : start + BLOCK])
        if without_self:
            rows = np.arange(len(similarity))
            similarity[rows, start + rows] = -np.inf
        scores.append(score(similarity))
    return np.concatenate(scores)


def unit(X: NDArray[Any]) -> NDArray[Any]:
    """Scale rows (N, D) to length 1; zeros stay."""
    least, most = np.sqrt(np.finfo(X.dtype).tiny) * 1e4, np.sqrt(np.finfo(X.dtype).max) / 1e4
    with np.errstate(over="ignore", under="ignore"):
        length = np.linalg.norm(X, axis=1, keepdims=True)
    # X's type does not hold the squares of these; they are divided by their largest number first.
    if (odd := ~((length > least) & (length < most))).any():
        largest = np.abs(X).max(axis=1, keepdims=True, initial=0)
        X = X / np.where(odd & (largest > 0), largest, 1)
        length = np.linalg.norm(X, axis=1, keepdims=True)
    return np.asarray(X / np.where(length > 0, length, 1))
