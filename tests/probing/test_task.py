"""Splits and targets of a task of one's own: rows by number, each once, and one target an image."""

import numpy as np
import pytest

import vdvae_repr as vr


@pytest.fixture(scope="module")
def store(tiny, people, tmp_path_factory):
    return vr.extract(tiny, people(4), tmp_path_factory.mktemp("t") / "s.h5", layers="1x1")


EVEN, ODD = np.arange(0, 24, 2), np.arange(1, 24, 2)


def test_lists_of_rows_are_rows(store):
    split = vr.Split(EVEN.tolist(), ODD.tolist())
    assert np.array_equal(split.train, EVEN)
    assert len(split.val) == 0
    assert vr.Problem(store, split, np.arange(24) % 3).n_test == 12


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (np.append(EVEN, EVEN[3]), "every row once, found 6 2 times"),
        (np.arange(24) % 2 == 0, "found a mask; np.flatnonzero makes"),
        (["0-0", "0-2"], "numbers of rows from 0, found <U3"),
        (EVEN - 24, "numbers of rows from 0"),
        (EVEN / 1.0, "numbers of rows from 0, found float64"),
    ],
)
def test_what_is_no_row_or_a_row_twice_is_one_line(train, said):
    for side in ("train", "test", "val"):
        with pytest.raises(vr.TaskError, match=f"Split: {side}: expected .*{said}"):
            vr.Split(**({"train": EVEN, "test": ODD} | {side: train}))


def test_one_metric_or_head_may_be_a_text(store):
    problem = vr.Problem(
        store, vr.Split(EVEN, ODD), np.arange(24.0), metrics="r2", default_heads="ridge"
    )
    assert (problem.metrics, problem.default_heads) == (("r2",), ("ridge",))
    with pytest.raises(vr.TaskError, match=r"metrics: expected r2, pearson of numbers, found 'r3'"):
        vr.Problem(store, vr.Split(EVEN, ODD), np.arange(24.0), metrics="r3")


def test_rows_targets_and_units_are_of_the_stores_images(store):
    with pytest.raises(vr.TaskError, match=r"test: expected rows below 24, .* found 25"):
        vr.Problem(store, vr.Split(EVEN, ODD + 2))
    split, y = vr.Split(EVEN, ODD), np.arange(24) % 3
    with pytest.raises(vr.TaskError, match=r"targets: expected one of each of 24 .* \(12,\)"):
        vr.Problem(store, split, y[:12])
    with pytest.raises(vr.TaskError, match=r"targets: expected .* found a masked array"):
        vr.Problem(store, split, np.ma.masked_array(y, mask=y > 1))
    with pytest.raises(vr.TaskError, match=r"units: expected one of each of 24 .* \(3,\)"):
        vr.Problem(store, split, y, units=y[:3])


Y = np.arange(24) % 3
FLOATS = np.random.default_rng(0).normal(size=24)


def replaced(values, rows, value):
    values = np.asarray(values).copy()
    values[rows] = value
    return values


@pytest.mark.parametrize(
    ("targets", "how", "said"),
    [
        (
            replaced(FLOATS, ODD, 2.0),
            {},
            "numbers that differ among test images, .* found 2 of all 12",
        ),
        (FLOATS, {"split": vr.Split(EVEN, [1])}, "numbers that differ among test .* of 1; test on"),
        (Y, {"split": vr.Split([], ODD)}, "Split: train: expected numbers of rows, found none"),
        (Y, {"split": vr.Split(EVEN, [])}, "Split: test: expected numbers of rows, found none"),
        (np.arange(24).astype("datetime64[D]"), {}, "targets: expected floats, .* datetime64"),
        (np.arange(24).astype("timedelta64[s]"), {}, "targets: expected floats, .* timedelta64"),
        (Y.astype("S"), {}, r"targets: expected floats, .* found \|S"),
        (FLOATS + 1j, {}, "targets: expected floats, .* found complex128"),
        (np.array(["a", None] * 12, object), {}, "targets: expected floats, .* NoneType None"),
        (np.arange(24), {}, "test images of classes that training images have, found none: 1, 11"),
        (FLOATS, {"units": replaced(Y / 1, 3, np.nan)}, "units: .* found nan for 0-3"),
        (
            FLOATS,
            {"units": np.array([None, *"abcdefghijklmnopqrstuvw"[::-1]], object)[::-1]},
            "None f",
        ),
        (FLOATS, {"chance": np.nan}, "chance: expected a number, found nan"),
        (FLOATS, {"chance": True}, "chance: expected a number, found True"),
        (
            replaced(FLOATS, [3], np.nan),
            {},
            "targets: expected finite numbers, found nan for 0-3; leave",
        ),
        (
            replaced(FLOATS, [2], -np.inf),
            {},
            "targets: expected finite numbers, found -inf for 0-2; leave",
        ),
    ],
)
def test_targets_and_units_of_which_nothing_can_be_told_are_one_line(store, targets, how, said):
    with pytest.raises(vr.TaskError, match=said):
        vr.Problem(store, how.pop("split", vr.Split(EVEN, ODD)), targets, **how)


def test_test_images_of_classes_that_were_not_learned_are_counted_and_named(store):
    targets = replaced(Y.astype("<U5"), [1, 5], ["owl", "=hawk"])

    class Own(vr.FaceId):
        def bind(self, store, seed=0):
            return vr.Problem(store, vr.Split(EVEN, ODD), targets)

    report = vr.probe(store, Own(), controls=(), cache=None)
    said = (
        "2 of 12 test images are of classes that no training image has (=hawk, owl), and count as"
    )
    assert any(note.startswith(said) for note in report.notes)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (replaced(FLOATS, [2, 3, 5], -999), "targets: -999 stands 3 times, far from all others"),
        (replaced(FLOATS, [2], 9999), "targets: 9999 stands 1 time, far from all others"),
        (replaced(Y.astype("<U4"), [2, 3], ["nan", "nan"]), "targets: 'nan' is a class; leave"),
        (
            replaced(Y.astype("<U9"), [2], "Unknown"),
            "targets: label 'Unknown' is a class of its own",
        ),
        (
            np.where(np.arange(24) < 9, "cat", np.where(np.arange(24) < 16, "Cat", "b")),
            "targets: 'Cat' and 'cat' are",
        ),
        (replaced(Y, [2, 3], -1), "targets: label '-1' is a class of its own"),
        (replaced(Y, [2, 3], 255), "targets: label '255' is a class of its own"),
        (FLOATS, ""),
        (Y, ""),
        (Y.astype("<U4"), ""),
    ],
)
def test_targets_that_may_stand_for_none_are_said(store, targets, said):
    notes = vr.Problem(store, vr.Split(EVEN, ODD), targets).notes
    assert [note for note in notes if note.startswith(said)] == notes
    assert bool(notes) == bool(said)


def test_units_that_are_not_known_of_training_images_do_not_matter(store):
    vr.Problem(store, vr.Split(EVEN, ODD), FLOATS, units=replaced(Y / 1, EVEN, np.nan))


def test_numbers_whose_squares_no_float_holds_are_refused(store):
    class Own(vr.FaceId):
        def bind(self, store, seed=0):
            return vr.Problem(store, vr.Split(EVEN, ODD), FLOATS * 1e200)

    with pytest.raises(vr.TaskError, match=r"y: expected numbers below 1e\+150, found"):
        vr.probe(store, Own(), controls=(), cache=None)
