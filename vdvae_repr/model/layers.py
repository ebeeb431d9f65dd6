"""Stochastic layers and how to name them.

Selectors: `8x8` every layer of that resolution, `8x8.2` the third of them, `30` by index, `0:31` a
slice, `<=16x16` up to a resolution, `all`; commas join.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vdvae_repr.errors import LayerError
from vdvae_repr.model.blocks import BlockSpec


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One stochastic layer; index 0 is the first in top-down order, the coarsest."""

    index: int
    name: str
    resolution: int
    shape: tuple[int, int, int]

    @property
    def num_dims(self) -> int:
        """Latent dimensions of the layer."""
        channels, height, width = self.shape
        return channels * height * width

    def to_json(self) -> dict[str, Any]:
        """Describe the layer for a store's attributes."""
        return asdict(self) | {"shape": list(self.shape)}


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


def select_layers(
    layers: Sequence[LayerSpec], selector: str | int | Sequence[str | int] = "all"
) -> tuple[LayerSpec, ...]:
    """Return the layers a selector names, each once, in top-down order.

    Raises:
        LayerError: a selector that is malformed or names no layer; the message lists what exists.
    """
    parts = [selector] if isinstance(selector, str | int) else list(selector)
    items = [item.strip() for part in parts for item in str(part).split(",")]
    chosen: set[int] = set()
    for item in items:
        found = _select_one(layers, item)
        if not found:
            raise LayerError(f"no layer matches {item!r}; the layers are {describe_layers(layers)}")
        chosen |= found
    return tuple(layer for layer in layers if layer.index in chosen)


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
    if match := re.fullmatch(r"(<=)?(\d+)x(\d+)", item):
        upto, r, other = match.groups()
        if r != other:
            return set()
        return {
            layer.index
            for layer in layers
            if layer.resolution == int(r) or (upto and layer.resolution < int(r))
        }
    if re.fullmatch(r"\d+x\d+\.\d+", item):
        return {layer.index for layer in layers if layer.name == item}
    if match := re.fullmatch(r"(\d*):(\d*)", item):
        start, stop = match.groups()
        first, last = int(start or 0), int(stop) if stop else layers[-1].index + 1
        return {layer.index for layer in layers if first <= layer.index < last}
    if item.isdecimal():
        return {layer.index for layer in layers if layer.index == int(item)}
    return set()
