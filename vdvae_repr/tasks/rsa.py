"""`rsa`: how alike are the dissimilarities of images in a layer, and in a brain?"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from vdvae_repr.brain.dissimilarity import (
    COMPARISONS,
    LEAST,
    RESAMPLES,
    Bootstrap,
    Jackknife,
    MeasuredRDMs,
    among,
    are_constant,
    bootstrap,
    compare,
    expect_kind,
    layer_rdm,
    noise_ceiling,
    pairs,
    rdms_of_responses,
    read_rdms,
)
from vdvae_repr.brain.responses import REPEATED, of_splits, read_responses, voxel_blocks
from vdvae_repr.errors import TaskError, counted
from vdvae_repr.latents.base import Latents, about_copies
from vdvae_repr.probing.features import Columns, Features
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.similarity import cka_without_each, debiased_cka, u_centred
from vdvae_repr.probing.statistics import Difference, Figure
from vdvae_repr.probing.task import (
    Problem,
    Scored,
    Split,
    Task,
    has_splits,
    of_other_splits,
    without_splits,
)

KINDS = ("correlation", "euclidean", "crossnobis")
CKA = "cka"
METRICS = {"spearman": "spearman", "kendall": "kendall_tau_a", "cosine": "cosine", CKA: CKA}
"""The metric of each head's rows."""
KEPT_BYTES = 2**28  # of inner products
MOST = 2000  # images of a side: two million pairs, 16 MB a layer

Matrix = NDArray[np.float64]


class Comparison(BaseEstimator):  # type: ignore[misc]
    """A way to compare dissimilarities, as a head; nothing is fitted."""

    version: ClassVar[int] = 1

    def __init__(self, *, how: str = "spearman") -> None:
        self.how = how

    def fit(self, X: Any = None, y: Any = None) -> Comparison:
        """Fit nothing."""
        return self


@dataclass(frozen=True, kw_only=True)
class RSA(Task):
    """How alike are the dissimilarities of images in a layer, and in a measured brain?

    Representational similarity analysis (Kriegeskorte, Mur and Bandettini 2008). What was measured is `rdm`,
    dissimilarities of one subject or several, or `responses`, of which they are made. A value is the mean
    over subjects. Heads: `spearman`, `kendall` (tau-a) and `cosine` of dissimilarities, by rsatoolbox, with
    its noise ceilings and its bootstrap over images and subjects; `cka`, debiased, of the patterns whose
    squared distances the dissimilarities are, with a jackknife.

    Nothing is fitted. With splits a layer is chosen by the images of train and val, and all figures are of
    the test images; without, they are of all images, and no layer is chosen.
    """

    name: ClassVar[str] = "rsa"
    version: ClassVar[int | None] = 3

    rdm: Any = field(
        default=None,
        metadata={
            "help": "Measured dissimilarities, FILE[:KEY]: (N, N), its upper triangle, (subjects, N, N)."
        },
    )
    responses: Any = field(
        default=None,
        metadata={
            "help": "Measured responses, FILE[:KEY]: (images, voxels) or (repetitions, images, voxels)."
        },
    )
    rois: str | None = field(
        default=None, metadata={"help": "A table of voxel and roi, of which --roi names one."}
    )
    roi: str | None = field(
        default=None,
        metadata={"help": "The region whose responses are compared; all voxels if not given."},
    )
    dissimilarity: str = field(
        default="correlation",
        metadata={
            "help": "correlation (1 - Pearson, the default), euclidean, or crossnobis of repeated responses."
        },
    )

    def __post_init__(self) -> None:
        """Check the options."""
        expect_kind(self.dissimilarity, KINDS)
        if (self.roi is None) != (self.rois is None):
            raise TaskError("rois and roi: expected both, a table and a region in it, found one")
        if self.responses is None and (self.rois is not None or self.dissimilarity == "crossnobis"):
            what = "crossnobis" if self.rois is None else "rois"
            raise TaskError(f"{what}: expected responses with it, found none")

    def bind(self, store: Latents, seed: int = 0) -> RSAProblem:
        """Return the comparison of a store's layers with what was measured.

        Raises:
            TaskError: nothing was measured, or of other images.
        """
        return RSAProblem(store, self, seed)

    def measured(self, store: Latents) -> MeasuredRDMs:
        """Return the measured dissimilarities.

        Raises:
            TaskError: none or two are given, or they are of other images.
        """
        if (self.rdm is None) == (self.responses is None):
            found = "neither" if self.rdm is None else "both"
            raise TaskError(
                f"rsa: expected rdm, measured dissimilarities, or responses, found {found}; give one"
            )
        if self.rdm is not None:
            return read_rdms(self.rdm, store)
        responses = read_responses(self.responses, store, self.rois)
        if self.roi is not None:
            if self.roi not in responses.rois:
                known = ", ".join(responses.rois)
                raise TaskError(f"roi: expected one of {known}, found {self.roi!r}")
            responses = responses.of(responses.rois[self.roi])
        return rdms_of_responses(responses, self.dissimilarity)


