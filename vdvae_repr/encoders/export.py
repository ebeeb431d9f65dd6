"""A VDVAE's mean pass, cut after chosen layers, or a student, as a file that runs without this package."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdvae_repr.config import path_of, with_hints
from vdvae_repr.encoders.load import loaded, refuse_unfetched
from vdvae_repr.errors import CheckpointError, TaskError, VDVAEReprError, first_line
from vdvae_repr.model.layers import LayerSpec, select_layers
from vdvae_repr.model.precision import arithmetic
from vdvae_repr.model.preprocessing import to_input
from vdvae_repr.model.student import Student
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.model.weights import check_finite, weights_sha256
from vdvae_repr.output import NETWORK, aside_of, refuse_others, replacing, version

ENDINGS = (".onnx", ".pt2")
FEATURES = ("mean", "log_std")
ONNX = ("onnx", "onnxscript")


@with_hints
@arithmetic()
def export_model(
    model: VDVAE | Student | str | Path,
    out: str | Path,
    *,
    layers: str | int | Sequence[str | int] = "all",
) -> Path:
    """Write the network that reads a posterior, as ONNX or as a program of torch.export; return the path.

    Of a VDVAE it is the mean pass as far as the last layer chosen, each layer sending its mean down; of a
    student the prediction. It is that of `model.posterior(images, layers)`, to rounding, in float32.

    The input `images` is uint8 (N, S, S, 3), any number of images of the model's size, red first: pixels as
    they are in a file, neither shifted nor scaled. The outputs are float32 (N, C, R, R), two a layer, coarse
    to fine, under its name: `8x8.0.mean`, `8x8.0.log_std`. The file's metadata (of a `.pt2` its extra file
    `vdvae-repr.json`) hold model, configuration, layers, the SHA-256 of the weights and, where the model was
    trained on a central square of its images, that square's side in pixels.

    Args:
        model: loaded with `vr.load`, or what that takes.
        out: a path that ends in `.onnx`, which needs the extra `export`, or in `.pt2`. An earlier file of
            this function is replaced, and no other.
        layers: selector.

    Raises:
        CheckpointError: the model is neither, or its weights are not finite.
        ConfigError: they are not float32.
        LayerError: a selector that names no layer.
        TaskError: another ending, packages that are missing, a file of somebody else, or no room.

    Example:
        >>> vr.export_model(vr.load("faces64"), "m.onnx", layers="<=8x8")  # doctest: +SKIP
    """
    path = path_of("out", out)
    if path.suffix not in ENDINGS:
        raise TaskError(
            f"{path}: expected a path that ends in {' or '.join(ENDINGS)}, found {path.suffix or 'no ending'}"
        )
    refuse_unfetched(model, "a VDVAE or a student")
    model = loaded(model)
    if not isinstance(model, VDVAE | Student):
        raise CheckpointError(
            f"model: expected a VDVAE or a student, found {type(model).__name__}; load one with vr.load"
        )
    if path.suffix == ".onnx":
        _require_onnx()
    chosen = select_layers(model.layers, layers)
    model.expect_float32()
    check_finite(model.state_dict(), model.name)
    refuse_others([path])
    kind = VDVAEPass if isinstance(model, VDVAE) else StudentPass
    network: Network = kind(cast(Any, model), chosen).cpu().eval().requires_grad_(False)
    described = {
        "software": NETWORK,
        "version": version(),
        "model": model.name,
        "config": model.config.to_json(),
        "weights_sha256": weights_sha256(model),
        "layers": json.dumps([spec.to_json() for spec in chosen]),
    }
    if model.trained_crop is not None:
        described["trained_crop"] = str(model.trained_crop)
    try:
        with replacing(path), _quiet():
            images = torch.zeros(2, *[model.config.image_size] * 2, 3, dtype=torch.uint8)
            write = _write_onnx if path.suffix == ".onnx" else _write_pt2
            write(network, images, aside_of(path), described)
    except OSError as error:
        raise TaskError(
            f"{path}: cannot be written ({first_line(error)}); make room, or choose another path"
        ) from error
    return path


class Network(nn.Module):
    """What is exported: uint8 (N, S, S, 3) to means and log standard deviations by name."""

    chosen: tuple[LayerSpec, ...]


class VDVAEPass(Network):
    """The mean pass of a VDVAE through its own blocks, with what no chosen layer needs left out."""

    def __init__(self, model: VDVAE, chosen: Sequence[LayerSpec]) -> None:
        super().__init__()
        self.config, self.chosen = model.config, tuple(chosen)
        self.run = model.layers[: chosen[-1].index + 1]
        self.bottom_up, self.top_down = (
            copy.deepcopy(model.bottom_up),
            copy.deepcopy(model.top_down),
        )
        self.top_down.blocks = self.top_down.blocks[: len(self.run)]
        used = {spec.resolution for spec in self.run}
        constants = self.top_down.constants
        self.top_down.constants = nn.ParameterList(c for c in constants if c.shape[-1] in used)
        last = self.top_down.block(self.run[-1])
        del self.top_down.out_conv, self.top_down.bias, last.prior, last.z_proj, last.resnet

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map uint8 (N, S, S, 3) to means and log standard deviations by name."""
        x = to_input(images.permute(0, 3, 1, 2), self.config)
        count = x.shape[0]
        activated = {r: F.gelu(a) for r, a in self.bottom_up(x).items()}
        states = self.top_down.initial_states(count)
        outputs: dict[str, Tensor] = {}
        for spec in self.run:
            r, block = spec.resolution, self.top_down.block(spec)
            state = self.top_down.enter(spec.index, states, count)
            if spec is self.run[-1]:
                q = block.posterior(F.gelu(state), activated[r]).chunk(2, dim=1)
            else:
                layer = block.read(state, activated[r], None)
                q = layer.mean, layer.log_std
                states[r] = cast(Tensor, layer.top_down)
            if spec in self.chosen:
                outputs |= _named(spec, *q)
        return outputs


