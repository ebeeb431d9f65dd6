"""Speed and memory of a training step of a preset (random weights), beside openai/vdvae's.

    git clone https://github.com/openai/vdvae ../openai-vdvae
    python benchmarks/speed/train.py --published ../openai-vdvae
    python benchmarks/speed/train.py --published ../openai-vdvae --device cuda --width 384 --batch-size 32
    python benchmarks/speed/train.py --variants ours compile --rounds 50
    python benchmarks/speed/train.py --preset imagenet64 --device cuda --batch-size 32

A step is all that an update takes once its uint8 images are on the device: normalisation, forward,
backward, clipping, the look for losses that are not finite, AdamW, moving average. `published` runs the
model of that checkout in a step as its train.py describes, without MPI and DistributedDataParallel, with
PyTorch's fused AdamW in place of apex's; the other variants run what `vdvae_repr.train` runs.

Variants take turns, a step each, in one process; ratios pair the steps of one round; medians are over
rounds. First steps and memory are measured in a process of its own for each variant, which compiles from
scratch; on a CPU its peak is the growth of its resident size, the compiler's share included. Saved
activations are what a forward pass keeps for the backward pass, parameters left out, their bf16 copies not.
The matrix rate is that of a large square product in the variant's precision, timed in the same rounds; the
fraction of it counts the model's operations, not what `recompute` runs again. TF32 is off everywhere.
Prints one JSON object a variant.
"""

import argparse
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import vdvae_repr as vr
from vdvae_repr.config import Config, load_config, preset_path
from vdvae_repr.training.draws import joint_noise
from vdvae_repr.training.optimisation import Optimisation
from vdvae_repr.training.trainer import compile_blocks

PRESETS = ("cifar10", "imagenet64")
ON_CPU = ["published", "ours", "channels_last", "recompute", "compile"]
FASTEST = "bf16+compile+channels_last"
ON_CUDA = [*ON_CPU, "bf16+channels_last", FASTEST, f"{FASTEST}+recompute"]
VARIANTS = {"cpu": ON_CPU, "cuda": ON_CUDA}
RECOMPUTED = (64, 32, 16)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Ours:
    """The step of `vdvae_repr.train`; the variant's name, split at +, says what is switched on."""

    def __init__(self, variant: str, config: Config, images: Tensor) -> None:
        switches = variant.split("+")
        self.recipe = config.train
        layout = torch.channels_last if "channels_last" in switches else torch.contiguous_format
        self.images = images.permute(0, 3, 1, 2).contiguous(memory_format=layout)
        recomputed = [size for size in RECOMPUTED if size <= config.model.image_size]
        self.recompute = recomputed if "recompute" in switches else ()
        self.autocast = partial(
            torch.autocast, images.device.type, torch.bfloat16, enabled="bf16" in switches
        )
        model = vr.VDVAE(config.model).to(images.device)
        self.model = model.to(memory_format=layout)
        self.optimisation = Optimisation(self.model, config.train)
        if "compile" in switches:
            compile_blocks(self.model)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the loss, and the terms that have to be finite."""
        step, size = self.optimisation.step, len(self.images)
        noise = joint_noise(self.recipe.seed, step, size, slice(None), self.images.device)
        with self.autocast():
            elbo = self.model(self.images, noise, self.recompute)
        terms = torch.cat([elbo.distortion[:, None], elbo.kl], dim=1)
        return elbo.negative.mean() / self.images[0].numel(), terms.detach().mean(dim=0)

    def update(self, terms: Tensor) -> bool:
        """Move the weights and their average; returns whether the recipe took the step."""
        finite = torch.isfinite(terms).all().float()
        norm, finite = torch.stack([self.optimisation.clip(), finite]).tolist()
        return self.optimisation.update(norm, bool(finite))


class Published:
    """The step that openai/vdvae's train.py describes, around the model of its vae.py."""

    def __init__(self, checkout: Path, preset: str, config: Config, images: Tensor) -> None:
        sys.path.insert(0, str(checkout))
        hps, vae = importlib.import_module("hps"), importlib.import_module("vae")
        sys.path.remove(str(checkout))
        settings = self.settings = hps.Hyperparams(
            image_size=config.model.image_size, image_channels=3
        )
        self.config = config.model
        parser = hps.add_vae_arguments(argparse.ArgumentParser())
        chosen = ["--hps", preset, "--width", str(config.model.width)]
        hps.parse_args_and_update_hparams(settings, parser, chosen)
        self.images = images
        self.model, self.average = (vae.VAE(settings).to(images.device) for _ in range(2))
        self.average.load_state_dict(self.model.state_dict())
        self.average.requires_grad_(False)
        betas = (settings.adam_beta1, settings.adam_beta2)
        self.adamw = torch.optim.AdamW(
            self.model.parameters(), settings.lr, betas, weight_decay=settings.wd, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.adamw, lambda step: min(1, step / settings.warmup_iters)
        )

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the loss, and the terms that have to be finite."""
        self.model.zero_grad()
        pixels = self.images.float()
        inputs = (pixels + self.config.shift) * self.config.scale
        stats = self.model(inputs, (pixels - 127.5) / 127.5)
        return stats["elbo"], torch.stack([stats["distortion"], stats["rate"]]).detach()

    def update(self, terms: Tensor) -> bool:
        """Move the weights and their average; returns whether the recipe took the step."""
        parameters, rate = list(self.model.parameters()), self.settings.ema_rate
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.grad_clip).item()
        taken = not bool(torch.isnan(terms).any()) and norm < self.settings.skip_threshold
        if taken:
            self.adamw.step()
            for average, value in zip(self.average.parameters(), parameters, strict=True):
                average.mul_(rate)
                average.add_(value.detach() * (1 - rate))
        self.schedule.step()
        return taken


def build(variant: str, options: argparse.Namespace) -> Ours | Published:
    """Return a variant's model, with random weights, its optimiser and images of noise."""
    torch.manual_seed(0)
    preset = load_config(preset_path(options.preset))
    model = preset.model if options.width is None else replace(preset.model, width=options.width)
    config, size = replace(preset, model=model), model.image_size
    images = torch.randint(0, 256, (options.batch_size, size, size, 3), dtype=torch.uint8)
    images = images.to(options.device)
    if variant == "published":
        return Published(options.published, options.preset, config, images)
    return Ours(variant, config, images)


