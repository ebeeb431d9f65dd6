"""The few charts that the page needs, as SVG text: lines, columns, dots with intervals, maps.

Colors, dashes and themes are the page's CSS: an element says what it is by its class. `s0` to `s6` are
series, told apart by color, dash and marker; a control is a class of its own name. Each point says what it
is in a `title`, which is shown without scripts and read aloud, and in `data-tip` beside its place.
Names are escaped here; what is returned can be put into a page as it stands.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vdvae_repr.errors import printable
from vdvae_repr.results import layer_place, resolution_edges

SERIES = 7  # looks of series that the page knows
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 46, 48  # margins around what is drawn, in pixels
HEIGHT = 236  # of what is drawn
LABEL = 8.2  # width of a character, at most
LONGEST = 30  # characters of a name
MOST_NUMBERS, MOST_CELLS = 20, 40  # classes whose counts are written, and whose cells are told
CIVIDIS = ("#00204d", "#414d6b", "#7c7b78", "#bcaf6f", "#ffea46")  # evenly spaced, from 0 to 1


@dataclass(frozen=True)
class Point:
    """A value at x, with its 95 % interval; `tip` is all that is to be said of it.

    A line may begin at a point of which nothing is said, as it is another line's.
    """

    x: float
    y: float
    tip: str
    low: float | None = None
    high: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class Series:
    """Points that belong together, joined by a line."""

    label: str
    look: str
    points: Sequence[Point]
    steps: bool = False
    """Whether a value holds up to the next point, as of an ROC curve."""
    markers: bool = True
    """Whether each point has one; of many points a few have."""
    bands: bool = True
    """Whether intervals are drawn: of three lines or more they would cover each other."""


@dataclass(frozen=True)
class Across:
    """A level, drawn as a line across and named at its right end."""

    label: str
    look: str
    y: float


@dataclass(frozen=True)
class Dot:
    """A row of `dots`: a value with its interval, and words beside it."""

    label: str
    look: str
    value: float
    low: float | None
    high: float | None
    words: str
    tip: str


@dataclass(frozen=True)
class Axis:
    """An axis of numbers: where it begins and ends, whether it is logarithmic, what stands at its ticks."""

    label: str
    low: float
    high: float
    log: bool = False
    ticks: Sequence[tuple[float, str]] = ()

    def place(self, x: float) -> float:
        """Return where x lies, from 0 to 1."""
        if self.log:
            return math.log(x / self.low) / math.log(self.high / self.low)
        return (x - self.low) / (self.high - self.low)

    @classmethod
    def over(cls, label: str, values: Iterable[float], log: bool = False) -> Axis:
        """Return an axis over values, with round ticks; of a single value with room on both sides."""
        low, high = min(known := list(values)), max(known)
        if log:
            low, high = (low / 1.5, high * 1.5) if low == high else (low, high)
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            digits = (1, 2, 5) if high / low < 300 else (1,)
            ticks = [d * 10.0**power for power in powers for d in digits]
        else:
            span = high - low or abs(high) or 1.0
            low, high = (low - span / 2, high + span / 2) if low == high else (low, high)
            step = _round_step((high - low) / 5)
            ticks = [step * k for k in range(math.floor(low / step), math.ceil(high / step) + 1)]
        shown = [(tick, f"{tick:,.10g}") for tick in ticks if low <= tick <= high]
        return cls(label, low, high, log, shown)

    @classmethod
    def of_values(cls, label: str, values: Iterable[float]) -> Axis:
        """Return the upright axis of a chart: from 0 where values come near to it, between round numbers."""
        low, high = min(known := list(values)), max(known)
        if 0 <= low < 0.6 * high:
            low = 0.0
        span = high - low or abs(high) or 1.0
        step = _round_step(span / 4)
        low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
        return cls.over(label, (low, high if high > low else low + step))


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return power * next(digit for digit in (1, 2, 5, 10) if digit * power >= 0.999 * least)


@dataclass
class Drawing:
    """An SVG in the making: `parts` are its elements, from the lowest on."""

    width: float
    height: float
    title: str
    description: str
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, look: str) -> None:
        """Draw a straight line."""
        self.parts.append(
            f'<line class="{look}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        )

    def text(self, x: float, y: float, text: str, look: str = "", turned: bool = False) -> None:
        """Write at a place; turned text ends there and runs upwards to it. A name may be cut."""
        longest = LONGEST if "name" in look else 300
        turn = f' transform="rotate(-60 {x:.1f} {y:.1f})"' if turned else ""
        self.parts.append(
            f'<text class="{look}" x="{x:.1f}" y="{y:.1f}"{turn}>{written(text, longest)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, look: str) -> None:
        """Draw a rectangle."""
        self.parts.append(
            f'<rect class="{look}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
        )

    def told(self, x: float, y: float, tip: str, shape: str, look: str = "") -> None:
        """Draw a shape that says what it is where it is pointed at."""
        text = written(tip, longest=300)
        self.parts.append(
            f'<g class="point {look}" data-x="{x:.1f}" data-y="{y:.1f}" data-tip="{text}">'
            f"<title>{text}</title>{shape}</g>"
        )

    def svg(self) -> str:
        """Return the whole of it, named and described for those who do not see it."""
        size = f'viewBox="0 0 {self.width:.0f} {self.height:.0f}"'
        style = f"max-width:{self.width:.0f}px;--least:{0.87 * self.width:.0f}px"
        label = written(f"{self.title}. {self.description}", longest=2000)
        return (
            f'<svg class="chart" role="img" {size} style="{style}" aria-label="{label}">'
            f"<title>{written(self.title, longest=300)}</title>{''.join(self.parts)}</svg>"
        )


def written(text: str, longest: int = LONGEST) -> str:
    """Return a name as text of a page: escaped, without what cannot be shown; of a long one both ends."""
    text = printable(str(text))
    if len(text) > longest:
        text = f"{text[: longest * 2 // 3]}\N{HORIZONTAL ELLIPSIS}{text[-(longest // 3) :]}"
    return escape(text)


def layer_lines(
    title: str,
    layers: Sequence[str],
    series: Sequence[Series],
    across: Sequence[Across],
    y_label: str,
) -> str:
    """Draw values by layer, in bands of resolution; x of a point is the layer's number in `layers`."""
    values = [value for line in series for value in _values(line.points)]
    y = Axis.of_values(y_label, [*values, *(level.y for level in across)])
    drawing, frame = _over_layers(title, layers, y, _said(series, across), _beside(across))
    _draw_across(drawing, frame, across)
    _draw_series(drawing, frame, series)
    return drawing.svg()


