import numpy as np
import pytest

from vdvae_repr.data.faces import Pairs, about_pairs, read_pair_lists, read_pairs
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
        (
            "1\nAnn\t2\t2\nAnn\t1\tBo_Li\t1\n",
            "line 2: expected two images of Ann, found number 2 twice",
        ),
        ("1\nAnn\t1\t01\nAnn\t1\tBo_Li\t1\n", "line 2: expected two images of Ann"),
        ("1\nAnn\t1\t7\nAnn\t1\tCy\t1\n", r"2 images are not in the store, as Ann_0007 \(line 2\)"),
        (
            "1\nAnn\t1\t7\nAnn\t7\tBo_Li\t1\n",
            r"1 image is not in the store, as Ann_0007 \(line 2\); ",
        ),
    ],
)
def test_what_is_wrong_with_a_list_is_named(listed, text, message):
    with pytest.raises(DataError, match=message):
        read_pairs(listed(text), IDS)


def test_one_name_of_two_images(listed):
    with pytest.raises(DataError, match="Ann_0001 is the name of 2 images"):
        read_pairs(listed("1\nAnn\t1\t2\nAnn\t1\tBo_Li\t1\n"), [*IDS, "copy/Ann_0001.jpg"])


A, B, C, D, E, F = IDS
OWN = f"first,second,same\n{A},{B},1\n{A},{D},0\n"


@pytest.fixture
def table(tmp_path):
    def write(text, name="pairs.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    "text",
    [
        OWN,
        OWN.replace(",", ";"),
        f",a,b,Same\n0,{A},{B},True\n1,{A},{D},False\n",
        f"same,a,b\n1,{A},{B}\n0,{A},{D}\n",
    ],
)
def test_pairs_of_ones_own(table, text):
    pairs, known, _ = read_pair_lists(table(text), None, IDS)
    assert known is None
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([0, 0], [1, 3])
    assert pairs.same.tolist() == [True, False]
    assert pairs.fold.tolist() == [0, 0]


