"""`omniglot_oneshot`: the 20 official runs of 20-way one-shot classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vdvae_repr.errors import TaskError
from vdvae_repr.heads.few_shot import HEADS, scaling_of
from vdvae_repr.latents.base import Latents
from vdvae_repr.probing.features import Features
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.task import Problem, Scored, Split, Task

# Of those of `few-shot`, all that need no base classes: nothing is outside the runs to centre on.
NAMES = ("nearest-prototype", "nearest-prototype-cosine", "logistic", "ridge")


@dataclass(frozen=True, kw_only=True)
class OmniglotOneShot(Task):
    """Protocol `omniglot-oneshot`: 20 runs, in each 20 queries to be told by 20 known drawings; error.

    Nothing is trained, so no layer is chosen; PCA is fitted on the known drawings. Runs are independent, as
    each is of other characters: intervals resample them, and comparisons flip the signs of their differences.
    Source: Lake et al. 2015, whose human error is 0.045, and that of the modified Hausdorff distance 0.388.
    """

    name: ClassVar[str] = "omniglot_oneshot"
    version: ClassVar[int | None] = 2

    def bind(self, store: Latents, seed: int = 0) -> Runs:
        """Return the official runs."""
        return Runs(store)


class Runs(Problem):
    """Runs of known drawings and queries; the outcome is whether each query is told wrong."""

    def __init__(self, store: Latents) -> None:
        if "run" not in store.factors or not {"train", "test"} <= set(store.splits):
            raise TaskError(
                f"{store.path}: expected the official runs; extract the data omniglot-runs"
            )
        self.runs = store.factors["run"]
        splits = np.array(store.splits)
        known, queries = (np.flatnonzero(splits == side) for side in ("train", "test"))
        for run in np.unique(self.runs):
            own = store.labels[known[self.runs[known] == run]]
            asked = store.labels[queries[self.runs[queries] == run]]
            if len(set(own)) < len(own) or not set(asked) <= set(own) or not len(asked):
                raise TaskError(
                    f"{store.path}: run {run}: expected queries, and one known drawing of each character "
                    "that is asked for"
                )
        runs = len(np.unique(self.runs))
        ways = len(known) / runs
        text = f"{runs} runs, {len(known)} known drawings, {len(queries)} queries"
        super().__init__(
            store,
            Split(known, queries, text=text),
            store.labels,
            heads={name: HEADS[name] for name in NAMES},
            metrics=["error"],
            units=self.runs,
            chance=1 - 1 / ways,
            default_heads=[name for name in NAMES if name != "logistic"],
        )
        self.sides = ()  # a drawing may be in several runs

    def counted(self) -> str:
        """Return what is official."""
        return f"{len(np.unique(self.runs))} runs, 1 shot, {self.n_test} queries"

    def protocol(self, head: Head) -> str:
        """Return the protocol's name."""
        return "omniglot-oneshot"

    def permutations(self, head: Head) -> int:
        """Return one: each run permutes its own labels, 20 times in all."""
        return 1

    def score(
        self, head: Head, features: Features, seed: int = 0, shuffled: bool = False
    ) -> Scored:
        """Tell each run's queries; the outcome is whether each of them is wrong, (Q,)."""
        X, rng = self.read(head, features), np.random.default_rng(seed)
        known, queries, labels = self.split.train, self.split.test, self.targets
        wrong, estimator = np.zeros(len(queries)), head.fresh(seed)
        for run in np.unique(self.runs):
            rows = known[self.runs[known] == run]
            here = np.flatnonzero(self.runs[queries] == run)
            y = rng.permutation(labels[rows]) if shuffled else labels[rows]
            estimator.fit(X[rows], y)
            told = head.classes_told(
                estimator.predict(X[queries[here]]), labels[rows].tolist(), len(here)
            )
            wrong[here] = told != labels[queries[here]]
        return Scored(features, wrong, scaling=scaling_of(head.estimator))
