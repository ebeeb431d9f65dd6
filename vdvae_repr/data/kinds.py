"""What files are by their first bytes, where they are not what their names say."""

from __future__ import annotations

import codecs
import zipfile
from contextlib import suppress
from pathlib import Path

from vdvae_repr.data.hdf5 import HDF5
from vdvae_repr.errors import DataError, first_line

START = 512  # bytes, within which a tar says that it is one
_STAND_INS = {  # for a file that was not fetched itself
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; get it by git lfs pull",
    b"<": "a web page or XML, perhaps an error page; download it again",
}
_MAGIC = {
    **_STAND_INS,
    b"\x1f\x8b": "compressed by gzip; unpack it (gunzip), as members are read in place",
    b"BZh": "compressed by bzip2; unpack it, as members are read in place",
    b"\xfd7zXZ": "compressed by xz; unpack it, as members are read in place",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it, as members are read in place",
    b"PK\x03\x04": "a zip; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"MATLAB": "a MATLAB file; save its images as uint8 (N, H, W, 3) in a .npy or .h5 file",
    b"%!": "PostScript, which is not read; save it as PNG",
    b"\xc5\xd0\xd3\xc6": "PostScript, which is not read; save it as PNG",
    b"%PDF": "a PDF, which is not read; save its pictures as PNG",
    b"8BPS": "a Photoshop file, which is not read; save it as PNG",
}


def what_it_is(content: Path | bytes) -> str:
    """Say what a file is that is not what its name says; empty where its first bytes do not tell."""
    start = _start(content) or b""
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "a HEIC photo, which is not read; save it as JPEG or PNG"
    text = _bare(start)
    return next((what for magic, what in _MAGIC.items() if text.startswith(magic)), "")


def unread_tiff(content: Path | bytes) -> str:
    """Say what a TIFF may be that Pillow does not know; empty where it is none."""
    if not (_start(content) or b"").startswith((b"II*\0", b"MM\0*")):
        return ""
    return (
        "a TIFF that is damaged, or whose kind of pixels is not read, as floating point of 16 or 64 bits; "
        "save it with 8 or 16 bits, or as floating point of 32"
    )


def stand_in(content: Path | bytes) -> str:
    """Say what is there in place of a file: nothing, a Git LFS pointer or a web page; empty where it is none.

    Of a file that cannot be read nothing is said.
    """
    start = _start(content)
    if start == b"":
        return "an empty file, of 0 bytes; get it again"
    text = _bare(start or b"")
    return next((what for magic, what in _STAND_INS.items() if text.startswith(magic)), "")


def why_unreadable(path: Path, error: Exception, advice: str = "") -> str:
    """Return what stands in place of a file whose reader failed, else the reader's error and an advice."""
    if what := stand_in(path):
        return f"it is {what}"
    return "; ".join(filter(None, (first_line(error), advice)))


def _start(content: Path | bytes) -> bytes | None:
    """Return the first bytes; None of a file that cannot be read."""
    if isinstance(content, bytes):
        return content[:START]
    try:
        with content.open("rb") as file:
            return file.read(START)
    except (OSError, ValueError):  # as of a name that no file can have
        return None


def _bare(start: bytes) -> bytes:
    """Return first bytes without what may stand before a text."""
    return start.removeprefix(codecs.BOM_UTF8).lstrip()


def another_kind(path: Path) -> str:
    """Say what a file is that is not what its name says; empty where it is that, or its bytes do not tell."""
    what, suffix = what_it_is(path) or stand_in(path), path.suffix.lower()
    with suppress(Exception):  # of a file that is damaged, or may not be read
        if what.startswith("a zip"):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            if any(name.endswith("/data.pkl") for name in names):
                return "what torch.save wrote; save its images as uint8 (N, H, W, 3) in a .npy or .h5 file"
            if suffix != ".npz" and names and all(name.endswith(".npy") for name in names):
                return "a .npz file; call it .npz"
        elif not what:
            start = _start(path) or b""
            if start.startswith(b"\x93NUMPY") and suffix != ".npy":
                return "a NumPy array; call it .npy"
            if start.startswith(b"\x89HDF\r\n\x1a\n") and suffix not in HDF5:
                return "an HDF5 file; call it .h5"
            if start[257:262] == b"ustar" and suffix != ".tar":
                return "a tar; call it .tar"
    return "" if what.startswith("a zip") and suffix == ".npz" else what


def reading_failure(path: Path, error: Exception) -> DataError:
    """Make the error of a file that made its reader raise another: what the file is, if that is known."""
    what = another_kind(path)
    return DataError(
        f"{path}: it is {what}" if what else f"{path}: cannot be read ({first_line(error)})"
    )
