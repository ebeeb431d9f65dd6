import gzip
import io
import re
import shutil
import struct
import tarfile
import zlib

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import vdvae_repr as vr
from vdvae_repr.data.open import open_source
from vdvae_repr.data.source import Preprocessing
from vdvae_repr.errors import ConfigError, DataError


def saved(save):
    """The bytes of a file that holds three numbers, which `torch.save` or NumPy writes."""
    buffer = io.BytesIO()
    save(*((np.arange(3), buffer) if save is torch.save else (buffer, np.arange(3))))
    return buffer.getvalue()


def picture(path, color=(200, 100, 50), mode="RGB", size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, color)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(path)


def read(source):
    return [np.asarray(Preprocessing(size=8)(image)) for image in source.read(0, len(source))]


def test_class_folders_in_natural_order_with_splits(tmp_path):
    for name in ("train/b/10.png", "train/b/2.png", "train/a/1.png", "test/a/3.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(tmp_path)
    assert source.ids == ("test/a/3.png", "train/a/1.png", "train/b/2.png", "train/b/10.png")
    assert source.splits == ("test", "train", "train", "train")
    assert source.label_names == ("a", "b")
    assert source.labels.tolist() == [0, 0, 1, 1]


def test_flat_folder_takes_the_name_before_the_last_underscore(tmp_path):
    for name in ("Ann_Lee_1.png", "Ann_Lee_2.png", "Bo_1.png", "nobody.png"):
        picture(tmp_path / name)
    source = open_source(tmp_path)
    assert source.label_names == ("Ann_Lee", "Bo")
    assert source.labels.tolist() == [0, 0, 1, -1]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    picture(tmp_path / f"a_1.{suffix}", color=(255, 255, 255), mode=mode)
    (image,) = read(open_source(tmp_path))
    assert image.shape == (8, 8, 3)
    assert image.min() > 250


@pytest.mark.parametrize("crop", [0, -3])
def test_a_crop_of_nothing_is_refused(crop):
    with pytest.raises(DataError, match=f"expected pixels, 1 at least, found {crop}"):
        Preprocessing(size=64, crop=crop)


def test_crop_takes_the_centre():
    image = np.zeros((250, 250, 3), np.uint8)
    image[61:189, 61:189] = 255
    assert Preprocessing(size=128, crop=128)(image).min() == 255
    with pytest.raises(DataError, match="at least 300x300"):
        Preprocessing(size=64, crop=300)(image)


def test_tar_is_read_in_place(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(buffer, "PNG")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name in ("A_10.png", "A_9.png"):
            member = tarfile.TarInfo(name)
            member.size = len(buffer.getvalue())
            archive.addfile(member, io.BytesIO(buffer.getvalue()))
    source = open_source(tmp_path / "t.tar")
    assert source.ids == ("A_9.png", "A_10.png")
    assert read(source)[0][0, 0].tolist() == [1, 2, 3]


def test_tar_shards_by_a_pattern(tmp_path):
    for shard in (0, 1, 10):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (shard, 0, 0)).save(buffer, "PNG")
        with tarfile.open(tmp_path / f"s-{shard:02d}.tar", "w") as archive:
            for name in (f"b_{shard}.png", f"a_{shard}.png"):
                member = tarfile.TarInfo(name)
                member.size = len(buffer.getvalue())
                archive.addfile(member, io.BytesIO(buffer.getvalue()))
    source = open_source(str(tmp_path / "s-*.tar"))
    assert source.ids == ("a_0.png", "b_0.png", "a_1.png", "b_1.png", "a_10.png", "b_10.png")
    assert [int(image[0, 0, 0]) for image in read(source)] == [0, 0, 1, 1, 10, 10]
    assert source.label_names == ("a", "b")
    assert len(open_source(str(tmp_path / "s-{00..01}.tar"))) == 4
    words = open_source(str(tmp_path / "{s,s}-{10,00,01}.tar"))
    assert words.ids == ("a_10.png", "b_10.png", "a_0.png", "b_0.png", "a_1.png", "b_1.png")
    assert open_source(str(tmp_path / "{s,s}-{00..01}.tar")).ids == words.ids[2:]
    nested = open_source(str(tmp_path / "{s-{10..10},s-{00..01}}.tar"))
    assert nested.ids == words.ids
    for number in ("00", "01"):
        (tmp_path / number).mkdir()
        shutil.copy(tmp_path / f"s-{number}.tar", tmp_path / number / "s.tar")
    assert open_source(str(tmp_path / "{00,01}/s.tar")).ids == words.ids[2:]
    with pytest.raises(DataError, match=r"expected 2 shards, found no .*t-10\.tar"):
        open_source(str(tmp_path / "{s,t}-10.tar"))
    with pytest.raises(DataError, match=r"expected 3 shards, found no .*s-02\.tar"):
        open_source(str(tmp_path / "s-{00..02}.tar"))
    with pytest.raises(DataError, match=r"a range that ascends, found \{01\.\.00\}"):
        open_source(str(tmp_path / "s-{01..00}.tar"))
    with pytest.raises(DataError, match="expected tar shards, found none that match"):
        open_source(str(tmp_path / "t-*.tar"))
    pattern = re.escape(f"'{tmp_path}/*.tar'")
    with pytest.raises(DataError, match=f"tar shards are named by a pattern, as {pattern}"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=f"a pattern of several, as {pattern}, found a colon"):
        open_source(f"{tmp_path / 's-00.tar'}::{tmp_path / 's-01.tar'}")


def test_arrays(tmp_path):
    images = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([1, 0, 1, 0]))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["train/images"], file["test/images"] = images[:3], images[3:]
        file["train/labels"], file["test/labels"] = [0, 1, 1], [0]
    assert open_source(tmp_path / "a.npz").labels.tolist() == [1, 0, 1, 0]
    source = open_source(tmp_path / "a.h5")
    assert source.ids == ("train/0", "train/1", "train/2", "test/0")
    for other in (open_source(tmp_path / "a.npy"), open_source(images), source):
        assert np.array_equal(np.stack(list(other.read(0, 4))), images)
    assert np.array_equal(np.stack(list(open_source(images.astype(float)).read(0, 4))), images)
    with pytest.raises(DataError, match="uint8"):
        open_source(images.reshape(4, -1))


