"""A made-up brain in NSD's own files, from them to responses, layers and images."""

import gzip
import shutil
import struct

import h5py
import numpy as np
import pytest
import scipy.io

import vdvae_repr as vr
from vdvae_repr.brain import nsd
from vdvae_repr.brain.nsd import read_nifti, read_nsd, synthetic_nsd, write_nifti


@pytest.fixture(scope="module")
def seen(tiny, people, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nsd")
    store = vr.extract(tiny, people(20, num_people=8), folder / "own.h5")
    sees = {"early": "1x1.0", "late": "8x8.0", "none": None}
    return folder, store, synthetic_nsd(folder, store, sees, voxels=30, noise=0.5, sessions=3)


def test_responses_are_gathered_as_they_were_made(seen):
    _, store, paths = seen
    found = read_nsd(
        paths["betas"], paths["design"], subject=1, mask=paths["mask"], rois=[paths["rois"]]
    )
    assert found.values.shape == (3, 160, 90)
    assert not np.isnan(found.values).any()
    assert found.ids == tuple(map(str, range(160)))
    assert found.splits.count("test") == 32
    assert {name: voxels.tolist() for name, voxels in found.rois.items()} != {}
    early = found.values[:, :, found.rois["regions-1"]].mean(axis=0)
    X = store.matrix("1x1.0")[0]
    # What sees a layer of 4 dimensions is told by it, through noise of variance 1/12 in the mean.
    left = early - X @ np.linalg.lstsq(X, early, rcond=None)[0]
    assert left.var() / early.var() < 0.15
    # Each session's trials, by an own reading of NSD's files.
    design = scipy.io.loadmat(paths["design"])
    images = design["subjectim"][0, design["masterordering"][0] - 1] - 1
    with h5py.File(paths["betas"] / "betas_session01.hdf5") as file:
        first = file["betas"][()].reshape(len(file["betas"]), -1)
        inside = read_nifti(paths["mask"]).T.ravel() > 0
        z = first[:, inside] / 300
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    np.testing.assert_allclose(found.values[0, images[0]], z[0], rtol=1e-4, atol=1e-5)


def test_from_nsds_files_to_layers_and_images(seen, tiny, tmp_path):
    _, _, paths = seen
    found = read_nsd(
        paths["betas"], paths["design"], subject=1, mask=paths["mask"], rois=[paths["rois"]]
    )
    bold, rois = found.save(tmp_path / "bold.npz")
    store = vr.extract(tiny, f"{paths['stimuli']}:imgBrick", tmp_path / "s.h5")
    task = vr.Encoding(responses=f"{bold}:responses", rois=str(rois))
    report = vr.probe(store, task, selections="single", controls="pixels", cache=None)
    rows = report.to_frame().query("metric == 'pearson' and chosen and role == 'model'")
    best = rows.set_index("head")
    assert best.loc["ridge:regions-1", "layer"] == "1x1.0"
    assert best.loc["ridge:regions-2", "layer"] == "8x8.0"
    assert abs(best.loc["ridge:regions-3", "value"]) < 0.15
    ceiling = (1 / (1 + 0.25 / 3)) ** 0.5
    assert best.loc["ridge:regions-1", "ceiling_low"] == pytest.approx(ceiling, abs=0.03)
    told = report.tables["voxels"].query("q_value < 0.05")
    assert told["rois"].value_counts().get("regions-3", 0) < 5
    decoder = vr.brain.fit(f"{bold}:responses", store)
    decoded = decoder.predict(f"{bold}:responses", store, tmp_path / "p.h5")
    assert len(decoded.store) == 32
    assert {"1x1.0", "8x8.0"} <= set(decoded.told)
    images = np.concatenate([images for _, images in decoded.store.decode(tiny, decoded.told)])
    place = {image_id: row for row, image_id in enumerate(store.ids)}
    rows = [place[i] for i in decoded.store.ids]
    scores = vr.brain.score_images(images, store.images()[rows], tiny, "1x1.0")
    assert scores.pixcorr > scores.shuffled_pixcorr  # little, as the model is random
    latents = store.matrix("1x1.0")[0][rows], decoded.store.matrix("1x1.0")[0]
    assert vr.brain.two_way_identification(*latents) > 0.8


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("01", "session01.hdf5.*session02"), ("02", "session02.hdf5.*session03")],
)
def test_sessions_are_counted_from_the_first_on(seen, tmp_path, missing, expected):
    """Without one of them every later trial would be given the response to another image."""
    _, _, paths = seen
    folder = shutil.copytree(paths["betas"], tmp_path / "betas")
    (folder / "betas_session03.hdf5").unlink()  # later ones may be missing
    assert read_nsd(folder, paths["design"], subject=1, mask=paths["mask"]).ids
    shutil.copy(paths["betas"] / "betas_session03.hdf5", folder)
    (folder / f"betas_session{missing}.hdf5").unlink()
    with pytest.raises(vr.DataError, match=expected):
        read_nsd(folder, paths["design"], subject=1, mask=paths["mask"])


