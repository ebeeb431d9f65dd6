"""Time and memory of decoding at the Natural Scenes Dataset's size, with random numbers in place of brains.

    python benchmarks/brains/full_size.py --work runs/full

Latents of the first 31 layers of ImageNet-64's VDVAE (91,168 numbers) for 9,841 images, 3.6 GB; responses of
15,724 voxels to each, seen once. 8,859 images are for training, 982 are predicted.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import h5py
import numpy as np

import vdvae_repr as vr
from vdvae_repr.latents.format import StoreInfo, create_array, describe_images, write_aside
from vdvae_repr.model.layers import make_layer_specs
from vdvae_repr.model.structure import parse_blocks

TRAIN, TEST, VOXELS = 8_859, 982, 15_724


def random_store(path: Path, train: int, test: int) -> None:
    """Write a store of random latents, as an extraction would."""
    preset = vr.ModelConfig.from_preset("imagenet64")
    layers = make_layer_specs(parse_blocks(preset.top_down, key="model.top_down"), preset.zdim)[:31]
    count = train + test
    rng = np.random.default_rng(0)

    def write(file: h5py.File) -> None:
        for spec in layers:
            data = create_array(
                file, f"layers/{spec.index:03d}/mean", (count, *spec.shape), np.float32
            )
            for start in range(0, count, 512):
                some = min(512, count - start)
                data[start : start + some] = rng.normal(size=(some, *spec.shape)).astype(np.float32)
        info = StoreInfo(
            model="random", config="{}", weights_sha256="0" * 64, preprocessing="{}", z="mean", seed=0,
            source="random", layers=layers, features=("mean",),
        )  # fmt: skip
        describe_images(
            file, info, ids=[str(i) for i in range(count)],
            splits=["train"] * train + ["test"] * test, labels=np.full(count, -1, np.int64),
            label_names=(), factors={},
        )  # fmt: skip

    write_aside(path, write, 4 * 91_168 * count)


def main() -> None:
    """Make random data, fit and predict; print seconds and the peak of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--alpha", type=float, default=50_000.0, help="0 chooses by leave-one-out.")
    parser.add_argument("--share", type=float, default=1.0, help="Of the images and of the voxels.")
    options = parser.parse_args()
    train, test, voxels = (round(options.share * size) for size in (TRAIN, TEST, VOXELS))
    options.work.mkdir(parents=True, exist_ok=True)
    latents, bold = options.work / "latents.h5", options.work / "bold.npy"
    if not latents.exists():
        random_store(latents, train, test)
    if not bold.exists():
        data = np.lib.format.open_memmap(bold, "w+", np.float32, (train + test, voxels))
        rng = np.random.default_rng(1)
        for start in range(0, len(data), 512):
            data[start : start + 512] = rng.normal(size=data[start : start + 512].shape)
        data.flush()
        del data
    store = vr.open(latents)
    started = time.monotonic()
    decoder = vr.brain.fit(str(bold), store, alpha=options.alpha or None)
    decoder.save(options.work / "decoder.npz", overwrite=True)
    fitted = time.monotonic()
    found = decoder.predict(str(bold), store, options.work / "predicted.h5", overwrite=True)
    done = time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        json.dumps(
            {
                "fit_seconds": round(fitted - started),
                "predict_seconds": round(done - fitted),
                "peak_gb": round(peak, 2),
                "decoder_mb": round((options.work / "decoder.npz").stat().st_size / 1e6),
                "told": len(found.told),
            }
        )
    )


if __name__ == "__main__":
    main()
