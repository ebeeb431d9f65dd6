# %% [markdown]
# # Getting latents
#
# **What does each layer of `faces64` hold of a picture, and how do I get it?**
#
# `faces64` is a very deep VAE of 64x64 faces with 20 stochastic layers, one below the other, from a single
# position (`1x1`) to one for each pixel (`64x64`). Each layer says in a few Gaussians what the layers above it
# could not foretell. Here they are read, counted in nats, cut off, and exchanged between pictures. Everything
# is in the package: the model, and drawn faces whose properties are known.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import vdvae_repr as vr

plt.rcParams |= {"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False}
BLUE, ORANGE = "#0072B2", "#D55E00"
folder = tempfile.TemporaryDirectory(prefix="vdvae-repr-")

model = vr.load("faces64")

# %% [markdown]
# The layers, by resolution. A layer is called by its resolution and its number there: `8x8.0` is the first of
# the six at 8x8.

# %%
layers = pd.DataFrame(
    {
        "layer": [spec.name for spec in model.layers],
        "resolution": [spec.resolution for spec in model.layers],
        "shape": [spec.shape for spec in model.layers],
        "numbers": [spec.num_dims for spec in model.layers],
    }
)
layers.groupby("resolution").agg(
    layers=("layer", "count"),
    first=("layer", "first"),
    last=("layer", "last"),
    shape_of_each=("shape", "first"),
    numbers_in_all=("numbers", "sum"),
)

# %% [markdown]
# ## A store of many pictures
#
# `vr.extract` reads the layers of all pictures of a source into one HDF5 file: here of 16 drawn people, 6
# pictures each, two features of every layer. The source may as well be a folder, a tar, a CSV, or an array file.

# %%
store = vr.extract(
    model, "toy-faces:16x6", Path(folder.name) / "faces.h5", features=("mean", "delta")
)
images = store.images()  # uint8 (N, 64, 64, 3)
print(len(store), "pictures of", len(store.label_names), "people;", images.shape, images.dtype)


def show(axes, pictures, titles=()):
    """Draw pictures side by side, a title above each."""
    for ax, picture in zip(axes, pictures, strict=True):
        ax.imshow(picture)
        ax.set_axis_off()
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title, fontsize=9)


figure, axes = plt.subplots(2, 8, figsize=(9, 2.5), layout="constrained")
for row, ax in enumerate(axes):
    show(ax, images[row : 8 * 6 : 6], store.label_names[:8] if row == 0 else ())

# %% [markdown]
# ## One picture
#
# `model.posterior` reads pictures without a store. Of each layer it gives the posterior q and the prior p,
# that is what was expected of the layer once those above it were known.

# %%
read = model.posterior(images[:1])
layer = read["8x8.0"]
pd.DataFrame(
    [
        ("mean", layer.mean, "the posterior's mean"),
        ("log_std", layer.log_std, "and log of its standard deviation"),
        ("prior_mean", layer.prior_mean, "the prior's mean, given the layers above"),
        ("prior_log_std", layer.prior_log_std, "and log of its standard deviation"),
        (
            "delta",
            layer.delta,
            "(mean - prior_mean) / exp(prior_log_std): what is new in this layer",
        ),
        ("kl", layer.kl, "KL(q || p) of each number, nats: how much of it is new"),
        ("z", layer.z, "what was sent down; here the mean"),
    ],
    columns=["feature", "values", "what"],
).assign(
    shape=lambda t: [tuple(v.shape) for v in t["values"]],
    lowest=lambda t: [round(v.min().item(), 3) for v in t["values"]],
    highest=lambda t: [round(v.max().item(), 3) for v in t["values"]],
)[["feature", "shape", "lowest", "highest", "what"]]

# %% [markdown]
# `read.kl` sums it over each layer. The same numbers stand in the store, and `delta` is what the table says.

# %%
assert np.allclose(layer.delta, (layer.mean - layer.prior_mean) / layer.prior_log_std.exp())
assert np.isclose(read.kl[0, 5], layer.kl.sum())
assert np.allclose(store["8x8.0"].mean[0], layer.mean[0], atol=1e-4)
print(f"{read.kl.sum():.0f} nats in this picture, {layer.kl.sum():.0f} of them in 8x8.0")

