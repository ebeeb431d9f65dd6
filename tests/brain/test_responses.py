"""Responses as people have them in files, and their noise ceilings, against planted ones."""

import zipfile
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch

import vdvae_repr as vr
from vdvae_repr.brain.dissimilarity import read_rdms
from vdvae_repr.brain.responses import Responses, read_responses
from vdvae_repr.latents.base import Latents


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
    "name",
    ["a.npz", "a.h5", "a.mat", "doubles.mat", "cells.mat", "b.mat", "numbers.mat", "b-cells.mat"],
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
    elif name in (
        "a.mat",
        "doubles.mat",
    ):  # MATLAB's numbers are doubles, where nobody says otherwise
        numbers = numbers if name == "a.mat" else order.astype(float)[:, None]
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
    checksums = None

    @property
    def ids(self):
        return list(self)

    @property
    def splits(self):
        return [""] * len(self)


Latents.register(Numbered)


@pytest.mark.parametrize("word", ["IDs", "ID", "image_ids", "names", "is_test"])
def test_ids_are_read_in_any_case_and_other_arrays_are_named(bold, tmp_path, word):
    """Of ids under a name that nothing reads, rows would be those of other images, without a word."""
    order = np.random.default_rng(0).permutation(len(bold))
    store = Numbered(str(number) for number in range(len(bold)))
    texts = np.array([str(row) for row in order], "S")
    np.savez(tmp_path / "a.npz", bold=bold[order], **{word: order})
    scipy.io.savemat(tmp_path / "a.mat", {"bold": bold[order], word: order})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["bold"], file[word] = bold[order], texts
    with h5py.File(tmp_path / "around.h5", "w") as file:
        file["subject/session/bold"], file[f"subject/{word}"] = bold[order], texts
        file["subject/session/mask"], file["splits"] = np.ones(3), ["train"] * 20
    for name in ("a.npz:bold", "a.mat:bold", "a.h5", "around.h5:subject/session/bold"):
        found = read_responses(tmp_path / name, store)
        said = " ".join(found.notes)
        read = word == "IDs"
        assert found.rows.tolist() == (order.tolist() if read else list(range(20))), name
        assert (f"{word} (" in said) != read
        assert ("responses: without ids, rows are taken as the images of s.h5" in said) != read
        if name.startswith("around"):
            assert "/mask (3,)" in said
            assert found.splits == ("train",) * 20
    if word == "IDs":
        np.savez(tmp_path / "a.npz", bold=bold, ids=order, IDs=order)
        with pytest.raises(vr.DataError, match="expected one array 'ids', found ids and IDs"):
            read_responses(tmp_path / "a.npz", store)


def test_ids_that_are_linked_to_are_read(bold, tmp_path):
    """By a path, or as one array that two groups hold."""
    order = np.random.default_rng(0).permutation(len(bold))
    store = Numbered(str(number) for number in range(len(bold)))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["1/ids"], file["1/bold"], file["2/bold"] = order, bold, bold[order]
        file["2/ids"] = file["1/ids"]
        file["3/bold"], file["3/ids"] = bold[order], h5py.SoftLink("/1/ids")
    for group in (2, 3):
        found = read_responses(tmp_path / f"a.h5:{group}/bold", store)
        assert found.rows.tolist() == order.tolist()
        assert "ids (" not in " ".join(found.notes)


def test_many_arrays_are_named_in_one_line_those_of_images_first(store, bold, tmp_path):
    others = {f"a{number}": np.zeros(3) for number in range(9)}
    np.savez(tmp_path / "a.npz", bold=bold, **others, stimuli=np.arange(20))
    (line,) = (n for n in read_responses(tmp_path / "a.npz:bold", store).notes if "not read" in n)
    assert "not read: stimuli (20,), a0 (3,)" in line
    assert "and 5 more" in line