def test_manifest(tmp_path):
    picture(tmp_path / "x.png")
    csv = tmp_path / "m.csv"
    csv.write_text("file,label,split,age\nx.png,Ann,train,30\n")
    source = open_source(csv)
    assert (source.label_names, source.splits) == (("Ann",), ("train",))
    assert source.factors["age"].tolist() == ["30"]
    csv.write_text("file\nx.png\nx.png\n")
    with pytest.raises(DataError, match="occurs twice"):
        open_source(csv)
    csv.write_text("file\nmissing.png\n")
    with pytest.raises(DataError, match="line 2: no such file"):
        open_source(csv)
    csv.write_text("path\nx.png\n")
    with pytest.raises(DataError, match="column 'file'"):
        open_source(csv)


def test_digits_hold_back_a_third_of_each_class():
    source = open_source("digits")
    assert len(source) == 1797
    assert set(source.splits) == {"train", "test"}


def test_missing_and_empty(tmp_path):
    with pytest.raises(DataError, match="did you mean 'toy-faces'"):
        open_source("toyfaces")
    with pytest.raises(DataError, match=r"did you mean 'imagenet32'.* one of digits, .*cifar10, "):
        open_source("imagnet32")
    with pytest.raises(DataError, match="found none"):
        open_source(tmp_path)


