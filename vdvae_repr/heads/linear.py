"""Linear heads: protocols `linear-lbfgs` and `ridge`.

`linear-lbfgs` is multinomial logistic regression with the DINOv2 grid of C, solved exactly fast.

N samples, D features, K classes, r = rank. An L2-regularised linear head depends on the features only
through their Gram matrix, so with D > N the standardised features are first rotated, without loss,
into the r <= N dimensions they span. There a truncated Newton method follows the optimum from C to C. The
protocol is named after the solver of its source; the optimum is one and the same, whatever finds it.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

C_GRID = 10 ** np.linspace(-6, 5, 45)  # DINOv2, eval/log_regression.py
ALPHAS = 10 ** np.linspace(-4, 4, 17)  # a feature, standardised
# Of the truncated Newton method: the residual that conjugate gradients leave, in the preconditioned norm.
FORCING = 0.3
FINAL_FORCING = 0.01  # so that the decrement bounds how far the final objective is from its minimum
MOST_PRODUCTS = 200  # with the Hessian, a step
SMALL = 10_000_000  # samples x dimensions x classes
ON_THE_WAY = 1e-6  # tol of the solutions that choose C, or only lead to it

Matrix = NDArray[np.float64]


class LinearLBFGS(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression, L2, intercept free, features standardised, C chosen on training data.

    The objective is scikit-learn's, C * (sum of log-losses) + ||W||^2 / 2. C is chosen by the accuracy
    on validation samples, or of a seeded stratified k-fold, k = min(5, smallest class), ties to the
    smaller C; with one sample a class C is 1 (`search_` is then "fixed"). Then it is refitted on all samples.

    Args:
        Cs: the grid; the protocol's if not given.
        standardize: give each feature mean 0 and deviation 1 on the training samples; else centre only.
        seed: of the folds.
        tol: how far above its minimum the final objective may stay, as a fraction of it (by the Newton
            decrement); 1e-6 at most while C is chosen.
        max_iter: Newton steps for each C.
    """

    def __init__(
        self,
        *,
        Cs: ArrayLike | None = None,
        standardize: bool = True,
        seed: int = 0,
        tol: float = 1e-8,
        max_iter: int = 30,
    ) -> None:
        self.Cs = Cs
        self.standardize = standardize
        self.seed = seed
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, validation: tuple[Any, Any] | None = None) -> LinearLBFGS:
        """Fit on X (N, D), y (N,); choose C on validation, samples (M, D) and classes (M,), if given.

        Raises:
            ValueError: NaN, other shapes, a single class, or a class that is in `validation` alone.

        Warns:
            ConvergenceWarning: `max_iter` steps did not reach `tol`.
        """
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, encoded = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("expected samples of at least 2 classes, found 1 class")
        grid = np.sort(np.asarray(C_GRID if self.Cs is None else self.Cs, dtype=np.float64).ravel())
        folds = min(5, int(np.bincount(encoded).min()))
        if len(grid) == 1 or (validation is None and folds < 2):
            self.search_ = "fixed"
            self.C_ = float(grid[0]) if len(grid) == 1 else 1.0
            self.cv_scores_ = np.full(len(grid), np.nan)
        elif validation is not None:
            self.search_ = "validation"
            held, truth = validate_data(
                self, *validation, dtype=[np.float32, np.float64], reset=False
            )
            if not np.isin(truth, self.classes_).all():
                raise ValueError("expected classes of validation among those of y, found others")
            found = np.searchsorted(self.classes_, truth)
            self.cv_scores_ = self._correct(X, encoded, held, found, grid) / len(truth)
            self.C_ = float(grid[np.argmax(self.cv_scores_)])
        else:
            self.search_ = "k-fold"
            splitter = StratifiedKFold(folds, shuffle=True, random_state=self.seed)
            correct = np.zeros(len(grid))
            for fit, held in splitter.split(X, encoded):
                correct += self._correct(X[fit], encoded[fit], X[held], encoded[held], grid)
            self.cv_scores_ = correct / len(y)
            self.C_ = float(grid[np.argmax(self.cv_scores_)])
        self._reduced = _Reduced(X, self.standardize)
        up_to = grid[grid <= self.C_] if self.search_ != "fixed" else np.array([self.C_])
        *_, (self._weights, self.intercept_) = self._reduced.path(
            encoded, len(self.classes_), up_to, self.tol, self.max_iter
        )
        self.n_iter_ = self._reduced.steps  # of the final path
        return self

    def _correct(
        self,
        X: NDArray[Any],
        y: NDArray[np.intp],
        held: NDArray[Any],
        truth: NDArray[np.intp],
        grid: NDArray[np.float64],
    ) -> Matrix:
        """Count what is right among samples held back, for each C."""
        reduced = _Reduced(X, self.standardize)
        Z = reduced.project(held)
        path = reduced.path(y, len(self.classes_), grid, ON_THE_WAY, self.max_iter)
        return np.array([((Z @ W + b).argmax(axis=1) == truth).sum() for W, b in path], dtype=float)

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
        best = self.class_scores(X).argmax(axis=1)
        return np.asarray(self.classes_[best])


