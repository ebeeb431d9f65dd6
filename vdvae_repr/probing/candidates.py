"""Which features compete: layers of stores, singly or together, by feature and pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from vdvae_repr.errors import LayerError, TaskError
from vdvae_repr.latents.base import Latents, same_images
from vdvae_repr.latents.side_by_side import SideBySide, known_of_images, numbered
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.probing.features import Columns, Features
from vdvae_repr.probing.task import Problem, expect_several, several
from vdvae_repr.results import SELECTIONS

SHARES = (0.3, 0.1, 0.03)  # of all latent dimensions, kept by pruning
# Features of a number a latent dimension.
LATENT = ("mean", "log_std", "z", "delta", "prior_mean", "prior_log_std", "kl")
NO_PRUNING = (
    'no pruning: it takes the features mean or delta, kl in the store (extract with features="kl"), '
    "and images to learn from"
)

Groups = dict[str, tuple[str, list[LayerSpec]]]
"""Selections and their layers, by the label of their row, a selector of exactly these layers."""


@dataclass(frozen=True)
class Candidates:
    """Groups of a store's layers under a stored feature and a pooling.

    Args:
        model: its name in rows.
        store: whose layers.
        groups: selections and layers, by the label of their row.
        feature: as it is stored, `z:0` for a draw.
        pool: at reading.
        choosable: whether one may be chosen; draws are compared with means, and are not.
    """

    model: str
    store: Latents
    groups: Groups
    feature: str
    pool: str | None = None
    choosable: bool = True

    @property
    def pooled(self) -> str | None:
        """How the features are pooled, at reading or before."""
        return self.pool or self.store.info.pool


@dataclass(frozen=True)
class Choice:
    """What the arguments of `probe` choose of a store.

    Args:
        layers: selectors.
        features: as they are stored.
        pools: at reading.
        selections: of `SELECTIONS`, how layers are put together.
    """

    layers: Sequence[str | int]
    features: Sequence[str]
    pools: Sequence[str | None]
    selections: Sequence[str]

    @classmethod
    def of(cls, store: Latents, layers: Any, features: Any, pools: Any, selections: Any) -> Choice:
        """Make a choice of what `probe` was given.

        Raises:
            TaskError: names the argument that is of another type.
        """
        selectors = [layers] if isinstance(layers, str | int) else layers
        expect_several(selectors, "layers", str | Integral, "selectors")
        if features is None:
            features = store.default_feature
        ways = several(selections, "selections", str, "names")
        if unknown := [name for name in ways if name not in SELECTIONS]:
            raise TaskError(f"selections: expected {', '.join(SELECTIONS)}, found {unknown[0]!r}")
        if not ways:
            raise TaskError(f"selections: expected one of {', '.join(SELECTIONS)}, found none")
        return cls(
            selectors,
            several(features, "features", str, "names"),
            several(pools, "pools", str | None, "poolings"),
            ways,
        )

    def of_store(self, model: str, store: Latents) -> list[Candidates]:
        """Return what is chosen of a store, by feature and pooling."""
        return [
            Candidates(model, store, self._groups(store, feature), feature, pool)
            for feature in self.features
            for pool in self.pools
        ]

    def beside(self, model: str, other: Latents, store: Latents) -> list[Candidates]:
        """Return what is scored of a store beside another: the same, where the other can have it.

        Layers of another kind of network are scored singly, all of them; so are those of any store where
        some are left out by a rule.

        Raises:
            TaskError: it lacks a layer or a feature.
        """
        mixed = isinstance(store, SideBySide) or isinstance(other, SideBySide)
        alike = not mixed and _is_of_a_vdvae(other) == _is_of_a_vdvae(store)
        if not alike or set(self.selections) & {"without", "pruned"}:
            default = Choice(["all"], [other.default_feature], [None], ["single"])
            return default.of_store(model, other)
        try:
            return self.of_store(model, other)
        except LayerError as error:
            raise TaskError(f"{other.path}: {error}") from error

    def _groups(self, store: Latents, feature: str) -> Groups:
        """Return groups of layers; each layer is followed by all layers up to it."""
        groups: Groups = {}
        if "joint" in self.selections:
            groups |= {str(s): ("joint", store.distinct(s, feature)) for s in self.layers}
        specs = store.distinct(self.layers, feature)
        for number, spec in enumerate(specs, start=1):
            if "single" in self.selections:
                groups.setdefault(spec.name, ("single", [spec]))
            if "cumulative" in self.selections:  # of the first layer the same as by itself
                first = specs[:number]
                groups.setdefault(named(first), ("cumulative", first))
        resolutions = list(dict.fromkeys(spec.resolution for spec in specs))
        if "without" in self.selections and len(resolutions) > 2:
            for left in resolutions:
                others = [spec for spec in specs if spec.resolution != left]
                kept = [f"{r}x{r}" for r in resolutions if r != left]
                whole = store.distinct(kept, feature) == others
                groups.setdefault(",".join(kept) if whole else named(others), ("without", others))
        return groups


def named(specs: Sequence[LayerSpec]) -> str:
    """Return a selector of exactly these layers: a name, runs by index as `0:3`, or both: `5:7,16x16.1`."""
    runs: list[list[LayerSpec]] = []
    for spec in specs:
        if runs and runs[-1][-1].index + 1 == spec.index:
            runs[-1].append(spec)
        else:
            runs.append([spec])
    return ",".join(
        run[0].name if len(run) == 1 else f"{run[0].index}:{run[-1].index + 1}" for run in runs
    )


def nats_by_label(store: Latents, choice: Choice) -> dict[str, float]:
    """Return the mean KL of the layers of each cumulative row together, nats an image, by its label."""
    if not store.has_kl or "cumulative" not in choice.selections:
        return {}
    spent = store.kl.mean(axis=0, dtype=np.float64)
    return {
        named(specs[:number]): float(spent[[spec.index for spec in specs[:number]]].sum())
        for specs in (store.distinct(choice.layers, feature) for feature in choice.features)
        if len(specs) > 1  # one layer by itself is no curve
        for number in range(1, len(specs) + 1)
    }


def pruned(
    store: Latents,
    choice: Choice,
    problem: Problem,
    columns: Callable[[str, LayerSpec], Columns],
) -> list[Features]:
    """Return the latent dimensions of highest mean KL over the images that the problem may learn of.

    Of all layers chosen, together; none where the store holds no KL of each dimension.

    Args:
        store: whose layers.
        choice: of layers and features.
        problem: whose `fitted` images tell the KL.
        columns: makes columns of a feature and a layer.
    """
    latent = [name for name in choice.features if name.partition(":")[0] in LATENT]
    if "kl" not in store.features or not latent or store.info.pool or not len(problem.fitted):
        return []
    specs = store.distinct(choice.layers, "kl")
    nats = [
        np.concatenate(
            [
                block[problem.fitted].mean(axis=0)
                for block in Columns.of_layer(store, spec, "kl", None).blocks()
            ]
        )
        for spec in specs
    ]
    every = np.sort(np.concatenate(nats))[::-1]
    found = []
    for name in latent:
        for share in SHARES:
            least = every[max(1, round(share * len(every))) - 1]
            kept = [
                columns(name, spec)[of_layer >= least]
                for spec, of_layer in zip(specs, nats, strict=True)
            ]
            label = f"{share:.0%} by kl".replace("%", " %")
            some = tuple(part for part in kept if part.dims)
            found.append(Features(store.info.model, label, some, name, selection="pruned"))
    return found


def names_beside(store: Latents, beside: Sequence[Latents]) -> dict[str, Latents]:
    """Return stores by their models' names, numbered from the second of a name on: `faces64 (2)`."""
    called = numbered([of.info.model for of in (store, *beside)])
    return dict(zip(called[1:], beside, strict=True))


