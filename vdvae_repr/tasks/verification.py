"""`face_verification`, protocols `lfw-view1` and `lfw-view2`: are two images of one person?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from vdvae_repr import baselines
from vdvae_repr.data.faces import Pairs, about_pairs, is_table, read_pair_lists
from vdvae_repr.errors import TaskError
from vdvae_repr.features import Columns, Features, Workspace, hash_arrays, hash_text
from vdvae_repr.heads import verification as heads
from vdvae_repr.latents.base import Latents
from vdvae_repr.tasks.problem import Curve, Figure, Scored, refuse_leaks
from vdvae_repr.tasks.resampling import AT_ONCE, interval, two_sided, weights

WHITENED = 128  # components at most
CURVES = 1_000  # resamples of what is read off the ROC
Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]


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


class Verification:
    """Pairs of images, compared by cosine after the training images' mean is subtracted.

    With training pairs (`lfw-view1`) the threshold comes from them; without (`lfw-view2`) that of each fold
    from the other folds, and so do means and principal components. View 2 chooses no row, because each of its
    pairs is tested on: layers are chosen on View 1. Intervals and comparisons resample people: a pair counts
    as often as its person, or as its two people together, so that each kind keeps its share on average.
    """

    heads: tuple[str, ...] = ("cosine", "cosine-whitened")

    def __init__(
        self,
        store: Latents,
        *,
        images: NDArray[np.uint8],
        pairs: str | Path | None = None,
        pairs_train: str | Path | None = None,
        far: Sequence[float] | None = None,
    ) -> None:
        if pairs is None:
            raise TaskError(
                "face_verification: expected a list of pairs, LFW's or a CSV of two ids and same; "
                "give pairs=FILE"
            )
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
            refuse_leaks(images, store.ids, sides)
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
        self.metrics = ("accuracy", "auc", "eer", *(f"tar@far={rate:g}" for rate in kept))
        self.n_train = 0 if self.choose is None else len(self.choose.same)
        self.n_test = len(self.test.same)
        others = np.setdiff1d(np.arange(len(store)), tested)
        self.fitted = others if self.choose is None else _rows(self.choose)
        self._work = Workspace(store.ids)
        self._read: tuple[Sequence[Scored], int, dict[str, list[Figure]]] | None = None
        where = (
            f"thresholds from the other {folds - 1} folds, so that no pairs are left to choose a row on"
            if self.choose is None
            else f"threshold from {self.n_train} pairs"
        )
        added = "with" if self.mirrored else "without"
        self.notice = f"{self.n_test} pairs, {where}; {added} the mirrored images' features added"
        for line in about_pairs(self._pairs, store.labels, store.ids):
            self.notice += f"; {line}"
        if left := [rate for rate in heads.FARS if rate not in kept and far is None]:
            self.notice += (
                f"; {impostors} impostors are too few for FAR {', '.join(map(str, left))}"
            )

    def metrics_of(self, head: str) -> tuple[str, ...]:
        """Return all metrics."""
        return self.metrics

    def protocol(self, head: str) -> str:
        """Return the view; that of View 2 without the mirrored images says so, as they are part of it."""
        if not self.view2:
            return "lfw-view1"
        return "lfw-view2" if self.mirrored else "lfw-view2-unmirrored"

    def pca(self, X: NDArray[Any], dims: Sequence[int]) -> list[Features]:
        """PCA of each fold's training images; the columns are the pixels, and `score` projects them."""
        training = [self._training(tested) for tested in self._tested]
        sizes = baselines.pca_sizes(dims, min(min(map(len, training)) - 1, X.shape[1]))
        self._by_size = cache(lambda: self._of_components(X, sizes))
        made_of = cache(lambda: hash_arrays(X))
        return [
            Features("pca", None, (_pixels(X, size, made_of),), standardise=False) for size in sizes
        ]

    def score(self, head: str, features: Features, seed: int, shuffled: bool = False) -> Scored:
        """Compare the pairs; the outcome is similarity, threshold and truth of each."""
        started = time.monotonic()
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
        seconds = round(time.monotonic() - started, 3)
        return Scored(features, head == "cosine-whitened", training, outcome, seconds)

    def _cosines(self, head: str, features: Features) -> Iterator[Scores]:
        """Yield for each fold the cosine (P,) of every pair, as the fold's training images say."""
        if features.model == "pca":
            yield from self._by_size()[head, features.dims]
            return
        X = self._work.compact(features)
        for tested in self._tested:
            yield _cosines(X, self._pairs, self._training(tested), head)

    def _of_components(
        self, X: NDArray[Any], sizes: Sequence[int]
    ) -> dict[tuple[str, int], list[Scores]]:
        """Return `_cosines` of each number of components, from one decomposition a fold."""
        pixels = self._work.compact(baselines.pixels(X))
        first, second = self._pairs.first, self._pairs.second
        found: dict[tuple[str, int], list[Scores]] = {(h, s): [] for h in self.heads for s in sizes}
        for tested in self._tested:
            mean, axes, deviations = _components(pixels[self._training(tested)], max(sizes))
            projected = (pixels - mean) @ axes
            whitened = projected[:, :WHITENED] / deviations[:WHITENED]
            for size in sizes:
                for head, own in (("cosine", projected), ("cosine-whitened", whitened)):
                    cosines = heads.cosine_similarity(own[:, :size], first, second)
                    found[head, size].append(cosines)
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

    def curve(self, head: str, scored: Scored) -> Curve | None:
        """Return the ROC."""
        outcome, of = _Outcome.of(scored), scored.features
        rates = heads.roc(outcome.similarity, outcome.same)
        return Curve("roc", head, of.model, of.layer, rates[0][0], rates[1][0])

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


