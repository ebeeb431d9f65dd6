"""A model's blocks rearranged for inference on a CPU in float32; the results are equal to rounding.

GELUs and additions happen inside oneDNN's convolutions, and what two convolutions add to one state is one
convolution of their inputs side by side. Weights stay in the model's layout: a copy in oneDNN's own
brought no speed that was measurable, and as much memory again as the model.

A plan holds the model's own memory and no copy of a weight, so that it follows whatever is written there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdvae_repr.model.blocks import Block, TopDownBlock
from vdvae_repr.model.distributions import LayerPosterior, gaussian_sample


@dataclass(frozen=True)
class InferencePlan:
    """What stands in for a model's bottom-up blocks, and for `read` of its top-down blocks."""

    bottom_up: Sequence[Callable[[Tensor], Tensor]]
    layers: Sequence[Callable[[Tensor, Tensor, Tensor | None, bool], LayerPosterior]]


# By model, so that a copy of a model, whose weights are others, has none of them.
_FUSED: WeakKeyDictionary[nn.Module, tuple[list[int], InferencePlan]] = WeakKeyDictionary()
_COMPILED: WeakKeyDictionary[nn.Module, InferencePlan] = WeakKeyDictionary()
_ONEDNN = torch.backends.mkldnn.is_available()


def plan_of(model: nn.Module, x: Tensor) -> InferencePlan | None:
    """Return a model's plan for an input, made anew where weights lie elsewhere; None where the blocks serve.

    The blocks serve in training, under gradients and autocast, on other devices and in other precisions, and
    where what a module computes was changed.
    """
    if model.training or torch.is_grad_enabled():
        return None
    compiled = _COMPILED.get(model)
    reduced = torch.is_autocast_enabled("cpu") or x.dtype != torch.float32
    if compiled is None and (x.device.type != "cpu" or reduced or not _ONEDNN):
        return None
    are_blocks = all(isinstance(block, Block) for block in _blocks(model.bottom_up))
    if not are_blocks or not all(map(_is_as_made, model.modules())):
        return None
    if compiled is not None:
        return compiled
    places = [parameter.data_ptr() for parameter in model.parameters()]
    if model not in _FUSED or _FUSED[model][0] != places:
        _FUSED[model] = places, _fused(model)
    return _FUSED[model][1]


def _is_as_made(module: nn.Module) -> bool:
    """Whether a module has no hook, `forward` or computed weight of a user's, as pruning and LoRA give it."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    computed = "forward" in vars(module) or "parametrizations" in module._modules
    return not (hooks or computed) and getattr(module, "padding_mode", "zeros") == "zeros"


def compile_inference(model: nn.Module) -> None:
    """Let torch.compile write the code of every block's inference, when it is first called; shapes are fixed.

    On a CPU that oneDNN serves, this is slower than the plan that it takes the place of.
    """
    bottom_up, top_down = (_blocks(half) for half in (model.bottom_up, model.top_down))
    allow_recompiles(len(bottom_up) + len(top_down))
    _COMPILED[model] = InferencePlan(
        [torch.compile(block.forward, dynamic=False) for block in bottom_up],
        [torch.compile(block.read, dynamic=False) for block in top_down],
    )


def allow_recompiles(blocks: int) -> None:
    """Let torch.compile make code for so many blocks: one for each shape of block."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, blocks)


def _blocks(half: Any) -> list[Any]:
    """Return the blocks of a model's bottom-up or top-down half, in order."""
    return list(half.blocks)


def _fused(model: nn.Module) -> InferencePlan:
    bottom_up, top_down = cast(Any, model.bottom_up), cast(Any, model.top_down)
    return InferencePlan(
        # The block before a coarser resolution leaves its input, that is kept as an activation, alone.
        [
            _BottomUpBlock(block, in_place=spec.down_rate is None)
            for block, spec in zip(bottom_up.blocks, bottom_up.specs, strict=True)
        ],
        [
            _Layer(block, top_down.widths[spec.resolution])
            for block, spec in zip(top_down.blocks, top_down.specs, strict=True)
        ],
    )


