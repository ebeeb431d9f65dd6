"""Pictures of rows and curves, as a paper prints them: a function draws on `ax`, and returns the axes.

Without `ax` it draws on a figure of its own, 7 inches wide, as the text of a page is;
`ax.figure.savefig("layers.pdf")` saves it. A model keeps its color in every picture; controls are black, and
told apart by line and marker.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vdvae_repr.data.names import natural_key
from vdvae_repr.errors import TaskError, printable
from vdvae_repr.results import (
    ALPHA,
    LOWER_IS_BETTER,
    METRIC_NAMES,
    Confusion,
    Curve,
    Result,
    layer_by_roi,
    layer_of,
    layer_place,
    resolution_edges,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vdvae_repr.results import SamplingCost

# The palette of Okabe and Ito (2008), which color-blind readers can tell apart, without its yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
CONTROLS: dict[str, dict[str, Any]] = {
    "pixels": {"linestyle": "--", "marker": "s"},
    "pca": {"linestyle": "-.", "marker": "^"},
    "random-init": {"linestyle": "-", "marker": "x"},
    "shuffled-labels": {"linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "+"},
}
CONTROL: dict[str, Any] = {  # what all controls have in common
    "color": "black",
    "linewidth": 0.8,
    "markersize": 4,
    "markerfacecolor": "white",
    "markeredgewidth": 0.8,
}
CHANCE: dict[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 0.8}
WIDTH, HEIGHT = (
    7.0,
    3.4,
)  # inches: the text of a page, so that letters are as large as they are printed
SMALL, TEXT = 7, 8  # points
NAME, TITLE = (
    36,
    150,
)  # characters of a name from a file, and of a title with several, that are drawn
CELLS, CLASSES = 20, 40  # classes whose counts are written into a confusion, and that are named
SHOTS = "shots (images a class to learn from)"
GROUPS = ("identity", "nuisance")  # first words of factors' names that say what they are of


def layers(
    rows: Sequence[Result],
    metric: str | None = None,
    head: str | None = None,
    ax: Axes | None = None,
    *,
    called: Mapping[str, str] | None = None,
) -> Axes:
    """Draw a metric by layer, coarsest first, with 95 % intervals, controls and chance; stars are chosen.

    All layers up to one are a dashed line at the last of them; other layers together follow the single ones,
    and then the layers of models beside, where these have other names. Random-init is drawn by layer, other
    controls at their chosen row, or at their best one where none is chosen.

    Args:
        rows: of one task and source, and of one feature and pooling of each model.
        metric: that of the first row if not given.
        head: one of the rows' heads; if not given all of them, one line each.
        ax: to draw on.
        called: what a legend calls models, where that is not their name.

    Raises:
        TaskError: nothing can be drawn of these rows, or they are of several runs.
    """
    run = RowSelection.read(rows, metric, head, called=called)
    ax = ax or _axes()
    _draw_layers(ax, run, LayerAxis.of(run))
    entitle(ax, run.title)
    _legend(ax, _entries(ax, run))
    return ax


def layer_panels(
    rows: Sequence[Result],
    metric: str | None = None,
    *,
    called: Mapping[str, str] | None = None,
) -> Figure:
    """Draw what `layers` draws, each head in a panel of its own, and each number of shots in a column.

    Raises:
        TaskError: as `layers`.
    """
    every = RowSelection.read(rows, metric, key=("head", "layer", "n_train"), called=called)
    sizes = sorted({row.n_train for row in every.rows}) if every.is_few_shot else [None]
    axis = LayerAxis.of(every)
    lower = max(len(drawable(name)) for name in axis.names)
    width = max(WIDTH, 1.2 + 3.2 * len(sizes))
    names = 0.06 * max(0, lower - 8)  # longer names take room below
    figure = _figure(width, 1.3 + 1.9 * len(every.heads) + names)
    panels = figure.subplots(len(every.heads), len(sizes), squeeze=False, sharex=True, sharey=True)
    entries: dict[str, Any] = {}
    for line, head in enumerate(every.heads):
        for column, size in enumerate(sizes):
            panel = panels[line, column]
            own = [row for row in rows if size in (None, row.n_train)]
            run = RowSelection.read(own, metric or every.metric, head, called=called)
            _draw_layers(panel, run, axis)
            shown = head_name(head)
            if size is not None:
                shown += f", {_shots(run.own[0])}"
            entitle(panel, shown)
            panel.label_outer()
            entries |= {artist.get_label(): artist for artist in _entries(panel, run)}
    for panel in panels[:, 1:].ravel():
        panel.set_ylabel("")
    _finish(figure, every.titled(sizes[0] if len(sizes) == 1 else None), entries)
    return figure


def cumulative(
    rows: Sequence[Result],
    nats: ArrayLike,
    metric: str | None = None,
    head: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric of the first layers together over the nats that they spend, with 95 % intervals.

    Controls are lines across, as in `layers`; random-init too, because the nats are not its own. The axis is
    logarithmic where all nats are positive.

    Args:
        rows: of layers taken together, from the coarsest on (`0:1`, `0:2`, or `<=4x4`, `<=8x8`).
        nats: an image, spent in the layers of each selector (K,), in the order of the rows.
        metric: that of the first row if not given.
        head: one of the rows' heads; if not given all of them, one line each.
        ax: to draw on.

    Raises:
        TaskError: nothing can be drawn of these rows, or nats are not one for each selector.
    """
    run = RowSelection.read(rows, metric, head)
    names = list(dict.fromkeys(str(row.layer) for row in run.own))
    spent = np.asarray(nats, dtype=np.float64)
    if spent.shape != (len(names),) or not np.isfinite(spent).all() or spent.min() < 0:
        raise TaskError(
            f"expected {len(names)} nats, none negative, one for each of {_listed(names)}; found "
            f"{spent.tolist()}"
        )
    ax = ax or _axes()
    at = dict(zip(names, spent.tolist(), strict=True))
    for line in run.lines(run.models[:1]):
        _line(ax, line, [at[str(row.layer)] for row in line.rows])
    for control in CONTROLS:
        _across(ax, run, control)
    _chance(ax, run)
    if spent.min() > 0:
        ax.set_xscale("log")
    scale, (left, right) = ax.get_xaxis_transform(), ax.get_xlim()
    start, stop, *places = scale.transform([(x, 0) for x in (left, right, *at.values())])[:, 0]
    last = -np.inf
    for name, place in zip(names, places, strict=True):
        if place - last > 0.03 * (stop - start):  # else it would cover the name before
            _above(ax, at[name], name, upright=True)
            last = place
    ax.set_xlabel("rate of the layers together (nats an image)")
    ax.set_ylabel(_metric_of(run.own[0]))
    entitle(ax, run.title)
    _legend(ax, _entries(ax, run))
    return ax


