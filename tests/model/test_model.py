import copy
import dataclasses
import math
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Normal, kl_divergence

import vdvae_repr as vr
from vdvae_repr.config import ModelConfig, load_config, preset_names, preset_path
from vdvae_repr.errors import CheckpointError, ConfigError, DataError, LayerError
from vdvae_repr.model import weights as checkpoint
from vdvae_repr.model.distributions import (
    LogisticMixture,
    gaussian_kl,
    mixture_log_prob,
    mixture_mean,
    mixture_sample,
)
from vdvae_repr.model.layers import LayerSpec, select_layers
from vdvae_repr.model.noise import seeded_noise
from vdvae_repr.model.preprocessing import as_image_tensor, to_input
from vdvae_repr.model.vdvae import VDVAE

PRESETS = {
    "cifar10": (43, 412_432, 39_145_700),
    "imagenet32": (78, 765_216, 119_280_868),
    "imagenet64": (75, 1_451_040, 125_005_860),
    "ffhq256": (66, 4_470_816, 114_874_852),
    "ffhq1024": (70, 27_588_640, 109_366_904),
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_counts(name):
    with torch.device("meta"):
        model = VDVAE(ModelConfig.from_preset(name))
    counts = len(model.layers), sum(spec.num_dims for spec in model.layers)
    assert (*counts, sum(p.numel() for p in model.parameters())) == PRESETS[name]


def test_every_preset_parses():
    assert set(PRESETS) < set(preset_names())
    for name in preset_names():
        load_config(preset_path(name))


def test_unknown_key_has_a_hint():
    with pytest.raises(ConfigError, match="did you mean 'lr'"):
        load_config(preset_path("faces64"), ["train.lrr=1"])
    with pytest.raises(ConfigError, match="expected int"):
        load_config(preset_path("faces64"), ["model.width=wide"])
    assert load_config(preset_path("faces64"), ["train.lr=1e-5"]).train.lr == 1e-5


def test_config_survives_json():
    config = ModelConfig.from_preset("ffhq256")
    assert ModelConfig.from_json(config.to_json()) == config


def test_kl_matches_torch_distributions():
    q_mean, q_log_std, p_mean, p_log_std = torch.randn(4, 2, 3, 4, 4)
    expected = kl_divergence(Normal(q_mean, q_log_std.exp()), Normal(p_mean, p_log_std.exp()))
    torch.testing.assert_close(gaussian_kl(q_mean, q_log_std, p_mean, p_log_std), expected)


def test_mixture_probabilities_sum_to_one():
    """Blue takes all 256 values with red and green fixed; so red and green after summing blue."""
    torch.manual_seed(1)
    parameters = torch.randn(1, 30, 1, 1).expand(256, -1, -1, -1)
    values = (torch.arange(256) - 127.5) / 127.5
    mixture = LogisticMixture.from_parameters(parameters.double())
    x = torch.full((256, 3, 1, 1), values[40].item(), dtype=torch.float64)
    x[:, 2, 0, 0] = values
    blue = mixture_log_prob(mixture, x).logsumexp(0)
    # p(red, green) from a mixture whose blue channel is ignored: sum over components by hand
    from vdvae_repr.model.distributions import channel_log_probs

    one = x[:1]
    first = LogisticMixture(*(part[:1] for part in mixture))
    channels = channel_log_probs(one[:, :, None], first.conditional_means(one), first.log_scales, 8)
    marginal = (channels[:, :2].sum(1) + torch.log_softmax(first.logits, 1)).logsumexp(1)
    torch.testing.assert_close(blue.squeeze(), marginal.squeeze(), atol=1e-6, rtol=1e-6)
    red = channel_log_probs(values.double(), torch.tensor(0.3), torch.tensor(-2.0), 8)
    assert math.isclose(red.exp().sum().item(), 1, abs_tol=1e-5)


def test_mixture_samples_have_its_mean():
    torch.manual_seed(2)
    parameters = torch.randn(1, 20, 1, 1) * 0.3
    parameters[:, 4:6] = parameters[:, 10:12] = parameters[:, 16:18] = -4.0  # narrow scales
    mixture = LogisticMixture.from_parameters(parameters.expand(20_000, -1, -1, -1))
    drawn = mixture_sample(mixture, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), mixture_mean(mixture)[0], atol=0.02, rtol=0)


