"""`few_shot`, episodes from classes that nothing was fitted on, and `omniglot_oneshot`, the official runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr import baselines
from vdvae_repr.data.table import read_table
from vdvae_repr.errors import DataError, TaskError
from vdvae_repr.features import Columns, Features, Workspace, hash_arrays
from vdvae_repr.heads.few_shot import HEADS
from vdvae_repr.latents.base import Latents
from vdvae_repr.tasks.problem import Curve, Figure, Scored, refuse_leaks
from vdvae_repr.tasks.resampling import interval, paired_bootstrap, resampled_means

SIDES = ("base", "val", "novel")
QUERIES = 15  # a way, unless classes are small
OUTSIDE = 500  # images that PCA is fitted on, drawn among the classes outside an episode
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class _Episode:
    classes: NDArray[np.int64]
    support: Rows
    query: Rows
    """Rows, class by class."""


class FewShot:
    """Seeded episodes of the novel classes, the same for all heads and features.

    Without a class split every class is novel; then base statistics and PCA come from the classes outside
    each episode, or, where these hold fewer images than its support, from that. No layer is chosen, because
    nothing is left to choose on.
    """

    heads: tuple[str, ...] = tuple(HEADS)
    metrics: tuple[str, ...] = ("accuracy",)
    mirrored = False

    def __init__(
        self,
        store: Latents,
        *,
        images: NDArray[np.uint8],
        ways: int = 5,
        shots: int = 1,
        queries: int | None = None,
        episodes: int = 600,
        class_split: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        for name, number, least in (
            ("ways", ways, 2), ("shots", shots, 1), ("queries", queries, 1), ("episodes", episodes, 2),
        ):  # fmt: skip
            if number is not None and number < least:
                raise TaskError(f"{name}: expected at least {least}, found {number}")
        self._work = Workspace(store.ids)
        sides = _read_class_split(class_split, store)
        rows_of = {
            int(k): np.flatnonzero(store.labels == k) for k in np.unique(store.labels) if k >= 0
        }
        if not rows_of:
            raise TaskError(
                f"{store.path}: expected labelled images (a folder a class, or a CSV), found no label"
            )
        if queries is None:  # as many as enough classes hold
            largest = sorted((len(rows_of[k]) for k in sides["novel"]), reverse=True)[:ways]
            queries = max(1, min([QUERIES, *(size - shots for size in largest)]))
        self.ways, self.shots, self.queries, self.labels = ways, shots, queries, store.labels
        needed = shots + queries
        enough = {k for k, rows in rows_of.items() if len(rows) >= needed}
        usable = {side: [k for k in classes if k in enough] for side, classes in sides.items()}
        if len(usable["novel"]) < ways:
            raise TaskError(
                f"{store.path}: expected at least {ways} novel classes of {needed} images ({shots} shots and "
                f"{queries} queries), found {len(usable['novel'])}; ask for fewer ways, shots or queries"
            )
        self.base = np.concatenate([rows_of[k] for k in sides["base"]] or [np.zeros(0, np.intp)])
        self.episodes = _draw(usable["novel"], rows_of, ways, shots, queries, episodes, seed)
        choose = next((usable[side] for side in ("val", "base") if len(usable[side]) >= ways), [])
        self.training = (
            _draw(choose, rows_of, ways, shots, queries, episodes, seed + 1) if choose else []
        )
        used = [
            (side, np.concatenate([rows_of[k] for k in classes]))
            for side, classes in sides.items()
            if classes
        ]
        refuse_leaks(images, store.ids, used)
        self.n_train, self.n_test = ways * shots, ways * queries
        self.fitted = self.base
        self.notice = (
            f"{episodes} episodes of {ways} ways, {shots} shots, {queries} queries a way, from "
            f"{len(usable['novel'])} novel classes"
        )
        if left := len(sides["novel"]) - len(usable["novel"]):
            self.notice += f"; {left} classes of fewer than {needed} images left out"
        if not len(self.base):
            taken = sum(sorted((len(rows_of[k]) for k in usable["novel"]), reverse=True)[:ways])
            outside = sum(map(len, rows_of.values())) - taken
            if outside < ways * shots:
                what = f"no more than {outside} images are" if outside else "no class is"
                self.notice += (
                    f"; {what} outside an episode: base statistics and PCA are of its support"
                )
        if choose:
            where = "val" if len(usable["val"]) >= ways else "base"
            self.notice += f"; the layer is chosen on episodes of {len(choose)} {where} classes"

    def metrics_of(self, head: str) -> tuple[str, ...]:
        """Return all metrics."""
        return self.metrics

    def protocol(self, head: str) -> str:
        """Return the protocol's name."""
        return "few-shot"

    def pca(self, X: NDArray[Any], dims: Sequence[int]) -> list[Features]:
        """PCA of the base classes' images; without them, of images outside each episode's classes, if any."""
        if len(self.base):
            return baselines.pca(X, self.base, dims)
        largest, parts = min(OUTSIDE - 1, X.shape[1]), []
        X = X.astype(np.float64)
        gram = X @ X.T
        rng = np.random.default_rng(0)
        for episode in self.episodes:
            outside = np.flatnonzero(~np.isin(self.labels, episode.classes) & (self.labels >= 0))
            if len(outside) < len(episode.support):
                outside = episode.support
            elif len(outside) > OUTSIDE:
                outside = np.sort(rng.choice(outside, OUTSIDE, replace=False))
            items = np.concatenate([episode.support, episode.query])
            parts.append(_gram_pca(gram, outside, items))
            largest = min(largest, parts[-1].shape[1])
        stacked = np.stack([part[:, :largest] for part in parts]).astype(np.float32)
        return [_of_episodes(stacked[:, :, :size]) for size in baselines.pca_sizes(dims, largest)]

    def score(self, head: str, features: Features, seed: int, shuffled: bool = False) -> Scored:
        """Fit and test a head on each episode; the outcome is the accuracy (E,) of each."""
        started = time.monotonic()
        training = None
        own = features.model == "pca" and not len(self.base)  # made for each episode
        X = self._work.matrix(features) if own else self._work.compact(features)
        if self.training and not own:
            training = float(np.mean(self._accuracies(head, X, self.training, None)))
        rng = np.random.default_rng(seed) if shuffled else None
        accuracies = self._accuracies(head, X, self.episodes, rng)
        return Scored(features, False, training, accuracies, round(time.monotonic() - started, 3))

    def figures(self, metric: str, scored: Sequence[Scored], seed: int) -> list[Figure]:
        """Return mean accuracy over episodes, with t(.975, E - 1) standard errors on either side."""
        return [Figure.of_mean(item.outcome, 1 / self.ways) for item in scored]

    def p_values(self, pairs: Sequence[tuple[Scored, Scored]], seed: int) -> list[float]:
        """Compare the accuracies of the same episodes."""
        outcomes = [(a.outcome, b.outcome) for a, b in pairs]
        return paired_bootstrap(outcomes, np.arange(len(pairs[0][0].outcome)), seed)

    def curve(self, head: str, scored: Scored) -> Curve | None:
        """There is none."""
        return None

    def _accuracies(
        self,
        head: str,
        X: NDArray[Any],
        episodes: Sequence[_Episode],
        rng: np.random.Generator | None,
    ) -> NDArray[np.float64]:
        """Return the accuracy of each episode; with rng, under permuted support labels."""
        y, truth = (np.repeat(np.arange(self.ways), n) for n in (self.shots, self.queries))
        outside = _Outside(X, self.base, self.labels)
        found = np.zeros(len(episodes))
        for number, episode in enumerate(episodes):
            if X.ndim == 3:
                support, query = np.split(X[number], [len(episode.support)])
            else:
                support, query = X[episode.support], X[episode.query]

            def base_mean(episode: _Episode = episode) -> NDArray[Any]:
                if X.ndim == 3:  # centred on the classes outside already
                    return np.zeros(X.shape[2], X.dtype)
                return outside.mean(episode)

            labels = y if rng is None else rng.permutation(y)
            fitted = HEADS[head](base_mean).fit(support, labels)
            found[number] = np.mean(fitted.predict(query) == truth)
        return found


