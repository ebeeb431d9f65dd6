"""`face_id`, protocol `open-set`: who is it, of the people known, or nobody of them?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import TaskError, counted
from vdvae_repr.heads.verification import FARS, PASSING, check_far, enough, finest
from vdvae_repr.latents.base import Latents
from vdvae_repr.probing.features import Features
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.predict import score_classes
from vdvae_repr.probing.statistics import Items, Units, Values, band, spread
from vdvae_repr.probing.task import (
    Problem,
    Scored,
    Split,
    first_halves,
    has_splits,
    name_of,
    of_other_splits,
    without_splits,
)
from vdvae_repr.results import CONTROLS, Curve
from vdvae_repr.tasks.identification import TaskLabels, nothing_to_choose_on


class OpenSet(Problem):
    """Probes of people in the gallery, and of people who are not.

    A probe is identified where its own person has the highest score, and that score is above the threshold
    which the false accept rate lets: the share of unknown people's probes whose highest score is above it.
    Unknown are the people without a gallery image; where there is none, every second person, drawn by the
    seed. Intervals resample people, known and unknown, and each resample has its own threshold; comparisons
    are of known people at the thresholds found, as if these were given. Source: Best-Rowden et al. 2014.
    """

    def __init__(
        self,
        store: Latents,
        words: TaskLabels,
        heads: dict[str, Any],
        *,
        far: Sequence[float] | None = None,
        seed: int = 0,
        default_heads: Sequence[str] | None = None,
    ) -> None:
        labels, splits = store.labels, np.array(store.splits)
        known = labels >= 0
        people = np.unique(labels[known])
        if has_splits(splits, store.path):
            gallery, probe = known & (splits == "train"), known & np.isin(splits, ("val", "test"))
            text = "gallery: split train, probe: the other splits"
            text += of_other_splits(splits[known])
        else:
            gallery = first_halves(labels)
            probe = known & ~gallery
            text = (
                f"{without_splits(splits)}: gallery is the first half of each person's images, "
                "probe the rest"
            )
        strangers = np.setdiff1d(people, labels[gallery])
        if not len(strangers):
            drawn = np.random.default_rng(seed).permutation(people)[: len(people) // 2]
            strangers = np.sort(drawn)
            gallery &= ~np.isin(labels, strangers)
            text += (
                f"; {len(strangers)} people, drawn with seed {seed}, are kept out of the gallery"
            )
        train, test = np.flatnonzero(gallery), np.flatnonzero(probe)
        self.stranger = np.isin(labels[test], strangers)
        self.num_known = len(np.unique(labels[train]))
        self.num_probed = len(np.unique(labels[test][~self.stranger]))
        if self.num_known < 2 or self.stranger.all() or not self.stranger.any():
            raise TaskError(
                f"{store.path}: open-set needs probes of at least 2 people in the gallery and of others; "
                f"found {self.num_known} in the gallery, {int((~self.stranger).sum())} probes of theirs "
                f"and {int(self.stranger.sum())} of others"
            )
        impostors = int(self.stranger.sum())
        rates = enough(impostors) if far is None else list(far)
        if not rates and impostors < PASSING:
            raise TaskError(
                f"{store.path}: open-set needs at least {PASSING} probes of people who are not in the "
                f"gallery, found {impostors}; take more of them"
            )
        if not rates:
            rates = [finest(impostors)]
        for rate in rates:
            check_far(rate, impostors)
        text += (
            f" ({len(train)} and {len(test)} images; {self.num_known} people known, "
            f"{len(strangers)} unknown)"
        )
        if not known.all():
            text += f"; {counted(int(np.sum(~known)), 'unlabelled image')} left out"
        text += nothing_to_choose_on(words, labels[train])
        if left := [f"{rate:g}" for rate in FARS if far is None and rate not in rates]:
            text += (
                f"; {counted(impostors, 'impostor', 'is', 'are')} too few for FAR {', '.join(left)}"
            )
        super().__init__(
            store,
            Split(train, test, text=text),
            labels,
            heads=heads,
            metrics=[f"dir@{float(rate)!r}" for rate in rates],
            units=labels,
            default_heads=default_heads,
        )
        self.sides = [("gallery", train), ("probe", test)]

    def counted(self) -> str:
        """Return the number of people, and of images on either side."""
        return (
            f"{self.num_known} people known, {self.n_train} gallery + {self.n_test} probe images, "
            f"{int(self.stranger.sum())} of strangers"
        )

    def protocol(self, head: Head) -> str:
        """Return `open-set`."""
        return "open-set"

    def heads_of(self, name: str, estimator: Any) -> dict[str, Head]:
        """Return a head that scores every person.

        Raises:
            TaskError: it does not, so that nothing tells a stranger.
        """
        heads = super().heads_of(name, estimator)
        if not heads[name].gives_scores:
            raise TaskError(
                f"heads: open-set needs scores, and {name!r} gives none; take an estimator with "
                "decision_function or predict_proba"
            )
        return heads

    def score(
        self, head: Head, features: Features, seed: int = 0, shuffled: bool = False
    ) -> Scored:
        """Fit a head; the outcome is each probe's highest score, and whether its own person's, (2, P)."""
        train, test = self.split.train, self.split.test
        y = self.shuffled(seed) if shuffled else self.targets[train]
        found = score_classes(self.work, head, features, train, y, test, seed)
        own = found.predicted() == self.targets[test]
        outcome = np.stack([found.scores.max(axis=1), own])
        return Scored(features, outcome, found.training_score, found.scaling)

    def chance_of(self, metric: str, scored: Scored) -> float | None:
        """Return the rate at which a guess among the known passes as often as a stranger."""
        return _rate(metric) / self.num_known

    def independent(self, metric: str, seed: int) -> Units:
        """Return people, of whom those known that are asked for stand behind a rate."""
        return Units(self.units[self.split.test], seed, number=self.num_probed)

    def items(self, metric: str, scored: Scored) -> Items:
        """Return which known people's probes are identified, at the threshold found."""
        ones = np.ones((1, self.n_test))
        _, right = self._identified(scored, ones, _rate(metric))
        return Items.mean_of(np.where(self.stranger, 0, right[0]), ~self.stranger)

    def evaluate(
        self, metric: str, scored: Sequence[Scored], units: Units, draws: Iterable[Values] | None
    ) -> Values:
        """Return the rate of each, with a threshold of its own under each draw of people."""
        ones = [np.ones((1, self.n_test))]
        times = ones if draws is None else (units.of_items(some) for some in draws)
        return np.concatenate(
            [
                np.stack([self._drawn(s, some, _rate(metric)) for s in scored], axis=1)
                for some in times
            ]
        )

    def curve(self, head: Head, scored: Sequence[Scored], seed: int) -> Curve | None:
        """Return the rate at which the known are identified, over the rate at which strangers pass."""
        strangers = int(self.stranger.sum())
        rates, of = np.arange(strangers + 1) / strangers, scored[0].features
        values = np.mean([self._by_accepted(item) for item in scored], axis=0)
        curve = Curve("dir", head.name, of.model, of.layer, rates, values)
        if of.model in CONTROLS:
            return curve
        some, units = spread(rates[1:], 25), self.independent(self.metrics[0], seed)
        (times,) = islice(units.draws(), 1)
        times = units.of_items(times)
        resampled = [self._drawn(scored[0], times, rate) for rate in some.tolist()]
        at = np.searchsorted(rates, some)
        low, high = band(rates, some, values[at], np.stack(resampled, axis=1), units)
        return replace(curve, low=low, high=high)

    def _by_accepted(self, item: Scored) -> Values:
        """Return detection and identification rates where 0, 1, ... strangers may pass, (S + 1,)."""
        score, own = item.outcome
        known = ~self.stranger
        thresholds = np.append(-np.sort(-score[self.stranger]), -np.inf)
        told = np.sort(score[known & own.astype(bool)])
        return (len(told) - np.searchsorted(told, thresholds, side="right")) / known.sum()

    def _drawn(self, item: Scored, times: Values, rate: float) -> Values:
        """Return detection and identification rates (B,) where each probe counts `times` (B, P).

        NaN where a draw holds no known people, or no strangers.
        """
        known = ~self.stranger
        _, right = self._identified(item, times, rate)
        total = times[:, known].sum(axis=1)
        told = (times[:, known] * right[:, known]).sum(axis=1) / np.maximum(total, 1)
        return np.where((total > 0) & times[:, self.stranger].any(axis=1), told, np.nan)

    def _identified(
        self, item: Scored, times: Values, rate: float
    ) -> tuple[Values, NDArray[np.bool_]]:
        """Return thresholds (B,), and whether each probe's own person is first, and above it, (B, P)."""
        score, own = item.outcome
        strangers = np.flatnonzero(self.stranger)
        strangers = strangers[np.argsort(-score[strangers], kind="stable")]
        passed = times[:, strangers].cumsum(axis=1)
        accepted = (passed <= rate * passed[:, -1:] + 1e-9).sum(axis=1)
        # The threshold is the highest score of those that must not pass.
        threshold = np.append(score[strangers], -np.inf)[accepted]
        return threshold, own.astype(bool) & (score > threshold[:, None])


def _rate(metric: str) -> float:
    rate = name_of(metric)[1]
    assert rate is not None
    return rate
