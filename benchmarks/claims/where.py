"""Where is the information? Nats by resolution, what first layers rebuild, what others leave to vary.

A trained model reads images that it has not seen. They are rebuilt from the posterior means of the first
k layers, the rest filled with the prior's mean: PSNR and SSIM with the originals, and, where people are
named, who it is: rank 1 of ridge on the pixels of rebuilt galleries and probes. Then some layers are
kept and the others drawn.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from claim import Context, Piece, Row, Settings, Verdict, below, images, interval, shown
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

import vdvae_repr as vr

TITLE = "Do coarse layers hold structure and fine layers texture?"
PAPER = (
    "the model learns an efficient hierarchy: latents at low resolution, few in number, hold the global "
    "structure of an image, those at high resolution add local detail in parallel."
)
PAPER_IN_SHORT = "coarse layers hold global structure, fine ones texture"
RULE = (
    "Of each image the posterior of either the layers up to `cut` or all layers after it is kept, and "
    "the others are drawn from the prior `draws` times. The variance over draws of the pixels' values "
    "is divided into that of the means of a `blocks` x `blocks` grid (structure) and the rest "
    "(texture). *Coarse layers hold structure* agrees where the logarithm of the structure's variance "
    "with coarse layers kept, over that with fine ones kept, is below 0 by Student's 95 % interval over "
    "images, and disagrees where it is above. *Fine layers hold texture* is the same of the texture's "
    "variance, with fine layers kept over coarse ones kept."
)
CAPTIONS = {
    "where_draws.png": "Images drawn by the model itself (first column). Upper row of each: coarse "
    "layers kept, fine ones drawn four times. Lower row: fine ones kept, coarse ones drawn."
}
BATCH = 32


def pieces(settings: Settings) -> list[Piece]:
    """Return a piece a question; `first` is the number of layers that images are rebuilt from."""
    rebuilt = [{"part": "rebuilt", "first": k} for k in settings["first"]]
    original = [{"part": "original", "first": 0}] if settings["identify"] else []
    return [
        {"part": "nats", "first": 0},
        *original,
        *rebuilt,
        {"part": "drawn", "first": settings["cut"]},
    ]


def measure(piece: Piece, context: Context) -> list[Row]:
    """Answer one question."""
    model = vr.load(context.settings["model"], device=context.device, download=True)
    source = images(context)
    if piece["part"] == "nats":
        return nats(model, source, context)
    shown_to_it = seen(model, source, context)
    if piece["part"] == "original":
        return [identify(shown_to_it, source, context)]
    if piece["part"] == "drawn":
        picture(model, piece["first"], context)
        return drawn(model, shown_to_it, piece["first"], context.settings)
    rebuilt = np.concatenate([
        model.decode(model.posterior(batch, layers=f"0:{piece['first']}"))
        for batch in batches(shown_to_it)
    ])  # fmt: skip
    found = likeness(shown_to_it, rebuilt)
    return [found | (identify(rebuilt, source, context) if context.settings["identify"] else {})]


def seen(model: vr.VDVAE, source: vr.Source, context: Context) -> NDArray[np.uint8]:
    """Return the images as the model sees them, (N, S, S, 3)."""
    with vr.extract(
        model, source, context.folder / "seen.h5", layers=0, overwrite=True, report=lambda line: None,
        crop=context.settings.get("crop"),
    ) as store:  # fmt: skip
        return store.images()


def batches(array: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield a few images at a time."""
    for start in range(0, len(array), BATCH):
        yield array[start : start + BATCH]


def nats(model: vr.VDVAE, source: vr.Source, context: Context) -> list[Row]:
    """Return a row a resolution: nats an image, and how many latents hold them."""
    found = vr.evaluate(model, source, crop=context.settings.get("crop"))
    latents: dict[str, int] = {}
    for layer in model.layers:
        key = f"{layer.resolution}x{layer.resolution}"
        latents[key] = latents.get(key, 0) + int(np.prod(layer.shape))
    return [
        {"resolution": r, "nats": nats, "latents": latents[r], "bits_per_dim": found.bits_per_dim}
        for r, nats in found.kl_nats_by_resolution.items()
    ]


