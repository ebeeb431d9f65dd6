import os

import numpy as np
import pytest
from PIL import Image

from vdvae_repr.data.open import open_source
from vdvae_repr.errors import DataError


def put(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path, "PNG")


@pytest.mark.parametrize(
    "folder",
    [
        "@Recently-Snapshot",
        "@sharesnap",
        "LOST.DIR",
        "Network Trash Folder",
        "Temporary Items",
        "RECYCLER",
        "FOUND.000",
    ],
)
def test_folders_of_servers_and_systems_are_no_classes(tmp_path, folder):
    for name in ("cat", "dog", folder):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8), 99).save(tmp_path / name / "1.png")
    source = open_source(tmp_path)
    assert source.label_names == ("cat", "dog")
    assert source.notices == (f"1 folder left out: {folder}",)


def test_folders_of_numbers_that_may_stand_for_none_are_said(tmp_path):
    for name in ("0", "1", "-1", "255"):
        put(tmp_path / name / "1.png")
    said = "labels '-1' and '255' are each a class of their own"
    assert any(said in line for line in open_source(tmp_path).notices)


def test_hidden_and_system_folders_are_left_out_and_named(tmp_path):
    for name in ("cat", "dog", ".ipynb_checkpoints", ".dirs", "@eaDir", "__MACOSX"):
        put(tmp_path / name / "1.png")
    put(tmp_path / "cat" / "._1.png")
    put(tmp_path / "cat" / "@eaDir" / "1.png")
    source = open_source(tmp_path)
    assert source.ids == ("cat/1.png", "dog/1.png")
    assert source.label_names == ("cat", "dog")
    assert source.notices == (
        "1 file left out: hidden (1); 5 folders left out: .dirs, .ipynb_checkpoints, @eaDir, __MACOSX",
    )


def test_what_is_left_out_is_counted(tmp_path):
    put(tmp_path / "a.png")
    for name in ("b.heic", "c.HEIC", "README"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "d.png").symlink_to("nowhere.png")
    assert open_source(tmp_path).notices == (
        "4 files left out: .heic (2), broken link (1), no extension (1); convert HEIC to JPEG",
    )
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"found none in it \(4 files left out: .heic"):
        open_source(tmp_path)


def test_links_are_followed_but_never_in_a_circle(tmp_path):
    put(tmp_path / "img" / "cat" / "0.png")
    put(tmp_path / "elsewhere" / "dog" / "1.png")
    (tmp_path / "img" / "dog").symlink_to("../elsewhere/dog")
    (tmp_path / "img" / "cat" / "again").symlink_to("..")
    (tmp_path / "elsewhere" / "dog" / "self").symlink_to(".")
    (tmp_path / "img" / "dog.png").symlink_to("cat/0.png")
    source = open_source(tmp_path / "img")
    assert source.ids == ("cat/0.png", "dog.png", "dog/1.png")
    assert source.notices == (
        "2 files left out: link to a folder above it (2)",
        "1 image is the file of another image, by links, as cat/0.png and dog.png: each counts as an image",
        "1 image has no label, as dog.png",
    )


def test_a_name_that_is_not_utf8_is_percent_encoded(tmp_path):
    put(tmp_path / "caf" / "a.png")
    plain = (tmp_path / "caf" / "a.png").read_bytes()
    folder = bytes(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102 (a Path holds no bytes)
    with open(folder + b"/\xfc.png", "wb") as file:  # noqa: PTH123
        file.write(plain)
    source = open_source(tmp_path)
    assert source.ids == ("caf%E9/%FC.png", "caf/a.png")
    assert source.label_names == ("caf", "caf%E9")
    assert source[0].size == (8, 8)


def test_upper_case_extensions(tmp_path):
    put(tmp_path / "A.PNG")
    assert open_source(tmp_path).ids == ("A.PNG",)


def test_images_beside_class_folders_and_masks_are_said(tmp_path):
    for name in ("cat/1.png", "cat/1.mask.png", "dog/2.png", "dog/2.3.png", "root.png"):
        put(tmp_path / name)
    source = open_source(tmp_path)
    assert source.labels.tolist() == [0, 0, 1, 1, -1]
    assert source.notices == (
        "1 image has no label, as root.png",
        "1 image is called like a part of another, as cat/1.mask.png: it is read as an image of its own",
    )


def test_folders_of_systems_are_left_out_in_any_case(tmp_path):
    names = ("#snapshot", "~snapshot", "System Volume Information", "$Recycle.Bin", "@eadir")
    names += ("__pycache__", "Thumbs.db", "lost+found")
    for name in (*names, "cat"):
        put(tmp_path / name / "1.png")
    source = open_source(tmp_path)
    assert source.ids == ("cat/1.png",)
    assert source.notices[0].startswith("8 folders left out: #snapshot")


def test_a_link_to_itself_is_left_out_and_counted(tmp_path):
    put(tmp_path / "cat" / "0.png")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "cat" / "1.png").symlink_to("1.png")
    source = open_source(tmp_path)
    assert source.ids == ("cat/0.png",)
    (line,) = source.notices
    assert line.startswith("2 files left out: link that cannot be followed: ")


def test_two_classes_of_one_name_are_said(tmp_path):
    for name in ("fold1/cat", "fold2/cat"):
        put(tmp_path / name / "0.png")
    source = open_source(tmp_path)
    assert source.label_names == ("fold1/cat", "fold2/cat")
    (line,) = source.notices
    assert line.startswith("'fold1/cat' and 'fold2/cat' are two classes; give labels in a table")


def test_an_image_that_is_there_twice_by_links_is_said(tmp_path):
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "b" / "2.png")
    assert open_source(tmp_path).notices == ()
    os.link(tmp_path / "a" / "1.png", tmp_path / "b" / "1.png")
    (tmp_path / "b" / "3.png").symlink_to("../a/1.png")
    assert open_source(tmp_path).notices == (
        "2 images are the file of another image, by links, as a/1.png and b/1.png: "
        "each counts as an image",
    )


def test_folders_without_images_are_said(tmp_path):
    put(tmp_path / "train" / "a" / "1.png")
    put(tmp_path / "train" / "b" / "2.png")
    (tmp_path / "val" / "a").mkdir(parents=True)
    (tmp_path / "val" / "b").mkdir()
    empty = "folder val holds no image, and is neither a class nor a split"
    assert empty in open_source(tmp_path).notices
    (tmp_path / "train" / "c").mkdir()
    line = "2 folders hold no image, as train/c: they are neither classes nor splits"
    assert line in open_source(tmp_path).notices