def noise(rows: Sequence[SamplingCost], ax: Axes | None = None) -> Axes:
    """Draw a layer's mean, one z and the mean of several; a ring is a draw that differs from the mean.

    Differs: p < 0.05 in the paired test, not corrected for the number of layers.

    Args:
        rows: of one head, one number of training images, one selection and one pooling.
        ax: to draw on.

    Raises:
        TaskError: no rows, or of several runs.
    """
    from matplotlib.lines import Line2D

    if not rows:
        raise TaskError("expected rows to draw, found none")
    head, metric, draws = (
        _one((getattr(r, c) for r in rows), c) for c in ("head", "metric", "draws")
    )
    several = "number of training images, selection and pooling"
    _, selection, _ = _one(((row.n_train, row.selection, row.pool) for row in rows), several)
    ax = ax or _axes()
    at = range(len(rows))
    series = {"mean": "mean", "one_z": "z, one draw", "mean_of_z": f"z, mean of {draws} draws"}
    for index, (column, label) in enumerate(series.items()):
        values = [getattr(row, column) for row in rows]
        look = _look(index)
        ax.plot(at, values, label=label, linewidth=1.4, markersize=3.2, zorder=4, **look)
        if column == "mean":
            continue
        p_values = [getattr(row, f"p_{column}") for row in rows]  # None of too few units
        apart = [i for i, p in enumerate(p_values) if p is not None and p < ALPHA]
        rings = {"facecolors": "none", "edgecolors": look["color"]}
        ax.scatter(apart, [values[i] for i in apart], s=60, zorder=5, **rings)
    _name_layers(ax, [str(row.layer) for row in rows])
    ax.set_ylabel(metric_name(metric))
    together = ", layers together" if selection == "cumulative" else ""
    entitle(ax, f"What drawing costs: {head_name(head)}{together}")
    ring = Line2D([], [], color="0.4", marker="o", markersize=7, fillstyle="none", linestyle="none")
    ring.set_label("differs from the mean, p < 0.05")
    _legend(ax, [*_entries(ax), ring])
    return ax


def shots(
    rows: Sequence[Result],
    layer: str | None = None,
    metric: str | None = None,
    head: str | None = None,
    ax: Axes | None = None,
    *,
    called: Mapping[str, str] | None = None,
) -> Axes:
    """Draw few-shot accuracy over shots, one line for each head, with 95 % intervals, controls and chance.

    Of each head and number of shots the row is drawn that validation chose, or else the one that is compared,
    all layers together, or that of `layer`; never the best one, which the test classes alone can tell.
    Controls are drawn at their chosen row, or at their best one where none is chosen; with `layer`,
    random-init at that layer.

    Args:
        rows: of protocol `few-shot`, of one source and number of ways, with any shots.
        layer: to draw, where none was chosen, or instead.
        metric: that of the first few-shot row if not given.
        head: one of the rows' heads; if not given all of them, one line each.
        ax: to draw on.
        called: what a legend calls models, where that is not their name.

    Raises:
        TaskError: nothing can be drawn of these rows, or no layer is chosen and none is given.
    """
    run, ways = _few_shot(rows, metric, head, called)
    ax = ax or _axes()
    _draw_shots(ax, run, ways, layer)
    entitle(ax, run.title)
    _legend(ax, _entries(ax, run, stars=False))
    return ax


