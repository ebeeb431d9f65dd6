"""Of what size features are, and how far from 0, changes nothing but their rounding."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits, load_iris
from sklearn.neighbors import KNeighborsClassifier

from vdvae_repr.heads.few_shot import NearestPrototype
from vdvae_repr.heads.gram import centre_and_scale, gram_matrices
from vdvae_repr.heads.linear import LogisticProbe, Ridge
from vdvae_repr.heads.neighbors import NearestNeighbor, WeightedNeighbors
from vdvae_repr.heads.sgd import SGDProbe
from vdvae_repr.heads.verification import Centred, Whitened, cosine_similarity


@pytest.mark.parametrize(
    "head",
    [
        LogisticProbe(Cs=[1.0]), Ridge(), NearestNeighbor(), NearestNeighbor(center=False),
        WeightedNeighbors(), NearestPrototype(), NearestPrototype(metric="cosine"), SGDProbe(steps=30),
        SGDProbe(steps=30, standardize=False),
    ],
)  # fmt: skip
def test_scale_of_features_changes_no_prediction(head):
    X, y = load_iris(return_X_y=True)
    expected = head.fit(X, y).predict(X)
    for scale in (2.0**-33, 2.0**-40, 2.0**-100, 2.0**100):  # exact in binary
        for kind in (np.float32, np.float64):
            scaled = (X * scale).astype(kind)
            assert np.mean(head.fit(scaled, y).predict(scaled) == expected) > 0.99


def test_scale_of_features_changes_no_gram_matrix():
    X, rows = np.random.default_rng(0).normal(size=(30, 50)).astype(np.float32), np.arange(20)
    for scaling in ("raw", "centred", "standardised"):
        (expected,) = gram_matrices([X], [(rows, scaling)])
        for scale in (2.0**-40, 2.0**-100, 2.0**100):
            (found,) = gram_matrices([X * np.float32(scale)], [(rows, scaling)])
            inner = found.inner / (1 if scaling == "standardised" else scale**2)
            np.testing.assert_allclose(inner, expected.inner, rtol=1e-4, atol=1e-4)


def test_what_is_constant_is_told_by_its_own_size():
    """Constants are so up to rounding, float32 and large ones too; what varies a little is none."""
    varying = np.linspace(-1, 1, 1001)
    constants = [0.0, 0.1, 1e-12, -1e15, 1e30, float(np.float32(0.1))]
    X = np.stack([np.full(1001, value) for value in constants] + [1e-11 * varying], axis=1)
    _, deviation = centre_and_scale(X, standardize=True)
    np.testing.assert_array_equal(deviation[:-1], 1)
    np.testing.assert_allclose(deviation[-1], X[:, -1].std())
    _, deviation = centre_and_scale(X[:, :-1].astype(np.float32), standardize=True)
    np.testing.assert_array_equal(deviation, 1)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X[:600] - X.mean()) / X.std(), y[:600]


@pytest.mark.parametrize("offset", [3e3, 1e4])
def test_float32_far_from_0_scores_as_float64(digits, offset):
    X, y = digits
    X = (X + offset).astype(np.float32)
    exact = X.astype(float)
    means = np.stack([exact[:300][y[:300] == label].mean(axis=0) for label in range(10)])
    found = NearestPrototype().fit(X[:300], y[:300]).predict(X[300:])
    np.testing.assert_array_equal(found, cdist(exact[300:], means).argmin(axis=1))
    theirs = KNeighborsClassifier(1, metric="cosine").fit(exact[:300], y[:300])
    found = NearestNeighbor(center=False).fit(X[:300], y[:300]).predict(X[300:])
    assert np.mean(found == theirs.predict(exact[300:])) > 0.98  # which sees rounding of float64
    for head in (
        NearestPrototype(metric="cosine"), NearestPrototype(normalize=True),
        NearestPrototype(mean=np.full(64, offset)), WeightedNeighbors(center=False),
    ):  # fmt: skip
        expected = head.fit(X[:300].astype(float), y[:300]).predict(X[300:].astype(float))
        np.testing.assert_array_equal(head.fit(X[:300], y[:300]).predict(X[300:]), expected)


def test_raw_products_and_similarities_of_float32_far_from_0_tell_differences(digits):
    X, rows = (digits[0] + 3e3).astype(np.float32), np.arange(300)
    unit = X.astype(float) / np.linalg.norm(X.astype(float), axis=1, keepdims=True)
    expected = 1 - unit @ unit[:300].T
    (gram,) = gram_matrices([X], [(rows, "raw")])
    np.testing.assert_allclose(1 - gram.cosines(), expected, atol=1e-3 * expected.mean())
    similarity = cosine_similarity(X, rows, rows + 300)
    np.testing.assert_allclose(1 - similarity, np.diag(expected[300:]), atol=1e-3 * expected.mean())
    for transform in (Centred(), Whitened(20)):
        made, exact = (transform.fit(A).transform(A) for A in (X, X.astype(float)))
        found, wanted = (cosine_similarity(A, rows, rows + 300) for A in (made, exact))
        np.testing.assert_allclose(found, wanted, atol=1e-3)
