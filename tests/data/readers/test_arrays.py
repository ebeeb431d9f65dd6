import json
import os
import pickle
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from vdvae_repr.data.open import open_source
from vdvae_repr.data.readers import arrays
from vdvae_repr.data.readers.arrays import FileRows, Hdf5Rows, rows_of
from vdvae_repr.data.source import Preprocessing, Source, read_images
from vdvae_repr.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)


def read(source):
    return np.stack(list(source.read(0, len(source))))


def labels(source):
    return [None if k < 0 else source.label_names[k] for k in source.labels]


@pytest.mark.parametrize(
    "given",
    [
        IMAGES.astype(np.float64),
        IMAGES.astype(np.float32),
        IMAGES.astype(np.int64),
        (IMAGES / 255).astype(np.float32),
        (IMAGES / 255).astype(np.float16),
        IMAGES.astype(np.uint16) * 257,
    ],
)
def test_pixels_of_other_types(tmp_path, given):
    np.save(tmp_path / "a.npy", given)
    source = open_source(tmp_path / "a.npy")
    assert np.array_equal(read(source), IMAGES)
    assert str(given.dtype) in source.notices[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (IMAGES / 127.5 - 1, "found -1 to 1"),
        (IMAGES * 1.5, "from 0 to 255, found"),
        (IMAGES / 2, "whole numbers up to 255, found fractions"),
        (IMAGES.astype(np.int32) + 300, "from 0 to 255, found"),
        (IMAGES.astype(bool), "found bool"),
        (IMAGES.astype("U3"), "expected images uint8"),
        (IMAGES[0], r"if it is 1 image of \d+x\d+, take images\[None\]"),
        (IMAGES.transpose(0, 3, 1, 2), r"take images\.transpose\(0, 2, 3, 1\)"),
        (
            IMAGES.reshape(4, -1),
            r"expected images uint8 \(N, H, W, 3\), \(N, H, W, 1\) or \(N, H, W\)",
        ),
        (IMAGES[:0], "expected images, found none"),
    ],
)
def test_other_arrays_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        open_source(given)


@pytest.mark.parametrize(
    ("shape", "ways"),
    [
        ((4, 8, 8, 4), [(4, 8, 8, 3)]),
        ((3, 8, 8, 4), [(3, 8, 8, 3), (4, 8, 8, 3)]),
        ((5, 8, 9, 3, 1), [(5, 8, 9, 3)]),
        ((5, 8, 9, 1, 1), [(5, 8, 9, 1)]),
    ],
)
def test_each_way_that_is_advised_makes_images_of_an_array(shape, ways):
    images = np.zeros(shape, np.uint8)
    with pytest.raises(DataError) as refusal:
        open_source(images)
    advised = re.findall(r"take (images\S+(?:, \S+)*?)(?:;|$)", str(refusal.value))
    assert [eval(way, {"images": images}).shape for way in advised] == ways


def test_a_row_that_is_not_finite_is_named():
    given = IMAGES / 255
    given[2, 0, 0, 0] = np.nan
    source = open_source(given)
    read_images(source, Preprocessing(size=8), [0, 1, 3])
    with pytest.raises(DataError, match="2: expected finite pixels, found NaN"):
        read_images(source, Preprocessing(size=8), [2])


def test_one_rule_for_the_whole_of_a_large_array(tmp_path, monkeypatch):
    """What a sample tells of the scale, every row has to obey when it is read."""
    monkeypatch.setattr(arrays, "EXACT_BYTES", 0)
    monkeypatch.setattr(arrays, "SAMPLE", 2)
    given = np.zeros((4, 8, 9), np.float32)
    given[0], given[2] = 1, 200
    np.save(tmp_path / "a.npy", given)
    source = open_source(tmp_path / "a.npy")
    assert next(source.read(0, 1)).max() == 255
    with pytest.raises(DataError, match="2: expected float32 pixels from 0 to 1, found"):
        source.load(2)


def test_grey_arrays_with_and_without_a_channel():
    for given in (IMAGES[..., 0], IMAGES[..., :1]):
        assert np.array_equal(read(open_source(given)), IMAGES[..., 0])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (20230000 + np.array([2, 0, 2, 1]), ["20230002", "20230000", "20230002", "20230001"]),
        (np.array([1, 2**64 - 1, 1, 1], np.uint64), ["1", str(2**64 - 1), "1", "1"]),
        (np.array([1.0, 0.0, np.nan, 2.0]), ["1", "0", None, "2"]),
        (np.array([[3], [3], [5], [-1]]), ["3", "3", "5", None]),
        (np.array(["cat", "dog", "cat", ""]), ["cat", "dog", "cat", None]),
        (np.array([True, False, True, True]), ["1", "0", "1", "1"]),
    ],
)
def test_labels_are_numbered_by_what_occurs(tmp_path, given, expected):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=given)
    source = open_source(tmp_path / "a.npz")
    assert labels(source) == expected
    assert len(source.label_names) == len(set(expected) - {None})
    assert any("-1" in line for line in source.notices) == (
        given.min() == -1 if given.dtype == int else False
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array([0, 1, -7, 1]), "expected labels from 0, or -1 where there is none, found -7"),
        (np.array([0.5, 1, 1, 1]), "expected labels of whole numbers"),
        (np.eye(4), "expected 4 labels, found shape"),
        (np.arange(3), "expected 4 labels, found shape"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, given, message):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=given)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "a.npz")


