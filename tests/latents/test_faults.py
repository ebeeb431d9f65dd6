"""What goes wrong in an extraction: kills, full disks, damage, unreadable images, a second process."""

import contextlib
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import time
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from launch import Command, run, torchrun
from PIL import Image

import vdvae_repr as vr
from vdvae_repr.latents import extract as module
from vdvae_repr.latents.format import arrays_of
from vdvae_repr.latents.parts import is_whole
from vdvae_repr.model.weights import save

ARGUMENTS = ["--data", "photos", "--layer", "<=8x8", "--batch-size", "2"]


@pytest.fixture
def photos(tiny, tmp_path):
    """A folder of 24 pictures, and the tiny model in a file beside it."""
    save(tiny, tmp_path / "tiny.safetensors", record={})
    rng = np.random.default_rng(0)
    for index in range(24):
        path = tmp_path / "photos" / f"p{index % 4}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path


# Small parts, and the sleep that lets a signal land between two images.
SLOWLY = (
    "import sys, time; from vdvae_repr.latents import extract as m; m.PART = 4; "
    "read = m.read_images; "
    "m.read_images = lambda *a: (time.sleep({pause}), read(*a))[1]; "
    "from vdvae_repr.cli import main; sys.argv[0] = 'vdvae-repr'; main()"
)


def job(pause=0.0, *extra, before=""):
    """A command's arguments, and code that runs it slowly."""
    out = () if "--out" in extra else ("--out", "s.h5")
    arguments = ["extract", "--model", "tiny.safetensors", *ARGUMENTS, *out, *extra]
    return arguments, before + SLOWLY.format(pause=pause)


def start(folder, *slowly, **options):
    arguments, code = job(*slowly, **options)
    return Command(*arguments, cwd=folder, code=code)


def finished(folder, *slowly, **options):
    arguments, code = job(*slowly, **options)
    return run(*arguments, cwd=folder, code=code)


def start_two(folder, pause=0.0, *extra):
    """The same by two processes, each in a group of its own; `pid-NUMBER` tells who they are."""
    # A fork of torchrun has its handler of SIGTERM, which a process that it starts anew has not.
    mark = (
        "import os, pathlib, signal; pathlib.Path(f'pid-{os.getpid()}').touch(); "
        "signal.signal(signal.SIGTERM, signal.SIG_DFL); "
    )
    arguments, code = job(pause, *extra)
    (folder / "job.py").write_text(mark + code)
    return torchrun("job.py", *arguments, cwd=folder)


def parts_of(store):
    """Names of a store's parts, with what changes when one is made again."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in store.with_name(store.name + ".parts").glob("part-*.h5")
    }


def equal(a, b):
    with h5py.File(a) as first, h5py.File(b) as second:
        keys = arrays_of(first)
        assert keys == arrays_of(second)
        return all(np.array_equal(first[key][:], second[key][:]) for key in keys)


def kill_and_resume(photos, kills, seed, *layout):
    """Kill extractions at random moments; what comes out equals a single store made in one go."""
    done = finished(photos)
    assert done.returncode == 0, done.stderr
    (photos / "s.h5").rename(photos / "whole.h5")
    rng, killed = random.Random(seed), 0
    while killed < kills:
        process = start(photos, 0.02, *layout)
        deadline = time.monotonic() + 60
        while not (photos / "s.h5.parts" / "extraction.json").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        killed += process.poll() is None
        process.kill()
        process.wait()
        if (photos / "s.h5").exists():
            assert equal(photos / "s.h5", photos / "whole.h5")
            (photos / "s.h5").unlink()
            shutil.rmtree(photos / "s.h5.parts", ignore_errors=True)
    done = finished(photos, 0.0, *layout)
    assert done.returncode == 0, done.stderr
    assert equal(photos / "s.h5", photos / "whole.h5")


def test_where_one_process_stops_the_other_says_no_more_than_that(photos):
    (photos / "photos" / "p3" / "23.png").write_bytes(b"no picture")
    _, said = start_two(photos).communicate()
    ours = [line for line in said.splitlines() if line.startswith("vdvae-repr: ")]
    assert any("p3/23.png: expected a readable image" in line for line in ours)
    assert not [line for line in ours if "unexpected" in line]


def test_three_kills(photos):
    kill_and_resume(photos, 3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["single", "virtual"])
def test_twenty_kills(photos, layout):
    kill_and_resume(photos, 20, 1, "--layout", layout)


def test_interrupt_keeps_what_is_finished(photos):
    process = start(photos, 0.2)
    while not (photos / "s.h5.parts" / "part-00000.h5").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    parts = list((photos / "s.h5.parts").glob("part-*.h5"))
    assert f"{4 * len(parts)} of 24 images kept" in errors
    assert "rerun the same command" in errors
    assert "--resume" not in errors
    assert "Traceback" not in errors
    assert not (photos / "s.h5").exists()


def test_full_disk(tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    whole = vr.extract(tiny, images, tmp_path / "whole.h5", batch_size=4)
    size = next(iter(tmp_path.glob("whole.h5"))).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # a file may hold a part, but not the store
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 2 // 3, limits[1]))
        with pytest.raises(
            vr.StoreError, match=r"s\.h5: cannot be written \(File too large\); .* rerun"
        ):
            vr.extract(tiny, images, tmp_path / "s.h5", batch_size=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not (tmp_path / "s.h5").exists()
    assert len(list((tmp_path / "s.h5.parts").glob("part-*.h5"))) == 3
    resumed = vr.extract(tiny, images, tmp_path / "s.h5", batch_size=4)
    assert np.array_equal(resumed.matrix()[0], whole.matrix()[0])


# Once two parts are there, another file takes all that is left of the disk while HDF5 writes a third.
CROWDED = """
import pathlib
from vdvae_repr.latents import extract as m
uncrowded = m.read_images
def crowded(*args):
    folder = pathlib.Path(r"{disk}")
    ballast = folder / "ballast"
    if (folder / "s.h5.parts" / "part-00001.h5").exists() and not ballast.exists():
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
    return uncrowded(*args)
