"""The training loop: from one process to many under torchrun, resumable at any moment."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from vdvae_repr.config import (
    Config,
    TrainConfig,
    about_pixels,
    expect_likelihood,
    shown,
    true_or_false,
)
from vdvae_repr.data.loader import check_workers, map_ahead
from vdvae_repr.data.open import open_source, warn
from vdvae_repr.data.source import Preprocessing, Source, about_enlarged, read_images
from vdvae_repr.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Terminated,
    TrainingError,
    first_line,
)
from vdvae_repr.lock import locked
from vdvae_repr.model.base import ImageModel, SavedModel
from vdvae_repr.model.inference import allow_recompiles
from vdvae_repr.model.layers import select_layers
from vdvae_repr.model.precision import Precision, arithmetic
from vdvae_repr.model.weights import (
    TRAINED_ON_FILE,
    packaged_names,
    random_weights,
    read_trained_on,
    save,
    without_weights,
)
from vdvae_repr.output import version
from vdvae_repr.training.checkpoints import (
    announce_checkpoint,
    checkpoint_steps,
    is_announced,
    prune,
    read_newest,
    read_start,
    write_checkpoint,
)
from vdvae_repr.training.draws import (
    about_held_back,
    flipped,
    joint_noise,
    ordered,
    split_indices,
)
from vdvae_repr.training.objective import Likelihood, Objective
from vdvae_repr.training.optimisation import Optimisation
from vdvae_repr.training.plan import Plan, RunOptions, about_configuration_alone, make_plan
from vdvae_repr.training.reading import (
    about_mended,
    content_checksums,
    describe_left_out,
    leave_out,
    pixel_statistics,
    reopened,
    unreadable,
)
from vdvae_repr.training.seen import (
    NONE,
    SeenImages,
    about_held_back_before,
    hashes_to_go_on_from,
)
from vdvae_repr.training.watch import Probe, Watch

SKIPS_IN_A_ROW = 50
STOPPING = (signal.SIGTERM, signal.SIGINT)
EARLY = {1} | {2**power for power in range(3, 14)}  # openai/vdvae train.py


@arithmetic()
def train(
    config: Config | str | Path,
    data: str | Path | Source | NDArray[np.uint8] | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    changed: Sequence[str] = (),
    init_from: str | Path | None = None,
    name: str | None = None,
    crop: int | None = None,
    on_error: str | None = None,
    device: str = "cpu",
    precision: str | None = None,
    accumulate: int | None = None,
    compile: bool | None = None,
    channels_last: bool | None = None,
    recompute: Sequence[int] | None = None,
    num_workers: int | None = None,
    log_with: str | None = None,
    probe_every: int | None = None,
    probe_data: str | Path | Source | None = None,
    probe_layers: str | Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
    **train_keys: Any,
) -> Path:
    """Train a VDVAE or a PixelCNN by its configuration's recipe into the run folder `out`, and return that.

    `out` receives `config.toml`, `run.json` (how the run is computed), `log.jsonl`, `checkpoints/`,
    `samples/` and `model.safetensors`, the moving average. The loss is in nats per dimension, as published.
    Where the configuration lacks `model.shift` or `model.scale`, they are measured on the training images.
    Under torchrun every process calls this.

    A resumed run takes from its folder whatever is not given here; `config` may be that folder.

    Args:
        config: a preset's name, a TOML, a run folder, or a configuration; `train.batch_size` is over all
            processes.
        data: what `--data` takes. Splits `train` and `val` are used where there are any, else images of no
            split; without `val`, a tenth is held back (`train.hold_back`). A resumed run that was given a
            name or a path knows it.
        out: the run folder; `config` where that is one, else `runs/NAME`, if not given.
        resume: go on from the newest checkpoint; without any, start. A finished run is left alone.
        changed: `train.lr=1e-4`, a value in place of the configuration's. Or `train.lr`, a key of a `Config`
            whose value may differ from that of the run that is resumed.
        init_from: weights that a new run starts from: any VDVAE or PixelCNN that `load` takes, or a published
            `NAME-model.th`, with `NAME-model-ema.th`, `NAME-opt.th` and `NAME-log.jsonl` where they lie
            beside it, to go on from that run's step. A resumed run knows it, and takes no other.
        name: the model's name in its file; that of the preset or TOML, if not given.
        crop: central square to take first, pixels.
        on_error: "raise", if not given; "skip" reads every image once before the start, and leaves those out
            that cannot be read.
        device: "cpu", "cuda"; never chosen silently.
        precision: "fp32", if not given, or "bf16" (autocast; KL and likelihood stay in float32).
        accumulate: micro-batches that a process divides its share of the batch into.
        compile: run the blocks through torch.compile.
        channels_last: keep images and activations in that memory format.
        recompute: resolutions whose activations are computed again in the backward pass, not kept.
        num_workers: threads that read and decode batches ahead of the steps; by default the cores less one.
        log_with: a tracker that accelerate knows, as "tensorboard", which receives the log's numbers too.
        probe_every: steps between probes of layers; 0 for none.
        probe_data: labelled images to probe with, of which 512 at most are drawn, evenly over labels; the
            images held back, if not given.
        probe_layers: selector of the layers probed.
        progress: receives lines about what was left out of the data or may surprise, and one at each row of
            the log. If not given, the former are logged as warnings.
        train_keys: keys of the [train] table by name, as `steps=2000`.

    Raises:
        ConfigError: no recipe, a setting that is none, or a resumed run's config differs in keys that were
            not set by name.
        CheckpointError: `init_from` is no such model, of another architecture, damaged, or not finite.
        DataError: nothing to train on, or an image that cannot be read. ConfigError: no workers.
        TaskError: too few labels to probe with.
        TrainingError: too many skips in a row, nothing learned, a run that is already there, a full disk.

    Example:
        >>> vr.train("faces64", "photos/", "runs/a", steps=2000)  # doctest: +SKIP
    """
    resume = true_or_false("resume", resume)
    notices: list[str] = []
    labelled = None
    if probe_data is not None:
        labelled = open_source(probe_data, notice=notices.append)
    plan = make_plan(
        config, out, resume=resume, changed=changed, train_keys=train_keys,
        options={
            "name": name, "crop": crop, "on_error": on_error, "precision": precision,
            "accumulate": accumulate, "compile": compile, "channels_last": channels_last,
            "recompute": recompute, "log_with": log_with, "probe_every": probe_every,
            "probe_data": None if labelled is None else labelled.opened, "probe_layers": probe_layers,
            "init_from": None if init_from is None else place_of("init_from", init_from),
        },
    )  # fmt: skip
    expect_likelihood(plan.tables)
    if line := about_configuration_alone(config, plan, resume=resume):
        notices.append(line)
    for key, value in (("probe_data", probe_data), ("probe_layers", probe_layers)):
        if value is not None and not plan.options.probe_every:
            raise ConfigError(
                f"{key}: expected probe_every=1000, or another number, with it, found 0"
            )
    return run_plan(
        plan, Likelihood(), data, labelled, resume=resume, device=device, num_workers=num_workers,
        notices=notices, progress=progress,
    )  # fmt: skip


def run_plan(
    plan: Plan,
    objective: Objective,
    data: str | Path | Source | NDArray[np.uint8] | None,
    labelled: Source | None = None,
    *,
    resume: bool,
    device: str,
    num_workers: int | None,
    notices: Sequence[str],
    progress: Callable[[str], None] | None,
) -> Path:
    """Train as a plan says by an objective, as `train` does; returns the run folder.

    Args:
        plan: made by `make_plan`.
        objective: what is minimised.
        data: what the model is trained on.
        labelled: what it is probed with.
        resume: go on from the newest checkpoint.
        device: "cpu", "cuda".
        num_workers: threads that read batches ahead.
        notices: lines to be said first.
        progress: as of `train`.
    """
    workers = check_workers(num_workers)
    accelerator = _accelerator(device, plan.options.log_with, plan.out)
    main = accelerator.is_main_process  # which alone says anything
    say = (progress or warn) if main else lambda line: None
    progress = progress if main and progress else lambda line: None
    for line in notices:
        say(line)
    # A caller may have switched gradients off.
    with (
        _alone(plan.out) if main else nullcontext(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        return _train(
            plan, objective, accelerator, data, labelled, resume=resume,
            workers=workers, say=say, progress=progress,
        )  # fmt: skip


def _train(
    plan: Plan,
    objective: Objective,
    accelerator: Accelerator,
    data: str | Path | Source | NDArray[np.uint8] | None,
    labelled: Source | None,
    *,
    resume: bool,
    workers: int,
    say: Callable[[str], None],
    progress: Callable[[str], None],
) -> Path:
    """Do what a plan says, as the only one in its folder; `labelled` is what it is probed with."""
    out, options, recipe = plan.out, plan.options, plan.recipe
    share = recipe.batch_size // (accelerator.num_processes * options.accumulate)
    if share * accelerator.num_processes * options.accumulate != recipe.batch_size:
        raise ConfigError(
            f"train.batch_size {recipe.batch_size} must be divisible by "
            f"{accelerator.num_processes} processes x {options.accumulate} micro-batches"
        )
    checkpoint = _find_checkpoint(out, resume)
    if checkpoint is not None and data is None and checkpoint[1]["step"] >= recipe.steps:
        return _finished(plan, checkpoint[1], progress)
    source = _open(data, plan, say)
    for folder in (path.resolve() for path in source.paths if path.is_dir()):
        if folder == out.resolve() or folder in out.resolve().parents:
            raise TrainingError(
                f"{out}: lies in the folder of the data, {folder}, so that its sample sheets would be images "
                "to train on; choose another path"
            )
    preprocessing = Preprocessing(size=plan.tables["model"]["image_size"], crop=options.crop)
    if options.on_error == "skip":
        if plan.left_out is None:
            left_out = unreadable(source, preprocessing, range(len(source)), workers)
            plan = replace(plan, left_out=left_out)
        if plan.left_out:
            say(describe_left_out(plan.left_out))
        source = leave_out(source, plan.left_out or {})
    trained, held = split_indices(source, recipe)
    if line := about_held_back(source, recipe):
        say(line)
    if line := about_enlarged(source, preprocessing.size, options.crop, trained.tolist()):
        say(line)
    fingerprint = source.fingerprint()
    identity = {
        "source": fingerprint,
        "images": hashlib.sha256(trained.astype(np.int64).tobytes()).hexdigest(),
        "crop": options.crop,
    }
    if checkpoint is not None:
        _check_identity(plan, checkpoint[1], identity, source.name)
        if checkpoint[1]["step"] >= recipe.steps:
            return _finished(plan, checkpoint[1], progress)
    for line in _about_too_few_steps(recipe, options):
        say(line)
    indices, checksums = content_checksums(source, workers)
    if line := _about_copies(source, indices, checksums, trained, held):
        say(line)
    if plan.fingerprint == fingerprint:
        plan.refuse_replaced(source, indices, checksums)
    plan = replace(
        plan, data=source.opened or plan.data, fingerprint=fingerprint, checksums=checksums
    )
    config = plan.config(_measure(plan, source, preprocessing, trained, workers, progress))
    if checkpoint is None and (line := about_pixels(config.model, plan.tables["model"])):
        say(f"{line}, which are measured where they are left out")

    model = random_weights(config.model, options.name, recipe.seed).to(accelerator.device)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    there = model.resolutions if isinstance(model, ImageModel) else ()
    if unknown := set(options.recompute) - set(there):
        raise ConfigError(
            f"recompute: the model has no layers at {sorted(unknown)}; it has some at {list(there)}"
        )
    if options.probe_every and not model.layers:
        raise ConfigError(
            f"probe_every: expected a VDVAE, found {model!r}, which has no latents; leave it out"
        )
    optimisation = Optimisation(model, recipe, average_warmup=recipe.ema_warmup)
    images_seen = begun_at = 0
    before = objective.teacher
    seen_before: NDArray[np.uint64] | None = NONE
    if checkpoint is not None:
        tensors, state = checkpoint
        optimisation.restore(tensors, str(out / "checkpoints"))
        optimisation.step, optimisation.skipped = state["step"], state["skipped"]
        optimisation.at_rate_0 = state["at_rate_0"]
        images_seen, begun_at = state["images_seen"], state["begun_at"]
        seen_before = read_trained_on(out)
        if seen_before is None:
            say(
                f"{out}: holds no whole {TRAINED_ON_FILE}, so that evaluate cannot tell image by image what "
                "the run was trained on"
            )
    elif options.init_from is not None:
        init_from = options.init_from
        tensors, begun_at = read_start(init_from, say)
        before = without_weights(init_from)
        if before is not None and (line := _about_other_pixels(before, init_from, config, options)):
            say(line)
        optimisation.step = begun_at
        optimisation.restore(tensors, str(init_from))
        images_seen = optimisation.step * recipe.batch_size
        if optimisation.step >= recipe.steps:
            raise ConfigError(
                f"{init_from} is at step {optimisation.step}, and train.steps is {recipe.steps}; raise that"
            )
    if checkpoint is None:
        name = options.init_from or (before.name if before else "")
        if name and not name.endswith("@random"):
            if line := about_held_back_before(before, name, source, held, workers):
                say(line)
            seen_before = hashes_to_go_on_from(before, config.model.image_size, options.crop)
    seen = None if seen_before is None else SeenImages(seen_before, len(source))
    if options.compile and isinstance(model, ImageModel):
        compile_blocks(model)
    probe = None
    if options.probe_every:
        layers = select_layers(model.layers, options.probe_layers)
        if labelled is None and options.probe_data is not None:
            labelled = reopened(options.probe_data, say)
        among = held if labelled is None else np.arange(len(labelled))
        if labelled is not None and options.on_error == "skip":
            lost = unreadable(labelled, preprocessing, among.tolist(), workers)
            if lost:
                say(f"probe_data: {describe_left_out(lost)}")
            among = np.array([i for i in among if labelled.ids[i] not in lost], np.intp)
        probe = Probe.of(options.probe_every, labelled or source, among, layers, recipe.seed)
    watch = Watch(
        out=out, config=config, recipe=recipe, accelerator=accelerator, optimisation=optimisation,
        objective=objective, plan=plan, source=source, preprocessing=preprocessing, held=held.tolist(),
        probe=probe, batch_size=min(16, share), progress=progress,
    )  # fmt: skip
    run = _Run(
        config=config, recipe=recipe, options=options, out=out, accelerator=accelerator,
        optimisation=optimisation, objective=objective, watch=watch, source=source,
        preprocessing=preprocessing, identity=identity, trained=trained, seen=seen, workers=workers,
        share=share, images_seen=images_seen, begun_at=begun_at, say=say,
    )  # fmt: skip
    watch.open(optimisation.step)
    try:
        with _signals() as stopped:
            run.loop(stopped)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{out}: the run cannot be written ({first_line(error)}); make room: {run.last_checkpoint()}"
        ) from error
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"torch.compile failed ({reason}); train without it") from error
    finally:
        watch.close()
    return out


@dataclass(kw_only=True)
class _Run:
    config: Config
    recipe: TrainConfig
    options: RunOptions
    out: Path
    accelerator: Accelerator
    optimisation: Optimisation
    objective: Objective
    watch: Watch
    source: Source
    preprocessing: Preprocessing
    identity: dict[str, Any]
    trained: NDArray[np.intp]
    seen: SeenImages | None
    """None where it is not known what the run, or what it began from, was trained on before."""
    workers: int
    share: int
    images_seen: int
    begun_at: int
    """The step that `init_from` was at, else 0."""
    say: Callable[[str], None]
    """Receives what may surprise."""

    def loop(self, stopped: list[int]) -> None:
        """Update until the last step, a signal, or too many skips."""
        with closing(self.batches()) as batches:
            self.updates(batches, stopped)

    def updates(self, batches: Iterator[tuple[Tensor, slice]], stopped: list[int]) -> None:
        """Update on one batch after the other; numbers that no update depends on are read when logged."""
        recipe, optimisation, watch = self.recipe, self.optimisation, self.watch
        model = self.accelerator.prepare_model(optimisation.model)
        recent: list[Tensor] = []
        skips = 0
        seconds = waited = 0.0
        first = self.images_seen
        while optimisation.step < recipe.steps:
            started = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - started
            terms = self.forward_backward(model, batch)
            norm, finite, stop = self.look(terms, optimisation.clip(), stopped)
            rate = optimisation.learning_rate
            taken = optimisation.update(norm, finite)
            seconds += time.perf_counter() - started
            self.images_seen += recipe.batch_size
            skips = 0 if taken else skips + 1
            if finite:
                recent.append(terms)
            step = optimisation.step
            kept = recipe.keep_every > 0 and step % recipe.keep_every == 0
            due = (
                step % recipe.checkpoint_every == 0
                or kept
                or step == recipe.steps
                or stop is not None
            )
            probing = watch.probe is not None and step % watch.probe.every == 0
            logging = due or probing or step % recipe.log_every == 0 or step in EARLY
            if logging or skips == SKIPS_IN_A_ROW:
                row: dict[str, Any] = {"step": step, "images_seen": self.images_seen}
                if recent:
                    row |= self.objective.named(self.mean(recent), optimisation.model)
                row["gradient_norm"] = norm if math.isfinite(norm) else None
                row["skipped"] = optimisation.skipped
                row["learning_rate"] = rate
                row["images_per_second"] = round((self.images_seen - first) / seconds, 2)
                row["data_wait"] = round(waited / seconds, 4)
                if step in EARLY or (due and (not stop or step == recipe.steps)):
                    row |= watch.evaluate(step)
                if probing:
                    row |= watch.probe_layers()
                watch.log(row, recipe.steps)
                recent, first, seconds, waited = [], self.images_seen, 0.0, 0.0
            if skips == SKIPS_IN_A_ROW:
                raise TrainingError(self._stuck(norm, finite))
            if due:
                failure = self.nothing_learned(row) if step == recipe.steps else None
                self.checkpoint(row, failure)
                if failure:
                    raise TrainingError(f"{self.out}: {failure}")
                if step == recipe.steps:
                    for line in filter(None, (watch.behind(row), self.mostly_skipped())):
                        self.say(line)
            if stop == signal.SIGINT:
                raise KeyboardInterrupt
            if stop:
                raise Terminated(f"stopped by SIGTERM at step {step}; go on with resume=True")

    def batches(self) -> Generator[tuple[Tensor, slice]]:
        """Yield this process's images of each step, read ahead by workers, as uint8 (n, 3, S, S)."""
        recipe, size, device = self.recipe, self.recipe.batch_size, self.accelerator.device
        per_rank = self.share * self.options.accumulate
        start = self.accelerator.process_index * per_rank
        mine = slice(start, start + per_rank)
        first_step, first_image = self.optimisation.step, self.images_seen
        layout = torch.channels_last if self.options.channels_last else torch.contiguous_format

        def read(step: int) -> tuple[Tensor, NDArray[np.uint64]]:
            position = first_image + (step - first_step) * size
            chosen = ordered(len(self.trained), position, size, recipe.seed)[mine]
            indices = self.trained[chosen]
            batch = read_images(self.source, self.preprocessing, indices)
            new = NONE if self.seen is None else self.seen.hashes(indices, batch)
            if recipe.flip:
                mirrored = flipped(recipe.seed, step, size)[mine]
                batch[mirrored] = batch[mirrored, :, ::-1]
            images = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous(memory_format=layout)
            return images.pin_memory() if device.type == "cuda" else images, new

        steps = range(first_step, recipe.steps)
        ahead = max(2, self.workers)
        with closing(map_ahead(read, steps, workers=self.workers, ahead=ahead)) as batches:
            for batch, new in batches:
                if self.seen is not None:
                    self.seen.new.append(new)
                yield batch.to(device, non_blocking=True), mine

    def forward_backward(self, model: Any, batch: tuple[Tensor, slice]) -> Tensor:
        """Leave the joint batch's gradient in the parameters; returns the mean terms of this process's share.

        Those, (K,) nats an image, stay on the device.
        """
        images, mine = batch
        device, step = self.accelerator.device, self.optimisation.step
        dims = images[0].numel()
        terms: list[Tensor] = []
        for index in range(self.options.accumulate):
            start = index * self.share
            rows = slice(mine.start + start, mine.start + start + self.share)
            noise = joint_noise(self.recipe.seed, step, self.recipe.batch_size, rows, device)
            last = index == self.options.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                with arithmetic(cast(Precision, self.options.precision), device.type):
                    losses, parts = self.objective.terms(
                        model,
                        images[start : start + self.share],
                        noise,
                        rate_weight=self.optimisation.rate_weight,
                        recompute=self.options.recompute,
                    )
                loss = losses.mean() / dims / self.options.accumulate
                loss.backward()
            terms.append(parts.detach().mean(dim=0) / self.options.accumulate)
        return torch.stack(terms).sum(dim=0)

    def look(
        self, terms: Tensor, norm: Tensor, stopped: list[int]
    ) -> tuple[float, bool, signal.Signals | None]:
        """Read from the device, once a step, what all processes have to agree on.

        Returns the gradient's norm, whether it and the terms of every process are finite, and the signal
        that any process received.
        """
        # Filled on the device: to copy numbers there would be to wait for it.
        joint = torch.zeros(1 + len(STOPPING), dtype=terms.dtype, device=terms.device)
        joint[0] = torch.isfinite(terms).all().logical_not()
        for place, number in enumerate(STOPPING, start=1):
            if number in stopped:
                joint[place] = 1
        joint = self.accelerator.reduce(joint, reduction="sum")
        value, unfinite, *counts = torch.cat([norm.to(joint.dtype)[None], joint]).tolist()
        stop = [number for number, count in zip(STOPPING, counts, strict=True) if count > 0]
        return value, unfinite == 0 and math.isfinite(value), stop[0] if stop else None

    def mean(self, terms: Sequence[Tensor]) -> Tensor:
        """Return the mean of some steps' terms over all processes, float64, on the host."""
        joint = self.accelerator.reduce(torch.stack(list(terms)), reduction="sum")
        return joint.cpu().double().mean(dim=0) / self.accelerator.num_processes

    def nothing_learned(self, row: Mapping[str, Any]) -> str | None:
        """Return why a run that has reached its last step has learned nothing; None where it has."""
        optimisation = self.optimisation
        updates = optimisation.step - self.begun_at
        if optimisation.skipped == updates:
            every = "the only update was" if updates == 1 else f"all {updates} updates were"
            return (
                f"nothing was learned: {every} skipped; raise train.skip_threshold "
                f"({self.recipe.skip_threshold:g}) or lower train.lr ({self.recipe.lr:g})"
            )
        if optimisation.skipped + optimisation.at_rate_0 == updates:
            others = ", and all others were skipped" if updates > 1 else ""
            return (
                f"nothing was learned: the first update has rate 0, from which the warm-up begins{others}; "
                f"raise train.steps ({self.recipe.steps}) or train.skip_threshold "
                f"({self.recipe.skip_threshold:g})"
            )
        for key, whose in (("held_back", "average's"), ("held_back_weights", "weights'")):
            if row.get(f"{key}_{self.objective.total}", 0.0) is None:
                return (
                    f"nothing was learned: the {whose} score of the images held back is not finite; lower "
                    f"train.lr ({self.recipe.lr:g}) or look at the data"
                )
        return None

    def mostly_skipped(self) -> str | None:
        """Return a line where a run that has reached its last step skipped most updates."""
        updates, skipped = self.optimisation.step - self.begun_at, self.optimisation.skipped
        if 2 * skipped <= updates:
            return None
        return (
            f"{skipped} of {updates} updates were skipped, so that little was learned; raise "
            f"train.skip_threshold ({self.recipe.skip_threshold:g}) or lower train.lr ({self.recipe.lr:g})"
        )

    def checkpoint(self, row: dict[str, Any], failure: str | None) -> None:
        """Write the complete state, and the moving average as the run's model."""
        if self.seen is not None:
            self.seen.write(self.out / TRAINED_ON_FILE, self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            if self.seen is None:  # a file of a start before this one, or a part, would look whole
                (self.out / TRAINED_ON_FILE).unlink(missing_ok=True)
            optimisation, start = self.optimisation, self.options.init_from
            state = {
                "images_seen": self.images_seen,
                "skipped": optimisation.skipped,
                "at_rate_0": optimisation.at_rate_0,
                "begun_at": self.begun_at,
                "failure": failure,
                **self.identity,
            }
            record = {
                "config": self.config.to_toml(),
                "data": self.source.name,
                "data_sha256": self.identity["source"],
                "crop": self.preprocessing.crop,
                "precision": self.options.precision,
                "init_from": None if start is None else Path(start).name,
                "version": version(),
                "images": len(self.trained),
                "images_held_back": len(self.watch.held),
                **self.objective.record,
                **row,
            }
            # The model first: a run that is killed between the two goes on from the checkpoint before, and
            # one whose last checkpoint is there is finished.
            folder = self.out / "checkpoints"
            announce_checkpoint(folder, optimisation.step)
            save(optimisation.average, self.out / "model.safetensors", record=record)
            write_checkpoint(folder, optimisation.step, optimisation.tensors(), state)
            prune(folder, optimisation.step, self.recipe.keep_last, self.recipe.keep_every)
        self.accelerator.wait_for_everyone()

    def _stuck(self, norm: float, finite: bool) -> str:
        if not finite:
            return (
                f"the loss or its gradient was not finite for {SKIPS_IN_A_ROW} updates in a row; lower "
                f"train.lr ({self.recipe.lr:g}) or look at the data; {self.last_checkpoint()}"
            )
        return (
            f"{SKIPS_IN_A_ROW} updates in a row were skipped: gradient norm {norm:.4g}, expected below "
            f"train.skip_threshold {self.recipe.skip_threshold:g}; raise that; {self.last_checkpoint()}"
        )

    def last_checkpoint(self) -> str:
        """Say from where the run can go on."""
        steps = checkpoint_steps(self.out / "checkpoints")
        return (
            f"resume=True goes on from step {steps[-1]}" if steps else "there is no checkpoint yet"
        )


def _accelerator(device: str, log_with: str | None, out: Path) -> Accelerator:
    trackers = [str(tracker.value) for tracker in get_available_trackers()]
    if log_with is not None and log_with not in trackers:
        raise ConfigError(
            f"log_with: expected an installed tracker, {' or '.join(trackers) or 'of which there is none'}, "
            f"found {log_with!r}; install it with pip"
        )
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device: expected cpu or cuda, found {device!r}") from error
    accelerator = Accelerator(cpu=wanted.type == "cpu", log_with=log_with, project_dir=out)
    here = accelerator.device
    if here.type != wanted.type or wanted.index not in (None, here.index):
        raise ConfigError(
            f"device {device} cannot be used: this process has {here}; give that, choose a card with "
            "CUDA_VISIBLE_DEVICES, or start a new process"
        )
    return accelerator


def compile_blocks(model: ImageModel) -> None:
    """Compile block by block, and the likelihood: blocks of one shape share their code.

    The whole model as one takes many minutes to compile, and is no faster.
    """
    allow_recompiles(len(model.compilable))
    for block in model.compilable:
        block.compile(dynamic=False)
    model.distortion = torch.compile(model.distortion, dynamic=False)  # type: ignore[method-assign]


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the run folder's lock.

    Raises:
        TrainingError: another process trains there, or the folder cannot be made.
    """
    busy = f"{out}: another process is training in this folder"
    try:
        lock = ExitStack()
        lock.enter_context(locked(out / ".lock", busy, TrainingError))
    except OSError as error:
        raise TrainingError(
            f"{out}: the run folder cannot be written ({error.strerror}); choose another path"
        ) from error
    with lock:
        yield


def place_of(key: str, weights: str | Path) -> str:
    """Return weights as a run folder keeps them: a file or a folder by its whole path.

    Args:
        key: the parameter's name, in messages.
        weights: a name or a path.

    Raises:
        CheckpointError: no name and no path.
    """
    if not isinstance(weights, str | os.PathLike) or not str(weights).strip():
        raise CheckpointError(f"{key}: expected a name or a file, found {shown(weights)}")
    if isinstance(weights, str) and not (
        weights not in packaged_names() and Path(weights).exists()
    ):
        return weights
    return str(Path(weights).resolve())


def _find_checkpoint(
    out: Path, resume: bool
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Return the tensors and the state to go on from; None for a fresh start.

    Raises:
        TrainingError: a run is there that is not to be resumed, or that cannot be.
    """
    if not checkpoint_steps(out / "checkpoints"):
        if (out / "model.safetensors").exists() and not is_announced(out / "checkpoints"):
            raise TrainingError(
                f"{out}: holds the model of a run and no checkpoints to go on from; choose another path"
            )
        return None
    if not resume:
        raise TrainingError(f"{out}: already holds a run; add resume=True, or choose another path")
    return read_newest(out / "checkpoints")


def _finished(plan: Plan, state: Mapping[str, Any], progress: Callable[[str], None]) -> Path:
    """Leave a finished run alone.

    Raises:
        TrainingError: it had learned nothing.
    """
    if state.get("failure"):
        raise TrainingError(f"{plan.out}: {state['failure']}")
    progress(f"{plan.out}: finished at step {state['step']}; nothing to do")
    return plan.out


def _open(
    data: str | Path | Source | NDArray[np.uint8] | None, plan: Plan, say: Callable[[str], None]
) -> Source:
    """Open what was given, else what the run's folder names."""
    if data is not None:
        return open_source(data, notice=say)
    if plan.data is None:
        raise DataError(
            f"data: expected images to train on, found none given, and none that {plan.out} names; "
            "give data=FOLDER"
        )
    return reopened(plan.data, say)


def _check_identity(
    plan: Plan, state: Mapping[str, Any], identity: Mapping[str, Any], name: str
) -> None:
    """Refuse to go on with other images than the run's.

    Raises:
        TrainingError: they are others.
    """
    if other := [key for key, value in identity.items() if state[key] != value]:
        raise TrainingError(
            f"{plan.out}: was trained on other data than {name} (another {' and '.join(other)}); "
            f"give what it was trained on{about_mended(plan.left_out)}"
        )


def _about_copies(
    source: Source,
    indices: NDArray[np.intp],
    checksums: Sequence[int],
    trained: NDArray[np.intp],
    held: NDArray[np.intp],
) -> str:
    """Say how many of the images held back, of those whose checksums are known, are trained on as copies."""
    known = {
        index: content
        for index, content in zip(indices.tolist(), checksums, strict=True)
        if content
    }
    seen = {known[index] for index in trained.tolist() if index in known}
    asked = [index for index in held.tolist() if index in known]
    if not (copies := [index for index in asked if known[index] in seen]):
        return ""
    return (
        f"{source.name}: {len(copies)} of {len(asked)} images held back are copies of images trained on, as "
        f"{source.ids[copies[0]]!r}, so that their score is not of new images; leave copies out"
    )


def _about_too_few_steps(recipe: TrainConfig, options: RunOptions) -> list[str]:
    """Say what of a run its steps are too few for."""
    lines, steps = [], recipe.steps
    if recipe.kl_warmup_steps > steps:
        lines.append(
            f"train.steps ({steps}) ends before train.kl_warmup_steps ({recipe.kl_warmup_steps}): at the end "
            f"the rate counts by {steps / recipe.kl_warmup_steps:.2g} alone, so that no bound is trained and "
            "nats by layer are too many; raise train.steps, or lower train.kl_warmup_steps"
        )
    if recipe.warmup_steps > steps:
        lines.append(
            f"train.steps ({steps}) ends before train.warmup_steps ({recipe.warmup_steps}): the step size "
            f"comes to {recipe.lr * steps / recipe.warmup_steps:.2g} at most, and never to train.lr "
            f"({recipe.lr:g}); raise train.steps, or lower train.warmup_steps"
        )
    # A row of the log and a checkpoint come at the last step too, whatever their intervals.
    intervals = {"probe_every": options.probe_every, "train.keep_every": recipe.keep_every}
    lines += [
        f"{key} ({every}) is more than train.steps ({steps}), so that it does nothing; lower it"
        for key, every in intervals.items()
        if every > steps
    ]
    return lines


def _measure(
    plan: Plan, source: Source, preprocessing: Preprocessing, trained: NDArray[np.intp],
    workers: int, progress: Callable[[str], None],
) -> dict[str, float]:  # fmt: skip
    """Measure on the training images what the configuration lacks of `shift` and `scale`, and say so."""
    lacking = [key for key in ("shift", "scale") if key not in plan.tables["model"]]
    if not lacking:
        return {}
    found = pixel_statistics(source, preprocessing, trained, workers)
    values = {"shift": -found.mean, "scale": 1 / found.std}
    measured = {key: values[key] for key in lacking}
    progress(
        f"measured on {found.images} training images: "
        + ", ".join(f"model.{key} = {value:.8g}" for key, value in measured.items())
        + f" (mean {found.mean:.2f}, standard deviation {found.std:.2f} of 0..255)"
    )
    return measured


def _about_other_pixels(
    before: SavedModel, init_from: str | Path, config: Config, options: RunOptions
) -> str:
    """Say where the weights that a run starts from saw images cropped, sized, shifted or scaled otherwise."""
    own, now = before.config, config.model
    lines = [
        f"model.{key} = {getattr(own, key):.8g}, here {getattr(now, key):.8g}"
        for key in ("image_size", "bits", "shift", "scale")
        if hasattr(own, key)
        and not math.isclose(getattr(own, key), getattr(now, key), rel_tol=1e-6)
    ]
    if "crop" in before.record and before.trained_crop != options.crop:
        crops = [str(crop or "none") for crop in (before.trained_crop, options.crop)]
        lines.append(f"crop {crops[0]}, here {crops[1]}")
    if not lines:
        return ""
    return (
        f"{init_from}: was trained with {', and '.join(lines)}; set them to go on as it saw pixels"
    )


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

    before = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
