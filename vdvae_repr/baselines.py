"""Controls, as features of the same images in the same split: pixels, their PCA, random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from vdvae_repr.config import ModelConfig
from vdvae_repr.latents.extract import read_features
from vdvae_repr.latents.store import LatentStore, array_key, pool_grid
from vdvae_repr.model.backbones import Backbone, random_twin
from vdvae_repr.model.layers import select_layers
from vdvae_repr.model.vdvae import VDVAE

Array = NDArray[Any]


@dataclass(frozen=True)
class Features:
    """Features X (N, D) of one model under one name, and whether a linear head may rescale them."""

    model: str
    layer: str | None
    X: Array
    standardise: bool = True


def pixels(images: Array) -> Features:
    """Images (N, H, W, 3) uint8 as they are."""
    return Features("pixels", None, images.reshape(len(images), -1).astype(np.float32))


def pca(pixels: Features, train: NDArray[np.int64], dims: Sequence[int]) -> list[Features]:
    """PCA of the pixels of `train` at each layer's dimensions, and at sizes to choose from; not rescaled."""
    largest = min(len(train) - 1, pixels.X.shape[1])
    fitted = PCA(largest, svd_solver="full").fit(pixels.X[train])
    projected = fitted.transform(pixels.X)
    return [Features("pca", None, projected[:, :size], False) for size in pca_sizes(dims, largest)]


def pca_sizes(dims: Sequence[int], largest: int) -> list[int]:
    """Return numbers of components, `largest` at most: each layer's dimensions, and some to choose from."""
    return sorted(
        {min(d, largest) for d in dims} | {s for s in (8, 16, 32, 64, 128, 256) if s < largest}
    )


def random_init(
    store: LatentStore,
    images: Array,
    groups: Mapping[str, Sequence[str]],
    feature: str,
    pool: str | None,
    seed: int,
) -> list[Features]:
    """The same features of the same layers, from the same architecture with its initial weights."""
    model: VDVAE | Backbone
    if "backbone" in json.loads(store.attrs["config"]):
        model = random_twin(store.attrs["config"], seed)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = VDVAE(ModelConfig.from_json(store.attrs["config"])).eval()
    names = sorted({name for group in groups.values() for name in group})
    stored, _, draw = feature.partition(":")
    draws = [int(draw)] if draw else range(store.draws or 1)
    specs = select_layers(model.layers, names)
    parts: dict[str, list[Array]] = {name: [] for name in names}
    for start in range(0, len(images), 32):
        batch, ids = images[start : start + 32], store.ids[start : start + 32]
        passes = [
            read_features(
                model, batch, specs, [stored], z=store.attrs["z"], seed=int(store.attrs["seed"]),
                draw=draw, ids=ids,
            )[0]
            for draw in draws
        ]  # fmt: skip
        for spec in specs:
            value = np.mean([values[array_key(spec, stored)] for values in passes], axis=0)
            pooled = pool_grid(pool_grid(value, store.attrs.get("pool") or None), pool)
            parts[spec.name].append(pooled.reshape(len(batch), -1))
    stacked = {name: np.concatenate(parts.pop(name)) for name in names}
    return [
        Features("random-init", label, np.concatenate([stacked[name] for name in group], axis=1))
        for label, group in groups.items()
    ]
