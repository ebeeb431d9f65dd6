"""A VDVAE beside a PixelCNN++: the same images, likelihood, parameters and minutes of training.

Both train by the same recipe, in rounds of updates, until the minutes are over, the last round as long as
is left by the pace so far; after each round split test is scored, which is not timed. At the end some
images are drawn, the PixelCNN++'s with what it has computed kept (a pass a pixel), the VDVAE's in one pass.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from claim import (
    AGREES,
    DISAGREES,
    Context,
    Piece,
    Row,
    Settings,
    Verdict,
    below,
    by_group,
    images,
    interval,
    paired,
    shown,
    train,
)
from matplotlib.figure import Figure

import vdvae_repr as vr

TITLE = "Does a VDVAE beat an autoregressive model?"
PAPER = (
    "very deep VAEs reach higher likelihoods than PixelCNN++ (CIFAR-10: 2.87 against 2.92 bits per "
    "dimension), with fewer parameters (39 against 53 million), and draw samples thousands of times "
    "faster, in one pass in place of one a pixel."
)
PAPER_IN_SHORT = "better likelihood than PixelCNN++, fewer parameters, far faster samples"
RULE = (
    "Both models have about the same number of parameters (`parameters`, to 10 %), the same training "
    "images, likelihood (the discretised mixture of logistics), batch size and minutes of training "
    "(steps alone are timed, each model alone on a core or a card). *Better likelihood* takes differences of "
    "test bits per dimension, VDVAE less PixelCNN++, seed by seed, and agrees where Student's 95 % "
    "interval is below 0, disagrees where it is above. *Faster samples* agrees where drawing takes less "
    "time, of every seed, disagrees where it takes more of any. The VDVAE's score is a bound, the "
    "PixelCNN++'s exact."
)
TIMED = True
TOLERANCE = 0.1  # of the number of parameters


def pieces(settings: Settings) -> list[Piece]:
    """Return a piece a model and seed."""
    return [
        {"model": name, "seed": seed}
        for seed in settings["seeds"]
        for name in ("vdvae", "pixelcnn")
    ]


def measure(piece: Piece, context: Context) -> list[Row]:
    """Train for so many minutes, scoring on split test on the way; time samples at the end."""
    settings, source = context.settings, images(context)
    architecture, recipe = settings[piece["model"]], {"seed": piece["seed"]}
    kept = context.folder / "rounds.json"  # of a try that was interrupted
    rows: list[Row] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else []
    run = context.folder / "run"
    while (steps := next_stop(rows, settings)) is not None:
        train(context, architecture, recipe, source, steps=steps)
        model = vr.load(run, device=context.device)
        found = vr.evaluate(model, source, split="test", batch_size=settings.get("batch", 64))
        rows.append(
            {
                "steps": steps,
                "train_seconds": trained_seconds(run, settings["train"]["batch_size"]),
                "bits_per_dim": found.bits_per_dim,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
            }
        )
        kept.write_text(json.dumps(rows), encoding="utf-8")
    model = vr.load(run, device=context.device)
    if abs(rows[-1]["parameters"] / settings["parameters"] - 1) > TOLERANCE:
        raise ValueError(f"expected {settings['parameters']:,} parameters, found {rows[-1]}")
    model.sample(1)
    started = time.perf_counter()
    model.sample(settings["samples"], seed=0)
    # A VDVAE draws all its layers in one pass; a PixelCNN++ needs one for each pixel.
    passes = 1 if piece["model"] == "vdvae" else model.config.image_size**2
    rows[-1] |= {
        "last": True,
        "sample_seconds": time.perf_counter() - started,
        "passes": passes,
    }
    return rows


def next_stop(rows: list[Row], settings: Settings) -> int | None:
    """Return the updates at which the next round ends, None where the minutes are over.

    Rounds end where the log has a row, so that the seconds of all their updates are known.
    """
    if not rows:
        return settings["steps_a_round"]
    done, took = rows[-1]["steps"], rows[-1]["train_seconds"]
    left, every = 60 * settings["minutes"] - took, settings["train"]["log_every"]
    if left <= 0:
        return None
    at_most = every * math.ceil(left / took * done / every)
    return done + min(settings["steps_a_round"], at_most)


def trained_seconds(run: Path, batch_size: int) -> float:
    """Return how long a run's steps took, from its log: no scoring, no pictures, no start."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(_seconds([json.loads(line) for line in lines], batch_size))


def _seconds(log: list[Row], batch_size: int) -> Iterator[float]:
    before = 0
    for row in log:
        yield (row["step"] - before) * batch_size / row["images_per_second"]
        before = row["step"]


def last(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of each run."""
    return rows[rows["last"].eq(True)]


def verdicts(rows: pd.DataFrame, settings: Settings) -> list[Verdict]:
    """Compare bits and the time of samples."""
    ours, theirs = {"model": "vdvae"}, {"model": "pixelcnn"}
    bits = interval(paired(last(rows), ours, theirs, "bits_per_dim"))
    first = Verdict(
        "better likelihood at equal parameters and minutes",
        f"VDVAE less PixelCNN++: {shown(bits, 3)} bits/dim",
        below(bits),
    )
    times = last(rows).groupby("model").sample_seconds
    faster = (paired(last(rows), ours, theirs, "sample_seconds") < 0).all()
    second = Verdict(
        f"{settings['samples']} samples are drawn faster",
        f"{times.mean()['vdvae']:.3g} s against {times.mean()['pixelcnn']:.3g} s",
        AGREES if faster else DISAGREES,
    )
    return [first, second]


def in_short(rows: pd.DataFrame) -> str:
    """Say what was found in a few words."""
    means = last(rows).groupby("model")[["bits_per_dim", "sample_seconds"]].mean()
    bits, times = means.bits_per_dim, means.sample_seconds
    return (
        f"{bits['vdvae']:.3f} against {bits['pixelcnn']:.3f} bits/dim; samples "
        f"{times['pixelcnn'] / times['vdvae']:.0f} times as fast"
    )


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a model, with Student's intervals over seeds."""
    columns = {"bits_per_dim": 3, "steps": 0, "train_seconds": 0, "sample_seconds": 3}
    table = by_group(last(rows), ["model", "parameters", "passes"], columns)
    return table.rename(
        columns={
            "bits_per_dim": "bits/dim, test",
            "passes": "passes an image",
            "train_seconds": "seconds of training",
            "sample_seconds": "seconds for the samples",
        }
    )


def draw(rows: pd.DataFrame, figure: Figure) -> None:
    """Show test bits per dimension over minutes of training, a line a run."""
    axes = figure.subplots()
    colors = {"vdvae": "C0", "pixelcnn": "C1"}
    for (name, seed), own in rows.groupby(["model", "seed"]):
        label = name if seed == rows.seed.min() else None
        axes.plot(
            own.train_seconds / 60, own.bits_per_dim, color=colors[name], marker=".", label=label
        )
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("bits per dimension, test")
    axes.legend()
