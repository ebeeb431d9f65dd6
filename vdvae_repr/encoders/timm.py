"""timm's models as encoders, read as their authors read them.

The transform is timm's own, and so are the layers: the stages or blocks of `forward_intermediates`, under
the names of `feature_info`, and the embedding before the classifier last.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vdvae_repr.config import suggestion
from vdvae_repr.data.open import warn
from vdvae_repr.data.source import Preprocessing, RawImage
from vdvae_repr.encoders.base import (
    TorchEncoder,
    about_gaps,
    checked_state,
    evaluating,
    frame_json,
    framed,
    named_failure,
)
from vdvae_repr.errors import CheckpointError, first_line
from vdvae_repr.model.weights import check_finite, check_readable, read_th, read_weights

PREFIX = "timm:"
EMBEDDING = "embedding"
STEM = "stem"  # where timm gives features a name that is empty, as those of tresnet_m
SAMPLED = 64  # values of a parameter, to tell whether a checkpoint holds them
TIMEOUT = 5.0  # seconds, to tell whether the hub can be reached


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmPreprocessing:
    """timm's evaluation transform, up to the uint8 image; a central square or an alignment may come first."""

    size: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int | None = None
    align: bool = False

    def __post_init__(self) -> None:
        """Refuse a square of nothing, and two ways to choose it."""
        Preprocessing(size=self.size, crop=self.crop, align=self.align)

    def __call__(self, image: RawImage) -> NDArray[np.uint8]:
        """Return uint8 (size, size, 3); transparency is laid over white.

        Raises:
            DataError: the image is smaller than the crop, or has no face to align.
        """
        picture = framed(image, self.crop, self.align, round(self.size / self.crop_pct))
        transform = _transform(self.size, self.crop_pct, self.crop_mode, self.interpolation)
        return np.ascontiguousarray(np.asarray(transform(picture)).transpose(1, 2, 0))

    def to_json(self) -> dict[str, Any]:
        """Describe the steps for a store's attributes."""
        own = {
            key: getattr(self, key) for key in ("size", "crop_pct", "crop_mode", "interpolation")
        }
        return frame_json(self) | own | {"transform": "timm", "mean": self.mean, "std": self.std}


@cache
def _transform(
    size: int, crop_pct: float, crop_mode: str, interpolation: str
) -> Callable[[Any], Any]:
    """Return timm's transform; under `use_prefetcher` it ends before values are scaled."""
    from timm.data.transforms_factory import create_transform

    made: Callable[[Any], Any] = create_transform(
        (3, size, size),
        is_training=False,
        use_prefetcher=True,
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )
    return made


