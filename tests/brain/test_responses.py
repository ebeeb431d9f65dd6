"""Responses as people have them in files, and their noise ceilings, against planted ones."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import scipy.io

import vdvae_repr as vr
from vdvae_repr.brain.responses import Responses, read_responses


@pytest.fixture(scope="module")
def store(tiny, people, tmp_path_factory):
    path = tmp_path_factory.mktemp("brain") / "s.h5"
    return vr.extract(tiny, people(5, num_people=4), path, layers="1x1")


@pytest.fixture
def bold(store):
    return np.random.default_rng(0).normal(size=(len(store), 7)).astype(np.float32)


def test_every_kind_of_file_is_read(store, bold, tmp_path):
    np.save(tmp_path / "a.npy", bold)
    np.savez(tmp_path / "a.npz", bold=bold)
    np.savez_compressed(tmp_path / "b.npz", bold=bold, other=bold[:2])
    scipy.io.savemat(tmp_path / "a.mat", {"bold": bold, "other": 1.0})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["session/bold"], file["session/ids"] = bold[::-1], list(store.ids[::-1])
        file["other"] = np.zeros(3)
    with h5py.File(tmp_path / "b.mat", "w") as file:  # as MATLAB 7.3 writes it
        file["bold"] = bold.T
        file["bold"].attrs["MATLAB_class"] = np.bytes_("single")
    for name in ("a.npy", "a.npz", "b.npz:bold", "a.mat:bold", "a.h5:session/bold", "b.mat:bold"):
        found = read_responses(str(tmp_path / name), store)
        place = np.argsort(found.rows)
        np.testing.assert_array_equal(found.mean[place], bold, err_msg=name)
        assert found.noise_ceiling() is None
        assert found.split_half() is None
    for name, message in (
        ("b.npz", r"expected one array, found bold \(20, 7\), other"),
        ("b.npz:bald", "found no array 'bald'; it holds bold"),
        ("none.npy", "no such file"),
        ("bold.nii", "expected a file .npy"),
    ):
        with pytest.raises(vr.DataError, match=message):
            read_responses(str(tmp_path / name), store)


@pytest.mark.parametrize(
    "name", ["a.npz", "a.h5", "a.mat", "cells.mat", "b.mat", "numbers.mat", "b-cells.mat"]
)
def test_ids_and_splits_are_read_in_whatever_a_file_writes_them(bold, tmp_path, name):
    """As numbers, texts, or MATLAB's cells, with its padding; measured in another order than the store's."""
    ids = [str(number) for number in range(len(bold))]
    order = np.random.default_rng(0).permutation(len(bold))
    store = Numbered(ids)
    own, words = [ids[row] for row in order], ["train", "test"] * 10
    numbers = order.astype(np.uint16)
    path = tmp_path / name
    if name == "a.npz":
        np.savez(path, bold=bold[order], ids=numbers, splits=np.array(words, "S"))
    elif name == "a.mat":
        scipy.io.savemat(path, {"bold": bold[order], "ids": numbers, "splits": words})
    elif name == "cells.mat":
        cells = np.array([[word] for word in own], object), np.array(words, object)
        scipy.io.savemat(path, {"bold": bold[order], "ids": cells[0], "splits": cells[1]})
    elif name == "a.h5":
        with h5py.File(path, "w") as file:
            file["bold"], file["ids"], file["splits"] = bold[order], numbers, words
    else:
        with h5py.File(path, "w") as file:
            matlab(file, "bold", bold[order], "single")
            padded = [word.ljust(5) for word in words]
            matlab(
                file,
                "splits",
                np.array([list(map(ord, word)) for word in padded], np.uint16),
                "char",
            )
            if name == "b.mat":
                text = np.array([list(map(ord, word.ljust(2))) for word in own], np.uint16)
                matlab(file, "ids", text, "char")
            elif name == "numbers.mat":
                matlab(file, "ids", order.astype(float)[None], "double")
            else:
                for number, word in enumerate(own):
                    cell = np.array([list(map(ord, word))], np.uint16)
                    matlab(file, f"#refs#/{number}", cell, "char")
                cells = [file[f"#refs#/{number}"].ref for number in range(len(own))]
                file.create_dataset("ids", data=np.array([cells], h5py.ref_dtype))
                file["ids"].attrs["MATLAB_class"] = np.bytes_("cell")
    found = read_responses(path, store)
    assert found.rows.tolist() == order.tolist()
    assert found.splits == tuple(words)


class Numbered(list):
    """A store's ids, as much as responses ask of it."""

    path = "s.h5"

    @property
    def ids(self):
        return list(self)


