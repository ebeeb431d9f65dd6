import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from vdvae_repr.data.open import open_source
from vdvae_repr.errors import DataError


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, members, links=()):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, kind, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return path


def labels(source):
    return [None if k < 0 else source.label_names[k] for k in source.labels]


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_labels_lie_beside_the_images(tmp_path, kind):
    members = {}
    for i, label in enumerate(("dog", "cat", "10", None)):
        members[f"{i:03d}.png"] = png(i)
        if label is not None:
            text = json.dumps({"label": label, "width": 8}) if kind == "json" else f"{label}\n"
            members[f"{i:03d}.{kind}"] = text.encode()
    source = open_source(write(tmp_path / "s.tar", members))
    assert source.ids == ("000.png", "001.png", "002.png", "003.png")
    assert labels(source) == ["dog", "cat", "10", None]
    assert source.notices == (
        f"labels are read from the .{kind} beside each image; 1 image has none",
    )


def test_several_images_of_a_sample_share_its_label(tmp_path):
    """WebDataset groups members by the name up to its first dot."""
    members = {"d/0.left.png": png(1), "d/0.right.png": png(2), "d/0.cls": b"7", "e/0.cls": b"8"}
    source = open_source(write(tmp_path / "s.tar", members | {"e/0.png": png(3)}))
    assert labels(source) == ["7", "7", "8"]


def test_what_holds_no_label_is_said(tmp_path):
    members = {"0.png": png(0), "0.txt": b"a photo of a dog", "0.json": b'{"width": 8}'}
    source = open_source(write(tmp_path / "s.tar", members))
    assert labels(source) == [None]
    assert source.notices == (
        "no labels are read from the .json and .txt beside the images",
        "2 files left out: .json (1), .txt (1)",
    )
    with pytest.raises(DataError, match=r"s.tar: 0.json: expected a label as text or JSON"):
        open_source(write(tmp_path / "s.tar", {"0.png": png(0), "0.json": b"{"}))


def test_hidden_members_are_left_out(tmp_path):
    names = ("a/1.png", "__MACOSX/a/._1.png", "a/.x.png", "@eaDir/1.png", "./b/1.png")
    source = open_source(write(tmp_path / "s.tar", {name: png(0) for name in names}))
    assert source.ids == ("a/1.png", "b/1.png")
    assert source.notices == ("3 files left out: hidden (3)",)


def test_links_are_what_they_lead_to(tmp_path):
    links = [("b/2.png", tarfile.LNKTYPE, "a/1.png"), ("c/3.png", tarfile.SYMTYPE, "../a/1.png")]
    links.append(("d/4.png", tarfile.SYMTYPE, "nowhere.png"))
    source = open_source(write(tmp_path / "s.tar", {"a/1.png": png(9)}, links))
    assert labels(source) == ["a", "b", "c"]
    assert [image.getpixel((0, 0)) for image in source] == [9, 9, 9]
    assert source.notices == (
        "2 images are the file of another image, by links, as a/1.png and b/2.png: each counts as an image",
        "1 file left out: link to what is not in the tar (1)",
    )


@pytest.mark.parametrize("folders_too", [True, False])
def test_links_to_folders_of_a_tar_are_said_to_be_what_they_are(tmp_path, folders_too):
    for name in ("data/cat/1.png", "data/cat/2.png", "train/dog/1.png"):
        path = tmp_path / "f" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(1))
    (tmp_path / "f/train/cat").symlink_to("../data/cat")
    (tmp_path / "f/train/puss").symlink_to("cat")  # to a link to a folder
    (tmp_path / "f/train/dog/2.png").symlink_to("../cat/2.png")  # through one
    (tmp_path / "f/data/above").symlink_to("..")
    with tarfile.open(tmp_path / "f.tar", "w") as archive:
        for path in sorted((tmp_path / "f").rglob("*")):
            if folders_too or path.is_symlink() or path.is_file():
                archive.add(path, arcname=path.relative_to(tmp_path / "f"), recursive=False)
    source = open_source(tmp_path / "f.tar")
    assert source.ids == ("data/cat/1.png", "data/cat/2.png", "train/dog/1.png")
    assert source.notices[-1] == (
        "4 files left out: link to a folder (4); such links are not followed in a tar: pack with tar -h"
    )


