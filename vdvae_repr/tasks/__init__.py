"""Tasks: data, split, protocol, heads and controls, to result rows.

`face_id` (`closed-set`, `open-set`), `face_verification` (`lfw-view1`, `lfw-view2`), `classification` (`knn`,
`ridge`, `linear-lbfgs`), `few_shot`, `omniglot_oneshot` and `factors`. Everything chosen is chosen on
training data, or on validation data where some are set apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdvae_repr import baselines
from vdvae_repr.baselines import RandomTwin
from vdvae_repr.errors import LayerError, TaskError
from vdvae_repr.features import Columns, Features, hash_arrays, hash_text
from vdvae_repr.latents.base import Latents, same_images
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.results import CONTROLS, LOWER_IS_BETTER, Noise, Result
from vdvae_repr.tasks.factors import Factors
from vdvae_repr.tasks.few_shot import FewShot, OneShot
from vdvae_repr.tasks.identification import CLASSES, FACES, Identification
from vdvae_repr.tasks.kept import Kept
from vdvae_repr.tasks.open_set import OpenSet
from vdvae_repr.tasks.problem import Curve, Problem, Scored, expect, expect_several, expect_store
from vdvae_repr.tasks.verification import Verification

RIVALS = CONTROLS[:3]  # that a layer must beat; shuffled labels are a check of the protocol
FILES = ("pairs", "pairs_train", "class_split")  # options that name one
NUMBERS = ("ways", "shots", "queries", "episodes")  # options that are whole numbers

Groups = dict[str, list[LayerSpec]]
"""Layers to be taken together, by the label of their row."""


class Wanted(NamedTuple):
    """Groups of a store's layers under a stored feature and a pooling, and the model's name in rows.

    Draws are compared with means, and not to be chosen.
    """

    model: str
    store: Latents
    groups: Groups
    feature: str
    pool: str | None = None
    choosable: bool = True

    @property
    def pooled(self) -> str | None:
        """How the features are pooled, at reading or before."""
        return self.pool or self.store.info.pool


def _face_id(store: Latents, protocol: str = "closed-set", **options: Any) -> Problem:
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
    store: Latents,
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
    beside: Sequence[Latents] = (),
    drawn: Latents | None = None,
    keep: str | Path | None = None,
    notice: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int, str], None] = lambda done, total, line: None,
    curve: Callable[[Curve], None] = lambda curve: None,
    noise: Callable[[Noise], None] = lambda noise: None,
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
        pairs: of face_verification, a list to be tested on: LFW's, or a CSV of two ids and `same`.
        pairs_train: of face_verification, a list to find the threshold on.
        far: of face_verification and of open-set, false accept rates.
        ways: of few_shot, classes an episode; 5 if not given.
        shots: of few_shot, images a class to learn from, or several numbers of them; 1 if not given.
        queries: of few_shot, images a class to tell; if not given 15, or as many as small classes hold.
        episodes: of few_shot; 600 if not given.
        class_split: a CSV of `class` and `split` (base, val or novel) for few_shot.
        beside: stores of the same images from other models, whose layers become rows too: those selected of
            a VDVAE beside a VDVAE, or of other encoders beside each other; else all of them.
        drawn: store of several draws of z of the same images by the same weights; one draw of each layer
            (feature `z:0`) and the mean of them (`z`) become rows beside `mean`, never chosen.
        keep: folder where what was scored is kept, by content, so that the same is not scored again.
        notice: receives what the reader must know (the split, images left out).
        progress: receives how many of how many scores are there, and what is being scored.
        curve: receives the CMC (face_id) or ROC (face_verification) of chosen rows.
        noise: receives what drawing costs each layer, with paired tests.

    Returns:
        Rows; of each head and model, one is `chosen` among all its candidates by training data.

    Raises:
        TaskError: the store cannot support the protocol, or has no images for the controls; an option of
            another task.
        DataError: a pair list that is malformed.
    """
    expect_store(store)
    if drawn is not None:
        expect_store(drawn, "drawn")
    expect_several(beside, "beside", Latents, "open stores")
    selectors = [layers] if isinstance(layers, str | int) else layers
    expect_several(selectors, "layers", str | Integral, "selectors")

    def selected(model: str, of: Latents, name: str, how: str | None) -> Wanted:
        if joint:
            return Wanted(model, of, {str(s): of.distinct(s, name) for s in selectors}, name, how)
        return Wanted(model, of, {s.name: [s] for s in of.distinct(selectors, name)}, name, how)

    read = [(name, how) for name in features_of(store, feature) for how in pools_of(pool)]
    own = store.info.model
    wanted = [selected(own, store, *how) for how in read]
    for model, other in names_beside(store, beside).items():
        if _of_a_vdvae(other) != _of_a_vdvae(store):
            wanted.append(singly(model, other))
            continue
        try:
            wanted += [selected(model, other, *how) for how in read]
        except LayerError as error:
            raise TaskError(f"{other.path}: {error}") from error
    if drawn is not None:
        _check_drawn(drawn, store, wanted, notice)
        wanted += [
            item._replace(store=drawn, feature=feature, choosable=False)
            for feature in ("z:0", "z")
            for item in wanted
            if item.model == own
        ]
    asked = {
        "protocol": protocol, "pairs": pairs, "pairs_train": pairs_train, "far": far, "ways": ways,
        "queries": queries, "episodes": episodes, "class_split": class_split,
    }  # fmt: skip
    several = list(dict.fromkeys(shots)) if isinstance(shots, Sequence) else [shots]
    rows: list[Result] = []
    for number in several:
        options = {k: v for k, v in (asked | {"shots": number}).items() if v is not None}
        run = Measurement(
            task, store, options, heads=heads, seed=seed, beside=beside, keep=keep,
            notice=notice, progress=progress,
        )  # fmt: skip
        rows += run.rows(wanted, curve, noise=noise)
    return rows


