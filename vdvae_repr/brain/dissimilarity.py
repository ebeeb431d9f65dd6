"""Representational dissimilarity matrices (RDMs): of layers, of measured brains, and how alike they are.

N images, P = N (N - 1) / 2 pairs of them, S subjects, M models (layers). Comparisons, noise ceilings and
the variance of a bootstrap over subjects and images are rsatoolbox's (Schütt et al. 2023, eLife 12).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import squareform
from scipy.stats import t as student

from vdvae_repr.brain.extra import needed
from vdvae_repr.brain.responses import (
    Measured,
    Responses,
    about_equal,
    placed,
    read_array,
    voxel_blocks,
)
from vdvae_repr.errors import TaskError, counted
from vdvae_repr.heads.linear import apart_from_others
from vdvae_repr.latents.base import Latents

COMPARISONS = {"spearman": "spearman", "kendall": "tau-a", "cosine": "cosine"}
"""What rsatoolbox calls each comparison."""
RESAMPLES = 500  # of images and subjects
BLOCK_BYTES = 2**27  # of models' pairs whose draws are made at once
LEAST = 4  # images
LEAST_VOXELS = 3  # of a correlation: of two values it is 1 or -1, of one there is none
LEVEL = 0.95  # of intervals
CONSTANT = 1e-13  # of a pattern's squares about their mean, beside its squares: what float64 leaves of none
ROUNDING = (
    1e-12  # of comparisons, which lie between -1 and 1; of dissimilarities in proportion to them
)

Values = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class MeasuredRDMs:
    """Measured dissimilarities of N images, of S subjects.

    Args:
        matrices: (S, N, N).
        rows: the store's images that they are of (N,).
        splits: of the images (N,).
        notes: what the reader must know.
    """

    matrices: Values
    rows: Rows
    splits: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_rdms(measured: Measured, store: Latents) -> MeasuredRDMs:
    """Read measured dissimilarities of the images of a store.

    Args:
        measured: (N, N), the P pairs of its upper triangle row by row, (S, N, N), or (S, sessions, N, N),
            whose sessions are averaged; an array, or a file as `read_array` takes it.
        store: of the images.

    Raises:
        DataError: the file cannot be read. TaskError: no dissimilarities of these images, or similarities.
    """
    found = read_array(measured, "rdm")
    array = found.values.astype(np.float64)
    notes: list[str] = []
    if array.ndim == 1:
        try:
            array = squareform(array)
        except ValueError as error:
            raise TaskError(
                f"rdm: expected the N (N - 1) / 2 pairs of N images, found {len(array)} numbers"
            ) from error
    if array.ndim not in (2, 3, 4) or array.shape[-1] != array.shape[-2]:
        raise TaskError(
            "rdm: expected (N, N), the pairs of its upper triangle, (subjects, N, N) or (subjects, sessions, "
            f"N, N), found {array.shape}"
        )
    if line := apart_from_others([pairs(array)]):
        notes.append(
            f"rdm: {line}: it counts as a dissimilarity; leave out the images of these pairs"
        )
    if array.ndim == 4:
        notes.append(f"rdm: the mean of {array.shape[1]} sessions of each subject is taken")
        array = array.mean(axis=1)
    matrices = array if array.ndim == 3 else array[None]
    rows, splits, about = placed(store, found, matrices.shape[-1], "rdm")
    off = ~np.eye(matrices.shape[-1], dtype=bool)
    if not np.isfinite(matrices[:, off]).all():
        raise TaskError("rdm: expected a finite number for each pair, found NaN or infinity")
    apart = np.abs(matrices - matrices.transpose(0, 2, 1))[:, off]
    if apart.max(initial=0) > 1e-4 * np.abs(matrices[:, off]).max(initial=0):
        raise TaskError("rdm: expected symmetric dissimilarities, found others on either side")
    matrices = (matrices + matrices.transpose(0, 2, 1)) / 2
    if any(map(_are_similarities, matrices)):
        raise TaskError(
            "rdm: expected dissimilarities, smallest of an image with itself, found them largest there, as "
            "similarities are; give 1 - them, or dissimilarities with a diagonal of 0"
        )
    between = matrices[:, off]
    below = between[between < 0]
    if below.size and (below == -1).all() and (np.abs(between) != 1).any():  # 1 and -1 are codes
        notes.append(
            f"rdm: -1 stands {counted(below.size // 2, 'time')}, where nothing else is below 0: it counts as "
            "a dissimilarity; leave out the images of these pairs"
        )
    if line := _about_nearest(matrices, [store.ids[row] for row in rows]):
        notes.append(line)
    notes += about_equal("rdm: subjects", pairs(matrices)[:, None])
    return MeasuredRDMs(matrices, rows, splits, (*about, *notes))


def _about_nearest(matrices: Values, ids: Sequence[str]) -> str:
    """Say which images are as 0 to all others in matrices (S, N, N) where others differ; else nothing."""
    off = ~np.eye(matrices.shape[-1], dtype=bool)
    zeros = ((matrices == 0) | ~off).all(axis=2)
    zeros &= ~zeros.all(axis=1, keepdims=True)
    if not zeros.any():
        return ""
    images = np.flatnonzero(zeros.any(axis=0))
    return (
        f"rdm: {counted(len(images), 'image', 'has', 'have')} a dissimilarity of 0 to all others, as what "
        f"was never written has, as {ids[images[0]]!r}: it counts as measured; leave the image out"
    )


def _are_similarities(matrix: Values) -> bool:
    """Whether no pair of a matrix (N, N) exceeds the mean of what both images have with themselves.

    So it is of correlations, cosines, covariances and other inner products, and of squared distances only
    where all are 0; a diagonal that is not known tells nothing.
    """
    own = np.diag(matrix)
    first, second = np.triu_indices(len(matrix), 1)
    above = (own[first] + own[second]) / 2 - matrix[first, second]
    return bool(np.isfinite(own).all() and above.min(initial=0) >= 0 and above.any())


def rdms_of_responses(responses: Responses, kind: str) -> MeasuredRDMs:
    """Return the dissimilarities of responses, of one subject.

    Args:
        responses: of the images.
        kind: `correlation` or `euclidean`, of mean responses; `crossnobis`, the squared Euclidean distance
            cross-validated over repetitions, whose noise is so not counted as distance, with voxels divided
            by the deviation of their noise.

    Raises:
        TaskError: crossnobis of responses without repetitions of all images, or correlations over fewer than
            three voxels.
    """
    voxels = len(responses.voxels)
    if kind == "correlation" and voxels < LEAST_VOXELS:
        raise TaskError(
            f"dissimilarity: expected at least {LEAST_VOXELS} voxels, over which responses are correlated, "
            f"found {voxels}; take euclidean"
        )
    if kind != "crossnobis":
        mean = responses.mean
        inner, sums = np.zeros((len(mean),) * 2), np.zeros(len(mean))
        for block in voxel_blocks(mean.shape[1]):
            X = mean[:, block].astype(np.float64)
            inner += X @ X.T
            sums += X.sum(axis=1)
        matrix = layer_rdm(inner, sums, mean.shape[1], kind)
        return MeasuredRDMs(matrix[None], responses.rows, responses.splits, responses.notes)
    least = int(responses.repetitions.min())
    if least < 2:
        raise TaskError(
            "dissimilarity: crossnobis expected every image seen twice or more, found "
            f"{int((responses.repetitions < 2).sum())} seen once; take euclidean"
        )
    notes = responses.notes
    if more := int((responses.repetitions > least).sum()):
        notes += (
            f"crossnobis takes the first {least} repetitions of each image; {more} were seen more often",
        )
    # Of each fold the product with the mean of the others, summed over folds.
    products = np.zeros((len(responses.rows),) * 2)
    for _, values in responses.seen(least):
        noise = values.var(axis=0, ddof=1).mean(axis=0)
        values /= np.sqrt(np.where(noise > 0, noise, 1))
        total = values.sum(axis=0)
        for fold in values:
            products += fold @ ((total - fold) / (least - 1)).T / least
    products = (products + products.T) / 2
    own = np.diag(products)
    matrix = (own[:, None] + own - 2 * products) / len(responses.voxels)
    return MeasuredRDMs(matrix[None], responses.rows, responses.splits, notes)


def layer_rdm(inner: Values, sums: Values, dims: int, kind: str) -> Values:
    """Return the dissimilarities (N, N) of patterns (N, D), by their inner products.

    Args:
        inner: products of patterns with each other, (N, N), not centred.
        sums: of each pattern's values, (N,).
        dims: D.
        kind: `correlation`, 1 - Pearson's r over the D values (1 of a pattern that is constant), or
            `euclidean`, the squared distance over D, as rsatoolbox has it.
    """
    if kind == "euclidean":
        own = np.diag(inner)
        rdm = np.maximum(own[:, None] + own - 2 * inner, 0) / dims
    else:
        centred = inner - np.outer(sums, sums) / dims
        lengths = np.sqrt(np.maximum(np.diag(centred), 0))
        constant = lengths**2 <= CONSTANT * np.diag(inner)
        lengths = np.where(constant, np.inf, lengths)
        r = centred / np.outer(lengths, lengths)
        rdm = 1 - (np.sign(r) if dims == 2 else r)  # of two values r is 1 or -1
        np.fill_diagonal(rdm, 0)
    step = ROUNDING * rdm.max(initial=0)  # below which rounding would rank what is equal
    return np.asarray(np.round(rdm / step) * step if step > 0 else rdm)


def are_constant(values: Values) -> NDArray[np.bool_]:
    """Whether all pairs (..., P) of a matrix are as dissimilar, (...), which says nothing of any pair."""
    return np.asarray(np.ptp(values, axis=-1) <= ROUNDING * np.abs(values).max(axis=-1))


def pairs(matrices: Values) -> Values:
    """Return the upper triangles (..., P) of matrices (..., N, N), row by row."""
    first, second = np.triu_indices(matrices.shape[-1], 1)
    return np.asarray(matrices[..., first, second])


def among(matrices: Values, rows: Rows) -> Values:
    """Return matrices (..., N, N) of some images alone, by their numbers (n,)."""
    return np.asarray(matrices[..., rows[:, None], rows])


def compare(models: Values, subjects: Values, how: str) -> Values:
    """Return how alike RDMs are, (M, S), of pairs (M, P) and (S, P), by one of `COMPARISONS`."""
    rdm = needed("rsatoolbox.rdm", "rsa")
    return np.asarray(rdm.compare(models, subjects, method=COMPARISONS[how]), np.float64)


def noise_ceiling(subjects: Values, how: str) -> tuple[float, float] | None:
    """Return rsatoolbox's lower and upper noise ceiling of pairs (S, P); None of a single subject.

    Of each subject with the mean of the others, and with the mean of all; pooled as the comparison asks.
    """
    if len(subjects) < 2:
        return None
    inference, rdm = needed("rsatoolbox.inference", "rsa"), needed("rsatoolbox.rdm", "rsa")
    with (
        warnings.catch_warnings()
    ):  # of tau-a the ceiling is that of mean ranks, which is the usual one
        warnings.filterwarnings("ignore", message="Noise ceiling for tau")
        low, high = inference.boot_noise_ceiling(rdm.RDMs(subjects), method=COMPARISONS[how])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Comparisons under draws of images and of subjects, with replacement: the dual bootstrap.

    Args:
        value: each model's mean over subjects, (M,).
        draws: the same under draws of both, of subjects alone and of images alone, (3, B, M); of a single
            subject of images alone, (1, B, M).
        subjects: S.
        images: N.
    """

    value: Values
    draws: Values
    subjects: int
    images: int

    @property
    def dof(self) -> int:
        """Degrees of freedom of tests: one less than what is fewer, subjects (where several) or images."""
        return min(self.images, self.subjects if self.subjects > 1 else self.images) - 1

    def spread(self, weights: Values) -> float:
        """Return the standard error of a weighted sum of the models' values, by weights (M,)."""
        extract = needed("rsatoolbox.util.inference_util", "rsa").extract_variances
        series = self.draws @ weights  # (3, B)
        variance = series.var(axis=1, ddof=1)
        if len(series) == 1:
            found = extract(variance.reshape(1, 1), False, None, self.images)[0]
        else:
            found = extract(variance.reshape(3, 1, 1), False, self.subjects, self.images)[0]
        return float(np.sqrt(max(float(np.ravel(found)[0]), 0.0)))

    def interval(self, value: float, spread: float) -> tuple[float, float]:
        """Return the 95 % interval of a value by Student's t."""
        half = float(student.ppf((1 + LEVEL) / 2, self.dof)) * spread
        return value - half, value + half

    def p_value(self, value: float, spread: float) -> float:
        """Return the two-sided p of a value that is 0 where nothing differs, by Student's t."""
        if spread <= ROUNDING:
            return 1.0 if abs(value) <= ROUNDING else 0.0
        return float(2 * student.sf(abs(value) / spread, self.dof))


