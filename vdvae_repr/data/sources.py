"""What `--data` takes, turned into images, ids, labels and splits.

A known name (`digits`, `toy-faces`, those of `datasets.DATASETS`), a folder (class subfolders, or flat),
a tar or a pattern of tar shards, a CSV manifest, an array file (.npy, .npz, .h5), or a uint8 array. Ids are
unique, in natural order (`2.pgm` before `10.pgm`), shard by shard.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import tarfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vdvae_repr.config import suggestion
from vdvae_repr.data.faces import LANDMARKS, align_face
from vdvae_repr.data.toy import toy_faces
from vdvae_repr.errors import DataError

SPLITS = ("train", "val", "test")
_OPENING = threading.Lock()  # warning filters belong to the whole process; decoding is outside it
STUBS = (
    "BUFR",
    "GRIB",
    "HDF5",
    "MPEG",
    "WMF",
)  # formats that Pillow names, but does not read by itself
BUILT_IN = ("digits", "toy-faces")
RawImage = Image.Image | NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """Central square crop and antialiased bicubic resize, or a face's alignment; recorded in the store."""

    size: int
    """Side of the result, pixels."""
    crop: int | None = None
    """Side of the central square taken first; None takes the largest."""
    align: bool = False
    """Take the largest face as `faces.align_face` does, instead of a square."""

    def __post_init__(self) -> None:
        """Refuse a square of nothing, and two ways to choose it."""
        if self.crop is not None and self.crop < 1:
            raise DataError(f"--crop: expected pixels, 1 at least, found {self.crop}")
        if self.align and self.crop is not None:
            raise DataError("--crop and --align both choose what is taken of an image; give one")

    def __call__(self, image: RawImage) -> NDArray[np.uint8]:
        """Return uint8 (size, size, 3); transparency is laid over white.

        Raises:
            DataError: the image is smaller than the crop, or has no face to align.
        """
        picture = to_rgb(image if isinstance(image, Image.Image) else Image.fromarray(image))
        if self.align:
            return np.asarray(align_face(picture, self.size))
        width, height = picture.size
        side = self.crop or min(width, height)
        if side > min(width, height):
            raise DataError(
                f"expected at least {side}x{side} pixels to crop, found {width}x{height}"
            )
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
        if side != self.size:
            picture = picture.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(picture)

    def to_json(self) -> dict[str, Any]:
        """Describe the steps for a store's attributes."""
        steps = {"crop": self.crop, "size": self.size, "resize": "bicubic, antialiased"}
        if not self.align:
            return steps
        return steps | {
            "align": "MTCNN, similarity of 5 landmarks",
            "landmarks": LANDMARKS.tolist(),
        }


@dataclass(frozen=True)
class Source:
    """Images by index, with what is known of each. Make one with `open_source`."""

    name: str
    ids: tuple[str, ...]
    reader: Callable[[int], RawImage] = field(repr=False)
    labels: NDArray[np.int64]
    label_names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    factors: dict[str, NDArray[Any]] = field(default_factory=dict)
    sizes: Sequence[int] = ()
    """Bytes of each item's file, or checksums of what is in memory: part of the fingerprint."""

    def __post_init__(self) -> None:
        """Refuse an empty source, repeated ids, labels of another length."""
        if not self.ids:
            raise DataError(f"{self.name}: expected images, found none")
        if len(set(self.ids)) < len(self.ids):
            seen: set[str] = set()
            twice = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise DataError(f"{self.name}: id {twice!r} occurs twice; ids must be unique")
        if len(self.labels) != len(self.ids):
            raise DataError(
                f"{self.name}: expected {len(self.ids)} labels, found {len(self.labels)}"
            )
        if not self.splits:
            object.__setattr__(self, "splits", ("",) * len(self.ids))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def read(self, start: int, stop: int) -> Iterator[RawImage]:
        """Yield raw images start..stop-1, one at a time.

        Raises:
            DataError: an image cannot be read; the message names it.
        """
        for index in range(start, min(stop, len(self))):
            try:
                with _OPENING, warnings.catch_warnings():
                    warnings.simplefilter("error", Image.DecompressionBombWarning)
                    image = self.reader(index)
                if isinstance(image, Image.Image):
                    _load(image)
            except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
                raise DataError(
                    f"{self.ids[index]}: more than {Image.MAX_IMAGE_PIXELS} pixels; refused"
                ) from error
            except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
                raise DataError(
                    f"{self.ids[index]}: expected a readable image, found a damaged or "
                    f"different file ({one_line(error)}); mend or remove it, or leave such images out "
                    "with --on-error skip"
                ) from error
            yield image

    def fingerprint(self) -> str:
        """Return a SHA-256 over ids, labels, splits and file sizes: tells whether the source changed."""
        digest = hashlib.sha256()
        for part in (self.ids, self.labels.tolist(), self.splits, list(self.sizes)):
            digest.update(repr(part).encode())
        return digest.hexdigest()


