"""timm's models: values are timm's own, every layer is there, and weights are those that were asked for."""

import argparse
import json
import re
import socket

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

import vdvae_repr as vr
from vdvae_repr.encoders.load import random_twin
from vdvae_repr.encoders.timm import _TrainingRecipe

ATLAS = ("single", "cumulative", "without", "pruned")


@pytest.fixture(scope="module")
def resnet():
    return vr.load("timm:resnet10t@random")


@pytest.fixture(scope="module")
def photo():
    rough = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((310, 270), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet10t", ["act1", "layer1", "layer2", "layer3", "layer4"]),
        ("convnext_atto", [f"stages.{i}" for i in range(4)]),
        ("vit_tiny_patch16_224", [f"blocks.{i}" for i in range(12)]),
    ],
)
def test_every_layer_holds_timms_own_values(name, layers, photo):
    encoder = vr.load(f"timm:{name}@random")
    assert [spec.name for spec in encoder.layers] == [*layers, "embedding"]
    net = encoder.net
    x = create_transform(**resolve_model_data_config(net), is_training=False)(photo)[None]
    pixels = encoder.preprocessing(photo)[None]
    torch.testing.assert_close(encoder.normalised(pixels), x)
    tokens = {"output_fmt": "NLC", "return_prefix_tokens": True} if name.startswith("vit") else {}
    with torch.no_grad():
        _, stages = net.forward_intermediates(x, **tokens)
        expected = [torch.cat([s[1], s[0]], 1) if tokens else s for s in stages] + [net(x)]
    for layers_read in (encoder.layers, encoder.layers[1:3], encoder.layers[-1:]):
        read = encoder.read(pixels, layers_read)
        for spec in layers_read:
            value = expected[spec.index].numpy().reshape(1, *spec.shape)
            gap = np.abs(read.values[spec.name, "activation"].numpy() - value).max()
            assert gap <= 1e-5 * np.abs(value).max(), spec.name


def test_a_layer_without_a_name_at_timm_has_one():
    assert [spec.name for spec in vr.load("timm:tresnet_m@random").layers][:2] == [
        "stem",
        "body.layer1",
    ]


def test_a_store_holds_every_layer_and_small_images(resnet, tmp_path, photo):
    pictures = np.stack([np.asarray(photo), np.asarray(photo)[::-1]])
    store = vr.extract(resnet, pictures, tmp_path / "r.h5")
    read = resnet.read(np.stack([resnet.preprocessing(p) for p in pictures]), resnet.layers)
    for spec in resnet.layers:
        X, _, _ = store.matrix(spec.name, "activation")
        np.testing.assert_allclose(
            X, read.values[spec.name, "activation"].reshape(2, -1), rtol=1e-4, atol=1e-5
        )
    assert store.images().shape == (2, 64, 64, 3)
    assert store.attrs["model"] == "timm:resnet10t@random"
    described = json.loads(store.attrs["preprocessing"])
    assert (described["size"], described["crop_pct"], described["interpolation"]) == (
        176,
        0.875,
        "bicubic",
    )
    assert store.matrix("layer2,layer3", "activation")[0].shape == (2, 128 * 22**2 + 256 * 11**2)
    assert store.matrix("11x11", "activation", "avg")[0].shape == (2, 256)
    assert not store.has_kl
    with pytest.raises(vr.StoreError, match="holds no kl"):
        _ = store.kl
    with pytest.raises(vr.LayerError, match="activation alone"):
        vr.extract(resnet, pictures, tmp_path / "x.h5", features=["mean"])
    with pytest.raises(vr.LayerError, match=r"'layer5'.*act1"):
        vr.extract(resnet, pictures, tmp_path / "x.h5", layers="layer5")
    store.verify()


