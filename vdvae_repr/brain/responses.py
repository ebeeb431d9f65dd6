"""Measured responses to images, and how well noise lets any model predict them.

R repetitions, N images, V voxels. A voxel stands for whatever was measured: neurons and channels too.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from vdvae_repr.config import hidden_by_mask, path_of, whole_number, without_order
from vdvae_repr.data import names
from vdvae_repr.data.hdf5 import leads_outside, made_up, marked, missing_values, unpacked
from vdvae_repr.data.kinds import why_unreadable
from vdvae_repr.data.readers.arrays import map_npy, npz_members, read_member
from vdvae_repr.data.table import read_table
from vdvae_repr.errors import DataError, TaskError, counted, first_line
from vdvae_repr.heads.gram import Rows
from vdvae_repr.heads.linear import apart_from_others
from vdvae_repr.latents.base import Latents, expect_store

BESIDE = ("ids", "splits")  # arrays that say of which images another one is
FORMATS = (".npy", ".npz", ".h5", ".hdf5", ".mat")
REPEATED = "leave one out, or put repetitions of an image on the first axis"
CONTROLS = ("null", "none")  # regions that see nothing are called so
AS_MEASURED = "this counts as measured; write NaN where nothing was"
NAMED = 5  # arrays that are not read, in a line
HALVES = 100  # ways to halve repetitions, at most
SEVERAL = 10  # voxels that do not have one value by chance; values that are not the same by chance
AT_ONCE = 4096  # voxels worked on at once

Array = NDArray[Any]
Values = NDArray[np.float64]
Checksums = tuple[str, NDArray[np.uint64]]
Measured = str | Path | NDArray[Any]
"""An array in memory, or the name of a file that holds one: FILE, or FILE:KEY."""


class Measurement(NamedTuple):
    """An array of a file, and what the file says of its images: ids and splits (N,), None without any."""

    values: Array
    ids: list[str] | None = None
    splits: list[str] | None = None
    notes: tuple[str, ...] = ()
    """What of the file is not read, or not as it stands."""


def read_array(measured: Measured, what: str) -> Measurement:
    """Return an array, and what its file says of its images.

    Args:
        measured: an array; or a .npy, .npz, .h5 or .mat file, with `:KEY` behind it where it holds several
            arrays. `ids` and `splits` are arrays of these names, in any case, in the same file, in the same
            group or in one around it.
        what: the option, in messages.

    Raises:
        DataError: no such file or array; one that is no numbers, or of which values were never written.
    """
    if why := hidden_by_mask(measured, "numbers", what, "numpy.nan"):
        raise DataError(f"{what}: {why}")
    if isinstance(measured, np.ndarray):
        return Measurement(_numbers(np.asarray(measured), what))  # a matrix stays one in two axes
    if not isinstance(measured, str | os.PathLike):
        raise DataError(
            f"{what}: expected a NumPy array, or the name of a file, found {type(measured).__name__}; "
            "give it as an array"
        )
    path, key = _file_and_key(measured, what)
    try:
        if path.suffix == ".npy":
            return Measurement(_numbers(map_npy(path), str(path)))
        if path.suffix == ".npz":
            arrays = _of_npz(path)
        elif path.suffix == ".mat" and not h5py.is_hdf5(path):
            loaded = read_mat(path)
            # Texts of a matrix of characters are padded to one length.
            arrays = {
                n: np.char.rstrip(a) if isinstance(a, np.ndarray) and a.dtype.kind == "U" else a
                for n, a in loaded.items()
                if not n.startswith("__")
            }
        else:
            return _of_hdf5(path, key)
        name = _only(path, key, {n: a for n, a in arrays.items() if n.casefold() not in BESIDE})
        values = _numbers(np.asarray(arrays[name]), f"{path}: {name}")
        beside = _beside(path, arrays)
        about = {word: _words(arrays[n], f"{path}: {n}") for word, n in beside.items()}
        sizes = {n: np.shape(a) for n, a in arrays.items() if n not in (name, *beside.values())}
        return Measurement(values, **about, notes=_not_read(path, sizes, values))
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(
            f"{path}: expected an array in a {path.suffix} file "
            f"({why_unreadable(path, error, 'save it again')})"
        ) from error


def read_mat(path: Path) -> dict[str, Any]:
    """Return what a MATLAB file holds, as `scipy.io.loadmat` does.

    Raises:
        DataError: it cannot be read.
    """
    try:
        loaded: dict[str, Any] = scipy.io.loadmat(path)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file may make SciPy raise anything
        raise DataError(
            f"{path}: expected a MATLAB file ({why_unreadable(path, error, 'save it again')})"
        ) from error
    return loaded


def _beside(path: Path, arrays: Iterable[str]) -> dict[str, str]:
    """Return which of the arrays of a file, or of a group, are its `ids` and `splits`, in any case.

    Raises:
        DataError: there are two of one, as `ids` and `IDs`.
    """
    found: dict[str, str] = {}
    for name in arrays:
        word = name.casefold()
        if word in BESIDE and found.setdefault(word, name) != name:
            raise DataError(f"{path}: expected one array {word!r}, found {found[word]} and {name}")
    return found


def _not_read(path: Path, shapes: Mapping[str, tuple[int, ...]], values: Array) -> tuple[str, ...]:
    """Return a line that names arrays that nothing reads, those with a value an image first; maybe none."""
    if not shapes:
        return ()
    images = values.shape[-2] if values.ndim > 1 else 0
    listed = sorted(shapes, key=lambda name: int(np.prod(shapes[name])) != images)
    text = ", ".join(f"{name} {shapes[name]}" for name in listed[:NAMED])
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return (
        f"{path}: not read: {text}{more}; the images' ids and splits are arrays called ids and splits",
    )


def _file_and_key(measured: str | os.PathLike[str], what: str) -> tuple[Path, str | None]:
    path, key = path_of(what, measured), None
    if not path.is_file() and ":" in str(measured):
        file, _, key = str(measured).rpartition(":")
        path = Path(file)
    if path.suffix not in FORMATS:
        raise DataError(
            f"{what}: expected a file {', '.join(FORMATS)}, maybe with :KEY behind it, found {measured}"
        )
    if key is not None and path.suffix == ".npy":
        raise DataError(f"{what}: {path} holds one array without a name; leave :{key} out")
    if not path.is_file():
        raise DataError(f"{what}: {path}: no such file")
    return path, key


def _of_npz(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        return {
            name: read_member(path, archive, info)
            for name, info in npz_members(path, archive).items()
        }


def _of_hdf5(path: Path, key: str | None) -> Measurement:
    """Read a data set of an HDF5 file; MATLAB's, whose axes stand in reverse order, are turned back."""
    with h5py.File(path, "r") as file:
        if why := leads_outside(file, {"."}, soft_links=True):
            raise DataError(f"{path}: {why}; refused: copy what is to be read into one file")
        every: dict[str, h5py.Dataset] = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and not name.startswith("#"):  # cells of MATLAB's
                every[name] = item

        file.visititems(visit)
        numbers = {
            name: item
            for name, item in every.items()
            if item.shape
            and item.dtype.kind in "fiu"
            and name.rpartition("/")[2].casefold() not in BESIDE
        }
        name = _only(path, key, numbers)
        data = every[name]
        _expect_written(data, f"{path}: {name}")
        array, notes = unpacked(data)
        if "MATLAB_class" in data.attrs:
            array = array.T
        about: dict[str, list[str]] = {}
        read, group = [data], name
        while group and len(about) < len(BESIDE):  # outwards, as far as the root
            group = group.rpartition("/")[0]
            folder = file[group or "/"]
            inside = [n for n in folder if isinstance(folder.get(n), h5py.Dataset)]
            for word, beside in _beside(path, inside).items():
                if word not in about:
                    read.append(folder[beside])
                    about[word] = _texts_of(read[-1], f"{path}: {f'{group}/{beside}'.lstrip('/')}")
        notes = tuple(f"{path}: {name}: {note}" for note in notes)
        shapes = {n: item.shape or () for n, item in every.items() if item not in read}
        notes += _not_read(path, shapes, array)
    return Measurement(_numbers(array, f"{path}: {name}"), **about, notes=notes)


