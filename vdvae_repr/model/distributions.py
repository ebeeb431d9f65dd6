"""Diagonal Gaussians and the discretised logistic mixture: plain functions, log-probabilities in nats.

Shapes: N images, C latent channels, H W pixels, K mixture components. Pixel values x are in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_kl(q_mean: Tensor, q_log_std: Tensor, p_mean: Tensor, p_log_std: Tensor) -> Tensor:
    """KL(q || p) of diagonal Gaussians, per element, in nats; all of one shape."""
    ratio = torch.exp(2 * (q_log_std - p_log_std))
    gap = (q_mean - p_mean) * torch.exp(-p_log_std)
    return p_log_std - q_log_std + 0.5 * (ratio + gap**2 - 1)


def gaussian_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """Return `mean + exp(log_std) * noise`, noise standard normal, all of one shape."""
    return mean + torch.exp(log_std) * noise


@dataclass(frozen=True, slots=True)
class LayerPosterior:
    """What one layer knows of a batch; every tensor (N, C, R, R) but `top_down`, float32."""

    mean: Tensor
    log_std: Tensor
    prior_mean: Tensor
    prior_log_std: Tensor
    z: Tensor
    """What was sent down to the next layer."""
    top_down: Tensor | None
    """The state after the layer, (N, width, R, R), where it was asked for."""

    def __repr__(self) -> str:
        """Say of what shape it is, and what it costs."""
        shape, nats = tuple(self.mean.shape), self.kl.sum() / max(1, len(self.mean))
        return f"<LayerPosterior {shape}: {nats:.1f} nats an image>"

    @property
    def kl(self) -> Tensor:
        """KL(q || p), elementwise, nats: `gaussian_kl`, without gradients."""
        # In place, as fresh memory costs more here than arithmetic: an eighth of a pass over all layers.
        with torch.no_grad():
            half = (self.log_std - self.prior_log_std).mul_(2).exp_()
            gap = torch.exp(-self.prior_log_std).mul_(self.mean - self.prior_mean)
            half.add_(gap.square_()).sub_(1).mul_(0.5)
            return half.add_(self.prior_log_std - self.log_std)

    @property
    def delta(self) -> Tensor:
        """(q_mean - p_mean) / p_std: what the layer adds to what it inherits."""
        return (self.mean - self.prior_mean) * torch.exp(-self.prior_log_std)


class LogisticMixture(NamedTuple):
    """Mixture of K logistics over RGB, each channel's mean linear in the channels before it.

    PixelCNN++ (Salimans 2017, arXiv:1701.05517), section 2.1 and 2.2.
    """

    logits: Tensor  # (N, K, H, W)
    means: Tensor  # (N, 3, K, H, W)
    log_scales: Tensor  # (N, 3, K, H, W), at least -7
    coefficients: Tensor  # (N, 3, K, H, W): green on red, blue on red, blue on green

    @classmethod
    def from_parameters(cls, parameters: Tensor) -> LogisticMixture:
        """Split the output convolution's (N, 10 K, H, W) channels, in the published order."""
        n, channels, height, width = parameters.shape
        k = channels // 10
        per_channel = parameters[:, k:].reshape(n, 3, 3 * k, height, width)
        means, log_scales, coefficients = per_channel.split(k, dim=2)
        return cls(parameters[:, :k], means, log_scales.clamp(min=-7.0), torch.tanh(coefficients))

    def conditional_means(self, x: Tensor) -> Tensor:
        """Return means (N, 3, K, H, W) given the true pixels x (N, 3, H, W)."""
        red, green = x[:, 0, None], x[:, 1, None]
        means, c = self.means.unbind(dim=1), self.coefficients.unbind(dim=1)
        blue_mean = means[2] + c[1] * red + c[2] * green
        return torch.stack([means[0], means[1] + c[0] * red, blue_mean], dim=1)


