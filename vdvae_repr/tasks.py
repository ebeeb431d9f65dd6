"""Tasks: data, split, protocol, heads and controls, to result rows.

`face_id`, protocol `closed-set`: gallery and probe images of known people; nearest neighbour by cosine,
`ridge` and `linear-lbfgs` on the gallery. `classification`, protocols `knn`, `ridge` and `linear-lbfgs`: of
any labelled store. Everything chosen is chosen on training data, or on the split `val` where there is one
beside train and test.
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
from vdvae_repr.heads.linear import LinearLBFGS, Ridge
from vdvae_repr.heads.neighbors import NearestNeighbor, WeightedNeighbors
from vdvae_repr.latents.store import LatentStore
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
        heads=("nearest-neighbor", "ridge", "linear-lbfgs"), metrics=("rank1", "rank5"),
        protocol="closed-set",
        train="gallery", test="probe", item="person", by_label=True,
    ),
    "classification": Task(
        heads=("knn", "ridge", "linear-lbfgs"), metrics=("accuracy", "balanced_accuracy", "top5"),
        protocol=None,
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
    """Features under a head: where each test image's own class came, 0 for the first, in `rank` (N,)."""

    features: Features
    standardised: bool
    training_score: float | None
    rank: NDArray[np.intp]
    seconds: float
    chosen: bool = False
    p_value: float | None = None


