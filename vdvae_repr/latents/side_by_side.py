"""The layers of several stores of the same images as those of one store."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import StoreError
from vdvae_repr.latents.base import Array, Latents, read_otherwise, same_images
from vdvae_repr.model.layers import LayerSpec


def side_by_side(*stores: Latents, weights: Sequence[float] | None = None) -> SideBySide:
    """Put the layers of several encoders side by side, so that they can be read and probed together.

    The stores are of the same images in the same order; nothing is copied. Layers keep their names; where two
    stores have a layer of one name, the layers of both are called by their encoder too, `faces64.8x8.0`, and
    `faces64` selects all of them. They are numbered anew, the first store's first. Features that all stores
    have keep their names; where there are none, as of a VDVAE and another network, there is one, of each
    store its default: `mean+activation`. Images are those of the first store that keeps them.

    Args:
        stores: two or more, open; closing what is returned closes them.
        weights: what the values of each store are multiplied by; 1 if not given. Encoders whose values are
            of different size need them, as else the larger values decide what is near: 1 over the root mean
            square distance from the mean, of the images that may be learned from.

    Raises:
        StoreError: fewer than two stores, other images, labels or splits, two layers of one name although
            they are called by their encoders, or weights that are not one positive number each.

    Examples:
        A layer of a VDVAE and one of another network:

        >>> import tempfile, torch, vdvae_repr as vr
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1))
        >>> other = vr.TorchEncoder(net, layers=["0"], size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> digits = vr.open_source("digits", rows="0:4")
        >>> folder = tempfile.TemporaryDirectory()
        >>> first = vr.extract(vr.load("faces64"), digits, f"{folder.name}/a.h5", layers="4x4.0")
        >>> second = vr.extract(other, digits, f"{folder.name}/b.h5")
        >>> with vr.side_by_side(first, second) as both:
        ...     both.features, both.matrix("4x4.0,0")[0].shape  # 16 * 4 * 4 + 8 * 8 * 8
        (('mean+activation',), (4, 768))
        >>> folder.cleanup()
    """
    return SideBySide(stores, weights)


class SideBySide(Latents):
    """What `side_by_side` returns: a view of several stores, which are read as one."""

    def __init__(self, stores: Sequence[Latents], weights: Sequence[float] | None = None) -> None:
        self.stores = tuple(stores)
        for store in self.stores:
            if not isinstance(store, Latents):
                raise StoreError(
                    f"side_by_side: expected open stores, found {type(store).__name__}; "
                    "vr.open('latents.h5') opens one"
                )
        if len(self.stores) < 2:
            raise StoreError(f"side_by_side: expected two stores or more, found {len(self.stores)}")
        self.weights = _positive(weights, len(self.stores))
        first, *others = self.stores
        for store in others:
            _expect_same_rows(store, first)
        about = (f(first, store) for store in others for f in (same_images, read_otherwise))
        self.notices = tuple(filter(None, about))
        self.path = Path(" beside ".join(str(store.path) for store in self.stores))
        self.ids, self.splits = first.ids, first.splits
        self.labels, self.label_names = first.labels, first.label_names
        self.reads_mirrored = first.reads_mirrored
        self._features = self._named_features()
        names = _names(self.stores)
        self._of = {
            name: (number, spec)
            for number, (store, own) in enumerate(zip(self.stores, names, strict=True))
            for name, spec in zip(own, store.layers, strict=True)
        }
        infos = [store.info for store in self.stores]
        pools = {info.pool for info in infos}
        self.info = replace(
            first.info,
            model="+".join(info.model for info in infos),
            config=json.dumps({"side_by_side": [json.loads(info.config) for info in infos]}),
            weights_sha256="+".join(info.weights_sha256 for info in infos),
            layers=tuple(
                replace(spec, index=index, name=name)
                for index, (name, (_, spec)) in enumerate(self._of.items())
            ),
            features=tuple(self._features),
            draws=first.info.draws if len({info.draws for info in infos}) == 1 else None,
            mirror=all(info.mirror for info in infos),
            pool=first.info.pool if len(pools) == 1 else "+".join(i.pool or "none" for i in infos),
        )
        self.attrs = first.attrs | {"model": self.info.model}

    def _named_features(self) -> dict[str, tuple[str, ...]]:
        """Return what each feature is called in each store."""
        first, *others = self.stores
        common = [name for name in first.features if all(name in of.features for of in others)]
        if common:
            return {name: (name,) * len(self.stores) for name in common}
        defaults = tuple(store.default_feature for store in self.stores)
        return {"+".join(defaults): defaults}

    def close(self) -> None:
        """Close all stores."""
        for store in self.stores:
            store.close()

    @property
    def tested_path(self) -> Path:
        """The file that scores lie beside: that of the first store."""
        return self.stores[0].tested_path

    def mirrored(self) -> SideBySide:
        """Return the mirrored images of all stores."""
        return SideBySide([store.mirrored() for store in self.stores], self.weights)

    @property
    def factors(self) -> dict[str, Array]:
        """The first store's known factors, (N,) each."""
        return self.stores[0].factors

    @property
    def checksums(self) -> tuple[str, NDArray[np.uint64]] | None:
        """What each image was made of, as the first store records it."""
        return self.stores[0].checksums

    @property
    def kl(self) -> NDArray[np.float32]:
        """Nothing: each store has one of its own.

        Raises:
            StoreError: always.
        """
        raise StoreError(f"{self.path}: has no kl of all encoders; read that of one store")

    @property
    def has_kl(self) -> bool:
        """False: nats of several encoders are not of one code."""
        return False

    @property
    def has_images(self) -> bool:
        """Whether one of the stores keeps its images."""
        return any(store.has_images for store in self.stores)

    def images(self) -> NDArray[np.uint8]:
        """Return the images of the first store that keeps them."""
        keeping = [store for store in self.stores if store.has_images]
        return (keeping or self.stores)[0].images()

    def digest(self, spec: LayerSpec, feature: str) -> str:
        """Return a hash of a layer's stored values and their weight."""
        number, own = self._of[spec.name]
        stored = self.stores[number].digest(own, self._feature(feature, number))
        return stored if self.weights[number] == 1 else f"{stored}*{self.weights[number]!r}"

    def verify(self) -> tuple[str, ...]:
        """Read everything in all stores once; return lines about what could not be checked."""
        return tuple(f"{store.path}: {line}" for store in self.stores for line in store.verify())

    def key(self, spec: LayerSpec, feature: str) -> str:
        """Return the path of a layer's feature in its store, behind the store's number.

        Raises:
            LayerError: it is not stored.
        """
        super().key(spec, feature)  # refuses an unknown feature
        number, own = self._of[spec.name]
        return f"{number}:{self.stores[number].key(own, self._feature(feature, number))}"

    def array_shape(self, key: str) -> tuple[int, ...]:
        """Return the shape (N, ...) of an array by its key."""
        number, own = _parts(key)
        return self.stores[number].array_shape(own)

    def read(self, key: str, what: str, rows: Any = slice(None)) -> Array:
        """Read rows of an array by its key, times its store's weight."""
        number, own = _parts(key)
        values = self.stores[number].read(own, what, rows)
        weight = self.weights[number]
        return values if weight == 1 else np.asarray(values * np.float32(weight))

    def _feature(self, feature: str, number: int) -> str:
        """Return what a feature, or a draw of it, is called in a store."""
        name, colon, draw = feature.partition(":")
        return self._features[name][number] + colon + draw


def numbered(names: Sequence[str]) -> list[str]:
    """Return names, numbered from the second of a name on: `faces64 (2)`."""
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{n} ({count + 1})" if count else n for n, count in zip(names, before, strict=True)]


def _parts(key: str) -> tuple[int, str]:
    number, _, own = key.partition(":")
    return int(number), own


def _positive(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * count
    if not all(
        isinstance(w, Real) and not isinstance(w, bool) and math.isfinite(w) and w > 0
        for w in weights
    ):
        raise StoreError(f"weights: expected positive numbers, found {list(weights)!r:.80}")
    if len(weights) != count:
        raise StoreError(f"weights: expected one of each of {count} stores, found {len(weights)}")
    return tuple(float(w) for w in weights)


def _expect_same_rows(store: Latents, first: Latents) -> None:
    """Refuse a store whose images, their order, labels or splits are not those of the first."""
    if store.ids != first.ids:
        if set(store.ids) == set(first.ids):
            found = "the same in another order"
        else:
            other = next(
                i for i in (*store.ids, *first.ids) if (i in store.ids) != (i in first.ids)
            )
            found = f"others, as {other!r}, which only one of them has"
        raise StoreError(
            f"{store.path}: expected the images of {first.path} in their order, found {found}; "
            "extract both from the same images"
        )
    unlike = [what for what, own, expected in known_of_images(store, first) if own != expected]
    if store.reads_mirrored != first.reads_mirrored:
        unlike.append("mirrored")
    if unlike:
        raise StoreError(
            f"{store.path}: expected the {unlike[0]} of {first.path}, found others; "
            "extract both from the same images"
        )


def known_of_images(
    store: Latents, first: Latents
) -> Iterator[tuple[str, Sequence[str | None], Sequence[str | None]]]:
    """Yield what both stores say of their images: its name, that of the one, (N,), and that of the other."""
    own, expected = (
        [of.label_names[k] if k >= 0 else None for k in of.labels] for of in (store, first)
    )
    yield "labels", own, expected
    yield "splits", store.splits, first.splits


def _names(stores: Sequence[Latents]) -> list[list[str]]:
    """Return the names of each store's layers: behind their encoder's where another store has one of them."""
    holders = Counter(spec.name for store in stores for spec in store.layers)
    called = numbered([store.info.model for store in stores])
    names = [
        [f"{model}.{spec.name}" if clash else spec.name for spec in store.layers]
        for model, store in zip(called, stores, strict=True)
        for clash in [any(holders[spec.name] > 1 for spec in store.layers)]
    ]
    for name, count in Counter(name for own in names for name in own).items():
        if count > 1:  # as of stores that stand side by side already, beside one of them
            raise StoreError(
                f"side_by_side: two layers would be called {name!r}; give all stores in one call"
            )
    return names
