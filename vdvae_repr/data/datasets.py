"""Data sets by name: each is read from the files its publishers hand out, under a data root.

The root is `--data-root`, else the environment variable VDVAE_REPR_DATA_ROOT, else `./data`. `DATASETS`
is the table: what is looked for there, and how to get it. Splits are those of the publishers; where
openai/vdvae (data.py) draws a validation set from the training images, `val` is that one.

Down-sampled ImageNet exists twice. The *old* images (van den Oord et al. 2016, arXiv:1601.06759), which
published bits per dimension are measured on, have been withdrawn; the *new* ones (Chrabaszcz et al.
2017, arXiv:1707.08819) were down-sampled anew. **Likelihoods on the two are not comparable**;
a source's name says which it is: `imagenet32 (old)`, `imagenet32 (new)`.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.data.names import (
    SPLITS,
    extension,
    is_hidden,
    look_alikes,
    may_stand_for_none,
    natural_key,
    readable,
    unlabelled,
)
from vdvae_repr.data.readers.arrays import (
    ArrayRows,
    about_flat,
    looked_at,
    map_npy,
    read_member,
    rows_of,
)
from vdvae_repr.data.readers.folder import find_images, open_folder
from vdvae_repr.data.source import Source, file_source, image_extensions
from vdvae_repr.data.table import read_text
from vdvae_repr.data.toy import toy_faces
from vdvae_repr.errors import DataError, counted, first_line

logger = logging.getLogger(__name__)

# Which training images are `val`: these places of RandomState(seed).permutation; openai/vdvae data.py.
PUBLISHED_VAL = {
    "cifar10": (11172018, slice(5_000)),  # scikit-learn's train_test_split takes the first
    "imagenet": (42, slice(-5_000, None)),
    "ffhq256": (5, slice(-7_000, None)),  # reported there as test too
}

# How many images are published, by the source's name without what says which version it is.
PUBLISHED_IMAGES = {
    "cifar10": 60_000,
    "cifar100": 60_000,
    "imagenet32 (old)": 1_331_148,
    "imagenet64 (old)": 1_331_148,
    "imagenet32 (new)": 1_331_167,
    "imagenet64 (new)": 1_331_167,
    "ffhq256": 70_000,
    "ffhq1024": 70_000,
    "celeba": 202_599,
    "lfw": 13_233,
    "omniglot": 32_460,
    "omniglot-runs": 800,
    "tiny-imagenet": 110_000,  # those with labels
}

MEMBER_BYTES = 2**28  # of a file in CIFAR's archive
DRAWING_BYTES = 2**24  # of a drawing in Omniglot's

_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A row of the table."""

    open: Callable[[Path], Source]
    """Reads it under a root; FileNotFoundError names what is missing."""
    files: str
    """What is expected under the root."""
    remedy: str
    """How to get it; `{root}` is the root."""
    download: Callable[[Path], object] | None = None
    """Fetches it into a root."""


class Rows(NamedTuple):
    """Images of one file, in its order; their ids are `stem/row`."""

    stem: str
    images: NDArray[np.uint8]  # (N, H, W, 3)
    labels: NDArray[np.int64]


BUILT_IN = ("digits", "toy-faces")
PUBLISHERS_OWN = re.compile(  # notices that are always true of the published files
    r"\d+ files? left out: \.txt \(\d+\)|folders called like splits .*: 'Val_Ackerman'"
)
TOY_FACES = r"toy-faces(?::(\d+)x(\d+))?"


def is_name(data: str) -> bool:
    """Whether `data` names a data set, whatever lies in the working folder; else it is a path."""
    return data in DATASETS or data == "digits" or re.fullmatch(TOY_FACES, data) is not None


def open_built_in(name: str) -> Source | None:
    """Open a data set that needs no files: `digits`, `toy-faces` or `toy-faces:20x10`; None if it is none."""
    if name == "digits":
        return _digits()
    if match := re.fullmatch(TOY_FACES, name):
        people, images = (int(group) for group in match.groups()) if match[1] else (20, 10)
        return _toy_faces(people, images)
    return None


