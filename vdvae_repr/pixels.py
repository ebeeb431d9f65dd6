"""Pixels of any PIL image, turned into RGB of 8 bits: depth, orientation, transparency."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from vdvae_repr.errors import DataError

SEPARATE_ALPHA = {"La": "LA", "RGBa": "RGBA"}  # of modes that multiply colours by their opacity
STRIP = 2**22  # pixels that are converted at a time
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the number of EXIF's tag Orientation


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any PIL mode into RGB, upright by its EXIF orientation; transparency over white.

    The depth of the file says what is white, never its brightest pixel: 65535 of 16 bits, 4095 of a TIFF
    of 12 bits, 1.0 of floating point; 0 of a TIFF that says so (PhotometricInterpretation 0).

    Raises:
        DataError: floating point outside 0 to 1 or not finite, or 32-bit whole numbers.
    """
    decode_pixels(image)
    white = white_of(image)
    inverted, clear = white_is_zero(image), image.info.get("transparency")
    image = _upright(image)
    if white is not None:
        values = np.asarray(image)
        grey = to_uint8(values, white)
        if inverted:
            grey = 255 - grey
        if isinstance(clear, int):  # the one value that a grey PNG calls transparent
            grey = np.where(values == clear, np.uint8(255), grey)
        image = Image.fromarray(grey)
    if image.mode in SEPARATE_ALPHA:
        image = image.convert(SEPARATE_ALPHA[image.mode])
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _over_white(image)
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Lay an image over white, strip by strip, as each takes several copies."""
    width, height = image.size
    whole, step = Image.new("RGB", image.size), max(1, STRIP // max(1, width))
    for top in range(0, height, step):
        layer = image.crop((0, top, width, min(top + step, height))).convert("RGBA")
        base = Image.new("RGBA", layer.size, "white")
        whole.paste(Image.alpha_composite(base, layer).convert("RGB"), (0, top))
    return whole


def to_uint8(values: NDArray[Any], white: int) -> NDArray[np.uint8]:
    """Scale pixels so that `white` becomes 255; with white = 255 they must be whole numbers already.

    Raises:
        DataError: a value is not finite, below 0 or above `white`, or not whole where white is 255.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError("expected finite pixels, found NaN or infinity")
    low, high = values.min(initial=0), values.max(initial=0)
    slack = 1e-4 if white == 1 else 0  # what resampling and float16 add to 1.0
    if low < -slack or high > white + slack:
        raise DataError(
            f"expected {values.dtype} pixels from 0 to {white}, found {low:g} to {high:g}; "
            "save them as 8 or 16 bits"
        )
    if white != 255:
        scaled = np.empty(values.shape, np.uint8)
        step = max(1, STRIP // max(1, int(np.prod(values.shape[1:]))))
        for start in range(
            0, len(values), step
        ):  # strip by strip, as float64 takes eight times the room
            strip = values[start : start + step].astype(np.float64)
            scaled[start : start + step] = np.rint(strip * (255 / white)).clip(0, 255)
        return scaled
    whole = values.astype(np.uint8)
    if values.dtype.kind == "f" and not (whole == values).all():
        raise DataError(
            f"expected {values.dtype} pixels from 0 to 1, or whole numbers up to 255, found fractions up to "
            f"{high:g}; save them as 8 bits"
        )
    return whole


def decode_pixels(image: Image.Image) -> None:
    """Decode an image as its writer meant it, where Pillow takes the file at its word.

    The transparent value of a PNG of 2, 4 or 16 bits is scaled as its pixels are. Colours of a TIFF's palette
    that all are below 256 have 8 bits, where the standard asks for 16, as libtiff takes them.
    """
    tiles = getattr(image, "tile", None)  # of an image that is not decoded yet
    held = tiles[0][3] if tiles else None
    image.load()
    colors = getattr(image, "tag_v2", {}).get(320)  # ColorMap
    if image.mode == "P" and colors and max(colors) < 256:
        image.putpalette(bytes(colors), "RGB;L")
    bits, clear = {"L;2": 2, "L;4": 4}.get(str(held)), image.info.get("transparency")
    if bits and isinstance(clear, int):
        most = 2**bits - 1
        image.info["transparency"] = (clear & most) * 255 // most
    if ";16" in str(held) and isinstance(clear, tuple):  # of which Pillow keeps the upper 8 bits
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def white_of(image: Image.Image) -> int | None:
    """Return the value of white where pixels have more than 8 bits, None where Pillow has made them 8.

    Raises:
        DataError: whole numbers of 32 bits, of which nothing says what is white.
    """
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(258)  # BitsPerSample, of a TIFF
        return 4095 if bits in (12, (12,)) else 65535
    if image.mode == "F":
        return 1
    if image.mode.startswith("I"):
        if image.format in ("PNG", "PPM"):  # Pillow makes 16 bits of them
            return 65535
        raise DataError(
            "expected 8 or 16 bits, or floating point from 0 to 1, found whole numbers of 32 bits; "
            "save them as 16 bits"
        )
    return None


def white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF of more than 8 bits counts from white to black; those of 8 Pillow inverts."""
    return getattr(image, "tag_v2", {}).get(262) == 0


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says, where that can be told."""
    try:
        value: Any = image.getexif().get(ExifTags.Base.Orientation)
        if isinstance(value, tuple | bytes) and len(value) == 1:  # of another type than EXIF wants
            value = value[0]
        turn = None if value is None else TURNS.get(int(value))
    except Exception:  # a tag of a wrong type may make Pillow raise anything
        return image
    return image if turn is None else image.transpose(turn)
