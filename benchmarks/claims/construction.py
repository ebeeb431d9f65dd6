"""Propositions 1 and 2 of the paper as executable constructions, on trained discrete models.

Images are grey, S x S, of V levels: D = S * S variables x_1 .. x_D, each 0 .. V-1. Logarithms are
natural.

Proposition 1. `Masked` is an autoregressive model of x, trained. `Sequential` is a VAE of D layers made
of it: layer i's latent is one of V values, its prior p(z_i | z_<i) is the autoregressive model's
conditional, its posterior is the image's own value, x_i, and the likelihood says x = z. `elbo` computes
that VAE's ELBO layer by layer, as for any hierarchical VAE, and knows nothing of where the parts came
from.

Both sides of the equality add the same D conditionals, each from a network that was given something
else: that they are equal to the last bit says that no conditional sees what is to come.

Proposition 2. `Quadtree` is a model of hidden states at 1x1, 2x2, 4x4, .. in which, given the grid
above, all states of a grid are independent: a VAE that draws each grid at once has a layer a grid.
Trained by exact likelihood. With its exact posterior the ELBO of these few layers is the likelihood that
the autoregressive factorisation of the same model, a variable at a time, gives in D steps. The two are
different sums: over the states of each grid under the posterior, top down; and over all states, for each
pixel that becomes known.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from claim import AGREES, DISAGREES, Context, Piece, Row, Settings, Verdict, images
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import vdvae_repr as vr

TITLE = "A VAE can be an autoregressive model, and a shallower one where it can draw in parallel"
PAPER = (
    "a VAE of as many layers as the data have dimensions can be any autoregressive model (Proposition "
    "1); where variables are independent given those before, a VAE draws them at once and needs fewer "
    "layers (Proposition 2 and what follows it)."
)
PAPER_IN_SHORT = (
    "N layers can be an autoregressive model; fewer do where latents are drawn in parallel"
)
RULE = (
    "It agrees where, for every image held back and every seed, ELBO and autoregressive likelihood, "
    "computed by separate code in float64, differ by less than 1e-12 of the likelihood, and in float32 "
    "by less than 1e-5; and, for Proposition 2, the VAE has fewer layers than variables."
)
LIMITS = {"float64": 1e-12, "float32": 1e-5}
TYPES = {"float64": torch.float64, "float32": torch.float32}


def elbo(vae: "Sequential", x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ELBO (N,), nats, of a VAE of discrete layers, and its KL by layer (N, layers).

    Each layer's latent is drawn from its posterior, which has one value here.
    """
    z: list[Tensor] = []
    kls = []
    for _ in range(vae.num_layers):
        log_p, log_q = vae.prior(z, len(x)), vae.posterior(x, z)
        kls.append(kl_of(log_q, log_p).sum(dim=1))
        z.append(log_q.argmax(dim=-1))
    kl = torch.stack(kls, dim=1)
    return vae.log_likelihood(x, z) - kl.sum(dim=1), kl


