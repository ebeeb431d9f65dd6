"""Is what a device computes right? Golden values, the CPU's results, an exact resume, equal stores.

    python benchmarks/gpu/correct.py --device cuda

Prints one JSON object a check: the largest error found, relative to the norm of the tensor unless
`error_of` says otherwise, the bound that it is held to, and `right`. A check that breaks prints its error,
and the others go on. Exit 1 where one is not right.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import vdvae_repr as vr
from vdvae_repr.config import Config, ModelConfig, TrainConfig
from vdvae_repr.data.open import open_source
from vdvae_repr.model.graphs import graph_inference
from vdvae_repr.model.inference import compile_inference
from vdvae_repr.model.precision import arithmetic
from vdvae_repr.model.preprocessing import to_input, to_target
from vdvae_repr.model.published import from_published_names
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.training.optimisation import Optimisation

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
NAMES = ("plain16", "lowbit32", "widths32")
# Of the norm: rounding of float32; of TF32's 10 bits and of bf16's 7, through some thirty convolutions.
BOUNDS = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 5e-2}
Row = dict[str, Any]


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over that of what was expected."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float(
        (found.reshape(expected.shape) - expected).norm() / expected.norm().clamp(min=1e-12)
    )


def checked(check: str, error: float, bound: float, **about: Any) -> Row:
    """Return a row; an error that is not a number is not right."""
    row = {"check": check, **about, "error": float(f"{error:.3g}"), "bound": bound}
    return row | {"right": bool(error <= bound)}


class Golden:
    """A small published model on a device, with the published code's values of it."""

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device
        self.values = load_file(GOLDEN / f"{name}.safetensors")
        self.published = json.loads((GOLDEN / f"{name}.json").read_text())
        self.config = ModelConfig.from_published(self.published)
        prefix = "state_dict."
        state = {k.removeprefix(prefix): v for k, v in self.values.items() if k.startswith(prefix)}
        self.model = VDVAE(self.config).load_published(state).to(device).eval()
        self.images = self.values["images_uint8"].permute(0, 3, 1, 2).to(device)

    def noise(self, prefix: str = "") -> Callable[[Any], Tensor]:
        """Return the draws that the published code made."""
        return lambda spec: self.values[f"{prefix}layer.{spec.index:03d}.eps"].to(self.device)

    def worst(self, precision: str) -> float:
        """Return the largest error over layers and statistics of a sampling pass."""
        model = self.model
        with torch.no_grad(), arithmetic(precision, torch.device(self.device).type):
            layers, _, states, _ = model.infer(to_input(self.images, self.config), self.noise())
            final = model.top_down.final_state(states)
        names = {"mean": "q_mean", "log_std": "q_logstd", "prior_mean": "p_mean"}
        names |= {"prior_log_std": "p_logstd", "kl": "kl"}
        errors = [relative(final, self.values["px_z"])]
        for spec, layer in zip(model.layers, layers, strict=True):
            for ours, theirs in names.items():
                expected = self.values[f"layer.{spec.index:03d}.{theirs}"]
                errors.append(relative(getattr(layer, ours), expected))
        return max(errors)


def golden(device: str) -> Iterator[Row]:
    """A sampling pass in each precision; as blocks, in channels-last, compiled."""
    for name in NAMES:
        for precision, bound in BOUNDS.items():
            if precision == "tf32" and device == "cpu":
                continue
            error = Golden(name, device).worst(precision)
            yield checked("golden pass", error, bound, model=name, precision=precision)
    model = Golden("plain16", device)
    model.model.to(memory_format=torch.channels_last)
    yield checked(
        "golden pass, channels-last", model.worst("fp32"), BOUNDS["fp32"], precision="fp32"
    )
    if device != "cpu":
        model = Golden("plain16", device)
        graph_inference(model.model)
        for number, precision in enumerate(("fp32",) * 3 + ("bf16",) * 3):
            error = model.worst(precision)
            yield checked(
                "golden pass, CUDA graph",
                error,
                BOUNDS[precision],
                precision=precision,
                number=number,
            )
    model = Golden("plain16", device)
    compile_inference(model.model)
    yield checked("golden pass, compiled", model.worst("fp32"), BOUNDS["fp32"], precision="fp32")