class _Conv:
    """A same-size convolution of channels-last tensors."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight.detach(), bias
        self.geometry = [weight.shape[-1] // 2] * 2, [1, 1], [1, 1], 1

    @classmethod
    def of(cls, layer: nn.Conv2d) -> _Conv:
        return cls(layer.weight, layer.bias)

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Convolve x, and take the GELU if so asked."""
        after: tuple[Any, ...] = ("gelu", [], "none") if gelu else ("none", [], "")
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.geometry, *after
        )
        return y

    def into(self, y: Tensor, x: Tensor) -> Tensor:
        """Add the convolution of x to y, in place."""
        added: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            y, x, self.weight, self.bias, *self.geometry, "add", 1.0, None, [], None
        )
        return added


def _weights(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return a convolution's weight and bias, in the model's memory."""
    return layer.weight.detach(), cast(Tensor, layer.bias).detach()


class _Bottleneck:
    """A block up to its last convolution: GELUs of `inputs` channels each to the GELU before it."""

    def __init__(self, block: Block, inputs: Sequence[int]) -> None:
        first, *others = block.c1.weight.split(list(inputs), dim=1)
        self.first, self.others = _Conv(first, block.c1.bias), [_Conv(w) for w in others]
        self.c2, self.c3 = _Conv.of(block.c2), _Conv.of(block.c3)

    def __call__(self, first: Tensor, *others: Tensor) -> Tensor:
        if others:
            x = self.first(first)
            for part, convolution in zip(others, self.others, strict=True):
                x = convolution.into(x, part)
            x = F.gelu(x)
        else:
            x = self.first(first, gelu=True)
        return self.c3(self.c2(x, gelu=True), gelu=True)


class _BottomUpBlock:
    """A `BottomUpBlock`; in place, its input becomes its output."""

    def __init__(self, block: Block, in_place: bool) -> None:
        self.inner, self.last = _Bottleneck(block, [block.c1.in_channels]), _Conv.of(block.c4)
        self.in_place = in_place

    def __call__(self, x: Tensor) -> Tensor:
        inner = self.inner(F.gelu(x))
        return self.last.into(x if self.in_place else x.clone(), inner)


class _Layer:
    """The `read` of a `TopDownBlock`; the state after the layer takes the place of the one before."""

    def __init__(self, block: TopDownBlock, width: int) -> None:
        self.posterior = _Bottleneck(block.posterior, [width, width])
        self.prior = _Bottleneck(block.prior, [width])
        self.resnet = _Bottleneck(block.resnet, [width])
        self.q, self.last = _Conv.of(block.posterior.c4), _Conv.of(block.resnet.c4)
        prior_last, z_proj = (_weights(layer) for layer in (block.prior.c4, block.z_proj))
        p, features = zip(
            *(value.split([2 * block.zdim, width]) for value in prior_last), strict=True
        )
        self.prior_last, self.trained = prior_last, False
        self.p, self.z_proj, self.added = _Conv(*p), _Conv(*z_proj), (features, z_proj)

    def __call__(
        self, x: Tensor, activated: Tensor, noise: Tensor | None, merge: bool
    ) -> LayerPosterior:
        x = x.contiguous(memory_format=torch.channels_last)
        shared = F.gelu(x)
        q_mean, q_log_std = self.q(self.posterior(shared, activated)).chunk(2, dim=1)
        # So it is drawn: until it is trained, the prior is standard and adds nothing to the state.
        self.trained = self.trained or any(bool(value.any()) for value in self.prior_last)
        if not self.trained:
            p_mean, p_log_std = torch.zeros_like(q_mean), torch.zeros_like(q_log_std)
        else:
            inner = self.prior(shared)
            p_mean, p_log_std = self.p(inner).chunk(2, dim=1)
        z = q_mean if noise is None else gaussian_sample(q_mean, q_log_std, noise)
        after = None
        if merge:
            # The prior's features and the projected latent are added to the state at once.
            if self.trained:
                weights, (features_bias, z_bias) = zip(*self.added, strict=True)
                both = _Conv(torch.cat(weights, dim=1), features_bias + z_bias)
                x = both.into(x, torch.cat([inner, z], dim=1))
            else:
                x = self.z_proj.into(x, z)
            torch.ops.aten.gelu.out(x, out=shared)
            after = self.last.into(x, self.resnet(shared))
        return LayerPosterior(q_mean, q_log_std, p_mean, p_log_std, z, after)
