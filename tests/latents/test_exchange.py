import json
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from launch import run

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.latents.decode import decode
from vdvae_repr.latents.exchange import import_latents
from vdvae_repr.latents.export import export
from vdvae_repr.model.weights import save


@pytest.fixture
def store(tiny, images, tmp_path):
    return vr.extract(tiny, images, tmp_path / "s.h5", features=("mean", "delta"))


def decoded(*args, **options):
    return np.concatenate([images for _, images in decode(*args, **options)])


def test_a_store_decodes_as_its_posterior_does(store, tiny, images):
    read = tiny.posterior(images)
    assert np.array_equal(decoded(store, tiny), tiny.decode(read))
    first = {spec.name: read[spec.name].mean for spec in tiny.layers[:2]}
    assert np.array_equal(decoded(store, tiny, "0:2"), tiny.decode(first))
    mixed = decoded(store, tiny, "<=4x4", ids=["3"], fine_from="7")
    own = {s.name: read[s.name].mean[3 if s.resolution <= 4 else 7][None] for s in tiny.layers}
    assert np.array_equal(mixed, tiny.decode(own))
    with pytest.raises(vr.StoreError, match=r"nothing is left to take from '7'; .* first=4$"):
        decoded(store, tiny, ids=["3"], fine_from="7")