def shot_panels(
    rows: Sequence[Result],
    layer: str | None = None,
    metric: str | None = None,
    *,
    called: Mapping[str, str] | None = None,
) -> Figure:
    """Draw what `shots` draws, each head in a panel of its own, with the controls of that head.

    Raises:
        TaskError: as `shots`.
    """
    every, ways = _few_shot(rows, metric, None, called)
    columns = 2 if len(every.heads) == 4 else min(3, len(every.heads))
    lines = -(-len(every.heads) // columns)
    figure = _figure(max(4.2, 2.5 * columns), 1.2 + 1.9 * lines)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    entries: dict[str, Any] = {}
    for number, (panel, head) in enumerate(zip(panels, every.heads, strict=False)):
        run, _ = _few_shot(rows, metric, head, called)
        _draw_shots(panel, run, ways, layer)
        entitle(panel, head)
        panel.label_outer()
        last = number + columns >= len(every.heads)  # of its column
        panel.xaxis.set_tick_params(labelbottom=last)
        panel.set_xlabel(SHOTS if last else "")
        entries |= {artist.get_label(): artist for artist in _entries(panel, run, stars=False)}
    for panel in panels[len(every.heads) :]:
        panel.remove()
    _finish(figure, every.title, entries)
    return figure


def _few_shot(
    rows: Sequence[Result],
    metric: str | None,
    head: str | None,
    called: Mapping[str, str] | None,
) -> tuple[RowSelection, int]:
    """Return the few-shot rows, and their number of ways."""
    few = [row for row in rows if row.protocol == "few-shot" and row.chance]
    if not few:
        raise TaskError("expected rows of protocol few-shot, found none; run the task few_shot")
    run = RowSelection.read(few, metric, head, key=("head", "layer", "n_train"), called=called)
    return run, _one((round(1 / row.chance) for row in run.own if row.chance), "number of ways")


def _stands(row: Result) -> bool:
    """Whether a row stands for its model: it is chosen, or compared, as all layers are where none is."""
    return row.chosen or row.versus is not None


def _draw_shots(ax: Axes, run: RowSelection, ways: int, layer: str | None) -> None:
    drawn = replace(
        run, rows=[row for row in run.rows if (row.layer == layer if layer else _stands(row))]
    )
    if not drawn.own:
        what = f"layer {layer!r}" if layer else "chosen layer"
        names = _listed(row.layer for row in run.own)
        raise TaskError(f"the rows hold no {what}; pass layer=, one of {names}")
    for line in drawn.lines():
        rows = sorted(line.rows, key=lambda row: row.n_train)
        used = ", ".join(dict.fromkeys(str(row.layer) for row in rows))
        shown = replace(line, rows=rows, label=f"{line.label} ({used})")
        _line(ax, shown, [row.n_train / ways for row in rows], stars=False)
    sizes = sorted({row.n_train for row in drawn.rows})
    for control in CONTROLS:
        at = layer if control == "random-init" else None
        _thin(ax, run, control, [(size / ways, run.control(control, at, size)) for size in sizes])
    _chance(ax, run)
    ax.set_xscale("log")
    ax.set_xticks([size / ways for size in sizes], [f"{size / ways:g}" for size in sizes])
    ax.minorticks_off()
    ax.set_xlabel(SHOTS)
    ax.set_ylabel(f"{metric_name(run.metric)}, {ways} ways")


def cmc(
    curves: Sequence[Curve],
    ax: Axes | None = None,
    *,
    called: Mapping[str, str] | None = None,
) -> Axes:
    """Draw cumulative match curves, and what guesses reach: how often the right person is among the first r.

    Args:
        curves: of kind `cmc`, of one head, as `report.curves` holds them; bands are the intervals of models.
        ax: to draw on.
        called: what a legend calls models, where that is not their name.

    Raises:
        TaskError: no such curve, or one whose sides are not of one length.
    """
    from matplotlib.ticker import MaxNLocator

    known = _curves(curves, "cmc")
    ax = ax or _axes()
    _draw_curves(ax, known, called or {}, "default")
    last = max(float(curve.x.max()) for curve in known)
    ranks = np.array([1.0, max(last, 1.0)])
    ax.plot(ranks, ranks / ranks[1], label="chance", zorder=1, **CHANCE)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(1, max(last, 1 + 1e-9))
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("rank")
    ax.set_ylabel("identification rate")
    _legend(ax, [*_entries(ax), *_interval(known)])
    return ax


def roc(
    curves: Sequence[Curve],
    ax: Axes | None = None,
    *,
    called: Mapping[str, str] | None = None,
) -> Axes:
    """Draw true accept rates over false accept rates, on a logarithmic axis; AUC and EER are in the legend.

    It begins at the rate at which ten impostors pass, as a finer one is no estimate; at 0.1 at most.

    Args:
        curves: of kind `roc`, of one head, as `report.curves` holds them; bands are the intervals of models.
        ax: to draw on.
        called: what a legend calls models, where that is not their name.

    Raises:
        TaskError: no such curve, one whose sides are not of one length, or no false accept rate above zero.
    """
    known = _curves(curves, "roc")
    ax = ax or _axes()
    lowest = _over_false_accepts(ax, known, called or {})
    rates = np.geomspace(lowest, 1, 100)
    ax.plot(rates, rates, label="chance", zorder=1, **CHANCE)
    ax.set_ylabel("true accept rate")
    _legend(ax, [*_entries(ax), *_interval(known)])
    return ax


def detection(
    curves: Sequence[Curve],
    ax: Axes | None = None,
    *,
    called: Mapping[str, str] | None = None,
) -> Axes:
    """Draw how often people who are known are detected and identified, over the rate at which strangers pass.

    As `roc`, it begins where ten strangers pass.

    Args:
        curves: of kind `dir`, of one head, as `report.curves` holds them; bands are the intervals of models.
        ax: to draw on.
        called: what a legend calls models, where that is not their name.

    Raises:
        TaskError: no such curve, one whose sides are not of one length, or no false accept rate above zero.
    """
    known = _curves(curves, "dir")
    ax = ax or _axes()
    _over_false_accepts(ax, known, called or {})
    ax.set_ylabel("detection and identification rate")
    _legend(ax, [*_entries(ax), *_interval(known)])
    return ax


def _over_false_accepts(ax: Axes, known: Sequence[Curve], called: Mapping[str, str]) -> float:
    """Draw curves over false accept rates from the lowest that is an estimate, and return that."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    steps = [np.diff(np.unique([0.0, *curve.x])).min() for curve in known if (curve.x > 0).any()]
    if not steps:
        raise TaskError("expected false accept rates above zero, found none")
    lowest = float(min(0.1, 10 * min(steps)))  # a step is one impostor
    _draw_curves(ax, known, called, "steps-post")  # between two points the stricter threshold holds
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if lowest > 0.005 else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(lowest, 1)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("false accept rate")
    return lowest


def similarity(
    matrix: ArrayLike,
    names: Sequence[str],
    other_names: Sequence[str] | None = None,
    ax: Axes | None = None,
    *,
    models: tuple[str, str] | None = None,
    shuffled: ArrayLike | None = None,
) -> Axes:
    """Draw the similarity (CKA) of layers as a map from 0 to 1, with lines where the resolution changes.

    Args:
        matrix: (K, L), a row for each of `names`, a column for each of `other_names`.
        names: of layers, K.
        other_names: of another model's layers, L; the same layers if not given.
        ax: to draw on.
        models: whose layers they are, for the axes.
        shuffled: what is found where images are shuffled (K, L), for the title: what of the map is chance.

    Raises:
        TaskError: a matrix of another shape.
    """
    columns = names if other_names is None else other_names
    values = _matrix(matrix, names, columns)
    ax = ax or _axes(5.2, 4.6)
    image = ax.imshow(values, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    _color_bar(ax, image, "debiased linear CKA")
    _name_cells(ax, *([drawable(name) for name in side] for side in (names, columns)))
    ax.set_xlabel("layer" if other_names is None else "layer of the other model")
    if models is not None:
        ax.set_ylabel(drawable(f"layer of {models[0]}"))
        ax.set_xlabel(drawable(f"layer of {models[1]}"))
    title = "Similarity of layers"
    if shuffled is not None:
        low, high = np.min(shuffled), np.max(shuffled)
        title += f" (images shuffled: {low:.2f} to {high:.2f})".replace("-0.00", "0.00")
    entitle(ax, title)
    return ax


def confusion(found: Confusion, ax: Axes | None = None) -> Axes:
    """Draw which class is taken for which as a map: the share of each true class's images, from 0 to 1.

    Of up to 20 classes the counts are written into the cells; more than 40 are not named.

    Args:
        found: of a head, as `report.confusions` holds them.
        ax: to draw on.

    Raises:
        TaskError: counts of another shape than the classes are many, or none at all.
    """
    counts = _matrix(found.counts, found.classes, found.classes).astype(np.int64)
    shares, number = found.shares, len(found.classes)
    names = [drawable(name, 24) for name in found.classes] if number <= CLASSES else []
    longest = 0.06 * max(map(len, names), default=0)  # inches
    turned = number * longest > 3.6
    ax = ax or _axes(5 + longest, 4.2 + (longest if turned else 0))
    image = ax.imshow(shares, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    if number <= CELLS:
        size = min(SMALL, 400 / number / len(str(counts.max())))
        for (row, column), count in np.ndenumerate(counts):
            color = "black" if shares[row, column] > 0.5 else "white"
            if count:
                ax.text(
                    column, row, str(count), color=color, ha="center", va="center", fontsize=size
                )
    _color_bar(ax, image, "share of the true class's images")
    size = min(SMALL, 200 / number) if names else SMALL
    ax.set_xticks(range(len(names)), names, fontsize=size, rotation=90 if turned else 0)
    ax.set_yticks(range(len(names)), names, fontsize=size)
    many = "" if names else f" ({number}, in order)"
    ax.set_xlabel(f"predicted class{many}")
    ax.set_ylabel(f"true class{many}")
    what = f"{head_name(found.head)}, {layer_of(found)}"
    entitle(ax, f"{what}: {np.trace(counts):,} of {counts.sum():,} test images are told right")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_tick_params(labelsize=size)
    return ax


def factors(
    matrix: ArrayLike,
    layers: Sequence[str],
    factors: Sequence[str],
    ax: Axes | None = None,
    *,
    metric: str | None = None,
    chance: Mapping[str, float] | None = None,
) -> Axes:
    """Draw what each layer tells of each factor as a map, the numbers written in its cells.

    The color runs from 0, or from a factor's chance level, to 1. Factors are called by plain names, without
    underscores; a first word that several share, `identity_` or `nuisance_`, stands once above them.

    Args:
        matrix: (K, F), a row for each layer, a column for each factor; NaN where there is no number.
        layers: names, K.
        factors: names, F.
        ax: to draw on.
        metric: what the numbers are; with it there is a color bar.
        chance: level of a factor, by its name, where it is not 0.

    Raises:
        TaskError: a matrix of another shape.
    """
    values = _matrix(matrix, layers, factors)
    floor = np.array([(chance or {}).get(factor, 0.0) for factor in factors])
    groups = [_group(factor) for factor in factors]
    named = [
        drawable(factor_name(factor)) + (f" (chance {level:.2f})" if level else "")
        for factor, level in zip(factors, floor, strict=True)
    ]
    upright = max(map(len, named)) if len(named) > 8 else 0
    ax = ax or _axes(WIDTH, 1.6 + 0.19 * len(layers) + 0.055 * upright)
    known = (values - floor) / np.where(floor < 1, 1 - floor, 1)
    image = ax.imshow(known, cmap="cividis", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    size = min(SMALL, 130 / len(factors))
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "black" if known[row, column] > 0.5 else "white"
            number = f"{round(value, 2) + 0.0:.2f}"  # not -0.00
            number = number.replace("0.", ".", 1) if number.lstrip("-").startswith("0.") else number
            ax.text(column, row, number, color=color, ha="center", va="center", fontsize=size)
    if metric:
        _color_bar(ax, image, drawable(metric, TITLE))
    _name_cells(ax, [drawable(layer) for layer in layers], named)
    start = 0
    for group, columns in groupby(groups):
        stop = start + len(list(columns))
        if group:
            _above(ax, (start + stop - 1) / 2, group)
        if start:
            ax.axvline(start - 0.5, color="white", linewidth=1.2)
        start = stop
    ax.set_xlabel("factor")
    return ax


def rois(rows: Sequence[Result], metric: str = "pearson", ax: Axes | None = None) -> Axes:
    """Draw what each layer tells of each region of a brain as a map, of rows of `encoding`.

    Args:
        rows: of a report; those of heads `ridge:REGION`, or of `ridge`, all voxels.
        metric: `pearson` or `r2`, the mean over a region's voxels.
        ax: to draw on.

    Raises:
        TaskError: there is no such row.
    """
    table = layer_by_roi(rows, metric)
    label = METRIC_NAMES[metric]
    ax = factors(table.to_numpy(), list(table.index), list(table.columns), ax, metric=label)
    ax.set_xlabel("region")
    return ax


def voxels(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw which layer is the best of how many voxels of each region, as shares of those that are told.

    Args:
        table: `report.tables["voxels"]` of `encoding`; told are voxels whose q is below 0.05.
        ax: to draw on.

    Raises:
        TaskError: no voxel is told.
    """
    told = table[table["q_value"] < 0.05]
    if told.empty:
        raise TaskError("voxels: expected voxels that some layer tells (q < 0.05), found none")
    layers = list(dict.fromkeys(table["best_layer"]))
    layers.sort(key=natural_key)
    regions = {f"all ({len(told)})": told}
    names = dict.fromkeys(name for each in table["rois"].fillna("") for name in each.split(";"))
    for name in filter(None, names):
        own = told[[name in each.split(";") for each in told["rois"].fillna("")]]
        regions[f"{name} ({len(own)})"] = own
    shares = np.array(
        [
            [
                (own["best_layer"] == layer).mean() if len(own) else np.nan
                for own in regions.values()
            ]
            for layer in layers
        ]
    )
    ax = factors(shares, layers, list(regions), ax, metric="share of voxels whose best layer it is")
    ax.set_xlabel("region (voxels told, q < 0.05)")
    return ax


@dataclass(frozen=True)
class Line:
    """Rows of one model by one head, which are drawn as a line.

    Args:
        label: what the legend calls it.
        rows: in the order in which they are drawn.
        look: color, marker and line style.
    """

    label: str
    rows: list[Result]
    look: dict[str, Any]


@dataclass(frozen=True)
class RowSelection:
    """Rows of one metric, of models and of their controls, by the heads to be drawn.

    Args:
        metric: its name.
        heads: to be drawn.
        numbers: of each head among all of the rows' heads.
        models: the rows' own first, then those beside.
        rows: of models.
        controls: rows of controls.
        called: what a legend calls models.
    """

    metric: str
    heads: list[str]
    numbers: dict[str, int]
    models: list[str]
    rows: list[Result]
    controls: list[Result]
    called: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        rows: Sequence[Result],
        metric: str | None = None,
        head: str | None = None,
        key: Sequence[str] = ("head", "layer"),
        called: Mapping[str, str] | None = None,
    ) -> RowSelection:
        """Refuse rows that make no picture, and those of a model of which several have one key."""
        if not isinstance(rows, Sequence) or not all(isinstance(row, Result) for row in rows):
            raise TaskError(
                f"rows: expected a list of result rows, found {type(rows).__name__}; a report has one, "
                "report.rows"
            )
        if not rows:
            raise TaskError("expected result rows to draw, found none")
        metric = metric or rows[0].metric
        here = [row for row in rows if row.metric == metric]
        if not here:
            metrics = _listed(row.metric for row in rows)
            raise TaskError(f"the rows hold no metric {metric!r}; pass metric=, one of {metrics}")
        if here[0].task != "few_shot":  # there it is at a number of shots, and may be drawn over it
            here = [row for row in here if row.at == here[0].at]
        of_models = [row for row in here if row.model not in CONTROLS and row.layer]
        if not of_models:
            models = _listed(row.model for row in here)
            raise TaskError(f"expected rows of a model's layers, found rows of {models} alone")
        for column in ("task", "source"):
            _one((getattr(row, column) for row in here), column)
        names = list(dict.fromkeys(row.model for row in of_models))
        for column in ("feature", "pool"):
            for model in names:
                _one((getattr(row, column) for row in of_models if row.model == model), column)
        counts = Counter(
            (row.model, *(getattr(row, column) for column in key)) for row in of_models
        )
        (_, by, layer, *_), count = counts.most_common(1)[0]
        if count > 1:
            raise TaskError(
                f"expected one row of layer {layer} by {by}, found {count}; draw one run at a time, and of "
                "few_shot one number of shots"
            )
        heads = list(dict.fromkeys(row.head for row in of_models))
        if head and head not in heads:
            raise TaskError(f"the rows hold no head {head!r}; pass head=, one of {_listed(heads)}")
        drawn = [head] if head else heads
        return cls(
            metric=metric,
            heads=drawn,
            numbers={name: index for index, name in enumerate(heads)},
            models=names,
            rows=[row for row in of_models if row.head in drawn],
            controls=[row for row in here if row.model in CONTROLS],
            called=called or {},
        )

    @property
    def own(self) -> list[Result]:
        """The rows of the first model, whose controls are drawn."""
        return [row for row in self.rows if row.model == self.models[0]]

    @property
    def is_few_shot(self) -> bool:
        """Whether rows are at a number of shots."""
        return self.rows[0].task == "few_shot" and bool(self.rows[0].chance)

    def lines(self, models: Sequence[str] | None = None) -> list[Line]:
        """Return a line for each model and head; a model's color by itself, a head's where there are several.

        A color means a head where several are drawn, and then a model's lines have a style of their own.
        """
        found = []
        for model_number, model in enumerate(self.models if models is None else models):
            name = shortened(self.called.get(model, model))
            for head in self.heads:
                rows = [row for row in self.rows if (row.model, row.head) == (model, head)]
                if not rows:
                    continue
                several = len(self.heads) > 1
                look = _look(self.numbers[head] if several else model_number)
                if several and model_number:
                    look |= {"linestyle": ("-.", ":")[model_number % 2], "markerfacecolor": "white"}
                label = shortened(head_name(head)) if several else name
                if several and len(self.models) > 1:
                    label = f"{name}, {label}"
                found.append(Line(label, rows, look))
        return found

    def control(
        self, model: str, layer: str | None = None, n_train: int | None = None
    ) -> Result | None:
        """Return a control's chosen row, its best one where none is chosen; of several heads the best."""
        candidates = []
        for head in self.heads:
            own = [
                row
                for row in self.controls
                if (row.model, row.head) == (model, head)
                and layer in (None, row.layer)
                and n_train in (None, row.n_train)
            ]
            candidates += [row for row in own if row.chosen] or own
        best = min if self.metric in LOWER_IS_BETTER else max
        return best(candidates, key=lambda row: row.value, default=None)

    def control_name(self, control: str) -> str:
        """Return what a legend calls a control."""
        return control if len(self.heads) == 1 else f"{control}, best head"

    @property
    def title(self) -> str:
        """What was run; with the head, where one is drawn."""
        return self.titled(next(iter({row.n_train for row in self.own})))

    def titled(self, n_train: int | None) -> str:
        """Return the title of rows of so many training images, None of several numbers."""
        first = self.own[0]
        parts = [first.model, first.feature, first.pool and f"pooled {first.pool}"]
        if self.is_few_shot:
            parts.append(f"{round(1 / (first.chance or 1))} ways")
            if n_train is not None and len({row.n_train for row in self.own}) == 1:
                parts.append(_shots(first))
        if len(self.heads) == 1:
            parts.append(head_name(self.heads[0]))
        return f"{first.task} on {first.source}: {', '.join(part for part in parts if part)}"


