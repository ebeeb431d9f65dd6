"""From a store's latents, extracted or predicted, back to images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import LayerError, StoreError
from vdvae_repr.latents.base import Latents
from vdvae_repr.latents.format import not_finite
from vdvae_repr.model.layers import select_layers
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.model.weights import weights_sha256

BATCH = 32


def decode(
    store: Latents,
    model: VDVAE,
    layers: str | int | Sequence[str | int] = "all",
    *,
    first: int | None = None,
    ids: Sequence[str] | None = None,
    fine_from: str | None = None,
    rest: Literal["mean", "sample"] = "mean",
    pixels: Literal["mean", "sample"] = "mean",
    temperature: float | Sequence[float] = 1.0,
    seed: int = 0,
) -> Iterator[tuple[tuple[str, ...], NDArray[np.uint8]]]:
    """Yield (ids, images uint8 (n, S, S, 3)) from a store's latents, batch by batch.

    What was sent down is decoded: `z` where it is stored (of several draws the first), `mean` otherwise.

    Args:
        store: of this model's layers.
        model: with the weights that the latents were read with.
        layers: selector of the stored layers to take.
        first: takes the first so many of the stored layers, in place of `layers`.
        ids: of the images to decode; all if not given.
        fine_from: id of the image that the stored layers not selected are taken from.
        rest: fills what is still missing with the prior's mean or seeded draws.
        pixels: the likelihood's expectation, rounded, or a seeded draw of it.
        temperature: of the draws of layers, one number or one a layer.
        seed: of the draws, which depend on it and on each image's id alone.

    Raises:
        StoreError: latents of other weights or that are not finite, no feature to decode, an id that is not
            stored, `fine_from` where every stored layer is selected, or another word for `rest` or `pixels`.
        LayerError: a selector that names none of the stored layers, or `first` beyond them.
    """
    for option, value in (("rest", rest), ("pixels", pixels)):
        if value not in ("mean", "sample"):
            raise StoreError(f"{option}: expected mean or sample, found {value!r}")
    if first is not None:
        if layers != "all":
            raise LayerError("first and layers (--first, --layer) both choose layers; give one")
        if not 1 <= first <= len(store.layers):
            raise LayerError(f"first: expected 1 to {len(store.layers)} layers, found {first}")
        layers = [spec.name for spec in store.layers[:first]]
    feature = decodable_feature(store)
    if weights_sha256(model) != store.info.weights_sha256:
        raise StoreError(
            f"{store.path}: holds latents of {store.info.model} with other weights than those of "
            f"{model.name}; give the model that they were extracted with"
        )
    if feature == "mean" and store.info.z == "sample":
        raise StoreError(
            f"{store.path}: holds means of a pass that sent draws down; extract with --feature z to decode it"
        )
    chosen = select_layers(store.layers, layers)
    kept = {spec.name for spec in chosen}
    if fine_from is not None and len(chosen) == len(store.layers):
        raise StoreError(
            f"{store.path}: every stored layer is chosen, so nothing is left to take from {fine_from!r}; "
            "choose fewer, as with --first 12"
        )
    place = {image_id: row for row, image_id in enumerate(store.ids)}
    wanted = list(store.ids) if ids is None else list(ids)
    for image_id in [*wanted, *([fine_from] if fine_from is not None else [])]:
        if image_id not in place:
            raise StoreError(
                f"{store.path}: no image {image_id!r}; ids are as {store.ids[0]!r}, {len(store)} in all"
            )
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        rows, back = np.unique([place[image_id] for image_id in batch], return_inverse=True)
        latents: dict[str, NDArray[Any]] = {}
        for spec in store.layers:
            values = getattr(store[spec.name], feature)
            if spec.name in kept:
                found = values[rows][back]
            elif fine_from is not None:
                found = np.repeat(values[place[fine_from]][None], len(batch), axis=0)
            else:
                continue
            if (row := not_finite(found)) is not None:
                raise StoreError(
                    f"{store.path}: expected finite latents, found NaN or infinity in layer {spec.name}, "
                    f"{feature}, image {batch[row]!r}; extract or predict them again"
                )
            latents[spec.name] = found[:, 0] if found.ndim == 5 else found
        yield (
            tuple(batch),
            model.decode(latents, rest, pixels, temperature=temperature, seed=seed, ids=batch),
        )


def decodable_feature(store: Latents) -> str:
    """Return the stored feature that images can be made of: `z` where it is stored, `mean` otherwise.

    Raises:
        StoreError: neither is stored, as of an encoder that is no VDVAE.
    """
    if "activation" in store.features:
        raise StoreError(
            f"{store.path}: holds activations of {store.info.model}, which gives no images back; only "
            "latents of a VDVAE can be decoded"
        )
    feature = next((name for name in ("z", "mean") if name in store.features), None)
    if feature is None:
        raise StoreError(
            f"{store.path}: expected feature z or mean to decode, found {', '.join(store.features)}; "
            "extract with --feature mean"
        )
    return feature