class _Outside:
    """Means of features X (N, D) of the base classes; without them, of all but an episode's classes."""

    def __init__(self, X: NDArray[Any], base: Rows, labels: NDArray[np.int64]) -> None:
        self._X, self._base, self._labels = X, base, labels

    @cached_property
    def _of_base(self) -> NDArray[Any]:
        return np.asarray(self._X[self._base].mean(axis=0))

    @cached_property
    def _sums(self) -> dict[int, tuple[NDArray[Any], int]]:
        rows = {
            int(k): np.flatnonzero(self._labels == k) for k in np.unique(self._labels) if k >= 0
        }
        return {k: (self._X[r].sum(axis=0, dtype=np.float64), len(r)) for k, r in rows.items()}

    def mean(self, episode: _Episode) -> NDArray[Any]:
        """Return the mean (D,): of the support images, where fewer are outside the episode's classes."""
        if len(self._base):
            return self._of_base
        others = [self._sums[k] for k in self._sums if k not in episode.classes]
        count = sum(count for _, count in others)
        if count < len(episode.support):
            return np.asarray(self._X[episode.support].mean(axis=0))
        total = np.sum([part for part, _ in others], axis=0)
        return np.asarray(total / count, self._X.dtype)


class OneShot:
    """Protocol `omniglot-oneshot`: 20 runs, in each 20 queries to be told by 20 known drawings; error.

    Nothing is trained, so no layer is chosen; PCA is fitted on the known drawings. Intervals resample runs.
    Source: Lake et al. 2015, whose human error is 0.045, and that of the modified Hausdorff distance 0.388.
    """

    heads: tuple[str, ...] = (
        "nearest-prototype", "nearest-prototype-cosine", "simpleshot-l2n", "logistic", "ridge",
    )  # fmt: skip
    metrics: tuple[str, ...] = ("error",)
    mirrored = False

    def __init__(self, store: Latents, *, images: NDArray[np.uint8]) -> None:
        if "run" not in store.factors or not {"train", "test"} <= set(store.splits):
            raise TaskError(
                f"{store.path}: expected the official runs; extract the data omniglot-runs"
            )
        self.labels, self.runs = store.labels, store.factors["run"]
        self._work = Workspace(store.ids)
        splits = np.array(store.splits)
        self.known, self.queries = (np.flatnonzero(splits == side) for side in ("train", "test"))
        for run in np.unique(self.runs):
            own = self.labels[self.known[self.runs[self.known] == run]]
            asked = self.labels[self.queries[self.runs[self.queries] == run]]
            if len(set(own)) < len(own) or not set(asked) <= set(own):
                raise TaskError(
                    f"{store.path}: run {run}: expected one known drawing of each character that is asked for"
                )
        self.n_train, self.fitted = len(self.known), self.known
        self.n_test = len(self.queries)
        runs = len(np.unique(self.runs))
        self.ways = self.n_train / runs
        self.notice = f"{runs} runs, {self.n_train} known drawings, {self.n_test} queries"

    def metrics_of(self, head: str) -> tuple[str, ...]:
        """Return all metrics."""
        return self.metrics

    def protocol(self, head: str) -> str:
        """Return the protocol's name."""
        return "omniglot-oneshot"

    def pca(self, X: NDArray[Any], dims: Sequence[int]) -> list[Features]:
        """PCA of the known drawings."""
        return baselines.pca(X, self.known, dims)

    def score(self, head: str, features: Features, seed: int, shuffled: bool = False) -> Scored:
        """Tell each run's queries; the outcome is whether each of them is wrong, (Q,)."""
        started = time.monotonic()
        X, rng = self._work.compact(features), np.random.default_rng(seed)
        wrong = np.zeros(len(self.queries))
        for run in np.unique(self.runs):
            known = self.known[self.runs[self.known] == run]
            here = np.flatnonzero(self.runs[self.queries] == run)
            labels = self.labels[known]
            fitted = HEADS[head](lambda: np.zeros(X.shape[1])).fit(
                X[known], rng.permutation(labels) if shuffled else labels
            )
            queries = self.queries[here]
            wrong[here] = fitted.predict(X[queries]) != self.labels[queries]
        return Scored(features, False, None, wrong, round(time.monotonic() - started, 3))

    def figures(self, metric: str, scored: Sequence[Scored], seed: int) -> list[Figure]:
        """Return the error of each, a fraction."""
        wrong = np.stack([item.outcome for item in scored], axis=1)
        low, high = interval(resampled_means(wrong, self.runs[self.queries], seed))
        return [
            Figure(float(value), float(lo), float(hi), chance=1 - 1 / self.ways)
            for value, lo, hi in zip(wrong.mean(axis=0), low, high, strict=True)
        ]

    def p_values(self, pairs: Sequence[tuple[Scored, Scored]], seed: int) -> list[float]:
        """Compare errors on the same queries."""
        outcomes = [(a.outcome, b.outcome) for a, b in pairs]
        return paired_bootstrap(outcomes, self.runs[self.queries], seed)

    def curve(self, head: str, scored: Scored) -> Curve | None:
        """There is none."""
        return None


