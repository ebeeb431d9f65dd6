import numpy as np
import pytest
from sklearn.decomposition import PCA

from vdvae_repr.heads import spectrum as module
from vdvae_repr.heads.spectrum import Spectrum, spanned_coordinates


@pytest.mark.parametrize(
    ("n", "d", "most"), [(40, 12, None), (20, 60, None), (20, 60, 5), (40, 12, 5)]
)
def test_components_are_scikit_learns(n, d, most, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 7)
    rng = np.random.default_rng(0)
    X, new = (rng.normal(size=(size, d)) * np.arange(1, d + 1) for size in (n, 30))
    rank = min(n - 1, d) if most is None else most
    theirs = PCA(rank, svd_solver="full").fit(X)
    ours = Spectrum.of(X, most)
    np.testing.assert_allclose(ours.deviations[::-1] ** 2, theirs.explained_variance_)
    for some in (X, new):
        expected = np.abs(theirs.transform(some))
        np.testing.assert_allclose(np.abs(ours.project(some)[:, ::-1]), expected, atol=1e-8)
    np.testing.assert_allclose(ours.project_samples(X), ours.project(X), atol=1e-8)
    if most is None:
        by_products = Spectrum.of_products(X @ X.T)
        found = np.abs(by_products.project(new @ X.T)[:, ::-1])
        np.testing.assert_allclose(found, np.abs(theirs.transform(new)), atol=1e-6)


def test_directions_that_are_rounding_are_left_out():
    """Whichever way samples are decomposed they have the rank that they were made with."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 50)) + 100
    some = np.arange(10)
    assert len(Spectrum.of(X).values) == len(Spectrum.of(X[:, :20]).values) == 4
    assert len(Spectrum.of_products(X @ X.T).values) == 4
    assert spanned_coordinates(X @ X[some].T, some).shape == (30, 5)  # not centred: the mean too
    assert len(Spectrum.of(np.ones((5, 3))).values) == 0
