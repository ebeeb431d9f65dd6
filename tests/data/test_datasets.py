import io
import os
import pickle
import socket
import tarfile
import zipfile
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import train_test_split

from vdvae_repr.data import datasets
from vdvae_repr.data.datasets import DATASETS
from vdvae_repr.data.open import open_source
from vdvae_repr.errors import DataError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_root_in_the_environment(monkeypatch):
    monkeypatch.delenv("VDVAE_REPR_DATA_ROOT", raising=False)


@pytest.fixture
def small_val(monkeypatch):
    """Hold back three images, by the published seeds and from the published end."""
    for rule, (seed, places) in datasets.PUBLISHED_VAL.items():
        few = slice(3) if places.start is None else slice(-3, None)
        monkeypatch.setitem(datasets.PUBLISHED_VAL, rule, (seed, few))


class Python2Pickler(pickle._Pickler):
    """Protocol 2 with every text a byte string, as Python 2 and its NumPy wrote them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        value = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(content):
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(content)
    old_flags = buffer.getvalue().replace(b"\x89\x88\x87", b"K\x00K\x01\x87")  # of dtype: 0, 1
    return old_flags.replace(b"numpy._core", b"numpy.core")


def rows(count, size):
    return RNG.integers(0, 256, (count, 3 * size * size), dtype=np.uint8)


def images(count, size):
    return RNG.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write_png(path, image=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = images(1, 8)[0] if image is None else image
    Image.fromarray(image).save(path, format="PNG")
    return image


def read(source):
    return [np.asarray(image) for image in source.read(0, len(source))]


def members(source, split):
    return [i for i, name in zip(source.ids, source.splits, strict=True) if name == split]


def write_cifar10(root):
    """Four images a batch: pixels and labels in file order."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels, labels = rows(24, 32), RNG.integers(0, 10, 24).tolist()
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        part = slice(4 * i, 4 * i + 4)
        batch = {"batch_label": name, "labels": labels[part], "data": pixels[part]}
        (folder / name).write_bytes(python2_pickle(batch))
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    (folder / "batches.meta").write_bytes(python2_pickle({"label_names": names}))
    return pixels, labels


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_with_the_published_split(tmp_path, small_val, packed):
    pixels, labels = write_cifar10(tmp_path)
    if packed:
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
        (tmp_path / "cifar-10-batches-py").rename(tmp_path / "elsewhere")
    source = open_source("cifar10", root=tmp_path)
    assert source.name == "cifar10"
    assert source.ids[:5] == tuple(
        f"data_batch_{b}/{i}" for b, i in ((1, 0), (1, 1), (1, 2), (1, 3), (2, 0))
    )
    assert source.labels.tolist() == labels
    assert source.label_names[3] == "cat"
    for image, row in zip(read(source), pixels, strict=True):
        assert image[5, 7].tolist() == [row[32 * 5 + 7 + 1024 * channel] for channel in range(3)]
    _, val = train_test_split(np.arange(20), test_size=3, random_state=11172018)
    assert {i for i in range(20) if source.splits[i] == "val"} == set(val)
    assert source.splits[20:] == ("test",) * 4


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("key", [str, str.encode])
def test_cifar10_that_python_3_pickled_anew(tmp_path, small_val, protocol, key):
    pixels, labels = write_cifar10(tmp_path)
    for path in (tmp_path / "cifar-10-batches-py").iterdir():
        content = pickle.loads(path.read_bytes(), encoding="latin1")
        again = {key(name): values for name, values in content.items()}
        path.write_bytes(pickle.dumps(again, protocol=protocol))
    source = open_source("cifar10", root=tmp_path)
    assert source.labels.tolist() == labels
    assert source.label_names[3] == "cat"
    assert read(source)[23][5, 7].tolist() == pixels[23, 32 * 5 + 7 :: 1024].tolist()


def test_published_counts_of_cifar10():
    _, val = train_test_split(np.arange(50_000), test_size=5_000, random_state=11172018)
    splits = np.array(datasets._hold_back("cifar10", 50_000))
    assert set(np.flatnonzero(splits == "val")) == set(val)
    assert (splits == "train").sum() == 45_000


