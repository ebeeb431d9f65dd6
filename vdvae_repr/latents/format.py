"""The file of a store: where arrays stand in it, what its attributes say, and how it is written safely."""

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
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vdvae_repr.data.hdf5 import leads_outside
from vdvae_repr.data.names import unfit_for_a_file
from vdvae_repr.errors import StoreError, counted, first_line
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.output import put_in_place

SCHEMA = "vdvae-repr/1"
CHUNK_BYTES = 2**20
MIRROR = "mirror/"
DEPTH = 3  # of groups: mirror/layers/LLL
PREDICTED = "predicted: "  # how the source of imported latents begins
IMAGE_BYTES = 2**8  # of an image's id, split, label, checksum and factors, about
SEAL = "metadata_sha256"  # of everything but the arrays that have checksums chunk by chunk
TRAILER = b"vdvae-repr/trailer"  # ends every file that is written: see `refuse_broken_trailer`
INFLATED = 1032  # how much a compressed chunk can hold at most, times its bytes: zlib
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreInfo:
    """What a store says of itself: the attributes of its root group.

    Values are None where the store does not record them, as stores of imported predictions do with what
    only an extraction has.
    """

    model: str
    """Name of the encoder."""
    config: str
    """JSON of the encoder's architecture."""
    weights_sha256: str
    source: str
    source_sha256: str | None = None
    """`Source.fingerprint`."""
    source_state: str | None = None
    """`Source.state` when the images were read."""
    preprocessing: str
    """JSON of what was done to the images before the encoder."""
    z: str
    """What each layer sent down: `mean` or `sample`."""
    draws: int | None = None
    """Draws of z stored for each image; None where z has no axis of draws."""
    seed: int
    mirror: bool = False
    """Whether the mirrored images were read too."""
    layers: tuple[LayerSpec, ...]
    features: tuple[str, ...]
    pool: str | None = None
    """How features were pooled before they were stored; None where they were not."""
    dtype: str | None = None
    precision: str | None = None
    images: bool | None = None
    """Whether an extraction kept the images."""
    layout: str | None = None
    batch_size: int | None = None
    part: int | None = None
    """Images a part."""
    parts: tuple[tuple[str, int, int, str], ...] = ()
    """Of layout `virtual`: name, bytes, images and `rows_sha256` of each part, empty in earlier stores."""
    skipped: tuple[dict[str, str], ...] = ()
    """`id` and `reason` of each image left out."""
    skipped_checksums: tuple[int, ...] = ()
    """`Source.checksum` of each image left out."""
    created: str | None = None
    versions: str | None = None

    @property
    def is_predicted(self) -> bool:
        """Whether the latents were imported, so that they are of images by their ids alone."""
        return self.source.startswith(PREDICTED)

    @property
    def reading_in_words(self) -> str:
        """How images became latents, apart from the weights, in words."""
        draws = "" if self.draws is None else f", {counted(self.draws, 'draw')}"
        pooled = "" if self.pool is None else f", pooled {self.pool}"
        return f"z {self.z}{draws}{pooled}, of {self.images_in_words}"

    @property
    def images_in_words(self) -> str:
        """What was done to the images before the encoder, in words."""
        steps = json.loads(self.preprocessing)
        if not isinstance(steps, dict):
            return self.preprocessing
        said = "the whole image"
        crop, size, resize = (steps.pop(key, None) for key in ("crop", "size", "resize"))
        align, _ = steps.pop("align", None), steps.pop("landmarks", None)
        if align is not None:
            said = f"the face, aligned ({align})"
        elif crop is not None:
            said = f"the central square of {crop} pixels"
        elif resize is not None and not str(resize).startswith("shorter side"):
            said = "the central square"
        if resize is not None:
            said += f"; resized: {resize}"
        if size is not None:
            said += f"; to {size} x {size} pixels"
        return "; ".join([said, *(f"{key} {value}" for key, value in steps.items())])

    @classmethod
    def read(cls, attrs: Mapping[str, Any]) -> StoreInfo:
        """Read the attributes of a file.

        Raises:
            KeyError, TypeError, ValueError: one is missing or damaged.
        """

        def text(name: str) -> str | None:
            return _typed(attrs[name], str, name) if name in attrs else None

        def number(name: str) -> int | None:
            return int(attrs[name]) if name in attrs else None

        layers = [_layer(row) for row in _list(attrs["layers"], dict, "layers")]
        features = _list(attrs["features"], str, "features")
        if not layers or not features:
            raise ValueError("it lists no layers or no features")
        for feature in features:
            if why := unfit_for_a_file(feature):
                raise ValueError(f"it has a feature {feature[:40]!r}, which cannot be: {why}")

        return cls(
            model=_typed(attrs["model"], str, "model"),
            config=_typed(attrs["config"], str, "config"),
            weights_sha256=_typed(attrs["weights_sha256"], str, "weights_sha256"),
            source=_typed(attrs["source"], str, "source"),
            source_sha256=text("source_sha256"),
            source_state=text("source_state"),
            preprocessing=_typed(attrs["preprocessing"], str, "preprocessing"),
            z=_typed(attrs["z"], str, "z"),
            draws=number("draws") or None,
            seed=int(attrs["seed"]),
            mirror=bool(attrs.get("mirror", False)),
            layers=tuple(layers),
            features=tuple(features),
            pool=text("pool") or None,
            dtype=text("dtype"),
            precision=text("precision"),
            images=bool(attrs["images"]) if "images" in attrs else None,
            layout=text("layout"),
            batch_size=number("batch_size"),
            part=number("part"),
            parts=tuple(_part(row) for row in _list(attrs.get("parts", "[]"), list, "parts")),
            skipped=tuple(
                {name: _typed(item[name], str, "skipped") for name in ("id", "reason")}
                for item in _list(attrs.get("skipped", "[]"), dict, "skipped")
            ),
            skipped_checksums=tuple(
                _list(attrs.get("skipped_checksums", "[]"), int, "skipped_checksums")
            ),
            created=text("created"),
            versions=text("versions"),
        )

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of a file, but for what is known only when it is written.

        Of an extraction they are what tells it from another, and their order and values are those of
        every store of this schema.
        """
        attrs = {
            "schema": SCHEMA,
            "model": self.model,
            "config": self.config,
            "weights_sha256": self.weights_sha256,
            "source": self.source,
            "source_sha256": self.source_sha256,
            "preprocessing": self.preprocessing,
            "z": self.z,
            "draws": self.draws or 0,
            "seed": self.seed,
            "mirror": self.mirror,
            "layers": json.dumps([spec.to_json() for spec in self.layers]),
            "features": json.dumps(list(self.features)),
            "pool": self.pool or "",
            "dtype": self.dtype,
            "precision": self.precision,
            "images": self.images,
            "layout": self.layout,
            "batch_size": self.batch_size,
            "part": self.part,
        }
        return {name: value for name, value in attrs.items() if value is not None}


def _typed(value: Any, kind: type[Any], what: str) -> Any:
    """Return a value of a type, of NumPy's kinds too."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{what}: expected {kind.__name__}, found {type(value).__name__}")
    return value


