"""Pictures of rows and curves: a function draws on `ax`, or on a figure of its own, and returns the axes.

`ax.figure.savefig("layers.png")` saves one. A head looks the same in every picture of the same rows; controls
are grey. Where several heads share a picture, a control is drawn once, by the head that serves it best.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vdvae_repr.errors import TaskError, printable
from vdvae_repr.results import LOWER_IS_BETTER, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vdvae_repr.results import SamplingCost

# The palette of Okabe and Ito (2008), which color-blind readers can tell apart, without its yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
CONTROLS: dict[str, dict[str, Any]] = {
    "pixels": {"color": "0.1", "linestyle": "--"},
    "pca": {"color": "0.45", "linestyle": "-."},
    "random-init": {"color": "0.55", "linestyle": "-"},
    "shuffled-labels": {"color": "0.6", "linestyle": (0, (8, 4))},
}
CHANCE: dict[str, Any] = {"color": "0.3", "linestyle": ":", "linewidth": 1.2}
WIDTH, HEIGHT = 10, 5  # inches, of 100 dots
NAME, TITLE = (
    36,
    150,
)  # characters of a name from a file, and of a title with several, that are drawn

Curves = Mapping[str, tuple[ArrayLike, ArrayLike]]


def layers(
    rows: Sequence[Result],
    metric: str | None = None,
    head: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric by layer, coarsest first, with 95 % intervals, controls and chance; stars are chosen.

    Random-init is drawn by layer, the other controls at their chosen row, or at their best one where none is
    chosen. Layers taken together (`<=16x16`) follow the single ones, in the order of the rows.

    Args:
        rows: of one task, source, model and feature.
        metric: that of the first row if not given.
        head: one of the rows' heads; if not given all of them, one line each.
        ax: to draw on.

    Raises:
        TaskError: nothing can be drawn of these rows, or they are of several runs.
    """
    run = RowSelection.read(rows, metric, head)
    ax = ax or _axes()
    _draw_layers(ax, run)
    _title(ax, run.title)
    _legend(ax, _entries(ax, run))
    return ax


def layer_panels(rows: Sequence[Result], metric: str | None = None) -> Figure:
    """Draw what `layers` draws, each head in a panel of its own, with the controls of that head.

    Raises:
        TaskError: as `layers`.
    """
    from matplotlib.figure import Figure

    every = RowSelection.read(rows, metric)
    count = len(every.heads)
    longest = max(len(drawable(name)) for name in every.names)
    height = 1.2 + 2.5 * count + 0.06 * max(0, longest - 10)  # longer names take room below
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(count, squeeze=False, sharex=True, sharey=True)[:, 0]
    entries: dict[str, Any] = {}
    for panel, head in zip(panels, every.heads, strict=True):
        run = RowSelection.read(rows, metric, head)
        _draw_layers(panel, run, every.names)
        _title(panel, head, fontsize=10)
        panel.label_outer()
        entries |= {artist.get_label(): artist for artist in _entries(panel, run)}
    shown = [drawable(head) for head in every.heads]
    _legend(panels[0], [entries[label] for label in entries if label not in shown])
    figure.suptitle(drawable(every.title, TITLE), x=0.01, ha="left")
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
    for name in run.heads:
        _line(ax, run, name, [(at[str(row.layer)], row) for row in run.of(name)])
    for control in CONTROLS:
        _across(ax, run, control)
    _chance(ax, run)
    if spent.min() > 0:
        ax.set_xscale("log")
    scale, (left, right) = ax.get_xaxis_transform(), ax.get_xlim()
    start, stop, *places = scale.transform([(x, 0) for x in (left, right, *at.values())])[:, 0]
    last = -np.inf
    for name, place in zip(names, places, strict=True):
        if place - last > 0.02 * (stop - start):  # else it would cover the name before
            _above(ax, at[name], name, upright=True)
            last = place
    ax.set_xlabel("nats an image, up to and including the layer")
    ax.set_ylabel(_direction(run.metric))
    _title(ax, run.title)
    _legend(ax, _entries(ax, run))
    return ax