def _shots(row: Result) -> str:
    shots = round(row.n_train * (row.chance or 1))
    return f"{shots} {'shot' if shots == 1 else 'shots'}"


def metric_name(metric: str) -> str:
    """Return what an axis calls a metric, with its direction where that is down."""
    name = METRIC_NAMES.get(metric, metric.replace("_", " "))
    return drawable(f"{name} (lower is better)" if metric in LOWER_IS_BETTER else name, TITLE)


def _metric_of(row: Result) -> str:
    """Return what an axis calls a row's metric, and the false accept rate that it is at."""
    name = metric_name(row.metric)
    if row.at is None or row.task == "few_shot":  # there it is at a number of shots
        return name
    return f"{name}\nat false accept rate {row.at:g}"


def head_name(head: str) -> str:
    """Return what a picture calls a head; of a factor's its plain name too."""
    name, colon, factor = head.partition(":")
    return f"{name}, {factor_name(factor)}" if colon else head


def factor_name(factor: str) -> str:
    """Return a factor's plain name.

    Examples:
        >>> factor_name("nuisance_background_hue")
        'background hue'
    """
    group = _group(factor)
    return (factor.removeprefix(f"{group}_") if group else factor).replace("_", " ").strip()


def _group(factor: str) -> str:
    first, underscore, rest = factor.partition("_")
    return first if underscore and rest and first in GROUPS else ""


