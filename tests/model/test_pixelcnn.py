"""PixelCNN++: causal, its likelihood and its draws against slow independent computations."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import vdvae_repr as vr
from vdvae_repr.config import (
    PixelCNNConfig,
    load_config,
    model_config_from_json,
    preset_architecture,
    preset_path,
)
from vdvae_repr.model.build import on_meta
from vdvae_repr.model.distributions import LogisticMixture, mixture_draw
from vdvae_repr.model.noise import seeded_noise
from vdvae_repr.model.pixelcnn import PixelCNN, pixel_draws
from vdvae_repr.model.preprocessing import to_input, to_uint8
from vdvae_repr.training.draws import joint_noise

CONFIG = PixelCNNConfig(
    image_size=8,
    width=3,
    blocks=1,
    resolutions=3,
    num_mixtures=2,
    shift=-127.5,
    scale=1 / 64,
)


def made(**changes):
    """A model in float64, so that no comparison hangs on rounding; every zero is replaced."""
    torch.manual_seed(0)
    model = PixelCNN(dataclasses.replace(CONFIG, **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def model():
    return made()


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def seen(model):
    """By output pixel, which input pixels its parameters depend on, (S * S, S * S)."""
    size = model.config.image_size
    x = torch.randn(1, 3, size, size, dtype=torch.float64).requires_grad_()
    out = model.mixture_parameters(x)
    rows = []
    for r, c in itertools.product(range(size), repeat=2):
        (gradient,) = torch.autograd.grad(out[:, :, r, c].sum(), x, retain_graph=True)
        rows.append(gradient.abs().sum(dim=(0, 1)).flatten() > 0)
    return torch.stack(rows)


@pytest.mark.parametrize("changes", [{}, {"resolutions": 1}, {"blocks": 2, "resolutions": 2}])
def test_nothing_depends_on_a_later_pixel_nor_on_its_own(changes):
    assert not seen(made(**changes)).triu().any()


def test_every_earlier_pixel_is_seen():
    found = seen(made(image_size=4, blocks=2, resolutions=2))
    assert torch.equal(found, torch.ones(16, 16, dtype=torch.bool).tril(-1))


class Slow:
    """The network by its definition: every output a sum over the positions that it may read."""

    def __init__(self, model):
        self.config = model.config
        self.weights = {k: v.numpy() for k, v in model.state_dict().items()}

    def conv(self, name, x, rows, columns, stride=1):
        """Output (r, c) reads rows r + rows[i] and columns c + columns[j], if they are inside."""
        direction, gain = self.weights[f"{name}.direction"], self.weights[f"{name}.gain"]
        norm = np.sqrt((direction**2).sum(axis=(1, 2, 3), keepdims=True))
        kernel = gain * direction / norm
        _, height, width = x.shape
        out = np.zeros((len(kernel), height // stride, width // stride))
        out += self.weights[f"{name}.bias"][:, None, None]
        for r, c in np.ndindex(out.shape[1:]):
            for (i, dr), (j, dc) in itertools.product(enumerate(rows), enumerate(columns)):
                at = stride * r + dr, stride * c + dc
                if 0 <= at[0] < height and 0 <= at[1] < width:
                    out[:, r, c] += kernel[:, :, i, j] @ x[:, at[0], at[1]]
        return out

    def enlarged(self, name, x, columns):
        direction, gain = self.weights[f"{name}.direction"], self.weights[f"{name}.gain"]
        norm = np.sqrt((direction**2).sum(axis=(0, 2, 3), keepdims=True))
        kernel = gain * direction / norm
        out = np.zeros((x.shape[0], 2 * x.shape[1], 2 * x.shape[2]))
        out += self.weights[f"{name}.bias"][:, None, None]
        for r, c in np.ndindex(x.shape[1:]):
            for i, (j, dc) in itertools.product(range(2), enumerate(columns)):
                if 0 <= 2 * c + dc < out.shape[2]:
                    out[:, 2 * r + i, 2 * c + dc] += kernel[:, :, i, j].T @ x[:, r, c]
        return out

    @staticmethod
    def elu(x):
        return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)

    def both(self, x):
        return self.elu(np.concatenate([x, -x]))

    def block(self, name, x, columns, beside):
        inside = self.conv(f"{name}.first", self.both(x), (-1, 0), columns)
        if beside:
            inside = inside + self.conv(
                f"{name}.beside", self.both(np.concatenate(beside)), (0,), (0,)
            )
        out = self.conv(f"{name}.second", self.both(inside), (-1, 0), columns)
        values, gates = np.split(out, 2)
        return x + values / (1 + np.exp(-gates))

    def stream(self, name, first, columns, wide, given):
        """Return the last state, and those after every block in their order; `given` holds the other's."""
        states, given, levels = [first], list(given), range(self.config.resolutions)
        outputs = []
        for level in levels:
            if level:
                shrunk = self.conv(
                    f"{name}.shrink.{level - 1}", states[-1], (-1, 0), columns, stride=2
                )
                states.append(shrunk)
            for k in range(self.config.blocks):
                beside = [given.pop(0)] if given else []
                x = self.block(f"{name}.encode.{level}.{k}", states[-1], columns, beside)
                states.append(x)
                outputs.append(x)
        x = states.pop()
        for level in reversed(levels):
            count = self.config.blocks
            if level + 1 < self.config.resolutions:
                x = self.enlarged(f"{name}.enlarge.{level}", x, wide)
                count += 1
            for k in range(count):
                beside = [*([given.pop(0)] if given else []), states.pop()]
                x = self.block(f"{name}.decode.{level}.{k}", x, columns, beside)
                outputs.append(x)
        return x, outputs

    def parameters(self, image):
        """Return the likelihood's raw parameters of one uint8 image (S, S, 3)."""
        config = self.config
        x = (image.astype(np.float64).transpose(2, 0, 1) + config.shift) * config.scale
        x = np.concatenate([x, np.ones_like(x[:1])])
        first = self.conv("downward.enter.0", x, (-2, -1), (-1, 0, 1))
        _, given = self.stream("downward", first, (-1, 0, 1), (-1, 0, 1), [])
        first = self.conv("rightward.enter.0", x, (-1,), (-1, 0, 1))
        first = first + self.conv("rightward.enter.1", x, (-1, 0), (-1,))
        last, _ = self.stream("rightward", first, (-1, 0), (0, 1), given)
        return self.conv("out_conv", self.elu(last), (0,), (0,))

    def nats(self, image):
        """Return -log p of one image: the mass of each value's bin, channel by channel, in plain sums."""
        count, total = self.config.num_mixtures, 0.0
        parameters = self.parameters(image)
        for r, c in np.ndindex(image.shape[:2]):
            p = parameters[:, r, c]
            logits, rest = p[:count], p[count:].reshape(3, 3, count)
            weights = np.exp(logits) / np.exp(logits).sum()
            red, green, blue = image[r, c] / 127.5 - 1
            mass = 0.0
            for k in range(count):
                mean, log_scale, linear = rest[:, 0, k], rest[:, 1, k], np.tanh(rest[:, 2, k])
                means = (
                    mean[0],
                    mean[1] + linear[0] * red,
                    mean[2] + linear[1] * red + linear[2] * green,
                )
                inside = weights[k]
                for value, centre, scale in zip(
                    (red, green, blue), means, np.exp(np.maximum(log_scale, -7)), strict=True
                ):
                    below = 1 / (1 + math.exp(-(value - 1 / 255 - centre) / scale))
                    above = 1 / (1 + math.exp(-(value + 1 / 255 - centre) / scale))
                    if value < -0.999:
                        below = 0.0
                    if value > 0.999:
                        above = 1.0
                    inside *= above - below
                mass += inside
            total -= math.log(mass)
        return total


