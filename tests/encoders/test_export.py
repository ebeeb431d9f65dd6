"""What is exported computes what the model does, and needs nothing of this package."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch

import vdvae_repr as vr

BLOCKS = {
    "image_size": 8, "width": 4, "zdim": 2, "bottom_up": "8d2,4d4,1x1", "top_down": "1x1,4m1,8m4",
    "shift": -127.5, "scale": 1 / 64,
}  # fmt: skip


def made(kind, config, **options):
    """A small model, every zero initialisation replaced."""
    torch.manual_seed(0)
    model = kind(config(**BLOCKS, **options), name="small")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def nearest():
    return made(vr.VDVAE, vr.ModelConfig)


@pytest.fixture(scope="module")
def transposed():
    return made(vr.VDVAE, vr.ModelConfig, unpool="transposed")


@pytest.fixture(scope="module")
def student():
    return made(vr.Student, vr.StudentConfig)


CASES = [("nearest", "<=4x4"), ("transposed", "4x4,8x8.0"), ("student", "1x1,8x8.0")]


def run_onnx(path, images):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra export: onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = dict(zip(names, session.run(None, {"images": images}), strict=True))
    return values, session.get_modelmeta().custom_metadata_map


def run_pt2(path, images):
    extra = {"vdvae-repr.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path, extra_files=extra)
    values = program.module()(torch.from_numpy(images))
    return {k: v.detach().numpy() for k, v in values.items()}, json.loads(extra["vdvae-repr.json"])


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
@pytest.mark.parametrize(("which", "layers"), CASES)
def test_equal_to_the_posterior(which, layers, ending, images, tmp_path, request):
    if ending == ".onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason=f"needs the extra export: {name}")
    model = request.getfixturevalue(which)
    path = vr.export_model(model, tmp_path / f"m{ending}", layers=layers)
    for count in (1, 5):  # any number of images
        run = run_onnx if ending == ".onnx" else run_pt2
        values, described = run(path, images[:count])
        read = model.posterior(images[:count], layers)
        assert list(values) == [f"{name}.{key}" for name in read for key in ("mean", "log_std")]
        for name, layer in read.items():
            for key in ("mean", "log_std"):
                expected = getattr(layer, key).numpy()
                limit = 1e-5 * np.abs(expected).max()
                assert np.abs(values[f"{name}.{key}"] - expected).max() <= limit, (name, key)
    assert described["model"] == model.name
    assert described["config"] == model.config.to_json()
    assert [spec["name"] for spec in json.loads(described["layers"])] == list(read)


def test_a_cut_model_has_no_parameters_that_it_does_not_need(nearest, tmp_path):
    sizes = []
    for layers in ("1x1", "all"):
        path = vr.export_model(
            nearest, tmp_path / "m.pt2", layers=layers
        )  # its own file is replaced
        sizes.append(parameters_in(path))
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < sum(parameter.numel() for parameter in nearest.parameters())


def test_a_student_is_exported_without_the_heads_of_other_layers(student, tmp_path):
    path = vr.export_model(student, tmp_path / "m.pt2", layers="1x1")
    count = sum(p.numel() for p in student.bottom_up.parameters())
    assert parameters_in(path) == count + sum(p.numel() for p in student.heads[0].parameters())
    assert len(list(student.heads[-1].parameters())) > 0


def parameters_in(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path)
    return sum(value.numel() for value in program.state_dict.values())


def test_weights_that_are_not_finite_or_not_float32_are_not_exported(student, tmp_path):
    with pytest.raises(vr.ConfigError, match="expected weights in float32, found float16"):
        vr.export_model(copy.deepcopy(student).half(), tmp_path / "m.pt2")
    broken = copy.deepcopy(student)
    next(broken.heads[-1].parameters()).data.fill_(torch.nan)
    with pytest.raises(vr.CheckpointError, match="expected finite weights, found NaN or infinity"):
        vr.export_model(broken, tmp_path / "m.pt2", layers="1x1")
    assert not list(tmp_path.iterdir())


def test_the_square_that_a_model_was_trained_on_is_said(student, images, tmp_path):
    student.trained_crop = 12
    _, described = run_pt2(vr.export_model(student, tmp_path / "m.pt2", layers="1x1"), images)
    assert described["trained_crop"] == "12"


def test_the_model_is_left_as_it_was(nearest, images, tmp_path):
    before = nearest.posterior(images, "4x4")["4x4.0"].mean
    vr.export_model(nearest, tmp_path / "m.pt2", layers="4x4")
    assert all(parameter.requires_grad for parameter in nearest.parameters())
    assert torch.equal(nearest.posterior(images, "4x4")["4x4.0"].mean, before)
    assert nearest.decode(nearest.posterior(images)).shape == images.shape


def test_refusals(nearest, tmp_path, monkeypatch):
    (tmp_path / "theirs.pt2").write_text("somebody's")
    for out, layers, message in (
        ("m.th", "all", "expected a path that ends in .onnx or .pt2"),
        ("theirs.pt2", "all", "was not made by vdvae-repr"),
        ("m.pt2", "2x2", "no layer matches '2x2'"),
    ):
        with pytest.raises(vr.VDVAEReprError, match=message):
            vr.export_model(nearest, tmp_path / out, layers=layers)
    assert (tmp_path / "theirs.pt2").read_text() == "somebody's"
    with pytest.raises(vr.CheckpointError, match="expected a VDVAE or a student"):
        vr.export_model(64, tmp_path / "m.pt2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(vr.TaskError, match=r"vdvae-repr\[export\]"):
        vr.export_model(nearest, tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs.pt2"]
