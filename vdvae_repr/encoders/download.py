"""Released weights: found in the cache, or fetched into it, resumable, whole or absent, and hashed."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm.auto import tqdm

from vdvae_repr.config import suggestion
from vdvae_repr.errors import CheckpointError, first_line
from vdvae_repr.model.published import PREFIX, RELEASES
from vdvae_repr.model.weights import read_weights
from vdvae_repr.output import make_folder, put_in_place, write_text

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # after which a transfer that breaks off is left to the next run
BLOCK = 2**20


def cache_folder() -> Path:
    """Return where released weights are kept: VDVAE_REPR_CACHE, else the user's cache folder."""
    if own := os.environ.get("VDVAE_REPR_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vdvae-repr"


def released_file(name: str, download: bool) -> Path:
    """Return the file of a release of openai/vdvae, whose hash is as it was when the file came.

    Args:
        name: a key of `RELEASES`, with or without `openai:`.
        download: fetch it if it is not in the cache.

    Raises:
        CheckpointError: no such release; a file that is missing, cannot be fetched, or has changed.
    """
    known = name.removeprefix(PREFIX)
    if known not in RELEASES:
        raise CheckpointError(
            f"{name}: no such release{suggestion(known, list(RELEASES))}; released are {', '.join(RELEASES)}"
        )
    release = RELEASES[known]
    file = cache_folder() / release.file
    if not file.is_file():
        if not download:
            raise CheckpointError(
                f"{name}: expected {file}, found none; fetch it with "
                f'vr.load("{PREFIX}{known}", download=True), or '
                f"download {release.url} and save it there"
            )
        fetch(release.url, file)
    check_hash(file)
    return file


def check_hash(file: Path) -> None:
    """Compare a file with the SHA-256 written beside it, which is written where there is none.

    Raises:
        CheckpointError: they differ.
    """
    record = _record(file)
    with file.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if not record.is_file():
        with suppress(OSError):  # a cache that others keep may be read-only
            write_text(record, f"{found}  {file.name}\n")
        return
    expected = record.read_text(encoding="utf-8").split()[:1]
    if expected != [found]:
        raise CheckpointError(
            f"{file}: its SHA-256 is {found[:12]}..., expected {''.join(expected)[:12]}... of {record.name}; "
            "the file has changed: remove both, and fetch it again with vr.load(..., download=True)"
        )


def fetch(url: str, file: Path) -> None:
    """Fetch a weights file, going on with what an earlier try left; it appears whole, by a rename.

    What came stands in `FILE.part` until every byte is there and the file can be read; then it is renamed,
    and its SHA-256 written beside it. Processes that fetch one file wait for one another.

    Raises:
        CheckpointError: it cannot be fetched, or what came is no weights file.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        make_folder(file.parent)
        with _alone(file):
            if file.is_file():
                return  # another process was faster
            _fetch_part(url, part)
            try:
                read_weights(part)
            except CheckpointError as error:
                part.unlink()
                reason = str(error).replace(f"{part}: ", "")
                raise CheckpointError(f"{url}: what came {reason}") from error
            with part.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            write_text(_record(file), f"{digest}  {file.name}\n")
            put_in_place(part, file)
            _etag(part).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{url}: cannot be written to {file.parent} ({error.strerror or error}); make room, or name "
            "another place with VDVAE_REPR_CACHE"
        ) from error


def _fetch_part(url: str, part: Path) -> None:
    """Fetch until every byte is there, beginning again after a break as long as bytes come."""
    for attempt in range(ATTEMPTS):
        before = part.stat().st_size if part.is_file() else 0
        try:
            _transfer(url, part, before)
            return
        except urllib.error.HTTPError as error:
            error.close()
            raise CheckpointError(
                f"{url}: cannot be fetched (HTTP {error.code} {error.reason}); try later, or save the "
                "file in its place by other means"
            ) from error
        except (
            http.client.HTTPException,
            urllib.error.URLError,
            TimeoutError,
            ConnectionError,
        ) as error:
            now = part.stat().st_size if part.is_file() else 0
            if now == before or attempt == ATTEMPTS - 1:
                reason = first_line(getattr(error, "reason", error))
                kept = f"{now:,} bytes are kept, and the same command goes on from there"
                by_hand = f"try again, or save the file as {part.with_suffix('')} by other means"
                raise CheckpointError(
                    f"{url}: cannot be fetched ({reason}); {kept if now else by_hand}"
                ) from error


def _transfer(url: str, part: Path, start: int) -> None:
    """Fetch from byte `start` on in one request; the server may begin at 0 instead.

    Raises:
        CheckpointError: the server sends a page, or nothing of use.
        ConnectionError: it broke off.
    """
    tag = _etag(part).read_text(encoding="utf-8") if _etag(part).is_file() else ""
    headers = {"User-Agent": "vdvae-repr"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag:
            headers["If-Range"] = tag  # another version of the file is sent from its beginning
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        error.close()
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if total and int(total[1]) == start:
            return None  # every byte was there
        part.unlink()
        return _transfer(url, part, 0)
    with response:
        kind = response.headers.get_content_type()
        if kind in ("text/html", "text/xml", "application/xml"):
            raise CheckpointError(f"{url}: the server sent a web page ({kind}), not the file")
        resumed = response.status == 206
        if resumed:
            span = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if span is None or int(span[1]) != start:
                part.unlink()
                return _transfer(url, part, 0)
        begun = start if resumed else 0
        length = response.headers.get("Content-Length")
        total_bytes = None if length is None else begun + int(length)
        write_text(_etag(part), response.headers.get("ETag") or "")
        with (
            part.open("ab" if resumed else "wb") as handle,
            tqdm(
                total=total_bytes, initial=begun, desc=part.name.removesuffix(".part"), unit="B",
                unit_scale=True, disable=not sys.stderr.isatty(),
            ) as bar,
        ):  # fmt: skip
            for block in _blocks(response):
                handle.write(block)
                bar.update(len(block))
        size = part.stat().st_size
    if total_bytes is not None and size < total_bytes:
        raise ConnectionError(f"it broke off {total_bytes - size:,} bytes before the end")
    return None


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield what a server sends, until it ends.

    Raises:
        ConnectionError: the connection broke; `ssl.SSLError` is an OSError, as that of a full disk is.
    """
    while True:
        try:
            block = response.read1(BLOCK)
        except OSError as error:
            raise ConnectionError(first_line(error)) from error
        if not block:
            return
        yield block


def _record(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _etag(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let one process at a time fetch a file; the lock dies with its holder."""
    with file.with_name(f"{file.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