class Measurement:
    """A task on a store: scores candidates and their controls."""

    def __init__(
        self,
        task: str,
        store: Latents,
        options: dict[str, Any],
        *,
        heads: Sequence[str] | None,
        seed: int,
        beside: Sequence[Latents],
        keep: str | Path | None,
        notice: Callable[[str], None],
        progress: Callable[[int, int, str], None],
    ) -> None:
        self.task, self.store, self.seed = task, store, seed
        self._progress, self._notice = progress, notice
        expect_store(store)
        expect_several(beside, "beside", Latents, "open stores")
        expect(task, "task", str, "the name of a task")
        expect(seed, "seed", Integral, "a whole number")
        expect(keep, "keep", str | Path | None, "a folder")
        for name, value in options.items():
            if name in FILES:
                expect(value, name, str | Path, "a file")
            elif name in NUMBERS:
                expect(value, name, Integral, "a whole number")
        if "far" in options:
            rates = options["far"]
            options = options | {"far": [rates] if isinstance(rates, Real) else rates}
            expect_several(options["far"], "far", Real, "rates")
        heads = [heads] if isinstance(heads, str) else heads
        if heads is not None:
            expect_several(heads, "heads", str, "names")
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
                "extract without images=False"
            )
        for other in beside:
            _check_images(other, store, notice)
        self._beside = names_beside(store, beside)
        images = store.images()
        if "seed" in allowed:
            options = options | {"seed": seed}
        self.problem = kind(store, images=images, **options)
        self.heads = list(heads or self.problem.heads)
        if unknown := [head for head in self.heads if head not in self.problem.heads]:
            known = ", ".join(self.problem.heads)
            raise TaskError(f"unknown head {unknown[0]!r}; the heads of {task} are {known}")
        notice(self.problem.notice)
        self._image_side = images.shape[1]
        self._pixels = _flat(images)
        if self.problem.mirrored:
            self._pixels = self._pixels + _flat(images[:, :, ::-1])
        self._kept = None if keep is None else Kept(keep, _told(task, options, store, images))
        self._made: dict[tuple[Any, ...], Columns] = {}

    def rows(
        self,
        wanted: Sequence[Wanted],
        curve: Callable[[Curve], None] = lambda curve: None,
        pruned: Sequence[Features] = (),
        noise: Callable[[Noise], None] = lambda noise: None,
    ) -> list[Result]:
        """Score groups of layers, by feature and pooling, with their controls.

        Args:
            wanted: of the store, of those beside, and of that of draws.
            curve: receives the curves of chosen rows.
            pruned: further candidates of the store's model.
            noise: receives what drawing costs.
        """
        own = [item for item in wanted if item.store is self.store]
        specs = {spec.name for item in own for group in item.groups.values() for spec in group}
        layers = [spec.name for spec in self.store.layers if spec.name in specs]
        stored = sorted({item.feature.partition(":")[0] for item in own})
        with RandomTwin(self.store, layers, stored, self.seed) as twin:
            if line := twin.notice(self._image_side):
                self._notice(line)
            return self._rows_of(wanted, twin, curve, pruned, noise)

    def _rows_of(
        self,
        wanted: Sequence[Wanted],
        twin: RandomTwin,
        curve: Callable[[Curve], None],
        pruned: Sequence[Features],
        noise: Callable[[Noise], None],
    ) -> list[Result]:
        name = self.store.info.model
        candidates, never_chosen = list(pruned), []
        for item in wanted:
            sides = {item.model: self.columns(item.store, item.feature, item.pool)}
            if item.model == name and item.choosable and not twin.refusal:
                sides["random-init"] = self.columns(twin, item.feature, item.pool)
            for label, group in item.groups.items():
                for model, columns in sides.items():
                    blocks = tuple(columns(spec) for spec in group)
                    candidates.append(Features(model, label, blocks, item.feature, item.pooled))
                    never_chosen += [] if item.choosable else candidates[-1:]
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
                score = self._score(head, candidate)
                if candidate in never_chosen:
                    score = replace(score, training_score=None)
                scored.append(score)
                done += 1
        rows: list[Result] = []
        for head, scored in by_head.items():
            grouped = {m: _choose([s for s in scored if s.features.model == m]) for m in models}
            rows += self._compared(head, name, grouped, curve)
            for found in self._noise_of(head, scored, wanted):
                noise(found)
            done += 1
            self._progress(done, total, head)
        return rows

    def _noise_of(
        self, head: str, scored: Sequence[Scored], wanted: Sequence[Wanted]
    ) -> Iterator[Noise]:
        """Compare one draw of a layer, and the mean of draws, with its mean."""
        by_read = {
            (s.features.layer, s.features.pool, s.features.feature): s
            for s in scored
            if s.features.model == self.store.info.model
        }
        metric = self.problem.metrics_of(head)[0]
        rows = [
            (layer, item.pooled, item.store.draws or 0)
            for item in wanted
            if item.feature == "z:0" and not item.choosable
            for layer in item.groups
        ]
        if not rows:
            return
        reads = [by_read[layer, pool, z] for layer, pool, _ in rows for z in ("mean", "z:0", "z")]
        values = iter([figure.value for figure in self.problem.figures(metric, reads, self.seed)])
        means = [mean for mean in reads[::3] for _ in range(2)]
        drawn = [score for number, score in enumerate(reads) if number % 3]
        p = iter(self.problem.p_values(list(zip(drawn, means, strict=True)), self.seed))
        for (layer, pool, draws), mean in zip(rows, reads[::3], strict=True):
            yield Noise(
                head=head, n_train=self.problem.n_train, layer=layer, pool=pool, dims=mean.features.dims,
                draws=draws, metric=metric, mean=next(values), one_z=next(values), mean_of_z=next(values),
                p_one_z=next(p), p_mean_of_z=next(p),
            )  # fmt: skip

    def _compared(
        self, head: str, name: str, grouped: dict[str, list[Scored]], curve: Callable[[Curve], None]
    ) -> list[Result]:
        """Compare what was chosen with the control that tests best, add shuffled labels, make rows."""
        picked = next((s for s in grouped[name] if s.chosen), None)
        if picked is not None and not any(s.chosen for s in grouped["pca"]):
            equal = [s for s in grouped["pca"] if s.features.dims <= picked.features.dims]
            grouped["pca"] = [replace(s, chosen=s is equal[-1]) for s in grouped["pca"]]
        rivals = [s for m in RIVALS for s in grouped[m] if s.chosen]
        if picked is not None and rivals:
            metric = self.problem.metrics_of(head)[0]
            values = [f.value for f in self.problem.figures(metric, rivals, self.seed)]
            best = rivals[
                int(np.argmin(values) if metric in LOWER_IS_BETTER else np.argmax(values))
            ]
            (p,) = self.problem.p_values([(picked, best)], self.seed)
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
        self, of: Latents | RandomTwin, feature: str, pool: str | None
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
        problem, info = self.problem, self.store.info
        names = problem.metrics_of(head)
        metrics = {m: problem.figures(m, scored, self.seed) for m in names}
        weights = {name: s.info.weights_sha256 for name, s in self._beside.items()}
        weights |= dict.fromkeys((info.model, "shuffled-labels"), info.weights_sha256)
        rows = []
        for index, item in enumerate(scored):
            of = item.features
            for metric, figures in metrics.items():
                figure = figures[index]
                rows.append(Result(
                    task=self.task, protocol=problem.protocol(head), head=head, model=of.model,
                    weights_sha256=weights.get(of.model), source=info.source, layer=of.layer,
                    feature=of.feature,
                    pool=of.pool,
                    standardised=item.standardised, dims=of.dims,
                    n_train=problem.n_train, n_test=problem.n_test, metric=metric,
                    value=figure.value, ci_low=figure.low, ci_high=figure.high, se=figure.se,
                    std=figure.std, chance=figure.chance, chosen=item.chosen,
                    p_value=item.p_value if metric == names[0] else None,
                    seed=self.seed, seconds=item.seconds,
                ))  # fmt: skip
        return rows


