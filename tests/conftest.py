import os
from pathlib import Path

import numpy as np
import pytest
import torch

from vdvae_repr.config import ModelConfig
from vdvae_repr.model.vdvae import VDVAE


@pytest.fixture(scope="session")
def shared_data():
    folder = os.environ.get("VDVAE_REPR_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("VDVAE_REPR_DATA names no folder of face sets")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny():
    """A model of 5 layers on 16x16 images, every zero initialisation replaced."""
    torch.manual_seed(0)
    config = ModelConfig(
        image_size=16,
        width=8,
        zdim=4,
        bottom_up="16x1,16d2,8x1,8d2,4x1,4d4,1x1",
        top_down="1x1,4m1,8m4,8x1,16m8",
        num_mixtures=2,
        shift=-127.5,
        scale=1 / 64,
    )
    model = VDVAE(config, name="tiny")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
