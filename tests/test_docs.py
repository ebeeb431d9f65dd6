"""What README and the documentation tell readers to type runs as it stands.

The blocks of a page run one after the other, in a folder of its own that holds `photos/`, drawn faces of six
people. A block after `<!-- not run: REASON -->` is left out. A block of `bash` holds commands of vdvae-repr
alone, which run in this process.
"""

import io
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

import vdvae_repr as vr
from vdvae_repr.cli import main
from vdvae_repr.data.toy import toy_faces
from vdvae_repr.heads.linear import C_GRID

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = {"extending.md"}  # tests/probing/test_extending.py runs it, and looks at what it says
REASONS = {
    "needs a download",
    "needs data of your own",
    "needs a GPU",
    "needs several processes",
    "takes minutes",
    "shows the output",
    "shows a file",
    "is installing",
}
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]*) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)


def pages():
    """README, CONTRIBUTING and every page of the site that is written by hand."""
    hidden = ("_build", "benchmarks", "generated", "notebooks")
    of_site = [
        p for p in DOCS.rglob("*.md") if not set(hidden) & set(p.relative_to(DOCS).parts[:-1])
    ]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(of_site)]


def blocks(page):
    return list(BLOCK.finditer(page.read_text(encoding="utf-8")))


def runs(block):
    return block["language"] in ("bash", "python") and not block["reason"]


PAGES = [page for page in pages() if page.name not in ELSEWHERE]


load_once = cache(vr.load)


def save_nothing(figure, file, **options):
    if isinstance(file, str | Path):
        Path(file).touch()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Drawn faces of six people, six each, a folder a person."""
    folder = tmp_path_factory.mktemp("given") / "photos"
    toy = toy_faces(6, 6)
    for number, (image, label) in enumerate(zip(toy.images, toy.labels, strict=True)):
        path = folder / f"person{label}" / f"{number % 6}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(map(runs, blocks(p)))], ids=lambda p: p.stem
)
def test_blocks_run(page, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # That it runs is asked, and not what it says: one control of a kind, few values of C, a model read once,
    # no picture drawn.
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_nothing)
    monkeypatch.setattr("vdvae_repr.probing.controls.INITIALISATIONS", 1)
    monkeypatch.setattr("vdvae_repr.probing.task.PERMUTATIONS", 1)
    monkeypatch.setattr("vdvae_repr.heads.linear.C_GRID", C_GRID[::11])
    monkeypatch.setattr("vdvae_repr.training.trainer.EARLY", set())  # scored at the last step alone
    monkeypatch.setattr(vr, "load", load_once, raising=False)
    (tmp_path / "photos").symlink_to(photos)
    known = dict(vr.Task.known)
    names = {"__name__": "__main__"}
    try:
        for block in filter(runs, blocks(page)):
            if block["language"] == "python":
                line = page.read_text(encoding="utf-8")[: block.start("text")].count("\n")
                with redirect_stdout(io.StringIO()):
                    exec(compile("\n" * line + block["text"], str(page), "exec"), names)
                continue
            for command in block["text"].replace("\\\n", " ").splitlines():
                run_command(shlex.split(command, comments=True), monkeypatch)
    finally:
        vr.Task.known.clear()
        vr.Task.known.update(known)


def run_command(words, monkeypatch):
    if not words:
        return
    assert words[0] == "vdvae-repr", words
    monkeypatch.setattr("sys.argv", words)
    said = io.StringIO()
    with (
        redirect_stdout(io.StringIO()),
        redirect_stderr(said),
        pytest.raises(SystemExit) as stopped,
    ):
        main()
    assert stopped.value.code in (0, None), (words, said.getvalue())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_what_is_not_run_says_why(page):
    for block in blocks(page):
        if block["language"] in ("bash", "python") and block["reason"]:
            assert block["reason"] in REASONS, block[0]
        elif not block["language"]:
            assert "vdvae-repr " not in block["text"], (
                f"{page.name}: a block of commands is bash\n{block[0]}"
            )


def test_every_public_name_is_in_the_reference():
    listed = re.findall(
        r"^   (\w+)$", (DOCS / "reference" / "api.md").read_text(encoding="utf-8"), re.M
    )
    assert sorted(listed) == sorted(vr.__all__)


def test_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 700