def _expect_written(data: h5py.Dataset, what: str) -> None:
    """Refuse a data set with values that nobody wrote, where what HDF5 makes up for them is no NaN.

    Raises:
        DataError: it has some.
    """
    if why := missing_values(data) or made_up(data):
        raise DataError(f"{what} {why}")


def _texts_of(data: h5py.Dataset, what: str) -> list[str]:
    """Return the words of a data set; of MATLAB's cells those that they refer to."""
    if data.shape is None or h5py.check_ref_dtype(data.dtype) is not h5py.Reference:
        return _words(_of_matlab(data, what), what)
    cells = [data.file[reference] for reference in np.ravel(np.transpose(data[()]))]
    if not all(isinstance(c, h5py.Dataset) and c.dtype.kind in "fiu" for c in cells):
        raise DataError(f"{what}: expected texts or whole numbers in cells, found others")
    return [word for cell in cells for word in _words(_of_matlab(cell, what), what)]


def _of_matlab(data: h5py.Dataset, what: str) -> Array:
    """Return the values of a data set; what MATLAB 7.3 wrote as text is that again.

    Raises:
        DataError: some were never written, or are marked as missing.
    """
    _expect_written(data, what)
    kind = data.attrs.get("MATLAB_class", b"")
    array = np.asarray(data[()]).T if kind else np.asarray(data[()])
    if why := marked(data, array):
        raise DataError(f"{what} {why}")
    if kind == b"char" and "MATLAB_empty" in data.attrs:
        return np.array([""])
    if kind == b"char" and array.dtype == np.uint16 and array.ndim == 2:  # a text a row
        return np.array(["".join(map(chr, row)).rstrip(" ") for row in array.tolist()])
    return array


