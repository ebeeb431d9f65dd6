"""Mutated weights, configurations and run folders: one line of the library, or what was there before.

`VDVAE_REPR_EXAMPLES=20000` tries more of each kind.
"""

import json
import os
import resource
import shutil
import struct
import sys
import tempfile
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import vdvae_repr as vr
from vdvae_repr.config import ModelConfig, TrainConfig, load_config
from vdvae_repr.model import weights
from vdvae_repr.model.build import on_meta
from vdvae_repr.training import trainer
from vdvae_repr.training.checkpoints import read_newest
from vdvae_repr.training.plan import read_run

CONFIG = {
    "image_size": 8, "width": 4, "zdim": 2, "bottom_up": "8x1,8d2,4x1,4d4,1x1",
    "top_down": "1x1,4m1,8m4", "num_mixtures": 1, "shift": -127.5, "scale": 0.015625,
}  # fmt: skip
TRAIN = {"steps": 2, "batch_size": 4, "lr": 1e-3, "warmup_steps": 1, "seed": 3}
MOST_GROWTH = 2**30  # bytes


def tries(examples):
    """Settings of a test: the same examples each time, more where the environment asks for them."""
    return settings(
        max_examples=int(os.environ.get("VDVAE_REPR_EXAMPLES", examples)),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def peak_bytes():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@pytest.fixture(autouse=True)
def _bounded_memory():
    files()
    before = peak_bytes()
    yield
    assert peak_bytes() - before < MOST_GROWTH


def one_line(call, *arguments, **keywords):
    """Return what a call returns; None where it raises one of the library's errors, in one line."""
    try:
        return call(*arguments, **keywords)
    except vr.VDVAEReprError as error:
        text = str(error)
        assert text
        assert "\n" not in text
        assert "weights_only" not in text
        assert len(text) < 20_000
        return None


@cache
def files():
    """Return the folder of whole files: own weights, published ones in both formats, a finished run."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    toml = vr.Config(model=ModelConfig(**CONFIG), train=TrainConfig(**TRAIN)).to_toml()
    (folder / "c.toml").write_text(toml)
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    vr.train(folder / "c.toml", folder / "images.npy", folder / "run", checkpoint_every=1)
    state = vr.load(folder / "run").state_dict()
    shutil.copy(folder / "run" / "model.safetensors", folder / "own.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, folder / "zip.th")
    torch.save(state, folder / "legacy.th", _use_new_zipfile_serialization=False)
    return folder


@cache
def scratch():
    return Path(tempfile.mkdtemp(prefix="scratch-"))


@st.composite
def mutated(draw, content):
    """Flip, cut out, repeat or insert bytes, one to four times; half of the time in the first 2 kB."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        upto = len(content) if draw(st.booleans()) else min(len(content), 2000)
        place = draw(st.integers(0, max(0, upto - 1)))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(["flip", "digit", "cut", "end", "repeat", "insert"])):
            case "flip":
                content[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "digit":
                content[place : place + 1] = draw(
                    st.sampled_from([b"9", b"-", b"e9", b"[", b"{", b'"'])
                )
            case "cut":
                del content[place : place + length]
            case "end":
                del content[place:]
            case "repeat":
                content[place:place] = content[place : place + length] * draw(st.integers(1, 50))
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=8))
    return bytes(content)


def same_weights(model):
    """Whether a model that was loaded is the one that was saved."""
    return weights.weights_sha256(model) == weights.weights_sha256(vr.load(files() / "run"))


