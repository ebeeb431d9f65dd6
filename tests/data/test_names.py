import doctest

import numpy as np
import pytest

from vdvae_repr.data import names
from vdvae_repr.data.names import (
    about_class_names,
    called_like_fields,
    class_names,
    factor_values,
    look_alikes,
    merged_ids,
    names_from_paths,
    namesakes,
    number_labels,
    split_of,
    splits_of,
    unlabelled,
)
from vdvae_repr.errors import DataError


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
    assert "1 image outside the folders of the splits" in found.notices[0]
    assert "no split is called 'extra' (1 image)" in found.notices[1]


def test_folders_that_are_called_like_splits_are_no_classes():
    found = names_from_paths(["train2017/a/1.png", "val2017/a/2.png"])
    assert (found.labels, found.splits) == (["a", "a"], ("train2017", "val2017"))
    assert "no split is called 'train2017' (1 image), 'val2017' (1 image)" in found.notices[0]
    assert names_from_paths(["bullet train/1.png", "dog/2.png"]).splits == ("", "")


def test_a_class_called_train():
    found = names_from_paths(["bus/1.png", "train/2.png"])
    assert (found.labels, found.splits) == (["bus", "train"], ("", ""))
    assert "folder train is read as a class, because bus stands beside it" in found.notices[0]


def test_unknown_words_stay_and_are_named():
    splits, notices = splits_of(["Train", "nan", "fold 1"])
    assert splits == ("train", "", "fold 1")
    assert "'fold 1' (1 image)" in notices[0]


def test_numbers_that_differ_in_zeros_are_two_labels_in_one_order():
    for given in (["1", "01"], ["01", "1"]):
        assert number_labels(given)[1] == ("01", "1")


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["1", "1.0", " 1", "1.", "+1.0"], ["1"] * 5),
        (["1.0", "2.0", "nan", ""], ["1", "2", None, None]),
        (["1", "01", "001"], ["1", "01", "001"]),
        (["3.000000000000000000e+00", "3"], ["3", "3"]),
        (["-0.0", "0"], ["0", "0"]),
        (["cat", "Cat", " cat "], ["cat", "Cat", "cat"]),
        (["1", "1.0", "cat"], ["1", "1", "cat"]),
        (["1.0", "1.5", "beta"], ["1.0", "1.5", "beta"]),
        (["1e3", "1000", "0x1"], ["1e3", "1000", "0x1"]),
        (["1.0e3", "1E3", "2.02305E+13"], ["1.0e3", "1E3", "2.02305E+13"]),
        (["1.02400e+03", "1024"], ["1024", "1024"]),
        (["9" * 400], ["9" * 400]),
        ([None, "x"], [None, "x"]),
    ],
)
def test_a_whole_number_is_one_class_and_different_names_stay_apart(values, classes):
    assert class_names(values).labels == classes


