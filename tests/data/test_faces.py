import numpy as np
import pytest

from vdvae_repr.data.faces import read_pairs
from vdvae_repr.errors import DataError

IDS = [f"{name}/{name}_{number:04d}.jpg" for name in ("Ann", "Bo_Li") for number in (1, 2, 13)]


@pytest.fixture
def listed(tmp_path):
    def write(text):
        (tmp_path / "pairs.txt").write_text(text)
        return tmp_path / "pairs.txt"

    return write


def test_pairs_are_rows(listed):
    text = "2\t1\nAnn\t1\t13\nAnn\t2\tBo_Li\t1\nBo_Li\t2\t13\nBo_Li\t13\tAnn\t13\n\n"
    pairs = read_pairs(listed(text), IDS)
    assert pairs.first.tolist() == [0, 1, 4, 5]
    assert pairs.second.tolist() == [2, 3, 5, 2]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.fold.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a count"),
        ("one\n", "line 1: expected a count, or folds and a count, found 'one'"),
        ("1\nAnn\t1\t2\n", "expected 2 pairs .* found 1"),
        ("1\nAnn\t1\nAnn\t1\tBo_Li\t1\n", "line 2: expected name, number, number between tabs"),
        ("1\nAnn\t1\t2\nAnn\t1\t2\n", "line 3: expected name, number, name, number"),
        ("1\nAnn\t1\tx\nAnn\t1\tBo_Li\t1\n", "line 2: expected a number of an image, found 'x'"),
        ("1\nAnn\t1\t2\nAnn\t1\tAnn\t2\n", "line 3: expected two people, found Ann twice"),
        ("1\nAnn\t1\t7\nAnn\t1\tCy\t1\n", r"2 images are not in the store, as Ann_0007 \(line 2\)"),
    ],
)
def test_what_is_wrong_with_a_list_is_named(listed, text, message):
    with pytest.raises(DataError, match=message):
        read_pairs(listed(text), IDS)


def test_one_name_of_two_images(listed):
    with pytest.raises(DataError, match="Ann_0001 is the name of 2 images"):
        read_pairs(listed("1\nAnn\t1\t2\nAnn\t1\tBo_Li\t1\n"), [*IDS, "copy/Ann_0001.jpg"])


@pytest.mark.shared_data
def test_official_lists(shared_data):
    """Counts and layout as LFW's README gives them: View 1 test 500 + 500, View 2 10 folds of 300 + 300."""
    folder = shared_data / "lfw_pairs"
    ids = [p.relative_to(folder).as_posix() for p in (folder / "images").rglob("*.jpg")]
    pairs = read_pairs(folder / "pairsDevTest.txt", ids)
    assert (pairs.same.sum(), (~pairs.same).sum()) == (500, 500)
    people = np.array([i.split("/")[1] for i in ids])
    assert np.array_equal(people[pairs.first] == people[pairs.second], pairs.same)
    official = folder / "official" / "pairs.txt"
    names = {
        f"{parts[0]}_{int(number):04d}"
        for parts in (line.split("\t") for line in official.read_text().splitlines()[1:])
        for number in parts[1:] if number.isdecimal()
    } | {
        f"{parts[2]}_{int(parts[3]):04d}"
        for parts in (line.split("\t") for line in official.read_text().splitlines()[1:])
        if len(parts) == 4
    }  # fmt: skip
    folds = read_pairs(official, sorted(names))
    assert np.array_equal(np.bincount(folds.fold), [600] * 10)
    assert folds.same.sum() == 3000
