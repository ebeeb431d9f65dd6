"""Can a small model have the hierarchy of a large one? A student of faces64 beside a VDVAE of its size.

The student, bottom-up alone, learns the posterior of faces64 at its layers up to 32x32; a VDVAE of as many
parameters learns images from scratch, with the same images, batches, updates and learning rate. Both, and
faces64, then read people whom none of them was trained on: who is it, by each layer and all up to each, the
layers of a head picked by training data. The time is that of the posterior at the same layers, of one batch
on the same machine, turns alternating, medians.
"""

import json
import statistics
import time
from pathlib import Path

import pandas as pd
from claim import (
    AGREES,
    DISAGREES,
    UNTOLD,
    Context,
    Piece,
    Row,
    Settings,
    Verdict,
    below,
    images,
    to_toml,
)
from matplotlib.figure import Figure

import vdvae_repr as vr

TITLE = "Can a small student have the same hierarchy?"
PAPER = (
    "nothing of small models; reviewers ask how they can have the same hierarchy. Agreement means that "
    "distilling a very deep VAE into a network of a fifth of its compute keeps what its layers know."
)
PAPER_IN_SHORT = "not in the paper: reviewers ask how small models can have the same hierarchy"
RULE = (
    "Of each test and head the chosen layers of two models are compared on the same test images, with the "
    "95 % interval of the difference and p after Holm, as `vr.probe` does. *Keeps what the teacher knows* "
    "agrees where student less teacher lies above -`margin` with its whole interval on every test and "
    "head, disagrees where it lies below on any; else it is not told. *Better than a VDVAE of its size* "
    "agrees where the verdict is better on at least one test and head and worse on none, disagrees where "
    "it is worse on any and better on none; else not told. *Cheaper* agrees where the student reads more "
    "images a second than both."
)
TIMED = True
TEACHER = "faces64"
TOLERANCE = 0.05  # of the number of parameters
ROUNDS = 7


def pieces(settings: Settings) -> list[Piece]:
    """Return a piece a seed."""
    return [{"seed": seed} for seed in settings["seeds"]]


def measure(piece: Piece, context: Context) -> list[Row]:
    """Train both, or go on; compare the three on each test, and time them."""
    models = {
        "teacher": vr.load(TEACHER),
        "student": vr.load(teach(piece, context)),
        "small": vr.load(from_scratch(piece, context)),
    }
    parameters = {
        name: sum(p.numel() for p in model.parameters()) for name, model in models.items()
    }
    if abs(parameters["small"] / parameters["student"] - 1) > TOLERANCE:
        raise ValueError(f"expected as many parameters as the student, found {parameters}")
    rows = kl_rows(context.folder / "student") + cost_rows(models, parameters, context)
    for test, data in context.settings["tests"].items():
        rows += test_rows(models, test, data, context)
    return rows


def teach(piece: Piece, context: Context) -> Path:
    """Distil the student into its run folder."""
    recipe = context.settings["train"] | {"seed": piece["seed"]}
    return vr.distill(
        TEACHER, images(context), context.folder / "student", config=context.settings["student"],
        resume=True, device=context.device, progress=lambda line: None,
        **context.settings.get("options", {}), **recipe,
    )  # fmt: skip


def from_scratch(piece: Piece, context: Context) -> Path:
    """Train the small VDVAE into its run folder."""
    recipe = context.settings["train"] | {"seed": piece["seed"]}
    config = context.folder / "small.toml"
    config.write_text(
        to_toml({"model": context.settings["small"], "train": recipe}), encoding="utf-8"
    )
    return vr.train(
        config, images(context), context.folder / "small", resume=True, device=context.device,
        progress=lambda line: None, **context.settings.get("options", {}),
    )  # fmt: skip


def kl_rows(run: Path) -> list[Row]:
    """Return a row a layer: KL of the teacher to the student, at first and of people held back."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    held = last["held_back_kl_nats"]
    return [
        {
            "part": "kl",
            "layer": name,
            "kl_first": first["kl_nats"][name],
            "kl_held_back": held[name],
        }
        for name in held
    ]


def cost_rows(
    models: dict[str, vr.VDVAE], parameters: dict[str, int], context: Context
) -> list[Row]:
    """Return a row a model: parameters, and images a second of the posterior at the student's layers."""
    batch = models["teacher"].sample(context.settings["batch"], seed=0)
    layers = [spec.name for spec in models["student"].layers]
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(ROUNDS + 1):
        for name, model in models.items():
            started = time.perf_counter()
            model.posterior(batch, layers=layers)
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - started)
    return [
        {
            "part": "cost",
            "model": name,
            "parameters": parameters[name],
            "images_per_second": len(batch) / statistics.median(times[name]),
        }
        for name in models
    ]