m.read_images = crowded
"""


def test_a_disk_that_fills_up_under_hdf5(photos, tiny, small_disk, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    whole = vr.extract(tiny, photos / "photos", photos / "w.h5", layers="<=8x8", batch_size=2)
    out = small_disk / "s.h5"
    there = ["--out", str(out), "--layout", "virtual"]  # the parts stay and can be looked at
    stopped = finished(photos, 0.0, *there, before=CROWDED.format(disk=small_disk))
    assert stopped.returncode == 2, stopped.stderr
    preview, message = stopped.stderr.strip().splitlines()
    assert preview.startswith("24 images")
    assert f"{out}: cannot be written (No space left on device)" in message
    assert message.endswith("rerun the same command to resume")
    assert not out.exists()
    kept = parts_of(out)
    assert "part-00001.h5" in kept
    assert all(is_whole(small_disk / "s.h5.parts" / name) for name in kept)
    assert {path.suffix for path in (small_disk / "s.h5.parts").iterdir()} == {".h5", ".json"}
    full = finished(photos, 0.0, *there)
    assert full.returncode == 2
    assert full.stderr.strip().splitlines()[-1] == message
    assert parts_of(out) == kept
    (small_disk / "ballast").unlink()
    done = finished(photos, 0.0, *there)
    assert done.returncode == 0, done.stderr
    assert parts_of(out).items() >= kept.items()
    assert equal(out, whole.path)


def test_a_disk_that_is_full_when_a_part_begins(tiny, images, tmp_path, small_disk, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    whole = vr.extract(tiny, images, tmp_path / "whole.h5", batch_size=4)
    out, ballast = small_disk / "s.h5", small_disk / "ballast"

    def interrupt(count):
        if (small_disk / "s.h5.parts" / "part-00000.h5").exists():
            raise KeyboardInterrupt

    def fill(count):
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    with pytest.raises(KeyboardInterrupt):
        vr.extract(tiny, images, out, batch_size=4, progress=interrupt)
    kept = parts_of(out)
    with pytest.raises(
        vr.StoreError, match=r"cannot be written \(No space left on device\)"
    ) as full:
        vr.extract(tiny, images, out, batch_size=4, progress=fill)
    assert "\n" not in str(full.value)
    assert parts_of(out) == kept
    ballast.unlink()
    resumed = vr.extract(tiny, images, out, batch_size=4)
    assert equal(out, whole.path)
    for store in (resumed, whole):
        store.close()
    assert [path.name for path in small_disk.iterdir()] == ["s.h5"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system sets nothing aside")
@pytest.mark.parametrize(
    "options",
    [{"features": ["mean", "delta", "kl"], "mirror": True}, {"layers": "<=4x4", "batch_size": 5},
     {"layers": "1x1", "pool": "avg", "images": False}, {"features": ["z"], "z": "sample", "draws": 3}],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["single", "virtual"])
def test_no_file_takes_more_than_was_set_aside_for_it(
    tiny, images, tmp_path, monkeypatch, options, layout
):
    """Else a disk that fills up meets HDF5, which does not survive it."""
    monkeypatch.setattr(module, "PART", 5)
    reserve, reserved = os.posix_fallocate, {}

    def record(handle, start, length):
        reserve(handle, start, length)
        reserved[os.fstat(handle).st_ino] = length

    monkeypatch.setattr(os, "posix_fallocate", record)
    vr.extract(tiny, images, tmp_path / "s.h5", layout=layout, **options).close()
    files = list(tmp_path.rglob("*.h5"))
    assert len(files) >= (1 if layout == "single" else 2)
    for file in files:
        assert file.stat().st_size < reserved[file.stat().st_ino]


@pytest.mark.parametrize(("layout", "times"), [("single", 2), ("virtual", 1)])
def test_a_disk_too_small_is_refused_before_anything_is_written(
    tiny, images, tmp_path, monkeypatch, layout, times
):
    """A single file is there twice while its parts are joined."""
    row = 4 * sum(spec.num_dims for spec in tiny.layers) + images[0].size
    needed, free = times * 12 * row, 0
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    free = needed - 1
    sizes = rf"needs {needed / 1e3:.1f} kB while it is written, found {free / 1e3:.1f} kB free"
    with pytest.raises(vr.StoreError, match=sizes):
        vr.extract(tiny, images, tmp_path / "s.h5", layout=layout)
    assert not list(tmp_path.iterdir())
    free = needed
    vr.extract(tiny, images, tmp_path / "s.h5", layout=layout).close()


def test_finished_parts_count_as_written(tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)

    def interrupt(count):
        if (tmp_path / "s.h5.parts" / "part-00001.h5").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vr.extract(tiny, images, tmp_path / "s.h5", batch_size=4, progress=interrupt)
    done = sum(path.stat().st_size for path in (tmp_path / "s.h5.parts").glob("part-*"))
    row = 4 * sum(spec.num_dims for spec in tiny.layers) + images[0].size
    free = 2 * 12 * row - done - 1
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(vr.StoreError, match="while it is written, found"):
        vr.extract(tiny, images, tmp_path / "s.h5", batch_size=4)
    free += 1
    assert len(vr.extract(tiny, images, tmp_path / "s.h5", batch_size=4)) == 12


def test_damaged_part_is_made_again(tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    whole = vr.extract(tiny, images, tmp_path / "whole.h5", batch_size=4)

    def interrupt(count):
        if (tmp_path / "s.h5.parts" / "part-00001.h5").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vr.extract(tiny, images, tmp_path / "s.h5", batch_size=4, progress=interrupt)
    part = tmp_path / "s.h5.parts" / "part-00000.h5"
    with h5py.File(part) as file:
        offset = file["layers/002/mean"].id.get_chunk_info(0).byte_offset
    content = bytearray(part.read_bytes())
    content[offset + 9] ^= 1
    part.write_bytes(content)
    resumed = vr.extract(tiny, images, tmp_path / "s.h5", batch_size=4)
    assert np.array_equal(resumed.matrix()[0], whole.matrix()[0])


def test_parts_without_their_record_are_made_again(tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)

    def interrupt(count):
        if (tmp_path / "s.h5.parts" / "part-00001.h5").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vr.extract(tiny, images, tmp_path / "s.h5", batch_size=4, progress=interrupt)
    (tmp_path / "s.h5.parts" / "extraction.json").unlink()
    other = vr.VDVAE(tiny.config, name="other").eval()
    found = vr.extract(other, images, tmp_path / "s.h5", batch_size=4)
    clean = vr.extract(other, images, tmp_path / "t.h5", batch_size=4)
    assert np.array_equal(found.matrix()[0], clean.matrix()[0])


def test_the_preview_counts_what_is_stored(tiny, images, tmp_path):
    lines = []
    features = ("top_down", "bottom_up", "mean")
    store = vr.extract(
        tiny, images, tmp_path / "s.h5", layers="8x8", features=features, report=lines.append
    )
    with h5py.File(store.path) as file:
        dims = sum(file[key][0].size for key in arrays_of(file) if key[:3] in ("lay", "bot"))
    assert lines[0].startswith(f"12 images x {dims} dimensions (float32)")


def test_unreadable_image_is_named_or_skipped(photos, tiny, caplog):
    bad = photos / "photos" / "p1" / "5.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(vr.DataError, match=r"p1/5\.png: expected a readable image"):
        vr.extract(tiny, photos / "photos", photos / "s.h5", batch_size=4)
    store = vr.extract(tiny, photos / "photos", photos / "t.h5", batch_size=4, on_error="skip")
    assert len(store) == 23
    told: list[str] = []
    vr.extract(
        tiny, photos / "photos", photos / "t.h5", batch_size=4, on_error="skip", report=told.append
    )
    assert ["p1/5.png" in line for line in told].count(True) == 1
    assert "1 image is left out, as p1/5.png" in caplog.text
    assert "p1/5.png" not in store.ids
    assert [item["id"] for item in json.loads(store.attrs["skipped"])] == ["p1/5.png"]
    bad.unlink()
    clean = vr.extract(tiny, photos / "photos", photos / "u.h5", batch_size=4)
    assert clean.ids == store.ids
    assert np.array_equal(clean.labels, store.labels)
    np.testing.assert_allclose(clean.matrix()[0], store.matrix()[0], atol=1e-4)


def test_a_second_process_is_refused_and_the_lock_dies_with_the_first(photos):
    first = start(photos, 2.0)
    while not (photos / "s.h5.parts" / "extraction.json").exists():
        assert first.poll() is None
        time.sleep(0.02)
    second = finished(photos)
    assert second.returncode == 2
    assert "another process is writing this store" in second.stderr
    first.kill()
    first.wait()
    third = finished(photos)
    assert third.returncode == 0, third.stderr


def test_what_a_stray_process_is_writing_is_left_to_it(tiny, images, tmp_path):
    """One of several processes may outlive the one that holds the lock."""

    def interrupt(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vr.extract(tiny, images, tmp_path / "s.h5", progress=interrupt)
    stray = tmp_path / "s.h5.parts" / "part-00000.h5.writing"
    with stray.open("wb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(vr.StoreError, match=r"part-00000\.h5: another process is writing it"):
            vr.extract(tiny, images, tmp_path / "s.h5")
        assert stray.exists()
    assert len(vr.extract(tiny, images, tmp_path / "s.h5")) == 12


def test_pooled_and_half_precision_stores(tiny, images, tmp_path):
    full = vr.extract(tiny, images, tmp_path / "full.h5")
    pooled = vr.extract(tiny, images, tmp_path / "p.h5", pool="avg:2", dtype="float16")
    assert np.array_equal(
        pooled.matrix()[0], full.matrix(pool="avg:2")[0].astype(np.float16).astype(np.float32)
    )
    assert pooled["16x16.0"].mean[:2].shape == (2, 4, 2, 2)
    with pytest.raises(vr.LayerError, match="does not divide 4x4"):
        vr.extract(tiny, images, tmp_path / "q.h5", pool="avg:3")
    loud = vr.VDVAE(tiny.config).eval()
    loud.load_state_dict(tiny.state_dict())
    loud.top_down.blocks[0].posterior.c4.bias.data[:4] = 1e6
    with pytest.raises(
        vr.StoreError, match=r"layer 1x1\.0, mean: expected values that float16 holds"
    ):
        vr.extract(loud, images, tmp_path / "r.h5", dtype="float16", layers="1x1")


@pytest.mark.parametrize("layout", ["single", "virtual"])
def test_values_that_float16_makes_zero_are_counted_and_said(tiny, images, tmp_path, layout):
    """Half of the smallest number that IEEE 754's binary16 has, 2^-24, is rounded to 0; a 0 is no loss."""
    faint = vr.VDVAE(tiny.config).eval()
    faint.load_state_dict(tiny.state_dict())
    last = faint.top_down.blocks[0].posterior.c4
    last.weight.data[:4] = 0
    last.bias.data[:4] = torch.tensor([1.0, 0.0, 1e-9, -(2.0**-26)])
    said = []
    options = {"layers": "1x1", "layout": layout, "batch_size": 4, "report": said.append}
    kept = vr.extract(faint, images, tmp_path / "s.h5", **options)
    assert "too small" not in said[-1]
    half = vr.extract(faint, images, tmp_path / "h.h5", dtype="float16", **options)
    lost = (kept.matrix()[0] != 0) & (half.matrix()[0] == 0)
    assert lost.sum() == 24
    assert said[-1] == (
        "24 values are too small for float16 and stored as 0, the largest 1.5e-08; "
        "dtype float32 keeps them"
    )