def test_class_names_name_the_numbers(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"], file["class_names"] = IMAGES, [2, 0, 2, -1], ["x", "y", "z"]
    source = open_source(tmp_path / "a.h5")
    assert (labels(source), source.label_names) == (["z", "x", "z", None], ("x", "y", "z"))
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=[2, 0, 2, 3], class_names=["x", "y", "z"])
    with pytest.raises(DataError, match="expected labels below 3, which class_names name, found 3"):
        open_source(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "keys", [("Train/images", "validation/images"), ("train_images", "val_images")]
)
def test_splits_of_array_files(tmp_path, keys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key, part in zip(keys, (IMAGES[:3], IMAGES[3:]), strict=True):
            file[key] = part
            file[key.replace("images", "labels")] = np.arange(len(part))
        file["holdout/images"] = IMAGES
    source = open_source(tmp_path / "a.h5")
    assert source.splits == ("train", "train", "train", "val")
    assert source.ids == ("train/0", "train/1", "train/2", "val/0")
    assert source.notices == ("holdout/images left out: no split is called so",)


def test_a_split_of_two_arrays_is_refused_with_the_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["dev/images"] = file["valid/images"] = IMAGES
    message = r"a\.h5: expected one array of images of split val, found dev/images and valid/images"
    with pytest.raises(DataError, match=message):
        open_source(tmp_path / "a.h5")


def test_an_array_of_splits(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, splits=np.array(["Train", "test", "", "other"]))
    assert open_source(tmp_path / "a.npz").splits == ("train", "test", "", "other")


def test_an_array_of_another_name(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["imgBrick"], file["deep/er"], file["deep/labels"] = IMAGES, IMAGES, [0, 1, 1, 0]
        file["set/images"], file["set/labels"] = IMAGES, [5, 5, 6, 6]
    np.savez(tmp_path / "k.npz", x_train=IMAGES, y_train=np.arange(4))
    for name in ("a.hdf5:imgBrick", "a.hdf5:/deep/er", "a.hdf5:set", "k.npz:x_train"):
        assert np.array_equal(read(open_source(str(tmp_path / name))), IMAGES)
    assert labels(open_source(f"{tmp_path}/a.hdf5:deep/er")) == ["0", "1", "1", "0"]
    assert labels(open_source(f"{tmp_path}/a.hdf5:set")) == ["5", "5", "6", "6"]
    assert "no array 'labels'" in open_source(f"{tmp_path}/k.npz:x_train").notices[0]
    for name, message in (
        ("a.hdf5", r"found .*imgBrick uint8 \(4, 8, 9, 3\), .*:NAME takes another"),
        ("k.npz", "found x_train, y_train"),
        ("k.npz:x_test", "found no array 'x_test'; it holds x_train, y_train"),
        ("a.hdf5:", "expected the name of an array behind the colon"),
    ):
        with pytest.raises(DataError, match=message):
            open_source(f"{tmp_path}/{name}")


def test_links_and_groups_of_hdf5_are_named(tmp_path):
    def refused(message, **content):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for key, value in content.items():
                file[key.replace("__", "/")] = value
        with pytest.raises(DataError, match=message) as caught:
            open_source(tmp_path / "a.h5")
        assert "\n" not in str(caught.value)

    refused("images is a group of 1, as 0001", images__0001=IMAGES[0])
    refused("images is a link to nowhere: /y", images=h5py.SoftLink("/y"))
    refused("labels is a link to nowhere: /y", images=IMAGES, labels=h5py.SoftLink("/y"))
    refused("images is a single value", images=3)
    refused("images is a single value", images=h5py.Empty("f"))
    refused("expected images uint8", images=[b"\xff\xd8", b"\xff\xd8"])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["pixels"], file["images"], file["again"] = (
            IMAGES,
            h5py.SoftLink("/pixels"),
            h5py.SoftLink("/"),
        )
    assert np.array_equal(read(open_source(tmp_path / "a.h5")), IMAGES)


def test_a_large_file_is_opened_without_reading_it(tmp_path, monkeypatch):
    """Of a file as large as NSD's stimuli, 32 rows at most are read before the start."""
    with h5py.File(tmp_path / "nsd.hdf5", "w") as file:
        file.create_dataset("imgBrick", (73_000, 425, 425, 3), np.uint8, chunks=(1, 425, 425, 3))
        file["imgBrick"][72_999] = 9
    rows = []
    original = Hdf5Rows.__getitem__
    monkeypatch.setattr(
        Hdf5Rows, "__getitem__", lambda self, row: (rows.append(row), original(self, row))[1]
    )
    source = open_source(f"{tmp_path}/nsd.hdf5:imgBrick", rows="72990:73000")
    assert len(rows) <= 32
    assert source.ids[-1] == "72999"
    assert np.asarray(source[9]).min() == 9


def test_the_state_of_a_large_file_tells_a_change(tmp_path, monkeypatch):
    """The fingerprint is that of a copy too; whether a copy is one, the rows' checksums tell."""
    monkeypatch.setattr(arrays, "EXACT_BYTES", 0)
    np.savez(tmp_path / "a.npz", images=IMAGES)
    before = open_source(tmp_path / "a.npz")
    state = before.state()
    assert open_source(tmp_path / "a.npz").state() == state
    os.utime(tmp_path / "a.npz", ns=(0, 0))
    after = open_source(tmp_path / "a.npz")
    assert after.state() != state
    assert after.fingerprint() == before.fingerprint()
    rows = range(len(IMAGES))
    assert [after.checksum(i) for i in rows] == [before.checksum(i) for i in rows]


def test_an_uncompressed_npz_is_read_in_place(tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", images=IMAGES, other=np.zeros(3))
        source = open_source(tmp_path / "a.npz")
        assert np.array_equal(read(source), IMAGES)
        assert isinstance(source.reader.arrays[0], FileRows) == (save is np.savez)


ORDERS = {
    "rows first": lambda array: array,
    "rows last": np.asfortranarray,
    "planes of a row, turned": lambda array: np.ascontiguousarray(array.transpose(0, 3, 1, 2)),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_rows_of_a_file_are_those_that_numpy_reads(tmp_path, order, dtype):
    np.save(tmp_path / "a.npy", ORDERS[order](IMAGES.astype(dtype)))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    expected = np.load(tmp_path / "a.npy")
    if order.startswith("planes"):
        mapped, expected = mapped.transpose(0, 2, 3, 1), expected.transpose(0, 2, 3, 1)
    found = rows_of(mapped)
    assert isinstance(found, FileRows)
    for rows in (0, np.int64(3), slice(None), slice(1, 3), slice(2, 2)):
        assert np.array_equal(found[rows], expected[rows])
        assert np.array_equal(pickle.loads(pickle.dumps(found))[rows], expected[rows])
    with pytest.raises(IndexError):
        found[4]
    assert np.array_equal(found[-1], expected[-1])
    with pytest.raises(ValueError, match="without steps"):
        found[::2]
    kept = pickle.dumps(found)
    (tmp_path / "a.npy").unlink()
    np.save(tmp_path / "a.npy", IMAGES.astype(dtype))
    with pytest.raises(DataError, match=r"a.npy: expected the file that was opened, found another"):
        pickle.loads(kept)


def test_images_without_splits_may_stand_beside_those_of_a_split(tmp_path):
    np.savez(
        tmp_path / "a.npz", images=IMAGES[:1], train_images=IMAGES[1:3], test_images=IMAGES[3:]
    )
    assert open_source(tmp_path / "a.npz").splits == ("", "train", "train", "test")


def test_images_with_splits_beside_those_of_each_split_are_refused(tmp_path):
    """They may be the same images twice, a copy on each side."""
    whole = {"images": IMAGES, "splits": ["train", "train", "test", "test"]}
    parts = {"train_images": IMAGES[:2], "test_images": IMAGES[2:]}
    np.savez(tmp_path / "a.npz", **whole, **parts)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in (whole | parts).items():
            file[name.replace("_", "/")] = values
    for name, others in (
        ("a.npz", "test_images, train_images"),
        ("a.h5", "test/images, train/images"),
    ):
        path = tmp_path / name
        with pytest.raises(
            DataError, match=f"found images and {others}, .* choose one, as .*{name}:images"
        ):
            open_source(path)
        assert open_source(f"{path}:images").splits == ("train", "train", "test", "test")


def test_rows_that_the_system_reads_in_several_pieces_are_whole(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", IMAGES)
    rows, read = rows_of(np.load(tmp_path / "a.npy", mmap_mode="r")), os.preadv
    monkeypatch.setattr("os.preadv", lambda file, into, at: read(file, [into[0][:7]], at))
    assert np.array_equal(rows[:], IMAGES)


@pytest.mark.parametrize("name", ["a.npy", "turned.npy", "a.npz"])
def test_a_file_that_is_cut_short_after_it_was_opened_is_said(tmp_path, name):
    images = np.tile(IMAGES, (1, 40, 40, 1))  # more than a page of memory each
    path = tmp_path / name
    if name == "a.npz":
        np.savez(path, images=images)
    else:
        np.save(path, images if name == "a.npy" else np.asfortranarray(images))
    source = open_source(path)
    assert np.array_equal(source.load(3), images[3])
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"expected \d+ bytes .* found \d+: the file was cut short"):
        source.load(3)


def test_hdf5_rows_from_threads_and_other_processes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=IMAGES, chunks=(1, 8, 9, 3), compression="gzip")
    source = open_source(tmp_path / "a.h5")
    with ThreadPoolExecutor(8) as pool:
        for i, image in enumerate(pool.map(lambda i: source.load(i % 4), range(200))):
            assert np.array_equal(image, IMAGES[i % 4])
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(read(again), IMAGES)


@pytest.mark.parametrize("word", ["splits", "split"])
@pytest.mark.parametrize("folder", ["", "faces/"])
def test_labels_and_splits_lie_beside_an_array_that_is_named(tmp_path, word, folder):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[f"{folder}pixels"], file[f"{folder}labels"] = IMAGES, [0, 1, 0, 1]
        file[f"{folder}{word}"] = ["train", "Validation", "test", ""]
    source = open_source(f"{tmp_path / 'a.h5'}:{folder}pixels")
    assert (labels(source), source.notices) == (
        ["0", "1", "0", "1"],
        ("1 image belongs to no split",),
    )
    assert source.splits == ("train", "val", "test", "")


def test_splits_of_another_length_are_left_out_and_said(tmp_path):
    np.savez(tmp_path / "a.npz", pixels=IMAGES, split=["train", "test"], labels=[0, 1, 0, 1])
    source = open_source(f"{tmp_path / 'a.npz'}:pixels")
    assert source.splits == ("",) * 4
    assert source.notices == ("split left out: 2 for 4 images",)


def test_a_split_without_labels_and_arrays_that_are_not_read_are_said(tmp_path):
    content = {"train_images": IMAGES, "train_labels": [0, 1, 0, 1], "test_images": IMAGES}
    np.savez(tmp_path / "a.npz", **content)
    source = open_source(tmp_path / "a.npz")
    assert labels(source) == ["0", "1", "0", "1"] + [None] * 4
    assert source.notices == ("no array holds labels for the images of test",)
    np.savez(tmp_path / "a.npz", **content, test_labels=[1, 1, 1, 1], ages=[3, 4, 5, 6])
    assert open_source(tmp_path / "a.npz").notices == ("arrays left out: ages",)


def test_the_labels_of_a_named_array_are_those_of_its_own_name(tmp_path):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=[4, 5, 6], labels=[9, 9, 9])
    source = open_source(f"{tmp_path}/a.npz:train_images")
    assert [source.label_names[label] for label in source.labels] == ["4", "5", "6"]


def test_a_number_is_one_class_in_parts_of_any_type(tmp_path):
    parts = {"train_labels": np.array(["1", "2", "1.0"]), "test_labels": np.array([2.0])}
    np.savez(tmp_path / "a.npz", train_images=IMAGES[:3], test_images=IMAGES[3:], **parts)
    assert labels(open_source(tmp_path / "a.npz")) == ["1", "2", "1", "2"]
    parts["train_labels"] = np.array(["1.5", "2", "3"])
    np.savez(tmp_path / "a.npz", train_images=IMAGES[:3], test_images=IMAGES[3:], **parts)
    with pytest.raises(DataError, match="labels that are classes, found numbers with fractions"):
        open_source(tmp_path / "a.npz")


def test_names_that_are_no_utf8_stay_apart(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.array([b"\xe9", b"\xe8", b"\xe9", b"a"]))
    assert labels(open_source(tmp_path / "a.npz")) == ["%E9", "%E8", "%E9", "a"]


@pytest.mark.parametrize(
    ("given", "notices"),
    [
        (
            np.full(4, np.nan),
            ("4 labels are NaN: these images count as unlabelled",
             "no label is left, so that images have no labels"),
        ),
        (np.array([1, np.nan, 2, 2]), ("1 label is NaN: this image counts as unlabelled",)),
        (np.array(["a", "nan", "b", "b"]), ("labels that stand for none: 'nan' (1)",)),
        (
            np.array([""] * 4),
            ("4 labels are empty: these images count as unlabelled",
             "no label is left, so that images have no labels"),
        ),
    ],
)  # fmt: skip
def test_labels_that_are_none_are_counted(tmp_path, given, notices):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=given)
    assert open_source(tmp_path / "a.npz").notices == notices


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("save", ["npz", "h5", "memory"])
def test_ids_that_floating_point_may_have_merged_are_said_once(tmp_path, save, dtype):
    ids = np.array([16777216, 16777217, 16777218, 16777219])
    given, merged = ids.astype(dtype), dtype is np.float32
    held = {f"{split}_{what}": {"images": IMAGES, "labels": given}[what]
            for split in ("train", "test") for what in ("images", "labels")}  # fmt: skip
    if save == "memory":
        source = Source(name="s", ids=tuple("abcd"), reader=IMAGES.__getitem__, labels=given)
    elif save == "npz":
        np.savez(tmp_path / "a.npz", **held)
        source = open_source(tmp_path / "a.npz")
    else:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.update(held)
        source = open_source(tmp_path / "a.h5")
    assert len(source.label_names) == len(np.unique(given))
    said = [
        line for line in source.notices if "float32, as 16777216, which cannot tell ids" in line
    ]
    assert len(said) == merged


@pytest.mark.parametrize(
    ("names", "given", "expected", "notice"),
    [
        (["x", "x", "y"], [0, 1, 2, 1], ["x (0)", "x (1)", "y", "x (1)"], "several classes 'x'"),
        ([["x"], ["y"], ["z"]], [0, 1, 2, 1], ["x", "y", "z", "y"], None),
        (["x", "y", "z"], [0, 1, 1, 1], ["x", "y", "y", "y"], "name 3 classes, of which 2 occur"),
        (["x", "y"], ["a", "b", "a", "b"], ["a", "b", "a", "b"], "class_names left out"),
    ],
)
def test_class_names_of_odd_shapes(tmp_path, names, given, expected, notice):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.array(given), class_names=names)
    source = open_source(tmp_path / "a.npz")
    assert labels(source) == expected
    assert len(set(source.label_names)) == len(source.label_names)
    assert [notice in line for line in source.notices] == ([] if notice is None else [True])


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["Cat", "cat", "dog"], "'Cat' and 'cat' are two classes; rename one if they are the same"),
        (["cat", "cat ", "dog"], "class_names name several classes 'cat'"),
        (["cat", "dog", "nan"], "class_names call a class 'nan'; label its images -1 if it"),
        (["cat", "dog", "cow"], ""),
        (["cat", "dog", "cow", "none"], "class_names name 4 classes, of which 3 occur"),
    ],
)
def test_names_of_classes_that_may_be_meant_otherwise_are_said(tmp_path, names, line):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=[0, 1, 2, 1], class_names=names)
    said = open_source(tmp_path / "a.npz").notices
    assert len(said) == bool(line)
    assert not line or line in said[0]