@dataclass(frozen=True)
class LayerAxis:
    """Where rows stand along x, which the panels of a figure share.

    Args:
        names: at 0, 1, ...: single layers from the coarsest on, then layers together as they come, then the
            layers of models beside that have other names.
        at: a row's place, by model and layer.
        spans: names and ends of what stands side by side: resolutions, and models beside.
        together: selections that take the place of the last of their layers, by model.
    """

    names: list[str]
    at: dict[tuple[str, str], int]
    spans: list[tuple[str, int, int]]
    together: set[tuple[str, str]]

    @property
    def crowded(self) -> bool:
        """Whether names of spans would cover each other side by side."""
        named = [((start + stop) / 2, name) for name, start, stop in self.spans if name]
        return any(
            (right - left) / len(self.names) < 0.013 * (len(a) + len(b)) / 2
            for (left, a), (right, b) in pairwise(named)
        )

    @classmethod
    def of(cls, run: RowSelection) -> LayerAxis:
        """Find a place for every row."""
        names: list[str] = []
        at: dict[tuple[str, str], int] = {}
        spans: list[tuple[str, int, int]] = []
        together: set[tuple[str, str]] = set()
        for model in run.models:
            rows = [row for row in run.rows if row.model == model]
            single, follows = _by_place(rows)
            sets = [
                name
                for name in dict.fromkeys(str(row.layer) for row in rows)
                if name not in single and name not in follows
            ]
            if model != run.models[0] and set(single) <= set(names) and not sets:
                places = {name: names.index(name) for name in single}
            else:
                start = len(names)
                places = {name: start + index for index, name in enumerate([*single, *sets])}
                names += places
                if model != run.models[0]:
                    spans.append((run.called.get(model, model), start, len(names)))
                else:
                    edges = resolution_edges(single)
                    spans += [
                        (
                            f"{place[0]:g}x{place[0]:g}"
                            if (place := layer_place(single[a]))
                            else "",
                            a,
                            b,
                        )
                        for a, b in pairwise(edges)
                    ]
                    if sets:
                        spans.append(("layers together" if single else "", len(single), len(names)))
            at |= {(model, name): place for name, place in places.items()}
            for name, last in follows.items():
                at[model, name] = places[last]
                together.add((model, name))
        return cls(names, at, spans, together)


