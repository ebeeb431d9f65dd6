"""Result files are old or new, never half, and never take the place of a file of the user's."""

import csv
import dataclasses
import json
import os
import re
import signal
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import vdvae_repr as vr
from vdvae_repr import results
from vdvae_repr.cli import app
from vdvae_repr.data.sheet import save_picture
from vdvae_repr.errors import printable
from vdvae_repr.latents.decode import picture_paths
from vdvae_repr.model.weights import save
from vdvae_repr.output import (
    COMPARISONS,
    CONFUSION,
    EARLIER,
    NOISE,
    RESULTS,
    is_own,
    prepare_folder,
    replacing,
    replacing_folder,
    write_table,
)

# From Python 3.12 on a fork beside torch's threads warns; what is forked here uses none of them.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")

NAMES = re.compile(r"(a|b|c)\.(csv|png)|results\.jsonl")
OURS = "nats,head,feature,pool,layer,dims,metric,at,value,ci_low,ci_high\n"


@pytest.fixture
def store(tiny, people, tmp_path):
    save(tiny, tmp_path / "tiny.safetensors", record={})
    return vr.extract(tiny, people(6), tmp_path / "s.h5", layers="<=4x4")


def command(*arguments):
    """Run a command; return its exit code and the error that it raised."""
    done = CliRunner().invoke(app, [str(part) for part in arguments])
    return done.exit_code, str(done.exception or "")


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Whose file it is


@pytest.mark.parametrize(
    "name", ["results.csv", "results.jsonl", "layers.png", "cmc.png", "similarity-mean.csv"]
)
def test_probe_refuses_a_folder_with_files_of_the_users(store, tmp_path, name, monkeypatch):
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / name
    if mine.suffix == ".png":
        Image.new("RGB", (4, 4)).save(mine)
    else:
        mine.write_text("person,score\nme,1\n")
    before = content(tmp_path / "mine")
    monkeypatch.setattr("vdvae_repr.probing.engine.Measurement.__init__", None)  # no work is begun
    _, error = command("probe", "--latents", store.path, "--out", mine.parent)
    assert f"{mine}: exists, and was not made by vdvae-repr" in error
    assert content(tmp_path / "mine") == before


def test_probe_replaces_its_own_results_and_leaves_other_files(store, tmp_path):
    out = tmp_path / "out"
    how = ["probe", "--latents", store.path, "--out", out, "--control", "pixels"]
    how += ["--head", "nearest-neighbor"]
    assert command(*how, "--layer", "1x1") == (0, "")
    assert all(is_own(path) for path in out.iterdir())
    (out / "notes.txt").write_text("mine")
    first = content(out)
    assert command(*how, "--selection", "joint", "--atlas")[0] != 0  # refused: nothing is lost
    assert content(out) == first
    assert command(*how[:-2], "--atlas", "--head", "nearest-neighbor") == (0, "")
    assert all(is_own(path) for path in out.iterdir() if path.name != "notes.txt")
    assert (out / "rate_accuracy.csv").is_file()
    assert command(*how, "--layer", "1x1", "--selection", "single") == (0, "")
    assert not (out / "rate_accuracy.csv").exists()  # of other rows
    assert (out / "notes.txt").read_text() == "mine"