def noise(rows: Sequence[SamplingCost], ax: Axes | None = None) -> Axes:
    """Draw a layer's mean, one z and the mean of several; a ring is a draw that differs from the mean.

    Differs: p < 0.05 in the paired test, not corrected for the number of layers.

    Args:
        rows: of one head, one number of training images and one pooling.
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
    _one(((row.n_train, row.pool) for row in rows), "number of training images and pooling")
    ax = ax or _axes()
    at = range(len(rows))
    series = {"mean": "mean", "one_z": "z, one draw", "mean_of_z": f"z, mean of {draws} draws"}
    for index, (column, label) in enumerate(series.items()):
        values = [getattr(row, column) for row in rows]
        look = _look(index)
        ax.plot(at, values, label=label, linewidth=1.8, markersize=4, zorder=4, **look)
        if column == "mean":
            continue
        apart = [i for i in at if getattr(rows[i], f"p_{column}") < 0.05]
        ax.scatter(
            apart, [values[i] for i in apart], s=110, facecolors="none", edgecolors=look["color"], zorder=5,
        )  # fmt: skip
    _name_layers(ax, [str(row.layer) for row in rows])
    ax.set_ylabel(_direction(metric))
    _title(ax, f"What drawing costs: {head}")
    ring = Line2D(
        [], [], color="0.4", marker="o", markersize=10, fillstyle="none", linestyle="none"
    )
    ring.set_label("differs from the mean, p < 0.05")
    _legend(ax, [*_entries(ax), ring])
    return ax


def shots(
    rows: Sequence[Result],
    layer: str | None = None,
    metric: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw few-shot accuracy over shots, one line for each head, with 95 % intervals, controls and chance.

    Of each head and number of shots the row is drawn that validation chose, or that of `layer`; never the
    best one, which the test classes alone can tell. Controls are drawn at their chosen row, or at their best
    one where none is chosen; with `layer`, random-init at that layer.

    Args:
        rows: of protocol `few-shot`, of one source, model, feature and number of ways, with any shots.
        layer: to draw, where none was chosen, or instead.
        metric: that of the first few-shot row if not given.
        ax: to draw on.

    Raises:
        TaskError: nothing can be drawn of these rows, or no layer is chosen and none is given.
    """
    few = [row for row in rows if row.protocol == "few-shot" and row.chance]
    if not few:
        raise TaskError("expected rows of protocol few-shot, found none; run the task few_shot")
    run = RowSelection.read(few, metric, key=("head", "layer", "n_train"))
    ways = _one((round(1 / row.chance) for row in run.own if row.chance), "number of ways")
    drawn = [row for row in run.own if (row.layer == layer if layer else row.chosen)]
    if not drawn:
        what = f"layer {layer!r}" if layer else "chosen layer"
        raise TaskError(f"the rows hold no {what}; pass layer=, one of {_listed(run.names)}")
    ax = ax or _axes()
    for name in run.heads:
        own = sorted((row for row in drawn if row.head == name), key=lambda row: row.n_train)
        if own:
            used = ", ".join(dict.fromkeys(str(row.layer) for row in own))
            points = [(row.n_train / ways, row) for row in own]
            _line(ax, run, name, points, label=f"{name} ({used})", stars=False)
    sizes = sorted({row.n_train for row in drawn})
    for control in CONTROLS:
        at = layer if control == "random-init" else None
        _thin(ax, run, control, [(size / ways, run.control(control, at, size)) for size in sizes])
    _chance(ax, run)
    ax.set_xscale("log")
    ax.set_xticks([size / ways for size in sizes], [f"{size / ways:g}" for size in sizes])
    ax.minorticks_off()
    ax.set_xlabel("shots (images a class to learn from)")
    ax.set_ylabel(f"{_direction(run.metric)}, {ways} ways")
    _title(ax, run.title)
    _legend(ax, _entries(ax, run, stars=False))
    return ax