class TimmEncoder(TorchEncoder):
    """A timm model without its classifier; make one with `vr.load("timm:NAME")`.

    Grids are (C, H, W). Transformers of the family of ViT give tokens (T, C), class token first, then
    registers.
    """

    def __init__(self, net: nn.Module, name: str) -> None:
        from timm.data.config import resolve_model_data_config

        data = resolve_model_data_config(net)
        channels, height, width = data["input_size"]
        if channels != 3 or height != width:
            raise CheckpointError(
                f"{name}: expected a model of square RGB images, found inputs {data['input_size']}"
            )
        stages = [row["module"] or STEM for row in net.feature_info]  # type: ignore[union-attr]
        if not hasattr(net, "forward_intermediates") or len(set(stages)) < len(stages):
            raise CheckpointError(
                f"{name}: timm gives no intermediate features of it under one name each; name its modules in "
                "vr.TorchEncoder"
            )
        intermediates: Any = net.forward_intermediates
        signature = inspect.signature(intermediates).parameters
        self._tokens = "return_prefix_tokens" in signature
        self._stages: tuple[str, ...] = tuple(stages)
        self._one_pass = False
        transform = TimmPreprocessing(
            size=height,
            crop_pct=data["crop_pct"],
            crop_mode=data["crop_mode"],
            interpolation=data["interpolation"],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        )
        prefix = int(getattr(net, "num_prefix_tokens", 0)) if self._tokens else 0
        names = (*stages, EMBEDDING)
        self._set_up(net, names, name, transform, data["mean"], data["std"], prefix)
        parameters = (key.rpartition(".")[2] for key, _ in net.named_parameters())
        if prefix and "cls_token" not in parameters:  # registers alone
            self.layers = tuple(replace(spec, class_token=not spec.prefix) for spec in self.layers)
        self._one_pass = self._heads_agree(net)

    @torch.no_grad()
    def _heads_agree(self, net: Any) -> bool:
        """Whether the head makes the embedding of what `forward_intermediates` ends with."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(1, 3, self.image_size, self.image_size, generator=generator)
        with evaluating(net):
            try:
                final, stages = self._intermediates(x, None)
                same = torch.equal(net.forward_head(final), net(x))
            except (RuntimeError, AttributeError, TypeError):
                return False
        return same and len(stages) == len(self._stages)

    def _intermediates(
        self, x: Tensor, indices: Sequence[int] | None
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the final features and the stages of `indices`; of those alone, no final features."""
        net: Any = self.net
        options: dict[str, Any] = {"indices": None if indices is None else list(indices)}
        if self._tokens:
            options |= {"output_fmt": "NLC", "return_prefix_tokens": True}
        if indices is not None:
            options |= {"stop_early": True, "intermediates_only": True}
        result = net.forward_intermediates(x, **options)
        final, stages = (None, result) if indices is not None else result
        return final, [
            torch.cat([stage[1], stage[0]], dim=1) if isinstance(stage, tuple) else stage
            for stage in stages
        ]

    def _outputs(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        wanted = [index for index, stage in enumerate(self._stages) if stage in names]
        outputs: dict[str, Tensor] = {}
        net: Any = self.net
        whole = EMBEDDING in names and self._one_pass
        if wanted:
            final, stages = self._intermediates(x, None if whole else wanted)
            if whole:
                stages = [stages[index] for index in wanted]
                outputs[EMBEDDING] = net.forward_head(final)
            found = {self._stages[i]: stage for i, stage in zip(wanted, stages, strict=True)}
            outputs = found | outputs
        if EMBEDDING in names and EMBEDDING not in outputs:
            outputs[EMBEDDING] = net(x)
        return outputs

    def reinitialised(self, seed: int) -> TimmEncoder:
        """Return the same architecture with timm's own initial weights, drawn from a seed."""
        name = self.name.removesuffix("@random")
        return random_timm(name.removeprefix(PREFIX), seed)


def load_timm(what: str, weights: Path | None, download: bool) -> TimmEncoder:
    """Load a timm model with its published weights, or those of a file.

    Args:
        what: the model's name at timm, maybe with a tag: `resnet50` or `resnet50.a1_in1k`.
        weights: a file of weights for it; None for the published ones, out of the cache.
        download: fetch published weights that are not in the cache.

    Raises:
        CheckpointError: no such model, weights that are missing, or that do not fill it.
    """
    name = f"{PREFIX}{what}"
    if weights is not None:
        where = f"{name}@{weights}"
        net, state = _create(what, pretrained=False), read_weights(weights)
        recipe = _TrainingRecipe.beside(weights)
        recipe.refuse_other_architecture(net, weights)
        net.load_state_dict(_filling(net, state, where, _classifiers(net, what)))
        if line := recipe.about_transform(net):
            warn(f"{where}: {line}")
        return TimmEncoder(net, name)
    file = _cached(what)
    if file is None:
        _refuse_or_reach(name, download)
    elif file.suffix != ".npz":  # NumPy's, which timm reads name by name
        check_readable(file)
    overlay = None if file is None else {"file": str(file)}
    try:
        net = _create(what, pretrained=True, pretrained_cfg_overlay=overlay)
    except CheckpointError:
        raise
    except Exception as error:  # what timm and the hub raise, of many kinds
        raise named_failure(name, error) from error
    check_finite(net.state_dict(), name)
    if (file := file or _cached(what)) is not None and file.suffix != ".npz":
        _refuse_gaps(net, what, file)
    return TimmEncoder(net, name)


def _refuse_gaps(net: nn.Module, what: str, file: Path) -> None:
    """Refuse published weights that do not fill the network: without its classifier, timm lets gaps pass.

    A gap is a parameter that the file does not name, also not under names that timm translates, and that is
    as it was initialised. What a file holds beside the network, as its classifier, does not matter. Some
    models are published without the head, whose norm then stays at 1 and 0; this is said.

    Args:
        net: as timm filled it.
        what: its name at timm.
        file: what it was filled from.

    Raises:
        CheckpointError: as described.
    """
    from timm.models import load_state_dict

    state = load_state_dict(str(file))  # of several sets of weights that which timm takes
    loaded = net.state_dict()
    required = [key for key in loaded if not key.endswith("num_batches_tracked")]
    names = set(state)
    translate = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if translate is not None:
        with suppress(Exception):  # whatever a translation raises of names that are not its own
            translated = set(translate(dict(state), net))
            names = max(names, translated, key=lambda held: len(held.intersection(required)))
    missing = [key for key in required if key not in names]
    if not missing:
        return
    initial = _create(what, pretrained=False).state_dict()
    gaps = [key for key in missing if torch.equal(loaded[key], initial[key])]
    if not gaps:
        return
    config: Any = net.pretrained_cfg
    head = str(config.get("classifier") or "").rpartition(".")[0]
    headless = head and not any(key.startswith(f"{head}.") for key in names)
    if headless and all(key.startswith(f"{head}.norm.") for key in gaps):
        warn(f"{PREFIX}{what}: is published without {', '.join(gaps)}, which stay at 1 and 0")
        return
    about = about_gaps(gaps, len(required), state, str(file))
    raise CheckpointError(
        f"{PREFIX}{what}, {file}: {about}; these are not the weights that timm publishes: remove the file "
        f'and fetch it with vr.load("{PREFIX}{what}", download=True), '
        f"or name weights of your own, {PREFIX}{what}@FILE"
    )


@dataclass(frozen=True)
class _TrainingRecipe:
    """What a checkpoint of timm's train.py, or a config.json beside timm's weights, says of its training."""

    architecture: str = ""
    """At timm, maybe with a tag; empty where nothing tells."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Options of timm's transform, by timm's names."""

    @classmethod
    def beside(cls, weights: Path) -> _TrainingRecipe:
        """Read the recipe in a file of weights, or in a config.json beside it; empty where there is none."""
        if weights.name in ("model.safetensors", "pytorch_model.bin"):
            try:
                config = json.loads(weights.with_name("config.json").read_bytes())
                return cls._of(config["architecture"], config.get("pretrained_cfg") or config)
            except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
                pass
        try:
            checkpoint = read_th(weights, lazily=True)
        except CheckpointError:  # safetensors
            return cls()
        options = checkpoint.get("args")
        if isinstance(options, argparse.Namespace):
            options = vars(options)
        return cls._of(checkpoint.get("arch"), options)

    @classmethod
    def _of(cls, architecture: Any, options: Any) -> _TrainingRecipe:
        return cls(
            architecture if isinstance(architecture, str) else "",
            options if isinstance(options, Mapping) else {},
        )

    def refuse_other_architecture(self, net: nn.Module, weights: Path) -> None:
        """Refuse weights of another model than the one named, even if names and shapes are equal.

        Raises:
            CheckpointError: names the one that they are of.
        """
        import timm

        config: Any = net.pretrained_cfg
        told, named = self.architecture.partition(".")[0], config.get("architecture", "")
        known = told in timm.list_models()  # where names that timm gave up are not
        if known and named not in ("", told):
            raise CheckpointError(
                f"{weights}: says that its weights are of {self.architecture}, expected {named}; load it as "
                f"{PREFIX}{told}@{weights}"
            )

    def about_transform(self, net: nn.Module) -> str:
        """Say where the images were prepared otherwise for training than timm prepares them for the model."""
        from timm.data.config import resolve_data_config

        own = resolve_data_config(model=net)
        # Other options, as crop_pct, are those that the training evaluated with.
        keys = ("input_size", "img_size", "mean", "std")
        try:
            told = resolve_data_config(
                {key: self.data[key] for key in keys if key in self.data}, model=net
            )
            other = [key for key in keys if key in own and _plain(told[key]) != _plain(own[key])]
        except (AssertionError, TypeError, ValueError):  # options of another program
            return ""
        if not other:
            return ""
        trained, used = (
            ", ".join(f"{key} {_plain(config[key])}" for key in other) for config in (told, own)
        )
        return (
            f"was trained with {trained}; images go through timm's transform of the model, with {used}: "
            "vr.TorchEncoder takes another size, mean and std"
        )


def _plain(value: Any) -> Any:
    """Return an option of a transform as it is compared and printed."""
    return tuple(value) if isinstance(value, list) else value


def random_timm(what: str, seed: int) -> TimmEncoder:
    """Return a timm model with its initial weights, drawn from a seed."""
    return TimmEncoder(_create(what, pretrained=False, seed=seed), f"{PREFIX}{what}@random")


def _create(what: str, *, pretrained: bool, seed: int = 0, **options: Any) -> nn.Module:
    """Return a timm model without its classifier, whose initial weights are drawn from a seed."""
    import timm

    _check_name(what)
    try:
        # Of the CPU alone, whose generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            net: nn.Module = timm.create_model(
                what, **{"pretrained": pretrained, "num_classes": 0, **options}
            )
    except RuntimeError as error:
        if pretrained:
            raise
        raise named_failure(f"{PREFIX}{what}", error) from error
    return net.eval()


