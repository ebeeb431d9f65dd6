"""The layer atlas: a task over every layer singly, cumulatively, without each resolution, and pruned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vdvae_repr.errors import TaskError
from vdvae_repr.features import Columns, Features
from vdvae_repr.heads.gram import gram_matrices
from vdvae_repr.latents.base import Latents, same_images
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.results import CONTROLS, Result
from vdvae_repr.tasks import (
    Groups,
    Measurement,
    Wanted,
    features_of,
    names_beside,
    pools_of,
    singly,
)
from vdvae_repr.tasks.problem import Curve, expect_store

SHARES = (0.3, 0.1, 0.03)  # of all latent dimensions, kept by pruning
# Features of a number a latent dimension.
LATENT = ("mean", "log_std", "z", "delta", "prior_mean", "prior_log_std", "kl")
CKA_IMAGES = 2_000


@dataclass(frozen=True)
class Atlas:
    """What `atlas` finds.

    Args:
        rows: of a head and model one is `chosen`, among all. `layer` is a selector: `8x8.2` singly,
            `0:12` all layers up to one, `1x1,4x4` all resolutions but one; or `10 % by kl`.
        nats: spent up to a layer, the images' mean, by the selector of its row: the first layer's name, then
            `0:2` and on; empty where no KL is stored.
        similarity: linear CKA between single layers, (L, L), by feature.
        layers: names of the L layers, by feature.
    """

    rows: list[Result]
    nats: dict[str, float]
    similarity: dict[str, NDArray[np.float64]]
    layers: dict[str, list[str]]

    def rate_accuracy(self) -> pd.DataFrame:
        """Return the nats spent up to each layer beside what all layers up to it are worth."""
        kept = ("head", "feature", "pool", "layer", "dims", "metric", "value", "ci_low", "ci_high")
        table = [
            {"nats": self.nats[row.layer]} | {name: getattr(row, name) for name in kept}
            for row in self.rows
            if row.layer in self.nats and row.model not in CONTROLS
        ]
        return pd.DataFrame(table, columns=["nats", *kept])


def atlas(
    task: str,
    store: Latents,
    *,
    feature: str | Sequence[str] | None = None,
    pool: str | Sequence[str | None] | None = None,
    heads: Sequence[str] | None = None,
    seed: int = 0,
    beside: Sequence[Latents] = (),
    keep: str | Path | None = None,
    notice: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int, str], None] = lambda done, total, line: None,
    curve: Callable[[Curve], None] = lambda curve: None,
    **options: Any,
) -> Atlas:
    """Run a task over a store's layers singly, cumulatively, without each resolution in turn, and pruned.

    Pruning keeps the latent dimensions, of all layers, of the highest mean KL over the images that the task
    may learn from; it needs the feature `kl` in the store.

    Args:
        task: of `TASKS`.
        store: with images for the controls.
        feature: stored feature, or several.
        pool: None, "avg" or "avg:GRID", or several.
        heads: of the task's.
        seed: of all draws.
        beside: stores of the same images from other models, whose layers become rows singly.
        keep: folder of scores.
        notice: receives what the reader must know.
        progress: receives how far it is.
        curve: receives CMC or ROC of chosen rows.
        **options: of the task.

    Raises:
        TaskError: as `run_task`.
    """
    expect_store(store)
    names = features_of(store, feature)
    given = {name: value for name, value in options.items() if value is not None}
    run = Measurement(
        task, store, given, heads=heads, seed=seed, beside=beside, keep=keep, notice=notice,
        progress=progress,
    )  # fmt: skip
    own = store.info.model
    wanted = [
        Wanted(own, store, _groups(store, name), name, how)
        for name in names
        for how in pools_of(pool)
    ]
    wanted += [singly(model, other) for model, other in names_beside(store, beside).items()]
    rows = run.rows(wanted, curve, _pruned(run, names, notice))
    layers = {name: [spec.name for spec in store.distinct("all", name)] for name in names}
    similarity = {}
    for name in names:
        grams = _centred_grams(store, name, notice, seed)
        similarity[name] = linear_cka(grams, grams)
    return Atlas(rows, _nats(store, names), similarity, layers)


def compare(
    a: Latents,
    b: Latents,
    *,
    feature: str | None = None,
    seed: int = 0,
    notice: Callable[[str], None] = lambda line: None,
) -> NDArray[np.float64]:
    """Return linear CKA between the layers of two stores of the same images, (L, M).

    Raises:
        TaskError: other images.
    """
    expect_store(a, "a")
    expect_store(b, "b")
    if a.ids != b.ids:
        raise TaskError(f"{b.path}: expected the images of {a.path} in their order, found others")
    if line := same_images(a, b):
        notice(line)
    one, other = (
        _centred_grams(store, store.default_feature if feature is None else feature, notice, seed)
        for store in (a, b)
    )
    return linear_cka(one, other)


def linear_cka(a: Sequence[NDArray[Any]], b: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Return centred kernel alignment between centred inner products (N, N) each, (len(a), len(b)).

    Source: Kornblith et al. 2019 (arXiv:1905.00414), equation 3 and section 3.1, linear kernel.
    """
    first, second = (np.array([np.linalg.norm(gram) or 1.0 for gram in side]) for side in (a, b))
    products = np.array([[np.vdot(x, y) for y in b] for x in a], dtype=np.float64)
    return np.asarray(products / np.outer(first, second))


