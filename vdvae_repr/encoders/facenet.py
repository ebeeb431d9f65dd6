"""FaceNet's InceptionResnetV1, as facenet-pytorch has it, as an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vdvae_repr.encoders.base import NetworkPreprocessing, TorchEncoder, checked_state, outputs_of
from vdvae_repr.encoders.download import fetch
from vdvae_repr.errors import CheckpointError
from vdvae_repr.model.weights import read_weights

PREFIX = "facenet:"
EMBEDDING = "embedding"
# Source: facenet-pytorch 2.5.3, models/inception_resnet_v1.py, load_weights.
_RELEASE = "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9"
SETS = {
    "vggface2": f"{_RELEASE}/20180402-114759-vggface2.pt",
    "casia-webface": f"{_RELEASE}/20180408-102900-casia-webface.pt",
}
PEOPLE = {"vggface2": 8631, "casia-webface": 10575}  # classes of each set's classifier; as above
STAGES = (
    "conv2d_2b",
    "conv2d_4b",
    "repeat_1",
    "mixed_6a",
    "repeat_2",
    "mixed_7a",
    "repeat_3",
    "block8",
)
SIZE = 160  # pixels; facenet-pytorch, README.md


class _Values(NamedTuple):
    """Of a channel: facenet-pytorch's fixed_image_standardization is (pixel - 127.5) / 128."""

    mean: tuple[float, float, float] = (127.5 / 255,) * 3
    std: tuple[float, float, float] = (128 / 255,) * 3


class FaceNetEncoder(TorchEncoder):
    """InceptionResnetV1 without its classifier: its stages, and the normalised embedding last."""

    def __init__(self, net: nn.Module, name: str) -> None:
        values = _Values()
        self._set_up(
            net,
            (*STAGES, EMBEDDING),
            name,
            NetworkPreprocessing(size=SIZE),
            values.mean,
            values.std,
            0,
        )

    def _outputs(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        wanted = [name for name in names if name != EMBEDDING]
        embedded: list[Tensor] = []
        hook = self.net.register_forward_hook(lambda net, inputs, output: embedded.append(output))
        try:
            outputs = outputs_of(self.net, x, wanted)
        finally:
            hook.remove()
        return outputs | ({EMBEDDING: embedded[0]} if EMBEDDING in names else {})

    def reinitialised(self, seed: int) -> FaceNetEncoder:
        """Return the same architecture with its initial weights, drawn from a seed."""
        return random_facenet(self.name.removeprefix(PREFIX).removesuffix("@random"), seed)


def load_facenet(what: str, weights: Path | None, download: bool) -> FaceNetEncoder:
    """Load InceptionResnetV1 with its published weights, or those of a file.

    Args:
        what: the set that it was trained on, of `SETS`.
        weights: a file of weights; None for the published ones, out of torch's cache.
        download: fetch published weights that are not in the cache.

    Raises:
        CheckpointError: no such set, weights that are missing, or that do not fill the network.
    """
    net = _create(what)
    file = weights or _published(what, download)
    state = read_weights(file)
    _refuse_another_set(what, state, file)
    net.load_state_dict(checked_state(state, net, str(file), ("logits",)))
    return FaceNetEncoder(net, f"{PREFIX}{what}")


def random_facenet(what: str, seed: int) -> FaceNetEncoder:
    """Return the network with its initial weights, drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = _create(what)
    return FaceNetEncoder(net, f"{PREFIX}{what}@random")


def _create(what: str) -> nn.Module:
    if what not in SETS:
        raise CheckpointError(f"{PREFIX}{what}: expected {PREFIX}{f' or {PREFIX}'.join(SETS)}")
    from facenet_pytorch import InceptionResnetV1

    net: nn.Module = InceptionResnetV1(pretrained=None)
    return net.eval()


def _refuse_another_set(what: str, state: Mapping[str, Tensor], file: Path) -> None:
    """Refuse weights whose classifier is of as many people as another set has.

    Raises:
        CheckpointError: names the set.
    """
    counts = {len(value) for key, value in state.items() if f".{key}".endswith(".logits.weight")}
    for other, count in PEOPLE.items():
        if other != what and count in counts:
            raise CheckpointError(
                f"{file}: expected weights of {what}, found a classifier of {count:,} people, as those of "
                f"{other}; load it as {PREFIX}{other}@{file}"
            )


def _published(what: str, download: bool) -> Path:
    """Return the published file, which facenet-pytorch itself keeps in torch's cache."""
    url = SETS[what]
    file = Path(torch.hub.get_dir()).parent / "checkpoints" / url.rpartition("/")[2]
    if file.is_file():
        return file
    if not download:
        raise CheckpointError(
            f"{PREFIX}{what}: its published weights are not in the cache; fetch them with "
            f'vr.load("{PREFIX}{what}", download=True), '
            f"or download {url} and save it as {file}; random ones: {PREFIX}{what}@random"
        )
    fetch(url, file)
    return file
