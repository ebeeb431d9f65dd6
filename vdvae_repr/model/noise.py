"""Noise as an argument: what a pass of the model draws is a function that is handed to it.

Nothing in the package draws from a global random state, so a draw can be repeated for one image, one layer
or one process alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from vdvae_repr.errors import DataError
from vdvae_repr.model.layers import LayerSpec

# Gives the standard-normal draws (N, C, R, R) of a layer; None in its place means "send the mean".
NoiseFn = Callable[[LayerSpec], Tensor]


def seeded_noise(seed: int, ids: Sequence[str], device: torch.device, number: int = 0) -> NoiseFn:
    """Return standard-normal draws that depend on (seed, number, image id, layer index) alone."""

    def draw(layer: LayerSpec) -> Tensor:
        rows, what = [], f"{layer.index}\0{number}" if number else str(layer.index)
        for image_id in ids:
            key = seed_of(seed, image_id, what, 16)
            rng = np.random.Generator(np.random.Philox(key))
            rows.append(rng.standard_normal(layer.shape, dtype=np.float32))
        return torch.from_numpy(np.stack(rows)).to(device)

    return draw


def seed_of(seed: int, image_id: str, what: str, num_bytes: int = 7) -> int:
    """Return a random seed of `num_bytes` bytes that depends on all that it is given."""
    digest = hashlib.sha256(f"{seed}\0{image_id}\0{what}".encode()).digest()
    return int.from_bytes(digest[:num_bytes], "little")


def image_names(ids: Sequence[str] | None, count: int) -> list[str]:
    """Return the ids that draws depend on; by default "0", "1", ..."""
    if isinstance(ids, str) or not isinstance(ids, Iterable | None):
        raise DataError(f"ids: expected {count} of them in a list, found {type(ids).__name__}")
    names = [str(i) for i in range(count)] if ids is None else list(ids)
    if len(names) != count:
        raise DataError(f"expected {count} ids, one an image, found {len(names)}")
    return names
