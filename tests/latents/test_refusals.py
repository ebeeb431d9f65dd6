"""What extracting, decoding and exporting refuse: values that are not finite, files of somebody else."""

import copy
import dataclasses
import json
import os

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import vdvae_repr as vr
from vdvae_repr.data.sheet import save_picture
from vdvae_repr.latents.options import Compute, Sampling, Storage, resolve_options


@pytest.fixture
def source(images):
    return vr.open_source(images)


def stop(count):
    raise KeyboardInterrupt


# Values


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("pool", [None, "avg"])
def test_extract_refuses_values_that_are_not_finite(tiny, images, tmp_path, dtype, pool):
    broken = copy.deepcopy(tiny)
    with torch.no_grad():
        broken.top_down.blocks[2].posterior.c4.bias[0] = torch.nan
    with pytest.raises(
        vr.StoreError, match=r"layer 8x8\.0, mean: expected finite .* image '0'"
    ) as refused:
        vr.extract(broken, images, tmp_path / "s.h5", features=["mean"], dtype=dtype, pool=pool)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())  # so that it blocks no other extraction
    with pytest.raises(vr.StoreError, match=r"kl of layer 8x8\.0: expected finite"):
        vr.extract(broken, images, tmp_path / "s.h5", layers="8x8.0", features=["bottom_up"])


def test_the_image_that_is_not_finite_is_named(tiny, images, tmp_path):
    class Encoder:
        """Of which image 7 alone is infinite."""

        def __init__(self, encoder):
            self.inner = encoder

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def read(self, pixels, *args, **options):
            reading = self.inner.read(pixels, *args, **options)
            if len(pixels) == 4 and np.array_equal(np.asarray(pixels)[3], images[7]):
                reading.values["4x4.0", "mean"][3, 1, 2, 2] = torch.inf
            return reading

    from vdvae_repr.encoders.load import as_encoder

    with pytest.raises(vr.StoreError, match=r"layer 4x4\.0, mean: .* for image '7'"):
        vr.extract(Encoder(as_encoder(tiny)), images, tmp_path / "s.h5", batch_size=4)
    broken = Encoder(as_encoder(tiny))
    store = vr.extract(broken, images, tmp_path / "s.h5", batch_size=4, on_error="skip")
    (item,) = json.loads(store.attrs["skipped"])
    assert item == {"id": "7", "reason": "7: layer 4x4.0, mean holds NaN or infinity"}
    whole = vr.extract(tiny, images, tmp_path / "w.h5", batch_size=4)
    others = np.delete(np.arange(12), 7)
    assert store.ids == tuple(map(str, others))
    assert np.array_equal(store.matrix()[0], whole.matrix()[0][others])
    assert np.array_equal(store.images(), images[others])
    assert np.array_equal(store.kl, whole.kl[others])


def spoil(path, value, row=5):
    """Put a value that is not finite into one image of layer 8x8.0."""
    with h5py.File(path, "r+") as file:
        file["layers/002/mean"][row, 3, 1, 1] = value


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_decode_and_export_refuse_values_that_are_not_finite(tiny, images, tmp_path, value):
    path = tmp_path / "s.h5"
    vr.extract(tiny, images, path).close()
    spoil(path, value)
    with vr.open(path) as store:
        named = r"layer 8x8\.0, mean, image '5'"
        with pytest.raises(vr.StoreError, match=named):
            list(store.decode(tiny))
        for suffix in (".npz", ".npy"):
            with pytest.raises(vr.StoreError, match=named):
                store.export(tmp_path / f"m{suffix}")
        assert [p.name for p in tmp_path.iterdir()] == ["s.h5"]
        assert len(list(store.decode(tiny, "4x4"))) == 1
        assert store.export(tmp_path / "m.npz", "4x4") == (12, 64)


# Files


@pytest.mark.parametrize("overwrite", [False, True])
def test_only_a_store_is_replaced(tiny, images, tmp_path, overwrite):
    others = {"notes.txt": b"my notes", "photo.png": b"\x89PNG", "empty.h5": b""}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["mine"] = np.arange(3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    store = vr.extract(tiny, images, tmp_path / "s.h5")
    X = store.matrix()[0]
    for name in before:
        with pytest.raises(vr.StoreError, match=f"{name}: exists and is no latent store"):
            vr.extract(tiny, images, tmp_path / name, overwrite=overwrite)
        with pytest.raises(vr.StoreError, match=f"{name}: exists and is no latent store"):
            vr.import_latents(X, store, tmp_path / name, overwrite=overwrite)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "s.h5"} == before