@pytest.mark.parametrize(
    ("values", "notice"),
    [
        (["1", "1.0"], "labels '1' and '1.0' are one class"),
        (["1.0", "cat"], "labels are numbers and words: '1.0' is read as '1'"),
        (["0.5", "cat"], "words and numbers with fractions, as 'cat' and '0.5'"),
        (["1", "01"], "'01' and '1' are two classes"),
        (["cat", "Cat"], "'Cat' and 'cat' are two classes"),
        (["caf\u00e9", "cafe\u0301"], "are two classes"),
        (["\u201ccat\u201d", "cat"], "'cat' and '\u201ccat\u201d' are two classes"),
        (["hot dog", "hot_dog"], "'hot dog' and 'hot_dog' are two classes"),
        (["t-shirt", "t\u2013shirt"], "'t-shirt' and 't\u2013shirt' are two classes"),
        (["New York", "NewYork"], "'New York' and 'NewYork' are two classes"),
        (["person1", "person_1", "person_10"], "'person1' and 'person_1' are two classes;"),
        (["St. Louis", "St Louis"], "'St Louis' and 'St. Louis' are two classes"),
        (["1-a", "1a", "1-1", "11"], "'1-a' and '1a' are two classes;"),
        (["yaw30", "yaw-30", "yaw 30"], "'yaw 30' are two classes, and 1 more"),
        (["cat", "cat - Copy", "dog"], "'cat' and 'cat - Copy' are two classes;"),
        (["zebra", "Copy of zebra", "dog"], "'zebra' and 'Copy of zebra' are two classes;"),
        (["cat", "cat copy 2", "dog"], "'cat' and 'cat copy 2' are two classes;"),
        (["cat", "cat (1)", "dog"], "'cat' and 'cat (1)' are two classes;"),
        (["cat", "cat - Copy - Copy"], "'cat' and 'cat - Copy - Copy' are two classes;"),
        (["Katze", "Kopie von Katze"], "'Katze' and 'Kopie von Katze' are two classes;"),
        (
            ["\u0393\u0391\u03a4\u0391", "\u03b3\u03ac\u03c4\u03b1"],
            "are two classes;",
        ),  # Greek for cat
        (["Robert Downey Jr.", "Robert Downey Jr"], "are two classes;"),
        (["Jos\u00e9", "Jose"], "'Jose' and 'Jos\u00e9' are two classes;"),
        (["cat-1", "cat_1"], "'cat-1' and 'cat_1' are two classes;"),
        (["1000", "1e3", "cat"], "'1e3' and '1000' are two classes"),
        (["1e3", "1000"], "'1e3' and '1000' are two classes"),
        (["1.50", "1.5", "beta"], "words and numbers with fractions"),
        (["cat", "none", "None", "NONE"], "stand for none: 'none' (1), 'None' (1), 'NONE' (1)"),
        (["cat", "NaT", "Nat"], "stand for none: 'NaT' (1)"),
        (["2", "-1"], "label '-1' is a class of its own"),
        (["1", "-999", "0"], "label '-999' is a class of its own"),
        (["1", "-100", "-2", "0"], "labels '-100' and '-2' are each a class of their own"),
        (["1", "255", "20"], "label '255' is a class of its own"),
        (["1", "18446744073709551615"], "label '18446744073709551615' is a class of its own"),
        (["cat", "?", "?"], "label '?' is a class of its own"),
        (["cat", "\u2014"], "label '\u2014' is a class of its own"),
        (["2", "\u22121"], "label '\u22121' is a class of its own"),
        (["-1", "1", "cat"], "label '-1' is a class of its own"),
        (["cat", "<unknown>"], "label '<unknown>' is a class of its own"),
        (
            ["cat", "no_label", "[UNK]"],
            "labels '[UNK]' and 'no_label' are each a class of their own",
        ),
        (["1000", "1,000"], "'1,000' and '1000' are two classes"),
        (["cat (tame)", "cat(tame)"], "'cat (tame)' and 'cat(tame)' are two classes"),
        (["a/b", "a / b"], "'a / b' and 'a/b' are two classes"),
        (["cat", "Unknown"], "label 'Unknown' is a class of its own"),
        (["2", "unlabelled", "-1"], "labels 'unlabelled' and '-1' are each a class of their own"),
    ],
)
def test_labels_that_may_be_meant_otherwise_are_said(values, notice):
    line = class_names(values).notices[0]
    assert notice in line


@pytest.mark.parametrize("number", ["2.02305E+13", "2.023E+11", "1E+12", "1.0e3", "1E3"])
def test_labels_that_lack_digits_are_said(number):
    """By hand: of 2.02305E+13 six digits of fourteen stand there."""
    assert [
        f"as {number!r}, are numbers that a spreadsheet rounded" in line
        for line in class_names([number, "7"]).notices
    ] == [True]
    with_words = class_names([number, "cat"]).notices
    assert any("rounded" in line for line in with_words) == bool(
        {*".+"} & {*number}
    )  # 1E3 is a word


@pytest.mark.parametrize("number", ["3.000e+00", "1.024e+03", "1.6777217e7", "1000", "0.5e1", "e5"])
def test_labels_that_have_their_digits_are_not_called_rounded(number):
    assert not any("rounded" in line for line in class_names([number, "7"]).notices)


