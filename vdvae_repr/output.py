"""Result files: each is written whole or not at all, and takes the place of our own earlier one alone.

What this package wrote is known by its content: pictures carry the text `Software: vdvae-repr`, pages name
it as their generator, tables and JSON lines have exactly the columns that no other program writes: one to
which somebody added a column is theirs. So nothing else need lie beside them.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from vdvae_repr.errors import TaskError, printable

if TYPE_CHECKING:
    import pandas as pd

MARK = "vdvae-repr"  # who wrote a figure or a page: Software of a PNG, Creator of a PDF or SVG
GENERATOR = f'<meta name="generator" content="{MARK}'  # in the head of every page
PAGE_BYTES = 4096  # of a page, in which that stands
FIGURES = ("png", "pdf", "svg")  # formats of figures
# The first column of similarity.csv and of similarity-shuffled.csv, and of factors-METRIC.csv.
SIMILARITY = ("debiased linear CKA", "debiased linear CKA, images shuffled")
FACTORS = ("r2", "pearson", "balanced_accuracy")
# Columns of results.csv and results.jsonl, comparisons.csv and beside.csv, curves.csv, confusion.csv,
# noise.csv and rate_accuracy.csv.
RESULTS = (
    "task,protocol,head,model,role,weights_sha256,source,layer,selection,feature,pool,scaling,dims,n_train,"
    "n_test,units,metric,at,value,ci_low,ci_high,interval,se,std,chance,ceiling_low,ceiling_high,"
    "training_score,chosen,versus,difference,diff_low,diff_high,p_value,seed,transductive,seconds,"
    "controls_left_out"
)
COMPARISONS = (
    "task,protocol,head,n_train,model,layer,selection,feature,pool,metric,at,value,versus,versus_layer,"
    "versus_dims,versus_value,difference,diff_low,diff_high,p_raw,p_value,units,why,verdict"
)
RESULTS_BEFORE = (
    "task,protocol,head,model,weights_sha256,source,layer,feature,pool,standardised,dims,n_train,n_test,"
    "metric,value,ci_low,ci_high,se,std,chance,chosen,p_value,seed,transductive,seconds"
)
CURVES = "kind,head,model,layer,x,y,low,high,AUC,EER"
CONFUSION = "head,n_train,model,layer,selection,feature,pool,truth,predicted,images"
# Keys of report.json, of those of versions before this one, and of similarity.json.
RECORD = ["software", "record", "called", "headlines", "notes", "more_heads", "files"]
RECORDS = (RECORD, RECORD[:-1], ["software", "record", "files"])
NOISE = (
    "head,n_train,layer,selection,pool,dims,draws,metric,mean,one_z,mean_of_z,p_one_z,p_mean_of_z"
)
RATE_ACCURACY = "nats,head,feature,pool,layer,dims,metric,at,value,ci_low,ci_high"
# Columns of voxels.csv and bands.csv, of encoding.
VOXELS = "voxel,rois,best_layer,left_out_r2,pearson,r2,p_value,q_value,noise_ceiling,split_half"
BANDS = "head,layer,band,r2"
EARLIER = (  # of versions before this one
    RESULTS_BEFORE,
    f"{RESULTS_BEFORE},controls_left_out",
    RATE_ACCURACY.replace("at,", ""),
    RESULTS.replace("ceiling_low,ceiling_high,", ""),
)
FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)  # the last four are wide ones
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-](inf|nan)", re.ASCII)
NETWORK = f"{MARK} network"  # who exported a network, in its metadata
CREATOR = {  # how a figure, or an exported network, says who made it
    ".pdf": f"/Creator ({MARK})".encode(),
    ".svg": f"<dc:title>{MARK}</dc:title>".encode(),
    ".onnx": NETWORK.encode(),
    ".pt2": NETWORK.encode(),
}
HEADER_BYTES = 2**20  # of a table, at most


def version() -> str:
    """Return this package's version, also where a checkout on Python's path was never installed."""
    try:
        return importlib.metadata.version(MARK)
    except importlib.metadata.PackageNotFoundError:
        return "a checkout that is not installed"


def is_own(path: Path) -> bool:
    """Return whether a figure, network, table, record or page (`.html`) was written by this package."""
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path, formats=["PNG"]) as picture:
                return picture.info.get("Software") == MARK
        if path.suffix.lower() in CREATOR:
            return CREATOR[path.suffix.lower()] in path.read_bytes()
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".html":
                return GENERATOR in file.read(PAGE_BYTES)
            if path.suffix == ".json":
                return list(content := json.load(file)) in RECORDS and content["software"] == MARK
            line = file.readline(HEADER_BYTES)
            if path.suffix == ".jsonl":
                return ",".join(json.loads(line)) in (RESULTS, *EARLIER)
            columns = next(csv.reader([line]))
            # Of these tables the other columns are names, and below them stand numbers.
            if columns and columns[0].partition(": ")[0] in (*SIMILARITY, *FACTORS):
                rows = csv.reader(file)
                return all(len(row) == len(columns) and _are_numbers(row[1:]) for row in rows)
        ours = (RESULTS, COMPARISONS, CURVES, CONFUSION, NOISE, RATE_ACCURACY, VOXELS, BANDS)
        return ",".join(columns) in (*ours, *EARLIER)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, csv.Error, StopIteration):
        return False


def _are_numbers(cells: Iterable[str]) -> bool:
    return all(not cell or NUMBER.fullmatch(cell) or cell in ("nan", "inf") for cell in cells)


def refuse_formats(formats: Sequence[str]) -> None:
    """Refuse what is no format of figures.

    Raises:
        TaskError: names it.
    """
    if isinstance(formats, str) or not formats:
        raise TaskError(f"formats: expected a list of {', '.join(FIGURES)}, found {formats!r}")
    if unknown := [kind for kind in formats if kind not in FIGURES]:
        raise TaskError(f"formats: expected {', '.join(FIGURES)}, found {unknown[0]!r}")


def refuse_others(paths: Iterable[Path]) -> None:
    """Refuse to replace what this package did not write.

    Raises:
        TaskError: names the first file, or folder, that would be lost.
    """
    for path in paths:
        if os.path.lexists(path) and not is_own(path):
            raise TaskError(
                f"{path}: exists, and was not made by {MARK}, so it is not replaced; "
                "choose another path"
            )


def prepare_folder(folder: str | Path, names: re.Pattern[str]) -> Path:
    """Make a folder for results, before they take time.

    Raises:
        TaskError: it cannot be made or written, or holds a file of these names that is not ours.
    """
    folder = Path(folder)
    try:
        make_folder(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
        refuse_others(path for path in sorted(folder.iterdir()) if names.fullmatch(path.name))
    except OSError as error:
        raise TaskError(
            f"{folder}: cannot be made, or written ({error.strerror}); choose another path"
        ) from error
    return folder


def expect_writable(path: Path) -> None:
    """Refuse a file that could not be written, before what it holds takes time. Nothing is made.

    Raises:
        OSError: the folder that is there, of those above it, takes no file.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def put_in_place(aside: Path, path: Path) -> None:
    """Rename a finished file or folder to `path`, in an order that a power cut cannot turn round.

    Its content reaches the disk before the rename, and the rename before this function returns. What it makes
    superfluous may be removed afterwards, and not earlier. A file or folder that had this name goes.

    Raises:
        OSError: the disk did not take it.
    """
    for written in (*aside.rglob("*"), aside) if aside.is_dir() else (aside,):
        _flush(written)
    former = aside_of(path).with_suffix(".former")
    if aside.is_dir():  # which takes the place of no other by a rename
        shutil.rmtree(former, ignore_errors=True)
        if path.is_dir():
            path.replace(former)
    aside.replace(path)
    _flush(path.parent)
    if path.is_dir():
        shutil.rmtree(former, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that a power cut does not take what is written there.

    Raises:
        OSError: it cannot be made.
    """
    made = [new for new in (folder, *folder.parents) if not new.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for new in made:
        _flush(new.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    A folder that may be written and not read cannot be flushed, nor can one on some network file systems:
    there the names are left to the system.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of `path` once everything is written.

    A process that is killed leaves what was there; the next one to write `path` clears away the rest. Of two
    processes the second waits. What writes by name instead of into an open file writes to `aside_of(path)`.

    Args:
        path: in a folder that is made if need be.
        durable: that not even a power cut leaves half of it, as in `put_in_place`.

    Raises:
        OSError: it cannot be written.
    """
    make_folder(path.parent)
    aside = aside_of(path)
    file = _open_locked(aside)
    try:
        file.truncate()
        yield file
        file.flush()
        if durable:
            put_in_place(aside, path)
        else:
            aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    finally:
        file.close()


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, as `replacing` does.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode())


