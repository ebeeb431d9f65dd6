"""Result rows and atlases as files: pictures, and tables that rows do not hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from vdvae_repr import results
from vdvae_repr.output import (
    MARK,
    SIMILARITY,
    replacing,
    replacing_folder,
    write_table,
)
from vdvae_repr.report import page, plots
from vdvae_repr.report.folder import Findings, write_curves, write_record
from vdvae_repr.results import (
    CONTROLS,
    LABELS_OF_FACTORS,
    Curve,
    Result,
    SamplingCost,
    Similarity,
    layer_by_factor,
)

# Files that `probe --out` makes; `compare` makes `similarity` alone.
MADE = re.compile(
    r"(layers|shots|cmc|roc|noise|factors|rate_accuracy)(-.*)?\.png|similarity-.*\.(png|csv)"
    r"|(comparisons|curves|noise|rate_accuracy)\.csv|factors-.*\.csv|results\.(jsonl|csv)"
    r"|report\.json|index\.html"
)
PAGE = "index.html"
LONGEST = 180  # of a file's name, of 255 bytes at most
SIMILARITY_MADE = re.compile(r"similarity\.(csv|png)|similarity-shuffled\.csv")


def save(findings: Findings, folder: str | Path, rate_accuracy: pd.DataFrame) -> None:
    """Write all that `probe --out` leaves in a folder, in place of what an earlier run left.

    Args:
        findings: of a report.
        folder: made if need be.
        rate_accuracy: the nats that sets of layers spend beside what these are worth.

    Raises:
        TaskError: the folder cannot be written, or holds a file of these names that is not ours.
    """
    rows, costs = findings.rows, findings.sampling_costs
    with replacing_folder(folder, MADE) as aside:
        results.write(rows, aside, costs, findings.comparisons)
        write(rows, findings.curves, aside)
        write_noise(costs, aside)
        for name, found in findings.similarity.items():
            write_similarity(found, aside, name)
        if findings.nats:
            write_table(rate_accuracy, aside / "rate_accuracy.csv")
            write_rate_accuracy(rows, findings.nats, aside)
        write_curves(findings.curves, aside)
        write_record(findings, aside)
        page.write(findings, aside / PAGE)


def write(rows: Sequence[Result], curves: Sequence[Curve], folder: Path) -> None:
    """Write `layers.png`; for faces `cmc.png` or `roc.png`, for few-shot `shots.png`.

    For factors there is a matrix for each metric, `factors-METRIC.png` and `.csv`, in place of these.
    With several features or poolings there is a `layers-FEATURE-POOL.png` for each, and `shots` likewise.
    Of several numbers of shots `layers` draws the fewest.
    """
    if rows[0].task == "factors":
        models = dict.fromkeys(row.model for row in rows if row.model not in CONTROLS)
        title = f"factors of {rows[0].source}: {', '.join(models)}"
        for metric in dict.fromkeys(row.metric for row in rows):
            table = layer_by_factor(rows, metric)
            write_table(table, folder / f"factors-{metric}.csv", index=metric)
            chance = {
                row.head.partition(":")[2]: row.chance
                for row in rows
                if row.chance and row.metric == metric
            }
            ax = plots.factors(
                table.to_numpy(), list(table.index), list(table.columns), chance=chance,
                metric=LABELS_OF_FACTORS[metric],
            )  # fmt: skip
            ax.set_title(plots.drawable(title, plots.TITLE), loc="left")
            _save(ax, folder / f"factors-{metric}.png")
        return
    shots = sorted({row.n_train for row in rows}) if rows[0].task == "few_shot" else []
    kept = [row for row in rows if row.model in (rows[0].model, *CONTROLS)]  # none of stores beside
    kinds = list(dict.fromkeys((row.feature, row.pool) for row in kept if row.feature))
    for feature, pool in kinds:
        of_kind = [
            row for row in kept if not row.feature or (row.feature, row.pool) == (feature, pool)
        ]
        own = [row for row in of_kind if not shots or row.n_train == shots[0]]
        # Of an atlas single layers alone; shuffled labels are of the layers chosen, whatever these are.
        if any(row.selection == "single" for row in own):
            own = [
                row
                for row in own
                if not row.feature or row.selection == "single" or row.model == "shuffled-labels"
            ]
        which = () if len(kinds) == 1 else (feature, pool)
        panels = plots.layer_panels(own)
        _save_figure(panels, folder / f"{_file_name('layers', *which)}.png")
        layers = {row.layer for row in of_kind if row.feature}
        only = layers.pop() if len(layers) == 1 else None
        if len(shots) > 1 and (only or any(r.chosen for r in of_kind if r.role == "model")):
            _save(plots.shots(of_kind, only), folder / f"{_file_name('shots', *which)}.png")
    for kind in ("cmc", "roc"):
        heads = list(dict.fromkeys(curve.head for curve in curves if curve.kind == kind))
        for head in heads:
            lines = {_called(c): (c.x, c.y) for c in curves if c.kind == kind and c.head == head}
            people = max(len(x) for x, _ in lines.values())
            ax = plots.cmc(lines, people=people) if kind == "cmc" else plots.roc(lines)
            title = f"{rows[0].task} on {rows[0].source}: {head}"
            ax.set_title(plots.drawable(title, plots.TITLE), loc="left")
            name = _file_name(kind, None if len(heads) == 1 else head)
            _save(ax, folder / f"{name}.png")


def write_noise(rows: Sequence[SamplingCost], folder: Path) -> None:
    """Write what drawing costs as a `noise-HEAD.png` for each head, number of images and pooling."""
    for head, n_train, pool in dict.fromkeys((row.head, row.n_train, row.pool) for row in rows):
        own = [row for row in rows if (row.head, row.n_train, row.pool) == (head, n_train, pool)]
        several = len({row.n_train for row in rows if row.head == head}) > 1
        name = _file_name("noise", head, str(n_train) if several else None, pool)
        _save(plots.noise(own), folder / f"{name}.png")


def write_rate_accuracy(rows: Sequence[Result], nats: Mapping[str, float], folder: Path) -> None:
    """Write `rate_accuracy-HEAD-FEATURE-POOL.png`; of several numbers of shots the fewest."""
    fewest = min(row.n_train for row in rows) if rows[0].task == "few_shot" else None
    models = (rows[0].model, *results.CONTROLS)  # models beside it spend other nats
    rows = [row for row in rows if fewest in (None, row.n_train) and row.model in models]
    kinds = list(dict.fromkeys((row.feature, row.pool) for row in rows if row.layer in nats))
    for feature, pool in kinds:
        for head in dict.fromkeys(row.head for row in rows):
            own = [
                row
                for row in rows
                if row.head == head
                and (
                    not row.feature
                    or ((row.feature, row.pool) == (feature, pool) and row.layer in nats)
                )
            ]
            spent = dict.fromkeys(row.layer for row in own if row.layer and row.feature)
            ax = plots.cumulative(own, [nats[layer] for layer in spent], head=head)
            _save(ax, folder / f"{_file_name('rate_accuracy', head, feature, pool)}.png")


def write_similarity(
    found: Similarity, folder: Path, feature: str = "", models: tuple[str, str] | None = None
) -> None:
    """Write `similarity.csv`, `similarity-shuffled.csv` and `similarity.png`, of a feature or without one.

    `models` are those of the two sides; None where the layers of one are compared with each other.
    """
    name = _file_name("similarity", feature)
    for matrix, end, index in zip(
        (found.cka, found.shuffled), ("", "-shuffled"), SIMILARITY, strict=True
    ):
        table = pd.DataFrame(
            np.round(matrix, 6), index=list(found.layers), columns=list(found.other_layers)
        )
        write_table(table, folder / f"{name}{end}.csv", index=index)
    others = None if models is None else found.other_layers
    ax = plots.similarity(found.cka, found.layers, others, models=models)
    low, high = found.shuffled.min(), found.shuffled.max()
    ax.set_title(f"of shuffled images from {low:.2f} to {high:.2f}", loc="left")
    _save(ax, folder / f"{name}.png")


def save_similarity(found: Similarity, folder: str | Path, models: tuple[str, str]) -> None:
    """Write all that `compare` leaves in a folder, in place of what an earlier run left.

    Raises:
        TaskError: the folder cannot be written, or holds a file of these names that is not ours.
    """
    with replacing_folder(folder, SIMILARITY_MADE) as aside:
        write_similarity(found, aside, models=models)


def _file_name(*parts: str | None) -> str:
    """Return a name that a file may have, of parts that may hold anything, as names of factors do."""
    name = quote("-".join(part for part in parts if part).replace(":", ""), safe=" ,+=@")
    return (
        name
        if len(name) <= LONGEST
        else f"{name[:LONGEST]}-{sha256(name.encode()).hexdigest()[:12]}"
    )


def _called(curve: Curve) -> str:
    return " ".join(filter(None, (curve.model, curve.layer)))


def _save(ax: Any, path: Path) -> None:
    _save_figure(ax.figure, path, bbox_inches="tight")


def _save_figure(figure: Any, path: Path, **options: Any) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=100, metadata={"Software": MARK}, **options)