class Ridge(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Protocol `ridge`: multi-output ridge regression of +1 and -1, penalty by generalised cross-validation.

    scikit-learn's `RidgeCV` on standardised features, one penalty for all classes: the one of the smallest
    leave-one-out squared error.

    Args:
        alphas: the grid of penalties, 17 from 1e-4 to 1e4 if not given; each is multiplied by the number D
            of dimensions, so that it stands for the same strength whatever D is.
        standardize: give each feature mean 0 and deviation 1 on the training samples; else centre only.
    """

    def __init__(self, *, alphas: ArrayLike | None = None, standardize: bool = True) -> None:
        self.alphas = alphas
        self.standardize = standardize

    def fit(self, X: Any, y: Any) -> Ridge:
        """Fit on X (N, D), y (N,).

        Raises:
            ValueError: NaN, other shapes, or a single class.
        """
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, encoded = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("expected samples of at least 2 classes, found 1 class")
        self._scaler = StandardScaler(with_std=self.standardize).fit(X.astype(np.float64))
        A = self._scaler.transform(X.astype(np.float64))
        targets = np.where(np.eye(len(self.classes_), dtype=bool)[encoded], 1.0, -1.0)
        grid = ALPHAS if self.alphas is None else self.alphas
        alphas = np.asarray(grid, dtype=np.float64) * A.shape[1]
        # With a scoring, RidgeCV keeps the leave-one-out predictions.
        search = RidgeCV(alphas, scoring="neg_mean_squared_error", store_cv_results=True)
        self._ridge = search.fit(A, targets)
        self.alpha_ = float(self._ridge.alpha_)
        best = int(np.flatnonzero(alphas == self._ridge.alpha_)[0])
        self._left_out = self._ridge.cv_results_[:, :, best]
        return self

    def leave_one_out(self) -> NDArray[Any]:
        """Predict each sample from the others: how to choose a layer on training data."""
        check_is_fitted(self)
        return np.asarray(self.classes_[self._left_out.argmax(axis=1)])

    def class_scores(self, X: Any) -> Matrix:
        """Return the regressions' values (N, K), columns in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        return np.asarray(self._ridge.predict(self._scaler.transform(X.astype(np.float64))))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class of the highest score, (N,)."""
        best = self.class_scores(X).argmax(axis=1)
        return np.asarray(self.classes_[best])


class _Reduced:
    """Training features, standardised and rotated into the dimensions they span."""

    def __init__(self, X: NDArray[Any], standardize: bool) -> None:
        self.mean = X.mean(axis=0, dtype=np.float64)
        deviation = X.std(axis=0, dtype=np.float64)
        self.steps = 0
        constant = deviation <= 1e-10 * np.maximum(np.abs(self.mean), 1)
        self.scale = np.where(constant | (not standardize), 1.0, deviation)
        A = (X - self.mean) / self.scale
        self.basis: Matrix | None = None
        if A.shape[1] > len(A):
            values, vectors = np.linalg.eigh(A @ A.T)
            keep = values > 1e-12 * max(values[-1], 1e-300)
            length = np.sqrt(values[keep])
            self.basis = A  # the span's axes are A.T @ rotation, (D, r), which is never made
            self.rotation = vectors[:, keep] / length
            self.Z = vectors[:, keep] * length
        else:
            _, self.rotation = np.linalg.eigh(A.T @ A)
            self.Z = A @ self.rotation

    def project(self, X: NDArray[Any]) -> Matrix:
        """Map samples (N, D) to (N, r)."""
        A = (X - self.mean) / self.scale
        Z: Matrix = (A if self.basis is None else A @ self.basis.T) @ self.rotation
        return Z

    def path(
        self, y: NDArray[np.intp], k: int, grid: NDArray[np.float64], tol: float, max_iter: int
    ) -> list[tuple[Matrix, Matrix]]:
        """Solve for each C of an ascending grid, classes y (N,) of k: [(weights (r, k), intercept (k,))].

        Newton's method (its step by preconditioned conjugate gradients, halved until the objective falls),
        started from the line through the last two solutions. Works on the objective divided by C * N.
        `tol` holds for the last C. Of large problems the Hessian is applied in float32, all else is float64.
        """
        n, r = self.Z.shape
        A = np.column_stack([self.Z, np.ones(n)])
        At = np.ascontiguousarray(A.T)
        small = A.size * k < SMALL
        precision = np.float64 if small else np.float32
        hessian = A.astype(precision), At.astype(precision)
        energy = (A**2).mean(axis=0)[:, None]
        samples = np.arange(n)

        def value(W: Matrix, logits: Matrix) -> tuple[float, Matrix]:
            shifted = logits - logits.max(axis=1, keepdims=True)
            P = np.exp(shifted)
            total = P.sum(axis=1, keepdims=True)
            loss = np.log(total).mean() - shifted[samples, y].mean()
            P /= total
            return float(loss + 0.5 * (penalty * W**2).sum()), P

        W = last_W = np.zeros((r + 1, k))
        logits = last_logits = np.zeros((n, k))
        solutions = []
        with threadpool_limits(1 if small else None):  # small products are slower on two threads
            for C in grid:
                last = grid[-1] == C
                goal, forcing = (tol, FINAL_FORCING) if last else (max(tol, ON_THE_WAY), FORCING)
                # Of two classes scikit-learn penalises w = W_1 - W_0 alone, ||w||^2 = 2 ||W||^2.
                strength = 1 / (C * n) if k > 2 else 2 / (C * n)
                penalty = np.append(np.full(r, strength), 0.0)[:, None]
                objective, P = value(W, logits)
                ahead = 2 * W - last_W, 2 * logits - last_logits
                last_W, last_logits = W, logits
                guess, guess_P = value(*ahead)
                if guess < objective:
                    (W, logits), objective, P = ahead, guess, guess_P
                for _ in range(max_iter):
                    self.steps += 1
                    error = P.copy()
                    error[samples, y] -= 1
                    gradient = At @ error / n + penalty * W
                    # The columns of Z are orthogonal, so this is nearly the Hessian's diagonal.
                    diagonal = energy * (P * (1 - P)).mean() + penalty + 1e-12
                    step = _newton_step(*hessian, P, penalty, gradient, diagonal, forcing)
                    slope, along = float((gradient * step).sum()), A @ step
                    size = 1.0
                    while True:
                        moved = W + size * step, logits + size * along
                        new, new_P = value(*moved)
                        if new <= objective + 1e-4 * size * slope or size < 1e-8:
                            break
                        size /= 2
                    (W, logits), objective, P = moved, new, new_P
                    if abs(slope) / 2 <= goal * objective:
                        break
                else:
                    warnings.warn(
                        f"no convergence in {max_iter} Newton steps at C = {C:g}; raise max_iter or tol",
                        ConvergenceWarning,
                        stacklevel=4,
                    )
                solutions.append((W[:-1], W[-1]))
        return solutions


def _newton_step(
    A: NDArray[Any],
    At: NDArray[Any],
    P: Matrix,
    penalty: Matrix,
    gradient: Matrix,
    diagonal: Matrix,
    forcing: float,
) -> Matrix:
    """Solve Hessian @ step = -gradient to the precision that a Newton step is worth."""
    samples, top = np.arange(len(A)), P.argmax(axis=1)
    scale = np.abs(gradient).max() or 1.0
    p, decay, scaling = (x.astype(A.dtype) for x in (P, penalty, diagonal))
    residual = (-gradient / scale).astype(A.dtype)
    step = np.zeros_like(residual)
    z = residual / scaling
    direction = z.copy()
    energy = first = np.vdot(residual, z)
    if not first:  # at the minimum already
        return np.zeros_like(gradient)
    for _ in range(MOST_PRODUCTS):
        V = A @ direction
        V -= V[samples, top][:, None]  # else p * (V - pV) cancels where a class is nearly certain
        V -= np.einsum("nk,nk->n", p, V)[:, None]
        V *= p
        curved = At @ V
        curved /= len(A)
        curved += decay * direction
        size = energy / np.vdot(direction, curved)
        step += size * direction
        residual -= size * curved
        np.divide(residual, scaling, out=z)
        previous, energy = energy, np.vdot(residual, z)
        if energy <= forcing**2 * first:
            break
        direction *= energy / previous
        direction += z
    return step.astype(np.float64) * scale


def _softmax(logits: Matrix) -> Matrix:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))
