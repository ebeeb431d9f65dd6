"""One flat matrix of a store's layers, for other tools."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vdvae_repr.config import path_of
from vdvae_repr.data.open import warn
from vdvae_repr.data.readers.arrays import read_member
from vdvae_repr.errors import DataError, StoreError
from vdvae_repr.latents.base import Latents
from vdvae_repr.latents.format import linked_to, not_finite
from vdvae_repr.latents.pooling import about_pool
from vdvae_repr.output import aside_of, replacing

DESCRIPTION = (  # what an export says of its matrix
    "ids", "labels", "label_names", "layers", "shapes", "columns", "feature", "pool", "model",
    "weights_sha256",
)  # fmt: skip
UNREADABLE = (
    DataError,
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What a damaged .npy or .npz file may make NumPy and zipfile raise."""
DIGEST = "sha256"
"""Of the .npy, or of the other members of the .npz: by it an earlier export is known."""


def export(
    store: Latents,
    out: str | Path,
    layers: str | int | Sequence[str | int] = "all",
    *,
    feature: str | None = None,
    pool: str | None = None,
    split: str | None = None,
) -> tuple[int, int]:
    """Write one flat float32 matrix (N, D), layers side by side in order, and what its columns are.

    `OUT.npz` holds `latents`, `ids`, `labels`, `label_names` (of 0, 1, ..., as each store numbers its own),
    and of each layer `layers` (name), `shapes` and `columns` (its last column + 1); beside `OUT.npy` the same
    stands in `OUT.json`. Memory stays small. The feature is `mean` if not given, or the first where that is
    not stored.

    Returns:
        the matrix's shape.

    What lies at `out` is replaced only if an earlier export wrote it, and nobody changed it since: it carries
    a digest of itself.

    Raises:
        StoreError: another suffix, another file at `out`, values that are not finite (the layer and image are
            named), or `out` cannot be written.
    """
    out = path_of("out", out)
    if linked_to(out).suffix == out.suffix:  # what else a link names is no export
        out = linked_to(out)
    if out.suffix not in (".npy", ".npz"):
        raise StoreError(f"{out}: expected a name that ends in .npy or .npz")
    beside = out.with_suffix(".json")
    for path in (out, beside) if out.suffix == ".npy" else (out,):
        if path.exists() and not _is_export(out, beside):
            raise StoreError(
                f"{path}: exists, and no export wrote it, or it was changed since, so it is not replaced; "
                "choose another path"
            )
    feature = store.default_feature if feature is None else feature
    rows, chosen = store.rows(split), store.distinct(layers, feature)
    widths = [math.prod(store.shape(spec, feature, pool)) for spec in chosen]
    if line := about_pool(pool, chosen, [store.shape(spec, feature) for spec in chosen]):
        warn(line)
    if store.info.mirror and not store.reads_mirrored:
        warn(
            f"{store.path}: its mirrored images are not exported; store.mirrored().export() writes them"
        )
    shape = (len(rows), sum(widths))
    about = {
        "ids": [store.ids[row] for row in rows],
        "labels": store.labels[rows].tolist(),
        "label_names": list(store.label_names),
        "layers": [spec.name for spec in chosen],
        "shapes": [list(store.shape(spec, feature, pool)) for spec in chosen],
        "columns": np.cumsum(widths).tolist(),
        "feature": feature,
        "pool": pool,
        "model": store.info.model,
        "weights_sha256": store.info.weights_sha256,
    }
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )

    def matrix() -> Iterator[bytes]:
        yield header.getvalue()
        first = 0
        for block in store.slices(layers, feature, pool, split):
            if (row := not_finite(block)) is not None:
                column = int(np.argmin(np.isfinite(block[row])))
                layer = chosen[int(np.searchsorted(np.cumsum(widths), column, side="right"))].name
                raise StoreError(
                    f"{store.path}: expected finite values, found {block[row, column]} in layer {layer}, "
                    f"{feature}, image {store.ids[rows[first + row]]!r}; extract or predict them again"
                )
            first += len(block)
            yield block.astype("<f4", copy=False).tobytes()

    try:
        if out.suffix == ".npy":
            former = _former(beside)
            with replacing(beside) as description, replacing(out) as file:
                digest = hashlib.sha256()
                for block in matrix():
                    digest.update(block)
                    file.write(block)
                about[DIGEST] = digest.hexdigest()
                description.write(json.dumps(about, allow_nan=False).encode())
                for written in (description, file):
                    written.flush()
                    os.fsync(written.fileno())
                if beside.exists():  # so that it never describes another matrix
                    beside.replace(former)
            former.unlink(missing_ok=True)
        else:
            with replacing(out) as file, zipfile.ZipFile(file, "w") as archive:
                with archive.open("latents.npy", "w", force_zip64=True) as member:
                    for block in matrix():
                        member.write(block)
                for key, value in about.items():
                    if value is not None:
                        _add(archive, key, value)
                _add(archive, DIGEST, _members_sha256(archive))
    except OSError as error:
        raise StoreError(
            f"{out}: cannot be written ({error.strerror or error}); make room or choose another place"
        ) from error
    return shape


def _add(archive: zipfile.ZipFile, key: str, value: object) -> None:
    with archive.open(f"{key}.npy", "w") as member:
        np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)


def _members_sha256(archive: zipfile.ZipFile) -> str:
    """Return a hash of the names, sizes and CRC-32 of all members but the one that holds this hash."""
    members = [
        [member.filename, member.file_size, member.CRC]
        for member in archive.infolist()
        if member.filename != f"{DIGEST}.npy"
    ]
    return hashlib.sha256(json.dumps(sorted(members)).encode()).hexdigest()


def _former(beside: Path) -> Path:
    """Return where the description of the matrix that is being replaced lies for a moment."""
    return aside_of(beside).with_suffix(".former")


def _is_export(out: Path, beside: Path) -> bool:
    """Whether a file, or a .npy together with the .json beside it, is as `export` wrote it."""
    try:
        if out.suffix == ".npz":
            with zipfile.ZipFile(out) as archive:
                found = read_member(out, archive, archive.getinfo(f"{DIGEST}.npy"))
                return found.ndim == 0 and str(found) == _members_sha256(archive)
        digest = None
        if out.exists():
            with out.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (KeyError, *UNREADABLE):
        return False
    if beside.exists():
        return _describes(beside, digest)
    # A process that was killed while the two files took their places left both descriptions aside.
    return any(_describes(path, digest) for path in (aside_of(beside), _former(beside)))


def _describes(path: Path, digest: str | None) -> bool:
    """Whether a file is the description of a matrix of this digest; of any, where there is no matrix."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    own = isinstance(about, dict) and about.keys() == {*DESCRIPTION, DIGEST}
    return own and digest in (None, about[DIGEST])
