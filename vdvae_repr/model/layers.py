"""The layers of a model, a VDVAE or another encoder, and how to name them.

Selectors: `layer3` or `blocks.5` by name, and `blocks` everything inside it; `8x8` every layer of that
resolution, `8x8.2` the third of them; `30` by index, `0:31` a slice, `<=16x16` up to a resolution, `all`;
commas join.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from vdvae_repr.config import ModelConfig, StudentConfig
from vdvae_repr.errors import LayerError
from vdvae_repr.model.structure import BlockSpec, parse_blocks

_RESOLUTION_NAME = re.compile(r"(\d+)x\1\.(\d+)")
_ENDS_IN_ONE = re.compile(rf"(?:^|\.){_RESOLUTION_NAME.pattern}$")  # as `faces64.8x8.0`

FEATURES = (
    "mean",
    "log_std",
    "z",
    "delta",
    "prior_mean",
    "prior_log_std",
    "kl",
    "top_down",
    "bottom_up",
)
"""What can be read of a VDVAE's layers."""


T = TypeVar("T")


class ByLayer(Mapping[str, T]):
    """What was read of a batch by layer name, coarsest first."""

    def __init__(self, layers: dict[str, T]) -> None:
        self._layers = layers

    def __getitem__(self, name: str) -> T:
        """Return one layer; an unknown name lists those read."""
        if name not in self._layers:
            raise LayerError(f"layer {name!r} was not read; read are {', '.join(self._layers)}")
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over layer names, coarsest first."""
        return iter(self._layers)

    def __len__(self) -> int:
        """Return the number of layers read."""
        return len(self._layers)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of an encoder.

    Layers stand in the order in which they are computed. Those of a VDVAE are its stochastic layers in
    top-down order, index 0 being the coarsest.
    """

    index: int
    name: str
    """`RxR.n` of a VDVAE; the name of a stage, block or module of another network."""
    resolution: int
    """Side of the square grid that the layer's values lie on; 0 where they lie on none."""
    shape: tuple[int, ...]
    """Of one image's values: (C, H, W) on a grid, (D, 1, 1) of a vector, (T, C) of tokens."""
    prefix: int = 0
    """How many of the tokens come before those of the patches."""
    class_token: bool = True
    """Whether the first of these is the class token; else they are registers."""

    @property
    def num_dims(self) -> int:
        """Dimensions of the layer."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Describe the layer for a store's attributes."""
        described = asdict(self) | {"shape": list(self.shape)}
        if not self.prefix:  # as of grids, of which stores of the first version say nothing
            del described["prefix"]
        if self.class_token or not self.prefix:
            del described["class_token"]
        return described


def make_layer_specs(blocks: Sequence[BlockSpec], zdim: int) -> tuple[LayerSpec, ...]:
    """Name the layers of a top-down block list: `RxR.n`, n counting within a resolution."""
    counts: dict[int, int] = {}
    specs = []
    for index, block in enumerate(blocks):
        r = block.resolution
        n = counts.get(r, 0)
        counts[r] = n + 1
        specs.append(LayerSpec(index, f"{r}x{r}.{n}", r, (zdim, r, r)))
    return tuple(specs)


def layers_of_config(config: ModelConfig | StudentConfig) -> tuple[LayerSpec, ...]:
    """Return the layers of a VDVAE, or those of its teacher that a student predicts, coarsest first.

    Raises:
        ConfigError: a block string that cannot be read. LayerError: a selector that names no layer.
    """
    specs = make_layer_specs(parse_blocks(config.top_down, key="model.top_down"), config.zdim)
    return select_layers(specs, config.layers) if isinstance(config, StudentConfig) else specs


def select_layers(
    layers: Sequence[LayerSpec], selector: str | int | Sequence[str | int] = "all"
) -> tuple[LayerSpec, ...]:
    """Return the layers a selector names, each once, in top-down order.

    Raises:
        LayerError: a selector that is malformed or names no layer; the message lists what exists.
    """
    items = split_selector(selector)
    if not items:
        raise LayerError(f"no layer is named; the layers are {describe_layers(layers)}")
    chosen: set[int] = set()
    for item in items:
        found = _select_one(layers, item)
        if not found:
            meant = re.sub(r"^<(?!=)", "<=", item.lower())
            hint = f"; did you mean {meant!r}?" if _select_one(layers, meant) else ""
            raise LayerError(
                f"no layer matches {item!r}{hint}; the layers are {describe_layers(layers)}"
            )
        chosen |= found
    return tuple(layer for layer in layers if layer.index in chosen)


def split_selector(selector: str | int | Sequence[str | int]) -> list[str]:
    """Return the selectors that commas or a list join, in their order."""
    several = isinstance(selector, Iterable) and not isinstance(selector, str | bytes)
    parts: list[Any] = list(selector) if several else [selector]  # type: ignore[arg-type]
    return [item.strip() for part in parts for item in str(part).split(",")]


def describe_layers(layers: Sequence[LayerSpec]) -> str:
    """Summarise: `0:20 (1x1.0, 4x4.0 to 4x4.3, ...)`."""
    by_resolution: dict[int, list[LayerSpec]] = {}
    for layer in layers:
        by_resolution.setdefault(layer.resolution, []).append(layer)
    groups = [
        group[0].name if len(group) == 1 else f"{group[0].name} to {group[-1].name}"
        for group in by_resolution.values()
    ]
    return f"{', '.join(groups)}, by index {layers[0].index} to {layers[-1].index}"


def _select_one(layers: Sequence[LayerSpec], item: str) -> set[int]:
    if item == "all":
        return {layer.index for layer in layers}
    if named := {layer.index for layer in layers if layer.name == item}:
        return named
    if item and (inside := {layer.index for layer in layers if layer.name.startswith(f"{item}.")}):
        return inside
    if match := re.fullmatch(r"(<=)?(\d+)x(\d+)", item):
        upto, r, other = match.groups()
        if r != other:
            return set()
        return {
            layer.index
            for layer in layers
            if layer.resolution == int(r) or (upto and 0 < layer.resolution < int(r))
        }
    if match := _RESOLUTION_NAME.fullmatch(item):
        same = [layer.index for layer in layers if layer.resolution == int(match[1])]
        place = int(match[2])
        # Of a VDVAE of which some layers are stored, the number in the name counts, not the place.
        own = any(_ENDS_IN_ONE.search(layer.name) for layer in layers)
        return set() if own else set(same[place : place + 1])
    if match := re.fullmatch(r"(\d*):(\d*)", item):
        start, stop = match.groups()
        end = layers[-1].index + 1
        first, last = int(start or 0), int(stop) if stop else end
        if last > end:
            raise LayerError(
                f"{item}: expected at most :{end}; the layers are {describe_layers(layers)}"
            )
        return {layer.index for layer in layers if first <= layer.index < last}
    if item.isdecimal() and not any(layer.name.isdecimal() for layer in layers):  # which is a name
        return {layer.index for layer in layers if layer.index == int(item)}
    return set()
