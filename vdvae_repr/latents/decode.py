"""From a store's latents, extracted or predicted, back to images."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.config import whole_number
from vdvae_repr.encoders.load import loaded, refuse_unfetched
from vdvae_repr.errors import LayerError, StoreError
from vdvae_repr.latents.base import Array, Latents, OtherWeightsError, list_of_ids
from vdvae_repr.latents.format import not_finite
from vdvae_repr.model.layers import LayerSpec, select_layers
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.model.weights import weights_sha256

BATCH = 32
NAME_BYTES = 240  # of a file's 255, so that .png and a number fit
PICTURE_SUFFIX = re.compile(r"\.(png|jpe?g|webp|pgm|ppm|bmp|tiff?)$", re.IGNORECASE)


def decode(
    store: Latents,
    model: VDVAE | str | Path,
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
        model: with the weights that the latents were read with; or what `load` takes.
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
    if rest == "mean" and not np.array_equal(temperature, 1.0):
        raise StoreError('temperature: expected rest="sample" with it, as nothing is drawn without')
    if first is not None:
        if layers != "all":
            raise LayerError("first and layers both choose layers; give one")
        first = whole_number("first", first, 0)
        if not 1 <= first <= len(store.layers):
            raise LayerError(f"first: expected 1 to {len(store.layers)} layers, found {first}")
        layers = [spec.name for spec in store.layers[:first]]
    refuse_unfetched(model, "a VDVAE")
    net = loaded(model)
    feature = feature_for(store, net)
    chosen = select_layers(store.layers, layers)
    if fine_from is not None and len(chosen) == len(store.layers):
        most = len(store.layers) - 1
        remedy = f"choose fewer, as with first={min(12, most)}" if most else "store more layers"
        raise StoreError(
            f"{store.path}: every stored layer is chosen, so nothing is left to take from {fine_from!r}; "
            f"{remedy}"
        )
    place = {image_id: row for row, image_id in enumerate(store.ids)}
    wanted = list(store.ids) if ids is None else list_of_ids(ids)
    for image_id in [*wanted, *([fine_from] if fine_from is not None else [])]:
        if image_id not in place:
            raise StoreError(
                f"{store.path}: no image {image_id!r}; ids are as {store.ids[0]!r}, {len(store)} in all"
            )
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        rows = [place[image_id] for image_id in batch]
        latents = {spec.name: stored_latents(store, spec, feature, rows) for spec in chosen}
        if fine_from is not None:
            others = [spec for spec in store.layers if spec not in chosen]
            repeated = [place[fine_from]] * len(batch)
            latents |= {
                spec.name: stored_latents(store, spec, feature, repeated) for spec in others
            }
        yield (
            tuple(batch),
            net.decode(latents, rest, pixels, temperature=temperature, seed=seed, ids=batch),
        )


def stored_latents(
    store: Latents, spec: LayerSpec, feature: str, rows: Sequence[int] | NDArray[np.intp]
) -> Array:
    """Return a layer's latents of some rows, in any order, (n, C, R, R); of several draws the first.

    Raises:
        StoreError: they are not finite.
    """
    values: Array = getattr(store[spec.name], feature)[rows]
    if (number := not_finite(values)) is not None:
        raise StoreError(
            f"{store.path}: expected finite latents, found NaN or infinity in layer {spec.name}, "
            f"{feature}, image {store.ids[rows[number]]!r}; extract or predict them again"
        )
    return values[:, 0] if values.ndim == 5 else values


def feature_for(store: Latents, model: VDVAE) -> str:
    """Return the stored feature that a model makes images of, as `decodable_feature`.

    Raises:
        OtherWeightsError: latents of other weights.
        StoreError: no VDVAE, no such feature, or means of a pass that sent draws down.
    """
    if not isinstance(model, VDVAE):
        raise StoreError(
            f"model: expected a VDVAE, which vr.load returns, found {type(model).__name__} {model!r:.80}"
        )
    feature = decodable_feature(store)
    if weights_sha256(model) != store.info.weights_sha256:
        raise OtherWeightsError(
            f"{store.path}: holds latents of {store.info.model} with other weights than those of "
            f"{model.name}; give the model that they were extracted with"
        )
    if feature == "mean" and store.info.z == "sample":
        raise StoreError(
            f"{store.path}: holds means of a pass that sent draws down; "
            'to decode it, extract with features="z"'
        )
    return feature


def decodable_feature(store: Latents) -> str:
    """Return the stored feature that images can be made of: `z` where it is stored, `mean` otherwise.

    Raises:
        StoreError: neither is stored, as of an encoder that is no VDVAE; what is stored is pooled, or what a
            student predicts.
    """
    if "activation" in store.features:
        raise StoreError(
            f"{store.path}: holds activations of {store.info.model}, which gives no images back; only "
            "latents of a VDVAE can be decoded"
        )
    if store.info.pool is not None:
        raise StoreError(
            f"{store.path}: holds latents pooled by {store.info.pool}, which give no images back; extract "
            "without pool"
        )
    if json.loads(store.info.config).get("kind") == "student":
        raise StoreError(
            f"{store.path}: holds what a student, {store.info.model}, predicts, of which no images are made; "
            "extract with its teacher"
        )
    feature = next((name for name in ("z", "mean") if name in store.features), None)
    if feature is None:
        raise StoreError(
            f"{store.path}: expected feature z or mean to decode, found {', '.join(store.features)}; "
            'extract with features="mean"'
        )
    return feature


def originals_of(store: Latents, like: Latents, ids: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """Return the images uint8 (S, S, 3) that `like` holds of ids of `store`; none where it holds none.

    Ids that `store` does not hold are passed over, as `decode` refuses them.

    Raises:
        StoreError: `like` holds other images, or images that were cut or scaled in another way.
    """
    if not like.has_images:
        return {}
    if like.info.preprocessing != store.info.preprocessing:
        raise StoreError(
            f"{like.path}: holds images that were cut or scaled in another way than those of "
            f"{store.path}"
        )
    own, place = (
        {image_id: row for row, image_id in enumerate(each.ids)} for each in (store, like)
    )
    known, known_like = store.checksums, like.checksums
    originals = {}
    for image_id in ids:
        if image_id not in own:
            continue
        if image_id not in place:
            raise StoreError(
                f"{like.path}: holds no image {image_id!r}; give the store that {store.path} is like"
            )
        if (
            known is not None
            and known_like is not None
            and known[0] == known_like[0]
            and known[1][own[image_id]] != known_like[1][place[image_id]]
        ):
            raise StoreError(f"{like.path}: holds another image as {image_id!r} than {store.path}")
        originals[image_id] = like.read("images", "images", place[image_id])
    return originals


def picture_paths(ids: Sequence[str], folder: str | Path) -> dict[str, Path]:
    """Return where the decoded picture of each image goes: `p1/a.jpg` to `FOLDER/p1/a.png`.

    Every id has a file of its own: `a.jpg` and `a.png` become `a.jpg.png` and `a.png.png`, and where that is
    not enough a number follows. What a file name cannot hold (an empty part, `.`, `..`, control characters)
    becomes `_`, and a part that is too long is cut, so that nothing is written outside the folder.

    Raises:
        StoreError: a link inside the folder leads out of it.
    """
    folder = Path(folder)
    safe = {i: "/".join(_safe_part(part) for part in i.split("/")) for i in ids}
    stems = {i: PICTURE_SUFFIX.sub("", name) or name for i, name in safe.items()}
    stems = {i: safe[i] if stem.endswith("/") else stem for i, stem in stems.items()}
    taken = {str(parent) for name in safe.values() for parent in PurePosixPath(name).parents}
    counts = Counter(stems.values())
    names = {
        i: f"{stem}.png"
        for i, stem in stems.items()
        if counts[stem] == 1 and f"{stem}.png" not in taken
    }
    taken |= set(names.values())
    for image_id, name in safe.items():
        if image_id not in names:
            tries = chain([f"{name}.png"], (f"{name} ({number}).png" for number in count(2)))
            names[image_id] = next(free for free in tries if free not in taken)
            taken.add(names[image_id])
    parents = {(folder / name).parent for name in names.values()}
    for parent in sorted(parents | {folder}):
        for path in (parent, *parent.parents):
            if os.path.lexists(path) and not path.is_dir():
                raise StoreError(f"{path}: is in the way of a folder; choose another path")
        if not parent.resolve().is_relative_to(folder.resolve()):
            raise StoreError(f"{parent}: leads out of {folder}; choose another path")
    return {image_id: folder / names[image_id] for image_id in ids}


def _safe_part(part: str) -> str:
    """Return a part of an id as a part of a file name, cut where it is too long for one."""
    if part in ("", ".", ".."):
        return "_"
    safe = "".join(c if c.isprintable() else "_" for c in part)
    if len(content := safe.encode()) <= NAME_BYTES:
        return safe
    return (
        content[:200].decode(errors="ignore")
        + "~"
        + hashlib.sha256(part.encode(errors="surrogatepass")).hexdigest()[:16]
    )
