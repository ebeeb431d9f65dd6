"""What every head takes, and what classifiers make of scores: the class of the highest, probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from vdvae_repr.config import hidden_by_mask

Matrix = NDArray[np.float64]


def validated(head: Any, X: Any, y: Any = "no_validation", **options: Any) -> Any:
    """Return X, and y where it is given, as scikit-learn's `validate_data` does.

    Raises:
        ValueError: as there; also of a masked array, whose hidden values scikit-learn takes.
    """
    for name, given in (("X", X), ("y", y)):
        if why := hidden_by_mask(given, "numbers", name):
            raise ValueError(f"{name}: {why}")
    return validate_data(head, X, y, **options)


def classes_of(y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the classes of labels y (N,), in their order, and y as numbers of these (N,).

    Raises:
        ValueError: y is no labels, as numbers with fractions.
    """
    # Three times, as scikit-learn warns of labels of which half are classes.
    check_classification_targets(np.tile(y, 3))
    classes, numbers = np.unique(y, return_inverse=True)
    return classes, numbers


class ScoresClasses:
    """A classifier that scores every class, and predicts the one of the highest score."""

    classes_: NDArray[Any]

    def class_scores(self, X: Any) -> Matrix:
        """Return a score for each class, (N, K), columns in the order of `classes_`."""
        raise NotImplementedError

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class of the highest score, (N,), the first of equals."""
        best = self.class_scores(X).argmax(axis=1)
        return np.asarray(self.classes_[best])


class Logits(ScoresClasses):
    """A classifier whose scores are logits."""

    def decision_function(self, X: Any) -> Matrix:
        """Return logits (N, K); of two classes, their difference (N,)."""
        scores = self.class_scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> Matrix:
        """Return class probabilities (N, K)."""
        logits = self.class_scores(X)
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))


def numbers_of(y: Any, classes: NDArray[Any]) -> NDArray[np.intp]:
    """Return validation classes y (M,) as their numbers among those that were learned.

    Raises:
        ValueError: a class that was not learned.
    """
    if not np.isin(y, classes).all():
        raise ValueError("expected classes of validation among those of y, found others")
    return np.searchsorted(classes, y)