def test_damaged_files_are_named(tmp_path):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    damaged = {
        "truncated.jpg": buffer.getvalue()[: len(buffer.getvalue()) // 2],
        "zero.jpg": b"",
        "text.png": b"this is text",
    }
    for name, content in damaged.items():
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: expected a readable image"):
            read(open_source(folder))


def test_decompression_bomb_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    png += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"
    (tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(DataError, match=r"bomb.png: more than \d+ pixels"):
        read(open_source(tmp_path))


def test_an_empty_name_is_refused():
    for empty in ("", "  "):
        with pytest.raises(DataError, match="the name is empty"):
            open_source(empty)
    with pytest.raises(ConfigError, match="root: expected a path, found an empty text"):
        open_source("cifar10", root="")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar", gzip.compress(b"x" * 2000, mtime=0), "compressed by gzip; unpack it"),
        ("a.tar.gz", gzip.compress(b"x" * 2000, mtime=0), "compressed by gzip; unpack it"),
        ("a.h5", b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        ("a.npz", b"<!doctype html><html>", "a web page"),
        ("a.zip", b"PK\x03\x04", "a zip; unpack it"),
        ("a.mat", b"MATLAB 5.0 MAT-file", "a MATLAB file; save its images as uint8"),
        ("a.png", b"\x89PNG", "a single image; give the folder"),
        ("a.xyz", b"?", r"found '\.xyz'; save its images"),
        ("a.npy", b"", "it is an empty file, of 0 bytes; get it again"),
        ("b.npz", b"PK\x03\x04", "cannot be read"),
        ("b.npy", saved(np.savez), r"a \.npz file; call it \.npz"),
        ("c.npz", saved(np.save), r"a NumPy array; call it \.npy"),
        ("download", saved(np.save), r"a NumPy array; call it \.npy"),
        ("b.tar", b"\x89HDF\r\n\x1a\n", r"an HDF5 file; call it \.h5"),
        ("b.h5", bytes(257) + b"ustar" + bytes(762), r"it is a tar; call it \.tar"),
        ("a.pt", saved(torch.save), "what torch.save wrote; save its images as uint8"),
        ("d.npy", saved(torch.save), "what torch.save wrote; save its images as uint8"),
    ],
)
def test_what_a_file_is_instead_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_source(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
    """A zip of another version, by its specification, and a file that may not be read."""
    np.savez(tmp_path / "a.npz", images=np.full((2, 8, 9), 99, np.uint8))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99  # version needed to extract
    for name in ("b.npz", "b.npy", "b.tar", "b.xyz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            open_source(tmp_path / name)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("zipfile.ZipFile", refuse)
    for name in ("a.npz", "b.xyz"):
        with pytest.raises(DataError, match=name):
            open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"x" * 2000, mtime=0), "it is compressed by gzip; unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "it is a Git LFS pointer"),
        (b"<!doctype html><html>", "it is a web page"),
        (b"", "it is an empty file"),
        (b"\0" * 511 + b"x", "cannot be read"),
        (None, "cannot be read"),  # a folder
    ],
)
def test_of_many_shards_the_one_that_is_damaged_is_named(tmp_path, content, message):
    for number in range(3):
        with tarfile.open(tmp_path / f"s-{number}.tar", "w") as archive:
            Image.new("L", (8, 8), 99).save(tmp_path / "a.png")
            archive.add(tmp_path / "a.png", arcname="a.png")
    (tmp_path / "s-1.tar").unlink()
    if content is None:
        (tmp_path / "s-1.tar").mkdir()
    else:
        (tmp_path / "s-1.tar").write_bytes(content)
    with pytest.raises(DataError, match=f"s-1.tar: {message}"):
        open_source(str(tmp_path / "s-*.tar"))


def test_hidden_shards_are_matched_by_no_pattern_but_their_own(tmp_path):
    for name in ("s-0.tar", "s-1.tar", ".old-s-0.tar", "._s-1.tar"):
        with tarfile.open(tmp_path / name, "w") as archive:
            Image.new("L", (8, 8), 99).save(tmp_path / "a.png")
            archive.add(tmp_path / "a.png", arcname=f"{name}.png".lstrip("."))
    assert len(open_source(str(tmp_path / "*.tar"))) == 2
    assert len(open_source(str(tmp_path / ".old*.tar"))) == 1


