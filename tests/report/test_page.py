"""The page shows what the rows hold, whole, as valid HTML that loads nothing, and replaces no other file."""

import base64
import csv
import dataclasses
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_report import compared, confused, row
from PIL import Image
from typer.testing import CliRunner

import vdvae_repr as vr
from vdvae_repr import results
from vdvae_repr.cli import app
from vdvae_repr.errors import StoreError, TaskError
from vdvae_repr.latents.options import Frame, Sampling, Storage
from vdvae_repr.model.weights import save
from vdvae_repr.output import VOXELS, inert, is_own
from vdvae_repr.report import charts, pictures, summary
from vdvae_repr.results import Curve, SamplingCost, Similarity

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """Elements in their order, with what they hold; refuses tags that are not closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in VOID:
            self.open.append((tag, len(self.texts) - 1))

    def handle_startendtag(self, tag, attrs):  # of SVG
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1][0] == tag, f"</{tag}> closes <{self.open[-1][0]}>"
        self.open.pop()

    def handle_data(self, data):
        for _, place in self.open:
            self.texts[place] += data

    def all(self, tag, **wanted):
        return [
            (attrs, text)
            for (name, attrs), text in zip(self.elements, self.texts, strict=True)
            if name == tag and all(attrs.get(key) == value for key, value in wanted.items())
        ]


def page_of(report, tmp_path, **options):
    report.page(tmp_path / "index.html", **options)
    text = (tmp_path / "index.html").read_text()
    return Page(text), text


def body_rows(page, text):
    """Return the cells of the table of all rows, in order."""
    table = text.partition('<table class="rows"')[2].partition("</table>")[0]
    rows = re.findall(r"<tr data-row.*?</tr>", table, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_every_row_is_in_the_table_with_its_figures(report, tmp_path):
    page, text = page_of(report, tmp_path)
    rows = body_rows(page, text)
    assert len(rows) == len(report.rows)
    names = [attrs["data-name"] for attrs, _ in page.all("th", scope="col") if "data-name" in attrs]
    for cells, result in zip(rows, report.rows, strict=True):
        shown = dict(zip(names, cells, strict=True))
        assert shown["value"] == f"{result.value:.3f}"
        assert shown["layer"] == (result.layer or "")
        assert shown["head"] == result.head
        assert shown["ci_low"] == f"{result.ci_low:.3f}"
        assert bool(shown["chosen"]) is result.chosen
    # What is the same in all rows is said once.
    assert "task" not in names
    assert "task face_id" in text


def test_the_table_as_csv_is_that_of_results_csv(report, saved):
    page = Page((saved / "index.html").read_text())
    [(_, text)] = page.all("pre", id="csv")
    written = list(csv.DictReader(io.StringIO((saved / "results.csv").read_text())))
    shown = list(csv.DictReader(io.StringIO(text)))
    assert list(shown[0]) == list(written[0])
    assert len(shown) == len(written) == len(report.rows)
    for one, other in zip(shown, written, strict=True):
        assert one["layer"] == other["layer"]
        assert float(one["value"]) == float(other["value"])
        assert one["n_train"] == other["n_train"] == "60"


def test_it_loads_nothing_and_names_no_address(report, tmp_path):
    page, text = page_of(report, tmp_path)
    assert not re.search(r"https?://", text)
    for tag, attrs in page.elements:
        for name in ("src", "href"):
            if name in attrs:
                assert attrs[name].startswith(("#", "data:")), f"{tag} {name}={attrs[name]}"
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(" not in text


def test_the_answer_is_that_of_the_text(report, tmp_path):
    _, text = page_of(report, tmp_path)
    asked = list(summary.asked_of(report.rows, report.comparisons))
    said = html.unescape(re.sub(r"\s+", " ", text))
    assert summary.lead(asked).sentence in said
    assert summary.lead(asked).sentence.startswith(
        "The first 4 layers together (0:4, 1x1.0 to 8x8.0) of tiny reach a rank-1 identification rate of .494"
    )
    for one in asked:
        for cell in summary.cells_of(one):
            assert f">{cell}</" in said
        assert f">{summary.verdict(one)}</span>" in said
    assert report.headlines[0] in said
    assert report.notes[0] in said
    assert "ab" * 32 in said
    assert report.record["command"] in said


def test_every_chart_has_its_points_and_a_text_in_its_place(report, tmp_path):
    page, text = page_of(report, tmp_path)
    found = page.all("svg", role="img")
    assert len(found) == 10  # by layer 2, beside controls 2, rate, KL, CMC 2, confusion, CKA
    for attrs, _ in found:
        assert len(attrs["aria-label"]) > 20
    tips = [attrs["data-tip"] for attrs, _ in page.all("g") if "data-tip" in attrs]
    for head_row in report.rows:
        if head_row.role == "model" and head_row.metric == "rank1":
            value = summary.short(head_row.value)
            assert any(tip.startswith(f"{head_row.layer}: {value} [") for tip in tips)
    assert "8x8.0: 35.00 nats" in tips  # what 0:4 spends more than 0:3
    assert "1x1.0, 4x4.0: 0.100" in tips
    stars = re.findall(r'class="star"', text)
    assert len(stars) >= 2
    for title in (
        "By layer",
        "Beside the controls",
        "Rate and accuracy",
        "KL by layer",
        "Cumulative match",
        "What is taken for what",
    ):
        assert f"<h2>{title}</h2>" in text
    for absent in ("Few-shot curves", "Layers and factors", "Rebuilt", "What drawing costs"):
        assert f"<h2>{absent}" not in text


def test_no_text_of_a_chart_is_smaller_than_eleven_pixels(report, tmp_path):
    """A chart is made narrower by CSS down to `--least`, below which it is scrolled."""
    page, text = page_of(report, tmp_path)
    sizes = [float(size) for size in re.findall(r"\.chart[^{]*\{[^}]*font-size: ([\d.]+)px", text)]
    assert sizes
    for attrs, _ in page.all("svg", role="img"):
        width = float(attrs["viewbox"].split()[2])
        least = float(re.search(r"--least:([\d.]+)px", attrs["style"])[1])
        assert min(sizes) * least / width >= 11


def test_names_from_files_are_text_and_nothing_else(report, tmp_path):
    evil = '</script><img src=x onerror="alert(1)">\x1b[2J\u202e'
    report.rows = [
        dataclasses.replace(row, source=evil, model=evil if row.role == "model" else row.model)
        for row in report.rows
    ]
    report.comparisons = [dataclasses.replace(c, model=evil) for c in report.comparisons]
    report.curves = [dataclasses.replace(c, layer=evil) for c in report.curves]
    report.confusions = [confused([evil, "dog"], [[1, 2], [3, 4]])]
    report.notes = [evil]
    page, text = page_of(report, tmp_path)
    assert not page.all("img")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(page.all("script")) == 1


# What a folder holds


def test_a_folder_gives_back_what_was_saved(report, saved):
    found = vr.Report.load(saved)
    assert found.rows == report.rows
    assert found.comparisons == report.comparisons
    for name in ("notes", "headlines", "more_heads", "nats", "record"):
        assert getattr(found, name) == getattr(report, name)
    assert [(c.kind, c.head, c.model, c.layer) for c in found.curves] == [
        (c.kind, c.head, c.model, c.layer) for c in report.curves
    ]
    for ours, read in zip(report.curves, found.curves, strict=True):
        np.testing.assert_array_equal(ours.x, read.x)
        np.testing.assert_allclose(ours.y, read.y)
    (ours,), (read,) = report.confusions, found.confusions
    assert (read.head, read.n_train, read.layer, read.pool) == ("ridge", 60, "0:4", None)
    assert read.classes == ours.classes == ("cat", "dog", "=owl")
    np.testing.assert_array_equal(read.counts, ours.counts)
    np.testing.assert_allclose(found.similarity["mean"].cka, report.similarity["mean"].cka)
    assert found.similarity["mean"].layers == report.similarity["mean"].layers
    assert str(found) == str(report)
    assert all(is_own(path) for path in saved.iterdir())
    first = (saved / "index.html").read_text()
    found.page(saved / "index.html")
    assert (saved / "index.html").read_text() == first


def test_names_that_a_spreadsheet_would_calculate_come_back_as_they_were(report, tmp_path):
    assert inert("-odd") == "'-odd"
    report.comparisons = [dataclasses.replace(c, head="-odd") for c in report.comparisons]
    results.write(report.rows, tmp_path, comparisons=report.comparisons)
    assert vr.Report.load(tmp_path).comparisons == report.comparisons


HARD = ("0.1", "0.10", "01", "007", "1e3", "True", "nan", "NA", "", "-1", "=1", "inf", "None")


def test_names_that_look_like_numbers_come_back_as_text(report, tmp_path):
    """Of layers, heads, regions and bands; an empty region stays an empty text."""
    names = [name for name in HARD if name]
    cka = np.eye(len(names))
    report.similarity = {"mean": Similarity(cka, cka, tuple(names), tuple(names))}
    report.curves = [
        Curve("cmc", name, "tiny", name, np.arange(1.0, 3), np.array([0.5, 1])) for name in names
    ]
    report.nats = dict.fromkeys(names, 1.5)
    report.rows = [
        row("ridge", name, 0.5, selection="single", training_score=None) for name in names
    ]
    numbers = dict.fromkeys(VOXELS.split(",")[3:], 0.25)
    unknown = {"noise_ceiling": np.nan, "split_half": np.nan}
    report.tables = {
        "voxels": pd.DataFrame(
            {"voxel": range(len(HARD)), "rois": HARD, "best_layer": HARD} | numbers | unknown
        ),
        "bands": pd.DataFrame({"head": HARD, "layer": HARD, "band": HARD, "r2": 0.5}),
    }
    report.save(tmp_path)
    found = vr.Report.load(tmp_path)
    assert found.similarity["mean"].layers == found.similarity["mean"].other_layers == tuple(names)
    assert [(curve.head, curve.layer) for curve in found.curves] == [(n, n) for n in names]
    assert list(found.nats) == names
    for name, table in report.tables.items():
        pd.testing.assert_frame_equal(found.tables[name], table)


def drop_last_line(path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("results.jsonl", drop_last_line, "it was changed since"),
        ("comparisons.csv", drop_last_line, "it was changed since"),
        ("comparisons.csv", Path.unlink, "it is missing"),
        ("confusion.csv", Path.unlink, "it is missing"),
        (
            "confusion.csv",
            lambda path: path.write_text(path.read_text().replace(",12\n", ",13\n")),
            "it was changed since",
        ),
        (
            "comparisons.csv",
            lambda path: shutil.copy(path, path.with_name("beside.csv")),
            "it is not of these results",
        ),
    ],
)
def test_a_file_that_is_not_as_it_was_saved_is_refused(saved, name, change, why):
    change(saved / name)
    with pytest.raises(TaskError, match=rf"\.(csv|jsonl): is not as this version wrote it.*{why}"):
        vr.Report.load(saved)


def test_a_report_of_a_version_that_recorded_no_hashes_is_read(report, saved):
    path = saved / "report.json"
    content = json.loads(path.read_text())
    del content["files"]
    path.write_text(json.dumps(content))
    assert is_own(path)
    drop_last_line(saved / "comparisons.csv")
    assert vr.Report.load(saved).rows == report.rows


def test_without_what_is_not_in_rows_a_page_is_made_of_rows_alone(report, saved, tmp_path):
    for path in saved.iterdir():
        if path.name != "results.jsonl":
            path.unlink()
    found = vr.Report.load(saved)
    page, text = page_of(found, tmp_path)
    assert len(body_rows(page, text)) == len(report.rows)
    assert "closed-set: 60 training + 50 test images" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, "", "holds no results"),
        ("results.jsonl", '{"person": 1}\n', "results.jsonl: is not as this version wrote it"),
        ("results.jsonl", "{", "results.jsonl: is not as this version wrote it"),
        ("similarity.csv", "a,b\nx,y\n", "similarity.csv: is not as this version wrote it"),
    ],
)
def test_a_folder_of_something_else_is_refused_in_one_line(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(TaskError, match=message) as error:
        vr.Report.load(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(
        TaskError, match="expected a folder of results, which a probe saves, found nothing"
    ):
        vr.Report.load(tmp_path / "none")


@pytest.mark.parametrize(
    "name",
    ["comparisons.csv", "curves.csv", "confusion.csv", "report.json", "rate_accuracy.csv"],
)
def test_what_was_damaged_is_named(saved, name):
    path = saved / name
    path.write_text(path.read_text()[: len(path.read_text()) // 2].rpartition(",")[0] + ',"')
    with pytest.raises(TaskError, match=f"{name}: is not as this version wrote it"):
        vr.Report.load(saved)


# What other tasks have


def headings(text):
    return re.findall(r"<h2>(.*?)</h2>", text)


def few_shot_row(shots, layer, value, **columns):
    known = {"task": "few_shot", "protocol": "few-shot", "metric": "accuracy", "chance": 0.2}
    return row("ridge", layer, value, n_train=5 * shots, at=float(shots), **(known | columns))


def test_few_shot_has_curves_over_shots_also_where_nothing_was_chosen(tmp_path):
    control = {"role": "control", "model": "random-init", "chosen": True}
    rows = [
        made
        for shots, gain in ((1, 0.0), (5, 0.2))
        for made in (
            few_shot_row(shots, "4x4.0", 0.3 + gain),
            few_shot_row(shots, "8x8.0", 0.4 + gain, dims=64, versus="random-init"),
            few_shot_row(shots, "4x4.0", 0.35 + gain, **control),
        )
    ]
    pictures.write(rows, [], pictures.Figures(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layers.png", "shots.png"]
    page, text = page_of(vr.Report(rows=rows), tmp_path)
    assert "Few-shot curves" in headings(text)
    [(attrs, _)] = [
        found for found in page.all("svg") if "accuracy by shots" in found[0].get("aria-label", "")
    ]
    assert "8x8.0: .400" in attrs["aria-label"]  # what is compared, of all that was not chosen
    assert "8x8.0: .600" in attrs["aria-label"]
    assert "No row is picked" in text


def test_factors_are_a_map_of_numbers(tmp_path):
    rows = [
        row(f"ridge:{factor}", layer, value, task="factors", metric="r2", chance=None)
        for factor, values in {"pose_yaw": (0.1, 0.85), "light": (0.3, 0.25)}.items()
        for layer, value in zip(("4x4.0", "8x8.0"), values, strict=True)
    ]
    _, text = page_of(vr.Report(rows=rows), tmp_path)
    assert "Layers and factors" in headings(text)
    assert "By layer" not in headings(text)
    numbers = re.findall(r'ink-\w+"[^>]*>(-?[\d.]+)<', text)
    assert numbers == ["0.30", "0.25", "0.10", "0.85"]
    assert "pose yaw" in text


def test_a_class_taken_for_another_is_a_cell_and_a_sentence(report, tmp_path):
    page, text = page_of(report, tmp_path)
    section = text.partition('<section id="confusion">')[2].partition("</section>")[0]
    tips = [attrs["data-tip"] for attrs, _ in page.all("g") if "data-tip" in attrs]
    assert "cat, taken for dog: 7 of 20 images" in tips
    assert not any("cat, taken for" in tip for tip in tips if ": 0 of" in tip)
    assert re.findall(r'ink-\w+"[^>]*>(\d+)<', section) == ["12", "7", "1", "2", "13", "15"]
    [(attrs, _)] = [f for f in page.all("svg") if "predicted" in f[0].get("aria-label", "")]
    for said in ("cat is taken for dog most often: 7 of 20 images.", "40 of 50 test images"):
        assert said in attrs["aria-label"]
    assert '<p class="note">cat is taken for dog most often: 7 of 20 images.</p>' in section
    assert section.count(">=owl</text>") == 2  # named on both axes


@pytest.mark.parametrize("number", [2, 21, 40, 41, 300])
def test_of_many_classes_numbers_then_names_are_left_out(report, tmp_path, number):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (number, number)) + 20 * np.eye(number, dtype=int)
    report.confusions = [confused([f"class {k}" for k in range(number)], counts)]
    page, text = page_of(report, tmp_path)
    section = text.partition('<section id="confusion">')[2].partition("</section>")[0]
    assert (section.count("ink-") > 0) == (number <= 20)
    assert (">class 1</text>" in section) == (number <= 40)
    assert f"predicted class{'' if number <= 40 else f', {number} in order'}<" in section
    if number > 40:
        source = re.search(r'href="data:image/png;base64,([^"]*)"', section)[1]
        with Image.open(io.BytesIO(base64.b64decode(source))) as picture:
            shown = np.asarray(picture.convert("P"))
            assert picture.size == (number, number)
        shares = counts / counts.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(shown / 255, shares, atol=0.5 / 255)
    assert len(section) < 1_000_000
    for attrs, _ in page.all("svg", role="img"):  # as the test of all charts: letters of 13 pixels
        width = float(attrs["viewbox"].split()[2])
        assert 13 * float(re.search(r"--least:([\d.]+)px", attrs["style"])[1]) / width >= 11


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ([[3, 0], [0, 4]], "No test image is taken for another class."),
        ([[3, 1], [1, 4]], "a is taken for b and b for a most often: 1 image each."),
        (
            2 - np.eye(3),
            "a is taken for b, a for c and b for a most often: 2 images each, as in 3 other pairs.",
        ),
        ([[5, 0, 0], [2, 3, 0], [0, 1, 9]], "b is taken for a most often: 2 of 5 images."),
    ],
)  # fmt: skip
def test_the_most_frequent_mistake_is_named_and_no_other(counts, sentence):
    counts = np.asarray(counts, np.int64)
    assert summary.confused(confused("abc"[: len(counts)], counts)) == sentence


def test_verification_has_roc_curves_and_open_sets_rates_of_detection(report, tmp_path):
    far = np.linspace(0, 1, 401)
    known, control = ("ridge", "tiny", "8x8.0"), ("ridge", "pixels", None)
    passed = np.linspace(0, 1, 101)
    told = np.where(passed < 0.1, 0.2, 0.6)
    report.rows = [row("ridge", "8x8.0", 0.6, metric="dir", at=0.1, chosen=True)]
    report.comparisons = []
    report.curves = [
        Curve("roc", *known, far, np.sqrt(far), figures={"AUC": 0.876}),
        Curve("dir", *known, passed, told, told - 0.05, told + 0.05),
        Curve("dir", *control, passed, told / 2),
    ]
    page, text = page_of(report, tmp_path)
    assert {"Receiver operating characteristic", "Detection and identification"} <= set(
        headings(text)
    )
    assert "tiny 8x8.0 (AUC .876)" in text
    tips = [attrs["data-tip"] for attrs, _ in page.all("g") if "data-tip" in attrs]
    assert "tiny 8x8.0: .600 [.550, .650] at false accept rate 0.1" in tips
    assert "pixels: .300 at false accept rate 0.1" in tips
    open_set = text.partition('<section id="dir">')[2].partition("</section>")[0]
    assert 'class="band s0"' in open_set
    assert "95 % interval" in open_set
    assert "tiny 8x8.0: .316 at false accept rate 0.1" in tips
    assert not any(
        "tiny 8x8.0" in tip and "rate 0.01" in tip for tip in tips
    )  # of 4 impostors of 400


def test_models_beside_are_drawn_and_draws_have_their_cost(report, tmp_path):
    alike = [row("ridge", layer, 0.2, model="other") for layer in ("1x1.0", "4x4.0")]
    together = row("ridge", "0:2", 0.3, model="other", selection="cumulative", chosen=True)
    unlike = row("ridge", "layer4", 0.777, model="timm:resnet50", chosen=True)
    report.rows += [*alike, together, unlike]
    report.sampling_costs = [
        SamplingCost(
            head="ridge", n_train=60, layer=layer, selection="single", pool=None, dims=16, draws=8,
            metric="rank1", mean=0.4, one_z=0.3, mean_of_z=0.387, p_one_z=0.01, p_mean_of_z=None,
        )
        for layer in ("1x1.0", "4x4.0")
    ]  # fmt: skip
    report.beside = [compared("ridge", "timm:resnet50", -0.28, 0.011, "worse")]
    _, text = page_of(report, tmp_path)
    assert "Beside other models" in headings(text)
    assert "ridge, timm:resnet50: -.280 [-.330, -.230], p .011" in text
    assert "other, one layer" in text
    assert "other, 0:2 together .300" in text
    assert "timm:resnet50 .777" in text
    assert "ridge beside: other 0:2 .300, timm:resnet50 layer4 .777" in text
    assert "What drawing costs" in headings(text)
    assert "4x4.0, mean of 8 draws: .387" in text


def test_what_compare_wrote_is_a_page_of_its_own(report, tmp_path):
    pictures.save_similarity(report.similarity["mean"], tmp_path / "c", ("a", "b"))
    _, text = page_of(vr.Report.load(tmp_path / "c"), tmp_path)
    assert headings(text) == ["How alike layers are", "Where it comes from"]
    assert "<h1>How alike layers are</h1>" in text
    assert "with a debiased linear CKA of .100" in text


# What is replaced


def test_only_a_page_of_ours_is_replaced(report, tmp_path):
    path = tmp_path / "index.html"
    path.write_text("<html><title>mine</title></html>")
    with pytest.raises(TaskError, match="is no page of vdvae-repr, so it is not replaced"):
        report.page(path)
    assert "mine" in path.read_text()
    path.unlink()
    report.page(path)
    report.page(path)
    with pytest.raises(TaskError, match=r"ends in \.html"):
        report.page(tmp_path / "page.txt")
    with pytest.raises(TaskError, match="expected results to show, found none"):
        vr.Report().page(path)


# With a store


@pytest.fixture
def store(tiny, people, tmp_path):
    save(tiny, tmp_path / "tiny.safetensors", record={})
    return vr.extract(tiny, people(6), tmp_path / "s.h5", batch_size=12)


@pytest.fixture
def probed(store):
    return vr.probe(store, "face_id", heads="nearest-neighbor", controls=("pixels",), cache=None)


def test_with_store_and_model_there_are_pictures(store, probed, tiny, tmp_path):
    page, text = page_of(probed, tmp_path, latents=store, model=tiny)
    pictures = page.all("img")
    assert all(attrs["src"].startswith("data:image/") and attrs["alt"] for attrs, _ in pictures)
    assert all(int(attrs["width"]) >= 96 for attrs, _ in pictures)
    alts = [attrs["alt"] for attrs, _ in pictures]
    assert sum("rebuilt from the first layer" in alt for alt in alts) == 8
    assert sum("rebuilt from all 5 layers" in alt for alt in alts) == 8
    queries = [alt for alt in alts if "which is looked for" in alt]
    assert len(queries) == 3
    marked = re.findall(r'class="tile alike"><img [^>]*alt="([^"]*)"', text)
    assert marked
    assert all("of the same class" in alt for alt in marked)
    nats = store.kl.mean(axis=0)
    tips = [attrs["data-tip"] for attrs, _ in page.all("g") if "data-tip" in attrs]
    for spec in store.layers:
        assert f"{spec.name}: {nats[spec.index]:,.2f} nats" in tips


def test_nearest_images_are_those_of_the_nearest_neighbour(store, probed, tmp_path):
    """By another way: scikit-learn's cosine on the centred matrix."""
    from sklearn.metrics.pairwise import cosine_similarity

    from vdvae_repr.report.gallery import neighbours

    last = store.layers[-1].name
    X, y, ids = store.matrix(last)
    alike = cosine_similarity(X - X.mean(axis=0))
    np.fill_diagonal(alike, -2)
    for query in neighbours(store, "mean"):
        row = ids.index(query.tile.alt.partition(",")[0])
        nearest = [tile.alt.partition(",")[0] for tile in dict(query.by_layer)[last]]
        assert nearest == [ids[k] for k in np.argsort(-alike[row], kind="stable")[:5]]
        marks = [tile.alike for tile in dict(query.by_layer)[last]]
        assert marks == [y[ids.index(name)] == y[row] for name in nearest]


