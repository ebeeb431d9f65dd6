"""How alike the layers of two models are, or of one: linear CKA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import TaskError
from vdvae_repr.heads.gram import gram_matrices
from vdvae_repr.latents.base import Latents, same_images
from vdvae_repr.probing.task import expect_store

CKA_IMAGES = 2_000


def compare(
    a: Latents,
    b: Latents | None = None,
    *,
    feature: str | None = None,
    seed: int = 0,
    notice: Callable[[str], None] = lambda line: None,
) -> NDArray[np.float64]:
    """Return linear CKA between the layers of two stores of the same images, (L, M); of one store (L, L).

    Args:
        a: a store.
        b: another of the same images; if not given the layers of `a` are compared with each other.
        feature: of both; each store's default if not given.
        seed: of the images that are drawn where there are more than 2,000.
        notice: receives what the reader must know.

    Raises:
        TaskError: other images.
    """
    expect_store(a, "a")
    if b is None:
        feature = a.default_feature if feature is None else feature
        grams = _centred_grams(a, feature, notice, seed)
        return linear_cka(grams, grams)
    expect_store(b, "b")
    if a.ids != b.ids:
        raise TaskError(f"{b.path}: expected the images of {a.path} in their order, found others")
    if line := same_images(a, b):
        notice(line)
    one, other = (
        _centred_grams(store, store.default_feature if feature is None else feature, notice, seed)
        for store in (a, b)
    )
    return linear_cka(one, other)


def linear_cka(a: Sequence[NDArray[Any]], b: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Return centred kernel alignment between centred inner products (N, N) each, (len(a), len(b)).

    Source: Kornblith et al. 2019 (arXiv:1905.00414), equation 3 and section 3.1, linear kernel.
    """
    first, second = (np.array([np.linalg.norm(gram) or 1.0 for gram in side]) for side in (a, b))
    products = np.array([[np.vdot(x, y) for y in b] for x in a], dtype=np.float64)
    return np.asarray(products / np.outer(first, second))


def _centred_grams(
    store: Latents, feature: str, notice: Callable[[str], None], seed: int
) -> list[NDArray[np.float64]]:
    """Return centred inner products of each single layer, of CKA_IMAGES at most."""
    rows = np.arange(len(store))
    if len(rows) > CKA_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, CKA_IMAGES, replace=False))
        notice(
            f"similarity between layers: {CKA_IMAGES} of {len(store)} images, drawn with seed {seed}"
        )
    grams = []
    for spec in store.distinct("all", feature):
        blocks = (block[rows] for block in store.columns(spec.name, feature))
        try:
            (gram,) = gram_matrices(blocks, [(np.arange(len(rows)), "centred")])
        except ValueError as error:
            raise TaskError(f"{store.path}: layer {spec.name}: {error}; extract again") from error
        grams.append(gram.inner)
    return grams
