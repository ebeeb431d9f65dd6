"""Pictures that are made, one by one or as a contact sheet; they replace no other picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vdvae_repr.errors import DataError

MARK = "vdvae-repr"  # the text Software of every PNG that is written, by which it may be replaced


def save_picture(pixels: NDArray[np.uint8], path: str | Path) -> None:
    """Write uint8 (H, W, 3) as a PNG, in place of an earlier one of this package alone.

    Raises:
        DataError: another file is there, as one of the photographs that were read; it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise DataError(
            f"{path}: expected a name that ends in .png, as pictures are written as PNG"
        )
    if path.exists() and not _is_own(path):
        raise DataError(
            f"{path}: exists, and was not made by {MARK}, so it is not replaced; choose another --out"
        )
    text = PngInfo()
    text.add_text("Software", MARK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, format="PNG", pnginfo=text)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another --out"
        ) from error


def _is_own(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get("Software") == MARK
    except (OSError, SyntaxError, ValueError):
        return False


def save_sheet(images: NDArray[np.uint8], path: str | Path, columns: int = 8) -> None:
    """Write uint8 (N, S, S, 3) images as a PNG, `columns` a row, black where the last row ends early.

    Raises:
        DataError: another file is there, or it cannot be written.
    """
    columns = min(columns, len(images))
    blank = np.zeros((-len(images) % columns, *images.shape[1:]), np.uint8)
    grid = np.concatenate([images, blank])
    rows, side = len(grid) // columns, images.shape[1]
    tiles = grid.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    save_picture(tiles.reshape(rows * side, columns * side, 3), path)