def mixture_log_prob(mixture: LogisticMixture, x: Tensor, bits: int = 8) -> Tensor:
    """Log-probability of pixels x (N, 3, H, W) in [-1, 1]; (N, H, W), nats per pixel (three channels).

    At 8 bits the 256 values' probabilities sum to 1. At 5 bits the published formula is followed:
    bins of half-width 1/31 around values spaced 16/255 apart, and no upper edge bin, so that the
    32 values' probabilities sum to between 0.83 and 1.06; published figures are computed so.
    """
    log_probs = channel_log_probs(
        x[:, :, None], mixture.conditional_means(x), mixture.log_scales, bits
    )
    return torch.logsumexp(log_probs.sum(dim=1) + F.log_softmax(mixture.logits, dim=1), dim=1)


def channel_log_probs(x: Tensor, means: Tensor, log_scales: Tensor, bits: int) -> Tensor:
    """Log-mass of a discretised logistic in the bin of x, elementwise, in nats.

    Below a mass of 1e-5 the density at the bin's centre times its width stands in, as published.
    """
    levels = 2**bits - 1
    inverse_scale = torch.exp(-log_scales)
    centred = x - means
    upper = inverse_scale * (centred + 1 / levels)
    lower = inverse_scale * (centred - 1 / levels)
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    middle = inverse_scale * centred
    log_density = middle - log_scales - 2 * F.softplus(middle)
    inner = torch.where(
        mass > 1e-5,
        torch.log(mass.clamp(min=1e-12)),
        log_density + torch.log(x.new_tensor(2 / levels)),
    )
    with_top = torch.where(x > 0.999, -F.softplus(lower), inner)
    return torch.where(x < -0.999, upper - F.softplus(upper), with_top)


def mixture_mean(mixture: LogisticMixture) -> Tensor:
    """Expected pixel (N, 3, H, W) of the undiscretised mixture, clipped to [-1, 1]."""
    weights = torch.softmax(mixture.logits, dim=1)
    c = mixture.coefficients
    red = mixture.means[:, 0]
    green = mixture.means[:, 1] + c[:, 0] * red
    blue = mixture.means[:, 2] + c[:, 1] * red + c[:, 2] * green
    components = torch.stack([red, green, blue], dim=1)
    return (components * weights[:, None]).sum(dim=2).clamp(-1, 1)


def mixture_sample(mixture: LogisticMixture, generator: torch.Generator) -> Tensor:
    """Draw pixels (N, 3, H, W) in [-1, 1]: one component a pixel, then red, green, blue in turn."""

    def uniform(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator, device=generator.device).to(like)

    of_components = uniform(mixture.logits)
    return mixture_draw(mixture, of_components, uniform(mixture.means[:, :, 0]))


def mixture_draw(
    mixture: LogisticMixture,
    of_components: Tensor,
    of_channels: Tensor,
    temperature: float = 1.0,
    rounded: bool = False,
) -> Tensor:
    """Return the pixels (N, 3, H, W) that uniform draws from [0, 1) stand for, in [-1, 1].

    Args:
        mixture: of the pixels.
        of_components: (N, K, H, W), by which one component a pixel is chosen.
        of_channels: (N, 3, H, W), of red, green and blue.
        temperature: of the choice, and of the logistics' scales; 0 is the likeliest component's means.
        rounded: to 8 bits, green being given the rounded red, and blue both, as in the likelihood; the
            published code rounds at the end alone.
    """
    u = of_components * (1 - 2e-5) + 1e-5
    gumbel = -torch.log(-torch.log(u))
    chosen = (mixture.logits + temperature * gumbel).argmax(dim=1)[:, None, None]
    chosen = chosen.expand(-1, 3, -1, -1, -1)
    mean, log_scale, c = (
        part.gather(2, chosen)[:, :, 0]
        for part in (mixture.means, mixture.log_scales, mixture.coefficients)
    )
    u = of_channels * (1 - 2e-5) + 1e-5
    x = mean + temperature * torch.exp(log_scale) * (torch.log(u) - torch.log1p(-u))
    to_range = _rounded if rounded else _cut
    red = to_range(x[:, 0])
    green = to_range(x[:, 1] + c[:, 0] * red)
    blue = to_range(x[:, 2] + c[:, 1] * red + c[:, 2] * green)
    return torch.stack([red, green, blue], dim=1)


def _cut(x: Tensor) -> Tensor:
    return x.clamp(-1, 1)


def _rounded(x: Tensor) -> Tensor:
    """Return the nearest of the 256 values in [-1, 1]."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
