"""The answers of results folders as Markdown: one table of all, then each as it was printed.

    python benchmarks/downstream/page.py runs/answers --rows benchmarks/results/answers.csv

Folders are those of `answers.sh`, `MODEL-NAME-FEATURE`, with what was printed beside them. With --rows, the
figures of each head's first metric are written too, every layer and control.
"""

import argparse
from pathlib import Path

import pandas as pd

NAMES = {
    "lfw": "LFW, 121 people",
    "orl": "ORL, 40 people",
    "cifar10": "CIFAR-10",
    "tiny-imagenet": "Tiny ImageNet, 40 classes",
    "view1": "LFW, View 1",
    "few-shot": "Tiny ImageNet, 5 ways",
    "omniglot": "Omniglot, one shot",
    "factors": "factors of faces",
}
KEPT = (
    "data", "task", "head", "model", "role", "layer", "selection", "feature", "scaling", "dims", "n_train",
    "n_test", "units", "metric", "at", "value", "ci_low", "ci_high", "interval", "chance", "chosen", "versus",
    "difference", "diff_low", "diff_high", "p_value", "seconds",
)  # fmt: skip


def of(folder: Path) -> tuple[str, str, str]:
    """Return model, data and feature that a folder is of."""
    model, _, rest = folder.name.partition("-")
    data, _, feature = rest.rpartition("-")
    return model, data, feature


def first_metrics(folder: Path) -> pd.DataFrame:
    """Return the rows of each head's first metric, the first rate of it."""
    rows = pd.read_json(folder / "results.jsonl", lines=True, precise_float=True)
    by_head = rows.groupby(["head", "n_train"], sort=False)
    kept = rows.metric == by_head.metric.transform("first")
    kept &= rows["at"].isna() | (rows["at"] == by_head["at"].transform("first"))
    return rows[kept].assign(data=of(folder)[1])


def _picked(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Flag the row of each head that is chosen; where nothing can be chosen, that of all layers together."""
    by_head = rows.groupby(["head", "n_train"], sort=False)
    widest = rows.index == by_head.dims.transform(lambda dims: dims[dims == dims.max()].index[-1])
    return rows.chosen.astype(bool) | (widest & ~by_head.chosen.transform("any"))


def lines(folder: Path) -> list[str]:
    """Return a line of the table for each head: of a network beside, without controls, what it chose."""
    model, data, feature = of(folder)
    rows = first_metrics(folder)
    found = []
    compared = rows.versus.notna()
    for _, row in rows[compared if compared.any() else _picked(rows)].iterrows():
        same = rows[(rows["head"] == row["head"]) & (rows.n_train == row.n_train)]
        controls = []
        for name in ("pixels", "pca", "random-init"):
            own = same[(same.model == name) & same.chosen.astype(bool)]
            controls.append(f"{own.value.iloc[0]:.3f}" if len(own) else "")
        difference = ""
        if compared.any():
            difference = (
                f"{row.difference:+.3f} [{row.diff_low:.3f}, {row.diff_high:.3f}] {row.versus}"
            )
        p = "" if pd.isna(row.p_value) else f"{row.p_value:.4f}"
        shots = "shot" if row["at"] == 1 else "shots"
        at = f", {row['at']:g} {shots}" if row.task == "few_shot" else ""
        cells = [
            f"{NAMES.get(data, data)}{at}", f"{model}, `{feature}`", f"`{row['head']}`",
            f"**{row.value:.3f}** ({row.layer})", *controls, difference, p,
        ]  # fmt: skip
        found.append(f"| {' | '.join(cells)} |")
    return found


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path, help="a CSV to write all figures to")
    options = parser.parse_args()
    folders = sorted(
        (path for path in options.folder.iterdir() if (path / "results.jsonl").is_file()),
        key=lambda path: (list(NAMES).index(of(path)[1]), path.name),
    )
    header = ["data", "model, feature", "head", "row", "pixels", "PCA", "random", "difference", "p"]
    print(f"| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for folder in folders:
        if of(folder)[1] != "factors":
            print("\n".join(lines(folder)))
    for folder in folders:
        print(f"\n## {', '.join(of(folder))}\n\n```")
        print(folder.with_name(f"{folder.name}.txt").read_text().strip())
        print("```")
    if options.rows:
        every = pd.concat([first_metrics(folder) for folder in folders])
        every[list(KEPT)].to_csv(options.rows, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