def matlab(file, name, array, kind):
    """Write an array as MATLAB 7.3 does."""
    file[name] = array.T
    file[name].attrs["MATLAB_class"] = np.bytes_(kind)


def test_ids_that_are_neither_texts_nor_whole_numbers_are_refused(store, bold, tmp_path):
    for ids in (np.arange(20) + 0.5, np.full(20, np.nan), np.ones(20, bool)):
        np.savez(tmp_path / "a.npz", bold=bold, ids=ids)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["bold"], file["ids"] = bold, ids
        for name in ("a.npz", "a.h5"):
            with pytest.raises(vr.DataError, match=f"{name}: ids: expected texts or whole numbers"):
                read_responses(tmp_path / name, store)


def test_responses_in_memory_take_regions_too(store, bold, tmp_path):
    table = tmp_path / "rois.csv"
    table.write_text("voxel,roi\n0,V1\n6,V1\n")
    read = read_responses(bold, store)
    found = read_responses(read, store, table)
    assert found.voxels[found.rois["V1"]].tolist() == [0, 6]
    with pytest.raises(vr.TaskError, match="found both"):
        read_responses(found, store, table)
    with pytest.raises(vr.TaskError, match=r"expected rows of .* from 0 to 19, found 20"):
        read_responses(replace(read, rows=read.rows + 1), store)


@pytest.mark.parametrize("repetitions", [2, 3, 5])
def test_reliability_lies_between_minus_one_and_one(repetitions):
    """Halves that disagree by chance are no pole of the formula that steps them up."""
    values = np.random.default_rng(0).normal(size=(repetitions, 6, 2000))
    found = Responses(values, np.arange(6), np.arange(2000), {}).split_half()
    assert np.abs(found).max() <= 1
    assert (found < 0).any()
    assert (found > 0).any()


def test_what_does_not_fit_the_store_is_refused_by_name(store, bold, tmp_path):
    with pytest.raises(vr.TaskError, match="one row for each of the 20 images"):
        read_responses(bold[:5], store)
    with pytest.raises(vr.TaskError, match=r"\(images, voxels\) or \(repetitions"):
        read_responses(bold[0], store)
    with pytest.raises(vr.DataError, match="real numbers"):
        read_responses(bold.astype(complex), store)
    bold[3, 2] = np.inf
    with pytest.raises(vr.TaskError, match="found infinity"):
        read_responses(bold, store)
    for ids, message in (
        (["x", "y"], "id 'x' is not in"),
        ([store.ids[0]] * 2, "expected every id once"),
        ([store.ids[0]], "an id for each of 2 images, found 1"),
    ):
        np.savez(tmp_path / "a.npz", bold=bold[:2], ids=ids)
        with pytest.raises(vr.TaskError, match=message):
            read_responses(tmp_path / "a.npz", store)


