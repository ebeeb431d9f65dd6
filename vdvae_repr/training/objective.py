"""What a run minimises and logs: the likelihood of images, or how far a student is from its teacher."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdvae_repr.data.source import Preprocessing, Source, read_images
from vdvae_repr.model.base import ImageModel, SavedModel
from vdvae_repr.model.distributions import LayerPosterior, gaussian_kl
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.model.noise import NoiseFn
from vdvae_repr.model.preprocessing import to_input
from vdvae_repr.model.student import Student
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.model.weights import weights_sha256
from vdvae_repr.training.evaluate import score
from vdvae_repr.training.reading import process

logger = logging.getLogger(__name__)


class Objective(Protocol):
    """What a run asks of its loss; a term is a mean over images, nats an image."""

    @property
    def total(self) -> str:
        """The log's key of what a run is judged by; with `held_back_` before it, of images held back."""

    @property
    def unit(self) -> str:
        """That of the total, in lines."""

    @property
    def record(self) -> Mapping[str, Any]:
        """What the model's file says of it."""

    @property
    def teacher(self) -> SavedModel | None:
        """The model that it learns from, if there is one."""

    def terms(
        self,
        model: Any,
        images: Tensor,
        noise: NoiseFn,
        *,
        rate_weight: float,
        recompute: Collection[int],
    ) -> tuple[Tensor, Tensor]:
        """Return the loss (N,) of uint8 (N, 3, S, S) images, and its terms (N, K).

        Args:
            model: is called, as a wrapper of many processes wants.
            images: a micro-batch.
            noise: draws by layer.
            rate_weight: of the rate in the loss.
            recompute: resolutions whose activations are computed again.
        """

    def named(self, terms: Tensor, model: SavedModel) -> dict[str, Any]:
        """Name mean terms (K,) for the log; None stands for what is not finite."""

    def score(
        self,
        model: SavedModel,
        source: Source,
        preprocessing: Preprocessing,
        indices: Sequence[int],
        *,
        batch_size: int,
        seed: int,
    ) -> Tensor:
        """Return mean terms (K,) of some images; processes share them and all get the result."""

    def progress_rows(
        self, model: SavedModel, images: NDArray[np.uint8]
    ) -> list[tuple[str, NDArray[np.uint8]]]:
        """Return what shows the model's state beside some images; nothing where that cannot be seen."""


@dataclass(frozen=True)
class Likelihood:
    """The negative ELBO of a VDVAE, or the negative log-likelihood of a PixelCNN."""

    total = "bits_per_dim"
    unit = "bits/dim"
    teacher = None

    @property
    def record(self) -> Mapping[str, Any]:
        """Nothing beside the run's own."""
        return {}

    def terms(
        self,
        model: Any,
        images: Tensor,
        noise: NoiseFn,
        *,
        rate_weight: float,
        recompute: Collection[int],
    ) -> tuple[Tensor, Tensor]:
        """Return distortion and weighted rate; the terms are distortion and KL by layer."""
        elbo = model(images, noise, recompute)
        loss = elbo.distortion + rate_weight * elbo.rate
        return loss, torch.cat([elbo.distortion[:, None], elbo.kl], dim=1)

    def named(self, terms: Tensor, model: SavedModel) -> dict[str, Any]:
        """Name distortion and KL by layer."""
        return named_terms(terms, model.layers, 3 * model.config.image_size**2)

    def score(
        self,
        model: SavedModel,
        source: Source,
        preprocessing: Preprocessing,
        indices: Sequence[int],
        *,
        batch_size: int,
        seed: int,
    ) -> Tensor:
        """Return the mean of `evaluate.score` over images."""
        scores = score(
            cast(ImageModel, model),
            source,
            preprocessing,
            indices,
            batch_size=batch_size,
            seed=seed,
        )
        return torch.cat([scores.distortion[:, None], scores.kl], dim=1).mean(dim=0)

    def progress_rows(
        self, model: SavedModel, images: NDArray[np.uint8]
    ) -> list[tuple[str, NDArray[np.uint8]]]:
        """Return the model's own."""
        return cast(ImageModel, model).progress_rows(images)


