"""Files that lead elsewhere, or claim to hold more than they do: one line, before memory is taken."""

import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import h5py
import numpy as np
import pytest
from PIL import Image

from vdvae_repr import pixels
from vdvae_repr.data import table
from vdvae_repr.data.open import open_source
from vdvae_repr.data.readers import arrays
from vdvae_repr.data.source import Source, image_extensions
from vdvae_repr.errors import DataError
from vdvae_repr.pixels import to_rgb

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)


@pytest.fixture
def refused(tmp_path):
    """Opens a file, which must be refused in one line that matches, without taking 64 MiB."""

    def check(name, message):
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match=message) as caught:
                [image.load() for image in open_source(tmp_path / name)]
            assert tracemalloc.get_traced_memory()[1] < 2**26
        finally:
            tracemalloc.stop()
        assert str(caught.value).isprintable()

    return check


def header(shape, kind="|u1"):
    """The start of a .npy file that claims a shape: NumPy's format, version 1."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def png(content=IMAGES[0]):
    buffer = io.BytesIO()
    Image.fromarray(content).save(buffer, "PNG")
    return buffer.getvalue()


# Formats


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n"]
)
def test_no_image_starts_another_program(tmp_path, monkeypatch, refused, content):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **_: started.append(args))
    monkeypatch.setattr("subprocess.check_call", lambda *args, **_: started.append(args))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo.png").write_bytes(content)
    refused("photos", "photo.png: .*(PostScript|a PDF), which is not read; save it")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(tmp_path / "photos" / "photo.png", "photo.png")
    refused("s.tar", "photo.png: .*which is not read")
    assert started == []


def test_files_of_other_formats_are_left_out_and_counted(tmp_path):
    assert {".png", ".jpg", ".tif", ".webp", ".bmp", ".gif", ".ppm"} <= image_extensions()
    assert not {".eps", ".ps", ".pdf", ".wmf", ".h5", ".psd"} & image_extensions()
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.eps").write_bytes(b"%!PS")
    assert open_source(tmp_path).notices == ("1 file left out: .eps (1)",)


# HDF5


def test_hdf5_reads_no_other_file(tmp_path, refused):
    (tmp_path / "secret").write_bytes(bytes(range(216)))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = IMAGES

    def write(fill):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            fill(file)

    def link(file):
        file["images"] = h5py.ExternalLink("other.h5", "/x")

    def link_beside(file):
        file["images"], file["deep/labels"] = IMAGES, h5py.ExternalLink("other.h5", "/x")

    def path_over_a_link(file):
        file["away"], file["images"] = h5py.ExternalLink("other.h5", "/"), h5py.SoftLink("/away/x")

    def storage(file):
        secret = [(str(tmp_path / "secret"), 0, 216)]
        file.create_dataset("images", (1, 8, 9, 3), np.uint8, external=secret)

    def virtual(file):
        layout = h5py.VirtualLayout(IMAGES.shape, np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", IMAGES.shape)
        file.create_virtual_dataset("images", layout)

    for fill in (link, link_beside, path_over_a_link, storage, virtual):
        write(fill)
        refused("a.h5", r"a.h5: '.*' leads to another file.*; refused: copy")


@pytest.mark.parametrize("rows", [slice(None), slice(1, 3)])
def test_virtual_data_of_the_file_itself_is_read_where_nothing_is_missing(tmp_path, refused, rows):
    taken = IMAGES[rows]

    def write(held, extra=0):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            layout = h5py.VirtualLayout((len(taken) + extra, *IMAGES.shape[1:]), np.uint8)
            layout[: len(taken)] = h5py.VirtualSource(".", "pixels", IMAGES.shape)[rows]
            file.create_virtual_dataset("images", layout)
            if held is not None:
                file["pixels"] = held

    write(IMAGES)
    assert np.array_equal(np.stack(list(open_source(tmp_path / "a.h5").read(0, 9))), taken)
    write(None)
    refused("a.h5", "images is made up of 'pixels', which is not in the file")
    write(IMAGES[:2])
    refused("a.h5", "images is made up of 'pixels', which does not hold so much")
    write(IMAGES, extra=1)
    refused("a.h5", "images has .* values, of which 216 are nowhere")


def test_pixels_that_were_never_written_are_no_black_images(tmp_path, refused):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", (4, 8, 9, 3), np.uint8)
    refused("a.h5", "images holds no values: it was never written")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", (4, 8, 9, 3), np.uint8, chunks=(1, 8, 9, 3))
        file["images"][0] = IMAGES[0]
    line, black = open_source(tmp_path / "a.h5").notices
    assert "images: 3 chunks of (1, 8, 9, 3) were never written" in line
    assert black.startswith("3 images are black, 0 everywhere, as row 1")


def test_hdf5_that_claims_too_much(tmp_path, monkeypatch, refused):
    def write(name, shape, chunks, kind=np.uint8):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["images" if name != "images" else "other"] = IMAGES
            data = file.create_dataset(name, shape, kind, chunks=chunks)
            data[(0,) * len(shape)] = 1

    write("images", (2**40, 8, 8), (1, 8, 8))
    refused("a.h5", "says to hold 1099511627776 images, in .* bytes; refused")
    write("images", (4, 2**20, 2**20), (1, 8, 8))
    refused("a.h5", "expected images of .* bytes and .* pixels at most")
    write("labels", (2**40,), (64,), np.int64)
    refused("a.h5", "labels int64 .* is too large; expected one value an image")
    monkeypatch.setattr(arrays, "COLUMN_BYTES", 2**16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"] = np.zeros((600, 8, 8), np.uint8), ["x" * 200] * 600
    refused("a.h5", "labels object .* is too large; expected one value an image")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        nested = file
        for _ in range(60):  # each group holds the next twice: 2**60 paths
            inside = nested.create_group("a")
            nested["b"] = inside
            nested = inside
        file["images"] = IMAGES
    assert len(open_source(tmp_path / "a.h5")) == 4


# Sizes


def test_arrays_that_claim_too_much(tmp_path, monkeypatch, refused):
    def npz(**members):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.npy", content)

    for shape in ((10**9, 64, 64, 3), (2**40, 2**40, 8), (-4, 8, 8)):
        (tmp_path / "a.npy").write_bytes(header(shape) + bytes(100))
        refused("a.npy", "a.npy: cannot be read .an array")
        npz(images=header(shape) + bytes(100))
        refused("a.npz", "an array")
    images = io.BytesIO()
    np.save(images, IMAGES)
    for shape, kind in (((10**12,), "<i8"), ((4,), "<U500000000")):
        npz(images=images.getvalue(), labels=header(shape, kind))
        refused("a.npz", "labels.npy: an array .* bytes, where 0 are there")
    with (tmp_path / "a.npy").open("wb") as file:  # with holes
        file.write(header((10**11, 2, 2)))
        file.truncate(4 * 10**11 + 128)
    refused("a.npy", "says to hold 100000000000 images, in .* bytes")
    monkeypatch.setattr(arrays, "COLUMN_BYTES", 2**20)
    npz(images=header((2**6, 2**8, 2**8)) + bytes(2**22))
    refused("a.npz", "would unpack from .* to .* bytes; refused: save it uncompressed")
    np.save(tmp_path / "a.npy", np.array([None]), allow_pickle=True)
    refused("a.npy", "an array of Python objects, which is not read")
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.array([None] * 4))
    refused("a.npz", "an array of Python objects, which is not read")


def test_tars_that_claim_too_much(tmp_path, refused):
    def write(kind, size, name="a.png"):
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, size
        with (tmp_path / "a.tar").open("wb") as file:
            file.write(member.tobuf(tarfile.GNU_FORMAT))
            file.truncate(2**32 + 2**16)  # with holes

    write(tarfile.REGTYPE, 2**32)
    refused("a.tar", "a.png: .*4294967296 bytes, where .* are the most")
    write(tarfile.REGTYPE, 2**40)
    refused("a.tar", "unexpected end of data")
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        write(kind, 2**32)
        refused("a.tar", "a header of 4294967296 bytes")
    for text in (b"[" * 200_000, b"9" * 5_000):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name, content in (("a.png", png()), ("a.json", text)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        refused("a.tar", "a.json: expected a label as text or JSON")


def test_tables_that_are_too_large(tmp_path, monkeypatch, refused):
    wide = ",".join(f"c{i}" for i in range(20_000))
    (tmp_path / "a.csv").write_text(f"file,{wide}\n")
    refused("a.csv", "expected 10000 columns at most, found 20001")
    (tmp_path / "a.csv").write_text("file," + "x" * 2**21)
    refused("a.csv", "line 1 is longer than 1048576 bytes")
    (tmp_path / "a.csv").write_text("file\na.png" + "," * 2**20)
    refused("a.csv", "line 2 is longer than 1048576 characters")
    rows = ('"' + "\n" * 2**10 + '"\n') * 2**10  # which are not looked at
    (tmp_path / "a.csv").write_text(f"{','.join('x' * 20_000)}\n{rows}")
    refused("a.csv", "expected 10000 columns at most, found 20000")
    monkeypatch.setattr(table, "TEXT_BYTES", 2**10)
    (tmp_path / "a.csv").write_text("file\n" + "a.png\n" * 2**10)
    refused("a.csv", "6149 bytes, where a table may have 1024")


def test_strips_of_a_large_image_are_those_of_a_small_one(monkeypatch):
    """Many pixels are converted strip by strip, as each conversion takes several copies."""
    rng = np.random.default_rng(0)
    for image in (
        Image.fromarray(rng.integers(0, 256, (30, 20, 4), dtype=np.uint8)),
        Image.fromarray(rng.integers(0, 2**16, (30, 20), dtype=np.uint16)),
    ):
        whole = np.asarray(to_rgb(image))
        monkeypatch.setattr(pixels, "STRIP", 70)
        assert np.array_equal(np.asarray(to_rgb(image)), whole)
        monkeypatch.undo()


def test_a_bomb_within_a_png_is_refused(tmp_path, refused):
    def chunk(kind, held):
        return (
            struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))
        )

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**22)))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + start + text)
    refused("photos", r"a.png: expected a readable image")


# Names


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": ("",)}, "ids: expected 1 to 4096 characters, found 0"),
        ({"ids": ("x" * 5000,)}, "ids: expected 1 to 4096 characters, found 5000"),
        ({"ids": ("a\0b",)}, "ids: expected texts of Unicode without NUL"),
        ({"ids": ("a\ud800",)}, "ids: expected texts of Unicode without NUL"),
        ({"ids": (7,)}, "ids: expected texts, found 7, of type int; write it as a text"),
        ({"label_names": (10,)}, "names of labels: expected texts, found 10, of type int"),
        ({"splits": (None,)}, "splits: expected texts, found None, of type NoneType"),
        ({"label_names": ("a", "a")}, "class name 'a' occurs twice"),
        ({"label_names": ("",)}, "names of labels: expected 1 to 4096 characters"),
        ({"label_names": ("a\udce9",)}, "names of labels: expected texts of Unicode"),
        ({"splits": ("a\0",)}, "splits: expected texts of Unicode"),
        ({"factors": {"a/b": np.zeros(1)}}, "no store can keep a factor called 'a/b'"),
        ({"factors": {"..": np.zeros(1)}}, "no store can keep a factor called"),
        ({"factors": {"": np.zeros(1)}}, "no store can keep a factor called ''"),
        (
            {"factors": {"a\0": np.zeros(1)}},
            r"no store can keep a factor called 'a\\x00', as it has",
        ),
        ({"factors": {"a\nb": np.zeros(1)}}, r"no store can keep a factor .* a line break"),
        ({"factors": {"é" * 101: np.zeros(1)}}, "no store can keep a factor .* 202 bytes of UTF-8"),
        ({"factors": {"a": np.zeros(2)}}, "factor 'a': expected 1 numbers or texts"),
        ({"factors": {"a": np.array(["\0x"])}}, "values of factor 'a': expected texts"),
        (
            {"factors": {"a": np.array([3], object)}},
            "values of factor 'a': expected numbers alone, or texts alone, found 3, of type int",
        ),
    ],
)
def test_names_that_no_store_keeps_are_refused_when_a_source_is_made(changed, message):
    given = {"ids": ("a.png",), "labels": np.array([-1]), **changed}
    with pytest.raises(DataError, match=f"^s: {message}") as caught:
        Source(name="s", reader=lambda index: IMAGES[0], **given)
    assert str(caught.value).isprintable()


def test_names_of_labels_in_a_json_that_no_store_keeps(tmp_path, refused):
    for label in ("a\0b", "\ud800", "x" * 5000):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name, content in (("a.png", png()), ("a.json", json.dumps(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        refused("a.tar", "names of labels: expected")


def test_notices_are_printable(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.x\x1b[2J").write_bytes(b"")
    lines = []
    assert open_source(tmp_path, notice=lines.append).notices == (
        r"1 file left out: .x\x1b[2j (1)",
    )
    assert all(line.isprintable() for line in lines)
