"""A student as an encoder: its layers are those of its teacher that it predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vdvae_repr.config import StudentConfig
from vdvae_repr.encoders.base import Reading, SavedEncoder
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.model.noise import NoiseFn
from vdvae_repr.model.precision import Precision
from vdvae_repr.model.preprocessing import as_image_tensor
from vdvae_repr.model.student import Student
from vdvae_repr.model.weights import random_weights


class StudentEncoder(SavedEncoder[Student]):
    """Reads what a student predicts of its teacher's posterior; nothing is drawn, and there is no KL."""

    features = ("mean", "log_std")

    def shape(self, spec: LayerSpec, feature: str) -> tuple[int, ...]:
        """Return the shape of one image's feature, (C, R, R)."""
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
        """Read the means and log standard deviations predicted."""
        predicted = self.model._read(as_image_tensor(pixels, self.image_size), layers, precision)
        values = {
            (spec.name, feature): getattr(predicted[spec.name], feature)
            for spec in layers
            for feature in features
        }
        return Reading(values)

    def reinitialised(self, seed: int) -> StudentEncoder:
        """Return the same architecture with its initial weights, drawn from a seed."""
        return random_student(self.model.config, seed)


def random_student(config: StudentConfig, seed: int) -> StudentEncoder:
    """Return a student with its initial weights, drawn from a seed."""
    return StudentEncoder(cast(Student, random_weights(config, "student", seed).eval()))
