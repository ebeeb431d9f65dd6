import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import vdvae_repr as vr
from vdvae_repr.data.open import open_source
from vdvae_repr.model.noise import seeded_noise
from vdvae_repr.training import evaluate as module


def test_terms_are_those_of_the_model(tiny, images):
    found = vr.evaluate(tiny, images, batch_size=5)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        elbo = tiny(tensor, seeded_noise(0, [str(i) for i in range(12)], tiny.device))
    bits = elbo.negative.double() / (math.log(2) * 768)
    assert found.images == 12
    assert found.bits_per_dim == pytest.approx(bits.mean().item(), rel=1e-5)
    error = 1.96 * bits.std().item() / math.sqrt(12)
    assert found.bits_per_dim_interval == pytest.approx(
        (bits.mean().item() - error, bits.mean().item() + error), rel=1e-5
    )
    assert list(found.kl_nats.values()) == pytest.approx(elbo.kl.mean(dim=0).tolist(), rel=1e-4)
    assert sum(found.kl_nats_by_resolution.values()) == pytest.approx(found.rate_nats)


@pytest.mark.parametrize("batch_size", [1, 7, 12])
def test_batch_size_changes_nothing(tiny, images, batch_size):
    one = vr.evaluate(tiny, images, batch_size=4, importance_samples=2)
    other = vr.evaluate(tiny, images, batch_size=batch_size, importance_samples=2)
    assert other.nats == pytest.approx(one.nats, rel=1e-6)
    assert other.importance_bits_per_dim == pytest.approx(one.importance_bits_per_dim, rel=1e-6)
    assert other.active_units == one.active_units


def test_importance_weights_against_torch_distributions(tiny, images):
    count = 5
    found = vr.evaluate(tiny, images[:1], importance_samples=count)
    assert found.bits_per_dim_interval is None
    weights = []
    for draw in range(count):
        name = "0" if draw == 0 else f"0\0draw {draw}"
        read = tiny.posterior(images[:1], z="sample", ids=[name])
        tensor = torch.from_numpy(images[:1]).permute(0, 3, 1, 2)
        with torch.no_grad():
            weight = -tiny(tensor, seeded_noise(0, [name], tiny.device)).distortion.double()
        for layer in read.values():
            p = Normal(layer.prior_mean.double(), layer.prior_log_std.double().exp())
            q = Normal(layer.mean.double(), layer.log_std.double().exp())
            weight += (p.log_prob(layer.z.double()) - q.log_prob(layer.z.double())).sum()
        weights.append(weight)
    bound = torch.logsumexp(torch.cat(weights), dim=0) - math.log(count)
    assert found.importance_bits_per_dim == pytest.approx(
        -bound.item() / (math.log(2) * 768), rel=1e-6
    )


def test_more_importance_samples_tighten_the_bound(tiny, images):
    one, many = (vr.evaluate(tiny, images, importance_samples=k) for k in (1, 20))
    assert many.importance_bits_per_dim < one.importance_bits_per_dim
    assert vr.evaluate(tiny, images).importance_bits_per_dim is None


def test_active_units_are_those_whose_posterior_mean_varies(tiny, images, monkeypatch):
    """Over the images, of all units of a layer. The border is also laid where it divides a layer's units."""
    assert module.ACTIVE_VARIANCE == 0.01
    read = tiny.posterior(images, z="sample")
    variances = {
        name: np.var(layer.mean.numpy().astype(np.float64), axis=0) for name, layer in read.items()
    }
    middle = np.sort(variances["8x8.0"], axis=None)[127:129].mean()
    for border in (0.01, middle):
        monkeypatch.setattr(module, "ACTIVE_VARIANCE", border)
        found = vr.evaluate(tiny, images, batch_size=5).active_units
        assert found == {
            name: (int((variance > border).sum()), variance.size)
            for name, variance in variances.items()
        }
    assert found["8x8.0"] == (128, 256)
    single = vr.evaluate(tiny, images[:1])
    assert all(active == 0 for active, _ in single.active_units.values())


def test_only_the_split_asked_for(tiny, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", **{"train/images": images[:4], "test/images": images[4:]})
    assert vr.evaluate(tiny, tmp_path / "a.npz", split="test").images == 2
    with pytest.raises(vr.DataError, match="it has test, train"):
        vr.evaluate(tiny, open_source(tmp_path / "a.npz"), split="val")