def _list(text: Any, kind: type[Any], what: str) -> list[Any]:
    """Return a JSON list whose items are of one type."""
    items = _typed(json.loads(_typed(text, str, what)), list, what)
    return [_typed(item, kind, what) for item in items]


def _layer(row: dict[str, Any]) -> LayerSpec:
    shape = tuple(_typed(side, int, "layers") for side in _typed(row["shape"], list, "layers"))
    numbers = (
        _typed(n, int, "layers") for n in (row["index"], row["resolution"], row.get("prefix", 0))
    )
    index, resolution, prefix = numbers
    if min(index, resolution, prefix, *shape) < 0 or not shape:
        raise ValueError(f"layers: expected a shape and numbers from 0, found {row}")
    class_token = _typed(row.get("class_token", True), bool, "layers")
    name = _typed(row["name"], str, "layers")
    return LayerSpec(index, name, resolution, shape, prefix, class_token)


def _part(row: list[Any]) -> tuple[str, int, int, str]:
    name, size, count, rows_sha256 = row if len(row) == 4 else (*row, "")
    for number in (size, count):
        if _typed(number, int, "parts") < 0:
            raise ValueError(f"parts: expected numbers from 0, found {number}")
    return _typed(name, str, "parts"), size, count, _typed(rows_sha256, str, "parts")


