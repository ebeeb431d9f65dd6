"""Tables of the speed pages in `benchmarks/results/`, each from the CSV of the page's name.

    python benchmarks/speed/extract.py --cases store > rows.jsonl
    python benchmarks/speed/page.py extraction_speed store rows.jsonl --machine "two cores of a Xeon"
    python benchmarks/speed/page.py        # the tables anew, of the CSVs

The second command puts rows that a script printed in place of those that the CSV holds of this table; the
sentences around it have to be read again by whoever runs it.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
from tables import fill, markdown

RESULTS = Path(__file__).parents[1] / "results"
AGAINST = {
    "data": "data",
    "this_images_per_second": "this, images/s",
    "other_images_per_second": "before, images/s",
    "times_other": "times as fast, median of paired rounds",
}
TABLES: dict[str, dict[str, dict[str, str]]] = {
    "extraction_speed": {
        "published": {
            "case": "what",
            "batch_size": "batch",
            "variant": "read by",
            "images_per_second": "images/s",
            "times_published": "times published",
            "times_stopped": "times stopped",
            "peak_mb": "peak memory, MB",
            "of_best_convolution": "of the best convolution",
        },
        "store": {
            "run": "run",
            "threads": "threads",
            "read_images_per_second": "reading alone, images/s",
            "single_images_per_second": "single file",
            "single_cost": "cost",
            "virtual_images_per_second": "virtual store",
            "virtual_cost": "cost of it",
            "disk_takes_mb_per_second": "disk takes, MB/s",
        },
        "workers": {
            "workers": "workers",
            "images_per_second": "images/s",
            "times_one_worker": "times one worker, median of paired rounds",
            "same_values_as_one_worker": "the same values",
        },
        "before workers": AGAINST,
        "before checksums": AGAINST | {"times_other_cpu": "the same by CPU seconds"},
    },
    "training_speed": {
        "step": {
            "variant": "variant",
            "images_per_second": "images/s",
            "ratio": "ratio to published",
            "saved_activations_mb": "saved activations, MB",
            "peak_memory_mb": "peak memory, MB",
            "matrix_rate_fraction": "fraction of the matrix rate",
        }
    },
    "probe_speed": {
        "scikit-learn": {
            "scikit_learn_tol": "scikit-learn's tolerance",
            "seconds": "ours, seconds",
            "scikit_learn_seconds": "scikit-learn, seconds",
            "times": "times as fast",
            "largest_excess_of_the_objective": "largest excess of our objective",
        },
        "answers": {
            "case": "answer",
            "controls": "controls",
            "cores": "cores",
            "checkout": "checkout",
            "seconds": "seconds",
            "peak_mb": "peak memory, MB",
            "rows": "rows",
        },
    },
}
"""Columns of a page's tables, as scripts print them, and what they are called."""


def add(page: str, table: str, rows: Path, machine: str) -> None:
    """Put rows that a script printed in place of those that a page's CSV holds of a table."""
    found = pd.read_json(rows, lines=True, precise_float=True)
    found = found.assign(table=table, date=datetime.now(UTC).date().isoformat(), machine=machine)
    found = found.drop(columns="chosen", errors="ignore")
    path = RESULTS / f"{page}.csv"
    if path.is_file():
        kept = pd.read_csv(path)
        found = pd.concat([kept[kept.table != table], found])
    found.to_csv(path, index=False, float_format="%.6g")


def tables(page: str) -> dict[str, str]:
    """Return a page's tables as Markdown."""
    rows = pd.read_csv(RESULTS / f"{page}.csv", dtype=str, keep_default_na=False)
    found = {}
    for name, columns in TABLES[page].items():
        own = rows.loc[rows.table == name, list(columns)].rename(columns=columns)
        found[name] = markdown(own)
    return found


def main() -> None:
    """Take rows where they are given, then write the tables of all pages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", nargs="?", choices=list(TABLES))
    parser.add_argument("table", nargs="?", help="a table of that page")
    parser.add_argument("rows", nargs="?", type=Path, help="what a script printed")
    parser.add_argument("--machine", help="what it ran on")
    options = parser.parse_args()
    if options.page:
        if options.table not in TABLES[options.page] or not (options.rows and options.machine):
            parser.error(f"expected one of {list(TABLES[options.page])}, rows and --machine")
        add(options.page, options.table, options.rows, options.machine)
    for page in TABLES:
        fill(RESULTS / f"{page}.md", tables(page))


if __name__ == "__main__":
    main()
