"""Pictures that are made, one by one or as a contact sheet; they replace no other picture."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vdvae_repr.errors import DataError
from vdvae_repr.output import MARK, is_own, replacing


def save_picture(pixels: NDArray[np.uint8], path: str | Path) -> None:
    """Write uint8 (H, W, 3) as a PNG, in place of an earlier one of this package alone.

    Raises:
        DataError: another file is there, as one of the photographs that were read; it cannot be written.
    """
    path = Path(path)
    check_picture(path)
    text = PngInfo()
    text.add_text("Software", MARK)
    try:
        with replacing(path) as file:
            Image.fromarray(pixels).save(file, format="PNG", pnginfo=text)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another path"
        ) from error


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be saved, before it takes time to make.

    Raises:
        DataError: another file is there, or its name ends in something else than .png.
    """
    if path.suffix.lower() != ".png":
        raise DataError(
            f"{path}: expected a name that ends in .png, as pictures are written as PNG"
        )
    if os.path.lexists(path) and not is_own(path):
        raise DataError(
            f"{path}: exists, and was not made by {MARK}, so it is not replaced; choose another path"
        )


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
