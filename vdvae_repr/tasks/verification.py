"""`face_verification`, protocols `lfw-view1` and `lfw-view2`: are two images of one person?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from vdvae_repr import baselines
from vdvae_repr.data.faces import Pairs, read_pairs
from vdvae_repr.errors import TaskError
from vdvae_repr.features import Features, Workspace
from vdvae_repr.heads import verification as heads
from vdvae_repr.latents.store import LatentStore
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
    from the other folds. Intervals and comparisons resample people: a pair counts as often as its person,
    or as its two people together, so that each kind keeps its share on average.
    """

    heads: tuple[str, ...] = ("cosine", "cosine-whitened")

    def __init__(
        self,
        store: LatentStore,
        *,
        images: NDArray[np.uint8],
        pairs: str | Path | None = None,
        pairs_train: str | Path | None = None,
        far: Sequence[float] | None = None,
    ) -> None:
        if pairs is None:
            raise TaskError(
                "face_verification: expected a list of pairs in LFW's format; give --pairs"
            )
        self.test = read_pairs(pairs, store.ids)
        self.choose = None if pairs_train is None else read_pairs(pairs_train, store.ids)
        folds = int(self.test.fold.max()) + 1
        if self.choose is None and folds < 2:
            raise TaskError(
                f"{pairs}: one fold, so that nothing says where the threshold is; give --pairs-train"
            )
        self.view2 = self.choose is None
        self.mirrored = "mirror" in store.attrs and bool(store.attrs["mirror"])
        tested = _rows(self.test)
        if self.choose is not None:
            sides = [("training pairs", _rows(self.choose)), ("test pairs", tested)]
            if shared := set(sides[0][1]) & set(tested):
                raise TaskError(
                    f"{store.ids[min(shared)]} is in the training pairs and in the test pairs; "
                    "take it out of one"
                )
            refuse_leaks(images, store.ids, sides)
        people = [PurePosixPath(i).stem.rpartition("_")[0] for i in store.ids]
        _, person = np.unique(people, return_inverse=True)
        self.people = person[self.test.first], person[self.test.second]
        self.num_people = int(person.max()) + 1
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
            f"thresholds from the other {folds - 1} folds"
            if self.choose is None
            else f"threshold from {self.n_train} pairs"
        )
        added = "with" if self.mirrored else "without"
        self.notice = f"{self.n_test} pairs, {where}; {added} the mirrored images' features added"
        if left := [rate for rate in heads.FARS if rate not in kept and far is None]:
            self.notice += (
                f"; {impostors} impostors are too few for FAR {', '.join(map(str, left))}"
            )
        if self.choose is None:
            self.notice += "; without --pairs-train PCA cannot be fitted, and is left out"

    def metrics_of(self, head: str) -> tuple[str, ...]:
        """Return all metrics."""
        return self.metrics

    def protocol(self, head: str) -> str:
        """Return the view."""
        return "lfw-view2" if self.view2 else "lfw-view1"

    def pca(self, X: NDArray[Any], dims: Sequence[int]) -> list[Features]:
        """PCA of the training pairs' images."""
        return [] if self.choose is None else baselines.pca(X, _rows(self.choose), dims)

    def score(self, head: str, features: Features, seed: int, shuffled: bool = False) -> Scored:
        """Compare the pairs; the outcome is similarity, threshold and truth of each."""
        started = time.monotonic()
        mix: Callable[[Flags], Flags] = lambda same: same  # noqa: E731
        if shuffled:
            mix = np.random.default_rng(seed).permutation
        X = self._work.compact(features)
        test, same = self.test, mix(self.test.same)
        if self.choose is not None:
            known = mix(self.choose.same)
            space = _Space(X[_rows(self.choose)], head)
            own = space.similarity(X, self.choose)
            threshold = heads.best_threshold(own, known)
            training = heads.accuracy(own, known, threshold)
            outcome = _Outcome(space.similarity(X, test), np.full(len(same), threshold), same)
        else:
            similarity, thresholds = np.zeros(len(same)), np.zeros(len(same))
            found = []
            for fold in np.unique(test.fold):
                here = test.fold == fold
                others = Pairs(
                    *(column[~here] for column in (test.first, test.second, same, test.fold))
                )
                space = _Space(X[np.setdiff1d(_rows(others), _rows(test, here))], head)
                own = space.similarity(X, others)
                threshold = heads.best_threshold(own, others.same)
                found.append(heads.accuracy(own, others.same, threshold))
                similarity[here] = space.similarity(X, test)[here]
                thresholds[here] = threshold
            training, outcome = float(np.mean(found)), _Outcome(similarity, thresholds, same)
        seconds = round(time.monotonic() - started, 3)
        stacked = np.stack([outcome.similarity, outcome.threshold, outcome.same])
        return Scored(features, head == "cosine-whitened", training, stacked, seconds)

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

    def p_value(self, a: Scored, b: Scored, seed: int) -> float:
        """Compare the shares of pairs that are right."""
        gap = (_Outcome.of(a).correct - _Outcome.of(b).correct)[:, None]
        return two_sided(self._means(gap, seed))

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


class _Space:
    """Where cosines are taken: centred on training images, or their whitened principal components."""

    def __init__(self, X: NDArray[Any], head: str) -> None:
        self.mean = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
        self.pca: PCA | None = None
        if head == "cosine-whitened":
            size = min(WHITENED, len(X) - 1, X.shape[1])
            self.pca = PCA(size, whiten=True, svd_solver="full").fit(X)

    def similarity(self, X: NDArray[Any], pairs: Pairs) -> Scores:
        """Return the cosine (P,) of each pair of rows of X."""
        rows = _rows(pairs)
        own = X[rows] - self.mean if self.pca is None else self.pca.transform(X[rows])
        first, second = (np.searchsorted(rows, side) for side in (pairs.first, pairs.second))
        return heads.cosine_similarity(own, first, second)


def _rows(pairs: Pairs, some: Flags | slice = slice(None)) -> NDArray[np.intp]:
    """Return the rows that pairs are of, ascending."""
    return np.unique(np.concatenate([pairs.first[some], pairs.second[some]]))
