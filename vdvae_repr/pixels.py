"""Pixels of any PIL image, turned into RGB of 8 bits: depth, orientation, transparency."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from vdvae_repr.errors import DataError, counted

SEPARATE_ALPHA = {"La": "LA", "RGBa": "RGBA"}  # of modes that multiply colours by their opacity
FULL = 255  # opacity, of which less than half everywhere is no picture's
DARK = 32  # images of 8 bits all below, in all of their pixels, may be of fewer bits
FEW = 4095  # the largest of 12 bits; of 16 one image that is no brighter may be of fewer
ALIKE = 5  # images of 16 bits of which none is bright by chance alone
SLACK = 1e-4  # what resampling adds to 1.0
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
    slack = SLACK if white == 1 else 0
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


def opacity_of(image: Image.Image) -> int:
    """Return the highest opacity of any pixel, 0 to 255, of an image that is decoded."""
    if (alpha := image.getbands()[-1]) in ("A", "a"):  # of LAB it is a colour
        return int(image.getchannel(alpha).getextrema()[1])  # type: ignore[arg-type]
    clear: Any = image.info.get("transparency")
    if clear is None:
        return FULL
    if image.mode == "P":
        given = dict(enumerate(clear)) if isinstance(clear, bytes) else {clear: 0}
        used = np.flatnonzero(image.histogram()).tolist()
        return max((given.get(color, FULL) for color in used), default=FULL)
    lows, highs = np.reshape(image.getextrema(), (-1, 2)).T
    is_clear = np.array_equal(lows, np.ravel(clear)) and np.array_equal(highs, np.ravel(clear))
    return 0 if is_clear else FULL


class Suspicions:
    """What images in memory may be meant as otherwise than they are read: black, dark, clear, of fewer bits.

    >>> given = Suspicions()
    >>> given.look(0, np.zeros((8, 8, 3), np.uint8), brightest=0)
    >>> given.lines("X")
    ['X: 1 image is black, 0 everywhere, as image 0']
    """

    def __init__(self) -> None:
        self._black: list[int] = []
        self._clear: list[int] = []
        self._deep: list[int] = []  # of each image of 16 bits the largest value
        self._brightest = -1

    def look(self, index: int, given: Any, brightest: int) -> None:
        """Look at an image that has been read: what was given, and the largest of its 8-bit values."""
        self._brightest = max(self._brightest, brightest)
        if brightest == 0:
            self._black.append(index)
        if isinstance(given, Image.Image):
            if 2 * opacity_of(given) < FULL:
                self._clear.append(index)
            if white_of(given) == 65535 and not white_is_zero(given):
                self._deep.append(int(np.asarray(given).max(initial=0)))

    def lines(self, name: str) -> list[str]:
        """Return what to say of all of them, which are called `name`."""
        said, deep = [], [value for value in self._deep if value]
        if self._clear:
            said.append(
                f"{name}: {counted(len(self._clear), 'image')} of less than half of full opacity, through "
                f"which white shows, as image {self._clear[0]}"
            )
        if self._black:
            which = counted(len(self._black), "image", "is", "are")
            said.append(f"{name}: {which} black, 0 everywhere, as image {self._black[0]}")
        few = [value for value in deep if value <= FEW]
        if len(deep) >= ALIKE and max(deep) < 2**15:
            few = deep
        if few:
            said.append(
                f"{name}: {counted(len(few), 'image')} of 16 bits, none above {max(few)}; 65535 is read as "
                "white: scale images of fewer bits to 16"
            )
        elif 0 < self._brightest < DARK:
            said.append(
                f"{name}: 255 is read as white; the brightest pixel found is {self._brightest}"
            )
        return said


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
