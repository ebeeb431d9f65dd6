"""Tables of results pages are those that their CSVs give."""

import importlib
import sys
from pathlib import Path

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Imports a script of a folder of benchmarks, which others call alike."""
    imported = []

    def of(folder, name):
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.syspath_prepend(str(BENCHMARKS / folder))
        sys.modules.pop(name, None)
        imported.append(name)
        return importlib.import_module(name)

    yield of
    for name in (*imported, "tables"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("page", ["extraction_speed", "training_speed", "probe_speed"])
def test_speed_pages_hold_what_their_csv_gives(script, page):
    speed = script("speed", "page")
    text = (speed.RESULTS / f"{page}.md").read_text(encoding="utf-8")
    for name, table in speed.tables(page).items():
        assert f"<!-- {name} -->\n\n{table}\n\n<!-- end of {name} -->" in text
        assert table.count("\n") > 1


def test_the_page_on_layers_holds_what_its_csvs_give(script):
    layers = script("downstream", "layers")
    text = (layers.RESULTS / "layers.md").read_text(encoding="utf-8")
    for name, table in layers.tables().items():
        assert f"<!-- {name} -->\n\n{table}\n\n<!-- end of {name} -->" in text


def test_rows_that_a_script_printed_replace_those_of_their_table(script, tmp_path, monkeypatch):
    speed = script("speed", "page")
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"variant": "ours", "ratio": 1.5}\n')
    pd.DataFrame({"table": ["step", "other"], "variant": ["old", "kept"], "ratio": [1, 2]}).to_csv(
        tmp_path / "training_speed.csv", index=False
    )
    speed.add("training_speed", "step", tmp_path / "rows.jsonl", "two cores")
    found = pd.read_csv(tmp_path / "training_speed.csv")
    assert found.variant.tolist() == ["kept", "ours"]
    assert found.ratio.tolist() == [2, 1.5]
    assert found.machine.tolist()[1] == "two cores"


def test_a_mark_that_no_table_fills_is_refused(script, tmp_path):
    tables = script(".", "tables")
    page = tmp_path / "page.md"
    page.write_text("<!-- a -->\n\nold\n\n<!-- end of a -->\n")
    tables.fill(page, {"a": "| new |"})
    assert page.read_text() == "<!-- a -->\n\n| new |\n\n<!-- end of a -->\n"
    with pytest.raises(ValueError, match="expected marks of"):
        tables.fill(page, {"b": "| new |"})