def open_source(
    data: str | Path | NDArray[np.uint8] | Source,
    *,
    root: str | Path | None = None,
    download: bool = False,
) -> Source:
    """Open whatever `--data` names.

    Args:
        data: a known name, a folder, a file, images, or a source. A name that is known is that data
            set whatever lies in the working folder: `./cifar10`, or a `Path`, is a folder.
        root: where the files of known data sets are; None for the environment variable
            VDVAE_REPR_DATA_ROOT, else `./data`.
        download: fetch a known data set that is missing, where that is possible.

    Raises:
        DataError: nothing there, no images in it, or contents that cannot be used.
    """
    from vdvae_repr.data.datasets import DATASETS, open_dataset

    if isinstance(data, Source):
        return data
    if isinstance(data, np.ndarray):
        return _array_source("array", [("", data, None)], ())
    if isinstance(data, str):
        if data == "digits":
            return _digits()
        if match := re.fullmatch(r"toy-faces(?::(\d+)x(\d+))?", data):
            people, images = (int(group) for group in match.groups()) if match[1] else (20, 10)
            return _toy_faces(people, images)
        if data in DATASETS:
            return open_dataset(data, root, download=download)
    path, known = Path(data), (*BUILT_IN, *DATASETS)
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".tar" and re.search(r"[*?\[{]", path.name) and not path.is_file():
        try:
            return _tar(_shards(str(path)), path.name)
        except (OSError, tarfile.TarError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({one_line(error)})") from error
    if not path.is_file():
        raise DataError(
            f"{data}: no such folder or file{suggestion(str(data), known)}; expected a folder of images, "
            f"a .tar, a .csv, a .npy, .npz or .h5 file, or one of {', '.join(known)}"
        )
    try:
        if path.suffix == ".tar":
            return _tar([path], path.name)
        if path.suffix == ".csv":
            return _manifest(path)
        if path.suffix == ".npy":
            return _array_source(path.name, [("", np.load(path, mmap_mode="r"), None)], ())
        if path.suffix in (".npz", ".h5", ".hdf5"):
            return _array_file(path)
    except (OSError, ValueError, tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)})") from error
    raise DataError(f"{path}: expected a .tar, .csv, .npy, .npz or .h5 file, found {path.suffix!r}")


def read_images(
    source: Source,
    preprocessing: Callable[[RawImage], NDArray[np.uint8]],
    indices: Iterable[int],
) -> NDArray[np.uint8]:
    """Return the preprocessed images of some indices, uint8 (N, S, S, 3).

    Raises:
        DataError: an image cannot be read or preprocessed; the message names it.
    """
    images = []
    for index in map(int, indices):
        try:
            images.append(preprocessing(next(source.read(index, index + 1))))
        except (DataError, OSError, ValueError) as error:
            name, message = source.ids[index], str(error)
            named = message if message.startswith(name) else f"{name}: {message}"
            raise DataError(named) from error
    return np.stack(images)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key under which `2.pgm` comes before `10.pgm`."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any PIL mode into RGB, upright by its EXIF orientation; transparency over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        scale = 255 / 65535 if values.max(initial=0) > 255 else 1.0
        image = Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _toy_faces(people: int, images: int) -> Source:
    toy = toy_faces(people, images)
    return Source(
        name=f"toy-faces:{people}x{images}",
        ids=toy.ids,
        reader=lambda index: toy.images[index],
        labels=toy.labels,
        label_names=toy.label_names,
        factors=toy.factors,
        sizes=[zlib.crc32(image.tobytes()) for image in toy.images],
    )


