"""The commands of brains, from NSD's files to scores of decoded images, as a person types them."""

import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

import vdvae_repr as vr
from vdvae_repr.brain.nsd import synthetic_nsd
from vdvae_repr.cli import _layers_told, app
from vdvae_repr.model.weights import save


def command(*arguments):
    """Run a command; returns its standard output, or raises what `main` would print in one line."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture(scope="module")
def brain(tiny, people, tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    own = vr.extract(tiny, people(10, num_people=8), folder / "own.h5")
    paths = synthetic_nsd(folder, own, {"early": "1x1.0", "none": None}, voxels=20, sessions=2)
    save(tiny, folder / "tiny.safetensors", record={})
    return folder, paths


def test_from_nsds_files_to_scores(brain):
    folder, paths = brain
    model, store = folder / "tiny.safetensors", folder / "latents.h5"
    command("extract", "--model", model, "--data", f"{paths['stimuli']}:imgBrick", "--out", store)
    bold = folder / "bold.npz"
    said = command(
        "brain", "nsd", "--betas", paths["betas"], "--design", paths["design"],
        "--subject", 1, "--mask", paths["mask"], "--roi", paths["rois"], "--out", bold,
    )  # fmt: skip
    assert "80 images, seen 3 times at most, by 40 voxels" in said
    measured = ("--responses", f"{bold}:responses")
    answer = command(
        "probe", "--task", "encoding", *measured, "--rois", folder / "bold-rois.csv",
        "--latents", store, "--control", "pixels", "--selection", "single",
    )  # fmt: skip
    assert "64 training + 16 test images, 40 voxels" in answer
    assert "ridge:regions-1" in answer
    answer = command(
        "probe", "--task", "rsa", *measured, "--rois", folder / "bold-rois.csv",
        "--roi", "regions-1", "--latents", store, "--control", "none", "--selection", "single",
    )  # fmt: skip
    assert "16 images, 1 subject" in answer
    decoder, predicted = folder / "decoder.npz", folder / "predicted.h5"
    said = command("brain", "fit", *measured, "--latents", store, "--out", decoder)
    assert "40 voxels to 5 layers, 64 images" in said
    said = command("brain", "predict", decoder, *measured, "--latents", store, "--out", predicted)
    assert re.search(r"^predicted beyond chance: (all 5|\d of 5) layers", said, re.M)
    said = command(
        "brain", "score", predicted, "--latents", store, "--model", model, "--layer", "1x1",
        "--encoder", model, "--json",
    )  # fmt: skip
    scores = json.loads(said)
    assert scores["images"] == 16
    assert -1 <= scores["pixcorr"] <= 1
    assert 0 <= scores["identification"] <= 1
    assert "two-way identification by" in command(
        "brain", "score", predicted, "--latents", store, "--model", model, "--encoder", model
    )


def test_layers_that_are_told_are_named_once_and_counted_where_they_are_all():
    assert _layers_told(["1x1.0", "4x4.1"], 5) == "2 of 5 layers; decode --layer 1x1.0,4x4.1"
    assert _layers_told(["1x1.0", "4x4.1"], 2) == "all 2 layers"
    assert _layers_told([], 5) == "no layer"


def test_what_is_wrong_is_said_in_the_commands_words(brain, tmp_path):
    folder, _ = brain
    store = folder / "own.h5"
    np.save(tmp_path / "bold.npy", np.random.default_rng(0).normal(size=(80, 4)))
    bold = tmp_path / "bold.npy"
    for arguments, message in (
        (("probe", "--task", "encoding", "--latents", store), "encoding: expected responses"),
        (("probe", "--task", "rsa", "--latents", store), "expected rdm"),
        (("brain", "fit", "--responses", bold, "--latents", store), "split train, found 0"),
        (("brain", "predict", tmp_path / "no.npz", "--responses", bold), "no such file"),
    ):
        with pytest.raises(vr.VDVAEReprError, match=message):
            command(*arguments)
    decoder = tmp_path / "decoder.npz"
    fitting = ("brain", "fit", "--responses", bold, "--latents", store, "--split", "all")
    command(*fitting, "--out", decoder, "--layer", "1x1")
    with pytest.raises(vr.TaskError, match="exists already"):
        command(*fitting, "--out", decoder)
    command(*fitting, "--out", decoder, "--alpha", "10", "--overwrite")


def test_where_results_go_is_checked_before_anything_is_read(brain, tmp_path, monkeypatch):
    """Whatever else is wrong, the place is said first: a fit of hours is not lost at its end."""
    folder, _ = brain
    store, nothing = folder / "own.h5", tmp_path / "nothing.npy"
    file = tmp_path / "file.npz"
    file.write_bytes(b"mine")
    fitting = ("brain", "fit", "--responses", nothing, "--latents", store, "--out")
    gathering = ("brain", "nsd", "--betas", nothing, "--design", nothing, "--out")
    for start in (fitting, gathering):
        with pytest.raises(vr.VDVAEReprError, match=r"file\.npz: exists already"):
            command(*start, file)
        with pytest.raises(vr.VDVAEReprError, match=r"cannot be written \(Not a directory\)"):
            command(*start, file / "new.npz")
    np.save(tmp_path / "bold.npy", np.random.default_rng(0).normal(size=(80, 4)))
    with vr.open(store) as like:
        decoder = vr.brain.fit(str(tmp_path / "bold.npy"), like, layers="1x1", split=None)
        with pytest.raises(vr.StoreError, match="exists and is no latent store"):
            decoder.predict(str(nothing), like, file)
        with pytest.raises(vr.StoreError, match=r"cannot be written \(Not a directory\)"):
            decoder.predict(str(nothing), like, file / "new.h5")
    assert file.read_bytes() == b"mine"
    # Of score nothing is decoded before its encoder, and the layer of it, are known.
    monkeypatch.setattr(vr.LatentStore, "decode", lambda *_, **__: pytest.fail("decoded"))
    model = folder / "tiny.safetensors"
    scoring = ("brain", "score", store, "--latents", store, "--model", model, "--encoder")
    with pytest.raises(vr.VDVAEReprError, match="nowhere"):
        command(*scoring, "nowhere")
    with pytest.raises(vr.VDVAEReprError, match="9x9"):
        command(*scoring, model, "--encoder-layer", "9x9")
