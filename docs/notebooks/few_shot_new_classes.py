# %% [markdown]
# # Few shots of new classes
#
# **Handwritten digits, for a model that has seen faces alone. Some digits may be learned from, others are new:
# does what was learned from the first help with the second, or is one example of each enough?**
#
# Three words: *base* classes are there to learn from, *novel* classes are what is tested, and *transfer* is what of
# the one helps with the other. Two things could transfer: statistics (the mean that some heads subtract), and the
# choice of a layer.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import vdvae_repr as vr

BASE = ["0", "1", "2", "3"]  # swap digits between base and novel, and see what stays
SHOTS = 1
FEATURE = "mean"

plt.rcParams |= {"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False}
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.5"
folder = tempfile.TemporaryDirectory(prefix="vdvae-repr-")
here = Path(folder.name)

# %% [markdown]
# ## Data, and who may be learned from
#
# 400 of scikit-learn's digits. A CSV of class and split says which are base and which novel; with your own
# classes it is the same file.

# %%
model = vr.load("faces64")
source = vr.open_source("digits", rows="0:400")
store = vr.extract(model, source, here / "digits.h5", layers="<=16x16", features=(FEATURE,))
classes = pd.DataFrame({"class": store.label_names})
classes["split"] = np.where(classes["class"].isin(BASE), "base", "novel")
classes.to_csv(here / "classes.csv", index=False)
figure, axes = plt.subplots(2, 10, figsize=(8, 1.9), layout="constrained")
for k, column in enumerate(axes.T):
    for ax, row in zip(column, np.flatnonzero(store.labels == k), strict=False):
        ax.imshow(store.images()[row])
        ax.axis("off")
    column[0].set_title(f"{classes['class'][k]}\n{classes.split[k]}", fontsize=9)

# %% [markdown]
# ## One shot of four new digits
#
# Two heads that differ in one thing. Both scale features to length 1 and take the nearest mean of a class;
# `simpleshot-cl2n` first subtracts the mean of the base classes, `nearest-prototype-cosine` subtracts nothing. The
# layer is chosen on episodes of base classes alone, so that its figure on novel ones is honest.

# %%
heads = ["nearest-prototype-cosine", "simpleshot-cl2n"]
task = vr.FewShot(ways=4, shots=SHOTS, queries=10, episodes=150, class_split=here / "classes.csv")
report = vr.probe(
    store,
    task,
    features=FEATURE,
    heads=heads,
    selections="single",
    controls=("pixels", "random-init"),
    cache=None,
)
print(*report.notes, sep="\n")
print(report)
figure, axes = plt.subplots(2, 1, figsize=(8.5, 6), sharey=True, layout="constrained")
for ax, head in zip(axes, heads, strict=True):
    report.plot.layers(head=head, ax=ax)
plt.show()

# %% [markdown]
# ## Do base statistics transfer?
#
# The difference between the two heads at each layer, on novel digits.

# %%
rows = report.to_frame().query("role == 'model'")
accuracy = rows.pivot(index="layer", columns="head", values="value")
accuracy = accuracy.loc[[spec.name for spec in store.layers], heads]
gain = accuracy[heads[1]] - accuracy[heads[0]]
figure, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
ax.bar(gain.index, gain, color=np.where(gain > 0, BLUE, ORANGE))
ax.axhline(0, color="0.3", linewidth=0.8)
ax.set_ylabel("gain by the base mean")
ax.tick_params(axis="x", rotation=60)

# %% [markdown]
# ## Does the choice of a layer transfer?
#
# `training_score` of a row is its accuracy on episodes of base classes. Were the ranking of layers another matter
# for each set of classes, this plot would be a cloud.

# %%
own = rows[rows["head"] == heads[1]].set_index("layer")
figure, ax = plt.subplots(figsize=(4.2, 3.6), layout="constrained")
ax.plot(own.training_score, own.value, "o", color=GREY)
for name in {own.training_score.idxmax(), own.value.idxmax(), own.index[0]}:
    ax.annotate(
        name,
        (own.training_score[name], own.value[name]),
        textcoords="offset points",
        xytext=(6, -4),
    )
low, high = (
    own[["training_score", "value"]].min().min(),
    own[["training_score", "value"]].max().max(),
)
ax.plot([low, high], [low, high], ":", color="0.7")
ax.set(xlabel="on base digits", ylabel="on novel digits")
rank = own[["training_score", "value"]].corr(method="spearman").iloc[0, 1]
chosen, best = own.training_score.idxmax(), own.value.idxmax()
pd.DataFrame({"base": own.training_score, "novel": own.value}).loc[
    list({chosen: 0, best: 0})
].round(3)

# %% [markdown]
# ## Without any base class
#
# What is left where nothing else was ever seen? Without a class split all ten digits are novel, each episode
# subtracts what the other classes in hand tell, and no layer can be chosen. At the layer from above, with more
# shots:

# %%
shots = (1, 3, 10)
learned = {
    "with base classes": vr.FewShot(
        ways=4, shots=shots, queries=10, episodes=100, class_split=here / "classes.csv"
    ),
    "none": vr.FewShot(ways=4, shots=shots, queries=10, episodes=100),
}
curves = pd.DataFrame(
    {
        name: vr.probe(
            store, task, layers=chosen, features=FEATURE, heads=heads[1:], controls=(), cache=None
        )
        .to_frame()
        .set_index("at")
        .value
        for name, task in learned.items()
    }
).rename_axis("shots")
curves.round(3)

# %% [markdown]
# The classes differ (six novel digits, or all ten), so the two columns are beside each other, not against each
# other. What can be read down a column is what more shots are worth.

# %% [markdown]
# ## The answer

# %%
verdicts = {c.head: c for c in report.comparisons}
told = verdicts[heads[1]]
helps = int((gain > 0).sum())
more = curves.iloc[-1, 0] - curves.iloc[0, 0]
lost = own.value[best] - own.value[chosen]
print(
    f"One example of each new digit tells {own.value[chosen]:.0%} at {chosen} (chance {own.chance.iloc[0]:.0%}), which base digits chose; "
    f"the verdict beside the best control: {told.verdict}.\n"
    f"Statistics: the base mean helps at {helps} of {len(gain)} layers, by {gain.mean():+.3f} in the mean; at {chosen} by {gain[chosen]:+.3f}.\n"
    f"Choice: base and novel digits rank layers alike to {rank:+.2f} (Spearman), and choosing on base loses {lost:.3f} to the best layer, {best}.\n"
    f"Examples: {shots[-1]} instead of 1 are worth {more:+.3f}, "
    f"{'more' if more > abs(gain[chosen]) else 'not more'} than the base mean."
)
store.close()
folder.cleanup()

# %% [markdown]
# Six novel classes are few: intervals resample classes, and stay wide however many episodes are drawn. With your
# own data make base and novel as different as they will be in use; a split by chance flatters transfer.
