"""The weights that openai/vdvae released: names, addresses, and what their parameters are called there.

Source: https://github.com/openai/vdvae, README.md and vae.py. The repository gives no hashes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

PREFIX = "openai:"
_ASSETS = "https://openaipublic.blob.core.windows.net/very-deep-vaes-assets"


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A released file: the moving average (EMA) of a run's weights."""

    url: str
    preset: str
    """The architecture, a preset of `configs/`."""
    bits_per_dim: float
    """The published likelihood on the data set's test images; an upper bound, lower is better."""

    @property
    def file(self) -> str:
        """The file's own name."""
        return self.url.rpartition("/")[2]


RELEASES = {
    "cifar10-seed0": Release(
        url=f"{_ASSETS}/vdvae-assets-2/cifar10-seed0-iter-900000-model-ema.th",
        preset="cifar10",
        bits_per_dim=2.879,
    ),
    "cifar10-seed1": Release(
        url=f"{_ASSETS}/vdvae-assets-2/cifar10-seed1-iter-1050000-model-ema.th",
        preset="cifar10",
        bits_per_dim=2.842,
    ),
    "cifar10-seed2": Release(
        url=f"{_ASSETS}/vdvae-assets-2/cifar10-seed2-iter-650000-model-ema.th",
        preset="cifar10",
        bits_per_dim=2.898,
    ),
    "cifar10-seed3": Release(
        url=f"{_ASSETS}/vdvae-assets-2/cifar10-seed3-iter-1050000-model-ema.th",
        preset="cifar10",
        bits_per_dim=2.864,
    ),
    "imagenet32": Release(
        url=f"{_ASSETS}/vdvae-assets/imagenet32-iter-1700000-model-ema.th",
        preset="imagenet32",
        bits_per_dim=3.80,
    ),
    "imagenet64": Release(
        url=f"{_ASSETS}/vdvae-assets-2/imagenet64-iter-1600000-model-ema.th",
        preset="imagenet64",
        bits_per_dim=3.52,
    ),
    "ffhq256": Release(
        url=f"{_ASSETS}/vdvae-assets/ffhq256-iter-1700000-model-ema.th",
        preset="ffhq256",
        bits_per_dim=0.61,
    ),
    "ffhq1024": Release(
        url=f"{_ASSETS}/vdvae-assets/ffhq1024-iter-1700000-model-ema.th",
        preset="ffhq1024",
        bits_per_dim=2.42,
    ),
}
"""The released files by the name that follows `openai:`."""

_RENAMES = {
    "encoder.in_conv": "bottom_up.in_conv",
    "encoder.enc_blocks": "bottom_up.blocks",
    "decoder.dec_blocks": "top_down.blocks",
    "decoder.bias_xs": "top_down.constants",
    "decoder.out_net.out_conv": "top_down.out_conv",
    "decoder.gain": "top_down.gain",
    "decoder.bias": "top_down.bias",
}


def from_published_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename openai/vdvae parameters to this package's; a leading `module.` is dropped."""
    renamed = {}
    for key, value in state_dict.items():
        name = key.removeprefix("module.")
        old = max(
            (p for p in _RENAMES if name == p or name.startswith(p + ".")), key=len, default=""
        )
        name = _RENAMES.get(old, "") + name.removeprefix(old)
        if old == "decoder.dec_blocks":
            name = name.replace(".enc.", ".posterior.")
        renamed[name] = value
    return renamed
