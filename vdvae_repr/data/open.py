"""What `--data` takes, turned into a source.

A known name (`digits`, `toy-faces`, those of `datasets.DATASETS`), a folder (class subfolders, or flat),
a tar or a pattern of tar shards, a CSV manifest, an array file (.npy, .npz, .h5, or `FILE:KEY`), or an array.
Ids are unique, in natural order (`2.pgm` before `10.pgm`), shard by shard.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.config import (
    hidden_by_mask,
    path_of,
    suggestion,
    true_or_false,
    with_hints,
    without_order,
)
from vdvae_repr.data.datasets import BUILT_IN, DATASETS, is_name, open_built_in, open_dataset
from vdvae_repr.data.hdf5 import HDF5
from vdvae_repr.data.kinds import another_kind, reading_failure, why_unreadable
from vdvae_repr.data.names import about_class_names, splits_of
from vdvae_repr.data.readers.arrays import (
    Part,
    array_source,
    map_npy,
    open_hdf5,
    open_npy,
    open_npz,
)
from vdvae_repr.data.readers.folder import open_folder
from vdvae_repr.data.readers.manifest import open_manifest
from vdvae_repr.data.readers.tar import is_pattern, open_tar, shards
from vdvae_repr.data.source import Source, allow_pixels, image_extensions
from vdvae_repr.data.table import read_text
from vdvae_repr.errors import DataError, printable

logger = logging.getLogger(__name__)
READERS: dict[str, Callable[[Path], Source]] = {
    ".tar": lambda path: open_tar([path], path.name),
    ".csv": open_manifest,
    ".tsv": open_manifest,
    ".npy": open_npy,
    ".npz": open_npz,
    **dict.fromkeys(HDF5, open_hdf5),
}
OTHER_KINDS = {  # of files that are a table, by the extension
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "a spreadsheet; save the table as .csv"),
    ".txt": "a text; if it is a table with a column 'file', call it .csv",
}
Rows = str | Path | Sequence[int] | NDArray[Any]


@with_hints
def open_source(
    data: str | Path | NDArray[Any] | Source,
    *,
    root: str | Path | None = None,
    download: bool = False,
    rows: Rows | None = None,
    notice: Callable[[str], None] | None = None,
) -> Source:
    """Open whatever `--data` names.

    Args:
        data: a known name, a folder, a file, images, or a source. A name that is known is that data
            set whatever lies in the working folder: `./cifar10`, or a `Path`, is a folder. `FILE:KEY` is an
            array of another name than `images` in an HDF5 or .npz file, as `nsd_stimuli.hdf5:imgBrick`.
        root: where the files of known data sets are; None for the environment variable
            VDVAE_REPR_DATA_ROOT, else `./data`.
        download: fetch a known data set that is missing, where that is possible.
        rows: the images to take, counted from 0, in this order: `"0:8859"` (the last not among them), a text
            or .npy file of numbers, or numbers. None takes all.
        notice: receives a line about each thing that was left out, or read in a way that may surprise, and
            about `root` and `download` where `data` is no data set by name; of a source that was opened
            before, nothing. If not given, such lines are logged as warnings.

    Raises:
        DataError: nothing there, no images in it, or contents that cannot be used.
    """
    allow_pixels()
    root = None if root is None else path_of("root", root)
    download = true_or_false("download", download)
    source = _open(data, root, download)
    said = data.notices if isinstance(data, Source) else ()
    lines = [line for line in source.notices if line not in said]
    for line in (*lines, *_about_unused(data, root, download)):
        (notice or warn)(printable(f"{source.name}: {line}"))
    if rows is not None:
        source = source.select(_row_numbers(rows, len(source), source.name))
    if isinstance(data, Source):
        return source
    return replace(source, opened=_opened(data, root, download, rows))


def warn(line: str) -> None:
    """Log a line as a warning; of several processes under torchrun the first alone does."""
    if os.environ.get("RANK", "0") == "0":
        logger.warning("%s", line)


def _open(data: str | Path | NDArray[Any] | Source, root: Path | None, download: bool) -> Source:
    if isinstance(data, Source):
        return _with_names_told(data)
    if isinstance(data, np.ndarray):
        if why := hidden_by_mask(data, "pixels", "images"):
            raise DataError(f"array: {why}")
        return array_source("array", [Part("", data)])
    if not isinstance(data, str | os.PathLike):
        raise DataError(
            f"data: expected a folder, a file, a name, an array or a source, found {type(data).__name__}"
        )
    if not str(data).strip():
        raise DataError(
            "data: the name is empty; give a folder, a file or a name (is a variable not set?)"
        )
    if isinstance(data, str):
        if (source := open_built_in(data)) is not None:
            return source
        if data in DATASETS:
            return open_dataset(data, root, download=download)
    path, suffix = Path(data), Path(data).suffix.lower()
    if path.is_dir():
        return _reading(path, open_folder)
    if suffix == ".tar" and is_pattern(path):
        return _reading(path, _open_shards)
    if not path.is_file():
        if (keyed := _file_and_key(str(data))) is not None:
            return _keyed(*keyed)
        known = (*BUILT_IN, *DATASETS)
        raise DataError(
            f"{data}: no such folder or file{suggestion(str(data), known)}; expected a folder of images, "
            f"a .tar, a .csv, a .npy, .npz or .h5 file, or one of {', '.join(known)}"
        )
    if suffix in READERS:
        return _reading(path, READERS[suffix])
    what = OTHER_KINDS.get(suffix) or another_kind(path)
    if not what and suffix in image_extensions():
        what = "a single image; give the folder that it is in"
    raise DataError(
        f"{path}: expected a .tar, .csv, .npy, .npz or .h5 file, found {suffix or 'no extension'!r}"
        + (
            f": it is {what}"
            if what
            else "; save its images as uint8 (N, H, W, 3) in a .npy or .h5 file"
        )
    )


def _with_names_told(source: Source) -> Source:
    """Add to the notices of a source that was made by hand what readers say of classes and splits."""
    if source.opened is not None or source.paths:
        return source
    occurring = [source.label_names[number] for number in sorted({*source.labels.tolist()} - {-1})]
    about = (*splits_of(source.splits)[1], *about_class_names(occurring, "label_names"))
    lines = map(printable, about)
    if new := [line for line in lines if line not in source.notices]:
        return replace(source, notices=(*source.notices, *new))
    return source


def _about_unused(
    data: str | Path | NDArray[Any] | Source, root: Path | None, download: bool
) -> list[str]:
    """Return a line about options of data sets by name where the data are none; maybe none."""
    if isinstance(data, str) and data in DATASETS:
        return []
    given = [
        *([f'root="{root}"'] if root is not None else []),
        *(["download=True"] if download else []),
    ]
    if not given:
        return []
    how = "counts for nothing: it is" if len(given) == 1 else "count for nothing: they are"
    return [
        f"{' and '.join(given)} {how} for data sets by name whose files are published, as cifar10"
    ]


def _open_shards(pattern: Path) -> Source:
    paths = shards(str(pattern))
    return replace(open_tar(paths, pattern.name), paths=tuple(paths))


def _reading(path: Path, reader: Callable[[Path], Source]) -> Source:
    """Call a reader; whatever a damaged file makes it raise becomes one line."""
    try:
        source = reader(path)
        return source if source.paths else replace(source, paths=(path,))
    except DataError:
        raise
    except Exception as error:  # a damaged file may make NumPy, h5py and tarfile raise anything
        raise reading_failure(path, error) from error


def _opened(
    data: str | Path | NDArray[Any], root: str | Path | None, download: bool, rows: Rows | None
) -> str | dict[str, Any] | None:
    """Return what opens a source again from whatever folder, as JSON holds it; None of an array."""
    if isinstance(data, np.ndarray):
        return None
    known = isinstance(data, str) and is_name(data)
    options: dict[str, Any] = {"data": str(data) if known else str(Path.cwd() / data)}
    if known and data in DATASETS:
        place = root or os.environ.get("VDVAE_REPR_DATA_ROOT") or "data"
        options |= {"root": str(Path.cwd() / place)} | ({"download": True} if download else {})
    if isinstance(rows, str) and ":" in rows:
        options["rows"] = rows
    elif rows is not None:
        path = isinstance(rows, str | Path)
        options["rows"] = str(Path.cwd() / str(rows)) if path else np.asarray(rows).tolist()
    return options if len(options) > 1 else str(options["data"])


def _file_and_key(data: str) -> tuple[Path, str] | None:
    """Split `FILE:KEY`; None where no part before a colon is a file."""
    places = [place for place, letter in enumerate(data) if letter == ":"]
    return next(
        ((Path(data[:p]), data[p + 1 :]) for p in places if p and Path(data[:p]).is_file()), None
    )


def _keyed(path: Path, key: str) -> Source:
    suffix = path.suffix.lower()
    if not key:
        raise DataError(f"{path}: expected the name of an array behind the colon, found nothing")
    if suffix in HDF5:
        return _reading(path, lambda path: open_hdf5(path, key))
    if suffix == ".npz":
        return _reading(path, lambda path: open_npz(path, key))
    if suffix == ".tar":
        raise DataError(
            f"{path}:{key}: expected one tar or a pattern of several, as '{path.parent}/*.tar', found a colon"
        )
    raise DataError(f"{path}:{key}: expected a .h5 or .npz file before the colon, found {suffix!r}")


def _row_numbers(rows: Rows, count: int, name: str) -> NDArray[np.intp]:
    """Return the numbers of rows that are wanted.

    Raises:
        DataError: they cannot be read, are none, occur twice, or are not there.
    """
    given = [] if isinstance(rows, str | Path) else rows
    if why := hidden_by_mask(given, "numbers of rows", "rows") or without_order(given, "rows"):
        raise DataError(f"rows: {why}")
    if isinstance(rows, str) and (match := re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", rows)):
        first, last = int(match[1] or 0), int(match[2] or count)
        if last > count:
            raise DataError(f"rows {rows}: expected rows up to {count}, which {name} has")
        if first >= last:
            raise DataError(f"rows {rows}: expected FIRST below LAST, found {first} and {last}")
        numbers = np.arange(first, last)
    else:
        numbers = _numbers_in(rows) if isinstance(rows, str | Path) else np.asarray(rows)
    if numbers.dtype == bool and numbers.shape == (count,):
        numbers = np.flatnonzero(numbers)
    if numbers.dtype.kind == "f" and (numbers == np.floor(numbers)).all():
        numbers = numbers.astype(np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or len(numbers) == 0:
        raise DataError(
            f"rows: expected numbers of rows, 0 to {count - 1}, found {numbers.dtype} {numbers.shape}"
        )
    if numbers.min() < 0 or numbers.max() >= count:
        wrong = numbers[(numbers < 0) | (numbers >= count)][0]
        raise DataError(
            f"rows: expected rows from 0 to {count - 1}, which {name} has, found {wrong}"
        )
    unique, counts = np.unique(numbers, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"rows: row {unique[counts > 1][0]} occurs twice; give each row once")
    return numbers.astype(np.intp)


def _numbers_in(rows: str | Path) -> NDArray[Any]:
    """Read the numbers in a text or .npy file."""
    path = path_of("rows", rows)
    try:
        if path.suffix.lower() == ".npy":
            return np.atleast_1d(np.squeeze(map_npy(path)))
        lines = [line.split() for line in read_text(path).replace(",", " ").splitlines()]
        words = [word for line in lines for word in line]
        several = next((line for line in lines if len(line) > 1), [])
        if several and len(several) < len(words):
            raise ValueError(
                f"lines with several numbers, as {' '.join(several):.40}, of which one may be an index; "
                "give one number a line, or all on one line"
            )
        if wrong := [word for word in words if not word.isdecimal()]:
            raise ValueError(f"{wrong[0]!r:.40} is no number of a row")
        return np.array([int(word) for word in words], np.int64)
    except Exception as error:  # as of a reader
        raise DataError(
            f"rows: expected FIRST:LAST or a text or .npy file of numbers, found {str(rows)!r} "
            f"({why_unreadable(path, error)})"
        ) from error