@pytest.mark.parametrize("how", ["crop", "pool", "z"])
def test_a_store_that_was_read_otherwise_is_refused(store, probed, tiny, people, tmp_path, how):
    ways = {
        "crop": (Frame(crop=12), "of the central square of 12 pixels"),
        "pool": (Storage(pool="avg"), ", pooled avg, of"),
        "z": (Sampling(z="sample"), "z sample, of the"),
    }
    option, said = ways[how]
    other = vr.extract(tiny, people(6), tmp_path / "o.h5", option, batch_size=12)
    match = rf"expected latents read as those of the results \(z mean.*\), found others \(.*{said}"
    with pytest.raises(StoreError, match=match):
        probed.page(tmp_path / "index.html", other)
    arguments = ["compare", str(store.path), str(store.path), "--out", str(tmp_path / "c")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    with pytest.raises(StoreError, match=f"{match}.*compared"):
        vr.Report.load(tmp_path / "c").page(tmp_path / "index.html", other)
    if how == "pool":  # which stores of one network may differ in, to be compared
        assert (
            CliRunner().invoke(app, [*arguments[:2], str(other.path), *arguments[3:]]).exit_code
            == 0
        )
        for one in (store, other):
            vr.Report.load(tmp_path / "c").page(tmp_path / "index.html", one)


def test_a_store_of_other_images_or_weights_is_refused(store, probed, tiny, people, tmp_path):
    import torch

    other = vr.extract(tiny, people(4, seed=3), tmp_path / "o.h5", batch_size=12)
    with pytest.raises(StoreError, match="expected the images of the results"):
        probed.page(tmp_path / "index.html", other)
    changed = vr.VDVAE(tiny.config, name="tiny")
    with torch.no_grad():
        changed.load_state_dict({k: 1.01 * v for k, v in tiny.state_dict().items()})
    reweighted = vr.extract(changed.eval(), people(6), tmp_path / "w.h5", batch_size=12)
    with pytest.raises(StoreError, match="expected latents of the weights of the results"):
        probed.page(tmp_path / "index.html", reweighted)
    with pytest.raises(StoreError, match="other weights"):
        probed.page(tmp_path / "index.html", store, changed)
    assert not (tmp_path / "index.html").exists()


def test_a_page_of_a_comparison_takes_pictures_of_its_own_images_alone(
    store, tiny, people, tmp_path
):
    other = vr.extract(tiny, people(4, seed=3), tmp_path / "o.h5", batch_size=12)
    done = CliRunner().invoke(
        app, ["compare", str(store.path), str(store.path), "--out", str(tmp_path / "c")]
    )
    assert done.exit_code == 0
    report = vr.Report.load(tmp_path / "c")
    with pytest.raises(StoreError, match="expected the images of the results, people, found anoth"):
        report.page(tmp_path / "index.html", other)
    assert not (tmp_path / "index.html").exists()
    _, text = page_of(report, tmp_path, latents=store)
    assert "layers of tiny (rows, mean) and tiny (columns, mean), images of people" in text
    (tmp_path / "c" / "similarity.json").unlink()  # of an earlier version
    with pytest.raises(StoreError, match="run compare again"):
        vr.Report.load(tmp_path / "c").page(tmp_path / "index.html", store)


def test_what_a_store_lacks_is_said(store, probed, tiny, people, tmp_path):
    bare = vr.extract(
        tiny, people(6), tmp_path / "b.h5", features=("mean", "kl"), images=False, batch_size=12
    )
    _, text = page_of(probed, tmp_path, latents=bare)
    assert "No nearest images, as the store keeps none." in text
    assert "No reconstructions, as no model was given" in text
    (tmp_path / "weights").mkdir()  # a name that messages hold
    no_mean = vr.extract(
        tiny, people(6), tmp_path / "weights" / "b.h5", features=("log_std", "kl"), batch_size=12
    )
    _, text = page_of(probed, tmp_path, latents=no_mean, model=tiny)
    assert "expected feature z or mean to decode" in text


def test_the_command_makes_a_page_and_names_it(store, probed, tmp_path):
    results.write(probed.rows, tmp_path / "r")

    def command(*arguments):
        done = CliRunner().invoke(app, ["report", *map(str, arguments)])
        return done.exit_code, done.output.strip().splitlines(), str(done.exception or "")

    code, lines, _ = command(tmp_path / "r", "--out", tmp_path / "page")
    assert (code, lines[-1]) == (0, str(tmp_path / "page" / "index.html"))
    options = ["--latents", store.path, "--model", tmp_path / "tiny.safetensors"]
    code, lines, _ = command(tmp_path / "r", *options, "--out", tmp_path / "one.html")
    assert (code, lines[-1]) == (0, str(tmp_path / "one.html"))
    assert "rebuilt from all 5 layers" in (tmp_path / "one.html").read_text()
    assert "rebuilt" not in (tmp_path / "page" / "index.html").read_text()
    assert "expected --latents with it" in command(tmp_path / "r", "--model", "faces64")[2]
    assert "holds no results" in command(tmp_path / "page")[2]


# Charts


@pytest.mark.parametrize("values", [[0.1, 0.9], [-3.0, 0.4], [0.5, 0.5], [0.0, 0.0], [1200.0, 3.5]])
def test_axes_cover_their_values_with_round_ticks(values):
    axis = charts.Axis.of_values("y", values)
    assert axis.low <= min(values) <= max(values) <= axis.high
    assert 3 <= len(axis.ticks) <= 8
    places = [axis.place(tick) for tick, _ in axis.ticks]
    assert places == sorted(places)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)


