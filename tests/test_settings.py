"""What the caller has set of PyTorch, and has drawn at random, changes no result and stays as it was."""

import random
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_iris

import vdvae_repr as vr

NETWORK = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1))
TRAIN = """
[train]
steps = 2
batch_size = 4
lr = 5e-3
warmup_steps = 1
ema_rate = 0.9
hold_back = "images"
"""
VDVAE = """
[model]
image_size = 16
width = 8
zdim = 4
bottom_up = "16x1,16d2,8x1,8d2,4x1,4d4,1x1"
top_down = "1x1,4m1,16m4"
num_mixtures = 2
"""
PIXELCNN = """
[model]
kind = "pixelcnn"
image_size = 8
width = 4
blocks = 1
resolutions = 2
num_mixtures = 2
"""
STUDENT = """
[model]
kind = "student"
width = 8
bottom_up = "16x1,16d2,8x1,8d2,4x1,4d4,1x1"
layers = "<=4x4"
"""


@contextmanager
def other_settings():
    """Autocast, numbers in float64, products in bfloat16, no gradients."""
    products = torch.get_float32_matmul_precision()
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            yield
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_default_dtype() == torch.float64
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(products)


def trained(table):
    def train(tiny, images, out):
        (out / "c.toml").write_text(table + TRAIN)
        vr.train(out / "c.toml", images, out / "r")
        return load_file(out / "r" / "model.safetensors")

    return train


def trained_in_bf16(tiny, images, out):
    (out / "c.toml").write_text(VDVAE + TRAIN)
    vr.train(out / "c.toml", images, out / "r", precision="bf16")
    return load_file(out / "r" / "model.safetensors")


def distilled(tiny, images, out):
    (out / "c.toml").write_text(STUDENT + TRAIN)
    vr.distill(tiny, images, out / "r", config=out / "c.toml")
    found = vr.load(out / "r").posterior(images)
    return load_file(out / "r" / "model.safetensors") | {"read": found["4x4.0"].mean}


def extracted(tiny, images, out):
    store = vr.extract(tiny, images, out / "s.h5", z="sample", features=["mean", "z"])
    return {spec.name: store.matrix(spec.name, "z")[0] for spec in store.layers}


def network(tiny, images, out):
    encoder = vr.TorchEncoder(
        NETWORK, layers=["0"], size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    return {"0": vr.extract(encoder, images, out / "s.h5").matrix("0")[0]}


def controls(tiny, images, out):
    """The random twin's features, by their scores."""
    store = vr.extract(tiny, images, out / "s.h5", layers="4x4")
    from vdvae_repr.encoders.load import random_twin

    twin = random_twin(store.info.config, store.info.weights_sha256, 3)
    return {"twin": vr.extract(twin, images, out / "t.h5", layers="4x4").matrix("4x4")[0]}


def evaluated(tiny, images, out):
    return {"nats": vr.evaluate(tiny, images).nats}


def decoded(tiny, images, out):
    posterior = tiny.posterior(images, layers="<=4x4")
    drawn = tiny.decode(posterior, rest="sample", pixels="sample")
    return {"decoded": drawn, "sampled": tiny.sample(3), "random": vr.load("faces64").sample(1)}


def transformed(tiny, images, out):
    return {"features": vr.LatentTransformer(tiny, layers="4x4").fit_transform(images)}


def exported(tiny, images, out):
    vr.export_model(tiny, out / "m.pt2", layers="1x1")
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return torch.export.load(out / "m.pt2").module()(torch.from_numpy(images))


def fitted(tiny, images, out):
    X, y = load_iris(return_X_y=True)
    return {"scores": vr.SGDProbe(steps=20).fit(X, y).class_scores(X)}


CALLS = [
    trained(VDVAE), trained(PIXELCNN), trained_in_bf16, distilled, extracted, network, controls, evaluated,
    decoded, transformed, exported, fitted,
]  # fmt: skip
NAMES = ["vdvae", "pixelcnn", *[call.__name__ for call in CALLS[2:]]]


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_settings_and_draws_of_the_caller_are_set_aside_and_kept(call, tiny, images, tmp_path):
    found = []
    for number, settings in enumerate((nullcontext, other_settings)):
        out = tmp_path / str(number)
        out.mkdir()
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002
        random.seed(number)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        with settings():
            found.append(call(tiny, images, out))
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(found[1][key]), err_msg=key)


def test_a_precision_that_pytorch_cannot_tell_is_refused(tiny, images):
    products = getattr(torch.backends.mkldnn, "matmul", None)
    if products is None:
        pytest.skip("this PyTorch has no such setting")
    products.fp32_precision = "bf16"
    try:
        with pytest.raises(vr.ConfigError, match=r"torch\.backends: expected one precision"):
            tiny.posterior(images)
    finally:
        products.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
