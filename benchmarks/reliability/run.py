"""What is lost, stale or wrong after kills, full disks, flipped bits, replaced images and races.

    python benchmarks/reliability/run.py --quick          two to three minutes, what `make check` runs
    python benchmarks/reliability/run.py --full           20 minutes on two cores; writes the results page
    python benchmarks/reliability/run.py --full --seed 1  the same at other times and places
    python benchmarks/reliability/run.py --full --only flip

A process imports everything once and forks a child for each try, in which the command line runs on a model of
5 layers and 24 pictures of 16x16. Exit 1 where anything was lost, stale or wrong, or a traceback was shown.
"""

import argparse
import csv
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # no thread may live where children are forked

# Everything that a command imports, once, before children are forked.
import accelerate  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import sklearn.decomposition
import sklearn.linear_model  # noqa: F401
import torch
import trials
from commands import cases, make_base
from page import write_page
from PIL import Image
from trials import COUNTS, Bench, Row

import vdvae_repr.data.open
import vdvae_repr.report.pictures
import vdvae_repr.training.evaluate
import vdvae_repr.training.trainer  # noqa: F401
from vdvae_repr import cli
from vdvae_repr.errors import VDVAEReprError

RESULTS = Path(__file__).parents[1] / "results"
COLUMNS = ("kind", "what", "tried", "hit", *COUNTS)


def plan(bench: Bench, full: bool) -> Iterator[tuple[str, Callable[[], Row | list[Row]]]]:
    """Yield every kind of tries, by name."""
    known = {str(case): case for case in cases(bench.base)}

    def times(quick: int, long: int) -> int:
        return long if full else quick

    for case in known.values():
        short = case.command in ("compare", "sample", "evaluate")  # they write one file or none
        tries = times(1 if short else 2, 14)
        yield "kill", partial(trials.kills, bench, case, tries, signal.SIGKILL)
        if short and not full:
            continue
        yield "kill", lambda case=case: trials.kills(bench, case, times(1, 6), signal.SIGTERM)
        if case.writes:
            yield "disk", lambda case=case: trials.full_disks(bench, case, times(1, 8))
    for layout in ("single", "virtual"):
        yield "flip", lambda layout=layout: trials.store_flips(bench, layout, times(15, 250))
        yield "stale", lambda layout=layout: trials.replaced(bench, layout, times(1, 8))
    yield "flip", lambda: trials.score_flips(bench, times(2, 60))
    yield "flip", lambda: trials.checkpoint_flips(bench, times(2, 60))
    yield "flip", lambda: trials.model_flips(bench, times(10, 100))
    yield "stale", lambda: trials.replaced_under_training(bench, times(1, 6))
    rivals = {
        "extract (single)": ("--layer", "1x1"),
        "extract (virtual)": ("--layer", "1x1"),
        "extract (single, --overwrite)": ("--layer", "8x8"),
        "extract (virtual, --overwrite)": ("--layer", "8x8"),
        "train": ("--set", "train.seed=5"),
        "probe": ("--head", "ridge"),
        "decode": ("--first", "1"),
        "import": (),  # of another matrix
        "export (.npz)": ("--layer", "4x4"),
        "export (.npy)": ("--layer", "4x4"),
        "compare": ("--feature", "kl"),
    }
    for name, more in rivals.items():
        case = known[name]
        arguments = tuple(word.replace("m.npy", "m2.npy") for word in case.arguments)
        if "--layer" in more and "--layer" in arguments:
            arguments = _without(arguments, "--layer")
        other = (*arguments, *more)
        yield "race", lambda case=case, other=other: trials.races(bench, case, other, times(1, 8))
    for name in ("extract (single)", "extract (virtual)", "train"):
        case = known[name]
        if name == "train":  # what divides the images that are not held back
            case = replace(case, arguments=(*case.arguments, "--set", "train.batch_size=8"))
        yield "rank", lambda case=case: trials.ranks(bench, case, times(1, 6))


def _without(arguments: tuple[str, ...], option: str) -> tuple[str, ...]:
    """Leave an option and its value out."""
    at = arguments.index(option)
    return arguments[:at] + arguments[at + 2 :]


def main() -> None:
    """Run what was asked for, print a row a kind and command, and write the page of a full run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--quick", action="store_true", help="two to three minutes")
    length.add_argument("--full", action="store_true", help="20 minutes")
    parser.add_argument("--seed", type=int, default=0, help="of times and places")
    parser.add_argument("--only", choices=("kill", "disk", "flip", "stale", "race", "rank"))
    parser.add_argument("--out", type=Path, help="folder for reliability.csv and .md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    Image.init()  # its formats, and what the command line is made of, are imported when first wanted
    with suppress(VDVAEReprError):
        cli.app(["store", "info", "nowhere.h5"], standalone_mode=False)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="reliability-"))
    rows: list[Row] = []
    try:
        make_base(folder / "base")
        bench = Bench(folder, folder / "base", options.seed)
        names = " ".join(f"{name:>10s}" for name in (*COUNTS, "seconds"))
        print(f"{'':60s} {'tried':>6s} {'hit':>5s} {names}")
        for kind, tries in plan(bench, options.full):
            if options.only in (None, kind):
                begun = time.monotonic()
                found = tries()
                own = found if isinstance(found, list) else [found]
                for row in own:
                    show(row, (time.monotonic() - begun) / len(own))
                rows += own
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for row in rows:
        for failure in row.failures[:3]:
            print(failure, file=sys.stderr)
    total = Row("all", "")
    for row in rows:
        for name in ("tried", "hit", *COUNTS):
            setattr(total, name, getattr(total, name) + getattr(row, name))
    show(total, time.monotonic() - started)
    minutes = (time.monotonic() - started) / 60
    out = options.out or (RESULTS if options.full and options.only is None else None)
    if out is not None:
        write(rows, out)
        write_page(out / "reliability.csv", out / "reliability.md", options.seed, minutes)
    sys.exit(total.failed)


def show(row: Row, seconds: float) -> None:
    """Print a row, and how long it took."""
    counts = " ".join(f"{getattr(row, name):10d}" for name in COUNTS)
    print(
        f"{f'{row.kind}: {row.what}':60s} {row.tried:6d} {row.hit:5d} {counts} {seconds:10.1f}",
        flush=True,
    )


def write(rows: list[Row], out: Path) -> None:
    """Write `reliability.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "reliability.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, column) for column in COLUMNS] for row in rows)


if __name__ == "__main__":
    main()
