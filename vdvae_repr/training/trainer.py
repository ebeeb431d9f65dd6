"""The training loop: from one process to many under torchrun, resumable at any moment.

Order, flips and noise are functions of the seed and the step alone, drawn for the joint batch of all
processes: nothing random has to be restored, and a run does not depend on how its batch is divided.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from vdvae_repr.config import Config, TrainConfig, load_config
from vdvae_repr.data.sheet import save_sheet
from vdvae_repr.data.sources import Preprocessing, Source, open_source, read_images
from vdvae_repr.errors import ConfigError, DataError, Terminated, TrainingError
from vdvae_repr.model.checkpoint import save
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.model.vdvae import VDVAE, Noise, seeded_noise
from vdvae_repr.training.checkpoints import checkpoint_steps, prune, read_newest, write_checkpoint
from vdvae_repr.training.optimisation import Optimisation

HELD_BACK = 0.1
EVALUATED = 512  # held-back images, at most, in an evaluation during training
SKIPS_IN_A_ROW = 50
STOPPING = (signal.SIGTERM, signal.SIGINT)
EARLY = {1} | {2**power for power in range(3, 14)}  # openai/vdvae train.py


def train(
    config: Config,
    data: str | Path | Source | NDArray[np.uint8],
    out: str | Path,
    *,
    resume: bool = False,
    changed: tuple[str, ...] = (),
    crop: int | None = None,
    name: str = "vdvae",
    device: str = "cpu",
    precision: str = "fp32",
    accumulate: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train a VDVAE with the published recipe into the run folder `out`; returns that folder.

    `out` receives `config.toml`, `log.jsonl`, `checkpoints/`, `samples/` and `model.safetensors`, the
    moving average. The loss is in nats per dimension, as published. Under torchrun every process calls this.

    Args:
        config: model and recipe; `train.batch_size` is over all processes.
        data: what `--data` takes. Splits `train` and `val` are used where there are any; without `val`, a
            tenth is held back (`train.hold_back`).
        out: the run folder.
        resume: go on from the newest checkpoint; without any, start. A finished run is left alone.
        changed: keys, as `train.lr`, that may differ from those of the run that is resumed.
        crop: central square to take first, pixels.
        name: the model's name in its file.
        device: "cpu", "cuda"; never chosen silently.
        precision: "fp32" or "bf16" (autocast; KL and likelihood stay in float32).
        accumulate: micro-batches that a process divides its share of the batch into.
        progress: receives one line at each row of the log.

    Raises:
        ConfigError: no recipe, or a resumed run's config differs in keys not named in `changed`.
        DataError: nothing to train on, or an image that cannot be read.
        TrainingError: too many skips in a row, a run that is already there, a full disk.
    """
    recipe = config.train
    if recipe is None:
        raise ConfigError("the preset has no [train] table; choose one to train with")
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision: expected fp32 or bf16, found {precision!r}")
    accelerator = _accelerator(device)
    share = recipe.batch_size // (accelerator.num_processes * accumulate)
    if share * accelerator.num_processes * accumulate != recipe.batch_size:
        raise ConfigError(
            f"train.batch_size {recipe.batch_size} must be divisible by "
            f"{accelerator.num_processes} processes x {accumulate} micro-batches"
        )
    out = Path(out)
    found = _find_run(config, out, resume, changed)
    source = open_source(data)
    trained, held = split_indices(source, recipe)
    identity = {"images": len(trained), "source": source.fingerprint()}

    torch.manual_seed(recipe.seed)
    optimisation = Optimisation(VDVAE(config.model, name=name).to(accelerator.device), recipe)
    images_seen = 0
    if found is not None:
        tensors, state = found
        optimisation.restore(tensors, str(out / "checkpoints"))
        optimisation.step, optimisation.skipped = state["step"], state["skipped"]
        images_seen = state["images_seen"]
        if any(state[key] != value for key, value in identity.items()):
            raise TrainingError(f"{out}: was trained on other data than {source.name}; give those")
        if optimisation.step >= recipe.steps:
            if accelerator.is_main_process:
                progress(f"{out}: finished at step {optimisation.step}; nothing to do")
            return out
    run = _Run(
        config=config, recipe=recipe, out=out, accelerator=accelerator, optimisation=optimisation,
        source=source, preprocessing=Preprocessing(size=config.model.image_size, crop=crop),
        identity=identity, trained=trained, held=held, precision=precision, accumulate=accumulate,
        share=share, progress=progress, images_seen=images_seen,
    )  # fmt: skip
    try:
        run.open_log()
        with _signals() as stopped:
            run.loop(stopped)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{out}: {error}; the last checkpoint is whole, go on with --resume"
        ) from error
    return out


