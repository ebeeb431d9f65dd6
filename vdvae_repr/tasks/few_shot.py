"""`few_shot`: episodes from classes that nothing was fitted on."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.config import path_of, suggestion
from vdvae_repr.data.table import read_table
from vdvae_repr.errors import DataError, TaskError, counted
from vdvae_repr.heads.episodes import SCORES, EpisodeProducts
from vdvae_repr.heads.few_shot import HEADS, NearestPrototype, scaling_of
from vdvae_repr.heads.gram import gram_matrices
from vdvae_repr.heads.spectrum import Spectrum, one_thread_each
from vdvae_repr.latents.base import Latents
from vdvae_repr.probing import controls
from vdvae_repr.probing.features import Columns, Features, Workspace, hash_arrays, read_only
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
    of_every_split,
    several,
)

SIDES = ("base", "val", "novel")
QUERIES = 15  # a way, unless classes are small
# Of the inner products, or of the images, of episodes that are worked on at once.
BATCH_BYTES = 2**28
BLOCK = 2048  # columns of pixels that are made float64 at once
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
    version: ClassVar[int | None] = 3

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
            object.__setattr__(self, "class_split", path_of("class_split", self.class_split))

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
        sides, notices = _read_class_split(task.class_split, store)
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
        drawn = [*usable["novel"], *choose]
        apart: list[tuple[str, Rows]] = []
        for side, classes in sides.items():
            if whole := [rows_of[k] for k in classes if k not in drawn]:
                apart.append((f"{side} classes", np.concatenate(whole)))
            for k in classes:  # an image that is there twice would be support and query
                if k in drawn:
                    apart += [(f"{side} classes", row) for row in rows_of[k][:, None]]
        text = f"{self.counted()}, from {len(usable['novel'])} novel classes"
        text += "".join(f"; {task.class_split}: {line}" for line in notices)
        if left := len(sides["novel"]) - len(usable["novel"]):
            text += f"; {counted(left, 'class')} of fewer than {needed} images left out"
        listed = {k for classes in sides.values() for k in classes}
        if alone := [store.label_names[k] for k in rows_of if k not in listed]:
            text += (
                f"; {counted(len(alone), 'class')} that {task.class_split} does not name left out "
                f"({', '.join(alone[:3])}{', ...' if len(alone) > 3 else ''})"
            )
        if none := int(np.sum(store.labels < 0)):
            text += f"; {counted(none, 'unlabelled image')} left out"
        text += of_every_split([store.splits[i] for k in listed for i in rows_of[k]])
        if not len(self.base):
            taken = sum(sorted((len(rows_of[k]) for k in usable["novel"]), reverse=True)[:ways])
            outside = sum(map(len, rows_of.values())) - taken
            if outside < ways * shots:
                some = counted(outside, "image", "is", "are")
                what = f"no more than {some}" if outside else "no class is"
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
        self.sides = apart
        asked = np.concatenate([episode.query for episode in self.episodes])
        self._images, self._image = np.unique(asked, return_inverse=True)
        self._classes: Units | None = None
        self._kept: tuple[Features | None, dict[int, EpisodeProducts]] = None, {}

    def counted(self) -> str:
        """Return what the episodes are of."""
        return (
            f"{len(self.episodes)} episodes of {self.ways} ways, {self.shots} "
            f"{'shot' if self.shots == 1 else 'shots'}, {self.queries} queries a way"
        )

    def protocol(self, head: Head) -> str:
        """Return the protocol's name."""
        return "few-shot"

    def pca(self, X: NDArray[Any], dims: Sequence[int]) -> list[Features]:
        """PCA of the base classes' images; without them, of images outside each episode's classes, if any."""
        if len(self.base):
            return controls.pca(X, self.base, dims)
        rng, labels = np.random.default_rng(0), self.targets
        blocks = (X[:, i : i + BLOCK].astype(np.float64) for i in range(0, X.shape[1], BLOCK))
        gram = gram_matrices(blocks, [(np.arange(len(X)), "raw")])[0].inner

        def outside(episode: _Episode) -> Rows:
            rows = np.flatnonzero(~np.isin(labels, episode.classes) & (labels >= 0))
            if len(rows) < len(episode.support):
                return episode.support
            if len(rows) <= OUTSIDE:
                return rows
            return np.sort(rng.choice(rows, OUTSIDE, replace=False))

        drawn = [outside(episode) for episode in self.episodes]

        def components(fit: Rows, episode: _Episode) -> NDArray[np.float32]:
            items = np.append(episode.support, episode.query)
            return _gram_pca(gram, fit, items).astype(np.float32)

        with one_thread_each() as workers:
            parts = list(workers.map(components, drawn, self.episodes))
        largest = min([OUTSIDE - 1, X.shape[1], *(part.shape[1] for part in parts)])
        stacked = np.stack([part[:, :largest] for part in parts])
        sizes = controls.pca_sizes(dims, largest)
        return [EpisodeComponents.of(stacked[:, :, :size]) for size in sizes]

    def score(
        self, head: Head, features: Features, seed: int = 0, shuffled: bool = False
    ) -> Scored:
        """Fit and test a head on each episode; the outcome is whether each query is told."""
        rng = np.random.default_rng(seed) if shuffled else None
        if (name := _name_of(head)) is not None:
            told = partial(self._told_at_once, name, features)
        elif isinstance(features, EpisodeComponents):
            told = partial(self._told, head, features.stacked, seed)
        else:
            told = partial(self._told, head, self.read(head, features), seed)
        training = None
        if self.training and not isinstance(features, EpisodeComponents):
            training = float(np.mean(told(self.training)))
        return Scored(features, told(self.episodes, rng), training, scaling_of(head.estimator))

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
        seed: int,
        episodes: Sequence[_Episode],
        rng: np.random.Generator | None = None,
    ) -> NDArray[np.bool_]:
        """Return whether each query is told, (E, ways, queries); with rng, under permuted support labels."""
        y, truth = (np.repeat(np.arange(self.ways), n) for n in (self.shots, self.queries))
        of = head.estimator
        by_base_mean = isinstance(of, NearestPrototype) and isinstance(of.mean, str)
        outside = _Outside(X, self.base, self.targets)
        told = np.zeros((len(episodes), self.ways, self.queries), dtype=bool)
        estimator = head.fresh(seed)
        for number, episode in enumerate(episodes):
            if X.ndim == 3:  # centred on the classes outside already
                # A copy, which a step with copy=False may change; other heads are handed X too.
                support, query = np.split(X[number].copy(), [len(episode.support)])
            else:
                support, query = X[episode.support], X[episode.query]
            if by_base_mean:
                mean = np.zeros(X.shape[2], X.dtype) if X.ndim == 3 else outside.mean(episode)
                estimator.set_params(mean=mean)
            labels = y.copy() if rng is None else rng.permutation(y)
            guesses = estimator.fit(support, labels).predict(query)
            right = head.classes_told(guesses, range(self.ways), len(query)) == truth
            told[number] = right.reshape(told.shape[1:])
        return told

    def _told_at_once(
        self,
        name: str,
        features: Features,
        episodes: Sequence[_Episode],
        rng: np.random.Generator | None = None,
    ) -> NDArray[np.bool_]:
        """Return what `_told` does, under a head of the package's, by the inner products of each episode."""
        y = np.repeat(np.arange(self.ways), self.shots)
        labels = np.stack([y if rng is None else rng.permutation(y) for _ in episodes])
        images = self.ways * (self.shots + self.queries)
        size = max(1, BATCH_BYTES // (8 * images * len(y)))
        told = []
        for start in range(0, len(episodes), size):
            batch = slice(start, start + size)
            products = self._products(features, episodes, batch)
            if name == "simpleshot-cl2n":
                products = self._centred(features, products, episodes[batch])
            scores = SCORES[name](products, labels[batch], self.ways)
            chosen = scores.argmax(axis=2).reshape(len(scores), self.ways, self.queries)
            told.append(chosen == np.arange(self.ways)[:, None])
        return np.concatenate(told)

    def _products(
        self, features: Features, episodes: Sequence[_Episode], batch: slice
    ) -> EpisodeProducts:
        """Return the inner products of some episodes; those of the last features are kept, but of many."""
        if self._kept[0] is not features:
            self._kept = features, {}
        kept, whole = self._kept[1], len(episodes[batch]) == len(episodes)
        if whole and id(episodes) in kept:
            return kept[id(episodes)]
        items = np.stack([np.append(of.support, of.query) for of in episodes[batch]])
        products = _images_of(self.work, features).products(items, self.ways * self.shots, batch)
        if whole:
            kept[id(episodes)] = products
        return products

    def _centred(
        self, features: Features, products: EpisodeProducts, episodes: Sequence[_Episode]
    ) -> EpisodeProducts:
        """Centre on the mean of the base classes, or of what is outside each episode; else of its support."""
        if isinstance(features, EpisodeComponents):  # they are already
            return products
        weights, few = self._outside_of(episodes)
        items = np.stack([np.append(of.support, of.query) for of in episodes])
        images = _images_of(self.work, features)
        with_mean, mean_square = images.with_means(self._members, weights, items)
        return products.centred(
            np.where(few[:, None], products.inner.mean(axis=2), with_mean),
            np.where(few, products.support.mean(axis=(1, 2)), mean_square),
        )

    @cached_property
    def _members(self) -> NDArray[np.float64]:
        """Which images base statistics are sums of: (N, 1) the base classes', or (N, K) each class's."""
        if len(self.base):
            return np.isin(np.arange(len(self.targets)), self.base)[:, None].astype(np.float64)
        classes = np.unique(self.targets[self.targets >= 0])
        return (self.targets[:, None] == classes).astype(np.float64)

    def _outside_of(
        self, episodes: Sequence[_Episode]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return what each sum counts in an episode's mean (E, K), and where too few images are outside."""
        sizes = self._members.sum(axis=0)
        if len(self.base):
            return np.full((len(episodes), 1), 1 / sizes[0]), np.zeros(len(episodes), bool)
        classes = np.unique(self.targets[self.targets >= 0])
        outside = np.stack([~np.isin(classes, episode.classes) for episode in episodes])
        counts = outside @ sizes
        return outside / np.maximum(counts, 1)[:, None], counts < self.ways * self.shots


@dataclass(frozen=True, eq=False)
class EpisodeComponents(Features):
    """Principal components of pixels, fitted for each episode by itself: `stacked` (E, n, k)."""

    stacked: NDArray[Any] = field(default_factory=no_rows)

    @classmethod
    def of(cls, stacked: NDArray[Any]) -> EpisodeComponents:
        """Make features of the items of each episode, support before queries."""
        digest = cache(lambda: hash_arrays(stacked))
        columns = Columns("pca", 0, stacked.shape[2], lambda: iter([stacked]), digest)
        return cls("pca", None, (columns,), standardise=False, stacked=read_only(stacked))


@dataclass(frozen=True)
class _Images:
    """Images by their features X (N, D), or by those of each episode's images by themselves (E, I, D)."""

    X: NDArray[Any]

    def products(self, items: Rows, support: int, batch: slice) -> EpisodeProducts:
        """Return those of the images (E, I) of some episodes, the first of which are the support."""
        taken = range(len(self.X))[batch] if self.X.ndim == 3 else items
        size = max(1, BATCH_BYTES // (8 * items.shape[1] * self.X.shape[-1]))
        inner, squares = [], []
        for start in range(0, len(items), size):
            A = self.X[taken[start : start + size]].astype(np.float64)
            inner.append(A @ A[:, :support].transpose(0, 2, 1))
            squares.append((A**2).sum(axis=2))
        return EpisodeProducts(np.concatenate(inner), np.concatenate(squares))

    def with_means(
        self, members: NDArray[np.float64], weights: NDArray[np.float64], items: Rows
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return products of images with each episode's mean (E, I), and of that with itself (E,).

        Args:
            members: which images are in which sum, (N, K).
            weights: of the sums in each episode's mean, (E, K).
            items: the images (E, I) of the episodes.
        """
        by_sum, sums = self._with_sums(members)
        with_mean = (by_sum[items] @ weights[:, :, None])[..., 0]
        return with_mean, ((weights @ sums) * weights).sum(axis=1)

    def _with_sums(
        self, members: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return products of images with sums of them (N, K), and of the sums with each other (K, K)."""
        total = members.T @ self.X
        return self.X @ total.T, total @ total.T


@dataclass(frozen=True)
class _ImagesByProducts(_Images):
    """Images by their inner products with each other, (N, N)."""

    def products(self, items: Rows, support: int, batch: slice) -> EpisodeProducts:
        inner = self.X[items[:, :, None], items[:, None, :support]]
        return EpisodeProducts(inner, self.X[items, items])

    def _with_sums(
        self, members: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        by_sum = self.X @ members
        return by_sum, members.T @ by_sum


def _images_of(work: Workspace, features: Features) -> _Images:
    if isinstance(features, EpisodeComponents):
        return _Images(features.stacked)
    if features.dims > len(work.ids):
        (gram,) = work.grams(features, [(np.arange(len(work.ids)), "raw")])
        return _ImagesByProducts(gram.inner)
    return _Images(work.matrix(features))


def _name_of(head: Head) -> str | None:
    """Return the name of a head of the package's that scores all episodes at once."""
    return next((name for name in SCORES if HEADS[name] is head.estimator), None)


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


def _plain(name: str) -> str:
    """Return a name as a table may hold it: without blanks around it, and \u00e9 in one form of its two."""
    return unicodedata.normalize("NFC", name.strip())


def _read_class_split(
    path: str | Path | None, store: Latents
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Return the classes of each side, every class novel without a file, and lines about the file."""
    labels = {int(k) for k in np.unique(store.labels) if k >= 0}
    if path is None:
        return {"base": [], "val": [], "novel": sorted(labels)}, ()
    number = {name: index for index, name in enumerate(store.label_names)}
    alike: dict[str, list[int]] = {}
    for name, index in number.items():
        alike.setdefault(_plain(name), []).append(index)
    sides: dict[str, list[int]] = {side: [] for side in SIDES}
    try:
        table = read_table(path, "class", "split")
    except DataError as error:
        raise TaskError(str(error)) from error
    for line, name, side in zip(table.lines, table["class"], table["split"], strict=True):
        if side not in SIDES:
            raise TaskError(f"{path} line {line}: expected base, val or novel, found {side!r}")
        called = [number[name]] if name in number else alike.get(_plain(name), [])
        if len(called) != 1:
            hint = suggestion(name, store.label_names)
            raise TaskError(f"{path} line {line}: {store.path} has no class {name!r}{hint}")
        sides[side] += called
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
    return found, table.notices
