"""Tasks: data, split, protocol, heads and controls, to result rows.

`face_id` (`closed-set`), `face_verification` (`lfw-view1`, `lfw-view2`), `classification` (`knn`, `ridge`,
`linear-lbfgs`), `few_shot` and `omniglot_oneshot`. Everything chosen is chosen on training data, or on
validation data where some are set apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vdvae_repr import baselines
from vdvae_repr.baselines import Features
from vdvae_repr.errors import TaskError
from vdvae_repr.latents.store import LatentStore
from vdvae_repr.results import Result
from vdvae_repr.tasks.few_shot import FewShot, OneShot
from vdvae_repr.tasks.identification import CLASSES, FACES, Identification
from vdvae_repr.tasks.problem import Problem, Scored
from vdvae_repr.tasks.verification import Verification

CONTROLS = ("pixels", "pca", "random-init")


@dataclass(frozen=True)
class Task:
    """How a problem is made of a store and its images, and the options that it takes."""

    make: Callable[..., Problem]
    heads: tuple[str, ...]
    metric: str
    options: tuple[str, ...] = ()


TASKS = {
    "face_id": Task(partial(Identification, words=FACES), FACES.heads, FACES.metrics[0]),
    "face_verification": Task(
        Verification, Verification.heads, "accuracy", ("pairs", "pairs_train", "far")
    ),
    "classification": Task(
        partial(Identification, words=CLASSES), CLASSES.heads, CLASSES.metrics[0]
    ),
    "few_shot": Task(
        FewShot,
        FewShot.heads,
        FewShot.metrics[0],
        ("ways", "shots", "queries", "episodes", "class_split", "seed"),
    ),
    "omniglot_oneshot": Task(OneShot, OneShot.heads, OneShot.metrics[0]),
}


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
    pairs: str | Path | None = None,
    pairs_train: str | Path | None = None,
    far: Sequence[float] | None = None,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    episodes: int | None = None,
    class_split: str | Path | None = None,
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
        seed: of folds, episodes, shuffling, random initialisation and bootstrap.
        pairs: of face_verification, a list in LFW's format to be tested on.
        pairs_train: of face_verification, a list to find the threshold on.
        far: of face_verification, false accept rates.
        ways: of few_shot, classes an episode; 5 if not given.
        shots: of few_shot, images a class to learn from; 1 if not given.
        queries: of few_shot, images a class to tell; 15 if not given.
        episodes: of few_shot; 600 if not given.
        class_split: a CSV of `class` and `split` (base, val or novel) for few_shot.
        notice: receives what the reader must know (the split, images left out).
        progress: receives what is being scored.

    Raises:
        TaskError: the store cannot support the protocol, or has no images for the controls; an option of
            another task.
        DataError: a pair list that is malformed.
    """
    if task not in TASKS:
        raise TaskError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    kind = TASKS[task]
    asked = {
        "pairs": pairs, "pairs_train": pairs_train, "far": far, "ways": ways, "shots": shots,
        "queries": queries, "episodes": episodes, "class_split": class_split,
    }  # fmt: skip
    options: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if strange := sorted(set(options) - set(kind.options)):
        owner = next(name for name, other in TASKS.items() if strange[0] in other.options)
        raise TaskError(f"{strange[0]} is an option of {owner}, not of {task}")
    if unknown := [head for head in heads or () if head not in kind.heads]:
        raise TaskError(
            f"unknown head {unknown[0]!r}; the heads of {task} are {', '.join(kind.heads)}"
        )
    if not store.has_images:
        raise TaskError(
            f"{store.path}: holds no images, so the controls pixels, pca and random-init cannot run; "
            "extract without --no-images"
        )
    images = store.images()
    if "seed" in kind.options:
        options["seed"] = seed
    problem = kind.make(store, images=images, **options)
    notice(problem.notice)
    feature = feature or store.default_feature
    selectors = [layers] if isinstance(layers, str | int) else list(layers)
    if not joint:
        selectors = [spec.name for spec in store.distinct(selectors, feature)]
    groups = {
        str(selector): [spec.name for spec in store.distinct(selector, feature)]
        for selector in selectors
    }
    name = str(store.attrs["model"])
    views = [(store, images)]
    if problem.mirrored:
        views.append((store.mirrored(), np.ascontiguousarray(images[:, :, ::-1])))
    learned = _added(
        [
            Features(name, label, view.matrix(group, feature, pool)[0])
            for label, group in groups.items()
        ]
        for view, _ in views
    )
    raw = _added([baselines.pixels(pictures)] for _, pictures in views)[0]
    controls = [raw, *problem.pca(raw, [f.X.shape[1] for f in learned])]
    controls += _added(
        baselines.random_init(view, pictures, groups, feature, pool, seed)
        for view, pictures in views
    )

    # Features by features, so that what heads share is worked out once.
    by_head: dict[str, list[Scored]] = {head: [] for head in heads or kind.heads}
    for candidate in [*learned, *controls]:
        for head, scored in by_head.items():
            progress(f"{head}: {candidate.model} {candidate.layer or candidate.X.shape[-1]}")
            scored.append(problem.score(head, candidate, seed))
    rows: list[Result] = []
    for head, scored in by_head.items():
        models = [_choose([s for s in scored if s.features.model == m]) for m in (name, *CONTROLS)]
        picked, *rivals = (next((s for s in group if s.chosen), None) for group in models)
        basis = learned[0] if picked is None else picked.features
        known = [s for s in rivals if s is not None]
        if picked is not None and known:
            values = problem.figures(problem.metrics[0], known, seed)
            best = known[int(np.argmax([figure.value for figure in values]))]
            p = problem.p_value(picked, best, seed)
            models[0] = [replace(s, p_value=p) if s is picked else s for s in models[0]]
        control = problem.score(head, replace(basis, model="shuffled-labels"), seed, shuffled=True)
        every = [*(s for group in models for s in group), control]
        rows += _rows(task, head, every, problem, store, feature, pool, seed)
    return rows


