"""Any torch network as an encoder, by the names of its modules."""

import copy
import gc
import os
import re
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import vdvae_repr as vr

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.act(self.act(self.norm(self.drop(self.conv(x)))))
        return self.head(self.pool(x).flatten(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def encoder(net):
    return vr.TorchEncoder(net, layers=["head", "conv"], size=16, mean=MEAN, std=STD)


def test_layers_are_what_modules_return_in_evaluation_mode(net, encoder, images):
    assert [(s.name, s.shape, s.resolution) for s in encoder.layers] == [
        ("conv", (6, 7, 7), 7),
        ("head", (4, 1, 1), 1),
    ]
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    read = encoder.read(images, encoder.layers)
    assert net.training  # as it was
    expected = copy.deepcopy(net).eval()
    with torch.no_grad():
        # Before the ReLU that works in place.
        np.testing.assert_allclose(
            read.values["conv", "activation"], expected.conv(x), rtol=1e-4, atol=1e-6
        )
        head = read.values["head", "activation"].reshape(-1, 4)
        np.testing.assert_allclose(head, expected(x), rtol=1e-4, atol=1e-6)


def test_it_fills_a_store_and_is_probed_with_its_random_twin(encoder, people, tmp_path):
    store = vr.extract(encoder, people(4), tmp_path / "e.h5")
    assert store.attrs["model"] == "torch:Net"
    assert store.images().shape[1:] == (16, 16, 3)
    report = vr.probe(store, "face_id", selections="single")
    rows, lines = report.rows, report.notes
    assert {"conv", "head"} == {row.layer for row in rows if row.model == "torch:Net"}
    assert {"conv", "head"} == {row.layer for row in rows if row.model == "random-init"}
    assert not any("random-init" in line for line in lines)


def test_without_the_network_the_control_is_left_out_and_said(net, people, tmp_path):
    encoder = vr.TorchEncoder(net, layers=["conv"], size=16, mean=MEAN, std=STD)
    store = vr.extract(encoder, people(4), tmp_path / "e.h5")
    del encoder
    report = vr.probe(store, "face_id")
    rows, lines = report.rows, report.notes
    assert not [row for row in rows if row.model == "random-init"]
    (line,) = [line for line in lines if "random-init" in line]
    assert line.startswith("no random-init: torch:Net: a store holds no network")
    # Made again, the encoder is found by its weights.
    again = vr.TorchEncoder(net, layers=["conv"], size=16, mean=MEAN, std=STD)
    rows = vr.probe(store, "face_id").rows
    assert [row for row in rows if row.model == "random-init"]
    assert again.identity()["weights_sha256"] == store.attrs["weights_sha256"]


def test_a_random_twin_draws_every_weight_anew_from_its_seed(net, encoder):
    outside = torch.get_rng_state()
    one, same, other = (encoder.reinitialised(seed).net for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), outside)
    for name in ("conv.weight", "head.weight"):
        own, first, again, third = (
            dict(n.named_parameters())[name] for n in (net, one, same, other)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, own)
        assert not torch.equal(first, third)


class Fixed(nn.Module):
    """Weights that are no parameters, beside buffers that nothing trained, and what a pass leaves behind."""

    def __init__(self, as_buffer):
        super().__init__()
        kernel = torch.randn(4, 3, 4, 4)
        if as_buffer:
            self.register_buffer("kernel", kernel)
        else:
            self.kernel = kernel
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("mask", torch.rand(3), persistent=False)
        self.register_buffer("scale", torch.ones(4))
        self.sparse = torch.eye(3).to_sparse()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        self.last = self.norm(nn.functional.conv2d(x, self.kernel, stride=4))
        return self.last


@pytest.mark.parametrize("as_buffer", [True, False])
def test_what_a_random_twin_keeps_is_said(people, tmp_path, as_buffer):
    net = nn.Sequential(Fixed(as_buffer))
    with torch.no_grad():
        net(torch.randn(8, 3, 16, 16))  # moves the running means, which are started again
    encoder = vr.TorchEncoder(net, layers=["0"], size=16, mean=MEAN, std=STD)
    twin = encoder.reinitialised(0)
    assert (encoder.kept, twin.kept) == ((), ("0.kernel",))
    store = vr.extract(encoder, people(4), tmp_path / "s.h5")
    report = vr.probe(store, "face_id", controls="random-init", cache=None)
    (line,) = [note for note in report.notes if "random-init keeps" in note]
    assert "keeps 1 tensor of the network that nothing draws anew, as 0.kernel" in line


class Unregistered(nn.Module):
    """Numbers that may have been trained, where no `reset_parameters` comes to."""

    def __init__(self):
        super().__init__()
        self.out = nn.Conv2d(3, 4, 4, stride=4)
        self.backbone = [nn.Conv2d(3, 3, 1, bias=False)]
        self.tables = {"a": torch.randn(3), "ones": torch.ones(3), "whole": torch.arange(3)}
        self.array = np.random.default_rng(0).normal(size=3)
        self.bias = nn.Parameter(torch.randn(4))

    def reset_parameters(self):
        pass

    def forward(self, x):
        return self.out(self.backbone[0](x)) + self.bias[:, None, None]


def test_a_random_twin_says_what_it_keeps_wherever_it_stands():
    encoder = vr.TorchEncoder(Unregistered(), ["out"], size=16, mean=MEAN, std=STD)
    twin = encoder.reinitialised(0)
    assert set(twin.kept) == {"bias", "backbone[0].weight", "tables['a']", "array"}


class Token(nn.Module):
    """A parameter of its own, and nothing that could draw it again."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.conv = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1)


def test_what_cannot_be_initialised_anew_is_refused_by_name():
    net = nn.Sequential(Token())
    encoder = vr.TorchEncoder(net, layers=["0"], size=16, mean=MEAN, std=STD)
    with pytest.raises(vr.CheckpointError, match=r"0\.token cannot be initialised anew, as Token"):
        encoder.reinitialised(0)

    class Frozen(nn.Conv2d):
        def reset_parameters(self):
            if not hasattr(self, "made"):
                self.made = True
                super().reset_parameters()

    stuck = vr.TorchEncoder(
        nn.Sequential(Frozen(3, 2, 3)), layers=["0"], size=16, mean=MEAN, std=STD
    )
    with pytest.raises(vr.CheckpointError, match=r"0\.weight stays as it is"):
        stuck.reinitialised(0)


def test_tokens_have_a_class_token_where_that_is_said(images, tmp_path):
    net = nn.Sequential(Token())
    options = {"layers": ["0"], "size": 16, "mean": MEAN, "std": STD}
    encoder = vr.TorchEncoder(net, prefix_tokens=1, **options)
    (spec,) = encoder.layers
    assert (spec.shape, spec.resolution, spec.prefix) == ((17, 4), 4, 1)
    store = vr.extract(encoder, images, tmp_path / "t.h5")
    values = store["0"].activation[:]
    assert np.array_equal(store.matrix("0", "activation", "cls")[0], values[:, 0])
    mean = store.matrix("0", "activation", "avg")[0]
    np.testing.assert_allclose(mean, values[:, 1:].mean(axis=1), rtol=1e-5, atol=1e-7)
    plain = vr.extract(vr.TorchEncoder(net, **options), images, tmp_path / "p.h5")
    mean = plain.matrix("0", "activation", "avg")[0]
    np.testing.assert_allclose(mean, values.mean(axis=1), rtol=1e-5, atol=1e-7)
    with pytest.raises(vr.LayerError, match="without one"):
        plain.matrix("0", "activation", "cls")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["hed"], "Net has no module 'hed'; did you mean 'head'"),
        (["act"], "module act runs several times"),
        (["unused"], "module unused does not run"),
        ([], "found none"),
        (["conv", "conv"], "each once, found conv, conv"),
        ([""], "Net has no module ''"),
    ],
)
def test_modules_that_are_no_layers_are_refused(net, layers, message):
    with pytest.raises(vr.LayerError, match=message) as refusal:
        vr.TorchEncoder(net, layers=layers, size=16, mean=MEAN, std=STD)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [("mean", (0.5,)), ("std", (0, 1, 1)), ("std", (1, 1, float("nan"))), ("interpolation", "cubic"),
     ("size", 0), ("crop_pct", 1.5)],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(net, option, value):
    options = {"size": 16, "mean": MEAN, "std": STD} | {option: value}
    with pytest.raises(vr.ConfigError, match=option):
        vr.TorchEncoder(net, layers=["conv"], **options)


@pytest.mark.parametrize("size", [(40, 57), (61, 40), (300, 221)])
def test_the_transform_is_torchvisions(net, size):
    from torchvision import transforms  # here, as sessions that a test starts import this file

    encoder = vr.TorchEncoder(
        net, layers=["conv"], size=16, mean=MEAN, std=STD, crop_pct=0.8, interpolation="bilinear"
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    steps = [transforms.Resize(20), transforms.CenterCrop(16), transforms.ToTensor()]
    expected = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])(image)
    found = encoder.normalised(encoder.preprocessing(image)[None])[0]
    torch.testing.assert_close(found, expected)


def test_a_network_of_torchvision_goes_through(images, tmp_path):
    from torchvision.models import resnet18

    net = resnet18(weights=None)
    encoder = vr.TorchEncoder(
        net, layers=["layer1.0", "layer1.1", "layer4"], size=32, mean=MEAN, std=STD
    )
    store = vr.extract(encoder, images, tmp_path / "r.h5")
    assert store.matrix("layer4", "activation")[0].shape == (12, 512)
    assert store.matrix("layer1", "activation")[0].shape == (12, 2 * 64 * 8 * 8)
    with pytest.raises(vr.LayerError, match=r"layer1\.0 to layer1\.1, layer4"):
        store.matrix("layer9", "activation")


def test_a_network_that_is_no_encoder_is_refused_in_one_line(net, encoder, images, tmp_path):
    with pytest.raises(
        vr.CheckpointError, match=r"found Net; wrap it in vr.TorchEncoder\(net, layers="
    ):
        vr.extract(net, images, tmp_path / "s.h5", layers="all")
    with pytest.raises(vr.CheckpointError, match=r"found int; load it with vr.load"):
        vr.extract(64, images, tmp_path / "s.h5", layers="all")
    with pytest.raises(vr.TaskError, match="a PixelCNN, found TorchEncoder: others have no"):
        vr.evaluate(encoder, images)


@pytest.mark.parametrize(
    ("mean", "std"), [((123.0, 117.0, 104.0), STD), (MEAN, (58.0, 57.0, 57.0))]
)
def test_means_on_the_scale_of_255_are_refused(net, mean, std):
    with pytest.raises(vr.ConfigError, match="on the scale 0 to 1"):
        vr.TorchEncoder(net, layers=["conv"], size=16, mean=mean, std=std)


class Batch(nn.Module):
    """A first convolution, and something after it that is not a function of each image alone."""

    def __init__(self, after):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, stride=8)
        self.after = after
        self.end = nn.Identity()

    def forward(self, x):
        return self.end(self.after(self.conv(x)))


class StubbornNorm(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class Drawing(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.1, training=True)


class AcrossImages(nn.Module):
    """Attention that takes the batch for the sequence, as by default in torch."""

    def __init__(self):
        super().__init__()
        self.attention = nn.TransformerEncoderLayer(8, 2, 16)

    def forward(self, x):
        return self.attention(x.flatten(2).transpose(1, 2))


class Position(nn.Module):
    """A position code along the batch in place of the tokens."""

    def forward(self, x):
        return x + torch.arange(len(x))[:, None, None, None]


class Extremes(nn.Module):
    """Values scaled from 0 to 1 by the smallest and the largest of the batch, as of saliency maps."""

    def forward(self, x):
        return (x - x.min()) / (x.max() - x.min())


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (Extremes, "layer end: what it gives for an image depends on the rest of its batch"),
        (lambda: StubbornNorm(8), "layer end: what it gives for an image depends on the rest of its batch"),
        (AcrossImages, "layer end: what it gives for an image depends on the rest of its batch"),
        (Position, "layer end: what it gives for an image depends on the rest of its batch"),
        (Drawing, "layer end: the same images read twice give other values"),
    ],
)  # fmt: skip
def test_what_is_no_function_of_an_image_is_refused(after, message):
    torch.manual_seed(0)
    net = Batch(after())
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(vr.LayerError, match=message) as refusal:
        vr.TorchEncoder(net, layers=["conv", "end"], size=16, mean=MEAN, std=STD)
    assert "\n" not in str(refusal.value)
    for name, value in net.state_dict().items():  # running statistics among them
        assert torch.equal(value, before[name])
    vr.TorchEncoder(net, layers=["conv"], size=16, mean=MEAN, std=STD)  # what is before it


def test_ordinary_modules_pass():
    torch.manual_seed(0)
    tokens = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten(2)
    )
    vr.TorchEncoder(tokens, layers="0, 1,2", size=16, mean=MEAN, std=STD)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: (x, x), "returns tuple, expected a tensor"),
        (lambda x: {"x": x}, "returns dict"),
        (lambda x: None, "returns NoneType"),
        (lambda x: x.mean(dim=(1, 2, 3)), r"found \(2,\)"),
        (lambda x: x.mean(), r"found \(\)"),
        (lambda x: x[:, :0], r"found \(2, 0, 2, 2\)"),
        (lambda x: x.transpose(0, 1), r"found \(8, 2, 2, 2\)"),
        (lambda x: x.to(torch.complex64), "expected real numbers in a dense tensor, found complex64"),
        (lambda x: x.to_sparse(), "found float32, sparse_coo"),
        (lambda x: x / 0, "found NaN or infinity"),
        (lambda x: x.no_such, r"torch:Batch: the network fails on 2 images, .*no_such"),
        (lambda x: F.conv2d(x, torch.zeros(8, 8, 9, 9)), "Kernel size can't be greater"),
    ],
)  # fmt: skip
def test_outputs_that_are_no_layer_are_one_line(returned, message):
    with pytest.raises(vr.LayerError, match=message) as refusal:
        vr.TorchEncoder(Batch(returned), layers=["end"], size=16, mean=MEAN, std=STD)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"net": "resnet18"}, "net: expected a torch.nn.Module, found str"),
        ({"net": nn.Conv2d(3, 4, 3)}, "Conv2d has no modules inside; wrap it"),
        ({"layers": ""}, r"has no module ''; it has conv"),
        ({"layers": None}, "layers: expected names of modules, as 'conv', found NoneType"),
        ({"layers": [3]}, "found int"),
        ({"size": (16, 16)}, r"size: expected the side of a square, .* found \(16, 16\)"),
        ({"size": 16.0}, r"found 16\.0"),
        ({"size": 2}, "the network fails on 2 images"),
        ({"mean": 0.5}, r"mean: expected three numbers, .* found 0\.5"),
        ({"mean": None}, "mean: expected three numbers"),
        ({"std": (0, 0, 0)}, "none of them 0"),
        ({"std": "abc"}, "std: expected three numbers"),
        ({"prefix_tokens": -1}, "prefix_tokens: expected a whole number, from 0"),
        ({"crop_pct": "all"}, "crop_pct: expected a number"),
        ({"crop_pct": True}, r"crop_pct: expected a number in 0\.\.1, found True"),
        ({"crop_pct": float("nan")}, "crop_pct: expected a number"),
        ({"name": True}, "name: expected a text, found True"),
        ({"name": 3}, "name: expected a text, found 3"),
        ({"std": (True,) * 3}, "std: expected three numbers"),
        ({"std": np.ones(3, bool)}, "std: expected three numbers"),
        ({"mean": torch.ones(3, dtype=torch.bool)}, "mean: expected three numbers"),
        ({"mean": ("0.5",) * 3}, "mean: expected three numbers"),
        ({"std": "111"}, "std: expected three numbers"),
    ],
)
def test_arguments_of_other_kinds_are_one_line(net, given, message):
    arguments = {"net": net, "layers": ["conv"], "size": 16, "mean": MEAN, "std": STD} | given
    with pytest.raises(vr.VDVAEReprError, match=message) as refusal:
        vr.TorchEncoder(**arguments)
    assert "\n" not in str(refusal.value)
    assert "did you mean ''" not in str(refusal.value)


SCALE = 1.0


class Shaped(nn.Module):
    """One convolution, and everything beside weights that may change what a network computes."""

    def __init__(self, *, scale=1.0, shift=0.0, act=F.relu, padding_mode="zeros", kinds=("a", "b")):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode=padding_mode)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)
        self.scale, self.act, self.kinds, self.calls = scale, act, set(kinds), 0

    def forward(self, x):
        self.calls += 1
        self.last = x
        return self.after(self.act(self.conv(x)) * self.scale + self.shift) * SCALE

    def after(self, x):
        return x


class Squared(Shaped):
    def after(self, x):
        return x * x


class Halved(Shaped):
    def after(self, x):
        return x / 2


Halved.__qualname__ = Squared.__qualname__  # as after an edit of its code


def alike(net, layers=("0",), **options):
    """Return an encoder of a network whose weights are always the same."""
    torch.manual_seed(0)
    options = {"size": 16, "mean": MEAN, "std": STD, "name": "net"} | options
    return vr.TorchEncoder(nn.Sequential(net(), nn.Flatten()), list(layers), **options)


NETWORKS = [
    Shaped,
    lambda: Shaped(scale=3.0),
    lambda: Shaped(shift=0.5),
    lambda: Shaped(act=torch.tanh),
    lambda: Shaped(act=nn.Tanh()),
    lambda: Shaped(act=nn.ELU()),
    lambda: Shaped(act=nn.ELU(alpha=0.5)),
    lambda: Shaped(act=lambda x: x.clamp(min=0.1)),
    lambda: Shaped(act=lambda x: x.clamp(min=0.2)),
    lambda: Shaped(padding_mode="reflect"),
    Squared,
    Halved,
]


def test_what_a_network_computes_is_part_of_its_identity_and_what_a_pass_leaves_behind_is_not():
    identities = [alike(net).identity()["weights_sha256"] for net in NETWORKS]
    assert len(set(identities)) == len(NETWORKS)
    encoder = alike(Shaped)
    encoder.read(np.zeros((5, 16, 16, 3), np.uint8), encoder.layers)
    assert encoder.identity()["weights_sha256"] == identities[0]
    encoder.net[0].scale = 2.0
    assert encoder.identity()["weights_sha256"] != identities[0]


def test_a_constant_that_the_code_uses_is_part_of_the_identity(monkeypatch):
    before = alike(Shaped).identity()
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert alike(Shaped).identity() != before


# A network that multiplies by what stands in many places, each of which a person may edit.
EDITED = """
import argparse, dataclasses, enum, functools, sys
from typing import NamedTuple
import numpy as np, torch
from torch import nn
import helping_module as helping

@dataclasses.dataclass(slots=True)
class Options:
    scale: float

class Helper:
    @staticmethod
    def of(x): return x * {a_class_that_is_used}

@functools.lru_cache
def cached(): return {a_function_with_a_cache}

class Shared:
    value = {a_class_of_an_object}

class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * {a_function_of_autograd}

apply, NUMBER = Function.apply, np.float32({a_number_of_numpy})

class Kind(enum.Enum):
    A = ("a", torch.relu)
    def run(self, x): return x * {a_method_of_an_enumeration}

class Table(dict):
    def __getattr__(self, key): return self[key] * {a_class_made_of_dict}

class Pair(NamedTuple):
    one: float
    @property
    def own(self): return self.one * {a_property_of_a_named_tuple}

class Mixin:
    def forward(self, x): return self.whole(x * {a_class_that_is_mixed_in})

class Conv(nn.Conv2d):
    def _conv_forward(self, *given): return super()._conv_forward(*given) * {a_method_that_a_library_calls}

SHARED, TABLES = Shared(), {{"scale": {a_dictionary_of_a_module}, "calls": 0}}

def constant(values):
    net = nn.Conv2d(4, 4, 1, bias=False)
    nn.init.constant_(net.weight, values)
    return net

BEHIND = constant({a_network_of_a_module})

def hook(module, inputs, output, by, of): return output * by

class Net(Mixin, nn.Module):
    SCALES, CONFIG = [1.0, {a_list_of_a_class}], {{"scale": {a_dictionary_of_a_class}, "calls": 0}}

    def __init__(self):
        super().__init__()
        self.conv, self.out, self.kind = Conv(3, 4, 4, stride=4, bias=False), nn.Identity(), "own"
        nn.init.constant_(self.conv.weight, 1.0)
        self.config = dict(a=1, b=2, c=3, scale={the_fourth_item_of_a_dictionary}, calls=0)
        self.arguments = argparse.Namespace(a=1, b=2, c=3, scale={a_namespace})
        self.options, self.parts = Options({a_slot}), [nn.Identity(), constant({a_network_in_a_list})]
        self.arrays = {{"a": np.ones(3), "scale": np.full(1, {an_array_in_a_dictionary})}}
        for by in (1.0, {the_second_hook}):
            self.out.register_forward_hook(functools.partial(hook, by=by, of="net"))
        self.frozen = nn.Parameter(torch.tensor({a_parameter_that_is_not_saved}))
        self.bound, self.kind_of, self.table, self.pair = self.method, Kind.A, Table(one=1.0), Pair(1.0)

    def state_dict(self, *args, **kwargs):
        return {{k: v for k, v in super().state_dict(*args, **kwargs).items() if "frozen" not in k}}

    def method(self, x, scale={a_default}): return x * scale

    def in_own_way(self, x): return x * {a_method_whose_name_is_made}

    @property
    def own(self): return {a_property}

    def whole(self, x):
        x = apply(self.kind_of.run(x)) * float(NUMBER) * self.table.one * self.pair.own
        self.config["calls"] = self.CONFIG["calls"] = TABLES["calls"] = self.config["calls"] + 1
        x = Helper.of(BEHIND(self.parts[1](self.conv(x)))) * SHARED.value * cached() * self.own
        x = helping.by(self.bound(x)) * self.SCALES[1] * self.CONFIG["scale"] * TABLES["scale"]
        x = x * self.config["scale"] * self.arguments.scale * self.options.scale * self.frozen
        x = getattr(self, f"in_{{self.kind}}_way")(x)
        return self.out(x * float(self.arrays["scale"][0]))
"""
HELPING = "def by(x): return x * {a_module_that_is_used}"
PLACES = sorted(set(re.findall(r"(?<![{])[{](\w+)[}]", EDITED + HELPING)))


@pytest.fixture
def edited(monkeypatch):
    """Return an encoder of the network with 3 in one place and 1 in all others, as after an edit."""

    def make(place=None):
        values = {name: 3.0 if name == place else 1.0 for name in PLACES}
        for name, text in (("helping_module", HELPING), ("edited_module", EDITED)):
            module = types.ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)
            exec(text.format(**values), vars(module))
        return vr.TorchEncoder(module.Net(), ["out"], size=16, mean=MEAN, std=STD)

    return make


@pytest.mark.parametrize("place", PLACES)
def test_a_network_that_was_edited_in_any_place_is_another(edited, place):
    images = np.full((2, 16, 16, 3), 200, np.uint8)
    before, same, after = edited(), edited(), edited(place)
    values = [e.read(images, e.layers).values["out", "activation"] for e in (before, after)]
    torch.testing.assert_close(values[1], 3 * values[0])
    shas = [encoder.identity()["weights_sha256"] for encoder in (before, same, after)]
    assert shas[0] == shas[1] != shas[2]


class Held(nn.Module):
    """A network that its own attributes, hooks and children lead back to."""

    def __init__(self):
        super().__init__()
        self.conv, self.outputs = nn.Conv2d(3, 4, 4, stride=4), {}
        self.conv.register_forward_hook(self.keep)
        self.table = {"own": self.forward}
        self.conv.parents, self.others = [self], [nn.Identity()]
        self.others[0].parents = [self, self.others]

    def keep(self, module, inputs, output):
        self.outputs["conv"] = output

    def forward(self, x):
        return self.conv(x)

    def get_extra_state(self):
        return {"epoch": 3}

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize("module", ["code.model", "profile", "wave", None, "mine"])
def test_what_a_module_is_called_hides_no_code_in_it(module, monkeypatch):
    text = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 4), nn.Identity()
    def forward(self, x): return self.out(self.conv(x) * FACTOR)
"""

    monkeypatch.delitem(sys.modules, module, raising=False)  # Python's own, which it stands before

    def identity(factor):
        namespace = {"__name__": module} if module else {}
        exec(text.replace("FACTOR", factor), namespace)
        torch.manual_seed(0)
        net = namespace["Net"]()
        return vr.TorchEncoder(net, ["out"], size=16, mean=MEAN, std=STD).identity()

    assert identity("2") == identity("2") != identity("3")


def test_the_order_of_modules_is_part_of_the_identity():
    def identity(*order):
        torch.manual_seed(0)
        parts = {"conv": nn.Conv2d(3, 4, 4), "act": nn.ReLU(), "norm": nn.GroupNorm(2, 4)}
        net = nn.Sequential(OrderedDict((name, parts[name]) for name in order))
        return alike(lambda: net).identity()["weights_sha256"]

    assert identity("conv", "act", "norm") != identity("conv", "norm", "act")


def test_where_a_network_runs_is_no_part_of_its_identity():
    def identity(device):
        torch.manual_seed(0)
        net = Shaped()
        net.device, net.other = device, torch.device(device)
        return alike(lambda: net).identity()

    assert identity("cpu") == identity("cuda:1")


def test_what_is_changed_after_wrapping_is_part_of_the_identity():
    encoder = alike(Shaped)
    before = encoder.identity()
    net = encoder.net[0]
    net.forward = lambda x: net.conv(x) * 7
    assert encoder.identity() != before


class Scaled(nn.Module):
    """By a number in a file, which no identity knows."""

    def __init__(self, path):
        super().__init__()
        self.conv, self.path = nn.Conv2d(3, 4, 4, stride=4), path

    def forward(self, x):
        return self.conv(x) * float(self.path.read_text())


@pytest.mark.parametrize("stopped", [False, True])
def test_a_store_that_the_network_would_fill_otherwise_is_refused(
    people, tmp_path, stopped, monkeypatch
):
    (tmp_path / "scale").write_text("1")

    def extract(**options):
        encoder = alike(lambda: Scaled(tmp_path / "scale"))
        return vr.extract(encoder, people(4), tmp_path / "e.h5", layout="virtual", **options)

    whole = extract().matrix("0")[0]
    if stopped:
        (tmp_path / "e.h5").unlink()
    np.testing.assert_array_equal(extract().matrix("0")[0], whole)
    if stopped:
        (tmp_path / "e.h5").unlink()
    (tmp_path / "scale").write_text("1.1")
    with pytest.raises(
        vr.StoreError, match=r"layer 0, activation of .* is not what the network gives"
    ):
        extract()
    np.testing.assert_allclose(extract(overwrite=True).matrix("0")[0], 1.1 * whole, rtol=1e-5)


class Raising:
    """Options as attributes; of what is none it raises a KeyError."""

    def __init__(self, **options):
        self.__dict__["options"] = options

    def __getattr__(self, key):
        return self.options[key]


def test_options_that_raise_errors_of_their_own_are_described():
    def identity(scale):
        torch.manual_seed(0)
        net = Shaped()
        net.options = Raising(scale=scale)
        return alike(lambda: net).identity()

    assert identity(1) == identity(1) != identity(2)


@pytest.mark.parametrize("as_method", [True, False])
def test_a_copy_that_runs_the_network_itself_is_no_random_twin(as_method):
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 4), nn.Identity()
            self.run = self.conv.forward if as_method else lambda x: self.conv(x)

        def forward(self, x):
            return self.out(self.run(x))

    encoder = vr.TorchEncoder(Held(), ["out"], size=16, mean=MEAN, std=STD)
    if as_method:  # which goes with the copy
        assert not encoder.reinitialised(0).kept
    else:
        with pytest.raises(vr.CheckpointError, match="anew computes the same, as where a function"):
            encoder.reinitialised(0)


