"""The very deep VAE, from top to bottom as in the paper (Child 2020, arXiv:2011.10650, figure 3).

Images are uint8 (N, H, W, 3) outside; inside, tensors are NCHW float32. q is the posterior, p the
prior; layer 0 is the coarsest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from numbers import Real
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vdvae_repr.config import (
    ModelConfig,
    StudentConfig,
    hidden_by_mask,
    shown,
    whole_number,
    with_hints,
)
from vdvae_repr.errors import CheckpointError, ConfigError, DataError, LayerError, first_line
from vdvae_repr.model.base import ELBO, ImageModel, checkpointed, expect_finite
from vdvae_repr.model.blocks import (
    BottomUpBlock,
    TopDownBlock,
    Widths,
    conv,
    depth_scale,
)
from vdvae_repr.model.distributions import (
    LayerPosterior,
    LogisticMixture,
    mixture_log_prob,
    mixture_mean,
    mixture_sample,
)
from vdvae_repr.model.graphs import Inferred, graphed_passes
from vdvae_repr.model.inference import plan_of
from vdvae_repr.model.layers import (
    ByLayer,
    LayerSpec,
    make_layer_specs,
    select_layers,
)
from vdvae_repr.model.noise import NoiseFn, image_names, seed_of, seeded_noise
from vdvae_repr.model.precision import Precision, arithmetic
from vdvae_repr.model.preprocessing import (
    as_image_tensor,
    images_given,
    to_input,
    to_target,
    to_uint8,
)
from vdvae_repr.model.published import from_published_names
from vdvae_repr.model.structure import check_structure, parse_blocks, parse_widths
from vdvae_repr.output import html_table

_GREW = "layer by layer the draws grew beyond what float32 holds; take another seed"


def _nats(layer: LayerPosterior) -> float:
    return float(layer.kl.sum() / max(1, len(layer.mean)))


class Posterior(ByLayer[LayerPosterior]):
    """The posterior of a batch by layer name, coarsest first.

    `kl` (N, layers traversed) is in nats an image; `bottom_up` maps a resolution to the encoder's
    activation there, where it was asked for.
    """

    def __init__(
        self, layers: dict[str, LayerPosterior], kl: Tensor, bottom_up: dict[int, Tensor]
    ) -> None:
        super().__init__(layers)
        self.kl = kl
        self.bottom_up = bottom_up

    def __repr__(self) -> str:
        """Say what was read of how many images."""
        names = list(self._layers)
        which = f" ({names[0]} .. {names[-1]})" if names else ""
        return f"<Posterior: {len(self.kl)} images, {len(self)} layers{which}>"

    def _repr_html_(self) -> str:
        """Show the layers with their shapes and mean KL, in a notebook."""
        rows = {
            name: f"{'x'.join(map(str, layer.mean.shape[1:]))}, {_nats(layer):.1f} nats an image"
            for name, layer in self._layers.items()
        }
        return html_table(repr(self).strip("<>"), rows)


class BottomUp(nn.Module):
    """The deterministic encoder: image to one activation a resolution."""

    def __init__(self, config: ModelConfig | StudentConfig, widths: Mapping[int, int]) -> None:
        super().__init__()
        self.specs = parse_blocks(config.bottom_up, key="model.bottom_up")
        self.widths = widths
        self.in_conv = conv(3, config.width, 3)
        self.blocks = nn.ModuleList()
        for spec in self.specs:
            width = widths[spec.resolution]
            block = BottomUpBlock(width, int(width * config.bottleneck_multiple), spec.resolution)
            depth_scale(block.c4, len(self.specs))
            self.blocks.append(block)

    def forward(
        self,
        x: Tensor,
        recompute: Collection[int] = (),
        blocks: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> dict[int, Tensor]:
        """Map (N, 3, S, S) to {resolution: (N, width, R, R)}, the last activation of each.

        The activations inside blocks at the resolutions `recompute` are not kept for the backward pass.
        `blocks` stand in for the model's own.
        """
        x = self.in_conv(x)
        activations = {x.shape[-1]: x}
        own = cast(Iterable[Callable[[Tensor], Tensor]], self.blocks)
        for spec, block in zip(self.specs, blocks or own, strict=True):
            x = checkpointed(block, x) if spec.resolution in recompute else block(x)
            if spec.down_rate is not None:
                x = F.avg_pool2d(x, spec.down_rate)
                wanted = self.widths[x.shape[-1]]
                x = F.pad(x, (0, 0, 0, 0, 0, wanted - x.shape[1]))  # going up, new channels are 0
            activations[x.shape[-1]] = x
        return activations


class TopDown(nn.Module):
    """The hierarchy of stochastic layers, coarse to fine, and the likelihood's parameters."""

    def __init__(self, config: ModelConfig, widths: Mapping[int, int]) -> None:
        super().__init__()
        self.specs = parse_blocks(config.top_down, key="model.top_down")
        self.layers = make_layer_specs(self.specs, config.zdim)
        self.widths = widths
        self.image_size = config.image_size
        self.blocks = nn.ModuleList(
            TopDownBlock(config, spec, widths, len(self.specs)) for spec in self.specs
        )
        resolutions = sorted({spec.resolution for spec in self.specs})
        self.constants = nn.ParameterList(
            nn.Parameter(torch.zeros(1, widths[r], r, r))
            for r in resolutions
            if r <= config.no_bias_above
        )
        self.gain = nn.Parameter(torch.ones(1, config.width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, config.width, 1, 1))
        self.out_conv = conv(config.width, 10 * config.num_mixtures)

    def initial_states(self, num_images: int) -> dict[int, Tensor]:
        """Return the learned constants, one a resolution, for a batch."""
        return {c.shape[-1]: c.expand(num_images, -1, -1, -1) for c in self.constants}

    def enter(self, index: int, states: dict[int, Tensor], num_images: int) -> Tensor:
        """Return the state that layer `index` starts from: its resolution's, plus the mixed-in one."""
        spec = self.specs[index]
        r = spec.resolution
        x = states.get(r)
        if x is None:
            x = self.gain.new_zeros(num_images, self.widths[r], r, r)
        if spec.mixin is not None:
            coarse, unpool = states[spec.mixin], self.block(self.layers[index]).unpool
            if unpool is not None:
                return x + unpool(coarse)
            x = x + F.interpolate(coarse[:, : x.shape[1]], scale_factor=r // spec.mixin)
        return x

    def block(self, spec: LayerSpec) -> TopDownBlock:
        """Return the block of a layer."""
        return cast(TopDownBlock, self.blocks[spec.index])

    def mixture_parameters(self, states: dict[int, Tensor]) -> Tensor:
        """Return the likelihood's raw parameters, (N, 10 K, S, S)."""
        parameters: Tensor = self.out_conv(self.final_state(states))
        return parameters

    def final_state(self, states: dict[int, Tensor]) -> Tensor:
        """Return the finest state after gain and bias, (N, width, S, S)."""
        return states[self.image_size] * self.gain + self.bias


class VDVAE(ImageModel):
    """A very deep VAE. Build with a `ModelConfig`, or load one with `vdvae_repr.load`."""

    config: ModelConfig

    def __init__(self, config: ModelConfig, *, name: str = "vdvae") -> None:
        super().__init__(config, name)
        if not isinstance(config, ModelConfig):
            raise ConfigError(
                f"config: expected a ModelConfig, found {type(config).__name__}; vr.load takes names"
            )
        check_structure(config)  # before anything is built
        widths = Widths(config.width, parse_widths(config.widths))
        self.bottom_up = BottomUp(config, widths)
        self.top_down = TopDown(config, widths)

    def __repr__(self) -> str:
        """Say what its layers are, and how large it is; `model.children()` has its modules."""
        size, count = self.config.image_size, sum(p.numel() for p in self.parameters())
        return (
            f"<VDVAE {self.name}: {size}x{size}, {len(self.layers)} layers ({self.layers[0].name} .. "
            f"{self.layers[-1].name}), {count:,} parameters>"
        )

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The stochastic layers, coarsest first."""
        return self.top_down.layers

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Those that have layers, ascending."""
        return tuple(sorted({spec.resolution for spec in self.layers}))

    @property
    def compilable(self) -> list[nn.Module]:
        """The blocks of both halves."""
        return [*self.bottom_up.blocks, *self.top_down.blocks]

    def forward(self, images: Tensor, noise: NoiseFn, recompute: Collection[int] = ()) -> ELBO:
        """Return the ELBO's terms of uint8 (N, 3, S, S) images under the posterior draws given."""
        x, target = to_input(images, self.config), to_target(images, self.config)
        return self.elbo(x, target, noise, recompute)

    def elbo(
        self, x: Tensor, target: Tensor, noise: NoiseFn, recompute: Collection[int] = ()
    ) -> ELBO:
        """Return the ELBO's terms of normalised inputs x and targets, both (N, 3, S, S).

        Blocks at the resolutions `recompute` (and the likelihood, if the images' is one) keep their inputs
        alone for the backward pass, which runs them again: less memory, more time, the same gradients.
        """
        activated = {r: F.gelu(a) for r, a in self.bottom_up(x, recompute).items()}
        states, kls = self.top_down.initial_states(len(x)), []
        for spec in self.layers:
            r, block = spec.resolution, self.top_down.block(spec)
            inputs = self.top_down.enter(spec.index, states, len(x)), activated[r], noise(spec)
            states[r], kl = checkpointed(block, *inputs) if r in recompute else block(*inputs)
            kls.append(kl)
        kl = torch.stack(kls, dim=1)
        parameters = self.top_down.mixture_parameters(states).float()
        if self.config.image_size in recompute:
            distortion = checkpointed(self.distortion, parameters, target)
        else:
            distortion = self.distortion(parameters, target)
        return ELBO(distortion=distortion, rate=kl.sum(dim=1), kl=kl)

    def log_likelihood(self, images: Tensor, noise: NoiseFn) -> tuple[list[LayerPosterior], Tensor]:
        """Return the layers read of uint8 (N, 3, S, S) images, and log p(x | z), (N,) float64, nats."""
        layers, _, states, _ = self.infer(
            to_input(images, self.config), noise, top_down=False, bottom_up=False
        )
        mixture = LogisticMixture.from_parameters(self.top_down.mixture_parameters(states))
        log_prob = mixture_log_prob(mixture, to_target(images, self.config), self.config.bits)
        return layers, log_prob.double().sum(dim=(1, 2))

    def progress_rows(self, images: NDArray[np.uint8]) -> list[tuple[str, NDArray[np.uint8]]]:
        """Return reconstructions of some images from the first k layers, and samples, as published."""
        read, rows = self._read(as_image_tensor(images, self.config.image_size), self.layers), []
        for k in np.floor(np.linspace(0, 1, 8)[1:-1] * len(self.layers)).astype(int):
            given = {spec.name: read[spec.name].mean for spec in self.layers[: max(k, 1)]}
            rebuilt = self.decode(given, rest="sample", temperature=0.1)
            rows.append((f"from {len(given)} of {len(self.layers)} layers", rebuilt))
        for temperature in (1.0, 0.9, 0.8, 0.7):
            drawn = self.sample(len(images), temperature)
            rows.append((f"samples, temperature {temperature:g}", drawn))
        return rows

    def infer(
        self,
        x: Tensor,
        noise: NoiseFn | None,
        stop: int | None = None,
        *,
        keep: Collection[int] | None = None,
        top_down: bool = True,
        bottom_up: bool = True,
    ) -> Inferred:
        """Run the posterior over the first `stop` layers of a normalised (N, 3, S, S) input.

        Args:
            x: the input.
            noise: draws by layer; None sends means down.
            stop: layers to run; all if not given.
            keep: indices of the layers to return; all if not given.
            top_down: return the states after the layers too; without, that after layer `stop` is not made.
            bottom_up: return the bottom-up activations too; without, they are let go when they are used.

        Returns the layers kept, the KL (N, layers run), the top-down states by resolution, the bottom-up
        activations.
        """
        if (passes := graphed_passes(self)) is None:
            return self._infer(x, noise, stop, keep, top_down, bottom_up)
        kept = None if keep is None else tuple(keep)
        precision = torch.is_autocast_enabled(x.device.type), torch.backends.cudnn.allow_tf32
        return passes(
            lambda x, noise: self._infer(x, noise, stop, kept, top_down, bottom_up),
            x,
            noise,
            self.layers[:stop],
            (stop, kept, top_down, bottom_up, precision, self.top_down.gain.data_ptr()),
        )

    def _infer(
        self,
        x: Tensor,
        noise: NoiseFn | None,
        stop: int | None,
        keep: Collection[int] | None,
        top_down: bool,
        bottom_up: bool,
    ) -> Inferred:
        self.expect_float32()
        plan = plan_of(self, x)
        x = x.contiguous(memory_format=torch.channels_last)
        activations = self.bottom_up(x, blocks=plan and plan.bottom_up)
        used = {spec.resolution for spec in self.layers[:stop]}
        activated = {
            r: F.gelu(activations[r] if bottom_up else activations.pop(r)) for r in sorted(used)
        }
        if not bottom_up:
            activations.clear()
        states = _channels_last(self.top_down.initial_states(len(x)), used)
        layers, kls = [], []
        for spec in self.layers[:stop]:
            r = spec.resolution
            state = self.top_down.enter(spec.index, states, len(x))
            drawn = None if noise is None else noise(spec)
            wanted = top_down or spec.index + 1 != stop
            read = plan.layers[spec.index] if plan else self.top_down.block(spec).read
            layer = read(state, activated[r], drawn, wanted)
            if layer.top_down is not None:
                states[r] = layer.top_down
            kls.append(layer.kl.sum(dim=(1, 2, 3)))
            if keep is None or spec.index in keep:
                after = layer.top_down if top_down else None
                if plan and after is not None:
                    after = after.clone()  # because a plan changes states in place
                layers.append(replace(layer, top_down=after))
        return layers, torch.stack(kls, dim=1), states, activations

    def generate(
        self,
        num_images: int,
        latents: Mapping[int, Tensor],
        noise: NoiseFn | None = None,
        temperature: float | Sequence[float] = 1.0,
    ) -> dict[int, Tensor]:
        """Run the prior, taking given latents by layer index; the rest from noise, or the prior's mean.

        Returns the top-down states by resolution.
        """
        self.expect_float32()
        temperatures = _per_layer(temperature, len(self.layers))
        resolutions = {spec.resolution for spec in self.layers}
        states = _channels_last(self.top_down.initial_states(num_images), resolutions)
        for spec in self.layers:
            block = self.top_down.block(spec)
            state = self.top_down.enter(spec.index, states, num_images)
            p_mean, p_log_std, state = block.predict(state, F.gelu(state))
            z = latents.get(spec.index)
            if z is None:
                z = p_mean
                if noise is not None:
                    z = z + temperatures[spec.index] * torch.exp(p_log_std) * noise(spec)
            states[spec.resolution] = block.merge(state, z)
        return states

    @torch.no_grad()
    @with_hints
    def posterior(
        self,
        images: Any,
        layers: str | int | Sequence[str | int] = "all",
        z: Literal["mean", "sample"] = "mean",
        *,
        seed: int = 0,
        draw: int = 0,
        ids: Sequence[str] | None = None,
        noise: NoiseFn | None = None,
        top_down: bool = False,
        bottom_up: bool = False,
        precision: Precision = "fp32",
    ) -> Posterior:
        """Read the posterior of chosen layers; only the work that they need is done.

        Args:
            images: array or tensor (N, S, S, 3), grey (N, S, S), uint8 or floats from 0 to 1, or a list of
                such images or PIL images.
            layers: selector; the pass stops after the last layer selected.
            z: what each layer sends down: its mean, or a draw seeded by (seed, image id, layer).
            seed: of the draws.
            draw: which of a seed's draws.
            ids: the images' ids, by default "0", "1", ...
            noise: draws by layer, in place of those that z, seed, draw and ids name.
            top_down: keep the states after the layers too.
            bottom_up: keep the encoder's activations too.
            precision: fp32; bf16 and tf32 (GPUs) trade exactness for speed.

        Raises:
            DataError: images of another shape or dtype, another number of ids, or values or a KL that are not
                finite, as of images far from those of the training; the layer and the image are named.
            LayerError: a selector that names no layer.
        """
        _one_of("z", z, ("mean", "sample"))
        seed, draw = whole_number("seed", seed, 0), whole_number("draw", draw, 0)
        chosen = select_layers(self.layers, layers)
        tensor = images_given(images, self.config.image_size)
        names = image_names(ids, len(tensor))
        if noise is None and z == "sample":
            noise = seeded_noise(seed, names, self.device, draw)
        posterior = self._read(
            tensor, chosen, noise, top_down=top_down, bottom_up=bottom_up, precision=precision
        )
        values: dict[tuple[str, str], Tensor] = {}
        for spec, kl in zip(self.layers, posterior.kl.split(1, dim=1), strict=False):
            if spec in chosen:
                layer = posterior[spec.name]
                read = ((part.name, getattr(layer, part.name)) for part in fields(layer))
                values |= {(spec.name, name): part for name, part in read if part is not None}
            values[spec.name, "KL"] = kl
        values |= {(f"{r}x{r}", "bottom_up"): part for r, part in posterior.bottom_up.items()}
        expect_finite(values, names, self.name, self.layers)
        return posterior

    @torch.no_grad()
    def _read(
        self,
        images: Tensor,
        layers: Sequence[LayerSpec],
        noise: NoiseFn | None = None,
        *,
        top_down: bool = False,
        bottom_up: bool = False,
        precision: Precision = "fp32",
    ) -> Posterior:
        """Read layers of uint8 (N, 3, S, S) images, NaN and infinity too; a GPU is not waited for."""
        images = images.to(self.device, non_blocking=True)
        keep, stop = [spec.index for spec in layers], layers[-1].index + 1
        with arithmetic(precision, self.device.type):
            x = to_input(images, self.config)
            read, kl, _, activations = self.infer(
                x, noise, stop, keep=keep, top_down=top_down, bottom_up=bottom_up
            )
        by_name = {spec.name: layer for spec, layer in zip(layers, read, strict=True)}
        return Posterior(by_name, kl, activations)

    @torch.no_grad()
    @arithmetic()
    def decode(
        self,
        latents: Posterior | Mapping[str, Any],
        rest: Literal["mean", "sample"] = "mean",
        pixels: Literal["mean", "sample"] = "mean",
        *,
        temperature: float | Sequence[float] = 1.0,
        seed: int = 0,
        ids: Sequence[str] | None = None,
    ) -> NDArray[np.uint8]:
        """Return images uint8 (N, S, S, 3) from latents by layer name.

        Args:
            latents: a posterior (its `z` is used), or {layer name: (N, C, R, R) array}.
            rest: fills layers not given with the prior's mean or seeded draws.
            pixels: the likelihood's expectation, rounded, or a seeded draw.
            temperature: of the draws, one number or one a layer; with `rest="sample"` alone.
            seed: of all draws.
            ids: the images' ids, by default "0", "1", ...; a draw depends on seed and id, not on the batch.

        Raises:
            ConfigError: a temperature where nothing is drawn.
            LayerError: an unknown layer, or latents of another shape than the layer's.
            DataError: a likelihood that is not finite, as of latents far from those of images. A prior's
                deviations have no bound, so that draws can lead there by themselves.
        """
        _one_of("rest", rest, ("mean", "sample"))
        if rest == "mean" and not np.array_equal(temperature, 1.0):
            raise ConfigError(
                'temperature: expected rest="sample" with it, as nothing is drawn without'
            )
        if not isinstance(latents, Mapping):
            raise LayerError(
                f"latents: expected a posterior, or arrays by layer name, found {type(latents).__name__}"
            )
        given: dict[int, Tensor] = {}
        by_name = {spec.name: spec for spec in self.layers}
        for name, value in latents.items():
            if name not in by_name:
                select_layers(self.layers, name)
                raise LayerError(f"expected the name of one layer, found {name!r}")
            if why := hidden_by_mask(value, "latents", "latents"):
                raise LayerError(f"layer {name}: {why}")
            try:
                z = torch.as_tensor(value.z if isinstance(value, LayerPosterior) else value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise LayerError(
                    f"layer {name}: expected latents in an array, found {shown(value)} "
                    f"({first_line(error)})"
                ) from error
            if z.is_complex() or tuple(z.shape[1:]) != by_name[name].shape:
                raise LayerError(
                    f"layer {name}: expected latents (N, {', '.join(map(str, by_name[name].shape))}), "
                    f"found {tuple(z.shape)} {str(z.dtype).removeprefix('torch.')}"
                )
            given[by_name[name].index] = z.to(self.device, torch.float32)
        counts = {len(z) for z in given.values()}
        if len(counts) != 1:
            raise LayerError(
                f"expected latents of equally many images, found counts {sorted(counts)}"
            )
        count = counts.pop()
        names = image_names(ids, count)
        seed = whole_number("seed", seed, 0)
        noise = seeded_noise(seed, names, self.device) if rest == "sample" else None
        states = self.generate(count, given, noise, temperature)
        remedy = "look at the latents and the weights"
        if noise is not None and all(bool(z.isfinite().all()) for z in given.values()):
            remedy = f'{_GREW}, a lower temperature or rest="mean"'
        return self._pixels(states, pixels, seed, names, remedy)

    @torch.no_grad()
    @arithmetic()
    def sample(
        self,
        count: int,
        temperature: float | Sequence[float] = 1.0,
        seed: int = 0,
        pixels: Literal["mean", "sample"] = "mean",
    ) -> NDArray[np.uint8]:
        """Draw images uint8 (count, S, S, 3) from the prior; temperature 0 is its mean."""
        count, seed = whole_number("count", count, 1), whole_number("seed", seed, 0)
        names = [str(i) for i in range(count)]
        noise = seeded_noise(seed, names, self.device)
        states = self.generate(count, {}, noise, temperature)
        return self._pixels(states, pixels, seed, names, f"{_GREW} or a lower temperature")

    def _pixels(
        self, states: dict[int, Tensor], how: str, seed: int, ids: Sequence[str], remedy: str
    ) -> NDArray[np.uint8]:
        _one_of("pixels", how, ("mean", "sample"))
        parameters = self.top_down.mixture_parameters(states)
        finite = torch.isfinite(parameters).flatten(1).all(dim=1)
        if not finite.all():
            raise DataError(
                f"image {ids[int(finite.logical_not().nonzero()[0])]!r}: expected a finite likelihood, found "
                f"NaN or infinity; {remedy}"
            )
        if how == "mean":
            return to_uint8(mixture_mean(LogisticMixture.from_parameters(parameters)))
        drawn = []
        for own, image_id in zip(parameters.split(1), ids, strict=True):
            generator = torch.Generator("cpu").manual_seed(seed_of(seed, image_id, "pixels"))
            drawn.append(mixture_sample(LogisticMixture.from_parameters(own), generator))
        return to_uint8(torch.cat(drawn))

    def load_published(self, state_dict: Mapping[str, Tensor]) -> VDVAE:
        """Load parameters under the published names; returns self.

        Raises:
            CheckpointError: names or shapes differ; the first differences are listed.
        """
        if not isinstance(state_dict, Mapping):
            raise CheckpointError(
                f"state_dict: expected tensors by name, found {type(state_dict).__name__}"
            )
        return self.load_weights(from_published_names(state_dict), "state_dict")


def _channels_last(states: dict[int, Tensor], resolutions: Collection[int]) -> dict[int, Tensor]:
    """Copy the states of some resolutions into the memory format that is fastest at inference."""
    return {
        r: x.clone(memory_format=torch.channels_last) for r, x in states.items() if r in resolutions
    }


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{name}: expected {' or '.join(allowed)}, found {shown(value)}")


def _per_layer(temperature: float | Sequence[float], count: int) -> list[float]:
    values: list[Any] = (
        list(temperature) if isinstance(temperature, Sequence) else [temperature] * count
    )
    if len(values) != count:
        raise LayerError(f"expected one temperature or {count}, found {len(values)}")
    for value in values:
        is_number = isinstance(value, Real) and math.isfinite(value) and float(value) >= 0
        if isinstance(value, bool) or not is_number:
            raise LayerError(f"temperature: expected finite numbers from 0, found {shown(value)}")
    return [float(value) for value in values]
