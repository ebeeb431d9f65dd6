"""The answer as one HTML file: charts, pictures, every row; it needs no network, and no scripts to be read.

`render` decides what is shown of `Findings`, section by section, each only where there is something to show;
`charts` draws, `gallery` makes the pictures, `summary` has the answer, and `templates/page.html` is the page.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vdvae_repr.config import path_of
from vdvae_repr.errors import LayerError, StoreError, TaskError, printable
from vdvae_repr.latents.base import Latents, OtherWeightsError
from vdvae_repr.output import GENERATOR, as_csv, is_own, version, write_text
from vdvae_repr.report import charts, gallery, summary
from vdvae_repr.report.charts import Across, Axis, Dot, Point, Series
from vdvae_repr.report.folder import Findings
from vdvae_repr.report.summary import Asked, metric_words, short, with_interval
from vdvae_repr.results import (
    ALPHA,
    CONTROLS,
    LABELS_OF_FACTORS,
    LOWER_IS_BETTER,
    METRIC_NAMES,
    UNDECIDED,
    Comparison,
    Curve,
    Result,
    layer_by_factor,
    layer_of,
    to_frame,
)

if TYPE_CHECKING:
    from jinja2 import Template

    from vdvae_repr.model.vdvae import VDVAE

NEAREST = ("nearest", "knn")  # how heads begin that look for the nearest images
OPEN = 4  # charts of one kind that are shown; the others can be unfolded
DIFFERENCE = "difference (right of 0: the model is better)"
MARKS = (
    "Bars are 95 % intervals; p is two-sided, after Holm over {over}. A triangle up is better, one down "
    "worse, a ring: no difference told."
)
FEW = 6  # heads whose comparisons have a chart each
MOST_POINTS = 150  # of a curve
COLUMNS = {
    "chosen": "",
    "task": "task",
    "protocol": "protocol",
    "head": "head",
    "model": "model",
    "source": "images of",
    "layer": "layer",
    "selection": "selection",
    "feature": "feature",
    "pool": "pool",
    "scaling": "scaling",
    "dims": "dims",
    "n_train": "train",
    "n_test": "test",
    "units": "units",
    "metric": "metric",
    "at": "at",
    "value": "value",
    "ci_low": "95 % low",
    "ci_high": "95 % high",
    "chance": "chance",
    "ceiling_low": "ceiling, low",
    "ceiling_high": "ceiling, high",
    "training_score": "training score",
    "versus": "versus",
    "difference": "difference",
    "p_value": "p",
}
CURVES = {  # the heading of each kind, what it measures, and what that is
    "cmc": (
        "Cumulative match",
        "identification rate",
        "How often the right person is among the first r of the gallery, of the rows that training data "
        "picked.",
    ),
    "roc": (
        "Receiver operating characteristic",
        "true accept rate",
        "Pairs of one person that are accepted, over pairs of two that are accepted too.",
    ),
    "dir": (
        "Detection and identification",
        METRIC_NAMES["dir"],
        "Of people in the gallery, how many are accepted and named rightly, at the threshold at which so "
        "many of those who are not in it are accepted too.",
    ),
}
ALWAYS = ("chosen", "head", "model", "layer", "metric", "value", "ci_low", "ci_high")


@dataclass(frozen=True)
class Figure:
    """A chart with what is to be read beside it."""

    title: str
    svg: str
    legend: Sequence[tuple[str, str, bool]] = ()
    """Of each line a swatch, what it stands for, and whether it is a level, which is named where it ends."""
    note: str = ""
    narrow: bool = False
    """Whether two stand side by side."""


@dataclass(frozen=True)
class Section:
    """Charts of one kind, under a heading."""

    id: str
    title: str
    text: str
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Pictures:
    """What a store adds to the page, and why something is not there."""

    ladder: gallery.Ladder | None = None
    queries: Sequence[gallery.Query] = ()
    alike: Sequence[tuple[str, int, int]] = ()
    missing: Sequence[str] = ()


def write(
    findings: Findings, path: str | Path, store: Latents | None = None, model: VDVAE | None = None
) -> None:
    """Write the page of what was found, in place of an earlier page of this package alone.

    Args:
        findings: of a report, or of a results folder.
        path: ends in `.html`.
        store: of the images that the results are of, for pictures and KL by layer.
        model: that the store was extracted with, for reconstructions.

    Raises:
        TaskError: nothing was found, another file is in the way, or the page cannot be written.
        StoreError: the store is of other images or weights than the results.
    """
    path = path_of("path", path)
    check(path)
    if not findings.rows and not findings.similarity:
        raise TaskError("page: expected results to show, found none")
    if store is not None:
        expect_of_results(store, findings)
    try:
        write_text(path, render(findings, store, model))
    except OSError as error:
        raise TaskError(
            f"{path}: cannot be written ({error.strerror or error}); choose another path"
        ) from error


def check(path: Path) -> None:
    """Refuse a page that cannot be written, before it takes time to make.

    Raises:
        TaskError: its name does not end in .html, or another file is there.
    """
    if path.suffix != ".html":
        raise TaskError(f"{path}: expected a page's name, which ends in .html")
    if os.path.lexists(path) and not is_own(path):
        raise TaskError(
            f"{path}: exists, and is no page of vdvae-repr, so it is not replaced; choose another path"
        )


def expect_of_results(store: Latents, findings: Findings) -> None:
    """Refuse a store of other images or weights than those of the results, or that was read otherwise.

    Raises:
        StoreError: says which differ.
    """
    own = next((row for row in findings.rows if row.role == "model"), None)
    info = store.info
    compared = findings.similarity[""].record if "" in findings.similarity else None
    if compared is not None:
        if not compared:
            raise StoreError(
                f"{store.path}: expected results that say which images they are of, found a comparison of "
                "layers without; run compare again"
            )
        _expect_images(store, compared.get("images", ""), compared.get("images_sha256"), "compared")
        sides = [
            (compared.get(f"{side}_weights_sha256"), compared.get(f"{side}_reading"))
            for side in ("rows", "columns")
        ]
        readings = [reading for weights, reading in sides if weights == info.weights_sha256]
        if own is None and not readings:
            raise StoreError(
                f"{store.path}: expected a store that was compared, of {compared.get('rows_model')} or "
                f"{compared.get('columns_model')} with the weights of then, found {info.model} "
                f"{info.weights_sha256[:12]}; give one of those"
            )
        if own is None:
            _expect_reading(store, readings, "compared")
    if own is None:
        return
    _expect_images(store, own.source, findings.record.get("images_sha256"), "probed")
    if own.weights_sha256 and own.weights_sha256 != info.weights_sha256:
        raise StoreError(
            f"{store.path}: expected latents of the weights of the results, {own.model} "
            f"{own.weights_sha256[:12]}, found {info.model} {info.weights_sha256[:12]}; give the store that "
            "was probed"
        )
    _expect_reading(store, [findings.record.get("reading")], "probed")


def _expect_reading(store: Latents, readings: Sequence[str | None], done: str) -> None:
    """Refuse a store that was cropped, drawn or pooled otherwise than all of some, where these are known.

    Raises:
        StoreError: says which differ.
    """
    found = store.info.reading_in_words
    if None not in readings and found not in readings:
        raise StoreError(
            f"{store.path}: expected latents read as those of the results ({readings[0]}), found others "
            f"({found}); give the store that was {done}"
        )


def _expect_images(store: Latents, source: str, sha256: str | None, done: str) -> None:
    """Refuse a store of other images than those of a source, with that hash where it is known.

    Raises:
        StoreError: says which differ.
    """
    info = store.info
    same_images = source == info.source or info.source in source.split(" -> ")
    if not same_images or (sha256 and info.source_sha256 and sha256 != info.source_sha256):
        what = info.source if not same_images else f"another version of {info.source}"
        raise StoreError(
            f"{store.path}: expected the images of the results, {source}, found {what}; give the store "
            f"that was {done}"
        )


def render(findings: Findings, store: Latents | None = None, model: VDVAE | None = None) -> str:
    """Return the page as text: see `write`."""
    asked = list(summary.asked_of(findings.rows, findings.comparisons, findings.beside))
    sections = [
        section
        for section in (
            _by_layer(asked),
            _comparisons(asked),
            _others(asked, findings.called),
            _other_selections(asked),
            _rate_accuracy(findings, asked),
            _kl_by_layer(findings, asked, store),
            _curves(findings, "cmc"),
            _curves(findings, "roc"),
            _curves(findings, "dir"),
            _confusions(findings),
            _shots(asked),
            _factors(findings),
            _sampling(findings),
            _similarity(findings),
        )
        if section.figures
    ]
    return _template().render(
        generator=GENERATOR,
        version=version(),
        title=_title(findings),
        headlines=findings.headlines or _headlines(findings),
        lead=summary.lead(asked) or _lead_of_similarity(findings),
        warnings=list(summary.warnings(asked)) if asked else [],
        answer=[_answer_row(one) for one in asked],
        columns=summary.columns(asked),
        beside=list(summary.beside(asked)),
        legend=summary.legend(asked) if asked else "",
        sections=sections,
        pictures=_pictures(findings, asked, store, model),
        table=_table(findings.rows),
        provenance=list(_provenance(findings, store)),
        notes=findings.notes,
        open=OPEN,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = lambda text: printable(str(text))
    folder = files("vdvae_repr.report") / "templates"
    environment.globals["css"] = (folder / "page.css").read_text(encoding="utf-8")
    environment.globals["js"] = (folder / "page.js").read_text(encoding="utf-8")
    return environment.from_string((folder / "page.html").read_text(encoding="utf-8"))


# The answer


def _title(findings: Findings) -> str:
    if not findings.rows:
        return "How alike layers are"
    first = findings.rows[0]
    return f"{first.task} on {first.source}"


def _headlines(findings: Findings) -> list[str]:
    """Return what was asked of how much, where nothing but rows is left of a run."""
    sizes = dict.fromkeys((row.protocol, row.n_train, row.n_test) for row in findings.rows)
    return [f"{name}: {train} training + {test} test images" for name, train, test in sizes]


def _lead_of_similarity(findings: Findings) -> summary.Lead | None:
    """Return which layers are most alike, where that is all that was asked."""
    found = next(iter(findings.similarity.values()), None)
    if found is None:
        return None
    values = found.cka.copy()
    if found.layers == found.other_layers:
        np.fill_diagonal(values, -np.inf)
    row, column = np.unravel_index(values.argmax(), values.shape)
    figure = short(float(values[row, column]))
    sentence = (
        f"Most alike are {found.layers[row]} and {found.other_layers[column]}, with a debiased linear CKA of "
        f"{figure}; of shuffled images it is {short(float(found.shuffled[row, column]))}."
    )
    return summary.Lead(figure, "debiased linear CKA", sentence, None)


def _answer_row(one: Asked) -> dict[str, Any]:
    """Return a row of the answer's table: the cells of the text's table, the verdict, and its look."""
    return {
        "cells": summary.cells_of(one),
        "verdict": summary.verdict(one),
        "look": _look_of(one.worst.verdict if one.worst else None),
    }


def _look_of(verdict: str | None) -> str:
    return {"better": "better", "worse": "worse", UNDECIDED: "undecided"}.get(verdict or "", "none")


# Charts of rows


def _told(row: Result) -> str:
    """Return all that is to be said of a row's value, in a line."""
    picked = ", picked by training data" if row.chosen and row.role == "model" else ""
    value = with_interval(row.value, row.ci_low, row.ci_high)
    return f"{layer_of(row) or row.model}: {value}{picked}"