def test_a_central_square_comes_before_timms_transform(resnet, tmp_path, photo):
    store = vr.extract(
        resnet, np.asarray(photo)[None], tmp_path / "c.h5", layers="embedding", crop=100
    )
    left, top = (310 - 100) // 2, (270 - 100) // 2
    square = photo.crop((left, top, left + 100, top + 100))
    x = create_transform(**resolve_model_data_config(resnet.net), is_training=False)(square)[None]
    with torch.no_grad():
        expected = resnet.net(x).numpy()
    np.testing.assert_allclose(store.matrix("all", "activation")[0], expected, rtol=1e-4, atol=1e-6)


def test_tokens_are_pooled_over_patches_or_give_the_class_token(tmp_path, photo):
    encoder = vr.load("timm:vit_tiny_patch16_224@random")
    store = vr.extract(
        encoder, np.asarray(photo)[None], tmp_path / "v.h5", layers="blocks.3,embedding"
    )
    values = store["blocks.3"].activation[:]
    assert values.shape == (1, 197, 192)
    whole = store.matrix("blocks.3", "activation")[0]
    assert np.array_equal(whole, values.reshape(1, -1))
    cls, mean = (store.matrix("blocks.3", "activation", pool)[0] for pool in ("cls", "avg"))
    assert np.array_equal(cls, values[:, 0])
    np.testing.assert_allclose(mean, values[:, 1:].mean(axis=1), rtol=1e-4, atol=1e-6)
    quarters = store.matrix("blocks.3", "activation", "avg:2")[0].reshape(192, 2, 2)
    corner = values[0, 1:].reshape(14, 14, 192)[:7, 7:].mean(axis=(0, 1))
    np.testing.assert_allclose(quarters[:, 0, 1], corner, rtol=1e-4, atol=1e-6)
    pooled = vr.extract(
        encoder, np.asarray(photo)[None], tmp_path / "p.h5", layers="blocks.3", pool="cls"
    )
    assert np.array_equal(pooled.matrix("all", "activation")[0], cls)


def test_a_grid_has_no_class_token(resnet, tmp_path, photo):
    with pytest.raises(vr.LayerError, match="without one"):
        vr.extract(resnet, np.asarray(photo)[None], tmp_path / "x.h5", layers="layer3", pool="cls")


def test_depth_goes_through_probe_atlas_and_compare(resnet, tiny, people, tmp_path):
    from vdvae_repr.probing.similarity import compare

    source, lines = people(4), []
    store = vr.extract(
        resnet, source, tmp_path / "r.h5", pool="avg", layers="layer3,layer4,embedding"
    )
    own = vr.extract(tiny, source, tmp_path / "t.h5", layers="8x8")
    rows = vr.probe(own, "face_id", beside=[store]).rows
    named = {row.layer for row in rows if row.model == "timm:resnet10t@random"}
    assert named == {"layer3", "layer4", "embedding"}
    atlas = vr.probe(store, "face_id", beside=[own], selections=ATLAS)
    lines = atlas.notes
    assert {"layer3", "layer4", "embedding", "0:4", "0:5"} & {row.layer for row in atlas.rows}
    assert "random-init" in {row.model for row in atlas.rows}
    # 16x16 images are stored at 64x64, as the network saw them, and it takes 176x176.
    assert "random-init reads the stored 64x64 images, enlarged to 176x176" in lines
    similarity = compare(store, own)
    assert similarity.layers == ("layer3", "layer4", "embedding")
    assert similarity.cka.shape == (3, 2)
    assert np.all((similarity.cka >= 0) & (similarity.cka <= 1 + 1e-6))


def test_published_weights_that_are_not_there_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("timm:resnet18", "facenet:vggface2"):
        with pytest.raises(vr.CheckpointError, match=r"not in the cache.*@random") as refusal:
            vr.load(name)
        assert "\n" not in str(refusal.value)


