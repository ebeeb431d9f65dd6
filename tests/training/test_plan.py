"""What a run takes from its configuration, its folder and its data; how it ends if nothing was learned."""

import json
import math
import os
import shutil
import signal
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import vdvae_repr as vr
from vdvae_repr import cli
from vdvae_repr.cli import app
from vdvae_repr.config import TrainConfig, load_config, preset_names, preset_path
from vdvae_repr.data import datasets
from vdvae_repr.data.open import open_source
from vdvae_repr.data.source import Preprocessing
from vdvae_repr.model.structure import check_all_is_used
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.training import trainer, watch
from vdvae_repr.training.optimisation import Optimisation
from vdvae_repr.training.reading import pixel_statistics

TOML = """
[model]
image_size = 8
width = 4
zdim = 2
bottom_up = "8x1,8d2,4x1,4d4,1x1"
top_down = "1x1,4m1,8m4"
num_mixtures = 1

[train]
steps = 4
batch_size = 4
lr = 1e-3
warmup_steps = 1
"""
SHIFTED = "[model]\nshift = -127.5\nscale = 0.015625\n" + TOML.replace("[model]\n", "")


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def photos():
    return np.random.default_rng(0).integers(20, 90, (20, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, photos):
    """Twenty images as files, the last of them no image."""
    path = tmp_path / "photos"
    path.mkdir()
    for i, pixels in enumerate(photos[:19]):
        Image.fromarray(pixels).save(path / f"{i}.png")
    (path / "19.png").write_text("no image")
    return path


def rows(out):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    lines = (out / "log.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_warms_up(warmup, tiny):
    """By the recursion in exact arithmetic: at t updates taken its rate is at most (1 + t) / (10 + t)."""
    model = VDVAE(tiny.config)
    recipe = TrainConfig(steps=9, batch_size=1, lr=1e-3, ema_rate=0.25)
    optimisation = Optimisation(model, recipe, average_warmup=warmup)
    weight, expected = next(model.parameters()), Fraction(0)
    with torch.no_grad():
        next(optimisation.average.parameters()).zero_()
    values, taken = [1, 7, 3, 5], 0
    for step, value in enumerate(values):
        with torch.no_grad():
            weight.fill_(value)
        finite = step != 1  # a skipped update counts for nothing
        optimisation.update(0.0, finite)
        if finite:
            rate = min(Fraction(1, 4), Fraction(1 + taken, 10 + taken) if warmup else 1)
            expected, taken = rate * expected + (1 - rate) * value, taken + 1
    found = next(optimisation.average.parameters())
    assert found.flatten()[0].item() == pytest.approx(float(expected), rel=1e-5)


def test_published_presets_keep_the_published_average():
    recipes = {name: load_config(preset_path(name)).train for name in preset_names()}
    assert {name for name, recipe in recipes.items() if recipe.ema_warmup} == {
        "faces64", "natural64", "pixelcnn_small", "student64",
    }  # fmt: skip


def test_a_short_run_saves_trained_weights(toml, photos, tmp_path, caplog):
    out = vr.train(toml, photos, tmp_path / "r", steps=32, ema_rate=0.9999)
    assert "the model saved" not in caplog.text
    first, last = rows(out)[0], rows(out)[-1]
    gained = first["held_back_bits_per_dim"] - last["held_back_bits_per_dim"]
    reached = last["held_back_bits_per_dim"] - last["held_back_weights_bits_per_dim"]
    assert gained > 2 * reached > 0
    published = vr.train(toml, photos, tmp_path / "p", steps=32, ema_rate=0.9999, ema_warmup=False)
    behind = rows(published)[-1]
    assert behind["held_back_bits_per_dim"] > last["held_back_bits_per_dim"] + gained / 2
    assert behind["held_back_weights_bits_per_dim"] == last["held_back_weights_bits_per_dim"]
    average, weights = (behind[f"{key}_bits_per_dim"] for key in ("held_back", "held_back_weights"))
    line = f"the model saved, the average, scores {average:.3f} bits/dim on the images held back, "
    assert line + f"the weights {weights:.3f}; " in caplog.text


def test_shift_and_scale_are_those_of_the_training_images(toml, photos, tmp_path):
    splits = {"train/images": photos[:15], "val/images": 255 - photos[15:]}
    np.savez(tmp_path / "a.npz", **splits)
    said = []
    out = vr.train(toml, tmp_path / "a.npz", tmp_path / "r", progress=said.append)
    model = vr.load(out).config
    pixels = photos[:15].astype(np.float64)
    assert model.shift == pytest.approx(-pixels.mean(), rel=1e-12)
    assert model.scale == pytest.approx(1 / pixels.std(), rel=1e-12)
    assert load_config(out / "config.toml").model == model
    assert "measured on 15 training images" in said[0]
    given = vr.train(
        toml, tmp_path / "a.npz", tmp_path / "g", changed=["model.shift=-100"], progress=said.append
    )
    assert vr.load(given).config.shift == -100
    assert vr.load(given).config.scale == model.scale
    vr.train(toml, tmp_path / "a.npz", out, resume=True, changed=["train.steps=5"])
    assert load_config(out / "config.toml").model == model


def test_statistics_do_not_depend_on_batches(photos):
    source = open_source(np.concatenate([photos] * 7))
    found = pixel_statistics(source, Preprocessing(size=8), np.arange(100), workers=2)
    pixels = np.concatenate([photos] * 5).astype(np.float64)
    assert (found.mean, found.std) == pytest.approx((pixels.mean(), pixels.std()), rel=1e-12)
    with pytest.raises(vr.DataError, match="one flat colour"):
        pixel_statistics(
            open_source(np.full((3, 8, 8, 3), 7, np.uint8)), Preprocessing(size=8), np.arange(3), 1
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("lr = 1e-3|learning_rate = 1e-3", ["train.learning_rate; did you mean 'lr'?"]),
        ("steps = 4|epochs = 4", ["train.epochs; did you mean 'steps'?"]),
        ("batch_size = 4|batchsize = 4", ["train.batchsize; did you mean 'batch_size'?"]),
        ("lr = 1e-3|lr = 1e-3\nwd = 1", ["did you mean 'weight_decay'?"]),
        ("zdim = 2|latent_dim = 2", ["did you mean 'zdim'?"]),
        ("width = 4|width = 4\nlr = 1", ["model.lr; did you mean 'train.lr'?"]),
        ("batch_size = 4|batch_size = 1000000000000", ["batch_size must be at most"]),
        ("steps = 4|steps = 1" + "0" * 5000, ["expected TOML"]),
        ("steps = 4|steps = 4\nseed = -7", ["train.seed must be at least 0, found -7"]),
        ("steps = 4|steps = 4\ngrad_clip = inf", ["train.grad_clip must be finite"]),
        ("width = 4|width = 4\nkind = 'vdvae'", ["small.toml: model.kind: expected", "found 'vdvae'"]),
        ("width = 4|width = 4\nscale = nan", ["model.scale must be finite"]),
        ("width = 4|width = 4\nscale = 0", ["model.scale must be above 0"]),
        ("width = 4|width = 1", ["expected 1 channel at least inside each block"]),
        ("width = 4|width = 4\nwidths = '8:16'", ["expected 4 channels at 8"]),
        ("width = 4|width = 4\nwidths = '1:8,2:8'", [r"that the blocks reach, [1, 4, 8], found 2"]),
        ("width = 4|width = 4\nwidths = '1:8,1:6'", ["widths: expected each resolution once, found 1 twice"]),
        ("width = 4|width = 8\nwidths = '4:4'", ["at least 8 channels at 4", "8m4 mixes", "found 4"]),
        ("width = 4|width = 4\nwidths = '4:8'", ["at least 8 channels at 1", "4m1 mixes", "found 4"]),
        ("1x1,4m1,8m4|1x1,4x1,8m4", ["layers at 1x1 reach no pixel", "as 4m1"]),
        ("1x1,4m1,8m4|1x1,4m1,8x1", ["layers at 1x1 and 4x4 reach no pixel", "as 8m4"]),
        ("1x1,4m1,8m4|1x1,4m1,8m1", ["layers at 4x4 reach no pixel", "as 8m4"]),
        ("1x1,4m1,8m4|1x1,4m1,8m4,4x1,8x1", ["layers at 4x4 reach no pixel"]),
        ("8x1,8d2|8x1000000000,8d2", ["bottom_up: expected 1000 blocks at most"]),
        ("8x1,8d2|8x1,16d2", ["expected a block at 8, found 16d2"]),
        ("[train]|[trian]", ["unknown key trian; did you mean 'train'?"]),
        (
            "width = 4|width = 4.5\nscale = nan\nunpool = 'cubic'",
            ["3 mistakes", "width: expected int, found 4.5", "scale must be finite", "'nearest'"],
        ),
        (
            "8x1,8d2|8q1|steps = 4|seed = -7|lr = 1e-3|lrr = 1",
            ["train.seed", "train.lrr; did you mean 'lr'", "train.steps is missing", "found '8q1'"],
        ),
        ("width = 4\nzdim = 2|", ["model.width, model.zdim are missing"]),
    ],
)  # fmt: skip
def test_all_mistakes_are_named_at_once(change, words, toml, photos, tmp_path):
    parts = change.split("|")
    text = TOML
    for old, new in zip(parts[::2], parts[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    toml.write_text(text)
    with pytest.raises(vr.ConfigError) as error:
        vr.train(toml, photos, tmp_path / "r")
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", preset_names())
def test_every_layer_and_width_of_a_preset_is_used(name):
    check_all_is_used(load_config(preset_path(name)).model)


@pytest.mark.parametrize(
    ("top_down", "unread"), [("1x1,4x1,8m4", {"1x1.0"}), ("1x1,4m1,8m4", set())]
)
def test_layers_that_are_refused_are_those_that_change_no_pixel(top_down, unread):
    """Of a model with random weights, each layer's z is moved, one after the other."""
    torch.manual_seed(0)
    config = vr.ModelConfig(
        image_size=8, width=4, zdim=2, bottom_up="8x1,8d2,4x1,4d4,1x1", top_down=top_down,
        num_mixtures=1, shift=-127.5, scale=0.015625,
    )  # fmt: skip
    model = VDVAE(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    z = {spec.name: torch.zeros(1, *spec.shape) for spec in model.layers}
    plain = model.decode(z)
    same = {
        name
        for name, value in z.items()
        if np.array_equal(model.decode(z | {name: value + 50}), plain)
    }
    assert same == unread


def test_a_value_that_is_given_twice_is_refused(toml, photos, tmp_path):
    twice = ["train.seed=1", "train.seed=2"]
    for given in ({"changed": twice}, {"changed": twice[:1], "seed": 2}):
        with pytest.raises(vr.ConfigError, match=r"train\.seed: expected one value, found it"):
            vr.train(toml, photos, tmp_path / "r", **given)
    with pytest.raises(vr.ConfigError, match="found it given twice"):
        load_config(toml, twice)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"kl_warmup_steps": 16}, "train.kl_warmup_steps (16): at the end the rate counts by 0.25"),
        ({"warmup_steps": 16}, "train.warmup_steps (16): the step size comes to 0.00025 at most"),
        ({"probe_every": 5}, "probe_every (5) is more than train.steps (4), so that it does nothing"),
        ({"keep_every": 5}, "train.keep_every (5) is more than train.steps (4)"),
        ({"kl_warmup_steps": 4, "warmup_steps": 4, "probe_every": 4, "keep_every": 4}, None),
    ],
)  # fmt: skip
def test_what_the_steps_are_too_few_for_is_said(options, line, toml, photos, tmp_path):
    said = []
    labelled = vr.Source(
        name="l", ids=tuple(map(str, range(20))), reader=lambda i: photos[i],
        labels=np.arange(20) % 2,
    )  # fmt: skip
    vr.train(toml, labelled, tmp_path / "r", progress=said.append, hold_back="images", **options,
             **({"probe_data": labelled} if "probe_every" in options else {}))  # fmt: skip
    found = [text for text in said if "train.steps (4)" in text]
    assert len(found) == (line is not None)
    assert line is None or line in found[0]


