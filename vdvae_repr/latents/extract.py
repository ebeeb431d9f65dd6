"""Model and source to a latent store: in parts, each renamed into place, resumed by running again."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vdvae_repr.data.loader import check_workers, map_ahead
from vdvae_repr.data.open import open_source
from vdvae_repr.data.source import Preprocessing, Source, read_images
from vdvae_repr.encoders.base import Encoder, ImageTransform
from vdvae_repr.encoders.load import as_encoder
from vdvae_repr.errors import DataError, LayerError, StoreError
from vdvae_repr.latents.store import (
    IMAGE_BYTES,
    MIRROR,
    SCHEMA,
    LatentStore,
    array_key,
    chunk_rows,
    create_array,
    describe_images,
    parts_folder,
    pool_layer,
    write_aside,
)
from vdvae_repr.model.layers import LayerSpec, select_layers
from vdvae_repr.model.noise import NoiseFn, seeded_noise
from vdvae_repr.model.precision import Precision
from vdvae_repr.model.vdvae import VDVAE

BATCH_SIZES = (4, 8, 16, 32, 64, 128)  # tried by "auto"
CALIBRATED_BYTES = 2**31  # of latents that "auto" goes to
PART = 512  # images a part at most, and
PART_BYTES = 2**28
CHUNK = 8  # images, at most, that a worker reads in a row

Arrays = dict[str, NDArray[Any]]


def extract(
    model: VDVAE | Encoder,
    data: str | Path | NDArray[np.uint8] | Source,
    out: str | Path,
    *,
    layers: str | int | Sequence[str | int] = "all",
    features: Sequence[str] | None = None,
    z: Literal["mean", "sample"] = "mean",
    draws: int | None = None,
    seed: int = 0,
    crop: int | None = None,
    align: bool = False,
    resize: Literal["bicubic", "bilinear"] | None = None,
    mirror: bool = False,
    pool: str | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    precision: Precision = "fp32",
    batch_size: int | Literal["auto"] = 32,
    num_workers: int | None = None,
    images: bool = True,
    layout: Literal["single", "virtual"] = "single",
    on_error: Literal["raise", "skip"] = "raise",
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[int], object] = lambda count: None,
) -> LatentStore:
    """Write a store of chosen layers' features; rerun the same call to resume an interrupted one.

    Under torchrun every process calls this, and the parts are divided among them.

    Args:
        model: a VDVAE in eval mode, or another encoder, whose feature is `activation`.
        data: whatever `open_source` takes.
        out: the store's path; parts lie in `OUT.parts/` until all are there.
        layers: selector.
        features: names of the encoder's, of a VDVAE `mean` if not given; `z` needs `z="sample"`.
        z: what each layer sends down: its mean, or a draw seeded by (seed, image id, layer).
        draws: passes of draws that the feature `z` keeps, on a second axis; the kl is their mean.
        seed: of the draws.
        crop: side of the central square taken before the encoder's own transform, pixels.
        align: bring the largest face's eyes, nose and mouth to fixed places, by MTCNN; instead of `crop`.
        resize: how a VDVAE's square is resized, `bicubic` (if not given) or `bilinear`; both antialiased.
        mirror: read the mirrored images too, into /mirror.
        pool: None keeps the grid, "avg" its mean, "avg:4" a 4x4 grid.
        dtype: of the features on the disk.
        precision: of the computation; bf16 and tf32 (GPUs) trade exactness for speed.
        batch_size: images a forward pass; batches are cut at fixed indices. "auto" times some and takes
            the smallest within 5 % of the fastest.
        num_workers: threads that read and decode images, and draw, ahead of the model; by default the cores
            less one. The store is the same with any number.
        images: keep the preprocessed images, which the controls need.
        images: keep images, which the controls need: a VDVAE's input, of another encoder its input at 64
            pixels at most.
        layout: "virtual" leaves the features in the parts, and the store refers to them: half the disk.
        on_error: of an image that cannot be read: "raise", or "skip" it and list it in the store.
        overwrite: replace a finished store; without it, one of the same extraction is returned as it is.
        report: receives a line about what will be written.
        progress: receives the number of images done since the last call.

    Raises:
        DataError, LayerError: bad source or selector, no workers. StoreError: the output exists, is being
            written by another process, belongs to another extraction, does not fit on the disk, or cannot
            be written; a value that float16 cannot hold.
    """
    for name, value, allowed in (
        ("z", z, ("mean", "sample")),
        ("dtype", dtype, ("float32", "float16")),
        ("precision", precision, ("fp32", "tf32", "bf16")),
        ("on_error", on_error, ("raise", "skip")),
        ("layout", layout, ("single", "virtual")),
    ):
        if value not in allowed:
            raise StoreError(f"{name}: expected {' or '.join(allowed)}, found {value!r}")
    if batch_size != "auto" and batch_size < 1:
        raise StoreError(f"batch_size: expected a number from 1, or auto, found {batch_size!r}")
    out = Path(out)
    source = open_source(data)
    encoder = as_encoder(model)
    chosen = select_layers(encoder.layers, layers)
    features = encoder.features[:1] if features is None else features
    _check_features(encoder, features, z, draws)
    preprocessing = replace(encoder.preprocessing, crop=crop, align=align)
    if resize is not None:
        if not isinstance(preprocessing, Preprocessing):
            raise DataError(f"{encoder.name}: resizes as its authors do; leave --resize out")
        preprocessing = replace(preprocessing, resize=resize)
    run = _Run(
        model=encoder, source=source, preprocessing=preprocessing,
        chosen=chosen, features=tuple(features), z=z, draws=draws, seed=seed, mirror=mirror, pool=pool,
        dtype=np.dtype(dtype), precision=precision, batch_size=0 if batch_size == "auto" else batch_size,
        images=images, layout=layout, on_error=on_error, workers=check_workers(num_workers),
    )  # fmt: skip
    rank, processes = _processes()
    parts = parts_folder(out)
    try:
        with _locked(out.with_name(out.name + ".lock")) if rank == 0 else nullcontext():
            # The first process decides, so that all do the same; None: there is nothing left to do.
            begun = _begin(run, out, overwrite, report) if rank == 0 else None
            begun = _from_the_first(begun, processes)
            if begun is not None:
                run = replace(run, batch_size=begun["batch_size"])
                if different := _differences(begun, run.identity()):
                    raise StoreError(
                        f"{out}: the processes do not extract the same ({different}); "
                        "give all of them the same files and weights"
                    )
                files = run.write_parts(parts, rank, processes, progress)
                _wait_for_all(processes)
                if rank == 0:
                    _refuse_skipped(files, on_error)
                    size = IMAGE_BYTES * len(source) + 2**14 * len(files)
                    if layout == "single":
                        size += sum(path.stat().st_size for path in files)
                    write_aside(out, lambda file: _assemble(file, files, begun, source), size)
                    if layout == "single":
                        shutil.rmtree(parts)
                _wait_for_all(processes)
    except OSError as error:
        kept = f"; what is finished stays in {parts.name}" if parts.exists() else ""
        raise StoreError(
            f"{out}: cannot be written ({error.strerror or error}){kept}; "
            "make room or choose another --out, then rerun the same command to resume"
        ) from error
    for _ in range(60 if rank else 0):  # a shared file system may be late
        if out.exists():
            break
        time.sleep(0.5)
    return LatentStore.open(out)


def _begin(
    run: _Run, out: Path, overwrite: bool, report: Callable[[str], None]
) -> dict[str, Any] | None:
    """Make out what is to be done, and claim the parts; None where the store is finished.

    Raises:
        StoreError: the store or its parts belong to another extraction, or the disk is too small.
    """
    parts = parts_folder(out)
    claim, virtual = parts / "extraction.json", _is_virtual(out)
    if overwrite and virtual:
        claim.unlink(missing_ok=True)  # parts without it are removed
        out.unlink()
    if not run.batch_size:
        run = replace(run, batch_size=_begun_with(out, claim, overwrite) or run.calibrate())
    identity = run.identity()
    own = claim.exists() and not _differences(_read_claim(claim), identity)
    if virtual and not overwrite and own and not _readable(out):
        out.unlink()  # a part is missing or cut short, and will be made again
    if not overwrite and _finished(out, identity):
        if run.layout == "single" and parts.exists():  # a kill came while they were removed
            shutil.rmtree(parts)
        _refuse_skipped([out], run.on_error)
        report(f"{out}: already complete")
        return None
    report(_size_preview(run, out, parts))
    parts.mkdir(parents=True, exist_ok=True)
    if overwrite and not own:
        claim.unlink(missing_ok=True)
    _claim(claim, identity)
    return identity


def shrunk(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return images (N, S, S, 3) at a smaller side, antialiased bicubic; as they are at the same."""
    if pixels.shape[1] == side:
        return pixels
    sides = (side, side)
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BICUBIC))
            for image in pixels
        ]
    )