@pytest.mark.parametrize("kind", ["npy", "h5", "npz", "memory"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_rows_that_were_never_written_are_said(tmp_path, kind, dtype):
    """As of an array that is made at full size, and filled by a script that was stopped."""
    path = tmp_path / f"a.{kind}"
    filled = np.ones((7, 8, 9, 3), dtype) * dtype(1 if dtype == np.float32 else 200)
    filled[:, 0, 0] = 0
    images = np.concatenate([filled, np.zeros((3, 8, 9, 3), dtype)])
    if kind == "npy":
        array = np.lib.format.open_memmap(path, "w+", dtype, (10, 8, 9, 3))
        array[:7] = filled
        array.flush()
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("images", (10, 8, 9, 3), dtype)[:7] = filled
    elif kind == "npz":
        np.savez(path, images=images)
    black = "3 images are black, 0 everywhere, as row 7; leave out what was never written"
    assert black in open_source(images if kind == "memory" else path).notices
    assert not any("everywhere" in line for line in open_source(filled).notices)


@pytest.mark.parametrize(("fill", "dtype"), [(255, np.uint8), (7, np.uint8), (1, np.float32)])
def test_rows_of_the_value_that_a_file_is_filled_with_are_said(tmp_path, fill, dtype):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        images = file.create_dataset(
            "images", (10, 8, 9, 3), dtype, fillvalue=fill, chunks=(10, 8, 9, 3)
        )
        images[:7] = np.random.default_rng(0).integers(0, 2, (7, 8, 9, 3))
    said = f"3 images are of one value everywhere, as row 7, {fill}; leave out any that was never written"
    assert said in open_source(tmp_path / "a.h5").notices


def test_of_a_large_file_a_sample_tells_rows_that_were_never_written(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "EXACT_BYTES", 1000)
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (1000, 8, 8, 3))
    array[:700, 0] = 99
    array.flush()
    (line,) = open_source(tmp_path / "a.npy").notices
    assert line.startswith("5 images of 16 looked at are black, 0 everywhere, as row ")


def test_class_names_of_two_axes_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.arange(4), class_names=np.eye(2))
    with pytest.raises(DataError, match=r"expected class_names \(K,\), found shape \(2, 2\)"):
        open_source(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(3, 8, 9), (4, 8, 9), (8, 8, 20)])