def _toy_faces(people: int, images: int) -> Source:
    toy = toy_faces(people, images)
    factors = {  # categories as words, so that their numbers are not taken for amounts
        name: np.array([f"kind {k}" for k in values]) if values.dtype.kind == "i" else values
        for name, values in toy.factors.items()
    }
    return Source(
        name=f"toy-faces:{people}x{images}",
        ids=toy.ids,
        reader=ArrayRows([toy.images]),
        labels=toy.labels,
        label_names=toy.label_names,
        factors=factors,
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
        reader=ArrayRows([images]),
        labels=labels,
        label_names=tuple(str(i) for i in range(10)),
        splits=tuple(splits),
    )


def open_dataset(name: str, root: str | Path | None = None, *, download: bool = False) -> Source:
    """Open a data set of the table.

    Args:
        name: a key of `DATASETS`.
        root: where its files are; None for VDVAE_REPR_DATA_ROOT, else `./data`.
        download: fetch it if it is missing, where the table knows how.

    Raises:
        DataError: it is missing, cannot be read, or cannot be downloaded.

    Returns:
        the source, whose notices say where other than the published number of images is there, and which
        classes may stand for none or look alike.
    """
    dataset = DATASETS[name]
    place = Path(root or os.environ.get("VDVAE_REPR_DATA_ROOT") or "data")
    try:
        source = dataset.open(place)
        return replace(
            source, notices=(*source.notices, *_about_classes(source), *_about_parts(source))
        )
    except FileNotFoundError as error:
        if not (download and dataset.download):
            raise DataError(
                f"{name}: expected {dataset.files} in {place}, found no {error.filename}; "
                f"{dataset.remedy.format(root=place)}; "
                f'vr.open_source("{name}", root=FOLDER) names another place'
            ) from error
    except _UNREADABLE as error:
        raise DataError(f"{name} in {place}: cannot be read ({first_line(error)})") from error
    logger.info("%s: downloading into %s", name, place)
    try:
        dataset.download(place)
    except (RuntimeError, *_UNREADABLE) as error:
        raise DataError(
            f"{name}: cannot be downloaded into {place} ({first_line(error)}); "
            f"{dataset.remedy.format(root=place)}"
        ) from error
    return open_dataset(name, place)


def _about_parts(source: Source) -> tuple[str, ...]:
    """Return a line where other than the published number of images is there; maybe none."""
    name = source.name
    published = PUBLISHED_IMAGES.get(name) or PUBLISHED_IMAGES.get(name.partition(" (")[0])
    if published in (None, len(source)):
        return ()
    return (
        f"{len(source):,} images are there, {published:,} are published; figures are of these alone",
    )


def _about_classes(source: Source) -> tuple[str, ...]:
    """Return lines about classes that may stand for none, or look alike, of those that occur; maybe none."""
    names = [source.label_names[number] for number in np.unique(source.labels[source.labels >= 0])]
    outer = {name.rpartition("/")[0] for name in names if "/" in name}  # as Omniglot's alphabets
    return may_stand_for_none(names) + (
        look_alikes(names) or look_alikes(outer, "folders of classes")
    )


def _cifar(root: Path, classes: int) -> Source:
    """Python batches, unpacked or in their .tar.gz: rows of 3,072 bytes, channel by channel.

    CIFAR-10's `val` is the published 5,000 of the 50,000; CIFAR-100 has `train` and `test` alone.
    Source: cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009).
    """
    if classes == 10:
        folder, meta, fine = root / "cifar-10-batches-py", "batches.meta", b""
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    else:
        folder, meta, fine = root / "cifar-100-python", "meta", b"fine_"
        names = ["train", "test"]
    archive = root / f"cifar-{classes}-python.tar.gz"
    if archive.is_file() and not folder.is_dir():
        files = _tar_members(archive)
    else:
        files = {n: (folder / n).read_bytes() for n in (*names, meta) if (folder / n).is_file()}
    if missing := [name for name in names if name not in files]:
        raise _missing(folder / missing[0])

    parts = []
    for name in names:
        rows, labels = _unpickle(files[name], folder / name, b"data", fine + b"labels")
        numbers = _whole_labels(labels, 0, classes - 1, folder / name)
        parts.append(Rows(name, _channels_last(rows, 32, folder / name), numbers))
    label_names = [str(label) for label in range(classes)]
    if meta in files:
        (known,) = _unpickle(files[meta], folder / meta, fine + b"label_names")
        label_names = [label if isinstance(label, str) else label.decode() for label in known]
    *train, test = (len(part.images) for part in parts)
    splits = _hold_back("cifar10", sum(train)) if classes == 10 else ["train"] * sum(train)
    return _row_source(
        f"cifar{classes}",
        parts,
        splits=splits + ["test"] * test,
        label_names=label_names,
        sizes=[zlib.crc32(files[name]) for name in names],
    )


