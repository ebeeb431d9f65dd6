"""Contact sheets: many images in one PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vdvae_repr.errors import DataError


def save_sheet(images: NDArray[np.uint8], path: str | Path, columns: int = 8) -> None:
    """Write uint8 (N, S, S, 3) images as a PNG, `columns` a row, black where the last row ends early.

    Raises:
        DataError: the file cannot be written.
    """
    columns = min(columns, len(images))
    blank = np.zeros((-len(images) % columns, *images.shape[1:]), np.uint8)
    grid = np.concatenate([images, blank])
    rows, side = len(grid) // columns, images.shape[1]
    tiles = grid.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    try:
        Image.fromarray(tiles.reshape(rows * side, columns * side, 3)).save(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); make room or choose another place"
        ) from error
