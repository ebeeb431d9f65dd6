"""Tasks: data, split, protocol, heads and controls, to result rows.

`face_id`, protocol `closed-set`: gallery and probe images of known people; nearest neighbour by cosine,
and `linear-lbfgs` on the gallery. Everything chosen is chosen on the gallery.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from vdvae_repr.config import ModelConfig
from vdvae_repr.errors import TaskError
from vdvae_repr.heads.linear import LinearLBFGS
from vdvae_repr.heads.neighbors import NearestNeighbor
from vdvae_repr.latents.store import LatentStore, pool_grid
from vdvae_repr.model.layers import select_layers
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.results import Result

TASKS = ("face_id",)
HEADS = ("nearest-neighbor", "linear-lbfgs")
RESAMPLES = 10_000

Array = NDArray[Any]


@dataclass(frozen=True)
class _Split:
    """Row numbers of gallery and probe, and everybody's label."""

    gallery: NDArray[np.int64]
    probe: NDArray[np.int64]
    labels: NDArray[np.int64]
    notice: str


@dataclass(frozen=True)
class _Features:
    """Candidates of one model under one name, and how to standardise them for the linear head."""

    model: str
    layer: str | None
    X: Array
    standardise: bool = True


@dataclass(frozen=True)
class _Scored:
    """A row with what is needed to choose among rows and to compare them."""

    row: Result
    training_score: float | None
    correct: NDArray[np.bool_]
    among_five: NDArray[np.bool_]


