"""How like decoded images are to those that were seen: PixCorr, SSIM, two-way identification."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.brain.extra import needed
from vdvae_repr.brain.responses import as_array
from vdvae_repr.data.source import Source
from vdvae_repr.encoders.base import Encoder
from vdvae_repr.encoders.load import as_encoder
from vdvae_repr.errors import TaskError
from vdvae_repr.latents.extract import extract
from vdvae_repr.model.pixelcnn import PixelCNN
from vdvae_repr.model.student import Student
from vdvae_repr.model.vdvae import VDVAE

LEAST = 2  # images
WINDOW = 11  # pixels a side that structural similarity weighs at once, by a Gaussian of 1.5 pixels
ROUNDING = 1e-12  # of correlations: those that differ by less are alike

Images = NDArray[np.uint8]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class ImageScores:
    """How like decoded images are to those seen, the mean over images; `shuffled_`: to another's original.

    Args:
        images: their number.
        pixcorr: Pearson's r of pixels.
        ssim: structural similarity of grey values.
        identification: how often an image's own original is more like it than another's, by the encoder's
            features, 0.5 by chance; None without an encoder.
        shuffled_pixcorr: the mean over all pairs with another's original.
        shuffled_ssim: the mean over one round of other originals.
        encoder: and layer, by which images are identified.
    """

    images: int
    pixcorr: float
    ssim: float
    shuffled_pixcorr: float
    shuffled_ssim: float
    identification: float | None = None
    encoder: str | None = None

    def to_dict(self) -> dict[str, int | float | str | None]:
        """Return all of it by name."""
        return asdict(self)


def score_images(
    decoded: Images,
    originals: Images,
    encoder: Encoder | VDVAE | PixelCNN | Student | str | Path | None = None,
    layer: str | None = None,
) -> ImageScores:
    """Score decoded images against those that were seen, as brain-diffuser does, at the size they have.

    Args:
        decoded: uint8 (N, H, W, 3).
        originals: of the same images, in the same order and size.
        encoder: that identifies images, or what `vr.load` takes, as "timm:resnet50".
        layer: of it; its last if not given.

    Raises:
        TaskError: other shapes or types, fewer than two images, smaller ones than SSIM is made of, or no
            scikit-image.
    """
    decoded = as_array("decoded", decoded, "pixels", "biufc")
    originals = as_array("originals", originals, "pixels", "biufc")
    for name, images in (("decoded", decoded), ("originals", originals)):
        if images.dtype != np.uint8:
            raise TaskError(
                f"{name}: expected uint8, from 0 to 255, found {images.dtype}; give numbers from 0 to 1 as "
                "(255 * images).round().astype('uint8')"
            )
    if decoded.shape != originals.shape or decoded.ndim != 4 or len(decoded) < LEAST:
        raise TaskError(
            f"decoded and originals: expected {LEAST} images or more of one size (N, H, W, 3), found "
            f"{decoded.shape} and {originals.shape}"
        )
    _, height, width, channels = decoded.shape
    if channels != 3:
        advice = "; move the channels to the end: images.transpose(0, 2, 3, 1)"
        raise TaskError(
            f"decoded and originals: expected images (N, H, W, 3), found {decoded.shape}"
            + (advice if height == 3 else "")
        )
    if min(height, width) < WINDOW:
        raise TaskError(
            f"decoded and originals: expected images of {WINDOW}x{WINDOW} pixels or more, of which "
            f"structural similarity is made, found {height}x{width}; enlarge both"
        )
    pixels = correlation_matrix(
        originals.reshape(len(originals), -1), decoded.reshape(len(decoded), -1)
    )
    own = np.diag(pixels)
    count = len(decoded)
    named = None
    identified = None
    if encoder is not None:
        encoder = as_encoder(encoder)
        layer = layer or encoder.layers[-1].name
        truth = _features("originals", originals, encoder, layer)
        found = _features("decoded", decoded, encoder, layer)
        identified = two_way_identification(truth, found)
        named = f"{encoder.name} {layer}"
    return ImageScores(
        images=count,
        pixcorr=float(own.mean()),
        ssim=float(np.mean(_ssim(decoded, originals))),
        shuffled_pixcorr=float((pixels.sum() - own.sum()) / (count * (count - 1))),
        shuffled_ssim=float(np.mean(_ssim(decoded, np.roll(originals, 1, axis=0)))),
        identification=identified,
        encoder=named,
    )


def two_way_identification(truth: NDArray[np.generic], predicted: NDArray[np.generic]) -> float:
    """Return how often features predicted of an image are more like its own than those of another image.

    By Pearson's r, over all pairs of an image with each other one; 0.5 by chance. Source: brain-diffuser
    (Ozcelik and VanRullen 2023), which counts how often r with another image is smaller than r with an
    image's own. Where both are alike, which it counts as a loss, one half is counted here, as otherwise
    features that tell nothing would score below chance; r of constant features, which is undefined, is 0.

    Args:
        truth: features of the images (N, D), two or more of each.
        predicted: of the same images (N, D).

    Raises:
        TaskError: other shapes, fewer than two images or features, or numbers that are not finite.

    Examples:
        >>> X = np.random.default_rng(0).normal(size=(5, 40))
        >>> two_way_identification(X, X + 0.1)
        1.0
        >>> two_way_identification(X, np.ones((5, 40)))
        0.5
    """
    truth = as_array("truth", truth, "real numbers", "biuf")
    predicted = as_array("predicted", predicted, "real numbers", "biuf")
    if truth.shape != predicted.shape or truth.ndim != 2 or len(truth) < LEAST:
        raise TaskError(
            f"truth and predicted: expected features (N, D) of {LEAST} images or more, found "
            f"{truth.shape} and {predicted.shape}"
        )
    if truth.shape[1] < 2:
        raise TaskError(
            "truth and predicted: expected two features of an image or more, over which they are correlated, "
            f"found {truth.shape[1]}"
        )
    for name, features in (("truth", truth), ("predicted", predicted)):
        if not np.isfinite(features.astype(np.float64)).all():
            raise TaskError(f"{name}: expected finite numbers, found NaN or infinity")
    r = correlation_matrix(truth, predicted)
    ahead = np.diag(r) - r
    alike = np.abs(ahead) <= ROUNDING
    np.fill_diagonal(alike, False)
    wins = (ahead > ROUNDING).sum() + alike.sum() / 2
    return float(wins / (len(r) * (len(r) - 1)))


def correlation_matrix(a: NDArray[np.generic], b: NDArray[np.generic]) -> Values:
    """Return Pearson's r of each row of a (N, D) with each of b (M, D), (N, M); 0 of constant rows."""
    sides = []
    for rows in (a, b):
        centred = rows.astype(np.float64)
        vary = np.ptp(centred, axis=1, keepdims=True) > 0  # else rounding is left
        centred = np.where(vary, centred - centred.mean(axis=1, keepdims=True), 0)
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        sides.append(centred / np.where(length > 0, length, np.inf))
    return np.asarray(sides[0] @ sides[1].T)


def _ssim(a: Images, b: Images) -> list[float]:
    """Return the structural similarity of each pair, of grey values, with brain-diffuser's settings."""
    color = needed("skimage.color", "scoring images")
    metrics = needed("skimage.metrics", "scoring images")
    return [
        float(
            metrics.structural_similarity(
                color.rgb2gray(one),
                color.rgb2gray(other),
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=1.0,
            )
        )
        for one, other in zip(a, b, strict=True)
    ]


def _features(name: str, images: Images, encoder: Encoder, layer: str) -> NDArray[np.float32]:
    """Read one layer of images, which messages call by a name, by an encoder."""
    ids = tuple(str(number) for number in range(len(images)))
    source = Source(name, ids, lambda i: images[i], np.full(len(images), -1, np.int64))
    with (
        tempfile.TemporaryDirectory(prefix="vdvae-repr-") as folder,
        extract(encoder, source, Path(folder) / "s.h5", layers=layer, images=False) as store,
    ):
        return store.matrix(layer)[0]
