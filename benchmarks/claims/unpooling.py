"""Nearest-neighbour or learned unpooling, with and without KL warm-up: which layers stay dead?

One architecture, in which a coarser state is enlarged by repeating it or by a learned transposed
convolution (which adds some parameters); trained with the KL at its full weight from the start, or
warmed up from 0.
"""

import pandas as pd
from claim import (
    AGREES,
    DISAGREES,
    UNTOLD,
    Context,
    Piece,
    Row,
    Settings,
    Verdict,
    below,
    by_group,
    images,
    interval,
    paired,
    score,
    shown,
    train,
)
from matplotlib.figure import Figure

TITLE = "Does nearest-neighbour unpooling make KL warm-up unnecessary?"
PAPER = (
    "with nearest-neighbour unpooling in place of a learned (transposed) convolution the coarse layers "
    "do not die at the start of training, so that no KL warm-up or free bits are needed."
)
PAPER_IN_SHORT = "nearest-neighbour unpooling needs no KL warm-up; a learned one lets layers die"
RULE = (
    "Differences are taken seed by seed, with Student's 95 % interval. *No warm-up needed* agrees where "
    "nearest without warm-up is at most `margin` bits per dimension worse than with it, by the upper "
    "end of the interval, and has no more dead layers on average; it disagrees where the interval is "
    "above the margin, or where it has more dead layers with an interval above 0. *A learned unpooling "
    "lets layers die* agrees where, without warm-up, it has more dead layers than nearest, by an "
    "interval above 0, and disagrees where it is below 0. A layer is dead where its KL is below "
    "`dead_nats` an image or less than `dead_units` of its units are active (Burda 2016)."
)
COLUMNS = ["unpool", "kl_warmup"]


def pieces(settings: Settings) -> list[Piece]:
    """Return a piece a kind of unpooling, warm-up and seed, seed by seed."""
    return [
        {"unpool": unpool, "kl_warmup": warm, "seed": seed}
        for seed in settings["seeds"]
        for unpool in ("nearest", "transposed")
        for warm in (False, True)
    ]


def measure(piece: Piece, context: Context) -> list[Row]:
    """Train and score a model."""
    source = images(context)
    warm = context.settings["kl_warmup_steps"] if piece["kl_warmup"] else 0
    recipe = {"seed": piece["seed"], "kl_warmup_steps": warm}
    run = train(context, {"unpool": piece["unpool"]}, recipe, source)
    return [score(context, run, source)]


def verdicts(rows: pd.DataFrame, settings: Settings) -> list[Verdict]:
    """Compare nearest with and without warm-up, and nearest with transposed without."""
    bare, warm = {"unpool": "nearest", "kl_warmup": False}, {"unpool": "nearest", "kl_warmup": True}
    learned = {"unpool": "transposed", "kl_warmup": False}
    bits = interval(paired(rows, bare, warm, "bits_per_dim"))
    dead = interval(paired(rows, bare, warm, "layers_dead"))
    margin = settings["margin"]
    if bits[2] <= margin and dead[0] <= 0:
        answer = AGREES
    else:
        answer = DISAGREES if bits[1] > margin or dead[1] > 0 else UNTOLD
    first = Verdict(
        "nearest-neighbour unpooling needs no KL warm-up",
        f"without less with: {shown(bits, 4)} bits/dim (margin {margin}), {shown(dead, 1)} dead layers",
        answer,
    )
    more = interval(-paired(rows, learned, bare, "layers_dead"))
    worse = interval(paired(rows, learned, bare, "bits_per_dim"))
    second = Verdict(
        "without warm-up, a learned unpooling lets layers die",
        f"transposed less nearest: {shown((-more[0], -more[2], -more[1]), 1)} dead layers, "
        f"{shown(worse, 4)} bits/dim",
        below(more),
    )
    return [first, second]


def in_short(rows: pd.DataFrame) -> str:
    """Say what was found in a few words."""
    dead = rows.groupby(COLUMNS).layers_dead.mean()
    bits = rows.groupby(COLUMNS).bits_per_dim.mean()
    texts = [
        f"{unpool} {bits[unpool, False]:.3f}, warmed up {bits[unpool, True]:.3f} "
        f"(dead {dead[unpool, False]:.1f}, {dead[unpool, True]:.1f})"
        for unpool in ("nearest", "transposed")
    ]
    return "; ".join(texts)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a condition, with Student's intervals over seeds."""
    columns = {"bits_per_dim": 3, "rate_bits": 3, "layers_dead": 1, "units_active": 3}
    names = {
        "bits_per_dim": "bits/dim, test",
        "kl_warmup": "KL warm-up",
        "layers_dead": "dead layers",
        "units_active": "share of units active",
    }
    table = by_group(rows, [*COLUMNS, "parameters"], columns)
    return table.replace({True: "yes", False: "no"}).rename(columns=names)


def draw(rows: pd.DataFrame, figure: Figure) -> None:
    """Show bits per dimension and dead layers of each condition, a point a run."""
    left, right = figure.subplots(1, 2)
    groups = list(rows.groupby(COLUMNS, sort=False))
    names = [f"{unpool}\n{'warmed up' if warm else 'bare'}" for (unpool, warm), _ in groups]
    for axes, column, label in (
        (left, "bits_per_dim", "bits per dimension, test"),
        (right, "layers_dead", "dead layers"),
    ):
        for place, (_, own) in enumerate(groups):
            axes.scatter([place] * len(own), own[column])
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylabel(label)
