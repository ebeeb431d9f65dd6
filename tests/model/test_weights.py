"""Files that people have in place of weights, and what they wrap around them."""

import argparse
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp._common_utils import FSDP_WRAPPED_MODULE

import vdvae_repr as vr
from vdvae_repr.model import weights


@pytest.fixture
def published(tiny, monkeypatch):
    """The tiny model under the published names, which a preset called tiny fits."""
    monkeypatch.setattr(weights, "preset_names", lambda: ["tiny"])
    monkeypatch.setattr(weights, "preset_architecture", lambda name: tiny.config)
    pairs = [
        ("bottom_up.in_conv", "encoder.in_conv"),
        ("bottom_up.blocks", "encoder.enc_blocks"),
        ("top_down.blocks", "decoder.dec_blocks"),
        ("top_down.constants", "decoder.bias_xs"),
        ("top_down.out_conv", "decoder.out_net.out_conv"),
        ("top_down.gain", "decoder.gain"),
        ("top_down.bias", "decoder.bias"),
    ]
    state = {}
    for key, value in tiny.state_dict().items():
        ours, theirs = next(pair for pair in pairs if key.startswith(pair[0]))
        name = key.replace(ours, theirs, 1)
        state[name.replace(".posterior.", ".enc.") if "dec_blocks" in name else name] = value
    return state


