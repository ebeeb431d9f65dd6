"""Scores kept on the disk, by the content of all that they depend on; so a stopped run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from vdvae_repr.errors import TaskError
from vdvae_repr.features import Features, hash_text
from vdvae_repr.tasks.problem import Scored


class Kept:
    """A folder of scores, a file each.

    Args:
        folder: made if need be.
        told: a hash of what all of them depend on: task, options, split.
    """

    def __init__(self, folder: str | Path, told: str) -> None:
        self.folder, self.told = Path(folder), told
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TaskError(
                f"{folder}: cannot be made ({error.strerror}); choose another folder to keep scores in"
            ) from error

    def get(self, features: Features, how: Sequence[str], score: Callable[[], Scored]) -> Scored:
        """Return what is kept of features scored in some way (head, seed, labels), or score and keep it."""
        digests = [columns.digest() for columns in features.columns]
        key = hash_text(_code(), self.told, *how, str(features.standardise), *digests)
        path = self.folder / f"{key[:32]}.npz"
        if path.is_file():
            with suppress(OSError, ValueError, EOFError, KeyError, BadZipFile):  # damaged: again
                return _read(path, features)
        scored = score()
        aside = path.with_suffix(f".{os.getpid()}")
        try:
            with aside.open("wb") as handle:
                np.savez(
                    handle,
                    standardised=scored.standardised,
                    training_score=np.nan
                    if scored.training_score is None
                    else scored.training_score,
                    outcome=scored.outcome,
                    seconds=scored.seconds,
                )
            aside.replace(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise TaskError(
                f"{path}: cannot be written ({error.strerror}); free space and run the same again"
            ) from error
        return scored


def _read(path: Path, features: Features) -> Scored:
    with path.open("rb") as handle, np.load(handle) as found:
        training = float(found["training_score"])
        return Scored(
            features,
            bool(found["standardised"]),
            None if np.isnan(training) else training,
            found["outcome"],
            float(found["seconds"]),
        )


@cache
def _code() -> str:
    """Return a hash of the code that scores depend on, and of the libraries under it."""
    package = Path(__file__).parents[1]
    folders = ("model", "latents", "heads", "tasks")  # the first two make random-init
    files = [path for folder in folders for path in sorted(package.glob(f"{folder}/*.py"))]
    files += [package / "features.py", package / "baselines.py"]
    text = [path.read_text(encoding="utf-8") for path in files]
    return hash_text(*text, *(version(name) for name in ("numpy", "scipy", "scikit-learn")))
