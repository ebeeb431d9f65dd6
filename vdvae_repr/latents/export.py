"""One flat matrix of a store's layers, for other tools."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vdvae_repr.errors import StoreError
from vdvae_repr.latents.base import Latents
from vdvae_repr.latents.format import not_finite
from vdvae_repr.output import aside_of, replacing

OWN_KEYS = {"latents", "ids", "layers", "shapes", "columns"}  # by which an earlier export is known


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

    `OUT.npz` holds `latents`, `ids`, `labels`, and of each layer `layers` (name), `shapes` and `columns`
    (its last column + 1); beside `OUT.npy` the same stands in `OUT.json`. Memory stays small. The feature is
    `mean` if not given, or the first where that is not stored.

    Returns:
        the matrix's shape.

    What lies at `out` is replaced only if an earlier export wrote it.

    Raises:
        StoreError: another suffix, another file at `out`, values that are not finite (the layer and image are
            named), or `out` cannot be written.
    """
    if not isinstance(out, str | Path):
        raise StoreError(
            f"out: expected the name of a file, found {type(out).__name__} {out!r:.80}"
        )
    out = Path(out)
    beside = out.with_suffix(".json")
    if out.suffix not in (".npy", ".npz"):
        raise StoreError(f"{out}: expected a name that ends in .npy or .npz")
    for path in (out, beside) if out.suffix == ".npy" else (out,):
        if path.exists() and not _is_export(out, beside):
            raise StoreError(
                f"{path}: exists, and no export wrote it, so it is not replaced; choose another path"
            )
    feature = feature or store.default_feature
    rows, chosen = store.rows(split), store.distinct(layers, feature)
    widths = [math.prod(store.shape(spec, feature, pool)) for spec in chosen]
    shape = (len(rows), sum(widths))
    about = {
        "ids": [store.ids[row] for row in rows],
        "labels": store.labels[rows].tolist(),
        "layers": [spec.name for spec in chosen],
        "shapes": [list(store.shape(spec, feature, pool)) for spec in chosen],
        "columns": np.cumsum(widths).tolist(),
        "feature": feature,
        "pool": pool,
        "model": store.info.model,
        "weights_sha256": store.info.weights_sha256,
    }
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}

    def blocks() -> Iterator[bytes]:
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
            with replacing(beside) as description, replacing(out) as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.writelines(blocks())
                description.write(json.dumps(about, allow_nan=False).encode())
                for written in (description, file):
                    written.flush()
                    os.fsync(written.fileno())
                beside.unlink(missing_ok=True)  # so that it never describes another matrix
        else:
            with replacing(out) as file, zipfile.ZipFile(file, "w") as archive:
                with archive.open("latents.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    for block in blocks():
                        member.write(block)
                for key, value in about.items():
                    if value is not None:
                        with archive.open(f"{key}.npy", "w") as member:
                            np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
    except OSError as error:
        raise StoreError(
            f"{out}: cannot be written ({error.strerror or error}); make room or choose another place"
        ) from error
    return shape


def _is_export(out: Path, beside: Path) -> bool:
    """Whether a file, or of a .npy the one beside it, is what `export` writes."""
    try:
        if out.suffix == ".npz":
            with zipfile.ZipFile(out) as archive:
                return {f"{key}.npy" for key in OWN_KEYS} <= set(archive.namelist())
        # A process that was killed while the two files took their place leaves the description aside.
        described = beside if beside.exists() else aside_of(beside)
        about = json.loads(described.read_text(encoding="utf-8"))
        return isinstance(about, dict) and OWN_KEYS - {"latents"} <= set(about)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
