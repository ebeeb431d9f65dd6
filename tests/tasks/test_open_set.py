"""Open-set identification against loops over thresholds, and who counts as unknown."""

import numpy as np
import pytest

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.heads.neighbors import NearestNeighbor
from vdvae_repr.probing.features import Features
from vdvae_repr.probing.task import Scored


def with_splits(source, splits):
    return Source(
        name="split", ids=source.ids, reader=source.reader, labels=source.labels,
        label_names=source.label_names, splits=tuple(splits),
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(tiny, people, tmp_path_factory):
    """Three people with a gallery, and p1, p4 and p5 without."""
    source = people(36)
    splits = np.array(["train", "val", "test", "test"] * 54)
    splits[np.isin(source.labels, (1, 4, 5)) & (splits == "train")] = "test"
    path = tmp_path_factory.mktemp("open") / "s.h5"
    return vr.extract(tiny, with_splits(source, splits), path, layers="<=4x4")


def direct(score, own, stranger, far):
    """The best share of known probes over all thresholds that let a share `far` of strangers pass."""
    best = 0.0
    for threshold in np.append(score, -np.inf):
        if np.mean(score[stranger] > threshold) <= far + 1e-12:
            best = max(best, np.mean(own[~stranger] & (score[~stranger] > threshold)))
    return best


def test_rates_are_those_of_a_loop_over_thresholds(store):
    problem = vr.FaceId(protocol="open-set", far=[0.5, 0.17]).bind(store)
    rng = np.random.default_rng(0)
    for number in range(10):
        score = rng.normal(size=problem.n_test) + ~problem.stranger
        if number > 4:
            score = score.round(1)  # equal scores pass together or not at all
        own = (rng.random(problem.n_test) < 0.8) & ~problem.stranger
        item = Scored(Features("x", None, ()), np.stack([score, own]))
        for far in (0.5, 0.17):
            (figure,) = problem.figures(f"dir@{far}", [[item]], 0)
            assert figure.value == pytest.approx(direct(score, own, problem.stranger, far))
            assert figure.low <= figure.value <= figure.high
        same = problem.compare([item], [item], problem.heads["ridge"], 0)
        assert (same.value, same.units) == (0, 3)  # people known
        assert same.low < 0 < same.high


def test_the_curve_passes_through_the_rows(store):
    """And each of its points is that of a loop over thresholds."""
    task = vr.FaceId(protocol="open-set", far=[0.5])
    report = vr.probe(store, task, layers="4x4", heads=["nearest-neighbor"], cache=None)
    models = {"tiny", "pixels", "pca", "random-init", "shuffled-labels"}
    assert {curve.model for curve in report.curves} == models
    for curve in report.curves:
        (row,) = (
            r
            for r in report.rows
            if (r.model, r.layer) == (curve.model, curve.layer)
            and (r.chosen or r.model == "shuffled-labels")
        )
        assert curve.kind == "dir"
        assert curve.y[np.isclose(curve.x, 0.5)] == pytest.approx(row.value)
        if curve.model == "tiny":
            assert (curve.low <= curve.y + 1e-9).all()
            assert (curve.y <= curve.high + 1e-9).all()
    problem = task.bind(store)
    rng = np.random.default_rng(1)
    score = rng.normal(size=problem.n_test).round(1)
    own = (rng.random(problem.n_test) < 0.8) & ~problem.stranger
    item = Scored(Features("x", None, ()), np.stack([score, own]))
    curve = problem.curve(problem.heads["ridge"], [item], 0)
    expected = [direct(score, own, problem.stranger, far) for far in curve.x]
    np.testing.assert_allclose(curve.y, expected)


def test_a_row_is_what_the_head_says_by_hand(store):
    rows = vr.probe(
        store, vr.FaceId(protocol="open-set", far=[0.3]), layers="4x4", heads=["nearest-neighbor"]
    ).rows
    (row,) = [row for row in rows if row.model == "tiny"]
    X, y, _ = store.matrix("4x4.0")
    gallery = np.array(store.splits) == "train"
    head = NearestNeighbor().fit(X[gallery], y[gallery])
    scores = head.class_scores(X[~gallery])
    own = head.classes_[scores.argmax(axis=1)] == y[~gallery]
    stranger = np.isin(y[~gallery], (1, 4, 5))
    assert row.value == pytest.approx(direct(scores.max(axis=1), own, stranger, 0.3))
    assert (row.protocol, row.metric, row.at) == ("open-set", "dir", 0.3)
    assert row.chance == pytest.approx(0.3 / 3)
    assert (row.n_train, row.n_test) == (27, 189)
    assert row.value > 0.3  # people differ in color
    shuffled = next(row for row in rows if row.model == "shuffled-labels")
    assert shuffled.value < row.value


def test_resamples_without_a_stranger_say_nothing(tiny, people, tmp_path):
    """Strangers who score highest let nobody pass, however people are drawn."""
    source = people(12, num_people=3)
    splits = np.where(source.labels == 2, "test", np.array(["train", "test"] * 18))
    store = vr.extract(tiny, with_splits(source, splits), tmp_path / "s.h5", layers="1x1")
    problem = vr.FaceId(protocol="open-set", far=[0.9]).bind(store)
    outcome = np.stack([problem.stranger.astype(float), ~problem.stranger])
    item = Scored(Features("x", None, ()), outcome)
    (figure,) = problem.figures("dir@0.9", [[item]], 0)
    assert (figure.value, figure.low, figure.interval) == (0.0, 0.0, "clopper-pearson")
    assert figure.high == pytest.approx(1 - 0.025 ** (1 / 2))  # of two people known


def test_unknown_are_the_people_without_a_gallery_image(store):
    problem = vr.FaceId(protocol="open-set").bind(store)
    splits = np.array(store.splits)
    assert set(store.labels[problem.split.train]) == {0, 2, 3}
    assert (splits[problem.split.train] == "train").all()
    assert set(problem.split.test) == set(np.flatnonzero(splits != "train"))
    assert set(store.labels[problem.split.test][problem.stranger]) == {1, 4, 5}
    assert "27 and 189 images; 3 people known, 3 unknown" in problem.split.text


def test_people_of_the_gallery_who_are_not_asked_for_are_no_units(tiny, people, tmp_path):
    """Four are known, and chance is of four; two of them have a probe, and stand behind the rate."""
    source = people(12)
    splits = np.where(source.labels < 4, "train", "test")
    splits[np.isin(source.labels, (0, 1)) & (np.arange(72) % 2 == 0)] = "test"
    store = vr.extract(tiny, with_splits(source, splits), tmp_path / "s.h5", layers="1x1")
    problem = vr.FaceId(protocol="open-set", far=[0.5]).bind(store)
    own = (~problem.stranger).astype(float)
    item = Scored(Features("x", None, ()), np.stack([own, own]))
    (figure,) = problem.figures("dir@0.5", [[item]], 0)
    assert (figure.units, figure.value, figure.chance) == (2, 1, 0.5 / 4)
    assert figure.low == pytest.approx(0.025 ** (1 / 2))  # Clopper and Pearson's, of two
    assert problem.compare([item], [item], problem.heads["ridge"], 0).units == 2


def test_far_rates_are_those_that_impostors_are_enough_for(store):
    problem = vr.FaceId(protocol="open-set").bind(store)
    assert problem.metrics == ("dir@0.1",)  # 10 of 108 impostors
    assert "108 impostors are too few for FAR 0.01, 0.001" in problem.split.text
    problem = vr.FaceId(protocol="open-set", far=[0.5, 0.2]).bind(store)
    assert problem.metrics == ("dir@0.5", "dir@0.2")
    with pytest.raises(vr.TaskError, match=r"far=0\.09: .* found 9\.72 of 108; .* 0\.093 or"):
        vr.FaceId(protocol="open-set", far=[0.5, 0.09]).bind(store)


def test_where_all_have_a_gallery_half_of_the_people_are_drawn(tiny, people, tmp_path):
    store = vr.extract(tiny, people(12, num_people=9), tmp_path / "s.h5", layers="1x1")
    drawn = []
    for seed in (0, 0, 1):
        problem = vr.FaceId(protocol="open-set", far=[0.5]).bind(store, seed)
        known = set(store.labels[problem.split.train])
        unknown = set(store.labels[problem.split.test][problem.stranger])
        assert (len(known), len(unknown)) == (5, 4)
        assert not known & unknown
        assert (
            f"4 people, drawn with seed {seed}, are kept out of the gallery" in problem.split.text
        )
        first = np.flatnonzero(np.isin(store.labels, list(known))).reshape(5, 12)[:, :6]
        assert problem.split.train.tolist() == first.ravel().tolist()
        drawn.append(unknown)
    assert drawn[0] == drawn[1] != drawn[2]
    # 24 impostors are too few for any of the usual rates: the finest that they allow.
    assert vr.FaceId(protocol="open-set").bind(store).metrics == ("dir@0.42",)
    few = vr.extract(tiny, people(4, num_people=4), tmp_path / "few.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match=r"at least 10 probes of people .* found 4; take more"):
        vr.FaceId(protocol="open-set").bind(few)
    with pytest.raises(vr.TaskError, match=r"far=0\.1: .* found 2\.4 of 24; .* of 0\.42 or more"):
        vr.probe(store, vr.FaceId(protocol="open-set", far=[0.1]))


def test_a_store_without_probes_of_people_known_is_refused(tiny, people, tmp_path):
    source = people(12, num_people=4)
    splits = np.where(source.labels < 2, "train", "test")
    store = vr.extract(tiny, with_splits(source, splits), tmp_path / "s.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match="found 2 in the gallery, 0 probes of theirs and 24"):
        vr.probe(store, vr.FaceId(protocol="open-set"))
    with pytest.raises(vr.TaskError, match="expected closed-set or open-set, found 'half-open'"):
        vr.probe(store, vr.FaceId(protocol="half-open"))
    with pytest.raises(TypeError, match="protocol"):
        vr.Classification(protocol="open-set")
