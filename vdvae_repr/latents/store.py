"""LatentStore: one HDF5 file of per-layer features, complete or absent, checksummed; and two as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from vdvae_repr.config import path_of, with_hints
from vdvae_repr.data.kinds import why_unreadable
from vdvae_repr.errors import StoreError, counted
from vdvae_repr.latents import base
from vdvae_repr.latents.base import Array, Latents
from vdvae_repr.latents.format import (
    MIRROR,
    SCHEMA,
    SEAL,
    Part,
    StoreInfo,
    array_key,
    arrays_of,
    label_names,
    listed_arrays,
    not_finite,
    parts_folder,
    refuse_absurd,
    refuse_broken_seal,
    refuse_broken_trailer,
    refuse_links,
    refuse_other_arrays,
)
from vdvae_repr.model.layers import LayerSpec

if TYPE_CHECKING:
    from vdvae_repr.latents.dataset import StoreDataset
    from vdvae_repr.model.vdvae import VDVAE


def open_store(path: str | Path) -> LatentStore:
    """Open a store, as `vr.open`; use it in a `with` to have it closed.

    Raises:
        StoreError: no file, not a store, another schema, or damaged metadata.
    """
    return LatentStore.open(path)


class LatentStore(Latents):
    """Read access to a store; open with `LatentStore.open(path)`.

    Layout: /ids, /labels, /splits, /factors/NAME, /images, /layers/LLL/FEATURE, /bottom_up/RRR, /kl, and
    /mirror/... for the mirrored images.
    """

    def __init__(self, path: Path, file: h5py.File, *, mirrored: bool = False) -> None:
        self.path = path
        self._file = file
        self.reads_mirrored = mirrored
        self.attrs = dict(file.attrs)
        self.info = StoreInfo.read(self.attrs)
        self.place = Path(file.filename)
        """The file, from the root, whatever folder becomes the working one; `path` is as it was given."""
        self._parts = Part.of(self.place, self.info)
        self._looked_into: set[str] = (
            set()
        )  # parts without links, arrays that are as large as they say
        self.ids = tuple(file["ids"].asstr()[:].tolist())
        self.labels = file["labels"][:]
        self.label_names = label_names(file)
        self.splits = tuple(file["splits"].asstr()[:].tolist())

    @classmethod
    def open(cls, path: str | Path) -> LatentStore:
        """Open a store.

        Raises:
            StoreError: no file, not a store, another schema, or damaged metadata.
        """
        path = path_of("path", path)
        if path.is_dir():
            raise StoreError(f"{path}: expected a store, which is a file, found a folder")
        if not path.is_file():
            if parts_folder(path).is_dir():
                raise StoreError(
                    f"{path}: is being written, or was interrupted; rerun its vdvae-repr extract to go on"
                )
            if path.suffix.lower() not in (".h5", ".hdf5", ".hdf"):
                raise StoreError(
                    f"{path}: no such store; give the .h5 that vdvae-repr extract wrote"
                )
            raise StoreError(
                f"{path}: no such store; make one with vdvae-repr extract --out {path}"
            )
        file = None
        try:
            refuse_broken_trailer(path)
            file = h5py.File(path.absolute(), "r")
            if file.attrs.get("schema") != SCHEMA:
                found = file.attrs.get("schema", "no schema")
                raise StoreError(f"{path}: expected a store of schema {SCHEMA}, found {found}")
            info = StoreInfo.read(file.attrs)
            parts = Part.of(path, info)
            refuse_links(path, file, [part.name for part in parts])
            refuse_other_arrays(path, file, info)
            refuse_broken_seal(path, file)
            for part in parts:
                part.check(path)
            return cls(path, file)
        except BaseException as error:  # a damaged file may make h5py raise anything
            if file is not None:
                file.close()
            if isinstance(error, StoreError) or not isinstance(error, Exception):
                raise
            raise StoreError(
                f"{path}: not a readable latent store ({why_unreadable(path, error)})"
            ) from error

    @classmethod
    def check_written(cls, path: Path) -> None:
        """Refuse a new file that cannot be opened as a store, before it takes the place of an old one.

        Raises:
            StoreError: it cannot be.
        """
        try:
            cls.open(path).close()
        except StoreError as error:
            raise StoreError(
                f"what was written cannot be opened, and is removed; what was there stays ({error})"
            ) from error

    def close(self) -> None:
        """Close the file, for this store and the one of its mirrored images."""
        self._file.close()

    @property
    def _opened(self) -> h5py.File:
        if not self._file:
            raise StoreError(f"{self.path}: is closed; open it again to read it")
        return self._file

    def mirrored(self) -> LatentStore:
        """Return the store of the same images mirrored, as extraction with --mirror makes it.

        Raises:
            StoreError: there is none.
        """
        if "mirror" not in self._opened:
            raise StoreError(f"{self.path}: holds no mirrored images; extract with mirror=True")
        return LatentStore(self.path, self._opened, mirrored=not self.reads_mirrored)

    @property
    def tested_path(self) -> Path:
        """The file that scores lie beside, from the root."""
        return self.place

    @property
    def factors(self) -> dict[str, Array]:
        """The source's known factors, (N,) each."""
        return {
            name: data.asstr()[:] if data.dtype.kind == "O" else data[:]
            for name, data in self._opened.get("factors", {}).items()
        }

    @property
    def checksums(self) -> tuple[str, NDArray[np.uint64]] | None:
        """What each image was made of, (N,); None where an earlier version did not record it."""
        if "checksums" not in self._opened:
            return None
        return str(self._opened["checksums"].attrs["of"]), self.read("checksums", "checksums")

    @property
    def kl(self) -> NDArray[np.float32]:
        """(N, layers traversed), nats an image; `kl_layers` names the columns.

        Raises:
            StoreError: none is stored, as of imported predictions.
        """
        key = (MIRROR if self.reads_mirrored else "") + "kl"
        if key not in self._opened:
            raise StoreError(f"{self.path}: holds no kl; only extraction with a VDVAE makes one")
        return np.asarray(self.read(key, "kl"))

    @property
    def has_kl(self) -> bool:
        """Whether the KL of each layer is stored, as extraction with a VDVAE does."""
        return (MIRROR if self.reads_mirrored else "") + "kl" in self._opened

    @property
    def has_images(self) -> bool:
        """Whether the preprocessed images are kept, which the pixel controls need."""
        return "images" in self._opened

    def images(self) -> NDArray[np.uint8]:
        """Return the preprocessed images, uint8 (N, H, W, 3)."""
        if not self.has_images:
            raise StoreError(
                f"{self.path}: holds no images (images=False), so pixels, pca and random-init cannot run"
            )
        images = np.asarray(self.read("images", "images"))
        return np.ascontiguousarray(images[:, :, ::-1]) if self.reads_mirrored else images

    def digest(self, spec: LayerSpec, feature: str) -> str:
        """Return a hash of a layer's stored values."""
        key = self.key(spec, feature)
        sha = hashlib.sha256()
        for rows in self._slices(key):
            sha.update(self.read(key, f"layer {spec.name}", rows).tobytes())
        return sha.hexdigest()

    @with_hints
    def dataset(
        self,
        layers: str | int | Sequence[str | int] = "all",
        feature: str | None = None,
        pool: str | None = None,
        split: str | None = None,
    ) -> StoreDataset:
        """Return a torch data set of (features (D,) float32, label), read from the file item by item."""
        from vdvae_repr.latents.dataset import StoreDataset

        feature = self.default_feature if feature is None else feature
        specs = self.distinct(layers, feature)
        names = tuple(spec.name for spec in specs)
        rows, mirrored = self.rows(split), self.reads_mirrored
        return StoreDataset(LatentStore.open, self.place, names, feature, pool, rows, mirrored)

    @with_hints
    def decode(
        self,
        model: VDVAE | str | Path,
        layers: str | int | Sequence[str | int] = "all",
        *,
        first: int | None = None,
        ids: Sequence[str] | None = None,
        fine_from: str | None = None,
        rest: Literal["mean", "sample"] = "mean",
        pixels: Literal["mean", "sample"] = "mean",
        temperature: float | Sequence[float] = 1.0,
        seed: int = 0,
    ) -> Iterator[tuple[tuple[str, ...], NDArray[np.uint8]]]:
        """Yield (ids, images uint8 (n, S, S, 3)), batch by batch: see `latents.decode.decode`."""
        from vdvae_repr.latents.decode import decode

        return decode(
            self, model, layers, first=first, ids=ids, fine_from=fine_from,
            rest=rest, pixels=pixels, temperature=temperature, seed=seed,
        )  # fmt: skip

    @with_hints
    def export(
        self,
        out: str | Path,
        layers: str | int | Sequence[str | int] = "all",
        *,
        feature: str | None = None,
        pool: str | None = None,
        split: str | None = None,
    ) -> tuple[int, int]:
        """Write one flat matrix to a .npy or .npz file; return its shape: see `latents.export.export`."""
        from vdvae_repr.latents.export import export

        return export(self, out, layers, feature=feature, pool=pool, split=split)

    def verify(self) -> tuple[str, ...]:
        """Read everything once: every checksum, shapes, ids, labels, that values are finite, the parts.

        Returns:
            lines about what could not be checked, as in stores of earlier versions.

        Raises:
            StoreError: names what is damaged, missing, or there without being listed.
        """
        file = self._opened
        refuse_broken_seal(self.path, file)
        refuse_other_arrays(self.path, file, self.info)
        for part in self._parts:
            part.check(self.path)
            self._verify_part(part)
        if len(set(self.ids)) < len(self.ids):
            raise StoreError(f"{self.path}: ids occur twice; extract again with overwrite=True")
        most = len(self.label_names) - 1
        if self.labels.min(initial=0) < -1 or self.labels.max(initial=-1) > most:
            raise StoreError(
                f"{self.path}: expected labels from -1 to {most}, found others; "
                "extract again with overwrite=True"
            )
        listed = {key: f"layer {spec.name}" for key, spec in listed_arrays(self.info).items()}
        for key in arrays_of(file):
            bare = key.removeprefix(MIRROR)
            unlisted = bare.partition("/")[0] in ("layers", "bottom_up") and bare not in listed
            if unlisted or (key != bare and not self.info.mirror):
                raise StoreError(f"{self.path}: {key!r} is of no layer or feature that it lists")
            what = listed.get(bare, key)
            for rows in self._slices(key):
                values = self.read(key, what, rows)
                if values.dtype.kind == "f" and not key.startswith("factors/"):
                    self._refuse_not_finite(values, what, rows)
        said = []
        if SEAL not in file.attrs:
            said.append(
                "made by an earlier version: its ids, splits, labels' names, factors and attributes have no "
                "checksums"
            )
        if any(not part.rows_sha256 for part in self._parts):
            said.append("made by an earlier version: which rows its parts hold is not recorded")
        return tuple(said)

    def _refuse_not_finite(self, values: Array, what: str, rows: slice) -> None:
        row = not_finite(values)
        if row is not None:
            raise StoreError(
                f"{self.path}: expected finite values, found NaN or infinity in {what}, image "
                f"{self.ids[rows.start + row]!r}; extract again with overwrite=True"
            )

    def _verify_part(self, part: Part) -> None:
        """Refuse a part whose attributes are damaged; its arrays are read with those of the store."""
        try:
            with h5py.File(part.path, "r") as file:
                refuse_broken_seal(part.path, file)
        except StoreError:
            raise
        except Exception as error:  # a damaged file may make h5py raise anything
            raise self._damaged(part.name) from error

    def _slices(self, key: str) -> Iterator[slice]:
        data = self._opened[key]
        size = max(1, base.SLICE_BYTES // max(1, data.nbytes // max(1, len(data))))
        return (slice(start, start + size) for start in range(0, len(data), size))

    def array_shape(self, key: str) -> tuple[int, ...]:
        """Return the shape (N, ...) of an array by its path in the file."""
        return tuple(self._opened[key].shape)

    def read(self, key: str, what: str, rows: Any = slice(None)) -> Array:
        """Read rows of an array by its path: one, a slice of them, or ascending numbers.

        Raises:
            StoreError: a checksum fails; `what` is named.
        """
        try:
            if self._opened[key].is_virtual:
                return self._read_parts(key, rows)
            if key not in self._looked_into:
                refuse_absurd(self.path, self._opened[key], len(self))
                self._looked_into.add(key)
            return np.asarray(self._opened[key][rows])
        except (OSError, KeyError, RuntimeError) as error:
            raise self._damaged(what) from error

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"{self.path}: {what} is damaged (checksum or data unreadable); "
            "extract again with overwrite=True"
        )

    def _read_parts(self, key: str, rows: Any) -> Array:
        """Read ascending rows from the parts themselves: HDF5 would read zeros where one cannot be opened."""
        wanted = np.arange(len(self))[rows]
        found: Array | None = None
        first = done = 0
        for part in self._parts:
            here = np.atleast_1d(wanted)
            here = here[(first <= here) & (here < first + part.count)] - first
            if len(here):
                values = self._read_part(part, key, slice(here[0], here[-1] + 1))
                if found is None:
                    found = np.empty((np.size(wanted), *values.shape[1:]), values.dtype)
                found[done : done + len(here)] = values[here - here[0]]
            first, done = first + part.count, done + len(here)
        if found is None:
            return np.empty((0, *self._opened[key].shape[1:]), self._opened[key].dtype)
        return found if np.ndim(wanted) else np.asarray(found[0])

    def _read_part(self, part: Part, key: str, rows: slice) -> Array:
        """Read rows of an array of a part, which must lead to no other file, and be of the store's shape."""
        whole = self._opened[key]
        with h5py.File(part.path, "r") as file:
            if part.name not in self._looked_into:
                refuse_links(part.path, file, ())
                self._looked_into.add(part.name)
            data = file[key]
            if (
                data.shape[1:] != whole.shape[1:]
                or data.dtype != whole.dtype
                or len(data) < part.count
            ):
                raise StoreError(
                    f"{self.path}: its part {part.name} holds {key} of shape {data.shape}, expected "
                    f"{(part.count, *whole.shape[1:])}; rerun its vdvae-repr extract"
                )
            refuse_absurd(part.path, data, part.count)
            return np.asarray(data[rows])


