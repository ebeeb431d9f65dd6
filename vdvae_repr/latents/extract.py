"""Model and source to a latent store: what is computed, batch by batch, part by part.

Parts (`parts`) are renamed into place one by one, so that the same call goes on after a stop.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vdvae_repr.config import path_of, shown, suggestion, true_or_false
from vdvae_repr.data.faces import AlignedFace, noted_faces
from vdvae_repr.data.loader import check_workers, map_ahead
from vdvae_repr.data.open import open_source, warn
from vdvae_repr.data.source import (
    LOOKED_AT,
    Preprocessing,
    Source,
    about_enlarged,
    hashes_of,
    read_images,
    spread_over,
)
from vdvae_repr.encoders.base import Encoder, ImageTransform
from vdvae_repr.encoders.load import as_encoder, loaded
from vdvae_repr.errors import (
    SKIP_ADVICE,
    DataError,
    LayerError,
    StoreError,
    VDVAEReprError,
    counted,
)
from vdvae_repr.latents import parts as partition
from vdvae_repr.latents.format import (
    IMAGE_BYTES,
    MIRROR,
    StoreInfo,
    array_key,
    chunk_rows,
    create_array,
    linked_to,
    not_finite,
    parts_folder,
    refuse_target,
    rehearse,
    seal,
    write_aside,
)
from vdvae_repr.latents.options import (
    Compute,
    Frame,
    Options,
    Sampling,
    Storage,
    resolve_options,
)
from vdvae_repr.latents.overlap import Arrays, HostCopies, NoiseAhead
from vdvae_repr.latents.pooling import about_pool, pool_layer, pooled_shape
from vdvae_repr.latents.store import LatentStore
from vdvae_repr.model.base import SavedModel
from vdvae_repr.model.layers import LayerSpec, select_layers
from vdvae_repr.model.noise import seeded_noise
from vdvae_repr.model.precision import arithmetic
from vdvae_repr.model.student import Student
from vdvae_repr.model.vdvae import VDVAE

logger = logging.getLogger(__name__)
BATCH_SIZES = (4, 8, 16, 32, 64, 128)  # tried by "auto"
CALIBRATED_BYTES = 2**31  # of latents that "auto" goes to
MANY_LOOKED_AT = 4096  # of a run's own data, for images that it was trained on
PART = 512  # images a part at most, and
PART_BYTES = 2**28
APART = 0.02  # of a layer's largest value: from here on an image was read by another network
CHUNK = 8  # images, at most, that a worker reads in a row


@arithmetic()
def extract(
    model: VDVAE | Student | Encoder | str | Path,
    data: str | Path | NDArray[np.uint8] | Source,
    out: str | Path,
    *options: Sampling | Frame | Storage | Compute,
    layers: str | int | Sequence[str | int] = "all",
    features: str | Sequence[str] | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
    progress: Callable[[int], object] = lambda count: None,
    **keywords: Any,
) -> LatentStore:
    """Write a store of chosen layers' features; rerun the same call to resume an interrupted one.

    Options stand in groups (`Sampling`, `Frame`, `Storage`, `Compute` of `latents.options`), and each of
    their fields can be given as a keyword: `z`, `draws`, `seed`; `crop`, `align`, `resize`, `on_error`;
    `dtype`, `pool`, `layout`, `images`, `mirror`; `precision`, `batch_size`, `num_workers`.
    Under torchrun every process calls this, and the parts are divided among them.

    Args:
        model: a VDVAE in eval mode, or another encoder, whose feature is `activation`; or what `load` takes.
        data: whatever `open_source` takes.
        out: the store's path, or a link to it; parts lie in `OUT.parts/` until all are there.
        *options: groups of options.
        layers: selector.
        features: a name of the encoder's, or several, each once; of a VDVAE `mean` if not given; `z` needs
            `z="sample"`.
        overwrite: compute everything anew, and replace a finished store, but no other file, once the new one
            is whole; without it, a store of the same extraction and of unchanged images is returned.
        report: receives lines about what was left out of `data` or may surprise, and what will be written. If
            not given, the former are logged as warnings.
        progress: receives the number of images done since the last call.
        **keywords: options by their names.

    Raises:
        DataError, LayerError: bad source or selector. TypeError: an unknown option.
        ConfigError: an option's number or truth value.
        StoreError: an option's word; the output exists, is no store, is being written by another process,
            belongs to another extraction, holds of its first image what the network does not give by now,
            does not fit on the disk, or cannot be written; a value that is not finite or that float16 cannot
            hold; an id or factor that no store can hold; images that have been replaced since the store was
            made, or while they were read.

    Examples:
        extract(model, "photos/", "s.h5", layers="8x8", z="sample", features=["z"])
        extract(model, "photos/", "s.h5", Storage(dtype="float16", pool="avg:4"), batch_size=64)
    """
    chosen_options = resolve_options(options, keywords)
    out, overwrite = linked_to(path_of("out", out)), true_or_false("overwrite", overwrite)
    net = loaded(model)
    encoder = as_encoder(net)
    reading = Reading.of(encoder, layers, features, chosen_options)
    notices: list[str] = []
    source = open_source(data, notice=notices.append)
    job = ExtractionJob.of(encoder, source, reading, chosen_options)
    if isinstance(net, SavedModel) and (line := net.about_crop(chosen_options.frame.crop)):
        notices.append(line)
    shapes = [encoder.shape(spec, reading.features[0]) for spec in reading.layers]
    if line := about_pool(chosen_options.storage.pool, reading.layers, shapes):
        notices.append(line)
    frame = chosen_options.frame
    if not frame.align and (line := about_enlarged(source, job.model.image_size, frame.crop)):
        notices.append(line)
    rank, processes = partition.join_processes()
    folder = parts_folder(out)
    say = (report or warn) if rank == 0 else lambda line: None
    report = report or logger.info
    try:
        if rank == 0:
            refuse_target(out, source.paths)
        for line in notices:  # said once nothing is wrong with what was asked for
            say(line)
        with partition.locked(Path(f"{out}.lock")) if rank == 0 else nullcontext():
            # The first process decides, so that all do the same; None: there is nothing left to do.
            begun = _begin(job, out, overwrite, say, report) if rank == 0 else None
            begun = partition.from_the_first(begun, processes)
            if begun is not None:
                if rank == 0 and isinstance(net, SavedModel):
                    for line in _about_trained_on(net, source, job.workers):
                        say(line)
                if job.batch_size != begun["batch_size"]:
                    job = replace(job, batch_size=begun["batch_size"])
                if different := partition.differences(begun, job.info.attributes()):
                    raise StoreError(
                        f"{out}: the processes do not extract the same ({different}); "
                        "give all of them the same files and weights"
                    )
                try:
                    _write(job, out, begun, rank, processes, say, progress)
                except KeyboardInterrupt:
                    parts = job.parts(folder, begun["generation"])
                    kept = sum(len(images) for path, images in parts if path.exists())
                    say(f"{folder}: {kept} of {counted(len(source), 'image')} kept")
                    raise
    except OSError as error:
        stays = f"; what is finished stays in {folder.name}" if folder.exists() else ""
        raise StoreError(
            f"{out}: cannot be written ({error.strerror or error}){stays}; "
            "make room or choose another path, then rerun the same command to resume"
        ) from error
    for _ in range(60 if rank else 0):  # a shared file system may be late
        if out.exists():
            break
        time.sleep(0.5)
    store = LatentStore.open(out)
    if skipped := store.info.skipped:
        all_of_them = "" if len(skipped) == 1 else f"; vdvae-repr store info {out} lists all"
        left = counted(len(skipped), "image", "is", "are")
        say(f"{out}: {left} left out, as {skipped[0]['reason']}{all_of_them}")
    return store


def _about_trained_on(model: SavedModel, source: Source, workers: int) -> list[str]:
    """Return a line that a model was trained on what is read, or on some of it; none if nothing tells so.

    Of many images 100 are looked at; of what seems to be the run's own data, where none of these is one that
    was trained on, 4,096.
    """

    def count(most: int) -> tuple[int, int]:
        """Return how many of some images were trained on, and of how many that was asked."""
        if model.trained_on is None:
            return 0, 0
        some = spread_over(source, most=most)
        as_trained = Preprocessing(size=model.config.image_size, crop=model.trained_crop)
        known = np.isin(hashes_of(source, as_trained, some, workers), model.trained_on)
        return int(known.sum()), len(some)

    (trained, asked), data = count(LOOKED_AT), model.record.get("data_sha256")
    if data is not None and data == source.fingerprint():
        if asked and not trained and not count(MANY_LOOKED_AT)[0]:
            return []  # other files stand under the names of those, of the same sizes
        what = f"is what {model.name} was trained on, but for what it held back"
    elif trained:
        looked_at = " looked at" if asked < len(source) else ""
        what = f"{trained} of {asked} images{looked_at} are those that {model.name} was trained on"
    else:
        return []
    return [f"{source.name}: {what}, so that not all figures of it are of new images"]


def _begin(
    job: ExtractionJob,
    out: Path,
    overwrite: bool,
    say: Callable[[str], None],
    report: Callable[[str], None],
) -> dict[str, Any] | None:
    """Make out what is to be done, and claim the parts; None where the store is finished.

    Nothing is removed before everything that can be refused has been.

    Raises:
        StoreError: the store or its parts belong to another extraction or hold something else, the disk is
            too small, images were replaced, or the source has names that no store can hold.
    """
    source, folder = job.source, parts_folder(out)
    _ = job.described_bytes  # refuses what no store can hold
    partition.refuse_strangers(folder)
    if overwrite or not out.exists():
        partition.refuse_parts_of_others(out)
    claimed = {} if overwrite else partition.read_claim(folder / partition.CLAIM)
    if not job.batch_size:
        known = None if overwrite else _begun_with(out, claimed)
        job = replace(job, batch_size=known or job.calibrate())
    identity = job.info.attributes()
    of_own_network = "network" in json.loads(identity["config"])
    held = partition.parts_of(out)  # by the store that is there
    first = partition.part_path(folder, 0, 0).name
    kept: frozenset[str] = frozenset()  # parts that are gone on with
    if overwrite:
        generation = int(first in held)
    elif out.exists():
        if not _misses_parts(out, claimed, identity):
            _refuse_another(job, out, identity, say)
            if of_own_network:
                with LatentStore.open(out) as store:
                    _refuse_another_network(job, out, store.ids)
            if held:  # beside which a kill left others
                partition.keep_parts(folder, held)
            else:
                partition.remove_parts(folder)
            partition.refuse_skipped([out], job.options.frame.on_error)
            report(f"{out}: already complete")
            return None
        if held:
            generation, kept = int(first not in held), held
        else:  # the file that refers to them is damaged
            generation, kept = int(claimed.get("generation", 0)), _all_parts(folder)
        claimed = {}
    else:
        if claimed and (different := partition.differences(claimed, identity)):
            raise StoreError(
                f"{folder}: holds another, unfinished extraction ({different}); "
                "rerun that command on the same images, or discard it with overwrite=True"
            )
        generation = int(claimed.get("generation", 0))
        if claimed:  # else it is not known whose they are
            kept = _all_parts(folder)
    report(_size_preview(job, out, folder, held - kept))
    state = source.state()
    touched = state is None or claimed.get("source_state") != state
    if stale := _stale(job, [folder / name for name in sorted(kept)]) if touched else {}:
        kept -= stale.keys()
        images = [image for some in stale.values() for image in some]
        say(
            f"{source.name}: {counted(len(images), 'image', 'was', 'were')} replaced, as {images[0]!r}; "
            f"{counted(len(stale), 'part', 'is', 'are')} made again"
        )
    whole = (folder / name for name in sorted(kept) if partition.is_whole(folder / name))
    if of_own_network and (part := next(whole, None)):
        _refuse_another_network(job, part, partition.recorded(part, source.ids)[0])
    partition.keep_parts(folder, held | kept if overwrite else kept)
    begun = identity | {"source_state": state, "generation": generation}
    partition.claim(folder / partition.CLAIM, begun)
    return begun


def _write(
    job: ExtractionJob,
    out: Path,
    begun: Mapping[str, Any],
    rank: int,
    processes: int,
    say: Callable[[str], None],
    progress: Callable[[int], object],
) -> None:
    """Write this process's parts, and in the first process the store, in place of one that is there."""
    folder = parts_folder(out)
    try:
        files = job.write_parts(folder, begun["generation"], rank, processes, progress)
        partition.wait_for_all(processes)
        if rank == 0:
            partition.refuse_skipped(files, job.options.frame.on_error)
            info = replace(job.info, source_state=_unchanged(job, files, begun["source_state"]))
            single = job.options.storage.layout == "single"
            size = IMAGE_BYTES * len(job.source) + 2**14 * len(files) + job.described_bytes
            if single:
                size += sum(path.stat().st_size for path in files)
            write_aside(
                out,
                lambda file: partition.assemble(file, files, info, job.source),
                size,
                check=LatentStore.check_written,
            )
            count, largest = partition.vanished(files)
            faces = partition.aligned(files)
            if single:
                partition.remove_parts(folder)
            else:
                partition.keep_parts(folder, {path.name for path in files})
            for line in faces:
                say(line)
            if count:
                say(
                    f"{counted(count, 'value', 'is', 'are')} too small for float16 and stored "
                    f"as 0, the largest {largest:.2g}; dtype float32 keeps {'it' if count == 1 else 'them'}"
                )
        partition.wait_for_all(processes)
    except VDVAEReprError:
        if processes == 1:
            partition.remove_if_nothing_is_done(folder)
        raise