def test_seeded_noise_is_standard_normal_and_per_image(tiny):
    spec = tiny.layers[-1]
    ids = [str(i) for i in range(64)]
    noise = seeded_noise(3, ids, torch.device("cpu"))(spec)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    alone = seeded_noise(3, ["5"], torch.device("cpu"))(spec)
    assert torch.equal(alone[0], noise[5])


def test_where_modules_are_called_by_numbers_a_number_is_a_name():
    layers = [LayerSpec(index, name, 0, (4,)) for index, name in enumerate(("0", "3"))]
    assert select_layers(layers, "3") == (layers[1],)
    assert select_layers(layers, "1:2") == (layers[1],)
    with pytest.raises(vr.LayerError, match="no layer matches '1'"):
        select_layers(layers, "1")


def test_selectors(tiny):
    def names(selector):
        return [spec.name for spec in select_layers(tiny.layers, selector)]

    assert names("8x8") == ["8x8.0", "8x8.1"]
    assert names("8x8.1,0") == ["1x1.0", "8x8.1"]
    assert names("1:3") == ["4x4.0", "8x8.0"]
    assert names("<=4x4") == ["1x1.0", "4x4.0"]
    assert names(["16x16", "1x1"]) == ["1x1.0", "16x16.0"]
    for unknown in ("32x32", "8x8.7", "8x4", "99", "eight", ""):
        with pytest.raises(LayerError, match="the layers are"):
            names(unknown)


def test_places_count_where_a_module_is_called_as_a_kernel_is():
    layers = [LayerSpec(i, f"conv3x3.{i}", 8, (4, 8, 8)) for i in range(2)]
    assert select_layers(layers, "8x8.1") == (layers[1],)
    layers = [LayerSpec(i, f"faces64.8x8.{i}", 8, (4, 8, 8)) for i in range(2)]
    with pytest.raises(LayerError, match=r"no layer matches '8x8\.1'"):
        select_layers(layers, "8x8.1")  # the number in the name counts


def test_posterior_does_not_depend_on_the_batch(tiny, images):
    whole = tiny.posterior(images, z="sample", ids=[f"i{k}" for k in range(12)])
    one = tiny.posterior(images[7:8], z="sample", ids=["i7"])
    for name in whole:
        torch.testing.assert_close(one[name].z, whole[name].z[7:8], atol=1e-4, rtol=1e-4)


def test_decoding_a_posterior_is_decoding_its_latents(tiny, images):
    read = tiny.posterior(images)
    a = tiny.decode(read)
    b = tiny.decode({name: layer.z.numpy() for name, layer in read.items()})
    assert a.shape == images.shape
    assert a.dtype == np.uint8
    assert np.array_equal(a, b)
    with pytest.raises(LayerError, match="expected latents"):
        tiny.decode({"8x8.0": np.zeros((2, 4, 4, 4), np.float32)})


def test_samples_are_seeded_and_temperature_zero_is_the_prior_mean(tiny):
    assert np.array_equal(tiny.sample(3, 0.8, seed=4), tiny.sample(3, 0.8, seed=4))
    assert not np.array_equal(tiny.sample(3, 0.8, seed=4), tiny.sample(3, 0.8, seed=5))
    assert len(np.unique(tiny.sample(3, 0.0), axis=0)) == 1


def test_wrong_images_are_refused(tiny, images):
    with pytest.raises(DataError, match="expected images of shape"):
        tiny.posterior(images[:, :8])
    with pytest.raises(DataError, match="expected floats from 0 to 1"):
        tiny.posterior(images.astype(np.float32))
    with pytest.raises(DataError, match="expected finite pixels, found NaN"):
        tiny.posterior(np.where(images > 200, np.nan, images / 255))


