"""Few-shot heads: fitted on a support set of n ways and k shots; none looks at the queries as a whole.

`HEADS` holds them by the names of the protocol `few-shot`: Snell 2017, Wang 2019, Tian 2020. No two of them
are one by algebra: SimpleShot's UN would be `nearest-prototype`, and at one shot both its L2N and the nearest
neighbour `nearest-prototype-cosine`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.validation import check_is_fitted

from vdvae_repr.heads.gram import Scaling
from vdvae_repr.heads.linear import LogisticProbe
from vdvae_repr.heads.neighbors import BLOCK, unit
from vdvae_repr.heads.parameters import flag, vector
from vdvae_repr.heads.scores import ScoresClasses, classes_of, validated


class NearestPrototype(ScoresClasses, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The class whose prototype, the mean of its samples, is nearest.

    ProtoNet at test time (Snell et al. 2017, arXiv:1703.05175, equation 2), and SimpleShot (Wang et al. 2019,
    arXiv:1911.04623, section 3): `normalize` is its L2N, `normalize` with the base classes' `mean` its CL2N.

    Args:
        metric: "euclidean" (a class's score is minus the squared distance) or "cosine".
        mean: (D,), subtracted from all samples first; "base" stands for the mean of the base classes, which
            the task `few_shot` fills in.
        normalize: scale samples to length 1 before they are averaged.

    Attributes:
        classes_: the classes (K,), in the order of `class_scores`.
        prototypes_: (K, D).

    Examples:
        >>> head = NearestPrototype().fit([[0.0], [2.0], [9.0]], [0, 0, 1])
        >>> head.prototypes_.ravel().tolist(), head.predict([[4.0]])
        ([1.0, 9.0], array([0]))
    """

    rotations_change_nothing = True
    version: ClassVar[int] = 1

    def __init__(
        self,
        *,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        mean: ArrayLike | Literal["base"] | None = None,
        normalize: bool = False,
    ) -> None:
        self.metric = metric
        self.mean = mean
        self.normalize = normalize

    @property
    def scaling(self) -> Scaling:
        """Centred where a mean is subtracted, else raw: lengths of 1 are part of the comparison."""
        return "raw" if self.mean is None else "centred"

    def fit(self, X: Any, y: Any) -> NearestPrototype:
        """Average the samples X (N, D) of each class of y (N,).

        Raises:
            ValueError: NaN, other shapes, a single class, or a parameter that is none.
        """
        if not isinstance(self.metric, str) or self.metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric: expected euclidean or cosine, found {self.metric!r:.80}")
        if isinstance(self.mean, str):
            raise ValueError(f"mean: expected numbers (D,), found {self.mean!r}")
        flag("normalize", self.normalize)
        X, y = validated(self, X, y, dtype=[np.float32, np.float64])
        self.classes_, encoded = classes_of(y)
        if len(self.classes_) < 2:
            raise ValueError("expected samples of at least 2 classes, found 1 class")
        if self.mean is not None:
            vector("mean", self.mean, X.shape[1])
        members = np.eye(len(self.classes_))[encoded]
        sums = sum(members[rows].T @ self._transform(X[rows]) for rows in _blocks(len(X)))
        prototypes = sums / members.sum(axis=0)[:, None]
        self.prototypes_ = unit(prototypes) if self.metric == "cosine" else prototypes
        return self

    def class_scores(self, X: Any) -> NDArray[np.float64]:
        """Return a score for each class, (N, K), columns in the order of `classes_`."""
        check_is_fitted(self)
        X = validated(self, X, dtype=[np.float32, np.float64], reset=False)
        return np.concatenate([self._scores(self._transform(X[rows])) for rows in _blocks(len(X))])

    def _scores(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        prototypes = self.prototypes_
        if self.metric == "cosine":
            return np.asarray(unit(X) @ prototypes.T)
        # Squares of what is common to all would hide the differences.
        center = prototypes.mean(axis=0)
        X, prototypes = X - center, prototypes - center
        squares = (prototypes**2).sum(axis=1) + (X**2).sum(axis=1)[:, None]
        return np.asarray(2 * X @ prototypes.T - squares)

    def _transform(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return samples (N, D) as they are compared, in float64."""
        X = X.astype(np.float64)
        if self.mean is not None:
            X -= np.asarray(self.mean, np.float64)
        return unit(X) if self.normalize else X


def _blocks(count: int) -> list[slice]:
    """Return what cuts samples into blocks of which each is copied in float64."""
    return [slice(start, start + BLOCK) for start in range(0, count, BLOCK)]


HEADS: dict[str, Any] = {
    "nearest-prototype": NearestPrototype(),
    "nearest-prototype-cosine": NearestPrototype(metric="cosine"),
    "simpleshot-cl2n": NearestPrototype(mean="base", normalize=True),
    "logistic": make_pipeline(Normalizer(), LogisticProbe(Cs=[1.0], standardize=False)),
    "ridge": make_pipeline(Normalizer(), RidgeClassifier()),
}


def scaling_of(estimator: Any) -> Scaling | None:
    """Return what is done to features before samples are scaled to length 1 or fitted; None if not known.

    `logistic` and `ridge` take features as they are, and scale each sample, not each feature.
    """
    if type(estimator) is NearestPrototype:
        return estimator.scaling
    return "raw" if any(estimator is known for known in HEADS.values()) else None