def _point(x: float, row: Result) -> Point:
    chosen = row.chosen and row.role == "model"
    return Point(x, row.value, _told(row), row.ci_low, row.ci_high, chosen)


def _y_label(row: Result) -> str:
    lower = ", lower is better" if row.metric in LOWER_IS_BETTER else ""
    return metric_words(row.metric, row.at) + lower


def _control(one: Asked, name: str) -> Result | None:
    """Return a control's chosen row, else its best."""
    own = [row for row in one.rows if row.model == name]
    own = [row for row in own if row.chosen] or own
    best = min if one.rows[0].metric in LOWER_IS_BETTER else max
    return best(own, key=lambda row: row.value, default=None)


def _levels(one: Asked, names: Iterable[str] = CONTROLS) -> list[Across]:
    """Return controls, and chance, as lines across."""
    found = [(name, _control(one, name)) for name in names]
    levels = [
        Across(f"{summary.control_name(name)} {short(row.value)}", name, row.value)
        for name, row in found
        if row is not None
    ]
    chance = one.rows[0].chance
    if chance is not None:
        levels.append(Across(f"chance {short(chance)}", "chance", chance))
    return levels


def _legend(series: Sequence[Series], levels: Sequence[Across] = ()) -> list[tuple[str, str, bool]]:
    found = [(charts.swatch(line.look), line.label, False) for line in series]
    points = [point for line in series for point in line.points]
    if series[0].bands and any(point.low is not None for point in points):
        found.append((charts.swatch(series[0].look, "band"), "95 % interval", False))
    if any(point.chosen for point in points):
        found.append((charts.swatch(series[0].look, "star"), "picked by training data", False))
    return found + [(charts.swatch(level.look), level.label, True) for level in levels]