def _by_place(rows: Sequence[Result]) -> tuple[list[str], dict[str, str]]:
    """Return single layers from the coarsest on, and the last layer of what is of all layers up to one."""
    single: dict[str, None] = {}
    follows: dict[str, str] = {}
    last: dict[str, str] = {}  # of each head
    for row in rows:
        if row.selection == "single":
            single[str(row.layer)] = None
            last[row.head] = str(row.layer)
        elif row.selection == "cumulative" and row.head in last:  # it comes after its last layer
            follows[str(row.layer)] = last[row.head]
    return sorted(single, key=lambda name: layer_place(name) or (np.inf, 0)), follows


def _draw_layers(ax: Axes, run: RowSelection, axis: LayerAxis) -> None:
    """Draw a run without title and legend."""
    for line in run.lines():
        model = line.rows[0].model
        rows = sorted(line.rows, key=lambda row: axis.at[model, str(row.layer)])
        first = [row for row in rows if (model, str(row.layer)) not in axis.together]
        up_to = [row for row in rows if (model, str(row.layer)) in axis.together]
        if first:
            places = [axis.at[model, str(row.layer)] for row in first]
            _line(ax, replace(line, rows=first), places, split=True)
        if up_to:
            look = line.look | {"linestyle": "--", "markerfacecolor": "white"}
            label = f"{line.label}, all layers up to it"
            dashed = Line(label if first else line.label, up_to, look)
            _line(ax, dashed, [axis.at[model, str(row.layer)] for row in up_to])
    own = run.models[0]
    for control in CONTROLS:
        if control == "random-init":
            points = [
                (place, run.control(control, layer))
                for (model, layer), place in axis.at.items()
                if model == own and (model, layer) not in axis.together
            ]
            _thin(ax, run, control, sorted(points, key=lambda point: point[0]))
        else:
            _across(ax, run, control)
    _chance(ax, run)
    for number, (name, start, stop) in enumerate(axis.spans):
        resolution = re.fullmatch(r"(\d+)x\1", name)
        if resolution:
            shade = ("0.94", "white")[number % 2]
            ax.axvspan(start - 0.5, stop - 0.5, facecolor=shade, edgecolor="none", zorder=0)
        elif start:
            ax.axvline(start - 0.5, color="0.5", linewidth=0.8)
        if name:
            inches = ax.get_position().width * ax.figure.bbox.width / ax.figure.dpi
            room = int(inches / 0.06 * (stop - start) / len(axis.names))
            shown = shortened(name, max(8, room))
            upright = (
                axis.crowded and len(shown) > room
            )  # short, so that the panels keep their height
            _above(ax, (start + stop - 1) / 2, shown, upright=upright)
    _name_x(ax, [drawable(name) for name in axis.names], _font(len(axis.names)))
    ax.set_xlim(-0.5, len(axis.names) - 0.5)
    coarse_to_fine = bool(axis.names and layer_place(axis.names[0]))
    single = any(row.selection == "single" for row in run.rows)
    label = "layer, coarsest first" if coarse_to_fine else "layer" if single else "layers together"
    ax.set_xlabel(label)
    ax.set_ylabel(_metric_of(run.own[0]))


