"""Which row is compared where nothing is chosen, what stands beside it, and what a problem does by itself."""

import csv
import json
import re
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from scipy.stats import pearsonr
from typer.testing import CliRunner

import vdvae_repr as vr
from vdvae_repr.cli import app
from vdvae_repr.probing.task import Scored

HOW = {"cache": None, "layers": "<=4x4"}


@pytest.fixture(scope="module")
def store(tiny, people, tmp_path_factory):
    path = tmp_path_factory.mktemp("compared") / "s.h5"
    return vr.extract(tiny, people(4), path, layers="<=8x8", features=["mean", "kl"])


class Unfitted(vr.Problem):
    """Each image has a value between 0 and 1 that its features decide: nothing is fitted, none is chosen."""

    value, told = None, None

    def score(self, head, features, seed=0, shuffled=False):
        X = self.read(head, features)[self.split.test]
        outcome = (
            np.tanh(np.abs(X).mean(axis=1)) if self.value is None else np.full(len(X), self.value)
        )
        return Scored(features, outcome, self.told)


@dataclass(frozen=True, kw_only=True)
class Own(vr.Task):
    name: ClassVar[str] = "own"

    kind: type = vr.Problem
    targets: object = None
    metrics: tuple = ()
    learned: int = 12

    def bind(self, store, seed=0):
        rows = np.random.default_rng(0).permutation(len(store))
        split = vr.Split(np.sort(rows[: self.learned]), np.sort(rows[12:]))
        targets = store.labels if self.targets is None else self.targets
        return self.kind(store, split, targets, metrics=self.metrics)


@pytest.fixture(scope="module", autouse=True)
def _forgotten():
    yield
    vr.Task.known.pop("own", None)


def read(row):
    return row.layer, row.selection, row.feature, row.pool, row.dims


def test_where_nothing_is_chosen_all_have_what_is_compared(store):
    """All layers as they are, and of the random twins and with shuffled labels nothing else."""
    rows = vr.probe(
        store, Own(kind=Unfitted), controls=("random-init", "shuffled-labels"), pools=("avg:1", None), **HOW
    ).rows  # fmt: skip
    (compared,) = [row for row in rows if row.versus]
    assert read(compared) == ("0:2", "cumulative", "mean", None, 68)
    assert not compared.chosen
    (twin,) = [row for row in rows if row.model == "random-init" and row.chosen]
    (shuffled,) = [row for row in rows if row.model == "shuffled-labels"]
    assert read(twin) == read(shuffled) == read(compared)


def test_pruned_dimensions_have_no_random_twin_and_are_not_compared(store):
    """They are wider than the layers, which are pooled here."""
    how = {"controls": "random-init", "pools": "avg:1", "selections": ("single", "pruned")} | HOW
    rows = vr.probe(store, Own(kind=Unfitted), **how).rows
    (compared,) = [row for row in rows if row.versus]
    assert max(rows, key=lambda row: row.dims).selection == "pruned"
    assert compared.selection == "single"
    (twin,) = [row for row in rows if row.model == "random-init" and row.chosen]
    assert read(twin) == read(compared)


def test_a_training_score_is_of_what_may_be_chosen(store):
    rows = vr.probe(store, Own(), controls=("pixels", "shuffled-labels"), **HOW).rows
    assert {row.model for row in rows if row.training_score is None} == {"shuffled-labels"}


@pytest.mark.parametrize("learned", [0, 1])
def test_components_of_no_image_are_left_out_and_said(store, learned):
    task = Own(kind=Unfitted, learned=learned)
    report = vr.probe(store, task, controls=("pixels", "pca"), **HOW)
    assert "pca" not in {row.model for row in report.rows}
    left_out = {row.controls_left_out for row in report.rows}
    assert left_out == {"random-init, shuffled-labels, pca"}
    assert "no pca: it is fitted on two images or more that differ" in report.notes


def test_scores_that_are_not_finite_are_an_error_that_names_them(store):
    kind = type("Broken", (Unfitted,), {"value": np.nan})
    with pytest.raises(
        vr.TaskError, match=r"own: expected finite scores of tiny 1x1\.0.*under ridge"
    ):
        vr.probe(store, Own(kind=kind), controls=(), **HOW)
    kind = type("Untold", (Unfitted,), {"told": np.nan})
    rows = vr.probe(store, Own(kind=kind), controls=(), **HOW).rows
    assert {row.training_score for row in rows} == {None}
    assert not any(row.chosen for row in rows)


def test_error_is_what_is_left_of_accuracy(store):
    how = {"controls": ("pixels",), "cache": None, "layers": "1x1"}
    error, accuracy = (
        vr.probe(store, Own(metrics=metrics), **how)
        for metrics in (("error", "accuracy"), ("accuracy", "error"))
    )
    value = {(row.model, row.metric): row for row in error.rows}
    for model in ("tiny", "pixels"):
        wrong, right = (value[model, metric] for metric in ("error", "accuracy"))
        assert 0 < wrong.value == pytest.approx(1 - right.value)
        assert wrong.chance == pytest.approx(1 - right.chance)
        assert (wrong.ci_low, wrong.ci_high) == pytest.approx((1 - right.ci_high, 1 - right.ci_low))
    for one, other in zip(error.comparisons, accuracy.comparisons, strict=True):
        assert one.difference == pytest.approx(other.difference)
        assert one.p_raw == other.p_raw