@pytest.mark.parametrize(
    ("links", "ids", "why"),
    [
        ([("b.png", "c.png"), ("c.png", "a.png")], ("a.png", "b.png", "c.png"), None),  # of links
        (
            [("b.png", "c.png"), ("c.png", "b.png")],
            ("a.png",),
            "link that leads to itself, or over 40 others (2)",
        ),
        (
            [(f"{n}.png", f"{n + 1}.png") for n in range(9, 60)],
            ("a.png",),
            "link that leads to itself, or over 40 others (",
        ),
        ([("b.png", "b.png")], ("a.png",), "link that leads to itself, or over 40 others (1)"),
        ([("b.png", ".h.png")], ("a.png",), "hidden (1), link to what is left out (1)"),
        ([("a.png", "b.png")], ("a.png",), "link called as another member (1)"),
        ([("b.png", "../a.png")], ("a.png",), "link to what is not in the tar (1)"),
    ],
)
def test_why_a_link_in_a_tar_is_left_out_is_said(tmp_path, links, ids, why):
    members = {"a.png": png(9)} | ({".h.png": png(1)} if why and "hidden" in why else {})
    leads = [(name, tarfile.SYMTYPE, target) for name, target in links]
    source = open_source(write(tmp_path / "s.tar", members, leads))
    assert source.ids == ids
    assert [image.getpixel((0, 0)) for image in source] == [9] * len(ids)
    assert any(why in line for line in source.notices) if why else len(source.notices) == 1


def test_links_across_the_splits_of_a_tar_are_said_as_in_the_folder_that_it_is_of(tmp_path):
    for name in ("train/cat/0.png", "train/dog/0.png", "test/dog/3.png"):
        path = tmp_path / "f" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(png(len(name)))
    (tmp_path / "f" / "test" / "cat").mkdir()
    (tmp_path / "f" / "test" / "cat" / "7.png").hardlink_to(tmp_path / "f" / "train/cat/0.png")
    with tarfile.open(tmp_path / "f.tar", "w") as archive:
        archive.add(tmp_path / "f", arcname=".")
        assert any(member.islnk() for member in archive.getmembers())
    of_tar, of_folder = open_source(tmp_path / "f.tar"), open_source(tmp_path / "f")
    assert of_tar.ids == of_folder.ids
    assert of_tar.notices == of_folder.notices
    assert "as test/cat/7.png and train/cat/0.png" in of_tar.notices[0]


