"""HDF5 files that others wrote: what in them would make HDF5 read other files, or make up what is missing."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import h5py
import numpy as np

from vdvae_repr.errors import counted

HDF5 = (".h5", ".hdf5", ".hdf")  # endings of such files
MOST_OBJECTS = 100_000
CHUNK_BYTES = 2**29  # of a chunk, which HDF5 reads whole
CACHE_BYTES = 2**28  # of chunks that are kept, at most


def leads_outside(
    file: h5py.File,
    parts: Collection[str] = (),
    *,
    soft_links: bool = False,
    depth: int | None = None,
) -> str:
    """Say what in a file leads HDF5 to read another one, or to no end; empty where nothing does.

    Nothing is opened but what hard links lead to. Where these lead to no other file, no link by a path
    (`soft_links`) does.

    Args:
        file: opened for reading.
        parts: the files, by the names that HDF5 knows them by, that virtual data sets may refer to; `.` is
            the file itself.
        soft_links: whether links by a path are allowed.
        depth: the groups that may lie in one another, each in one alone; None allows any.
    """
    waiting: list[tuple[h5py.Group, str]] = [(file["/"], "")]
    seen = {h5py.h5o.get_info(file["/"].id).addr}
    count = 0
    while waiting:
        group, prefix = waiting.pop()
        if depth is not None and prefix.count("/") >= depth:
            return "it holds groups inside groups"
        for name in group:
            key, count = prefix + name, count + 1
            if count > MOST_OBJECTS:
                return f"it holds more than {MOST_OBJECTS} objects"
            try:
                link = group.get(name, getlink=True)
            except TypeError:  # of a kind that a user's program defines
                link = None
            if soft_links and isinstance(link, h5py.SoftLink):
                continue
            if not isinstance(link, h5py.HardLink):
                return f"{key!r} leads to another file"
            item = group[name]
            if isinstance(item, h5py.Group):
                address = h5py.h5o.get_info(item.id).addr
                if address in seen and depth is not None:
                    return "it holds groups inside groups"
                if address not in seen:
                    seen.add(address)
                    waiting.append((item, f"{key}/"))
            elif isinstance(item, h5py.Dataset):
                if item.external:
                    return f"{key!r} leads to another file, {item.external[0][0]!r}"
                if item.is_virtual:
                    sources = {source.file_name for source in item.virtual_sources()}
                    if strangers := sources.difference(parts):
                        return f"{key!r} leads to another file, {min(strangers)!r}"
    return ""


def missing_values(data: h5py.Dataset) -> str:
    """Say which values HDF5 would make up, as nothing holds them; empty where all are there."""
    if data.size and data.is_virtual:
        covered = 0
        for source in data.virtual_sources():
            held = data.file.get(source.dset_name)
            if not isinstance(held, h5py.Dataset):
                return f"is made up of {source.dset_name!r}, which is not in the file"
            if held.is_virtual or not _holds(held, source):
                return f"is made up of {source.dset_name!r}, which does not hold so much"
            covered += source.vspace.get_select_npoints()
        if covered < data.size:
            return f"has {data.size} values, of which {data.size - covered} are nowhere"
    elif data.size and data.id.get_storage_size() == 0:
        return "holds no values: it was never written"
    return ""


def _holds(data: h5py.Dataset, source: Any) -> bool:
    """Whether a data set has all values that a virtual one takes of it."""
    space = source.src_space
    if space.get_select_type() == h5py.h5s.SEL_ALL:  # of which the file does not keep the shape
        return bool(data.size == source.vspace.get_select_npoints())
    last = space.get_select_bounds()[1]
    return len(last) == data.ndim and all(
        at < side for at, side in zip(last, data.shape, strict=True)
    )


def unwritten_chunks(data: h5py.Dataset) -> int:
    """Return how many chunks were never written, whose values HDF5 makes up, mostly as 0."""
    if data.chunks is None or data.is_virtual:
        return 0
    sides = zip(data.shape, data.chunks, strict=True)
    return math.prod(-(-side // chunk) for side, chunk in sides) - int(data.id.get_num_chunks())


def made_up(data: h5py.Dataset, none: float = math.nan) -> str:
    """Say that chunks were never written, for which HDF5 makes up values; empty where these stand for none.

    Args:
        data: whose values are read.
        none: the number that stands for no value, beside NaN.
    """
    if not (missing := unwritten_chunks(data)):
        return ""
    value, instead = data.fillvalue, ""
    if data.dtype.kind in "fi":
        if value == none or np.isnan(value):
            return ""
        instead = f", with {'NaN' if math.isnan(none) else int(none)} where there is none"
    return (
        f"has {missing} chunks of {data.chunks} that were never written, for which HDF5 makes up "
        f"{np.asarray(value).tolist()!r:.20}; write all of it{instead}"
    )


def marked(data: h5py.Dataset, values: np.ndarray[Any, Any], none: float = math.nan) -> str:
    """Say by which attribute of NetCDF's values are other than they stand; empty where by none.

    Args:
        data: with the attributes.
        values: all that it holds: labels, splits or ids, of which no number is scaled.
        none: the number that stands for no value anyway, beside NaN and the empty text.
    """
    for name, nothing in (("scale_factor", 1), ("add_offset", 0)):
        given = _attribute(data, name)
        if (
            values.dtype.kind in "fiu"
            and given is not None
            and given not in (str(nothing), f"{nothing}.0")
        ):
            return f"holds packed values ({name} {given}); save what they stand for"
    for name in ("_FillValue", "missing_value"):
        mark = _attribute(data, name)
        if mark is None:
            continue
        if values.dtype.kind in "fiu":
            try:
                number = float(mark)
            except ValueError:
                continue
            count = 0 if number == none else int((values == number).sum())
        else:
            texts = (
                v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values.flat
            )
            count = sum(text == mark for text in texts) if mark else 0
        if count:
            return (
                f"holds {counted(count, 'value', 'that is', 'that are')} {mark}, by {name} its mark of "
                "missing ones; leave these out, or write what they are, without that attribute"
            )
    return ""


def open_rows(file: h5py.File, key: str) -> h5py.Dataset:
    """Open a data set of which rows are read in their order.

    HDF5 keeps 1 MiB of chunks, since version 2 of it 8 MiB; where rows share a larger chunk, it would read
    that anew for every row. Here the chunks of two rows are kept, as far as `CACHE_BYTES` allow.
    """
    data = file[key]
    if data.chunks is None or data.is_virtual:
        return data
    across = math.prod(
        -(-side // chunk) for side, chunk in zip(data.shape[1:], data.chunks[1:], strict=True)
    )
    needed = 2 * across * math.prod(data.chunks) * data.dtype.itemsize
    slots, kept, preemption = data.id.get_access_plist().get_chunk_cache()
    if needed <= kept:
        return data
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(max(slots, 16 * across), min(needed, CACHE_BYTES), preemption)
    del data  # as long as it is open, its cache counts
    return h5py.Dataset(h5py.h5d.open(file.id, key.encode(), access))


def other_pixels(data: h5py.Dataset) -> str:
    """Say by which attribute the pixels of an array of images are other than its values; empty where by none.

    Attributes are those of HDF5's Image specification, and of packed values in NetCDF (CF conventions).
    """
    words = {name: _attribute(data, name) for name in ("IMAGE_SUBCLASS", "INTERLACE_MODE")}
    if words["IMAGE_SUBCLASS"] == "IMAGE_INDEXED":
        return "holds numbers of colours (IMAGE_SUBCLASS is IMAGE_INDEXED); save the colours themselves"
    if (mode := words["INTERLACE_MODE"]) in ("INTERLACE_PLANE", "INTERLACE_LINE"):
        axes = "0, 2, 3, 1" if mode == "INTERLACE_PLANE" else "0, 1, 3, 2"
        return (
            f"holds channels one after the other (INTERLACE_MODE is {mode}); save its images as "
            f"transpose({axes}), without that attribute"
        )
    if _attribute(data, "IMAGE_WHITE_IS_ZERO") not in (None, "0", "0.0"):
        return (
            "holds images whose white is 0 (IMAGE_WHITE_IS_ZERO); save white minus its values, "
            "without that attribute"
        )
    packed = {name: _attribute(data, name) for name in ("scale_factor", "add_offset")}
    try:
        scale, offset = float(packed["scale_factor"] or 1), float(packed["add_offset"] or 0)
    except ValueError:
        scale, offset = math.nan, math.nan
    white = np.iinfo(data.dtype).max if data.dtype.kind == "u" else 0
    if offset == 0 and (scale == 1 or math.isclose(scale * white, 1, rel_tol=1e-5)):
        return ""  # black and white are those of the values
    given = ", ".join(f"{name} {value}" for name, value in packed.items() if value is not None)
    return f"holds packed values ({given}); save what they stand for, as uint8 or from 0 to 1"


def unpacked(data: h5py.Dataset) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """Return what numbers stand for by their attributes, and lines about values that stand for none.

    By the CF conventions of NetCDF: values that are `_FillValue` or `missing_value` become NaN, and others
    are `scale_factor` times the value, plus `add_offset`.
    """
    values = np.asarray(data[()])
    numbers = {
        name: found
        for name in ("_FillValue", "missing_value", "scale_factor", "add_offset")
        if name in data.attrs
        and (found := np.ravel(np.asarray(data.attrs[name]))).dtype.kind in "fiu"
        and found.size
    }
    marks = [numbers.pop(name) for name in ("_FillValue", "missing_value") if name in numbers]
    missing = np.zeros(values.shape, bool)
    if marks and values.dtype.kind in "fiu":
        every = np.unique(np.concatenate(marks))
        missing = np.isin(values, every.astype(values.dtype) if values.dtype.kind == "f" else every)
    if not missing.any() and not numbers:
        return values, ()
    if values.dtype.kind != "f":
        values = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    scale, offset = numbers.get("scale_factor", [1])[0], numbers.get("add_offset", [0])[0]
    values = np.where(missing, values.dtype.type(np.nan), values * values.dtype.type(scale))
    values += values.dtype.type(offset)
    if not missing.any():
        return values, ()
    listed = ", ".join(f"{mark:g}" for mark in every.tolist())
    marked_so = counted(int(missing.sum()), "value", "is", "are")
    return values, (f"{marked_so} {listed}, its mark of missing ones, read as NaN",)


def _attribute(data: h5py.Dataset, name: str) -> str | None:
    """Return an attribute of one number or text, as text; None where there is none."""
    if name not in data.attrs:
        return None
    try:
        value = np.ravel(data.attrs[name]).tolist()[0]
    except (IndexError, OSError, TypeError, ValueError):  # empty, or of a type that is not known
        return None
    if isinstance(value, h5py.Empty):
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def dtype_of(data: h5py.Dataset) -> np.dtype[Any] | None:
    """Return the type of a data set's values; None of one that NumPy does not know, as HDF5's times."""
    try:
        return np.dtype(data.dtype)
    except (TypeError, ValueError):
        return None
