"""uint8 images to the network's input and the likelihood's target, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdvae_repr.config import ModelConfig
from vdvae_repr.errors import DataError, first_line
from vdvae_repr.pixels import to_rgb


def as_image_tensor(images: Any, image_size: int) -> Tensor:
    """Return uint8 (N, 3, S, S) from a uint8 (N, S, S, 3) array or tensor, or PIL images (`to_rgb`).

    Raises:
        DataError: another dtype or shape, or pixels that cannot be turned into 8 bits.
    """
    expected = f"images of shape (N, {image_size}, {image_size}, 3) and dtype uint8"
    try:
        if isinstance(images, Sequence):
            images = np.stack([np.asarray(to_rgb(image)) for image in images])
        if isinstance(
            images, np.ndarray
        ):  # a copy of what torch does not take, as it is read-only or mirrored
            images = np.require(images, requirements=("C", "W"))
        tensor = torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise DataError(
            f"expected {expected}, or PIL images of that size in a list, found {type(images).__name__} "
            f"({first_line(error)})"
        ) from error
    if tensor.dtype != torch.uint8 or tuple(tensor.shape[1:]) != (image_size, image_size, 3):
        found = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        raise DataError(f"expected {expected}, found {found}; resize and convert them first")
    return tensor.permute(0, 3, 1, 2)


def to_input(images: Tensor, config: ModelConfig) -> Tensor:
    """Return what the network reads, float32: `(pixel + shift) * scale`."""
    return (images.float() + config.shift) * config.scale


def to_target(images: Tensor, config: ModelConfig) -> Tensor:
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
