"""Images in arrays: .npy, .npz and HDF5 files, or NumPy arrays in memory; rows are read one by one."""

from __future__ import annotations

import bisect
import io
import itertools
import json
import math
import mmap
import os
import re
import struct
import weakref
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vdvae_repr.data.hdf5 import (
    CACHE_BYTES,
    CHUNK_BYTES,
    dtype_of,
    leads_outside,
    made_up,
    marked,
    missing_values,
    open_rows,
    other_pixels,
    unwritten_chunks,
)
from vdvae_repr.data.names import (
    SPLITS,
    about_class_names,
    class_names,
    merged_ids,
    natural_key,
    number_labels,
    readable,
    split_of,
    splits_of,
)
from vdvae_repr.data.source import FAINT, Source
from vdvae_repr.errors import DataError, counted
from vdvae_repr.pixels import DARK, to_uint8

EXACT_BYTES = 2**26  # up to so many, all rows are part of the fingerprint; above, a sample is
SAMPLE = 16  # rows of an array that tell what its pixels are
ROW_BYTES = 2**29  # of one image
FEW_ROWS = 10**6  # more than so many need a byte of the file each
NAMES_KEYS = ("class_names", "label_names", "names", "classes")  # attributes that name classes
COLUMN_BYTES = 2**28  # of labels, splits or class names
NO_LABEL = -1  # stands for none
LAYOUTS = ("NHW", "HWN", "HWC", "HW", "NHWC", "NCHW", "HWCN", "CHWN")  # of images' axes
INFLATED = 500  # times that a member of a .npz may be larger than what is stored of it


class Part(NamedTuple):
    """Rows of one array: the split they are in, images (N, H, W[, 3]), labels (N,), words of splits (N,)."""

    split: str
    images: Any
    labels: Any = None
    splits: Any = None


@dataclass(frozen=True)
class Hdf5Rows:
    """A data set of an HDF5 file, opened anew in every process, as handles do not live through a fork."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _opened: dict[int, h5py.Dataset] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, row: Any) -> Any:
        """Return some rows; h5py lets one thread in at a time."""
        opened = self._opened.get(os.getpid())
        if opened is None:
            opened = self._opened[os.getpid()] = open_rows(h5py.File(self.path, "r"), self.key)
        return opened[row]

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the handle behind when pickled."""
        return Hdf5Rows, (self.path, self.key, self.shape, self.dtype)