# %% [markdown]
# Where do they lie? Nats of each position, summed over the layers of a resolution; each map has its own scale,
# from none (dark) to its most (bright).

# %%
some = [0, 13, 26, 57]
maps = model.posterior(images[some])
resolutions = sorted({spec.resolution for spec in model.layers})
shown = [r for r in resolutions if 1 < r < 64]
figure, axes = plt.subplots(len(some), 5, figsize=(6.2, 5.2), layout="constrained")
for row, ax in enumerate(axes):
    show(ax[:1], [images[some[row]]], ["picture"] if row == 0 else ())
    for column, r in enumerate(shown, start=1):
        here = [spec.name for spec in model.layers if spec.resolution == r]
        nats = sum(maps[name].kl[row].sum(0) for name in here)
        ax[column].imshow(nats, cmap="cividis", vmin=0)
        ax[column].set_axis_off()
        ax[column].set_title(f"{r}x{r}: {nats.sum():,.0f} nats", fontsize=9)

# %% [markdown]
# ## Selectors and features
#
# The same words choose layers everywhere, in `posterior`, `extract`, `matrix` and on the command line.
# `store.matrix` gives features side by side, labels and ids, ready for scikit-learn; `pool` averages over
# positions.

# %%
asked = [
    ("8x8.2", "mean", None),
    ("8x8", "mean", None),
    ("<=4x4", "mean", None),
    ("0:5", "mean", None),
    ("1x1,16x16.0", "delta", None),
    ("all", "delta", None),
    ("all", "delta", "avg:4"),
    ("all", "delta", "avg"),
]
rows = []
for selector, feature, pool in asked:
    X, y, ids = store.matrix(selector, feature=feature, pool=pool)
    count = len(store.distinct(selector, feature))
    rows.append((selector, feature, pool, count, X.shape, X.dtype))
pd.DataFrame(rows, columns=["selector", "feature", "pool", "layers", "X", "dtype"]).fillna("")

# %% [markdown]
# What does not fit into memory is read by slices: rows of a layer, a matrix piece by piece, or a torch data
# set, item by item.

# %%
rows = store["32x32.0"].mean[10:14]  # these four alone are read
pieces = [len(piece) for piece in store.slices("all", feature="mean")]
features, label = store.dataset("8x8", feature="delta")[0]
print(rows.shape, rows.dtype)
print(pieces, "rows at a time")
print(tuple(features.shape), store.label_names[label])

# %% [markdown]
# ## What each layer holds, in nats and in pictures
#
# `store.kl` has the nats of every picture and layer. Beside them stands how far a picture is from what its
# first layers rebuild: `model.decode` takes latents by name, and fills the others with the prior's mean.

# %%
names = [spec.name for spec in model.layers]
nats = pd.DataFrame(store.kl, columns=names)
people = images[::6]  # one of each
posterior = model.posterior(people)


def rebuilt(upto):
    """Pictures from the first layers alone."""
    return model.decode({name: posterior[name].z for name in names[:upto]})


def distance(pictures, others):
    """Root mean squared difference, grey levels of 255."""
    return float(np.sqrt(np.mean((pictures.astype(float) - others) ** 2)))


nothing = distance(model.sample(1, temperature=0), people)
left = [distance(rebuilt(k), people) for k in range(1, len(names) + 1)]

figure, (top, bottom) = plt.subplots(2, 1, figsize=(8.5, 5.6), sharex=True, layout="constrained")
low, middle, high = nats.quantile([0.05, 0.5, 0.95]).to_numpy()
top.vlines(names, low, high, color=BLUE, alpha=0.35, linewidth=6)
top.plot(names, middle, "o", color=BLUE)
top.set_yscale("log")
top.set_ylabel("nats in the layer")
top.set_title(
    "median over 96 pictures, and from the 5th to the 95th of a hundred", loc="left", fontsize=10
)
bottom.axhline(nothing, color="0.4", linestyle="--", linewidth=1.2)
bottom.text(
    19.4, nothing, "no layer: the prior's mean", ha="right", va="bottom", fontsize=9, color="0.3"
)
bottom.plot(names, left, "o-", color=ORANGE)
bottom.set_ylim(0, 1.12 * nothing)
bottom.set_ylabel("RMS error, grey levels")
bottom.set_title("rebuilt from this layer and those above it", loc="left", fontsize=10)
bottom.tick_params(axis="x", rotation=90)
for ax in (top, bottom):
    for edge in range(1, len(names)):
        if layers.resolution[edge] != layers.resolution[edge - 1]:
            ax.axvline(edge - 0.5, color="0.85", linewidth=1, zorder=0)

