"""The training loop: step, skip, moving average, held-back likelihood, weights."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdvae_repr.config import Config
from vdvae_repr.errors import ConfigError, DataError
from vdvae_repr.model.checkpoint import save
from vdvae_repr.model.vdvae import VDVAE, fresh_noise

HELD_BACK = 0.1


def train(
    config: Config,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    out: str | Path,
    *,
    name: str = "vdvae",
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> VDVAE:
    """Train on uint8 images (N, S, S, 3) with the published recipe, horizontally flipped at random.

    A tenth of the classes (of the images, where all are unlabelled) is held back for the reported
    bits per dimension. `out` receives `log.jsonl` and `model.safetensors`, the moving average.

    Raises:
        ConfigError: the preset has no recipe.
        DataError: too few images to hold any back.
    """
    recipe = config.train
    if recipe is None:
        raise ConfigError("the preset has no [train] table; choose one to train with")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    generator = torch.Generator(device).manual_seed(recipe.seed)

    held = _held_back(labels, rng)
    train_images, held_images = images[~held], images[held]
    if min(len(train_images), len(held_images)) == 0:
        raise DataError(f"expected images to train on and to hold back, found {len(images)} in all")

    model = VDVAE(config.model, name=name).to(device)
    average = copy.deepcopy(model).eval()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=(0.9, 0.9), weight_decay=recipe.weight_decay
    )
    to_bits = 1 / (math.log(2) * images[0].size)
    record: dict[str, Any] = {
        "config": {"train": {k: getattr(recipe, k) for k in recipe.__slots__}}
    }
    record |= {"images": len(train_images), "images_held_back": len(held_images)}
    started, recent, skipped, order = time.monotonic(), [], 0, rng.permutation(0)
    log = (out / "log.jsonl").open("w", encoding="utf-8")
    for step in range(1, recipe.steps + 1):
        if len(order) < recipe.batch_size:
            order = np.concatenate([order, rng.permutation(len(train_images))])
        chosen, order = order[: recipe.batch_size], order[recipe.batch_size :]
        batch = train_images[chosen]
        flipped = rng.random(len(batch)) < 0.5
        batch[flipped] = batch[flipped, :, ::-1]
        tensor = torch.from_numpy(batch).permute(0, 3, 1, 2).to(device)

        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * min(1.0, step / max(recipe.warmup_steps, 1))
        loss = model(tensor, fresh_noise(len(batch), generator)).negative.mean() * to_bits
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        taken = bool(torch.isfinite(loss)) and float(norm) < recipe.skip_threshold
        if taken:
            optimiser.step()
            _move_average(average, model, min(recipe.ema_rate, step / (step + 10)))
            recent.append(loss.item())
        else:
            skipped += 1

        if step % recipe.checkpoint_every == 0 or step == recipe.steps:
            bits, kl = _held_back_bits(average, held_images, recipe.seed, device)
            row: dict[str, Any] = {
                "step": step,
                "images_seen": step * recipe.batch_size,
                "skipped": skipped,
            }
            row |= {"bits_per_dim": float(np.mean(recent)) if recent else None}
            row |= {"held_back_bits_per_dim": bits}
            row |= {"kl_nats": kl, "gradient_norm": float(norm)}
            row |= {"seconds": round(time.monotonic() - started, 1)}
            log.write(json.dumps(row) + "\n")
            log.flush()
            recent = []
            save(average, out / "model.safetensors", record=record | row)
            progress(f"step {step}: {bits:.3f} bits/dim held back, {skipped} updates skipped")
    log.close()
    return average


def _held_back(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose a tenth of the classes, so that no person is on both sides; without labels, of images."""
    groups = np.where(labels < 0, len(labels) + np.arange(len(labels)), labels)
    distinct = rng.permutation(np.unique(groups))
    return np.isin(groups, distinct[: round(HELD_BACK * len(distinct))])


@torch.no_grad()
def _move_average(average: VDVAE, model: VDVAE, rate: float) -> None:
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - rate)


@torch.no_grad()
def _held_back_bits(
    model: VDVAE, images: NDArray[np.uint8], seed: int, device: str
) -> tuple[float, list[float]]:
    """Bits per dimension and KL by layer (nats an image) over all held-back images."""
    generator = torch.Generator(device).manual_seed(seed)
    negative: list[Tensor] = []
    kl: list[Tensor] = []
    for start in range(0, len(images), 64):
        tensor = torch.from_numpy(images[start : start + 64]).permute(0, 3, 1, 2).to(device)
        elbo = model(tensor, fresh_noise(len(tensor), generator))
        negative.append(elbo.negative)
        kl.append(elbo.kl)
    bits = float(torch.cat(negative).mean()) / (math.log(2) * images[0].size)
    return bits, [round(value, 3) for value in torch.cat(kl).mean(dim=0).tolist()]
