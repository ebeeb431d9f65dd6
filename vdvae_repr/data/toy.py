"""Procedural faces with known, independent factors: the embedded default and a measuring instrument.

Identity factors are drawn once a person, nuisance factors once an image, all independently:

    identity_width, identity_jaw            face ellipse, in half-frames
    identity_skin                           light to dark, 0..1
    identity_hair_hue, identity_hair_length hair colour index 0..5 (integer), length 0..1
    identity_eye_distance, identity_eye_size, identity_eye_color (integer 0..3)
    identity_brow, identity_nose, identity_mouth     thickness, length, width
    nuisance_yaw                            -1..1, head turned left to right
    nuisance_light                          -1..1, light from the left to the right
    nuisance_expression                     -1..1, frown to smile
    nuisance_background                     0..1, hue
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import DataError

Field = NDArray[np.float64]

IDENTITY = {
    "width": (0.50, 0.64),
    "jaw": (0.70, 1.05),
    "skin": (0.0, 1.0),
    "hair_length": (0.0, 1.0),
    "eye_distance": (0.20, 0.29),
    "eye_size": (0.065, 0.105),
    "brow": (0.018, 0.05),
    "nose": (0.16, 0.30),
    "mouth": (0.13, 0.26),
}
CHOICES = {"hair_hue": 6, "eye_color": 4}
NUISANCE = {"yaw": (-1, 1), "light": (-1, 1), "expression": (-1, 1), "background": (0, 1)}

HAIR = ((25, 20, 18), (70, 42, 22), (128, 78, 35), (205, 165, 85), (150, 55, 25), (165, 165, 165))
EYES = ((62, 38, 22), (52, 98, 60), (58, 106, 162), (108, 118, 124))
SKIN = ((246, 212, 186), (104, 66, 44))


@dataclass(frozen=True)
class ToyFaces:
    """Images uint8 (N, size, size, 3), person by person, and what they show; arrays of length N."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: tuple[str, ...]
    label_names: tuple[str, ...]
    factors: dict[str, NDArray[Any]]


def toy_faces(
    num_people: int = 20, images_per_person: int = 10, *, size: int = 64, seed: int = 0
) -> ToyFaces:
    """Draw faces; image j of person i depends on (seed, i, j) alone, so more extend the same set.

    Raises:
        DataError: fewer than one person or image, or a size below 16 pixels.
    """
    if num_people < 1 or images_per_person < 1 or size < 16:
        raise DataError(
            "expected at least 1 person, 1 image and 16 pixels, "
            f"found {num_people}, {images_per_person} and {size}"
        )
    rows = []
    for person in range(num_people):
        identity = draw_identity(np.random.default_rng([seed, person]))
        for image in range(images_per_person):
            nuisance = draw_nuisance(np.random.default_rng([seed, person, image + 1]))
            rows.append(identity | nuisance)
    digits = len(str(num_people - 1)), len(str(images_per_person - 1))
    names = tuple(f"person_{person:0{digits[0]}d}" for person in range(num_people))
    return ToyFaces(
        images=np.stack([render(row, size) for row in rows]),
        labels=np.repeat(np.arange(num_people), images_per_person),
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
    f = {key.split("_", 1)[1]: value for key, value in factors.items()}
    step = 2 / (2 * size)
    axis = np.arange(2 * size) * step - 1 + step / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    canvas = _background(f, x, y)
    shift = 0.10 * f["yaw"]
    _hair_behind(canvas, f, x, y, step)
    _neck(canvas, f, x, y, step)
    _head(canvas, f, x, y, step)
    _hair_front(canvas, f, x, y, step)
    for side in (-1, 1):
        foreshortening = 1 - 0.18 * side * f["yaw"]
        _eye(canvas, f, x - shift - side * f["eye_distance"] * foreshortening, y + 0.12, step, side)
    _nose(canvas, f, x - 1.3 * shift, y, step)
    _mouth(canvas, f, x - shift, y, step)
    small = canvas.reshape(size, 2, size, 2, 3).mean(axis=(1, 3))
    return np.round(small.clip(0, 255)).astype(np.uint8)


def _paint(canvas: Field, distance: Field, color: Any, step: float, opacity: float = 1.0) -> None:
    """Lay a color where the signed distance is negative, its edge one pixel soft."""
    cover = opacity * np.clip(0.5 - distance / step, 0, 1)[..., None]
    canvas += cover * (np.asarray(color, dtype=float) - canvas)


def _ellipse(x: Field, y: Field, a: float, b: float) -> Field:
    """Approximate signed distance to an axis-aligned ellipse at the origin."""
    radius = np.hypot(x / a, y / b)
    gradient = np.hypot(x / a**2, y / b**2)
    return radius * (radius - 1) / np.maximum(gradient, 1e-9)


def _stroke(x: Field, y: Field, curve: Field, half_length: float, half_width: float) -> Field:
    """Signed distance to a soft-ended horizontal stroke that follows a curve."""
    return np.maximum(np.abs(y - curve) - half_width, np.abs(x) - half_length)


def _background(f: dict[str, Any], x: Field, y: Field) -> Field:
    color = np.array(colorsys.hsv_to_rgb(f["background"], 0.35, 0.72)) * 255
    return color * (1 + 0.18 * (x * f["light"] - 0.4 * y))[..., None]


def _shaded(color: Any, f: dict[str, Any], x: Field, y: Field) -> Field:
    """Lambert's law on the head's ellipsoid, light from the side and above, with ambient light."""
    nx, ny = np.clip(x / 0.75, -0.95, 0.95), np.clip(y / 1.0, -0.95, 0.95)
    nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0.05, 1))
    light = np.array([1.1 * f["light"], -0.45, 0.75])
    light /= np.linalg.norm(light)
    lambert = np.clip(nx * light[0] + ny * light[1] + nz * light[2], 0, 1)
    return np.asarray(color, dtype=float) * (0.42 + 0.68 * lambert)[..., None]