def _kinds(one: Asked) -> dict[tuple[str | None, str | None], list[Result]]:
    """Return a head's own rows by feature and pooling."""
    found: dict[tuple[str | None, str | None], list[Result]] = {}
    for row in one.own:
        found.setdefault((row.feature, row.pool), []).append(row)
    return found


def _by_layer(asked: Sequence[Asked]) -> Section:
    figures = []
    for one in asked if not _are_factors(asked) else ():
        kinds = _kinds(one)
        for (feature, pool), own in kinds.items():
            title = one.label
            if len(kinds) > 1:
                title += f", {feature}" + (f" pooled {pool}" if pool else "")
            if figure := _layer_figure(one, own, title):
                figures.append(figure)
    text = (
        "What one layer tells by itself, and what all layers up to it tell together. Layers run from the "
        "coarsest to the finest. Controls are lines across, but for random weights, which have layers too."
    )
    return Section("layers", "By layer", text, figures)


def _layer_figure(one: Asked, own: Sequence[Result], title: str) -> Figure | None:
    """Return single layers, sets of layers, random weights and models beside, over the layers."""
    singles = [row for row in own if row.selection == "single"]
    sets = [row for row in own if row.selection == "cumulative"]
    names = [str(row.layer) for row in singles or sets]
    if len(names) < 2:
        return None
    place = {name: number for number, name in enumerate(names)}
    series = []
    if singles:
        points = [_point(place[str(row.layer)], row) for row in singles]
        series.append(Series("one layer", "s0", points))
    if sets and len(sets) in (len(names), len(names) - 1):
        # The first set is the first layer, which is a single one where both were asked for.
        later = [_point(len(names) - len(sets) + number, row) for number, row in enumerate(sets)]
        if len(sets) < len(names):
            later.insert(0, replace(_point(0, singles[0]), tip="", chosen=False))
        series.append(Series("all layers up to it", "s1", later))
    kind = own[0].feature, own[0].pool
    levels = _levels(one, [name for name in CONTROLS if name != "random-init"])
    looks = iter(f"s{number}" for number in range(2, charts.SERIES))
    others = dict.fromkeys(row.model for row in one.rows if row.role == "model")
    for model in [name for name in others if name != own[0].model]:
        rows = [row for row in one.rows if row.model == model]
        alike = [r for r in rows if r.selection == "single" and (r.feature, r.pool) == kind]
        chosen = next((row for row in rows if row.chosen), None)
        look = next(looks, "s6")
        drawn = bool(alike) and all(str(row.layer) in place for row in alike)
        if drawn:
            label = f"{model}, one layer"
            series.append(Series(label, look, [_point(place[str(r.layer)], r) for r in alike]))
        if chosen is not None and not (drawn and chosen.selection == "single"):
            which = f", {layer_of(chosen)} together" if drawn else ""
            levels.append(Across(f"{model}{which} {short(chosen.value)}", look, chosen.value))
    random = [
        row
        for row in one.rows
        if row.model == "random-init"
        and (row.feature, row.pool) == kind
        and row.selection == (singles or sets)[0].selection
        and str(row.layer) in place
    ]
    if random:
        points = [
            Point(place[str(r.layer)], r.value, f"random weights, {_told(r)}") for r in random
        ]
        series.append(Series("random weights", "random-init", points))
    if not series:
        return None
    label = _y_label(own[0])
    svg = charts.layer_lines(f"{title}: {label} by layer", names, series, levels, label)
    return Figure(title, svg, _legend(series, levels))


