"""Result rows: one figure each, with everything needed to read it; to JSON lines, CSV and a table."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vdvae_repr.errors import TaskError, printable
from vdvae_repr.output import prepare_folder, write_table, write_text

if TYPE_CHECKING:
    import pandas as pd

CONTROLS = ("pixels", "pca", "random-init", "shuffled-labels")  # values of `model`
RIVALS = CONTROLS[:3]  # that a layer must beat; shuffled labels are a check of the protocol
SELECTIONS = ("single", "joint", "cumulative", "without", "pruned")  # values of `selection`
LOWER_IS_BETTER = ("eer", "error")  # values of `metric`
ALPHA = 0.05  # below which a p tells a difference
UNDECIDED = "no difference told"  # a verdict, beside `better` and `worse`
METRIC_NAMES = {  # what pictures and sentences call a metric, where it is not its own name
    "rank1": "rank-1 identification rate",
    "rank5": "rank-5 identification rate",
    "top5": "top-5 accuracy",
    "auc": "area under the ROC curve",
    "eer": "equal error rate",
    "tar": "true accept rate",
    "dir": "detection and identification rate",
    "r2": "R\N{SUPERSCRIPT TWO}",
    "pearson": "Pearson r",
    "error": "error rate",
    "spearman": "Spearman's rho of dissimilarities",
    "kendall_tau_a": "Kendall's tau-a of dissimilarities",
    "cosine": "cosine of dissimilarities",
    "cka": "debiased CKA",
}
LABELS_OF_FACTORS = {
    "r2": "R\N{SUPERSCRIPT TWO}",
    "pearson": "Pearson r",
    "balanced_accuracy": "balanced accuracy, from chance on",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One figure; None where a column does not apply, never NaN."""

    task: str
    protocol: str
    head: str
    model: str
    role: str = "model"
    """`model` or `control`; a control's `model` is one of `CONTROLS`."""
    weights_sha256: str | None = None
    source: str
    layer: str | None = None
    """A selector of exactly the layers that the figure is of; or `10 % by kl`."""
    selection: str | None = None
    """How they were put together: `single`, `joint`, `cumulative`, `without` or `pruned`."""
    feature: str | None = None
    pool: str | None = None
    scaling: str | None = None
    """What the head did to features first: `raw`, `centred` or `standardised`; None where it does not say."""
    dims: int
    n_train: int
    n_test: int
    units: int | None = None
    """How many independent units stand behind the value: people, images, novel classes, runs or folds."""
    metric: str
    at: float | None = None
    """The false accept rate of `tar` and `dir`; of few-shot the number of shots."""
    value: float
    """Of `random-init` the mean of its initialisations, of `shuffled-labels` that of its permutations."""
    ci_low: float | None = None
    ci_high: float | None = None
    interval: str | None = None
    """How it was found: `wilson`, `bootstrap`, `clopper-pearson` or `student`."""
    se: float | None = None
    std: float | None = None
    chance: float | None = None
    ceiling_low: float | None = None
    """Of measured brains: at most how far a perfect model can come, as noise allows; lower bound of it ..."""
    ceiling_high: float | None = None
    """... and upper bound; both are equal where it is estimated as one number."""
    training_score: float | None = None
    """What choices are made by, the more the better; None where training data say nothing."""
    chosen: bool = False
    """True on the one row of a head, model, metric and `at` that training data picked; of a control, on the
    row that is compared."""
    versus: str | None = None
    """Of the model's row that is compared, the rival by which it looks worst; so are the next four."""
    difference: float | None = None
    """From that rival; above 0 the model is better, whichever way the metric goes."""
    diff_low: float | None = None
    diff_high: float | None = None
    p_value: float | None = None
    """Two-sided, after Holm over all rivals."""
    seed: int = 0
    transductive: bool = False
    seconds: float | None = None
    controls_left_out: str | None = None
    """Names of controls that were not run, joined by commas; None where all were."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A model's chosen row beside the chosen row of one rival, by a head's first metric."""

    task: str
    protocol: str
    head: str
    n_train: int
    model: str
    layer: str | None
    selection: str | None
    feature: str | None
    pool: str | None
    metric: str
    at: float | None
    value: float
    versus: str
    versus_layer: str | None
    versus_dims: int
    versus_value: float
    difference: float
    """Its sign is turned where lower is better, so that above 0 the model is better."""
    diff_low: float | None
    diff_high: float | None
    p_raw: float | None
    p_value: float | None
    """After Holm over a head's rivals."""
    units: int
    why: str | None
    """Why there is no p."""
    verdict: str
    """`better`, `worse` or `no difference told`; beside controls the same on all of a head's comparisons."""