def test_two_processes_write_the_same_store_byte_for_byte_killed_or_not(photos):
    alone = finished(photos)
    assert alone.returncode == 0, alone.stderr
    (photos / "s.h5").rename(photos / "whole.h5")
    joint = start_two(photos)
    printed, errors = joint.communicate()
    assert joint.returncode == 0, errors
    assert printed.count("24 images") == 1
    assert equal(photos / "s.h5", photos / "whole.h5")
    (photos / "s.h5").unlink()
    # Killed midway with their launcher: what they had finished is not made again.
    for path in photos.glob("pid-*"):
        path.unlink()
    launcher = start_two(photos, 0.15, "--layout", "virtual")
    while len(kept := parts_of(photos / "s.h5")) < 2:
        assert launcher.poll() is None
        time.sleep(0.02)
    workers = [int(path.name.removeprefix("pid-")) for path in photos.glob("pid-*")]
    assert len(workers) == 2
    for worker in workers:  # before the launcher, whose end would interrupt them
        os.kill(worker, signal.SIGKILL)
    launcher.kill()
    launcher.wait()
    kept = parts_of(photos / "s.h5")
    assert 2 <= len(kept) < 6
    assert not (photos / "s.h5").exists()
    again = start_two(photos, 0.0, "--layout", "virtual")
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert parts_of(photos / "s.h5").items() >= kept.items()
    assert equal(photos / "s.h5", photos / "whole.h5")


