"""The engine: candidates and controls under heads, on a task's split, to a report.

`probe` says what competes; `Measurement` scores it on one problem, chooses by training data, compares
what was chosen with the controls, and makes rows.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from vdvae_repr.config import (
    MOST_SEED,
    path_of,
    suggestion,
    true_or_false,
    whole_number,
    with_hints,
)
from vdvae_repr.errors import TaskError, printable
from vdvae_repr.latents.base import Latents, expect_store, read_otherwise
from vdvae_repr.latents.pooling import about_pool
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.output import version
from vdvae_repr.probing import controls as baselines
from vdvae_repr.probing.cache import ScoreCache, option_digest
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
from vdvae_repr.probing.features import Columns, Features, hash_arrays, hash_text, read_only
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.report import KEPT_IN, Report
from vdvae_repr.probing.statistics import holm, verdict
from vdvae_repr.probing.task import (
    OUTCOMES,
    Problem,
    Scored,
    Task,
    expect,
    expect_several,
    name_of,
    several,
)
from vdvae_repr.results import (
    CONTROLS,
    RIVALS,
    Comparison,
    Curve,
    Result,
    SamplingCost,
)

logger = logging.getLogger(__name__)


@with_hints
def probe(
    store: Latents,
    task: Task | str,
    *,
    layers: str | int | Sequence[str | int] = "all",
    features: str | Sequence[str] | None = None,
    pools: str | Sequence[str | None] | None = None,
    selections: str | Sequence[str] = ("single", "cumulative"),
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
        heads: names of the task's own, those that answer at once if not given; or estimators of scikit-learn
            by a name of yours, as `{"svm": make_pipeline(StandardScaler(), LinearSVC())}`, where a name of
            the task's own stands for that head (`{"ridge": "ridge"}`).
        controls: of `pixels`, `pca` (of pixels), `random-init` (the mean of three initialisations) and
            `shuffled-labels` (of 20 permutations, of 5 by slow heads); rows say which were left out.
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
        ConfigError: a seed that is none.
        DataError: a pair list that is malformed.
    """
    expect_store(store)
    expect_several(beside, "beside", Latents, "open stores")
    if drawn is not None:
        expect_store(drawn, "drawn")
    seed = whole_number("seed", seed, 0, MOST_SEED)
    expect(cache, "cache", str | Path | None, "a folder")
    if cache is not None:
        path_of("cache", cache)
    progress = true_or_false("progress", progress)
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
    for name, other in run.beside.items():
        if name != other.info.model:  # of one name, as with weights of one's own, are several
            run.note(f"{name} is {other.path}")
    for line in (*store.notices, _about_training_people(store)):
        run.note(line)
    candidates = run.candidates()
    called = {
        name: f"{other.info.model} ({Path(other.path).name})" for name, other in run.beside.items()
    }
    report = Report(
        notes=run.notes,
        nats=nats_by_label(store, choice),
        called=called,
        record=_record(store),
    )
    with tqdm(unit="score", leave=False, disable=None if progress else True) as bar:
        run.bar = bar
        for part in task.parts():
            Measurement(run, part).measure(candidates, report)
    return report


def _about_training_people(store: Latents) -> str:
    """Say where a packaged model is asked about people whose photographs it was trained on; else nothing."""
    own = store.info.source.partition(" (")[0].casefold() == "lfw"
    if not own or store.info.model not in ("faces64", "faces64-student"):
        return ""
    return (
        f"{store.info.model} was trained on photographs of LFW's people who are not in View 1's "
        "peopleDevTest: of pairsDevTest it has seen none, of View 2's people half"
    )


