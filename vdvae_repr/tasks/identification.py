"""`face_id`, protocol `closed-set`, and `classification`: which of the classes trained on is it?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vdvae_repr import baselines
from vdvae_repr.errors import TaskError
from vdvae_repr.features import Features, Workspace
from vdvae_repr.heads.gram import Rows, Scaling
from vdvae_repr.heads.linear import Fold, LinearLBFGS, Ridge, stratified_folds
from vdvae_repr.heads.neighbors import NearestNeighbor, WeightedNeighbors
from vdvae_repr.latents.base import Latents
from vdvae_repr.tasks.problem import Curve, Figure, Scored, first_halves, has_splits, refuse_leaks
from vdvae_repr.tasks.resampling import interval, paired_bootstrap, resampled_means


@dataclass(frozen=True)
class Words:
    """How the two tasks differ in words, heads and units."""

    task: str
    heads: tuple[str, ...]
    metrics: tuple[str, ...]
    train: str
    test: str
    item: str
    many: str
    closed_set: bool


FACES = Words(
    task="face_id", heads=("nearest-neighbor", "ridge", "linear-lbfgs"), metrics=("rank1", "rank5"),
    train="gallery", test="probe", item="person", many="people", closed_set=True,
)  # fmt: skip
CLASSES = Words(
    task="classification", heads=("knn", "ridge", "linear-lbfgs"),
    metrics=("accuracy", "balanced_accuracy", "top5"),
    train="train", test="test", item="class", many="classes", closed_set=False,
)  # fmt: skip


class Identification:
    """A split of labelled images; what is scored is where each test image's own class comes.

    Intervals and comparisons resample people in `face_id`, test images in `classification`.
    """

    mirrored = False

    def __init__(self, store: Latents, *, images: NDArray[np.uint8], words: Words) -> None:
        self.words = words
        self.heads, self.metrics = words.heads, words.metrics
        self.labels = store.labels
        self.train, self.val, self.test, self.notice = _split(store, words)
        self.n_train, self.n_test, self.fitted = len(self.train), len(self.test), self.train
        self._work = Workspace(store.ids)
        truth = self.labels[self.test]
        self.units = truth if words.closed_set else np.arange(len(truth))
        sides = [(words.train, self.train), ("val", self.val), (words.test, self.test)]
        refuse_leaks(images, store.ids, sides)

    def metrics_of(self, head: str) -> tuple[str, ...]:
        """Return all metrics."""
        return self.metrics

    def protocol(self, head: str) -> str:
        """Return `closed-set`, or the head's own name."""
        return "closed-set" if self.words.closed_set else head

    def pca(self, X: NDArray[Any], dims: Sequence[int]) -> list[Features]:
        """PCA of the training rows."""
        return baselines.pca(X, self.train, dims)

    def score(self, head: str, features: Features, seed: int, shuffled: bool = False) -> Scored:
        """Fit a head; the outcome is the rank (N,) of each test image's own class, 0 the first."""
        started = time.monotonic()
        y = self.labels[self.train]
        if shuffled:
            y = np.random.default_rng(seed).permutation(y)
        validation = (self.val, self.labels[self.val]) if len(self.val) else None
        found = score_classes(
            self._work, head, features, self.train, y, self.test, seed, validation
        )
        scores = found.scores
        own = np.searchsorted(found.classes, self.labels[self.test])[:, None]
        value = np.take_along_axis(scores, own, axis=1)
        before = np.arange(scores.shape[1]) < own  # of equal scores the first class is predicted
        rank = ((scores > value) | ((scores == value) & before)).sum(axis=1)
        seconds = round(time.monotonic() - started, 3)
        return Scored(features, found.standardised, found.training_score, rank, seconds)

    def figures(self, metric: str, scored: Sequence[Scored], seed: int) -> list[Figure]:
        """Return a metric of each, with a bootstrap's interval."""
        truth = self.labels[self.test]
        classes = len(np.unique(self.labels[self.train]))
        depth = min(classes, 5 if metric in ("rank5", "top5") else 1)
        hits = (np.stack([item.outcome for item in scored], axis=1) < depth).astype(float)
        values, strata = hits.mean(axis=0), None
        if metric == "balanced_accuracy":
            strata = truth
            values = np.mean([hits[truth == k].mean(axis=0) for k in np.unique(truth)], axis=0)
        low, high = interval(resampled_means(hits, self.units, seed, strata))
        return [
            Figure(float(v), float(lo), float(hi), chance=depth / classes)
            for v, lo, hi in zip(values, low, high, strict=True)
        ]

    def p_values(self, pairs: Sequence[tuple[Scored, Scored]], seed: int) -> list[float]:
        """Compare the shares of test images whose own class comes first."""
        right = [(a.outcome == 0, b.outcome == 0) for a, b in pairs]
        return paired_bootstrap(right, self.units, seed)

    def curve(self, head: str, scored: Scored) -> Curve | None:
        """Return the CMC of faces: the share of probes whose own person is among the first x."""
        if not self.words.closed_set:
            return None
        classes = len(np.unique(self.labels[self.train]))
        share = np.cumsum(np.bincount(scored.outcome, minlength=classes)) / len(scored.outcome)
        of = scored.features
        return Curve("cmc", head, of.model, of.layer, np.arange(1.0, classes + 1), share)


class ClassScores(NamedTuple):
    """Scores (M, K) of images, columns in the order of `classes`, and what training data say of the head."""

    scores: NDArray[np.float64]
    classes: NDArray[np.int64]
    standardised: bool
    training_score: float | None