def _words(array: Array, what: str) -> list[str]:
    """Return texts, or whole numbers, also those of type double, as texts; of MATLAB's cells what each holds.

    Raises:
        DataError: they are something else.
    """
    words = []
    for item in np.ravel(array).tolist():
        while isinstance(item, np.ndarray) and item.size <= 1:
            item = item.item() if item.size else ""
        word = item.decode() if isinstance(item, bytes) else item
        if isinstance(word, float) and word.is_integer() and abs(word) < 2**53:
            word = int(word)
        if isinstance(word, bool) or not isinstance(word, str | int):
            raise DataError(
                f"{what}: expected texts or whole numbers, found {type(word).__name__} {word!r}"
            )
        words.append(str(word))
    return words


def _only(path: Path, key: str | None, arrays: dict[str, Any]) -> str:
    """Return the name of the array that is meant: the key, or the only one."""
    listed = ", ".join(f"{name} {np.shape(array)}" for name, array in arrays.items()) or "none"
    if key is None:
        if len(arrays) != 1:
            raise DataError(
                f"{path}: expected one array, found {listed}; name one as {path.name}:KEY"
            )
        return next(iter(arrays))
    key = key.strip("/")
    if key not in arrays:
        raise DataError(f"{path}: found no array {key!r}; it holds {listed}")
    return key


def _numbers(array: Array, what: str) -> Array:
    if array.dtype.kind not in "fiu":
        raise DataError(f"{what}: expected real numbers, found {array.dtype}")
    return array


class Placed(NamedTuple):
    """The store's rows (N,) that N measured images are, their splits (N,), and lines about both."""

    rows: NDArray[np.intp]
    splits: tuple[str, ...]
    notes: tuple[str, ...]


def placed(store: Latents, found: Measurement, count: int, what: str) -> Placed:
    """Return which of a store's images were measured, by ids, or in the store's order, and their splits.

    Splits are the file's own where it has some, by the words that mean them, else those of the store.

    Args:
        store: of the images.
        found: what was read.
        count: N.
        what: the option, in messages.

    Raises:
        TaskError: other numbers of images, ids or splits, an id that the store lacks, or one twice.
    """
    rows = _rows_of(store, count, found.ids, what)
    notes = found.notes
    if found.ids is None:
        notes += (
            f"{what}: without ids, rows are taken as the images of {store.path}, in its order",
        )
    if found.splits is None:
        return Placed(rows, tuple(store.splits[row] for row in rows), notes)
    if len(found.splits) != count:
        raise TaskError(
            f"{what}: expected a split for each of {count} images, found {len(found.splits)}"
        )
    splits, about = names.splits_of(found.splits)
    return Placed(rows, splits, (*notes, *(f"{what}: {line}" for line in about)))


def of_splits(splits: Sequence[str]) -> str:
    """Say in a message which splits images are of, and what splits are called.

    >>> of_splits(["train", "holdout", "train"])
    'of holdout (1), train (2); splits are called train, val and test'
    """
    counts = Counter(splits)
    listed = ", ".join(f"{split or 'none'} ({counts[split]})" for split in sorted(counts))
    return f"of {listed}; splits are called {', '.join(names.SPLITS[:-1])} and {names.SPLITS[-1]}"


def _rows_of(store: Latents, count: int, ids: Sequence[str] | None, what: str) -> NDArray[np.intp]:
    """Return the store's rows (N,) that N measured images are, by ids, or in the store's order.

    Raises:
        TaskError: other numbers of images, an id that the store lacks, or one that stands twice.
    """
    if ids is None:
        if count != len(store):
            raise TaskError(
                f"{what}: expected one row for each of the {len(store)} images of {store.path}, in their "
                f"order, found {count}; or give ids, as an array `ids` in the same file"
            )
        return np.arange(count)
    if len(ids) != count:
        raise TaskError(f"{what}: expected an id for each of {count} images, found {len(ids)}")
    place = {image_id: row for row, image_id in enumerate(store.ids)}
    if unknown := [image_id for image_id in ids if image_id not in place]:
        raise TaskError(
            f"{what}: id {unknown[0]!r} is not in {store.path}, whose ids are as {store.ids[0]!r}; "
            "extract these images too"
        )
    rows = np.array([place[image_id] for image_id in ids], np.intp)
    if len(np.unique(rows)) < len(rows):
        twice = next(image_id for image_id in ids if list(ids).count(image_id) > 1)
        raise TaskError(
            f"{what}: expected every id once, found {twice!r} twice; put repetitions on the first axis"
        )
    return rows