def _draw(
    classes: Sequence[int],
    rows_of: dict[int, Rows],
    ways: int,
    shots: int,
    queries: int,
    count: int,
    seed: int,
) -> list[_Episode]:
    episodes = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        chosen = rng.choice(np.array(classes), ways, replace=False)
        drawn = [rng.choice(rows_of[int(k)], shots + queries, replace=False) for k in chosen]
        support = np.concatenate([rows[:shots] for rows in drawn])
        query = np.concatenate([rows[shots:] for rows in drawn])
        episodes.append(_Episode(chosen, support, query))
    return episodes


def _of_episodes(X: NDArray[Any]) -> Features:
    """Make features of what is fitted for each episode by itself, (E, n, D)."""
    columns = Columns("pca", 0, X.shape[2], lambda: iter([X]), cache(lambda: hash_arrays(X)))
    return Features("pca", None, (columns,), standardise=False)


def _gram_pca(gram: NDArray[np.float64], fit: Rows, items: Rows) -> NDArray[np.float64]:
    """Return principal components (n, r) of rows `items`, fitted on `fit`, from inner products (N, N)."""
    inner = gram[np.ix_(fit, fit)]
    column = inner.mean(axis=0)
    centred = inner - column - column[:, None] + inner.mean()
    values, vectors = np.linalg.eigh(centred)
    keep = np.flatnonzero(values > 1e-10 * max(values[-1], 1e-300))[::-1]
    across = gram[np.ix_(items, fit)]
    across = across - across.mean(axis=1, keepdims=True) - column + inner.mean()
    return np.asarray(across @ vectors[:, keep] / np.sqrt(values[keep]))


