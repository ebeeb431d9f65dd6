"""Stores of the first version, two stores as one, and stores in a `with`."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.latents.base import Latents
from vdvae_repr.latents.store import JoinedStore

FIRST = Path(__file__).parent / "stores" / "first.h5"  # written by the first version


@pytest.fixture
def eight():
    """The source of which the first version made its store."""
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    return Source(
        name="eight",
        ids=tuple(f"{'train' if i < 5 else 'test'}/{'ab'[i % 2]}/{i}.png" for i in range(8)),
        reader=lambda i: images[i],
        labels=np.array([i % 2 for i in range(8)]),
        label_names=("a", "b"),
        splits=("train",) * 5 + ("test",) * 3,
        factors={"light": images.mean((1, 2, 3)), "hue": np.array(list("rgbrgbrg"))},
    )


def test_a_store_of_the_first_version_opens_reads_and_decodes(tiny, eight):
    """The numbers are what the first version printed when it wrote the store."""
    with vr.open(FIRST) as store:
        X, labels, ids = store.matrix()
        assert (X.shape, ids[5]) == ((8, 580), "test/b/5.png")
        np.testing.assert_allclose(X[1, :3], [-0.03497852, -0.1524557, -0.13715051], rtol=1e-6)
        assert X.sum(dtype=np.float64) == pytest.approx(210.14275307022035)
        assert store.kl.sum(dtype=np.float64) == pytest.approx(96.85811861604452)
        assert labels.tolist() == [0, 1] * 4
        assert store.label_names == ("a", "b")
        assert store.rows("test").tolist() == [5, 6, 7]
        assert list(store.factors["hue"]) == list("rgbrgbrg")
        np.testing.assert_allclose(store.factors["light"], store.images().mean((1, 2, 3)))
        assert (store.info.model, store.info.pool, store.info.draws) == ("tiny", None, None)
        store.verify()
        ((_, images),) = store.decode(tiny)
        assert abs(int(images.astype(int).sum()) - 821519) < 200  # rounding may move a pixel by one
        rows = vr.run_task("classification", store, layers="8x8.1", heads=["knn"])
        assert "8x8.1" in {row.layer for row in rows}


def test_the_first_versions_store_is_complete_to_this_one(tiny, eight, tmp_path):
    """What tells an extraction from another is as it was, so that stores and parts are gone on with."""
    path = tmp_path / "s.h5"
    shutil.copy(FIRST, path)
    lines = []
    store = vr.extract(tiny, eight, path, layers="<=8x8", features=["mean"], report=lines.append)
    assert lines == [f"{path}: already complete"]
    new = vr.extract(tiny, eight, tmp_path / "n.h5", layers="<=8x8", features=["mean"])
    varying = {"created", "versions"}
    assert {k: v for k, v in new.attrs.items() if k not in varying} == {
        k: v for k, v in store.attrs.items() if k not in varying
    }
    np.testing.assert_allclose(new.matrix()[0], store.matrix()[0], atol=1e-5)


@pytest.fixture
def two(tiny, people, tmp_path):
    """Stores of 12 and 8 images of the same model."""
    first, second = people(3, 4, seed=0), people(2, 4, seed=1)
    return tuple(
        vr.extract(tiny, source, tmp_path / f"{name}.h5", mirror=True)
        for name, source in (("a", first), ("b", second))
    )


def test_two_stores_read_as_one(two):
    a, b = two
    whole = np.concatenate([a.matrix("8x8.0")[0], b.matrix("8x8.0")[0]])
    joined = JoinedStore(a, b)
    assert not isinstance(joined, vr.LatentStore)
    assert isinstance(joined, Latents)
    assert len(joined) == len(joined.ids) == len(joined.splits) == 20
    mean = joined["8x8.0"].mean
    assert (len(mean), mean.shape) == (20, (20, 4, 8, 8))
    flat = whole.reshape(20, 4, 8, 8)
    for rows in (
        slice(10, 14),
        slice(0, 0),
        slice(13, None),
        np.array([3, 11, 12, 19]),
        slice(None),
    ):
        assert np.array_equal(mean[rows], flat[rows])
    for row in (0, 11, 12, 19, -1):
        assert np.array_equal(mean[row], flat[row])
    assert np.array_equal(joined.matrix("8x8.0", split="test")[0], whole[12:])
    assert np.array_equal(
        joined.mirrored().matrix("8x8.0")[0][12:], b.mirrored().matrix("8x8.0")[0]
    )
    assert joined.info.source == joined.attrs["source"] == "people -> people"
    joined.verify()


def test_closing_two_stores_closes_both(two):
    with JoinedStore(*two) as joined:
        assert joined.images().shape == (20, 16, 16, 3)
    for store in two:
        with pytest.raises(vr.StoreError, match="is closed"):
            store.matrix("1x1")


def test_a_with_closes_the_file_also_after_an_error(two, tmp_path):
    with pytest.raises(ZeroDivisionError), vr.open(tmp_path / "a.h5") as store:
        _ = 1 / 0
    with pytest.raises(vr.StoreError, match="is closed"):
        store.matrix("1x1")
    assert repr(two[0]).startswith(f"<LatentStore {tmp_path / 'a.h5'}: tiny, 12 images, 5 layers")


def test_attributes_hold_no_bare_nan(two):
    def no_constant(word):
        raise AssertionError(word)

    with h5py.File(two[0].path) as file:
        for value in [*file.attrs.values(), file["labels"].attrs["names"]]:
            if isinstance(value, str) and value.startswith(("[", "{")):
                json.loads(value, parse_constant=no_constant)
