"""The page of a full run: question, answer, table, how to rerun.

python benchmarks/reliability/page.py benchmarks/results/reliability.csv > page.md
"""

import sys
from pathlib import Path

import pandas as pd

COUNTS = ("lost", "stale", "wrong", "tracebacks")
KINDS = {
    "SIGKILL": "Killed (`kill -9`), by turns at a random time and at a random change of a file",
    "SIGTERM": "Ended by SIGTERM at a random time",
    "full disk": "A disk with room for a part of what is written (a tmpfs of that size)",
    "file limit": "No file larger than a part of all (RLIMIT_FSIZE, as no tmpfs could be mounted)",
    "flip": "A bit flipped anywhere in a file",
    "replaced images": "Images replaced by others of equal size",
    "race": "Two commands to one place at once",
    "rank killed": "One of two processes of a divided command killed",
}


def page(rows: pd.DataFrame, seed: int | None = None, minutes: float | None = None) -> str:
    """Return Markdown."""
    kills = rows[rows.kind.isin(["SIGKILL", "SIGTERM", "rank killed"])].tried.sum()
    flips = rows[rows.kind.eq("flip") & ~rows.what.str.endswith("by verify alone")].tried.sum()
    total = rows[list(COUNTS)].sum()
    answer = f"In {kills} kills and {flips} flipped bits, among {_tries(rows)} tries, "
    if not total.any():
        answer += "nothing was lost, stale or wrong, and no traceback was shown."
    else:
        answer += "there were " + ", ".join(f"{total[name]} {name}" for name in COUNTS) + "."
    when = "" if seed is None else f" --seed {seed}"
    took = "" if minutes is None else f"; it took {minutes:.0f} minutes"
    lines = [
        "# Is anything lost, stale or wrong after a kill, a full disk or a flipped bit?",
        "",
        answer,
        "",
        "After each try what was there before, or the new result, must be whole; then the same command runs",
        "again, and its values must equal those of an undisturbed run. *Hit* counts the tries that met",
        "something: a process still running, a disk that was full, damage that was noticed (the other flips",
        "changed no value). *By verify alone*: flips that reading let pass and `store verify` was then asked",
        "about; a flip that changes a value and that neither notices is wrong.",
        "",
        "*Lost*: what was there before is gone or cannot be read, or the command cannot be run",
        "again. *Stale*: values of images that had been replaced. *Wrong*: values that are neither the",
        "old ones nor the new. What may be missing until the command is run again are the pictures",
        "and the tables beside a probe's rows, and the picture beside a comparison's table. `evaluate`",
        "writes nothing: what it prints is compared, and no file may be left.",
        "",
    ]
    for kind, told in KINDS.items():
        own = rows[rows.kind == kind]
        if len(own):
            lines += [f"## {told}", "", "| command | tried | hit | " + " | ".join(COUNTS) + " |"]
            lines += ["| --- |" + " ---: |" * (2 + len(COUNTS))]
            for row in own.itertuples():
                numbers = (getattr(row, name) for name in ("tried", "hit", *COUNTS))
                lines.append(f"| {row.what} | " + " | ".join(map(str, numbers)) + " |")
            lines.append("")
    lines += [
        "## Rerun",
        "",
        f"`python benchmarks/reliability/run.py --full{when}`{took}.",
        "`--quick`, two to three minutes, is part of `make check`.",
    ]
    return "\n".join(lines) + "\n"


def _tries(rows: pd.DataFrame) -> int:
    return int(rows[~rows.what.str.endswith("by verify alone")].tried.sum())


def write_page(table: Path, path: Path, seed: int | None, minutes: float | None) -> None:
    """Write the page of a table."""
    path.write_text(page(pd.read_csv(table), seed, minutes), encoding="utf-8")


if __name__ == "__main__":
    print(page(pd.read_csv(sys.argv[1])), end="")
