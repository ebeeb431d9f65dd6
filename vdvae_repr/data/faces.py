"""Faces: alignment by five landmarks that MTCNN finds, and lists of pairs, LFW's or a table of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vdvae_repr.data.names import class_names, is_missing, number_labels, split_of
from vdvae_repr.data.table import Table, read_table, read_text
from vdvae_repr.errors import SKIP_ADVICE, DataError, counted

# Eyes, nose, corners of the mouth in an aligned image of side 1: where they lie in the central 128 pixels of
# deep-funneled LFW (median of 60 images, made symmetric), which is how faces64 has seen faces.
LANDMARKS = np.array([(0.34, 0.405), (0.66, 0.405), (0.50, 0.60), (0.36, 0.757), (0.64, 0.757)])
TRUTH = {
    "1": True,
    "1.0": True,
    "true": True,
    "0": False,
    "0.0": False,
    "false": False,
}  # column `same`
SMALLEST = 20  # pixels, the detector's smallest face
SIMILAR = 0.5  # of the largest face's area: from here on faces may be who is meant
DETECTED_AT = 1024  # pixels; larger images are searched at this size


@dataclass(frozen=True)
class AlignedFace:
    """What is known of a face that was aligned."""

    faces: int
    """In the picture."""
    beyond: float
    """The share of the result that lies beyond the picture, and is black."""


_noted: ContextVar[list[AlignedFace] | None] = ContextVar("_noted", default=None)


@contextmanager
def noted_faces() -> Iterator[list[AlignedFace]]:
    """Collect what is known of the faces that this thread aligns meanwhile."""
    faces: list[AlignedFace] = []
    token = _noted.set(faces)
    try:
        yield faces
    finally:
        _noted.reset(token)


def align_face(picture: Image.Image, size: int) -> Image.Image:
    """Return a face, (size, size), turned, scaled and moved so that its landmarks fit `LANDMARKS`.

    It is the most central of the faces that are at least half as large as the largest, as far as each lies in
    the picture. The similarity transform of least squares; faces are found by MTCNN (Zhang et al. 2016,
    arXiv:1604.02878) as in facenet-pytorch. What lies beyond the picture is black.

    Raises:
        DataError: no face is found.
    """
    shrunk = picture.copy()
    shrunk.thumbnail((DETECTED_AT, DETECTED_AT))
    boxes = points = None
    if min(shrunk.size) >= SMALLEST:
        boxes, _, points = _detector().detect(shrunk, landmarks=True)
    if boxes is None or points is None:
        raise DataError(f"expected a face, found none; do not align{SKIP_ADVICE}")
    boxes, points = np.asarray(boxes, np.float64), np.asarray(points, np.float64)
    found = points[_meant(boxes, shrunk.size)] * (picture.width / shrunk.width)
    matrix = _similarity(LANDMARKS * size, found)
    # An affine transform takes single pixels, so what is too large is first reduced, antialiased.
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale > 1:
        reduced = [max(1, round(side / scale)) for side in picture.size]
        matrix *= np.array([[reduced[0] / picture.width], [reduced[1] / picture.height]])
        picture = picture.resize((reduced[0], reduced[1]), Image.Resampling.BICUBIC)
    affine = (size, size), Image.Transform.AFFINE, tuple(matrix.ravel())
    if (noted := _noted.get()) is not None:
        inside = np.asarray(Image.new("L", picture.size, 1).transform(*affine))
        noted.append(AlignedFace(len(boxes), 1 - float(inside.mean())))
    return picture.transform(*affine, Image.Resampling.BICUBIC)


def _meant(boxes: NDArray[np.float64], size: tuple[int, int]) -> int:
    """Return which face a picture of `size` is of, by boxes (N, 4): left, top, right, bottom."""
    corners = boxes.reshape(-1, 2, 2)
    sides = np.diff(np.clip(corners, 0, size), axis=1)[:, 0]
    areas = sides.prod(axis=1)
    away = np.hypot(*(corners.mean(axis=1) - np.array(size) / 2).T)
    return int(np.argmin(np.where(areas >= SIMILAR * areas.max(), away, np.inf)))


def _similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (2, 3): rotation, scale and shift that bring points (N, 2) nearest to others."""
    x, y = source.T
    zeros, ones = np.zeros_like(x), np.ones_like(x)
    rows = np.concatenate(
        [np.stack([x, -y, ones, zeros], axis=1), np.stack([y, x, zeros, ones], axis=1)]
    )
    a, b, dx, dy = np.linalg.lstsq(rows, target.T.ravel(), rcond=None)[0]
    return np.array([[a, -b, dx], [b, a, dy]])


