# %% [markdown]
# # What each layer knows
#
# **Which layer of `faces64` knows the light, which the pose, which the person? And is it the layer that spends
# most nats?**
#
# Drawn faces can answer that, because every property of every image is known. Three views of the same store: how
# many nats each layer spends (*rate*), how well each property is read off each layer (*factors*), and how well
# people are told by it (*atlas*).

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import vdvae_repr as vr

DATA = "toy-faces:80x4"  # 80 people, 4 images each; more people, narrower intervals, more minutes
FEATURE = "mean"  # "delta": what a layer adds to what it was told from above

plt.rcParams |= {"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False}
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.5"
folder = tempfile.TemporaryDirectory(prefix="vdvae-repr-")
here = Path(folder.name)
model = vr.load("faces64")
store = vr.extract(model, DATA, here / "faces.h5", layers="<=32x32", features=(FEATURE,))
names = [spec.name for spec in store.layers]
print(f"{len(store)} images, {len(names)} layers, {len(store.factors)} known factors")

# %% [markdown]
# ## Rate: what each layer spends
#
# KL(q || p) in nats, the images' mean: how much a layer says that the layers above did not foretell. It knows
# nothing of *use*: the grain of a shirt costs as many nats as the line of a mouth.

# %%
nats = pd.Series(store.kl.mean(axis=0)[: len(names)], index=names)
figure, ax = plt.subplots(figsize=(8, 2.4), layout="constrained")
ax.bar(names, nats, color=BLUE)
ax.set(ylabel="nats an image", yscale="log", ylim=(0.1, None))
ax.tick_params(axis="x", rotation=60)

# %% [markdown]
# ## Factors: what can be read off each layer
#
# The task `factors` predicts each property from each layer by ridge regression, learned from half of the people
# and tested on the other half, beside the same from pixels. R2 is 1 where a property is known exactly and 0 where
# nothing is known of it.

# %%
report = vr.probe(
    store, "factors", features=FEATURE, selections="single", controls=("pixels",), cache=None
)
print(*report.notes, sep="\n")
figure, ax = plt.subplots(figsize=(10, 6), layout="constrained")
report.plot.factors("r2", ax=ax)
plt.show()

# %% [markdown]
# The layer that knows most of each factor, picked by the people learned from; its figure beside that of pixels
# on the others. Factors of which neither knows a tenth are left out.

# %%
rows = report.to_frame().query("metric == 'r2'")
rows = rows.assign(factor=rows["head"].str.removeprefix("ridge:"))
ours, pixels = rows[(rows.role == "model") & rows.chosen], rows[rows.model == "pixels"]
known = ours.set_index("factor")[["layer", "value", "ci_low", "ci_high"]].join(
    pixels.groupby("factor").value.max().rename("pixels")
)
known = known[(known[["value", "pixels"]] > 0.1).any(axis=1)]
known = known.sort_values("layer", key=lambda column: column.map(names.index))
known.round(2)

# %% [markdown]
# Where do things become known? For each factor the first layer that comes within a tenth of the best one.

# %%
scores = rows[rows.role == "model"].pivot_table(index="factor", columns="layer", values="value")
scores = scores.loc[known.index, names]
enough = scores.ge(scores.max(axis=1) - 0.1, axis=0)
first_known = enough.idxmax(axis=1).rename("first layer within .1 of the best").to_frame()
first_known["resolution"] = [int(name.split("x")[0]) for name in first_known.iloc[:, 0]]
first_known = first_known.sort_values("resolution", kind="stable")
first_known

# %% [markdown]
# ## Atlas: who is it, by each layer?
#
# The same layers asked for the person, singly and all up to each, by nearest neighbour. The star is what the
# gallery alone picked. **Ask another task by changing its name, or another head by `heads=["ridge"]`.**

# %%
atlas = vr.probe(
    store,
    "face_id",
    features=FEATURE,
    heads=["nearest-neighbor"],
    selections=("single", "cumulative"),
    controls=("pixels", "pca"),
    cache=None,
)
print(atlas)
figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
atlas.plot.layers(ax=ax)
plt.show()

# %% [markdown]
# ## Does the costly layer know most?
#
# Each layer as a point: what it spends, and what it knows, which is the mean R2 over the factors above (negative
# ones count as 0) or the share of people told.

# %%
mean_r2 = scores.clip(lower=0).mean()
person = (
    atlas.to_frame()
    .query("role == 'model' and selection == 'single' and metric == 'rank1'")
    .set_index("layer")
    .value[names]
)
figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
for ax, values, label in zip(
    axes, (mean_r2, person), ("factors, mean R2", "people told"), strict=True
):
    ax.plot(nats, values[names], "o", color=BLUE)
    for name in (names[0], nats.idxmax(), values.idxmax()):
        ax.annotate(name, (nats[name], values[name]), textcoords="offset points", xytext=(5, 5))
    ax.set(xscale="log", xlabel="nats an image", ylabel=label, ylim=(0, None))
table = pd.DataFrame({"nats": nats, "factors": mean_r2, "people": person})
rank = table.corr(method="spearman")["nats"]

# %% [markdown]
# ## The answer

# %%
by_side = first_known.groupby("resolution").apply(
    lambda group: ", ".join(name.partition("_")[2].replace("_", " ") for name in group.index),
    include_groups=False,
)
for side, factors in by_side.items():
    print(f"Known from {side}x{side} on: {factors}.")
beaten = int((known.value > known.pixels).sum())
print(
    f"\nMost nats lie in {nats.idxmax()}; factors are known best to {mean_r2.idxmax()}, and people are told best by {person.idxmax()}.\n"
    f"Rank correlation of nats with what is known: {rank['factors']:+.2f} of factors, {rank['people']:+.2f} of people, "
    f"so what a layer spends is {'a fair' if min(rank[1:]) > 0.7 else 'a poor'} guide to what it is good for.\n"
    f"Of {len(known)} factors known at all, {beaten} are known better to the chosen layer than to pixels."
)
store.close()
folder.cleanup()

# %% [markdown]
# That is of drawings. With photographs give `vr.extract` a CSV whose columns are your factors (age, pose, ...), and
# everything above runs as it stands.
