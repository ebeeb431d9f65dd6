"""Tables and pictures of `benchmarks/results/layers.md`, from the CSVs in `benchmarks/results/layers/`.

    python benchmarks/downstream/layers.py runs/layers     # the CSVs first, from what layers.sh left there
    python benchmarks/downstream/layers.py                 # the page and its pictures anew, of the CSVs

natural64's own pruning, draws and factors, where they are there, are left out.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
from matplotlib.axes import Axes
from tables import fill, markdown

from vdvae_repr.report import plots
from vdvae_repr.results import SamplingCost

RESULTS = Path(__file__).parents[1] / "results"
CSVS = RESULTS / "layers"
HEADS = {"nearest-neighbor": "nearest neighbour", "ridge": "ridge"}
FEATURES = ("mean", "delta")
PRUNING = (
    "feature", "head", "layer", "selection", "scaling", "dims", "n_train", "n_test", "units", "metric",
    "value", "ci_low", "ci_high",
)  # fmt: skip
FACTORS = (
    "head", "metric", "layer", "value", "versus", "versus_value", "difference", "diff_low", "diff_high",
    "p_value", "units", "verdict",
)  # fmt: skip


def collect(folder: Path) -> None:
    """Write the CSVs of what `layers.sh` has left in a folder, of its first model."""
    CSVS.mkdir(exist_ok=True)
    pruned = [rows(folder / f"faces64-pruned-{feature}") for feature in FEATURES]
    write(pd.concat(pruned).query("metric == 'rank1'")[list(PRUNING)], "pruning")
    write(pd.read_csv(folder / "faces64-draws" / "noise.csv"), "draws")
    told = rows(folder / "faces64-factors").dropna(subset="versus")[["head", "metric", "versus"]]
    compared = pd.read_csv(folder / "faces64-factors" / "comparisons.csv")
    write(compared.merge(told)[list(FACTORS)].sort_values("head"), "factors")
    shutil.copyfile(folder / "faces64-factors" / "factors-r2.csv", CSVS / "factors-r2.csv")
    for feature in FEATURES:
        for name in ("similarity", "similarity-shuffled"):
            found = folder / f"similarity-{feature}" / f"{name}.csv"
            shutil.copyfile(found, CSVS / f"{name}-{feature}.csv")


def rows(folder: Path) -> pd.DataFrame:
    """Return the rows of a results folder."""
    return pd.read_json(folder / "results.jsonl", lines=True, precise_float=True)


def write(table: pd.DataFrame, name: str) -> None:
    """Write a CSV."""
    table.to_csv(CSVS / f"{name}.csv", index=False, float_format="%.9g")


def read(name: str, **how: Any) -> pd.DataFrame:
    """Read a CSV."""
    return pd.read_csv(CSVS / f"{name}.csv", **how)


def pruning() -> str:
    """Return the table of all dimensions and of the few of highest KL."""
    found = read("pruning").sort_values("dims", ascending=False, kind="stable")
    wide = {
        dims: f"{name.removesuffix(' by kl')} ({dims:,})"
        for dims, name in zip(found.dims, found.layer, strict=True)
    }
    lines = []
    for feature in FEATURES:
        for head in HEADS:
            own = found[(found.feature == feature) & (found["head"] == head)].set_index("dims")
            cells = {"read": f"`{feature}`", "head": f"`{head}`"}
            for dims, name in wide.items():
                row = own.loc[dims]
                cells[name] = f"{row.value:.3f} ({row.ci_low:.3f} .. {row.ci_high:.3f})"
            lines.append(cells)
    return markdown(pd.DataFrame(lines))


def draws(selection: str) -> str:
    """Return the table of means and draws, of single layers or of all up to one."""
    found = read("draws")
    own = found[found.selection == selection]
    lines = []
    for layer in dict.fromkeys(own.layer):
        cells = {"layer": layer}
        for head, name in HEADS.items():
            row = own[(own.layer == layer) & (own["head"] == head)].iloc[0]
            cells[f"{name}: mean"] = f"{row['mean']:.3f}"
            for column, title in (("one_z", "one z"), ("mean_of_z", f"mean of {row.draws} z")):
                cells[f"{name}: {title}"] = f"{row[column]:.3f} (p {row[f'p_{column}']:.4f})"
        lines.append(cells)
    return markdown(pd.DataFrame(lines))


def factors() -> str:
    """Return the table of factors beside the control by which the model looks worst."""
    lines = [
        {
            "factor": row.head.partition(":")[2],
            "metric": row.metric,
            "faces64 (row)": f"{row.value:.3f} ({row.layer})",
            "control": f"{row.versus_value:.3f} {row.versus}",
            "difference": f"{row.difference:+.3f} [{row.diff_low:.3f}, {row.diff_high:.3f}]",
            "p": f"{row.p_value:.4f}",
            "verdict": row.verdict,
        }
        for row in read("factors").itertuples()
    ]
    return markdown(pd.DataFrame(lines))


def similarity(feature: str) -> str:
    """Return the table of the layer that each is most like, of the other model."""
    cka = read(f"similarity-{feature}", index_col=0)
    shuffled = read(f"similarity-shuffled-{feature}", index_col=0)
    lines = []
    for layer, row in cka.iterrows():
        like = row.idxmax()
        lines.append(
            {
                "layer of faces64": layer,
                "most like, of natural64": like,
                "CKA": f"{row[like]:.3f}",
                "images shuffled": f"{shuffled.loc[layer, like]:.3f}",
            }
        )
    return markdown(pd.DataFrame(lines))


def tables() -> dict[str, str]:
    """Return the page's tables by their marks."""
    return {
        "pruning": pruning(),
        "draws": draws("single"),
        "draws, cumulative": draws("cumulative"),
        "factors": factors(),
        "similarity of means": similarity("mean"),
        "similarity of deltas": similarity("delta"),
    }


def draw() -> None:
    """Draw the three pictures."""
    found = read("draws")
    own = found[(found["head"] == "nearest-neighbor") & (found.selection == "single")]
    records = own.astype(object).where(own.notna(), None).to_dict("records")
    save(plots.noise([SamplingCost(**record) for record in records]), "noise")
    r2 = read("factors-r2", index_col=0)
    save(plots.factors(r2.to_numpy(), list(r2.index), list(r2.columns), metric="R2"), "factors")
    cka = read("similarity-mean", index_col=0)
    shuffled = read("similarity-shuffled-mean", index_col=0)
    save(
        plots.similarity(
            cka.to_numpy(), list(cka.index), list(cka.columns), models=("faces64", "natural64"),
            shuffled=shuffled.to_numpy(),
        ),
        "similarity",
    )  # fmt: skip


def save(ax: Axes, name: str) -> None:
    """Save a picture beside the page."""
    ax.figure.savefig(
        RESULTS / f"layers_{name}.png", dpi=200, bbox_inches="tight", metadata={"Software": None}
    )


def main() -> None:
    """Write CSVs where a folder is given, then the page's tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="what layers.sh called OUT")
    options = parser.parse_args()
    if options.folder:
        collect(options.folder)
    fill(RESULTS / "layers.md", tables())
    draw()


if __name__ == "__main__":
    main()
