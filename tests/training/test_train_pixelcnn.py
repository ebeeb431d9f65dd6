"""A PixelCNN is trained, scored, drawn from and resumed by the same calls as a VDVAE."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vdvae_repr as vr
from vdvae_repr.cli import main

TOML = """
[model]
kind = "pixelcnn"
image_size = 8
width = 6
blocks = 1
resolutions = 2
num_mixtures = 2

[train]
steps = 8
batch_size = 4
lr = 5e-3
warmup_steps = 2
ema_rate = 0.9
flip = true
log_every = 4
checkpoint_every = 4
"""


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def photos():
    return np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)


def test_train_resume_load_evaluate_sample(toml, photos, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "r"
    vr.train(toml, photos, whole)
    vr.train(toml, photos, run, steps=4)
    vr.train(toml, photos, run, steps=8, resume=True)
    # bit by bit, dropout's draws included
    names = [f"checkpoints/step-00000008/{n}.safetensors" for n in ("model", "average", "adamw")]
    for name in names:
        one, other = load_file(whole / name), load_file(run / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    model = vr.load(run)
    assert isinstance(model, vr.PixelCNN)
    assert not model.training
    assert model.config.shift == pytest.approx(-photos.mean(), abs=2)  # measured
    found = vr.evaluate(model, photos, batch_size=7)
    with torch.no_grad():
        nats = model(torch.from_numpy(photos).permute(0, 3, 1, 2), None).negative.double()
    assert found.nats == pytest.approx(nats.mean().item(), rel=1e-5)
    assert found.bits_per_dim == pytest.approx(nats.mean().item() / (math.log(2) * 192), rel=1e-5)
    assert (found.rate_nats, found.kl_nats, found.active_units) == (0.0, {}, {})
    assert found.distortion_nats == found.nats
    assert model.sample(2).shape == (2, 8, 8, 3)
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["held_back_bits_per_dim"] < rows[0]["held_back_bits_per_dim"]
    assert rows[-1]["rate_nats"] == 0.0
    assert (whole / "samples" / "step-00000008.png").is_file()


def test_a_divided_batch_gives_the_same_run(toml, photos, tmp_path):
    vr.train(toml, photos, tmp_path / "whole", steps=3)
    vr.train(toml, photos, tmp_path / "r", steps=3, accumulate=2, recompute=[4, 8])
    one, other = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "r"))
    for key in one:
        torch.testing.assert_close(other[key], one[key], atol=1e-6, rtol=1e-5)


def test_a_run_starts_from_weights_of_its_own_kind(toml, photos, tmp_path):
    vr.train(toml, photos, tmp_path / "a", steps=2)
    vr.train(toml, photos, tmp_path / "b", steps=2, init_from=tmp_path / "a")
    with pytest.raises(vr.CheckpointError, match="weights of another architecture"):
        vr.train(toml, photos, tmp_path / "c", steps=2, init_from="faces64")


def test_probes_during_training_are_refused(toml, photos, tmp_path):
    with pytest.raises(vr.ConfigError, match=r"probe_every: expected a VDVAE.* no latents"):
        vr.train(toml, photos, tmp_path / "r", probe_every=2)


def test_the_commands(toml, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("photos.npy", photos)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["vdvae-repr", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, *capsys.readouterr()

    steps = ("--set", "train.steps=2")
    assert run("train", "small.toml", "--data", "photos.npy", "--out", "r", *steps)[0] == 0
    code, printed, _ = run("evaluate", "--model", "r", "--split", "held-back")
    assert code == 0
    assert "bits/dim" in printed
    assert "active units" not in printed
    assert run("sample", "--model", "r", "--count", "2")[0] == 0
    assert (tmp_path / "samples.png").is_file()
    for command in (["layers"], ["extract", "--data", "photos.npy"]):
        code, _, said = run(*command, "--model", "r")
        assert code == 2
        assert "expected a VDVAE, found the PixelCNN small, which has no latents" in said
        assert len(said.strip().splitlines()) == 1