def cmc(curves: Curves, ax: Axes | None = None, *, people: int | None = None) -> Axes:
    """Draw cumulative match curves: how often the right person is among the first r.

    Args:
        curves: by label, ranks from 1 on and identification rates, (R,) each; grey where the label
            begins with a control's name.
        ax: to draw on.
        people: in the gallery; with them chance is drawn.

    Raises:
        TaskError: no curve, or one whose sides are not of one length.
    """
    from matplotlib.ticker import MaxNLocator

    known = _curves(curves)
    ax = ax or _axes()
    _draw_curves(ax, known, "default")
    if people:
        last = max(x.max() for x, _ in known.values())
        ax.plot([1, last], [1 / people, last / people], label="chance", zorder=1, **CHANCE)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(left=1)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("rank")
    ax.set_ylabel("identification rate")
    _legend(ax, _entries(ax))
    return ax


def roc(curves: Curves, ax: Axes | None = None) -> Axes:
    """Draw true accept rates over false accept rates, on a logarithmic axis.

    It begins at the rate at which ten impostors pass, as a finer one is no estimate; at 0.1 at most.

    Args:
        curves: by label, false and true accept rates, (G,) each, ascending; grey as in `cmc`.
        ax: to draw on.

    Raises:
        TaskError: no curve, one whose sides are not of one length, or no false accept rate above zero.
    """
    known = _curves(curves)
    steps = [np.diff(np.unique([0.0, *x])).min() for x, _ in known.values() if (x > 0).any()]
    if not steps:
        raise TaskError("expected false accept rates above zero, found none")
    lowest = min(0.1, 10 * min(steps))  # a step is one impostor
    ax = ax or _axes()
    _draw_curves(ax, known, "steps-post")  # between two points the stricter threshold holds
    rates = np.geomspace(lowest, 1, 100)
    ax.plot(rates, rates, label="chance", zorder=1, **CHANCE)
    ax.set_xscale("log")
    ax.set_xlim(lowest, 1)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("false accept rate")
    ax.set_ylabel("true accept rate")
    _legend(ax, _entries(ax))
    return ax