def run_task(
    task: str,
    store: LatentStore,
    *,
    layers: str | int | Sequence[str | int] = "all",
    feature: str | None = None,
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
        feature: stored feature; if not given, `mean`, or the first where that is not stored.
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
    feature = feature or store.default_feature
    if not store.has_images:
        raise TaskError(
            f"{store.path}: holds no images, so the controls pixels, pca and random-init cannot run; "
            "extract without --no-images"
        )
    images = store.images()
    _refuse_leaks(images, store.ids, split, kind)
    selectors = [layers] if isinstance(layers, str | int) else list(layers)
    if not joint:
        selectors = [spec.name for spec in store.distinct(selectors, feature)]
    groups = {
        str(selector): [spec.name for spec in store.distinct(selector, feature)]
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
            scored.append(_score(head, candidate, split, split.labels, seed))
        models = [_choose([s for s in scored if s.features.model == m]) for m in (name, *CONTROLS)]
        picked, *rivals = (next((s for s in group if s.chosen), None) for group in models)
        basis = learned[0] if picked is None else picked.features
        if picked is not None and any(rivals):
            best = min((s for s in rivals if s), key=lambda s: (s.rank > 0).sum())
            p = paired_bootstrap(picked.rank == 0, best.rank == 0, split.units(kind), seed)
            models[0] = [replace(s, p_value=p) if s is picked else s for s in models[0]]
        shuffled = split.labels.copy()
        rng = np.random.default_rng(seed)
        shuffled[split.train] = rng.permutation(shuffled[split.train])
        control = _score(head, replace(basis, model="shuffled-labels"), split, shuffled, seed)
        every = [*(s for group in models for s in group), control]
        rows += _rows(task, head, every, split, store, feature, pool, seed)
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
    means = _resampled_means(difference[:, None], units, seed)
    low, high = float(np.mean(means <= 0)), float(np.mean(means >= 0))
    return min(1.0, 2 * max(min(low, high), 1 / RESAMPLES))


def _resampled_means(
    values: NDArray[np.float64],
    units: NDArray[np.int64],
    seed: int,
    strata: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Means of values (N, M), or of strata's means, over resamples of units (N,): (RESAMPLES, M)."""
    _, unit = np.unique(units, return_inverse=True)
    _, stratum = np.unique(np.zeros_like(units) if strata is None else strata, return_inverse=True)
    n, members = (
        int(unit.max()) + 1,
        [np.flatnonzero(stratum == i) for i in range(stratum.max() + 1)],
    )
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(0, RESAMPLES, 500):  # so that memory stays small
        draws = rng.multinomial(n, np.full(n, 1 / n), size=500).astype(float)
        total, present = np.zeros((500, values.shape[1])), np.zeros((500, 1))
        for rows in members:
            times = draws[:, unit[rows]]
            count = times.sum(axis=1, keepdims=True)  # 0 where a stratum is missing from a resample
            total += times @ values[rows] / np.maximum(count, 1)
            present += count > 0
        means.append(total / present)
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
    head: str, candidate: Features, split: _Split, labels: NDArray[np.int64], seed: int
) -> _Scored:
    started = time.monotonic()
    X, y = candidate.X, labels[split.train]
    training_score: float | None = None
    standardised = head in ("ridge", "linear-lbfgs") and candidate.standardise
    fitted: LinearLBFGS | Ridge | NearestNeighbor | WeightedNeighbors
    if head == "linear-lbfgs":
        set_apart = (X[split.val], labels[split.val]) if len(split.val) else None
        fitted = LinearLBFGS(standardize=standardised, seed=seed).fit(X[split.train], y, set_apart)
        if fitted.search_ != "fixed":
            training_score = float(fitted.cv_scores_.max())
    else:
        match head:
            case "ridge":
                fitted = Ridge(standardize=standardised)
            case "knn":
                fitted = WeightedNeighbors()
            case _:
                fitted = NearestNeighbor(center=True)
        fitted.fit(X[split.train], y)
        if len(split.val):
            training_score = float(fitted.score(X[split.val], labels[split.val]))
        elif np.unique(y, return_counts=True)[1].min() > 1:
            training_score = float(np.mean(fitted.leave_one_out() == y))
    scores, truth = fitted.class_scores(X[split.test]), split.labels[split.test]
    if not np.isfinite(scores).all():
        raise TaskError(
            f"{candidate.model} {candidate.layer or X.shape[1]}, {head}: expected finite scores, found others"
        )
    own = np.searchsorted(fitted.classes_, truth)[:, None]
    value = np.take_along_axis(scores, own, axis=1)
    before = np.arange(scores.shape[1]) < own  # of equal scores the first class is predicted
    rank = ((scores > value) | ((scores == value) & before)).sum(axis=1)
    seconds = round(time.monotonic() - started, 3)
    return _Scored(candidate, standardised, training_score, rank, seconds)


def _choose(scored: Sequence[_Scored]) -> list[_Scored]:
    """Mark what has the best training score; the first of equals, none where none is known."""
    known = [s.training_score for s in scored if s.training_score is not None]
    if not known:
        return list(scored)
    best = next(i for i, s in enumerate(scored) if s.training_score == max(known))
    return [replace(s, chosen=True) if i == best else s for i, s in enumerate(scored)]


def _rows(
    task: str,
    head: str,
    scored: Sequence[_Scored],
    split: _Split,
    store: LatentStore,
    feature: str,
    pool: str | None,
    seed: int,
) -> list[Result]:
    """Make of each scored item a row a metric, with an interval."""
    kind, truth = TASKS[task], split.labels[split.test]
    classes = len(np.unique(split.labels[split.train]))
    rank = np.stack([item.rank for item in scored], axis=1)
    rows: dict[int, list[Result]] = {index: [] for index in range(len(scored))}
    for metric in kind.metrics:
        depth = min(classes, 5 if metric in ("rank5", "top5") else 1)
        hits = (rank < depth).astype(float)
        values, strata = hits.mean(axis=0), None
        if metric == "balanced_accuracy":
            strata = truth
            values = np.mean(
                [hits[truth == label].mean(axis=0) for label in np.unique(truth)], axis=0
            )
        means = _resampled_means(hits, split.units(kind), seed, strata)
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
        for index, item in enumerate(scored):
            model = item.features.model
            latent = model not in ("pixels", "pca")
            rows[index].append(Result(
                task=task, protocol=kind.protocol or head, head=head, model=model,
                weights_sha256=None if model in CONTROLS else str(store.attrs["weights_sha256"]),
                source=str(store.attrs["source"]), layer=item.features.layer,
                feature=feature if latent else None,
                pool=(pool or store.attrs.get("pool") or None) if latent else None,
                standardised=item.standardised, dims=item.features.X.shape[1],
                n_train=len(split.train), n_test=len(split.test), metric=metric,
                value=float(values[index]), ci_low=float(low[index]), ci_high=float(high[index]),
                chance=depth / classes, chosen=item.chosen,
                p_value=item.p_value if metric == kind.metrics[0] else None,
                seed=seed, seconds=item.seconds,
            ))  # fmt: skip
    return [row for index in rows for row in rows[index]]
