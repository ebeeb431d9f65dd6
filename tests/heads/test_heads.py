import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.linear_model import Ridge as RidgeRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from vdvae_repr.heads import gram as module
from vdvae_repr.heads import logistic
from vdvae_repr.heads.few_shot import NearestPrototype
from vdvae_repr.heads.gram import Fold, gram_matrices
from vdvae_repr.heads.linear import (
    ALPHAS,
    C_GRID,
    LogisticProbe,
    Ridge,
    RidgeRegressor,
    apart_from_others,
    stratified_folds,
)
from vdvae_repr.heads.neighbors import NearestNeighbor, WeightedNeighbors
from vdvae_repr.heads.verification import Centred, Whitened


def problem(n, d, k, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    centres = rng.normal(size=(k, d))
    return (0.4 * centres[y] + rng.normal(size=(n, d))) * rng.uniform(0.1, 9, d), y


def objective(scores, weights, y, C):
    shifted = scores - scores.max(1, keepdims=True)
    log_prob = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -C * log_prob[np.arange(len(y)), y].sum() + 0.5 * (weights**2).sum()


@pytest.mark.parametrize("C", [1e-4, 1.0, 1e5])
@pytest.mark.parametrize(("n", "d", "k"), [(60, 300, 5), (120, 20, 5), (60, 100, 2)])
def test_optimum_is_scikit_learns(n, d, k, C):
    X, y = problem(n, d, k)
    ours = LogisticProbe(Cs=[C]).fit(X, y)
    scaler = StandardScaler().fit(X)
    theirs = LogisticRegression(C=C, tol=1e-10, max_iter=100_000).fit(scaler.transform(X), y)
    logits = theirs.decision_function(scaler.transform(X))
    weights = ours._weights
    if k == 2:
        logits, weights = np.column_stack([0 * logits, logits]), weights[:, 1] - weights[:, 0]
    reference = objective(logits, theirs.coef_, y, C)
    assert objective(ours.class_scores(X), weights, y, C) <= reference * (1 + 1e-6)
    new, _ = problem(80, d, k, seed=1)
    mine, expected = (
        head.decision_function(new_X)
        for head, new_X in ((ours, new), (theirs, scaler.transform(new)))
    )
    np.testing.assert_allclose(mine, expected, atol=1e-3 * np.abs(expected).max())


def test_features_that_say_nothing_give_equal_scores():
    head = LogisticProbe().fit(np.zeros((8, 3)), [0, 1] * 4)
    np.testing.assert_array_equal(head.class_scores(np.ones((2, 3))), np.zeros((2, 2)))


def test_c_is_chosen_on_training_data():
    X, y = load_digits(return_X_y=True)
    head = LogisticProbe(Cs=10.0 ** np.arange(-5, 2)).fit(X[:400], y[:400])
    assert head.search_ == "k-fold"
    assert sorted(head.Cs)[np.argmax(head.cv_scores_)] == head.C_
    assert head.score(X[400:], y[400:]) > 0.85


def test_c_is_chosen_on_validation_samples_where_given():
    X, y = load_digits(return_X_y=True)
    train, held = (X[:300], y[:300]), (X[300:500], y[300:500])
    grid = 10.0 ** np.arange(-5, 2)
    head = LogisticProbe(Cs=grid).fit(*train, held)
    scaler = StandardScaler().fit(X[:300])
    fits = [
        LogisticRegression(C=C, max_iter=5000).fit(scaler.transform(X[:300]), y[:300]) for C in grid
    ]
    expected = [fit.score(scaler.transform(X[300:500]), y[300:500]) for fit in fits]
    assert head.search_ == "validation"
    np.testing.assert_allclose(head.cv_scores_, expected, atol=0.011)
    assert grid[np.argmax(head.cv_scores_)] == head.C_
    scaler.fit(X[:500])  # refitted on both
    again = LogisticRegression(C=head.C_, max_iter=5000, tol=1e-8)
    again.fit(scaler.transform(X[:500]), y[:500])
    logits = again.decision_function(scaler.transform(X[500:600]))
    own = head.class_scores(X[500:600])
    np.testing.assert_allclose(own - own.mean(axis=1, keepdims=True), logits, atol=1e-3)
    with pytest.raises(ValueError, match="classes of validation among those of y"):
        LogisticProbe(Cs=grid).fit(X[y < 9], y[y < 9], (X, y))


def test_a_class_of_one_sample_is_fitted_on_in_every_fold():
    """The others are split as scikit-learn splits them, and C is chosen on them."""
    X, y = problem(60, 20, 4)
    y[[0, 31]] = 7, 8  # single ones
    folds = stratified_folds(y, seed=3)
    several = np.flatnonzero(y < 4)
    splitter = StratifiedKFold(5, shuffle=True, random_state=3)
    for (fit, held), (_, expected) in zip(folds, splitter.split(several, y[several]), strict=True):
        assert held.tolist() == several[expected].tolist()
        assert sorted([*fit, *held]) == list(range(60))
    head = LogisticProbe(Cs=[1e-4, 1e-2, 1.0], seed=3).fit(X, y)
    correct = np.zeros(3)
    for fit, held in folds:
        scaler = StandardScaler().fit(X[fit])
        for index, C in enumerate(head.Cs):
            fold = LogisticRegression(C=C, tol=1e-8, max_iter=5000)
            fold.fit(scaler.transform(X[fit]), y[fit])
            correct[index] += np.sum(fold.predict(scaler.transform(X[held])) == y[held])
    assert head.search_ == "k-fold"
    np.testing.assert_allclose(head.cv_scores_, correct / len(several))


def test_inner_products_with_validation_samples_are_needed_to_refit():
    X, y = problem(60, 100, 3)
    train, held = np.arange(40), np.arange(40, 60)
    (own,), (both,) = gram(X, (train, "standardised")), gram(X, (np.arange(60), "standardised"))
    head = LogisticProbe(precomputed=True)
    validation = own.inner[held], y[held]
    with pytest.raises(ValueError, match=r"both: expected inner products \(60, 60\).* found none"):
        head.fit(own.inner[train], y[train], validation)
    head.fit(own.inner[train], y[train], validation, both=both.inner)
    straight = LogisticProbe().fit(X[train], y[train], (X[held], y[held]))
    assert head.C_ == straight.C_
    expected = straight.class_scores(X)
    found = head.class_scores(both.inner)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_one_sample_a_class_fixes_c():
    head = LogisticProbe().fit(np.eye(3), [0, 1, 2])
    assert (head.search_, head.C_) == ("fixed", 1.0)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        LogisticProbe().fit(np.eye(3), [1, 1, 1])


def test_nearest_neighbour_matches_scikit_learn():
    X, y = load_digits(return_X_y=True)
    reference = KNeighborsClassifier(1, metric="cosine").fit(X[:300], y[:300])
    ours = NearestNeighbor(center=False).fit(X[:300], y[:300])
    assert np.mean(ours.predict(X[300:900]) == reference.predict(X[300:900])) > 0.999


@pytest.mark.parametrize(
    "head", [NearestNeighbor(center=False), WeightedNeighbors(k=5, center=False)]
)
def test_leave_one_out_matches_a_loop(head):
    X, y = problem(30, 6, 3)
    keep = ~np.eye(30, dtype=bool)
    loop = [clone(head).fit(X[k], y[k]).predict(X[~k])[0] for k in keep]
    assert head.fit(X, y).leave_one_out().tolist() == loop


def test_votes_match_scikit_learn():
    X, y = load_digits(return_X_y=True)
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    reference.fit(X[:300], y[:300])
    head = WeightedNeighbors(center=False).fit(X[:300], y[:300])
    votes = np.maximum(head.class_scores(X[300:]), 0)
    np.testing.assert_allclose(votes, reference.predict_proba(X[300:]), atol=1e-6)
    few = WeightedNeighbors(k=1000).fit(X[:30], y[:30]).class_scores(X[:1])
    assert np.maximum(few, 0).sum() == pytest.approx(1)


def test_classes_without_votes_are_ranked_by_their_best_similarity():
    X, y = problem(80, 6, 30)
    X, y, new = X[:60], y[:60], X[60:]
    head = WeightedNeighbors(k=5, center=False).fit(X, y)
    ranked = head.classes_[np.argsort(-head.class_scores(new), axis=1)]
    for found, cosine in zip(ranked, cosine_similarity(new, X), strict=True):
        votes, best = dict.fromkeys(head.classes_, 0.0), dict.fromkeys(head.classes_, -1.0)
        for place, sample in enumerate(np.argsort(-cosine)):
            votes[y[sample]] += np.exp(cosine[sample] / 0.07) if place < 5 else 0
            best[y[sample]] = max(best[y[sample]], cosine[sample])
        assert sum(v > 0 for v in votes.values()) < 6  # so that a rank of 5 takes more than votes
        expected = sorted(head.classes_, key=lambda k: (votes[k], best[k]), reverse=True)
        assert found.tolist() == expected


@pytest.mark.parametrize(("n", "d"), [(90, 20), (60, 300)])
@pytest.mark.parametrize("kind", [NearestNeighbor, WeightedNeighbors])
@pytest.mark.parametrize("loud", [False, True])
def test_scaling_is_what_leaves_fewer_errors_on_training_data(n, d, kind, loud):
    """One loud feature that tells nothing hides the others until all have deviation 1."""
    X, y = problem(n, d, 3)
    if loud:
        X[:, 0] *= 1e3
    samples = {False: X - X.mean(0), True: StandardScaler().fit_transform(X)}
    right = {}
    for standardize, A in samples.items():
        cosine = cosine_similarity(A)
        np.fill_diagonal(cosine, -np.inf)
        weight = np.exp(cosine / 0.07)
        if kind is WeightedNeighbors:
            weight[weight < np.sort(weight, axis=1)[:, [-20]]] = 0
            votes = weight @ np.eye(3)[y]
        else:
            votes = np.eye(3)[y][weight.argmax(axis=1)]
        right[standardize] = np.mean(votes.argmax(axis=1) == y)
    head = kind().fit(X, y)
    assert head.standardize_ == (right[True] > right[False])
    assert not loud or head.standardize_
    assert np.mean(head.leave_one_out() == y) == pytest.approx(max(right.values()))
    with pytest.raises(ValueError, match="expected center=True"):
        kind(center=False, standardize=True).fit(X, y)


def test_a_sample_alone_in_its_class_is_not_counted_among_those_left_out():
    X, y = problem(60, 8, 3)
    y = np.append(y, [7, 8])
    X = np.vstack([X, np.full((2, 8), 0.5)])
    for head in (NearestNeighbor(), WeightedNeighbors(), Ridge()):
        score = head.fit_judged(X, y)
        assert score == pytest.approx(np.mean((head.leave_one_out() == y)[:60]))
        assert head.fit_judged(np.eye(4), np.arange(4)) is None


@pytest.mark.parametrize(("n", "d"), [(90, 20), (60, 300)])
@pytest.mark.parametrize("k", [2, 5])
def test_ridge_is_scikit_learns(n, d, k):
    X, y = problem(n, d, k)
    head = Ridge().fit(X, y)
    A = StandardScaler().fit_transform(X)
    targets = np.where(np.eye(k, dtype=bool)[y], 1.0, -1.0)
    search = RidgeCV(ALPHAS * d, scoring="neg_mean_squared_error", store_cv_results=True)
    search.fit(A, targets)
    assert head.alpha_ == pytest.approx(search.alpha_)
    new, _ = problem(40, d, k, seed=1)
    expected = search.predict((new - X.mean(0)) / X.std(0))
    np.testing.assert_allclose(head.class_scores(new), expected, atol=1e-8)
    keep = ~np.eye(n, dtype=bool)
    left = [
        RidgeRegression(search.alpha_).fit(A[keep[i]], targets[keep[i]]).predict(A[[i]])[0]
        for i in range(n)
    ]
    assert head.leave_one_out().tolist() == np.argmax(left, axis=1).tolist()


def gram(X, *subsets):
    """Feed columns in blocks of 37."""
    return gram_matrices(np.split(X, range(37, X.shape[1], 37), axis=1), subsets)


def test_precomputed_heads_are_the_heads():
    X, y = problem(90, 300, 5)
    train, test = np.arange(60), np.arange(60, 90)
    splits = stratified_folds(y[train], 0)
    whole, *parts = gram(
        X, (train, "standardised"), *((train[fit], "standardised") for fit, _ in splits)
    )
    folds = [Fold(f, h, g.inner[train]) for (f, h), g in zip(splits, parts, strict=True)]
    direct = LogisticProbe().fit(X[train], y[train])
    head = LogisticProbe(precomputed=True).fit(whole.inner[train], y[train], folds=folds)
    assert head.C_ == direct.C_
    np.testing.assert_array_equal(head.cv_scores_, direct.cv_scores_)
    expected = direct.class_scores(X[test])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(head.class_scores(whole.inner[test]), expected, atol=1e-5 * scale)
    ridge = Ridge(precomputed=True).fit(whole.inner[train], y[train])
    np.testing.assert_allclose(
        ridge.class_scores(whole.inner[test]), Ridge().fit(X[train], y[train]).class_scores(X[test])
    )
    (centred,) = gram(X, (train, "centred"))
    for kind in (NearestNeighbor, WeightedNeighbors):
        same = X - X[train].mean(0)
        straight = kind(center=False).fit(same[train], y[train])
        cosines = centred.cosines()
        own = kind(precomputed=True).fit(cosines[train], y[train])
        np.testing.assert_allclose(
            own.class_scores(cosines[test]), straight.class_scores(same[test]), atol=1e-12
        )
        assert own.leave_one_out().tolist() == straight.leave_one_out().tolist()


def test_gram_matrices_of_layers_add_up():
    X, _ = problem(30, 200, 3)
    rows = np.arange(0, 30, 2)
    both, first, second = (gram(x, (rows, "standardised"))[0] for x in (X, X[:, :50], X[:, 50:]))
    added = first + second
    np.testing.assert_allclose(added.inner, both.inner, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(
        added.squares, (StandardScaler().fit(X[rows]).transform(X) ** 2).sum(1)
    )
    assert added.dims == both.dims == 200


@pytest.mark.parametrize("waiting", [module.PRODUCT_BYTES, 0])
def test_columns_are_multiplied_beside_each_other_or_in_turn(waiting, monkeypatch):
    """Of products that fit beside each other a thread makes each; else they are made one by one."""
    monkeypatch.setattr(module, "PRODUCT_BYTES", waiting)
    monkeypatch.setattr(module, "DEPTH", 16)
    X, _ = problem(30, 200, 3)
    rows = np.arange(0, 30, 2)
    raw, centred = gram(X, (rows, "raw"), (rows, "centred"))
    np.testing.assert_allclose(raw.inner, X @ X[rows].T)
    np.testing.assert_allclose(raw.squares, (X**2).sum(1))
    A = X - X[rows].mean(0)
    np.testing.assert_allclose(centred.inner, A @ A[rows].T, atol=1e-9)
    X[7, 120] = np.nan
    with pytest.raises(ValueError, match="row 7"):
        gram(X, (rows, "raw"))


def test_coordinates_keep_inner_products():
    X, _ = problem(30, 200, 3)
    (whole,) = gram(X, (np.arange(30), "centred"))
    Z, A = whole.coordinates(), X - X.mean(0)
    np.testing.assert_allclose(Z @ Z.T, A @ A.T, atol=1e-9 * np.abs(A @ A.T).max())
    some = np.r_[0:10, 0:10]  # twice, so that they span no more than 10 dimensions
    Z = gram(X, (some, "raw"))[0].coordinates()
    span, _ = np.linalg.qr(X[:10].T)  # what numpy projects on
    assert Z.shape == (30, 10)
    np.testing.assert_allclose(Z @ Z.T, X @ span @ span.T @ X.T, atol=1e-9 * np.abs(X @ X.T).max())
    nothing = gram(np.zeros((30, 200)), (np.arange(30), "raw"))[0]
    assert nothing.coordinates().shape == (30, 0)


def test_features_that_are_not_finite_are_named():
    X, _ = problem(30, 200, 3)
    X[7, 120] = np.nan
    with pytest.raises(ValueError, match="row 7"):
        gram(X, (np.arange(30), "standardised"))


FEW_CS = tuple(C_GRID[[0, 22, 44]])  # both ends of the protocol's grid, and its middle


@pytest.mark.parametrize(
    "head",
    [
        NearestNeighbor(), WeightedNeighbors(), NearestPrototype(), Ridge(), LogisticProbe(Cs=FEW_CS),
        RidgeRegressor(), Centred(), Whitened(2), RidgeRegressor(precomputed=True),
        NearestNeighbor(precomputed=True), WeightedNeighbors(precomputed=True), Ridge(precomputed=True),
        LogisticProbe(Cs=FEW_CS, precomputed=True),
    ],
)  # fmt: skip
def test_head_keeps_scikit_learns_contract(head):
    no_products = {"check_decision_proba_consistency": "gives pairwise estimators features"}
    failing = no_products if isinstance(head, LogisticProbe) and head.precomputed else {}
    check_estimator(head, on_skip=None, expected_failed_checks=failing)


@pytest.mark.parametrize(
    "head", [NearestNeighbor(), NearestPrototype(), Ridge(), LogisticProbe(Cs=[1.0])]
)
def test_many_classes_of_two_samples_each_are_no_regression(head):
    """Of faces there are often two of each person."""
    rng = np.random.default_rng(0)
    people = np.repeat(rng.normal(size=(30, 40)), 2, axis=0)
    X, y = people + 0.01 * rng.normal(size=people.shape), np.repeat(np.arange(30), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = head.fit(X[::2], y[::2])
    assert (fitted.predict(X[1::2]) == y[1::2]).all()
    with pytest.raises(ValueError, match="Unknown label type"):
        head.fit(X[:4], np.array([None, "a", "b", "a"], dtype=object))


def test_linear_lbfgs_converges_where_the_gradient_is_rounding():
    points = [3, 0, 0, 1, 0, 2, 1, 1, 1, 2, 2, 1, 0, 3, 1, 0, 2, 0, 4, 4, 2, 3, 3, 2]
    X, y = np.reshape(points, (12, 2)).astype(float), np.array([1, 1, 1, 2, 2, 2] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head = LogisticProbe(Cs=[1e-6], standardize=False).fit(X, y)
    theirs = LogisticRegression(C=1e-6, tol=1e-8).fit(X, y)
    np.testing.assert_allclose(head.decision_function(X), theirs.decision_function(X), atol=1e-7)


@pytest.mark.parametrize("head", [LogisticProbe(), Ridge(), NearestNeighbor(), NearestPrototype()])
def test_masked_arrays_are_refused(head):
    """scikit-learn takes the values that a mask hides."""
    X, y = np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 2
    hidden = np.ma.masked_less(X, 0)
    for arrays, name in (((hidden, y), "X"), ((X, np.ma.masked_equal(y, 1)), "y")):
        with pytest.raises(ValueError, match=f"{name}: expected numbers, found a masked array"):
            head.fit(*arrays)
    with pytest.raises(ValueError, match="X: expected numbers, found a masked array"):
        head.fit(X, y).predict(hidden)


def followed(Z, y, monkeypatch):
    """Follow C along a path; return the products with the Hessian, and the objective at the last C."""
    counted = []

    def inner(a, b):
        counted.append(1)
        return np.einsum("bnk,bnk->b", a, b)

    monkeypatch.setattr(logistic, "_inner", inner)
    path = logistic.LogisticPath(Z[None], y[None], int(y.max()) + 1)
    for C in 10 ** np.linspace(-4, 2, 10):
        optimum = path.solve(C)
    weights = optimum.weights[0]
    return len(counted) // 2, objective(Z @ weights[:-1] + weights[-1], weights[:-1], y, C)


def test_classes_that_are_nearly_certain_take_fewer_products_by_their_own_curvature(monkeypatch):
    rng = np.random.default_rng(0)
    y = np.arange(300) % 60
    X = (rng.normal(size=(60, 12))[y] + 1.5 * rng.normal(size=(300, 12))) * np.logspace(3, 0, 12)
    U, S, _ = np.linalg.svd(X - X.mean(0), full_matrices=False)
    products, lowest = followed(U * S, y, monkeypatch)
    monkeypatch.setattr(logistic, "MANY_PRODUCTS", 10**9)
    more, reference = followed(U * S, y, monkeypatch)
    assert products < 0.7 * more
    assert abs(lowest / reference - 1) < 1e-5


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([0, 1, -999], "-999 stands 5 times, far from all others (0 to 1)"),
        ([0, 1, 99], "99 stands 5 times, far from all others (0 to 1)"),
        ([1, 2, 3, -77], "-77 stands 5 times, far from all others (1 to 3)"),
        ([0, 1, 180], ""),
        ([0, 1, 1000], ""),
        ([0.1, 0.2, 0.3, 0.1 + 0.2], ""),
        ([0, 1 / 3, 0.333333, 2 / 3, 1], ""),
        ([0, 2**-52, 2**-51, 3], ""),
        ([1, 1 + 2**-23, 2, 4], ""),
        (
            [0, *range(1_700_000_000, 1_700_000_030)],
            "0 stands 5 times, far from all others (1.7e+09 to 1.7e+09)",
        ),
    ],
)
def test_a_code_beside_levels_is_told_from_a_level_and_from_rounding(levels, said):
    assert apart_from_others([np.repeat(np.array(levels, np.float64), 5)]) == said


@pytest.mark.parametrize("code", [-999, 9.96921e36, np.finfo(np.float32).min, -99.99])
def test_a_code_among_numbers_that_are_measured_is_told(code):
    values = np.r_[np.random.default_rng(0).normal(size=100), code, code]
    assert apart_from_others([values]).startswith(f"{code:.9g} stands 2 times")


def test_targets_that_are_none_are_one_line():
    """scikit-learn lets None pass as a number."""
    with pytest.raises(ValueError, match="y: expected finite numbers, found NaN"):
        RidgeRegressor().fit(np.eye(5), np.array([None] * 5))