def write_table(table: pd.DataFrame, path: Path, index: str | None = None) -> None:
    """Write a table as `as_csv` makes it, in UTF-8.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, as_csv(table, index))


def as_csv(table: pd.DataFrame, index: str | None = None) -> str:
    """Return a table as CSV; its index as a column of that name, if one is given.

    Text is written as `inert` makes it, so that a spreadsheet shows names from files and runs none of them.
    """
    table = table.rename(index=inert, columns=inert)
    text = table.select_dtypes(exclude=["number", "bool"]).columns
    table = table.assign(**{column: table[column].map(inert) for column in text})
    return table.to_csv(index=index is not None, index_label=index, lineterminator="\n")


def inert(value: Any) -> Any:
    """Return text as a cell that a spreadsheet shows and does not calculate; other values as they are.

    Control characters become their escapes; before what begins a formula stands an apostrophe, as OWASP
    advises, but text that is a number stays one.

    Examples:
        >>> inert("=1+1"), inert("-0.5"), inert("-lr"), inert(-0.5)
        ("'=1+1", '-0.5', "'-lr", -0.5)
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text


def aside_of(path: Path) -> Path:
    """Return where a file is written first: beside it, under a name that is never too long."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()
    return path.with_name(f".{MARK}-{digest[:16]}.writing")


@contextmanager
def replacing_folder(folder: str | Path, names: re.Pattern[str]) -> Iterator[Path]:
    """Yield an empty folder; once everything is written there, it replaces an earlier run's files.

    All of the earlier files of these `names` go, so that no picture lies beside rows of another run. While
    the files are exchanged the first one (JSON lines, then CSV, then others; of several that of the shortest
    name) is never missing, and stands beside files of its own run alone. Of two processes the second waits.

    Raises:
        TaskError: as `prepare_folder`, or there is no room.
    """
    folder = prepare_folder(folder, names)
    aside = folder / f".{MARK}.writing"
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                yield aside
                kinds = [".jsonl", ".csv", ".json", *(f".{kind}" for kind in FIGURES), ".html"]
                written = sorted(
                    aside.iterdir(),
                    key=lambda path: (kinds.index(path.suffix), len(path.name), path.name),
                )
                for path in written:  # while what was there is whole: the disk may be full
                    _flush(path)
                for path in list(folder.iterdir()):
                    if names.fullmatch(path.name) and path.name != written[0].name and is_own(path):
                        path.unlink()
                _flush(folder)
                for path in written[:1]:
                    put_in_place(path, folder / path.name)
                for path in written[1:]:
                    path.replace(folder / path.name)
                _flush(folder)
            finally:  # only by whom the folder is locked: it may be another process's otherwise
                shutil.rmtree(aside, ignore_errors=True)
        finally:
            os.close(handle)
    except OSError as error:
        raise TaskError(
            f"{folder}: cannot be written ({error.strerror or error}); make room, or choose "
            "another path"
        ) from error


def _open_locked(path: Path) -> BinaryIO:
    """Open a file for writing once no other process writes it."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except FileNotFoundError:
            pass
        file.close()  # the other process renamed it


def html_table(title: str, rows: Mapping[str, str]) -> str:
    """Return names and values as a table for a notebook; text from files is text there too."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(printable(name))}</th>"
        f"<td style='text-align:left'>{escape(printable(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption>{escape(printable(title))}</caption>{cells}</table>"
