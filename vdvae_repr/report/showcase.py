"""Contact sheets of a first look at a store: what layers rebuild, whom they find alike, how they mix."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.data.sheet import save_sheet
from vdvae_repr.latents.base import Latents
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.report.gallery import (
    latents_of,
    nearest,
    resolution_ends,
    spread_layers,
    spread_rows,
)

IMAGES, QUERIES, NEIGHBOURS, PAIRS = 8, 2, 5, 3


@dataclass(frozen=True)
class Sheet:
    """Images row by row, and what stands beside and above them."""

    rows: list[NDArray[np.uint8]]
    """Of each row the images (columns, S, S, 3)."""
    labels: list[str]
    titles: list[str] = field(default_factory=list)
    framed: list[int] = field(default_factory=list)
    """Numbers of the images, counted along the rows, that get a frame."""

    def save(self, path: Path) -> None:
        """Write it as a PNG.

        Raises:
            DataError: another file is there, or it cannot be written.
        """
        save_sheet(
            np.concatenate(self.rows),
            path,
            len(self.rows[0]),
            self.labels,
            self.titles,
            self.framed,
        )


@dataclass(frozen=True)
class Rung:
    """What the layers up to a resolution hold of some images."""

    name: str
    """Of the layers: `1x1`, or `to 4x4`."""
    layers: int
    nats: float
    """That all images of the store spend on them, their mean."""
    error: float
    """Of rebuilding, root mean square in grey levels of 255."""


def reconstructions(store: Latents, model: VDVAE) -> tuple[Sheet, list[Rung]]:
    """Return images, and below each what is rebuilt from more and more of its layers.

    The layers that are left out are the prior's mean, given those that are taken.

    Args:
        store: with images and every layer of the model.
        model: that the store was extracted with.
    """
    rows = spread_rows(store, IMAGES)
    images = store.images()[rows]
    latents = latents_of(store, model, rows)
    nats = np.cumsum(store.kl.mean(axis=0))
    sheet, rungs = Sheet([images], ["image"]), []
    for count in resolution_ends(store):
        rebuilt = model.decode(dict(list(latents.items())[:count]))
        name = _up_to(store, count)
        error = np.sqrt(np.mean((rebuilt.astype(np.float32) - images) ** 2))
        rungs.append(Rung(name, count, float(nats[count - 1]), float(error)))
        sheet.rows.append(rebuilt)
        sheet.labels.append(f"{name}, {count} layer{'s' if count > 1 else ''}")
    return sheet, rungs


def neighbours(store: Latents, feature: str = "mean") -> tuple[Sheet, dict[str, float]]:
    """Return images with those nearest to them by a coarse, a middle and a fine layer, and by pixels.

    Nearness is the cosine, the mean of all images subtracted. Images of the same class are framed.

    Args:
        store: with images and labels.
        feature: that is compared.

    Returns:
        The sheet; and by layer the share of all images whose nearest one is of the same class.
    """
    images, everything = store.images(), np.arange(len(store))
    by_name = {s.name: store.pooled(s, feature, None, everything) for s in spread_layers(store)}
    by_name["pixels"] = images.reshape(len(images), -1).astype(np.float32)
    found = {name: nearest(values, everything, NEIGHBOURS) for name, values in by_name.items()}
    same = {name: store.labels[rows] == store.labels[:, None] for name, rows in found.items()}
    first, *others = ["nearest", *(f"{n}." for n in range(2, NEIGHBOURS + 1))]
    sheet = Sheet([], [], ["query", first, *others])
    for query in spread_rows(store, QUERIES):
        for name, rows in found.items():
            start = len(sheet.rows) * (1 + NEIGHBOURS) + 1
            sheet.framed.extend((start + np.flatnonzero(same[name][query])).tolist())
            sheet.rows.append(images[[query, *rows[query]]])
            sheet.labels.append(name)
    return sheet, {name: float(alike[:, 0].mean()) for name, alike in same.items()}


def interpolation(store: Latents, model: VDVAE) -> Sheet:
    """Return images that become others: layers are replaced, resolution by resolution, coarse ones first.

    Args:
        store: with every layer of the model.
        model: that the store was extracted with.
    """
    latents = latents_of(store, model, spread_rows(store, 2 * PAIRS))
    counts = [0, *resolution_ends(store)]
    steps = [
        model.decode(
            {name: z[1::2] if k < count else z[::2] for k, (name, z) in enumerate(latents.items())}
        )
        for count in counts
    ]
    titles = ["A", *(f"{_up_to(store, count)} of B" for count in counts[1:-1]), "all of B"]
    return Sheet(list(np.stack(steps, axis=1)), ["A to B"] * PAIRS, titles)


def _up_to(store: Latents, count: int) -> str:
    side = store.layers[count - 1].resolution
    first = side == store.layers[0].resolution
    return f"{side}x{side}" if first else f"to {side}x{side}"
