"""What a report holds, and how a results folder keeps it: `read` finds what `save` wrote there."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vdvae_repr.config import path_of
from vdvae_repr.errors import TaskError, first_line
from vdvae_repr.output import BANDS, CONFUSION, FORMULA, MARK, VOXELS, write_table, write_text
from vdvae_repr.results import Comparison, Confusion, Curve, Result, SamplingCost, Similarity

CURVES = "curves.csv"
CONFUSIONS = "confusion.csv"
RECORD = "report.json"
ORIGIN = "similarity.json"  # of what `compare` wrote
SIMILARITY_FILE = re.compile(r"similarity(?:-(?P<feature>(?!shuffled).+))?\.csv")
SHUFFLED = "-shuffled.csv"
TABLES = re.compile(r"voxels\.csv|bands(-.*)?\.csv")
# What is read of a report, and of what `compare` wrote, beside their records, which hold a hash of each file.
READ = re.compile(
    r"results\.jsonl|(comparisons|beside|noise|rate_accuracy|curves|confusion)\.csv"
    rf"|{TABLES.pattern}|similarity-(?!shuffled\.).+\.csv"
)
READ_OF_COMPARE = re.compile(r"similarity(-shuffled)?\.csv")
NAMES = ("rois", "best_layer", "head", "layer", "band")  # columns of `TABLES` that are text
WHOLE = ("AUC", "EER")  # figures of a whole curve
T = TypeVar("T")


@dataclass(kw_only=True)
class Findings:
    """What was found, and where it comes from; empty where there is nothing.

    `Report`, which adds what is done with them, says what the attributes are.
    """

    rows: list[Result] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    beside: list[Comparison] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    headlines: list[str] = field(default_factory=list)
    more_heads: list[str] = field(default_factory=list)
    sampling_costs: list[SamplingCost] = field(default_factory=list)
    nats: dict[str, float] = field(default_factory=dict)
    similarity: dict[str, Similarity] = field(default_factory=dict)
    called: dict[str, str] = field(default_factory=dict)
    record: dict[str, str] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


def write_curves(curves: Sequence[Curve], folder: Path) -> None:
    """Write the points of all curves as `curves.csv`, where there are curves.

    Raises:
        OSError: it cannot be written.
    """
    if not curves:
        return
    points = [
        pd.DataFrame(
            {"kind": c.kind, "head": c.head, "model": c.model, "layer": c.layer, "x": c.x, "y": c.y}
            | {"low": c.low, "high": c.high}
            | {name: c.figures.get(name) for name in WHOLE}
        )
        for c in curves
    ]
    write_table(pd.concat(points), folder / CURVES)


def write_confusions(confusions: Sequence[Confusion], folder: Path) -> None:
    """Write the counts of all confusions as `confusion.csv`, where there are confusions.

    A line is a true class and what it is taken for; there is none where that never happens, but each class
    has one with itself, so that the file holds all classes in their order.

    Raises:
        OSError: it cannot be written.
    """
    if not confusions:
        return
    columns = CONFUSION.split(",")
    lines = []
    for found in confusions:
        of = [getattr(found, name) for name in columns[:-3]]
        shown = np.argwhere((found.counts > 0) | np.eye(len(found.classes), dtype=bool))
        lines += [
            [
                *of,
                found.classes[truth],
                found.classes[predicted],
                int(found.counts[truth, predicted]),
            ]
            for truth, predicted in shown.tolist()
        ]
    write_table(pd.DataFrame(lines, columns=columns), folder / CONFUSIONS)


def write_record(findings: Findings, folder: Path) -> None:
    """Write as `report.json` what stands in no table, and a hash of each file that `read` reads.

    Raises:
        OSError: it cannot be written.
    """
    content = {
        "software": MARK,
        "record": findings.record,
        "called": findings.called,
        "headlines": findings.headlines,
        "notes": findings.notes,
        "more_heads": findings.more_heads,
        "files": _hashes(folder, READ),
    }
    write_text(folder / RECORD, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_origin(similarity: Similarity, folder: Path) -> None:
    """Write as `similarity.json` what was compared, and a hash of each table of it.

    Raises:
        OSError: it cannot be written.
    """
    content = {
        "software": MARK,
        "record": dict(similarity.record),
        "files": _hashes(folder, READ_OF_COMPARE),
    }
    write_text(folder / ORIGIN, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _hashes(folder: Path, names: re.Pattern[str]) -> dict[str, str]:
    """Return the SHA-256 of each file of these names in a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if names.fullmatch(path.name) and path.is_file()
    }


