"""Inner products of samples: all that linear and cosine heads need to know of features.

With D features and N samples, D > N, Gram matrices stand for the features without loss. They are summed in
float64 over blocks of columns, so that wide features never stand in memory at once; and those of several
layers add up to that of the layers side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.heads.algebra import NUMPY, Algebra
from vdvae_repr.heads.spectrum import Spectrum, one_thread_each, spanned_coordinates

BLOCK_BYTES = 2**27  # of float64 worked on at once
DEPTH = 2048  # columns whose products are summed in the features' own precision
PRODUCT_BYTES = 2**26  # of products that wait to be added

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
        algebra: where it was made, and is decomposed.
    """

    rows: Rows
    inner: Matrix
    squares: Matrix
    dims: int
    algebra: Algebra = NUMPY

    def __add__(self, other: Gram) -> Gram:
        """Return that of both features side by side."""
        inner, squares = self.inner + other.inner, self.squares + other.squares
        return Gram(self.rows, inner, squares, self.dims + other.dims, self.algebra)

    def cosines(self) -> Matrix:
        """Return the cosine (N, n) of each sample with those of `rows`; a zero vector is similar to none."""
        length = np.sqrt(np.where(self.squares > 0, self.squares, np.inf))
        return self.inner / length[:, None] / length[self.rows]

    @property
    def nbytes(self) -> int:
        """The bytes of the matrix, and of the spectrum where it is known."""
        known = self.__dict__.get("spectrum")
        return self.inner.nbytes + (known.vectors.nbytes if known else 0)

    @cached_property
    def spectrum(self) -> Spectrum:
        """The principal axes of the samples of `rows`, found once for all heads and targets."""
        return Spectrum.of_products(self.inner[self.rows], self.algebra)

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
    decomposes: ClassVar[bool] = False
    """Whether `fit_judged` takes the `spectrum` of precomputed training samples, so that it is found once."""
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
    blocks: Iterable[NDArray[Any]],
    subsets: Sequence[tuple[Rows, Scaling]],
    algebra: Algebra = NUMPY,
) -> list[Gram]:
    """Return the Gram matrix for each of some training sets, in one pass over the features.

    All is summed in float64, but products of float32 features are taken in float32, after centring and over
    `DEPTH` columns at most: they are as exact as the features are. Where that would not be so, as of raw
    features far from 0 or of a size whose squares float32 does not hold, and on another device, all is in
    float64.

    Args:
        blocks: columns of the features X (N, D), (N, d) each, any float.
        subsets: training sets (n,), and what is done to the columns: nothing ("raw"), centred on the set's
            mean, or "standardised", divided by the set's deviation too (unless they are constant there).
        algebra: of the device where they are multiplied.

    Raises:
        ValueError: features that are not finite; names the first row.
    """
    if algebra is not NUMPY:
        return _gram_matrices_on(algebra, blocks, subsets)
    sums: list[_Sums] = []
    dims = 0
    for block in blocks:
        sums = sums or [_Sums(rows, scaling, len(block)) for rows, scaling in subsets]
        dims += block.shape[1]
        _add(block, sums)
        del block  # before the next is made
    return [of.gram(dims) for of in sums]


