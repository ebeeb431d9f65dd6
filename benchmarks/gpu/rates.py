"""What a device reaches at best, in large products and copies, and how long a call takes on it."""

import statistics
import time
from collections.abc import Callable

import torch

from vdvae_repr.model.precision import arithmetic

SIDE = {"cuda": 8192, "cpu": 1024}


def seconds(function: Callable[[], object], device: str, repeats: int = 1) -> float:
    """Return the seconds of `repeats` calls, the device's work included."""
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronise()
    return time.perf_counter() - started


def matrix_rate(precision: str, device: str) -> float:
    """Return the operations a second of a large square product, median of five, random data."""
    side = SIDE[device]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    with arithmetic("fp32" if precision == "bf16" else precision, device):
        times = [seconds(lambda: a @ b, device) for _ in range(8)][3:]
    return 2 * side**3 / statistics.median(times)


def copy_rate(device: str) -> float:
    """Return the bytes a second, read and written, of a large copy inside the device."""
    source = torch.randn(SIDE[device] ** 2 * 4, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(8)][3:]
    return 2 * source.nbytes / statistics.median(times)