@dataclass(frozen=True, eq=False)
class Responses:
    """Responses of V voxels to N images, seen up to R times each.

    Args:
        values: (R, N, V); a repetition that is NaN in every voxel was not there.
        rows: the store's images that they are of (N,).
        voxels: the numbers of the voxels in the file (V,), from 0.
        rois: voxels of each region of interest, as flags (V,), by its name.
        notes: what was left out.
        splits: of the images (N,): those of the file, else those of the store.
        measured: how many voxels were measured, with those that were left out.
        ids: of the images (N,). Where they are given, they, and not `rows`, say which images of a store
            these are.
        checksums: of the images (N,), behind what they are of, as `LatentStore.checksums` has them: a store
            that has other images under these ids is refused.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> signal = rng.normal(size=(500, 1))
        >>> values = signal + rng.normal(size=(2, 500, 1))
        >>> responses = Responses(values, np.arange(500), np.arange(1), {})
        >>> responses.noise_ceiling().round(1)  # half of one repetition is signal, 2/3 of the mean of two
        array([0.7])
    """

    values: Array
    rows: NDArray[np.intp]
    voxels: NDArray[np.intp]
    rois: dict[str, NDArray[np.bool_]]
    notes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    measured: int = 0
    ids: tuple[str, ...] = ()
    checksums: Checksums | None = None

    def __post_init__(self) -> None:
        """Make arrays of lists, and refuse parts that do not fit together.

        Raises:
            TaskError: names the part.
        """
        values = as_array("values", self.values, "real numbers", "fiu")
        if values.ndim != 3:
            raise TaskError(f"values: expected (repetitions, images, voxels), found {values.shape}")
        if values.dtype not in (np.float32, np.float64):
            values = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
        object.__setattr__(self, "values", values)
        _, images, voxels = values.shape
        for name, size, what in (("rows", images, "image"), ("voxels", voxels, "voxel")):
            numbers = as_array(name, getattr(self, name), "whole numbers", "iu")
            if numbers.shape != (size,):
                raise TaskError(
                    f"{name}: expected one for each of {size} {what}s, found {numbers.shape}"
                )
            if len(np.unique(numbers)) < size:
                remedy = f"; {REPEATED}" if name == "rows" else ""
                raise TaskError(f"{name}: expected every {what} once, found one twice{remedy}")
            object.__setattr__(self, name, numbers.astype(np.intp))
        for name in ("ids", "splits", "notes"):
            if why := without_order(getattr(self, name), "texts"):
                raise TaskError(f"{name}: {why}")
            texts = tuple(map(str, getattr(self, name)))
            object.__setattr__(self, name, texts)
            if name != "notes" and texts and len(texts) != images:
                raise TaskError(
                    f"{name}: expected one for each of {images} images, found {len(texts)}"
                )
        measured = whole_number("measured", self.measured, 0)
        object.__setattr__(self, "measured", measured)
        if not isinstance(self.rois, Mapping):
            raise TaskError(
                f"rois: expected flags of voxels by region, found {type(self.rois).__name__}; give a dict"
            )
        rois = {}
        for name, given in self.rois.items():
            flags = as_array(f"rois: {name}", given, f"flags of {voxels} voxels", "b")
            if flags.shape != (voxels,):
                raise TaskError(
                    f"rois: {name}: expected flags of {voxels} voxels, found {flags.dtype} {flags.shape}"
                )
            rois[name] = flags
        object.__setattr__(self, "rois", rois)

    @property
    def mean(self) -> Array:
        """The mean over repetitions, (N, V), in float64 where there are several."""
        if len(self.values) == 1:
            return self.values[0]
        mean: Array = np.empty(self.values[0].shape, np.float64)
        for block in voxel_blocks(len(self.voxels)):
            mean[:, block] = np.nanmean(self.values[:, :, block], axis=0, dtype=np.float64)
        return mean

    @property
    def repetitions(self) -> NDArray[np.intp]:
        """How often each image was seen, (N,)."""
        return np.asarray(self._there.sum(axis=0))

    @cached_property
    def _there(self) -> NDArray[np.bool_]:
        """Which repetitions of which images were there, (R, N)."""
        there: NDArray[np.bool_] = np.asarray(~np.isnan(self.values[:, :, :1]).all(axis=2))
        for repetition, image in np.argwhere(~there).tolist():
            there[repetition, image] = not np.isnan(self.values[repetition, image]).all()
        return there

    def to(self, images: NDArray[np.intp]) -> Responses:
        """Return the responses to some images, by their numbers among these N."""
        splits, ids = (
            tuple(texts[image] for image in images) if texts else ()
            for texts in (self.splits, self.ids)
        )
        known = self.checksums
        return replace(
            self,
            values=self.values[:, images],
            rows=self.rows[images],
            splits=splits,
            ids=ids,
            checksums=None if known is None else (known[0], known[1][images]),
        )

    def of(self, kept: NDArray[np.bool_]) -> Responses:
        """Return the responses of some voxels, by flags (V,)."""
        rois = {name: flags[kept] for name, flags in self.rois.items()}
        return replace(self, values=self.values[:, :, kept], voxels=self.voxels[kept], rois=rois)

    def noise_ceiling(self, tested: Rows | None = None) -> Values | None:
        """Return the share of variance of the images' mean responses that is signal, (V,), from 0 to 1.

        It is the square of the best correlation that a model can have. Source: Allen et al. 2022, Nature
        Neuroscience 25, "noise ceiling": the variance over repetitions, averaged over images, is noise; the
        variance of all single responses less that noise is signal; where n repetitions are averaged, the
        ceiling is signal / (signal + noise / n).

        Args:
            tested: numbers (M,) of the images whose repetitions count as n, of these N; all if not given.
                Signal and noise are those of all images that were seen most often.

        Returns:
            None where no image was seen twice.
        """
        times = self.repetitions
        if times.max() < 2:
            return None
        averaged = float((1 / times[slice(None) if tested is None else tested]).mean())
        ceiling = np.empty(len(self.voxels))
        for block, values in self.seen(int(times.max())):
            noise = values.var(axis=0, ddof=1).mean(axis=0)
            total = values.reshape(-1, values.shape[2]).var(axis=0, ddof=1)
            signal = np.maximum(total - noise, 0)
            ceiling[block] = signal / np.maximum(signal + noise * averaged, 1e-300)
        return ceiling

    def split_half(self, seed: int = 0) -> Values | None:
        """Return the reliability of the mean of all repetitions, (V,): split-half, by Spearman and Brown.

        The correlation r between the means of two halves of k repetitions, h in each, averaged over all ways
        to halve them (over 100 drawn ones where there are more), and stepped up to k where it is above 0:
        (k/h) r / (1 + (k/h - 1) r). It is of the images that were seen most often; where halves disagree it
        is r itself, from -1 to 0. None where no image was seen twice, or fewer than 3 images were.
        """
        times = self.repetitions
        k = int(times.max())
        if k < 2 or (times == k).sum() < 3:
            return None
        half = k // 2
        ways = [
            (first, second)
            for first in combinations(range(min(k, 8)), half)
            for second in combinations(sorted(set(range(min(k, 8))) - set(first)), half)
            if first < second
        ]
        if k > 8 or len(ways) > HALVES:
            rng = np.random.default_rng(seed)
            orders = [tuple(rng.permutation(k).tolist()) for _ in range(HALVES)]
            ways = [(order[:half], order[half : 2 * half]) for order in orders]
        reliability = np.empty(len(self.voxels))
        for block, values in self.seen(k):
            halves = [[values[list(side)].mean(axis=0) for side in way] for way in ways]
            r = np.mean([correlations(a, b) for a, b in halves], axis=0)
            agree = np.maximum(r, 0)
            stepped = k / half * agree / (1 + (k / half - 1) * agree)
            reliability[block] = np.where(r > 0, stepped, r)
        return reliability

    def seen(self, times: int) -> Iterator[tuple[slice, Values]]:
        """Yield voxels, and the first responses (times, n, v) to the n images that were seen so often."""
        images = np.flatnonzero(self.repetitions >= times)
        first = np.argsort(~self._there[:, images], axis=0, kind="stable")[:times]
        for block in voxel_blocks(len(self.voxels)):
            yield block, self.values[:, :, block][first, images].astype(np.float64)


