"""Pictures for the page: what first layers rebuild of an image, and which images each layer finds alike."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from vdvae_repr.errors import printable

if TYPE_CHECKING:
    from vdvae_repr.latents.base import Latents
    from vdvae_repr.model.layers import LayerSpec
    from vdvae_repr.model.vdvae import VDVAE

SIDE = 128, 192  # pixels of a tile, at least and at most
IMAGES, STEPS = 8, 6  # of a ladder, at most
QUERIES, NEIGHBOURS = 3, 5
BYTES = 2**28  # of a layer's features that are compared, at most


@dataclass(frozen=True)
class Tile:
    """A picture as a data URI, with the text that stands for it."""

    uri: str
    alt: str
    caption: str = ""
    alike: bool | None = None
    """Whether it is of the class of what was asked for; None where that is not known."""


@dataclass(frozen=True)
class Ladder:
    """Images, each beside what is rebuilt from more and more of its layers."""

    columns: list[str]
    rows: list[list[Tile]]


@dataclass(frozen=True)
class Query:
    """An image, and its nearest images by each of some layers."""

    tile: Tile
    by_layer: list[tuple[str, list[Tile]]]


def ladder(store: Latents, model: VDVAE) -> Ladder:
    """Return some images of a store and their reconstructions from its first layers, all others at the prior.

    Raises:
        StoreError: latents of other weights, or none that can be decoded.
    """
    rows = spread_rows(store, IMAGES)
    ids = [store.ids[row] for row in rows]
    latents = latents_of(store, model, rows)
    ends = resolution_ends(store)
    spaced = np.linspace(0, len(ends) - 1, min(STEPS, len(ends))).round().astype(int)
    columns, tiles = [], []
    if store.has_images:
        shown = store.images()[rows]
        columns.append("image")
        tiles.append(
            [_tile(p, f"image {image_id}") for p, image_id in zip(shown, ids, strict=True)]
        )
    for first in (ends[k] for k in spaced):
        rebuilt = model.decode(dict(list(latents.items())[:first]))
        whole = first == len(store.layers)
        last = store.layers[first - 1].name.partition(".")[0]
        columns.append(f"{'all' if whole else 'first'} {first}, to {last}")
        which = f"all {first} layers" if whole else f"the first {first} layers"
        which = "the first layer" if first == 1 else which
        tiles.append(
            [
                _tile(pixels, f"{image_id}, rebuilt from {which}")
                for pixels, image_id in zip(rebuilt, ids, strict=True)
            ]
        )
    return Ladder(columns, [list(row) for row in zip(*tiles, strict=True)])


def latents_of(store: Latents, model: VDVAE, rows: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    """Return what a model makes some images of, every stored layer of theirs, coarsest first.

    Raises:
        StoreError: latents of other weights, or none that can be decoded.
    """
    from vdvae_repr.latents.decode import feature_for, stored_latents  # torch takes seconds

    feature = feature_for(store, model)
    return {spec.name: stored_latents(store, spec, feature, rows) for spec in store.layers}


def resolution_ends(store: Latents) -> list[int]:
    """Return for each resolution how many layers there are up to its last."""
    sides = [spec.resolution for spec in store.layers]
    return [k for k in range(1, len(sides) + 1) if k == len(sides) or sides[k] != sides[k - 1]]


def neighbours(store: Latents, feature: str, picked: str | None = None) -> list[Query]:
    """Return images of a store with those nearest to them by cosine, the images' mean subtracted.

    They are looked for among all images, of large stores among evenly spaced ones.

    Args:
        store: with images.
        feature: that is compared, as `mean`.
        picked: a layer to show beside a coarse, a middle and a fine one.

    Raises:
        StoreError: no images are stored. LayerError: no such feature.
    """
    specs = {spec.name: spec for spec in spread_layers(store)}
    specs |= {spec.name: spec for spec in store.layers if spec.name == picked}
    shown = sorted(specs.values(), key=lambda spec: spec.index)
    images = store.images()
    queries = spread_rows(store, QUERIES)
    most = max(np.prod(store.shape(spec, feature)) for spec in shown)
    size = min(len(store), max(len(queries) + NEIGHBOURS, int(BYTES // (4 * most))))
    pool = np.union1d(np.linspace(0, len(store) - 1, size).round().astype(int), queries)
    by_name = {spec.name: _nearest(store, spec, feature, pool, queries) for spec in shown}
    found = []
    for number, query in enumerate(queries):
        by_layer = [
            (
                f"{name} (picked)" if name == picked else name,
                [_neighbour(store, images[row], query, row) for row in by_name[name][number]],
            )
            for name in by_name
        ]
        of = _label(store, query)
        tile = _tile(images[query], f"{store.ids[query]}, which is looked for", of)
        found.append(Query(tile, by_layer))
    return found


def _nearest(
    store: Latents, spec: LayerSpec, feature: str, pool: NDArray[np.intp], queries: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return the rows nearest to each query by a layer, (Q, NEIGHBOURS), itself left out."""
    # Some at a time, as all rows between the first and the last are read at once.
    parts = np.array_split(pool, -(-len(pool) // 64))
    values = np.concatenate([store.pooled(spec, feature, None, rows) for rows in parts])
    return pool[nearest(values, np.searchsorted(pool, queries), NEIGHBOURS)]


def nearest(values: NDArray[np.float32], queries: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Return the rows of values (N, D) nearest to each query row, (Q, count), itself left out.

    Nearness is the cosine, the mean of all rows subtracted.
    """
    values = values - values.mean(axis=0)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    values /= np.where(length > 0, length, 1)
    cosines = values[queries] @ values.T
    cosines[np.arange(len(queries)), queries] = -np.inf
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]


def spread_layers(store: Latents) -> list[LayerSpec]:
    """Return a coarse, a middle and a fine layer of a store, or as many as it has.

    Layers that spend less than a nat an image, their mean, say nothing of it and are left out, where nats
    are known.
    """
    nats = store.kl.mean(axis=0) if store.has_kl else None
    layers = [s for s in store.layers if nats is None or nats[s.index] >= 1] or list(store.layers)
    return [layers[k] for k in sorted({len(layers) // 8, len(layers) // 2, len(layers) - 1})]


def _neighbour(store: Latents, pixels: NDArray[np.uint8], query: int, row: int) -> Tile:
    labels = store.labels[query], store.labels[row]
    alike = None if min(labels) < 0 else bool(labels[0] == labels[1])
    words = {True: "of the same class", False: "of another class", None: "of no known class"}[alike]
    return _tile(pixels, f"{store.ids[row]}, {words}", _label(store, row), alike)


def _label(store: Latents, row: int) -> str:
    label = store.labels[row]
    return printable(store.label_names[label] if label >= 0 else store.ids[row])


def spread_rows(store: Latents, count: int) -> NDArray[np.intp]:
    """Return rows of images of different classes, evenly spaced among those to be tested, if any are."""
    tested = np.flatnonzero(np.array(store.splits) == "test")
    rows = tested if len(tested) else np.arange(len(store))
    _, firsts = np.unique(store.labels[rows], return_index=True)
    if len(firsts) >= count:
        rows = rows[np.sort(firsts)]
    spaced = (np.arange(min(count, len(rows))) + 0.5) * len(rows) / min(count, len(rows))
    return rows[spaced.astype(int)]


def _tile(
    pixels: NDArray[np.uint8], alt: str, caption: str = "", alike: bool | None = None
) -> Tile:
    """Return pixels (H, W, 3) as a tile, enlarged where they are few and made smaller where they are many."""
    picture = Image.fromarray(pixels)
    least, most = SIDE
    scale = max(least / min(picture.size), 1)
    scale = min(scale, most / min(picture.size)) if min(picture.size) > most else scale
    if scale != 1:
        size = [round(scale * side) for side in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    kind = "webp" if features.check("webp") else "png"
    file = io.BytesIO()
    picture.save(file, format=kind, **({"quality": 88} if kind == "webp" else {}))
    uri = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    return Tile(uri, printable(alt), caption, alike)


def count_alike(queries: Sequence[Query]) -> dict[str, tuple[int, int]]:
    """Return by layer how many of the images that were found are of the class asked for, and of how many."""
    found: dict[str, tuple[int, int]] = {}
    for query in queries:
        for name, tiles in query.by_layer:
            known = [tile.alike for tile in tiles if tile.alike is not None]
            right, of = found.get(name, (0, 0))
            found[name] = right + sum(known), of + len(known)
    return found