def layer_columns(
    title: str, layers: Sequence[str], heights: Sequence[float], tips: Sequence[str], y_label: str
) -> str:
    """Draw a column for each layer, in bands of resolution."""
    y = Axis.of_values(y_label, [0.0, *heights])
    top = max(range(len(layers)), key=lambda i: heights[i])
    drawing, frame = _over_layers(title, layers, y, f"Most: {tips[top]}")
    for number, (height, tip) in enumerate(zip(heights, tips, strict=True)):
        left, right = frame.x(number - 0.36), frame.x(number + 0.36)
        top_y, base = frame.y(height), frame.y(max(y.low, 0.0))
        shape = (
            f'<rect class="column" x="{left:.1f}" y="{top_y:.1f}" width="{right - left:.1f}" '
            f'height="{max(base - top_y, 0.5):.1f}"/>'
        )
        drawing.told((left + right) / 2, top_y, tip, shape, "s0")
    return drawing.svg()


def lines(
    title: str,
    series: Sequence[Series],
    across: Sequence[Across],
    x: Axis,
    y_label: str,
    y: Axis | None = None,
    width: float = 430,
) -> str:
    """Draw values over numbers."""
    values = [value for line in series for value in _values(line.points)]
    y = y or Axis.of_values(y_label, [*values, *(level.y for level in across)])
    frame = Frame(LEFT, width - _beside(across), TOP - 18, TOP - 18 + HEIGHT, x, y)
    drawing = Drawing(width, frame.bottom + BOTTOM, title, _said(series, across))
    _draw_upright(drawing, frame)
    for tick, name in x.ticks:
        drawing.line(frame.x(tick), frame.bottom, frame.x(tick), frame.bottom + 4, "axis")
        drawing.text(frame.x(tick), frame.bottom + 18, name, "middle")
    drawing.text((frame.left + frame.right) / 2, frame.bottom + 38, x.label, "middle label")
    _draw_across(drawing, frame, across)
    _draw_series(drawing, frame, series)
    return drawing.svg()


