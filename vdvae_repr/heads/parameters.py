"""Estimators' parameters, checked where an estimator is fitted, as scikit-learn does it."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray


def positive(name: str, value: Any) -> float:
    """Return a parameter that is a number above 0.

    Raises:
        ValueError: it is none.
    """
    real = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if not (real and 0 < value < math.inf):
        raise ValueError(f"{name}: expected a number above 0, found {value!r:.80}")
    return float(value)


def whole(name: str, value: Any, lowest: int = 1) -> int:
    """Return a parameter that is a whole number.

    Raises:
        ValueError: it is none, or below the lowest.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < lowest:
        raise ValueError(f"{name}: expected a whole number, {lowest} or more, found {value!r:.80}")
    return int(value)


def seed(value: Any) -> int:
    """Return the parameter `seed`, 0 where it is not given.

    Raises:
        ValueError: it is no whole number of 32 bits, which is what scikit-learn's folds take.
    """
    if value is not None and whole("seed", value, 0) >= 2**32:
        raise ValueError(f"seed: expected a whole number below 2**32, found {value!r:.80}")
    return 0 if value is None else int(value)


def flag(name: str, value: Any) -> bool:
    """Return a parameter that is true or false.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: expected True or False, found {value!r:.80}")
    return bool(value)


def grid(name: str, value: Any) -> NDArray[np.float64]:
    """Return a parameter that is one number above 0, or several, as (G,) in their order.

    Raises:
        ValueError: it is none.
    """
    try:
        values = np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError):
        values = np.zeros(0)
    if not (values.size and np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"{name}: expected numbers above 0, found {value!r:.80}")
    return values


def vector(name: str, value: Any, size: int) -> NDArray[np.float64]:
    """Return a parameter that is an array of finite numbers (D,).

    Raises:
        ValueError: it is none, or of another size.
    """
    try:
        values = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        values = np.full((), np.nan)
    if values.shape != (size,) or not np.isfinite(values).all():
        found = f"{value!r:.80}" if values.shape in ((), (size,)) else f"shape {values.shape}"
        raise ValueError(f"{name}: expected finite numbers ({size},), found {found}")
    return values
