import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

import vdvae_repr as vr
from vdvae_repr import results
from vdvae_repr.heads.neighbors import WeightedNeighbors
from vdvae_repr.probing.features import Columns, Features
from vdvae_repr.probing.statistics import Items, Units, figure, weighted


@pytest.fixture(scope="module")
def rows(tiny, tmp_path_factory, people):
    store = vr.extract(
        tiny, people(6, num_people=4), tmp_path_factory.mktemp("t") / "s.h5", layers="<=8x8"
    )
    return vr.probe(store, "face_id").rows


def test_every_layer_and_control_is_a_row(rows):
    table = results.to_frame(rows)
    assert list(table.columns) == list(results.COLUMNS)
    assert set(table["model"]) == {"tiny", "pixels", "pca", "random-init", "shuffled-labels"}
    ours = table[(table["model"] == "tiny") & (table["metric"] == "rank1")]
    for _, group in ours.groupby("head"):
        layers = {
            "single": ["1x1.0", "4x4.0", "8x8.0", "8x8.1"],
            "cumulative": ["0:2", "0:3", "0:4"],
        }
        assert group.groupby("selection")["layer"].agg(list).to_dict() == layers
        assert group["chosen"].sum() == 1
        assert group["versus"].notna().sum() == 1
        assert group["p_value"].notna().sum() == 0  # of four people nothing is told
    assert set(table["head"]) == {"nearest-neighbor", "ridge"}  # linear-lbfgs comes by name
    assert set(table["metric"]) == {"rank1"}  # of four people no rank 5
    assert set(table["role"][table["model"] == "tiny"]) == {"model"}
    pixels = table[(table["model"] == "pixels") & (table["metric"] == "rank1")]
    assert (pixels["value"] > 0.9).all()  # people differ in color
    assert (table["n_train"] == 12).all()
    assert ((table["ci_low"] <= table["value"]) & (table["value"] <= table["ci_high"])).all()
    assert (table["ci_low"] < table["ci_high"]).all()
    assert ((table["ci_low"] >= 0) & (table["ci_high"] <= 1)).all()
    assert (table["units"] == 4).all()


def test_match_curves_begin_at_the_chosen_rows_and_end_at_one(tiny, tmp_path, people):
    """Of what is drawn several times, as random weights, at the mean."""
    store = vr.extract(tiny, people(24), tmp_path / "s.h5", layers="1x1")
    report = vr.probe(store, "face_id", heads=["ridge"], cache=None)
    rank1 = [row for row in report.rows if row.metric == "rank1"]
    chosen = {r.model: r for r in rank1 if r.chosen or r.model == "shuffled-labels"}
    assert {curve.model for curve in report.curves} == set(chosen)
    for curve in report.curves:
        row = chosen[curve.model]
        assert curve.y[0] == pytest.approx(row.value)
        assert curve.y[-1] == pytest.approx(1)
        assert len(curve.x) == len(store.label_names)
        if curve.model == "tiny":
            assert curve.low[0] == pytest.approx(row.ci_low)
            assert curve.high[0] <= row.ci_high + 1e-9
            assert (curve.low <= curve.y + 1e-9).all()


def test_rows_are_strict_json_and_csv(rows, tmp_path):
    results.write(rows, tmp_path)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [set(results.COLUMNS)] * len(rows)
    assert "NaN" not in "".join(lines)
    assert (tmp_path / "results.csv").exists()
    assert "*" in results.table(rows)