def run_task(
    task: str,
    store: LatentStore,
    *,
    layers: str | int | Sequence[str | int] = "all",
    feature: str = "mean",
    pool: str | None = None,
    joint: bool = False,
    heads: Sequence[str] = HEADS,
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
        heads: of `HEADS`.
        seed: of folds, shuffling, random initialisation and bootstrap.
        notice: receives what the reader must know (the split, images left out).
        progress: receives what is being scored.

    Raises:
        TaskError: the store cannot support the protocol, or has no images for the controls.
    """
    if task not in TASKS:
        raise TaskError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    if unknown := [head for head in heads if head not in HEADS]:
        raise TaskError(f"unknown head {unknown[0]!r}; the heads are {', '.join(HEADS)}")
    split = closed_set_split(store)
    notice(split.notice)
    if not store.has_images:
        raise TaskError(
            f"{store.path}: holds no images, so the controls pixels, pca and random-init cannot run; "
            "extract without --no-images"
        )
    images = store.images()
    _refuse_leaks(images, store.ids, split)
    selectors = [layers] if isinstance(layers, str | int) else list(layers)
    if not joint:
        selectors = [spec.name for spec in select_layers(store.layers, selectors)]
    groups = {
        str(selector): [spec.name for spec in select_layers(store.layers, selector)]
        for selector in selectors
    }
    name = str(store.attrs["model"])
    learned = [
        _Features(name, label, store.matrix(group, feature, pool)[0])
        for label, group in groups.items()
    ]
    random = _random_init(store, images, groups, feature, pool, seed)
    pixels = images.reshape(len(images), -1).astype(np.float32)
    controls = [_Features("pixels", None, pixels)]
    controls += _pca(pixels, split, [f.X.shape[1] for f in learned])

    rows: list[Result] = []
    for head in heads:
        scored = []
        for candidate in [*learned, *controls, *random]:
            progress(f"{head}: {candidate.model} {candidate.layer or candidate.X.shape[1]}")
            scored.append(_score(head, candidate, split, store, feature, pool, seed, split.labels))
        ours = _choose([s for s in scored if s.row.model == name])
        others = [
            _choose([s for s in scored if s.row.model == model])
            for model in ("pixels", "pca", "random-init")
        ]
        picked = next((s for s in ours if s.row.chosen), None)
        rivals = [s for group in others for s in group if s.row.chosen]
        if picked is not None and rivals:
            best = max(rivals, key=lambda s: s.row.value)
            p = paired_bootstrap(picked.correct, best.correct, split.labels[split.probe], seed)
            ours = [replace(s, row=replace(s.row, p_value=p)) if s is picked else s for s in ours]
        shuffled = split.labels.copy()
        rng = np.random.default_rng(seed)
        shuffled[split.gallery] = rng.permutation(shuffled[split.gallery])
        basis = learned[0]
        if picked is not None:
            basis = next(f for f in learned if f.layer == picked.row.layer)
        control = replace(basis, model="shuffled-labels")
        last = _score(head, control, split, store, feature, pool, seed, shuffled)
        for item in [*ours, *(s for group in others for s in group), last]:
            rows += [item.row, _rank5(item, split.labels[split.probe])]
    return rows


def closed_set_split(store: LatentStore) -> _Split:
    """Gallery = train, probe = test (or val); without splits, the first half of each person's images.

    Raises:
        TaskError: fewer than two people, or a person with images on one side only.
    """
    labels, splits = store.labels, np.array(store.splits)
    known = labels >= 0
    left_out = f"; {np.sum(~known)} unlabelled images left out" if not known.all() else ""
    people = np.unique(labels[known])
    if len(people) < 2:
        raise TaskError(
            f"{store.path}: identification needs at least 2 labelled people, found {len(people)}; "
            "give a folder with one subfolder a person"
        )
    if (splits == "train").any():
        test = "test" if (splits == "test").any() else "val"
        gallery, probe = known & (splits == "train"), known & (splits == test)
        text = f"gallery: split train, probe: split {test}"
    else:
        gallery = np.zeros(len(labels), dtype=bool)
        for person in people:
            members = np.flatnonzero(labels == person)
            gallery[members[: len(members) // 2]] = True
        probe = known & ~gallery
        text = "no splits: gallery is the first half of each person's images, probe the rest"
    for person in people:
        counts = [int(np.sum(side & (labels == person))) for side in (gallery, probe)]
        if 0 in counts:
            name = store.label_names[person] if person < len(store.label_names) else person
            raise TaskError(
                f"{store.path}: expected images of {name} in gallery and probe, "
                f"found {counts[0]} and {counts[1]}; give at least 2 images of each person"
            )
    text += f" ({gallery.sum()} and {probe.sum()} images, {len(people)} people){left_out}"
    return _Split(np.flatnonzero(gallery), np.flatnonzero(probe), labels, text)


def paired_bootstrap(
    a: NDArray[np.bool_], b: NDArray[np.bool_], people: NDArray[np.int64], seed: int
) -> float:
    """Two-sided p-value that two scores on the same items differ; people are resampled, not images."""
    difference = a.astype(float) - b.astype(float)
    means = _resampled_means(difference, people, seed)
    low, high = float(np.mean(means <= 0)), float(np.mean(means >= 0))
    return min(1.0, 2 * max(min(low, high), 1 / RESAMPLES))


def _resampled_means(
    values: NDArray[np.float64], people: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    """Means over images of resamples of people, (RESAMPLES,)."""
    _, index = np.unique(people, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    return np.asarray((draws @ sums) / (draws @ counts))


def _refuse_leaks(images: Array, ids: Sequence[str], split: _Split) -> None:
    seen = {images[i].tobytes(): i for i in split.gallery}
    for i in split.probe:
        if (twin := seen.get(images[i].tobytes())) is not None:
            raise TaskError(
                f"{ids[i]} in the probe is the same image as {ids[twin]} in the gallery; remove one"
            )


def _pca(pixels: Array, split: _Split, dims: Sequence[int]) -> list[_Features]:
    """PCA of the pixels at each layer's dimensions, and at sizes to choose from; not rescaled."""
    largest = min(len(split.gallery) - 1, pixels.shape[1])
    sizes = {min(d, largest) for d in dims} | {s for s in (8, 16, 32, 64, 128, 256) if s < largest}
    pca = PCA(largest, svd_solver="full").fit(pixels[split.gallery])
    projected = pca.transform(pixels)
    return [_Features("pca", None, projected[:, :size], False) for size in sorted(sizes)]


def _random_init(
    store: LatentStore,
    images: Array,
    groups: Mapping[str, Sequence[str]],
    feature: str,
    pool: str | None,
    seed: int,
) -> list[_Features]:
    """The same features from the same architecture with its initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VDVAE(ModelConfig.from_json(store.attrs["config"])).eval()
    names = sorted({name for group in groups.values() for name in group})
    parts: dict[str, list[Array]] = {name: [] for name in names}
    for start in range(0, len(images), 32):
        batch, ids = images[start : start + 32], store.ids[start : start + 32]
        read = model.posterior(
            batch, names, "sample" if store.attrs["z"] == "sample" else "mean",
            seed=int(store.attrs["seed"]), ids=ids,
        )  # fmt: skip
        for name in names:
            value = pool_grid(getattr(read[name], feature).numpy(), pool)
            parts[name].append(value.reshape(len(batch), -1))
    stacked = {name: np.concatenate(values) for name, values in parts.items()}
    return [
        _Features("random-init", label, np.concatenate([stacked[name] for name in group], axis=1))
        for label, group in groups.items()
    ]


def _score(
    head: str,
    candidate: _Features,
    split: _Split,
    store: LatentStore,
    feature: str,
    pool: str | None,
    seed: int,
    labels: NDArray[np.int64],
) -> _Scored:
    started = time.monotonic()
    X, y = candidate.X, labels
    gallery, probe = split.gallery, split.probe
    training_score: float | None = None
    if head == "nearest-neighbor":
        nearest = NearestNeighbor(center=True).fit(X[gallery], y[gallery])
        if np.bincount(y[gallery])[np.unique(y[gallery])].min() > 1:
            training_score = float(np.mean(nearest.leave_one_out() == y[gallery]))
        scores, classes = nearest.class_scores(X[probe]), nearest.classes_
        standardised = False
    else:
        linear = LinearLBFGS(standardize=candidate.standardise, seed=seed).fit(
            X[gallery], y[gallery]
        )
        if linear.search_ == "k-fold":
            training_score = float(linear.cv_scores_.max())
        scores, classes = linear.class_scores(X[probe]), linear.classes_
        standardised = candidate.standardise
    truth = split.labels[probe]
    own = scores[np.arange(len(probe)), np.searchsorted(classes, truth)]
    rank = (scores > own[:, None]).sum(axis=1)
    correct = rank == 0
    interval = np.quantile(_resampled_means(correct.astype(float), truth, seed), [0.025, 0.975])
    latent = candidate.model not in ("pixels", "pca")
    row = Result(
        task="face_id",
        protocol="closed-set",
        head=head,
        model=candidate.model,
        weights_sha256=None if candidate.model in ("pixels", "pca", "random-init")
        else str(store.attrs["weights_sha256"]),
        source=str(store.attrs["source"]),
        layer=candidate.layer,
        feature=feature if latent else None,
        pool=pool if latent else None,
        standardised=standardised,
        dims=X.shape[1],
        n_train=len(gallery),
        n_test=len(probe),
        metric="rank1",
        value=float(correct.mean()),
        ci_low=float(interval[0]),
        ci_high=float(interval[1]),
        chance=1 / len(classes),
        seed=seed,
        seconds=round(time.monotonic() - started, 3),
    )  # fmt: skip
    return _Scored(row, training_score, correct, rank < 5)


def _choose(scored: Sequence[_Scored]) -> list[_Scored]:
    """Mark the row of the best score on the gallery; the first of equals, none where none is known."""
    known = [s.training_score for s in scored if s.training_score is not None]
    if not known:
        return list(scored)
    best = next(i for i, s in enumerate(scored) if s.training_score == max(known))
    return [
        replace(s, row=replace(s.row, chosen=True)) if i == best else s
        for i, s in enumerate(scored)
    ]


def _rank5(item: _Scored, people: NDArray[np.int64]) -> Result:
    """The same row's rank-5 rate."""
    interval = np.quantile(
        _resampled_means(item.among_five.astype(float), people, item.row.seed), [0.025, 0.975]
    )
    chance = None if item.row.chance is None else min(1.0, 5 * item.row.chance)
    return replace(
        item.row,
        metric="rank5",
        value=float(item.among_five.mean()),
        ci_low=float(interval[0]),
        ci_high=float(interval[1]),
        chance=chance,
        p_value=None,
    )