def expect_same_images(other: Latents, store: Latents) -> str:
    """Refuse a store of other images; return what the reader must know, or nothing.

    Raises:
        TaskError: other ids, or in another order; other labels or splits, where both have some.
    """
    if other.ids != store.ids:
        raise TaskError(
            f"{other.path}: expected the images of {store.path} in their order, found others"
        )
    for what, own, expected in known_of_images(other, store):
        if any(own) and any(expected) and own != expected:
            raise TaskError(
                f"{other.path}: expected the {what} of {store.path}, found others; "
                "extract both from the same images"
            )
    return same_images(store, other)


def draws_of(drawn: Latents, store: Latents, means: Sequence[Candidates]) -> list[Candidates]:
    """Return one draw of what is chosen of a store, and the mean of the draws, to be compared with means.

    Raises:
        TaskError: a store from which no sampling noise of what is chosen can be told.
    """
    if (drawn.draws or 0) < 2:
        raise TaskError(
            f'{drawn.path}: expected several draws of z; extract with z="sample", draws=8, features="z"'
        )
    for name in ("weights_sha256", "preprocessing", "pool", "mirror"):
        if getattr(drawn.info, name) != getattr(store.info, name):
            raise TaskError(
                f"{drawn.path}: expected the {name} of {store.path}, found another; extract one of them again"
            )
    if others := {item.feature for item in means} - {"mean"}:
        raise TaskError(
            f"draws are compared with the feature mean alone, found {min(others)}; leave it out"
        )
    specs = [spec for item in means for _, group in item.groups.values() for spec in group]
    if missing := [spec.name for spec in specs if spec not in drawn.layers]:
        raise TaskError(f"{drawn.path}: expected draws of layer {missing[0]} too; extract again")
    return [
        replace(item, store=drawn, feature=feature, choosable=False)
        for feature in ("z:0", "z")
        for item in means
    ]


def _is_of_a_vdvae(store: Latents) -> bool:
    return "activation" not in store.features