def test_the_source_is_never_replaced_by_any_of_its_names(tiny, images, tmp_path, monkeypatch):
    """A store can itself be a source, as its images are an array."""
    path = tmp_path / "s.h5"
    vr.extract(tiny, images, path).close()
    before = path.read_bytes()
    os.link(path, tmp_path / "hard.h5")
    (tmp_path / "soft.h5").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for data in ("s.h5", str(path), "s.h5:images"):
        for out in ("s.h5", "./s.h5", "hard.h5", "soft.h5"):
            for source in (data, vr.open_source(data, rows="0:3")):
                with pytest.raises(vr.StoreError, match="is what the store is made from"):
                    vr.extract(tiny, source, out, overwrite=True)
    assert path.read_bytes() == before
    like = vr.open(path)
    with pytest.raises(vr.StoreError, match="is what the store is made from"):
        vr.import_latents(like.matrix()[0], like, "hard.h5", overwrite=True)
    assert path.read_bytes() == before


def test_a_file_of_the_sources_folder_is_not_replaced(tiny, images, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(images[0]).save(tmp_path / "in" / "a.png")
    np.save(tmp_path / "in.npy", images)
    for data, out in ((tmp_path / "in", tmp_path / "in" / "a.png"), (tmp_path / "in.npy",) * 2):
        before = out.read_bytes()
        with pytest.raises(vr.StoreError):
            vr.extract(tiny, data, out, overwrite=True)
        assert out.read_bytes() == before


def test_an_out_that_is_a_folder_is_said_to_be_one(tiny, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(vr.ConfigError, match="out: expected a path, found an empty text"):
        vr.extract(tiny, images, "")  # as --out "$UNSET"
    with pytest.raises(vr.StoreError, match="found a folder; give one in it") as refused:
        vr.extract(tiny, images, tmp_path)
    assert f'out="{tmp_path / "latents.h5"}"' in str(refused.value)
    with pytest.raises(vr.StoreError, match="which is a file, found a folder"):
        vr.open(tmp_path)
    store = vr.extract(
        tiny, images, tmp_path / "new" / "s.h5"
    )  # a folder that is not there is made
    assert store.export(tmp_path / "exported" / "m.npz")[0] == 12
    vr.import_latents(store.matrix()[0], store, tmp_path / "imported" / "p.h5").close()
    (tmp_path / "file").write_text("x")
    with pytest.raises(vr.StoreError, match=r"cannot be written"):
        vr.extract(tiny, images, tmp_path / "file" / "s.h5")


@pytest.mark.parametrize("layout", ["single", "virtual"])
def test_a_folder_of_parts_that_holds_something_else_is_left_alone(tiny, images, tmp_path, layout):
    mine = tmp_path / "s.h5.parts" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(vr.StoreError, match=r"expected parts .* found 'thesis\.txt'"):
            vr.extract(tiny, images, tmp_path / "s.h5", layout=layout, overwrite=overwrite)
    assert mine.read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5.parts"]


@pytest.mark.parametrize("name", ["s.h5.lock", "s.h5.writing", "s.h5.parts"])
def test_a_file_with_the_name_of_one_of_ours_is_left_alone(tiny, images, tmp_path, name):
    (tmp_path / name).write_text("years of work")
    with pytest.raises(vr.StoreError, match=rf"{name}: is in the way"):
        vr.extract(tiny, images, tmp_path / "s.h5")
    assert (tmp_path / name).read_text() == "years of work"


def test_a_virtual_store_is_replaced_only_when_the_new_one_can_begin(tiny, images, tmp_path):
    path = tmp_path / "v.h5"
    with vr.extract(tiny, images, path, layout="virtual") as store:
        X = store.matrix()[0]
    bad = vr.open_source(images)
    bad.factors["a/b"] = np.arange(12)
    with pytest.raises(vr.DataError, match="'a/b'"):
        vr.extract(tiny, bad, path, layout="virtual", overwrite=True)
    with vr.open(path) as store:
        assert np.array_equal(store.matrix()[0], X)


def test_export_replaces_its_own_files_alone(tiny, images, tmp_path):
    store = vr.extract(tiny, images, tmp_path / "s.h5")
    features = np.random.default_rng(0).normal(size=(3, 4))
    np.savez(tmp_path / "mine.npz", train_latents=features)
    np.save(tmp_path / "mine.npy", features)
    (tmp_path / "settings.json").write_text('{"lr": 1}')
    (tmp_path / "linked.npz").symlink_to(store.path)
    names = ["mine.npz", "mine.npy", "settings.json", "s.h5"]
    before = {name: (tmp_path / name).read_bytes() for name in names}
    for name in ("mine.npz", "mine.npy", "settings.npy", "linked.npz"):
        with pytest.raises(vr.StoreError, match="no export wrote it"):
            store.export(tmp_path / name)
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    for name in ("x.npz", "x.npy"):
        store.export(tmp_path / name, "1x1")
        assert store.export(tmp_path / name, "4x4") == (12, 64)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_predictions_in_the_place_of_an_export_are_not_replaced(tiny, images, tmp_path, suffix):
    """Predicted values under the names of an export, or beside its description, are somebody's work."""
    store = vr.extract(tiny, images, tmp_path / "s.h5", layers="4x4")
    out = tmp_path / f"x{suffix}"
    store.export(out)
    exported = dict(np.load(out)) if suffix == ".npz" else np.load(out)
    if suffix == ".npz":
        np.savez(out, **(exported | {"latents": 2 * exported["latents"]}))
    else:
        np.save(out, 2 * exported)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("x.*")}
    with pytest.raises(vr.StoreError, match="or it was changed since, so it is not replaced"):
        store.export(out)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("x.*")} == before
    assert len(vr.import_latents(out, store, tmp_path / "p.h5", ids=store.ids)) == 12
    if suffix == ".npz":
        np.savez(out, **exported)
    else:
        np.save(out, exported)  # what was written is known again
    store.export(out)
    if suffix == ".npy":  # a description to which somebody added a word
        about = json.loads((tmp_path / "x.json").read_text())
        (tmp_path / "x.json").write_text(json.dumps(about | {"notes": "mine"}))
        with pytest.raises(vr.StoreError, match="not replaced"):
            store.export(out)


