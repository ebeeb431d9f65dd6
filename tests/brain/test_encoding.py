"""Encoding against scikit-learn and himalaya on features, and on brains whose layer and band are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import false_discovery_control, pearsonr
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

import vdvae_repr as vr
from vdvae_repr.brain import voxelwise
from vdvae_repr.data.source import Source
from vdvae_repr.heads.algebra import Algebra
from vdvae_repr.heads.linear import ALPHAS
from vdvae_repr.output import is_own
from vdvae_repr.probing.features import Columns, Features
from vdvae_repr.probing.task import Task
from vdvae_repr.tasks import encoding
from vdvae_repr.tasks.encoding import VoxelScores


@pytest.fixture(scope="module")
def store(tiny, people, tmp_path_factory):
    source = people(20, num_people=8)
    path = tmp_path_factory.mktemp("encoding") / "s.h5"
    split = Source(
        name="seen",
        ids=source.ids,
        reader=source.reader,
        labels=source.labels,
        splits=["train", "train", "test", "train"] * 40,
    )
    return vr.extract(tiny, split, path)


def planted(store, layer, voxels, seed, noise=1.0, repetitions=1):
    """Responses of voxels that see one layer, through noise of that deviation beside theirs of 1."""
    rng = np.random.default_rng(seed)
    X = StandardScaler().fit_transform(store.matrix(layer)[0].astype(np.float64))
    signal = StandardScaler().fit_transform(X @ rng.normal(size=(X.shape[1], voxels)))
    return signal + noise * rng.normal(size=(repetitions, *signal.shape))


def features(*parts):
    columns = [
        Columns(f"layer {i}", i, X.shape[1], lambda X=X: iter([X]), lambda i=i: str(i))
        for i, X in enumerate(x.astype(np.float32) for x in parts)
    ]
    return Features("x", "x", tuple(columns), selection="cumulative")


def scored(problem, X, head="ridge"):
    outcome = problem.score(problem.heads[head], X)
    return VoxelScores.unpacked(outcome.outcome), outcome


@pytest.mark.parametrize("dims", [30, 400])
def test_ridge_is_scikit_learns_with_a_penalty_a_voxel(store, dims):
    rng = np.random.default_rng(dims)
    X = 3 + rng.normal(size=(160, dims)) * rng.uniform(0.1, 5, dims)
    Y = X[:, :5] @ rng.normal(size=(5, 9)) + rng.normal(size=(160, 9)) * np.arange(9)
    problem = vr.Encoding(responses=Y).bind(store)
    found, outcome = scored(problem, features(X))
    train, test = problem.split.train, problem.split.test
    A = StandardScaler().fit(X[train]).transform(X)
    reference = RidgeCV(ALPHAS * dims, alpha_per_target=True, store_cv_results=True)
    predicted = reference.fit(A[train], Y[train]).predict(A[test])
    assert len(set(reference.alpha_)) > 1
    r = [pearsonr(a, b)[0] for a, b in zip(Y[test].T, predicted.T, strict=True)]
    np.testing.assert_allclose(found.voxels[1], r, atol=1e-5)
    r2 = r2_score(Y[test], predicted, multioutput="raw_values")
    np.testing.assert_allclose(found.voxels[2], r2, atol=1e-5)
    # What was left out: its error at the penalty that was found.
    errors = reference.cv_results_.mean(axis=0).min(axis=1)
    np.testing.assert_allclose(found.voxels[0], 1 - errors / Y[train].var(axis=0), atol=1e-5)
    assert outcome.training_score == pytest.approx(found.voxels[0].mean())
    for metric, expected in (("pearson", np.mean(r)), ("r2", r2.mean())):
        (figure,) = problem.figures(metric, [[outcome]], 0)
        assert figure.value == pytest.approx(expected, abs=1e-5)
        assert figure.low < figure.value < figure.high
        assert (figure.units, figure.chance) == (40, 0)


def test_banded_ridge_is_himalayas_on_features(store):
    kernel_ridge = pytest.importorskip("himalaya.kernel_ridge")
    from himalaya.scoring import r2_score_split

    rng = np.random.default_rng(0)
    bands = [rng.normal(size=(160, d)) * s for d, s in ((20, 1), (300, 5), (40, 0.1))]
    # Of 300 independent columns 120 images tell too little: three factors are common to them.
    bands[1] += 5 * rng.normal(size=(160, 3)) @ rng.normal(size=(3, 300))
    Y = np.hstack([X[:, :3] @ rng.normal(size=(3, 3)) / X[:, :3].std() for X in bands])
    Y += rng.normal(size=Y.shape)
    problem = vr.Encoding(responses=Y).bind(store)
    found, _ = scored(problem, features(*bands), "banded")
    train, test = problem.split.train, problem.split.test
    # On features: each band standardised, and divided by the root of its dimensions.
    X = [StandardScaler().fit(B[train]).transform(B) / B.shape[1] ** 0.5 for B in bands]
    sides = [np.cumsum([0, *(B.shape[1] for B in X)])[i : i + 2] for i in range(3)]
    columns = kernel_ridge.ColumnKernelizer(
        [
            (str(i), kernel_ridge.Kernelizer(kernel="linear"), slice(*map(int, side)))
            for i, side in enumerate(sides)
        ]
    )
    whole = np.hstack(X)
    kernels, others = columns.fit_transform(whole[train]), columns.transform(whole[test])
    model = kernel_ridge.MultipleKernelRidgeCV(
        kernels="precomputed",
        solver_params={
            "n_iter": voxelwise.mixtures(3, 0), "alphas": ALPHAS, "progress_bar": False,
        },
        cv=KFold(5, shuffle=True, random_state=0),
    )  # fmt: skip
    mean, deviation = Y[train].mean(axis=0), Y[train].std(axis=0)
    model.fit(kernels, (Y[train] - mean) / deviation)
    parts = model.predict(others, split=True) * deviation
    predicted = parts.sum(axis=0) + mean
    expected = r2_score(Y[test], predicted, multioutput="raw_values")
    np.testing.assert_allclose(found.voxels[2], expected, atol=1e-5)
    split = r2_score_split(Y[test] - Y[test].mean(axis=0), parts)
    np.testing.assert_allclose(found.bands, split, atol=1e-5)
    # What three voxels see is the band that tells them.
    assert found.bands.reshape(3, 3, 3).mean(axis=2).argmax(axis=0).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("dims", "head"), [(30, "ridge"), (400, "ridge"), (400, "banded")])
def test_torch_finds_what_numpy_does(store, monkeypatch, dims, head):
    backend = pytest.importorskip("himalaya.backend")
    rng = np.random.default_rng(0)
    bands = rng.normal(size=(160, dims)), rng.normal(size=(160, 7))
    Y = np.hstack([X[:, :4] for X in bands]) + rng.normal(size=(160, 8))
    expected, _ = scored(vr.Encoding(responses=Y).bind(store), features(*bands), head)
    monkeypatch.setattr(encoding.Algebra, "on", classmethod(lambda cls, device: cls(torch)))
    problem = vr.Encoding(responses=Y).bind(store)
    assert problem.work.algebra.xp is torch
    found, _ = scored(problem, features(*bands), head)
    # NumPy's inner products are taken in float32, as the features are.
    np.testing.assert_allclose(found.voxels, expected.voxels, atol=1e-5)
    np.testing.assert_allclose(found.bands, expected.bands, atol=1e-5)
    assert backend.get_backend().name == "numpy"  # as it was before
    monkeypatch.undo()
    try:  # nor is the CPU's path that of whatever backend a user has set
        backend.set_backend("torch")
        found, _ = scored(vr.Encoding(responses=Y).bind(store), features(*bands), head)
        assert backend.get_backend().name == "torch"
    finally:
        backend.set_backend("numpy")
    np.testing.assert_array_equal(found.voxels, expected.voxels)


def test_permutations_by_torch_are_numpys():
    rng = np.random.default_rng(0)
    truth, predicted = rng.normal(size=(2, 30, 50))
    p = voxelwise.permutation_p(truth, predicted)
    np.testing.assert_allclose(
        voxelwise.permutation_p(truth, predicted, algebra=Algebra(torch)), p, atol=2 / 1001
    )


def test_no_scale_of_responses_changes_a_correlation(store):
    """Neither tesla, of which a brain's field has 1e-13, nor per cent."""
    pytest.importorskip("himalaya")
    rng = np.random.default_rng(0)
    bands = features(rng.normal(size=(160, 5)), rng.normal(size=(160, 200)))
    Y = rng.normal(size=(160, 6))
    Y[:, :3] += next(iter(bands.columns[0].blocks()))[:, :3]
    for head in ("ridge", "banded"):
        found = []
        for scale in (1, 1e-13):
            problem = vr.Encoding(responses=scale * Y).bind(store)
            found.append(scored(problem, bands, head)[0].voxels)
        np.testing.assert_allclose(*found, atol=1e-6)


