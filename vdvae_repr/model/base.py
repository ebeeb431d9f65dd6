"""What training, saving and loading ask of a model, `SavedModel`, and scoring too: `ImageModel`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vdvae_repr.config import AnyModelConfig, ModelConfig, PixelCNNConfig, shortened
from vdvae_repr.errors import CheckpointError, ConfigError, DataError, counted
from vdvae_repr.model.distributions import LayerPosterior, LogisticMixture, mixture_log_prob
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.model.noise import NoiseFn


@dataclass(frozen=True, slots=True)
class ELBO:
    """Terms of the negative evidence lower bound, (N,) each, nats an image.

    Of a model without latents the distortion is the negative log-likelihood, and the rate is 0.
    """

    distortion: Tensor
    rate: Tensor
    kl: Tensor
    """(N, layers)."""

    @property
    def negative(self) -> Tensor:
        """Return distortion + rate."""
        return self.distortion + self.rate


class SavedModel(nn.Module):
    """What is trained, saved and loaded: a model of images, or a student of one."""

    config: AnyModelConfig
    name: str
    trained_crop: int | None
    """The central square, pixels, that its training took of images, where a file tells."""
    record: dict[str, Any]
    """Of a model of a run, what its file records of that, as `data_sha256`; as it was read, unchecked."""
    trained_on: NDArray[np.uint64] | None
    """Hashes of the images it was trained on (`training.seen`), sorted; None where no run folder has them."""

    def __init__(self, config: AnyModelConfig, name: str) -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.trained_crop = None
        self.record = {}
        self.trained_on = None

    @property
    @abstractmethod
    def layers(self) -> tuple[LayerSpec, ...]:
        """The stochastic layers, or those predicted, coarsest first; none of a model without latents."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def expect_float32(self) -> None:
        """Refuse weights of another precision than that of the inputs.

        Raises:
            ConfigError: they are of another.
        """
        if (dtype := next(self.parameters()).dtype) != torch.float32:
            raise ConfigError(
                f"{self.name}: expected weights in float32, found {str(dtype).removeprefix('torch.')}; call "
                'model.float(), and ask for precision="bf16" where less will do'
            )

    def about_crop(self, crop: int | None) -> str:
        """Say which central square the model was trained on, where none is taken of images; else nothing."""
        if crop is not None or self.trained_crop is None:
            return ""
        return (
            f"{self.name}: was trained with crop {self.trained_crop}, a central square in pixels, without "
            "which images are taken whole"
        )

    def load_weights(self, weights: Mapping[str, Tensor], where: str, remedy: str = "") -> Any:
        """Load parameters under this package's names, strictly; returns self.

        Args:
            weights: of any floating-point type.
            where: their file, in messages.
            remedy: what to do where they are of another architecture, for the message.

        Raises:
            CheckpointError: they are no tensors of real numbers, or of another architecture.
        """
        for name, value in weights.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                found = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise CheckpointError(
                    f"{where}: expected a tensor of real numbers as {name}, found {found}"
                )
        self.check_shapes({key: tuple(v.shape) for key, v in weights.items()}, where, remedy)
        self.load_state_dict(weights)
        return self

    def check_shapes(
        self, shapes: Mapping[str, tuple[int, ...]], where: str, remedy: str = ""
    ) -> None:
        """Compare names and shapes of parameters with this model's.

        Raises:
            CheckpointError: they are of another architecture; the first tensors that are missing, too many or
                of another shape are named.
        """
        expected = {key: tuple(value.shape) for key, value in self.state_dict().items()}
        missing = [k for k in expected if k not in shapes]
        others = [k for k in shapes if k not in expected]
        extra = [shortened(k) for k in others]
        other = [
            f"{k} is {shapes[k]}, expected {expected[k]}"
            for k in expected
            if k in shapes and shapes[k] != expected[k]
        ]
        if not (missing or extra or other):
            return
        clauses = [
            f"{counted(len(found), 'tensor', 'is', 'are')} {what}: {', '.join(found[:3])}"
            + (", ..." if len(found) > 3 else "")
            for found, what in (
                (missing, "missing"),
                (extra, "too many"),
                (other, "of another shape"),
            )
            if found
        ]
        begin = sorted({shortened(key.partition(".")[0]) for key in shapes})
        wrapped = 0 < len(begin) < 4 and not expected.keys() & shapes.keys()
        if wrapped:
            clauses.append(f"all its names begin with {', '.join(begin)}")
        if wrapped or expected.keys() <= {k.partition(".")[2] for k in others}:
            advice = (
                "save one network alone, by its own names, or give weights of this architecture"
            )
        elif not missing and not other:
            advice = f"save the weights without {'it' if len(extra) == 1 else 'them'}"
        else:
            advice = "give weights of this one, or the architecture that these are of"
        raise CheckpointError(
            f"{where}: weights of another architecture: {'; '.join(clauses)}; {remedy or advice}"
        )


