"""Regressions of every voxel on features: ridge with a penalty a voxel, and banded ridge; tests with FDR.

n training and M test images, V voxels, r the rank of the training features, B bands (as resolutions).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from vdvae_repr.brain.extra import needed
from vdvae_repr.heads.algebra import NUMPY, Algebra
from vdvae_repr.heads.linear import ALPHAS

BLOCK_BYTES = 2**27  # of float64 worked on at once
PERMUTATIONS = 1000  # of test images
CANDIDATES = 40  # mixtures of bands that are tried; the first is all bands alike
FOLDS = 5  # of banded ridge

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a regression says of V voxels.

    Args:
        values: predicted of the test images (M, V).
        left_out_r2: R2 of training images that were left out (V,).
        bands: what of `values` each band adds (B, M, V); None where bands are not told apart.
    """

    values: Values
    left_out_r2: Values
    bands: Values | None = None


def ridge(train: Values, Y: Values, test: Values, algebra: Algebra = NUMPY) -> Predicted:
    """Fit ridge regression to each voxel, each with the penalty of its own smallest leave-one-out error.

    What scikit-learn's `RidgeCV(alpha_per_target=True)` finds with the penalties `ALPHAS` times the mean
    squared length of the training images.

    Args:
        train: orthogonal coordinates of the training images (n, r), each with mean 0.
        Y: their responses (n, V).
        test: coordinates of the test images (M, r).
        algebra: of the device where it is done.
    """
    xp, train, test = algebra.xp, algebra.put(train), algebra.put(test)
    squares = (train**2).sum(0)
    U = train / xp.sqrt(xp.where(squares > 0, squares, 1.0))
    alphas = ALPHAS * max(float(squares.sum()) / len(train), 1e-300)
    left = [1 - 1 / len(U) - U**2 @ (squares / (squares + alpha)) for alpha in alphas]
    values = np.empty((len(test), Y.shape[1]))
    left_out_r2 = np.empty(Y.shape[1])
    at_once = max(1, BLOCK_BYTES // (8 * len(train)))
    for start in range(0, Y.shape[1], at_once):
        block = slice(start, start + at_once)
        targets = algebra.put(Y[:, block])
        mean = targets.mean(0)
        centred = targets - mean
        loads = U.T @ centred
        best = xp.full_like(mean, np.inf)
        weights = xp.zeros_like(loads)
        for alpha, share in zip(alphas, left, strict=True):
            shrink = squares / (squares + alpha)
            residuals = (centred - U @ (shrink[:, None] * loads)) / share[:, None]
            errors = (residuals**2).mean(0)
            better = errors < best
            best[better] = errors[better]
            scale = xp.sqrt(squares) / (squares + alpha)
            weights[:, better] = scale[:, None] * loads[:, better]
        values[:, block] = algebra.get(mean + test @ weights)
        variance = xp.clip((centred**2).mean(0), 1e-300, None)
        left_out_r2[block] = algebra.get(1 - best / variance)
    return Predicted(values, left_out_r2)


def banded_ridge(
    kernels: Values,
    Y: Values,
    others: Values,
    seed: int = 0,
    algebra: Algebra = NUMPY,
) -> Predicted:
    """Fit ridge regression with a penalty a band and voxel: himalaya's multiple-kernel ridge.

    Each kernel is divided by the training images' mean squared length, so that bands of many dimensions and
    of few begin alike. Mixtures of bands are drawn by random search, and penalties chosen, by seeded
    5-fold cross-validation over images in any order. Source: Dupré la Tour et al. 2022, NeuroImage 264.

    Args:
        kernels: inner products (B, n, n) of the training images in each band, centred; they are scaled in
            place, as the like of them is the largest thing in memory.
        Y: their responses (n, V).
        others: inner products (B, M, n) of the test images with them, scaled in place too.
        seed: of the search and the folds.
        algebra: of the device where himalaya works.

    Raises:
        TaskError: himalaya is not installed.
    """
    api = needed("himalaya.kernel_ridge", "banded ridge")
    for K, K_test in zip(kernels, others, strict=True):
        scale = max(float(np.diag(K).mean()), 1e-300)
        K /= scale
        K_test /= scale
    targets = Y.astype(np.float64)
    mean = targets.mean(axis=0)
    centred = targets - mean
    # The search compares errors with an absolute tolerance, so that it is given voxels of variance 1.
    deviation = centred.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)
    at_once = max(1, BLOCK_BYTES // (8 * len(Y)))
    model = api.MultipleKernelRidgeCV(
        kernels="precomputed",
        solver="random_search",
        solver_params={
            "n_iter": mixtures(len(kernels), seed),
            "alphas": ALPHAS,
            "n_targets_batch": at_once,
            "n_alphas_batch": 1,  # all 17 at once would take so many times the memory
            "progress_bar": False,
        },
        cv=KFold(min(FOLDS, len(Y)), shuffle=True, random_state=seed),
        random_state=seed,
    )
    with _himalaya_on(algebra) as to_numpy:
        model.fit(kernels, centred / deviation)
        bands = deviation * to_numpy(model.predict(others, split=True))
        left_out_r2 = 1 + to_numpy(model.cv_scores_).max(axis=0)  # of variance 1
    return Predicted(mean + bands.sum(axis=0), left_out_r2, bands)


@contextmanager
def _himalaya_on(algebra: Algebra) -> Iterator[Any]:
    """Have himalaya work on a device within, and yield what turns its results into arrays.

    Its backend is one of the whole process, and is what it was afterwards.
    """
    backend = needed("himalaya.backend", "banded ridge")
    before = backend.get_backend()
    name = "numpy" if algebra.xp is np else "torch" if algebra.device == "cpu" else "torch_cuda"
    try:
        # It takes the current device, and warns that float64 is slower on it.
        with warnings.catch_warnings(), _current(algebra.device):
            warnings.filterwarnings("ignore", message="GPU backend")
            yield backend.set_backend(name).to_numpy
    finally:
        backend.set_backend(before)


def _current(device: str) -> Any:
    return nullcontext() if device == "cpu" else torch.cuda.device(device)


def mixtures(bands: int, seed: int) -> Values:
    """Return weights of bands (CANDIDATES, B) to try, each summing to 1: all alike, each alone, then drawn.

    Drawn from Dirichlet distributions of concentration 0.1 and 1 in turn, as himalaya does.
    """
    if bands == 1:
        return np.ones((1, 1))
    rng = np.random.default_rng(seed)
    some = [np.full(bands, 1 / bands), *np.eye(bands)]
    while len(some) < max(CANDIDATES, 2 * bands):
        some.append(rng.dirichlet(np.full(bands, (0.1, 1.0)[len(some) % 2])))
    return np.maximum(np.stack(some), 1e-10)


def r2(truth: Values, predicted: Values) -> Values:
    """Return R2 of each voxel (V,), of images (M, V)."""
    errors = ((truth - predicted) ** 2).sum(axis=0)
    return np.asarray(1 - errors / np.maximum(_squares(truth), 1e-300))


def r2_by_band(truth: Values, bands: Values) -> Values:
    """Divide R2 of each voxel by band, (B, V): what each adds, which sums to the R2 of all.

    The product measure of Hoffman 1960, with half of what two bands share counted to each, as himalaya's
    `r2_score_split` does it. With y the truth and p = p_1 + ... centred predictions, R2 is
    (2 y.p - p.p) / y.y up to the mean, of which band b has (2 y.p_b - p.p_b) / y.y.
    """
    y = truth - truth.mean(axis=0)
    found = (bands * (2 * y - bands.sum(axis=0))).sum(axis=1)
    return np.asarray(found / np.maximum(_squares(truth), 1e-300))


def _squares(truth: Values) -> Values:
    return np.asarray(((truth - truth.mean(axis=0)) ** 2).sum(axis=0))


def permutation_p(
    truth: Values, predicted: Values, seed: int = 0, algebra: Algebra = NUMPY
) -> Values:
    """Return the one-sided p (V,) of each voxel's correlation, under permutations of the test images.

    (k + 1) / (1000 + 1), where k permutations of the responses reach the correlation; they are the same for
    all voxels.
    """
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(truth)) for _ in range(PERMUTATIONS)]
    p = np.empty(truth.shape[1])
    at_once = max(1, BLOCK_BYTES // (32 * len(truth)))
    for start in range(0, truth.shape[1], at_once):
        block = slice(start, start + at_once)
        x, y = (algebra.put(a[:, block] - a[:, block].mean(axis=0)) for a in (predicted, truth))
        lengths = algebra.xp.sqrt((x**2).sum(0) * (y**2).sum(0))
        least = (x * y).sum(0) - 1e-12 * lengths
        reached = algebra.zeros(x.shape[1])
        for order in orders:
            reached += algebra.xp.einsum("mv,mv->v", x, y[order]) >= least
        p[block] = (algebra.get(reached) + 1) / (PERMUTATIONS + 1)
    return p


def false_discovery(p: Values) -> Values:
    """Return p-values (V,) after Benjamini and Hochberg 1995: q, below 0.05 where FDR is held at 5 %."""
    order = np.argsort(p)
    ranked = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1)
    return q
