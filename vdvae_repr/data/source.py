"""A source: images by index with what is known of each, and the preprocessing that makes them square.

A source reads one image at a time, from several threads at once if need be. What makes sources is in
`open` (whatever `--data` takes), `datasets` (by name) and `readers` (files).
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from vdvae_repr.config import hidden_by_mask, without_order
from vdvae_repr.data.faces import LANDMARKS, align_face
from vdvae_repr.data.kinds import unread_tiff, what_it_is
from vdvae_repr.data.loader import map_ahead
from vdvae_repr.data.names import (
    merged_ids,
    number_labels,
    number_of_classes,
    readable,
    splits_of,
    unfit_for_a_file,
)
from vdvae_repr.errors import SKIP_ADVICE, DataError, first_line, printable
from vdvae_repr.output import MARK
from vdvae_repr.pixels import (
    ALIKE,
    FEW,
    FULL,
    decode_pixels,
    opacity_of,
    to_rgb,
    white_is_zero,
    white_of,
)

logger = logging.getLogger(__name__)

RawImage = Image.Image | NDArray[np.uint8]
RESIZE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# What Pillow decodes by itself; PostScript, for one, it hands to another program. JPEG's is MPO's too, and
# TGA comes last, as nothing at the beginning of such a file tells what it is.
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "PPM",
    "AVIF",
    "JPEG2000",
    "QOI",
    "ICO",
    "DIB",
    "SGI",
    "SUN",
    "PCX",
    "TGA",
)
FILE_BYTES = 2**29  # of one image's file
FAINT = 1 / 16  # as of 12 bits that were divided by 65535
FEW_BITS = 16  # a file of 8 bits all below may be a mask; a night photo is darker than arrays
LOOKED_AT = (
    100  # images of colours, the first of a source, of which it is told whether they are dark
)
# At the end of compressed pixels so many zeros are no pixels. Those of a WebP may be, of one color; behind
# the pixels of other formats, whose end is not looked for, may stand what ends with some.
ZEROS = {"JPEG": 16, "MPO": 16, "PNG": 16, "TIFF": 128}
MANY_ZEROS = 1024  # of others
ENDS = {  # of compressed pixels, the bytes that they end with
    "JPEG": b"\xff\xd9",
    "MPO": b"\xff\xd9",
    "JPEG2000": b"\xff\xd9",
    "PNG": b"IEND\xaeB`\x82",
    "GIF": b";",
    "WEBP": b"",
    "AVIF": b"",
    "QOI": b"\x01",
}
ANIMATED = (
    "AVIF",
    "GIF",
    "PNG",
    "TIFF",
    "WEBP",
)  # formats of several pictures, all of which are meant
LONGEST = 4096  # characters of an id or a class


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """Central square crop and antialiased resize, or a face's alignment; recorded in the store."""

    size: int
    """Side of the result, pixels."""
    crop: int | None = None
    """Side of the central square taken first; None takes the largest."""
    align: bool = False
    """Take a face as `faces.align_face` does, instead of a square."""
    resize: Literal["bicubic", "bilinear"] = "bicubic"
    """How the square is resized, as Pillow does it; torchvision's `resize` of a PIL image is bilinear."""

    def __post_init__(self) -> None:
        """Refuse a square of nothing, two ways to choose it, and an unknown way to resize."""
        if self.crop is not None and self.crop < 1:
            raise DataError(f"crop: expected pixels, 1 at least, found {self.crop}")
        if self.align and self.crop is not None:
            raise DataError("crop and align both choose what is taken of an image; give one")
        if self.resize not in RESIZE:
            raise DataError(f"resize: expected {' or '.join(RESIZE)}, found {self.resize!r}")
        if self.align and self.resize != "bicubic":
            raise DataError("align resizes by bicubic interpolation; leave resize out")

    def __call__(self, image: RawImage) -> NDArray[np.uint8]:
        """Return uint8 (size, size, 3); transparency is laid over white.

        Raises:
            DataError: the image is smaller than the crop, has no face to align, or its pixels cannot be
                turned into 8 bits (`to_rgb`).
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
            picture = picture.resize((self.size, self.size), RESIZE[self.resize])
        return np.asarray(picture)

    def to_json(self) -> dict[str, Any]:
        """Describe the steps for a store's attributes."""
        steps = {"crop": self.crop, "size": self.size, "resize": f"{self.resize}, antialiased"}
        if not self.align:
            return steps
        return steps | {
            "align": "MTCNN, the most central of large faces, similarity of 5 landmarks",
            "landmarks": LANDMARKS.tolist(),
        }


