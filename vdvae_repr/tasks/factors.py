"""`factors`: how much each layer knows of each known factor of the images, by ridge regression."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vdvae_repr import baselines
from vdvae_repr.data.names import SPLITS
from vdvae_repr.errors import TaskError
from vdvae_repr.features import Columns, Features, Workspace
from vdvae_repr.heads.gram import Scaling, centre_and_scale
from vdvae_repr.heads.linear import GroupedRidge
from vdvae_repr.latents.base import Latents
from vdvae_repr.results import CONTROLS, Result
from vdvae_repr.tasks.problem import Curve, Figure, Scored, has_splits, refuse_leaks
from vdvae_repr.tasks.resampling import interval, paired_bootstrap, resampled_means

HEAD = "ridge:"


class Factors:
    """Each factor is a head, `ridge:NAME`: R2 of numbers, accuracy of categories.

    Tested on people whom nothing was learned of, so that a factor that belongs to a person is not read off
    who it is: without splits, half of the people, drawn by the seed. With splits, train against the others;
    the notice says where people are on both sides.
    By ridge regression on standardised features, of categories as +1 and -1. Each person is left out once to
    find the penalty and to choose a layer: leaving out single images would choose what tells training people
    apart. Intervals and comparisons resample people.
    """

    mirrored = False

    def __init__(self, store: Latents, *, images: NDArray[np.uint8], seed: int = 0) -> None:
        given = {HEAD + name: _values(values) for name, values in store.factors.items()}
        if not given:
            raise TaskError(
                f"{store.path}: knows no factors of its images; extract the data toy-faces:100x5"
            )
        labels, splits = store.labels, np.array(store.splits)
        known = labels >= 0
        people = np.unique(labels[known])
        if has_splits(splits, store.path):
            train = known & (splits == "train")
            known &= np.isin(splits, SPLITS)
            text = "fitted on split train, tested on the other splits"
        else:
            some = np.random.default_rng(seed).permutation(people)[: len(people) // 2]
            train = known & np.isin(labels, some)
            text = f"fitted on {len(some)} people, drawn with seed {seed}, tested on the others"
        self.train, self.test = np.flatnonzero(train), np.flatnonzero(known & ~train)
        self.n_train, self.n_test, self.fitted = len(self.train), len(self.test), self.train
        if min(self.n_train, self.n_test) < 10:
            raise TaskError(
                f"{store.path}: expected at least 10 images to fit on and to test on, found "
                f"{self.n_train} and {self.n_test}"
            )
        refuse_leaks(images, store.ids, [("train", self.train), ("test", self.test)])
        self.units = labels[self.test]
        several = len(np.unique(labels[self.train])) > 1
        self.groups = labels[self.train] if several else np.arange(self.n_train)
        self.factors = {
            head: values
            for head, values in given.items()
            if all(len(np.unique(values[side])) > 1 for side in (self.train, self.test))
        }
        self.heads = tuple(self.factors)
        for head, values in self.factors.items():
            if not (finite := np.isfinite(values[known])).all():
                image = store.ids[int(np.flatnonzero(known)[finite.argmin()])]
                name = head.removeprefix(HEAD)
                raise TaskError(
                    f"{store.path}: expected a number as {name} of {image}, found none; leave the image out"
                )
        if not self.factors:
            raise TaskError(
                f"{store.path}: expected factors that vary among the images, found "
                f"{', '.join(store.factors)}, the same on all; extract the data toy-faces:100x5"
            )
        self.notice = f"{text} ({self.n_train} and {self.n_test} images)"
        if left := [head.removeprefix(HEAD) for head in given if head not in self.factors]:
            self.notice += f"; {', '.join(left)} left out, the same on all images of a side"
        if shared := len(np.intersect1d(labels[self.train], labels[self.test])):
            self.notice += (
                f"; {shared} people are on both sides, so what is theirs tells who they are"
            )
        self._work = Workspace(store.ids)
        self._last: tuple[tuple[Columns, ...], GroupedRidge] | None = None

    def protocol(self, head: str) -> str:
        """Return the task's name."""
        return "factors"

    def metrics_of(self, head: str) -> tuple[str, ...]:
        """Return R2 of numbers, accuracy of categories."""
        return ("accuracy",) if self._categorical(head) else ("r2",)

    def pca(self, X: NDArray[Any], dims: Sequence[int]) -> list[Features]:
        """PCA of the training images."""
        return baselines.pca(X, self.train, dims)

    def score(self, head: str, features: Features, seed: int, shuffled: bool = False) -> Scored:
        """Fit a factor; the outcome is each test image's loss, squared or 0 and 1, and the truth, (2, N)."""
        started = time.monotonic()
        values = self.factors[head]
        y, truth = values[self.train], values[self.test]
        if shuffled:
            y = np.random.default_rng(seed).permutation(y)
        categorical = self._categorical(head)
        kinds = np.unique(y)
        targets = 2.0 * (y[:, None] == kinds) - 1 if categorical else y[:, None]
        regression = self._ridge(features)
        predicted, left_out = regression.solve(targets)
        if categorical:
            training = float(np.mean(kinds[left_out.argmax(axis=1)] == y))
            loss = (kinds[predicted.argmax(axis=1)] != truth).astype(float)
        else:
            error = float(((left_out[:, 0] - y) ** 2).mean())
            training = 1 - error / max(float(y.var()), 1e-300)
            loss = (predicted[:, 0] - truth) ** 2
        seconds = round(time.monotonic() - started, 3)
        outcome = np.stack([loss, truth.astype(float)])
        return Scored(features, features.standardise, training, outcome, seconds)

    def figures(self, metric: str, scored: Sequence[Scored], seed: int) -> list[Figure]:
        """Return a metric of each, with a bootstrap's interval."""
        truth = scored[0].outcome[1]
        losses = np.stack([item.outcome[0] for item in scored], axis=1)
        resampled = resampled_means(np.column_stack([losses, truth, truth**2]), self.units, seed)
        spread, whole, chance = np.ones(len(resampled)), 1.0, 0.0
        if metric == "r2":
            spread = resampled[:, -1] - resampled[:, -2] ** 2
            whole = float(truth.var())
        else:
            chance = float(np.unique(truth, return_counts=True)[1].max() / len(truth))
        varying = spread > 1e-9 * whole  # R2 is of none where a resample's people are all alike
        bounds = [[None] * losses.shape[1]] * 2
        if varying.any():
            bounds = [
                b.tolist() for b in interval(1 - resampled[varying, :-2] / spread[varying, None])
            ]
        return [
            Figure(float(1 - loss / whole), lo, hi, chance=chance)
            for loss, lo, hi in zip(losses.mean(axis=0), *bounds, strict=True)
        ]

    def p_values(self, pairs: Sequence[tuple[Scored, Scored]], seed: int) -> list[float]:
        """Compare losses on the same images."""
        losses = [(a.outcome[0], b.outcome[0]) for a, b in pairs]
        return paired_bootstrap(losses, self.units, seed)

    def curve(self, head: str, scored: Scored) -> Curve | None:
        """There is none."""
        return None

    def _categorical(self, head: str) -> bool:
        return self.factors[head].dtype.kind != "f"

    def _ridge(self, features: Features) -> GroupedRidge:
        """Return what solves all factors; the last is kept, as factors of one candidate follow another."""
        if self._last is None or self._last[0] is not features.columns:
            Z = self._standardised(features)
            self._last = features.columns, GroupedRidge(Z[self.train], self.groups, Z[self.test])
        return self._last[1]

    def _standardised(self, features: Features) -> NDArray[Any]:
        """Return coordinates (N, r) of features standardised on the training images."""
        if features.dims > self.n_train:
            scaling: Scaling = "standardised" if features.standardise else "centred"
            return self._work.coordinates(features, self.train, scaling)
        X = self._work.matrix(features).astype(np.float64)
        mean, scale = centre_and_scale(X[self.train], features.standardise)
        return np.asarray((X - mean) / scale)


def _values(found: NDArray[Any]) -> NDArray[Any]:
    """Return numbers (N,) float64, text that reads so included; categories, integers or text, by number."""
    if found.dtype.kind in "fOU":
        with suppress(ValueError):
            values = found.astype(np.float64)
            if found.dtype.kind == "f" or (values % 1).any():
                return values
    return np.unique(found, return_inverse=True)[1]


def layer_by_factor(rows: Sequence[Result]) -> pd.DataFrame:
    """Return a table of what each layer knows of each factor: R2, or accuracy of categories.

    Layers are called by model, feature and pooling too, where there are several.
    """
    own = [row for row in rows if row.head.startswith(HEAD) and row.model not in CONTROLS]
    several = [
        name
        for name in ("model", "feature", "pool")
        if len({getattr(row, name) for row in own}) > 1
    ]

    def called(row: Result) -> str:
        return " ".join(filter(None, (row.layer, *(getattr(row, name) for name in several))))

    table = pd.DataFrame(
        [
            {"layer": called(row), "factor": row.head.removeprefix(HEAD), "value": row.value}
            for row in own
        ]
    )
    order = list(dict.fromkeys(table["layer"]))
    return table.pivot(index="layer", columns="factor", values="value").loc[order]