@dataclass(frozen=True)
class Part:
    """A file that a virtual store refers to, by its name relative to the store's folder."""

    folder: Path
    """The store's, where it was opened."""
    name: str
    size: int
    count: int
    rows_sha256: str
    """What it holds the rows of: see `parts.rows_sha256`; empty in a store of an earlier version."""

    @classmethod
    def of(cls, path: Path, info: StoreInfo) -> tuple[Part, ...]:
        """Return a store's parts in order; none of a single file."""
        folder = path.resolve().parent
        return tuple(cls(folder, *part) for part in info.parts)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.name

    def check(self, store: Path) -> None:
        """Refuse a part that is missing, cut short, elsewhere or of other rows; messages name the store."""
        if not self.path.resolve().is_relative_to(self.folder):
            raise StoreError(f"{store}: its part {self.name!r} lies outside its folder; refused")
        found = self.path.stat().st_size if self.path.is_file() else None
        if found != self.size:
            state = "is missing" if found is None else f"has {found} bytes, not {self.size}"
            raise StoreError(
                f"{store}: its part {self.name} {state}; put it back, or rerun its vdvae-repr extract"
            )
        if not self.rows_sha256:
            return
        refuse_broken_trailer(self.path)
        try:
            with h5py.File(self.path, "r") as file:
                rows = file.attrs.get("rows_sha256")
        except (OSError, RuntimeError) as error:
            raise StoreError(
                f"{store}: its part {self.name} is damaged ({first_line(error)}); "
                "rerun its vdvae-repr extract"
            ) from error
        if rows != self.rows_sha256:
            raise StoreError(
                f"{store}: its part {self.name} holds other rows than it did, as after a mix-up of files; "
                "put the right one back, or rerun its vdvae-repr extract"
            )


def parts_folder(path: Path) -> Path:
    """Return where a store's parts lie: while it is written, and for good with the layout `virtual`."""
    return Path(f"{path}.parts")


def linked_to(path: str | Path) -> Path:
    """Return the file that a link names, which is what is read and replaced; else the path as it is."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)  # noqa: PTH114


def array_key(spec: LayerSpec, feature: str) -> str:
    """Return where a layer's feature stands in a store; `bottom_up` is one array a resolution."""
    if feature == "bottom_up":
        return f"bottom_up/{spec.resolution:03d}"
    return f"layers/{spec.index:03d}/{feature}"


def arrays_of(file: h5py.File) -> list[str]:
    """Return the paths of all data sets of a file."""
    keys: list[str] = []
    file.visit(keys.append)
    return [key for key in keys if isinstance(file[key], h5py.Dataset)]


def refuse_links(path: Path, group: h5py.Group, parts: Iterable[str]) -> None:
    """Refuse what would make HDF5 read other files than this one and its parts, or read in a circle."""
    if why := leads_outside(group.file, set(parts), depth=DEPTH + 1):
        raise StoreError(f"{path}: {why}, which is none of its parts; refused")


def refuse_broken_trailer(path: Path) -> None:
    """Refuse a file whose bytes, but for those of chunks, are not what its trailer says; one without passes.

    It comes before HDF5 opens a file: what is damaged in its heaps can end the process or stop it for good.
    Who changes a file through HDF5 removes the trailer.
    """
    with path.open("rb") as file:
        head = file.read(36)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(TRAILER) - 40))
        end = file.read()
        if not end.endswith(TRAILER) or len(end) < len(TRAILER) + 40:
            ours = head.startswith(HDF5_SIGNATURE) and head[8:9] in (b"\2", b"\3")
            if ours and _end_of_hdf5(head) < size:  # a trailer had begun there
                raise StoreError(f"{path}: not a readable latent store (its end is missing)")
            return
        count = int.from_bytes(end[:8], "little")
        start = size - len(end) - 16 * count
        if start >= 0:
            file.seek(start)
            ranges = np.frombuffer(file.read(16 * count), "<u8").reshape(-1, 2)
            edges = [0, *ranges.ravel().tolist(), start]
            ascending = all(first <= last for first, last in pairwise(edges))
            if ascending and end[8:40] == _ranges_sha256(file, ranges):
                return
    raise StoreError(
        f"{path}: is damaged; extract again, with overwrite=True if it is a single file, or put back a copy"
    )


def _write_trailer(file: IO[bytes], end: int, chunks: NDArray[np.uint64]) -> None:
    """Append a checksum of all bytes up to `end` but those of chunks, (n, 2): where each begins and ends."""
    chunks = chunks[np.argsort(chunks[:, 0])]
    edges = np.concatenate([[0], chunks.ravel(), [end]]).astype("<u8").reshape(-1, 2)
    ranges = edges[edges[:, 0] < edges[:, 1]]
    digest = _ranges_sha256(file, ranges)
    file.seek(end)
    file.write(ranges.tobytes() + len(ranges).to_bytes(8, "little") + digest + TRAILER)