@dataclass(frozen=True)
class Curve:
    """What rows hold points of, (G,): of what is drawn several times, as initialisations, the mean.

    Args:
        kind: `cmc` (x ranks, y identification rates), `roc` (false and true accept rates) or `dir` (rates at
            which strangers pass, and people who are known are detected and identified).
        head: its name.
        model: or control.
        layer: as in rows.
        x: ascending.
        y: at each x.
        low: of the 95 % interval at each x, by itself; None of controls.
        high: of the same.
        figures: of the whole curve: of a ROC `AUC` and `EER`.
    """

    kind: str
    head: str
    model: str
    layer: str | None
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Confusion:
    """What a row takes each test image for.

    Args:
        head, n_train, model, layer, selection, feature, pool: as in the row.
        classes: names, K.
        counts: of test images, (K, K): a row for each true class, a column for each predicted one.
    """

    head: str
    n_train: int
    model: str
    layer: str | None
    selection: str | None
    feature: str | None
    pool: str | None
    classes: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """The counts as shares of each true class's images, (K, K); 0 of a class without any."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)

    def __repr__(self) -> str:
        """Say of what it is."""
        right, images = np.trace(self.counts), self.counts.sum()
        return (
            f"<Confusion {self.head}, {layer_of(self)}: {len(self.classes)} classes, {right} of {images} "
            "test images told right>"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingCost:
    """What drawing costs a layer: a head's first metric of its mean, of one z, and of the mean of several z.

    `p_one_z` and `p_mean_of_z` are of the paired test of either against the mean, None of too few units.
    """

    head: str
    n_train: int
    layer: str | None
    selection: str
    pool: str | None
    dims: int
    draws: int
    metric: str
    mean: float
    one_z: float
    mean_of_z: float
    p_one_z: float | None
    p_mean_of_z: float | None


@dataclass(frozen=True, eq=False)
class Similarity:
    """Debiased linear CKA between layers, 0 where nothing is common and 1 where two are the same.

    Args:
        cka: (K, L).
        shuffled: the same after the other layers' images were shuffled, (K, L): about 0, and how far from it
            so many images may lie by chance.
        layers: names, K.
        other_layers: of the other store, or of the same one, L.
        models: that the rows and the columns are of, where it is known.
        record: where it comes from, in words: the images, and of either side the store, its feature and the
            weights.
    """

    cka: NDArray[np.float64]
    shuffled: NDArray[np.float64]
    layers: tuple[str, ...]
    other_layers: tuple[str, ...]
    models: tuple[str, str] = ("", "")
    record: Mapping[str, str] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[tuple[str, str], ...]:
        """Model and feature of the rows, and of the columns; empty where they are not known."""
        features = (self.record.get(f"{side}_feature", "") for side in ("rows", "columns"))
        return tuple(zip(self.models, features, strict=True))

    def __repr__(self) -> str:
        """Say which layers are rows and which are columns."""
        sides = (("rows", self.layers), ("columns", self.other_layers))
        said = [
            f"{side}: {len(names)} layer{'s' if len(names) > 1 else ''}"
            f"{f' of {model}' if model else ''} ({names[0]} .. {names[-1]})"
            for (side, names), model in zip(sides, self.models, strict=True)
        ]
        return f"<Similarity {'; '.join(said)}>"


MADE = re.compile(r"(results|comparisons|beside|noise)\.csv|results\.jsonl")
COLUMNS = tuple(column.name for column in fields(Result))


def to_json_lines(rows: Sequence[Result]) -> str:
    """Return one JSON object a line."""
    return "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows)


def task_in(folder: Path) -> str | None:
    """Return the task that the results in a folder are of; None where there are none that can be read."""
    try:
        with (folder / "results.jsonl").open(encoding="utf-8") as file:
            row = json.loads(file.readline(1_000_000))
    except (OSError, ValueError):
        return None
    return str(row["task"]) if isinstance(row, dict) and "task" in row else None


def command_in(folder: Path) -> str | None:
    """Return the command that made the results in a folder, as `probe`; None where none is recorded."""
    try:
        content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return str(shlex.split(content["record"]["command"])[1])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def expect_made_by(command: str, folder: Path) -> None:
    """Refuse a folder with results that another command made, which would be replaced.

    Raises:
        TaskError: names the command.
    """
    made_by = command_in(folder)
    if made_by in ("probe", "demo") and made_by != command:
        raise TaskError(
            f"{folder}: holds results of the command {made_by}, which would be lost; choose another folder"
        )


def to_frame(rows: Sequence[Result]) -> pd.DataFrame:
    """Return a table with `COLUMNS`."""
    import pandas as pd  # here, as the command line reads names above at once

    return pd.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))


def write(
    rows: Sequence[Result],
    folder: str | Path,
    noise: Sequence[SamplingCost] = (),
    comparisons: Sequence[Comparison] = (),
    beside: Sequence[Comparison] = (),
) -> None:
    """Write `results.jsonl` and `results.csv` into a folder, and of what there is `NAME.csv`.

    Raises:
        TaskError: the folder cannot be written, or holds files of these names that are not ours.
    """
    import pandas as pd

    folder = prepare_folder(folder, MADE)
    try:
        write_text(folder / "results.jsonl", to_json_lines(rows))
        write_table(to_frame(rows), folder / "results.csv")
        for name, table in (("comparisons", comparisons), ("beside", beside), ("noise", noise)):
            if table:
                write_table(pd.DataFrame([asdict(row) for row in table]), folder / f"{name}.csv")
    except OSError as error:
        raise TaskError(
            f"{folder}: cannot be written ({error.strerror}); choose another path"
        ) from error


def table(rows: Sequence[Result]) -> str:
    """Return an aligned text table of each head's first metric; `*` marks rows chosen."""
    first = {(row.head, row.n_train): (row.metric, row.at) for row in reversed(rows)}
    at = "shots" if rows and rows[0].task == "few_shot" else "at"
    names = {name for name, _ in first.values()}
    name = names.pop() if len(names) == 1 else "value"
    header = ["", "head", "model", "layer", "dims", at, name, "95 % interval", "chance"]
    header += ["versus", "difference", "p"]
    lines = [header]
    for row in rows:
        if (row.metric, row.at) != first[row.head, row.n_train]:
            continue
        interval = "" if row.ci_low is None else f"{row.ci_low:.3f} .. {row.ci_high:.3f}"
        lines.append(
            [
                "*" if row.chosen else "",
                row.head,
                row.model,
                layer_of(row),
                str(row.dims),
                "" if row.at is None else f"{row.at:g}",
                f"{row.value:.3f}",
                interval,
                "" if row.chance is None else f"{row.chance:.3f}",
                row.versus or "",
                "" if row.difference is None else f"{row.difference:+.3f}",
                _p(row.p_value),
            ]
        )
    return aligned(lines)


