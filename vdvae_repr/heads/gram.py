"""Inner products of samples: all that linear and cosine heads need to know of features.

With D features and N samples, D > N, Gram matrices stand for the features without loss. They are summed in
float64 over blocks of columns, so that wide features never stand in memory at once; and those of several
layers add up to that of the layers side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.heads.spectrum import spanned_coordinates

BLOCK_BYTES = 2**27  # of float64 worked on at once

Matrix = NDArray[np.float64]
Rows = NDArray[np.intp]
Scaling = Literal["raw", "centred", "standardised"]


@dataclass(frozen=True)
class Gram:
    """Inner products of samples (N, D), transformed by what some of them say.

    Args:
        rows: numbers (n,) of those some, the training samples.
        inner: products (N, n) of all samples with those.
        squares: each sample's with itself, (N,).
        dims: D.
    """

    rows: Rows
    inner: Matrix
    squares: Matrix
    dims: int

    def __add__(self, other: Gram) -> Gram:
        """Return that of both features side by side."""
        inner, squares = self.inner + other.inner, self.squares + other.squares
        return Gram(self.rows, inner, squares, self.dims + other.dims)

    def cosines(self) -> Matrix:
        """Return the cosine (N, n) of each sample with those of `rows`; a zero vector is similar to none."""
        length = np.sqrt(np.where(self.squares > 0, self.squares, np.inf))
        return self.inner / length[:, None] / length[self.rows]

    def coordinates(self) -> Matrix:
        """Return all samples in the space that those of `rows` span, (N, r), r <= n."""
        return spanned_coordinates(self.inner, self.rows)


class ProductHead:
    """An estimator that knows samples by their inner products, and takes those in place of features.

    With `precomputed=True` X holds what `kernel` makes of a Gram matrix: of the N training samples with each
    other (N, N) when it is fitted, of M others with them (M, N) when it is asked.
    """

    precomputed: bool
    version: ClassVar[int] = 1
    """Raised whenever what it computes changes, so that no score of the earlier one is taken for its own."""
    refits: ClassVar[bool] = False
    """Whether it is fitted on validation samples too, once they have chosen: `fit_judged` takes `both`."""

    @property
    def scaling(self) -> Scaling:
        """What is done to the features before their inner products are taken."""
        raise NotImplementedError

    def alternatives(self) -> list[Self]:
        """Return the estimators to choose from by the errors that they leave on training data, one a scaling.

        Of equal ones the first is chosen; where nothing is to be chosen, it is this one alone.
        """
        return [self]

    @property
    def rotations_change_nothing(self) -> bool:
        """Whether features may be given in another basis: deviations of features are of one basis alone."""
        return all(head.scaling != "standardised" for head in self.alternatives())

    def kernel(self, gram: Gram) -> Matrix:
        """Return what is handed over as X, (N, n)."""
        return gram.inner

    def choosing_folds(self, y: NDArray[Any]) -> list[tuple[Rows, Rows]]:
        """Return the folds (fit, held) of samples of classes y (N,) whose own Gram matrices it chooses on."""
        return []

    def fit_judged(
        self,
        X: Any,
        y: Any,
        validation: tuple[Any, Any] | None = None,
        folds: Sequence[Fold] | None = None,
    ) -> float | None:
        """Fit, and return how good the fit is by validation samples, else by training samples left out.

        Args:
            X: (N, D) or (N, N).
            y: targets (N,).
            validation: samples and their targets.
            folds: of `choosing_folds`, precomputed.

        Returns:
            what choices among features are made by, the more the better; None where nothing tells.
        """
        raise NotImplementedError


def left_out_accuracy(fitted: Any, y: NDArray[Any]) -> float | None:
    """Return the share of training samples, of classes y (N,), that a head tells from all the others.

    A sample that is alone in its class cannot be told, and is not counted. None where every sample is.
    """
    _, encoded, counts = np.unique(y, return_inverse=True, return_counts=True)
    several = counts[encoded] > 1
    if not several.any():
        return None
    return float(np.mean((fitted.leave_one_out() == y)[several]))


class Fold(NamedTuple):
    """A fold of precomputed features, standardised on the samples that are fitted on.

    Args:
        fit: numbers (n,) of those samples.
        held: numbers of those held back.
        inner: products (N, n) of all samples with those of `fit`.
    """

    fit: Rows
    held: Rows
    inner: Matrix


def gram_matrices(
    blocks: Iterable[NDArray[Any]], subsets: Sequence[tuple[Rows, Scaling]]
) -> list[Gram]:
    """Return the Gram matrix for each of some training sets, in one pass over the features.

    Args:
        blocks: columns of the features X (N, D), (N, d) each, any float.
        subsets: training sets (n,), and what is done to the columns: nothing ("raw"), centred on the set's
            mean, or "standardised", divided by the set's deviation too (unless they are constant there).

    Raises:
        ValueError: features that are not finite; names the first row.
    """
    found: list[Gram] = []
    for block in blocks:
        step = max(1, BLOCK_BYTES // (8 * len(block)))
        if not found:
            size = len(block)
            found = [
                Gram(rows, np.zeros((size, len(rows))), np.zeros(size), 0) for rows, _ in subsets
            ]
        for start in range(0, block.shape[1], step):
            X = block[:, start : start + step].astype(np.float64)
            finite = np.isfinite(X).all(axis=1)
            if not finite.all():
                raise ValueError(f"expected finite features, found others in row {finite.argmin()}")
            for i, (rows, scaling) in enumerate(subsets):
                A = X
                if scaling != "raw":
                    mean, scale = centre_and_scale(X[rows], scaling == "standardised")
                    A = (X - mean) / scale
                found[i].inner[...] += A @ A[rows].T
                found[i].squares[...] += np.einsum("nd,nd->n", A, A)
        found = [Gram(g.rows, g.inner, g.squares, g.dims + block.shape[1]) for g in found]
    return found


def centre_and_scale(X: NDArray[Any], standardize: bool) -> tuple[Matrix, Matrix]:
    """Return means (D,) of samples (N, D), and deviations: 1 where they are constant or not wanted."""
    mean = X.mean(axis=0, dtype=np.float64)
    if not standardize:
        return mean, np.ones_like(mean)
    deviation = X.std(axis=0, dtype=np.float64)
    constant = deviation <= 1e-10 * np.maximum(np.abs(mean), 1)
    return mean, np.where(constant, 1.0, deviation)
