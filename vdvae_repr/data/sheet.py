"""Pictures that are made, one by one or as a contact sheet; they replace no other picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from vdvae_repr.data.names import is_hidden
from vdvae_repr.errors import DataError, printable
from vdvae_repr.output import MARK, is_own, replacing

TILE, GAP, FONT = 128, 6, 15  # pixels: an image's smallest side on a sheet, between two, letters
SHOWN = 64  # images on a sheet
FRAME, FRAMES = 4, "#009E73"  # pixels, and the colour


def spread(count: int) -> list[int]:
    """Return which of so many images a sheet shows: all, or 64 spread over them."""
    shown = min(count, SHOWN)
    return [number * count // shown for number in range(shown)]


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


def check_outside(path: Path, folder: Path) -> None:
    """Refuse a picture among the images of a folder, also where links lead there.

    Raises:
        DataError: it would be read as one of them.
    """
    place, root = path.resolve(), folder.resolve()
    if place.is_relative_to(root) and not any(map(is_hidden, place.relative_to(root).parts)):
        raise DataError(
            f"{path}: lies in {folder}, and would be read as one of the images next time; write it elsewhere"
        )


def save_sheet(
    images: NDArray[np.uint8],
    path: str | Path,
    columns: int = 8,
    labels: Sequence[str] = (),
    titles: Sequence[str] = (),
    framed: Sequence[int] = (),
    captions: Sequence[str] = (),
) -> None:
    """Write images as a PNG on white, `columns` a row, with gaps, and beside or below them what they show.

    Small images are enlarged by a whole number, pixel by pixel, until a side has at least 128 pixels.

    Args:
        images: uint8 (N, S, S, 3).
        path: ends in .png.
        columns: at most, in each row.
        labels: of the rows, from the first on; a row without one has none.
        titles: of the columns, above the first row.
        framed: numbers of the images that get a green frame.
        captions: below the images, each below as many as there are images to a caption: of 16 images and 8
            captions, below two. Long ones take two lines, and are cut where these are too short.

    Raises:
        DataError: another file is there, or it cannot be written.
    """
    columns = min(columns, len(images))
    scale = -(-TILE // images.shape[1])
    side = images.shape[1] * scale
    font = ImageFont.load_default(FONT)
    named = [printable(label) for label in labels]
    left = max((round(font.getlength(name)) + 2 * GAP for name in named), default=0)
    rows = -(-len(images) // columns)
    top = FONT + 2 * GAP if titles else GAP
    span = len(images) // len(captions) if captions else 1
    lines = [_lines(printable(text), font, span * (side + GAP) - GAP) for text in captions]
    below = GAP + max((GAP + len(some) * (FONT + 2) for some in lines), default=0)
    size = (left + GAP + columns * (side + GAP), top + rows * (side + below))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, pixels in enumerate(images):
        row, column = divmod(number, columns)
        tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
        x, y = left + GAP + column * (side + GAP), top + row * (side + below)
        sheet.paste(tile, (x, y))
        if number in framed:
            edges = (x - FRAME, y - FRAME, x + side + FRAME - 1, y + side + FRAME - 1)
            draw.rectangle(edges, outline=FRAMES, width=FRAME)
    for column, title in enumerate(titles):
        middle = left + GAP + column * (side + GAP) + side // 2
        draw.text((middle, top // 2), printable(title), fill="black", font=font, anchor="mm")
    for row, name in enumerate(named):
        middle = top + row * (side + below) + side // 2
        draw.text((left, middle), name, fill="black", font=font, anchor="rm")
    for number, some in enumerate(lines):
        row, column = divmod(number * span, columns)
        x, y = left + GAP + column * (side + GAP), top + row * (side + below) + side
        for line, text in enumerate(some):
            draw.text((x, y + line * (FONT + 2)), text, fill="black", font=font)
    save_picture(np.asarray(sheet), path)


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Return an id in one line of so many pixels, or in two: its folder, cut at its end, and its name."""
    if font.getlength(text) <= width:
        return [text]
    folder, _, name = text.rpartition("/")
    if font.getlength(name) > width:
        while font.getlength(f"..{name}") > width:
            name = name[1:]
        name = f"..{name}"
    if font.getlength(folder) > width:
        while font.getlength(f"{folder}..") > width:
            folder = folder[:-1]
        folder = f"{folder}.."
    return [folder, name] if folder else [name]
