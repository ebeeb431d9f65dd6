"""Parts of an extraction: whose they are, which are whole, and how they become a store."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from vdvae_repr import lock
from vdvae_repr.data.source import Source
from vdvae_repr.errors import DataError, StoreError
from vdvae_repr.latents.format import StoreInfo, arrays_of, create_array, describe_images

CLAIM = "extraction.json"  # in the folder of parts: the attributes of the store that they belong to
OWN_FILE = re.compile(r"extraction\.(json|part)|part-\d{5,}\.h5(\.writing)?")


def refuse_strangers(folder: Path) -> None:
    """Refuse a folder of parts in which somebody keeps something else.

    Raises:
        StoreError: names the first stranger.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StoreError(f"{folder}: is in the way of the parts; move it, or choose another --out")
    strangers = sorted(path.name for path in folder.iterdir() if not OWN_FILE.fullmatch(path.name))
    if strangers:
        raise StoreError(
            f"{folder}: expected parts of an extraction, found {strangers[0]!r}; "
            "move that folder, or choose another --out"
        )


def remove_parts(folder: Path) -> None:
    """Remove parts, and their folder where it holds nothing else."""
    if not folder.is_dir():
        return
    # The claim goes last: parts without one are nobody's.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == CLAIM):
        if OWN_FILE.fullmatch(path.name):
            path.unlink()
    if not folder.is_symlink():
        with suppress(OSError):
            folder.rmdir()


def remove_if_nothing_is_done(folder: Path) -> None:
    """Remove the claim of an extraction that failed before a part was begun, so that it blocks no other."""
    if folder.is_dir() and [path.name for path in folder.iterdir()] == [CLAIM]:
        remove_parts(folder)


def claim(path: Path, identity: Mapping[str, Any]) -> None:
    """Record what these parts belong to.

    Raises:
        StoreError: they belong to another extraction; the first differences are named.
    """
    if path.exists():
        if different := differences(read_claim(path), identity):
            raise StoreError(
                f"{path.parent}: holds another, unfinished extraction ({different}); "
                "rerun that command, or discard it with --overwrite"
            )
        return
    for part in path.parent.glob("part-*"):  # whose they are is not known any more
        part.unlink()
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(identity, allow_nan=False))
    aside.replace(path)


def read_claim(path: Path) -> dict[str, Any]:
    """Return what parts belong to; nothing where the file is no JSON, as after a power cut."""
    try:
        return dict(json.loads(path.read_text()))
    except ValueError:
        return {}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name what differs first between two extractions, with both values; empty where nothing does."""
    changed = [(name, value) for name, value in now.items() if before.get(name) != value]
    named = []
    for name, value in changed[:3]:
        old, new = str(before.get(name)), str(value)
        # Of long values, as layers, what stands around the first difference.
        alike = (a == b for a, b in zip(old, new, strict=False))
        start = max(0, len(list(takewhile(bool, alike))) - 15)
        width = 8 if name.endswith("sha256") else 36
        old, new = (_excerpt(text, start, width) for text in (old, new))
        named.append(f"{name} was {old!r}, is {new!r}")
    more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
    return "; ".join(named) + more


def _excerpt(text: str, start: int, width: int) -> str:
    head, tail = ("..." if start else ""), ("..." if len(text) > start + width else "")
    return head + text[start : start + width] + tail


def is_whole(path: Path) -> bool:
    """Whether a part is there with every checksum right; one that is damaged will be made again."""
    if not path.exists():
        return False
    try:
        with h5py.File(path, "r") as part:
            for key in arrays_of(part):
                part[key][:]
            return "count" in part.attrs
    except (OSError, RuntimeError, KeyError):
        return False


def refuse_skipped(paths: Sequence[Path], on_error: str) -> None:
    """Refuse parts or a store of an earlier run that left images out, where this one is to raise."""
    if on_error == "skip":
        return
    for path in paths:
        with h5py.File(path, "r") as part:
            for item in json.loads(part.attrs["skipped"]):
                raise DataError(
                    f"{item['reason']}; it was left out by --on-error skip: rerun with it, or --overwrite"
                )


def assemble(file: h5py.File, parts: Sequence[Path], info: StoreInfo, source: Source) -> None:
    """Join parts into a store, or refer to them; one is open at a time.

    Args:
        file: the store, empty.
        parts: in order.
        info: what the store says of itself.
        source: of the images.

    Raises:
        DataError: no image could be read.
    """
    rows_of: list[NDArray[np.intp]] = []
    shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    skipped: list[dict[str, str]] = []
    for path in parts:
        with h5py.File(path, "r") as part:
            count = int(part.attrs["count"])
            rows_of.append(part["index"][:count] if count else np.zeros(0, np.intp))
            skipped += json.loads(part.attrs["skipped"])
            for key in arrays_of(part) if count else ():
                shapes[key] = part[key].shape[1:], part[key].dtype
    rows = np.concatenate(rows_of)
    if not len(rows):
        raise DataError(
            f"{source.name}: none of {len(source)} images can be read: {skipped[0]['reason']}"
        )
    del shapes["index"]
    edges = np.cumsum([0, *map(len, rows_of)])
    virtual = info.layout == "virtual"
    layouts = {
        key: h5py.VirtualLayout((len(rows), *shape), dtype)
        for key, (shape, dtype) in shapes.items()
    }
    info = replace(info, skipped=tuple(skipped))
    if virtual:
        pieces = [
            (f"{path.parent.name}/{path.name}", path.stat().st_size, len(own))
            for path, own in zip(parts, rows_of, strict=True)
        ]
        info = replace(info, parts=tuple(pieces))
    else:
        for key, (shape, dtype) in shapes.items():
            create_array(file, key, (len(rows), *shape), dtype, info.part)
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
        file,
        info,
        ids=[source.ids[i] for i in rows],
        splits=[source.splits[i] for i in rows],
        labels=source.labels[rows],
        label_names=source.label_names,
        factors={name: values[rows] for name, values in source.factors.items()},
    )


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


def locked(path: Path) -> AbstractContextManager[None]:
    """Hold a store's lock, which dies with its process.

    Raises:
        StoreError: another process holds it, or another file has its name.
    """
    busy = f"{path.with_suffix('')}: another process is writing this store"
    return lock.locked(path, busy, StoreError)


def join_processes() -> tuple[int, int]:
    """Return rank and number of processes under torchrun, which are joined here; else 0 and 1."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=7))  # parts differ in what they cost
    return dist.get_rank(), dist.get_world_size()


def wait_for_all(processes: int) -> None:
    """Wait until every process has come here."""
    if processes > 1:
        dist.barrier()


def from_the_first(value: dict[str, Any] | None, processes: int) -> dict[str, Any] | None:
    """Return the first process's value in every one."""
    shared = [value]
    if processes > 1:
        dist.broadcast_object_list(shared, 0)
    return shared[0]
