"""Columns, their Gram matrices, and two stores as one: the same numbers as features side by side."""

import h5py
import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.heads.linear import LogisticProbe, Ridge
from vdvae_repr.heads.neighbors import NearestNeighbor, WeightedNeighbors
from vdvae_repr.heads.sgd import SGDProbe
from vdvae_repr.latents import base as store_module
from vdvae_repr.latents.store import JoinedStore
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.probing import features as module
from vdvae_repr.probing.controls import RandomTwin
from vdvae_repr.probing.features import Columns, Features, Workspace
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.predict import score_classes
from vdvae_repr.probing.similarity import compare

HEADS = {
    "nearest-neighbor": NearestNeighbor(),
    "knn": WeightedNeighbors(),
    "ridge": Ridge(),
    "linear-lbfgs": LogisticProbe(seed=3),
}


def beside_one_another(*arrays):
    columns = [Columns(f"{i}", i // 2, *described(X)) for i, X in enumerate(arrays)]
    return Features("some", "all", tuple(columns))


def described(X):
    return X.shape[1], lambda: iter(np.array_split(X, 3, axis=1)), lambda: str(id(X))


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("dims", [(4, 5), (20, 9), (40, 30, 50)])
@pytest.mark.parametrize("validation", [False, True])
def test_blocks_of_columns_score_as_the_head_fitted_on_the_matrix(head, dims, validation):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    parts = [
        (rng.normal(size=(3, d))[y] + 2 * rng.normal(size=(60, d))).astype(np.float32) for d in dims
    ]
    X = np.concatenate(parts, axis=1)
    train, held, test = np.arange(0, 30), np.arange(30, 45), np.arange(45, 60)
    some = (held, y[held]) if validation else None
    found = score_classes(
        Workspace([str(i) for i in range(60)]), Head(head, HEADS[head]), beside_one_another(*parts), train,
        y[train],
        test, 3, some,
    )  # fmt: skip
    if head == "linear-lbfgs":
        direct = HEADS[head].fit(X[train], y[train], (X[held], y[held]) if validation else None)
        training = direct.cv_scores_.max()
    else:
        direct = HEADS[head].fit(X[train], y[train])
        left_out = np.mean(direct.leave_one_out() == y[train])
        training = direct.score(X[held], y[held]) if validation else left_out
    expected = direct.class_scores(X[test])
    np.testing.assert_allclose(found.scores, expected, atol=1e-3 * np.abs(expected).max())
    assert found.training_score == pytest.approx(training)
    standardised = getattr(direct, "standardize_", True)
    assert found.scaling == ("standardised" if standardised else "centred")


@pytest.mark.parametrize("dims", [20, 90])
@pytest.mark.parametrize("validation", [False, True])
def test_scaling_is_chosen_by_training_images_alone_and_never_rescales_components(dims, validation):
    """The label is in the last columns, and whether these are heard decides; validation tells another."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = rng.normal(size=(60, dims)) * np.where(np.arange(dims) < dims // 2, 100, 1)
    X[:, dims // 2 :] += 2 * rng.normal(size=(3, dims - dims // 2))[y]
    train, held, test = np.arange(0, 30), np.arange(30, 45), np.arange(45, 60)
    wrong = (held, (y[held] + 1) % 3) if validation else None
    for standardise, scaling in ((True, "standardised"), (False, "centred")):
        columns = (Columns.of_array("x", X.astype(np.float32)),)
        features = Features("x", None, columns, standardise=standardise)
        work = Workspace([str(i) for i in range(60)])
        for name in ("nearest-neighbor", "knn"):
            how = Head(name, HEADS[name]), features, train, y[train], test, 0, wrong
            assert score_classes(work, *how).scaling == scaling
        raw = Head("knn-dino", WeightedNeighbors(center=False))
        found = score_classes(work, raw, features, train, y[train], test, 0, wrong)
        assert found.scaling == "raw"
        expected = raw.estimator.fit(X[train], y[train]).class_scores(X[test])
        np.testing.assert_allclose(found.scores, expected, atol=1e-4)


def test_gram_matrices_are_right_when_few_are_kept(monkeypatch):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(12, d)).astype(np.float32) for d in (30, 20, 40, 25, 35)]
    whole, half = np.arange(12), np.arange(6)
    features = beside_one_another(*parts)
    work = Workspace([str(i) for i in range(12)])
    work.grams(features, [(whole, "centred")])
    monkeypatch.setattr(module, "KEPT_BYTES", 1)
    found = work.grams(features, [(whole, "centred"), (half, "standardised")])
    X = np.concatenate(parts, axis=1).astype(np.float64)
    centred = X - X.mean(axis=0)
    np.testing.assert_allclose(found[0].inner, centred @ centred.T, atol=1e-5)
    A = StandardScaler().fit(X[half]).transform(X)
    np.testing.assert_allclose(found[1].inner, A @ A[half].T, atol=1e-5)
    assert len(work._grams) == 1
    assert [gram.dims for gram in found] == [150, 150]


def test_rows_on_the_disk_score_as_those_in_memory(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    parts = [(rng.normal(size=(60, d)) + y[:, None]).astype(np.float32) for d in (20, 9)]
    train, held, test = np.arange(0, 30), np.arange(30, 45), np.arange(45, 60)
    how = beside_one_another(*parts), train, y[train], test, 0, (held, y[held])
    head = Head("linear-sgd", SGDProbe(steps=30))
    expected = score_classes(Workspace([str(i) for i in range(60)]), head, *how)
    monkeypatch.setattr(module, "MATRIX_BYTES", 1)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    work = Workspace([str(i) for i in range(60)])
    found = score_classes(work, head, *how)
    assert isinstance(work.rows(how[0]), np.memmap)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.training_score == expected.training_score
    assert not list(tmp_path.iterdir())  # nothing is left, not even by a kill
    monkeypatch.setattr(module, "_array_on_disk", lambda *_: pytest.fail("written twice"))
    score_classes(work, head, *how)


def test_too_little_room_and_inner_products_too_large_are_refused(monkeypatch, tmp_path):
    features = beside_one_another(np.ones((6, 40), np.float32))
    work = Workspace([str(i) for i in range(6)])
    monkeypatch.setattr(module, "MATRIX_BYTES", 1)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    full = type("Usage", (), {"free": 100})
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda _: full)
        with pytest.raises(vr.TaskError, match=r"expected room for .* found less; set TMPDIR"):
            work.rows(features)

    def no_room(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "posix_fallocate", no_room)
        with pytest.raises(vr.TaskError, match=r"expected room for .* found less; set TMPDIR"):
            work.rows(features)
    monkeypatch.setattr(module, "GRAM_BYTES", 8 * 6 * 8)
    whole, some = np.arange(6), np.arange(2)
    assert len(work.grams(features, [(whole, "raw"), (some, "raw")])) == 2
    with pytest.raises(vr.TaskError, match=r"inner products of .* 6 images with 9; .* linear-sgd"):
        work.grams(features, [(whole, "raw"), (np.arange(3), "raw")])


@pytest.mark.parametrize(
    ("feature", "pool"), [("mean", None), ("mean", "avg"), ("mean", "avg:2"), ("z", None), ("z:1", "avg:4")]
)  # fmt: skip
def test_columns_in_pieces_are_the_matrix(tiny, images, tmp_path, monkeypatch, feature, pool):
    sampled = feature.startswith("z")
    store = vr.extract(
        tiny, images, tmp_path / "s.h5", layers="8x8", features=[feature[0] if sampled else feature],
        z="sample" if sampled else "mean", draws=3 if sampled else None,
    )  # fmt: skip
    whole = store.matrix("8x8.1", feature, pool)[0]
    monkeypatch.setattr(store_module, "COLUMN_BYTES", 2 * 4 * whole.nbytes // 16)
    monkeypatch.setattr(store_module, "SLICE_BYTES", 1)
    blocks = list(store.columns("8x8.1", feature, pool))
    assert [block.shape[1] for block in blocks] == [whole.shape[1] // 2] * 2
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), whole)


def test_columns_are_added_and_chosen_block_by_block():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(2, 5, 30))
    one, other = (Columns("x", 0, *described(A)) for A in (X, Y))
    kept = rng.random(30) < 0.3
    kept[:10] = False  # a block of which nothing is kept
    chosen = (one + other)[kept]
    assert chosen.dims == kept.sum()
    np.testing.assert_array_equal(np.concatenate(list(chosen.blocks()), axis=1), (X + Y)[:, kept])
    digests = {c.digest() for c in (one, other, one + other, one[kept], one[~kept], chosen)}
    assert len(digests) == 6


def test_a_digest_is_of_the_content(tiny, images, tmp_path):
    def made(name, **how):
        return vr.extract(tiny, images, tmp_path / name, layers="4x4", batch_size=4, **how)

    store, virtual = made("s.h5"), made("v.h5", layout="virtual")
    (spec,) = store.layers
    assert store.digest(spec, "mean") == virtual.digest(spec, "mean")
    before = store.digest(spec, "mean")
    store.close()
    with h5py.File(store.path, "r+") as file:
        file["layers/001/mean"][3, 2, 1, 0] += 1e-3
    assert vr.LatentStore.open(store.path).digest(spec, "mean") != before
    draws = made("d.h5", features=["z"], z="sample", draws=2)
    names = [("z", None), ("z:0", None), ("z:1", None), ("z:1", "avg")]
    assert len({Columns.of_layer(draws, spec, *name).digest() for name in names}) == 4


def relabelled(source, names, labels, ids):
    return Source(
        name="other", ids=ids, reader=source.reader, labels=np.array(labels), label_names=names,
        splits=("val",) * len(ids), factors={"bright": source.factors["bright"][: len(ids)]},
    )  # fmt: skip


def test_two_stores_are_read_as_one(tiny, people, tmp_path):
    first, second = people(3, num_people=3), people(3, num_people=3, seed=7)
    second = relabelled(second, ("p9", "p1", "p0"), [0, 1, 1, -1, 2], tuple("edcba"))
    a = vr.extract(tiny, first, tmp_path / "a.h5", mirror=True, features=["mean", "kl"])
    b = vr.extract(tiny, second, tmp_path / "b.h5", mirror=True, layers="<=8x8")
    joined = JoinedStore(a, b)
    assert joined.ids == tuple(f"train/{i}" for i in a.ids) + tuple(f"test/{i}" for i in b.ids)
    assert joined.splits == ("train",) * 9 + ("test",) * 5
    told = [joined.label_names[k] if k >= 0 else None for k in joined.labels]
    assert told == ["p0"] * 3 + ["p1"] * 3 + ["p2"] * 3 + ["p9", "p1", "p1", None, "p0"]
    assert [spec.name for spec in joined.layers] == ["1x1.0", "4x4.0", "8x8.0", "8x8.1"]
    assert joined.features == ("mean",)
    assert list(joined.factors) == ["bright"]
    for one, parts in ((joined, (a, b)), (joined.mirrored(), (a.mirrored(), b.mirrored()))):
        both = np.concatenate([part.matrix("<=8x8")[0] for part in parts])
        np.testing.assert_array_equal(one.matrix()[0], both)
        np.testing.assert_array_equal(one.matrix(split="test")[0], parts[1].matrix("<=8x8")[0])
        np.testing.assert_array_equal(np.concatenate(list(one.slices())), both)
        np.testing.assert_array_equal(one.images(), np.concatenate([p.images() for p in parts]))
        np.testing.assert_array_equal(one.kl, np.concatenate([p.kl[:, :4] for p in parts]))
    np.testing.assert_array_equal(
        joined["8x8.0"].mean[5:12], joined.matrix("8x8.0")[0][5:12].reshape(7, 4, 8, 8)
    )
    digests = [joined.digest(joined.layers[1], "mean"), joined.digest(joined.layers[2], "mean")]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"z": "sample"}, "expected the z of .*, mean, found sample"),
        ({"pool": "avg"}, "expected the pool of .*, found avg"),
        ({"mirror": True}, "expected the mirror of"),
        ({"layers": "1x1"}, "has no layer or feature in common"),
        ({"features": ["delta"]}, "has no layer or feature in common"),
    ],
)
def test_stores_that_do_not_go_together_are_refused(tiny, images, tmp_path, how, message):
    a = vr.extract(tiny, images, tmp_path / "a.h5", layers="4x4")
    b = vr.extract(tiny, images, tmp_path / "b.h5", **({"layers": "4x4"} | how))
    with pytest.raises(vr.StoreError, match=message):
        JoinedStore(a, b)


@pytest.fixture(scope="module")
def two(tiny, people, tmp_path_factory):
    """Stores of the same images from two models."""
    torch.manual_seed(5)
    other = VDVAE(tiny.config, name="other").eval()
    folder = tmp_path_factory.mktemp("two")
    return [
        vr.extract(model, people(6), folder / f"{model.name}.h5", layers="<=8x8", features=names)
        for model, names in ((tiny, ["mean", "delta"]), (other, ["mean"]))
    ]


def test_similarity_of_two_models_is_that_of_their_features(two):
    def gram(X):
        """Inner products with neither rows, columns nor an image's with itself telling anything."""
        n = len(X)
        K = X.astype(float) @ X.T
        apart = ~np.eye(n, dtype=bool)
        design = (np.eye(n)[:, None, :] + np.eye(n)[None, :, :])[apart]  # of row and column effects
        K[apart] -= design @ np.linalg.lstsq(design, K[apart])[0]
        return K * apart

    names = ["1x1.0", "4x4.0", "8x8.0", "8x8.1"]
    one, other = ([gram(store.matrix(name)[0]) for name in names] for store in two)
    direct = [[(K * L).sum() / np.linalg.norm(K) / np.linalg.norm(L) for L in other] for K in one]
    found = compare(*two)
    np.testing.assert_allclose(found.cka, direct, atol=1e-5)
    assert found.layers == found.other_layers == tuple(names)


def test_layers_of_other_images_are_not_compared(two, tiny, people, tmp_path):
    stranger = vr.extract(tiny, people(6, seed=2), tmp_path / "s.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match=r"expected the images of .* in their order"):
        compare(two[0], stranger)


def test_random_weights_read_with_the_precision_of_the_store(tiny, images, tmp_path):
    store = vr.extract(tiny, images, tmp_path / "s.h5", layers="1x1", precision="bf16")
    with RandomTwin(store, ["1x1.0"], ["mean"], 0) as twin:
        assert twin.store.attrs["precision"] == "bf16"


@pytest.mark.parametrize("task", ["face_id", "few_shot"])
def test_what_is_not_finite_is_named_in_wide_features_too(tiny, people, tmp_path, task):
    store = vr.extract(tiny, people(6), tmp_path / "s.h5", layers="8x8.1")
    store.close()
    with h5py.File(store.path, "r+") as file:
        file["layers/003/mean"][7, 0, 1, 2] = np.inf
    store = vr.LatentStore.open(store.path)
    if task == "few_shot":
        task = vr.FewShot(ways=3, queries=2, episodes=3)
    with pytest.raises(vr.TaskError, match=r"layer 8x8\.1: expected finite features.* 0-7;"):
        vr.probe(store, task)
    with pytest.raises(vr.TaskError, match=r"layer 8x8\.1: expected finite .*; extract again"):
        compare(store, store)


def test_models_of_one_name_keep_their_own_weights(two, tiny, people, tmp_path):
    torch.manual_seed(9)
    model = VDVAE(tiny.config, name="tiny").eval()
    namesake = vr.extract(model, people(6), tmp_path / "n.h5", layers="4x4")
    report = vr.probe(
        two[0], "face_id", layers="4x4", heads=["ridge"], beside=[two[1], namesake, two[0]]
    )
    rows = report.rows
    assert report.notes[:2] == [f"tiny (2) is {namesake.path}", f"tiny (3) is {two[0].path}"]
    weights = {row.model: row.weights_sha256 for row in rows if row.metric == "rank1"}
    own, other, another = (s.attrs["weights_sha256"] for s in (*two, namesake))
    expected = {
        "tiny": own, "shuffled-labels": own, "other": other, "tiny (2)": another, "tiny (3)": own,
        "pixels": None, "pca": None, "random-init": None,
    }  # fmt: skip
    assert weights == expected
    for name in ("tiny", "other", "tiny (2)", "tiny (3)"):
        layers = [r for r in rows if (r.model, r.metric) == (name, "rank1")]
        assert sum(row.chosen for row in layers) == 1
    values = [r.value for r in rows if r.model in ("tiny", "tiny (3)") and r.layer == "4x4.0"]
    assert values[:2] == values[2:]


def test_several_features_and_poolings_are_rows_of_one_choice(two):
    rows = vr.probe(
        two[0],
        "face_id",
        layers="8x8",
        selections="single",
        heads=["nearest-neighbor"],
        features=["mean", "delta"],
        pools=[None, "avg:2"],
    ).rows
    for model in ("tiny", "random-init"):
        own = [row for row in rows if (row.model, row.metric) == (model, "rank1")]
        assert [(row.layer, row.feature, row.pool, row.dims) for row in own] == [
            (layer, feature, pool, dims)
            for feature in ("mean", "delta")
            for pool, dims in ((None, 256), ("avg:2", 16))
            for layer in ("8x8.0", "8x8.1")
        ]
        assert sum(row.chosen for row in own) == 1
    X = two[0].matrix("8x8.1", "delta", "avg:2")[0]
    train = np.concatenate([np.flatnonzero(two[0].labels == k)[:3] for k in range(6)])
    test = np.setdiff1d(np.arange(36), train)
    head = NearestNeighbor().fit(X[train], two[0].labels[train])
    (row,) = [
        r for r in rows
        if (r.model, r.layer, r.feature, r.pool, r.metric) == ("tiny", "8x8.1", "delta", "avg:2", "rank1")
    ]  # fmt: skip
    assert row.value == head.score(X[test], two[0].labels[test])