@cache
def _detector() -> Any:
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, min_face_size=SMALLEST, device="cpu")


@dataclass(frozen=True)
class Pairs:
    """Pairs of images by row number, (P,) each: whether they are of one person, and the fold they are in."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    same: NDArray[np.bool_]
    fold: NDArray[np.intp]


def read_pair_lists(
    pairs: str | Path, pairs_train: str | Path | None, ids: Sequence[str]
) -> tuple[Pairs, Pairs | None, list[str]]:
    """Read the pairs to test, those to find the threshold on, None where there are none, and what to say.

    A list is LFW's (`read_pairs`), or a table of one's own, .csv or .tsv: two columns of ids, a column `same`
    (1 or 0), and maybe `fold`, or `split`, which says of each pair whether it is `train` or `test`. What is
    said is which pairs are left out, where folds count for nothing, as there are training pairs, and which
    lines are one row.

    Raises:
        DataError: a line that is malformed or pairs an image with itself (it is numbered), images that are
            not among the ids, no pairs, or pairs that contradict one another.
    """
    found, splits, notes = _read_list(Path(pairs), ids)
    test = found if splits is None else _of_split(Path(pairs), found, splits, "test")
    lists = [(Path(pairs), found)]
    if pairs_train is not None:
        if splits is not None and (left := int((splits == "train").sum())):
            notes.append(f"{left} train pairs of {pairs} left out, as {pairs_train} has others")
        pairs, (found, splits, more) = pairs_train, _read_list(Path(pairs_train), ids)
        notes += more
        lists.append((Path(pairs), found))
        if splits is not None and (left := int((splits == "test").sum())):
            notes.append(f"{left} test pairs of {pairs} left out")
        choose = found if splits is None else _of_split(Path(pairs), found, splits, "train")
    elif splits is not None and (splits == "train").any():
        choose = _of_split(Path(pairs), found, splits, "train")
    else:
        return test, None, notes
    notes += [
        f"the folds of {path} count for nothing, as the threshold is found on training pairs"
        for path, read in lists
        if read.fold.any()
    ]
    return test, choose, notes


def is_table(path: str | Path) -> bool:
    """Whether a list of pairs is a table of one's own, by its extension, and not LFW's."""
    return Path(path).suffix.lower() in (".csv", ".tsv")


def _read_list(path: Path, ids: Sequence[str]) -> tuple[Pairs, NDArray[np.str_] | None, list[str]]:
    """Return all pairs of a list, the split of each, None without such a column, and lines about the list."""
    if not is_table(path):
        return read_pairs(path, ids), None, []
    table = read_table(path, "same")
    same, fold, split = table["same"], table.column("fold"), table.column("split")
    first, second = _ids_of_pairs(table)
    rows = {image_id: row for row, image_id in enumerate(ids)}
    missing: dict[str, str] = {}  # each image that no row is of, and where it is named first
    for line, a, b, truth in zip(table.lines, first, second, same, strict=True):
        if a == b:
            raise DataError(f"{path} line {line}: expected two images, found {a!r} twice")
        if truth.casefold() not in TRUTH:
            raise DataError(
                f"{path} line {line}: expected 1 or 0 in column 'same', found {truth!r}"
            )
        for image_id in (a, b):
            if image_id not in rows:
                missing.setdefault(image_id, f"{image_id!r} (line {line})")
    if missing:
        raise DataError(
            f"{path}: {counted(len(missing), 'image', 'is', 'are')} not in the store, as "
            f"{', '.join([*missing.values()][:3])}; ids there are as {ids[0]!r}"
        )
    for line, value in zip(table.lines, fold or (), strict=fold is not None):
        if is_missing(value):
            raise DataError(f"{path} line {line}: expected a fold, found {value or 'none'!r}")
    truths = [TRUTH[truth.casefold()] for truth in same]
    if set(truths) != {True, False}:
        raise DataError(
            f"{path}: expected pairs of one person and of two, found {len(truths)} of one kind"
        )
    pairs = Pairs(
        np.array([rows[a] for a in first]),
        np.array([rows[b] for b in second]),
        np.array(truths),
        np.zeros(len(same), np.intp)
        if fold is None
        else number_labels(class_names(fold).labels)[0],
    )
    _refuse_contradiction(path, pairs, table.lines, ids)
    notes = [f"{path}: {line}" for line in table.notices]
    return pairs, None if split is None else _splits_of_pairs(table, split), notes


def _refuse_contradiction(
    path: Path, pairs: Pairs, lines: Sequence[int], ids: Sequence[str]
) -> None:
    """Refuse a pair of two people whom other pairs make out to be one."""
    # An image of the same person; the last of such a chain stands for all.
    person: dict[int, int] = {}

    def stands_for(row: int) -> int:
        while (above := person.setdefault(row, row)) != row:
            person[row] = person.setdefault(above, above)
            row = above
        return row

    rows = list(
        zip(pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist(), lines, strict=True)
    )
    for a, b, same, _ in rows:
        if same:
            person[stands_for(a)] = stands_for(b)
    for a, b, same, line in rows:
        if not same and stands_for(a) == stands_for(b):
            raise DataError(
                f"{path} line {line}: says that {ids[a]!r} and {ids[b]!r} are two people, but other pairs "
                "make them one; mend column 'same'"
            )


def about_pairs(pairs: Pairs, labels: NDArray[np.int64], ids: Sequence[str]) -> list[str]:
    """Count in a line the pairs that are there again, and those of which labels (N,) say otherwise."""
    lines = []
    ends = np.sort([pairs.first, pairs.second], axis=0)
    if again := ends.shape[1] - np.unique(ends, axis=1).shape[1]:
        pairs_are = counted(
            again, "pair", "is there again, and counts", "are there again, and count"
        )
        lines.append(f"{pairs_are} again")
    first, second = labels[pairs.first], labels[pairs.second]
    wrong = np.flatnonzero((first >= 0) & (second >= 0) & ((first == second) != pairs.same))
    if len(wrong):
        a, b = ids[pairs.first[wrong[0]]], ids[pairs.second[wrong[0]]]
        people = "one person" if pairs.same[wrong[0]] else "two people"
        lines.append(
            f"the labels of the store contradict {len(wrong)} of {len(pairs.same)} pairs, as {a} and {b}, "
            f"here of {people}: the list of pairs counts"
        )
    return lines


def _ids_of_pairs(table: Table) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the two columns that hold ids: those that are called neither same, nor fold, nor split."""
    places = [
        place
        for place, name in enumerate(table.columns)
        if name and name.casefold() not in ("same", "fold", "split")
    ]
    if len(places) != 2:
        named = ", ".join(table.columns[place] for place in places) or "none"
        raise DataError(
            f"{table.path}: expected two columns of ids beside same, fold and split, found {named}"
        )
    first, second = (tuple(row[place] for row in table.rows) for place in places)
    return first, second