def test_cifar100_has_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, labels in (("train", [99, 0, 7]), ("test", [1, 2])):
        batch = {
            "data": rows(len(labels), 32),
            "fine_labels": labels,
            "coarse_labels": [0] * len(labels),
        }
        (folder / name).write_bytes(python2_pickle(batch))
    source = open_source("cifar100", root=tmp_path)
    assert source.labels.tolist() == [99, 0, 7, 1, 2]
    assert source.splits == ("train",) * 3 + ("test",) * 2


class Malicious:
    def __init__(self, call, *arguments):
        self.call = (call, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (eval, "__builtin__.eval"),
        (np.load, "numpy.load"),
        (np.lib.format.open_memmap, "numpy.lib.*open_memmap"),
    ],
)
def test_a_pickle_that_calls_anything_is_refused(tmp_path, call, named):
    write_cifar10(tmp_path)
    written = tmp_path / "written"
    trap = Malicious(call, f"open({str(written)!r}, 'w')")
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(python2_pickle({"data": trap, "labels": []}))
    with pytest.raises(DataError, match=rf"data_batch_2: .*refused.* \(it calls {named}"):
        open_source("cifar10", root=tmp_path)
    assert not written.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "refused"),
        (python2_pickle({"labels": [0]}), r"with \[b'data', b'labels'\]"),
        (python2_pickle([1]), "found list"),
        (python2_pickle({"data": rows(2, 16), "labels": [0, 1]}), r"uint8 \(N, 3072\)"),
        (python2_pickle({"data": rows(2, 32), "labels": [0]}), "2 labels in data_batch_2"),
    ],
)
def test_a_damaged_batch_is_named(tmp_path, small_val, content, message):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0, 1, 2.5, 3], "found 2.5"),
        ([0, -1, 2, 3], "found -1 to 3"),
        ([0, 1, 2, 10], "found 0 to 10"),
        ([0, 1, 2, float("nan")], "found nan"),
        (["cat"] * 4, "found <U3"),
    ],
)
def test_labels_that_are_no_numbers_of_classes_are_refused(tmp_path, small_val, labels, found):
    write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(pickle.dumps({"data": rows(4, 32), "labels": labels}))
    with pytest.raises(DataError, match=f"data_batch_2: expected labels 0 to 9, {found}"):
        open_source("cifar10", root=tmp_path)
    batch.write_bytes(pickle.dumps({"data": rows(4, 32), "labels": [0.0, 1.0, 2.0, 9.0]}))
    assert open_source("cifar10", root=tmp_path).labels[4:8].tolist() == [0, 1, 2, 9]


