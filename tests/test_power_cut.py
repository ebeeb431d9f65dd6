"""A power cut: nothing is renamed before it is on the disk, nothing removed before the rename is."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import vdvae_repr as vr
from vdvae_repr.config import Config, TrainConfig
from vdvae_repr.latents.export import export
from vdvae_repr.model.weights import save
from vdvae_repr.output import RATE_ACCURACY, replacing_folder, write_text
from vdvae_repr.training.checkpoints import prune, write_checkpoint

OURS = f"{RATE_ACCURACY}\n"


class Disk:
    """Watches what is made, flushed, renamed and removed; `faults` is what a power cut could take."""

    def __init__(self, monkeypatch):
        self.flushed, self.unsettled, self.faults, self.renamed = {}, set(), [], 0
        self.made = {}
        for name, watch in (
            ("fsync", self.fsync),
            ("replace", self.rename),
            ("rename", self.rename),
            ("mkdir", self.make),
        ):
            self.wrap(monkeypatch, name, watch)
        for name in ("unlink", "remove", "rmdir"):
            self.wrap(monkeypatch, name, self.remove)

    @staticmethod
    def wrap(monkeypatch, name, watch):
        function = getattr(os, name)

        def watched(*arguments, **options):
            watch(*arguments)
            return function(*arguments, **options)

        monkeypatch.setattr(os, name, watched)

    @staticmethod
    def state(status):
        return status.st_size, status.st_mtime_ns

    def fsync(self, handle):
        status = os.fstat(handle)
        self.flushed[status.st_ino] = self.state(status)
        self.unsettled.discard(status.st_ino)
        self.made.pop(status.st_ino, None)

    def make(self, path, *_):
        if not Path(path).exists():
            self.made[Path(path).parent.stat().st_ino] = path

    def rename(self, source, target):
        source, target = Path(source), Path(target)
        self.renamed += 1
        if target.suffix != ".former":  # which was written by an earlier process
            for path in (source, *source.rglob("*")):
                status = path.stat()
                if self.flushed.get(status.st_ino) != self.state(status):
                    self.faults.append(f"{path.name} became {target.name} and was not on the disk")
        self.unsettled.add(target.parent.stat().st_ino)

    def remove(self, path, *_):
        if self.unsettled and not str(path).endswith(".lock"):
            self.faults.append(f"{path} was removed before the rename was on the disk")

    def check(self):
        assert self.renamed
        assert not self.faults
        assert not self.unsettled, "a rename that is not on the disk at the end"
        assert not self.made, "folders that are not on the disk at the end"


def test_files_and_folders_of_results(tmp_path, monkeypatch):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(OURS)
    disk = Disk(monkeypatch)
    write_text(tmp_path / "new" / "deep" / "a.txt", "x")
    with replacing_folder(tmp_path, re.compile(r"[abc]\.csv")) as aside:
        for name in ("a.csv", "c.csv"):
            (aside / name).write_text(OURS + "1\n")
    disk.check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "c.csv", "new"]


def test_weights_and_checkpoints(tmp_path, tiny, monkeypatch):
    disk = Disk(monkeypatch)
    for _ in range(2):
        save(tiny, tmp_path / "run" / "model.safetensors", record={})
    for step in (1, 2, 2):  # the second again, as after a damaged one
        write_checkpoint(tmp_path / "checkpoints", step, {"model": {"w": torch.zeros(2)}}, {})
        prune(tmp_path / "checkpoints", step, keep_last=1, keep_every=0)
    disk.check()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model.safetensors"]
    umask = os.umask(0)
    os.umask(umask)
    for path in tmp_path.rglob(
        "*.safetensors"
    ):  # others may read what they may read of other files
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("layout", ["single", "virtual"])
def test_stores(tmp_path, tiny, images, monkeypatch, layout):
    disk = Disk(monkeypatch)
    options = {"layers": "<=4x4", "layout": layout, "batch_size": 4, "overwrite": True}
    for _ in range(2):
        store = vr.extract(tiny, images, tmp_path / "new" / "deep" / "s.h5", **options)
    for _ in range(2):
        vr.import_latents(store.matrix()[0], store, tmp_path / "p.h5", overwrite=True)
    for suffix in (".npz", ".npy"):
        for _ in range(2):
            export(store, tmp_path / f"m{suffix}")
    disk.check()
    assert np.array_equal(np.load(tmp_path / "m.npy"), store.matrix()[0])


def test_a_run(tmp_path, tiny, images, monkeypatch):
    np.save(tmp_path / "images.npy", images)
    config = Config(model=tiny.config, train=TrainConfig(steps=2, batch_size=4, lr=1e-3))
    (tmp_path / "tiny.toml").write_text(config.to_toml())
    disk = Disk(monkeypatch)
    vr.train(tmp_path / "tiny.toml", tmp_path / "images.npy", tmp_path / "new" / "deep" / "run")
    disk.check()
