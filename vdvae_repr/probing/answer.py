"""The answer of a probe: the best layer, the best set of layers, and whether the best control is beaten.

It is worked out of the rows and comparisons of a report alone, in at most `LINES` lines of `WIDTH` columns.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vdvae_repr.errors import printable
from vdvae_repr.results import Comparison, Result, aligned, layer_of

LINES, WIDTH = 30, 80
SHORT = {"no difference told": "no difference"}  # verdicts as a narrow column has them


@dataclass(frozen=True)
class Asked:
    """What one head was asked, once: the rows of its first metric.

    Args:
        label: the head, with the number of shots where there are several.
        rows: of the store's model, of those beside and of the controls.
        comparisons: of the chosen row with each rival.
    """

    label: str
    rows: Sequence[Result]
    comparisons: Sequence[Comparison]

    @property
    def own(self) -> list[Result]:
        """The rows of the store's model, whose rows come first."""
        name = next(row.model for row in self.rows if row.role == "model")
        return [row for row in self.rows if row.model == name]

    @property
    def picked(self) -> Result | None:
        """The row that training data picked."""
        return next((row for row in self.own if row.chosen), None)

    @property
    def beside(self) -> list[Result]:
        """The chosen rows of other models."""
        own = self.own[0].model
        return [r for r in self.rows if r.role == "model" and r.model != own and r.chosen]

    def best(self, single: bool) -> Result | None:
        """Return the row that training data put first among single layers, or among sets of them."""
        among = [
            row
            for row in self.own
            if (row.selection == "single") is single and row.training_score is not None
        ]
        return max(among, key=lambda row: row.training_score or 0.0, default=None)

    @property
    def all_together(self) -> Result:
        """The row of most dimensions: what can be shown without choosing."""
        return max(self.own, key=lambda row: row.dims)


def answer(
    rows: Sequence[Result],
    comparisons: Sequence[Comparison],
    headlines: Sequence[str] = (),
    footer: Sequence[str] = (),
) -> str:
    """Say what rows and comparisons amount to.

    Args:
        rows: of a report.
        comparisons: of its chosen rows with each rival.
        headlines: what was asked of how many, a line each; what else must be known stands behind them.
        footer: what may be asked next.
    """
    asked = list(_asked(rows, comparisons))
    lines = [line for text in headlines for line in _wrapped(text)]
    lines += [line for text in _warnings(asked) for line in _wrapped(text)]
    lines += _table(asked, room=LINES - len(lines) - len(footer) - 3)
    if by_model := [f"{one.label} {_scored(row)}" for one in asked for row in one.beside]:
        lines += _wrapped(f"beside: {', '.join(by_model)}")[:4]
    lines += [line for text in (_legend(asked), *footer) for line in _wrapped(text)]
    return "\n".join(lines)


def _asked(rows: Sequence[Result], comparisons: Sequence[Comparison]) -> Iterator[Asked]:
    first: dict[tuple[str, str, int], tuple[str, float | None]] = {}
    for row in rows:
        first.setdefault((row.task, row.head, row.n_train), (row.metric, row.at))
    parts = {(task, n_train) for task, _, n_train in first}
    for (task, head, n_train), (metric, at) in first.items():
        label = head if len(parts) == 1 else f"{head}, {n_train} images"
        own = [
            row
            for row in rows
            if (row.task, row.head, row.n_train) == (task, head, n_train)
            and (row.metric, row.at) == (metric, at)
        ]
        beaten = [
            c for c in comparisons if (c.task, c.head, c.n_train) == (task, head, n_train)
        ]
        if any(row.role == "model" for row in own):
            yield Asked(label, own, beaten)


