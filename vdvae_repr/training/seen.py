"""Which images a model was trained on, told image by image: by hashes that its run folder keeps of them."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.config import TrainConfig, build_table
from vdvae_repr.data.source import Preprocessing, Source, hashes_of, image_hashes
from vdvae_repr.errors import ConfigError, DataError, printable
from vdvae_repr.model.base import SavedModel
from vdvae_repr.output import replacing
from vdvae_repr.training.draws import split_indices
from vdvae_repr.training.reading import CHECKED, gathered, process

NONE = np.zeros(0, np.uint64)


class SeenImages:
    """The images that a run was trained on so far, of all its processes, as `trained_on.npy` keeps them."""

    def __init__(self, known: NDArray[np.uint64], count: int) -> None:
        """Begin with what is known from before; the source has `count` images."""
        self.known = known
        self.new: list[NDArray[np.uint64]] = []
        self._hashed = np.zeros(count, bool)  # by index, so that each image is hashed once

    def hashes(self, indices: NDArray[np.intp], images: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """Return the hashes of those of some images that no call returned before."""
        first = ~self._hashed[indices]
        self._hashed[indices] = True
        return image_hashes(images[first])

    def write(self, path: Path, main: bool) -> None:
        """Put together what the processes added to `new`; the main one writes it, sorted.

        Raises:
            OSError: it cannot be written.
        """
        added = [part for parts in gathered(self.new) for part in parts]
        self.new = []
        before, self.known = self.known, np.unique(np.concatenate([self.known, *added]))
        if main and (len(self.known) > len(before) or not path.is_file()):
            with replacing(path) as file:
                np.save(file, self.known)


def count_trained_on(
    model: SavedModel, source: Source, indices: Sequence[int] | NDArray[np.intp], workers: int
) -> tuple[int, int] | None:
    """Return how many of some images a model was trained on, and of how many that was asked.

    Of more than 4096 images so many are looked at, drawn at random, always the same. Without hashes the
    source that its run was trained on is still known as a whole. None where nothing tells.
    """
    if model.trained_on is None:
        trained = _trained_rows(model, source)
        return None if trained is None else (int(np.isin(indices, trained).sum()), len(indices))
    count = min(len(indices), CHECKED)
    drawn = np.random.default_rng(0).permutation(len(indices))[:count]
    among = np.asarray(indices, np.intp)[np.sort(drawn)]
    preprocessing = Preprocessing(size=model.config.image_size, crop=model.trained_crop)
    rank, world = process()
    mine = hashes_of(source, preprocessing, among[rank::world].tolist(), workers)
    hashes = [each for part in gathered([mine]) for each in part]
    return int(np.isin(np.concatenate(hashes), model.trained_on).sum()), count


def hashes_to_go_on_from(
    before: SavedModel | None, image_size: int, crop: int | None
) -> NDArray[np.uint64] | None:
    """Return the hashes that a run takes over from what it begins from; None where these are not known.

    Hashes of images of another size or crop count as not known: no image of the run would match them.
    """
    if before is None or (before.config.image_size, before.trained_crop) != (image_size, crop):
        return None
    return before.trained_on


def _trained_rows(model: SavedModel, source: Source) -> NDArray[np.intp] | None:
    """Return the images of a source that a model was trained on, if its file says that it was on this one."""
    if model.record.get("data_sha256") != source.fingerprint():
        return None
    try:
        recipe = build_table(TrainConfig, tomllib.loads(model.record["config"])["train"])
        return split_indices(source, recipe)[0]
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError, DataError):
        return None  # another's record


def about_held_back_before(
    model: SavedModel | None, name: str, source: Source, held: NDArray[np.intp], workers: int
) -> str:
    """Say how many images held back were trained on by what a run begins from; empty where none were.

    Args:
        model: whose weights it starts from, or its teacher; None where its file does not tell.
        name: of the model.
        source: of the images.
        held: those held back.
        workers: threads that read them.
    """
    found = None if model is None else count_trained_on(model, source, held, workers)
    if found is None:
        return about_unknown(model, name, "images held back")
    if not found[0]:
        return about_unknown(model, name, "images held back") if begun_from(model) else ""
    return (
        f"{source.name}: {found[0]} of {found[1]} images held back are images that {name} was trained on, so "
        "that their score is not of new images; hold back what it did, by its train.seed and train.hold_back"
    )


def about_unknown(model: SavedModel | None, name: str, images: str) -> str:
    """Say that nothing tells whether some images are among those that a model was trained on."""
    data = None if model is None else model.record.get("data")
    if isinstance(data, str):
        if start := begun_from(model):
            return (
                f"{name}: was trained on {printable(data)}, and {start}; whether {images} are among what "
                "either was trained on is not recorded"
            )
        return f"{name}: was trained on {printable(data)}; whether {images} are among that is not recorded"
    return f"{name}: which images it was trained on is not recorded, so that {images} may be among them"


def begun_from(model: SavedModel | None) -> str:
    """Name what a model began from whose images are not recorded; empty where all are, or it is no run's."""
    if model is None or model.trained_on is not None:
        return ""
    for key, began in (("init_from", "began from"), ("teacher", "was taught by")):
        name = model.record.get(key)
        if isinstance(name, str) and name and not name.endswith("@random"):
            return f"{began} {printable(name)}"
    return ""