class StudentPass(Network):
    """A student's prediction of chosen layers."""

    def __init__(self, model: Student, chosen: Sequence[LayerSpec]) -> None:
        super().__init__()
        self.student, self.chosen = copy.deepcopy(model), tuple(chosen)
        for place, spec in enumerate(model.layers):
            if spec not in self.chosen:
                self.student.heads[place] = nn.Identity()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map uint8 (N, S, S, 3) to means and log standard deviations by name."""
        x = to_input(images.permute(0, 3, 1, 2), self.student.config)
        outputs: dict[str, Tensor] = {}
        for spec, layer in zip(self.chosen, self.student.predict(x, self.chosen), strict=True):
            outputs |= _named(spec, *layer)
        return outputs


def _named(spec: LayerSpec, mean: Tensor, log_std: Tensor) -> dict[str, Tensor]:
    return {
        f"{spec.name}.{key}": value for key, value in zip(FEATURES, (mean, log_std), strict=True)
    }


def _write_pt2(network: Network, images: Tensor, path: Path, described: dict[str, str]) -> None:
    """Trace a network over any number of images, and write it as torch.export does."""
    any_number = {"images": {0: torch.export.Dim("N", min=1)}}
    program = torch.export.export(network, (images,), dynamic_shapes=any_number)
    extra = {"vdvae-repr.json": json.dumps(described)}
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=extra)


def _write_onnx(network: Network, images: Tensor, path: Path, described: dict[str, str]) -> None:
    """Trace a network over any number of images, and write it as ONNX with its names and metadata."""
    names = [f"{spec.name}.{key}" for spec in network.chosen for key in FEATURES]
    program = torch.onnx.export(
        network, (images,), input_names=["images"], output_names=names,
        dynamic_shapes={"images": {0: "N"}}, dynamo=True, verbose=False,
    )  # fmt: skip
    if program is None:
        raise VDVAEReprError(f"{path}: torch.onnx.export gave no program")
    program.model.metadata_props.update(described)
    program.model.producer_name, program.model.producer_version = "vdvae-repr", version()
    program.save(str(path), external_data=False)


def _require_onnx() -> None:
    """Refuse to write ONNX without the packages that do.

    Raises:
        TaskError: names those that are missing.
    """
    missing = [name for name in ONNX if importlib.util.find_spec(name) is None]
    if missing:
        raise TaskError(
            f"out: an .onnx file needs {' and '.join(missing)}, not installed here; "
            'pip install "vdvae-repr[export]", or choose a .pt2'
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what PyTorch's exporters say of their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
