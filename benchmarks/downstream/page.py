"""Tables of results folders, as Markdown: the rows chosen, each against its controls, then every layer.

    python benchmarks/downstream/page.py runs/classification/faces64-cifar10-{mean,delta}{,-avg4,-sets}

Folders of one task, protocol and data set share tables; those of `--selection joint` are of sets of
layers, of `--atlas` of both.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from vdvae_repr.results import CONTROLS


def read(folders: Iterable[Path]) -> pd.DataFrame:
    """Return the rows of all folders, each head's first metric alone; episodes by what they learn from."""
    parts = []
    for folder in folders:
        rows = pd.read_json(folder / "results.jsonl", lines=True)
        rows = rows[rows.metric == rows.groupby(["protocol", "head"]).metric.transform("first")]
        sets = ~rows.loc[~rows.model.isin(CONTROLS), "layer"].str.fullmatch(r"\d+x\d+\.\d+")
        kind = "layers singly and together" if sets.any() else "single layers"
        parts.append(rows.assign(kind="sets of layers" if sets.all() else kind))
    rows = pd.concat(parts, ignore_index=True)
    episodes = rows.n_train.map(", learning from {} images".format)
    rows["kind"] += episodes.where(rows.task == "few_shot", "")
    pool = rows.pool.astype(object).fillna("").replace("none", "")
    rows["read"] = (rows.feature.astype(object).fillna("") + " " + pool).str.strip()
    return rows


def figure(row: pd.Series) -> str:
    """Return a value with its interval."""
    value = f"{row.value:.3f}"
    return value if pd.isna(row.ci_low) else f"{value} ({row.ci_low:.3f} .. {row.ci_high:.3f})"


def table(lines: list[list[str]]) -> str:
    """Return a Markdown table; the first line is its head."""
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|" + " --- |" * len(lines[0]), *body])


def chosen(rows: pd.DataFrame, model: str) -> str:
    """Return the table of rows that were chosen on training data alone."""
    lines = [["read", "head", model, *CONTROLS, "p"]]
    shown = rows[rows.chosen | (rows.model == "shuffled-labels")]
    for _, row in rows[rows.chosen & (rows.model == model)].iterrows():
        same = shown[(shown.kind == row.kind) & (shown["head"] == row["head"])]
        same = same[same["read"].isin([row["read"], ""])]
        controls = [same[same.model == control] for control in CONTROLS]
        lines.append(
            [
                f"`{row['read']}`, {row.kind}",
                f"`{row['head']}`",
                f"**{figure(row)}** ({row.layer})",
                *(figure(found.iloc[-1]) if len(found) else "" for found in controls),
                "" if pd.isna(row.p_value) else f"{row.p_value:.4f}",
            ]
        )
    return table(lines)


def every_layer(rows: pd.DataFrame, model: str) -> str:
    """Return the table of all layers and sets, and of all controls, by one head."""
    own = rows[rows.model.isin([model, "random-init"])]
    columns = list(dict.fromkeys((row.model, row.read) for row in own.itertuples()))
    lines = [["layer", *(read if of == model else f"{of}, {read}" for of, read in columns)]]
    for layer in dict.fromkeys(own.layer):
        cells = []
        for of, read in columns:
            found = own[(own.layer == layer) & (own.model == of) & (own["read"] == read)]
            cells.append(figure(found.iloc[-1]) if len(found) else "")
        lines.append([str(layer), *cells])
    for control in ("pixels", "pca"):
        for _, row in rows[rows.model == control].drop_duplicates(["dims"]).iterrows():
            name = f"PCA, {row.dims} dimensions" if control == "pca" else control
            lines.append([name, figure(row), *[""] * (len(columns) - 1)])
    return table(lines)


def main() -> None:
    """Print the page of the folders given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    rows = read(options.folders)
    (model,) = set(rows.model) - set(CONTROLS)
    if rows.chosen.any():
        print(chosen(rows, model))
    rows["setting"] = rows.kind.str.partition(", ")[2]
    for (head, setting), part in rows.groupby(["head", "setting"], sort=False):
        title = ", ".join(filter(None, (f"`{head}`", setting, "every layer", part.metric.iloc[0])))
        print(f"\n### {title}\n")
        print(every_layer(part, model))


if __name__ == "__main__":
    main()