def published_val(seed, count, held_back):
    """The published code's own words: seed NumPy's global state, permute, take the end."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    permutation = np.random.permutation(count)  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002
    return set(permutation[-held_back:])


def test_old_imagenet_arrays(tmp_path, small_val):
    train, test = images(10, 32), images(2, 32)
    np.save(tmp_path / "imagenet32-train.npy", train)
    np.save(tmp_path / "imagenet32-valid.npy", test)
    source = open_source("imagenet32", root=tmp_path)
    assert source.name == "imagenet32 (old)"
    assert np.array_equal(np.stack(read(source)), np.concatenate([train, test]))
    val = published_val(42, 10, 3)
    assert set(members(source, "val")) == {f"imagenet32-train/{i}" for i in val}
    assert members(source, "test") == ["imagenet32-valid/0", "imagenet32-valid/1"]
    assert set(source.labels) == {-1}
    (tmp_path / "imagenet32-valid.npy").unlink()
    with pytest.raises(DataError, match=r"found no .*imagenet32-valid.npy"):
        open_source("imagenet32", root=tmp_path)


def test_old_imagenet_folders(tmp_path, small_val):
    train = [write_png(tmp_path / "train_64x64" / f"{i}.png", images(1, 64)[0]) for i in range(12)]
    test = write_png(tmp_path / "valid_64x64" / "1.png", images(1, 64)[0])
    source = open_source("imagenet64", root=tmp_path)
    assert source.name == "imagenet64 (old)"
    assert np.array_equal(np.stack(read(source)), np.stack([*train, test]))  # 2.png before 10.png
    assert set(members(source, "val")) == {f"train_64x64/{i}.png" for i in published_val(42, 12, 3)}
    assert members(source, "test") == ["valid_64x64/1.png"]


def write_new_imagenet(root, folder="Imagenet32_{}_npz", save=np.savez):
    """One image a training batch, two to test."""
    pixels, labels = rows(12, 32), [1000, 1, *range(2, 12)]
    for i in range(11):
        part, name = ("train", f"train_data_batch_{i + 1}") if i < 10 else ("val", "val_data")
        path = root / folder.format(part) / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = slice(i, i + 1) if i < 10 else slice(10, 12)
        save(path, data=pixels[chosen], labels=np.array(labels[chosen]), mean=np.zeros(3072))
    return pixels, np.array(labels) - 1


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "folder", ["Imagenet32_{}_npz", "imagenet32", "imagenet32/Imagenet32_{}_npz", "."]
)
def test_new_imagenet_batches(tmp_path, small_val, save, folder):
    pixels, labels = write_new_imagenet(tmp_path, folder, save)
    source = open_source("imagenet32", root=tmp_path)
    assert source.name == "imagenet32 (new)"
    assert source.labels.tolist() == labels.tolist()
    assert (source.label_names[0], source.label_names[999]) == ("1", "1000")
    expected = np.stack([np.dstack(row.reshape(3, 32, 32)) for row in pixels])
    assert np.array_equal(np.stack(read(source)), expected)
    val = published_val(42, 10, 3)
    assert set(members(source, "val")) == {f"train_data_batch_{i + 1}/0" for i in val}
    assert members(source, "test") == ["val_data/0", "val_data/1"]


def test_stored_batches_are_read_in_place(tmp_path, small_val):
    write_new_imagenet(tmp_path)
    source = open_source("imagenet32", root=tmp_path)
    batch = tmp_path / "Imagenet32_val_npz" / "val_data.npz"
    last = np.load(batch)["data"][-1].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(source.load(len(source) - 1), last)
    os.truncate(batch, 100)
    with pytest.raises(DataError, match=r"val_data/\d+: .*val_data.npz: .* was cut short"):
        source.load(len(source) - 1)


def test_imagenet64_comes_in_two_parts(tmp_path, small_val):
    for i in range(1, 11):
        folder = tmp_path / f"Imagenet64_train_part{1 if i < 6 else 2}_npz"
        folder.mkdir(exist_ok=True)
        np.savez(folder / f"train_data_batch_{i}.npz", data=rows(1, 64), labels=[i])
    with pytest.raises(DataError, match=r"found no .*val_data.npz"):
        open_source("imagenet64", root=tmp_path)
    (tmp_path / "Imagenet64_val_npz").mkdir()
    np.savez(tmp_path / "Imagenet64_val_npz" / "val_data.npz", data=rows(1, 64), labels=[11])
    assert open_source("imagenet64", root=tmp_path).labels.tolist() == list(range(11))


def test_rows_of_a_named_data_set_that_were_never_written_are_said(tmp_path, small_val):
    array = np.lib.format.open_memmap(
        tmp_path / "imagenet32-train.npy", "w+", np.uint8, (400, 32, 32, 3)
    )
    array[:200] = 99
    array.flush()
    np.save(tmp_path / "imagenet32-valid.npy", images(1, 32) | 1)
    said = open_source("imagenet32-old", root=tmp_path).notices
    (line,) = [line for line in said if "black, 0 everywhere" in line]
    assert line.startswith("8 images of 17 looked at")


def test_old_and_new_imagenet_must_be_told_apart(tmp_path, small_val):
    write_new_imagenet(tmp_path)
    np.save(tmp_path / "imagenet32-train.npy", images(4, 32))
    np.save(tmp_path / "imagenet32-valid.npy", images(1, 32))
    with pytest.raises(DataError, match="name imagenet32-old or imagenet32-new"):
        open_source("imagenet32", root=tmp_path)
    assert open_source("imagenet32-old", root=tmp_path).name == "imagenet32 (old)"
    assert open_source("imagenet32-new", root=tmp_path).name == "imagenet32 (new)"


def test_wrong_arrays_are_refused(tmp_path, small_val):
    np.save(tmp_path / "ffhq-256.npy", images(9, 32))
    with pytest.raises(DataError, match=r"\(N, 256, 256, 3\), found uint8 \(9, 32, 32, 3\)"):
        open_source("ffhq", root=tmp_path)
    (tmp_path / "ffhq-256.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="cannot be read"):
        open_source("ffhq", root=tmp_path)
    np.save(tmp_path / "ffhq-256.npy", images(3, 256))
    with pytest.raises(DataError, match="more than 3 training images, found 3"):
        open_source("ffhq", root=tmp_path)
    write_new_imagenet(tmp_path)
    last = tmp_path / "Imagenet32_val_npz" / "val_data.npz"
    np.savez(last, data=rows(2, 32), labels=[0, 5])
    with pytest.raises(DataError, match="labels 1 to 1000, found 0 to 5"):
        open_source("imagenet32", root=tmp_path)
    np.savez(last, data=rows(2, 32), labels=[1, 2.5])
    with pytest.raises(DataError, match=r"labels 1 to 1000, found 2\.5"):
        open_source("imagenet32", root=tmp_path)
    np.savez(last, data=rows(2, 64), labels=[1, 5])
    with pytest.raises(DataError, match=r"\(N, 3072\), found uint8 \(2, 12288\)"):
        open_source("imagenet32", root=tmp_path)
    np.savez(last, labels=[1, 5])
    with pytest.raises(DataError, match=r"cannot be read .*data.npy"):
        open_source("imagenet32", root=tmp_path)


@pytest.mark.parametrize("name", ["ffhq", "ffhq256"])
def test_ffhq256_holds_the_published_images_back(tmp_path, small_val, name):
    pixels = images(8, 256)
    np.save(tmp_path / "ffhq-256.npy", pixels)
    source = open_source(name, root=tmp_path)
    assert set(members(source, "val")) == {f"ffhq-256/{i}" for i in published_val(5, 8, 3)}
    assert len(members(source, "train")) == 5
    assert np.array_equal(np.stack(read(source)), pixels)


def test_ffhq1024_folders(tmp_path):
    for name in ("train/0/00000.png", "train/0/00001.png", "valid/65000.png"):
        write_png(tmp_path / "ffhq1024" / name)
    source = open_source("ffhq1024", root=tmp_path)
    assert source.ids == ("train/0/00000.png", "train/0/00001.png", "valid/65000.png")
    assert source.splits == ("train", "train", "val")
    assert source.label_names == ()


def test_celeba(tmp_path):
    folder = tmp_path / "celeba"
    files = ["000001.jpg", "000002.jpg", "000003.jpg"]
    for file in files:
        write_png(folder / "img_align_celeba" / file)
    partition = folder / "list_eval_partition.txt"
    partition.write_text("000001.jpg 0\n000002.jpg 2\n000003.jpg 1\n")
    source = open_source("celeba", root=tmp_path)
    assert (source.ids, source.splits) == (tuple(files), ("train", "test", "val"))
    assert source.labels.tolist() == [-1, -1, -1]
    assert source.notices[0] == "no identity_CelebA.txt is there, so that images have no labels"
    (folder / "identity_CelebA.txt").write_text("")
    assert "identity_CelebA.txt is empty" in open_source("celeba", root=tmp_path).notices[0]
    (folder / "identity_CelebA.txt").write_text(
        "000001.jpg 2880\n000002.jpg 2937\n000003.jpg 2880\n"
    )
    source = open_source("celeba", root=tmp_path)
    assert [source.label_names[label] for label in source.labels] == ["2880", "2937", "2880"]
    assert len(read(source)) == 3
    for wrong, message in (("000001.jpg 3\n", "0, 1 or 2"), ("000001.jpg\n", "two columns")):
        partition.write_text(wrong)
        with pytest.raises(DataError, match=message):
            open_source("celeba", root=tmp_path)
    partition.write_text("000001.jpg 0\n000004.jpg 0\n")
    with pytest.raises(DataError, match=r"found no .*000004.jpg"):
        open_source("celeba", root=tmp_path)


def write_named(root, name, labels):
    """Write a data set by name, whose images have labels that its lists or folders give."""
    if name == "celeba":
        folder, files = root / "celeba", [f"{i:06d}.jpg" for i in range(len(labels))]
        for file in files:
            write_png(folder / "img_align_celeba" / file)
        (folder / "list_eval_partition.txt").write_text("".join(f"{f} 0\n" for f in files))
        (folder / "identity_CelebA.txt").write_text(
            "".join(f"{f} {label}\n" for f, label in zip(files, labels, strict=True))
        )
    elif name == "tiny-imagenet":
        folder, files = root / "tiny-imagenet-200", [f"v_{i}.JPEG" for i in range(len(labels))]
        write_png(folder / "train" / labels[0] / "images" / "t_0.JPEG")
        for file in files:
            write_png(folder / "val" / "images" / file)
        (folder / "val" / "val_annotations.txt").write_text(
            "".join(f"{f}\t{label}\t0\t0\t9\t9\n" for f, label in zip(files, labels, strict=True))
        )
    else:
        places = ["lfw"]
        if name == "omniglot":
            places = ["omniglot/images_background/al", "omniglot/images_evaluation/al"]
        for place in places:
            for label in labels:
                write_png(root / place / label / f"{label}_0001.png")


@pytest.mark.parametrize("name", ["celeba", "tiny-imagenet", "lfw", "omniglot"])
@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (
            ["cat", "hot_dog", "hotdog"],
            "'{}hot_dog' and '{}hotdog' are two classes; rename one if they are the same",
        ),
        (["cat", "Cat"], "'{}Cat' and '{}cat' are two classes; rename one if they are the same"),
        (
            ["7", "8", "-1"],
            "label '-1' is a class of its own; leave a label out where there is none",
        ),
        (
            ["7", "unknown"],
            "label 'unknown' is a class of its own; leave a label out where there is none",
        ),
    ],
)
def test_classes_of_a_named_set_are_looked_at_once_as_a_folders_are(tmp_path, name, labels, line):
    write_named(tmp_path, name, labels)
    source = open_source(name, root=tmp_path)
    outer = "al/" if name == "omniglot" else ""
    said = [text for text in source.notices if "class" in text]
    of_label = line.startswith("label") and name == "omniglot"  # `al/-1` stands for itself
    assert said == ([] if of_label else [line.format(outer, outer)])


def test_a_copy_of_an_alphabet_of_omniglot_is_said(tmp_path):
    for place in (
        "images_background/Greek",
        "images_background/Greek - Copy",
        "images_evaluation/N_Ko",
    ):
        write_png(tmp_path / "omniglot" / place / "character01" / "0001_01.png")
    assert open_source("omniglot", root=tmp_path).notices[0] == (
        "'Greek' and 'Greek - Copy' are two folders of classes; rename one if they are the same"
    )


@pytest.mark.parametrize("label", ["7", "9"])
@pytest.mark.parametrize(
    ("name", "list_"),
    [
        ("celeba", "celeba/identity_CelebA.txt"),
        ("celeba", "celeba/list_eval_partition.txt"),
        ("tiny-imagenet", "tiny-imagenet-200/val/val_annotations.txt"),
    ],
)
def test_a_list_of_a_named_set_is_read_as_a_table_is(tmp_path, name, list_, label):
    """With a byte-order mark and any ends of lines, and no file named twice, whatever its label."""
    write_named(tmp_path, name, ["7", "8"])
    plain, path = open_source(name, root=tmp_path), tmp_path / list_
    text = path.read_text()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    marked = open_source(name, root=tmp_path)
    assert (marked.ids, marked.splits, marked.notices) == (plain.ids, plain.splits, plain.notices)
    assert marked.labels.tolist() == plain.labels.tolist()
    file = text.split()[0]
    path.write_text(f"{text}{file} {label}\n")
    with pytest.raises(
        DataError, match=rf"{path.name} line 3: file '{file}' occurs twice; keep one"
    ):
        open_source(name, root=tmp_path)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=rf"{path.name}: .*found a Git LFS pointer"):
        open_source(name, root=tmp_path)


def test_images_that_a_named_set_leaves_out_are_said(tmp_path, monkeypatch):
    folder = tmp_path / "celeba"
    for file in ("000001.jpg", "000002.jpg", "000003.jpg"):
        write_png(folder / "img_align_celeba" / file)
    (folder / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 2\n")
    (folder / "identity_CelebA.txt").write_text("000001.jpg 2880\n")  # cut
    assert open_source("celeba", root=tmp_path).notices == (
        "1 image has no label, as 000002.jpg",
        "1 image in img_align_celeba left out, which its list lacks, as 000003.jpg",
        "2 images are there, 202,599 are published; figures are of these alone",
    )
    (folder / "identity_CelebA.txt").write_text("000001.png 2880\n000002.png 2880\n")  # renamed
    (folder / "list_attr_celeba.txt").write_text("2\nBald\n")
    assert open_source("celeba", root=tmp_path).notices[:2] == (
        "no image has a label: identity_CelebA.txt names others, as 000001.png",
        "list_attr_celeba.txt is not read; give its attributes as factors in a CSV",
    )
    lfw = tmp_path / "lfw"
    monkeypatch.setitem(datasets.PUBLISHED_IMAGES, "lfw", 1)
    write_png(lfw / "Al_Ek/Al_Ek_0001.jpg")
    (lfw / "pairs.txt").write_text("10 300\n")
    assert open_source("lfw", root=tmp_path).notices == ()
    (lfw / "Al_Ek" / "Al_Ek_0002.jpg").symlink_to(tmp_path / "nowhere")
    (notice,) = open_source("lfw", root=tmp_path).notices
    assert "broken link (1)" in notice
    tiny = tmp_path / "tiny-imagenet-200"
    write_png(tiny / "train/n01/images/n01_0.JPEG")
    (tiny / "train/n01/images/n01_1.JPEG").symlink_to(tmp_path / "nowhere")
    for i in range(2):
        write_png(tiny / f"val/images/val_{i}.JPEG")
    (tiny / "val/val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t32\t44\t62\n")
    assert open_source("tiny-imagenet", root=tmp_path).notices == (
        "train: 1 file left out: broken link (1)",
        "1 image in images left out, which its list lacks, as val_1.JPEG",
        "2 images are there, 110,000 are published; figures are of these alone",
    )


def test_lfw_takes_the_first_version_there(tmp_path):
    for place in ("lfw", "lfw_funneled", "lfw-deepfunneled", "lfw_home/lfw_funneled"):
        for file in ("Bo_Di/Bo_Di_0002.jpg", "Al_Ek/Al_Ek_0001.jpg", "Bo_Di/Bo_Di_0001.jpg"):
            write_png(tmp_path / place / file)
        source = open_source("lfw", root=tmp_path)
        assert source.name == f"lfw ({place.split('/')[-1]})"
    assert source.ids == ("Al_Ek/Al_Ek_0001.jpg", "Bo_Di/Bo_Di_0001.jpg", "Bo_Di/Bo_Di_0002.jpg")
    assert (source.label_names, source.labels.tolist()) == (("Al_Ek", "Bo_Di"), [0, 1, 1])
    assert set(source.splits) == {""}


@pytest.mark.parametrize("outer", ["", "lfw-deepfunneled/"])
def test_lfw_by_name_reads_splits_and_says_what_the_folder_says(tmp_path, outer):
    for split, numbers in (("train", (1, 2)), ("test", (3, 4))):
        for person in ("Ada", "ada", "Bob_X"):
            for number in numbers:
                write_png(tmp_path / f"lfw/{outer}{split}/{person}/{person}_{number:04d}.jpg")
    (tmp_path / "lfw/pairs.txt").write_text("10 300\n")
    named, folder = open_source("lfw", root=tmp_path), open_source(tmp_path / "lfw")
    assert (named.ids, named.splits) == (folder.ids, folder.splits)
    assert (named.splits.count("train"), named.splits.count("test")) == (6, 6)
    assert named.label_names == ("Ada", "Bob_X", "ada")
    assert named.labels.tolist() == folder.labels.tolist()
    assert named.notices[0] == ("'Ada' and 'ada' are two classes; rename one if they are the same")


def test_a_person_of_lfw_is_the_last_folder_and_val_ackerman_is_not_said(tmp_path):
    for person in ("Al_Ek", "Val_Ackerman"):
        write_png(tmp_path / f"lfw-deepfunneled/lfw-deepfunneled/{person}/{person}_0001.jpg")
    source = open_source("lfw", root=tmp_path)
    assert source.label_names == ("Al_Ek", "Val_Ackerman")
    (line,) = source.notices
    assert line.startswith("2 images are there, 13,233 are published")


@pytest.mark.parametrize("zipped", [False, True])
def test_omniglot(tmp_path, zipped):
    drawn = [
        ("images_background/Balinese/character01/0108_01.png", "train"),
        ("images_background/Balinese/character02/0109_01.png", "train"),
        ("images_background/Greek/character01/0394_01.png", "train"),
        ("images_evaluation/Angelic/character01/0965_01.png", "test"),
    ]
    pixels = [write_png(tmp_path / "omniglot-py" / name) for name, _ in drawn]
    if zipped:
        for folder in ("images_background", "images_evaluation"):
            with zipfile.ZipFile(tmp_path / f"{folder}.zip", "w") as archive:
                for name, _ in reversed(drawn):
                    if name.startswith(folder):
                        archive.write(tmp_path / "omniglot-py" / name, name)
        (tmp_path / "omniglot-py").rename(tmp_path / "elsewhere")
    source = open_source("omniglot", root=tmp_path)
    assert list(zip(source.ids, source.splits, strict=True)) == drawn
    names = [source.label_names[label] for label in source.labels]
    assert names[:3] == ["Balinese/character01", "Balinese/character02", "Greek/character01"]
    assert np.array_equal(np.stack(read(source)), np.stack(pixels))


@pytest.mark.parametrize("outer", ["", "omniglot/python/images_{}/"])
def test_omniglot_zips_of_the_folders_contents_or_of_more_keep_every_alphabet(tmp_path, outer):
    """One name may be in both zips: each is read."""
    characters = [f"{alphabet}/character0{k}" for alphabet in ("Greek", "Latin") for k in (1, 2)]
    (tmp_path / "omniglot-py").mkdir()
    drawn = write_png(tmp_path / "1.png")
    for part in ("background", "evaluation"):
        with zipfile.ZipFile(tmp_path / "omniglot-py" / f"images_{part}.zip", "w") as archive:
            for character in characters:
                name = f"{outer.format(part)}{character}/0001_01.png"
                archive.write(tmp_path / "1.png", name)
    source = open_source("omniglot", root=tmp_path)
    assert source.label_names == tuple(characters)
    assert source.ids[::4] == tuple(
        f"images_{part}/Greek/character01/0001_01.png" for part in ("background", "evaluation")
    )
    assert source.splits == ("train",) * 4 + ("test",) * 4
    assert np.array_equal(read(source)[7], drawn)


def test_two_drawings_of_one_path_in_a_zip_are_refused(tmp_path):
    write_png(tmp_path / "omniglot-py/images_evaluation/Greek/character01/1.png")
    with zipfile.ZipFile(tmp_path / "omniglot-py/images_background.zip", "w") as archive:
        for outer in ("a", "b"):
            archive.writestr(f"{outer}/images_background/Greek/character01/1.png", b"")
    with pytest.raises(DataError, match=r"expected one file images_background/Greek/.*found two"):
        open_source("omniglot", root=tmp_path)


def test_omniglot_runs(tmp_path):
    names = [
        f"run{run:02d}/{kind}{number:02d}.png"
        for run in (1, 2)
        for kind in ("test/item", "training/class")
        for number in (1, 2)
    ]
    for name in names:
        write_png(tmp_path / "drawn" / name)

    def write(first, around=""):
        with zipfile.ZipFile(tmp_path / "all_runs.zip", "w") as archive:
            for name in names:
                archive.write(tmp_path / "drawn" / name, around + name)
            for run, pairs in (("run01", first), ("run02", ((1, 1), (2, 2)))):
                text = "\n".join(
                    f"{run}/test/item{a:02d}.png {run}/training/class{b:02d}.png" for a, b in pairs
                )
                archive.writestr(f"{around}{run}/class_labels.txt", text + "\n")

    write(((1, 2), (2, 1)))
    source = open_source("omniglot-runs", root=tmp_path)
    assert source.splits == ("test", "test", "train", "train") * 2
    assert source.factors["run"].tolist() == [1] * 4 + [2] * 4
    named = dict(zip(source.ids, (source.label_names[k] for k in source.labels), strict=True))
    assert named["run01/test/item01.png"] == "run01/class02" == named["run01/training/class02.png"]
    assert named["run02/test/item01.png"] == "run02/class01"
    write(((1, 2), (2, 1)), around="all_runs/")
    around = open_source("omniglot-runs", root=tmp_path)
    assert (around.ids, around.splits) == (source.ids, source.splits)
    write(((1, 2),))
    with pytest.raises(DataError, match=r"in class_labels.txt, found none of run01/test/item02"):
        open_source("omniglot-runs", root=tmp_path)
    write(((1, 2), (2, 1), (1, 1)))
    with pytest.raises(DataError, match=r"line 3: 'run01/test/item01.png' occurs twice; keep one"):
        open_source("omniglot-runs", root=tmp_path)
    write(((1, 2), (2, 7)))
    with pytest.raises(
        DataError, match=r"run01/class_labels.txt line 2: expected a test and a known"
    ):
        open_source("omniglot-runs", root=tmp_path)


def test_tiny_imagenet(tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    for wnid in ("n01443537", "n01629819"):
        write_png(folder / "train" / wnid / "images" / f"{wnid}_0.JPEG")
    for split, count in (("val", 2), ("test", 1)):
        for i in range(count):
            write_png(folder / split / "images" / f"{split}_{i}.JPEG")
    (folder / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn01629819\t0\t32\t44\t62\nval_1.JPEG\tn01443537\t52\t55\t57\t59\n"
    )
    source = open_source("tiny-imagenet", root=tmp_path)
    assert source.ids[::2] == ("train/n01443537/images/n01443537_0.JPEG", "val/images/val_0.JPEG")
    assert source.splits == ("train", "train", "val", "val")
    assert source.labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_data_set_says_what_was_expected_where_and_how_to_get_it(tmp_path, name):
    root = tmp_path / "nowhere"
    with pytest.raises(DataError) as caught:
        open_source(name, root=root)
    message = str(caught.value)
    assert message.startswith(f"{name}: expected {DATASETS[name].files} in {root}, found no {root}")
    assert message.endswith(f'; vr.open_source("{name}", root=FOLDER) names another place')
    assert "\n" not in message
    assert "{" not in message


def test_an_incomplete_set_names_the_missing_file(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"found no .*data_batch_3; torchvision"):
        open_source("cifar10", root=tmp_path)


def test_the_root_is_named_or_in_the_environment_or_data(tmp_path, small_val, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="in data, found no data/cifar-10-batches-py"):
        open_source("cifar10")
    write_cifar10(tmp_path / "data")
    default = open_source("cifar10")
    write_cifar10(tmp_path / "a")
    monkeypatch.setenv("VDVAE_REPR_DATA_ROOT", str(tmp_path / "a"))
    in_environment = open_source("cifar10")
    named = open_source("cifar10", root="data")
    assert named.fingerprint() == default.fingerprint() != in_environment.fingerprint()


def test_a_known_name_is_the_data_set_and_a_path_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "lfw" / "Al_Ek" / "1.png")
    write_png(tmp_path / "data" / "lfw" / "Bo_Di" / "1.png")
    assert open_source("lfw").label_names == ("Bo_Di",)
    assert open_source("./lfw").label_names == ("Al_Ek",)
    assert open_source(tmp_path / "lfw").label_names == ("Al_Ek",)


def test_downloads_only_what_is_missing(tmp_path, small_val, monkeypatch):
    calls = []

    def download(root):
        calls.append(root)
        if len(calls) == 1:
            raise OSError("no route to host")
        write_cifar10(root)

    changed = {f: getattr(DATASETS["cifar10"], f) for f in ("open", "files", "remedy")}
    monkeypatch.setitem(DATASETS, "cifar10", datasets.Dataset(**changed, download=download))
    with pytest.raises(DataError, match=r"cannot be downloaded .*no route to host"):
        open_source("cifar10", root=tmp_path, download=True)
    for _ in range(2):
        assert len(open_source("cifar10", root=tmp_path, download=True)) == 24
    assert calls == [tmp_path, tmp_path]
    with pytest.raises(DataError, match="registered users"):
        open_source("imagenet32", root=tmp_path, download=True)


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "host", "count"),
    [
        ("cifar10", "www.cs.toronto.edu", 60_000),
        ("cifar100", "www.cs.toronto.edu", 60_000),
        ("lfw", "ndownloader.figshare.com", 13_233),
        ("omniglot", "raw.githubusercontent.com", 32_460),
    ],
)
def test_downloads(tmp_path, name, host, count):
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError:
        pytest.skip(f"{host} cannot be reached")
    source = open_source(name, root=tmp_path, download=True)
    assert len(source) == count
    assert len(list(source.read(0, 1))) == 1
