"""Pooling refuses what it cannot know: channels that come last, a class token that is a register."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import vdvae_repr as vr
from vdvae_repr.data.open import open_source
from vdvae_repr.latents.pooling import pool_layer


class ChannelsLast(torch.nn.Module):
    """As Swin's stages in torchvision: (N, H, W, C)."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).repeat(1, 1, 1, 4)


def labelled(images, labels):
    """A source of the images in memory, half of each label to learn from."""
    source = open_source(images)
    splits = ["train" if number < 6 else "test" for number in range(len(images))]
    return replace(source, labels=labels, label_names=("a", "b"), splits=tuple(splits))


@pytest.mark.parametrize("pool", ["avg", "avg:4"])
def test_channels_that_come_last_are_not_averaged(images, tmp_path, pool):
    net = torch.nn.Sequential(ChannelsLast())
    encoder = vr.TorchEncoder(net, layers=["0"], size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(
        vr.LayerError, match=r"found \(16, 16, 12\), which looks like channels last"
    ):
        vr.extract(encoder, images, tmp_path / "p.h5", pool=pool)
    store = vr.extract(encoder, images, tmp_path / "s.h5")
    with pytest.raises(vr.LayerError, match="channels last"):
        store.matrix(feature="activation", pool=pool)
    assert store.matrix(feature="activation")[0].shape == (12, 16 * 16 * 12)


def test_grids_and_tokens_are_averaged_whatever_their_sizes():
    for shape in (
        (2, 16, 16, 16),
        (2, 5, 16, 16),
        (2, 16, 1, 1),
        (2, 1, 1, 1),
        (2, 48, 48),
        (2, 16, 16),
    ):
        values = np.random.default_rng(0).normal(size=shape)
        mean = values.mean(axis=(2, 3)) if len(shape) == 4 else values.mean(axis=1)
        np.testing.assert_allclose(pool_layer(values, "avg")[..., 0, 0], mean)


@pytest.mark.parametrize("pool", ["avg", "avg:2"])
@pytest.mark.parametrize("tokens", [False, True])
def test_means_of_values_whose_sum_float32_does_not_hold_are_finite(pool, tokens):
    values = np.random.default_rng(0).uniform(1e38, 3e38, (2, 3, 8, 8)).astype(np.float32)
    values[1] *= -1
    given = values.reshape(2, 3, 64).transpose(0, 2, 1) if tokens else values
    grid = int(pool.removeprefix("avg").removeprefix(":") or 1)
    side = 8 // grid
    expected = values.astype(np.float64).reshape(2, 3, grid, side, grid, side).mean(axis=(3, 5))
    found = pool_layer(given, pool)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_store_of_pooled_values_near_the_largest_is_finite(images, tmp_path):
    """Pooled as they are stored, and as they are read."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False))
    torch.nn.init.constant_(net[0].weight, 1e37)
    encoder = vr.TorchEncoder(net, layers=["0"], size=16, mean=(0.0,) * 3, std=(1.0,) * 3)
    whole = vr.extract(encoder, images, tmp_path / "w.h5")
    pooled = vr.extract(encoder, images, tmp_path / "p.h5", pool="avg")
    expected = whole["0"].activation[:].astype(np.float64).mean(axis=(2, 3))
    assert expected.max() * 196 > np.finfo(np.float32).max
    np.testing.assert_allclose(pooled["0"].activation[:][..., 0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(whole.matrix(pool="avg")[0], expected, rtol=1e-6)


def test_a_register_is_no_class_token(images, tmp_path):
    """Of a network with registers alone, before and after it is stored."""
    timm = pytest.importorskip("timm")
    from vdvae_repr.encoders.timm import TimmEncoder

    def encoder(**options):
        net = timm.models.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0, **options
        )
        net.pretrained_cfg = {"input_size": (3, 16, 16)}
        return TimmEncoder(net.eval(), "timm:made@random")

    registers = encoder(class_token=False, reg_tokens=2, global_pool="avg")
    both = encoder(class_token=True, reg_tokens=2)
    with pytest.raises(vr.LayerError, match="expected tokens with a class token"):
        vr.extract(registers, images, tmp_path / "p.h5", layers="blocks.0", pool="cls")
    store = vr.extract(registers, images, tmp_path / "s.h5", layers="blocks.0")
    with pytest.raises(vr.LayerError, match="expected tokens with a class token"):
        store.matrix(feature="activation", pool="cls")
    tokens = store["blocks.0"].activation[:]
    np.testing.assert_allclose(
        store.matrix(feature="activation", pool="avg")[0], tokens[:, 2:].mean(axis=1), rtol=1e-5
    )
    other = vr.extract(both, images, tmp_path / "c.h5", layers="blocks.0")
    first = other["blocks.0"].activation[:][:, 0]
    assert np.array_equal(other.matrix(feature="activation", pool="cls")[0], first)
    pooled = tmp_path / "a.h5"
    vr.extract(registers, images, pooled, layers="blocks.0", pool="avg")
    assert vr.extract(registers, images, pooled, layers="blocks.0", pool="avg").info.pool == "avg"


@pytest.mark.parametrize("pool", ["avg:100", "avg:8", "avg:4", "avg"])
def test_a_grid_that_leaves_every_layer_as_it_is_is_said(tiny, images, tmp_path, caplog, pool):
    """Of layers of at most 8x8, grids of 100x100 and 8x8 are no pooling."""
    labels = np.arange(12) % 2
    whole = vr.extract(tiny, labelled(images, labels), tmp_path / "w.h5", layers="<=8x8")
    expected = whole.matrix()[0]
    said = []
    stored = vr.extract(
        tiny, images, tmp_path / "p.h5", layers="<=8x8", pool=pool, report=said.append
    )
    features = vr.LatentTransformer(tiny, layers="<=8x8", pool=pool).fit_transform(images)
    whole.export(tmp_path / "m.npy", pool=pool)
    controls = {"controls": (), "heads": "knn", "cache": None}
    notes = vr.probe(whole, "classification", layers="<=8x8", pools=pool, **controls).notes
    line = f"pool {pool}: no layer chosen is larger than {pool[4:]}x{pool[4:]}, so that nothing is pooled"
    left = pool in ("avg:100", "avg:8")
    for values in (stored.matrix()[0], np.load(tmp_path / "m.npy")):
        assert np.array_equal(values, expected) == left
    assert (features.shape == expected.shape) == left
    assert [line in lines for lines in (said, notes)] == [left] * 2
    assert caplog.messages.count(line) == (
        2 if left else 0
    )  # of the transformer, and of the export
