"""How much of a packaged model's training step the card computes, and how much it waits for the host.

    python benchmarks/gpu/step.py --device cuda

A step of natural64's recipe (bf16, channels-last, blocks as they are) on random images that stand on the
device: seconds a step, the median of five, and of one more the seconds that its kernels take, by the
profiler. Prints a JSON object a batch size.
"""

import argparse
import json
import statistics

import torch
from rates import seconds
from torch.profiler import ProfilerActivity, profile
from train import recipe_of

import vdvae_repr as vr
from vdvae_repr.training.draws import joint_noise
from vdvae_repr.training.optimisation import Optimisation

BATCHES = (32, 256)


def main() -> None:
    """Measure a step of each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="two images")
    options = parser.parse_args()
    device = torch.device(options.device)
    config = recipe_of("natural64")
    model = vr.VDVAE(config.model).to(device).to(memory_format=torch.channels_last)
    optimisation = Optimisation(model, config.train)
    side = config.model.image_size
    for size in (2,) if options.smoke else BATCHES:
        images = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, device=device)
        images = images.permute(0, 3, 1, 2)

        def step(images: torch.Tensor = images, size: int = size) -> None:
            noise = joint_noise(0, 1, size, slice(None), device)
            with torch.autocast(device.type, torch.bfloat16):
                elbo = model(images, noise, ())
            (elbo.negative.mean() / images[0].numel()).backward()
            optimisation.update(float(optimisation.clip()), True)

        times = [seconds(step, options.device) for _ in range(3 + 5)][3:]
        row = {"case": "small step", "model": "natural64", "batch_size": size}
        row["seconds"] = round(statistics.median(times), 4)
        if device.type == "cuda":
            with profile(activities=[ProfilerActivity.CUDA]) as found:
                seconds(step, options.device)
            kernels = sum(event.self_device_time_total for event in found.key_averages())
            row["kernel_seconds"] = round(kernels / 1e6, 4)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
