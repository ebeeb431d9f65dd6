"""What a model was trained on is told image by image, in whatever form the images are given."""

import hashlib
import shutil

import numpy as np
import pytest
from launch import COMMAND, torchrun
from PIL import Image
from safetensors.torch import save_file

import vdvae_repr as vr
from vdvae_repr.data.open import open_source

TOML = """
[model]
image_size = 8
width = 4
zdim = 2
bottom_up = "8x1,8d2,4x1,4d4,1x1"
top_down = "1x1,4m1,8m4"
num_mixtures = 1
shift = -127.5
scale = 0.015625

[train]
steps = 4
batch_size = 4
lr = 1e-3
warmup_steps = 1
flip = true
"""
STUDENT = """
[model]
kind = "student"
width = 4
bottom_up = "8x1,8d2,4x1,4d4,1x1"
layers = "4x4"

[train]
steps = 2
batch_size = 4
lr = 1e-3
warmup_steps = 1
"""
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
TRAINED = 16  # the first ones


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder of 16 images to train on, of two classes, and 4 held back; a run of it, each seen once."""
    root = tmp_path_factory.mktemp("given")
    for number, pixels in enumerate(PIXELS):
        path = root / "p" / ("train" if number < TRAINED else "val") / "ab"[number % 2]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / f"{number:02}.png")
    (root / "t.toml").write_text(TOML)
    (root / "student.toml").write_text(STUDENT)
    vr.train(root / "t.toml", root / "p", root / "run")
    return root


@pytest.fixture
def said(caplog):
    def lines():
        return [line for line in caplog.messages if "trained on" in line]

    return lines


def by_hand(pixels):
    """What a run folder keeps of some images, (N, 8, 8, 3)."""
    digests = [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in pixels]
    return sorted(int.from_bytes(digest, "little") for digest in digests)


def test_a_run_keeps_the_hashes_of_the_images_it_was_trained_on(given):
    kept = np.load(given / "run" / "trained_on.npy")
    assert kept.tolist() == by_hand(PIXELS[:TRAINED])
    assert np.array_equal(vr.load(given / "run").trained_on, kept)


def test_a_checkpoint_of_a_run_is_known_by_its_run_folder(given, tmp_path, caplog, said):
    """Of a checkpoint after which other images were seen, it is not known which it was trained on."""
    run = tmp_path / "run"
    vr.train(given / "t.toml", given / "p", run, checkpoint_every=2)
    for step, line in (
        (4, ": 16 of 20 images are those the model was trained on"),
        (2, "which images it was trained on is not recorded"),
    ):
        caplog.clear()
        file = run / "checkpoints" / f"step-{step:08}" / "average.safetensors"
        vr.evaluate(vr.load(file, preset=run / "config.toml"), given / "p")
        assert [line in told for told in said()] == [True], step


def test_a_checkpoint_knows_the_crop_of_its_run(given, tmp_path):
    wide = np.pad(
        PIXELS, ((0, 0), (2, 2), (2, 2), (0, 0))
    )  # whose central 8x8 squares are the images
    vr.train(given / "t.toml", wide, tmp_path / "run", crop=8)
    file = tmp_path / "run" / "checkpoints" / "step-00000004" / "average.safetensors"
    model = vr.load(file, preset=tmp_path / "run" / "config.toml")
    assert model.trained_crop == 8
    assert set(model.trained_on.tolist()) < set(by_hand(PIXELS))
    assert len(model.trained_on) == 16  # 4 steps of 4 images


def forms(root, tmp_path):
    """Yield the name of each form, the images in it, and how many of them are trained on, of how many."""
    yield "all", root / "p", (16, 20)
    yield "rows", open_source(root / "p", rows="10:20"), (6, 10)
    yield "class", root / "p" / "train" / "a", (8, 8)
    table = tmp_path / "table.csv"
    files = sorted(map(str, (root / "p").rglob("*.png")))
    table.write_text("\n".join(["file", *files]))
    yield "table", table, (16, 20)
    np.save(tmp_path / "most.npy", PIXELS[3:19])
    yield "array", tmp_path / "most.npy", (13, 16)
    for number in (2, 18):
        Image.fromarray(PIXELS[number]).save(tmp_path / f"{number}.bmp")
    yield "other files", tmp_path, (1, 2)
    yield "new", PIXELS[TRAINED:], (0, 4)


def test_scored_images_that_were_trained_on_are_counted_in_any_form(given, tmp_path, caplog, said):
    model = vr.load(given / "run")
    for form, data, (count, asked) in forms(given, tmp_path):
        caplog.clear()
        vr.evaluate(model, data)
        if not count:
            assert said() == [], form
            continue
        (line,) = said()
        assert f": {count} of {asked} images are those the model was trained on" in line, form
        assert ('split="held-back" scores those held back' in line) == (form == "all")


def test_extracting_what_a_run_was_trained_on_is_said(given, tmp_path, said):
    vr.extract(given / "run", given / "p", tmp_path / "a.h5", layers="1x1")
    vr.extract(given / "run", PIXELS[TRAINED:], tmp_path / "b.h5", layers="1x1")
    (line,) = said()
    assert "p: is what t was trained on, but for what it held back" in line


def test_images_in_place_of_those_trained_on_are_told(tmp_path, given, said):
    """Other images in files of the same names and sizes, as BMPs of one size are."""
    for folder, start in (("before", 0), ("after", 40)):
        (tmp_path / folder).mkdir()
        for number in range(20):
            image = np.random.default_rng(start + number).integers(
                0, 256, (8, 8, 3), dtype=np.uint8
            )
            Image.fromarray(image).save(tmp_path / folder / f"{number}.bmp")
    (tmp_path / "before").rename(tmp_path / "p")
    vr.train(given / "t.toml", tmp_path / "p", tmp_path / "run")
    held_back = {"data": None, "split": "held-back", "run": tmp_path / "run"}
    vr.evaluate(vr.load(tmp_path / "run"), **held_back)
    shutil.rmtree(tmp_path / "p")
    (tmp_path / "after").rename(tmp_path / "p")
    with pytest.raises(vr.TrainingError, match="20 of 20 that were looked at have been replaced"):
        vr.evaluate(vr.load(tmp_path / "run"), **held_back)
    vr.extract(tmp_path / "run", tmp_path / "p", tmp_path / "a.h5", layers="1x1")
    assert said() == []


def test_extracting_some_images_that_were_trained_on_is_said(given, tmp_path, said, caplog):
    for number, (form, data, (count, asked)) in enumerate(forms(given, tmp_path)):
        caplog.clear()
        vr.extract(given / "run", data, tmp_path / f"{number}.h5", layers="1x1", crop=6)
        lines = [line for line in said() if " trained on" in line]
        assert len(lines) == bool(count), form
        if count and form != "all":
            assert f": {count} of {asked} images are those that t was trained on" in lines[0], form


def test_images_are_counted_whatever_crop_they_are_scored_with(given, caplog, said):
    vr.evaluate(vr.load(given / "run"), given / "p", crop=6)
    assert ": 16 of 20 images are those" in said()[0]


def test_a_run_that_left_damaged_images_out_knows_the_others(given, tmp_path, said):
    data = shutil.copytree(given / "p", tmp_path / "p")
    damaged = next((data / "train").rglob("*.png"))
    whole = damaged.read_bytes()
    damaged.write_bytes(b"bad")
    out = vr.train(given / "t.toml", data, tmp_path / "run", on_error="skip")
    vr.evaluate(vr.load(out), data, on_error="skip")
    assert ": 15 of 19 images are those the model was trained on" in said()[0]
    damaged.write_bytes(whole)
    left_out = damaged.relative_to(data / "train")
    for again in (
        lambda: vr.train(given / "t.toml", data, out, resume=True, steps=6),
        lambda: vr.evaluate(vr.load(out), data, run=out, split="held-back"),
    ):
        with pytest.raises(vr.VDVAEReprError, match=f"it left '.*{left_out.name}' out, unread"):
            again()


def test_a_resumed_run_adds_to_what_it_was_trained_on(given, tmp_path, caplog):
    out, kept = tmp_path / "run", tmp_path / "run" / "trained_on.npy"
    vr.train(given / "t.toml", given / "p", out, steps=2)
    first = np.load(kept)
    assert len(first) == 8
    vr.train(out, resume=True, steps=3)
    assert len(np.load(kept)) == 12
    assert np.isin(first, np.load(kept)).all()
    kept.unlink()
    vr.train(out, resume=True, steps=4)
    assert not kept.exists()  # as it would hold a part
    assert any("holds no whole trained_on.npy" in line for line in caplog.messages)


def test_processes_put_together_what_they_were_trained_on(given, tmp_path):
    out = tmp_path / "run"
    process = torchrun(COMMAND, "train", given / "t.toml", "--data", given / "p", "--out", out)
    assert process.wait() == 0, process.communicate()[1]
    assert np.load(out / "trained_on.npy").tolist() == by_hand(PIXELS[:TRAINED])


@pytest.mark.parametrize("damage", ["absent", "cut", "unsorted", "as a zip"])
def test_without_hashes_the_record_of_a_run_tells_or_it_is_said(
    damage, given, tmp_path, caplog, said
):
    out = shutil.copytree(given / "run", tmp_path / "run")
    kept = out / "trained_on.npy"
    whole = kept.read_bytes()
    kept.unlink()
    if damage == "cut":
        kept.write_bytes(whole[:-8])
    elif damage == "as a zip":
        kept.write_bytes(b"PK\3\4" + whole)
    elif damage == "unsorted":
        np.save(kept, np.load(given / "run" / "trained_on.npy")[::-1])
    model = vr.load(out)
    assert model.trained_on is None
    vr.evaluate(model, given / "p")
    assert ": 16 of 20 images are those the model was trained on" in said()[0]
    caplog.clear()
    vr.evaluate(model, PIXELS[:4])
    assert said() == ["t: was trained on p; whether images of array are among that is not recorded"]


def test_images_held_back_that_the_start_was_trained_on_are_said(given, tmp_path, caplog):
    lines = []
    others = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    cases = {"p/train": (given / "p" / "train", 2), "others": (others, 0)}
    for data, held in cases.values():
        lines.clear()
        out = tmp_path / f"run{held}"
        vr.train(
            given / "t.toml", data, out, init_from=given / "run", steps=2, progress=lines.append
        )
        told = [line for line in lines if "images held back are images that" in line]
        assert len(told) == bool(held)
        if held:
            assert (
                f": {held} of {held} images held back are images that {given / 'run'} was"
                in told[0]
            )
        lines.clear()
        vr.distill(
            given / "run", data, tmp_path / f"student{held}", config=given / "student.toml",
            progress=lines.append,
        )  # fmt: skip
        assert len(
            [line for line in lines if "images held back are images that t was" in line]
        ) == bool(held)
    # What it began from counts as its own too.
    assert set(by_hand(PIXELS[:TRAINED])) < set(np.load(tmp_path / "run0" / "trained_on.npy"))


def test_a_start_whose_images_are_not_recorded_is_said(given, tmp_path):
    weights = {k: v.clone() for k, v in vr.load(given / "run").state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    lines = []
    vr.train(
        given / "t.toml", given / "p", tmp_path / "run", init_from=tmp_path / "w.safetensors",
        progress=lines.append,
    )  # fmt: skip
    line = "w.safetensors: which images it was trained on is not recorded, so that images held back may"
    assert [text for text in lines if line in text]


def unrecorded(given, out):
    """Begin from weights alone, whose record names `p` and no image."""
    shutil.copy(given / "run" / "model.safetensors", out / "best.safetensors")
    return {"init_from": out / "best.safetensors"}


def cropped(given, out):
    """Begin from a run that saw the central squares of larger images."""
    large = np.random.default_rng(3).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    start = vr.train(given / "t.toml", large, out / "start", crop=8, steps=2)
    return {"init_from": start}


def of_another_size(given, out):
    """Begin from a PixelCNN of smaller images."""
    recipe = TOML.partition("[train]")[2]
    toml = '[model]\nkind = "pixelcnn"\nwidth = 4\nblocks = 1\nresolutions = 1\nnum_mixtures = 1\n'
    for size in (4, 8):
        (out / f"{size}.toml").write_text(f"{toml}image_size = {size}\n[train]{recipe}")
    start = vr.train(out / "4.toml", PIXELS[:10], out / "start", steps=2)
    return {"config": out / "8.toml", "init_from": start}


@pytest.mark.parametrize("start", [unrecorded, cropped, of_another_size])
def test_a_run_whose_start_is_not_recorded_keeps_no_hashes_and_says_so(
    start, given, tmp_path, caplog, said
):
    others = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    keys = {"config": given / "t.toml"} | start(given, tmp_path)
    config, name = keys.pop("config"), keys["init_from"].name
    out = tmp_path / "run"
    stale = (
        out / "trained_on.npy"
    )  # of a start before this one, which was killed before its checkpoint
    vr.train(config, others, out, steps=2)
    shutil.rmtree(out / "checkpoints")
    (out / "model.safetensors").unlink()
    assert stale.is_file()
    vr.train(config, others, out, steps=3, **keys)
    assert not stale.exists()
    vr.train(out, others, resume=True, steps=4)
    assert not stale.exists()
    model = vr.load(out)
    expected = f"{model.name}: was trained on array, and began from {name}; whether images of array are among"
    for images, split in ((PIXELS[:4], None), (others, "held-back")):
        caplog.clear()
        vr.evaluate(model, images, split=split, run=out if split else None)
        assert "".join(said()).startswith(expected), split
    caplog.clear()
    vr.evaluate(model, others)  # of its own it is known as a whole
    assert ": 9 of 10 images are those the model was trained on" in said()[0]
    lines = []
    vr.train(config, PIXELS[:10], tmp_path / "next", init_from=out, steps=5, progress=lines.append)
    assert any(f"and began from {name}; whether images held back" in line for line in lines)
    assert not (tmp_path / "next" / "trained_on.npy").exists()


def test_a_student_of_a_teacher_whose_images_are_not_recorded_keeps_no_hashes(
    given, tmp_path, said
):
    teacher = unrecorded(given, tmp_path)["init_from"]
    out = vr.distill(teacher, PIXELS, tmp_path / "student", config=given / "student.toml")
    assert "t: was trained on p; whether images held back are among that" in said()[0]
    assert not (out / "trained_on.npy").exists()


def test_of_many_images_a_random_choice_is_looked_at(given, monkeypatch, caplog, said):
    monkeypatch.setattr("vdvae_repr.training.seen.CHECKED", 16)
    every_other = np.random.default_rng(2).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    every_other[1::2] = PIXELS[:TRAINED]
    vr.evaluate(vr.load(given / "run"), every_other)
    (line,) = said()
    count = int(line.split(": ")[1].split()[0])
    assert " of 16 images looked at are those the model was trained on" in line
    assert 3 <= count <= 13  # of 16 in 32, half of which were


def test_few_images_trained_on_among_many_of_a_run_s_own_data_are_found(tmp_path, given, said):
    """Of 300 images 4 are trained on, so that 100 may hold none of them."""
    images = np.random.default_rng(5).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    splits = np.full(300, "val", "U5")
    splits[[1, 2, 4, 5]] = "train"  # every third is looked at first
    np.savez(tmp_path / "a.npz", images=images, splits=splits)
    vr.train(given / "t.toml", tmp_path / "a.npz", tmp_path / "run")
    vr.extract(tmp_path / "run", tmp_path / "a.npz", tmp_path / "a.h5", layers="1x1")
    (line,) = said()
    assert "a.npz: is what t was trained on, but for what it held back" in line
