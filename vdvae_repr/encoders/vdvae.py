"""A VDVAE as an encoder: its layers are its posterior's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vdvae_repr.config import ModelConfig
from vdvae_repr.encoders.base import Reading, SavedEncoder
from vdvae_repr.model.layers import FEATURES, LayerSpec
from vdvae_repr.model.noise import NoiseFn
from vdvae_repr.model.precision import Precision
from vdvae_repr.model.preprocessing import as_image_tensor
from vdvae_repr.model.vdvae import VDVAE, Posterior
from vdvae_repr.model.weights import random_weights


class VDVAEEncoder(SavedEncoder[VDVAE]):
    """Reads the posterior of a VDVAE, layer by layer."""

    features = FEATURES

    def shape(self, spec: LayerSpec, feature: str) -> tuple[int, ...]:
        """Return the shape of one image's feature, (C, R, R)."""
        if feature in ("top_down", "bottom_up"):
            return self.model.top_down.widths[spec.resolution], *spec.shape[1:]
        return spec.shape

    def read(
        self,
        pixels: NDArray[np.uint8] | Tensor,
        layers: Sequence[LayerSpec],
        features: Sequence[str],
        *,
        noise: NoiseFn | None = None,
        precision: Precision = "fp32",
    ) -> Reading:
        """Read features of the posterior, and its KL; without noise each layer sends its mean down."""
        posterior = self.model._read(
            as_image_tensor(pixels, self.image_size),
            layers,
            noise,
            top_down="top_down" in features,
            bottom_up="bottom_up" in features,
            precision=precision,
        )
        values = {
            (spec.name, feature): _feature(posterior, spec, feature)
            for spec in layers
            for feature in features
        }
        return Reading(values, posterior.kl)

    def reinitialised(self, seed: int) -> VDVAEEncoder:
        """Return the same architecture with its initial weights, drawn from a seed."""
        return random_vdvae(self.model.config, seed)


def random_vdvae(config: ModelConfig, seed: int) -> VDVAEEncoder:
    """Return a VDVAE with its initial weights, drawn from a seed."""
    return VDVAEEncoder(cast(VDVAE, random_weights(config, "vdvae", seed).eval()))


def _feature(posterior: Posterior, spec: LayerSpec, feature: str) -> Tensor:
    """Return a layer's feature by name, float32; `bottom_up` is its resolution's."""
    if feature == "bottom_up":
        return posterior.bottom_up[spec.resolution].float()
    return cast(Tensor, getattr(posterior[spec.name], feature)).float()