def test_what_would_not_fit_into_memory_is_refused(seen, monkeypatch):
    _, _, paths = seen
    monkeypatch.setattr(nsd, "MOST_BYTES", 100_000)
    with pytest.raises(vr.DataError, match=r"160 images, seen by 90 voxels; give a mask of fewer"):
        read_nsd(paths["betas"], paths["design"], subject=1, mask=paths["mask"])


@pytest.mark.parametrize("real", ["nsd_expdesign.mat", "betas_fithrf_GLMdenoise_RR/x.hdf5"])
def test_no_file_of_nsds_is_written_over(seen, tmp_path, real):
    path = tmp_path / real
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"measured")
    with pytest.raises(vr.DataError, match="exists already; choose another folder"):
        synthetic_nsd(tmp_path, seen[1], {"early": "1x1.0"}, voxels=2)
    assert path.read_bytes() == b"measured"
    assert [p for p in tmp_path.rglob("*.*") if p.is_file()] == [path]


def test_volumes_are_nifti(tmp_path):
    volume = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for name in ("a.nii", "a.nii.gz"):
        write_nifti(tmp_path / name, volume)
        np.testing.assert_array_equal(read_nifti(tmp_path / name), volume)
    # A header as the format's text has it, of the other byte order, with values to be scaled.
    header = bytearray(352)
    struct.pack_into(">i", header, 0, 348)
    struct.pack_into(">4h", header, 40, 3, 2, 3, 4)
    struct.pack_into(">2h", header, 70, 16, 32)
    struct.pack_into(">3f", header, 108, 352, 2, 1)
    values = volume.astype(">f4").tobytes(order="F")
    (tmp_path / "b.nii").write_bytes(bytes(header) + values)
    np.testing.assert_array_equal(read_nifti(tmp_path / "b.nii"), 2 * volume + 1)


@pytest.mark.parametrize("copy", ["betas_session01 (1).hdf5", "betas_session2.hdf5"])
def test_a_file_of_betas_that_is_one_too_many_is_named_as_such(seen, tmp_path, copy):
    _, _, paths = seen
    folder = shutil.copytree(paths["betas"], tmp_path / "betas")
    shutil.copy(folder / "betas_session02.hdf5", folder / copy)
    found = r"found betas_session(01 \(1\)|0?2)\.hdf5 too; remove it"
    with pytest.raises(vr.DataError, match=found):
        read_nsd(folder, paths["design"], subject=1, mask=paths["mask"])


