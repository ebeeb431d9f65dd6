"""Images in arrays: .npy, .npz and HDF5 files, or NumPy arrays in memory; rows are read one by one."""

from __future__ import annotations

import bisect
import io
import itertools
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from vdvae_repr.data.names import (
    SPLITS,
    is_missing,
    natural_key,
    number_labels,
    readable,
    split_of,
    splits_of,
)
from vdvae_repr.data.source import Source, to_uint8
from vdvae_repr.errors import DataError

EXACT_BYTES = (
    2**26
)  # up to so many, every row is part of the fingerprint; above, a sample of them is
SAMPLE = 16  # rows of an array that tell what its pixels are
HDF5 = (".h5", ".hdf5", ".hdf")
WHITE = {"u1": 255, "u2": 65535}  # by dtype; of others the sample tells


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
            opened = self._opened[os.getpid()] = h5py.File(self.path, "r")[self.key]
        return opened[row]

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the handle behind when pickled."""
        return Hdf5Rows, (self.path, self.key, self.shape, self.dtype)


def open_npy(path: Path) -> Source:
    """Make a source of a .npy file, memory-mapped."""
    return array_source(path.name, [Part("", np.load(path, mmap_mode="r"))], file=path)


def open_npz(path: Path, key: str | None = None) -> Source:
    """Make a source of a .npz file: `images` and maybe `labels`, also by split; or the array `key`.

    Arrays that are stored uncompressed are memory-mapped.
    """
    with zipfile.ZipFile(path) as archive:
        members = {
            info.filename.removesuffix(".npy"): info
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }

    with np.load(path) as arrays:

        def read(name: str) -> NDArray[Any]:
            stored = members[name].compress_type == zipfile.ZIP_STORED
            mapped = map_member(path, members[name]) if stored else None
            return arrays[name] if mapped is None else mapped

        content = _Lazy(members, read)
        return _source_of(path, content, key, [_described(content, name) for name in members])


def open_hdf5(path: Path, key: str | None = None) -> Source:
    """Make a source of an HDF5 file: `images` and maybe `labels`, at the top or in groups of splits.

    Rows are read when they are wanted. `key` names another data set, or a group that holds these.
    """
    with h5py.File(path, "r") as file:
        found: dict[str, Any] = {}
        _find(file, "", found, frozenset())
        arrays = {name: item for name, item in found.items() if isinstance(item, h5py.Dataset)}

        def read(name: str) -> Any:
            item = found[name]
            if not isinstance(item, h5py.Dataset):
                raise DataError(
                    f"{path}: {name} is {item}; expected one data set, of images (N, H, W, 3)"
                )
            if name.rpartition("/")[2] in ("labels", "splits", "split", "class_names") or (
                name.endswith("_labels")
            ):
                return item[()]
            if item.shape is None or item.ndim == 0:
                raise DataError(f"{path}: {name} is a single value; expected images (N, H, W, 3)")
            return Hdf5Rows(path, name, item.shape, item.dtype)

        listed = [_described(arrays, name) for name in arrays]
        listed += [f"{n} ({item})" for n, item in found.items() if n not in arrays and "/" not in n]
        return _source_of(path, _Lazy(found, read), key, listed)


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


def _find(group: h5py.Group, prefix: str, found: dict[str, Any], above: frozenset[Any]) -> None:
    """Collect data sets by their paths, and in words the groups, and the links that lead nowhere."""
    above |= {h5py.h5o.get_info(group.id).addr}
    for name in group:
        key = prefix + name
        try:
            item = group[name]
        except (KeyError, OSError):
            link = group.get(name, getlink=True)
            target = getattr(link, "path", "?")
            if file := getattr(link, "filename", None):
                target = f"{file}:{target}"
            found[key] = f"a link to nowhere: {target}"
            continue
        if isinstance(item, h5py.Dataset):
            found[key] = item
        elif isinstance(item, h5py.Group):
            found[key] = f"a group of {len(item)}, as {min(item, default='nothing')}"
            if h5py.h5o.get_info(item.id).addr not in above and len(item) <= 10_000:
                _find(item, key + "/", found, above)


def _described(arrays: Mapping[str, Any], name: str) -> str:
    """Return an array's name; of HDF5, with what it holds."""
    item = arrays.get(name) if isinstance(arrays, dict) else None
    return name if item is None else f"{name} {item.dtype} {item.shape}"


