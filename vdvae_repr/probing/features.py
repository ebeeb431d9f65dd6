"""Features as tasks see them: blocks of columns, read when they are wanted, and their Gram matrices.

Nothing wide stands in memory for longer than it is worked on, and what candidates share (a layer's Gram
matrices, those of all layers up to it) is worked out once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import TaskError
from vdvae_repr.heads.algebra import HALF_OF_MEMORY, NUMPY
from vdvae_repr.heads.gram import Gram, Rows, Scaling, gram_matrices
from vdvae_repr.latents.base import Latents
from vdvae_repr.model.layers import LayerSpec

KEPT_BYTES = 2**28  # of Gram matrices and what is known of them
MATRIX_BYTES = 2**32  # of features side by side in memory, for a head that takes columns
GRAM_BYTES = HALF_OF_MEMORY  # of inner products at once

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of features that belong together, as those of one layer.

    Args:
        name: in messages.
        group: what their Gram matrices are summed by first, as the layer's resolution.
        dims: their number.
        blocks: yields all of them, (N, d) float32 at a time.
        digest: returns a hash of their content.
    """

    name: str
    group: int
    dims: int
    blocks: Callable[[], Iterator[Array]]
    digest: Callable[[], str]

    @classmethod
    def of_array(cls, name: str, X: Array) -> Columns:
        """Make columns of an array (N, D) in memory."""
        return cls(name, 0, X.shape[1], lambda: iter([X]), cache(lambda: hash_arrays(X)))

    @classmethod
    def of_layer(cls, store: Latents, spec: LayerSpec, feature: str, pool: str | None) -> Columns:
        """Make columns of a store's layer."""
        dims = int(np.prod(store.shape(spec, feature, pool)))
        return cls(
            f"layer {spec.name}",
            spec.resolution,
            dims,
            lambda: store.columns(spec.name, feature, pool),
            cache(lambda: hash_text(store.digest(spec, feature), feature, str(pool))),
        )

    def __add__(self, other: Columns) -> Columns:
        """Add the same columns of another view of the images."""

        def blocks() -> Iterator[Array]:
            for a, b in zip(self.blocks(), other.blocks(), strict=True):
                yield a + b

        return Columns(
            self.name,
            self.group,
            self.dims,
            blocks,
            lambda: hash_text(self.digest(), "+", other.digest()),
        )

    def __getitem__(self, kept: NDArray[np.bool_]) -> Columns:
        """Keep some of the columns, by flags (D,)."""

        def blocks() -> Iterator[Array]:
            start = 0
            for block in self.blocks():
                flags = kept[start : start + block.shape[1]]
                start += block.shape[1]
                if flags.any():
                    yield block[:, flags]

        return Columns(
            self.name,
            self.group,
            int(kept.sum()),
            blocks,
            lambda: hash_text(self.digest(), hash_arrays(kept)),
        )


@dataclass(frozen=True, eq=False)
class Features:
    """Features of one model under one name: columns side by side.

    `standardise` says whether a linear head may rescale them, `selection` how layers were put together.
    """

    model: str
    layer: str | None
    columns: tuple[Columns, ...]
    feature: str | None = None
    pool: str | None = None
    standardise: bool = True
    selection: str | None = None

    @property
    def called(self) -> dict[str, Any]:
        """What results call them by: model, layer, selection, feature and pool."""
        names = ("model", "layer", "selection", "feature", "pool")
        return {name: getattr(self, name) for name in names}

    @property
    def dims(self) -> int:
        """Return the number of dimensions."""
        return sum(columns.dims for columns in self.columns)