def kl_of(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q || p) over the last dimension, nats; what q never takes adds nothing."""
    q = log_q.exp()
    return torch.where(q > 0, q * (log_q.clamp(min=-1e30) - log_p), torch.zeros_like(q)).sum(dim=-1)


class Masked(nn.Module):
    """p(x_i | x_<i) of D variables by one masked network (MADE, Germain 2015, arXiv:1502.03509)."""

    def __init__(self, dims: int, values: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.dims, self.values = dims, values
        order = torch.arange(dims)
        of_input = order.repeat_interleave(values)
        of_hidden = torch.arange(hidden) % max(1, dims - 1)  # the last variable that a unit may see
        self.masks = [
            of_hidden[:, None] >= of_input[None],
            of_hidden[:, None] >= of_hidden[None],
            of_input[:, None] > of_hidden[None],
        ]
        sizes = (dims * values, hidden, hidden, dims * values)
        self.weights = nn.ParameterList(
            torch.randn(out, into, generator=generator) / math.sqrt(into)
            for into, out in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(out) for out in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Return log p(x_i = v | x_<i), (N, D, V), of x (N, D)."""
        h = F.one_hot(x, self.values).flatten(1).to(self.weights[0].dtype)
        for i, (weight, bias, mask) in enumerate(
            zip(self.weights, self.biases, self.masks, strict=True)
        ):
            h = F.linear(F.gelu(h) if i else h, weight * mask, bias)
        return F.log_softmax(h.view(-1, self.dims, self.values), dim=-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), (N,), by one pass over all variables."""
        return self(x).gather(-1, x[..., None])[..., 0].sum(dim=1)


class Sequential:
    """Proposition 1: the VAE of D layers that a `Masked` model is.

    A prior sees the latents of the layers before alone: of variables to come the network is given others.
    """

    def __init__(self, model: Masked, generator: torch.Generator) -> None:
        self.model = model
        self.num_layers = model.dims
        self.generator = generator

    def prior(self, before: list[Tensor], count: int) -> Tensor:
        """Return log p(z_l | z_<l), (N, 1, V), of the latents before, (N, 1) each, of `count` images."""
        known = torch.cat([torch.zeros(count, 0, dtype=torch.int64), *before], dim=1)
        missing = (len(known), self.model.dims - known.shape[1])
        anything = torch.randint(0, self.model.values, missing, generator=self.generator)
        return self.model(torch.cat([known, anything], dim=1))[:, [known.shape[1]]]

    def posterior(self, x: Tensor, before: list[Tensor]) -> Tensor:
        """Return log q(z_l | x): all of it on the image's own value, (N, 1, V)."""
        layer = len(before)
        return torch.log(
            F.one_hot(x[:, [layer]], self.model.values).to(self.model.weights[0].dtype)
        )

    def log_likelihood(self, x: Tensor, z: list[Tensor]) -> Tensor:
        """Return log p(x | z): 0 where x = z, else -inf."""
        same = (x == torch.cat(z, dim=1)).all(dim=1)
        return torch.where(same, 0.0, -math.inf).to(self.model.weights[0].dtype)


class Quadtree(nn.Module):
    """K hidden states a node on grids 1x1, 2x2, .. S/2 x S/2, and V values a pixel at S x S.

    A node depends on the node above it alone, by a table of its corner (of four) and its grid.
    """

    def __init__(self, size: int, values: int, states: int, generator: torch.Generator) -> None:
        super().__init__()
        self.sides = [2**i for i in range(int(math.log2(size)))]
        self.root = nn.Parameter(0.1 * torch.randn(states, generator=generator))
        self.tables = nn.ParameterList(
            torch.randn(4, states, states if side < size else values, generator=generator)
            for side in [*self.sides[1:], size]
        )

    def log_tables(self) -> list[Tensor]:
        """Return log p(child | parent) of each grid below the first, (corner, parent, child)."""
        return [F.log_softmax(table, dim=-1) for table in self.tables]

    def upward(self, x: Tensor, seen: int | None = None) -> list[Tensor]:
        """Return log p(pixels seen below a node | its state), (N, side, side, K) by grid, coarsest first.

        x is (N, S, S); of its pixels the first `seen` in raster order are known, all if not given.
        """
        tables = self.log_tables()
        leaf = tables[-1]
        count, size = len(x), x.shape[-1]
        # (N, S, S, K): log p(pixel | the state above it), by the corner that the pixel is in.
        corners = _corners(size)
        message = leaf[corners][None].expand(count, -1, -1, -1, -1)
        index = x[..., None, None].expand(-1, -1, -1, leaf.shape[1], 1)
        message = message.gather(-1, index)[..., 0]
        if seen is not None:
            known = torch.arange(size * size).view(size, size) < seen
            message = torch.where(known[None, :, :, None], message, torch.zeros_like(message))
        found = [_merged(message)]
        for table in reversed(tables[:-1]):
            below = found[0]
            corners = _corners(below.shape[1])
            joint = table[corners][None] + below[:, :, :, None, :]
            found.insert(0, _merged(torch.logsumexp(joint, dim=-1)))
        return found

    def log_prob(self, x: Tensor, seen: int | None = None) -> Tensor:
        """Return log p of the first `seen` pixels, (N,): sums over all hidden states, leaves to root."""
        top = self.upward(x, seen)[0][:, 0, 0]
        return torch.logsumexp(F.log_softmax(self.root, dim=0) + top, dim=1)

    def chain_rule(self, x: Tensor) -> Tensor:
        """Return the sum of log p(x_i | x_<i) over pixels in raster order, (N,): D conditionals."""
        before = torch.zeros(len(x), dtype=self.root.dtype)
        total = torch.zeros_like(before)
        for seen in range(1, x[0].numel() + 1):
            up_to = self.log_prob(x, seen)
            total = total + (up_to - before)
            before = up_to
        return total