class FileRows:
    """Rows of an array in a file, read when they are wanted.

    A file that is cut short while it is read gives an error, where touching a memory map would crash the
    process (SIGBUS). Only an array in column order, whose rows are spread over all of it, is mapped; the
    length of its file is compared before each row.
    """

    def __init__(
        self,
        filename: Path,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: np.dtype[Any],
        identity: tuple[int, int] | None = None,
    ) -> None:
        """Open a file.

        Args:
            filename: its name.
            offset: the array's first byte.
            shape: of the array.
            strides: how its bytes lie, as NumPy gives it.
            dtype: of its values.
            identity: device and inode that the file must have, where it was open before.
        """
        self.filename, self.shape, self.dtype = filename, shape, dtype
        self._offset, self._strides = offset, strides
        self._mapped: NDArray[Any] | None = None
        self._handle = os.open(filename, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        status = os.fstat(self._handle)
        self._identity = status.st_dev, status.st_ino
        if identity not in (None, self._identity):
            raise DataError(
                f"{filename}: expected the file that was opened, found another; open it anew"
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: int | slice) -> NDArray[Any]:
        """Return a row, or those of a slice without steps.

        Raises:
            DataError: the file has been cut short.
        """
        chosen = range(len(self))[
            rows if isinstance(rows, slice) else slice(rows, rows + 1 or None)
        ]
        if chosen.step != 1:
            raise ValueError(f"expected a slice without steps, found {rows}")
        shape, size = (
            (len(chosen), *self.shape[1:]),
            math.prod(self.shape[1:]) * self.dtype.itemsize,
        )
        if self._strides[0] == size:  # rows lie one behind the other
            content = self._read(self._offset + chosen.start * size, len(chosen) * size)
            values = np.ndarray(shape, self.dtype, content, 0, self._strides)
        else:
            self._check(os.fstat(self._handle).st_size - self._offset, len(self) * size)
            if self._mapped is None:
                whole = mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ)
                self._mapped = np.ndarray(
                    self.shape, self.dtype, whole, self._offset, self._strides
                )
            values = self._mapped[chosen.start : chosen.stop].copy()
        return values if isinstance(rows, slice) else values[0]

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the handle behind when pickled."""
        place = self.filename, self._offset, self.shape, self._strides, self.dtype
        return FileRows, (*place, self._identity)

    def _read(self, start: int, length: int) -> NDArray[np.uint8]:
        content, held = np.empty(length, np.uint8), 0
        while held < length:
            more = os.preadv(self._handle, [content[held:].data], start + held)
            if more == 0:
                break
            held += more
        self._check(held, length)
        return content

    def _check(self, found: int, expected: int) -> None:
        if found < expected:
            raise DataError(
                f"{self.filename}: expected {expected} bytes where rows are, found {max(0, found)}: the file "
                "was cut short while it was read; let it be written to its end, and read it again"
            )


def rows_of(images: Any) -> Any:
    """Return `FileRows` for images in a memory-mapped file, and any other array as it is.

    The map must hold the whole array, maybe with its axes behind the first in another order: a slice has the
    offset of what it was cut from.
    """
    if not isinstance(images, np.memmap):
        return images
    return FileRows(
        Path(str(images.filename)), images.offset, images.shape, images.strides, images.dtype
    )


def open_npy(path: Path) -> Source:
    """Make a source of a .npy file, read row by row."""
    return array_source(path.name, [Part("", map_npy(path))], file=path)


def map_npy(path: Path) -> NDArray[Any]:
    """Memory-map a .npy file.

    Raises:
        ValueError: it is none, is shorter or longer than its header says, or holds Python objects.
    """
    with path.open("rb") as file:
        shape, by_column, dtype = read_npy_header(file)
        array, end = _mapped(path, file.tell(), shape, by_column, dtype), file.tell()
    end += math.prod(shape) * dtype.itemsize
    if (more := path.stat().st_size - end) > 0:
        raise ValueError(
            f"{more} bytes behind its array {dtype} {shape}; save each array to a file of its own, "
            "as only the first of several can be read"
        )
    return array


def read_npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether columns come first, and type of an array in NumPy's format.

    Raises:
        ValueError: it is none, or holds Python objects, which only code that the file brings could read.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
    elif version in (
        (2, 0),
        (3, 0),
    ):  # of 3, whose header is UTF-8, that of ASCII fields is the same
        shape, by_column, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"a version {version} of NumPy's format that is not known")
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which is not read; save numbers or texts")
    if any(side < 0 for side in shape):
        raise ValueError(f"an array of the impossible shape {shape}")
    return shape, by_column, dtype


def _mapped(
    path: Path, offset: int, shape: tuple[int, ...], by_column: bool, dtype: np.dtype[Any]
) -> NDArray[Any]:
    needed, held = math.prod(shape) * dtype.itemsize, max(0, path.stat().st_size - offset)
    if needed > held:
        raise ValueError(f"an array {dtype} {shape} of {needed} bytes, of which {held} are there")
    if needed == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, "F" if by_column else "C")


def open_npz(path: Path, key: str | None = None) -> Source:
    """Make a source of a .npz file: `images` and maybe `labels`, also by split; or the array `key`.

    Arrays that are stored uncompressed are read in place.
    """
    with zipfile.ZipFile(path) as archive:
        members = {
            name: info
            for name, info in npz_members(path, archive).items()
            if info.filename.endswith(".npy")
        }

        def read(name: str) -> NDArray[Any]:
            return read_member(path, archive, members[name])

        content = _Lazy(members, read)
        return _source_of(path, content, key, [_described(content, name) for name in members])


def npz_members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the entries of a .npz file by the names of their arrays.

    Raises:
        DataError: there are two of one name.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in members:
            raise DataError(f"{path}: expected one array {name!r}, found two; save the file anew")
        members[name] = info
    return members


def read_member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, whole: bool = False
) -> NDArray[Any]:
    """Return an array of a .npz file, memory-mapped where it is stored uncompressed.

    Args:
        path: of the file.
        archive: it, opened.
        member: the array's entry.
        whole: compare even a large mapped array with its checksum, which reads all of it.

    Raises:
        DataError: it would unpack to more than its header says, or to more than can be held.
    """
    if (
        member.compress_type == zipfile.ZIP_STORED
        and (mapped := map_member(path, member, whole)) is not None
    ):
        return mapped
    with archive.open(member) as file:
        shape, _, dtype = read_npy_header(file)
        needed = math.prod(shape) * dtype.itemsize
        held = member.file_size - file.tell()
    if needed != held:
        raise DataError(
            f"{path}: {member.filename}: an array {dtype} {shape} of {needed} bytes, where {held} are there"
        )
    if member.file_size > max(COLUMN_BYTES, INFLATED * member.compress_size):
        raise DataError(
            f"{path}: {member.filename} would unpack from {member.compress_size} to {member.file_size} "
            "bytes; refused: save it uncompressed, by numpy.savez, which is read in place"
        )
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def open_hdf5(path: Path, key: str | None = None) -> Source:
    """Make a source of an HDF5 file: `images` and maybe `labels`, at the top or in groups of splits.

    Rows are read when they are wanted. `key` names another data set, or a group that holds these. What
    leads to another file is refused, as it may be any file of the machine.
    """
    # A data set that is open twice has the cache of its first opening.
    with h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES) as file:
        if why := leads_outside(file, {"."}, soft_links=True):
            raise DataError(f"{path}: {why}; refused: copy what is to be read into one file")
        found: dict[str, Any] = {}
        _find(file, found)
        arrays = {name: item for name, item in found.items() if isinstance(item, h5py.Dataset)}
        notices = [
            f"attribute {word!r} of {name or 'the file'} is not read; store it as an array of that name"
            for name, item in (("", file), *arrays.items())
            for word in ("labels", "splits", "split")
            if word in item.attrs
        ]

        def read(name: str) -> Any:
            item = found[name]
            if not isinstance(item, h5py.Dataset):
                raise DataError(
                    f"{path}: {name} is {item}; expected one data set, of images (N, H, W, 3)"
                )
            if dtype_of(item) is None:
                raise DataError(
                    f"{path}: {name} holds values of a type that is not read, as HDF5's times; save it as "
                    "numbers or texts"
                )
            if h5py.check_ref_dtype(item.dtype) is not None:
                raise DataError(
                    f"{path}: {name} holds HDF5 references; save the numbers or texts that they refer to"
                )
            if item.shape is None:
                raise DataError(f"{path}: {name} is a single value; expected images (N, H, W, 3)")
            if why := missing_values(item):
                raise DataError(f"{path}: {name} {why}")
            if (
                (item.ndim and item.shape[1:] in ((), (1,)))
                or name.rpartition("/")[2] in ("labels", "splits", "split", "class_names")
                or name.endswith(("_labels", "_splits"))
            ):
                return _read_column(path, name, item)
            if item.ndim == 0:
                raise DataError(f"{path}: {name} is a single value; expected images (N, H, W, 3)")
            if "MATLAB_class" in item.attrs:
                ways = _arrangements(item.shape, [layout[::-1] for layout in LAYOUTS], "A")
                raise DataError(
                    f"{path}: {name} {item.shape} was written by MATLAB, with axes in reverse order, so that "
                    f"images would lie on their side; save A = h5py.File(...)[{name!r}][:] as .npy with axes "
                    f"(N, H, W) or (N, H, W, 3)" + (ways or "; A.T has those of MATLAB")
                )
            if why := other_pixels(item):
                raise DataError(f"{path}: {name} {why}")
            if item.chunks and math.prod(item.chunks) * item.dtype.itemsize > CHUNK_BYTES:
                raise DataError(
                    f"{path}: {name} is stored in chunks of {item.chunks}, which are read whole; "
                    "store it in chunks of an image or a few"
                )
            if unwritten := unwritten_chunks(item):
                notices.append(
                    f"{name}: {unwritten} chunks of {item.chunks} were never written; pixels there are all "
                    f"{item.fillvalue}"
                )
            return Hdf5Rows(path, name, item.shape, item.dtype)

        listed = [_described(arrays, name) for name in arrays]
        listed += [f"{n} ({item})" for n, item in found.items() if n not in arrays and "/" not in n]
        return _source_of(
            path, _Lazy(found, read), key, listed, notices, _named_beside(file, arrays)
        )


def _named_beside(file: h5py.File, arrays: Mapping[str, h5py.Dataset]) -> dict[str, list[str]]:
    """Return class names by the array of labels that has them as enumeration or attribute; "" is the file."""
    named: dict[str, list[str]] = {}
    for place, item in (("", file), *arrays.items()):
        base = place.rpartition("/")[2]
        if place and base != "labels" and not base.endswith("_labels"):
            continue
        dtype = dtype_of(item) if place else None
        numbers = None if dtype is None else h5py.check_enum_dtype(dtype)
        if numbers and set(numbers.values()) <= set(range(10_000)):
            by_number = {number: name for name, number in numbers.items()}
            names = [by_number.get(i, str(i)) for i in range(max(by_number) + 1)]
        else:
            found = next((key for key in NAMES_KEYS if key in item.attrs), None)
            names = [] if found is None else _texts_of(item.attrs, found)
        if names:
            named[place] = names
    return named


def _fit(names: Sequence[str], labels: Sequence[Any]) -> bool:
    """Whether names, which nobody said are of classes, can be those of labels (N,)."""
    numbers = [np.asarray(array) for array in labels if array is not None]
    return all(names) and all(
        array.dtype.kind in "iub" and (not array.size or int(array.max()) < len(names))
        for array in numbers
    )


def _texts_of(attributes: Any, key: str) -> list[str]:
    """Return the texts in an attribute, a list or JSON; none where it holds anything else."""
    try:
        value = attributes[key]
        if isinstance(value, str | bytes):
            value = json.loads(value)
        texts = np.asarray(value).tolist()
    except (OSError, TypeError, ValueError, RecursionError):
        return []
    if not isinstance(texts, list) or not all(isinstance(text, str | bytes) for text in texts):
        return []
    return [_text(text) for text in texts]


def _read_column(path: Path, name: str, item: h5py.Dataset) -> NDArray[Any]:
    """Return labels, splits or class names; texts some rows at a time, as many may share one long text.

    Raises:
        DataError: they take more than `COLUMN_BYTES`, or are not those that were meant: some were never
            written, are marked as missing, or are packed.
    """
    values = _column_values(path, name, item)
    if why := made_up(item, NO_LABEL) or marked(item, values, NO_LABEL):
        raise DataError(f"{path}: {name} {why}")
    return values


def _column_values(path: Path, name: str, item: h5py.Dataset) -> NDArray[Any]:
    taken, blocks = item.size * item.dtype.itemsize, []
    if taken <= COLUMN_BYTES and (item.dtype.kind != "O" or item.ndim == 0 or item.size == 0):
        return np.asarray(item[()])
    for start in range(0, len(item), 256):
        if taken > COLUMN_BYTES:
            raise DataError(
                f"{path}: {name} {item.dtype} {item.shape} is too large; expected one value an image"
            )
        blocks.append(item[start : start + 256])
        taken += sum(map(len, blocks[-1].ravel()))
    return np.concatenate(blocks)


class _Lazy(Mapping[str, Any]):
    """The arrays of a file by name, read when they are asked for; `taken` has the names of those."""

    def __init__(self, names: Mapping[str, Any], read: Any) -> None:
        self.names, self.read = names, read
        self.taken: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.taken.add(name)
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _find(file: h5py.File, found: dict[str, Any]) -> None:
    """Collect data sets by their paths, and in words the groups, and the links that lead nowhere.

    A group is looked into once, by the shortest path of hard links.
    """
    waiting: deque[tuple[h5py.Group, str]] = deque([(file["/"], "")])
    seen = {h5py.h5o.get_info(file["/"].id).addr}
    while waiting:
        group, prefix = waiting.popleft()
        links = {name: group.get(name, getlink=True) for name in group}
        for name in sorted(links, key=lambda name: isinstance(links[name], h5py.SoftLink)):
            key = prefix + name
            try:
                item = group[name]
            except (KeyError, OSError):
                found[key] = f"a link to nowhere: {getattr(links[name], 'path', '?')}"
                continue
            if isinstance(item, h5py.Dataset):
                found[key] = item
            elif isinstance(item, h5py.Group):
                found[key] = f"a group of {len(item)}, as {min(item, default='nothing')}"
                address = h5py.h5o.get_info(item.id).addr
                if address not in seen and len(item) <= 10_000:
                    seen.add(address)
                    waiting.append((item, f"{key}/"))


def _described(arrays: Mapping[str, Any], name: str) -> str:
    """Return an array's name; of HDF5, with what it holds."""
    item = arrays.get(name) if isinstance(arrays, dict) else None
    if item is None:
        return name
    dtype = dtype_of(item)
    return f"{name} {'of a type that is not read' if dtype is None else dtype} {item.shape}"


