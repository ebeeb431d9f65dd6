"""Images that are replaced after, between and while they are read; stores that are replaced."""

import csv
import dataclasses
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from PIL import Image

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.latents import extract as module


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART", 4)


def extract(model, data, out, **options):
    return vr.extract(model, data, out, layers="<=4x4", batch_size=2, **options)


def stop_at(batch):
    """Progress that stops at a batch; two make a part."""
    seen = []

    def progress(count):
        seen.append(count)
        if len(seen) == batch:
            raise KeyboardInterrupt

    return progress


def folder_of(pixels, path):
    path.mkdir(exist_ok=True)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(path / f"{index}.bmp")  # all of one size
    return path


def tar_of(pixels, path):
    folder = folder_of(pixels, path.with_suffix(".tmp"))
    with tarfile.open(path, "w") as archive:
        for index in range(len(pixels)):
            archive.add(folder / f"{index}.bmp", f"{index}.bmp")
    shutil.rmtree(folder)
    return path


def csv_of(pixels, path):
    folder_of(pixels, path.parent / "pictures")
    with path.open("w", newline="") as file:
        rows = [
            ("file", "label"),
            *((f"pictures/{i}.bmp", "ab"[i % 2]) for i in range(len(pixels))),
        ]
        csv.writer(file).writerows(rows)
    return path


def npy_of(pixels, path):
    np.save(path, pixels)
    return path


def npz_of(pixels, path):
    np.savez(path, images=pixels)
    return path


def h5_of(pixels, path):
    with h5py.File(path, "w") as file:
        file["images"] = pixels
    return path


KINDS = {
    "photos": folder_of, "photos.tar": tar_of, "photos.csv": csv_of, "photos.npy": npy_of,
    "photos.npz": npz_of, "photos.h5": h5_of,
}  # fmt: skip


@pytest.fixture(params=KINDS.items(), ids=KINDS)
def written(request, tmp_path):
    """Write images as a kind of source; return its path."""
    name, write = request.param
    return lambda pixels: write(pixels, tmp_path / name)


@pytest.fixture
def large(monkeypatch):
    """Arrays as if they were larger than what the fingerprint takes whole."""
    monkeypatch.setattr("vdvae_repr.data.readers.arrays.EXACT_BYTES", 0)
    monkeypatch.setattr("vdvae_repr.data.readers.arrays.SAMPLE", 2)


def other(images):
    changed = images.copy()
    changed[-7 % len(images)] ^= 255
    return changed


@pytest.mark.usefixtures("large")
def test_a_store_of_images_that_were_replaced_is_not_complete(tiny, images, tmp_path, written):
    """All files keep their names and sizes."""
    out = tmp_path / "s.h5"
    extract(tiny, written(images), out).close()
    lines = []
    extract(tiny, written(images), out, report=lines.append).close()
    assert lines == [f"{out}: already complete"]
    data = written(other(images))
    with pytest.raises(vr.StoreError, match=r"s\.h5: 1 of 12 images replaced since .*'.*5"):
        extract(tiny, data, out)
    new = extract(tiny, data, out, overwrite=True)
    clean = extract(tiny, data, tmp_path / "clean.h5")
    assert np.array_equal(new.matrix()[0], clean.matrix()[0])


@pytest.mark.usefixtures("large")
def test_a_run_that_goes_on_mixes_no_old_images_with_new_ones(tiny, images, tmp_path, written):
    out = tmp_path / "s.h5"
    with pytest.raises(KeyboardInterrupt):
        extract(tiny, written(images), out, progress=stop_at(6))
    before = {p.name: p.stat().st_ino for p in Path(f"{out}.parts").glob("part-*.h5")}
    assert len(before) == 2
    lines = []
    data = written(other(images))
    resumed = extract(tiny, data, out, report=lines.append, layout="single")
    assert any(
        "1 image was replaced, as" in line and "1 part is made again" in line for line in lines
    )
    clean = extract(tiny, data, tmp_path / "clean.h5")
    assert np.array_equal(resumed.matrix()[0], clean.matrix()[0])
    assert np.array_equal(resumed.images(), clean.images())