def _other_selections(asked: Sequence[Asked]) -> Section:
    """Return what is left without each resolution, of selections of the user's, of pruned dimensions."""
    figures = []
    for one in asked if not _are_factors(asked) else ():
        every = {str(row.layer).partition(".")[0] for row in one.own if row.selection == "single"}
        dots = []
        for row in one.own:
            if row.selection not in ("without", "joint", "pruned"):
                continue
            name, left = layer_of(row), every - set(str(row.layer).split(","))
            if row.selection == "without" and len(left) == 1:
                name = name.replace(str(row.layer), f"without {left.pop()}")
            words = f"{row.dims:,} dimensions" if row.selection == "pruned" else ""
            look = "s3" if row.chosen else f"s{('without', 'joint', 'pruned').index(row.selection)}"
            words = " · ".join(filter(None, (short(row.value), words)))
            told = f"{name}: {_told(row).partition(': ')[2]}"
            dots.append(Dot(name, look, row.value, row.ci_low, row.ci_high, words, told))
        if dots:
            label = _y_label(one.own[0])
            svg = charts.dots(f"{one.label}: {label} of selections", dots, label)
            figures.append(Figure(one.label, svg, narrow=True))
    text = (
        "All layers but those of one resolution (without), those asked for together (joint), or only the "
        "latent dimensions of the highest KL (pruned). Bars are 95 % intervals."
    )
    return Section("selections", "Other selections of layers", text, figures)