def test_rows_are_chosen_in_the_order_given(tmp_path):
    images = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 9), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(10) % 2)
    np.save(tmp_path / "rows.npy", np.array([7, 3]))
    np.save(tmp_path / "mask.npy", np.arange(10) == 4)
    (tmp_path / "rows.txt").write_text("7\n3\n")
    whole = open_source(tmp_path / "a.npz")
    for rows, expected in (
        ("2:5", [2, 3, 4]),
        (":2", [0, 1]),
        ("8:", [8, 9]),
        (tmp_path / "rows.npy", [7, 3]),
        (str(tmp_path / "rows.txt"), [7, 3]),
        (tmp_path / "mask.npy", [4]),
        ([9, 0], [9, 0]),
    ):
        source = open_source(tmp_path / "a.npz", rows=rows)
        assert source.ids == tuple(map(str, expected))
        assert [int(image[0, 0]) for image in source.read(0, 10)] == expected
        assert source.labels.tolist() == [row % 2 for row in expected]
        assert source.fingerprint() != whole.fingerprint()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0:11", "expected rows up to 10"),
        ("5:5", "rows 5:5: expected FIRST below LAST, found 5 and 5"),
        ("9:3", "rows 9:3: expected FIRST below LAST, found 9 and 3"),
        ([10], "expected rows from 0 to 9, which array has, found 10"),
        ([-1], "found -1"),
        ([2, 2], "row 2 occurs twice"),
        ([0.5], "expected numbers of rows"),
        ("nowhere.txt", "expected FIRST:LAST or a text or .npy file"),
    ],
)
def test_rows_that_are_not_there_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        open_source(np.zeros((10, 8, 9), np.uint8), rows=rows)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("cat ", "cat"), "'cat' and 'cat ' are two classes; rename one if they are the same"),
        (("Cat", "cat"), "'Cat' and 'cat' are two classes; rename one if they are the same"),
        (("1", "1.0"), "'1' and '1.0' are two classes; rename one if they are the same"),
        (
            ("nan", "dog"),
            "label_names call a class 'nan'; label its images -1 if it stands for none",
        ),
        (("cat", "dog"), None),
    ],
)
def test_names_of_classes_that_surprise_are_said_of_a_source_by_hand_once(names, line):
    source = vr.Source(
        name="mine", ids=("a", "b"), reader=lambda i: np.zeros((8, 8, 3), np.uint8) + 9,
        labels=np.array([0, 1]), label_names=names,
    )  # fmt: skip
    said = []
    opened = open_source(source, notice=said.append)
    assert said == ([f"mine: {line}"] if line else [])
    assert opened.label_names == names
    assert (opened is source) == (line is None)
    again = open_source(opened, rows="0:2", notice=said.append)
    assert len(said) == len(again.notices) == (line is not None)
    assert open_source(source.select([0]), notice=said.append).notices == (
        (line,) if names[0] == "nan" else ()
    )


@pytest.mark.parametrize(
    ("splits", "lines"),
    [
        (
            ("train", "eval", "eval"),
            ["no split is called 'eval' (2 images): what goes by splits leaves them out; "
             "rename them to train, val, test"],
        ),
        (("train", "", "test"), ["1 image belongs to no split"]),
        (("train", "val", "test"), []),
    ],
)  # fmt: skip
def test_splits_of_a_source_by_hand_that_mean_none_are_said_as_those_of_a_table_are(
    tmp_path, splits, lines
):
    source = vr.Source(
        name="mine", ids=("a", "b", "c"), reader=lambda i: np.zeros((8, 8, 3), np.uint8) + 9,
        labels=np.array([0, 1, 1]), splits=splits,
    )  # fmt: skip
    said = []
    open_source(source, notice=said.append)
    assert said == [f"mine: {line}" for line in lines]
    (tmp_path / "t.csv").write_text(
        "file,label,split\n" + "".join(f"{i}.png,a,{split}\n" for i, split in enumerate(splits))
    )
    for i in range(3):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{i}.png")
    of_table = []
    open_source(tmp_path / "t.csv", notice=of_table.append)
    assert [line.partition(": ")[2] for line in of_table if "split" in line] == lines


