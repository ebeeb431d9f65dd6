import doctest

import pytest

from vdvae_repr.data import names
from vdvae_repr.data.names import names_from_paths, number_labels, split_of, splits_of


def test_examples():
    assert doctest.testmod(names).failed == 0


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("Train", "train"), ("TRAINING", "train"), ("valid", "val"), ("Validation", "val"), ("dev", "val"),
        (" test ", "test"), ("Testing", "test"), ("holdout", None), ("trainer", None),
    ],
)  # fmt: skip
def test_words_of_splits(word, split):
    assert split_of(word) == split


@pytest.mark.parametrize(
    ("ids", "labels", "splits"),
    [
        (["Train/a/1.png", "Test/b/1.png"], ["a", "b"], ("train", "test")),
        (["my/train/a/1.png", "my/valid/b/1.png"], ["a", "b"], ("train", "val")),
        (["x/my/training/a/1.png", "x/my/testing/b/1.png"], ["a", "b"], ("train", "test")),
        (
            ["a/train/1.png", "a/test/1.png", "b/train/2.png"],
            ["a", "a", "b"],
            ("train", "test", "train"),
        ),
        (["train/Ann_1.png", "dev/Bo_1.png"], ["Ann", "Bo"], ("train", "val")),
        (["cat/1.png", "dog/1.png"], ["cat", "dog"], ("", "")),
        (["my/cat/1.png", "my/dog/1.png"], ["my/cat", "my/dog"], ("", "")),
    ],
)
def test_labels_and_splits_of_paths(ids, labels, splits):
    found = names_from_paths(ids)
    assert (found.labels, found.splits, found.notices) == (labels, splits, ())


def test_a_folder_that_is_no_split_is_named():
    found = names_from_paths(["train/a/1.png", "test/a/2.png", "extra/a/3.png", "4.png"])
    assert found.splits == ("train", "test", "extra", "")
    assert found.labels == ["a", "a", "a", None]
    assert "1 images outside the folders of the splits" in found.notices[0]
    assert "no split is called 'extra' (1 images)" in found.notices[1]


def test_folders_that_are_called_like_splits_are_no_classes():
    found = names_from_paths(["train2017/a/1.png", "val2017/a/2.png"])
    assert (found.labels, found.splits) == (["a", "a"], ("train2017", "val2017"))
    assert "no split is called 'train2017' (1 images), 'val2017' (1 images)" in found.notices[0]
    assert names_from_paths(["bullet train/1.png", "dog/2.png"]).splits == ("", "")


def test_a_class_called_train():
    found = names_from_paths(["bus/1.png", "train/2.png"])
    assert (found.labels, found.splits) == (["bus", "train"], ("", ""))
    assert "folder train is read as a class, because bus stands beside it" in found.notices[0]


def test_unknown_words_stay_and_are_named():
    splits, notices = splits_of(["Train", "nan", "fold 1"])
    assert splits == ("train", "", "fold 1")
    assert "'fold 1' (1 images)" in notices[0]


def test_numbers_that_differ_in_zeros_are_two_labels_in_one_order():
    for given in (["1", "01"], ["01", "1"]):
        assert number_labels(given)[1] == ("01", "1")