def test_how_an_array_of_three_axes_is_read_is_said(shape):
    source = open_source(np.resize(IMAGES, shape))
    assert len(source) == shape[0]
    assert f"read as {shape[0]} grey images of {shape[1]}x{shape[2]} pixels" in source.notices[0]
    assert open_source(np.resize(IMAGES, (5, 8, 8))).notices == ()


OTHER_LAYOUTS = [
    ("NCHW", (5, 8, 9, 3)),
    ("HWCN", (5, 8, 9, 3)),
    ("CHWN", (5, 8, 9, 3)),
    ("CHWN", (4, 8, 9, 3)),
    ("NHWC", (5, 8, 9, 4)),
    ("HWC", (1, 8, 9, 3)),
    ("HWC", (1, 8, 9, 4)),
    ("HW", (1, 8, 9)),
    ("HWN", (3, 8, 9)),
]


def advised(error, name):
    """Return what an array may be, and what is then to be done to it, of each piece of advice."""
    return re.findall(rf"; if it is (.*?), take {name}(.*?)(?=; if it is|$)", str(error.value))


@pytest.mark.parametrize(
    ("layout", "shape", "by_matlab"),
    [
        *((*given, False) for given in OTHER_LAYOUTS),
        *((*given, True) for given in [*OTHER_LAYOUTS, ("NHW", (5, 8, 9)), ("NHWC", (5, 8, 9, 3))]),
    ],
)
def test_advice_about_axes_makes_the_images_of_each_layout(tmp_path, layout, shape, by_matlab):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    there = np.einsum(f"{''.join(sorted(layout, key='NHWC'.index))}->{layout}", images.squeeze())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = there.T if by_matlab else there  # MATLAB writes the last axis first
        if by_matlab:
            file["images"].attrs["MATLAB_class"] = np.bytes_("uint8")
    with pytest.raises(DataError, match=r"\(N, H, W, 3\)") as refused:
        open_source(tmp_path / "a.h5")
    kind = f"{'' if 'C' in layout else 'grey '}image{'s' * (len(images) > 1)}"
    made = [
        eval(f"array{how}", {"array": there.T if by_matlab else there})
        for what, how in advised(refused, "A" if by_matlab else "images")
        if what == f"{len(images)} {kind} of 8x9"
    ]
    expected = images[..., :3] if "C" in layout else images
    assert [np.array_equal(one, expected) for one in made] == [True]
    assert np.array_equal(read(open_source(made[0])), expected)