def test_a_region_whose_last_voxel_does_not_vary_is_refused(store, tmp_path):
    """Voxel 2 varies over all images, and not over those that are tested."""
    Y = np.random.default_rng(0).normal(size=(160, 3))
    Y[store.rows("test"), 2] = 0
    table = tmp_path / "rois.csv"
    table.write_text("voxel,roi\n0,V1\n2,FFA\n")
    with pytest.raises(vr.TaskError, match="no voxel of FFA is left; leave that region out"):
        vr.Encoding(responses=Y, rois=str(table)).bind(store)


def test_planted_layers_regions_and_null_voxels_are_recovered(store, tmp_path):
    early = planted(store, "1x1.0", 20, 0, 0.5, 3)
    late = planted(store, "8x8.0", 20, 1, 0.5, 3)
    null = np.random.default_rng(2).normal(size=(3, 160, 40))
    table = tmp_path / "rois.csv"
    rows = [(v, "early") for v in range(20)] + [(v, "late") for v in range(20, 40)]
    rows += [(v, "null") for v in range(40, 80)] + [(v, "seeing") for v in range(40)]
    pd.DataFrame(rows, columns=["voxel", "roi"]).to_csv(table, index=False)
    task = vr.Encoding(responses=np.concatenate([early, late, null], axis=2), rois=str(table))
    report = vr.probe(store, task, selections="single", cache=None)
    rows = report.to_frame().query("metric == 'pearson'")
    assert set(rows["head"]) == {
        "ridge",
        *(f"ridge:{r}" for r in ("early", "late", "null", "seeing")),
    }
    chosen = rows[rows["chosen"] & (rows["role"] == "model")].set_index("head")
    assert chosen.loc["ridge:early", "layer"] == "1x1.0"
    assert chosen.loc["ridge:late", "layer"] == "8x8.0"
    assert abs(chosen.loc["ridge:null", "value"]) < 0.1
    # Of variance 1 of signal and 1/4 of noise the mean of three is told to sqrt(1 / (1 + 1/12)).
    assert chosen.loc["ridge:early", "ceiling_low"] == pytest.approx((12 / 13) ** 0.5, abs=0.02)
    assert chosen.loc["ridge:early", "value"] > 0.8 * chosen.loc["ridge:early", "ceiling_low"]
    assert chosen.loc["ridge:null", "ceiling_high"] < 0.35
    shuffled = rows[(rows["model"] == "shuffled-labels") & (rows["head"] == "ridge:seeing")]
    assert shuffled["value"].abs().max() < 0.15
    assert {"pixels", "pca", "random-init"} <= set(rows["model"])
    voxels = report.tables["voxels"]
    assert voxels["voxel"].tolist() == list(range(80))
    assert voxels["rois"][[0, 20, 40]].tolist() == ["early;seeing", "late;seeing", "null"]
    assert (voxels["best_layer"][:20] == "1x1.0").mean() > 0.9
    assert (voxels["best_layer"][20:40] == "8x8.0").mean() > 0.9
    assert (voxels["q_value"][:40] < 0.05).all()
    np.testing.assert_allclose(
        voxels["q_value"], false_discovery_control(voxels["p_value"]), rtol=1e-9
    )
    assert (voxels["noise_ceiling"][:40] > 0.85).all()
    assert (voxels["split_half"][:40] > 0.8).all()
    # Tables and maps are saved, and read again.
    report.save(tmp_path / "out")
    assert all(is_own(path) for path in (tmp_path / "out").iterdir())
    again = vr.Report.load(tmp_path / "out").tables["voxels"]
    pd.testing.assert_frame_equal(again, voxels, check_dtype=False)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"voxels.csv", "voxels.png", "rois-pearson.png", "rois-r2.png"} <= written
    drawn = report.plot.rois("r2")
    assert [text.get_text() for text in drawn.get_xticklabels()][:3] == ["all", "early", "late"]
    told = int((voxels["q_value"] < 0.05).sum())
    assert f"all ({told})" in [t.get_text() for t in report.plot.voxels().get_xticklabels()]
    # The mean over voxels of what the table says is what the row says, where all have one best layer.
    row = rows[(rows["head"] == "ridge:early") & (rows["layer"] == "1x1.0")].iloc[0]
    early = voxels[:20][voxels["best_layer"][:20] == "1x1.0"]
    assert row["value"] == pytest.approx(early["pearson"].mean(), abs=0.02)