def test_published_weights_are_those_of_the_hubs_cache(tmp_path, monkeypatch):
    torch.manual_seed(7)
    state = timm.create_model("resnet10t").state_dict()
    save_file(state, tmp_path / "model.safetensors")

    def cached(repository, name, revision=None):
        assert repository == timm.models.get_pretrained_cfg("resnet10t").hf_hub_id
        return str(tmp_path / name) if name == "model.safetensors" else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    loaded = vr.load("timm:resnet10t")
    assert loaded.name == "timm:resnet10t"
    assert all(torch.equal(value, state[key]) for key, value in loaded.net.state_dict().items())


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Return a function that puts tensors where the hub's cache keeps the published ones."""

    def put(state):
        save_file(state, tmp_path / "model.safetensors")

    def cached(repository, name, revision=None):
        return str(tmp_path / name) if (tmp_path / name).is_file() else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    return put


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k < "layer3"}, r"fills \d+ of \d+ parameters; missing"),
        (lambda s: {k: v for k, v in s.items() if k != "layer2.0.bn1.bias"}, r"missing are layer2\.0\.bn1"),
        (lambda s: {f"backbone.{k}": v for k, v in s.items()}, "fills 0 of .* begin with backbone"),
        (lambda s: {"other.weight": torch.ones(3)}, "fills 0 of"),
    ],
)  # fmt: skip
def test_published_weights_that_leave_a_gap_are_refused(published, state, change, message):
    """timm itself, without the classifier, would leave what is missing random."""
    published(change(dict(state)))
    with pytest.raises(vr.CheckpointError, match=f"{message}.*remove the file") as refusal:
        vr.load("timm:resnet10t")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["dla46_c", "test_convnext"])
def test_a_gap_is_told_of_models_that_timm_fills_leniently_too(name, published):
    """`pretrained_strict=False` at timm: half of the tensors would load, with the rest random."""
    torch.manual_seed(7)
    state = timm.create_model(name).state_dict()
    kept = dict(list(state.items())[: len(state) // 2])
    published({key: value.contiguous() for key, value in kept.items()})
    filled = sum("num_batches" not in key for key in kept)
    with pytest.raises(vr.CheckpointError, match=f"fills {filled} of .*remove the file"):
        vr.load(f"timm:{name}")


def test_a_head_that_timm_publishes_without_is_said_to_be_as_it_starts(published, caplog):
    """Pretrained ConvNeXt V2 (fcmae) has no head.norm, so that timm is not strict about it."""
    name = "convnextv2_atto.fcmae"
    torch.manual_seed(7)
    state = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
    published({key: value for key, value in state.items() if not key.startswith("head.")})
    loaded = vr.load(f"timm:{name}").net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    assert re.search(r"without head\.norm\.weight, head\.norm\.bias, which", caplog.messages[-1])


@pytest.mark.parametrize(
    "name", ["levit_128s", "efficientvit_m0", "shvit_s1", "caformer_s18", "resnet10t"]
)
@pytest.mark.parametrize("classes", [7, 1000])
def test_a_checkpoint_of_the_model_with_any_classes_is_loaded(tmp_path, name, classes):
    """A head may be more than a linear layer: a norm, or two layers."""
    own = timm.create_model(name, num_classes=classes).eval()
    torch.save(own.state_dict(), tmp_path / "own.pth")
    loaded = vr.load(f"timm:{name}@{tmp_path / 'own.pth'}").net
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded.forward_features(x), own.forward_features(x))


@pytest.mark.parametrize("keys", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_of_published_checkpoints_the_average_is_taken_as_timm_takes_it(
    tmp_path, published, state, keys
):
    average = {key: value + 1 for key, value in state.items()}
    torch.save(dict(zip(keys, (state, average), strict=True)), tmp_path / "pytorch_model.bin")
    loaded = vr.load("timm:resnet10t").net.state_dict()
    expected = timm.models.load_state_dict(str(tmp_path / "pytorch_model.bin"))
    assert all(torch.equal(expected[key], average[key]) for key in average)
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())


def test_names_that_timm_alone_translates_are_no_gap(published):
    """The filter of timm's densenet has a name of its own; torchvision's names are `norm.1.weight`."""
    torch.manual_seed(7)
    state = timm.create_model("densenet121").state_dict()
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}
    dotted = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))([12]\..*)")
    published({dotted.sub(r"\1.\2", key): value for key, value in state.items()})
    loaded = vr.load("timm:densenet121").net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize(
    "name", ["levit_128s", "dla46x_c", "convnext_atto", "test_vit", "resnet10t"]
)
def test_published_weights_are_taken_whatever_their_head_holds(name, published):
    """LeViT's head has norms that go with the classifier; the values are those that were published."""
    torch.manual_seed(7)
    state = timm.create_model(name).state_dict()
    published({key: value.contiguous() for key, value in state.items()})
    loaded = vr.load(f"timm:{name}").net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"", "is empty"),
    ],
)
def test_what_stands_in_place_of_published_weights_is_named(tmp_path, published, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(vr.CheckpointError, match=rf"model\.safetensors: {message}"):
        vr.load("timm:resnet10t")


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone(resnet):
    outside = torch.get_rng_state()
    again = vr.load("timm:resnet10t@random")
    assert torch.equal(torch.get_rng_state(), outside)
    assert again.identity() == resnet.identity()


def test_a_random_twin_shares_the_architecture_and_nothing_else(resnet):
    identity = resnet.identity()
    twins = [
        random_twin(identity["config"], identity["weights_sha256"], seed) for seed in (1, 1, 2)
    ]
    first, again, other = (dict(twin.net.named_parameters()) for twin in twins)
    own = dict(resnet.net.named_parameters())
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in own.items()}
    assert all(torch.equal(again[key], value) for key, value in first.items())
    for key in (key for key, value in first.items() if value.ndim > 1):  # norms start alike
        assert not torch.equal(other[key], first[key])
        assert not torch.equal(own[key], first[key])
    assert json.loads(twins[0].identity()["config"]) == json.loads(identity["config"])


