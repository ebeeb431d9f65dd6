"""What an encoder is, and any torch network as one.

N images, C channels, H W pixels of a grid, T tokens, S the side of the network's input.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vdvae_repr.config import python_number, shown, whole_number
from vdvae_repr.data.source import Preprocessing, RawImage
from vdvae_repr.encoders.architecture import Description, dense, varies
from vdvae_repr.errors import (
    CheckpointError,
    ConfigError,
    LayerError,
    VDVAEReprError,
    counted,
    first_line,
)
from vdvae_repr.model.base import SavedModel
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.model.noise import NoiseFn, seed_of
from vdvae_repr.model.precision import Precision, arithmetic
from vdvae_repr.model.preprocessing import as_image_tensor
from vdvae_repr.model.weights import about_shard, hash_weights, refuse_no_weights, weights_sha256
from vdvae_repr.pixels import to_rgb

logger = logging.getLogger(__name__)
ROUNDING = 1e-3  # of a layer's largest value, between readings of one image in other batches
STORED_SIDE = 64  # pixels, of the images that a store of another network keeps for the controls
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming")


class ImageTransform(Protocol):
    """Turns an image of any size into an encoder's input, uint8 (S, S, 3).

    It is a dataclass, so that `dataclasses.replace` sets the frame that the user asks for.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def crop(self) -> int | None:
        """Side of the central square taken first, pixels; None takes the image as it is."""

    @property
    def align(self) -> bool:
        """Whether a face is brought to a fixed place first."""

    def __call__(self, image: RawImage) -> NDArray[np.uint8]:
        """Return uint8 (S, S, 3)."""

    def to_json(self) -> dict[str, Any]:
        """Describe the steps for a store's attributes."""


@dataclass(frozen=True)
class Reading:
    """What an encoder says of a batch of images, float32, on its device, which may still be at work."""

    values: Mapping[tuple[str, str], Tensor]
    """(N, *shape) by the name of the layer and of the feature."""
    kl: Tensor | None = None
    """(N, layers traversed), nats an image; None of a network that has none."""


class Encoder(Protocol):
    """What can fill a store; `vr.load` makes one, or `vr.TorchEncoder`."""

    preprocessing: ImageTransform
    """The encoder's own, as its authors read images."""

    @property
    def name(self) -> str:
        """The name in tables and stores."""

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The layers, in the order in which they are computed."""

    @property
    def features(self) -> tuple[str, ...]:
        """The names of what can be read of a layer; the first is read where none is named."""

    @property
    def image_size(self) -> int:
        """Side of the input, pixels."""

    @property
    def stored_side(self) -> int:
        """Side of the images that a store keeps for the controls, pixels."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""

    def identity(self) -> dict[str, str]:
        """Return the store's attributes `model`, `config` (JSON) and `weights_sha256`."""

    def shape(self, spec: LayerSpec, feature: str) -> tuple[int, ...]:
        """Return the shape of one image's feature."""

    def read(
        self,
        pixels: NDArray[np.uint8] | Tensor,
        layers: Sequence[LayerSpec],
        features: Sequence[str],
        *,
        noise: NoiseFn | None = None,
        precision: Precision = "fp32",
    ) -> Reading:
        """Read features of preprocessed images, uint8 (N, S, S, 3); draws are those of `noise`."""

    def reinitialised(self, seed: int) -> Encoder:
        """Return the same architecture with random weights: the control.

        Raises:
            CheckpointError: a parameter that cannot be initialised anew.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkPreprocessing:
    """The usual evaluation transform: shorter side to `size / crop_pct`, then the central square.

    A central square (`crop`) or an alignment of the face comes first where the user asks for one.
    """

    size: int
    """Side of the result, pixels."""
    crop_pct: float = 1.0
    """The part of the resized image's shorter side that is kept."""
    interpolation: str = "bicubic"
    """Of the resize, antialiased."""
    crop: int | None = None
    align: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        size = whole_number("size", self.size, 1, 2**12, "the side of a square, pixels")
        object.__setattr__(self, "size", size)
        Preprocessing(size=self.size, crop=self.crop, align=self.align)
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"interpolation: expected {' or '.join(INTERPOLATIONS)}, found {self.interpolation!r}"
            )
        crop_pct = python_number(self.crop_pct)
        if type(crop_pct) not in (int, float) or not 0 < crop_pct <= 1:
            raise ConfigError(f"crop_pct: expected a number in 0..1, found {shown(self.crop_pct)}")
        object.__setattr__(self, "crop_pct", crop_pct)

    @property
    def resized(self) -> int:
        """The shorter side before the central square is taken, pixels."""
        return math.floor(self.size / self.crop_pct)

    def __call__(self, image: RawImage) -> NDArray[np.uint8]:
        """Return uint8 (size, size, 3); transparency is laid over white.

        Raises:
            DataError: the image is smaller than the crop, or has no face to align.
        """
        picture = framed(image, self.crop, self.align, self.resized)
        width, height = picture.size
        short = min(width, height)
        if short != self.resized:
            sides = self.resized * width // short, self.resized * height // short
            picture = picture.resize(sides, Image.Resampling[self.interpolation.upper()])
        left, top = (round((side - self.size) / 2) for side in picture.size)
        return np.array(picture.crop((left, top, left + self.size, top + self.size)))

    def to_json(self) -> dict[str, Any]:
        """Describe the steps for a store's attributes."""
        return frame_json(self) | {
            "resize": f"shorter side to {self.resized}, {self.interpolation}, antialiased",
            "size": self.size,
        }