class Jackknife(Bootstrap):
    """The same where copies of an image would bias a comparison: each image, and subject, is left out once.

    Args:
        of_subjects: how alike each model is to each subject (M, S).
        by_image: the mean over subjects without each image (N, M).
    """

    _of_subjects: Values

    def __init__(self, of_subjects: Values, by_image: Values) -> None:
        count = of_subjects.shape[1]
        super().__init__(of_subjects.mean(axis=1), by_image[None], count, len(by_image))
        object.__setattr__(self, "_of_subjects", of_subjects)

    def spread(self, weights: Values) -> float:
        """Return the standard error of a weighted sum of the models' values, by weights (M,)."""
        without = self.draws[0] @ weights
        variance = (self.images - 1) * float(without.var())
        if self.subjects > 1:
            variance += float((weights @ self._of_subjects).var(ddof=1)) / self.subjects
        return variance**0.5


class _Ranks:
    """Ranks of dissimilarities (M, P) where each counts several times, by a sort of the originals alone."""

    def __init__(self, values: Values) -> None:
        self._order = np.argsort(values, axis=1)
        self._first, self._end = np.empty_like(self._order), np.empty_like(self._order)
        for m, row in enumerate(values):
            ordered = row[self._order[m]]
            self._first[m] = np.searchsorted(ordered, row, side="left")
            self._end[m] = np.searchsorted(ordered, row, side="right")

    def weighted(self, times: Values) -> Values:
        """Return the mean rank (M, P) of each among all, where each is there so many `times` (P,)."""
        below = np.zeros((len(self._order), len(times) + 1))
        np.cumsum(times[self._order], axis=1, out=below[:, 1:])
        first, end = (np.take_along_axis(below, at, axis=1) for at in (self._first, self._end))
        return np.asarray((first + end + 1) / 2)


