"""The residual bottleneck block and the grammar of block strings (Child 2020, figure 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdvae_repr.errors import ConfigError


class BlockSpec(NamedTuple):
    """One block of a block string."""

    resolution: int
    down_rate: int | None = None  # `32d2`: average pooling by 2 after the block
    mixin: int | None = None  # `8m4`: adds the 4x4 state, unpooled, before the block


def parse_blocks(string: str, *, key: str) -> list[BlockSpec]:
    """Read `32x11,32d2,16x6` (encoder) or `1x1,4m1,4x2` (decoder) into blocks, in order.

    Raises:
        ConfigError: an item that is none of RxCOUNT, RdRATE, RmRESOLUTION, R.
    """
    blocks: list[BlockSpec] = []
    for item in string.split(","):
        try:
            for letter in "xmd":
                if letter in item:
                    resolution, number = (int(part) for part in item.split(letter))
                    if min(resolution, number) < 1:
                        raise ValueError
                    match letter:
                        case "x":
                            blocks += [BlockSpec(resolution)] * number
                        case "m":
                            blocks.append(BlockSpec(resolution, mixin=number))
                        case _:
                            blocks.append(BlockSpec(resolution, down_rate=number))
                    break
            else:
                blocks.append(BlockSpec(int(item)))
        except ValueError as error:
            raise ConfigError(
                f"{key}: expected items as 32x11, 32d2 or 8m4, found {item!r} in {string!r}"
            ) from error
    return blocks


def parse_widths(string: str) -> dict[int, int]:
    """Read `16:128,8:192` into {resolution: channels}; an empty string gives {}."""
    try:
        return {int(k): int(v) for k, v in (item.split(":") for item in string.split(",") if item)}
    except ValueError as error:
        raise ConfigError(f"model.widths: expected 16:128,8:192, found {string!r}") from error


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
