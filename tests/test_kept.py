"""Scores kept on the disk belong to all that they depend on, and to nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.tasks.few_shot import FewShot
from vdvae_repr.tasks.identification import Identification

HOW = {"layers": "1x1", "heads": ["nearest-neighbor"]}


@pytest.fixture
def scored(monkeypatch):
    """Names the features that are scored, not read."""
    found = []
    for kind in (Identification, FewShot):

        def counted(self, head, features, *rest, own=kind.score):
            found.append(features.model)
            return own(self, head, features, *rest)

        monkeypatch.setattr(kind, "score", counted)
    return found


@pytest.fixture
def store(tiny, people, tmp_path):
    return vr.extract(tiny, people(8), tmp_path / "s.h5", layers="<=4x4")


def test_what_depends_on_something_else_is_scored_anew(store, scored, tmp_path):
    first = vr.run_task("face_id", store, keep=tmp_path / "k", **HOW)
    every = sorted(scored)
    assert {"tiny", "pixels", "pca", "random-init", "shuffled-labels"} == set(every)
    for changed in ({"seed": 1}, {"heads": ["ridge"]}):
        scored.clear()
        vr.run_task("face_id", store, keep=tmp_path / "k", **(HOW | changed))
        assert sorted(scored) == every
    scored.clear()
    vr.run_task("face_id", store, keep=tmp_path / "k", **(HOW | {"layers": "<=4x4"}))
    assert set(scored) <= {"tiny", "random-init", "pca", "shuffled-labels"}  # not what was there
    assert scored.count("tiny") == 1
    vr.run_task("face_id", store, keep=tmp_path / "elsewhere", **HOW)
    assert scored.count("pixels") == 1
    scored.clear()
    assert vr.run_task("face_id", store, keep=tmp_path / "k", **HOW) == first
    assert scored == []


def test_options_of_a_task_are_told_apart(store, scored, tmp_path):
    options = {"ways": 3, "queries": 2, "episodes": 5, "keep": tmp_path / "k", "layers": "1x1"}
    vr.run_task("few_shot", store, heads=["knn-1"], **options)
    every = set(scored)
    for changed in ({"ways": 4}, {"queries": 3}, {"episodes": 6}, {"shots": 2}, {"seed": 1}):
        scored.clear()
        vr.run_task("few_shot", store, heads=["knn-1"], **(options | changed))
        assert set(scored) == every
    (tmp_path / "c.csv").write_text(
        "class,split\np0,base\n" + "\n".join(f"p{i},novel" for i in range(1, 6))
    )
    vr.run_task("few_shot", store, heads=["knn-1"], class_split=tmp_path / "c.csv", **options)
    scored.clear()
    vr.run_task("few_shot", store, heads=["knn-1"], class_split=tmp_path / "c.csv", **options)
    assert scored == []
    (tmp_path / "c.csv").write_text(
        "class,split\np1,base\n" + "\n".join(f"p{i},novel" for i in (0, 2, 3, 4, 5))
    )
    vr.run_task("few_shot", store, heads=["knn-1"], class_split=tmp_path / "c.csv", **options)
    assert "pixels" in scored


def test_a_protocol_is_an_option_too(store, tmp_path):
    how = HOW | {"protocol": "open-set", "far": [0.9], "keep": tmp_path / "k"}
    rows = vr.run_task("face_id", store, **how)
    assert vr.run_task("face_id", store, **how) == rows
    closed = vr.run_task("face_id", store, keep=tmp_path / "k", **HOW)
    assert {row.protocol for row in closed} == {"closed-set"}


def test_other_weights_at_the_same_path_are_scored_anew(store, tiny, people, scored, tmp_path):
    first = vr.run_task("face_id", store, keep=tmp_path / "k", **HOW)
    store.close()
    torch.manual_seed(3)
    model = VDVAE(tiny.config, name="tiny")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    other = vr.extract(model.eval(), people(8), store.path, layers="<=4x4", overwrite=True)
    scored.clear()
    rows = vr.run_task("face_id", other, keep=tmp_path / "k", **HOW)
    assert set(scored) == {"tiny", "shuffled-labels"}  # the controls are of the same images
    fresh = vr.run_task("face_id", other, **HOW)
    assert [row.value for row in rows] == [row.value for row in fresh]
    assert [row.value for row in rows] != [row.value for row in first]


def test_other_labels_of_the_same_images_are_scored_anew(store, tiny, people, scored, tmp_path):
    vr.run_task("face_id", store, keep=tmp_path / "k", **HOW)
    source = people(8)
    renamed = Source(
        name="people", ids=source.ids, reader=source.reader, labels=source.labels[::-1].copy(),
        label_names=source.label_names,
    )  # fmt: skip
    other = vr.extract(tiny, renamed, tmp_path / "o.h5", layers="1x1")
    every = sorted(scored)
    scored.clear()
    vr.run_task("face_id", other, keep=tmp_path / "k", **HOW)
    assert sorted(scored) == every


def test_draws_are_told_apart(tiny, people, tmp_path):
    store = vr.extract(
        tiny, people(8), tmp_path / "s.h5", layers="4x4", features=["z"], z="sample", draws=2
    )
    with_kept = [
        vr.run_task("face_id", store, feature=name, heads=["ridge"], keep=tmp_path / "k")
        for name in ("z", "z:0", "z:1", "z:1")
    ]
    fresh = [
        vr.run_task("face_id", store, feature=name, heads=["ridge"])
        for name in ("z", "z:0", "z:1", "z:1")
    ]
    found, expected = (
        [[row.value for row in rows] for rows in all_] for all_ in (with_kept, fresh)
    )
    assert found == expected
    assert with_kept[2] == with_kept[3]


def test_a_score_that_was_damaged_is_made_again(store, scored, tmp_path):
    rows = vr.run_task("face_id", store, keep=tmp_path / "k", **HOW)
    kept = sorted((tmp_path / "k").iterdir())
    assert len(kept) == len(scored)
    assert {path.suffix for path in kept} == {".score"}
    kept[0].write_bytes(b"")
    kept[1].write_bytes(kept[1].read_bytes()[:100])
    scored.clear()
    again = vr.run_task("face_id", store, keep=tmp_path / "k", **HOW)
    assert len(scored) == 2
    assert [(r.model, r.layer, r.value, r.p_value) for r in again] == [
        (r.model, r.layer, r.value, r.p_value) for r in rows
    ]


def test_a_flipped_score_is_made_again(store, scored, tmp_path):
    """Wherever a bit flips, and where one score's file stands in the place of another's."""
    rows = vr.run_task("face_id", store, keep=tmp_path / "k", **HOW)
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
        again = vr.run_task("face_id", store, keep=tmp_path / "k", **HOW)
        assert len(scored) == 1
        assert [replace(row, seconds=0) for row in again] == [replace(r, seconds=0) for r in rows]


def test_what_is_kept_does_not_depend_on_where_a_store_lies(store, scored, tmp_path):
    first = vr.run_task("face_id", store, keep=tmp_path / "k", **HOW)
    store.close()
    (tmp_path / "moved").mkdir()
    moved = store.path.rename(tmp_path / "moved" / "other.h5")
    scored.clear()
    assert vr.run_task("face_id", vr.LatentStore.open(moved), keep=tmp_path / "k", **HOW) == first
    assert scored == []