_NAMED = re.compile(r"(?:(?P<word>[^/]+)/|(?P<prefix>[^/]+)_)?images")


def _source_of(
    path: Path,
    content: _Lazy,
    key: str | None,
    listed: Sequence[str],
    about_arrays: Sequence[str] = (),
    named: Mapping[str, Sequence[str]] | None = None,
) -> Source:
    """Make a source of what a file's arrays are called; `about_arrays` grows as they are read.

    `named` has the class names that arrays of labels, or the file (""), hold as attributes.
    """
    name = path.name if key is None else f"{path.name}:{key}"
    notices: list[str] = []
    parts: list[Part] = []
    root = ""
    if key is not None:
        key = key.strip("/")
        inside = [n for n in content if n.startswith(f"{key}/")]
        if key not in content or (inside and f"{key}/images" not in content):
            raise DataError(f"{path}: found no array {key!r}; it holds {_list(listed)}")
        if inside:
            root = f"{key}/"
        else:
            images, folder = content[key], key.rpartition("/")[0]
            beside = f"{folder}/" if folder else ""
            base = key.rpartition("/")[2]

            def own(word: str) -> str:
                return base.replace("images", word) if "images" in base else f"{base}_{word}"

            labels, about_labels = _beside(
                content, [f"{beside}{label}" for label in (own("labels"), "labels")], len(images)
            )
            splits, about_splits = _beside(
                content,
                [f"{beside}{split}" for split in (own("splits"), "splits", "split")],
                len(images),
            )
            notices += about_labels + about_splits
            parts.append(Part("", images, labels, splits))
    if not parts:
        parts, said = _named_parts(path, content, root)
        notices += said
    if not parts:
        raise DataError(
            f"{path}: expected an array 'images', at the top or in train, val, test; found {_list(listed)}; "
            f"{path}:NAME takes another one"
        )
    names: Sequence[Any] = ()
    if f"{root}class_names" in content:
        array = np.asarray(content[f"{root}class_names"])
        if array.size != max(array.shape, default=1):
            raise DataError(f"{path}: expected class_names (K,), found shape {array.shape}")
        names = array.ravel().tolist()
    elif named and any(part.labels is not None for part in parts):
        places = [place for place in named if place in content.taken] or [p for p in named if not p]
        several = len({tuple(named[place]) for place in places}) > 1
        if places and not several:
            where = places[0] or "the file"
            if _fit(named[places[0]], [part.labels for part in parts]):
                names = named[places[0]]
                notices.append(f"class names are read from the attributes of {where}")
            else:
                notices.append(f"names in the attributes of {where} left out: they fit no labels")
        elif several:
            notices.append(f"class names left out: those of {' and '.join(places)} differ")
    unread = [
        n
        for n, item in content.names.items()
        if n.startswith(root) and not isinstance(item, str) and n not in content.taken
        if _NAMED.fullmatch(n.removeprefix(root)) is None  # of these it is said why
    ]
    lacking = {"labels"} if all(part.labels is None for part in parts) else set()
    if not any(part.split or part.splits is not None for part in parts):
        lacking |= {"splits", "split"}
    elsewhere = [  # in another group than the one chosen
        n
        for n, item in content.names.items()
        if not isinstance(item, str) and n not in content.taken
        if re.split("[/_]", n)[-1] in lacking
    ]
    unread += [n for n in elsewhere if n not in unread]
    without = [part.split or "no split" for part in parts if part.labels is None]
    if len(without) == len(parts):
        if f"{root}labels" in unread and all(part.split for part in parts):
            splits = " and ".join(part.split for part in parts)
            notices.append(
                f"{root}labels left out, as images are those of {splits}, so that images have no labels; "
                f"call those of each by its split, as {parts[0].split}_labels"
            )
        elif unread:
            group = root or (key or "")[: (key or "").rfind("/") + 1]
            notices.append(
                f"no array '{group}labels', so that images have no labels; found {_list(unread)}"
            )
    else:
        if without:
            notices.append(f"no array holds labels for the images of {', '.join(without)}")
        if out := unread if key is None or root else elsewhere:
            notices.append(f"arrays left out: {_list(out)}")
    notices += about_arrays
    return array_source(name, parts, [_text(n) for n in names], file=path, notices=notices)


