"""Speed and memory of a training step of the cifar10 preset (random weights), beside openai/vdvae's.

    git clone https://github.com/openai/vdvae ../openai-vdvae
    python benchmarks/speed/train.py --published ../openai-vdvae
    python benchmarks/speed/train.py --published ../openai-vdvae --device cuda --width 384 --batch-size 32
    python benchmarks/speed/train.py --variants ours compile --rounds 50

A step is all that an update takes once its uint8 images are on the device: normalisation, forward,
backward, clipping, the look for losses that are not finite, AdamW, moving average. `published` runs the
model of that checkout under a step as its train.py describes, without MPI and DistributedDataParallel, and
with PyTorch's fused AdamW in place of apex's; the other variants run what `vdvae_repr.train` runs.

Variants take turns, a step each, in one process; ratios pair the steps of one round, and medians are over
rounds. First steps and memory are of a process of its own for each variant, which compiles from scratch; on
a CPU its peak is the growth of its resident size, that of the compiler included. The matrix rate is that of
one large square product in the variant's precision, in the same rounds; the fraction of it takes the model's
operations without what `recompute` runs again. TF32 is off. Prints one JSON object a variant.
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
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import vdvae_repr as vr
from vdvae_repr.config import load_config, preset_path
from vdvae_repr.training.draws import joint_noise
from vdvae_repr.training.optimisation import Optimisation
from vdvae_repr.training.trainer import compile_blocks

PRESET = load_config(preset_path("cifar10"))
VARIANTS = {
    "cpu": ["published", "ours", "channels_last", "recompute", "compile"],
}
VARIANTS["cuda"] = [*VARIANTS["cpu"], "bf16+compile+channels_last"]
RECOMPUTED = (32, 16)
MEBI = 2**20


class Ours:
    """The step of `vdvae_repr.train`; a variant's name, split at +, says what is switched on."""

    def __init__(self, variant: str, options: argparse.Namespace) -> None:
        switches = variant.split("+")
        self.device, self.bf16 = torch.device(options.device), "bf16" in switches
        layout = torch.channels_last if "channels_last" in switches else torch.contiguous_format
        images = synthetic_images(options).permute(0, 3, 1, 2)
        self.images = images.contiguous(memory_format=layout)
        self.recompute = RECOMPUTED if "recompute" in switches else ()
        model = vr.VDVAE(replace(PRESET.model, width=options.width)).to(self.device)
        self.optimisation = Optimisation(model.to(memory_format=layout), PRESET.train)
        if "compile" in switches:
            compile_blocks(model)

    @property
    def model(self) -> torch.nn.Module:
        """The model that is trained."""
        return self.optimisation.model

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the loss, and the terms that have to be finite."""
        step, size = self.optimisation.step, len(self.images)
        noise = joint_noise(PRESET.train.seed, step, size, slice(None), self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            elbo = self.model(self.images, noise, self.recompute)
        terms = torch.cat([elbo.distortion[:, None], elbo.kl], dim=1)
        return elbo.negative.mean() / self.images[0].numel(), terms

    def update(self, terms: Tensor) -> bool:
        """Move the weights and their average; returns whether that was done."""
        finite = bool(torch.isfinite(terms.detach().mean(dim=0)).all())
        return self.optimisation.update(self.optimisation.clip(), finite)


class Published:
    """The step that openai/vdvae's train.py describes, around the model of its vae.py."""

    def __init__(self, variant: str, options: argparse.Namespace) -> None:
        sys.path.insert(0, str(options.published))
        hps, vae = importlib.import_module("hps"), importlib.import_module("vae")
        sys.path.remove(str(options.published))
        self.settings = hps.Hyperparams(image_size=32, image_channels=3)
        hps.parse_args_and_update_hparams(
            self.settings,
            hps.add_vae_arguments(argparse.ArgumentParser()),
            ["--hps", "cifar10", "--width", str(options.width)],
        )
        self.images = synthetic_images(options)
        self.model = vae.VAE(self.settings).to(options.device)
        self.average = vae.VAE(self.settings).to(options.device).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.adamw = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.settings.lr,
            betas=(self.settings.adam_beta1, self.settings.adam_beta2),
            weight_decay=self.settings.wd,
            fused=True,
        )
        warmup = self.settings.warmup_iters
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adamw, lambda n: min(1, n / warmup))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the loss, and the terms that have to be finite."""
        self.model.zero_grad()
        pixels = self.images.float()
        inputs = (pixels + PRESET.model.shift) * PRESET.model.scale
        stats = self.model(inputs, (pixels - 127.5) / 127.5)
        return stats["elbo"], torch.stack([stats["distortion"], stats["rate"]])

    def update(self, terms: Tensor) -> bool:
        """Move the weights and their average; returns whether that was done."""
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.grad_clip).item()
        taken = not bool(torch.isnan(terms).any()) and norm < self.settings.skip_threshold
        if taken:
            self.adamw.step()
            rate = self.settings.ema_rate
            for average, value in zip(self.average.parameters(), parameters, strict=True):
                average.data.mul_(rate)
                average.data.add_(value.data * (1 - rate))
        self.schedule.step()
        return taken


def build(variant: str, options: argparse.Namespace) -> Ours | Published:
    """Return a variant's model and optimiser, with random weights."""
    torch.manual_seed(0)
    return (Published if variant == "published" else Ours)(variant, options)


