"""What a person meets first: names, reprs, help, and answers that come at once."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vdvae_repr as vr
from vdvae_repr import cli, results
from vdvae_repr.brain import nsd
from vdvae_repr.tasks import Task

HEAVY = ("torch", "sklearn", "scipy", "pandas", "matplotlib")
MAIN = """
import sys
from vdvae_repr.cli import main
sys.argv = ["vdvae-repr", *sys.argv[1:]]
try:
    main()
except SystemExit as stopped:
    print(stopped.code, [name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""


def run(*arguments, cwd):
    command = [sys.executable, "-c", MAIN.format(heavy=HEAVY), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=True)


@pytest.fixture
def path(tiny, images, tmp_path):
    path = tmp_path / "s.h5"
    vr.extract(tiny, images, path, layers="<=4x4").close()
    return path


def test_dir_lists_the_public_names():
    assert set(vr.__all__) <= set(dir(vr))
    assert not [name for name in dir(vr) if name.startswith("_") and name != "__version__"]


def test_stores_posteriors_and_reports_say_what_they_are(tiny, images, path):
    with vr.open(path) as store:
        assert "12 images, 2 layers (1x1.0 .. 4x4.0), mean" in repr(store)
        shown = store._repr_html_()
    assert "<table>" in shown
    assert "1x1.0 to 4x4.0" in shown
    read = tiny.posterior(images[:3], layers="<=4x4")
    assert repr(read) == "<Posterior: 3 images, 2 layers (1x1.0 .. 4x4.0)>"
    nats = float(read["4x4.0"].kl.sum() / 3)
    assert f"{nats:.1f} nats an image" in read._repr_html_()
    assert "tensor" not in repr(read["4x4.0"])
    row = results.Result(
        task="t", protocol="p", head="h", model="m", source="<s>", layer="1x1.0", dims=1, n_train=1,
        n_test=1, metric="accuracy", value=0.5,
    )  # fmt: skip
    assert "<Report t on <s>: 1 rows" in repr(vr.Report(rows=[row]))
    assert "<s>" not in vr.Report(rows=[row])._repr_html_()  # text from files is text there too


def test_a_feature_that_is_not_stored_says_how_to_store_it(path):
    with vr.open(path) as store, pytest.raises(vr.LayerError, match='with features="delta"'):
        store.matrix("4x4.0", "delta")
    with vr.open(path) as store, pytest.raises(vr.LayerError) as caught:
        store.matrix("4x4.0", "deltas")
    assert "extract" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["-h"], 0, "Latents"),
        (["probe", "-h"], 0, "--ways"),
        (["store", "import", "-h"], 0, "Predicted latents"),
        (["probe", "--way", "5"], 2, "--way is no option of probe or of face_id"),
        (["--version"], 0, vr.__version__),
        (["probe", "--task", "face_ids"], 2, "did you mean 'face_id'"),
        (["probe", "--control", "pixel"], 2, "found 'pixel'; did you mean 'pixels'?"),
        (["probe", "--selection", "some"], 2, "--selection: expected single"),
        (["probe", "--format", "jpg"], 2, "expected png, pdf, svg, found 'jpg'"),
        (["probe", "--latents", "none.h5"], 2, "none.h5: no such store"),
        (["compare", "none.h5", "none.h5"], 2, "none.h5: no such store"),
        (["extract", "--data", "none/such"], 2, "none/such: no such folder or file"),
        (["extract", "--data", "none.h5:images"], 2, "none.h5:images: no such folder or file"),
        (["extract", "--data", "none.hdf"], 2, "none.hdf: no such folder or file"),
        (["extract", "--data", "toy-faces.zip"], 2, "toy-faces.zip: no such folder or file"),
        (["layers"], 0, "64x64.0"),
    ],
)
def test_what_needs_nothing_heavy_is_answered_without_it(arguments, code, says, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == f"{code} []"
    assert says in (done.stdout if code == 0 else done.stderr)
    assert not list(tmp_path.iterdir())


def test_a_store_is_described_without_torch(path, tmp_path):
    done = run("store", "info", path, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert "1x1.0, 4x4.0" in done.stdout


def test_layers_of_a_file_are_those_of_the_model(tiny):
    from vdvae_repr.encoders.layers import layers_of

    assert layers_of("faces64") == vr.load("faces64").layers
    with pytest.raises(vr.CheckpointError, match="no such file or packaged model"):
        layers_of("x" * 300)  # longer than a file's name may be


def test_tasks_on_the_command_line_are_those_of_the_library():
    package = {
        n: kind for n, kind in Task.known.items() if kind.__module__.startswith("vdvae_repr.")
    }
    listed = {name: of for name, of in cli._tasks().items() if name in package}  # tests make others
    assert listed == {
        name: (
            kind.__doc__.splitlines()[0],
            {field.name: field.metadata.get("help", "") for field in fields(kind)},
        )
        for name, kind in package.items()
    }


def commands(group, *before):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *before, name)
        else:
            yield (*before, name), command


def test_every_command_has_an_example_and_stands_in_a_group():
    import typer

    group = typer.main.get_command(cli.app)
    known = list(commands(group))
    assert len(known) >= 13
    for names, command in known:
        assert f"Example: vdvae-repr {' '.join(names)}" in command.help, names
    grouped = {name for names in cli.Grouped.groups.values() for name in names}
    assert set(group.commands) == grouped


def test_many_options_stand_in_sections_each_of_them_once():
    import typer

    long = {
        names: command
        for names, command in commands(typer.main.get_command(cli.app))
        if len(command.params) > 12
    }
    assert ("extract",) in long
    for names, command in long.items():
        shown = CliRunner().invoke(cli.app, [*names, "--help"]).output.splitlines()
        sections = [line for line in shown if line.endswith(":") and not line.startswith(" ")]
        assert "Images:" in sections or "Latents:" in sections, names
        listed = shown[shown.index(sections[0]) :]  # below the example, which may break before one
        options = [line.split()[0] for line in listed if line.startswith("  --")]
        expected = [max(p.opts, key=len) for p in command.params if p.param_type_name == "option"]
        assert sorted(options) == sorted(expected), names


def test_a_sheet_shows_what_the_model_sees(tiny, images, tmp_path, monkeypatch):
    """Of images 20 wide, of which the central 16 are read, enlarged 8 times."""
    monkeypatch.setattr(vr, "load", lambda *arguments, **options: tiny)
    monkeypatch.chdir(tmp_path)
    wide = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    np.save("wide.npy", wide)
    options = ["--layer", "1x1", "--data", "wide.npy", "--crop", "16", "--sheet", "seen.png"]
    done = CliRunner().invoke(cli.app, ["extract", *options])
    assert done.exit_code == 0, done.output
    assert "seen.png: 12 images as the model sees them" in done.output
    sheet = np.asarray(Image.open("seen.png"))
    left = sheet.shape[1] - 8 * 134
    tile = sheet[6:134, left : left + 128]
    assert np.array_equal(tile, images[0].repeat(8, axis=0).repeat(8, axis=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latents.h5",
        "seen.png",
        "wide.npy",
    ]


def test_a_sheet_of_decoded_images_shows_each_original_beside_it(
    tiny, images, tmp_path, monkeypatch
):
    """Left of each pair is the image that was read; a predicted store has none but by `--like`."""
    monkeypatch.setattr(cli, "_load_vdvae", lambda *_: tiny)
    monkeypatch.chdir(tmp_path)
    store = vr.extract(tiny, images, "s.h5")
    vr.import_latents(store.matrix()[0], store, "p.h5")
    for latents, more in (("s.h5", []), ("p.h5", ["--like", "s.h5"])):
        options = ["decode", latents, "--out", "d", "--sheet", "sheet.png", *more]
        done = CliRunner().invoke(cli.app, options)
        assert done.exit_code == 0, done.output
        sheet = np.asarray(Image.open("sheet.png"))
        rows = -(-len(images) // 4)
        top = 15 + 2 * 6  # titles
        height = (len(sheet) - top) // rows
        for number, (image_id, image) in enumerate(zip(store.ids, images, strict=True)):
            row, pair = divmod(number, 4)
            y, x = top + row * height, 6 + pair * 2 * 134
            rebuilt = np.asarray(Image.open(f"d/{image_id}.png"))
            for pixels, left in ((image, x), (rebuilt, x + 134)):
                tile = sheet[y : y + 128, left : left + 128]
                assert np.array_equal(tile, pixels.repeat(8, axis=0).repeat(8, axis=1))
            assert (sheet[y + 128 : y + height, x : x + 262] < 128).any()  # its id
    options = ["decode", "p.h5", "--out", "d", "--sheet", "sheet.png"]
    done = CliRunner().invoke(cli.app, options)
    assert (
        "p.h5: holds no images, so the sheet shows no originals; --like STORE does" in done.output
    )
    vr.extract(tiny, images, "bare.h5", images=False)
    done = CliRunner().invoke(cli.app, [*options, "--like", "bare.h5"])
    assert done.exit_code == 0, done.output
    assert "bare.h5: holds no images, so the sheet shows no originals; give --like a" in done.output
    assert "--like STORE does" not in done.output
    vr.extract(tiny, images[::-1].copy(), "o.h5")
    done = CliRunner().invoke(cli.app, [*options, "--like", "o.h5"])
    assert "o.h5: holds another image" in str(done.exception)


def test_what_is_printed_in_python_says_what_it_is_in_one_line(tiny, images, tmp_path):
    """However many images there are; of a comparison, which model the rows are of."""
    source = vr.open_source(np.repeat(images, 100, axis=0))
    assert f"{100 * len(images)} images" in repr(source)
    assert len(repr(source)) < 100
    first = vr.extract(tiny, images, tmp_path / "a.h5", layers="<=4x4")
    other = vr.VDVAE(tiny.config, name="other").eval()
    second = vr.extract(other, images, tmp_path / "b.h5", layers="1x1")
    shown = repr(vr.compare(first, second, notice=lambda line: None))
    assert shown == (
        f"<Similarity rows: {len(first.layers)} layers of tiny "
        f"({first.layers[0].name} .. {first.layers[-1].name}); columns: 1 layer of other (1x1.0 .. 1x1.0)>"
    )
    with pytest.raises(vr.LayerError, match=r"no layer matches '4X4'; did you mean '4x4'\?"):
        first.matrix("4X4")


def test_a_sheet_of_many_images_is_spread_over_them(tiny, tmp_path, monkeypatch):
    """Image k of 130 is grey of k; every second or third is shown."""
    monkeypatch.setattr(vr, "load", lambda *arguments, **options: tiny)
    monkeypatch.chdir(tmp_path)
    np.save("g.npy", np.arange(130, dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2))
    options = ["extract", "--data", "g.npy", "--layer", "1x1", "--sheet", "g.png"]
    done = CliRunner().invoke(cli.app, options)
    assert "g.png: 64 images of 130, spread over them, as the model sees them" in done.output
    sheet = np.asarray(Image.open("g.png"))[..., 0]
    shown = {int(value) for value in np.unique(sheet) if (sheet == value).sum() >= 128**2}
    assert {0, 2, 65, 127} <= shown
    assert len(shown - {255}) == 64


def test_a_store_is_described_within_80_columns_in_words(tiny, images, tmp_path):
    path = tmp_path / "s.h5"
    wide = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    vr.extract(tiny, wide, path, crop=18, resize="bilinear").close()
    done = CliRunner().invoke(cli.app, ["store", "info", str(path)])
    assert max(map(len, done.stdout.splitlines())) <= 80
    text = " ".join(done.stdout.split())
    said = "the central square of 18 pixels; resized: bilinear, antialiased; to 16 x 16 pixels"
    assert f"of each image {said}" in text
    assert "{" not in text
    assert "16x16.0 features mean" in text


def test_models_say_what_they_are_in_one_line(tiny):
    count = sum(parameter.numel() for parameter in tiny.parameters())
    assert repr(tiny) == (
        f"<VDVAE tiny: 16x16, {len(tiny.layers)} layers (1x1.0 .. {tiny.layers[-1].name}), "
        f"{count:,} parameters>"
    )


def test_a_model_may_be_named_wherever_one_is_taken(tmp_path):
    grey = np.full((2, 64, 64, 3), 128, np.uint8)
    store = vr.extract("faces64", grey, tmp_path / "s.h5", layers="1x1")
    assert store.info.model == "faces64"
    ((_, rebuilt),) = store.decode("faces64")
    assert rebuilt.shape == grey.shape
    assert np.isfinite(vr.evaluate("faces64", grey).nats)
    with pytest.raises(vr.CheckpointError, match="no such file or packaged model"):
        vr.extract("faces65", grey, tmp_path / "t.h5")


def test_a_keyword_that_is_nearly_one_is_named(tiny, images, path):
    with vr.open(path) as store:
        for call in (
            lambda: vr.probe(store, "face_id", layer="1x1"),
            lambda: vr.extract(tiny, images, path, layer="1x1"),
            lambda: store.matrix(layer="1x1"),
            lambda: tiny.posterior(images, layer="1x1"),
        ):
            with pytest.raises(TypeError, match="did you mean 'layers'"):
                call()
        with pytest.raises(TypeError, match="unexpected keyword argument 'xyz'"):
            store.matrix(xyz=1)
        with pytest.raises(vr.LayerError, match="'<4x4'; did you mean '<=4x4'"):
            store.matrix("<4x4")


def test_mistakes_are_said_before_what_may_surprise(tiny, tmp_path, caplog):
    """A file that is left out is said, but not where a layer or the output is wrong."""
    (tmp_path / "d").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "d" / "a.png")
    (tmp_path / "d" / "b.heic").write_bytes(b"")
    (tmp_path / "o.h5").write_bytes(b"mine")
    said = []
    for options in ({"layers": "9x9"}, {"pool": "av"}, {"features": "men"}):
        with pytest.raises(vr.LayerError):
            vr.extract(tiny, tmp_path / "d", tmp_path / "s.h5", report=said.append, **options)
    with pytest.raises(vr.StoreError):
        vr.extract(tiny, tmp_path / "d", tmp_path / "o.h5", report=said.append, overwrite=True)
    assert said == []
    vr.extract(tiny, tmp_path / "d", tmp_path / "s.h5", report=said.append)
    assert "1 file left out: .heic (1)" in said[0]
    for name in ("d", "s.h5"):
        options = ["extract", "--data", str(tmp_path / name), "--layer", "9x9", "--out", "x.h5"]
        done = CliRunner().invoke(cli.app, options)
        assert "left out" not in done.output


@pytest.mark.parametrize("group", ["brain", "store"])
def test_short_helps_are_whole(group):
    done = CliRunner().invoke(cli.app, [group, "-h"])
    assert "..." not in done.stdout.partition("Commands:")[2]
    assert "Commands:" in done.stdout


def test_nothing_to_save_is_one_line(tmp_path):
    with pytest.raises(vr.TaskError, match="expected results to write, found none"):
        vr.Report().save(tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_scores_beyond_float32_are_said_with_their_layer(tmp_path):
    """Noise, of which deviations at a layer of 4x4 become e**150 and more."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(vr.CheckpointError, match=r"2 of 2 .*4x4\.\d on, of more nats than float32"):
        vr.evaluate("faces64", noise)


@pytest.mark.parametrize("given", ["no", "", 0, 1, None])
def test_what_is_neither_true_nor_false_is_refused_in_one_line(tiny, images, tmp_path, given):
    """As any text counts as true in Python, `overwrite="no"` would replace a store."""
    out = tmp_path / "s.h5"
    store = vr.extract(tiny, images[:5], out)
    before = out.read_bytes()
    matrix, _, _ = store.matrix()
    for option, call in {
        "overwrite": lambda **o: vr.extract(tiny, images, out, **o),
        "overwrite ": lambda **o: vr.import_latents(matrix, store, tmp_path / "p.h5", **o),
        "align": lambda **o: vr.extract(tiny, images, out, **o),
        "mirror": lambda **o: vr.extract(tiny, images, out, **o),
        "download": lambda **o: vr.open_source("digits", **o),
        "download ": lambda **o: vr.load("faces64", **o),
        "compile": lambda **o: vr.load("faces64", **o),
        "cuda_graphs": lambda **o: vr.load("faces64", **o),
        "resume": lambda **o: vr.train("natural64", images, tmp_path / "r", **o),
        "resume ": lambda **o: vr.distill(tiny, images, tmp_path / "r", **o),
        "progress": lambda **o: vr.probe(store, "classification", **o),
    }.items():
        name = option.strip()
        message = rf"^{name}: expected True or False, found {given!r}$"
        with pytest.raises(vr.ConfigError, match=message):
            call(**{name: given})
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_truth_values_of_numpy_are_those_of_python(tiny, images, tmp_path):
    out = tmp_path / "s.h5"
    vr.extract(tiny, images[:5], out).close()
    store = vr.extract(tiny, images, out, overwrite=np.True_, mirror=np.True_, images=np.False_)
    assert len(store) == 12
    assert store.info.mirror is True
    assert not store.has_images
    assert vr.load("faces64", compile=np.False_).name == "faces64"


@pytest.fixture(scope="module")
def of_a_path(tiny, tmp_path_factory):
    """What takes a path, by name, of one small store and the report of a probe of it."""
    folder = tmp_path_factory.mktemp("entries")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "l.npz", images=images, labels=np.arange(12) % 3)
    store = vr.extract(tiny, folder / "l.npz", folder / "l.h5", layers="<=4x4")
    report = vr.probe(store, "classification", layers="4x4.0", controls=(), cache=None)
    matrix, _, _ = store.matrix()
    return {
        "open": vr.open,
        "extract": lambda path: vr.extract(tiny, images, path),
        "export": store.export,
        "import_latents": lambda path: vr.import_latents(matrix, store, path),
        "import_latents, matrix": lambda path: vr.import_latents(path, store, folder / "p.h5"),
        "export_model": lambda path: vr.export_model(tiny, path),
        "Report.load": vr.Report.load,
        "save": report.save,
        "page": report.page,
        "load": vr.load,
        "open_source": vr.open_source,
        "Decoder.load": vr.brain.Decoder.load,
        "read_nsd": lambda path: vr.brain.read_nsd(path, folder / "design.mat"),
    }, {
        "rows": lambda path: vr.open_source(images, rows=path),
        "root": lambda path: vr.open_source("cifar10", root=path),
        "pairs": lambda path: vr.FaceVerification(pairs=path),
        "class_split": lambda path: vr.FewShot(class_split=path),
        "cache": lambda path: vr.probe(store, "classification", cache=path),
        "run": lambda path: vr.evaluate(tiny, images, run=path),
        "distill": lambda path: vr.distill(tiny, images, path),
        "train": lambda path: vr.train("natural64", images, path),
        "rois": lambda path: vr.probe(store, vr.Encoding(responses=rng.normal(size=(12, 3)), rois=path)),
        "measured": lambda path: vr.brain.read_responses(path, store),
    }  # fmt: skip


@pytest.mark.parametrize("given", ["", "  ", None, 0, b"x"])
def test_what_is_no_path_is_refused_in_one_line_and_nothing_is_written(
    of_a_path, given, tmp_path, monkeypatch
):
    """An empty text is Python's working folder, where a variable may just be unset."""
    monkeypatch.chdir(tmp_path)
    needed, optional = of_a_path  # of the latter None is the default, and rows may be numbers
    for name, call in {**needed, **({} if given is None else optional)}.items():
        with pytest.raises(vr.VDVAEReprError) as refusal:
            call(given)
        assert "\n" not in str(refusal.value), name
        if isinstance(given, str):
            assert "is a variable not set?" in str(refusal.value), (name, refusal.value)
    assert not list(tmp_path.iterdir())


STAND_INS = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "a web page": b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><body>404</body></html>\n",
}


@pytest.mark.parametrize("what", STAND_INS)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("t.csv", lambda file, store: vr.open_source(file)),
        ("rows.txt", lambda file, store: vr.open_source("toy-faces:2x2", rows=file)),
        ("rows.npy", lambda file, store: vr.open_source("toy-faces:2x2", rows=file)),
        ("pairs.txt", lambda file, store: _probe(store, vr.FaceVerification(pairs=file))),
        ("pairs.csv", lambda file, store: _probe(store, vr.FaceVerification(pairs=file))),
        ("split.csv", lambda file, store: _probe(store, vr.FewShot(class_split=file))),
        ("r.mat", lambda file, store: vr.brain.read_responses(f"{file}:bold", store)),
        ("r.npz", lambda file, store: vr.brain.read_responses(file, store)),
        ("rois.csv", lambda file, store: _regions(file, store)),
        ("r.h5", lambda file, store: _probe(store, vr.RSA(rdm=file))),
        ("expdesign.mat", lambda file, store: nsd._read_design(Path(file), 1)),
        ("betas_session01.hdf5", lambda file, store: nsd._opened(Path(file))),
        ("mask.nii.gz", lambda file, store: nsd.read_nifti(file)),
        ("d.npz", lambda file, store: vr.brain.Decoder.load(file)),
        ("s.h5", lambda file, store: vr.open(file)),
        ("m.npy", lambda file, store: vr.import_latents(file, store, f"{file}.h5")),
    ],
)
def test_what_was_fetched_in_place_of_a_file_is_named_wherever_it_is_opened(
    path, tmp_path, what, name, read
):
    file = tmp_path / "fetched" / name
    file.parent.mkdir()
    file.write_bytes(STAND_INS[what])
    with vr.open(path) as store, pytest.raises(vr.VDVAEReprError, match=what) as refusal:
        read(str(file), store)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def _probe(store, task):
    return vr.probe(store, task, layers="1x1", controls=(), cache=None)


def _regions(file, store):
    return vr.brain.read_responses(
        np.random.default_rng(0).normal(size=(1, len(store.ids), 3)), store, file
    )
