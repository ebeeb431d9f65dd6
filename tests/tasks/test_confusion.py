"""Which class is taken for which, as scikit-learn counts it, of the rows that are compared."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier

import vdvae_repr as vr
from vdvae_repr.heads.neighbors import WeightedNeighbors
from vdvae_repr.output import is_own
from vdvae_repr.tasks.identification import Identification

HEADS = {"knn": "knn", "vote": KNeighborsClassifier(3)}
HOW = {"controls": ("pixels",), "progress": False}
NAMES = ("cat", "=1+1", "-odd", "a,b\"c'", "none there")


def columns(report):
    return [
        (f.head, f.n_train, f.model, f.layer, f.selection, f.feature, f.pool, f.classes)
        for f in report.confusions
    ]


@pytest.fixture(scope="module")
def store(tiny, people, tmp_path_factory):
    """Classes of unequal numbers that are often confused, one of them with training images alone."""
    source = people(12, num_people=5)
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(60) < 0.3, rng.integers(0, 4, 60), source.labels)
    splits = np.where(rng.random(60) < 0.5, "train", "test")
    splits[labels == 4] = "train"
    source = replace(source, labels=labels, label_names=NAMES, splits=tuple(splits.tolist()))
    path = tmp_path_factory.mktemp("confusion") / "s.h5"
    return vr.extract(tiny, source, path, layers="<=4x4")


@pytest.fixture(scope="module")
def report(store, tmp_path_factory):
    cache = tmp_path_factory.mktemp("confusion_cache")
    return vr.probe(store, "classification", heads=HEADS, cache=cache, **HOW), cache


def test_counts_are_scikit_learns_of_the_row_that_is_compared(store, report):
    found, _ = report
    assert [f.head for f in found.confusions] == list(HEADS)
    tested = np.array(store.splits) == "test"
    train = ~tested & (store.labels < 4)
    estimators = {"knn": WeightedNeighbors(), "vote": HEADS["vote"]}
    for confusion in found.confusions:
        (row,) = (
            row
            for row in found.rows
            if (row.head, row.model, row.metric) == (confusion.head, "tiny", "accuracy")
            and row.chosen
        )
        for name in ("n_train", "model", "layer", "selection", "feature", "pool"):
            assert getattr(confusion, name) == getattr(row, name)
        X, y, _ = store.matrix(row.layer)
        predicted = estimators[confusion.head].fit(X[train], y[train]).predict(X[tested])
        np.testing.assert_array_equal(confusion.counts, confusion_matrix(y[tested], predicted))
        assert confusion.classes == NAMES[:4]  # the fifth has no test images
        np.testing.assert_array_equal(confusion.counts.sum(axis=1), np.bincount(y[tested]))
        assert np.trace(confusion.counts) / confusion.counts.sum() == pytest.approx(row.value)
        assert 0.3 < row.value < 1


def test_scores_that_are_kept_give_the_same_counts(store, report, monkeypatch):
    found, cache = report
    monkeypatch.delattr(Identification, "score")  # nothing is scored again
    again = vr.probe(store, "classification", heads=HEADS, cache=cache, **HOW)
    assert columns(again) == columns(found)
    for one, other in zip(again.confusions, found.confusions, strict=True):
        np.testing.assert_array_equal(one.counts, other.counts)


def test_a_folder_gives_counts_and_names_back(report, tmp_path):
    found = replace(report[0], rows=report[0].rows[:1])  # few to draw
    found.save(tmp_path)
    assert is_own(tmp_path / "confusion.csv")
    assert {"confusion-knn.png", "confusion-vote.png"} <= {p.name for p in tmp_path.iterdir()}
    read = vr.Report.load(tmp_path)
    assert columns(read) == columns(found)
    for one, other in zip(read.confusions, found.confusions, strict=True):
        np.testing.assert_array_equal(one.counts, other.counts)
    lines = (tmp_path / "confusion.csv").read_text().splitlines()
    assert lines[0] == "head,n_train,model,layer,selection,feature,pool,truth,predicted,images"
    filled = [np.sum((f.counts > 0) | np.eye(4, dtype=bool)) for f in found.confusions]
    assert len(lines) == 1 + sum(filled)
    replace(found, confusions=[]).save(tmp_path)  # as results of another task
    assert not list(tmp_path.glob("confusion*"))


def test_of_people_nothing_is_counted(store):
    assert not vr.probe(store, "face_id", heads="ridge", controls=(), cache=None).confusions


def test_where_nothing_is_chosen_it_is_of_the_row_that_is_compared(tiny, people, tmp_path):
    store = vr.extract(tiny, people(2), tmp_path / "s.h5", layers="<=4x4")
    report = vr.probe(store, "classification", heads="knn", cache=None, **HOW)
    assert not any(row.chosen for row in report.rows if row.model == "tiny")
    (compared,) = (row for row in report.rows if row.versus)
    (confusion,) = report.confusions
    assert confusion.layer == compared.layer
    assert np.trace(confusion.counts) / 6 == pytest.approx(compared.value)
