"""Any estimator as a head, any subset of the controls: the same splits, and what scikit-learn itself says."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.cluster import KMeans
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NeighborhoodComponentsAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

import vdvae_repr as vr
from vdvae_repr.probing import features as features_module
from vdvae_repr.probing.features import Columns, Features
from vdvae_repr.probing.head import Head
from vdvae_repr.results import CONTROLS

HOW = {"cache": None, "controls": (), "layers": "8x8.0"}


@pytest.fixture(scope="module")
def store(tiny, people, tmp_path_factory):
    path = tmp_path_factory.mktemp("open") / "s.h5"
    return vr.extract(tiny, people(8), path, layers="<=8x8", features=["mean", "kl"])


@pytest.fixture(scope="module")
def split(store):
    """Gallery and probes: the first half of each person's images, and the rest."""
    first = np.arange(len(store)) % 8 < 4
    return np.flatnonzero(first), np.flatnonzero(~first)


@pytest.mark.parametrize(
    "head",
    [
        make_pipeline(StandardScaler(), LinearSVC()),
        SVC(),
        KNeighborsClassifier(1),
        GaussianNB(),
        RidgeClassifier(),
        RandomForestClassifier(10),
        make_pipeline(PCA(5), GaussianNB()),
    ],
)
def test_a_row_is_what_the_estimator_says_by_itself(store, split, head):
    X, y, _ = store.matrix("8x8.0")
    train, test = split
    rows = vr.probe(store, "face_id", heads={"own": head}, **HOW).rows
    fresh = Head("own", head).fresh(0)
    expected = np.mean(fresh.fit(X[train], y[train]).predict(X[test]) == y[test])
    found = {row.metric: row for row in rows}
    assert found["rank1"].value == pytest.approx(expected)
    assert found["rank1"].head == "own"
    assert (found["rank1"].protocol, found["rank1"].n_train) == ("closed-set", 24)
    assert found["rank5"].value >= expected


def test_a_layer_is_chosen_by_stratified_folds_of_training_images(store, split):
    """Its score is scikit-learn's own cross-validation; of equal layers the first is chosen."""
    train, _ = split
    head = make_pipeline(StandardScaler(), KNeighborsClassifier(3))
    report = vr.probe(
        store, "face_id", heads={"own": head}, cache=None, controls=("pixels",), selections="single"
    )
    folds = StratifiedKFold(4, shuffle=True, random_state=0)
    scores = []
    for spec in store.layers:
        X, y, _ = store.matrix(spec.name)
        scores.append(cross_val_score(head, X[train], y[train], cv=folds).mean())
    chosen = [row.layer for row in report.rows if row.chosen and row.model == "tiny"]
    assert chosen == [store.layers[int(np.argmax(scores))].name] * 2  # a row a metric
    (comparison,) = report.comparisons
    assert (comparison.versus, comparison.layer) == ("pixels", chosen[0])
    values = {r.model: r.value for r in report.rows if r.chosen and r.metric == "rank1"}
    assert comparison.difference == pytest.approx(values["tiny"] - values["pixels"])
    assert [row.versus for row in report.rows if row.versus] == [comparison.versus]


def test_a_head_that_refuses_a_fold_says_that_it_is_one(store):
    """Of the 24 images to fit on a fold leaves 18; 20 neighbours would have sufficed for all."""
    head = {"many": KNeighborsClassifier(20)}
    with pytest.raises(
        vr.TaskError,
        match=r"n_neighbors = 20.* \(in cross-validation, on about 18 of 24 images\)",
    ):
        vr.probe(store, "face_id", heads=head, cache=None, controls=())


def test_validation_images_choose_where_there_are_some(tiny, people, tmp_path):
    source = people(9)
    object.__setattr__(source, "splits", ("train", "val", "test") * 18)
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="<=4x4")
    problem = vr.Classification().bind(store)
    head = Head("own", GaussianNB())
    train, val = problem.split.train, problem.split.val
    spec = store.layers[1]
    features = Features("tiny", spec.name, (Columns.of_layer(store, spec, "mean", None),), "mean")
    X, y, _ = store.matrix(spec.name)
    expected = GaussianNB().fit(X[train], y[train]).score(X[val], y[val])
    assert problem.score(head, features).training_score == pytest.approx(expected)