def test_pearson_of_numbers_is_scipys(store):
    numbers = store.factors["bright"].astype(float)
    task = Own(targets=numbers, metrics=("pearson", "r2"))
    report = vr.probe(store, task, controls=("pixels",), cache=None, layers="1x1")
    row = next(row for row in report.rows if (row.model, row.metric) == ("tiny", "pearson"))
    train, test = (getattr(task.bind(store).split, side) for side in ("train", "test"))
    X = store.matrix("1x1.0")[0]
    predicted = vr.RidgeRegressor().fit(X[train], numbers[train]).predict(X[test])
    assert row.value == pytest.approx(pearsonr(predicted, numbers[test]).statistic, rel=1e-4)
    assert -1 <= row.ci_low < row.value < row.ci_high <= 1
    assert row.chance == 0
    (found,) = report.comparisons
    assert found.value - found.versus_value == pytest.approx(found.difference)


@pytest.mark.parametrize(
    ("numeric", "metric"), [(True, "mae"), (True, "accuracy"), (False, "map"), (False, "r2")]
)
def test_metrics_that_a_problem_does_not_know_are_refused(store, numeric, metric):
    targets = store.factors["bright"].astype(float) if numeric else store.labels
    known = "r2, pearson of numbers" if numeric else "accuracy, balanced_accuracy, error of classes"
    with pytest.raises(vr.TaskError, match=f"metrics: expected {known}, found '{metric}'"):
        Own(targets=targets, metrics=(metric,)).bind(store)
    assert Own(kind=Unfitted, targets=targets, metrics=(metric,)).bind(store).metrics == (metric,)


def test_rows_of_few_shot_say_what_their_heads_do_to_features(store):
    task = vr.FewShot(ways=3, shots=1, queries=2, episodes=4)
    heads = [
        "nearest-prototype",
        "nearest-prototype-cosine",
        "simpleshot-cl2n",
        "logistic",
        "ridge",
    ]
    rows = vr.probe(store, task, heads=heads, controls="pixels", cache=None, layers="1x1").rows
    found = {(row.head, row.scaling) for row in rows}
    assert found == {(h, "centred" if h == "simpleshot-cl2n" else "raw") for h in heads}


def test_models_beside_are_compared_row_picked_with_row_picked(tiny, people, tmp_path):
    """The other way round the difference has the other sign, and controls are compared as before."""
    source = people(8)
    one = vr.extract(tiny, source, tmp_path / "a.h5")
    other = vr.extract(tiny, source, tmp_path / "b.h5", z="sample")
    other.info = replace(other.info, model="other")
    how = {"controls": ["pixels"], "heads": "nearest-neighbor", **HOW}
    there = vr.probe(one, "face_id", beside=[other], **how)
    back = vr.probe(other, "face_id", beside=[one], **how)
    (found,), (turned,) = there.beside, back.beside
    values = {row.model: row.value for row in there.rows if row.chosen and row.metric == "rank1"}
    assert (found.model, found.versus) == ("tiny", "other")
    assert found.difference == pytest.approx(values["tiny"] - values["other"])
    assert turned.difference == pytest.approx(-found.difference)
    assert turned.p_value == found.p_value == found.p_raw  # of one model beside
    assert {c.versus for c in there.comparisons} == {"pixels"}
    alone = vr.probe(one, "face_id", **how)
    assert there.comparisons == alone.comparisons
    assert not alone.beside
    there.save(tmp_path / "results")
    assert vr.Report.load(tmp_path / "results").beside == there.beside


def test_a_store_beside_of_other_labels_or_splits_is_refused(tiny, people, tmp_path):
    """As `side_by_side` refuses the pair; one that has none says nothing of them."""
    source = replace(people(4), splits=("train", "train", "val", "test") * 6)
    others = {
        "labels": replace(source, labels=source.labels[::-1].copy()),
        "splits": replace(source, splits=source.splits[::-1]),
    }
    how = {"layers": "1x1", "features": "mean"}
    one = vr.extract(tiny, source, tmp_path / "a.h5", **how)
    task = vr.Classification()
    for what, changed in others.items():
        other = vr.extract(tiny, changed, tmp_path / f"{what}.h5", **how)
        message = rf"{what}\.h5: expected the {what} of .*a\.h5, found others; extract both"
        for option in ({"beside": [other]}, {"drawn": other}):
            with pytest.raises(vr.TaskError, match=message):
                vr.probe(one, task, **option)
        with pytest.raises(vr.StoreError, match=message):
            vr.side_by_side(one, other)
        done = CliRunner().invoke(
            app,
            [
                "probe",
                "--task",
                "classification",
                "--latents",
                str(one.path),
                "--beside",
                str(other.path),
            ],
        )
        assert re.search(message, str(done.exception))
    bare = replace(source, labels=np.full(24, -1), label_names=(), splits=())
    other = vr.extract(tiny, bare, tmp_path / "b.h5", **how)
    report = vr.probe(one, task, beside=[other], controls=[], heads="ridge", cache=None)
    first, second = (row for row in report.rows if row.metric == report.rows[0].metric)
    assert first.value == second.value