@pytest.mark.parametrize(
    ("shift", "scale", "says"),
    [
        (120.6, 1 / 64, "bring pixels of 0..255 to 1.88..5.87"),  # the sign
        (120.6, None, "model.shift = 120.6 and model.scale = "),
        (-0.47, 1 / 64, "bring pixels of 0..255 to -0.00734..3.98"),
        (-1.0, 1 / 127.5, "bring pixels of 0..255 to -0.00784..1.99"),
        (-0.47, None, "model.shift = -0.47 and model.scale = "),
        (-120.6, 1.0, "bring pixels of 0..255 to -121..134"),
        (-120.6, 1 / 64 / 255, "bring pixels of 0..255 to -0.00739..0.00824"),
        (-120.6, 0.229, "bring pixels of 0..255 to -27.6..30.8"),  # a deviation, of 0 to 1
        (None, 0.9, "model.scale = 0.9 bring"),
        (None, 0.126, "model.scale = 0.126 bring"),
        (-120.6, 0.124, None),
        (0.0, 1 / 255, None),
        (-120.6, 1 / 64, None),
        (-127.5, 1 / 127.5, None),
        (None, None, None),
    ],
)
def test_a_shift_and_scale_that_no_images_have_are_said(toml, tmp_path, shift, scale, says):
    """Dark images have a small deviation, and their scale is no mistake."""
    dark = np.random.default_rng(0).integers(0, 12, (40, 8, 8, 3), np.uint8)
    given = {"model.shift": shift, "model.scale": scale, "train.steps": 2}
    changed = [f"{key}={value}" for key, value in given.items() if value is not None]
    said = []
    run = vr.train(toml, dark, tmp_path / "r", changed=changed, progress=said.append)
    found = [line for line in said if "the scale 1 by their deviation" in line]
    assert len(found) == (says is not None)
    assert says is None or says in found[0]
    said.clear()  # of a run that goes on it is not said again
    vr.train(run, dark, run, resume=True, changed=["train.steps=3"], progress=said.append)
    assert not any("the scale 1 by their deviation" in line for line in said)