def _digits() -> Source:
    """scikit-learn's 1,797 digits; the first two thirds of each class are `train`, the rest `test`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    images = np.repeat(np.round(digits.images * 255 / 16).astype(np.uint8)[..., None], 3, axis=3)
    splits = np.full(len(labels), "test", dtype=object)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        splits[members[: 2 * len(members) // 3]] = "train"
    return Source(
        name="digits",
        ids=tuple(str(i) for i in range(len(labels))),
        reader=lambda index: images[index],
        labels=labels,
        label_names=tuple(str(i) for i in range(10)),
        splits=tuple(splits),
    )


def _image_extensions() -> set[str]:
    """Return the extensions of files whose pixels Pillow reads: a store may lie among the images."""
    formats = Image.registered_extensions()
    return {e for e, name in formats.items() if name in Image.OPEN and name not in STUBS}


def image_files(root: Path) -> dict[str, Path]:
    """Return the image files below a folder by id, the path relative to it, in natural order.

    Raises:
        DataError: there are none.
    """
    extensions = _image_extensions()
    files = {
        path.relative_to(root).as_posix(): path
        for path in root.rglob("*")
        if path.suffix.lower() in extensions and not path.name.startswith(".") and path.is_file()
    }
    if not files:
        raise DataError(f"{root}: expected a folder with images, found none in it")
    return {image_id: files[image_id] for image_id in sorted(files, key=natural_key)}


def _folder(root: Path) -> Source:
    files = image_files(root)
    ids = list(files)
    names, splits = _labels_from_paths(ids)
    labels, label_names = number_labels(names)
    return Source(
        name=root.name or str(root),
        ids=tuple(ids),
        reader=lambda index: Image.open(files[ids[index]]),
        labels=labels,
        label_names=label_names,
        splits=splits,
        sizes=[files[i].stat().st_size for i in ids],
    )


def _shards(pattern: str) -> list[Path]:
    """Return the tars that a pattern names, in natural order: `a-*.tar`, `a-{000..012}.tar`."""
    if match := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        first, last = match.groups()
        numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
        paths = [Path(pattern[: match.start()] + n + pattern[match.end() :]) for n in numbers]
        if missing := [path for path in paths if not path.is_file()]:
            raise DataError(f"{pattern}: expected {len(paths)} shards, found no {missing[0]}")
        return paths
    where = Path(pattern)
    paths = sorted(where.parent.glob(where.name), key=lambda path: natural_key(path.name))
    if not paths:
        raise DataError(f"{pattern}: expected tar shards, found none that match")
    return paths


def _tar(paths: Sequence[Path], name: str) -> Source:
    """Read members in place, never unpacked, shard by shard."""
    extensions = _image_extensions()
    members: list[tuple[Path, str, int, int]] = []  # tar, name, offset, bytes
    for path in paths:
        with tarfile.open(path, "r:") as archive:
            own = [
                member
                for member in archive
                if member.isfile() and PurePosixPath(member.name).suffix.lower() in extensions
            ]
        own.sort(key=lambda member: natural_key(member.name))
        members += [(path, member.name, member.offset_data, member.size) for member in own]
    if not members:
        raise DataError(f"{name}: expected a tar with images, found none in it")

    def reader(index: int) -> Image.Image:
        path, _, offset, size = members[index]
        with path.open("rb") as file:
            file.seek(offset)
            return Image.open(io.BytesIO(file.read(size)))

    ids = [name.removeprefix("./") for _, name, _, _ in members]
    names, splits = _labels_from_paths(ids)
    labels, label_names = number_labels(names)
    return Source(
        name=name,
        ids=tuple(ids),
        reader=reader,
        labels=labels,
        label_names=label_names,
        splits=splits,
        sizes=[size for _, _, _, size in members],
    )


def _manifest(path: Path) -> Source:
    """A CSV with `file`, and maybe `label` and `split`; other columns are kept as factors."""
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        columns = reader.fieldnames or []
        if "file" not in columns:
            raise DataError(
                f"{path}: expected a column 'file', found {', '.join(columns) or 'none'}"
            )
        rows = list(reader)
    ids = [row["file"] for row in rows]
    files = [path.parent / i for i in ids]
    for line, file in enumerate(files, start=2):
        if not file.is_file():
            raise DataError(f"{path} line {line}: no such file {file}")
    labels, label_names = number_labels([row.get("label") or None for row in rows])
    extra = [c for c in columns if c not in ("file", "label", "split")]
    return Source(
        name=path.name,
        ids=tuple(ids),
        reader=lambda index: Image.open(files[index]),
        labels=labels,
        label_names=label_names,
        splits=tuple(row.get("split") or "" for row in rows),
        factors={c: np.array([row[c] or "" for row in rows]) for c in extra},
        sizes=[file.stat().st_size for file in files],
    )


def _array_file(path: Path) -> Source:
    """`images` and maybe `labels`, at the top or in groups train, val, test."""
    if path.suffix == ".npz":
        with np.load(path) as archive:
            content: Any = {key: archive[key] for key in archive.files}
    else:
        content = h5py.File(path, "r")
    parts = []
    for group in ("", *SPLITS):
        prefix = f"{group}/" if group else ""
        if f"{prefix}images" in content:
            labels = content[f"{prefix}labels"][:] if f"{prefix}labels" in content else None
            parts.append((group, content[f"{prefix}images"], labels))
    if not parts:
        raise DataError(f"{path}: expected a data set 'images', at the top or in train, val, test")
    names = content["class_names"][:] if "class_names" in content else ()
    decoded = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
    return _array_source(path.name, parts, decoded)


def _array_source(
    name: str, parts: Sequence[tuple[str, Any, Any]], label_names: tuple[str, ...]
) -> Source:
    ids: list[str] = []
    splits: list[str] = []
    labels: list[NDArray[np.int64]] = []
    place: list[tuple[Any, int]] = []
    for split, images, part_labels in parts:
        shape, dtype = images.shape, images.dtype
        if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
            raise DataError(f"{name}: expected images uint8 (N, H, W, 3), found {dtype} {shape}")
        count = len(images)
        given = np.full(count, -1) if part_labels is None else np.asarray(part_labels)
        if given.shape != (count,):
            raise DataError(f"{name}: expected {count} labels, found shape {given.shape}")
        if not np.issubdtype(given.dtype, np.integer):
            raise DataError(f"{name}: expected integer labels, found {given.dtype}")
        ids += [f"{split}/{i}" if split else str(i) for i in range(count)]
        splits += [split] * count
        labels.append(given.astype(np.int64))
        place += [(images, i) for i in range(count)]
    joined = np.concatenate(labels)
    if not label_names:
        label_names = tuple(str(i) for i in range(joined.max(initial=-1) + 1))
    return Source(
        name=name,
        ids=tuple(ids),
        reader=lambda index: np.asarray(place[index][0][place[index][1]]),
        labels=joined,
        label_names=label_names,
        splits=tuple(splits),
        sizes=[zlib.crc32(images[i].tobytes()) for images, i in place],
    )


def _labels_from_paths(ids: Sequence[str]) -> tuple[list[str | None], tuple[str, ...]]:
    """Class folder, else the name before its last underscore; train, val, test on top are splits."""
    names: list[str | None] = []
    splits: list[str] = []
    for image_id in ids:
        *folders, file = PurePosixPath(image_id).parts
        split = folders.pop(0) if folders and folders[0] in SPLITS else ""
        stem, underscore, _ = PurePosixPath(file).stem.rpartition("_")
        names.append("/".join(folders) if folders else (stem if underscore else None))
        splits.append(split)
    return names, tuple(splits)


def number_labels(names: Sequence[str | None]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number label names from 0 in natural order; -1 where there is none."""
    distinct = sorted({name for name in names if name is not None}, key=natural_key)
    numbers = {name: index for index, name in enumerate(distinct)}
    labels = [-1 if name is None else numbers[name] for name in names]
    return np.array(labels, dtype=np.int64), tuple(distinct)


def _load(image: Image.Image) -> None:
    """Decode now, and close the file whether that works or not."""
    try:
        image.load()
    except BaseException:
        image.close()
        raise


def one_line(error: Exception) -> str:
    """Return the first line of an error's message, its type's name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