_NAMED = re.compile(r"(?:(?P<word>[^/]+)/|(?P<prefix>[A-Za-z]+)_)?images")


def _source_of(path: Path, content: _Lazy, key: str | None, listed: Sequence[str]) -> Source:
    """Make a source of what a file's arrays are called."""
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
            own = [base.replace("images", "labels")] if "images" in base else []
            labels, about_labels = _beside(
                content, [f"{beside}{label}" for label in (*own, "labels")], len(images)
            )
            splits, about_splits = _beside(
                content, [f"{beside}splits", f"{beside}split"], len(images)
            )
            notices += about_labels + about_splits
            parts.append(Part("", images, labels, splits))
    if not parts:
        parts, said = _named_parts(content, root)
        notices += said
    if not parts:
        raise DataError(
            f"{path}: expected an array 'images', at the top or in train, val, test; found {_list(listed)}; "
            f"--data {path}:NAME takes another one"
        )
    names: Sequence[Any] = ()
    if f"{root}class_names" in content:
        names = np.atleast_1d(np.asarray(content[f"{root}class_names"])).tolist()
    unread = [
        n
        for n, item in content.names.items()
        if n.startswith(root) and not isinstance(item, str) and n not in content.taken
        if _NAMED.fullmatch(n.removeprefix(root)) is None  # of these it is said why
    ]
    without = [part.split or "no split" for part in parts if part.labels is None]
    if len(without) == len(parts):
        if unread:
            notices.append(
                f"no array 'labels', so that images have no labels; found {_list(unread)}"
            )
    else:
        if without:
            notices.append(f"no array holds labels for the images of {', '.join(without)}")
        if unread and (key is None or root):
            notices.append(f"arrays left out: {_list(unread)}")
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


def _named_parts(content: Mapping[str, Any], root: str) -> tuple[list[Part], list[str]]:
    """Return `images`, and those of splits: `train/images` or `train_images`; name those of no split."""
    parts: dict[str, Part] = {}
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
            raise DataError(f"{key}: the images of split {split} are there twice")
        labels, splits = (
            next((content[n] for n in names if n in content), None)
            for names in (
                [re.sub("images$", "labels", key)],
                [] if split else [f"{root}splits", f"{root}split"],
            )
        )
        parts[split] = Part(split, content[key], labels, splits)
    said = [f"{', '.join(others)} left out: no split is called so"] if others and parts else []
    return [parts[split] for split in ("", *SPLITS) if split in parts], said


def _list(listed: Sequence[str]) -> str:
    """Join names of arrays, ten at most."""
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return (", ".join(listed[:10]) or "nothing") + more


def map_member(path: Path, member: zipfile.ZipInfo) -> NDArray[Any] | None:
    """Memory-map an array that lies uncompressed in a zip, behind two headers: the zip's and its own.

    None where it holds Python objects, is empty, or is written in a way that cannot be mapped.
    """
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)  # the name, extra fields
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            return None
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, by_column, dtype = read(file)
        if dtype.hasobject or 0 in shape:
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if by_column else "C")


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
    ids: list[str] = []
    words: list[str] = []
    whites: list[int] = []
    for part in parts:
        _check_shape(name, part.images)
        count = len(part.images)
        ids += [f"{part.split}/{i}" if part.split else str(i) for i in range(count)]
        words += _words(name, part, count)
        white, line = _white(name, part.images)
        whites.append(white)
        said += [line] if line else []
    labels, known_names, about_labels = _labels(name, parts, label_names)
    splits, unknown = splits_of(words)
    images = [part.images for part in parts]
    return Source(
        name=name,
        ids=tuple(ids),
        reader=ArrayRows(images, whites),
        labels=labels,
        label_names=known_names,
        splits=splits,
        sizes=_checksums(images, file),
        notices=(*said, *about_labels, *unknown),
    )