@dataclass(kw_only=True)
class _Run:
    config: Config
    recipe: TrainConfig
    out: Path
    accelerator: Accelerator
    optimisation: Optimisation
    source: Source
    preprocessing: Preprocessing
    identity: dict[str, Any]
    trained: NDArray[np.intp]
    held: NDArray[np.intp]
    precision: str
    accumulate: int
    share: int
    progress: Callable[[str], None]
    images_seen: int

    def loop(self, stopped: list[int]) -> None:
        """Update until the last step, a signal, or too many skips."""
        recipe, optimisation = self.recipe, self.optimisation
        model = self.accelerator.prepare_model(optimisation.model)
        started, first, recent = time.monotonic(), self.images_seen, []
        skips = 0
        for batch in self.batches():
            stats = self.forward_backward(model, batch, stopped)
            norm = optimisation.clip()
            finite, stop = stats["finite"], stats["stop"]
            taken = optimisation.update(norm, finite)
            self.images_seen += recipe.batch_size
            skips = 0 if taken else skips + 1
            if finite:
                recent.append(stats["terms"])
            step = optimisation.step
            due = step % recipe.checkpoint_every == 0 or step == recipe.steps or stop != 0
            if due or step % recipe.log_every == 0 or step in EARLY or skips == SKIPS_IN_A_ROW:
                speed = (self.images_seen - first) / (time.monotonic() - started)
                row = self.row(recent, norm, speed)
                if step in EARLY or (due and not stop):
                    row |= self.evaluate()
                self.log(row, speed)
                recent = []
            if skips == SKIPS_IN_A_ROW:
                raise TrainingError(self._stuck(norm, finite))
            if due:
                self.checkpoint(row)
            if stop == signal.SIGINT:
                raise KeyboardInterrupt
            if stop:
                raise Terminated(f"stopped by SIGTERM at step {step}; go on with --resume")

    def batches(self) -> Iterator[tuple[Tensor, slice]]:
        """Yield this process's images of each step, read ahead by threads, as uint8 (n, 3, S, S)."""
        recipe, size = self.recipe, self.recipe.batch_size
        per_rank = self.share * self.accumulate
        start = self.accelerator.process_index * per_rank
        mine = slice(start, start + per_rank)
        first_step, first_image = self.optimisation.step, self.images_seen

        def read(step: int) -> Tensor:
            position = first_image + (step - first_step) * size
            chosen = ordered(len(self.trained), position, size, recipe.seed)[mine]
            batch = self.read(self.trained[chosen])
            if recipe.flip:
                rng = np.random.default_rng((recipe.seed, 1, step))
                flipped = (rng.random(size) < 0.5)[mine]
                batch[flipped] = batch[flipped, :, ::-1]
            return torch.from_numpy(batch).permute(0, 3, 1, 2)

        with ThreadPoolExecutor(4) as pool:
            steps = range(first_step, recipe.steps)
            ahead = [pool.submit(read, step) for step in steps[:4]]
            for step in steps:
                batch = ahead.pop(0).result()
                if step + 4 < recipe.steps:
                    ahead.append(pool.submit(read, step + 4))
                yield batch.to(self.accelerator.device), mine

    def read(self, indices: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Return preprocessed images, uint8 (N, S, S, 3)."""
        return read_images(self.source, self.preprocessing, indices)

    def forward_backward(
        self, model: Any, batch: tuple[Tensor, slice], stopped: list[int]
    ) -> dict[str, Any]:
        """Leave the joint batch's gradient in the parameters; returns its mean terms over all processes."""
        images, mine = batch
        device, step = self.accelerator.device, self.optimisation.step
        dims = images[0].numel()
        terms: list[Tensor] = []
        for index in range(self.accumulate):
            start = index * self.share
            rows = slice(mine.start + start, mine.start + start + self.share)
            noise = joint_noise(self.recipe.seed, step, self.recipe.batch_size, rows, device)
            last = index == self.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    elbo = model(images[start : start + self.share], noise)
                weighted = elbo.distortion + self.optimisation.rate_weight * elbo.rate
                loss = weighted.mean() / dims / self.accumulate
                loss.backward()
            parts = [elbo.distortion[:, None], elbo.rate[:, None], elbo.kl]
            terms.append(torch.cat(parts, dim=1).detach().mean(dim=0) / self.accumulate)
        mean = torch.stack(terms).sum(dim=0)
        unfinite = not bool(torch.isfinite(mean).all())
        flags = [float(flag) for flag in (unfinite, *(number in stopped for number in STOPPING))]
        vector = torch.cat([mean, mean.new_tensor(flags)])
        joint = self.accelerator.reduce(vector, "sum").cpu().double()
        stop = [number for number, count in zip(STOPPING, joint[-2:], strict=True) if count > 0]
        terms_mean = joint[:-3] / self.accelerator.num_processes
        return {"terms": terms_mean, "finite": bool(joint[-3] == 0), "stop": stop[0] if stop else 0}

    def row(self, recent: list[Tensor], norm: float, speed: float) -> dict[str, Any]:
        """Return what the log says of the steps since its last row."""
        step = self.optimisation.step
        row: dict[str, Any] = {"step": step, "images_seen": self.images_seen}
        if recent:
            row |= _named(torch.stack(recent).mean(dim=0), self._layers, self._dims)
        row["gradient_norm"] = norm if math.isfinite(norm) else None
        row["skipped"] = self.optimisation.skipped
        row["learning_rate"] = self.optimisation.learning_rate
        row["images_per_second"] = round(speed, 2)
        return row

    @property
    def _layers(self) -> tuple[LayerSpec, ...]:
        return self.optimisation.model.layers

    @property
    def _dims(self) -> int:
        return 3 * self.config.model.image_size**2

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Score the moving average on held-back images, each once, whatever the number of processes."""
        average, world = self.optimisation.average, self.accelerator.num_processes
        chosen = self.held[:EVALUATED]
        total = torch.zeros(2 + len(self._layers), dtype=torch.float64)
        for start in range(0, len(chosen), 16):
            if start // 16 % world != self.accelerator.process_index:
                continue
            indices = chosen[start : start + 16]
            ids = [self.source.ids[i] for i in indices]
            tensor = torch.from_numpy(self.read(indices)).permute(0, 3, 1, 2)
            noise = seeded_noise(self.recipe.seed, ids, self.accelerator.device)
            elbo = average(tensor.to(self.accelerator.device), noise)
            parts = torch.cat([elbo.distortion[:, None], elbo.rate[:, None], elbo.kl], dim=1)
            total += parts.double().sum(dim=0).cpu()
        joint = self.accelerator.reduce(total.to(self.accelerator.device), "sum").cpu()
        named = _named(joint / len(chosen), self._layers, self._dims)
        if self.accelerator.is_main_process:
            self.samples()
        return {f"held_back_{k}": v for k, v in named.items()} | {"held_back_images": len(chosen)}

    def samples(self) -> None:
        """Write held-back images, reconstructions from the first k layers, and samples, as published."""
        average, count = self.optimisation.average, min(8, len(self.held))
        images = self.read(self.held[:count])
        read = average.posterior(images)
        rows = [images]
        fractions = np.linspace(0, 1, 8)[1:-1]
        for k in np.floor(fractions * len(self._layers)).astype(int):
            given = {spec.name: read[spec.name].mean for spec in self._layers[: max(k, 1)]}
            rows.append(average.decode(given, rest="sample", temperature=0.1))
        rows += [average.sample(count, temperature) for temperature in (1.0, 0.9, 0.8, 0.7)]
        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{self.optimisation.step:08d}.png"
        save_sheet(np.concatenate(rows), path, columns=count)

    def open_log(self) -> None:
        """Write the config; cut the log back to the step that the run goes on from."""
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "config.toml").write_text(self.config.to_toml(), encoding="utf-8")
            path = self.out / "log.jsonl"
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            kept = []
            for line in lines:
                try:
                    step = json.loads(line)["step"]
                except ValueError:  # half a line, where the run was killed
                    break
                if step <= self.optimisation.step:
                    kept.append(line + "\n")
            aside = path.with_suffix(".part")
            aside.write_text("".join(kept), encoding="utf-8")
            aside.replace(path)
        self.accelerator.wait_for_everyone()

    def log(self, row: dict[str, Any], speed: float) -> None:
        """Append a row to the log and report it."""
        if not self.accelerator.is_main_process:
            return
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        step, steps = self.optimisation.step, self.recipe.steps
        eta = (steps - step) * self.recipe.batch_size / speed
        line = f"step {step}/{steps}"
        if "bits_per_dim" in row:
            line += f"  {row['bits_per_dim']:.3f} bits/dim"
        if "held_back_bits_per_dim" in row:
            line += f"  {row['held_back_bits_per_dim']:.3f} held back"
        line += (
            f"  {speed:.1f} images/s  ETA {eta // 3600:.0f}:{eta // 60 % 60:02.0f}:{eta % 60:02.0f}"
        )
        self.progress(line + f"  {self.optimisation.skipped} skipped")

    def checkpoint(self, row: dict[str, Any]) -> None:
        """Write the complete state, and the moving average as the run's model."""
        if self.accelerator.is_main_process:
            optimisation = self.optimisation
            state = {
                "images_seen": self.images_seen,
                "skipped": optimisation.skipped,
                **self.identity,
            }
            folder = self.out / "checkpoints"
            write_checkpoint(folder, optimisation.step, optimisation.tensors(), state)
            prune(folder, self.recipe.keep_last, self.recipe.keep_every)
            record = {
                "config": self.config.to_toml(),
                "images": len(self.trained),
                "images_held_back": len(self.held),
                **row,
            }
            save(optimisation.average, self.out / "model.safetensors", record=record)
        self.accelerator.wait_for_everyone()

    def _stuck(self, norm: float, finite: bool) -> str:
        kept = checkpoint_steps(self.out / "checkpoints")
        remedy = f"the last checkpoint is step {kept[-1]}" if kept else "there is no checkpoint yet"
        if not finite:
            return (
                f"the loss was not finite for {SKIPS_IN_A_ROW} updates in a row; lower train.lr "
                f"({self.recipe.lr:g}) or look at the data; {remedy}"
            )
        return (
            f"{SKIPS_IN_A_ROW} updates in a row were skipped: gradient norm {norm:.4g}, expected below "
            f"train.skip_threshold {self.recipe.skip_threshold:g}; raise that; {remedy}"
        )


def split_indices(source: Source, recipe: TrainConfig) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices trained on and those held back, the latter in an order drawn from the seed.

    Raises:
        DataError: either would be empty.
    """
    splits, rng = np.array(source.splits), np.random.default_rng((recipe.seed, 2))
    usable = np.flatnonzero((splits == "train") | (splits == ""))
    held = rng.permutation(np.flatnonzero(splits == "val"))
    if len(held) == 0 and len(usable) > 0:
        labels = source.labels[usable]
        groups = np.where(labels < 0, labels.max() + 1 + np.arange(len(labels)), labels)
        if recipe.hold_back == "labels":
            distinct = rng.permutation(np.unique(groups))
            chosen = np.isin(groups, distinct[: round(HELD_BACK * len(distinct))])
        else:
            order = rng.permutation(len(usable))
            by_label = order[np.argsort(labels[order], kind="stable")]
            chosen = np.zeros(len(usable), bool)
            chosen[by_label[round(0.5 / HELD_BACK) :: round(1 / HELD_BACK)]] = True
        held, usable = rng.permutation(usable[chosen]), usable[~chosen]
    if min(len(usable), len(held)) == 0:
        raise DataError(
            f"{source.name}: expected images to train on and some to hold back, "
            f"found {len(usable)} and {len(held)}"
        )
    return usable, held


def ordered(count: int, position: int, size: int, seed: int) -> NDArray[np.intp]:
    """Return items position .. position + size - 1 of the endless sequence of shuffled epochs, (size,)."""
    places = np.arange(position, position + size)
    items = np.empty(size, np.intp)
    for epoch in np.unique(places // count):
        inside = places // count == epoch
        items[inside] = _epoch_order(count, int(epoch), seed)[places[inside] % count]
    return items


@lru_cache(maxsize=2)
def _epoch_order(count: int, epoch: int, seed: int) -> NDArray[np.intp]:
    return np.random.default_rng((seed, 0, epoch)).permutation(count)


def joint_noise(seed: int, step: int, size: int, rows: slice, device: torch.device) -> Noise:
    """Return draws for some rows of a joint batch, the same however it is divided."""
    word = int(np.random.SeedSequence((seed, 3, step)).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator(device).manual_seed(word)
    return lambda layer: torch.randn((size, *layer.shape), generator=generator, device=device)[rows]


def _named(terms: Tensor, layers: tuple[LayerSpec, ...], dims: int) -> dict[str, Any]:
    """Name a vector of distortion, rate, KL by layer (nats an image) for the log."""
    distortion, rate, *kl = terms.tolist()
    return {
        "bits_per_dim": (distortion + rate) / (math.log(2) * dims),
        "distortion_nats": distortion,
        "rate_nats": rate,
        "kl_nats": {spec.name: round(value, 4) for spec, value in zip(layers, kl, strict=True)},
    }


def _accelerator(device: str) -> Accelerator:
    accelerator = Accelerator(cpu=device == "cpu")
    if accelerator.device.type != torch.device(device).type:
        raise ConfigError(
            f"device {device} cannot be used: this process has {accelerator.device}; "
            "give that, or start a new process"
        )
    return accelerator


def _find_run(
    config: Config, out: Path, resume: bool, changed: tuple[str, ...]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Return the state to go on from; None for a fresh start."""
    if not checkpoint_steps(out / "checkpoints"):
        return None
    if not resume:
        raise TrainingError(f"{out}: already holds a run; add --resume, or choose another --out")
    differing = config.differences(load_config(out / "config.toml"))
    refused = [
        key
        for key in differing
        if key not in changed or key.startswith("model.") or key == "train.seed"
    ]
    if refused:
        raise ConfigError(
            f"{out}: the run to resume differs in {', '.join(refused)}; give its values, "
            "or name a changed train key with --set"
        )
    return read_newest(out / "checkpoints")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT, so that the loop stops between two updates; a second one is at once."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, frame: object) -> None:
        seen.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