def likeness(images: NDArray[np.uint8], rebuilt: NDArray[np.uint8]) -> Row:
    """Return mean PSNR, dB, and SSIM of rebuilt images."""
    error = ((images.astype(float) - rebuilt) ** 2).mean(axis=(1, 2, 3))
    psnr = 10 * np.log10(255**2 / np.maximum(error, 1e-9))
    pairs = zip(images, rebuilt, strict=True)
    return {"psnr": psnr.mean(), "ssim": np.mean([ssim(a, b) for a, b in pairs])}


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the structural similarity of two images (Wang 2004); Gaussian windows of 11, deviation 1.5."""
    x, y = a.astype(float), b.astype(float)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return gaussian_filter(values, (1.5, 1.5, 0), truncate=3.5)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    inner = found[5:-5, 5:-5] if min(found.shape[:2]) > 10 else found
    return float(inner.mean())


def identify(pixels: NDArray[np.uint8], source: vr.Source, context: Context) -> Row:
    """Return rank-1 identification by ridge on the pixels of images, of the gallery and probes alike."""
    own = vr.Source(
        name="rebuilt", ids=source.ids, reader=lambda index: pixels[index], labels=source.labels,
        label_names=source.label_names, splits=source.splits,
    )  # fmt: skip
    net = torch.nn.Sequential(torch.nn.Identity())
    bare = vr.TorchEncoder(net, layers=["0"], size=pixels.shape[1], mean=(0.5,) * 3, std=(0.5,) * 3)
    path = context.folder / "pixels.h5"
    with vr.extract(bare, own, path, overwrite=True, report=lambda line: None) as store:
        report = vr.probe(
            store,
            "face_id",
            heads="ridge",
            selections="single",
            controls=(),
            cache=None,
            progress=False,
        )
    row = next(row for row in report.rows if row.metric == "rank1")
    return {
        "rank1": row.value,
        "rank1_low": row.ci_low,
        "rank1_high": row.ci_high,
        "chance": row.chance,
    }


def drawn(model: vr.VDVAE, images: NDArray[np.uint8], cut: int, settings: Settings) -> list[Row]:
    """Return a row an image and kind of layers kept: the variance over draws, of structure and of texture."""
    count = min(settings["images_drawn"], len(images))
    chosen = images[np.linspace(0, len(images) - 1, count).astype(int)]
    rows = []
    for start, batch in zip(range(0, count, BATCH), batches(chosen), strict=True):
        posterior = model.posterior(batch)
        for kept, latents in divided(posterior, cut).items():
            seeds = range(settings["draws"])
            draws = np.stack([model.decode(latents, rest="sample", seed=seed) for seed in seeds])
            structure, texture = variances(draws.astype(float), settings["blocks"])
            rows += [
                {"image": start + i, "kept": kept, "structure": s, "texture": t}
                for i, (s, t) in enumerate(zip(structure, texture, strict=True))
            ]
    return rows


def divided(posterior: vr.VDVAE, cut: int) -> dict[str, dict[str, object]]:
    """Return the layers before and after the cut."""
    names = list(posterior)
    return {
        "coarse": {name: posterior[name] for name in names[:cut]},
        "fine": {name: posterior[name] for name in names[cut:]},
    }


def variances(
    draws: NDArray[np.float64], blocks: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Divide the variance over draws (D, N, S, S, 3) into that of block means and the rest; (N,) each.

    The two add up to the pixels' mean variance.
    """
    d, n, side, _, channels = draws.shape
    step = side // blocks
    means = draws.reshape(d, n, blocks, step, blocks, step, channels).mean(axis=(3, 5))
    structure = means.var(axis=0, ddof=1).mean(axis=(1, 2, 3))
    total = draws.var(axis=0, ddof=1).mean(axis=(1, 2, 3))
    return structure, total - structure


def picture(model: vr.VDVAE, cut: int, context: Context) -> None:
    """Write images of the model's own, each with draws that keep coarse layers, and that keep fine ones."""
    from PIL import Image

    own = model.sample(context.settings["pictures"], temperature=0.8, seed=0)
    posterior = model.posterior(own)
    rows = []
    kinds = [
        [model.decode(latents, rest="sample", temperature=0.8, seed=seed) for seed in range(4)]
        for latents in divided(posterior, cut).values()
    ]
    for i, image in enumerate(own):
        rows += [np.concatenate([image, *(draw[i] for draw in draws)], axis=1) for draws in kinds]
    Image.fromarray(np.concatenate(rows)).save(context.folder / "where_draws.png")


