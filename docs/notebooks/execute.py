"""Execute the notebooks, in a temporary folder; all of them, or those named.

python docs/notebooks/execute.py            # fails on an error, or where an .ipynb is of another source
python docs/notebooks/execute.py --write    # writes each .ipynb anew beside its script
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path != Path(__file__))
SECONDS = 600  # for a cell, until it is given up


def execute(script: Path) -> Any:
    """Return the notebook of a script, executed."""
    notebook = jupytext.read(script)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same whenever it is written
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"] = folder
        NotebookClient(
            notebook, timeout=SECONDS, record_timing=False, resources={"metadata": {"path": folder}}
        ).execute()
    for cell in notebook.cells:  # warnings and bars are of the machine, not of the notebook
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    return notebook


def sources(path: Path) -> list[tuple[str, str]]:
    """Return the kind and the source of each cell of a script or of a notebook."""
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def main() -> None:
    """Execute notebooks, and write or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    for name in options.names:
        script, written = HERE / f"{name}.py", HERE / f"{name}.ipynb"
        if not options.write and sources(script) != sources(written):
            sys.exit(
                f"{written.name} is not of {script.name} as it stands; run {Path(__file__).name} --write"
            )
        started = time.monotonic()
        notebook = execute(script)
        if options.write:
            jupytext.write(notebook, written)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