def _rate_accuracy(findings: Findings, asked: Sequence[Asked]) -> Section:
    """Return what sets of layers tell over the nats that they spend, a line for each head."""
    figures = []
    parts = dict.fromkeys((o.own[0].metric, o.own[0].at, o.own[0].n_train) for o in asked)
    for metric, at, n_train in parts if not _are_factors(asked) else ():
        heads = [
            one
            for one in asked
            if (one.own[0].metric, one.own[0].at, one.own[0].n_train) == (metric, at, n_train)
        ]
        kinds = dict.fromkeys(kind for one in heads for kind in _kinds(one))
        for kind in kinds:
            series = []
            for number, one in enumerate(heads):
                points = []
                for row in _kinds(one).get(kind, ()):
                    spent = findings.nats.get(str(row.layer), 0.0)
                    if spent > 0 and row.selection in ("single", "cumulative"):
                        point = _point(spent, row)
                        points.append(replace(point, tip=f"{point.tip}, {spent:,.1f} nats"))
                if len(points) > 1:
                    look = f"s{number % charts.SERIES}"
                    points.sort(key=lambda point: point.x)
                    series.append(Series(one.label, look, points, bands=len(heads) < 3))
            if series:
                x = Axis.over(
                    "nats an image, spent up to and including the layer",
                    [point.x for line in series for point in line.points],
                    log=True,
                )
                label = _y_label(heads[0].own[0])
                chance = [level for level in _levels(heads[0], ()) if level.look == "chance"]
                title = "all layers up to each, by head"
                if len(kinds) > 1:
                    title += f", {' '.join(filter(None, kind))}"
                if len(parts) > 1:
                    title += f": {label}"
                svg = charts.lines(f"{title} over nats", series, chance, x, label, width=760)
                figures.append(Figure(title, svg, _legend(series)))
    text = (
        "How much the posterior tells beyond the prior (its KL, in nats) up to each layer, against what "
        "those layers are worth for the task: nats that buy nothing are of no use to it."
    )
    return Section("rate", "Rate and accuracy", text, figures)


def _kl_by_layer(findings: Findings, asked: Sequence[Asked], store: Latents | None) -> Section:
    """Return the KL of each layer: of the store, or from the sums that cumulative rows come with."""
    names: list[str] = []
    spent: list[float] = []
    if store is not None and store.has_kl:
        mean = store.kl.mean(axis=0, dtype=np.float64)
        known = [spec for spec in store.layers if spec.index < len(mean)]
        names, spent = [spec.name for spec in known], [float(mean[s.index]) for s in known]
    elif asked and findings.nats:
        singles = [str(row.layer) for row in asked[0].own if row.selection == "single"]
        names = list(dict.fromkeys(singles))
        if len(names) == len(findings.nats):
            spent = np.diff([0.0, *findings.nats.values()]).tolist()
    figures = []
    if len(spent) > 1:
        tips = [f"{name}: {nats:,.2f} nats" for name, nats in zip(names, spent, strict=True)]
        title = f"{sum(spent):,.0f} nats an image in all"
        svg = charts.layer_columns(f"KL by layer, {title}", names, spent, tips, "nats an image")
        figures.append(Figure(title, svg))
    text = (
        "The KL between posterior and prior of each layer, the images' mean: how much it is used."
    )
    return Section("kl", "KL by layer", text, figures)


def _comparisons(asked: Sequence[Asked]) -> Section:
    """Return the differences from each rival; of many heads, each from the rival by which it looks worst."""
    compared = [one for one in asked if one.comparisons]
    figures = []
    if len(compared) <= FEW:
        for one in compared:
            rows = [_dot(summary.control_name(c.versus), c) for c in one.comparisons]
            title = f"{one.label}: {summary.verdict(one)}"
            svg = charts.dots(f"Differences from controls by {title}", rows, DIFFERENCE, zero=True)
            figures.append(Figure(title, svg, narrow=True))
    else:
        rows = [
            _dot(f"{_factor(one)}, {summary.control_name(one.worst.versus)}", one.worst)
            for one in compared
            if one.worst is not None
        ]
        title = "Each beside the control by which it looks worst"
        figures.append(Figure(title, charts.dots(title, rows, DIFFERENCE, zero=True)))
    text = "What training data picked, less each control. " + MARKS.format(over="a head's controls")
    return Section("comparisons", "Beside the controls", text, figures)


def _others(asked: Sequence[Asked], called: Mapping[str, str]) -> Section:
    """Return the differences from each model beside, by head."""
    rows = [
        _dot(f"{one.label}, {called.get(c.versus, c.versus)}", c)
        for one in asked
        for c in one.others
    ]
    title = "Differences from models beside"
    figures = [Figure(title, charts.dots(title, rows, DIFFERENCE, zero=True))] if rows else []
    text = "What training data picked, less what they picked of each model beside. " + MARKS.format(
        over="a head's models beside"
    )
    return Section("others", "Beside other models", text, figures)


