"""Protocol `linear-lbfgs`: multinomial logistic regression with the DINOv2 grid of C, solved exactly fast.

N samples, D features, K classes, r = rank. An L2-regularised linear head depends on the features only
through their Gram matrix, so with D > N the standardised features are first rotated, without loss,
into the r <= N dimensions they span.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

C_GRID = 10 ** np.linspace(-6, 5, 45)  # DINOv2, eval/log_regression.py

Matrix = NDArray[np.float64]


class LinearLBFGS(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression, L2, intercept free, features standardised, C chosen on training data.

    The objective is scikit-learn's, C * (sum of log-losses) + ||W||^2 / 2. C is chosen by the accuracy
    of a seeded stratified k-fold, k = min(5, smallest class), ties to the smaller C; with one
    sample a class C is 1 (`search_` is then "fixed"). Then it is refitted on all samples.

    Args:
        Cs: the grid, ascending.
        standardize: give each feature mean 0 and deviation 1 on the training samples; else centre only.
        seed: of the folds.
        tol: largest gradient entry of the mean objective at which a solution counts as converged.
        max_iter: iterations for each C.
    """

    def __init__(
        self,
        *,
        Cs: ArrayLike = C_GRID,
        standardize: bool = True,
        seed: int = 0,
        tol: float = 1e-7,
        max_iter: int = 2000,
    ) -> None:
        self.Cs = Cs
        self.standardize = standardize
        self.seed = seed
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> LinearLBFGS:
        """Fit on X (N, D), y (N,).

        Raises:
            ValueError: NaN, other shapes, or a single class.
        """
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, encoded = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("expected samples of at least 2 classes, found 1 class")
        grid = np.sort(np.asarray(self.Cs, dtype=np.float64).ravel())
        folds = min(5, int(np.bincount(encoded).min()))
        self.search_ = "fixed" if folds < 2 or len(grid) == 1 else "k-fold"
        if self.search_ == "fixed":
            self.C_ = float(grid[0]) if len(grid) == 1 else 1.0
            self.cv_scores_ = np.full(len(grid), np.nan)
        else:
            splitter = StratifiedKFold(folds, shuffle=True, random_state=self.seed)
            correct = np.zeros(len(grid))
            for fit, held in splitter.split(X, encoded):
                reduced = _Reduced(X[fit], self.standardize)
                scores = reduced.path(
                    _one_hot(encoded[fit], len(self.classes_)), grid, 1e-4, self.max_iter
                )
                Z = reduced.project(X[held])
                correct += [((Z @ W + b).argmax(axis=1) == encoded[held]).sum() for W, b in scores]
            self.cv_scores_ = correct / len(y)
            self.C_ = float(grid[np.argmax(self.cv_scores_)])
        self._reduced = _Reduced(X, self.standardize)
        warm = grid[grid < self.C_][-3:]
        *_, (self._weights, self.intercept_) = self._reduced.path(
            _one_hot(encoded, len(self.classes_)), np.append(warm, self.C_), self.tol, self.max_iter
        )
        return self

    def class_scores(self, X: Any) -> Matrix:
        """Return logits (N, K), columns in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        scores: Matrix = self._reduced.project(X) @ self._weights + self.intercept_
        return scores

    def decision_function(self, X: Any) -> Matrix:
        """Return logits (N, K); of two classes, their difference (N,)."""
        scores = self.class_scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> Matrix:
        """Return class probabilities (N, K)."""
        return _softmax(self.class_scores(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each sample, (N,)."""
        return np.asarray(self.classes_[self.class_scores(X).argmax(axis=1)])


class _Reduced:
    """Training features, standardised and rotated into the dimensions they span."""

    def __init__(self, X: NDArray[Any], standardize: bool) -> None:
        self.mean = X.mean(axis=0, dtype=np.float64)
        deviation = X.std(axis=0, dtype=np.float64)
        constant = deviation <= 1e-10 * np.maximum(np.abs(self.mean), 1)
        self.scale = np.where(constant | (not standardize), 1.0, deviation)
        A = (X - self.mean) / self.scale
        if A.shape[1] > len(A):
            values, vectors = np.linalg.eigh(A @ A.T)
            keep = values > 1e-12 * max(values[-1], 1e-300)
            length = np.sqrt(values[keep])
            self.basis = A  # the span's axes are A.T @ rotation, (D, r), which is never made
            self.rotation = vectors[:, keep] / length
            self.Z = vectors[:, keep] * length
        else:
            self.basis = np.eye(A.shape[1])
            _, self.rotation = np.linalg.eigh(A.T @ A)
            self.Z = A @ self.rotation

    def project(self, X: NDArray[Any]) -> Matrix:
        """Map samples (N, D) to (N, r)."""
        Z: Matrix = ((X - self.mean) / self.scale) @ self.basis.T @ self.rotation
        return Z

    def path(
        self, Y: Matrix, grid: NDArray[np.float64], tol: float, max_iter: int
    ) -> list[tuple[Matrix, Matrix]]:
        """Solve for each C of an ascending grid, each from the last one's solution: [(W, b)]."""
        n, r = self.Z.shape
        k = Y.shape[1]
        energy = np.append((self.Z**2).sum(axis=0), n)
        A = np.column_stack([self.Z, np.ones(n)])
        W = np.zeros((r + 1, k))
        threads = 1 if A.size < 250_000 else None  # small products are 10 times slower on two
        solutions = []
        for C in grid:
            # The columns of Z are orthogonal, so the Hessian's diagonal is a good preconditioner.
            penalty = np.append(np.ones(r), 0.0)[:, None] / (C * n)
            root = np.sqrt(energy[:, None] / n / k + penalty)

            def objective(
                v: Matrix, root: Matrix = root, penalty: Matrix = penalty
            ) -> tuple[float, Matrix]:
                W = v.reshape(r + 1, k) / root
                logits = A @ W
                shift = logits.max(axis=1, keepdims=True)
                e = np.exp(logits - shift)
                total = e.sum(axis=1, keepdims=True)
                loss = (np.log(total) + shift - (logits * Y).sum(axis=1, keepdims=True)).mean()
                gradient = A.T @ (e / total - Y) / n + penalty * W
                return loss + 0.5 * (penalty * W**2).sum(), (gradient / root).ravel()

            with threadpool_limits(threads):
                found = minimize(
                    objective,
                    (W * root).ravel(),
                    jac=True,
                    method="L-BFGS-B",
                    options={"maxiter": max_iter, "gtol": tol, "ftol": 1e-15, "maxcor": 10},
                )
            W = found.x.reshape(r + 1, k) / root
            solutions.append((W[:-1], W[-1]))
        return solutions


def _one_hot(y: NDArray[Any], k: int) -> Matrix:
    return np.eye(k)[y]


def _softmax(logits: Matrix) -> Matrix:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))
