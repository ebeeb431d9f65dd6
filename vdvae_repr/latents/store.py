"""LatentStore: one HDF5 file of per-layer features, complete or absent, checksummed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vdvae_repr.errors import LayerError, StoreError
from vdvae_repr.model.layers import LayerSpec, select_layers

SCHEMA = "vdvae-repr/1"
CHUNK_BYTES = 2**20
MIRROR = "mirror/"
DEPTH = 3  # of groups: mirror/layers/LLL
SLICE_BYTES = 2**26  # read at once where a matrix is not wanted whole
IMAGE_BYTES = 2**8  # of an image's id, split, label and factors, about
COLUMN_BYTES = 2**29  # of a layer's columns, all images'
Array = NDArray[Any]


class LatentStore:
    """Read access to a store; open with `LatentStore.open(path)`.

    Layout: /ids, /labels, /splits, /factors/NAME, /images, /layers/LLL/FEATURE, /bottom_up/RRR, /kl, and
    /mirror/... for the mirrored images. Where z holds several draws an image, (N, S, C, R, R), feature "z"
    reads their mean, "z:3" the fourth.
    """

    def __init__(self, path: Path, file: h5py.File, *, root: str = "") -> None:
        self.path = path
        self._file = file
        self._root = root
        self._parts = _Part.of(path, file)
        self._looked_into: set[str] = set()  # parts found free of links
        self.attrs: dict[str, Any] = dict(file.attrs)
        self.layers = tuple(
            LayerSpec(
                row["index"],
                row["name"],
                row["resolution"],
                tuple(row["shape"]),
                row.get("prefix", 0),
            )
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
            if parts_folder(path).is_dir():
                raise StoreError(
                    f"{path}: is being written, or was interrupted; rerun its vdvae-repr extract to go on"
                )
            raise StoreError(
                f"{path}: no such store; make one with vdvae-repr extract --out {path}"
            )
        file = None
        try:
            file = h5py.File(path, "r")
            if file.attrs.get("schema") != SCHEMA:
                found = file.attrs.get("schema", "no schema")
                raise StoreError(f"{path}: expected a store of schema {SCHEMA}, found {found}")
            parts = _Part.of(path, file)
            for part in parts:
                part.check(path)
            _refuse_links(path, file, [part.name for part in parts])
            return cls(path, file)
        except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            if file is not None:
                file.close()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{path}: not a readable latent store ({error})") from error

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def mirrored(self) -> LatentStore:
        """Return the store of the same images mirrored, as extraction with --mirror makes it.

        Raises:
            StoreError: there is none.
        """
        if "mirror" not in self._file:
            raise StoreError(f"{self.path}: holds no mirrored images; extract with --mirror")
        return LatentStore(self.path, self._file, root="" if self._root else MIRROR)

    @property
    def default_feature(self) -> str:
        """What is read where no feature is named: `mean`, or the first where that is not stored."""
        return "mean" if "mean" in self.features else self.features[0]

    @property
    def draws(self) -> int | None:
        """Draws of z stored for each image; None where z has no axis of draws."""
        return int(self.attrs.get("draws") or 0) or None

    @property
    def factors(self) -> dict[str, Array]:
        """The source's known factors, (N,) each."""
        return {
            name: data.asstr()[:] if data.dtype.kind == "O" else data[:]
            for name, data in self._file.get("factors", {}).items()
        }

    @property
    def kl(self) -> NDArray[np.float32]:
        """(N, layers traversed), nats an image.

        Raises:
            StoreError: none is stored, as of imported predictions.
        """
        key = self._root + "kl"
        if key not in self._file:
            raise StoreError(f"{self.path}: holds no kl; only extraction with a VDVAE makes one")
        return np.asarray(self._read(key, "kl"))

    @property
    def has_kl(self) -> bool:
        """Whether the KL of each layer is stored, as extraction with a VDVAE does."""
        return self._root + "kl" in self._file

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
        images = np.asarray(self._read("images", "images"))
        return np.ascontiguousarray(images[:, :, ::-1]) if self._root else images

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
            feature: one of `features`; of several draws "z" is the mean, "z:3" the fourth.
            pool: None flattens, "avg" takes the mean over the grid, "avg:4" over a 4x4 grid.
            split: keep this split's images only.

        Raises:
            LayerError: no such layer, feature or draw. StoreError: a checksum fails, or no such split.
        """
        rows = self.rows(split)
        chosen = self.distinct(layers, feature)
        parts = [self._pooled(spec, feature, pool, rows) for spec in chosen]
        return np.concatenate(parts, axis=1), self.labels[rows], tuple(self.ids[i] for i in rows)

    def slices(
        self,
        layers: str | int | Sequence[str | int] = "all",
        feature: str = "mean",
        pool: str | None = None,
        split: str | None = None,
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the rows of `matrix`, some at a time, so that memory stays small."""
        rows = self.rows(split)
        chosen = self.distinct(layers, feature)
        dims = sum(math.prod(self.shape(spec, feature)) for spec in chosen)
        size = max(1, SLICE_BYTES // (4 * dims))
        for start in range(0, len(self), size):
            some = rows[(start <= rows) & (rows < start + size)]
            if len(some):
                parts = [self._pooled(spec, feature, pool, some) for spec in chosen]
                yield np.concatenate(parts, axis=1)

    def columns(
        self, layer: str, feature: str = "mean", pool: str | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Yield a layer's `matrix` by columns, (N, d) at a time, so that memory stays small."""
        spec = self[layer].spec
        dims = math.prod(self.shape(spec, feature, pool))
        if 4 * len(self) * dims <= COLUMN_BYTES:
            yield self.matrix(layer, feature, pool)[0]
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

    def digest(self, spec: LayerSpec, feature: str) -> str:
        """Return a hash of a layer's stored values."""
        key = self._key(spec, feature)
        data, sha = self._file[key], hashlib.sha256()
        size = max(1, SLICE_BYTES // max(1, data.nbytes // max(1, len(data))))
        for start in range(0, len(data), size):
            sha.update(self._read(key, f"layer {spec.name}", slice(start, start + size)).tobytes())
        return sha.hexdigest()

    def shape(self, spec: LayerSpec, feature: str, pool: str | None = None) -> tuple[int, ...]:
        """Return the shape, (C, R, R) or (T, C), of what `matrix` flattens of a layer."""
        stored = self._file[self._key(spec, feature)].shape[-len(spec.shape) :]
        return pool_layer(np.zeros((1, *stored), np.float32), pool, spec.prefix).shape[1:]

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
            raise LayerError(f"expected the name of one layer, found {layer!r}")
        return StoredLayer(self, chosen[0])

    def dataset(
        self,
        layers: str | int | Sequence[str | int] = "all",
        feature: str = "mean",
        pool: str | None = None,
        split: str | None = None,
    ) -> StoreDataset:
        """Return a torch data set of (features (D,) float32, label), read from the file item by item."""
        specs = self.distinct(layers, feature)
        names = tuple(spec.name for spec in specs)
        return StoreDataset(self.path, names, feature, pool, self.rows(split), bool(self._root))

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
                parts = key.removeprefix(MIRROR).split("/")
                what = names[parts[1]] if parts[0] == "layers" else key
                data = self._file[key]
                size = max(1, SLICE_BYTES // max(1, data.nbytes // max(1, len(data))))
                for start in range(0, len(data), size):
                    self._read(key, what, slice(start, start + size))

    def _key(self, spec: LayerSpec, feature: str) -> str:
        stored, _, draw = feature.partition(":")
        if stored not in self.features:
            raise LayerError(
                f"feature {feature!r} is not stored; stored are {', '.join(self.features)}"
            )
        if draw and not (stored == "z" and self.draws and draw in map(str, range(self.draws))):
            held = f"draws z:0 to z:{self.draws - 1}" if self.draws else "no draws to choose among"
            raise LayerError(f"feature {feature!r} is not stored; there are {held}")
        return self._root + array_key(spec, stored)

    def distinct(self, layers: str | int | Sequence[str | int], feature: str) -> list[LayerSpec]:
        """Return the layers selected; of those that share an array (`bottom_up`) the first alone."""
        chosen = select_layers(self.layers, layers)
        by_key = {self._key(spec, feature): spec for spec in reversed(chosen)}
        return [spec for spec in chosen if by_key[self._key(spec, feature)] is spec]

    def _pooled(
        self, spec: LayerSpec, feature: str, pool: str | None, rows: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Return a layer's rows, pooled and flattened, (len(rows), D)."""
        # One range is read and its rows chosen: HDF5 is slow at lists of rows.
        first, last = int(rows[0]), int(rows[-1]) + 1
        key, what = self._key(spec, feature), f"layer {spec.name}"
        if self._file[key].ndim == 5:
            values = self._of_draws(key, what, first, last, feature.partition(":")[2])
        else:
            values = self._read(key, what, slice(first, last))
        if len(values) > len(rows):
            values = values[rows - first]
        pooled = pool_layer(values.astype(np.float32, copy=False), pool, spec.prefix)
        return pooled.reshape(len(pooled), -1)

    def _of_draws(self, key: str, what: str, first: int, last: int, draw: str) -> Array:
        """Return one draw of a range of rows, or the mean of all, read some rows at a time."""
        shape = self._file[key].shape[1:]
        values = np.empty((last - first, *shape[1:]), np.float32)
        size = max(1, SLICE_BYTES // (4 * math.prod(shape)))
        for start in range(first, last, size):
            read = self._read(key, what, slice(start, min(start + size, last)))
            some = read[:, int(draw)] if draw else read.mean(axis=1, dtype=np.float32)
            values[start - first : start - first + len(read)] = some
        return values

    def _read(self, key: str, what: str, rows: Any = slice(None)) -> Array:
        try:
            if self._parts:
                return self._read_parts(key, rows)
            return np.asarray(self._file[key][rows])
        except (OSError, KeyError) as error:
            raise StoreError(
                f"{self.path}: {what} is damaged (checksum or data unreadable); "
                "extract again with --overwrite"
            ) from error

    def _read_parts(self, key: str, rows: Any) -> Array:
        """Read ascending rows from the parts themselves: HDF5 would read zeros where one cannot be opened."""
        if not self._file[key].is_virtual:
            return np.asarray(self._file[key][rows])
        wanted = np.arange(len(self._file[key]))[rows]
        found = np.empty((np.size(wanted), *self._file[key].shape[1:]), self._file[key].dtype)
        first = done = 0
        for part in self._parts:
            here = np.atleast_1d(wanted)
            here = here[(first <= here) & (here < first + part.count)] - first
            if len(here):
                with h5py.File(part.path, "r") as file:
                    if part.name not in self._looked_into:
                        _refuse_links(part.path, file, ())
                        self._looked_into.add(part.name)
                    values = file[key][here[0] : here[-1] + 1]
                found[done : done + len(here)] = values[here - here[0]]
            first, done = first + part.count, done + len(here)
        return found if np.ndim(wanted) else found[0]


class JoinedStore(LatentStore):
    """Two stores from the same weights as one: what is learned on the first is tested on the second.

    Ids are prefixed `train/` and `test/`, which are the splits; labels of one name are one label.

    Raises:
        StoreError: other weights, options or layers; names the difference.
    """

    def __init__(self, train: LatentStore, test: LatentStore) -> None:
        for name in ("weights_sha256", "z", "draws", "pool", "mirror", "preprocessing"):
            first, second = (str(store.attrs.get(name)) for store in (train, test))
            if first != second:
                raise StoreError(
                    f"{test.path}: expected the {name} of {train.path}, {first}, found {second}; "
                    "extract both alike"
                )
        super().__init__(train.path, train._file, root=train._root)
        self._stores = train, test
        self.path = Path(f"{train.path} and {test.path}")
        self.attrs["source"] = f"{train.attrs['source']} -> {test.attrs['source']}"
        both = {spec.name for spec in test.layers}
        self.layers = tuple(spec for spec in train.layers if spec.name in both)
        self.features = tuple(name for name in train.features if name in test.features)
        if not self.layers or not self.features:
            raise StoreError(f"{test.path}: has no layer or feature in common with {train.path}")
        self.label_names = tuple(dict.fromkeys(train.label_names + test.label_names))
        number = {name: index for index, name in enumerate(self.label_names)}
        self.labels = np.concatenate(
            [
                [number[store.label_names[k]] if k >= 0 else -1 for k in store.labels]
                for store in self._stores
            ]
        ).astype(np.int64)
        self.ids = tuple(f"train/{i}" for i in train.ids) + tuple(f"test/{i}" for i in test.ids)
        self.splits = ("train",) * len(train) + ("test",) * len(test)

    @property
    def factors(self) -> dict[str, Array]:
        """The factors that both sources know, (N,) each."""
        first, second = (store.factors for store in self._stores)
        return {
            name: np.concatenate([first[name], second[name]]) for name in first if name in second
        }

    @property
    def kl(self) -> NDArray[np.float32]:
        """(N, layers traversed in both), nats an image."""
        both = [store.kl for store in self._stores]
        return np.concatenate([kl[:, : min(kl.shape[1] for kl in both)] for kl in both])

    @property
    def has_kl(self) -> bool:
        """Whether the KL of each layer is stored in both."""
        return all(store.has_kl for store in self._stores)

    @property
    def has_images(self) -> bool:
        """Whether both keep their images."""
        return all(store.has_images for store in self._stores)

    def mirrored(self) -> LatentStore:
        """Return the mirrored images of both."""
        return JoinedStore(*(store.mirrored() for store in self._stores))

    def images(self) -> NDArray[np.uint8]:
        """Return the images of both."""
        return np.concatenate([store.images() for store in self._stores])

    def digest(self, spec: LayerSpec, feature: str) -> str:
        """Return a hash of a layer's values in both."""
        return "+".join(store.digest(spec, feature) for store in self._stores)

    def dataset(self, *arguments: Any, **options: Any) -> StoreDataset:
        """Refuse: it is of two files; make one of each store."""
        raise StoreError(f"{self.path}: two stores; take a data set of each")

    def _read(self, key: str, what: str, rows: Any = slice(None)) -> Array:
        wanted = np.arange(len(self))[rows]
        first = len(self._stores[0])
        sides = wanted[wanted < first], wanted[wanted >= first] - first
        # Ranges, whose rows are chosen: HDF5 is slow at lists of rows.
        parts = [
            store._read(key, what, slice(own[0], own[-1] + 1))[own - own[0]]
            for store, own in zip(self._stores, sides, strict=True)
            if len(own)
        ]
        return np.concatenate(parts)


@dataclass(frozen=True)
class StoredLayer:
    """One layer of a store; its features are attributes, read by slices of rows."""

    store: LatentStore
    spec: LayerSpec

    def __getattr__(self, feature: str) -> StoredFeature:
        """Return a stored feature; another name lists those stored."""
        if feature.startswith("_"):
            raise AttributeError(feature)
        return StoredFeature(self.store, self.spec, self.store._key(self.spec, feature))


@dataclass(frozen=True)
class StoredFeature:
    """A feature on the disk, (N, C, R, R), of S draws (N, S, C, R, R); slices of it are arrays."""

    store: LatentStore
    spec: LayerSpec
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, R, R) or (N, S, C, R, R); smaller where it was pooled."""
        return tuple(self.store._file[self.key].shape)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.store)

    def __getitem__(self, rows: Any) -> Array:
        """Read a row, a slice of rows, or ascending row numbers."""
        return self.store._read(self.key, f"layer {self.spec.name}", rows)


class StoreDataset(Dataset[tuple[torch.Tensor, int]]):
    """Rows of a store as (features, label); each process opens the file for itself."""

    def __init__(
        self,
        path: Path,
        layers: tuple[str, ...],
        feature: str,
        pool: str | None,
        rows: NDArray[np.intp],
        mirrored: bool,
    ) -> None:
        self.path, self.layers, self.feature, self.pool = path, layers, feature, pool
        self.rows, self.mirrored = rows, mirrored
        self._store: LatentStore | None = None
        self._opened_by = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return features (D,) float32 and the label, -1 where there is none."""
        if self._store is None or self._opened_by != os.getpid():
            opened = LatentStore.open(self.path)
            self._store = opened.mirrored() if self.mirrored else opened
            self._opened_by = os.getpid()
        store, row = self._store, self.rows[index : index + 1]
        if not len(row):
            raise IndexError(index)
        parts = [
            store._pooled(spec, self.feature, self.pool, row)
            for spec in select_layers(store.layers, self.layers)
        ]
        return torch.from_numpy(np.concatenate(parts, axis=1)[0]), int(store.labels[row[0]])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind when a worker process is started."""
        return self.__dict__ | {"_store": None}


def parts_folder(path: Path) -> Path:
    """Return where a store's parts lie: while it is written, and for good with the layout `virtual`."""
    return Path(f"{path}.parts")


@dataclass(frozen=True)
class _Part:
    """A file that a virtual store refers to, by its name relative to the store's folder."""

    path: Path
    name: str
    size: int
    count: int

    @classmethod
    def of(cls, path: Path, file: h5py.File) -> tuple[_Part, ...]:
        """Return a store's parts in order; none of a single file."""
        folder = path.resolve().parent
        rows = json.loads(file.attrs.get("parts", "[]"))
        return tuple(cls(folder / name, name, size, count) for name, size, count in rows)

    def check(self, store: Path) -> None:
        """Refuse a part that is missing, cut short or elsewhere: HDF5 would read zeros in its place."""
        if not self.path.resolve().is_relative_to(store.resolve().parent):
            raise StoreError(f"{store}: its part {self.name!r} lies outside its folder; refused")
        found = self.path.stat().st_size if self.path.is_file() else None
        if found != self.size:
            state = "is missing" if found is None else f"has {found} bytes, not {self.size}"
            raise StoreError(
                f"{store}: its part {self.name} {state}; put it back, or rerun its vdvae-repr extract"
            )


def _refuse_links(path: Path, group: h5py.Group, parts: Iterable[str]) -> None:
    """Refuse what would make HDF5 read other files than this one and its parts, or read in a circle."""
    if group.name.count("/") > DEPTH:
        raise StoreError(f"{path}: not a readable latent store (groups inside groups)")
    for name in group:
        link = group.get(name, getlink=True)
        item = group.get(name) if isinstance(link, h5py.HardLink) else None
        if isinstance(item, h5py.Group):
            _refuse_links(path, item, parts)
        elif item is not None and item.is_virtual:
            sources = {source.file_name for source in item.virtual_sources()}
            if strangers := sources.difference(parts):
                raise StoreError(
                    f"{path}: {f'{group.name}/{name}'.lstrip('/')!r} leads to another file, "
                    f"{min(strangers)!r}, which is none of its parts; refused"
                )
        elif item is None or item.external:
            raise StoreError(
                f"{path}: {f'{group.name}/{name}'.lstrip('/')!r} leads to another file; refused"
            )


def write_aside(path: Path, write: Callable[[h5py.File], None], size: int = 0) -> None:
    """Write a file beside its place, flush it to the disk, then rename it: whole or absent.

    Args:
        path: its place.
        write: fills the file.
        size: bytes that are set aside for it, because a disk that fills up under HDF5 ends the process.

    Raises:
        OSError: the disk did not take it. StoreError: another process is writing the same file.
    """
    aside = path.with_name(path.name + ".writing")
    try:
        _set_aside(aside, 0)  # fails where nothing is open yet
        with _h5py_errors():
            file = h5py.File(aside, "w", libver=("v110", "latest"))
            try:
                _set_aside(aside, size)
                write(file)
            finally:
                file.close()
        with aside.open("r+b") as handle:
            handle.truncate(_end_of_hdf5(handle.read(36)))
            os.fsync(handle.fileno())
        aside.replace(path)
    except BlockingIOError as error:  # HDF5 locks what it writes
        raise StoreError(
            f"{path}: another process is writing it, as one that torchrun left behind; wait for it or end it"
        ) from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _set_aside(path: Path, size: int) -> None:
    """Allocate blocks of the disk to a file, which need not exist; nothing where the system cannot."""
    if hasattr(os, "posix_fallocate"):
        with path.open("ab") as handle:
            os.posix_fallocate(handle.fileno(), 0, size + size // 16 + 2**14)


def _end_of_hdf5(head: bytes) -> int:
    """Return where an HDF5 file ends by its superblock, of version 2 or 3: HDF5 specification, II.A."""
    return int.from_bytes(head[28:36], "little")


@contextmanager
def _h5py_errors() -> Iterator[None]:
    """Turn HDF5's failures to write into an OSError of one line.

    Those that come up while a data set is let go cannot be raised there: Python would print and forget them.
    """
    lost: list[BaseException] = []
    others = sys.unraisablehook

    def record(found: Any) -> None:
        if "Can't decrement id ref count" in str(found.exc_value):
            lost.append(found.exc_value)
        else:
            others(found)

    sys.unraisablehook = record
    try:
        yield
    except BlockingIOError:
        raise
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "errno = " not in str(error):
            raise
        lost.append(error)
    finally:
        sys.unraisablehook = others
    if lost:
        found = re.search(r"error message = '([^']*)'", str(lost[0]))
        what = found.group(1) if found else getattr(lost[0], "strerror", None) or str(lost[0])
        raise OSError(what.partition("\n")[0]) from lost[0]


def create_array(
    file: h5py.File, key: str, shape: tuple[int, ...], dtype: Any, part: int | None = None
) -> h5py.Dataset:
    """Create a checksummed data set in chunks of at most about 1 MiB.

    Their rows divide `part`, the rows of a part, so that chunks of parts are chunks of the whole.
    """
    rows = chunk_rows(shape[0], math.prod(shape[1:]) * np.dtype(dtype).itemsize, part)
    return file.create_dataset(key, shape, dtype, chunks=(rows, *shape[1:]), fletcher32=True)


def chunk_rows(length: int, row: int, part: int | None = None) -> int:
    """Return the rows of a chunk: of `length` rows of `row` bytes, as equal as can be or dividing `part`."""
    most = max(1, CHUNK_BYTES // max(1, row))
    if part is None:
        return max(1, -(-length // max(1, -(-length // most))))
    rows = next(part // n for n in range(-(-part // most), part + 1) if part % n == 0)
    return max(1, min(rows, length))


def describe_images(
    file: h5py.File,
    *,
    ids: Sequence[str],
    splits: Sequence[str],
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    factors: Mapping[str, Array],
    attrs: Mapping[str, Any],
    skipped: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write what a store says of its images, (N,) each, and of itself."""
    text = h5py.string_dtype()
    file.create_dataset("ids", data=list(ids), dtype=text)
    file.create_dataset("splits", data=list(splits), dtype=text)
    create_array(file, "labels", labels.shape, np.int64)[:] = labels
    file["labels"].attrs["names"] = json.dumps(list(label_names))
    for name, values in factors.items():
        kind = {"dtype": text} if values.dtype.kind in "UO" else {}
        file.create_dataset(f"factors/{name}", data=values.tolist() if kind else values, **kind)
    file.attrs.update(attrs)
    file.attrs["skipped"] = json.dumps(list(skipped))
    file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "h5py")}
    file.attrs["versions"] = json.dumps(versions)


def array_key(spec: LayerSpec, feature: str) -> str:
    """Return where a layer's feature stands in a store; `bottom_up` is one array a resolution."""
    if feature == "bottom_up":
        return f"bottom_up/{spec.resolution:03d}"
    return f"layers/{spec.index:03d}/{feature}"


def pool_layer(values: Array, pool: str | None, prefix: int = 0) -> Array:
    """Pool the values of a layer: a grid (N, C, H, W), or tokens (N, T, C), to (N, C, g, g).

    Args:
        values: of N images.
        pool: "avg" for the mean over the grid or the patches' tokens, "avg:4" for a 4x4 grid of means, "cls"
            for the class token; None leaves the values as they are.
        prefix: how many tokens come before those of the patches, the class token first.

    Raises:
        LayerError: an unknown pooling, or one that these values do not have.
    """
    if pool is None:
        return values
    vector = values.ndim == 4 and values.shape[2:] == (1, 1)
    if pool == "cls" and not vector:
        if values.ndim != 3 or not prefix:
            raise LayerError(
                "pool cls: expected tokens with a class token, found a layer without one"
            )
        return np.ascontiguousarray(values[:, 0, :, None, None])
    text = "1" if pool == "cls" else pool.removeprefix("avg").removeprefix(":") or "1"
    if not pool.startswith(("avg", "cls")) or not text.isdecimal() or int(text) < 1:
        raise LayerError(f"expected --pool avg or avg:GRID, or cls of tokens, found {pool!r}")
    grid = int(text)
    if values.ndim == 3:
        values = _patch_grid(values[:, prefix:], grid)
    n, c, height, width = values.shape
    if max(height, width) <= grid:
        return values
    if height % grid or width % grid:
        raise LayerError(f"pooling to {grid}x{grid} does not divide {height}x{width}")
    steps = values.reshape(n, c, grid, height // grid, grid, width // grid)
    return np.asarray(steps.mean(axis=(3, 5)))


def _patch_grid(patches: Array, grid: int) -> Array:
    """Lay tokens (N, T, C) out as (N, C, H, W): on their square, or in one column to be averaged whole."""
    n, count, channels = patches.shape
    side = math.isqrt(count)
    if side * side != count:
        if grid > 1:
            raise LayerError(f"pooling to {grid}x{grid}: {count} tokens lie on no square grid")
        return patches.transpose(0, 2, 1)[..., None]
    return patches.transpose(0, 2, 1).reshape(n, channels, side, side)
