"""LatentStore: one HDF5 file of per-layer features, complete or absent, checksummed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import LayerError, StoreError
from vdvae_repr.model.layers import LayerSpec, select_layers

SCHEMA = "vdvae-repr/1"
Array = NDArray[Any]


class LatentStore:
    """Read access to a store; open with `LatentStore.open(path)`.

    Layout: /ids, /labels, /splits, /factors/NAME, /images, /layers/LLL/FEATURE, /kl.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._file = file
        self.attrs: dict[str, Any] = dict(file.attrs)
        self.layers = tuple(
            LayerSpec(row["index"], row["name"], row["resolution"], tuple(row["shape"]))
            for row in json.loads(self.attrs["layers"])
        )
        self.features: tuple[str, ...] = tuple(json.loads(self.attrs["features"]))
        self.ids = tuple(file["ids"].asstr()[:].tolist())
        self.labels: NDArray[np.int64] = file["labels"][:]
        self.label_names: tuple[str, ...] = tuple(json.loads(file["labels"].attrs["names"]))
        self.splits = tuple(file["splits"].asstr()[:].tolist())

    @classmethod
    def open(cls, path: str | Path) -> LatentStore:
        """Open a store.

        Raises:
            StoreError: no file, not a store, another schema, or damaged metadata.
        """
        path = Path(path)
        if not path.is_file():
            raise StoreError(
                f"{path}: no such store; make one with vdvae-repr extract --out {path}"
            )
        try:
            file = h5py.File(path, "r")
            if file.attrs.get("schema") != SCHEMA:
                found = file.attrs.get("schema", "no schema")
                raise StoreError(f"{path}: expected a store of schema {SCHEMA}, found {found}")
            return cls(path, file)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise StoreError(f"{path}: not a readable latent store ({error})") from error

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def factors(self) -> dict[str, Array]:
        """The source's known factors, (N,) each."""
        return {
            name: data.asstr()[:] if data.dtype.kind == "O" else data[:]
            for name, data in self._file.get("factors", {}).items()
        }

    @property
    def kl(self) -> NDArray[np.float32]:
        """(N, layers traversed), nats an image."""
        return np.asarray(self._read("kl", "kl"))

    @property
    def has_images(self) -> bool:
        """Whether the preprocessed images are kept, which the pixel controls need."""
        return "images" in self._file

    def images(self) -> NDArray[np.uint8]:
        """Return the preprocessed images, uint8 (N, H, W, 3)."""
        if not self.has_images:
            raise StoreError(
                f"{self.path}: holds no images (--no-images), so pixels, pca and random-init cannot run"
            )
        return np.asarray(self._read("images", "images"))

    def matrix(
        self,
        layers: str | int | Sequence[str | int] = "all",
        feature: str = "mean",
        pool: str | None = None,
        split: str | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[str, ...]]:
        """Return features (N, D) float32, labels (N,) and ids; layers side by side, coarsest first.

        Args:
            layers: selector among the layers stored.
            feature: one of `features`.
            pool: None flattens, "avg" takes the mean over the grid, "avg:4" over a 4x4 grid.
            split: keep this split's images only.

        Raises:
            LayerError: no such layer or feature. StoreError: a checksum fails, or no such split.
        """
        if feature not in self.features:
            raise LayerError(
                f"feature {feature!r} is not stored; stored are {', '.join(self.features)}"
            )
        rows = np.ones(len(self), dtype=bool)
        if split is not None:
            rows = np.array(self.splits) == split
            if not rows.any():
                raise StoreError(
                    f"{self.path}: no split {split!r}; it has {sorted(set(self.splits))}"
                )
        parts = []
        for spec in select_layers(self.layers, layers):
            values = self._read(f"layers/{spec.index:03d}/{feature}", f"layer {spec.name}")
            pooled = pool_grid(values[rows].astype(np.float32), pool)
            parts.append(pooled.reshape(len(pooled), -1))
        ids = tuple(i for i, keep in zip(self.ids, rows, strict=True) if keep)
        return np.concatenate(parts, axis=1), self.labels[rows], ids

    def verify(self) -> None:
        """Read everything once, so that every checksum is tested.

        Raises:
            StoreError: names the data set that is damaged.
        """
        names = {f"{spec.index:03d}": f"layer {spec.name}" for spec in self.layers}
        found: list[str] = []
        self._file.visit(found.append)
        for key in found:
            if isinstance(self._file[key], h5py.Dataset):
                parts = key.split("/")
                self._read(key, names[parts[1]] if parts[0] == "layers" else key)

    def _read(self, key: str, what: str) -> Array:
        try:
            return np.asarray(self._file[key][:])
        except (OSError, KeyError) as error:
            raise StoreError(
                f"{self.path}: {what} is damaged (checksum or data unreadable); extract again"
            ) from error


def pool_grid(values: Array, pool: str | None) -> Array:
    """Average (N, C, R, R) over the grid: "avg" to 1x1, "avg:4" to 4x4; None leaves it."""
    if pool is None:
        return values
    text = pool.removeprefix("avg").removeprefix(":") or "1"
    if not pool.startswith("avg") or not text.isdecimal() or int(text) < 1:
        raise LayerError(f"expected --pool avg or avg:GRID, found {pool!r}")
    grid = int(text)
    n, c, r = values.shape[:3]
    if r <= grid:
        return values
    if r % grid:
        raise LayerError(f"pooling to {grid}x{grid} does not divide {r}x{r}")
    step = r // grid
    return np.asarray(values.reshape(n, c, grid, step, grid, step).mean(axis=(3, 5)))