def test_what_is_not_nsds_is_refused_by_name(seen, tmp_path):
    _, _, paths = seen
    with pytest.raises(vr.DataError, match="expected files betas_session01"):
        read_nsd(tmp_path, paths["design"], subject=1)
    with pytest.raises(vr.DataError, match="no such file"):
        read_nsd(paths["betas"], tmp_path / "none.mat", subject=1)
    with pytest.raises(vr.DataError, match="subject: expected 1 to 1, found 2"):
        read_nsd(paths["betas"], paths["design"], subject=2)
    write_nifti(tmp_path / "m.nii", np.ones((2, 2, 2), np.int16))
    with pytest.raises(vr.DataError, match="as of the mask"):
        read_nsd(paths["betas"], paths["design"], subject=1, mask=tmp_path / "m.nii")
    damaged = gzip.compress(bytes(9), mtime=0)[:10] + b"\xff" * 20  # no block of deflate begins so
    for content in (b"no", damaged):
        (tmp_path / "x.nii.gz").write_bytes(content)
        with pytest.raises(vr.DataError, match="expected a NIfTI volume"):
            read_nsd(paths["betas"], paths["design"], subject=1, mask=tmp_path / "x.nii.gz")
    found = read_nsd(paths["betas"], paths["design"], subject=1, mask=paths["mask"])
    found.save(tmp_path / "a.npz")
    with pytest.raises(vr.DataError, match="exists already"):
        found.save(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "wrong",
    [
        {"subjectim": "T"},
        {"subjectim": -1},
        {"masterordering": -1},
        {"masterordering": 0.5},
        {"sharedix": -1},
        {"sharedix": np.nan},
    ],
)
def test_a_design_counted_otherwise_is_refused(seen, tmp_path, wrong):
    """Counted from 0, a trial would be given the last image."""
    _, _, paths = seen
    design = scipy.io.loadmat(paths["design"])
    given = {key: design[key] for key in ("masterordering", "subjectim", "sharedix")}
    for key, change in wrong.items():
        given[key] = given[key].T if change == "T" else given[key] + change
    scipy.io.savemat(tmp_path / "d.mat", given)
    with pytest.raises(vr.DataError, match=r"expected (subjectim|masterordering)"):
        read_nsd(paths["betas"], tmp_path / "d.mat", subject=1, mask=paths["mask"])


def changed(seen, tmp_path, change, session=2, **create):
    """Copy the betas, with those of a session as `change` of them, float32 in per cent signal change."""
    folder = tmp_path / "changed"
    shutil.copytree(seen[2]["betas"], folder)
    with h5py.File(folder / f"betas_session{session:02d}.hdf5", "r+") as file:
        betas = change(file["betas"][()])
        del file["betas"]
        if create:
            data = file.create_dataset(
                "betas", betas.shape, betas.dtype, chunks=(20, *betas.shape[1:])
            )
            data[: create["written"]] = betas[: create["written"]]
        else:
            file["betas"] = betas
    return folder


def test_the_subject_is_given_or_named_by_paths(seen, tmp_path):
    """Images that not all subjects saw would be those of another one, without a word."""
    _, _, paths = seen
    design = scipy.io.loadmat(paths["design"])
    own = design["subjectim"][0]
    two = tmp_path / "design.mat"
    several = {"masterordering": design["masterordering"], "sharedix": design["sharedix"]}
    scipy.io.savemat(two, several | {"subjectim": np.stack([own[::-1], own])})
    folder = tmp_path / "ppdata" / "subj02" / "func1pt8mm" / "betas"
    shutil.copytree(paths["betas"], folder)
    mask = {"mask": paths["mask"]}
    expected = read_nsd(paths["betas"], paths["design"], subject=1, **mask).values
    for betas, subject in ((folder, None), (folder, 2), (paths["betas"], 2)):
        np.testing.assert_array_equal(
            read_nsd(betas, two, subject=subject, **mask).values, expected
        )
    assert not np.array_equal(read_nsd(paths["betas"], two, subject=1, **mask).values, expected)
    other = tmp_path / "subj01_general.nii.gz"
    shutil.copy(paths["mask"], other)
    for betas, subject, mask, message in (
        (paths["betas"], None, paths["mask"], "subject: expected a number, as no path names one"),
        (folder, 1, paths["mask"], "expected one, found subject 1 and .*subj02"),
        (folder, None, other, "expected one, found .*subj02.* and .*subj01_general"),
    ):
        with pytest.raises(vr.DataError, match=message):
            read_nsd(betas, two, subject=subject, mask=mask)


