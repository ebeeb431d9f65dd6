"""CSV manifests: a row an image."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vdvae_repr.data.names import (
    LIKE_SPLITS,
    SPLITS,
    class_names,
    factor_values,
    is_missing,
    like_split,
    links,
    names_from_paths,
    split_of,
    splits_of,
    unlabelled,
)
from vdvae_repr.data.source import Source, file_source
from vdvae_repr.data.table import SEPARATORS, Table, read_table
from vdvae_repr.errors import DataError

ROLES = ("file", "label", "split")
SPLIT_COLUMNS = (
    "split", "splits", "partition", "subset", "usage", "phase", "fold", "folds", "kfold",
)  # fmt: skip
# Words of splits run together in a name, as `istest` or `traintest`.
RUN_TOGETHER = re.compile(
    r"(?:is)?(?:train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?|holdout|heldout)+(?:set)?"
)
# For splits, and for nothing else that a column may hold, as languages and ratings.
NO_OTHER_WORDS = LIKE_SPLITS - {"fit", "tr", "te", "eval", "evaluation", "unseen"}
# Names of columns that may hold splits: there those words are for nothing else either.
MAYBE_SPLIT_COLUMNS = ("set", "part", "dataset", "group")
MOST_CODES = 10  # values of a column that may be codes of splits


def open_manifest(path: Path) -> Source:
    """Make a source of a table with `file`, and maybe `label` and `split`; other columns become factors.

    Columns are found by their names in any case. A label that is empty or `nan` is none; `1.0` is the
    class `1`.

    Raises:
        DataError: the table cannot be read, or a row names no file; the message has the line's number.
    """
    table = read_table(path, "file")
    ids, splits = table["file"], table.column("split")
    notices = [*table.notices, *_about_columns(table.columns)]
    called = _column_of_splits(table) if splits is None else None
    if called is not None:
        splits = table.column(called.casefold())
        notices.append(f"splits are read from column {called!r}")
    if splits is None:
        notices += _about_splits(table) or _about_folders(ids)
    files: dict[str, Path] = {}
    found: set[str] = set()  # by their places: `a.png` and `./a.png` are one
    inodes: dict[tuple[int, int], str] = {}
    linked: list[tuple[str, str]] = []
    for line, image_id in zip(table.lines, ids, strict=True):
        file = path.parent / image_id
        if not image_id:
            raise DataError(f"{path} line {line}: expected a file, found nothing in column 'file'")
        if not file.is_file():
            raise DataError(f"{path} line {line}: no such file {file}")
        if (where := os.path.abspath(file)) in found:  # noqa: PTH100 (a million take time)
            raise DataError(
                f"{path} line {line}: file {image_id!r} occurs twice; keep one of the rows"
            )
        found.add(where)
        files[image_id] = file
        status = os.stat(file)  # noqa: PTH116 (as above)
        first = inodes.setdefault((status.st_dev, status.st_ino), image_id)
        if first != image_id:
            linked.append((first, image_id))
    notices += links(linked, "row")
    factors = {}
    if table.separator != ",":
        notices.append(f"read as separated by {SEPARATORS[table.separator]}")
    for place, column in enumerate(table.columns):
        if column.casefold() in ROLES or not column:
            continue
        if column in factors:
            raise DataError(f"{path} line 1: column {column!r} occurs twice; rename one")
        if column in (".", "..") or "/" in column:
            raise DataError(
                f"{path} line 1: no store can keep a column called {column!r}; rename it"
            )
        values, how = factor_values([row[place] for row in table.rows], table.separator != ",")
        factors[column] = np.array(values)
        notices += [f"factor {column!r}: {how}"] if how and column != called else []
    names, unknown = splits_of(splits or [""] * len(ids))
    if splits is not None and not any(names):
        notices.append("the column of splits is empty, so that images belong to no split")
    labels, about_labels = _labels(table)
    return file_source(
        path.name,
        files,
        labels=labels,
        splits=names,
        factors=factors,
        notices=(*notices, *about_labels, *unknown),
    )


def _labels(table: Table) -> tuple[list[str | None] | None, tuple[str, ...]]:
    """Return the label of each image, None where there is no such column, and what to say of them."""
    values = table.column("label")
    if values is None:
        return None, ()
    try:
        labels, notices = class_names(values)
    except DataError as error:
        raise DataError(f"{table.path} column 'label': {error}") from error
    if not any(labels):
        return labels, (*notices, "column 'label' is empty, so that images have no labels")
    return labels, notices + unlabelled(table["file"], labels)


def _column_of_splits(table: Table) -> str | None:
    """Return the column that holds splits by its values, under another name; None if not one does."""
    found = [
        column
        for place, column in enumerate(table.columns)
        if column
        and column.casefold() not in ROLES
        and len({split_of(row[place]) for row in table.rows} - {None}) > 1
        and all(is_missing(row[place]) or split_of(row[place]) for row in table.rows)
    ]
    return found[0] if len(found) == 1 else None


def _about_splits(table: Table) -> list[str]:
    """Name the columns that hold words of splits, none of which is taken for the splits."""
    lines = []
    for place, column in enumerate(table.columns):
        words = dict.fromkeys(row[place] for row in table.rows if split_of(row[place]))
        if column and column.casefold() not in ROLES and words:
            lines.append(
                f"no splits are read from column {column!r}, which holds {', '.join(words)}: it is a factor; "
                "call it 'split' to read them"
            )
        elif column and column.casefold() not in ROLES:
            held = list(dict.fromkeys(row[place] for row in table.rows))
            like = LIKE_SPLITS if column.casefold() in MAYBE_SPLIT_COLUMNS else NO_OTHER_WORDS
            are_like = all(value.casefold() in like for value in held if value)
            if 1 < len(held) <= MOST_CODES and (are_like or _is_called_like_a_split(column)):
                lines.append(
                    f"no splits are read from column {column!r}, which holds {', '.join(map(repr, held))}: "
                    f"it is a factor; give a column 'split' of {', '.join(SPLITS)}"
                )
    return lines


def _about_folders(ids: Sequence[str]) -> list[str]:
    """Say that splits are not read off the folders of files, where these tell some."""
    # One file of each folder, the first.
    some = list({image_id.rpartition("/")[0]: image_id for image_id in reversed(ids)}.values())
    told = {split: at for at, split in zip(some, names_from_paths(some).splits, strict=True)}
    if len(words := [split for split in SPLITS if split in told]) < 2:
        return []
    return [
        f"no splits are read from the folders of files, as {words[0]} of {told[words[0]]}: give a column "
        f"'split' of {', '.join(SPLITS)}"
    ]


def _is_called_like_a_split(column: str) -> bool:
    """Whether a column's name says that it holds splits, as `is_train`, `Test` or `partition`."""
    words = re.split(r"[\W\d_]+", column.casefold())
    return like_split(column) is not None or any(
        w in SPLIT_COLUMNS or split_of(w) or RUN_TOGETHER.fullmatch(w)
        for w in (*words, "".join(words))
    )


def _about_columns(columns: tuple[str, ...]) -> list[str]:
    """Say which columns are read as what, where their names do not say it themselves."""
    lines = []
    for role in ROLES:
        taken = next((column for column in columns if column.casefold() == role), None)
        if taken is not None and taken != role:
            lines.append(f"{role}s are read from column {taken!r}")
    if "label" not in (column.casefold() for column in columns):
        lines.append(
            f"no column 'label', so that images have no labels; found {', '.join(columns)}"
        )
    if nameless := columns.count(""):
        lines.append(
            f"{nameless} {'column' if nameless == 1 else 'columns'} without a name left out"
        )
    return lines
