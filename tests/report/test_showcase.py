"""Contact sheets of a first look, and the command that shows them."""

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from typer.testing import CliRunner

import vdvae_repr as vr
from vdvae_repr import cli
from vdvae_repr.data.sheet import save_sheet
from vdvae_repr.report import showcase

GREEN = [0, 158, 115]


@pytest.fixture
def store(tiny, people, tmp_path):
    return vr.extract(tiny, people(8), tmp_path / "s.h5")


def test_the_lowest_row_is_what_all_layers_rebuild(store, tiny):
    sheet, rungs = showcase.reconstructions(store, tiny)
    whole = dict(zip(store.ids, np.concatenate([p for _, p in store.decode(tiny)]), strict=True))
    shown = [
        np.flatnonzero((store.images() == image).all(axis=(1, 2, 3)))[0] for image in sheet.rows[0]
    ]
    assert set(store.labels[shown]) == set(range(6))  # everybody
    assert np.array_equal(sheet.rows[-1], [whole[store.ids[row]] for row in shown])
    assert [rung.layers for rung in rungs] == sorted({rung.layers for rung in rungs})
    assert rungs[-1].layers == len(tiny.layers)
    assert rungs[-1].nats == pytest.approx(store.kl.sum(axis=1).mean(), rel=1e-5)


def test_neighbours_are_those_of_scikit_learn_and_the_same_people_are_framed(store):
    sheet, shares = showcase.neighbours(store)
    images = store.images()
    pixels = images.reshape(len(images), -1).astype(float)
    pixels -= pixels.mean(axis=0)
    found = (
        NearestNeighbors(n_neighbors=6, metric="cosine").fit(pixels).kneighbors(pixels)[1][:, 1:]
    )
    assert shares["pixels"] == (store.labels[found[:, 0]] == store.labels).mean()
    at = sheet.labels.index("pixels")
    query = np.flatnonzero((images == sheet.rows[at][0]).all(axis=(1, 2, 3)))[0]
    assert np.array_equal(sheet.rows[at][1:], images[found[query]])
    same = 6 * at + 1 + np.flatnonzero(store.labels[found[query]] == store.labels[query])
    assert [number for number in sheet.framed if number // 6 == at] == same.tolist()


def test_a_face_becomes_another(store, tiny):
    sheet = showcase.interpolation(store, tiny)
    whole = np.concatenate([pixels for _, pixels in store.decode(tiny)])
    ends = [{row[k].tobytes() for row in sheet.rows} for k in (0, -1)]
    assert all(end <= {image.tobytes() for image in whole} for end in ends)
    assert not ends[0] & ends[1]


def test_titles_stand_above_columns_and_frames_around_images(tmp_path):
    images = np.zeros((4, 64, 64, 3), np.uint8)
    plain, dressed = tmp_path / "plain.png", tmp_path / "dressed.png"
    save_sheet(images, plain, columns=2)
    save_sheet(images, dressed, columns=2, titles=["query", "nearest"], framed=[3])
    plain, dressed = np.asarray(Image.open(plain)), np.asarray(Image.open(dressed))
    top = len(dressed) - len(plain)
    assert top > 0
    assert (dressed[:top] < 128).any()
    dressed, plain = dressed[top + 6 :], plain[6:]  # from the first row of images on
    added = (dressed != plain).any(axis=2)
    assert (dressed[added] == GREEN).all()
    rows, columns = np.nonzero(added)
    assert rows.min() >= 128
    assert columns.min() >= 6 + 128
    assert not (plain[added] == 0).any()  # on the gaps alone


def test_the_demo_shows_pictures_an_answer_and_last_the_page(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_load_vdvae", lambda *_: tiny)
    monkeypatch.setattr("vdvae_repr.probing.controls.INITIALISATIONS", 1)
    monkeypatch.setattr("vdvae_repr.probing.task.PERMUTATIONS", 1)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
    done = CliRunner().invoke(cli.app, ["demo"])
    assert done.exit_code == 0, done.exception
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("face_id, closed-set: 40 people") for line in lines)
    named = [line.partition(":")[0] for line in lines if line.startswith("demo/")]
    assert named == [
        "demo/reconstructions.png", "demo/neighbours.png", "demo/interpolation.png", "demo/index.html",
    ]  # fmt: skip
    assert lines[-1].startswith("demo/index.html")
    assert [name for name in named if not (tmp_path / name).stat().st_size] == []
    assert "<img" in (tmp_path / "demo/index.html").read_text("utf-8")
