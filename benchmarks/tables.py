"""Tables of results pages: each is written from a committed CSV, between two marks of its page."""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

MARK = "<!-- {} -->"


def markdown(table: pd.DataFrame) -> str:
    """Return a table of texts and numbers; a number has four digits, and what is missing is left empty."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return "" if pd.isna(value) else f"{value:.4g}"
        return "" if value is None else str(value)

    lines = [
        "| " + " | ".join(map(str, table.columns)) + " |",
        "|" + " --- |" * len(table.columns),
    ]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def fill(page: Path, tables: Mapping[str, str]) -> None:
    """Write each table into a page, between the mark of its name and `end of NAME`.

    Raises:
        ValueError: a mark that the page does not have, or one more than the tables.
    """
    text = page.read_text(encoding="utf-8")
    marked = re.findall(r"<!-- end of (.+?) -->", text)
    if sorted(marked) != sorted(tables):
        raise ValueError(f"{page}: expected marks of {sorted(tables)}, found {sorted(marked)}")
    for name, table in tables.items():
        before, rest = text.split(MARK.format(name))
        _, after = rest.split(MARK.format(f"end of {name}"))
        text = f"{before}{MARK.format(name)}\n\n{table}\n\n{MARK.format(f'end of {name}')}{after}"
    page.write_text(text, encoding="utf-8")
