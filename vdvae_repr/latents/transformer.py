"""Images to latent features as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from vdvae_repr.config import hidden_by_mask, suggestion, whole_number
from vdvae_repr.data.names import readable
from vdvae_repr.data.open import warn
from vdvae_repr.data.source import Preprocessing, RawImage, file_source
from vdvae_repr.encoders.load import load, refuse_unfetched
from vdvae_repr.encoders.vdvae import VDVAEEncoder
from vdvae_repr.errors import CheckpointError, ConfigError, DataError, LayerError
from vdvae_repr.latents.format import array_key
from vdvae_repr.latents.pooling import about_pool, pool_layer
from vdvae_repr.model.base import expect_finite
from vdvae_repr.model.layers import FEATURES, select_layers
from vdvae_repr.model.noise import seeded_noise
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.pixels import Suspicions


class LatentTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A VDVAE's posterior features of images, for a `Pipeline` or `GridSearchCV`; nothing is learned.

    Args:
        model: a VDVAE, or what names one to `vdvae_repr.load`.
        layers: selector; layers stand side by side, coarsest first.
        feature: as those of a store.
        pool: None flattens, "avg" takes the mean over the grid, "avg:4" over a 4x4 grid.
        z: what each layer sends down: its mean, or a draw seeded by seed and the image's position in X.
        seed: of the draws.
        crop: side of the central square taken before resizing, pixels.
        batch_size: images a forward pass.
        device: where a model that is named is loaded, the CPU if not given; one in memory must be there.
    """

    def __init__(
        self,
        model: VDVAE | str | Path = "faces64",
        *,
        layers: str | int | list[str | int] = "all",
        feature: str = "mean",
        pool: str | None = None,
        z: Literal["mean", "sample"] = "mean",
        seed: int = 0,
        crop: int | None = None,
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        self.model = model
        self.layers = layers
        self.feature = feature
        self.pool = pool
        self.z = z
        self.seed = seed
        self.crop = crop
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any, y: Any = None) -> LatentTransformer:
        """Load the model and check the selection; X and y are not looked at.

        Raises:
            CheckpointError, LayerError: no such model, no VDVAE; no such layer, feature or pooling.
            ConfigError: another word for z, a number that is none, or another device than the model's.
        """
        if self.z not in ("mean", "sample"):
            raise ConfigError(f"z: expected mean or sample, found {self.z!r}")
        whole_number("batch_size", self.batch_size, 1)
        whole_number("seed", self.seed, 0)
        if self.crop is not None:
            whole_number("crop", self.crop, 1)
        if self.feature not in FEATURES:
            raise LayerError(
                f"unknown feature {self.feature!r}{suggestion(str(self.feature), FEATURES)}; the features "
                f"are {', '.join(FEATURES)}"
            )
        model = self.model
        named = isinstance(model, str | Path)
        device = "cpu" if self.device is None else self.device
        refuse_unfetched(model, "a VDVAE")
        net = load(model, device=device) if isinstance(model, str | Path) else model
        if not isinstance(net, VDVAE):
            what = model if named else type(model).__name__
            raise CheckpointError(
                f"{what}: expected a VDVAE, found {type(net).__name__}; of other networks vr.extract stores "
                "activations, of a PixelCNN nothing"
            )
        if not named and self.device is not None and not _is_on(net.device, self.device):
            raise ConfigError(
                f"device: expected {net.device}, where the model is, found {self.device!r}; move the model "
                "with model.to(...), or leave device out"
            )
        self.model_ = net
        if line := net.about_crop(self.crop):
            warn(line)
        self.layers_ = select_layers(self.model_.layers, self.layers)
        encoder = VDVAEEncoder(net)
        shapes = [encoder.shape(spec, self.feature) for spec in self.layers_]
        if line := about_pool(self.pool, self.layers_, shapes):
            warn(line)
        self._fitted = self.get_params(deep=False)  # what is set later counts from the next fit on
        blank = np.zeros((1, *[self.model_.config.image_size] * 2, 3), np.uint8)
        self._names = [
            f"{name}_{self.feature}_{column}"
            for name, values in self._read(blank, ["0"]).items()
            for column in range(values.shape[1])
        ]
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return features (N, D) float32 of images: uint8 (N, H, W, 3), PIL images, or paths of files.

        Raises:
            DataError: something else than images, one that cannot be read, or features that are not finite.
        """
        check_is_fitted(self)
        if why := hidden_by_mask(X, "pixels", "X"):
            raise DataError(why)
        X = _by_position(X)
        read_file = _reader(X)
        crop = self._fitted["crop"]
        preprocessing = Preprocessing(size=self.model_.config.image_size, crop=crop)
        rows: list[NDArray[np.float32]] = []
        suspicions = Suspicions()
        for start in range(0, len(X), self.batch_size):
            batch = range(start, min(start + self.batch_size, len(X)))
            pixels = np.stack(
                [preprocessing(_image(X[index], index, read_file)) for index in batch]
            )
            for index, image in zip(batch, pixels, strict=True):
                if not isinstance(X[index], str | Path):  # of files it is said as they are read
                    suspicions.look(index, X[index], int(image.max()))
            ids = [str(index) for index in batch]
            read = self._read(pixels, ids)
            values = {
                (name, self._fitted["feature"]): torch.from_numpy(layer)
                for name, layer in read.items()
            }
            expect_finite(values, ids, self.model_.name, self.model_.layers)
            rows.append(np.concatenate(list(read.values()), axis=1))
        for line in suspicions.lines("X"):
            warn(line)
        return np.concatenate(rows) if rows else np.zeros((0, len(self._names)), np.float32)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the columns' names, as `8x8.2_mean_17`."""
        check_is_fitted(self)
        return np.array(self._names, dtype=object)

    def _read(self, pixels: NDArray[np.uint8], ids: list[str]) -> dict[str, NDArray[np.float32]]:
        fitted, noise = self._fitted, None
        if fitted["z"] == "sample":
            noise = seeded_noise(fitted["seed"], ids, self.model_.device)
        feature, pool = fitted["feature"], fitted["pool"]
        read = VDVAEEncoder(self.model_).read(pixels, self.layers_, [feature], noise=noise)
        # Of layers that share an array the first gives its name.
        names = {array_key(spec, feature): spec.name for spec in reversed(self.layers_)}
        values = {name: read.values[name, feature] for name in reversed(names.values())}
        return {
            name: pool_layer(value.cpu().numpy(), pool).reshape(len(pixels), -1)
            for name, value in values.items()
        }