def test_compare_replaces_its_own_similarity_alone(store, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        assert command("compare", store.path, store.path, "--out", out) == (0, "")
    (out / "similarity.csv").write_text(",a,b\na,1,0\nb,0,1\n")
    before = content(out)
    _, error = command("compare", store.path, store.path, "--out", out)
    assert "similarity.csv: exists, and was not made by" in error
    assert content(out) == before


def test_results_of_compare_and_of_probe_stay_readable_in_one_folder(store, tmp_path):
    out = tmp_path / "out"
    compare = ["compare", store.path, store.path, "--out", out]
    probe = ["probe", "--latents", store.path, "--out", out, "--layer", "1x1", "--no-cache"]
    probe += ["--control", "none", "--head", "nearest-neighbor"]
    for first, second in ((compare, probe), (probe, compare), ([*probe, "--atlas"], compare)):
        assert command(*first) == (0, "")
        before = content(out)
        assert command(*second) == (0, "")
        renewed = ("index.html", "results", "layers", "cmc", "report", "curves")
        kept = [name for name in before if not name.startswith(renewed)]
        if "--atlas" not in first:
            kept = list(before)
        assert all((out / name).is_file() for name in kept)
        report = vr.Report.load(out)
        assert report.rows
        np.testing.assert_allclose(
            report.similarity[""].cka, vr.compare(store, store).cka, atol=1e-6
        )
        report.save(tmp_path / "copy")  # with what compare wrote
        again = vr.Report.load(tmp_path / "copy").similarity[""]
        assert again.record == report.similarity[""].record
        assert again.record["images"] == "people"


def test_results_that_another_command_made_are_not_lost(store, tmp_path):
    report = vr.probe(store, "face_id", heads="nearest-neighbor", controls=(), cache=None)
    for made_by, then in (
        ("demo", ["probe", "--latents", store.path, "--no-cache"]),
        ("probe", ["demo"]),
    ):
        report.record["command"] = f"vdvae-repr {made_by} --out 'a b'"
        report.save(tmp_path / made_by)
        before = content(tmp_path / made_by)
        _, error = command(*then, "--out", tmp_path / made_by)
        assert f"holds results of the command {made_by}, which would be lost" in error
        assert content(tmp_path / made_by) == before


def test_the_page_beside_other_results_is_not_replaced(store, tmp_path):
    report = vr.probe(store, "face_id", heads="nearest-neighbor", controls=(), cache=None)
    for name in ("a", "b"):
        report.save(tmp_path / name)
    before = content(tmp_path)
    _, error = command("report", tmp_path / "a", "--out", tmp_path / "b")
    assert "index.html: is the page of the results beside it" in error
    assert content(tmp_path) == before
    assert command("report", tmp_path / "a", "--out", tmp_path / "a") == (0, "")


def test_factors_are_known_as_ours(store, tmp_path):
    out = tmp_path / "out"
    how = ["probe", "--task", "factors", "--latents", store.path, "--out", out, "--layer", "1x1"]
    assert command(*how) == (0, "")
    assert {"factors-r2.csv", "factors-r2.png"} <= {
        path.name for path in out.iterdir() if is_own(path)
    }


def test_a_picture_that_cannot_be_saved_is_refused_before_a_model_is_loaded(store, tmp_path):
    """Of sample, of decode, and of decode's sheet, which may not be the picture of an image either."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (4, 4)).save(photo)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "0-3.png").write_bytes(photo.read_bytes())
    decode = ["decode", store.path, "--model", "nowhere", "--out"]
    for arguments, expected in (
        (["sample", "--model", "nowhere", "--out", photo], "was not made by"),
        (["sample", "--model", "nowhere", "--out", tmp_path / "s.jpg"], "ends in .png"),
        ([*decode, tmp_path / "d"], "0-3.png: exists"),
        ([*decode, tmp_path / "e", "--sheet", photo], "photo.png: exists"),
        ([*decode, tmp_path / "e", "--sheet", tmp_path / "e" / "0-1.png"], "of an image"),
    ):
        assert expected in command(*arguments)[1]
    assert not (tmp_path / "e").exists()


def test_a_sheet_among_the_images_that_are_read_is_refused_before_a_model_is_loaded(tmp_path):
    photos = tmp_path / "photos"
    (photos / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(photos / "a" / "1.png")
    (tmp_path / "link").symlink_to(photos)
    extract = ["extract", "--model", "nowhere", "--data", photos, "--sheet"]
    for sheet in (photos / "seen.png", photos / "a" / "seen.png", tmp_path / "link" / "seen.png"):
        assert "would be read as one of the images next time" in command(*extract, sheet)[1]
    for sheet in (tmp_path / "seen.png", photos / ".hidden" / "seen.png"):
        assert "one of the images" not in command(*extract, sheet)[1]


def test_what_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(vr.TaskError, match=r"a\.csv: exists"):
        prepare_folder(tmp_path, NAMES)
    (tmp_path / "a.csv").rmdir()
    (tmp_path / "a.csv").symlink_to(tmp_path / "nowhere")
    with pytest.raises(vr.TaskError, match=r"a\.csv: exists"):
        prepare_folder(tmp_path, NAMES)
    (tmp_path / "file").touch()
    with pytest.raises(vr.TaskError, match="cannot be made"):
        prepare_folder(tmp_path / "file", NAMES)


@pytest.mark.parametrize("text", ["", "\n", "\0", "{}", "[[1]]", '"', "1", "null", '{"task": 1}'])
def test_odd_files_are_not_ours(tmp_path, text):
    for name in ("a.csv", "results.jsonl", "a.png"):
        (tmp_path / name).write_text(text)
        assert not is_own(tmp_path / name)


def test_a_table_to_which_somebody_added_a_column_is_theirs(tmp_path):
    assert ",".join(results.COLUMNS) == RESULTS
    for made, columns in ((results.SamplingCost, NOISE), (results.Comparison, COMPARISONS)):
        assert ",".join(field.name for field in dataclasses.fields(made)) == columns
    *of, _, _, _ = CONFUSION.split(",")
    assert [field.name for field in dataclasses.fields(results.Confusion)] == [
        *of,
        "classes",
        "counts",
    ]
    earlier = EARLIER[0]
    for name, header, row in (
        ("results.csv", earlier, "1" + ",2" * earlier.count(",")),
        ("results.csv", RESULTS, "1" + ",2" * RESULTS.count(",")),
        ("noise.csv", NOISE, "1" + ",2" * NOISE.count(",")),
        ("confusion.csv", CONFUSION, "1" + ",2" * CONFUSION.count(",")),
        ("rate_accuracy.csv", OURS.strip(), "1" + ",2" * OURS.count(",")),
        ("factors-r2.csv", "r2,hue", "8x8.0,-1.5e-05"),
        ("similarity.csv", "debiased linear CKA,4x4.0", "8x8.0,"),
    ):
        (tmp_path / name).write_text(f"{header}\n{row}\n")
        assert is_own(tmp_path / name), name
        (tmp_path / name).write_text(f"{header},notes\n{row},look at this\n")
        assert not is_own(tmp_path / name), name
    line = dict.fromkeys(results.COLUMNS, 1)
    (tmp_path / "results.jsonl").write_text(json.dumps(line))
    assert is_own(tmp_path / "results.jsonl")
    (tmp_path / "results.jsonl").write_text(json.dumps(dict.fromkeys(earlier.split(","), 1)))
    assert is_own(tmp_path / "results.jsonl")
    (tmp_path / "results.jsonl").write_text(json.dumps(line | {"notes": "mine"}))
    assert not is_own(tmp_path / "results.jsonl")


# Old or new


def test_a_kill_leaves_the_old_file_and_the_next_run_the_new_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"old")
    if not (child := os.fork()):
        with replacing(path) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
    assert content(tmp_path) == {"a.csv": b"new"}


def fail(file):
    file.write(b"half")
    raise OSError("full")


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / ("a" * 251 + ".csv")  # as long as a name may be
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"), replacing(path) as file:
        fail(file)
    assert content(tmp_path) == {path.name: b"old"}


def test_two_processes_write_one_file_one_after_the_other(tmp_path):
    path = tmp_path / "a.csv"
    children = []
    for letter in (b"a", b"b", b"c"):
        if not (child := os.fork()):
            with replacing(path) as file:
                for _ in range(20):
                    file.write(letter)
                    file.flush()
                    time.sleep(0.001)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert path.read_bytes() in (b"a" * 20, b"b" * 20, b"c" * 20)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_folder_is_replaced_only_once_everything_is_written(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(OURS)
    before = content(tmp_path)
    full = pytest.raises(vr.TaskError, match=r"cannot be written \(full\); make room")
    with full, replacing_folder(tmp_path, NAMES) as aside, (aside / "a.csv").open("wb") as file:
        fail(file)
    assert content(tmp_path) == before
    with replacing_folder(tmp_path, NAMES) as aside:
        (aside / "a.csv").write_text(OURS + "1\n")
    assert content(tmp_path) == {"a.csv": (OURS + "1\n").encode()}


def test_who_waits_for_a_folder_takes_nothing_away_from_who_writes(tmp_path):
    """Ctrl-C, where another process has the folder, ends the waiting one alone."""
    with replacing_folder(tmp_path, NAMES) as aside:
        (aside / "a.csv").write_text(OURS)
        if not (child := os.fork()):
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            try:
                with replacing_folder(tmp_path, NAMES):
                    os._exit(1)
            except KeyboardInterrupt:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert (aside / "a.csv").exists()
    assert (tmp_path / "a.csv").read_text() == OURS


def test_a_killed_export_is_made_again(store, tmp_path):
    """Killed while the matrix and its description take their places, one after the other."""
    for suffix in (".npz", ".npy"):
        out = tmp_path / f"x{suffix}"
        store.export(out, "1x1")
        if not (child := os.fork()):
            os.rename = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
            type(out).replace = os.rename
            store.export(out)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert store.export(out) == (36, 4 + 4 * 16)
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.load(tmp_path / "x.npz")["latents"])
    assert not list(tmp_path.glob(".*"))


# Text from files


def test_a_spreadsheet_shows_text_and_runs_none(tmp_path):
    """By a reader that knows nothing of ours; numbers stay numbers."""
    names = [
        "=cmd|'/C calc'!A0", "@SUM(1)", "+1+1", "-1-1", "\t=1", "\r=1", "a\nb", "\uff1d1", '"', "a,b",
    ]  # fmt: skip
    table = pd.DataFrame({"-name": names, "value": -0.5, "text": "-0.5", "none": None}, names)
    write_table(table, tmp_path / "a.csv", index="index")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["index", "'-name", "value", "text", "none"]
    for name, row in zip(names, rows, strict=True):
        assert row[2:] == ["-0.5", "-0.5", ""]
        assert row[0] == row[1]
        assert row[0][0] not in "=+-@\t\r\uff1d"
        assert row[0].isprintable()
        assert row[0].lstrip("'") == printable(name)


def test_results_are_read_back_as_they_are(tmp_path):
    row = results.Result(
        task="face_id", protocol="closed-set", head="=h", model="m\n", source="s", scaling="raw", dims=3,
        n_train=1, n_test=1, metric="rank1", value=-0.5, ci_low=-1.0, ci_high=0.5,
    )  # fmt: skip
    results.write([row], tmp_path)
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    assert results.Result(**json.loads(line)) == row
    read = pd.read_csv(tmp_path / "results.csv").iloc[0]
    assert (read["head"], read["value"], read["ci_low"], read["model"]) == ("'=h", -0.5, -1, r"m\n")
    assert len(results.table([row]).splitlines()) == 2


# One file an image


def test_every_id_has_a_picture_of_its_own_inside_the_folder(tmp_path):
    ids = (
        "a.jpg", "a.png", "a.jpg.png", "A.png", "p/b.jpeg", "c", "c.png/d", "", ".", "..", "/etc/e", "../f",
        "x//y", "g\n", "g\x1b", "é" * 200, "é" * 199 + "è", ".png", "x/.png", "x/",
    )  # fmt: skip
    paths = picture_paths(ids, tmp_path)
    assert list(paths) == list(ids)
    pixels = np.random.default_rng(0).integers(0, 256, (len(ids), 2, 2, 3), dtype=np.uint8)
    for image_id, picture in zip(ids, pixels, strict=True):
        save_picture(picture, paths[image_id])
    for image_id, picture in zip(ids, pixels, strict=True):
        assert paths[image_id].resolve().is_relative_to(tmp_path)
        assert str(paths[image_id]).isprintable()
        assert np.array_equal(np.asarray(Image.open(paths[image_id])), picture)
    assert paths["p/b.jpeg"] == tmp_path / "p" / "b.png"
    assert picture_paths(("a.jpg", "b.png"), tmp_path)["a.jpg"] == tmp_path / "a.png"


def test_pictures_follow_no_link_out_of_the_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "p").symlink_to(tmp_path)
    with pytest.raises(vr.StoreError, match="leads out of"):
        picture_paths(("p/a",), tmp_path / "out")


def test_a_file_in_the_way_of_a_folder_is_told_before_a_model_is_loaded(store, tmp_path):
    (tmp_path / "d").touch()
    _, error = command("decode", store.path, "--model", "nowhere", "--out", tmp_path / "d")
    assert "d: is in the way of a folder" in error
    with pytest.raises(vr.StoreError, match="d: is in the way of a folder"):
        picture_paths(("d/a", "b"), tmp_path)


# Types


def test_what_is_no_store_is_told_in_a_line(store, tmp_path):
    for call in (
        lambda: vr.probe("s.h5", "face_id"),
        lambda: vr.probe(None, "face_id"),
        lambda: vr.probe(store, "face_id", beside=store),
        lambda: vr.probe(store, "face_id", beside=["s.h5"]),
        lambda: vr.probe(tmp_path, "face_id"),
        lambda: vr.probe(store, "face_id", drawn="s.h5"),
        lambda: vr.compare(store, "s.h5"),
        lambda: vr.import_latents(np.zeros((1, 1)), "s.h5", tmp_path / "o.h5"),
    ):
        with pytest.raises(vr.VDVAEReprError, match=r"expected .*open store") as refused:
            call()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [{"task": None}, {"heads": 5}, {"layers": None}, {"features": 5}, {"pools": 5},
     {"cache": 5}, {"controls": None}, {"selections": "all"}, {"controls": "noise"}, {"heads": ()}],
)  # fmt: skip
def test_arguments_of_another_type_are_named(store, wrong):
    (name,) = wrong
    arguments = {"task": "face_id"} | wrong
    with pytest.raises(vr.TaskError, match=f"^{name}: expected"):
        vr.probe(store, **arguments)


@pytest.mark.parametrize(
    ("task", "wrong"),
    [(vr.FewShot, {"ways": "5"}), (vr.FewShot, {"shots": "1"}), (vr.FewShot, {"class_split": 5}),
     (vr.FaceVerification, {"pairs": 5}), (vr.FaceVerification, {"far": "x"}), (vr.FaceId, {"protocol": 1})],
)  # fmt: skip
def test_options_of_another_type_are_named(task, wrong):
    (name,) = wrong
    with pytest.raises(vr.TaskError, match=f"^{name}: expected"):
        task(**wrong)


def test_a_model_is_needed_to_decode(store):
    with pytest.raises(vr.StoreError, match=r"model: expected a VDVAE.*int 64"):
        next(store.decode(64))


def test_rows_are_needed_to_draw():
    for wrong in ("results.csv", [1], {"a": 1}):
        with pytest.raises(vr.TaskError, match="rows: expected a list of result rows"):
            vr.plot.layers(wrong)


def test_the_file_of_the_shortest_name_is_never_missing(tmp_path, monkeypatch):
    """Of `compare`: similarity.csv, beside similarity-shuffled.csv, which sorts before it."""
    names = re.compile(r"similarity(-shuffled)?\.csv")
    for value in ("1", "2"):
        seen, move = [], os.replace

        def watched(*paths, move=move, seen=seen):
            seen.append((tmp_path / "similarity.csv").exists())
            move(*paths)

        monkeypatch.setattr(os, "replace", watched)
        with replacing_folder(tmp_path, names) as aside:
            for name in ("similarity.csv", "similarity-shuffled.csv"):
                (aside / name).write_text(f"debiased linear CKA,a\na,{value}\n")
        monkeypatch.setattr(os, "replace", move)
    assert seen == [True, True]
    assert (tmp_path / "similarity.csv").read_text().endswith("a,2\n")
