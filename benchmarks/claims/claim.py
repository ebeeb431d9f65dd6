"""What the claims share: settings of a size, images, a trained model, intervals and verdicts.

A claim is a script of this folder and a TOML of its name. The script's docstring says what is run; it holds

    TITLE, PAPER, RULE        what is asked, what the paper says (PAPER_IN_SHORT too), what will be agreement
    pieces(settings)          the pieces of work, each a dict of what tells it from the others
    measure(piece, context)   does one, returns its rows
    summary(rows)             the table of the page
    verdicts(rows, settings)  what the rows say of the claim; in_short(rows) a few words for the table
    draw(rows, figure)        the picture

where rows are those of the claim's CSV. `TIMED = True`: its pieces run one at a time, alone.
"""

import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

import vdvae_repr as vr

HERE = Path(__file__).parent
SIZES = ("smoke", "local", "full")
AGREES, DISAGREES, UNTOLD = "agrees", "disagrees", "not told"
Settings = dict[str, Any]
Piece = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """Where a piece finds its settings and its data, and where it may write."""

    settings: Settings
    data: Path
    """The folder that `{data}` stands for in settings."""
    folder: Path
    """The piece's own; what is in it when the piece starts is of an earlier, interrupted try."""
    device: str = "cpu"


@dataclass(frozen=True)
class Verdict:
    """What was found of one statement of the paper."""

    statement: str
    found: str
    answer: str
    """`AGREES`, `DISAGREES` or `UNTOLD`."""


def read_settings(claim: str, size: str) -> Settings:
    """Return a claim's settings of a size: those of all sizes, replaced by its own, table by table."""
    with (HERE / f"{claim}.toml").open("rb") as file:
        tables = tomllib.load(file)
    own = {name: tables.pop(name, {}) for name in SIZES}
    return _merged(tables, own[size])


def _merged(common: Settings, own: Settings) -> Settings:
    merged = common | own
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(common.get(key), dict):
            merged[key] = _merged(common[key], value)
    return merged


def name_of(piece: Piece) -> str:
    """Return a piece's name, as `layers-6-seed-0`."""
    return "-".join(f"{key}-{value}" for key, value in piece.items()).replace("/", "_")


def images(context: Context) -> vr.Source:
    """Open the images that the settings name: `data`, of them those of `split`, all if not given."""
    settings = context.settings
    source = vr.open_source(
        settings["data"].format(data=context.data),
        root=context.data,
        download=settings.get("download", False),
        notice=lambda line: None,  # of files that people have; these are known
    )
    if split := settings.get("split"):
        return source.select([i for i, name in enumerate(source.splits) if name == split])
    return source


def train(
    context: Context, model: Settings, recipe: Settings, source: vr.Source, **named: Any
) -> Path:
    """Train a model by the settings' [model] and [train], changed by what is given; returns its run folder.

    Shift and scale are measured on the training images. A run that was interrupted goes on. `named` keys of
    [train] may differ from those of the run that goes on.
    """
    tables = {
        "model": context.settings["model"] | model,
        "train": context.settings["train"] | recipe,
    }
    config = context.folder / "config.toml"
    config.write_text(to_toml(tables), encoding="utf-8")
    run = context.folder / "run"
    options = context.settings.get("options", {})  # of the training, as precision
    return vr.train(
        config,
        source,
        run,
        resume=True,
        device=context.device,
        num_workers=1,  # a piece a core
        progress=lambda line: None,
        **options,
        **named,
    )


def to_toml(tables: dict[str, Settings]) -> str:
    """Write tables of numbers and texts."""
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def score(context: Context, run: Path, source: vr.Source) -> Row:
    """Score a run's moving average on split test: `bits_per_dim`, its parts, layers that are dead.

    A layer is dead where its KL is below `dead_nats` an image, or less than `dead_units` of its units are
    active.
    """
    model = vr.load(run, device=context.device)
    found = vr.evaluate(model, source, split="test", batch_size=context.settings.get("batch", 64))
    dead = sum(
        found.kl_nats[name] < context.settings["dead_nats"]
        or active < context.settings["dead_units"] * units
        for name, (active, units) in found.active_units.items()
    )
    active, units = np.sum(list(found.active_units.values()), axis=0)
    dims = 3 * model.config.image_size**2 * math.log(2)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "images": found.images,
        "bits_per_dim": found.bits_per_dim,
        "rate_bits": found.rate_nats / dims,
        "distortion_bits": found.distortion_nats / dims,
        "layers_dead": dead,
        "units_active": active / units,
    }


def interval(values: Any) -> tuple[float, float, float]:
    """Return mean and Student's 95 % interval; of one value an interval without ends."""
    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def shown(found: tuple[float, float, float], digits: int = 3) -> str:
    """Write a mean and its interval."""
    mean, low, high = (f"{value:.{digits}f}" for value in found)
    return mean if not math.isfinite(found[1]) else f"{mean} [{low}, {high}]"


def by_group(rows: pd.DataFrame, by: str | list[str], columns: dict[str, int]) -> pd.DataFrame:
    """Return means with intervals over the rows of each group, as text; columns with their digits."""
    groups = rows.groupby(by, sort=False)
    table = {
        name: groups[name].apply(lambda v, d=d: shown(interval(v), d))
        for name, d in columns.items()
    }
    return pd.DataFrame(table | {"runs": groups.size()}).reset_index()


def paired(rows: pd.DataFrame, left: Piece, right: Piece, column: str) -> np.ndarray:
    """Return differences left - right of a column, seed by seed."""

    def own(group: Piece) -> pd.Series:
        chosen = rows[(rows[list(group)] == pd.Series(group)).all(axis=1)]
        return chosen.set_index("seed")[column]

    return (own(left) - own(right)).dropna().to_numpy(float)


def below(found: tuple[float, float, float], limit: float = 0.0) -> str:
    """Say whether something is below a limit: its whole interval is, is above, or holds it."""
    _, low, high = found
    if high < limit:
        return AGREES
    return DISAGREES if low > limit else UNTOLD


def overall(verdicts: list[Verdict]) -> str:
    """Return one answer of several, or how many of each there are."""
    answers = [verdict.answer for verdict in verdicts]
    if len(set(answers)) == 1:
        return answers[0]
    counts = [f"{answers.count(each)} {each}" for each in (AGREES, DISAGREES, UNTOLD)]
    found = ", ".join(count for count in counts if not count.startswith("0 "))
    return f"in part: {found}" if AGREES in answers else found


def module(claim: str) -> ModuleType:
    """Return a claim's script."""
    import importlib

    return importlib.import_module(claim)
