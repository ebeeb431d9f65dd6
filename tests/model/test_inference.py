"""What stands in for a model's blocks on a CPU computes what the model does, whoever changed it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from vdvae_repr.model import inference

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


class Added(nn.Module):
    """A weight and what was trained beside it, as LoRA has it."""

    def __init__(self, beside):
        super().__init__()
        self.beside = beside

    def forward(self, weight):
        return weight + self.beside


def conv_of(model):
    return [m for m in model.bottom_up.blocks[1].modules() if isinstance(m, nn.Conv2d)][-1]


def hooked(model):
    model.bottom_up.blocks[1].register_forward_hook(lambda module, inputs, output: output * 0)


def replaced(model):
    conv = conv_of(model)
    conv.forward = lambda x: 2 * nn.Conv2d.forward(conv, x)


def pruned(model):
    for amount in (0.1, 0.9):
        prune.l1_unstructured(conv_of(model), "weight", amount)
        model.posterior(IMAGES)


def reparametrised(model):
    parametrizations.weight_norm(conv_of(model))
    model.posterior(IMAGES)
    with torch.no_grad():
        conv_of(model).parametrizations.weight.original0.mul_(2)


def with_lora(model):
    conv = conv_of(model)
    nn.utils.parametrize.register_parametrization(
        conv, "weight", Added(100 * torch.ones_like(conv.weight))
    )


def padded(model):
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = [1, 1, 1, 1]


@pytest.mark.parametrize(
    "change",
    [hooked, replaced, pruned, reparametrised, with_lora, padded],
    ids=lambda f: f.__name__,
)
def test_a_model_that_was_changed_by_torchs_own_tools_computes_otherwise(tiny, change, monkeypatch):
    """The truth is what its blocks compute where nothing stands in for them."""
    model = copy.deepcopy(tiny)
    with torch.no_grad():
        conv_of(model).weight.mul_(1000)

    def means():
        return np.asarray(model.posterior(IMAGES)[model.layers[-1].name].mean)

    before = means()
    change(model)
    after = means()
    monkeypatch.setattr(inference, "_ONEDNN", False)
    np.testing.assert_allclose(after, means(), rtol=1e-4, atol=1e-6)
    assert np.abs(after - before).max() > 1e-4