def test_an_array_of_predictions_that_nothing_reads_is_named(tiny, images, tmp_path):
    store = vr.extract(tiny, images, tmp_path / "s.h5", layers="4x4")
    np.savez(tmp_path / "p.npz", latents=store.matrix()[0], index=np.arange(12)[::-1])
    with pytest.raises(vr.StoreError, match="found 'index', which nothing reads"):
        vr.import_latents(tmp_path / "p.npz", store, tmp_path / "p.h5")


def test_decoded_pictures_replace_no_photograph(tmp_path, images):
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    with pytest.raises(vr.DataError, match=r"a\.png: exists, and was not made by vdvae-repr"):
        save_picture(images[1], tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), images[0])
    for picture in images[:2]:
        save_picture(picture, tmp_path / "new" / "a.png")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), picture)


def test_a_failed_run_blocks_no_other(tiny, tmp_path):
    for index in range(4):
        Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "0.png").write_bytes(b"no image")
    out = tmp_path / "out" / "s.h5"
    with pytest.raises(vr.DataError, match=r"0\.png"):
        vr.extract(tiny, tmp_path, out)
    assert len(vr.extract(tiny, tmp_path, out, layers="1x1", on_error="skip")) == 3


def test_another_extraction_is_told_in_one_short_line(tiny, images, tmp_path):
    path = tmp_path / "s.h5"
    with pytest.raises(KeyboardInterrupt):
        vr.extract(tiny, images, path, progress=stop)
    with pytest.raises(vr.StoreError) as refused:
        vr.extract(
            tiny, images[:5], path, layers="1x1", seed=3, z="sample", mirror=True, pool="avg"
        )
    message = str(refused.value).replace(str(tmp_path), "")
    assert "source_sha256 was" in message
    assert "z was 'mean', is 'sample'" in message
    assert (
        "more); rerun that command on the same images, or discard it with overwrite=True" in message
    )
    assert len(message) < 300
    assert "\n" not in message


