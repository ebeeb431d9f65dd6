"""Does depth alone make a VAE better? Equal parameters, equal training, more and more stochastic layers.

The layers are spread evenly over the resolutions. Width follows from depth, so that the number of
parameters stays; what comes before the stochastic layers, bottom up, has the same blocks at each depth,
of that width. Images, batches, updates and learning rate are the same. The score is the moving average's
bound on test images. At size local 48 layers and 1,500 updates had been planned; 24 and 750 were taken for
want of time, before any run was scored.
"""

import math
from bisect import bisect_left

import pandas as pd
import torch
from claim import (
    Context,
    Piece,
    Row,
    Settings,
    Verdict,
    below,
    by_group,
    images,
    score,
    shown,
    train,
)
from matplotlib.figure import Figure
from scipy import stats

import vdvae_repr as vr

TITLE = "Is it depth that VAEs lacked?"
PAPER = (
    "insufficient depth is why VAEs had lower likelihoods than autoregressive models; more stochastic "
    "layers raise the likelihood, independently of capacity."
)
PAPER_IN_SHORT = "more layers, better likelihood, at equal capacity"
RULE = (
    "Models of equal parameters (width is chosen by their number alone) and equal training differ in "
    "their number of layers, spread evenly over the resolutions. It agrees where the slope of test bits "
    "per dimension on log2 of the number of layers, over all runs, is below 0 with its 95 % interval "
    "(Student's); it disagrees where the interval is above 0; else it is not told."
)
TOLERANCE = 0.05  # of the number of parameters


def architecture(settings: Settings, layers: int) -> Settings:
    """Return the [model] table of so many layers: the width is the one nearest to `parameters`.

    Raises:
        ValueError: layers cannot be spread evenly, or no width comes near.
    """
    resolutions = settings["resolutions"]
    each, rest = divmod(layers, len(resolutions))
    if rest or not each:
        raise ValueError(
            f"expected layers that {len(resolutions)} resolutions divide, found {layers}"
        )
    items = []
    for below_, r in zip([None, *resolutions], resolutions, strict=False):
        items += [f"{r}x{each}"] if below_ is None else [f"{r}m{below_}"]
        items += [f"{r}x{each - 1}"] if below_ is not None and each > 1 else []
    model = {"top_down": ",".join(items)}
    wanted, widths = settings["parameters"], settings["widths"]
    candidates = range(widths[0], widths[1] + 1, widths[2])

    def own(width: int) -> int:
        return count(settings["model"] | model | {"width": width})

    place = bisect_left(candidates, wanted, key=own)
    near = candidates[max(0, place - 1) : place + 1]
    width = min(near, key=lambda width: abs(own(width) - wanted))
    if abs(own(width) / wanted - 1) > TOLERANCE:
        raise ValueError(
            f"{layers} layers: expected {wanted:,} parameters, nearest are {own(width):,}"
        )
    return model | {"width": width}


def count(model: Settings) -> int:
    """Return the number of parameters of a [model] table."""
    with torch.device("meta"):
        built = vr.VDVAE(vr.ModelConfig(**({"shift": 0.0, "scale": 1.0} | model)))
    return sum(parameter.numel() for parameter in built.parameters())


def pieces(settings: Settings) -> list[Piece]:
    """Return a piece a depth and seed, seed by seed."""
    return [{"layers": n, "seed": seed} for seed in settings["seeds"] for n in settings["layers"]]


def measure(piece: Piece, context: Context) -> list[Row]:
    """Train and score a model."""
    model, source = architecture(context.settings, piece["layers"]), images(context)
    run = train(context, model, {"seed": piece["seed"]}, source)
    return [{"width": model["width"]} | score(context, run, source)]


def slope(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Return the slope of bits per dimension on log2 of layers, with Student's 95 % interval."""
    x = rows.layers.map(math.log2)
    fitted = stats.linregress(x, rows.bits_per_dim)
    free = len(rows) - 2
    half = stats.t.ppf(0.975, free) * fitted.stderr if free > 0 else math.inf
    return fitted.slope, fitted.slope - half, fitted.slope + half


def verdicts(rows: pd.DataFrame, settings: Settings) -> list[Verdict]:
    """Say whether bits fall with depth."""
    found = slope(rows)
    text = f"{shown(found, 4)} bits/dim at each doubling"
    return [Verdict("the deeper the better, at equal parameters", text, below(found))]


def in_short(rows: pd.DataFrame) -> str:
    """Say what was found in a few words."""
    means = rows.groupby("layers").bits_per_dim.mean()
    return (
        f"{means.iloc[0]:.3f} ({means.index[0]} layers) to {means.iloc[-1]:.3f} ({means.index[-1]})"
    )


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a depth, with Student's intervals over seeds."""
    table = by_group(
        rows, ["layers", "width", "parameters"],
        {"bits_per_dim": 3, "rate_bits": 3, "distortion_bits": 3, "layers_dead": 1},
    )  # fmt: skip
    return table.rename(columns={"bits_per_dim": "bits/dim, test", "layers_dead": "dead layers"})


def draw(rows: pd.DataFrame, figure: Figure) -> None:
    """Show bits per dimension against depth, a point a run."""
    axes = figure.subplots()
    axes.scatter(rows.layers, rows.bits_per_dim, label="a run")
    means = rows.groupby("layers").bits_per_dim.mean()
    axes.plot(means.index, means.values, label="mean")
    axes.set_xscale("log", base=2)
    axes.set_xticks(means.index, [str(n) for n in means.index])
    axes.minorticks_off()
    axes.set_xlabel("stochastic layers, parameters equal")
    axes.set_ylabel("bits per dimension, test")
    axes.legend()
