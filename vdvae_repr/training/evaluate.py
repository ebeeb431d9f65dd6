"""The likelihood of a whole split: bits per dimension, rate by layer, a tighter bound, active units."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdvae_repr.data.sources import Preprocessing, Source, open_source, read_images
from vdvae_repr.errors import DataError
from vdvae_repr.model.distributions import LogisticMixture, mixture_log_prob
from vdvae_repr.model.preprocessing import to_input, to_target
from vdvae_repr.model.vdvae import VDVAE, LayerPosterior, seeded_noise

ACTIVE_NATS = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Means over a split; an interval is the mean plus and minus 1.96 standard errors over images."""

    source: str
    split: str
    images: int
    seed: int
    nats: float
    """Negative ELBO, nats an image."""
    bits_per_dim: float
    bits_per_dim_interval: tuple[float, float] | None
    """None for a single image."""
    distortion_nats: float
    rate_nats: float
    kl_nats: dict[str, float]
    """KL by layer, nats an image."""
    kl_nats_by_resolution: dict[str, float]
    active_units: dict[str, tuple[int, int]]
    """By layer: latent channels whose KL, summed over positions, exceeds 0.01 nats an image; and all."""
    importance_samples: int
    importance_bits_per_dim: float | None
    """The importance-weighted bound (Burda 2016, arXiv:1509.00519, equation 8); None without samples."""
    importance_interval: tuple[float, float] | None


@torch.no_grad()
def evaluate(
    model: VDVAE,
    data: str | Path | Source | NDArray[np.uint8],
    *,
    split: str | None = None,
    crop: int | None = None,
    batch_size: int = 16,
    importance_samples: int = 0,
    seed: int = 0,
    progress: Callable[[int], object] = lambda count: None,
) -> Evaluation:
    """Score every image of a split, once each; noise depends on seed, image id and layer alone.

    The result does not depend on the batch size beyond rounding.

    Args:
        model: in eval mode.
        data: what `--data` takes.
        split: `train`, `val` or `test`; None scores every image.
        crop: central square to take first, pixels.
        batch_size: images a forward pass.
        importance_samples: K of the importance-weighted bound; 0 leaves it out.
        seed: of the posterior draws.
        progress: receives the number of images finished.

    Raises:
        DataError: the split is empty.
    """
    source = open_source(data)
    chosen = [i for i, name in enumerate(source.splits) if split is None or name == split]
    if not chosen:
        known = sorted({name for name in source.splits if name})
        raise DataError(
            f"{source.name}: no image is in split {split!r}; it has {', '.join(known) or 'no splits'}"
        )
    preprocess = Preprocessing(size=model.config.image_size, crop=crop)
    terms: list[Tensor] = []
    importance: list[Tensor] = []
    channels = [torch.zeros(spec.shape[0], dtype=torch.float64) for spec in model.layers]
    for start in range(0, len(chosen), batch_size):
        indices = chosen[start : start + batch_size]
        images = read_images(source, preprocess, indices)
        ids = [source.ids[i] for i in indices]
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2).to(model.device)
        layers, log_likelihood = _pass(model, tensor, seed, ids)
        by_channel = [layer.kl.double().sum(dim=(2, 3)).cpu() for layer in layers]
        for total, part in zip(channels, by_channel, strict=True):
            total += part.sum(dim=0)
        kl = torch.stack([part.sum(dim=1) for part in by_channel], dim=1)
        terms.append(torch.cat([-log_likelihood.cpu()[:, None], kl], dim=1))
        if importance_samples:
            weights = [_log_weight(layers, log_likelihood)]
            for draw in range(1, importance_samples):
                again = [f"{image_id}\0draw {draw}" for image_id in ids]
                weights.append(_log_weight(*_pass(model, tensor, seed, again)))
            bound = torch.logsumexp(torch.stack(weights), dim=0) - math.log(importance_samples)
            importance.append(-bound)
        progress(len(indices))
    return _summary(
        model, source, split, seed, torch.cat(terms), channels, importance_samples, importance
    )


def _pass(
    model: VDVAE, images: Tensor, seed: int, ids: list[str]
) -> tuple[list[LayerPosterior], Tensor]:
    """Return the layers and log p(x | z), (N,), float64 nats."""
    noise = seeded_noise(seed, ids, model.device)
    layers, states, _ = model.infer(to_input(images, model.config), noise)
    mixture = LogisticMixture.from_parameters(model.top_down.mixture_parameters(states))
    target = to_target(images, model.config)
    log_prob = mixture_log_prob(mixture, target, model.config.bits)
    return layers, log_prob.double().sum(dim=(1, 2))


def _log_weight(layers: list[LayerPosterior], log_likelihood: Tensor) -> Tensor:
    """Return log p(x, z) - log q(z | x), (N,), float64 nats."""
    log_weight = log_likelihood.clone()
    for layer in layers:
        prior = _standard(layer.z, layer.prior_mean, layer.prior_log_std)
        posterior = _standard(layer.z, layer.mean, layer.log_std)
        log_weight += (prior - posterior).sum(dim=(1, 2, 3))
    return log_weight.cpu()


def _standard(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of a diagonal Gaussian, elementwise, less the constant that cancels; float64."""
    scaled = (z - mean).double() * torch.exp(-log_std.double())
    return -0.5 * scaled**2 - log_std.double()


def _summary(
    model: VDVAE,
    source: Source,
    split: str | None,
    seed: int,
    terms: Tensor,
    channels: list[Tensor],
    importance_samples: int,
    importance: list[Tensor],
) -> Evaluation:
    dims = 3 * model.config.image_size**2

    def bits(nats: Tensor) -> tuple[float, tuple[float, float] | None]:
        mean = float(nats.mean()) / (math.log(2) * dims)
        if len(nats) == 1:
            return mean, None
        error = float(nats.std()) / math.sqrt(len(nats)) / (math.log(2) * dims)
        return mean, (mean - 1.96 * error, mean + 1.96 * error)

    count = len(terms)
    negative = terms.sum(dim=1)
    kl = dict(zip((s.name for s in model.layers), terms[:, 1:].mean(dim=0).tolist(), strict=True))
    by_resolution: dict[str, float] = {}
    active: dict[str, tuple[int, int]] = {}
    for spec, total in zip(model.layers, channels, strict=True):
        key = f"{spec.resolution}x{spec.resolution}"
        by_resolution[key] = by_resolution.get(key, 0.0) + kl[spec.name]
        active[spec.name] = (int((total / count > ACTIVE_NATS).sum()), len(total))
    mean_bits, interval = bits(negative)
    tighter: Any = bits(torch.cat(importance)) if importance else (None, None)
    return Evaluation(
        source=source.name, split=split or "all", images=count, seed=seed,
        nats=float(negative.mean()), bits_per_dim=mean_bits, bits_per_dim_interval=interval,
        distortion_nats=float(terms[:, 0].mean()), rate_nats=sum(kl.values()), kl_nats=kl,
        kl_nats_by_resolution=by_resolution, active_units=active,
        importance_samples=importance_samples, importance_bits_per_dim=tighter[0],
        importance_interval=tighter[1],
    )  # fmt: skip