def _download_cifar(root: Path, classes: int) -> None:
    from torchvision.datasets import CIFAR10, CIFAR100  # type: ignore[import-untyped]
    from torchvision.datasets.utils import (  # type: ignore[import-untyped]
        download_and_extract_archive,
    )

    kind = CIFAR10 if classes == 10 else CIFAR100
    download_and_extract_archive(kind.url, str(root), filename=kind.filename, md5=kind.tgz_md5)


def _tar_members(path: Path) -> dict[str, bytes]:
    """Contents by file name, read in one pass."""
    files = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            if member.size > MEMBER_BYTES:
                raise DataError(f"{path}: {member.name}: {member.size} bytes, which are too many")
            if content := archive.extractfile(member):
                files[PurePosixPath(member.name).name] = content.read()
    return files


def _encoded(text: str, encoding: str) -> bytes:
    """Return bytes that Python 3 wrote as text, for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes in {encoding!r:.40}")
    return text.encode("latin1")


_MODULES = ("multiarray", "numeric")
_PICKLED_ARRAY = {
    "_reconstruct": lambda *_: np.empty(0, np.uint8),  # its state, shape included, follows
    "ndarray": None,  # given to _reconstruct, which needs none
    "dtype": lambda kind, *_: np.dtype(kind),  # NumPy 2.4 warns of the old flags behind it
    "_frombuffer": lambda content, dtype, shape, order: (  # protocol 5
        np.frombuffer(content, dtype).reshape(shape, order=order)
    ),
}
_NUMPY = ("numpy", *(f"numpy.{core}.{module}" for core in ("core", "_core") for module in _MODULES))


class _ArraysOnly(pickle.Unpickler):
    """Loads what Python pickled, 2 or 3, and makes nothing but NumPy arrays and plain values."""

    def find_class(self, module: str, name: str) -> Any:
        """Return harmless stand-ins for what pickled arrays name; refuse everything else."""
        if module in _NUMPY and name in _PICKLED_ARRAY:
            return _PICKLED_ARRAY[name]
        if (module, name) == ("_codecs", "encode"):
            return _encoded
        raise pickle.UnpicklingError(f"it calls {module}.{name}")


def _unpickle(content: bytes, path: Path, *keys: bytes) -> list[Any]:
    """Return what a pickled dictionary holds under some keys, which Python 3 may have written as text."""
    try:
        loaded = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(
            f"{path}: expected a pickle of arrays, refused what is there ({first_line(error)})"
        ) from error
    if isinstance(loaded, dict):
        loaded = {k.encode() if isinstance(k, str) else k: v for k, v in loaded.items()}
    if not isinstance(loaded, dict) or not set(keys) <= set(loaded):
        found = list(loaded) if isinstance(loaded, dict) else type(loaded).__name__
        raise DataError(f"{path}: expected a dictionary with {list(keys)}, found {found}")
    return [loaded[key] for key in keys]


def _imagenet(root: Path, size: int) -> Source:
    """The old or the new images, whichever are there."""
    old = [f"imagenet{size}-train.npy", f"train_{size}x{size}"]
    new = _batch_places(size, "train_data_batch_1")
    if not any((root / place).exists() for place in new):
        return _old_imagenet(root, size)
    if any((root / place).exists() for place in old):
        raise DataError(
            f"imagenet{size}: expected the old images or the new, found both in {root}; they are "
            f"different data: name imagenet{size}-old or imagenet{size}-new"
        )
    return _new_imagenet(root, size)


_OLD_PARTS = ("train", "valid")


def _old_imagenet(root: Path, size: int) -> Source:
    """Arrays as the published code makes them, read in place, or the folders of PNGs they came from.

    `test` is the validation set, `val` the published 5,000 of the training images. That choice goes by
    row, and the published script fills rows in the order in which a file system happens to list the
    PNGs: arrays give their own split back; folders, read in natural order, give 5,000 others.
    """
    name, files = f"imagenet{size} (old)", [root / f"imagenet{size}-{p}.npy" for p in _OLD_PARTS]
    if not files[0].is_file() and (root / f"train_{size}x{size}").is_dir():
        said: list[str] = []
        train, test = (_images_in(_first(root, f"{p}_{size}x{size}"), said) for p in _OLD_PARTS)
        splits = _hold_back("imagenet", len(train)) + ["test"] * len(test)
        return file_source(name, train | test, splits=splits, notices=tuple(said))
    parts = [_mapped_rows(file, size) for file in files]
    train_count, test_count = (len(part.images) for part in parts)
    splits = _hold_back("imagenet", train_count) + ["test"] * test_count
    return _row_source(name, parts, splits=splits, sizes=[file.stat().st_size for file in files])


def _new_imagenet(root: Path, size: int) -> Source:
    """Ten .npz batches and `val_data.npz`, which is `test`; `val` is drawn as for the old images.

    Batches stored uncompressed are read in place; compressed ones are held, 3.9 GB for 32x32 and
    16 GB for 64x64. Labels are 0..999, named by the number in the file, 1..1000.
    Source: image-net.org/download-images, "Downsampled image data".
    """
    stems = [*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"]
    parts, checksums = [], []
    for stem in stems:
        path = _first(root, *_batch_places(size, stem))
        rows, labels, checksum = _npz_batch(path)
        numbers = _whole_labels(labels, 1, 1000, path) - 1
        parts.append(Rows(stem, _channels_last(rows, size, path), numbers))
        checksums.append(checksum)
    *train, test = (len(part.images) for part in parts)
    return _row_source(
        f"imagenet{size} (new)",
        parts,
        splits=_hold_back("imagenet", sum(train)) + ["test"] * test,
        label_names=[str(number) for number in range(1, 1001)],
        sizes=checksums,
    )


def _batch_places(size: int, stem: str) -> list[str]:
    """Where a batch may be: in the folder of its zip, or loose; at the top, or in imagenet32/."""
    train = ["train"] if size == 32 else ["train_part1", "train_part2", "train"]
    parts = ["val"] if stem == "val_data" else train
    folders = [*(f"Imagenet{size}_{part}_npz/" for part in parts), ""]
    return [f"{base}{f}{stem}.npz" for base in ("", f"imagenet{size}/") for f in folders]


def _npz_batch(path: Path) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Return `data`, `labels`, and the checksum that the zip holds of `data`."""
    with zipfile.ZipFile(path) as archive:
        members = [archive.getinfo(f"{name}.npy") for name in ("data", "labels")]
        rows, labels = (read_member(path, archive, member) for member in members)
    return rows, labels, members[0].CRC


