import shutil
from pathlib import Path

import pytest
from made_report import made_report


@pytest.fixture
def report():
    return made_report()


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory):
    """A folder that the report was saved to; drawing its pictures takes time."""
    folder = tmp_path_factory.mktemp("saved") / "out"
    made_report().save(folder)
    return folder


@pytest.fixture
def saved(saved_once, tmp_path):
    return Path(shutil.copytree(saved_once, tmp_path / "out"))
