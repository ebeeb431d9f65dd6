"""Examples in docstrings run, and messages speak of what the reader can name."""

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import vdvae_repr
from vdvae_repr.cli import _command, in_options
from vdvae_repr.errors import SKIP_ADVICE
from vdvae_repr.latents.options import Frame

PACKAGE = Path(vdvae_repr.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
WITH_EXAMPLES = [path for path in FILES if ">>> " in (PACKAGE / path).read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(".".join(("vdvae_repr", *path.with_suffix("").parts)))
    assert doctest.testmod(module).failed == 0


def test_errors_of_the_library_name_no_option_of_the_command_line():
    """Who calls it from Python has none; `cli` says the same as options."""
    for path in FILES:
        if path.name == "cli.py":
            continue
        for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                message = "".join(text for text in texts if isinstance(text, str))
                assert " --" not in message.replace("vdvae-repr extract --out", ""), path


def test_advice_to_leave_images_out_names_all_that_take_it():
    named = set(re.findall(r"\w+", SKIP_ADVICE.partition(" of ")[2])) - {"and"}
    texts = ((name, inspect.getdoc(getattr(vdvae_repr, name)) or "") for name in vdvae_repr.__all__)
    assert named == {name for name, text in texts if "on_error" in text} | {"extract"}
    assert "on_error" in Frame.__dataclass_fields__  # which extract takes


def test_advice_to_fetch_names_a_call_that_can():
    """Most functions that take a name of a model or of data cannot."""
    for path in FILES:
        nodes = list(ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))))
        parts = {id(p) for n in nodes if isinstance(n, ast.JoinedStr) for p in ast.walk(n)} - {
            id(n) for n in nodes if isinstance(n, ast.JoinedStr)
        }
        for node in nodes:
            whole = isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in parts
            text = ast.unparse(node) if whole else ""
            if re.search(r"fetch|another place", text) and re.search(r"download=True|root=", text):
                assert re.search(r"vr\.(load|open_source)\(", text), (path, text)


def test_every_command_that_takes_a_model_can_fetch_it():
    waiting, lacking = [("", _command())], []
    while waiting:
        name, command = waiting.pop()
        waiting += getattr(command, "commands", {}).items()
        options = {parameter.name for parameter in command.params}
        if options & {"model", "teacher", "init_from", "encoder"} and "download" not in options:
            lacking.append(name)
    assert not lacking


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("choose another path, or overwrite=True", "choose another path, or --overwrite"),
        (
            'leave such images out with on_error="skip"',
            "leave such images out with --on-error skip",
        ),
        ("extract without images=False", "extract without --no-images"),
        (
            'fetch it with vr.load("timm:a.b_c", download=True), or give a file',
            "fetch it with --download, or give a file",
        ),
        (
            'vr.open_source("cifar10", root=FOLDER) names another place',
            "--data-root FOLDER names another place",
        ),
        ("remedy.of(x, download=True)", "remedy.of(x, download=True)"),
        (
            'extract with z="sample", draws=8, features="z"',
            "extract with --z sample, --draws 8, --feature z",
        ),
        ("by preset=NAME", "by --preset NAME"),
        ("load it with vr.load(..., preset=NAME), a name", "load it with --preset NAME, a name"),
        ('out="my photos/latents.h5"', '--out "my photos/latents.h5"'),
        ("expected train.lr=0.1, stride=2 or x=True", "expected train.lr=0.1, stride=2 or x=True"),
    ],
)
def test_the_command_line_says_options(message, expected):
    assert in_options(message) == expected