def test_factors_of_long_rounded_numbers_are_said_and_powers_of_ten_are_alike():
    values, said = factor_values(["2.02305E+13", "2.02306E+13"])
    assert (
        "values with powers of ten, as '2.02305E+13', are numbers that a spreadsheet rounded"
        in said
    )
    assert [float(value) for value in values] == [20230500000000, 20230600000000]
    assert factor_values(["1.0e3", "1E3", "1000"]) == (["1000"] * 3, "")  # an amount
    assert factor_values(["2.5e11", "1.5"])[1] == ""  # measured
    assert "rounded" in factor_values(["2.02305E+13", "unknown"])[1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_floating_labels_are_said_from_the_number_on_whose_neighbour_they_lack(dtype):
    """The truth is numpy's own distance to the next number."""
    limit = next(2**n for n in range(200) if np.spacing(dtype(2**n)) > 1)
    assert merged_ids(np.array([limit - 1, np.nan], dtype)) == ()
    (line,) = merged_ids(np.array([1, limit], dtype))
    assert f"cannot tell ids from {limit} on apart" in line
    assert merged_ids(np.array([2**62])) == ()


def test_class_names_that_an_array_gives_are_looked_at_as_labels_are():
    (line,) = about_class_names(["cat", "dog", "-1"], "class_names")
    assert line in class_names(["cat", "dog", "-1"]).notices
    first, second = about_class_names(["cat", "Cat", "nan"], "class_names")
    assert first == "class_names call a class 'nan'; label its images -1 if it stands for none"
    assert "'Cat' and 'cat' are two classes" in second


def test_numbers_that_may_be_classes_are_not_said():
    for labels in (["254", "255", "1"], ["0", "1", "300"], ["255"], ["0", "65535", "40000"]):
        assert class_names(labels).notices == ()


def test_signs_before_numbers_and_between_them_count():
    """As of poses and time points."""
    assert look_alikes(["yaw-30", "yaw30", "T1", "T-1", "1.5", "15", "1-1", "11", "C", "C++"]) == ()
    assert look_alikes(["Hamlet", "Hamlet (1948)", "yaw -30", "yaw 30", "rot_-5", "rot_5"]) == ()
    assert look_alikes(["circuit (1)", "circuit (2)", "class", "class 1", "5", "5 2"]) == ()
    assert look_alikes(["\u0419", "\u0418", "\u304b", "\u304c"]) == ()  # letters of their own


def test_names_that_are_one_number_are_said():
    """Python's own reading of a number is the truth; of long ids every digit counts."""
    for one, other in (("1e3", "1000"), ("1.50", "1.5"), ("+7", "7"), ("0.1", "1E-1")):
        assert float(one) == float(other)
        (line,) = look_alikes([one, other, "cat"])
        assert {one, other} == set(line.split("'")[1::2])
        assert "are two classes" in line
    assert (
        look_alikes(["9007199254740992", "9007199254740993", "1e999999999999", "1e3", "x1e3"]) == ()
    )


def test_images_called_like_parts_of_another_are_said():
    plain = ["cat/x.png", "cat/y.jpg"]
    assert called_like_fields(plain) == ()
    assert called_like_fields([*plain, "cat/z_mask.png", "dog/x_mask.png"]) == ()  # of no image
    (line,) = called_like_fields([*plain, "cat/x_mask.png", "cat/y-SEG.png", "cat/y_depth.tif"])
    assert line.startswith("3 images are called like parts of another, as cat/x_mask.png")
    for classes in (["Ford GT", "Ford Focus", "Ford Fiesta"], ["mask", "hat", "glove"]):
        assert called_like_fields([f"{name}/{i}.png" for name in classes for i in range(3)]) == ()
    for folders in (["left", "right", "masks"], ["images", "edges", "SegmentationClass"]):
        (line,) = called_like_fields([f"{name}/{i}.png" for name in folders for i in range(3)])
        assert line.startswith(f"3 images are called like parts of another, as {folders[-1]}/0.png")


def test_what_is_measured_is_no_class():
    with pytest.raises(DataError, match=r"found numbers with fractions, as '0.5'"):
        class_names(["0.5", "1", "nan"])


def test_words_of_one_split_are_said():
    for words in (["dev", "val", "train"], ["validation", "VAL"]):
        assert "are one split, val" in splits_of(words)[1][0]
    assert splits_of(["Train", "train", "test"])[1] == ()
    assert "'dev' and 'val' are one split" in names_from_paths(["dev/a/1", "val/a/1"]).notices[0]


def test_an_image_beside_class_folders_has_no_label():
    """The name before an underscore counts in a flat folder alone."""
    ids = ["cat/1.png", "my_root.png", "root.png"]
    assert names_from_paths(ids).labels == ["cat", None, None]
    assert unlabelled(ids, ["cat", None, None]) == ("2 images have no label, as my_root.png",)
    assert unlabelled(ids, ["cat"] * 3) == unlabelled(ids, [None] * 3) == ()


@pytest.mark.parametrize(
    ("ids", "labels", "splits"),
    [
        ("x/train/1 x/test/2 y/train/3 z/5", "x x y z", ("train", "test", "train", "")),
        ("cat/train/1 cat/test/2 dog/3", "cat cat dog", ("train", "test", "")),
        ("a/b/train/x/1 a/b/test/x/2 a/c/x/3", "x x a/c/x", ("train", "test", "")),
        ("trainset/a/1 testset/b/2", "a b", ("trainset", "testset")),
        ("traindata/a/1 testdata/b/2 more/b/3", "a b b", ("traindata", "testdata", "more")),
        ("box_train/1_c1 box_test/2_c1 query/2_c2", "1 2 2", ("box_train", "box_test", "query")),
    ],
)
def test_splits_beside_other_folders_are_no_classes(ids, labels, splits):
    found = names_from_paths(ids.split())
    assert (found.labels, found.splits) == (labels.split(), splits)
    (line,) = found.notices
    assert "belong to no split" in line or "no split is called" in line


def test_folders_in_folders_of_their_split():
    found = names_from_paths(["train/train/cat/1", "test/test/cat/2"])
    assert (found.labels, found.splits) == (["cat", "cat"], ("train", "test"))
    found = names_from_paths(["train/train/1", "train/bus/2", "val/train/3"])
    assert found.labels == ["train", "bus", "train"]
    assert found.notices == ("folders called like splits are read as classes: 'train'",)
    found = names_from_paths(["bullet_train/1", "test_tube/2", "cat/3"])
    assert found.labels == ["bullet_train", "test_tube", "cat"]
    assert "are read as classes: 'bullet_train', 'test_tube'" in found.notices[0]


def test_signs_and_what_is_not_seen_make_no_classes_unsaid():
    found = class_names(["+1", "1", "-0", "0"])
    assert found.labels == ["1", "1", "0", "0"]
    assert "are one class" in found.notices[0]
    (line,) = class_names(["a", "a\u200b"]).notices
    assert "are two classes" in line


def test_folders_of_one_name_in_two_folders_are_two_classes_and_that_is_said():
    (line,) = namesakes(names_from_paths(["fold1/cat/1", "fold2/cat/2", "fold2/dog/3"]).labels)
    assert line.startswith("'fold1/cat' and 'fold2/cat' are two classes; give labels in a table")
    (line,) = namesakes(["a/cat", "b/cat", "a/dog", "b/dog", "a/cow", None])
    assert "of 4 classes whose last folder is that of another" in line
    assert namesakes(["a/cat", "b/dog", "Cat", None]) == ()


@pytest.mark.parametrize(
    "folders",
    [
        "training_shoe test_tube",
        "training_shoe test_tube boot",
        "trains tests",
        "trainer tester boot",
        "strain_a contest_a",
        "valley devalley",
    ],
)
def test_classes_that_hold_a_word_of_a_split_are_classes(folders):
    found = names_from_paths([f"{folder}/1.png" for folder in folders.split()])
    assert found.labels == folders.split()
    assert set(found.splits) == {""}


@pytest.mark.parametrize(
    "folders", ["train2017 test2015", "trainA testA trainB testB", "Training_Set test_images"]
)
def test_folders_called_like_splits_are_splits(folders):
    found = names_from_paths([f"{folder}/cat/1.png" for folder in folders.split()])
    assert (found.splits, set(found.labels)) == (tuple(folders.split()), {"cat"})


@pytest.mark.parametrize(
    ("ids", "lines"),
    [
        (
            ["IMG_1.jpg", "IMG_2.jpg"],
            [
                "labels are read off the names of files, as 'IMG' of IMG_1.jpg",
                "all labels are of one class, 'IMG'",
            ],
        ),
        (["1.jpg", "2.jpg"], []),
        (["train/images/1.jpg", "valid/images/2.jpg"], ["all labels are of one class, 'images'"]),
        (
            ["cat/1.jpg", "cat/small/2.jpg", "dog/1.jpg"],
            ["folder 'cat/small' lies in the folder of class 'cat', and is a class of its own"],
        ),
        (["cat/1.jpg", "dog/1.jpg"], []),
        (
            ["train/cat/1.jpg", "test/nan/1.jpg"],
            ["'nan' is a class; take its images out of it if it stands for none"],
        ),
        (
            ["cat/1.jpg", "None/1.jpg", "n.a./1.jpg"],
            ["'None' and 'n.a.' are classes; take their images out of them if they stand for none"],
        ),
    ],
)
def test_labels_that_may_not_be_meant_are_said(ids, lines):
    assert list(names_from_paths(ids).about_labels) == lines


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["0,5", "1,2e-05", "3,1"], [0.5, 1.2e-05, 3.1]),
        (["5,1E-02", "1,2E-05"], [0.051, 1.2e-05]),
        ([",5", "-,25", "1,75"], [0.5, -0.25, 1.75]),
        (["0,5", "inf", "3,1"], [0.5, np.inf, 3.1]),
    ],
)
def test_numbers_with_decimal_commas_are_those_with_points(values, expected):
    read, said = factor_values(values, decimal_commas=True)
    assert [float(text) for text in read] == expected
    assert "numbers with decimal commas" in said
    assert factor_values(values)[0] == values
    if "inf" not in values:
        assert "is no number as it is written" in factor_values(values)[1]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            ["1.250", "300", ""],
            "'1.250' is read as a number with a fraction; if its point stands before thousands, write 1250",
        ),
        (
            ["1.000", "-12.000"],
            "'1.000' is read as a number with a fraction; if its point stands before thousands, write 1000",
        ),
        (["1.250", "0.375"], ""),
        (["1.250", "3.1"], ""),
    ],
)
def test_points_that_may_stand_before_thousands_are_said_where_decimals_may_have_commas(
    values, said
):
    assert factor_values(values, decimal_commas=True)[1] == said
    assert factor_values(values)[1] == ""


