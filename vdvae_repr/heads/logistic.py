"""Multinomial logistic regression with an L2 penalty: a truncated Newton method in the samples' eigenbasis.

B problems at once, each of N samples, r dimensions and K classes. The columns of the samples Z (B, N, r)
are orthogonal and have mean 0, so that the Hessian is nearly diagonal, and conjugate gradients with that
diagonal take few products whatever the spectrum is. Where classes are nearly certain it is less so, as in few
dimensions that are not scaled: then the diagonal of each class is taken. Solutions are followed from C to C.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORCING = 0.3  # the residual that conjugate gradients leave, in the preconditioned norm
FINAL_FORCING = 0.01  # so that the decrement bounds how far the objective is from its minimum
MOST_PRODUCTS = 200  # with the Hessian, a step
MANY_PRODUCTS = (
    50  # in a step; from then on its diagonal is computed exactly, which costs a product
)
LARGE = 10_000_000  # samples x dimensions x classes, from which on products are taken in float32
ON_THE_WAY = 1e-6  # tolerance of solutions that choose C, or only lead to one

Matrix = NDArray[np.float64]
Labels = NDArray[np.intp]
Array = NDArray[Any]


@dataclass
class Optimum:
    """Weights and, in the last row, intercepts (B, r + 1, K); and the logits of the samples (B, N, K)."""

    weights: Matrix
    logits: Matrix

    def plus(self, other: Optimum, size: Matrix) -> Optimum:
        """Return this and `size` (B,) times another, problem by problem."""
        by = size[:, None, None]
        return Optimum(self.weights + by * other.weights, self.logits + by * other.logits)


@dataclass
class LogisticPath:
    """The optima of some problems from one C to another.

    Args:
        Z: samples (B, N, r), their columns orthogonal and of mean 0.
        y: classes (B, N), as numbers below K.
        classes: K.
        steps: Newton steps so far.
        unconverged: the values of C at which the steps allowed did not reach the tolerance.
    """

    Z: Matrix
    y: Labels
    classes: int
    steps: int = 0
    unconverged: list[float] = field(default_factory=list)
    _last: list[Optimum] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start from weights 0."""
        problems, n, r = self.Z.shape
        self._A = np.concatenate([self.Z, np.ones((problems, n, 1))], axis=2)
        large = n * r * self.classes >= LARGE
        self._fast = self._A.astype(np.float32) if large else self._A
        self._energy = (self._A**2).mean(axis=1)[..., None]
        self._mine = self.y[..., None] == np.arange(self.classes)
        self._samples = np.ix_(np.arange(problems), np.arange(n))
        self._products = 0  # with the Hessian in a step, the most so far
        zero = np.zeros((problems, r + 1, self.classes))
        self._last = [Optimum(zero, np.zeros((problems, n, self.classes)))]

    def solve(
        self, C: float, tol: float = ON_THE_WAY, max_iter: int = 30, *, final: bool = False
    ) -> Optimum:
        """Find the minimum of C * (sum of log-losses) + ||W||^2 / 2.

        Starts from the optimum of the last C, or further along the line through the last two, whichever is
        lower. Each Newton step is halved until the objective falls. Works on the objective divided by C * N.

        Args:
            C: the strength of the losses.
            tol: how far above the minimum the objective may stay, as a fraction of it, by the Newton
                decrement.
            max_iter: Newton steps.
            final: whether the solution is kept, and does not only choose C or lead to another: then all
                products but those with the Hessian are in float64, and steps are so exact that the decrement
                is a bound.
        """
        A, n = self._A if final else self._fast, self.Z.shape[1]
        # Of two classes scikit-learn penalises w = W_1 - W_0 alone, ||w||^2 = 2 ||W||^2.
        strength = (1 if self.classes > 2 else 2) / (C * n)
        penalty = np.append(np.full(self.Z.shape[2], strength), 0.0)[:, None]
        at = self._last[-1]
        objective, P = self._value(at, penalty)
        if len(self._last) > 1:
            gain = at.plus(self._last[-2], -np.ones(len(P)))
            guess, guess_P = self._value(at.plus(gain, np.ones(len(P))), penalty)
            lower = guess < objective
            at = at.plus(gain, lower.astype(np.float64))
            objective = np.where(lower, guess, objective)
            P = np.where(lower[:, None, None], guess_P, P)
        converged = np.zeros(len(P), dtype=bool)
        for _ in range(max_iter):
            self.steps += 1
            error = ((P - self._mine) / n).astype(A.dtype)
            gradient = A.transpose(0, 2, 1) @ error + penalty * at.weights
            # The columns of Z are orthogonal, so the first is nearly the Hessian's diagonal.
            if self._products < MANY_PRODUCTS:
                curvature = self._energy * (P * (1 - P)).mean(axis=(1, 2))[:, None, None]
            else:
                curvature = (A**2).transpose(0, 2, 1) @ (P * (1 - P) / n).astype(A.dtype)
            diagonal = curvature + penalty + 1e-12
            weights = self._step(
                P, penalty, gradient, diagonal, FINAL_FORCING if final else FORCING
            )
            step = Optimum(weights, (A @ weights.astype(A.dtype)).astype(np.float64))
            slope = (gradient * weights).sum(axis=(1, 2))
            size = np.where(converged, 0.0, 1.0)
            while True:
                moved = at.plus(step, size)
                new, new_P = self._value(moved, penalty)
                enough = (new <= objective + 1e-4 * size * slope) | (size < 1e-8)
                if enough.all():
                    break
                size = np.where(enough, size, size / 2)
            lower = new <= objective  # else rounding hides any way down
            if lower.all():
                at, P = moved, new_P
            else:
                at = at.plus(step, np.where(lower, size, 0.0))
                P = np.where(lower[:, None, None], new_P, P)
            converged |= (np.abs(slope) / 2 <= tol * objective) | ~lower
            objective = np.where(lower, new, objective)
            if converged.all():
                break
        else:
            self.unconverged.append(C)
        self._last = [*self._last[-1:], at]
        return at

    def _value(self, at: Optimum, penalty: Matrix) -> tuple[Matrix, Matrix]:
        """Return the objectives (B,) and the probabilities of classes (B, N, K)."""
        shifted = at.logits - at.logits.max(axis=2, keepdims=True)
        own = shifted[(*self._samples, self.y)]
        P = np.exp(shifted, out=shifted)
        total = P.sum(axis=2, keepdims=True)
        loss = (np.log(total)[..., 0] - own).mean(axis=1)
        P /= total
        return loss + 0.5 * (penalty * at.weights**2).sum(axis=(1, 2)), P

    def _step(
        self, P: Matrix, penalty: Matrix, gradient: Matrix, diagonal: Matrix, forcing: float
    ) -> Matrix:
        """Solve Hessian @ step = -gradient to the precision that a Newton step is worth."""
        A, n = self._fast, P.shape[1]
        At = A.transpose(0, 2, 1)
        top = (*self._samples, P.argmax(axis=2))
        scale = np.abs(gradient).max(axis=(1, 2), keepdims=True)
        scale[scale == 0] = 1
        p, by, decay, scaling = (x.astype(A.dtype) for x in (P, P / n, penalty, 1 / diagonal))
        residual = (-gradient / scale).astype(A.dtype)
        # One number added to all intercepts changes nothing.
        residual[:, -1] -= residual[:, -1].mean(axis=1, keepdims=True)
        step = np.zeros_like(residual)
        z = residual * scaling
        z[:, -1] -= z[:, -1].mean(axis=1, keepdims=True)
        direction = z.copy()
        energy = first = _inner(residual, z)
        active = first > 0  # else at the minimum already
        for number in range(MOST_PRODUCTS if active.any() else 0):
            self._products = max(self._products, number + 1)
            V = A @ direction
            V -= V[top][..., None]  # else p * (V - pV) cancels where a class is nearly certain
            V -= np.einsum("bnk,bnk->bn", p, V)[..., None]
            V *= by
            curved = At @ V
            curved += decay * direction
            curved[:, -1] -= curved[:, -1].mean(axis=1, keepdims=True)
            bend = _inner(direction, curved)
            active &= bend > 0  # else what is left is rounding
            size = np.divide(energy, bend, out=np.zeros_like(bend), where=active)[:, None, None]
            step += size * direction
            curved *= size
            residual -= curved
            np.multiply(residual, scaling, out=z)
            z[:, -1] -= z[:, -1].mean(axis=1, keepdims=True)
            previous, energy = energy, _inner(residual, z)
            active &= energy > forcing**2 * first
            if not active.any():
                break
            ratio = np.divide(energy, previous, out=np.zeros_like(bend), where=active)
            direction *= ratio[:, None, None]
            direction += z
        return step.astype(np.float64) * scale


def _inner(a: Array, b: Array) -> Array:
    if len(a) == 1:
        return np.array([np.vdot(a, b)])
    return np.asarray(np.einsum("bnk,bnk->b", a, b))
