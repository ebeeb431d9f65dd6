"""Tables of what layers hold, as Markdown, from the folders that `layers.sh` makes.

    python benchmarks/downstream/layers.py runs/layers faces64 natural64

Pruning to the latent dimensions of highest KL, what drawing costs, factors, and the most similar layers.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from page import figure, table

from vdvae_repr.results import CONTROLS


def rows_of(folder: Path) -> pd.DataFrame:
    """Return the rows of a folder, each head's first metric alone."""
    rows = pd.read_json(folder / "results.jsonl", lines=True)
    return rows[rows.metric == rows.groupby("head").metric.transform("first")]


def pruning(folder: Path, model: str) -> str:
    """Return the table of all latent dimensions, and of the shares of highest KL."""
    rows = rows_of(folder / f"{model}-lfw-atlas")
    own = rows[rows.model == model]
    total = own.dims.max()
    shares = {"all": own[own.dims == total]}
    shares |= {f"{s} %": own[own.layer == f"{s} % by kl"] for s in (30, 10, 3)}
    counts = [f"{name} ({part.dims.iloc[0]:,})" for name, part in shares.items()]
    lines = [["read", "head", *counts]]
    for feature in own.feature.unique():
        for head in own["head"].unique():
            cells = [
                part[(part.feature == feature) & (part["head"] == head)] for part in shares.values()
            ]
            lines.append([f"`{feature}`", f"`{head}`", *(figure(cell.iloc[0]) for cell in cells)])
    return table(lines)


def noise(folder: Path, model: str) -> str:
    """Return the table of what drawing costs each layer, and layers together."""
    parts = [
        pd.read_csv(folder / f"{model}-lfw-noise{kind}" / "noise.csv") for kind in ("", "-sets")
    ]
    rows = pd.concat(parts)
    heads = list(dict.fromkeys(rows["head"]))
    lines = [
        [
            "layer",
            *(f"`{head}`, {what}" for head in heads for what in ("mean", "one z", "mean of 8 z")),
        ]
    ]
    for layer in dict.fromkeys(rows.layer):
        line = [layer]
        for head in heads:
            row = rows[(rows["head"] == head) & (rows.layer == layer)].iloc[0]
            line += [
                f"{row['mean']:.3f}",
                f"{row.one_z:.3f} (p {row.p_one_z:.4f})",
                f"{row.mean_of_z:.3f} (p {row.p_mean_of_z:.4f})",
            ]
        lines.append(line)
    return table(lines)


def factors(folder: Path, model: str) -> str:
    """Return the table of each factor at its chosen layer, beside its controls."""
    rows = rows_of(folder / f"{model}-factors")
    models = [model, *(name for name in CONTROLS if name != "shuffled-labels")]
    lines = [["factor", "metric", *models, "p"]]
    for head in rows["head"].unique():
        chosen = rows[(rows["head"] == head) & rows.chosen]
        cells = [chosen[chosen.model == name].iloc[0] for name in models]
        own = cells[0]
        where = f" ({own.layer}, `{own.feature}`)"
        name = head.removeprefix("ridge:").replace("_", " ", 1)
        lines.append(
            [
                name,
                own.metric,
                f"**{figure(own)}**{where}",
                *map(figure, cells[1:]),
                f"{own.p_value:.4f}",
            ]
        )
    return table(lines)


def similarity(path: Path, others: bool) -> str:
    """Return the ten most similar pairs of layers; of others, or of one model's different ones."""
    matrix = pd.read_csv(path, index_col=0)
    values = matrix.to_numpy()
    pairs = [
        (values[i, j], matrix.index[i], matrix.columns[j])
        for i, j in np.ndindex(values.shape)
        if others or i < j
    ]
    lines = [["layer", "layer", "CKA"]]
    lines += [[a, b, f"{value:.2f}"] for value, a, b in sorted(pairs, reverse=True)[:10]]
    return table(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+")
    options = parser.parse_args()
    for title, tables in (("Pruning", pruning), ("Drawing", noise), ("Factors", factors)):
        print(f"## {title}\n")
        for model in options.models:
            print(f"{model}:\n\n{tables(options.folder, model)}\n")
    print("## Similarity\n")
    for feature in ("mean", "delta"):
        for model in options.models:
            path = options.folder / f"{model}-lfw-atlas" / f"similarity-{feature}.csv"
            print(f"{model}, `{feature}`:\n\n{similarity(path, others=False)}\n")
        path = options.folder / f"compare-{feature}" / "similarity.csv"
        print(f"{' and '.join(options.models)}, `{feature}`:\n\n{similarity(path, others=True)}\n")


if __name__ == "__main__":
    main()
