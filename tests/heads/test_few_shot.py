from itertools import combinations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier, RidgeCV
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize

from vdvae_repr.heads.few_shot import HEADS, NearestPrototype
from vdvae_repr.heads.linear import ALPHAS, Ridge


@pytest.fixture(scope="module")
def episode():
    """Support and query of 5 ways and 3 shots in 40 dimensions, and the mean of other classes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 40)) + 3
    draw = lambda n: (  # noqa: E731
        np.repeat(centres, n, axis=0) + rng.normal(size=(5 * n, 40)), np.repeat(np.arange(5), n)
    )  # fmt: skip
    return *draw(3), *draw(15), rng.normal(size=40) + 3


@pytest.mark.parametrize("name", list(HEADS))
def test_head_equals_a_direct_computation(name, episode):
    X, y, queries, _, mean = episode
    head = clone(HEADS[name])
    if name == "simpleshot-cl2n":
        head.set_params(mean=mean)
    found = head.fit(X, y).predict(queries)
    match name:
        case "nearest-prototype":
            expected = NearestCentroid().fit(X, y).predict(queries)
        case "simpleshot-cl2n":
            centred = NearestCentroid().fit(normalize(X - mean), y)
            expected = centred.predict(normalize(queries - mean))
        case "nearest-prototype-cosine":
            prototypes = np.stack([X[y == label].mean(axis=0) for label in range(5)])
            expected = (normalize(queries) @ normalize(prototypes).T).argmax(axis=1)
        case "logistic":
            head = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
            expected = head.fit(normalize(X), y).predict(normalize(queries))
        case "ridge":
            expected = RidgeClassifier().fit(normalize(X), y).predict(normalize(queries))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("shots", [1, 5])
def test_no_two_heads_are_one_by_algebra(shots):
    """Of 10,000 random queries each pair of heads tells some differently."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5 * shots, 20)) * rng.uniform(0.1, 5, size=(5 * shots, 1)) + 1
    queries, mean = rng.normal(size=(10_000, 20)) + 1, rng.normal(size=20)
    told = {}
    for name, head in HEADS.items():
        head = clone(head)
        if name == "simpleshot-cl2n":
            head.set_params(mean=mean)
        told[name] = head.fit(X, np.repeat(np.arange(5), shots)).predict(queries)
    assert list(told) == [
        "nearest-prototype", "nearest-prototype-cosine", "simpleshot-cl2n", "logistic", "ridge",
    ]  # fmt: skip
    for a, b in combinations(told, 2):
        assert np.mean(told[a] != told[b]) > 0.005, (a, b)


def test_prototype_scores_are_minus_squared_distances(episode):
    X, y, queries, *_ = episode
    scores = NearestPrototype().fit(X, y).class_scores(queries)
    prototypes = np.stack([X[y == label].mean(axis=0) for label in range(5)])
    distances = ((queries[:, None] - prototypes) ** 2).sum(axis=2)
    np.testing.assert_allclose(scores, -distances)
    with pytest.raises(ValueError, match="at least 2 classes"):
        NearestPrototype().fit(X, np.zeros(len(X)))
    with pytest.raises(ValueError, match=r"expected numbers .*, found 'base'"):
        NearestPrototype(mean="base").fit(X, y)
    with pytest.raises(ValueError, match="expected euclidean or cosine"):
        NearestPrototype(metric="manhattan").fit(X, y)


@pytest.mark.parametrize("d", [20, 200])
def test_ridge_is_scikit_learns_with_the_penalty_of_least_left_out_error(d):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 4
    X = (rng.normal(size=(4, d))[y] + 2 * rng.normal(size=(60, d))) * rng.uniform(0.1, 9, d)
    head = Ridge().fit(X, y)
    A, targets = StandardScaler().fit_transform(X), np.where(np.eye(4)[y] > 0, 1.0, -1.0)
    assert head.alpha_ == pytest.approx(RidgeCV(ALPHAS * d).fit(A, targets).alpha_)
    left_out = []
    for row in range(len(y)):
        others = np.arange(len(y)) != row
        inner = A[others] - A[others].mean(axis=0)
        gram = inner @ inner.T + head.alpha_ * np.eye(len(y) - 1)
        offset = targets[others].mean(axis=0)
        weights = inner.T @ np.linalg.solve(gram, targets[others] - offset)
        left_out.append(((A[row] - A[others].mean(axis=0)) @ weights + offset).argmax())
    assert np.array_equal(head.leave_one_out(), left_out)
    with pytest.raises(ValueError, match="at least 2 classes"):
        Ridge().fit(X, np.zeros(60))
