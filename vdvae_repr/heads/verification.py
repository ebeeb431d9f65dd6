"""Face verification (protocols `lfw-view1`, `lfw-view2`): accuracy, AUC, EER and TAR at FAR of pairs.

P pairs; `same` (P,) says which are of one person. A pair is accepted where its similarity reaches a
threshold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from vdvae_repr.errors import TaskError
from vdvae_repr.heads.neighbors import unit

PASSING = 10  # impostors that must pass at a FAR for its TAR to be an estimate

Scores = NDArray[np.float64]
Flags = NDArray[np.bool_]


def cosine_similarity(X: NDArray[Any], first: NDArray[np.intp], second: NDArray[np.intp]) -> Scores:
    """Return the cosine similarity (P,) of rows `first` (P,) and `second` (P,) of features X (N, D)."""
    unit_rows = unit(X)
    return np.einsum("pd,pd->p", unit_rows[first], unit_rows[second], dtype=np.float64)


def best_threshold(similarity: Scores, same: Flags) -> float:
    """Return the threshold of the highest accuracy, the lowest of equals, midway between two similarities."""
    order = np.argsort(similarity)
    ascending, truth = similarity[order], same[order]
    # With the threshold below item i: what lies below is refused.
    right = np.concatenate([[0], np.cumsum(~truth)]) + np.concatenate(
        [np.cumsum(truth[::-1])[::-1], [0]]
    )
    edges = np.concatenate([[ascending[0] - 1], ascending, [ascending[-1] + 1]])
    open_gaps = edges[1:] > edges[:-1]  # no threshold separates equal similarities
    best = int(np.argmax(np.where(open_gaps, right, -1)))
    return float((edges[best] + edges[best + 1]) / 2)


def accuracy(similarity: Scores, same: Flags, threshold: float) -> float:
    """Return the share of pairs that a threshold gets right."""
    return float(np.mean((similarity >= threshold) == same))


def auc(similarity: Scores, same: Flags) -> float:
    """Return the area under the ROC curve."""
    return float(roc_auc_score(same, similarity))


def equal_error_rate(similarity: Scores, same: Flags) -> float:
    """Return where false accepts and false rejects are equal, on the line between two points of the ROC."""
    far, tar, _ = roc_curve(same, similarity, drop_intermediate=False)
    gap = far - (1 - tar)  # ascending from -1 to 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(far[after - 1] + share * (far[after] - far[after - 1]))


def tar_at_far(similarity: Scores, same: Flags, far: float) -> float:
    """Return the share of genuine pairs accepted where at most the share `far` of the impostors is.

    Raises:
        TaskError: fewer than 10 impostors may pass at this rate, so that it is no estimate.
    """
    impostors, genuine = np.sort(similarity[~same]), similarity[same]
    passing = int(np.floor(far * len(impostors) + 1e-9))
    if passing < PASSING:
        raise TaskError(
            f"tar@far={far:g}: expected at least {PASSING} impostor pairs to pass, found "
            f"{far * len(impostors):g} of {len(impostors)}; ask for a FAR of "
            f"{PASSING / max(len(impostors), 1):.2g} or more"
        )
    if passing == len(impostors):
        return 1.0
    # Strictly above the first impostor that has to be refused.
    return float(np.mean(genuine > impostors[-passing - 1]))


def weighted_roc(similarity: Scores, same: Flags, weights: Scores) -> tuple[Scores, Scores]:
    """Return false and true accept rates (R, G) under R weightings (R, P) of the pairs, strictest first.

    G counts the distinct similarities, and the threshold above all of them.
    """
    order = np.argsort(-similarity, kind="stable")
    starts = np.flatnonzero(np.diff(similarity[order], prepend=np.inf))
    rates = []
    for side in (~same, same):
        counted = np.add.reduceat(weights[:, order] * side[order], starts, axis=1)
        summed = np.cumsum(counted, axis=1)
        share = summed / np.maximum(summed[:, -1:], 1e-12)
        rates.append(np.concatenate([np.zeros((len(weights), 1)), share], axis=1))
    return rates[0], rates[1]


def read_curve(far: Scores, tar: Scores, metric: str, rate: float = 0.0) -> Scores:
    """Return `auc`, `eer` or `tar@far` (at `rate`) of each of R curves (R, G)."""
    if metric == "auc":
        return np.asarray(np.trapezoid(tar, far, axis=1))
    if metric == "eer":
        gap = far - (1 - tar)
        after = np.argmax(gap >= 0, axis=1)
        rows = np.arange(len(far))
        low, high = gap[rows, after - 1], gap[rows, after]
        share = -low / (high - low)
        return far[rows, after - 1] + share * (far[rows, after] - far[rows, after - 1])
    return np.asarray(np.where(far <= rate + 1e-12, tar, 0).max(axis=1))