def test_shards_of_several_splits(tmp_path):
    for name in ("train-000", "train-001", "val-000"):
        write(tmp_path / f"x-{name}.tar", {f"{name}.png": png(0)})
    assert open_source(str(tmp_path / "x-*.tar")).splits == ("train", "train", "val")
    assert set(open_source(str(tmp_path / "x-train-*.tar")).splits) == {"train"}
    assert set(open_source(str(tmp_path / "x-train-000.tar")).splits) == {""}
    for name in ("trainset-0", "TestSet-0"):
        write(tmp_path / f"z-{name}.tar", {f"{name}.png": png(0)})
    assert set(open_source(str(tmp_path / "z-*.tar")).splits) == {"train", "test"}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("dev-train-0", "dev-test-0"), "train test"),
        (("exp-test-train-0", "exp-test-val-0"), "train val"),
        (("mytest_train-0", "mytest_val-0"), "train val"),
        (("train2017-0", "val2017-0", "valid_images-0"), "train val val"),
        (("a.Training-1", "a.TestSet-1"), "train test"),
        (("in-train-0000", "in-train-0146"), "train train"),
        (("dev-0", "val-0"), "val val"),
    ],
)
def test_what_names_of_shards_do_not_share_is_their_split(tmp_path, names, splits):
    for name in names:
        write(tmp_path / f"{name}.tar", {f"{name}.png": png(0)})
    source = open_source(str(tmp_path / "*.tar"))
    ids = [f"{name}.png" for name in names]
    found = dict(zip(source.ids, source.splits, strict=True))
    assert found == dict(zip(ids, splits.split(), strict=True))
    assert any(
        line.startswith("splits are read off the names of shards") for line in source.notices
    )


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("train_val-0", "test-0"), "train_val-0"),
        (("trainval-0", "test-0"), "trainval-0"),
        (("train_test_mixed-0", "val-0"), "train_test_mixed-0"),
        (("no-train-0", "test-0"), "no-train-0"),
        (("train_extra-0", "train-0", "test-0"), "train_extra-0"),
        (("dev-kit-0", "train-0", "test-0"), "dev-kit-0"),
        (("test-drive-0", "train-ride-0"), "test-drive-0"),
        (("train-0", "train-test-0"), "train-0"),
        (("train-0", "test-0", "extra-0"), "extra-0"),
        (("dev-train-0", "dev-train-1"), "dev-train-0"),
        (("Trn-0", "tst-0", "trn-1"), ""),
        (("fit", "eval"), ""),
        (("cat-0", "dog-0"), None),
        (("latest-0", "pretrain-0"), None),
        (("eval-0", "eval-1"), None),
    ],
)
def test_names_of_shards_that_are_not_all_splits_tell_none(tmp_path, names, first):
    """A folder `train_val` is no split either."""
    for name in names:
        write(tmp_path / f"{name}.tar", {f"{name}.png": png(0)})
    source = open_source(str(tmp_path / "*.tar"))
    assert set(source.splits) == {""}
    said = [line for line in source.notices if "names of shards" in line]
    assert len(said) == (first is not None)
    expected = (
        f"as {first}.tar tells no single split" if first else "is the name of none; name each"
    )
    assert all(expected in line for line in said)


@pytest.mark.parametrize(
    ("folders", "pattern", "splits"),
    [
        (("train", "test"), "{train,test}/*.tar", "train test"),
        (("Training", "validation"), "{Training,validation}/a-0.tar", "train val"),
        (("x-train", "x-val"), "*/*.tar", "train val"),
        (("train", "test"), "train/{.,../test}/*.tar", "train test"),
        (("train/cat", "test/dog"), "{train/cat,test/dog}/*.tar", "train test"),
        (("one/train", "two/train"), "{one,two}/train/*.tar", "train train"),
        (("one", "two"), "{one,two}/*.tar", None),
        (("fit", "eval"), "{fit,eval}/*.tar", "'eval' is the name of none"),
        (("train", "extra"), "{train,extra}/*.tar", "extra tells no single split"),
    ],
)
def test_folders_of_shards_tell_splits(tmp_path, folders, pattern, splits):
    """As folders of images do; members of one name are told apart by the shards' folders."""
    for number, folder in enumerate(folders):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / "a-0.tar", {"0.png": png(number)})
    source = open_source(tmp_path / pattern)
    said = [line for line in source.notices if "folders of shards" in line]
    if splits in ("train test", "train val", "train train"):
        expected = dict(
            zip((f"{folder}/a-0/0.png" for folder in folders), splits.split(), strict=True)
        )
        assert dict(zip(source.ids, source.splits, strict=True)) == expected
        assert said[0].startswith("splits are read off the folders of shards, as ")
    else:
        assert set(source.splits) == {""}
        assert [splits in line for line in said] == [True] * (splits is not None)
    assert [image.getpixel((0, 0)) for image in source] == [0, 1]


def test_folders_and_names_of_shards_that_differ_tell_no_splits(tmp_path):
    for folder, name in (("train", "test"), ("test", "train")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / f"{name}.tar", {f"{name}.png": png(0)})
    source = open_source(tmp_path / "*" / "*.tar")
    assert set(source.splits) == {""}
    assert any(
        "names of shards and of their folders tell different ones" in line
        for line in source.notices
    )


