"""brain-diffuser's arithmetic, written anew after its scripts, against docs/brain_diffuser.md's options.

Its random numbers are torch's global ones; here both get the numbers that a store is made with.
"""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as vision

import vdvae_repr as vr

NUM_LATENTS = 4  # of the small model's 5, as 31 of 75
SEED = 3


def seeded(image_id, what, length):
    """The number that a draw starts from, by (seed, image id, what is drawn): docs/brain_diffuser.md."""
    digest = hashlib.sha256(f"{SEED}\0{image_id}\0{what}".encode()).digest()
    return int.from_bytes(digest[:length], "little")


def noise(ids, layer, shape):
    """Standard normal numbers (N, *shape) of one layer."""
    rngs = [np.random.Generator(np.random.Philox(seeded(i, layer, 16))) for i in ids]
    return torch.from_numpy(np.stack([rng.standard_normal(shape, np.float32) for rng in rngs]))


@pytest.fixture
def stimuli(tmp_path):
    """Photographs of NSD's kind, squares larger than the model's, train and test, in one file."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 12, 12, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(i).resize((41, 41))) for i in small])
    np.savez(tmp_path / "nsd.npz", train_images=images[:6], test_images=images[6:])
    return images[:6], images[6:]


def preprocess(model, images):
    """`T.functional.resize(img, (64, 64))`, to float, shifted and scaled: (N, 3, S, S)."""
    size = model.config.image_size
    resized = [np.array(vision.resize(Image.fromarray(image), (size, size))) for image in images]
    x = torch.tensor(np.stack(resized)).float().permute(0, 3, 1, 2)
    return (x + model.config.shift) * model.config.scale


def bottleneck(block, x):
    """Four convolutions, a GELU before each."""
    for layer in (block.c1, block.c2, block.c3, block.c4):
        x = layer(torch.nn.functional.gelu(x))
    return x


def top_down(model, count, activations, latents, eps):
    """The published decoder: with activations it reads z, else it takes the latents given and draws the rest.

    Returns the likelihood's parameters (N, 10 K, S, S), and every layer's z.
    """
    decoder, zdim, z_all = model.top_down, model.config.zdim, []
    states = {c.shape[2]: c.repeat(count, 1, 1, 1) for c in decoder.constants}
    for index, (spec, block) in enumerate(zip(decoder.specs, decoder.blocks, strict=True)):
        r = spec.resolution
        x = states[r]
        if spec.mixin is not None:
            up = torch.nn.functional.interpolate(states[spec.mixin], scale_factor=r // spec.mixin)
            x = x + up
        p_mean, p_log_std, rest = bottleneck(block.prior, x).split([zdim, zdim, x.shape[1]], dim=1)
        if activations is not None:
            q = bottleneck(block.posterior, torch.cat([x, activations[r]], dim=1))
            q_mean, q_log_std = q.split(zdim, dim=1)
            z = q_mean + torch.exp(q_log_std) * eps[index]
        elif index < len(latents):
            z = latents[index]
        else:
            z = p_mean + torch.exp(p_log_std) * eps[index]
        x = x + rest + block.z_proj(z)
        states[r] = x + bottleneck(block.resnet, x)
        z_all.append(z)
    x = states[model.config.image_size] * decoder.gain + decoder.bias
    return decoder.out_conv(x), z_all


def encode(model, images, ids):
    """Its extraction: z of the first layers, flattened (N, C*H*W), side by side."""
    activations = model.bottom_up(preprocess(model, images))
    eps = [noise(ids, spec.index, spec.shape) for spec in model.layers]
    _, stats = top_down(model, len(images), activations, [], eps)
    return np.hstack([z.numpy().reshape(len(images), -1) for z in stats[:NUM_LATENTS]])


def sample_pixels(parameters, num_mixtures, ids):
    """The published likelihood's draw, (N, S, S, 3) from -1 to 1, in NumPy."""
    images = []
    for own, image_id in zip(parameters.permute(0, 2, 3, 1).numpy(), ids, strict=True):
        generator = torch.Generator().manual_seed(seeded(image_id, "pixels", 7))
        side = own.shape[0]

        def uniform(*shape, generator=generator):
            u = torch.rand((1, *shape), generator=generator)[0].numpy()
            return np.moveaxis(u * (1 - 2e-5) + 1e-5, 0, -1)

        logits = own[..., :num_mixtures]
        rest = own[..., num_mixtures:].reshape(side, side, 3, 3 * num_mixtures)
        chosen = np.argmax(logits - np.log(-np.log(uniform(num_mixtures, side, side))), axis=-1)
        pick = chosen[..., None, None]
        means, log_scales, coefficients = (
            np.take_along_axis(rest[..., k * num_mixtures : (k + 1) * num_mixtures], pick, -1)[
                ..., 0
            ]
            for k in range(3)
        )
        u = uniform(3, side, side)
        x = means + np.exp(np.maximum(log_scales, -7)) * (np.log(u) - np.log(1 - u))
        c = np.tanh(coefficients)
        red = np.clip(x[..., 0], -1, 1)
        green = np.clip(x[..., 1] + c[..., 0] * red, -1, 1)
        blue = np.clip(x[..., 2] + c[..., 1] * red + c[..., 2] * green, -1, 1)
        images.append(np.stack([red, green, blue], axis=-1))
    return np.stack(images)