def singly(model: str, store: Latents) -> Wanted:
    """Return every layer of a store, by the feature that is read where none is named."""
    feature = store.default_feature
    return Wanted(model, store, {s.name: [s] for s in store.distinct("all", feature)}, feature)


def features_of(store: Latents, feature: str | Sequence[str] | None) -> list[str]:
    """Return the names of stored features that are meant."""
    if feature is None:
        return [store.default_feature]
    names = [feature] if isinstance(feature, str) else feature
    expect_several(names, "feature", str, "names")
    return list(dict.fromkeys(names))


def pools_of(pool: str | Sequence[str | None] | None) -> list[str | None]:
    """Return the poolings that are meant."""
    pools = [pool] if pool is None or isinstance(pool, str) else pool
    expect_several(pools, "pool", str | None, "poolings")
    return list(dict.fromkeys(pools))


def _of_a_vdvae(store: Latents) -> bool:
    return "activation" not in store.features


def _check_images(other: Latents, store: Latents, notice: Callable[[str], None]) -> None:
    if other.ids != store.ids:
        raise TaskError(
            f"{other.path}: expected the images of {store.path} in their order, found others"
        )
    if line := same_images(store, other):
        notice(line)


def _check_drawn(
    drawn: Latents, store: Latents, wanted: Sequence[Wanted], notice: Callable[[str], None]
) -> None:
    """Refuse a store of draws from which no sampling noise of what is wanted can be told."""
    _check_images(drawn, store, notice)
    if (drawn.draws or 0) < 2:
        raise TaskError(
            f'{drawn.path}: expected several draws of z; extract with z="sample", draws=8, features="z"'
        )
    for name in ("weights_sha256", "preprocessing", "pool", "mirror"):
        if getattr(drawn.info, name) != getattr(store.info, name):
            raise TaskError(
                f"{drawn.path}: expected the {name} of {store.path}, found another; extract one of them again"
            )
    own = [item for item in wanted if item.model == store.info.model]
    if others := {item.feature for item in own} - {"mean"}:
        raise TaskError(
            f"draws are compared with the feature mean alone, found {min(others)}; leave it out"
        )
    specs = [spec for item in own for group in item.groups.values() for spec in group]
    if missing := [spec.name for spec in specs if spec not in drawn.layers]:
        raise TaskError(f"{drawn.path}: expected draws of layer {missing[0]} too; extract again")


def names_beside(store: Latents, beside: Sequence[Latents]) -> dict[str, Latents]:
    """Return stores by their models' names, numbered from the second of a name on: `faces64 (2)`."""
    names = [of.info.model for of in (store, *beside)]
    before = [names[:i].count(name) for i, name in enumerate(names)]
    told = [f"{n} ({count + 1})" if count else n for n, count in zip(names, before, strict=True)]
    return dict(zip(told[1:], beside, strict=True))


def _flat(images: Any) -> Any:
    return images.reshape(len(images), -1).astype(np.float32)


def _called(head: str, features: Features) -> str:
    what = [features.model, features.layer or str(features.dims), features.feature, features.pool]
    return f"{head}: {' '.join(part for part in what if part)}"


def _told(task: str, options: dict[str, Any], store: Latents, images: Any) -> str:
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
    """Mark what has the best training score, the first of equals; where none is known, what is alone."""
    known = [s.training_score for s in scored if s.training_score is not None]
    if not known:
        return [replace(s, chosen=True) for s in scored] if len(scored) == 1 else list(scored)
    best = next(i for i, s in enumerate(scored) if s.training_score == max(known))
    return [replace(s, chosen=True) if i == best else s for i, s in enumerate(scored)]