def _ffhq256(root: Path) -> Source:
    """One array of 70,000 images, read in place; the published split, whose `val` is reported as test.

    Source: openai/vdvae setup_ffhq256.sh (FFHQ, Karras et al. 2019).
    """
    file = root / "ffhq-256.npy"
    part = _mapped_rows(file, 256)
    splits = _hold_back("ffhq256", len(part.images))
    return _row_source("ffhq256", [part], splits=splits, sizes=[file.stat().st_size])


def _ffhq1024(root: Path) -> Source:
    """Folders `ffhq1024/train` and `ffhq1024/valid`, subfolders or not; `valid` is `val`."""
    said: list[str] = []
    train, val = (_images_in(_first(root, f"ffhq1024/{part}"), said) for part in ("train", "valid"))
    splits = ["train"] * len(train) + ["val"] * len(val)
    return file_source("ffhq1024", train | val, splits=splits, notices=tuple(said))


def _celeba(root: Path) -> Source:
    """`celeba/` as torchvision lays it out: aligned images, the official partition, people if known.

    Source: mmlab.ie.cuhk.edu.hk/projects/CelebA.html (Liu et al. 2015).
    """
    folder = root / "celeba"
    partition = _two_columns(folder / "list_eval_partition.txt")
    splits = dict(zip("012", SPLITS, strict=True))
    if wrong := [line for line in partition.items() if line[1] not in splits]:
        raise DataError(
            f"{folder / 'list_eval_partition.txt'}: expected a file and 0, 1 or 2, "
            f"found {' '.join(wrong[0])!r}"
        )
    identities = folder / "identity_CelebA.txt"
    people = _two_columns(identities) if identities.is_file() else {}
    labels = [people.get(file) for file in partition]
    said = unlabelled(list(partition), labels)
    if not identities.is_file():
        said = (f"no {identities.name} is there, so that images have no labels",)
    elif not any(labels):
        others = f"names others, as {next(iter(people))}" if people else "is empty"
        said = (f"no image has a label: {identities.name} {others}",)
    if (folder / "list_attr_celeba.txt").is_file():
        said += ("list_attr_celeba.txt is not read; give its attributes as factors in a CSV",)
    images = folder / "img_align_celeba"
    return file_source(
        "celeba",
        {file: images / file for file in partition},
        labels=labels,
        splits=[splits[number] for number in partition.values()],
        notices=said + _not_listed(images, partition),
    )