def _ranges_sha256(file: IO[bytes], ranges: NDArray[np.uint64]) -> bytes:
    digest = hashlib.sha256(ranges.tobytes())
    for first, last in ranges.tolist():
        file.seek(first)
        while first < last and (block := file.read(min(last - first, CHUNK_BYTES))):
            digest.update(block)
            first += len(block)
    return digest.digest()


def _chunks(file: h5py.File) -> NDArray[np.uint64]:
    """Return where each chunk of a file begins and ends, (n, 2), once it is flushed."""
    places: list[tuple[int, int]] = []

    def add(chunk: Any) -> None:
        places.append((chunk.byte_offset, chunk.byte_offset + chunk.size))

    for key in arrays_of(file):
        if file[key].chunks is not None:
            file[key].id.chunk_iter(add)
    return np.array(places, np.uint64).reshape(-1, 2)


def refuse_absurd(path: Path, data: h5py.Dataset, rows: int) -> None:
    """Refuse an array whose rows are not in the file: HDF5 makes them up, and takes the memory for them."""
    compressed = data.id.get_create_plist().get_nfilters() > int(data.fletcher32)
    held = data.id.get_storage_size() * (INFLATED if compressed else 1)
    if held < rows * math.prod(data.shape[1:]) * data.id.get_type().get_size():
        raise StoreError(
            f"{path}: {data.name.lstrip('/')}: {data.shape} values are not in the file; "
            "extract again with overwrite=True"
        )


def listed_arrays(info: StoreInfo) -> dict[str, LayerSpec]:
    """Return the layer of each array that a store lists, by its path; layers may share `bottom_up`."""
    pairs = [(spec, feature) for spec in reversed(info.layers) for feature in info.features]
    return {array_key(spec, feature): spec for spec, feature in pairs}


def label_names(file: h5py.File) -> tuple[str, ...]:
    """Return the names of a store's labels.

    Raises:
        KeyError, TypeError, ValueError: they are missing or damaged.
    """
    return tuple(_list(file["labels"].attrs["names"], str, "names of labels"))


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether values are numbers or texts, none of which is a list or a reference."""
    return dtype.kind != "O" or h5py.check_string_dtype(dtype) is not None


def refuse_other_arrays(path: Path, file: h5py.File, info: StoreInfo) -> None:
    """Refuse a store whose arrays are not those that it lists, of their shapes and types.

    Of an array that is read when the store is opened, the values must be in the file. Call it after
    `refuse_links`.
    """

    def check(key: str, kinds: str, ndim: int | None = None) -> h5py.Dataset:
        data = file.get(key)
        if not isinstance(data, h5py.Dataset):
            found = "nothing" if data is None else "a group"
        elif data.shape is None or data.dtype.kind not in kinds or not _is_plain(data.dtype):
            found = f"{data.dtype} {data.shape}"
        elif not data.ndim or len(data) != length or ndim not in (None, data.ndim):
            found = f"shape {data.shape}"
        else:
            if ndim == 1:
                refuse_absurd(path, data, length)
            return data
        raise StoreError(
            f"{path}: {key}: expected an array of {length} images, found {found}; "
            "extract again with overwrite=True"
        )

    ids = file.get("ids")
    length = len(ids) if isinstance(ids, h5py.Dataset) and ids.shape else 0
    if not length:
        raise StoreError(
            f"{path}: expected ids of images, found none; extract again with overwrite=True"
        )
    if info.parts and length != (whole := sum(part[2] for part in info.parts)):
        raise StoreError(f"{path}: expected {whole} ids, as its parts have rows, found {length}")
    for key in ("ids", "splits"):
        check(key, "O", 1)
    check("labels", "i", 1)
    for key in file.get("factors", ()):
        if why := unfit_for_a_file(key):
            raise StoreError(
                f"{path}: its factor {key[:40]!r} cannot be called so, as {why}; rename it in the source, "
                "and extract again with overwrite=True"
            )
        check(f"factors/{key}", "biufOS", 1)
    for key, kinds, ndim in (("checksums", "u", 1), ("images", "u", 4)):
        if key in file:
            check(key, kinds, ndim)
    for mirror in ("", MIRROR) if info.mirror else ("",):
        for key, spec in listed_arrays(info).items():
            shape = check(mirror + key, "f").shape
            # Features of the network's width have the layer's grid, but not its channels.
            same = -len(spec.shape) + key.endswith(("/top_down", f"/{spec.resolution:03d}"))
            draws = (info.draws,) if info.draws and key.endswith("/z") else ()
            fits = (
                len(shape) == 1 + len(draws) + len(spec.shape)
                and shape[1 : 1 + len(draws)] == draws
            )
            if not fits or (same and shape[same:] != spec.shape[same:]):
                raise StoreError(
                    f"{path}: {mirror + key}: expected values of layer {spec.name}, {spec.shape} an image, "
                    f"found shape {shape}; extract again with overwrite=True"
                )
        if mirror + "kl" in file:
            check(mirror + "kl", "f", 2)


def seal(file: h5py.File) -> None:
    """Write the checksum of a file's metadata into it; nothing may be written after."""
    file.attrs[SEAL] = metadata_sha256(file)


