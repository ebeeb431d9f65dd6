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
    """Compute in `precision` within; tf32 changes GPUs alone, bf16 is autocast on a device's type.

    Raises:
        ConfigError: another precision.
    """
    if precision not in ("fp32", "tf32", "bf16"):
        raise ConfigError(f"precision: expected fp32, tf32 or bf16, found {precision!r}")
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