def _splits_of_pairs(table: Table, words: Sequence[str]) -> NDArray[np.str_]:
    for line, word in zip(table.lines, words, strict=True):
        if split_of(word) not in ("train", "test"):
            raise DataError(
                f"{table.path} line {line}: expected split train or test, found {word!r}"
            )
    return np.array([split_of(word) for word in words], np.str_)


def _of_split(path: Path, pairs: Pairs, splits: NDArray[np.str_], split: str) -> Pairs:
    """Return the pairs of one split; their folds are numbered anew."""
    own = splits == split
    if len(np.unique(pairs.same[own])) < 2:
        raise DataError(
            f"{path}: expected pairs of one person and of two in split {split}, found {own.sum()} pairs of "
            f"{'one kind' if own.any() else 'either'}"
        )
    fold = np.unique(pairs.fold[own], return_inverse=True)[1]
    return Pairs(pairs.first[own], pairs.second[own], pairs.same[own], fold)


def read_pairs(path: str | Path, ids: Sequence[str]) -> Pairs:
    """Read a pair list in LFW's format; `ids` say which row an image is, by names as `Name_0001.jpg`.

    The first line is a count (`500`), or folds and a count (`10 300`); for each fold follow so many lines
    `name i j`, then so many `name1 i name2 j`, tabs between. Source: LFW, README of `pairs.txt`.

    Raises:
        DataError: a line that is malformed (it is numbered), too few or too many lines, images that are
            not among the ids, one name of two images, or a pair of an image with itself.
    """
    path = Path(path)
    lines = read_text(path).splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    header = lines[0].split() if lines else []
    if len(header) not in (1, 2) or not all(item.isdecimal() for item in header):
        raise DataError(
            f"{path} line 1: expected a count, or folds and a count, found {lines[0] if lines else ''!r}"
        )
    folds, count = (1, int(header[0])) if len(header) == 1 else (int(header[0]), int(header[1]))
    if folds < 1 or count < 1:
        raise DataError(
            f"{path} line 1: expected at least one pair of each kind, found {lines[0]!r}"
        )
    if len(lines) - 1 != 2 * folds * count:
        raise DataError(
            f"{path}: expected {2 * folds * count} pairs ({folds} folds of {count} + {count}), "
            f"found {len(lines) - 1}"
        )
    rows: dict[str, list[int]] = {}
    for row, image_id in enumerate(ids):
        rows.setdefault(PurePosixPath(image_id).stem, []).append(row)
    missing: dict[str, str] = {}  # each image that no row is of, and where it is named first

    def row_of(name: str, number: str, line: int) -> int:
        if not number.isdecimal():
            raise DataError(f"{path} line {line}: expected a number of an image, found {number!r}")
        stem = f"{name}_{int(number):04d}"
        found = rows.get(stem, [])
        if len(found) > 1:
            raise DataError(
                f"{path} line {line}: {stem} is the name of {len(found)} images, as {ids[found[0]]}"
            )
        if not found:
            missing.setdefault(stem, f"{stem} (line {line})")
        return found[0] if found else -1

    first, second, same = [], [], []
    for line, text in enumerate(lines[1:], start=2):
        matched = (line - 2) % (2 * count) < count
        items = text.split("\t")
        if len(items) != (3 if matched else 4):
            expected = "name, number, number" if matched else "name, number, name, number"
            raise DataError(f"{path} line {line}: expected {expected} between tabs, found {text!r}")
        name, other = items[0], items[0] if matched else items[2]
        if not matched and name == other:
            raise DataError(f"{path} line {line}: expected two people, found {name} twice")
        if (
            matched
            and items[1].isdecimal()
            and items[2].isdecimal()
            and int(items[1]) == int(items[2])
        ):
            raise DataError(
                f"{path} line {line}: expected two images of {name}, found number {items[1]} twice"
            )
        first.append(row_of(name, items[1], line))
        second.append(row_of(other, items[-1], line))
        same.append(matched)
    if missing:
        raise DataError(
            f"{path}: {counted(len(missing), 'image', 'is', 'are')} not in the store, as "
            f"{', '.join([*missing.values()][:3])}; extract the folder that the list is of"
        )
    fold = np.arange(len(same)) // (2 * count)
    return Pairs(np.array(first), np.array(second), np.array(same), fold)