def test_values_that_nobody_wrote_are_no_responses(store, bold, tmp_path):
    """HDF5 makes up 0 for chunks that were never written; what it is told to make up as NaN is missing."""
    path = tmp_path / "a.h5"
    for key, made_up in (("bold", 0), ("bold", -1), ("ids", 0), ("bold", np.nan)):
        with h5py.File(path, "w") as file:
            whole = {"bold": bold, "ids": np.arange(20)}
            array = whole.pop(key)
            data = file.create_dataset(
                key, array.shape, array.dtype, chunks=(5, *array.shape[1:]), fillvalue=made_up
            )
            data[:10] = array[:10]
            for name, other in whole.items() if key == "ids" else ():
                file[name] = other
        if np.isnan(made_up):
            found = read_responses(path, store)
            assert found.rows.tolist() == list(range(10))
            assert "responses: 10 images without any response left out" in found.notes
        else:
            with pytest.raises(vr.DataError, match=f"{key} has 2 chunks of .* never written"):
                read_responses(path, store)


@pytest.mark.parametrize("mark", ["_FillValue", "missing_value"])
def test_attributes_say_what_is_missing_and_what_numbers_stand_for(store, bold, tmp_path, mark):
    """As NetCDF's conventions have it."""
    stored = np.round(100 * bold).astype(np.int16)
    stored[4, 2] = -999
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["bold"] = stored
        file["bold"].attrs.update({mark: np.int16(-999), "scale_factor": 0.01, "add_offset": 2.0})
        file["floats"] = np.where(stored == -999, np.float32(-0.1), bold)
        file["floats"].attrs[mark] = -0.1
    for name in ("bold", "floats"):
        found = read_responses(tmp_path / f"a.h5:{name}", store)
        assert found.voxels.tolist() == [0, 1, 3, 4, 5, 6]
        np.testing.assert_allclose(
            found.mean, bold[:, found.voxels] + 2 * (name == "bold"), atol=0.006
        )
        assert "1 value is" in " ".join(found.notes)


def test_what_is_no_array_is_refused_by_what_it_is(store, bold):
    for measured in (bold.tolist(), torch.tensor(bold), pd.DataFrame(bold), None):
        for read, what in ((read_responses, "responses"), (read_rdms, "rdm")):
            kind = type(measured).__name__
            with pytest.raises(vr.DataError, match=rf"{what}: expected a NumPy array, .* {kind};"):
                read(measured, store)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_mat_file_that_is_empty_or_cut_anywhere_is_refused_in_one_line(
    store, bold, tmp_path, compressed
):
    file = tmp_path / "r.mat"
    scipy.io.savemat(file, {"bold": bold[:, :2]}, do_compression=compressed)
    whole = file.read_bytes()
    for length in {0, 3, 67, 100, 127, *range(128, len(whole), 7), len(whole) - 1}:
        file.write_bytes(whole[:length])
        with pytest.raises(
            vr.DataError,
            match=r"r\.mat: (expected a MATLAB file|expected an array in|found no array)",
        ):
            read_responses(f"{file}:bold", store)


def test_parts_of_responses_fit_together(store, bold):
    whole = read_responses(bold, store)
    for part, message in (
        ({"values": bold}, r"values: expected \(repetitions, images, voxels\), found \(20, 7\)"),
        ({"rows": np.arange(5)}, r"rows: expected one for each of 20 images, found \(5,\)"),
        ({"rows": np.zeros(20, int)}, "rows: expected every image once, found one twice"),
        ({"voxels": np.arange(5)}, r"voxels: expected one for each of 7 voxels, found \(5,\)"),
        ({"splits": ("train",) * 9}, "splits: expected one for each of 20 images, found 9"),
        (
            {"rois": {"V1": np.arange(3)}},
            r"rois: V1: expected flags of 7 voxels, found int64 \(3,\)",
        ),
        (
            {"rois": {"V1": np.ones(5, bool)}},
            r"rois: V1: expected flags of 7 voxels, found bool \(5,\)",
        ),
    ):
        with pytest.raises(vr.TaskError, match=message):
            replace(whole, **part)
    words = replace(whole, splits=("Training",) * 15 + ("holdout",) * 5)
    found = read_responses(words, store)
    assert found.splits == ("train",) * 15 + ("holdout",) * 5
    assert "no split is called 'holdout' (5 images)" in found.notes[-1]
    assert read_responses(found, store).notes == found.notes


