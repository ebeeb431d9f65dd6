import numpy as np
import pytest

from vdvae_repr.data.toy import draw_identity, draw_nuisance, render, toy_faces
from vdvae_repr.errors import DataError


def test_more_faces_extend_the_same_set():
    small, large = toy_faces(2, 2, size=32), toy_faces(3, 4, size=32)
    assert np.array_equal(small.images[3], large.images[5])
    assert not np.array_equal(small.images, toy_faces(2, 2, size=32, seed=1).images)


def test_identity_is_constant_per_person_and_nuisance_varies():
    faces = toy_faces(3, 4, size=16)
    for name, values in faces.factors.items():
        per_person = values.reshape(3, 4)
        constant = (per_person == per_person[:, :1]).all()
        assert constant == name.startswith("identity_"), name


def test_factors_are_independent():
    rows = [
        [*draw_identity(np.random.default_rng([0, i])).values(),
         *draw_nuisance(np.random.default_rng([0, i, 1])).values()]
        for i in range(3000)
    ]  # fmt: skip
    correlation = np.corrcoef(np.array(rows, dtype=float).T)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 0.08


def test_light_brightens_the_side_it_comes_from():
    base = draw_identity(np.random.default_rng(0)) | draw_nuisance(np.random.default_rng(1))
    left = render(base | {"nuisance_light": -1.0}, 64).astype(float)
    right = render(base | {"nuisance_light": 1.0}, 64).astype(float)
    assert left[:, :32].mean() > right[:, :32].mean()
    assert left[:, 32:].mean() < right[:, 32:].mean()


def test_bad_arguments():
    with pytest.raises(DataError, match="at least 1 person"):
        toy_faces(0)
