# %% [markdown]
# # What does IT see?
#
# **I have responses of a brain to images. Which layer of a model does each region know, which layer orders images
# as the region does, and what can I show of what was seen?**
#
# The brain here is made up, in the Natural Scenes Dataset's own files, so that the truth is known: `V1` sees a fine
# layer of the model, `IT` a coarse one, and a third region sees nothing. Everything else is what you would do with
# NSD. **`NOISE` is the line to change first.** At the end the same question is asked of human and monkey IT, if you
# have the 92 objects of Kriegeskorte et al. (2008).

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import vdvae_repr as vr

NOISE = 1.0  # standard deviation of a voxel's noise, where that of its signal is 1
SEES = {"V1": "16x16.0", "IT": "4x4.1", "none": None}  # the layer that each region sees
LAYERS = "<=16x16"

plt.rcParams |= {"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False}
folder = tempfile.TemporaryDirectory(prefix="vdvae-repr-")
here = Path(folder.name)

# %% [markdown]
# ## 1. A brain in NSD's files
#
# 60 drawn people, 4 images each, every image seen three times in four sessions. With NSD itself, begin at the next
# cell, with its files.

# %%
model = vr.load("faces64")
own = vr.extract(model, "toy-faces:60x4", here / "own.h5", layers=LAYERS)
nsd = vr.brain.synthetic_nsd(here / "nsd", own, SEES, voxels=60, noise=NOISE)
sorted(path.relative_to(here).as_posix() for path in (here / "nsd").rglob("*.*"))

# %%
gathered = vr.brain.read_nsd(
    nsd["betas"], nsd["design"], subject=1, mask=nsd["mask"], rois=[nsd["rois"]]
)
bold, rois = gathered.save(here / "bold.npz")
store = vr.extract(model, f"{nsd['stimuli']}:imgBrick", here / "latents.h5", layers=LAYERS)
print(f"{gathered.values.shape}: repetitions, images, voxels; regions {', '.join(gathered.rois)}")

# %% [markdown]
# ## 2. Which layer does each region know?
#
# Ridge regression from each layer to each voxel, with a penalty for each voxel, on the images that are for training;
# what is shown is of the images that all subjects saw. `regions-1` is V1, `regions-2` IT, `regions-3` sees nothing.

# %%
task = vr.Encoding(responses=f"{bold}:responses", rois=str(rois))
encoding = vr.probe(
    store, task, selections="single", controls=("pixels", "shuffled-labels"), progress=False
)
print(encoding)

# %%
encoding.plot.rois()
# %% [markdown]
# A region's own layer is the brightest of its column. But is that true of each voxel, and how many are told at all?
# Each voxel's best layer is chosen by training images, and tested by 1,000 permutations of the test images; of the
# voxels whose q is below 0.05, one in twenty may be told by chance.

# %%
voxels = encoding.tables["voxels"]
told = voxels[voxels["q_value"] < 0.05]
print(told["rois"].value_counts().to_string())
encoding.plot.voxels()
# %% [markdown]
# The noise ceiling is what a perfect model could reach: it comes from how much three responses to one image differ.
# Here it is known, as signal and noise are: 1 / (1 + NOISE² / 3) of the variance.

# %%
seeing = voxels[voxels["rois"] != "regions-3"]
print(
    f"ceiling by NSD's formula {seeing['noise_ceiling'].mean():.2f}, split-half {seeing['split_half'].mean():.2f},"
)
print(f"planted {1 / (1 + NOISE**2 / 3):.2f}; reached {seeing['r2'].mean():.2f}")

# %% [markdown]
# ## 3. Which layer orders images as IT does?
#
# Representational similarity analysis asks less of the data: nothing is fitted. Dissimilarities of images in a layer
# are compared with those in the region.

# %%
asked = vr.RSA(responses=f"{bold}:responses", rois=str(rois), roi="regions-2")
rsa = vr.probe(
    store, asked, heads="spearman", selections="single", controls="pixels", progress=False
)
table = rsa.to_frame().query("role == 'model'").set_index("layer")[["value", "ci_low", "ci_high"]]
print(table.round(3).to_string())

# %% [markdown]
# The layer that IT sees has a high value, and need not have the highest: voxels weigh all of its dimensions alike here,
# while dissimilarities weigh each by its own variance, and layers share what they know. Encoding models learn the
# weights, and find it.
#
# ## 4. What was seen?
#
# The other way round: from responses of a region to latents. `predict` says for each layer how much of it is
# predicted, beside what permuted images give. Layers that are not predicted beyond chance only add noise to what is
# decoded; they are left to the prior. The region that sees nothing is the check that nobody fools themselves.

# %%
decoded = {}
for name, region in zip(SEES, gathered.rois, strict=True):
    own_voxels = gathered.values[:, :, gathered.rois[region]]
    np.savez(here / f"{name}.npz", responses=own_voxels, ids=gathered.ids, splits=gathered.splits)
    responses = f"{here / name}.npz:responses"
    found = vr.brain.fit(responses, store).predict(responses, store, here / f"{name}.h5")
    decoded[name] = found
    best = found.layers.loc[found.layers["r2"].idxmax()]
    print(
        f"{name:5s} predicts {len(found.told)} of {len(store.layers)} layers; best {best.layer}, R2 {best.r2:.2f}"
    )
decoded["IT"].layers[["layer", "r2", "null_r2", "pearson", "q_value"]].round(3)

# %%
place = {image_id: row for row, image_id in enumerate(store.ids)}
originals = store.images()[[place[image_id] for image_id in decoded["IT"].store.ids]]
scores = {}
shown = {"seen": originals[:8]}
for name in ("V1", "IT"):
    batches = decoded[name].store.decode(model, decoded[name].told)
    images = np.concatenate([images for _, images in batches])
    scores[name] = vr.brain.score_images(images, originals, model, "1x1.0")
    shown[f"decoded from {name}"] = images[:8]
figure, axes = plt.subplots(3, 1, figsize=(8, 3.4))
for ax, (title, images) in zip(axes, shown.items(), strict=True):
    ax.imshow(np.concatenate(list(images), axis=1))
    ax.set_title(title, loc="left", fontsize=9)
    ax.axis("off")
for name, found in scores.items():
    print(
        f"{name}: PixCorr {found.pixcorr:.3f} (of others' originals {found.shuffled_pixcorr:.3f}), "
        f"SSIM {found.ssim:.3f}, two-way identification {found.identification:.2f}"
    )

# %% [markdown]
# PixCorr of *others'* originals is the number to hold it against: drawn faces are alike, and an image that shows the
# mean face is like every one of them. Identification has chance 0.5 whatever images look like.
#
# ## 5. Human and monkey IT
#
# If `VDVAE_REPR_DATA` names a folder with `objects92/objects92.h5`, the same model is asked of real brains: 92
# objects, four people in two sessions, 674 neurons of monkeys. The benchmark *Which layers are like inferior temporal
# cortex?* has the answers for several models, with layers that are chosen honestly.

# %%
objects = Path(os.environ.get("VDVAE_REPR_DATA", "")) / "objects92" / "objects92.h5"
if objects.is_file():
    seen = vr.extract(
        vr.load("natural64"), f"{objects}:images", here / "objects.h5", layers="<=8x8"
    )
    for brain in ("human_it", "monkey_it_mean"):
        found = vr.probe(
            seen, vr.RSA(rdm=f"{objects}:rdm/{brain}"), heads="spearman", selections="single",
            controls="pixels", cache=None, progress=False,
        )  # fmt: skip
        rows = found.to_frame().sort_values("value", ascending=False).head(3)
        print(
            brain,
            rows[["model", "layer", "value", "ci_low", "ci_high", "ceiling_low"]]
            .round(3)
            .to_string(),
        )
else:
    print("objects92 is not here; see the benchmark")
