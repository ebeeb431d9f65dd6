"""A store as a torch data set; apart, so that a store is opened without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vdvae_repr.latents.base import Latents, RowError, chosen_rows
from vdvae_repr.model.layers import select_layers


class StoreDataset(Dataset[tuple[torch.Tensor, int]]):
    """Rows of a store as (features, label); each process opens the file for itself."""

    def __init__(
        self,
        opener: Callable[[Path], Latents],
        path: Path,
        layers: tuple[str, ...],
        feature: str,
        pool: str | None,
        rows: NDArray[np.intp],
        mirrored: bool,
    ) -> None:
        self.path, self.layers, self.feature, self.pool = path, layers, feature, pool
        self._opener = opener
        self.rows, self.mirrored = rows, mirrored
        self._store: Latents | None = None
        self._opened_by = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return features (D,) float32 and the label, -1 where there is none.

        Raises:
            RowError: no such image, or several at once; it is an IndexError as well.
        """
        number = chosen_rows(index, len(self))
        if not isinstance(number, int):
            raise RowError(
                f"expected the number of one image, found {index!r:.80}; torch.utils.data.Subset takes "
                "several, and store.matrix all"
            )
        if self._store is None or self._opened_by != os.getpid():
            opened = self._opener(self.path)
            self._store = opened.mirrored() if self.mirrored else opened
            self._opened_by = os.getpid()
        store, row = self._store, self.rows[number : number + 1]
        parts = [
            store.pooled(spec, self.feature, self.pool, row)
            for spec in select_layers(store.layers, self.layers)
        ]
        return torch.from_numpy(np.concatenate(parts, axis=1)[0]), int(store.labels[row[0]])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind when a worker process is started."""
        return self.__dict__ | {"_store": None}
