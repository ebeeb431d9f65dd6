"""What is recorded and replayed, by a stand-in for a CUDA graph that works on the same memory."""

from functools import partial

import numpy as np
import pytest
import torch

import vdvae_repr as vr
from vdvae_repr.model import graphs
from vdvae_repr.model.graphs import GraphedPasses, graph_inference


def overwriting(function, count):
    """Run a function, and let running again write into the memory of its first result, as CUDA does."""
    count.append(0)
    result = function()

    def tensors(found):
        posteriors, kl, states, activations = found
        for layer in posteriors:
            yield from (layer.mean, layer.log_std, layer.prior_mean, layer.prior_log_std, layer.z)
            if layer.top_down is not None:
                yield layer.top_down
        yield kl
        yield from states.values()
        yield from activations.values()

    def replay():
        count[-1] += 1
        for old, new in zip(tensors(result), tensors(function()), strict=True):
            old.copy_(new)

    return replay, result


@pytest.fixture
def graphed(tiny, monkeypatch):
    count = []
    monkeypatch.setattr(graphs, "_GRAPHED", type(graphs._GRAPHED)())
    graph_inference(tiny, GraphedPasses(partial(overwriting, count=count)))
    return tiny, count


@pytest.mark.parametrize("z", ["mean", "sample"])
def test_replayed_passes_equal_plain_ones(graphed, images, z, monkeypatch):
    model, count = graphed
    inputs = [np.roll(images, shift, axis=1) for shift in range(4)]
    read = [
        model.posterior(x, "<=8x8", z=z, seed=n, top_down=True, bottom_up=True)
        for n, x in enumerate(inputs)
    ]
    assert count == [3]  # one recording, at the second pass
    monkeypatch.setattr(graphs, "_GRAPHED", {})
    for n, (x, found) in enumerate(zip(inputs, read, strict=True)):
        plain = model.posterior(x, "<=8x8", z=z, seed=n, top_down=True, bottom_up=True)
        torch.testing.assert_close(found.kl, plain.kl)
        for name, layer in plain.items():
            for what in ("mean", "log_std", "prior_mean", "prior_log_std", "z", "top_down"):
                torch.testing.assert_close(getattr(found[name], what), getattr(layer, what))
        for resolution, activation in plain.bottom_up.items():
            torch.testing.assert_close(found.bottom_up[resolution], activation)


def test_each_kind_of_pass_has_its_recording_and_the_oldest_goes(graphed, images):
    model, count = graphed
    for selector in ("1x1", "4x4", "8x8", "16x16", "all"):
        for _ in range(2):
            model.posterior(images, selector)
    model.posterior(images[:5])  # a batch that comes once is not recorded
    assert count == [1] * 5
    model.posterior(images, "all")
    assert count == [1, 1, 1, 1, 2]
    model.posterior(images, "1x1")  # of four at most, the first was let go
    assert count == [1, 1, 1, 1, 2, 1]


def test_training_is_never_replayed(graphed, images):
    model, count = graphed
    x = torch.zeros(2, 3, 16, 16)
    for _ in range(3):
        model.infer(x, None)  # with gradients
    assert count == []


def test_graphs_without_a_card_are_refused():
    with pytest.raises(vr.ConfigError, match="expected a model on a CUDA device, found one on cpu"):
        vr.load("faces64", cuda_graphs=True)
