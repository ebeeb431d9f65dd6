"""What can be read of latents, of one file or of two: matrices of layers, slices, splits."""

from __future__ import annotations

import json
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.config import (
    ModelConfig,
    hidden_by_mask,
    suggestion,
    with_hints,
    without_order,
)
from vdvae_repr.data.names import number_of_classes
from vdvae_repr.errors import LayerError, StoreError, TaskError, first_line
from vdvae_repr.latents.format import MIRROR, StoreInfo, array_key
from vdvae_repr.latents.pooling import pool_layer, pooled_shape
from vdvae_repr.model.layers import FEATURES, LayerSpec, make_layer_specs, select_layers
from vdvae_repr.model.structure import parse_blocks
from vdvae_repr.output import html_table

SLICE_BYTES = 2**26  # read at once where a matrix is not wanted whole
COLUMN_BYTES = 2**27  # of a layer's columns, all images'

Array = NDArray[Any]


class RowError(StoreError, IndexError):
    """Rows of a store were asked for that it does not have."""


class OtherWeightsError(StoreError):
    """A model was given that the latents were not read with."""


class Latents(ABC):
    """Per-layer features of images, on the disk: what tasks read. A context manager that closes its files.

    Where z holds several draws an image, (N, S, C, R, R), feature "z" reads their mean, "z:3" the fourth.
    """

    path: Path
    """Of the file, in messages."""
    attrs: dict[str, Any]
    """The attributes as they stand in the file; `info` is what they mean."""
    info: StoreInfo
    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    """(N,), -1 where there is none."""
    label_names: tuple[str, ...]
    splits: tuple[str, ...]
    notices: tuple[str, ...] = ()
    """Lines for people about what is read in a way that may surprise."""
    reads_mirrored: bool = False
    """Whether the images are read mirrored."""

    @abstractmethod
    def close(self) -> None:
        """Close the files."""

    @abstractmethod
    def mirrored(self) -> Latents:
        """Return the same images mirrored, as extraction with --mirror reads them.

        Raises:
            StoreError: they were not read.
        """

    @property
    @abstractmethod
    def factors(self) -> dict[str, Array]:
        """The source's known factors, (N,) each."""

    @property
    @abstractmethod
    def checksums(self) -> tuple[str, NDArray[np.uint64]] | None:
        """What each image was made of, (N,): `Source.checksum`, behind what it is of (`files`, `pixels`).

        None where that is not recorded, as in stores of earlier versions.
        """

    @property
    @abstractmethod
    def kl(self) -> NDArray[np.float32]:
        """(N, layers traversed), nats an image; `kl_layers` names the columns.

        Raises:
            StoreError: none is stored, as of imported predictions.
        """

    @property
    def kl_layers(self) -> tuple[str, ...]:
        """The names of the columns of `kl`: all layers traversed, of which some may not be stored.

        Raises:
            StoreError: no KL is stored.
        """
        columns = self.kl.shape[1]
        config = ModelConfig(**json.loads(self.info.config))
        blocks = parse_blocks(config.top_down, key="model.top_down")
        return tuple(spec.name for spec in make_layer_specs(blocks, config.zdim)[:columns])

    @property
    @abstractmethod
    def has_kl(self) -> bool:
        """Whether the KL of each layer is stored, as extraction with a VDVAE does."""

    @property
    @abstractmethod
    def has_images(self) -> bool:
        """Whether the preprocessed images are kept, which the pixel controls need."""

    @abstractmethod
    def images(self) -> NDArray[np.uint8]:
        """Return the preprocessed images, uint8 (N, H, W, 3).

        Raises:
            StoreError: they were not kept.
        """

    @abstractmethod
    def digest(self, spec: LayerSpec, feature: str) -> str:
        """Return a hash of a layer's stored values."""

    @abstractmethod
    def verify(self) -> tuple[str, ...]:
        """Read everything once, so that every checksum is tested.

        Returns:
            lines about what could not be checked.

        Raises:
            StoreError: names what is damaged.
        """

    @abstractmethod
    def array_shape(self, key: str) -> tuple[int, ...]:
        """Return the shape (N, ...) of an array by its path in the file."""

    @abstractmethod
    def read(self, key: str, what: str, rows: Any = slice(None)) -> Array:
        """Read rows of an array by its path: one, a slice of them, or ascending numbers.

        Raises:
            StoreError: a checksum fails; `what` is named.
        """

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self.close()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def __repr__(self) -> str:
        """Say what is stored of what."""
        return (
            f"<{type(self).__name__} {self.path}: {self.info.model}, {len(self)} images, "
            f"{len(self.layers)} layers ({self.layers[0].name} .. {self.layers[-1].name}), "
            f"{', '.join(self.features)}>"
        )

    def _repr_html_(self) -> str:
        """Say what is stored as a table, in a notebook."""
        rows = {
            "model": self.info.model,
            "source": self.info.source,
            "images": f"{len(self)}, {number_of_classes(self.labels)} classes",
            "layers": f"{len(self.layers)}, {self.layers[0].name} to {self.layers[-1].name}",
            "features": ", ".join(self.features),
        }
        return html_table(f"{type(self).__name__} {self.path}", rows)

    @property
    @abstractmethod
    def tested_path(self) -> Path:
        """The file, from the root, that scores lie beside: of two stores the one that is tested on."""

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The layers stored, in the order in which they are computed."""
        return self.info.layers

    @property
    def features(self) -> tuple[str, ...]:
        """The features stored of each layer."""
        return self.info.features

    @property
    def default_feature(self) -> str:
        """What is read where no feature is named: `mean`, or the first where that is not stored."""
        return "mean" if "mean" in self.features else self.features[0]

    @property
    def draws(self) -> int | None:
        """Draws of z stored for each image; None where z has no axis of draws."""
        return self.info.draws

    @with_hints
    def matrix(
        self,
        layers: str | int | Sequence[str | int] = "all",
        feature: str | None = None,
        pool: str | None = None,
        split: str | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[str, ...]]:
        """Return features (N, D) float32, labels (N,) and ids; layers side by side, coarsest first.

        Args:
            layers: selector among the layers stored.
            feature: one of `features`; of several draws "z" is the mean, "z:3" the fourth. If not given,
                `default_feature`.
            pool: None flattens, "avg" takes the mean over the grid, "avg:4" over a 4x4 grid.
            split: keep this split's images only.

        Raises:
            LayerError: no such layer, feature or draw. StoreError: a checksum fails, or no such split.
        """
        feature = self.default_feature if feature is None else feature
        rows = self.rows(split)
        chosen = self.distinct(layers, feature)
        parts = [self.pooled(spec, feature, pool, rows) for spec in chosen]
        return np.concatenate(parts, axis=1), self.labels[rows], tuple(self.ids[i] for i in rows)

    def slices(
        self,
        layers: str | int | Sequence[str | int] = "all",
        feature: str | None = None,
        pool: str | None = None,
        split: str | None = None,
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the rows of `matrix`, some at a time, so that memory stays small."""
        feature = self.default_feature if feature is None else feature
        rows = self.rows(split)
        chosen = self.distinct(layers, feature)
        dims = sum(math.prod(self.shape(spec, feature)) for spec in chosen)
        size = max(1, SLICE_BYTES // (4 * dims))
        for start in range(0, len(self), size):
            some = rows[(start <= rows) & (rows < start + size)]
            if len(some):
                parts = [self.pooled(spec, feature, pool, some) for spec in chosen]
                yield np.concatenate(parts, axis=1)

    def columns(
        self, layer: str, feature: str | None = None, pool: str | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield a layer's `matrix` by columns, (N, d) at a time, so that memory stays small."""
        feature = self.default_feature if feature is None else feature
        spec = self[layer].spec
        dims = math.prod(self.shape(spec, feature, pool))
        if 4 * len(self) * dims <= COLUMN_BYTES:
            yield self.pooled(spec, feature, pool, self.rows())  # `matrix`, without its copy
            return
        channels = self.shape(spec, feature, pool)[0]
        each = dims // channels
        some = max(1, COLUMN_BYTES // (4 * len(self) * each))
        for start in range(0, channels, some):
            wanted = slice(start * each, (start + some) * each)
            block = np.empty((len(self), len(range(dims)[wanted])), np.float32)
            first = 0
            for rows in self.slices(layer, feature, pool):
                block[first : first + len(rows)] = rows[:, wanted]
                first += len(rows)
            yield block
            del block  # before the next is made

    def shape(self, spec: LayerSpec, feature: str, pool: str | None = None) -> tuple[int, ...]:
        """Return the shape, (C, R, R) or (T, C), of what `matrix` flattens of a layer."""
        stored = self.array_shape(self.key(spec, feature))[-len(spec.shape) :]
        return pooled_shape(spec, stored, pool)

    def rows(self, split: str | None = None) -> NDArray[np.intp]:
        """Return the row numbers of a split, of all images without one.

        Raises:
            StoreError: no such split.
        """
        found = np.flatnonzero([split in (None, own) for own in self.splits])
        if not len(found):
            raise StoreError(f"{self.path}: no split {split!r}; it has {sorted(set(self.splits))}")
        return found

    def __getitem__(self, layer: str) -> StoredLayer:
        """Return a layer, whose features are read by slices: `store["8x8.2"].mean[100:200]`."""
        chosen = select_layers(self.layers, layer)
        if len(chosen) != 1:
            names = [spec.name for spec in chosen]
            listed = ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]}"
            raise LayerError(
                f"expected the name of one layer, found {layer!r}, which selects {len(names)} ({listed}); "
                f"name one, as {names[0]!r}, or take them together by store.matrix(layers={layer!r})"
            )
        return StoredLayer(self, chosen[0])

    def key(self, spec: LayerSpec, feature: str) -> str:
        """Return the path of a layer's feature in the file.

        Raises:
            LayerError: it is not stored.
        """
        stored, _, draw = feature.partition(":") if isinstance(feature, str) else ("", "", "")
        if stored not in self.features:
            raise LayerError(
                f"feature {feature!r} is not stored{self._meant(stored)}; stored are "
                f"{', '.join(self.features)}{self._how_to_store(stored)}"
            )
        if draw and not (stored == "z" and self.draws and draw in map(str, range(self.draws))):
            held = f"draws z:0 to z:{self.draws - 1}" if self.draws else "no draws to choose among"
            raise LayerError(f"feature {feature!r} is not stored; there are {held}")
        return (MIRROR if self.reads_mirrored else "") + array_key(spec, stored)

    def _meant(self, feature: str) -> str:
        """Return which stored feature was probably meant, of one that no model has."""
        return "" if feature in FEATURES else suggestion(feature, self.features)

    def _how_to_store(self, feature: str) -> str:
        """Return how to extract a feature that is known and not stored."""
        if "activation" in self.features or feature not in FEATURES:
            return ""
        drawn = ' and z="sample"' if feature == "z" else ""
        return f'; extract into another store with features="{feature}"{drawn}'

    def distinct(self, layers: str | int | Sequence[str | int], feature: str) -> list[LayerSpec]:
        """Return the layers selected; of those that share an array (`bottom_up`) the first alone."""
        chosen = select_layers(self.layers, layers)
        by_key = {self.key(spec, feature): spec for spec in reversed(chosen)}
        return [spec for spec in chosen if by_key[self.key(spec, feature)] is spec]

    def pooled(
        self, spec: LayerSpec, feature: str, pool: str | None, rows: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Return a layer's rows, pooled and flattened, (len(rows), D)."""
        # One range is read and its rows chosen: HDF5 is slow at lists of rows.
        first, last = int(rows[0]), int(rows[-1]) + 1
        key, what = self.key(spec, feature), f"layer {spec.name}"
        if len(self.array_shape(key)) == 5:
            values = self._of_draws(key, what, first, last, feature.partition(":")[2])
        else:
            values = self.read(key, what, slice(first, last))
        if len(values) > len(rows):
            values = values[rows - first]
        values = values.astype(np.float32, copy=False)
        pooled = pool_layer(values, pool, spec.prefix, spec.class_token)
        return pooled.reshape(len(pooled), -1)

    def _of_draws(self, key: str, what: str, first: int, last: int, draw: str) -> Array:
        """Return one draw of a range of rows, or the mean of all, read some rows at a time."""
        shape = self.array_shape(key)[1:]
        values = np.empty((last - first, *shape[1:]), np.float32)
        size = max(1, SLICE_BYTES // (4 * math.prod(shape)))
        for start in range(first, last, size):
            read = self.read(key, what, slice(start, min(start + size, last)))
            some = read[:, int(draw)] if draw else read.mean(axis=1, dtype=np.float32)
            values[start - first : start - first + len(read)] = some
        return values


@dataclass(frozen=True)
class StoredLayer:
    """One layer of a store; its features are attributes, read by slices of rows."""

    store: Latents
    spec: LayerSpec

    def __getattr__(self, feature: str) -> StoredFeature:
        """Return a stored feature; another name lists those stored."""
        if feature.startswith("_"):
            raise AttributeError(feature)
        return StoredFeature(self.store, self.spec, self.store.key(self.spec, feature))


@dataclass(frozen=True)
class StoredFeature:
    """A feature on the disk, (N, C, R, R), of S draws (N, S, C, R, R); slices of it are arrays."""

    store: Latents
    spec: LayerSpec
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, R, R) or (N, S, C, R, R); smaller where it was pooled."""
        return tuple(self.store.array_shape(self.key))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.store)

    def __getitem__(self, rows: Any) -> Array:
        """Read what NumPy would give: a row, a slice, row numbers in any order, or a mask of all rows.

        Further axes may follow, as in `feature[0, :3]`; they are cut in memory.

        Raises:
            RowError: rows that are not there, or of another kind; it is an IndexError as well.
        """
        rows, *others = rows if isinstance(rows, tuple) and rows else (rows,)
        what = f"layer {self.spec.name}"
        try:
            chosen = chosen_rows(rows, len(self))
            if isinstance(chosen, int):
                values = self.store.read(self.key, what, chosen)
                return np.asarray(values[tuple(others)])
            if isinstance(chosen, slice):
                values = self.store.read(self.key, what, chosen)
            else:  # HDF5 takes ascending numbers alone
                ascending, place = np.unique(chosen, return_inverse=True)
                values = self.store.read(self.key, what, ascending)[place]
            return np.asarray(values[(slice(None), *others)]) if others else values
        except (IndexError, TypeError) as error:
            if isinstance(error, RowError):
                raise
            raise RowError(f"{self.store.path}: {what}: {first_line(error)}") from error


def expect_store(store: object, name: str = "store") -> None:
    """Refuse what is no open store, as a path to one.

    Raises:
        TaskError: names the parameter.
    """
    if not isinstance(store, Latents):
        found = repr(store) if isinstance(store, str | Path | None) else type(store).__name__
        raise TaskError(
            f"{name}: expected an open store, found {found}; vr.open('latents.h5') opens one"
        )


def list_of_ids(ids: Iterable[str]) -> list[str]:
    """Return ids as a list.

    Raises:
        StoreError: they are one text, whose letters would be taken for ids, a set, or no ids at all.
    """
    if why := without_order(ids, "ids"):
        raise StoreError(f"ids: {why}")
    return list(ids)


def chosen_rows(rows: Any, count: int) -> int | slice | NDArray[np.intp]:
    """Return what `rows` chooses of `count`: one from 0, an ascending slice, or numbers from 0.

    Raises:
        RowError: see `StoredFeature`. TypeError: a slice of something else than whole numbers.
    """
    if rows is Ellipsis:
        return slice(None)
    if isinstance(rows, slice):
        start, stop, step = rows.indices(count)
        return rows if step > 0 else np.arange(start, stop, step)
    if why := hidden_by_mask(rows, "rows", "rows"):
        raise RowError(why)
    array = np.asarray(rows)
    if array.dtype == bool and array.shape == (count,):
        return np.flatnonzero(array)
    numbers = array.astype(np.intp) if array.size == 0 and array.ndim == 1 else array
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1:
        found = f"{array.dtype} {array.shape}" if array.ndim else repr(rows)
        raise RowError(
            f"expected a row from 0 to {count - 1}, a slice, numbers of rows or a mask of {count}, "
            f"found {found}"
        )
    wrong = numbers[(numbers < -count) | (numbers >= count)]
    if wrong.size:
        raise RowError(f"expected rows from {-count} to {count - 1}, found {wrong.flat[0]}")
    if numbers.ndim == 0:
        return operator.index(numbers[()]) % count
    return numbers.astype(np.intp) % count


def same_images(store: Latents, other: Latents) -> str:
    """Check that stores of the same ids were made of the same images.

    They were if the files or pixels that they were made of have the same checksums, whatever each store
    made of them. Where these differ, as those of a folder and of an array of the same images, the stored
    images are compared, if both were preprocessed alike.

    Returns:
        a line for people where it cannot be told, or where the stores show other parts of the images;
        empty where they are the same.

    Raises:
        StoreError: the images are others; one is named.
    """
    known = store.checksums, other.checksums
    differ = None
    if known[0] is not None and known[1] is not None and known[0][0] == known[1][0]:
        differ = np.flatnonzero(known[0][1] != known[1][1])
    alike = store.info.preprocessing == other.info.preprocessing
    if (differ is None or len(differ)) and alike and store.has_images and other.has_images:
        images = (each.images() for each in (store, other))
        one, two = (pixels.reshape(len(pixels), -1) for pixels in images)
        if one.shape == two.shape:
            differ = np.flatnonzero((one != two).any(axis=1))
    if differ is not None and len(differ):
        raise StoreError(
            f"{other.path}: expected the images of {store.path}, found others under the same ids, "
            f"{len(differ)} in all, as {store.ids[differ[0]]!r}; extract both from the same files"
        )
    # Where nothing else is known, names and sizes that are the same count.
    sources = store.info.source_sha256, other.info.source_sha256
    if differ is None and (sources[0] is None or sources[0] != sources[1]):
        return f"{other.path}: whether the images behind its ids are those of {store.path} cannot be told"
    first, second = (_part_shown(each) for each in (store, other))
    if first == second:
        return ""
    return f"{other.path} shows another part of the images ({second}) than {store.path} ({first})"


def about_copies(
    images: NDArray[Any] | Mapping[int, NDArray[Any]],
    ids: Sequence[str],
    sides: Sequence[tuple[str, NDArray[np.intp]]],
    targets: NDArray[Any] | None = None,
    *,
    remedy: str = "remove one",
) -> list[str]:
    """Refuse an image that is in two sides, and count those that are of two classes in one.

    Args:
        images: as stored, (N, H, W, 3), or those of the rows of all sides.
        ids: of them.
        sides: names and rows; where no image may be there twice, each is a side of its own.
        targets: the class of each image (N,); None where there are none.
        remedy: what to do about one, in the message.

    Raises:
        TaskError: names both.
    """
    seen: dict[bytes, tuple[int, str]] = {}
    torn: dict[str, list[tuple[int, int]]] = {}
    for name, side in sides:
        here: dict[bytes, tuple[int, str]] = {}
        for i in side.tolist():
            image = images[i].tobytes()
            if twin := seen.get(image):
                raise TaskError(
                    f"{ids[i]} in the {name} is the same image as {ids[twin[0]]} in the {twin[1]}; {remedy}"
                )
            first = here.setdefault(image, (i, name))[0]
            if targets is not None and targets[first] != targets[i]:
                torn.setdefault(name, []).append((first, i))
        seen |= here
    return [
        f"{ids[pairs[0][0]]} and {ids[pairs[0][1]]} in the {name} are one image of two classes"
        + (f", as are {len(pairs) - 1} more" if len(pairs) > 1 else "")
        + "; mend their labels"
        for name, pairs in torn.items()
    ]


def read_otherwise(store: Latents, other: Latents) -> str:
    """Return a line where two VDVAEs' latents are of passes, or of images resized, in different ways."""
    if any("activation" in each.features or each.info.z is None for each in (store, other)):
        return ""
    first, second = (
        f"z {each.info.z}, resize {json.loads(each.info.preprocessing).get('resize', 'unknown')}"
        for each in (store, other)
    )
    return "" if first == second else f"{other.path} is of {second}, {store.path} of {first}"


def _part_shown(store: Latents) -> str:
    """Return how images were cut and aligned, as `crop 160, align True`; `whole` where they were not."""
    steps = json.loads(store.info.preprocessing)
    taken = (f"{name} {steps[name]}" for name in ("crop", "align") if steps.get(name))
    return ", ".join(taken) or "whole"
