"""The engine: candidates and controls under heads, on a task's split, to a report.

`probe` says what competes; `Measurement` scores it on one problem, chooses by training data, compares
what was chosen with the controls, and makes rows.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from vdvae_repr.errors import TaskError, printable
from vdvae_repr.latents.base import Latents
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.probing import controls as baselines
from vdvae_repr.probing.cache import ScoreCache
from vdvae_repr.probing.candidates import (
    NO_PRUNING,
    Candidates,
    Choice,
    draws_of,
    expect_same_images,
    names_beside,
    nats_by_label,
    pruned,
)
from vdvae_repr.probing.controls import RandomTwin
from vdvae_repr.probing.features import Columns, Features, hash_arrays, hash_text
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.report import Report
from vdvae_repr.probing.task import (
    Problem,
    Scored,
    Task,
    expect,
    expect_several,
    expect_store,
    refuse_leaks,
    several,
)
from vdvae_repr.results import (
    CONTROLS,
    LOWER_IS_BETTER,
    RIVALS,
    Comparison,
    Curve,
    Result,
    SamplingCost,
)

logger = logging.getLogger(__name__)


def probe(
    store: Latents,
    task: Task | str,
    *,
    layers: str | int | Sequence[str | int] = "all",
    features: str | Sequence[str] | None = None,
    pools: str | Sequence[str | None] | None = None,
    selections: str | Sequence[str] = "single",
    heads: str | Sequence[str] | Mapping[str, Any] | None = None,
    controls: str | Sequence[str] = CONTROLS,
    beside: Sequence[Latents] = (),
    drawn: Latents | None = None,
    cache: str | Path | None = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Measure what layers of a store are worth at a task, beside controls in the same split.

    Args:
        store: with labels, and images for the controls.
        task: with options, as `vr.FewShot(ways=5)`, or the name of one, which is then run with its defaults.
        layers: selector, or several.
        features: stored feature, or several; if not given `mean`, or the first where that is not stored.
        pools: None, "avg" or "avg:GRID", or several.
        selections: how layers become rows, one or several of: `single`, each by itself; `joint`, those of
            each selector together; `cumulative`, all up to each; `without`, all but those of each resolution;
            `pruned`, the latent dimensions of highest KL, which takes the feature `kl`.
        heads: names of the task's own, all of them if not given; or estimators of scikit-learn by a name of
            yours, as `{"svm": make_pipeline(StandardScaler(), LinearSVC())}`, where a name of the task's own
            stands for that head (`{"ridge": "ridge"}`).
        controls: of `pixels`, `pca` (of pixels), `random-init` and `shuffled-labels`; rows say which were
            left out.
        beside: stores of the same images from other models, whose layers become rows too: those selected, of
            a VDVAE beside a VDVAE or of other encoders beside each other; else all of them, singly.
        drawn: a store of several draws of z of the same images by the same weights; one draw of each layer
            (feature `z:0`) and the mean of them (`z`) become rows beside `mean`, never chosen.
        cache: folder where scores are kept by content, so that the same is not scored again; "auto" is
            `STORE.scores` beside the store, None keeps nothing.
        seed: of folds, episodes, shuffling, random initialisation and bootstrap.
        progress: show a bar, where there is a terminal or a notebook.

    Returns:
        a report, in whose rows one of each head and model is `chosen` among all its candidates by training
        data.

    Raises:
        TaskError: the store cannot support the task, or lacks what a control needs; an argument of another
            type, or unknown.
        DataError: a pair list that is malformed.
    """
    expect_store(store)
    expect_several(beside, "beside", Latents, "open stores")
    if drawn is not None:
        expect_store(drawn, "drawn")
    expect(seed, "seed", Integral, "a whole number")
    expect(cache, "cache", str | Path | None, "a folder")
    if isinstance(cache, str) and not cache.strip():
        raise TaskError("cache: expected a folder, found an empty text")
    if not isinstance(task, Task):
        task = Task.named(task)
    choice = Choice.of(store, layers, features, pools, selections)
    run = Run(
        store=store,
        choice=choice,
        heads=heads,
        controls=_known_controls(store, controls),
        beside=names_beside(store, beside),
        drawn=drawn,
        cache=cache,
        seed=seed,
    )
    candidates = run.candidates()
    report = Report(notes=run.notes, nats=nats_by_label(store, choice))
    with tqdm(unit="score", disable=None if progress else True) as bar:
        run.bar = bar
        for part in task.parts():
            Measurement(run, part).measure(candidates, report)
    return report


