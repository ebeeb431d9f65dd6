"""A run that is killed while it writes its last state has the model of its last step once it is resumed."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import vdvae_repr as vr
from vdvae_repr.training import trainer

TOML = """
[model]
image_size = 16
width = 8
zdim = 4
bottom_up = "16x1,16d4,4x1,4d4,1x1"
top_down = "1x1,4m1,16m4"
num_mixtures = 2
shift = -127.5
scale = 0.015625

[train]
steps = 4
batch_size = 4
lr = 1e-3
warmup_steps = 2
checkpoint_every = 2
"""


@pytest.mark.parametrize("stopped_in", ["save", "write_checkpoint", "prune"])
def test_the_model_of_a_finished_run_is_that_of_its_last_step(tmp_path, monkeypatch, stopped_in):
    (tmp_path / "tiny.toml").write_text(TOML)
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)

    def train(out, resume=False):
        vr.train(tmp_path / "tiny.toml", tmp_path / "images.npy", tmp_path / out, resume=resume)
        return load_file(tmp_path / out / "model.safetensors")

    whole = train("whole")
    calls, real = [], getattr(trainer, stopped_in)

    def stop_at_the_last(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, stopped_in, stop_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            train("killed")
    resumed = train("killed", resume=True)
    assert resumed.keys() == whole.keys()
    assert all(np.array_equal(resumed[key], whole[key]) for key in whole)