@dataclass(frozen=True, eq=False)
class Source(Dataset[Image.Image]):
    """Images by index, with what is known of each: a torch data set. Make one with `open_source`.

    `source[i]` is image i as its file holds it, a PIL image of any size and mode, as torchvision's data
    sets give them; its label is `source.labels[i]`. Several threads or processes may read at once.
    """

    name: str
    ids: tuple[str, ...]
    reader: Callable[[int], RawImage] = field(repr=False)
    labels: NDArray[np.int64]
    label_names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    factors: dict[str, NDArray[Any]] = field(default_factory=dict)
    sizes: Sequence[int] = ()
    """Bytes of each item's file, or checksums of what is in memory: part of the fingerprint."""
    notices: tuple[str, ...] = ()
    """Lines for people: what was left out and why, and what was read in a way that may surprise."""
    paths: tuple[Path, ...] = ()
    """The folder or files that it was opened from, which nothing made of it may replace."""
    opened: str | dict[str, Any] | None = None
    """What opens it again, as JSON holds it: what `open_source` takes, or that and its options by name."""
    _said: set[str] = field(default_factory=set, init=False, repr=False)  # what is said once
    _deep: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    """Of the first images of 16 bits, by index, the largest value."""

    def __repr__(self) -> str:
        """Say what it is of, in one line however many images there are."""
        splits = ", ".join(dict.fromkeys(self.splits))
        classes = number_of_classes(self.labels)
        return (
            f"<{type(self).__name__} {self.name}: {len(self.ids)} images, {classes} classes"
            f"{f', splits {splits}' if any(self.splits) else ''}"
            f"{f', {len(self.factors)} factors' if self.factors else ''}>"
        )

    def __post_init__(self) -> None:
        """Refuse an empty source, repeated ids, labels of another length, names that no store can keep.

        Columns of a table are taken by position, and splits by the words that mean them.
        """
        for name in ("ids", "labels", "splits", "label_names"):
            if why := without_order(getattr(self, name), name):
                raise DataError(f"{self.name}: {name}: {why}")
        for name in ("ids", "splits", "label_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not hasattr(self.factors, "items"):
            raise DataError(
                f"{self.name}: factors: expected arrays by name, as {{'age': ages}}, found "
                f"{type(self.factors).__name__}"
            )
        by_position = {name: np.asanyarray(values) for name, values in self.factors.items()}
        object.__setattr__(self, "factors", by_position)
        if not self.ids:
            raise DataError(f"{self.name}: expected images, found none")
        check_names(self)
        object.__setattr__(self, "notices", tuple(map(printable, self.notices)))
        if len(set(self.ids)) < len(self.ids):
            seen: set[str] = set()
            twice = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise DataError(f"{self.name}: id {twice!r} occurs twice; ids must be unique")
        if len(self.labels) != len(self.ids):
            raise DataError(
                f"{self.name}: expected {len(self.ids)} labels, found {len(self.labels)}"
            )
        self._check_labels()
        if not self.splits:
            object.__setattr__(self, "splits", ("",) * len(self.ids))
        if len(self.splits) != len(self.ids):
            raise DataError(
                f"{self.name}: expected {len(self.ids)} splits, found {len(self.splits)}"
            )
        object.__setattr__(self, "splits", splits_of(self.splits)[0])

    def _check_labels(self) -> None:
        """Refuse labels that are no whole numbers, or that `label_names` do not name."""
        if why := hidden_by_mask(self.labels, "labels", "labels"):
            raise DataError(f"{self.name}: {why}")
        labels = np.asarray(self.labels)
        if labels.dtype.kind == "f" and (labels == np.floor(labels)).all():
            object.__setattr__(self, "notices", (*self.notices, *merged_ids(labels)))
            labels = labels.astype(np.int64)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(
                f"{self.name}: expected labels of whole numbers (N,), -1 where there is none, found "
                f"{labels.dtype} {labels.shape}"
            )
        object.__setattr__(self, "labels", labels)
        if not self.label_names:  # numbers name themselves
            names = [None if label == -1 else str(label) for label in labels.tolist()]
            if (lowest := labels.min(initial=0)) < -1:
                raise DataError(
                    f"{self.name}: expected labels from 0, or -1 where there is none, found {lowest}"
                )
            labels, names_ = number_labels(names)
            object.__setattr__(self, "labels", labels)
            object.__setattr__(self, "label_names", names_)
        wrong = labels[(labels < -1) | (labels >= len(self.label_names))]
        if len(wrong):
            raise DataError(
                f"{self.name}: expected labels from -1 to {len(self.label_names) - 1}, which label_names "
                f"name, found {wrong[0]}"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Image.Image:
        """Return image `index` as its file holds it; of an array, its row as an image.

        Raises:
            DataError: it cannot be read; the message names it. IndexError: there is no such image.
            TypeError: no number, as a slice.
        """
        if not isinstance(index, Integral):
            raise TypeError(
                f"{self.name}: expected the number of one image, found {index!r:.80}; "
                "source.select takes several"
            )
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: expected an index below {len(self)}, found {index}")
        image = self.load(index % len(self))
        return image if isinstance(image, Image.Image) else Image.fromarray(image)

    def read(self, start: int, stop: int) -> Iterator[RawImage]:
        """Yield raw images start..stop-1, one at a time, as `load` returns them."""
        for index in range(start, min(stop, len(self))):
            yield self.load(index)

    def load(self, index: int) -> RawImage:
        """Return image `index`, decoded: a PIL image, or uint8 (H, W, 3) or (H, W) from an array.

        Raises:
            DataError: it cannot be read; the message names it.
        """
        several = deep = False
        try:
            image = _checked(self.reader(index))
            if isinstance(image, Image.Image):
                deep = _has_16_bits(image)
                several = _decode(image)
        except DataError as error:
            raise DataError(f"{self.ids[index]}: {error}") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError(f"{self.ids[index]}: {_too_large()}") from error
        except Exception as error:  # a damaged file may make Pillow raise anything
            raise DataError(
                f"{self.ids[index]}: expected a readable image, found a damaged or "
                f"different file ({first_line(error)}); mend or remove it{SKIP_ADVICE}"
            ) from error
        if isinstance(image, Image.Image):
            if image.info.get("Software") == MARK:
                self._say_once(index, f"is a picture that {MARK} made, as a sheet or a figure is")
            if several:
                self._say_once(index, "holds several pictures, of which the first is read")
            bands = len(image.getbands())
            held = getattr(image, "tag_v2", {}).get(277)  # SamplesPerPixel
            if isinstance(held, int) and held > bands:
                more = "the first is" if bands == 1 else f"the first {bands} are"
                self._say_once(index, f"has {held} channels, of which {more} read")
            opacity = opacity_of(image)
            self._say_if_transparent(opacity, index)
            if opacity:  # else it is white
                self._say_if_dark(image, index, deep)
        else:
            if image.shape[2:] == (4,):
                self._say_if_transparent(int(image[..., 3].max(initial=0)), index)
            if index < LOOKED_AT and not _is_of_arrays(self.reader):  # of which it is said before
                self._say_if_dark(Image.fromarray(image), index, deep=False)
        return image

    def _say_if_transparent(self, opacity: int, index: int) -> None:
        """Warn, once, of an image of which no pixel has half of full opacity, and once where none has any."""
        if opacity == 0:
            self._say_once(index, "is transparent everywhere, so it is read as white")
        elif 2 * opacity < FULL:
            line = f"has no opacity above {opacity} of {FULL}, so white shows through everywhere: "
            line += f"save opacity from 0 to {FULL}, or leave it out"
            self._say_once(index, line, kind="faint")

    def _say_if_dark(self, image: Image.Image, index: int, deep: bool) -> None:
        """Warn, once, where none but the lowest values of a depth are used; `deep`: the file has 16 bits."""
        if ("dim" if deep else "dark") in self._said:
            return
        if image.mode == "F":
            faint = float(np.asarray(image).max(initial=0))
            if 0 < faint < FAINT:
                how = "black, so it is bright" if white_is_zero(image) else "white, so it is dark"
                line = f"has floating-point pixels, none above {faint:.2g}; 1.0 is read as {how}"
                self._say_once(index, line, kind="dark")
        elif image.mode.startswith("I"):
            if deep:
                self._say_if_dim(image, index)
        elif deep or image.mode == "L" or index < LOOKED_AT:
            high = _brightest(image)
            # Pillow rounds 16 bits of a PPM, and cuts others'.
            limit = 16 if image.format == "PPM" else 15
            if high is not None and deep and high <= limit:
                self._say_dim(index, FEW, "white, so it is dark")
            elif high and deep:
                self._say_if_all_dim(index, 256 * high + 255, "white, so it is dark")
            elif high == 0:
                self._say_once(index, "is black everywhere")
            elif high is not None and not deep and high < FEW_BITS:
                line = f"has 8-bit pixels, none above {high}; 255 is read as white, so it is dark"
                self._say_once(index, line, kind="dark")

    def _say_if_dim(self, image: Image.Image, index: int) -> None:
        """Warn, once, where 16-bit pixels look like those of a camera of fewer bits."""
        if white_of(image) != 65535:
            return
        brightest = int(np.asarray(image).max(initial=0))
        how = "black, so it is bright" if white_is_zero(image) else "white, so it is dark"
        if brightest <= FEW:
            self._say_dim(index, brightest, how)
        else:
            self._say_if_all_dim(index, brightest, how)

    def _say_if_all_dim(self, index: int, brightest: int, how: str) -> None:
        """Warn, once, where the first images of 16 bits have 15 bits at most, as cameras of 14 bits give."""
        if len(self._deep) < ALIKE:
            self._deep[index] = brightest
            if len(self._deep) == ALIKE and max(self._deep.values()) < 2**15:
                self._say_dim(index, max(self._deep.values()), how, f", as {ALIKE - 1} others have")

    def _say_dim(self, index: int, brightest: int, how: str, others: str = "") -> None:
        line = f"has 16-bit pixels{others}, none above {brightest}; 65535 is read as {how}: "
        self._say_once(index, line + "scale images of fewer bits to 16", kind="dim")

    def _say_once(self, index: int, what: str, kind: str = "") -> None:
        """Warn of an image; of each kind of thing, the line itself if not given, of one image alone."""
        if (kind or what) not in self._said:
            self._said.add(kind or what)
            logger.warning("%s: %s %s", printable(self.name), printable(self.ids[index]), what)

    def select(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> Source:
        """Return a source of some images alone, in the order given; rows count from 0, or are a mask (N,).

        Raises:
            DataError: there are no such images.
        """
        if why := hidden_by_mask(rows, "numbers of rows", "rows") or without_order(rows, "rows"):
            raise DataError(f"{self.name}: rows: {why}")
        given = np.asarray(rows)
        if given.dtype == bool and given.shape == (len(self),):
            given = np.flatnonzero(given)
        elif given.shape == (0,):
            given = np.zeros(0, np.intp)
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise DataError(
                f"{self.name}: rows: expected whole numbers, or a mask of {len(self)}, found "
                f"{given.dtype} {given.shape}"
            )
        wrong = given[(given < -len(self)) | (given >= len(self))]
        if len(wrong):
            raise DataError(
                f"{self.name}: expected images below {len(self)}, their number, found {wrong[0]}"
            )
        chosen = given.astype(np.intp) % len(self)
        each = len(self.sizes) == len(self)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in chosen),
            reader=_Selection(self.reader, chosen),
            labels=self.labels[chosen],
            splits=tuple(self.splits[i] for i in chosen),
            factors={name: values[chosen] for name, values in self.factors.items()},
            sizes=[self.sizes[i] for i in chosen] if each else self.sizes,
            opened=None,
        )

    def fingerprint(self) -> str:
        """Return a SHA-256 over ids, labels, splits and file sizes: which images these are meant to be.

        It is had at once. Whether an image has been replaced by another of its size, `checksum` tells.
        """
        digest = hashlib.sha256()
        for part in (self.ids, self.labels.tolist(), self.splits, list(self.sizes)):
            digest.update(repr(part).encode())
        return digest.hexdigest()

    def state(self) -> str | None:
        """Return a SHA-256 over size, times and place on the disk of every file that images are read from.

        As long as it stays the same no image was replaced. Where it changes, as by copying, images may or may
        not have: their checksums tell. None where no files are known, as of arrays in memory.
        """
        files: Sequence[Path] | None = _files(self.reader)
        if files is None:
            whole = bool(self.paths) and all(path.is_file() for path in self.paths)
            files = self.paths if whole else _array_files(self.reader)
        if not files:
            return None
        digest = hashlib.sha256()
        for path in files:
            try:
                status = os.stat(path)  # noqa: PTH116 (a million of them take time)
            except OSError:
                digest.update(b"none\n")
                continue
            times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
            digest.update(f"{status.st_size} {times} {status.st_ino}\n".encode())
        return digest.hexdigest()

    def checksum(self, index: int) -> int:
        """Return a checksum of what image `index` is made of; 0 where that cannot be read.

        It is 64 bits: the CRC-32 and the length of the bytes of its file, or of its pixels where images have
        no files of their own (`checksums_are_of`).
        """
        try:
            content = _content(self.reader, index)
            return _checksum(_pixels(self.load(index)) if content is None else content)
        except Exception:  # whatever a damaged file makes Pillow raise
            return 0

    @property
    def checksums_are_of(self) -> Literal["files", "pixels"]:
        """What `checksum` is taken of."""
        return "files" if _is_of_files(self.reader) else "pixels"

    def with_checksums(self) -> tuple[Source, NDArray[np.uint64]]:
        """Return the same source, and an array (N,) that it fills with the checksums of what it reads."""
        reader = _ChecksumReader(self.reader, np.zeros(len(self), np.uint64))
        return replace(self, reader=reader), reader.checksums


def _checked(image: Any) -> RawImage:
    """Return what a reader gave; refuse what is no image.

    Raises:
        DataError: says how to make one of it.
    """
    if isinstance(image, Image.Image):
        return image
    is_pixels = isinstance(image, np.ndarray) and image.dtype == np.uint8
    if why := hidden_by_mask(image, "pixels", "image"):
        raise DataError(why)
    if is_pixels and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
        return image
    shape = getattr(image, "shape", None)
    found = type(image).__name__
    if shape is not None:
        found += f" {str(getattr(image, 'dtype', '')).removeprefix('torch.')} {tuple(shape)}"
    raise DataError(
        f"expected a PIL image or an array of uint8 (H, W, 3) or (H, W), found {found}; make one in the "
        "source's reader, values from 0 to 255 and channels last"
    )


def _has_16_bits(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has channels of 16 bits, of which Pillow may keep 8."""
    if image.mode.startswith("I;16"):
        return True
    return any(
        ";16" in str(about) or (codec.startswith("ppm") and 65535 in np.ravel(about[1:]))
        for codec, _, _, about in getattr(image, "tile", ())
    )


def _brightest(image: Image.Image) -> int | None:
    """Return the largest value of any colour of 8 bits; None of other modes, and of what is transparent."""
    if image.mode == "P" and "transparency" not in image.info:
        image = image.convert("RGB")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        return None
    lows, highs = np.reshape(image.getextrema(), (-1, 2)).T
    if "A" in image.mode:
        return None if lows[-1] < 255 else int(highs[:-1].max())
    return int(highs.max())


def _content(reader: Callable[[int], RawImage], index: int) -> bytes | None:
    """Return the bytes that a reader decodes image `index` from; None where it has none."""
    if isinstance(reader, _Selection):
        return _content(reader.reader, int(reader.rows[index]))
    content: Callable[[int], bytes] | None = getattr(reader, "content", None)
    return None if content is None else content(index)


def _is_of_files(reader: Callable[[int], RawImage]) -> bool:
    """Whether a reader decodes images from bytes, as `_content` returns them."""
    if isinstance(reader, _Selection):
        return _is_of_files(reader.reader)
    return hasattr(reader, "content")


def _files(reader: Callable[[int], RawImage]) -> list[Path] | None:
    """Return the file of each image; None where they have none of their own."""
    if isinstance(reader, _Selection):
        files = _files(reader.reader)
        return None if files is None else [files[row] for row in reader.rows]
    found: list[Path] | None = getattr(reader, "files", None)
    return found


def _is_of_arrays(reader: Callable[[int], RawImage]) -> bool:
    """Whether a reader reads rows of arrays, as `array_source` makes it."""
    while isinstance(reader, _Selection | _ChecksumReader):
        reader = reader.reader
    return hasattr(reader, "arrays")


def _array_files(reader: Callable[[int], RawImage]) -> list[Path]:
    """Return the files that a reader's arrays are read from; none where one of them is in memory."""
    inner = reader.reader if isinstance(reader, _Selection) else reader
    names = [getattr(array, "filename", None) for array in getattr(inner, "arrays", ())]
    return [Path(name) for name in names if name is not None] if None not in names else []


def _pixels(image: RawImage) -> bytes:
    """Return the pixels of an image, with its palette."""
    palette = image.getpalette() if isinstance(image, Image.Image) else None
    return np.asarray(image).tobytes() + bytes(palette or ())


def _checksum(content: bytes) -> int:
    return zlib.crc32(content) << 32 | len(content) & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _ChecksumReader:
    """Reads as another reader, and keeps a checksum of what each image was made of.

    An image file is read once: its checksum is of the bytes that are decoded.
    """

    reader: Callable[[int], RawImage]
    checksums: NDArray[np.uint64]

    def __call__(self, index: int) -> RawImage:
        content = _content(self.reader, index)
        if content is not None:
            self.checksums[index] = _checksum(content)
            return open_image(content)
        image = self.reader(index)
        if isinstance(image, Image.Image):
            _decode(image)
        self.checksums[index] = _checksum(_pixels(image))
        return image


def check_names(source: Source) -> None:
    """Refuse ids, splits, class names and factors that no store can keep, before anything is computed.

    Raises:
        DataError: an id or name that is empty or longer than `LONGEST`; a text that holds a NUL or is not
            Unicode; a factor's name that is no text, or that `unfit_for_a_file` says something of; a factor
            that is no array of N numbers or texts; a class name that occurs twice, or that has line breaks.
    """
    for name, values in source.factors.items():
        if not isinstance(name, str):
            raise DataError(
                f"{source.name}: factors: expected names that are texts, found {name!r:.40} of type "
                f"{type(name).__name__}; rename that column"
            )
        if why := hidden_by_mask(values, "values", name):
            raise DataError(f"{source.name}: factor {name!r}: {why}")
        if why := unfit_for_a_file(name):
            raise DataError(
                f"{source.name}: no store can keep a factor called {name[:40]!r}, as {why}; "
                "rename that column"
            )
        if values.shape != (len(source.ids),) or values.dtype.kind not in "biufUO":
            raise DataError(
                f"{source.name}: factor {name!r}: expected {len(source.ids)} numbers or texts, "
                f"found {values.dtype} {values.shape}"
            )
    names: dict[str, Sequence[str]] = {
        "ids": source.ids,
        "names of labels": source.label_names,
    }
    values_of = {
        f"values of factor {name!r}": values.tolist()
        for name, values in source.factors.items()
        if values.dtype.kind in "UO"
    }
    for what, texts in (names | {"splits": list(set(source.splits))} | values_of).items():
        for wrong in _no_texts(texts):
            if what in values_of and not isinstance(wrong, str):
                if any(value is None for value in texts):  # numbers beside it are as they should be
                    wrong = None
                raise DataError(
                    f"{source.name}: {what}: expected numbers alone, or texts alone, found {wrong!r:.40}, "
                    f"of type {type(wrong).__name__}; write numbers and "
                    "truth values among texts as texts, and none as nan"
                )
            if not isinstance(wrong, str):
                raise DataError(
                    f"{source.name}: {what}: expected texts, found {wrong!r:.40}, of type "
                    f"{type(wrong).__name__}; write it as a text"
                )
            raise DataError(
                f"{source.name}: {what}: expected texts of Unicode without NUL, found {wrong[:40]!r}; "
                "rename it"
            )
    for what, texts in names.items():
        for wrong in (text for text in texts if not 0 < len(text) <= LONGEST):
            raise DataError(
                f"{source.name}: {what}: expected 1 to {LONGEST} characters, found {len(wrong)}, "
                f"as {wrong[:40]!r}; rename it"
            )
    for wrong in (text for text in source.label_names if {*"\n\r"} & {*text}):
        raise DataError(
            f"{source.name}: names of labels: expected each on one line, found {wrong[:40]!r}; give each "
            "image one label, or rename the class"
        )
    if len(set(source.label_names)) < len(source.label_names):
        twice = Counter(source.label_names).most_common(1)[0][0]
        raise DataError(f"{source.name}: class name {twice!r} occurs twice; rename one")


def _no_texts(values: Sequence[Any]) -> list[Any]:
    """Return the values that are no texts, or none that HDF5 keeps as they are."""

    def kept(text: str) -> bool:
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
        return "\0" not in text

    try:
        if kept("".join(values)):  # at once, as there may be millions
            return []
    except TypeError:  # not all are texts
        pass
    return [value for value in values if not isinstance(value, str) or not kept(value)]


@dataclass(frozen=True, slots=True)
class _Selection:
    reader: Callable[[int], RawImage]
    rows: NDArray[np.intp]

    def __call__(self, index: int) -> RawImage:
        return self.reader(int(self.rows[index]))


@dataclass(frozen=True, slots=True)
class _ImageFiles:
    """Opens image files, or what they contain, by index."""

    contents: Sequence[Path | bytes]

    @property
    def files(self) -> list[Path] | None:
        """The files; None where some of the contents are in memory."""
        files = [content for content in self.contents if not isinstance(content, bytes)]
        return files if len(files) == len(self.contents) else None

    def content(self, index: int) -> bytes:
        """Return the bytes that an image is decoded from."""
        content = self.contents[index]
        if isinstance(content, bytes):
            return content
        _refuse_a_large_file(content)
        return content.read_bytes()

    def __call__(self, index: int) -> Image.Image:
        return open_image(self.contents[index])


def open_image(content: Path | bytes) -> Image.Image:
    """Open an image file, or what it contains, of a format of `FORMATS`; it is decoded later.

    Raises:
        ValueError: it is none; the message says what it is, where its first bytes tell. OSError: it cannot be
            read.
    """
    if isinstance(content, Path):
        _refuse_a_large_file(content)
    try:
        image = Image.open(
            io.BytesIO(content) if isinstance(content, bytes) else content, formats=_known()
        )
    except UnidentifiedImageError as error:
        what = what_it_is(content) or unread_tiff(content)
        raise ValueError(f"it is {what}" if what else "of no image format that is read") from error
    if (
        image.format == "TIFF"
    ):  # which Pillow maps into memory by name, and turns with rows of a wrong length
        image.filename = ""
    if zeros := _zeros_at_the_end(content, image):
        image.close()
        raise ValueError(
            f"{zeros} zeros stand where its pixels should end, as where it was cut off"
        )
    return image


def _refuse_a_large_file(path: Path) -> None:
    if (size := path.stat().st_size) > FILE_BYTES:
        raise ValueError(f"it has {size:,} bytes, expected {FILE_BYTES:,} of an image at most")


def _zeros_at_the_end(content: Path | bytes, image: Image.Image) -> int:
    """Return how many zeros stand where the end of compressed pixels should be, as where a copy broke off.

    Decoders make grey or black pixels of them. Behind the mark of an image's end, zeros are none's business.
    """
    end = ENDS.get(str(image.format))
    tags = getattr(image, "tag_v2", {})
    if image.format == "TIFF" and image.info.get("compression") not in (None, "raw"):
        end = b""
    if end is None:
        return 0
    few = ZEROS.get(str(image.format), MANY_ZEROS)
    file = getattr(image, "fp", None)
    if isinstance(content, bytes) or file is None:
        last = (content if isinstance(content, bytes) else content.read_bytes())[-few:]
    else:
        place = file.tell()
        file.seek(-min(few, file.seek(0, io.SEEK_END)), io.SEEK_END)
        last = file.read()
        file.seek(place)
    if len(last) < few or last.strip(b"\0"):
        return 0
    whole = content if isinstance(content, bytes) else content.read_bytes()
    whole = _up_to_pixels(whole, image.format)
    for places, counts in ((273, 279), (324, 325)):  # of the strips and tiles of a TIFF
        if places in tags and counts in tags:
            whole = whole[: max(map(sum, zip(tags[places], tags[counts], strict=False)), default=0)]
    held = whole.rstrip(b"\0")
    zeros = len(whole) - len(held)
    if image.format in ("JPEG", "MPO"):  # whose mark may stand before what a phone appends
        ended = end in held[_first_scan(held) :]
    elif image.format == "PNG":
        ended = end in held
    else:
        ended = bool(end) and held.endswith(end)
    return 0 if zeros < few or ended else zeros


def _first_scan(content: bytes) -> int:
    """Return where the first scan of a JPEG begins, behind segments that may hold a picture of their own."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF and content[place + 1] != 0xDA:
        filled = content[place + 1] == 0xFF  # a segment may begin with several
        place += 1 if filled else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return place


def _up_to_pixels(content: bytes, kind: str | None) -> bytes:
    """Return a WebP or AVIF without what stands behind its pixels: metadata, padding; others as they are."""
    if kind == "WEBP":
        place, last = 12, len(content)
        while place + 8 <= len(content):
            size = int.from_bytes(content[place + 4 : place + 8], "little")
            if content[place : place + 4] in (b"VP8 ", b"VP8L", b"ANMF"):
                last = place + 8 + size
            place += 8 + size + size % 2
        return content[:last]
    if kind == "AVIF":
        place = 0
        while (size := int.from_bytes(content[place : place + 4], "big")) >= 8:
            place += size
        return content[:place] if place else content
    return content


@cache
def _known() -> tuple[str, ...]:
    """Return the formats that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def file_source(
    name: str,
    files: Mapping[str, Path | bytes],
    *,
    labels: Sequence[str | None] | None = None,
    splits: Sequence[str] = (),
    factors: Mapping[str, NDArray[Any]] | None = None,
    notices: tuple[str, ...] = (),
) -> Source:
    """Make a source of image files by id, or of their contents; a label is a name, or None."""
    contents = list(files.values())
    numbers, label_names = number_labels(labels or [None] * len(files))
    return Source(
        name=readable(name),
        ids=tuple(files),
        reader=_ImageFiles(contents),
        labels=numbers,
        label_names=label_names,
        splits=tuple(splits),
        factors=dict(factors or {}),
        sizes=[len(c) if isinstance(c, bytes) else c.stat().st_size for c in contents],
        notices=notices,
    )


def read_images(
    source: Source, preprocessing: Callable[[RawImage], NDArray[np.uint8]], indices: Iterable[int]
) -> NDArray[np.uint8]:
    """Return the preprocessed images of some indices, uint8 (N, S, S, 3).

    Raises:
        DataError: an image cannot be read or preprocessed; the message names it.
    """
    images = []
    for index in map(int, indices):
        try:
            images.append(preprocessing(source.load(index)))
        except (DataError, OSError, ValueError) as error:
            name, message = source.ids[index], str(error)
            named = message if message.startswith(printable(name)) else f"{name}: {message}"
            raise DataError(named) from error
    return np.stack(images)


def spread_over(
    source: Source, rows: Sequence[int] | None = None, most: int = LOOKED_AT
) -> list[int]:
    """Return the indices of some images to be looked at before all are read, spread over a source.

    Of a reader of the user's own there are none: what reading twice does is not known.

    Args:
        source: of the images.
        rows: the images that are read; all if not given.
        most: so many of them.
    """
    inner = source.reader.reader if isinstance(source.reader, _Selection) else source.reader
    if (getattr(inner, "__module__", None) or "").partition(".")[0] != __name__.partition(".")[0]:
        return []
    among = np.arange(len(source)) if rows is None else np.asarray(rows, np.intp)
    count = min(len(among), most)
    return [int(index) for index in among[np.arange(count) * len(among) // max(count, 1)]]


def image_hashes(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return 64 bits of a hash of each image (N, S, S, 3), preprocessed as the model sees it, (N,).

    A copy of the image has the same hash in a folder, a table, a tar or an array, whatever it is called.
    """
    digests = [hashlib.blake2b(i.tobytes(), digest_size=8).digest() for i in images]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def hashes_of(
    source: Source, preprocessing: Preprocessing, indices: Iterable[int], workers: int
) -> NDArray[np.uint64]:
    """Return `image_hashes` of some images, in order, but for those that cannot be read."""

    def hash_of(index: int) -> NDArray[np.uint64]:
        try:
            return image_hashes(read_images(source, preprocessing, [index]))
        except DataError:  # which is said where it is to be used
            return np.zeros(0, np.uint64)

    hashes = map_ahead(hash_of, indices, workers=workers, ahead=4 * workers)
    return np.concatenate([np.zeros(0, np.uint64), *hashes])


def about_enlarged(
    source: Source, size: int, crop: int | None = None, rows: Sequence[int] | None = None
) -> str:
    """Say how many images are enlarged to twice their side and more, and what sides they have; else nothing.

    Of many images 100 are looked at, by the beginnings of their files.

    Args:
        source: of the images.
        size: the side of what a model takes, pixels.
        crop: the central square that is taken first, pixels.
        rows: the images that are read; all if not given.
    """
    sides: list[int] = []
    of_files, some = _is_of_files(source.reader), spread_over(source, rows)
    for index in some:
        with suppress(Exception):  # reading it will say what it is
            image = _checked(source.reader(index))
            whole = image.size if isinstance(image, Image.Image) else image.shape[:2]
            sides.append(min(whole))
            if of_files and isinstance(image, Image.Image):
                image.close()
    small = sorted(side for side in (min(side, crop or side) for side in sides) if 2 * side <= size)
    if not small:
        return ""
    looked_at = " looked at" if len(some) < len(source if rows is None else rows) else ""
    side = f"{small[0]}" if small[0] == small[-1] else f"{small[0]} to {small[-1]}"
    return (
        f"{source.name}: {len(small)} of {len(some)} images{looked_at} are enlarged to {size} pixels a side, "
        f"from {side}"
    )


def image_extensions() -> set[str]:
    """Return the extensions of image files: a store may lie among them."""
    formats = {*_known(), "MPO"}
    return {e for e, name in Image.registered_extensions().items() if name in formats}


def allow_pixels() -> None:
    """Let Pillow read images of as many pixels as the environment variable VDVAE_REPR_MAX_PIXELS says.

    Raises:
        DataError: it is no whole number.
    """
    limit = os.environ.get("VDVAE_REPR_MAX_PIXELS")
    if not limit:
        return
    if not limit.isdecimal() or int(limit) < 1:
        raise DataError(f"VDVAE_REPR_MAX_PIXELS: expected a number of pixels, found {limit!r}")
    Image.MAX_IMAGE_PIXELS = int(limit)


def _decode(image: Image.Image) -> bool:
    """Decode now, and close the file whether that works or not; return whether it holds several pictures."""
    limit = Image.MAX_IMAGE_PIXELS
    several = image.format in ANIMATED and bool(getattr(image, "is_animated", False))
    several = several or _is_followed(image)
    file = getattr(image, "fp", None)
    try:
        if limit is not None and image.width * image.height > limit:
            raise DataError(_too_large())
        tags = getattr(image, "tag_v2", {})
        signed = 2 in np.ravel(tags.get(339, 1))  # SampleFormat
        # Of BitsPerSample Pillow reads 8 as unsigned, and makes 32 of 16.
        if signed and max(np.ravel(tags.get(258, 1))) < 32:
            raise DataError(
                "expected pixels from 0, found a TIFF of signed numbers; save it as unsigned"
            )
        if _is_misread(image):
            raise DataError(
                "expected channels side by side, found a TIFF of channels one after the other "
                "(PlanarConfiguration 2), which is not read of 16 bits or CIELAB; "
                "save it with PlanarConfiguration 1"
            )
        codecs = {tile[0] for tile in getattr(image, "tile", ())}
        if (image.mode, codecs, getattr(tags, "prefix", b"")) == ("F", {"libtiff"}, b"MM"):
            raise DataError(  # libtiff has turned the bytes already, and Pillow turns them again
                "expected compressed floating point with the lowest byte first, found a TIFF with the "
                "highest first, which Pillow misreads; save it with the lowest first, or uncompressed"
            )
        decode_pixels(image)
        if several:
            with suppress(Exception):  # a tag of a wrong type may make Pillow raise anything
                image.getexif()  # is kept, as a TIFF's is read from the file
        if file is not None:  # which Pillow leaves open where there may be other pictures
            file.close()
    except BaseException:
        image.close()
        raise
    return several


def _is_followed(image: Image.Image) -> bool:
    """Whether another picture stands behind the pixels of a Netpbm file (PBM, PGM, PPM), not decoded yet."""
    tiles, file = getattr(image, "tile", None), getattr(image, "fp", None)
    if image.format != "PPM" or not tiles or file is None or tiles[0][0] == "ppm_plain":
        return False
    codec, _, offset, about = tiles[0]
    deep = about[1] > 255 if codec == "ppm" else image.mode.startswith("I")
    size = 4 if image.mode == "F" else 1 + deep
    row = -(-image.width // 8) if image.mode == "1" else image.width * len(image.getbands()) * size
    place = file.tell()
    file.seek(offset + row * image.height)
    behind = file.read(64).lstrip()
    file.seek(place)
    return bool(re.match(rb"P[1-7fF]\s", behind))


def _is_misread(image: Image.Image) -> bool:
    """Whether a TIFF, not decoded yet, has channels one after the other that Pillow takes for others.

    These are channels of 16 bits that it reads itself, as bytes, and those of CIELAB, as from 0.
    """
    tags = getattr(image, "tag_v2", {})
    if tags.get(284) != 2 or len(image.getbands()) < 2:  # PlanarConfiguration
        return False
    codecs = {tile[0] for tile in getattr(image, "tile", ())}
    return image.mode == "LAB" or (max(np.ravel(tags.get(258, 8))) > 8 and codecs != {"libtiff"})


def _too_large() -> str:
    return (
        f"more than {Image.MAX_IMAGE_PIXELS} pixels; refused, because a small file can unpack to any size: "
        "set VDVAE_REPR_MAX_PIXELS to the number of pixels to allow"
    )