class JoinedStore(Latents):
    """Two stores from the same weights as one: what is learned on the first is tested on the second.

    Layers are those that both have, by name. Of a first store that is split, `train` and `val` are read; of
    a second one `test`, or `val` where it has none: `notices` say how many images that leaves out. Ids are
    prefixed `train/` and `test/`. Labels of one name are one label. Closing it closes both.

    Raises:
        StoreError: other weights, options or layers; splits without one to train or to test on.
    """

    def __init__(self, train: Latents, test: Latents) -> None:
        for name in ("weights_sha256", "z", "draws", "pool", "mirror", "preprocessing"):
            first, second = getattr(train.info, name), getattr(test.info, name)
            if first != second:
                raise StoreError(
                    f"{test.path}: expected the {name} of {train.path}, {first}, found {second}; "
                    "extract both alike"
                )
        self.stores = train, test
        self.path = Path(f"{train.path} and {test.path}")
        self.reads_mirrored = train.reads_mirrored
        others = {spec.name: spec for spec in test.layers}
        for spec in train.layers:
            other = others.get(spec.name, spec)
            if replace(other, index=spec.index) != spec:
                raise StoreError(
                    f"{test.path}: expected layer {spec.name} of {spec.shape}, as in {train.path}, "
                    f"found {other.shape}; extract both alike"
                )
        self.info = replace(
            train.info,
            source=f"{train.info.source} -> {test.info.source}",
            source_sha256=None,  # that of the first says nothing of the second's images
            layers=tuple(spec for spec in train.layers if spec.name in others),
            features=tuple(name for name in train.features if name in test.features),
            skipped=train.info.skipped + test.info.skipped,
        )
        self.attrs = train.attrs | {"source": self.info.source}
        if not self.layers or not self.features:
            raise StoreError(f"{test.path}: has no layer or feature in common with {train.path}")
        # Layers are numbered as each encoder was told to read them.
        self._of_second = {
            prefix + array_key(spec, feature): prefix + array_key(others[spec.name], feature)
            for spec in self.layers
            for feature in self.features
            for prefix in ("", MIRROR)
        }
        learned, tried = _side(train, ("train", "val")), _side(test, ("test",), ("val",))
        self._rows = learned, tried
        left_out = (
            f"{store.path}: {counted(len(store) - len(rows), 'image')} not of split {what} left out"
            for store, rows, what in (
                (train, learned, "train or val"),
                (test, tried, test.splits[tried[0]]),
            )
            if len(rows) < len(store)
        )
        interchanged = (
            f"{store.path}: all images are of split {split}, and are {use}"
            for store, split, use in ((train, "test", "learned on"), (test, "train", "tested on"))
            if set(store.splits) == {split}
        )
        rounded = (
            f"{test.path}: its {what} is {other}, that of {train.path} is {own}: values differ by rounding"
            for what, own, other in (
                ("precision", train.info.precision, test.info.precision),
                ("dtype", train.info.dtype, test.info.dtype),
            )
            if own is not None and other is not None and own != other
        )
        self.notices = (*left_out, *interchanged, *rounded)
        self.label_names = tuple(dict.fromkeys(train.label_names + test.label_names))
        number = {name: index for index, name in enumerate(self.label_names)}
        self.labels = self._joined(
            [
                np.array(
                    [number[store.label_names[k]] if k >= 0 else -1 for k in store.labels], np.int64
                )
                for store in self.stores
            ]
        )
        self.ids = tuple(
            f"{side}/{store.ids[row]}"
            for side, store, rows in zip(("train", "test"), self.stores, self._rows, strict=True)
            for row in rows
        )
        # Of one split alone, all are to learn on.
        split = len(set(train.splits)) > 1
        self.splits = tuple(train.splits[row] if split else "train" for row in learned)
        self.splits += ("test",) * len(tried)

    def _joined(self, arrays: Sequence[Array]) -> Array:
        """Return the rows that are read of arrays of both, one after the other."""
        return np.concatenate([array[rows] for array, rows in zip(arrays, self._rows, strict=True)])

    def close(self) -> None:
        """Close both."""
        for store in self.stores:
            store.close()

    @property
    def tested_path(self) -> Path:
        """The file that is tested on."""
        return self.stores[1].tested_path

    def mirrored(self) -> JoinedStore:
        """Return the mirrored images of both."""
        return JoinedStore(*(store.mirrored() for store in self.stores))

    @property
    def factors(self) -> dict[str, Array]:
        """The factors that both sources know, (N,) each; text where either has text."""
        first, second = (store.factors for store in self.stores)
        both = {name: [first[name], second[name]] for name in first if name in second}
        return {name: self._joined(_of_one_kind(values)) for name, values in both.items()}

    @property
    def checksums(self) -> tuple[str, NDArray[np.uint64]] | None:
        """What each image was made of, (N,); None where it is not recorded in both, or not of one kind."""
        first, second = (store.checksums for store in self.stores)
        if first is None or second is None or first[0] != second[0]:
            return None
        return first[0], self._joined([first[1], second[1]])

    @property
    def kl(self) -> NDArray[np.float32]:
        """(N, layers traversed in both), nats an image."""
        both = [store.kl for store in self.stores]
        return self._joined([kl[:, : min(kl.shape[1] for kl in both)] for kl in both])

    @property
    def has_kl(self) -> bool:
        """Whether the KL of each layer is stored in both."""
        return all(store.has_kl for store in self.stores)

    @property
    def has_images(self) -> bool:
        """Whether both keep their images."""
        return all(store.has_images for store in self.stores)

    def images(self) -> NDArray[np.uint8]:
        """Return the images of both."""
        return self._joined([store.images() for store in self.stores])

    def digest(self, spec: LayerSpec, feature: str) -> str:
        """Return a hash of a layer's values in both, and of which images are read."""
        own = [store.digest(store[spec.name].spec, feature) for store in self.stores]
        rows = [hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() for rows in self._rows]
        return "+".join(own + rows)

    def verify(self) -> tuple[str, ...]:
        """Read everything in both once; return lines about what could not be checked."""
        return tuple(f"{store.path}: {line}" for store in self.stores for line in store.verify())

    def array_shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of an array of both, one after the other."""
        return len(self), *self.stores[0].array_shape(key)[1:]

    def read(self, key: str, what: str, rows: Any = slice(None)) -> Array:
        """Read rows of an array, by its path in the first, counted through both."""
        wanted = np.arange(len(self))[rows]
        places, first = np.atleast_1d(wanted), len(self._rows[0])
        learned, tried = self._rows
        sides = learned[places[places < first]], tried[places[places >= first] - first]
        keys = key, self._of_second.get(key, key)
        # Ranges, whose rows are chosen: HDF5 is slow at lists of rows.
        some = [
            store.read(own_key, what, slice(int(own[0]), int(own[-1]) + 1))[own - own[0]]
            for store, own_key, own in zip(self.stores, keys, sides, strict=True)
            if len(own)
        ]
        joined = np.concatenate(some or [self.stores[0].read(key, what, slice(0, 0))])
        return joined if np.ndim(wanted) else joined[0]


def _of_one_kind(arrays: list[Array]) -> list[Array]:
    """Return arrays (N,) as they are, or all as text where one is; whole numbers without a point."""
    texts = [array.dtype.kind in "OU" for array in arrays]
    if all(texts) or not any(texts):
        return arrays

    def text(value: Any) -> str:
        whole = not isinstance(value, bool) and value % 1 == 0
        return f"{value:.0f}" if whole else str(value)

    return [
        array if is_text else np.array([text(value) for value in array.tolist()], object)
        for array, is_text in zip(arrays, texts, strict=True)
    ]


def _side(store: Latents, *wanted: tuple[str, ...]) -> NDArray[np.intp]:
    """Return the rows of the first of some sets of splits that a store has; all where it is not split.

    Raises:
        StoreError: it is split, and has none of them.
    """
    found = sorted(set(store.splits))
    if len(found) == 1:
        return np.arange(len(store))
    for names in wanted:
        if names[0] in found:
            return np.flatnonzero([split in names for split in store.splits])
    raise StoreError(
        f"{store.path}: expected images of split {' or '.join(names[0] for names in wanted)}, "
        f"or of one split alone, found {', '.join(split or 'no split' for split in found)}; "
        "extract these images alone"
    )
