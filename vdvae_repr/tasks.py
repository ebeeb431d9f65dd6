"""Tasks: data, split, protocol, heads and controls, to result rows.

`face_id`, protocol `closed-set`: gallery and probe images of known people; nearest neighbour by cosine,
and `linear-lbfgs` on the gallery. `classification`, protocols `linear-lbfgs` and `knn`: of any labelled
store. Everything chosen is chosen on training data, or on the split `val` where train and test have one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr import baselines
from vdvae_repr.baselines import Features
from vdvae_repr.errors import TaskError
from vdvae_repr.heads.linear import LinearLBFGS
from vdvae_repr.heads.neighbors import NearestNeighbor, WeightedNeighbors
from vdvae_repr.latents.store import LatentStore
from vdvae_repr.model.layers import select_layers
from vdvae_repr.results import Result

RESAMPLES = 10_000
CONTROLS = ("pixels", "pca", "random-init")

Array = NDArray[Any]


@dataclass(frozen=True)
class Task:
    """What a task's rows are made of.

    Attributes:
        heads: their names.
        metrics: of a row, the one that is compared first.
        protocol: its name; None where each head has its own.
        train, test: what the two sides are called.
        item: what a label tells apart.
        by_label: whether intervals and comparisons resample labels (people) or test images.
    """

    heads: tuple[str, ...]
    metrics: tuple[str, ...]
    protocol: str | None
    train: str
    test: str
    item: str
    by_label: bool


TASKS = {
    "face_id": Task(
        heads=("nearest-neighbor", "linear-lbfgs"), metrics=("rank1", "rank5"), protocol="closed-set",
        train="gallery", test="probe", item="person", by_label=True,
    ),
    "classification": Task(
        heads=("knn", "linear-lbfgs"), metrics=("accuracy", "balanced_accuracy", "top5"), protocol=None,
        train="train", test="test", item="class", by_label=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Split:
    """Row numbers of each side, and everybody's label; `val` is empty where nothing is set apart."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]
    labels: NDArray[np.int64]
    notice: str

    def units(self, task: Task) -> NDArray[np.int64]:
        """What is resampled: of each test image its number."""
        return self.labels[self.test] if task.by_label else np.arange(len(self.test))


@dataclass(frozen=True)
class _Scored:
    """A row of the task's first metric with what is needed to choose, to compare, and for the others."""

    row: Result
    training_score: float | None
    rank: NDArray[np.int64]  # of each test image's own class, 0 for the first

    @property
    def correct(self) -> NDArray[np.bool_]:
        return self.rank == 0