def dots(title: str, rows: Sequence[Dot], x_label: str, zero: bool = False) -> str:
    """Draw a row for each value with its interval; with `zero` a line at 0, which decides."""
    names, words = (
        max(LABEL * min(len(text), longest) for text in texts)
        for texts, longest in (
            ([row.label for row in rows], LONGEST),
            ([row.words for row in rows], 300),
        )
    )
    left, plot = names + 14, 240
    known = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    x = Axis.over(x_label, [*known, *([0.0] if zero else [])])
    spare = 0.06 * (x.high - x.low)
    x = Axis(x.label, x.low - spare, x.high + spare, ticks=x.ticks)
    frame = Frame(left, left + plot, 8, 8 + 28 * len(rows), x, Axis("", 0, 1))
    drawing = Drawing(
        frame.right + 16 + words, frame.bottom + BOTTOM, title, "; ".join(row.tip for row in rows)
    )
    for tick, name in x.ticks:
        drawing.line(frame.x(tick), frame.top, frame.x(tick), frame.bottom, "grid")
        drawing.text(frame.x(tick), frame.bottom + 18, name, "middle")
    if zero:
        drawing.line(frame.x(0), frame.top, frame.x(0), frame.bottom + 4, "axis strong")
    drawing.text((frame.left + frame.right) / 2, frame.bottom + 38, x.label, "middle label")
    for number, row in enumerate(rows):
        height = frame.top + 28 * number + 14
        drawing.text(left - 12, height + 4, row.label, "end name")
        drawing.text(frame.right + 14, height + 4, row.words, "strong-text")
        shape = ""
        if row.low is not None and row.high is not None:
            low, high = frame.x(row.low), frame.x(row.high)
            shape = f'<path class="whisker" d="M{low:.1f} {height}H{high:.1f}"/>'
        shape += marker(row.look, frame.x(row.value), height, 5.5)
        drawing.told(frame.x(row.value), height, row.tip, shape, row.look)
    return drawing.svg()


