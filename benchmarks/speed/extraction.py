"""Extraction speed, images a second, and peak memory, of faces64 and of the cifar10 preset (random weights).

    python benchmarks/speed/extraction.py --model faces64 --count 512

One model a process, so that the peak is that model's. Prints one JSON object.
"""

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import vdvae_repr as vr


def main() -> None:
    """Time three extractions of all layers' means and report the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["faces64", "cifar10"], default="faces64")
    parser.add_argument("--count", type=int, default=512)
    options = parser.parse_args()
    if options.model == "cifar10":
        torch.manual_seed(0)
        model = vr.VDVAE(vr.ModelConfig.from_preset("cifar10"), name="cifar10-random").eval()
    else:
        model = vr.load(options.model)
    size = model.config.image_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.count, size, size, 3), dtype=np.uint8)
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(3):
            started = time.perf_counter()
            vr.extract(model, images, Path(folder) / f"{run}.h5").close()
            rates.append(options.count / (time.perf_counter() - started))
            (Path(folder) / f"{run}.h5").unlink()
    row = {
        "model": options.model,
        "images": options.count,
        "images_per_second": round(statistics.median(rates), 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