def golden_decoding(device: str) -> Iterator[Row]:
    """Latents of all layers to the state that the likelihood reads; and a sample with given draws."""
    for name in NAMES:
        model = Golden(name, device)
        latents = {
            s.index: model.values[f"layer.{s.index:03d}.z"].to(device) for s in model.model.layers
        }
        with torch.no_grad(), arithmetic():
            states = model.model.generate(3, latents)
            drawn = model.model.generate(
                len(model.values["uncond_t0.7.px_z"]), {}, model.noise("uncond_t0.7."), 0.7
            )
        for key, found in (("decode_all.px_z", states), ("uncond_t0.7.px_z", drawn)):
            error = relative(model.model.top_down.final_state(found), model.values[key])
            yield checked(f"golden {key.removesuffix('.px_z')}", error, BOUNDS["fp32"], model=name)


def golden_training(device: str) -> Iterator[Row]:
    """Six steps of the published recipe: loss, gradient norm, and the weights afterwards."""
    for name in NAMES:
        model = Golden(name, device)
        values, published = model.values, model.published["train"]
        keys = ("lr", "weight_decay", "grad_clip", "skip_threshold", "ema_rate", "steps")
        recipe = TrainConfig(
            batch_size=3, warmup_steps=published["warmup_iters"], **{k: published[k] for k in keys}
        )
        start, end = (
            from_published_names(
                {k.removeprefix(p): v for k, v in values.items() if k.startswith(p)}
            )
            for p in ("state_dict.", "train.final.")
        )
        # The recorded run trained a copy whose projections, reached through lambdas, stayed as they were.
        frozen = {key for key in start if torch.equal(start[key], end[key])}
        for key, parameter in model.model.named_parameters():
            parameter.requires_grad_(key not in frozen)
        optimisation, found = Optimisation(model.model, recipe), []
        x, target = to_input(model.images, model.config), to_target(model.images, model.config)
        with arithmetic():
            for step in range(recipe.steps):
                noise = model.noise(f"train.step.{step}.")
                elbo = model.model.elbo(x * (1 + 0.3 * step), target, noise)
                loss = elbo.negative.mean() / target[0].numel()
                loss.backward()
                norm = float(optimisation.clip())
                taken = optimisation.update(norm, bool(torch.isfinite(loss)))
                found.append([loss.item(), norm, float(not taken), optimisation.learning_rate])
        expected = values["train.log_elbo_gradnorm_skipped_lrnext"]
        yield checked(
            "golden steps, log", relative(torch.tensor(found), expected), 1e-3, model=name
        )
        errors = [
            relative(optimisation.model.state_dict()[key], value) for key, value in end.items()
        ]
        yield checked("golden steps, weights", max(errors), 1e-3, model=name)


def packaged(device: str) -> Iterator[Row]:
    """faces64 on the device and on the CPU: posterior, decoding, samples."""
    here, there = vr.load("faces64", device=device), vr.load("faces64")
    toys = open_source("toy-faces")
    images = np.stack(
        [np.asarray(Image.fromarray(toys.reader(i)).resize((64, 64))) for i in range(4)]
    )
    for z in ("mean", "sample"):
        found, expected = here.posterior(images, z=z, seed=1), there.posterior(images, z=z, seed=1)
        errors = [relative(found[name].z, expected[name].z) for name in expected]
        yield checked("posterior against the CPU", max(errors), 1e-3, z=z)
        error = relative(found.kl, expected.kl)
        yield checked("KL against the CPU", error, 1e-3, z=z)
    given = {name: expected[name].z for name in list(expected)[:11]}
    for rest in ("mean", "sample"):
        a, b = (model.decode(given, rest=rest, seed=2).astype(int) for model in (here, there))
        yield checked(
            "decode against the CPU", np.abs(a - b).max(), 2, rest=rest, error_of="grey levels"
        )
    a, b = (model.sample(4, 0.8, seed=3).astype(int) for model in (here, there))
    yield checked("sample against the CPU", np.abs(a - b).max(), 2, error_of="grey levels")