def test_a_pattern_may_stand_in_a_folder_whose_name_looks_like_one(tmp_path):
    folder = tmp_path / "s[12]" / ".kept"
    folder.mkdir(parents=True)
    for name in ("a-10", "a-2", ".hidden"):
        write(folder / f"{name}.tar", {f"{name.strip('.')}.png": png(0)})
    assert open_source(folder / "*.tar").ids == ("a-2.png", "a-10.png")
    (folder.parent / "@eaDir").mkdir()
    write(folder.parent / "@eaDir" / "a-3.tar", {"3.png": png(0)})
    write(folder.parent / ".b.tar", {"4.png": png(0)})
    assert open_source(folder.parent / ".k*" / ".hid*.tar").ids == ("hidden.png",)
    assert open_source(folder.parent.parent / "*" / ".b.tar").ids == ("4.png",)
    with pytest.raises(DataError, match="none that match"):
        open_source(folder.parent / "*" / "a-3.tar")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_shard_that_is_a_link_to_another_is_said(tmp_path, link):
    write(tmp_path / "s-0.tar", {"0.png": png(0), "1.png": png(1)})
    link(tmp_path / "s-0.tar", tmp_path / "s-1.tar")
    assert any(
        "2 images are the file of another image, by links, as s-0/0.png and s-1/0.png" in line
        for line in open_source(tmp_path / "s-*.tar").notices
    )


@pytest.mark.parametrize("sidecars", [False, True])
def test_labels_that_may_stand_for_none_are_said_once(tmp_path, sidecars):
    """Of folders as of files beside the images."""
    members = {}
    for label in ("0", "1", "-1"):
        members[f"{label}/{label}.png"] = png(0)
        if sidecars:
            members[f"{label}/{label}.cls"] = label.encode()
    write(tmp_path / "s.tar", members)
    said = [line for line in open_source(tmp_path / "s.tar").notices if "label '-1'" in line]
    assert said == ["label '-1' is a class of its own; leave a label out where there is none"]


def test_a_name_that_is_not_utf8(tmp_path):
    with tarfile.open(
        tmp_path / "s.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT
    ) as archive:
        member = tarfile.TarInfo("caf\xe9.png")
        member.size = len(png(5))
        archive.addfile(member, io.BytesIO(png(5)))
    source = open_source(tmp_path / "s.tar")
    assert source.ids == ("caf%E9.png",)
    assert source[0].getpixel((0, 0)) == 5


def test_labels_of_json_are_numbers_or_words_or_none(tmp_path):
    """A whole number is one class however JSON writes it; what stands for none is none."""
    held = [
        "3",
        "3.0",
        '"3"',
        '{"label": 3.0}',
        '""',
        '"nan"',
        '{"cls": "NA"}',
        "NaN",
        "null",
        "[]",
    ]
    members = {f"{i}.json": text.encode() for i, text in enumerate(held)}
    members |= {f"{i}.png": png(i) for i in range(len(held))}
    source = open_source(write(tmp_path / "s.tar", members))
    assert labels(source) == ["3"] * 4 + [None] * 6
    assert source.label_names == ("3",)
    assert source.notices[0].endswith("6 images have none")
    assert source.notices[1:] == ("labels '3' and '3.0' are one class",)


@pytest.mark.parametrize("label", ["label", "caption"])
def test_splits_in_json_are_not_dropped_unsaid(tmp_path, label):
    held = [{label: "cat", "split": "fold1"}, {label: "dog", "subset": "Train"}, {label: "dog"}]
    members = {f"{i}.json": json.dumps(value).encode() for i, value in enumerate(held)}
    members |= {f"{i}.png": png(i) for i in range(3)}
    source = open_source(write(tmp_path / "s.tar", members))
    assert (
        "no splits are read from the .json beside the images; found 'split' (1), 'subset' (1)"
        in source.notices
    )


