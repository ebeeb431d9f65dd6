"""`face_id`, protocol `open-set`: who is it, of the people known, or nobody of them?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import TaskError
from vdvae_repr.heads.verification import FARS, check_far, enough, finest
from vdvae_repr.latents.base import Latents
from vdvae_repr.probing.features import Features
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.predict import score_classes
from vdvae_repr.probing.statistics import Figure, interval, two_sided, weights
from vdvae_repr.probing.task import Problem, Scored, Split, first_halves, has_splits
from vdvae_repr.tasks.identification import TaskLabels, nothing_to_choose_on


class OpenSet(Problem):
    """Probes of people in the gallery, and of people who are not.

    A probe is identified where its own person has the highest score, and that score is above the threshold
    which the false accept rate lets: the share of unknown people's probes whose highest score is above it.
    Unknown are the people without a gallery image; where there is none, every second person, drawn by the
    seed. Intervals and comparisons resample people. Source: Best-Rowden et al. 2014.
    """

    def __init__(
        self,
        store: Latents,
        words: TaskLabels,
        heads: dict[str, Any],
        *,
        far: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        labels, splits = store.labels, np.array(store.splits)
        known = labels >= 0
        people = np.unique(labels[known])
        if has_splits(splits, store.path):
            gallery, probe = known & (splits == "train"), known & np.isin(splits, ("val", "test"))
            text = "gallery: split train, probe: the other splits"
            if left_out := np.sum(known & ~gallery & ~probe):
                text += f"; {left_out} images of no split left out"
        else:
            gallery = first_halves(labels)
            probe = known & ~gallery
            text = "no splits: gallery is the first half of each person's images, probe the rest"
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
        if self.num_known < 2 or self.stranger.all() or not self.stranger.any():
            raise TaskError(
                f"{store.path}: open-set needs probes of at least 2 people in the gallery and of others; "
                f"found {self.num_known} in the gallery, {int((~self.stranger).sum())} probes of theirs "
                f"and {int(self.stranger.sum())} of others"
            )
        impostors = int(self.stranger.sum())
        rates = enough(impostors) if far is None else list(far)
        if not rates:
            rates = [min(finest(impostors), 1.0)]
        for rate in rates:
            check_far(rate, impostors, "dir")
        text += (
            f" ({len(train)} and {len(test)} images; {self.num_known} people known, "
            f"{len(strangers)} unknown)"
        )
        text += nothing_to_choose_on(words, labels[train])
        if left := [f"{rate:g}" for rate in FARS if far is None and rate not in rates]:
            text += f"; {impostors} impostors are too few for FAR {', '.join(left)}"
        metrics = [f"dir@far={rate:g}" for rate in rates]
        super().__init__(
            store, Split(train, test, text=text), labels, heads=heads, metrics=metrics, units=labels
        )
        self.sides = [("gallery", train), ("probe", test)]

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
        return Scored(features, outcome, found.training_score, found.standardised)

    def figures(self, metric: str, scored: Sequence[Scored], seed: int) -> list[Figure]:
        """Return the detection and identification rate of each."""
        rate = float(metric.partition("=")[2])
        figures = []
        for item in scored:
            (value,) = self._rates(item, np.ones((1, self.n_test)), rate)
            low, high = interval(self._resampled(item, rate, seed))
            chance = rate / self.num_known
            figures.append(Figure(float(value), float(low), float(high), chance=chance))
        return figures

    def p_values(self, pairs: Sequence[tuple[Scored, Scored]], seed: int) -> list[float]:
        """Compare the rates at the first false accept rate."""
        rate = float(self.metrics[0].partition("=")[2])
        return [
            two_sided(self._resampled(a, rate, seed) - self._resampled(b, rate, seed))
            for a, b in pairs
        ]

    def _resampled(self, item: Scored, rate: float, seed: int) -> NDArray[np.float64]:
        """Return the rate over resamples of people that hold known and unknown ones, (B,)."""
        _, person = np.unique(self.units[self.split.test], return_inverse=True)
        rates = []
        for draws in weights(int(person.max()) + 1, seed):
            times = draws[:, person]
            both = times[:, self.stranger].any(axis=1) & times[:, ~self.stranger].any(axis=1)
            rates.append(self._rates(item, times[both], rate))
        return np.concatenate(rates)

    def _rates(self, item: Scored, times: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
        """Return detection and identification rates (B,) where each probe counts `times` (B, P)."""
        score, own = item.outcome
        strangers = np.flatnonzero(self.stranger)
        strangers = strangers[np.argsort(-score[strangers], kind="stable")]
        passed = times[:, strangers].cumsum(axis=1)
        accepted = (passed <= rate * passed[:, -1:] + 1e-9).sum(axis=1)
        # The threshold is the highest score of those that must not pass.
        padded = np.append(score[strangers], -np.inf)
        threshold = padded[accepted]
        known = ~self.stranger
        right = own[known].astype(bool) & (score[known] > threshold[:, None])
        total = times[:, known].sum(axis=1)
        return np.asarray((times[:, known] * right).sum(axis=1) / np.maximum(total, 1))