@dataclass
class Run:
    """What all parts of a task share: the store, what competes, and whom to tell.

    Args:
        store: the one that is probed.
        choice: of layers, features and poolings.
        heads: as `probe` takes them.
        controls: names of those to run.
        beside: stores by their models' names in rows.
        drawn: a store of draws.
        seed: of all draws.
        cache: as `probe` takes it.
    """

    store: Latents
    choice: Choice
    heads: str | Sequence[str] | Mapping[str, Any] | None
    controls: tuple[str, ...]
    beside: dict[str, Latents]
    drawn: Latents | None
    seed: int
    cache: str | Path | None
    bar: Any = None
    notes: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Tell the reader, once."""
        if line and line not in self.notes:
            self.notes.append(line)
            logger.info(line)

    def scores_of(self, problem: str) -> ScoreCache | None:
        """Return the scores that are kept of a problem, and say once where they lie."""
        if self.cache is None:
            return None
        folder = Path(f"{self.store.tested_path}.scores" if self.cache == "auto" else self.cache)
        try:
            scores = ScoreCache(folder, problem)
        except TaskError as error:
            if self.cache != "auto":
                raise
            self.note(f"no scores are kept: {error}")
            return None
        self.note(f"scores are kept in {folder}")
        return scores

    def candidates(self) -> list[Candidates]:
        """Return what competes: layers of the store, of those beside, and draws."""
        for other in self.beside.values():
            self.note(expect_same_images(other, self.store))
        own = self.choice.of_store(self.store.info.model, self.store)
        others = [
            item
            for model, other in self.beside.items()
            for item in self.choice.beside(model, other, self.store)
        ]
        if self.drawn is None:
            return [*own, *others]
        self.note(expect_same_images(self.drawn, self.store))
        return [*own, *others, *draws_of(self.drawn, self.store, own)]


class Measurement:
    """One problem of a run: scores candidates and controls, and makes rows of the scores."""

    def __init__(self, run: Run, task: Task) -> None:
        self.run, self.task, self.store, self.seed = run, task, run.store, run.seed
        images = run.store.images() if run.store.has_images else None
        self.problem = task.bind(run.store, run.seed)
        self.heads = _chosen_heads(task.name, self.problem, run.heads)
        self.problem.heads = self.heads
        if images is None:
            run.note("no images are stored: whether one is on both sides of the split is not known")
        else:
            refuse_leaks(images, run.store.ids, self.problem.sides)
        run.note(self.problem.split.text)
        self._image_side = 0 if images is None else images.shape[1]
        self._pixels = (
            None if images is None else baselines.flattened(images, self.problem.mirrored)
        )
        self._cache: ScoreCache | None = None
        if run.cache is not None and task.version is not None:
            self._cache = run.scores_of(_problem_digest(task, run.store, images))
        self._columns: dict[tuple[Any, ...], Columns] = {}
        self._left_out = [name for name in CONTROLS if name not in run.controls]

    def measure(self, candidates: Sequence[Candidates], report: Report) -> None:
        """Score candidates beside controls, and add rows, curves and comparisons to a report."""
        own = [item for item in candidates if item.store is self.store]
        if "random-init" not in self.run.controls:
            self._measure(candidates, None, report)
            return
        specs = {spec.name for item in own for group in item.groups.values() for spec in group}
        layers = [spec.name for spec in self.store.layers if spec.name in specs]
        stored = sorted({item.feature.partition(":")[0] for item in own})
        with RandomTwin(self.store, layers, stored, self.seed) as twin:
            if line := twin.notice(self._image_side):
                self.run.note(line)
            if twin.refusal:
                self._left_out.append("random-init")
            self._measure(candidates, None if twin.refusal else twin, report)

    def _measure(
        self, candidates: Sequence[Candidates], twin: RandomTwin | None, report: Report
    ) -> None:
        name = self.store.info.model
        features, never_chosen = self._features(candidates, twin)
        models = list(dict.fromkeys([name, *RIVALS, *(f.model for f in features)]))
        total, done = (len(features) + 1) * len(self.heads), 0
        # Features by features, so that what heads share is worked out once.
        by_head: dict[str, list[Scored]] = {label: [] for label in self.heads}
        for item in features:
            for label, scored in by_head.items():
                self._show(done, total, f"{label}: {_called(item)}")
                score = self._score(self.heads[label], item)
                if item in never_chosen:
                    score = replace(score, training_score=None)
                scored.append(score)
                done += 1
        for label, scored in by_head.items():
            head = self.heads[label]
            grouped = {m: _choose([s for s in scored if s.features.model == m]) for m in models}
            grouped[name] = self._compared(head, grouped, report)
            every = [score for group in grouped.values() for score in group]
            if "shuffled-labels" in self.run.controls:
                picked = next((s for s in grouped[name] if s.chosen), grouped[name][0])
                basis = replace(picked.features, model="shuffled-labels")
                every.append(self._score(head, basis, shuffled=True))
            report.curves += self._curves(head, every)
            report.rows += self._rows(head, every)
            report.sampling_costs += self._sampling_costs(head, scored, candidates)
            done += 1
            self._show(done, total, head.name)

    def _features(
        self, candidates: Sequence[Candidates], twin: RandomTwin | None
    ) -> tuple[list[Features], list[Features]]:
        """Return the features of all candidates and controls, and those that are never chosen."""
        name = self.store.info.model
        features: list[Features] = []
        never_chosen: list[Features] = []
        if "pruned" in self.run.choice.selections:

            def columns(feature: str, spec: LayerSpec) -> Columns:
                return self.columns(self.store, feature, None)(spec)

            features = pruned(self.store, self.run.choice, self.problem, columns)
            if not features:
                self.run.note(NO_PRUNING)
        for item in candidates:
            sides = {item.model: self.columns(item.store, item.feature, item.pool)}
            if item.model == name and item.choosable and twin is not None:
                sides["random-init"] = self.columns(twin, item.feature, item.pool)
            for label, group in item.groups.items():
                for model, make in sides.items():
                    blocks = tuple(make(spec) for spec in group)
                    features.append(Features(model, label, blocks, item.feature, item.pooled))
                    never_chosen += [] if item.choosable else features[-1:]
        if not features:
            raise TaskError(f"{self.store.path}: nothing to score; {NO_PRUNING}")
        dims = sorted({f.dims for f in features if f.model == name})
        if self._pixels is not None and "pixels" in self.run.controls:
            features.append(baselines.pixels(self._pixels))
        if self._pixels is not None and "pca" in self.run.controls:
            features += self.problem.pca(self._pixels, dims)
        return features, never_chosen

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
            if key not in self._columns:
                straight = view(spec, False)
                both = self.problem.mirrored
                self._columns[key] = straight + view(spec, True) if both else straight
            return self._columns[key]

        return columns

    def _score(self, head: Head, features: Features, shuffled: bool = False) -> Scored:
        score = partial(self._timed, head, features, shuffled)
        if self._cache is None or head.digest is None:
            return score()
        how = (head.name, head.digest, str(self.seed), str(shuffled))
        return self._cache.get(features, how, score)

    def _timed(self, head: Head, features: Features, shuffled: bool) -> Scored:
        started = time.monotonic()
        scored = self.problem.score(head, features, self.seed, shuffled)
        return replace(scored, seconds=round(time.monotonic() - started, 3))

    def _show(self, done: int, total: int, what: str) -> None:
        if (bar := self.run.bar) is not None:
            bar.total, bar.n = total, done
            bar.set_description(printable(what))

    def _compared(
        self, head: Head, grouped: dict[str, list[Scored]], report: Report
    ) -> list[Scored]:
        """Compare what was chosen of the store with the control that tests best; return the store's scores.

        Of PCA, where no size is chosen, the largest that has no more dimensions than what was chosen stands.
        """
        own = grouped[self.store.info.model]
        picked = next((s for s in own if s.chosen), None)
        if picked is None:
            return own
        if grouped["pca"] and not any(s.chosen for s in grouped["pca"]):
            equal = [s for s in grouped["pca"] if s.features.dims <= picked.features.dims]
            grouped["pca"] = [replace(s, chosen=s is equal[-1]) for s in grouped["pca"]]
        rivals = [s for m in RIVALS for s in grouped[m] if s.chosen]
        if not rivals:
            return own
        metric = self.problem.metrics_of(head)[0]
        values = [f.value for f in self.problem.figures(metric, [picked, *rivals], self.seed)]
        best = int(np.argmin(values[1:]) if metric in LOWER_IS_BETTER else np.argmax(values[1:]))
        (p,) = self.problem.p_values([(picked, rivals[best])], self.seed)
        of = picked.features
        report.comparisons.append(
            Comparison(
                head=head.name,
                n_train=self.problem.n_train,
                model=of.model,
                layer=of.layer,
                feature=of.feature,
                pool=of.pool,
                metric=metric,
                value=values[0],
                versus=rivals[best].features.model,
                versus_value=values[1 + best],
                difference=values[0] - values[1 + best],
                p_value=p,
            )
        )
        return [replace(s, p_value=p) if s is picked else s for s in own]

    def _curves(self, head: Head, scored: Sequence[Scored]) -> Iterator[Curve]:
        for item in scored:
            if item.chosen or item.features.model == "shuffled-labels":
                curve = self.problem.curve(head, item)
                if curve is not None:
                    yield curve

    def _sampling_costs(
        self, head: Head, scored: Sequence[Scored], candidates: Sequence[Candidates]
    ) -> Iterator[SamplingCost]:
        """Compare one draw of a layer, and the mean of draws, with its mean."""
        by_read = {
            (s.features.layer, s.features.pool, s.features.feature): s
            for s in scored
            if s.features.model == self.store.info.model
        }
        metric = self.problem.metrics_of(head)[0]
        rows = [
            (layer, item.pooled, item.store.draws or 0)
            for item in candidates
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
            yield SamplingCost(
                head=head.name,
                n_train=self.problem.n_train,
                layer=layer,
                pool=pool,
                dims=mean.features.dims,
                draws=draws,
                metric=metric,
                mean=next(values),
                one_z=next(values),
                mean_of_z=next(values),
                p_one_z=next(p),
                p_mean_of_z=next(p),
            )

    def _rows(self, head: Head, scored: Sequence[Scored]) -> Iterator[Result]:
        """Make of each score a row a metric."""
        problem, info = self.problem, self.store.info
        names = problem.metrics_of(head)
        metrics = {m: problem.figures(m, scored, self.seed) for m in names}
        weights = {name: other.info.weights_sha256 for name, other in self.run.beside.items()}
        weights |= dict.fromkeys((info.model, "shuffled-labels"), info.weights_sha256)
        for index, item in enumerate(scored):
            of = item.features
            for metric, figures in metrics.items():
                figure = figures[index]
                yield Result(
                    task=self.task.name,
                    protocol=problem.protocol(head) or self.task.name,
                    head=head.name,
                    model=of.model,
                    weights_sha256=weights.get(of.model),
                    source=info.source,
                    layer=of.layer,
                    feature=of.feature,
                    pool=of.pool,
                    standardised=item.standardised,
                    dims=of.dims,
                    n_train=problem.n_train,
                    n_test=problem.n_test,
                    metric=metric,
                    value=figure.value,
                    ci_low=figure.low,
                    ci_high=figure.high,
                    se=figure.se,
                    std=figure.std,
                    chance=figure.chance,
                    chosen=item.chosen,
                    p_value=item.p_value if metric == names[0] else None,
                    seed=self.seed,
                    seconds=item.seconds,
                    controls_left_out=", ".join(self._left_out) or None,
                )


def _known_controls(store: Latents, controls: Any) -> tuple[str, ...]:
    """Return the controls to run.

    Raises:
        TaskError: one is unknown, or needs images that the store lacks.
    """
    names = several(controls, "controls", str, "names")
    if unknown := [name for name in names if name not in CONTROLS]:
        raise TaskError(f"controls: expected {', '.join(CONTROLS)}, found {unknown[0]!r}")
    if not store.has_images and (needing := [name for name in names if name in RIVALS]):
        raise TaskError(
            f"{store.path}: holds no images, so the controls {_listed(needing)} cannot run; extract without "
            "images=False, or leave these controls out"
        )
    return names


def _chosen_heads(task: str, problem: Problem, heads: Any) -> dict[str, Head]:
    """Return the heads that are meant, by the names of their rows."""
    if heads is None:
        return dict(problem.heads)
    if not isinstance(heads, Mapping):
        heads = {
            name: name for name in several(heads, "heads", str, "names, or estimators by name")
        }
    chosen: dict[str, Head] = {}
    for name, meant in heads.items():
        expect(name, "heads", str, "names")
        if not name.strip() or "/" in name or not name.isprintable():
            raise TaskError(f"heads: expected a name that a file may have, found {name!r}")
        if isinstance(meant, str):
            if meant not in problem.heads:
                known = ", ".join(problem.heads)
                raise TaskError(f"unknown head {meant!r}; the heads of {task} are {known}")
            chosen[name] = replace(problem.heads[meant], name=name)
            continue
        made = problem.heads_of(name, meant)
        if taken := [name for name in made if name in problem.heads]:
            raise TaskError(f"heads: {taken[0]!r} is a head of {task}; call yours otherwise")
        chosen |= made
    if not chosen:
        raise TaskError("heads: expected at least one, found none")
    return chosen


def _choose(scored: Sequence[Scored]) -> list[Scored]:
    """Mark what has the best training score, the first of equals; where none is known, what is alone."""
    known = [s.training_score for s in scored if s.training_score is not None]
    if not known:
        return [replace(s, chosen=True) for s in scored] if len(scored) == 1 else list(scored)
    best = next(i for i, s in enumerate(scored) if s.training_score == max(known))
    return [replace(s, chosen=True) if i == best else s for i, s in enumerate(scored)]


def _problem_digest(task: Task, store: Latents, images: NDArray[np.uint8] | None) -> str:
    """Return a hash of everything but features, head and seed that a score depends on."""
    factors = [
        f"{name} {hash_arrays(np.asarray(values, str))}" for name, values in store.factors.items()
    ]
    options = {name: _option_digest(value) for name, value in asdict(task).items()}
    arrays = [store.labels] if images is None else [images, store.labels]
    return hash_text(
        type(task).__module__,
        type(task).__qualname__,
        task.name,
        str(task.version),
        json.dumps(options, sort_keys=True),
        hash_arrays(*arrays),
        *store.ids,
        *store.splits,
        *store.label_names,
        *factors,
    )


def _option_digest(value: Any) -> str:
    """Return what an option of a task says: the content of a file or an array, else how it is written."""
    if isinstance(value, np.ndarray):
        return hash_arrays(value)
    if isinstance(value, str | Path) and Path(value).is_file():
        return hash_arrays(np.fromfile(value, np.uint8))
    return repr(value)


def _called(features: Features) -> str:
    what = [features.model, features.layer or str(features.dims), features.feature, features.pool]
    return " ".join(part for part in what if part)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