def _record(store: Latents) -> dict[str, str]:
    """Return where a report of a store comes from, in words."""
    record = {
        "version": version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "store": str(store.path),
        "reading": store.info.reading_in_words,
    }
    if store.info.source_sha256 is not None:
        record["images_sha256"] = store.info.source_sha256
    return record


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
    checked: bool = False
    """Whether all that was asked for can be done, so that notes are told, and no error follows them."""

    def note(self, line: str) -> None:
        """Tell the reader, once."""
        if line and line not in self.notes:
            self.notes.append(line)
            if self.checked:
                logger.info(line)

    def begin(self) -> None:
        """Tell what was noted while it was not known whether what is asked for can be done."""
        if not self.checked:
            self.checked = True
            for line in self.notes:
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
        here = folder.is_relative_to(Path.cwd())
        self.note(f"{KEPT_IN}{folder.relative_to(Path.cwd()) if here else folder}")
        return scores

    def candidates(self) -> list[Candidates]:
        """Return what competes: layers of the store, of those beside, and draws."""
        for other in self.beside.values():
            self.note(expect_same_images(other, self.store))
            self.note(read_otherwise(self.store, other))
        own = self.choice.of_store(self.store.info.model, self.store)
        for feature in self.choice.features:
            specs = self.store.distinct(self.choice.layers, feature)
            for pool in self.choice.pools:
                shapes = [self.store.shape(spec, feature) for spec in specs]
                self.note(about_pool(pool, specs, shapes))
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
        self._known_heads = tuple(self.problem.heads)
        self.heads = _chosen_heads(task.name, self.problem, run.heads)
        self.problem.heads = self.heads
        run.begin()
        about: list[str] = []
        if images is None:
            run.note("no images are stored: whether one is on both sides of the split is not known")
        else:
            about = self.problem.about_images(images, run.store.ids)
        run.note(self.problem.split.text)
        for line in about:
            run.note(line)
        self._image_side = 0 if images is None else images.shape[1]
        self._pixels = (
            None
            if images is None
            else read_only(baselines.flattened(images, self.problem.mirrored))
        )
        self._cache: ScoreCache | None = None
        if run.cache is not None and task.version is not None:
            options = {f.name: option_digest(getattr(task, f.name)) for f in fields(task)}
            if unknown := [name for name, digest in options.items() if digest is None]:
                run.note(
                    f"no scores are kept: {unknown[0]} is a {type(getattr(task, unknown[0])).__name__}, "
                    "whose content cannot be told; numbers, text, arrays, tables and files can"
                )
            else:
                digest = _problem_digest(task, options, run.store, images, self.problem)
                self._cache = run.scores_of(digest)
        self._columns: dict[tuple[Any, ...], Columns] = {}
        self._left_out = [name for name in CONTROLS if name not in run.controls]

    def measure(self, candidates: Sequence[Candidates], report: Report) -> None:
        """Score candidates beside controls, and add rows, curves, confusions and comparisons to a report."""
        name, protocols = self.store.info.model, map(self.problem.protocol, self.heads.values())
        known = {self.task.name, self.task.name.replace("_", "-"), *self.heads}
        asked = ", ".join([self.task.name, *sorted({*filter(None, protocols)} - known)])
        report.headlines.append(f"{asked}: {self.problem.counted()} · {name}")
        report.more_heads = [label for label in self._known_heads if label not in self.heads]
        twins = self._twins(candidates)
        features, never_chosen = self._features(candidates)
        drawn = [item for item in candidates if twins and item.model == name and item.choosable]
        twice = sum(len(item.groups) for item in drawn) * len(twins)
        self._total = (len(features) + twice + 1) * len(self.heads)
        self._done = 0
        # Features by features, so that what heads share is worked out once.
        by_head: dict[str, list[Entry]] = {label: [] for label in self.heads}
        scores = self._scores(features)
        for item in features:
            for label, scored in scores[item].items():
                by_head[label].append(Entry((scored,), choosable=item not in never_chosen))
        initialised: dict[str, list[list[Scored]]] = {label: [] for label in self.heads}
        for twin in twins:  # one at a time, as each is a store of its own
            with twin:
                same = self._features_of("random-init", drawn, twin)
                scores = self._scores(same)
            for label, draws in initialised.items():
                draws.append([scores[item][label] for item in same])
        for label, entries in by_head.items():
            entries += [Entry(draws) for draws in zip(*initialised[label], strict=True)]
            self._report(self.heads[label], entries, candidates, report)
        for line in self.problem.notes:
            self.run.note(line)

    def _twins(self, candidates: Sequence[Candidates]) -> list[RandomTwin]:
        """Return the store's model with other initial weights, as often as the control is drawn."""
        if "random-init" not in self.run.controls:
            return []
        own = [item for item in candidates if item.store is self.store]
        specs = {spec.name for item in own for _, group in item.groups.values() for spec in group}
        layers = [spec.name for spec in self.store.layers if spec.name in specs]
        stored = sorted({item.feature.partition(":")[0] for item in own})
        twins = [
            RandomTwin(self.store, layers, stored, self.seed + number)
            for number in range(baselines.INITIALISATIONS)
        ]
        for line in twins[0].notices(self._image_side):
            self.run.note(line)
        if twins[0].refusal:
            self._left_out.append("random-init")
            return []
        return twins

    def _scores(self, features: Sequence[Features]) -> dict[Features, dict[str, Scored]]:
        """Return what each head makes of features; PCA of a size that one refuses is left out, and said."""
        scores: dict[Features, dict[str, Scored]] = {item: {} for item in features}
        for item in _by_last_layer(features):
            for label, head in self.heads.items():
                self._show(f"{label}: {_called(item)}")
                self._done += 1
                try:
                    scores[item][label] = self._score(head, item)
                except ValueError as refusal:
                    line = f"{label} refuses {_called(item)}: {str(refusal).splitlines()[0]}"
                    if item.model != "pca":
                        raise TaskError(f"heads: {line}") from refusal
                    self.run.note(f"{line}; left out")
        return scores

    def _report(
        self,
        head: Head,
        entries: Sequence[Entry],
        candidates: Sequence[Candidates],
        report: Report,
    ) -> None:
        """Choose among what a head was given, compare it, and add its rows to a report."""
        name = self.store.info.model
        models = list(dict.fromkeys([name, *RIVALS, *(e.features.model for e in entries)]))
        grouped = {m: _choose([e for e in entries if e.features.model == m]) for m in models}
        compared = _stand_for(grouped, name)
        rivals = [e for m in RIVALS for e in grouped[m] if e.chosen]
        comparisons = self._comparisons(head, compared, rivals)
        report.comparisons += comparisons
        others = [e for m in self.run.beside for e in grouped.get(m, ()) if e.chosen]
        report.beside += [
            replace(each, verdict=verdict([each.difference], [each.p_value]))
            for each in self._comparisons(head, compared, others)
        ]
        every = [entry for group in grouped.values() for entry in group]
        if "shuffled-labels" in self.run.controls and compared is not None:
            basis = replace(compared.features, model="shuffled-labels")
            # Features are read once, and labels permuted over and over.
            draws = tuple(
                self._score(head, basis, shuffled=number)
                for number in range(self.problem.permutations(head))
            )
            every.append(Entry(draws, choosable=False))
        report.curves += self._curves(head, every)
        if compared is not None:
            confusion = self.problem.confusion(head, compared.draws[0])
            report.confusions += [] if confusion is None else [confusion]
        own = [scored for entry in grouped[name] for scored in entry.draws if entry.choosable]
        report.tables |= self.problem.tables(head, own, self.seed)
        report.rows += self._rows(head, every, compared, comparisons)
        report.sampling_costs += self._sampling_costs(head, grouped[name], candidates)
        self._done += 1
        self._show(head.name)

    def _features(self, candidates: Sequence[Candidates]) -> tuple[list[Features], list[Features]]:
        """Return the features of all candidates and of pixels, and those that are never chosen."""
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
            made = self._features_of(item.model, [item], item.store)
            features += made
            never_chosen += [] if item.choosable else made
        if not features:
            raise TaskError(f"{self.store.path}: nothing to score; {NO_PRUNING}")
        dims = sorted({f.dims for f in features if f.model == name})
        if self._pixels is not None and "pixels" in self.run.controls:
            features.append(baselines.pixels(self._pixels))
        if self._pixels is not None and "pca" in self.run.controls:
            components = self.problem.pca(self._pixels, dims)
            if not components:
                self._left_out.append("pca")
                self.run.note("no pca: it is fitted on two images or more that differ")
            features += components
        return features, never_chosen

    def _features_of(
        self, model: str, candidates: Sequence[Candidates], of: Latents | RandomTwin
    ) -> list[Features]:
        """Return the features of candidates, as a store or a random twin has them."""
        return [
            Features(
                model,
                label,
                tuple(map(self.columns(of, item.feature, item.pool), specs)),
                item.feature,
                item.pooled,
                selection=selection,
            )
            for item in candidates
            for label, (selection, specs) in item.groups.items()
        ]

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

    def _score(self, head: Head, features: Features, shuffled: int | None = None) -> Scored:
        """Score features under a head; of shuffled training labels, by that permutation of them."""
        score = partial(self._timed, head, features, shuffled)
        if self._cache is None or head.digest is None:
            return score()
        how = (head.name, head.digest, str(self.seed), str(shuffled))
        return self._cache.get(features, how, score)

    def _timed(self, head: Head, features: Features, shuffled: int | None) -> Scored:
        started = time.monotonic()
        seed = self.seed + (shuffled or 0)
        scored = self.problem.score(head, features, seed, shuffled is not None)
        if not np.isfinite(scored.outcome).all():
            raise TaskError(
                f"{self.task.name}: expected finite scores of {_called(features)} under {head.name}, found "
                "NaN or infinity; mend the task's score, or the head"
            )
        told = scored.training_score
        return replace(
            scored,
            training_score=told if told is not None and np.isfinite(told) else None,
            seconds=round(time.monotonic() - started, 3),
        )

    def _show(self, what: str) -> None:
        if (bar := self.run.bar) is not None:
            bar.total, bar.n = self._total, self._done
            bar.set_description(printable(what))

    def _comparisons(
        self, head: Head, picked: Entry | None, rivals: Sequence[Entry]
    ) -> list[Comparison]:
        """Compare a row of the store's model with what stands for each rival; p after Holm over them."""
        if picked is None or not rivals:
            return []
        metric = self.problem.metrics_of(head)[0]
        plain, at = name_of(metric)
        draws = [entry.draws for entry in (picked, *rivals)]
        values = [f.value for f in self.problem.figures(metric, draws, self.seed)]
        found = [self.problem.compare(picked.draws, e.draws, head, self.seed) for e in rivals]
        adjusted = holm([difference.p for difference in found])
        words = verdict([difference.value for difference in found], adjusted)
        return [
            Comparison(
                task=self.task.name,
                protocol=self.problem.protocol(head) or self.task.name,
                head=head.name,
                n_train=self.problem.n_train,
                **picked.features.called,
                metric=plain,
                at=at,
                value=values[0],
                versus=rival.features.model,
                versus_layer=rival.features.layer,
                versus_dims=rival.features.dims,
                versus_value=value,
                difference=difference.value,
                diff_low=difference.low,
                diff_high=difference.high,
                p_raw=difference.p,
                p_value=p,
                units=difference.units,
                why=difference.why,
                verdict=words,
            )
            for rival, value, difference, p in zip(rivals, values[1:], found, adjusted, strict=True)
        ]

    def _curves(self, head: Head, entries: Sequence[Entry]) -> Iterator[Curve]:
        """Yield the curves of chosen rows."""
        for item in entries:
            if item.chosen or item.features.model == "shuffled-labels":
                curve = self.problem.curve(head, item.draws, self.seed)
                if curve is not None:
                    yield curve

    def _sampling_costs(
        self, head: Head, entries: Sequence[Entry], candidates: Sequence[Candidates]
    ) -> Iterator[SamplingCost]:
        """Compare one draw of a layer, and the mean of draws, with its mean."""
        by_read = {
            (e.features.layer, e.features.pool, e.features.feature): e.draws for e in entries
        }
        metric = self.problem.metrics_of(head)[0]
        rows = [
            (layer, selection, item.pooled, item.store.draws or 0)
            for item in candidates
            if item.feature == "z:0" and not item.choosable
            for layer, (selection, _) in item.groups.items()
        ]
        if not rows:
            return
        reads = [
            by_read[layer, pool, z] for layer, _, pool, _ in rows for z in ("mean", "z:0", "z")
        ]
        values = iter([figure.value for figure in self.problem.figures(metric, reads, self.seed)])
        means = [mean for mean in reads[::3] for _ in range(2)]
        drawn = [score for number, score in enumerate(reads) if number % 3]
        p = iter(
            [
                self.problem.compare(one, mean, head, self.seed).p
                for one, mean in zip(drawn, means, strict=True)
            ]
        )
        for (layer, selection, pool, draws), mean in zip(rows, reads[::3], strict=True):
            yield SamplingCost(
                head=head.name,
                n_train=self.problem.n_train,
                layer=layer,
                selection=selection,
                pool=pool,
                dims=mean[0].features.dims,
                draws=draws,
                metric=name_of(metric)[0],
                mean=next(values),
                one_z=next(values),
                mean_of_z=next(values),
                p_one_z=next(p),
                p_mean_of_z=next(p),
            )

    def _rows(
        self,
        head: Head,
        entries: Sequence[Entry],
        compared: Entry | None,
        comparisons: Sequence[Comparison],
    ) -> Iterator[Result]:
        """Make of each entry a row a metric."""
        problem, info = self.problem, self.store.info
        names = problem.metrics_of(head)
        draws = [entry.draws for entry in entries]
        metrics = {m: problem.figures(m, draws, self.seed) for m in names}
        ceilings = {m: problem.ceiling_of(m, head) for m in names}
        weights = {name: other.info.weights_sha256 for name, other in self.run.beside.items()}
        weights |= dict.fromkeys((info.model, "shuffled-labels"), info.weights_sha256)
        worst = min(comparisons, key=lambda found: found.difference, default=None)
        for index, entry in enumerate(entries):
            of = entry.features
            for metric, figures in metrics.items():
                figure = figures[index]
                ceiling = ceilings[metric] or (None, None)
                row = Result(
                    task=self.task.name,
                    protocol=problem.protocol(head) or self.task.name,
                    head=head.name,
                    **of.called,
                    role="control" if of.model in CONTROLS else "model",
                    weights_sha256=weights.get(of.model),
                    source=info.source,
                    scaling=entry.draws[0].scaling,
                    dims=of.dims,
                    n_train=problem.n_train,
                    n_test=problem.n_test,
                    units=figure.units,
                    metric=name_of(metric)[0],
                    at=name_of(metric)[1],
                    value=figure.value,
                    ci_low=figure.low,
                    ci_high=figure.high,
                    interval=figure.interval,
                    se=figure.se,
                    std=figure.std,
                    chance=figure.chance,
                    ceiling_low=ceiling[0],
                    ceiling_high=ceiling[1],
                    training_score=entry.training_score if entry.choosable else None,
                    chosen=entry.chosen,
                    seed=self.seed,
                    seconds=round(sum(item.seconds for item in entry.draws), 3),
                    controls_left_out=", ".join(self._left_out) or None,
                )
                if worst and entry is compared and metric == names[0]:
                    row = replace(
                        row,
                        versus=worst.versus,
                        difference=worst.difference,
                        diff_low=worst.diff_low,
                        diff_high=worst.diff_high,
                        p_value=worst.p_value,
                    )
                yield row