@pytest.mark.parametrize("name", ["own.safetensors", "zip.th", "legacy.th"])
def test_mutated_weights(name):
    whole = (files() / name).read_bytes()
    preset = None if name.startswith("own") else ModelConfig(**CONFIG)

    @tries(30)
    @given(mutated(whole))
    def check(content):
        path = scratch() / name
        path.write_bytes(content)
        model = one_line(vr.load, path, preset=preset)
        if model is not None and name != "legacy.th":  # which has no checksums
            assert same_weights(model)

    check()


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**30), st.just(-1), st.just(10**4000),
    st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=3), st.just("8x8," * 500_000),
    st.just([[[[]]]] * 3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
ITEM = st.builds(
    "{}{}{}".format,
    st.sampled_from([0, 1, 2, 3, 4, 8, 16, 99999999, -8, 10**30]),
    st.sampled_from(["", "x", "m", "d", ":", "xx", " "]),
    st.sampled_from(["", 0, 1, 2, 4, 8, 999, 99999999, -1, 10**30, "9" * 5000]),
)
BLOCKS = st.lists(ITEM, max_size=6).map(",".join)
NUMBERS = st.one_of(st.integers(0, 70), st.sampled_from([2**12, 2**14, 2**16, 2**20, 10**12]))
FIELD = st.one_of(
    st.tuples(st.sampled_from(["bottom_up", "top_down", "widths"]), BLOCKS),
    st.tuples(st.sampled_from(["image_size", "width", "zdim", "num_mixtures", "no_bias_above"]), NUMBERS),
    st.tuples(st.sampled_from([*CONFIG, "bits", "unpool", "widths", "bottleneck_multiple", "x"]), JUNK),
)  # fmt: skip


@tries(60)
@given(st.lists(FIELD, min_size=1, max_size=3))
@example([("top_down", "1x99999999")])
@example([("bottom_up", "8x8,8d8," * 10**6)])
@example([("width", 2**16), ("image_size", 2**12), ("bottom_up", "4096x9"), ("top_down", "4096x9")])
@example(
    [("no_bias_above", 2**20), ("image_size", 2**12), ("bottom_up", "4096"), ("top_down", "4096")]
)
@example([("widths", "8:0")])
@example([("width", 3)])
def test_configurations(changes):
    table = CONFIG | dict(changes)

    def model_of(text):
        return on_meta(ModelConfig.from_json(text))

    text = json.dumps(table) if 10**4000 not in table.values() else "[" * 10**5
    built = one_line(model_of, text)
    own = scratch() / "config.safetensors"
    metadata = {"format": weights.FORMAT, "config": text if len(text) < 10**6 else text[: 10**6]}
    save_file({"a": torch.zeros(1)}, own, metadata=metadata)
    assert one_line(vr.load, own) is None  # its tensors are of no such model
    if built is not None:
        assert sum(p.numel() for p in built.parameters()) <= 10**10


@tries(60)
@given(
    st.sampled_from([*TRAIN, "ema_rate", "checkpoint_every", "flip", "hold_back", "log_every"]),
    JUNK,
)
def test_recipes(key, value):
    """Through a `Config`, a TOML and a keyword, which are checked alike."""
    made = one_line(TrainConfig, **TRAIN | {key: value})
    if made is not None:
        assert np.isfinite([float(v) for v in (made.lr, made.ema_rate, made.seed)]).all()
    text = f"{value!r}" if not isinstance(value, str) else json.dumps(value)
    if isinstance(value, int) and abs(value) > 10**100:
        text = hex(abs(value))
    toml = scratch() / "recipe.toml"
    lines = (files() / "c.toml").read_text().splitlines()
    lines = [line for line in lines if not line.startswith(f"{key} =")]
    toml.write_text("\n".join([*lines, f"{key} = {text}"]), errors="replace")
    one_line(load_config, toml)
    one_line(load_config, files() / "c.toml", [f"train.{key}={text[:1000]}"])


@tries(80)
@given(mutated((files() / "c.toml").read_bytes()))
@example(b"a = " + b"[" * 10**5)
@example(b".".join([b"a"] * 10**4) + b" = 1")
@example(b"[model." + b".".join([b"a"] * 10**4) + b"]\nx=1")
@example(b"[model]\nwidth = 0x" + b"f" * 60_000)
@example(b"[model]\nwidth." + b".".join([b"a"] * 500) + b" = 1")
@example(b"".join(b"a%d = 1\n" % i for i in range(7000)))
@example(b"[model]\n" + b"".join(b"a%d = 1\n" % i for i in range(7000)))
@example(b"x" * (2**16 + 1))
@example(b"\xff\xfe")
def test_mutated_tomls(content):
    path = scratch() / "m.toml"
    path.write_bytes(content)
    one_line(load_config, path)
    one_line(vr.train, path, np.zeros((4, 8, 8, 3), np.uint8), scratch() / "never", steps=0)


JUNK_FILES = [
    b"",
    b"[]",
    b"NaN",
    b"[" * 10**5,
    b'{"step": NaN}',
    b"\xff",
    b'{"options": {}}',
    b"{}",
]


@pytest.mark.parametrize("name", ["run.json", "config.toml"])
def test_mutated_plans(name):
    """What a run is resumed by is refused, or is what was written."""
    whole = read_run(files() / "run")

    @tries(60)
    @given(st.one_of(st.sampled_from(JUNK_FILES), mutated((files() / "run" / name).read_bytes())))
    def check(content):
        out = scratch() / "plan"
        out.mkdir(exist_ok=True)
        for other in ("run.json", "config.toml"):
            shutil.copy(files() / "run" / other, out / other)
        (out / name).write_bytes(content)
        plan = one_line(read_run, out)
        assert plan is None or replace(plan, out=whole.out) == whole

    check()


def test_mutated_states(caplog):
    """A damaged checkpoint is passed over for the one before."""
    name = Path("checkpoints/step-00000002/state.json")
    shutil.copytree(files() / "run" / "checkpoints", scratch() / "checkpoints")
    whole = [read_newest(files() / "run" / "checkpoints")[1]]

    @tries(15)
    @given(st.one_of(st.sampled_from(JUNK_FILES), mutated((files() / "run" / name).read_bytes())))
    def check(content):
        (scratch() / name).write_bytes(content)
        _, state = read_newest(scratch() / "checkpoints")
        assert state in whole or state["step"] == 1

    check()


@pytest.mark.parametrize("name", ["run.json", "config.toml", "log.jsonl"])
@pytest.mark.parametrize("content", [b"", b"[]\n3\n\xff\n"])
def test_a_run_with_a_damaged_file(name, content, tmp_path):
    out = shutil.copytree(files() / "run", tmp_path / "run")
    (out / name).write_bytes(content)
    assert (one_line(vr.train, out, resume=True, steps=3) is None) == (name != "log.jsonl")
    if name == "log.jsonl":
        rows = (out / name).read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == [3]
    else:
        assert (out / name).read_bytes() == content


def test_damaged_checkpoints_are_noticed(caplog):
    """A flipped byte anywhere in the newest checkpoint: the one before is taken, and that is said."""
    rng = np.random.default_rng(0)
    for name in ("model", "average", "adamw"):
        out = scratch() / "flipped"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(files() / "run", out)
        path = out / "checkpoints" / "step-00000002" / f"{name}.safetensors"
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 16
        path.write_bytes(content)
        caplog.clear()
        vr.train(out, resume=True, steps=2)
        assert f"step-00000002 is damaged ({name}.safetensors does not match" in caplog.text
        assert same_weights(vr.load(out))  # step 2 was made again, from step 1
    for path in (out / "checkpoints").glob("*/state.json"):
        path.write_text("{")
    with pytest.raises(vr.TrainingError, match="expected a whole checkpoint, found 2 damaged"):
        vr.train(out, resume=True)


def published(**tensors):
    """Return a file that torch.save writes."""
    path = scratch() / "claims.th"
    torch.save(tensors, path)
    return path


def test_views_that_claim_more_than_they_hold():
    huge = torch.zeros(1).expand(10**6, 10**6)
    for path in (published(a=huge), published(a=torch.zeros(3), b={"c": huge})):
        for read in (vr.load, weights.read_weights):
            with pytest.raises(vr.CheckpointError) as refusal:
                read(path)
            assert "\n" not in str(refusal.value)
    state = vr.load(files() / "run").state_dict()
    first = next(iter(state))
    state[first] = state[first][:1, :1, :1, :1].clone().expand(state[first].shape)
    with pytest.raises(vr.CheckpointError, match="a view of 108 values, which repeats fewer"):
        vr.load(published(**state), preset=ModelConfig(**CONFIG))


class Claims:
    """Pickled as a tensor of so many values, none of which stands in the file."""

    def __reduce__(self):
        return torch.Tensor, (2**28,)


def test_values_that_are_not_in_the_file():
    for read in (vr.load, weights.read_weights):
        with pytest.raises(vr.CheckpointError, match="expected values that stand in the file"):
            read(published(a=Claims()))


def test_sparse_and_compressed_files():
    sparse = torch.sparse_coo_tensor([[0]], [1.0], (10**12,), check_invariants=True)
    with pytest.raises(vr.CheckpointError, match="a sparse, quantised or empty tensor under 'a'"):
        vr.load(published(a=sparse))

    path = scratch() / "bomb.th"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        with archive.open("a/data/0", "w", force_zip64=True) as member:
            for _ in range(4):
                member.write(bytes(2**24))
    with pytest.raises(vr.CheckpointError, match=r"an archive of 67,1\d\d,\d{3} bytes in"):
        vr.load(path)
    nested = {}
    nested["model"] = nested  # a dictionary around itself
    nested["w"] = torch.zeros(2)
    torch.save(nested, path)
    one_line(vr.load, path)


def test_a_header_that_claims_much():
    path = scratch() / "header.safetensors"
    path.write_bytes(struct.pack("<Q", 2**31) + b"{" + bytes(100))
    with pytest.raises(vr.CheckpointError, match="bytes of header at most, found 2,147,483,648"):
        vr.load(path)
    tensors = {"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}}
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(vr.CheckpointError, match="not a readable safetensors file"):
        vr.load(path)


def test_two_runs_in_one_folder(tmp_path):
    """The second is refused while the first holds the folder, by whatever name."""
    out = tmp_path / "run"
    with trainer._alone(out):
        (tmp_path / "link").symlink_to(out)
        for name in ("run", "link"):
            with pytest.raises(
                vr.TrainingError, match="another process is training in this folder"
            ):
                vr.train(files() / "c.toml", files() / "images.npy", tmp_path / name)
        assert [path.name for path in out.iterdir()] == [".lock"]
    assert not out.exists()  # nothing was written
    out.mkdir()
    (out / ".lock").touch()  # of a process that was killed
    vr.train(files() / "c.toml", files() / "images.npy", out)
    assert not (out / ".lock").exists()
    (out / ".lock").write_text("mine")
    with pytest.raises(vr.TrainingError, match=r"\.lock: is in the way, and is no lock"):
        vr.train(out, resume=True, steps=3)