def test_voxels_are_fitted_once_for_all_regions(store, tmp_path, monkeypatch):
    """By each layer, and by each permutation of the training images."""
    table = tmp_path / "rois.csv"
    table.write_text("voxel,roi\n0,A\n1,B\n2,C\n")
    Y = np.random.default_rng(0).normal(size=(160, 3))
    problem = vr.Encoding(responses=Y, rois=str(table)).bind(store)
    X, fits, ridge = features(store.matrix("1x1")[0]), [], voxelwise.ridge
    monkeypatch.setattr(voxelwise, "ridge", lambda *a: fits.append(1) or ridge(*a))
    values = {
        (name, seed): problem.score(problem.heads[name], X, seed, seed > 0).outcome
        for name in ("ridge", "ridge:A", "ridge:B", "ridge:C")
        for seed in range(6)
    }
    assert len(fits) == 6
    for seed in range(6):
        whole = VoxelScores.unpacked(values["ridge", seed]).voxels
        own = [VoxelScores.unpacked(values[f"ridge:{roi}", seed]).voxels for roi in "ABC"]
        np.testing.assert_allclose(np.hstack(own), whole, atol=1e-12)


def test_images_without_responses_take_no_memory(store, monkeypatch):
    Y = np.full((160, 3), np.nan)
    Y[40:100] = np.random.default_rng(0).normal(size=(60, 3))
    problem = vr.Encoding(responses=Y).bind(store)
    X = np.random.default_rng(1).normal(size=(160, 300))
    found, _ = scored(problem, features(X))
    alone = vr.Encoding(responses=np.where(np.isnan(Y), 0, Y)).bind(store)
    assert len(problem.work.ids) == 60 < len(alone.work.ids)
    train, test = problem.split.train, problem.split.test
    A = StandardScaler().fit(X[train]).transform(X)
    predicted = (
        RidgeCV(ALPHAS * 300, alpha_per_target=True).fit(A[train], Y[train]).predict(A[test])
    )
    r = [pearsonr(a, b)[0] for a, b in zip(Y[test].T, predicted.T, strict=True)]
    np.testing.assert_allclose(found.voxels[1], r, atol=1e-4)
    monkeypatch.setattr(encoding, "GRAM_BYTES", 1000)
    with pytest.raises(vr.TaskError, match=r"banded: expected .* 45 training images; take fewer"):
        scored(problem, features(X), "banded")


