"""Parts of an extraction: whose they are, which are whole, and how they become a store."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
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
from vdvae_repr.data.faces import AlignedFace
from vdvae_repr.data.source import Source
from vdvae_repr.errors import DataError, StoreError
from vdvae_repr.latents.format import (
    SEAL,
    StoreInfo,
    arrays_of,
    create_array,
    describe_images,
    refuse_broken_seal,
    refuse_broken_trailer,
    refuse_links,
)
from vdvae_repr.output import aside_of, write_text

VANISHED = "vanished"  # attribute of a part: how many values became 0 in float16, and the largest
ALIGNED = "aligned"  # attribute of a part: JSON of what may surprise of faces that were aligned
BLACK = 0.1  # of an aligned image: from here on it is said what lies beyond the photograph
SHA256 = re.compile(r"[0-9a-f]{64}")
CLAIM = "extraction.json"  # in the folder of parts: the attributes of the store that they belong to
OWN_FILE = re.compile(
    rf"extraction\.(json|part)|{re.escape(aside_of(Path(CLAIM)).name)}|part-\d{{5,}}(-\d+)?\.h5(\.writing)?"
)


def part_path(folder: Path, index: int, generation: int) -> Path:
    """Return the file of a part.

    A virtual store that is to be replaced keeps its parts until the new store is there: the new parts are
    of another generation, which stands in their names.
    """
    return folder / f"part-{index:05d}{f'-{generation}' if generation else ''}.h5"


def refuse_strangers(folder: Path) -> None:
    """Refuse a folder of parts in which somebody keeps something else.

    Raises:
        StoreError: names the first stranger.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StoreError(f"{folder}: is in the way of the parts; move it, or choose another path")
    strangers = sorted(path.name for path in folder.iterdir() if not OWN_FILE.fullmatch(path.name))
    if strangers:
        raise StoreError(
            f"{folder}: expected parts of an extraction, found {strangers[0]!r}; "
            "move that folder, or choose another path"
        )


def attributes_of(out: Path) -> dict[str, Any]:
    """Return what a store says that it is of, even where parts are missing; nothing of what is no store."""
    try:
        refuse_broken_trailer(out)
        with h5py.File(out, "r") as file:
            return StoreInfo.read(file.attrs).attributes()
    except Exception:  # a damaged file may make h5py raise anything
        return {}


def parts_of(out: Path) -> frozenset[str]:
    """Return the names of the files that a store refers to; none of a single file, or of what is no store."""
    return frozenset(name.rpartition("/")[2] for name in part_names(out))


def part_names(out: Path) -> tuple[str, ...]:
    """Return the parts of a store by their paths from its folder, or nothing as in `parts_of`."""
    try:
        refuse_broken_trailer(out)
        with h5py.File(out, "r") as file:
            return tuple(part[0] for part in StoreInfo.read(file.attrs).parts)
    except Exception:  # a damaged file may make h5py raise anything
        return ()


def refuse_parts_of_others(out: Path) -> None:
    """Refuse to touch parts that another store reads, as one that was renamed or copied.

    Raises:
        StoreError: names that store.
    """
    folder = Path(f"{out}.parts")
    if not any(folder.glob("part-*.h5")):
        return
    for path in sorted(out.absolute().parent.iterdir()):
        if path.name.removesuffix(".writing") == out.name or not path.is_file():
            continue
        names = part_names(path) if h5py.is_hdf5(path) else ()
        if any(name.partition("/")[0] == folder.name for name in names):
            instead = "remove that store" if out.exists() else f"call that store {out.name} again"
            raise StoreError(
                f"{folder}: holds the parts of {path.name}, which would be lost; choose another path, "
                f"or {instead}"
            )


def keep_parts(folder: Path, names: Collection[str]) -> None:
    """Remove all parts but those named; what is being written is left to who writes it."""
    for path in folder.glob("part-*.h5"):
        if path.name not in names and OWN_FILE.fullmatch(path.name):
            path.unlink()


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
    """Record what the parts beside `path` belong to, in place of what they belonged to."""
    write_text(path, json.dumps(identity, allow_nan=False))


def read_claim(path: Path) -> dict[str, Any]:
    """Return what parts belong to; nothing where there is no claim, or no JSON, as after a power cut."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name in words what differs first between two extractions, with both values; empty where nothing does.

    Of another model it is its name alone, from which its configuration and weights follow.

    Examples:
        >>> differences({"z": "mean", "part": 512}, {"z": "sample", "part": 448})
        "z was 'mean', is 'sample'"
    """
    changed = [name for name, value in now.items() if before.get(name) != value]
    if "model" in changed and "model" in before:
        changed = ["model"]
    told = [line for name in changed for line in _difference(name, before.get(name), now[name])]
    told = told or [f"{name} differs" for name in changed[:1]]
    more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
    return "; ".join(told[:3]) + more


