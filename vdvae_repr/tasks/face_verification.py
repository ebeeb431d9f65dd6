"""`face_verification`, protocols `lfw-view1` and `lfw-view2`: are two images of one person?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from numbers import Real
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.data.faces import Pairs, about_pairs, is_table, read_pair_lists
from vdvae_repr.errors import TaskError
from vdvae_repr.heads import verification as heads
from vdvae_repr.heads.spectrum import Spectrum
from vdvae_repr.latents.base import Latents
from vdvae_repr.probing import controls
from vdvae_repr.probing.features import Columns, Features, hash_arrays, hash_text
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.statistics import AT_ONCE, Figure, interval, two_sided, weights
from vdvae_repr.probing.task import Problem, Scored, Split, Task, expect, several
from vdvae_repr.results import Curve

CURVES = 1_000  # resamples of what is read off the ROC
HEADS = {"cosine": heads.Centred(), "cosine-whitened": heads.Whitened()}
Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FaceVerification(Task):
    """Pairs of images, compared by cosine after the training images' mean is subtracted.

    With training pairs (`lfw-view1`) the threshold comes from them; without (`lfw-view2`) that of each fold
    from the other folds, and so do means and principal components. View 2 chooses no row, because each of its
    pairs is tested on: layers are chosen on View 1. Intervals and comparisons resample people: a pair counts
    as often as its person, or as its two people together, so that each kind keeps its share on average.

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
                object.__setattr__(self, name, Path(path))
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
        return Verification(store, Path(self.pairs), self.pairs_train, self.far)


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
    ) -> None:
        sides: Sequence[tuple[str, NDArray[np.intp]]] = ()
        self.test, self.choose = read_pair_lists(pairs, pairs_train, store.ids)
        folds = int(self.test.fold.max()) + 1
        if self.choose is None and folds < 2:
            raise TaskError(
                f"{pairs}: one fold, so that nothing says where the threshold is; give pairs_train=FILE"
            )
        self.view2 = self.choose is None
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
        self.num_people = int(person.max()) + 1
        if self.num_people < 2:
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
        metrics = ("accuracy", "auc", "eer", *(f"tar@far={rate:g}" for rate in kept))
        n_train = 0 if self.choose is None else len(self.choose.same)
        n_test = len(self.test.same)
        others = np.setdiff1d(np.arange(len(store)), tested)
        fitted = others if self.choose is None else _rows(self.choose)
        self._read: tuple[Sequence[Scored], int, dict[str, list[Figure]]] | None = None
        where = (
            f"thresholds from the other {folds - 1} folds, so that no pairs are left to choose a row on"
            if self.choose is None
            else f"threshold from {n_train} pairs"
        )
        added = "with" if self.mirrored else "without"
        text = f"{n_test} pairs, {where}; {added} the mirrored images' features added"
        for line in about_pairs(self._pairs, store.labels, store.ids):
            text += f"; {line}"
        if left := [rate for rate in heads.FARS if rate not in kept and far is None]:
            text += f"; {impostors} impostors are too few for FAR {', '.join(map(str, left))}"
        super().__init__(store, Split(fitted, tested, text=text), heads=HEADS, metrics=metrics)
        self.n_train, self.n_test, self.sides = n_train, n_test, sides

    def protocol(self, head: Head) -> str:
        """Return the view; that of View 2 without the mirrored images says so, as they are part of it."""
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
        for tested, cosines in zip(self._tested, self._cosines(head, features, seed), strict=True):
            threshold = heads.best_threshold(cosines[~tested], same[~tested])
            if not self.view2:  # there each pair is tested on
                training = heads.accuracy(cosines[~tested], same[~tested], threshold)
            similarity[tested], thresholds[tested] = cosines[tested], threshold
        outcome = np.stack([similarity, thresholds, same])[:, : self.n_test]
        whitened = isinstance(head.estimator, heads.Whitened)
        return Scored(features, outcome, training, whitened)

    def _cosines(self, head: Head, features: Features, seed: int) -> Iterator[Scores]:
        """Yield for each fold the cosine (P,) of every pair, as the fold's training images say."""
        if isinstance(features, FoldComponents):
            yield from features.cosines(head.name)
            return
        X = self.read(head, features)
        for tested in self._tested:
            yield self._compared(head.fresh(seed), X, self._training(tested))

    def _compared(self, transformer: Any, X: NDArray[Any], training: NDArray[np.intp]) -> Scores:
        """Return the cosine (P,) of each pair of rows of X (N, D), transformed as training rows say."""
        rows = _rows(self._pairs)
        made = np.asarray(transformer.fit(X[training]).transform(X[rows]))
        first, second = (
            np.searchsorted(rows, side) for side in (self._pairs.first, self._pairs.second)
        )
        return heads.cosine_similarity(made, first, second)

    def _of_components(
        self, X: NDArray[Any], sizes: Sequence[int]
    ) -> dict[tuple[str, int], list[Scores]]:
        """Return `_cosines` of each number of components, from one decomposition a fold."""
        pixels = self.work.compact(controls.pixels(X))
        found: dict[tuple[str, int], list[Scores]] = {(h, s): [] for h in self.heads for s in sizes}
        for tested in self._tested:
            training = self._training(tested)
            spectrum = Spectrum.of(pixels[training], max(sizes))
            projected = np.ascontiguousarray(spectrum.project(pixels)[:, ::-1])
            for size in sizes:
                for name, head in self.heads.items():
                    transformer = head.fresh(0)
                    # Leading components of leading components are the first of them.
                    most = (
                        transformer.components if isinstance(transformer, heads.Whitened) else size
                    )
                    some = projected[:, : min(size, most)]
                    found[name, size].append(self._compared(transformer, some, training))
        return found

    def _training(self, tested: Flags) -> NDArray[np.intp]:
        """Return the rows of the images of all other pairs."""
        return _rows(self._pairs, ~tested)

    def figures(self, metric: str, scored: Sequence[Scored], seed: int) -> list[Figure]:
        """Return a metric of each; accuracy over folds has standard error and deviation."""
        outcomes = [_Outcome.of(item) for item in scored]
        if metric == "accuracy" and self.view2:
            return [self._over_folds(outcome.correct) for outcome in outcomes]
        if metric == "accuracy":
            correct = np.stack([outcome.correct for outcome in outcomes], axis=1)
            low, high = interval(self._means(correct, seed))
            return [
                Figure(float(c.mean()), float(lo), float(hi), chance=0.5)
                for c, lo, hi in zip(correct.T, low, high, strict=True)
            ]
        if self._read is None or self._read[0] is not scored or self._read[1] != seed:
            self._read = scored, seed, self._of_curves(outcomes, seed)
        return self._read[2][metric]

    def _of_curves(self, outcomes: Sequence[_Outcome], seed: int) -> dict[str, list[Figure]]:
        """Return what is read off ROC curves, all of it from the same ones, which are what takes long."""
        readers: dict[str, Callable[[Scores, Scores], Scores]] = {
            "auc": heads.auc,
            "eer": heads.equal_error_rate,
        }
        rates = {m: float(m.partition("=")[2]) for m in self.metrics if m.startswith("tar@far=")}
        readers |= {m: partial(heads.tar_at_far, rate=rate) for m, rate in rates.items()}
        resampled: dict[str, list[list[Scores]]] = {m: [[] for _ in outcomes] for m in readers}
        for draws in islice(self._pair_weights(seed), CURVES // AT_ONCE):
            for number, (similarity, _, same) in enumerate(outcomes):
                both = (draws @ same > 0) & (draws @ ~same > 0)  # else there is no curve
                curves = heads.roc(similarity, same, draws[both])
                for m, read in readers.items():
                    resampled[m][number].append(read(*curves))
        figures: dict[str, list[Figure]] = {m: [] for m in readers}
        for number, (similarity, _, same) in enumerate(outcomes):
            curve = heads.roc(similarity, same)
            for m, read in readers.items():
                low, high = interval(np.concatenate(resampled[m][number]))
                value = float(read(*curve)[0])
                figures[m].append(Figure(value, float(low), float(high), chance=rates.get(m, 0.5)))
        return figures

    def p_values(self, pairs: Sequence[tuple[Scored, Scored]], seed: int) -> list[float]:
        """Compare the shares of pairs that are right."""
        gaps = [_Outcome.of(a).correct - _Outcome.of(b).correct for a, b in pairs]
        return [two_sided(gap) for gap in self._means(np.stack(gaps, axis=1), seed).T]

    def curve(self, head: Head, scored: Scored) -> Curve | None:
        """Return the ROC."""
        outcome, of = _Outcome.of(scored), scored.features
        rates = heads.roc(outcome.similarity, outcome.same)
        return Curve("roc", head.name, of.model, of.layer, rates[0][0], rates[1][0])

    def _means(self, values: Scores, seed: int) -> Scores:
        """Return means of values (P, M) over resamples of people, (RESAMPLES, M)."""
        return np.concatenate(
            [
                draws @ values / np.maximum(draws.sum(axis=1, keepdims=True), 1)
                for draws in self._pair_weights(seed)
            ]
        )

    def _pair_weights(self, seed: int) -> Iterator[Scores]:
        """Yield how often each pair counts in each resample of people, (AT_ONCE, P)."""
        first, second = self.people
        # A pair of one person counts as often as the person (not its square), two people's as their product
        # over its mean of 1 - 1/n: each pair once on average, so that resamples keep the list's balance.
        mean = 1 - 1 / self.num_people
        for draws in weights(self.num_people, seed):
            yield draws[:, first] * np.where(first == second, 1, draws[:, second] / mean)

    def _over_folds(self, correct: Scores) -> Figure:
        folds = np.unique(self.test.fold)
        return Figure.of_mean(
            np.array([correct[self.test.fold == fold].mean() for fold in folds]), chance=0.5
        )


@dataclass(frozen=True, eq=False)
class FoldComponents(Features):
    """Principal components of pixels, fitted for each fold by itself, known by what heads say of pairs."""

    cosines: Callable[[str], list[Scores]] = field(default=lambda name: [])


def _people(store: Latents, by_label: bool) -> NDArray[Any]:
    """Return who each image is of (N,): by LFW's names, or by its label, where an unlabelled one is alone."""
    if not by_label:
        return np.array([PurePosixPath(i).stem.rpartition("_")[0] for i in store.ids])
    alone = max(store.labels.max(), -1) + 1 + np.arange(len(store))
    return np.where(store.labels >= 0, store.labels, alone)


def _looked_up(
    by_size: Callable[[], dict[tuple[str, int], list[Scores]]], size: int, head: str
) -> list[Scores]:
    return by_size()[head, size]


def _pixels(X: NDArray[Any], size: int, made_of: Callable[[], str]) -> Columns:
    """Make columns that hold the pixels, and count as so many components, which each fold finds anew."""
    return Columns(
        f"pca {size}", 0, size, lambda: iter([X]), lambda: hash_text("pca", made_of(), str(size))
    )


def _rows(pairs: Pairs, some: Flags | slice = slice(None)) -> NDArray[np.intp]:
    """Return the rows that pairs are of, ascending."""
    return np.unique(np.concatenate([pairs.first[some], pairs.second[some]]))