def test_a_cell_that_runs_again_makes_no_other_network():
    """As in a notebook, where its classes are made anew and the network is of the old ones."""
    cell = """
from torch import nn
class Block(nn.Conv2d):
    def forward(self, x): return super().forward(x) * 2
class Net(nn.Sequential):
    def forward(self, x):
        for child in self:
            x = child(x) if isinstance(child, (Block, nn.Module)) else x
        return x
"""
    namespace = {"__name__": "__main__"}
    exec(cell, namespace)
    torch.manual_seed(0)
    net = namespace["Net"](namespace["Block"](3, 4, 4))

    def identity():
        return vr.TorchEncoder(net, ["0"], size=16, mean=MEAN, std=STD).identity()

    first = identity()
    exec(cell, namespace)
    assert identity() == first
    exec(cell.replace("* 2", "* 3"), namespace)
    torch.manual_seed(0)
    net = namespace["Net"](namespace["Block"](3, 4, 4))
    assert identity() != first


class Remembering(nn.Module):
    """Tables by the size of a batch, which passes fill."""

    def __init__(self):
        super().__init__()
        self.conv, self.by_number, self.by_name = nn.Conv2d(3, 4, 4, stride=4), {}, {}

    def forward(self, x):
        for table, key in ((self.by_number, len(x)), (self.by_name, str(len(x)))):
            x = x * table.setdefault(key, torch.ones(len(x), 1, 1, 1))
        return self.conv(x)

    def train_on(self, x):
        HISTORY.append(self(x))