def test_a_whole_number_is_one_class_in_text_and_json(tmp_path):
    members = {f"{i}.png": png(i) for i in range(3)}
    for kind, held in (("cls", ["1", "1.0", " 1\n"]), ("json", ["1", "1.0", '"1.0"'])):
        texts = {f"{i}.{kind}": text.encode() for i, text in enumerate(held)}
        assert labels(open_source(write(tmp_path / "s.tar", members | texts))) == ["1"] * 3
        texts[f"0.{kind}"] = b"0.5"
        with pytest.raises(DataError, match=r"s.tar: expected labels that are classes"):
            open_source(write(tmp_path / "s.tar", members | texts))


def test_fields_of_a_sample_are_no_images(tmp_path):
    names = (
        "0.jpg",
        "0.seg.png",
        "0.depth.png",
        "a/1.png",
        "a/1.mask.png",
        "a/1.2.png",
        "b/1.mask.png",
    )
    members = {name: png(0) for name in names} | {"0.txt": b"a photo"}
    source = open_source(write(tmp_path / "s.tar", members))
    assert source.ids == ("0.jpg", "a/1.2.png", "a/1.png", "b/1.mask.png")
    assert "further image of a sample, as 0.depth.png (3)" in source.notices[-1]


def test_of_a_photo_and_a_mask_of_a_sample_the_photo_is_read(tmp_path):
    members = {"0.png": png(0), "0.jpg": png(1), "0.cls": b"x", "1.png": png(2), "1.jpg": png(3)}
    source = open_source(write(tmp_path / "s.tar", members))
    assert source.ids == ("0.jpg", "1.jpg", "1.png")  # nothing says that the second is a sample


def test_unlabelled_members_and_shards_of_one_split_are_said(tmp_path):
    members = {"cat/1.png": png(0), "my_root.png": png(0)}
    source = open_source(write(tmp_path / "s.tar", members))
    assert labels(source) == ["cat", None]
    assert source.notices == ("1 image has no label, as my_root.png",)
    for name in ("train-0", "dev-0", "val-0"):
        write(tmp_path / f"y-{name}.tar", {f"{name}.png": png(0)})
    assert "'dev' and 'val' are one split, val" in open_source(str(tmp_path / "y-*.tar")).notices


@pytest.mark.parametrize("name", ["img.{:03d}", "v1.5_{}", "2024.01.{:02d}", "d.x/cat.{}"])
@pytest.mark.parametrize("kind", ["cls", "json"])
def test_names_with_dots_have_labels_of_their_own(tmp_path, name, kind):
    members = {}
    for i in range(3):
        members |= {f"{name.format(i)}.png": png(i), f"{name.format(i)}.{kind}": b"%d" % (i + 5)}
    source = open_source(write(tmp_path / "s.tar", members | {f"{name.format(7)}.png": png(9)}))
    assert labels(source) == ["5", "6", "7", None]
    assert len(source.notices) == 1  # that labels are beside each image


def test_a_label_that_images_share_is_said(tmp_path):
    members = {"0.left.png": png(1), "0.right.png": png(2), "0.cls": b"7"}
    source = open_source(write(tmp_path / "s.tar", members))
    assert labels(source) == ["7", "7"]
    assert "2 images share the label of a sample with others" in source.notices[1]
    members = {"x.png": png(0), "x.cls": b"1", "x.y.png": png(0), "x.y.cls": b"2"}
    assert labels(open_source(write(tmp_path / "s.tar", members))) == ["1", "2"]


def test_a_tar_that_may_not_be_whole_is_refused(tmp_path):
    """tarfile stops at a damaged header, or at zeros, as if the tar ended there."""
    path = write(tmp_path / "s.tar", {f"{i}.png": png(i) for i in range(4)})
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        second, end = archive.getmembers()[1].offset, archive.offset
    flipped = bytearray(whole)
    flipped[second + 150] ^= 0xFF
    zeros = whole[:second] + bytes(512) + whole[second + 512 :]
    cut = "the zeros that end a tar are missing"
    for content, message in (
        (flipped, f"the header of a member is damaged, at byte {second}"),
        (zeros, f"it goes on at byte {second + 512}"),
        (whole + whole, f"it goes on at byte {len(whole)}"),
        (whole[:second], cut),
        (whole[: second + 100], cut),
        (whole[:end], cut),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"s.tar: {message}"):
            open_source(path)
    path.write_bytes(whole[:end] + bytes(1024))
    assert len(open_source(path)) == 4


