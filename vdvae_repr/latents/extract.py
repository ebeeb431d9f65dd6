"""Model and source to a latent store: in parts, each renamed into place, resumed by running again."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from vdvae_repr.data.sources import Preprocessing, Source, open_source, read_images
from vdvae_repr.errors import DataError, LayerError, StoreError
from vdvae_repr.latents.store import (
    SCHEMA,
    LatentStore,
    array_key,
    create_array,
    describe_images,
    pool_grid,
    write_aside,
)
from vdvae_repr.model.checkpoint import weights_sha256
from vdvae_repr.model.layers import LayerSpec, select_layers
from vdvae_repr.model.vdvae import VDVAE, feature_of

FEATURES = (
    "mean",
    "log_std",
    "z",
    "delta",
    "prior_mean",
    "prior_log_std",
    "kl",
    "top_down",
    "bottom_up",
)
PART = 512  # images a part at most, and
PART_BYTES = 2**28

Arrays = dict[str, NDArray[Any]]


def extract(
    model: VDVAE,
    data: str | Path | NDArray[np.uint8] | Source,
    out: str | Path,
    *,
    layers: str | int | Sequence[str | int] = "all",
    features: Sequence[str] = ("mean",),
    z: Literal["mean", "sample"] = "mean",
    seed: int = 0,
    crop: int | None = None,
    pool: str | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = 32,
    images: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[int], object] = lambda count: None,
) -> LatentStore:
    """Write a store of chosen layers' features; rerun the same call to resume an interrupted one.

    Under torchrun every process calls this, and the parts are divided among them.

    Args:
        model: in eval mode.
        data: whatever `open_source` takes.
        out: the store's path; parts lie in `OUT.parts/` until all are there.
        layers: selector.
        features: of `FEATURES`; `z` needs `z="sample"`.
        z: what each layer sends down: its mean, or a draw seeded by (seed, image id, layer).
        seed: of the draws.
        crop: side of the central square taken before resizing, pixels.
        pool: None keeps the grid, "avg" its mean, "avg:4" a 4x4 grid.
        dtype: of the features on the disk.
        batch_size: images a forward pass; batches are cut at fixed indices.
        images: keep the preprocessed images, which the controls need.
        on_error: of an image that cannot be read: "raise", or "skip" it and list it in the store.
        overwrite: replace a finished store; without it, one of the same extraction is returned as it is.
        report: receives a line about what will be written.
        progress: receives the number of images done since the last call.

    Raises:
        DataError, LayerError: bad source or selector. StoreError: the output exists, is being written by
            another process, belongs to another extraction, does not fit on the disk, or cannot be written; a
            value that float16 cannot hold.
    """
    out = Path(out)
    source = open_source(data)
    chosen = select_layers(model.layers, layers)
    _check_features(features, z)
    run = _Run(
        model=model, source=source, preprocessing=Preprocessing(size=model.config.image_size, crop=crop),
        chosen=chosen, features=tuple(features), z=z, seed=seed, pool=pool, dtype=np.dtype(dtype),
        batch_size=batch_size, images=images, on_error=on_error,
    )  # fmt: skip
    identity = run.identity()
    rank, processes = _processes()
    parts = out.with_name(out.name + ".parts")
    if not overwrite and not parts.exists() and (store := _finished(out, identity)):
        report(f"{out}: already complete")
        return store
    if rank == 0:
        report(_size_preview(run, out, parts))
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with _locked(parts / "lock", taken=rank == 0):
            # Again, now that nobody else writes: another process may have finished, or have been killed
            # while it removed its parts.
            if not overwrite and (store := _finished(out, identity)):
                if rank == 0:
                    shutil.rmtree(parts)
                report(f"{out}: already complete")
                return store
            if rank == 0:
                _claim(parts / "extraction.json", identity | {"part": run.part})
            _wait_for_all(processes)
            files = []
            for index, start in enumerate(range(0, len(source), run.part)):
                stop = min(start + run.part, len(source))
                path = parts / f"part-{index:05d}.h5"
                files.append(path)
                if index % processes != rank:
                    continue
                if _whole(path):
                    progress(stop - start)
                else:
                    write = partial(run.write, start=start, stop=stop, progress=progress)
                    write_aside(path, write, (stop - start) * run.row_bytes)
            _wait_for_all(processes)
            if rank == 0:
                size = sum(path.stat().st_size for path in files)
                write_aside(out, lambda file: _assemble(file, files, identity, source), size)
                shutil.rmtree(parts)
            _wait_for_all(processes)
    except OSError as error:
        kept = f"; what is finished stays in {parts.name}" if parts.exists() else ""
        raise StoreError(
            f"{out}: cannot be written ({error.strerror or error}){kept}; "
            "make room or choose another --out, then rerun the same command to resume"
        ) from error
    return LatentStore.open(out)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What one extraction computes of each image."""

    model: VDVAE
    source: Source
    preprocessing: Preprocessing
    chosen: tuple[LayerSpec, ...]
    features: tuple[str, ...]
    z: Literal["mean", "sample"]
    seed: int
    pool: str | None
    dtype: np.dtype[Any]
    batch_size: int
    images: bool
    on_error: str

    def identity(self) -> dict[str, Any]:
        """Return the store's attributes, by which an extraction is told from another."""
        layers = [
            spec.to_json() | {"shape": list(self.shape(spec, "mean"))} for spec in self.chosen
        ]
        return {
            "schema": SCHEMA,
            "model": self.model.name,
            "config": self.model.config.to_json(),
            "weights_sha256": weights_sha256(self.model),
            "source": self.source.name,
            "source_sha256": self.source.fingerprint(),
            "preprocessing": json.dumps(self.preprocessing.to_json(), sort_keys=True),
            "z": self.z,
            "seed": self.seed,
            "layers": json.dumps(layers),
            "features": json.dumps(list(self.features)),
            "pool": self.pool or "",
            "dtype": self.dtype.name,
            "images": self.images,
            "batch_size": self.batch_size,
        }

    def shape(self, spec: LayerSpec, feature: str) -> tuple[int, ...]:
        """Return what is stored of a layer's feature and image, (C, R, R)."""
        channels, *grid = spec.shape
        if feature in ("top_down", "bottom_up"):
            channels = self.model.top_down.widths[spec.resolution]
        return pool_grid(np.zeros((1, channels, *grid), np.float32), self.pool).shape[1:]

    @property
    def dims(self) -> int:
        """Numbers stored of an image."""
        shapes = {
            array_key(spec, feature): self.shape(spec, feature)
            for spec in self.chosen
            for feature in self.features
        }
        return sum(map(math.prod, shapes.values()))

    @property
    def row_bytes(self) -> int:
        """What an image takes on the disk."""
        pixels = 3 * self.model.config.image_size**2 if self.images else 0
        return self.dims * self.dtype.itemsize + pixels

    @property
    def part(self) -> int:
        """Images a part: whole batches, few enough that little is lost and memory stays small."""
        batches = min(PART, PART_BYTES // max(self.row_bytes, 1)) // self.batch_size
        return max(1, batches) * self.batch_size

    def read(self, first: int, last: int) -> tuple[list[int], list[Any], list[dict[str, str]]]:
        """Return indices and pixels of what can be read, and what cannot, with the reason."""
        kept, pixels, skipped = [], [], []
        for index in range(first, last):
            try:
                pixels.append(read_images(self.source, self.preprocessing, [index])[0])
                kept.append(index)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                skipped.append({"id": self.source.ids[index], "reason": str(error)})
        return kept, pixels, skipped

    def arrays(self, indices: Sequence[int], pixels: NDArray[np.uint8]) -> Arrays:
        """Infer one batch; arrays by their path in the store."""
        selector, ids = [spec.index for spec in self.chosen], [self.source.ids[i] for i in indices]
        read = self.model.posterior(
            pixels, selector, self.z, seed=self.seed, ids=ids, top_down="top_down" in self.features
        )
        arrays: Arrays = {"index": np.array(indices), "kl": read.kl.cpu().numpy()}
        if self.images:
            arrays["images"] = pixels
        for spec in self.chosen:
            for feature in self.features:
                key = array_key(spec, feature)
                if key in arrays:
                    continue
                value = feature_of(read, spec, feature)
                pooled = pool_grid(value.float().cpu().numpy(), self.pool)
                with np.errstate(over="ignore"):
                    stored = pooled.astype(self.dtype, copy=False)
                if self.dtype == np.float16 and not np.isfinite(stored).all():
                    raise StoreError(
                        f"layer {spec.name}, {feature}: expected values that float16 holds (below 65,504), "
                        f"found {np.abs(pooled).max():g}; extract with --dtype float32"
                    )
                arrays[key] = stored
        return arrays

    def write(
        self, file: h5py.File, start: int, stop: int, progress: Callable[[int], object]
    ) -> None:
        """Write one part; reading, inferring and writing overlap."""
        bounds = [(a, min(a + self.batch_size, stop)) for a in range(start, stop, self.batch_size)]
        position, skipped = 0, []
        written: Future[None] | None = None
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            coming = reader.submit(self.read, *bounds[0])
            for number, (first, last) in enumerate(bounds):
                kept, pixels, lost = coming.result()
                if number + 1 < len(bounds):
                    coming = reader.submit(self.read, *bounds[number + 1])
                skipped += lost
                if kept:
                    arrays = self.arrays(kept, np.stack(pixels))
                    if written is not None:
                        written.result()
                    written = writer.submit(_put, file, arrays, position, stop - start)
                    position += len(kept)
                progress(last - first)
            if written is not None:
                written.result()
        file.attrs["count"] = position
        file.attrs["skipped"] = json.dumps(skipped)


def _put(file: h5py.File, arrays: Arrays, position: int, length: int) -> None:
    """Write a batch's arrays at a row of data sets of some length, made when they are first needed."""
    for key, value in arrays.items():
        if key not in file:
            create_array(file, key, (length, *value.shape[1:]), value.dtype)
        file[key][position : position + len(value)] = value


def _assemble(
    file: h5py.File, parts: Sequence[Path], identity: dict[str, Any], source: Source
) -> None:
    """Join parts into a store."""
    opened = [h5py.File(path, "r") for path in parts]
    try:
        kept = [part["index"][: part.attrs["count"]] for part in opened if part.attrs["count"]]
        skipped = [item for part in opened for item in json.loads(part.attrs["skipped"])]
        if not kept:
            raise DataError(
                f"{source.name}: none of {len(source)} images can be read: {skipped[0]['reason']}"
            )
        rows, position = np.concatenate(kept), 0
        for part in opened:
            count = int(part.attrs["count"])
            for key in _arrays_of(part) if count else ():
                if key != "index":
                    if key not in file:
                        create_array(file, key, (len(rows), *part[key].shape[1:]), part[key].dtype)
                    file[key][position : position + count] = part[key][:count]
            position += count
    finally:
        for part in opened:
            part.close()
    describe_images(
        file, ids=[source.ids[i] for i in rows], splits=[source.splits[i] for i in rows],
        labels=source.labels[rows], label_names=source.label_names,
        factors={name: values[rows] for name, values in source.factors.items()},
        attrs=identity, skipped=skipped,
    )  # fmt: skip


def _arrays_of(file: h5py.File) -> list[str]:
    keys: list[str] = []
    file.visit(keys.append)
    return [key for key in keys if isinstance(file[key], h5py.Dataset)]


def _whole(path: Path) -> bool:
    """Whether a part is there with every checksum right; one that is damaged will be made again."""
    if not path.exists():
        return False
    try:
        with h5py.File(path, "r") as part:
            for key in _arrays_of(part):
                part[key][:]
            return "count" in part.attrs
    except (OSError, RuntimeError, KeyError):
        return False


@contextmanager
def _locked(path: Path, *, taken: bool) -> Iterator[None]:
    """Hold a lock that dies with its process.

    Raises:
        StoreError: another process holds it.
    """
    if not taken:
        yield
        return
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{path.parent}: another process is writing this store; wait for it, or choose another --out"
            ) from None
        yield


