"""The small files of a run folder: JSON and TOML that carry their own checksum.

A flipped byte in a number would otherwise be another number, and half a TOML a whole one with defaults.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdvae_repr.config import MOST_BYTES

CHECKSUM = "checksum"
COMMENT = "# checksum of the lines above: "
MOST_JSON = 2**26  # bytes; a run that leaves images out names them all


def sealed_json(table: Mapping[str, Any]) -> str:
    """Write a table with its checksum; nothing in it may be NaN."""
    return json.dumps({**table, CHECKSUM: _digest(_plain(table))}, indent=1, allow_nan=False) + "\n"


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Return a table without its checksum; files of earlier versions have none.

    Raises:
        ValueError: it is damaged. OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_JSON + 1)
    if len(content) > MOST_JSON:
        raise ValueError(f"{path.name} is larger than {MOST_JSON:,} bytes")
    try:
        table = json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{path.name} nests too deeply") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path.name} holds {type(table).__name__}, no table")
    checksum = table.pop(CHECKSUM, None)
    if checksum not in (None, _digest(_plain(table))):
        raise ValueError(f"{path.name} does not match its checksum")
    return table


def sealed_toml(text: str) -> str:
    """Add a comment with the checksum of a TOML."""
    return f"{text}{COMMENT}{_digest(text)}\n"


def seal_of_toml(path: Path) -> bool | None:
    """Return whether a TOML is as it was written; None where it holds no checksum.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        text, comment, digest = file.read(MOST_BYTES).decode(errors="replace").partition(COMMENT)
    return digest.strip() == _digest(text) if comment else None


def _plain(table: Mapping[str, Any]) -> str:
    return json.dumps(table, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
