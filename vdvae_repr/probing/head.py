"""Heads as the engine sees them: estimators, what they need of features, and what their scores depend on.

The package's own heads are estimators like any other. Those that know samples by their inner products alone
derive from `heads.gram.ProductHead`, and never see columns where these are many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier, is_clusterer, is_outlier_detector, is_regressor
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer

from vdvae_repr.errors import TaskError
from vdvae_repr.probing.features import hash_arrays, hash_text


@dataclass(frozen=True)
class Head:
    """An estimator under the name that its rows carry.

    Args:
        name: of the rows.
        estimator: not fitted; it is cloned before each use.

    Raises:
        TaskError: it is no estimator of scikit-learn's kind.
    """

    name: str
    estimator: Any

    def __post_init__(self) -> None:
        """Refuse what cannot be cloned and fitted."""
        if isinstance(self.estimator, type) or not all(
            hasattr(self.estimator, method) for method in ("fit", "get_params", "set_params")
        ):
            raise TaskError(
                f"heads: expected an estimator of scikit-learn as {self.name!r}, found "
                f"{self.estimator!r:.80}"
            )

    @cached_property
    def rotations_change_nothing(self) -> bool:
        """Whether inner products are all that it needs to know, so that coordinates in any basis will do."""
        return _by_products(self.estimator)

    @property
    def regresses(self) -> bool:
        """Whether it predicts numbers, not classes."""
        return self._says(is_regressor)

    @property
    def predicts(self) -> bool:
        """Whether it predicts anything, maybe only once it is fitted, as a StackingClassifier."""
        return hasattr(self.estimator, "predict") or self._says(is_classifier) or self.regresses

    def expect_predictor(self) -> None:
        """Refuse what learns of no classes and no numbers.

        Raises:
            TaskError: it clusters, or detects outliers.
        """
        for does, test in (("clusters", is_clusterer), ("detects outliers", is_outlier_detector)):
            if self._says(test):
                raise TaskError(
                    f"heads: expected a classifier or a regressor, found {self.name!r}, which {does}"
                )

    def _says(self, test: Callable[[Any], bool]) -> bool:
        """Return what scikit-learn reads off an estimator's tags.

        Raises:
            TaskError: it has none.
        """
        try:
            return bool(test(self.estimator))
        except AttributeError as error:
            raise TaskError(
                f"heads: expected {self.name!r} to say whether it is a classifier or a regressor, found no "
                "tags of scikit-learn; derive it from ClassifierMixin or RegressorMixin, and BaseEstimator"
            ) from error

    @property
    def gives_scores(self) -> bool:
        """Whether it scores every class, so that more than its first guess is known."""
        return any(
            hasattr(self.estimator, method)
            for method in ("class_scores", "decision_function", "predict_proba")
        )

    def fresh(self, seed: int) -> Any:
        """Return an unfitted copy, whose draws are of the seed unless it has one of its own."""
        estimator = clone(self.estimator)
        drawing = [
            name
            for name, value in estimator.get_params().items()
            if name.rpartition("__")[2] in ("random_state", "seed") and value is None
        ]
        return estimator.set_params(**dict.fromkeys(drawing, seed))

    def classes_told(self, guesses: Any, classes: Sequence[Any], count: int) -> NDArray[Any]:
        """Return what it predicts of `count` images, (count,): each of the classes it was fitted on.

        Raises:
            TaskError: it predicts another, or not one of every image.
        """
        guesses = np.asarray(guesses)
        if guesses.shape == (count,):
            known = {*classes}
            others = [guess for guess in guesses.tolist() if guess not in known]
        else:
            others = [guesses.shape]
        if others:
            raise TaskError(
                f"{self.name}: expected one of its classes_ of each image, found {others[0]!r}"
            )
        return guesses

    def numbers_told(self, values: Any, count: int) -> NDArray[np.float64]:
        """Return the number that it predicts of each of `count` images, (count,).

        Raises:
            TaskError: it does not predict one of every image.
        """
        values = np.asarray(values, np.float64)
        if values.shape not in ((count,), (count, 1)):
            raise TaskError(
                f"{self.name}: expected a number of each of {count} images, found {values.shape}"
            )
        return values.reshape(-1)

    @cached_property
    def digest(self) -> str | None:
        """A hash of what it computes; None of an estimator whose code may change unseen."""
        return estimator_digest(self.estimator)


def _by_products(estimator: Any) -> bool:
    """Whether an estimator is known to need inner products alone; one derived from it may need columns."""
    kind = type(estimator)
    if kind is Pipeline:
        return all(_by_products(step) for _, step in estimator.steps)
    if kind is Normalizer:
        return bool(estimator.norm == "l2")
    if kind is RidgeClassifier:  # other solvers stop by columns, and so does a bound at 0
        return not estimator.positive and estimator.solver in ("auto", "svd", "cholesky")
    return is_ours(estimator) and bool(getattr(estimator, "rotations_change_nothing", False))


def is_ours(estimator: Any) -> bool:
    """Whether it is an estimator of this package; one derived from such may do something else."""
    return type(estimator).__module__.partition(".")[0] == __name__.partition(".")[0]


def estimator_digest(value: Any) -> str | None:
    """Return a hash of a parameter or estimator; None of what is neither plain nor known.

    Estimators are told by their class and parameters: of this package by the version of the class too, of
    scikit-learn as well, whose own version is in every key. Others' code may change under an equal name.
    """
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return repr(value)
    if isinstance(value, np.ndarray):
        return hash_arrays(value) if value.dtype != object else None
    if isinstance(value, list | tuple):
        parts = [estimator_digest(item) for item in value]
    elif isinstance(value, Mapping):
        parts = [estimator_digest(item) for pair in value.items() for item in pair]
    elif hasattr(value, "get_params") and not isinstance(value, type):
        kind = type(value)
        if kind.__module__.partition(".")[0] not in ("sklearn", "vdvae_repr"):
            return None
        name = f"{kind.__module__}.{kind.__qualname__} {getattr(kind, 'version', '')}"
        parts = [name, estimator_digest(value.get_params(deep=False))]
    else:
        return None
    return None if None in parts else hash_text(*(part for part in parts if part is not None))