def test_what_is_unknown_is_left_out_and_said(store, bold):
    bold[4, 2] = np.nan
    bold[:, 5] = 3
    found = read_responses(bold, store)
    assert found.voxels.tolist() == [0, 1, 3, 4, 6]
    assert found.notes == (
        "responses: 1 of 7 voxels left out, which are NaN",
        "responses: 1 voxels left out, which never vary",
    )
    # A repetition that is NaN throughout was not there; an image without any is left out.
    values = np.random.default_rng(1).normal(size=(3, 20, 4))
    values[0, 3] = values[1, 3] = values[:, 9] = np.nan
    found = read_responses(values, store)
    assert len(found.rows) == 19
    assert found.repetitions.tolist() == [3, 3, 3, 1] + [3] * 15
    np.testing.assert_allclose(found.mean[3], values[2, 3])
    assert found.notes == ("responses: 1 images without any response left out",)
    with pytest.raises(vr.TaskError, match="found none"):
        read_responses(np.full((20, 2), np.nan), store)
    with pytest.raises(vr.DataError, match="masked"):
        read_responses(np.ma.masked_equal(np.eye(20), 1), store)


def test_regions_are_read_from_a_table(store, bold, tmp_path):
    table = tmp_path / "rois.csv"
    table.write_text("voxel,roi\n0,V1\n2,V1\n2,FFA\n6,FFA\n5,\n")
    bold[0, 0] = np.nan
    found = read_responses(bold, store, table)
    assert {name: found.voxels[flags].tolist() for name, flags in found.rois.items()} == {
        "V1": [2],
        "FFA": [2, 6],
    }
    table.write_text("voxel,roi\n7,V1\n")
    with pytest.raises(vr.DataError, match=r"line 2: expected a voxel from 0 to 6, found '7'"):
        read_responses(bold, store, table)
    table.write_text("voxel,roi\n0,V1\n")
    with pytest.raises(vr.TaskError, match="no voxel of V1 is left"):
        read_responses(bold, store, table)


@pytest.mark.parametrize("repetitions", [2, 3, 4, 9])
def test_ceilings_are_the_planted_ones(repetitions):
    """What is planted is known: of variance 1 of noise and s of signal, s / (s + 1 / n) can be told."""
    rng = np.random.default_rng(repetitions)
    signal = np.array([0, 0.25, 1, 4])
    values = rng.normal(size=(4000, 4)) * signal**0.5
    values = values + rng.normal(size=(repetitions, 4000, 4))
    expected = signal / (signal + 1 / repetitions)
    responses = Responses(values, np.arange(4000), np.arange(4), {})
    np.testing.assert_allclose(responses.noise_ceiling(), expected, atol=0.09)
    np.testing.assert_allclose(responses.split_half(), expected, atol=0.1)


def test_ceiling_is_nsds_formula():
    """As NSD's own script computes it, of images that were all seen three times."""
    rng = np.random.default_rng(0)
    betas = rng.normal(size=(1, 60, 5)) + rng.normal(size=(3, 60, 5))
    noise = np.sqrt((betas.std(axis=0, ddof=1) ** 2).mean(axis=0))
    total = betas.reshape(-1, 5).std(axis=0, ddof=1) ** 2
    ncsnr = np.sqrt(np.maximum(total - noise**2, 0)) / noise
    responses = Responses(betas, np.arange(60), np.arange(5), {})
    np.testing.assert_allclose(responses.noise_ceiling(), ncsnr**2 / (ncsnr**2 + 1 / 3))
    # Of images seen unequally often, by NSD's mean of 1/n over the images that are averaged.
    betas[2, :20] = betas[1, :10] = np.nan
    responses = Responses(betas, np.arange(60), np.arange(5), {})
    whole = betas[:, 20:]
    noise = (whole.std(axis=0, ddof=1) ** 2).mean(axis=0)
    snr = np.maximum(whole.reshape(-1, 5).var(axis=0, ddof=1) - noise, 0) / noise
    averaged = (40 / 3 + 10 / 2 + 10 / 1) / 60
    np.testing.assert_allclose(responses.noise_ceiling(), snr / (snr + averaged))
    np.testing.assert_allclose(responses.noise_ceiling(np.arange(10)), snr / (snr + 1))