@dataclass(frozen=True)
class Entry:
    """What becomes a row: features under a head, once for each initialisation or permutation.

    Args:
        draws: a score each; of what is not drawn one.
        choosable: whether it may be chosen.
        chosen: whether training data picked it.
    """

    draws: tuple[Scored, ...]
    choosable: bool = True
    chosen: bool = False

    @property
    def features(self) -> Features:
        """The features, the first draw's."""
        return self.draws[0].features

    @property
    def training_score(self) -> float | None:
        """What choices are made by, the mean of the draws; None where nothing tells."""
        known = [item.training_score for item in self.draws if item.training_score is not None]
        return float(np.mean(known)) if len(known) == len(self.draws) else None


def _known_controls(store: Latents, controls: Any) -> tuple[str, ...]:
    """Return the controls to run.

    Raises:
        TaskError: one is unknown, or needs images that the store lacks.
    """
    names = several(controls, "controls", str, "names")
    if unknown := [name for name in names if name not in CONTROLS]:
        hint = "; give ()" if unknown[0] == "none" else suggestion(unknown[0], CONTROLS)
        raise TaskError(f"controls: expected {', '.join(CONTROLS)}, found {unknown[0]!r}{hint}")
    if not store.has_images and (needing := [name for name in names if name in RIVALS]):
        raise TaskError(
            f"{store.path}: holds no images, so the controls {_listed(needing)} cannot run; extract without "
            "images=False, or leave these controls out"
        )
    return names


