"""RSA against rsatoolbox's own functions, and on brains that see a layer, or nothing."""

import warnings
from unittest import mock

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

import vdvae_repr as vr
from vdvae_repr.brain import dissimilarity
from vdvae_repr.brain.dissimilarity import bootstrap, layer_rdm, noise_ceiling, pairs, read_rdms
from vdvae_repr.data.source import Source
from vdvae_repr.probing.features import Columns, Features
from vdvae_repr.probing.similarity import cka_without_each, debiased_cka, u_centred
from vdvae_repr.tasks import rsa
from vdvae_repr.tasks.rsa import METRICS

with warnings.catch_warnings():
    rsatoolbox = pytest.importorskip("rsatoolbox")
    from rsatoolbox.data import Dataset
    from rsatoolbox.inference import boot_noise_ceiling, eval_dual_bootstrap
    from rsatoolbox.model import ModelFixed
    from rsatoolbox.rdm import RDMs, calc_rdm
    from rsatoolbox.rdm import compare as compare_rdms

KINDS = [("spearman", "spearman"), ("kendall", "tau-a"), ("cosine", "cosine")]


@pytest.fixture(scope="module")
def store(tiny, people, tmp_path_factory):
    path = tmp_path_factory.mktemp("rsa") / "s.h5"
    return vr.extract(tiny, people(4), path)


@pytest.fixture(scope="module")
def seen(store):
    """Three brains that see one layer through noise, each by voxels of its own."""
    X = store.matrix("8x8.0")[0]
    rng = np.random.default_rng(0)
    X = X - X.mean(axis=0)
    brains = [X @ rng.normal(size=(X.shape[1], 60)) for _ in range(3)]
    noisy = [B + 0.7 * B.std() * rng.normal(size=B.shape) for B in brains]
    rdms = np.stack([1 - np.corrcoef(B) for B in noisy])
    return (rdms + rdms.transpose(0, 2, 1)) / 2  # exactly symmetric, so that copies are ties


def features(X):
    return Features("x", "x", (Columns.of_array("x", X.astype(np.float32)),))


@pytest.mark.parametrize("kind", ["correlation", "euclidean"])
def test_dissimilarities_of_a_layer_are_rsatoolboxs(store, kind):
    X = 5 + np.random.default_rng(0).normal(size=(24, 300)).astype(np.float32)
    measured = np.random.default_rng(1).uniform(size=(24, 24))
    problem = vr.RSA(rdm=measured + measured.T, dissimilarity=kind).bind(store)
    outcome = problem.score(problem.heads["spearman"], features(X)).outcome
    expected = calc_rdm(Dataset(X.astype(float)), method=kind).get_vectors()[0]
    np.testing.assert_allclose(outcome, expected, rtol=1e-6)


def test_patterns_without_any_variation_are_unlike_every_other():
    """What rounding leaves of them is no pattern."""
    X = np.random.default_rng(2).normal(size=(24, 1)) * np.ones(100_001)
    found = layer_rdm(X @ X.T, X.sum(axis=1), X.shape[1], "correlation")
    assert np.array_equal(found, 1 - np.eye(24))


@pytest.mark.parametrize("kind", ["correlation", "euclidean"])
@pytest.mark.parametrize("dims", [2, 3, 6])
def test_dissimilarities_that_are_equal_are_ties(dims, kind):
    """Rounding ranks none of them: of two values r is 1 or -1, of marks there are few distances."""
    rng = np.random.default_rng(dims)
    X = rng.normal(3, 1, (40, 2)) if dims == 2 else rng.integers(0, 2, (40, dims)) * 0.1 + 0.7
    found = layer_rdm(X @ X.T, X.sum(axis=1), dims, kind)
    exact = squareform(pdist(X, "sqeuclidean")) / dims
    if kind == "correlation":
        varies = np.ptp(X, axis=1) > 0
        exact = np.ones((40, 40)) - np.eye(40)
        exact[np.ix_(varies, varies)] = squareform(pdist(X[varies], "correlation"))
    if dims > 2 or kind == "correlation":
        assert len(np.unique(found)) == len(np.unique(exact.round(9)))
    np.testing.assert_allclose(found, exact, atol=1e-12)


