"""A student: a bottom-up network that predicts a VDVAE's posterior, layer by layer, in one cheap pass.

Shapes: N images, C latent channels, S the side of an image, R that of a layer's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vdvae_repr.config import StudentConfig
from vdvae_repr.errors import CheckpointError, ConfigError, LayerError
from vdvae_repr.model.base import SavedModel, expect_finite
from vdvae_repr.model.blocks import Block, Widths
from vdvae_repr.model.layers import (
    ByLayer,
    LayerSpec,
    layers_of_config,
    select_layers,
)
from vdvae_repr.model.noise import image_names
from vdvae_repr.model.precision import Precision, arithmetic
from vdvae_repr.model.preprocessing import images_given, to_input
from vdvae_repr.model.structure import check_bottom_up, parse_widths
from vdvae_repr.model.vdvae import VDVAE, BottomUp


@dataclass(frozen=True, slots=True)
class PredictedPosterior:
    """What a student says of one layer of its teacher, each (N, C, R, R) float32."""

    mean: Tensor
    log_std: Tensor


class Prediction(ByLayer[PredictedPosterior]):
    """A student's prediction of a batch by layer name, coarsest first."""


class Student(SavedModel):
    """Predicts a VDVAE's posterior at chosen layers; `vr.distill` trains one, `vr.load` loads it.

    Its layers have the names and the indices that they have in the teacher.
    """

    config: StudentConfig

    def __init__(self, config: StudentConfig, *, name: str = "student") -> None:
        super().__init__(config, name)
        if not isinstance(config, StudentConfig):
            raise ConfigError(
                f"config: expected a StudentConfig, found {type(config).__name__}; vr.load takes names"
            )
        reached = check_bottom_up(config)  # before anything is built
        try:
            self._layers = layers_of_config(config)
        except LayerError as error:
            raise ConfigError(f"model.layers: {error}") from error
        for spec in self._layers:
            if spec.resolution not in reached:
                raise ConfigError(
                    f"model.bottom_up: never reaches {spec.name}, which model.layers names; it reaches "
                    f"{sorted(reached)}"
                )
        widths = Widths(config.width, parse_widths(config.widths))
        self.bottom_up = BottomUp(config, widths)
        self.heads = nn.ModuleList()
        for spec in self._layers:
            width = widths[spec.resolution]
            middle = int(width * config.bottleneck_multiple)
            self.heads.append(Block(width, middle, 2 * config.zdim, spec.resolution))

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The teacher's layers that are predicted, coarsest first."""
        return self._layers

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return mean and log standard deviation of every layer of uint8 (N, 3, S, S) images."""
        return self.predict(to_input(images, self.config), self.layers)

    def predict(self, x: Tensor, layers: Sequence[LayerSpec]) -> list[tuple[Tensor, Tensor]]:
        """Return mean and log standard deviation of some layers of normalised (N, 3, S, S) inputs."""
        self.expect_float32()
        activations = self.bottom_up(x)
        activated = {r: F.gelu(activations[r]) for r in {spec.resolution for spec in layers}}
        predicted = []
        for spec in layers:
            head = self.heads[self.layers.index(spec)]
            mean, log_std = head(activated[spec.resolution]).float().chunk(2, dim=1)
            predicted.append((mean, log_std))
        return predicted

    @torch.no_grad()
    def posterior(
        self,
        images: Any,
        layers: str | int | Sequence[str | int] = "all",
        *,
        precision: Precision = "fp32",
    ) -> Prediction:
        """Predict the teacher's posterior of chosen layers.

        Args:
            images: array or tensor (N, S, S, 3), grey (N, S, S), uint8 or floats from 0 to 1, or a list of
                such images or PIL images.
            layers: selector.
            precision: fp32; bf16 and tf32 (GPUs) trade exactness for speed.

        Raises:
            DataError: images of another shape or dtype, or a prediction that is not finite.
            LayerError: a selector that names no layer.
        """
        chosen = select_layers(self.layers, layers)
        tensor = images_given(images, self.config.image_size)
        prediction = self._read(tensor, chosen, precision)
        values = {
            (name, part): getattr(layer, part)
            for name, layer in prediction.items()
            for part in ("mean", "log_std")
        }
        expect_finite(values, image_names(None, len(tensor)), self.name)
        return prediction

    @torch.no_grad()
    def _read(
        self, images: Tensor, layers: Sequence[LayerSpec], precision: Precision = "fp32"
    ) -> Prediction:
        """Predict layers of uint8 (N, 3, S, S) images, NaN and infinity too; a GPU is not waited for."""
        images = images.to(self.device, non_blocking=True)
        with arithmetic(precision, self.device.type):
            predicted = self.predict(to_input(images, self.config), layers)
        pairs = zip(layers, predicted, strict=True)
        return Prediction({spec.name: PredictedPosterior(*layer) for spec, layer in pairs})

    def decode(self, *arguments: Any, **keywords: Any) -> NoReturn:
        """Refuse to make images or to score them, as a student does neither.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(self.about_images)

    sample = decode
    elbo = decode

    @property
    def about_images(self) -> str:
        """Say, where images or a likelihood are asked for, that there are none."""
        return (
            f"{self.name}: a student draws nothing: it makes no images, and has no likelihood; load its "
            "teacher, a VDVAE"
        )

    def __repr__(self) -> str:
        """Say what it predicts, and how large it is."""
        count, names = sum(p.numel() for p in self.parameters()), [s.name for s in self.layers]
        which = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
        return f"<Student {self.name}: {len(names)} layers ({which}), {count:,} parameters>"


def multiply_adds(model: VDVAE | Student, layers: Sequence[LayerSpec]) -> int:
    """Return the multiplications with additions that reading some layers of one image takes.

    Those of convolutions are counted, as their shapes tell; nothing is computed.
    """
    size = model.config.image_size
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin = type(model)(cast(Any, model.config)).eval()
        x = torch.empty(1, 3, size, size)
        if isinstance(twin, Student):
            twin.predict(x, layers)
        else:
            twin.infer(x, None, layers[-1].index + 1, top_down=False)
    return int(counter.get_total_flops()) // 2