def test_a_store_that_is_being_written_is_no_store_yet(tiny, images, tmp_path):
    def look(count):
        with pytest.raises(vr.StoreError, match="is being written, or was interrupted"):
            vr.LatentStore.open(tmp_path / "s.h5")

    vr.extract(tiny, images, tmp_path / "s.h5", progress=look)


def test_a_store_cut_short_is_refused(tiny, images, tmp_path):
    path = vr.extract(tiny, images, tmp_path / "s.h5", layers="1x1").path
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(vr.StoreError, match=r"s\.h5: not a readable latent store"):
            vr.LatentStore.open(path)


def test_a_store_that_reads_other_files_is_refused(tiny, images, tmp_path):
    path = vr.extract(tiny, images, tmp_path / "s.h5").path
    with h5py.File(path, "r+") as file:
        file["stolen"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(vr.StoreError, match="'stolen' leads to another file"):
        vr.LatentStore.open(path)
    with h5py.File(path, "r+") as file:
        del file["stolen"]
        layout = h5py.VirtualLayout((12, 4), np.float32)
        layout[:] = h5py.VirtualSource("/somewhere/else.h5", "x", (12, 4))
        file.create_virtual_dataset("layers/099/mean", layout)
    with pytest.raises(vr.StoreError, match="'layers/099/mean' leads to another file"):
        vr.LatentStore.open(path)


def test_a_store_that_reads_raw_files_or_links_is_refused(tiny, images, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(range(48)))
    path = vr.extract(tiny, images, tmp_path / "s.h5").path
    with h5py.File(path, "r+") as file:
        file.create_dataset(
            "factors/stolen", (12,), np.float32, external=[(str(tmp_path / "secret"), 0, 48)]
        )
    with pytest.raises(vr.StoreError, match="'factors/stolen' leads to another file"):
        vr.LatentStore.open(path)
    with h5py.File(path, "r+") as file:
        del file["factors/stolen"]
        file["factors/stolen"] = h5py.SoftLink("/labels")
    with pytest.raises(vr.StoreError, match="'factors/stolen' leads to"):
        vr.LatentStore.open(path)
    with h5py.File(path, "r+") as file:
        del file["factors/stolen"]
        file["factors/again"] = file["/"]  # a circle
    with pytest.raises(vr.StoreError, match="groups inside groups"):
        vr.LatentStore.open(path)