_LFW_PLACES = ("lfw_home/lfw_funneled", "lfw-deepfunneled", "lfw_funneled", "lfw")


def _lfw(root: Path) -> Source:
    """Read it as any folder; of several versions the first of `_LFW_PLACES`, named in the source's name.

    Source: vis-www.cs.umass.edu/lfw (Huang et al. 2007).
    """
    folder = _first(root, *_LFW_PLACES)
    source = open_folder(folder)
    people = source.label_names
    told_of_all = may_stand_for_none(people) + look_alikes(people)  # as `_about_classes` does
    said = tuple(
        line
        for line in source.notices
        if not PUBLISHERS_OWN.fullmatch(line) and line not in told_of_all
    )
    if len({person.rpartition("/")[0] for person in people}) == 1:  # as lfw-deepfunneled/, twice
        people = tuple(person.rpartition("/")[2] for person in people)
    return replace(source, name=f"lfw ({folder.name})", label_names=people, notices=said)


def _download_lfw(root: Path) -> None:
    from sklearn.datasets import fetch_lfw_people

    fetch_lfw_people(data_home=str(root), min_faces_per_person=500)  # decodes one person's images


def _omniglot(root: Path) -> Source:
    """Background set `train`, evaluation set `test`, as folders or zips; labels are alphabet/character.

    Source: github.com/brendenlake/omniglot, python/ (Lake et al. 2015).
    """
    files: dict[str, Path | bytes] = {}
    splits: list[str] = []
    said: list[str] = []
    for name, split in (("images_background", "train"), ("images_evaluation", "test")):
        bases = ("omniglot-py/", "omniglot/python/", "omniglot/", "")
        place = _first(root, *(f"{base}{name}{end}" for end in ("", ".zip") for base in bases))
        drawings = _images_in(place, said) if place.is_dir() else _zip_members(place, ".png")
        files |= _below(name, drawings, place)
        splits += [split] * len(drawings)
    labels = ["/".join(PurePosixPath(file).parts[1:-1]) for file in files]
    return file_source("omniglot", files, labels=labels, splits=splits, notices=tuple(said))


def _below(folder: str, files: Mapping[str, Path | bytes], place: Path) -> dict[str, Path | bytes]:
    """Return files by their paths from a folder on; where a path lacks the folder, it is put before.

    A zip may hold the folder, what is in it alone, or further folders around it.

    >>> list(_below("in", {"in/a.png": b"a", "b.png": b"b", "my/in/c.png": b"c"}, Path("in.zip")))
    ['in/a.png', 'in/b.png', 'in/c.png']

    Raises:
        DataError: two files are one by their paths.
    """
    below: dict[str, Path | bytes] = {}
    for file, content in files.items():
        parts = PurePosixPath(file).parts
        inside = parts[parts.index(folder) + 1 :] if folder in parts else parts
        name = "/".join((folder, *inside))
        if name in below:
            raise DataError(f"{place}: expected one file {name}, found two; remove one")
        below[name] = content
    return below