class ImageModel(SavedModel):
    """A model of images that is scored and sampled too: a VDVAE or a PixelCNN."""

    config: ModelConfig | PixelCNNConfig

    @property
    @abstractmethod
    def resolutions(self) -> tuple[int, ...]:
        """Those that blocks work at, ascending."""

    @property
    @abstractmethod
    def compilable(self) -> list[nn.Module]:
        """The blocks that torch.compile takes one by one."""

    @abstractmethod
    def forward(self, images: Tensor, noise: NoiseFn, recompute: Collection[int] = ()) -> ELBO:
        """Return the loss's terms of uint8 (N, 3, S, S) images under the draws given.

        Blocks at the resolutions `recompute` keep their inputs alone for the backward pass.
        """

    @abstractmethod
    def log_likelihood(
        self, images: Tensor, noise: NoiseFn
    ) -> tuple[Sequence[LayerPosterior], Tensor]:
        """Return the layers read of uint8 (N, 3, S, S) images, and log p(x | z), (N,) float64, nats.

        Without layers that is log p(x).
        """

    @abstractmethod
    def progress_rows(self, images: NDArray[np.uint8]) -> list[tuple[str, NDArray[np.uint8]]]:
        """Return what shows a model's state beside some images: rows as long, each with its label."""

    @abstractmethod
    def sample(self, count: int, temperature: float = 1.0, seed: int = 0) -> NDArray[np.uint8]:
        """Draw images uint8 (count, S, S, 3)."""

    def distortion(self, parameters: Tensor, target: Tensor) -> Tensor:
        """Return the negative log-likelihood (N,), nats an image, of targets under raw parameters."""
        mixture = LogisticMixture.from_parameters(parameters)
        return -mixture_log_prob(mixture, target, self.config.bits).sum(dim=(1, 2))


def checkpointed(function: Any, *inputs: Tensor | None) -> Any:
    """Call a function, keeping its inputs alone for the backward pass, which calls it again."""
    # Nothing is drawn inside, so no random state has to be restored.
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def expect_finite(
    values: Mapping[tuple[str, str], Tensor],
    ids: Sequence[str],
    model: str,
    layers: Sequence[LayerSpec] = (),
) -> None:
    """Refuse what was read of a batch where it is NaN or infinite.

    Args:
        values: (N, ...) by the name of the layer and of what was read, coarsest layer first.
        ids: the images' ids.
        model: its name.
        layers: of a hierarchy from coarse to fine, where coarser layers do not depend on finer ones.

    Raises:
        DataError: names the first layer and image, and what to do.
    """
    if not ids or not values:
        return
    # A sum is finite only if all of it is; the device is waited for once.
    sums = torch.stack([value.sum() for value in values.values()])
    if bool(sums.isfinite().all()):
        return
    finite = torch.stack([value.isfinite().flatten(1).all(dim=1) for value in values.values()])
    if len(lost := finite.cpu().logical_not().nonzero()) == 0:
        return
    index, row = lost[0].tolist()
    name, what = list(values)[index]
    found = "NaN" if list(values.values())[index][row].isnan().any() else "infinity"
    coarser = [
        spec.index for spec in layers if spec.name == name and spec.index and what != "bottom_up"
    ]
    way_on = f', or read the layers before it alone, layers="0:{coarser[0]}"' if coarser else ""
    raise DataError(
        f"{what} of layer {name}: expected finite values, found {found} for image {ids[row]!r}, which may be "
        f"far from what {model} was trained on; look at the weights, leave the image out{way_on}"
    )