def layer_of(row: Result | Confusion) -> str:
    """Return what a row's features are called: layer, feature unless it is the mean, and pooling."""
    feature = None if row.feature == "mean" else row.feature
    return " ".join(filter(None, (row.layer, feature, row.pool)))


def layer_place(name: str) -> tuple[int, int] | None:
    """Return resolution and number of a single layer of a VDVAE, `8x8.2`; None for any other name."""
    match = re.fullmatch(r"(\d+)x\1\.(\d+)", name)
    return (int(match[1]), int(match[2])) if match else None


def resolution_edges(names: Sequence[str]) -> list[int]:
    """Return where each run of layers of one resolution begins, and where the last one ends."""
    groups = groupby(names, key=lambda name: (layer_place(name) or (None,))[0])
    return [0, *accumulate(len(list(group)) for _, group in groups)]


def sampling_table(rows: Sequence[SamplingCost]) -> str:
    """Return an aligned text table of what drawing costs."""
    header = ["head", "train", "layer", "dims", "metric", "mean", "one z", "p", "mean of z", "p"]
    lines = [header]
    for row in rows:
        layer = " ".join(filter(None, (row.layer, row.pool)))
        one = [f"{row.one_z:.3f}", _p(row.p_one_z)]
        several = [f"{row.mean_of_z:.3f}", _p(row.p_mean_of_z)]
        what = [row.head, str(row.n_train), layer, str(row.dims), row.metric]
        lines.append([*what, f"{row.mean:.3f}", *one, *several])
    return aligned(lines)


