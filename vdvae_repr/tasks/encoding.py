"""`encoding`: how well does each layer predict the response of each voxel?"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import KFold, cross_val_predict

from vdvae_repr.brain import voxelwise
from vdvae_repr.brain.responses import (
    REPEATED,
    correlations,
    expect_voxels,
    of_splits,
    read_responses,
)
from vdvae_repr.brain.voxelwise import Predicted
from vdvae_repr.data.names import SPLITS
from vdvae_repr.errors import TaskError, counted
from vdvae_repr.heads.algebra import Algebra
from vdvae_repr.heads.gram import Scaling, centre_and_scale
from vdvae_repr.heads.spectrum import Spectrum
from vdvae_repr.latents.base import Latents, about_copies
from vdvae_repr.output import BANDS, VOXELS
from vdvae_repr.probing.features import GRAM_BYTES, Columns, Features, Workspace, hash_text
from vdvae_repr.probing.head import Head, estimator_digest
from vdvae_repr.probing.statistics import Items
from vdvae_repr.probing.task import (
    FEWER,
    Problem,
    Scored,
    Split,
    Task,
    has_splits,
    of_other_splits,
    without_splits,
)

LEAST = 10  # images to fit on, and to test on
HELD_BACK = 5  # of images without splits, one in so many is tested on
KEPT_BYTES = 2**28  # of scores of regions, fitted together and asked for one by one

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Encoding(Task):
    """How well does each layer predict the response of each voxel?

    Voxelwise encoding models: `ridge` regression from a layer, or from layers together, to each voxel, with
    a penalty a voxel by leave-one-out; `banded` gives each resolution a penalty of its own (himalaya's).
    Fitted on the images of train and val, tested on test; without splits on a fifth of the images, drawn by
    the seed.
    Values are Pearson's r and R2, the mean over voxels; rows have the noise ceiling where images were
    repeated. With `rois` each region has a head too, `ridge:V1`. Intervals resample test images.

    The table `voxels` of the report has each voxel's best layer, by training images, with its r, R2, p by
    1,000 permutations of the test images, and q by false discovery rate; `bands` divides the R2 of `banded`.
    """

    name: ClassVar[str] = "encoding"
    version: ClassVar[int | None] = 1

    responses: Any = field(
        default=None,
        metadata={
            "help": "Measured responses, FILE[:KEY]: (images, voxels) or (repetitions, images, voxels)."
        },
    )
    rois: str | None = field(
        default=None,
        metadata={"help": "A table of voxel and roi: each region has rows of its own."},
    )
    device: str = field(
        default="cpu",
        metadata={
            "help": "Where voxels are fitted, in float64: cpu, cuda, cuda:1; never chosen for you."
        },
    )

    def bind(self, store: Latents, seed: int = 0) -> EncodingProblem:
        """Return the voxels that a store's images were seen by.

        Raises:
            TaskError: no responses, or of other images; no such device.
        """
        if self.responses is None:
            raise TaskError("encoding: expected responses, an array or a file of them, found none")
        return EncodingProblem(store, self, seed)


class Voxelwise(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regression of every voxel, as a head: `ridge` or `banded`. The problem fits it, by inner products."""

    version: ClassVar[int] = 2

    def __init__(self, *, how: str = "ridge") -> None:
        self.how = how

    def fit(self, X: Any = None, y: Any = None) -> Voxelwise:
        """Fit nothing."""
        return self


@dataclass(frozen=True)
class VoxelHead(Head):
    """A head of the voxels of a region, or of all voxels."""

    roi: str | None = None

    @cached_property
    def digest(self) -> str | None:
        """A hash of what it computes, of which voxels."""
        of_estimator = estimator_digest(self.estimator)
        return of_estimator and hash_text(of_estimator, str(self.roi))


@dataclass(frozen=True, eq=False)
class VoxelScores:
    """Scores of V voxels on M test images.

    Args:
        voxels: R2 of training images left out, Pearson's r and R2 of test images (3, V).
        images: what each test image adds to the mean r and to the mean R2, and its share of the latter's
            variance (3, M).
        bands: R2 by band (B, V); B is 0 where bands are not told apart.
    """

    voxels: Values
    images: Values
    bands: Values

    @classmethod
    def of(cls, predicted: Predicted, truth: Values) -> VoxelScores:
        """Score what was predicted of test images (M, V)."""
        values = predicted.values
        r, r2 = correlations(truth, values), voxelwise.r2(truth, values)
        x, y = (a - a.mean(axis=0) for a in (values, truth))
        lengths = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
        squares = (y**2).sum(axis=0)
        products = x * y / np.where(lengths > 0, lengths, np.inf)
        shares = y**2 / squares
        adds = shares - (truth - values) ** 2 / squares
        images = np.stack(
            [products.mean(axis=1) * len(truth), adds.mean(axis=1), shares.mean(axis=1)]
        )
        bands = np.zeros((0, truth.shape[1]))
        if predicted.bands is not None:
            bands = voxelwise.r2_by_band(truth, predicted.bands)
        return cls(np.stack([predicted.left_out_r2, r, r2]), images, bands)

    @property
    def nbytes(self) -> int:
        """The bytes of all of it."""
        return self.voxels.nbytes + self.images.nbytes + self.bands.nbytes

    def packed(self) -> Values:
        """Return all of it as one array, which the cache keeps."""
        sizes = [self.voxels.shape[1], self.images.shape[1], len(self.bands)]
        parts = [np.array(sizes, np.float64), self.voxels, self.images, self.bands]
        return np.concatenate([part.ravel() for part in parts])

    @classmethod
    def unpacked(cls, array: Values) -> VoxelScores:
        """Return what `packed` made an array of."""
        voxels, images, bands = (int(size) for size in array[:3])
        parts = np.split(array[3:], [3 * voxels, 3 * (voxels + images)])
        shapes = [(3, voxels), (3, images), (bands, voxels)]
        return cls(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))