def _check_name(what: str) -> None:
    import timm

    if not timm.is_model(what.partition(".")[0]):
        raise CheckpointError(
            f"{PREFIX}{what}: timm has no such model"
            f"{suggestion(what.partition('.')[0], timm.list_models())}; timm.list_models() has the names"
        )


def _classifiers(net: nn.Module, what: str) -> list[str]:
    """Return the names of the modules of a model's classifier, which the network was made without.

    They are what timm calls its classifier, and what else the model has where it is made with classes.
    """
    config: Any = net.pretrained_cfg
    known = config.get("classifier") or ()
    names = [known] if isinstance(known, str) else list(known)
    with torch.device("meta"):
        whole = _create(what, pretrained=False, num_classes=1).state_dict()
    return names + [key.rpartition(".")[0] for key in whole.keys() - net.state_dict().keys()]


def _filling(
    net: nn.Module, state: Mapping[str, Tensor], where: str, names: Sequence[str]
) -> dict[str, Tensor]:
    """Return what of a checkpoint fills a network, under timm's names or those that timm translates.

    Args:
        net: has no classifier.
        state: tensors by name.
        where: the file, in messages.
        names: of the modules of its classifier.

    Raises:
        CheckpointError: it does not fill the network, or holds more than its classifier beside it.
    """
    try:
        return checked_state(state, net, where, names)
    except CheckpointError as refusal:
        module = sys.modules[type(net).__module__]
        translate = getattr(module, "checkpoint_filter_fn", None)
        if translate is None:
            raise
        try:
            filled = checked_state(translate(dict(state), net), net, where, names)
        except Exception:  # whatever a translation raises of names that are not its own
            raise refusal from None
        if resampled := _computed(filled, state):
            raise CheckpointError(
                f"{where}: is of another architecture, whose {resampled} timm would resample to "
                f"{tuple(filled[resampled].shape)}; name the model that the weights were trained for"
            ) from refusal
        return filled


