"""A student learns a VDVAE's posterior, in a run folder, and is loaded and extracted like any encoder."""

import json
import signal
from types import MethodType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import Normal, kl_divergence
from torch.utils.flop_counter import FlopCounterMode

import vdvae_repr as vr
from vdvae_repr.cli import _load_generative, _load_vdvae, main
from vdvae_repr.config import StudentConfig, load_config, preset_path
from vdvae_repr.data.source import Preprocessing
from vdvae_repr.model.student import Student, multiply_adds
from vdvae_repr.model.weights import save
from vdvae_repr.training.objective import Distillation

TOML = """
[model]
kind = "student"
width = 8
bottom_up = "16x1,16d2,8x1,8d2,4x1,4d4,1x1"
layers = "<=8x8"

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
    return np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)


def rows(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def student_of(model, **changes):
    own = {
        key: getattr(model.config, key)
        for key in ("image_size", "zdim", "top_down", "shift", "scale")
    }
    blocks = {"width": 8, "bottom_up": "16x1,16d2,8x1,8d2,4x1,4d4,1x1"}
    torch.manual_seed(1)
    return Student(StudentConfig(**own | blocks | changes)).eval()


def test_the_presets_student_takes_a_fifth_of_the_teacher():
    student = load_config(preset_path("student64")).model
    with torch.device("meta"):
        model = Student(student)
        teacher = vr.VDVAE(vr.ModelConfig.from_preset("faces64"))
    assert set(model.layers) < set(teacher.layers)
    own = multiply_adds(model, model.layers)
    # of the same layers of the teacher, which is less than its whole pass
    assert own <= multiply_adds(teacher, model.layers) / 5
    for key in ("image_size", "zdim", "top_down", "shift", "scale"):
        assert getattr(student, key) == getattr(teacher.config, key)


def test_multiply_adds_are_those_of_a_pass(tiny):
    student, teacher = (
        student_of(tiny),
        vr.VDVAE(tiny.config),
    )  # in training mode, without the fused plan
    x, count = torch.zeros(1, 3, 16, 16), len(tiny.layers)
    for model, read in (
        (student, lambda: student.predict(x, student.layers)),
        (teacher, lambda: teacher.infer(x, None, count, top_down=False)),
    ):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            read()
        assert multiply_adds(model, model.layers) == counter.get_total_flops() // 2


def test_the_loss_is_the_kl_of_the_teachers_posterior(tiny, photos):
    student = student_of(tiny, layers="4x4,8x8.1")
    images = torch.from_numpy(photos[:3]).permute(0, 3, 1, 2)
    loss, terms = Distillation(tiny, student.layers).terms(
        student, images, lambda spec: None, rate_weight=1.0, recompute=()
    )
    q, predicted = tiny.posterior(photos[:3]), student.posterior(photos[:3])
    assert list(predicted) == ["4x4.0", "8x8.1"]
    for column, (name, own) in enumerate(predicted.items()):
        one = Normal(q[name].mean.double(), q[name].log_std.double().exp())
        other = Normal(own.mean.double(), own.log_std.double().exp())
        expected = kl_divergence(one, other).sum(dim=(1, 2, 3))
        assert torch.allclose(terms[:, column].detach().double(), expected, rtol=1e-4)
    assert torch.allclose(loss, terms.sum(dim=1))


def test_images_held_back_that_have_no_finite_kl_are_left_out_aloud(tiny, photos, caplog):
    student = student_of(tiny, layers="4x4")
    source = vr.Source(
        name="p", ids=list("abcd"), reader=lambda i: photos[i], labels=np.zeros(4, int)
    )
    objective = Distillation(tiny, student.layers)
    how = {"preprocessing": Preprocessing(size=16), "batch_size": 3, "seed": 0}
    expected = objective.score(student, source, indices=[0, 2, 3], **how)
    whole = type(student).forward

    def blind_to_one(self, images):  # as of an image that the teacher knows nothing like of
        found = whole(self, images)
        odd = (images == torch.from_numpy(photos[1]).permute(2, 0, 1)).all(dim=(1, 2, 3))
        for _, log_std in found:
            log_std[odd] = -torch.inf
        return found

    student.forward = MethodType(blind_to_one, student)
    found = objective.score(student, source, indices=[0, 1, 2, 3], **how)
    torch.testing.assert_close(found, expected)
    assert "1 of 4 images held back are left out of the score" in caplog.text


def test_a_student_is_of_the_image_alone_and_of_its_layers_alone(tiny, photos):
    student = student_of(tiny)
    whole = student.posterior(photos)
    for name in ("1x1.0", "8x8.0", "16x16.0"):
        part = student.posterior(photos[4:6], name)[name]
        assert torch.allclose(part.mean, whole[name].mean[4:6], atol=1e-6)
        assert torch.allclose(part.log_std, whole[name].log_std[4:6], atol=1e-6)
    with pytest.raises(vr.LayerError, match="no layer matches '2x2'"):
        student.posterior(photos, "2x2")


def test_distill_learns_and_resumes_bit_by_bit(tiny, toml, photos, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "r"
    vr.distill(tiny, photos, whole, config=toml, steps=24)
    vr.distill(tiny, photos, run, config=toml, steps=4)
    vr.distill(tiny, photos, run, steps=24, resume=True)
    for name in ("model", "average", "adamw"):
        file = f"checkpoints/step-00000024/{name}.safetensors"
        one, other = load_file(whole / file), load_file(run / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    first, last = rows(run)[0], rows(run)[-1]
    assert last["held_back_total_kl_nats"] < 0.9 * first["held_back_total_kl_nats"]
    assert list(last["held_back_kl_nats"]) == ["1x1.0", "4x4.0", "8x8.0", "8x8.1"]
    total = sum(last["held_back_kl_nats"].values())
    assert last["held_back_total_kl_nats"] == pytest.approx(total, abs=1e-3)
    # what the log says of images held back is what the saved student makes of them
    student = vr.load(run)
    assert isinstance(student, vr.Student)
    assert student.name == "tiny-student"
    assert not student.training


def test_a_run_folder_goes_on_in_place(tiny, toml, photos, tmp_path):
    run = vr.distill(tiny, photos, tmp_path / "r", config=toml, steps=4)
    assert vr.distill(tiny, photos, config=run, steps=8, resume=True) == run
    assert rows(run)[-1]["step"] == 8


def test_a_teacher_by_path_is_known_to_the_run_and_another_is_refused(tiny, toml, photos, tmp_path):
    file, other = tmp_path / "t.safetensors", tmp_path / "other.safetensors"
    save(tiny, file, record={})
    torch.manual_seed(5)
    save(vr.VDVAE(tiny.config, name="other"), other, record={})
    run = vr.distill(file, photos, tmp_path / "r", config=toml, steps=2)
    vr.distill(None, photos, run, resume=True, steps=4)
    assert rows(run)[-1]["step"] == 4
    with pytest.raises(
        vr.TrainingError, match=r"another teacher_sha256.*; give that teacher to go"
    ):
        vr.distill(other, photos, run, resume=True, steps=6)
    with pytest.raises(vr.ConfigError, match=r"differs in model\.layers"):
        vr.distill(file, photos, run, resume=True, layers="4x4")


def test_sigterm_keeps_a_checkpoint(tiny, toml, photos, tmp_path):
    said = []

    def stop(line):
        said.append(line)
        if line.startswith("step 1/"):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(vr.Terminated, match="resume=True"):
        vr.distill(tiny, photos, tmp_path / "r", config=toml, progress=stop)
    vr.distill(tiny, photos, tmp_path / "r", resume=True, steps=4)
    assert [row["step"] for row in rows(tmp_path / "r")][-1] == 4


def test_what_the_teacher_tells_is_the_teachers(tiny, toml, photos, tmp_path):
    said = []
    toml.write_text(TOML.replace("[train]", "shift = -1.0\n[train]"))
    run = vr.distill(
        tiny, photos, tmp_path / "r", config=toml, layers="4x4", steps=2, progress=said.append
    )
    line = f"{toml}: model.shift is the teacher's, and not the one given"
    assert line in said
    student = vr.load(run)
    assert student.config.shift == tiny.config.shift
    assert [spec.name for spec in student.layers] == ["4x4.0"]
    assert [spec.index for spec in student.layers] == [1]  # as in the teacher


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": "faces64"}, "expected the configuration of a student"),
        ({"layers": "32x32"}, "model.layers: no layer matches '32x32'"),
        ({"changed": ["model.bottom_up=16d2,8x1"]}, "never reaches 1x1.0"),
        ({"changed": ["train.kl_warmup_steps=3"]}, "found a student"),
        ({"teacher": None}, "teacher: expected a VDVAE"),
    ],
)
def test_refusals(change, message, tiny, toml, photos, tmp_path):
    given = {"teacher": tiny, "config": toml} | change
    with pytest.raises(vr.VDVAEReprError, match=message) as refused:
        vr.distill(given.pop("teacher"), photos, tmp_path / "r", **given)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "r").exists()


def test_a_student_fills_stores_and_refuses_what_it_has_not(tiny, photos, tmp_path):
    save(student_of(tiny, layers="<=8x8"), tmp_path / "s.safetensors", record={})
    student = vr.load(tmp_path / "s.safetensors")
    with vr.extract(
        student, photos, tmp_path / "s.h5", layers="8x8", features=("mean", "log_std")
    ) as store:
        predicted = student.posterior(photos, "8x8")
        for name, layer in predicted.items():
            assert np.allclose(store[name].mean[:], layer.mean.numpy(), atol=1e-6)
            assert np.allclose(store[name].log_std[:], layer.log_std.numpy(), atol=1e-6)
    for options, message in (
        ({"features": ["delta"]}, "unknown feature 'delta'; the features are mean, log_std"),
        ({"z": "sample"}, "draws nothing"),
        ({"layers": "16x16"}, "no layer matches '16x16'"),
    ):
        with pytest.raises(vr.LayerError, match=message):
            vr.extract(student, photos, tmp_path / "other.h5", **options)
    with pytest.raises(vr.ConfigError, match="learns from a teacher"):
        vr.train("student64", photos, tmp_path / "t")
    with pytest.raises(vr.TaskError, match="expected a VDVAE or a PixelCNN"):
        vr.evaluate(student, photos)
    for draws in (student.decode, student.sample, student.elbo):
        with pytest.raises(
            vr.CheckpointError, match=r"a student draws nothing: .*load its teacher"
        ):
            draws(photos, seed=1)


def test_a_prediction_that_is_not_finite_is_refused(tiny, photos):
    student = student_of(tiny, layers="<=8x8")
    finite = student.posterior(photos, "8x8")
    assert all(layer.mean.isfinite().all() for layer in finite.values())
    with torch.no_grad():
        student.bottom_up.in_conv.weight.view(-1)[0] = float("nan")
    with pytest.raises(
        vr.DataError, match=r"mean of layer 8x8\.0: expected finite values, found NaN for image '0'"
    ) as told:
        student.posterior(photos, "8x8")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("load", [_load_vdvae, _load_generative])
def test_the_command_line_says_that_a_student_draws_nothing(load):
    with pytest.raises(vr.TaskError, match="faces64-student: a student draws nothing"):
        load("faces64-student", None, "cpu", False)


def test_weights_of_another_precision_are_refused_in_one_line(tiny, photos, tmp_path):
    student = student_of(tiny).half()
    for use in (student.posterior, lambda images: vr.extract(student, images, tmp_path / "s.h5")):
        with pytest.raises(
            vr.ConfigError, match=r"^student: expected weights in float32, found fl"
        ):
            use(photos)


def test_its_random_twin_is_a_student(tiny):
    from vdvae_repr.encoders.load import as_encoder, random_twin

    encoder = as_encoder(student_of(tiny))
    identity = encoder.identity()
    twin = random_twin(identity["config"], identity["weights_sha256"], 3)
    assert [spec.name for spec in twin.layers] == [spec.name for spec in encoder.layers]
    assert twin.identity()["weights_sha256"] != identity["weights_sha256"]


def test_commands(tiny, toml, photos, tmp_path, monkeypatch, capsys):
    save(tiny, tmp_path / "t.safetensors", record={})
    np.save(tmp_path / "photos.npy", photos)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["vdvae-repr", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code in (0, None), capsys.readouterr().err
        return capsys.readouterr().out

    where = ("--teacher", "t.safetensors", "--data", "photos.npy", "--out", "r")
    run("distill", *where, "--config", str(toml), "--layer", "8x8", "--set", "train.steps=2")
    run("distill", "--out", "r", "--resume", "--set", "train.steps=3")
    assert rows(tmp_path / "r")[-1]["step"] == 3
    listed = run("layers", "--model", "r").splitlines()
    assert [line.split()[:2] for line in listed[1:]] == [["2", "8x8.0"], ["3", "8x8.1"]]
    assert run("export", "r", "--out", "m.pt2").startswith("m.pt2: ")
