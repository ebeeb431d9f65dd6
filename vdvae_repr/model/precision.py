"""The precision of convolutions and products, as asked for: PyTorch lets GPUs round to TF32 unasked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from vdvae_repr.errors import ConfigError

Precision = Literal["fp32", "tf32", "bf16"]


@contextmanager
def arithmetic(precision: Precision = "fp32", device: str = "cpu") -> Iterator[None]:
    """Compute in `precision` within; tf32 is of GPUs alone, bf16 is autocast on a device's type.

    Raises:
        ConfigError: another precision, or one that the device has not.
    """
    check_precision(precision, device)
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = precision == "tf32"
    try:
        if precision == "bf16":
            with torch.autocast(device, torch.bfloat16):
                yield
        else:
            yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def check_precision(precision: Precision, device: str) -> None:
    """Refuse a precision that a device's type, as "cpu", has not.

    Raises:
        ConfigError: as described.
    """
    if precision not in ("fp32", "tf32", "bf16"):
        raise ConfigError(f"precision: expected fp32, tf32 or bf16, found {precision!r}")
    if precision == "tf32" and device != "cuda":
        raise ConfigError(
            f'precision: tf32 is of CUDA devices, found {device}; use precision="fp32"'
        )