def _beside(content: _Lazy, names: Sequence[str], count: int) -> tuple[Any, list[str]]:
    """Return the first array of those names, None where there is none of `count` rows, and what to say."""
    found = next((n for n in names if n in content), None)
    if found is None:
        return None, []
    array = content[found]
    size = len(np.atleast_1d(array))
    if size != count:
        return None, [f"{found} left out: {size} for {count} images"]
    return array, []


def _named_parts(path: Path, content: Mapping[str, Any], root: str) -> tuple[list[Part], list[str]]:
    """Return `images`, and those of splits: `train/images` or `train_images`; name those of no split."""
    parts: dict[str, Part] = {}
    first: dict[str, str] = {}
    others: list[str] = []
    for key in sorted(content, key=lambda k: natural_key(k)):
        match = _NAMED.fullmatch(key.removeprefix(root)) if key.startswith(root) else None
        if match is None:
            continue
        word = match["word"] or match["prefix"]
        split = "" if word is None else split_of(word)
        if split is None:
            others.append(key)
            continue
        if split in parts:
            raise DataError(
                f"{path}: expected one array of images of split {split}, found {first[split]} and {key}; "
                f"choose one, as {path}:{key}, or rename one"
            )
        first[split] = key
        labels, splits = (
            next((content[n] for n in names if n in content), None)
            for names in (
                [re.sub("images$", "labels", key)],
                [] if split else [f"{root}splits", f"{root}split"],
            )
        )
        parts[split] = Part(split, content[key], labels, splits)
    if len(parts) > 1 and "" in parts and parts[""].splits is not None:
        whole = first.pop("")
        raise DataError(
            f"{path}: expected images with their splits or images of each split, found {whole} and "
            f"{', '.join(first.values())}, which may be the same twice; choose one, as {path}:{whole}"
        )
    said = [f"{', '.join(others)} left out: no split is called so"] if others and parts else []
    return [parts[split] for split in ("", *SPLITS) if split in parts], said