def _expect_unchanged(folder: Path, names: re.Pattern[str], recorded: Mapping[str, str]) -> None:
    """Refuse files that are not those a record was written with: changed, missing, or of something else."""
    hashes = _hashes(folder, names)
    for name in sorted({*hashes, *recorded}):
        if hashes.get(name) != recorded.get(name):
            why = "is missing" if name not in hashes else "was changed since"
            why = why if name in recorded else "is not of these results"
            raise _damaged(folder / name, ValueError(f"it {why}"))


def read(folder: str | Path) -> Findings:
    """Read what `probe --out`, `Report.save` or `compare --out` left in a folder.

    Raises:
        TaskError: no such folder, one that holds no results, or a file in it that is not as it was written.
    """
    folder = path_of("folder", folder)
    if not folder.is_dir():
        thing = "a file" if folder.exists() else "nothing"
        raise TaskError(
            f"{folder}: expected a folder of results, which a probe saves, found {thing}"
        )
    found = Findings()
    if (path := folder / "results.jsonl").is_file():
        found.rows = [_made(Result, line, path) for line in _json_lines(path)]
    found.similarity = _similarity(folder)
    if not found.rows and not found.similarity:
        raise TaskError(
            f"{folder}: holds no results (results.jsonl, or similarity.csv); give a folder that a probe saved"
        )
    found.comparisons = list(_records(folder / "comparisons.csv", Comparison))
    found.beside = list(_records(folder / "beside.csv", Comparison))
    found.sampling_costs = list(_records(folder / "noise.csv", SamplingCost))
    found.nats = {
        _value(row["layer"], str): _number(row, "nats", folder / "rate_accuracy.csv")
        for row in _table(folder / "rate_accuracy.csv")
        if "layer" in row
    }
    found.curves = list(_curves(folder / CURVES))
    found.confusions = list(_confusions(folder / CONFUSIONS))
    found.tables = dict(_tables(folder))
    if (path := folder / RECORD).is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for name in ("record", "called"):
                setattr(found, name, {str(k): str(v) for k, v in content[name].items()})
            for name in ("headlines", "notes", "more_heads"):
                setattr(found, name, [str(line) for line in content[name]])
            recorded = dict(content["files"]) if "files" in content else None  # of earlier versions
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, error) from error
        if recorded is not None:
            _expect_unchanged(folder, READ, recorded)
    return found


def _json_lines(path: Path) -> Iterator[Any]:
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line, parse_constant=_no_number)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _no_number(text: str) -> None:
    raise ValueError(f"it holds {text}")


def _table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table by column, as text; none where there is no such file."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise _damaged(path, error) from error


def _records(path: Path, kind: type[T]) -> Iterator[T]:
    """Yield the rows of a table as what was written into it."""
    hints = get_type_hints(kind)
    for row in _table(path):
        if set(row) == set(hints):
            try:
                row_values = {name: _value(row[name], hint) for name, hint in hints.items()}
            except (ValueError, TypeError) as error:
                raise _damaged(path, error) from error
            yield _made(kind, row_values, path)
        else:
            raise _damaged(path, ValueError("columns are missing, or more than were written"))


def _value(cell: str, hint: Any) -> Any:
    """Return a cell as a value of a field's type; an empty one is None where that may be."""
    kinds = get_args(hint) or (hint,)
    if not cell and NoneType in kinds:
        return None
    if bool in kinds:
        return cell == "True"
    for kind in (float, int):
        if kind in kinds:
            return kind(cell)
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def _made(kind: type[T], values: Any, path: Path) -> T:
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or set(values) != names:
        raise _damaged(path, ValueError("fields are missing, or more than were written"))
    return kind(**values)