@dataclass(frozen=True)
class Distillation:
    """KL of the teacher's posterior to the student's, summed over layers, nats an image.

    The teacher sends its means down, so that its posterior is the one that `extract` stores.
    """

    teacher: VDVAE
    layers: tuple[LayerSpec, ...]
    """Those that the student predicts."""

    total = "total_kl_nats"
    unit = "nats of KL"

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The teacher's name and the SHA-256 of its weights."""
        return {"teacher": self.teacher.name, "teacher_sha256": weights_sha256(self.teacher)}

    def terms(
        self,
        model: Any,
        images: Tensor,
        noise: NoiseFn,
        *,
        rate_weight: float,
        recompute: Collection[int],
    ) -> tuple[Tensor, Tensor]:
        """Return the KL and its terms by layer; nothing is drawn."""
        taught = self.posterior(images)
        kl = [
            gaussian_kl(layer.mean, layer.log_std, mean, log_std).sum(dim=(1, 2, 3))
            for layer, (mean, log_std) in zip(taught, model(images), strict=True)
        ]
        terms = torch.stack(kl, dim=1)
        return terms.sum(dim=1), terms

    @torch.no_grad()
    def posterior(self, images: Tensor) -> list[LayerPosterior]:
        """Return the teacher's posterior at the layers, float32, of uint8 (N, 3, S, S) images."""
        if self.teacher.device != images.device:
            self.teacher.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            layers, *_ = self.teacher.infer(
                to_input(images, self.teacher.config), None, self.layers[-1].index + 1,
                keep=[spec.index for spec in self.layers], top_down=False, bottom_up=False,
            )  # fmt: skip
        return list(layers)

    def named(self, terms: Tensor, model: SavedModel) -> dict[str, Any]:
        """Name KL by layer, and its sum."""
        kl = terms.tolist()
        by_layer = {
            spec.name: _finite(round(value, 4)) for spec, value in zip(self.layers, kl, strict=True)
        }
        return {self.total: _finite(sum(kl)), "kl_nats": by_layer}

    @torch.no_grad()
    def score(
        self,
        model: SavedModel,
        source: Source,
        preprocessing: Preprocessing,
        indices: Sequence[int],
        *,
        batch_size: int,
        seed: int,
    ) -> Tensor:
        """Return the mean KL by layer, float64, of images whose KL is finite; the others are said."""
        rank, world = process()
        device, student = model.device, cast(Student, model)
        sums = torch.zeros(len(self.layers) + 1, dtype=torch.float64, device=device)
        for start in range(len(indices))[rank * batch_size :: world * batch_size]:
            batch = read_images(source, preprocessing, indices[start : start + batch_size])
            images = torch.from_numpy(batch).permute(0, 3, 1, 2).to(device)
            pairs = zip(self.posterior(images), student(images), strict=True)
            kl = torch.stack([
                gaussian_kl(layer.mean, layer.log_std, mean, log_std).double().sum(dim=(1, 2, 3))
                for layer, (mean, log_std) in pairs
            ], dim=1)  # fmt: skip
            finite = kl.isfinite().all(dim=1)
            sums[:-1] += kl[finite].sum(dim=0)
            sums[-1] += finite.sum()
        if world > 1:
            torch.distributed.all_reduce(sums)
        count = sums[-1].cpu()
        if (lost := len(indices) - int(count)) and rank == 0:
            logger.warning(
                "%d of %d images held back are left out of the score, as their KL is not finite: such "
                "images are far from what the teacher, or the student, was trained on", lost, len(indices),
            )  # fmt: skip
        return sums[:-1].cpu() / count

    def progress_rows(
        self, model: SavedModel, images: NDArray[np.uint8]
    ) -> list[tuple[str, NDArray[np.uint8]]]:
        """Return nothing: a student draws no images."""
        return []


def named_terms(terms: Tensor, layers: Sequence[LayerSpec], dims: int) -> dict[str, Any]:
    """Name a vector of mean distortion and KL by layer, nats an image, for the log; None if not finite."""
    distortion, *kl = terms.tolist()
    rate = sum(kl, 0.0)
    return {
        "bits_per_dim": _finite((distortion + rate) / (math.log(2) * dims)),
        "distortion_nats": _finite(distortion),
        "rate_nats": _finite(rate),
        "kl_nats": {
            spec.name: _finite(round(value, 4)) for spec, value in zip(layers, kl, strict=True)
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