def test_floats_may_go_beyond_white_by_what_resampling_adds(tiny, images):
    bright = np.where(images > 200, 255, images).astype(np.uint8)
    floats = bright / np.float32(255) * np.float32(1 + 1e-6) - np.float32(1e-7)
    assert floats.max() > 1
    assert floats.min() < 0
    for beyond in (1.0002, -0.0002):
        with pytest.raises(DataError, match="expected floats from 0 to 1"):
            tiny.posterior(np.full(images.shape, beyond))
    tiny.posterior(np.full(images.shape, 1.00009))
    read, exact = tiny.posterior(floats), tiny.posterior(bright)
    assert all(torch.equal(read[name].mean, exact[name].mean) for name in exact)


def test_weights_round_trip(tiny, tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.save(tiny, path, record={"steps": 1})
    loaded = checkpoint.load(path)
    assert checkpoint.weights_sha256(loaded) == checkpoint.weights_sha256(tiny)
    assert loaded.name == "tiny"


def test_published_file_is_recognised_by_its_shapes(tmp_path, monkeypatch, tiny):
    state = {f"module.{k}": v for k, v in _published(tiny).items()}
    torch.save(state, tmp_path / "m.th")
    monkeypatch.setattr(checkpoint, "preset_names", lambda: ["tiny"])
    monkeypatch.setattr(checkpoint, "preset_architecture", lambda name: tiny.config)
    loaded = checkpoint.load(tmp_path / "m.th")
    assert checkpoint.weights_sha256(loaded) == checkpoint.weights_sha256(tiny)


def test_another_architecture_names_the_first_differences(tmp_path, tiny):
    torch.save(_published(tiny), tmp_path / "m.th")
    with pytest.raises(CheckpointError, match="fits no preset"):
        checkpoint.load(tmp_path / "m.th")
    with pytest.raises(CheckpointError, match=r"is missing|expected \("):
        checkpoint.load(tmp_path / "m.th", preset="faces64")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_malicious_pickle_is_not_executed(tmp_path):
    victim = tmp_path / "executed"
    torch.save({"w": Malicious(victim)}, tmp_path / "m.th")
    with pytest.raises(CheckpointError, match="nothing was run"):
        checkpoint.load(tmp_path / "m.th")
    (tmp_path / "raw.th").write_bytes(pickle.dumps(Malicious(victim)))
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "raw.th")
    assert not victim.exists()


def test_missing_and_damaged_weights(tmp_path):
    with pytest.raises(CheckpointError, match="did you mean 'faces64'"):
        checkpoint.load("faces46")
    (tmp_path / "m.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="not a readable"):
        checkpoint.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["faces64", "natural64"])
def test_packaged_models(name):
    model = checkpoint.load(name)
    resolutions = [spec.resolution for spec in model.layers]
    assert len(resolutions) >= 20
    assert all(resolutions.count(r) > 1 for r in (4, 8, 16, 32))
    assert sum(p.numel() for p in model.parameters()) <= 4_800_000
    assert (checkpoint.WEIGHTS_FOLDER / f"{name}.safetensors").stat().st_size <= 10_000_000