def _add(block: NDArray[Any], sums: Sequence[_Sums]) -> None:
    """Add what some columns (N, d) give to each sum."""
    columns = max(1, min(DEPTH, BLOCK_BYTES // (8 * len(block))))
    parts = [block[:, start : start + columns] for start in range(0, block.shape[1], columns)]
    for part, products in _multiplied(parts, sums):
        for of, product in zip(sums, products, strict=True):
            of.add(product)
        if not all(of.finite for of in sums):
            finite = np.isfinite(part).all(axis=1)
            raise ValueError(f"expected finite features, found others in row {finite.argmin()}")


def _gram_matrices_on(
    algebra: Algebra, blocks: Iterable[NDArray[Any]], subsets: Sequence[tuple[Rows, Scaling]]
) -> list[Gram]:
    """Do the same on another device."""
    xp = algebra.xp
    inner, squares = [0.0 for _ in subsets], [0.0 for _ in subsets]
    dims = 0
    for block in blocks:
        dims += block.shape[1]
        columns = max(1, BLOCK_BYTES // (8 * len(block)))
        for start in range(0, block.shape[1], columns):
            X = algebra.put(block[:, start : start + columns])
            if not bool(xp.isfinite(X).all()):
                finite = algebra.get(xp.isfinite(X)).all(axis=1)
                raise ValueError(f"expected finite features, found others in row {finite.argmin()}")
            for number, (rows, scaling) in enumerate(subsets):
                A = X
                if scaling != "raw":
                    mean = X[rows].mean(0)
                    A = X - mean
                if scaling == "standardised":
                    deviation = xp.sqrt((A[rows] ** 2).mean(0))
                    A = A / xp.where(_constant(xp, mean, deviation), 1.0, deviation)
                inner[number] = inner[number] + A @ A[rows].T
                squares[number] = squares[number] + (A**2).sum(1)
    return [
        Gram(rows, algebra.get(products), algebra.get(lengths), dims, algebra)
        for (rows, _), products, lengths in zip(subsets, inner, squares, strict=True)
    ]


def _multiplied(
    parts: Sequence[NDArray[Any]], sums: Sequence[_Sums]
) -> Iterator[tuple[NDArray[Any], list[_Product]]]:
    """Yield columns (N, d) and their products for each sum, in order, several of them made at once."""
    multiply = partial(_products, sums=sums)
    at_once = PRODUCT_BYTES // sum(4 * of.size * len(of.rows) for of in sums)
    if len(parts) == 1 or at_once < 2:  # then several threads share a product
        yield from ((part, multiply(part)) for part in parts)
        return
    with one_thread_each() as workers:
        for start in range(0, len(parts), at_once):
            some = parts[start : start + at_once]
            yield from zip(some, workers.map(multiply, some), strict=True)


def _products(X: NDArray[Any], sums: Sequence[_Sums]) -> list[_Product]:
    """Return the products of some columns (N, d) for each sum."""
    kind = np.float32 if X.dtype.itemsize <= 4 else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        made = {
            of: of.product(A, kind)
            for group in _by_rows(sums)
            for of, A in zip(group, _scaled(X, group), strict=True)
        }
    return [made[of] for of in sums]


class _Product(NamedTuple):
    """What some columns add to a sum: squares (N,), and inner products of and with the training samples."""

    squares: Matrix
    training: NDArray[Any]
    others: NDArray[Any]


class _Sums:
    """A Gram matrix as it is summed up, of n training samples and the others in this order."""

    def __init__(self, rows: Rows, scaling: Scaling, size: int) -> None:
        self.rows, self.scaling, self.size = rows, scaling, size
        self.order = np.append(rows, np.setdiff1d(np.arange(size), rows))
        self._inner = np.zeros((len(self.order), len(rows)))
        self._squares = np.zeros(len(self.order))

    @property
    def finite(self) -> bool:
        """Whether every feature was, so far: what is not finite is of no finite length."""
        return bool(np.isfinite(self._squares).all())

    def product(self, A: Matrix, kind: type[np.floating[Any]]) -> _Product:
        """Multiply some columns (N, d), in order."""
        squares = np.einsum("nd,nd->n", A, A)
        if kind is np.float32 and not self._fits(A, squares):
            kind = np.float64
        A = A.astype(kind, copy=False)
        training, others = np.split(A, [len(self.rows)])
        # NumPy computes one half of the first.
        return _Product(squares, training @ training.T, others @ training.T)

    def _fits(self, A: Matrix, squares: Matrix) -> bool:
        """Whether float32 holds the products of columns (N, d), and what they say of differences."""
        largest = squares.max()
        if largest > 0 and not 1e-20 < largest < 1e30:
            return False
        if self.scaling != "raw":
            return True
        n = len(self.rows)
        mean = np.full(n, 1 / n) @ A[:n]
        return bool(mean @ mean < 0.999 * squares[:n].mean())

    def add(self, product: _Product) -> None:
        """Add the products of some columns."""
        n = len(self.rows)
        self._squares += product.squares
        self._inner[:n] += product.training
        self._inner[n:] += product.others

    def gram(self, dims: int) -> Gram:
        """Return the matrix, samples in their own order."""
        inner, squares = np.empty((self.size, len(self.rows))), np.empty(self.size)
        inner[self.order], squares[self.order] = self._inner, self._squares
        return Gram(self.rows, inner, squares, dims)


def _scaled(X: NDArray[Any], group: Sequence[_Sums]) -> Iterator[Matrix]:
    """Yield columns X (N, d) in the order of one training set, scaled as each of a group asks for."""
    A, n = X[group[0].order].astype(np.float64), len(group[0].rows)
    if all(of.scaling == "raw" for of in group):
        yield from (A for _ in group)
        return
    mean, deviation = centre_and_scale(A[:n], any(of.scaling == "standardised" for of in group))
    centred = A - mean if any(of.scaling == "raw" for of in group) else np.subtract(A, mean, out=A)
    for of in group:
        if of.scaling == "raw":
            yield A
        else:
            yield centred if of.scaling == "centred" else centred / deviation


def _by_rows(sums: Sequence[_Sums]) -> list[list[_Sums]]:
    """Group what is summed by the training set, whose means are found once."""
    groups: dict[bytes, list[_Sums]] = {}
    for of in sums:
        groups.setdefault(of.rows.tobytes(), []).append(of)
    return list(groups.values())


def centre_and_scale(X: NDArray[Any], standardize: bool) -> tuple[Matrix, Matrix]:
    """Return means (D,) of samples (N, D), and deviations: 1 where they are constant or not wanted."""
    mean = X.mean(axis=0, dtype=np.float64)
    if not standardize:
        return mean, np.ones_like(mean)
    deviation = X.std(axis=0, dtype=np.float64)
    return mean, np.where(is_constant(mean, deviation), 1.0, deviation)


def is_constant(mean: Matrix, deviation: Matrix) -> NDArray[np.bool_]:
    """Return which features (D,) do not vary beyond the rounding of numbers of their size."""
    return np.asarray(_constant(np, mean, deviation))


def _constant(xp: Any, mean: Any, deviation: Any) -> Any:
    return deviation <= 1e-10 * xp.abs(mean)
