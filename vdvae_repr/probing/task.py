"""What a task is to the engine, and how to write one of your own.

A `Task` is a frozen dataclass of options. Bound to a store it is a `Problem`: a split, targets, heads, and
how scores become figures. What a problem does not say otherwise is supervised prediction of one target an
image, so that a task of one's own is short; `docs/extending.md` has two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import UnionType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from vdvae_repr.config import hidden_by_mask, python_number, suggestion, without_order
from vdvae_repr.data.names import SPLITS, is_missing, look_alikes, may_stand_for_none
from vdvae_repr.errors import TaskError, counted
from vdvae_repr.heads.gram import Rows
from vdvae_repr.heads.linear import LogisticProbe, Ridge, RidgeRegressor, apart_from_others
from vdvae_repr.heads.sgd import SGDProbe
from vdvae_repr.latents.base import Latents, about_copies
from vdvae_repr.probing import controls
from vdvae_repr.probing.features import Features, Workspace
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.predict import predict_numbers, score_classes
from vdvae_repr.probing.statistics import (
    FEW,
    SPANS,
    Difference,
    Figure,
    Items,
    Span,
    Units,
    Values,
    compare,
    figure,
    pearson,
    weighted,
)
from vdvae_repr.results import LOWER_IS_BETTER, Confusion, Curve

PERMUTATIONS = 20  # of training labels, for shuffled-labels
FEWER = 5  # of heads that take long
OUTCOMES = (
    2  # raised whenever what `Problem.score` returns changes, so that no cache holds the earlier
)
OF_CLASSES = ("accuracy", "balanced_accuracy", "error")  # metrics that a problem knows by itself
OF_NUMBERS = ("r2", "pearson")

Kind = type | UnionType | tuple[type, ...]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What can be asked of a store: a frozen dataclass of options, checked in `__post_init__`.

    An option is a field, as `ways: int = field(default=5, metadata={"help": "Classes."})`, and the command
    line takes it from there. A subclass has a `name`, under which `vr.probe` knows it from then on, and a
    `version`, which is raised whenever its scores change; scores of a task without one are never kept.
    """

    name: ClassVar[str]
    version: ClassVar[int | None] = None
    known: ClassVar[dict[str, type[Task]]] = {}

    def __init_subclass__(cls) -> None:
        """Make the task known by its name.

        Raises:
            TaskError: the name is one of this package's.
        """
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            return
        package = __name__.partition(".")[0] + "."
        before = Task.known.get(cls.name)
        if before and before.__module__.startswith(package) > cls.__module__.startswith(package):
            raise TaskError(f"{cls.name}: is a task of this package; call yours otherwise")
        Task.known[cls.name] = cls

    @staticmethod
    def named(name: object) -> Task:
        """Return a task with its default options.

        Raises:
            TaskError: there is none of that name.
        """
        expect(name, "task", str, "a task, as vr.FewShot(ways=5), or the name of one")
        if name not in Task.known:
            hint = suggestion(str(name), list(Task.known))
            raise TaskError(f"unknown task {name!r}{hint}; the tasks are {', '.join(Task.known)}")
        return Task.known[str(name)]()

    def parts(self) -> Sequence[Task]:
        """Return the tasks that this one is made of, each with rows of its own, as one a number of shots."""
        return [self]

    def bind(self, store: Latents, seed: int = 0) -> Problem:
        """Return the problem that this task is on a store.

        Args:
            store: with labels, splits, factors.
            seed: of whatever is drawn.

        Raises:
            TaskError: the store cannot support it.
        """
        raise NotImplementedError


def no_rows() -> Rows:
    """Return no row numbers."""
    return np.zeros(0, np.intp)


