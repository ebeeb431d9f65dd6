"""Result rows and atlases as files: pictures, and tables that rows do not hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from vdvae_repr import results
from vdvae_repr.errors import TaskError
from vdvae_repr.output import (
    FIGURES,
    MARK,
    SIMILARITY,
    refuse_formats,
    replacing,
    replacing_folder,
    write_table,
    write_text,
)
from vdvae_repr.report import page, plots
from vdvae_repr.report.folder import (
    Findings,
    write_confusions,
    write_curves,
    write_origin,
    write_record,
)
from vdvae_repr.results import (
    CONTROLS,
    LABELS_OF_FACTORS,
    Curve,
    Result,
    SamplingCost,
    Similarity,
    layer_by_factor,
)

if TYPE_CHECKING:
    from vdvae_repr.latents.base import Latents
    from vdvae_repr.model.vdvae import VDVAE

# Files that `probe --out` makes; `compare` makes `similarity` alone.
ENDS = "|".join(FIGURES)
MADE = re.compile(
    rf"(layers|shots|cmc|roc|dir|confusion|noise|factors|rate_accuracy|rois|voxels)(-.*)?\.({ENDS})"
    rf"|similarity-(?!shuffled\.).*\.({ENDS}|csv)|(comparisons|beside|curves|confusion|noise|rate_accuracy)\.csv"
    r"|factors-.*\.csv|(voxels|bands)(-.*)?\.csv"
    r"|results\.(jsonl|csv)|report\.json|index\.html"
)
PAGE = "index.html"
LONGEST = 180  # of a file's name, of 255 bytes at most
SIMILARITY_MADE = re.compile(rf"similarity\.(csv|json|{ENDS})|similarity-shuffled\.csv")
DPI = 200  # of a PNG
CURVES: dict[str, Callable[..., Any]] = {
    "cmc": plots.cmc,
    "roc": plots.roc,
    "dir": plots.detection,
}


def save(
    findings: Findings,
    folder: str | Path,
    rate_accuracy: pd.DataFrame,
    formats: Sequence[str] = ("png",),
    store: Latents | None = None,
    model: VDVAE | None = None,
) -> None:
    """Write all that `probe --out` leaves in a folder, in place of what an earlier run left.

    Args:
        findings: of a report.
        folder: made if need be.
        rate_accuracy: the nats that sets of layers spend beside what these are worth.
        formats: of figures, of `FIGURES`.
        store: of the images that the results are of, for pictures on the page.
        model: that the store was extracted with, for reconstructions.

    Raises:
        TaskError: the folder cannot be written, or holds a file of these names that is not ours; a format
            that is not among `FIGURES`.
        StoreError: the store is of other images or weights than the results.
    """
    refuse_formats(formats)
    if not findings.rows:
        raise TaskError("save: expected results to write, found none; run a probe")
    if store is not None:
        page.expect_of_results(store, findings)
    rows, costs = findings.rows, findings.sampling_costs
    names = MADE
    if "" in findings.similarity:  # of a folder that `compare` wrote into too
        names = re.compile(f"{MADE.pattern}|{SIMILARITY_MADE.pattern}")
    with replacing_folder(folder, names) as aside:
        figures = Figures(aside, formats, findings.called)
        results.write(rows, aside, costs, findings.comparisons, findings.beside)
        write(rows, findings.curves, figures)
        for confusion in findings.confusions:
            figures.save(plots.confusion(confusion), "confusion", confusion.head)
        write_noise(costs, figures)
        for name, found in findings.similarity.items():
            named = not name and any(found.models)
            write_similarity(found, figures, name, found.models if named else None)
        if findings.nats:
            write_table(rate_accuracy, aside / "rate_accuracy.csv")
            write_rate_accuracy(rows, findings.nats, figures)
        write_tables(findings, figures)
        write_curves(findings.curves, aside)
        write_confusions(findings.confusions, aside)
        write_record(findings, aside)
        write_text(aside / PAGE, page.render(findings, store, model))


@dataclass(frozen=True)
class Figures:
    """Where figures are written, and how.

    Args:
        folder: that is there.
        formats: of `FIGURES`, a file each.
        called: what legends call models, where that is not their name.
    """

    folder: Path
    formats: Sequence[str] = ("png",)
    called: Mapping[str, str] = field(default_factory=dict)

    def save(self, drawn: Any, *name: str | None) -> None:
        """Write axes, or a figure, under a name of parts that may hold anything; same rows, same bytes."""
        from matplotlib import rc_context

        figure = getattr(drawn, "figure", None) or drawn
        settings: Any = {"pdf.fonttype": 42, "svg.hashsalt": MARK}  # journals take no Type 3 fonts
        about: dict[str, dict[str, str | None]] = {
            "png": {"Software": MARK},
            "pdf": {"Creator": MARK, "CreationDate": None},
            "svg": {"Creator": MARK, "Date": None},
        }
        with rc_context(settings):
            for kind in self.formats:
                with replacing(self.folder / f"{_file_name(*name)}.{kind}") as file:
                    figure.savefig(
                        file, format=kind, dpi=DPI, bbox_inches="tight", metadata=about[kind]
                    )


def write(rows: Sequence[Result], curves: Sequence[Curve], figures: Figures) -> None:
    """Write `layers`; for faces `cmc`, `dir` or `roc`, for few-shot `shots`.

    For factors there is a matrix for each metric, `factors-METRIC`, with a `.csv`, in place of these.
    With several features or poolings there is a `layers-FEATURE-POOL` for each, and `shots` likewise.
    """
    if rows[0].task == "factors":
        _write_factors(rows, figures)
        return
    own = rows[0].model
    kinds = list(
        dict.fromkeys((row.feature, row.pool) for row in rows if row.feature and row.model == own)
    )
    for feature, pool in kinds:
        which = () if len(kinds) == 1 else (feature, pool)
        of_kind = [row for row in rows if _is_of(row, feature, pool, rows)]
        figures.save(
            plots.layer_panels(_by_layer(of_kind), called=figures.called), "layers", *which
        )
        if len({row.n_train for row in of_kind}) > 1 and rows[0].task == "few_shot":
            layers = {row.layer for row in of_kind if row.feature and row.model == own}
            only = layers.pop() if len(layers) == 1 else None
            if only or any(row.chosen or row.versus for row in of_kind if row.model == own):
                shots = plots.shot_panels(of_kind, only, called=figures.called)
                figures.save(shots, "shots", *which)
    for kind, draw in CURVES.items():
        heads = list(dict.fromkeys(curve.head for curve in curves if curve.kind == kind))
        for head in heads:
            lines = [curve for curve in curves if curve.kind == kind and curve.head == head]
            ax = draw(lines, called=figures.called)
            plots.entitle(ax, f"{rows[0].task} on {rows[0].source}: {head}")
            figures.save(ax, kind, None if len(heads) == 1 else head)


def _is_of(row: Result, feature: str | None, pool: str | None, rows: Sequence[Result]) -> bool:
    """Whether a row goes into the picture of a feature and pooling: of it, or without one of its own.

    Of models beside that lack it the first that they have is drawn.
    """
    if not row.feature or (row.feature, row.pool) == (feature, pool):
        return True
    if row.model in (rows[0].model, *CONTROLS):
        return False
    known = [(of.feature, of.pool) for of in rows if of.model == row.model]
    return (feature, pool) not in known and (row.feature, row.pool) == known[0]


def _by_layer(rows: Sequence[Result]) -> list[Result]:
    """Return single layers and all up to each; of other layers together those that are chosen.

    Without single layers all are drawn.
    """
    if not any(row.selection == "single" for row in rows):
        return list(rows)
    chosen = {(row.model, row.layer) for row in rows if row.chosen}
    return [
        row
        for row in rows
        if row.selection in (None, "single", "cumulative")
        or row.model == "shuffled-labels"
        or (row.model not in CONTROLS and (row.model, row.layer) in chosen)
    ]


def _write_factors(rows: Sequence[Result], figures: Figures) -> None:
    models = dict.fromkeys(row.model for row in rows if row.model not in CONTROLS)
    called = ", ".join(figures.called.get(model, model) for model in models)
    title = f"factors of {rows[0].source}: {called}"
    for metric in dict.fromkeys(row.metric for row in rows):
        table = layer_by_factor(rows, metric)
        write_table(table, figures.folder / f"factors-{metric}.csv", index=metric)
        chance = {
            row.head.partition(":")[2]: row.chance
            for row in rows
            if row.chance and row.metric == metric
        }
        ax = plots.factors(
            table.to_numpy(),
            list(table.index),
            list(table.columns),
            chance=chance,
            metric=LABELS_OF_FACTORS[metric],
        )
        plots.entitle(ax, title)
        figures.save(ax, "factors", metric)


def write_noise(rows: Sequence[SamplingCost], figures: Figures) -> None:
    """Write what drawing costs as a `noise-HEAD` for each head, number of images, selection and pooling."""
    for key in dict.fromkeys(_kind_of(row) for row in rows):
        own = [row for row in rows if _kind_of(row) == key]
        head, n_train, selection, pool = key
        several = len({row.n_train for row in rows if row.head == head}) > 1
        together = None if selection == "single" else selection
        name = ("noise", head, str(n_train) if several else None, together, pool)
        figures.save(plots.noise(own), *name)


def _kind_of(row: SamplingCost) -> tuple[str, int, str, str | None]:
    """Return what a picture of what drawing costs is one of."""
    return row.head, row.n_train, row.selection, row.pool


def write_rate_accuracy(
    rows: Sequence[Result], nats: Mapping[str, float], figures: Figures
) -> None:
    """Write `rate_accuracy-HEAD-FEATURE-POOL`; of several numbers of shots the fewest."""
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
            figures.save(ax, "rate_accuracy", head, feature, pool)


def write_tables(findings: Findings, figures: Figures) -> None:
    """Write what rows do not hold as `NAME.csv`; of `encoding` the maps `rois-METRIC` and `voxels`."""
    for name, table in findings.tables.items():
        write_table(table, figures.folder / f"{_file_name(name)}.csv")
    voxels = findings.tables.get("voxels")
    if voxels is not None and (voxels["q_value"] < 0.05).any():
        figures.save(plots.voxels(voxels), "voxels")
    own = [row for row in findings.rows if row.task == "encoding"]
    for metric in dict.fromkeys(row.metric for row in own):
        figures.save(plots.rois(own, metric), "rois", metric)


def write_similarity(
    found: Similarity, figures: Figures, feature: str = "", models: tuple[str, str] | None = None
) -> None:
    """Write `similarity.csv`, `similarity-shuffled.csv` and the figure, of a feature or without one.

    Without one there is a `similarity.json` too, which says what was compared. `models` are those of the two
    sides; None where the layers of one are compared with each other. Tables of two features name both.
    """
    (_, rows), (_, columns) = found.sides
    features = "" if rows == columns else f": rows of {rows}, columns of {columns}"
    name = _file_name("similarity", feature)
    for matrix, end, index in zip(
        (found.cka, found.shuffled), ("", "-shuffled"), SIMILARITY, strict=True
    ):
        table = pd.DataFrame(
            np.round(matrix, 6), index=list(found.layers), columns=list(found.other_layers)
        )
        write_table(table, figures.folder / f"{name}{end}.csv", index=f"{index}{features}")
    if not feature:
        write_origin(found, figures.folder)
    others = None if models is None else found.other_layers
    ax = plots.similarity(found.cka, found.layers, others, models=models, shuffled=found.shuffled)
    figures.save(ax, "similarity", feature)


def save_similarity(
    found: Similarity,
    folder: str | Path,
    models: tuple[str, str],
    formats: Sequence[str] = ("png",),
) -> None:
    """Write all that `compare` leaves in a folder, in place of what an earlier run left.

    Raises:
        TaskError: the folder cannot be written, or holds a file of these names that is not ours; a format
            that is not among `FIGURES`.
    """
    refuse_formats(formats)
    with replacing_folder(folder, SIMILARITY_MADE) as aside:
        write_similarity(found, Figures(aside, formats), models=models)


def _file_name(*parts: str | None) -> str:
    """Return a name that a file may have, of parts that may hold anything, as names of factors do."""
    name = quote("-".join(part for part in parts if part).replace(":", "-"), safe=" ,+=@")
    return (
        name
        if len(name) <= LONGEST
        else f"{name[:LONGEST]}-{sha256(name.encode()).hexdigest()[:12]}"
    )