def test_false_discoveries_are_held_at_five_percent():
    """Over 20 brains of 400 voxels, of which 100 are told: of those found, one in twenty may be none."""
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(120, 6))
        Y = rng.normal(size=(120, 400))
        Y[:, :100] += 0.6 * X @ rng.normal(size=(6, 100))
        train, test = X[:80] - X[:80].mean(axis=0), X[80:] - X[:80].mean(axis=0)
        U, s, V = np.linalg.svd(train, full_matrices=False)
        predicted = voxelwise.ridge(U * s, Y[:80], test @ V.T)
        p = voxelwise.permutation_p(Y[80:], predicted.values, seed)
        found = voxelwise.false_discovery(p) < 0.05
        assert found[:100].mean() > 0.5
        shares.append(found[100:].sum() / max(found.sum(), 1))
    assert np.mean(shares) < 0.05


def test_permutation_p_is_uniform_where_nothing_is_told():
    rng = np.random.default_rng(0)
    p = voxelwise.permutation_p(rng.normal(size=(30, 2000)), rng.normal(size=(30, 2000)))
    shares = [(p <= level).mean() for level in (0.01, 0.05, 0.5)]
    np.testing.assert_allclose(shares, [0.01, 0.05, 0.5], atol=0.03)


def test_a_band_that_is_seen_has_the_variance(store):
    pytest.importorskip("himalaya")
    seen = planted(store, "16x16.0", 15, 3, 0.3)
    report = vr.probe(
        store, vr.Encoding(responses=seen), heads="banded", controls=(), cache=None,
        layers="1x1.0,8x8.0,16x16.0", selections="joint",
    )  # fmt: skip
    bands = report.tables["bands"]
    assert bands["band"].tolist() == ["1x1", "8x8", "16x16"]
    assert bands["r2"].idxmax() == 2
    total = report.to_frame().query("metric == 'r2'")["value"].iloc[0]
    assert bands["r2"].sum() == pytest.approx(total, abs=0.02)