@torch.no_grad()
def test_its_features_and_its_reconstructions(tiny, stimuli, tmp_path):
    store = vr.extract(
        tiny, tmp_path / "nsd.npz", tmp_path / "z.h5", layers=f"0:{NUM_LATENTS}", features=["z"],
        z="sample", seed=SEED, resize="bilinear",
    )  # fmt: skip
    ids = [[store.ids[row] for row in store.rows(split)] for split in ("train", "test")]
    train, test = (encode(tiny, images, own) for images, own in zip(stimuli, ids, strict=True))
    for split, expected in (("train", train), ("test", test)):
        shape = store.export(tmp_path / f"{split}.npz", feature="z", split=split)
        latents = np.load(tmp_path / f"{split}.npz")["latents"]
        assert (shape, latents.dtype) == (expected.shape, np.float32)
        np.testing.assert_allclose(latents, expected, rtol=1e-4, atol=1e-5)
    # Its regression's last step: predictions get the mean and deviation of the training latents.
    predicted = test + np.random.default_rng(1).normal(size=test.shape)
    predicted = (predicted - predicted.mean(axis=0)) / predicted.std(axis=0)
    predicted = predicted * train.std(axis=0) + train.mean(axis=0)
    np.save(tmp_path / "pred.npy", predicted)  # float64, as its own
    # Its reconstruction: columns back to layers, the rest drawn from the prior, pixels drawn.
    edges = np.cumsum([0, *(spec.num_dims for spec in tiny.layers[:NUM_LATENTS])])
    given = [
        torch.tensor(predicted[:, a:b].reshape(len(predicted), *spec.shape)).float()
        for spec, a, b in zip(tiny.layers[:NUM_LATENTS], edges, edges[1:], strict=False)
    ]
    eps = [noise(ids[1], spec.index, spec.shape) for spec in tiny.layers]
    parameters, _ = top_down(tiny, len(predicted), None, given, eps)
    drawn = (sample_pixels(parameters, tiny.config.num_mixtures, ids[1]) + 1) * 127.5
    with vr.import_latents(tmp_path / "pred.npy", store, tmp_path / "pred.h5", split="test") as own:
        decoded = list(own.decode(tiny, rest="sample", pixels="sample", seed=SEED))
    assert [i for names, _ in decoded for i in names] == ids[1]
    images = np.concatenate([values for _, values in decoded])
    # Ours are rounded, its are cut: no pixel is further than half a step from the draw itself.
    assert np.abs(images - drawn).max() < 0.5 + 1e-2


def test_its_shapes_in_the_published_model():
    """91,168 columns of 31 layers, in blocks of its own list of widths."""
    from vdvae_repr.config import load_config, preset_path

    with torch.device("meta"):
        layers = vr.VDVAE(load_config(preset_path("imagenet64")).model).layers[:31]
    widths = [2**4] * 2 + [2**8] * 4 + [2**10] * 8 + [2**12] * 16 + [2**14]
    assert [spec.num_dims for spec in layers] == widths
    assert sum(widths) == 91_168