class EncodingProblem(Problem):
    """Responses of voxels, predicted from the layers of images that nothing was fitted on.

    The outcome is `VoxelScores`, packed, of the head's voxels.
    """

    def __init__(self, store: Latents, task: Encoding, seed: int) -> None:
        responses = read_responses(task.responses, store, task.rois)
        splits = np.array(responses.splits)
        if has_splits(splits, store.path):
            last = "test" if (splits == "test").any() else "val"
            tested = np.flatnonzero(splits == last)
            fitted = np.flatnonzero(np.isin(splits, SPLITS) & (splits != last))
            text = f"fitted on the other splits, tested on {last}"
            text += of_other_splits(splits)
        else:
            order = np.random.default_rng(seed).permutation(len(splits))
            count = len(order) // HELD_BACK
            tested, fitted = np.sort(order[:count]), np.sort(order[count:])
            text = f"{without_splits(splits)}: a fifth of the images, drawn with seed {seed}, is tested"
        if min(len(fitted), len(tested)) < LEAST:
            raise TaskError(
                f"{store.path}: expected at least {LEAST} images with responses to fit on and to test on, "
                f"found {len(fitted)} and {len(tested)} {of_splits(responses.splits)}"
            )
        notes = list(responses.notes)
        mean = responses.mean
        varying = np.all([np.ptp(mean[side], axis=0) > 0 for side in (fitted, tested)], axis=0)
        if not varying.all():
            still = counted(int((~varying).sum()), "voxel")
            notes.append(f"{still} left out, constant on a side")
            responses = responses.of(varying)
            mean = responses.mean
        if not len(responses.voxels):
            raise TaskError("responses: expected voxels that vary over images, found none")
        expect_voxels(responses.rois, str(task.rois or "responses"))
        if left := len(store) - len(responses.rows):
            have = "has" if left == 1 else "have"
            notes.append(f"{left} of the store's {len(store)} images {have} no responses")
        self.fitting, self.truth = mean[fitted], mean[tested].astype(np.float64)
        self.voxels = responses.voxels
        self.rois: dict[str | None, NDArray[np.bool_]] = {None: np.ones(len(self.voxels), bool)}
        self.rois.update(responses.rois)
        self.noise_ceiling = responses.noise_ceiling(tested)
        self.reliability = responses.split_half(seed)
        text += f" ({len(fitted)} and {len(tested)} images, {counted(len(self.voxels), 'voxel')})"
        text += "".join(f"; {note}" for note in notes)
        split = Split(responses.rows[fitted], responses.rows[tested], text=text)
        super().__init__(store, split, heads={}, metrics=["pearson", "r2"])
        # A copy of an image, as another row a trial, would be learned of itself, or count as another image.
        self.sides = [(name, row) for name, side in self.sides for row in np.reshape(side, (-1, 1))]
        # Of a store's images those alone that were fitted on and tested on, in this order.
        self.work = Workspace(store.ids, np.concatenate([split.train, split.test]))
        self.work.algebra = Algebra.on(task.device)
        self._fitted = np.arange(len(fitted))
        self._tested = np.arange(len(fitted), len(fitted) + len(tested))
        self.heads = {
            head.name: head
            for how in ("ridge", "banded")
            for head in self._heads(how, Voxelwise(how=how))
        }
        self.default_heads = tuple(name for name in self.heads if name.startswith("ridge"))
        self.read_elsewhere = [self.fitting, self.truth, *map(np.asarray, self.rois.values())]
        self._scored: OrderedDict[tuple[Any, ...], dict[str | None, VoxelScores]] = OrderedDict()

    def _heads(self, name: str, estimator: Any) -> list[VoxelHead]:
        return [
            VoxelHead(name if roi is None else f"{name}:{roi}", estimator, roi) for roi in self.rois
        ]

    def about_images(self, images: NDArray[np.uint8], ids: Sequence[str]) -> list[str]:
        """Refuse an image that is there twice.

        Raises:
            TaskError: names both.
        """
        return about_copies(images, ids, self.sides, remedy=REPEATED)

    def counted(self) -> str:
        """Return the numbers of images and of voxels."""
        return f"{super().counted()}, {counted(len(self.voxels), 'voxel')}"

    def heads_of(self, name: str, estimator: Any) -> dict[str, Head]:
        """Return a head for all voxels, and for each region, of a regressor that predicts several numbers.

        Raises:
            TaskError: it is no regressor.
        """
        if not Head(name, estimator).regresses:
            raise TaskError(f"heads: expected a regressor for this task, found {name!r}")
        return {head.name: head for head in self._heads(name, estimator)}

    def permutations(self, head: Head) -> int:
        """Return how often responses are shuffled, which fits all voxels anew."""
        return FEWER

    def score(
        self, head: Head, features: Features, seed: int = 0, shuffled: bool = False
    ) -> Scored:
        """Score the voxels of the head's region; shuffled: fitted to responses of other training images.

        All voxels are fitted, once for the heads of all regions.
        """
        roi = head.roi if isinstance(head, VoxelHead) else None
        digest = estimator_digest(head.estimator)
        key = features.columns, digest, seed if shuffled else None
        if key not in self._scored or digest is None:
            Y = self.fitting
            if shuffled:
                Y = np.random.default_rng(seed).permutation(Y)
            predicted = self._predicted(head, features, Y, seed)
            self._scored[key] = {
                name: VoxelScores.of(_of_voxels(predicted, flags), self.truth[:, flags])
                for name, flags in self.rois.items()
            }
            while len(self._scored) > 1 and self._kept_bytes() > KEPT_BYTES:
                self._scored.popitem(last=False)
        scores = self._scored[key][roi]
        own = isinstance(head.estimator, Voxelwise)
        return Scored(
            features,
            scores.packed(),
            float(scores.voxels[0].mean()),
            self._scaling(features) if own else None,
        )

    def _kept_bytes(self) -> int:
        return sum(scores.nbytes for of in self._scored.values() for scores in of.values())

    def items(self, metric: str, scored: Scored) -> Items:
        """Return what each test image adds to the mean over voxels of r or R2.

        With each voxel's means and deviations as they were found.
        """
        images = VoxelScores.unpacked(scored.outcome).images
        return Items.mean_of(images[0]) if metric == "pearson" else Items(images[1], images[2])

    def chance_of(self, metric: str, scored: Scored) -> float:
        """Return 0, what the mean of the responses is worth."""
        return 0.0

    def ceiling_of(self, metric: str, head: Head) -> tuple[float, float] | None:
        """Return the mean noise ceiling of the head's voxels, in the metric's terms."""
        if self.noise_ceiling is None:
            return None
        flags = self.rois[head.roi if isinstance(head, VoxelHead) else None]
        shares = self.noise_ceiling[flags]
        value = float((np.sqrt(shares) if metric == "pearson" else shares).mean())
        return value, value

    def tables(self, head: Head, scored: Sequence[Scored], seed: int) -> Mapping[str, pd.DataFrame]:
        """Return `voxels` of ridge regression of all voxels, and `bands` of banded."""
        how = getattr(head.estimator, "how", None)
        if how == "ridge" and isinstance(head, VoxelHead) and head.roi is None and scored:
            return {"voxels": self._voxel_table(head, scored, seed)}
        if how == "banded":
            rows = [row for item in scored for row in self._band_rows(head, item)]
            name = f"bands-{head.name.partition(':')[2]}".rstrip("-")
            return {name: pd.DataFrame(rows, columns=BANDS.split(","))} if rows else {}
        return {}

    def _voxel_table(self, head: Head, scored: Sequence[Scored], seed: int) -> pd.DataFrame:
        """Return a row a voxel: of single layers, where there are some, the best by training images."""
        scored = [s for s in scored if s.features.selection == "single"] or list(scored)
        every = np.stack([VoxelScores.unpacked(item.outcome).voxels for item in scored])
        best = every[:, 0].argmax(axis=0)
        left_out, r, r2 = every[best, :, np.arange(len(best))].T
        p = np.ones(len(best))
        for number in np.unique(best):
            own = best == number
            features = scored[number].features
            predicted = self._predicted(head, features, self.fitting[:, own], seed)
            p[own] = voxelwise.permutation_p(
                self.truth[:, own], predicted.values, seed, self.work.algebra
            )
        names = _names([item.features for item in scored])
        unknown = np.full(len(best), np.nan)
        regions = [
            ";".join(name for name, flags in self.rois.items() if name and flags[voxel])
            for voxel in range(len(best))
        ]
        columns = [
            self.voxels,
            regions,
            [names[number] for number in best],
            left_out,
            r,
            r2,
            p,
            voxelwise.false_discovery(p),
            unknown if self.noise_ceiling is None else self.noise_ceiling,
            unknown if self.reliability is None else self.reliability,
        ]
        return pd.DataFrame(dict(zip(VOXELS.split(","), columns, strict=True)))

    def _band_rows(self, head: Head, item: Scored) -> list[tuple[Any, ...]]:
        bands = VoxelScores.unpacked(item.outcome).bands
        names = [f"{group}x{group}" for group, _ in _bands(item.features)]
        values = bands.mean(axis=1).tolist()
        if len(names) < 2:
            return []
        return [
            (head.name, item.features.layer, name, value)
            for name, value in zip(names, values, strict=True)
        ]

    @staticmethod
    def _scaling(features: Features) -> Scaling:
        return "standardised" if features.standardise else "centred"

    def _predicted(self, head: Head, features: Features, Y: Any, seed: int) -> Predicted:
        """Fit responses Y (n, V) of the training images, and predict those of the test images."""
        train, test = self._fitted, self._tested
        how = getattr(head.estimator, "how", None)
        if not isinstance(head.estimator, Voxelwise):
            return self._by_columns(head, features, Y, seed)
        if how == "banded":
            return self._by_bands(features, Y, seed)
        if features.dims > len(train):
            (gram,) = self.work.grams(features, [(train, self._scaling(features))])
            fitted = gram.spectrum.project_samples(gram.inner[train])
            others = gram.spectrum.project(gram.inner[test])
            return voxelwise.ridge(fitted, Y, others, self.work.algebra)
        X = self.work.matrix(features).astype(np.float64)
        mean, scale = centre_and_scale(X[train], features.standardise)
        X = (X - mean) / scale
        spectrum = Spectrum.of(X[train])
        fitted, others = spectrum.project_samples(X[train]), spectrum.project(X[test])
        return voxelwise.ridge(fitted, Y, others, self.work.algebra)

    def _by_bands(self, features: Features, Y: Any, seed: int) -> Predicted:
        train, test = self._fitted, self._tested
        bands = _bands(features)
        size = 2 * len(bands) * 8 * len(train) ** 2
        if size > GRAM_BYTES:
            raise TaskError(
                f"banded: expected {GRAM_BYTES / 2**30:.1f} GiB at most, half of this machine's memory, for "
                f"twice the inner products of {len(bands)} bands, found {size / 2**30:.1f} GiB: {len(train)} "
                "training images; take fewer, or the head ridge"
            )
        kernels = np.empty((len(bands), len(train), len(train)))
        others = np.empty((len(bands), len(test), len(train)))
        for number, (_, columns) in enumerate(bands):
            band = Features(features.model, features.layer, columns, features.feature)
            (gram,) = self.work.grams(band, [(train, self._scaling(features))])
            kernels[number], others[number] = gram.inner[train], gram.inner[test]
        return voxelwise.banded_ridge(kernels, Y, others, seed, self.work.algebra)

    def _by_columns(self, head: Head, features: Features, Y: Any, seed: int) -> Predicted:
        """Do the same by an estimator of the user's, and a seeded k-fold of five."""
        X = self.read(head, features)
        train, estimator = X[self._fitted], head.fresh(seed)
        folds = KFold(5, shuffle=True, random_state=seed)
        left_out = cross_val_predict(estimator, train, Y, cv=folds).reshape(Y.shape)
        values = estimator.fit(train, Y.copy()).predict(X[self._tested])
        values = np.asarray(values, np.float64).reshape(-1, Y.shape[1])
        return Predicted(values, voxelwise.r2(Y.astype(np.float64), left_out))


def _bands(features: Features) -> list[tuple[int, tuple[Columns, ...]]]:
    """Return the columns of each resolution, in order."""
    return [(group, tuple(own)) for group, own in groupby(features.columns, lambda c: c.group)]


def _of_voxels(predicted: Predicted, flags: NDArray[np.bool_]) -> Predicted:
    if flags.all():
        return predicted
    bands = None if predicted.bands is None else predicted.bands[:, :, flags]
    return Predicted(predicted.values[:, flags], predicted.left_out_r2[flags], bands)


def _names(features: Sequence[Features]) -> list[str]:
    """Return the layers' names, with feature and pooling where there are several."""
    several = [
        name for name in ("feature", "pool") if len({getattr(f, name) for f in features}) > 1
    ]
    return [
        " ".join(filter(None, [f.layer, *(getattr(f, name) for name in several)])) for f in features
    ]