@pytest.mark.parametrize("word", ["holdout", "", "nan"])
def test_words_that_are_no_split_are_said(store, bold, tmp_path, word):
    np.savez(tmp_path / "a.npz", bold=bold, splits=["train"] * 12 + [word] * 8)
    found = read_responses(tmp_path / "a.npz", store)
    assert found.splits == ("train",) * 12 + (word if word == "holdout" else "",) * 8
    said = "no split is called 'holdout' (8 images)" if word == "holdout" else "8 images belong to"
    assert said in " ".join(found.notes)
    assert said in " ".join(vr.brain.fit(tmp_path / "a.npz", store, alpha=1.0).notes)
    listed = r"holdout \(8\), train \(12\)" if word == "holdout" else r"none \(8\), train \(12\)"
    for task in (vr.Encoding(responses=tmp_path / "a.npz"), vr.RSA(responses=tmp_path / "a.npz")):
        with pytest.raises(vr.TaskError, match=f"found.* 0 of {listed}; .* train, val and test"):
            task.bind(store)


def matlab(file, name, array, kind):
    """Write an array as MATLAB 7.3 does."""
    file[name] = array.T
    file[name].attrs["MATLAB_class"] = np.bytes_(kind)


def test_ids_that_are_neither_texts_nor_whole_numbers_are_refused(store, bold, tmp_path):
    for ids in (
        np.arange(20) + 0.5,
        np.full(20, np.nan),
        np.arange(20) + 2.0**53,
        np.ones(20, bool),
    ):
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
        read_responses(replace(read, rows=read.rows + 1, ids=()), store)


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


@pytest.mark.parametrize(
    ("code", "said"), [(-999, "-999"), (2.0**100, "1.2676506e+30"), (200, "200")]
)
def test_a_code_among_responses_is_said_and_kept(store, bold, code, said):
    clean = bold.copy()
    bold[3, 2] = bold[4, 5] = bold[8, 2] = code
    found = read_responses(np.stack([bold, np.where(bold == code, code, bold + 1)]), store)
    line = next(line for line in found.notes if "far from all others" in line)
    assert line.startswith(f"responses: {said} stands 6 times, far from all others (-")
    np.testing.assert_array_equal(found.values[0], bold)
    bold[9, 1], bold[2, 2] = -code, 1.01 * code  # several codes hide none
    line = next(line for line in read_responses(bold, store).notes if "far from all others" in line)
    assert " stand 5 times, far from all others (-" in line
    # One value may be measured, and so may those that lie no farther than others do.
    for values in (
        np.where(np.arange(7) + 7 * np.arange(20)[:, None] == 3, 50, clean),
        np.clip(clean, -0.5, 0.5),
        np.random.default_rng(0).poisson(0.1, (20, 7)),
        np.where(np.abs(bold) > 9, np.nan, clean),
        np.eye(20)[:, :7],
        np.random.default_rng(0).choice([0.5, 1, 2, 4, 8], (20, 7)),  # levels that double
        np.random.default_rng(0).choice([1, 10, 100, 1000], (20, 7)),
    ):
        assert not any("far from" in line for line in read_responses(values, store).notes)


