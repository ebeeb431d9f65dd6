"""`factors`: how much each layer knows of each known factor of the images, by ridge regression."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics import balanced_accuracy_score

from vdvae_repr.data.names import SPLITS
from vdvae_repr.errors import TaskError, counted
from vdvae_repr.heads.gram import Scaling, centre_and_scale
from vdvae_repr.heads.linear import GroupedRidge, RidgeRegressor, apart_from_others, beyond_squares
from vdvae_repr.latents.base import Latents
from vdvae_repr.latents.store import JoinedStore
from vdvae_repr.probing.features import Columns, Features, hash_text
from vdvae_repr.probing.head import Head, estimator_digest
from vdvae_repr.probing.statistics import Items
from vdvae_repr.probing.task import (
    Problem,
    Scored,
    Split,
    Task,
    has_splits,
    of_other_splits,
    several,
)

CODES = 10  # different whole numbers at most, which may be codes; more are ages, counts or years


@dataclass(frozen=True, kw_only=True)
class Factors(Task):
    """What does each layer know of each known factor of the images?

    Numbers, whole ones too, are regressed: R2 and Pearson's r. Text and booleans are categories: balanced
    accuracy. Text that reads as numbers throughout, as in tables, is numbers, unless zeros stand in front
    (`007`) or it has more digits than float64 tells apart, as an id. The options `numbers` and `categories`
    say otherwise, as of codes that are whole numbers.

    Each factor is a head, `ridge:NAME`. Tested on people whom nothing was learned of, so that a factor that
    belongs to a person is not read off who it is: without splits, half of the people, drawn by the seed. With
    splits, train against the others; the notes say where people are on both sides.
    By ridge regression on standardised features, of categories as +1 and -1. Each person is left out once to
    find the penalty and to choose a layer: leaving out single images would choose what tells training people
    apart. Intervals and comparisons resample people.
    """

    name: ClassVar[str] = "factors"
    version: ClassVar[int | None] = 4

    numbers: Sequence[str] = field(
        default=(), metadata={"help": "A factor that is numbers. May be repeated."}
    )
    categories: Sequence[str] = field(
        default=(), metadata={"help": "A factor that is categories, as a code. May be repeated."}
    )

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("numbers", "categories"):
            names = several(getattr(self, name), name, str, "names of factors")
            object.__setattr__(self, name, names)
        if both := [name for name in self.numbers if name in self.categories]:
            raise TaskError(
                f"numbers and categories: expected a factor in one of them, found {both[0]!r} in both"
            )

    def bind(self, store: Latents, seed: int = 0) -> FactorProblem:
        """Return the factors that a store knows of its images."""
        return FactorProblem(store, self, seed)


@dataclass(frozen=True)
class FactorHead(Head):
    """A head of one factor. `grouped`: by ridge regression that leaves each person out, for all factors."""

    factor: str = ""
    grouped: bool = True

    @cached_property
    def digest(self) -> str | None:
        """A hash of what it computes, of which factor."""
        of_estimator = estimator_digest(self.estimator)
        how = f"grouped {GroupedRidge.version}" if self.grouped else "by columns"
        return of_estimator and hash_text(of_estimator, self.factor, how)


class FactorProblem(Problem):
    """Factors of people who were not learned of.

    The outcome is of each test image the loss, the truth and what was predicted, (3, N); categories by
    number. The mean loss is the squared error of numbers, 1 less the balanced accuracy of categories.
    """

    def __init__(self, store: Latents, task: Factors, seed: int) -> None:
        if not store.factors:
            raise TaskError(
                f"{store.path}: knows no factors of its images; give them as columns of a CSV "
                "beside file and label (docs/data.md), or extract toy-faces:100x5, which has some"
            )
        found = _read_factors(store, task)
        labels, splits = store.labels, np.array(store.splits)
        known = labels >= 0
        lacking = {
            name: without
            for name, (values, present) in found.items()
            if len(np.unique(values[known & present])) > 1
            and (without := int((known & ~present).sum()))
        }
        for name in lacking:
            known &= found[name][1]
        left_out = ""
        if lacking:
            listed = ", ".join(f"{name} ({count})" for name, count in lacking.items())
            count = int((labels >= 0).sum() - known.sum())
            images = "1 image that lacks" if count == 1 else f"{count} images that lack"
            left_out = f"; left out are {images} {listed}"
        if none := int(np.sum(labels < 0)):
            left_out += (
                f"; {counted(none, 'unlabelled image')} left out, as labels say who is tested on"
            )
        people = np.unique(labels[known])
        if has_splits(splits, store.path):
            train = known & (splits == "train")
            left_out += of_other_splits(splits[known])
            known &= np.isin(splits, SPLITS)
            text = "fitted on split train, tested on the other splits"
        else:
            some = np.random.default_rng(seed).permutation(people)[: len(people) // 2]
            train = known & np.isin(labels, some)
            fitted = "1 person" if len(some) == 1 else f"{len(some)} people"
            text = f"fitted on {fitted}, drawn with seed {seed}, tested on the others"
        train, test = np.flatnonzero(train), np.flatnonzero(known & ~train)
        if min(len(train), len(test)) < 10:
            raise TaskError(
                f"{store.path}: expected at least 10 images to fit on and to test on, found "
                f"{len(train)} and {len(test)}{left_out}"
            )
        several = len(np.unique(labels[train])) > 1
        self.groups = labels[train] if several else np.arange(len(train))
        self.factors = {
            head: values
            for head, (values, present) in found.items()
            if all(len(np.unique(values[side][present[side]])) > 1 for side in (train, test))
        }
        for head, values in self.factors.items():
            if not (finite := np.isfinite(values[known])).all():
                image = store.ids[int(np.flatnonzero(known)[finite.argmin()])]
                raise TaskError(
                    f"{store.path}: expected a finite number as {head} of {image}, found infinity; leave the "
                    "image out"
                )
            for side in (train, test) if values.dtype.kind == "f" else ():
                if why := beyond_squares(values[side]):
                    raise TaskError(f"{store.path}: {head}: {why}")
        if not self.factors:
            if rare := [
                head
                for head, (values, present) in found.items()
                if len(np.unique(values[known & present])) > 1
            ]:
                raise TaskError(
                    f"{store.path}: expected factors that vary among the images to fit on and among those to "
                    f"test on, found {', '.join(rare)}, the same on all images of a side ({text}); other "
                    "splits or another seed divide them otherwise"
                )
            raise TaskError(
                f"{store.path}: expected factors that vary among the images, found "
                f"{', '.join(store.factors)}, the same on all; extract the data toy-faces:100x5"
            )
        text += f" ({len(train)} and {len(test)} images){left_out}"
        if left := [head for head in found if head not in self.factors]:
            text += f"; {', '.join(left)} left out, the same on all images of a side"
        if shared := len(np.intersect1d(labels[train], labels[test])):
            people_are = "1 person is" if shared == 1 else f"{shared} people are"
            text += f"; {people_are} on both sides, so what is theirs tells who they are"
        for name, values in self.factors.items():
            if values.dtype.kind == "f":
                if line := apart_from_others([values[known]]):
                    text += f"; {name}: {line}: it counts as known; leave it empty where it is not"
                kinds = np.unique(values[np.isfinite(values)])
                if len(kinds) <= CODES and name not in task.numbers and not (kinds % 1).any():
                    text += (
                        f"; {name} is {len(kinds)} whole numbers, read as numbers: categories reads them "
                        "as codes"
                    )
                continue
            unknown = test[~np.isin(values[test], values[train])]
            if len(unknown):
                example = store.factors[name][unknown[0]]
                text += (
                    f"; {name} of {counted(len(unknown), 'test image')} is none of the training images', "
                    f"as {example}"
                )
        if isinstance(store, JoinedStore):
            text += "".join(f"; {line}" for line in _about_both(store, task))
        super().__init__(store, Split(train, test, text=text), heads={}, units=labels)
        self.heads = {
            f"ridge:{name}": FactorHead(f"ridge:{name}", RidgeRegressor(), factor=name)
            for name in self.factors
        }
        self.default_heads = tuple(self.heads)
        self._last: tuple[tuple[Columns, ...], GroupedRidge] | None = None

    def metrics_of(self, head: Head) -> tuple[str, ...]:
        """Return R2 and Pearson's r of numbers, balanced accuracy of categories."""
        if self._is_categorical(self._factor(head)):
            return ("balanced_accuracy",)
        return ("r2", "pearson")

    def heads_of(self, name: str, estimator: Any) -> dict[str, Head]:
        """Return a head `NAME:FACTOR` for each number, of a regressor, or category, of a classifier.

        Raises:
            TaskError: there is none.
        """
        head = Head(name, estimator)
        head.expect_predictor()
        regresses = head.regresses
        heads: dict[str, Head] = {
            f"{name}:{factor}": FactorHead(f"{name}:{factor}", estimator, factor, grouped=False)
            for factor in self.factors
            if self._is_categorical(factor) != regresses
        }
        if not heads:
            kinds = ("numbers", "a regressor") if regresses else ("categories", "a classifier")
            raise TaskError(f"heads: {name!r} is {kinds[1]}, and no factor is of {kinds[0]}")
        return heads

    def score(
        self, head: Head, features: Features, seed: int = 0, shuffled: bool = False
    ) -> Scored:
        """Fit a factor, and predict that of the test images."""
        factor, train, test = self._factor(head), self.split.train, self.split.test
        values = self.factors[factor]
        y, truth = values[train], values[test]
        if shuffled:
            y = np.random.default_rng(seed).permutation(y)
        if isinstance(head, FactorHead) and not head.grouped:
            predicted, left_out = self._by_columns(head, features, y, seed)
        else:
            predicted, left_out = self._by_ridge(features, y, self._is_categorical(factor))
        if self._is_categorical(factor):
            training = float(balanced_accuracy_score(y, left_out))
            _, kind, counts = np.unique(truth, return_inverse=True, return_counts=True)
            loss = (predicted != truth) * len(truth) / (len(counts) * counts[kind])
        else:
            error = float(((left_out - y) ** 2).mean())
            training = 1 - error / max(float(y.var()), 1e-300)
            loss = (predicted - truth) ** 2
        outcome = np.stack([loss, truth.astype(float), predicted.astype(float)])
        return Scored(features, outcome, training, self._scaling(head, features))

    def items(self, metric: str, scored: Scored) -> Items:
        """Return R2 and Pearson's r of numbers, balanced accuracy of categories that are right or not."""
        _, truth, predicted = scored.outcome
        if metric == "balanced_accuracy":
            return Items.balanced(predicted == truth, truth)
        return super().items(metric, scored)

    def chance_of(self, metric: str, scored: Scored) -> float | None:
        """Return one of all categories; of numbers 0, what their mean is worth."""
        if metric == "balanced_accuracy":
            return 1 / len(np.unique(scored.outcome[1]))
        return 0.0

    def _factor(self, head: Head) -> str:
        return head.factor if isinstance(head, FactorHead) else head.name

    def _is_categorical(self, factor: str) -> bool:
        return self.factors[factor].dtype.kind != "f"

    @staticmethod
    def _scaling(head: Head, features: Features) -> str | None:
        if isinstance(head, FactorHead) and not head.grouped:
            return None
        return "standardised" if features.standardise else "centred"

    def _by_ridge(
        self, features: Features, y: NDArray[Any], categorical: bool
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Predict a factor of the test images, and of each person's training images from the others'."""
        kinds = np.unique(y)
        targets = 2.0 * (y[:, None] == kinds) - 1 if categorical else y[:, None]
        predicted, left_out = self._ridge(features).solve(targets)
        if categorical:
            return kinds[predicted.argmax(axis=1)], kinds[left_out.argmax(axis=1)]
        return predicted[:, 0], left_out[:, 0]

    def _by_columns(
        self, head: Head, features: Features, y: NDArray[Any], seed: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Do the same by an estimator; a fifth of the people are left out at a time, drawn by the seed."""
        X = self.read(head, features)
        train = X[self.split.train]
        people = np.unique(self.groups)
        folds = np.array_split(np.random.default_rng(seed).permutation(people), min(5, len(people)))
        estimator, left_out = head.fresh(seed), np.empty_like(y)

        def told(fitted: Any, some: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
            if head.regresses:
                return head.numbers_told(fitted.predict(some), len(some))
            return head.classes_told(fitted.predict(some), y.tolist(), len(some))

        for people_out in folds:
            out = np.isin(self.groups, people_out)
            fitted = clone(estimator).fit(train[~out], y[~out])
            left_out[out] = told(fitted, train[out], y[~out])
        tested = X[self.split.test]
        return told(estimator.fit(train, y.copy()), tested, y), left_out

    def _ridge(self, features: Features) -> GroupedRidge:
        """Return what solves all factors; the last is kept, as factors of one candidate follow another."""
        if self._last is None or self._last[0] is not features.columns:
            Z = self._standardised(features)
            train, test = Z[self.split.train], Z[self.split.test]
            self._last = features.columns, GroupedRidge(train, self.groups, test)
        return self._last[1]

    def _standardised(self, features: Features) -> NDArray[Any]:
        """Return coordinates (N, r) of features standardised on the training images."""
        train = self.split.train
        if features.dims > len(train):
            scaling: Scaling = "standardised" if features.standardise else "centred"
            return self.work.coordinates(features, train, scaling)
        X = self.work.matrix(features).astype(np.float64)
        mean, scale = centre_and_scale(X[train], features.standardise)
        return np.asarray((X - mean) / scale)


def _about_both(store: JoinedStore, task: Factors) -> list[str]:
    """Say which factors one of two stores lacks, and which are numbers in one alone."""
    lines = []
    first, second = store.stores
    for own, other in ((first, second), (second, first)):
        if alone := [name for name in own.factors if name not in other.factors]:
            lines.append(f"{', '.join(alone)} left out, which {other.path} lacks")
    for name in store.factors:
        if name in task.numbers or name in task.categories:
            continue
        kinds = [_is_numbers(each.factors[name]) for each in store.stores]
        if kinds[0] != kinds[1]:
            of_numbers = first if kinds[0] else second
            lines.append(f"{name} is numbers in {of_numbers.path} alone")
    return lines


def _is_numbers(values: NDArray[Any]) -> bool:
    """Whether all values (N,) of a factor read as numbers."""
    return values.dtype.kind != "b" and _numbers(values) is not None


def _read_factors(
    store: Latents, task: Factors
) -> dict[str, tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Return each factor's values (N,), and of which images it is known (N,).

    They are numbers, float64, or the numbers of categories, integers. NaN, or no text, is of an image that
    lacks the factor.

    Raises:
        TaskError: a factor is named that the store does not know, or that is no numbers.
    """
    for option in ("numbers", "categories"):
        for name in getattr(task, option):
            if name not in store.factors:
                known = ", ".join(store.factors)
                raise TaskError(
                    f"{option}: expected factors of {store.path}, {known}; found {name!r}"
                )
    found: dict[str, tuple[NDArray[Any], NDArray[np.bool_]]] = {}
    for name, values in store.factors.items():
        numbers = (
            None if values.dtype.kind == "b" and name not in task.numbers else _numbers(values)
        )
        if name in task.numbers and numbers is None:
            raise TaskError(f"numbers: expected a number as {name} of each image, found text")
        present = (
            ~np.isin(values.astype(str), ("", "nan")) if numbers is None else ~np.isnan(numbers)
        )
        is_category = numbers is None or _are_codes(values)
        if name in task.categories or (is_category and name not in task.numbers):
            found[name] = np.unique(values, return_inverse=True)[1], present
        else:
            assert numbers is not None
            found[name] = numbers, present
    return found


def _are_codes(values: NDArray[Any]) -> bool:
    """Return whether values are written as no amount is: as `007`, or longer than float64 tells apart."""
    if values.dtype.kind in "iu":
        return bool(((values > 2**53) | (values < -(2**53))).any())
    return values.dtype.kind in "OU" and any(
        text.isdecimal() and ((len(text) > 1 and text[0] == "0") or int(text) > 2**53)
        for text in map(str, values)
    )


def _numbers(values: NDArray[Any]) -> NDArray[np.float64] | None:
    """Return values as numbers; None where one of them does not read so."""
    if values.dtype.kind in "OU" and any(
        "_" in text or not text.isascii() for text in map(str, values)
    ):
        return None  # Python reads 1_2 as 12
    with suppress(ValueError, TypeError):
        return values.astype(np.float64)
    return None