def test_folds_and_splits_of_ones_own_pairs(table):
    folded = f"a,b,same,fold\n{A},{B},1,10\n{A},{C},0,10\n{D},{E},1,9\n{D},{F},0,9\n"
    assert read_pair_lists(table(folded), None, IDS)[0].fold.tolist() == [1, 1, 0, 0]
    split = folded.replace("fold", "split").replace(",10", ",Testing").replace(",9", ",train")
    test, known, _ = read_pair_lists(table(split), None, IDS)
    assert (test.first.tolist(), known.first.tolist()) == ([0, 0], [3, 3])
    other = table(OWN, "other.csv")
    test, known, _ = read_pair_lists(table(split), other, IDS)
    assert (test.second.tolist(), known.second.tolist()) == ([1, 2], [1, 3])
    test, known, _ = read_pair_lists(other, table(split), IDS)
    assert (test.second.tolist(), known.second.tolist()) == ([1, 3], [4, 5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN + f"{A},{A},1\n", "line 4: expected two images, found 'Ann/Ann_0001.jpg' twice"),
        (OWN + f"{A},{C},2\n", "line 4: expected 1 or 0 in column 'same', found '2'"),
        (OWN + f"{A},{C}\n", "line 4: expected 3 values"),
        (
            OWN + f"{A},x.jpg,1\n",
            r"1 image is not in the store, as 'x.jpg' \(line 4\); ids there are as",
        ),
        (
            OWN + f"{A},x.jpg,1\nx.jpg,y.jpg,0\n",
            r"2 images are not in the store, as 'x.jpg' \(line 4\), 'y.jpg' \(line 5\);",
        ),
        (OWN.replace("same", "match"), "expected a column 'same', found first, second, match"),
        (
            OWN.replace("second", ""),
            "expected two columns of ids beside same, fold and split, found first",
        ),
        (f"a,b,note,same\n{A},{B},x,1\n", "two columns of ids .* found a, b, note"),
        (f"a,b,same\n{A},{B},1\n", "expected pairs of one person and of two, found 1 of one kind"),
        (f"a,b,same,split\n{A},{B},1,test\n{A},{D},0,x\n", "line 3: expected split train or test"),
        (
            f"a,b,same,split\n{A},{B},1,test\n{A},{D},0,train\n",
            "of two in split test, found 1 pairs",
        ),
        (f"a,b,same,fold\n{A},{B},1,1\n{A},{D},0,\n", "line 3: expected a fold, found 'none'"),
        (f"a,b,same,fold\n{A},{B},1,1\n{A},{D},0,NA\n", "line 3: expected a fold, found 'NA'"),
        (
            f'a,b,same,fold\n{A},{B},1,"1\n{A},{C},0,2"\n{A},{D},0,2\n',
            "lines 2 to 3: expected a row on each line, found quotation marks in column 'fold'",
        ),
        (
            OWN + f"{B},{A},0\n",
            "line 4: says that .* are two people, but other pairs make them one",
        ),
        (
            OWN + f"{D},{A},1\n",
            "line 3: says that .* are two people, but other pairs make them one",
        ),
        (
            OWN + f"{B},{C},1\n{A},{C},0\n",
            "line 5: says that 'Ann/Ann_0001.jpg' and .* are two people, but other pairs make them one",
        ),
    ],
)
def test_what_is_wrong_with_pairs_of_ones_own_is_named(table, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read_pair_lists(table(text), None, IDS)
    assert "\n" not in str(caught.value)


def test_folds_and_truths_written_as_floats(table):
    text = f"a,b,same,fold\n{A},{B},1.0,1\n{A},{C},0.0,1.0\n{D},{E},1,2.0\n{D},{F},0,2\n"
    pairs = read_pair_lists(table(text), None, IDS)[0]
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.fold.tolist() == [0, 0, 1, 1]


def test_pairs_that_contradict_the_labels_are_counted(table):
    pairs = read_pair_lists(table(OWN), None, IDS)[0]  # A and B are one person, A and D are two
    labels = np.array([0, 1, 0, 0, -1, -1])
    (line,) = about_pairs(pairs, labels, IDS)
    said = f"the labels of the store contradict 2 of 2 pairs, as {A} and {B}, here of one person"
    assert line.startswith(said)
    for labels in ([0, 0, 0, 1, 1, 1], [0, -1, 0, -1, 1, 1]):
        assert about_pairs(pairs, np.array(labels), IDS) == []


def test_pairs_that_are_there_again_are_counted(table):
    pairs = read_pair_lists(table(OWN + f"{B},{A},1\n{A},{B},1\n"), None, IDS)[0]
    assert about_pairs(pairs, np.full(6, -1), IDS) == ["2 pairs are there again, and count again"]
    once = Pairs(*(part[:-1] for part in (pairs.first, pairs.second, pairs.same, pairs.fold)))
    assert about_pairs(once, np.full(6, -1), IDS) == ["1 pair is there again, and counts again"]


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


def test_what_lists_of_pairs_do_not_say_together_is_said(table):
    both = (
        f"a,b,same,fold,split\n{A},{B},1,1,test\n{A},{C},0,2,test\n{D},{E},1,1,train\n"
        f"{D},{F},0,2,train\n"
    )
    path = table(both)
    count = f"the folds of {path} count for nothing, as the threshold is found on training pairs"
    assert read_pair_lists(path, None, IDS)[2] == [count]
    other = table(OWN, "other.csv")
    left = f"2 train pairs of {path} left out, as {other} has others"
    assert read_pair_lists(path, other, IDS)[2] == [left, count]
    assert read_pair_lists(other, path, IDS)[2] == [f"2 test pairs of {path} left out", count]
    folds = table("\n".join(line.rpartition(",")[0] for line in both.split("\n")), "folds.csv")
    test, choose, notes = read_pair_lists(folds, None, IDS)
    assert (test.fold.tolist(), choose, notes) == ([0, 1, 0, 1], None, [])
    assert read_pair_lists(other, None, IDS)[2] == []


def test_lines_of_a_list_of_pairs_that_are_one_row_are_said(table):
    text = f'a,b,same,\n{A},{B},1,"x\n{A},{C},0,x"\n{A},{D},0,\n{D},{F},0,\n'
    pairs, other = table(text), table(OWN, "other.csv")
    for first, second in ((pairs, None), (pairs, other), (other, pairs)):
        test, choose, notes = read_pair_lists(first, second, IDS)
        assert len(test.same if first is pairs else choose.same) == 3
        assert [note for note in notes if note.startswith(f"{pairs}: lines 2 to 3 are one row")]