def test_repetitions_that_pad_are_said(store):
    """As np.pad's edge leaves images that were seen less often than others."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 20, 12))
    values[1:, 3], values[2, 9] = values[0, 3], values[1, 9]
    said = "responses: 2 of 20 images have repetitions that are the same"
    assert any(line.startswith(said) for line in read_responses(values, store).notes)
    values[1:, 3] = values[2, 9] = np.nan
    answers = (rng.random((3, 20, 12)) < 0.95).astype(float)  # two values, which are often alike
    for fine in (values, answers, rng.poisson(0.3, (3, 20, 12)), rng.poisson(1, (3, 20, 1))):
        assert not any("are the same" in line for line in read_responses(fine, store).notes)


def test_a_code_beside_two_values_is_said(store):
    answers = np.random.default_rng(0).integers(0, 2, (20, 7)).astype(float)
    answers[3, 2] = answers[5, 1] = -999
    assert any("-999 stands 2 times" in line for line in read_responses(answers, store).notes)
    answers[answers < 0] = 12
    assert not any("far from" in line for line in read_responses(answers, store).notes)


def test_a_single_value_of_nines_is_said(store, bold):
    bold[3, 2] = -999
    assert any("-999 stands 1 time, far" in line for line in read_responses(bold, store).notes)


def test_responses_that_are_0_in_every_voxel_are_said_and_kept(store, bold):
    values = np.stack([bold, bold + 1])
    values[1, 3] = values[:, 8] = 0
    values[0, 5, 1:] = 0  # but for one voxel
    found = read_responses(values, store)
    np.testing.assert_allclose(found.values, values)
    said = (
        f"responses: one value in every voxel: 3 responses to 2 images, as 0 to {store.ids[3]!r}:"
    )
    assert [line for line in found.notes if line.startswith(said)]
    many = np.tile(values, 2)
    many[0, 2] = -999
    notes = " ".join(read_responses(many, store).notes)
    assert f"4 responses to 3 images, as -999 to {store.ids[2]!r}:" in notes
    spikes = np.random.default_rng(0).poisson(0.3, (2, len(bold), 3))
    # Of one neuron, or few spikes, 0 is a count.
    for measured in (np.stack([bold, bold + 1]), values[:, :, :1], spikes):
        assert not any("in every voxel" in line for line in read_responses(measured, store).notes)


COPIES = ", so that they tell nothing of noise, and noise ceilings are too high; leave copies out"


def test_repetitions_that_are_copies_are_said(store, bold):
    rng = np.random.default_rng(1)
    other = rng.normal(size=bold.shape).astype(np.float32)
    gone = bold.copy()
    gone[4:] = np.nan  # a repetition that was not there
    unlike = bold.copy()
    unlike[-1, -1] += 1
    for repetitions, said in (
        ([bold, bold], "0 and 1 are the same"),
        ([bold, bold, bold], "0 and 1 are the same, as are 1 more"),
        ([other, bold, other + 1, bold], "1 and 3 are the same"),
        ([bold, other, gone], "0 and 2 are the same"),
        ([bold, other], None),
        ([bold, unlike], None),
        ([bold], None),
    ):
        notes = read_responses(np.stack(repetitions), store).notes
        found = [note for note in notes if note.startswith("responses: repetitions")]
        assert found == ([f"responses: repetitions {said}{COPIES}"] if said else [])
    again = read_responses(read_responses(np.stack([bold, bold]), store), store)
    assert sum("repetitions 0 and 1" in note for note in again.notes) == 1


def test_few_responses_that_are_the_same_by_chance_are_no_copies(store):
    """Counts of spikes are 0 as a rule, and repetitions without a common image are not compared."""
    counts = np.zeros((2, len(store), 3))
    counts[:, :3] = 1
    halves = np.random.default_rng(0).normal(size=(2, len(store), 3))
    halves[0, ::2] = halves[1, 1::2] = np.nan
    for values in (counts, halves):
        assert not any("are the same" in note for note in read_responses(values, store).notes)


def test_a_copy_is_told_from_a_repetition_that_differs_in_the_last_voxel(store):
    """However many voxels there are."""
    values = np.random.default_rng(0).normal(size=(1, len(store), 5000)).repeat(2, axis=0)
    assert any("0 and 1 are the same" in note for note in read_responses(values, store).notes)
    values[1, 3, -1] += 1
    notes = read_responses(values, store).notes
    assert not any("0 and 1 are the same" in note for note in notes)
    assert any("19 of 20 images have repetitions that are the same" in note for note in notes)


def test_repetitions_are_averaged_in_double_precision(store):
    values = (1e7 + np.random.default_rng(1).normal(0, 9, (3, 20, 4))).astype(np.float32)
    values[1, 3] = np.nan
    expected = np.nanmean(values.astype(np.float64), axis=0)
    np.testing.assert_allclose(read_responses(values, store).mean, expected, rtol=1e-15)


def test_what_is_unknown_is_left_out_and_said(store, bold):
    bold[4, 2] = np.nan
    bold[:, 5] = 3
    found = read_responses(bold, store)
    assert found.voxels.tolist() == [0, 1, 3, 4, 6]
    assert found.notes[1:] == (
        "responses: 1 of 7 voxels left out: NaN for some image",
        "responses: 1 voxel left out, with one value for all images",
    )
    # A repetition that is NaN throughout was not there; an image without any is left out.
    values = np.random.default_rng(1).normal(size=(3, 20, 4))
    values[0, 3] = values[1, 3] = values[:, 9] = np.nan
    found = read_responses(values, store)
    assert len(found.rows) == 19
    assert found.repetitions.tolist() == [3, 3, 3, 1] + [3] * 15
    np.testing.assert_allclose(found.mean[3], values[2, 3])
    assert found.notes[1:] == ("responses: 1 image without any response left out",)
    with pytest.raises(vr.TaskError, match="found none"):
        read_responses(np.full((20, 2), np.nan), store)
    with pytest.raises(vr.DataError, match=r"masked.*as responses.filled\(numpy.nan\)"):
        read_responses(np.ma.masked_equal(np.eye(20), 1), store)


def test_a_key_of_a_file_that_has_none_is_refused(store, bold, tmp_path):
    np.save(tmp_path / "r.npy", bold)
    with pytest.raises(vr.DataError, match=r"r.npy holds one array without a name; leave :V1 out"):
        read_responses(f"{tmp_path / 'r.npy'}:V1", store)


def test_regions_are_read_from_a_table(store, bold, tmp_path):
    table = tmp_path / "rois.csv"
    table.write_text("voxel,roi\n0,V1\n2,V1\n2,FFA\n6,FFA\n5,\n")
    bold[0, 0] = np.nan
    found = read_responses(bold, store, table)
    assert {name: found.voxels[flags].tolist() for name, flags in found.rois.items()} == {
        "V1": [2],
        "FFA": [2, 6],
    }
    # What a table writes for none is no region; other columns, and regions that look alike, are said.
    table.write_text(
        ",voxel,roi,hemi,subject\n"
        '0,0,V1,lh,1\n1,2,NA,lh,1\n2,3,nan,lh,1\n3,4,v1,rh,1\n4,6,V1,"r\nh",1\n'
    )
    found = read_responses(bold, store, table)
    assert list(found.rois) == ["V1", "v1"]
    assert found.notes[-1].endswith("columns that are not read: hemi")
    assert "read as no region: 'NA' (1 voxel), 'nan' (1 voxel)" in found.notes[-2]
    assert "'V1' and 'v1' are two regions" in found.notes[-3]
    assert (
        f"{table}: lines 6 to 7 are one row, for quotation marks in column 'hemi'"
        in found.notes[-4]
    )
    table.write_text("voxel,roi,subject\n1,V1,1\n2,V1,2\n")
    with pytest.raises(vr.DataError, match="voxels of one subject, found subjects 1, 2"):
        read_responses(bold, store, table)
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


def test_responses_of_another_order_are_found_by_the_ids_of_their_images(
    store, bold, tiny, people, tmp_path
):
    """Whatever says which images they are: ids of a file, or the order of the store they were read for."""
    source = people(5, num_people=4)
    turned = vr.extract(tiny, source.select(range(19, -1, -1)), tmp_path / "t.h5", layers="1x1")
    np.savez(tmp_path / "a.npz", bold=bold[::-1], ids=store.ids[::-1])
    for measured in (bold, tmp_path / "a.npz"):
        found = read_responses(read_responses(measured, store), turned)
        assert found.ids == tuple(turned.ids[row] for row in found.rows)
        np.testing.assert_array_equal(found.mean[np.argsort(found.rows)], bold[::-1])
        some = read_responses(read_responses(measured, store).to(np.array([3, 1])), turned)
        assert sorted(some.rows) == sorted(found.rows[[3, 1]])
    other = vr.extract(tiny, people(5, num_people=4, seed=1), tmp_path / "o.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match=r"responses: id '0-0' is not in .*o\.h5"):
        read_responses(read_responses(bold, store), other)
    by_hand = Responses(bold[None], np.arange(20)[::-1], np.arange(7), {})
    found = read_responses(by_hand, store)
    assert found.rows.tolist() == list(range(20))[::-1]
    assert f"without ids, rows are taken as those of {store.path}" in found.notes[0]


def test_other_images_under_the_same_ids_are_refused(tiny, people, bold, tmp_path):
    source = people(5, num_people=4)
    pixels = np.stack([source.reader(row) for row in range(20)])
    first = vr.extract(tiny, pixels, tmp_path / "a.h5", layers="1x1")
    turned = vr.extract(tiny, pixels[::-1], tmp_path / "b.h5", layers="1x1")
    found = read_responses(bold, first)
    decoder = vr.brain.fit(found, first, alpha=1.0, split=None)
    message = r"expected the images .* found another in .*b\.h5 under the id '0'"
    for use in (
        lambda: read_responses(found, turned),
        lambda: vr.brain.fit(found, turned, alpha=1.0, split=None),
        lambda: decoder.predict(bold, turned, tmp_path / "p.h5", split=None),
        lambda: vr.Encoding(responses=found).bind(turned),
        lambda: vr.RSA(responses=found).bind(turned),
    ):
        with pytest.raises(vr.TaskError, match=message):
            use()


def test_values_in_memory_are_looked_at_as_arrays_are(store):
    """NaN is left out and said, infinity is refused, and no repetition need be the first."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 4)) + 0.5 * rng.normal(size=(3, 20, 4))
    values[0, 10:] = np.nan
    values[:, 5] = np.nan
    whole = read_responses(values, store)
    by_hand = Responses(values, np.arange(20), np.arange(4), {})
    found = read_responses(by_hand, store)
    assert found.notes[1:] == whole.notes[1:]
    for ceiling in (Responses.noise_ceiling, Responses.split_half, lambda r: r.repetitions):
        np.testing.assert_array_equal(ceiling(found), ceiling(whole))
        assert np.isfinite(ceiling(found)).all()
    two, apart = rng.normal(size=(2, 20, 4)), np.full((3, 20, 4), np.nan)
    apart[:2, :9], apart[1:, 9:] = two[:, :9], two[:, 9:]
    together, apart = (Responses(v, np.arange(20), np.arange(4), {}) for v in (two, apart))
    np.testing.assert_allclose(apart.noise_ceiling(), together.noise_ceiling(), atol=1e-12)
    np.testing.assert_allclose(apart.split_half(), together.split_half(), atol=1e-12)
    for value, said in (
        (np.nan, "responses: 1 of 4 voxels left out: NaN for some image"),
        (np.inf, None),
    ):
        values = rng.normal(size=(2, 20, 4))
        values[1, 3, 2] = value
        by_hand = Responses(values, np.arange(20), np.arange(4), {})
        uses = (
            lambda given: " ".join(vr.brain.fit(given, store, alpha=5.0, split=None).notes),
            lambda given: vr.RSA(responses=given).bind(store).split.text,
        )
        for use in uses:
            if said:
                assert said in use(by_hand)
            else:
                with pytest.raises(vr.TaskError, match="expected finite numbers, found infinity"):
                    use(by_hand)
    regions = Responses(values, np.arange(20), np.arange(4), {"V1": np.arange(4) == 2})
    regions.values[1, 3, 2] = np.nan
    with pytest.raises(vr.TaskError, match="responses: no voxel of V1 is left"):
        read_responses(regions, store)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_parts_of_responses_may_be_lists_and_are_otherwise_refused(store, bold):
    lists = Responses([bold.tolist()], list(range(20)), list(range(7)), {"V1": [True] * 7})
    expected = vr.brain.fit(bold, store, alpha=1.0, split=None)
    found = vr.brain.fit(lists, store, alpha=1.0, split=None)
    np.testing.assert_allclose(found.responses, expected.responses, rtol=1e-6)
    matrix = vr.brain.fit(np.asmatrix(bold), store, alpha=1.0, split=None)
    np.testing.assert_array_equal(matrix.responses, expected.responses)
    empty = Responses(np.zeros((1, 20, 0)), np.arange(20), [], {}, splits=np.array(["train"] * 20))
    with pytest.raises(vr.TaskError, match="expected at least one voxel"):
        read_responses(empty, store)
    for part, message in (
        (
            {"values": np.ma.masked_less(bold[None], 0)},
            "values: expected real numbers, found a masked",
        ),
        ({"values": bold[None].astype(str)}, "values: expected real numbers, found <U32"),
        ({"values": [[1, 2], [3]]}, "values: expected an array of real numbers, found list"),
        ({"rows": np.arange(20.0)}, r"rows: expected whole numbers, found float64 \(20,\)"),
        ({"rows": set(range(20))}, "rows: expected whole numbers in order, found set"),
        ({"rows": np.ma.masked_less(np.arange(20), 3)}, "rows: .* found a masked array, 3 values"),
        ({"voxels": None}, "voxels: expected whole numbers in order, found NoneType"),
        ({"voxels": [0] * 7}, "voxels: expected every voxel once, found one twice"),
        ({"rois": None}, "rois: expected flags of voxels by region, found NoneType"),
        ({"rois": {"V1": [1] * 7}}, "rois: V1: expected flags of 7 voxels, found int64"),
        ({"notes": "left out"}, "notes: expected a list of texts, found 'left out'"),
        ({"splits": {"train", "test"}}, "splits: expected texts in order, found set"),
        ({"splits": "a" * 20}, "splits: expected a list of texts, found 'aaa"),
        ({"ids": ("a",)}, "ids: expected one for each of 20 images, found 1"),
    ):
        parts = {"values": bold[None], "rows": range(20), "voxels": range(7), "rois": {}} | part
        with pytest.raises(vr.TaskError, match=message):
            Responses(**parts)