def _skin(f: dict[str, Any]) -> Field:
    return np.asarray(SKIN[0]) + f["skin"] * (np.asarray(SKIN[1]) - np.asarray(SKIN[0]))


def _hair_behind(canvas: Field, f: dict[str, Any], x: Field, y: Field, step: float) -> None:
    length = 0.72 + 0.75 * f["hair_length"]
    shape = _ellipse(x, y + 0.22 - 0.3 * f["hair_length"], f["width"] + 0.13, length)
    _paint(canvas, shape, 0.75 * _shaded(HAIR[f["hair_hue"]], f, x, y), step)


def _neck(canvas: Field, f: dict[str, Any], x: Field, y: Field, step: float) -> None:
    skin = 0.8 * _shaded(_skin(f), f, x, np.zeros_like(y))
    _paint(canvas, np.maximum(np.abs(x) - 0.27, 0.5 - y), skin, step)
    shirt = np.array(colorsys.hsv_to_rgb((f["background"] + 0.5) % 1, 0.3, 0.45)) * 255
    _paint(canvas, _ellipse(x, y - 1.35, 0.95, 0.42), shirt, step)


def _head(canvas: Field, f: dict[str, Any], x: Field, y: Field, step: float) -> None:
    skin = _shaded(_skin(f), f, x - 0.05 * f["yaw"], y)
    for side in (-1, 1):
        _paint(canvas, _ellipse(x - side * f["width"], y, 0.09, 0.16), 0.85 * skin, step)
    narrow = np.where(y > 0, 1 - (1 - f["jaw"] * 0.9) * np.clip(y, 0, 1), 1)
    _paint(canvas, _ellipse(x / narrow, y, f["width"], 0.82), skin, step)


def _hair_front(canvas: Field, f: dict[str, Any], x: Field, y: Field, step: float) -> None:
    fringe = -0.42 - 0.18 * np.cos(2.5 * x) + 0.12 * f["hair_length"] * x
    cap = np.maximum(_ellipse(x, y + 0.05, f["width"] + 0.06, 0.88), y - fringe)
    _paint(canvas, cap, _shaded(HAIR[f["hair_hue"]], f, x, y), step)


def _eye(canvas: Field, f: dict[str, Any], x: Field, y: Field, step: float, side: int) -> None:
    r = f["eye_size"]
    white = _ellipse(x, y, 1.45 * r, r * (1 - 0.15 * max(f["expression"], 0)))
    _paint(canvas, white, (238, 236, 232), step)
    gaze = x - 0.03 * f["yaw"]
    _paint(
        canvas, np.maximum(_ellipse(gaze, y, 0.75 * r, 0.75 * r), white), EYES[f["eye_color"]], step
    )
    _paint(canvas, _ellipse(gaze, y, 0.36 * r, 0.36 * r), (12, 10, 10), step)
    _paint(
        canvas, _ellipse(gaze - 0.25 * r, y + 0.25 * r, 0.18 * r, 0.18 * r), (255, 255, 255), step
    )
    arch = -2.0 * r + 4 * x**2 + 0.25 * f["expression"] * -side * x * -1
    brow = 0.7 * np.asarray(HAIR[f["hair_hue"]], dtype=float)
    _paint(canvas, _stroke(x, y, arch, 1.7 * r, f["brow"]), brow, step)


def _nose(canvas: Field, f: dict[str, Any], x: Field, y: Field, step: float) -> None:
    tip = -0.08 + f["nose"]
    shade = 0.72 * _skin(f)
    side = np.sign(f["light"]) or 1.0
    bridge = np.maximum(
        np.abs(x + side * (0.02 + 0.12 * (y + 0.1))) - 0.018, np.abs(y - tip / 2) - 0.5 * f["nose"]
    )
    _paint(canvas, bridge, shade, step, opacity=0.55)
    _paint(canvas, _ellipse(x, y - tip - 0.02, 0.09, 0.035), shade, step, opacity=0.8)


def _mouth(canvas: Field, f: dict[str, Any], x: Field, y: Field, step: float) -> None:
    half, smile = f["mouth"], f["expression"]
    center = 0.47 - 1.6 * smile * x**2 / half * 0.5
    lips = 0.55 * _skin(f) + 0.45 * np.array([178.0, 52.0, 58.0])
    thickness = 0.055 * np.sqrt(np.clip(1 - (x / half) ** 2, 0, 1))
    _paint(canvas, np.maximum(np.abs(y - center) - thickness, np.abs(x) - half), lips, step)
    opening = np.maximum(
        np.abs(y - center) - thickness * 0.5 * max(smile, 0), np.abs(x) - 0.8 * half
    )
    _paint(canvas, opening, (240, 232, 226), step, opacity=0.9)
    _paint(canvas, np.maximum(np.abs(y - center) - 0.008, np.abs(x) - half), 0.45 * lips, step)