CONFIG = Config(
    model=ModelConfig(
        image_size=16, width=16, zdim=4, bottom_up="16x1,16d2,8x1,8d2,4x1,4d4,1x1",
        top_down="1x1,4m1,8m4,8x1,16m8", num_mixtures=2, shift=-127.5, scale=1 / 64,
    ),
    train=TrainConfig(
        steps=12, batch_size=8, lr=1e-3, warmup_steps=2, ema_rate=0.9, flip=True, checkpoint_every=6
    ),
)  # fmt: skip


def final_state(out: Path) -> dict[str, Tensor]:
    """Return all tensors of a finished run's last checkpoint."""
    folder = out / "checkpoints" / "step-00000012"
    return {
        f"{path.stem} {key}": value.clone()
        for path in sorted(folder.glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


def largest(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the largest difference of any number of two states."""
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in b)


def resume(device: str) -> Iterator[Row]:
    """A run of 12 steps, again, and stopped after 6 and resumed: equal, or as near as a repetition is."""
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
    short = replace(CONFIG, train=replace(CONFIG.train, steps=6))
    for precision in ("fp32", "bf16"):
        how = {"device": device, "precision": precision}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for run in ("whole", "again"):
                vr.train(CONFIG, images, folder / run, **how)
            vr.train(short, images, folder / "halves", **how)
            vr.train(
                CONFIG, images, folder / "halves", resume=True, changed=("train.steps",), **how
            )
            whole, again, halves = (
                final_state(folder / run) for run in ("whole", "again", "halves")
            )
        repeated = largest(again, whole)
        yield checked(
            "exact resume", largest(halves, whole), 10 * repeated, precision=precision,
            error_of="largest difference of a number", repetition_differs_by=repeated,
        )  # fmt: skip


def stores(device: str) -> Iterator[Row]:
    """Stores of the same photographs: by device and CPU, and by one worker and four."""
    here, there = vr.load("faces64", device=device), vr.load("faces64")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photographs"
        folder.mkdir()
        for index in range(24):
            small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(small).resize((320, 240)).save(folder / f"{index}.jpg")
        for z, features in (("mean", ["mean", "delta", "kl"]), ("sample", ["z"])):
            paths = {}
            for what, model, workers in (("cpu", there, 1), ("one", here, 1), ("four", here, 4)):
                paths[what] = Path(name) / f"{what}-{z}.h5"
                vr.extract(
                    model,
                    folder,
                    paths[what],
                    features=features,
                    z=z,
                    batch_size=8,
                    num_workers=workers,
                ).close()
            cpu, one, four = (arrays(paths[what]) for what in ("cpu", "one", "four"))
            errors = {
                key: float(np.abs(one[key] - cpu[key]).max() / max(np.abs(cpu[key]).max(), 1e-12))
                for key in cpu
            }
            worst = max(errors, key=errors.__getitem__)
            yield checked(
                "store against the CPU's", errors[worst], 1e-3, z=z, worst=worst,
                error_of="of the largest value of an array",
            )  # fmt: skip
            differing = sum(one[key].tobytes() != four[key].tobytes() for key in one)
            yield checked(
                "store by one worker and by four", differing, 0, z=z, error_of="arrays that differ"
            )


def arrays(path: Path) -> dict[str, Any]:
    """Return a store's numbers by key."""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda key, item: (
                found.update({key: item[:]})
                if isinstance(item, h5py.Dataset) and item.dtype.kind == "f"
                else None
            )
        )
    return found


def main() -> int:
    """Run every check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    logging.disable()
    right = True
    for check in (golden, golden_decoding, golden_training, packaged, stores, resume):
        rows = check(options.device)
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # whatever breaks is reported, and the others go on
                reason = (str(error).strip().splitlines() or [""])[0][:300]
                row = {
                    "check": check.__name__,
                    "error": f"{type(error).__name__}: {reason}",
                    "right": False,
                }
            if row is None:
                break
            right &= bool(row["right"])
            print(json.dumps(row | {"device": options.device}), flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