def framed(image: RawImage, crop: int | None, align: bool, side: int) -> Image.Image:
    """Return an image in RGB, of it the central square or the aligned face where one is asked for.

    Args:
        image: of any size.
        crop: side of the central square, pixels.
        align: bring a face to its place on `side` x `side` pixels.
        side: of what `align` makes, pixels.
    """
    if crop is not None or align:
        image = Preprocessing(size=crop or side, crop=crop, align=align)(image)
    return to_rgb(image if isinstance(image, Image.Image) else Image.fromarray(image))


def frame_json(transform: ImageTransform) -> dict[str, Any]:
    """Describe what is taken of an image before an encoder's own transform."""
    first = Preprocessing(size=1, crop=transform.crop, align=transform.align).to_json()
    return {key: first[key] for key in ("crop", "align", "landmarks") if key in first}


M = TypeVar("M", bound=SavedModel)


class SavedEncoder(Generic[M]):
    """What reads a model of this package: its images, its layers, and what a store keeps of it."""

    preprocessing: ImageTransform

    def __init__(self, model: M) -> None:
        self.model: M = model
        self.name, self.layers = model.name, model.layers
        self.image_size = self.stored_side = model.config.image_size
        self.preprocessing = Preprocessing(size=self.image_size)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    def identity(self) -> dict[str, str]:
        """Return the store's attributes `model`, `config` (JSON) and `weights_sha256`."""
        return {
            "model": self.name,
            "config": self.model.config.to_json(),
            "weights_sha256": weights_sha256(self.model),
        }