@dataclass(frozen=True)
class Split:
    """Which images are learned from, chosen on and tested on, by number.

    Args:
        train: may be empty where nothing is fitted.
        val: empty where choices are made by training images alone.
        test: touched once.
        text: what the reader must know of it.
    """

    train: Rows
    test: Rows
    val: Rows = field(default_factory=no_rows)
    text: str = ""

    def __post_init__(self) -> None:
        """Refuse what are no numbers of rows, or one that stands twice on a side.

        Raises:
            TaskError: names the side.
        """
        for side in ("train", "test", "val"):
            given = getattr(self, side)
            if why := hidden_by_mask(given, "numbers of rows", side) or without_order(
                given, "rows"
            ):
                raise TaskError(f"Split: {side}: {why}")
            rows = np.asarray(given)
            if rows.shape == (0,):
                rows = no_rows()
            if rows.ndim != 1 or rows.dtype.kind not in "iu" or rows.min(initial=0) < 0:
                what = "a mask" if rows.dtype == bool else f"{rows.dtype} {rows.shape}"
                raise TaskError(
                    f"Split: {side}: expected numbers of rows from 0, found {what}; np.flatnonzero makes "
                    "them of a mask, and store.ids has the place of an id"
                )
            numbers, times = np.unique(rows, return_counts=True)
            if len(numbers) < len(rows):
                raise TaskError(
                    f"Split: {side}: expected every row once, found {numbers[times.argmax()]} "
                    f"{times.max()} times; take it out, as it would count as often"
                )
            object.__setattr__(self, side, rows.astype(np.intp))


@dataclass(frozen=True, eq=False)
class Scored:
    """Features under a head: what training data say of them, and what the problem's figures are made of.

    Args:
        features: what was scored.
        outcome: an array that the problem knows how to read; by default a value of each test item.
        training_score: what choices are made by, the more the better; None where nothing tells.
        scaling: what the head did to features first; None where it does not say.
        seconds: that it took.
    """

    features: Features
    outcome: NDArray[Any]
    training_score: float | None = None
    scaling: str | None = None
    seconds: float = 0.0