def ratios(rows: pd.DataFrame, column: str, kept: str, other: str) -> NDArray[np.float64]:
    """Return log of a variance with one kind kept over that with the other, image by image."""
    own = rows[rows.part == "drawn"].pivot(index="image", columns="kept", values=column)
    least = 1e-6  # of grey levels squared: 8-bit images may come out equal
    return np.log(own[kept].clip(lower=least) / own[other].clip(lower=least)).to_numpy()


def verdicts(rows: pd.DataFrame, settings: Settings) -> list[Verdict]:
    """Say what is left to vary when coarse, or fine, layers are kept."""
    found = []
    for statement, column, kept, other in (
        ("coarse layers hold structure", "structure", "coarse", "fine"),
        ("fine layers hold texture", "texture", "fine", "coarse"),
    ):
        ratio = interval(ratios(rows, column, kept, other))
        times = tuple(float(np.exp(value)) for value in ratio)
        text = f"{column}'s variance with {kept} layers kept is {shown(times)} of that with {other} ones kept"
        found.append(Verdict(statement, text, below(ratio)))
    return found


def in_short(rows: pd.DataFrame) -> str:
    """Say what was found in a few words."""
    structure = np.exp(ratios(rows, "structure", "coarse", "fine").mean())
    texture = np.exp(ratios(rows, "texture", "fine", "coarse").mean())
    return (
        f"structure varies {structure:.2f} times as much with coarse layers kept as with fine ones, "
        f"texture {texture:.2f} times with fine"
    )


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a resolution, then a row a number of layers that images are rebuilt from."""
    lines = []
    for row in rows[rows.part == "nats"].itertuples():
        lines.append(
            {
                "": f"layers at {row.resolution}",
                "latents": f"{row.latents:.0f}",
                "nats": f"{row.nats:.1f}",
            }
        )
    for row in rows[rows.part.isin(["rebuilt", "original"])].sort_values("first").itertuples():
        name = (
            "the images themselves"
            if row.part == "original"
            else f"rebuilt from the first {row.first}"
        )
        line = {"": name}
        if row.part == "rebuilt":
            line |= {"PSNR, dB": f"{row.psnr:.2f}", "SSIM": f"{row.ssim:.3f}"}
        if "rank1" in rows and np.isfinite(row.rank1):
            line["rank 1, ridge on pixels"] = (
                f"{row.rank1:.3f} [{row.rank1_low:.3f}, {row.rank1_high:.3f}]"
            )
        lines.append(line)
    return pd.DataFrame(lines).fillna("")


def draw(rows: pd.DataFrame, figure: Figure) -> None:
    """Show nats by resolution, what the first layers rebuild, and what varies."""
    left, middle, right = figure.subplots(1, 3)
    own = rows[rows.part == "nats"]
    left.bar(own.resolution, own.nats)
    left.set_yscale("log")
    left.tick_params(axis="x", rotation=60)
    left.set_ylabel("nats an image")
    own = rows[rows.part == "rebuilt"].sort_values("first")
    for column, label in (("ssim", "SSIM"), ("rank1", "rank 1")):
        if column in own and own[column].notna().any():
            middle.plot(own["first"], own[column], marker="o", label=label)
    middle.set_xlabel("rebuilt from the first layers")
    middle.set_ylim(0, 1)
    middle.legend(fontsize=8)
    own = rows[rows.part == "drawn"].groupby("kept")[["structure", "texture"]].mean()
    places = np.arange(2)
    for i, kept in enumerate(("coarse", "fine")):
        right.bar(places + 0.4 * i - 0.2, own.loc[kept], 0.4, label=f"{kept} kept")
    right.set_xticks(places, ["structure", "texture"])
    right.set_ylim(0, 1.3 * own[["structure", "texture"]].to_numpy().max())  # room for the legend
    right.set_ylabel("variance over draws")
    right.legend(fontsize=8)