def test_a_start_that_saw_images_cropped_otherwise_is_said(toml, photos, tmp_path):
    toml.write_text(SHIFTED)
    start = vr.train(toml, photos, tmp_path / "a", crop=6)
    for crop, line in ((None, "crop 6, here none"), (7, "crop 6, here 7"), (6, None)):
        said = []
        vr.train(
            toml, photos, tmp_path / f"{crop}", init_from=start, crop=crop, progress=said.append
        )
        assert [text for text in said if f"was trained with {line}; set" in text] or line is None
        assert line is not None or not [text for text in said if "crop" in text]


def test_a_toml_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf" + SHIFTED.encode())
    assert load_config(tmp_path / "bom.toml").train.steps == 4
    (tmp_path / "utf16.toml").write_text(SHIFTED, encoding="utf-16")
    with pytest.raises(vr.ConfigError, match="save it as UTF-8"):
        load_config(tmp_path / "utf16.toml")


def test_a_preset_goes_by_its_name(tmp_path, photos):
    with pytest.raises(vr.ConfigError, match="did you mean 'faces64'"):
        vr.train("face64", photos, tmp_path / "r")
    with pytest.raises(vr.ConfigError, match=r"expected section\.key=value"):
        vr.train("faces64", photos, tmp_path / "r", changed=["train.lr"])
    with pytest.raises(vr.ConfigError, match=r"unknown key train.stepz; did you mean 'steps'"):
        vr.train("faces64", photos, tmp_path / "r", stepz=1)
    big = np.zeros((10, 64, 64, 3), np.uint8)
    out = vr.train("faces64", big, tmp_path / "r", steps=2, batch_size=1, hold_back="images")
    assert vr.load(out).name == "faces64"
    assert load_config(out / "config.toml").train.steps == 2
    (tmp_path / "model.toml").write_text(SHIFTED.partition("[train]")[0])
    with pytest.raises(vr.ConfigError, match=r"no \[train\] table.*cifar10, faces64"):
        vr.train(tmp_path / "model.toml", photos, tmp_path / "s")


