"""Linear classifiers by SGD: torch's own optimiser, `linear-lbfgs`'s accuracy, and few rows in memory."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import vdvae_repr as vr
from vdvae_repr.heads import sgd
from vdvae_repr.heads.linear import LogisticProbe
from vdvae_repr.heads.sgd import LEARNING_RATES, Samples, SGDProbe


def problem(n, d, k, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    centres = np.random.default_rng(9).normal(size=(k, d))
    X = (0.5 * centres[y] + rng.normal(size=(n, d))) * np.linspace(0.1, 9, d) + 30
    return X.astype(np.float32), y


def test_the_grid_is_the_sources():
    expected = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1]
    np.testing.assert_allclose(LEARNING_RATES, expected)
    assert (sgd.STEPS, SGDProbe().batch_size) == (12_500, 128)


def test_steps_are_those_of_torchs_optimiser():
    X, y = problem(50, 7, 3)
    rates, steps, size = [0.5, 4.0], 40, 16
    probe = SGDProbe(learning_rates=rates, steps=steps, batch_size=size, seed=5)
    probe.fit(X, y, (X, y))
    first = np.random.default_rng([5, 1 + rates.index(probe.learning_rate_)])
    linear = torch.nn.Linear(7, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(0.01 * first.standard_normal((7, 3), np.float32).T))
        linear.bias.zero_()
    optimiser = torch.optim.SGD(
        linear.parameters(), lr=probe.learning_rate_ * size / 256, momentum=0.9, weight_decay=0
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=0)
    scaled = StandardScaler().fit_transform(X.astype(np.float64)).astype(np.float32)
    order = np.random.default_rng([5, 0])
    drawn = np.concatenate([order.permutation(50) for _ in range(20)])
    for step in range(steps):
        rows = drawn[step * size : (step + 1) * size]
        optimiser.zero_grad()
        logits = linear(torch.from_numpy(scaled[rows]))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(y[rows])).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        expected = linear(torch.from_numpy(scaled)).numpy()
    np.testing.assert_allclose(probe.class_scores(X), expected, atol=1e-4)


def test_accuracy_is_that_of_linear_lbfgs_on_shifted_digits():
    """Half of a percent on the mean of four splits, each tested on 2,985 images of other digits."""
    images, labels = load_digits(return_X_y=True)
    moves = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]

    def shifted(some):
        grids = images[some].reshape(-1, 8, 8)
        X = np.concatenate([np.roll(grids, move, (1, 2)).reshape(-1, 64) for move in moves])
        return X, np.tile(labels[some], len(moves))

    scores = []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(images))
        train, held, test = map(shifted, np.split(order, [800, 1200]))
        theirs = LogisticProbe(Cs=[0.3]).fit(*train)  # the best C for these test images
        ours = SGDProbe(steps=1500, seed=seed).fit(*train, held)
        scores.append([ours.score(*test), theirs.score(*test)])
    ours, theirs = np.mean(scores, axis=0)
    assert ours == pytest.approx(theirs, abs=0.005)


def test_the_seed_alone_tells_the_weights():
    X, y = problem(60, 20, 3)
    one, same, other = (SGDProbe(steps=20, seed=seed).fit(X, y) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.class_scores(X), same.class_scores(X))
    assert not np.allclose(one.class_scores(X), other.class_scores(X))


class Counted:
    """Rows of an array, that counts how many are read at once."""

    def __init__(self, X):
        self._X, self.shape, self.most = X, X.shape, 0

    def __getitem__(self, rows):
        self.most = max(self.most, len(rows))
        return self._X[rows]


def test_few_rows_are_in_memory_and_it_changes_nothing(tmp_path, monkeypatch):
    """Neither where samples lie, nor how many are read or trained at once."""
    X, y = problem(200, 30, 3)
    train, held, test = np.split(np.random.default_rng(1).permutation(200), [120, 160])
    expected = SGDProbe(steps=40, batch_size=16).fit(X[train], y[train], (X[held], y[held]))
    scores = expected.class_scores(X[test])
    X.tofile(tmp_path / "X")
    on_disk = Counted(np.memmap(tmp_path / "X", np.float32, "r", shape=X.shape))
    rows = Samples(on_disk)

    def again():
        head = SGDProbe(steps=40, batch_size=16)
        head.fit(rows[train], y[train], (rows[held], y[held]))
        assert head.learning_rate_ == expected.learning_rate_
        return head.class_scores(rows[test])

    np.testing.assert_array_equal(again(), scores)
    monkeypatch.setattr(sgd, "BLOCK_BYTES", 8 * 30 * 7)
    monkeypatch.setattr(sgd, "WEIGHT_BYTES", 8 * 30 * 3 * 2)
    on_disk.most = 0
    np.testing.assert_allclose(again(), scores, atol=1e-4)
    assert on_disk.most == 16  # a batch


def test_scaling_is_of_training_samples_and_components_keep_their_proportions():
    X, y = problem(80, 6, 2)
    X[:, 2] = 1e6  # constant in training
    other = X + np.float32(1)
    standardised = SGDProbe(steps=5).fit(X, y)
    expected = StandardScaler().fit(X.astype(np.float64)).transform(other.astype(np.float64))
    np.testing.assert_allclose(standardised._scale.apply(other), expected, atol=1e-4)
    exact = standardised._scale.apply(other.astype(np.float64))
    np.testing.assert_allclose(exact, expected, atol=1e-9)
    whole = (10 * X[:, :2]).astype(np.uint8)  # whole numbers are not scaled as whole numbers
    scaled = SGDProbe(steps=5).fit(Samples(whole), y)._scale.apply(whole)
    np.testing.assert_allclose(scaled, StandardScaler().fit_transform(whole), atol=1e-5)
    centred = SGDProbe(steps=5, standardize=False).fit(X, y)._scale.apply(X)
    assert (centred**2).mean() == pytest.approx(1)
    np.testing.assert_allclose(np.corrcoef(centred[:, 0], X[:, 0]), 1, atol=1e-6)
    assert centred[:, 5].std() / centred[:, 0].std() == pytest.approx(X[:, 5].std() / X[:, 0].std())


def test_the_rate_is_chosen_on_validation_else_on_folds_else_it_is_the_middle():
    X, y = problem(90, 10, 3)
    head = SGDProbe(steps=30)
    wrong = (y + 1) % 3  # of which the smallest steps make the fewest errors
    assert head.fit_judged(X, y, (X, wrong)) == head.cv_scores_.max()
    assert (head.search_, head.learning_rate_) == (
        "validation",
        LEARNING_RATES[head.cv_scores_.argmax()],
    )
    assert head.fit_judged(X, y) == head.cv_scores_.max() > 0.6
    assert head.search_ == "k-fold"
    assert head.fit_judged(X[:3], y[:3]) is None
    assert (head.search_, head.learning_rate_) == ("fixed", LEARNING_RATES[6])


def test_what_cannot_be_fitted_is_refused():
    X, y = problem(40, 5, 2)
    with pytest.raises(ValueError, match="at least 2 classes"):
        SGDProbe(steps=5).fit(X, np.zeros(40))
    with pytest.raises(ValueError, match="classes of validation among those of y"):
        SGDProbe(steps=5).fit(X, y, (X, y + 1))
    for wrong in (
        {"learning_rates": []},
        {"learning_rates": [1, 0]},
        {"steps": 0},
        {"batch_size": 0},
    ):
        with pytest.raises(ValueError, match=f"{min(wrong)}: expected"):
            SGDProbe(**wrong).fit(X, y)
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite features"):
        SGDProbe(steps=5).fit(Samples(X), y)


def test_it_keeps_scikit_learns_contract():
    check_estimator(SGDProbe(steps=40, learning_rates=[1.0]), on_skip=None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_the_same_classifiers():
    X, y = problem(200, 30, 3)
    scores = [SGDProbe(steps=50, device=name).fit(X, y).class_scores(X) for name in ("cpu", "cuda")]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-2)


def test_it_comes_by_name_with_a_protocol_of_its_own(tiny, people, tmp_path, monkeypatch):
    from vdvae_repr.tasks import classification

    monkeypatch.setitem(classification.HEADS, "linear-sgd", SGDProbe(steps=20))
    store = vr.extract(tiny, people(6), tmp_path / "s.h5", layers="4x4")
    how = {"cache": None, "controls": ("pca", "shuffled-labels"), "selections": "single"}
    assert "linear-sgd" not in {row.head for row in vr.probe(store, "classification", **how).rows}
    rows = vr.probe(store, "classification", heads="linear-sgd", **how).rows
    assert {row.protocol for row in rows} == {"linear-sgd"}
    scaling = {row.model: row.scaling for row in rows}
    assert (scaling["tiny"], scaling["pca"]) == ("standardised", "centred")
