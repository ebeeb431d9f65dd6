"""Make benchmarks/results/gpu.md of what benchmarks/gpu/run.sh has left in benchmarks/results/gpu/.

    python benchmarks/gpu/page.py

Without results the page says that nothing is measured yet.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
Row = dict[str, Any]

HEAD = """# On a GPU

What `benchmarks/gpu/run.sh` measures on a card: whether the results are right, how fast images are read
and models trained, and what more training of the packaged weights brings. Its [README](../gpu/README.md) says
how it is run, and how results come here. `benchmarks/gpu/page.py` makes this page of the files in `gpu/`;
what they say is written there in `findings.md`.
"""
NOTHING = """
**Not measured yet.** No GPU has run it; `run.sh --smoke` runs every stage on a CPU, at sizes that say nothing
about speed.
"""


def read(path: Path) -> list[Row]:
    """Return the rows of a JSON lines file; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def table(rows: list[Row], columns: list[str]) -> str:
    """Return rows as a Markdown table; what a row does not have is a dash."""
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for row in rows:
        cells = (row.get(column) for column in columns)
        lines.append(f"| {' | '.join('-' if cell is None else str(cell) for cell in cells)} |")
    return "\n".join(lines)


def left_out(cases: list[str]) -> str:
    """Say which cases were left out: mode and preset, and how many of them."""
    counts = Counter(" ".join(case.split()[:2]) for case in cases)
    return ", ".join(f"{name} ({number})" for name, number in counts.items())


def environment(folder: Path) -> list[str]:
    """Return the lines that say what was measured on."""
    path = folder / "environment.json"
    if not path.is_file() or not path.read_text().strip():
        return ["\nWhat it was measured on is not on record."]
    found = json.loads(path.read_text())
    rates = ", ".join(f"{name} {rate}" for name, rate in found["matrix_tflops"].items())
    return [
        f"\nMeasured on {found['date'][:10]}, commit {(found['commit'] or 'unknown')[:12]}: "
        f"{found['card'] or found['machine']}, {found['cores']} CPU cores, PyTorch {found['torch']}, "
        f"CUDA {found['cuda']}.",
        f"A large matrix product reaches {rates} TFLOP/s, a copy {found['copy_gb_per_second']} GB/s.",
    ]


def page(folder: Path) -> str:
    """Return the page of a folder of results."""
    correct, fast = read(folder / "correct.jsonl"), read(folder / "fast.jsonl")
    train = read(folder / "train.jsonl")
    if not (correct or fast or train):
        return HEAD + NOTHING
    parts = [HEAD, *environment(folder)]
    if (folder / "findings.md").is_file():
        parts.append("\n" + (folder / "findings.md").read_text().rstrip())
    if correct:
        wrong = sum(not row["right"] for row in correct)
        parts.append(f"\n## Is it right?\n\n{len(correct)} checks, {wrong} not passed.\n")
        columns = [
            "check",
            "model",
            "precision",
            "z",
            "rest",
            "error",
            "bound",
            "right",
            "error_of",
        ]
        parts.append(table(correct, columns))
    if brains := [row for row in correct if "cpu_seconds" in row]:
        parts.append("\n## Encoding, and decoding of brains, beside the same on the CPU\n")
        parts.append(table(brains, ["check", "seconds", "cpu_seconds"]))
    titles = {
        "extraction": ("Reading posteriors", [
            "preset", "layers", "precision", "mode", "batch_size", "images_per_second",
            "of_matrix_rate", "peak_gb", "error",
        ]),
        "photos": ("From JPEG files to a finished store", [
            "model", "layers", "workers", "images_per_second", "times_one_worker",
            "same_values_as_one_worker", "device",
        ]),
        "training step": ("Training steps", [
            "preset", "variant", "batch_size", "images_per_second", "ratio", "ratio_to",
            "matrix_rate_fraction", "peak_memory_mb", "compile_seconds",
        ]),
        "small step": ("A training step of a small model", [
            "model", "batch_size", "seconds", "kernel_seconds",
        ]),
        "linear-lbfgs": ("Probe head on a Gram matrix (on the CPU)", [
            "samples", "dims", "classes", "gram_seconds", "head_seconds", "cores",
        ]),
    }  # fmt: skip
    for case, (title, columns) in titles.items():
        rows = [row for row in fast if row["case"] == case]
        if shown := [row for row in rows if "left_out_for_want_of_time" not in row]:
            parts.append(f"\n## {title}\n\n{table(shown, columns)}")
        for row in rows:
            if left := row.get("left_out_for_want_of_time"):
                parts.append(f"\nLeft out for want of time: {left_out(left)}.")
    if train:
        parts.append("\n## More training\n")
        for row in train:
            scores = [
                f"{row[when]['bits_per_dim']:.4f} ({row[when]['interval'][0]:.4f} .. "
                f"{row[when]['interval'][1]:.4f})"
                for when in ("before", "after")
            ]
            parts.append(
                f"- {row['model']} on {row['data']}: {row['images_seen']} images in {row['step']} steps, "
                f"{row['images_per_second']} images/s; {row['images_held_back']} images held back: "
                f"{scores[0]} bits per dimension before, {scores[1]} after."
            )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (RESULTS / "gpu.md").write_text(page(RESULTS / "gpu"))