def as_array(name: str, given: Any, what: str, kinds: str) -> Array:
    """Return what was given as an array of NumPy's own class.

    Raises:
        TaskError: it cannot be one, is of another kind of values, or hides some.
    """
    if why := hidden_by_mask(given, what, name) or without_order(given, what):
        raise TaskError(f"{name}: {why}")
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"{name}: expected an array of {what}, found {type(given).__name__} ({first_line(error)})"
        ) from error
    if array.dtype.kind not in kinds and array.size:  # an empty list has floats
        raise TaskError(f"{name}: expected {what}, found {array.dtype} {array.shape}")
    return array


def correlations(x: Array, y: Array) -> Values:
    """Return Pearson's r of each column of x (N, V) with that of y (N, V); 0 where one does not vary."""
    # What is left of a constant is rounding.
    vary = (np.ptp(x, axis=0) > 0) & (np.ptp(y, axis=0) > 0)
    x, y = (a - a.mean(axis=0, dtype=np.float64) for a in (x, y))
    lengths = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.asarray((x * y).sum(axis=0) / np.where(vary & (lengths > 0), lengths, np.inf))


def read_values(measured: Measured | Responses, store: Latents) -> Responses:
    """Return responses as they were measured, with NaN, and the images of a store that they are of.

    Raises:
        DataError: the file cannot be read. TaskError: it does not fit the store.
    """
    if isinstance(measured, Responses):
        return _of_store(measured, store)
    found = read_array(measured, "responses")
    array = found.values
    if array.ndim not in (2, 3):
        raise TaskError(
            "responses: expected (images, voxels) or (repetitions, images, voxels), found "
            f"{array.shape}"
        )
    values = array if array.ndim == 3 else array[None]
    rows, splits, notes = placed(store, found, values.shape[1], "responses")
    count = values.shape[2]
    responses = Responses(values, rows, np.arange(count), {}, notes, splits, count)
    return _with_images(responses, store)


