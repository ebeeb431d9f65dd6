"""`vr.load`: one function for everything that can fill a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from vdvae_repr.config import (
    Architecture,
    ModelConfig,
    StudentConfig,
    model_config_from_json,
    true_or_false,
    with_hints,
)
from vdvae_repr.encoders import facenet, timm
from vdvae_repr.encoders.base import Encoder, TorchEncoder, known_encoder
from vdvae_repr.encoders.download import released_file
from vdvae_repr.encoders.student import StudentEncoder, random_student
from vdvae_repr.encoders.vdvae import VDVAEEncoder, random_vdvae
from vdvae_repr.errors import CheckpointError
from vdvae_repr.model import published, weights
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.model.pixelcnn import PixelCNN
from vdvae_repr.model.precision import arithmetic
from vdvae_repr.model.student import Student
from vdvae_repr.model.vdvae import VDVAE


@with_hints
@arithmetic()
def load(
    model: str | Path,
    *,
    preset: Architecture | None = None,
    device: str | torch.device = "cpu",
    compile: bool = False,
    cuda_graphs: bool = False,
    download: bool = False,
) -> VDVAE | PixelCNN | Student | TorchEncoder:
    """Load a VDVAE, a PixelCNN, a student or another encoder in eval mode, float32.

    Args:
        model: a packaged name ("faces64"); a run folder; a `.safetensors` of this package; a published
            `.th`; "openai:imagenet64", a released file; "PRESET@random", a preset with its initial weights;
            "timm:resnet50" or "facenet:vggface2", with "@FILE" for weights of your own and "@random" for
            initial ones. A `Path` is a file or a folder, also where it is called as one of these.
        preset: the architecture of a VDVAE's file, where its shapes do not tell: a preset's name, a TOML, or
            a configuration.
        device: where the parameters go.
        compile: read posteriors through torch.compile.
        cuda_graphs: on a CUDA device, record a pass of a VDVAE that comes again and replay it: small kernels
            then do not wait for the host.
        download: fetch published weights that are not in the cache.

    Returns:
        A `VDVAE`, a `PixelCNN` or a `Student`, or of timm and FaceNet a `TorchEncoder`.

    Raises:
        CheckpointError: no such model; weights that are missing, damaged, of another architecture, not
            finite, or that hold code. Weights are never random unless that was asked for.
    """
    # A Path is a file or a folder, whatever it is called.
    name = model if isinstance(model, str) else ""
    compile = true_or_false("compile", compile)
    cuda_graphs = true_or_false("cuda_graphs", cuda_graphs)
    download = true_or_false("download", download)
    how: dict[str, Any] = {"device": device, "compile": compile, "cuda_graphs": cuda_graphs}
    kind = next((k for k in (timm.PREFIX, facenet.PREFIX) if name.startswith(k)), None)
    if kind is None:
        if name.startswith(published.PREFIX):
            known = name.removeprefix(published.PREFIX)
            weights.refuse_preset(name, preset)
            file = released_file(name, download)
            net = weights.load(file, preset=published.RELEASES[known].preset, **how)
            net.name = name
            return net
        return weights.load(model, preset=preset, **how)
    if compile or cuda_graphs or preset:
        raise CheckpointError(f"{name}: compile, cuda_graphs and preset are for VDVAEs")
    what, at, own = name.removeprefix(kind).partition("@")
    if at and not own.strip():
        raise CheckpointError(
            f"{name}: expected a file of weights, or random, after @, found nothing; is a variable not set?"
        )
    if own == "random":
        random = timm.random_timm if kind == timm.PREFIX else facenet.random_facenet
        encoder: TorchEncoder = random(what, seed=0)
    else:
        file_ = Path(own) if own else None
        from_file = timm.load_timm if kind == timm.PREFIX else facenet.load_facenet
        encoder = from_file(what, file_, download)
    weights.on_device(encoder.net, device)
    return encoder


def loaded(model: Any) -> Any:
    """Return a model as it is, and what `load` makes of a name or a path."""
    return load(model) if isinstance(model, str | Path) else model


def refuse_unfetched(model: Any, expected: str) -> None:
    """Refuse the name of published weights of timm or FaceNet, before they are fetched for nothing.

    Raises:
        CheckpointError: it is one; what is `expected` is none of these.
    """
    name = model if isinstance(model, str) else ""
    if name.startswith((timm.PREFIX, facenet.PREFIX)) and "@" not in name:
        raise CheckpointError(
            f"{name}: expected {expected}, found the name of another encoder, which can be extracted, probed "
            "and compared alone; name another model"
        )


def as_encoder(model: VDVAE | PixelCNN | Student | Encoder | str | Path) -> Encoder:
    """Return what reads a model, loaded where it is named: a VDVAE's posterior, an encoder itself.

    Raises:
        CheckpointError: it is neither.
    """
    net = loaded(model)
    if isinstance(net, VDVAE):
        return VDVAEEncoder(net)
    if isinstance(net, Student):
        return StudentEncoder(net)
    if isinstance(net, PixelCNN):
        raise CheckpointError(net.about_latents)
    if callable(getattr(net, "read", None)):
        return cast(Encoder, net)
    remedy = "load it with vr.load(...)"
    if isinstance(net, nn.Module):
        remedy = "wrap it in vr.TorchEncoder(net, layers=[...], size=..., mean=..., std=...)"
    raise CheckpointError(
        f"expected a VDVAE or another encoder, found {type(net).__name__}; {remedy}"
    )


@arithmetic()
def random_twin(
    config_json: str, weights_sha256: str, seed: int, layers: Sequence[LayerSpec] = ()
) -> Encoder:
    """Return the architecture of a store's model with random weights.

    Args:
        config_json: the store's attribute `config`.
        weights_sha256: the store's attribute of that name, by which a `TorchEncoder` is found again.
        seed: of the weights.
        layers: the store's, which a `TorchEncoder` must have.

    Raises:
        CheckpointError: a network that is not at hand, or that cannot be initialised anew.
    """
    try:
        config = json.loads(config_json)
        # Stores of the first version say "backbone".
        name = config.get("encoder") or config.get("backbone")
    except (ValueError, TypeError, AttributeError, RecursionError):
        name = None
    if not isinstance(name, str):
        described = model_config_from_json(config_json)
        if isinstance(described, StudentConfig):
            return random_student(described, seed)
        return random_vdvae(ModelConfig.from_json(config_json), seed)
    if name.startswith(timm.PREFIX):
        return timm.random_timm(name.removeprefix(timm.PREFIX), seed)
    if name.startswith(facenet.PREFIX):
        return facenet.random_facenet(name.removeprefix(facenet.PREFIX), seed)
    known = known_encoder(weights_sha256, layers)
    if known is None:
        raise CheckpointError(
            f"{name}: a store holds no network, so random-init needs its vr.TorchEncoder in this session"
        )
    return known.reinitialised(seed)