def test_a_resumed_run_needs_no_flag_again(toml, folder, photos, tmp_path):
    (folder / "19.png").unlink()
    out = tmp_path / "r"
    flags = {"precision": "bf16", "accumulate": 2, "crop": 6, "channels_last": True}
    vr.train(toml, folder, out, changed=["train.steps=2", "train.lr=2e-3"], **flags)
    for again in (
        lambda: vr.train(out, resume=True),
        lambda: vr.train(toml, folder, out, resume=True),
    ):
        said = []
        again_kept = (out / "config.toml").read_text()
        vr.train(out, resume=True, progress=said.append)
        assert "finished at step 2" in said[-1]
        assert (out / "config.toml").read_text() == again_kept
        again()
    vr.train(out, resume=True, steps=4)
    kept = json.loads((out / "run.json").read_text())
    assert {key: kept["options"][key] for key in flags} == flags
    assert load_config(out / "config.toml").train.lr == 2e-3
    assert rows(out)[-1]["step"] == 4
    with pytest.raises(vr.TrainingError, match="another precision, bf16, found fp32"):
        vr.train(out, resume=True, steps=6, precision="fp32")
    toml.write_text(TOML.replace("lr = 1e-3", "lr = 5e-3"))
    with pytest.raises(vr.ConfigError, match=r"differs in train\.lr"):
        vr.train(toml, folder, out, resume=True)


def test_a_run_of_an_earlier_version_goes_on(tmp_path, photos):
    (tmp_path / "t.toml").write_text(SHIFTED)
    out = vr.train(tmp_path / "t.toml", photos, tmp_path / "r", ema_warmup=False)
    (out / "run.json").unlink()
    text = (out / "config.toml").read_text()
    (out / "config.toml").write_text(text.replace("ema_warmup = false\n", ""))
    vr.train(tmp_path / "t.toml", photos, out, resume=True, steps=6)
    assert not load_config(out / "config.toml").train.ema_warmup


def test_a_run_that_learned_nothing_is_an_error(toml, photos, tmp_path):
    with pytest.raises(vr.TrainingError, match="nothing was learned: all 4 updates were skipped"):
        vr.train(toml, photos, tmp_path / "r", skip_threshold=1e-9)
    assert vr.load(tmp_path / "r").config.image_size == 8  # what is written stays
    with pytest.raises(vr.TrainingError, match="nothing was learned"):
        vr.train(tmp_path / "r", photos, resume=True)


def test_scores_that_are_not_finite_end_a_run_and_are_null(toml, photos, tmp_path):
    # the images held back overflow where those trained on do not
    np.savez(tmp_path / "a.npz", **{"train/images": photos[:1] * 0, "val/images": photos[1:3]})
    changed = ["model.shift=0", "model.scale=3e38"]
    with pytest.raises(vr.TrainingError, match="the average's score of the images held back is"):
        vr.train(toml, tmp_path / "a.npz", tmp_path / "r", changed=changed, batch_size=1)
    last = rows(tmp_path / "r")[-1]
    assert last["held_back_bits_per_dim"] is None
    assert last["held_back_weights_bits_per_dim"] is None


def test_unreadable_images_are_left_out_if_asked(toml, folder, tmp_path):
    with pytest.raises(vr.DataError, match=r"19\.png"):
        vr.train(toml, folder, tmp_path / "r")
    said = []
    out = vr.train(toml, folder, tmp_path / "s", on_error="skip", progress=said.append)
    assert said[0] == "1 unreadable image left out: 19.png"
    (folder / "19.png").rename(tmp_path / "away")
    clean = vr.train(toml, folder, tmp_path / "c")
    scores = [[row["bits_per_dim"] for row in rows(run)] for run in (out, clean)]
    assert scores[0] == scores[1]
    (tmp_path / "away").rename(folder / "19.png")
    vr.train(out, resume=True, steps=5)
    held = vr.evaluate(vr.load(out), None, run=out, split="held-back")
    assert held.bits_per_dim == pytest.approx(rows(out)[-1]["held_back_bits_per_dim"], rel=1e-5)
    assert list(held.left_out) == ["19.png"]
    with pytest.raises(vr.DataError, match="other data"):
        vr.evaluate(vr.load(out), np.zeros((9, 8, 8, 3), np.uint8), run=out, split="held-back")


def test_evaluate_leaves_out_and_lists(tiny, folder, caplog):
    with pytest.raises(vr.DataError, match=r"19\.png"):
        vr.evaluate(tiny, folder)
    found = vr.evaluate(tiny, folder, on_error="skip")
    assert found.images == 19
    assert caplog.text.count("1 image is left out, as 19.png: ") == 1
    assert list(json.loads(found.to_json())["left_out"]) == ["19.png"]
    with pytest.raises(vr.TaskError, match="raise or skip"):
        vr.evaluate(tiny, folder, on_error="ignore")


def test_a_score_that_is_not_finite_is_refused(tiny, images):
    model = VDVAE(tiny.config, name="broken").eval()
    with torch.no_grad():
        next(model.parameters())[0] = math.nan
    with pytest.raises(vr.CheckpointError, match=r"broken: the weights .* are not finite"):
        vr.evaluate(model, images)