def test_two_samples_of_one_name_are_refused_as_such(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, content in (("0.png", png(0)), ("0.cls", b"1")) * 2:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"id '0.png' occurs twice"):
        open_source(tmp_path / "s.tar")


def test_each_image_of_a_tar_without_samples_is_an_image(tmp_path):
    members = {"img.jpg": png(1), "img.copy.jpg": png(2), "README.txt": b"of no image"}
    source = open_source(write(tmp_path / "s.tar", members))
    assert source.ids == ("img.copy.jpg", "img.jpg")
    assert [image.getpixel((0, 0)) for image in source] == [2, 1]
    assert source.notices == (
        "1 image is called like a part of another, as img.copy.jpg: it is read as an image of its own",
        "1 file left out: .txt (1)",
    )


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("/abs/cat/1.png", "/abs/dog/2.png"), ["abs/cat", "abs/dog"]),
        (("//cat/1.png", "//dog/2.png"), ["cat", "dog"]),
        (("/cat_1.png", "/dog_2.png"), ["cat", "dog"]),
    ],
)
def test_the_root_of_absolute_names_is_no_class(tmp_path, paths, expected):
    source = open_source(write(tmp_path / "s.tar", {path: png(1) for path in paths}))
    assert [source.label_names[label] for label in source.labels] == expected


def test_members_of_one_name_in_several_shards_are_told_apart(tmp_path):
    for i in range(2):
        members = {"0001.png": png(i), "0001.cls": b"%d" % (i + 5), f"{i}7.png": png(9)}
        write(tmp_path / f"shard-{i}.tar", members)
    source = open_source(str(tmp_path / "shard-*.tar"))
    assert source.ids == tuple(
        f"shard-{i}/{name}.png" for i in range(2) for name in ("0001", f"{i}7")
    )
    by_id = dict(zip(source.ids, zip(labels(source), source, strict=True), strict=True))
    assert by_id["shard-1/0001.png"][0] == "6"
    assert by_id["shard-1/0001.png"][1].getpixel((0, 0)) == 1
    assert any("ids begin with the shard's name" in line for line in source.notices)
    assert open_source(tmp_path / "shard-0.tar").ids == ("0001.png", "07.png")


def test_the_shard_of_members_of_one_name_is_no_class(tmp_path):
    for i in range(2):
        write(tmp_path / f"s-{i}.tar", {"cat/0.png": png(i), "dog/0.png": png(i)})
    source = open_source(str(tmp_path / "s-*.tar"))
    assert source.ids == ("s-0/cat/0.png", "s-0/dog/0.png", "s-1/cat/0.png", "s-1/dog/0.png")
    assert labels(source) == ["cat", "dog", "cat", "dog"]


def test_a_large_json_beside_an_image_is_no_label(tmp_path):
    masks = json.dumps({"masks": "x" * 2**20}).encode()
    members = {"0.png": png(0), "0.json": masks, "1.png": png(1), "1.json": b'{"label": "cat"}'}
    source = open_source(write(tmp_path / "s.tar", members))
    assert labels(source) == [None, "cat"]
    assert "1 .json of more than 1048576 bytes are not read, as 0.json" in source.notices


