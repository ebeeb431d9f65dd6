import errno
import logging
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from launch import Command, run
from PIL import Image

import vdvae_repr as vr
from vdvae_repr.cli import _task_of, in_options, main
from vdvae_repr.model.weights import save

SMALL = """
[model]
image_size = 8
width = 4
zdim = 2
bottom_up = "8x1,8d2,4x1,4d4,1x1"
top_down = "1x1,4m1,8m4"
num_mixtures = 1

[train]
steps = 100000
batch_size = 4
lr = 1e-3
"""


def test_public_names():
    assert vr.__all__ == [
        "CheckpointError", "Classification", "Config", "ConfigError", "DataError", "Encoding", "FaceId",
        "FaceVerification", "Factors", "FewShot", "LatentStore", "LatentTransformer", "LayerError",
        "LogisticProbe", "ModelConfig", "NearestNeighbor", "NearestPrototype", "OmniglotOneShot",
        "PixelCNN", "PixelCNNConfig",
        "Problem", "RSA", "Report", "Result", "Ridge", "RidgeRegressor", "SGDProbe", "Source", "Split",
        "StoreError", "Student", "StudentConfig", "Task", "TaskError", "Terminated", "TorchEncoder",
        "TrainingError", "VDVAE", "VDVAEReprError", "WeightedNeighbors", "brain", "compare", "distill",
        "evaluate", "export_model", "extract", "import_latents", "load", "open", "open_source", "plot",
        "probe", "side_by_side", "train",
    ]  # fmt: skip
    assert all(getattr(vr, name) is not None for name in vr.__all__)


def test_extract_then_probe_as_a_new_user_would(tmp_path):
    made = run("extract", "--layer", "4x4", "--data", "toy-faces:4x4", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "latents.h5").is_file()
    probed = run("probe", "--task", "face_id", "--out", "r", cwd=tmp_path)
    assert probed.returncode == 0, probed.stderr
    assert "face_id, closed-set: 4 people, 8 gallery + 8 probe images" in probed.stdout
    assert len(lines := probed.stdout.splitlines()) <= 30
    assert max(map(len, lines)) <= 80
    every = run("probe", "--task", "face_id", "--rows", cwd=tmp_path)
    assert "random-init" in every.stdout
    assert (tmp_path / "r" / "results.jsonl").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "--data", "nowhere"], "no such folder or file"),
        (["extract", "--layer", "7x7"], "no layer matches '7x7'"),
        (["extract", "--model", "face64"], "did you mean 'faces64'"),
        (["probe"], "vdvae-repr extract"),
        (["evaluate", "--split", "held-back"], "expected a run folder as --model, found faces64"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, message, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left", "a.csv"), "a.csv: No space left; make room, or"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission denied; choose"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), "a: Is a directory; choose"),
        (MemoryError(), "out of memory; take fewer images"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (UnicodeEncodeError("ascii", "\xe9", 0, 1, "ordinal\nnot in range"), "UnicodeEncodeError"),
        (ValueError("first\nsecond"), "unexpected ValueError: first; --debug"),
        (vr.StoreError("a\x1b[2J\nb"), r"a\x1b[2J\nb"),
    ],
)
def test_any_error_is_one_line_and_exit_2(error, expected, monkeypatch, capsys):
    def fail(path):
        raise error

    monkeypatch.setattr(vr, "open", fail)
    monkeypatch.setattr(sys, "argv", ["vdvae-repr", "store", "info", "s.h5"])
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    monkeypatch.delenv("VDVAE_REPR_DEBUG", raising=False)
    with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert line.isprintable()
    monkeypatch.setenv("VDVAE_REPR_DEBUG", "1")
    with warnings.catch_warnings(), pytest.raises(type(error)):
        main()


def test_what_is_logged_is_lines_too(monkeypatch, capsys):
    """And an error that is no Exception, as a library written in Rust raises, is one line."""

    class Panic(BaseException):
        pass

    def fail(path):
        logging.getLogger("vdvae_repr.training").warning("%s is damaged", "a\x1b[2J")
        raise Panic("rust")

    monkeypatch.setattr(vr, "open", fail)
    monkeypatch.setattr(logging, "lastResort", None)
    monkeypatch.setattr(logging.getLogger("vdvae_repr"), "propagate", False)  # to pytest's handlers
    monkeypatch.setattr(sys, "argv", ["vdvae-repr", "store", "info", "s.h5"])
    monkeypatch.delenv("VDVAE_REPR_DEBUG", raising=False)
    with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        r"vdvae-repr: a\x1b[2J is damaged",
        "vdvae-repr: unexpected Panic: rust; --debug shows where",
    ]


