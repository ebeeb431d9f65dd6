"""CSV manifests: a row an image."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from vdvae_repr.data.names import is_missing, split_of, splits_of
from vdvae_repr.data.source import Source, file_source
from vdvae_repr.data.table import SEPARATORS, Table, read_table
from vdvae_repr.errors import DataError

ROLES = ("file", "label", "split")


def open_manifest(path: Path) -> Source:
    """Make a source of a table with `file`, and maybe `label` and `split`; other columns become factors.

    Columns are found by their names in any case. A label that is empty or `nan` is none.

    Raises:
        DataError: the table cannot be read, or a row names no file; the message has the line's number.
    """
    table = read_table(path, "file")
    ids, labels, splits = table["file"], table.column("label"), table.column("split")
    notices = list(_about_columns(table.columns))
    if splits is None and (called := _column_of_splits(table)) is not None:
        splits = table.column(called.casefold())
        notices.append(f"splits are read from column {called!r}")
    if splits is None:
        notices += _about_splits(table)
    files: dict[str, Path] = {}
    for line, image_id in zip(table.lines, ids, strict=True):
        file = path.parent / image_id
        if not image_id:
            raise DataError(f"{path} line {line}: expected a file, found nothing in column 'file'")
        if not file.is_file():
            raise DataError(f"{path} line {line}: no such file {file}")
        if image_id in files:
            raise DataError(
                f"{path} line {line}: file {image_id!r} occurs twice; keep one of the rows"
            )
        files[image_id] = file
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
        factors[column] = np.array([row[place] for row in table.rows])
    none = Counter(label for label in labels or () if label and is_missing(label))
    if none:
        listed = ", ".join(f"{label!r} ({count})" for label, count in none.items())
        notices.append(f"labels that stand for none: {listed}")
    names, unknown = splits_of(splits or [""] * len(ids))
    return file_source(
        path.name,
        files,
        labels=[None if is_missing(label) else label for label in labels] if labels else None,
        splits=names,
        factors=factors,
        notices=(*notices, *unknown),
    )


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
    return lines


def _about_columns(columns: tuple[str, ...]) -> list[str]:
    """Say which columns are read as what, where their names do not say it themselves."""
    lines = []
    for role in ROLES:
        taken = next((column for column in columns if column.casefold() == role), None)
        if taken is not None and taken != role:
            lines.append(f"{role}s are read from column {taken!r}")
    others = [column for column in columns if column and column.casefold() not in ROLES]
    if others and "label" not in (column.casefold() for column in columns):
        lines.append(
            f"no column 'label', so that images have no labels; found {', '.join(columns)}"
        )
    if nameless := columns.count(""):
        lines.append(
            f"{nameless} {'column' if nameless == 1 else 'columns'} without a name left out"
        )
    return lines