def test_a_store_of_the_first_version_has_its_control():
    """Its config said `backbone`, and its one layer was called 1x1.0."""
    config = {"backbone": "timm:resnet10t", "image_size": 176, "mean": [1.0] * 3, "std": [1.0] * 3}
    twin = random_twin(json.dumps(config), "", 0)
    from vdvae_repr.model.layers import select_layers

    (spec,) = select_layers(twin.layers, "1x1.0")
    assert spec.name == "embedding"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(5)
    return timm.create_model("resnet10t").state_dict()


@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        ("plain.pth", lambda s: s),
        ("wrapped.ckpt", lambda s: {"state_dict": s, "epoch": 3, "best": torch.tensor(0.7)}),
        ("compiled.bin", lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()}),
        ("dino.pt", lambda s: {"teacher": {f"backbone.{k}": v for k, v in s.items()}
                               | {"head.mlp.weight": torch.zeros(2)}}),
        ("moco.th", lambda s: {"state_dict": {f"module.encoder_q.{k}": v for k, v in s.items()}
                               | {"module.queue": torch.zeros(3)}}),
    ],
)  # fmt: skip
def test_own_weights_are_read_out_of_what_wraps_them(tmp_path, state, file, wrap):
    torch.save(wrap(state), tmp_path / file)
    loaded = vr.load(f"timm:resnet10t@{tmp_path / file}")
    assert loaded.name == "timm:resnet10t"
    for key, value in loaded.net.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_own_weights_in_safetensors_whatever_the_ending(tmp_path, state):
    save_file(state, tmp_path / "w.pth")
    loaded = vr.load(f"timm:resnet10t@{tmp_path / 'w.pth'}").net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: dict(list(s.items())[:6]), r"fills \d+ of \d+ parameters; missing are conv1\.3"),
        (lambda s: {}, "an empty dictionary"),
        (lambda s: {f"encoder_q.{k}": v for k, v in s.items()} | {f"encoder_k.{k}": v for k, v in s.items()},
         "holds the network 2 times, under encoder_q., encoder_k."),
        (lambda s: {f"model.{k}": v for k, v in s.items()}
         | {f"ema.{k}": v for k, v in s.items() if "running" not in k},
         "holds the network 2 times, under model., ema."),
        (lambda s: {f"model.{k}": v for k, v in s.items()}
         | {f"model_ema.{k.replace('.', '')}": v for k, v in s.items() if "running" not in k},
         "holds the network 2 times, under model., model_ema."),
        (lambda s: {("conv1.0.weight_orig" if k == "conv1.0.weight" else k): v for k, v in s.items()},
         r"missing are conv1\.0\.weight; its keys"),
        (lambda s: {"student": s, "teacher": s}, "holds 2 sets of weights, student, teacher"),
        (lambda s: s | {"layer1.1.conv1.weight": torch.zeros(2)}, "no part of this network, layer1.1.conv1"),
        (lambda s: s | {"layer1.0.conv1.weight": torch.zeros(3)}, r"conv1\.weight is \(3,\), expected"),
        (lambda s: s | {"layer2.0.bn1.bias": torch.full((128,), torch.nan)}, r"NaN .* in layer2\.0\.bn1"),
        (lambda s: {k.replace("conv", "c"): v for k, v in s.items()}, "missing are conv1"),
    ],
)  # fmt: skip
def test_own_weights_that_do_not_fill_the_network_are_refused(tmp_path, state, change, message):
    torch.save(change(dict(state)), tmp_path / "own.pth")
    with pytest.raises(vr.CheckpointError, match=message) as refusal:
        vr.load(f"timm:resnet10t@{tmp_path / 'own.pth'}")
    assert "\n" not in str(refusal.value)


