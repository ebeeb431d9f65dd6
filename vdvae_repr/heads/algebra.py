"""Where large products and decompositions are made: by NumPy on the CPU, or by torch on another device.

All of it is in float64 on either, so that results differ by rounding alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from vdvae_repr.errors import TaskError, first_line

HALF_OF_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # bytes


@dataclass(frozen=True)
class Algebra:
    """Linear algebra on one device.

    Args:
        xp: `numpy` or `torch`, whose functions of the same names take what `put` returns.
        device: "cpu", "cuda" or "cuda:1".
    """

    xp: Any
    device: str = "cpu"

    @classmethod
    def on(cls, device: str | torch.device) -> Algebra:
        """Return that of a device.

        Raises:
            TaskError: there is no such device.
        """
        name = str(device)
        if name == "cpu":
            return NUMPY
        if name.partition(":")[0] != "cuda":
            raise TaskError(f"device: expected cpu, cuda or cuda:1, found {device!r:.80}")
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise TaskError(
                f'device {name} cannot be used ({first_line(error)}); try device="cpu"'
            ) from error
        return cls(torch, name)

    def put(self, array: NDArray[Any]) -> Any:
        """Return an array in float64 on the device; not to be changed, as it may be the array itself."""
        if self.xp is np:
            return np.asarray(array, np.float64)
        return torch.from_numpy(np.array(array, np.float64)).to(self.device)

    def get(self, array: Any) -> NDArray[np.float64]:
        """Return what is on the device as an array of NumPy's."""
        return array if self.xp is np else array.cpu().numpy()

    def zeros(self, *shape: int) -> Any:
        """Return zeros on the device."""
        return self.put(np.zeros(shape))

    def eigh(self, products: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return eigenvalues (n,) of a symmetric matrix, ascending, and eigenvectors (n, n), as arrays."""
        if self.xp is np:
            return np.linalg.eigh(products)
        values, vectors = torch.linalg.eigh(self.put(products))
        return self.get(values), self.get(vectors)

    def solve(self, A: Any, B: Any, overwrite: bool = False) -> Any:
        """Return X of A X = B, where A (n, n) is symmetric, positive definite, and may be overwritten."""
        if self.xp is np:  # LAPACK takes columns; rows, turned into them, would be copied
            return cho_solve(cho_factor(A.T, overwrite_a=overwrite, check_finite=False), B)
        return torch.cholesky_solve(B, torch.linalg.cholesky(A))


NUMPY = Algebra(np)
