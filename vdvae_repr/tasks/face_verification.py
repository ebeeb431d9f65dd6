"""`face_verification`, protocols `lfw-view1`, `lfw-view2` and `pairs`: are two images of one person?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice
from numbers import Real
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.config import path_of
from vdvae_repr.data.faces import Pairs, about_pairs, is_table, read_pair_lists
from vdvae_repr.errors import TaskError, counted, first_line
from vdvae_repr.heads import verification as heads
from vdvae_repr.heads.spectrum import Spectrum
from vdvae_repr.latents.base import Latents
from vdvae_repr.probing import controls
from vdvae_repr.probing.features import Columns, Features, hash_arrays, hash_text
from vdvae_repr.probing.head import Head, is_ours
from vdvae_repr.probing.statistics import (
    AT_ONCE,
    Figure,
    Items,
    PairUnits,
    Units,
    Values,
    band,
    over_folds,
    spread,
)
from vdvae_repr.probing.task import (
    Problem,
    Scored,
    Split,
    Task,
    expect,
    name_of,
    of_every_split,
    several,
)
from vdvae_repr.results import CONTROLS, Curve

CURVES = 500  # draws of people of what is read off the ROC
HEADS = {"cosine": heads.Centred(), "cosine-whitened": heads.Whitened()}
Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FaceVerification(Task):
    """Pairs of images, compared by cosine after the training images' mean is subtracted.

    A table of one's own has the protocol `pairs`, LFW's lists those of their views; both are treated alike.
    With training pairs (`lfw-view1`) the threshold comes from them; without (`lfw-view2`) that of each fold
    from the other folds, and so do means and principal components. View 2 chooses no row, because each of its
    pairs is tested on: layers are chosen on View 1. What is independent is, of View 2's accuracy, a fold, and
    else a person: a pair counts as often as its person, or as its two people together, so that each kind
    keeps its share on average. Comparisons hold the thresholds as they were found.

    A head is a transformer, fitted on the training images; pairs are compared by the cosine of what it makes.
    """

    name: ClassVar[str] = "face_verification"
    version: ClassVar[int | None] = 1

    pairs: str | Path | None = field(
        default=None,
        metadata={"help": "Pairs to test, LFW's list or a CSV of two ids and same; needed."},
    )
    pairs_train: str | Path | None = field(
        default=None, metadata={"help": "Pairs to find the threshold on."}
    )
    far: Sequence[float] | None = field(
        default=None,
        metadata={"help": "A false accept rate; those that there are impostors enough for."},
    )

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("pairs", "pairs_train"):
            path = getattr(self, name)
            expect(path, name, str | Path | None, "a file")
            if path is not None:
                object.__setattr__(self, name, path_of(name, path))
        if self.far is not None:
            object.__setattr__(self, "far", several(self.far, "far", Real, "rates"))

    def bind(self, store: Latents, seed: int = 0) -> Verification:
        """Return pairs of a store's images.

        Raises:
            TaskError: there is no list of pairs, or what is in it cannot be told.
        """
        if self.pairs is None:
            raise TaskError(
                "face_verification: expected a list of pairs, LFW's or a CSV of two ids and same; "
                "give pairs=FILE"
            )
        return Verification(store, Path(self.pairs), self.pairs_train, self.far, seed)


class _Outcome(NamedTuple):
    similarity: Scores
    threshold: Scores
    same: Flags

    @classmethod
    def of(cls, scored: Scored) -> _Outcome:
        similarity, threshold, same = scored.outcome
        return cls(similarity, threshold, same.astype(bool))

    @property
    def correct(self) -> Scores:
        return ((self.similarity >= self.threshold) == self.same).astype(float)


class Verification(Problem):
    """Pairs of images; the outcome is similarity, threshold and truth of each, (3, P)."""

    def __init__(
        self,
        store: Latents,
        pairs: Path,
        pairs_train: str | Path | None,
        far: Sequence[float] | None,
        seed: int = 0,
    ) -> None:
        sides: Sequence[tuple[str, NDArray[np.intp]]] = ()
        self.test, self.choose, notes = read_pair_lists(pairs, pairs_train, store.ids)
        folds = int(self.test.fold.max()) + 1
        if self.choose is None and folds < 2:
            raise TaskError(
                f"{pairs}: one fold, so that nothing says where the threshold is; give pairs_train=FILE"
            )
        self.view2, self._table = self.choose is None, is_table(pairs)
        self._shares = 1 / np.bincount(self.test.fold)[self.test.fold]
        lists = [self.test] if self.choose is None else [self.test, self.choose]
        columns = zip(*((p.first, p.second, p.same, p.fold) for p in lists), strict=True)
        self._pairs = Pairs(*(np.concatenate(column) for column in columns))
        if self.choose is None:
            self._tested = [self.test.fold == fold for fold in range(folds)]
        else:
            self._tested = [np.arange(len(self._pairs.same)) < len(self.test.same)]
        self.mirrored = store.info.mirror
        tested = _rows(self.test)
        if self.choose is not None:
            sides = [("training pairs", _rows(self.choose)), ("test pairs", tested)]
            if shared := set(sides[0][1]) & set(tested):
                raise TaskError(
                    f"{store.ids[min(shared)]} is in the training pairs and in the test pairs; "
                    "take it out of one"
                )
        _, person = np.unique(_people(store, by_label=is_table(pairs)), return_inverse=True)
        self.people = person[self.test.first], person[self.test.second]
        if person.max() < 1:
            raise TaskError(
                f"{pairs}: expected images of at least 2 people, found 1 in {store.path}"
            )
        tested_of = [_rows(self._pairs, tested) for tested in self._tested]
        often = np.bincount(np.concatenate(tested_of), minlength=len(store))
        if (often > 1).any():
            raise TaskError(
                f"{pairs}: {store.ids[int(often.argmax())]} is in {often.max()} folds; keep it in one"
            )
        if (least := min(len(self._training(tested)) for tested in self._tested)) < 2:
            raise TaskError(
                f"expected at least 2 images to learn of, found {least}; give more pairs"
            )
        impostors = int((~self.test.same).sum())
        kept = heads.enough(impostors) if far is None else list(far)
        for rate in kept:  # one that was asked for and is too fine is an error
            heads.check_far(rate, impostors)
        metrics = ("accuracy", "auc", "eer", *(f"tar@{float(rate)!r}" for rate in kept))
        n_train = 0 if self.choose is None else len(self.choose.same)
        n_test = len(self.test.same)
        others = np.setdiff1d(np.arange(len(store)), tested)
        fitted = others if self.choose is None else _rows(self.choose)
        self._seed = seed
        self._curves: dict[bool, tuple[tuple[Sequence[Scored], int], dict[str, Values]]] = {}
        self._compared_last: tuple[str, Features, list[Scores]] | None = None
        where = (
            f"thresholds from the other {folds - 1} folds, so that no pairs are left to choose a row on"
            if self.choose is None
            else f"threshold from {n_train} pairs"
        )
        added = "with" if self.mirrored else "without"
        text = f"{n_test} pairs, {where}; {added} the mirrored images' features added"
        for line in (*notes, *about_pairs(self._pairs, store.labels, store.ids)):
            text += f"; {line}"
        text += self._known_people(person, tested_of)
        text += of_every_split([store.splits[i] for i in _rows(self._pairs)])
        if left := [rate for rate in heads.FARS if rate not in kept and far is None]:
            few = counted(impostors, "impostor", "is", "are")
            text += f"; {few} too few for FAR {', '.join(map(str, left))}"
        super().__init__(store, Split(fitted, tested, text=text), heads=HEADS, metrics=metrics)
        self.n_train, self.n_test, self.sides = n_train, n_test, sides

    def _known_people(self, person: NDArray[np.intp], tested_of: Sequence[NDArray[np.intp]]) -> str:
        """Count the people (N,) who are tested on and learned of, by other images; nothing if there are none.

        `tested_of` holds the rows that each fold tests on.
        """
        sides = tested_of if self.choose is None else [tested_of[0], _rows(self.choose)]
        often = np.bincount(np.concatenate([np.unique(person[rows]) for rows in sides]))
        if not (known := int((often > 1).sum())):
            return ""
        where = "in several folds" if self.choose is None else "in training and in test pairs"
        return (
            f"; {known} of {int((often > 0).sum())} people are {where}, by other images, so that this is "
            "not a test on strangers"
        )

    def about_images(self, images: NDArray[np.uint8], ids: Sequence[str]) -> list[str]:
        """Count the pairs of one image and its copy too, which are told by themselves.

        They are no error, as lists that are official have some.
        """
        lines = super().about_images(images, ids)
        pairs = zip(self._pairs.first, self._pairs.second, strict=True)
        copies = [(a, b) for a, b in pairs if np.array_equal(images[a], images[b])]
        if not copies:
            return lines
        a, b = copies[0]
        return [
            *lines,
            f"{len(copies)} of {len(self._pairs.same)} pairs are of an image and its copy, as {ids[a]} and "
            f"{ids[b]}, so that any features tell them; take them out, unless the list is official",
        ]

    def counted(self) -> str:
        """Return the number of pairs, and of people in the store."""
        learned = f"{self.n_train} training + " if self.n_train else ""
        return f"{learned}{self.n_test} test pairs, {PairUnits(*self.people, 0).number} people"

    def protocol(self, head: Head) -> str:
        """Return `pairs` of a table, else the view; that of View 2 without the mirrored images says so."""
        if self._table:
            return "pairs"
        if not self.view2:
            return "lfw-view1"
        return "lfw-view2" if self.mirrored else "lfw-view2-unmirrored"

    def heads_of(self, name: str, estimator: Any) -> dict[str, Head]:
        """Return a head of a transformer.

        Raises:
            TaskError: it transforms nothing.
        """
        if not hasattr(estimator, "transform"):
            raise TaskError(
                f"heads: face_verification compares what a transformer makes of images, and {name!r} "
                "transforms nothing; take one, as PCA"
            )
        return {name: Head(name, estimator)}

    def pca(self, X: NDArray[Any], dims: Sequence[int]) -> list[Features]:
        """PCA of each fold's training images; the columns are the pixels, and each fold projects them."""
        training = [self._training(tested) for tested in self._tested]
        sizes = controls.pca_sizes(dims, min(min(map(len, training)) - 1, X.shape[1]))
        by_size = cache(lambda: self._of_components(X, sizes))
        made_of = cache(lambda: hash_arrays(X))
        return [
            FoldComponents(
                "pca",
                None,
                (_pixels(X, size, made_of),),
                standardise=False,
                cosines=partial(_looked_up, by_size, size),
            )
            for size in sizes
        ]

    def score(
        self, head: Head, features: Features, seed: int = 0, shuffled: bool = False
    ) -> Scored:
        """Compare the pairs; the outcome is similarity, threshold and truth of each."""
        same = self._pairs.same
        if shuffled:
            rng = np.random.default_rng(seed)
            same = np.concatenate(
                [rng.permutation(side) for side in np.split(same, [self.n_test]) if len(side)]
            )
        similarity, thresholds = np.zeros(len(same)), np.zeros(len(same))
        training = None
        for tested, cosines in zip(self._tested, self._cosines(head, features), strict=True):
            threshold = heads.best_threshold(cosines[~tested], same[~tested])
            if not self.view2:  # there each pair is tested on
                training = heads.accuracy(cosines[~tested], same[~tested], threshold)
            similarity[tested], thresholds[tested] = cosines[tested], threshold
        outcome = np.stack([similarity, thresholds, same])[:, : self.n_test]
        scaling = getattr(head.estimator, "scaling", None) if is_ours(head.estimator) else None
        return Scored(features, outcome, training, scaling)

    def _cosines(self, head: Head, features: Features) -> list[Scores]:
        """Return for each fold the cosine (P,) of every pair, as its training images say; keep the last."""
        last = self._compared_last
        if last is None or last[0] != head.name or last[1].columns != features.columns:
            found = list(self._made(head, features))
            self._compared_last = last = head.name, features, found
        return last[2]

    def _made(self, head: Head, features: Features) -> Iterator[Scores]:
        if isinstance(features, FoldComponents):
            yield from features.cosines(head.name)
            return
        X = self.read(head, features)
        for tested in self._tested:
            yield self._compared(head.fresh(self._seed), X, self._training(tested))

    def _compared(self, transformer: Any, X: NDArray[Any], training: NDArray[np.intp]) -> Scores:
        """Return the cosine (P,) of each pair of rows of X (N, D), transformed as training rows say."""
        rows = _rows(self._pairs)
        try:
            made = np.asarray(transformer.fit(X[training]).transform(X[rows]))
        except TypeError as error:
            if "'y'" not in str(error):
                raise
            raise TaskError(
                f"heads: expected a transformer that is fitted without labels, as pairs have none, found "
                f"{type(transformer).__name__} ({first_line(error)}); take another, as PCA"
            ) from error
        first, second = (
            np.searchsorted(rows, side) for side in (self._pairs.first, self._pairs.second)
        )
        return heads.cosine_similarity(made, first, second)

    def _of_components(
        self, X: NDArray[Any], sizes: Sequence[int]
    ) -> dict[tuple[str, int], list[Scores] | ValueError]:
        """Return `_cosines` of each number of components, from one decomposition a fold, or a refusal."""
        pixels = self.work.compact(controls.pixels(X))
        found: dict[tuple[str, int], list[Scores] | ValueError] = {
            (name, size): [] for name in self.heads for size in sizes
        }
        for tested in self._tested:
            training = self._training(tested)
            spectrum = Spectrum.of(pixels[training], max(sizes))
            projected = np.ascontiguousarray(spectrum.project(pixels)[:, ::-1])
            for size in sizes:
                for name, head in self.heads.items():
                    if isinstance(known := found[name, size], ValueError):
                        continue
                    transformer = head.fresh(self._seed)
                    # Leading components of leading components are the first of them.
                    most = transformer.components if type(transformer) is heads.Whitened else size
                    some = projected[:, : min(size, most)]
                    try:
                        known.append(self._compared(transformer, some, training))
                    except ValueError as refusal:
                        found[name, size] = refusal
        return found

    def _training(self, tested: Flags) -> NDArray[np.intp]:
        """Return the rows of the images of all other pairs."""
        return _rows(self._pairs, ~tested)

    def independent(self, metric: str, seed: int) -> Units:
        """Return folds for the accuracy of View 2, else people."""
        if self.view2 and metric == "accuracy":
            return Units(self.test.fold, seed)
        return PairUnits(*self.people, seed)

    def chance_of(self, metric: str, scored: Scored) -> float | None:
        """Return what a guess is worth: half, the rate itself of `tar`, the larger kind for accuracy."""
        if metric == "accuracy":
            same = float(self.test.same.mean())
            return max(same, 1 - same)
        return name_of(metric)[1] or 0.5

    def items(self, metric: str, scored: Scored) -> Items:
        """Return accuracy: the share of pairs that are right at the thresholds found, of View 2 by fold."""
        return Items.mean_of(_Outcome.of(scored).correct, self._shares if self.view2 else None)

    def figures(self, metric: str, scored: Sequence[Sequence[Scored]], seed: int) -> list[Figure]:
        """Return a metric of each; accuracy over folds has standard error and deviation."""
        if not (self.view2 and metric == "accuracy"):
            return super().figures(metric, scored, seed)
        people = PairUnits(*self.people, seed).number
        found = []
        for draws in scored:
            correct = np.stack([_Outcome.of(item).correct for item in draws], axis=1)
            folds = [correct[tested].mean(axis=0) for tested in self._tested]
            chance = self.chance_of(metric, draws[0])
            found.append(over_folds(np.array(folds), people, chance))
        return found

    def evaluate(
        self, metric: str, scored: Sequence[Scored], units: Units, draws: Iterable[Values] | None
    ) -> Values:
        """Return a metric of each under draws of people; what is read off ROC curves under fewer."""
        if metric == "accuracy":
            return super().evaluate(metric, scored, units, draws)
        asked, last = (scored, units.seed), self._curves.get(draws is None)
        if last is None or last[0] != asked:
            self._curves[draws is None] = last = asked, self._of_curves(scored, draws)
        return last[1][metric]

    def _of_curves(
        self, scored: Sequence[Scored], draws: Iterable[Values] | None
    ) -> dict[str, Values]:
        """Return what is read off ROC curves, all of it from the same ones, which are what takes long."""
        readers: dict[str, Callable[[Scores, Scores], Scores]] = {
            "auc": heads.auc,
            "eer": heads.equal_error_rate,
        }
        for metric in self.metrics:
            name, rate = name_of(metric)
            if name == "tar" and rate is not None:
                readers[metric] = partial(heads.tar_at_far, rate=rate)
        ones = [np.ones((1, self.n_test))]
        parts: dict[str, list[Values]] = {metric: [] for metric in readers}
        for times in ones if draws is None else islice(draws, CURVES // AT_ONCE):
            found = {metric: np.full((len(times), len(scored)), np.nan) for metric in readers}
            for number, item in enumerate(scored):
                similarity, _, same = _Outcome.of(item)
                both = (times @ same > 0) & (times @ ~same > 0)  # else there is no curve
                curves = heads.roc(similarity, same, times[both])
                for metric, read in readers.items():
                    found[metric][both, number] = read(*curves)
            for metric, values in found.items():
                parts[metric].append(values)
        return {metric: np.concatenate(values) for metric, values in parts.items()}

    def curve(self, head: Head, scored: Sequence[Scored], seed: int) -> Curve | None:
        """Return the ROC, with its AUC and EER."""
        impostors = int((~self.test.same).sum())
        rates, of = np.arange(impostors + 1) / impostors, scored[0].features
        each = [heads.roc(*_Outcome.of(item)[::2]) for item in scored]
        values = np.mean([_highest(*one, rates)[0] for one in each], axis=0)
        figures = {
            "AUC": float(np.mean([heads.auc(*one) for one in each])),
            "EER": float(np.mean([heads.equal_error_rate(*one) for one in each])),
        }
        curve = Curve("roc", head.name, of.model, of.layer, rates, values, figures=figures)
        if of.model in CONTROLS:
            return curve
        some, units = spread(rates[1:]), self.independent("auc", seed)
        similarity, _, same = _Outcome.of(scored[0])
        (times,) = islice(units.draws(), 1)
        both = (times @ same > 0) & (times @ ~same > 0)
        resampled = _highest(*heads.roc(similarity, same, times[both]), some)
        at = np.searchsorted(rates, some)
        low, high = band(rates, some, values[at], resampled, units)
        return replace(curve, low=low, high=high)


@dataclass(frozen=True, eq=False)
class FoldComponents(Features):
    """Principal components of pixels, fitted for each fold by itself, known by what heads say of pairs."""

    cosines: Callable[[str], list[Scores]] = field(default=lambda name: [])


def _highest(far: Values, tar: Values, rates: Values) -> Values:
    """Return the highest true accept rate of each curve (R, G) at most at each false accept rate, (R, F)."""
    places = [np.searchsorted(row, rates + 1e-12, side="right") - 1 for row in far]
    return np.stack([row[place] for row, place in zip(tar, places, strict=True)])


def _people(store: Latents, by_label: bool) -> NDArray[Any]:
    """Return who each image is of (N,): by LFW's names, or by its label, where an unlabelled one is alone."""
    if not by_label:
        return np.array([PurePosixPath(i).stem.rpartition("_")[0] for i in store.ids])
    alone = max(store.labels.max(), -1) + 1 + np.arange(len(store))
    return np.where(store.labels >= 0, store.labels, alone)


def _looked_up(
    by_size: Callable[[], dict[tuple[str, int], list[Scores] | ValueError]], size: int, head: str
) -> list[Scores]:
    found = by_size()[head, size]
    if isinstance(found, ValueError):
        raise found
    return found


def _pixels(X: NDArray[Any], size: int, made_of: Callable[[], str]) -> Columns:
    """Make columns that hold the pixels, and count as so many components, which each fold finds anew."""
    return Columns(
        f"pca {size}", 0, size, lambda: iter([X]), lambda: hash_text("pca", made_of(), str(size))
    )


def _rows(pairs: Pairs, some: Flags | slice = slice(None)) -> NDArray[np.intp]:
    """Return the rows that pairs are of, ascending."""
    return np.unique(np.concatenate([pairs.first[some], pairs.second[some]]))
