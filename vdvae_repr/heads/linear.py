"""Linear heads: protocols `linear-lbfgs` and `ridge`.

`linear-lbfgs` is multinomial logistic regression with the DINOv2 grid of C, solved exactly fast.

N samples, D features, K classes, r = rank. An L2-regularised linear head depends on the features only
through their Gram matrix, so with D > N the standardised features are first rotated, without loss,
into the r <= N dimensions they span; with `precomputed=True` heads take Gram matrices (`heads.gram`) in
place of features. There `heads.logistic` follows the optimum from C to C. The protocol is named after the
solver of its source; the optimum is one and the same, whatever finds it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.validation import check_is_fitted

from vdvae_repr.errors import counted
from vdvae_repr.heads import parameters
from vdvae_repr.heads.gram import (
    BLOCK_BYTES,
    Fold,
    ProductHead,
    Rows,
    Scaling,
    centre_and_scale,
    left_out_accuracy,
)
from vdvae_repr.heads.logistic import ON_THE_WAY, LogisticPath
from vdvae_repr.heads.scores import Logits, ScoresClasses, classes_of, numbers_of, validated
from vdvae_repr.heads.spectrum import Spectrum, blas_threads, one_thread_each

C_GRID = 10 ** np.linspace(-6, 5, 45)  # DINOv2, eval/log_regression.py
LARGEST = 1e150  # of targets, so that sums of their squares are finite
SMALLEST = 1e-140  # by which targets differ, so that squares of errors do not become 0
ALPHAS = 10 ** np.linspace(-4, 4, 17)  # a feature, standardised
LEVELS = 10  # that a person may set, as of doses
MOST_CODES = 3  # on a side
SAMPLED = 100_000  # values looked at first
ROUNDING = 1e-6  # of 1, or of the largest value if that is smaller
NINES = re.compile(r"-?9{2,}")  # as people write codes
SMALL = 300_000_000  # samples x dimensions x classes, below which products are slower on several threads
STRIDE = (
    4  # values of C from one solution to the next, of those that only lead to the one that is kept
)

Matrix = NDArray[np.float64]


def stratified_folds(y: NDArray[Any], seed: int) -> list[tuple[Rows, Rows]]:
    """Split samples of classes y (N,) as `linear-lbfgs` does: (fit, held), k times.

    k = min(5, the smallest class of two or more). A sample that is alone in its class is fitted on in every
    fold. Where every sample is, there is no fold.
    """
    _, encoded, counts = np.unique(y, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[encoded] > 1)
    if not len(several):
        return []
    alone = np.flatnonzero(counts[encoded] == 1)
    splitter = StratifiedKFold(
        min(5, int(counts[counts > 1].min())), shuffle=True, random_state=seed
    )
    splits = splitter.split(np.zeros(len(several)), encoded[several])
    return [(np.sort(np.append(several[fit], alone)), several[held]) for fit, held in splits]


class LogisticProbe(Logits, ProductHead, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Protocol `linear-lbfgs`: logistic regression, L2, intercept free, features standardised, C chosen.

    The objective is scikit-learn's, C * (sum of log-losses) + ||W||^2 / 2. C is chosen by the accuracy
    on validation samples, or of `stratified_folds`, ties to the smaller C; where each class has a single
    sample C is 1 (`search_` is then "fixed"). Then it is refitted on all samples, those of validation too.

    Args:
        Cs: the grid; the protocol's if not given.
        standardize: give each feature mean 0 and deviation 1 on the training samples; else centre only.
        precomputed: X holds inner products, of N training samples (N, N) and of others with them (M, N), of
            features standardised already.
        seed: of the folds; 0 if not given.
        tol: how far above its minimum the final objective may stay, as a fraction of it (by the Newton
            decrement); 1e-6 at most while C is chosen.
        max_iter: Newton steps for each C.

    Attributes:
        classes_: the classes (K,), in the order of `class_scores`.
        C_: the one that was chosen.
        search_: how: "validation", "k-fold" or "fixed".
        cv_scores_: the accuracy of each C of the grid; NaN where it is fixed.
        n_iter_: Newton steps in all.

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> round(LogisticProbe().fit(X, y).score(X, y), 2)
        0.98
    """

    version: ClassVar[int] = 2
    refits: ClassVar[bool] = True

    def __init__(
        self,
        *,
        Cs: ArrayLike | None = None,
        standardize: bool = True,
        precomputed: bool = False,
        seed: int | None = None,
        tol: float = 1e-8,
        max_iter: int = 30,
    ) -> None:
        self.Cs = Cs
        self.standardize = standardize
        self.precomputed = precomputed
        self.seed = seed
        self.tol = tol
        self.max_iter = max_iter

    def __sklearn_tags__(self) -> Any:
        """Say whether X is pairwise."""
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.precomputed
        return tags

    @property
    def scaling(self) -> Scaling:
        """Standardised, or centred alone."""
        return "standardised" if self.standardize else "centred"

    def choosing_folds(self, y: NDArray[Any]) -> list[tuple[Rows, Rows]]:
        """Return the folds that C is chosen on, if it is."""
        several = self.Cs is None or np.size(np.asarray(self.Cs)) > 1
        return stratified_folds(y, self.seed or 0) if several else []

    def fit_judged(
        self,
        X: Any,
        y: Any,
        validation: tuple[Any, Any] | None = None,
        folds: Sequence[Fold] | None = None,
        both: Matrix | None = None,
    ) -> float | None:
        """Fit, and return the accuracy by which C was chosen; None where it was not."""
        self.fit(X, y, validation, folds, both)
        return None if self.search_ == "fixed" else float(self.cv_scores_.max())

    def fit(
        self,
        X: Any,
        y: Any,
        validation: tuple[Any, Any] | None = None,
        folds: Sequence[Fold] | None = None,
        both: Matrix | None = None,
    ) -> LogisticProbe:
        """Fit on X (N, D), y (N,), and on validation samples too once C is chosen.

        Args:
            X: features; precomputed, inner products (N, N).
            y: classes (N,).
            validation: samples (M, D), precomputed (M, N), and classes (M,) to choose C on.
            folds: precomputed alone: to choose C on, each standardised by itself. Without them the folds are
                parts of X, scaled as it is.
            both: precomputed and with validation alone: inner products (N + M, N + M) of all these samples,
                standardised by all of them. What is asked later is then products with all of them.

        Raises:
            ValueError: NaN, other shapes, a single class, a class that is in `validation` alone, or a
                parameter that is none.

        Warns:
            ConvergenceWarning: `max_iter` steps did not reach `tol`.
        """
        grid = np.sort(C_GRID if self.Cs is None else parameters.grid("Cs", self.Cs))
        parameters.flag("standardize", self.standardize)
        parameters.flag("precomputed", self.precomputed)
        seed = parameters.seed(self.seed)
        parameters.positive("tol", self.tol)
        parameters.whole("max_iter", self.max_iter)
        X, y, self.classes_, encoded = _check(self, X, y)
        self.search_, self.C_ = "fixed", float(grid[0]) if len(grid) == 1 else 1.0
        self.cv_scores_ = np.full(len(grid), np.nan)
        index = None
        parts: Sequence[Callable[[], _Part]] = []
        if validation is not None:
            held, truth = self._check_validation(*validation)
            if len(grid) > 1:
                self.search_ = "validation"
                parts = [partial(self._part, X, encoded, held, truth)]
        elif len(grid) > 1 and (splits := stratified_folds(encoded, seed)):
            self.search_ = "k-fold"
            parts = self._folds(X, encoded, splits, folds)
        if parts:
            self.cv_scores_ = self._accuracies(parts, grid)
            index = int(np.argmax(self.cv_scores_))
            self.C_ = float(grid[index])
        if validation is not None:
            X, encoded = self._with_validation(X, held, both), np.append(encoded, truth)
        self._reduced = _Reduced(X, self.standardize, self.precomputed)
        path = LogisticPath(self._reduced.Z[None], encoded[None], len(self.classes_))
        leading = [] if index is None else grid[:index][::-STRIDE][::-1].tolist()
        few = self._reduced.Z.size * len(self.classes_) < SMALL
        with blas_threads(1 if few else None):
            for C in leading:
                path.solve(C, max(self.tol, ON_THE_WAY), self.max_iter)
            weights = path.solve(self.C_, self.tol, self.max_iter, final=True).weights[0]
        self._weights, self.intercept_ = weights[:-1], weights[-1]
        self.n_iter_ = path.steps
        self._warn(path.unconverged)
        return self

    def _check_validation(self, X: Any, y: Any) -> tuple[NDArray[Any], Rows]:
        """Return samples (M, ...), and their classes as numbers (M,)."""
        X, y = validated(self, X, y, dtype=[np.float32, np.float64], reset=False)
        return X, numbers_of(y, self.classes_)

    def _with_validation(self, X: NDArray[Any], held: NDArray[Any], both: Any) -> NDArray[Any]:
        """Return all samples that the head is fitted on at last."""
        if not self.precomputed:
            return np.concatenate([X, held])
        size = len(X) + len(held)
        if np.shape(both) != (size, size):
            raise ValueError(
                f"both: expected inner products ({size}, {size}) of the training and validation samples, "
                f"found {'none' if both is None else np.shape(both)}"
            )
        self.n_features_in_ = size
        return np.asarray(both)

    def _part(self, X: NDArray[Any], y: Rows, held: NDArray[Any], truth: Rows) -> _Part:
        """Reduce samples to fit on, and project those held back."""
        reduced = _Reduced(X, self.standardize, self.precomputed)
        return _Part(reduced.Z, y, reduced.project(held), truth)

    def _folds(
        self,
        X: NDArray[Any],
        y: Rows,
        splits: Sequence[tuple[Rows, Rows]],
        folds: Sequence[Fold] | None,
    ) -> list[Callable[[], _Part]]:
        """Return what makes each fold."""
        if self.precomputed and folds is None:
            folds = [Fold(fit, held, X[:, fit]) for fit, held in splits]
        if folds is not None:
            return [
                partial(self._part, of.inner[of.fit], y[of.fit], of.inner[of.held], y[of.held])
                for of in folds
            ]
        return [partial(self._part, X[fit], y[fit], X[held], y[held]) for fit, held in splits]

    def _accuracies(
        self, parts: Sequence[Callable[[], _Part]], grid: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the accuracy at each C among all that is held back; parts are solved beside each other."""
        tol = max(self.tol, ON_THE_WAY)

        def count(make: Callable[[], _Part]) -> tuple[NDArray[np.intp], int, list[float]]:
            part = make()
            path = LogisticPath(part.Z[None], part.y[None], len(self.classes_))
            right = []
            for C in grid:
                weights = path.solve(C, tol, self.max_iter).weights[0]
                predicted = (part.held @ weights[:-1] + weights[-1]).argmax(axis=1)
                right.append(np.sum(predicted == part.truth))
            return np.array(right), len(part.truth), path.unconverged

        if len(parts) == 1:
            counted = [count(parts[0])]
        else:
            with one_thread_each() as workers:
                counted = list(workers.map(count, parts))
        self._warn([C for *_, missed in counted for C in missed])
        right = np.sum([number for number, *_ in counted], axis=0)
        return np.asarray(right / sum(size for _, size, _ in counted))

    def _warn(self, unconverged: Sequence[float]) -> None:
        for C in unconverged:
            warnings.warn(
                f"no convergence in {self.max_iter} Newton steps at C = {C:g}; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=4,
            )

    def class_scores(self, X: Any) -> Matrix:
        """Return logits (N, K), columns in the order of `classes_`."""
        check_is_fitted(self)
        X = validated(self, X, dtype=[np.float32, np.float64], reset=False)
        scores: Matrix = self._reduced.project(X) @ self._weights + self.intercept_
        return scores


class _Ridge(ProductHead, BaseEstimator):  # type: ignore[misc]
    """Multi-output ridge regression, its penalty by generalised cross-validation."""

    decomposes: ClassVar[bool] = True

    def __init__(
        self,
        *,
        alphas: ArrayLike | None = None,
        standardize: bool = True,
        precomputed: bool = False,
    ) -> None:
        self.alphas = alphas
        self.standardize = standardize
        self.precomputed = precomputed

    def __sklearn_tags__(self) -> Any:
        """Say whether X is pairwise."""
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.precomputed
        return tags

    @property
    def scaling(self) -> Scaling:
        """Standardised, or centred alone."""
        return "standardised" if self.standardize else "centred"

    def _grid(self) -> Matrix:
        """Return the grid of penalties.

        Raises:
            ValueError: a parameter that is none.
        """
        parameters.flag("standardize", self.standardize)
        parameters.flag("precomputed", self.precomputed)
        return ALPHAS if self.alphas is None else parameters.grid("alphas", self.alphas)

    def _solve(
        self, X: NDArray[Any], targets: Matrix, spectrum: Spectrum | None, grid: Matrix
    ) -> None:
        """Fit samples X to targets (N, K), each K with the same penalty, of the `grid`."""
        _expect_squares(targets)
        self._reduced = _Reduced(X, self.standardize, self.precomputed, spectrum)
        Z = self._reduced.Z
        squares = (Z**2).sum(axis=0)  # the columns are orthogonal, and each has mean 0
        U = Z / np.sqrt(np.where(squares > 0, squares, 1))
        self.intercept_ = targets.mean(axis=0)
        loads = U.T @ (targets - self.intercept_)
        alphas = grid * max(squares.sum() / len(Z), 1e-300)
        shrinks = squares[:, None] / (squares[:, None] + alphas)
        leverages = 1 / len(Z) + (U**2) @ shrinks
        smallest = np.inf
        at_once = max(1, BLOCK_BYTES // targets.nbytes)
        for start in range(0, len(alphas), at_once):  # one product for several is faster
            some = range(start, min(start + at_once, len(alphas)))
            fits = U @ np.concatenate([shrinks[:, [i]] * loads for i in some], axis=1)
            for i, fitted in zip(some, np.split(fits, len(some), axis=1), strict=True):
                left = leverages[:, [i]]
                left_out = (fitted + self.intercept_ - left * targets) / (1 - left)
                error = float(((targets - left_out) ** 2).mean())
                if error < smallest:
                    smallest, self.alpha_, self._left_out = error, float(alphas[i]), left_out
        centred = targets - self.intercept_
        self._weights = (Z.T @ centred) / (squares + self.alpha_)[:, None]

    def _predicted(self, X: Any) -> Matrix:
        check_is_fitted(self)
        X = validated(self, X, dtype=[np.float32, np.float64], reset=False)
        return np.asarray(self._reduced.project(X) @ self._weights + self.intercept_)


class Ridge(ScoresClasses, ClassifierMixin, _Ridge):  # type: ignore[misc]
    """Protocol `ridge`: multi-output ridge regression of +1 and -1, penalty by generalised cross-validation.

    What scikit-learn's `RidgeCV` finds (Golub, Heath and Wahba 1979; its leave-one-out form), one penalty for
    all classes: the one of the smallest leave-one-out squared error.

    Args:
        alphas: the grid of penalties, 17 from 1e-4 to 1e4 if not given; each is multiplied by the mean
            squared length of the training samples (the number of dimensions, where features are
            standardised), so that it stands for the same strength whatever that is.
        standardize: give each feature mean 0 and deviation 1 on the training samples; else centre only.
        precomputed: X holds inner products, of N training samples (N, N) and of others with them (M, N), of
            features standardised already.

    Attributes:
        classes_: the classes (K,), in the order of `class_scores`.
        alpha_: the penalty that was found.

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> Ridge().fit(X, y).predict(X[:2])
        array([0, 0])
    """

    version: ClassVar[int] = 2

    def fit(self, X: Any, y: Any, spectrum: Spectrum | None = None) -> Ridge:
        """Fit on X (N, D), precomputed (N, N), and y (N,).

        Args:
            X: features or inner products.
            y: classes.
            spectrum: of precomputed samples, where it is known.

        Raises:
            ValueError: NaN, other shapes, a single class, or a parameter that is none.
        """
        grid = self._grid()
        X, y, self.classes_, encoded = _check(self, X, y)
        targets = np.where(np.eye(len(self.classes_), dtype=bool)[encoded], 1.0, -1.0)
        self._solve(X, targets, spectrum, grid)
        return self

    def fit_judged(
        self,
        X: Any,
        y: Any,
        validation: tuple[Any, Any] | None = None,
        folds: Sequence[Fold] | None = None,
        spectrum: Spectrum | None = None,
    ) -> float | None:
        """Fit, and return the accuracy on validation samples, else of each sample left out."""
        self.fit(X, y, spectrum)
        if validation is not None:
            return float(self.score(*validation))
        return left_out_accuracy(self, y)

    def leave_one_out(self) -> NDArray[Any]:
        """Predict each sample from the others: how to choose a layer on training data."""
        check_is_fitted(self)
        return np.asarray(self.classes_[self._left_out.argmax(axis=1)])

    def class_scores(self, X: Any) -> Matrix:
        """Return the regressions' values (N, K), columns in the order of `classes_`."""
        return self._predicted(X)


class RidgeRegressor(RegressorMixin, _Ridge):  # type: ignore[misc]
    """Ridge regression of a number, its penalty found as that of `Ridge`.

    Args:
        alphas: as of `Ridge`.
        standardize: as of `Ridge`.
        precomputed: as of `Ridge`.

    Attributes:
        alpha_: the penalty that was found.

    Examples:
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True)
        >>> round(RidgeRegressor().fit(X, y).score(X, y), 2)
        0.52
    """

    def fit(self, X: Any, y: Any, spectrum: Spectrum | None = None) -> RidgeRegressor:
        """Fit on X (N, D), precomputed (N, N), and numbers y (N,); `spectrum` as of `Ridge.fit`.

        Raises:
            ValueError: NaN, other shapes, or a parameter that is none.
        """
        grid = self._grid()
        X, y = validated(
            self, X, y, dtype=[np.float32, np.float64], ensure_min_samples=2, y_numeric=True
        )
        targets = y[:, None].astype(np.float64)
        if not np.isfinite(targets).all():  # as of None, which scikit-learn lets pass
            raise ValueError("y: expected finite numbers, found NaN or infinity")
        if self.precomputed and X.shape[0] != X.shape[1]:
            raise ValueError(f"expected inner products (N, N), found {X.shape}")
        self._solve(X, targets, spectrum, grid)
        return self

    def fit_judged(
        self,
        X: Any,
        y: Any,
        validation: tuple[Any, Any] | None = None,
        folds: Sequence[Fold] | None = None,
        spectrum: Spectrum | None = None,
    ) -> float | None:
        """Fit, and return R2 on validation samples, else of each sample left out."""
        self.fit(X, y, spectrum)
        if validation is not None:
            return float(self.score(*validation))
        return float(1 - ((self._left_out[:, 0] - y) ** 2).mean() / max(np.var(y), 1e-300))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return numbers (N,)."""
        return self._predicted(X)[:, 0]


class GroupedRidge:
    """Ridge regressions of samples X (N, D) in groups (N,), each group left out once to find the penalty.

    One penalty for all targets: of the grid `ALPHAS`, as in `Ridge`, the one of the smallest squared error of
    what is left out. Exact without fitting anew: with the hat matrix H of all samples, the errors of a group
    g are (I - H_gg)^-1 times its residuals.

    Args:
        X: training samples.
        groups: as numbers, such as those of people; two at least.
        others: samples (M, D) to predict.
    """

    version: ClassVar[int] = 1
    """Raised whenever what it computes changes, so that no score of the earlier one is taken for its own."""

    def __init__(self, X: NDArray[Any], groups: NDArray[Any], others: NDArray[Any]) -> None:
        spectrum = Spectrum.of(X)
        self._squares = spectrum.values
        lengths = np.sqrt(self._squares)
        self._U = spectrum.project_samples(X) / lengths
        self._others = spectrum.project(others) * lengths
        self._alphas = ALPHAS * max(self._squares.sum() / len(X), 1e-300)
        self._members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        self._inverses = [
            [np.linalg.inv(np.eye(len(own)) - self._hat(own, alpha)) for own in self._members]
            for alpha in self._alphas
        ]

    def _hat(self, own: Rows, alpha: float) -> Matrix:
        """Return the block of the hat matrix of some samples."""
        shrink = self._squares / (self._squares + alpha)
        return 1 / len(self._U) + (self._U[own] * shrink) @ self._U[own].T

    def solve(self, targets: Matrix) -> tuple[Matrix, Matrix]:
        """Predict targets (N, K): of the other samples (M, K), and of each group from the others (N, K)."""
        _expect_squares(targets)
        U, squares = self._U, self._squares
        mean = targets.mean(axis=0)
        loads = U.T @ (targets - mean)
        smallest = np.inf
        for alpha, inverses in zip(self._alphas, self._inverses, strict=True):
            shrink = squares / (squares + alpha)
            residuals = targets - mean - U @ (shrink[:, None] * loads)
            errors = np.empty_like(residuals)
            for own, inverse in zip(self._members, inverses, strict=True):
                errors[own] = inverse @ residuals[own]
            if (error := float((errors**2).mean())) < smallest:
                smallest, left_out, best = error, targets - errors, alpha
        return mean + self._others @ (loads / (squares + best)[:, None]), left_out


def _expect_squares(targets: Matrix) -> None:
    """Refuse targets whose squared errors float64 does not hold.

    Raises:
        ValueError: says what is too large, or too small.
    """
    if why := beyond_squares(targets):
        raise ValueError(f"y: {why}")


def beyond_squares(targets: NDArray[np.float64]) -> str:
    """Say why float64 does not hold squared errors of targets (N,) or (N, K); empty where it does.

    >>> beyond_squares(np.array([0, 1e200])), beyond_squares(np.array([0, 1e-200]))
    ('expected numbers below 1e+150, found 1e+200; divide them', \
'expected numbers that differ by 1e-140 and more, found a range of 1e-200; multiply them')
    >>> beyond_squares(np.zeros(3)), beyond_squares(np.array([0, 1e-300, 1]))
    ('', '')
    """
    if (largest := float(np.abs(targets).max(initial=0))) > LARGEST:
        return f"expected numbers below {LARGEST:g}, found {largest:g}; divide them"
    ranges = np.atleast_1d(np.ptp(targets, axis=0))
    if (small := (ranges > 0) & (ranges < SMALLEST)).any():
        return (
            f"expected numbers that differ by {SMALLEST:g} and more, found a range of "
            f"{ranges[small][0]:g}; multiply them"
        )
    return ""


def apart_from_others(values: Sequence[NDArray[Any]]) -> str:
    """Say which values stand several times, farther from all others than they lie apart; empty if none.

    So are codes written for what is not known, as -999 among ages, or -998 and -999. One that stands once is
    a code where it is written with nines alone. Of few other values each may be a level, as of doses that
    double, so that a code must be ten times as far; beside two it must be of nines too. Values that are one
    but for rounding count once.

    Args:
        values: of any shapes, taken together; NaN and infinity count for nothing.

    >>> apart_from_others([np.array([23, 999, 41.5]), np.array([888, 999, np.nan, 67])])
    '888 and 999 stand 3 times, far from all others (23 to 67)'
    >>> apart_from_others([np.array([1, 2, 4, 8, 8])])
    ''
    """
    values = [part for part in values if part.size]
    # Looked for first among some values, as all are many.
    some = [part.ravel()[:: max(1, len(values) * part.size // SAMPLED)] for part in values]
    ends = [np.fmin.reduce(part, axis=None) for part in values]
    ends += [np.fmax.reduce(part, axis=None) for part in values]
    if not _beyond(_distinct([*some, np.array(ends, np.float64)])):
        return ""
    others, codes = _distinct(values), list[float]()
    while more := _beyond(others):  # as codes on one side may hide others
        others, codes = np.setdiff1d(others, more), sorted([*codes, *more])
    counts = [sum(int((part == code).sum()) for part in values) for code in codes]
    if not codes or (max(counts) < 2 and not _are_nines(codes)):
        return ""
    listed = " and ".join(f"{code:.9g}" for code in codes)
    stand = (
        f"stands {counted(sum(counts), 'time')}"
        if len(codes) == 1
        else f"stand {sum(counts)} times"
    )
    return f"{listed} {stand}, far from all others ({others[0]:g} to {others[-1]:g})"


def _distinct(values: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Return the distinct values of some arrays, in order: of many those at both ends alone."""
    found = np.zeros(0)
    for part in values:
        found = np.union1d(found, part[np.isfinite(part)])
        if step := ROUNDING * min(1.0, float(np.abs(found).max(initial=0))):
            with np.errstate(over="ignore"):  # values that differ by less than a step count once
                found = found[np.unique(np.round(found / step), return_index=True)[1]]
        if len(found) > 4 * LEVELS:
            found = np.r_[found[: 2 * LEVELS], found[-2 * LEVELS :]]
    return found.astype(np.float64)


def _beyond(distinct: NDArray[np.float64]) -> list[float]:
    """Return the fewest of some values, in order, that lie far beyond all others; none if there are none."""
    for low, high in sorted(product(range(MOST_CODES + 1), repeat=2), key=sum)[1:]:
        first, last = low, len(distinct) - 1 - high
        kinds = last - first + 1
        if kinds < 2:
            continue
        codes = [*distinct[:first].tolist(), *distinct[last + 1 :].tolist()]
        least = (distinct[last] - distinct[first]) * (1 if kinds > LEVELS else LEVELS)
        far = not low or distinct[first] - distinct[first - 1] >= least
        far &= not high or distinct[last + 1] - distinct[last] >= least
        if far and (kinds > 2 or _are_nines(codes)):
            return codes
    return []


def _are_nines(codes: Sequence[float]) -> bool:
    return all(NINES.fullmatch(f"{code:.15g}") for code in codes)


def _check(head: Any, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], Rows]:
    """Return X (N, D), y (N,), the classes and y as their numbers."""
    X, y = validated(head, X, y, dtype=[np.float32, np.float64], ensure_min_samples=2)
    classes, encoded = classes_of(y)
    if len(classes) < 2:
        raise ValueError("expected samples of at least 2 classes, found 1 class")
    if head.precomputed and X.shape[0] != X.shape[1]:
        raise ValueError(f"expected inner products (N, N), found {X.shape}")
    return X, y, classes, encoded


class _Reduced:
    """Training samples, standardised, centred and rotated into the r dimensions they span: Z (N, r).

    The columns of Z are orthogonal.
    """

    def __init__(
        self,
        X: NDArray[Any],
        standardize: bool,
        precomputed: bool,
        spectrum: Spectrum | None = None,
    ) -> None:
        self._scaling: tuple[Matrix, Matrix] | None = None
        if precomputed:
            self._spectrum = spectrum or Spectrum.of_products(X)
        else:
            self._scaling = centre_and_scale(X, standardize)
            X = self._scaled(X)
            self._spectrum = Spectrum.of(X)
        self.Z = self._spectrum.project_samples(X)

    def project(self, X: NDArray[Any]) -> Matrix:
        """Map samples (M, D), precomputed (M, N), to (M, r)."""
        return self._spectrum.project(X if self._scaling is None else self._scaled(X))

    def _scaled(self, X: NDArray[Any]) -> Matrix:
        assert self._scaling is not None
        mean, scale = self._scaling
        return np.asarray((X - mean) / scale)


class _Part(NamedTuple):
    """Samples Z (N, r) of classes y (N,) to fit on, and those held back (M, r) with their classes (M,)."""

    Z: Matrix
    y: Rows
    held: Matrix
    truth: Rows