def grid(
    title: str,
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    shades: NDArray[np.float64] | None = None,
    numbers: bool = False,
) -> str:
    """Draw a map of values: rows and columns are named, and parted where the resolution changes.

    Args:
        title: what it is of.
        values: (K, L); NaN where there is none.
        rows: names, K.
        columns: names, L.
        shades: from 0 to 1, (K, L); the values themselves if not given.
        numbers: whether the values are written into the cells.
    """
    shades = values if shades is None else shades
    cell = (46.0, 26.0) if numbers else (max(13.0, min(26.0, 560 / len(columns))),) * 2
    left, below = (
        min(LABEL * max(len(name) for name in names), LABEL * LONGEST) for names in (rows, columns)
    )
    left, top = left + 10, 8
    width, height = cell[0] * len(columns), cell[1] * len(rows)
    room = max(left, 0.5 * below)  # turned names reach to the left
    high_row, high_column = divmod(int(np.nanargmax(values)), len(columns))
    highest = values[high_row, high_column]
    told = f"Highest: {rows[high_row]} with {columns[high_column]}, {highest:.2f}"
    drawing = Drawing(room + width + 16, top + height + 0.87 * below + 22, title, told)
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        shade = float(np.clip(shades[row, column], 0, 1))
        x, y = room + cell[0] * column, top + cell[1] * row
        shape = _cell(x, y, cell, shade, f"{round(value, 2) + 0.0:.2f}" if numbers else "")
        tip = f"{rows[row]}, {columns[column]}: {value:.3f}"
        drawing.told(x + cell[0] / 2, y + cell[1] / 2, tip, shape)
    every = 1 if cell[1] > 15 else 4  # of the names that are written
    for at, name in _some_names(rows, every):
        drawing.text(room - 8, top + cell[1] * (at + 0.5) + 4, name, "end name")
    for at, name in _some_names(columns, every):
        place = room + cell[0] * (at + 0.5) + 4
        drawing.text(place, top + height + 14, name, "end name", turned=True)
    for edge in resolution_edges(rows)[1:-1]:
        y = top + cell[1] * edge
        drawing.line(room, y, room + width, y, "seam")
    for edge in resolution_edges(columns)[1:-1]:
        x = room + cell[0] * edge
        drawing.line(x, top, x, top + height, "seam")
    return drawing.svg()


def counts(
    title: str,
    description: str,
    counted: NDArray[np.int64],
    shades: NDArray[np.float64],
    names: Sequence[str],
) -> str:
    """Draw how many of each true class, a row, are taken for each class, a column.

    Counts of up to `MOST_NUMBERS` classes are written into the cells. More than `MOST_CELLS` are an image
    without names, as there is no room for any.

    Args:
        title: what it is of.
        description: what it shows, for those who do not see it.
        counted: (K, K).
        shades: from 0 to 1, (K, K).
        names: of classes, K.
    """
    written_in, told = len(names) <= MOST_NUMBERS, len(names) <= MOST_CELLS
    digits = len(str(counted.max()))
    side = max(16.0 if told else 0.0, 560 / len(names))
    cell = (max(26.0, 8.0 * digits + 10), 26.0) if written_in else (side, side)
    beside = LABEL * min(max(map(len, names)), LONGEST) if told else 0.0
    turned = beside > cell[0] - 4
    room, top = beside + 38, 8.0
    width, height = cell[0] * len(names), cell[1] * len(names)
    bottom = top + height + (0.87 * beside if turned else 8.0) + 14
    drawing = Drawing(room + width + 16, bottom + 26, title, description)
    if told:
        drawing.parts.append(_cell(room, top, (width, height), 0.0))
        for (row, column), count in np.ndenumerate(counted):
            x, y, shade = room + cell[0] * column, top + cell[1] * row, float(shades[row, column])
            shape = _cell(x, y, cell, shade, str(count) if written_in and count else "")
            tip = f"{names[row]}, taken for {names[column]}: {count} of {counted[row].sum()} images"
            if count or row == column:
                drawing.told(x + cell[0] / 2, y + cell[1] / 2, tip, shape)
        for at, name in enumerate(names):
            drawing.text(room - 8, top + cell[1] * (at + 0.5) + 4, name, "end name")
            look, right = ("end name", 4.0) if turned else ("middle name", 0.0)
            place = room + cell[0] * (at + 0.5) + right
            drawing.text(place, top + height + 14, name, look, turned)
    else:
        drawing.parts.append(
            f'<image x="{room:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'preserveAspectRatio="none" style="image-rendering:pixelated" href="{_image(shades)}"/>'
        )
    of = "" if told else f", {len(names)} in order"
    drawing.text(room + width / 2, bottom + 14, f"predicted class{of}", "middle label")
    drawing.parts.append(
        f'<text class="middle label" transform="rotate(-90 16 {top + height / 2:.1f})" x="16" '
        f'y="{top + height / 2:.1f}">true class{of}</text>'
    )
    return drawing.svg()


