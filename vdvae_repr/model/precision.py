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

    Whatever the caller has set of autocast, of PyTorch's default type of numbers, and of the precision of
    products, is set aside, and is as it was afterwards.

    Raises:
        ConfigError: another precision, or one that the device has not; or PyTorch itself cannot tell which
            the caller has set.
    """
    check_precision(precision, device)
    kinds = [kind for kind in {"cpu", "cuda", device} if torch.amp.is_autocast_available(kind)]
    casts = {kind: torch.is_autocast_enabled(kind) for kind in kinds}
    numbers = torch.get_default_dtype()
    try:
        products = torch.get_float32_matmul_precision()
        convolutions = torch.backends.cudnn.allow_tf32
    # PyTorch's, where the caller has set one backend by its newer names.
    except RuntimeError as error:
        raise ConfigError(
            "torch.backends: expected one precision of float32, found some fp32_precision set by itself; set "
            'torch.backends.fp32_precision = "none" and that one too'
        ) from error
    # By hand and not by torch.autocast(enabled=False), within which another autocast would not end with the
    # reduced weights that it keeps let go: a training step would go on with those of the step before.
    for kind in kinds:
        torch.set_autocast_enabled(kind, False)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        if precision == "bf16":
            torch.clear_autocast_cache()  # of a caller's autocast, which may be of other weights by now
            with torch.autocast(device, torch.bfloat16):
                yield
        else:
            yield
    finally:
        if precision == "bf16":
            torch.clear_autocast_cache()
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
        torch.set_default_dtype(numbers)
        for kind, enabled in casts.items():
            torch.set_autocast_enabled(kind, enabled)


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