def test_ours_and_others_side_by_side(store):
    """A name of the task's own stands for that head, and its figures are those of the task."""
    heads = {"forest": RandomForestClassifier(5), "mine": "ridge"}
    rows = vr.probe(store, "face_id", heads=heads, **HOW).rows
    ridge = vr.probe(store, "face_id", heads="ridge", **HOW).rows
    assert [r.value for r in rows if r.head == "mine"] == [r.value for r in ridge]
    again = vr.probe(store, "face_id", heads=heads, **HOW).rows
    assert [row.value for row in again] == [row.value for row in rows]  # drawn by the seed


def test_our_estimators_take_inner_products_in_others_places_too(store, monkeypatch):
    """They never see columns, so that no size of these is too much; other estimators are refused."""
    monkeypatch.setattr(features_module, "MATRIX_BYTES", 4 * 48 * 255)
    for head in (vr.LogisticProbe(Cs=[1.0]), vr.Ridge(), vr.NearestNeighbor()):
        assert vr.probe(store, "face_id", heads={"own": head}, **HOW).rows
    message = r"own: takes columns, and 8x8\.0 has 256 of each of 48 images.*pool the layers.*as linear-sgd"
    with pytest.raises(vr.TaskError, match=message):
        vr.probe(store, "face_id", heads={"own": SVC()}, **HOW)
    assert vr.probe(store, "face_id", heads={"own": SVC()}, pools="avg", **HOW).rows


def test_a_head_that_standardises_is_never_given_another_basis(store):
    """Deviations are those of columns; inner products alone, or centred ones, are of any basis."""
    told = {
        name: Head(name, head).rotations_change_nothing
        for name, head in {
            "ridge": vr.Ridge(), "centred": vr.Ridge(standardize=False), "chosen": vr.NearestNeighbor(),
            "cosine": vr.NearestNeighbor(standardize=False), "raw": vr.WeightedNeighbors(center=False),
            "theirs": RidgeClassifier(), "tree": RandomForestClassifier(),
        }.items()
    }  # fmt: skip
    assert {name for name, free in told.items() if free} == {"centred", "cosine", "raw", "theirs"}


def test_few_shot_gives_columns_to_what_needs_them(store):
    """A tree is told by axes: rotated features would be others."""
    task = vr.FewShot(ways=3, shots=2, queries=3, episodes=5)
    (row,) = vr.probe(store, task, heads={"forest": RandomForestClassifier(5)}, **HOW).rows
    X = store.matrix("8x8.0")[0]
    y, truth = np.repeat(range(3), 2), np.repeat(range(3), 3)
    accuracies = [
        np.mean(
            RandomForestClassifier(5, random_state=0)
            .fit(X[episode.support], y)
            .predict(X[episode.query])
            == truth
        )
        for episode in task.bind(store).episodes
    ]
    assert row.value == pytest.approx(np.mean(accuracies))


class ByDeviation(RidgeClassifier):
    """Divides columns by their deviations, which are those of one basis alone."""

    def fit(self, X, y):
        self.deviation_ = X.std(axis=0) + 1e-9
        return super().fit(X / self.deviation_, y)

    def predict(self, X):
        return super().predict(X / self.deviation_)


class OurByDeviation(vr.NearestPrototype):
    def fit(self, X, y):
        self.deviation_ = X.std(axis=0) + 1e-9
        return super().fit(X / self.deviation_, y)

    def predict(self, X):
        return super().predict(X / self.deviation_)


