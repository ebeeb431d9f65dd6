"""Predictions made by other tools, as stores that can be decoded."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vdvae_repr.config import hidden_by_mask, path_of, true_or_false, with_hints
from vdvae_repr.data.kinds import why_unreadable
from vdvae_repr.data.names import readable
from vdvae_repr.data.readers.arrays import (
    map_npy,
    npz_members,
    read_member,
    read_npy_header,
)
from vdvae_repr.errors import DataError, StoreError, printable
from vdvae_repr.latents import parts as partition
from vdvae_repr.latents.base import list_of_ids
from vdvae_repr.latents.export import DESCRIPTION, DIGEST, UNREADABLE
from vdvae_repr.latents.format import (
    IMAGE_BYTES,
    PREDICTED,
    StoreInfo,
    create_array,
    describe_images,
    linked_to,
    parts_folder,
    refuse_target,
    write_aside,
)
from vdvae_repr.latents.store import LatentStore
from vdvae_repr.model.layers import LayerSpec, select_layers, split_selector
from vdvae_repr.output import expect_writable

ABOUT = (  # what an export says of its latents
    "labels", "label_names", "layers", "shapes", "columns", "feature", "pool", "model", "weights_sha256",
)  # fmt: skip
ZIP_SIGNATURE = b"PK\3\4"
ROWS = 256  # of a matrix, read and written at once


@dataclass(frozen=True)
class _Matrix:
    """A matrix of predictions, whose shape is known before it takes memory."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    values: Callable[[], NDArray[Any]]
    ids: list[str] | None = None
    says: dict[str, list[str]] = field(default_factory=dict)
    """What the file says of itself, by the names in `ABOUT`."""

    @classmethod
    def of(cls, name: str, array: NDArray[Any], *about: Any) -> _Matrix:
        """Describe an array in memory, or mapped."""
        return cls(name, array.shape, array.dtype, lambda: array, *about)