def _omniglot_runs(root: Path) -> Source:
    """The 20 official runs of 20-way one-shot classification: `train` the known drawings, `test` the others.

    A label is a run's known drawing, as `run01/class08`; the factor `run` says which run an image is of.
    Source: github.com/brendenlake/omniglot, python/one-shot-classification (Lake et al. 2015).
    """
    place = _first(
        root, *(f"{base}all_runs.zip" for base in ("omniglot-py/", "omniglot/python/one-shot-classification/",
        "omniglot/", ""))
    )  # fmt: skip
    files, lists = (_in_runs(place, suffix) for suffix in (".png", "class_labels.txt"))
    partner: dict[str, str] = {}
    for name, text in lists.items():
        for number, line in enumerate(text.decode("utf-8-sig").split("\n"), start=1):
            if line.strip():
                test, _, known = line.strip().partition(" ")
                if test not in files or known not in files:
                    raise DataError(
                        f"{place}: {name} line {number}: expected a test and a known drawing, found {line!r}"
                    )
                if test in partner:
                    raise DataError(
                        f"{place}: {name} line {number}: {test!r} occurs twice; keep one of the lines"
                    )
                partner[test] = known
    asked = [name for name in files if PurePosixPath(name).parts[1] == "test"]
    if unlisted := [name for name in asked if name not in partner]:
        raise DataError(
            f"{place}: expected each test's known drawing in class_labels.txt, found none of {unlisted[0]}"
        )
    labels: list[str | None] = []
    for name in files:
        drawing = PurePosixPath(partner.get(name, name))
        labels.append(f"{drawing.parts[0]}/{drawing.stem}")
    splits = ["test" if name in partner else "train" for name in files]
    runs = np.array([int(PurePosixPath(name).parts[0].removeprefix("run")) for name in files])
    source = file_source("omniglot-runs", files, labels=labels, splits=splits)
    return replace(source, factors={"run": runs})


def _in_runs(place: Path, suffix: str) -> dict[str, bytes]:
    """Return the files of a zip that are in runs, by paths from the run on, as `run01/test/item01.png`.

    Raises:
        DataError: there are none, or two of one path.
    """
    found: dict[str, bytes] = {}
    for name, content in _zip_members(place, suffix).items():
        inside = re.fullmatch(r"(?:.*/)?(run\d+/.+)", name)
        if inside and found.setdefault(inside[1], content) is not content:
            raise DataError(f"{place}: expected one file {inside[1]}, found two; remove one")
    if not found:
        raise DataError(f"{place}: expected folders run01, ..., with {suffix}, found none")
    return found


def _download_omniglot(root: Path) -> None:
    from torchvision.datasets import Omniglot

    for background in (True, False):
        Omniglot(str(root), background=background, download=True)


def _zip_members(path: Path, suffix: str) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        names = sorted((n for n in archive.namelist() if n.endswith(suffix)), key=natural_key)
        names = [n for n in names if not any(map(is_hidden, PurePosixPath(n).parts))]
        if large := [n for n in names if archive.getinfo(n).file_size > DRAWING_BYTES]:
            raise DataError(
                f"{path}: {large[0]}: more than {DRAWING_BYTES} bytes, which are too many"
            )
        return {name: archive.read(name) for name in names}


def _tiny_imagenet(root: Path) -> Source:
    """`tiny-imagenet-200/`: training folders by WordNet id, validation images by their annotations.

    Source: cs231n.stanford.edu/tiny-imagenet-200.zip; its test images carry no labels and are left out.
    """
    folder = root / "tiny-imagenet-200"
    said: list[str] = []
    train = _images_in(_first(root, "tiny-imagenet-200/train"), said)
    val = _two_columns(folder / "val" / "val_annotations.txt")
    return file_source(
        "tiny-imagenet",
        train | {f"val/images/{file}": folder / "val" / "images" / file for file in val},
        labels=[*(PurePosixPath(file).parts[1] for file in train), *val.values()],
        splits=["train"] * len(train) + ["val"] * len(val),
        notices=(*said, *_not_listed(folder / "val" / "images", val)),
    )


