"""A lock that dies with its process: one writer at a time of a store, or of a run folder."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vdvae_repr.errors import VDVAEReprError
from vdvae_repr.output import make_folder


@contextmanager
def locked(path: Path, busy: str, error: type[VDVAEReprError]) -> Iterator[None]:
    """Hold a lock on a file, which goes when it is let go, as do folders that were made for it and are empty.

    Args:
        path: the file, empty, made if it is not there.
        busy: the message where another process holds it: what is being written.
        error: raised as described.

    Raises:
        VDVAEReprError: another process holds the lock, or another file has its name.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    make_folder(path.parent)
    try:
        yield from _holding(path, busy, error)
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _holding(path: Path, busy: str, error: type[VDVAEReprError]) -> Iterator[None]:
    try:
        status = path.lstat()
    except FileNotFoundError:
        status = None
    if status and (not stat.S_ISREG(status.st_mode) or status.st_size):
        raise error(f"{path}: is in the way, and is no lock; move it, or choose another path")
    while True:
        with path.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise error(f"{busy}; wait for it, or choose another path") from None
            try:
                if path.stat().st_ino != os.fstat(handle.fileno()).st_ino:
                    continue  # another process has just made it anew
            except FileNotFoundError:
                continue  # its last holder has just removed it
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