def test_rows(models: dict[str, vr.VDVAE], test: str, data: str, context: Context) -> list[Row]:
    """Return the chosen rows of the three models on a test, and the student's comparisons."""
    crop = context.settings.get("crop") if data.endswith(".csv") else None
    source = vr.open_source(data.format(data=context.data), notice=lambda line: None)
    layers = [spec.name for spec in models["student"].layers]
    stores = {}
    for name, model in models.items():
        model.name = name
        path = context.folder / f"{test}-{name}.h5".replace(" ", "_")
        stores[name] = vr.extract(
            model, source, path, layers=layers, overwrite=True, crop=crop, report=lambda line: None
        )
    report = vr.probe(
        stores["student"], "face_id", beside=[stores["teacher"], stores["small"]],
        heads=context.settings["heads"], cache=None, progress=False,
    )  # fmt: skip
    for store in stores.values():
        store.close()
        store.path.unlink()
    found = [
        {
            "part": "test", "test": test, "head": row.head, "model": row.model, "layer": row.layer,
            "value": row.value, "low": row.ci_low, "high": row.ci_high, "chance": row.chance,
        }
        for row in report.rows
        if row.chosen and row.metric == "rank1"
    ]  # fmt: skip
    return found + [
        {
            "part": "comparison", "test": test, "head": each.head, "model": each.model,
            "versus": each.versus, "value": each.difference, "low": each.diff_low,
            "high": each.diff_high, "p_value": each.p_value,
        }
        for each in report.beside
    ]  # fmt: skip


def against(rows: pd.DataFrame, rival: str) -> pd.DataFrame:
    """Return the student's comparisons with a rival, a row a test and head."""
    return rows[(rows.part == "comparison") & (rows.versus == rival)]


def verdicts(rows: pd.DataFrame, settings: Settings) -> list[Verdict]:
    """Compare the student with its teacher, and with a VDVAE of its size."""
    margin, teacher, small = settings["margin"], against(rows, "teacher"), against(rows, "small")
    kept = [below((-row.value, -row.high, -row.low), margin) for row in teacher.itertuples()]
    told = small.p_value < 0.05
    better, worse = bool((told & (small.value > 0)).any()), bool((told & (small.value < 0)).any())
    rates = rows[rows.part == "cost"].set_index("model").images_per_second
    cheaper = rates["student"] > rates.drop("student").max()
    return [
        Verdict(
            f"the student keeps what the teacher knows (margin {margin})",
            f"student less teacher: {differences(teacher)}",
            DISAGREES if DISAGREES in kept else AGREES if set(kept) == {AGREES} else UNTOLD,
        ),
        Verdict(
            "a student is better than a VDVAE of its size, trained from scratch",
            f"student less small: {differences(small)}",
            UNTOLD if better == worse else AGREES if better else DISAGREES,
        ),
        Verdict(
            "its features are cheaper",
            ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()) + " images/s",
            AGREES if cheaper else DISAGREES,
        ),
    ]


def differences(rows: pd.DataFrame) -> str:
    """Write differences with their intervals, a test and head each."""
    return "; ".join(
        f"{row.test}, {row.head} {row.value:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        for row in rows.itertuples()
    )


def in_short(rows: pd.DataFrame) -> str:
    """Say what was found in a few words."""
    found = rows[rows.part == "test"].pivot_table(
        index=["test", "head"], columns="model", values="value", sort=False
    )
    (test, head), first = next(iter(found.iterrows()))
    rates = rows[rows.part == "cost"].set_index("model").images_per_second
    return (
        f"{test}, {head}: student {first['student']:.3f}, teacher {first['teacher']:.3f}, small VDVAE "
        f"{first['small']:.3f}; {rates['student'] / rates['teacher']:.1f} times the teacher's images/s"
    )


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a model: its size, its speed, and its chosen layers' rate on each test."""
    lines = []
    for row in rows[rows.part == "cost"].itertuples():
        line = {
            "model": row.model,
            "parameters": f"{row.parameters:,.0f}",
            "images/s": f"{row.images_per_second:.1f}",
        }
        for own in rows[(rows.part == "test") & (rows.model == row.model)].itertuples():
            rate = f"{own.value:.3f} [{own.low:.3f}, {own.high:.3f}] ({own.layer})"
            line[f"{own.test}, {own.head}"] = rate
        lines.append(line)
    controls = rows[(rows.part == "test") & ~rows.model.isin([line["model"] for line in lines])]
    for name, own in controls.groupby("model", sort=False):
        rates = {f"{row.test}, {row.head}": f"{row.value:.3f}" for row in own.itertuples()}
        lines.append({"model": name} | rates)
    return pd.DataFrame(lines).fillna("")


def draw(rows: pd.DataFrame, figure: Figure) -> None:
    """Show KL by layer, and the rates of the three models."""
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    own = rows[rows.part == "kl"]
    left.plot(own.layer, own.kl_first, marker=".", label="first update")
    left.plot(own.layer, own.kl_held_back, marker=".", label="trained, people held back")
    left.set_yscale("log")
    left.tick_params(axis="x", rotation=90, labelsize=7)
    left.set_ylabel("KL of teacher to student, nats an image")
    left.legend(fontsize=8)
    found = rows[rows.part == "test"]
    groups = list(found.groupby(["test", "head"], sort=False))
    for place, model in enumerate(("teacher", "student", "small")):
        for i, (_, those) in enumerate(groups):
            row = those[those.model == model].iloc[0]
            right.errorbar(
                i + 0.2 * (place - 1), row.value, [[row.value - row.low], [row.high - row.value]],
                color=f"C{place}", marker="os^"[place], capsize=2, label=model if i == 0 else None,
            )  # fmt: skip
    names = [f"{test}\n{head}" for (test, head), _ in groups]
    right.set_xticks(range(len(names)), names, fontsize=7)
    right.set_ylabel("rank-1 identification rate")
    right.legend(fontsize=8)
