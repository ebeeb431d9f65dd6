# %% [markdown]
# # Decoding predicted latents
#
# **I have responses of a brain to images. If I predict a model's latents from them and decode these, do I see the
# images that were looked at, and how could I tell that I do not fool myself?**
#
# The usual pipeline has three steps: latents of the stimuli, a regression from responses to latents, and images of
# what was predicted. Here the brain is made up, so that the truth is known: each voxel sees one patch of the image
# in one colour, and is noisy. Everything else is what you would do with recorded responses. **`NOISE` is the line
# to change first.**

# %%
import tempfile
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV

import vdvae_repr as vr

NOISE = 1.0  # standard deviation of a voxel's noise, where that of its signal is 1
VOXELS = 600
LAYERS = "<=8x8"  # of the model, that are predicted

plt.rcParams |= {"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False}
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.5"
folder = tempfile.TemporaryDirectory(prefix="vdvae-repr-")
here = Path(folder.name)

# %% [markdown]
# ## 1. Latents of the stimuli
#
# 50 drawn people, 6 images each. The last ten people are the test: the regression sees none of their images.

# %%
model = vr.load("faces64")
store = vr.extract(model, "toy-faces:50x6", here / "stimuli.h5", layers=LAYERS)
images = store.images()
latents, labels, ids = store.matrix(LAYERS, feature="mean")
test = labels >= 40
print(
    f"{latents.shape[1]:,} latent numbers an image; {(~test).sum()} images to learn from, {test.sum()} to test"
)

# %% [markdown]
# ## 2. Responses, made up
#
# A voxel's receptive field is a Gaussian patch somewhere in the image, of one of its three colours. Replace
# `responses` by your own, (images, voxels), and the rest runs as it stands.


# %%
def respond(pictures, noise, seed=0):
    """Return responses (N, VOXELS) of voxels that see patches, each of mean 0 and deviation 1 before the noise."""
    rng = np.random.default_rng(seed)
    axis = np.arange(pictures.shape[1])
    x, y = rng.uniform(0, len(axis), (2, VOXELS, 1))
    width = rng.uniform(3, 12, (VOXELS, 1))
    across, down = (np.exp(-(((axis - at) / width) ** 2) / 2) for at in (x, y))
    by_color = np.einsum("nhwc,vh,vw->nvc", pictures / 255, down, across, optimize=True)
    signal = by_color[:, np.arange(VOXELS), rng.integers(3, size=VOXELS)]
    signal = (signal - signal.mean(0)) / signal.std(0)
    return signal + noise * rng.normal(size=signal.shape)


responses = respond(images, NOISE)
responses.shape

# %% [markdown]
# ## 3. The regression
#
# Ridge from all voxels to all latents, its penalty found on the training images. Ridge predicts too cautiously:
# the noisier the voxels, the nearer all predictions to the mean. So each latent number is stretched to the
# deviation that it has among the training images, as is usual before decoding. **Leave `STRETCH` out by setting it
# to `False`: the images fade, but are they worse by the measure of section 5?**

# %%
STRETCH = True


def predict(responses):
    """Return latents (test images, D) that the responses foretell."""
    regression = RidgeCV(alphas=np.logspace(0, 6, 13)).fit(responses[~test], latents[~test])
    known, foretold = (regression.predict(responses[rows]) for rows in (~test, test))
    if STRETCH:
        center = latents[~test].mean(0)
        spread = latents[~test].std(0) / np.maximum(known.std(0), 1e-6)
        foretold = center + (foretold - center) * np.minimum(spread, 5)
    return foretold.astype(np.float32)


predicted = predict(responses)

# %% [markdown]
# Which layers can be foretold? The correlation of predicted and true numbers over the test images, the median over
# the numbers of each layer, beside the same of responses to other images.

# %%
start = np.cumsum([0, *(spec.num_dims for spec in store.layers)])
shuffled = np.random.default_rng(1).permutation(test.sum())


def correlation(a, b):
    """Return Pearson's r of each column."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / np.maximum(np.sqrt((a**2).sum(0) * (b**2).sum(0)), 1e-12)


r, r_shuffled = (correlation(p, latents[test]) for p in (predicted, predicted[shuffled]))
by_layer = pd.DataFrame(
    {
        "layer": [spec.name for spec in store.layers],
        "r": [np.median(r[a:b]) for a, b in pairwise(start)],
        "of other images": [np.median(r_shuffled[a:b]) for a, b in pairwise(start)],
        "nats": store.kl.mean(0),
    }
).set_index("layer")
figure, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
ax.plot(by_layer.index, by_layer.r, "o-", color=BLUE, label="predicted from responses to the image")
ax.plot(by_layer.index, by_layer["of other images"], "s--", color=GREY, label="to another image")
ax.set_ylabel("correlation, median")
ax.tick_params(axis="x", rotation=60)
ax.legend(frameon=False)
by_layer.round(2).T

# %% [markdown]
# ## 4. Images of what was predicted
#
# `vr.import_latents` checks shapes, ids and numbers, and makes a store like any other. `decode` fills the layers
# that were not predicted with the prior's mean given those that were.

# %%
names = [image_id for image_id, tested in zip(ids, test, strict=True) if tested]


def decoded(matrix, first=None, out="predicted.h5"):
    """Return images (test images, S, S, 3) of latents, or of their first layers alone."""
    imported = vr.import_latents(matrix, like=store, out=here / out, ids=names, overwrite=True)
    with imported:
        return np.concatenate([pixels for _, pixels in imported.decode(model, first=first)])


seen = images[test]
rows = {
    "seen": seen,
    "all layers, true": model.decode(model.posterior(seen)),
    f"{LAYERS}, true": decoded(latents[test]),
    f"{LAYERS}, predicted": decoded(predicted),
    "of other responses": decoded(predicted[shuffled]),
}
figure, axes = plt.subplots(len(rows), 10, figsize=(9.5, 5), layout="constrained")
for (name, pictures), row in zip(rows.items(), axes, strict=True):
    for ax, picture in zip(row, pictures[::6], strict=True):
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")

# %% [markdown]
# ## 5. Is it the image that was seen?
#
# A model that makes faces makes a face of anything, so a good-looking image proves nothing. **Pairwise
# identification** asks of every two test images: is the reconstruction nearer to its own image than to the other
# (correlation of pixels)? Chance is one half. Pairs of *different people* and pairs of *the same person* are told
# apart, since a person's images share hair and skin.


# %%
def identification(pictures):
    """Return the share of pairs told rightly: (of different people, of the same person)."""
    flat, truth = (p.reshape(len(p), -1).astype(np.float64) for p in (pictures, seen))
    flat, truth = (p - p.mean(0) for p in (flat, truth))
    flat, truth = (
        p / np.maximum(np.linalg.norm(p, axis=1, keepdims=True), 1e-9) for p in (flat, truth)
    )
    nearness = flat @ truth.T
    right = (np.diag(nearness)[:, None] > nearness) + 0.5 * (np.diag(nearness)[:, None] == nearness)
    same = labels[test][:, None] == labels[test]
    others = same & ~np.eye(len(same), dtype=bool)
    return right[~same].mean(), right[others].mean()


told = pd.DataFrame(
    {name: identification(pictures) for name, pictures in rows.items() if name != "seen"},
    index=["different people", "same person"],
).T
told.round(3)

# %% [markdown]
# How good must the responses be, and how many layers are worth predicting?

# %%
noises, depths = (0.3, 1.0, 3.0, 10.0), (1, 5, 11)
curves = pd.DataFrame(index=pd.Index(noises, name="noise"), columns=depths, dtype=float)
for noise in noises:
    foretold = predict(respond(images, noise))
    for first in depths:
        curves.loc[noise, first] = identification(decoded(foretold, first))[0]
figure, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
for first, color, marker in zip(depths, (GREY, ORANGE, BLUE), "so^", strict=True):
    layers = "the first layer" if first == 1 else f"the first {first} layers"
    ax.plot(noises, curves[first], marker + "-", color=color, label=layers)
ax.axhline(0.5, color="0.8", linestyle=":")
ax.set(xscale="log", xlabel="noise, of the signal's deviation", ylabel="pairs of people told")
ax.legend(frameon=False)
curves.round(3)

# %% [markdown]
# ## The answer

# %%
own, other = told.loc[f"{LAYERS}, predicted"], told.loc["of other responses"]
best = by_layer.r.idxmax()
enough = {
    noise: min(n for n in depths if row[n] > row.max() - 0.01) for noise, row in curves.iterrows()
}
verdict = "yes" if own.iloc[0] > 0.75 else "barely" if own.iloc[0] > 0.6 else "no"
print(
    f"Do I see the images? By identification {verdict}: at noise {NOISE:g}, {own.iloc[0]:.1%} of pairs of different people are told,\n"
    f"and {own.iloc[1]:.1%} of pairs of one person's images, where responses to other images tell {other.iloc[0]:.1%} "
    f"and true latents {told.loc[f'{LAYERS}, true'].iloc[0]:.0%}.\n"
    f"Best foretold is {best} (median r {by_layer.r[best]:.2f}); "
    + "so many layers are enough to be within .01 of the most pairs: "
    + ", ".join(f"{n} at noise {noise:g}" for noise, n in enough.items())
    + ".\nWhat keeps one honest is the lowest row of the picture: it shows faces as good, of images that nobody saw."
)
store.close()
folder.cleanup()

# %% [markdown]
# With recorded responses average repeated presentations first, keep test images out of everything that is
# learned (standardisation too), and report chance as above. The guide for neuroscience, in the documentation,
# has the same steps on the command line.
