"""The runner of the GPU's stages: whatever one stage does, the others run and report."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run.sh"

STAGES = {
    "1-good": ('echo \'{"found": 1}\' >"$RESULTS/good.json"', 20),
    "2-failing": ("echo what went wrong >&2; exit 3", 20),
    "3-hanging": ('echo \'{"row": 1}\' >"$RESULTS/hanging.jsonl"; sleep 600 & wait', 1),
    "4-last": ('echo "$DEVICE $LIMIT" >"$RESULTS/last.txt"', 20),
}


@pytest.fixture
def stages(tmp_path):
    folder = tmp_path / "stages"
    folder.mkdir()
    for name, (body, limit) in STAGES.items():
        (folder / f"{name}.sh").write_text(f"# limit: 1, smoke: {limit}\n{body}\n")
    return folder


def run(stages, out, *arguments):
    environment = os.environ | {"STAGES": str(stages), "OUT": str(out)}
    return subprocess.run(
        [str(RUN), "--smoke", *arguments], env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def ends(out):
    rows = [json.loads(line) for line in (out / "stages.jsonl").read_text().splitlines()]
    return {row["stage"]: row["status"] for row in rows}


def test_a_failing_and_a_hanging_stage_stop_no_other(stages, tmp_path):
    out = tmp_path / "out"
    started = time.monotonic()
    done = run(stages, out)
    assert done.returncode == 1
    assert time.monotonic() - started < 300  # and not the hour that the stage would hang
    assert ends(out) == {
        "good": "done", "failing": "failed", "hanging": "ended at its limit", "last": "done",
    }  # fmt: skip
    assert json.loads((out / "good.json").read_text()) == {"found": 1}
    assert json.loads((out / "hanging.jsonl").read_text()) == {"row": 1}  # what it had found stays
    assert (out / "last.txt").read_text() == "cpu 20\n"
    assert "what went wrong" in done.stdout
    assert (out / "failing.log").read_text() == "what went wrong\n"


def test_stages_are_chosen_by_name(stages, tmp_path):
    out = tmp_path / "out"
    assert run(stages, out, "last", "good").returncode == 0
    assert ends(out) == {"good": "done", "last": "done"}
    unknown = run(stages, out, "lats")
    assert unknown.returncode == 2
    assert "found lats" in unknown.stderr


def test_without_a_card_one_line_says_so(stages, tmp_path):
    environment = os.environ | {
        "STAGES": str(stages), "OUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run([str(RUN)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "no PyTorch that finds a CUDA device" in done.stderr


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(RUN.parent))
    import page

    yield page
    sys.modules.pop("page")


def test_the_page_is_made_of_the_results(page, tmp_path):
    committed = page.RESULTS / "gpu.md"
    assert committed.read_text() == page.page(page.RESULTS / "gpu")
    assert "Not measured yet" in page.page(tmp_path)
    row = {"case": "photos", "model": "m", "workers": 4, "images_per_second": 812.5}
    (tmp_path / "fast.jsonl").write_text(json.dumps(row) + "\n")
    assert "| m | - | 4 | 812.5 |" in page.page(tmp_path)
    assert "Not measured yet" not in page.page(tmp_path)
    row = {"check": "brain predict", "right": True, "seconds": 0.5, "cpu_seconds": 7.25}
    (tmp_path / "correct.jsonl").write_text(json.dumps(row) + "\n")
    assert "| brain predict | 0.5 | 7.25 |" in page.page(tmp_path)