def _not_listed(folder: Path, listed: Mapping[str, str]) -> tuple[str, ...]:
    """Return a line about images in a folder that a list of files does not name; maybe none."""
    if not folder.is_dir():
        return ()
    kinds = image_extensions()
    files = {readable(path.name) for path in folder.iterdir()} - listed.keys()
    others = [name for name in files if extension(name) in kinds and not is_hidden(name)]
    if not others:
        return ()
    return (
        f"{counted(len(others), 'image')} in {folder.name} left out, which its list lacks, as {min(others)}",
    )


def _first(root: Path, *places: str) -> Path:
    """Return the first place under a root that exists."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise _missing(root / places[0])


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _images_in(folder: Path, said: list[str]) -> dict[str, Path]:
    """Image files in natural order; ids begin with the folder's name. `said` gets what is left out."""
    files, notices = find_images(folder)
    said += [f"{folder.name}: {line}" for line in notices if not PUBLISHERS_OWN.fullmatch(line)]
    return {f"{folder.name}/{file}": path for file, path in files.items()}


def _two_columns(path: Path) -> dict[str, str]:
    """First column to second, of a text file without a header line."""
    if not path.is_file():
        raise _missing(path)
    columns: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        row = line.split()
        if len(row) == 1:
            raise DataError(f"{path} line {number}: expected two columns, found {row[0]!r}")
        if row and row[0] in columns:
            raise DataError(
                f"{path} line {number}: file {row[0]!r} occurs twice; keep one of the lines"
            )
        if row:
            columns[row[0]] = row[1]
    return columns


def _hold_back(rule: str, count: int) -> list[str]:
    """Split training images as published: `val` for the rows that `PUBLISHED_VAL` draws."""
    seed, places = PUBLISHED_VAL[rule]
    splits = np.full(count, "train", dtype=object)
    splits[np.random.RandomState(seed).permutation(count)[places]] = "val"
    if "train" not in splits:
        held = abs(places.start or places.stop)
        raise DataError(f"{rule}: expected more than {held} training images, found {count}")
    return splits.tolist()


