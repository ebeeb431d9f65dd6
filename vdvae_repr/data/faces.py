"""Face alignment: five landmarks, found by MTCNN, brought to fixed places."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vdvae_repr.errors import DataError

# Eyes, nose, corners of the mouth in an aligned image of side 1: where they lie in the central 128 pixels of
# deep-funneled LFW (median of 60 images, made symmetric), which is how faces64 has seen faces.
LANDMARKS = np.array([(0.34, 0.405), (0.66, 0.405), (0.50, 0.60), (0.36, 0.757), (0.64, 0.757)])
SMALLEST = 20  # pixels, the detector's smallest face
DETECTED_AT = 1024  # pixels; larger images are searched at this size


def align_face(picture: Image.Image, size: int) -> Image.Image:
    """Return the largest face, (size, size), turned, scaled and moved so that its landmarks fit `LANDMARKS`.

    The similarity transform of least squares; faces are found by MTCNN (Zhang et al. 2016,
    arXiv:1604.02878) as in facenet-pytorch. What lies beyond the picture is black.

    Raises:
        DataError: no face is found.
    """
    shrunk = picture.copy()
    shrunk.thumbnail((DETECTED_AT, DETECTED_AT))
    boxes = points = None
    if min(shrunk.size) >= SMALLEST:
        boxes, _, points = _detector().detect(shrunk, landmarks=True)
    if boxes is None or points is None:
        raise DataError("expected a face, found none; leave the image out, or do not align")
    boxes, points = np.asarray(boxes, np.float64), np.asarray(points, np.float64)
    largest = int(np.argmax((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)))
    found = points[largest] * (picture.width / shrunk.width)
    matrix = _similarity(LANDMARKS * size, found)
    # An affine transform takes single pixels, so what is too large is first reduced, antialiased.
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale > 1:
        reduced = [max(1, round(side / scale)) for side in picture.size]
        matrix *= np.array([[reduced[0] / picture.width], [reduced[1] / picture.height]])
        picture = picture.resize((reduced[0], reduced[1]), Image.Resampling.BICUBIC)
    return picture.transform(
        (size, size), Image.Transform.AFFINE, tuple(matrix.ravel()), Image.Resampling.BICUBIC
    )


def _similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (2, 3): rotation, scale and shift that bring points (N, 2) nearest to others."""
    x, y = source.T
    zeros, ones = np.zeros_like(x), np.ones_like(x)
    rows = np.concatenate(
        [np.stack([x, -y, ones, zeros], axis=1), np.stack([y, x, zeros, ones], axis=1)]
    )
    a, b, dx, dy = np.linalg.lstsq(rows, target.T.ravel(), rcond=None)[0]
    return np.array([[a, -b, dx], [b, a, dy]])


@cache
def _detector() -> Any:
    from facenet_pytorch import MTCNN

    return MTCNN(keep_all=True, min_face_size=SMALLEST, device="cpu")
