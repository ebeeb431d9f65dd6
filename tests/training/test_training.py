"""Training runs on a tiny model: the same result however a run is divided, killed or resumed."""

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from launch import COMMAND, Command, torchrun
from PIL import Image
from safetensors.torch import load_file, save_file

import vdvae_repr as vr
from vdvae_repr.config import load_config
from vdvae_repr.data.open import open_source
from vdvae_repr.training import trainer
from vdvae_repr.training.checkpoints import checkpoint_steps, read_start
from vdvae_repr.training.draws import (
    about_held_back,
    joint_noise,
    mark_held_back,
    ordered,
    split_indices,
)
from vdvae_repr.training.watch import Probe

TOML = """
[model]
image_size = 16
width = 8
zdim = 4
bottom_up = "16x1,16d2,8x1,8d2,4x1,4d4,1x1"
top_down = "1x1,4m1,8m4,8x1,16m8"
num_mixtures = 2
shift = -127.5
scale = 0.015625

[train]
steps = 24
batch_size = 8
lr = 1e-3
warmup_steps = 5
grad_clip = 200
skip_threshold = 1000
ema_rate = 0.9
flip = true
log_every = 4
checkpoint_every = 8
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("given")


@pytest.fixture(scope="module")
def toml(folder):
    path = folder / "tiny.toml"
    path.write_text(TOML)
    return path


@pytest.fixture(scope="module")
def photos(folder):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    path = folder / "photos.npz"
    np.savez(path, images=images, labels=np.repeat(np.arange(10), 4))
    return path


@pytest.fixture(scope="module")
def finished(toml, photos, folder):
    """A run of 24 steps that tests read; one that goes on with it takes `again`."""
    return trained(toml, photos, folder / "finished")


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "r")


def start(toml, photos, out, *arguments):
    environment = {"OMP_NUM_THREADS": "1"}
    return Command(
        "train", toml, "--data", photos, "--out", out, *arguments, environment=environment
    )


def run(*arguments):
    process = start(*arguments)
    return process.wait(), process.communicate()[1]


def start_two(toml, photos, out, *arguments):
    """The same by two processes under torchrun."""
    return torchrun(COMMAND, "train", toml, "--data", photos, "--out", out, *arguments)


def run_two(*arguments):
    process = start_two(*arguments)
    return process.wait(), process.communicate()[1]


def final(out, step=24):
    folder = out / "checkpoints" / f"step-{step:08d}"
    return {
        f"{group} {key}": value.clone()  # not a view of a file that a test may damage
        for group in ("model", "average", "adamw")
        for key, value in load_file(folder / f"{group}.safetensors").items()
    }


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def steady(rows):
    clocked = ("images_per_second", "data_wait")
    return [{k: v for k, v in row.items() if k not in clocked} for row in rows]


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("kills", "apart"), [(3, 8), pytest.param(20, 40, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_ends_bit_identical(kills, apart, toml, photos, tmp_path):
    steps = apart * kills
    options = ["--set", f"train.steps={steps}", "--set", "train.log_every=1"]
    options += ["--set", f"train.checkpoint_every={apart // 2}"]
    assert run(toml, photos, tmp_path / "whole", *options)[0] == 0
    out, rng = tmp_path / "killed", random.Random(kills)
    for kill in range(kills):
        process = start(toml, photos, out, "--resume", *options)
        wanted = min(apart * kill + rng.randrange(2, apart), steps - 5)
        while process.poll() is None:
            if (out / "log.jsonl").is_file() and (rows := (out / "log.jsonl").read_text()):
                line = rows.strip().splitlines()[-1]
                if line.startswith('{"step": ') and int(line[9:].split(",")[0]) >= wanted:
                    break
            time.sleep(0.002)
        process.kill()
        process.communicate()
    code, errors = run(toml, photos, out, "--resume", *options)
    assert code == 0, errors
    same(final(tmp_path / "whole", steps), final(out, steps))
    assert steady(log(out)) == steady(log(tmp_path / "whole"))


def test_the_joint_batch_may_be_divided(toml, photos, tmp_path):
    options = ["--set", "train.steps=4", "--set", "train.checkpoint_every=4"]
    assert run(toml, photos, tmp_path / "one", *options)[0] == 0
    code, errors = run_two(toml, photos, tmp_path / "two", *options)
    assert code == 0, errors
    assert run(toml, photos, tmp_path / "micro", *options, "--accumulate", "4")[0] == 0
    whole = final(tmp_path / "one", 4)
    for other in ("two", "micro"):
        parts = final(tmp_path / other, 4)
        for key in whole:
            if "exp_avg." in key:  # the gradients' average
                error = (whole[key] - parts[key]).abs().max()
                assert error <= 1e-4 * whole[key].abs().max().clamp(min=1e-6), key
        first, second = log(tmp_path / "one")[-1], log(tmp_path / other)[-1]
        assert second["bits_per_dim"] == pytest.approx(first["bits_per_dim"], rel=1e-5)
        held = "held_back_bits_per_dim"
        assert second[held] == pytest.approx(first[held], rel=1e-5)


def test_a_dead_rank_ends_the_job_and_the_run_resumes(toml, photos, tmp_path):
    options = ["--set", "train.steps=100000", "--set", "train.checkpoint_every=4"]
    process = start_two(toml, photos, tmp_path / "r", *options)
    folder = tmp_path / "r" / "checkpoints" / "step-00000008"
    while process.poll() is None and not folder.is_dir():
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    last = int(log(tmp_path / "r")[-1]["step"]) // 4 * 4 + 8
    finish = ["--resume", "--set", f"train.steps={last}", "--set", "train.checkpoint_every=4"]
    code, errors = run_two(toml, photos, tmp_path / "r", *finish)
    assert code == 0, errors
    assert log(tmp_path / "r")[-1]["step"] == last


def test_sigterm_writes_a_checkpoint_and_exits_143(toml, photos, tmp_path):
    process = start(toml, photos, tmp_path / "r", "--set", "train.steps=100000")
    while process.poll() is None and not (tmp_path / "r" / "samples").is_dir():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "--resume" in errors
    step = log(tmp_path / "r")[-1]["step"]
    assert (tmp_path / "r" / "checkpoints" / f"step-{step:08d}").is_dir()
    assert vr.load(tmp_path / "r").config.image_size == 16


def trained(toml, photos, out, *overrides, **options):
    config = load_config(toml, overrides)
    changed = tuple(o.partition("=")[0] for o in overrides)
    return vr.train(config, photos, out, changed=changed, **options)


def test_damaged_checkpoints_are_passed_over(toml, photos, again, caplog):
    before = final(again)
    damaged = again / "checkpoints" / "step-00000024" / "average.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    trained(toml, photos, again, resume=True)
    assert "step-00000024 is damaged" in caplog.text
    same(before, final(again))


def test_a_run_is_neither_repeated_nor_overwritten(toml, photos, again):
    before = (again / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(vr.TrainingError, match="resume=True"):
        trained(toml, photos, again)
    said = []
    trained(toml, photos, again, resume=True, progress=said.append)
    assert "finished" in said[-1]
    assert (again / "model.safetensors").stat().st_mtime_ns == before


def test_changed_config_is_refused_by_name(toml, photos, again):
    with pytest.raises(vr.ConfigError, match=r"train\.lr"):
        vr.train(load_config(toml, ["train.lr=1e-4"]), photos, again, resume=True)
    with pytest.raises(vr.ConfigError, match=r"model\.width"):
        trained(toml, photos, again, "model.width=16", resume=True)
    trained(toml, photos, again, "train.lr=1e-4", "train.steps=28", resume=True)
    assert log(again)[-1]["learning_rate"] == pytest.approx(1e-4)


def test_a_run_whose_updates_all_have_rate_0_has_learned_nothing(toml, photos, tmp_path):
    """The published schedule begins at 0, however short its warm-up is."""
    message = r"nothing was learned: the first update has rate 0.*begins; raise train.steps \(1\)"
    for out, warmup in ((tmp_path / "a", 1), (tmp_path / "r", 100)):
        with pytest.raises(vr.TrainingError, match=message):
            trained(toml, photos, out, "train.steps=1", f"train.warmup_steps={warmup}")
        assert log(out)[-1]["learning_rate"] == 0
    with pytest.raises(vr.TrainingError, match="nothing was learned"):  # said again
        vr.train(out, resume=True)
    with pytest.raises(vr.TrainingError, match=r"rate 0.*, and all others were skipped"):
        vr.train(out, resume=True, steps=2, skip_threshold=1e-9)
    vr.train(out, resume=True, steps=3, skip_threshold=1000)  # which learns something


def test_the_log_has_the_rate_of_the_update(toml, photos, tmp_path):
    """As PyTorch's LambdaLR(step / warmup) sets it."""
    trained(toml, photos, tmp_path / "r", "train.steps=8", "train.log_every=1")
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, step / 5))
    rates = []
    for _ in range(8):
        rates += schedule.get_last_lr()
        optimiser.step()
        schedule.step()
    assert [row["learning_rate"] for row in log(tmp_path / "r")] == pytest.approx(rates)