def test_scale_of_features_changes_no_score(tiny, people, tmp_path):
    one = vr.extract(tiny, people(6), tmp_path / "a.h5", layers="4x4")
    other = vr.extract(tiny, people(6), tmp_path / "b.h5", layers="8x8")
    heads = ["ridge", "linear-lbfgs", "knn", "knn-dino"]
    values = []
    for scale in (1.0, 2.0**-40, 2.0**-90):
        both = vr.side_by_side(one, other, weights=[scale, scale])
        report = vr.probe(both, "classification", heads=heads, controls=[], cache=None)
        values.append([row.value for row in report.rows])
    assert values[0] == values[1] == values[2]


def test_other_passes_and_resizes_of_stores_beside_are_said(tiny, people, tmp_path):
    source = people(4)
    one = vr.extract(tiny, source, tmp_path / "a.h5", layers="<=4x4")
    others = {
        "z sample, resize bicubic": vr.extract(
            tiny, source, tmp_path / "b.h5", layers="<=4x4", z="sample"
        ),
        "z mean, resize bilinear": vr.extract(
            tiny, source, tmp_path / "c.h5", layers="<=4x4", resize="bilinear"
        ),
    }
    for what, other in others.items():
        line = f"{other.path} is of {what}, antialiased, {one.path} of z mean, resize bicubic, antialiased"
        said = []
        vr.compare(one, other, notice=said.append)
        assert line in said
        report = vr.probe(
            one, "face_id", beside=[other], controls=[], heads="nearest-neighbor", **HOW
        )
        assert line in report.notes
    said = []
    vr.compare(one, one, notice=said.append)
    assert not [line for line in said if "resize" in line]


@pytest.mark.parametrize(
    ("features", "asked", "remedy"),
    [
        (["delta", "kl"], None, "both hold kl: name one"),
        (["log_std"], None, "no feature is in both"),
        (["delta", "kl"], "kl", None),
        (["mean", "kl"], None, None),
    ],
)
def test_which_features_are_compared_is_said_and_kept(
    store, tiny, people, tmp_path, features, asked, remedy
):
    path = tmp_path / "o.h5"
    vr.extract(tiny, people(4), path, layers="<=8x8", features=features)
    own, other = asked or "mean", asked or features[0]
    out = tmp_path / "out"
    arguments = ["compare", str(store.path), str(path), "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, *(["--feature", asked] if asked else [])])
    assert done.exit_code == 0
    assert f"each layer of tiny ({own}), and which of tiny ({other}) is" in done.stdout
    line = f"mean of {store.path} is compared with {other} of {path}; {remedy}"
    assert (line in done.stderr) == (remedy is not None)
    record = json.loads((out / "similarity.json").read_text())["record"]
    assert (record["rows_feature"], record["columns_feature"]) == (own, other)
    title = "debiased linear CKA" + (f": rows of {own}, columns of {other}" if own != other else "")
    with (out / "similarity.csv").open(newline="") as file:
        head, *table = csv.reader(file)
    assert head[0] == title
    a, b = (s.matrix("1x1", f)[0].astype(float) for s, f in ((store, own), (vr.open(path), other)))
    expected = debiased(a @ a.T, b @ b.T)
    np.testing.assert_allclose(float(table[0][1]), expected, atol=2e-6)
    assert CliRunner().invoke(app, arguments).exit_code == 0  # its own files are replaced


def debiased(K, L):
    """HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)); Song et al. 2012, equation 5, by its letters."""
    n = len(K)

    def hsic(K, L):
        K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
        one = np.ones(n)
        whole = one @ K @ one * (one @ L @ one) / ((n - 1) * (n - 2))
        return np.trace(K @ L) + whole - 2 / (n - 2) * (one @ K @ L @ one)

    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


def test_whom_faces64_was_trained_on_is_said_where_it_is_asked_about_lfw(store):
    shown = store.info
    for model, source, said in (("faces64", "lfw (lfw_funneled)", True), ("tiny", "lfw", False),
                                ("faces64-student", "lfw", True), ("faces64", "people", False)):  # fmt: skip
        store.info = replace(shown, model=model, source=source)
        report = vr.probe(store, "face_id", controls=[], heads="nearest-neighbor", **HOW)
        assert (
            any("trained on photographs of LFW's people" in line for line in report.notes) == said
        )
    store.info = shown