def _cell(x: float, y: float, size: tuple[float, float], shade: float, number: str = "") -> str:
    """Return a cell of a map, with a number in it where there is one."""
    shape = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{size[0] + 0.3:.1f}" height="{size[1] + 0.3:.1f}" '
        f'fill="{_color(shade)}"/>'
    )
    if number:
        ink = "dark" if shade > 0.5 else "bright"
        shape += (
            f'<text class="middle ink-{ink}" x="{x + size[0] / 2:.1f}" '
            f'y="{y + size[1] / 2 + 4:.1f}">{number}</text>'
        )
    return shape


def _image(shades: NDArray[np.float64]) -> str:
    """Return shades from 0 to 1 as the address of an image, a pixel each."""
    image = Image.fromarray(np.round(255 * shades).astype(np.uint8)).convert("P")
    image.putpalette([int(_color(k / 255)[i : i + 2], 16) for k in range(256) for i in (1, 3, 5)])
    file = io.BytesIO()
    image.save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def swatch(look: str, kind: str = "line") -> str:
    """Return the small picture of a legend: a `line` with its marker, a `band`, a `star`, a map's `scale`."""
    shape = '<path class="line" d="M1 8H33"/>' + marker(look, 17, 8, 4.5)
    if kind == "band":
        shape = '<rect class="band" x="2" y="2" width="30" height="12"/>'
    elif kind == "star":
        shape = _star(17, 8, 8)
    elif kind == "scale":
        shape = "".join(
            f'<rect x="{2 * k + 1}" y="2" width="2.3" height="12" fill="{_color(k / 15)}"/>'
            for k in range(16)
        )
    return (
        f'<svg class="swatch {look}" width="34" height="16" viewBox="0 0 34 16" aria-hidden="true">'
        f"{shape}</svg>"
    )


