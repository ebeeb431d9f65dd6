"""The file of a store: where arrays stand in it, what its attributes say, and how it is written safely."""

from __future__ import annotations

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
from numpy.typing import NDArray

from vdvae_repr.data.hdf5 import leads_outside
from vdvae_repr.errors import StoreError
from vdvae_repr.model.layers import LayerSpec

SCHEMA = "vdvae-repr/1"
CHUNK_BYTES = 2**20
MIRROR = "mirror/"
DEPTH = 3  # of groups: mirror/layers/LLL
IMAGE_BYTES = 2**8  # of an image's id, split, label and factors, about
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
    parts: tuple[tuple[str, int, int], ...] = ()
    """Of layout `virtual`: name, bytes and images of each part."""
    skipped: tuple[dict[str, str], ...] = ()
    """`id` and `reason` of each image left out."""
    created: str | None = None
    versions: str | None = None

    @classmethod
    def read(cls, attrs: Mapping[str, Any]) -> StoreInfo:
        """Read the attributes of a file.

        Raises:
            KeyError, TypeError, ValueError: one is missing or damaged.
        """

        def text(name: str) -> str | None:
            return str(attrs[name]) if name in attrs else None

        def number(name: str) -> int | None:
            return int(attrs[name]) if name in attrs else None

        return cls(
            model=str(attrs["model"]),
            config=str(attrs["config"]),
            weights_sha256=str(attrs["weights_sha256"]),
            source=str(attrs["source"]),
            source_sha256=text("source_sha256"),
            preprocessing=str(attrs["preprocessing"]),
            z=str(attrs["z"]),
            draws=number("draws") or None,
            seed=int(attrs["seed"]),
            mirror=bool(attrs.get("mirror", False)),
            layers=tuple(
                LayerSpec(
                    row["index"],
                    row["name"],
                    row["resolution"],
                    tuple(row["shape"]),
                    row.get("prefix", 0),
                )
                for row in json.loads(attrs["layers"])
            ),
            features=tuple(json.loads(attrs["features"])),
            pool=text("pool") or None,
            dtype=text("dtype"),
            precision=text("precision"),
            images=bool(attrs["images"]) if "images" in attrs else None,
            layout=text("layout"),
            batch_size=number("batch_size"),
            part=number("part"),
            parts=tuple((name, size, count) for name, size, count in _json(attrs, "parts")),
            skipped=tuple(_json(attrs, "skipped")),
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


def _json(attrs: Mapping[str, Any], name: str) -> list[Any]:
    return list(json.loads(attrs.get(name, "[]")))


@dataclass(frozen=True)
class Part:
    """A file that a virtual store refers to, by its name relative to the store's folder."""

    path: Path
    name: str
    size: int
    count: int

    @classmethod
    def of(cls, path: Path, info: StoreInfo) -> tuple[Part, ...]:
        """Return a store's parts in order; none of a single file."""
        folder = path.resolve().parent
        return tuple(cls(folder / name, name, size, count) for name, size, count in info.parts)

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


def parts_folder(path: Path) -> Path:
    """Return where a store's parts lie: while it is written, and for good with the layout `virtual`."""
    return Path(f"{path}.parts")


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


def is_store(path: Path) -> bool:
    """Whether a file is a store of this schema, as its attribute says; False of what cannot be opened."""
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
            f"--out {out / 'latents.h5'}"
        )
    if not out.exists():
        return
    for path in inputs:
        if path.exists() and out.samefile(path):
            raise StoreError(
                f"{out}: is what the store is made from, and is never replaced; choose another --out"
            )
    if not is_store(out):
        raise StoreError(
            f"{out}: exists and is no latent store that can be read; only stores are replaced, so choose "
            "another --out, or move it away"
        )


def describable(
    name: str,
    *,
    ids: Sequence[str],
    splits: Sequence[str],
    label_names: Sequence[str],
    factors: Mapping[str, Array],
) -> None:
    """Refuse what `describe_images` could not write, before anything is computed.

    Raises:
        StoreError: a text with a NUL or that is not Unicode; a factor whose name HDF5 cannot hold, or whose
            values are neither numbers nor texts, one an image.
    """
    columns: dict[str, Sequence[Any]] = {
        "ids": ids, "splits": splits, "names of labels": label_names, "names of factors": list(factors)
    }  # fmt: skip
    for factor, values in factors.items():
        if factor in ("", ".", "..") or "/" in factor:
            raise StoreError(
                f"{name}: a store cannot keep a factor called {factor!r}; rename that column"
            )
        if values.shape != (len(ids),) or values.dtype.kind not in "biufUO":
            raise StoreError(
                f"{name}: factor {factor!r}: expected {len(ids)} numbers or texts, "
                f"found {values.dtype} {values.shape}"
            )
        if values.dtype.kind in "UO":
            columns[f"values of factor {factor!r}"] = values.tolist()
    for what, texts in columns.items():
        for text in texts:
            if not isinstance(text, str) or "\0" in text or not _is_unicode(text):
                raise StoreError(
                    f"{name}: {what}: expected texts of Unicode without NUL, found {text!r}; rename it"
                )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe_images(
    file: h5py.File,
    info: StoreInfo,
    *,
    ids: Sequence[str],
    splits: Sequence[str],
    labels: NDArray[np.int64],
    label_names: Sequence[str],
    factors: Mapping[str, Array],
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
    file.attrs.update(info.attributes())
    if info.parts:
        file.attrs["parts"] = json.dumps(info.parts)
    file.attrs["skipped"] = json.dumps(info.skipped)
    file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "h5py")}
    file.attrs["versions"] = json.dumps(versions)


def not_finite(values: Array) -> int | None:
    """Return the first row that holds NaN or infinity; None where all is finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum(dtype=np.float32)):  # a single pass without a temporary array
            return None
    rows = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return None if rows.all() else int(np.argmin(rows))


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
    if aside.is_dir() or not _is_unfinished(aside):
        raise StoreError(
            f"{aside}: is in the way, and is none of ours; move it away, or choose another --out"
        )
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
