"""Tasks: data, split, protocol, heads and controls, to result rows.

`face_id` (`closed-set`, `open-set`), `face_verification` (`lfw-view1`, `lfw-view2`), `classification` (`knn`,
`ridge`, `linear-lbfgs`), `few_shot`, `omniglot_oneshot` and `factors`. Everything chosen is chosen on
training data, or on validation data where some are set apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vdvae_repr import baselines
from vdvae_repr.baselines import RandomTwin
from vdvae_repr.errors import TaskError
from vdvae_repr.features import Columns, Features, hash_arrays, hash_text
from vdvae_repr.latents.store import LatentStore
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.results import CONTROLS, Result
from vdvae_repr.tasks.factors import Factors
from vdvae_repr.tasks.few_shot import FewShot, OneShot
from vdvae_repr.tasks.identification import CLASSES, FACES, Identification
from vdvae_repr.tasks.kept import Kept
from vdvae_repr.tasks.open_set import OpenSet
from vdvae_repr.tasks.problem import Curve, Problem, Scored
from vdvae_repr.tasks.verification import Verification

RIVALS = CONTROLS[:3]  # that a layer must beat; shuffled labels are a check of the protocol
FILES = ("pairs", "pairs_train", "class_split")  # options that name one

Groups = dict[str, list[LayerSpec]]
"""Layers to be taken together, by the label of their row."""


def _face_id(store: LatentStore, protocol: str = "closed-set", **options: Any) -> Problem:
    """Make the problem of a protocol of `face_id`."""
    if protocol == "open-set":
        return OpenSet(store, **options)
    if protocol != "closed-set":
        raise TaskError(f"protocol: expected closed-set or open-set, found {protocol!r}")
    if "far" in options:
        raise TaskError("far is an option of face_id's protocol open-set, not of closed-set")
    options.pop("seed")
    return Identification(store, words=FACES, **options)


TASKS: dict[str, tuple[Callable[..., Problem], tuple[str, ...]]] = {
    # What makes a problem of a store and its images, and the options that it takes.
    "face_id": (_face_id, ("protocol", "far", "seed")),
    "face_verification": (Verification, ("pairs", "pairs_train", "far")),
    "classification": (partial(Identification, words=CLASSES), ()),
    "few_shot": (
        FewShot,
        ("ways", "shots", "queries", "episodes", "class_split", "seed"),
    ),
    "omniglot_oneshot": (OneShot, ()),
    "factors": (Factors, ("seed",)),
}


def run_task(
    task: str,
    store: LatentStore,
    *,
    layers: str | int | Sequence[str | int] = "all",
    feature: str | Sequence[str] | None = None,
    pool: str | Sequence[str | None] | None = None,
    joint: bool = False,
    heads: Sequence[str] | None = None,
    seed: int = 0,
    protocol: str | None = None,
    pairs: str | Path | None = None,
    pairs_train: str | Path | None = None,
    far: Sequence[float] | None = None,
    ways: int | None = None,
    shots: int | Sequence[int] | None = None,
    queries: int | None = None,
    episodes: int | None = None,
    class_split: str | Path | None = None,
    beside: Sequence[LatentStore] = (),
    keep: str | Path | None = None,
    notice: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int, str], None] = lambda done, total, line: None,
    curve: Callable[[Curve], None] = lambda curve: None,
) -> list[Result]:
    """Run a task over layers of a store, with its controls.

    Args:
        task: of `TASKS`.
        store: with labels, and images for the controls.
        layers: selector; each layer is one row.
        feature: stored feature, or several; if not given, `mean`, or the first where that is not stored.
        pool: None, "avg" or "avg:GRID", or several.
        joint: take the layers that a selector names together, as one feature vector; several selectors
            make several rows.
        heads: of the task's; all of them if not given.
        seed: of folds, episodes, shuffling, random initialisation and bootstrap.
        protocol: of face_id, `closed-set` or `open-set`.
        pairs: of face_verification, a list in LFW's format to be tested on.
        pairs_train: of face_verification, a list to find the threshold on.
        far: of face_verification and of open-set, false accept rates.
        ways: of few_shot, classes an episode; 5 if not given.
        shots: of few_shot, images a class to learn from, or several numbers of them; 1 if not given.
        queries: of few_shot, images a class to tell; if not given 15, or as many as small classes hold.
        episodes: of few_shot; 600 if not given.
        class_split: a CSV of `class` and `split` (base, val or novel) for few_shot.
        beside: stores of the same images from other models, whose layers become rows too.
        keep: folder where what was scored is kept, by content, so that the same is not scored again.
        notice: receives what the reader must know (the split, images left out).
        progress: receives how many of how many scores are there, and what is being scored.
        curve: receives the CMC (face_id) or ROC (face_verification) of chosen rows.

    Returns:
        Rows; of each head and model, one is `chosen` among all its candidates by training data.

    Raises:
        TaskError: the store cannot support the protocol, or has no images for the controls; an option of
            another task.
        DataError: a pair list that is malformed.
    """
    selectors = [layers] if isinstance(layers, str | int) else list(layers)
    named = features_of(store, feature)
    groups: dict[str, Groups] = {}
    for name in named:
        if joint:
            groups[name] = {str(s): store.distinct(s, name) for s in selectors}
        else:
            groups[name] = {spec.name: [spec] for spec in store.distinct(selectors, name)}
    asked = {
        "protocol": protocol, "pairs": pairs, "pairs_train": pairs_train, "far": far, "ways": ways,
        "queries": queries, "episodes": episodes, "class_split": class_split,
    }  # fmt: skip
    several = list(shots) if isinstance(shots, Sequence) else [shots]
    rows: list[Result] = []
    for number in several:
        options = {k: v for k, v in (asked | {"shots": number}).items() if v is not None}
        run = Measurement(
            task, store, options, heads=heads, seed=seed, beside=beside, keep=keep,
            notice=notice, progress=progress,
        )  # fmt: skip
        wanted = [(groups[name], name, how) for name in named for how in pools_of(pool)]
        rows += run.rows(wanted, curve)
    return rows


class Measurement:
    """A task on a store: scores candidates and their controls."""

    def __init__(
        self,
        task: str,
        store: LatentStore,
        options: dict[str, Any],
        *,
        heads: Sequence[str] | None,
        seed: int,
        beside: Sequence[LatentStore],
        keep: str | Path | None,
        notice: Callable[[str], None],
        progress: Callable[[int, int, str], None],
    ) -> None:
        self.task, self.store, self.seed = task, store, seed
        self._progress = progress
        if task not in TASKS:
            raise TaskError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
        kind, allowed = TASKS[task]
        if strange := sorted(set(options) - set(allowed)):
            owners = [name for name, (_, theirs) in TASKS.items() if strange[0] in theirs]
            whose = f"an option of {owners[0]}, not" if owners else "no option"
            raise TaskError(f"{strange[0]} is {whose} of {task}")
        if not store.has_images:
            raise TaskError(
                f"{store.path}: holds no images, so the controls pixels, pca and random-init cannot run; "
                "extract without --no-images"
            )
        for other in beside:
            if other.ids != store.ids:
                raise TaskError(
                    f"{other.path}: expected the images of {store.path} in their order, found others"
                )
        self._beside = dict(zip(_names([store, *beside])[1:], beside, strict=True))
        images = store.images()
        if "seed" in allowed:
            options = options | {"seed": seed}
        self.problem = kind(store, images=images, **options)
        self.heads = list(heads or self.problem.heads)
        if unknown := [head for head in self.heads if head not in self.problem.heads]:
            known = ", ".join(self.problem.heads)
            raise TaskError(f"unknown head {unknown[0]!r}; the heads of {task} are {known}")
        notice(self.problem.notice)
        self._pixels = _flat(images)
        if self.problem.mirrored:
            self._pixels = self._pixels + _flat(images[:, :, ::-1])
        self._kept = None if keep is None else Kept(keep, _told(task, options, store, images))
        self._made: dict[tuple[Any, ...], Columns] = {}

    def rows(
        self,
        wanted: Sequence[tuple[Groups, str, str | None]],
        curve: Callable[[Curve], None] = lambda curve: None,
        pruned: Sequence[Features] = (),
    ) -> list[Result]:
        """Score groups of layers, by feature and pooling, with their controls.

        Args:
            wanted: groups of layers, a stored feature and a pooling, each.
            curve: receives the curves of chosen rows.
            pruned: further candidates of the store's model.
        """
        specs = {
            spec.name: spec for groups, _, _ in wanted for own in groups.values() for spec in own
        }
        stored = sorted({feature.partition(":")[0] for _, feature, _ in wanted})
        with RandomTwin(self.store, list(specs), stored, self.seed) as twin:
            return self._rows_of(wanted, twin, curve, pruned)

    def _rows_of(
        self,
        wanted: Sequence[tuple[Groups, str, str | None]],
        twin: RandomTwin,
        curve: Callable[[Curve], None],
        pruned: Sequence[Features],
    ) -> list[Result]:
        name = str(self.store.attrs["model"])
        candidates = list(pruned)
        for groups, feature, pool in wanted:
            own = [self.columns(self.store, feature, pool), self.columns(twin, feature, pool)]
            for label, group in groups.items():
                for model, columns in zip((name, "random-init"), own, strict=True):
                    blocks = tuple(columns(spec) for spec in group)
                    candidates.append(Features(model, label, blocks, feature, pool))
        for model, other in self._beside.items():
            feature = other.default_feature
            columns = self.columns(other, feature, None)
            for spec in other.distinct("all", feature):
                candidates.append(Features(model, spec.name, (columns(spec),), feature))
        candidates += [baselines.pixels(self._pixels)]
        dims = {f.dims for f in candidates if f.model == name}
        candidates += self.problem.pca(self._pixels, sorted(dims))
        models = list(dict.fromkeys([name, *RIVALS, *(f.model for f in candidates)]))
        total, done = (len(candidates) + 1) * len(self.heads), 0
        # Features by features, so that what heads share is worked out once.
        by_head: dict[str, list[Scored]] = {head: [] for head in self.heads}
        for candidate in candidates:
            for head, scored in by_head.items():
                self._progress(done, total, _called(head, candidate))
                scored.append(self._score(head, candidate))
                done += 1
        rows: list[Result] = []
        for head, scored in by_head.items():
            grouped = {m: _choose([s for s in scored if s.features.model == m]) for m in models}
            rows += self._compared(head, name, grouped, curve)
            done += 1
            self._progress(done, total, head)
        return rows

    def _compared(
        self, head: str, name: str, grouped: dict[str, list[Scored]], curve: Callable[[Curve], None]
    ) -> list[Result]:
        """Compare what was chosen with the best control, add shuffled labels, make rows."""
        chosen = {m: next((s for s in group if s.chosen), None) for m, group in grouped.items()}
        picked = chosen[name]
        rivals = [s for s in (chosen[m] for m in RIVALS) if s is not None]
        if picked is not None and rivals:
            values = self.problem.figures(self.problem.metrics_of(head)[0], rivals, self.seed)
            best = rivals[int(np.argmax([figure.value for figure in values]))]
            p = self.problem.p_value(picked, best, self.seed)
            grouped[name] = [replace(s, p_value=p) if s is picked else s for s in grouped[name]]
        basis = grouped[name][0].features if picked is None else picked.features
        control = self._score(head, replace(basis, model="shuffled-labels"), shuffled=True)
        every = [*(s for group in grouped.values() for s in group), control]
        for item in every:
            if item.chosen or item is control:
                drawn = self.problem.curve(head, item)
                if drawn is not None:
                    curve(drawn)
        return self._rows(head, every)

    def _score(self, head: str, features: Features, shuffled: bool = False) -> Scored:
        if self._kept is None:
            return self.problem.score(head, features, self.seed, shuffled)
        score = partial(self.problem.score, head, features, self.seed, shuffled)
        return self._kept.get(features, (head, str(self.seed), str(shuffled)), score)

    def columns(
        self, of: LatentStore | RandomTwin, feature: str, pool: str | None
    ) -> Callable[[LayerSpec], Columns]:
        """Return what makes columns of layers, each once; of mirrored images too where they are added."""

        def view(spec: LayerSpec, mirrored: bool) -> Columns:
            if isinstance(of, RandomTwin):
                return of.columns(spec, feature, pool, mirrored)
            return Columns.of_layer(of.mirrored() if mirrored else of, spec, feature, pool)

        def columns(spec: LayerSpec) -> Columns:
            key = of, spec.name, feature, pool
            if key not in self._made:
                own = view(spec, False)
                self._made[key] = own + view(spec, True) if self.problem.mirrored else own
            return self._made[key]

        return columns

    def _rows(self, head: str, scored: Sequence[Scored]) -> list[Result]:
        """Make of each scored item a row a metric."""
        problem, attrs = self.problem, self.store.attrs
        names = problem.metrics_of(head)
        metrics = {m: problem.figures(m, scored, self.seed) for m in names}
        weights = {name: str(s.attrs["weights_sha256"]) for name, s in self._beside.items()}
        weights |= dict.fromkeys(
            (str(attrs["model"]), "shuffled-labels"), str(attrs["weights_sha256"])
        )
        rows = []
        for index, item in enumerate(scored):
            of = item.features
            for metric, figures in metrics.items():
                figure = figures[index]
                rows.append(Result(
                    task=self.task, protocol=problem.protocol(head), head=head, model=of.model,
                    weights_sha256=weights.get(of.model), source=str(attrs["source"]), layer=of.layer,
                    feature=of.feature,
                    pool=(of.pool or attrs.get("pool") or None) if of.feature else None,
                    standardised=item.standardised, dims=of.dims,
                    n_train=problem.n_train, n_test=problem.n_test, metric=metric,
                    value=figure.value, ci_low=figure.low, ci_high=figure.high, se=figure.se,
                    std=figure.std, chance=figure.chance, chosen=item.chosen,
                    p_value=item.p_value if metric == names[0] else None,
                    seed=self.seed, seconds=item.seconds,
                ))  # fmt: skip
        return rows


def features_of(store: LatentStore, feature: str | Sequence[str] | None) -> list[str]:
    """Return the names of stored features that are meant."""
    if feature is None:
        return [store.default_feature]
    return [feature] if isinstance(feature, str) else list(feature)


def pools_of(pool: str | Sequence[str | None] | None) -> list[str | None]:
    """Return the poolings that are meant."""
    return [pool] if pool is None or isinstance(pool, str) else list(pool)


def _names(stores: Sequence[LatentStore]) -> list[str]:
    """Return the models' names, numbered from the second of a name on: `faces64 (2)`."""
    names = [str(store.attrs["model"]) for store in stores]
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{n} ({count + 1})" if count else n for n, count in zip(names, before, strict=True)]