class _HostCopies:
    """Brings tensors to the host. From a GPU, on a stream of its own beside the next batch's work."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, values: Mapping[str, Tensor]) -> Callable[[], Arrays]:
        """Begin to copy; the function returned waits for the copies, and gives them as arrays."""
        if self.stream is None:
            return lambda: {key: value.contiguous().numpy() for key, value in values.items()}
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        host: dict[str, Tensor] = {}
        with torch.cuda.stream(self.stream):
            for key, value in values.items():
                host[key] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                host[key].copy_(value.contiguous(), non_blocking=True)
                value.record_stream(self.stream)
            copied = torch.cuda.Event()
            copied.record(self.stream)

        def wait() -> Arrays:
            copied.synchronize()
            return {key: value.numpy() for key, value in host.items()}

        return wait


class _NoiseAhead:
    """NoiseFn whose layers, called for in their order, are drawn by a pool ahead of the call."""

    def __init__(
        self, noise: NoiseFn, layers: Sequence[LayerSpec], pool: Executor, workers: int, pin: bool
    ) -> None:
        self.noise, self.pool, self.pin = noise, pool, pin
        self.to_come = iter(layers)
        self.drawn: deque[Future[Tensor]] = deque()
        for _ in range(workers + 1):
            self.draw_next()

    def draw_next(self) -> None:
        """Let the pool draw one layer more."""
        if (spec := next(self.to_come, None)) is not None:
            self.drawn.append(self.pool.submit(self.draw, spec))

    def draw(self, spec: LayerSpec) -> Tensor:
        """Draw one layer on the CPU."""
        values = self.noise(spec)
        return values.pin_memory() if self.pin else values

    def on(self, device: torch.device) -> NoiseFn:
        """Return the noise as tensors on a device."""

        def take(spec: LayerSpec) -> Tensor:
            values = self.drawn.popleft().result()
            self.draw_next()
            return values.to(device, non_blocking=True)

        return take


@dataclass(kw_only=True)
class _Batch:
    """Images that are read and preprocessed, and what their draws need."""

    count: int
    """Images that the batch was to hold."""
    indices: list[int] = field(default_factory=list)
    """Those that could be read."""
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    """The others, with the reason."""
    noises: deque[_NoiseAhead] = field(default_factory=deque)
    """One a pass; none where means are sent down."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What one extraction computes of each image."""

    model: Encoder
    source: Source
    preprocessing: ImageTransform
    chosen: tuple[LayerSpec, ...]
    features: tuple[str, ...]
    z: Literal["mean", "sample"]
    draws: int | None
    seed: int
    mirror: bool
    pool: str | None
    dtype: np.dtype[Any]
    precision: Precision
    batch_size: int
    images: bool
    layout: str
    on_error: str
    workers: int

    def identity(self) -> dict[str, Any]:
        """Return the store's attributes, by which an extraction is told from another."""
        layers = [
            replace(
                spec,
                shape=self.shape(spec, self.model.features[0]),
                prefix=0 if self.pool else spec.prefix,
            ).to_json()
            for spec in self.chosen
        ]
        return {
            "schema": SCHEMA,
            **self.model.identity(),
            "source": self.source.name,
            "source_sha256": self.source.fingerprint(),
            "preprocessing": json.dumps(self.preprocessing.to_json(), sort_keys=True),
            "z": self.z,
            "draws": self.draws or 0,
            "seed": self.seed,
            "mirror": self.mirror,
            "layers": json.dumps(layers),
            "features": json.dumps(list(self.features)),
            "pool": self.pool or "",
            "dtype": self.dtype.name,
            "precision": self.precision,
            "images": self.images,
            "layout": self.layout,
            "batch_size": self.batch_size,
            "part": self.part,
        }

    def shape(self, spec: LayerSpec, feature: str) -> tuple[int, ...]:
        """Return the shape of what is stored of a layer's feature and image."""
        blank = np.zeros((1, *self.model.shape(spec, feature)), np.float32)
        return pool_layer(blank, self.pool, spec.prefix).shape[1:]

    @property
    def keys(self) -> dict[str, tuple[LayerSpec, str]]:
        """The layer and the feature of each array, by its path in the store; layers may share `bottom_up`."""
        return {
            array_key(spec, feature): (spec, feature)
            for spec in reversed(self.chosen)
            for feature in self.features
        }

    @property
    def widths(self) -> list[int]:
        """Numbers stored of an image and a draw, by array."""
        shapes = {
            array_key(spec, feature): self.shape(spec, feature)
            for spec in self.chosen
            for feature in self.features
        }
        return [math.prod(shape) for shape in shapes.values()]

    @property
    def dims(self) -> int:
        """Numbers stored of an image and a draw."""
        return sum(self.widths)

    @property
    def row_bytes(self) -> int:
        """What an image takes on the disk."""
        pixels = 3 * self.model.stored_side**2 if self.images else 0
        passes = (self.draws or 1) * (2 if self.mirror else 1)
        return passes * self.dims * self.dtype.itemsize + pixels

    @property
    def part(self) -> int:
        """Images a part: whole batches, few enough that little is lost and memory stays small."""
        batches = min(PART, PART_BYTES // max(self.row_bytes, 1)) // self.batch_size
        return max(1, batches) * self.batch_size

    def part_bytes(self, images: int) -> int:
        """Return what a part takes on the disk: whole chunks, and 1 kB that HDF5 wants of an array."""
        rows = [(self.draws or 1) * width * self.dtype.itemsize for width in self.widths]
        rows.append(4 * len(self.model.layers))  # kl
        rows *= 2 if self.mirror else 1
        rows += [8, 3 * self.model.stored_side**2 if self.images else 0]  # index, images
        lengths = (chunk_rows(images, row, self.part) for row in rows)
        return sum(
            -(-images // length) * length * row + 2**10
            for length, row in zip(lengths, rows, strict=True)
        )

    def read(self, indices: range) -> _Batch:
        """Read and preprocess some images; what cannot be read is an error, or left out."""
        batch = _Batch(count=len(indices))
        for index in indices:
            try:
                batch.pixels.append(read_images(self.source, self.preprocessing, [index])[0])
                batch.indices.append(index)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                batch.skipped.append({"id": self.source.ids[index], "reason": str(error)})
        return batch

    def batches(self, ranges: Sequence[range]) -> Generator[_Batch]:
        """Yield the batches of some ranges of images, cut at fixed indices; workers read two ahead."""
        size = min(CHUNK, -(-self.batch_size // self.workers))
        chunks = (
            (batch, batch[start : start + size])
            for images in ranges
            for batch in _cut(images, self.batch_size)
            for start in range(0, len(batch), size)
        )
        read = map_ahead(
            lambda chunk: (chunk[0], self.read(chunk[1])),
            chunks,
            workers=self.workers,
            ahead=-(-2 * self.batch_size // size),
        )
        with closing(read):
            whole = _Batch(count=0)
            for images, part in read:
                whole.count += part.count
                whole.indices += part.indices
                whole.pixels += part.pixels
                whole.skipped += part.skipped
                if whole.count == len(images):
                    yield whole
                    whole = _Batch(count=0)

    def with_noise(self, batches: Generator[_Batch]) -> Generator[_Batch]:
        """Yield batches with the noise of their passes, of which one batch more is being drawn."""
        if self.z == "mean":
            yield from batches
            return
        layers = self.model.layers[: self.chosen[-1].index + 1]
        pin, coming = self.model.device.type == "cuda", None
        with closing(batches), ThreadPoolExecutor(self.workers) as pool:
            for batch in batches:
                for names in self.names(batch):
                    for draw in range(self.draws or 1):
                        noise = seeded_noise(self.seed, names, torch.device("cpu"), draw)
                        batch.noises.append(_NoiseAhead(noise, layers, pool, self.workers, pin))
                if coming is not None:
                    yield coming
                coming = batch
            if coming is not None:
                yield coming

    def names(self, batch: _Batch) -> list[list[str]]:
        """Return the ids that draws depend on, of the images and of those mirrored."""
        ids = [self.source.ids[i] for i in batch.indices]
        return [ids, [f"{image_id}\0mirror" for image_id in ids]] if self.mirror else [ids]

    def infer(self, batch: _Batch, copies: _HostCopies) -> Callable[[], Arrays]:
        """Start a batch's passes; the function returned waits for them, and gives what is stored by path."""
        device = self.model.device
        pixels = torch.from_numpy(np.stack(batch.pixels))
        inputs = [pixels, pixels.flip(2)] if self.mirror else [pixels]
        passes: list[list[Callable[[], Arrays]]] = []
        for images in inputs:
            images = (images.pin_memory() if device.type == "cuda" else images).to(
                device, non_blocking=True
            )
            passes.append([])
            for _ in range(self.draws or 1):
                noise = batch.noises.popleft().on(device) if batch.noises else None
                read = self.model.read(
                    images, self.chosen, self.features, noise=noise, precision=self.precision
                )
                values = {
                    key: read.values[spec.name, feature]
                    for key, (spec, feature) in self.keys.items()
                }
                passes[-1].append(
                    copies.start(values if read.kl is None else values | {"kl": read.kl})
                )

        def arrays() -> Arrays:
            found: Arrays = {"index": np.array(batch.indices)}
            if self.images:
                found["images"] = shrunk(pixels.numpy(), self.model.stored_side)
            for prefix, draws in zip(("", MIRROR), passes, strict=False):
                found |= {prefix + key: value for key, value in self.joined(draws).items()}
            return found

        return arrays

    def joined(self, draws: Sequence[Callable[[], Arrays]]) -> Arrays:
        """Return kl and features as they are stored; of several draws the features on a second axis."""
        passes = [
            {k: v if k == "kl" else self.stored(v, *self.keys[k]) for k, v in wait().items()}
            for wait in draws
        ]
        if self.draws is None:
            return passes[0]
        stacked = {key: np.stack([p[key] for p in passes], axis=1) for key in passes[0]}
        return stacked | {"kl": stacked["kl"].mean(axis=1)}

    def stored(self, value: NDArray[np.float32], spec: LayerSpec, feature: str) -> NDArray[Any]:
        """Pool a feature and turn it into what the disk keeps."""
        pooled = pool_layer(value, self.pool, spec.prefix)
        with np.errstate(over="ignore"):
            stored = pooled.astype(self.dtype, copy=False)
        if self.dtype == np.float16 and not np.isfinite(stored).all():
            raise StoreError(
                f"layer {spec.name}, {feature}: expected values that float16 holds (below 65,504), "
                f"found {np.abs(pooled).max():g}; extract with --dtype float32"
            )
        return stored

    def calibrate(self) -> int:
        """Return the smallest batch size within 5 % of the fastest, timed on the first images."""
        # Four statistics and z of every layer traversed stand in memory at once.
        traversed = self.model.layers[: self.chosen[-1].index + 1]
        bytes_an_image = 5 * 4 * sum(spec.num_dims for spec in traversed)
        most = min(max(BATCH_SIZES), max(1, CALIBRATED_BYTES // bytes_an_image))
        pixels = self.read(range(min(len(self.source), most))).pixels
        copies = _HostCopies(self.model.device)
        once = replace(self, z="mean", draws=None, mirror=False)
        rates: dict[int, float] = {}
        for size in (size for size in BATCH_SIZES if size <= len(pixels)):
            batch = _Batch(count=size, indices=list(range(size)), pixels=pixels[:size])
            seconds = []
            for _ in range(3):  # the first warms up
                started = time.perf_counter()
                once.infer(batch, copies)()
                seconds.append(time.perf_counter() - started)
            rates[size] = size / min(seconds[1:])
            if rates[size] < 0.9 * max(rates.values()):
                break
        near = [size for size, rate in rates.items() if rate >= 0.95 * max(rates.values())]
        return min(near, default=max(1, min(most, BATCH_SIZES[0])))

    def write_parts(
        self, folder: Path, rank: int, processes: int, progress: Callable[[int], object]
    ) -> list[Path]:
        """Write one process's share of the parts, but for those that are whole; returns the paths of all."""
        files = []
        missing: list[tuple[Path, range]] = []
        for index, images in enumerate(_cut(range(len(self.source)), self.part)):
            path = folder / f"part-{index:05d}.h5"
            files.append(path)
            if index % processes != rank:
                continue
            if _whole(path):
                progress(len(images))
            else:
                missing.append((path, images))
        batches = self.with_noise(self.batches([images for _, images in missing]))
        with closing(batches):
            for path, images in missing:
                write = partial(self.write, images=images, batches=batches, progress=progress)
                write_aside(path, write, self.part_bytes(len(images)))
        return files

    def write(
        self,
        file: h5py.File,
        images: range,
        batches: Iterator[_Batch],
        progress: Callable[[int], object],
    ) -> None:
        """Write one part; reading, inferring, copying to the host, and writing overlap."""
        position, skipped = 0, []
        copies = _HostCopies(self.model.device)
        # Kept open: HDF5 writes and checksums a chunk that is not full each time its data set is closed.
        made: dict[str, h5py.Dataset] = {}
        written: Future[None] | None = None

        def put(wait: Callable[[], Arrays], position: int) -> None:
            for key, value in wait().items():
                if key not in made:
                    shape = len(images), *value.shape[1:]
                    made[key] = create_array(file, key, shape, value.dtype, self.part)
                made[key][position : position + len(value)] = value

        with ThreadPoolExecutor(1) as writer:
            for _ in _cut(images, self.batch_size):
                batch = next(batches)
                skipped += batch.skipped
                if batch.indices:
                    wait = self.infer(batch, copies)
                    if written is not None:
                        written.result()
                    written = writer.submit(put, wait, position)
                    position += len(batch.indices)
                progress(batch.count)
            if written is not None:
                written.result()
        file.attrs["count"] = position
        file.attrs["skipped"] = json.dumps(skipped)


def _cut(images: range, size: int) -> Iterator[range]:
    """Cut a range into ranges of `size`, the last of which may be shorter."""
    return (images[start : start + size] for start in range(0, len(images), size))


def _assemble(
    file: h5py.File, parts: Sequence[Path], identity: dict[str, Any], source: Source
) -> None:
    """Join parts into a store, or refer to them; one is open at a time."""
    rows_of: list[NDArray[np.intp]] = []
    shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    skipped: list[dict[str, str]] = []
    for path in parts:
        with h5py.File(path, "r") as part:
            count = int(part.attrs["count"])
            rows_of.append(part["index"][:count] if count else np.zeros(0, np.intp))
            skipped += json.loads(part.attrs["skipped"])
            for key in _arrays_of(part) if count else ():
                shapes[key] = part[key].shape[1:], part[key].dtype
    rows = np.concatenate(rows_of)
    if not len(rows):
        raise DataError(
            f"{source.name}: none of {len(source)} images can be read: {skipped[0]['reason']}"
        )
    del shapes["index"]
    edges = np.cumsum([0, *map(len, rows_of)])
    virtual = identity["layout"] == "virtual"
    layouts = {
        key: h5py.VirtualLayout((len(rows), *shape), dtype)
        for key, (shape, dtype) in shapes.items()
    }
    if virtual:
        pieces = [
            (f"{path.parent.name}/{path.name}", path.stat().st_size, len(own))
            for path, own in zip(parts, rows_of, strict=True)
        ]
        identity = identity | {"parts": json.dumps(pieces)}
    else:
        for key, (shape, dtype) in shapes.items():
            create_array(file, key, (len(rows), *shape), dtype, int(identity["part"]))
    for path, first, last in zip(parts, edges, edges[1:], strict=False):
        if last == first:
            continue
        with h5py.File(path, "r") as part:
            for key in shapes:
                if virtual:
                    name = f"{path.parent.name}/{path.name}"
                    piece = h5py.VirtualSource(name, key, part[key].shape)[: last - first]
                    layouts[key][first:last] = piece
                else:
                    _copy(part[key], file[key], int(first), int(last))
    if virtual:
        for key, (_, dtype) in shapes.items():
            # What HDF5 reads where a part is not there.
            missing = np.nan if dtype.kind == "f" else 0
            file.create_virtual_dataset(key, layouts[key], fillvalue=missing)
    describe_images(
        file, ids=[source.ids[i] for i in rows], splits=[source.splits[i] for i in rows],
        labels=source.labels[rows], label_names=source.label_names,
        factors={name: values[rows] for name, values in source.factors.items()},
        attrs=identity, skipped=skipped,
    )  # fmt: skip


def _copy(part: h5py.Dataset, whole: h5py.Dataset, first: int, last: int) -> None:
    """Copy a part's rows to rows first..last-1 of the whole: where chunks are the same, as they are."""
    rows = whole.chunks[0]
    if part.chunks != whole.chunks or first % rows or len(part) != last - first:
        whole[first:last] = part[: last - first]
        return
    others = (0,) * (whole.ndim - 1)
    for row in range(0, last - first, rows):
        mask, chunk = part.id.read_direct_chunk((row, *others))
        whole.id.write_direct_chunk((first + row, *others), chunk, mask)


def _refuse_skipped(paths: Sequence[Path], on_error: str) -> None:
    """Refuse parts or a store of an earlier run that left images out, where this one is to raise."""
    if on_error == "skip":
        return
    for path in paths:
        with h5py.File(path, "r") as part:
            for item in json.loads(part.attrs["skipped"]):
                raise DataError(
                    f"{item['reason']}; it was left out by --on-error skip: rerun with it, or --overwrite"
                )


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
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that dies with its process; its file goes when it is let go.

    Raises:
        StoreError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"{path.with_suffix('')}: another process is writing this store; wait for it, "
                    "or choose another --out"
                ) from None
            if not path.exists() or path.stat().st_ino != os.fstat(handle.fileno()).st_ino:
                continue  # its last holder has just removed it
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


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


def _from_the_first(value: dict[str, Any] | None, processes: int) -> dict[str, Any] | None:
    """Return the first process's value in every one."""
    shared = [value]
    if processes > 1:
        dist.broadcast_object_list(shared, 0)
    return shared[0]


def _begun_with(out: Path, claim: Path, overwrite: bool) -> int | None:
    """Return the batch size of an extraction that is begun or finished, because parts are cut by it."""
    known = _read_claim(claim) if claim.exists() else {}
    if not known and out.exists() and not overwrite:
        known = _attributes(out)
    return int(known["batch_size"]) if "batch_size" in known else None


def _read_claim(path: Path) -> dict[str, Any]:
    """Return what parts belong to; nothing where the file is no JSON, as after a power cut."""
    try:
        return dict(json.loads(path.read_text()))
    except ValueError:
        return {}


def _readable(out: Path) -> bool:
    try:
        _attributes(out)
    except StoreError:
        return False
    return True


def _is_virtual(out: Path) -> bool:
    """Whether a store refers to parts; False where there is none, or none that can be read."""
    try:
        with h5py.File(out, "r") as file:
            return "parts" in file.attrs
    except OSError:
        return False


def _finished(out: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the store is there.

    Raises:
        StoreError: it is of another extraction.
    """
    if not out.exists():
        return False
    if different := _differences(_attributes(out), identity):
        raise StoreError(
            f"{out}: already holds another extraction ({different}); choose another --out, or --overwrite"
        )
    return True


def _attributes(out: Path) -> dict[str, Any]:
    with closing(LatentStore.open(out)) as store:
        return store.attrs


def _check_features(encoder: Encoder, features: Sequence[str], z: str, draws: int | None) -> None:
    if encoder.features == ("activation",):
        if list(features) != ["activation"] or z != "mean" or draws is not None:
            raise LayerError(f"{encoder.name}: has the feature activation alone, and draws nothing")
        return
    for feature in features:
        if feature not in encoder.features:
            raise LayerError(
                f"unknown feature {feature!r}; the features are {', '.join(encoder.features)}"
            )
    if "z" in features and z == "mean":
        raise LayerError(
            "feature z repeats mean in a mean pass; ask for --feature mean or --z sample"
        )
    if draws is not None and (draws < 1 or z == "mean" or list(features) != ["z"]):
        raise LayerError(
            f"draws are of the feature z alone: expected 1 draw or more with --z sample --feature z, "
            f"found --draws {draws} --z {z} --feature {' --feature '.join(features)}"
        )


def _size_preview(run: _Run, out: Path, parts: Path) -> str:
    """Say what will be written, and refuse what the disk cannot hold; a single file is written twice."""
    size = len(run.source) * run.row_bytes
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    done = sum(path.stat().st_size for path in parts.glob("part-*"))
    free, times = shutil.disk_usage(folder).free, 2 if run.layout == "single" else 1
    needed = times * size - done
    if needed > free:
        raise StoreError(
            f"{out}: needs {_in_units(needed)} while it is written, found {_in_units(free)} free; "
            "choose fewer layers or another disk"
        )
    what = f"{len(run.source)} images x {run.dims} dimensions ({run.dtype.name})"
    what += f" x {run.draws} draws" if run.draws else ""
    what += ", and mirrored" if run.mirror else ""
    pooled = sum(replace(run, pool="avg").widths) if run.pool is None else run.dims
    hint = (
        f"; with pool avg {_in_units(size * pooled / run.dims)}" if run.dims > 100 * pooled else ""
    )
    return f"{what}, {_in_units(size)}, to {out}{hint}"


def _in_units(size: float) -> str:
    """Write a number of bytes for people, as 3.2 GB."""
    units = ["kB", "MB", "GB", "TB"]
    size /= 1000
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.1f} {units[0]}"


def _claim(path: Path, identity: dict[str, Any]) -> None:
    """Record what these parts belong to, or refuse parts of another extraction by the difference."""
    if path.exists():
        if different := _differences(_read_claim(path), identity):
            raise StoreError(
                f"{path.parent}: holds another, unfinished extraction ({different}); "
                "rerun that command, or discard it with --overwrite"
            )
        return
    for part in path.parent.glob("part-*"):  # whose they are is not known any more
        part.unlink()
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(identity))
    aside.replace(path)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name what differs between two extractions, with both values; empty where nothing does."""
    found = []
    for key, value in now.items():
        if before.get(key) != value:
            old, new = str(before.get(key)), str(value)
            # Of long values, as layers, what stands around the first difference.
            alike = (a == b for a, b in zip(old, new, strict=False))
            start = max(0, len(list(takewhile(bool, alike))) - 20)
            old, new = (("..." if start else "") + text[start : start + 40] for text in (old, new))
            found.append(f"{key} was {old!r}, is {new!r}")
    return "; ".join(found)