class Problem:
    """A task on one store. By default: predict a target of each test image from its features.

    Classes are told apart (`accuracy`, `balanced_accuracy`, `error`, which is 1 - accuracy), numbers
    regressed (`r2`, `pearson`); other metrics are of a subclass, which replaces what is different:
    `score` where something else is measured; `items` where an outcome is no value of each test item;
    `evaluate` where a metric is no mean of items.

    Args:
        store: whose features are scored.
        split: rows to learn from, to choose on and to test on.
        targets: of every image (N,): whole numbers or text are classes, floats are numbers.
        heads: estimators by name, each for rows of its own; `ridge` if not given.
        metrics: names; the first is the one that is compared. Of `error` and `eer` less is better. A number
            may follow, as `tar@0.1`, the column `at` of its rows.
        units: who each image is of (N,): what is resampled; each image by itself if not given.
        chance: the value of a guess; if not given what is known of the metric, as the largest class's share.
        default_heads: names of the heads that are run where none is named; all of them if not given.

    Raises:
        TaskError: a metric that is neither known of such targets nor of a subclass; rows that the store does
            not have; targets or units of another number of images.

    Attributes:
        split, targets, heads, metrics, units, chance, default_heads: as given.
        fitted: rows that may be learned of: PCA of pixels is, and what pruning goes by.
        sides: names and rows that may have no image in common.
        read_elsewhere: arrays of other files that scores depend on, as measured responses.
        notes: what the reader must know of figures, once they are made.
        mirrored: whether features of mirrored images are added to those of the images.
        n_train, n_test: sizes that a row states.
        work: reads features.
    """

    metrics: tuple[str, ...]
    mirrored: bool = False
    read_elsewhere: Sequence[NDArray[Any]] = ()
    notes: Sequence[str] = ()
    chance: float | None = None

    def __init__(
        self,
        store: Latents,
        split: Split,
        targets: NDArray[Any] | None = None,
        *,
        heads: Mapping[str, Any] | None = None,
        metrics: str | Sequence[str] | None = None,
        units: NDArray[Any] | None = None,
        chance: float | None = None,
        default_heads: str | Sequence[str] | None = None,
    ) -> None:
        self.split, self.work = split, Workspace(store.ids)
        self.targets: NDArray[Any] = np.asarray(
            np.zeros(len(store)) if targets is None else targets
        )
        for side in ("train", "test", "val"):
            if (last := getattr(split, side).max(initial=-1)) >= len(store):
                raise TaskError(
                    f"Split: {side}: expected rows below {len(store)}, the number of images, found {last}"
                )
        for name, values in (("targets", targets), ("units", units)):
            if why := hidden_by_mask(values, "one of each image", name):
                raise TaskError(f"{name}: {why}")
            if values is not None and np.shape(values) != (len(store),):
                raise TaskError(
                    f"{name}: expected one of each of {len(store)} images, found {np.shape(values)}"
                )
        unknown = np.isin(np.arange(len(store)), split.test)
        unknown &= False if units is None else pd.isna(np.asarray(units))
        if unknown.any():
            raise TaskError(
                f"units: expected who each test image is of, found {np.asarray(units)[unknown][0]} for "
                f"{store.ids[int(unknown.argmax())]}; leave it out of the split, or give it one of its own"
            )
        self.numeric = self.targets.dtype.kind == "f"
        if heads is None:
            heads = {"ridge": RidgeRegressor() if self.numeric else Ridge()}
        self.heads = {name: Head(name, estimator) for name, estimator in heads.items()}
        metrics = metrics or getattr(self, "metrics", ()) or self._default_metrics()
        self.metrics = several(metrics, "metrics", str, "names")
        own = type(self)
        self._scores_itself = own.score is Problem.score
        parts = ("items", "evaluate", "figures")
        if self._scores_itself and all(
            getattr(own, name) is getattr(Problem, name) for name in parts
        ):
            self._expect_known_metrics()
        if self._scores_itself and targets is not None:
            self.notes = self._expect_targets(store)
        self.units = np.arange(len(store)) if units is None else np.asarray(units)
        is_number = isinstance(chance, Real) and not isinstance(chance, bool)
        if chance is not None and not (is_number and np.isfinite(float(chance))):
            raise TaskError(f"chance: expected a number, found {chance!r:.80}")
        self.chance = chance
        own_heads = tuple(self.heads) if default_heads is None else default_heads
        self.default_heads = several(own_heads, "default_heads", str, "names")
        self.fitted = split.train
        self.n_train, self.n_test = len(split.train), len(split.test)
        sides = {"train": split.train, "val": split.val, "test": split.test}
        self.sides: Sequence[tuple[str, Rows]] = list(sides.items())

    def _default_metrics(self) -> tuple[str, ...]:
        return ("r2",) if self.numeric else ("accuracy",)

    def _expect_known_metrics(self) -> None:
        known = OF_NUMBERS if self.numeric else OF_CLASSES
        for metric in self.metrics:
            if metric not in known:
                targets = "numbers" if self.numeric else "classes"
                raise TaskError(
                    f"metrics: expected {', '.join(known)} of {targets}, found {metric!r}; a Problem "
                    "of yours with `items` or `score` may have others"
                )

    def _expect_targets(self, store: Latents) -> list[str]:
        """Refuse targets that nothing can be told of, and return what is to be said of others.

        Raises:
            TaskError: a side without images; targets of another type; numbers that are not finite, or do not
                differ among test images; test images of classes that no training image has.
        """
        train, test = self.split.train, self.split.test
        for side, rows in (("train", train), ("test", test)):
            if not len(rows):
                raise TaskError(f"Split: {side}: expected numbers of rows, found none")
        kind = self.targets.dtype.kind
        known = kind in "biufU" or (kind == "O" and all(isinstance(t, str) for t in self.targets))
        if not known:
            odd = next((t for t in self.targets if not isinstance(t, str)), None)
            found = self.targets.dtype if kind != "O" else f"{type(odd).__name__} {odd!r:.80}"
            raise TaskError(
                f"targets: expected floats, which are numbers, or whole numbers or text, which are classes, "
                f"found {found}; convert them"
            )
        truth = self.targets[test]
        if self.numeric:
            used = np.unique(np.concatenate([train, self.split.val, test]))
            if (unknown := used[~np.isfinite(self.targets[used])]).size:
                first = int(unknown[0])
                raise TaskError(
                    f"targets: expected finite numbers, found {self.targets[first]} for {store.ids[first]}; "
                    "leave it out of the split"
                )
            asked = [metric for metric in self.metrics if metric in OF_NUMBERS]
            if asked and np.ptp(truth) == 0:
                raise TaskError(
                    f"targets: expected numbers that differ among test images, of which {asked[0]} is, found "
                    f"{truth[0]:g} of {'all ' if len(truth) > 1 else ''}{len(truth)}; test on more images"
                )
            line = apart_from_others([self.targets[used]])
            return [f"targets: {line}: it counts as known; leave such images out"] if line else []
        outside = ~np.isin(truth, self.targets[train])
        names = sorted({str(name) for name in truth[outside]})
        listed = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        if outside.all():
            raise TaskError(
                f"targets: expected test images of classes that training images have, found none: {listed} "
                "are in test alone; split the images of each class"
            )
        classes = [str(name) for name in np.unique(self.targets[np.union1d(train, test)])]
        about = (*may_stand_for_none(classes), *(look_alikes(classes) if kind in "UO" else ()))
        said = [f"targets: {line}" for line in about]
        said += [
            f"targets: {name!r} is a class; leave images out of which none is known"
            for name in classes
            if is_missing(name)
        ]
        if not outside.any():
            return said
        said.append(
            f"{outside.sum()} of {len(truth)} test images are of classes that no training image has "
            f"({listed}), and count as not told"
        )
        return said

    def about_images(self, images: NDArray[np.uint8], ids: Sequence[str]) -> list[str]:
        """Refuse an image that is in two of `sides`, and return lines about images that are there twice.

        Args:
            images: as stored, (N, H, W, 3).
            ids: of them.

        Raises:
            TaskError: names both.
        """
        return about_copies(images, ids, self.sides, None if self.numeric else self.targets)

    def counted(self) -> str:
        """Return how much was learned from and tested on, in the words of the task."""
        return f"{self.n_train} training + {self.n_test} test images"

    def metrics_of(self, head: Head) -> tuple[str, ...]:
        """Return the metrics of a head's rows; the first is the one that is compared."""
        return self.metrics

    def protocol(self, head: Head) -> str | None:
        """Return the protocol's name; None for the task's own."""
        return None

    def heads_of(self, name: str, estimator: Any) -> dict[str, Head]:
        """Return the heads that an estimator of the user's makes: one under its name.

        Raises:
            TaskError: it predicts numbers where there are classes, or the other way round.
        """
        head = Head(name, estimator)
        head.expect_predictor()
        if not head.predicts:
            raise TaskError(f"heads: {name!r} predicts nothing; end a pipeline with a classifier")
        if head.regresses != self.numeric:
            found, expected = ("regressor", "classifier")[:: 1 if head.regresses else -1]
            raise TaskError(
                f"heads: expected a {expected} for this task, found {name!r}, a {found}"
            )
        return {name: head}

    def pca(self, X: NDArray[Any], dims: Sequence[int]) -> list[Features]:
        """Return PCA of pixels (N, D), fitted on `fitted`: at these sizes, and at some to choose from."""
        return controls.pca(X, self.fitted, dims)

    def score(
        self, head: Head, features: Features, seed: int = 0, shuffled: bool = False
    ) -> Scored:
        """Score features under a head; shuffled: after the training images' targets were permuted.

        The outcome is whether each test image's class is told, (N,); of numbers the squared error, the truth
        and what was predicted, (3, N).
        """
        train, val, test = self.split.train, self.split.val, self.split.test
        y = self.shuffled(seed) if shuffled else self.targets[train]
        held = (val, self.targets[val]) if len(val) else None
        truth = self.targets[test]
        if self.numeric:
            predicted = predict_numbers(self.work, head, features, train, y, test, seed, held)
            outcome = np.stack([(predicted.values - truth) ** 2, truth, predicted.values])
            return Scored(features, outcome, predicted.training_score, predicted.scaling)
        scores = score_classes(self.work, head, features, train, y, test, seed, held)
        outcome = (scores.predicted() == truth).astype(np.float64)
        return Scored(features, outcome, scores.training_score, scores.scaling)

    def read(self, head: Head, features: Features) -> NDArray[Any]:
        """Return features (N, r) of every image, as far as a head can tell: r is N at most where it can be.

        Raises:
            TaskError: too many columns for a head that takes columns.
        """
        if head.rotations_change_nothing:
            return self.work.compact(features)
        return self.work.columns(features, head.name)

    def shuffled(self, seed: int) -> NDArray[Any]:
        """Return the training images' targets, permuted."""
        return np.random.default_rng(seed).permutation(self.targets[self.split.train])

    def permutations(self, head: Head) -> int:
        """Return how often training labels are shuffled for the control of that name."""
        last = (
            head.estimator.steps[-1][1] if isinstance(head.estimator, Pipeline) else head.estimator
        )
        return FEWER if isinstance(last, LogisticProbe | SGDProbe) else PERMUTATIONS

    def chance_of(self, metric: str, scored: Scored) -> float | None:
        """Return the value of a guess: the largest class of the test images, or one of all classes."""
        if self.chance is not None or self.numeric:
            known = 0.0 if metric in OF_NUMBERS else None
            return known if self.chance is None else self.chance
        if metric == "accuracy" or (metric == "error" and self._scores_itself):
            counts = np.unique(self.targets[self.split.test], return_counts=True)[1]
            largest = float(counts.max() / counts.sum())
            return largest if metric == "accuracy" else 1 - largest
        if metric == "balanced_accuracy":
            return 1 / len(np.unique(self.targets[self.split.train]))
        return None

    def ceiling_of(self, metric: str, head: Head) -> tuple[float, float] | None:
        """Return between which values noise lets a perfect model come; None where that is not known."""
        return None

    def independent(self, metric: str, seed: int) -> Units:
        """Return which test items are independent."""
        return Units(self.units[self.split.test], seed)

    def items(self, metric: str, scored: Scored) -> Items:
        """Return a metric as a ratio of sums over test items.

        Comparisons are of these. Where the metric is no such sum, what makes it none is held fixed, as a
        threshold, and `evaluate` says what it is where items are drawn. `error` is 1 - accuracy, but with a
        `score` of a subclass the mean of its outcome, like any other metric.
        """
        if metric == "r2":
            return Items.r2(*scored.outcome[:2])
        if _is_correlation(metric, scored):
            return Items.pearson(scored.outcome[2], scored.outcome[1])
        if metric == "error" and self._scores_itself:
            return Items.mean_of(1 - scored.outcome)
        if metric == "balanced_accuracy":
            return Items.balanced(scored.outcome, self.targets[self.split.test])
        return Items.mean_of(scored.outcome)

    def evaluate(
        self, metric: str, scored: Sequence[Scored], units: Units, draws: Iterable[Values] | None
    ) -> Values:
        """Return a metric of each under draws of units, (R, M); under none as it is, (1, M).

        Args:
            metric: its name.
            scored: M of them.
            units: of `independent`.
            draws: how often each cell is there, (R, C) at a time.
        """
        items = [self.items(metric, item) for item in scored]
        if draws is None:
            return np.array([[item.value for item in items]])
        if _is_correlation(metric, scored[0]):
            return np.concatenate(
                [
                    np.stack([pearson(s.outcome[2], s.outcome[1], times) for s in scored], axis=1)
                    for times in map(units.of_items, draws)
                ]
            )
        return weighted(items, units, draws)

    def figures(self, metric: str, scored: Sequence[Sequence[Scored]], seed: int) -> list[Figure]:
        """Return a metric of each: of several draws, as initialisations, the mean."""
        every = [item for draws in scored for item in draws]
        units, span = self.independent(metric, seed), span_of(metric)
        values = self.evaluate(metric, every, units, None)[0]
        resampled = self.evaluate(metric, every, units, units.draws())
        left_out = np.zeros((0, len(every)))
        if span != (0, 1) and units.number < FEW:
            left_out = self.evaluate(metric, every, units, [units.left_out()])
        found, start = [], 0
        for draws in scored:
            own = slice(start, start + len(draws))
            start += len(draws)
            found.append(
                figure(
                    values[own],
                    resampled[:, own],
                    left_out[:, own],
                    units,
                    span,
                    binary=units.alone and self._is_share(metric, draws[0]),
                    chance=self.chance_of(metric, draws[0]),
                )
            )
        return found

    def _is_share(self, metric: str, scored: Scored) -> bool:
        """Return whether a metric is the share of items that are right, which count equally."""
        adds, shares = self.items(metric, scored)
        return bool((shares == shares[0]).all() and np.isin(adds, (0, shares[0])).all())

    def compare(
        self, ours: Sequence[Scored], theirs: Sequence[Scored], head: Head, seed: int
    ) -> Difference:
        """Compare two by a head's first metric, above 0 where the first is better."""
        metric = self.metrics_of(head)[0]
        a, b = ([self.items(metric, item) for item in draws] for draws in (ours, theirs))
        sign = -1 if name_of(metric)[0] in LOWER_IS_BETTER else 1
        return compare(a, b, self.independent(metric, seed), span_of(metric), sign)

    def curve(self, head: Head, scored: Sequence[Scored], seed: int) -> Curve | None:
        """Return the curve that goes with the metrics, if there is one: of several draws the mean."""
        return None

    def confusion(self, head: Head, scored: Scored) -> Confusion | None:
        """Return which class was taken for which, where classes are told apart and that is known."""
        return None

    def tables(self, head: Head, scored: Sequence[Scored], seed: int) -> Mapping[str, pd.DataFrame]:
        """Return tables of what rows do not hold, by name, as one of each voxel.

        Args:
            head: a head.
            scored: all candidates of the store's model under it.
            seed: of draws.
        """
        return {}


