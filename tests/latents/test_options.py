"""Draws, mirrored images, virtual stores, alignment, and the plan that inference runs by."""

import copy
import dataclasses
import json
import resource
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import vdvae_repr as vr
from vdvae_repr.data.faces import LANDMARKS, _detector, _similarity
from vdvae_repr.data.open import open_source
from vdvae_repr.data.source import Preprocessing
from vdvae_repr.latents import base as store_module
from vdvae_repr.latents import extract as module
from vdvae_repr.latents.decode import decode
from vdvae_repr.latents.format import arrays_of
from vdvae_repr.latents.parts import differences
from vdvae_repr.model.inference import compile_inference, plan_of
from vdvae_repr.model.precision import arithmetic
from vdvae_repr.model.preprocessing import to_input
from vdvae_repr.model.weights import random_weights


def test_draws_are_those_of_single_passes(tiny, images, tmp_path):
    store = vr.extract(tiny, images, tmp_path / "d.h5", features=["z"], z="sample", draws=3, seed=5)
    assert store["8x8.0"].z.shape == (12, 3, 4, 8, 8)
    single = [tiny.posterior(images, z="sample", seed=5, draw=draw) for draw in range(3)]
    for draw, read in enumerate(single):
        X, _, _ = store.matrix("8x8.0", f"z:{draw}")
        np.testing.assert_allclose(X, read["8x8.0"].z.flatten(1), rtol=1e-4, atol=1e-5)
    mean, _, _ = store.matrix("8x8.0", "z")
    expected = np.mean([read["8x8.0"].z.flatten(1).numpy() for read in single], axis=0)
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-5)
    kl = np.mean([read.kl.numpy() for read in single], axis=0)
    np.testing.assert_allclose(store.kl, kl, rtol=1e-4)
    # The first draw is the pass that --z sample without --draws makes, and what is decoded.
    alone = vr.extract(tiny, images, tmp_path / "z.h5", features=["z"], z="sample", seed=5)
    assert np.array_equal(alone.matrix(feature="z")[0], store.matrix(feature="z:0")[0])
    (_, first), (_, second) = next(iter(decode(alone, tiny))), next(iter(decode(store, tiny)))
    assert np.array_equal(first, second)


def test_draws_are_read_some_rows_at_a_time(tiny, images, tmp_path, monkeypatch):
    store = vr.extract(tiny, images, tmp_path / "d.h5", features=["z"], z="sample", draws=3)
    whole = {feature: store.matrix("8x8.1", feature)[0] for feature in ("z", "z:2")}
    monkeypatch.setattr(store_module, "SLICE_BYTES", 1)  # a row at a time
    for feature, expected in whole.items():
        np.testing.assert_array_equal(store.matrix("8x8.1", feature)[0], expected)
        (block,) = store.columns("8x8.1", feature)
        np.testing.assert_array_equal(block, expected)


def test_draws_that_make_no_sense_are_refused(tiny, images, tmp_path):
    with pytest.raises(vr.LayerError, match="features: expected at least one of mean"):
        vr.extract(tiny, images, tmp_path / "d.h5", features=[])
    with pytest.raises(vr.LayerError, match="draws are of the feature z alone"):
        vr.extract(tiny, images, tmp_path / "d.h5", z="sample", draws=2)
    store = vr.extract(tiny, images, tmp_path / "d.h5", features=["z"], z="sample", draws=2)
    with pytest.raises(vr.LayerError, match="z:0 to z:1"):
        store.matrix(feature="z:2")
    plain = vr.extract(tiny, images, tmp_path / "m.h5")
    with pytest.raises(vr.LayerError, match="no draws to choose among"):
        plain.matrix(feature="mean:0")