@pytest.mark.parametrize("mean", [1e4, 1e5, 1e6])
def test_patterns_that_vary_little_beside_their_mean_are_not_constant(mean):
    X = (mean + np.random.default_rng(0).normal(size=(12, 300))).astype(np.float32).astype(float)
    found = layer_rdm(X @ X.T, X.sum(axis=1), 300, "correlation")
    np.testing.assert_allclose(found, squareform(pdist(X, "correlation")), atol=2e-3)


def test_crossnobis_is_rsatoolboxs(store):
    """With noise of each voxel at hand, of which rsatoolbox takes the precision."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, 24, 9)) + rng.normal(size=(3, 24, 9))
    problem = vr.RSA(responses=values, dissimilarity="crossnobis").bind(store)
    noise = values.var(axis=0, ddof=1).mean(axis=0)
    about = {"image": np.tile(np.arange(24), 3), "fold": np.repeat(np.arange(3), 24)}
    data = Dataset(values.reshape(-1, 9), obs_descriptors=about)
    with np.errstate(invalid="ignore"):  # of its own
        expected = calc_rdm(
            data,
            method="crossnobis",
            descriptor="image",
            noise=np.diag(1 / noise),
            cv_descriptor="fold",
        )
    np.testing.assert_allclose(pairs(problem.subjects)[0], expected.get_vectors()[0], rtol=1e-9)
    assert problem.subjects.min() < 0  # noise is no distance
    with pytest.raises(vr.TaskError, match="seen twice or more, found 24 seen once"):
        vr.RSA(responses=values[0], dissimilarity="crossnobis").bind(store)
    assert "crossnobis takes" not in problem.split.text
    values[2, :20] = np.nan
    problem = vr.RSA(responses=values, dissimilarity="crossnobis").bind(store)
    said = "crossnobis takes the first 2 repetitions of each image; 4 were seen more often"
    assert said in problem.split.text


def test_many_models_are_drawn_in_parts(seen, monkeypatch):
    monkeypatch.setattr(dissimilarity, "RESAMPLES", 8)
    models = np.stack(
        [1 - np.corrcoef(x) for x in np.random.default_rng(0).normal(size=(5, 24, 9))]
    )
    whole = bootstrap(models, seen, "spearman", seed=1)
    monkeypatch.setattr(dissimilarity, "BLOCK_BYTES", 2 * 8 * 24 * 23 // 2)
    parts = bootstrap(models, seen, "spearman", seed=1)
    np.testing.assert_array_equal(parts.draws, whole.draws)
    np.testing.assert_array_equal(parts.value, whole.value)


def test_alignment_without_each_image_is_that_of_the_others():
    rng = np.random.default_rng(0)
    X = [3 + rng.normal(size=(12, 7)) for _ in range(3)]
    matrices = [((x[:, None] - x) ** 2).sum(axis=2) for x in X]
    found = cka_without_each(matrices[:2], matrices[1:])
    for image in range(12):
        kept = np.delete(np.arange(12), image)
        a, b = ([u_centred(m[np.ix_(kept, kept)]) for m in s] for s in (matrices[:2], matrices[1:]))
        np.testing.assert_allclose(found[image], debiased_cka(a, b), atol=1e-10)
    assert found[0, 1, 0] == pytest.approx(1)  # of features with themselves


def test_too_many_images_are_refused_or_drawn(store, seen, monkeypatch):
    monkeypatch.setattr(rsa, "MOST", 10)
    with pytest.raises(vr.TaskError, match=r"10 images to compare at most.*500 times.*found 24"):
        vr.RSA(rdm=seen).bind(store)
    splits = np.array(["train"] * 16 + ["test"] * 8)
    measured = dissimilarity.MeasuredRDMs(seen, np.arange(24), tuple(splits))
    monkeypatch.setattr(rsa.RSA, "measured", lambda self, store: measured)
    problem = vr.RSA(rdm=seen).bind(store, seed=3)
    assert "by 10 of 16 images, drawn with seed 3" in problem.split.text
    assert problem.split.test.tolist() == list(range(16, 24))
    assert len(problem.split.train) == 10
    np.testing.assert_array_equal(problem.subjects, seen[:, problem.rows[:, None], problem.rows])
    X = np.random.default_rng(0).normal(size=(24, 40))
    scored = problem.score(problem.heads["spearman"], features(X))
    expected = pairs(1 - np.corrcoef(X.astype(np.float32))[16:, 16:])
    np.testing.assert_allclose(scored.outcome, expected, atol=1e-6)


def test_cosines_of_unlike_dissimilarities_are_not_0(store, seen):
    """Dissimilarities are above 0, so that the cosine of any two sets of them is; no chance is claimed."""
    problem = vr.RSA(rdm=seen).bind(store)
    X = features(np.random.default_rng(0).normal(size=(24, 300)))
    for head, chance in (("spearman", 0), ("kendall", 0), ("cka", 0), ("cosine", None)):
        outcome = problem.score(problem.heads[head], X)
        (figure,) = problem.figures(problem.metrics_of(problem.heads[head])[0], [[outcome]], 0)
        assert figure.chance == chance
        assert (figure.value > 0.9) == (head == "cosine")


@pytest.mark.parametrize(("head", "method"), KINDS)
def test_values_and_ceilings_are_rsatoolboxs(store, seen, head, method):
    problem = vr.RSA(rdm=seen).bind(store)
    X = np.random.default_rng(1).normal(size=(24, 50))
    scored = problem.score(problem.heads[head], features(X))
    measured = RDMs(pairs(seen))
    expected = compare_rdms(calc_rdm(Dataset(X), method="correlation"), measured, method)
    with mock.patch.object(dissimilarity, "RESAMPLES", 20):
        metric = problem.metrics_of(problem.heads[head])[0]
        (figure,) = problem.figures(metric, [[scored]], 0)
    assert figure.value == pytest.approx(expected.mean(), abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ceiling = boot_noise_ceiling(measured, method=method)
    assert problem.ceiling_of(metric, problem.heads[head]) == pytest.approx(ceiling)


@pytest.mark.parametrize(("head", "method"), KINDS)
@pytest.mark.parametrize("subjects", [3, 1])
@pytest.mark.filterwarnings("ignore:Noise ceiling for tau")
def test_bootstrap_is_rsatoolboxs(seen, subjects, head, method, monkeypatch):
    """Under the same draws of images and subjects, variances, intervals and p-values are equal."""
    monkeypatch.setattr(dissimilarity, "RESAMPLES", 12)
    rng = np.random.default_rng(3)
    models = np.stack([1 - np.corrcoef(rng.normal(size=(24, 20))) for _ in range(2)])
    models = (models + models.transpose(0, 2, 1)) / 2
    models[0] += 0.3 * seen[0]
    seen = seen[:subjects]
    found = bootstrap(models, seen, head, seed=5)
    data = RDMs(pairs(seen))
    fixed = [ModelFixed(str(i), RDMs(pairs(m)[None])) for i, m in enumerate(models)]
    draws = np.random.default_rng(5)

    def randint(low, high, size):
        return draws.integers(low, high, size)

    # rsatoolbox draws subjects first, and this package images: both are handed the same.
    order = []

    def either(low, high, size):
        if not order:
            images, of = randint(0, 24, 24), randint(0, subjects, subjects)
            order.extend([of, images])
        return order.pop(0)

    monkeypatch.setattr(np.random, "randint", either)
    if subjects > 1:
        expected = eval_dual_bootstrap(fixed, data, method=method, N=12)
        p = expected.test_pairwise()[0, 1]
    else:
        from rsatoolbox.inference import eval_bootstrap_pattern

        def images_alone(low, high, size):
            images = randint(0, 24, 24)
            randint(0, 1, 1)
            return images

        monkeypatch.setattr(np.random, "randint", images_alone)
        expected = eval_bootstrap_pattern(fixed, data, method=method, N=12)
        p = expected.test_pairwise()[0, 1]
    sem = [found.spread(np.eye(2)[i]) for i in range(2)]
    np.testing.assert_allclose(sem, expected.get_sem(), rtol=1e-8)
    assert found.dof == expected.dof
    # Its value is the mean of the bootstrap, ours that of the images: the spread of a difference is the same.
    spread = found.spread(np.array([1.0, -1.0]))
    assert spread**2 == pytest.approx(float(np.ravel(expected.diff_var)[0]), rel=1e-8)
    means = (
        expected.get_means()
        if subjects == 1
        else expected.evaluations[:, :, 0, 0, :].mean(axis=(0, 2))
    )
    assert found.p_value(means[0] - means[1], spread) == pytest.approx(p, rel=1e-6)


def test_a_layer_that_is_seen_is_found_and_controls_are_not(store, seen, monkeypatch):
    monkeypatch.setattr(dissimilarity, "RESAMPLES", 100)
    report = vr.probe(store, vr.RSA(rdm=seen), selections="single", cache=None)
    rows = report.to_frame()
    for head in ("spearman", "cka"):
        own = rows[(rows["head"] == head) & (rows["role"] == "model")]
        assert own.loc[own["value"].idxmax(), "layer"] == "8x8.0"
        assert (own["ci_low"] < own["value"]).all()
        assert (own["units"] == 3).all()
    best = rows[(rows["head"] == "spearman") & (rows["layer"] == "8x8.0")].iloc[0]
    low, high = noise_ceiling(pairs(seen), "spearman")
    assert (best["ceiling_low"], best["ceiling_high"]) == pytest.approx((low, high))
    assert best["value"] > 0.8 * low
    shuffled = rows[rows["model"] == "shuffled-labels"]
    assert (shuffled["value"].abs() < 0.1).all()
    assert {"pixels", "pca", "random-init"} <= set(rows["model"])
    assert not rows["chosen"][rows["role"] == "model"].any()  # nothing tells which layer to take
    assert "no layer is chosen" in " ".join(report.notes)


def test_with_splits_a_layer_is_chosen_by_other_images(tiny, people, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(dissimilarity, "RESAMPLES", 100)
    source = people(4)
    split = Source(
        name="split", ids=source.ids, reader=source.reader, labels=source.labels,
        splits=["train", "test"] * 12,
    )  # fmt: skip
    store = vr.extract(tiny, split, tmp_path / "s.h5")
    report = vr.probe(store, vr.RSA(rdm=seen), selections="single", controls="pixels", cache=None)
    rows = report.to_frame().query("head == 'spearman'")
    assert rows[rows["chosen"]]["layer"].tolist()[0] == "8x8.0"
    assert set(rows["n_test"]) == {12}
    problem = vr.RSA(rdm=seen).bind(store)
    X = store.matrix("8x8.0")[0]
    scored = problem.score(problem.heads["kendall"], features(X))
    own = RDMs(pairs(seen[:, 1::2, 1::2]))
    expected = calc_rdm(Dataset(X[1::2].astype(float)), method="correlation")
    np.testing.assert_allclose(scored.outcome, expected.get_vectors()[0], rtol=1e-6)
    train = calc_rdm(Dataset(X[::2].astype(float)), method="correlation")
    expected = compare_rdms(train, RDMs(pairs(seen[:, ::2, ::2])), "tau-a").mean()
    assert scored.training_score == pytest.approx(expected, abs=1e-6)
    assert own.n_cond == 12


def test_cka_is_that_of_the_patterns(store):
    """Debiased CKA of features with features, though one side is known by its dissimilarities alone."""
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(24, 30)), rng.normal(size=(24, 40))
    Y[:, :10] += X[:, :10]
    squared = ((Y[:, None] - Y) ** 2).sum(axis=2)
    problem = vr.RSA(rdm=squared, dissimilarity="euclidean").bind(store)
    scored = problem.score(problem.heads["cka"], features(X))
    (figure,) = problem.figures("cka", [[scored]], 0)

    def hsic(K, L):
        n = len(K)
        K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
        ones = np.ones(n)
        return (
            np.trace(K @ L)
            + (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2))
            - 2 * (ones @ K @ L @ ones) / (n - 2)
        )

    K, L = X @ X.T, Y @ Y.T
    assert figure.value == pytest.approx(hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L)), abs=1e-5)
    assert figure.low < figure.value < figure.high


def test_every_shape_is_read(store, seen, tmp_path):
    for shape, subjects in (
        (seen, 3),
        (seen[0], 1),
        (pairs(seen)[0], 1),
        (np.stack([seen - 0.1, seen + 0.1], axis=1), 3),
    ):
        found = read_rdms(shape, store)
        assert found.matrices.shape == (subjects, 24, 24)
        np.testing.assert_allclose(pairs(found.matrices), pairs(seen)[:subjects])
    words = ["Training", "testing"] * 12
    np.savez(tmp_path / "s.npz", it=seen, splits=words)
    assert read_rdms(tmp_path / "s.npz", store).splits == ("train", "test") * 12
    np.savez(tmp_path / "s.npz", it=seen, splits=words[:5])
    with pytest.raises(vr.TaskError, match="a split for each of 24 images, found 5"):
        read_rdms(tmp_path / "s.npz", store)
    np.savez(tmp_path / "a.npz", it=seen, ids=store.ids[::-1])
    problem = vr.RSA(rdm=str(tmp_path / "a.npz") + ":it").bind(store)
    assert problem.rows.tolist() == list(range(23, -1, -1))
    lopsided = seen.copy()
    lopsided[0, 0, 1] += 1
    for rdm, message in (
        (seen[:, :5], r"found \(3, 5, 24\)"),
        (np.ones(7), "found 7 numbers"),
        (lopsided, "symmetric"),
        (np.where(np.eye(24), 0, np.nan), "finite"),
        (seen[:, :5, :5], "one row for each of the 24 images"),
    ):
        with pytest.raises(vr.TaskError, match=message):
            read_rdms(rdm, store)
    for options, message in (
        ({}, "found neither"),
        ({"rdm": seen, "responses": seen[0]}, "found both"),
    ):
        with pytest.raises(vr.TaskError, match=message):
            vr.RSA(**options).bind(store)
    for options, message in (
        (
            {"dissimilarity": "cosine"},
            "expected correlation, euclidean, crossnobis, found 'cosine'",
        ),
        ({"rdm": seen, "dissimilarity": "crossnobis"}, "crossnobis: expected responses"),
        ({"responses": seen, "roi": "V1"}, "expected both"),
    ):
        with pytest.raises(vr.TaskError, match=message):
            vr.RSA(**options)


def test_similarities_are_no_dissimilarities(store, seen):
    """Of a similarity matrix every sign would be turned."""
    X = np.random.default_rng(0).normal(size=(24, 9))
    for similar in (
        1 - seen,
        seen.max() - seen,
        X @ X.T,
        np.cov(X),
        np.ones((24, 24)) + np.eye(24),
    ):
        with pytest.raises(vr.TaskError, match=r"rdm: expected dissimilarities, .* give 1 - them"):
            read_rdms(similar, store)
    unknown = np.where(np.eye(24) > 0, np.nan, seen)  # a diagonal that is not there tells nothing
    for fine in (seen, unknown, seen + 0.5, np.zeros((24, 24)), seen - 0.3):
        read_rdms(fine, store)


def test_images_whose_dissimilarities_were_never_written_are_said(store, seen):
    holes = seen.copy()
    holes[1, 5] = holes[1, :, 5] = 0
    (line,) = (line for line in read_rdms(holes, store).notes if "never written" in line)
    assert line.startswith("rdm: 1 image has a dissimilarity of 0 to all others")
    assert repr(store.ids[5]) in line
    for fine in (seen, np.zeros((24, 24))):
        assert not any("never written" in line for line in read_rdms(fine, store).notes)


def test_a_code_among_dissimilarities_is_said(store, seen):
    coded = seen[0].copy()
    coded[3, 7] = coded[7, 3] = coded[2, 9] = coded[9, 2] = -999
    assert any("rdm: -999 stands 2 times" in line for line in read_rdms(coded, store).notes)
    below = np.where(coded == -999, -1, coded)
    assert any("rdm: -1 stands 2 times" in line for line in read_rdms(below, store).notes)
    sessions = np.stack([coded, seen[0], seen[1]])[None]
    assert any("rdm: -999 stands 2 times" in line for line in read_rdms(sessions, store).notes)
    classes = np.kron(np.eye(4), np.ones((6, 6)))
    # Correlations of classes differ from 0 by rounding.
    for fine in (seen, np.zeros((24, 24)), 1 - classes, 1 - 2 * classes, 1 - np.corrcoef(classes)):
        assert not any(" stands " in line for line in read_rdms(fine, store).notes)


def test_subjects_that_are_copies_are_said(store, seen):
    for subjects, said in (
        ([0, 0], "subjects 0 and 1 are the same"),
        ([0, 1, 0, 1], "subjects 0 and 2 are the same, as are 1 more"),
        ([0, 1, 2], None),
        ([0], None),
    ):
        matrices = seen[subjects]
        matrices[:, range(24), range(24)] = np.nan  # is not known
        notes = [note for note in read_rdms(matrices, store).notes if "are the same" in note]
        assert len(notes) == (said is not None)
        assert said is None or notes[0].startswith(f"rdm: {said}, so that they tell nothing")
    sessions = np.stack([seen, seen], axis=1)  # whose mean is taken
    assert not any("are the same" in note for note in read_rdms(sessions, store).notes)


@pytest.mark.parametrize("value", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("subjects", [1, 3])
def test_a_subject_all_of_whose_pairs_are_as_dissimilar_is_refused(store, seen, subjects, value):
    """As where it was never filled in."""
    rdms = seen[:subjects].copy()
    rdms[-1] = value * (1 - np.eye(24))
    message = f"found {value:g} for all pairs of subject {subjects} of {subjects}; leave that"
    with pytest.raises(vr.TaskError, match=message):
        vr.RSA(rdm=rdms).bind(store)


@pytest.mark.parametrize("dissimilarity", ["correlation", "euclidean"])
@pytest.mark.parametrize("head", ["spearman", "kendall", "cosine", "cka"])
def test_a_layer_that_is_constant_is_0_and_said(store, seen, head, dissimilarity, monkeypatch):
    """Also of euclidean distances of a constant, which are rounding."""
    monkeypatch.setattr("vdvae_repr.brain.dissimilarity.RESAMPLES", 20)
    problem = vr.RSA(rdm=seen, dissimilarity=dissimilarity).bind(store)
    scored = problem.score(problem.heads[head], features(np.full((24, 30), 0.7)))
    (figure,) = problem.figures(METRICS[head], [[scored]], seed=0)
    assert (figure.value, figure.low) == (0, None)
    assert any("x x: all pairs of images are as dissimilar" in note for note in problem.notes)
    difference = problem.compare([scored], [scored], problem.heads[head], seed=0)
    assert (difference.value, difference.p) == (0, 1)


@pytest.mark.parametrize("voxels", [1, 2])
def test_correlations_over_one_or_two_voxels_are_refused(store, voxels):
    """Of one value there is none, and of two it is 1 or -1 whatever was seen."""
    values = np.random.default_rng(0).normal(size=(24, 3))
    with pytest.raises(vr.TaskError, match=f"expected at least 3 voxels.* found {voxels}; take eu"):
        vr.RSA(responses=values[:, :voxels]).bind(store)
    vr.RSA(responses=values[:, :voxels], dissimilarity="euclidean").bind(store)
    vr.RSA(responses=values).bind(store)


def test_an_image_that_is_there_twice_is_refused(tiny, people, tmp_path):
    """A copy is like its image in any layer and in any brain: what is unrelated would be alike."""
    source = people(4)
    pixels = np.stack([source.reader(row) for row in range(20)])
    store = vr.extract(tiny, np.concatenate([pixels] * 3), tmp_path / "s.h5", layers="1x1")
    values = np.random.default_rng(0).normal(size=(60, 9))
    for task in (vr.RSA(responses=values), vr.Encoding(responses=values)):
        with pytest.raises(vr.TaskError, match=r"the same image as .* on the first axis"):
            vr.probe(store, task, controls=(), cache=None)


def test_without_the_extra_one_line_says_what_to_install(store, seen, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rsatoolbox.rdm", None)
    monkeypatch.setitem(__import__("sys").modules, "rsatoolbox", None)
    with pytest.raises(
        vr.TaskError, match=r"rsa needs rsatoolbox.*pip install 'vdvae-repr\[brain\]'"
    ):
        vr.probe(store, vr.RSA(rdm=seen), layers="1x1", controls=(), cache=None)
