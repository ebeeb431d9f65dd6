"""Scores kept on the disk belong to all that they depend on, and to nothing else."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.probing.cache import option_digest
from vdvae_repr.probing.task import Scored
from vdvae_repr.tasks.few_shot import Episodes
from vdvae_repr.tasks.identification import Identification

HOW = {"layers": "1x1", "heads": ["nearest-neighbor"], "cache": None}


@pytest.fixture(autouse=True)
def two_of_each_control(monkeypatch):
    monkeypatch.setattr("vdvae_repr.probing.controls.INITIALISATIONS", 2)
    monkeypatch.setattr("vdvae_repr.probing.task.PERMUTATIONS", 2)


@pytest.fixture
def scored(monkeypatch):
    """Names the features that are scored, not read."""
    found = []
    for kind in (Identification, Episodes):

        def counted(self, head, features, *rest, own=kind.score):
            found.append(features.model)
            return own(self, head, features, *rest)

        monkeypatch.setattr(kind, "score", counted)
    return found


@pytest.fixture
def store(tiny, people, tmp_path):
    return vr.extract(tiny, people(8), tmp_path / "s.h5", layers="<=4x4")


def test_what_depends_on_something_else_is_scored_anew(store, scored, tmp_path):
    first = vr.probe(store, "face_id", **HOW | {"cache": tmp_path / "k"}).rows
    every = sorted(scored)
    assert {"tiny", "pixels", "pca", "random-init", "shuffled-labels"} == set(every)
    for changed in ({"seed": 1}, {"heads": ["ridge"]}):
        scored.clear()
        vr.probe(store, "face_id", **HOW | {"cache": tmp_path / "k"} | changed)
        assert sorted(scored) == every
    scored.clear()
    vr.probe(
        store,
        "face_id",
        **HOW | {"cache": tmp_path / "k", "layers": "<=4x4", "selections": "single"},
    )
    assert set(scored) <= {"tiny", "random-init", "pca", "shuffled-labels"}  # not what was there
    assert scored.count("tiny") == 1
    vr.probe(store, "face_id", **HOW | {"cache": tmp_path / "elsewhere"})
    assert scored.count("pixels") == 1
    scored.clear()
    assert vr.probe(store, "face_id", **HOW | {"cache": tmp_path / "k"}).rows == first
    assert scored == []


def test_options_of_a_task_are_told_apart(store, scored, tmp_path):
    task = vr.FewShot(ways=3, queries=2, episodes=5)
    how = {"layers": "1x1", "heads": ["nearest-prototype-cosine"], "cache": tmp_path / "k"}
    vr.probe(store, task, **how)
    every = set(scored)
    for changed in ({"ways": 4}, {"queries": 3}, {"episodes": 6}, {"shots": 2}):
        scored.clear()
        vr.probe(store, replace(task, **changed), **how)
        assert set(scored) == every
    scored.clear()
    vr.probe(store, task, seed=1, **how)
    assert set(scored) == every
    split = replace(task, class_split=tmp_path / "c.csv")
    lines = "class,split\np0,base\n" + "\n".join(f"p{i},novel" for i in range(1, 6))
    (tmp_path / "c.csv").write_text(lines)
    vr.probe(store, split, **how)
    scored.clear()
    vr.probe(store, split, **how)
    assert scored == []
    lines = "class,split\np1,base\n" + "\n".join(f"p{i},novel" for i in (0, 2, 3, 4, 5))
    (tmp_path / "c.csv").write_text(lines)
    vr.probe(store, split, **how)
    assert "pixels" in scored


def test_a_task_of_ones_own_is_not_taken_for_the_one_it_is_made_of(store, scored, tmp_path):
    class Mine(vr.FaceId):
        """The same options, another split."""

    how = HOW | {"cache": tmp_path / "k", "controls": ()}
    vr.probe(store, "face_id", **how)
    scored.clear()
    vr.probe(store, Mine(), **how)
    assert scored == ["tiny"]


def test_a_protocol_is_an_option_too(store, tmp_path):
    how = HOW | {"cache": tmp_path / "k"}
    task = vr.FaceId(protocol="open-set", far=[0.9])
    rows = vr.probe(store, task, **how).rows
    assert vr.probe(store, task, **how).rows == rows
    assert {row.protocol for row in vr.probe(store, "face_id", **how).rows} == {"closed-set"}


def test_none_is_kept_where_none_is_asked_for(store, tmp_path):
    before = set(tmp_path.rglob("*"))
    report = vr.probe(store, "face_id", **HOW)
    assert set(tmp_path.rglob("*")) == before
    assert not any("scores are kept" in note for note in report.notes)
    report = vr.probe(store, "face_id", **HOW | {"cache": "auto"})
    folder = tmp_path / "s.h5.scores"
    assert [note for note in report.notes if "kept" in note] == [f"scores are kept in {folder}"]
    assert list(folder.iterdir())


class Weighing(vr.Problem):
    """The share of test images on one side of a plane of the user's."""

    def score(self, head, features, seed=0, shuffled=False):
        X = self.read(head, features)[self.split.test]
        return Scored(features, (X @ self.weights[: X.shape[1]] > 0).astype(float))