def _of_store(responses: Responses, store: Latents) -> Responses:
    """Return responses with the rows that their images have in a store, and splits.

    Raises:
        TaskError: images that the store lacks, or others under the same ids.
    """
    notes = [*responses.notes]
    if responses.ids:
        rows = _rows_of(store, len(responses.ids), responses.ids, "responses")
    else:
        rows = responses.rows
        if len(outside := rows[(rows < 0) | (rows >= len(store))]):
            raise TaskError(
                f"responses: expected rows of {store.path}, from 0 to {len(store) - 1}, found "
                f"{outside[0]}"
            )
        notes.append(f"responses: without ids, rows are taken as those of {store.path}")
    if responses.splits:
        splits, about = names.splits_of(responses.splits)
        notes += (f"responses: {line}" for line in about if f"responses: {line}" not in notes)
    else:
        splits = tuple(store.splits[row] for row in rows)
    count = responses.measured or int(responses.voxels.max(initial=-1)) + 1
    placed = replace(responses, rows=rows, splits=splits, measured=count, notes=tuple(notes))
    expect_images(responses.checksums, store, rows, "responses")
    return placed if responses.checksums else _with_images(placed, store)


def _with_images(responses: Responses, store: Latents) -> Responses:
    """Return responses that say which images of a store they are of."""
    ids = tuple(store.ids[row] for row in responses.rows)
    return replace(responses, ids=ids, checksums=checksums_of(store, responses.rows))


def checksums_of(store: Latents, rows: NDArray[np.intp]) -> Checksums | None:
    """Return the checksums of some of a store's images, as `Latents.checksums` has them."""
    known = store.checksums
    return None if known is None else (known[0], known[1][rows])


def expect_images(
    known: Checksums | None, store: Latents, rows: NDArray[np.intp], what: str
) -> None:
    """Refuse a store that has other images in some rows than those of which checksums are known.

    Raises:
        TaskError: names one. What cannot be told, as checksums of other things, is not refused.
    """
    own = checksums_of(store, rows)
    if known is None or own is None or known[0] != own[0]:
        return
    if len(other := np.flatnonzero(known[1] != own[1])):
        raise TaskError(
            f"{what}: expected the images of the store that was given first, found another in {store.path} "
            f"under the id {store.ids[rows[other[0]]]!r}; give that store"
        )


