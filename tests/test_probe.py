"""The commands probe and compare, and what an atlas is made of stores that hold less."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import vdvae_repr as vr
from vdvae_repr.cli import app
from vdvae_repr.latents.store import JoinedStore

QUICK = ["--head", "nearest-neighbor"]

ATLAS = ("single", "cumulative", "without", "pruned")


def command(*arguments):
    """Run a command; returns its standard output, or raises what `main` would print in one line."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture(scope="module")
def folder(tiny, people, tmp_path_factory):
    """Stores a.h5 and b.h5 of the same people in other images, and c.h5 of those of a.h5."""
    folder = tmp_path_factory.mktemp("probe")
    vr.extract(tiny, people(6), folder / "a.h5", features=["mean", "kl"]).close()
    vr.extract(tiny, people(4, seed=4), folder / "b.h5", layers="<=8x8").close()
    vr.extract(tiny, people(6), folder / "c.h5", layers="8x8", features=["delta"]).close()
    return folder


def test_an_atlas_is_rows_pictures_and_tables(folder, tmp_path):
    out = tmp_path / "out"
    printed = command(
        "probe", "--latents", folder / "a.h5", "--atlas", "--rows", "--out", out, *QUICK
    )
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    table = pd.read_csv(out / "results.csv")
    assert table["value"].tolist() == pytest.approx([row["value"] for row in rows])
    store = vr.LatentStore.open(folder / "a.h5")
    found = vr.probe(store, "face_id", heads=["nearest-neighbor"], selections=ATLAS)
    drop = {"seconds": 0}
    assert [row | drop for row in rows] == [
        {name: getattr(row, name) for name in rows[0]} | drop for row in found.rows
    ]
    assert "30 % by kl" in printed
    single = pd.read_csv(out / "rate_accuracy.csv")
    assert set(found.rate_accuracy()["layer"]) == set(single["layer"])
    similarity = pd.read_csv(out / "similarity-mean.csv", index_col=0)
    np.testing.assert_allclose(similarity.to_numpy(), vr.compare(store).cka, atol=1e-6)
    shuffled = pd.read_csv(out / "similarity-mean-shuffled.csv", index_col=0)
    np.testing.assert_allclose(shuffled.to_numpy(), vr.compare(store).shuffled, atol=1e-6)
    assert list(similarity.columns) == [spec.name for spec in store.layers]
    written = {path.name for path in out.iterdir()}
    assert {"layers.png", "similarity-mean.png", "cmc.png"} <= written
    assert any(name.startswith("rate_accuracy-nearest-neighbor") for name in written)
    assert (folder / "a.h5.scores").is_dir()
    (out / "notes.txt").touch()
    command("probe", "--latents", folder / "a.h5", "--layer", "4x4.0", "--out", out, *QUICK)
    now = {path.name for path in out.iterdir()}  # of the last run alone, and what is the user's
    assert now == {
        "results.jsonl", "results.csv", "comparisons.csv", "curves.csv", "report.json", "index.html",
        "layers.png", "cmc.png", "notes.txt",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--atlas", "--selection", "joint"], "leave --selection out"),
        (["--selection", "most"], "--selection: expected single, joint, .* found 'most'"),
        (["--control", "none", "--control", "pixels"], "--control none: leaves all controls out"),
        (["--cache", "c", "--no-cache"], "--cache and --no-cache: expected one of them"),
        (["--task", "few_shot", "--ways", "x"], "--ways: expected a whole number, .*'x'"),
        (["--task", "few_shot", "--ways"], "--ways: expected a value, found none"),
        (["--weighs", "3"], "--weighs is no option of probe or of face_id"),
        (["faces"], "faces: expected an option"),
        (["--train", "a.h5"], "--train and --test: expected both, found one"),
        (["--test", "a.h5"], "--train and --test: expected both, found one"),
        (["--protocol", "open-set", "--far", "0.001"], r"far=0\.001: expected at least 10"),
        (["--far", "0.1"], "far is an option of face_id's protocol open-set"),
        (["--task", "factors", "--ways", "3"], "--ways is an option of few_shot.*, not of factors"),
        (["--beside", "b.h5"], "expected the images of a.h5 in their order, found others"),
    ],
)
def test_what_makes_no_sense_together_is_refused(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    with pytest.raises(vr.TaskError, match=message):
        command("probe", "--latents", "a.h5", *arguments)


def test_train_on_one_store_and_test_on_another(folder):
    printed = command(
        "probe", "--train", folder / "a.h5", "--test", folder / "b.h5", "--layer", "8x8", "--json", *QUICK
    )  # fmt: skip
    rows = [json.loads(line) for line in printed.splitlines()]
    stores = [vr.LatentStore.open(folder / name) for name in ("a.h5", "b.h5")]
    expected = vr.probe(
        JoinedStore(*stores), "face_id", layers="8x8", heads=["nearest-neighbor"]
    ).rows
    assert [row["value"] for row in rows] == [row.value for row in expected]
    assert {(row["source"], row["n_train"], row["n_test"]) for row in rows} == {
        ("people -> people", 36, 24)
    }
    assert (folder / "b.h5.scores").is_dir()


def test_an_open_set_atlas_of_two_stores(folder):
    """Every person has a gallery, so three of six are drawn: 12 impostors."""
    printed = command(
        "probe", "--train", folder / "a.h5", "--test", folder / "b.h5", "--protocol", "open-set",
        "--far", "0.9", "--atlas", "--json", *QUICK,
    )  # fmt: skip
    rows = [json.loads(line) for line in printed.splitlines()]
    layers = [row["layer"] for row in rows if row["model"] == "tiny"]
    assert layers == [
        "1x1.0", "4x4.0", "0:2", "8x8.0", "0:3", "8x8.1", "0:4", "4x4,8x8", "1x1,8x8", "1x1,4x4",
    ]  # fmt: skip


def test_comparing_two_stores_writes_a_table_and_a_picture(folder, tmp_path):
    with pytest.raises(vr.TaskError, match="expected the images of"):
        command("compare", folder / "a.h5", folder / "b.h5", "--out", tmp_path)
    printed = command("compare", folder / "a.h5", folder / "c.h5", "--out", tmp_path / "new")
    table, shuffled = (
        pd.read_csv(tmp_path / "new" / f"{name}.csv", index_col=0)
        for name in ("similarity", "similarity-shuffled")
    )
    assert (list(table.index)[-1], list(table.columns)) == ("16x16.0", ["8x8.0", "8x8.1"])
    assert ((table > 0) & (table < 1)).all(axis=None)
    models, header, *lines, _ = printed.splitlines()
    assert models == "each layer of tiny (mean), and which of tiny (delta) is most like it"
    assert header.split() == ["layer", "most", "like", "CKA", "images", "shuffled"]
    for name, line in zip(table.index, lines, strict=True):
        like = table.loc[name].idxmax()
        figures = f"{table.loc[name, like]:.3f}", f"{shuffled.loc[name, like]:.3f}"
        assert line.split() == [name, like, *figures]
    assert (tmp_path / "new" / "similarity.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "how", [{"features": ["mean"]}, {"features": ["mean", "kl"], "pool": "avg"}]
)
def test_without_the_kl_of_each_dimension_nothing_is_pruned(tiny, people, tmp_path, how):
    store = vr.extract(tiny, people(4), tmp_path / "s.h5", layers="<=4x4", **how)
    found = vr.probe(store, "face_id", heads=["nearest-neighbor"], selections=ATLAS)
    lines = found.notes
    assert any(line.startswith("no pruning: it takes") for line in lines)
    own = [row.layer for row in found.rows if (row.model, row.metric) == ("tiny", "rank1")]
    assert own == ["1x1.0", "4x4.0", "0:2"]
    assert found.nats == pytest.approx(
        {"1x1.0": store.kl[:, 0].mean(), "0:2": store.kl.sum(1).mean()}
    )


def test_it_says_whether_a_layer_was_chosen(tiny, people, tmp_path):
    vr.extract(
        tiny, people(2), tmp_path / "s.h5", layers="<=4x4"
    ).close()  # a gallery of single images
    probe = ["probe", "--latents", str(tmp_path / "s.h5"), *QUICK]
    assert "No row is picked" in CliRunner().invoke(app, probe).stdout
    alone = CliRunner().invoke(app, [*probe, "--layer", "4x4.0"])
    assert "No row is picked" not in alone.stdout
    assert "the only row, and compared" in alone.stdout


def test_nothing_is_pruned_where_all_images_are_tested(tiny, people, tmp_path):
    """View 2 of pairs of all images leaves none to learn the KL of."""
    source = people(2, num_people=12)
    object.__setattr__(
        source, "ids", tuple(f"P{i // 2:02d}_{i % 2 + 1:04d}.png" for i in range(24))
    )
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="<=4x4", features=["mean", "kl"])
    lines = ["2\t6"]
    for fold in range(2):
        own = [f"P{6 * fold + i:02d}" for i in range(6)]
        lines += [f"{name}\t1\t2" for name in own]
        lines += [f"{a}\t1\t{b}\t2" for a, b in zip(own, own[1:] + own[:1], strict=True)]
    (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
    found = vr.probe(
        store,
        vr.FaceVerification(pairs=tmp_path / "pairs.txt", far=[]),
        heads=["cosine"],
        selections=ATLAS,
    )
    notices = found.notes
    assert any("no pruning" in line for line in notices)
    assert {r.layer for r in found.rows if r.model == "tiny"} == {"1x1.0", "4x4.0", "0:2"}


def test_results_of_another_task_are_not_replaced_in_silence(folder, tmp_path):
    def probe(task):
        options = [
            "--control",
            "none",
            "--no-cache",
            "--out",
            str(tmp_path / "r"),
            "--layer",
            "1x1",
        ]
        done = CliRunner().invoke(
            app, ["probe", "--task", task, "--latents", str(folder / "a.h5"), *options]
        )
        assert done.exit_code == 0, done.output
        return done.stderr

    assert "will replace" not in probe("face_id")
    assert "will replace" not in probe("face_id")
    assert "holds results of face_id, which those of classification will replace" in probe(
        "classification"
    )