def test_a_logarithmic_axis_has_a_tick_a_decade_at_least():
    axis = charts.Axis.over("nats", [0.3, 5000.0], log=True)
    assert [name for _, name in axis.ticks] == ["1", "10", "100", "1,000"]
    assert axis.place(0.3) == 0
    assert axis.place(5000) == pytest.approx(1)


def test_names_of_levels_do_not_cover_each_other():
    levels = [charts.Across(f"level {k}", "pca", 0.5 + 0.001 * k) for k in range(5)]
    points = [charts.Point(x, y, "p") for x, y in enumerate((0.1, 0.9))]
    svg = charts.layer_lines("t", ["a", "b"], [charts.Series("s", "s0", points)], levels, "y")
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)">level', svg))
    assert min(np.diff(heights)) >= 12


def test_a_map_colors_from_dark_to_bright_and_writes_numbers():
    svg = charts.grid(
        "m", np.array([[0.0, 1.0], [np.nan, 0.5]]), ["a", "b"], ["c", "d"], numbers=True
    )
    colors = re.findall(r'fill="(#\w+)"', svg)
    assert colors == ["#00204d", "#ffea46", "#7c7b78"]
    assert re.findall(r'ink-\w+"[^>]*>([\d.]+)<', svg) == ["0.00", "1.00", "0.50"]