def test_ids_that_are_marked_as_missing_are_refused(store, bold, tmp_path):
    for name, value in (("_FillValue", 3), ("scale_factor", 2.0)):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["bold"], file["ids"] = bold, np.arange(20)
            file["ids"].attrs[name] = value
        with pytest.raises(vr.DataError, match=rf"ids holds .*{name}"):
            read_responses(tmp_path / "a.h5", store)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(store, bold, tmp_path):
    """The later one would be read, though another tool reads the first."""
    for name in ("r.npy", "ids.npy"):
        np.savez(tmp_path / "a.npz", r=bold, ids=store.ids)
        with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
            archive.writestr(name, archive.read(name))
        with pytest.raises(vr.DataError, match=f"expected one array '{name[:-4]}', found two"):
            read_responses(tmp_path / "a.npz", store)


def test_a_path_is_no_open_store(store, bold, tmp_path):
    decoder = vr.brain.fit(bold, store, alpha=1.0, split=None)
    for use in (
        lambda path: read_responses(bold, path),
        lambda path: vr.brain.fit(bold, path),
        lambda path: decoder.predict(bold, path, tmp_path / "p.h5"),
        lambda path: vr.brain.synthetic_nsd(tmp_path / "n", path, {"V1": None}),
    ):
        with pytest.raises(
            vr.TaskError, match=r"(store|like): expected an open store, found 's.h5'"
        ):
            use("s.h5")


def test_memory_that_lacks_is_no_fault_of_the_file(store, monkeypatch, tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"bold": np.zeros((20, 3))})

    def lacking(path):
        raise MemoryError("Unable to allocate 40 GiB")

    monkeypatch.setattr(scipy.io, "loadmat", lacking)
    with pytest.raises(MemoryError):
        read_responses(tmp_path / "a.mat", store)