def test_a_table_of_numbers_is_one_image_or_rows_of_pixels():
    with pytest.raises(DataError, match="expected images") as refused:
        open_source(np.zeros((256, 256), np.uint8))
    assert advised(refused, "images") == [
        ("256 grey images of 16x16", ".reshape(-1, 16, 16)"),
        ("1 grey image of 256x256", "[None]"),
    ]


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_the_order_of_bytes_changes_nothing(dtype):
    for given in (IMAGES.astype(np.uint16) * 257, IMAGES.astype(np.uint16)):
        expected = read(open_source(given))
        assert np.array_equal(read(open_source(given.astype(dtype))), expected)


def test_pixels_of_zero_and_one_are_said():
    for dtype in (np.uint8, np.int32):
        (line,) = open_source((IMAGES > 100).astype(dtype)).notices
        assert line.endswith("the brightest found is 1")


def test_empty_words_as_labels_are_counted(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES[:3], labels=np.array(["a", "", " "]))
    source = open_source(tmp_path / "a.npz")
    assert source.labels.tolist() == [0, -1, -1]
    assert source.notices == ("2 labels are empty: these images count as unlabelled",)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64])
def test_pixels_of_a_few_bits_are_said(dtype):
    """As scikit-learn's digits, from 0 to 16."""
    (line,) = open_source((IMAGES // 16 + 1).astype(dtype)).notices
    assert line.endswith("the brightest found is 16")


def test_pixels_that_were_divided_twice_are_said():
    (line,) = open_source(np.eye(8, dtype=np.float32)[None] / 255).notices
    assert line.endswith("from 0 to 1, scaled by 255; the brightest found is 0.0039")


def test_pixels_that_a_mask_hides_are_not_read():
    with pytest.raises(DataError, match=r"masked array, \d+ values of which are hidden"):
        open_source(np.ma.masked_greater(IMAGES, 100))
    whole = open_source(np.ma.masked_array(IMAGES))
    assert np.array_equal(whole.load(0), IMAGES[0])


def test_arrays_behind_the_first_of_a_file_are_refused(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, IMAGES)
        np.save(file, IMAGES)
    with pytest.raises(DataError, match="bytes behind its array uint8"):
        open_source(tmp_path / "a.npy")


@pytest.mark.parametrize("place", ["enum", "labels", "json", "file"])
def test_class_names_in_attributes_of_hdf5(tmp_path, place):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = IMAGES
        kind = h5py.enum_dtype({"cat": 0, "dog": 1}, basetype="i1") if place == "enum" else "i8"
        file.create_dataset("labels", data=[0, 1, 1, 0], dtype=kind)
        if place != "enum":
            where = file if place == "file" else file["labels"]
            names = json.dumps(["cat", "dog"]) if place == "json" else ["cat", "dog"]
            where.attrs["class_names" if place == "file" else "names"] = names
    source = open_source(tmp_path / "a.h5")
    assert labels(source) == ["cat", "dog", "dog", "cat"]
    assert "class names are read from the attributes of" in source.notices[0]


def test_a_damaged_npz_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"images.npy: its bytes are not those that were written"):
        open_source(tmp_path / "a.npz")


def test_labels_in_an_attribute_are_said(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = IMAGES
        file.attrs["labels"] = [0, 1, 1, 0]
    (line,) = open_source(tmp_path / "a.h5").notices
    assert "attribute 'labels' of the file is not read" in line


def test_names_in_attributes_that_fit_no_labels_are_left_out(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = np.zeros((10, 8, 8, 3), np.uint8) + 9
        file["labels"] = np.arange(10)
        file.attrs["names"] = ["left", "right"]
    source = open_source(tmp_path / "a.h5")
    assert source.label_names == tuple(map(str, range(10)))
    assert any("they fit no labels" in line for line in source.notices)


def test_a_chunk_of_many_images_is_kept(tmp_path, monkeypatch):
    """HDF5 keeps 1 to 8 MiB of chunks by itself: larger ones would be read anew for every image."""
    images = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None, None], (20, 512, 256, 3))
    chunks = (16, 512, 128, 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=images, chunks=chunks)
        file.create_dataset("small", data=images[:, :8, :8], chunks=(1, 8, 8, 3))
    for most in (2**28, 2**20):
        monkeypatch.setattr("vdvae_repr.data.hdf5.CACHE_BYTES", most)
        kept = {}
        for key in ("images", "small"):
            here = open_source(f"{tmp_path / 'a.h5'}:{key}").reader
            there = pickle.loads(pickle.dumps(here))  # as another process has it
            for reader in (here, there):
                assert (reader(17) == 17).all()
                (data,) = reader.arrays[0]._opened.values()  # by which the row was read
                kept[key] = data.id.get_access_plist().get_chunk_cache()[1]
                assert kept[key] >= min(most, 4 * np.prod(data.chunks))
                data.file.close()
        assert kept["images"] == min(most, 4 * np.prod(chunks))  # two rows of two chunks
        assert kept["small"] in (2**20, 2**23)


@pytest.mark.parametrize("name", ["when", "other/labels", "labels"])
def test_a_type_that_is_not_read_matters_where_it_is_used(tmp_path, name):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = IMAGES
        file.require_group("other")
        space = h5py.h5s.create_simple((4,))
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.UNIX_D32LE, space)
    if name == "labels":
        with pytest.raises(
            DataError, match=r"a.h5: labels holds values of a type that is not read"
        ):
            open_source(tmp_path / "a.h5")
    else:
        assert np.array_equal(read(open_source(tmp_path / "a.h5")), IMAGES)
    with pytest.raises(DataError, match=rf"{name} of a type that is not read \(4,\)"):
        open_source(f"{tmp_path / 'a.h5'}:nothing")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"IMAGE_WHITE_IS_ZERO": np.uint8(1)}, "white is 0"),
        (
            {"INTERLACE_MODE": np.bytes_("INTERLACE_PLANE")},
            r"save its images as transpose\(0, 2, 3, 1\)",
        ),
        ({"IMAGE_SUBCLASS": np.bytes_("IMAGE_INDEXED")}, "numbers of colours"),
        ({"scale_factor": 1 / 127.5, "add_offset": [-1.0]}, "packed values .*add_offset -1.0"),
        ({"scale_factor": np.float32(0.5)}, r"packed values \(scale_factor 0.5\)"),
    ],
)
def test_attributes_by_which_pixels_are_others_are_refused(tmp_path, attributes, message):
    """Names and values are those of HDF5's Image specification and the CF conventions."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = IMAGES
        file["images"].attrs.update(attributes)
    with pytest.raises(DataError, match=f"images holds .*{message}"):
        open_source(tmp_path / "a.h5")


def test_attributes_by_which_pixels_are_the_same_change_nothing(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = IMAGES
        file["images"].attrs.update(
            {
                "CLASS": np.bytes_("IMAGE"),
                "IMAGE_SUBCLASS": np.bytes_("IMAGE_TRUECOLOR"),
                "IMAGE_WHITE_IS_ZERO": np.uint8(0),
                "INTERLACE_MODE": np.bytes_("INTERLACE_PIXEL"),
                "scale_factor": np.float32(1 / 255),
                "add_offset": 0.0,
            }
        )
    assert np.array_equal(read(open_source(tmp_path / "a.h5")), IMAGES)


def test_labels_that_are_references_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["cat"] = IMAGES, 0
        file.create_dataset("labels", data=[file["cat"].ref] * 4, dtype=h5py.ref_dtype)
    with pytest.raises(DataError, match="labels holds HDF5 references; save the numbers or texts"):
        open_source(tmp_path / "a.h5")


def test_grey_images_side_by_side_in_the_last_axis_are_said_where_they_are_no_squares(tmp_path):
    np.save(tmp_path / "a.npy", np.resize(IMAGES, (9, 7, 12)))
    (line,) = open_source(tmp_path / "a.npy").notices
    assert line.startswith("read as 9 grey images of 7x12 pixels; transpose(2, 0, 1)")
    np.save(tmp_path / "a.npy", np.resize(IMAGES, (9, 7, 7)))
    assert open_source(tmp_path / "a.npy").notices == ()


def test_labels_of_no_split_beside_images_of_splits_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=IMAGES, test_images=IMAGES, labels=np.arange(8))
    said = " ".join(open_source(tmp_path / "a.npz").notices)
    assert "labels left out, as images are those of" in said
    assert "so that images have no labels; call those of each by its split, as t" in said


@pytest.mark.parametrize("name", ["labels", "splits", "class_names"])
@pytest.mark.parametrize("kind", ["S5", h5py.string_dtype(), "i4", "u1", "f4"])
def test_columns_that_nobody_wrote_whole_are_refused(tmp_path, name, kind):
    """HDF5 makes up 0 or an empty text for the others, which would be a class, a split or a name."""
    if name != "labels" and kind not in ("S5", h5py.string_dtype()):
        return
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = IMAGES
        if name == "class_names":
            file["labels"] = [0, 1, 2, 3]
        data = file.create_dataset(name, (4,), kind, chunks=(2,))
        data[:2] = [b"test", b"val"] if kind not in ("i4", "u1", "f4") else [1, 2]
    with pytest.raises(DataError, match=rf"{name} has 1 chunks of \(2,\) that were never written"):
        open_source(tmp_path / "a.h5")


@pytest.mark.parametrize(("kind", "none"), [("i4", -1), ("f4", np.nan)])
def test_labels_that_stand_for_none_need_not_be_written(tmp_path, kind, none):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = IMAGES
        file.create_dataset("labels", (4,), kind, chunks=(2,), fillvalue=none)[:2] = [5, 6]
    assert labels(open_source(tmp_path / "a.h5")) == ["5", "6", None, None]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("_FillValue", 2, "labels holds 1 value that is 2, by _FillValue its mark of missing"),
        ("missing_value", np.array([1.0]), "labels holds 1 value that is 1.0, by missing_value"),
        ("scale_factor", 2.0, r"labels holds packed values \(scale_factor 2.0\)"),
        ("add_offset", 5, r"labels holds packed values \(add_offset 5\)"),
        ("_FillValue", -1, None),
        ("_FillValue", 99, None),
        ("scale_factor", 1.0, None),
    ],
)
def test_labels_that_attributes_make_others_are_refused(tmp_path, name, value, message):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"] = IMAGES, [0, 1, 2, -1]
        file["labels"].attrs[name] = value
    if message is None:
        assert labels(open_source(tmp_path / "a.h5")) == ["0", "1", "2", None]
    else:
        with pytest.raises(DataError, match=message):
            open_source(tmp_path / "a.h5")


def test_an_array_has_the_labels_and_splits_that_are_called_by_its_name(tmp_path):
    arrays = {
        "a": IMAGES, "b": IMAGES, "labels": [0, 0, 0, 0], "a_labels": [1, 2, 3, 4],
        "splits": np.array(["test"] * 4, "S"), "a_splits": np.array(["train"] * 4, "S"),
    }  # fmt: skip
    np.savez(tmp_path / "k.npz", **arrays)
    with h5py.File(tmp_path / "k.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    for file in ("k.npz", "k.h5"):
        source = open_source(f"{tmp_path / file}:a")
        assert labels(source) == ["1", "2", "3", "4"]
        assert source.splits == ("train",) * 4
        source = open_source(f"{tmp_path / file}:b")
        assert labels(source) == ["0"] * 4
        assert source.splits == ("test",) * 4


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("images.npy", archive.read("images.npy"))
    with pytest.raises(DataError, match="expected one array 'images', found two"):
        open_source(tmp_path / "a.npz")


@pytest.mark.parametrize("value", [0, 255])
def test_pixels_that_are_made_up_for_chunks_are_said_by_their_value(tmp_path, value):
    with h5py.File(tmp_path / "g.h5", "w") as file:
        images = file.create_dataset(
            "images", (6, 8, 8, 3), "u1", chunks=(1, 8, 8, 3), fillvalue=value
        )
        images[:4] = 100
    source = open_source(tmp_path / "g.h5")
    assert any(f"never written; pixels there are all {value}" in line for line in source.notices)
    assert set(np.unique(np.asarray(source[5]))) == {value}


@pytest.mark.parametrize("key", ["data", "data/images"])
def test_labels_and_splits_outside_what_was_chosen_are_said(tmp_path, key):
    images = np.resize(IMAGES, (6, 8, 8, 3))
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file["data/images"], file["labels"] = images, np.arange(6) // 2
        file["more/splits"] = ["train"] * 3 + ["test"] * 3
    source = open_source(f"{tmp_path / 'g.h5'}:{key}")
    assert set(source.labels) == {-1}
    line = "no array 'data/labels', so that images have no labels; found labels, more/splits"
    assert source.notices == (line,)
    shutil.copy(tmp_path / "g.h5", tmp_path / "l.h5")
    with h5py.File(tmp_path / "l.h5", "a") as file:
        file["data/labels"] = np.arange(6) // 3
    source = open_source(f"{tmp_path / 'l.h5'}:{key}")
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.notices == ("arrays left out: more/splits",)


@pytest.mark.parametrize("word", ["trainval", "train_val", "train-val", "extra_2"])
def test_an_array_of_images_of_no_split_is_said_to_be_left_out(tmp_path, word):
    images = np.full((2, 8, 8, 3), 200, np.uint8)
    np.savez(tmp_path / "a.npz", **{f"{word}_images": images, "test_images": images})
    source = open_source(tmp_path / "a.npz")
    assert source.ids == ("test/0", "test/1")
    assert f"{word}_images left out: no split is called so" in source.notices