def _warnings(asked: Sequence[Asked]) -> Iterator[str]:
    """Yield what is too little to choose by, or to tell a difference by."""
    unchosen = [one for one in asked if one.picked is None]
    if unchosen:
        which = "" if len(unchosen) == len(asked) else f" by {', '.join(o.label for o in unchosen)}"
        yield (
            f"No row is picked{which}: no data are set apart to choose on. The value of all that was "
            "read is shown; one layer alone (--layer) is compared with the controls."
        )
    for why in dict.fromkeys(c.why for one in asked for c in one.comparisons if c.why):
        yield f"No p: {why}."
    if left_out := next((one.rows[0].controls_left_out for one in asked if one.rows), None):
        yield f"Not run, so not beaten: {left_out}."


def _table(asked: Sequence[Asked], room: int) -> list[str]:
    """Return a line for each head; two where one would be too wide, and no more lines than there is room."""
    header = ["", "best single", "best set", "against the best control"]
    cells = [_cells(one) for one in asked]
    lines = aligned([header, *([*cell[:3], " ".join(cell[3:])] for cell in cells)]).splitlines()
    most = room - 1
    if max(map(len, lines)) > WIDTH:
        lines = [_pair(cell) for cell in cells]
        lines = [line for pair in lines for line in pair]
        most = room // 2 * 2
    if len(lines) > room:
        left = (len(lines) - most) // (len(lines) // len(asked))
        lines = [*lines[:most], f"and {left} more: --rows"]
    return lines


def _cells(one: Asked) -> list[str]:
    """Return head, best single layer, best set, rival, difference with its interval, verdict."""
    picked = one.picked
    if picked is None:
        return [one.label, "-", _scored(one.all_together), *_controls(one)]
    single, several = (
        _scored(row, picked) if row is not None else "-" for row in (one.best(True), one.best(False))
    )
    if one.best(True) is None and one.best(False) is None:  # one row, alone
        single = _scored(picked)
    if picked.versus is None:
        return [one.label, single, several, "-"]
    rival = next(c for c in one.comparisons if c.versus == picked.versus)
    interval = ""
    if picked.diff_low is not None and picked.diff_high is not None:
        interval = f" [{_short(picked.diff_low, 2)},{_short(picked.diff_high, 2)}]"
    return [
        one.label,
        single,
        several,
        f"{_control(rival.versus)} {_short(rival.versus_value)}",
        f"{_short(picked.difference or 0.0, sign=True)}{interval}",
        SHORT.get(rival.verdict, rival.verdict),
    ]


def _controls(one: Asked) -> list[str]:
    """Return the controls' values, where nothing is compared."""
    rows = {row.model: row for row in one.rows if row.role == "control" and row.chosen}
    return [", ".join(f"{_control(name)} {_short(row.value)}" for name, row in rows.items()) or "-"]


def _pair(cells: Sequence[str]) -> tuple[str, str]:
    label, single, several, *rest = cells
    return (
        f"{label}: best single {single}, best set {several}"[:WIDTH],
        f"    against the best control: {' '.join(rest)}"[:WIDTH],
    )


def _scored(row: Result, picked: Result | None = None) -> str:
    """Return what a row is of and its value, `*` where it is the one that was picked."""
    return f"{layer_of(row)} {_short(row.value)}{'*' if row is picked else ''}"


def _control(name: str) -> str:
    return name.removesuffix("-init")


def _legend(asked: Sequence[Asked]) -> str:
    if not asked:
        return ""
    metrics = dict.fromkeys(
        row.metric + ("" if row.at is None or row.metric == "accuracy" else f" at {row.at:g}")
        for one in asked
        for row in one.rows[:1]
    )
    chances = {round(row.chance, 3) for one in asked for row in one.rows[:1] if row.chance is not None}
    text = ", ".join(metrics)
    if len(chances) == 1:
        text += f", chance {_short(chances.pop())}"
    if any(one.picked is not None for one in asked):
        text += " · * picked by training data, and compared"
    return text


def _short(value: float, digits: int = 3, sign: bool = False) -> str:
    """Return a fraction without its leading zero, as `.355` or `-.12`."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and not text.endswith("1." + "0" * digits) else text


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(printable(text), WIDTH, break_long_words=True) if text else []