HISTORY = []


def test_what_passes_and_training_fill_makes_no_other_network():
    torch.manual_seed(0)
    net = Remembering()
    options = {"layers": ["conv"], "size": 16, "mean": MEAN, "std": STD}
    encoder = vr.TorchEncoder(net, **options)
    first = encoder.identity()
    encoder.read(np.zeros((7, 16, 16, 3), np.uint8), encoder.layers)
    net.train_on(torch.zeros(9, 3, 16, 16))
    del encoder
    gc.collect()
    assert vr.TorchEncoder(net, **options).identity() == first


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Tripled(nn.Conv2d):
    def forward(self, x):
        return 3 * super().forward(x)


Tripled.__qualname__ = Doubled.__qualname__


@pytest.mark.parametrize(
    "around",
    [
        nn.DataParallel,
        lambda net: torch.compile(net, backend="eager"),
        nn.utils.parametrizations.weight_norm,
    ],
)
def test_a_network_with_something_around_it_is_told_by_what_is_inside(around):
    def identity(kind):
        torch.manual_seed(0)
        net = nn.Sequential(around(kind(3, 4, 4)))
        encoder = vr.TorchEncoder(net, ["0"], size=16, mean=MEAN, std=STD)
        return encoder.identity()["weights_sha256"]

    assert identity(Doubled) == identity(Doubled) != identity(Tripled)


