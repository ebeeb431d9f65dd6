"""`classification`: of which class is it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vdvae_repr.heads.linear import LogisticProbe, Ridge
from vdvae_repr.heads.neighbors import WeightedNeighbors
from vdvae_repr.heads.sgd import SGDProbe
from vdvae_repr.latents.base import Latents
from vdvae_repr.probing.task import Problem, Task
from vdvae_repr.tasks.identification import Identification, TaskLabels

CLASSES = TaskLabels(
    task="classification", train="train", test="test", item="class", many="classes"
)
HEADS: dict[str, Any] = {
    "knn": WeightedNeighbors(),
    "knn-dino": WeightedNeighbors(center=False),
    "ridge": Ridge(),
    "linear-lbfgs": LogisticProbe(),
    "linear-sgd": SGDProbe(),
}
METRICS = ("accuracy", "balanced_accuracy", "top5")


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Of which class is it? Split train against test; choices are made on val, where there is one.

    Without splits the first half of each class's images is learned from. A head's name is its protocol.
    Intervals and comparisons resample test images.
    """

    name: ClassVar[str] = "classification"
    version: ClassVar[int | None] = 2

    def bind(self, store: Latents, seed: int = 0) -> Problem:
        """Return training and test images."""
        return Identification(
            store, CLASSES, HEADS, METRICS, of_people=False, default_heads=("knn", "ridge")
        )