def test_several_classes_of_signs_are_classes_and_one_may_stand_for_none():
    for values in (
        ["+", "-", "x"],
        ["A", "B", "+"],
        ["A", "\u2764"],
        ["'", '"'],
        ["6'", '6"'],
        ["-1", "1"],
    ):
        assert class_names(values).notices == ()


def test_what_is_said_of_a_column_is_what_the_task_factors_makes_of_it():
    """It leaves out images where nothing or nan stands, takes other words as categories, refuses infinity."""
    for values, said in (
        (["M", "F", ""], "'' (1) stands for none"),
        (
            ["M", "F", "unknown"],
            "value 'unknown' is a category of its own; leave a value out where there is none",
        ),
        (["M", "F", "?"], "value '?' is a category of its own"),
        (["23", "-1", "41", "67", "-1"], "-1 counts as a number; leave a value out"),
        (["M", "F", "NA", "nan"], "'nan' (1) stands for none; 'NA' (1) is a category"),
        (["1.5", "inf", "2"], "1 value is infinite, as 'inf', and task factors takes finite"),
    ):
        assert said in factor_values(values)[1]
    for fine in (["-1", "0", "1", "2"], ["-1", "-2", "3"], ["-1", "0.5", "3"], ["-1", "1"]):
        assert factor_values(fine)[1] == ""
    assert factor_values(["1.5", "-inf", ""])[0] == ["1.5", "-inf", "nan"]


