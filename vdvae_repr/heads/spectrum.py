"""The one eigendecomposition of the package: centring, principal components, the span of samples.

n samples, D features, r = rank. The principal axes of centred samples X (n, D) come from eigenvectors of the
smaller of X X' (n, n) and X' X (D, D), in float64. A direction whose eigenvalue is below `TOLERANCE` times
the largest is rounding, and is left out: wherever the package speaks of a rank, it is this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, lapack, solve_triangular
from threadpoolctl import ThreadpoolController

from vdvae_repr.heads.algebra import NUMPY, Algebra

TOLERANCE = 1e-12  # of the largest eigenvalue, which is 1e-6 of the largest deviation
AT_ONCE = 4096  # samples, so that their copies in float64 stay small
SMALL = 2048  # rows of a matrix up to which one thread decomposes it faster than several

Matrix = NDArray[np.float64]


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Work on several matrices of a few hundred rows beside each other, each by a single thread.

    Products and decompositions of that size are up to four times slower on two threads than on one. There
    are as many workers as the linear algebra would take threads.
    """
    threads = max([1, *(pool["num_threads"] for pool in _blas().info())])
    with blas_threads(1), ThreadPoolExecutor(threads) as workers:
        yield workers


def blas_threads(most: int | None) -> AbstractContextManager[Any]:
    """Bound the threads of linear algebra, for a while; None leaves them as they are."""
    return _blas().limit(limits=most, user_api="blas")


@cache
def _blas() -> ThreadpoolController:
    """Look once for the libraries, which takes longer than a small decomposition."""
    return ThreadpoolController()


@dataclass(frozen=True)
class Centring:
    """Centres inner products on the mean of n samples.

    Args:
        column: the mean product of each sample with all of them, (n,).
        whole: the mean of all products.
    """

    column: Matrix
    whole: float

    @classmethod
    def of(cls, inner: Matrix) -> Centring:
        """Learn the means of inner products (n, n)."""
        return cls(inner.mean(axis=0), float(inner.mean()))

    def centred(self, inner: Matrix) -> Matrix:
        """Centre inner products (M, n) of other samples with these."""
        return inner - inner.mean(axis=1, keepdims=True) - self.column + self.whole


@dataclass(frozen=True)
class Spectrum:
    """Principal axes of samples, from the one of least variance to the one of most.

    Args:
        values: eigenvalues (r,), ascending: the squared length of all samples along each axis.
        vectors: orthonormal eigenvectors, (n, r) of X X' or (D, r) of X' X.
        mean: of the samples, (D,); None where inner products were given.
        samples: the centred samples (n, D), where `vectors` are of X X' and no axes are made.
        centring: of inner products, where these were given.
        size: the number n of samples.

    Examples:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(50, 3))
        >>> spectrum = Spectrum.of(X)
        >>> np.allclose(spectrum.project(X).std(axis=0, ddof=1), spectrum.deviations)
        True
    """

    values: Matrix
    vectors: Matrix
    mean: Matrix | None = None
    samples: NDArray[Any] | None = None
    centring: Centring | None = None
    size: int = 0

    @classmethod
    def of(cls, X: NDArray[Any], most: int | None = None) -> Spectrum:
        """Decompose samples X (n, D) into their leading `most` axes; into all of them if not given."""
        mean = X.mean(axis=0, dtype=np.float64)
        A = X - mean
        wide = A.shape[1] > len(A)
        values, vectors = leading_eigenvectors(A @ A.T if wide else A.T @ A, most)
        few = most is not None and 2 * most <= len(A)
        if wide and few:  # cheaper to make than to go by the samples
            vectors, wide = A.T @ vectors / np.sqrt(values), False
        return cls(values, vectors, mean, A if wide else None, size=len(X))

    @classmethod
    def of_products(cls, inner: NDArray[Any], algebra: Algebra = NUMPY) -> Spectrum:
        """Decompose samples that are known by their inner products (n, n), not centred."""
        inner = inner.astype(np.float64)
        centring = Centring.of(inner)
        values, vectors = leading_eigenvectors(centring.centred(inner), algebra=algebra)
        return cls(values, vectors, centring=centring, size=len(inner))

    @property
    def deviations(self) -> Matrix:
        """Standard deviation of the samples along each axis, (r,)."""
        return np.asarray(np.sqrt(self.values / (self.size - 1)))

    @cached_property
    def _rotation(self) -> Matrix:
        """What turns centred products with the samples, or centred samples, into coordinates."""
        by_products = self.samples is not None or self.centring is not None
        return self.vectors / np.sqrt(self.values) if by_products else self.vectors

    def project(self, X: NDArray[Any]) -> Matrix:
        """Return coordinates (M, r) of samples (M, D), or of inner products (M, n) with the samples."""
        parts = [self._project(X[i : i + AT_ONCE]) for i in range(0, len(X), AT_ONCE)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def project_samples(self, X: NDArray[Any]) -> Matrix:
        """Return coordinates (n, r) of X, the samples that were decomposed."""
        by_products = self.samples is not None or self.centring is not None
        return self.vectors * np.sqrt(self.values) if by_products else self.project(X)

    def _project(self, X: NDArray[Any]) -> Matrix:
        if self.centring is not None:
            return np.asarray(self.centring.centred(X.astype(np.float64)) @ self._rotation)
        A = X - self.mean
        return np.asarray((A if self.samples is None else A @ self.samples.T) @ self._rotation)


def leading_eigenvectors(
    products: Matrix, most: int | None = None, algebra: Algebra = NUMPY
) -> tuple[Matrix, Matrix]:
    """Return the eigenvalues (r,) above rounding of a symmetric matrix, ascending, and eigenvectors (n, r).

    Args:
        products: (n, n), positive semidefinite.
        most: r at most; as many as there are if not given.
        algebra: of the device where all of them are found.
    """
    n = len(products)
    # Of small matrices several threads spend their time waiting for each other: of 847 rows, beside other
    # work on two cores, 12 seconds in place of half of one.
    with blas_threads(1 if n <= SMALL else None):
        if most is None or most >= n:
            values, vectors = algebra.eigh(products)
        else:
            values, vectors = eigh(products, subset_by_index=[n - most, n - 1])
    kept = values > TOLERANCE * max(values[-1], 1e-300)
    return values[kept], vectors[:, kept]


def spanned_coordinates(products: Matrix, among: NDArray[np.intp]) -> Matrix:
    """Return samples (N, r) in the space that those of `among` (n,) span, by inner products (N, n) with them.

    By a pivoted Cholesky factorisation, which serves as well as eigenvectors at a tenth of their price; what
    is below rounding is left out all the same.
    """
    inner = products[among]
    least = TOLERANCE * inner.diagonal().max()
    factor, order, rank, _ = lapack.dpstrf(inner, tol=least, lower=1)
    spanning = products[:, order[:rank] - 1]
    coordinates = solve_triangular(factor[:rank, :rank], spanning.T, lower=True).T
    return np.ascontiguousarray(coordinates)
