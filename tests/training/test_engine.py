"""How a step is computed changes neither its loss nor its gradient."""

import dataclasses
import shutil

import launch
import numpy as np
import pytest
import torch

import vdvae_repr as vr
from vdvae_repr.config import TrainConfig
from vdvae_repr.model.noise import seeded_noise
from vdvae_repr.model.preprocessing import to_input
from vdvae_repr.model.vdvae import VDVAE
from vdvae_repr.training.optimisation import Optimisation
from vdvae_repr.training.trainer import compile_blocks


def gradients(model, images, *, recompute=()):
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    noise = seeded_noise(0, [str(i) for i in range(len(images))], model.device)
    model.zero_grad()
    loss = model(tensor, noise, recompute).negative.mean()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


def copy_of(model):
    copy = VDVAE(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def close(one, other, tolerance):
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    for name, gradient in one[1].items():
        error = (gradient - other[1][name]).abs().max()
        assert error <= tolerance * gradient.abs().max().clamp(min=1e-3), name


@pytest.mark.parametrize("resolutions", [(16,), (8, 4), (16, 8, 4, 1)])
def test_recomputing_gives_the_same_gradients(tiny, images, resolutions):
    model = copy_of(tiny)
    loss, kept = gradients(model, images)
    again, recomputed = gradients(model, images, recompute=resolutions)
    assert loss == again
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_recomputing_saves_memory(tiny, images):
    def saved(recompute):
        sizes = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model, tensor = copy_of(tiny), torch.from_numpy(images).permute(0, 3, 1, 2)
            kept = model(
                tensor, seeded_noise(0, [str(i) for i in range(12)], model.device), recompute
            )
        assert kept.negative.requires_grad
        return sum(sizes.values())

    assert saved((16, 8, 4)) < 0.5 * saved(())


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU")
@pytest.mark.filterwarnings("ignore")  # of what inductor imports
def test_compiled_blocks_give_the_same_gradients(tiny, images):
    model = copy_of(tiny)
    plain = gradients(model, images)
    compile_blocks(model)
    close(plain, gradients(model, images), 1e-4)
    close(plain, gradients(model, images, recompute=(16, 8)), 1e-4)


def test_channels_last_gives_the_same_gradients(tiny, images):
    plain = gradients(copy_of(tiny), images)
    close(plain, gradients(copy_of(tiny).to(memory_format=torch.channels_last), images), 1e-4)


def test_bf16_leaves_gaussians_and_likelihood_in_float32(tiny, images):
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    noise = seeded_noise(0, [str(i) for i in range(12)], tiny.device)
    convolved = []
    hook = tiny.top_down.blocks[2].resnet.c2.register_forward_hook(
        lambda module, inputs, output: convolved.append(output.dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        layers, *_ = tiny.infer(to_input(tensor, tiny.config), noise)
        elbo = tiny(tensor, noise)
    hook.remove()
    assert set(convolved) == {torch.bfloat16}
    fields = ("mean", "log_std", "prior_mean", "prior_log_std", "kl")
    assert {getattr(layer, f).dtype for layer in layers for f in fields} == {torch.float32}
    assert {elbo.distortion.dtype, elbo.kl.dtype} == {torch.float32}


def test_the_rate_may_be_weighted_in_slowly(tiny):
    recipe = TrainConfig(steps=9, batch_size=12, lr=1e-3, kl_warmup_steps=4)
    optimisation = Optimisation(copy_of(tiny), recipe)
    weights = []
    for _ in range(6):
        weights.append(optimisation.rate_weight)
        optimisation.update(1.0, False)
    assert weights == [0, 0.25, 0.5, 0.75, 1, 1]
    assert (
        Optimisation(copy_of(tiny), dataclasses.replace(recipe, kl_warmup_steps=0)).rate_weight == 1
    )


def test_transposed_unpooling_is_learned(tiny, images):
    model = VDVAE(dataclasses.replace(tiny.config, unpool="transposed"))
    mixing = [block for block in model.top_down.blocks if block.unpool is not None]
    assert len(mixing) == 3
    _, gradient = gradients(model, images)
    assert all(gradient[f"top_down.blocks.{i}.unpool.weight"].abs().max() > 0 for i in (1, 2, 4))
    with pytest.raises(vr.ConfigError, match="'nearest' or 'transposed'"):
        dataclasses.replace(tiny.config, unpool="cubic")


@pytest.mark.parametrize(
    ("key", "blocks", "message"),
    [
        ("top_down", "1x1,2m1,16m2", r"never reaches 2m1; it reaches \[1, 4, 8, 16\]"),
        ("top_down", "1x1,8m4,16m8", r"8m4 to mix in a resolution before it .* one of \[1\]"),
        ("top_down", "1x1,4m1,8m4", "must end at image_size 16, found 8"),
        ("bottom_up", "16x1,8x1", "expected a block at 16, found 8"),
        ("bottom_up", "16x1,16d3", "expected a rate that divides 16, found 16d3"),
        ("bottom_up", "16x1,16q2", "expected items as 32x11, 32d2 or 8m4, found '16q2'"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(tiny, key, blocks, message):
    with pytest.raises(vr.ConfigError, match=message):
        VDVAE(dataclasses.replace(tiny.config, **{key: blocks}))


def test_a_single_batch_of_nan_is_skipped_and_moves_nothing(tiny, images):
    recipe = TrainConfig(steps=3, batch_size=12, lr=1e-3, warmup_steps=0, ema_rate=0.5)
    optimisation = Optimisation(copy_of(tiny), recipe)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    taken, states = [], []
    for step in range(3):
        noise = seeded_noise(step, [str(i) for i in range(12)], tiny.device)
        if step == 1:
            noise = lambda spec: torch.full((12, *spec.shape), torch.nan)  # noqa: E731
        loss = optimisation.model(tensor, noise).negative.mean() / 768
        loss.backward()
        finite = bool(torch.isfinite(loss))
        taken.append(optimisation.update(optimisation.clip(), finite))
        states.append([p.clone() for p in optimisation.average.parameters()])
    assert taken == [True, False, True]
    assert optimisation.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert all(torch.isfinite(p).all() for p in states[2])


def test_processes_divide_an_evaluation_exactly(tiny, images, tmp_path):
    from vdvae_repr.model.weights import save

    save(tiny, tmp_path / "m.safetensors", record={})
    np.savez(tmp_path / "a.npz", images=images[:11])
    command = ["evaluate", "--model", str(tmp_path / "m.safetensors")]
    command += ["--data", str(tmp_path / "a.npz"), "--batch-size", "2", "--iw", "2", "--json"]
    alone = launch.run(*command, environment={"OMP_NUM_THREADS": "1"}).stdout
    assert '"images": 11' in alone
    divided = launch.torchrun(launch.COMMAND, *command)
    printed, said = divided.communicate()
    assert divided.returncode == 0, said
    assert printed == alone
