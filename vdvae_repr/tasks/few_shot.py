"""`few_shot`: episodes from classes that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.data.table import read_table
from vdvae_repr.errors import DataError, TaskError
from vdvae_repr.heads.few_shot import HEADS
from vdvae_repr.heads.spectrum import Spectrum
from vdvae_repr.latents.base import Latents
from vdvae_repr.probing import controls
from vdvae_repr.probing.features import Columns, Features, hash_arrays
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.statistics import Figure, Items, Units
from vdvae_repr.probing.task import (
    Problem,
    Scored,
    Split,
    Task,
    expect,
    expect_at_least,
    no_rows,
    several,
)

SIDES = ("base", "val", "novel")
QUERIES = 15  # a way, unless classes are small
OUTSIDE = 500  # images that PCA is fitted on, drawn among the classes outside an episode
Rows = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class FewShot(Task):
    """Which of a few classes is it, by a few images of each? Protocol `few-shot`.

    Seeded episodes of the novel classes, the same for all heads and features. Without a class split every
    class is novel; then base statistics and PCA come from the classes outside each episode, or, where
    these hold fewer images than its support, from that, and no layer is chosen, because nothing is left to
    choose on. Intervals resample the novel classes, then their images, and comparisons flip the signs of
    classes' differences: episodes redraw the same images, so an interval over them would shrink with their
    number. `se` and `std` are of episodes, given these images.
    """

    name: ClassVar[str] = "few_shot"
    version: ClassVar[int | None] = 2

    ways: int = field(default=5, metadata={"help": "Classes an episode; 5."})
    shots: int | Sequence[int] = field(
        default=1, metadata={"help": "Images a class to learn from; 1. May be repeated."}
    )
    queries: int | None = field(
        default=None,
        metadata={"help": "Images a class to be told; 15, or what small classes hold."},
    )
    episodes: int = field(default=600, metadata={"help": "Episodes; 600."})
    class_split: str | Path | None = field(
        default=None, metadata={"help": "A CSV of class and split (base, val, novel)."}
    )

    def __post_init__(self) -> None:
        """Check the options."""
        shots = several(self.shots, "shots", Integral, "whole numbers")
        if not shots:
            raise TaskError("shots: expected at least one number, found none")
        object.__setattr__(self, "shots", shots)
        expect_at_least(self, {"ways": 2, "shots": 1, "queries": 1, "episodes": 2})
        expect(self.class_split, "class_split", str | Path | None, "a file")
        if self.class_split is not None:
            object.__setattr__(self, "class_split", Path(self.class_split))

    def parts(self) -> Sequence[Task]:
        """Return a task for each number of shots."""
        assert isinstance(self.shots, tuple)
        return [replace(self, shots=number) for number in self.shots]

    def bind(self, store: Latents, seed: int = 0) -> Episodes:
        """Return episodes of the first number of shots."""
        return Episodes(store, self, seed)


@dataclass(frozen=True)
class _Episode:
    classes: NDArray[np.int64]
    support: Rows
    query: Rows
    """Rows, class by class."""


class Episodes(Problem):
    """Episodes of novel classes; the outcome is whether each query is told, (E, ways, queries)."""

    def __init__(self, store: Latents, task: FewShot, seed: int) -> None:
        assert isinstance(task.shots, tuple)
        ways, shots, queries, episodes = task.ways, task.shots[0], task.queries, task.episodes
        sides = _read_class_split(task.class_split, store)
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
        self.ways, self.shots, self.queries = ways, shots, queries
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
        text = (
            f"{episodes} episodes of {ways} ways, {shots} shots, {queries} queries a way, from "
            f"{len(usable['novel'])} novel classes"
        )
        if left := len(sides["novel"]) - len(usable["novel"]):
            text += f"; {left} classes of fewer than {needed} images left out"
        if not len(self.base):
            taken = sum(sorted((len(rows_of[k]) for k in usable["novel"]), reverse=True)[:ways])
            outside = sum(map(len, rows_of.values())) - taken
            if outside < ways * shots:
                what = f"no more than {outside} images are" if outside else "no class is"
                text += f"; {what} outside an episode: base statistics and PCA are of its support"
        if choose:
            where = "val" if len(usable["val"]) >= ways else "base"
            text += f"; the layer is chosen on episodes of {len(choose)} {where} classes"
        split = Split(self.base, no_rows(), text=text)
        super().__init__(
            store,
            split,
            store.labels,
            heads=HEADS,
            metrics=[f"accuracy@{shots}"],
            chance=1 / ways,
            default_heads=[name for name in HEADS if name != "logistic"],
        )
        self.n_train, self.n_test = ways * shots, ways * queries
        self.sides = used
        asked = np.concatenate([episode.query for episode in self.episodes])
        self._images, self._image = np.unique(asked, return_inverse=True)
        self._classes: Units | None = None

    def protocol(self, head: Head) -> str:
        """Return the protocol's name."""
        return "few-shot"

    def pca(self, X: NDArray[Any], dims: Sequence[int]) -> list[Features]:
        """PCA of the base classes' images; without them, of images outside each episode's classes, if any."""
        if len(self.base):
            return controls.pca(X, self.base, dims)
        largest, parts = min(OUTSIDE - 1, X.shape[1]), []
        X = X.astype(np.float64)
        gram = X @ X.T
        rng = np.random.default_rng(0)
        labels = self.targets
        for episode in self.episodes:
            outside = np.flatnonzero(~np.isin(labels, episode.classes) & (labels >= 0))
            if len(outside) < len(episode.support):
                outside = episode.support
            elif len(outside) > OUTSIDE:
                outside = np.sort(rng.choice(outside, OUTSIDE, replace=False))
            items = np.concatenate([episode.support, episode.query])
            parts.append(_gram_pca(gram, outside, items))
            largest = min(largest, parts[-1].shape[1])
        stacked = np.stack([part[:, :largest] for part in parts]).astype(np.float32)
        sizes = controls.pca_sizes(dims, largest)
        return [EpisodeComponents.of(stacked[:, :, :size]) for size in sizes]

    def score(
        self, head: Head, features: Features, seed: int = 0, shuffled: bool = False
    ) -> Scored:
        """Fit and test a head on each episode; the outcome is whether each query is told."""
        rng = np.random.default_rng(seed) if shuffled else None
        if isinstance(features, EpisodeComponents):
            return Scored(features, self._told(head, features.stacked, self.episodes, rng, seed))
        X = self.read(head, features)
        training = None
        if self.training:
            training = float(np.mean(self._told(head, X, self.training, None, seed)))
        return Scored(features, self._told(head, X, self.episodes, rng, seed), training)

    def permutations(self, head: Head) -> int:
        """Return one: each episode permutes its own labels."""
        return 1

    def independent(self, metric: str, seed: int) -> Units:
        """Return novel classes, of which images are drawn too."""
        if self._classes is None or self._classes.seed != seed:
            self._classes = Units(self.targets[self._images], seed, nested=True)
        return self._classes

    def items(self, metric: str, scored: Scored) -> Items:
        """Return accuracy as a sum over the images that are asked for, in whichever episodes."""
        told = np.bincount(self._image, scored.outcome.ravel().astype(float))
        asked = np.bincount(self._image)
        return Items.mean_of(told / asked, asked)

    def figures(self, metric: str, scored: Sequence[Sequence[Scored]], seed: int) -> list[Figure]:
        """Return mean accuracy; standard error and deviation are of episodes, given these images."""
        found = []
        for one, draws in zip(super().figures(metric, scored, seed), scored, strict=True):
            episodes = np.mean([item.outcome.mean(axis=(1, 2)) for item in draws], axis=0)
            std = float(episodes.std(ddof=1))
            found.append(one._replace(se=std / len(episodes) ** 0.5, std=std))
        return found

    def _told(
        self,
        head: Head,
        X: NDArray[Any],
        episodes: Sequence[_Episode],
        rng: np.random.Generator | None,
        seed: int,
    ) -> NDArray[np.bool_]:
        """Return whether each query is told, (E, ways, queries); with rng, under permuted support labels."""
        y, truth = (np.repeat(np.arange(self.ways), n) for n in (self.shots, self.queries))
        by_base_mean = isinstance(getattr(head.estimator, "mean", None), str)
        outside = _Outside(X, self.base, self.targets)
        told = np.zeros((len(episodes), self.ways, self.queries), dtype=bool)
        estimator = head.fresh(seed)
        for number, episode in enumerate(episodes):
            if X.ndim == 3:  # centred on the classes outside already
                support, query = np.split(X[number], [len(episode.support)])
            else:
                support, query = X[episode.support], X[episode.query]
            if by_base_mean:
                mean = np.zeros(X.shape[2], X.dtype) if X.ndim == 3 else outside.mean(episode)
                estimator.set_params(mean=mean)
            labels = y if rng is None else rng.permutation(y)
            right = estimator.fit(support, labels).predict(query) == truth
            told[number] = right.reshape(told.shape[1:])
        return told


@dataclass(frozen=True, eq=False)
class EpisodeComponents(Features):
    """Principal components of pixels, fitted for each episode by itself: `stacked` (E, n, k)."""

    stacked: NDArray[Any] = field(default_factory=no_rows)

    @classmethod
    def of(cls, stacked: NDArray[Any]) -> EpisodeComponents:
        """Make features of the items of each episode, support before queries."""
        digest = cache(lambda: hash_arrays(stacked))
        columns = Columns("pca", 0, stacked.shape[2], lambda: iter([stacked]), digest)
        return cls("pca", None, (columns,), standardise=False, stacked=stacked)


class _Outside:
    """Means of features X (N, D) of the base classes; without them, of all but an episode's classes."""

    def __init__(self, X: NDArray[Any], base: Rows, labels: NDArray[Any]) -> None:
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


def _gram_pca(gram: NDArray[np.float64], fit: Rows, items: Rows) -> NDArray[np.float64]:
    """Return principal components (n, r) of rows `items`, fitted on `fit`, from inner products (N, N)."""
    spectrum = Spectrum.of_products(gram[np.ix_(fit, fit)])
    return spectrum.project(gram[np.ix_(items, fit)])[:, ::-1]


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