def _difference(name: str, before: Any, now: Any) -> list[str]:
    """Say how an attribute of two extractions differs; nothing where that follows from another one."""
    if name == "part":
        return []
    old, new = _parsed(before), _parsed(now)
    if name == "layers" and isinstance(old, list) and isinstance(new, list):
        names, others = ([str(dict(layer).get("name")) for layer in some] for some in (old, new))
        if names == others:  # their shapes differ, as by a pool
            return []
        called = [_first_to_last(names), _first_to_last(others)]
        if called[0] == called[1]:  # as many, from the same to the same
            pair = (names, others), (others, names)
            called = [_first_to_last([n for n in a if n not in b]) or "fewer" for a, b in pair]
        return [f"layers were {called[0]}, are {called[1]}"]
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return [_was_and_is(key, old.get(key), new.get(key)) for key in keys]
    if isinstance(old, list) and isinstance(new, list):
        return [f"{name} was {', '.join(map(str, old))}, is {', '.join(map(str, new))}"]
    return [_was_and_is(name, str(before), str(now))]


def _was_and_is(name: str, before: Any, now: Any) -> str:
    """Say what a value was and is; of long ones, as paths, what stands around the first difference."""
    texts = [value if isinstance(value, str) else repr(value) for value in (before, now)]
    alike = (a == b for a, b in zip(*texts, strict=False))
    start = max(0, len(list(takewhile(bool, alike))) - 15)
    width = 8 if any(map(SHA256.fullmatch, texts)) else 36
    excerpts = [_excerpt(text, start, width) for text in texts]
    was, is_now = (
        repr(excerpt) if isinstance(value, str) else excerpt
        for value, excerpt in zip((before, now), excerpts, strict=True)
    )
    return f"{name} was {was}, is {is_now}"


def _parsed(value: Any) -> Any:
    """Return what an attribute says in JSON, or the attribute itself where it is none."""
    try:
        return json.loads(value)
    except (ValueError, TypeError, RecursionError):
        return value


def _first_to_last(names: Sequence[str]) -> str:
    """Name layers, of more than four the number and the ends: `20 (1x1.0 to 32x32.1)`."""
    if len(names) <= 4:
        return ", ".join(names)
    return f"{len(names)} ({names[0]} to {names[-1]})"


def _excerpt(text: str, start: int, width: int) -> str:
    head, tail = ("..." if start else ""), ("..." if len(text) > start + width else "")
    return head + text[start : start + width] + tail


def is_whole(
    path: Path,
    identity: Mapping[str, Any] | None = None,
    ids: Sequence[str] = (),
    images: range = range(0),
) -> bool:
    """Whether a part is there with every checksum right; one that is not will be made again.

    Args:
        path: of the part.
        identity: what it must belong to; not looked at if not given.
        ids: of the source.
        images: the rows of the source that it must be of.
    """
    if not path.exists():
        return False
    try:
        refuse_broken_trailer(path)
        with h5py.File(path, "r") as part:
            refuse_links(path, part, ())
            refuse_broken_seal(path, part)
            for key in arrays_of(part):
                part[key][:]
            if identity is not None:
                count = int(part.attrs["count"])
                rows = part["index"][:count].tolist() if count else []
                if count + len(json.loads(part.attrs["skipped"])) != len(images):
                    return False
                sums = part["checksums"][:count] if count else np.zeros(0, np.uint64)
                own = rows_sha256(identity, [ids[row] for row in rows if row in images], sums)
                if own != part.attrs["rows_sha256"]:
                    return False
            return SEAL in part.attrs
    except Exception:  # a damaged file may make h5py raise anything
        return False


def rows_sha256(
    identity: Mapping[str, Any], ids: Sequence[str], checksums: NDArray[np.uint64]
) -> str:
    """Return what a part is known by: of which extraction it is, and of which images in which state."""
    digest = hashlib.sha256(json.dumps([dict(identity), list(ids)], sort_keys=True).encode())
    digest.update(checksums.astype("<u8").tobytes())
    return digest.hexdigest()