def under(beginning, state):
    return {f"{beginning}{key}": value.clone() for key, value in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[
            (lambda s, b=b: under(b, s), f"found tensors under '{b[:-1]}', which are none")
            for b in ("exp_avg.", "grad.", "optimizer.", "momentum_buffer.", "module.exp_avg_sq.")
        ],
        (lambda s: under("exp_avg.", s) | {"step": torch.ones(())}, "found tensors under 'exp_avg'"),
        (lambda s: under("m.", s) | {"lora.fc.A": torch.ones(2)}, "1 tensor of adapters to .*, as lora"),
        (lambda s: under("m.", s) | {"ia3.a": torch.ones(2), "ia3.b": torch.ones(2)},
         r"2 tensors of adapters to them, as ia3\.a; merge"),
        (lambda s: under("m.", s) | {"m.fc.lora_A.default.weight": torch.ones(2)}, "1 tensor of adapters"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("name", "write"), [("timm:resnet10t", save_file), ("facenet:vggface2", torch.save)]
)
def test_what_is_no_weight_or_changes_the_weights_is_refused_by_its_name(
    tmp_path, change, message, name, write
):
    own = {
        key: value
        for key, value in vr.load(f"{name}@random").net.state_dict().items()
        if "logits" not in key
    }
    write(change(own), tmp_path / "w.pt")
    with pytest.raises(vr.CheckpointError, match=message) as refusal:
        vr.load(f"{name}@{tmp_path / 'w.pt'}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "beginning", ["momentum_encoder.", "teacher.", "module.momentum_backbone.", "grad_cam.model."]
)
def test_averaged_networks_and_projectors_beside_them_are_no_moments_and_no_adapters(
    tmp_path, state, beginning
):
    beside = {"projector.0.weight": torch.ones(4), "adapter.a": torch.ones(2)}
    torch.save(under(beginning, state) | beside, tmp_path / "w.pt")
    loaded = vr.load(f"timm:resnet10t@{tmp_path / 'w.pt'}").net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_names_that_timm_translates_are_taken(tmp_path):
    """A ConvNeXt under the names of its authors' release, which timm's own filter knows."""
    torch.manual_seed(1)
    net = timm.create_model("convnext_atto")
    assert "stem.0.weight" in net.state_dict()
    original = {}
    for key, value in net.state_dict().items():
        key = key.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.")
        key = key.replace("head.fc.", "head.").replace("conv_dw", "dwconv")
        key = key.replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        if ".downsample." in key:
            stage, rest = key.removeprefix("stages.").split(".downsample.")
            key = f"downsample_layers.{stage}.{rest}"
        if key.startswith("stages.") and ".blocks." in key:
            key = key.replace(".blocks.", ".")
        original[key] = value
    torch.save({"model": original}, tmp_path / "o.pth")
    loaded = vr.load(f"timm:convnext_atto@{tmp_path / 'o.pth'}").net.state_dict()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in loaded.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet10t@none.pth", "no such file"),
        ("timm:resnet10x", "timm has no such model.*did you mean"),
        ("timm:resnet18.none@random", "cannot be loaded"),
        ("timm:crossvit_tiny_240@random", "under one name each"),
        ("facenet:lfw", "expected facenet:vggface2 or facenet:casia-webface"),
    ],
)
def test_unknown_names_are_one_line(name, message):
    with pytest.raises(vr.CheckpointError, match=message) as refusal:
        vr.load(name)
    assert "\n" not in str(refusal.value)