# %%
share = nats.mean().groupby(layers.set_index("layer").resolution).sum().rename("nats")
table = share.to_frame().assign(
    share=share / share.sum(),
    nats_each_number=share / layers.groupby("resolution").numbers.sum(),
    error_after=[left[layers.resolution.eq(r)[::-1].idxmax()] for r in share.index],
)
table.style.format("{:.1f}", subset=["nats", "error_after"]).format(
    "{:.1%}", subset="share"
).format("{:.3f}", subset="nats_each_number")

# %% [markdown]
# The same in pictures: what the layers up to a resolution rebuild.

# %%
last = {r: int(layers.index[layers.resolution == r].max()) + 1 for r in resolutions}
figure, axes = plt.subplots(4, 7, figsize=(7.2, 4.3), layout="constrained")
for row, person in enumerate([0, 2, 4, 13]):
    titles = ["picture", *(f"up to {r}x{r}" for r in resolutions)]
    pictures = [people[person], *(rebuilt(k)[person] for k in last.values())]
    show(axes[row], pictures, titles if row == 0 else ())

# %% [markdown]
# ## Coarse of one, fine of another
#
# Latents are arrays by name, so two pictures can be crossed: the layers up to a resolution from one, all others
# from the other. These come from the store, whose means are what `posterior` gives.

# %%
means = {name: store[name].mean[::6] for name in names}  # of the same 16 people
others = np.roll(np.arange(16), -1)  # each with the next


def crossed(k):
    """Pictures whose first k layers are each person's own, and all others the next person's."""
    return model.decode({n: means[n] if i < k else means[n][others] for i, n in enumerate(names)})


mixed = {f"{r}x{r}": crossed(last[r]) for r in (1, 4, 8, 16, 32)}
figure, axes = plt.subplots(3, 7, figsize=(7.2, 3.3), layout="constrained")
titles = ["coarse of this", *(f"up to {r}" for r in mixed), "fine of this"]
for row, person in enumerate([0, 3, 9]):
    pictures = [people[person], *(mixed[r][person] for r in mixed), people[others[person]]]
    show(axes[row], pictures, titles if row == 0 else ())

# %%
crossing = pd.DataFrame(
    {
        "from the coarse one": [distance(pictures, people) for pictures in mixed.values()],
        "from the fine one": [distance(pictures, people[others]) for pictures in mixed.values()],
    },
    index=pd.Index([f"coarse up to {r}" for r in mixed], name="RMS difference, grey levels"),
)
crossing.round(1)

# %% [markdown]
# ## The answer

# %%
most = share.idxmax()
coarse = share[share.index <= 8].sum() / share.sum()
after = table.error_after
nearer = crossing["from the coarse one"] < crossing["from the fine one"]
turn = nearer.idxmax().removeprefix("coarse up to ")
before = list(mixed)[list(mixed).index(turn) - 1]
far, near = crossing.loc[f"coarse up to {before}"]
assert coarse < 0.1
assert after[8] < nothing / 2
assert not nearer.iloc[0]
assert nearer.iloc[-1]
print(
    f"Of {share.sum():,.0f} nats in a picture {coarse:.1%} lie in the layers up to 8x8, and most, "
    f"{share[most] / share.sum():.0%}, at {most}x{most}.\n"
    f"The few coarse ones hold the rough picture: with the layers up to 4x4, which tell colours and light, the error is "
    f"{after[4]:.0f} grey levels,\nup to 8x8 {after[8]:.0f}, of {nothing:.0f} without any layer; up to 16x16 it is "
    f"{after[16]:.0f}, and all layers leave {left[-1]:.0f}.\n"
    f"But the fine ones hold more than detail: crossed with the fine layers of another picture, those up to {before} "
    f"are overruled\n(the result is {near:.0f} grey levels from the fine picture, {far:.0f} from the coarse one), "
    f"and only from {turn} on the result is nearer to the coarse one.\n"
    "How to get them: model.posterior for pictures at hand, vr.extract and store.matrix for many, and "
    "model.decode for the way back."
)
store.close()
folder.cleanup()