@with_hints
def import_latents(
    matrix: str | Path | NDArray[Any],
    like: LatentStore,
    out: str | Path,
    layers: str | int | Sequence[str | int] = "all",
    *,
    ids: Sequence[str] | None = None,
    split: str | None = None,
    overwrite: bool = False,
) -> LatentStore:
    """Write a store of predicted latents (N, D), under the ids and layer shapes of an existing store.

    Args:
        matrix: an array, or a .npy or .npz file (`latents`, and `ids` where it has them).
        like: the store whose layers, labels, splits and weights the prediction is of.
        out: the new store; its feature is `z` where `like` has one, else `mean`.
        layers: selector of the layers that the columns are of, which stand in the model's order.
        ids: of the rows; if not given, those of the file, else those of the split.
        split: the split of `like` that the rows are of; all images without one.
        overwrite: replace a store, never another file, `like` or the file of `matrix`.

    Raises:
        StoreError: wrong shape, other than numbers, NaN or infinity (the layer and row are named), an id
            twice or unknown, a matrix saved over an export, whose .json is still beside it, labels of
            the file that are not those of `like`, layers in another order.
    """
    if not isinstance(like, LatentStore):
        raise StoreError(f"like: expected an open store, found {like!r:.80}; vr.open opens one")

    def refuse() -> Path:
        file = matrix if isinstance(matrix, str | Path) else None
        return expect_place(out, like, file, overwrite=overwrite)

    out = refuse()
    if isinstance(matrix, str | Path):
        predicted = _read_matrix(path_of("matrix", matrix), named=ids is not None)
    elif isinstance(getattr(matrix, "dtype", None), np.dtype):
        predicted = _Matrix.of("matrix", matrix)
    else:
        raise StoreError(
            f"matrix: expected a NumPy array, or the name of a .npy or .npz file, found {matrix!r:.80}"
        )
    name, about = predicted.name, predicted.says
    ids = predicted.ids if ids is None else ids
    if why := hidden_by_mask(matrix, "numbers", "matrix"):
        raise StoreError(f"{name}: {why}")
    if predicted.dtype.kind not in "fiu":
        raise StoreError(f"{name}: expected real numbers, found {predicted.dtype}")
    chosen = select_layers(like.layers, layers)
    _refuse_another_order(like, layers, chosen)
    of_split = [like.ids[row] for row in like.rows(split)]
    named = of_split if ids is None else list_of_ids(ids)
    width = sum(spec.num_dims for spec in chosen)
    if not named:
        raise StoreError(f"{name}: expected a row of one image at least, found no ids")
    if predicted.shape != (len(named), width):
        raise StoreError(
            f"{name}: expected {len(named)} rows x {width} columns, {len(chosen)} layers of "
            f"{like.path.name}, found {' x '.join(map(str, predicted.shape))}; "
            + (
                "choose layers"
                if ids is not None
                else "choose layers, give ids (.npz), or choose a split"
            )
        )
    place = {image_id: row for row, image_id in enumerate(like.ids)}
    if len(set(named)) < len(named):
        seen: set[str] = set()
        twice = next(i for i in named if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise StoreError(f"{name}: expected every id once, found {twice!r} twice")
    if unknown := set(named) - set(of_split):
        where = like.path if split is None else f"split {split} of {like.path}"
        raise StoreError(f"{name}: id {min(unknown)!r} is not one of {where}")
    rows = np.array([place[image_id] for image_id in named])
    feature = next((name for name in ("z", "mean") if name in like.features), None)
    if feature is None:
        raise StoreError(
            f"{like.path}: expected feature z or mean, which can be decoded, found neither"
        )

    weights = about.get("weights_sha256", [like.info.weights_sha256])
    model = about.get("model", [like.info.model]) if "weights_sha256" not in about else []
    if weights != [like.info.weights_sha256] or model not in ([], [like.info.model]):
        raise StoreError(
            f"{name}: says that it holds latents of {_few(about.get('model', ['a model']))}, weights "
            f"{_few(weights)[:8]}, expected those of {like.path}, {like.info.model}, weights "
            f"{like.info.weights_sha256[:8]}; give as like a store of that model"
        )
    ends = np.cumsum([spec.num_dims for spec in chosen])
    expected: dict[str, list[str]] = {
        "layers": [spec.name for spec in chosen],
        "feature": [feature],
        "pool": [like.info.pool or "none"],
        "shapes": [str(side) for spec in chosen for side in spec.shape],
        "columns": [str(end) for end in ends],
    }
    for what, words in expected.items():
        # A pool of JSON's null is none.
        allowed = [words, ["None"]] if what == "pool" else [words]
        if about.get(what, words) not in allowed:
            raise StoreError(
                f"{name}: says that it holds {what} {_few(about[what])}, expected {_few(words)}; "
                "choose layers, or save the predictions alone, as latents and ids"
            )

    if "labels" in about:
        _refuse_other_labels(name, like, rows, about["labels"], about.get("label_names"))

    try:
        values = predicted.values()
    except UNREADABLE as error:
        raise _unreadable(name, error) from error

    def write(file: h5py.File) -> None:
        columns = np.cumsum([0, *(spec.num_dims for spec in chosen)])
        for spec, first, last in zip(chosen, columns[:-1], columns[1:], strict=True):
            key = f"layers/{spec.index:03d}/{feature}"
            data = create_array(file, key, (len(rows), *spec.shape), np.float32)
            for start in range(0, len(rows), ROWS):
                with np.errstate(over="ignore"):  # becomes infinity, and is refused
                    part = np.asarray(values[start : start + ROWS, first:last], np.float32)
                if not np.isfinite(part).all():
                    row = start + int(np.argwhere(~np.isfinite(part))[0, 0])
                    raise StoreError(
                        f"{name}: expected finite numbers, found NaN or infinity in layer {spec.name}, "
                        f"row {row} ({named[row]})"
                    )
                data[start : start + len(part)] = part.reshape(len(part), *spec.shape)
        info = StoreInfo(
            model=like.info.model, config=like.info.config, weights_sha256=like.info.weights_sha256,
            preprocessing=like.info.preprocessing, z=like.info.z, seed=like.info.seed,
            pool=like.info.pool,
            source=f"{PREDICTED}{readable(Path(name).name)}, like {readable(like.path.name)}",
            layers=chosen, features=(feature,),
        )  # fmt: skip
        known = like.checksums
        describe_images(
            file, info, ids=named, splits=[like.splits[row] for row in rows], labels=like.labels[rows],
            label_names=like.label_names, factors={},
            checksums=None if known is None else (known[0], known[1][rows]),
        )  # fmt: skip

    try:
        with partition.locked(Path(f"{out}.lock")):
            refuse()  # once more: another process may have written it meanwhile
            replaces = out.exists()
            if replaces:
                partition.refuse_parts_of_others(out)
            size = (4 * width + IMAGE_BYTES) * len(rows)
            write_aside(out, write, size, check=LatentStore.check_written)
            if replaces:  # what a virtual store referred to, or was to refer to
                partition.remove_parts(parts_folder(out))
    except OSError as error:
        raise _unwritable(out, error) from error
    return LatentStore.open(out)


def expect_place(
    out: str | Path, like: LatentStore, matrix: str | Path | None = None, *, overwrite: bool = False
) -> Path:
    """Return where a store of predictions goes; refuse what is in the way, before they take time.

    Args:
        out: the new store.
        like: the store that it is made from, which is never replaced.
        matrix: the file of the predictions, which is not either.
        overwrite: replace another store.

    Raises:
        StoreError: as `import_latents`, of `out` alone.
    """
    out = linked_to(path_of("out", out))
    overwrite = true_or_false("overwrite", overwrite)
    refuse_target(out, [like.path, *([] if matrix is None else [path_of("matrix", matrix)])])
    if out.exists() and not overwrite:
        raise StoreError(f"{out}: exists already; choose another path, or overwrite=True")
    try:
        expect_writable(out)
    except OSError as error:
        raise _unwritable(out, error) from error
    return out


def _unwritable(out: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{out}: cannot be written ({error.strerror or error}); make room or choose another place"
    )


def _refuse_another_order(
    like: LatentStore, layers: str | int | Sequence[str | int], chosen: Sequence[LayerSpec]
) -> None:
    """Refuse layers that are named in another order than that of columns, as `matrix` makes them."""
    named = [spec for item in split_selector(layers) for spec in select_layers(like.layers, item)]
    if list(dict.fromkeys(named)) != list(chosen):
        raise StoreError(
            f"layers: expected them in the order of the columns, which is the model's, "
            f"{_few([spec.name for spec in chosen])}, found {named[0].name} first; order columns and names so"
        )


def _refuse_other_labels(
    name: str,
    like: LatentStore,
    rows: NDArray[np.intp],
    labels: Sequence[str],
    names: Sequence[str] | None,
) -> None:
    """Refuse labels of a file that contradict those of the rows: then its rows are other images.

    They are numbers into the file's own names, or where it has none, numbers or names of the store's.
    """
    if len(labels) != len(rows):
        raise StoreError(f"{name}: expected {len(rows)} labels, found {len(labels)}")
    known = like.label_names
    for row, label in zip(rows.tolist(), labels, strict=True):
        number = int(like.labels[row])
        own = known[number] if 0 <= number < len(known) else None
        if names and label.isdecimal():
            alike = int(label) < len(names) and names[int(label)] == own
        else:
            alike = label in (str(number), own)
        if not alike:
            found = f"{own!r} ({number})" if own is not None else "no label"
            raise StoreError(
                f"{name}: its labels are not those of its rows: {label!r} of {like.ids[row]!r}, which "
                f"{like.path.name} says is {found}; give ids, or save it without labels"
            )


def _few(names: Sequence[str]) -> str:
    return f"{names[0]} .. {names[-1]}" if len(names) > 1 else "".join(names) or "none"


def _unreadable(name: str | Path, error: Exception) -> StoreError:
    """Return what to raise where reading a file raised one of `UNREADABLE`."""
    if isinstance(error, DataError) and str(error).startswith(printable(str(name))):
        return StoreError(str(error))
    return StoreError(
        f"{name}: expected a .npy or .npz file of numbers ({why_unreadable(Path(name), error)})"
    )


def _read_matrix(path: Path, named: bool) -> _Matrix:
    """Return what a file holds; of the matrix in a .npz the header alone, until its values are asked for.

    Where the rows are `named` by whoever imports them, a .json of another matrix counts for nothing.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(len(ZIP_SIGNATURE)) == ZIP_SIGNATURE
        if not zipped:
            array = map_npy(path)
            return _Matrix.of(str(path), array, *_exported_beside(path, array.shape, named))
        with zipfile.ZipFile(path) as archive:
            members = npz_members(path, archive)
            if "latents" not in members:
                raise StoreError(f"{path}: expected an array 'latents', found {list(members)}")
            if unknown := members.keys() - {"latents", *DESCRIPTION, DIGEST}:
                raise StoreError(
                    f"{path}: expected arrays latents and ids, or those of an export, found "
                    f"{min(unknown)!r}, which nothing reads; save them without it"
                )
            with archive.open(members["latents"]) as member:
                shape, _, dtype = read_npy_header(member)
            about = {
                key: _texts(read_member(path, archive, members[key], whole=True).tolist())
                for key in ("ids", *ABOUT)
                if key in members
            }
    except UNREADABLE as error:
        raise _unreadable(path, error) from error

    def values() -> NDArray[Any]:
        with zipfile.ZipFile(path) as archive:
            return read_member(path, archive, members["latents"], whole=True)

    return _Matrix(str(path), shape, dtype, values, about.pop("ids", None), about)


def _exported_beside(
    path: Path, shape: tuple[int, ...], named: bool
) -> tuple[list[str] | None, dict[str, list[str]]]:
    """Return what an export's .json says of the .npy beside it; nothing where it is of another matrix.

    Raises:
        StoreError: it is of another matrix of this shape, and the rows are not named otherwise.
    """
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        ids = [str(image_id) for image_id in about["ids"]]
        if shape != (len(ids), about["columns"][-1]):
            return None, {}
        digest = about.get(DIGEST)
        says = {key: _texts(about[key]) for key in ABOUT if key in about}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, {}
    if digest is not None:
        with path.open("rb") as file:
            changed = hashlib.file_digest(file, "sha256").hexdigest() != digest
        if changed and named:
            return None, {}
        if changed:
            raise StoreError(
                f"{path}: was saved over an export, so that {path.with_suffix('.json').name} beside it says "
                "whose another matrix is; remove that, or give ids"
            )
    return ids, says


def _texts(value: Any) -> list[str]:
    """Return the texts of a value, of a list in a list too, of which shapes may be of several lengths."""
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)]