def bootstrap(models: Values, subjects: Values, how: str, seed: int = 0) -> Bootstrap:
    """Resample images and subjects, and compare anew; pairs of an image with its own copy are left out.

    What `rsatoolbox.inference.eval_dual_bootstrap` computes for fixed models. A model's value is the mean
    over subjects, so that one comparison a draw of images serves for draws of subjects too; and pairs of
    images that were drawn several times are counted, not copied.

    Args:
        models: matrices (M, N, N).
        subjects: matrices (S, N, N).
        how: of `COMPARISONS`.
        seed: of the draws.
    """
    at_once = max(1, BLOCK_BYTES // pairs(subjects[:1]).nbytes)
    if len(models) > at_once:  # each with the draws of all, and in bounded memory
        parts = [
            bootstrap(models[start : start + at_once], subjects, how, seed)
            for start in range(0, len(models), at_once)
        ]
        value, draws = (
            np.concatenate(a, axis=-1)
            for a in zip(*((p.value, p.draws) for p in parts), strict=True)
        )
        return Bootstrap(value, draws, parts[0].subjects, parts[0].images)
    rng = np.random.default_rng(seed)
    count, images = len(subjects), subjects.shape[-1]
    first, second = np.triu_indices(images, 1)
    sides = pairs(models), pairs(subjects)
    ranks = [_Ranks(side) for side in sides] if how == "spearman" else []
    fixed = compare(*sides, how)
    made: list[Values] = []
    while len(made) < RESAMPLES:
        some: Rows = rng.integers(0, images, size=(images,))
        of: Rows = rng.integers(0, count, size=(count,))
        often = np.bincount(some, minlength=images)
        if (often > 0).sum() < LEAST:
            continue
        times = (often[first] * often[second]).astype(np.float64)
        if how == "spearman":
            a, b = (side.weighted(times) for side in ranks)
            a, b = (x - (x @ times / times.sum())[:, None] for x in (a, b))
            drawn = _cosines(a, b, times)
        elif how == "cosine":
            drawn = _cosines(*sides, times)
        else:
            copies = np.repeat(np.arange(len(times)), times.astype(np.intp))
            drawn = compare(sides[0][:, copies], sides[1][:, copies], how)
        kinds = [drawn.mean(axis=1)]
        if count > 1:
            kinds = [drawn[:, of].mean(axis=1), fixed[:, of].mean(axis=1), *kinds]
        made.append(np.stack(kinds))
    return Bootstrap(fixed.mean(axis=1), np.stack(made, axis=1), count, images)


def _cosines(a: Values, b: Values, times: Values) -> Values:
    """Return cosines of vectors (M, P) and (S, P) whose entries are there so many times (P,); else 0."""
    lengths = np.outer(*(np.sqrt(x**2 @ times) for x in (a, b)))
    return np.asarray((a * times) @ b.T / np.where(lengths > 0, lengths, np.inf))


def expect_kind(kind: Any, kinds: Sequence[str]) -> None:
    """Refuse an unknown dissimilarity.

    Raises:
        TaskError: names it.
    """
    if kind not in kinds:
        raise TaskError(f"dissimilarity: expected {', '.join(kinds)}, found {kind!r}")
