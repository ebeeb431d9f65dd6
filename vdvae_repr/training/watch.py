"""Watching a run: its log and trackers, the likelihood of held-back images, sample sheets, probes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from vdvae_repr.config import Config, TrainConfig
from vdvae_repr.data.sheet import save_sheet
from vdvae_repr.data.source import Preprocessing, Source, read_images
from vdvae_repr.errors import DataError, TaskError, TrainingError
from vdvae_repr.model.base import SavedModel
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.model.preprocessing import as_image_tensor
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.output import write_text
from vdvae_repr.training.objective import Objective
from vdvae_repr.training.optimisation import Optimisation
from vdvae_repr.training.plan import Plan
from vdvae_repr.training.sealed import sealed_toml

logger = logging.getLogger(__name__)
DIFFERENT = 0.01  # of a score: from here on that of the weights is given beside the average's
WATCHED = 512  # images, at most, in an evaluation or a probe during training


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A probe during training: nearest neighbour by cosine, each image left out of the gallery once."""

    every: int
    """Steps between probes."""
    source: Source
    indices: Sequence[int]
    """Labelled images, at most 512."""
    layers: tuple[LayerSpec, ...]

    @classmethod
    def of(
        cls,
        every: int,
        source: Source,
        among: NDArray[np.intp],
        layers: tuple[LayerSpec, ...],
        seed: int,
    ) -> Probe:
        """Draw the images of `among` whose label another of them shares, by the seed, evenly over labels.

        Raises:
            TaskError: fewer than two labels have two images.
        """
        labels = source.labels[among]
        values, counts = np.unique(labels, return_counts=True)
        repeated = values[(counts > 1) & (values >= 0)]
        if len(repeated) < 2:
            raise TaskError(
                f"{source.name}: a probe during training needs at least 2 labels with 2 images each, "
                f"found {len(repeated)} among {len(labels)} images; name labelled images to probe with"
            )
        rng = np.random.default_rng((seed, 4))
        chosen = rng.permutation(among[np.isin(labels, repeated)])
        # By pairs of one label, so that each image drawn has another of its own.
        turns = np.zeros(len(chosen), np.intp)
        for label in repeated:
            own = np.flatnonzero(source.labels[chosen] == label)
            turns[own] = np.arange(len(own)) // 2
        places = np.searchsorted(repeated, source.labels[chosen])
        order = np.lexsort((rng.permutation(len(repeated))[places], turns))
        drawn = np.sort(chosen[order[:WATCHED]])
        return cls(every=every, source=source, indices=drawn.tolist(), layers=layers)

    def accuracy(self, model: VDVAE, preprocessing: Preprocessing) -> dict[str, float]:
        """Return by layer the share of images whose nearest neighbour, by posterior mean, has their label."""
        parts: dict[str, list[Tensor]] = {spec.name: [] for spec in self.layers}
        for start in range(0, len(self.indices), 16):
            batch = self.indices[start : start + 16]
            images = read_images(self.source, preprocessing, batch)
            read = model._read(as_image_tensor(images, model.config.image_size), self.layers)
            for name, means in parts.items():
                means.append(read[name].mean.flatten(1).cpu())
        from vdvae_repr.heads.neighbors import NearestNeighbor  # scikit-learn takes a second

        labels = self.source.labels[self.indices]
        found = {}
        for name, means in parts.items():
            nearest = NearestNeighbor(standardize=False).fit(torch.cat(means).numpy(), labels)
            found[name] = float(np.mean(nearest.leave_one_out() == labels))
        return found


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Reports on a run into its folder: `log.jsonl`, `samples/`, and whatever tracker was asked for."""

    out: Path
    config: Config
    recipe: TrainConfig
    accelerator: Accelerator
    optimisation: Optimisation
    objective: Objective
    plan: Plan
    source: Source
    preprocessing: Preprocessing
    held: Sequence[int]
    """Images held back, in an order drawn from the seed."""
    probe: Probe | None
    batch_size: int
    """Images a forward pass, when scoring."""
    progress: Callable[[str], None]

    @property
    def average(self) -> SavedModel:
        """The moving average of the weights."""
        return self.optimisation.average

    def open(self, step: int) -> None:
        """Write the config; cut the log back to the step that the run goes on from; start the tracker.

        Raises:
            TrainingError: the run folder cannot be written.
        """
        self.accelerator.wait_for_everyone()  # each has read the config that was there
        if self.accelerator.is_main_process:
            try:
                # In this order: a config.toml alone would be the folder of an earlier version.
                write_text(self.out / "run.json", self.plan.to_json())
                write_text(self.out / "config.toml", sealed_toml(self.config.to_toml()))
                self._cut_log(step)
            except OSError as error:
                raise TrainingError(
                    f"{self.out}: the run folder cannot be written ({error.strerror}); "
                    "make room, or choose another path"
                ) from error
        if self.accelerator.log_with:
            self.accelerator.init_trackers(self.average.name, dict(_flat(asdict(self.config))))
        self.accelerator.wait_for_everyone()

    def _cut_log(self, step: int) -> None:
        path = self.out / "log.jsonl"
        text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
        kept, damaged = [], []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, TypeError, KeyError, RecursionError):
                damaged.append(number)
        if kept and damaged and damaged != [len(text.splitlines())]:
            # The last line alone is half a row, where the run was killed.
            logger.warning(
                "%s: %d damaged rows left out, line %d the first", path, len(damaged), damaged[0]
            )
        write_text(path, "".join(kept))

    def close(self) -> None:
        """Let the tracker write what it holds."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def evaluate(self, step: int) -> dict[str, Any]:
        """Score the average and the weights on held-back images, 512 at most; write a sample sheet."""
        total = self.objective.total
        row = self._score("held_back", self.average)
        with self.optimisation.average_as_weights() as weights:
            scored = self._score("held_back_weights", weights)
        if self.accelerator.is_main_process and row[f"held_back_{total}"] is not None:
            self._samples(step)
        key = f"held_back_weights_{total}"
        return row | {key: scored[key], "held_back_images": len(self.held[:WATCHED])}

    def _score(self, prefix: str, model: SavedModel) -> dict[str, Any]:
        terms = self.objective.score(
            model,
            self.source,
            self.preprocessing,
            self.held[:WATCHED],
            batch_size=self.batch_size,
            seed=self.recipe.seed,
        )
        row = self.objective.named(terms, model)
        return {f"{prefix}_{key}": value for key, value in row.items()}

    def behind(self, row: Mapping[str, Any]) -> str | None:
        """Return a line where the average, which is what is saved, scores clearly worse than the weights."""
        average = row.get(f"held_back_{self.objective.total}")
        weights = row.get(f"held_back_weights_{self.objective.total}")
        if average is None or weights is None or average - weights <= DIFFERENT * weights:
            return None
        return (
            f"the model saved, the average, scores {_rounded(average)} {self.objective.unit} on the images "
            f"held back, the weights {_rounded(weights)}; train longer, or with train.ema_warmup = true or "
            "a lower train.ema_rate"
        )

    def probe_layers(self) -> dict[str, Any]:
        """Probe the moving average's layers, on the main process."""
        if self.probe is None or not self.accelerator.is_main_process:
            return {}
        accuracy = self.probe.accuracy(cast(VDVAE, self.average), self.preprocessing)
        return {"probe_accuracy": accuracy, "probe_images": len(self.probe.indices)}

    def log(self, row: Mapping[str, Any], steps: int) -> None:
        """Append a row to the log, hand its numbers to the tracker, and report it in one line."""
        if not self.accelerator.is_main_process:
            return
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        step, speed = row["step"], row["images_per_second"]
        if self.accelerator.trackers:
            numbers = {k: v for k, v in _flat(row) if isinstance(v, int | float)}
            self.accelerator.log(numbers, step=step)
        line = f"step {step}/{steps}"
        total = self.objective.total
        if total in row:
            line += f"  {_rounded(row[total])} {self.objective.unit}"
        if f"held_back_{total}" in row:
            average, weights = row[f"held_back_{total}"], row[f"held_back_weights_{total}"]
            line += f"  {_rounded(average)} held back"
            if None in (average, weights) or abs(average - weights) > DIFFERENT * weights:
                line += f" (the average; the weights {_rounded(weights)})"
        if "probe_accuracy" in row:
            best = max(row["probe_accuracy"], key=row["probe_accuracy"].get)
            line += f"  probe {row['probe_accuracy'][best]:.3f} at {best}"
        line += f"  {speed:.1f} images/s"
        if speed:
            eta = (steps - step) * self.recipe.batch_size / speed
            line += f"  ETA {eta // 3600:.0f}:{eta // 60 % 60:02.0f}:{eta % 60:02.0f}"
        self.progress(f"{line}  {row['skipped']} skipped")

    def _samples(self, step: int) -> None:
        """Write held-back images, and below them what the model makes of them, or draws."""
        average, count = self.average, min(8, len(self.held))
        images = read_images(self.source, self.preprocessing, self.held[:count])
        rows, labels = [images], ["held back"]
        for label, row in self.objective.progress_rows(average, images):
            rows.append(row)
            labels.append(label)
        if len(rows) == 1:
            return
        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{step:08d}.png"
        try:
            save_sheet(np.concatenate(rows), path, columns=count, labels=labels)
        except DataError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from error  # a full disk, which the run reports as its own
            raise


def _rounded(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a nested table's values under keys joined by `/`."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif value is not None:
            yield prefix + key, value