def _name_layers(ax: Axes, names: Sequence[str]) -> None:
    """Name layers along x, in bands of resolution."""
    for number, (start, stop) in enumerate(pairwise(resolution_edges(names))):
        if (place := layer_place(names[start])) is None:  # layers taken together
            continue
        shade = ("0.94", "white")[number % 2]
        ax.axvspan(start - 0.5, stop - 0.5, facecolor=shade, edgecolor="none", zorder=0)
        _above(ax, (start + stop - 1) / 2, f"{place[0]:g}x{place[0]:g}")
    _name_x(ax, [drawable(name) for name in names], _font(len(names)))
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_xlabel("layer, coarsest first")


def _line(
    ax: Axes, line: Line, x: Sequence[float], stars: bool = True, split: bool = False
) -> None:
    """Draw a line's rows at x, with their intervals, and stars where they are chosen.

    `split` leaves a gap between single layers and layers together.
    """
    values = np.array([row.value for row in line.rows], dtype=np.float64)
    low = np.array([row.ci_low for row in line.rows], dtype=np.float64)  # None is NaN
    high = np.array([row.ci_high for row in line.rows], dtype=np.float64)
    parts = [list(range(len(x)))]
    if split:
        kinds = [row.selection == "single" for row in line.rows]
        parts = [list(part) for _, part in groupby(parts[0], key=lambda i: kinds[i])]
    places = np.asarray(x, dtype=np.float64)
    shown = {"linewidth": 1.4, "markersize": 3.2, "zorder": 4} | line.look
    color = line.look["color"]
    for number, part in enumerate(parts):
        label = f"_{number}" if number else drawable(line.label, TITLE)
        ax.plot(places[part], values[part], label=label, **shown)
        if len(part) > 1:
            ax.fill_between(
                places[part], low[part], high[part], color=color, alpha=0.15, linewidth=0, zorder=3
            )
        else:
            ax.vlines(places[part], low[part], high[part], color=color, linewidth=1, zorder=3)
    if chosen := [
        (x, row.value) for x, row in zip(x, line.rows, strict=True) if row.chosen and stars
    ]:
        x_chosen, y_chosen = zip(*chosen, strict=True)
        ax.scatter(
            x_chosen,
            y_chosen,
            marker="*",
            s=110,
            color=color,
            edgecolors="black",
            linewidths=0.6,
            zorder=6,
        )


def _thin(
    ax: Axes, run: RowSelection, control: str, points: Sequence[tuple[float, Result | None]]
) -> None:
    """Draw a control's rows at x, where there are any."""
    if known := [(x, row.value) for x, row in points if row]:
        x, values = zip(*known, strict=True)
        look = CONTROL | CONTROLS[control]
        ax.plot(x, values, label=run.control_name(control), zorder=2, **look)


def _across(ax: Axes, run: RowSelection, control: str) -> None:
    """Draw a control as a line across, if it was run; markers of several do not lie on each other."""
    if row := run.control(control):
        x = np.linspace(0, 1, 41)
        first = 2 + 3 * list(CONTROLS).index(control)
        ax.plot(
            x,
            np.full(len(x), row.value),
            label=run.control_name(control),
            zorder=2,
            transform=ax.get_yaxis_transform(),
            markevery=(first, 12),
            **CONTROL | CONTROLS[control],
        )


def _chance(ax: Axes, run: RowSelection) -> None:
    levels = dict.fromkeys(row.chance for row in run.own if row.chance is not None)
    for number, chance in enumerate(levels):
        ax.axhline(chance, label="_" if number else "chance", zorder=1, **CHANCE)


def _above(ax: Axes, x: float, name: str, upright: bool = False) -> None:
    """Write a name above the axes at x."""
    ax.text(
        x,
        1.01,
        drawable(name),
        rotation=90 if upright else 0,
        fontsize=SMALL,
        ha="center",
        va="bottom",
        transform=ax.get_xaxis_transform(),
    )


def entitle(ax: Axes, title: str) -> None:
    """Write a title above the names that stand above the axes, and finish what all axes have in common."""
    above = [text for text in ax.texts if text.get_position()[1] > 1]
    heights = [0.62 * SMALL * len(t.get_text()) if t.get_rotation() else SMALL + 2 for t in above]
    title = drawable(title, TITLE)
    ax.set_title(title, loc="left", pad=4 + max(heights, default=0), fontsize=TEXT)
    ax.tick_params(labelsize=SMALL, width=0.8, length=3)
    for name in ("top", "right"):
        ax.spines[name].set_visible(False)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(TEXT)


def _finish(figure: Figure, title: str, entries: Mapping[str, Any]) -> None:
    """Write a figure's title, and one legend for all panels below them."""
    figure.suptitle(drawable(title, TITLE), x=0.01, ha="left", fontsize=TEXT + 1)
    lengths = [len(label) for label in entries]
    columns = max(1, min(len(entries), int(figure.get_figwidth() * 17 / (max(lengths) + 8))))
    figure.legend(
        handles=list(entries.values()),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
    )


def _entries(ax: Axes, run: RowSelection | None = None, stars: bool = True) -> list[Any]:
    """Return what a legend shows: what was drawn with a label, and what areas and stars mean."""
    from matplotlib.lines import Line2D

    entries: list[Any] = list(ax.get_legend_handles_labels()[0])
    if run and any(row.ci_low is not None for row in run.rows):
        entries.append(_band())
    if run and stars and any(row.chosen for row in run.rows):
        star: dict[str, Any] = {"marker": "*", "markersize": 9, "linestyle": "none"}
        star |= {"color": "0.75", "markeredgecolor": "black", "markeredgewidth": 0.6}
        entries.append(Line2D([], [], label="chosen without test data", **star))
    return entries


def _band() -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor="0.8", label="95 % interval")