@pytest.mark.parametrize(
    "head",
    [
        ByDeviation(),
        OurByDeviation(),
        RidgeClassifier(positive=True, alpha=0.1),
        make_pipeline(Normalizer("max"), RidgeClassifier()),
        make_pipeline(Normalizer(), ByDeviation()),
    ],
)
def test_what_is_derived_from_a_head_of_inner_products_is_given_columns(store, head):
    """Known by the estimator itself on the columns of each episode; 8x8.0 has more of them than images."""
    task = vr.FewShot(ways=3, shots=2, queries=3, episodes=20)
    (row,) = vr.probe(store, task, heads={"own": head}, **HOW).rows
    X = store.matrix("8x8.0")[0]
    assert X.shape[1] > len(X)
    y, truth = np.repeat(range(3), 2), np.repeat(range(3), 3)
    told = [
        clone(head).fit(X[e.support], y).predict(X[e.query]) == truth
        for e in task.bind(store).episodes
    ]
    assert row.value == pytest.approx(np.mean(told))


class OurScaled(vr.Ridge):
    """What fits anew is asked, also where its parent need not be fitted on columns."""

    def fit(self, X, y):
        return super().fit(X**3, y)

    def class_scores(self, X):
        return super().class_scores(X**3)


def test_what_is_derived_from_a_head_of_ours_fits_in_its_own_way(store, split):
    (row,) = (
        row
        for row in vr.probe(store, "face_id", heads={"own": OurScaled()}, **HOW).rows
        if row.metric == "rank1"
    )
    X, y, _ = store.matrix("8x8.0")
    train, test = split
    expected = OurScaled().fit(X[train], y[train]).predict(X[test]) == y[test]
    assert row.value == pytest.approx(expected.mean())
    assert row.scaling is None


def test_factors_take_regressors_for_numbers_and_classifiers_for_categories(store):
    task = vr.Factors(categories="dark")
    problem = task.bind(store)
    X, train, test = store.matrix("8x8.0")[0], problem.split.train, problem.split.test
    for head, factor, metrics in (
        (LinearRegression(), "bright", {"r2": r2_score, "pearson": lambda y, x: pearsonr(x, y)[0]}),
        (GaussianNB(), "dark", {"balanced_accuracy": balanced_accuracy_score}),
    ):
        rows = vr.probe(store, task, heads={"own": head}, **HOW).rows
        assert [(r.head, r.metric) for r in rows] == [(f"own:{factor}", m) for m in metrics]
        y = problem.factors[factor]
        predicted = head.fit(X[train], y[train]).predict(X[test])
        for row in rows:
            expected = metrics[row.metric](y[test], predicted)
            assert row.value == pytest.approx(expected, abs=1e-4)


def test_verification_compares_what_transformers_make(tiny, people, tmp_path):
    source = people(4, num_people=8)
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="4x4")
    lines = ["a,b,same,fold"]
    for k in range(8):
        lines += [f"0-{4 * k + i},0-{4 * k + i + 1},1,{k % 2}" for i in (0, 2)]
        lines += [f"0-{4 * k + i},0-{4 * ((k + 2) % 8) + i},0,{k % 2}" for i in (0, 2)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    task = vr.FaceVerification(pairs=tmp_path / "pairs.csv", far=[])
    how = {"cache": None, "controls": ("pixels", "pca")}
    heads = {"own": PCA(128, whiten=True, svd_solver="full"), "ours": "cosine-whitened"}
    with pytest.raises(vr.TaskError, match=r"own refuses tiny 4x4\.0 mean: n_components=128"):
        vr.probe(store, task, heads={"own": heads["own"]}, **how)
    heads["own"] = PCA(5, whiten=True, svd_solver="full")
    rows = vr.probe(store, task, heads=heads, layers="4x4", **how).rows
    assert {row.head for row in rows} == {"own", "ours"}
    with pytest.raises(vr.TaskError, match="'own' transforms nothing"):
        vr.probe(store, task, heads={"own": SVC()}, **how)
    with pytest.raises(vr.TaskError, match="expected a transformer that is fitted without labels"):
        vr.probe(store, task, heads={"own": NeighborhoodComponentsAnalysis(2)}, **how)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"own": SVC}, "expected an estimator of scikit-learn as 'own'"),
        ({"own": 3}, "expected an estimator of scikit-learn as 'own'"),
        ({"own": LinearRegression()}, "expected a classifier .*, found 'own', a regressor"),
        ({"own": PCA()}, "'own' predicts nothing"),
        ({"own": KMeans(6)}, "expected a classifier or a regressor, found 'own', which clusters"),
        ({"own": make_pipeline(PCA(2), IsolationForest())}, "found 'own', which detects outliers"),
        ({"ridge": SVC()}, "'ridge' is a head of face_id; call yours otherwise"),
        ({"own": "forest"}, "unknown head 'forest'; the heads of face_id are nearest"),
        ({1: SVC()}, "heads: expected names"),
        ({}, "heads: expected at least one"),
        (
            {"own": SVC(decision_function_shape="ovo")},
            "expected a score of each of 6 classes, found 15",
        ),
    ],
)
def test_what_is_no_head_is_said(store, heads, message):
    with pytest.raises(vr.TaskError, match=message):
        vr.probe(store, "face_id", heads=heads, **HOW)


