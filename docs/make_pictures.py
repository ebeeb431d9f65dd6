"""Make the pictures of README and of the concepts page, from what the package and this repository hold.

python docs/make_pictures.py        # half a minute; writes docs/pictures/*.png

The model is the packaged faces64. The faces are drawn ones (toy-faces), and one photograph in the public
domain that matplotlib carries: Grace Hopper, by the U.S. Navy. The accuracies are those of
benchmarks/results/answers.csv.
"""

import tempfile
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from PIL import Image

import vdvae_repr as vr

HERE = Path(__file__).parent
ANSWERS = HERE.parent / "benchmarks" / "results" / "answers.csv"
FIRST = (1, 5, 11, 16)  # layers that pictures are rebuilt from
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.35"
matplotlib.rcParams |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "svg.hashsalt": "vdvae-repr",
}


def faces(model: vr.VDVAE, folder: Path) -> np.ndarray:
    """Return five faces (5, 64, 64, 3) uint8: a photograph, and four drawn ones."""
    (folder / "photograph").mkdir()
    Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).save(
        folder / "photograph" / "hopper.png"
    )
    with vr.extract(
        model, folder / "photograph", folder / "photograph.h5", layers="1x1", align=True
    ) as store:
        photograph = store.images()
    with vr.extract(model, "toy-faces:12x6", folder / "toy.h5", layers="1x1") as store:
        drawn = store.images()[[0, 14, 27, 40]]
    return np.concatenate([photograph, drawn])