def _is_correlation(metric: str, scored: Scored) -> bool:
    """Whether a metric is Pearson's r, of an outcome that holds truth and prediction, (3, N)."""
    return metric == "pearson" and scored.outcome.ndim == 2


def name_of(metric: str) -> tuple[str, float | None]:
    """Return a metric's plain name, and what it is at: `tar@0.1` is `tar` at 0.1."""
    name, _, at = metric.partition("@")
    return name, float(at) if at else None


def span_of(metric: str) -> Span:
    """Return between which values a metric lies."""
    return SPANS.get(name_of(metric)[0], (-np.inf, np.inf))


def expect_several(values: object, name: str, kind: Kind, words: str) -> None:
    """Refuse what is no sequence of values of a type.

    Raises:
        TaskError: names the parameter.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TaskError(f"{name}: expected a list of {words}, found {type(values).__name__}")
    for value in values:
        expect(value, name, kind, words)


def expect(value: object, name: str, kind: Kind, words: str) -> None:
    """Refuse a value of another type.

    Raises:
        TaskError: names the parameter.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        found = f"{type(value).__name__} {value!r:.80}"
        raise TaskError(f"{name}: expected {words}, found {found}")


def expect_at_least(task: Task, least: Mapping[str, int]) -> None:
    """Make options of a task ints, and refuse what is no whole number, or below the least.

    None stays where it is the default.

    Raises:
        TaskError: names the option.
    """
    for name, lowest in least.items():
        value = getattr(task, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is None and getattr(type(task), name) is None:
                continue
            expect(number, name, Integral, "a whole number")
            if number < lowest:
                raise TaskError(f"{name}: expected at least {lowest}, found {number}")
        plain = tuple(map(int, value)) if isinstance(value, tuple) else python_number(value)
        object.__setattr__(task, name, plain)


def several(value: Any, name: str, kind: Kind, words: str) -> tuple[Any, ...]:
    """Return one value of a type, or several, as a tuple without those that come twice.

    Raises:
        TaskError: names the parameter.
    """
    values = [value] if isinstance(value, kind) else value
    expect_several(values, name, kind, words)
    return tuple(dict.fromkeys(values))


def has_splits(splits: NDArray[np.str_], name: object) -> bool:
    """Return whether images (N,) are split into train and others; False where all are of one split.

    Raises:
        TaskError: they are of several splits, none of which is `train`.
    """
    if (splits == "train").any():
        return True
    if len(known := sorted(set(splits.tolist()))) > 1:
        raise TaskError(
            f"{name}: expected a split train, found {', '.join(split or 'no split' for split in known)}; "
            "extract with splits called train, val and test, or with none"
        )
    return False


def without_splits(splits: NDArray[np.str_]) -> str:
    """Say why images (N,) are not split, as `has_splits` found.

    >>> without_splits(np.array(["", ""])), without_splits(np.array(["test", "test"]))
    ('no splits', 'all images are of split test')
    """
    return f"all images are of split {splits[0]}" if splits[0] else "no splits"


def of_other_splits(splits: NDArray[np.str_]) -> str:
    """Say how many images (N,) are left out, as they are of no split, or of one that tasks do not know.

    >>> of_other_splits(np.array(["train", "eval", "", "eval"])), of_other_splits(np.array(["train"]))
    ('; 1 image of no split left out; 2 images of split eval left out', '')
    """
    counts = Counter(splits[~np.isin(splits, SPLITS)].tolist())
    return "".join(
        f"; {counted(counts[split], 'image')} of {f'split {split}' if split else 'no split'} left out"
        for split in sorted(counts)
    )


def first_halves(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Flag the first half of each label's images, of labels (N,), -1 where none: a gallery without splits."""
    first = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        first[members[: len(members) // 2]] = True
    return first


def of_every_split(splits: Sequence[str]) -> str:
    """Say that images (N,) are taken whatever their split; empty where all are of one.

    >>> of_every_split(["train", "test", "train"]), of_every_split(["", ""])
    ('; images of every split are taken: test (1), train (2)', '')
    """
    counts = Counter(splits)
    if len(counts) < 2:
        return ""
    listed = ", ".join(f"{split or 'none'} ({counts[split]})" for split in sorted(counts))
    return f"; images of every split are taken: {listed}"