def test_regions_keep_their_names_and_what_the_mask_cuts_off_is_said(seen, tmp_path):
    _, _, paths = seen
    labels = read_nifti(paths["rois"])

    def volume(name, flags):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_nifti(tmp_path / name, flags.astype(np.int16))
        return tmp_path / name

    first, second = labels == 1, labels == 1
    first[:, 15:], second[:, :15] = False, False
    half = labels == 2
    half[-1, :10] = True  # where the mask is 0
    beyond = np.zeros(labels.shape, bool)
    beyond[-1, :4] = True

    def read(*rois, mask=paths["mask"]):
        return read_nsd(paths["betas"], paths["design"], subject=1, mask=mask, rois=rois)

    found = read(volume("lh.V1.nii.gz", first), volume("rh.V1.nii.gz", second))
    assert {name: len(own) for name, own in found.rois.items()} == {"lh.V1-1": 15, "rh.V1-1": 15}
    assert found.notes == ()
    with pytest.raises(vr.DataError, match=r"files of other names.*found two V1; rename a copy"):
        read(volume("lh/V1.nii.gz", first), volume("rh/V1.nii", second))
    found = read(volume("V2.nii", half), volume("FFA.nii", beyond))
    assert {name: len(own) for name, own in found.rois.items()} == {"V2-1": 30}
    assert found.notes == (
        "voxels of regions outside the mask are left out: 10 of 40 of V2-1",
        "voxels of regions outside the mask are left out: 4 of 4 of FFA-1",
    )
    empty = volume("empty.nii", np.zeros(labels.shape))
    with pytest.raises(vr.DataError, match="expected regions by numbers above 0"):
        read(empty)
    with pytest.raises(vr.DataError, match="expected voxels above 0, which are taken, found none"):
        read(mask=empty)


@pytest.mark.parametrize("written", [0, 40])
def test_betas_that_nobody_wrote_are_refused(seen, tmp_path, written):
    folder = changed(seen, tmp_path, lambda betas: betas, written=written)
    expected = "was never written" if not written else "6 chunks of .* that were never written"
    with pytest.raises(vr.DataError, match=f"betas_session02.hdf5: betas .*{expected}"):
        read_nsd(folder, seen[2]["design"], subject=1)


@pytest.mark.parametrize(
    ("session", "kept", "said"),
    [(2, 159, "159 in session 2"), (1, 150, "150 in session 1"), (3, 100, "")],
)
def test_sessions_of_other_lengths_are_said(seen, tmp_path, session, kept, said):
    """Only the last may be shorter: trials are counted through, so that others' images would be shifted."""
    folder = changed(seen, tmp_path, lambda betas: betas[:kept], session)
    found = read_nsd(folder, seen[2]["design"], subject=1, mask=seen[2]["mask"])
    assert said in " ".join(found.notes)
    assert bool(found.notes) == bool(said)


def test_trials_that_were_never_written_are_said(seen, tmp_path):
    """Once they are standardised they are no longer 0."""

    def unwritten(betas):
        betas = betas.copy()
        betas[[3, 7]] = 0
        return betas

    folder = changed(seen, tmp_path, unwritten)
    (note,) = read_nsd(folder, seen[2]["design"], subject=1, mask=seen[2]["mask"]).notes
    assert note.startswith(
        "betas_session02.hdf5: 2 of 160 trials have one value in every voxel, as"
    )


def test_a_session_that_is_a_copy_of_another_is_refused(seen, tmp_path):
    _, _, paths = seen
    folder = shutil.copytree(paths["betas"], tmp_path / "betas")
    shutil.copy(folder / "betas_session01.hdf5", folder / "betas_session03.hdf5")
    with pytest.raises(vr.DataError, match=r"session03.* found what betas_session01\.hdf5 holds"):
        read_nsd(folder, paths["design"], subject=1, mask=paths["mask"])


def test_a_session_that_varies_nowhere_is_said_and_one_with_infinity_refused(seen, tmp_path):
    folder = changed(seen, tmp_path, lambda betas: betas * 0)
    found = read_nsd(folder, seen[2]["design"], subject=1, mask=seen[2]["mask"])
    assert found.notes == (
        "betas_session02.hdf5: no voxel varies over its trials, so that all are NaN",
    )
    assert np.isnan(found.values).mean() == pytest.approx(1 / 3)
    shutil.rmtree(folder)
    folder = changed(seen, tmp_path, lambda betas: np.where(betas == betas.max(), np.inf, betas))
    with pytest.raises(vr.DataError, match=r"session02\.hdf5: expected finite betas.* infinity"):
        read_nsd(folder, seen[2]["design"], subject=1, mask=seen[2]["mask"])


