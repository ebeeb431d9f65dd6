"""Stores of the first version, two stores as one, and stores in a `with`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.latents.base import Latents
from vdvae_repr.latents.store import JoinedStore

FIRST = Path(__file__).parent / "stores" / "first.h5"  # written by the first version


@pytest.fixture
def eight():
    """The source of which the first version made its store."""
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    return Source(
        name="eight",
        ids=tuple(f"{'train' if i < 5 else 'test'}/{'ab'[i % 2]}/{i}.png" for i in range(8)),
        reader=lambda i: images[i],
        labels=np.array([i % 2 for i in range(8)]),
        label_names=("a", "b"),
        splits=("train",) * 5 + ("test",) * 3,
        factors={"light": images.mean((1, 2, 3)), "hue": np.array(list("rgbrgbrg"))},
    )


def test_a_store_of_the_first_version_opens_reads_and_decodes(tiny, eight):
    """The numbers are what the first version printed when it wrote the store."""
    with vr.open(FIRST) as store:
        X, labels, ids = store.matrix()
        assert (X.shape, ids[5]) == ((8, 580), "test/b/5.png")
        np.testing.assert_allclose(X[1, :3], [-0.03497852, -0.1524557, -0.13715051], rtol=1e-6)
        assert X.sum(dtype=np.float64) == pytest.approx(210.14275307022035)
        assert store.kl.sum(dtype=np.float64) == pytest.approx(96.85811861604452)
        assert labels.tolist() == [0, 1] * 4
        assert store.label_names == ("a", "b")
        assert store.rows("test").tolist() == [5, 6, 7]
        assert list(store.factors["hue"]) == list("rgbrgbrg")
        np.testing.assert_allclose(store.factors["light"], store.images().mean((1, 2, 3)))
        assert (store.info.model, store.info.pool, store.info.draws) == ("tiny", None, None)
        store.verify()
        ((_, images),) = store.decode(tiny)
        assert abs(int(images.astype(int).sum()) - 821519) < 200  # rounding may move a pixel by one
        rows = vr.probe(store, "classification", layers="8x8.1", heads=["knn"]).rows
        assert "8x8.1" in {row.layer for row in rows}


def test_the_first_versions_store_is_complete_to_this_one(tiny, eight, tmp_path):
    """What tells an extraction from another is as it was, so that stores and parts are gone on with."""
    path = tmp_path / "s.h5"
    shutil.copy(FIRST, path)
    lines = []
    store = vr.extract(tiny, eight, path, layers="<=8x8", features=["mean"], report=lines.append)
    assert lines[-1] == f"{path}: already complete"
    assert "does not say of what its images were made" in lines[0]
    new = vr.extract(tiny, eight, tmp_path / "n.h5", layers="<=8x8", features=["mean"])
    varying = {"created", "versions", "metadata_sha256"}
    assert {k: v for k, v in new.attrs.items() if k not in varying} == {
        k: v for k, v in store.attrs.items() if k not in varying
    }
    np.testing.assert_allclose(new.matrix()[0], store.matrix()[0], atol=1e-5)


@pytest.fixture
def two(tiny, people, tmp_path):
    """Stores of 12 and 8 images of the same model."""
    first, second = people(3, 4, seed=0), people(2, 4, seed=1)
    return tuple(
        vr.extract(tiny, source, tmp_path / f"{name}.h5", mirror=True)
        for name, source in (("a", first), ("b", second))
    )


def test_two_stores_read_as_one(two):
    a, b = two
    whole = np.concatenate([a.matrix("8x8.0")[0], b.matrix("8x8.0")[0]])
    joined = JoinedStore(a, b)
    assert not isinstance(joined, vr.LatentStore)
    assert isinstance(joined, Latents)
    assert len(joined) == len(joined.ids) == len(joined.splits) == 20
    mean = joined["8x8.0"].mean
    assert (len(mean), mean.shape) == (20, (20, 4, 8, 8))
    flat = whole.reshape(20, 4, 8, 8)
    for rows in (
        slice(10, 14),
        slice(0, 0),
        slice(13, None),
        np.array([3, 11, 12, 19]),
        slice(None),
    ):
        assert np.array_equal(mean[rows], flat[rows])
    for row in (0, 11, 12, 19, -1):
        assert np.array_equal(mean[row], flat[row])
    assert np.array_equal(joined.matrix("8x8.0", split="test")[0], whole[12:])
    assert np.array_equal(
        joined.mirrored().matrix("8x8.0")[0][12:], b.mirrored().matrix("8x8.0")[0]
    )
    assert joined.info.source == joined.attrs["source"] == "people -> people"
    joined.verify()


@pytest.mark.parametrize("of_test", [["1", "2"], ["2", "1"], ["1"]])
def test_layers_of_two_stores_go_together_by_name(images, tmp_path, of_test):
    """Each encoder numbers the layers that it was told to read: a number is another layer in each store."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(3)))

    def stored(name, layers, images):
        encoder = vr.TorchEncoder(net, layers=layers, size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
        return vr.extract(encoder, images, tmp_path / name)

    a = stored("a.h5", ["0", "1"], images[:7])
    b = stored("b.h5", of_test, images[7:])
    joined = JoinedStore(a, b)
    assert [spec.name for spec in joined.layers] == ["1"]
    both = [store.matrix("1", "activation")[0] for store in (a, b)]
    assert np.array_equal(joined.matrix("1", "activation")[0], np.concatenate(both))
    (spec,) = joined.layers
    assert b.digest(b["1"].spec, "activation") in joined.digest(spec, "activation")
    with pytest.raises(vr.LayerError, match="'0'"):
        joined.matrix("0", "activation")


def test_of_a_split_store_what_is_learned_on_is_its_train_and_val(tiny, people, tmp_path):
    first, second = people(4, 3, seed=0), people(3, 2, seed=1)
    first = replace(first, splits=("train", "test", "val", "train") * 3)
    a = vr.extract(tiny, first, tmp_path / "a.h5", layers="4x4")
    b = vr.extract(tiny, second, tmp_path / "b.h5", layers="4x4")
    joined = JoinedStore(a, b)
    kept = [i for i in range(12) if i % 4 != 1]
    assert joined.splits == ("train", "val", "train") * 3 + ("test",) * 6
    assert joined.ids[:9] == tuple(f"train/{a.ids[i]}" for i in kept)
    assert np.array_equal(joined.matrix("4x4")[0][:9], a.matrix("4x4")[0][kept])
    assert np.array_equal(
        joined["4x4.0"].mean[8:10, 0, 0, 0], joined["4x4.0"].mean[:, 0, 0, 0][8:10]
    )
    assert joined.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [0] * 3 + [1] * 3
    assert joined.kl.shape[0] == len(joined.images()) == len(joined.factors["bright"]) == 15
    (line,) = joined.notices
    assert "3 images not of split train or val left out" in line
    other_way = JoinedStore(b, a)  # of what is tested on, the split test
    assert other_way.splits == ("train",) * 6 + ("test",) * 3
    assert np.array_equal(other_way.matrix("4x4")[0][6:], a.matrix("4x4", split="test")[0])
    neither = replace(second, splits=("val", "test", "test") * 2)
    c = vr.extract(tiny, neither, tmp_path / "c.h5", layers="4x4")
    with pytest.raises(
        vr.StoreError, match="expected images of split train, or of one split alone"
    ):
        JoinedStore(c, a)


def test_sides_interchanged_and_of_other_precision_are_said(tiny, people, tmp_path):
    known, asked = people(3, 4, seed=0), people(3, 4, seed=1)
    a, b = (
        vr.extract(tiny, replace(source, splits=(split,) * 12), tmp_path / f"{split}.h5", **options)
        for source, split, options in (
            (known, "train", {}),
            (asked, "test", {"precision": "bf16", "dtype": "float16"}),
        )
    )
    rounding = [
        f"{b.path}: its precision is bf16, that of {a.path} is fp32: values differ by rounding",
        f"{b.path}: its dtype is float16, that of {a.path} is float32: values differ by rounding",
    ]
    assert list(JoinedStore(a, b).notices) == rounding
    notes = vr.probe(
        JoinedStore(b, a), "classification", layers="4x4.0", heads="ridge", controls=(), cache=None
    ).notes
    for line in (
        f"{b.path}: all images are of split test, and are learned on",
        f"{a.path}: all images are of split train, and are tested on",
    ):
        assert line in notes
    (alone,) = (
        note
        for note in vr.probe(
            b, "classification", layers="4x4.0", heads="ridge", controls=(), cache=None
        ).notes
        if "first half" in note
    )
    assert "all images are of split test: train is the first half" in alone


def test_of_a_network_without_means_the_feature_stored_is_read(images, tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
    encoder = vr.TorchEncoder(net, layers=["0"], size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    store = vr.extract(encoder, images, tmp_path / "e.h5")
    X = store.matrix(feature="activation")[0]
    assert np.array_equal(store.matrix()[0], X)
    assert np.array_equal(np.concatenate(list(store.slices())), X)
    assert np.array_equal(np.concatenate(list(store.columns("0")), axis=1), X)
    assert np.array_equal(store.dataset()[0][0].numpy(), X[0])


def test_closing_two_stores_closes_both(two):
    with JoinedStore(*two) as joined:
        assert joined.images().shape == (20, 16, 16, 3)
    for store in two:
        with pytest.raises(vr.StoreError, match="is closed"):
            store.matrix("1x1")


def test_a_with_closes_the_file_also_after_an_error(two, tmp_path):
    with pytest.raises(ZeroDivisionError), vr.open(tmp_path / "a.h5") as store:
        _ = 1 / 0
    with pytest.raises(vr.StoreError, match="is closed"):
        store.matrix("1x1")
    assert repr(two[0]).startswith(f"<LatentStore {tmp_path / 'a.h5'}: tiny, 12 images, 5 layers")


def test_attributes_hold_no_bare_nan(two):
    def no_constant(word):
        raise AssertionError(word)

    with h5py.File(two[0].path) as file:
        for value in [*file.attrs.values(), file["labels"].attrs["names"]]:
            if isinstance(value, str) and value.startswith(("[", "{")):
                json.loads(value, parse_constant=no_constant)


ROWS = {
    "one": 3,
    "negative": -1,
    "numpy": np.int64(2),
    "slice": slice(2, 7, 2),
    "backwards": slice(None, None, -1),
    "beyond": slice(5, 100),
    "any order": [7, 0, 3],
    "twice": [1, 1, -1],
    "none": [],
    "all": ...,
    "mask": np.arange(8) % 3 == 0,
    "more axes": (slice(0, 3), 0, slice(None), -1),
    "one, more axes": (2, [0, 1]),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_rows_of_a_layer_are_those_that_numpy_gives(rows):
    with vr.open(FIRST) as store:
        mean = store["8x8.1"].mean
        expected = np.asarray(store.read(mean.key, "mean"))
        assert np.array_equal(mean[rows], expected[rows])


@pytest.mark.parametrize(
    "rows",
    [
        8,
        -9,
        [0, 8],
        1.5,
        [0.5],
        "a",
        None,
        True,
        np.ones(5, bool),
        [[0, 1]],
        slice(0.5, 2),
        (0, 99),
    ],
)
def test_rows_that_are_not_there_are_named_in_a_line(rows):
    with vr.open(FIRST) as store:
        with pytest.raises(vr.StoreError) as refused:
            store["8x8.1"].mean[rows]
        assert isinstance(refused.value, IndexError)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("layers", [[], None, 1.5, -1, 99, "foo", b"8x8", ["8x8", "foo"], {"a"}])
def test_layers_that_are_not_there_are_named_in_a_line(layers):
    with vr.open(FIRST) as store, pytest.raises(vr.LayerError, match="the layers are"):
        store.matrix(layers)


@pytest.mark.parametrize("options", [{"feature": 3}, {"pool": 4}])
def test_options_of_another_type_are_refused_in_a_line(options):
    with vr.open(FIRST) as store, pytest.raises(vr.LayerError, match=r"found 4|stored are mean"):
        store.matrix(**options)


def named(images, as_picture=False):
    """A source of the same ids whatever the images."""
    return Source(
        name="named",
        ids=tuple(map(str, range(12))),
        reader=lambda i: Image.fromarray(images[i]).convert("RGBA") if as_picture else images[i],
        labels=np.arange(12) % 3,
    )


def test_stores_of_other_images_under_the_same_ids_are_not_compared(tiny, images, tmp_path):
    a = vr.extract(tiny, named(images), tmp_path / "a.h5")
    changed = images.copy()
    changed[7] = 0
    b = vr.extract(tiny, named(changed), tmp_path / "b.h5")
    message = r"b\.h5: expected the images of .*a\.h5, found others .* 1 in all, as '7'"
    with pytest.raises(vr.StoreError, match=message):
        vr.compare(a, b)
    with pytest.raises(vr.StoreError, match=message):
        vr.probe(a, "classification", layers="1x1", heads=["knn"], beside=[b])
    draws = {"features": ["z"], "z": "sample", "draws": 2}
    drawn = vr.extract(tiny, named(changed), tmp_path / "d.h5", layers="1x1", **draws)
    with pytest.raises(vr.StoreError, match=r"d\.h5: expected the images of"):
        vr.probe(a, "classification", layers="1x1", heads=["knn"], drawn=drawn)


def test_stores_of_the_same_images_are_compared_whatever_was_made_of_them(tiny, images, tmp_path):
    """From one source resized in two ways; and from two kinds of source that are read alike."""
    large = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)
    a = vr.extract(tiny, named(large), tmp_path / "a.h5", layers="1x1")
    resized = vr.extract(tiny, named(large), tmp_path / "b.h5", layers="1x1", resize="bilinear")
    assert not np.array_equal(a.images(), resized.images())
    other = vr.extract(tiny, named(large, as_picture=True), tmp_path / "c.h5", layers="1x1")
    lines = []
    for b in (resized, other):
        assert vr.compare(a, b, notice=lines.append).cka.shape == (1, 1)
    (line,) = lines  # one of the two is resized otherwise, which is said
    assert "resize bilinear" in line
    lines.clear()
    predicted = vr.import_latents(a.matrix()[0], a, tmp_path / "p.h5")
    vr.compare(predicted, a, notice=lines.append)
    assert not lines
    with vr.open(FIRST) as first:  # it holds no checksums, nor has an import of it images
        vr.import_latents(first.matrix()[0], first, tmp_path / "f.h5").close()
        with vr.open(tmp_path / "f.h5") as imported:
            vr.compare(first, imported, notice=lines.append)
    (line,) = lines
    assert line.endswith("cannot be told")
    cut = vr.extract(tiny, named(large), tmp_path / "d.h5", layers="1x1", crop=16)
    vr.compare(a, cut, notice=lines.append)
    assert "d.h5 shows another part of the images (crop 16)" in lines[1]


def test_a_data_set_takes_one_image_by_number_as_a_list_does(tiny, images, tmp_path):
    store = vr.extract(tiny, images, tmp_path / "s.h5", layers="1x1")
    data = store.dataset()
    for index in (-1, np.int64(-12), 11):
        assert np.array_equal(data[index][0], store.matrix()[0][index])
    assert len(list(data)) == 12
    for wrong in (slice(0, 2), [0, 1], np.zeros(12, bool), 12, -13, 1.0):
        with pytest.raises(IndexError, match=r"^expected .*found") as refusal:
            data[wrong]
        assert isinstance(refusal.value, vr.StoreError)


@pytest.mark.parametrize("layout", ["single", "virtual"])
def test_another_working_folder_changes_nothing_of_an_open_store(
    tiny, people, tmp_path, monkeypatch, layout
):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    store = vr.extract(tiny, people(4), "s.h5", layers="1x1", mirror=True, layout=layout)
    expected = store.matrix("1x1")[0]
    rows = store.dataset("1x1")
    options = {"heads": ["ridge"], "controls": (), "progress": False}
    said = vr.probe(store, "classification", **options).notes
    assert "scores are kept in s.h5.scores" in said
    monkeypatch.chdir(tmp_path / "b")
    np.testing.assert_array_equal(store.matrix("1x1")[0], expected)
    np.testing.assert_array_equal(rows[3][0], expected[3])
    assert store.mirrored().matrix("1x1")[0].shape == expected.shape
    assert store.verify() == ()
    said = vr.probe(store, "classification", **options).notes
    assert f"scores are kept in {tmp_path / 'a' / 's.h5.scores'}" in said
    assert not list((tmp_path / "b").iterdir())
    assert store.path.name == str(store.path) == "s.h5"
