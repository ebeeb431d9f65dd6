"""The published update: AdamW, warm-up, clipping, skipping, a moving average that moves on steps taken."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vdvae_repr.config import TrainConfig
from vdvae_repr.errors import CheckpointError
from vdvae_repr.model.base import SavedModel


class Optimisation:
    """A model, its moving average and AdamW, moved together (Child 2020; openai/vdvae train.py).

    `step` counts updates, skipped ones included: the schedule follows it. `at_rate_0` counts those that were
    taken with a rate of 0, as the first of the schedule, and changed no weight.

    Args:
        model: what is trained.
        recipe: the schedule and its limits.
        average_warmup: let the moving average begin short; without, it is the published one. `train` passes
            `recipe.ema_warmup`.
    """

    def __init__(
        self, model: SavedModel, recipe: TrainConfig, *, average_warmup: bool = False
    ) -> None:
        self.model = model
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.recipe = recipe
        self.average_warmup = average_warmup
        self.step = 0
        self.skipped = 0
        self.at_rate_0 = 0
        self.adamw = torch.optim.AdamW(
            model.parameters(),
            lr=recipe.lr,
            betas=(0.9, 0.9),
            weight_decay=recipe.weight_decay,
            fused=True,
        )

    @property
    def learning_rate(self) -> float:
        """Rate of the next update: linear from 0 over the warm-up."""
        return self.recipe.lr * min(1.0, self.step / max(self.recipe.warmup_steps, 1))

    @property
    def rate_weight(self) -> float:
        """Weight of the rate in the loss: 1, or linear from 0 over `kl_warmup_steps`."""
        steps = self.recipe.kl_warmup_steps
        return min(1.0, self.step / steps) if steps else 1.0

    @property
    def average_rate(self) -> float:
        """Decay of the moving average at the next update; t is the number of updates taken before it."""
        taken = self.step - self.skipped
        most = (1 + taken) / (10 + taken) if self.average_warmup else 1.0
        return min(self.recipe.ema_rate, most)

    @contextmanager
    def average_as_weights(self) -> Iterator[SavedModel]:
        """Lend the average's module with the weights in it, so that these are scored by the same code."""
        averages = list(self.average.parameters())
        kept = [parameter.data for parameter in averages]
        try:
            for parameter, weights in zip(averages, self.model.parameters(), strict=True):
                parameter.data = weights.data
            yield self.average
        finally:
            for parameter, values in zip(averages, kept, strict=True):
                parameter.data = values

    def clip(self) -> Tensor:
        """Scale gradients down to `grad_clip`; returns their norm before, a number on their device."""
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)

    def update(self, gradient_norm: float, finite: bool) -> bool:
        """Take the update, unless the loss was not finite or the norm is not below the threshold."""
        taken = finite and gradient_norm < self.recipe.skip_threshold
        if taken:
            for group in self.adamw.param_groups:
                group["lr"] = self.learning_rate
            self.adamw.step()
            self.at_rate_0 += self.learning_rate == 0
            averages: list[Tensor] = list(self.average.parameters())
            values: list[Tensor] = list(self.model.parameters())
            with torch.no_grad():
                torch._foreach_lerp_(averages, values, 1 - self.average_rate)
        else:
            self.skipped += 1
        self.adamw.zero_grad(set_to_none=True)
        self.step += 1
        return taken

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return everything that moves, by file and parameter name; `step` of AdamW included."""
        moments: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.adamw.state.get(parameter, {}).items():
                moments[f"{key}.{name}"] = value
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "adamw": moments,
        }

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], where: str) -> None:
        """Inverse of `tensors`.

        Raises:
            CheckpointError: tensors of another architecture.
        """
        remedy = "train with the [model] table that they are of"
        self.model.load_weights(tensors["model"], where, remedy)
        self.average.load_weights(tensors["average"], where, remedy)
        state: dict[int, dict[str, Any]] = {}
        for index, (name, weight) in enumerate(self.model.named_parameters()):
            moments = {
                key: tensors["adamw"].get(f"{key}.{name}")
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
            if all(value is None for value in moments.values()):
                continue
            shapes = [None if value is None else value.shape for value in moments.values()]
            if shapes != [torch.Size(), weight.shape, weight.shape]:
                raise CheckpointError(
                    f"{where}: expected AdamW's moments of {name}, found others; start from its weights alone"
                )
            state[index] = moments
        groups = self.adamw.state_dict()["param_groups"]
        self.adamw.load_state_dict({"state": state, "param_groups": groups})
        for parameter, entry in self.adamw.state.items():
            for key in ("exp_avg", "exp_avg_sq"):  # the fused update wants the parameter's layout
                entry[key] = torch.empty_like(parameter).copy_(entry[key])
