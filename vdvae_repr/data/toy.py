"""Procedural faces with known, independent factors: the embedded default and a measuring instrument.

Which layer knows the light, which the identity? Here the answer can be checked. Identity factors are
drawn once a person, nuisance factors once an image, each uniformly and independently of all others.
Lengths are in half-frames (the image spans -1..1), angles in degrees, categories index the tables below.

    identity_face_width     0.52..0.66    half-width of the head
    identity_jaw            -0.34..0.22   pointed chin to square jaw
    identity_skin           0..1          light to dark
    identity_hair_style     0..6          cropped, short, parted, fringe, bob, long, curly (`STYLES`)
    identity_hair_color     0..5          black, brown, chestnut, ginger, blond, grey (`HAIR`)
    identity_eye_color      0..3          brown, green, blue, grey (`EYES`)
    identity_eye_size       0.07..0.105   half-height of the open eye
    identity_eye_spacing    0.22..0.29    from the nose to a pupil
    identity_brow           0.016..0.05   half-thickness
    identity_brow_tilt      -0.4..0.4     slope: inner ends raised to outer ends raised
    identity_nose_length    0.20..0.36    from the eyes' line to the tip
    identity_nose_width     0.07..0.13    half-width at the nostrils
    identity_mouth_width    0.17..0.28    half-width at rest
    identity_lips           0.02..0.06    thickness of a lip
    nuisance_yaw            -25..25       the head turns to the image's left or right
    nuisance_pitch          -10..10       the head looks up or down
    nuisance_light          -55..55       azimuth of the light: image left to right
    nuisance_light_height   -10..50       its elevation: from slightly below to above
    nuisance_smile          -0.6..1       frown to broad smile
    nuisance_mouth_open     0..1          closed to open
    nuisance_background_hue 0..0.75       red, yellow, green, blue to violet (turns; does not wrap around)
    nuisance_background_brightness  0.35..0.8  HSV value
    nuisance_shirt          0..0.75       hue of the clothes
    nuisance_shift_x        -0.08..0.08   the person stands to the image's left or right
    nuisance_shift_y        -0.08..0.08   the person stands high or low
    nuisance_scale          0.92..1.08    small or large in the frame
    nuisance_roll           -8..8         the person leans counterclockwise or clockwise in the image

The last four are what a face detector leaves: its box is a few per cent of its side off in place and size,
and it does not turn a head upright. Without them each eye would lie on the same pixels in every image,
which no photograph grants, and bare pixels would know people for a reason that does not exist.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import DataError

Field = NDArray[Any]  # float32 (n, n), one value a pixel
Color = NDArray[Any]  # float32 (3, 1, 1) or (3, n, n), 0..255


class Style(NamedTuple):
    """A hair style, in half-frames; heights are below the head's centre, as fractions of its half-height."""

    volume: float  # how far the hair stands off the skull
    line: float  # height of the hairline
    part: float  # slope of the hairline: to one side, or (negative) up to both sides of the middle
    sides: float  # height down to which hair covers the sides of the head
    length: float  # how far down the hair behind the head falls, 0 for none
    curl: float  # waviness of the outline
    fade: float  # width of the hair's soft edge


STYLES = (
    Style(0.02, -0.62, 0.0, 0.0, 0.0, 0.0, 0.16),  # cropped
    Style(0.09, -0.60, 0.0, 0.04, 0.0, 0.0, 0.03),  # short
    Style(0.15, -0.52, 0.32, 0.04, 0.0, 0.0, 0.02),  # parted
    Style(0.10, -0.36, 0.0, 0.12, 0.1, 0.0, 0.02),  # fringe
    Style(0.13, -0.42, 0.15, 0.60, 0.62, 0.0, 0.02),  # bob
    Style(0.10, -0.66, -0.35, 0.85, 1.2, 0.0, 0.02),  # long
    Style(0.24, -0.52, 0.0, 0.25, 0.4, 0.035, 0.02),  # curly
)
HAIR = ((30, 26, 28), (74, 48, 32), (126, 72, 40), (190, 92, 40), (222, 184, 108), (168, 168, 172))
EYES = ((84, 52, 28), (74, 124, 70), (62, 118, 184), (124, 136, 146))
SKIN = ((255, 222, 200), (214, 158, 120), (112, 70, 48))  # at 0, 1/2 and 1

