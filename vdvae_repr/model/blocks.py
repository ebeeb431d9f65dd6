"""The blocks that a VDVAE is made of (Child 2020, figure 3).

N images, C latent channels, R the side of a block's grid, width the channels of the state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdvae_repr.config import ModelConfig
from vdvae_repr.model.distributions import LayerPosterior, gaussian_kl, gaussian_sample
from vdvae_repr.model.structure import BlockSpec


class Widths(dict[int, int]):
    """Channels by resolution, with the model's width where none is named."""

    def __init__(self, default: int, named: Mapping[int, int]) -> None:
        super().__init__(named)
        self.default = default

    def __missing__(self, resolution: int) -> int:
        return self.default


def conv(in_channels: int, out_channels: int, size: int = 1) -> nn.Conv2d:
    """Same-size convolution with PyTorch's default weights and zero bias, as published."""
    layer = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def depth_scale(layer: nn.Conv2d, num_blocks: int) -> None:
    """Scale a residual branch's last weights by 1/sqrt(N): deep stacks start near the identity."""
    with torch.no_grad():
        layer.weight *= math.sqrt(1 / num_blocks)


class Block(nn.Module):
    """1x1, 3x3, 3x3, 1x1 bottleneck with GELU before each; 3x3 become 1x1 at resolutions up to 2."""

    def __init__(self, in_width: int, middle_width: int, out_width: int, resolution: int) -> None:
        super().__init__()
        size = 3 if resolution > 2 else 1
        self.c1 = conv(in_width, middle_width)
        self.c2 = conv(middle_width, middle_width, size)
        self.c3 = conv(middle_width, middle_width, size)
        self.c4 = conv(middle_width, out_width)

    def forward(self, *activated: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map GELUs of states, in_width channels in all at (N, ., R, R), to (N, out_width, R, R).

        The caller takes the GELU, so that blocks that read one state share it. Several states count as one
        concatenated, which is never made. A residual is added to the result.
        """
        x = F.gelu(_conv_parts(self.c1, activated))
        x = F.gelu(self.c2(x))
        x = F.gelu(self.c3(x))
        return self.c4(x) if residual is None else residual + self.c4(x)


class BottomUpBlock(Block):
    """A bottleneck block with its residual."""

    def __init__(self, width: int, middle_width: int, resolution: int) -> None:
        super().__init__(width, middle_width, width, resolution)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Map (N, width, R, R) to the same shape."""
        return super().forward(F.gelu(x), residual=x)


class TopDownBlock(nn.Module):
    """One stochastic layer: prior from the state, posterior from state and activation, residual path."""

    def __init__(
        self, config: ModelConfig, spec: BlockSpec, widths: Mapping[int, int], num_blocks: int
    ):
        super().__init__()
        r, self.zdim, width = spec.resolution, config.zdim, widths[spec.resolution]
        middle = int(width * config.bottleneck_multiple)
        self.posterior = Block(2 * width, middle, 2 * config.zdim, r)
        self.prior = Block(width, middle, 2 * config.zdim + width, r)
        nn.init.zeros_(self.prior.c4.weight)
        self.z_proj = conv(config.zdim, width)
        self.resnet = Block(width, middle, width, r)
        depth_scale(self.z_proj, num_blocks)
        depth_scale(self.resnet.c4, num_blocks)
        self.unpool: nn.ConvTranspose2d | None = None
        if spec.mixin is not None and config.unpool == "transposed":
            rate = r // spec.mixin
            self.unpool = nn.ConvTranspose2d(widths[spec.mixin], width, rate, stride=rate)

    def forward(self, x: Tensor, activated: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state after the layer, and the layer's KL, (N,) nats: what training needs of `read`."""
        q_and_p, z, x = self._draw(x, activated, noise)
        # The KL comes first, so that recomputing ends before the last convolution.
        kl = gaussian_kl(*q_and_p).sum(dim=(1, 2, 3))
        return self.merge(x, z), kl

    def read(
        self, x: Tensor, activated: Tensor, noise: Tensor | None, merge: bool = True
    ) -> LayerPosterior:
        """Run the layer under its posterior.

        Args:
            x: the state, (N, width, R, R).
            activated: GELU of the encoder's activation, (N, width, R, R).
            noise: standard-normal draws (N, zdim, R, R); None sends the mean down.
            merge: run the residual path to the state after the layer.
        """
        q_and_p, z, x = self._draw(x, activated, noise)
        return LayerPosterior(*q_and_p, z, self.merge(x, z) if merge else None)

    def _draw(
        self, x: Tensor, activated: Tensor, noise: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor, Tensor]:
        """Return mean and log standard deviation of q and of p; z; the state that z is merged into."""
        shared = F.gelu(x)
        q_mean, q_log_std = self.posterior(shared, activated).float().chunk(2, dim=1)
        p_mean, p_log_std, x = self.predict(x, shared)
        z = q_mean if noise is None else gaussian_sample(q_mean, q_log_std, noise)
        return (q_mean, q_log_std, p_mean, p_log_std), z, x

    def predict(self, x: Tensor, activated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return p's mean and log standard deviation, and the state x with the prior's features added.

        `activated` is the GELU of x; mean and deviation are float32 under autocast too.
        """
        parameters, features = self.prior(activated).split([2 * self.zdim, x.shape[1]], dim=1)
        p_mean, p_log_std = parameters.float().chunk(2, dim=1)
        return p_mean, p_log_std, x + features

    def merge(self, x: Tensor, z: Tensor) -> Tensor:
        """Add a latent to the state and run the residual path."""
        x = x + self.z_proj(z)
        merged: Tensor = self.resnet(F.gelu(x), residual=x)
        return merged


def _conv_parts(layer: nn.Conv2d, parts: Sequence[Tensor]) -> Tensor:
    """Convolve the channels of `parts`, in order, without concatenating them."""
    if len(parts) == 1:
        whole: Tensor = layer(parts[0])
        return whole
    first, *weights = layer.weight.split([part.shape[1] for part in parts], dim=1)
    x = F.conv2d(parts[0], first, layer.bias)
    for part, weight in zip(parts[1:], weights, strict=True):
        x = x + F.conv2d(part, weight)
    return x
