"""What names tell: the natural order, labels, splits, and which files are left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
MISSING = ("", "nan", "na", "n/a", "<na>", "null")  # what tables write where there is no value
SYSTEM_FOLDERS = (
    "@eaDir",
    "__MACOSX",
    "$RECYCLE.BIN",
    "#recycle",
    "@Recycle",
    "@tmp",
    "lost+found",
)


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key under which `2.pgm` comes before `10.pgm`; `01` and `1` are kept apart."""
    parts = [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]
    return parts, text


def number_labels(names: Sequence[str | None]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number label names from 0 in natural order; -1 where there is none."""
    distinct = sorted({name for name in names if name is not None}, key=natural_key)
    numbers = {name: index for index, name in enumerate(distinct)}
    labels = [-1 if name is None else numbers[name] for name in names]
    return np.array(labels, dtype=np.int64), tuple(distinct)


def is_missing(value: str) -> bool:
    """Whether a table's value stands for none: empty, nan, NA and the like, or Python's `None`."""
    return value.casefold() in MISSING or value == "None"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a system's own, as `@eaDir` and `__MACOSX`."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def readable(name: str) -> str:
    """Return a file's name as UTF-8 text; bytes that are not UTF-8 are percent-encoded, as `caf%E9.png`."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return (
            "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in name)
            .encode("utf-8", "replace")
            .decode()
        )
    return name


def split_of(word: str) -> str | None:
    """Return the split that a word means, as `val` for `Validation`; None where it means none."""
    return SPLIT_WORDS.get(word.strip().casefold())


def like_split(word: str) -> str | None:
    """Return the split that one part of a word means, as `train` for `train2017` or `TrainSet`, or None.

    >>> [like_split(word) for word in ("train2017", "test_images", "trains", "dog")]
    ['train', 'test', None, None]
    """
    parts = {split_of(part) for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", word)} - {None}
    return parts.pop() if len(parts) == 1 else None


def splits_of(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the splits that words mean, and a line that names the words that mean none.

    A word that means none stays as it is, so that no task trains or tests on its images.
    """
    named = {word: "" if is_missing(word) else split_of(word) or word for word in set(words)}
    counts = Counter(word for word in words if named[word] not in ("", *SPLITS))
    return tuple(named[word] for word in words), unknown_splits(counts)


def unknown_splits(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return a line about words that are no split, with numbers of images; none where there are none."""
    if not counts:
        return ()
    listed = ", ".join(
        f"{word!r} ({counts[word]} images)" for word in sorted(counts, key=natural_key)
    )
    return (
        f"no split is called {listed}: no task trains or tests on them; rename them to {', '.join(SPLITS)}",
    )


class PathNames(NamedTuple):
    """What the paths of images tell of them; `notices` are lines for people."""

    labels: list[str | None]
    splits: tuple[str, ...]
    notices: tuple[str, ...]


def names_from_paths(ids: Sequence[str]) -> PathNames:
    """Read labels and splits off paths.

    A label is the class folder (`train/cat/1.png`: cat); where there is none, the name before its last
    underscore (`Ann_Lee_1.png`: Ann_Lee). One level of folders may be splits: the top one, the one below
    wrapper folders (`my/train/cat/1.png`), or the one below the classes (`cat/train/1.png`).
    """
    paths = [PurePosixPath(image_id) for image_id in ids]
    folders = [path.parts[:-1] for path in paths]
    level, notices = _split_level(folders)
    labels: list[str | None] = []
    splits: list[str] = []
    unknown: Counter[str] = Counter()
    wrapped = level and len({parts[:level] for parts in folders if len(parts) > level}) == 1
    for path, parts in zip(paths, folders, strict=True):
        split, own = "", parts
        if level is not None and len(parts) > level:
            word = parts[level]
            split = split_of(word) or word
            unknown[word] += split not in SPLITS
            own = parts[level + 1 :] if wrapped else parts[:level] + parts[level + 1 :]
        name, underscore, _ = path.stem.rpartition("_")
        labels.append("/".join(own) if own else (name if underscore else None))
        splits.append(split)
    if level is not None and (outside := splits.count("")):
        notices += (f"{outside} images outside the folders of the splits: they belong to no split",)
    return PathNames(labels, tuple(splits), notices + unknown_splits(+unknown))


def _split_level(folders: Sequence[tuple[str, ...]]) -> tuple[int | None, tuple[str, ...]]:
    """Return the level of folders that are splits, None if none are, and a line where that is in doubt.

    At a level that is the same for all images, other folders may stand beside at least two splits, and all
    may be called like splits (`train2017`, `val2017`); below classes, every folder must be a split.
    """
    for level in range(max(map(len, folders), default=0)):
        below = [parts for parts in folders if len(parts) > level]
        names = {parts[level] for parts in below}
        known = {name for name in names if split_of(name)}
        one_parent = len({parts[:level] for parts in below}) == 1
        if known == names and (one_parent or len(below) == len(folders)):
            return level, ()
        alike = {like_split(name) for name in names}
        if one_parent and (
            len({split_of(name) for name in known}) > 1 or (None not in alike and len(alike) > 1)
        ):
            return level, ()
        if one_parent and known:
            other = min(names - known, key=natural_key)
            return None, (
                f"folder {min(known)} is read as a class, because {other} stands beside it; "
                "splits are folders train, val and test",
            )
    return None, ()


def left_out(files: Mapping[str, int], folders: Sequence[str] = ()) -> tuple[str, ...]:
    """Return a line that counts files that are left out, by reason, and names folders; maybe none.

    >>> left_out({".heic": 1, "no extension": 1})
    ('2 files left out: .heic (1), no extension (1)',)
    """
    parts = []
    if files:
        total = sum(files.values())
        listed = ", ".join(f"{why} ({files[why]})" for why in sorted(files))
        parts.append(f"{total} {'file' if total == 1 else 'files'} left out: {listed}")
    if folders:
        names = sorted(set(folders))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        parts.append(
            f"{len(folders)} {'folder' if len(folders) == 1 else 'folders'} left out: "
            f"{', '.join(names[:5])}{more}"
        )
    return ("; ".join(parts),) if parts else ()


def extension(name: str) -> str:
    """Return a file's extension in lower case, or `no extension`."""
    return PurePosixPath(name).suffix.lower() or "no extension"