WRAPPINGS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "args": argparse.Namespace(lr=1)},
    "nested": lambda s: {"state": {"model": s}, "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "parallel and compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "lightning": lambda s: {"state_dict": {f"net.{k}": v for k, v in s.items()}, "step": 1},
    "half precision": lambda s: {k: v.half() for k, v in s.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("ending", ["th", "ckpt", "bin", "pt"])
def test_wrapped_checkpoints_are_unwrapped(published, tiny, tmp_path, wrapping, ending):
    path = tmp_path / f"w.{ending}"
    torch.save(WRAPPINGS[wrapping](published), path)
    for key, value in vr.load(path).state_dict().items():
        expected = tiny.state_dict()[key]
        tolerance = (
            {"rtol": 2e-3, "atol": 1e-4} if wrapping == "half precision" else {"rtol": 0, "atol": 0}
        )
        torch.testing.assert_close(value, expected, **tolerance)


@pytest.mark.parametrize("name", ["{}", "module.{}"])
def test_an_average_beside_plain_tensors_is_not_taken_for_them(published, tmp_path, name):
    average = {name.format(key): value + 1 for key, value in published.items()}
    for beside in (average, {"shadow": [average]}):
        torch.save({**published, "ema": beside}, tmp_path / "w.th")
        with pytest.raises(
            vr.CheckpointError, match="two sets of weights, one under 'ema' and one beside"
        ):
            vr.load(tmp_path / "w.th")
    torch.save(
        {"model": published, "mean": torch.ones(3), "weight": torch.ones(9)}, tmp_path / "w.th"
    )
    vr.load(tmp_path / "w.th")  # other tensors may stand beside


def test_published_names_in_safetensors_and_own_names_in_a_pickle(published, tiny, tmp_path):
    save_file(published, tmp_path / "m.safetensors")
    torch.save(tiny.state_dict(), tmp_path / "m.th")
    for file in ("m.safetensors", "m.th"):
        loaded = vr.load(tmp_path / file)
        assert weights.weights_sha256(loaded) == weights.weights_sha256(tiny)


def _wrong_files(folder, state):
    yield (
        "lfs.th",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        "Git LFS pointer, 64 bytes",
    )
    yield (
        "lfs.safetensors",
        b"version https://git-lfs.github.com/spec/v1\nsize 12\n",
        "Git LFS pointer",
    )
    yield (
        "xml.th",
        b'<?xml version="1.0"?><Error><Code>BlobNotFound</Code></Error>',
        "is a web page",
    )
    yield "page.ckpt", b"\n\n<!DOCTYPE html><html></html>", "is a web page"
    yield "bom.pt", b"\xef\xbb\xbf<html>", "is a web page"
    yield (
        "t.toml",
        b"[model]\nwidth = 4\n",
        "is a configuration .TOML., which holds no weights; train with",
    )
    yield (
        "recipe.toml",
        b"[train]\nsteps = 4\n",
        "is a configuration .TOML., which holds no weights",
    )
    yield "script.py", b"model = 3\n", "a text, 10 bytes"
    yield (
        "model.safetensors.index.json",
        b'{"weight_map": {}}',
        "is the index of shards.* join the shards",
    )
    yield "json.bin", b'{"error": "not found"}', "is a JSON text"
    yield "note.th", b"see the other folder", "a text, 20 bytes"
    yield "zero.th", b"", "is empty, 0 bytes"
    yield "gzip.th", b"\x1f\x8b\x08\x00" + bytes(40), "compressed by gzip"
    yield "store.th", b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file"
    yield "noise.th", bytes(range(128, 256)) * 4, "not a readable checkpoint, 512 bytes"
    torch.save(state, folder / "whole")
    whole = (folder / "whole").read_bytes()
    yield "cut.th", whole[: len(whole) // 2], "cut short: get it again"
    save_file(state, folder / "safe")
    safe = (folder / "safe").read_bytes()
    yield "cut.safetensors", safe[: len(safe) // 2], "cut short: get it again"
    yield "head.safetensors", safe[:20], "cut short: get it again"


def test_what_is_no_weights_file_is_named_for_what_it_is(published, tmp_path):
    for name, content, message in _wrong_files(tmp_path, published):
        (tmp_path / name).write_bytes(content)
        for model in (tmp_path / name, f"timm:resnet10t@{tmp_path / name}"):
            with pytest.raises(vr.CheckpointError, match=message) as refusal:
                vr.load(model)
            text = str(refusal.value)
            assert name in text
            assert "\n" not in text
            assert "weights_only" not in text
            assert "pickled code" not in text


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("width", [2, 200])
def test_a_torchscript_archive_is_named_as_one_whatever_its_size(tmp_path, width):
    torch.jit.save(
        torch.jit.trace(torch.nn.Linear(width, 2), torch.ones(1, width)), tmp_path / "m.pt"
    )
    for model in (tmp_path / "m.pt", f"timm:resnet10t@{tmp_path / 'm.pt'}"):
        with pytest.raises(vr.CheckpointError, match=r"is a TorchScript archive.*state_dict\(\)"):
            vr.load(model)


def test_a_folder_of_shards_is_told_from_one_without_weights(tmp_path):
    with pytest.raises(vr.CheckpointError, match=r"expected a run folder .*, found none$"):
        vr.load(tmp_path)
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(vr.CheckpointError, match="found 2 shards; join the shards into one file"):
        vr.load(tmp_path)


@pytest.mark.parametrize("name", ["m-00002-of-00003.safetensors", "m-00010-of-00100.pth"])
def test_a_shard_is_said_to_be_one_where_tensors_are_missing(published, tiny, tmp_path, name):
    file, message = tmp_path / name, r"by its name it is shard \d+ of \d+: join the shards into one"
    save_file(dict(list(published.items())[:9]), file)
    for model, preset in ((file, None), (file, tiny.config), (f"timm:resnet10t@{file}", None)):
        with pytest.raises(vr.CheckpointError, match=message):
            vr.load(model, preset=preset)
    save_file(published, file)
    assert weights.weights_sha256(vr.load(file)) == weights.weights_sha256(tiny)
    save_file(published | {"more": torch.ones(1)}, file)
    with pytest.raises(vr.CheckpointError, match="1 tensor is too many: more; save the weights"):
        vr.load(file, preset=tiny.config)


def _wrapped_by_torch():
    """Yield what torch's own wrappers name the weight of a module inside."""
    yield next(iter(torch.compile(torch.nn.Linear(2, 2)).state_dict()))
    wrapper = checkpoint_wrapper(torch.nn.Linear(2, 2))
    yield next(name for name, _ in torch.nn.Module.named_parameters(wrapper))
    yield f"{FSDP_WRAPPED_MODULE}.weight"  # FSDP itself needs a process group


@pytest.mark.parametrize("write", [torch.save, save_file])
def test_names_that_torch_puts_inside_are_taken_away(tiny, tmp_path, write):
    """As where blocks are compiled, sharded or recomputed one by one."""
    for wrapped in _wrapped_by_torch():
        inside = wrapped.removesuffix("weight")
        assert inside.startswith("_")
        weights_of = {
            name.replace(".0.", f".0.{inside}", 1): value
            for name, value in tiny.state_dict().items()
        }
        assert any(inside in name for name in weights_of)
        write(weights_of, tmp_path / "w.pt")
        loaded = vr.load(tmp_path / "w.pt", preset=tiny.config)
        assert weights.weights_sha256(loaded) == weights.weights_sha256(tiny)


def test_converted_weights_with_the_metadata_kept_are_said_to_be_changed(tiny, tmp_path):
    weights.save(tiny, tmp_path / "m.safetensors", record={})
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        half = {key: file.get_tensor(key).half() for key in file.keys()}  # noqa: SIM118
        save_file(half, tmp_path / "h.safetensors", metadata=file.metadata())
    with pytest.raises(
        vr.CheckpointError, match=r"or they were changed since, as to float16: .* preset"
    ):
        vr.load(tmp_path / "h.safetensors")
    save_file(half, tmp_path / "h.safetensors")
    vr.load(tmp_path / "h.safetensors", preset=tiny.config)  # as the message advises


class Anything:
    """Pickled by name, as whole models are."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({0: torch.zeros(1)}, "the key 0 of type int"),
        ({"model": {0: torch.zeros(1)}}, "found the key 0 of type int"),
        ({}, "an empty dictionary"),
        ({"model": {}, "ema": {}}, "found the keys model, ema"),
        ({"model": {"w": torch.zeros(2)}, "ema": {"w": torch.zeros(2)}},
         r"2 sets of weights, model, ema; save the one that is meant: torch\.save\(torch\.load"),
        ({"model": {"w": torch.zeros(2)}, "optimizer": {"state": {"w": {"exp_avg": torch.zeros(2)}}}},
         r"torch\.load\('.*'\)\['model'\], FILE\)"),
        ({"exp_avg": {"w": torch.zeros(2)}, "optimizer": {"w": {"exp_avg": torch.zeros(2)}}},
         r"torch\.save\(model\.state_dict\(\), FILE\)"),
        ({"w": torch.zeros(1), "n": 3}, "found int under 'n'"),
        ([torch.zeros(1)], "found list"),
        (torch.zeros(3), "found Tensor"),
        ({"w": Anything()}, r"Anything\); refused, nothing was run"),
        ({"a": torch.zeros(1), "b": torch.zeros(2)}, r"names of tensors, 2 in all, begin with a, b\)"),
    ],
)  # fmt: skip
def test_other_contents_are_refused_in_one_line(tmp_path, content, message):
    torch.save(content, tmp_path / "m.th")
    with pytest.raises(vr.CheckpointError, match=message) as refusal:
        vr.load(tmp_path / "m.th")
    assert "\n" not in str(refusal.value)
    assert "weights_only" not in str(refusal.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "expected the model's config in the metadata"),
        ({"config": "{bad"}, "config in its metadata cannot be read"),
        ({"config": "[]"}, "config in its metadata cannot be read"),
        ({"config": "null"}, "config in its metadata cannot be read"),
        ({"config": "{}"}, "config in its metadata cannot be read"),
        ({"config": '{"width": 3}'}, "config in its metadata cannot be read"),
        ({"config": '{"image_size": "x"}'}, "config in its metadata cannot be read"),
    ],
)
def test_metadata_that_says_nothing_is_one_line(tmp_path, metadata, message):
    file = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(1)}, file, metadata={"format": weights.FORMAT} | metadata)
    with pytest.raises(vr.CheckpointError, match=message) as refusal:
        vr.load(file)
    assert "\n" not in str(refusal.value)
    assert "m.safetensors" in str(refusal.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(published, tiny, tmp_path, value):
    broken = published | {"decoder.gain": torch.full_like(published["decoder.gain"], value)}
    torch.save(broken, tmp_path / "m.th")
    with pytest.raises(vr.CheckpointError, match=r"NaN or infinity in top_down\.gain"):
        vr.load(tmp_path / "m.th")
    model = vr.VDVAE(tiny.config).load_weights(tiny.state_dict(), "tiny")
    with torch.no_grad():
        model.top_down.gain.fill_(value)
    weights.save(model, tmp_path / "m.safetensors", record={})
    with pytest.raises(vr.CheckpointError, match=r"NaN or infinity in top_down\.gain"):
        vr.load(tmp_path / "m.safetensors")


def test_raw_weights_warn_and_averaged_ones_do_not(published, tmp_path):
    for name in ("run-model.th", "run-model-ema.th"):
        torch.save(published, tmp_path / name)
    with pytest.warns(
        UserWarning, match=r"published figures belong to .* run-model-ema\.th"
    ) as caught:
        vr.load(tmp_path / "run-model.th")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vr.load(tmp_path / "run-model-ema.th")


def test_raw_weights_of_a_checkpoint_of_a_run_warn_and_its_average_does_not(tiny, tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step-2"
    folder.mkdir(parents=True)
    for name in ("model", "average"):
        save_file(tiny.state_dict(), folder / f"{name}.safetensors")
    for path in (folder, folder / "model.safetensors"):
        with pytest.warns(UserWarning, match=r"average\.safetensors beside it") as caught:
            vr.load(path, preset=tiny.config)
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vr.load(folder / "average.safetensors", preset=tiny.config)
        (folder / "average.safetensors").unlink()
        vr.load(folder / "model.safetensors", preset=tiny.config)


TINY = """
[model]
image_size = 16
width = 8
zdim = 4
bottom_up = "16x1,16d2,8x1,8d2,4x1,4d4,1x1"
top_down = "1x1,4m1,8m4,8x1,16m8"
num_mixtures = 2
shift = -127.5
scale = 0.015625
"""


@pytest.mark.parametrize("metadata", [{}, {"config": "{bad"}])
def test_an_architecture_is_named_by_a_toml_or_a_configuration(tiny, tmp_path, metadata):
    """What the message advises where a file's config is not there is possible."""
    file, toml = tmp_path / "m.safetensors", tmp_path / "tiny.toml"
    save_file(tiny.state_dict(), file, metadata={"format": weights.FORMAT} | metadata)
    torch.save(tiny.state_dict(), tmp_path / "m.th")
    toml.write_text(TINY)
    for path in (file, tmp_path / "m.th"):
        with pytest.raises(
            vr.CheckpointError, match=r"with vr.load\(..., preset=NAME\), a preset's name"
        ):
            vr.load(path)
        for preset in (toml, str(toml), tiny.config, vr.Config(model=tiny.config)):
            loaded = vr.load(path, preset=preset)
            assert weights.weights_sha256(loaded) == weights.weights_sha256(tiny)
        with pytest.raises(
            vr.CheckpointError,
            match=r"another architecture: \d+ tensors are missing: .* \d+ tensors are (too many|of another)",
        ) as refusal:
            vr.load(path, preset="cifar10")
        assert "preset=" not in str(refusal.value)
    two = [(f"{part}.{k}", v) for part in ("vae", "disc") for k, v in tiny.state_dict().items()]
    torch.save(dict(two), tmp_path / "m.th")
    with pytest.raises(vr.CheckpointError, match="; all its names begin with disc, vae"):
        vr.load(tmp_path / "m.th", preset=toml)


@pytest.mark.parametrize(
    ("shift", "scale", "says"),
    [
        (-127.5, 1 / 64, None),
        (0.0, 1 / 255, None),
        (113.0, 1 / 64, "model.shift = 113 and model.scale = 0.015625 bring pixels of 0..255 to"),
        (-0.44, 1 / 64, "model.shift = -0.44 "),
        (-127.5, 1.0, "bring pixels of 0..255 to -128..128"),
        (-127.5, 0.229, "bring pixels of 0..255 to -29.2..29.2"),
    ],
)
def test_a_presets_shift_and_scale_that_no_images_have_are_said_once(
    tiny, tmp_path, recwarn, shift, scale, says
):
    torch.save(tiny.state_dict(), tmp_path / "m.th")
    config = replace(tiny.config, shift=shift, scale=scale)
    toml = tmp_path / "own.toml"
    toml.write_text(vr.Config(model=config).to_toml())
    for preset, name in ((toml, str(toml)), (str(toml), str(toml)), (config, "preset")):
        recwarn.clear()
        vr.load(tmp_path / "m.th", preset=preset)
        found = [str(warning.message) for warning in recwarn]
        assert len(found) == (says is not None)
        if says:
            assert found[0].startswith(f"{name}: model.shift = ")
            assert says in found[0]
            assert recwarn[0].filename == __file__


def test_a_runs_measured_scale_is_not_said_of_its_folder(tiny, tmp_path, recwarn):
    """Very dark images have a small deviation, which training measured."""
    torch.save(tiny.state_dict(), tmp_path / "m.th")
    config = vr.Config(model=replace(tiny.config, shift=-5.5, scale=1 / 3.4))
    (tmp_path / "config.toml").write_text(config.to_toml())
    vr.load(tmp_path / "m.th", preset=tmp_path)
    assert not len(recwarn)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s | {"foo": torch.zeros(1)},
            "1 tensor is too many: foo; save the weights without it",
        ),
        (
            lambda s: s | {name: torch.zeros(1) for name in "abcd"},
            "4 tensors are too many: a, b, c, ...; save the weights without them",
        ),
        (
            lambda s: {k: v for k, v in s.items() if k != "top_down.gain"},
            "1 tensor is missing: top_down.gain; give weights of this one, or",
        ),
        (
            lambda s: {k: v[:, :1].clone() if k == "top_down.gain" else v for k, v in s.items()},
            "1 tensor is of another shape: top_down.gain is (1, 1, 1, 1), expected (1, 8, 1, 1); give",
        ),
        (
            lambda s: {f"{net}.{k}": v for net in ("net", "ema_net") for k, v in s.items()},
            "; all its names begin with ema_net, net; save one network alone",
        ),
        (
            lambda s: s | {f"ema.{k}": v for k, v in s.items()},
            "...; save one network alone, by its own names, or give weights",
        ),
    ],
)
def test_weights_that_do_not_fit_a_preset_are_told_by_the_tensors(tiny, tmp_path, change, message):
    torch.save(change(tiny.state_dict()), tmp_path / "m.pt")
    with pytest.raises(vr.CheckpointError) as refusal:
        vr.load(tmp_path / "m.pt", preset=tiny.config)
    assert message in str(refusal.value)
    assert "preset=" not in str(refusal.value)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (("g_ema", "g"), "['g_ema']"),
        (("g", "g_ema"), "['g_ema']"),
        (("G", "D", "G_ema"), "['G_ema']"),
        (("ema_model", "model"), "['ema_model']"),
        (("state_dict", "state_dict_ema"), "['state_dict_ema']"),
        (("averaged", "model"), "['averaged']"),
        (("swa", "net"), "['swa']"),
        (("generator", "discriminator"), "[KEY]"),  # which is meant is not known
        (("schema", "remade"), "[KEY]"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_of_several_sets_of_weights_the_averaged_ones_are_named(
    tiny, tmp_path, monkeypatch, keys, named, wrapped
):
    """The line to copy works in the folder in which the file was named."""
    monkeypatch.chdir(tmp_path)
    Path("far").mkdir()
    sets = {key: {k: v + i for k, v in tiny.state_dict().items()} for i, key in enumerate(keys)}
    torch.save({"run": sets} if wrapped else sets, "far/w.pt")
    with pytest.raises(vr.CheckpointError) as refusal:
        vr.load("far/w.pt", preset=tiny.config)
    line = str(refusal.value).partition("is meant: ")[2]
    outer = "['run']" if wrapped else ""
    assert line == f"torch.save(torch.load('far/w.pt'){outer}{named}, FILE)"
    if named != "[KEY]":
        exec(line, {"torch": torch, "FILE": "one.pt"})
        loaded = vr.load("one.pt", preset=tiny.config).state_dict()
        assert torch.equal(loaded["top_down.gain"], sets[named[2:-2]]["top_down.gain"])


@pytest.mark.parametrize("model", [None, 3, [], b"faces64", "", " ", "\0", "a" * 5000])
def test_what_names_no_model_is_one_line(model):
    with pytest.raises(vr.CheckpointError) as refusal:
        vr.load(model)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_two_names_of_one_parameter_are_refused(published, tmp_path):
    torch.save(published | {"module.decoder.gain": published["decoder.gain"]}, tmp_path / "m.th")
    with pytest.raises(vr.CheckpointError, match="under two names of one parameter"):
        vr.load(tmp_path / "m.th")


def test_a_preset_beside_a_config_is_refused(tiny, tmp_path):
    weights.save(tiny, tmp_path / "own.safetensors", record={})
    with pytest.raises(vr.CheckpointError, match=r"says its own architecture.*leave preset out"):
        vr.load(tmp_path / "own.safetensors", preset="cifar10")


@pytest.mark.parametrize("preset", ["cifar10", "no-such-thing"])
@pytest.mark.parametrize("model", ["faces64@random", "openai:cifar10-seed0", "faces64"])
def test_a_preset_beside_a_name_that_says_its_architecture_is_refused(model, preset):
    with pytest.raises(vr.CheckpointError, match=f"preset '{preset}' would say nothing; leave"):
        vr.load(model, preset=preset)


@pytest.mark.parametrize("name", ["w.safetensors", "w.SAFETENSORS", "w.pt"])
@pytest.mark.parametrize("write", [torch.save, save_file])
def test_weights_are_told_by_their_content_and_not_by_their_name(tiny, tmp_path, write, name):
    write(tiny.state_dict(), tmp_path / name)
    found = vr.load(tmp_path / name, preset=tiny.config).state_dict()
    assert all(torch.equal(found[key], value) for key, value in tiny.state_dict().items())


def test_a_path_is_never_a_name(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("faces64").mkdir()
    weights.save(tiny, Path("faces64/model.safetensors"), record={})
    assert vr.load(Path("faces64")).config == tiny.config
    assert vr.load("faces64").config != tiny.config
    for name in ("timm:resnet18", "openai:imagenet64", "natural64", "faces64@random"):
        with pytest.raises(vr.CheckpointError, match="no such file"):
            vr.load(Path(name))


def test_floats_of_eight_bits_are_refused(tiny, tmp_path):
    state = {key: value.to(torch.float8_e4m3fn) for key, value in tiny.state_dict().items()}
    torch.save(state, tmp_path / "w.th")
    with pytest.raises(vr.CheckpointError, match="found float8_e4m3fn") as refusal:
        vr.load(tmp_path / "w.th", preset=tiny.config)
    assert "\n" not in str(refusal.value)


def test_an_average_kept_as_a_list_is_a_set_of_weights(tiny, tmp_path):
    """As torch_ema keeps it; states of generators are none."""
    weights_of = tiny.state_dict()
    random = {"cpu": torch.zeros(16, dtype=torch.uint8)}
    torch.save({"model": weights_of, "rng": random}, tmp_path / "a.th")
    assert weights.read_weights(tmp_path / "a.th").keys() == weights_of.keys()
    ema = {"decay": 0.9, "shadow_params": list(weights_of.values())}
    torch.save({"model": weights_of, "ema": ema}, tmp_path / "b.th")
    with pytest.raises(vr.CheckpointError, match="model, ema; copy the one that is meant"):
        weights.read_weights(tmp_path / "b.th")


@pytest.mark.parametrize("wrapper", ["", "_orig_mod.", "module."])
@pytest.mark.parametrize("ending", ["th", "safetensors"])
def test_an_averaged_model_of_torch_is_unwrapped(published, tiny, tmp_path, wrapper, ending):
    """torch.optim.swa_utils.AveragedModel keeps a count beside the weights."""
    state = {f"{wrapper}n_averaged": torch.tensor(7)}
    state |= {f"{wrapper}module.{key}": value for key, value in published.items()}
    path = tmp_path / f"m.{ending}"
    if ending == "th":
        torch.save({"model_ema": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    assert weights.weights_sha256(vr.load(path)) == weights.weights_sha256(tiny)
    assert set(weights.read_parameters(path)) == set(tiny.state_dict())


def test_an_archive_that_holds_a_checkpoint_is_to_be_unpacked(published, tmp_path):
    torch.save(published, tmp_path / "w.th")
    with zipfile.ZipFile(tmp_path / "again.th", "w") as archive:
        archive.write(tmp_path / "w.th", "w.th")
    with pytest.raises(vr.CheckpointError, match=r"not one of torch.save; it holds w.th: unpack"):
        vr.load(tmp_path / "again.th")


@pytest.mark.parametrize("ending", ["th", "pth", "pt", "ckpt", "bin", "safetensors"])
def test_a_flipped_bit_of_what_torch_saved_is_refused(published, tmp_path, ending):
    """torch.load compares no checksums; the zip that torch.save writes has them."""
    path = tmp_path / f"w.{ending}"
    torch.save(published, path)
    content = bytearray(path.read_bytes())
    key = next(key for key in published if key.endswith("in_conv.weight"))
    content[bytes(content).index(published[key].numpy().tobytes()) + 3] ^= 1
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    for read in (vr.load, weights.read_weights):
        with pytest.raises(vr.CheckpointError, match=rf"{damaged} do not match .* get it again"):
            read(path)


def test_a_flipped_bit_of_a_pickle_is_damage_and_no_code(tiny, tmp_path):
    """CRC-32 tells every single flipped bit; what the pickle would then call is not asked."""
    path = tmp_path / "w.pt"
    torch.save(tiny.state_dict(), path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("w/data.pkl")
    start = content.index(pickled)
    for place in range(start, start + len(pickled), len(pickled) // 60):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        for read in (weights.read_weights, lambda path: weights.read_th(path, lazily=True)):
            with pytest.raises(
                vr.CheckpointError, match=r"w/data\.pkl do not match .* get it again"
            ):
                read(path)


def test_what_torch_saved_without_checksums_is_read(published, tiny, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(published, tmp_path / "w.th")
    finally:
        torch.serialization.set_crc32_options(True)
    read = vr.load(tmp_path / "w.th").state_dict()
    assert all(torch.equal(value, read[key]) for key, value in tiny.state_dict().items())


def test_names_of_averaged_models_are_those_of_torch():
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 3))
    shapes = {name: tuple(value.shape) for name, value in averaged.state_dict().items()}
    assert weights._count_of_average(shapes) == "n_averaged"
    assert weights._count_of_average({"n_averaged": (), "weight": (3, 2)}) is None


@pytest.mark.parametrize(
    ("wrapped", "message"),
    [
        (lambda s: {"grads": s}, "found tensors under 'grads', which are none"),
        (lambda s: {"state_dict_delta": s}, "found tensors under 'state_dict_delta'"),
        (lambda s: {"optimizer": {"exp_avg": s}}, "found tensors under 'optimizer'"),
        (lambda s: {f"exp_avg.{k}": v for k, v in s.items()}, "found tensors under 'exp_avg'"),
        (
            lambda s: {f"model.grad.{k}": v for k, v in s.items()},
            "found tensors under 'model.grad'",
        ),
        (lambda s: s | {"lora.A": torch.zeros(2)}, "found 1 tensor of adapters to them, as lora.A"),
        (lambda s: {"shadow_params": list(s.values())}, "found a list under 'shadow_params'"),
        (lambda s: {"models": [s]}, "found a list under 'models'"),
        (
            lambda s: {"state_dict": s, "ema": {"shadow_params": dict(enumerate(s.values()))}},
            "2 sets of weights, state_dict, ema; copy the one that is meant into the model: torch",
        ),
        (lambda s: {"shadow_params": dict(enumerate(s.values()))}, "found the key 0 of type int"),
        (
            lambda s: {"state_dict": s, "callbacks": {"EMA": {"ema_state_dict": s}}},
            r"torch.load\('.*/w.th'\)\['callbacks'\]\['EMA'\]\['ema_state_dict'\]",
        ),
    ],
)
def test_what_is_called_like_weights_and_is_none_is_refused(published, tmp_path, wrapped, message):
    torch.save(wrapped(published), tmp_path / "w.th")
    with pytest.raises(vr.CheckpointError, match=message):
        vr.load(tmp_path / "w.th")