def _chosen_heads(task: str, problem: Problem, heads: Any) -> dict[str, Head]:
    """Return the heads that are meant, by the names of their rows."""
    if heads is None:
        return {name: problem.heads[name] for name in problem.default_heads}
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
                hint = suggestion(meant, list(problem.heads))
                raise TaskError(f"unknown head {meant!r}{hint}; the heads of {task} are {known}")
            chosen[name] = replace(problem.heads[meant], name=name)
            continue
        made = problem.heads_of(name, meant)
        if taken := [name for name in made if name in problem.heads]:
            raise TaskError(f"heads: {taken[0]!r} is a head of {task}; call yours otherwise")
        chosen |= made
    if not chosen:
        raise TaskError("heads: expected at least one, found none")
    return chosen


def _by_last_layer(features: Sequence[Features]) -> list[Features]:
    """Put features that end in the same layer behind each other, while what they share is at hand."""
    seen: dict[Columns, int] = {}
    for item in features:
        for columns in item.columns:
            seen.setdefault(columns, len(seen))
    return sorted(features, key=lambda item: (seen[item.columns[-1]], len(item.columns)))


def _choose(entries: Sequence[Entry]) -> list[Entry]:
    """Mark what has the best training score, the first of equals; where none is known, what is alone.

    Nothing is marked where all are equals, as on a val of one image: such a score is no choice.
    """
    known = [e.training_score for e in entries if e.choosable and e.training_score is not None]
    if len(known) > 1 and len(set(known)) == 1:
        return list(entries)
    if not known:
        return [replace(e, chosen=True) for e in entries] if len(entries) == 1 else list(entries)
    best = next(e for e in entries if e.choosable and e.training_score == max(known))
    return [replace(e, chosen=e is best) for e in entries]