IDENTITY: dict[str, tuple[float, float]] = {
    "face_width": (0.52, 0.66), "jaw": (-0.34, 0.22), "skin": (0, 1),
    "eye_size": (0.07, 0.105), "eye_spacing": (0.22, 0.29),
    "brow": (0.016, 0.05), "brow_tilt": (-0.4, 0.4),
    "nose_length": (0.20, 0.36), "nose_width": (0.07, 0.13),
    "mouth_width": (0.17, 0.28), "lips": (0.02, 0.06),
}  # fmt: skip
CHOICES = {"hair_style": len(STYLES), "hair_color": len(HAIR), "eye_color": len(EYES)}
NUISANCE: dict[str, tuple[float, float]] = {
    "yaw": (-25, 25), "pitch": (-10, 10), "light": (-55, 55), "light_height": (-10, 50),
    "smile": (-0.6, 1), "mouth_open": (0, 1),
    "background_hue": (0, 0.75), "background_brightness": (0.35, 0.8), "shirt": (0, 0.75),
    "shift_x": (-0.08, 0.08), "shift_y": (-0.08, 0.08), "scale": (0.92, 1.08), "roll": (-8, 8),
}  # fmt: skip
HEIGHT = 0.86  # half-height of the head
EYE_LINE, MOUTH_LINE = -0.10, 0.47  # below the head's centre


@dataclass(frozen=True)
class ToyFaces:
    """Images and what they show, person by person; N = people x images of each."""

    images: NDArray[np.uint8]  # (N, size, size, 3)
    labels: NDArray[np.int64]  # (N,) index of the person
    ids: tuple[str, ...]  # "person_00/00", in natural order
    label_names: tuple[str, ...]  # "person_00"
    factors: dict[str, NDArray[Any]]  # (N,) each: float64, or int64 where categories


def toy_faces(
    num_people: int = 20, images_per_person: int = 10, *, size: int = 64, seed: int = 0
) -> ToyFaces:
    """Draw faces; image j of person i depends on (seed, i, j) alone, so more extend the same set.

    Raises:
        DataError: fewer than one person or image, a size below 16 pixels, or a negative seed.
    """
    if num_people < 1 or images_per_person < 1 or size < 16 or seed < 0:
        raise DataError(
            "toy faces: expected at least 1 person, 1 image each, 16 pixels and seed 0, "
            f"found {num_people}, {images_per_person}, {size} and {seed}"
        )
    rows = [
        draw_identity(np.random.default_rng([seed, person, 0]))
        | draw_nuisance(np.random.default_rng([seed, person, 1 + image]))
        for person in range(num_people)
        for image in range(images_per_person)
    ]
    digits = max(2, len(str(num_people - 1))), max(2, len(str(images_per_person - 1)))
    names = tuple(f"person_{person:0{digits[0]}d}" for person in range(num_people))
    return ToyFaces(
        images=np.stack([render(row, size) for row in rows]),
        labels=np.repeat(np.arange(num_people, dtype=np.int64), images_per_person),
        ids=tuple(f"{n}/{i:0{digits[1]}d}" for n in names for i in range(images_per_person)),
        label_names=names,
        factors={key: np.array([row[key] for row in rows]) for key in rows[0]},
    )


def draw_identity(rng: np.random.Generator) -> dict[str, Any]:
    """Draw the factors that make a person."""
    drawn: dict[str, Any] = {f"identity_{k}": rng.uniform(*r) for k, r in IDENTITY.items()}
    return drawn | {f"identity_{k}": int(rng.integers(n)) for k, n in CHOICES.items()}


def draw_nuisance(rng: np.random.Generator) -> dict[str, Any]:
    """Draw the factors that vary between a person's images."""
    return {f"nuisance_{k}": rng.uniform(*r) for k, r in NUISANCE.items()}


def render(factors: dict[str, Any], size: int) -> NDArray[np.uint8]:
    """Paint one face, uint8 (size, size, 3), back to front, at twice the resolution."""
    f = {key.partition("_")[2]: value for key, value in factors.items()}
    face = _Face(f, 2 * size)
    _background(face)
    _hair_behind(face)
    _neck_and_shirt(face)
    _ear(face, -1 if f["yaw"] < 0 else 1)  # the far one
    _skin(face)
    _mouth(face)
    _nose(face)
    _eyes(face)
    _hair(face)
    if STYLES[f["hair_style"]].sides < 0.2:
        _ear(face, 1 if f["yaw"] < 0 else -1)
    _brows(face)
    small = face.canvas.reshape(3, size, 2, size, 2).mean(axis=(2, 4))
    return np.round(small.clip(0, 255)).astype(np.uint8).transpose(1, 2, 0)