def test_the_command_trains_and_goes_on(toml, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        done = CliRunner().invoke(app, ["train", *map(str, arguments)])
        assert done.exit_code == 0, done.output

    command(toml, "--data", folder, "--on-error", "skip", "--set", "train.steps=2")
    command("runs/small", "--resume", "--set", "train.steps=3")
    assert rows(tmp_path / "runs/small")[-1]["step"] == 3


def test_rows_are_taken_from_the_data_that_are_given(toml, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("photos.npy", photos)
    np.save("some.npy", photos[:12])

    def command(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    train = ("train", toml, "--set", "train.steps=2", "--data")
    for arguments in (
        (*train, "photos.npy", "--rows", "0:12", "--out", "r"),
        (*train, "some.npy", "--out", "s"),
    ):
        done = command(*arguments)
        assert done.exit_code == 0, done.output
    one, other = ([row["bits_per_dim"] for row in rows(tmp_path / run)] for run in "rs")
    assert one == other
    for arguments, flag in (
        (("train", "r", "--resume", "--rows", "0:3"), "--rows"),
        (("train", "r", "--resume", "--data-root", "d"), "--data-root"),
        (("evaluate", "--model", "s", "--split", "held-back", "--rows", "0:3"), "--rows"),
        (("evaluate", "--model", "s", "--split", "held-back", "--data-root", "d"), "--data-root"),
    ):
        refusal = command(*arguments).exception
        assert isinstance(refusal, vr.TaskError)
        assert str(refusal).startswith(f"{flag}: expected --data")


def test_weights_that_saw_pixels_scaled_otherwise_are_said(toml, photos, tmp_path):
    first = vr.train(toml, photos, tmp_path / "a", steps=2)
    config = vr.load(first).config
    kept = [f"model.shift={config.shift!r}", f"model.scale={config.scale!r}"]
    for start in (first, first / "model.safetensors"):
        for changed, expected in (([], True), (kept, False)):
            said = []
            out = tmp_path / f"{start.name} {expected}"
            vr.train(
                toml, 255 - photos, out, steps=2, init_from=start, changed=changed,
                progress=said.append,
            )  # fmt: skip
            line = f"was trained with model.shift = {config.shift:.8g}, here "
            assert any(line in text for text in said) == expected


def test_the_square_that_a_run_was_trained_on_is_said(toml, photos, tmp_path, monkeypatch, caplog):
    """Else its other splits would be scored, and its features read, in another frame than it knows."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for index, pixels in enumerate(photos):
        Image.fromarray(pixels).save(f"photos/{index}.png")
    vr.train(toml, "photos", "r", crop=6, steps=2)
    said = "was trained with crop 6"
    for model in ("r", "r/model.safetensors"):
        for command in (
            ("evaluate",),
            ("extract", "--overwrite", "--layer", "all", "--out", "s.h5"),
        ):
            line = [*command, "--model", model, "--data", "photos"]
            for more, expected in (((), True), (("--crop", "6"), False)):
                done = CliRunner().invoke(app, [*line, *more])
                assert done.exit_code == 0, done.output
                assert (said in done.output + caplog.text) == expected
                caplog.clear()
    for crop in (None, 6):
        vr.extract(vr.load("r"), "photos", f"{crop}.h5", crop=crop)
        vr.evaluate(vr.load("r"), "photos", crop=crop)
        assert caplog.text.count(said) == (2 if crop is None else 0)
        caplog.clear()
    vr.evaluate(vr.load("r"), None, run="r", split="held-back")  # takes the run's own
    vr.LatentTransformer("r").fit(None)
    assert caplog.text.count(said) == 1


def test_what_is_left_out_is_said_by_whatever_opens_the_data(toml, folder, tiny, tmp_path, caplog):
    (folder / "19.png").rename(folder / "19.heic")
    left_out = "photos: 1 file left out: .heic (1); convert HEIC to JPEG"
    said = []
    out = vr.train(toml, folder, tmp_path / "r", progress=said.append)
    assert said.count(left_out) == 1
    said.clear()
    vr.train(out, resume=True, steps=5, progress=said.append)
    assert said.count(left_out) == 1
    said.clear()
    vr.extract(tiny, folder, tmp_path / "s.h5", report=said.append)
    assert said.count(left_out) == 1
    vr.evaluate(tiny, folder)
    vr.evaluate(vr.load(out), None, run=out, split="held-back")
    assert [record.getMessage() for record in caplog.records].count(left_out) == 2
    vr.evaluate(tiny, vr.open_source(folder))  # which says it, and nobody does again
    assert [record.getMessage() for record in caplog.records].count(left_out) == 3
    caplog.clear()
    vr.extract(tiny, folder, tmp_path / "t.h5")
    vr.train(toml, folder, tmp_path / "q")
    vr.extract(
        tiny, folder, tmp_path / "t.h5", report=said.append
    )  # to whom it is said is not logged
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "enlarged" not in line] == [left_out] * 2


def test_the_command_says_once_what_is_left_out(toml, folder, tmp_path):
    (folder / "19.png").rename(folder / "19.heic")
    for number, more in enumerate([(), ("--rows", "0:19"), ("--data-root", str(tmp_path))]):
        out = tmp_path / f"r{number}"
        done = CliRunner().invoke(
            app, ["train", str(toml), "--data", str(folder), "--out", str(out), *more]
        )
        assert done.exit_code == 0, done.output
        assert done.output.count("photos: 1 file left out: .heic (1)") == 1
        unused = f"photos: --data-root {tmp_path} counts for nothing: it is for data sets by name"
        assert done.output.count(unused) == (number == 2)


@pytest.mark.parametrize(
    ("model", "said"), [("timm:resnet18", 0), ("openai:cifar10-seed0", 0), ("runs/a", 1), (None, 1)]
)
def test_a_download_beside_a_folder_is_of_weights_or_of_nothing(folder, model, said):
    lines = []
    cli._open(str(folder), download=True, notice=lines.append, model=model)
    assert [line.split(" counts")[0] for line in lines] == ["photos: --download"] * said


@pytest.mark.parametrize("name", ["photos", "photos.npz", "photos.npz:images", "s-*.tar"])
def test_a_run_finds_its_data_from_another_folder(toml, photos, name, tmp_path, monkeypatch):
    (tmp_path / "here" / "photos").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    np.savez("photos.npz", images=photos, labels=np.arange(len(photos)) % 2)
    for i, pixels in enumerate(photos):
        Image.fromarray(pixels).save(f"photos/{'ab'[i % 2]}_{i:02d}.png")
    with tarfile.open("s-0.tar", "w") as tar:
        for path in sorted(Path("photos").iterdir()):
            tar.add(path, arcname=path.name)
    out = vr.train(toml, name, tmp_path / "r", probe_data=name, probe_every=1000, steps=2)
    monkeypatch.chdir(tmp_path / "there")
    vr.train(out, resume=True, steps=3)
    kept = json.loads((out / "run.json").read_text())
    assert kept["data"] == kept["options"]["probe_data"] == str(tmp_path / "here" / name)


@pytest.mark.parametrize("name", ["digits", "toy-faces:4x3"])
def test_a_known_name_stays_one(toml, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    out = vr.train(toml, name, tmp_path / "r", probe_data=name, probe_every=1000, steps=2)
    kept = json.loads((out / "run.json").read_text())
    assert kept["data"] == kept["options"]["probe_data"] == name


def test_a_kill_between_its_first_files_leaves_no_older_folder(toml, photos, tmp_path, monkeypatch):
    out = tmp_path / "r"
    write = watch.write_text
    for written in range(2):
        places = []

        def killed(path, text, places=places, written=written):
            if len(places) == written:
                raise KeyboardInterrupt
            places.append(path)
            write(path, text)

        monkeypatch.setattr(watch, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            vr.train(toml, photos, out, crop=6)
        assert (out / "run.json").is_file() or not (out / "config.toml").is_file()


def test_a_signal_in_the_last_step_hides_no_failure(toml, photos, tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", **{"train/images": photos[:1] * 0, "val/images": photos[1:3]})
    forward = trainer._Run.forward_backward

    def stopped(run, model, batch):
        if run.optimisation.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(run, model, batch)

    monkeypatch.setattr(trainer._Run, "forward_backward", stopped)
    changed = ["model.shift=0", "model.scale=3e38"]
    with pytest.raises(vr.TrainingError, match="the average's score of the images held back is"):
        vr.train(toml, tmp_path / "a.npz", tmp_path / "r", changed=changed, batch_size=1, steps=3)
    with pytest.raises(vr.Terminated, match="at step 3"):
        vr.train(toml, photos, tmp_path / "s", steps=3)
    assert rows(tmp_path / "s")[-1]["held_back_bits_per_dim"] > 0


def test_a_run_inside_its_data_is_refused(tmp_path):
    """Its sample sheets would become training images."""
    for index in range(12):
        path = tmp_path / "photos" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), 20 * index, np.uint8)).save(path)
    before = sorted((tmp_path / "photos").iterdir())
    for out in ("photos", "photos/runs/a"):
        with pytest.raises(vr.TrainingError, match="lies in the folder of the data"):
            vr.train("faces64", tmp_path / "photos", tmp_path / out, steps=1)
    assert sorted((tmp_path / "photos").iterdir()) == before


@pytest.mark.parametrize(
    "name", ["model.safetensors", "log.jsonl", "config.toml", "run.json", "samples/a.png", "checkpoints/x"]
)  # fmt: skip
def test_other_peoples_files_are_left_alone(toml, photos, tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    for resume in (False, True):
        with pytest.raises(vr.VDVAEReprError) as refusal:
            vr.train(toml, photos, tmp_path / "mine", resume=resume)
        assert "\n" not in str(refusal.value)
        assert [p for p in (tmp_path / "mine").rglob("*") if p.is_file()] == [path]
        assert path.read_text() == "mine"


def test_a_toml_in_the_run_folder_is_not_replaced(toml, photos, tmp_path):
    out = tmp_path / "r"
    out.mkdir()
    toml.rename(out / "config.toml")
    with pytest.raises(vr.TrainingError, match=r"config\.toml: is in the way"):
        vr.train(out, photos)
    assert (out / "config.toml").read_text() == TOML


@pytest.mark.parametrize(
    ("kind", "message"),
    [("bmp", r"2 of 10 that were looked at .*, as '12\.bmp'"), ("npy", "another source")],
)
def test_a_run_does_not_go_on_with_images_that_were_replaced(
    toml, photos, tmp_path, monkeypatch, kind, message
):
    """By others of their names and sizes; copies of what they were are no others."""
    monkeypatch.setattr("vdvae_repr.training.reading.CHECKED", 10)  # every second one

    def write(pixels):
        if kind == "npy":
            np.save(tmp_path / "photos.npy", pixels)
            return tmp_path / "photos.npy"
        (tmp_path / "photos").mkdir(exist_ok=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / "photos" / f"{i:02d}.bmp")
        return tmp_path / "photos"

    out = vr.train(toml, write(photos), tmp_path / "r", steps=2, probe_every=0)
    write(photos)
    vr.train(out, resume=True, steps=3)
    other = photos.copy()
    other[12:15] += 1
    write(other)
    before = (out / "run.json").read_bytes()
    with pytest.raises(vr.TrainingError, match=message):
        vr.train(out, resume=True, steps=4)
    assert (out / "run.json").read_bytes() == before
    vr.train(out, resume=True)  # it is finished
    write(photos)
    vr.train(out, resume=True, steps=4)


@pytest.mark.parametrize("chosen", ["0:12", "rows.txt", [3, 1, *range(5, 15)]])
def test_a_resumed_run_knows_the_rows_of_its_data(toml, photos, tmp_path, monkeypatch, chosen):
    monkeypatch.chdir(tmp_path)
    np.save("photos.npy", photos)
    (tmp_path / "rows.txt").write_text(" ".join(map(str, range(3, 16))))
    source = vr.open_source("photos.npy", rows=chosen)
    out = vr.train(toml, source, tmp_path / "r", steps=2, probe_every=0)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    vr.train(out, resume=True, steps=3)
    assert rows(out)[-1]["step"] == 3
    held = vr.evaluate(vr.load(out), None, run=out, split="held-back")
    assert held.images == 1


def test_a_resumed_run_knows_the_root_of_its_data(tmp_path, photos, toml, monkeypatch):
    """Named data sets lie under a root, which a flag, a variable or the working folder names."""

    def place(root):
        return vr.open_source(np.load(root / "photos.npy"))

    known = datasets.Dataset(files="photos.npy", open=place, remedy="")
    monkeypatch.setitem(datasets.DATASETS, "mine", known)
    for folder in ("flag", "variable", "here/data"):
        (tmp_path / folder).mkdir(parents=True)
        np.save(tmp_path / folder / "photos.npy", photos)
    monkeypatch.chdir(tmp_path / "here")
    for number, (root, variable) in enumerate(
        [(tmp_path / "flag", None), (None, tmp_path / "variable"), (None, None)]
    ):
        monkeypatch.chdir(tmp_path / "here")
        with monkeypatch.context() as context:
            if variable:
                context.setenv("VDVAE_REPR_DATA_ROOT", str(variable))
            out = vr.train(
                toml, vr.open_source("mine", root=root), tmp_path / f"r{number}", steps=2
            )
        monkeypatch.chdir(tmp_path)
        vr.train(out, resume=True, steps=3)
        assert rows(out)[-1]["step"] == 3


def test_reasons_do_not_advise_what_was_done(toml, folder, tiny, tmp_path):
    """Where unreadable images are left out already, nothing says that they can be left out."""
    with pytest.raises(vr.DataError, match='leave such images out with on_error="skip"'):
        vr.train(toml, folder, tmp_path / "r")
    out = vr.train(toml, folder, tmp_path / "s", on_error="skip")
    left_out = json.loads((out / "run.json").read_text())["left_out"]
    store = vr.extract(tiny, folder, tmp_path / "s.h5", on_error="skip")
    evaluation = vr.evaluate(tiny, folder, on_error="skip")
    for reason in (
        *left_out.values(),
        store.info.skipped[0]["reason"],
        evaluation.left_out["19.png"],
    ):
        assert reason.startswith("19.png: expected a readable image")
        assert "--on-error" not in reason
    for path in folder.iterdir():
        path.write_text("no image")
    with pytest.raises(vr.DataError, match="none of 20 images can be read") as refusal:
        vr.train(toml, folder, tmp_path / "t", on_error="skip")
    assert "--on-error" not in str(refusal.value)


@pytest.mark.parametrize(
    "given",
    [
        {"config": None}, {"config": 3}, {"config": []}, {"config": ""}, {"data": 3}, {"data": []},
        {"data": "nowhere"}, {"out": 3}, {"out": ""}, {"changed": "train.lr=1"}, {"changed": [3]},
        {"changed": None}, {"init_from": 3}, {"init_from": "nothing"}, {"name": 3}, {"crop": "x"},
        {"crop": 1.5}, {"device": None}, {"device": "gpu"}, {"accumulate": "x"}, {"compile": "x"},
        {"recompute": 3}, {"recompute": ["x"]}, {"num_workers": "x"}, {"num_workers": 0},
        {"log_with": 3}, {"probe_every": -1}, {"probe_data": 3}, {"steps": 1.5}, {"lr": None},
        {"seed": -7}, {"lr": math.nan}, {"precision": 3}, {"on_error": 3},
    ],
)  # fmt: skip
def test_arguments_of_other_kinds_are_one_line(toml, photos, tmp_path, given):
    arguments = {"config": toml, "data": photos, "out": tmp_path / "r"} | given
    with pytest.raises(vr.VDVAEReprError) as refusal:
        vr.train(**arguments)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "r").exists()


def test_a_text_in_place_of_a_list_of_changes_is_said_to_be_one(toml, photos, tmp_path):
    with pytest.raises(
        vr.ConfigError, match=r"changed: expected a list of texts .* 'train.lr=1e-4'$"
    ):
        vr.train(toml, photos, tmp_path / "r", changed="train.lr=1e-4")


def test_truth_values_of_numpy_in_a_recipe_are_those_of_python(toml, photos, tmp_path):
    for out, given in (("a", np.True_), ("b", True)):
        keys = {"flip": given, "ema_warmup": np.False_, "channels_last": given}
        vr.train(toml, photos, tmp_path / out, steps=2, **keys)
    read = [json.loads((tmp_path / out / "run.json").read_text()) for out in ("a", "b")]
    assert read[0] == read[1]
    assert (tmp_path / "a/config.toml").read_text() == (tmp_path / "b/config.toml").read_text()


@pytest.mark.parametrize(
    ("call", "given"),
    [
        *(("evaluate", given) for given in (
            {"model": None}, {"model": "faces64"}, {"data": 3}, {"data": None}, {"split": 3}, {"run": 3},
            {"run": "."}, {"batch_size": "x"}, {"batch_size": 1.5}, {"seed": None}, {"crop": "x"},
            {"importance_samples": None},
        )),
        *(("sample", given) for given in (
            {"count": "x"}, {"count": 0}, {"temperature": None}, {"temperature": -1}, {"seed": 1.5},
            {"pixels": "x"},
        )),
        *(("decode", given) for given in (
            {"latents": None}, {"latents": {}}, {"latents": {"1x1.0": None}}, {"latents": {"1x1.0": 3}},
            {"latents": {"1x1.0": np.zeros((1, 4, 1, 1), complex)}}, {"rest": "x"}, {"ids": 3},
        )),
        *(("posterior", given) for given in (
            {"images": None}, {"images": []}, {"images": [3]}, {"images": "x"}, {"layers": []},
            {"layers": None}, {"z": "median"}, {"seed": 1.5}, {"ids": "x"},
        )),
    ],
)  # fmt: skip
def test_arguments_of_a_model_of_other_kinds_are_one_line(tiny, images, call, given):
    right = {
        "evaluate": {"model": tiny, "data": images},
        "sample": {"count": 1},
        "decode": {"latents": {"1x1.0": np.zeros((1, 4, 1, 1))}},
        "posterior": {"images": images},
    }
    function = vr.evaluate if call == "evaluate" else getattr(tiny, call)
    with pytest.raises(vr.VDVAEReprError) as refusal:
        function(**right[call] | given)
    assert "\n" not in str(refusal.value)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_lost_its_checkpoints_is_not_trained_over(toml, photos, tmp_path):
    out = vr.train(toml, photos, tmp_path / "r")
    shutil.rmtree(out / "checkpoints")
    before = contents(out)
    for given in ({"resume": True}, {"resume": True, "steps": 5}, {}, {"init_from": out}):
        with pytest.raises(vr.TrainingError, match="no checkpoints to go on from; choose another"):
            vr.train(toml, photos, out, **given)
        assert contents(out) == before


def test_a_run_stopped_while_its_first_checkpoint_was_written_goes_on(
    toml, photos, tmp_path, monkeypatch
):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            vr.train(toml, photos, tmp_path / "r")
    assert (tmp_path / "r" / "model.safetensors").is_file()
    out = vr.train(toml, photos, tmp_path / "r", resume=True)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_resumed_run_knows_what_it_started_from_and_takes_nothing_else(
    toml, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    first = vr.train(toml, photos, "a")
    reference = vr.train(toml, photos, "whole", init_from="a", seed=1)

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            vr.train(toml, photos, "b", init_from="a", seed=1)
    vr.train("b", photos, resume=True)  # before its first checkpoint, and without the option
    resumed = vr.load("b").state_dict()
    for key, value in vr.load(reference).state_dict().items():
        assert torch.equal(value, resumed[key])
    vr.train("b", photos, resume=True, init_from=first, steps=5)
    for run in ("b", "a"):
        with pytest.raises(vr.TrainingError, match="was trained with another init_from"):
            vr.train(run, photos, resume=True, init_from="whole", steps=6)


def test_options_of_a_probe_that_is_not_made_are_refused(toml, photos, tmp_path):
    for given in ({"probe_data": photos}, {"probe_layers": "99x99"}):
        with pytest.raises(vr.ConfigError, match="expected probe_every=1000, or another number"):
            vr.train(toml, photos, tmp_path / "r", **given)
    assert not (tmp_path / "r").exists()


def test_a_path_is_no_preset(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("faces64").mkdir()
    with pytest.raises(vr.ConfigError, match=r"faces64: expected a run folder with config\.toml"):
        vr.train(Path("faces64"), photos)


def test_a_run_folder_that_gives_its_configuration_alone_is_said(toml, photos, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    vr.train(toml, photos, first)
    said = []
    vr.train(first, photos, second, steps=3, progress=said.append)
    own = f"{first}: gives its configuration alone, and {second} starts from nothing"
    assert [line for line in said if line.startswith(own)] == [
        f"{own}; init_from={str(first)!r} (--init-from {first}) starts from its weights"
    ]
    said.clear()
    vr.train(first, photos, second, resume=True, steps=4, progress=said.append)
    vr.train(first, photos, tmp_path / "third", init_from=first, steps=6, progress=said.append)
    assert not [line for line in said if "configuration alone" in line]
    other = tmp_path / "fourth"
    vr.train(first, photos, other, resume=True, progress=said.append)
    nothing = f"{other} starts from nothing, as it holds no run to resume; init_from="
    assert sum(nothing in line for line in said) == 1