class Workspace:
    """Reads features of the images `ids`, and keeps what the next candidate is likely to want.

    Args:
        ids: of the images.
        rows: the store's rows that they are, in their order; all if not given.
    """

    def __init__(self, ids: Sequence[str], rows: Rows | None = None) -> None:
        self.ids = ids if rows is None else [ids[row] for row in rows]
        self._rows = rows
        self.algebra = NUMPY  # of inner products
        self._matrix: tuple[tuple[Columns, ...], Array] | None = None
        self._coordinates: tuple[tuple[Any, ...], Array] | None = None
        self._grams: OrderedDict[tuple[Any, ...], Gram] = OrderedDict()

    def matrix(self, features: Features) -> Array:
        """Return features side by side, (N, D) float32, read-only: the last are kept, for other heads too.

        Raises:
            TaskError: a value that is not finite; names the layer and the image.
        """
        if self._matrix is None or self._matrix[0] != features.columns:
            self._matrix = None
            parts = [block for columns in features.columns for block in self._checked(columns)]
            X = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            self._matrix = features.columns, read_only(X)
        return self._matrix[1]

    def coordinates(
        self, features: Features, rows: Rows | None = None, scaling: Scaling = "raw"
    ) -> Array:
        """Return wide features (N, D) as `Gram.coordinates` (N, r), of `rows` or all; the last are kept."""
        rows = np.arange(len(self.ids)) if rows is None else rows
        key = features.columns, rows.tobytes(), scaling
        if self._coordinates is None or self._coordinates[0] != key:
            self._coordinates = None
            (gram,) = self.grams(features, [(rows, scaling)])
            self._coordinates = key, read_only(gram.coordinates())
        return self._coordinates[1]

    def columns(self, features: Features, head: str) -> Array:
        """Return `matrix`, for a head that takes columns, in bounded memory.

        Raises:
            TaskError: they are too many; says what to do.
        """
        size = 4 * len(self.ids) * features.dims
        if size > MATRIX_BYTES:
            raise TaskError(
                f"{head}: takes columns, and {features.layer or features.model} has {features.dims} of each "
                f"of {len(self.ids)} images, {size / 2**30:.0f} GiB; pool the layers (avg:4), take fewer, or "
                "a head that takes inner products, as ridge, or reads some images at a time, as linear-sgd"
            )
        return self.matrix(features)

    def rows(self, features: Features) -> Array:
        """Return `matrix`, for a head that reads some images at a time: where it is large, on the disk.

        Its file has no name, and is gone with the array or the process.

        Raises:
            TaskError: no room for it on the disk.
        """
        size = 4 * len(self.ids) * features.dims
        if size <= MATRIX_BYTES:
            return self.matrix(features)
        if self._matrix is None or self._matrix[0] != features.columns:
            self._matrix = None
            X = _array_on_disk(len(self.ids), features.dims)
            start = 0
            for columns in features.columns:
                for block in self._checked(columns):
                    X[:, start : start + block.shape[1]] = block
                    start += block.shape[1]
            self._matrix = features.columns, read_only(X)
        return self._matrix[1]

    def compact(self, features: Features) -> Array:
        """Return features with the inner products of X (N, D), in N dimensions at most."""
        if features.dims <= len(self.ids):
            return self.matrix(features)
        X = self.coordinates(features)
        return X if X.shape[1] else np.zeros((len(X), 1), X.dtype)  # of features that are all 0

    def grams(self, features: Features, subsets: Sequence[tuple[Rows, Scaling]]) -> list[Gram]:
        """Return `gram_matrices` of features, summed over their columns; the last are kept.

        Raises:
            TaskError: they are larger than half of the machine's memory.
        """
        number = sum(len(rows) for rows, _ in subsets)
        if (size := 8 * len(self.ids) * number) > GRAM_BYTES:
            raise TaskError(
                f"expected inner products of {GRAM_BYTES / 2**30:.1f} GiB at most, half of this machine's "
                f"memory, found {size / 2**30:.1f} GiB: {len(self.ids)} images with {number}; take fewer "
                "images, or linear-sgd, a head of classification and face_id that needs none"
            )
        return self._sum(features.columns, subsets)

    def _sum(
        self, columns: tuple[Columns, ...], subsets: Sequence[tuple[Rows, Scaling]]
    ) -> list[Gram]:
        """Sum within groups of columns first: so the sums of whole groups come up, and can be kept."""
        keys = [(columns, rows.tobytes(), scaling) for rows, scaling in subsets]
        known = {key: self._grams.pop(key) for key in keys if key in self._grams}
        missing = [s for s, key in zip(subsets, keys, strict=True) if key not in known]
        if missing and len(columns) == 1:
            new = gram_matrices(self._checked(columns[0]), missing, self.algebra)
        elif missing:
            groups = [tuple(own) for _, own in groupby(columns, key=lambda c: c.group)]
            last = groups[-1] if len(groups) > 1 else columns[-1:]
            parts = self._sum(columns[: -len(last)], missing), self._sum(last, missing)
            new = [a + b for a, b in zip(*parts, strict=True)]
        else:
            new = []
        made = iter(new)
        found = [known[key] if key in known else next(made) for key in keys]
        self._grams.update(zip(keys, found, strict=True))  # the newest stand last
        while len(self._grams) > 1 and self._size() > KEPT_BYTES:
            self._grams.popitem(last=False)
        return found

    def _size(self) -> int:
        return sum(gram.nbytes for gram in self._grams.values())

    def _checked(self, columns: Columns) -> Iterator[Array]:
        for block in columns.blocks():
            block = block if self._rows is None else block[self._rows]
            finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
            if not finite.all():
                raise TaskError(
                    f"{columns.name}: expected finite features, found others for "
                    f"{self.ids[int(finite.argmin())]}; extract again"
                )
            yield block
            del block  # before the next is made


def _array_on_disk(rows: int, dims: int) -> Array:
    """Return an array (rows, dims) float32 in a temporary file, whose whole room is taken at once.

    Raises:
        TaskError: there is no room; a write into an array would then kill the process.
    """
    size, folder = 4 * rows * dims, tempfile.gettempdir()
    if size < shutil.disk_usage(folder).free:
        with tempfile.TemporaryFile(dir=folder) as file:
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                return np.memmap(file, np.float32, "r+", shape=(rows, dims))
            except OSError:
                pass
    raise TaskError(
        f"expected room for {size / 2**30:.1f} GiB of features in {folder}, found less; set TMPDIR to a "
        "folder on a larger disk"
    )


def read_only(X: Array) -> Array:
    """Return a view of an array that nothing can be written through, as what several heads are handed.

    An estimator of scikit-learn with copy=False takes a copy of such.
    """
    view = X.view()
    view.flags.writeable = False
    return view


def hash_arrays(*arrays: Array) -> str:
    """Return a hash of arrays' shapes, types and values."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.shape}{array.dtype.str}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def hash_text(*parts: str) -> str:
    """Return a hash of texts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(f"{len(part)}:{part}".encode())
    return sha.hexdigest()