def _stand_for(grouped: dict[str, list[Entry]], name: str) -> Entry | None:
    """Return the row of the store's model that is compared, and mark what stands for its rivals beside it.

    Where nothing is chosen, all layers together are compared, which is no choice; of the random twins, there
    and where none of theirs is chosen, the same. Of PCA, where no size is chosen, the largest that has no
    more dimensions stands.
    """
    picked = next((e for e in grouped[name] if e.chosen), None)
    nothing_chosen = picked is None
    if picked is None:
        able = [e for e in grouped[name] if e.choosable]
        if not able:
            return None
        picked = max(able, key=_how_much)
    if nothing_chosen or not any(e.chosen for e in grouped["random-init"]):
        same = [e for e in grouped["random-init"] if _read(e) == _read(picked)]
        grouped["random-init"] = [replace(e, chosen=e in same[:1]) for e in grouped["random-init"]]
    if grouped["pca"] and not any(e.chosen for e in grouped["pca"]):
        fitting = [e for e in grouped["pca"] if e.features.dims <= picked.features.dims]
        grouped["pca"] = [replace(e, chosen=e in fitting[-1:]) for e in grouped["pca"]]
    return picked


def _read(entry: Entry) -> tuple[str | None, ...]:
    """Return what of a model is read, whichever model it is."""
    of = entry.features
    return of.layer, of.selection, of.feature, of.pool


