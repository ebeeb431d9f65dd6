"""Every reader against mutated files: an image, a line of what is wrong, and nothing else.

`VDVAE_REPR_MUTATIONS=20000` tries so many of each format, drawn at random; else a few, always the same.
"""

import io
import os
import resource
import shutil
import signal
import struct
import tarfile
import zipfile
import zlib
from contextlib import contextmanager, suppress

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vdvae_repr.data.faces import read_pair_lists
from vdvae_repr.data.open import open_source
from vdvae_repr.data.source import Preprocessing
from vdvae_repr.errors import DataError

EXAMPLES = int(os.environ.get("VDVAE_REPR_MUTATIONS", "0"))
SECONDS = 20  # after which a reader hangs
GROWTH = 2**20  # KiB of memory, of a whole test
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)


# Valid files, small, as bytes


def image(kind, pixels=IMAGES[0], **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def palette():
    buffer = io.BytesIO()
    quantised = Image.fromarray(IMAGES[0]).quantize(8)
    quantised.save(buffer, "PNG", transparency=3)
    return buffer.getvalue()


def tar(**more):
    buffer = io.BytesIO()
    members = {
        "train/a/0.png": image("PNG"),
        "0.cls": b"1",
        "0.jpg": image("JPEG"),
        "1.json": b'{"label": 2.0}',
    }
    members |= {"1.webp": image("WEBP"), "1.seg.png": image("PNG")} | more
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo("link.png")
        member.type, member.linkname = tarfile.SYMTYPE, "0.jpg"
        archive.addfile(member)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(save):
    buffer = io.BytesIO()
    save(buffer, images=IMAGES, labels=[1.0, 2, 1, np.nan], splits=["train", "test", "dev", ""])
    return buffer.getvalue()


def hdf5(**storage):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("images", data=IMAGES, **storage)
        file["labels"], file["class_names"] = [0, 1, 0, -1], ["x", "y"]
        file["train/images"], file["more"] = IMAGES[:2], h5py.SoftLink("/images")
    return buffer.getvalue()


TABLE = (
    b"file,label,split,age,sex\r\n0.png,1,train,30,f\n 1.png ,1.0,val,nan,m\n2.png,2,dev,31.5,\n"
)
PAIRS = b"a,b,same,fold\n0,1,1,1\n0,2,0,1.0\n2,3,true,2\n1,2,0,2\n"
LFW = b"2\t1\nAnn\t1\t2\nAnn\t1\tBo\t1\nAnn\t3\t4\nAnn\t3\tBo\t2\n"
IDS = ["Ann_0001.jpg", "Ann_0002.jpg", "Ann_0003.jpg", "Ann_0004.jpg", "Bo_0001.jpg", "Bo_0002.jpg"]


# What lets a mutation past a checksum


def with_png_checksums(content):
    parts, at = [content[:8]], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        held = content[at + 4 : at + 8 + size]
        parts += [content[at : at + 4], held, struct.pack(">I", zlib.crc32(held))]
        at += 12 + size
    return b"".join(parts)


def with_tar_checksums(content):
    blocks = [bytearray(content[at : at + 512]) for at in range(0, len(content), 512)]
    for block in blocks:
        if block[257:262] == b"ustar" and len(block) == 512:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(map(bytes, blocks))


def zipped(content):
    """A .npz whose `images` are a mutated .npy, with a checksum that is right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content)
        archive.writestr("labels.npy", npy(np.arange(4)))
    return buffer.getvalue()


def labelled(content):
    """A .npz whose `labels` are a mutated .npy."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", npy(IMAGES))
        archive.writestr("labels.npy", content)
    return buffer.getvalue()


def sidecar(content):
    """A tar whose JSON is mutated."""
    return tar(**{"1.json": content, "0.cls": content[:20]})


def as_they_are(content):
    return content


