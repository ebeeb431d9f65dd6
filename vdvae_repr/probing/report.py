"""What a probe found: rows, comparisons, curves and notes; as a table, as files, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vdvae_repr import results
from vdvae_repr.probing.answer import answer
from vdvae_repr.results import Comparison, Curve, Result, SamplingCost, Similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEPT_IN = "scores are kept in "  # begins the note of where


@dataclass
class Report:
    """What `vr.probe` returns.

    Attributes:
        rows: a figure each, with everything needed to read it. Of a head and a model one is `chosen`, by
            training data. `layer` is a selector of exactly what is in it: `8x8.2` singly, `0:12` all layers
            up to one, `1x1,4x4` all resolutions but one; or `10 % by kl`.
        comparisons: of each head's chosen row with that of each rival; `verdict` says in words how it stands.
        curves: CMC or ROC of chosen rows.
        notes: what the reader must know: the split, what was left out.
        headlines: what was asked of how much, a line each task and size of it.
        more_heads: names of the task's heads that were not asked for.
        sampling_costs: what drawing costs each layer, where a store of draws was given.
        nats: that the layers of each cumulative row spend together, the images' mean, by its selector.
    """

    rows: list[Result] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    headlines: list[str] = field(default_factory=list)
    more_heads: list[str] = field(default_factory=list)
    sampling_costs: list[SamplingCost] = field(default_factory=list)
    nats: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the answer: what is best, whether it beats the controls, and the notes; 30 lines at most."""
        about = [note for note in self.notes if not note.startswith(KEPT_IN)]  # no figure's matter
        return self._answer("every row: report.table()", about)

    def answer(self, asked_next: str = "every row: report.table()") -> str:
        """Return the answer as text, without the notes, which are logged as soon as they are known.

        Args:
            asked_next: ends it: where every row is to be seen.
        """
        return self._answer(asked_next)

    def _answer(self, asked_next: str, notes: Sequence[str] = ()) -> str:
        more = f"more heads: {', '.join(self.more_heads)} · " if self.more_heads else ""
        return answer(self.rows, self.comparisons, self.headlines, [more + asked_next], notes)

    def table(self) -> str:
        """Return all rows of each head's first metric as a table, `*` where chosen."""
        text = results.table(self.rows)
        if self.sampling_costs:
            text += f"\n\n{results.sampling_table(self.sampling_costs)}"
        return text

    def __repr__(self) -> str:
        """Say what was measured."""
        tasks = ", ".join(dict.fromkeys(f"{row.task} on {row.source}" for row in self.rows))
        return f"<Report {tasks}: {len(self.rows)} rows, {len(self.comparisons)} comparisons>"

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a table."""
        return results.to_frame(self.rows)

    def rate_accuracy(self) -> pd.DataFrame:
        """Return the nats spent up to each layer beside what all layers up to it are worth."""
        kept = (
            "head",
            "feature",
            "pool",
            "layer",
            "dims",
            "metric",
            "at",
            "value",
            "ci_low",
            "ci_high",
        )
        own = self.rows[0].model if self.rows else None  # models beside it spend other nats
        table = [
            {"nats": self.nats[row.layer]} | {name: getattr(row, name) for name in kept}
            for row in self.rows
            if row.layer in self.nats and row.model == own
        ]
        return pd.DataFrame(table, columns=["nats", *kept])

    def save(
        self,
        folder: str | Path,
        similarity: Mapping[str, Similarity] | None = None,
    ) -> None:
        """Write rows, tables and pictures into a folder, in place of what an earlier run left there.

        Args:
            folder: made if need be.
            similarity: what `vr.compare` says of the store's layers, by feature.

        Raises:
            TaskError: the folder cannot be written, or holds a file of these names that is not ours.
        """
        from vdvae_repr.report import pictures

        pictures.save(
            self.rows,
            folder,
            comparisons=self.comparisons,
            curves=self.curves,
            costs=self.sampling_costs,
            nats=self.nats,
            rate_accuracy=self.rate_accuracy(),
            similarity=similarity or {},
        )

    @property
    def plot(self) -> Plots:
        """Pictures of the report: `report.plot.layers()` returns axes."""
        return Plots(self)


@dataclass(frozen=True)
class Plots:
    """Pictures of a report, each drawn on `ax`, or on a figure of its own; they return axes."""

    report: Report

    def layers(
        self, metric: str | None = None, head: str | None = None, ax: Axes | None = None
    ) -> Axes:
        """Draw a metric by layer, with intervals, controls and chance; see `vr.plot.layers`."""
        from vdvae_repr.report import plots

        return plots.layers(self.report.rows, metric, head, ax)

    def shots(
        self, layer: str | None = None, metric: str | None = None, ax: Axes | None = None
    ) -> Axes:
        """Draw few-shot accuracy over shots; see `vr.plot.shots`."""
        from vdvae_repr.report import plots

        return plots.shots(self.report.rows, layer, metric, ax)

    def cmc(self, head: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the cumulative match curves of a head, the first if not given."""
        from vdvae_repr.report import plots

        return plots.cmc(self._lines("cmc", head), ax)

    def roc(self, head: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the ROC curves of a head, the first if not given."""
        from vdvae_repr.report import plots

        return plots.roc(self._lines("roc", head), ax)

    def _lines(self, kind: str, head: str | None) -> dict[str, Any]:
        curves = [curve for curve in self.report.curves if curve.kind == kind]
        head = head or (curves[0].head if curves else None)
        return {
            " ".join(filter(None, (curve.model, curve.layer))): (curve.x, curve.y)
            for curve in curves
            if curve.head == head
        }
