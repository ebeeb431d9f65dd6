"""From responses to latents: exact ridge regression through the inner products of training images.

n training and M test images, V voxels, D latent dimensions. The coefficients (V, D) are never made: what is
predicted of test images is W (Y - mean) + mean, with weights W = K_test (K + alpha I)^-1 (M, n) that the
responses alone determine, and latents Y that are read from the store a layer at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from vdvae_repr.brain.responses import (
    AS_MEASURED,
    REPEATED,
    Checksums,
    Measured,
    Responses,
    about_values,
    checksums_of,
    correlations,
    expect_images,
    of_splits,
    read_responses,
    read_values,
)
from vdvae_repr.brain.voxelwise import false_discovery
from vdvae_repr.config import path_of, shown, true_or_false, whole_number
from vdvae_repr.data.kinds import why_unreadable
from vdvae_repr.errors import TaskError, VDVAEReprError, counted
from vdvae_repr.heads.algebra import Algebra
from vdvae_repr.heads.linear import ALPHAS
from vdvae_repr.heads.spectrum import leading_eigenvectors
from vdvae_repr.latents.base import Latents, about_copies, expect_store
from vdvae_repr.latents.decode import decodable_feature
from vdvae_repr.latents.exchange import expect_place, import_latents
from vdvae_repr.latents.format import StoreInfo
from vdvae_repr.latents.store import LatentStore
from vdvae_repr.model.layers import LayerSpec, select_layers
from vdvae_repr.output import expect_writable, replacing

SCHEMA = "vdvae-repr/decoder/2"
# Of a store, which decide its values.
READING = ("weights_sha256", "preprocessing", "z", "draws", "pool")
AT_ONCE = 2048  # voxels, or latent dimensions, worked on at once
SAMPLED = 1024  # dimensions of a layer that its penalty is chosen by, at most
PERMUTATIONS = 1000
LEAST = 3  # images to restandardise: of one the mean is all, of two nothing but the sign

Array = NDArray[Any]
Values = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Decoder:
    """A regression from responses to latents. `fit` makes one, or `Decoder.load` of a file.

    Args:
        responses: of the training images (n, V), the mean over repetitions.
        voxels: their numbers among those measured (V,).
        measured: how many voxels were measured, with those that were left out.
        ids: of the training images (n,).
        layers: names of the layers that are predicted.
        alphas: the penalty of each.
        feature: of the latents, `z` or `mean`.
        reading: what latents are of, and how they were read, as the store's `info` has it, by `READING`.
        notes: what the reader must know.
        checksums: of the training images (n,), behind what they are of, as `LatentStore.checksums` has them.
    """

    responses: Array
    voxels: Rows
    measured: int
    ids: tuple[str, ...]
    layers: tuple[str, ...]
    alphas: tuple[float, ...]
    feature: str
    reading: dict[str, Any]
    notes: tuple[str, ...] = ()
    checksums: Checksums | None = None

    def __repr__(self) -> str:
        """Say what it predicts of what, and a line each of its notes."""
        about = (
            f"<Decoder {len(self.voxels)} voxels -> {len(self.layers)} layers "
            f"({self.layers[0]} .. {self.layers[-1]}), {len(self.ids)} training images>"
        )
        return "\n".join((about, *self.notes))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the decoder to one file: the training images' responses, penalties, ids; no coefficients.

        Raises:
            TaskError: the file exists, without `overwrite` or as no decoder; it cannot be written.
        """
        path = self.expect_place(path, overwrite=overwrite)
        about = {
            "schema": SCHEMA,
            "layers": self.layers,
            "alphas": self.alphas,
            "feature": self.feature,
            "reading": self.reading,
            "measured": self.measured,
            "notes": self.notes,
            "checksums": None if self.checksums is None else self.checksums[0],
        }
        arrays: dict[str, Any] = {
            "responses": self.responses,
            "voxels": self.voxels,
            "ids": np.array(self.ids),
        }
        if self.checksums is not None:
            arrays["checksums"] = self.checksums[1]
        try:
            with replacing(path) as file:
                np.savez(file, about=np.array(json.dumps(about)), **arrays)
        except OSError as error:
            raise _unwritable(path, error) from error

    @staticmethod
    def expect_place(path: str | Path, *, overwrite: bool = False) -> Path:
        """Refuse a path that `save` would refuse, before a fit takes its time; return it.

        Raises:
            TaskError: as `save`.
        """
        path, overwrite = path_of("path", path), true_or_false("overwrite", overwrite)
        if path.exists() and not (overwrite and _is_decoder(path)):
            hint = ", or overwrite=True" if _is_decoder(path) else ""
            raise TaskError(f"{path}: exists already; choose another path{hint}")
        try:
            expect_writable(path)
        except OSError as error:
            raise _unwritable(path, error) from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Decoder:
        """Read a decoder.

        Raises:
            TaskError: no such file, or no decoder.
        """
        path = path_of("path", path)
        if not path.is_file():
            raise TaskError(f"{path}: no such file; fit writes a decoder")
        try:
            with np.load(path, allow_pickle=False) as found:
                about = json.loads(str(found["about"]))
                if about["schema"] != SCHEMA:
                    raise ValueError(f"schema {about['schema']}; fit anew")
                return cls(
                    found["responses"],
                    found["voxels"],
                    about["measured"],
                    tuple(found["ids"].tolist()),
                    tuple(about["layers"]),
                    tuple(about["alphas"]),
                    about["feature"],
                    {name: about["reading"][name] for name in READING},
                    tuple(about["notes"]),
                    about["checksums"] and (about["checksums"], found["checksums"]),
                )
        except (MemoryError, VDVAEReprError):
            raise
        except Exception as error:  # a damaged file may make NumPy raise anything
            raise TaskError(
                f"{path}: expected a decoder that fit wrote ({why_unreadable(path, error)})"
            ) from error

    def predict(
        self,
        responses: Measured | Responses,
        like: LatentStore,
        out: str | Path,
        *,
        split: str | None = "test",
        restandardise: bool = True,
        overwrite: bool = False,
        seed: int = 0,
        device: str = "cpu",
        progress: Callable[[str], None] = lambda layer: None,
    ) -> Prediction:
        """Predict latents of images from responses to them, into a store that can be decoded.

        Memory: the responses, a matrix (n, n) in float64 (two, where layers have several penalties), one
        (M, n) a penalty, one (M, D) in float32 and a block of a layer.

        Args:
            responses: to the images, as `fit` takes them.
            like: the store that holds the training images' latents, and those of the images to predict.
            out: the store to write.
            split: of `like` whose images are predicted; None takes all that there are responses to, but those
                that were fitted on.
            restandardise: give each dimension of what is predicted the mean and deviation that it has over
                the training images, as brain-diffuser does: ridge regression predicts too little variance. It
                is a property of all images predicted together, of which there must be 3 or more.
            overwrite: replace a store.
            seed: of permutations.
            device: where products are made, in float64: "cpu", "cuda" or "cuda:1".
            progress: receives each layer's name when it is predicted.

        Raises:
            TaskError: other voxels than were fitted on, images of another store, no image to predict, too few
                to restandardise, or one that was fitted on under another id, or is predicted twice.
            StoreError: `out` is in the way, or cannot be written.
        """
        expect_store(like, "like")
        algebra = Algebra.on(device)
        seed = whole_number("seed", seed, 0)
        restandardise = true_or_false("restandardise", restandardise)
        expect_place(out, like, overwrite=overwrite)  # before it takes time
        fitted = self._fitted_rows(like)
        specs = select_layers(like.layers, list(self.layers))
        values, rows, notes = self._responses_to(responses, like, split)
        if restandardise and len(rows) < LEAST:
            raise TaskError(
                f"responses: expected some to at least {LEAST} images, whose predictions are given a "
                f"mean and deviation, found {len(rows)}; say restandardise=False"
            )
        if like.has_images:
            _expect_new_images(like, fitted, rows)
        else:
            notes += (
                f"{like.path} holds no images: whether some were fitted on under other ids is not known",
            )
        weights = dict(self._weights(values, algebra))
        width = sum(spec.num_dims for spec in specs)
        predicted = np.empty((len(rows), width), np.float32)
        start, scores = 0, []
        for spec, alpha in zip(specs, self.alphas, strict=True):
            score = _LayerScore(len(rows))
            for block, truth in _blocks(like, spec, self.feature, fitted, rows):
                Y = algebra.put(block)
                mean = Y.mean(0)
                centred = Y - mean
                P = algebra.get(weights[alpha] @ centred + mean)
                score.add(P, truth.astype(np.float64))
                if restandardise:
                    deviation = algebra.xp.sqrt((centred**2).mean(0))
                    P = _restandardised(P, algebra.get(mean), algebra.get(deviation))
                predicted[:, start : start + P.shape[1]] = P
                start += P.shape[1]
            scores.append(score.row(spec, alpha, seed))
            progress(spec.name)
        store = import_latents(
            predicted,
            like,
            out,
            list(self.layers),
            ids=[like.ids[row] for row in rows],
            overwrite=overwrite,
        )
        table = pd.DataFrame(scores)
        table["q_value"] = false_discovery(table["p_value"].to_numpy())
        return Prediction(store, table, notes)

    def _fitted_rows(self, like: LatentStore) -> Rows:
        """Return the rows of a store that the training images are (n,).

        Raises:
            TaskError: it is of other weights or read otherwise, lacks one, or has another image under its id.
        """
        if (own := _reading(like)) != self.reading:
            fitted, found = (_in_words(replace(like.info, **each)) for each in (self.reading, own))
            raise TaskError(
                f"{like.path}: expected latents read as those that were fitted on ({fitted}), found {found}; "
                "extract both alike, or fit anew"
            )
        place = {image_id: row for row, image_id in enumerate(like.ids)}
        if missing := [image_id for image_id in self.ids if image_id not in place]:
            raise TaskError(
                f"{like.path}: expected the images that were fitted on, found no {missing[0]!r}; give the "
                "store that was fitted on"
            )
        rows = np.array([place[image_id] for image_id in self.ids], np.intp)
        expect_images(self.checksums, like, rows, "like")
        return rows

    def _responses_to(
        self, responses: Measured | Responses, like: LatentStore, split: str | None
    ) -> tuple[Values, Rows, tuple[str, ...]]:
        """Return responses (M, V) to the images to predict, their rows of the store, and notes."""
        read = read_values(responses, like)
        rows = read.rows
        if read.measured != self.measured:
            raise TaskError(
                f"responses: expected the {self.measured} voxels that were fitted on, found {read.measured}"
            )
        column = {voxel: number for number, voxel in enumerate(read.voxels.tolist())}
        if missing := [voxel for voxel in self.voxels.tolist() if voxel not in column]:
            raise TaskError(
                f"responses: expected voxel {missing[0]}, which was fitted on, found that it was left out; "
                "fit without it"
            )
        fitted = set(self.ids)
        some = [
            number
            for number, row in enumerate(rows)
            if (read.splits[number] == split if split is not None else like.ids[row] not in fitted)
        ]
        if not some:
            what = f"split {split}" if split is not None else "images that were not fitted on"
            raise TaskError(f"responses: expected some to images of {what}, found none")
        if both := [like.ids[rows[number]] for number in some if like.ids[rows[number]] in fitted]:
            raise TaskError(
                f"split: {both[0]!r} was fitted on, so that predicting it tells nothing; choose another split"
            )
        own = [column[voxel] for voxel in self.voxels.tolist()]
        values = read.values[:, some][:, :, own]
        chosen = values.astype(np.float64)
        seen: NDArray[np.bool_] = np.asarray(~np.isnan(chosen).all(axis=2))
        if len(never := np.flatnonzero(~seen.any(axis=0))):
            number = int(never[0])
            raise TaskError(
                f"responses: expected a response to {like.ids[rows[some[number]]]!r}, found NaN; leave it out"
            )
        mean = np.where(seen[:, :, None], chosen, 0).sum(axis=0) / seen.sum(axis=0)[:, None]
        if not np.isfinite(mean).all():
            number, voxel = np.argwhere(~np.isfinite(mean))[0]
            raise TaskError(
                f"responses: expected finite numbers, found others of voxel {self.voxels[voxel]}, image "
                f"{like.ids[rows[some[number]]]!r}; fit without that voxel"
            )
        asked = Responses(values, rows[some], self.voxels, {})
        notes = [note for note in read.notes if not note.endswith(AS_MEASURED)]  # of all images
        return mean, rows[some], (*notes, *about_values(asked, like))

    def _weights(self, values: Values, algebra: Algebra) -> Iterator[tuple[float, Any]]:
        """Yield each penalty with the weights (M, n) of the training images, on the device."""
        K, K_test = _products(algebra, self.responses, values)
        diagonal = np.diag_indices(len(K))
        own = K[diagonal]
        alphas = list(dict.fromkeys(self.alphas))
        for alpha in alphas:
            K[diagonal] = own + alpha
            try:
                weights = algebra.solve(K, K_test.T, overwrite=len(alphas) == 1).T
            except (np.linalg.LinAlgError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
                raise TaskError(
                    f"alpha: {alpha:g} is too small a penalty for responses to more images than there are "
                    "voxels; fit with a larger one"
                ) from error
            yield alpha, weights


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted latents, and how well each layer is predicted.

    Args:
        store: of the predicted latents, which can be decoded.
        layers: a row a layer: `layer`, `dims`, `alpha`, `r2` of all dimensions together and `pearson`, the
            mean over dimensions, before restandardising; `null_r2`, the 95 % point of `r2` under permutations
            of the images, `p_value` and, by false discovery rate over layers, `q_value`.
        notes: what the reader must know.
    """

    store: LatentStore
    layers: pd.DataFrame
    notes: tuple[str, ...] = ()

    @property
    def told(self) -> list[str]:
        """Names of the layers that responses predict (q < 0.05); the others only add noise to images."""
        return list(self.layers.loc[self.layers["q_value"] < 0.05, "layer"])


def fit(
    responses: Measured | Responses,
    store: Latents,
    *,
    layers: str | int | Sequence[str | int] = "all",
    alpha: float | None = None,
    split: str | None = "train",
    seed: int = 0,
    device: str = "cpu",
) -> Decoder:
    """Fit a ridge regression from responses to latents, exactly, by the inner products of images.

    What scikit-learn's `Ridge(alpha)` fits to responses standardised over the training images, as
    brain-diffuser does (there alpha is 50,000, at 15,724 voxels).

    Args:
        responses: (images, voxels) or (repetitions, images, voxels), in the store's order or with ids: an
            array, a file as FILE:KEY, or what `read_responses` returns. The mean over repetitions is taken.
        store: of the images' latents, `z` or `mean`.
        layers: to predict.
        alpha: the penalty of all layers; if not given, for each layer that of the smallest leave-one-out
            error, among 17 from 1e-4 to 1e4 times the number of voxels; of a layer of more than 1,024
            dimensions by so many of them, drawn by the seed.
        split: of the store that is fitted on; None takes every image.
        seed: of that draw.
        device: where penalties are chosen, in float64: "cpu", "cuda" or "cuda:1".

    Raises:
        TaskError: responses of other images, or fewer than 3 of them; a penalty that is not above 0.
        DataError: a file that cannot be read. StoreError: latents that cannot be decoded.
    """
    if alpha is not None and not (_is_number(alpha) and np.isfinite(alpha) and alpha > 0):
        raise TaskError(f"alpha: expected a number above 0, found {shown(alpha)}")
    seed = whole_number("seed", seed, 0)
    expect_store(store)
    algebra = Algebra.on(device)
    feature = decodable_feature(store)
    specs = select_layers(store.layers, layers)
    read = read_responses(responses, store)
    some = [number for number, own in enumerate(read.splits) if split in (None, own)]
    if len(some) < 3:
        raise TaskError(
            f"responses: expected some to at least 3 images of split {split}, found {len(some)} "
            f"{of_splits(read.splits)}; choose another, or all by split=None"
        )
    X, rows, voxels = np.ascontiguousarray(read.mean[some]), read.rows[some], read.voxels
    varying = np.ptp(X, axis=0) > 0
    notes = [*read.notes]
    if not varying.all():
        constant = counted(int((~varying).sum()), "voxel")
        notes.append(f"responses: {constant} left out, with one value for all training images")
        X, voxels = X[:, varying], voxels[varying]
    if alpha is None:
        alphas = _left_one_out(algebra, X, store, specs, feature, rows, seed)
        if any(spec.num_dims > SAMPLED for spec in specs):
            notes.append(
                f"the penalty of a layer is chosen by {SAMPLED} of its dimensions, drawn with seed {seed}"
            )
    else:
        alphas = [float(alpha)] * len(specs)
    return Decoder(
        X,
        voxels,
        measured=read.measured,
        ids=tuple(store.ids[row] for row in rows),
        layers=tuple(spec.name for spec in specs),
        alphas=tuple(alphas),
        feature=feature,
        reading=_reading(store),
        notes=tuple(notes),
        checksums=checksums_of(store, rows),
    )


def _reading(store: Latents) -> dict[str, Any]:
    return {name: getattr(store.info, name) for name in READING}


def _in_words(info: StoreInfo) -> str:
    return f"weights {info.weights_sha256[:8]}, {info.reading_in_words}"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _expect_new_images(like: LatentStore, fitted: Rows, rows: Rows) -> None:
    """Refuse to predict an image that was fitted on under another id, or that is predicted twice.

    Raises:
        TaskError: names both.
    """
    needed = np.union1d(fitted, rows).tolist()
    images = {row: like.read("images", "images", row) for row in needed}
    each = [("images to predict", row) for row in rows[:, None]]
    about_copies(images, like.ids, [("images fitted on", fitted), *each], remedy=REPEATED)


def _products(algebra: Algebra, train: Array, test: Array) -> tuple[Any, Any]:
    """Return inner products (n, n) of training responses, standardised, and (M, n) of others with them."""
    n = len(train)
    K, K_test = algebra.zeros(n, n), algebra.zeros(len(test), n)
    for start in range(0, train.shape[1], AT_ONCE):
        X = algebra.put(train[:, start : start + AT_ONCE])
        mean = X.mean(0)
        X = X - mean
        scale = algebra.xp.sqrt((X**2).sum(0) / (n - 1))
        X = X / scale
        K += X @ X.T
        K_test += ((algebra.put(test[:, start : start + AT_ONCE]) - mean) / scale) @ X.T
    return K, K_test


def _left_one_out(
    algebra: Algebra,
    X: Array,
    store: Latents,
    specs: Sequence[LayerSpec],
    feature: str,
    rows: Rows,
    seed: int,
) -> list[float]:
    """Return for each layer the penalty of the smallest leave-one-out error."""
    K = algebra.get(_products(algebra, X, X[:0])[0])
    alphas = ALPHAS * max(float(np.trace(K)) / len(K), 1e-300)
    squares, U = map(algebra.put, leading_eigenvectors(K, algebra=algebra))
    del K
    left = [1 - 1 / len(U) - U**2 @ (squares / (squares + alpha)) for alpha in alphas]
    found = []
    for spec in specs:
        rng = np.random.default_rng([seed, spec.index])
        kept = np.sort(rng.permutation(spec.num_dims)[:SAMPLED])
        errors, start = np.zeros(len(alphas)), 0
        for Y, _ in _blocks(store, spec, feature, rows, rows[:0]):
            own = kept[(start <= kept) & (kept < start + Y.shape[1])] - start
            start += Y.shape[1]
            targets = algebra.put(Y[:, own])
            centred = targets - targets.mean(0)
            loads = U.T @ centred
            for number, (alpha, share) in enumerate(zip(alphas, left, strict=True)):
                shrink = squares / (squares + alpha)
                residuals = centred - U @ (shrink[:, None] * loads)
                errors[number] += float(((residuals / share[:, None]) ** 2).sum())
        found.append(float(alphas[errors.argmin()]))
    return found


def _blocks(
    store: Latents, spec: LayerSpec, feature: str, fitted: Rows, others: Rows
) -> Iterator[tuple[Array, Array]]:
    """Yield a layer's latents by columns, of training images (n, d) and of others (M, d)."""
    for columns in store.columns(spec.name, feature):
        for start in range(0, columns.shape[1], AT_ONCE):
            some = columns[:, start : start + AT_ONCE]
            yield some[fitted], some[others]


def _restandardised(P: Values, mean: Values, deviation: Values) -> Values:
    """Give columns the mean and deviation of training images; what does not vary takes the mean."""
    own = P.std(axis=0)
    scale = np.where(own > 1e-12 * np.maximum(deviation, 1e-300), own, np.inf)
    return np.asarray((P - P.mean(axis=0)) / scale * deviation + mean)


def _unwritable(path: Path, error: OSError) -> TaskError:
    return TaskError(f"{path}: cannot be written ({error.strerror or error}); choose another path")


def _is_decoder(path: Path) -> bool:
    """Whether a file is a decoder, of an earlier schema too."""
    with suppress(Exception):  # as of a damaged file
        with np.load(path, allow_pickle=False) as found:
            schema = json.loads(str(found["about"]))["schema"]
        return isinstance(schema, str) and schema.rpartition("/")[0] == SCHEMA.rpartition("/")[0]
    return False


class _LayerScore:
    """How well a layer of M images is predicted, summed over blocks of its dimensions."""

    def __init__(self, images: int) -> None:
        self._products = np.zeros((images, images))
        self._squares, self._whole, self._r, self._dims = 0.0, 0.0, 0.0, 0

    def add(self, P: Values, truth: Values) -> None:
        """Add some dimensions: predictions and truth (M, d)."""
        mean = truth.mean(axis=0)
        self._products += (truth - mean) @ (P - mean).T
        self._squares += float(((P - mean) ** 2).sum())
        self._whole += float(((truth - mean) ** 2).sum())
        self._r += float(correlations(P, truth).sum())
        self._dims += P.shape[1]

    def row(self, spec: LayerSpec, alpha: float, seed: int) -> dict[str, Any]:
        """Return a row of `Prediction.layers`.

        R2 is 1 - |Y - P|^2 / |Y|^2, of which permutations of Y change nothing but the product of Y with P.
        """
        images = np.arange(len(self._products))
        rng = np.random.default_rng(seed)
        orders = [images, *(rng.permutation(images) for _ in range(PERMUTATIONS))]
        traces = np.array([self._products[order, images].sum() for order in orders])
        r2 = (2 * traces - self._squares) / max(self._whole, 1e-300)
        return {
            "layer": spec.name,
            "dims": spec.num_dims,
            "alpha": alpha,
            "r2": float(r2[0]),
            "pearson": self._r / self._dims,
            "null_r2": float(np.quantile(r2[1:], 0.95)),
            "p_value": float(((r2[1:] >= r2[0]).sum() + 1) / (PERMUTATIONS + 1)),
        }