def run_task(
    task: str,
    store: LatentStore,
    *,
    layers: str | int | Sequence[str | int] = "all",
    feature: str = "mean",
    pool: str | None = None,
    joint: bool = False,
    heads: Sequence[str] | None = None,
    seed: int = 0,
    notice: Callable[[str], None] = lambda line: None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Run a task over layers of a store, with its controls.

    Args:
        task: of `TASKS`.
        store: with labels, and images for the controls.
        layers: selector; each layer is one row.
        feature: stored feature.
        pool: None, "avg" or "avg:GRID".
        joint: take the layers that a selector names together, as one feature vector; several selectors
            make several rows, of which one is chosen.
        heads: of the task's; all of them if not given.
        seed: of folds, shuffling, random initialisation and bootstrap.
        notice: receives what the reader must know (the split, images left out).
        progress: receives what is being scored.

    Raises:
        TaskError: the store cannot support the protocol, or has no images for the controls.
    """
    if task not in TASKS:
        raise TaskError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    kind = TASKS[task]
    if unknown := [head for head in heads or () if head not in kind.heads]:
        raise TaskError(
            f"unknown head {unknown[0]!r}; the heads of {task} are {', '.join(kind.heads)}"
        )
    split = _split(store, task)
    notice(split.notice)
    if not store.has_images:
        raise TaskError(
            f"{store.path}: holds no images, so the controls pixels, pca and random-init cannot run; "
            "extract without --no-images"
        )
    images = store.images()
    _refuse_leaks(images, store.ids, split, kind)
    selectors = [layers] if isinstance(layers, str | int) else list(layers)
    if not joint:
        selectors = [spec.name for spec in select_layers(store.layers, selectors)]
    groups = {
        str(selector): [spec.name for spec in select_layers(store.layers, selector)]
        for selector in selectors
    }
    name = str(store.attrs["model"])
    learned = [
        Features(name, label, store.matrix(group, feature, pool)[0])
        for label, group in groups.items()
    ]
    raw = baselines.pixels(images)
    controls = [raw, *baselines.pca(raw, split.train, [f.X.shape[1] for f in learned])]
    controls += baselines.random_init(store, images, groups, feature, pool, seed)

    rows: list[Result] = []
    for head in heads or kind.heads:
        scored = []
        for candidate in [*learned, *controls]:
            progress(f"{head}: {candidate.model} {candidate.layer or candidate.X.shape[1]}")
            scored.append(
                _score(task, head, candidate, split, split.labels, store, feature, pool, seed)
            )
        ours = _choose([s for s in scored if s.row.model == name])
        others = [_choose([s for s in scored if s.row.model == model]) for model in CONTROLS]
        picked = next((s for s in ours if s.row.chosen), None)
        rivals = [s for group in others for s in group if s.row.chosen]
        if picked is not None and rivals:
            best = max(rivals, key=lambda s: s.row.value)
            p = paired_bootstrap(picked.correct, best.correct, split.units(kind), seed)
            ours = [replace(s, row=replace(s.row, p_value=p)) if s is picked else s for s in ours]
        shuffled = split.labels.copy()
        rng = np.random.default_rng(seed)
        shuffled[split.train] = rng.permutation(shuffled[split.train])
        basis = learned[0]
        if picked is not None:
            basis = next(f for f in learned if f.layer == picked.row.layer)
        control = replace(basis, model="shuffled-labels")
        last = _score(task, head, control, split, shuffled, store, feature, pool, seed)
        for item in [*ours, *(s for group in others for s in group), last]:
            rows += [item.row, *_other_metrics(item, split, kind)]
    return rows


def _split(store: LatentStore, task: str) -> _Split:
    """The store's splits; without any, the first half of each label's images to train on."""
    kind = TASKS[task]
    labels, splits = store.labels, np.array(store.splits)
    known = labels >= 0
    groups = np.unique(labels[known])
    many = "people" if kind.item == "person" else "classes"
    if len(groups) < 2:
        raise TaskError(
            f"{store.path}: {task} needs at least 2 labelled {many}, found {len(groups)}; "
            f"give a folder with one subfolder a {kind.item}"
        )
    val = np.zeros(len(labels), dtype=bool)
    if (splits == "train").any():
        tested = "test" if (splits == "test").any() else "val"
        train, test = known & (splits == "train"), known & (splits == tested)
        if tested == "test":
            val = known & (splits == "val")
        text = f"{kind.train}: split train, {kind.test}: split {tested}"
    else:
        train = np.zeros(len(labels), dtype=bool)
        for group in groups:
            members = np.flatnonzero(labels == group)
            train[members[: len(members) // 2]] = True
        test = known & ~train
        text = (
            f"no splits: {kind.train} is the first half of each {kind.item}'s images, "
            f"{kind.test} the rest"
        )
    for group in groups:
        counts = [int(np.sum(side & (labels == group))) for side in (train, test)]
        if 0 in counts:
            name = store.label_names[group] if group < len(store.label_names) else group
            raise TaskError(
                f"{store.path}: expected images of {name} in {kind.train} and {kind.test}, "
                f"found {counts[0]} and {counts[1]}; give at least 2 images of each {kind.item}"
            )
    text += f" ({train.sum()} and {test.sum()} images, {len(groups)} {many})"
    if val.any():
        text += f"; choices are made on split val ({val.sum()} images)"
    if not known.all():
        text += f"; {np.sum(~known)} unlabelled images left out"
    rows = [np.flatnonzero(side) for side in (train, val, test)]
    return _Split(train=rows[0], val=rows[1], test=rows[2], labels=labels, notice=text)


def paired_bootstrap(
    a: NDArray[np.bool_], b: NDArray[np.bool_], units: NDArray[np.int64], seed: int
) -> float:
    """Two-sided p-value that two scores on the same images differ; `units` (N,) are resampled."""
    difference = a.astype(float) - b.astype(float)
    means = _resampled_means(difference, units, seed)
    low, high = float(np.mean(means <= 0)), float(np.mean(means >= 0))
    return min(1.0, 2 * max(min(low, high), 1 / RESAMPLES))


def _resampled_means(
    values: NDArray[np.float64],
    units: NDArray[np.int64],
    seed: int,
    strata: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Means over images of resamples of units, (RESAMPLES,); with strata, means of the strata's means."""
    _, unit = np.unique(units, return_inverse=True)
    _, stratum = np.unique(np.zeros_like(units) if strata is None else strata, return_inverse=True)
    shape = int(unit.max()) + 1, int(stratum.max()) + 1
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (unit, stratum), values)
    np.add.at(counts, (unit, stratum), 1)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(0, RESAMPLES, 500):  # so that memory stays small
        draws = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=500)
        with np.errstate(invalid="ignore"):  # a stratum may be missing from a resample
            means.append(np.nanmean((draws @ sums) / (draws @ counts), axis=1))
    return np.concatenate(means)


