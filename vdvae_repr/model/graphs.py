"""A pass recorded once as a CUDA graph and replayed: its thousands of small kernels start as one.

A kernel of a coarse layer works for less time than the host takes to start it, so that a card waits for its
host. A replay starts the kernels without the host. It works on the memory of the recording: inputs and draws
are copied in, results are copied out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vdvae_repr.errors import ConfigError
from vdvae_repr.model.distributions import LayerPosterior
from vdvae_repr.model.layers import LayerSpec
from vdvae_repr.model.noise import NoiseFn

# The layers kept, their KL, the top-down states and the bottom-up activations by resolution.
Inferred = tuple[list[LayerPosterior], Tensor, dict[int, Tensor], dict[int, Tensor]]
Pass = Callable[[Tensor, NoiseFn | None], Inferred]
# Runs a function once, and returns what makes it run again, and its result, which running again overwrites.
Capture = Callable[[Callable[[], Inferred]], tuple[Callable[[], None], Inferred]]

RECORDINGS = 4  # at most, of a model: each holds the memory of its pass


def capture_cuda(function: Callable[[], Inferred]) -> tuple[Callable[[], None], Inferred]:
    """Record a function's kernels on the current CUDA device; PyTorch's notes on CUDA graphs say how."""
    # Weights that autocast keeps would be gone at the next replay.
    cast = torch.autocast(
        "cuda",
        torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,
    )
    warming = torch.cuda.Stream()
    warming.wait_stream(torch.cuda.current_stream())
    with cast:
        with torch.cuda.stream(warming):
            for _ in range(2):  # libraries choose their algorithms, torch.compile makes its code
                function()
        torch.cuda.current_stream().wait_stream(warming)
        graph = torch.cuda.CUDAGraph()
        # Other threads pin memory meanwhile, which is none of this recording's business.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = function()
    return graph.replay, result


@dataclass(frozen=True)
class _Recording:
    x: Tensor
    draws: dict[int, Tensor]
    replay: Callable[[], None]
    result: Inferred


class GraphedPasses:
    """Runs a model's passes, and replays those that come again.

    A pass is recorded when its kind, of one shape of input and one choice of layers, comes for the second
    time: the last batch of an extraction, which is smaller, comes once.
    """

    def __init__(self, capture: Capture = capture_cuda) -> None:
        self.capture = capture
        self.seen: set[Hashable] = set()
        self.recordings: OrderedDict[Hashable, _Recording] = OrderedDict()

    def __call__(
        self,
        run: Pass,
        x: Tensor,
        noise: NoiseFn | None,
        layers: Sequence[LayerSpec],
        kind: Hashable,
    ) -> Inferred:
        """Return what `run(x, noise)` returns, in memory of its own.

        Args:
            run: the pass.
            x: its input.
            noise: its draws, of each of `layers`.
            layers: those that the pass traverses, in order.
            kind: what, beside the input's shape, makes a pass another one.
        """
        kind = kind, tuple(x.shape), x.dtype, noise is None
        if kind not in self.recordings and kind not in self.seen:
            self.seen.add(kind)
            return run(x, noise)
        draws = {} if noise is None else {spec.index: noise(spec) for spec in layers}
        # CUDA records what is sent to the current device, which need not be the model's.
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            if kind not in self.recordings:
                self.record(run, x, None if noise is None else draws, kind)
            recording = self.recordings[kind]
            self.recordings.move_to_end(kind)
            recording.x.copy_(x)
            for index, values in draws.items():
                recording.draws[index].copy_(values)
            recording.replay()
            return _copied(recording.result)

    def record(self, run: Pass, x: Tensor, draws: dict[int, Tensor] | None, kind: Hashable) -> None:
        """Record a pass; of too many recordings the one longest unused goes."""
        if len(self.recordings) == RECORDINGS:
            self.recordings.popitem(last=False)
        own_x = x.clone()
        own = {index: values.clone() for index, values in (draws or {}).items()}
        noise = None if draws is None else lambda spec: own[spec.index]
        replay, result = self.capture(lambda: run(own_x, noise))
        self.recordings[kind] = _Recording(own_x, own, replay, result)


def _copied(result: Inferred) -> Inferred:
    """Return a pass's results in memory of their own."""
    posteriors, kl, states, activations = result
    copies = []
    for layer in posteriors:
        values = {field.name: getattr(layer, field.name) for field in fields(layer)}
        own = {name: value.clone() for name, value in values.items() if value is not None}
        copies.append(replace(layer, **own))
    return (
        copies,
        kl.clone(),
        {r: value.clone() for r, value in states.items()},
        {r: value.clone() for r, value in activations.items()},
    )


# By model, so that a copy of a model, whose weights are others, has none of them.
_GRAPHED: WeakKeyDictionary[nn.Module, GraphedPasses] = WeakKeyDictionary()


def graph_inference(model: nn.Module, passes: GraphedPasses | None = None) -> None:
    """Let a model's passes without gradients be recorded and replayed.

    Raises:
        ConfigError: the model is not on a CUDA device.
    """
    device = next(model.parameters()).device
    if passes is None and device.type != "cuda":
        raise ConfigError(f"CUDA graphs: expected a model on a CUDA device, found one on {device}")
    _GRAPHED[model] = passes or GraphedPasses()


def graphed_passes(model: nn.Module) -> GraphedPasses | None:
    """Return what replays a model's passes; None in training, and where nobody asked for it."""
    if model.training or torch.is_grad_enabled():
        return None
    return _GRAPHED.get(model)