def read_responses(
    measured: Measured | Responses, store: Latents, rois: str | Path | None = None
) -> Responses:
    """Read responses to the images of a store.

    Args:
        measured: (N, V) or (repetitions, N, V), in the store's order, or under ids that the file holds; see
            `read_array`. A repetition that is NaN in every voxel was not there. `Responses` are of the
            images that their ids say; without ids, of the store's rows that they name.
        store: of the images.
        rois: a table with the columns `voxel` (numbers from 0) and `roi`; a voxel may be in several.

    Returns:
        voxels that are known of every image and vary; `notes` say which were left out.

    Raises:
        DataError: the file cannot be read. TaskError: it does not fit the store.
    """
    expect_store(store)
    responses = read_values(measured, store)
    if rois is not None and responses.rois:
        raise TaskError(
            f"rois: expected a table, or responses that have regions, found both; leave out {rois}"
        )
    count, notes = responses.measured, [*responses.notes]
    absent, known, infinite = _missing(responses.values)
    if never := int(absent.all(axis=0).sum()):
        notes.append(f"responses: {counted(never, 'image')} without any response left out")
        responses = responses.to(np.flatnonzero(~absent.all(axis=0)))
    if not known.all():
        notes.append(
            f"responses: {int((~known).sum())} of {counted(len(known), 'voxel')} left out: NaN for some image"
        )
        responses, infinite = responses.of(known), infinite[known]
    if not responses.values.size:
        raise TaskError("responses: expected at least one voxel known of every image, found none")
    if infinite.any():
        raise TaskError(
            "responses: expected finite numbers, found infinity; write NaN where none is known"
        )
    varying = np.ptp(responses.mean, axis=0) > 0
    if not varying.all():
        constant = counted(int((~varying).sum()), "voxel")
        notes.append(f"responses: {constant} left out, with one value for all images")
        if not varying.any():
            raise TaskError("responses: expected voxels that vary over images, found none")
        responses = responses.of(varying)
    copies = about_equal("responses: repetitions", responses.values, responses._there)
    copies = copies or _about_padded(responses)
    notes += [line for line in (*copies, *about_values(responses, store)) if line not in notes]
    regions = responses.rois
    if rois is not None:
        regions, about = _read_rois(path_of("rois", rois), responses.voxels, count)
        notes += about
    elif regions:
        expect_voxels(regions, "responses")
    return replace(responses, rois=regions, notes=tuple(notes))