def test_classes_in_folders_that_torchvision_takes_for_the_classes_are_said():
    """ImageFolder's classes are the outermost folders: torchvision.datasets.ImageFolder."""
    nested = ["cats/siamese/1.jpg", "cats/persian/2.jpg", "dogs/pug/3.jpg", "dogs/beagle/4.jpg"]
    for ids in (nested, [f"train/{i}" for i in nested] + [f"test/{i}" for i in nested]):
        (line,) = namesakes(names_from_paths(ids).labels)
        assert line.startswith("4 classes are folders in folders, as 'cats/persian'")
        assert "ImageFolder reads 2, as 'cats'" in line
    for same in (
        ["my/cat/1", "my/dog/1"],
        ["a/cat/1", "b/dog/1"],
        ["cat/1", "dog/1"],
        ["cat/1", "cat/small/1", "cat/large/1", "dog/1"],  # of which another line speaks
    ):
        assert namesakes(names_from_paths(same).labels) == ()


@pytest.mark.parametrize(
    "ids",
    [
        ["images/1.png", "masks/1.png"],
        ["JPEGImages/1.jpg", "SegmentationClass/1.png"],
        ["train/images/1.jpg", "train/masks/1.png", "test/images/2.jpg"],
        ["images/a/1.jpg", "depth_maps/a/1.png"],
        ["images/1.jpg", "gt/1_mask.png"],
    ],
)
def test_folders_of_masks_beside_images_are_said(ids):
    (line,) = called_like_fields(ids)
    assert line.startswith(f"1 image is called like a part of another, as {ids[1]}")


def test_folders_of_masks_alone_are_images():
    for ids in (["with_mask/1.jpg", "without_mask/1.jpg"], ["images/1.jpg", "masks/2.png"]):
        assert called_like_fields(ids) == ()


def test_names_with_backslashes_are_said():
    found = names_from_paths(["train\\cat\\0.png", "test\\dog\\1.png"])
    assert found.splits == ("", "")
    assert "2 names have backslashes, as train\\cat\\0.png" in found.notices[0]


@pytest.mark.parametrize(
    "values",
    [
        ["M", "m", "F"],
        ["True", "TRUE"],
        ["a b", "a  b"],
        ["007", "7"],
        ["007", "7", "x"],
        ["1e3", "1000", "x"],
    ],
)
def test_categories_called_alike_are_said_as_labels_are(values):
    (line,) = look_alikes(values)
    assert line.replace("classes", "categories") in factor_values(values)[1]
    for apart in (["M", "F", "M"], ["1e3", "1000", "2"], ["007", "008"]):
        assert factor_values(apart)[1] == ""
