"""`face_id`: who is it, of the people in the gallery?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

from vdvae_repr.errors import TaskError
from vdvae_repr.heads.linear import LogisticProbe, Ridge
from vdvae_repr.heads.neighbors import NearestNeighbor
from vdvae_repr.heads.sgd import SGDProbe
from vdvae_repr.latents.base import Latents
from vdvae_repr.probing.task import Problem, Task, expect, several
from vdvae_repr.tasks.identification import Identification, TaskLabels
from vdvae_repr.tasks.open_set import OpenSet

FACES = TaskLabels(task="face_id", train="gallery", test="probe", item="person", many="people")
HEADS: dict[str, Any] = {
    "nearest-neighbor": NearestNeighbor(),
    "ridge": Ridge(),
    "linear-lbfgs": LogisticProbe(),
    "linear-sgd": SGDProbe(),
}
QUICK = ("nearest-neighbor", "ridge")  # heads that answer at once


@dataclass(frozen=True, kw_only=True)
class FaceId(Task):
    """Who is it? Protocols `closed-set` (rank 1, rank 5, CMC) and `open-set` (detection and identification).

    Split train is the gallery, without splits the first half of each person's images. Intervals and
    comparisons resample people.
    """

    name: ClassVar[str] = "face_id"
    version: ClassVar[int | None] = 1

    protocol: str = field(
        default="closed-set", metadata={"help": "closed-set, if not given, or open-set."}
    )
    far: Sequence[float] | None = field(
        default=None,
        metadata={
            "help": "A false accept rate, of open-set; those that there are impostors enough for."
        },
    )

    def __post_init__(self) -> None:
        """Check the options."""
        expect(self.protocol, "protocol", str, "closed-set or open-set")
        if self.protocol not in ("closed-set", "open-set"):
            raise TaskError(f"protocol: expected closed-set or open-set, found {self.protocol!r}")
        if self.far is None:
            return
        if self.protocol != "open-set":
            raise TaskError("far is an option of face_id's protocol open-set, not of closed-set")
        object.__setattr__(self, "far", several(self.far, "far", Real, "rates"))

    def bind(self, store: Latents, seed: int = 0) -> Problem:
        """Return a gallery and probes."""
        if self.protocol == "open-set":
            return OpenSet(store, FACES, HEADS, far=self.far, seed=seed, default_heads=QUICK)
        return Identification(
            store, FACES, HEADS, ("rank1", "rank5"), of_people=True, default_heads=QUICK
        )
