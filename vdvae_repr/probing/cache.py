"""Scores kept on the disk, by the content of all that they depend on; so a stopped run goes on.

What is computed from that content is told by version numbers, of the task and of the head, and by the
versions of NumPy, SciPy and scikit-learn. A test holds what each task and head gives on a small problem
beside its version, and fails where one changes without the other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from vdvae_repr.errors import TaskError
from vdvae_repr.output import replacing
from vdvae_repr.probing.features import Features, hash_arrays, hash_text
from vdvae_repr.probing.task import Scored

LIBRARIES = ("numpy", "scipy", "scikit-learn")
PLAIN = (bool, int, float, complex, bytes, range, Enum, np.generic)  # told by how they are written
HASH_BYTES = 32  # before the content of each file, of it and of what it is the score of


class ScoreCache:
    """A folder of scores, a file each.

    Args:
        folder: made if need be.
        problem: a hash of what all of them depend on: task, options, images, labels, splits.
    """

    def __init__(self, folder: str | Path, problem: str) -> None:
        self.folder, self.problem = Path(folder), problem
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(None, "Permission denied")
        except OSError as error:
            raise TaskError(
                f"{folder}: cannot be made, or written ({error.strerror}); choose another "
                "folder, or cache=None"
            ) from error

    def get(self, features: Features, how: Sequence[str], score: Callable[[], Scored]) -> Scored:
        """Return what is kept of features scored in some way (head, seed, labels), or score and keep it."""
        digests = [columns.digest() for columns in features.columns]
        key = hash_text(*versions(), self.problem, *how, str(features.standardise), *digests)
        path = self.folder / f"{key[:32]}.score"
        with suppress(Exception):  # damaged, or not there: whatever reading it raises, it is scored
            return _read(path, key, features)
        scored = score()
        try:
            with replacing(
                path, durable=False
            ) as file:  # what a power cut leaves is told by its hash
                content = _content(scored)
                file.write(_hash(key, content) + content)
        except OSError as error:
            raise TaskError(
                f"{path}: cannot be written ({error.strerror}); free space and run the same again"
            ) from error
        return scored


def option_digest(value: Any) -> str | None:
    """Return all that an option of a task says; None of what cannot be told by its content.

    What is written out whole is told by that; arrays, tables and tensors by their values, and what names a
    file, or an array in one as `FILE:KEY`, by the file's content too.
    """
    if isinstance(value, str | Path):
        text = str(value)
        for name in (text, text.rpartition(":")[0]):
            if os.path.isfile(name):  # noqa: PTH113 - no name is too long for it
                content = _file_digest(Path(name))
                return content if name == text else hash_text(text, content)
        return None if os.path.isdir(text) else repr(value)  # noqa: PTH112
    if value is None or isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, np.ma.MaskedArray):
        parts = [np.asarray(value.filled()), np.ma.getmaskarray(value)]
        return _together("masked", [option_digest(part) for part in parts])
    if isinstance(value, np.ndarray):
        if not value.dtype.hasobject:
            return hash_arrays(value)
        cells = [
            repr(c) if isinstance(c, str) else option_digest(c) for c in value.ravel().tolist()
        ]
        return _together(f"array {value.shape}", cells)
    if isinstance(value, list | tuple | set | frozenset | Mapping):
        items = list(value)
        if isinstance(value, Mapping):
            items += value.values()
        digests = [option_digest(item) for item in items]
        if all(digest == repr(item) for digest, item in zip(digests, items, strict=True)):
            return repr(value)  # nothing in it is shortened
        return _together(type(value).__name__, digests)
    if is_dataclass(value) and not isinstance(value, type):
        of = {each.name: getattr(value, each.name) for each in fields(value)}
        return _together(type(value).__qualname__, [option_digest(of)])
    if isinstance(value, pd.DataFrame):
        columns = [value.iloc[:, number] for number in range(value.shape[1])]
        return _together("table", [option_digest(part) for part in (value.columns, *columns)])
    if isinstance(value, pd.Series | pd.Index):
        parts = [value.to_numpy(), *([value.index.to_numpy()] if hasattr(value, "index") else [])]
        return _together(f"{value.dtype} {value.name}", [option_digest(part) for part in parts])
    if isinstance(value, torch.Tensor):
        try:
            return hash_arrays(value.detach().cpu().numpy())
        except (TypeError, RuntimeError):  # sparse, bfloat16 and others that NumPy does not have
            return None
    return None


def _together(kind: str, digests: Sequence[str | None]) -> str | None:
    known = [digest for digest in digests if digest is not None]
    return hash_text(kind, *known) if len(known) == len(digests) else None


def _file_digest(path: Path) -> str:
    """Return what `hash_arrays` returns of a file's bytes, without holding them all in memory."""
    sha = hashlib.sha256(f"{(path.stat().st_size,)}{np.dtype(np.uint8).str}".encode())
    with path.open("rb") as file:
        while block := file.read(2**24):
            sha.update(block)
    return sha.hexdigest()


@cache
def versions() -> tuple[str, ...]:
    """Return the versions of the libraries that scores depend on; looking them up takes a while."""
    return tuple(map(version, LIBRARIES))


def _content(scored: Scored) -> bytes:
    """Return a score as the bytes of a .npz file."""
    training = np.nan if scored.training_score is None else scored.training_score
    content = BytesIO()
    np.savez(
        content,
        scaling=scored.scaling or "",
        training_score=training,
        outcome=scored.outcome,
        seconds=scored.seconds,
    )
    return content.getvalue()


def _read(path: Path, key: str, features: Features) -> Scored:
    content = path.read_bytes()
    if content[:HASH_BYTES] != _hash(key, content[HASH_BYTES:]):
        raise ValueError(f"{path}: damaged, or of other features")
    with np.load(BytesIO(content[HASH_BYTES:])) as found:
        training = float(found["training_score"])
        return Scored(
            features,
            found["outcome"],
            None if np.isnan(training) else training,
            str(found["scaling"]) or None,
            float(found["seconds"]),
        )


def _hash(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()