def test_one_class_and_one_image_are_refused(tiny, tmp_path, people):
    one = vr.extract(tiny, people(4, num_people=1), tmp_path / "one.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match="at least 2 labelled people, found 1"):
        vr.probe(one, "face_id")
    single = vr.extract(tiny, people(1, num_people=4), tmp_path / "single.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match="at least 2 images of each person"):
        vr.probe(single, "face_id")
    with pytest.raises(vr.TaskError, match="unknown task"):
        vr.probe(single, "faces")


@pytest.mark.parametrize("task", ["face_id", "classification"])
def test_images_of_split_train_alone_are_refused_as_such(tiny, tmp_path, people, task):
    source = people(4)
    splits = ("train",) * len(source)
    all_train = vr.extract(tiny, replace(source, splits=splits), tmp_path / "a.h5", layers="1x1")
    with pytest.raises(
        vr.TaskError, match="of split test or val beside those of train, found none"
    ):
        vr.probe(all_train, task)
    splits, labels = ("test", *splits[1:]), np.where(np.arange(len(source)), source.labels, -1)
    unlabelled = replace(source, splits=splits, labels=labels)
    without = vr.extract(tiny, unlabelled, tmp_path / "b.h5", layers="1x1")
    with pytest.raises(
        vr.TaskError, match="train, found 1 without labels; label these, or extract"
    ):
        vr.probe(without, task)


@pytest.mark.parametrize("task", ["face_id", "classification"])
def test_a_label_of_one_image_is_left_out_and_said(tiny, tmp_path, people, task):
    """The figures are those of the store without it."""
    source = people(4)
    kept = np.arange(len(source)) // 4 != 2  # all images of p2 but one
    kept[8] = True
    some, none = (
        replace(
            source, ids=tuple(np.array(source.ids)[rows]), labels=source.labels[rows], splits=(), factors={},
            reader=lambda index, rows=rows: source.reader(np.flatnonzero(rows)[index]),
        )
        for rows in (kept, kept & (np.arange(len(source)) != 8))
    )  # fmt: skip
    said, figures = [], []
    for name, part in (("some", some), ("none", none)):
        store = vr.extract(tiny, part, tmp_path / f"{name}.h5", layers="4x4")
        report = vr.probe(store, task, heads=["ridge"])
        said += report.notes
        figures.append([(r.model, r.metric, r.value, r.chance, r.n_test) for r in report.rows])
    assert figures[0] == figures[1]
    assert any("without images in both left out (p2; 1 image)" in line for line in said)


def test_what_is_left_out_and_what_cannot_be_chosen_is_said(tiny, tmp_path, people):
    source = people(2)
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="<=4x4")
    report = vr.probe(store, "face_id")
    rows, notices = report.rows, report.notes
    assert "gallery holds a single image of every person" in notices[0]
    assert not any(row.chosen for row in rows if row.model == "tiny")
    source = people(16)
    object.__setattr__(source, "splits", ("train", "train", "test", "") * 24)
    store = vr.extract(tiny, source, tmp_path / "splits.h5", layers="1x1")
    for protocol in ("closed-set", "open-set"):
        report = vr.probe(store, vr.FaceId(protocol=protocol), heads=["ridge"])
        assert "24 images of no split left out" in report.notes[0]


def test_images_of_other_splits_are_never_scored_across(tiny, tmp_path, people):
    """Without a split train, halves of each person's images would lie across val and test."""
    source = people(16)
    object.__setattr__(source, "splits", ("val", "test", "val", "test") * 24)
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1")
    for task in ("face_id", vr.FaceId(protocol="open-set"), "classification", "factors"):
        with pytest.raises(vr.TaskError, match="expected a split train, found test, val"):
            vr.probe(store, task)
    object.__setattr__(source, "splits", ("test",) * 96)
    store = vr.extract(tiny, source, tmp_path / "one.h5", layers="1x1")
    assert vr.probe(store, "face_id", heads=["nearest-neighbor"]).rows


def test_no_images_refuses_the_controls(tiny, tmp_path, people):
    store = vr.extract(tiny, people(4, num_people=4), tmp_path / "s.h5", layers="1x1", images=False)
    with pytest.raises(vr.TaskError, match="pixels, pca and random-init"):
        vr.probe(store, "face_id")


def test_an_image_on_both_sides_is_named(tiny, tmp_path, people):
    source = people(4, num_people=4)
    original = source.reader
    object.__setattr__(source, "reader", lambda i: original(0 if i == 3 else i))
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match="3 in the probe is the same image as 0"):
        vr.probe(store, "face_id")


def test_joint_rows_hold_the_layers_of_each_selector(tiny, tmp_path, people):
    store = vr.extract(tiny, people(6, num_people=4), tmp_path / "s.h5", layers="<=8x8")
    found = vr.probe(store, "face_id", layers=["<=4x4", "8x8"], selections="joint").rows
    nearest = vr.probe(store, "face_id", layers="8x8", heads=["nearest-neighbor"]).rows
    assert {row.head for row in nearest} == {"nearest-neighbor"}
    with pytest.raises(vr.TaskError, match="unknown head 'forest'"):
        vr.probe(store, "face_id", heads=["forest"])
    ours = [row for row in found if row.model == "tiny" and row.metric == "rank1"]
    assert [row.layer for row in ours] == ["<=4x4", "8x8"] * 2
    dims = [sum(spec.num_dims for spec in group) for group in (
        [s for s in store.layers if s.resolution <= 4], [s for s in store.layers if s.resolution == 8]
    )]  # fmt: skip
    assert [row.dims for row in ours] == dims * 2
    assert sum(row.chosen for row in ours) == 2
    random = [row for row in found if row.model == "random-init" and row.metric == "rank1"]
    assert [(row.layer, row.dims) for row in random] == [(row.layer, row.dims) for row in ours]