def test_a_copy_of_the_files_is_the_same_data(tiny, images, tmp_path):
    photos, out = folder_of(images, tmp_path / "photos"), tmp_path / "s.h5"
    extract(tiny, photos, out).close()
    shutil.move(photos, tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", photos, copy_function=shutil.copyfile)
    lines = []
    extract(tiny, photos, out, report=lines.append).close()
    assert lines == [f"{out}: already complete"]


def test_a_replaced_image_with_the_time_of_the_former_is_noticed(tiny, images, tmp_path):
    photos, out = folder_of(images, tmp_path / "photos"), tmp_path / "s.h5"
    extract(tiny, photos, out).close()
    times = (photos / "5.bmp").stat()
    Image.fromarray(255 - images[5]).save(photos / "5.bmp")
    os.utime(photos / "5.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(vr.StoreError, match=r"as '5\.bmp'"):
        extract(tiny, photos, out)


@pytest.mark.parametrize("layout", ["single", "virtual"])
def test_images_that_are_replaced_while_they_are_read(tiny, images, tmp_path, layout):
    photos, out = folder_of(images, tmp_path / "photos"), tmp_path / "s.h5"

    def replace(count):
        if list(Path(f"{out}.parts").glob("part-00001.h5")):
            Image.fromarray(255 - images[1]).save(photos / "1.bmp")

    with pytest.raises(vr.StoreError, match=r"1 image replaced while they were read, as '1\.bmp'"):
        extract(tiny, photos, out, layout=layout, progress=replace)
    assert not out.exists()
    again = extract(tiny, photos, out, layout=layout)
    clean = extract(tiny, photos, tmp_path / "clean.h5")
    assert np.array_equal(again.matrix()[0], clean.matrix()[0])


def test_files_that_are_touched_while_they_are_read_are_no_error(tiny, images, tmp_path):
    photos = folder_of(images, tmp_path / "photos")
    store = extract(
        tiny, photos, tmp_path / "s.h5", progress=lambda count: (photos / "1.bmp").touch()
    )
    assert len(store) == 12


def test_an_image_left_out_and_then_mended_is_noticed(tiny, images, tmp_path):
    photos, out = folder_of(images, tmp_path / "photos"), tmp_path / "s.h5"
    whole = (photos / "3.bmp").read_bytes()
    (photos / "3.bmp").write_bytes(bytes(len(whole)))
    assert len(extract(tiny, photos, out, on_error="skip")) == 11
    assert len(extract(tiny, photos, out, on_error="skip")) == 11
    (photos / "3.bmp").write_bytes(whole)
    with pytest.raises(vr.StoreError, match=r"1 of 12 images .*'3\.bmp'"):
        extract(tiny, photos, out, on_error="skip")


def test_arrays_in_memory_and_readers_of_ones_own_are_looked_at_again(tiny, images, tmp_path):
    def source():
        return Source(
            name="own", ids=tuple("abcdefghijkl"), labels=np.zeros(12, np.int64),
            reader=lambda i: Image.fromarray(images[i]),
        )  # fmt: skip

    extract(tiny, source(), tmp_path / "s.h5").close()
    lines = []
    extract(tiny, source(), tmp_path / "s.h5", report=lines.append).close()
    assert lines == [f"{tmp_path / 's.h5'}: already complete"]
    images[7, 0, 0, 0] ^= 1
    with pytest.raises(vr.StoreError, match="1 of 12 images replaced since it was made, as 'h'"):
        extract(tiny, source(), tmp_path / "s.h5")


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"label_names": ("a", "dog")}, "names of labels"),
     ({"factors": {"light": np.arange(12.0) + 1}}, "values of factor 'light'"),
     ({"factors": {"hue": np.arange(12.0)}}, "factors")],
)  # fmt: skip
def test_names_and_factors_that_have_changed_are_noticed(tiny, images, tmp_path, changes, what):
    source = dataclasses.replace(
        vr.open_source(images), labels=np.arange(12) % 2, label_names=("a", "cat"),
        factors={"light": np.arange(12.0)},
    )  # fmt: skip
    extract(tiny, source, tmp_path / "s.h5").close()
    with pytest.raises(vr.StoreError, match=rf"its {what} are not those of array any more"):
        extract(tiny, dataclasses.replace(source, **changes), tmp_path / "s.h5")


def test_overwrite_starts_anew(tiny, images, tmp_path):
    """Also where parts of the very same extraction are there."""
    out = tmp_path / "s.h5"
    with pytest.raises(KeyboardInterrupt):
        extract(tiny, images, out, progress=stop_at(6))
    counted = []
    extract(tiny, images, out, overwrite=True, progress=counted.append).close()
    assert counted == [2] * 6  # a finished part would count 4 at once
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