def test_the_likelihood_equals_a_slow_computation(model, pictures):
    pictures[0, :2] = 0  # the outermost bins
    pictures[0, 2:4] = 255
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    with torch.no_grad():
        elbo = model(tensor, None)
        layers, log_prob = model.log_likelihood(tensor, None)
    slow = Slow(model)
    expected = [slow.nats(image) for image in pictures]
    assert layers == []
    assert (-log_prob).tolist() == pytest.approx(expected, rel=1e-6)
    assert elbo.negative.tolist() == pytest.approx(expected, rel=1e-5)
    assert elbo.kl.shape == (3, 0)


@pytest.mark.parametrize(
    ("changes", "temperature"), [({}, 1.0), ({"resolutions": 1}, 0.7), ({"resolutions": 2}, 0.0)]
)
def test_cached_draws_equal_naive_ones(changes, temperature):
    model = made(**changes)
    config, count = model.config, 2
    draws = pixel_draws(3, count, config)
    parts = draws[:, : config.num_mixtures], draws[:, config.num_mixtures :]
    images = np.zeros((count, 8, 8, 3), np.uint8)
    for r, c in itertools.product(range(8), repeat=2):  # a whole pass a pixel
        x = to_input(torch.from_numpy(images).permute(0, 3, 1, 2), config)
        with torch.no_grad():
            mixture = LogisticMixture.from_parameters(model.mixture_parameters(x).float())
        images[:, r, c] = to_uint8(
            mixture_draw(mixture, *parts, temperature=temperature, rounded=True)
        )[:, r, c]
    drawn = model.sample(count, temperature, seed=3)
    assert np.array_equal(drawn, images)
    assert len(np.unique(drawn)) > 10


def test_an_image_is_drawn_by_its_place_alone(model):
    three = model.sample(3, seed=1)
    assert np.array_equal(model.sample(2, seed=1), three[:2])
    assert not np.array_equal(three[0], three[1])
    assert not np.array_equal(model.sample(1, seed=2), three[:1])