@pytest.mark.parametrize("name", checkpoint.packaged_names())
def test_a_packaged_file_of_which_a_byte_was_turned_is_refused(tmp_path, name):
    content = bytearray((checkpoint.WEIGHTS_FOLDER / f"{name}.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="do not match their SHA-256"):
        checkpoint.load(tmp_path / "m.safetensors")


def _published(model):
    """The model's weights under the published names."""
    pairs = [
        ("bottom_up.in_conv", "encoder.in_conv"),
        ("bottom_up.blocks", "encoder.enc_blocks"),
        ("top_down.blocks", "decoder.dec_blocks"),
        ("top_down.constants", "decoder.bias_xs"),
        ("top_down.out_conv", "decoder.out_net.out_conv"),
        ("top_down.gain", "decoder.gain"),
        ("top_down.bias", "decoder.bias"),
        (".posterior.", ".enc."),
    ]
    renamed = {}
    for key, value in model.state_dict().items():
        for ours, theirs in pairs:
            key = key.replace(ours, theirs)
        renamed[key] = value
    return renamed


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is not in this build")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "changes", [{}, {"no_bias_above": 4, "widths": "4:12,1:20", "unpool": "transposed"}]
)
def test_fused_inference_equals_the_plain_pass(tiny, images, changes, count):
    torch.manual_seed(1)
    model = VDVAE(dataclasses.replace(tiny.config, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x = to_input(torch.from_numpy(images[:count]).permute(0, 3, 1, 2), tiny.config)
    noise = seeded_noise(0, [str(i) for i in range(count)], tiny.device)
    for drawn in (None, noise):
        plain, kl, states, activations = model.infer(x, drawn)  # under gradients, by the blocks
        with torch.no_grad():
            fused, fused_kl, fused_states, fused_activations = model.infer(x, drawn)
        assert plain[-1].mean.requires_grad
        assert not fused[-1].mean.requires_grad
        for expected, found in zip(plain, fused, strict=True):
            for field in dataclasses.fields(expected):
                one, other = getattr(expected, field.name), getattr(found, field.name)
                scale = float(one.detach().abs().max())
                torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * max(scale, 1e-3))
        torch.testing.assert_close(fused_kl, kl, rtol=1e-4, atol=1e-4)
        for resolution, state in states.items():
            torch.testing.assert_close(fused_states[resolution], state, rtol=1e-4, atol=1e-4)
        for resolution, activation in activations.items():
            found = fused_activations[resolution]
            torch.testing.assert_close(found, activation, rtol=1e-4, atol=1e-4)


def test_the_state_after_a_layer_is_made_when_asked_for(tiny, images):
    assert tiny.posterior(images)["16x16.0"].top_down is None
    asked = tiny.posterior(images, "8x8", top_down=True)
    with torch.no_grad():
        whole, *_ = tiny.infer(
            to_input(torch.from_numpy(images).permute(0, 3, 1, 2), tiny.config), None
        )
    torch.testing.assert_close(asked["8x8.1"].top_down, whole[3].top_down)
    assert list(asked) == ["8x8.0", "8x8.1"]
    assert asked.kl.shape == (12, 4)


@pytest.mark.parametrize(
    "temperature", [float("nan"), float("inf"), -1.0, True, [1.0] * 4 + [float("nan")]]
)
def test_a_temperature_that_is_none_is_refused(tiny, temperature):
    with pytest.raises(vr.LayerError, match="temperature: expected finite numbers from 0"):
        tiny.sample(1, temperature)


def test_an_image_that_is_not_finite_is_no_black_image(tiny, images):
    read = tiny.posterior(images[:3])
    given = {name: layer.z.clone() for name, layer in read.items()}
    given["16x16.0"][1, 0, 3, 3] = torch.nan
    with pytest.raises(vr.DataError, match="image 'b': expected a finite likelihood"):
        tiny.decode(given, ids=["a", "b", "c"])


def test_draws_that_grow_beyond_float32_say_what_to_do(tiny, images):
    """The prior's deviations have no bound: here that of one layer is e^70."""
    model = copy.deepcopy(tiny)
    block = model.top_down.block(model.layers[2])
    block.prior.c4.bias.data[block.zdim : 2 * block.zdim] = 70.0
    given = {"1x1.0": tiny.posterior(images[:2], layers="1x1")["1x1.0"].z}
    message = r"image '0'.*draws grew beyond what float32 holds; take another seed"
    with pytest.raises(vr.DataError, match=message + ', a lower temperature or rest="mean"'):
        model.decode(given, rest="sample", seed=3)
    with pytest.raises(vr.DataError, match=message + " or a lower temperature"):
        model.sample(2, seed=3)
    assert model.decode(given, rest="mean").shape == (2, 16, 16, 3)
    given["1x1.0"][0] = torch.nan
    with pytest.raises(vr.DataError, match="look at the latents and the weights"):
        model.decode(given, rest="sample", seed=3)


def test_grey_and_float_images_are_read_as_their_uint8_in_color(tiny):
    """As scikit-learn's faces come: (N, S, S) float32 from 0 to 1."""
    grey = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    color = np.repeat(grey[..., None], 3, axis=3)
    expected = tiny.posterior(color, layers="4x4")["4x4.0"].mean
    floats = (grey / 255).astype(np.float32)
    forms = [
        grey, grey[..., None], floats, floats[..., None], floats.astype(np.float64), color / 255,
        torch.as_tensor(floats), [Image.fromarray(image) for image in grey], list(color), list(floats),
    ]  # fmt: skip
    for images in forms:
        assert torch.equal(tiny.posterior(images, layers="4x4")["4x4.0"].mean, expected)
    for wrong, message in (
        (floats * 2, "floats from 0 to 1, found 0"),
        (floats * np.nan, "expected finite pixels, found NaN"),
        (floats.reshape(3, -1), r"X.reshape\(-1, 16, 16\)"),
        (grey.astype(np.int64), "int64; resize"),
    ):
        with pytest.raises(DataError, match=message):
            tiny.posterior(wrong, layers="4x4")


def test_pil_images_of_any_mode_are_read_as_files_are(tiny):
    """The depth of a mode says what is white; transparency lies over white."""
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = Image.fromarray(ramp)
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    white = Image.new("RGB", (16, 16), "white")
    pairs = [
        (Image.fromarray(ramp.astype(np.uint16) * 257), grey),
        (Image.fromarray(ramp.astype(np.float32) / 255), grey),
        (clear, white),
        (grey, grey.convert("RGB")),
    ]
    for image, same in pairs:
        pixels = as_image_tensor([image, same], 16)
        assert torch.equal(pixels[0], pixels[1])
    with pytest.raises(DataError, match="whole numbers of 32 bits"):
        as_image_tensor([Image.fromarray(ramp.astype(np.int32))], 16)


def test_arrays_that_are_read_backwards_or_only(images):
    images.flags.writeable = False
    assert np.array_equal(as_image_tensor(images, 16).permute(0, 2, 3, 1).numpy(), images)
    mirrored = as_image_tensor(images[:, :, ::-1], 16).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(mirrored, images[:, :, ::-1])


def test_an_infinite_kl_is_said_to_be_that_with_a_way_on(tiny, images):
    """A prior of deviation exp(-60): squared, what float32 does not hold; nothing else is infinite."""
    net = copy.deepcopy(tiny)
    zdim = tiny.config.zdim
    with torch.no_grad():
        net.top_down.blocks[2].prior.c4.weight[zdim : 2 * zdim] = 0
        net.top_down.blocks[2].prior.c4.bias[zdim : 2 * zdim] = -60
    name = net.layers[2].name
    with pytest.raises(
        vr.DataError,
        match=f"KL of layer {name}: expected finite values, found infinity for image 'b'",
    ) as told:
        net.posterior(images[:2], ids=["b", "c"])
    assert "leave the image out, or read the layers before it alone" in str(told.value)
    way_on = re.search(r'layers="(.*)"', str(told.value))[1]
    read = net.posterior(images[:2], way_on)
    assert list(read) == [spec.name for spec in net.layers[:2]]
    assert read.kl.isfinite().all()
    means = vr.LatentTransformer(net, layers=name).fit_transform(images[:2])
    assert np.isfinite(means).all()


@pytest.mark.parametrize(
    ("which", "options"),
    [("z", {"z": "sample"}), ("top_down", {"top_down": True}), ("bottom_up", {"bottom_up": True})],
)
def test_nothing_that_is_handed_out_is_infinite_where_the_kl_is_finite(
    tiny, images, which, options
):
    net = copy.deepcopy(tiny)
    infer = net.infer

    def with_infinity(*arguments, **keywords):
        layers, kl, states, activations = infer(*arguments, **keywords)
        value = activations[8] if which == "bottom_up" else getattr(layers[3], which)
        value[1, 0, 2, 3] = np.inf
        assert kl.isfinite().all()
        return layers, kl, states, activations

    net.infer = with_infinity
    name = "8x8" if which == "bottom_up" else net.layers[3].name
    with pytest.raises(vr.DataError, match=f"{which} of layer {name}: .* infinity for image '1'"):
        net.posterior(images[:3], **options)
