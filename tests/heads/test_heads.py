import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from vdvae_repr.heads.few_shot import NearestPrototype
from vdvae_repr.heads.linear import LinearLBFGS, Ridge
from vdvae_repr.heads.neighbors import NearestNeighbor, WeightedNeighbors


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
    ours = LinearLBFGS(Cs=[C]).fit(X, y)
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
    head = LinearLBFGS().fit(np.zeros((8, 3)), [0, 1] * 4)
    np.testing.assert_array_equal(head.class_scores(np.ones((2, 3))), np.zeros((2, 2)))


def test_c_is_chosen_on_training_data():
    X, y = load_digits(return_X_y=True)
    head = LinearLBFGS(Cs=10.0 ** np.arange(-5, 2)).fit(X[:400], y[:400])
    assert head.search_ == "k-fold"
    assert sorted(head.Cs)[np.argmax(head.cv_scores_)] == head.C_
    assert head.score(X[400:], y[400:]) > 0.85


def test_c_is_chosen_on_validation_samples_where_given():
    X, y = load_digits(return_X_y=True)
    train, held = (X[:300], y[:300]), (X[300:500], y[300:500])
    grid = 10.0 ** np.arange(-5, 2)
    head = LinearLBFGS(Cs=grid).fit(*train, held)
    scaler = StandardScaler().fit(X[:300])
    fits = [
        LogisticRegression(C=C, max_iter=5000).fit(scaler.transform(X[:300]), y[:300]) for C in grid
    ]
    expected = [fit.score(scaler.transform(X[300:500]), y[300:500]) for fit in fits]
    assert head.search_ == "validation"
    np.testing.assert_allclose(head.cv_scores_, expected, atol=0.011)
    assert grid[np.argmax(head.cv_scores_)] == head.C_
    assert head.score(*train) == fits[int(np.argmax(head.cv_scores_))].score(
        scaler.transform(X[:300]), y[:300]
    )
    with pytest.raises(ValueError, match="classes of validation among those of y"):
        LinearLBFGS(Cs=grid).fit(X[y < 9], y[y < 9], (X, y))


def test_one_sample_a_class_fixes_c():
    head = LinearLBFGS().fit(np.eye(3), [0, 1, 2])
    assert (head.search_, head.C_) == ("fixed", 1.0)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        LinearLBFGS().fit(np.eye(3), [1, 1, 1])


def test_nearest_neighbour_matches_scikit_learn():
    X, y = load_digits(return_X_y=True)
    reference = KNeighborsClassifier(1, metric="cosine").fit(X[:300], y[:300])
    ours = NearestNeighbor().fit(X[:300], y[:300])
    assert np.mean(ours.predict(X[300:900]) == reference.predict(X[300:900])) > 0.999


@pytest.mark.parametrize("head", [NearestNeighbor(), WeightedNeighbors(k=5)])
def test_leave_one_out_matches_a_loop(head):
    X, y = problem(30, 6, 3)
    keep = ~np.eye(30, dtype=bool)
    loop = [clone(head).fit(X[k], y[k]).predict(X[~k])[0] for k in keep]
    assert head.fit(X, y).leave_one_out().tolist() == loop


def test_votes_match_scikit_learn():
    X, y = load_digits(return_X_y=True)
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    reference.fit(X[:300], y[:300])
    head = WeightedNeighbors().fit(X[:300], y[:300])
    np.testing.assert_allclose(
        head.class_scores(X[300:]), reference.predict_proba(X[300:]), atol=1e-6
    )
    assert WeightedNeighbors(k=1000).fit(X[:30], y[:30]).class_scores(X[:1]).sum() == pytest.approx(
        1
    )


@pytest.mark.parametrize(
    "head", [NearestNeighbor(), WeightedNeighbors(), NearestPrototype(), Ridge(), LinearLBFGS()]
)
def test_head_keeps_scikit_learns_contract(head):
    check_estimator(head, on_skip=None)