def test_a_network_may_hold_itself():
    encoder = alike(Held)
    assert encoder.identity() == alike(Held).identity()
    twin = encoder.reinitialised(0)
    assert not torch.equal(twin.net[0].conv.weight, encoder.net[0].conv.weight)


def test_the_identity_of_a_network_is_the_same_in_every_session(tmp_path):
    lines = "import sys; sys.path.insert(0, sys.argv[1]); import test_torch as t; "
    lines += "print(t.alike(t.Shaped).identity()['weights_sha256'])"
    command = [sys.executable, "-c", lines, str(Path(__file__).parent)]
    printed = {
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env=os.environ
            | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(vr.__file__).parents[1])},
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {alike(Shaped).identity()["weights_sha256"] + "\n"}


def test_a_store_of_another_activation_is_not_taken_for_complete(images, tmp_path):
    vr.extract(alike(Shaped), images, tmp_path / "e.h5")
    lines = []
    vr.extract(alike(Shaped), images, tmp_path / "e.h5", report=lines.append)
    assert lines == [f"{tmp_path / 'e.h5'}: already complete"]
    with pytest.raises(vr.StoreError, match="already holds another extraction"):
        vr.extract(alike(lambda: Shaped(act=torch.tanh)), images, tmp_path / "e.h5")


