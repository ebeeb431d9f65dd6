"""What is said of images that are there twice, and of the splits that a task does not go by."""

import numpy as np
import pytest

import vdvae_repr as vr
from vdvae_repr.data.source import Source

EACH, CLASSES = 6, 8
LABELS = np.repeat(np.arange(CLASSES), EACH)
QUIET = {"controls": (), "cache": None, "progress": False, "selections": "single"}


@pytest.fixture
def noise(tiny, tmp_path):
    """Extracts noise in eight classes; some images are copies of others, as `{1: 0}` says."""

    def extract(copies=(), splits=(), labels=LABELS):
        images = np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
        for copy, of in dict(copies).items():
            images[copy] = images[of]
        source = Source(
            name="noise",
            ids=tuple(f"{i}" for i in range(48)),
            reader=lambda i: images[i],
            labels=np.asarray(labels),
            label_names=tuple("abcdefgh"),
            splits=tuple(splits),
        )
        return vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1", overwrite=True)

    return extract


def notes(store, task):
    return vr.probe(store, task, **QUIET).notes


def test_few_shot_refuses_a_support_image_that_is_a_query_too(noise):
    task = vr.FewShot(ways=2, episodes=4)
    with pytest.raises(vr.TaskError, match="7 in the novel classes is the same image as 6 in the"):
        notes(noise({7: 6}), task)
    notes(noise(), task)


def test_few_shot_refuses_copies_in_whatever_episodes_are_drawn_of(noise, tmp_path):
    """Base classes that only means come from may hold some; those that a layer is chosen on may not."""
    table = tmp_path / "c.csv"

    def task(*sides):
        rows = "".join(f"{k},{side}\n" for k, side in zip("abcdefgh", sides, strict=True))
        table.write_text("class,split\n" + rows)
        return vr.FewShot(ways=2, episodes=4, class_split=table)

    base, val, novel = ["base"] * 2, ["val"] * 2, ["novel"] * 4
    notes(noise({1: 0}), task(*base, *val, *novel))  # chosen on val
    with pytest.raises(vr.TaskError, match="1 in the base classes"):
        notes(noise({1: 0}), task(*base, *base, *novel))
    with pytest.raises(vr.TaskError, match="13 in the val classes"):
        notes(noise({13: 12}), task(*base, *val, *novel))


def test_pairs_of_an_image_and_its_copy_are_counted(noise, tmp_path):
    """Noise, of which nothing can be told but what is there twice."""
    rows = []
    for side, people in (("train", range(4)), ("test", range(4, 8))):
        for k in people:
            rows += [(6 * k + i, 6 * k + i + 1, 1, side) for i in (0, 2, 4)]
            other = 6 * (k + 1 if k + 1 in people else people[0])
            rows += [(6 * k + i, other + i + 3, 0, side) for i in (0, 1, 2)]
    text = "".join(",".join(map(str, row)) + "\n" for row in rows)
    (tmp_path / "p.csv").write_text("a,b,same,split\n" + text)
    task = vr.FaceVerification(pairs=tmp_path / "p.csv")
    assert not any("copy" in line for line in notes(noise(), task))
    found = " ".join(notes(noise({25: 24, 27: 26}), task))
    assert "2 of 48 pairs are of an image and its copy, as 24 and 25" in found


def test_one_image_of_two_classes_on_one_side_is_said(noise):
    found = " ".join(notes(noise({6: 0, 13: 0}), "classification"))
    assert "0 and 6 in the train are one image of two classes, as are 1 more" in found
    found = " ".join(notes(noise({7: 6, 13: 12}), "classification"))
    assert "two classes" not in found


def test_few_shot_says_whatever_split_its_images_are_of(noise):
    splits = (["train"] * 3 + ["test"] * 2 + ["exclude"]) * CLASSES
    store = noise(splits=splits)
    (line, *_) = notes(store, vr.FewShot(ways=2, episodes=4))
    assert "images of every split are taken: exclude (8), test (16), train (24)" in line
    assert "8 images of split exclude left out" in notes(store, "classification")[0]
    (line, *_) = notes(noise(splits=["train"] * 48), vr.FewShot(ways=2, episodes=4))
    assert "every split" not in line


def test_where_test_has_no_labels_val_is_tested_on_and_that_is_said(noise):
    """As contests divide their data."""
    splits = (["train"] * 3 + ["val"] + ["test"] * 2) * CLASSES
    unlabelled = np.where(np.array(splits) == "test", -1, LABELS)
    (line, *_) = notes(noise(splits=splits, labels=unlabelled), "classification")
    assert "test: split val, as no image of split test has a label (24 and 8 images" in line
    assert "16 unlabelled images left out" in line


def test_classes_that_are_called_otherwise_on_either_side_are_named(noise):
    """As numbers in train and words in test."""
    splits = ["train"] * 24 + ["test"] * 24
    with pytest.raises(vr.TaskError, match=r"train: a, b, c, \.\.\.; test: e, f, g, \.\.\.\)"):
        notes(noise(splits=splits), "classification")


def test_people_on_both_sides_of_pairs_are_counted(noise, tmp_path):
    """Of 8 people, 0 and 1 are in training and in test pairs, or in two folds, by other images."""

    def found(column, sides):
        rows = [f"a,b,same,{column}"]
        for side, first, people in sides:
            for k, other in zip(people, [*people[1:], people[0]], strict=True):
                at = 6 * k + first
                rows += [f"{at},{at + 1},1,{side}", f"{at},{6 * other + first + 1},0,{side}"]
        (tmp_path / "p.csv").write_text("\n".join(rows) + "\n")
        return " ".join(notes(noise(), vr.FaceVerification(pairs=tmp_path / "p.csv", far=[])))

    strangers = [("train", 0, [0, 1, 2]), ("test", 3, [3, 4, 5])]
    assert "people are in" not in found("split", strangers)
    known = [("train", 0, [0, 1, 2]), ("test", 3, [0, 1, 3, 4, 5])]
    assert "2 of 6 people are in training and in test pairs, by other images" in found(
        "split", known
    )
    folds = [(0, 0, [0, 1, 2]), (1, 3, [0, 1, 3, 4])]
    assert "2 of 5 people are in several folds, by other images" in found("fold", folds)