def _list(listed: Sequence[str]) -> str:
    """Join names of arrays, ten at most."""
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return (", ".join(listed[:10]) or "nothing") + more


def map_member(path: Path, member: zipfile.ZipInfo, whole: bool) -> NDArray[Any] | None:
    """Memory-map an array that lies uncompressed in a zip, behind two headers: the zip's and its own.

    None where it is empty, or is encrypted. It is read once, to compare it with its checksum; one of more
    than `EXACT_BYTES` if `whole` alone, so that damage to it is not found otherwise.
    """
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)  # the name, extra fields
        start = file.tell()
        if member.flag_bits & 1:
            return None
        shape, by_column, dtype = read_npy_header(file)
        needed, held = math.prod(shape) * dtype.itemsize, member.file_size - (file.tell() - start)
        if needed != held:
            raise ValueError(
                f"{member.filename}: an array {dtype} {shape} of {needed} bytes, where {held} are there"
            )
        if 0 in shape:
            return None
        mapped = _mapped(path, file.tell(), shape, by_column, dtype)
        if needed > EXACT_BYTES and not whole:  # it would be read whole before the first image is
            return mapped
        file.seek(start)
        checksum, left = 0, member.file_size
        while left and (block := file.read(min(left, 2**20))):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
    if checksum != member.CRC:
        raise ValueError(
            f"{member.filename}: its bytes are not those that were written; get it again"
        )
    return mapped