def _groups(store: Latents, feature: str) -> Groups:
    """Return every layer, with all layers up to it after it, then all resolutions but one."""
    specs = store.distinct("all", feature)
    groups: Groups = {}
    for number, spec in enumerate(specs, start=1):
        groups[spec.name] = [spec]
        groups[_up_to(specs, number)] = specs[:number]  # the first layer's own row
    resolutions = list(dict.fromkeys(spec.resolution for spec in specs))
    for left in resolutions if len(resolutions) > 2 else []:
        others = [spec for spec in specs if spec.resolution != left]
        groups[",".join(f"{r}x{r}" for r in resolutions if r != left)] = others
    return groups


def _up_to(specs: Sequence[LayerSpec], number: int) -> str:
    """Return the selector of the first layers together."""
    return specs[0].name if number == 1 else f"0:{specs[number - 1].index + 1}"


def _nats(store: Latents, names: Sequence[str]) -> dict[str, float]:
    """Return the mean KL of all layers up to each, nats an image."""
    if not store.has_kl:
        return {}
    spent = store.kl.mean(axis=0, dtype=np.float64).cumsum()
    found = {}
    for specs in (store.distinct("all", name) for name in names):
        for number, spec in enumerate(specs, start=1):
            found[_up_to(specs, number)] = float(spent[spec.index])
    return found


def _pruned(
    run: Measurement, names: Sequence[str], notice: Callable[[str], None]
) -> list[Features]:
    """Return the latent dimensions of highest KL, of all layers together."""
    latent = [name for name in names if name.partition(":")[0] in LATENT]
    store, fitted = run.store, run.problem.fitted
    if "kl" not in store.features or not latent or store.info.pool or not len(fitted):
        notice(
            'no pruning: it takes the features mean or delta, kl in the store (extract with features="kl"), '
            "and images to learn from"
        )
        return []
    specs = store.distinct("all", "kl")
    nats = [
        np.concatenate(
            [b[fitted].mean(axis=0) for b in Columns.of_layer(store, spec, "kl", None).blocks()]
        )
        for spec in specs
    ]
    every = np.sort(np.concatenate(nats))[::-1]
    found = []
    for name in latent:
        columns = run.columns(store, name, None)
        for share in SHARES:
            least = every[max(1, round(share * len(every))) - 1]
            kept = [columns(spec)[own >= least] for spec, own in zip(specs, nats, strict=True)]
            label = f"{share:.0%} by kl".replace("%", " %")
            some = tuple(c for c in kept if c.dims)
            found.append(Features(store.info.model, label, some, name))
    return found


def _centred_grams(
    store: Latents, feature: str, notice: Callable[[str], None], seed: int
) -> list[NDArray[np.float64]]:
    """Return centred inner products of each single layer, of CKA_IMAGES at most."""
    rows = np.arange(len(store))
    if len(rows) > CKA_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, CKA_IMAGES, replace=False))
        notice(
            f"similarity between layers: {CKA_IMAGES} of {len(store)} images, drawn with seed {seed}"
        )
    grams = []
    for spec in store.distinct("all", feature):
        blocks = (block[rows] for block in store.columns(spec.name, feature))
        try:
            (gram,) = gram_matrices(blocks, [(np.arange(len(rows)), "centred")])
        except ValueError as error:
            raise TaskError(f"{store.path}: layer {spec.name}: {error}; extract again") from error
        grams.append(gram.inner)
    return grams
