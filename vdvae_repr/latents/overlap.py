"""What runs beside the model: draws made ahead of it, and results copied to the host behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.model.noise import NoiseFn

Arrays = dict[str, NDArray[Any]]


class HostCopies:
    """Brings tensors to the host. From a GPU, on a stream of its own beside the next batch's work."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, values: Mapping[str, Tensor]) -> Callable[[], Arrays]:
        """Begin to copy; the function returned waits for the copies, and gives them as arrays."""
        if self.stream is None:
            # Here, by the threads that computed them: others would contend for cores.
            arrays = {key: value.contiguous().numpy() for key, value in values.items()}
            return lambda: arrays
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        host: dict[str, Tensor] = {}
        with torch.cuda.stream(self.stream):
            for key, value in values.items():
                host[key] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                host[key].copy_(value.contiguous(), non_blocking=True)
                value.record_stream(self.stream)
            copied = torch.cuda.Event()
            copied.record(self.stream)

        def wait() -> Arrays:
            copied.synchronize()
            return {key: value.numpy() for key, value in host.items()}

        return wait


class NoiseAhead:
    """NoiseFn whose layers, called for in their order, are drawn by a pool ahead of the call."""

    def __init__(
        self, noise: NoiseFn, layers: Sequence[LayerSpec], pool: Executor, workers: int, pin: bool
    ) -> None:
        self.noise, self.pool, self.pin = noise, pool, pin
        self.to_come = iter(layers)
        self.drawn: deque[Future[Tensor]] = deque()
        for _ in range(workers + 1):
            self.draw_next()

    def draw_next(self) -> None:
        """Let the pool draw one layer more."""
        if (spec := next(self.to_come, None)) is not None:
            self.drawn.append(self.pool.submit(self.draw, spec))

    def draw(self, spec: LayerSpec) -> Tensor:
        """Draw one layer on the CPU."""
        values = self.noise(spec)
        return values.pin_memory() if self.pin else values

    def on(self, device: torch.device) -> NoiseFn:
        """Return the noise as tensors on a device."""

        def take(spec: LayerSpec) -> Tensor:
            values = self.drawn.popleft().result()
            self.draw_next()
            return values.to(device, non_blocking=True)

        return take