def refuse_broken_seal(path: Path, file: h5py.File) -> None:
    """Refuse a file whose ids, labels, names, numbers or attributes are not those that were written.

    Files of earlier versions have no such checksum, and pass.
    """
    if SEAL in file.attrs and file.attrs[SEAL] != metadata_sha256(file):
        raise StoreError(
            f"{path}: its ids, labels, factors or attributes are damaged ({SEAL} differs); "
            "extract again with overwrite=True"
        )


def metadata_sha256(file: h5py.File) -> str:
    """Return a SHA-256 over all attributes, names, shapes and types, and over the values of small arrays.

    Not among them are the values of arrays whose chunks have checksums of their own, and of virtual ones.
    """
    digest = hashlib.sha256()

    def add(what: str, value: Any) -> None:
        array = np.asarray(value)
        if array.dtype.kind in "OUS":
            texts = [
                t.decode("utf-8", "surrogateescape") if isinstance(t, bytes) else str(t)
                for t in array.flat
            ]
            content = json.dumps(texts).encode()
        else:
            content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        kind = "text" if array.dtype.kind in "OUS" else array.dtype.str
        digest.update(f"{what} {kind} {array.shape} {len(content)}\n".encode())
        digest.update(content)

    items: dict[str, Any] = {"": file}

    def visit(key: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            items[key] = item

    file.visititems(visit)
    for key, item in sorted(items.items()):
        for name in sorted(item.attrs):
            if (key, name) != ("", SEAL):
                add(f"{key}@{name}", item.attrs[name])
        if key:
            digest.update(f"{key} {item.dtype} {item.shape} {item.chunks}\n".encode())
            if not item.fletcher32 and not item.is_virtual:
                add(key, item[()])
    return digest.hexdigest()


def is_store(path: Path) -> bool:
    """Whether a file is a store of this schema, damaged or not; False of what cannot be opened."""
    try:
        refuse_broken_trailer(path)
    except StoreError:
        return True  # what ends with a trailer is ours
    except OSError:
        return False
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("schema") == SCHEMA)
    except (OSError, RuntimeError, ValueError):
        return False


