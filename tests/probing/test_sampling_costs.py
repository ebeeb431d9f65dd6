"""What drawing costs: one z and the mean of several, beside the mean, by the same weights."""

import dataclasses
import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import vdvae_repr as vr
from vdvae_repr import results
from vdvae_repr.cli import app
from vdvae_repr.heads.neighbors import NearestNeighbor
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.report import plots

DRAWS = {"features": ["z"], "z": "sample", "draws": 3}
NEAREST = {"heads": {"nearest": NearestNeighbor(standardize=False)}}


@pytest.fixture(scope="module")
def stores(tiny, people, tmp_path_factory):
    """Means and draws of the same images of people, by the same weights."""
    folder = tmp_path_factory.mktemp("noise")
    mean = vr.extract(tiny, people(8), folder / "mean.h5", features=["mean", "delta"])
    return mean, vr.extract(tiny, people(8), folder / "draws.h5", **DRAWS)


def right(store, layer, feature):
    """Whether each probe image's nearest gallery image is of its person: by cosine, centred."""
    X, y, _ = store.matrix(layer, feature)
    gallery = np.concatenate([np.flatnonzero(y == k)[:4] for k in range(6)])
    probe = np.setdiff1d(np.arange(len(y)), gallery)
    X = X - X[gallery].mean(axis=0)
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    return y[gallery][(X[probe] @ X[gallery].T).argmax(axis=1)] == y[probe], y[probe]


def test_noise_is_a_paired_test_of_draws_against_the_mean(stores):
    mean, drawn = stores
    report = vr.probe(mean, "face_id", drawn=drawn, selections="single", **NEAREST)
    rows, found = report.rows, report.sampling_costs
    assert [noise.layer for noise in found] == [spec.name for spec in mean.layers]
    for noise in found:
        assert (noise.metric, noise.draws, noise.n_train) == ("rank1", 3, 24)
        hits, person = right(mean, noise.layer, "mean")
        assert noise.mean == pytest.approx(hits.mean())
        for feature, value, p in (
            ("z:0", noise.one_z, noise.p_one_z), ("z", noise.mean_of_z, noise.p_mean_of_z),
        ):  # fmt: skip
            own, _ = right(drawn, noise.layer, feature)
            assert value == pytest.approx(own.mean())
            gap = own.astype(float) - hits
            by_person = np.array([gap[person == k].sum() for k in range(6)])
            flips = np.array(list(product((-1, 1), repeat=6))) @ by_person
            assert p == pytest.approx(np.mean(np.abs(flips) >= abs(by_person.sum()) - 1e-9))
    assert any(noise.one_z != noise.mean for noise in found)
    by_feature = {row.feature for row in rows if row.model == "tiny"}
    assert by_feature == {"mean", "z:0", "z"}


def test_draws_are_never_chosen_and_change_nothing_else(stores):
    mean, drawn = stores
    alone = vr.probe(mean, "face_id", **NEAREST).rows
    rows = vr.probe(mean, "face_id", drawn=drawn, **NEAREST).rows
    assert not [row for row in rows if row.chosen and row.feature in ("z:0", "z")]
    told = [
        (row.model, row.layer, row.metric, row.value, row.chosen, row.p_value)
        for row in rows
        if row.feature not in ("z:0", "z")
    ]
    assert told == [(r.model, r.layer, r.metric, r.value, r.chosen, r.p_value) for r in alone]


def test_layers_together_and_pooled_are_compared_too(stores):
    mean, drawn = stores
    how = {"layers": ["<=4x4", "8x8"], "selections": "joint", "pools": [None, "avg"]}
    found = vr.probe(mean, "face_id", drawn=drawn, **how, **NEAREST).sampling_costs
    assert [(noise.layer, noise.pool) for noise in found] == [
        ("<=4x4", None), ("8x8", None), ("<=4x4", "avg"), ("8x8", "avg"),
    ]  # fmt: skip
    assert len(results.sampling_table(found).splitlines()) == 5
    with pytest.raises(vr.TaskError, match="one number of training images, selection and pooling"):
        plots.noise(found)
    with pytest.raises(vr.TaskError, match="found none"):
        plots.noise([])
    ax = plots.noise(found[:2])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [
        "mean", "z, one draw", "z, mean of 3 draws", "differs from the mean, p < 0.05",
    ]  # fmt: skip
    untold = [dataclasses.replace(row, p_one_z=None, p_mean_of_z=None) for row in found[:2]]
    assert [len(rings.get_offsets()) for rings in plots.noise(untold).collections] == [0, 0]


def test_the_command_writes_a_table_and_a_picture(stores, tmp_path):
    mean, drawn = (store.path for store in stores)
    arguments = ["probe", "--latents", mean, "--drawn", drawn, "--head", "nearest-neighbor"]
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [str(part) for part in [*arguments, "--out", out]])
    assert done.exception is None
    assert "mean of z" in done.stdout
    table = pd.read_csv(out / "noise.csv")
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for column, feature in (("mean", "mean"), ("one_z", "z:0"), ("mean_of_z", "z")):
        told = {
            row["layer"]: row["value"] for row in rows
            if (row["model"], row["feature"], row["metric"]) == ("tiny", feature, "rank1")
        }  # fmt: skip
        assert dict(zip(table["layer"], table[column], strict=True)) == pytest.approx(told)
    assert (out / "noise-nearest-neighbor.png").stat().st_size > 1000
    assert (out / "noise-nearest-neighbor-cumulative.png").stat().st_size > 1000
    singles = [row.layer for row in vr.Report.load(out).sampling_costs if row.selection == "single"]
    assert singles == [spec.name for spec in stores[0].layers]
    done = CliRunner().invoke(app, [str(part) for part in [*arguments, "--json"]])
    assert [json.loads(line)["value"] for line in done.stdout.splitlines()]
    assert "mean of z" in done.stderr


def test_stores_that_tell_no_noise_are_refused(stores, tiny, people, tmp_path):
    mean, drawn = stores
    torch.manual_seed(5)
    other = VDVAE(tiny.config, name="other").eval()

    def extracted(name, model=tiny, images=None, **how):
        return vr.extract(model, images or people(8), tmp_path / f"{name}.h5", **how)

    for store, message in (
        (mean, 'expected several draws of z; extract with z="sample", draws=8, features="z"'),
        (extracted("u", images=people(4), **DRAWS), "expected the images of"),
        (extracted("w", other, **DRAWS), "expected the weights_sha256 of"),
        (extracted("c", crop=8, **DRAWS), "expected the preprocessing of"),
        (extracted("p", pool="avg", **DRAWS), "expected the pool of"),
        (extracted("m", mirror=True, **DRAWS), "expected the mirror of"),
        (extracted("l", layers="<=4x4", **DRAWS), r"expected draws of layer 8x8\.0 too"),
    ):
        with pytest.raises(vr.TaskError, match=message):
            vr.probe(mean, "face_id", drawn=store, **NEAREST)
    with pytest.raises(vr.TaskError, match="with the feature mean alone, found delta"):
        vr.probe(mean, "face_id", drawn=drawn, features=["mean", "delta"], **NEAREST)