def _read_class_split(path: str | Path | None, store: Latents) -> dict[str, list[int]]:
    """Return the classes of each side; every class is novel without a file."""
    labels = {int(k) for k in np.unique(store.labels) if k >= 0}
    if path is None:
        return {"base": [], "val": [], "novel": sorted(labels)}
    number = {name: index for index, name in enumerate(store.label_names)}
    sides: dict[str, list[int]] = {side: [] for side in SIDES}
    try:
        table = read_table(path, "class", "split")
    except DataError as error:
        raise TaskError(str(error)) from error
    for line, name, side in zip(table.lines, table["class"], table["split"], strict=True):
        if side not in SIDES:
            raise TaskError(f"{path} line {line}: expected base, val or novel, found {side!r}")
        if name not in number:
            raise TaskError(f"{path} line {line}: {store.path} has no class {name!r}")
        sides[side].append(number[name])
    named = [k for side in sides.values() for k in side]
    if len(set(named)) < len(named):
        twice = next(k for k in named if named.count(k) > 1)
        raise TaskError(f"{path}: class {store.label_names[twice]!r} is named twice")
    found = {side: [k for k in classes if k in labels] for side, classes in sides.items()}
    if not found["base"]:  # the classes outside an episode would be others to be tested on
        raise TaskError(
            f"{path}: expected base classes with images, for base statistics and PCA, found none; call some "
            "classes base, or leave the split out"
        )
    return found
