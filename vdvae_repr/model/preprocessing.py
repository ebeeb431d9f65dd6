"""uint8 images to the network's input and the likelihood's target, and back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vdvae_repr.config import AnyModelConfig, ModelConfig, PixelCNNConfig, hidden_by_mask
from vdvae_repr.errors import DataError, first_line
from vdvae_repr.pixels import SLACK, Suspicions, to_rgb

logger = logging.getLogger(__name__)


def as_image_tensor(images: Any, image_size: int) -> Tensor:
    """Return uint8 (N, 3, S, S) from images of that size in any of the usual forms.

    Args:
        images: an array or tensor (N, S, S, 3), or grey (N, S, S) or (N, S, S, 1), uint8 or floating point
            from 0 to 1, where 1 is white; or such images, or PIL images, in a list.
        image_size: S.

    Raises:
        DataError: another dtype or shape, or floats that are not finite or lie outside 0 to 1, but for what
            resampling adds.
    """
    if why := hidden_by_mask(images, "pixels", "images"):
        raise DataError(why)
    side = f"{image_size}, {image_size}"
    expected = f"images of shape (N, {side}, 3) and dtype uint8, grey ones (N, {side}) or floats from 0 to 1"
    try:
        if isinstance(images, Sequence):
            images = np.stack([_in_color(image) for image in images])
        if isinstance(images, np.ndarray):  # of what torch does not take, as it is mirrored, a copy
            images = np.require(images, requirements=("C", "W"))
        tensor = torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise DataError(
            f"expected {expected}, or PIL images of that size in a list, found {type(images).__name__} "
            f"({first_line(error)})"
        ) from error
    if tuple(tensor.shape[1:]) == (image_size, image_size):
        tensor = tensor[..., None]
    shapes = ((image_size, image_size, 1), (image_size, image_size, 3))
    if tuple(tensor.shape[1:]) not in shapes or not (
        tensor.dtype == torch.uint8 or tensor.is_floating_point()
    ):
        found = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        advice = "resize and convert them first"
        if tensor.ndim == 2 and tensor.shape[1] == image_size**2:
            advice = f"reshape rows of pixels: X.reshape(-1, {side})"
        raise DataError(f"expected {expected}, found {found}; {advice}")
    if tensor.is_floating_point():
        if not bool(tensor.isfinite().all()):
            raise DataError("expected finite pixels, found NaN or infinity")
        if not bool(((tensor >= -SLACK) & (tensor <= 1 + SLACK)).all()):
            low, high = float(tensor.min()), float(tensor.max())
            raise DataError(
                f"expected floats from 0 to 1, found {low:g} to {high:g}; divide by what is white"
            )
        tensor = (tensor.double() * 255).round().clamp(0, 255).to(torch.uint8)
    return tensor.expand(-1, -1, -1, 3).permute(0, 3, 1, 2)


def images_given(images: Any, image_size: int) -> Tensor:
    """Return images as `as_image_tensor` does; log what they may be meant as otherwise.

    Raises:
        DataError: as there.
    """
    tensor = as_image_tensor(images, image_size)
    suspicions = Suspicions()
    pictures = images if isinstance(images, Sequence) else [None] * len(tensor)
    for index, brightest in enumerate(tensor.amax(dim=(1, 2, 3)).tolist()):
        suspicions.look(index, pictures[index], brightest)
    for line in suspicions.lines("images"):
        logger.warning("%s", line)
    return tensor


def _in_color(image: Any) -> NDArray[Any]:
    """Return a PIL image in color, as a file of it is read; an array as it is."""
    return np.asarray(to_rgb(image) if isinstance(image, Image.Image) else image)


def to_input(images: Tensor, config: AnyModelConfig) -> Tensor:
    """Return what the network reads, float32: `(pixel + shift) * scale`."""
    return (images.float() + config.shift) * config.scale


def to_target(images: Tensor, config: ModelConfig | PixelCNNConfig) -> Tensor:
    """Return what the likelihood scores, float32 in [-1, 1]; floored to 5 bits where so configured."""
    pixels = images.float()
    if config.bits < 8:
        step = 2 ** (8 - config.bits)
        pixels = torch.floor(pixels / step) * step
    return (pixels - 127.5) / 127.5


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Return (N, H, W, 3) uint8 from (N, 3, H, W) in [-1, 1], rounded."""
    scaled = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy())