def take_step(trained: Ours | Published) -> None:
    """Take one step of training; a step that the recipe skips would be faster, and is an error."""
    loss, terms = trained.forward()
    loss.backward()
    if not trained.update(terms):
        raise RuntimeError(
            "expected a step to be taken, found one skipped: loss or gradient blew up"
        )


def seconds(function: Callable[[], object], device: str) -> float:
    """Return the seconds that a call takes, the device's work included."""
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    started = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - started


def saved_bytes(trained: Ours | Published) -> int:
    """Return the bytes that a forward pass leaves for the backward pass, each storage once."""
    parameters = {p.untyped_storage().data_ptr() for p in trained.model.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with saved_tensors_hooks(note, lambda tensor: tensor):
        graph = trained.forward()  # kept, so that no address is used twice
    del graph
    return sum(size for address, size in storages.items() if address not in parameters)


def measure_alone(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """Return a variant's first step in seconds, its peak and its saved activations in bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trained = build(variant, options)
    first, _ = (seconds(partial(take_step, trained), options.device) for _ in range(2))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if options.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {"first": first, "peak": peak, "saved": saved_bytes(trained)}


def run_alone(variant: str) -> dict[str, float]:
    """Return what `measure_alone` finds in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only-memory", variant]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def parse_arguments() -> argparse.Namespace:
    """Read the command line; refuse what cannot run here."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--preset", choices=PRESETS, default="cifar10")
    parser.add_argument("--device", choices=list(VARIANTS), default="cpu")
    parser.add_argument("--published", type=Path, help="a checkout of openai/vdvae")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS["cuda"], help="default: all")
    parser.add_argument("--width", type=int, help="the preset's, if not given")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    # TorchScript, which the published model uses, compiles in the first few steps.
    parser.add_argument("--warmup", type=int, default=5, help="rounds before those that count")
    parser.add_argument("--only-memory", choices=VARIANTS["cuda"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("width", "batch_size", "rounds", "warmup"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    if options.published is not None and not (options.published / "vae.py").is_file():
        parser.error(f"--published: expected a checkout of openai/vdvae, found {options.published}")
    usable = VARIANTS[options.device][options.published is None :]
    chosen = set(options.variants or usable)
    for name in sorted(chosen.difference(usable)):
        need = "--published" if name == "published" else "--device cuda"
        parser.error(f"--variants: {name} needs {need}")
    if "published" not in chosen:
        chosen.add("ours")  # to compare with
    options.variants = [name for name in usable if name in chosen]
    return options


def main() -> None:
    """Measure one variant alone, or all of them."""
    options = parse_arguments()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if options.only_memory:
        print(json.dumps(measure_alone(options.only_memory, options)))
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # empty: first steps compile from scratch
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Measure each variant alone, then all of them in turns, and print a row for each."""
    # First of all, while this process is small: a child's peak resident size begins at its parent's.
    alone = {name: run_alone(name) for name in options.variants}
    with FlopCounterMode(display=False) as counter:
        build("ours", options).forward()[0].backward()
    steps = {name: partial(take_step, build(name, options)) for name in options.variants}
    precisions = {name: "bf16" if "bf16" in name else "fp32" for name in options.variants}
    side = 8192 if options.device == "cuda" else 2048
    for precision in set(precisions.values()):
        matrix = torch.randn(side, side, device=options.device, dtype=DTYPES[precision])
        steps[precision] = partial(torch.matmul, matrix, matrix)
    rounds = [
        {name: seconds(step, options.device) for name, step in steps.items()}
        for _ in range(options.warmup + options.rounds)
    ][options.warmup :]
    baseline = options.variants[0]
    for name in options.variants:
        median = statistics.median(times[name] for times in rounds)
        ratio = statistics.median(times[baseline] / times[name] for times in rounds)
        matrix_seconds = [times[precisions[name]] for times in rounds]
        share = statistics.median(times[precisions[name]] / times[name] for times in rounds)
        cuda = options.device == "cuda"
        row = {
            "case": "training step",
            "variant": name,
            "images_per_second": round(options.batch_size / median, 2),
            "ratio": round(ratio, 3),
            "ratio_to": baseline,
            "saved_activations_mb": round(alone[name]["saved"] / 2**20, 1),
            "peak_memory_mb": round(alone[name]["peak"] / 2**20),
            "compile_seconds": round(alone[name]["first"] - median, 1)
            if "compile" in name
            else None,
            "matrix_rate_tflops": round(2e-12 * side**3 / statistics.median(matrix_seconds), 3),
            "matrix_rate_fraction": round(counter.get_total_flops() / (2 * side**3) * share, 3),
            "threads": torch.get_num_threads(),
            "batch_size": options.batch_size,
            "preset": options.preset,
            "width": options.width,
            "torch": torch.__version__,
            "machine": torch.cuda.get_device_name() if cuda else platform.machine(),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