def test_classification_measures_what_scikit_learn_measures(tiny, tmp_path, people):
    source = people(12, num_people=4)
    order = np.tile(np.repeat(["train", "val", "test"], 4), 4)
    object.__setattr__(source, "splits", tuple(order))
    drop = np.flatnonzero((source.labels == 3) & (order == "test"))[
        :3
    ]  # so that classes are unequal
    object.__setattr__(source, "splits", tuple("" if i in drop else s for i, s in enumerate(order)))
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="8x8.0")
    report = vr.probe(store, "classification", heads=["knn", "ridge", "linear-lbfgs"])
    rows, lines = report.rows, report.notes
    assert "choices are made on split val (16 images)" in lines[0]
    assert {row.protocol for row in rows} == {"knn", "ridge", "linear-lbfgs"}
    X, y, _ = store.matrix("8x8.0", "mean")
    train, test = (np.array(store.splits) == side for side in ("train", "test"))
    head = WeightedNeighbors().fit(X[train], y[train])
    found = {row.metric: row for row in rows if row.head == "knn" and row.model == "tiny"}
    predicted = head.predict(X[test])
    assert found["accuracy"].value == accuracy_score(y[test], predicted)
    balanced = balanced_accuracy_score(y[test], predicted)
    assert found["balanced_accuracy"].value == pytest.approx(balanced)
    assert set(found) == {"accuracy", "balanced_accuracy"}  # of four classes no top 5
    largest = np.unique(y[test], return_counts=True)[1].max() / test.sum()
    assert (found["accuracy"].chance, found["balanced_accuracy"].chance) == (largest, 0.25)
    assert found["balanced_accuracy"].ci_low <= balanced <= found["balanced_accuracy"].ci_high


def test_equal_scores_are_no_hits(tiny, tmp_path, people):
    store = vr.extract(tiny, people(6, num_people=4), tmp_path / "s.h5", layers="1x1.0")
    blank = Columns.of_array("pixels", np.zeros((len(store), 3), np.float32))
    flat = Features("pixels", None, (blank,))
    problem = vr.FaceId().bind(store)
    scored = problem.score(problem.heads["nearest-neighbor"], flat, seed=0)
    assert np.mean(scored.outcome == 0) == 0.25  # always the first of four


def test_balanced_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    strata = np.repeat([0, 1], [150, 50])
    rates = np.array([0.8, 0.3])
    hits = (rng.random((200, 400)) < rates[strata][:, None]).astype(float)
    items, units = [Items.balanced(right, strata) for right in hits.T], Units(np.arange(200), 0)
    resampled = weighted(items, units, units.draws())
    told = np.where(hits[:, 0] == 1, strata, 1 - strata)
    assert items[0].value == pytest.approx(balanced_accuracy_score(strata, told))
    found = [
        figure(np.array([item.value]), column[:, None], np.zeros((0, 1)), units, (0.0, 1.0))
        for item, column in zip(items, resampled.T, strict=True)
    ]
    covered = np.mean([one.low <= rates.mean() <= one.high for one in found])
    assert 0.91 <= covered <= 0.98  # 0.95, give or take three deviations and what 200 images blur


def test_bottom_up_is_a_row_a_resolution(tiny, tmp_path, people):
    store = vr.extract(
        tiny,
        people(6, num_people=4),
        tmp_path / "s.h5",
        layers="<=8x8",
        features=["bottom_up"],
        pool="avg:2",
    )
    rows = vr.probe(store, "face_id", features="bottom_up", heads=["nearest-neighbor"]).rows
    for model in ("tiny", "random-init"):
        found = [row for row in rows if row.model == model and row.metric == "rank1"]
        assert [(row.layer, row.dims) for row in found] == [
            ("1x1.0", 8),
            ("4x4.0", 32),
            ("0:2", 40),
            ("8x8.0", 32),
            ("0:3", 72),
        ]
