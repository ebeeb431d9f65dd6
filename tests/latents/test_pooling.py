"""Pooling refuses what it cannot know: channels that come last, a class token that is a register."""

import numpy as np
import pytest
import torch

import vdvae_repr as vr
from vdvae_repr.latents.pooling import pool_layer


class ChannelsLast(torch.nn.Module):
    """As Swin's stages in torchvision: (N, H, W, C)."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).repeat(1, 1, 1, 4)


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