def _dot(label: str, one: Comparison) -> Dot:
    """Return a difference with its interval and p, and how it looks."""
    p = "no p" if one.p_value is None else f"p {short(one.p_value)}"
    if one.p_value is not None and one.p_value < 0.001:
        p = "p < .001"
    low, high = one.diff_low, one.diff_high
    words = with_interval(one.difference, low, high, sign=True)
    look = "undecided"
    if one.p_value is not None and one.p_value < ALPHA:
        look = "better" if one.difference > 0 else "worse"
    return Dot(label, look, one.difference, low, high, f"{words}, {p}", f"{label}: {words}, {p}")


def _factor(one: Asked) -> str:
    """Return the factor that a head is of, else the head."""
    return (one.label.partition(":")[2] or one.label).replace("_", " ")


# Curves


def _curves(findings: Findings, kind: str) -> Section:
    heading, label, text = CURVES[kind]
    figures = []
    of_kind = [curve for curve in findings.curves if curve.kind == kind]
    for head in dict.fromkeys(curve.head for curve in of_kind):
        curves = [curve for curve in of_kind if curve.head == head]
        bands = sum(curve.low is not None for curve in curves) < 3
        series = []
        models = 0
        for curve in curves:
            look = curve.model
            if curve.model not in CONTROLS:
                look, models = f"s{models % charts.SERIES}", models + 1
            name = " ".join(filter(None, (summary.control_name(curve.model), curve.layer)))
            points = [p for p in _curve_points(curve, name) if p.x > 0 or kind == "cmc"]
            if points:
                whole = ", ".join(f"{of} {short(value)}" for of, value in curve.figures.items())
                named = f"{name} ({whole})" if whole else name
                steps = kind != "cmc"
                series.append(Series(named, look, points, steps, markers=False, bands=bands))
        if not series:
            continue
        xs = [point.x for line in series for point in line.points]
        if kind == "cmc":
            x = Axis.over("rank", xs, log=max(xs) > 20)
        else:
            lowest = min(0.1, 10 * min(xs))  # a finer rate than ten impostors' is no estimate
            x = Axis.over("false accept rate", [lowest, 1.0], log=True)
            series = [_from(line, lowest) for line in series]
        if kind == "roc":
            rates = np.geomspace(lowest, 1, 30)
            points = [Point(rate, rate, f"chance: {short(rate)}") for rate in rates.tolist()]
            series.append(Series("chance", "chance", points, markers=False))
        title = f"{head}: {label} by {x.label}"
        svg = charts.lines(title, series, [], x, label, Axis.over(label, [0.0, 1.0]))
        figures.append(Figure(head, svg, _legend(series), narrow=True))
    return Section(kind, heading, text, figures)


