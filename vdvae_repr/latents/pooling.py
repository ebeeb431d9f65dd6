"""Pooling of a layer's values: means over a grid or tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import LayerError
from vdvae_repr.model.layers import LayerSpec

Array = NDArray[Any]


def pool_layer(values: Array, pool: str | None, prefix: int = 0, class_token: bool = True) -> Array:
    """Pool the values of a layer: a grid (N, C, H, W), or tokens (N, T, C), to (N, C, g, g).

    Args:
        values: of N images.
        pool: "avg" for the mean over the grid or the patches' tokens, "avg:4" for a 4x4 grid of means, "cls"
            for the class token; None leaves the values as they are.
        prefix: how many tokens come before those of the patches.
        class_token: whether the first of them is the class token.

    Raises:
        LayerError: an unknown pooling, or one that these values do not have.
    """
    if pool is None:
        return values
    if not isinstance(pool, str):
        raise LayerError(f"pool: expected avg or avg:GRID, or cls of tokens, found {pool!r}")
    vector = values.ndim == 4 and values.shape[2:] == (1, 1)
    if pool == "cls" and not vector:
        if values.ndim != 3 or not prefix or not class_token:
            raise LayerError(
                "pool cls: expected tokens with a class token, found a layer without one"
            )
        return np.ascontiguousarray(values[:, 0, :, None, None])
    text = "1" if pool == "cls" else pool.removeprefix("avg").removeprefix(":") or "1"
    if not pool.startswith(("avg", "cls")) or not text.isdecimal() or int(text) < 1:
        raise LayerError(f"pool: expected avg or avg:GRID, or cls of tokens, found {pool!r}")
    grid = int(text)
    if values.ndim == 3:
        values = _patch_grid(values[:, prefix:], grid)
    elif values.shape[1] == values.shape[2] != values.shape[3]:  # square images have square grids
        raise LayerError(
            f"pool {pool}: expected channels first, (C, H, W), found {values.shape[1:]}, which looks like "
            "channels last; name a module that puts them first, as a Permute, or leave pool out"
        )
    n, c, height, width = values.shape
    if max(height, width) <= grid:
        return values
    if height % grid or width % grid:
        raise LayerError(f"pooling to {grid}x{grid} does not divide {height}x{width}")
    steps = values.reshape(n, c, grid, height // grid, grid, width // grid)
    with np.errstate(over="ignore", invalid="ignore"):
        means = steps.mean(axis=(3, 5))
        if not np.isfinite(means).all():  # sums of large values may overflow, which means do not
            means = steps.mean(axis=(3, 5), dtype=np.float64).astype(means.dtype)
    return np.asarray(means)


def pooled_shape(spec: LayerSpec, shape: tuple[int, ...], pool: str | None) -> tuple[int, ...]:
    """Return the shape of a layer's values of one image once they are pooled, as `pool_layer` does."""
    blank = np.zeros((1, *shape), np.float32)
    return pool_layer(blank, pool, spec.prefix, spec.class_token).shape[1:]


def about_pool(
    pool: str | None, specs: Sequence[LayerSpec], shapes: Sequence[tuple[int, ...]]
) -> str:
    """Say that a grid of means, as "avg:100", leaves layers of these shapes as they are; else nothing."""
    if pool is None or not pool.startswith("avg:"):
        return ""
    if any(
        pooled_shape(spec, shape, pool) != shape for spec, shape in zip(specs, shapes, strict=True)
    ):
        return ""
    grid = pool.removeprefix("avg:")
    return f"pool {pool}: no layer chosen is larger than {grid}x{grid}, so that nothing is pooled"


def _patch_grid(patches: Array, grid: int) -> Array:
    """Lay tokens (N, T, C) out as (N, C, H, W): on their square, or in one column to be averaged whole."""
    n, count, channels = patches.shape
    side = math.isqrt(count)
    if side * side != count:
        if grid > 1:
            raise LayerError(f"pooling to {grid}x{grid}: {count} tokens lie on no square grid")
        return patches.transpose(0, 2, 1)[..., None]
    return patches.transpose(0, 2, 1).reshape(n, channels, side, side)