def _check_shape(name: str, images: Any) -> None:
    """Refuse what is no array of images."""
    shape, dtype = images.shape, images.dtype
    grey = len(shape) == 3 and shape[2] not in (1, 3, 4)
    if dtype.kind in "uif" and (grey or (len(shape) == 4 and shape[3] in (1, 3))):
        return
    advice = ""
    if len(shape) == 4 and shape[1] in (1, 3):
        advice = "; move the channels to the end: images.transpose(0, 2, 3, 1)"
    elif len(shape) == 3 and shape[2] in (1, 3, 4):
        advice = "; of one image, give images[None]"
    raise DataError(
        f"{name}: expected images uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W), "
        f"found {dtype} {shape}{advice}"
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
    if dtype == np.uint8 or len(images) == 0:
        return 255, ""
    few = images.shape[0] * int(np.prod(images.shape[1:])) * dtype.itemsize <= EXACT_BYTES
    sample = np.asarray(images[:]) if few else np.stack([images[i] for i in _sample(len(images))])
    if dtype == np.uint16:
        return (
            65535,
            f"uint16 pixels: 65535 is read as white; the brightest found is {sample.max()}",
        )
    finite = sample[np.isfinite(sample)]  # rows that are not are refused when they are read
    fractional = dtype.kind == "f" and finite.max(initial=0) <= 1 + 1e-4
    white = 1 if fractional else 255
    try:
        to_uint8(finite, white)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    what = "from 0 to 1, scaled by 255" if fractional else "whole numbers from 0 to 255"
    return white, f"{dtype} pixels are read as {what}"


def _labels(
    name: str, parts: Sequence[Part], label_names: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...], list[str]]:
    """Return labels from 0, -1 where there is none, their names, and what to say of them."""
    given: list[NDArray[Any] | None] = []
    for part in parts:
        count = len(part.images)
        if part.labels is None:
            given.append(None)
            continue
        array = np.asarray(part.labels)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.shape != (count,):
            raise DataError(f"{name}: expected {count} labels, found shape {array.shape}")
        given.append(array)
    if any(values is not None and values.dtype.kind not in "biuf" for values in given):
        names: list[str | None] = []
        for part, values in zip(parts, given, strict=True):
            words = (
                [""] * len(part.images) if values is None else [_text(v) for v in values.tolist()]
            )
            names += [None if is_missing(word) else word for word in words]
        return *number_labels(names), []
    values_of: list[int | None] = []
    for part, values in zip(parts, given, strict=True):
        values_of += [None] * len(part.images) if values is None else _whole(name, values)
    none = sum(value == -1 for value in values_of)
    said = [f"{none} labels are -1: these images count as unlabelled"] if none else []
    distinct = sorted({value for value in values_of if value is not None and value != -1})
    if distinct and distinct[0] < 0:
        raise DataError(
            f"{name}: expected labels from 0, or -1 where there is none, found {distinct[0]}"
        )
    if label_names and distinct and distinct[-1] >= len(label_names):
        raise DataError(
            f"{name}: expected labels below {len(label_names)}, which class_names name, "
            f"found {distinct[-1]}"
        )
    called = list(label_names) or [str(value) for value in distinct]
    numbers = {value: value if label_names else i for i, value in enumerate(distinct)}
    labels = np.array([-1 if v is None else numbers.get(v, -1) for v in values_of], np.int64)
    return labels, tuple(called), said


def _whole(name: str, values: NDArray[Any]) -> list[int | None]:
    """Return labels as whole numbers, None for NaN."""
    if values.dtype.kind != "f":
        return [int(value) for value in values.tolist()]
    if not (np.isnan(values) | (values == np.floor(values))).all() or np.isinf(values).any():
        raise DataError(
            f"{name}: expected labels of whole numbers, found {values.dtype} with fractions"
        )
    return [None if value != value else int(value) for value in values.tolist()]


def _checksums(images: Sequence[Any], file: Path | None) -> list[int]:
    """Return a checksum of every row, or, of a large file, of a sample, with its size.

    A change of a large file that keeps its size and the sample is not noticed here; `Source.state` tells.
    """
    total = sum(int(np.prod(part.shape)) * part.dtype.itemsize for part in images)
    if file is None or total <= EXACT_BYTES:
        return [zlib.crc32(part[i].tobytes()) for part in images for i in range(len(part))]
    status = file.stat()
    sums = [zlib.crc32(part[i].tobytes()) for part in images for i in _sample(len(part))]
    shapes = zlib.crc32(repr([(part.shape, str(part.dtype)) for part in images]).encode())
    return [status.st_size, shapes, *sums]


def _sample(count: int) -> list[int]:
    """Return rows spread evenly over an array, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, SAMPLE))})


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