def test_draws_belong_to_the_image_not_to_the_batch(store, tiny):
    options = {"rest": "sample", "pixels": "sample", "seed": 3}
    whole = decoded(store, tiny, "<=4x4", **options)
    alone = decoded(store, tiny, "<=4x4", ids=["5"], **options)
    assert np.mean(whole[5] != alone[0]) < 0.01  # rounding may move a pixel by one
    assert not np.array_equal(whole, decoded(store, tiny, "<=4x4", **(options | {"seed": 4})))


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_out_and_in_again(store, tiny, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("vdvae_repr.latents.base.SLICE_BYTES", 4 * 3000)  # many slices
    path = tmp_path / f"m{suffix}"
    assert export(store, path, "<=8x8") == (12, store.matrix("<=8x8")[0].shape[1])
    loaded = np.load(path)
    about = dict(loaded) if suffix == ".npz" else json.loads(path.with_suffix(".json").read_text())
    latents = loaded["latents"] if suffix == ".npz" else loaded
    assert np.array_equal(latents, store.matrix("<=8x8")[0])
    assert list(about["ids"]) == list(store.ids)
    assert list(about["layers"]) == ["1x1.0", "4x4.0", "8x8.0", "8x8.1"]
    assert list(about["columns"]) == [4, 4 + 64, 4 + 64 + 256, 4 + 64 + 512]
    back = import_latents(path, store, tmp_path / "back.h5", "<=8x8")
    assert np.array_equal(back.matrix()[0], latents)
    assert np.array_equal(decoded(back, tiny), decoded(store, tiny, "<=8x8"))
    back.verify()


def test_an_imported_store_says_that_its_images_were_not_looked_at(store, tiny, images, tmp_path):
    vr.extract(tiny, images[::-1].copy(), tmp_path / "other.h5").close()  # of the same ids
    store.export(tmp_path / "p.npz", "4x4")
    options = ["--like", "other.h5", "--layer", "4x4", "--out", "p.h5"]
    done = run("store", "import", "p.npz", *options, cwd=tmp_path)
    assert "taken by ids from other.h5" in done.stderr
    assert "was not checked" in done.stderr
    told = " ".join(run("store", "info", "p.h5", cwd=tmp_path).stdout.split())
    assert "source predicted: p.npz, like other.h5" in told
    assert "was not checked" in told
    assert "was not checked" not in run("store", "info", "other.h5", cwd=tmp_path).stdout


def test_a_store_counts_the_classes_of_its_images(tiny, people, tmp_path):
    source = people(2)  # of 6 people
    with vr.extract(tiny, source.select([0, 1, 2]), tmp_path / "few.h5", layers="1x1") as store:
        assert "3, 2 classes" in store._repr_html_()
    told = " ".join(run("store", "info", "few.h5", cwd=tmp_path).stdout.split())
    assert "images 3, 2 classes" in told
    assert "3 images, 2 classes" in repr(source.select([0, 1, 2]))


def test_the_files_ids_say_whose_a_row_is(store, tiny, tmp_path):
    X = store.matrix("<=4x4")[0]
    np.savez(tmp_path / "p.npz", latents=X[::-1], ids=np.array(store.ids)[::-1])
    back = import_latents(tmp_path / "p.npz", store, tmp_path / "p.h5", "<=4x4")
    assert np.array_equal(back.matrix()[0], X[::-1])
    assert back.ids == store.ids[::-1]


def test_one_id_as_text_is_not_taken_letter_by_letter(store, tiny, tmp_path):
    with pytest.raises(vr.StoreError, match=r"ids: expected a list of ids, found '11'"):
        next(decode(store, tiny, ids="11"))
    with pytest.raises(vr.StoreError, match=r"ids: expected a list of ids, found '11'"):
        import_latents(store.matrix()[0][:2], store, tmp_path / "p.h5", ids="11")


@pytest.mark.parametrize("layers", ["8x8.1,8x8.0", ["8x8.1", "8x8.0"], "8x8,1x1.0", [3, 2]])
def test_columns_in_another_order_than_the_models_are_refused(store, tmp_path, layers):
    """`matrix` and `export` give columns in the model's order, however layers are named."""
    X = store.matrix(layers)[0]
    with pytest.raises(vr.StoreError, match=r"in the order of the columns, .* 8x8\.\d first"):
        import_latents(X, store, tmp_path / "p.h5", layers)
    assert len(import_latents(X[:, :512], store, tmp_path / "q.h5", "8x8.0,8x8,8x8.1").layers) == 2


def labelled(tiny, images, path, names):
    source = Source(
        name="s",
        ids=tuple("abcd"),
        reader=lambda i: images[i],
        labels=np.array([0, 0, 1, 1]),
        label_names=names,
    )  # as of folders whose classes are numbered by name
    return vr.extract(tiny, source, path, layers="1x1")


def test_labels_of_a_file_that_are_not_those_of_its_rows_are_refused(tiny, images, tmp_path):
    store, out = labelled(tiny, images, tmp_path / "s.h5", ("ant", "cat")), tmp_path / "p.h5"
    X, path = store.matrix()[0], tmp_path / "p.npz"
    for labels in ([0, 0, 1, 1], ["ant", "ant", "cat", "cat"]):
        np.savez(path, latents=X, labels=labels)
        assert import_latents(path, store, out, overwrite=True).ids == store.ids
        np.savez(path, latents=X[::-1], labels=labels[::-1])
        with pytest.raises(
            vr.StoreError, match=r"not those of its rows: '(1|cat)' of 'a', .* 'ant'"
        ):
            import_latents(path, store, out, overwrite=True)
        np.savez(path, latents=X[::-1], labels=labels[::-1], ids=list("dcba"))
        assert import_latents(path, store, out, overwrite=True).ids == store.ids[::-1]
    np.savez(path, latents=X, labels=np.eye(4))
    with pytest.raises(vr.StoreError, match="expected 4 labels, found 16"):
        import_latents(path, store, out, overwrite=True)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_an_export_names_its_labels(tiny, images, tmp_path, suffix):
    """The cat is 1 in one store and 0 in the other."""
    found, stores = [], []
    for number, names in enumerate((("ant", "cat"), ("cat", "dog"))):
        stores.append(labelled(tiny, images, tmp_path / f"{number}.h5", names))
        path = tmp_path / f"{number}{suffix}"
        export(stores[-1], path)
        about = (
            np.load(path) if suffix == ".npz" else json.loads(path.with_suffix(".json").read_text())
        )
        found.append([about["label_names"][label] for label in about["labels"]])
    assert [list(map(str, names)) for names in found] == [
        ["ant"] * 2 + ["cat"] * 2,
        ["cat"] * 2 + ["dog"] * 2,
    ]
    import_latents(tmp_path / f"0{suffix}", stores[0], tmp_path / "p.h5")
    with pytest.raises(vr.StoreError, match="its labels are not those of its rows"):
        import_latents(tmp_path / f"0{suffix}", stores[1], tmp_path / "q.h5")


def test_what_was_not_sent_down_is_not_decoded(tiny, images, tmp_path):
    drawn = vr.extract(tiny, images, tmp_path / "d.h5", z="sample", features=["mean"])
    with pytest.raises(vr.StoreError, match='extract with features="z"'):
        next(decode(drawn, tiny))


def test_bad_predictions_are_refused(store, tiny, tmp_path):
    X = store.matrix("<=4x4")[0]
    out = tmp_path / "p.h5"
    with pytest.raises(vr.StoreError, match=r"expected 12 rows x 68 columns, .* found 12 x 60"):
        import_latents(X[:, :60], store, out, "<=4x4")
    broken = X.copy()
    broken[4, 10] = np.nan
    with pytest.raises(vr.StoreError, match=r"NaN or infinity in layer 4x4\.0, row 4 \(4\)"):
        import_latents(broken, store, out, "<=4x4")
    for other in (X.astype(str), X.astype(complex)):
        with pytest.raises(vr.StoreError, match="expected real numbers, found"):
            import_latents(other, store, out, "<=4x4")
    with pytest.raises(vr.StoreError, match="every id once, found '1' twice"):
        import_latents(X[:2], store, out, "<=4x4", ids=["1", "1"])
    with pytest.raises(vr.StoreError, match="id 'x' is not one of"):
        import_latents(X[:1], store, out, "<=4x4", ids=["x"])
    with pytest.raises(vr.StoreError, match="no split 'test'"):
        import_latents(X, store, out, "<=4x4", split="test")
    assert not out.exists()
    (tmp_path / "text.npy").write_text("no numbers")
    with pytest.raises(vr.StoreError, match=r"expected a \.npy or \.npz file"):
        import_latents(tmp_path / "text.npy", store, out)
    with pytest.raises(vr.StoreError, match=r"ends in \.npy or \.npz"):
        export(store, tmp_path / "m.mat")


def test_predictions_of_no_image_are_refused(store, tmp_path):
    nothing = np.zeros((0, store.matrix()[0].shape[1]), np.float32)
    with pytest.raises(vr.StoreError, match="expected a row of one image at least, found no ids"):
        vr.import_latents(nothing, store, tmp_path / "p.h5", ids=[])


def test_a_matrix_of_another_shape_is_refused_before_it_takes_memory(store, tmp_path, monkeypatch):
    def read(path, archive, member):
        raise AssertionError(member.filename)

    monkeypatch.setattr("vdvae_repr.latents.exchange.read_member", read)
    np.savez_compressed(tmp_path / "p.npz", latents=np.zeros((12, 10**6), np.int8))
    with pytest.raises(vr.StoreError, match=r"12 rows x 68 columns, .* found 12 x 1000000"):
        import_latents(tmp_path / "p.npz", store, tmp_path / "p.h5", "<=4x4")


def test_a_damaged_npz_of_predictions_is_refused_in_a_line(store, tmp_path):
    path = tmp_path / "p.npz"
    X = store.matrix("<=4x4")[0]
    np.savez_compressed(path, latents=X, ids=store.ids)
    assert len(import_latents(path, store, tmp_path / "p.h5", "<=4x4")) == 12
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        message = ""
        try:
            made = import_latents(path, store, tmp_path / "p.h5", "<=4x4", overwrite=True)
        except vr.StoreError as error:
            message = str(error)
        assert message.count(str(path)) == bool(message)
        assert message.startswith(str(path)) or np.array_equal(made.matrix()[0], X)
    with zipfile.ZipFile(path, "w") as archive, archive.open("latents.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (12, 68)}
        )
    with pytest.raises(vr.StoreError, match="3264 bytes, where 0 are there"):
        import_latents(path, store, tmp_path / "p.h5", "<=4x4", overwrite=True)
    with pytest.raises(vr.StoreError, match="matrix: expected a NumPy array"):
        import_latents([[1.0]], store, tmp_path / "p.h5", "<=4x4", overwrite=True)


def test_a_matrix_that_is_refused_is_named_once_whatever_its_name(store, tmp_path):
    path = tmp_path / "a\nb.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("latents", "latents.npy"):
            archive.writestr(name, b"")
    with pytest.raises(vr.StoreError) as refusal:
        import_latents(path, store, tmp_path / "p.h5", "<=4x4")
    assert str(refusal.value).count("b.npz") == 1


def test_damage_to_a_large_matrix_is_refused(store, tmp_path, monkeypatch):
    """It is compared with its checksum whatever its size, as what is imported is read whole anyway."""
    monkeypatch.setattr("vdvae_repr.data.readers.arrays.EXACT_BYTES", 0)
    path, X = tmp_path / "p.npz", store.matrix()[0]
    np.savez(path, latents=X)
    assert len(import_latents(path, store, tmp_path / "p.h5")) == 12
    content = bytearray(path.read_bytes())
    content[content.index(X.tobytes()) + X.nbytes - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(vr.StoreError, match=r"latents.npy: its bytes are not those that were"):
        import_latents(path, store, tmp_path / "p.h5", overwrite=True)


def test_numbers_too_large_for_float32_are_refused(store, tmp_path):
    X = store.matrix("<=4x4")[0].astype(np.float64)
    X[2, 0] = 1e300
    with pytest.raises(vr.StoreError, match=r"layer 1x1\.0, row 2 \(2\)"):
        import_latents(X, store, tmp_path / "p.h5", "<=4x4")
    assert not (tmp_path / "p.h5").exists()


@pytest.mark.parametrize("name", ["m.npz", "m.npy", "p.h5"])
def test_a_full_disk_leaves_nothing_half_written(store, small_disk, name):
    (small_disk / "ballast").write_bytes(bytes(2**20 - 2**15))
    X = store.matrix()[0]
    assert X.nbytes > 2**16
    write = partial(import_latents, X) if name == "p.h5" else export
    with pytest.raises(vr.StoreError, match=rf"{name}: cannot be written \(No space left") as full:
        write(store, small_disk / name)
    assert "\n" not in str(full.value)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_other_weights_do_not_decode(store, tiny):
    torch.manual_seed(1)
    other = vr.VDVAE(tiny.config, name="other").eval()
    with pytest.raises(
        vr.StoreError, match="latents of tiny with other weights than those of other"
    ):
        next(decode(store, other))
    with pytest.raises(vr.StoreError, match="no image 'nobody'"):
        next(decode(store, tiny, ids=["nobody"]))


def test_slices_of_a_layer_and_a_torch_data_set(store, tiny, images):
    mean = tiny.posterior(images)["8x8.1"].mean.numpy()
    np.testing.assert_allclose(store["8x8.1"].mean[2:5], mean[2:5], rtol=1e-5, atol=1e-6)
    assert store["8x8.1"].delta.shape == mean.shape
    with pytest.raises(vr.LayerError, match=r"not stored.*features=.z. and z=.sample."):
        _ = store["8x8.1"].z
    with pytest.raises(
        vr.LayerError, match=r"expected the name of one layer, found '8x8'"
    ) as refused:
        _ = store["8x8"]
    assert "8x8.0" in str(refused.value)
    assert "store.matrix(layers='8x8')" in str(refused.value)
    with pytest.raises(vr.LayerError, match="'means' is not stored; did you mean 'mean'"):
        store.matrix("8x8", feature="means")
    items = store.dataset("8x8", pool="avg")
    batches = torch.utils.data.DataLoader(items, batch_size=5, num_workers=1)
    rows = torch.cat([features for features, _ in batches])
    assert np.array_equal(rows.numpy(), store.matrix("8x8", pool="avg")[0])


def test_decoding_onto_a_full_disk_is_one_line(store, tiny, small_disk, tmp_path):
    (small_disk / "ballast").write_bytes(bytes(2**20))
    save(tiny, tmp_path / "tiny.safetensors", record={})
    for where in (["--out", small_disk / "d"], ["--out", "d", "--sheet", small_disk / "s.png"]):
        done = run("decode", "s.h5", "--model", "tiny.safetensors", *where, cwd=tmp_path)
        assert done.returncode == 2
        assert "No space left on device" in done.stderr
        assert "make room" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_predictions_of_another_models_latents_are_refused(store, tiny, images, tmp_path, suffix):
    """A file that says of which weights its latents are is held to it; one that says nothing is taken."""
    other = vr.VDVAE(tiny.config, name="other").eval()
    foreign = vr.extract(other, images, tmp_path / "other.h5")
    foreign.export(tmp_path / f"m{suffix}")
    with pytest.raises(
        vr.StoreError, match=r"expected those of .*s\.h5, tiny, weights [0-9a-f]{8}"
    ):
        vr.import_latents(tmp_path / f"m{suffix}", store, tmp_path / "p.h5")
    assert not (tmp_path / "p.h5").exists()
    assert len(vr.import_latents(tmp_path / f"m{suffix}", foreign, tmp_path / "p.h5")) == 12
    np.savez(tmp_path / "named.npz", latents=store.matrix()[0], model="another")
    with pytest.raises(vr.StoreError, match=r"holds latents of another, "):
        vr.import_latents(tmp_path / "named.npz", store, tmp_path / "q.h5")
    np.savez(tmp_path / "bare.npz", latents=store.matrix()[0])
    assert len(vr.import_latents(tmp_path / "bare.npz", store, tmp_path / "q.h5")) == 12


def test_a_json_that_is_of_another_matrix_says_nothing(store, tmp_path):
    store.export(tmp_path / "m.npy")
    np.save(tmp_path / "m.npy", store.matrix("8x8.0")[0])
    assert len(vr.import_latents(tmp_path / "m.npy", store, tmp_path / "p.h5", "8x8.0")) == 12


def test_a_matrix_saved_over_an_export_does_not_take_its_ids(store, tmp_path):
    path, out = tmp_path / "m.npy", tmp_path / "p.h5"
    store.export(path)
    np.save(path, store.matrix()[0][::-1])
    with pytest.raises(vr.StoreError, match=r"saved over an export.*m\.json"):
        vr.import_latents(path, store, out)
    backwards = list(store.ids)[::-1]
    assert list(vr.import_latents(path, store, out, ids=backwards).ids) == backwards
    path.with_suffix(".json").unlink()
    assert vr.import_latents(path, store, out, overwrite=True).ids == store.ids


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("says", ["pool", "shapes", "columns"])
def test_what_a_file_says_of_its_columns_is_compared(store, tmp_path, says, suffix):
    path = tmp_path / f"m{suffix}"
    store.export(path, "<=4x4")
    if suffix == ".npz":
        about = dict(np.load(path))
        del about["sha256"]
        other = {"pool": "avg", "shapes": about["shapes"][:, ::-1], "columns": about["columns"] - 1}
        np.savez(path, **(about | {says: other[says]}))
    else:
        beside = path.with_suffix(".json")
        about = json.loads(beside.read_text())
        ends = [about["columns"][0] - 1, *about["columns"][1:]]
        shapes = [shape[::-1] for shape in about["shapes"]]
        other = {"pool": "avg", "shapes": shapes, "columns": ends}
        beside.write_text(json.dumps(about | {says: other[says]}))
    if (says, suffix) == ("columns", ".npz"):
        message = "says that it holds columns 3 .. 67, expected 4 .. 68"
    else:
        message = f"says that it holds {says} "
    with pytest.raises(vr.StoreError, match=message):
        import_latents(path, store, tmp_path / "o.h5", "<=4x4")


def test_ids_without_an_order_are_refused(store, tiny, tmp_path):
    """A set would give each row the latents of another image."""
    with pytest.raises(vr.StoreError, match="ids: expected ids in order, found set"):
        import_latents(store.matrix()[0], store, tmp_path / "o.h5", ids=set(store.ids))
    with pytest.raises(vr.StoreError, match="ids: expected ids in order, found set"):
        next(decode(store, tiny, ids=set(store.ids)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_matrices_in_one_file_are_refused(store, tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, latents=store.matrix()[0])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("latents.npy", archive.read("latents.npy"))
    with pytest.raises(vr.StoreError, match="expected one array 'latents', found two"):
        import_latents(path, store, tmp_path / "o.h5")
