import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
import typer.testing

from vdvae_repr.config import ModelConfig
from vdvae_repr.data.source import Source
from vdvae_repr.model.vdvae import VDVAE


def pytest_collection_modifyitems(items):
    """Train first, which takes longest, so that of several processes none works alone at the end."""
    items.sort(key=lambda item: "training" not in item.path.parts)


@pytest.fixture(scope="session", autouse=True)
def command_line_made_once():
    """As `cli.main` does; typer's own runner of tests makes all commands anew at each call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", cache(typer.main.get_command))
        yield


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


@pytest.fixture(scope="session")
def people():
    """Draws a source of people who differ in color, with noise; factors: a number and a category."""

    def draw(images_a_person, num_people=6, seed=0):
        rng = np.random.default_rng(seed)
        base = np.random.default_rng(1).integers(40, 215, (num_people, 1, 1, 1, 3))
        bright = rng.uniform(-40, 40, (num_people, images_a_person, 1, 1, 1))
        noise = rng.integers(-25, 25, (num_people, images_a_person, 16, 16, 3))
        images = np.clip(base + bright + noise, 0, 255).astype(np.uint8).reshape(-1, 16, 16, 3)
        labels = np.repeat(np.arange(num_people), images_a_person)
        return Source(
            name="people",
            ids=tuple(f"{seed}-{i}" for i in range(len(images))),
            reader=lambda index: images[index],
            labels=labels,
            label_names=tuple(f"p{i}" for i in range(num_people)),
            factors={"bright": bright.ravel(), "dark": (bright.ravel() < 0).astype(np.int64)},
        )

    return draw