def _is_on(device: torch.device, name: str) -> bool:
    try:
        asked = torch.device(name)
    except (RuntimeError, TypeError):
        return False
    return device.type == asked.type and asked.index in (None, device.index or 0)


def _by_position(X: Any) -> Any:
    """Return images that an index takes by their positions: a series of pandas takes its labels.

    Raises:
        DataError: no list, array or column of images, as one path, or a table.
    """
    if hasattr(X, "iloc"):
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.dtype.kind not in "iufbc" and X.shape[1:] == (1,):
        X = X[:, 0]  # a table of one column, which scikit-learn takes for samples too
    if (
        isinstance(X, str | Path | Mapping)
        or not hasattr(X, "__getitem__")
        or not hasattr(X, "__len__")
    ):
        raise DataError(
            f"X: expected a list or an array of images or paths, found {type(X).__name__} {X!r:.80}"
        )
    return X


def _reader(X: Any) -> Callable[[str | Path], RawImage] | None:
    """Return what reads the files that paths in X name, as a source does; None where there are none."""
    if getattr(getattr(X, "dtype", None), "kind", "O") not in "OU":
        return None
    paths = {readable(str(item)): Path(item) for item in X if isinstance(item, str | Path)}
    if not paths:
        return None
    try:
        source = file_source("X", paths)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
    place = {name: row for row, name in enumerate(paths)}
    return lambda item: source.load(place[readable(str(item))])


def _image(item: Any, index: int, read: Callable[[str | Path], RawImage] | None) -> RawImage:
    if isinstance(item, str | Path) and read is not None:
        return read(item)
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, torch.Tensor) and item.is_floating_point():
        item = item.detach().float().cpu()  # NumPy has no bfloat16
    array = np.asarray(item)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise DataError(
            f"image {index}: expected uint8 (H, W, 3), a PIL image or a path, "
            f"found {array.dtype} {array.shape}"
            + (
                "; of values from 0 to 1, (255 * X).round().astype('uint8')"
                if array.dtype.kind == "f"
                else ""
            )
        )
    return array