def test_a_trial_without_a_response_costs_no_session(seen, tmp_path):
    """Of floats one may be NaN: the others are standardised without it."""
    _, _, paths = seen

    def without(betas):
        betas = betas.astype(np.float32)
        betas[3] = np.nan
        return betas

    folder = changed(seen, tmp_path, without)
    found = read_nsd(folder, paths["design"], subject=1, mask=paths["mask"])
    assert found.notes == ("betas_session02.hdf5: 1 of 160 trials is NaN",)
    assert np.isnan(found.values).mean() == pytest.approx(1 / 480)
    with h5py.File(folder / "betas_session02.hdf5") as file:
        inside = file["betas"][()][:, read_nifti(paths["mask"]).T > 0] / 300
    design = scipy.io.loadmat(paths["design"])
    images = design["subjectim"][0, design["masterordering"][0] - 1] - 1
    trial = 160 + 5
    expected = (inside[5] - np.nanmean(inside, axis=0)) / np.nanstd(inside, axis=0)
    own = found.values[:, int(np.flatnonzero(np.array(found.ids) == str(images[trial]))[0])]
    assert np.abs(own - expected).max(axis=1).min() < 1e-4


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [(np.nan, np.nan, 1), (0, 5, 1), (np.inf, 0, 1), (2, 3, 5), (1, 0, 1), (1, np.nan, None)],
)
def test_volumes_are_scaled_as_nibabel_does(tmp_path, slope, intercept, expected):
    """A slope that is 0 or not finite says that values stand as they are."""
    path = tmp_path / "a.nii"
    write_nifti(path, np.ones((2, 2, 2), np.int16))
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, 112, slope, intercept)
    path.write_bytes(content)
    if expected is None:
        with pytest.raises(vr.DataError, match="an intercept beside its slope 1, found nan"):
            read_nifti(path)
    else:
        np.testing.assert_array_equal(read_nifti(path), np.full((2, 2, 2), expected))


@pytest.mark.parametrize("kind", [np.int32, np.float64])
def test_labels_of_many_digits_are_regions_of_their_own(seen, tmp_path, kind):
    _, _, paths = seen
    labels = read_nifti(paths["rois"]).astype(kind)
    many = np.select([labels == 1, labels == 2], [1234561, 1234562], 0).astype(kind)
    write_nifti(tmp_path / "big.nii", many)
    rois = [tmp_path / "big.nii"]
    found = read_nsd(paths["betas"], paths["design"], subject=1, mask=paths["mask"], rois=rois)
    assert {name: len(own) for name, own in found.rois.items()} == {
        "big-1234561": 30,
        "big-1234562": 30,
    }
    write_nifti(tmp_path / "part.nii", many.astype(np.float64) / 2)
    for rois, message in (
        (
            [tmp_path / "part.nii"],
            "regions by whole numbers, found 617280.5; give a volume of labels",
        ),
        (str(tmp_path / "big.nii"), "rois: expected a list of files, found"),
    ):
        with pytest.raises(vr.DataError, match=message):
            read_nsd(paths["betas"], paths["design"], subject=1, mask=paths["mask"], rois=rois)


@pytest.mark.parametrize("constant", [0, 1, -32768, 32767, 1234])
def test_a_voxel_that_is_constant_in_a_session_has_no_responses_there(seen, tmp_path, constant):
    """At whatever value: the float32 deviation of most is above 0 by rounding."""
    _, _, paths = seen
    shutil.copytree(paths["betas"], tmp_path / "betas")
    with h5py.File(tmp_path / "betas/betas_session02.hdf5", "r+") as file:
        betas = file["betas"][()]
        betas[:, 0, 0, 0] = constant
        file["betas"][...] = betas
    found = read_nsd(tmp_path / "betas", paths["design"], subject=1, mask=paths["mask"]).values
    whole = read_nsd(paths["betas"], paths["design"], subject=1, mask=paths["mask"]).values
    assert np.isnan(found[:, :, 0]).sum() == len(betas)
    np.testing.assert_array_equal(found[:, :, 1:], whole[:, :, 1:])


def test_regions_of_any_name_are_read_back(seen, tmp_path):
    _, store, _ = seen
    rois = {"V1, left": np.arange(3), 'the "word" area': np.arange(2, 5), "a;b": np.array([5])}
    values = np.random.default_rng(0).normal(size=(2, len(store), 6)).astype(np.float32)
    made = nsd.NSDResponses(values, store.ids, ("train",) * len(store), rois)
    bold, table = made.save(tmp_path / "bold.npz")
    found = vr.brain.read_responses(f"{bold}:responses", store, table)
    assert {name: np.flatnonzero(flags).tolist() for name, flags in found.rois.items()} == {
        name: own.tolist() for name, own in rois.items()
    }