def test_encoders_of_one_network_with_other_layers_each_have_their_random_twin(people, tmp_path):
    torch.manual_seed(0)
    net = Net()
    options = {"size": 16, "mean": MEAN, "std": STD}
    stores = []
    encoders = [vr.TorchEncoder(net, [layer], **options) for layer in ("conv", "head")]
    for encoder in encoders:
        stores.append(vr.extract(encoder, people(4), tmp_path / f"{len(stores)}.h5"))
    for store, layer in zip(stores, ("conv", "head"), strict=True):
        rows = vr.probe(store, "face_id", heads=["nearest-neighbor"], cache=None).rows
        assert layer in {row.layer for row in rows if row.model == "random-init"}


def test_a_random_twin_reads_tokens_as_its_store_does(people, tmp_path):
    """An encoder of the same network that takes the class token for a patch is not asked."""

    class Tokens(Token):
        def reset_parameters(self):
            nn.init.normal_(self.token)

    net = nn.Sequential(Tokens())
    options = {"layers": ["0"], "size": 16, "mean": MEAN, "std": STD}
    encoder = vr.TorchEncoder(net, **options, prefix_tokens=1)
    store = vr.extract(encoder, people(4), tmp_path / "e.h5")
    del encoder
    gc.collect()
    other = vr.TorchEncoder(net, **options)
    assert not [r for r in vr.probe(store, "face_id", cache=None).rows if r.model == "random-init"]
    again = vr.TorchEncoder(net, **options, prefix_tokens=1)
    assert [r for r in vr.probe(store, "face_id", cache=None).rows if r.model == "random-init"]
    assert (other.prefix_tokens, again.prefix_tokens) == (0, 1)


