"""Which of the labels learned from is it? What `face_id` in a closed set and `classification` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import TaskError, counted
from vdvae_repr.latents.base import Latents
from vdvae_repr.probing.features import Features
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.predict import score_classes
from vdvae_repr.probing.statistics import Items, band, spread, weighted
from vdvae_repr.probing.task import (
    Problem,
    Scored,
    Split,
    first_halves,
    has_splits,
    of_other_splits,
    without_splits,
)
from vdvae_repr.results import CONTROLS, Confusion, Curve

DEEP = ("rank5", "top5")  # of five guesses


@dataclass(frozen=True)
class TaskLabels:
    """What a task calls its images and labels in messages.

    Args:
        task: its name.
        train: the images that are learned from.
        test: those that are told.
        item: one label.
        many: several.
    """

    task: str
    train: str
    test: str
    item: str
    many: str


class Identification(Problem):
    """A split of labelled images: each test image is scored by the rank of its true label, 0 for the first.

    Args:
        store: with labels.
        words: what the task calls its images and labels.
        heads: estimators by name.
        metrics: `rank1` and `rank5`, or `accuracy`, `balanced_accuracy` and `top5`; those of five guesses
            are left out where there are five classes or fewer.
        default_heads: those that answer at once.
        of_people: whether people are resampled, and the CMC is drawn; else each image by itself, and it is
            counted which class is taken for which.

    Attributes:
        known: labels of the classes that are told apart, ascending, K.
        names: of these classes.
    """

    def __init__(
        self,
        store: Latents,
        words: TaskLabels,
        heads: dict[str, Any],
        metrics: Sequence[str],
        *,
        of_people: bool,
        default_heads: Sequence[str],
    ) -> None:
        split = split_of(store, words)
        self.known = np.unique(store.labels[split.train])
        self.classes, self.names = len(self.known), _names(store, self.known)
        super().__init__(
            store,
            split,
            store.labels,
            heads=heads,
            metrics=[name for name in metrics if self.classes > 5 or name not in DEEP],
            units=store.labels if of_people else None,
            default_heads=default_heads,
        )
        self.of_people, self._words = of_people, words
        self.sides = [(words.train, split.train), ("val", split.val), (words.test, split.test)]

    def counted(self) -> str:
        """Return the number of labels, and of images on either side."""
        words = self._words
        sides = f"{self.n_train} {words.train} + {self.n_test} {words.test} images"
        return f"{self.classes} {words.many}, {sides}"

    def metrics_of(self, head: Head) -> tuple[str, ...]:
        """Return all metrics; of a head that gives no scores those of its first guess alone."""
        return tuple(name for name in self.metrics if head.gives_scores or name not in DEEP)

    def protocol(self, head: Head) -> str:
        """Return `closed-set`, or the head's own name."""
        return "closed-set" if self.of_people else head.name

    def score(
        self, head: Head, features: Features, seed: int = 0, shuffled: bool = False
    ) -> Scored:
        """Fit a head; the outcome is the rank (N,) of each test image's own label, 0 the first.

        Of images by themselves a second row is which of `known` is predicted, (2, N).
        """
        train, val, test = self.split.train, self.split.val, self.split.test
        y = self.shuffled(seed) if shuffled else self.targets[train]
        held = (val, self.targets[val]) if len(val) else None
        found = score_classes(self.work, head, features, train, y, test, seed, held)
        own = np.searchsorted(found.classes, self.targets[test])[:, None]
        value = np.take_along_axis(found.scores, own, axis=1)
        before = np.arange(found.scores.shape[1]) < own  # of equal scores the first is predicted
        rank = ((found.scores > value) | ((found.scores == value) & before)).sum(axis=1)
        if not self.of_people:
            rank = np.stack([rank, found.scores.argmax(axis=1)])
        return Scored(features, rank, found.training_score, found.scaling)

    def _ranks(self, scored: Scored) -> NDArray[np.int64]:
        """Return the rank of each test image's own label, (N,)."""
        return scored.outcome if self.of_people else scored.outcome[0]

    def items(self, metric: str, scored: Scored) -> Items:
        """Return the shares of test images whose own label is among the first guesses."""
        right = self._ranks(scored) < (5 if metric in DEEP else 1)
        if metric == "balanced_accuracy":
            return Items.balanced(right, self.targets[self.split.test])
        return Items.mean_of(right)

    def chance_of(self, metric: str, scored: Scored) -> float | None:
        """Return the largest class of the test images for accuracy, else what guesses among all are worth."""
        if metric == "accuracy":
            return super().chance_of(metric, scored)
        return (5 if metric in DEEP else 1) / self.classes

    def curve(self, head: Head, scored: Sequence[Scored], seed: int) -> Curve | None:
        """Return the CMC of faces: the share of probes whose own person is among the first x."""
        if not self.of_people or not head.gives_scores:
            return None
        ranks, of = np.arange(1.0, self.classes + 1), scored[0].features
        share = [np.bincount(one.outcome, minlength=self.classes) / self.n_test for one in scored]
        values = np.cumsum(np.mean(share, axis=0))
        curve = Curve("cmc", head.name, of.model, of.layer, ranks, values)
        if of.model in CONTROLS:
            return curve
        units, some = self.independent("rank1", seed), spread(ranks)
        items = [Items.mean_of(scored[0].outcome < rank) for rank in some]
        resampled = weighted(items, units, units.draws())
        shares = np.array([item.value for item in items])
        low, high = band(ranks, some, shares, resampled, units, units.alone)
        return replace(curve, low=low, high=high)

    def confusion(self, head: Head, scored: Scored) -> Confusion | None:
        """Return how many test images of each class are taken for which; None of people."""
        if self.of_people:
            return None
        own = np.searchsorted(self.known, self.targets[self.split.test])
        cells = own * self.classes + scored.outcome[1]
        counts = np.bincount(cells, minlength=self.classes**2)
        return Confusion(
            head=head.name,
            n_train=self.n_train,
            **scored.features.called,
            classes=self.names,
            counts=counts.reshape(self.classes, self.classes),
        )


