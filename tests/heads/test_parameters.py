"""Parameters that are none are refused where an estimator is fitted, in one line that names them."""

import numpy as np
import pytest
from sklearn.datasets import load_iris

from vdvae_repr.heads.few_shot import NearestPrototype
from vdvae_repr.heads.linear import LogisticProbe, Ridge, RidgeRegressor
from vdvae_repr.heads.neighbors import NearestNeighbor, WeightedNeighbors
from vdvae_repr.heads.sgd import SGDProbe
from vdvae_repr.heads.verification import Whitened

NO_GRIDS = ([np.nan], [-1.0], [0.0], [], [np.inf], "much", [1.0, None])
NO_NUMBERS = (0, -1, np.nan, np.inf, "1", None, True)
NO_COUNTS = (0, -3, 2.5, "2", None, True)
NO_FLAGS = (2, "yes", np.nan)
NO_SEEDS = (-1, 0.5, 2**32, "0")
WRONG = {
    LogisticProbe: {
        "Cs": NO_GRIDS, "tol": NO_NUMBERS, "max_iter": NO_COUNTS, "seed": NO_SEEDS,
        "standardize": NO_FLAGS, "precomputed": NO_FLAGS,
    },
    Ridge: {"alphas": NO_GRIDS, "standardize": NO_FLAGS, "precomputed": NO_FLAGS},
    RidgeRegressor: {"alphas": NO_GRIDS, "standardize": NO_FLAGS, "precomputed": NO_FLAGS},
    NearestNeighbor: {"center": NO_FLAGS, "standardize": NO_FLAGS, "precomputed": NO_FLAGS},
    WeightedNeighbors: {
        "k": NO_COUNTS, "temperature": NO_NUMBERS, "center": NO_FLAGS, "standardize": NO_FLAGS,
        "precomputed": NO_FLAGS,
    },
    NearestPrototype: {
        "metric": ("manhattan", None, 1), "mean": (np.nan, [1.0], [np.nan] * 4, [1, 2, 3, None], "base"),
        "normalize": NO_FLAGS,
    },
    SGDProbe: {
        "learning_rates": NO_GRIDS, "steps": NO_COUNTS, "batch_size": NO_COUNTS, "seed": NO_SEEDS,
        "standardize": NO_FLAGS, "device": ("fast", None),
    },
    Whitened: {"components": NO_COUNTS},
}  # fmt: skip
CASES = [
    (head, name, value)
    for head, parameters in WRONG.items()
    for name, values in parameters.items()
    for value in values
]


@pytest.mark.parametrize(("head", "name", "value"), CASES)
def test_what_is_none_is_refused_at_fit(head, name, value):
    X, y = load_iris(return_X_y=True)
    estimator = head(**{name: value})  # which only stores
    with pytest.raises(ValueError, match=rf"\A{name}: expected [^\n]+, found [^\n]+\Z"):
        estimator.fit(X, y)


def test_numbers_of_numpy_and_single_ones_are_taken():
    X, y = load_iris(return_X_y=True)
    LogisticProbe(Cs=np.float32(1), standardize=np.True_, seed=np.int64(3)).fit(X, y)
    Ridge(alphas=1).fit(X, y)
    WeightedNeighbors(k=np.int32(5), temperature=np.float32(0.1)).fit(X, y).predict(X)
    NearestPrototype(mean=X.mean(axis=0).tolist(), normalize=np.True_).fit(X, y)
