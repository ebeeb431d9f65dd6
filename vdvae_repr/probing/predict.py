"""Fitting heads on some images and asking them of others: ours by inner products, others by columns.

N images, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import KFold, cross_val_score

from vdvae_repr.errors import TaskError, first_line
from vdvae_repr.heads.gram import Fold, ProductHead, Rows, Scaling, left_out_accuracy
from vdvae_repr.heads.linear import stratified_folds
from vdvae_repr.heads.sgd import Samples, SGDProbe
from vdvae_repr.probing.features import Features, Workspace
from vdvae_repr.probing.head import Head, is_ours

Held = tuple[Rows, NDArray[Any]]
"""Validation images and their targets."""


@dataclass(frozen=True)
class ClassScores:
    """Scores (M, K) of images, columns in the order of `classes`, and what training data say of the head."""

    scores: NDArray[np.float64]
    classes: NDArray[Any]
    scaling: Scaling | None
    training_score: float | None

    def predicted(self) -> NDArray[Any]:
        """Return the class of the highest score of each image (M,), the first of equals."""
        return np.asarray(self.classes[self.scores.argmax(axis=1)])


@dataclass(frozen=True)
class Numbers:
    """Numbers (M,) predicted of images, and what training data say of the head."""

    values: NDArray[np.float64]
    scaling: Scaling | None
    training_score: float | None


@dataclass(frozen=True)
class _Fitted:
    """An estimator, and what it is to be given of each image, (N, ...)."""

    estimator: Any
    X: NDArray[Any] | Samples
    training_score: float | None

    @property
    def scaling(self) -> Scaling | None:
        """What was done to the features first; None of a head of the user's, which does not say."""
        return self.estimator.scaling if _takes_products_or_rows(self.estimator) else None


def score_classes(
    work: Workspace,
    head: Head,
    features: Features,
    train: Rows,
    y: NDArray[Any],
    test: Rows,
    seed: int,
    validation: Held | None = None,
) -> ClassScores:
    """Fit a head on images `train` of classes y, and score images `test`; choose on `validation`, if any."""
    classes = np.unique(y)
    fitted = _fit(work, head, features, train, y, seed, validation)
    estimator: Any = fitted.estimator
    X: Any = fitted.X[test]
    if is_ours(estimator) and hasattr(estimator, "class_scores"):
        scores, classes = estimator.class_scores(X), estimator.classes_
    else:
        scores = _class_scores(head, estimator, X, classes)
    _expect_finite(scores, head, features)
    return ClassScores(scores, classes, fitted.scaling, fitted.training_score)


def predict_numbers(
    work: Workspace,
    head: Head,
    features: Features,
    train: Rows,
    y: NDArray[np.float64],
    test: Rows,
    seed: int,
    validation: Held | None = None,
) -> Numbers:
    """Fit a head on images `train` of numbers y, and predict those of `test`."""
    fitted = _fit(work, head, features, train, y, seed, validation)
    values = head.numbers_told(fitted.estimator.predict(fitted.X[test]), len(test))
    _expect_finite(values, head, features)
    return Numbers(values, fitted.scaling, fitted.training_score)


def _takes_products_or_rows(estimator: Any) -> bool:
    """Whether it is a head of ours that need not be given columns; one derived from it fits as it likes."""
    return is_ours(estimator) and isinstance(estimator, ProductHead | SGDProbe)


def _fit(
    work: Workspace,
    head: Head,
    features: Features,
    train: Rows,
    y: NDArray[Any],
    seed: int,
    validation: Held | None,
) -> _Fitted:
    estimator: Any = head.fresh(seed)
    if not _takes_products_or_rows(head.estimator):
        return _fit_on_columns(work, head, features, train, y, seed, validation)
    if not features.standardise and "standardize" in estimator.get_params():
        estimator.set_params(standardize=False)
    if isinstance(estimator, SGDProbe):
        return _fit_on_rows(work, estimator, features, train, y, validation)
    tried = estimator.alternatives()
    if features.dims <= len(train):
        X = work.matrix(features)
        held = None if validation is None else (X[validation[0]], validation[1])
        fits = [_Fitted(of, X, of.fit_judged(X[train], y, held)) for of in tried]
    else:  # then Gram matrices say all, and are smaller
        splits = estimator.choosing_folds(y) if validation is None else []
        subsets = [train, *(train[fit] for fit, _ in splits)]
        if validation is not None and estimator.refits:
            subsets.append(np.append(train, validation[0]))
        grams = work.grams(features, [(rows, of.scaling) for of in tried for rows in subsets])
        fits = []
        for number, of in enumerate(tried):
            whole, *parts = grams[number * len(subsets) : (number + 1) * len(subsets)]
            folds = [
                Fold(fit, out, gram.inner[train])
                for (fit, out), gram in zip(splits, parts, strict=False)
            ]
            X = of.set_params(precomputed=True).kernel(whole)
            held = None if validation is None else (X[validation[0]], validation[1])
            more: dict[str, Any] = {"spectrum": whole.spectrum} if of.decomposes else {}
            own = X[train]
            if held is not None and of.refits:
                X = of.kernel(parts[0])
                more["both"] = X[parts[0].rows]
            fits.append(_Fitted(of, X, of.fit_judged(own, y, held, folds or None, **more)))
    if len(fits) == 1:
        return fits[0]
    if validation is None:  # then they are judged by the samples left out already
        left_out = [of.training_score for of in fits]
    else:
        left_out = [left_out_accuracy(of.estimator, y) for of in fits]
    return fits[int(np.argmax([score or 0.0 for score in left_out]))]