def _missing(
    values: Array,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which repetitions (R, N) were not there, and which voxels (V,) are known of all that were.

    And which voxels are infinite somewhere.
    """
    absent = np.ones(values.shape[:2], bool)
    for block in voxel_blocks(values.shape[2]):
        absent &= np.isnan(values[:, :, block]).all(axis=2)
    known, infinite = np.empty((2, values.shape[2]), bool)
    for block in voxel_blocks(values.shape[2]):
        part = values[:, :, block]
        known[block] = ~(np.isnan(part) & ~absent[:, :, None]).any(axis=(0, 1))
        infinite[block] = np.isinf(part).any(axis=(0, 1))
    return absent, known, infinite


def about_values(responses: Responses, store: Latents) -> list[str]:
    """Return lines about values that may stand for what was not measured."""
    lines = [_about_one_value(responses, store)]
    parts = [responses.values[:, :, block] for block in voxel_blocks(len(responses.voxels))]
    if line := apart_from_others(parts):
        lines.append(f"responses: {line}: {AS_MEASURED}")
    return [line for line in lines if line]


def _about_one_value(responses: Responses, store: Latents) -> str:
    """Say where every voxel has one value, as 0 or -999 for what was not measured; else nothing.

    Zeros of a single neuron, and where most values are 0, as counts of spikes are, may well be measured.
    """
    values, voxels = responses.values, responses.values.shape[2]
    if voxels == 1:
        return ""
    first, zeros = values[:, :, 0], 0
    same = np.ones(first.shape, bool)
    for block in voxel_blocks(voxels):
        there = values[:, :, block]
        same &= (there == first[:, :, None]).all(axis=2)
        zeros += int((there == 0).sum())
    if voxels < SEVERAL:  # counts of a few neurons may well be equal
        same &= first == 0
    silent = same & (first == 0)
    whole = int(silent.sum()) * voxels
    if 2 * (zeros - whole) > values.size - whole:
        same &= ~silent
    if not same.any():
        return ""
    images = np.flatnonzero(same.any(axis=0))
    name = responses.ids[images[0]] if responses.ids else store.ids[responses.rows[images[0]]]
    value = first[:, images[0]][same[:, images[0]]][0]
    return (
        f"responses: one value in every voxel: {counted(int(same.sum()), 'response')} to "
        f"{counted(len(images), 'image')}, as {value:g} to {name!r}: {AS_MEASURED}"
    )


def about_equal(
    what: str, values: Array, there: NDArray[np.bool_] | None = None
) -> tuple[str, ...]:
    """Return a line about repetitions, or subjects, that are copies of others; maybe none.

    Args:
        what: they are called.
        values: (R, N, V).
        there: which of them were there (R, N); all if not given. Pairs are compared where both were.
    """
    there = np.ones(values.shape[:2], bool) if there is None else there
    first = np.ascontiguousarray(values[:, :, 0])
    copies = []
    for later in range(1, len(values)):
        both = there[:later] & there[later]
        # But for few, those that are no copies end here.
        alike = ((first[:later] == first[later]) | ~both).all(axis=1)
        for earlier in np.flatnonzero(alike).tolist():
            if _are_copies(values[earlier], values[later], both[earlier]):
                copies.append((earlier, later))
                break
    if not copies:
        return ()
    (one, other), more = copies[0], f", as are {len(copies) - 1} more" if len(copies) > 1 else ""
    return (
        f"{what} {one} and {other} are the same{more}, so that they tell nothing of noise, and noise "
        "ceilings are too high; leave copies out",
    )


def _about_padded(responses: Responses) -> tuple[str, ...]:
    """Return a line about images of which repetitions are the same, as what pads is; maybe none.

    Of fewer than ten values that differ they may be so by chance.
    """
    begins = np.ascontiguousarray(responses.values[:, :, :SEVERAL])
    if begins.shape[2] < SEVERAL:
        return ()
    padded = []
    for image, seen in enumerate(responses._there.T):
        first: dict[bytes, int] = {}
        for repetition in np.flatnonzero(seen).tolist():
            other = first.setdefault(begins[repetition, image].tobytes(), repetition)
            if other == repetition:
                continue
            one, two = responses.values[other, image], responses.values[repetition, image]
            if np.array_equal(one, two) and len(np.unique(one)) >= SEVERAL:
                padded.append(image)
                break
    if not padded:
        return ()
    return (
        f"responses: {len(padded)} of {counted(len(responses.rows), 'image')} have repetitions that are the "
        "same, which tell nothing of noise, so that noise ceilings are too high; write NaN where an image "
        "was not seen again",
    )


def _are_copies(one: Array, other: Array, both: NDArray[np.bool_]) -> bool:
    """Whether values (N, V) are the same in some rows (N,), and so many but 0 that it is not by chance."""
    if not np.array_equal(one[both, :SEVERAL], other[both, :SEVERAL]):
        return False  # before anything large is read
    told = 0
    for block in voxel_blocks(one.shape[1]):
        values = one[both, block]
        if not np.array_equal(values, other[both, block]):
            return False
        told += int(np.count_nonzero(values))
    return told >= SEVERAL


def voxel_blocks(voxels: int) -> Iterator[slice]:
    """Yield voxels, some at once: arrays of all of them are large, and copies of these too."""
    for start in range(0, voxels, AT_ONCE):
        yield slice(start, start + AT_ONCE)


def _read_rois(
    path: Path, voxels: NDArray[np.intp], count: int
) -> tuple[dict[str, NDArray[np.bool_]], tuple[str, ...]]:
    """Return the voxels of each region, as flags, in the order of the table, and lines about the table.

    Raises:
        DataError: a number of a voxel that there is not, or voxels of several subjects.
        TaskError: no voxel of a region is left.
    """
    table = read_table(path, "voxel", "roi")
    if len(subjects := sorted(set(table.column("subject") or ()))) > 1:
        raise DataError(
            f"{path}: expected voxels of one subject, found subjects {', '.join(subjects)}; "
            "keep the rows of one"
        )
    members: dict[str, list[int]] = {}
    of_none: Counter[str] = Counter()
    for line, voxel, roi in zip(table.lines, table["voxel"], table["roi"], strict=True):
        if not (voxel.isdecimal() and int(voxel) < count):
            raise DataError(
                f"{path} line {line}: expected a voxel from 0 to {count - 1}, found {voxel!r}"
            )
        if names.is_missing(roi) and roi.casefold() not in CONTROLS:
            of_none[roi] += bool(roi)
        else:
            members.setdefault(roi, []).append(int(voxel))
    rois = {name: np.isin(voxels, numbers) for name, numbers in members.items()}
    expect_voxels(rois, str(path))
    about = (*table.notices, *names.look_alikes(members, "regions"))
    notes = tuple(f"{path}: {line}" for line in about)
    if listed := ", ".join(f"{word!r} ({counted(n, 'voxel')})" for word, n in of_none.items() if n):
        notes += (f"{path}: read as no region: {listed}",)
    read = ("voxel", "roi", "subject", "")  # pandas' index has no name
    if more := [column for column in table.columns if column.casefold() not in read]:
        notes += (f"{path}: columns that are not read: {', '.join(more)}",)
    return rois, notes


def expect_voxels(rois: dict[str, NDArray[np.bool_]], what: str) -> None:
    """Refuse regions, flags of voxels (V,) by name, of which no voxel is left.

    Raises:
        TaskError: there is one.
    """
    if empty := [name for name, flags in rois.items() if not flags.any()]:
        raise TaskError(f"{what}: no voxel of {empty[0]} is left; leave that region out")