def score_classes(
    work: Workspace,
    head: str,
    features: Features,
    train: Rows,
    y: NDArray[np.int64],
    test: Rows,
    seed: int,
    validation: tuple[Rows, NDArray[np.int64]] | None = None,
) -> ClassScores:
    """Fit a head on images `train` of classes y, and score images `test`; choose on `validation`, if any."""
    standardised = head in ("ridge", "linear-lbfgs") and features.standardise
    wide = features.dims > len(train)  # then Gram matrices say all, and are smaller
    folds: list[Fold] | None = None
    if not wide:
        X = work.matrix(features)
    elif head in ("ridge", "linear-lbfgs"):
        scaling: Scaling = "standardised" if standardised else "centred"
        splits: list[tuple[Rows, Rows]] = []
        if head == "linear-lbfgs" and validation is None:
            splits = stratified_folds(y, seed)
        subsets = [(train, scaling), *((train[fit], scaling) for fit, _ in splits)]
        whole, *parts = work.grams(features, subsets)
        X = whole.inner
        if splits:
            folds = [Fold(*s, g.inner[train]) for s, g in zip(splits, parts, strict=True)]
    else:
        (gram,) = work.grams(features, [(train, "raw" if head == "knn" else "centred")])
        X = gram.cosines()
    held = None if validation is None else (X[validation[0]], validation[1])
    fitted: LinearLBFGS | Ridge | NearestNeighbor | WeightedNeighbors
    match head:
        case "linear-lbfgs":
            fitted = LinearLBFGS(standardize=standardised, precomputed=wide, seed=seed)
            fitted.fit(X[train], y, validation=held, folds=folds)
        case "ridge":
            fitted = Ridge(standardize=standardised, precomputed=wide).fit(X[train], y)
        case "knn":
            fitted = WeightedNeighbors(precomputed=wide).fit(X[train], y)
        case _:
            fitted = NearestNeighbor(center=True, precomputed=wide).fit(X[train], y)
    training_score: float | None = None
    if isinstance(fitted, LinearLBFGS):
        if fitted.search_ != "fixed":
            training_score = float(fitted.cv_scores_.max())
    elif held is not None:
        training_score = float(fitted.score(*held))
    elif np.unique(y, return_counts=True)[1].min() > 1:
        training_score = float(np.mean(fitted.leave_one_out() == y))
    scores = fitted.class_scores(X[test])
    if not np.isfinite(scores).all():
        raise TaskError(
            f"{features.model} {features.layer or features.dims}, {head}: expected finite scores, "
            "found others"
        )
    return ClassScores(scores, fitted.classes_, standardised, training_score)


def nothing_to_choose_on(words: Words, y: NDArray[np.int64]) -> str:
    """Return what to say of training images of classes y (N,), if some class has a single one."""
    if np.unique(y, return_counts=True)[1].min() > 1:
        return ""
    return (
        f"; {words.train} holds one image alone of some {words.item}, so that nothing is left to choose a "
        "row on, and linear-lbfgs takes C = 1"
    )


def _split(store: Latents, words: Words) -> tuple[Rows, Rows, Rows, str]:
    """Return rows to train on, to choose on and to test on, and what to say of them.

    Without splits, the first half of each label's images is trained on.
    """
    labels, splits = store.labels, np.array(store.splits)
    known = labels >= 0
    groups = np.unique(labels[known])
    if len(groups) < 2:
        raise TaskError(
            f"{store.path}: {words.task} needs at least 2 labelled {words.many}, found {len(groups)}; "
            f"give a folder with one subfolder a {words.item}"
        )
    val = np.zeros(len(labels), dtype=bool)
    if has_splits(splits, store.path):
        tested = "test" if (splits == "test").any() else "val"
        train, test = known & (splits == "train"), known & (splits == tested)
        if tested == "test":
            val = known & (splits == "val")
        text = f"{words.train}: split train, {words.test}: split {tested}"
    else:
        train = first_halves(labels)
        test = known & ~train
        text = (
            f"no splits: {words.train} is the first half of each {words.item}'s images, "
            f"{words.test} the rest"
        )
    both = np.intersect1d(labels[train], labels[test])
    alone = np.setdiff1d(groups, both)
    if len(both) < 2:
        raise TaskError(
            f"{store.path}: expected at least 2 {words.many} with images in {words.train} and in "
            f"{words.test}, found {len(both)} of {len(groups)}; give at least 2 images of each {words.item}"
        )
    train, val, test = (side & np.isin(labels, both) for side in (train, val, test))
    text += f" ({train.sum()} and {test.sum()} images, {len(both)} {words.many})"
    if len(alone):
        names = [str(store.label_names[k]) if k < len(store.label_names) else str(k) for k in alone]
        who = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        text += (
            f"; {len(alone)} {words.item if len(alone) == 1 else words.many} without images in both left out"
            f" ({who}; {np.sum(np.isin(labels, alone))} images)"
        )
    if val.any():
        text += f"; choices are made on split val ({val.sum()} images)"
    else:
        text += nothing_to_choose_on(words, labels[train])
    if not known.all():
        text += f"; {np.sum(~known)} unlabelled images left out"
    if left := np.sum(np.isin(labels, both) & ~train & ~val & ~test):
        text += f"; {left} images of no split left out"
    rows = [np.flatnonzero(side) for side in (train, val, test)]
    return rows[0], rows[1], rows[2], text