class _Face:
    """The canvas, and for each pixel where on the head it lies and how much light falls there.

    body_x, body_y: in the upright person's own frame, which lies in the image shifted, scaled and rolled;
    all lengths are of that frame. x, y: the same from the head's centre. u, v: the same on the head, turned
    with it, so that what is drawn at (u, v) is foreshortened; `depth` > 0 on the face's half of the head,
    < 0 behind the ears.
    `out`: from the middle of either eye outward, for what comes in pairs.
    """

    def __init__(self, f: dict[str, Any], n: int) -> None:
        self.f, self.pixel = f, 2 / n / f["scale"]
        self.canvas = np.zeros((3, n, n), dtype=np.float32)
        angles = (math.radians(f[key]) for key in ("yaw", "pitch", "light", "light_height"))
        yaw, pitch, azimuth, elevation = angles
        self.turn = math.sin(yaw)
        self.axis = (np.arange(n, dtype=np.float32) + 0.5) * (2 / n) - 1
        shifted_x = (self.axis - np.float32(f["shift_x"]))[None, :].repeat(n, 0) / f["scale"]
        shifted_y = (self.axis - np.float32(f["shift_y"]))[:, None].repeat(n, 1) / f["scale"]
        self.body_x, self.body_y = self.upright(shifted_x, shifted_y)
        self.x = self.body_x - 0.06 * self.turn
        self.y = self.body_y + 0.06 - 0.1 * math.sin(pitch)
        # The head is a unit sphere, stretched, with a jaw; beyond its outline the rim's values go on.
        ny = self.y / HEIGHT
        width = f["face_width"] * (1 + f["jaw"] * ny.clip(0, 1) ** 2)
        nx = self.x / width
        radius = np.sqrt(nx**2 + ny**2) + 1e-6
        self.outline = radius * (radius - 1) / np.sqrt((nx / width) ** 2 + (ny / HEIGHT) ** 2)
        nx, ny = nx / radius.clip(1), ny / radius.clip(1)
        nz = np.sqrt((1 - nx**2 - ny**2).clip(0))
        across = nx * math.cos(yaw) - nz * math.sin(yaw)
        toward = nx * math.sin(yaw) + nz * math.cos(yaw)
        self.u = f["face_width"] * across
        self.out = np.abs(self.u) - f["eye_spacing"]
        self.v = HEIGHT * (ny * math.cos(pitch) - toward * math.sin(pitch))
        self.depth = ny * math.sin(pitch) + toward * math.cos(pitch)
        level = math.cos(elevation)
        light_x, light_y = self.upright(math.sin(azimuth) * level, -math.sin(elevation))
        self.light = light_x, light_y, math.cos(azimuth) * level
        self.round_shade = self.shade(nx, ny, nz)
        down, right = np.gradient(self._relief(), self.pixel)
        slope_x, slope_y = self.upright(right, down)
        self.skin_shade = self.shade(nx - slope_x, ny - slope_y, nz)

    def upright(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Turn a vector of the image into the frame of the person, who leans by the roll."""
        roll = math.radians(self.f["roll"])
        return math.cos(roll) * x + math.sin(roll) * y, math.cos(roll) * y - math.sin(roll) * x

    def shade(self, nx: Field, ny: Field, nz: Field) -> Field:
        """Lambert's law with ambient light, on normals softened toward the viewer."""
        nz = nz + 0.2
        lambert = nx * self.light[0] + ny * self.light[1] + nz * self.light[2]
        return 0.40 + 0.72 * (lambert / np.sqrt(nx**2 + ny**2 + nz**2)).clip(0)

    def _relief(self) -> Field:
        """Height of the features over the ellipsoid: nose, eye sockets, cheeks and chin."""
        f, v = self.f, self.v
        u, tip = self.nose()
        bridge = 0.5 * (EYE_LINE + tip)
        height = 0.07 * _bump(u / (0.5 * f["nose_width"]), (v - bridge) / (0.55 * f["nose_length"]))
        height += 0.07 * _bump(u / (0.75 * f["nose_width"]), (v - tip + 0.02) / 0.07)
        height -= 0.05 * _bump(self.out / 0.14, (v - EYE_LINE) / 0.11)
        cheek = _bump((self.out - 0.03) / 0.13, (v - 0.24 + 0.03 * f["smile"]) / 0.13)
        height += (0.04 + 0.025 * f["smile"]) * cheek
        return height + 0.05 * _bump(self.u / 0.14, (v - 0.72) / 0.09)

    def nose(self) -> tuple[Field, float]:
        """The nose's own u, which runs ahead of the turning head as it stands out, and its tip's v."""
        tip = EYE_LINE + self.f["nose_length"]
        rise = ((self.v - EYE_LINE) / self.f["nose_length"]).clip(0, 1)
        return self.u - 0.13 * self.turn * rise, tip

    def paint(self, distance: Field, color: Any, shade: Any = 1.0, opacity: Any = 1.0) -> None:
        """Lay a color where the signed distance is negative, its edge one pixel soft."""
        cover = opacity * (0.5 - distance / self.pixel).clip(0, 1)
        self.canvas += cover * (_color(color) * shade - self.canvas)


def _color(rgb: Any) -> Color:
    return np.asarray(rgb, dtype=np.float32).reshape(3, 1, 1)


def _hsv(hue: float, saturation: float, value: float) -> Color:
    return _color(colorsys.hsv_to_rgb(hue, saturation, value)) * 255


def _skin_color(f: dict[str, Any]) -> Color:
    return _color([np.interp(f["skin"], (0, 0.5, 1), tones) for tones in zip(*SKIN, strict=True)])


def _bump(x: Field, y: Field) -> Field:
    return np.exp(-(x**2) - y**2)


def _ellipse(x: Field, y: Field, a: float, b: float) -> Field:
    """Approximate signed distance to an ellipse at the origin."""
    radius = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    return radius * (radius - 1) / (np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2) + 1e-6)