class ArrayRows:
    """Reads rows of several arrays, end to end, as 8-bit images (H, W, 3) or (H, W)."""

    def __init__(self, arrays: Sequence[Any], whites: Sequence[int] = ()) -> None:
        """Take arrays (N, H, W[, C]) and, of those that are not uint8, the value of white."""
        self.arrays, self.whites = arrays, whites
        self.starts = [0, *itertools.accumulate(map(len, arrays))]

    def __call__(self, index: int) -> NDArray[np.uint8]:
        """Return one row."""
        part = bisect.bisect(self.starts, index) - 1
        row = np.asarray(self.arrays[part][index - self.starts[part]])
        if row.ndim == 3 and row.shape[2] == 1:
            row = row[:, :, 0]
        if row.dtype == np.uint8:
            return np.ascontiguousarray(row)
        return to_uint8(row, self.whites[part])


def array_source(
    name: str,
    parts: Sequence[Part],
    label_names: Sequence[str] = (),
    *,
    file: Path | None = None,
    notices: Sequence[str] = (),
) -> Source:
    """Make a source of arrays, none of them copied.

    Pixels are uint8; uint16, of which 65535 is white; or whole numbers from 0 to 255 or floating point from
    0 to 1 of any type, which a sample of the rows tells and every row is checked against when it is read.

    Args:
        name: of the source.
        parts: the arrays.
        label_names: what labels are called; where there are none, by their own values.
        file: that they lie in; of a large one, its size and a sample stand in the fingerprint.
        notices: lines for people.

    Raises:
        DataError: shapes, types, labels or splits that cannot be used.
    """
    name, said = readable(name), list(notices)
    if file is not None:
        parts = [part._replace(images=rows_of(part.images)) for part in parts]
    ids: list[str] = []
    words: list[str] = []
    whites: list[int] = []
    for part in parts:
        line = _check_shape(name, part.images)
        _check_size(name, part.images, file)
        said += [line] if line else []
        count = len(part.images)
        ids += [f"{part.split}/{i}" if part.split else str(i) for i in range(count)]
        words += _words(name, part, count)
        white, line = _white(name, part.images)
        whites.append(white)
        said += [line] if line else []
    labels, known_names, about_labels = _labels(name, parts, label_names)
    splits, unknown = splits_of(words)
    if any(part.splits is not None for part in parts) and not any(splits):
        said.append("the array of splits is empty, so that images belong to no split")
    arrays = [part.images for part in parts]
    total = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
    whole = file is None or total <= EXACT_BYTES
    checksums, flat = [], {}
    for place, image in looked_at([(part.split, part.images) for part in parts], whole):
        checksums.append(zlib.crc32(image.tobytes()))
        if (image == image.flat[0]).all():
            flat[place] = image.flat[0]
    said += about_flat(flat, len(checksums), whole)
    if file is not None and not whole:
        # A change that keeps the size and the sample is not noticed here; `Source.state` tells.
        shapes = zlib.crc32(repr([(array.shape, str(array.dtype)) for array in arrays]).encode())
        checksums = [file.stat().st_size, shapes, *checksums]
    return Source(
        name=name,
        ids=tuple(ids),
        reader=ArrayRows(arrays, whites),
        labels=labels,
        label_names=known_names,
        splits=splits,
        sizes=checksums,
        notices=(*said, *about_labels, *unknown),
    )


def _check_shape(name: str, images: Any) -> str:
    """Refuse what is no array of images; say how one is read that may be meant otherwise."""
    shape, dtype = images.shape, images.dtype
    grey = len(shape) == 3 and shape[2] not in (1, 3, 4)
    if (
        dtype.kind in "uif"
        and (grey or (len(shape) == 4 and shape[3] in (1, 3)))
        and 0 not in shape[1:]
    ):
        if grey and (shape[0] in (3, 4) or shape[1] != shape[2]):
            other = "transpose(2, 0, 1) is of grey images side by side in the last axis"
            if shape[0] in (3, 4):
                other = "transpose(1, 2, 0)[None] is of one image of that many channels"
            return f"read as {shape[0]} grey images of {shape[1]}x{shape[2]} pixels; {other}"
        return ""
    advice = ""
    if dtype.kind in "uif" and 0 not in shape:
        if len(shape) == 2 and (side := math.isqrt(shape[1])) ** 2 == shape[1] and side > 1:
            advice = (
                f"; if it is {counted(shape[0], 'grey image')} of {side}x{side}, "
                f"take images.reshape(-1, {side}, {side})"
            )
        if len(shape) == 5 and shape[4] == 1 and shape[3] in (1, 3):
            advice = "; as its last axis has length 1, take images[..., 0]"
        advice += _arrangements(shape, [layout for layout in LAYOUTS if layout != "NHW"], "images")
    raise DataError(
        f"{name}: expected images uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W), "
        f"found {dtype} {shape}{advice}"
    )


