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