class TorchEncoder:
    """Any torch network as an encoder: what its modules return is its layers.

    Use it with `vr.extract` as a model of the package. What the modules return may be vectors (N, D), grids
    (N, C, H, W) or tokens (N, T, C); of a module that keeps channels last, `pool` is refused.

    The network is run in evaluation mode and left in the mode that it was in. `random-init`, the control,
    initialises a copy of it anew by the `reset_parameters` of its modules, and says which tensors stay as
    they are, also those of attributes and of networks in lists, which no `reset_parameters` comes to; as a
    store cannot hold a network, this control runs in the session in which the encoder was made, or made
    again.

    A store is of one network: of its weights, and of what it computes with, which are the classes of its
    modules, their attributes, buffers, hooks and code, and what this code uses of its own modules. Not seen
    are values that lie in objects of other libraries, in modules that a function imports by itself, in
    files, or in the environment, nor what passes change. So the first image of a store is read again, and a
    store that is off by 2 % of a layer's largest value is refused; after a smaller change that is not seen,
    extract with `overwrite=True`.

    Args:
        net: takes (N, 3, size, size) float32, normalised.
        layers: names of modules, as `net.named_modules()` has them: `["layer3", "layer4.1"]`.
        size: side of the input, pixels.
        mean: of a channel, on the scale 0 to 1; inputs are `(pixel / 255 - mean) / std`.
        std: of a channel, on the same scale.
        name: in tables and stores; if not given, the name of the network's class.
        interpolation: of the resize, as Pillow names it.
        crop_pct: the part of the resized image's shorter side that is kept, 1 for all of it.
        prefix_tokens: how many tokens come before those of the patches, the class token first.

    Raises:
        ConfigError: no network, or an option that is none.
        LayerError: no such module; one that the network does not run, or runs several times; one that
            returns something else; a network that cannot read such images, or whose output for an image is
            drawn anew each time, or depends on the other images of its batch.

    Examples:
        >>> import torch, vdvae_repr as vr
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU())
        >>> encoder = vr.TorchEncoder(net, layers=["1"], size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> encoder.layers[0].shape
        (8, 15, 15)
    """

    features = ("activation",)
    preprocessing: ImageTransform
    kept: tuple[str, ...] = ()
    """Of a network with parameters drawn anew, the tensors that stayed as they were."""
    _passing: set[str] | None = None
    """Places of the `Description` of a network of the user's that passes change; None of a library's."""

    def __init__(
        self,
        net: nn.Module,
        layers: Sequence[str],
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        name: str | None = None,
        interpolation: str = "bicubic",
        crop_pct: float = 1.0,
        prefix_tokens: int = 0,
    ) -> None:
        if not isinstance(net, nn.Module):
            raise ConfigError(f"net: expected a torch.nn.Module, found {type(net).__name__}")
        if name is not None and not isinstance(name, str):
            raise ConfigError(f"name: expected a text, found {shown(name)}")
        names = _module_names(net, layers)
        transform = NetworkPreprocessing(size=size, crop_pct=crop_pct, interpolation=interpolation)
        with _buffers_kept(net):
            self._set_up(
                net,
                names,
                f"torch:{name or type(net).__name__}",
                transform,
                mean,
                std,
                prefix_tokens,
            )
            described = Description(net).digests
            self._check_that_images_stand_alone()
            after = Description(net).digests
        changed = {key for key in {**described, **after} if described.get(key) != after.get(key)}
        self._passing = _PASSING.setdefault(net, set())
        self._passing |= changed
        _KNOWN.add(self)

    @arithmetic()
    def _set_up(
        self,
        net: nn.Module,
        names: Sequence[str],
        name: str,
        transform: ImageTransform,
        mean: Sequence[float],
        std: Sequence[float],
        prefix_tokens: int,
    ) -> None:
        """Keep what a network is read by, and try it on two images to learn its layers."""
        if not names or len(set(names)) < len(names):
            raise LayerError(
                f"expected names of layers, each once, found {', '.join(names) or 'none'}"
            )
        prefix_tokens = whole_number("prefix_tokens", prefix_tokens, 0)
        self.net, self.name, self.preprocessing = net, name, transform
        self.mean = _of_channels("mean", mean, lowest=0.0)
        self.std = _of_channels("std", std, lowest=math.nextafter(0, 1))
        self.image_size = int(transform.size)  # type: ignore[attr-defined]
        self.prefix_tokens = prefix_tokens
        outputs = self._run(torch.zeros(2, 3, self.image_size, self.image_size), names)
        self.layers = tuple(
            _describe(index, layer, output, prefix_tokens)
            for index, (layer, output) in enumerate(outputs.items())
        )
        self._say_if_a_token_is_no_patch()

    def _say_if_a_token_is_no_patch(self) -> None:
        """Warn of the first layer whose tokens are a square and one more, none of which is a prefix."""
        for spec in self.layers:
            if len(spec.shape) != 2 or spec.prefix:
                continue
            side = math.isqrt(spec.shape[0] - 1)
            if spec.shape[0] > 2 and side * side == spec.shape[0] - 1:
                logger.warning(
                    "layer %s: has %d tokens, %dx%d and one more: if that is a class token before them, "
                    "give prefix_tokens=1; without it pool avg averages it with the patches",
                    spec.name, spec.shape[0], side, side,
                )  # fmt: skip
                return

    @property
    def stored_side(self) -> int:
        """Side of the images that a store keeps for the controls, pixels."""
        return min(STORED_SIDE, self.image_size)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    @property
    def config(self) -> dict[str, Any]:
        """What the encoder is made of, apart from its weights and layers."""
        return {
            "encoder": self.name.removesuffix("@random"),
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
        } | ({} if self._passing is None else {"network": self._network()})

    def _network(self) -> str:
        """Return the SHA-256 of what the network computes with, apart from its weights."""
        options = _constant(Description(self.net).digests, self._passing or ())
        return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        """Say what it is called, and which layers it has."""
        names = [spec.name for spec in self.layers]
        which = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
        return f"<{type(self).__name__} {self.name}: {counted(len(names), 'layer')} ({which})>"

    def identity(self) -> dict[str, str]:
        """Return the store's attributes `model`, `config` (JSON) and `weights_sha256`."""
        config = json.dumps(self.config, sort_keys=True)
        state = self.net.state_dict().items()
        saved = {key: dense(value) for key, value in state if isinstance(value, Tensor)}
        return {"model": self.name, "config": config, "weights_sha256": hash_weights(config, saved)}

    def shape(self, spec: LayerSpec, feature: str) -> tuple[int, ...]:
        """Return the shape of one image's feature."""
        return spec.shape

    def read(
        self,
        pixels: NDArray[np.uint8] | Tensor,
        layers: Sequence[LayerSpec],
        features: Sequence[str] = ("activation",),
        *,
        noise: NoiseFn | None = None,
        precision: Precision = "fp32",
    ) -> Reading:
        """Read activations of preprocessed images (N, S, S, 3); nothing is drawn.

        Raises:
            DataError: images of another shape or dtype.
        """
        with arithmetic(precision, self.device.type):
            outputs = self._run(self.normalised(pixels), [spec.name for spec in layers])
        values = {}
        for spec in layers:
            value = outputs[spec.name].float()
            values[spec.name, "activation"] = value.reshape(len(pixels), *spec.shape)
        return Reading(values)

    def normalised(self, pixels: NDArray[np.uint8] | Tensor) -> Tensor:
        """Return the network's input (N, 3, S, S) of preprocessed images (N, S, S, 3)."""
        x = as_image_tensor(pixels, self.image_size)
        x = x.to(self.device, non_blocking=True).float() / 255
        mean, std = (
            torch.tensor(numbers, device=self.device)[:, None, None]
            for numbers in (self.mean, self.std)
        )
        return (x - mean) / std

    @torch.no_grad()
    def _run(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the layers' outputs of a normalised batch, in the order in which they are computed.

        Raises:
            LayerError: the network raises an error of its own, whatever it is.
        """
        try:
            with evaluating(self.net):
                return self._outputs(x.to(self.device), names)
        except VDVAEReprError:
            raise
        except Exception as error:
            raise LayerError(
                f"{self.name}: the network fails on {len(x)} images, (N, 3, {self.image_size}, "
                f"{self.image_size}) float32 ({first_line(error)}); expected one that reads such a batch"
            ) from error

    @arithmetic()
    def _check_that_images_stand_alone(self) -> None:
        """Read images again, and refuse a network that says of them what depends on the occasion.

        One of them stands elsewhere then, in a batch of other images and of another size. It is not the one
        of the highest contrast, whose extremes would be those of any batch that it is in.

        Raises:
            LayerError: an output that is drawn, depends on the batch, or is not finite.
        """
        generator = torch.Generator().manual_seed(0)
        side = self.image_size
        pixels = torch.randint(0, 256, (4, side, side, 3), dtype=torch.uint8, generator=generator)
        pixels[1:] //= torch.tensor([8, 4, 2], dtype=torch.uint8)[:, None, None, None]
        x, names = self.normalised(pixels), [spec.name for spec in self.layers]
        first, again, other = (self._run(x[rows], names) for rows in ([0, 1], [0, 1], [2, 3, 1]))
        for name in names:
            values = first[name].float(), again[name].float(), other[name].float()
            if not torch.isfinite(torch.stack([value.abs().amax() for value in values])).all():
                raise LayerError(
                    f"layer {name}: expected finite values, found NaN or infinity for an image of noise; "
                    "look at the network's weights, or choose another layer"
                )
            if not _alike(values[0], values[1]):
                raise LayerError(
                    f"layer {name}: the same images read twice give other values, in evaluation mode too; "
                    "let the network draw nothing there (functional dropout: training=self.training)"
                )
            if not _alike(values[0][1], values[2][-1]):
                raise LayerError(
                    f"layer {name}: what it gives for an image depends on the rest of its batch, in "
                    "evaluation mode too; let batch norm use its running statistics there, and let nothing "
                    "mix the images (attention: batch_first=True)"
                )

    def _outputs(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return outputs_of(self.net, x, names)

    def _refuse_the_same(self, twin: TorchEncoder) -> None:
        """Refuse a copy with parameters drawn anew that computes what the network does.

        Raises:
            CheckpointError: so it is, as where a function in an attribute holds the network itself.
        """
        names = [spec.name for spec in self.layers]
        x = torch.rand(
            2, 3, self.image_size, self.image_size, generator=torch.Generator().manual_seed(0)
        )
        own, drawn = (encoder._run(x, names) for encoder in (self, twin))
        has_weights = next(self.net.parameters(), None) is not None
        if has_weights and all(torch.equal(own[name], drawn[name]) for name in names):
            raise CheckpointError(
                f"{self.name}: a copy with weights drawn anew computes the same, as where a function in an "
                "attribute holds the network itself (self.f = lambda x: self.conv(x)), so there is no "
                "random-init; make such functions methods"
            )

    def reinitialised(self, seed: int) -> TorchEncoder:
        """Return a copy whose modules have drawn their parameters anew.

        Raises:
            CheckpointError: a parameter of a module that has no `reset_parameters`, or one that it leaves
                as it is.
        """
        twin = copy.copy(self)
        twin.net = reinitialised(self.net, seed, self.name)
        self._refuse_the_same(twin)
        twin.kept = tuple(_kept(self.net, twin.net, self._passing or ()))
        twin.name = f"{self.name.removesuffix('@random')}@random"
        return twin


# The encoders of networks that a store cannot rebuild: what random-init asks.
_KNOWN: WeakSet[TorchEncoder] = WeakSet()
# Places of the `Description` of networks that passes change, for good: what an earlier encoder's passes have
# filled, as a table by shapes, may stand still by now.
_PASSING: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def known_encoder(weights_sha256: str, layers: Iterable[LayerSpec]) -> TorchEncoder | None:
    """Return a `TorchEncoder` of this identity that reads these layers so, where this session has one."""
    wanted = {(spec.name, spec.prefix) for spec in layers}
    for encoder in list(_KNOWN):
        read = {(spec.name, spec.prefix) for spec in encoder.layers}
        if wanted <= read and encoder.identity()["weights_sha256"] == weights_sha256:
            return encoder
    return None


def reinitialised(net: nn.Module, seed: int, name: str) -> nn.Module:
    """Return a copy of a network with parameters drawn anew; the global random state stays as it is.

    Raises:
        CheckpointError: a parameter of a module that has no `reset_parameters`, or one that it leaves as
            it is.
    """
    twin = copy.deepcopy(net)
    with torch.random.fork_rng(), torch.no_grad():
        # Not the seed itself, which the network may have been made under.
        torch.manual_seed(seed_of(seed, name, "random-init"))
        for path, module in twin.named_modules():
            reset = getattr(module, "reset_parameters", None) or getattr(
                module, "_reset_parameters", None
            )
            if reset is not None:
                reset()
            elif own := [key for key, _ in module.named_parameters(recurse=False)]:
                raise CheckpointError(
                    f"{name}: {f'{path}.{own[0]}'.lstrip('.')} cannot be initialised anew, as "
                    f"{type(module).__name__} has no reset_parameters: give it one for random-init"
                )
    before = dict(net.named_parameters())
    for path, parameter in twin.named_parameters():
        # Weights have several dimensions; scales and biases may well start where they stood.
        drawn = parameter.ndim > 1 and bool((parameter != parameter.flatten()[0]).any())
        if drawn and torch.equal(parameter, before[path]):
            raise CheckpointError(
                f"{name}: {path} stays as it is under reset_parameters, so there is no random-init"
            )
    return twin


def _constant(digests: Mapping[str, str], passing: Collection[str]) -> dict[str, str]:
    """Return the digests of a `Description` but for places that passes change, and dictionaries they fill."""
    grown = tuple(key.removesuffix(": keys") + "[" for key in passing if key.endswith(": keys"))
    return {k: v for k, v in digests.items() if k not in passing and not k.startswith(grown)}


def _kept(net: nn.Module, twin: nn.Module, passing: Collection[str]) -> Iterator[str]:
    """Yield the names of a network's tensors that its twin has too, and that may have been trained.

    These are what is saved, and tensors and arrays in attributes, globals and networks that are not
    registered, where a pass leaves them as they are, of floating point. Those of one value are as they
    start, as the running means of a network that was not trained.

    Args:
        net: the network.
        twin: a copy with parameters drawn anew.
        passing: places of the `Description` that passes change.
    """
    drawn = twin.state_dict()
    for name, before in net.state_dict().items():
        if varies(before) and varies(drawn[name]) and torch.equal(before, drawn[name]):
            yield name
    description, after = Description(net), Description(twin).digests
    unsaved = {name for name, _ in net.named_buffers(remove_duplicate=False)}
    for place in sorted(description.numbers & _constant(after, passing).keys() - unsaved):
        if description.digests[place] == after.get(place):
            yield place


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Run a network in evaluation mode, and leave every module in the mode that it was in."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def outputs_of(net: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return what modules of a network return for a batch, by name, in the order in which they ran.

    Raises:
        LayerError: a module that does not run, runs several times, or returns no tensor.
    """
    outputs: dict[str, Tensor] = {}
    modules = dict(net.named_modules())

    def keep(name: str, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise LayerError(
                f"module {name} returns {type(output).__name__}, expected a tensor; choose one inside it"
            )
        if name in outputs:
            raise LayerError(
                f"module {name} runs several times in a pass, so that it is no one layer; choose another"
            )
        outputs[name] = output.detach().clone()  # what follows may work in place

    hooks = [
        modules[name].register_forward_hook(
            lambda module, inputs, output, name=name: keep(name, output)
        )
        for name in names
    ]
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()
    if missing := [name for name in names if name not in outputs]:
        raise LayerError(
            f"module {missing[0]} does not run in a pass of the network; choose another"
        )
    return outputs


def _module_names(net: nn.Module, layers: str | Sequence[str]) -> list[str]:
    """Return the names of modules that were asked for, each of which the network has.

    Raises:
        LayerError: no names, or a name of none.
    """
    if isinstance(layers, str):
        layers = [name.strip() for name in layers.split(",")]
    names = list(layers) if isinstance(layers, Iterable) else [layers]
    known = [name for name, _ in net.named_modules() if name]
    kind = type(net).__name__
    if not known:
        raise LayerError(
            f"{kind} has no modules inside; wrap it, torch.nn.Sequential(net), and name its layer '0'"
        )
    for name in names:
        if not isinstance(name, str):
            raise LayerError(
                f"layers: expected names of modules, as {known[0]!r}, found {type(name).__name__}"
            )
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            children = [child for child, _ in net.named_children()]
            more = ", ..." if len(children) > 12 else ""
            raise LayerError(
                f"{kind} has no module {name!r}{hint}; it has {', '.join(children[:12])}{more}"
                f"{', and theirs' if len(known) > len(children) else ''}"
            )
    return names


def _of_channels(what: str, numbers: Sequence[float], lowest: float) -> tuple[float, ...]:
    """Return a number a channel.

    Raises:
        ConfigError: they are not three numbers from `lowest` to 1.
    """
    try:
        plain = [number.item() if hasattr(number, "item") else number for number in numbers]
        no_number = any(isinstance(number, bool | str | bytes) for number in plain)
        found = () if no_number else tuple(map(float, plain))
    except (TypeError, ValueError, RuntimeError):
        found = ()
    if len(found) != 3 or not all(lowest <= number <= 1 for number in found):  # NaN is none of them
        above = "" if lowest == 0 else ", none of them 0"
        raise ConfigError(
            f"{what}: expected three numbers, one a channel, on the scale 0 to 1{above}, found "
            f"{shown(found or numbers)}"
        )
    return found


@contextmanager
def _buffers_kept(net: nn.Module) -> Iterator[None]:
    """Give buffers that passes change, as batch norm's statistics in training mode, their values back."""
    lazy = torch.nn.parameter.is_lazy  # whose shape the first pass tells
    kept = {name: value.clone() for name, value in net.named_buffers() if not lazy(value)}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in net.named_buffers():
                if name in kept and kept[name].shape == value.shape:
                    value.copy_(kept[name])


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two readings of a layer are equal but for rounding."""
    if a.shape != b.shape:
        return False
    return bool((a - b).abs().amax() <= ROUNDING * torch.maximum(a.abs().amax(), b.abs().amax()))


def _describe(index: int, name: str, output: Tensor, prefix_tokens: int) -> LayerSpec:
    """Return the layer that a module's output of two images is."""
    if output.is_complex() or output.layout is not torch.strided or output.is_meta:
        what = "on the meta device" if output.is_meta else f"{output.dtype}, {output.layout}"
        raise LayerError(
            f"layer {name}: expected real numbers in a dense tensor, found {what.replace('torch.', '')}; "
            "choose another layer"
        )
    shape = tuple(output.shape[1:])
    if output.shape[:1] != (2,) or len(shape) not in (1, 2, 3) or 0 in shape:
        raise LayerError(
            f"layer {name}: expected (N, D), (N, T, C) or (N, C, H, W) of N = 2 images, "
            f"found {tuple(output.shape)}"
        )
    if len(shape) == 1:
        return LayerSpec(index, name, 1, (*shape, 1, 1))
    if len(shape) == 3:
        return LayerSpec(index, name, shape[1] if shape[1] == shape[2] else 0, shape)
    if not 0 <= prefix_tokens < shape[0]:
        raise LayerError(
            f"layer {name}: expected fewer prefix_tokens than its {shape[0]} tokens, found {prefix_tokens}"
        )
    side = math.isqrt(shape[0] - prefix_tokens)
    square = side > 0 and side * side == shape[0] - prefix_tokens
    return LayerSpec(index, name, side if square else 0, shape, prefix_tokens)


def checked_state(
    state: Mapping[str, Tensor], net: nn.Module, where: str, classifiers: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Return the part of a checkpoint that fills a network, under the network's own names.

    What every name begins with in the checkpoint, as `module.` or `backbone.`, is taken away. Every
    parameter and buffer must be there, and nothing else beside it but the classifier.

    Args:
        state: tensors by name.
        net: has no classifier.
        where: the file, in messages.
        classifiers: names of the classifier's modules in the checkpoint.

    Raises:
        CheckpointError: names the first parameters that are missing, of another shape, not of real numbers,
            or no part of the network.
    """
    expected = net.state_dict()
    required = [key for key in expected if not key.endswith("num_batches_tracked")]
    first = required[0]
    prefixes = [
        key.removesuffix(first) for key in state if key == first or key.endswith(f".{first}")
    ]
    filled = {
        prefix: sum(f"{prefix}{key}" in state for key in required) for prefix in [*prefixes, ""]
    }
    # Of an average, as of a teacher, parameters may be there without buffers.
    nearly = [prefix for prefix, count in filled.items() if 2 * count > len(required)]
    if len(nearly) > 1 and filled[""] < len(required):
        raise CheckpointError(
            f"{where}: holds the network {len(nearly)} times, under {', '.join(nearly)}; "
            "save the one that is meant"
        )
    prefix = "" if filled[""] == len(required) else max(filled, key=lambda key: filled[key])
    refuse_no_weights(prefix.rstrip("."), where)
    inside = {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
    # An average may be kept under names without dots, as `model_ema.layer1conv1weight`.
    bare = {key.replace(".", "") for key in required}
    others = [key for key in state if not key.startswith(prefix)]
    averaged = [key for key in others if key.partition(".")[2].replace(".", "") in bare]
    if 2 * len(averaged) > len(required):
        second = averaged[0].partition(".")[0]
        raise CheckpointError(
            f"{where}: holds the network 2 times, under {prefix}, {second}.; save the one that is meant"
        )
    if missing := [key for key in required if key not in inside]:
        raise CheckpointError(f"{where}: {about_gaps(missing, len(required), state, where)}")
    strange = [
        key
        for key in inside
        if key not in expected
        and not key.endswith("num_batches_tracked")
        and not key.startswith(tuple(f"{name}." for name in classifiers))
    ]
    if strange:
        raise CheckpointError(
            f"{where}: holds {counted(len(strange), 'parameter', 'that is', 'that are')} no part of this "
            f"network, {', '.join(strange[:3])}; is it of another architecture?"
        )
    for key in required:
        if inside[key].shape != expected[key].shape:
            raise CheckpointError(
                f"{where}: {key} is {tuple(inside[key].shape)}, expected {tuple(expected[key].shape)}"
            )
        if _kind(inside[key]) != _kind(expected[key]):
            raise CheckpointError(
                f"{where}: {key} holds {_kind(inside[key])}, expected {_kind(expected[key])}; "
                "save the weights as they were trained, in float32 or float16"
            )
    return {key: inside.get(key, expected[key]) for key in expected}


def about_gaps(missing: Sequence[str], count: int, state: Mapping[str, Tensor], where: str) -> str:
    """Say which of a network's parameters a checkpoint does not fill.

    Args:
        missing: their names.
        count: how many the network has.
        state: the checkpoint's tensors.
        where: its file, whose name may say that it is one of several.
    """
    shard = about_shard(where)
    return (
        f"fills {count - len(missing)} of {count} parameters; missing are {', '.join(missing[:3])}; its keys "
        f"begin with {', '.join(list(state)[:3])}{f'; {shard}' if shard else ''}"
    )


def _kind(value: Tensor) -> str:
    """Return what kind of numbers a tensor holds, in words."""
    if value.is_complex():
        return "complex numbers"
    if value.dtype == torch.bool:
        return "truth values"
    return "real numbers" if value.is_floating_point() else "whole numbers"


def named_failure(name: str, error: Exception) -> CheckpointError:
    """Return an error of another library as one of this package's, in one line."""
    return CheckpointError(f"{name}: cannot be loaded ({first_line(error)})")
