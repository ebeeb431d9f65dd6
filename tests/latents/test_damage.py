"""Stores that are damaged, or made by hand: one line, and never another value without a word."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.latents import extract as module
from vdvae_repr.latents.format import seal

FLIPS = int(os.environ.get("VDVAE_REPR_FLIPS", "25"))  # of each layout; by hand: 1000
DAMAGE = Path(__file__).with_name("damage.py")


@pytest.fixture
def source(images):
    return Source(
        name="some", ids=tuple(f"{'train' if i < 8 else 'test'}/{i}.png" for i in range(12)),
        reader=lambda i: images[i], labels=np.arange(12) % 2, label_names=("a", "b"),
        splits=("train",) * 8 + ("test",) * 4,
        factors={"light": images.mean((1, 2, 3)), "hue": np.array(list("rgb" * 4)), "n": np.arange(12)},
    )  # fmt: skip


@pytest.fixture
def store(tiny, source, tmp_path):
    """The path of a small store."""
    vr.extract(tiny, source, tmp_path / "s.h5", layers="<=4x4").close()
    return tmp_path / "s.h5"


@pytest.mark.parametrize("layout", ["single", "virtual"])
def test_no_flipped_bit_goes_unseen(tiny, source, tmp_path, monkeypatch, layout):
    """Either something says it in a line, or everything reads as it was."""
    monkeypatch.setattr(module, "PART", 4)
    vr.extract(tiny, source, tmp_path / "s.h5", layers="<=4x4", layout=layout, batch_size=4).close()
    files = [tmp_path / "s.h5", *sorted(tmp_path.glob("s.h5.parts/*.h5"))]
    command = [sys.executable, str(DAMAGE), *map(str, files), "0", str(FLIPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 + FLIPS)
    outcomes = Counter(line.partition(" ")[2] for line in done.stdout.splitlines())
    assert done.returncode == 0, (outcomes, done.stderr[-2000:])
    assert set(outcomes) <= {"said", "equal"}, outcomes
    assert outcomes.total() == FLIPS
    assert outcomes["said"] > FLIPS / 2


# Each of these is in the file, whose checksum is then made right: somebody wrote it so.


def write_ids(file, ids):
    del file["ids"]
    file.create_dataset("ids", data=ids, dtype=h5py.string_dtype())


def absurd(file, key, shape, dtype=np.float32):
    """An array that takes no place in the file."""
    if key in file:
        attrs = dict(file[key].attrs)
        del file[key]
    else:
        attrs = {}
    file.create_dataset(key, shape, dtype, chunks=(2, *(1 for _ in shape[1:])))
    file[key].attrs.update(attrs)


def group_in_place(file, key):
    del file[key]
    file.create_group(key)


ODD = {
    "config of another type": lambda f: f.attrs.update({"config": 7}),
    "layers no JSON": lambda f: f.attrs.update({"layers": "{"}),
    "layers null": lambda f: f.attrs.update({"layers": "null"}),
    "layers of numbers": lambda f: f.attrs.update({"layers": "[1]"}),
    "layers empty": lambda f: f.attrs.update({"layers": "[]"}),
    "layers nested": lambda f: f.attrs.update({"layers": "[" * 100_000}),
    "layers without shape": lambda f: f.attrs.update({"layers": '[{"index": 0, "name": "a"}]'}),
    "layers of text": lambda f: f.attrs.update(
        {"layers": json.dumps([{"index": "0", "name": "a", "resolution": 1, "shape": [1]}])}
    ),
    "layers negative": lambda f: f.attrs.update(
        {"layers": json.dumps([{"index": -1, "name": "a", "resolution": 1, "shape": [1]}])}
    ),
    "features a word": lambda f: f.attrs.update({"features": '"mean"'}),
    "features of numbers": lambda f: f.attrs.update({"features": "[1]"}),
    "a layer more than there is": lambda f: f.attrs.update({"features": '["mean", "delta"]'}),
    "seed an array": lambda f: f.attrs.update({"seed": np.arange(3)}),
    "seed text": lambda f: f.attrs.update({"seed": "one"}),
    "no model": lambda f: f.attrs.__delitem__("model"),
    "model bytes": lambda f: f.attrs.update({"model": np.void(b"\0\1")}),
    "skipped of words": lambda f: f.attrs.update({"skipped": '["a"]'}),
    "parts of words": lambda f: f.attrs.update({"parts": '["a"]'}),
    "parts negative": lambda f: f.attrs.update({"parts": '[["a", -1, -1]]'}),
    "parts elsewhere": lambda f: f.attrs.update({"parts": '[["../../etc/passwd", 1, 12]]'}),
    "parts absurd": lambda f: f.attrs.update({"parts": f'[["a", 1, {10**15}]]'}),
    "names no list": lambda f: f["labels"].attrs.update({"names": "3"}),
    "names missing": lambda f: f["labels"].attrs.__delitem__("names"),
    "ids a group": lambda f: group_in_place(f, "ids"),
    "labels a group": lambda f: group_in_place(f, "labels"),
    "splits a group": lambda f: group_in_place(f, "splits"),
    "a layer is a group": lambda f: group_in_place(f, "layers/000/mean"),
    "images a group": lambda f: group_in_place(f, "images"),
    "ids missing": lambda f: f.__delitem__("ids"),
    "splits missing": lambda f: f.__delitem__("splits"),
    "a layer is missing": lambda f: f.__delitem__("layers/001/mean"),
    "ids of numbers": lambda f: (f.__delitem__("ids"), f.__setitem__("ids", np.arange(12))),
    "too few ids": lambda f: write_ids(f, ["a"]),
    "no ids": lambda f: write_ids(f, []),
    "labels of a billion": lambda f: absurd(f, "labels", (10**9,), np.int64),
    "labels of 10^15": lambda f: absurd(f, "labels", (10**15,), np.int64),
    "a layer of 10^15": lambda f: absurd(f, "layers/000/mean", (12, 10**15)),
    "ids of 10^12": lambda f: [
        absurd(f, key, (10**12,), h5py.string_dtype() if key != "labels" else np.int64)
        for key in ("ids", "splits", "labels")
    ],
    "a factor of 10^12": lambda f: absurd(f, "factors/x", (10**12,)),
    "a factor is a group": lambda f: f.create_group("factors/x"),
    "a factor of one value": lambda f: f.__setitem__("factors/x", 3),
    "a factor with a line break": lambda f: f.__setitem__("factors/a\nb", np.arange(12)),
    "a factor of 4000 characters": lambda f: f.__setitem__(f"factors/{'n' * 4000}", np.arange(12)),
    "a feature that is a path": lambda f: f.attrs.__setitem__("features", '["mean", "../x"]'),
    "factors an array": lambda f: (f.__delitem__("factors"), f.__setitem__("factors", np.arange(12))),
    "an external link": lambda f: f.__setitem__("factors/x", h5py.ExternalLink("/etc/passwd", "/")),
    "a layer of text": lambda f: (
        f.__delitem__("layers/000/mean"),
        f.create_dataset("layers/000/mean", data=["a"] * 12, dtype=h5py.string_dtype()),
    ),
    "kl of one axis": lambda f: (f.__delitem__("kl"), f.__setitem__("kl", np.zeros(12, "f4"))),
    "another schema": lambda f: f.attrs.update({"schema": "vdvae-repr/99"}),
    "schema an array": lambda f: f.attrs.update({"schema": np.arange(3)}),
}  # fmt: skip


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_what_is_no_store_is_refused_in_a_line(store, change):
    with h5py.File(store, "r+", libver=("v110", "latest")) as file:
        del file.attrs["metadata_sha256"]  # else that alone would tell
        change(file)
    with pytest.raises(vr.StoreError, match=r"s\.h5") as refused:
        vr.open(store)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_arrays_that_say_to_be_larger_than_the_file_take_no_memory(store):
    with h5py.File(store, "r+", libver=("v110", "latest")) as file:
        del file.attrs["metadata_sha256"]
        absurd(file, "images", (12, 10**6, 10**6, 3), np.uint8)
        absurd(file, "kl", (12, 10**12))
        absurd(file, "layers/001/mean", (12, 10**5, 10**5, 10**3))
        layers = json.loads(file.attrs["layers"])
        layers[1]["shape"] = [10**5, 10**5, 10**3]
        file.attrs["layers"] = json.dumps(layers)
    with vr.open(store) as opened:
        for read in (opened.images, opened.verify, lambda: opened.kl, lambda: opened.matrix("4x4")):
            with pytest.raises(vr.StoreError, match="values are not in the file") as refused:
                read()
            assert "\n" not in str(refused.value)


FOUND_BY_VERIFY = {
    "an id twice": (lambda f: write_ids(f, ["a"] * 12), "ids occur twice"),
    "a label too large": (lambda f: f["labels"].__setitem__(3, 2), "expected labels from -1 to 1"),
    "a label too small": (lambda f: f["labels"].__setitem__(3, -2), "expected labels from -1 to 1"),
    "a value that is NaN": (
        lambda f: f["layers/001/mean"].__setitem__((3, 0, 0, 0), np.nan),
        r"NaN or infinity in layer 4x4\.0, image 'train/3\.png'",
    ),
    "a kl that is infinite": (lambda f: f["kl"].__setitem__((9, 0), np.inf), r"in kl, image 'test/9\.png'"),
    "a layer that is not listed": (
        lambda f: f.__setitem__("layers/009/mean", np.zeros((12, 1), "f4")),
        "'layers/009/mean' is of no layer",
    ),
    "a feature that is not listed": (
        lambda f: f.__setitem__("layers/000/delta", np.zeros((12, 1), "f4")),
        "'layers/000/delta' is of no layer or feature",
    ),
    "mirrored images that are not listed": (
        lambda f: f.__setitem__("mirror/layers/000/mean", np.zeros((12, 4, 1, 1), "f4")),
        "'mirror/layers/000/mean' is of no layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FOUND_BY_VERIFY.values(), ids=FOUND_BY_VERIFY)
def test_verify_looks_at_what_values_mean(store, change, message):
    with h5py.File(store, "r+", libver=("v110", "latest")) as file:
        del file.attrs["metadata_sha256"]
        change(file)
        seal(file)
    with vr.open(store) as opened, pytest.raises(vr.StoreError, match=message):
        opened.verify()


def test_what_was_changed_by_hand_is_noticed_when_a_store_is_opened(store):
    changes = {
        "ids": lambda f: f["ids"].__setitem__(3, "train/4.png"),
        "splits": lambda f: f["splits"].__setitem__(3, "test"),
        "factors": lambda f: f["factors/n"].__setitem__(3, 9),
        "names": lambda f: f["labels"].attrs.__setitem__("names", '["a", "c"]'),
        "weights": lambda f: f.attrs.__setitem__("weights_sha256", "0"),
        "seed": lambda f: f.attrs.__setitem__("seed", 7),
    }
    whole = store.read_bytes()
    for change in changes.values():
        with h5py.File(store, "r+") as file:
            change(file)
        with pytest.raises(
            vr.StoreError, match="its ids, labels, factors or attributes are damaged"
        ):
            vr.open(store)
        store.write_bytes(whole)
    vr.open(store).close()


def test_a_store_of_the_first_version_says_what_could_not_be_checked():
    with vr.open(Path(__file__).parent / "stores" / "first.h5") as store:
        (line,) = store.verify()
    assert line.startswith("made by an earlier version: its ids, splits")


def test_a_part_whose_arrays_are_absurd_takes_no_memory(tiny, source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    path = tmp_path / "v.h5"
    vr.extract(tiny, source, path, layers="<=4x4", layout="virtual", batch_size=4).close()
    part = tmp_path / "v.h5.parts" / "part-00001.h5"
    size = part.stat().st_size
    with h5py.File(part, "r+", libver=("v110", "latest")) as file:
        absurd(file, "layers/000/mean", (4, 10**15, 1, 1))
    content = part.read_bytes()
    part.write_bytes(
        content[:size] if len(content) > size else content + bytes(size - len(content))
    )
    with pytest.raises(vr.StoreError) as refused, vr.open(path) as store:
        store.matrix()
    assert "\n" not in str(refused.value)


# Names and sizes that are kept, or refused before anything is computed


@pytest.mark.parametrize(
    "changes",
    [{"factors": {"n" * 200: np.arange(12)}},
     {"factors": {f"factor {i}": np.arange(12) for i in range(100)}},
     {"factors": {"ünïcode & <b>": np.array(["é" * 5000] * 12)}},
     {"factors": {" ": np.arange(12) > 3, "$": np.arange(12, dtype=np.float16)}},
     {"label_names": tuple(f"class {i}" for i in range(100_000)), "labels": np.arange(12) * 8000},
     {"ids": tuple("x" * 4000 + str(i) for i in range(12))}],
)  # fmt: skip
def test_what_hdf5_can_hold_is_kept(tiny, source, tmp_path, changes):
    changed = dataclasses.replace(source, **changes)
    for layout in ("single", "virtual"):
        with vr.extract(
            tiny, changed, tmp_path / f"{layout}.h5", layers="1x1", layout=layout
        ) as store:
            assert store.ids == changed.ids
            assert store.label_names == changed.label_names
            factors = store.factors
            assert factors.keys() == changed.factors.keys()
            for name, values in changed.factors.items():
                assert np.array_equal(factors[name], values)
            store.verify()


@pytest.mark.parametrize(
    "values",
    [np.arange(12) * 1j, np.array([{}] * 12), np.zeros((12, 2)), np.arange(12).astype("V8")],
)
def test_what_hdf5_cannot_hold_is_refused_before_anything_is_computed(
    tiny, source, tmp_path, values
):
    def fail(count):
        raise AssertionError("computed")

    with pytest.raises(vr.DataError, match="factor 'x'") as refused:
        vr.extract(
            tiny,
            dataclasses.replace(source, factors={"x": values}),
            tmp_path / "s.h5",
            progress=fail,
        )
    assert "\n" not in str(refused.value)