@dataclass(frozen=True, kw_only=True)
class Plane(vr.Task):
    name: ClassVar[str] = "plane"
    version: ClassVar[int | None] = 1

    weights: Any = None
    read: ClassVar[Any] = None

    def bind(self, store, seed=0):
        problem = Weighing(
            store, vr.Split(np.arange(8), np.arange(8, 48)), store.labels, metrics=["share"]
        )
        problem.weights = type(self).read(self.weights)
        return problem


del vr.Task.known["plane"]  # other tests count the tasks


def in_a_file(weights, folder, key=""):
    np.savez(folder / "w.npz", w=weights)
    return f"{folder / 'w.npz'}{key}"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (lambda w, _: w, np.asarray),
        (lambda w, _: w.tolist(), np.asarray),
        (lambda w, _: w.astype(object), lambda w: w.astype(float)),
        (lambda w, _: pd.DataFrame({"w": w}), lambda w: w["w"].to_numpy()),
        (lambda w, _: pd.Series(w), lambda w: w.to_numpy()),
        (lambda w, _: torch.tensor(w), lambda w: w.numpy()),
        (lambda w, _: {"a": {"b": w}}, lambda w: w["a"]["b"]),
        (lambda w, _: (1, w), lambda w: w[1]),
        (lambda w, folder: in_a_file(w, folder, ":w"), lambda w: np.load(w[:-2])["w"]),
        (lambda w, folder: (in_a_file(w, folder),), lambda w: np.load(w[0])["w"]),
        (lambda w, _: np.ma.masked_array(w, w < 0), lambda w: w.filled(0)),
    ],
)
def test_an_option_is_told_by_all_of_its_content(store, tmp_path, monkeypatch, given, read):
    """Of 2,000 numbers that are shown shortened, some in the middle change."""
    monkeypatch.setattr(Plane, "read", read)
    how = HOW | {"heads": None, "controls": (), "layers": "4x4.0"}
    first = np.random.default_rng(0).normal(size=2_000)
    second = first.copy()
    second[10:60] *= -1
    second[1_000] *= -1
    for weights in (first, second, second):
        task = Plane(weights=given(weights, tmp_path))
        kept = vr.probe(store, task, **how | {"cache": tmp_path / "k"})
        assert kept.rows[0].value == vr.probe(store, task, **how).rows[0].value
    middle = first.copy()
    middle[1_000] *= -1
    digests = []
    for weights in (first, middle, first):
        digests.append(option_digest(given(weights, tmp_path)))
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize(
    "odd", [lambda: 0, object(), {"a": [np.sin]}, Path(), torch.eye(2).to_sparse()]
)
def test_of_an_option_whose_content_is_not_known_no_scores_are_kept(
    store, tmp_path, monkeypatch, odd
):
    monkeypatch.setattr(Plane, "read", lambda w: np.ones(2_000))
    how = HOW | {"heads": None, "controls": (), "cache": tmp_path / "k"}
    report = vr.probe(store, Plane(weights=odd), **how)
    (said,) = [note for note in report.notes if "scores are kept" in note]
    assert said.startswith(f"no scores are kept: weights is a {type(odd).__name__}, whose content")
    assert not (tmp_path / "k").exists()


def test_a_plain_option_is_told_by_how_it_is_written():
    """So that what was kept before options were told by their content is found again."""
    for value in (None, 3, 0.1, "text", ("a", 1), [1.5], {"a": (1, None)}, True, np.float64(2)):
        assert option_digest(value) == repr(value)


def test_estimators_whose_code_may_change_are_scored_each_time(store, scored, tmp_path):
    """scikit-learn's are known by its version and their parameters; one's own class is not."""

    class Mine(GaussianNB):
        pass

    how = HOW | {"cache": tmp_path / "k", "controls": ()}
    for estimator, times in (
        (GaussianNB(), [1, 0]), (GaussianNB(var_smoothing=0.1), [1, 0]), (Mine(), [1, 1]),
        (make_pipeline(StandardScaler(), GaussianNB()), [1, 0]),
        (make_pipeline(FunctionTransformer(np.abs), GaussianNB()), [1, 1]),
    ):  # fmt: skip
        for expected in times:
            scored.clear()
            vr.probe(store, "face_id", **how | {"heads": {"own": estimator}})
            assert len(scored) == expected