def test_mirrored_images_are_read_as_images_of_their_own(tiny, images, tmp_path, caplog):
    store = vr.extract(tiny, images, tmp_path / "s.h5", features=["mean", "delta"], mirror=True)
    other, flipped = store.mirrored(), np.ascontiguousarray(images[:, :, ::-1])
    read = tiny.posterior(flipped)
    np.testing.assert_allclose(
        other.matrix("16x16", "delta")[0], read["16x16.0"].delta.flatten(1), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(other.kl, read.kl, rtol=1e-4)
    assert np.array_equal(other.images(), flipped)
    assert np.array_equal(other.dataset("8x8.0")[3][0].numpy(), other.matrix("8x8.0")[0][3])
    assert np.array_equal(other.mirrored().matrix()[0], store.matrix()[0])
    store.verify()
    store.export(tmp_path / "plain.npy")
    assert "its mirrored images are not exported" in caplog.text
    caplog.clear()
    other.export(tmp_path / "mirrored.npy")
    assert np.array_equal(np.load(tmp_path / "mirrored.npy"), other.matrix()[0])
    assert not caplog.text
    with pytest.raises(vr.StoreError, match="extract with mirror=True"):
        vr.extract(tiny, images, tmp_path / "p.h5").mirrored()


def test_virtual_store_reads_as_a_single_one(tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    single = vr.extract(tiny, images, tmp_path / "s.h5", batch_size=2, mirror=True)
    store = vr.extract(tiny, images, tmp_path / "v.h5", batch_size=2, mirror=True, layout="virtual")
    assert np.array_equal(store.matrix()[0], single.matrix()[0])
    assert np.array_equal(store.kl, single.kl)
    assert np.array_equal(store.mirrored().images(), single.mirrored().images())
    assert len(list((tmp_path / "v.h5.parts").glob("part-*.h5"))) == 3
    assert store.path.stat().st_size < single.path.stat().st_size / 4
    store.verify()
    again = vr.extract(tiny, images, tmp_path / "v.h5", batch_size=2, mirror=True, layout="virtual")
    assert again.attrs["created"] == store.attrs["created"]
    for opened in (store, again):
        opened.close()
    # Both move together.
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("v.h5", "v.h5.parts"):
        shutil.move(tmp_path / name, moved / name)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(vr.LatentStore.open(moved / "v.h5").matrix()[0], single.matrix()[0])


def test_virtual_store_without_its_parts_is_refused(tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    vr.extract(tiny, images, tmp_path / "v.h5", batch_size=2, layout="virtual").close()
    part = tmp_path / "v.h5.parts" / "part-00001.h5"
    whole = part.read_bytes()
    part.write_bytes(whole[:-10])
    with pytest.raises(vr.StoreError, match=rf"part-00001.h5 has {len(whole) - 10} bytes, not"):
        vr.LatentStore.open(tmp_path / "v.h5")
    part.unlink()
    with pytest.raises(vr.StoreError, match=r"part-00001.h5 is missing"):
        vr.LatentStore.open(tmp_path / "v.h5")
    (tmp_path / "outside.h5").write_bytes(whole)
    part.symlink_to("/etc/hostname")
    with pytest.raises(vr.StoreError, match="lies outside its folder"):
        vr.LatentStore.open(tmp_path / "v.h5")
    part.unlink()
    part.write_bytes(whole)
    vr.LatentStore.open(tmp_path / "v.h5").close()
    with h5py.File(part, "r+") as file:
        offset = file["layers/002/mean"].id.get_chunk_info(0).byte_offset
    damaged = bytearray(whole)
    damaged[offset + 50] ^= 1
    part.write_bytes(bytes(damaged))
    with pytest.raises(vr.StoreError, match="damaged"):
        vr.LatentStore.open(tmp_path / "v.h5").verify()


def test_virtual_store_of_more_parts_than_open_files(tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 1)
    many = np.concatenate([images] * 5)
    single = vr.extract(tiny, many, tmp_path / "s.h5", batch_size=1, layers="1x1").matrix()[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:  # HDF5 reads what it cannot open as if nothing were there
        open_now = len(list(Path("/proc/self/fd").iterdir()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, hard))
        store = vr.extract(
            tiny, many, tmp_path / "v.h5", batch_size=1, layers="1x1", layout="virtual"
        )
        assert np.array_equal(store.matrix()[0], single)
        assert np.array_equal(store["1x1.0"].mean[50:58], store["1x1.0"].mean[:][50:58])
        assert np.array_equal(store["1x1.0"].mean[7], store["1x1.0"].mean[:][7])
        rows = np.array([3, 9, 41])
        assert np.array_equal(store["1x1.0"].mean[rows], store["1x1.0"].mean[:][rows])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_rerunning_makes_a_missing_part_again(tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    options = {"batch_size": 2, "layout": "virtual"}
    whole = vr.extract(tiny, images, tmp_path / "v.h5", **options).matrix()[0]
    parts = sorted((tmp_path / "v.h5.parts").glob("part-*.h5"))
    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    again = vr.extract(tiny, images, tmp_path / "v.h5", **options)
    assert np.array_equal(again.matrix()[0], whole)
    assert parts[0].stat().st_mtime_ns == kept


def test_links_inside_a_part_are_refused(tiny, images, tmp_path):
    store = vr.extract(tiny, images, tmp_path / "v.h5", layout="virtual")
    part = tmp_path / "v.h5.parts" / "part-00000.h5"
    other = vr.extract(tiny, 255 - images, tmp_path / "other.h5").path
    with h5py.File(part, "r+") as file:
        del file["layers/000/mean"]
        file["layers/000/mean"] = h5py.ExternalLink(str(other), "/layers/000/mean")
    with pytest.raises(vr.StoreError, match="'layers/000/mean' leads to another file"):
        store.matrix("1x1")
    with h5py.File(part, "r+") as file:  # a part has no parts, whatever it says
        del file["layers/000/mean"]
        layout = h5py.VirtualLayout((12, 4, 1, 1), np.float32)
        layout[:] = h5py.VirtualSource(str(other), "layers/000/mean", (12, 4, 1, 1))
        file.create_virtual_dataset("layers/000/mean", layout)
        file.attrs["parts"] = json.dumps([[str(other), other.stat().st_size, 12]])
    with pytest.raises(vr.StoreError, match="'layers/000/mean' leads to another file"):
        store.matrix("1x1")


def test_overwriting_a_virtual_store_replaces_its_parts(tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    path = tmp_path / "v.h5"
    vr.extract(tiny, images, path, batch_size=2, layout="virtual").close()
    with pytest.raises(vr.StoreError, match="already holds another extraction"):
        vr.extract(tiny, images, path, batch_size=2, layout="virtual", features=["kl"])
    store = vr.extract(
        tiny, images[:6], path, batch_size=2, layout="virtual", features=["kl"], overwrite=True
    )
    assert len(list((tmp_path / "v.h5.parts").glob("part-*.h5"))) == 2
    assert store.matrix(feature="kl")[0].shape[0] == 6
    store.verify()


def test_automatic_batch_size_is_recorded_and_kept(tiny, images, tmp_path, monkeypatch):
    def interrupt(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vr.extract(tiny, images, tmp_path / "s.h5", batch_size="auto", progress=interrupt)
    begun = json.loads((tmp_path / "s.h5.parts" / "extraction.json").read_text())["batch_size"]
    assert begun in (4, 8)  # 16 images there are not
    monkeypatch.setattr(
        module.ExtractionJob, "calibrate", lambda run: 1
    )  # a resumed run asks no clock
    store = vr.extract(tiny, images, tmp_path / "s.h5", batch_size="auto")
    assert store.attrs["batch_size"] == begun
    again = vr.extract(tiny, images, tmp_path / "s.h5", batch_size="auto")
    assert again.attrs["created"] == store.attrs["created"]


def test_unfinished_parts_of_another_extraction_are_discarded_by_overwrite(tiny, images, tmp_path):
    def interrupt(count):
        raise KeyboardInterrupt

    path = tmp_path / "s.h5"
    with pytest.raises(KeyboardInterrupt):
        vr.extract(tiny, images, path, progress=interrupt)
    with pytest.raises(vr.StoreError, match=r"unfinished extraction .*features.* overwrite=True"):
        vr.extract(tiny, images, path, features=["kl"])
    assert vr.extract(tiny, images, path, features=["kl"], overwrite=True).features == ("kl",)
    assert not (tmp_path / "s.h5.parts").exists()
    assert not (tmp_path / "s.h5.lock").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("z", "smaple"), ("dtype", "float64"), ("precision", "fp16"), ("on_error", "skpi"),
     ("layout", "virtaul"), ("batch_size", 0)],
)  # fmt: skip
def test_a_misspelt_option_leaves_nothing_behind(tiny, images, tmp_path, option, value):
    with pytest.raises((vr.StoreError, vr.ConfigError), match=f"{option}: expected"):
        vr.extract(tiny, images, tmp_path / "s.h5", **{option: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", 1), ("mirror", True), ("pool", "avg"), ("batch_size", 4), ("images", False), ("crop", 8),
     ("layers", "<=8x8"), ("z", "sample"), ("dtype", "float16"), ("precision", "bf16"),
     ("layout", "virtual")],
)  # fmt: skip
def test_a_changed_option_or_source_is_named_on_resume(tiny, images, tmp_path, option, value):
    def interrupt(count):
        raise KeyboardInterrupt

    path = tmp_path / "s.h5"
    with pytest.raises(KeyboardInterrupt):
        vr.extract(tiny, images, path, progress=interrupt)
    changed = "layers were" if option == "layers" else f"{option} was"
    with pytest.raises(vr.StoreError, match=f"unfinished extraction .*{changed}"):
        vr.extract(tiny, images, path, **{option: value})
    with pytest.raises(vr.StoreError, match="source_sha256 was"):
        vr.extract(tiny, images[:5], path)


def test_a_changed_size_is_named_on_resume(tiny, images, tmp_path):
    """Of the model's images, and of one picture's file."""

    def interrupt(count):
        raise KeyboardInterrupt

    for index in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(images[index]).save(tmp_path / "in" / f"{index}.png")
    with pytest.raises(KeyboardInterrupt):
        vr.extract(tiny, tmp_path / "in", tmp_path / "s.h5", progress=interrupt)
    larger = dataclasses.replace(
        tiny.config,
        image_size=32,
        bottom_up="32x1,32d2," + tiny.config.bottom_up,
        top_down=tiny.config.top_down + ",32m16",
    )
    with pytest.raises(vr.StoreError, match="image_size was 16, is 32"):
        vr.extract(vr.VDVAE(larger, name="tiny").eval(), tmp_path / "in", tmp_path / "s.h5")
    Image.new("RGB", (16, 16)).save(tmp_path / "in" / "1.png")
    with pytest.raises(vr.StoreError, match="source_sha256 was"):
        vr.extract(tiny, tmp_path / "in", tmp_path / "s.h5")


def test_another_network_is_named_by_the_beginnings_of_two_hashes(images, tmp_path):
    """Quoted whole, as hashes of weights are."""

    def encoder(slope):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.LeakyReLU(slope))
        return vr.TorchEncoder(net, layers=["1"], size=16, mean=(0.5,) * 3, std=(0.5,) * 3)

    vr.extract(encoder(0.1), images, tmp_path / "s.h5")
    with pytest.raises(
        vr.StoreError, match=r"network was '[0-9a-f]{8}\.\.\.', is '[0-9a-f]{8}\.\.\.'"
    ):
        vr.extract(encoder(0.2), images, tmp_path / "s.h5")


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"network": "b" * 64}, "network was None, is 'bbbbbbbb...'"),
        ({"mean": [0.5, 0.5]}, {"mean": [0.5, 0.4]}, "mean was [0.5, 0.5], is [0.5, 0.4]"),
        ({"encoder": "a"}, {"encoder": "x" * 40}, f"encoder was 'a', is '{'x' * 36}...'"),
    ],
)
def test_what_differs_of_two_configurations_is_quoted_whole(before, now, said):
    assert differences({"config": json.dumps(before)}, {"config": json.dumps(now)}) == said