def _computed(filled: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    """Return a parameter whose values stand nowhere in a checkpoint; None if names and shapes alone changed.

    A translation gives views of the checkpoint's tensors, or joins them; what it resamples has other values,
    of which some are looked for.
    """
    used = {value.untyped_storage().data_ptr() for value in filled.values()}
    rest = [value for value in state.values() if value.untyped_storage().data_ptr() not in used]
    own = {value.untyped_storage().data_ptr() for value in state.values()}
    samples = {}
    for key, value in filled.items():
        if value.untyped_storage().data_ptr() not in own and value.is_floating_point():
            sample = value.flatten()[:: max(1, value.numel() // SAMPLED)].double()
            samples[key] = sample[sample != 0]  # 0 may stand for a bias that the checkpoint lacks
    if not samples:
        return None
    wanted = torch.cat(list(samples.values()))  # of all at once, as each comparison sorts a tensor
    there = torch.zeros(len(wanted), dtype=torch.bool)
    for other in rest:
        if other.is_floating_point():
            there |= torch.isin(wanted, other.double())
    parts = there.split([len(sample) for sample in samples.values()])
    return next((key for key, part in zip(samples, parts, strict=True) if not part.all()), None)


def _cached(what: str) -> Path | None:
    """Return where a model's published weights lie on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    _check_name(what)
    try:
        known = get_pretrained_cfg(what)
    except RuntimeError as error:
        raise named_failure(f"{PREFIX}{what}", error) from error
    config: dict[str, Any] = {} if known is None else known.to_dict()
    if hub := config.get("hf_hub_id"):
        repository, _, revision = str(hub).partition("@")
        names = [
            config.get("hf_hub_filename"),
            "model.safetensors",
            "open_clip_model.safetensors",
            "pytorch_model.bin",
        ]
        for name in filter(None, names):
            file = try_to_load_from_cache(repository, name, revision=revision or None)
            if isinstance(file, str):
                return Path(file)
    if url := config.get("url"):
        file = Path(torch.hub.get_dir()) / "checkpoints" / str(url).rpartition("/")[2]
        return file if file.is_file() else None
    return None


def _refuse_or_reach(name: str, download: bool) -> None:
    """Refuse to go on without weights, unless they may be fetched and the hub answers.

    The hub's client tries again for minutes where there is no network; one request tells in seconds.

    Raises:
        CheckpointError: as described.
    """
    from huggingface_hub import constants

    hub = constants.ENDPOINT  # HF_ENDPOINT, where a mirror is named
    missing = f"{name}: its published weights are not in the cache"
    remedy = f"give a file, {name}@FILE, or ask for random ones, {name}@random"
    if not download:
        fetching = f'vr.load("{name}", download=True)'
        raise CheckpointError(f"{missing}; fetch them with {fetching}, {remedy}")
    try:
        request = urllib.request.Request(hub, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return
    except urllib.error.HTTPError as answer:
        answer.close()  # which is all that was to be known
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CheckpointError(
            f"{missing}, and {hub} cannot be reached ({first_line(reason)}); {remedy}"
        ) from error