def recorded(path: Path, ids: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the ids of a part's images, those left out too, and their checksums.

    Args:
        path: of a part that is whole.
        ids: of the source.
    """
    with h5py.File(path, "r") as part:
        count = int(part.attrs["count"])
        kept = [ids[row] for row in part["index"][:count]] if count else []
        sums = part["checksums"][:count].tolist() if count else []
        skipped = [item["id"] for item in json.loads(part.attrs["skipped"])]
        return kept + skipped, sums + json.loads(part.attrs["skipped_checksums"])


def refuse_skipped(paths: Sequence[Path], on_error: str) -> None:
    """Refuse parts or a store of an earlier run that left images out, where this one is to raise."""
    if on_error == "skip":
        return
    for path in paths:
        with h5py.File(path, "r") as part:
            for item in json.loads(part.attrs["skipped"]):
                raise DataError(
                    f'{item["reason"]}; it was left out by on_error="skip": rerun '
                    "with it, or overwrite=True"
                )


def vanished(paths: Sequence[Path]) -> tuple[int, float]:
    """Return how many values of all parts became 0 in float16, and the largest of them."""
    count, largest = 0, 0.0
    for path in paths:
        with h5py.File(path, "r") as part:
            if VANISHED in part.attrs:
                found = part.attrs[VANISHED]
                count, largest = count + int(found[0]), max(largest, float(found[1]))
    return count, largest


def about_faces(noted: Sequence[tuple[str, AlignedFace]]) -> str:
    """Return what a part keeps of faces that were aligned, by the images' ids: JSON that `aligned` reads."""
    several = [image_id for image_id, face in noted if face.faces > 1]
    beyond = [image_id for image_id, face in noted if face.beyond > BLACK]
    about = {
        "images": len(noted),
        "several": len(several),
        "beyond": len(beyond),
        "most": max((face.beyond for _, face in noted), default=0.0),
        "first": [several[:1], beyond[:1]],
    }
    return json.dumps(about)


def aligned(paths: Sequence[Path]) -> list[str]:
    """Return lines on the images of all parts that hold several faces, or much beyond the photograph."""
    parts = []
    for path in paths:
        with h5py.File(path, "r") as part:
            if ALIGNED in part.attrs:
                parts.append(json.loads(part.attrs[ALIGNED]))
    images, several, beyond = (
        sum(part[name] for part in parts) for name in ("images", "several", "beyond")
    )
    lines = []
    if several:
        first = next(part["first"][0][0] for part in parts if part["several"])
        lines.append(
            f"align: {several} of {images} images hold several faces, as {first!r}; the most central of the "
            "large ones is taken"
        )
    if beyond:
        first = next(part["first"][1][0] for part in parts if part["beyond"])
        most = max(part["most"] for part in parts)
        lines.append(
            f"align: {beyond} of {images} images lie beyond their photograph, and are black, on more than "
            f"{BLACK:.0%} of their area ({most:.0%} at most), as {first!r}; faces that are cut out already "
            "need no align"
        )
    return lines


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
    checksums_of: list[NDArray[np.uint64]] = []
    shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    skipped: list[dict[str, str]] = []
    skipped_checksums: list[int] = []
    known: list[str] = []
    for path in parts:
        with h5py.File(path, "r") as part:
            count = int(part.attrs["count"])
            rows_of.append(part["index"][:count] if count else np.zeros(0, np.intp))
            checksums_of.append(part["checksums"][:count] if count else np.zeros(0, np.uint64))
            skipped += json.loads(part.attrs["skipped"])
            skipped_checksums += json.loads(part.attrs["skipped_checksums"])
            known.append(part.attrs["rows_sha256"])
            for key in arrays_of(part) if count else ():
                shapes[key] = part[key].shape[1:], part[key].dtype
    rows = np.concatenate(rows_of)
    if not len(rows):
        raise DataError(
            f"{source.name}: none of {len(source)} images can be read: {skipped[0]['reason']}"
        )
    del shapes["index"], shapes["checksums"]
    edges = np.cumsum([0, *map(len, rows_of)])
    virtual = info.layout == "virtual"
    layouts = {
        key: h5py.VirtualLayout((len(rows), *shape), dtype)
        for key, (shape, dtype) in shapes.items()
    }
    info = replace(info, skipped=tuple(skipped), skipped_checksums=tuple(skipped_checksums))
    if virtual:
        pieces = [
            (f"{path.parent.name}/{path.name}", path.stat().st_size, len(own), sha)
            for path, own, sha in zip(parts, rows_of, known, strict=True)
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
        checksums=(source.checksums_are_of, np.concatenate(checksums_of)),
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


@contextmanager
def _together() -> Iterator[None]:
    """Turn what is raised where another process has stopped, as gloo's closed connection, into one line."""
    try:
        yield
    except RuntimeError as error:
        raise StoreError(
            f"process {dist.get_rank()} of {dist.get_world_size()}: another one stopped; its line says why"
        ) from error


def wait_for_all(processes: int) -> None:
    """Wait until every process has come here.

    Raises:
        StoreError: another process has stopped.
    """
    if processes > 1:
        with _together():
            dist.barrier()


def from_the_first(value: dict[str, Any] | None, processes: int) -> dict[str, Any] | None:
    """Return the first process's value in every one.

    Raises:
        StoreError: another process has stopped.
    """
    shared = [value]
    if processes > 1:
        with _together():
            dist.broadcast_object_list(shared, 0)
    return shared[0]