def refuse_target(out: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse to write a store where something else lies than a store, or what it is made from.

    Args:
        out: where the store is to be.
        inputs: files that it is made from, which it must not replace, by any of their names.

    Raises:
        StoreError: `out` is a folder, an input, or no store.
    """
    if out.is_dir():
        raise StoreError(
            f"{out}: expected the name of a file, found a folder; give one in it, as "
            f'out="{out / "latents.h5"}"'
        )
    if not out.exists():
        return
    for path in inputs:
        if path.exists() and out.samefile(path):
            raise StoreError(
                f"{out}: is what the store is made from, and is never replaced; choose another path"
            )
    if not is_store(out):
        raise StoreError(
            f"{out}: exists and is no latent store that can be read; only stores are replaced, so choose "
            "another path, or move it away"
        )


def rehearse(
    name: str,
    info: StoreInfo,
    *,
    ids: Sequence[str],
    splits: Sequence[str],
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    factors: Mapping[str, Array],
) -> int:
    """Write what `describe_images` would write, to memory, so that nothing is computed in vain.

    Returns:
        its bytes.

    Raises:
        StoreError: a text, name, or type that HDF5 cannot hold.
    """
    checksums = "files", np.zeros(len(ids), np.uint64)
    with h5py.File(
        "rehearsal", "w", driver="core", backing_store=False, libver=("v110", "latest")
    ) as file:
        try:
            describe_images(
                file, info, ids=ids, splits=splits, labels=labels, label_names=label_names,
                factors=factors, checksums=checksums,
            )  # fmt: skip
        except (OSError, KeyError, RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise StoreError(
                f"{name}: expected ids, splits, labels and factors that HDF5 can hold ({first_line(error)})"
            ) from error
        file.flush()
        return int(file.id.get_filesize())


def describe_images(
    file: h5py.File,
    info: StoreInfo,
    *,
    ids: Sequence[str],
    splits: Sequence[str],
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    factors: Mapping[str, Array],
    checksums: tuple[str, NDArray[np.uint64]] | None = None,
) -> None:
    """Write what a store says of its images, (N,) each, and of itself; the last thing that is written.

    `checksums` are what `Source.checksum` says, behind what it says it of.
    """
    text = h5py.string_dtype()
    file.create_dataset("ids", data=list(ids), dtype=text)
    file.create_dataset("splits", data=list(splits), dtype=text)
    create_array(file, "labels", labels.shape, np.int64)[:] = labels
    file["labels"].attrs["names"] = json.dumps(list(label_names))
    for name, values in factors.items():
        kind = {"dtype": text} if values.dtype.kind in "UO" else {}
        file.create_dataset(f"factors/{name}", data=values.tolist() if kind else values, **kind)
    if checksums is not None:
        create_array(file, "checksums", labels.shape, np.uint64)[:] = checksums[1]
        file["checksums"].attrs["of"] = checksums[0]
    file.attrs.update(info.attributes())
    if info.parts:
        file.attrs["parts"] = json.dumps(info.parts)
    if info.source_state is not None:
        file.attrs["source_state"] = info.source_state
    file.attrs["skipped"] = json.dumps(info.skipped)
    if info.skipped_checksums:
        file.attrs["skipped_checksums"] = json.dumps(info.skipped_checksums)
    file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    file.attrs["versions"] = _versions()
    seal(file)


@cache  # looking for a distribution takes 20 ms
def _versions() -> str:
    """Return the versions of the libraries that a store depends on, as JSON."""
    return json.dumps(
        {name: importlib.metadata.version(name) for name in ("torch", "numpy", "h5py")}
    )


def not_finite(values: Array) -> int | None:
    """Return the first row that holds NaN or infinity; None where all is finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum(dtype=np.float32)):  # a single pass without a temporary array
            return None
    rows = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return None if rows.all() else int(np.argmin(rows))


def write_aside(
    path: Path,
    write: Callable[[h5py.File], None],
    size: int = 0,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write a file beside its place, flush it to the disk, then rename it: whole or absent.

    Args:
        path: its place.
        write: fills the file.
        size: bytes that are set aside for it, because a disk that fills up under HDF5 ends the process.
        check: refuses by a StoreError what was written, before it takes the place of a file that is there.

    Raises:
        OSError: the disk did not take it. StoreError: another process is writing the same file, or `check`
            refuses it.
    """
    aside = path.with_name(path.name + ".writing")
    if aside.is_dir() or not _is_unfinished(aside):
        raise StoreError(
            f"{aside}: is in the way, and is none of ours; move it away, or choose another path"
        )
    try:
        _set_aside(aside, 0)  # fails where nothing is open yet
        with _h5py_errors():
            file = h5py.File(aside, "w", libver=("v110", "latest"))
            try:
                _set_aside(aside, size)
                write(file)
                file.flush()
                chunks = _chunks(file)
            finally:
                file.close()
        with aside.open("r+b") as handle:
            end = _end_of_hdf5(handle.read(36))
            handle.truncate(end)
            _write_trailer(handle, end, chunks)
        if check is not None:
            check(aside)
        put_in_place(aside, path)
    except BlockingIOError as error:  # HDF5 locks what it writes
        raise StoreError(
            f"{path}: another process is writing it, as one that torchrun left behind; wait for it or end it"
        ) from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _is_unfinished(path: Path) -> bool:
    """Whether a file that is being written may be begun anew: there is none, or a kill left it."""
    if not path.exists():
        return True
    with path.open("rb") as handle:
        head = handle.read(len(HDF5_SIGNATURE))
    return head in (HDF5_SIGNATURE, bytes(len(head)))


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