def _p(p: float | None) -> str:
    return "" if p is None else f"{p:.4f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines; names from files, in whatever cell, break none of them."""
    shown = [[printable(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in shown) for i in range(len(shown[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in shown
    )


def layer_by_factor(rows: Sequence[Result], metric: str) -> pd.DataFrame:
    """Return a table of what each single layer knows of each factor, by a metric.

    Without single layers it is of layers together. Factors that have no such metric (`r2`, `pearson`,
    `balanced_accuracy`) are not among its columns. Layers are called by model, feature and pooling too, where
    there are several.

    Raises:
        TaskError: there is no such row.
    """
    import pandas as pd

    of_factors = [row for row in rows if row.task == "factors" and row.model not in CONTROLS]
    own = [row for row in of_factors if row.metric == metric]
    own = [row for row in own if row.selection == "single"] or own
    if not own:
        known = ", ".join(dict.fromkeys(row.metric for row in of_factors)) or "no factors"
        raise TaskError(f"metric: expected one of the factors' rows, {known}; found {metric!r}")
    heads = {row.head.partition(":")[0] for row in own}
    several = [
        name
        for name in ("model", "feature", "pool")
        if len({getattr(row, name) for row in own}) > 1
    ]

    def factor(row: Result) -> str:
        return row.head.partition(":")[2] if len(heads) == 1 else row.head

    def called(row: Result) -> str:
        return " ".join(filter(None, (row.layer, *(getattr(row, name) for name in several))))

    table = pd.DataFrame(
        [{"layer": called(row), "factor": factor(row), "value": row.value} for row in own]
    )
    order = list(dict.fromkeys(table["layer"]))
    return table.pivot(index="layer", columns="factor", values="value").loc[order]


def layer_by_roi(rows: Sequence[Result], metric: str) -> pd.DataFrame:
    """Return a table of what each single layer tells of each region, by a metric, of rows of `encoding`.

    Without single layers it is of layers together. The column `all` is of all voxels.

    Raises:
        TaskError: there is no such row.
    """
    import pandas as pd

    own = [
        row
        for row in rows
        if row.task == "encoding" and row.model not in CONTROLS and row.metric == metric
    ]
    own = [row for row in own if row.selection == "single"] or own
    if not own:
        raise TaskError(f"metric: expected pearson or r2, of rows of encoding; found {metric!r}")
    first = own[0].head.partition(":")[0], own[0].model, own[0].feature, own[0].pool
    table = pd.DataFrame(
        [
            {"layer": row.layer, "roi": row.head.partition(":")[2] or "all", "value": row.value}
            for row in own
            if (row.head.partition(":")[0], row.model, row.feature, row.pool) == first
        ]
    )
    layers, regions = (list(dict.fromkeys(table[name])) for name in ("layer", "roi"))
    return table.pivot(index="layer", columns="roi", values="value").loc[layers, regions]
