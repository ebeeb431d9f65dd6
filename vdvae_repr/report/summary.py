"""The answer of a probe: the layer and the set of layers that training data picked, beside the best control.

It is worked out of the rows and comparisons of a report alone, in at most `LINES` lines of `WIDTH` columns.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np

from vdvae_repr.errors import printable
from vdvae_repr.results import (
    ALPHA,
    LOWER_IS_BETTER,
    METRIC_NAMES,
    RIVALS,
    UNDECIDED,
    Comparison,
    Confusion,
    Result,
    aligned,
    layer_of,
)

LINES, WIDTH = 30, 80
MOST_HEADLINES, MOST_BESIDE = 6, 4
MOST_OTHERS = 2  # heads that the lead names beside its own
MOST_PAIRS = 3  # of classes that are named as confused
MOST_NOTES = 6  # lines that notes may take of the table's
LONGEST = 20  # of what a row is of; --rows has the whole of it
CONTROLS_IN_WORDS = {
    "pixels": "raw pixels",
    "pca": "PCA of pixels",
    "random-init": "random weights",
}


@dataclass(frozen=True)
class Asked:
    """What one head was asked, once: the rows of its first metric.

    Args:
        label: the head, with the number of shots where there are several.
        rows: of the store's model, of those beside and of the controls.
        comparisons: of the chosen row with each control.
        others: of the chosen row with each model beside.
    """

    label: str
    rows: Sequence[Result]
    comparisons: Sequence[Comparison]
    others: Sequence[Comparison] = ()

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
    def alone(self) -> bool:
        """Whether there was nothing to pick from."""
        return len(self.own) == 1

    @property
    def tied(self) -> bool:
        """Whether training data score all rows alike, so that they pick none."""
        return self.picked is None and any(row.training_score is not None for row in self.own)

    @property
    def beside(self) -> list[Result]:
        """The chosen rows of other models."""
        own = self.own[0].model
        return [r for r in self.rows if r.role == "model" and r.model != own and r.chosen]

    def best(self, single: bool) -> Result | None:
        """Return the row that training data put first among single layers, or among sets of them."""
        if self.tied:
            return None
        among = [
            row
            for row in self.own
            if (row.selection == "single") is single and row.training_score is not None
        ]
        return max(among, key=lambda row: row.training_score or 0.0, default=None)

    @property
    def worst(self) -> Comparison | None:
        """The rival by which the picked row looks worst."""
        return min(self.comparisons, key=lambda found: found.difference, default=None)

    @property
    def compared(self) -> Result:
        """The row that is compared: what training data picked, else all layers together."""
        return self.picked or max(self.own, key=lambda row: (row.versus is not None, row.dims))


def answer(
    rows: Sequence[Result],
    comparisons: Sequence[Comparison],
    headlines: Sequence[str] = (),
    footer: Sequence[str] = (),
    notes: Sequence[str] = (),
    others: Sequence[Comparison] = (),
) -> str:
    """Say what rows and comparisons amount to.

    Args:
        rows: of a report.
        comparisons: of its chosen rows with each control.
        headlines: what was asked of how many, a line each; what else must be known stands behind them.
        footer: what may be asked next.
        notes: what else the reader must know, as far as there is room.
        others: comparisons with models beside.
    """
    asked = list(asked_of(rows, comparisons, others))
    said = [line for note in notes for line in _wrapped(f"- {note}", indent="  ")]
    if not asked:
        return "\n".join(["nothing was scored", *headlines, *said][:LINES])
    above = [line for text in headlines[:MOST_HEADLINES] for line in _wrapped(text)]
    if (left := len(headlines) - MOST_HEADLINES) > 0:
        above.append(f"and {left} more")
    above += [line for text in warnings(asked) for line in _wrapped(text)]
    below = [line for text in (*beside(asked), legend(asked)) for line in _wrapped(text)]
    last = [line for text in footer for line in _wrapped(text)]
    room = LINES - len(above) - len(below) - len(last)
    table = _table(asked, room - min(len(said), MOST_NOTES))
    if (left := len(said) - (room - len(table))) > 0:
        said = [*said[: -left - 1], f"  and {left + 1} lines more: report.notes"]
    return "\n".join([*above, *table, *below, *said, *last])


def asked_of(
    rows: Sequence[Result], comparisons: Sequence[Comparison], others: Sequence[Comparison] = ()
) -> Iterator[Asked]:
    """Yield what each head was asked, in the order of the rows; nothing where no model was scored."""
    first: dict[tuple[str, str, int], tuple[str, float | None]] = {}
    for row in rows:
        first.setdefault((row.task, row.head, row.n_train), (row.metric, row.at))
    parts = {(task, n_train) for task, _, n_train in first}
    for (task, head, n_train), (metric, at) in first.items():
        label = head
        if len([part for part in parts if part[0] == task]) > 1:
            label += f", {n_train} images" if at is None else f", {shots(at)}"
        own = [
            row
            for row in rows
            if (row.task, row.head, row.n_train) == (task, head, n_train)
            and (row.metric, row.at) == (metric, at)
        ]
        found = [
            [c for c in each if (c.task, c.head, c.n_train) == (task, head, n_train)]
            for each in (comparisons, others)
        ]
        if any(row.role == "model" for row in own):
            yield Asked(label, own, *found)


def warnings(asked: Sequence[Asked]) -> Iterator[str]:
    """Yield what is too little to choose by, or to tell a difference by."""
    for tied, why in (
        (False, "no data are set apart to choose on"),
        (True, "all rows score alike on the data to choose on, which tell nothing"),
    ):
        unchosen = [one for one in asked if one.picked is None and one.tied is tied]
        if not unchosen:
            continue
        which = "" if len(unchosen) == len(asked) else f" by {', '.join(o.label for o in unchosen)}"
        shown = ", ".join(dict.fromkeys(layer_of(one.compared) for one in unchosen))
        does = "is compared" if any(one.comparisons for one in unchosen) else "is shown"
        yield (
            f"No row is picked{which}, as {why}: what has most dimensions, {shown}, {does}, which is no "
            "choice."
        )
    for why in dict.fromkeys(c.why for one in asked for c in one.comparisons if c.why):
        yield f"No p: {why}."
    left_out = asked[0].rows[0].controls_left_out or ""
    if rivals := [name for name in RIVALS if name in left_out.split(", ")]:
        yield f"Not run, so not beaten: {', '.join(rivals)}."


def beside(asked: Sequence[Asked]) -> Iterator[str]:
    """Yield what other models have, and how the picked row stands beside them, as far as there is room."""
    found = [
        f"{one.label} beside: {', '.join(_of_model(one, row) for row in one.beside)}"
        for one in asked
        if one.beside
    ]
    yield from found[:MOST_BESIDE]
    if (left := len(found) - MOST_BESIDE) > 0:
        yield f"and {left} heads more"


def _of_model(one: Asked, row: Result) -> str:
    """Return a chosen row of a model beside, and the difference of the picked row from it."""
    text = f"{row.model} {layer_of(row)} {short(row.value)}"
    compared = next((c for c in one.others if c.versus == row.model), None)
    if compared is None:
        return text
    words = compared.verdict if compared.verdict == UNDECIDED else f"{compared.verdict} than it"
    return f"{text} ({words}: {_of_difference(compared)})"


def _table(asked: Sequence[Asked], room: int) -> list[str]:
    """Return two lines for each head, what was picked and how it stands; where these are too many, one.

    Figures are never cut: where a line is too wide, heads have shorter names.
    """
    if 1 + 2 * len(asked) <= room:
        cells = _fitting(["", *columns(asked)], asked, cells_of)
        pairs = zip(cells[1:], (f"    {verdict(one)}" for one in asked), strict=True)
        return [cells[0], *chain.from_iterable(pairs)]
    kinds = {one.label.partition(":")[0] for one in asked if ":" in one.label}
    shared = f"{kinds.pop()}:" if len(kinds) == 1 and all(":" in o.label for o in asked) else ""
    header = [shared, "picked" if is_picked(asked) else "shown", "best control", ""]
    cells = _fitting(header, asked, partial(_line, shared=shared))
    room = max(room, 3)
    if (left := len(cells) - room) > 0:
        cells = [*cells[: room - 1], f"and {left + 1} heads more"]
    return cells


def _fitting(
    header: list[str], asked: Sequence[Asked], cells: Callable[[Asked], list[str]]
) -> list[str]:
    """Return a table of a row for each head, whose names are cut where lines would be too wide."""
    rows = [cells(one) for one in asked]
    lines = aligned([header, *rows]).splitlines()
    if (over := max(map(len, lines)) - WIDTH) > 0:
        longest = max(8, max(len(row[0]) for row in rows) - over)
        lines = aligned([header, *([_cut(row[0], longest), *row[1:]] for row in rows)]).splitlines()
    return lines


def _cut(name: str, size: int) -> str:
    """Shorten a name in its middle, as what tells heads apart may stand at either end."""
    if len(name) <= size:
        return name
    return f"{name[: (size - 1) // 2]}~{name[len(name) - size // 2 :]}"


def _line(one: Asked, *, shared: str) -> list[str]:
    """Return head, the row that was picked, the best control and the verdict."""
    compared, rival = one.compared, one.worst
    label = one.label.removeprefix(shared)
    if rival is None:
        return [label, _scored(compared), "", ""]
    return [label, _scored(compared, one.picked), _of_control(rival), rival.verdict]


def is_picked(asked: Sequence[Asked]) -> bool:
    """Return whether training data picked anything: not where there was one row, or nothing to pick by."""
    return any(one.picked is not None and not one.alone for one in asked)


def columns(asked: Sequence[Asked]) -> tuple[str, str, str]:
    """Return what the cells behind the head are: none is the best of test data but the control."""
    picked = "picked " if is_picked(asked) else ""
    return f"{picked}single", f"{picked}set", "best control"


def cells_of(one: Asked) -> list[str]:
    """Return head, single layer and set of layers as picked, and the control that looks best beside it."""
    best, compared, rival = (one.best(True), one.best(False)), one.compared, one.worst
    if best == (None, None):  # nothing to choose by
        best = (compared, None) if compared.selection == "single" else (None, compared)
    single, several = ("-" if row is None else _scored(row, one.picked) for row in best)
    return [one.label, single, several, "" if rival is None else _of_control(rival)]


def _of_control(rival: Comparison) -> str:
    return f"{control_name(rival.versus)} {short(rival.versus_value)}"


def verdict(one: Asked) -> str:
    """Return how the picked row stands beside its rivals, in words."""
    rival = one.worst
    if rival is None:
        values = {row.model: row.value for row in one.rows if row.role == "control" and row.chosen}
        listed = [f"{control_name(name)} {short(value)}" for name, value in values.items()]
        return f"not compared; {', '.join(listed)}" if listed else "not compared"
    words = "better than every control" if rival.verdict == "better" else rival.verdict
    return (
        f"{words}{_why_undecided(one)}: {_of_difference(rival)} beside {control_name(rival.versus)}"
    )


def _of_difference(rival: Comparison) -> str:
    """Return a difference with its interval."""
    return with_interval(rival.difference, rival.diff_low, rival.diff_high, sign=True)


def _why_undecided(one: Asked) -> str:
    """Return the p by which no difference is told, in brackets, where the interval alone would tell one.

    It is that of the difference that is shown; where this is told, that of the rival of the highest p.
    """
    rival = one.worst
    if rival is None or rival.verdict != UNDECIDED or rival.diff_low is None:
        return ""
    if rival.diff_high is None or rival.diff_low <= 0 <= rival.diff_high:
        return ""
    if rival.p_value is None:
        return " (no p)"
    other = max(one.comparisons, key=lambda found: found.p_value or 0.0)
    if rival.p_value >= ALPHA or other.p_value is None:
        return f" (p {short(rival.p_value)} after Holm)"
    return f" (p {short(other.p_value)} beside {control_name(other.versus)})"


def confused(found: Confusion) -> str:
    """Say in a sentence which class is most often taken for which other one.

    Examples:
        >>> counts = np.array([[69, 31], [4, 96]])
        >>> of = {"head": "knn", "n_train": 9, "model": "tiny", "layer": "4x4.0", "selection": "single"}
        >>> of |= {"feature": "mean", "pool": None, "classes": ("cat", "dog"), "counts": counts}
        >>> confused(Confusion(**of))
        'cat is taken for dog most often: 31 of 100 images.'
    """
    wrong = np.where(np.eye(len(found.classes), dtype=bool), 0, found.counts)
    most, images = wrong.max(), found.counts.sum(axis=1)
    if not most:
        return "No test image is taken for another class."
    often = np.argwhere(wrong == most).tolist()
    names = [_cut(printable(name), LONGEST) for name in found.classes]
    verbs = ["is taken for", *["for"] * (MOST_PAIRS - 1)]
    pairs = [
        f"{names[truth]} {verb} {names[predicted]}"
        for verb, (truth, predicted) in zip(verbs, often, strict=False)
    ]
    said = f"{', '.join(pairs[:-1])} and {pairs[-1]}" if len(pairs) > 1 else pairs[0]
    counted = f"{most:,} image{'s' if most > 1 else ''} each"
    if len(often) == 1:
        counted = f"{most:,} of {images[often[0][0]]:,} images"
    left = len(often) - len(pairs)
    others = f", as in {left} other pair{'s' if left > 1 else ''}" if left else ""
    return f"{said} most often: {counted}{others}."


def shots(at: float) -> str:
    """Return a number of shots in words."""
    return f"{at:g} shot" if at == 1 else f"{at:g} shots"


def _scored(row: Result, picked: Result | None = None) -> str:
    """Return what a row is of and its value, `*` where it is the one that was picked."""
    return f"{_cut(layer_of(row), LONGEST)} {short(row.value)}{'*' if row is picked else ''}"


def control_name(name: str) -> str:
    """Return what a control is called in a line: `random` of `random-init`."""
    return name.removesuffix("-init")


def legend(asked: Sequence[Asked]) -> str:
    """Return what the figures are, what chance is, and what `*` means."""
    firsts = [one.rows[0] for one in asked]
    metrics = dict.fromkeys(
        row.metric
        + ("" if row.at is None or row.metric == "accuracy" else f" at {row.at:g}")
        + (", lower is better" if row.metric in LOWER_IS_BETTER else "")
        for row in firsts
    )
    chances = {round(row.chance, 3) for row in firsts if row.chance is not None}
    text = " or ".join(metrics)
    if len(chances) == 1:
        text += f", chance {short(chances.pop())}"
    if all(one.picked is None for one in asked):
        return text
    compared = any(one.comparisons for one in asked)
    if any(one.alone for one in asked):
        return f"{text} · * the only row{', and compared' if compared else ''}"
    return f"{text} · picked by training data, * {'compared' if compared else 'first of both'}"


def short(value: float, sign: bool = False) -> str:
    """Return three decimals, of a fraction without its leading zero, as `.355` or `-.120`."""
    text = f"{round(value, 3) + 0.0:{'+' if sign else ''}.3f}"  # not -.000
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def with_interval(value: float, low: float | None, high: float | None, sign: bool = False) -> str:
    """Return a value with its interval, where it has one, as `.355 [.301, .409]`."""
    text = short(value, sign)
    return text if low is None or high is None else f"{text} [{short(low)}, {short(high)}]"


def metric_words(metric: str, at: float | None = None) -> str:
    """Return a metric in words, with what it is at: a false accept rate, or of accuracy a number of shots."""
    words = METRIC_NAMES.get(metric, metric.replace("_", " "))
    if at is not None:
        words += f", {shots(at)}" if metric == "accuracy" else f" at a false accept rate of {at:g}"
    return words


@dataclass(frozen=True)
class Lead:
    """The answer in one sentence, with its figure; `verdict` is that of the comparison behind it, if any."""

    figure: str
    unit: str
    sentence: str
    verdict: str | None


def lead(asked: Sequence[Asked]) -> Lead | None:
    """Return the answer in a few sentences: of the head that training data put first, then of others.

    Of factors, which are a head each, how many the model tells better than every control.
    """
    if not asked:
        return None
    if asked[0].rows[0].task == "factors" and len(asked) > 1:
        return _lead_of_factors(asked)
    one = max(asked, key=lambda each: getattr(each.picked, "training_score", None) or -float("inf"))
    row = one.compared
    known = []
    if row.ci_low is not None and row.ci_high is not None:
        known.append(f"95 % interval {short(row.ci_low)} to {short(row.ci_high)}")
    if row.chance is not None:
        known.append(f"chance {short(row.chance)}")
    brackets = f" ({', '.join(known)})" if known else ""
    many, what = _in_words(one)
    words = metric_words(row.metric, row.at)
    lower = ", where lower is better" if row.metric in LOWER_IS_BETTER else ""
    article = "an" if words[0] in "aeiou" else "a"
    sentence = (
        f"{what} of {row.model} reach{'' if many else 'es'} {article} {words} of {short(row.value)}"
        f"{lower}, by {one.label}{brackets}. {_alone(one)}{_beside_controls(one)}"
        f"{_by_other_heads(asked, one)}"
    )
    return Lead(short(row.value), words, sentence, one.worst.verdict if one.worst else None)


def _alone(one: Asked) -> str:
    """Return, where a set was picked, which single layer training data and which test data put first."""
    single, picked = one.best(single=True), one.picked
    if single is None or picked is None or picked.selection == "single":
        return ""
    said = (
        f"Of single layers {layer_of(single)} was first on training data: {short(single.value)}. "
    )
    sign = -1 if picked.metric in LOWER_IS_BETTER else 1
    singles = [row for row in one.own if row.selection == "single"]
    found = max(singles, key=lambda row: sign * row.value)
    if sign * found.value > sign * picked.value and short(found.value) != short(picked.value):
        said += (
            f"{layer_of(found)} alone scored {short(found.value)} on the test images, but nothing seen "
            "before them said so. "
        )
    return said


def _by_other_heads(asked: Sequence[Asked], one: Asked) -> str:
    """Return what other heads of the same task reach, a sentence each; first those of as many images."""
    task, n_train = one.rows[0].task, one.rows[0].n_train
    others = [each for each in asked if each is not one and each.rows[0].task == task]
    others.sort(key=lambda each: each.rows[0].n_train != n_train)
    said = ""
    for each in others[:MOST_OTHERS]:
        said += f" By {each.label} {short(each.compared.value)}{_in_short(each.worst)}."
    if (left := len(others) - MOST_OTHERS) > 0:
        said += f" And {left} more {'head' if left == 1 else 'heads'} below."
    return said


def _in_short(rival: Comparison | None) -> str:
    """Return the verdict as the end of a sentence."""
    if rival is None:
        return ""
    if rival.verdict == "better":
        return ", better than every control"
    joined = "beside" if rival.verdict == UNDECIDED else "than"
    return f", {rival.verdict} {joined} {_in_full(rival.versus)}"


def _beside_controls(one: Asked) -> str:
    """Return what controls reach, and what the verdict says, as sentences."""
    rival = one.worst
    if rival is None:
        return f"It is {verdict(one)}."
    found = [f"{_in_full(c.versus)} {short(c.versus_value)}" for c in one.comparisons]
    name, difference = _in_full(rival.versus), _of_difference(rival)
    said = {
        "better": f"The model is better than each of them; nearest, {name}: {difference}.",
        "worse": f"The model is worse than {name}: {difference}.",
    }
    undecided = f"No difference from {name} can be told{_why_undecided(one)}: {difference}."
    return f"Controls reach: {', '.join(found)}. {said.get(rival.verdict, undecided)}"


def _in_full(name: str) -> str:
    """Return what a control is called in a sentence."""
    return CONTROLS_IN_WORDS.get(name, name)


def _in_words(one: Asked) -> tuple[bool, str]:
    """Return whether the compared row is of several layers, and which, as the beginning of a sentence."""
    row = one.compared
    name = layer_of(row)
    if row.selection == "single":
        return False, f"Layer {name}"
    if row.selection == "cumulative" and (match := re.fullmatch(r"0:(\d+)", row.layer or "")):
        singles = [each.layer for each in one.own if each.selection == "single" and each.layer]
        held = list(dict.fromkeys(singles))[: int(match[1])]
        which = f", {held[0]} to {held[-1]}" if len(held) == int(match[1]) else ""
        return True, f"The first {match[1]} layers together ({name}{which})"
    if row.selection == "pruned":
        return False, f"The selection {name}"
    return True, f"Layers {name} together"


def _lead_of_factors(asked: Sequence[Asked]) -> Lead:
    said = Counter(one.worst.verdict for one in asked if one.worst)
    words = f"factors of {len(asked)} told better than by every control"
    if not said:
        return Lead(str(len(asked)), "factors", "Nothing was compared with controls.", None)
    model = asked[0].own[0].model
    sentence = (
        f"{model} tells {said['better']} of {len(asked)} factors better than every control, "
        f"{said['worse']} worse than some control; of {said[UNDECIDED]} no difference is told."
    )
    return Lead(str(said["better"]), words, sentence, None)


def _wrapped(text: str, indent: str = "") -> list[str]:
    if not text:
        return []
    return textwrap.wrap(printable(text), WIDTH, subsequent_indent=indent, break_on_hyphens=False)
