"""Tables in text files: CSV by commas, semicolons or tabs, with or without a byte-order mark."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vdvae_repr.data.kinds import stand_in
from vdvae_repr.errors import DataError

TEXT_BYTES = 2**28  # of a text file, which is read whole
LINE_BYTES = 2**20  # of a line
MOST_COLUMNS = 10_000
ON_ONE_LINE = ("label", "split", "fold")  # columns of names, as those that are needed are
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
EXCEL = re.compile(r'"?sep=([,;\t])"?', re.IGNORECASE)  # a first line that names the separator


@dataclass(frozen=True)
class Table:
    """Rows of text, every one as long as the header; all values are stripped of blanks."""

    path: Path
    separator: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    """The line of the file on which each row begins, the header's being 1."""
    notices: tuple[str, ...] = ()
    """What is to be said of it: that a value goes over several lines, as quotation marks may by mistake."""

    def __getitem__(self, name: str) -> tuple[str, ...]:
        """Return the values of a column that is needed."""
        values = self.column(name)
        if values is None:
            raise KeyError(name)
        return values

    def column(self, name: str) -> tuple[str, ...] | None:
        """Return a column's values by its name in any case, None if there is none.

        Raises:
            DataError: several columns are called so.
        """
        places = [i for i, found in enumerate(self.columns) if found.casefold() == name]
        if len(places) > 1:
            found = " and ".join(repr(self.columns[place]) for place in places)
            raise DataError(
                f"{self.path} line 1: expected one column {name!r}, found {found}; rename all but one"
            )
        return tuple(row[places[0]] for row in self.rows) if places else None


def read_table(path: str | Path, *needed: str) -> Table:
    """Read a table whose header has the columns `needed`, which also tell what separates columns.

    Raises:
        DataError: the file cannot be read, lacks such a column, a row has more or fewer values than the
            header, or a name goes over several lines; the message has the line's number.
    """
    path = Path(path)
    text = read_text(path)
    start = text.rfind("\n", 0, len(text) - len(text.lstrip())) + 1  # behind lines of blanks
    first, text = 1 + text.count("\n", 0, start), text[start:]
    header, _, below = text.partition("\n")
    if named := EXCEL.fullmatch(header.strip(" ")):
        separator, text, first = named[1], below, first + 1
    else:
        names = header.casefold()
        separator = next(
            (s for s in SEPARATORS if needed[0] in (c.strip(' "') for c in names.split(s))), ","
        )
    records = _records(path, text, separator, first)
    _, columns = next(records, (first, ()))
    if len(columns) > MOST_COLUMNS:
        raise DataError(
            f"{path}: expected {MOST_COLUMNS} columns at most, found {len(columns)}; leave some out"
        )
    if any("\n" in column for column in columns):
        raise DataError(
            f"{path} line {first}: expected the names of columns on one line, found quotation marks around "
            "several; close them there"
        )
    if not set(needed) <= {column.casefold() for column in columns}:
        expected = (
            f"a column {needed[0]!r}" if len(needed) == 1 else f"columns {' and '.join(needed)}"
        )
        listed = ", ".join(column or "''" for column in columns) or "none"
        raise DataError(f"{path}: expected {expected}, found {listed}; rename what is meant")
    rows, lines, spanning = [], [], []
    for line, row in records:
        if not any(row):
            continue
        if any(row[len(columns) :]) or len(row) < len(columns):
            raise DataError(
                f"{path} line {line}: expected {len(columns)} values, as in the header, found {len(row)}: "
                f"{separator.join(row)[:60]!r}"
            )
        for column, value in zip(columns, row, strict=False):
            if "\n" in value:
                until = line + "".join(row).count("\n")
                found = f"quotation marks in column {column!r} around several, {value[:60]!r}"
                if column.casefold() in (*needed, *ON_ONE_LINE):
                    raise DataError(
                        f"{path} lines {line} to {until}: expected a row on each line, found {found}; close "
                        "them on their line"
                    )
                spanning.append(f"lines {line} to {until} are one row, for {found}")
        rows.append(row[: len(columns)])
        lines.append(line)
    if len(spanning) > 1:
        spanning = [f"{spanning[0]}, and so {len(spanning) - 1} more"]
    return Table(path, separator, columns, tuple(rows), tuple(lines), tuple(spanning))


def _records(
    path: Path, text: str, separator: str, first: int
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the line on which a record begins, and its values; the text begins with line `first`."""
    lines = _lines(path, text, first)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    line = first
    try:
        for record in reader:
            yield line, tuple(value.strip() for value in record)
            line = first + reader.line_num
    except csv.Error as error:
        raise DataError(
            f"{path} line {line}: cannot be read as a table ({error}); "
            "look for a quotation mark that is not closed"
        ) from error


def _lines(path: Path, text: str, first: int) -> Iterator[str]:
    """Yield lines; one that is too long to be a row is refused before its values take memory."""
    for number, line in enumerate(io.StringIO(text, newline=""), start=first):
        if len(line) > LINE_BYTES:
            raise DataError(
                f"{path}: line {number} is longer than {LINE_BYTES} characters; expected a table"
            )
        yield line


def read_text(path: Path) -> str:
    """Return a file's text, UTF-8 or, by its byte-order mark, UTF-16, with a line feed after each line.

    Raises:
        DataError: it cannot be read, is no text, or is too large to be a table or a list.
    """
    try:
        with path.open("rb") as file:
            head = file.read(LINE_BYTES)
            if head and (what := stand_in(head)):
                raise DataError(f"{path}: expected a table or a list as text, found {what}")
            wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            if b"\0" in head and not wide:
                raise DataError(f"{path}: expected a table as text, found binary data")
            if len(head) == LINE_BYTES and not {*b"\r\n"} & {*head}:
                raise DataError(
                    f"{path}: line 1 is longer than {LINE_BYTES} bytes; expected a table"
                )
            if (size := path.stat().st_size) > TEXT_BYTES:
                raise DataError(
                    f"{path}: {size} bytes, where a table may have {TEXT_BYTES}; divide it"
                )
            content = head + file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} line {line}: expected UTF-8, found a byte {content[error.start]:#04x}; save it as UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{path}: expected a table as text, found binary data")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