def synthetic_images(options: argparse.Namespace) -> Tensor:
    """Return uint8 (N, 32, 32, 3) noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.batch_size, 32, 32, 3), generator=generator)
    return images.to(options.device, torch.uint8)


def take_step(trained: Ours | Published) -> None:
    """Take one step of training, which must not be one that the recipe skips."""
    loss, terms = trained.forward()
    loss.backward()
    if not trained.update(terms):
        raise RuntimeError("expected steps that are taken; this one was skipped, which is faster")


def seconds(function: Callable[[], object], device: str) -> float:
    """Return the seconds that a call takes, the device's work included."""
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    started = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - started


def saved_bytes(trained: Ours | Published) -> int:
    """Return the bytes that a forward pass leaves for the backward pass, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in trained.model.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with saved_tensors_hooks(note, lambda tensor: tensor):
        kept = trained.forward()  # while the graph lives, no address is used twice
    del kept
    return sum(size for address, size in storages.items() if address not in parameters)


def measure_alone(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """Return what is measured in a process that runs this variant alone."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trained = build(variant, options)
    first, _ = (seconds(lambda: take_step(trained), options.device) for _ in range(2))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if options.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {"first": first, "peak": peak, "saved": saved_bytes(trained)}


def run_alone(variant: str) -> dict[str, float]:
    """Run this script again, to measure one variant alone."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only-memory", variant]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def model_operations(options: argparse.Namespace) -> int:
    """Return the floating-point operations of one forward and backward pass."""
    trained = build("ours", options)
    with FlopCounterMode(display=False) as counter:
        trained.forward()[0].backward()
    return counter.get_total_flops()


def parse_arguments() -> argparse.Namespace:
    """Read the command line; refuse what cannot run here."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--device", choices=list(VARIANTS), default="cpu")
    parser.add_argument("--published", type=Path, help="a checkout of openai/vdvae")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS["cuda"], help="default: all")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3, help="rounds before those that count")
    parser.add_argument("--only-memory", choices=VARIANTS["cuda"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("width", "batch_size", "rounds", "warmup"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    if options.published is not None and not (options.published / "vae.py").is_file():
        parser.error(f"--published: expected a checkout of openai/vdvae, found {options.published}")
    usable = VARIANTS[options.device][options.published is None :]
    if unusable := [name for name in options.variants or [] if name not in usable]:
        reason = "needs --published" if unusable[0] == "published" else "needs --device cuda"
        parser.error(f"--variants: {unusable[0]} {reason}")
    options.variants = [name for name in usable if name in (options.variants or usable)]
    return options


def main() -> None:
    """Measure one variant alone, or each alone and then all of them in turns."""
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
    # Before this process grows: a child's peak resident size begins at its parent's.
    alone = {name: run_alone(name) for name in options.variants}
    operations = model_operations(options)
    side = 8192 if options.device == "cuda" else 2048
    precisions = {name: "bf16" if "bf16" in name else "fp32" for name in options.variants}
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    steps: dict[str, Callable[[], object]] = {}
    for name in options.variants:
        trained = build(name, options)
        steps[name] = lambda trained=trained: take_step(trained)
    for precision in sorted(set(precisions.values())):
        matrix = torch.randn(side, side, device=options.device, dtype=dtypes[precision])
        steps[precision] = lambda matrix=matrix: matrix @ matrix
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.warmup + options.rounds):
        for name, step in steps.items():
            elapsed = seconds(step, options.device)
            if number >= options.warmup:
                times[name].append(elapsed)

    def paired(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

    baseline = options.variants[0]  # published, where it is there
    for name in options.variants:
        median = statistics.median(times[name])
        precision = precisions[name]
        compiles = "compile" in name
        row = {
            "variant": name,
            "images_per_second": round(options.batch_size / median, 2),
            f"speed_over_{baseline}": round(paired(baseline, name), 3),
            "saved_activations_mb": round(alone[name]["saved"] / MEBI, 1),
            "peak_memory_mb": round(alone[name]["peak"] / MEBI),
            "compile_seconds": round(alone[name]["first"] - median, 1) if compiles else None,
            "matrix_rate_tflops": round(
                2 * side**3 / statistics.median(times[precision]) / 1e12, 3
            ),
            "matrix_rate_fraction": round(operations / (2 * side**3) * paired(precision, name), 3),
        }
        row |= {key: getattr(options, key) for key in ("device", "width", "batch_size", "rounds")}
        row |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
        print(json.dumps(row | {"machine": platform.machine()}))


if __name__ == "__main__":
    main()