def _added(views: Iterable[list[Features]]) -> list[Features]:
    """Add up the features of several views of the same images."""
    first, *others = views
    for other in others:
        first = [replace(a, X=a.X + b.X) for a, b in zip(first, other, strict=True)]
    return list(first)


def _choose(scored: Sequence[Scored]) -> list[Scored]:
    """Mark what has the best training score; the first of equals, none where none is known."""
    known = [s.training_score for s in scored if s.training_score is not None]
    if not known:
        return list(scored)
    best = next(i for i, s in enumerate(scored) if s.training_score == max(known))
    return [replace(s, chosen=True) if i == best else s for i, s in enumerate(scored)]


def _rows(
    task: str,
    head: str,
    scored: Sequence[Scored],
    problem: Problem,
    store: LatentStore,
    feature: str,
    pool: str | None,
    seed: int,
) -> list[Result]:
    """Make of each scored item a row a metric."""
    by_metric = {metric: problem.figures(metric, scored, seed) for metric in problem.metrics}
    rows = []
    for index, item in enumerate(scored):
        model = item.features.model
        latent = model not in ("pixels", "pca")
        for metric, figures in by_metric.items():
            figure = figures[index]
            rows.append(Result(
                task=task, protocol=problem.protocol(head), head=head, model=model,
                weights_sha256=None if model in CONTROLS else str(store.attrs["weights_sha256"]),
                source=str(store.attrs["source"]), layer=item.features.layer,
                feature=feature if latent else None,
                pool=(pool or store.attrs.get("pool") or None) if latent else None,
                standardised=item.standardised, dims=item.features.X.shape[-1],
                n_train=problem.n_train, n_test=problem.n_test, metric=metric,
                value=figure.value, ci_low=figure.low, ci_high=figure.high, se=figure.se, std=figure.std,
                chance=figure.chance, chosen=item.chosen,
                p_value=item.p_value if metric == problem.metrics[0] else None,
                seed=seed, seconds=item.seconds,
            ))  # fmt: skip
    return rows
