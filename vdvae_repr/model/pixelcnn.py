"""PixelCNN++ (Salimans 2017, arXiv:1701.05517): each pixel's likelihood given those before it, row by row.

Two streams of gated residual blocks: `downward` knows the rows above a pixel, `rightward` those and the
pixels to its left. Both go down to coarser resolutions and come back, over skip connections. The likelihood
is the VDVAE's, a discretised logistic mixture whose green is given red, and whose blue is given both.

Convolutions are shifted: padded above, and to the left, by so much that none reads a later pixel. One pass
of the whole image therefore gives every pixel's likelihood. To draw an image takes a step a pixel, which
`_Window` computes alone, from what it keeps of the steps before (Ramachandran 2017, arXiv:1704.06001).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Real
from statistics import NormalDist
from typing import NoReturn, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vdvae_repr.config import PixelCNNConfig, shown, whole_number
from vdvae_repr.errors import ConfigError, DataError, TaskError
from vdvae_repr.model.base import ELBO, ImageModel, checkpointed
from vdvae_repr.model.distributions import (
    LayerPosterior,
    LogisticMixture,
    mixture_draw,
    mixture_log_prob,
)
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.model.noise import NoiseFn, seed_of
from vdvae_repr.model.precision import arithmetic
from vdvae_repr.model.preprocessing import to_input, to_target, to_uint8

MARGIN = 2  # pixels that the first convolutions reach above an image and to its left
Masks = Callable[[int], Tensor | None]
"""Gives the dropout mask of a block, by its number; None outside training."""


def concat_elu(x: Tensor) -> Tensor:
    """Return ELU of x and of -x side by side, (N, 2 C, H, W)."""
    return F.elu(torch.cat([x, -x], dim=1))


class ShiftedConv(nn.Module):
    """A weight-normalised convolution that is padded so that it reads nothing below, nor what it may not.

    Output (r, c) reads the rows r - top .. r - top + height - 1 and the columns c - left .. c - left + width
    - 1; with `stride` 2, r and c are every second row and column.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], top: int, left: int,
        *, stride: int = 1, gain: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel, self.top, self.left, self.stride = kernel, top, left, stride
        self.right = kernel[1] - 1 - left  # negative where even the pixel itself is not read
        self.direction = nn.Parameter(0.05 * torch.randn(outputs, inputs, *kernel))
        self.gain = nn.Parameter(torch.full((outputs, 1, 1, 1), gain))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> Tensor:
        """Return the kernel (O, I, h, w): `gain` long for each output channel."""
        return self.gain * _unit(self.direction, (1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, H / stride, W / stride)."""
        x = F.pad(x, (self.left, self.right, self.top, self.kernel[0] - 1 - self.top))
        return F.conv2d(x, self.weight(), self.bias, self.stride)


class Enlarge(nn.Module):
    """A weight-normalised transposed convolution of stride 2: row i gives the rows 2 i and 2 i + 1.

    Of a kernel (2, 2) column j gives the columns 2 j and 2 j + 1; of (2, 3) its neighbours add to them.
    """

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.side = (kernel[1] - 1) // 2
        self.direction = nn.Parameter(0.05 * torch.randn(channels, channels, *kernel))
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))

    def weight(self) -> Tensor:
        """Return the kernel (I, O, h, w): `gain` long for each output channel."""
        return self.gain * _unit(self.direction, (0, 2, 3))

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2 H, 2 W), by a weight that was computed before where one is given."""
        weight, side = self.weight() if weight is None else weight, (0, self.side)
        return F.conv_transpose2d(x, weight, self.bias, 2, padding=side, output_padding=side)


def _unit(direction: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Return vectors over some dimensions at a length of 1."""
    return direction / torch.linalg.vector_norm(direction, dim=dim, keepdim=True)


class Whole:
    """How a stream's convolutions are computed: here, of whole images. `level` counts halvings."""

    def enter(self, conv: ShiftedConv, image: Tensor) -> Tensor:
        """Return a first convolution of the image."""
        return conv(image)

    def same(self, conv: ShiftedConv, x: Tensor, level: int) -> Tensor:
        """Return a convolution of stride 1."""
        return conv(x)

    def shrink(self, conv: ShiftedConv, x: Tensor, level: int) -> Tensor | None:
        """Return a convolution of stride 2; None where no coarse row or column begins."""
        return conv(x)

    def enlarge(self, enlarge: Enlarge, x: Tensor | None, level: int) -> Tensor:
        """Return what a coarse state is enlarged to at `level`; without one, the rest of the last."""
        return enlarge(x)


WHOLE = Whole()


class GatedBlock(nn.Module):
    """A residual block whose update is gated; `beside` is a second input of `beside` channels, or none."""

    def __init__(
        self, number: int, level: int, width: int, kernel: tuple[int, int], beside: int
    ) -> None:
        super().__init__()
        self.number, self.level = number, level
        self.first = ShiftedConv(2 * width, width, kernel, 1, 1)
        self.beside = ShiftedConv(2 * beside, width, (1, 1), 0, 0) if beside else None
        self.second = ShiftedConv(2 * width, 2 * width, kernel, 1, 1, gain=0.1)

    def forward(
        self, x: Tensor, beside: Tensor | None, mask: Tensor | None, how: Whole = WHOLE
    ) -> Tensor:
        """Map (N, C, H, W) to the same; `mask` (N, 2 C, H, W) scales what is inside."""
        inside = how.same(self.first, concat_elu(x), self.level)
        if self.beside is not None and beside is not None:
            inside = inside + how.same(self.beside, concat_elu(beside), self.level)
        inside = concat_elu(inside)
        if mask is not None:
            inside = inside * mask
        values, gates = how.same(self.second, inside, self.level).chunk(2, dim=1)
        return x + values * torch.sigmoid(gates)


class Stream(nn.Module):
    """A U of gated blocks, from the image's resolution (level 0) to the coarsest and back.

    The rightward stream's blocks are given the states of the downward stream's, by number.
    """

    def __init__(self, config: PixelCNNConfig, *, rightward: bool) -> None:
        super().__init__()
        self.config = config
        width, levels = config.width, range(config.resolutions)
        # The image has a fourth channel, of ones, which tells it from what it is padded with.
        if rightward:
            above, beside = ShiftedConv(4, width, (1, 3), 1, 1), ShiftedConv(4, width, (2, 1), 1, 1)
            self.enter = nn.ModuleList([above, beside])
        else:
            self.enter = nn.ModuleList([ShiftedConv(4, width, (2, 3), 2, 1)])
        kernel = (2, 2) if rightward else (2, 3)
        numbers = itertools.count()

        def blocks(level: int, count: int, beside: int) -> nn.ModuleList:
            return nn.ModuleList(
                GatedBlock(next(numbers), level, width, kernel, beside) for _ in range(count)
            )

        own = width if rightward else 0
        self.encode = nn.ModuleList(blocks(level, config.blocks, own) for level in levels)
        # On the way back all but the coarsest level use one state more: the one that was halved.
        self.decode = nn.ModuleList(
            blocks(level, config.blocks + (level != levels[-1]), own + width) for level in levels
        )
        self.shrink = nn.ModuleList(
            ShiftedConv(width, width, kernel, 1, 1, stride=2) for _ in levels[1:]
        )
        self.enlarge = nn.ModuleList(Enlarge(width, kernel) for _ in levels[1:])

    def forward(
        self,
        image: Tensor,
        above: Mapping[int, Tensor] | None,
        masks: Masks,
        how: Whole = WHOLE,
        recompute: Collection[int] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the last state and all states by their block's number, each (N, width, R, R).

        Args:
            image: (N, 4, S, S), the last channel being 1.
            above: of the rightward stream, the downward stream's states.
            masks: dropout, by block.
            how: of whole images, or of one row or pixel.
            recompute: resolutions whose blocks keep their inputs alone for the backward pass.
        """
        states: dict[int, Tensor] = {}

        def apply(block: GatedBlock, x: Tensor, skip: Tensor | None) -> Tensor:
            number = block.number
            parts = [above[number]] if above is not None else []
            parts += [skip] if skip is not None else []
            beside = torch.cat(parts, dim=1) if parts else None
            if self.config.image_size >> block.level in recompute:
                x = checkpointed(block, x, beside, masks(number))
            else:
                x = block(x, beside, masks(number), how)
            states[number] = x
            return x

        def at(level: int, x: Tensor) -> Tensor:
            skips = [x]
            for block in cast(Iterable[GatedBlock], self.encode[level]):
                x = apply(block, x, None)
                skips.append(x)
            if level + 1 == self.config.resolutions:
                skips.pop()
            else:
                conv, enlarge = self.shrink[level], self.enlarge[level]
                lower = how.shrink(cast(ShiftedConv, conv), x, level)
                if lower is not None:
                    lower = at(level + 1, lower)
                x = how.enlarge(cast(Enlarge, enlarge), lower, level)
            for block in cast(Iterable[GatedBlock], self.decode[level]):
                x = apply(block, x, skips.pop())
            return x

        first, *others = (how.enter(cast(ShiftedConv, conv), image) for conv in self.enter)
        return at(0, sum(others, start=first)), states


class PixelCNN(ImageModel):
    """A PixelCNN++. Build with a `PixelCNNConfig`, or load one with `vdvae_repr.load`.

    It has no latents: the likelihood is exact, and there are no layers to read, store or decode.
    """

    config: PixelCNNConfig

    def __init__(self, config: PixelCNNConfig, *, name: str = "pixelcnn") -> None:
        super().__init__(config, name)
        if not isinstance(config, PixelCNNConfig):
            raise ConfigError(
                f"config: expected a PixelCNNConfig, found {type(config).__name__}; vr.load takes names"
            )
        self.downward = Stream(config, rightward=False)
        self.rightward = Stream(config, rightward=True)
        outputs = 10 * config.num_mixtures
        self.out_conv = ShiftedConv(config.width, outputs, (1, 1), 0, 0)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """None: a PixelCNN has no latents."""
        return ()

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Those that blocks work at, ascending."""
        return tuple(self.config.image_size >> k for k in reversed(range(self.config.resolutions)))

    @property
    def compilable(self) -> list[nn.Module]:
        """The blocks of both streams."""
        return [module for module in self.modules() if isinstance(module, GatedBlock)]

    @property
    def levels(self) -> dict[int, int]:
        """How often the image is halved where a stream's blocks work, by their numbers."""
        blocks = (module for module in self.downward.modules() if isinstance(module, GatedBlock))
        return {block.number: block.level for block in blocks}

    def forward(self, images: Tensor, noise: NoiseFn, recompute: Collection[int] = ()) -> ELBO:
        """Return the negative log-likelihood of uint8 (N, 3, S, S) images as a distortion; the rate is 0.

        In training mode the draws say what dropout leaves out.
        """
        parameters = self.mixture_parameters(to_input(images, self.config), noise, recompute)
        distortion = self.distortion(parameters.float(), to_target(images, self.config))
        kl = distortion.new_zeros(len(images), 0)
        return ELBO(distortion=distortion, rate=kl.sum(dim=1), kl=kl)

    def mixture_parameters(
        self, x: Tensor, noise: NoiseFn | None = None, recompute: Collection[int] = ()
    ) -> Tensor:
        """Return the likelihood's raw parameters (N, 10 K, S, S) of normalised images x (N, 3, S, S)."""
        x = x.to(self.out_conv.bias.dtype)
        image = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        drop = noise if self.training and self.config.dropout > 0 else None
        _, states = self.downward(image, None, self._masks(drop, 0), recompute=recompute)
        last, _ = self.rightward(image, states, self._masks(drop, 1), recompute=recompute)
        return self.out_conv(F.elu(last))

    def _masks(self, noise: NoiseFn | None, stream: int) -> Masks:
        """Return dropout's masks of a stream's blocks, as functions of the draws."""
        if noise is None:
            return lambda number: None
        rate, levels = self.config.dropout, self.levels
        least = NormalDist().inv_cdf(rate)

        def mask(number: int) -> Tensor:
            side = self.config.image_size >> levels[number]
            shape = (2 * self.config.width, side, side)
            drawn = noise(LayerSpec(2 * number + stream, f"{side}x{side}", side, shape))
            return (drawn >= least).to(drawn.dtype).div_(1 - rate)

        return mask

    def log_likelihood(self, images: Tensor, noise: NoiseFn) -> tuple[list[LayerPosterior], Tensor]:
        """Return no layers, and log p(x) of uint8 (N, 3, S, S) images, (N,) float64, nats."""
        parameters = self.mixture_parameters(to_input(images, self.config), noise)
        mixture = LogisticMixture.from_parameters(parameters)
        log_prob = mixture_log_prob(mixture, to_target(images, self.config))
        return [], log_prob.double().sum(dim=(1, 2))

    def progress_rows(self, images: NDArray[np.uint8]) -> list[tuple[str, NDArray[np.uint8]]]:
        """Return samples, as many as there are images."""
        return [("samples, temperature 1", self.sample(len(images)))]

    @torch.no_grad()
    @arithmetic()
    def sample(self, count: int, temperature: float = 1.0, seed: int = 0) -> NDArray[np.uint8]:
        """Draw images uint8 (count, S, S, 3), pixel by pixel; each depends on seed and its place alone.

        Args:
            count: images.
            temperature: of the choice among logistics and of their scales; 1 as trained, 0 draws nothing.
            seed: of the draws.

        Raises:
            ConfigError: a number that is none. DataError: the weights are not finite, so that nothing can be
                drawn.
        """
        count, seed = whole_number("count", count, 1), whole_number("seed", seed, 0)
        if isinstance(temperature, bool) or not (
            isinstance(temperature, Real) and 0 <= float(temperature) < math.inf
        ):
            raise ConfigError(
                f"temperature: expected a finite number from 0, found {shown(temperature)}"
            )
        size, device = self.config.image_size, self.device
        draws = pixel_draws(seed, count, self.config).to(device)
        window = _Window(self, count)
        finite = torch.ones(count, dtype=torch.bool, device=device)
        pixels = torch.zeros(count, 3, size, size, device=device)
        for row in range(size):
            window.row(row)
            for column in range(size):
                parameters = window.pixel(column).float()
                finite &= torch.isfinite(parameters).flatten(1).all(dim=1)
                own = draws[:, :, row, column, None, None].split(
                    [self.config.num_mixtures, 3], dim=1
                )
                mixture = LogisticMixture.from_parameters(parameters)
                drawn = mixture_draw(mixture, *own, temperature=float(temperature), rounded=True)
                pixels[:, :, row, column] = drawn[:, :, 0, 0]
                window.write(to_input(((drawn + 1) * 127.5).round(), self.config), column)
        if not finite.all():
            raise DataError(
                f"{self.name}: expected a finite likelihood to draw from, found NaN or infinity; load other "
                "weights"
            )
        return to_uint8(pixels)

    def posterior(self, *_: object, **__: object) -> NoReturn:
        """Refuse: there are no latents.

        Raises:
            TaskError: always.
        """
        raise TaskError(self.about_latents)

    decode = posterior

    def __repr__(self) -> str:
        """Say how large it is."""
        size, count = self.config.image_size, sum(p.numel() for p in self.parameters())
        return f"<PixelCNN {self.name}: {size}x{size}, {count:,} parameters>"

    @property
    def about_latents(self) -> str:
        """Say, where latents are asked for, that there are none."""
        return (
            f"expected a VDVAE, found the PixelCNN {self.name}, which has no latents; load a VDVAE"
        )


def pixel_draws(seed: int, count: int, config: PixelCNNConfig) -> Tensor:
    """Return what images are drawn by, uniform (count, K + 3, S, S), of seed and the image's number alone."""
    drawn = []
    for i in range(count):
        generator = torch.Generator("cpu").manual_seed(seed_of(seed, str(i), "pixels"))
        shape = (config.num_mixtures + 3, config.image_size, config.image_size)
        drawn.append(torch.rand(shape, generator=generator))
    return torch.stack(drawn)


class _Window(Whole):
    """Computes one row of the downward stream, or one pixel of the rightward stream.

    What convolutions read of earlier rows and columns is kept: of each the last two rows of its input,
    padded; of each `Enlarge` the two rows that it made last.
    """

    def __init__(self, model: PixelCNN, count: int) -> None:
        self.model, self.count, self.size = model, count, model.config.image_size
        bias = model.out_conv.bias
        self.image = bias.new_zeros(count, 4, self.size + MARGIN, self.size + 2 * MARGIN)
        self.image[:, 3, MARGIN:, MARGIN:-MARGIN] = 1
        kinds = (ShiftedConv, Enlarge)
        self.weights = {m: m.weight() for m in model.modules() if isinstance(m, kinds)}
        self.kept: dict[nn.Module, Tensor] = {}
        self.levels = model.levels
        self.above: dict[int, Tensor] = {}
        self.at_row, self.at_column = 0, cast(int | None, None)  # without a column, the whole row

    def row(self, row: int) -> None:
        """Begin a row, all above it being written: compute the downward stream there."""
        self.at_row, self.at_column = row, None
        _, states = self.model.downward(self.image, None, lambda number: None, self)
        self.above |= states  # a coarse row serves several rows

    def pixel(self, column: int) -> Tensor:
        """Return the likelihood's raw parameters (N, 10 K, 1, 1) of the row's next pixel."""
        self.at_column = column
        above = {
            number: state.narrow(3, column >> self.levels[number], 1)
            for number, state in self.above.items()
        }
        last, _ = self.model.rightward(self.image, above, lambda number: None, self)
        return self.same(self.model.out_conv, F.elu(last), 0)

    def write(self, x: Tensor, column: int) -> None:
        """Write the normalised pixel (N, 3, 1, 1) that was drawn."""
        self.image[:, :3, MARGIN + self.at_row, MARGIN + column] = x[:, :, 0, 0]

    def enter(self, conv: ShiftedConv, image: Tensor) -> Tensor:
        """Return a first convolution of the image as far as it is written."""
        top, left = MARGIN + self.at_row - conv.top, MARGIN - conv.left + (self.at_column or 0)
        outputs = self.size if self.at_column is None else 1
        part = image.narrow(2, top, conv.kernel[0]).narrow(3, left, outputs + conv.kernel[1] - 1)
        return self._computed(conv, part)

    def same(self, conv: ShiftedConv, x: Tensor, level: int) -> Tensor:
        """Return a convolution of stride 1, (N, O, 1, 1 or R)."""
        return self._computed(conv, x if conv.kernel == (1, 1) else self._input(conv, x, level))

    def shrink(self, conv: ShiftedConv, x: Tensor, level: int) -> Tensor | None:
        """Return a convolution of stride 2; None where no coarse row or column begins."""
        part = self._input(conv, x, level)
        if (self.at_row >> level) % 2 or ((self.at_column or 0) >> level) % 2:
            return None
        return self._computed(conv, part)

    def enlarge(self, enlarge: Enlarge, x: Tensor | None, level: int) -> Tensor:
        """Return what a coarse state is enlarged to; without one, the rest of the last."""
        column, side = (self.at_column or 0) >> level, self.size >> level
        outputs = side if self.at_column is None else 1
        if x is not None:
            made = enlarge(x, self.weights[enlarge])
            rows = self._kept(enlarge, made.shape[1], side)
            rows[..., column : column + made.shape[3]] = made
        row = self.kept[enlarge].narrow(2, (self.at_row >> level) % 2, 1)
        return row.narrow(3, column, outputs)

    def _computed(self, conv: ShiftedConv, part: Tensor) -> Tensor:
        """Return a convolution of what it reads, as a product where it is one pixel: less overhead."""
        weight = self.weights[conv]
        if part.shape[2:] == weight.shape[2:]:
            return F.linear(part.flatten(1), weight.flatten(1), conv.bias)[:, :, None, None]
        return F.conv2d(part, weight, conv.bias, (1, conv.stride))

    def _input(self, conv: ShiftedConv, x: Tensor, level: int) -> Tensor:
        """Keep the input x (N, I, 1, w), and return what the convolution reads for w outputs."""
        column, side = (self.at_column or 0) >> level, self.size >> level
        rows = self._kept(conv, x.shape[1], side + conv.left + conv.right)
        if not self.at_column:
            rows[:, :, 0] = rows[:, :, 1]
        rows[:, :, 1, column + conv.left : column + conv.left + x.shape[3]] = x[:, :, 0]
        return rows.narrow(3, column, x.shape[3] + conv.kernel[1] - 1)

    def _kept(self, module: nn.Module, channels: int, width: int) -> Tensor:
        """Return two rows (N, C, 2, width) that are kept for a module, at first zeros."""
        if module not in self.kept:
            self.kept[module] = self.image.new_zeros(self.count, channels, 2, width)
        return self.kept[module]
