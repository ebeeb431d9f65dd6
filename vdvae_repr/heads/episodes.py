"""The few-shot heads on many episodes at once, by inner products alone.

E episodes of K ways, with S support images and Q queries each. Every head of `heads.few_shot` knows features
only by the inner products of an episode's images, so that all episodes are a handful of batched products and
solutions of (S, S) systems. Scores rank classes as those of the estimators do, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.heads.logistic import LogisticPath

TOLERANCE = 1e-12  # of a squared length, below which what is left after centring is rounding

Matrix = NDArray[np.float64]
Labels = NDArray[np.intp]


@dataclass(frozen=True)
class EpisodeProducts:
    """Inner products of the images of E episodes, S support images before Q queries.

    Args:
        inner: of all images with the support images, (E, S + Q, S).
        squares: of each image with itself, (E, S + Q).
    """

    inner: Matrix
    squares: Matrix

    @property
    def support(self) -> Matrix:
        """Products of the support images, (E, S, S)."""
        return self.inner[:, : self.inner.shape[2]]

    @property
    def query(self) -> Matrix:
        """Products of the queries with the support images, (E, Q, S)."""
        return self.inner[:, self.inner.shape[2] :]

    def centred(self, with_mean: Matrix, mean_square: Matrix) -> EpisodeProducts:
        """Return the products after a mean is subtracted from all images of an episode.

        Args:
            with_mean: the products of the images with the mean, (E, S + Q).
            mean_square: the product of the mean with itself, (E,).
        """
        size = self.inner.shape[2]
        inner = self.inner - with_mean[:, :, None] - with_mean[:, None, :size]
        inner += mean_square[:, None, None]
        squares = self.squares - 2 * with_mean + mean_square[:, None]
        rounding = squares <= TOLERANCE * self.squares
        inner[rounding] = 0
        inner.transpose(0, 2, 1)[rounding[:, :size]] = 0
        return EpisodeProducts(inner, np.where(rounding, 0, squares))

    def normalized(self) -> EpisodeProducts:
        """Return the products after each image is scaled to length 1; zeros stay."""
        length = np.sqrt(np.where(self.squares > 0, self.squares, 1))
        inner = self.inner / length[:, :, None] / length[:, None, : self.inner.shape[2]]
        return EpisodeProducts(inner, (self.squares > 0).astype(np.float64))

    def centred_on_support(self) -> tuple[Matrix, Matrix]:
        """Return `support` and `query` after the mean of an episode's support images is subtracted."""
        column = self.support.mean(axis=1, keepdims=True)
        whole = column.mean(axis=2, keepdims=True)
        inner = self.inner - self.inner.mean(axis=2, keepdims=True) - column + whole
        size = self.inner.shape[2]
        return inner[:, :size], inner[:, size:]


def nearest_prototype(products: EpisodeProducts, labels: Labels, ways: int) -> Matrix:
    """Return twice the product with each class's mean less that mean's square, (E, Q, K)."""
    queries, squares = _prototypes(products, labels, ways)
    return 2 * queries - squares[:, None]


def nearest_prototype_cosine(products: EpisodeProducts, labels: Labels, ways: int) -> Matrix:
    """Return the product of each query with each class's mean at length 1, (E, Q, K)."""
    queries, squares = _prototypes(products, labels, ways)
    return np.asarray(queries / np.sqrt(np.where(squares > 0, squares, 1))[:, None])


def cl2n(products: EpisodeProducts, labels: Labels, ways: int) -> Matrix:
    """Score centred products by the nearest prototype of images of length 1."""
    return nearest_prototype(products.normalized(), labels, ways)


def ridge(products: EpisodeProducts, labels: Labels, ways: int) -> Matrix:
    """Return regressions of +1 and -1 with penalty 1 on images of length 1, intercept free, (E, Q, K)."""
    support, query = products.normalized().centred_on_support()
    targets = 2 * _members(labels, ways) - 1
    mean = targets.mean(axis=1, keepdims=True)
    return np.asarray(
        query @ np.linalg.solve(support + np.eye(len(support[0])), targets - mean) + mean
    )


def logistic(products: EpisodeProducts, labels: Labels, ways: int) -> Matrix:
    """Return logits of regressions with C = 1 on images of length 1, intercept free, (E, Q, K)."""
    support, query = products.normalized().centred_on_support()
    values, vectors = np.linalg.eigh(support)
    spanned = values > TOLERANCE * np.maximum(values[:, -1:], TOLERANCE)
    lengths = np.sqrt(np.where(spanned, values, 0))[:, None]
    coordinates = vectors * lengths
    to_coordinates = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    weights = LogisticPath(coordinates, labels, ways).solve(1.0, 1e-8, final=True).weights
    return np.asarray(query @ to_coordinates @ weights[:, :-1] + weights[:, -1:])


def _members(labels: Labels, ways: int) -> Matrix:
    return np.eye(ways)[labels]


def _prototypes(products: EpisodeProducts, labels: Labels, ways: int) -> tuple[Matrix, Matrix]:
    """Return products of queries with the classes' means (E, Q, K), and the means' squares (E, K)."""
    members = _members(labels, ways)
    members /= members.sum(axis=1, keepdims=True)
    squares = (members * (products.support @ members)).sum(axis=1)
    return products.query @ members, squares


SCORES: dict[str, Callable[[EpisodeProducts, Labels, int], Matrix]] = {
    "nearest-prototype": nearest_prototype,
    "nearest-prototype-cosine": nearest_prototype_cosine,
    "simpleshot-cl2n": cl2n,
    "logistic": logistic,
    "ridge": ridge,
}
"""By the names of `heads.few_shot.HEADS`; `simpleshot-cl2n` takes products that are centred already."""