def ladder(axes: Axes, model: vr.VDVAE, images: np.ndarray) -> None:
    """Draw images (N, S, S, 3), and what their first layers rebuild, the rest at the prior's mean."""
    read = model.posterior(images)
    rows = [images]
    for count in FIRST:
        known = {spec.name: read[spec.name].z for spec in model.layers[:count]}
        rows.append(model.decode(known))
    gap, side = 4, images.shape[1]
    height, width = (side + gap) * len(rows) - gap, (side + gap) * len(images) - gap
    sheet = np.full((height, width, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            y, x = i * (side + gap), j * (side + gap)
            sheet[y : y + side, x : x + side] = image
    axes.imshow(sheet, interpolation="nearest")
    names = [model.layers[count - 1].resolution for count in FIRST]
    labels = ["original", *(f"first {k}\n(to {r}x{r})" for k, r in zip(FIRST, names, strict=True))]
    labels[1] = "first layer\n(1x1)"
    axes.set_yticks([i * (side + gap) + side / 2 for i in range(len(rows))], labels)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def accuracy(axes: Axes, head: str) -> None:
    """Draw rank-1 of LFW's people by layer, singly and together, beside the best of the controls."""
    table = pd.read_csv(ANSWERS).query("data == 'lfw' and head == @head and metric == 'rank1'")
    rows = table[table.model == "faces64"]
    names = list(rows[rows.selection == "single"].layer)
    for selection, color, marker, text in (
        ("single", BLUE, "o", "one layer"),
        ("cumulative", ORANGE, "s", "all layers up to it"),
    ):
        some = rows[rows.selection == selection]
        x = [names.index(n) if n in names else int(n.removeprefix("0:")) - 1 for n in some.layer]
        axes.fill_between(x, some.ci_low, some.ci_high, color=color, alpha=0.15, linewidth=0)
        axes.plot(
            x, some.value, color=color, marker=marker, markersize=3.5, linewidth=1.3, label=text
        )
        chosen = some[some.chosen]
        for n, value in zip(chosen.layer, chosen.value, strict=True):
            at = names.index(n) if n in names else int(n.removeprefix("0:")) - 1
            axes.plot(at, value, marker="*", color=color, markersize=13, markeredgecolor="white")
    for control, style in (("pixels", "--"), ("random-init", "-.")):
        some = table[table.model == control]
        best = some[some.chosen] if some.chosen.any() else some.nlargest(1, "value")
        axes.axhline(
            float(best.value.iloc[0]),
            color=GREY,
            linestyle=style,
            linewidth=1.1,
            label={"pixels": "raw pixels", "random-init": "random weights"}[control],
        )
    axes.axhline(
        float(table.chance.iloc[0]), color=GREY, linestyle=":", linewidth=1, label="chance"
    )
    starts = [i for i, n in enumerate(names) if n.endswith(".0")]
    middles = [(a + b - 1) / 2 for a, b in pairwise([*starts, len(names)])]
    axes.set_xticks(middles, [names[i].removesuffix(".0") for i in starts])
    axes.tick_params(axis="x", length=0)
    for i in starts[1:]:
        axes.axvline(i - 0.5, color="0.9", linewidth=0.8, zorder=0)
    star = {"marker": "*", "color": "0.3", "linestyle": "", "markersize": 9}
    axes.plot([], [], label="picked on training data", **star)
    axes.set(xlabel="layer, by resolution", ylabel="people told (rank-1)", ylim=(0, None))
    axes.set_title(
        "Who is it? 121 people of LFW, ridge regression, 95 % intervals", loc="left", fontsize=9
    )
    axes.legend(frameon=False, fontsize=8, loc="lower right", ncols=2, bbox_to_anchor=(1, 0.03))


def overview(model: vr.VDVAE, images: np.ndarray) -> Figure:
    """Draw the picture on top of README."""
    figure = Figure(figsize=(10.4, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.16, 1])
    ladder(left, model, images)
    accuracy(right, "ridge")
    return figure


def gaussians() -> Figure:
    """Draw what delta is: how far a posterior's mean lies from the prior's, in the prior's deviations."""
    figure = Figure(figsize=(5.6, 2.4), layout="constrained")
    axes = figure.subplots()
    x = np.linspace(-4, 4, 400)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
    for mean, std, color, text in ((-0.8, 1.2, GREY, "prior p"), (1.2, 0.45, BLUE, "posterior q")):
        y = np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
        axes.fill_between(x, y, color=color, alpha=0.2, linewidth=0)
        axes.plot(x, y, color=color, linewidth=1.5)
        axes.text(mean + (0.55 if std < 1 else -2.2), y.max() * 0.72, text, color=color)
        axes.plot([mean, mean], [0, y.max()], color=color, linestyle=":", linewidth=1)
    axes.annotate("", (1.2, 0.06), (-0.8, 0.06), arrowprops={"arrowstyle": "->", "color": ORANGE})
    axes.text(-0.75, 0.13, "delta: 1.7 widths of p", color=ORANGE, bbox=box)
    axes.set(xlabel="one latent number of one layer", yticks=[], ylim=(0, None))
    axes.spines["left"].set_visible(False)
    return figure


def rate(model: vr.VDVAE, folder: Path) -> Figure:
    """Draw how many nats each layer spends on drawn faces and on digits."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    names = [spec.name for spec in model.layers]
    for data, color, shift, text in (
        ("toy-faces:12x6", BLUE, -0.2, "drawn faces"),
        ("digits", ORANGE, 0.2, "handwritten digits"),
    ):
        source = vr.open_source(data, rows="0:72")
        with vr.extract(
            model, source, folder / f"{shift}.h5", layers="all", features=["kl"], pool="avg"
        ) as store:
            nats = store.kl.mean(axis=0)
        axes.bar(
            np.arange(len(names)) + shift,
            nats,
            0.4,
            color=color,
            label=f"{text}, {nats.sum():,.0f} nats in all",
        )
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_ylabel("nats an image")
    axes.legend(frameon=False)
    return figure


def exchange(model: vr.VDVAE, images: np.ndarray) -> Figure:
    """Draw two faces, and the coarse layers of the one with the fine layers of the other."""
    pair, reverse = images[[0, 1]], images[[1, 0]]
    read = model.posterior(pair)
    other = model.posterior(reverse)
    figure = Figure(figsize=(7.2, 1.75), layout="constrained")
    shown = [(pair[0], "A"), (pair[1], "B")]
    for name, cut in (("16x16", 11), ("32x32", 16)):
        mixed = {s.name: (read if s.index < cut else other)[s.name].z for s in model.layers}
        shown += [
            (model.decode(mixed)[0], f"A, from {name} on B"),
            (model.decode(mixed)[1], f"B, from {name} on A"),
        ]
    for axes, (image, title) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        axes.imshow(image)
        axes.set_title(title.replace(", ", ",\n"), fontsize=8)
        axes.axis("off")
    return figure


def drawn_people() -> Figure:
    """Draw six of the drawn people, six images each."""
    people = vr.open_source("toy-faces:6x6")
    sheet = np.concatenate(
        [
            np.concatenate([np.asarray(people[6 * i + j]) for j in range(6)], axis=1)
            for i in range(6)
        ]
    )
    figure = Figure(figsize=(4, 4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet)
    axes.axis("off")
    return figure


def main() -> None:
    """Write every picture."""
    model = vr.load("faces64")
    folder = HERE / "pictures"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        images = faces(model, Path(scratch))
        pictures = {
            "overview": overview(model, images),
            "delta": gaussians(),
            "rate": rate(model, Path(scratch)),
            "exchange": exchange(model, images),
            "toy_faces": drawn_people(),
        }
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    main()