def _fit_on_rows(
    work: Workspace,
    estimator: SGDProbe,
    features: Features,
    train: Rows,
    y: NDArray[Any],
    validation: Held | None,
) -> _Fitted:
    """Fit an estimator that reads some images at a time."""
    X = Samples(work.rows(features))
    held = None if validation is None else (X[validation[0]], validation[1])
    return _Fitted(estimator, X, estimator.fit_judged(X[train], y, held))


def _fit_on_columns(
    work: Workspace,
    head: Head,
    features: Features,
    train: Rows,
    y: NDArray[Any],
    seed: int,
    validation: Held | None,
) -> _Fitted:
    """Fit an estimator that knows nothing of inner products.

    What choices are made by is its score on validation images, else the mean of a seeded k-fold, stratified
    by classes as that of `linear-lbfgs`; None where a class has a single image.
    """
    X = work.columns(features, head.name)
    estimator = head.fresh(seed)
    training_score: float | None = None
    if validation is None:
        splits = (
            list(KFold(min(5, len(y)), shuffle=True, random_state=seed).split(y))
            if head.regresses
            else stratified_folds(y, seed)
        )
        if splits:
            try:
                scores = cross_val_score(
                    clone(estimator), X[train], y, cv=splits, error_score="raise"
                )
            except ValueError as error:
                raise ValueError(
                    f"{first_line(error)} (in cross-validation, on about {len(splits[0][0])} of "
                    f"{len(y)} images)"
                ) from error
            training_score = float(scores.mean())
    estimator.fit(X[train], y.copy())
    if validation is not None:
        training_score = float(estimator.score(X[validation[0]], validation[1]))
    return _Fitted(estimator, X, training_score)


def _class_scores(
    head: Head, estimator: Any, X: NDArray[Any], classes: NDArray[Any]
) -> NDArray[np.float64]:
    """Return scores (M, K) of any classifier fitted on K classes, ascending, highest what it predicts.

    Raises:
        TaskError: it tells of other classes, or not of every image.
    """
    own = np.asarray(getattr(estimator, "classes_", [])).ravel().tolist()
    place = {name: number for number, name in enumerate(own)}
    if len(own) != len(classes) or set(place) != set(classes.tolist()):
        raise TaskError(
            f"{head.name}: expected the {len(classes)} classes that it was fitted on as classes_, found "
            f"{own or 'none'!r:.80}; set self.classes_ = np.unique(y) in fit"
        )
    # Each call is handed a copy of its own, which a step with copy=False may change.
    guesses = head.classes_told(estimator.predict(X.copy()), own, len(X))
    rows, predicted = np.arange(len(X)), np.array([place[guess] for guess in guesses.tolist()])
    scoring = ("class_scores", "decision_function", "predict_proba")
    method = next((name for name in scoring if hasattr(estimator, name)), None)
    if method is None:
        scores = np.zeros((len(X), len(classes)))
    else:
        scores = np.array(getattr(estimator, method)(X.copy()), np.float64)
        if scores.ndim == 1:
            scores = np.column_stack([-scores, scores])
    if scores.shape != (len(X), len(classes)):
        raise TaskError(
            f"{head.name}: expected a score of each of {len(classes)} classes, found {scores.shape[1]}; "
            "of an SVC set decision_function_shape='ovr'"
        )
    highest = scores.max(axis=1)
    other = scores.argmax(axis=1) != predicted
    scores[rows[other], predicted[other]] = np.nextafter(highest[other], np.inf)
    if method is None:
        scores[rows, predicted] = 1.0
    return scores[:, [place[name] for name in classes.tolist()]]


def _expect_finite(values: NDArray[Any], head: Head, features: Features) -> None:
    if not np.isfinite(values).all():
        raise TaskError(
            f"{features.model} {features.layer or features.dims}, {head.name}: expected finite scores, "
            "found others"
        )
