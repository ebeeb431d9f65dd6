"""Model and source to a latent store: in parts, each renamed into place, resumed by running again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from vdvae_repr.data.sources import Preprocessing, Source, open_source, read_images
from vdvae_repr.errors import LayerError, StoreError
from vdvae_repr.latents.store import (
    SCHEMA,
    LatentStore,
    create_array,
    describe_images,
    write_aside,
)
from vdvae_repr.model.checkpoint import weights_sha256
from vdvae_repr.model.layers import LayerSpec, select_layers
from vdvae_repr.model.vdvae import VDVAE

FEATURES = ("mean", "log_std", "z", "delta", "prior_mean", "prior_log_std", "kl", "top_down")
PART = 512  # images a part

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
    batch_size: int = 32,
    images: bool = True,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[int], object] = lambda count: None,
) -> LatentStore:
    """Write a store of chosen layers' features; rerun the same call to resume an interrupted one.

    Args:
        model: in eval mode.
        data: whatever `open_source` takes.
        out: the store's path; parts lie in `OUT.parts/` until all are there.
        layers: selector.
        features: of `FEATURES`; `z` needs `z="sample"`.
        z: what each layer sends down: its mean, or a draw seeded by (seed, image id, layer).
        seed: of the draws.
        crop: side of the central square taken before resizing, pixels.
        batch_size: images a forward pass; batches are cut at fixed indices.
        images: keep the preprocessed images, which the controls need.
        overwrite: replace a finished store; without it, one of the same extraction is returned as it is.
        report: receives a line about what will be written.
        progress: receives the number of images done since the last call.

    Raises:
        DataError, LayerError: bad source or selector. StoreError: the output exists, belongs to another
            extraction, does not fit on the disk, or its folder cannot be written.
    """
    out = Path(out)
    source = open_source(data)
    preprocessing = Preprocessing(size=model.config.image_size, crop=crop)
    chosen = select_layers(model.layers, layers)
    _check_features(features, z)
    identity = {
        "schema": SCHEMA,
        "model": model.name,
        "config": model.config.to_json(),
        "weights_sha256": weights_sha256(model),
        "source": source.name,
        "source_sha256": source.fingerprint(),
        "preprocessing": json.dumps(preprocessing.to_json(), sort_keys=True),
        "z": z,
        "seed": seed,
        "layers": json.dumps([spec.to_json() for spec in chosen]),
        "features": json.dumps(list(features)),
        "images": images,
        "batch_size": batch_size,
    }
    if out.exists() and not overwrite:
        store = LatentStore.open(out)
        if different := _differences(store.attrs, identity):
            raise StoreError(
                f"{out}: already holds another extraction ({different}); "
                "choose another --out, or --overwrite"
            )
        report(f"{out}: already complete")
        return store
    parts = out.with_name(out.name + ".parts")
    report(_size_preview(model, chosen, features, source, out, images))
    try:
        parts.mkdir(parents=True, exist_ok=True)
        _claim(parts / "extraction.json", identity)
    except OSError as error:
        raise StoreError(
            f"{out.parent}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    total = len(source)
    files = []
    try:
        for start in range(0, total, PART):
            stop = min(start + PART, total)
            path = parts / f"part-{start // PART:05d}.h5"
            files.append(path)
            if path.exists():
                progress(stop - start)
                continue
            arrays = _compute(
                model, source, preprocessing, chosen, features, z, seed, start, stop,
                batch_size, images, progress,
            )  # fmt: skip
            write_aside(path, partial(_put_all, arrays=arrays))
        write_aside(out, lambda file: _assemble(file, files, identity, source))
    except OSError as error:
        raise StoreError(
            f"{out}: cannot be written ({error}); what is finished stays in {parts.name}, "
            "rerun the same command to resume"
        ) from error
    shutil.rmtree(parts)
    return LatentStore.open(out)


def _check_features(features: Sequence[str], z: str) -> None:
    for feature in features:
        if feature not in FEATURES:
            raise LayerError(f"unknown feature {feature!r}; the features are {', '.join(FEATURES)}")
    if "z" in features and z == "mean":
        raise LayerError(
            "feature z repeats mean in a mean pass; ask for --feature mean or --z sample"
        )


def _size_preview(
    model: VDVAE,
    chosen: Sequence[LayerSpec],
    features: Sequence[str],
    source: Source,
    out: Path,
    images: bool,
) -> str:
    """Say what will be written, and refuse what the disk cannot hold twice (parts and store)."""
    dims = sum(spec.num_dims for spec in chosen) * len(features)
    size = len(source) * (4 * dims + (3 * model.config.image_size**2 if images else 0))
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if 2 * size > free:
        raise StoreError(
            f"{out}: needs {2 * size / 1e9:.1f} GB while it is written, found {free / 1e9:.1f} GB free; "
            "choose fewer layers or another disk"
        )
    return f"{len(source)} images x {dims} dimensions, {size / 1e6:.1f} MB, to {out}"


def _claim(path: Path, identity: dict[str, Any]) -> None:
    """Record what these parts belong to, or refuse parts of another extraction by the difference."""
    if path.exists():
        if different := _differences(json.loads(path.read_text()), identity):
            raise StoreError(
                f"{path.parent}: holds another, unfinished extraction ({different}); "
                "rerun that command, or remove the folder"
            )
        return
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


def _compute(
    model: VDVAE,
    source: Source,
    preprocessing: Preprocessing,
    chosen: Sequence[LayerSpec],
    features: Sequence[str],
    z: Literal["mean", "sample"],
    seed: int,
    start: int,
    stop: int,
    batch_size: int,
    images: bool,
    progress: Callable[[int], object],
) -> Arrays:
    """Read and infer one part; arrays by their path in the store."""
    collected: dict[str, list[NDArray[Any]]] = {}
    selector = [spec.index for spec in chosen]
    for first in range(start, stop, batch_size):
        last = min(first + batch_size, stop)
        pixels = read_images(source, preprocessing, range(first, last))
        read = model.posterior(pixels, selector, z, seed=seed, ids=source.ids[first:last])
        arrays: Arrays = {"kl": read.kl.cpu().numpy()}
        if images:
            arrays["images"] = pixels
        for spec in chosen:
            for feature in features:
                value: torch.Tensor = getattr(read[spec.name], feature)
                arrays[f"layers/{spec.index:03d}/{feature}"] = value.float().cpu().numpy()
        for key, value_array in arrays.items():
            collected.setdefault(key, []).append(value_array)
        progress(last - first)
    return {key: np.concatenate(values) for key, values in collected.items()}


def _put_all(file: h5py.File, arrays: Arrays) -> None:
    for key, value in arrays.items():
        create_array(file, key, value.shape, value.dtype)[:] = value


def _assemble(
    file: h5py.File, parts: Sequence[Path], identity: dict[str, Any], source: Source
) -> None:
    total, start = len(source), 0
    for path in parts:
        with h5py.File(path, "r") as part:
            keys: list[str] = []
            part.visit(keys.append)
            count = 0
            for key in keys:
                data = part[key]
                if isinstance(data, h5py.Dataset):
                    if key not in file:
                        create_array(file, key, (total, *data.shape[1:]), data.dtype)
                    file[key][start : start + len(data)] = data[:]
                    count = len(data)
            start += count
    describe_images(
        file, ids=source.ids, splits=source.splits, labels=source.labels,
        label_names=source.label_names, factors=source.factors, attrs=identity,
    )  # fmt: skip