# Stores that are replaced


def read_all(path):
    with vr.open(path) as store:
        store.verify()
        return store.matrix()[0]


@pytest.mark.parametrize("old", ["single", "virtual"])
@pytest.mark.parametrize("new", ["single", "virtual"])
def test_a_store_is_there_until_the_new_one_is(tiny, images, tmp_path, monkeypatch, old, new):
    images, out = images[:6], tmp_path / "s.h5"
    extract(tiny, images, out, layout=old).close()
    before = read_all(out)

    def still(count=0):
        assert np.array_equal(read_all(out), before)

    free = SimpleNamespace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda path: free)
        with pytest.raises(vr.StoreError, match="needs"):
            extract(tiny, images, out, layout=new, overwrite=True)
    still()
    odd = vr.open_source(images)
    odd.factors["a/b"] = np.arange(6)
    with pytest.raises(vr.DataError, match="'a/b'"):
        extract(tiny, odd, out, layout=new, overwrite=True)
    still()
    for batch in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            extract(
                tiny,
                other(images),
                out,
                layout=new,
                overwrite=True,
                progress=stop_at(batch),
            )
        still()
    extract(tiny, other(images), out, layout=new, overwrite=True, progress=still).close()
    clean = extract(tiny, other(images), tmp_path / "clean.h5").matrix()[0]
    assert np.array_equal(read_all(out), clean)
    parts = sorted(p.name for p in (tmp_path / "s.h5.parts").glob("part-*"))
    assert len(parts) == (2 if new == "virtual" else 0)
    for _ in range(2):  # and again, which changes nothing
        extract(tiny, other(images), out, layout=new).close()
    assert sorted(p.name for p in (tmp_path / "s.h5.parts").glob("part-*")) == parts


class Killed(BaseException):
    """Stands for a kill just before a file is renamed or removed."""


@pytest.mark.parametrize(
    ("old", "new"), [("single", "virtual"), ("virtual", "single"), ("virtual", "virtual")]
)
def test_the_old_store_or_the_new_one_is_whole_whenever_a_kill_comes(
    tiny, images, tmp_path, monkeypatch, old, new
):
    images = images[:5]
    out, moments = tmp_path / "s.h5", 0
    extract(tiny, images, out, layout=old).close()
    first = read_all(out)
    second = extract(tiny, other(images), tmp_path / "second.h5").matrix()[0]
    for moment in range(100):
        left = [moment]

        def killing(change, left=left):
            def killed(path, *arguments, **options):
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return change(path, *arguments, **options)

            return killed

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "rmdir"):
                patch.setattr(Path, name, killing(getattr(Path, name)))
            try:
                extract(tiny, other(images), out, layout=new, overwrite=True).close()
                break
            except Killed:
                moments += 1
        found = read_all(out)
        assert np.array_equal(found, first) or np.array_equal(found, second)
    assert moments > 5
    assert np.array_equal(read_all(out), second)


def test_what_a_kill_left_beside_a_virtual_store_goes_with_the_next_run(tiny, images, tmp_path):
    out = tmp_path / "s.h5"
    extract(tiny, images, out, layout="virtual").close()
    with pytest.raises(KeyboardInterrupt):
        extract(tiny, images, out, layout="virtual", overwrite=True, progress=stop_at(6))
    assert len(list((tmp_path / "s.h5.parts").glob("part-*"))) > 3
    extract(tiny, images, out, layout="virtual").close()
    assert len(list((tmp_path / "s.h5.parts").glob("part-*"))) == 3
    read_all(out)
    # A part that is lost is made again, though the claim that lies there is of the run that was killed.
    lost = next((tmp_path / "s.h5.parts").glob("part-00001*"))
    before = read_all(out)
    lost.unlink()
    with pytest.raises(vr.StoreError, match="is missing"):
        vr.open(out)
    extract(tiny, images, out, layout="virtual").close()
    assert np.array_equal(read_all(out), before)


@pytest.mark.parametrize("layout", ["single", "virtual"])
def test_import_replaces_a_store_only_by_a_whole_one(tiny, images, tmp_path, layout):
    out = tmp_path / "s.h5"
    like = extract(tiny, images, tmp_path / "like.h5")
    extract(tiny, images, out, layout=layout).close()
    before = read_all(out)
    bad = before.copy()
    bad[11, 0] = np.nan
    for matrix in (bad, np.ma.masked_invalid(bad), before[:, :5], before[:3]):
        with pytest.raises(vr.StoreError):
            vr.import_latents(matrix, like, out, overwrite=True)
        assert np.array_equal(read_all(out), before)
    vr.import_latents(before + 1, like, out, overwrite=True).close()
    assert np.array_equal(read_all(out), before + 1)
    assert not (tmp_path / "s.h5.parts").exists()
    assert not (tmp_path / "s.h5.lock").exists()