def _arrangements(shape: tuple[int, ...], layouts: Sequence[str], array: str) -> str:
    """Say how to make images of an array for each layout of its axes that its shape may have; maybe nothing.

    >>> _arrangements((5, 3, 8, 9), ["NCHW", "HWCN"], "images")
    '; if it is 5 images of 8x9, take images.transpose(0, 2, 3, 1)'
    """
    ways = ""
    for layout in layouts:
        sides = dict(zip(layout, shape, strict=False))
        if len(layout) != len(shape) or sides.get("C", 3) not in (1, 3, 4):
            continue
        if layout == "HWN" and sides["N"] == 1:  # as HWC
            continue
        if layout == "CHWN" and sides["C"] == sides["N"] == 4:  # as NHWC
            continue
        order = [layout.index(axis) for axis in "NHWC" if axis in layout]
        moved = "" if order == sorted(order) else f".transpose({', '.join(map(str, order))})"
        first = "" if "N" in layout else "[None]"
        colours = "[..., :3]" if sides.get("C") == 4 else ""
        what = "image" if sides.get("C", 1) > 1 else "grey image"
        ways += (
            f"; if it is {counted(sides.get('N', 1), what)} of {sides['H']}x{sides['W']}, "
            f"take {array}{moved}{first}{colours}"
        )
    return ways


def _check_size(name: str, images: Any, file: Path | None) -> None:
    """Refuse an image that is too large, and more images than the file can hold, before memory is taken."""
    side = Image.MAX_IMAGE_PIXELS
    row = math.prod(images.shape[1:]) * images.dtype.itemsize
    if row > ROW_BYTES or (side is not None and math.prod(images.shape[1:3]) > side):
        raise DataError(
            f"{name}: expected images of {ROW_BYTES} bytes and {side} pixels at most, "
            f"found {images.dtype} {images.shape[1:]}"
        )
    if file is not None and len(images) > FEW_ROWS:
        status = file.stat()
        held = min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512)
        if len(images) > held:
            raise DataError(
                f"{name}: says to hold {len(images)} images, in {held} bytes; refused: they are not there"
            )


def _words(name: str, part: Part, count: int) -> list[str]:
    """Return the word that says an image's split, for each."""
    if part.splits is None:
        return [part.split] * count
    words = [_text(word) for word in np.asarray(part.splits).ravel().tolist()]
    if len(words) != count:
        raise DataError(f"{name}: expected {count} splits, found {len(words)}")
    return words


def _white(name: str, images: Any) -> tuple[int, str]:
    """Return the value of white, and what to say of it: one rule for the whole array, told by a sample."""
    dtype = images.dtype
    if len(images) == 0:
        return 255, ""
    few = math.prod(images.shape) * dtype.itemsize <= EXACT_BYTES
    rows = [slice(None)] if few and dtype != np.uint8 else _sample(len(images))

    def sample() -> Iterator[NDArray[Any]]:
        """Yield finite values, row by row of a large array; others are refused when they are read."""
        for row in rows:
            values = np.asarray(images[row])
            yield values if dtype.kind != "f" else values[np.isfinite(values)]

    brightest = max(float(values.max(initial=0)) for values in sample())
    if dtype == np.uint8:
        dark = f"uint8 pixels: 255 is read as white; the brightest found is {brightest:.0f}"
        return 255, dark if 0 < brightest < DARK else ""
    if (dtype.kind, dtype.itemsize) == ("u", 2):
        return (
            65535,
            f"uint16 pixels: 65535 is read as white; the brightest found is {brightest:.0f}",
        )
    fractional = dtype.kind == "f" and brightest <= 1 + 1e-4
    white = 1 if fractional else 255
    try:
        for values in sample():
            to_uint8(values, white)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    what = "from 0 to 1, scaled by 255" if fractional else "whole numbers from 0 to 255"
    if brightest < FAINT or (not fractional and brightest < DARK):
        what += f"; the brightest found is {brightest:.2g}"
    return white, f"{dtype} pixels are read as {what}"