def test_other_weights_at_the_same_path_are_scored_anew(store, tiny, people, scored, tmp_path):
    first = vr.probe(store, "face_id", **HOW | {"cache": tmp_path / "k"}).rows
    store.close()
    torch.manual_seed(3)
    model = VDVAE(tiny.config, name="tiny")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    other = vr.extract(model.eval(), people(8), store.path, layers="<=4x4", overwrite=True)
    scored.clear()
    rows = vr.probe(other, "face_id", **HOW | {"cache": tmp_path / "k"}).rows
    # The other controls are of the same images; which twins there are depends on the weights.
    assert set(scored) == {"tiny", "shuffled-labels", "random-init"}
    fresh = vr.probe(other, "face_id", **HOW).rows
    assert [row.value for row in rows] == [row.value for row in fresh]
    assert [row.value for row in rows] != [row.value for row in first]


def test_other_labels_of_the_same_images_are_scored_anew(store, tiny, people, scored, tmp_path):
    vr.probe(store, "face_id", **HOW | {"cache": tmp_path / "k"})
    source = people(8)
    renamed = Source(
        name="people", ids=source.ids, reader=source.reader, labels=source.labels[::-1].copy(),
        label_names=source.label_names,
    )  # fmt: skip
    other = vr.extract(tiny, renamed, tmp_path / "o.h5", layers="1x1")
    every = sorted(scored)
    scored.clear()
    vr.probe(other, "face_id", **HOW | {"cache": tmp_path / "k"})
    assert sorted(scored) == every


def test_draws_are_told_apart(tiny, people, tmp_path):
    store = vr.extract(
        tiny, people(8), tmp_path / "s.h5", layers="4x4", features=["z"], z="sample", draws=2
    )
    with_kept = [
        vr.probe(store, "face_id", features=name, heads=["ridge"], cache=tmp_path / "k").rows
        for name in ("z", "z:0", "z:1", "z:1")
    ]
    fresh = [
        vr.probe(store, "face_id", features=name, heads=["ridge"], cache=None).rows
        for name in ("z", "z:0", "z:1", "z:1")
    ]
    found, expected = (
        [[row.value for row in rows] for rows in all_] for all_ in (with_kept, fresh)
    )
    assert found == expected
    assert with_kept[2] == with_kept[3]


def test_a_score_that_was_damaged_is_made_again(store, scored, tmp_path):
    rows = vr.probe(store, "face_id", **HOW | {"cache": tmp_path / "k"}).rows
    kept = sorted((tmp_path / "k").iterdir())
    assert len(kept) == len(scored)
    assert {path.suffix for path in kept} == {".score"}
    kept[0].write_bytes(b"")
    kept[1].write_bytes(kept[1].read_bytes()[:100])
    scored.clear()
    again = vr.probe(store, "face_id", **HOW | {"cache": tmp_path / "k"}).rows
    assert len(scored) == 2
    assert [(r.model, r.layer, r.value, r.p_value) for r in again] == [
        (r.model, r.layer, r.value, r.p_value) for r in rows
    ]


def test_a_flipped_score_is_made_again(store, scored, tmp_path):
    """Wherever a bit flips, and where one score's file stands in the place of another's."""
    rows = vr.probe(store, "face_id", **HOW | {"cache": tmp_path / "k"}).rows
    first, second, *_ = sorted((tmp_path / "k").iterdir())
    whole = first.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [second.read_bytes(), whole + b"\0"]
    for place in rng.choice(8 * len(whole), 12, replace=False):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    for content in damaged:
        first.write_bytes(content)
        scored.clear()
        again = vr.probe(store, "face_id", **HOW | {"cache": tmp_path / "k"}).rows
        assert len(scored) == 1
        assert [replace(row, seconds=0) for row in again] == [replace(r, seconds=0) for r in rows]


def test_what_is_kept_does_not_depend_on_where_a_store_lies(store, scored, tmp_path):
    first = vr.probe(store, "face_id", **HOW | {"cache": tmp_path / "k"}).rows
    store.close()
    (tmp_path / "moved").mkdir()
    moved = store.path.rename(tmp_path / "moved" / "other.h5")
    scored.clear()
    assert (
        vr.probe(vr.LatentStore.open(moved), "face_id", **HOW | {"cache": tmp_path / "k"}).rows
        == first
    )
    assert scored == []


def test_a_task_that_draws_its_split_otherwise_is_scored_anew(store, tmp_path):
    """Equal options and an equal version: the split, the targets and the units tell them apart."""

    @dataclass(frozen=True)
    class Drawn(vr.Task):
        name, version = "drawn", 1
        learned = 4

        def bind(self, store, seed=0):
            train = np.arange(len(store)) % 8 < Drawn.learned
            split = vr.Split(np.flatnonzero(train), np.flatnonzero(~train))
            return vr.Problem(store, split, store.labels, units=store.labels)

    found, how = [], {"heads": ["ridge"], "controls": (), "layers": "1x1"}
    try:
        for Drawn.learned in (4, 2):
            (row,) = vr.probe(store, Drawn(), cache=tmp_path / "k", **how).rows
            (fresh,) = vr.probe(store, Drawn(), cache=None, **how).rows
            assert row.value == fresh.value
            found.append(row.n_train)
    finally:
        del vr.Task.known["drawn"]
    assert found == [24, 12]
