"""Does dropping updates of large gradients keep training stable, at a learning rate that is high?

Equal runs, of which half skip each update whose gradient norm is not below a threshold. Rates are those
at which training begins to suffer; they and the threshold were chosen on training images alone, with a
seed that is not used here.
"""

import json
import math

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
from scipy import stats

import vdvae_repr as vr

TITLE = "Does skipping large gradients keep training stable?"
PAPER = (
    "updates whose gradient norm is above a threshold are skipped; that, of few updates, keeps the "
    "training of very deep models stable."
)
PAPER_IN_SHORT = "skipping the few updates of large gradients keeps training stable"
RULE = (
    "Runs differ in the skip threshold alone: `skip_threshold` against none (updates that are not "
    "finite are dropped in both). A run is unstable where it was stopped, where its test score is above "
    "`spike` bits per dimension over the lowest training score that it had logged, or where a row of "
    "its log is. *Fewer unstable runs* agrees where they are fewer with skipping, by Fisher's exact "
    "test, one-sided, p < 0.05; it disagrees where they are more by the same test. *Better bits* takes "
    "differences seed by seed, with Student's 95 % interval; a stopped run, and a score "
    "above 8 bits per dimension (which knowing nothing has), count as 8. *Few* agrees where less than "
    "`few` of the updates were skipped."
)
UNIFORM = 8.0  # bits per dimension of knowing nothing
UNSTABLE = ("not finite", "were skipped")  # in what a run says that stopped for want of stability


def pieces(settings: Settings) -> list[Piece]:
    """Return a piece a learning rate, threshold and seed."""
    return [
        {"lr": rate, "skip": skip, "seed": seed}
        for seed in settings["seeds"]
        for rate in settings["rates"]
        for skip in (True, False)
    ]


def measure(piece: Piece, context: Context) -> list[Row]:
    """Train and score a model; a run that was stopped is a row too."""
    settings, source = context.settings, images(context)
    threshold = settings["skip_threshold"] if piece["skip"] else 1e30
    recipe = {"lr": piece["lr"], "skip_threshold": threshold, "seed": piece["seed"]}
    stopped, found = "", {}
    try:
        run = train(context, {}, recipe, source)
        found = score(context, run, source)
    except vr.TrainingError as error:
        if not any(words in str(error) for words in UNSTABLE):
            raise  # a full disk, say: the piece is done anew
        stopped = str(error).split(";")[0].removeprefix(f"{context.folder / 'run'}: ")
    lines = (context.folder / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    return [
        {"stopped": stopped} | found | read_log(log, found.get("bits_per_dim"), settings["spike"])
    ]


def read_log(log: list[Row], final: float | None, spike: float) -> Row:
    """Return what a run's log says of its stability; `final` is its test score, None where it was stopped."""
    lowest, worst = math.inf, -math.inf
    for row in log:
        bits = row.get("bits_per_dim")
        if bits is not None and math.isfinite(bits):
            worst = max(worst, bits - lowest)
            lowest = min(lowest, bits)
    bad = final is None or not math.isfinite(final)
    final = UNIFORM if final is None or bad else min(final, UNIFORM)
    return {
        "bits_per_dim": final,
        "largest_rise_bits": max(worst, 0.0),
        "unstable": bool(bad or worst > spike or final > lowest + spike),
        "updates": log[-1]["step"],
        "skipped": log[-1]["skipped"],
        "largest_norm": max((row["gradient_norm"] or math.inf) for row in log),
    }


def verdicts(rows: pd.DataFrame, settings: Settings) -> list[Verdict]:
    """Compare runs with and without skipping."""
    unstable = rows.groupby("skip").unstable.agg(["sum", "size"])
    (with_bad, with_all), (bare_bad, bare_all) = unstable.loc[True], unstable.loc[False]
    table = [[with_bad, with_all - with_bad], [bare_bad, bare_all - bare_bad]]
    fewer, more = (stats.fisher_exact(table, alternative=a).pvalue for a in ("less", "greater"))
    answer = AGREES if fewer < 0.05 else DISAGREES if more < 0.05 else UNTOLD
    first = Verdict(
        "fewer runs are unstable",
        f"{with_bad} of {with_all} with skipping, {bare_bad} of {bare_all} without (p = {fewer:.2g})",
        answer,
    )
    found = [
        interval(paired(rows[rows.lr == rate], {"skip": True}, {"skip": False}, "bits_per_dim"))
        for rate in rows.lr.unique()
    ]
    answers = {below(each) for each in found}
    better = Verdict(
        "bits per dimension are better",
        "with less without: " + "; ".join(
            f"{shown(each)} at {rate:g}" for rate, each in zip(rows.lr.unique(), found, strict=True)
        ),
        answers.pop() if len(answers) == 1 else UNTOLD,
    )  # fmt: skip
    counts = rows.groupby("skip")[["skipped", "updates"]].sum()
    shares = counts.skipped / counts.updates
    few = Verdict(
        "few updates are skipped",
        f"{100 * shares[True]:.2f} % with skipping, {100 * shares[False]:.2f} % without, where only "
        "those that are not finite are",
        AGREES if shares[True] < settings["few"] else DISAGREES,
    )
    return [first, better, few]


def in_short(rows: pd.DataFrame) -> str:
    """Say what was found in a few words."""
    bad, bits = rows.groupby("skip").unstable.sum(), rows.groupby("skip").bits_per_dim.mean()
    runs = int(rows.skip.sum())
    return (
        f"unstable {bad[True]} of {runs} with, {bad[False]} of {runs} without; {bits[True]:.3f} against "
        f"{bits[False]:.3f} bits/dim"
    )


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a learning rate and threshold, with Student's intervals over seeds, or medians."""
    table = by_group(rows, ["lr", "skip"], {"bits_per_dim": 3, "skipped": 1})
    groups = rows.groupby(["lr", "skip"], sort=False)
    for column in ("largest_rise_bits", "largest_norm"):  # of runs that break down without bounds
        table[column] = [f"{value:.3g}" for value in groups[column].median()]
    table["unstable"] = groups.unstable.sum().to_numpy()
    names = {"bits_per_dim": "bits/dim, test", "skipped": "updates skipped", "skip": "skipping"}
    names |= {
        "largest_rise_bits": "largest rise, bits/dim, median",
        "largest_norm": "largest norm logged, median",
    }
    return table.replace({True: "yes", False: "no"}).rename(columns=names)


def draw(rows: pd.DataFrame, figure: Figure) -> None:
    """Show the score of each run, with and without skipping, a panel a learning rate."""
    rates = rows.lr.unique()
    for axes, rate in zip(figure.subplots(1, len(rates), squeeze=False)[0], rates, strict=True):
        for place, skip in enumerate((True, False)):
            own = rows[(rows.lr == rate) & (rows.skip == skip)]
            for bad, marker in ((False, "o"), (True, "x")):
                those = own[own.unstable == bad]
                axes.scatter(
                    [place] * len(those), those.bits_per_dim, marker=marker, color=f"C{place}"
                )
        axes.set_xticks([0, 1], ["skipping", "none"])
        axes.set_xlim(-0.5, 1.5)
        axes.set_title(f"learning rate {rate:g}; x: unstable", fontsize=9)
        axes.set_ylabel("bits per dimension, test")