def _refuse_leaks(images: Array, ids: Sequence[str], split: _Split, kind: Task) -> None:
    seen: dict[bytes, tuple[int, str]] = {}
    for name, side in ((kind.train, split.train), ("val", split.val), (kind.test, split.test)):
        here = {}
        for i in side:
            image = images[i].tobytes()
            if twin := seen.get(image):
                raise TaskError(
                    f"{ids[i]} in the {name} is the same image as {ids[twin[0]]} in the {twin[1]}; remove one"
                )
            here[image] = int(i), name
        seen |= here


def _score(
    task: str,
    head: str,
    candidate: Features,
    split: _Split,
    labels: NDArray[np.int64],
    store: LatentStore,
    feature: str,
    pool: str | None,
    seed: int,
) -> _Scored:
    started = time.monotonic()
    kind, X, y = TASKS[task], candidate.X, labels[split.train]
    training_score: float | None = None
    standardised = head == "linear-lbfgs" and candidate.standardise
    fitted: LinearLBFGS | NearestNeighbor | WeightedNeighbors
    if head == "linear-lbfgs":
        set_apart = (X[split.val], labels[split.val]) if len(split.val) else None
        fitted = LinearLBFGS(standardize=standardised, seed=seed).fit(X[split.train], y, set_apart)
        if fitted.search_ != "fixed":
            training_score = float(fitted.cv_scores_.max())
    else:
        fitted = NearestNeighbor(center=True) if head == "nearest-neighbor" else WeightedNeighbors()
        fitted.fit(X[split.train], y)
        if len(split.val):
            training_score = float(fitted.score(X[split.val], labels[split.val]))
        elif np.unique(y, return_counts=True)[1].min() > 1:
            training_score = float(np.mean(fitted.leave_one_out() == y))
    scores, truth = fitted.class_scores(X[split.test]), split.labels[split.test]
    own = np.searchsorted(fitted.classes_, truth)[:, None]
    value = np.take_along_axis(scores, own, axis=1)
    before = np.arange(scores.shape[1]) < own  # of equal scores the first class is predicted
    rank = ((scores > value) | ((scores == value) & before)).sum(axis=1)
    correct = (rank == 0).astype(float)
    interval = np.quantile(_resampled_means(correct, split.units(kind), seed), [0.025, 0.975])
    latent = candidate.model not in ("pixels", "pca")
    row = Result(
        task=task,
        protocol=kind.protocol or head,
        head=head,
        model=candidate.model,
        weights_sha256=None if candidate.model in CONTROLS else str(store.attrs["weights_sha256"]),
        source=str(store.attrs["source"]),
        layer=candidate.layer,
        feature=feature if latent else None,
        pool=pool if latent else None,
        standardised=standardised,
        dims=X.shape[1],
        n_train=len(split.train),
        n_test=len(split.test),
        metric=kind.metrics[0],
        value=float(correct.mean()),
        ci_low=float(interval[0]),
        ci_high=float(interval[1]),
        chance=1 / len(fitted.classes_),
        seed=seed,
        seconds=round(time.monotonic() - started, 3),
    )
    return _Scored(row, training_score, rank)


def _choose(scored: Sequence[_Scored]) -> list[_Scored]:
    """Mark the row of the best training score; the first of equals, none where none is known."""
    known = [s.training_score for s in scored if s.training_score is not None]
    if not known:
        return list(scored)
    best = next(i for i, s in enumerate(scored) if s.training_score == max(known))
    return [
        replace(s, row=replace(s.row, chosen=True)) if i == best else s
        for i, s in enumerate(scored)
    ]


def _other_metrics(item: _Scored, split: _Split, kind: Task) -> list[Result]:
    """The same row in the task's other metrics."""
    chance, truth = item.row.chance or 0.0, split.labels[split.test]
    rows = []
    for metric in kind.metrics[1:]:
        balanced = metric == "balanced_accuracy"
        hits = (item.rank < (1 if balanced else 5)).astype(float)
        strata = truth if balanced else None
        means = _resampled_means(hits, split.units(kind), item.row.seed, strata)
        value = (
            np.mean([hits[truth == label].mean() for label in np.unique(truth)])
            if balanced
            else hits.mean()
        )
        interval = np.quantile(means, [0.025, 0.975])
        rows.append(replace(
            item.row, metric=metric, value=float(value), ci_low=float(interval[0]),
            ci_high=float(interval[1]), chance=chance if balanced else min(1.0, 5 * chance), p_value=None,
        ))  # fmt: skip
    return rows
