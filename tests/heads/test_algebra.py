"""Torch's algebra gives what NumPy's does, and a device that is not there is said to be none."""

import numpy as np
import pytest
import torch

import vdvae_repr as vr
from vdvae_repr.heads.algebra import NUMPY, Algebra
from vdvae_repr.heads.gram import gram_matrices

TORCH = Algebra(torch)


def test_a_device_is_checked_in_one_line():
    assert Algebra.on("cpu") is NUMPY
    with pytest.raises(vr.TaskError, match="expected cpu, cuda or cuda:1, found 'gpu'"):
        Algebra.on("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(vr.TaskError, match=r'device cuda:7 cannot be used.*try device="cpu"'):
            Algebra.on("cuda:7")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_and_decompositions_are_numpys(dtype):
    """Of columns of which one is constant; against plain NumPy in float64."""
    X = (3 + np.random.default_rng(0).normal(size=(40, 90)) * np.arange(90)).astype(dtype)
    rows = np.arange(0, 40, 2)
    found = gram_matrices(
        [X[:, :50], X[:, 50:]], [(rows, s) for s in ("raw", "centred", "standardised")], TORCH
    )
    A = X.astype(np.float64)
    centred = A - A[rows].mean(axis=0)
    deviation = A[rows].std(axis=0)
    scaled = centred / np.where(deviation > 0, deviation, 1)
    for gram, expected in zip(found, (A, centred, scaled), strict=True):
        np.testing.assert_allclose(gram.inner, expected @ expected[rows].T, rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(gram.squares, (expected**2).sum(axis=1), rtol=1e-9)
        assert (gram.dims, gram.inner.dtype) == (90, np.float64)
    values = np.linalg.svd(scaled[rows] - scaled[rows].mean(axis=0), compute_uv=False) ** 2
    np.testing.assert_allclose(found[2].spectrum.values[::-1], values[:19], rtol=1e-9)
    A = A @ A.T + np.eye(40)
    for algebra in (NUMPY, TORCH):
        solved = algebra.get(algebra.solve(algebra.put(A), algebra.put(X)))
        np.testing.assert_allclose(solved, np.linalg.solve(A, X), rtol=1e-6, atol=1e-9)
    X[7, 3] = np.nan
    with pytest.raises(ValueError, match="others in row 7"):
        gram_matrices([X], [(rows, "raw")], TORCH)