def test_any_regressor_takes_the_place_of_ridge(store):
    seen = planted(store, "1x1.0", 5, 4)[0]
    report = vr.probe(
        store, vr.Encoding(responses=seen), heads={"plain": Ridge(1.0)}, controls=(), cache=None,
        layers="1x1", selections="single",
    )  # fmt: skip
    X = store.matrix("1x1")[0]
    problem = vr.Encoding(responses=seen).bind(store)
    train, test = problem.split.train, problem.split.test
    predicted = Ridge(1.0).fit(X[train], seen[train]).predict(X[test])
    r = [pearsonr(a, b)[0] for a, b in zip(seen[test].T, predicted.T, strict=True)]
    row = report.to_frame().query("metric == 'pearson'").iloc[0]
    assert row["value"] == pytest.approx(np.mean(r), abs=1e-5)


class InPlace(Ridge):
    """Works in the arrays that it is handed."""

    def fit(self, X, y):
        super().fit(X, y)
        X *= 0
        y *= 0
        return self


def test_a_regressor_that_works_in_place_leaves_the_responses_as_they_are(store):
    problem = vr.Encoding(responses=planted(store, "1x1.0", 5, 4)[0]).bind(store)
    X = features(store.matrix("1x1")[0])
    copied, in_place = (
        problem.score(problem.heads_of("own", estimator)["own"], X)
        for estimator in (Ridge(1.0), InPlace(1.0))
    )
    assert in_place.training_score == copied.training_score
    np.testing.assert_array_equal(in_place.outcome, copied.outcome)


def test_scores_are_kept_by_what_responses_hold(store, tmp_path):
    """The file's name is the same, and its content another: nothing of the earlier is taken."""
    path, values = tmp_path / "bold.npz", {}
    for seed in (0, 1, 0):
        np.savez(path, bold=planted(store, "1x1.0", 4, seed), ids=store.ids)
        report = vr.probe(
            store, vr.Encoding(responses=f"{path}:bold"), layers="1x1", controls=(),
            selections="single", cache=tmp_path / "scores",
        )  # fmt: skip
        values.setdefault(seed, []).append(report.rows[0].value)
    assert values[0][0] == values[0][1] != values[1][0]
    assert len(list((tmp_path / "scores").iterdir())) == 2


def test_one_voxel_and_one_image_are_said_as_one(tiny, people, tmp_path):
    plain = vr.extract(tiny, people(10), tmp_path / "p.h5", layers="1x1")
    bold = np.random.default_rng(0).normal(size=(60, 4))
    bold[:, 0], bold[1, 0], bold[0] = 1, 2, np.nan
    problem = vr.Encoding(responses=bold).bind(plain)
    assert "; 1 voxel left out, constant on a side" in problem.split.text
    assert "; 1 of the store's 60 images has no responses" in problem.split.text
    alone = vr.Encoding(responses=bold[:, 1:2]).bind(plain)
    assert alone.counted().endswith(" images, 1 voxel")


def test_splits_are_the_stores_or_drawn(store, tiny, people, tmp_path):
    problem = vr.Encoding(responses=planted(store, "1x1.0", 3, 0)).bind(store)
    assert (problem.n_train, problem.n_test) == (120, 40)
    plain = vr.extract(tiny, people(10), tmp_path / "p.h5", layers="1x1")
    bold = np.random.default_rng(0).normal(size=(60, 3))
    bold[:5] = np.nan
    problem = vr.Encoding(responses=bold).bind(plain, seed=1)
    assert (problem.n_train, problem.n_test) == (44, 11)
    assert "a fifth of the images, drawn with seed 1" in problem.split.text
    assert "5 of the store's 60 images have no responses" in problem.split.text
    with pytest.raises(vr.TaskError, match="at least 10 images"):
        vr.Encoding(responses=np.where(np.arange(60)[:, None] < 40, np.nan, bold)).bind(plain)
    with pytest.raises(vr.TaskError, match="expected responses"):
        Task.named("encoding").bind(plain)


def test_without_the_extra_one_line_says_what_to_install(store, monkeypatch):
    for name in ("himalaya", "himalaya.kernel_ridge"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    task = vr.Encoding(responses=planted(store, "1x1.0", 3, 0))
    vr.probe(store, task, layers="1x1", controls=(), cache=None)  # ridge needs nothing else
    with pytest.raises(
        vr.TaskError, match=r"banded ridge needs himalaya.*pip install 'vdvae-repr\[brain\]'"
    ):
        vr.probe(store, task, layers="1x1", heads="banded", controls=(), cache=None)
