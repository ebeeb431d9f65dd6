from functools import partial

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve

import vdvae_repr as vr
from vdvae_repr.heads.verification import (
    accuracy,
    auc,
    best_threshold,
    check_far,
    cosine_similarity,
    equal_error_rate,
    finest,
    roc,
    tar_at_far,
)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    same = rng.random(2000) < 0.4
    return np.round(rng.normal(size=2000) + 1.2 * same, 2), same  # rounded: many are equal


def test_cosine_of_pairs():
    X = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
    found = cosine_similarity(X, np.array([0, 0, 1]), np.array([0, 1, 2]))
    np.testing.assert_allclose(found, [1, np.sqrt(0.5), -np.sqrt(0.5)])


def test_threshold_is_the_best_of_all(pairs):
    similarity, same = pairs
    values = np.unique(similarity)
    edges = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    best = max(np.mean((similarity >= edge) == same) for edge in edges)
    assert accuracy(similarity, same, best_threshold(similarity, same)) == best
    separable = best_threshold(np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 0, 1, 1], bool))
    assert separable == pytest.approx(0.5)


def test_curve_metrics_are_scikit_learns(pairs):
    similarity, same = pairs
    curve = roc(similarity, same)
    assert auc(*curve)[0] == pytest.approx(roc_auc_score(same, similarity))
    far, tar, _ = roc_curve(same, similarity, drop_intermediate=False)
    crossing = brentq(lambda x: np.interp(x, far, tar) - (1 - x), 0, 1)
    assert equal_error_rate(*curve)[0] == pytest.approx(crossing, abs=1e-9)
    for rate in (0.1, 0.01):
        allowed = tar[far <= rate + 1e-12].max()
        assert tar_at_far(*curve, rate)[0] == pytest.approx(allowed)
    assert tar_at_far(*curve, 1.0)[0] == 1.0


def test_far_finer_than_the_impostors_allow_is_refused(pairs):
    _, same = pairs
    with pytest.raises(vr.TaskError, match=r"far=0\.001: expected at least 10 impostors"):
        check_far(0.001, int((~same).sum()))
    check_far(0.01, int((~same).sum()))
    for far in (0, -0.1, 1.5):
        with pytest.raises(vr.TaskError, match="expected a rate above 0, and 1 at most"):
            check_far(far, 3000)
    for few in (0, 5):
        with pytest.raises(vr.TaskError, match=f"found {few} of {few}; take more of them"):
            check_far(1, few)


def test_the_finest_rate_is_the_first_of_two_digits_that_is_not_refused():
    assert [finest(n) for n in (10, 33, 50, 3000)] == [1, 0.31, 0.2, 0.0034]
    for impostors in range(10, 4000):
        check_far(finest(impostors), impostors)
        with pytest.raises(vr.TaskError, match="expected at least 10 impostors"):
            check_far(0.9 * finest(impostors), impostors)


def test_weighted_curves_are_those_of_repeated_pairs(pairs):
    similarity, same = pairs
    times = np.random.default_rng(1).integers(0, 4, (3, len(same)))
    found = roc(similarity, same, times.astype(float))
    for row, weights in enumerate(times):
        curve = roc(np.repeat(similarity, weights), np.repeat(same, weights))
        for read in (auc, equal_error_rate, partial(tar_at_far, rate=0.1)):
            assert read(*found)[row] == pytest.approx(read(*curve)[0])


def test_perfect_and_useless_similarities():
    same = np.arange(200) % 2 == 0
    perfect, useless = roc(same.astype(float), same), roc(np.zeros(200), same)
    assert equal_error_rate(*perfect)[0] == 0
    assert equal_error_rate(*useless)[0] == pytest.approx(0.5)
    assert tar_at_far(*perfect, 0.1)[0] == 1.0