@pytest.fixture
def photographs(tmp_path):
    """A folder of 20 JPEG photographs, one of them damaged."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(20):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(folder / f"{index}.jpg")
    (folder / "5.jpg").write_bytes(b"no photograph")
    return folder


@pytest.mark.parametrize(
    "options",
    [{}, {"z": "sample", "features": ["z"], "draws": 2, "mirror": True}],
    ids=["means", "draws"],
)
def test_the_number_of_workers_changes_no_byte(tiny, photographs, tmp_path, monkeypatch, options):
    monkeypatch.setattr(module, "PART", 8)
    files = []
    for workers in (1, 4):
        store = vr.extract(
            tiny, photographs, tmp_path / f"{workers}.h5", batch_size=4, num_workers=workers,
            on_error="skip", **options,
        )  # fmt: skip
        assert len(store) == 19
        store.close()
        with h5py.File(store.path) as file:
            arrays = {key: file[key][:] for key in arrays_of(file)}
            text = {key: a.tolist() for key, a in arrays.items() if a.dtype.kind == "O"}
            files.append({key: a.tobytes() for key, a in arrays.items()} | text)
            files[-1]["skipped"] = file.attrs["skipped"]
    assert files[0] == files[1]


def test_images_are_read_no_further_ahead_than_two_batches(tiny, images, tmp_path):
    """While a batch is computed, so that memory does not grow with the number of images."""
    read, furthest = [], []
    many = np.concatenate([images] * 10)
    source = open_source(many)

    def reader(index):
        read.append(index)
        return many[index]

    vr.extract(
        tiny, dataclasses.replace(source, reader=reader), tmp_path / "s.h5", batch_size=4,
        num_workers=3, progress=lambda count: furthest.append(max(read)),
    )  # fmt: skip
    done = np.arange(1, 31) * 4
    assert sorted(read) == list(range(120))
    assert (np.array(furthest) < done + 2 * 4).all()


def test_images_left_out_before_are_an_error_for_one_who_wants_all(tiny, tmp_path):
    for index in range(4):
        Image.new("RGB", (16, 16), (index, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    vr.extract(tiny, tmp_path, tmp_path / "v.h5", on_error="skip", layout="virtual").close()
    assert (
        len(vr.extract(tiny, tmp_path, tmp_path / "v.h5", on_error="skip", layout="virtual")) == 3
    )
    with pytest.raises(
        vr.DataError, match=r"3\.png.*left out by on_error=.skip."
    ):  # of a whole store
        vr.extract(tiny, tmp_path, tmp_path / "v.h5", layout="virtual")
    (tmp_path / "v.h5").unlink()
    with pytest.raises(vr.DataError, match=r"3\.png.*left out by on_error=.skip."):
        vr.extract(tiny, tmp_path, tmp_path / "v.h5", layout="virtual")


def test_too_few_ids_are_refused(tiny, images):
    with pytest.raises(vr.DataError, match="expected 12 ids, one an image, found 1"):
        tiny.posterior(images, z="sample", ids=["a"])


def test_similarity_is_the_transform_that_made_the_points():
    angle, scale, shift = 0.3, 1.7, np.array([4.0, -2.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = _similarity(LANDMARKS, LANDMARKS @ (scale * turn).T + shift)
    np.testing.assert_allclose(found, np.column_stack([scale * turn, shift]), atol=1e-12)


def test_an_image_without_a_face_is_named(tiny, tmp_path):
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "wall.png")
    with pytest.raises(
        vr.DataError, match=r'wall.png: expected a face, found none.*on_error="skip"'
    ):
        vr.extract(tiny, tmp_path, tmp_path / "s.h5", align=True)
    with pytest.raises(vr.DataError, match="give one"):
        Preprocessing(size=16, align=True, crop=8)


def test_which_face_is_aligned_and_what_lies_beyond_the_photograph_is_said(
    tiny, tmp_path, monkeypatch
):
    """Eyes, nose and mouth of faces 60 wide: a central one, a larger at the side, one half outside."""
    shape = LANDMARKS * 60 - 30

    class Detector:
        def detect(self, picture, landmarks):
            boxes = {"white": [(100, 60, 60), (30, 60, 70), (230, 60, 100)], "grey": [(20, 20, 60)]}
            found = boxes["white" if picture.getpixel((0, 0))[0] > 200 else "grey"]
            box = [(x - w / 2, y - w / 2, x + w / 2, y + w / 2) for x, y, w in found]
            return np.array(box), None, np.array([shape + np.array((x, y)) for x, y, _ in found])

    monkeypatch.setattr("vdvae_repr.data.faces._detector", Detector)
    picture = Image.new("RGB", (200, 120), "white")
    picture.paste("red", (70, 30, 130, 90))
    (tmp_path / "in").mkdir()
    picture.save(tmp_path / "in" / "a.png")
    Image.new("RGB", (60, 40), "grey").save(tmp_path / "in" / "b.png")
    said = []
    store = vr.extract(tiny, tmp_path / "in", tmp_path / "s.h5", align=True, report=said.append)
    central, outside = store.images()
    assert (central[4:12, 4:12] == (255, 0, 0)).all()
    black = (outside == 0).all(axis=2).mean()
    assert black > 0.2
    assert [line for line in said if line.startswith("align")] == [
        "align: 1 of 2 images hold several faces, as 'a.png'; the most central of the large ones is taken",
        "align: 1 of 2 images lie beyond their photograph, and are black, on more than 10% of their area "
        f"({black:.0%} at most), as 'b.png'; faces that are cut out already need no align",
    ]


@pytest.mark.shared_data
def test_aligned_landmarks_lie_where_they_should(shared_data, tiny, tmp_path):
    """MTCNN, asked again about the aligned image, is the judge; the photo's six faces are its README's."""
    photo = shared_data / "facenet_test" / "multiface.jpg"
    assert len(_detector().detect(Image.open(photo))[0]) == 6
    aligned = Image.fromarray(Preprocessing(size=256, align=True)(Image.open(photo)))
    _, _, points = _detector().detect(aligned, landmarks=True)
    gaps = np.abs(np.asarray(points[0], float) / 256 - LANDMARKS)
    assert gaps.max() < 0.06
    (tmp_path / "in").mkdir()
    shutil.copy(photo, tmp_path / "in")
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "in" / "wall.png")
    store = vr.extract(tiny, tmp_path / "in", tmp_path / "s.h5", align=True, on_error="skip")
    assert [item["id"] for item in json.loads(store.attrs["skipped"])] == ["wall.png"]
    assert "MTCNN" in json.loads(store.attrs["preprocessing"])["align"]


def test_a_plan_follows_the_weights_and_is_not_copied(tiny, images):
    model = copy.deepcopy(tiny)
    before = model.posterior(images)["16x16.0"].mean
    with torch.no_grad():
        model.bottom_up.in_conv.weight.mul_(1.5)
    after = model.posterior(images)["16x16.0"].mean
    assert not torch.allclose(before, after)
    x = torch.zeros(1, 3, 16, 16)
    with torch.no_grad():
        assert plan_of(model, x) is plan_of(model, x)
        assert plan_of(copy.deepcopy(model), x) is not plan_of(model, x)
        assert plan_of(model, x.double()) is None
    assert plan_of(model, x) is None  # gradients are wanted


def test_a_plan_follows_weights_written_where_autograd_does_not_count(tiny, images):
    """As openai/vdvae's update of its moving average does, from the first weights on."""
    model = random_weights(tiny.config, "tiny", seed=0).eval()
    model.posterior(images)  # whose priors add nothing yet
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
        parameter.data.add_(torch.rand_like(parameter) * 0.1)
    fresh = copy.deepcopy(model).posterior(images)
    for name, layer in model.posterior(images).items():
        assert torch.equal(layer.mean, fresh[name].mean)
        assert torch.equal(layer.prior_mean, fresh[name].prior_mean)
        assert layer.prior_mean.any()