def test_activations_cannot_be_decoded(resnet, tmp_path, photo, tiny):
    from vdvae_repr.latents.decode import decode

    store = vr.extract(resnet, np.asarray(photo)[None], tmp_path / "r.h5", layers="embedding")
    with pytest.raises(vr.StoreError, match="only latents of a VDVAE can be decoded"):
        next(decode(store, tiny))


@pytest.mark.shared_data
def test_trained_weights_know_more_than_random_ones(shared_data):
    """EfficientNet-Lite0's README: 32.8 % of 320 images of Tiny ImageNet are put right of 1,000 classes."""
    weights = shared_data.parent / "weights" / "tf_efficientnet_lite0.safetensors"
    if not weights.is_file():
        pytest.skip(f"no {weights}")
    encoder = vr.load(f"timm:tf_efficientnet_lite0@{weights}")
    assert encoder.layers[-1].shape == (1280, 1, 1)
    assert encoder.identity() != vr.load("timm:tf_efficientnet_lite0@random").identity()


def test_the_hub_that_is_asked_is_the_one_that_is_set(monkeypatch, tmp_path):
    """A mirror of HF_ENDPOINT that does not answer is named, and no other host."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        mirror = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", mirror)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(vr.CheckpointError, match=f"and {mirror} cannot be reached"):
            vr.load("timm:resnet10t", download=True)


@pytest.mark.parametrize("other", [{"patch_size": 32}, {"img_size": 320}])
def test_weights_of_another_patch_or_size_are_not_resampled(tmp_path, other):
    """timm itself would fit them in silence, under the name of the model that was asked for."""
    torch.save(timm.create_model("test_vit", **other).state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        vr.CheckpointError, match=r"another architecture, .* would resample"
    ) as told:
        vr.load(f"timm:test_vit@{tmp_path / 'w.pt'}")
    assert "\n" not in str(told.value)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "w.pt")
    vr.load(f"timm:test_vit@{tmp_path / 'w.pt'}")


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.int8, "holds whole numbers, expected real numbers"),
        (torch.bool, "holds truth values"),
        (torch.complex64, "holds complex numbers"),
        (
            torch.float8_e4m3fn,
            "expected float32, float16, bfloat16 or float64, found float8_e4m3fn",
        ),
        (torch.float16, None),
        (torch.float64, None),
    ],
)
def test_weights_that_are_no_real_numbers_are_refused(tmp_path, state, dtype, message):
    own = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    torch.save(own, tmp_path / "own.pth")
    if message is None:
        vr.load(f"timm:resnet10t@{tmp_path / 'own.pth'}")
        return
    with pytest.raises(vr.CheckpointError, match=message) as refusal:
        vr.load(f"timm:resnet10t@{tmp_path / 'own.pth'}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["timm:resnet10t@", "timm:resnet10t@ ", "facenet:vggface2@"])
def test_an_empty_name_of_a_file_does_not_stand_for_the_published_weights(name):
    with pytest.raises(vr.CheckpointError, match="after @, found nothing; is a variable not set"):
        vr.load(name)


def _recipe(**options):
    """What timm's train.py keeps of its options; those that were not given are None."""
    return argparse.Namespace(**{"img_size": None, "mean": None, "crop_pct": None} | options)


