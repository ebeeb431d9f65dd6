"""How Sphinx builds the site: `make docs`, or sphinx-build -W docs docs/_build/html."""

import re
import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE.parent)]  # the package of this checkout

import vdvae_repr  # noqa: E402

project = "vdvae-repr"
author = "the authors of vdvae-repr"
version = release = vdvae_repr.__version__

extensions = [
    "command_line",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "notebooks/*.py", "notebooks/README.md"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # docs/notebooks/execute.py executes them, and keeps what they print

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    # scikit-learn puts these on every estimator; they are of its metadata routing
    "exclude-members": "set_fit_request,set_partial_fit_request,set_score_request",
}
templates_path = ["_templates"]
autosummary_generate = True

default_role = "code"  # what docstrings put between single backticks

highlight_language = "none"  # of blocks that name no language
html_theme = "furo"
smartquotes = False  # -- begins an option
html_show_copyright = False
html_title = f"vdvae-repr {release}"
copybutton_prompt_text = ">>> "

RESULTS = HERE.parent / "benchmarks" / "results"


def copy_results(app: Sphinx) -> None:
    """Copy the pages of benchmarks/results beside benchmarks/index.md, with links as the site has them."""
    target = HERE / "benchmarks"
    pages = {page: page.name for page in RESULTS.glob("*.md")}
    pages[RESULTS.parent / "gpu" / "README.md"] = "gpu_readme.md"
    claims = RESULTS / "claims"  # of size local, and of size full in their own folder
    pages |= {page: f"claims/{page.name}" for page in claims.glob("*.md")}
    pages |= {page: f"claims/full/{page.name}" for page in claims.glob("full/*.md")}
    for page, name in pages.items():
        text = page.read_text(encoding="utf-8")
        text = text.replace("](../../docs/", "](../").replace(
            "](../gpu/README.md)", "](gpu_readme.md)"
        )
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")
    for pattern in ("*", "claims/*", "claims/full/*"):
        for file in [*RESULTS.glob(f"{pattern}.png"), *RESULTS.glob(f"{pattern}.csv")]:
            shutil.copy2(file, target / file.parent.relative_to(RESULTS))


def link_inside(app: Sphinx, docname: str, source: list[str]) -> None:
    """Point links to benchmarks/results, which readers of the repository follow, to the site's copies."""
    source[0] = re.sub(r"\]\((?:\.\./)+benchmarks/results/", "](/benchmarks/", source[0])


def read_docstring(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Read Google's sections; an attribute has none, and its text may hold a colon."""
    if what != "attribute":
        lines[:] = GoogleDocstring(lines, what=what, name=name, obj=thing).lines()


def setup(app: Sphinx) -> None:
    """Connect what happens before pages are read."""
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("builder-inited", copy_results)
    app.connect("source-read", link_inside)