def nothing_to_choose_on(words: TaskLabels, y: NDArray[np.int64]) -> str:
    """Return what to say of training images of classes y (N,), if no class has two."""
    if np.unique(y, return_counts=True)[1].max() > 1:
        return ""
    return (
        f"; {words.train} holds a single image of every {words.item}, so that nothing is left to choose a "
        "row on, linear-lbfgs takes C = 1 and linear-sgd the middle of its learning rates"
    )


def _names(store: Latents, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """Return the names of labels (N,); numbers that have none name themselves."""
    known = store.label_names
    return tuple(str(known[k]) if k < len(known) else str(k) for k in labels)


def _few(store: Latents, labels: NDArray[np.int64]) -> str:
    """Name up to three of the classes of labels (N,)."""
    names = _names(store, np.unique(labels))
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "none"


def split_of(store: Latents, words: TaskLabels) -> Split:
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
        # Contests give no labels of test, and labelled images of val.
        tested = "test" if (known & (splits == "test")).any() else "val"
        train, test = known & (splits == "train"), known & (splits == tested)
        if tested == "test":
            val = known & (splits == "val")
        text = f"{words.train}: split train, {words.test}: split {tested}"
        if tested == "val" and (splits == "test").any():
            text += ", as no image of split test has a label"
        if not test.any():
            unlabelled = int(np.isin(splits, ["test", "val"]).sum())
            found, remedy = (
                (f"{unlabelled} without labels", "label these")
                if unlabelled
                else ("none", "call some test")
            )
            raise TaskError(
                f"{store.path}: expected labelled images of split test or val beside those of train, found "
                f"{found}; {remedy}, or extract without splits, of which the first half of each "
                f"{words.item}'s images is {words.train}"
            )
    else:
        train = first_halves(labels)
        test = known & ~train
        text = (
            f"{without_splits(splits)}: {words.train} is the first half of each {words.item}'s images, "
            f"{words.test} the rest"
        )
    both = np.intersect1d(labels[train], labels[test])
    alone = np.setdiff1d(groups, both)
    if len(both) < 2:
        raise TaskError(
            f"{store.path}: expected at least 2 {words.many} with images in {words.train} and in "
            f"{words.test}, found {len(both)} of {len(groups)} ({words.train}: {_few(store, labels[train])}; "
            f"{words.test}: {_few(store, labels[test])}); give at least 2 images of each {words.item}, "
            "called alike on both sides"
        )
    train, val, test = (side & np.isin(labels, both) for side in (train, val, test))
    text += f" ({train.sum()} and {test.sum()} images, {len(both)} {words.many})"
    if len(alone):
        who = _few(store, alone)
        text += (
            f"; {len(alone)} {words.item if len(alone) == 1 else words.many} without images in both left out"
            f" ({who}; {counted(int(np.isin(labels, alone).sum()), 'image')})"
        )
    if val.any():
        text += f"; choices are made on split val ({val.sum()} images)"
    else:
        text += nothing_to_choose_on(words, labels[train])
    if not known.all():
        text += f"; {counted(int(np.sum(~known)), 'unlabelled image')} left out"
    if has_splits(splits, store.path):
        text += of_other_splits(splits[np.isin(labels, both)])
    return Split(np.flatnonzero(train), np.flatnonzero(test), np.flatnonzero(val), text)