def _processes() -> tuple[int, int]:
    """Return rank and number of processes under torchrun, which are joined here; else 0 and 1."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=7))  # parts differ in what they cost
    return dist.get_rank(), dist.get_world_size()


def _wait_for_all(processes: int) -> None:
    if processes > 1:
        dist.barrier()


def _finished(out: Path, identity: Mapping[str, Any]) -> LatentStore | None:
    """Return the store if it is there.

    Raises:
        StoreError: it is of another extraction.
    """
    if not out.exists():
        return None
    store = LatentStore.open(out)
    if different := _differences(store.attrs, identity):
        raise StoreError(
            f"{out}: already holds another extraction ({different}); choose another --out, or --overwrite"
        )
    return store


def _check_features(features: Sequence[str], z: str) -> None:
    for feature in features:
        if feature not in FEATURES:
            raise LayerError(f"unknown feature {feature!r}; the features are {', '.join(FEATURES)}")
    if "z" in features and z == "mean":
        raise LayerError(
            "feature z repeats mean in a mean pass; ask for --feature mean or --z sample"
        )


def _size_preview(run: _Run, out: Path, parts: Path) -> str:
    """Say what will be written, and refuse what the disk cannot hold twice (parts and store)."""
    size = len(run.source) * run.row_bytes
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    done = sum(path.stat().st_size for path in parts.glob("part-*"))
    free, needed = shutil.disk_usage(folder).free, 2 * size - done
    if needed > free:
        raise StoreError(
            f"{out}: needs {needed / 1e9:.1f} GB while it is written, found {free / 1e9:.1f} GB free; "
            "choose fewer layers or another disk"
        )
    what = f"{len(run.source)} images x {run.dims} dimensions ({run.dtype.name})"
    return f"{what}, {size / 1e6:.1f} MB, to {out}"


def _claim(path: Path, identity: dict[str, Any]) -> None:
    """Record what these parts belong to, or refuse parts of another extraction by the difference."""
    if path.exists():
        if different := _differences(json.loads(path.read_text()), identity):
            raise StoreError(
                f"{path.parent}: holds another, unfinished extraction ({different}); "
                "rerun that command, or remove the folder"
            )
        return
    for part in path.parent.glob("part-*"):  # whose they are is not known any more
        part.unlink()
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(identity))
    aside.replace(path)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name what differs between two extractions, with both values; empty where nothing does."""
    return "; ".join(
        f"{key} was {str(before.get(key))[:40]!r}, is {str(value)[:40]!r}"
        for key, value in now.items()
        if before.get(key) != value
    )