class Guess(BaseEstimator):
    """Gives no scores of classes."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[1])

    def score(self, X, y):
        return np.mean(self.predict(X) == y)


def test_of_a_first_guess_alone_nothing_deeper_is_told(store):
    rows = vr.probe(store, "face_id", heads={"guess": Guess()}, **HOW).rows
    assert [(row.metric, row.value) for row in rows] == [("rank1", 1 / 6)]
    with pytest.raises(vr.TaskError, match="open-set needs scores, and 'guess' gives none"):
        vr.probe(store, vr.FaceId(protocol="open-set", far=[0.9]), heads={"guess": Guess()}, **HOW)


class Nearest(ClassifierMixin, BaseEstimator):
    """The class of the nearest mean, whose classes are listed from the last to the first."""

    def __init__(self, scores=False):
        self.scores = scores

    def fit(self, X, y):
        self.classes_ = np.unique(y)[::-1]
        self.means_ = np.stack([X[y == label].mean(axis=0) for label in self.classes_])
        return self

    def predict(self, X):
        return self.classes_[self._distances(X).argmin(axis=1)]

    def _distances(self, X):
        return ((X[:, None] - self.means_) ** 2).sum(axis=2)


class NearestScores(Nearest):
    def decision_function(self, X):
        return -self._distances(X)


@pytest.mark.parametrize(
    "head",
    [
        Nearest(),
        NearestScores(),
        StackingClassifier([("ridge", RidgeClassifier())], cv=2),
        make_pipeline(PCA(3), StackingClassifier([("ridge", RidgeClassifier())], cv=2)),
        VotingClassifier([("ridge", RidgeClassifier()), ("bayes", GaussianNB())]),
    ],
)
def test_classifiers_of_any_kind_are_asked_as_they_are(store, split, head):
    X, y, _ = store.matrix("8x8.0")
    train, test = split
    row = vr.probe(store, "face_id", heads={"own": head}, **HOW).rows[0]
    expected = clone(head).fit(X[train], y[train]).predict(X[test]) == y[test]
    assert (row.metric, row.value) == ("rank1", pytest.approx(expected.mean()))


class InPlace(Nearest):
    """Works in the arrays that it is handed, features and labels."""

    def fit(self, X, y):
        super().fit(X, y)
        X *= 0
        y *= 0
        return self

    def predict(self, X):
        return self.classes_[self.decision_function(X).argmax(axis=1)]

    def decision_function(self, X):
        scores = -self._distances(X)
        X *= 0
        return scores


IN_PLACE = [
    make_pipeline(StandardScaler(copy=False), LogisticRegression()),
    make_pipeline(StandardScaler(copy=False), Normalizer(copy=False), RidgeClassifier()),
    InPlace(),
]


@pytest.fixture(scope="module")
def divided(tiny, people, tmp_path_factory):
    source = people(6, num_people=14)
    object.__setattr__(source, "splits", ("train", "test") * 42)
    return vr.extract(tiny, source, tmp_path_factory.mktemp("divided") / "s.h5", layers="1x1.0")


@pytest.mark.parametrize(
    ("task", "metrics"),
    [("face_id", ("rank1", "rank5")), ("classification", ("accuracy", "top5"))],
)
@pytest.mark.parametrize("head", IN_PLACE)
def test_every_call_of_a_head_is_handed_arrays_of_its_own(divided, task, metrics, head):
    """Known by the estimator itself: each figure is that of its scores of features as they are stored."""
    X, y, _ = divided.matrix("1x1.0")
    fitted = clone(head).fit(X[::2], y[::2])
    order = fitted.classes_[np.argsort(-fitted.decision_function(X[1::2]), axis=1)]
    rows = vr.probe(divided, task, heads={"own": head}, cache=None, controls=()).rows
    found = {row.metric: row.value for row in rows}
    for metric, depth in zip(metrics, (1, 5), strict=True):
        told = (order[:, :depth] == y[1::2, None]).any(axis=1)
        assert found[metric] == pytest.approx(told.mean())


@pytest.mark.parametrize("head", IN_PLACE)
def test_a_head_that_works_in_place_changes_no_figure_of_another(store, head):
    """Components of pixels are those of each episode, and every head is handed them."""
    task = vr.FewShot(ways=3, shots=2, queries=3, episodes=20)
    how = HOW | {"controls": ("pixels", "pca")}
    nearest = {"nearest": KNeighborsClassifier(1)}
    alone, both = (
        [row for row in vr.probe(store, task, heads=heads, **how).rows if row.head == "nearest"]
        for heads in (nearest, {"own": head} | nearest)
    )
    assert {row.model for row in alone} == {"tiny", "pixels", "pca"}
    figures = [(row.model, row.dims, row.value) for row in alone]
    assert [(row.model, row.dims, row.value) for row in both] == figures


def test_a_regressor_that_works_in_place_is_chosen_by_the_numbers_as_they_are(store):
    """Centring the numbers in place, as PLSRegression does, says nothing of what was left out."""
    problem = vr.Factors(categories="dark").bind(store)
    spec = store.layers[0]
    features = Features("tiny", spec.name, (Columns.of_layer(store, spec, "mean", None),), "mean")
    copied, in_place = (
        problem.score(head, features)
        for copy in (True, False)
        for head in problem.heads_of("own", PLSRegression(2, copy=copy)).values()
    )
    assert in_place.training_score == copied.training_score
    np.testing.assert_array_equal(in_place.outcome, copied.outcome)


def test_a_task_of_the_users_is_handed_features_that_stay_as_they_are(store):
    """An estimator that works in place takes a copy of what it may not write to."""
    problem = vr.FaceId().bind(store)
    spec = store.layers[0]
    features = Features("tiny", spec.name, (Columns.of_layer(store, spec, "mean", None),), "mean")
    for head in (Head("columns", StandardScaler(copy=False)), Head("products", Normalizer())):
        before = problem.read(head, features).copy()
        made = StandardScaler(copy=False).fit_transform(problem.read(head, features))
        np.testing.assert_allclose(made.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_array_equal(problem.read(head, features), before)
        with pytest.raises(ValueError, match="read-only"):
            problem.read(head, features)[:] = 0


class WithoutClasses(Nearest):
    def fit(self, X, y):
        super().fit(X, y)
        self.kept_ = self.classes_
        del self.classes_
        return self

    def predict(self, X):
        return np.repeat(self.kept_[0], len(X))


class OtherClasses(Nearest):
    def predict(self, X):
        return np.full(len(X), 99)


class Plain:
    fit = predict = set_params = None

    def get_params(self, deep=True):
        return {}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (WithoutClasses(), r"own: expected the 6 classes .* found 'none'; set self\.classes_"),
        (OtherClasses(), "own: expected one of its classes_ of each image, found 99"),
        (Plain(), "expected 'own' to say whether it is a classifier or a regressor, found no tags"),
    ],
)
def test_a_classifier_that_keeps_no_promise_of_scikit_learns_is_named(store, head, message):
    with pytest.raises(vr.TaskError, match=message):
        vr.probe(store, "face_id", heads={"own": head}, **HOW)


@pytest.mark.parametrize(
    "task", [vr.Factors(categories="dark"), vr.FewShot(ways=3, shots=2, queries=3, episodes=5)]
)
def test_a_class_that_no_training_image_has_is_refused_by_every_task(store, task):
    with pytest.raises(vr.TaskError, match=r"own.*: expected one of its classes_ .*, found 99"):
        vr.probe(store, task, heads={"own": OtherClasses()}, **HOW)


# Controls


@pytest.mark.parametrize("controls", [(), ("pixels",), ("pca", "shuffled-labels"), CONTROLS])
def test_any_subset_of_the_controls_changes_no_other_figure(store, controls):
    how = {"cache": None, "heads": ["nearest-neighbor"], "layers": "<=4x4"}
    every = vr.probe(store, "face_id", **how).rows
    some = vr.probe(store, "face_id", controls=controls, **how).rows
    assert {row.model for row in some} == {"tiny", *controls}

    def figures(rows):
        return [(r.model, r.layer, r.dims, r.value) for r in rows if r.model in ("tiny", *controls)]

    assert figures(some) == figures(every)
    missing = [name for name in CONTROLS if name not in controls]
    assert {row.controls_left_out for row in some} == {", ".join(missing) or None}
    compared = any(name in controls for name in CONTROLS[:3])
    assert any(row.versus is not None for row in some) == compared


def test_without_images_there_are_controls_that_need_none(tiny, people, tmp_path):
    store = vr.extract(tiny, people(4), tmp_path / "s.h5", layers="1x1", images=False)
    with pytest.raises(vr.TaskError, match="holds no images, so the controls pixels cannot run"):
        vr.probe(store, "face_id", controls="pixels")
    with pytest.raises(vr.TaskError, match=r"found 'random'; did you mean 'random-init'\?"):
        vr.probe(store, "face_id", controls="random")
    report = vr.probe(store, "face_id", controls="shuffled-labels", heads="ridge", cache=None)
    assert {row.model for row in report.rows} == {"tiny", "shuffled-labels"}
    assert any("whether one is on both sides" in note for note in report.notes)


# What layers are put together


def test_selections_are_rows_of_their_own(store):
    how = {"cache": None, "heads": ["nearest-neighbor"], "controls": ()}
    found = {}
    for selection in ("single", "joint", "cumulative", "without", "pruned"):
        rows = vr.probe(store, "face_id", selections=selection, **how).rows
        found[selection] = [row.layer for row in rows if row.metric == "rank1"]
    assert found == {
        "single": ["1x1.0", "4x4.0", "8x8.0", "8x8.1"],
        "joint": ["all"],
        "cumulative": ["1x1.0", "0:2", "0:3", "0:4"],
        "without": ["4x4,8x8", "1x1,8x8", "1x1,4x4"],
        "pruned": ["30 % by kl", "10 % by kl", "3 % by kl"],
    }
    report = vr.probe(store, "face_id", selections=("single", "cumulative"), layers="8x8", **how)
    layers = [row.layer for row in report.rows if row.metric == "rank1"]
    assert layers == ["8x8.0", "8x8.1", "2:4"]


def test_a_report_is_a_table_files_and_pictures(store, tmp_path):
    report = vr.probe(store, "face_id", heads=["nearest-neighbor"], cache=None)
    assert list(report.to_frame()["value"]) == [row.value for row in report.rows]
    assert "nearest-neighbor" in str(report)
    assert repr(report) == f"<Report face_id on people: {len(report.rows)} rows, 3 comparisons>"
    report.save(tmp_path / "out")
    assert {"results.csv", "layers.png", "cmc.png"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    for ax in (report.plot.layers(), report.plot.cmc()):
        assert ax.get_lines()
