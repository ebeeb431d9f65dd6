"""Protocol `linear-sgd`: linear classifiers by stochastic gradient descent, for many wide samples.

N samples, D features, K classes, L learning rates, B samples a step. Where N and D are both large, neither
the features (N, D) nor their inner products (N, N) fit into memory. Here samples are read a batch at a time,
and what is kept grows as D K L alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from vdvae_repr.heads import parameters
from vdvae_repr.heads.gram import BLOCK_BYTES, Matrix, Rows, Scaling, is_constant
from vdvae_repr.heads.linear import stratified_folds
from vdvae_repr.heads.scores import Logits, classes_of, numbers_of, validated
from vdvae_repr.model.precision import arithmetic

LEARNING_RATES = np.outer(10.0 ** np.arange(-5, -1), [1, 2, 5]).ravel()
LEARNING_RATES = np.append(LEARNING_RATES, 0.1)  # DINOv2, eval/linear.py, of 256 samples a step
STEPS = 12_500  # DINOv2, eval/linear.py: 10 epochs of 1,250 steps, whatever the number of samples
MOMENTUM = 0.9
INITIAL_DEVIATION = 0.01
WEIGHT_BYTES = (
    2**31
)  # of weights and their velocities; more learning rates are trained in several passes

Array = NDArray[Any]


class Samples:
    """Samples (n, D) that are read some at a time: rows of an array, in memory or on the disk.

    Indexing chooses among them, and reads nothing.

    Args:
        array: (N, D); anything that has a shape and gives rows by their numbers, as a `np.memmap`.
        rows: numbers (n,) of its rows; all if not given.

    Examples:
        >>> Samples(np.eye(5))[1:4].read(np.array([0, 2]))
        array([[0., 1., 0., 0., 0.],
               [0., 0., 0., 1., 0.]])
    """

    def __init__(self, array: Any, rows: Rows | None = None) -> None:
        self._array = array
        self._rows = np.arange(array.shape[0]) if rows is None else rows
        self.shape = (len(self._rows), int(array.shape[1]))

    def __len__(self) -> int:
        """Return their number."""
        return len(self._rows)

    def __getitem__(self, rows: Any) -> Samples:
        """Return those of some numbers, a slice or a mask."""
        return Samples(self._array, self._rows[rows])

    def read(self, rows: Rows) -> Array:
        """Return the samples of some numbers (B,), as (B, D)."""
        return np.asarray(self._array[self._rows[rows]])

    def blocks(self) -> Iterator[Array]:
        """Yield all samples in their order, some at a time."""
        size = max(1, BLOCK_BYTES // (8 * self.shape[1]))
        for start in range(0, len(self), size):
            yield np.asarray(self._array[self._rows[start : start + size]])


class SGDProbe(Logits, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Protocol `linear-sgd`: softmax regression by SGD, one classifier for each of many learning rates.

    All classifiers see the same batches: momentum 0.9, no weight decay, a cosine from the learning rate to 0,
    weights that start normal with deviation 0.01. Batches are cut from one permutation of the samples after
    another. The learning rate is chosen by accuracy on validation samples, ties to the smaller, and its
    classifier is kept as it is; without them by that on the folds of `linear-lbfgs`, each held back once, and
    then it is trained on all samples. Where each class has a single sample it is the middle of the grid.
    Source: DINOv2, `eval/linear.py` (Oquab et al. 2023), whose features are not standardised.

    Args:
        learning_rates: of 256 samples a step, in proportion for other batches; 13 from 1e-5 to 0.1 if not
            given.
        steps: number of batches, the source's 12,500 if not given.
        batch_size: samples a step.
        standardize: give each feature mean 0 and deviation 1 on the training samples; else centre only, and
            divide all features by one number, so that their mean square is 1.
        seed: of the first weights, the order of samples and the folds; 0 if not given.
        device: of torch, where the classifiers are trained, "cpu", "cuda" or "cuda:1"; others are refused.

    Attributes:
        classes_: the classes (K,), in the order of `class_scores`.
        learning_rate_: the one that was chosen.
        search_: how: "validation", "k-fold" or "fixed".
        cv_scores_: the accuracy of each learning rate, ascending; NaN where it is fixed.
        intercept_: the classifier's, (K,).

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> round(SGDProbe(steps=300).fit(X, y).score(X, y), 1)
        1.0
    """

    version: ClassVar[int] = 1
    """Raised whenever what it computes changes, so that no score of the earlier one is taken for its own."""

    def __init__(
        self,
        *,
        learning_rates: ArrayLike | None = None,
        steps: int = STEPS,
        batch_size: int = 128,
        standardize: bool = True,
        seed: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.learning_rates = learning_rates
        self.steps = steps
        self.batch_size = batch_size
        self.standardize = standardize
        self.seed = seed
        self.device = device

    @property
    def scaling(self) -> Scaling:
        """Standardised, or centred alone."""
        return "standardised" if self.standardize else "centred"

    def fit_judged(self, X: Any, y: Any, validation: tuple[Any, Any] | None = None) -> float | None:
        """Fit, and return the accuracy by which the learning rate was chosen; None where it was not."""
        self.fit(X, y, validation)
        return None if self.search_ == "fixed" else float(self.cv_scores_.max())

    def fit(self, X: Any, y: Any, validation: tuple[Any, Any] | None = None) -> SGDProbe:
        """Fit on X (N, D), an array or `Samples`, and y (N,).

        Args:
            X: features.
            y: classes (N,).
            validation: samples (M, D), an array or `Samples`, and classes (M,) to choose on.

        Raises:
            ValueError: NaN, other shapes, a single class, a class that is in `validation` alone, or a
                parameter that is none.
        """
        rates = LEARNING_RATES
        if self.learning_rates is not None:
            rates = np.sort(parameters.grid("learning_rates", self.learning_rates))
        parameters.whole("steps", self.steps)
        parameters.whole("batch_size", self.batch_size)
        parameters.flag("standardize", self.standardize)
        seed = parameters.seed(self.seed)
        if not str(self.device).startswith(("cpu", "cuda")):
            raise ValueError(f"device: expected cpu, cuda or cuda:1, found {self.device!r:.80}")
        X, encoded = self._checked(X, y)
        chosen = (len(rates) - 1) // 2
        self.search_, self.cv_scores_ = "fixed", np.full(len(rates), np.nan)
        kept: _Classifiers | None = None
        if validation is not None:
            self.search_ = "validation"
            held, truth = self._checked_validation(*validation)
            self.cv_scores_, kept = self._search(X, encoded, held, truth, rates)
        elif folds := stratified_folds(encoded, seed):
            self.search_ = "k-fold"
            right = np.zeros(len(rates))
            for fit, out in folds:
                scores, _ = self._search(X[fit], encoded[fit], X[out], encoded[out], rates)
                right += len(out) * scores
            self.cv_scores_ = right / sum(len(out) for _, out in folds)
        if self.search_ != "fixed":
            chosen = int(self.cv_scores_.argmax())
        if kept is None:
            kept = _Classifiers(self, X, encoded, rates, np.array([chosen]))
        self.learning_rate_ = float(rates[chosen])
        self._scale = kept.scale
        self._weights, self.intercept_ = kept.weights_of(chosen)
        return self

    def _checked(self, X: Any, y: Any) -> tuple[Samples, Rows]:
        """Return samples, and their classes as numbers (N,)."""
        if isinstance(X, Samples):
            self.n_features_in_ = X.shape[1]
        else:
            X, y = validated(self, X, y, dtype=[np.float32, np.float64], ensure_min_samples=2)
            X = Samples(X)
        self.classes_, encoded = classes_of(y)
        if len(self.classes_) < 2:
            raise ValueError("expected samples of at least 2 classes, found 1 class")
        return X, encoded

    def _checked_validation(self, X: Any, y: Any) -> tuple[Samples, Rows]:
        """Return samples, and their classes as numbers (M,)."""
        return self._checked_samples(X), numbers_of(y, self.classes_)

    def _checked_samples(self, X: Any) -> Samples:
        if isinstance(X, Samples):
            return X
        return Samples(validated(self, X, dtype=[np.float32, np.float64], reset=False))

    def _search(
        self, X: Samples, y: Rows, held: Samples, truth: Rows, rates: Matrix
    ) -> tuple[Matrix, _Classifiers]:
        """Train at each learning rate; return the accuracies (L,), and classifiers that the best is among."""
        at_once = max(1, WEIGHT_BYTES // (8 * X.shape[1] * len(self.classes_)))
        scores = np.full(len(rates), -1.0)
        for start in range(0, len(rates), at_once):
            numbers = np.arange(len(rates))[start : start + at_once]
            trained = _Classifiers(self, X, y, rates, numbers)
            scores[numbers] = trained.accuracies(held, truth)
            if scores.argmax() in numbers:
                best = trained
        return scores, best

    def class_scores(self, X: Any) -> Matrix:
        """Return logits (N, K) of an array or `Samples`, columns in the order of `classes_`."""
        check_is_fitted(self)
        scores = [
            self._scale.apply(block) @ self._weights for block in self._checked_samples(X).blocks()
        ]
        return np.asarray(np.concatenate(scores) + self.intercept_)


class _Scale:
    """Means (D,) and deviations (D,) of samples, summed in float64 over blocks of them."""

    def __init__(self, X: Samples, standardize: bool) -> None:
        total = np.zeros(X.shape[1])
        for block in X.blocks():
            total += block.sum(axis=0, dtype=np.float64)
        self.mean = total / len(X)
        if not np.isfinite(self.mean).all():
            raise ValueError("expected finite features, found others")
        squares = np.zeros(X.shape[1])
        for block in X.blocks():
            squares += ((block - self.mean) ** 2).sum(axis=0)
        deviation = np.sqrt(squares / len(X))
        constant = is_constant(self.mean, deviation)
        if standardize:
            self.deviation = np.where(constant, 1.0, deviation)
        else:
            common = math.sqrt(float(np.mean(np.where(constant, 0.0, deviation) ** 2)))
            self.deviation = np.full(X.shape[1], common or 1.0)

    def apply(self, X: Array) -> Array:
        """Return samples (n, D) scaled, in their own precision, float32 at least."""
        kind = np.result_type(X.dtype, np.float32)
        return np.asarray((X - self.mean.astype(kind)) / self.deviation.astype(kind))


class _Classifiers:
    """Linear classifiers at some learning rates, trained side by side: weights (D, L K), float32.

    Args:
        probe: whose steps, batches, seed and device.
        X: training samples.
        y: their classes (N,), as numbers.
        rates: all learning rates.
        numbers: of those to train at, (L,); a classifier's first weights are a function of its number.
    """

    def __init__(self, probe: SGDProbe, X: Samples, y: Rows, rates: Matrix, numbers: Rows) -> None:
        self.scale = _Scale(X, probe.standardize)
        self._numbers, self._device = numbers.tolist(), torch.device(probe.device)
        self._classes, seed = len(probe.classes_), probe.seed or 0
        first = [
            np.random.default_rng([seed, 1 + number]).standard_normal(
                (X.shape[1], self._classes), dtype=np.float32
            )
            for number in self._numbers
        ]
        self._W = self._put(np.concatenate(first, axis=1)) * INITIAL_DEVIATION
        self._b = torch.zeros(self._W.shape[1], dtype=torch.float32, device=self._device)
        steps = np.repeat(rates[numbers] * probe.batch_size / 256, self._classes)
        batches = _batches(len(X), probe.batch_size, np.random.default_rng([seed, 0]))
        with torch.inference_mode(), arithmetic():
            self._train(X, y, batches, self._put(steps.astype(np.float32)), probe.steps)

    def _train(
        self, X: Samples, y: Rows, batches: Iterator[Rows], sizes: torch.Tensor, steps: int
    ) -> None:
        """Take steps, each of its own size (L K,) in every column."""
        velocity_W, velocity_b = torch.zeros_like(self._W), torch.zeros_like(self._b)
        for step in range(steps):
            rows = next(batches)
            x = self._put(self.scale.apply(X.read(rows)).astype(np.float32, copy=False))
            own = self._put(y[rows])
            slopes = self._logits(x)  # and then the derivatives of the mean log-loss by them
            # On a CPU torch.softmax over few classes is five times slower.
            slopes.sub_(slopes.amax(dim=2, keepdim=True)).exp_()
            slopes.div_(slopes.sum(dim=2, keepdim=True))
            slopes[torch.arange(len(rows), device=self._device), :, own] -= 1
            slopes = slopes.div_(len(rows)).view(len(rows), -1)
            velocity_W.addmm_(x.T, slopes, beta=MOMENTUM)
            velocity_b.mul_(MOMENTUM).add_(slopes.sum(dim=0))
            fraction = (1 + math.cos(math.pi * step / steps)) / 2
            self._W.addcmul_(velocity_W, sizes, value=-fraction)
            self._b.addcmul_(velocity_b, sizes, value=-fraction)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return those of samples (B, D), scaled: (B, L, K)."""
        return torch.addmm(self._b, x, self._W).view(len(x), -1, self._classes)

    def _put(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def accuracies(self, X: Samples, y: Rows) -> Matrix:
        """Return the share of samples that each classifier tells, (L,)."""
        right, start = np.zeros(len(self._numbers)), 0
        with torch.inference_mode(), arithmetic():
            for block in X.blocks():
                x = self._put(self.scale.apply(block).astype(np.float32, copy=False))
                predicted = self._logits(x).argmax(dim=2).cpu().numpy()
                right += (predicted == y[start : start + len(block), None]).sum(axis=0)
                start += len(block)
        return np.asarray(right / len(X))

    def weights_of(self, number: int) -> tuple[Matrix, Matrix]:
        """Return the weights (D, K) and intercepts (K,) of one classifier."""
        start = self._numbers.index(number) * self._classes
        own = slice(start, start + self._classes)
        return (
            self._W[:, own].cpu().numpy().astype(np.float64),
            self._b[own].cpu().numpy().astype(np.float64),
        )


def _batches(number: int, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Yield numbers of samples (size,), ascending, cut from one permutation after another without end."""
    left = np.zeros(0, np.intp)
    while True:
        while len(left) < size:
            left = np.append(left, rng.permutation(number))
        yield np.sort(left[:size])  # so that a file is read forwards
        left = left[size:]
