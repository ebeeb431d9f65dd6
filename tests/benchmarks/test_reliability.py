"""The tries of `benchmarks/reliability`: a fault of the product is a row, and none is no row."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "reliability"
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in ("trials", "commands", "processes", "page"):
        sys.modules.pop(name, None)


def read(folder):
    """A result of one piece; half of one cannot be read."""
    path = folder / "file"
    if not path.exists():
        return {}
    text = path.read_text()
    if text == "half":
        raise ValueError(text)
    return {"file": text}


@pytest.mark.parametrize(
    ("left", "expected"),
    [("old", None), ("new", None), (None, "lost"), ("half", "lost"), ("other", "wrong")],
)
def test_what_a_kill_leaves_is_judged(tmp_path, left, expected):
    from commands import Case
    from trials import COUNTS, Row, look

    if left is not None:
        (tmp_path / "file").write_text(left)
    row = Row("SIGKILL", "case")
    look(row, Case("", "", (), read), tmp_path, {"file": "old"}, {"file": "new"})
    assert {name: getattr(row, name) for name in COUNTS} == {
        name: int(name == expected) for name in COUNTS
    }
    assert len(row.failures) == (expected is not None)


def test_a_command_is_judged_by_its_end(tmp_path, monkeypatch):
    """One line and exit 2 is no crash; a traceback, a strange error and a death by itself are."""
    from processes import Command

    from vdvae_repr import cli

    def run(body):
        monkeypatch.setattr(cli, "main", body)
        return Command([], tmp_path).wait(limit=5)

    def refuse():
        print("vdvae-repr: refused", file=sys.stderr)
        sys.exit(2)

    def strange():
        print("vdvae-repr: unexpected KeyError: 'x'", file=sys.stderr)
        sys.exit(2)

    assert (run(refuse).code, run(refuse).crashed) == (2, False)
    assert run(strange).crashed
    assert run(lambda: [][0]).crashed
    assert run(lambda: os.kill(os.getpid(), signal.SIGUSR1)).crashed
    killed = run(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert (killed.code, killed.crashed) == (-9, False)


def test_a_kill_hits_the_change_that_is_asked_for(tmp_path, monkeypatch):
    from processes import Command, at_change, counting

    from vdvae_repr import cli

    folder = tmp_path / "f"
    folder.mkdir()

    def write():
        for name in "abc":
            Path(name).touch()
            Path(name).rename(f"{name}2")

    monkeypatch.setattr(cli, "main", write)
    assert Command([], folder, counting(folder, tmp_path / "count")).wait().code == 1
    changes = (tmp_path / "count").stat().st_size
    left = set()
    for number in range(1, changes + 1):
        for path in folder.iterdir():
            path.unlink()
        Command([], folder, at_change(folder, number)).wait()
        left.add(tuple(sorted(path.name for path in folder.iterdir())))
    assert left >= {(), ("a",), ("a2",), ("a2", "b"), ("a2", "b2"), ("a2", "b2", "c")}


def test_errors_and_deaths_of_a_child_are_told_apart():
    from processes import Failure, in_child

    import vdvae_repr as vr

    def fail(error):
        raise error

    assert in_child(lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(vr.VDVAEReprError, match="StoreError: x"):
        in_child(partial(fail, vr.StoreError("x")))
    with pytest.raises(Failure, match="KeyError"):
        in_child(partial(fail, KeyError("x")))
    with pytest.raises(Failure, match="died, exit -10"):
        in_child(lambda: os.kill(os.getpid(), signal.SIGUSR1))


def test_an_export_counts_as_lost_where_a_file_of_it_is_gone(tmp_path):
    from commands import Case, matrix
    from trials import Row, look

    import vdvae_repr as vr

    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(2)).eval()
    encoder = vr.TorchEncoder(net, layers=["0"], size=16, mean=(0, 0, 0), std=(1, 1, 1))
    store = vr.extract(encoder, images, tmp_path / "s.h5")
    folder = tmp_path / "f"
    folder.mkdir()
    store.export(folder / "x.npy")
    case = Case("export", ".npy", (), partial(matrix, "x.npy"))
    whole = matrix("x.npy", folder)
    assert whole.keys() == {"x.npy", "description"}
    (folder / "x.json").rename(folder / ".aside")  # as a kill between the two leaves it
    assert matrix("x.npy", folder) == whole
    for gone in (".aside", "x.npy"):
        (folder / gone).unlink()
        row = Row("SIGKILL", "export")
        look(row, case, folder, whole, {})
        assert row.lost == 1


def test_the_page_says_what_the_table_says(tmp_path):
    from page import page

    rows = pd.DataFrame({
        "kind": ["SIGKILL", "flip", "flip"],
        "what": ["train", "store (single)", "store (single), by verify alone"],
        "tried": [20, 500, 30], "hit": [20, 400, 30],
        "lost": 0, "stale": 0, "wrong": 0, "tracebacks": 0,
    })  # fmt: skip
    assert "In 20 kills and 500 flipped bits, among 520 tries, nothing was lost" in page(rows)
    rows.loc[1, "wrong"] = 2
    found = page(rows, seed=3)
    assert "0 lost, 0 stale, 2 wrong" in found
    assert "| store (single) | 500 | 400 | 0 | 0 | 2 | 0 |" in found
    assert "--full --seed 3" in found
    rows.loc[0, "kind"] = "file limit"
    assert "RLIMIT_FSIZE, as no tmpfs could be mounted" in page(rows)