def _how_much(entry: Entry) -> tuple[bool, bool, int]:
    """Return an order of rows: those without pruning, which have random twins, several layers, the widest."""
    of = entry.features
    return of.selection != "pruned", of.selection in ("cumulative", "joint"), of.dims


def _problem_digest(
    task: Task,
    options: Mapping[str, str | None],
    store: Latents,
    images: NDArray[np.uint8] | None,
    problem: Problem,
) -> str:
    """Return a hash of everything but features, head and seed that a score depends on."""
    factors = [
        f"{name} {hash_arrays(np.asarray(values, str))}" for name, values in store.factors.items()
    ]
    split = problem.split
    arrays = [store.labels, split.train, split.val, split.test]
    drawn = [np.asarray(values, str) for values in (problem.targets, problem.units)]
    drawn += problem.read_elsewhere
    return hash_text(
        type(task).__module__,
        type(task).__qualname__,
        task.name,
        str(task.version),
        str(OUTCOMES),
        json.dumps(options, sort_keys=True),
        hash_arrays(*arrays, *drawn, *([] if images is None else [images])),
        *store.ids,
        *store.splits,
        *store.label_names,
        *factors,
    )


def _called(features: Features) -> str:
    what = [features.model, features.layer or str(features.dims), features.feature, features.pool]
    return " ".join(part for part in what if part)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
