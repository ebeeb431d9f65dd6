"""How alike the layers of two models are, or of one: linear CKA, debiased.

Plain CKA of few images and many dimensions is far above 0 whatever the features are (0.976 of noise, with 400
images and 16,384 dimensions), because the length of each image agrees with itself. The unbiased estimate of
HSIC leaves these out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.config import MOST_SEED, whole_number, with_hints
from vdvae_repr.errors import TaskError
from vdvae_repr.heads.gram import gram_matrices
from vdvae_repr.latents.base import Latents, expect_store, read_otherwise, same_images
from vdvae_repr.results import Similarity

logger = logging.getLogger(__name__)
CKA_IMAGES = 2_000
LEAST = 4  # images; of fewer there is no unbiased HSIC

Matrix = NDArray[np.float64]


@with_hints
def compare(
    a: Latents,
    b: Latents | None = None,
    *,
    feature: str | None = None,
    seed: int = 0,
    notice: Callable[[str], None] | None = None,
) -> Similarity:
    """Compare the layers of two stores of the same images, or of one, by debiased linear CKA.

    Args:
        a: a store.
        b: another of the same images; if not given the layers of `a` are compared with each other.
        feature: that both hold; if not given each store's `default_feature`: `mean`, or the first where that
            is not stored, as `activation`.
        seed: of the images that are drawn where there are more than 2,000, and of the shuffled ones.
        notice: receives what the reader must know; logged as warnings if not given.

    Returns:
        the similarity of each layer of `a` with each of `b`, and what it is of shuffled images.

    Raises:
        TaskError: other images, or fewer than 4. ConfigError: a seed that is none.
    """
    notice = notice or logger.warning
    expect_store(a, "a")
    if b is not None:
        expect_store(b, "b")
        if a.ids != b.ids:
            raise TaskError(
                f"{b.path}: expected the images of {a.path} in their order, found others"
            )
    if len(a) < LEAST:
        raise TaskError(f"{a.path}: expected at least {LEAST} images, found {len(a)}")
    if b is not None:
        for store in (a, b):  # a feature that one lacks is refused before anything is said
            store.distinct("all", store.default_feature if feature is None else feature)
        for line in (same_images(a, b), read_otherwise(a, b), _of_two_features(a, b, feature)):
            if line:
                notice(line)
    seed = whole_number("seed", seed, 0, MOST_SEED)
    names, own = _layers(a, feature, notice, seed)
    others, theirs = (names, own) if b is None else _layers(b, feature, notice, seed)
    order = np.random.default_rng(seed).permutation(len(own[0]))
    return Similarity(
        cka=debiased_cka(own, theirs),
        shuffled=debiased_cka(own, theirs, order),
        layers=names,
        other_layers=others,
        models=(a.info.model, (a if b is None else b).info.model),
        record=_record(a, a if b is None else b, feature),
    )


def _of_two_features(a: Latents, b: Latents, feature: str | None) -> str:
    """Return a line where VDVAEs' stores are compared by different features, as neither holds the other's."""
    first, second = a.default_feature, b.default_feature
    if feature is not None or first == second or "activation" in (first, second):
        return ""
    both = [name for name in a.features if name in b.features]
    remedy = f"both hold {', '.join(both)}: name one" if both else "no feature is in both"
    return f"{first} of {a.path} is compared with {second} of {b.path}; {remedy}"


def _record(a: Latents, b: Latents, feature: str | None) -> dict[str, str]:
    """Return where a comparison of two stores comes from, in words."""
    record = {"images": a.info.source}
    if sha256 := a.info.source_sha256 or b.info.source_sha256:
        record["images_sha256"] = sha256
    for side, store in (("rows", a), ("columns", b)):
        record |= {
            f"{side}_model": store.info.model,
            f"{side}_feature": feature or store.default_feature,
            f"{side}_store": str(store.path),
            f"{side}_weights_sha256": store.info.weights_sha256,
            f"{side}_reading": store.info.reading_in_words,
        }
    return record


def debiased_cka(
    a: Sequence[Matrix], b: Sequence[Matrix], order: NDArray[np.intp] | None = None
) -> Matrix:
    """Return the alignment of `u_centred` inner products (N, N), each with each, (len(a), len(b)).

    HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)), linear kernels. Sources: Kornblith et al. 2019
    (arXiv:1905.00414), equation 3; Song et al. 2012 (JMLR 13), equation 5, for the unbiased HSIC_1.

    Args:
        a: of some features.
        b: of others.
        order: that the images of `b` are brought into first, (N,).
    """
    first, second = (np.array([np.linalg.norm(inner) or 1.0 for inner in side]) for side in (a, b))
    products = np.empty((len(a), len(b)))
    for column, inner in enumerate(b):
        theirs = inner if order is None else inner[np.ix_(order, order)]
        products[:, column] = [np.vdot(own, theirs) for own in a]
    return np.asarray(products / np.outer(first, second))


def cka_without_each(a: Sequence[Matrix], b: Sequence[Matrix]) -> Matrix:
    """Return the same without each image in turn, (N, len(a), len(b)), of matrices that are not centred.

    Of matrices K and L (N, N), whose diagonals do not count, HSIC_1 takes three sums: of all products of
    their entries, of the products of their rows' sums, and the product of the sums of all. What an image
    adds to each is known without another pass, so that all N take as long as one.

    Args:
        a: of some features, inner products or squared distances.
        b: of others.
    """
    sides = [[_RowSums.of(matrix) for matrix in side] for side in (a, b)]
    lengths = [[of.hsic_without_each(of) for of in side] for side in sides]
    found = np.zeros((len(sides[0][0].sums), len(a), len(b)))
    for i, own in enumerate(sides[0]):
        for j, other in enumerate(sides[1]):
            length = np.sqrt(np.maximum(lengths[0][i], 0) * np.maximum(lengths[1][j], 0))
            products = own.hsic_without_each(other)
            found[:, i, j] = products / np.where(length > 0, length, np.inf)
    return found


@dataclass(frozen=True, eq=False)
class _RowSums:
    """A symmetric matrix (N, N) without its diagonal, and the sums of its rows (N,)."""

    matrix: Matrix
    sums: Matrix

    @classmethod
    def of(cls, matrix: Matrix) -> _RowSums:
        matrix = np.array(matrix, np.float64)
        np.fill_diagonal(matrix, 0)
        # Rounding is that of what varies: a constant off the diagonal changes nothing.
        matrix -= matrix.sum() / (len(matrix) * (len(matrix) - 1))
        np.fill_diagonal(matrix, 0)
        return cls(matrix, matrix.sum(axis=1))

    def hsic_without_each(self, other: _RowSums) -> Matrix:
        """Return what HSIC_1 of two, without each image, is in proportion to, (N,)."""
        n = len(self.sums) - 1
        k, l = self.sums, other.sums  # noqa: E741
        shared = np.einsum("ij,ij->i", self.matrix, other.matrix)
        entries = shared.sum() - 2 * shared
        whole = (k.sum() - 2 * k) * (l.sum() - 2 * l)
        rows = k @ l - self.matrix @ l - other.matrix @ k + shared - k * l
        return np.asarray(entries + whole / ((n - 1) * (n - 2)) - 2 * rows / (n - 2))


def u_centred(inner: NDArray[Any]) -> Matrix:
    """Centre inner products (N, N) without an image's with itself, so that rows still sum to 0.

    N (N - 3) times the unbiased HSIC of two features is then the sum of products of their entries
    (Székely and Rizzo 2014, arXiv:1310.2926, definition 2).
    """
    n = len(inner)
    centred = np.array(inner, dtype=np.float64)
    np.fill_diagonal(centred, 0)
    mean = centred.sum(axis=1) / (n - 2)
    centred += mean.sum() / (n - 1) - mean[:, None] - mean
    np.fill_diagonal(centred, 0)
    return centred


def _layers(
    store: Latents, feature: str | None, notice: Callable[[str], None], seed: int
) -> tuple[tuple[str, ...], list[Matrix]]:
    """Return the name of each single layer, and its centred inner products, of CKA_IMAGES at most."""
    feature = store.default_feature if feature is None else feature
    rows = np.arange(len(store))
    if len(rows) > CKA_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, CKA_IMAGES, replace=False))
        notice(
            f"similarity between layers: {CKA_IMAGES} of {len(store)} images, drawn with seed {seed}"
        )
    names, found = [], []
    for spec in store.distinct("all", feature):
        blocks = (block[rows] for block in store.columns(spec.name, feature))
        try:
            (gram,) = gram_matrices(blocks, [(np.arange(len(rows)), "centred")])
        except ValueError as error:
            raise TaskError(f"{store.path}: layer {spec.name}: {error}; extract again") from error
        names.append(spec.name)
        found.append(u_centred(gram.inner))
    return tuple(names), found