def _flat(images: Any) -> Any:
    return images.reshape(len(images), -1).astype(np.float32)


def _called(head: str, features: Features) -> str:
    what = [features.model, features.layer or str(features.dims), features.feature, features.pool]
    return f"{head}: {' '.join(part for part in what if part)}"


def _told(task: str, options: dict[str, Any], store: LatentStore, images: Any) -> str:
    """Return a hash of everything but features, head and seed that a score depends on."""
    factors = [
        f"{name} {hash_arrays(np.asarray(values, str))}" for name, values in store.factors.items()
    ]
    told = {
        name: hash_arrays(np.fromfile(given, np.uint8)) if name in FILES else repr(given)
        for name, given in options.items()
    }
    return hash_text(
        task, json.dumps(told, sort_keys=True), hash_arrays(images, store.labels), *store.ids, *store.splits,
        *store.label_names, *factors,
    )  # fmt: skip


def _choose(scored: Sequence[Scored]) -> list[Scored]:
    """Mark what has the best training score; the first of equals, none where none is known."""
    known = [s.training_score for s in scored if s.training_score is not None]
    if not known:
        return list(scored)
    best = next(i for i, s in enumerate(scored) if s.training_score == max(known))
    return [replace(s, chosen=True) if i == best else s for i, s in enumerate(scored)]