def _stale(job: ExtractionJob, parts: Sequence[Path]) -> dict[str, list[str]]:
    """Return the parts whose images have been replaced since, by name, with the ids of these images."""
    stale: dict[str, list[str]] = {}
    for path in parts:
        if partition.is_whole(path):
            ids, checksums = partition.recorded(path, job.source.ids)
            if changed := job.changed(ids, checksums):
                stale[path.name] = changed
    return stale


def _unchanged(job: ExtractionJob, files: Sequence[Path], state: str | None) -> str | None:
    """Return the state of the source, whose images must be those that were read.

    Raises:
        StoreError: some were replaced meanwhile.
    """
    now = job.source.state()
    if now != state and (stale := _stale(job, files)):
        images = [image for some in stale.values() for image in some]
        raise StoreError(
            f"{job.source.name}: {counted(len(images), 'image')} replaced while they were read, as "
            f"{images[0]!r}; rerun the same command, which makes their parts again"
        )
    return now


def _refuse_another(
    job: ExtractionJob, out: Path, identity: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Refuse a store that is of another extraction, or of images that have been replaced since.

    Raises:
        StoreError: it is; what differs first is named.
    """
    with LatentStore.open(out) as store:
        info, checksums = store.info, store.checksums
        if different := partition.differences(info.attributes(), identity):
            raise StoreError(
                f"{out}: already holds another extraction ({different}); "
                "choose another path, or overwrite=True"
            )
        if what := _other_words(store, job.source):
            raise StoreError(
                f"{out}: its {what} are not those of {job.source.name} any more; extract again with "
                "overwrite=True, or choose another path"
            )
        state = job.source.state()
        if state is not None and state == info.source_state:
            return
        if checksums is None or checksums[0] != job.source.checksums_are_of:
            say(f"{out}: does not say of what its images were made; replaced ones go unnoticed")
            return
        ids = [*store.ids, *(item["id"] for item in info.skipped)]
        if changed := job.changed(ids, [*checksums[1].tolist(), *info.skipped_checksums]):
            raise StoreError(
                f"{out}: {len(changed)} of {counted(len(ids), 'image')} replaced since it was made, as "
                f"{changed[0]!r}; extract again with overwrite=True, or choose another path"
            )


def _refuse_another_network(job: ExtractionJob, path: Path, ids: Sequence[str]) -> None:
    """Refuse a file whose first image a network of the user's own reads otherwise by now.

    What such a network computes may lie where its identity does not see it, as in files.

    Args:
        job: of the network.
        path: a store, or a part of one.
        ids: of its images.

    Raises:
        StoreError: says which layer is read otherwise.
    """
    rows = [job.place[image_id] for image_id in ids[:1]]
    batch = job.read(range(rows[0], rows[0] + 1)) if rows else None
    if batch is None or not batch.indices:  # no image, or one that cannot be read any more
        return
    arrays = job.infer(batch, HostCopies(job.model.device))()
    with h5py.File(path) as file:
        for key in job.keys:
            before, now = (np.asarray(held[key][0], np.float64) for held in (file, arrays))
            if np.abs(before - now).max() > APART * np.abs(before).max():
                raise StoreError(
                    f"{path}: {job.name_of(key)} of {ids[0]!r} is not what the network gives now, by up to "
                    f"{np.abs(before - now).max():.3g}: it computes otherwise than then; extract with "
                    "overwrite=True, or choose another path"
                )


def _other_words(store: LatentStore, source: Source) -> str:
    """Return which of the names and factors, of which the fingerprint is not, are no longer the source's."""
    if store.label_names != source.label_names:
        return "names of labels"
    place = {image_id: row for row, image_id in enumerate(source.ids)}
    rows = [place[image_id] for image_id in store.ids]
    stored = store.factors
    if list(stored) != sorted(source.factors):
        return "factors"
    for name, values in source.factors.items():
        now, before = values[rows], stored[name]
        if now.dtype.kind in "UO":
            now, before = now.astype(str), before.astype(str)
        if not np.array_equal(now, before, equal_nan=now.dtype.kind == "f"):
            return f"values of factor {name!r}"
    return ""


def _all_parts(folder: Path) -> frozenset[str]:
    """Return the names of the parts in a folder."""
    return frozenset(path.name for path in folder.glob("part-*.h5"))


def _misses_parts(out: Path, claimed: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether a virtual store of this extraction cannot be read, so that what is damaged is to be made again.

    Where the store itself is damaged, the claim of its parts tells of which extraction it is.
    """
    try:
        LatentStore.open(out).close()
        return False
    except StoreError:
        known = partition.attributes_of(out) or claimed
        return known.get("layout") == "virtual" and not partition.differences(known, identity)


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
    vanished: list[tuple[int, float]] = field(default_factory=list)
    """Of an array, how many values became 0 in float16, and the largest of them."""
    faces: list[tuple[str, AlignedFace]] = field(default_factory=list)
    """What is known of those that were aligned, by id."""
    noises: deque[NoiseAhead] = field(default_factory=deque)
    """One a pass; none where means are sent down."""


@dataclass(frozen=True)
class Reading:
    """What is read of an encoder, checked before images are opened."""

    layers: tuple[LayerSpec, ...]
    features: tuple[str, ...]
    preprocessing: ImageTransform

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        layers: str | int | Sequence[str | int],
        features: str | Sequence[str] | None,
        options: Options,
    ) -> Reading:
        """Check what options ask of an encoder.

        Raises:
            LayerError: an unknown layer or feature, or one that these options do not have. DataError: a way
                to resize an encoder's images that is not its own.
        """
        frame = options.frame
        chosen = select_layers(encoder.layers, layers)
        features = encoder.features[:1] if features is None else features
        if not isinstance(features, Iterable):
            raise LayerError(
                f"features: expected a name, or several of {', '.join(encoder.features)}, found "
                f"{shown(features)}"
            )
        given = (features,) if isinstance(features, str) else tuple(features)
        features = tuple(name for at, name in enumerate(given) if name not in given[:at])
        _check_features(encoder, features, options.sampling)
        preprocessing = replace(encoder.preprocessing, crop=frame.crop, align=frame.align)
        if frame.resize is not None:
            if not isinstance(preprocessing, Preprocessing):
                raise DataError(f"{encoder.name}: resizes as its authors do; leave resize out")
            preprocessing = replace(preprocessing, resize=frame.resize)
        if options.storage.pool is not None:
            for spec in chosen:  # which refuses another word, and a grid that it cannot make
                pooled_shape(spec, encoder.shape(spec, features[0]), options.storage.pool)
        return cls(chosen, features, preprocessing)


@dataclass(frozen=True, kw_only=True)
class ExtractionJob:
    """What one extraction computes of each image."""

    model: Encoder
    source: Source
    reading: Source
    """The source, read so that `checksums` are kept."""
    checksums: NDArray[np.uint64]
    """(N,), of the images that were read."""
    preprocessing: ImageTransform
    chosen: tuple[LayerSpec, ...]
    features: tuple[str, ...]
    options: Options
    batch_size: int
    """0 until it is calibrated."""
    workers: int

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        source: Source,
        asked: Reading,
        options: Options,
    ) -> ExtractionJob:
        """Make the job of reading a source so.

        Raises:
            ConfigError: no workers.
        """
        compute = options.compute
        reading, checksums = source.with_checksums()
        return cls(
            model=encoder,
            source=source,
            reading=reading,
            checksums=checksums,
            preprocessing=asked.preprocessing,
            chosen=asked.layers,
            features=asked.features,
            options=options,
            batch_size=0 if compute.batch_size == "auto" else int(compute.batch_size),
            workers=check_workers(compute.num_workers),
        )

    @cached_property
    def place(self) -> dict[str, int]:
        """Where an image stands in the source, by its id."""
        return {image_id: index for index, image_id in enumerate(self.source.ids)}

    @property
    def passes(self) -> int:
        """Passes through the model of each image, and each mirrored one."""
        return self.options.sampling.draws or 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the features on the disk."""
        return np.dtype(self.options.storage.dtype)

    @cached_property
    def info(self) -> StoreInfo:
        """What the store will say of itself, by which an extraction is told from another."""
        sampling, storage = self.options.sampling, self.options.storage
        identity = self.model.identity()
        return StoreInfo(
            model=identity["model"],
            config=identity["config"],
            weights_sha256=identity["weights_sha256"],
            source=self.source.name,
            source_sha256=self.source.fingerprint(),
            preprocessing=json.dumps(self.preprocessing.to_json(), sort_keys=True),
            z=sampling.z,
            draws=sampling.draws,
            seed=sampling.seed,
            mirror=storage.mirror,
            layers=tuple(
                replace(
                    spec,
                    shape=self.shape(spec, self.model.features[0]),
                    prefix=0 if storage.pool else spec.prefix,
                    class_token=bool(storage.pool) or spec.class_token,
                )
                for spec in self.chosen
            ),
            features=self.features,
            pool=storage.pool,
            dtype=storage.dtype,
            precision=self.options.compute.precision,
            images=storage.images,
            layout=storage.layout,
            batch_size=self.batch_size,
            part=self.part,
        )

    @cached_property
    def described_bytes(self) -> int:
        """The bytes of what the store says of the images.

        Raises:
            StoreError: an id, a split, a label or a factor that no store can hold.
        """
        source, info = self.source, replace(self, batch_size=self.batch_size or 1).info
        return rehearse(
            source.name, info, ids=source.ids, splits=source.splits, labels=source.labels,
            label_names=source.label_names, factors=source.factors,
        )  # fmt: skip

    def shape(self, spec: LayerSpec, feature: str) -> tuple[int, ...]:
        """Return the shape of what is stored of a layer's feature and image."""
        return pooled_shape(spec, self.model.shape(spec, feature), self.options.storage.pool)

    @property
    def keys(self) -> dict[str, tuple[LayerSpec, str]]:
        """The layer and the feature of each array, by its path in the store; layers may share `bottom_up`."""
        pairs = [(spec, feature) for spec in self.chosen for feature in self.features]
        keys: dict[str, tuple[LayerSpec, str]] = {}
        for spec, feature in pairs:
            keys.setdefault(array_key(spec, feature), (spec, feature))
        return keys

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
        pixels = 3 * self.model.stored_side**2 if self.options.storage.images else 0
        passes = self.passes * (2 if self.options.storage.mirror else 1)
        return passes * self.dims * self.dtype.itemsize + pixels

    @property
    def part(self) -> int:
        """Images a part: whole batches, few enough that little is lost and memory stays small."""
        batches = min(PART, PART_BYTES // max(self.row_bytes, 1)) // self.batch_size
        return max(1, batches) * self.batch_size

    def parts(self, folder: Path, generation: int) -> list[tuple[Path, range]]:
        """Return the path of every part, there or not, with the images that it is of."""
        return [
            (partition.part_path(folder, index, generation), images)
            for index, images in enumerate(_cut(range(len(self.source)), self.part))
        ]

    def part_bytes(self, images: int) -> int:
        """Return what a part takes on the disk: whole chunks, and 1 kB that HDF5 wants of an array."""
        rows = [self.passes * width * self.dtype.itemsize for width in self.widths]
        rows.append(4 * len(self.model.layers))  # kl
        rows *= 2 if self.options.storage.mirror else 1
        rows += [
            8,
            8,
            3 * self.model.stored_side**2 if self.options.storage.images else 0,
        ]  # index, checksums, images
        lengths = (chunk_rows(images, row, self.part) for row in rows)
        return sum(
            -(-images // length) * length * row + 2**10
            for length, row in zip(lengths, rows, strict=True)
        )

    def changed(self, ids: Sequence[str], checksums: Sequence[int]) -> list[str]:
        """Return the ids of the images whose checksums are not these; workers read them."""
        found = map_ahead(
            self.source.checksum,
            (self.place[image_id] for image_id in ids),
            workers=self.workers,
            ahead=4 * self.workers,
        )
        pairs = zip(ids, checksums, found, strict=True)
        return [image_id for image_id, before, now in pairs if before != now]

    def read(self, indices: range) -> _Batch:
        """Read and preprocess some images; what cannot be read is an error, or left out."""
        batch = _Batch(count=len(indices))
        for index in indices:
            try:
                with noted_faces() as faces:
                    pixels = read_images(self.reading, self.preprocessing, [index])
                batch.pixels.append(pixels[0])
                batch.indices.append(index)
                batch.faces += [(self.source.ids[index], face) for face in faces]
            except DataError as error:
                if self.options.frame.on_error == "raise":
                    raise
                reason = str(error).replace(SKIP_ADVICE, "")
                batch.skipped.append({"id": self.source.ids[index], "reason": reason})
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
                whole.faces += part.faces
                if whole.count == len(images):
                    yield whole
                    whole = _Batch(count=0)

    def with_noise(self, batches: Generator[_Batch]) -> Generator[_Batch]:
        """Yield batches with the noise of their passes, of which one batch more is being drawn."""
        if self.options.sampling.z == "mean":
            yield from batches
            return
        layers = self.model.layers[: self.chosen[-1].index + 1]
        pin, coming = self.model.device.type == "cuda", None
        with closing(batches), ThreadPoolExecutor(self.workers) as pool:
            for batch in batches:
                for names in self.names(batch):
                    for draw in range(self.passes):
                        noise = seeded_noise(
                            self.options.sampling.seed, names, torch.device("cpu"), draw
                        )
                        batch.noises.append(NoiseAhead(noise, layers, pool, self.workers, pin))
                if coming is not None:
                    yield coming
                coming = batch
            if coming is not None:
                yield coming

    def names(self, batch: _Batch) -> list[list[str]]:
        """Return the ids that draws depend on, of the images and of those mirrored."""
        ids = [self.source.ids[i] for i in batch.indices]
        return (
            [ids, [f"{image_id}\0mirror" for image_id in ids]]
            if self.options.storage.mirror
            else [ids]
        )

    def infer(self, batch: _Batch, copies: HostCopies) -> Callable[[], Arrays]:
        """Start a batch's passes; the function returned waits for them, and gives what is stored by path."""
        device = self.model.device
        pixels = torch.from_numpy(np.stack(batch.pixels))
        inputs = [pixels, pixels.flip(2)] if self.options.storage.mirror else [pixels]
        passes: list[list[Callable[[], Arrays]]] = []
        for images in inputs:
            images = (images.pin_memory() if device.type == "cuda" else images).to(
                device, non_blocking=True
            )
            passes.append([])
            for _ in range(self.passes):
                noise = batch.noises.popleft().on(device) if batch.noises else None
                read = self.model.read(
                    images,
                    self.chosen,
                    self.features,
                    noise=noise,
                    precision=self.options.compute.precision,
                )
                values = {
                    key: read.values[spec.name, feature]
                    for key, (spec, feature) in self.keys.items()
                }
                passes[-1].append(
                    copies.start(values if read.kl is None else values | {"kl": read.kl})
                )

        def arrays() -> Arrays:
            read = [[wait() for wait in draws] for draws in passes]
            indices, images = np.array(batch.indices), pixels.numpy()
            if self.options.frame.on_error == "skip" and (lost := self.rows_not_finite(read)):
                for row, what in lost.items():
                    image_id = self.source.ids[indices[row]]
                    reason = f"{image_id}: {what} holds NaN or infinity"
                    batch.skipped.append({"id": image_id, "reason": reason})
                kept = np.setdiff1d(np.arange(len(indices)), list(lost))
                indices, images = indices[kept], images[kept]
                read = [[{k: v[kept] for k, v in one.items()} for one in draws] for draws in read]
            ids = [self.source.ids[index] for index in indices]
            found: Arrays = {"index": indices, "checksums": self.checksums[indices]}
            if self.options.storage.images:
                found["images"] = shrunk(images, self.model.stored_side)
            for prefix, draws in zip(("", MIRROR), read, strict=False):
                values = self.joined(draws, ids, batch.vanished)
                found |= {prefix + key: value for key, value in values.items()}
            return found

        return arrays

    def rows_not_finite(self, read: Sequence[Sequence[Arrays]]) -> dict[int, str]:
        """Return the rows of a batch that hold a value which is not finite, with the array's name."""
        lost: dict[int, str] = {}
        for key, value in ((k, v) for draws in read for one in draws for k, v in one.items()):
            if not_finite(value) is not None:
                finite = np.isfinite(value).reshape(len(value), -1).all(axis=1)
                for row in np.flatnonzero(~finite):
                    lost.setdefault(int(row), self.name_of(key))
        return dict(sorted(lost.items()))

    def name_of(self, key: str) -> str:
        """Return what people call an array."""
        spec, feature = self.keys.get(key, (None, key))
        return feature if spec is None else f"layer {spec.name}, {feature}"

    def joined(
        self, draws: Sequence[Arrays], ids: Sequence[str], vanished: list[tuple[int, float]]
    ) -> Arrays:
        """Return kl and features as they are stored; of several draws the features on a second axis."""
        passes = [
            {key: self.stored(value, key, ids, vanished) for key, value in one.items()}
            for one in draws
        ]
        if self.options.sampling.draws is None:
            return passes[0]
        stacked = {key: np.stack([p[key] for p in passes], axis=1) for key in passes[0]}
        return stacked | {"kl": stacked["kl"].mean(axis=1)}

    def stored(
        self,
        value: NDArray[np.float32],
        key: str,
        ids: Sequence[str],
        vanished: list[tuple[int, float]],
    ) -> NDArray[Any]:
        """Pool an array and turn it into what the disk keeps; kl stays as it is.

        What becomes 0 in float16 is counted in `vanished`.

        Raises:
            StoreError: a value is not finite, or beyond float16; the layer, feature and image are named.
        """
        spec, _ = self.keys.get(key, (None, key))
        what = self.name_of(key)
        if (row := not_finite(value)) is not None:
            more = (
                ""
                if self.options.compute.precision == "fp32"
                else ', extract with precision="fp32"'
            )
            if key == "kl":
                layer = self.model.layers[int(np.isfinite(value[row]).argmin())]
                what = f"kl of layer {layer.name}"
            found = "infinity, more than float32 holds," if np.isinf(value[row]).any() else "NaN"
            raise StoreError(
                f"{what}: expected finite values, found {found} for image {ids[row]!r}, which may be "
                f"far from what {self.model.name} was trained on; look at the weights{more}{SKIP_ADVICE}"
            )
        if spec is None:
            return value
        pooled = pool_layer(value, self.options.storage.pool, spec.prefix, spec.class_token)
        if self.dtype == np.float32:
            return pooled.astype(np.float32, copy=False)
        with np.errstate(over="ignore"):
            stored = pooled.astype(self.dtype)
        if (row := not_finite(stored)) is not None:
            raise StoreError(
                f"{what}: expected values that float16 holds (below 65,504), "
                f'found {np.abs(pooled[row]).max():g} for image {ids[row]!r}; extract with dtype="float32"'
            )
        if lost := _vanished(pooled, stored):
            vanished.append(lost)
        return stored

    def calibrate(self) -> int:
        """Return the smallest batch size within 5 % of the fastest, timed on the first images."""
        # Four statistics and z of every layer traversed stand in memory at once.
        traversed = self.model.layers[: self.chosen[-1].index + 1]
        bytes_an_image = 5 * 4 * sum(spec.num_dims for spec in traversed)
        most = min(max(BATCH_SIZES), max(1, CALIBRATED_BYTES // bytes_an_image))
        pixels = self.read(range(min(len(self.source), most))).pixels
        copies = HostCopies(self.model.device)
        plain = replace(self.options.storage, mirror=False)
        once = replace(self, options=replace(self.options, sampling=Sampling(), storage=plain))
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
        self,
        folder: Path,
        generation: int,
        rank: int,
        processes: int,
        progress: Callable[[int], object],
    ) -> list[Path]:
        """Write one process's share of the parts, but for those that are whole; returns the paths of all."""
        parts = self.parts(folder, generation)
        missing: list[tuple[Path, range]] = []
        for index, (path, images) in enumerate(parts):
            if index % processes != rank:
                continue
            if partition.is_whole(path, self.info.attributes(), self.source.ids, images):
                progress(len(images))
            else:
                missing.append((path, images))
        batches = self.with_noise(self.batches([images for _, images in missing]))
        with closing(batches):
            for path, images in missing:
                write = partial(self.write, images=images, batches=batches, progress=progress)
                write_aside(path, write, self.part_bytes(len(images)))
        return [path for path, _ in parts]

    def write(
        self,
        file: h5py.File,
        images: range,
        batches: Iterator[_Batch],
        progress: Callable[[int], object],
    ) -> None:
        """Write one part; reading, inferring, copying to the host, and writing overlap."""
        rows: list[int] = []
        skipped: list[dict[str, str]] = []
        vanished: list[tuple[int, float]] = []
        faces: list[tuple[str, AlignedFace]] = []
        copies = HostCopies(self.model.device)
        # Kept open: HDF5 writes and checksums a chunk that is not full each time its data set is closed.
        made: dict[str, h5py.Dataset] = {}
        written: Future[None] | None = None

        def put(batch: _Batch, wait: Callable[[], Arrays] | None) -> None:
            arrays = {} if wait is None else wait()
            for key, value in arrays.items():
                if key not in made:
                    shape = len(images), *value.shape[1:]
                    made[key] = create_array(file, key, shape, value.dtype, self.part)
                made[key][len(rows) : len(rows) + len(value)] = value
            rows.extend(arrays["index"].tolist() if arrays else ())
            skipped.extend(batch.skipped)
            vanished.extend(batch.vanished)
            faces.extend(batch.faces)

        with ThreadPoolExecutor(1) as writer:
            for _ in _cut(images, self.batch_size):
                batch = next(batches)
                wait = self.infer(batch, copies) if batch.indices else None
                if written is not None:
                    written.result()
                written = writer.submit(put, batch, wait)
                progress(batch.count)
            if written is not None:
                written.result()
        lost = [self.place[item["id"]] for item in skipped]
        file.attrs["count"] = len(rows)
        file.attrs["skipped"] = json.dumps(skipped)
        file.attrs["skipped_checksums"] = json.dumps(self.checksums[lost].tolist())
        if faces:
            file.attrs[partition.ALIGNED] = partition.about_faces(faces)
        if vanished:
            file.attrs[partition.VANISHED] = (
                sum(count for count, _ in vanished),
                max(largest for _, largest in vanished),
            )
        file.attrs["rows_sha256"] = partition.rows_sha256(
            self.info.attributes(), [self.source.ids[row] for row in rows], self.checksums[rows]
        )
        made.clear()  # closed, so that nothing is written after the seal
        seal(file)


def _vanished(
    values: NDArray[np.floating[Any]], stored: NDArray[np.float16]
) -> tuple[int, float] | None:
    """Return how many values became 0 in float16, and the largest of them; None where none did."""
    lost = (
        np.left_shift(stored.view(np.uint16), 1) == 0
    )  # bits but for the sign, which are compared fast
    if not lost.any():
        return None
    lost &= values != 0
    count = int(np.count_nonzero(lost))
    return (count, float(np.abs(values[lost]).max())) if count else None


def _cut(images: range, size: int) -> Iterator[range]:
    """Cut a range into ranges of `size`, the last of which may be shorter."""
    return (images[start : start + size] for start in range(0, len(images), size))


def _begun_with(out: Path, claimed: Mapping[str, Any]) -> int | None:
    """Return the batch size of an extraction that is begun or finished, because parts are cut by it."""
    known = (partition.attributes_of(out) if out.exists() else {}) or claimed
    return int(known["batch_size"]) if "batch_size" in known else None


def _check_features(encoder: Encoder, features: Sequence[str], sampling: Sampling) -> None:
    z, draws = sampling.z, sampling.draws
    if not features:
        raise LayerError(
            f"features: expected at least one of {', '.join(encoder.features)}, found none"
        )
    if encoder.features == ("activation",):
        if list(features) != ["activation"] or z != "mean" or draws is not None:
            raise LayerError(f"{encoder.name}: has the feature activation alone, and draws nothing")
        return
    for feature in features:
        if feature not in encoder.features:
            raise LayerError(
                f"{encoder.name}: unknown feature {feature!r}"
                f"{suggestion(str(feature), encoder.features)}; the features are "
                f"{', '.join(encoder.features)}"
            )
    if "z" not in encoder.features and z != "mean":
        raise LayerError(f'{encoder.name}: draws nothing; leave z="sample" out')
    if "z" in features and z == "mean":
        raise LayerError(
            'feature z repeats mean in a mean pass; ask for features="mean" or z="sample"'
        )
    if draws is not None and (draws < 1 or z == "mean" or list(features) != ["z"]):
        raise LayerError(
            f'draws are of the feature z alone: expected 1 draw or more with z="sample", features="z", '
            f"found draws={draws}, z={z!r}, features={list(features)}"
        )


def _size_preview(job: ExtractionJob, out: Path, parts: Path, held: Collection[str]) -> str:
    """Say what will be written, and refuse what the disk cannot hold; a single file is written twice.

    Of the parts that are there, those that are not `held` are gone on with or make room.
    """
    size = len(job.source) * job.row_bytes
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    done = sum(path.stat().st_size for path in parts.glob("part-*") if path.name not in held)
    free, times = shutil.disk_usage(folder).free, 2 if job.options.storage.layout == "single" else 1
    needed = times * size - done
    if needed > free:
        raise StoreError(
            f"{out}: needs {_in_units(needed)} while it is written, found {_in_units(free)} free; "
            "choose fewer layers or another disk"
        )
    what = f"{counted(len(job.source), 'image')} x {job.dims} dimensions ({job.dtype.name})"
    what += f" x {job.passes} draws" if job.options.sampling.draws else ""
    what += ", and mirrored" if job.options.storage.mirror else ""
    averaged = replace(job.options, storage=replace(job.options.storage, pool="avg"))
    pooled = job.dims
    if job.options.storage.pool is None:
        with suppress(LayerError):  # of layers that have no grid to average over
            pooled = sum(replace(job, options=averaged).widths)
    hint = (
        f"; with pool avg {_in_units(size * pooled / job.dims)}" if job.dims > 100 * pooled else ""
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
