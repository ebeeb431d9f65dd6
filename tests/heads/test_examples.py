import doctest

import pytest

from vdvae_repr.heads import few_shot, linear, neighbors, spectrum, verification


@pytest.mark.parametrize("module", [few_shot, linear, neighbors, spectrum, verification])
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert found.failed == 0