def test_json_lines_are_refused_in_one_line(tmp_path):
    lines = b'{"label": "cat"}\n{"label": "dog"}\n'
    path = write(tmp_path / "s.tar", {"0.png": png(0), "0.json": lines})
    with pytest.raises(DataError, match=r"0.json: expected a label .* give each image one value"):
        open_source(path)
    path = write(tmp_path / "s.tar", {"0.png": png(0), "index.json": lines})
    assert open_source(path).notices == ("1 file left out: .json (1)",)


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        (
            ("s-000", "s-001", "s-003"),
            "1 shard lacks between s-000.tar and s-003.tar, as s-002.tar",
        ),
        (
            ("a1-8-of-10", "a1-11-of-10"),
            "2 shards lack between a1-8-of-10.tar and a1-11-of-10.tar, as a1-9",
        ),
        (
            ("train-000", "train-001", "train-003", "val-000"),
            "1 shard lacks between train-000.tar and train-003.tar, as train-002.tar",
        ),
        (
            ("a-0", "a-1", "b-0", "b-1", "b-3"),
            "1 shard lacks between b-0.tar and b-3.tar, as b-2.tar",
        ),
        (("s-000", "s-001"), None),
        (("s-7", "s-8", "s-9", "s-10"), None),
        (("s-1", "s-2024"), None),  # a year
        (("s-20260101120000", "s-20261231235959"), None),  # times
        (("cats-1", "dogs-3"), None),
        (("s", "s-2"), None),
    ],
)
def test_a_gap_between_the_numbers_of_shards_is_said(tmp_path, names, lacking):
    for index, name in enumerate(names):
        write(tmp_path / f"{name}.tar", {f"{index}.png": png(0)})
    notices = open_source(str(tmp_path / "*.tar")).notices
    if lacking is None:
        assert not any("lack" in line for line in notices)
    else:
        assert any(line.startswith(lacking) for line in notices)


def of(total, *numbers, name="s-{:05d}-of-{:05d}"):
    return [name.format(number, total) for number in numbers]


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        (of(4, 0, 1), ["2 of 4 shards are not there, as s-00002-of-00004.tar"]),
        (of(4, 0, 1, 3), ["1 of 4 shards is not there, as s-00002-of-00004.tar"]),
        (of(4, 2, 4), ["2 of 4 shards are not there, as s-00001-of-00004.tar"]),
        (of(4, 2, 3), ["2 of 4 shards are not there, as s-00001-of-00004.tar"]),
        (
            of(4, 1, 2, 3),
            [
                "1 of 4 shards is not there, as s-00000-of-00004.tar or s-00004-of-00004.tar",
            ],
        ),
        (of(4, 0), ["3 of 4 shards are not there, as s-00001-of-00004.tar"]),
        (of(576, 0, 1), ["574 of 576 shards are not there, as s-00002-of-00576.tar"]),
        (
            [*of(3, 0, 1, name="train-{}-of-{}"), *of(1, 0, name="val-{}-of-{}")],
            ["1 of 3 shards is not there, as train-2-of-3.tar"],
        ),
        (
            of(2, 0) + of(3, 0, 1),
            [
                "1 of 2 shards is not there, as s-00001-of-00002.tar",
                "1 of 3 shards is not there, as s-00002-of-00003.tar",
            ],
        ),
        (
            ["t-0-of-3-a0b1", "t-1-of-3-c2d3"],  # a hash each
            ["1 of 3 shards is not there, as t-2-of-3"],
        ),
        (of(4, 0, 1, 2, 3), []),
        (of(4, 1, 2, 3, 4), []),
        (of(1, 0), []),
        (of(1, 1), []),
        (of(10**12, *range(3)), ["999999999997 of 1000000000000 shards are not there, as s-00003"]),
    ],
)
def test_shards_whose_names_say_how_many_there_are_are_counted(tmp_path, names, lines):
    for index, name in enumerate(names):
        write(tmp_path / f"{name}.tar", {f"{index}.png": png(0)})
    found = [line for line in open_source(str(tmp_path / "*.tar")).notices if "not there" in line]
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))
    assert not any("lack" in line for line in open_source(str(tmp_path / "*.tar")).notices)