@dataclass(frozen=True)
class Frame:
    """Where values lie on a drawing."""

    left: float
    right: float
    top: float
    bottom: float
    across: Axis
    upright: Axis

    def x(self, value: float) -> float:
        """Return where a value lies across."""
        return self.left + self.across.place(value) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Return where a value lies upright."""
        return self.bottom - self.upright.place(value) * (self.bottom - self.top)


def _over_layers(
    title: str, layers: Sequence[str], y: Axis, description: str, right: float = RIGHT
) -> tuple[Drawing, Frame]:
    """Return a drawing whose axis across is layers, named within bands of their resolution."""
    count = len(layers)
    step = min(46.0, max(11.0, 900 / count))
    every = 1 if step > 20 else 5  # of the numbers that are written
    in_bands = all(layer_place(name) for name in layers)
    below = 22.0
    if not in_bands:
        below = 18 + 0.87 * LABEL * min(max(map(len, layers)), LONGEST)
    x = Axis("layer, coarsest first" if in_bands else "layer", -0.5, count - 0.5)
    left = LEFT if in_bands else max(LEFT, 0.5 * below)
    frame = Frame(left, left + max(step * count, 240), TOP, TOP + HEIGHT, x, y)
    drawing = Drawing(frame.right + right, frame.bottom + below + 24, title, description)
    for turn, (start, stop) in enumerate(pairwise(resolution_edges(layers))):
        if in_bands:
            first, last = frame.x(start - 0.5), frame.x(stop - 0.5)
            shade = "band-even" if turn % 2 else "band-odd"
            drawing.box(first, frame.top - 20, last - first, HEIGHT + 20, shade)
            resolution = layers[start].partition(".")[0]
            if last - first < LABEL * len(resolution):
                resolution = resolution.partition("x")[0]
            drawing.text((first + last) / 2, frame.top - 6, resolution, "middle small")
            end = stop if every == 1 else max(start + 1, stop - 1)  # none beside the next band's
            for number in range(start, end, every):
                own = layers[number].partition(".")[2]
                drawing.text(frame.x(number), frame.bottom + 17, own, "middle small")
    _draw_upright(drawing, frame)
    for number, name in enumerate(() if in_bands else layers):
        drawing.text(frame.x(number) + 4, frame.bottom + 15, name, "end small name", turned=True)
    label = "layer of each resolution, coarsest first" if in_bands else x.label
    drawing.text((frame.left + frame.right) / 2, frame.bottom + below + 16, label, "middle label")
    return drawing, frame


def _draw_upright(drawing: Drawing, frame: Frame) -> None:
    """Draw the upright axis: lines across at its ticks, and what it is of above it."""
    for tick, name in frame.upright.ticks:
        drawing.line(frame.left, frame.y(tick), frame.right, frame.y(tick), "grid")
        drawing.text(frame.left - 8, frame.y(tick) + 4, name, "end")
    drawing.line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")
    drawing.text(0, 14, frame.upright.label, "label")


def _draw_across(drawing: Drawing, frame: Frame, across: Sequence[Across]) -> None:
    """Draw levels, whose names move apart where they would cover each other."""
    heights: list[float] = []
    for level in sorted(across, key=lambda level: -level.y):
        y = frame.y(level.y)
        heights.append(max(y, heights[-1] + 15) if heights else y)
    if heights and (over := heights[-1] - frame.bottom - 12) > 0:
        heights = [height - over for height in heights]
        for number in reversed(range(len(heights) - 1)):
            heights[number] = min(heights[number], heights[number + 1] - 15)
            heights[number] = max(heights[number], 0)
    for level, height in zip(sorted(across, key=lambda level: -level.y), heights, strict=True):
        y = frame.y(level.y)
        drawing.parts.append(f'<g class="{level.look}">')
        drawing.line(frame.left, y, frame.right, y, "line")
        drawing.line(frame.right, y, frame.right + 8, height, "leader")
        drawing.text(frame.right + 11, height + 4, level.label, "name")
        drawing.parts.append("</g>")


def _draw_series(drawing: Drawing, frame: Frame, series: Sequence[Series]) -> None:
    """Draw bands first, then lines, then points and stars, so that no point is covered."""
    for line in series:
        known = [p for p in line.points if p.low is not None and p.high is not None]
        if len(known) > 1 and line.bands:
            upper = [f"{frame.x(p.x):.1f} {frame.y(p.high or 0):.1f}" for p in known]
            lower = [f"{frame.x(p.x):.1f} {frame.y(p.low or 0):.1f}" for p in reversed(known)]
            path = "L".join([*upper, *lower])
            drawing.parts.append(f'<path class="band {line.look}" d="M{path}Z"/>')
        for p in known if len(known) == 1 else ():
            x, top, bottom = frame.x(p.x), frame.y(p.high or 0), frame.y(p.low or 0)
            drawing.parts.append(
                f'<path class="whisker {line.look}" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'
            )
    for line in series:
        places = [(frame.x(p.x), frame.y(p.y)) for p in line.points]
        path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
        for x, y in places[1:]:
            path += f"H{x:.1f}V{y:.1f}" if line.steps else f"L{x:.1f} {y:.1f}"
        drawing.parts.append(f'<g class="{line.look}"><path class="line" d="{path}"/></g>')
    for turn, line in enumerate(series):
        each = 1 if line.markers else max(1, len(line.points) // 6)
        for number, point in enumerate(line.points):
            x, y = frame.x(point.x), frame.y(point.y)
            shape = f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
            if (number + turn) % each == 0:  # of curves that run together, at places of their own
                shape = marker(line.look, x, y, 3.8)
            if point.tip and not point.chosen:
                drawing.told(x, y, point.tip, shape, line.look)
    for line in series:
        for point in line.points:
            if point.chosen:
                x, y = frame.x(point.x), frame.y(point.y)
                drawing.told(x, y, point.tip, _star(x, y, 9.5), line.look)


def marker(look: str, x: float, y: float, size: float) -> str:
    """Return the marker of a look: of series and verdicts a shape each, of other looks a small cross."""
    shapes: dict[str, Callable[[], str]] = {
        "s0": lambda: _polygon(x, y, size, 24),
        "s1": lambda: _polygon(x, y, 1.25 * size, 4, math.pi / 4),
        "s2": lambda: _polygon(x, y, 1.35 * size, 4),
        "s3": lambda: _polygon(x, y, 1.35 * size, 3),
        "s4": lambda: _polygon(x, y, 1.35 * size, 3, math.pi),
        "s5": lambda: _polygon(x, y, 1.25 * size, 6),
        "s6": lambda: _polygon(x, y, 1.25 * size, 5),
        "pixels": lambda: _polygon(x, y, 1.15 * size, 4, math.pi / 4),
        "pca": lambda: _polygon(x, y, 1.25 * size, 4),
        "better": lambda: _polygon(x, y, 1.35 * size, 3),
        "worse": lambda: _polygon(x, y, 1.35 * size, 3, math.pi),
        "undecided": lambda: _polygon(x, y, size, 24),
    }
    if look in shapes:
        return f'<path class="mark" d="{shapes[look]()}"/>'
    s = 0.6 * size
    if look == "shuffled-labels":
        return f'<path class="cross" d="M{x - s:.1f} {y:.1f}H{x + s:.1f}M{x:.1f} {y - s:.1f}V{y + s:.1f}"/>'
    if look == "chance":
        return ""
    return (
        f'<path class="cross" d="M{x - s:.1f} {y - s:.1f}L{x + s:.1f} {y + s:.1f}'
        f'M{x - s:.1f} {y + s:.1f}L{x + s:.1f} {y - s:.1f}"/>'
    )


def _polygon(x: float, y: float, radius: float, corners: int, turn: float = 0.0) -> str:
    angles = [turn + 2 * math.pi * k / corners for k in range(corners)]
    places = [f"{x + radius * math.sin(a):.1f} {y - radius * math.cos(a):.1f}" for a in angles]
    return f"M{'L'.join(places)}Z"


def _star(x: float, y: float, radius: float) -> str:
    angles = [math.pi * k / 5 for k in range(10)]
    sizes = [radius, 0.45 * radius] * 5
    places = [
        f"{x + r * math.sin(a):.1f} {y - r * math.cos(a):.1f}"
        for a, r in zip(angles, sizes, strict=True)
    ]
    return f'<path class="star" d="M{"L".join(places)}Z"/>'


def _beside(across: Sequence[Across]) -> float:
    """Return how much room the names of levels take at the right."""
    longest = max((min(len(level.label), LONGEST) for level in across), default=0)
    return RIGHT + LABEL * longest


def _values(points: Sequence[Point]) -> Iterable[float]:
    for point in points:
        yield from (v for v in (point.y, point.low, point.high) if v is not None)


def _said(series: Sequence[Series], across: Sequence[Across]) -> str:
    """Return in words what stands on a chart of lines: of each line its ends and what was chosen."""
    said = []
    for line in series:
        told = [p for p in line.points if p.tip]
        shown = [p for p in told if p.chosen] or [told[0], told[-1]]
        how = "chosen" if shown[0].chosen else "first and last"
        said.append(f"{line.label}, {how}: {'; '.join(p.tip for p in dict.fromkeys(shown))}")
    return ". ".join([*said, *(level.label for level in across)])


def _some_names(names: Sequence[str], every: int) -> Iterator[tuple[int, str]]:
    """Yield names with their places, of each resolution's the first and so many of the others."""
    for start, stop in pairwise(resolution_edges(names)):
        yield from ((at, names[at]) for at in range(start, stop, every))


def _color(shade: float) -> str:
    """Return a color of the map cividis, which color-blind readers see alike, from 0 to 1."""
    place = shade * (len(CIVIDIS) - 1)
    low = min(int(place), len(CIVIDIS) - 2)
    ends = [[int(CIVIDIS[k][i : i + 2], 16) for i in (1, 3, 5)] for k in (low, low + 1)]
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed)