def _background(face: _Face) -> None:
    color = _hsv(face.f["background_hue"], 0.38, face.f["background_brightness"])
    face.canvas += color * (0.95 - 0.12 * face.axis[:, None])


def _hair_behind(face: _Face) -> None:
    style, f = STYLES[face.f["hair_style"]], face.f
    if style.length == 0:
        return
    half, corner, top = f["face_width"] + 0.75 * style.volume, 0.3, -0.2
    x = (np.abs(face.x - 0.03 * face.turn) - half + corner).clip(0)
    y = (np.abs(face.y - 0.5 * (style.length + top)) - 0.5 * (style.length - top) + corner).clip(0)
    shape = np.sqrt(x**2 + y**2) - corner + _curl(face, style)
    face.paint(shape, HAIR[f["hair_color"]], 0.62 * face.round_shade)


def _neck_and_shirt(face: _Face) -> None:
    f, x, y = face.f, face.body_x, face.body_y
    neck = np.maximum(np.abs(x) - 0.55 * f["face_width"], 0.4 - y)
    shadow = 0.55 + 0.25 * ((y - 0.65) / 0.4).clip(0, 1)
    face.paint(neck, _skin_color(f), shadow * face.round_shade)
    collar = -_ellipse(x, y - 0.72, 0.34, 0.22)
    shirt = np.maximum(_ellipse(x, y - 1.39, 1.05, 0.62), collar)
    face.paint(shirt, _hsv(f["shirt"], 0.5, 0.6), 0.9 + 0.3 * face.light[0] * x)


def _ear(face: _Face, side: int) -> None:
    f = face.f
    x = face.x - side * (1.03 * f["face_width"] * math.sqrt(1 - face.turn**2))
    y = face.y - 0.02
    for scale, tone in ((1.0, 0.72), (0.8, 1.0), (0.45, 0.72)):
        ear = _ellipse(x, y, 0.09 * scale, 0.165 * scale)
        face.paint(ear, _skin_color(f), tone * face.round_shade)


def _skin(face: _Face) -> None:
    skin, rosy = _skin_color(face.f), _color((1.0, 0.72, 0.66))
    face.paint(face.outline, skin, face.skin_shade)
    blush = _bump((face.out - 0.05) / 0.13, (face.v - 0.22) / 0.1)
    face.paint(face.outline, skin * rosy, face.skin_shade, 0.45 * blush)