def _people(store: Latents, by_label: bool) -> NDArray[Any]:
    """Return who each image is of (N,): by LFW's names, or by its label, where an unlabelled one is alone."""
    if not by_label:
        return np.array([PurePosixPath(i).stem.rpartition("_")[0] for i in store.ids])
    alone = max(store.labels.max(), -1) + 1 + np.arange(len(store))
    return np.where(store.labels >= 0, store.labels, alone)


def _cosines(X: NDArray[Any], pairs: Pairs, training: NDArray[np.intp], head: str) -> Scores:
    """Return the cosine (P,) of each pair of rows of X (N, D), centred or whitened by the training rows."""
    rows = _rows(pairs)
    if head == "cosine-whitened":
        mean, axes, deviations = _components(X[training], WHITENED)
        own = (X[rows] - mean) @ (axes / deviations)
    else:
        own = X[rows] - X[training].mean(axis=0, dtype=np.float64).astype(X.dtype)
    first, second = (np.searchsorted(rows, side) for side in (pairs.first, pairs.second))
    return heads.cosine_similarity(own, first, second)


def _components(X: NDArray[Any], most: int) -> tuple[Scores, Scores, Scores]:
    """Return mean (D,), axes (D, k) and deviations (k,) of the leading principal components of X (N, D).

    k is `most`, or as many as deviate by more than 1e-6 of the first: less is rounding of float32, which
    whitening would make as large as the rest. By eigenvectors of the smaller of X X' and X' X, which takes a
    fifth of the time of singular values where few are wanted.
    """
    mean = X.mean(axis=0, dtype=np.float64)
    A = X - mean
    wide = A.shape[1] > len(A)
    products = A @ A.T if wide else A.T @ A
    size = min(most, len(A) - 1, A.shape[1])
    values, vectors = eigh(products, subset_by_index=[len(products) - size, len(products) - 1])
    varying = values > 1e-12 * values[-1]
    values, vectors = values[varying][::-1], vectors[:, varying][:, ::-1]
    axes = A.T @ vectors / np.sqrt(values) if wide else vectors
    return mean, axes, np.sqrt(values / (len(A) - 1))


def _pixels(X: NDArray[Any], size: int, made_of: Callable[[], str]) -> Columns:
    """Make columns that hold the pixels, and count as so many components, which each fold finds anew."""
    return Columns(
        f"pca {size}", 0, size, lambda: iter([X]), lambda: hash_text("pca", made_of(), str(size))
    )


def _rows(pairs: Pairs, some: Flags | slice = slice(None)) -> NDArray[np.intp]:
    """Return the rows that pairs are of, ascending."""
    return np.unique(np.concatenate([pairs.first[some], pairs.second[some]]))
