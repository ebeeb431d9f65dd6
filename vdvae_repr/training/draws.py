"""What a run draws: held-back images, order, flips and noise, all functions of the seed and the step.

They are drawn for the joint batch of all processes: nothing random has to be restored when a run is
resumed, and a run does not depend on how its batch is divided.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from vdvae_repr.config import TrainConfig
from vdvae_repr.data.source import Source
from vdvae_repr.errors import DataError, counted
from vdvae_repr.model.noise import NoiseFn

HELD_BACK = 0.1
FEWEST = 6  # images, or labels, of which a tenth is one when it is rounded


def split_indices(source: Source, recipe: TrainConfig) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices trained on and those held back, the latter in an order drawn from the seed.

    Images of no split are trained on where none is of split `train`.

    Raises:
        DataError: either would be empty.
    """
    usable, rng = _to_train_on(source), np.random.default_rng((recipe.seed, 2))
    held = rng.permutation(np.flatnonzero(np.array(source.splits) == "val"))
    if len(held) == 0 and len(usable) > 0:
        labels = source.labels[usable]
        groups = np.where(labels < 0, labels.max() + 1 + np.arange(len(labels)), labels)
        if recipe.hold_back == "labels":
            distinct = rng.permutation(np.unique(groups))
            chosen = np.isin(groups, distinct[: round(HELD_BACK * len(distinct))])
        else:
            order = rng.permutation(len(usable))
            by_label = order[np.argsort(labels[order], kind="stable")]
            chosen = np.zeros(len(usable), bool)
            chosen[by_label[round(0.5 / HELD_BACK) :: round(1 / HELD_BACK)]] = True
        held, usable = rng.permutation(usable[chosen]), usable[~chosen]
    if min(len(usable), len(held)) == 0:
        remedy = (
            f"a tenth of {recipe.hold_back} is held back: give {FEWEST} {recipe.hold_back} or more"
        )
        if recipe.hold_back == "labels" and len(usable) >= FEWEST:
            remedy += ', train.hold_back = "images"'
        if len(usable) == 0:
            remedy = "give images of split train, or of none"
        else:
            remedy += ", or images of split val"
        raise DataError(
            f"{source.name}: expected images to train on and some to hold back, "
            f"found {len(usable)} and {len(held)}; {remedy}"
        )
    return usable, held


def _to_train_on(source: Source) -> NDArray[np.intp]:
    """Return the indices of split `train`, or of no split where no image is of that."""
    return np.flatnonzero(np.array(source.splits) == ("train" if "train" in source.splits else ""))


def about_held_back(source: Source, recipe: TrainConfig) -> str:
    """Say where labels are to be held back, and images have none; empty otherwise."""
    without = int(np.count_nonzero(source.labels[_to_train_on(source)] < 0))
    if recipe.hold_back != "labels" or not without or "val" in source.splits:
        return ""
    has = "has" if without == 1 else "have"
    return (
        f"{source.name}: {counted(without, 'image')} to train on {has} no label, so that each counts as one "
        'of its own where train.hold_back = "labels" holds a tenth of the labels back; give labels, or '
        'train.hold_back = "images"'
    )


def mark_held_back(source: Source, recipe: TrainConfig) -> Source:
    """Return the source with splits `train` and `held-back`, as a run of this recipe divides it.

    Images in neither, as those of a split `test`, keep theirs.
    """
    splits = np.array(source.splits, dtype=object)
    for name, indices in zip(("train", "held-back"), split_indices(source, recipe), strict=True):
        splits[indices] = name
    return replace(source, splits=tuple(splits))


def ordered(count: int, position: int, size: int, seed: int) -> NDArray[np.intp]:
    """Return items position .. position + size - 1 of the endless sequence of shuffled epochs, (size,)."""
    places = np.arange(position, position + size)
    items = np.empty(size, np.intp)
    for epoch in np.unique(places // count):
        inside = places // count == epoch
        items[inside] = _epoch_order(count, int(epoch), seed)[places[inside] % count]
    return items


@lru_cache(maxsize=2)
def _epoch_order(count: int, epoch: int, seed: int) -> NDArray[np.intp]:
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


def flipped(seed: int, step: int, size: int) -> NDArray[np.bool_]:
    """Return which images of a joint batch are mirrored, (size,): half of them on average."""
    return np.random.default_rng((seed, 1, step)).random(size) < 0.5


def joint_noise(seed: int, step: int, size: int, rows: slice, device: torch.device) -> NoiseFn:
    """Return draws for some rows of a joint batch, the same however it is divided.

    A layer's draws are made for the whole joint batch each time: that costs time, never memory.
    """
    word = int(np.random.SeedSequence((seed, 3, step)).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator(device).manual_seed(word)
    return lambda layer: torch.randn((size, *layer.shape), generator=generator, device=device)[rows]