def _mouth(face: _Face) -> None:
    f, v = face.f, face.v
    half = f["mouth_width"] * (1 + 0.2 * f["smile"] - 0.15 * f["mouth_open"])
    along = (face.u / half) ** 2
    arch = np.sqrt((1 - along).clip(0))
    line = MOUTH_LINE - 0.10 * f["smile"] * (along - 0.4)
    gap = 0.15 * f["mouth_open"] * arch
    ends = np.abs(face.u) - half
    bow = 1 - 0.3 * np.exp(-((face.u / 0.03) ** 2))
    upper, lower = line - f["lips"] * arch * bow, line + gap + 1.2 * f["lips"] * arch
    lips = 0.62 * _skin_color(f) + 0.38 * _color((190, 40, 60))
    face.paint(np.maximum(np.maximum(upper - v, v - lower), ends), lips, face.skin_shade)
    inside = np.maximum(np.maximum(line - v, v - line - gap), ends)
    face.paint(inside, (70, 20, 24))
    face.paint(np.maximum(inside, v - line - 0.05), (244, 240, 232), face.round_shade)
    face.paint(np.maximum(np.abs(v - line) - 0.010, ends), 0.45 * lips, opacity=0.8)


def _nose(face: _Face) -> None:
    f, (u, tip) = face.f, face.nose()
    skin = _skin_color(f)
    under = _bump(u / f["nose_width"], (face.v - tip - 0.045) / 0.028)
    face.paint(face.outline, 0.55 * skin, face.round_shade, 0.7 * under)
    nostrils = _ellipse(np.abs(u) - 0.5 * f["nose_width"], face.v - tip - 0.03, 0.024, 0.016)
    face.paint(nostrils, 0.32 * skin)
    shine = _bump((u - 0.03 * face.light[0]) / 0.03, (face.v - tip + 0.04) / 0.035)
    face.paint(face.outline, (255, 250, 240), opacity=0.35 * shine)


def _eyes(face: _Face) -> None:
    f, r = face.f, face.f["eye_size"]
    u, v = np.sign(face.u) * face.out, face.v - EYE_LINE
    lid = 1 - 0.22 * max(f["smile"], 0)
    white = np.maximum(_ellipse(u, v, 1.55 * r, r), v - lid * r * 0.9)
    face.paint(_ellipse(u, v + 0.22 * r, 1.7 * r, 1.05 * r), 0.3 * _skin_color(f), opacity=0.9)
    face.paint(white, (248, 246, 242), 0.35 + 0.65 * face.round_shade)
    for radius, color in ((0.80, (30, 26, 26)), (0.68, EYES[f["eye_color"]]), (0.34, (10, 8, 8))):
        face.paint(np.maximum(_ellipse(u, v + 0.08 * r, radius * r, radius * r), white), color)
    face.paint(_ellipse(u - 0.22 * r, v + 0.36 * r, 0.2 * r, 0.2 * r), (255, 255, 255))


def _brows(face: _Face) -> None:
    f, r, out = face.f, face.f["eye_size"], face.out
    line = EYE_LINE - 0.07 - 1.35 * r - f["brow_tilt"] * out + 2.2 * out**2
    taper = f["brow"] * (1 - 0.5 * (out / (1.9 * r)).clip(0, 1))
    stroke = np.maximum(np.abs(face.v - line) - taper, np.abs(out) - 1.8 * r)
    face.paint(stroke, HAIR[f["hair_color"]], 0.8 * face.round_shade)


def _curl(face: _Face, style: Style) -> Field:
    return style.curl * np.sin(15 * np.arctan2(face.y, face.x))


def _hair(face: _Face) -> None:
    f, style = face.f, STYLES[face.f["hair_style"]]
    across, down = face.u / f["face_width"], face.v / HEIGHT
    behind = np.sign(across) * (2 - np.abs(across))  # beyond the ears, further still from the face
    across = np.where(face.depth < 0, behind, across)
    rise = 1.0 if style.length else (style.sides - face.y / HEIGHT).clip(0, 0.6) / 0.6
    skull = face.outline - style.volume * rise + _curl(face, style)
    slope = style.part * (across if style.part > 0 else 0.4 - np.abs(across))
    above = ((down + slope - 0.2) / (0.2 - style.line)).clip(None, 0)
    hairline = 0.5 - 0.5 * np.sqrt((across / 0.86) ** 2 + above**2)  # around the oval of the face
    edge = np.maximum(hairline, HEIGHT * (down - style.sides))
    gloss = 0.2 * np.exp(-(((down + 0.72) / 0.1) ** 2))
    shade = (1 + gloss + 0.05 * np.sin(21 * across + 5 * down)) * face.round_shade
    cover = (-edge / style.fade).clip(0, 1)
    face.paint(np.maximum(skull, edge), HAIR[f["hair_color"]], shade, cover)