def similarity(
    matrix: ArrayLike,
    names: Sequence[str],
    other_names: Sequence[str] | None = None,
    ax: Axes | None = None,
    *,
    models: tuple[str, str] | None = None,
) -> Axes:
    """Draw the similarity (CKA) of layers as a map from 0 to 1, with lines where the resolution changes.

    Args:
        matrix: (K, L), a row for each of `names`, a column for each of `other_names`.
        names: of layers, K.
        other_names: of another model's layers, L; the same layers if not given.
        ax: to draw on.
        models: whose layers they are, for the axes.

    Raises:
        TaskError: a matrix of another shape.
    """
    columns = names if other_names is None else other_names
    values = _matrix(matrix, names, columns)
    ax = ax or _axes(height=8.4)
    image = ax.imshow(values, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="CKA", fraction=0.05, pad=0.02)
    _name_cells(ax, *([drawable(name) for name in side] for side in (names, columns)))
    ax.set_xlabel("layer" if other_names is None else "layer of the other model")
    if models is not None:
        ax.set_ylabel(drawable(f"layer of {models[0]}"))
        ax.set_xlabel(drawable(f"layer of {models[1]}"))
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

    The color runs from 0, or from a factor's chance level, to 1.

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
    named = [
        drawable(factor) + (f", chance {level:.2f}" if level else "")
        for factor, level in zip(factors, floor, strict=True)
    ]
    upright = max(map(len, named)) if len(named) > 8 else 0
    ax = ax or _axes(height=2.5 + 0.32 * len(layers) + 0.06 * upright)
    known = (values - floor) / np.where(floor < 1, 1 - floor, 1)
    image = ax.imshow(known, cmap="cividis", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    size = min(9, 150 / len(factors))
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "black" if known[row, column] > 0.5 else "white"
            number = f"{round(value, 2) + 0.0:.2f}"  # not -0.00
            ax.text(column, row, number, color=color, ha="center", va="center", fontsize=size)
    if metric:
        ax.figure.colorbar(image, ax=ax, label=drawable(metric, TITLE), fraction=0.05, pad=0.02)
    _name_cells(ax, [drawable(layer) for layer in layers], named)
    ax.set_xlabel("factor")
    return ax


@dataclass(frozen=True)
class RowSelection:
    """Rows of one metric, of a model and of its controls, by the heads to be drawn."""

    metric: str
    heads: list[str]
    looks: dict[str, dict[str, Any]]
    """Of each head, the same whether others are drawn or not."""
    names: list[str]
    """Of layers: single ones from the coarsest on, then layers taken together as they come."""
    own: list[Result]
    controls: list[Result]

    @classmethod
    def read(
        cls,
        rows: Sequence[Result],
        metric: str | None = None,
        head: str | None = None,
        key: Sequence[str] = ("head", "layer"),
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
        own = [row for row in here if row.model not in CONTROLS and row.layer]
        if not own:
            models = _listed(row.model for row in here)
            raise TaskError(f"expected rows of a model's layers, found rows of {models} alone")
        for column in ("task", "source"):
            _one((getattr(row, column) for row in here), column)
        for column in ("model", "feature", "pool"):
            _one((getattr(row, column) for row in own), column)
        counts = Counter(tuple(getattr(row, column) for column in key) for row in own)
        (by, layer, *_), count = counts.most_common(1)[0]
        if count > 1:
            raise TaskError(
                f"expected one row of layer {layer} by {by}, found {count}; draw one run at a time, and of "
                "few_shot one number of shots"
            )
        heads = list(dict.fromkeys(row.head for row in own))
        if head and head not in heads:
            raise TaskError(f"the rows hold no head {head!r}; pass head=, one of {_listed(heads)}")
        drawn = [head] if head else heads
        own = [row for row in own if row.head in drawn]
        names = dict.fromkeys(str(row.layer) for row in own)
        return cls(
            metric=metric,
            heads=drawn,
            looks={name: _look(index) for index, name in enumerate(heads)},
            names=sorted(names, key=lambda name: _place(name) or (np.inf, 0)),
            own=own,
            controls=[row for row in here if row.model in CONTROLS],
        )

    def of(self, head: str) -> list[Result]:
        """Return the model's rows by a head, in the order of `names`."""
        own = [row for row in self.own if row.head == head]
        return sorted(own, key=lambda row: self.names.index(str(row.layer)))

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

    def called(self, control: str) -> str:
        """Return what a legend calls a control."""
        return control if len(self.heads) == 1 else f"{control}, best head"

    @property
    def title(self) -> str:
        """What was run; with the head, where one is drawn."""
        first = self.own[0]
        parts = [first.model, first.feature, first.pool and f"pooled {first.pool}"]
        if first.task == "few_shot" and first.chance and len({r.n_train for r in self.own}) == 1:
            ways = round(1 / first.chance)
            shots = first.n_train // ways
            parts.append(f"{ways} ways, {shots} {'shots' if shots > 1 else 'shot'}")
        if len(self.heads) == 1:
            parts.append(self.heads[0])
        return f"{first.task} on {first.source}: {', '.join(part for part in parts if part)}"


def _direction(metric: str) -> str:
    """Return a metric's name, and its direction where that is down."""
    name = metric.replace("_", " ")
    return f"{name} (lower is better)" if metric in LOWER_IS_BETTER else name


def _draw_layers(ax: Axes, run: RowSelection, names: Sequence[str] | None = None) -> None:
    """Draw a run without title and legend, over its own layers or those named."""
    names = names or run.names
    at = {name: index for index, name in enumerate(names)}
    for head in run.heads:
        _line(ax, run, head, [(at[str(row.layer)], row) for row in run.of(head)])
    for control in CONTROLS:
        if control == "random-init":
            _thin(ax, run, control, [(at[name], run.control(control, name)) for name in names])
        else:
            _across(ax, run, control)
    _chance(ax, run)
    _name_layers(ax, names)
    ax.set_ylabel(_direction(run.metric))


def _name_layers(ax: Axes, names: Sequence[str]) -> None:
    """Name layers along x, in bands of resolution."""
    for number, (start, stop) in enumerate(pairwise(_edges(names))):
        place = _place(names[start])
        if place is None:  # layers taken together
            ax.axvline(start - 0.5, color="0.5", linewidth=0.8)
            continue
        shade = ("0.93", "white")[number % 2]
        ax.axvspan(start - 0.5, stop - 0.5, facecolor=shade, edgecolor="none", zorder=0)
        resolution = f"{place[0]}x{place[0]}"
        narrow = (stop - start) / len(names) < 0.01 * len(resolution)
        _above(ax, (start + stop - 1) / 2, resolution, upright=narrow)
    _name_x(ax, [drawable(name) for name in names], _font(len(names)))
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_xlabel("layer, coarsest first" if _place(names[0]) else "layers taken together")


def _line(
    ax: Axes,
    run: RowSelection,
    head: str,
    points: Sequence[tuple[float, Result]],
    label: str | None = None,
    stars: bool = True,
) -> None:
    """Draw a head's rows at x, with their intervals, and stars where they are chosen."""
    look = run.looks[head]
    x, values = [x for x, _ in points], [row.value for _, row in points]
    ax.plot(x, values, label=drawable(label or head), linewidth=1.8, markersize=4, zorder=4, **look)
    low = np.array([row.ci_low for _, row in points], dtype=np.float64)  # None is NaN
    high = np.array([row.ci_high for _, row in points], dtype=np.float64)
    if len(x) > 1:
        ax.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0, zorder=3)
    else:
        ax.vlines(x, low, high, color=look["color"], alpha=0.4, linewidth=4, zorder=3)
    if chosen := [(x, row.value) for x, row in points if stars and row.chosen]:
        x_chosen, y_chosen = zip(*chosen, strict=True)
        ax.scatter(
            x_chosen, y_chosen, marker="*", s=240, color=look["color"], edgecolors="black", linewidths=0.8,
            zorder=5,
        )  # fmt: skip


def _thin(
    ax: Axes, run: RowSelection, control: str, points: Sequence[tuple[float, Result | None]]
) -> None:
    """Draw a control's rows at x, where there are any."""
    if known := [(x, row.value) for x, row in points if row]:
        x, values = zip(*known, strict=True)
        label, look = run.called(control), CONTROLS[control]
        ax.plot(x, values, label=label, linewidth=1, marker=".", zorder=2, **look)


def _across(ax: Axes, run: RowSelection, control: str) -> None:
    """Draw a control as a line across, if it was run."""
    if row := run.control(control):
        ax.axhline(
            row.value, label=run.called(control), linewidth=1.2, zorder=2, **CONTROLS[control]
        )


def _chance(ax: Axes, run: RowSelection) -> None:
    levels = dict.fromkeys(row.chance for row in run.own if row.chance is not None)
    for number, chance in enumerate(levels):
        ax.axhline(chance, label="_" if number else "chance", zorder=1, **CHANCE)


def _above(ax: Axes, x: float, name: str, upright: bool = False) -> None:
    """Write a name above the axes at x."""
    ax.text(
        x, 1.01, drawable(name, NAME // 2), rotation=90 if upright else 0, fontsize=8, ha="center",
        va="bottom", transform=ax.get_xaxis_transform(),
    )  # fmt: skip


def _title(ax: Axes, title: str, **style: Any) -> None:
    """Write a title above the names that stand above the axes."""
    heights = [6 * len(text.get_text()) if text.get_rotation() else 11 for text in ax.texts]
    ax.set_title(drawable(title, TITLE), loc="left", pad=6 + max(heights, default=0), **style)


def _entries(ax: Axes, run: RowSelection | None = None, stars: bool = True) -> list[Any]:
    """Return what a legend shows: what was drawn with a label, and what areas and stars mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = list(ax.get_legend_handles_labels()[0])
    if run and any(row.ci_low is not None for row in run.own):
        entries.append(Patch(facecolor="0.75", label="95 % interval"))
    if run and stars and any(row.chosen for row in run.own):
        star: dict[str, Any] = {"marker": "*", "markersize": 14, "linestyle": "none"}
        star |= {"color": "0.75", "markeredgecolor": "black"}
        entries.append(Line2D([], [], label="chosen without test data", **star))
    return entries


def _legend(ax: Axes, entries: Sequence[Any]) -> None:
    """Put a legend beside the axes, where it covers nothing."""
    ax.legend(
        handles=entries, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False,
        fontsize=9,
    )  # fmt: skip


def _axes(height: float = HEIGHT) -> Axes:
    """Return the axes of a new figure, which no window or global state knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained").subplots()


def _look(index: int) -> dict[str, Any]:
    """Return color, marker and line style of the line of that index; the style changes after each round."""
    turn, index = divmod(index, len(COLORS))
    return {
        "color": COLORS[index],
        "marker": MARKERS[index],
        "linestyle": ("-", "--", ":")[turn % 3],
    }


def _curves(curves: Curves) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return curves as arrays; refuse none, and such as are not."""
    if not curves:
        raise TaskError("expected curves by label, found none")
    known = {}
    for label, sides in curves.items():
        x, y = (np.asarray(side, dtype=np.float64) for side in sides)
        if x.ndim != 1 or x.shape != y.shape or not len(x):
            raise TaskError(
                f"{label}: expected two arrays of one length, found shapes {x.shape} and {y.shape}"
            )
        known[label] = x, y
    return known


def _draw_curves(
    ax: Axes,
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    drawstyle: str,
) -> None:
    colored = [label for label in curves if label.split(" ")[0] not in CONTROLS]
    for label, (x, y) in curves.items():
        if label not in colored:
            look = {**CONTROLS[label.split(" ")[0]], "linewidth": 1.2, "zorder": 2}
        else:
            look = {**_look(colored.index(label)), "marker": "", "linewidth": 1.8, "zorder": 3}
        ax.plot(x, y, label=drawable(label), drawstyle=drawstyle, **look)


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
    for edge in _edges(rows)[1:-1]:
        ax.axhline(edge - 0.5, color="white", linewidth=1.2)
    for edge in _edges(columns)[1:-1]:
        ax.axvline(edge - 0.5, color="white", linewidth=1.2)
    ax.set_ylabel("layer")


def _name_x(ax: Axes, names: Sequence[str], size: float) -> None:
    ax.set_xticks(range(len(names)), names, fontsize=size, rotation=90 if len(names) > 8 else 0)


def _font(count: int) -> float:
    """Return the size at which that many names fit side by side into a figure, in points."""
    return min(9.0, 460 / count)


def drawable(name: str, longest: int = NAME) -> str:
    """Return a name from a file as text that is drawn as it stands.

    Control characters, and those that no font of `rcParams["font.family"]` has, become escapes; a dollar
    begins no formula; of a long name the middle is left out.
    """
    from matplotlib import rcParams

    text = printable(str(name))
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]}\N{HORIZONTAL ELLIPSIS}{text[-(longest // 3) :]}"
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


def _place(name: str) -> tuple[float, int] | None:
    """Return resolution and number of a single layer, `8x8.2`; None for any other name."""
    match = re.fullmatch(r"(\d+)x\1\.(\d+)", name)
    return (int(match[1]), int(match[2])) if match else None


def _edges(names: Sequence[str]) -> list[int]:
    """Return where each run of one resolution begins, and where the last one ends."""
    groups = groupby(names, key=lambda name: (_place(name) or (None,))[0])
    return [0, *np.cumsum([len(list(group)) for _, group in groups]).tolist()]


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