# Names


@pytest.mark.parametrize(
    ("what", "value", "message"),
    [("factors", {"a/b": np.arange(12)}, "'a/b'"),
     ("factors", {".": np.arange(12)}, r"'\.'"),
     ("factors", {"": np.arange(12)}, "''"),
     ("factors", {"a\0b": np.arange(12)}, "no store can keep a factor"),
     ("factors", {"f\udce9": np.arange(12)}, "no store can keep a factor"),
     ("factors", {"f": np.array(["x\0y"] * 12)}, "values of factor 'f'"),
     ("factors", {"f": np.array([None] * 12)}, "values of factor 'f'"),
     ("factors", {"f": np.arange(5)}, "expected 12 numbers or texts"),
     ("factors", {"f": np.arange(12).astype("datetime64[D]")}, "expected 12 numbers or texts"),
     ("ids", tuple(f"{i}\udce9" for i in range(12)), "ids: expected texts of Unicode"),
     ("ids", tuple(f"{i}\0" for i in range(12)), "ids: expected texts of Unicode"),
     ("label_names", ("a\udce9",), "names of labels")],
)  # fmt: skip
def test_what_no_store_can_hold_is_refused_before_anything_is_computed(
    tiny, source, tmp_path, what, value, message
):
    def fail(count):
        raise AssertionError("computed")

    with pytest.raises(vr.DataError, match=message) as refused:
        vr.extract(
            tiny, dataclasses.replace(source, **{what: value}), tmp_path / "s.h5", progress=fail
        )
    assert "\n" not in str(refused.value)
    str(refused.value).encode("utf-8")
    assert not list(tmp_path.iterdir())


def test_many_classes_and_long_names_are_kept(tiny, source, tmp_path):
    """HDF5 holds attributes above 64 KiB in another way."""
    names = tuple(f"class {i} {'ä' * 20}" for i in range(5000))
    many = dataclasses.replace(source, label_names=names, labels=np.arange(12) * 400)
    with vr.extract(tiny, many, tmp_path / "s.h5", layers="1x1") as store:
        assert store.label_names == names


def test_options_by_groups_and_by_keywords_are_the_same(tiny, images, tmp_path):
    groups = vr.extract(
        tiny, images, tmp_path / "a.h5", Sampling(z="sample", seed=4), Storage(pool="avg"),
        features=["z"], batch_size=5,
    )  # fmt: skip
    plain = vr.extract(
        tiny,
        images,
        tmp_path / "b.h5",
        z="sample",
        seed=4,
        pool="avg",
        features=["z"],
        batch_size=5,
    )
    assert groups.info.attributes() == plain.info.attributes()
    assert np.array_equal(groups.matrix(feature="z")[0], plain.matrix(feature="z")[0])
    with pytest.raises(TypeError, match="unknown option 'featurs'; did you mean 'features'"):
        vr.extract(tiny, images, tmp_path / "c.h5", featurs=["mean"])
    with pytest.raises(TypeError, match="each once at most"):
        resolve_options([Compute(), Compute()], {})
    with pytest.raises(TypeError, match="found 'all'"):
        vr.extract(tiny, images, tmp_path / "c.h5", "all")
    assert resolve_options([Sampling(seed=3)], {"seed": 5}).sampling.seed == 5


def test_predictions_of_other_layers_or_features_are_refused(tiny, images, tmp_path):
    """An exported file says what its columns are; layers of one width must not be taken for each other."""
    store = vr.extract(tiny, images, tmp_path / "s.h5", features=["mean", "delta"])
    store.export(tmp_path / "a.npz", "8x8.0")
    with pytest.raises(vr.StoreError, match=r"holds layers 8x8\.0, expected 8x8\.1"):
        vr.import_latents(tmp_path / "a.npz", store, tmp_path / "p.h5", "8x8.1")
    store.export(tmp_path / "d.npz", "8x8.0", feature="delta")
    with pytest.raises(vr.StoreError, match="holds feature delta, expected mean"):
        vr.import_latents(tmp_path / "d.npz", store, tmp_path / "p.h5", "8x8.0")