def test_weights_of_a_model_of_equal_shapes_are_refused_under_another_name(tmp_path):
    """Padding of tf_efficientnet_lite0 is another than efficientnet_lite0's; names and shapes are equal."""
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    file, plain = tmp_path / "best.pth.tar", tmp_path / "model.safetensors"
    torch.save({"arch": "tf_efficientnet_lite0", "state_dict": state, "args": _recipe()}, file)
    save_file({"w": torch.zeros(1)}, plain)
    (tmp_path / "config.json").write_text('{"architecture": "tf_efficientnet_lite0.in1k"}')
    net = vr.load(f"timm:tf_efficientnet_lite0@{file}").net
    with pytest.raises(vr.CheckpointError, match="load it as timm:tf_efficientnet_lite0@") as told:
        vr.load(f"timm:efficientnet_lite0@{file}")
    assert "\n" not in str(told.value)
    recipe = _TrainingRecipe.beside(plain)
    recipe.refuse_other_architecture(net, plain)
    net.pretrained_cfg = timm.models.get_pretrained_cfg("efficientnet_lite0").to_dict()
    with pytest.raises(vr.CheckpointError, match="load it as timm:tf_efficientnet_lite0@"):
        recipe.refuse_other_architecture(net, plain)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, None),
        ({"img_size": 176, "mean": [0.485, 0.456, 0.406]}, None),  # timm's own, of resnet10t
        ({"mean": "of another program"}, None),
        ({"img_size": 128}, r"input_size \(3, 128, 128\); .* with input_size \(3, 176, 176\)"),
        ({"mean": [0.5] * 3, "crop_pct": 1.0}, r"with mean \(0\.5, 0\.5, 0\.5\); .*with mean \(0\.485"),
        ({"crop_pct": 1.0, "interpolation": "nearest"}, None),  # of its evaluation
    ],
)  # fmt: skip
def test_another_transform_in_training_is_said(tmp_path, resnet, options, said):
    of_script, of_hub = tmp_path / "best.pth.tar", tmp_path / "model.safetensors"
    weights = {"w": torch.zeros(1)}
    torch.save({"arch": "resnet10t", "state_dict": weights, "args": _recipe(**options)}, of_script)
    own = json.dumps({"architecture": "resnet10t", "pretrained_cfg": options})
    (tmp_path / "config.json").write_text(own)
    save_file(weights, of_hub)
    for file in (of_script, of_hub):
        line = _TrainingRecipe.beside(file).about_transform(resnet.net)
        assert line == "" if said is None else re.search(said, line)


def test_the_line_about_a_transform_is_logged_where_weights_are_loaded(tmp_path, state, caplog):
    file = tmp_path / "best.pth.tar"
    torch.save({"arch": "resnet10t", "state_dict": state, "args": _recipe(img_size=128)}, file)
    vr.load(f"timm:resnet10t@{file}")
    assert "was trained with input_size (3, 128, 128)" in caplog.messages[0]


def test_a_network_says_what_it_is_where_a_message_shows_it(resnet, tmp_path):
    expected = "<TimmEncoder timm:resnet10t@random: 6 layers (act1 .. embedding)>"
    assert repr(resnet) == expected
    with pytest.raises(vr.CheckpointError) as told:
        vr.distill(
            "timm:resnet10t@random",
            np.zeros((4, 8, 8, 3), np.uint8),
            tmp_path / "r",
            config="student64",
        )
    assert f"expected a VDVAE, found {expected};" in str(told.value)


def test_a_folder_is_no_file_of_weights(tmp_path, state):
    with pytest.raises(vr.CheckpointError, match=r"expected a file of weights, found a folder$"):
        vr.load(f"timm:resnet10t@{tmp_path}")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        vr.CheckpointError, match=r"found a folder; name .*model\.safetensors in it$"
    ):
        vr.load(f"timm:resnet10t@{tmp_path}")