def _whole_labels(values: object, first: int, last: int, path: Path) -> NDArray[np.int64]:
    """Return labels (N,), which must be whole numbers from `first` to `last`."""
    labels = np.asarray(values)
    expected = f"{path}: expected labels {first} to {last}"
    if labels.size == 0:
        return labels.astype(np.int64)
    if labels.dtype.kind not in "iuf":
        raise DataError(f"{expected}, found {labels.dtype}")
    if not (labels == np.floor(labels)).all():
        raise DataError(f"{expected}, found {labels[labels != np.floor(labels)][0]}")
    if labels.min() < first or labels.max() > last:
        raise DataError(f"{expected}, found {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)


def _channels_last(rows: object, size: int, path: Path) -> NDArray[np.uint8]:
    """View rows of 3 planes of size x size bytes as images (N, size, size, 3)."""
    shape = f"uint8 (N, {3 * size * size})"
    if not isinstance(rows, np.ndarray):
        raise DataError(f"{path}: expected rows {shape}, found {type(rows).__name__}")
    if rows.dtype != np.uint8 or rows.shape != (len(rows), 3 * size * size):
        raise DataError(f"{path}: expected rows {shape}, found {rows.dtype} {rows.shape}")
    return rows.reshape(-1, 3, size, size).transpose(0, 2, 3, 1)


def _mapped_rows(path: Path, size: int) -> Rows:
    """Memory-map a .npy file of images; no labels."""
    images = map_npy(path)
    if images.dtype != np.uint8 or images.shape != (len(images), size, size, 3):
        raise DataError(
            f"{path}: expected images uint8 (N, {size}, {size}, 3), "
            f"found {images.dtype} {images.shape}"
        )
    return Rows(path.stem, images, np.full(len(images), -1))


def _row_source(
    name: str,
    parts: Sequence[Rows],
    *,
    splits: Sequence[str],
    label_names: Sequence[str] = (),
    sizes: Sequence[int],
) -> Source:
    """Lay the rows of several files end to end, none of them copied."""
    for part in parts:
        if part.labels.shape != (len(part.images),):
            raise DataError(
                f"{name}: expected {len(part.images)} labels in {part.stem}, found {part.labels.shape}"
            )
    images = [rows_of(part.images) for part in parts]
    looked = list(
        looked_at([(p.stem, rows) for p, rows in zip(parts, images, strict=True)], whole=False)
    )
    flat = {place: image.flat[0] for place, image in looked if (image == image.flat[0]).all()}
    return Source(
        name=name,
        ids=tuple(f"{part.stem}/{row}" for part in parts for row in range(len(part.images))),
        reader=ArrayRows(images),
        labels=np.concatenate([part.labels for part in parts]).astype(np.int64),
        label_names=tuple(label_names),
        splits=tuple(splits),
        sizes=sizes,
        notices=about_flat(flat, len(looked), whole=False),
    )


def _imagenet_rows(size: int) -> dict[str, Dataset]:
    name, square, batches = f"imagenet{size}", f"{size}x{size}", f"Imagenet{size}"
    train = "train_npz/" if size == 32 else f"train_part1_npz/, {batches}_train_part2_npz/"
    old = f"{name}-train.npy and {name}-valid.npy, or train_{square}/ and valid_{square}/ with PNGs"
    new = f"{batches}_{train} (train_data_batch_1 to 10.npz) and {batches}_val_npz/ (val_data.npz)"
    withdrawn = "the old images are withdrawn from image-net.org"
    register = "image-net.org/download-images gives registered users the new ones"
    return {
        name: Dataset(
            open=partial(_imagenet, size=size),
            files=f"{old}, or {new}",
            remedy=f"{withdrawn}, {register}",
        ),
        f"{name}-old": Dataset(
            open=partial(_old_imagenet, size=size), files=old, remedy=f"{withdrawn}, {register}"
        ),
        f"{name}-new": Dataset(open=partial(_new_imagenet, size=size), files=new, remedy=register),
    }


_FFHQ256 = Dataset(
    open=_ffhq256,
    files="ffhq-256.npy",
    remedy="openai/vdvae's setup_ffhq256.sh says where it is to be had",
)

DATASETS: dict[str, Dataset] = {
    "cifar10": Dataset(
        open=partial(_cifar, classes=10),
        files="cifar-10-batches-py/ (data_batch_1 to 5, test_batch) or cifar-10-python.tar.gz",
        remedy="torchvision.datasets.CIFAR10('{root}', download=True) gets it",
        download=partial(_download_cifar, classes=10),
    ),
    "cifar100": Dataset(
        open=partial(_cifar, classes=100),
        files="cifar-100-python/ (train, test) or cifar-100-python.tar.gz",
        remedy="torchvision.datasets.CIFAR100('{root}', download=True) gets it",
        download=partial(_download_cifar, classes=100),
    ),
    **_imagenet_rows(32),
    **_imagenet_rows(64),
    "ffhq": _FFHQ256,
    "ffhq256": _FFHQ256,
    "ffhq1024": Dataset(
        open=_ffhq1024,
        files="ffhq1024/train/ and ffhq1024/valid/ with PNGs",
        remedy="github.com/NVlabs/ffhq-dataset has images1024x1024: 00000 to 64999 are train",
    ),
    "celeba": Dataset(
        open=_celeba,
        files="celeba/ (img_align_celeba/, list_eval_partition.txt, maybe identity_CelebA.txt)",
        remedy="torchvision.datasets.CelebA('{root}', download=True) gets it, with gdown installed",
    ),
    "lfw": Dataset(
        open=_lfw,
        files=f"one of {', '.join(f'{place}/' for place in _LFW_PLACES)} with a folder a person",
        remedy="sklearn.datasets.fetch_lfw_people(data_home='{root}') gets it",
        download=_download_lfw,
    ),
    "omniglot": Dataset(
        open=_omniglot,
        files="omniglot-py/ (images_background and images_evaluation, folders or .zip)",
        remedy="torchvision.datasets.Omniglot('{root}', background=True, download=True) gets it, "
        "and background=False the other half",
        download=_download_omniglot,
    ),
    "omniglot-runs": Dataset(
        open=_omniglot_runs,
        files="omniglot-py/all_runs.zip",
        remedy="github.com/brendenlake/omniglot has it in python/one-shot-classification",
    ),
    "tiny-imagenet": Dataset(
        open=_tiny_imagenet,
        files="tiny-imagenet-200/ (train/, val/images/, val/val_annotations.txt)",
        remedy="unpack cs231n.stanford.edu/tiny-imagenet-200.zip there",
    ),
}
