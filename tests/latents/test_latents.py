import json
import os
import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

import vdvae_repr as vr
from vdvae_repr.latents import extract as module
from vdvae_repr.model.vdvae import VDVAE


@pytest.fixture
def store(tiny, images, tmp_path):
    return vr.extract(tiny, images, tmp_path / "s.h5", features=("mean", "delta"))


def test_store_holds_what_the_model_says(store, tiny, images):
    read = tiny.posterior(images)
    X, _, ids = store.matrix("8x8.1", "delta")
    torch.testing.assert_close(torch.from_numpy(X), read["8x8.1"].delta.flatten(1))
    assert ids == tuple(str(i) for i in range(12))
    np.testing.assert_allclose(store.kl, read.kl, rtol=1e-5)
    assert np.array_equal(store.images(), images)
    everything, _, _ = store.matrix()
    assert everything.shape == (12, sum(spec.num_dims for spec in tiny.layers))
    assert store.attrs["schema"] == "vdvae-repr/1"
    assert not (store.path.parent / "s.h5.parts").exists()
    store.verify()


def test_bottom_up_is_stored_once_a_resolution(tiny, images, tmp_path):
    store = vr.extract(
        tiny, images, tmp_path / "b.h5", features=("bottom_up", "mean"), layers="<=8x8"
    )
    read = tiny.posterior(images, bottom_up=True)
    X, _, _ = store.matrix(feature="bottom_up")
    expected = torch.cat([read.bottom_up[r].flatten(1) for r in (1, 4, 8)], dim=1)
    torch.testing.assert_close(torch.from_numpy(X), expected, rtol=1e-4, atol=1e-5)
    assert store["8x8.1"].bottom_up.shape == (12, 8, 8, 8)
    transformer = vr.LatentTransformer(tiny, layers="<=8x8", feature="bottom_up")
    np.testing.assert_allclose(transformer.fit_transform(images), X, rtol=1e-4, atol=1e-5)
    store.verify()


def test_pooling(store, tiny, images):
    X, _, _ = store.matrix("16x16", pool="avg:4")
    mean = tiny.posterior(images)["16x16.0"].mean
    expected = torch.nn.functional.avg_pool2d(mean, 4).flatten(1)
    np.testing.assert_allclose(X, expected, atol=1e-5)


def test_resume_gives_the_same_store(tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    whole = vr.extract(tiny, images, tmp_path / "whole.h5", batch_size=2)
    calls = []

    def interrupt(count):
        calls.append(count)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vr.extract(tiny, images, tmp_path / "r.h5", batch_size=2, progress=interrupt)
    assert not (tmp_path / "r.h5").exists()
    assert (tmp_path / "r.h5.parts" / "part-00000.h5").exists()
    resumed = vr.extract(tiny, images, tmp_path / "r.h5", batch_size=2)
    assert np.array_equal(resumed.matrix()[0], whole.matrix()[0])


def test_another_model_on_resume_is_refused(tiny, images, tmp_path):
    def interrupt(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vr.extract(tiny, images, tmp_path / "r.h5", progress=interrupt)
    torch.manual_seed(9)
    with pytest.raises(vr.StoreError, match=r"\(model was 'tiny', is 'other'\);"):
        vr.extract(VDVAE(tiny.config, name="other").eval(), images, tmp_path / "r.h5")


def test_flipped_byte_names_the_layer(store):
    with h5py.File(store.path) as file:
        data = file["layers/002/mean"]
        offset = data.id.get_chunk_info(0).byte_offset
    store.close()
    with store.path.open("r+b") as handle:
        handle.seek(offset + 100)
        byte = handle.read(1)
        handle.seek(offset + 100)
        handle.write(bytes([byte[0] ^ 1]))
    damaged = vr.LatentStore.open(store.path)
    with pytest.raises(vr.StoreError, match=r"layer 8x8\.0 is damaged"):
        damaged.verify()
    with pytest.raises(vr.StoreError, match=r"layer 8x8\.0 is damaged"):
        damaged.matrix("8x8.0")


def test_bad_requests(store, tiny, images, tmp_path):
    with pytest.raises(
        vr.StoreError,
        match=r"already holds another extraction \(features was mean, delta, is mean\); choose",
    ):
        vr.extract(tiny, images, store.path)
    names = [spec.name for spec in store.layers]
    there = f"{len(names)} ({names[0]} to {names[-1]})"
    with pytest.raises(
        vr.StoreError, match=re.escape(f"(layers were {there}, are {names[0]}); choose")
    ):
        vr.extract(tiny, images, store.path, layers=names[0], features=("mean", "delta"))
    with pytest.raises(vr.StoreError, match=r"\(crop was None, is 8\); choose"):
        vr.extract(tiny, images, store.path, crop=8, features=("mean", "delta"))
    again = vr.extract(tiny, images, store.path, features=("mean", "delta"))
    assert again.attrs["created"] == store.attrs["created"]
    with pytest.raises(vr.LayerError, match="unknown feature 'means'; did you mean 'mean'"):
        vr.extract(tiny, images, tmp_path / "x.h5", features=("means",))
    with pytest.raises(vr.LayerError, match="repeats mean"):
        vr.extract(tiny, images, tmp_path / "x.h5", features=("z",))
    with pytest.raises(vr.StoreError, match="no such store"):
        vr.LatentStore.open(tmp_path / "none.h5")
    with pytest.raises(
        vr.StoreError, match=r"give the \.h5 that"
    ) as refused:  # no store is called so
        vr.LatentStore.open(tmp_path / "seen.png")
    assert "--out" not in str(refused.value)
    other = vr.VDVAE(replace(tiny.config, zdim=2), name="other").eval()
    with pytest.raises(
        vr.StoreError, match=r"another extraction \(model was 'tiny', is 'other'\); choose"
    ):
        vr.extract(other, images, store.path, features=("mean", "delta"))
    with pytest.raises(vr.LayerError, match="not stored"):
        store.matrix(feature="z")


def test_folder_that_cannot_be_written(tiny, images, tmp_path, monkeypatch):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # root writes anywhere: let the system call refuse

        def refuse(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(module.Path, "mkdir", refuse)
    with pytest.raises(vr.StoreError, match="cannot be written"):
        vr.extract(tiny, images, folder / "s.h5")


def test_attributes_say_where_it_comes_from(store):
    layers = json.loads(store.attrs["layers"])
    assert [row["name"] for row in layers] == ["1x1.0", "4x4.0", "8x8.0", "8x8.1", "16x16.0"]
    assert json.loads(store.attrs["preprocessing"])["size"] == 16