def test_options_of_data_sets_by_name_are_said_to_be_unused_elsewhere(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(folder / "0.png")
    for data in (folder, str(folder), "toy-faces:2x1", np.full((2, 8, 8, 3), 9, np.uint8)):
        said = []
        source = open_source(data, notice=said.append)
        before = list(said)
        open_source(data, root=tmp_path, notice=said.append)
        open_source(data, download=True, root="d", notice=said.append)
        own = [line for line in said if line not in before]
        assert own[0] == (
            f'{source.name}: root="{tmp_path}" counts for nothing: it is for data sets by name whose '
            "files are published, as cifar10"
        )
        assert own[1].startswith(
            f'{source.name}: root="d" and download=True count for nothing: they'
        )
        assert len(own) == 2


def test_a_store_among_the_images_is_not_one_of_them(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    before = open_source(tmp_path).fingerprint()
    (tmp_path / "latents.h5").write_bytes(b"x")
    (tmp_path / "latents.h5.lock").write_bytes(b"")
    assert open_source(tmp_path).ids == ("a.png",)
    assert open_source(tmp_path).fingerprint() == before


def test_a_file_of_one_row(tmp_path):
    np.save(tmp_path / "rows.npy", np.array([2]))
    images = np.zeros((4, 8, 8, 3), np.uint8)
    assert open_source(images, rows=tmp_path / "rows.npy").ids == ("2",)
    for data in ([images], None, 3):
        with pytest.raises(DataError, match="data: expected a folder, a file, a name, an array"):
            open_source(data)


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("a.xlsx", b"PK\x03\x04", "a spreadsheet; save the table as .csv"),
        ("a.txt", b"file,label\n", "call it .csv"),
    ],
)
def test_tables_of_other_kinds_are_told_what_to_be(tmp_path, name, content, advice):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=advice):
        open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({1, 2}, "rows: expected rows in order, found set; give them as a list"),
        ({1: 2}, "rows: expected rows in order, found dict"),
        (np.ma.masked_equal([1, 2], 2), "rows: expected numbers of rows, found a masked array, 1"),
        (np.ma.masked_equal(np.arange(10) < 3, False), "found a masked array, 7 values"),
    ],
)
def test_rows_without_order_or_behind_a_mask_are_refused(rows, message):
    images = np.zeros((10, 8, 9), np.uint8)
    for choose in (
        lambda: open_source(images, rows=rows),
        lambda: open_source(images).select(rows),
    ):
        with pytest.raises(DataError, match=message):
            choose()


def test_a_name_of_rows_that_no_file_has_is_one_line():
    with pytest.raises(DataError, match=r"rows: expected FIRST:LAST or a text or .npy file"):
        vr.open_source("toy-faces:2x2", rows="a\0b")


@pytest.mark.parametrize("text", ["1_0 3", "3 0x1", "2 1.0"])
def test_rows_in_a_file_are_digits(tmp_path, text):
    """Python reads 1_0 as 10."""
    (tmp_path / "rows.txt").write_text(text)
    with pytest.raises(DataError, match=r"rows: expected FIRST:LAST .* is no number of a row"):
        open_source(np.zeros((11, 8, 9), np.uint8), rows=tmp_path / "rows.txt")


@pytest.mark.parametrize(
    "text", ["0,5\n1,6\n2,7\n", "5 6\n7 8\n", "0\t3\t1\n1\t4\t1\n\n", "5, 6\n7\n"]
)
def test_rows_in_a_table_of_columns_are_refused(tmp_path, text):
    """One column may be an index, as pandas writes."""
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(
        DataError, match=r"rows: .*\(lines with several numbers, as .*one number a line"
    ):
        open_source(np.zeros((10, 8, 9), np.uint8), rows=tmp_path / "rows.csv")


@pytest.mark.parametrize("text", ["5, 6, 7", "\n5, 6, 7,\n\n", "\n5\n6,\n7\n"])
def test_rows_on_one_line_or_one_a_line_are_read(tmp_path, text):
    (tmp_path / "rows.csv").write_text(text)
    source = open_source(np.zeros((10, 8, 9), np.uint8), rows=tmp_path / "rows.csv")
    assert source.ids == ("5", "6", "7")
