"""Controls, as features of the same images in the same split: pixels, their PCA, random weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from vdvae_repr.data.source import Preprocessing, Source
from vdvae_repr.encoders.base import Encoder, TorchEncoder
from vdvae_repr.encoders.load import random_twin
from vdvae_repr.errors import CheckpointError, counted
from vdvae_repr.heads.spectrum import Spectrum
from vdvae_repr.latents.base import Latents
from vdvae_repr.latents.extract import extract
from vdvae_repr.latents.options import Sampling, Storage
from vdvae_repr.latents.side_by_side import SideBySide
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.probing.features import Columns, Features, hash_arrays, hash_text

INITIALISATIONS = 3  # of random-init
SIZES = (8, 16, 32, 64, 128, 256)  # of PCA, to choose from
VERSION = 2  # raised whenever what is made here changes, so that no score of the earlier is taken for its own

Array = NDArray[Any]


def flattened(images: NDArray[np.uint8], mirrored: bool) -> Array:
    """Return images (N, H, W, 3) as rows (N, D) float32; mirrored: with the mirrored images' added."""
    X = images.reshape(len(images), -1).astype(np.float32)
    if mirrored:
        X = X + images[:, :, ::-1].reshape(len(images), -1).astype(np.float32)
    return X


def pixels(X: Array) -> Features:
    """Images, flattened (N, D), as they are."""
    return Features("pixels", None, (Columns.of_array("pixels", X),))


def pca(X: Array, train: NDArray[np.intp], dims: Sequence[int]) -> list[Features]:
    """PCA of pixels (N, D), fitted on `train`: at each layer's dimensions, and at sizes to choose from.

    Components are not rescaled. None of fewer than two images, or of images that are all alike.
    """
    if len(train) < 2:
        return []
    spectrum = Spectrum.of(X[train], min(len(train) - 1, X.shape[1]))
    largest = len(spectrum.values)

    @cache
    def projected() -> Array:
        return spectrum.project(X)[:, ::-1].astype(np.float32)

    made_of = cache(lambda: hash_arrays(X, train))
    return [
        Features("pca", None, (_leading(size, projected, made_of),), standardise=False)
        for size in pca_sizes(dims, largest)
    ]


def _leading(size: int, projected: Any, made_of: Any) -> Columns:
    def blocks() -> Iterator[Array]:
        yield projected()[:, :size]

    return Columns(
        f"pca {size}", 0, size, blocks, lambda: hash_text("pca", str(VERSION), made_of(), str(size))
    )


def pca_sizes(dims: Sequence[int], largest: int) -> list[int]:
    """Return numbers of components, `largest` at most: each layer's dimensions, and some to choose from."""
    if largest < 1:
        return []
    return sorted({min(d, largest) for d in dims} | {s for s in SIZES if s < largest})


class RandomTwin:
    """The same architecture with its initial weights: a store of the same images, made when it is read.

    Use as a context manager: the store lies in a temporary folder.

    Args:
        store: whose model, layers and images.
        layers: those wanted.
        features: those wanted, as they are stored.
        seed: of the weights; another is taken where these are the store's own, as of a model that is random.
    """

    def __init__(
        self, store: Latents, layers: Sequence[str], features: Sequence[str], seed: int
    ) -> None:
        self._store, self._layers, self._features, self._seed = store, layers, features, seed

    def __enter__(self) -> RandomTwin:
        """Make the folder; return itself."""
        self._folder = tempfile.TemporaryDirectory(prefix="vdvae-repr-")
        return self

    def __exit__(self, *reason: object) -> None:
        """Remove the store."""
        if "store" in self.__dict__:
            self.store.close()
        self._folder.cleanup()

    def notices(self, side: int) -> Iterator[str]:
        """Yield what a reader must know of the control.

        `side` is that of the stored images, which the control reads, pixels.
        """
        if self.refusal:
            yield f"no random-init: {self.refusal}"
            return
        size = int(json.loads(self._store.info.config)["image_size"])
        if side < size:
            yield f"random-init reads the stored {side}x{side} images, enlarged to {size}x{size}"
        if self._is_of_torch and (kept := cast(TorchEncoder, self._encoder).kept):
            yield (
                f"random-init keeps {counted(len(kept), 'tensor')} of the network that nothing draws "
                f"anew, as {kept[0]}: if these were trained, the control is no untrained network"
            )

    @property
    def _is_of_torch(self) -> bool:
        """Whether the network is a user's own, a copy of which is drawn anew."""
        config = json.loads(self._store.info.config)
        return str(config.get("encoder", "")).startswith("torch:")

    @cached_property
    def refusal(self) -> str | None:
        """Why the control cannot be run, in one line; None where it can."""
        if isinstance(self._store, SideBySide):
            return (
                "layers of several encoders stand side by side; probe each of their stores for it"
            )
        if not self._is_of_torch:
            return None
        try:
            self._encoder  # noqa: B018 (makes it)
        except CheckpointError as error:
            return str(error)
        return None

    @cached_property
    def _encoder(self) -> Encoder:
        info = self._store.info
        twin = random_twin(info.config, info.weights_sha256, self._seed, info.layers)
        if twin.identity()["weights_sha256"] == info.weights_sha256:
            other = self._seed + INITIALISATIONS  # that of no other twin
            twin = random_twin(info.config, info.weights_sha256, other, info.layers)
        return twin

    @cached_property
    def store(self) -> Latents:
        """The store, extracted at first use."""
        info = self._store.info
        images = self._store.images()
        source = Source(
            "images", self._store.ids, lambda i: images[i], np.full(len(images), -1, np.int64)
        )
        encoder = self._encoder
        # What is stored is what the encoder saw, so that its own transform would cut it twice.
        encoder.preprocessing = Preprocessing(size=encoder.image_size)
        return extract(
            encoder,
            source,
            Path(self._folder.name) / "random-init.h5",
            Sampling(z=cast(Literal["mean", "sample"], info.z), draws=info.draws, seed=info.seed),
            Storage(pool=info.pool, mirror=info.mirror, images=False),
            layers=list(self._layers),
            features=list(self._features),
            # TF32 is of GPUs, and this runs on the CPU.
            precision="bf16" if info.precision == "bf16" else "fp32",
        )

    def columns(self, spec: LayerSpec, feature: str, pool: str | None, mirrored: bool) -> Columns:
        """Return the columns of a layer, of the mirrored images if asked for."""

        def blocks() -> Iterator[Array]:
            store = self.store.mirrored() if mirrored else self.store
            return store.columns(spec.name, feature, pool)

        dims = int(np.prod(self._store.shape(spec, feature, pool)))
        told = (str(spec.to_json()), feature, str(pool), str(mirrored))
        name = f"random-init, layer {spec.name}"
        return Columns(name, spec.resolution, dims, blocks, lambda: hash_text(self._recipe, *told))

    @cached_property
    def _recipe(self) -> str:
        attrs = self._store.info.attributes()
        keys = ["config", "z", "draws", "seed", "pool", "precision", "weights_sha256"]
        settings = [str(attrs.get(name)) for name in keys]
        return hash_text(
            hash_arrays(self._store.images()),
            *self._store.ids,
            *settings,
            str(self._seed),
            str(VERSION),
            torch.__version__,
        )