def test_a_warning_is_printed_once_however_filters_change(monkeypatch, capsys):
    def warn_twice(path):
        for text in ("many classes", "many classes", "another"):
            with warnings.catch_warnings():  # after which Python forgets what it has shown
                warnings.warn(text, UserWarning, stacklevel=1)
        raise vr.StoreError("no store")

    monkeypatch.setattr(vr, "open", warn_twice)
    monkeypatch.setattr(sys, "argv", ["vdvae-repr", "store", "info", "s.h5"])
    monkeypatch.setattr(warnings, "filters", [("always", None, Warning, None, 0)])
    with warnings.catch_warnings(), pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert said.count("UserWarning: many classes") == said.count("UserWarning: another") == 1


def test_a_closed_pipe_is_one_line(tiny, images, tmp_path):
    vr.extract(tiny, images, tmp_path / "s.h5", layers="1x1").close()
    command = [sys.executable, "-m", "vdvae_repr.cli", "store", "info", "s.h5"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 2
    assert errors == "vdvae-repr: the standard output was closed before everything was printed\n"


def test_names_from_files_are_printed_as_text(tiny, images, tmp_path, monkeypatch):
    """On a terminal that knows ASCII alone, too."""
    none = np.full(12, -1)
    source = vr.Source("\x1b]0;\u00e9\n", tuple("abcdefghijkl"), lambda i: images[i], none)
    vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1").close()
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # which is read when Python starts
    command = [sys.executable, "-m", "vdvae_repr.cli", "store", "info", "s.h5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert r"\x1b]0;\xe9\n" in done.stdout
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_another_network_is_extracted_and_not_decoded(tmp_path):
    options = ["--layer", "stem", "--pool", "avg", "--data", "toy-faces:2x1"]
    layers = run("layers", "--model", "timm:resnet10t@random", cwd=tmp_path).stdout
    options[1] = layers.splitlines()[1].split()[1]
    made = run("extract", "--model", "timm:resnet10t@random", *options, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    decoded = run("decode", "latents.h5", "--out", "d", cwd=tmp_path)
    assert decoded.returncode == 2
    assert "which gives no images back" in decoded.stderr


def test_a_store_of_a_run_of_ones_own_is_decoded_with_its_model_named(tiny, images, tmp_path):
    vr.extract(tiny, images, tmp_path / "latents.h5", layers="all").close()
    save(tiny, tmp_path / "mine.safetensors", record={})
    told = run("decode", "latents.h5", "--out", "d", cwd=tmp_path)
    line = "latents.h5: was extracted with tiny, which is no packaged model; give --model, its run"
    assert (told.returncode, line in told.stderr) == (2, True)
    done = run("decode", "latents.h5", "--out", "d", "--model", "mine.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_pictures_are_drawn_by_seed_and_replace_no_photograph(tmp_path):
    """Onto the folder of the photographs themselves, and onto pictures made before."""
    (tmp_path / "img").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "img" / "a.png")
    before = (tmp_path / "img" / "a.png").read_bytes()
    made = run("extract", "--layer", "<=8x8", "--data", "img", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    onto = run("decode", "latents.h5", "--out", "img", cwd=tmp_path)
    assert onto.returncode == 2
    assert "not replaced" in onto.stderr
    assert (tmp_path / "img" / "a.png").read_bytes() == before
    twice = run(
        "decode", "latents.h5", "--out", "w", "--id", "a.png", "--id", "a.png", cwd=tmp_path
    )
    assert twice.returncode == 2
    assert "--id: expected each image once, found 'a.png' twice" in twice.stderr
    drawn = {}
    for seed, out in (("1", "x"), ("1", "y"), ("2", "y")):
        options = ["--rest", "sample", "--pixels", "sample", "--seed", seed, "--out", out]
        done = run("decode", "latents.h5", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        drawn[seed, out] = Image.open(tmp_path / out / "a.png").tobytes()
    assert drawn["1", "x"] == drawn["1", "y"] != drawn["2", "y"]
    assert (
        "--pixels: expected"
        in run("decode", "latents.h5", "--out", "z", "--pixels", "s", cwd=tmp_path).stderr
    )


def test_what_is_left_out_is_said_once(tmp_path):
    for place in ("a/1.png", "b/2.png"):
        (tmp_path / "img" / place).parent.mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "img" / place)
    (tmp_path / "img" / "x.heic").write_bytes(b"x")
    for command in (
        ["extract", "--layer", "1x1"],
        ["evaluate", "--rows", "0:2", "--resize", "bilinear"],
    ):
        done = run(*command, "--data", "img", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("img: 1 file left out: .heic (1)") == 1
    again = run("extract", "--layer", "1x1", "--data", "img", "--resize", "bilinear", cwd=tmp_path)
    assert again.returncode == 2
    assert "bilinear, antialiased" in again.stderr


def test_an_image_that_is_too_large_is_one_line(tmp_path):
    (tmp_path / "img").mkdir()
    Image.new("1", (10_000, 9_000)).save(tmp_path / "img" / "a.png")
    done = run("extract", "--layer", "1x1", "--data", "img", cwd=tmp_path)
    assert done.returncode == 2
    assert "Warning" not in done.stderr
    assert "set VDVAE_REPR_MAX_PIXELS" in done.stderr.splitlines()[-1]


def test_interrupt_is_exit_130_and_one_line(tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    process = Command("train", "small.toml", "--out", "r", cwd=tmp_path)
    while process.poll() is None and not (tmp_path / "r" / "log.jsonl").is_file():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert list((tmp_path / "r" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "faces64", "--out", ""), "--out: expected a value, found an empty text"),
        (("probe", "--keep="), "--keep: expected a value, found an empty text"),
        (("decode", "s.h5", "--out", "d", "--model", " "), "--model: expected a value"),
        (("store", "export", "s.h5", "--out", "x.npz", "--feature", ""), "--feature: expected"),
        (("evaluate", "--split", ""), "--split: expected a value"),
        (("train", ""), "an argument: expected a value"),
        (("probe", "--latents", "n", "--train", "a", "--test", "b"), "in place of --latents"),
        (("probe", "--format", "pdf"), "--format: expected --out with it, found none"),
        (("probe", "--rows", "--json"), "--rows and --json: expected one of them"),
        (
            ("sample", "--model", "faces64@random", "--preset", "no"),
            "preset 'no' would say nothing",
        ),
        (("distill", "--resume", "--out", "no"), "no: expected a run to go on with, found none"),
        (("distill", "--resume", "--preset", "faces64"), "--preset: expected --teacher with it"),
        (("report", "no", "--preset", "faces64"), "--preset: expected --model with it"),
        (("report", "no", "--download"), "--download: expected --model with it"),
        (
            ("distill", "--resume"),
            "teacher: expected a VDVAE, or what loads it, as --teacher faces64",
        ),
        (
            ("probe", "--task", "few_shot", "--far", "0.1"),
            "an option of face_id and face_verification, not",
        ),
    ],
)
def test_empty_values_and_options_that_would_do_nothing_are_refused(
    arguments, message, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vdvae-repr", *arguments])
    monkeypatch.delenv("VDVAE_REPR_DEBUG", raising=False)
    with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["extract", "--data", "a", "--layer", "1x1", "--data", "b"], "--data"),
        (["train", "faces64", "--compile", "--no-compile"], "--no-compile"),
        (["store", "export", "s.h5", "--out=a", "--out=b"], "--out"),
    ],
)
def test_an_option_of_one_value_given_twice_is_refused(
    arguments, option, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latents.h5").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["vdvae-repr", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert f"{option}: expected one value, found it given twice" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["timm:resnet18", "facenet:vggface2"])
@pytest.mark.parametrize(
    "words",
    [
        ("distill", "--teacher"),
        ("train", "faces64", "--init-from"),
        ("evaluate", "--model"),
        ("sample", "--model"),
        ("export", "--out", "x.onnx"),
    ],
    ids=" ".join,
)
def test_nothing_is_fetched_that_a_command_could_not_take(
    monkeypatch, capsys, tmp_path, name, words
):
    """Whether --download is given or not; torch's cache is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--download",)):
        monkeypatch.setattr(sys, "argv", ["vdvae-repr", *words, name, *more])
        with pytest.raises(SystemExit):
            main()
        message = capsys.readouterr().err.splitlines()[-1]
        assert f"{name}: expected a VDVAE" in message
        assert "fetch" not in message


def test_code_in_advice_stays_code(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["vdvae-repr", "extract", "--data", "cifar10"])
    monkeypatch.setenv("VDVAE_REPR_DATA_ROOT", str(tmp_path))
    with pytest.raises(SystemExit):
        main()
    message = capsys.readouterr().err
    assert f"CIFAR10('{tmp_path}', download=True) gets it" in message
    assert "; --data-root FOLDER names another place" in message
    for text, expected in (
        ("choose another folder, or cache=None", "choose another folder, or --no-cache"),
        ("choose another, or all by split=None", "choose another, or all by --split all"),
        (
            "take fewer, vr.FewShot(ways=5), or images=False",
            "take fewer, vr.FewShot(ways=5), or --no-images",
        ),
    ):
        assert in_options(text) == expected


def test_the_package_is_run_as_the_command_line():
    command = [sys.executable, "-m", "vdvae_repr", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"vdvae-repr {vr.__version__}\n"


def test_a_tasks_option_of_one_value_given_twice_is_refused():
    with pytest.raises(vr.TaskError, match="--ways: expected one value, found it given twice"):
        _task_of("few_shot", {"ways": ["5", "6"]})
    assert list(_task_of("few_shot", {"shots": ["1", "5"]}).shots) == [1, 5]


def test_drawn_faces_are_named_where_no_data_are_given(tmp_path):
    made = run("extract", "--rows", "0:4", "--layer", "1x1", cwd=tmp_path)
    assert made.stderr.splitlines()[0] == "no --data: the images are toy-faces, which are drawn"
    again = run("extract", "--data", "toy-faces", "--rows", "0:4", "--layer", "1x1", cwd=tmp_path)
    assert "no --data" not in again.stderr