def _curve_points(curve: Curve, name: str) -> Iterator[Point]:
    """Yield a curve's points, of many some that lie evenly on a logarithmic axis."""
    count = len(curve.x)
    if count <= MOST_POINTS:
        chosen = np.arange(count)
    else:
        spaced = np.geomspace(1, count, MOST_POINTS // 2), np.linspace(1, count, MOST_POINTS // 2)
        chosen = np.unique(np.concatenate(spaced).astype(int)) - 1
    for k in chosen.tolist():
        x, y = float(curve.x[k]), float(curve.y[k])
        low, high = (None if side is None else float(side[k]) for side in (curve.low, curve.high))
        if low == high:  # of too few units there is no interval
            low = high = None
        place = f"rank {x:g}" if curve.kind == "cmc" else f"false accept rate {x:.2g}"
        yield Point(x, y, f"{name}: {with_interval(y, low, high)} at {place}", low, high)


def _from(line: Series, lowest: float) -> Series:
    """Return a curve from a rate on: what held before it holds there."""
    before = [point for point in line.points if point.x < lowest]
    points = [point for point in line.points if point.x >= lowest]
    if before:
        points.insert(0, replace(before[-1], x=lowest))
    return replace(line, points=points)


def _confusions(findings: Findings) -> Section:
    """Return which class each head takes for which."""
    figures = []
    for found in findings.confusions:
        title = f"{found.head}: {layer_of(found)}"
        said = summary.confused(found)
        right, images = np.trace(found.counts), found.counts.sum()
        description = f"{right:,} of {images:,} test images are told right. {said}"
        svg = charts.counts(
            f"{title}: true and predicted classes",
            description,
            found.counts,
            found.shares,
            [printable(name) for name in found.classes],
        )
        scale = (charts.swatch("", "scale"), "share of a true class's images, from 0 to 1", False)
        narrow = len(found.classes) <= charts.MOST_NUMBERS // 2
        figures.append(Figure(title, svg, [scale], said, narrow))
    text = (
        "How many test images of each true class (rows) are taken for each class (columns), by the row of "
        "each head that the answer compares: on the diagonal are those told right."
    )
    return Section("confusion", "What is taken for what", text, figures)


def _shots(asked: Sequence[Asked]) -> Section:
    """Return few-shot accuracy over shots, of each head and its controls."""
    figures = []
    few = [one for one in asked if one.rows[0].task == "few_shot" and one.rows[0].at]
    for head in dict.fromkeys(one.rows[0].head for one in few):
        own = sorted(
            (one for one in few if one.rows[0].head == head), key=lambda one: one.rows[0].at or 0
        )
        if len(own) < 2:
            continue
        used = ", ".join(dict.fromkeys(layer_of(one.compared) for one in own))
        points = [_point(one.rows[0].at or 0, one.compared) for one in own]
        series = [Series(f"{own[0].own[0].model} {used}", "s0", points)]
        for name in CONTROLS:
            found = [(one.rows[0].at, _control(one, name)) for one in own]
            told = [
                Point(at or 0, row.value, f"{name}: {short(row.value)}") for at, row in found if row
            ]
            if told:
                series.append(Series(summary.control_name(name), name, told))
        x = Axis.over("shots (images a class to learn from)", [p.x for p in points], log=True)
        x = Axis(x.label, x.low, x.high, True, [(p.x, f"{p.x:g}") for p in points])
        chance = [level for level in _levels(own[0], ()) if level.look == "chance"]
        svg = charts.lines(f"{head}: accuracy by shots", series, chance, x, "accuracy")
        figures.append(Figure(head, svg, _legend(series), narrow=True))
    text = (
        "Accuracy by the number of images a class to learn from, of what was picked at each number."
    )
    return Section("shots", "Few-shot curves", text, figures)


# Maps


def _are_factors(asked: Sequence[Asked]) -> bool:
    return bool(asked) and asked[0].rows[0].task == "factors"


def _factors(findings: Findings) -> Section:
    """Return what each layer knows of each factor, a map for each metric."""
    figures = []
    rows = [row for row in findings.rows if row.task == "factors"]
    metrics = dict.fromkeys(row.metric for row in rows if row.role == "model")
    for metric in metrics:
        table = layer_by_factor(rows, metric)
        levels = {
            row.head.partition(":")[2]: row.chance
            for row in rows
            if row.metric == metric and row.chance
        }
        floor = np.array([levels.get(name, 0.0) for name in table.columns])
        values = table.to_numpy(dtype=np.float64)
        shades = (values - floor) / np.where(floor < 1, 1 - floor, 1)
        names = [f"{str(name).replace('_', ' ')}" for name in table.columns]
        title = LABELS_OF_FACTORS.get(metric, metric.replace("_", " "))
        svg = charts.grid(
            f"{title} of each factor by layer", values.T, names, list(table.index), shades.T, True
        )
        scale = (charts.swatch("", "scale"), "from 0, or a factor's chance level, to 1", False)
        figures.append(Figure(title, svg, [scale]))
    text = "What each layer tells of each known factor of the images."
    return Section("factors", "Layers and factors", text, figures)


def _similarity(findings: Findings) -> Section:
    figures = []
    for feature, found in findings.similarity.items():
        title = feature or "layers of both models"
        if found.record and not feature:  # what lies beside it may be of other stores
            models = " and ".join(
                f"{model} ({', '.join(filter(None, (side, feature)))})"
                for (model, feature), side in zip(found.sides, ("rows", "columns"), strict=True)
            )
            title = f"layers of {models}, images of {found.record.get('images')}"
        svg = charts.grid(
            f"Debiased linear CKA, {title}", found.cka, found.layers, found.other_layers
        )
        low, high = float(found.shuffled.min()), float(found.shuffled.max())
        note = f"Of shuffled images it is from {short(low)} to {short(high)}: no more than chance."
        scale = (charts.swatch("", "scale"), "from 0 to 1", False)
        figures.append(Figure(title, svg, [scale], note))
    text = (
        "Debiased linear CKA between layers: 0 (dark) where nothing is common, 1 (bright) where two are the "
        "same up to rotation and scale."
    )
    return Section("similarity", "How alike layers are", text, figures)


def _sampling(findings: Findings) -> Section:
    """Return what drawing z costs each layer, for each head, number of images, selection and pooling."""
    figures, costs = [], findings.sampling_costs
    for key in dict.fromkeys((c.head, c.n_train, c.selection, c.pool) for c in costs):
        own = [c for c in costs if (c.head, c.n_train, c.selection, c.pool) == key]
        if len(own) < 2:
            continue
        names = [str(cost.layer) for cost in own]
        kinds: dict[str, Callable[[Any], float]] = {
            "mean": lambda cost: cost.mean,
            "one draw of z": lambda cost: cost.one_z,
            f"mean of {own[0].draws} draws": lambda cost: cost.mean_of_z,
        }
        series = [
            Series(
                label,
                f"s{number}",
                [
                    Point(x, value(cost), f"{cost.layer}, {label}: {short(value(cost))}")
                    for x, cost in enumerate(own)
                ],
            )
            for number, (label, value) in enumerate(kinds.items())
        ]
        together = "layers together" if key[2] == "cumulative" else None
        title = ", ".join(str(part) for part in (key[0], together, key[3]) if part)
        label = metric_words(own[0].metric)
        svg = charts.layer_lines(f"{title}: what drawing costs", names, series, [], label)
        figures.append(Figure(title, svg, _legend(series)))
    text = "What is lost where z is drawn from the posterior, in place of its mean."
    return Section("sampling", "What drawing costs", text, figures)


# Pictures, the table, where it comes from


def _pictures(
    findings: Findings, asked: Sequence[Asked], store: Latents | None, model: VDVAE | None
) -> Pictures:
    if store is None:
        return Pictures()
    missing, found = [], None
    queries: list[gallery.Query] = []
    if model is None:
        missing.append("No reconstructions, as no model was given that makes them.")
    else:
        try:
            found = gallery.ladder(store, model)
        except OtherWeightsError:
            raise
        except StoreError as error:
            missing.append(f"No reconstructions: {error}.")
    if not store.has_images:
        missing.append("No nearest images, as the store keeps none.")
    else:
        singles = [(one.best(single=True), one.label) for one in asked]
        nearest = [row for row, label in singles if row and label.startswith(NEAREST)]
        single = next(iter([*nearest, *(row for row, _ in singles if row)]), None)
        feature = single.feature if single and single.feature else store.default_feature
        try:
            queries = gallery.neighbours(store, feature, single.layer if single else None)
        except LayerError as error:
            missing.append(f"No nearest images: {error}.")
    alike = [(name, right, of) for name, (right, of) in gallery.count_alike(queries).items() if of]
    return Pictures(found, queries, alike, missing)


@dataclass(frozen=True)
class Table:
    """All rows: cells of the columns in which they differ, what is the same in all, and the whole as CSV."""

    columns: Sequence[tuple[str, str, bool]]
    """Name, heading and whether it is numbers."""
    rows: Sequence[Sequence[tuple[str, str]]]
    """Of each cell what is shown, and what it is sorted by."""
    same: Sequence[tuple[str, str]]
    csv: str


def _table(rows: Sequence[Result]) -> Table:
    varying = [
        name for name in COLUMNS if name in ALWAYS or len({getattr(row, name) for row in rows}) > 1
    ]
    same = [
        (COLUMNS[name], printable(str(getattr(rows[0], name))))
        for name in COLUMNS
        if rows and name not in varying and getattr(rows[0], name) is not None
    ]
    numeric = {
        name: all(isinstance(getattr(row, name), int | float | None) for row in rows)
        for name in varying
    }
    table = [[_cell(name, getattr(row, name)) for name in varying] for row in rows]
    columns = [(name, COLUMNS[name] or "picked", numeric[name]) for name in varying]
    return Table(columns, table, same, as_csv(to_frame(rows)))


def _cell(name: str, value: Any) -> tuple[str, str]:
    """Return what a cell shows, and what it is sorted by."""
    if name == "chosen":
        return ("\N{BLACK STAR}" if value else "", str(int(value)))
    if value is None:
        return "", ""
    if isinstance(value, int):
        return f"{value:,}", str(value)
    if isinstance(value, float):
        form = {"at": "g", "difference": "+.3f", "p_value": ".4f"}.get(name, ".3f")
        return f"{value:{form}}", repr(value)
    return (printable(value),) * 2


def _provenance(findings: Findings, store: Latents | None) -> Iterator[tuple[str, str]]:
    own = next((row for row in findings.rows if row.role == "model"), None)
    if own is not None:
        yield "model", own.model
        yield "weights, SHA-256", own.weights_sha256 or "not recorded"
        yield "images of", own.source
        yield "seed", str(own.seed)
        left_out = own.controls_left_out
        yield "controls left out", left_out or "none"
    names = {
        "images_sha256": "images, SHA-256",
        "created": "probed",
        "version": "vdvae-repr",
    }
    for name, value in findings.record.items():
        yield names.get(name, name), value
    for similarity in findings.similarity.values():
        if own is None or similarity is findings.similarity.get(""):
            for name, value in similarity.record.items():
                yield f"compared: {name.replace('_', ' ')}", value
    if store is not None:
        yield "store: of each image", store.info.images_in_words
        for name in ("z", "draws", "pool", "created", "precision"):
            if (value := getattr(store.info, name)) is not None:
                yield f"store: {name}", str(value)
    if findings.more_heads:
        yield "heads not asked for", ", ".join(findings.more_heads)