def _curves(path: Path) -> Iterator[Curve]:
    points: dict[tuple[str, str, str, str], list[list[float]]] = {}
    columns = ("x", "y", "low", "high", *WHOLE)
    try:
        for row in _table(path):
            kind, head, model, layer = (
                _value(row[name], str) for name in ("kind", "head", "model", "layer")
            )
            key = kind, head, model, layer
            values = [float(row[name]) if row[name] else np.nan for name in columns]
            points.setdefault(key, []).append(values)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    for (kind, head, model, layer), of_curve in points.items():
        x, y, low, high, *whole = np.array(of_curve).T
        of_all = {name: float(column[0]) for name, column in zip(WHOLE, whole, strict=True)}
        yield Curve(
            kind,
            head,
            model,
            layer or None,
            x,
            y,
            None if np.isnan(low).any() else low,
            None if np.isnan(high).any() else high,
            {name: value for name, value in of_all.items() if not np.isnan(value)},
        )


def _confusions(path: Path) -> Iterator[Confusion]:
    hints = get_type_hints(Confusion)
    *of, _, _, _ = CONFUSION.split(",")
    cells: dict[tuple[Any, ...], list[tuple[str, str, int]]] = {}
    try:
        for row in _table(path):
            key = tuple(_value(row[name], hints[name]) for name in of)
            truth, predicted = (_value(row[name], str) for name in ("truth", "predicted"))
            cells.setdefault(key, []).append((truth, predicted, int(row["images"])))
        for key, counted in cells.items():
            classes = tuple(dict.fromkeys(truth for truth, _, _ in counted))
            place = {name: number for number, name in enumerate(classes)}
            counts = np.zeros((len(classes), len(classes)), np.int64)
            for truth, predicted, images in counted:
                if images < 0:
                    raise ValueError("a count is below 0")
                counts[place[truth], place[predicted]] = images
            about: dict[str, Any] = dict(zip(of, key, strict=True))
            yield Confusion(**about, classes=classes, counts=counts)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def _tables(folder: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield tables of encoding by name, with their columns as they were written."""
    for path in sorted(folder.iterdir()):
        if TABLES.fullmatch(path.name):
            try:
                # Names stay text, also those that look like numbers, or are empty.
                numbers = [*VOXELS.split(",")[3:], "r2"]
                table = pd.read_csv(
                    path,
                    dtype=dict.fromkeys(NAMES, str),
                    keep_default_na=False,
                    na_values={number: [""] for number in numbers},
                )
                for name in table.columns.intersection([*NAMES]):
                    table[name] = table[name].map(lambda cell: _value(cell, str))
            except (OSError, ValueError) as error:
                raise _damaged(path, error) from error
            expected = VOXELS if path.stem == "voxels" else BANDS
            if ",".join(table.columns) != expected:
                raise _damaged(path, ValueError("columns are missing, or more than were written"))
            yield path.stem, table


def _similarity(folder: Path) -> dict[str, Similarity]:
    found = {}
    for path in sorted(folder.iterdir()):
        match = SIMILARITY_FILE.fullmatch(path.name)
        if match is None or path.name.endswith(SHUFFLED):
            continue
        cka, layers, others = _matrix(path)
        shuffled, *names = _matrix(path.with_name(path.stem + SHUFFLED))
        if names != [layers, others]:
            raise _damaged(path, ValueError("the table of shuffled images is of other layers"))
        found[match["feature"] or ""] = Similarity(cka, shuffled, layers, others)
    if "" in found and (path := folder / ORIGIN).is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            record = {str(k): str(v) for k, v in content["record"].items()}
            recorded = dict(content["files"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, error) from error
        _expect_unchanged(folder, READ_OF_COMPARE, recorded)
        models = record.get("rows_model", ""), record.get("columns_model", "")
        found[""] = replace(found[""], models=models, record=record)
    return found


def _matrix(path: Path) -> tuple[NDArray[np.float64], tuple[str, ...], tuple[str, ...]]:
    try:  # all cells as text: a layer called 0.10 is not 0.1
        table = pd.read_csv(path, header=None, dtype=str, keep_default_na=False).to_numpy()
        values = table[1:, 1:].astype(np.float64)
        index, columns = (
            [_value(name, str) for name in side] for side in (table[1:, 0], table[0, 1:])
        )
    except (OSError, ValueError, IndexError) as error:
        raise _damaged(path, error) from error
    return values, tuple(index), tuple(columns)


def _number(row: Mapping[str, str], column: str, path: Path) -> float:
    try:
        return float(row[column])
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> TaskError:
    return TaskError(f"{path}: is not as this version wrote it ({first_line(error)}); probe again")
