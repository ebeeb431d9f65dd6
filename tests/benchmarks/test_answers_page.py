"""The page of answers is made of what `probe --out` writes."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

import vdvae_repr as vr

PAGE = Path(__file__).parents[2] / "benchmarks" / "downstream" / "page.py"


def test_the_page_holds_each_answer_and_its_figures(tiny, people, tmp_path):
    store = vr.extract(tiny, people(6), tmp_path / "s.h5", layers="<=4x4")
    report = vr.probe(store, "face_id", heads=["ridge"], cache=None)
    report.save(tmp_path / "runs" / "tiny-orl-mean")
    (tmp_path / "runs" / "tiny-orl-mean.txt").write_text(str(report))
    command = [sys.executable, PAGE, tmp_path / "runs", "--rows", tmp_path / "rows.csv"]
    environment = os.environ | {"PYTHONPATH": str(PAGE.parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert str(report) in done.stdout
    (picked,) = [row for row in report.rows if row.versus]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("| ORL")]
    assert f"**{picked.value:.3f}** ({picked.layer})" in line
    assert f"{picked.difference:+.3f}" in line
    written = pd.read_csv(tmp_path / "rows.csv")
    assert len(written) == sum(row.metric == "rank1" for row in report.rows)


def test_a_network_beside_has_a_line_of_what_it_chose(tiny, people, tmp_path):
    store = vr.extract(tiny, people(6), tmp_path / "s.h5", layers="<=4x4")
    report = vr.probe(store, "face_id", heads=["ridge"], controls=(), cache=None)
    report.save(tmp_path / "runs" / "net@random-orl-mean")
    (tmp_path / "runs" / "net@random-orl-mean.txt").write_text(str(report))
    environment = os.environ | {"PYTHONPATH": str(PAGE.parents[2])}
    done = subprocess.run(
        [sys.executable, PAGE, tmp_path / "runs"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (picked,) = [row for row in report.rows if row.chosen and row.metric == "rank1"]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("| ORL")]
    chosen = f"| net@random, `mean` | `ridge` | **{picked.value:.3f}** ({picked.layer}) |"
    assert line.endswith(f"{chosen}  |  |  |  |  |")