def _legend(ax: Axes, entries: Sequence[Any]) -> None:
    """Put a legend beside the axes, where it covers nothing."""
    ax.legend(
        handles=entries,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        borderaxespad=0,
        frameon=False,
        fontsize=SMALL,
    )
    if not ax.get_title(loc="left"):
        entitle(ax, "")


def _figure(width: float, height: float) -> Figure:
    """Return a new figure, which no window or global state knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _axes(width: float = WIDTH, height: float = HEIGHT) -> Axes:
    """Return the axes of a new figure."""
    return _figure(width, height).subplots()


def _look(index: int) -> dict[str, Any]:
    """Return color, marker and line style of the line of that index; the style changes after each round."""
    turn, index = divmod(index, len(COLORS))
    return {
        "color": COLORS[index],
        "marker": MARKERS[index],
        "linestyle": ("-", "--", ":")[turn % 3],
    }


def _color_bar(ax: Axes, image: Any, label: str) -> None:
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02)
    bar.set_label(label, fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)


def _curves(curves: Sequence[Curve], kind: str) -> list[Curve]:
    """Return curves of a kind with sides as arrays; refuse none, several heads, and such as are not."""
    if not isinstance(curves, Sequence) or not all(isinstance(curve, Curve) for curve in curves):
        raise TaskError(
            f"curves: expected a list of curves, found {type(curves).__name__}; a report has one, "
            "report.curves"
        )
    known = []
    for curve in curves:
        if curve.kind != kind:
            continue
        sides: dict[str, Any] = {
            name: np.asarray(side, dtype=np.float64)
            for name in ("x", "y", "low", "high")
            if (side := getattr(curve, name)) is not None
        }
        x, *others = sides.values()
        if x.ndim != 1 or not len(x) or any(side.shape != x.shape for side in others):
            shapes = ", ".join(str(side.shape) for side in sides.values())
            raise TaskError(f"{curve.model}: expected arrays of one length, found shapes {shapes}")
        known.append(replace(curve, **sides))
    if not known:
        raise TaskError(f"expected curves of kind {kind!r}, found none")
    _one((curve.head for curve in known), "head")
    return known


def _draw_curves(
    ax: Axes, curves: Sequence[Curve], called: Mapping[str, str], drawstyle: str
) -> None:
    models = list(dict.fromkeys(c.model for c in curves if c.model not in CONTROLS))
    for curve in curves:
        if curve.model in CONTROLS:
            look = CONTROL | CONTROLS[curve.model] | {"zorder": 2}
        else:
            look = _look(models.index(curve.model)) | {
                "linewidth": 1.6,
                "markersize": 3.2,
                "zorder": 4,
            }
            if curve.low is not None and curve.high is not None:
                band = {"color": look["color"], "alpha": 0.18, "linewidth": 0, "zorder": 3}
                ax.fill_between(curve.x, curve.low, curve.high, **band)
        name = called.get(curve.model, curve.model)
        label = " ".join(shortened(part) for part in (name, curve.layer) if part)
        if curve.figures:
            label += f" ({', '.join(f'{k} {v:.3f}' for k, v in curve.figures.items())})"
        ax.plot(
            curve.x,
            curve.y,
            label=drawable(label, TITLE),
            drawstyle=drawstyle,
            markevery=0.12,  # of the diagonal of the axes
            **look,
        )


def _interval(curves: Sequence[Curve]) -> list[Any]:
    drawn = [curve for curve in curves if curve.model not in CONTROLS]
    return [_band()] if any(curve.low is not None for curve in drawn) else []


def _matrix(matrix: ArrayLike, rows: Sequence[str], columns: Sequence[str]) -> NDArray[np.float64]:
    values = np.asarray(matrix, dtype=np.float64)
    if values.shape != (len(rows), len(columns)) or not values.size:
        raise TaskError(
            f"expected a matrix of {len(rows)} rows and {len(columns)} columns, one for each name, found "
            f"shape {values.shape}"
        )
    return values


def _name_cells(ax: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Name rows, which are layers, and columns of a map; draw lines where the resolution changes."""
    size = _font(max(len(rows), len(columns)))
    ax.set_yticks(range(len(rows)), rows, fontsize=size)
    _name_x(ax, columns, size)
    for edge in resolution_edges(rows)[1:-1]:
        ax.axhline(edge - 0.5, color="white", linewidth=1.2)
    for edge in resolution_edges(columns)[1:-1]:
        ax.axvline(edge - 0.5, color="white", linewidth=1.2)
    ax.set_ylabel("layer")


def _name_x(ax: Axes, names: Sequence[str], size: float) -> None:
    ax.set_xticks(range(len(names)), names, fontsize=size, rotation=90 if len(names) > 8 else 0)


def _font(count: int) -> float:
    """Return the size at which that many names fit side by side into a figure, in points."""
    return float(min(SMALL, 330 / count))


def shortened(text: str, longest: int = NAME) -> str:
    """Return a text without its middle, where it is long."""
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]}\N{HORIZONTAL ELLIPSIS}{text[-(longest // 3) :]}"


def drawable(name: str, longest: int = NAME) -> str:
    """Return a name from a file as text that is drawn as it stands.

    Control characters, and those that no font of `rcParams["font.family"]` has, become escapes; a dollar
    begins no formula; of a long name the middle is left out.
    """
    from matplotlib import rcParams

    text = shortened(printable(str(name)), longest)
    fonts = tuple(rcParams["font.family"])
    if not text.isascii():
        text = "".join(c if _has_glyph(fonts, c) else ascii(c)[1:-1] for c in text)
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # a legend leaves out what begins with _


@cache
def _has_glyph(families: tuple[str, ...], character: str) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    files = (findfont(FontProperties(family=[family])) for family in families)
    return any(get_font(file).get_char_index(ord(character)) for file in files)


def _one(values: Iterable[Any], what: str) -> Any:
    """Return the value that all are; refuse several."""
    first, *others = dict.fromkeys(values)
    if others:
        raise TaskError(
            f"expected rows of one {what}, found {_listed([first, *others])}; draw one at a time"
        )
    return first


def _listed(values: Iterable[Any]) -> str:
    """Name each value once, ten at most."""
    names = [str(value) for value in dict.fromkeys(values)]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