def _labels(
    name: str, parts: Sequence[Part], label_names: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...], list[str]]:
    """Return labels from 0, -1 where there is none, their names, and what to say of them."""
    given = [None if part.labels is None else _column(name, part) for part in parts]
    said: list[str] = []
    texts: list[str | None] = []
    none: Counter[str] = Counter()
    words = False
    merged: tuple[str, ...] = ()
    for part, values in zip(parts, given, strict=True):
        if values is None:
            texts += [None] * len(part.images)
        elif values.dtype.kind in "biuf":
            numbers = _whole(name, values)
            merged = merged or merged_ids(values)
            none["NaN"] += numbers.count(None)
            none["-1"] += numbers.count(-1)
            if (lowest := min((n for n in numbers if n is not None), default=0)) < -1:
                raise DataError(
                    f"{name}: expected labels from 0, or -1 where there is none, found {lowest}"
                )
            texts += [None if n in (None, -1) else str(n) for n in numbers]
        else:
            words = True
            texts += (own := [_text(value) for value in values.tolist()])
            none["empty"] += sum(not text.strip() for text in own)
    said += merged
    said += [
        f"{counted(count, 'label', 'is', 'are')} {what}: "
        f"{'this image counts' if count == 1 else 'these images count'} as unlabelled"
        for what, count in none.items()
        if count
    ]
    try:
        labels, about_labels = class_names(texts)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    if any(values is not None for values in given) and not any(labels):
        said.append("no label is left, so that images have no labels")
    if not label_names:
        return *number_labels(labels), [*said, *about_labels]
    if words or all(values is None for values in given):
        return *number_labels(labels), [
            *said,
            *about_labels,
            "class_names left out: labels that are words name themselves"
            if words
            else "class_names left out, as there are no labels",
        ]
    return *_named(name, labels, label_names, said), said


def _named(
    name: str, labels: Sequence[str | None], label_names: Sequence[str], said: list[str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels that are numbers, and the names that `class_names` gives them, each made unique."""
    numbers = np.array([-1 if label is None else int(label) for label in labels])
    if (highest := max(numbers.tolist(), default=-1)) >= len(label_names):
        raise DataError(
            f"{name}: expected labels below {len(label_names)}, which class_names name, found {highest}"
        )
    label_names = [called.strip() for called in label_names]
    occurring = [label_names[number] for number in sorted(set(numbers.tolist()) - {-1})]
    if len(occurring) < len(label_names):
        said.append(f"class_names name {len(label_names)} classes, of which {len(occurring)} occur")
    counts = Counter(label_names)
    said += about_class_names(occurring, "class_names")
    if twice := [called for called, count in counts.items() if count > 1]:
        said.append(
            f"class_names name several classes {twice[0]!r}: their numbers stand behind their names"
        )
    unique = [
        called if counts[called] == 1 else f"{called} ({number})"
        for number, called in enumerate(label_names)
    ]
    return numbers.astype(np.int64), tuple(unique)


def _column(name: str, part: Part) -> NDArray[Any]:
    """Return a part's labels (N,), numbers or words."""
    array = np.asarray(part.labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (len(part.images),):
        raise DataError(f"{name}: expected {len(part.images)} labels, found shape {array.shape}")
    texts = array.dtype.kind != "O" or all(isinstance(v, str | bytes) for v in array.tolist())
    if array.dtype.kind not in "biufUSO" or not texts:
        raise DataError(f"{name}: expected labels that are numbers or words, found {array.dtype}")
    return array


def _whole(name: str, values: NDArray[Any]) -> list[int | None]:
    """Return labels as whole numbers, None for NaN."""
    if values.dtype.kind != "f":
        return [int(value) for value in values.tolist()]
    if not (np.isnan(values) | (values == np.floor(values))).all() or np.isinf(values).any():
        raise DataError(
            f"{name}: expected labels of whole numbers, found {values.dtype} with fractions"
        )
    return [None if value != value else int(value) for value in values.tolist()]


def looked_at(arrays: Iterable[tuple[str, Any]], whole: bool) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the images of arrays, or of a sample of each, with what they are called."""
    for name, images in arrays:
        for row in range(len(images)) if whole else _sample(len(images)):
            yield f"row {row}" + (f" of {name}" if name else ""), images[row]


def about_flat(flat: Mapping[str, Any], count: int, whole: bool) -> tuple[str, ...]:
    """Return lines about images of one value everywhere, as libraries fill what was never written.

    Args:
        flat: their values, by what the images are called.
        count: of the images looked at.
        whole: whether these are all images.
    """
    lines = []
    for what in (True, False):
        places = [place for place, value in flat.items() if (value == 0) == what]
        if places:
            how = "black, 0 everywhere" if what else "of one value everywhere"
            at = places[0] if what else f"{places[0]}, {flat[places[0]]:g}"
            remedy = "leave out what was" if what else "leave out any that was"
            lines.append(
                f"{counted(len(places), 'image')}{'' if whole else f' of {count} looked at'} "
                f"{'is' if len(places) == 1 else 'are'} {how}, as {at}; {remedy} never written"
            )
    return tuple(lines)


def _sample(count: int) -> list[int]:
    """Return rows spread evenly over an array, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, SAMPLE))})


def _text(value: Any) -> str:
    """Return a text of an array; bytes that are not UTF-8 are percent-encoded, so that names stay apart."""
    return readable(
        value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    )