def _corners(side: int) -> Tensor:
    """Return which of its parent's four corners each node of a grid is in, (side, side)."""
    odd = torch.arange(side) % 2
    return 2 * odd[:, None] + odd[None]


def _merged(message: Tensor) -> Tensor:
    """Add what the four children say, (N, side, side, K) to (N, side / 2, side / 2, K)."""
    n, side, _, states = message.shape
    return message.view(n, side // 2, 2, side // 2, 2, states).sum(dim=(2, 4))


def _enlarged(nodes: Tensor) -> Tensor:
    """Repeat each node for its four children: nearest-neighbour unpooling, as a VDVAE's."""
    return nodes.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


def tree_elbo(tree: Quadtree, x: Tensor, exact: bool = True) -> Tensor:
    """Return the ELBO (N,) of the VAE whose layers are the tree's grids, top down, the pixels' the last.

    The posterior q(grid | grid above, x) is the model's own by Bayes' rule; expectations over the states
    above are sums, not draws. Without `exact`, q is the prior, which makes the bound loose.
    """
    up = tree.upward(x)
    prior = F.log_softmax(tree.root, dim=0).expand(len(x), -1)
    log_q = F.log_softmax(prior + up[0][:, 0, 0], dim=1) if exact else prior
    total = -kl_of(log_q, prior)
    above = log_q[:, None, None]  # (N, 1, 1, K): log q of the states that were drawn
    *hidden, leaf = tree.log_tables()
    for table, message in zip(hidden, up[1:], strict=True):
        log_p = table[_corners(message.shape[1])][None].expand(len(x), -1, -1, -1, -1)
        log_q = F.log_softmax(log_p + message[:, :, :, None, :], dim=-1) if exact else log_p
        weight = _enlarged(above)
        total = total - (weight.exp() * kl_of(log_q, log_p)).sum(dim=(1, 2, 3))
        above = torch.logsumexp(weight[..., None] + log_q, dim=3)
    index = x[..., None, None].expand(-1, -1, -1, leaf.shape[1], 1)
    log_pixel = (
        leaf[_corners(x.shape[1])][None].expand(len(x), -1, -1, -1, -1).gather(-1, index)[..., 0]
    )
    # The last layer's latent is the pixel itself, its posterior deterministic: its KL is -log p(x | above).
    return total + (_enlarged(above).exp() * log_pixel).sum(dim=(1, 2, 3))


def grey_levels(source: vr.Source, rows: Sequence[int], size: int, values: int) -> Tensor:
    """Return images as grey levels 0 .. values - 1, (N, size, size)."""
    box = 4  # PIL's
    grey = [np.asarray(source[i].convert("L").resize((size, size), box)) for i in rows]
    return torch.from_numpy(np.stack(grey).astype(np.int64) * values // 256)


def fit(
    log_prob: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor, settings: Settings, seed: int
) -> None:
    """Train by Adam on the negative log-likelihood of batches."""
    generator = torch.Generator().manual_seed(seed + 1)
    adam = torch.optim.Adam(model.parameters(), lr=settings["lr"])
    for _ in range(settings["steps"]):
        batch = x[torch.randint(0, len(x), (settings["batch_size"],), generator=generator)]
        loss = -log_prob(batch).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()


def pieces(settings: Settings) -> list[Piece]:
    """Return a piece a proposition and seed."""
    return [{"proposition": p, "seed": seed} for p in (1, 2) for seed in settings["seeds"]]


def measure(piece: Piece, context: Context) -> list[Row]:
    """Train a model and compare the two likelihoods of images held back."""
    settings, seed = context.settings, piece["seed"]
    size, values = settings["image_size"], settings["values"]
    source = images(context)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(source))[: settings["images"] + settings["held_back"]]
    x = grey_levels(source, order.tolist(), size, values)
    trained, held = x[: settings["images"]], x[settings["images"] :]
    generator = torch.Generator().manual_seed(seed)
    if piece["proposition"] == 1:
        model: nn.Module = Masked(size * size, values, settings["hidden"], generator)
        trained, held = trained.flatten(1), held.flatten(1)
        fit(model.log_prob, model, trained, settings, seed)
    else:
        model = Quadtree(size, values, settings["states"], generator)
        fit(model.log_prob, model, trained, settings, seed)
    return [_compare(model, held, name, generator) for name in TYPES]


@torch.no_grad()
def _compare(model: nn.Module, x: Tensor, kind: str, generator: torch.Generator) -> Row:
    model = model.to(TYPES[kind])
    dims = x[0].numel()
    if isinstance(model, Masked):
        vae = Sequential(model, generator)
        bound, likelihood, layers = elbo(vae, x)[0], model.log_prob(x), vae.num_layers
    else:
        assert isinstance(model, Quadtree)
        bound, likelihood, layers = tree_elbo(model, x), model.chain_rule(x), len(model.sides) + 1
    gap = (bound - likelihood).abs()
    return {
        "precision": kind,
        "variables": dims,
        "layers": layers,
        "images": len(x),
        "elbo_bits": float(-bound.mean()) / dims / math.log(2),
        "autoregressive_bits": float(-likelihood.mean()) / dims / math.log(2),
        "largest_difference_nats": float(gap.max()),
        "largest_relative_difference": float((gap / likelihood.abs()).max()),
    }


def verdicts(rows: pd.DataFrame, settings: Settings) -> list[Verdict]:
    """Say whether both equalities hold to rounding."""
    statements = {
        1: "a VAE of as many layers as variables is the autoregressive model",
        2: "where latents are drawn in parallel fewer layers have its likelihood",
    }
    found = []
    for number, statement in statements.items():
        own = rows[rows.proposition == number]
        worst = {
            kind: own[own.precision == kind].largest_relative_difference.max() for kind in LIMITS
        }
        good = all(worst[kind] < limit for kind, limit in LIMITS.items())
        shallow = number == 1 or (own.layers < own.variables).all()
        text = (
            f"{own.layers.iloc[0]} layers, {own.variables.iloc[0]} variables; largest difference "
            f"{worst['float64']:.1e} of the likelihood in float64, {worst['float32']:.1e} in float32"
        )
        found.append(Verdict(statement, text, AGREES if good and shallow else DISAGREES))
    return found


def in_short(rows: pd.DataFrame) -> str:
    """Say what was found in a few words."""
    exact = rows[rows.precision == "float64"]
    tree = rows[rows.proposition == 2]
    return (
        f"equal to {exact.largest_relative_difference.max():.0e} of the likelihood; "
        f"{tree.layers.iloc[0]} layers in place of {tree.variables.iloc[0]}"
    )


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a proposition, seed and precision."""
    table = rows[["proposition", "seed", "precision", "layers", "variables"]].copy()
    for name, column in (
        ("ELBO, bits/dim", "elbo_bits"),
        ("autoregressive, bits/dim", "autoregressive_bits"),
    ):
        table[name] = rows[column].map("{:.9f}".format)
    table["largest difference, nats an image"] = rows.largest_difference_nats.map("{:.1e}".format)
    return table


def draw(rows: pd.DataFrame, figure: Figure) -> None:
    """Show how far apart the two likelihoods are, beside what rounding allows."""
    axes = figure.subplots()
    for kind, marker in (("float64", "o"), ("float32", "s")):
        own = rows[rows.precision == kind]
        places = own.proposition + 0.06 * (own.seed - own.seed.mean())
        gaps = own.largest_relative_difference.clip(lower=1e-17)  # 0 has no place on the scale
        axes.scatter(places, gaps, marker=marker, label=kind)
        axes.axhline(LIMITS[kind], linestyle=":", color="grey")
    axes.set_yscale("log")
    axes.set_xticks([1, 2], ["Proposition 1", "Proposition 2"])
    axes.set_xlim(0.5, 2.5)
    axes.set_ylabel("largest |ELBO - likelihood|\nover the likelihood")
    axes.legend(title="dotted: the limit\nat 1e-17: equal", loc="center left")
