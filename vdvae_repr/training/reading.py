"""A pass over a source before it is used: which images cannot be read, and the statistics of their pixels.

Under torchrun the processes share the images, and each gets the whole result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch.distributed
from numpy.typing import NDArray

from vdvae_repr.data.loader import map_ahead
from vdvae_repr.data.open import open_source
from vdvae_repr.data.source import Preprocessing, Source, read_images
from vdvae_repr.errors import SKIP_ADVICE, DataError, counted

T = TypeVar("T")
LEFT_OUT = "left out"  # the split of images that cannot be read
CHECKED = 4096  # images, of more than these


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation (of the population) over all pixels and channels, in grey levels."""

    images: int
    mean: float
    std: float


def reopened(
    opened: str | Mapping[str, Any], notice: Callable[[str], None] | None = None
) -> Source:
    """Open again what a run folder kept of its images (`Source.opened`).

    Raises:
        DataError: it cannot be opened any more, or is no description of images.
    """
    options = {"data": opened} if isinstance(opened, str) else dict(opened)
    try:
        return open_source(notice=notice, **options)
    except TypeError as error:
        raise DataError(
            f"run.json: expected what opens the run's images, found {opened!r}; give the images again"
        ) from error


def unreadable(
    source: Source, preprocessing: Preprocessing, indices: Sequence[int], workers: int
) -> dict[str, str]:
    """Read every image once; return by id why some cannot be read.

    Raises:
        DataError: none of them can.
    """

    def reason(index: int) -> tuple[str, str] | None:
        try:
            read_images(source, preprocessing, [index])
        except DataError as error:
            return source.ids[index], str(error).replace(SKIP_ADVICE, "")
        return None

    rank, world = process()
    mine = map_ahead(reason, indices[rank::world], workers=workers, ahead=4 * workers)
    parts = gathered([pair for pair in mine if pair is not None])
    found = dict(sorted(pair for part in parts for pair in part))
    if len(found) == len(indices) > 0:
        raise DataError(
            f"{source.name}: none of {len(indices)} images can be read; the first: "
            f"{next(iter(found.values()))}"
        )
    return found


def content_checksums(source: Source, workers: int) -> tuple[NDArray[np.intp], list[int]]:
    """Return the checksums of all images, or of 4096 spread evenly over more, behind their indices."""
    count = len(source)
    indices = np.arange(min(count, CHECKED)) * count // min(count, CHECKED)
    rank, world = process()
    mine = map_ahead(
        source.checksum, indices[rank::world].tolist(), workers=workers, ahead=4 * workers
    )
    found = np.zeros(len(indices), np.uint64)
    for start, part in enumerate(gathered(list(mine))):
        found[start::world] = part
    return indices, found.tolist()


def leave_out(source: Source, left_out: Mapping[str, str]) -> Source:
    """Return the source with the images of these ids in the split `left out`, where nobody takes them."""
    if not left_out:
        return source
    splits = (
        LEFT_OUT if image_id in left_out else split
        for image_id, split in zip(source.ids, source.splits, strict=True)
    )
    return replace(source, splits=tuple(splits))


def describe_left_out(left_out: Mapping[str, str]) -> str:
    """Say in one line how many images were left out, and name the first of them."""
    names = list(left_out)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{counted(len(names), 'unreadable image')} left out: {', '.join(names[:5])}{more}"


def about_mended(left_out: Mapping[str, str] | None) -> str:
    """End a refusal of other data: an image that was left out, and is readable since, makes them others."""
    if not left_out:
        return ""
    first, more = next(iter(left_out)), len(left_out) - 1
    names = repr(first) + (f" and {more} more" if more else "")
    return f"; it left {names} out, unread: where that was mended or removed since, put it back as it was"


def pixel_statistics(
    source: Source, preprocessing: Preprocessing, indices: NDArray[np.intp], workers: int
) -> PixelStatistics:
    """Return the statistics of the preprocessed images; sums of whole numbers, so exact in any order.

    Raises:
        DataError: an image cannot be read, or all are of one flat colour.
    """

    def sums(batch: NDArray[np.intp]) -> tuple[int, int]:
        pixels = read_images(source, preprocessing, batch)
        counts = np.bincount(pixels.ravel(), minlength=256).astype(np.int64)
        values = np.arange(256)
        return int(counts @ values), int(counts @ values**2)

    rank, world = process()
    mine = indices[rank::world]
    batches = [mine[start : start + 64] for start in range(0, len(mine), 64)]
    parts = gathered(list(map_ahead(sums, batches, workers=workers, ahead=2 * workers)))
    pairs = [pair for part in parts for pair in part]
    total, squares = (sum(column) for column in zip(*pairs, strict=True))
    count = len(indices) * 3 * preprocessing.size**2
    if squares * count == total**2:
        raise DataError(
            f"{source.name}: all {len(indices)} training images are of one flat colour; "
            "nothing can be learned"
        )
    variance = (squares * count - total**2) / count**2
    return PixelStatistics(len(indices), total / count, math.sqrt(variance))


def gathered(own: list[T]) -> list[list[T]]:
    """Return the lists of all processes, by rank; this one's alone where there is no other."""
    _, world = process()
    if world == 1:
        return [own]
    parts: list[list[T]] = [[] for _ in range(world)]
    torch.distributed.all_gather_object(parts, own)
    return parts


def process() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