def test_inference_changes_no_parameter(tiny, images):
    before = copy.deepcopy(tiny.state_dict())
    tiny.posterior(images[:1], top_down=True)
    tiny.posterior(images[:1], "1x1")
    assert all(torch.equal(value, before[key]) for key, value in tiny.state_dict().items())


def test_precision_is_what_was_asked_for(tiny, images, tmp_path):
    seen = []

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function is torch.conv2d:
                seen.append((result.dtype, torch.backends.cudnn.allow_tf32))
            return result

    x = to_input(torch.from_numpy(images).permute(0, 3, 1, 2), tiny.config)
    for precision, expected in (
        ("fp32", (torch.float32, False)),
        ("tf32", (torch.float32, True)),
        ("bf16", (torch.bfloat16, False)),
    ):
        seen.clear()
        with arithmetic(precision, "cuda" if precision == "tf32" else "cpu"), Spy():
            tiny.infer(x, None)  # under gradients, so that no plan takes the convolutions away
        assert set(seen) == {expected}
    assert torch.backends.cudnn.allow_tf32  # as PyTorch has it
    with pytest.raises(vr.ConfigError, match="expected fp32, tf32 or bf16, found 'fp16'"):
        tiny.posterior(images, precision="fp16")
    with pytest.raises(vr.ConfigError, match="tf32 is of CUDA devices, found cpu"):
        vr.extract(tiny, images, tmp_path / "t.h5", precision="tf32")
    assert not list(tmp_path.iterdir())
    exact = vr.extract(tiny, images, tmp_path / "e.h5")
    rough = vr.extract(tiny, images, tmp_path / "r.h5", precision="bf16")
    gap = np.abs(rough.matrix("8x8")[0] - exact.matrix("8x8")[0]).max()
    assert 1e-5 < gap < 0.1 * np.abs(exact.matrix("8x8")[0]).max()