def test_draws_follow_the_likelihood():
    # The first pixel depends on nothing, so that its red has one distribution over all images.
    model = made(image_size=1, resolutions=1)
    count = 4000
    drawn = model.sample(count)[:, 0, 0]
    with torch.no_grad():
        parameters = model.mixture_parameters(torch.zeros(1, 3, 1, 1))
    mixture = LogisticMixture.from_parameters(parameters)
    weights = torch.softmax(mixture.logits, dim=1)[0, :, 0, 0]
    edges = torch.tensor([-math.inf, *(2 * (np.arange(32, 256, 32) - 0.5) / 255 - 1), math.inf])
    centred = edges[:, None] - mixture.means[0, 0, :, 0, 0]
    below = torch.sigmoid(centred / mixture.log_scales[0, 0, :, 0, 0].exp())
    expected = (below.diff(dim=0) * weights).sum(dim=1)
    observed = np.bincount(drawn[:, 0] // 32, minlength=8)
    assert chisquare(observed, count * expected.numpy()).pvalue > 1e-3


def test_dropout_is_a_function_of_the_draws(pictures):
    model = made(dropout=0.5)
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)

    def loss(seed, recompute=()):
        noise = joint_noise(0, seed, 3, slice(0, 3), torch.device("cpu"))
        return model(tensor, noise, recompute).negative.sum()

    assert torch.equal(loss(0), loss(1))  # in eval mode nothing is left out
    model.train()
    whole = loss(0)
    assert torch.equal(loss(0), whole)
    assert not torch.equal(loss(1), whole)
    gradients = torch.autograd.grad(whole, list(model.parameters()))
    again = torch.autograd.grad(loss(0, model.resolutions), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


def test_what_dropout_keeps_is_scaled_up():
    model = made(dropout=0.25, width=50).train()
    mask = model._masks(seeded_noise(0, ["0"], torch.device("cpu")), 0)(0)
    assert mask.shape == (1, 100, 8, 8)
    assert sorted(mask.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert mask.mean().item() == pytest.approx(1, abs=0.02)


def test_the_published_size():
    # openai/pixel-cnn at its own defaults: 160 filters, 5 blocks, each output with a gain and a bias.
    w = 160

    def conv(taps, inputs, outputs):
        return taps * inputs * outputs + 2 * outputs

    def block(taps, beside):
        skip = conv(1, 2 * beside, w) if beside else 0
        return conv(taps, 2 * w, w) + skip + conv(taps, 2 * w, 2 * w)

    downward = conv(6, 4, w) + 15 * block(6, 0) + 17 * block(6, w) + 4 * conv(6, w, w)
    rightward = conv(3, 4, w) + conv(2, 4, w) + 15 * block(4, w) + 17 * block(4, 2 * w)
    rightward += 4 * conv(4, w, w)
    model = on_meta(preset_architecture("pixelcnn_cifar10"))
    assert sum(p.numel() for p in model.parameters()) == downward + rightward + conv(1, w, 100)
    assert model.resolutions == (8, 16, 32)


def test_the_configuration_survives_json_and_toml(tmp_path):
    assert model_config_from_json(CONFIG.to_json()) == CONFIG
    path = tmp_path / "p.toml"
    path.write_text(vr.Config(model=CONFIG).to_toml())
    assert load_config(path).model == CONFIG
    with pytest.raises(vr.ConfigError, match="expected a VDVAE, found kind 'pixelcnn'"):
        vr.ModelConfig.from_json(CONFIG.to_json())
    with pytest.raises(vr.ConfigError, match="expected a VDVAE, found kind 'pixelcnn'"):
        vr.ModelConfig.from_preset("pixelcnn_small")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.image_size=18", "expected a multiple of 4"),
        ("model.zdim=16", "unknown key model.zdim"),
        ("model.nr_filters=160", "did you mean 'width'"),
        ("model.dropout=1.0", "model.dropout must be at most"),
        (
            "model.kind=pixelcn",
            r"model.kind: expected 'pixelcnn' or 'student' \(of a VDVAE no kind\)",
        ),
        ("train.kl_warmup_steps=5", "expected a VDVAE, found a PixelCNN, which has no KL"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(vr.ConfigError, match=message):
        load_config(preset_path("pixelcnn_small"), [override])


def test_what_needs_latents_is_refused_in_one_line(model, pictures, tmp_path):
    about = "expected a VDVAE, found the PixelCNN pixelcnn, which has no latents; load a VDVAE"
    for call in (
        lambda: model.posterior(pictures),
        lambda: model.decode({}),
        lambda: vr.extract(model, pictures, tmp_path / "l.h5"),
    ):
        with pytest.raises(vr.VDVAEReprError) as raised:
            call()
        assert str(raised.value) == about
    with pytest.raises(vr.CheckpointError, match="expected a VDVAE, found PixelCNN"):
        vr.LatentTransformer(model).fit(None)
    with pytest.raises(vr.ConfigError, match="are for VDVAEs, found <PixelCNN"):
        vr.load("pixelcnn_small@random", compile=True)
    with pytest.raises(vr.TaskError, match="whose likelihood is exact; leave it out"):
        vr.evaluate(model, pictures, importance_samples=2)


def test_weights_that_are_not_finite_draw_nothing():
    model = made(image_size=4)
    with torch.no_grad():
        model.out_conv.bias[0] = math.nan
    with pytest.raises(vr.DataError, match="expected a finite likelihood to draw from"):
        model.sample(1)
    for wrong in (-1.0, True):
        with pytest.raises(vr.ConfigError, match="temperature: expected a finite number from 0"):
            model.sample(1, wrong)