class RSAProblem(Problem):
    """Dissimilarities of test images by layer, compared with measured ones.

    The outcome is the layer's dissimilarities of the test images, (P,); the figures of all layers are made
    under the same draws.
    """

    def __init__(self, store: Latents, task: RSA, seed: int) -> None:
        measured = task.measured(store)
        subjects = len(measured.matrices)
        splits = np.array(measured.splits)
        if has_splits(splits, store.path):
            tested, choosing = splits == "test", np.isin(splits, ("train", "val"))
            if not tested.any():
                tested, choosing = splits == "val", splits == "train"
            text = "a layer is chosen by the images of the other splits, and compared on test"
            text += of_other_splits(splits)
        else:
            tested, choosing = np.ones(len(splits), bool), np.zeros(len(splits), bool)
            text = f"{without_splits(splits)}: all images are compared, and no layer is chosen"
        compared, by = np.flatnonzero(tested), np.flatnonzero(choosing)
        for what, some in (("compare", compared), ("choose by", by)):
            if 0 < len(some) < LEAST or (not len(some) and what == "compare"):
                raise TaskError(
                    f"{store.path}: expected at least {LEAST} images to {what}, found {len(some)} "
                    f"{of_splits(measured.splits)}"
                )
        if len(compared) > MOST:
            raise TaskError(
                f"{store.path}: expected {MOST} images to compare at most, as their pairs are drawn "
                f"{RESAMPLES} times over, found {len(compared)}; give fewer the split test, or measured "
                "values of fewer, with ids"
            )
        text += f" ({len(compared)} images, {subjects} subject{'s' if subjects > 1 else ''})"
        text += "".join(f"; {note}" for note in measured.notes)
        if left := len(store) - len(measured.rows):
            text += f"; {counted(left, 'image')} not measured left out"
        if len(by) > MOST:
            text += f"; a layer is chosen by {MOST} of {len(by)} images, drawn with seed {seed}"
            by = np.sort(np.random.default_rng(seed).choice(by, MOST, replace=False))
        # From here on of these images alone.
        kept = np.union1d(compared, by)
        self.rows = measured.rows[kept]
        self.tested, self.choosing = np.searchsorted(kept, compared), np.searchsorted(kept, by)
        super().__init__(
            store,
            Split(self.rows[self.choosing], self.rows[self.tested], text=text),
            heads={name: Comparison(how=name) for name in METRICS},
            metrics=["spearman"],
            default_heads=("spearman", CKA),
        )
        # PCA of pixels is no choice; without splits it is of the images that are compared.
        self.fitted = self.split.train if len(self.choosing) else self.split.test
        # A copy of an image is like it in any layer, and in any brain: each layer would be like each brain.
        self.sides = [
            (name, row)
            for name, side in (("choosing", self.split.train), ("test", self.split.test))
            for row in side[:, None]
        ]
        # Responses with crossnobis are compared with squared distances, which layers have without noise.
        self._kind = "correlation" if task.dissimilarity == "correlation" else "euclidean"
        self.subjects = among(measured.matrices, kept)
        self.read_elsewhere = [self.subjects, self.rows]
        self._refuse_constant()
        self._kept: OrderedDict[tuple[Columns, ...], tuple[Matrix, Matrix]] = OrderedDict()

    def _refuse_constant(self) -> None:
        """Refuse a subject all of whose pairs are as dissimilar, as where it was never filled in.

        Raises:
            TaskError: names the subject.
        """
        for rows in (self.tested, self.choosing):
            if not len(rows):
                continue
            constant = are_constant(pairs(among(self.subjects, rows)))
            if constant.any():
                subject = int(constant.argmax())
                value = pairs(among(self.subjects[subject], rows))[0]
                raise TaskError(
                    f"rsa: expected dissimilarities that differ between pairs, found {value:g} for all pairs "
                    f"of subject {subject + 1} of {len(constant)}; leave that subject out"
                )

    def about_images(self, images: NDArray[np.uint8], ids: Sequence[str]) -> list[str]:
        """Refuse an image that is there twice.

        Raises:
            TaskError: names both.
        """
        return about_copies(images, ids, self.sides, remedy=REPEATED)

    def counted(self) -> str:
        """Return how many images and subjects are compared."""
        count = len(self.subjects)
        return f"{len(self.tested)} images, {count} subject{'s' if count > 1 else ''}"

    def metrics_of(self, head: Head) -> tuple[str, ...]:
        """Return the comparison's name."""
        return (METRICS[self._how(head)],)

    def heads_of(self, name: str, estimator: Any) -> dict[str, Head]:
        """Refuse estimators: nothing is fitted here.

        Raises:
            TaskError: always.
        """
        raise TaskError(f"heads: expected {', '.join(METRICS)}, found {name!r}; rsa fits nothing")

    def score(
        self, head: Head, features: Features, seed: int = 0, shuffled: bool = False
    ) -> Scored:
        """Return dissimilarities; shuffled: of the same images in another order."""
        rdm = self._rdm(features)
        order = np.arange(len(rdm))
        if shuffled:
            order = np.random.default_rng(seed).permutation(order)
            rdm = rdm[np.ix_(order, order)]
        training = None
        if len(self.choosing):
            own, subjects = among(rdm[None], self.choosing), among(self.subjects, self.choosing)
            if not are_constant(pairs(own[0])):
                training = float(self._compared(own, subjects, self._how(head)).mean())
        return Scored(features, pairs(among(rdm, self.tested)), training, "raw")

    def figures(self, metric: str, scored: Sequence[Sequence[Scored]], seed: int) -> list[Figure]:
        """Return the mean over subjects of each, with its interval."""
        how = next(name for name, known in METRICS.items() if known == metric)
        every = [item for draws in scored for item in draws]
        found = self._resampled(every, how, seed)
        for item in every:
            if are_constant(item.outcome):
                layer = item.features.layer or item.features.dims
                line = (
                    f"{item.features.model} {layer}: all pairs of images are as dissimilar, so that there is "
                    "nothing to compare, and 0 is given"
                )
                self.notes = list(dict.fromkeys([*self.notes, line]))
        figures, start = [], 0
        for draws in scored:
            weights = np.zeros(len(found.value))
            weights[start : start + len(draws)] = 1 / len(draws)
            value, spread = self._of(found, weights)
            low, high = found.interval(value, spread)
            start += len(draws)
            # Dissimilarities are above 0, so that cosines of unlike ones are too: how far, nobody knows.
            chance = None if how == "cosine" else 0.0
            figure = Figure(value, se=spread, chance=chance, units=found.dof + 1)
            if spread > 0:
                figure = figure._replace(
                    low=max(low, -1.0), high=min(high, 1.0), interval="student"
                )
            figures.append(figure)
        return figures

    def compare(
        self, ours: Sequence[Scored], theirs: Sequence[Scored], head: Head, seed: int
    ) -> Difference:
        """Compare two by the bootstrap of their difference."""
        found = self._resampled([*ours, *theirs], self._how(head), seed)
        weights = np.repeat([1 / len(ours), -1 / len(theirs)], [len(ours), len(theirs)])
        value, spread = self._of(found, weights)
        low, high = found.interval(value, spread)
        return Difference(
            value, max(low, -2.0), min(high, 2.0), found.p_value(value, spread), None, found.dof + 1
        )

    def ceiling_of(self, metric: str, head: Head) -> tuple[float, float] | None:
        """Return rsatoolbox's noise ceilings; of debiased CKA, which it does not know, none."""
        if self._how(head) == CKA:
            return None
        return noise_ceiling(pairs(self._tested_subjects), self._how(head))

    def _how(self, head: Head) -> str:
        return cast(Comparison, head.estimator).how

    @property
    def _tested_subjects(self) -> Matrix:
        return among(self.subjects, self.tested)

    def _rdm(self, features: Features) -> Matrix:
        """Return dissimilarities of the measured images; the last are kept, for the next head."""
        inner, sums = self._products(features.columns)
        return layer_rdm(inner, sums, features.dims, self._kind)

    def _products(self, columns: tuple[Columns, ...]) -> tuple[Matrix, Matrix]:
        """Return inner products (N, N) of the measured images, not centred, and sums (N,) over columns.

        In float64, as patterns that share a large mean differ by little. The last are kept: layers up to one
        are followed by that layer, and by the layers up to the next.
        """
        if columns in self._kept:
            self._kept.move_to_end(columns)
            return self._kept[columns]
        if len(columns) == 1:
            found = np.zeros((len(self.rows),) * 2), np.zeros(len(self.rows))
            for block in columns[0].blocks():
                for part in voxel_blocks(block.shape[1]):  # sums of fewer products are rounded less
                    X = block[self.rows, part].astype(np.float64)
                    found = found[0] + X @ X.T, found[1] + X.sum(axis=1)
        else:
            before, last = self._products(columns[:-1]), self._products(columns[-1:])
            found = before[0] + last[0], before[1] + last[1]
        self._kept[columns] = found
        while len(self._kept) > 3 and len(self._kept) * found[0].nbytes > KEPT_BYTES:
            self._kept.popitem(last=False)
        return found

    def _compared(self, models: Matrix, subjects: Matrix, how: str) -> Matrix:
        """Compare matrices (M, N, N) with (S, N, N): (M, S)."""
        if how in COMPARISONS:
            return compare(pairs(models), pairs(subjects), how)
        # Centred so, squared distances are -2 times inner products, whatever their origin.
        return debiased_cka([u_centred(m) for m in models], [u_centred(s) for s in subjects])

    def _resampled(self, scored: Sequence[Scored], how: str, seed: int) -> Bootstrap:
        size = len(self.tested)
        first, second = np.triu_indices(size, 1)
        models = np.zeros((len(scored), size, size))
        outcomes = np.stack([item.outcome for item in scored])
        outcomes[are_constant(outcomes)] = 0  # rounding is taken for no pattern
        models[:, first, second] = models[:, second, first] = outcomes
        subjects = self._tested_subjects
        if how in COMPARISONS:
            return bootstrap(models, subjects, how, seed)
        return self._jackknife(models, subjects)

    def _jackknife(self, models: Matrix, subjects: Matrix) -> Bootstrap:
        """Leave out images, then subjects: copies of an image would make CKA of any features large."""
        whole = self._compared(models, subjects, CKA)
        return Jackknife(whole, cka_without_each(list(models), list(subjects)).mean(axis=2))

    def _of(self, found: Bootstrap, weights: Matrix) -> tuple[float, float]:
        return float(found.value @ weights), found.spread(weights)
