"""Examples in docstrings run, and messages speak of what the reader can name."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import vdvae_repr
from vdvae_repr.cli import in_options

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
            'extract with z="sample", draws=8, features="z"',
            "extract with --z sample, --draws 8, --feature z",
        ),
        ("by preset=NAME", "by --preset NAME"),
        ('out="my photos/latents.h5"', '--out "my photos/latents.h5"'),
        ("expected train.lr=0.1, stride=2 or x=True", "expected train.lr=0.1, stride=2 or x=True"),
    ],
)
def test_the_command_line_says_options(message, expected):
    assert in_options(message) == expected
