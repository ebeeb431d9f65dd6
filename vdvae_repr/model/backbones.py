"""Other networks that fill a store of the same schema: timm's models, and FaceNet's InceptionResnetV1."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vdvae_repr.errors import CheckpointError
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.model.preprocessing import as_image_tensor

FACENET_SETS = ("vggface2", "casia-webface")
PREFIXES = ("timm:", "facenet:")
Weights = Path | str | None  # a file, "random", or the published ones


@dataclass(frozen=True)
class BackboneConfig:
    """What a backbone is made of, apart from its weights.

    Attributes:
        backbone: `timm:NAME` or `facenet:SET`.
        image_size: side of its input, pixels.
        mean, std: of a channel, on the scale 0 to 255; inputs are `(pixel - mean) / std`.
    """

    backbone: str
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_json(self) -> str:
        """Return the configuration as a JSON object."""
        return json.dumps(asdict(self), sort_keys=True)


class Backbone(nn.Module):
    """A network whose embedding, before any classifier, is its one layer; make one with `load_backbone`."""

    def __init__(self, network: nn.Module, config: BackboneConfig, name: str) -> None:
        super().__init__()
        self.network, self.config, self.name = network, config, name
        blank = torch.zeros(1, 3, config.image_size, config.image_size)
        with torch.no_grad():
            dims = self.eval().network(blank).shape[1]
        self.layers = (LayerSpec(0, "1x1.0", 1, (dims, 1, 1)),)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def activation(self, images: NDArray[Any] | Tensor) -> Tensor:
        """Return embeddings (N, D, 1, 1) float32 of uint8 images (N, S, S, 3)."""
        pixels = as_image_tensor(images, self.config.image_size).to(self.device)
        mean, std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (self.config.mean, self.config.std)
        )
        embedded: Tensor = self.network((pixels.float() - mean) / std)
        return embedded.float()[:, :, None, None]


Build = Callable[[str, Weights], tuple[nn.Module, BackboneConfig]]


def is_backbone(model: str | Path) -> bool:
    """Whether a model's name is a backbone's."""
    return str(model).startswith(PREFIXES)


def load_backbone(
    name: str,
    *,
    device: str | torch.device = "cpu",
    notice: Callable[[str], None] = lambda line: None,
) -> Backbone:
    """Load a backbone in eval mode, float32.

    Args:
        name: `timm:NAME` or `facenet:vggface2`, with `@FILE` for weights of your own, `@random` for none.
            Without either, the published weights, from the cache or the network; where there are none to be
            had, random ones, and `notice` and the backbone's name say so.
        device: where the parameters go.
        notice: receives a line where weights are random that were not asked to be.

    Raises:
        CheckpointError: no such network, or weights that do not fit.
    """
    architecture, _, weights = name.partition("@")
    build = _timm if architecture.startswith("timm:") else _facenet
    what = architecture.partition(":")[2]
    try:
        if weights != "random":
            try:
                network, config = build(what, Path(weights) if weights else None)
                return Backbone(network, config, architecture).to(device).eval()
            except OSError as error:  # nothing in the cache, and no network
                if weights:
                    raise
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                notice(f"{name}: no published weights at hand ({reason}); its weights are random")
        return _random(build, what, architecture, seed=0).to(device)
    except CheckpointError:
        raise
    except Exception as error:  # each of these libraries raises its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name}: cannot be loaded ({reason})") from error


def random_twin(config_json: str, seed: int) -> Backbone:
    """Return the backbone that a store's `config` describes, with random weights."""
    architecture = json.loads(config_json)["backbone"]
    kind, what = architecture.split(":", 1)
    return _random(_timm if kind == "timm" else _facenet, what, architecture, seed)


def _random(build: Build, what: str, architecture: str, seed: int) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the same weights each time
        network, config = build(what, "random")
    return Backbone(network, config, f"{architecture}@random").eval()


def _timm(what: str, weights: Weights) -> tuple[nn.Module, BackboneConfig]:
    import timm
    from timm.data.config import resolve_model_data_config

    if not timm.is_model(what.partition(".")[0]):
        raise CheckpointError(
            f"timm:{what}: timm has no such model; timm.list_models() has the names"
        )
    if isinstance(weights, Path) and not weights.is_file():
        raise CheckpointError(f"timm:{what}@{weights}: no such file")
    overlay = {"file": str(weights)} if isinstance(weights, Path) else None
    network = timm.create_model(
        what, pretrained=weights != "random", pretrained_cfg_overlay=overlay, num_classes=0
    )
    data = resolve_model_data_config(network)
    mean, std = (tuple(255 * value for value in data[key]) for key in ("mean", "std"))
    return network, BackboneConfig(f"timm:{what}", data["input_size"][-1], mean, std)


def _facenet(what: str, weights: Weights) -> tuple[nn.Module, BackboneConfig]:
    from facenet_pytorch import InceptionResnetV1

    from vdvae_repr.model.checkpoint import read_th

    if what not in FACENET_SETS:
        raise CheckpointError(
            f"facenet:{what}: expected facenet:{' or facenet:'.join(FACENET_SETS)}"
        )
    network = cast(nn.Module, InceptionResnetV1(pretrained=what if weights is None else None))
    if isinstance(weights, Path):
        state = {k: v for k, v in read_th(weights).items() if not k.startswith("logits.")}
        network.load_state_dict(state)
    return network, BackboneConfig(f"facenet:{what}", 160, (127.5,) * 3, (128.0,) * 3)