def test_a_threshold_that_skips_everything_stops_the_run(toml, photos, tmp_path):
    with pytest.raises(vr.TrainingError, match=r"raise that") as error:
        trained(
            toml, photos, tmp_path / "r", "train.skip_threshold=1e-6", "train.steps=60",
            "train.checkpoint_every=40",
        )  # fmt: skip
    assert "train.skip_threshold 1e-06" in str(error.value)
    assert log(tmp_path / "r")[-1]["skipped"] == 50


def test_a_loss_that_is_not_finite_moves_nothing(toml, photos, tmp_path):
    with pytest.raises(vr.TrainingError, match="not finite"):
        trained(
            toml, photos, tmp_path / "r", "model.scale=1e30", "train.steps=60",
            "train.checkpoint_every=40",
        )  # fmt: skip
    same_start = {k: v for k, v in final(tmp_path / "r", 40).items() if k.startswith("model ")}
    assert all(torch.isfinite(v).all() for v in same_start.values())
    assert all(k.startswith(("model ", "average ")) for k in final(tmp_path / "r", 40))


def test_a_full_disk_leaves_the_last_checkpoint(toml, photos, again):
    before = final(again)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limit[1]))
        with pytest.raises(vr.TrainingError, match="make room: resume=True goes on from step 24"):
            trained(toml, photos, again, "train.steps=28", resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    same(before, final(again))
    trained(toml, photos, again, "train.steps=28", resume=True)


def test_what_cannot_be_trained_is_refused(toml, photos, tmp_path):
    with pytest.raises(vr.DataError, match="hold back, found 1 and 0"):
        trained(toml, np.zeros((1, 16, 16, 3), np.uint8), tmp_path / "r")
    with pytest.raises(vr.DataError, match="expected images, found none"):
        trained(toml, np.zeros((0, 16, 16, 3), np.uint8), tmp_path / "r")
    with pytest.raises(vr.ConfigError, match="cpu or cuda, found 'abacus'"):
        trained(toml, photos, tmp_path / "r", device="abacus")
    with pytest.raises(vr.TrainingError, match="cannot be written"):
        trained(toml, photos, photos)
    with pytest.raises(vr.ConfigError, match="divisible by 1 processes x 3"):
        trained(toml, photos, tmp_path / "r", accumulate=3)
    with pytest.raises(vr.ConfigError, match="device"):
        trained(toml, photos, tmp_path / "r", device="cuda")
    assert not (tmp_path / "r").exists()


def test_every_epoch_holds_every_image_once():
    sequence = np.concatenate([ordered(7, start, 4, seed=3) for start in range(0, 28, 4)])
    for epoch in range(4):
        assert sorted(sequence[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert len({tuple(sequence[7 * e : 7 * e + 7]) for e in range(4)}) == 4


def test_nobody_is_on_both_sides(toml):
    source = open_source("toy-faces:20x3")
    for hold_back in ("labels", "images"):
        recipe = load_config(toml, [f"train.hold_back='{hold_back}'"]).train
        kept, held = split_indices(source, recipe)
        assert sorted([*kept, *held]) == list(range(60))
        assert len(held) == 6
        if hold_back == "labels":
            assert not set(source.labels[kept]) & set(source.labels[held])


def test_images_of_no_split_are_trained_on_only_where_none_is_of_train(toml):
    recipe = load_config(toml).train
    source = open_source("toy-faces:10x3")
    for splits, train, held in (
        (["train"] * 10 + [""] * 10 + ["test"] * 10, range(10), None),
        (["val"] * 10 + [""] * 10 + ["test"] * 10, range(10, 20), range(10)),
        ([""] * 30, range(30), None),
    ):
        kept, back = split_indices(replace(source, splits=tuple(splits)), recipe)
        if held is None:
            kept, held = [*kept, *back], back
        assert (sorted(kept), sorted(back)) == (list(train), sorted(held))


def test_images_without_labels_that_are_to_be_held_back_by_them_are_said(toml):
    source = open_source("toy-faces:10x3")
    without = replace(source, labels=np.where(source.labels < 2, -1, source.labels))
    one = replace(source, labels=np.where(np.arange(30) < 1, -1, source.labels))
    for images, hold_back, line in (
        (one, "labels", "1 image to train on has no label, so that each counts as one"),
        (without, "labels", "6 images to train on have no label, so that each counts as one"),
        (source, "labels", ""),
        (without, "images", ""),
    ):
        recipe = load_config(toml, [f"train.hold_back='{hold_back}'"]).train
        said = about_held_back(images, recipe)
        assert line in said if line else said == ""


@pytest.mark.parametrize("hold_back", ["labels", "images"])
def test_too_few_to_hold_back_are_refused_with_what_is_enough(toml, hold_back):
    recipe = load_config(toml, [f"train.hold_back='{hold_back}'"]).train
    few, enough = (open_source(f"toy-faces:{n}x1") for n in (5, 6))
    with pytest.raises(
        vr.DataError, match=f"5 and 0; a tenth of {hold_back} .* give 6 {hold_back} or"
    ):
        split_indices(few, recipe)
    assert [len(part) for part in split_indices(enough, recipe)] == [5, 1]


def test_noise_of_rows_is_that_of_the_joint_batch(tiny):
    device = torch.device("cpu")
    whole = joint_noise(0, 5, 8, slice(0, 8), device)
    part = joint_noise(0, 5, 8, slice(2, 5), device)
    for layer in tiny.layers:
        assert torch.equal(whole(layer)[2:5], part(layer))


def test_bf16_keeps_kl_and_likelihood_in_float32(toml, photos, tmp_path):
    trained(toml, photos, tmp_path / "a", "train.steps=8")
    trained(toml, photos, tmp_path / "b", "train.steps=8", precision="bf16")
    one, other = (log(tmp_path / name)[-1]["bits_per_dim"] for name in "ab")
    assert one != other
    assert other == pytest.approx(one, rel=0.02)


def published_run(folder, model, steps):
    """Save a model and AdamW after some steps, under published names in another order, as apex would."""
    values = dict(reversed(list(zip(published_names(model), model.parameters(), strict=True))))
    moments = torch.optim.AdamW(values.values(), lr=1e-3, betas=(0.9, 0.9))
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        moments.step()
    torch.save({f"module.{k}": v.detach() for k, v in values.items()}, folder / "x-model.th")
    torch.save({k: v.detach() + 1 for k, v in values.items()}, folder / "x-model-ema.th")
    state = moments.state_dict()
    for entry in state["state"].values():
        del entry["step"]
    state["param_groups"][0]["step"] = steps
    torch.save(state, folder / "x-opt.th")
    rows = [{"message": "hparams"}, {"type": "train_loss", "step": 40}, {"type": "eval_loss"}]
    (folder / "x-log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return moments


def published_names(model):
    renames = {
        "bottom_up.in_conv": "encoder.in_conv",
        "bottom_up.blocks": "encoder.enc_blocks",
        "top_down.blocks": "decoder.dec_blocks",
        "top_down.constants": "decoder.bias_xs",
        "top_down.out_conv": "decoder.out_net.out_conv",
        "top_down.gain": "decoder.gain",
        "top_down.bias": "decoder.bias",
    }
    names = []
    for name, _ in model.named_parameters():
        new = next(new for new in renames if name.startswith(new))
        names.append((renames[new] + name.removeprefix(new)).replace(".posterior.", ".enc."))
    return names


def test_a_published_run_goes_on(toml, photos, tmp_path):
    torch.manual_seed(5)
    model = vr.VDVAE(load_config(toml).model)
    moments = published_run(tmp_path, model, steps=7)
    with pytest.raises(vr.TrainingError, match="the only update was skipped"):
        trained(
            toml, photos, tmp_path / "r", "train.steps=41", "train.skip_threshold=1e-9",
            init_from=tmp_path / "x-model.th",
        )  # fmt: skip
    found = final(tmp_path / "r", 41)  # one step, which was skipped: everything is as it came
    for name, parameter in model.named_parameters():
        assert torch.equal(found[f"model {name}"], parameter)
        assert torch.equal(found[f"average {name}"], parameter + 1)
        assert torch.equal(found[f"adamw exp_avg.{name}"], moments.state[parameter]["exp_avg"])
        assert torch.equal(
            found[f"adamw exp_avg_sq.{name}"], moments.state[parameter]["exp_avg_sq"]
        )
        assert found[f"adamw step.{name}"] == 7
    assert log(tmp_path / "r")[-1]["step"] == 41
    assert log(tmp_path / "r")[-1]["images_seen"] == 41 * 8


def test_a_published_run_that_is_not_whole_is_refused(toml, photos, tmp_path):
    published_run(tmp_path, vr.VDVAE(load_config(toml).model), steps=1)
    start = tmp_path / "x-model.th"
    with pytest.raises(vr.ConfigError, match=r"at step 40, and train.steps is 40"):
        trained(toml, photos, tmp_path / "r", "train.steps=40", init_from=start)
    with pytest.raises(vr.CheckpointError, match="another architecture"):
        trained(toml, photos, tmp_path / "r", "model.width=16", init_from=start)
    state = torch.load(tmp_path / "x-opt.th")
    state["state"][3]["exp_avg"] = torch.zeros(5)
    torch.save(state, tmp_path / "x-opt.th")
    with pytest.raises(vr.CheckpointError, match=r"moments of \d+ parameters, found others"):
        trained(toml, photos, tmp_path / "r", init_from=start)
    for key, value, message in (
        ("exp_avg", math.nan, "found NaN or infinity in exp_avg"),
        ("exp_avg_sq", math.inf, "found NaN or infinity in exp_avg_sq"),
        ("exp_avg_sq", -1.0, r"exp_avg_sq of \S+ is below 0"),
    ):
        published_run(tmp_path, vr.VDVAE(load_config(toml).model), steps=1)
        state = torch.load(tmp_path / "x-opt.th")
        state["state"][3][key].view(-1)[0] = value
        torch.save(state, tmp_path / "x-opt.th")
        with pytest.raises(vr.CheckpointError, match=rf"x-opt\.th: .*{message}"):
            trained(toml, photos, tmp_path / "r", init_from=start)
    published_run(tmp_path, vr.VDVAE(load_config(toml).model), steps=1)
    (tmp_path / "x-log.jsonl").write_text('{"type": "eval_loss", "step": 3}\n')
    with pytest.raises(
        vr.CheckpointError, match=r"train_loss with its step \(there is none of that type\)"
    ):
        trained(toml, photos, tmp_path / "r", init_from=start)
    (tmp_path / "x-log.jsonl").unlink()
    with pytest.raises(vr.CheckpointError, match="which tells the step"):
        trained(toml, photos, tmp_path / "r", init_from=start)
    (tmp_path / "x-opt.th").unlink()
    (tmp_path / "x-model-ema.th").unlink()  # its score is not finite, which is an error at the end
    said = []
    trained(toml, photos, tmp_path / "r", "train.steps=2", init_from=start, progress=said.append)
    lacking = (
        "beside it are no x-model-ema.th, x-opt.th, x-log.jsonl, so that the moving average starts"
    )
    assert sum(lacking in line for line in said) == 1


def test_a_run_starts_from_weights_however_they_are_wrapped(toml, tmp_path):
    model = vr.VDVAE(load_config(toml).model)  # of no preset's architecture
    weights = dict(zip(published_names(model), model.state_dict().values(), strict=True))
    average = {name: value + 1 for name, value in weights.items()}
    for name in ("x.pt", "x-model.th"):
        state = {"state_dict": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3}
        torch.save(state, tmp_path / name)
    torch.save({"model": average}, tmp_path / "x-model-ema.th")
    save_file(weights, tmp_path / "x.safetensors")
    for name, more in (("x.pt", 0), ("x.safetensors", 0), ("x-model.th", 1)):
        start, step = read_start(tmp_path / name)
        assert step == 0
        for key, value in model.state_dict().items():
            assert torch.equal(start["model"][key], value)
            assert torch.equal(start["average"][key], value + more)
    average["decoder.gain"] = torch.full_like(average["decoder.gain"], math.nan)
    torch.save(average, tmp_path / "x-model-ema.th")
    torch.save(average, tmp_path / "y.th")
    for name in ("x-model.th", "y.th"):
        with pytest.raises(vr.CheckpointError, match=r"found NaN or infinity in decoder\.gain"):
            read_start(tmp_path / name)


def test_a_run_starts_from_the_weights_of_another(toml, photos, finished, tmp_path):
    with pytest.raises(vr.TrainingError, match="the only update was skipped"):
        trained(
            toml, photos, tmp_path / "b", "train.steps=1", "train.skip_threshold=1e-9",
            init_from=finished,
        )  # fmt: skip
    average = {k: v for k, v in final(finished).items() if k.startswith("average ")}
    begun = {k: v for k, v in final(tmp_path / "b", 1).items() if k.startswith("average ")}
    same(average, begun)


def test_a_tracker_receives_the_log(toml, photos, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(toml, photos, tmp_path / "r", log_with="tensorboard")
    (events,) = (tmp_path / "r").glob("*/events.*")
    accumulated = EventAccumulator(str(events)).Reload()
    found = {e.step: e.value for e in accumulated.Scalars("bits_per_dim")}
    rows = log(tmp_path / "r")
    assert found == pytest.approx({row["step"]: row["bits_per_dim"] for row in rows})
    assert "kl_nats/8x8.1" in accumulated.Tags()["scalars"]
    with pytest.raises(vr.ConfigError, match="expected an installed tracker"):
        trained(toml, photos, tmp_path / "s", log_with="carrier-pigeon")


def test_layers_are_probed_during_training(toml, tmp_path):
    images = np.random.default_rng(0).integers(0, 60, (40, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(40) % 4
    images += (60 * labels).astype(np.uint8)[:, None, None, None]  # told apart by brightness
    np.savez(tmp_path / "easy.npz", images=images, labels=labels)
    options = {"probe_every": 8, "probe_layers": "<=8x8"}
    trained(
        toml, tmp_path / "easy.npz", tmp_path / "r", probe_data=tmp_path / "easy.npz", **options
    )
    probed = [row for row in log(tmp_path / "r") if "probe_accuracy" in row]
    assert [row["step"] for row in probed] == [8, 16, 24]
    assert list(probed[-1]["probe_accuracy"]) == ["1x1.0", "4x4.0", "8x8.0", "8x8.1"]
    assert max(probed[-1]["probe_accuracy"].values()) > 0.9
    assert probed[-1]["probe_images"] == 40
    with pytest.raises(vr.TaskError, match="at least 2 labels"):
        trained(toml, images, tmp_path / "s", **options)


def test_how_long_the_data_kept_the_step_waiting_is_logged(toml, photos, tmp_path, monkeypatch):
    """By a clock that stands still but for three seconds a batch and one second an update."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: clock.seconds)
    batches, update = trainer._Run.batches, trainer.Optimisation.update

    def slow_batches(run):
        for batch in batches(run):
            clock.seconds += 3
            yield batch

    def slow_update(*arguments):
        clock.seconds += 1
        return update(*arguments)

    monkeypatch.setattr(trainer._Run, "batches", slow_batches)
    monkeypatch.setattr(trainer.Optimisation, "update", slow_update)
    trained(toml, photos, tmp_path / "r", "train.steps=10")
    assert [row["data_wait"] for row in log(tmp_path / "r")] == [0.75] * len(log(tmp_path / "r"))
    rates = [row["images_per_second"] for row in log(tmp_path / "r")]
    assert rates == [load_config(toml).train.batch_size / 4] * len(rates)


def test_a_step_reads_from_the_device_once(toml, photos, tmp_path, monkeypatch):
    """Further steps between two rows of the log read one tensor each; a row reads more."""
    reads = []
    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        method = getattr(torch.Tensor, name)

        def counted(tensor, *arguments, method=method, name=name, **options):
            reads.append(name)
            return method(tensor, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    counts = []
    for steps in (10, 15):  # 1 and 8 are looked at, and the last
        reads.clear()
        options = (f"train.steps={steps}", "train.log_every=1000", "train.checkpoint_every=1000")
        trained(toml, photos, tmp_path / str(steps), *options)
        counts.append(len(reads))
    assert counts[1] - counts[0] == 5


def test_the_number_of_workers_changes_nothing(toml, photos, tmp_path):
    for workers in (1, 4):
        trained(toml, photos, tmp_path / str(workers), "train.steps=8", num_workers=workers)
    same(final(tmp_path / "1", 8), final(tmp_path / "4", 8))


def test_early_evaluations_and_their_sheets(toml, photos, tmp_path):
    trained(toml, photos, tmp_path / "r", "train.steps=20", "train.checkpoint_every=20")
    scored = [row["step"] for row in log(tmp_path / "r") if "held_back_bits_per_dim" in row]
    assert scored == [1, 8, 16, 20]
    sheets = sorted((tmp_path / "r" / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == [f"step-{step:08d}.png" for step in scored]
    sheet = np.asarray(Image.open(sheets[-1]))
    source = open_source(photos)
    _, held = split_indices(source, load_config(toml).train)
    # Rows: 4 held back, 6 times first k layers, 4 temperatures; tiles of 128, gaps of 6, names on the left.
    assert sheet.shape[0] == 11 * 134 + 6
    for column, i in enumerate(held[:4]):
        left = sheet.shape[1] - (4 - column) * 134
        tile = sheet[6:134, left : left + 128]
        assert np.array_equal(tile, source.reader(i).repeat(8, axis=0).repeat(8, axis=1))


def test_channels_last_resumes_bit_identical(toml, photos, tmp_path):
    trained(toml, photos, tmp_path / "whole", "train.steps=8", channels_last=True)
    trained(toml, photos, tmp_path / "r", "train.steps=4", channels_last=True)
    trained(toml, photos, tmp_path / "r", "train.steps=8", channels_last=True, resume=True)
    same(final(tmp_path / "whole", 8), final(tmp_path / "r", 8))


def test_another_crop_or_division_is_not_resumed(toml, photos, again):
    with pytest.raises(vr.TrainingError, match="another crop"):
        trained(toml, photos, again, "train.steps=28", resume=True, crop=8)
    with pytest.raises(vr.ConfigError, match=r"train\.hold_back"):
        trained(toml, photos, again, "train.steps=28", "train.hold_back='labels'", resume=True)


def test_checkpoints_kept(toml, photos, tmp_path):
    options = ("train.checkpoint_every=4", "train.keep_every=6")
    trained(toml, photos, tmp_path / "r", "train.steps=20", *options)
    assert checkpoint_steps(tmp_path / "r" / "checkpoints") == [6, 12, 18, 20]


def test_damaged_checkpoints_do_not_push_out_whole_ones(toml, photos, tmp_path):
    folder = tmp_path / "r" / "checkpoints"
    options = ("train.checkpoint_every=2", "train.keep_last=3")
    trained(toml, photos, tmp_path / "r", "train.steps=8", *options)
    for step in (6, 8):
        (folder / f"step-{step:08d}" / "model.safetensors").write_bytes(b"")
    (folder / "step-00000006.bak").mkdir()
    trained(toml, photos, tmp_path / "r", "train.steps=5", *options, resume=True)
    assert checkpoint_steps(folder) == [4, 5, 6, 8]


def test_a_loss_that_is_not_finite_on_any_rank_moves_no_rank(toml, photos, tmp_path):
    """Rank 1 alone draws NaN at step 2: both skip that update, and go on equal."""
    script = tmp_path / "spoiled.py"
    script.write_text(f"""
import os, torch, vdvae_repr as vr
from vdvae_repr.config import load_config
from vdvae_repr.training import trainer
drawn = trainer.joint_noise
def spoiled(seed, step, *rest):
    noise = drawn(seed, step, *rest)
    bad = step == 2 and os.environ["RANK"] == "1"
    return (lambda layer: noise(layer) * torch.nan) if bad else noise
trainer.joint_noise = spoiled
config = load_config({str(toml)!r}, ["train.steps=4", "train.log_every=1"])
vr.train(config, {str(photos)!r}, {str(tmp_path / "r")!r})
""")
    process = torchrun(script)
    assert process.wait() == 0, process.communicate()[1]
    assert [row["skipped"] for row in log(tmp_path / "r")] == [0, 0, 1, 1]
    assert all(torch.isfinite(value).all() for value in final(tmp_path / "r", 4).values())


def test_what_was_held_back_can_be_scored(toml, photos, finished):
    source = mark_held_back(open_source(photos), load_config(toml).train)
    found = vr.evaluate(vr.load(finished), source, split="held-back")
    assert found.images == 4
    expected = log(finished)[-1]["held_back_bits_per_dim"]
    assert found.bits_per_dim == pytest.approx(expected, rel=1e-5)


def test_scoring_what_was_trained_on_is_said(toml, photos, tmp_path, caplog):
    out = trained(toml, photos, tmp_path / "r", "train.steps=2")
    model = vr.load(out)
    line = "photos.npz: 16 of 40 images are those the model was trained on; split="
    for given in ({"data": photos}, {"data": open_source(photos)}, {"data": None, "run": out}):
        caplog.clear()
        vr.evaluate(model, **given)
        assert [m for m in caplog.messages if m.startswith(line)] == caplog.messages != []
    caplog.clear()
    vr.evaluate(model, None, run=out, split="held-back")
    assert caplog.messages == []
    with pytest.raises(vr.DataError, match='it has no splits; of what a run divided, split="held'):
        vr.evaluate(model, photos, split="train")


def test_copies_held_back_and_updates_skipped_are_said(toml, photos, tmp_path):
    with np.load(photos) as held:
        twice = np.concatenate([held["images"]] * 2)
    np.savez(tmp_path / "twice.npz", images=twice)
    said = []
    options = "train.steps=4", "train.skip_threshold=1e-9"
    with pytest.raises(vr.TrainingError, match="all 4 updates were skipped"):
        trained(toml, tmp_path / "twice.npz", tmp_path / "r", *options, progress=said.append)
    source = open_source(tmp_path / "twice.npz")
    used, held = split_indices(source, load_config(toml).train)
    copies = len(set(held % 40) & set(used % 40))
    assert copies > 0
    line = (
        f"twice.npz: {copies} of {len(held)} images held back are copies of images trained on, as "
    )
    assert [text for text in said if text.startswith(line)]
    assert not [text for text in said if "were skipped, so" in text]


def test_a_run_that_skipped_most_updates_says_so(toml, photos, tmp_path, monkeypatch):
    update = trainer.Optimisation.update

    def mostly_skipped(self, norm, finite):
        return update(self, norm, finite and self.step == 1)

    monkeypatch.setattr(trainer.Optimisation, "update", mostly_skipped)
    said = []
    trained(toml, photos, tmp_path / "r", "train.steps=5", progress=said.append)
    assert [line for line in said if line.startswith("4 of 5 updates were skipped, so that little")]


@pytest.mark.parametrize("classes", [3, 200, 400])
def test_a_probe_draws_evenly_over_sorted_classes(tiny, classes):
    labels = np.repeat(np.arange(classes), 1800 // classes)
    source = open_source(np.zeros((len(labels), 2, 2, 3), np.uint8))
    source = replace(source, labels=labels, label_names=tuple(map(str, range(classes))))
    drawn, again, other = (
        Probe.of(1, source, np.arange(len(labels)), tiny.layers, seed).indices for seed in (0, 0, 1)
    )
    assert drawn == again != other
    assert len(set(drawn)) == 512
    counts = np.unique(labels[drawn], return_counts=True)[1]
    assert len(counts) == min(classes, 256)
    assert counts.min() >= 2
    assert counts.max() - counts.min() <= 2


def test_images_to_probe_with_that_cannot_be_read_are_said(toml, photos, tmp_path):
    for person in "ab":
        (tmp_path / "labelled" / person).mkdir(parents=True)
        for number in range(3):
            path = tmp_path / "labelled" / person / f"{number}.png"
            Image.new("RGB", (16, 16), (number, 9, 9)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    said = []
    trained(
        toml, photos, tmp_path / "r", "train.steps=2", on_error="skip", probe_every=2,
        probe_data=tmp_path / "labelled", progress=said.append,
    )  # fmt: skip
    assert "probe_data: 1 unreadable image left out: b/2.png" in said


def test_engine_options_change_rounding_alone(toml, photos, tmp_path):
    trained(toml, photos, tmp_path / "a", "train.steps=4")
    trained(
        toml, photos, tmp_path / "b", "train.steps=4", recompute=[16, 8], channels_last=True
    )  # fmt: skip
    one, other = (log(tmp_path / name)[-1] for name in "ab")
    assert other["bits_per_dim"] == pytest.approx(one["bits_per_dim"], rel=1e-4)
    with pytest.raises(vr.ConfigError, match=r"no layers at \[32\]"):
        trained(toml, photos, tmp_path / "c", recompute=[32])