JPEG = image(
    "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
)
DEEP = (IMAGES[0, ..., 0] / 255).astype(np.float32)
FORMATS = {  # name of the file, what it holds, and what is done to it after it was mutated
    "png": ("a/0.png", image("PNG"), with_png_checksums),
    "png-palette": ("a/0.png", palette(), with_png_checksums),
    "png-16": (
        "a/0.png",
        image("PNG", IMAGES[0, ..., 0].astype(np.uint16) * 257),
        with_png_checksums,
    ),
    "jpeg": ("a/0.jpg", JPEG, as_they_are),
    "jpeg2000": ("a/0.jp2", image("JPEG2000"), as_they_are),
    "gif": ("a/0.gif", image("GIF"), as_they_are),
    "bmp": ("a/0.bmp", image("BMP"), as_they_are),
    "webp": ("a/0.webp", image("WEBP"), as_they_are),
    "tiff": ("a/0.tif", image("TIFF"), as_they_are),
    "tiff-lzw": ("a/0.tif", image("TIFF", compression="tiff_lzw"), as_they_are),
    "tiff-float": ("a/0.tif", image("TIFF", DEEP), as_they_are),
    "ppm": ("a/0.ppm", image("PPM"), as_they_are),
    "pgm-plain": ("a/0.pgm", b"P2\n3 2 15\n1 2 3 4 5 15\n", as_they_are),
    "pfm": ("a/0.pfm", image("PPM", DEEP), as_they_are),
    "tga": ("a/0.tga", image("TGA", compression="tga_rle"), as_they_are),
    "pcx": ("a/0.pcx", image("PCX"), as_they_are),
    "ico": ("a/0.ico", image("ICO"), as_they_are),
    "sgi": ("a/0.sgi", image("SGI"), as_they_are),
    "mpo": ("a/0.mpo", image("MPO"), as_they_are),
    "tar": ("a.tar", tar(), as_they_are),
    "tar-sealed": ("a.tar", tar(), with_tar_checksums),
    "tar-json": ("a.tar", b'{"label": 2.0, "split": "train", "x": [[1, "a\\u00e9"]]}', sidecar),
    "csv": ("a.csv", TABLE, as_they_are),
    "npy": ("a.npy", npy(IMAGES), as_they_are),
    "npy-float": ("a.npy", npy(IMAGES / 255), as_they_are),
    "npz": ("a.npz", npz(np.savez), as_they_are),
    "npz-compressed": ("a.npz", npz(np.savez_compressed), as_they_are),
    "npz-images": ("a.npz", npy(IMAGES.astype(np.uint16)), zipped),
    "npz-labels": ("a.npz", npy(np.array(["x", "y", "1.0", "1"])), labelled),
    "hdf5": ("a.h5", hdf5(), as_they_are),
    "hdf5-chunked": (
        "a.h5",
        hdf5(chunks=(1, 8, 9, 3), compression="gzip", fletcher32=True),
        as_they_are,
    ),
    "pairs": ("pairs.csv", PAIRS, as_they_are),
    "pairs-lfw": ("pairs.txt", LFW, as_they_are),
    "rows": ("rows.txt", b"0\n2, 1\n3", as_they_are),
}
WORDS = [
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\0",
    b"\x80\0",
    b"\xff" * 8,
    b"\x01",
    b",",
    b"\n",
    b'"',
    b"nan",
    b"1e999",
    b"-1",
    b"9999999999",
    b"[[[[",
    b"\xc3\x28",
    b"\x1b[2J",
    b"'",
    b"(",
    b")",
]

edits = st.lists(
    st.tuples(
        st.sampled_from(["write", "insert", "cut", "end", "copy"]),
        st.integers(0, 2**16 - 1),
        st.one_of(st.sampled_from(WORDS), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1,
    max_size=4,
)


def mutated(content, changes):
    """Change a file at places that lie, half of them, in its first bytes, where headers are."""
    for what, place, word in changes:
        at = place // 2 % min(400, len(content) or 1)
        if place % 2:
            at = place * len(content) // 2**16
        if what == "end":
            content = content[:at]
            continue
        after = {"write": len(word), "insert": 0, "cut": 8 * len(word), "copy": 0}[what]
        piece = {"cut": b"", "copy": content[at : at + 40 * len(word)]}.get(what, word)
        content = content[:at] + piece + content[at + after :]
    return content


class Hangs(BaseException):
    """No error that a reader may catch."""


@contextmanager
def limited():
    def stop(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read(path):
    """Read what there is; what cannot be read is said in a line."""
    try:
        if path.stem == "pairs":
            read_pair_lists(path, None, IDS if path.suffix == ".txt" else list("0123"))
            return
        if path.name == "rows.txt":
            open_source(IMAGES, rows=path)
            return
        source = open_source(path if path.is_file() else path.parent)
    except DataError:
        return
    assert all(line.isprintable() for line in source.notices)
    for index in range(min(len(source), 3)):
        with suppress(DataError):
            pixels = Preprocessing(size=8)(source.load(index))
            assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", FORMATS)
def test_a_mutated_file_is_read_or_refused_in_a_line(tmp_path, name):
    place, content, repair = FORMATS[name]
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(image("PNG"))

    @settings(
        max_examples=EXAMPLES or 40,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(edits)
    def check(changes):
        path.write_bytes(repair(mutated(content, changes)))
        with limited():
            read(path)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH
    path.write_bytes(repair(content))
    read(path)
    shutil.rmtree(tmp_path)