def test_two_sets_of_shards_of_one_beginning_are_said(tmp_path):
    for index, name in enumerate(
        [*of(2, 0, 1), *of(3, 0, 1, 2), *of(3, 0, 1, 2, name="t-{}-of-{}")]
    ):
        write(tmp_path / f"{name}.tar", {f"{index}.png": png(0)})
    notices = open_source(str(tmp_path / "*.tar")).notices
    line = "sets of shards of 2 and of 3 are both there, as s-00000-of-00002.tar: all are read"
    assert [notice for notice in notices if "sets of" in notice] == [line]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("3", "3.0", ["3", "3"]),
        ("1E3", "1000", ["1E3", "1000"]),
        ("9007199254740993.0", "9007199254740992", ["9007199254740993", "9007199254740992"]),
        ("NaN", "7", [None, "7"]),
    ],
)
def test_numbers_of_a_json_are_the_classes_that_a_cls_gives(tmp_path, first, second, expected):
    for suffix in ("json", "cls"):
        texts = (first, second)
        files = {f"{i}.{suffix}": text.encode() for i, text in enumerate(texts)}
        path = write(tmp_path / f"{suffix}.tar", {"0.png": png(0), "1.png": png(1)} | files)
        source = open_source(path)
        names = [source.label_names[label] if label >= 0 else None for label in source.labels]
        assert names == expected, suffix
        assert any("powers of ten" in line for line in source.notices) == ("E" in first)


@pytest.mark.parametrize(
    ("kind", "texts", "line"),
    [
        ("cls", ["0", "cat"], None),
        ("cls", ["1.0", "cat"], "labels are numbers and words: '1.0' is read as '1'"),
        ("cls", ["0", "1"], None),
        ("cls", ["cat", "dog"], None),
        (
            "json",
            ['{"label": "a"}', '{"class": "b"}', '{"class": "c"}'],
            "labels are read from several keys of the .json: 'label' (1), 'class' (2)",
        ),
        ("json", ['{"label": "a", "class": "x"}', '{"label": "b", "class": "x"}'], None),
    ],
)
def test_labels_of_two_sorts_are_said_in_one_line(tmp_path, kind, texts, line):
    members = {f"{i}.png": png(i) for i in range(len(texts))}
    members |= {f"{i}.{kind}": text.encode() for i, text in enumerate(texts)}
    _, *said = open_source(write(tmp_path / "s.tar", members)).notices
    assert said == ([] if line is None else [line])


@pytest.mark.parametrize(
    ("contents", "line"),
    [
        (["image", "image"], None),
        (["image", None, None], "2 shards hold no image, as a-1.tar"),
        (["text", "image"], "1 shard holds no image, as a-0.tar"),
    ],
)
def test_shards_without_any_image_beside_others_are_said(tmp_path, contents, line):
    for number, content in enumerate(contents):
        member = {"image": {f"{number}.png": png(0)}, "text": {"0.txt": b"cat"}, None: {}}[content]
        write(tmp_path / f"a-{number}.tar", member)
    source = open_source(str(tmp_path / "a-*.tar"))
    assert len(source) == contents.count("image")
    assert [said for said in source.notices if "no image" in said] == ([line] if line else [])


def test_a_single_tar_whose_name_says_how_many_there_are_is_said(tmp_path):
    path = write(tmp_path / "s-00000-of-00004.tar", {"0.png": png(0)})
    assert open_source(path).notices[0].startswith("3 of 4 shards are not there")


@pytest.mark.parametrize("label", [b"\x03", b"\xff"])
def test_a_label_that_is_a_raw_byte_is_refused(label, tmp_path):
    path = write(tmp_path / "a.tar", {"0.png": png(0), "0.cls": label})
    with pytest.raises(DataError, match=r"0.cls: expected a label as text or JSON"):
        open_source(path)


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("0.cls", b"1\n2\n", r"0.cls: expected a label .*found several lines, '1\\n2'.*one value"),
        ("0.cls", b"1\r\n2", r"0.cls: expected a label .*found several lines"),
        (
            "0.json",
            b'{"label": "a\\nb"}',
            r"names of labels: expected each on one line, found 'a\\nb'",
        ),
    ],
)
def test_a_label_of_several_lines_is_refused(tmp_path, member, content, message):
    """As in a table. A line break behind the label is how text files end."""
    members = {"0.png": png(0), member: content}
    with pytest.raises(DataError, match=message):
        open_source(write(tmp_path / "s.tar", members))
    assert labels(open_source(write(tmp_path / "s.tar", members | {member: b"1\r\n"}))) == ["1"]