# Parts of a virtual store


def test_parts_that_change_places_are_refused(tiny, images, tmp_path):
    """They are of one size."""
    out = tmp_path / "s.h5"
    extract(tiny, images, out, layout="virtual").close()
    parts = sorted((tmp_path / "s.h5.parts").glob("part-*.h5"))
    first, second = (part.read_bytes() for part in parts[:2])
    assert len(first) == len(second)
    parts[0].write_bytes(second)
    parts[1].write_bytes(first)
    with pytest.raises(vr.StoreError, match=r"part-00000\.h5 holds other rows than it did"):
        vr.open(out)
    extract(tiny, images, out, layout="virtual").close()  # makes them again
    clean = extract(tiny, images, tmp_path / "clean.h5").matrix()[0]
    assert np.array_equal(read_all(out), clean)


def test_a_part_of_another_store_is_refused(tiny, images, tmp_path):
    out, stranger = tmp_path / "s.h5", tmp_path / "t.h5"
    extract(tiny, images, out, layout="virtual").close()
    model = vr.VDVAE(tiny.config, name="other").eval()
    extract(model, images, stranger, layout="virtual").close()
    shutil.copy(Path(f"{stranger}.parts") / "part-00001.h5", Path(f"{out}.parts") / "part-00001.h5")
    with pytest.raises(vr.StoreError, match=r"holds other rows|has .* bytes"):
        vr.open(out)


@pytest.mark.parametrize("moved", [True, False])
def test_parts_of_a_store_that_was_renamed_or_copied_are_not_taken(tiny, images, tmp_path, moved):
    out, old = tmp_path / "s.h5", tmp_path / "old.h5"
    extract(tiny, images, out, layout="virtual").close()
    X = read_all(out)
    if moved:
        out.rename(old)
    else:
        shutil.copy(out, old)
    message = "call that store s.h5 again" if moved else "remove that store"
    for overwrite in (False, True) if moved else (True,):
        for layout in ("virtual", "single"):
            with pytest.raises(vr.StoreError, match=f"holds the parts of old.h5, .* or {message}"):
                extract(tiny, other(images), out, layout=layout, overwrite=overwrite)
    assert np.array_equal(read_all(old), X)
    if not moved:
        extract(tiny, images, out, layout="virtual").close()  # is complete
    with vr.open(old) as store:
        store.verify()


@pytest.mark.parametrize("layout", ["single", "virtual"])
def test_what_a_link_names_is_replaced_not_the_link(tiny, images, tmp_path, layout):
    (tmp_path / "disk").mkdir()
    kept, link = tmp_path / "disk" / "s.h5", tmp_path / "link.h5"
    link.symlink_to(Path("disk") / "s.h5")
    extract(tiny, images, link, layout=layout).close()  # it named nothing yet
    extract(tiny, images, link, layout=layout).close()  # is complete
    before = read_all(kept)
    extract(tiny, other(images), link, layout=layout, overwrite=True).close()
    assert link.is_symlink()
    assert not np.array_equal(read_all(kept), before)
    with vr.open(kept) as like:
        like.export(tmp_path / "m.npz")
    with (
        vr.open(kept) as like,
        pytest.raises(vr.StoreError, match="is what the store is made from"),
    ):
        vr.import_latents(tmp_path / "m.npz", like, link, overwrite=True)
    extract(tiny, images, tmp_path / "like.h5").close()
    with vr.open(tmp_path / "like.h5") as like:
        (tmp_path / "x.npz").symlink_to(tmp_path / "disk" / "x.npz")
        like.export(tmp_path / "x.npz")
        vr.import_latents(tmp_path / "x.npz", like, link, overwrite=True).close()
    assert link.is_symlink()
    assert (tmp_path / "x.npz").is_symlink()
    assert np.array_equal(read_all(kept), before)
    left = {path.name for path in tmp_path.iterdir()} | {p.name for p in kept.parent.iterdir()}
    assert not any(name.endswith((".parts", ".lock", ".writing")) for name in left)
