import h5py
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.preprocessing import StandardScaler

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.heads.linear import ALPHAS, C_GRID
from vdvae_repr.latents import base as store_module
from vdvae_repr.latents.store import JoinedStore
from vdvae_repr.model.layers import select_layers
from vdvae_repr.probing.similarity import debiased_cka, u_centred
from vdvae_repr.results import layer_by_factor
from vdvae_repr.tasks.identification import Identification

ATLAS = ("single", "cumulative", "without", "pruned")


@pytest.fixture(scope="module")
def store(tiny, tmp_path_factory, people):
    path = tmp_path_factory.mktemp("atlas") / "s.h5"
    return vr.extract(tiny, people(8), path, features=["mean", "kl"])


def by_each_head(store, **how):
    """Identify by three heads; of the grid of C five values, its ends among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vdvae_repr.heads.linear.C_GRID", C_GRID[::11])
        heads = ["nearest-neighbor", "ridge", "linear-lbfgs"]
        return vr.probe(store, "face_id", heads=heads, **how)


@pytest.fixture(scope="module")
def found(store):
    atlas = by_each_head(store, selections=ATLAS)
    lines = atlas.notes
    assert not any("no pruning" in line for line in lines)
    return atlas


def test_sums_of_gram_matrices_are_features_side_by_side(store, found):
    cumulative = [f"0:{k}" for k in range(2, 6)]
    without = ["4x4,8x8,16x16", "1x1,8x8,16x16", "1x1,4x4,16x16", "1x1,4x4,8x8"]
    joint = by_each_head(store, layers=cumulative + without, selections="joint").rows
    value = {(r.head, r.layer, r.metric): r.value for r in found.rows if r.model in ("tiny",)}
    ours = [r for r in joint if r.model == "tiny"]
    assert len(ours) == 8 * 3 * 2
    for row in ours:
        assert value[row.head, row.layer, row.metric] == row.value
    singles = [r.layer for r in found.rows if r.model == "tiny" and r.layer == "8x8.0"]
    assert len(singles) == 6
    for head in ("nearest-neighbor", "ridge", "linear-lbfgs"):
        for model in ("tiny", "random-init"):
            rows = [r for r in found.rows if (r.head, r.model, r.metric) == (head, model, "rank1")]
            assert sum(row.chosen for row in rows) == 1


def test_pruning_keeps_what_has_the_highest_kl(store, found):
    total = sum(spec.num_dims for spec in store.layers)
    pruned = {r.layer: r.dims for r in found.rows if r.layer and "by kl" in r.layer}
    assert pruned == {f"{s} % by kl": round(s / 100 * total) for s in (30, 10, 3)}
    # 3 % of the dimensions, found directly: the same score as a head on those columns.
    train = np.concatenate([np.flatnonzero(store.labels == k)[:4] for k in range(6)])
    nats = store.matrix(feature="kl")[0][train].mean(axis=0)
    best = np.sort(np.argsort(-nats)[: pruned["3 % by kl"]])
    X, y, _ = store.matrix()
    X = X[:, best] - X[train][:, best].mean(axis=0)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    test = np.setdiff1d(np.arange(len(y)), train)
    hits = y[train][(X[test] @ X[train].T).argmax(axis=1)] == y[test]
    (row,) = [
        r for r in found.rows
        if (r.layer, r.head, r.metric) == ("3 % by kl", "nearest-neighbor", "rank1") and r.model == "tiny"
    ]  # fmt: skip
    assert row.value == pytest.approx(hits.mean())


def test_nats_are_those_of_all_layers_up_to_one(store, found):
    spent = store.kl.mean(axis=0).cumsum()
    names = ["1x1.0", "0:2", "0:3", "0:4", "0:5"]
    assert found.nats == pytest.approx(dict(zip(names, spent, strict=True)), rel=1e-5)
    table = found.rate_accuracy()
    assert list(dict.fromkeys(table["layer"])) == names
    assert (table["nats"] == table["layer"].map(found.nats)).all()


def unbiased_hsic(K, L):
    """As Song et al. write it (2012, equation 5), K and L without their diagonals."""
    n, one = len(K), np.ones(len(K))
    K, L = K * (1 - np.eye(n)), L * (1 - np.eye(n))
    whole = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return (np.trace(K @ L) + whole - 2 / (n - 2) * one @ K @ L @ one) / (n * (n - 3))


def test_cka_is_that_of_the_unbiased_hsic(store):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(20, 5)), rng.normal(size=(20, 8))
    Y[:, :3] += X[:, :3]
    K, L = X @ X.T, Y @ Y.T
    direct = unbiased_hsic(K, L) / np.sqrt(unbiased_hsic(K, K) * unbiased_hsic(L, L))
    turned = 3 * (X + 7) @ np.linalg.qr(rng.normal(size=(5, 5)))[0]
    order = rng.permutation(20)
    for A in (X, turned):
        found = debiased_cka([u_centred(A @ A.T)], [u_centred(L)])
        assert found.item() == pytest.approx(direct)
        found = debiased_cka([u_centred(A @ A.T)], [u_centred(Y[order] @ Y[order].T)])
        shuffled = debiased_cka([u_centred(A @ A.T)], [u_centred(L)], order)
        assert shuffled.item() == pytest.approx(found.item())
    own = vr.compare(store)
    np.testing.assert_allclose(np.diag(own.cka), 1)
    both = vr.compare(store, store)
    np.testing.assert_allclose(both.cka, own.cka)
    np.testing.assert_allclose(both.shuffled, own.shuffled)
    assert own.layers == own.other_layers == tuple(spec.name for spec in store.layers)


def test_cka_of_noise_and_of_shuffled_images_is_about_0(tiny, people, tmp_path):
    """Of 400 images in 16,384 dimensions plain CKA is 0.976, and nothing is common."""
    rng = np.random.default_rng(0)
    K, L = (X @ X.T for X in rng.normal(size=(2, 400, 16_384)).astype(np.float32))
    H = np.eye(400) - 1 / 400
    plain = np.trace(H @ K @ H @ L) / np.linalg.norm(H @ K @ H) / np.linalg.norm(H @ L @ H)
    assert plain > 0.97
    own, other = u_centred(K), u_centred(L)
    assert abs(debiased_cka([own], [other]).item()) < 0.03
    assert abs(debiased_cka([own], [own], rng.permutation(400)).item()) < 0.03
    source = people(20)
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="8x8")
    found = vr.compare(store)
    assert found.cka.min() > 0.5
    assert np.abs(found.shuffled).max() < 0.1
    few = vr.extract(tiny, vr.open_source(source.reader(0)[None].repeat(3, 0)), tmp_path / "few.h5")
    with pytest.raises(vr.TaskError, match="expected at least 4 images, found 3"):
        vr.compare(few)


@pytest.mark.parametrize("layout", ["single", "virtual"])
def test_columns_are_the_matrix_in_pieces(tiny, tmp_path, monkeypatch, layout, people):
    source = people(3)
    store = vr.extract(tiny, source, tmp_path / "s.h5", mirror=True, layout=layout, batch_size=4)
    whole = store.matrix("16x16.0")[0]
    digest = store.digest(store.layers[-1], "mean")
    monkeypatch.setattr(store_module, "COLUMN_BYTES", 18 * 4 * 256)
    monkeypatch.setattr(store_module, "SLICE_BYTES", 4 * 2000)
    for own in (store, store.mirrored()):
        blocks = list(own.columns("16x16.0"))
        assert len(blocks) == 4
        np.testing.assert_array_equal(np.concatenate(blocks, axis=1), own.matrix("16x16.0")[0])
    np.testing.assert_array_equal(np.concatenate(list(store.columns("16x16.0")), axis=1), whole)
    assert store.digest(store.layers[-1], "mean") == digest
    assert store.digest(store.layers[-2], "mean") != digest


def test_learned_on_one_store_and_tested_on_another(tiny, tmp_path, people, monkeypatch):
    monkeypatch.setattr("vdvae_repr.heads.linear.C_GRID", C_GRID[::11])
    first, second = people(6, seed=0), people(4, seed=5)
    a, b = (
        vr.extract(tiny, s, tmp_path / f"{i}.h5", layers="<=8x8")
        for i, s in enumerate((first, second))
    )
    both = Source(
        name="both", ids=first.ids + second.ids,
        reader=lambda i: first.reader(i) if i < 36 else second.reader(i - 36),
        labels=np.concatenate([first.labels, second.labels]), label_names=first.label_names,
        splits=("train",) * 36 + ("test",) * 24,
    )  # fmt: skip
    one = vr.extract(tiny, both, tmp_path / "both.h5", layers="<=8x8")
    joined = JoinedStore(a, b)
    np.testing.assert_allclose(joined.matrix()[0], one.matrix()[0], atol=1e-4)
    for task in ("face_id", "classification"):
        there, here = (vr.probe(s, task).rows for s in (joined, one))
        assert [(r.layer, r.value) for r in there] == [(r.layer, r.value) for r in here]
    other = vr.extract(vr.VDVAE(tiny.config).eval(), second, tmp_path / "o.h5", layers="<=8x8")
    with pytest.raises(vr.StoreError, match="expected the weights_sha256"):
        JoinedStore(a, other)


def test_open_set_rates_match_a_loop(store):
    problem = vr.FaceId(protocol="open-set", far=[0.9]).bind(store)
    features = _features(store, "8x8.0")
    scored = problem.score(problem.heads["nearest-neighbor"], features, 0)
    best, own = scored.outcome
    strangers = np.sort(best[problem.stranger])[::-1]
    threshold = strangers[int(0.9 * len(strangers))]
    known = ~problem.stranger
    expected = np.mean(
        [right and s > threshold for right, s in zip(own[known], best[known], strict=True)]
    )
    (figure,) = problem.figures("dir@0.9", [[scored]], 0)
    assert figure.value == pytest.approx(expected)
    assert figure.low <= figure.value <= figure.high
    assert problem.num_known == 3
    rows = vr.probe(store, vr.FaceId(protocol="open-set", far=[0.9]), layers="8x8").rows
    assert {(row.protocol, row.metric, row.at) for row in rows} == {("open-set", "dir", 0.9)}
    with pytest.raises(vr.TaskError, match=r"far=0\.01: expected at least 10 impostors"):
        vr.probe(store, vr.FaceId(protocol="open-set", far=[0.01]))
    with pytest.raises(vr.TaskError, match="far is an option of face_id's protocol open-set"):
        vr.probe(store, vr.FaceId(far=[0.1]))


def test_factors_are_scikit_learns_ridge_on_other_people(store):
    problem = vr.Factors().bind(store)
    assert not set(store.labels[problem.split.train]) & set(store.labels[problem.split.test])
    scored = problem.score(problem.heads["ridge:bright"], _features(store, "1x1.0"), 0)
    (figure,) = problem.figures("r2", [[scored]], 0)
    X, _, _ = store.matrix("1x1.0")
    A = StandardScaler().fit(X[problem.split.train]).transform(X)
    y = store.factors["bright"]
    ridge = GridSearchCV(
        Ridge(),
        {"alpha": ALPHAS * X.shape[1]},
        cv=LeaveOneGroupOut(),
        scoring="neg_mean_squared_error",
    ).fit(A[problem.split.train], y[problem.split.train], groups=store.labels[problem.split.train])
    assert figure.value == pytest.approx(
        r2_score(y[problem.split.test], ridge.predict(A[problem.split.test])), abs=1e-4
    )
    rows = vr.probe(store, vr.Factors(categories="dark"), layers="<=8x8").rows
    for metric, factor in (("r2", "bright"), ("pearson", "bright"), ("balanced_accuracy", "dark")):
        table = layer_by_factor(rows, metric)
        assert list(table.columns) == [factor]
        assert list(table.index) == ["1x1.0", "4x4.0", "8x8.0", "8x8.1"]
    assert {(r.head, r.metric) for r in rows} == {
        ("ridge:bright", "r2"),
        ("ridge:bright", "pearson"),
        ("ridge:dark", "balanced_accuracy"),
    }


def test_what_was_scored_is_kept(store, tmp_path, monkeypatch):
    calls = []
    score = Identification.score

    def counted(self, *a):
        if stop and len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(a)
        return score(self, *a)

    monkeypatch.setattr(Identification, "score", counted)
    how = {"layers": "<=4x4", "heads": ["nearest-neighbor"], "cache": tmp_path / "kept"}
    stop = True
    with pytest.raises(KeyboardInterrupt):
        vr.probe(store, "face_id", **how)
    stop = False
    assert len(calls) == 2
    first = vr.probe(store, "face_id", **how).rows
    done = len(calls)
    assert vr.probe(store, "face_id", **how).rows == first
    assert len(calls) == done  # nothing was scored twice
    assert vr.probe(store, "face_id", **how | {"cache": None}).rows != []
    fresh = len(calls) - done
    assert done == fresh  # the interrupted run's two were not scored again
    vr.probe(store, "face_id", **how | {"heads": ["ridge"]})
    assert len(calls) == done + 2 * fresh
    (tmp_path / "file").touch()
    with pytest.raises(vr.TaskError, match="choose another folder, or cache=None"):
        vr.probe(store, "face_id", **how | {"cache": tmp_path / "file"})


def test_stores_beside_and_features_that_are_not_finite(store, tiny, tmp_path, people):
    twin = vr.extract(
        vr.VDVAE(tiny.config, name="twin").eval(), people(8), tmp_path / "t.h5", layers="1x1"
    )
    rows = vr.probe(store, "face_id", layers="1x1", heads=["ridge"], beside=[twin]).rows
    (row,) = [r for r in rows if r.model == "twin" and r.metric == "rank1"]
    assert row.weights_sha256 == twin.attrs["weights_sha256"] != store.attrs["weights_sha256"]
    with pytest.raises(vr.TaskError, match=r"t\.h5: .*8x8"):  # what is asked for is asked of both
        vr.probe(store, "face_id", layers="8x8", beside=[twin])
    other = vr.extract(tiny, people(3), tmp_path / "u.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match="expected the images of"):
        vr.probe(store, "face_id", beside=[other])
    twin.close()
    with h5py.File(twin.path, "r+") as file:
        file["layers/000/mean"][5] = np.nan
    with pytest.raises(vr.TaskError, match=r"layer 1x1\.0: expected finite features.*0-5"):
        vr.probe(vr.LatentStore.open(twin.path), "face_id", heads=["ridge"])


def _features(store, layer):
    from vdvae_repr.probing.features import Columns, Features

    (spec,) = [spec for spec in store.layers if spec.name == layer]
    return Features("tiny", layer, (Columns.of_layer(store, spec, "mean", None),), "mean")


def test_layers_together_are_named_by_exactly_what_is_in_them(tiny, people, tmp_path):
    """Of a store of 8x8 alone: not `0:4`, which would be four layers; and the nats are those of the two."""
    store = vr.extract(tiny, people(8), tmp_path / "s.h5", layers="8x8", features=["mean", "kl"])
    how = {"heads": ["ridge"], "controls": (), "cache": None}
    report = vr.probe(store, "face_id", **how)
    rows = {row.layer: row for row in report.rows if row.metric == "rank1"}
    assert {name: row.selection for name, row in rows.items()} == {
        "8x8.0": "single", "8x8.1": "single", "2:4": "cumulative",
    }  # fmt: skip
    assert rows["2:4"].dims == rows["8x8.0"].dims + rows["8x8.1"].dims
    (same, _) = vr.probe(store, "face_id", layers="2:4", selections="joint", **how).rows
    assert (same.value, same.dims) == (rows["2:4"].value, rows["2:4"].dims)
    assert report.nats == pytest.approx(
        {"8x8.0": store.kl[:, 2].mean(), "2:4": store.kl[:, 2:4].sum(axis=1).mean()}, rel=1e-5
    )


@pytest.mark.parametrize("layers", [["1x1", "8x8"], ["4x4", "8x8.1", "16x16"]])
def test_the_name_of_layers_together_selects_them(store, layers):
    rows = vr.probe(
        store, "face_id", layers=layers, heads=["ridge"], controls=(), cache=None,
        selections=("cumulative", "without"),
    ).rows  # fmt: skip
    for row in rows:
        assert row.dims == sum(spec.num_dims for spec in select_layers(store.layers, row.layer))