def test_kept_scores_of_a_random_twin_are_not_taken_for_those_of_another_network(people, tmp_path):
    def scores(net, cache=None):
        encoder = alike(net, name="same")
        store = vr.extract(encoder, people(4), tmp_path / "e.h5", overwrite=True)
        rows = vr.probe(store, "face_id", heads=["ridge"], cache=cache).rows
        return [row.value for row in rows if row.model == "random-init"]

    first = scores(Shaped, tmp_path / "scores")
    other = scores(lambda: Shaped(act=torch.tanh), tmp_path / "scores")
    assert other == scores(lambda: Shaped(act=torch.tanh))
    assert scores(Shaped, tmp_path / "scores") == first


def test_a_token_beside_a_square_of_patches_is_said(caplog):
    from torchvision.models import VisionTransformer

    vit = VisionTransformer(16, 4, 1, 2, 8, 16)
    given = {"layers": ["encoder.ln"], "size": 16, "mean": MEAN, "std": STD}
    vr.TorchEncoder(vit, **given)
    assert caplog.messages == [
        "layer encoder.ln: has 17 tokens, 4x4 and one more: if that is a class token before them, "
        "give prefix_tokens=1; without it pool avg averages it with the patches"
    ]
    caplog.clear()
    vr.TorchEncoder(vit, prefix_tokens=1, **given)
    assert caplog.messages == []
