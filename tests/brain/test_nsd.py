"""A made-up brain in NSD's own files, from them to responses, layers and images."""

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
    (tmp_path / "x.nii.gz").write_bytes(b"no")
    with pytest.raises(vr.DataError, match="expected a NIfTI volume"):
        read_nsd(paths["betas"], paths["design"], subject=1, mask=tmp_path / "x.nii.gz")
    found = read_nsd(paths["betas"], paths["design"], subject=1, mask=paths["mask"])
    found.save(tmp_path / "a.npz")
    with pytest.raises(vr.DataError, match="exists already"):
        found.save(tmp_path / "a.npz")
