"""Scores kept on the disk, by the content of all that they depend on; so a stopped run goes on.

What is computed from that content is told by version numbers, of the task and of the head, and by the
versions of NumPy, SciPy and scikit-learn. A test holds what each task and head gives on a small problem
beside its version, and fails where one changes without the other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np

from vdvae_repr.errors import TaskError
from vdvae_repr.output import replacing
from vdvae_repr.probing.features import Features, hash_text
from vdvae_repr.probing.task import Scored

LIBRARIES = ("numpy", "scipy", "scikit-learn")
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
