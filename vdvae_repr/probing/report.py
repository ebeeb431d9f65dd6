"""What a probe found: rows, comparisons, curves and notes; as a table, as files, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from vdvae_repr import results
from vdvae_repr.config import path_of
from vdvae_repr.errors import TaskError
from vdvae_repr.report.folder import Findings, read
from vdvae_repr.report.summary import answer
from vdvae_repr.results import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vdvae_repr.latents.base import Latents
    from vdvae_repr.model.vdvae import VDVAE

KEPT_IN = "scores are kept in "  # begins the note of where


@dataclass(kw_only=True)
class Report(Findings):
    """What `vr.probe` returns, or `Report.load` reads.

    Attributes:
        rows: a figure each, with everything needed to read it. Of a head and a model one is `chosen`, by
            training data. `layer` is a selector of exactly what is in it: `8x8.2` singly, `0:12` all layers
            up to one, `1x1,4x4` all resolutions but one; or `10 % by kl`.
        comparisons: of each head's chosen row with that of each control; `verdict` says how it stands.
        beside: the same with that of each model beside, with a verdict of its own, p after Holm over these.
        curves: CMC, ROC, or detection and identification rates, of chosen rows.
        confusions: of `classification` which class is taken for which, `counts` of test images (K, K), by the
            row of each head that is compared: the chosen one, where one is.
        notes: what the reader must know: the split, what was left out.
        headlines: what was asked of how much, a line each task and size of it.
        more_heads: names of the task's heads that were not asked for.
        sampling_costs: what drawing costs each layer, where a store of draws was given.
        nats: that the layers of each cumulative row spend together, the images' mean, by its selector.
        similarity: what `vr.compare` says of the store's layers, by feature; `probe --atlas` adds it. Of a
            folder that `vdvae-repr compare` wrote, of two stores, by the empty text.
        called: what pictures call models beside, by the name in their rows: with the file of their store.
        record: where all of it comes from, in words: version, date, command, store, images.
        tables: of what rows do not hold, by name: `voxels` and `bands` of encoding.
    """

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Read a report from the folder that `save`, or `vdvae-repr probe --out`, wrote.

        Raises:
            TaskError: no such folder, one that holds no results, or a file that is not as it was written.
        """
        return cls(**vars(read(folder)))

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
        footer = [more + asked_next]
        return answer(self.rows, self.comparisons, self.headlines, footer, notes, self.beside)

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

    def _repr_html_(self) -> str:
        """Show the answer in a notebook."""
        return f"<pre>{escape(str(self))}</pre>" if self.rows else escape(repr(self))

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
        formats: Sequence[str] = ("png",),
        latents: Latents | None = None,
        model: VDVAE | str | Path | None = None,
    ) -> None:
        """Write rows, tables, figures and the page, in place of what an earlier run left in the folder.

        Args:
            folder: made if need be.
            formats: of figures, one or several of `png`, `pdf` and `svg`.
            latents: the store that was probed, for pictures on the page, as `page` takes it.
            model: as `page` takes it.

        Raises:
            TaskError: nothing to write; the folder cannot be written, or holds a file of these names that is
                not ours; an unknown format. StoreError: a store of other images or weights than the report's.
        """
        from vdvae_repr.encoders.load import loaded
        from vdvae_repr.report import pictures

        pictures.save(
            self, path_of("folder", folder), self.rate_accuracy(), formats, latents, loaded(model)
        )

    def page(
        self,
        path: str | Path,
        latents: Latents | None = None,
        model: VDVAE | str | Path | None = None,
    ) -> None:
        """Write the report as one HTML file, which needs no network and no other file.

        Args:
            path: of the page, as `out/index.html`; an earlier page is replaced, never another file.
            latents: the store that was probed, for pictures: the nearest images of the same image by layer,
                and with `model` what the first layers rebuild; also the KL of each layer.
            model: that the store was extracted with, or what `load` takes.

        Raises:
            TaskError: nothing to show, or another file in the way. StoreError: a store of other images or
                weights than the report is of.
        """
        from vdvae_repr.encoders.load import loaded
        from vdvae_repr.report import page

        page.write(self, path, latents, loaded(model))

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

        return plots.layers(self.report.rows, metric, head, ax, called=self.report.called)

    def shots(
        self,
        layer: str | None = None,
        metric: str | None = None,
        head: str | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw few-shot accuracy over shots; see `vr.plot.shots`."""
        from vdvae_repr.report import plots

        return plots.shots(self.report.rows, layer, metric, head, ax, called=self.report.called)

    def cumulative(
        self, metric: str | None = None, head: str | None = None, ax: Axes | None = None
    ) -> Axes:
        """Draw the first layers together over the nats they spend; see `vr.plot.cumulative`."""
        from vdvae_repr.report import plots

        nats, model = self.report.nats, self.report.rows[0].model if self.report.rows else None
        rows = [
            row
            for row in self.report.rows
            if not row.feature or row.model != model or row.layer in nats
        ]
        used = dict.fromkeys(row.layer for row in rows if row.model == model and row.layer in nats)
        return plots.cumulative(rows, [nats[str(layer)] for layer in used], metric, head, ax)

    def cmc(self, head: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the cumulative match curves of a head, the first if not given; see `vr.plot.cmc`."""
        from vdvae_repr.report import plots

        return plots.cmc(self._curves("cmc", head), ax, called=self.report.called)

    def roc(self, head: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the ROC curves of a head, the first if not given; see `vr.plot.roc`."""
        from vdvae_repr.report import plots

        return plots.roc(self._curves("roc", head), ax, called=self.report.called)

    def detection(self, head: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw open-set identification of a head, the first if not given; see `vr.plot.detection`."""
        from vdvae_repr.report import plots

        return plots.detection(self._curves("dir", head), ax, called=self.report.called)

    def confusion(self, head: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw which class a head takes for which, the first head's if not given; see `vr.plot.confusion`.

        Raises:
            TaskError: the report holds no such counts, as of another task than `classification`.
        """
        from vdvae_repr.report import plots

        known = {found.head: found for found in self.report.confusions}
        if not known or head not in (None, *known):
            heads = (
                f"one of the heads {', '.join(known)}" if known else "a report of classification"
            )
            raise TaskError(f"confusion: expected {heads}, found {head or 'another'}")
        return plots.confusion(known[head or next(iter(known))], ax)

    def factors(self, metric: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw what each layer tells of each factor, by a metric, the first row's if not given."""
        from vdvae_repr.report import plots

        metric = metric or (self.report.rows[0].metric if self.report.rows else "r2")
        table = results.layer_by_factor(self.report.rows, metric)
        label = results.LABELS_OF_FACTORS[metric]
        return plots.factors(
            table.to_numpy(), list(table.index), list(table.columns), ax, metric=label
        )

    def rois(self, metric: str = "pearson", ax: Axes | None = None) -> Axes:
        """Draw what each layer tells of each region of a brain, of `encoding`; see `vr.plot.rois`."""
        from vdvae_repr.report import plots

        return plots.rois(self.report.rows, metric, ax)

    def voxels(self, ax: Axes | None = None) -> Axes:
        """Draw which layer is the best of how many voxels, of `encoding`; see `vr.plot.voxels`."""
        from vdvae_repr.report import plots

        if "voxels" not in self.report.tables:
            raise TaskError(
                "voxels: expected a report of encoding by the head ridge, found another"
            )
        return plots.voxels(self.report.tables["voxels"], ax)

    def _curves(self, kind: str, head: str | None) -> list[Curve]:
        curves = [curve for curve in self.report.curves if curve.kind == kind]
        head = head or (curves[0].head if curves else None)
        return [curve for curve in curves if curve.head == head]