@pytest.mark.slow
def test_compiled_inference_equals_the_plan(tiny, images):
    model = copy.deepcopy(tiny)
    expected = model.posterior(images, "8x8")
    compile_inference(model)
    found = model.posterior(images, "8x8")
    torch.testing.assert_close(found["8x8.1"].delta, expected["8x8.1"].delta, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 2**70}, "seed: expected a whole number"),
        ({"seed": None}, "seed: expected a whole number, from 0, found None"),
        ({"seed": 1.5}, r"seed: .* found 1\.5"),
        ({"crop": 8.5}, r"crop: .* found 8\.5"),
        ({"batch_size": True}, "batch_size: .* found True"),
        ({"mirror": "no"}, "mirror: expected True or False, found 'no'"),
        ({"images": None}, "images: expected True or False"),
        ({"layers": "0:99"}, r"0:99: expected at most :5"),
        ({"out": ""}, "out: expected a path, found an empty text"),
        ({"out": " "}, "out: expected a path, found an empty text"),
    ],
)
def test_options_of_other_kinds_are_one_line(tiny, images, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(vr.VDVAEReprError, match=message) as refusal:
        vr.extract(tiny, images, **{"out": tmp_path / "e.h5"} | given)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_opened_does_not_replace_one_that_can(
    tiny, images, tmp_path, monkeypatch
):
    out = tmp_path / "s.h5"
    vr.extract(tiny, images, out).close()
    before = out.read_bytes()
    with pytest.raises(vr.ConfigError, match="seed: expected a whole number, from 0, found None"):
        vr.extract(tiny, images, out, seed=None, overwrite=True)
    assert out.read_bytes() == before
    assemble = module.partition.assemble

    def damaged(file, *rest):
        assemble(file, *rest)
        del file.attrs["seed"]

    monkeypatch.setattr(module.partition, "assemble", damaged)
    with pytest.raises(vr.StoreError, match="what was there stays"):
        vr.extract(tiny, images, out, overwrite=True)
    assert out.read_bytes() == before
    vr.open(out).close()


def test_texts_of_nothing_and_options_that_do_nothing_are_refused(tiny, images, tmp_path):
    store = vr.extract(tiny, images, tmp_path / "e.h5")
    with pytest.raises(vr.LayerError, match="feature ''"):
        store.export(tmp_path / "x.npz", feature="")
    with pytest.raises(vr.ConfigError, match="out: expected a path"):
        store.export("")
    with pytest.raises(vr.DataError, match="no image is in split ''"):
        vr.evaluate(tiny, images, split="")
    with pytest.raises(vr.StoreError, match='temperature: expected rest="sample"'):
        next(store.decode(tiny, temperature=3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["e.h5"]


def test_one_feature_is_named_without_a_list(tiny, images, tmp_path):
    store = vr.extract(tiny, images, tmp_path / "s.h5", features="delta")
    assert store.features == ("delta",)
    with pytest.raises(vr.LayerError, match="unknown feature 'men'"):
        vr.extract(tiny, images, tmp_path / "t.h5", features="men")


@pytest.mark.parametrize("features", [True, 3, 1.5])
def test_features_that_are_no_names_are_refused_in_a_line(tiny, images, tmp_path, features):
    with pytest.raises(vr.LayerError, match=f"^features: expected a name, .* found {features}$"):
        vr.extract(tiny, images, tmp_path / "s.h5", features=features)
    with pytest.raises(vr.LayerError, match="unknown feature"):
        vr.extract(tiny, images, tmp_path / "s.h5", features=[["mean"], features])


@pytest.mark.parametrize("features", [["mean", "mean"], ["delta", "mean", "delta"]])
def test_a_feature_that_is_named_twice_counts_once(tiny, images, tmp_path, features):
    """The truth is the store of each once, which the same call then finds."""
    once = list(dict.fromkeys(features))
    store = vr.extract(tiny, images, tmp_path / "s.h5", features=once)
    written = (tmp_path / "s.h5").stat().st_mtime_ns
    again = vr.extract(tiny, images, tmp_path / "s.h5", features=features)
    assert again.features == store.features == tuple(once)
    assert (tmp_path / "s.h5").stat().st_mtime_ns == written


def test_columns_of_kl_have_the_names_of_all_layers_traversed(tiny, images, tmp_path):
    store = vr.extract(tiny, images, tmp_path / "s.h5", layers="8x8")
    kl, read = dict(zip(store.kl_layers, store.kl.T, strict=True)), tiny.posterior(images)
    assert list(kl) == ["1x1.0", "4x4.0", "8x8.0", "8x8.1"]
    for name, nats in kl.items():
        np.testing.assert_allclose(nats, read[name].kl.sum(dim=(1, 2, 3)), rtol=1e-3, atol=1e-3)


def test_weights_of_another_precision_are_refused_in_one_line(tiny, images, tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        model = copy.deepcopy(tiny).to(dtype)
        for use in (
            lambda model: model.posterior(images),
            lambda model: model.sample(1),
            lambda model: vr.evaluate(model, images),
            lambda model: vr.extract(model, images, tmp_path / "s.h5"),
        ):
            with pytest.raises(vr.ConfigError, match=r"^tiny: expected weights in float32, found"):
                use(model)


def test_a_temperature_where_nothing_is_drawn_is_refused(tiny, images):
    posterior = tiny.posterior(images[:2])
    with pytest.raises(vr.ConfigError, match='temperature: expected rest="sample" with it'):
        tiny.decode(posterior, temperature=0.5)
    tiny.decode(posterior, rest="sample", temperature=0.5)
