"""The paper's claims: the constructions hold, the runner resumes, pages follow the rules that they state."""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import vdvae_repr as vr

FOLDER = Path(__file__).parents[2] / "benchmarks" / "claims"
NAMES = [path.stem for path in FOLDER.glob("*.py")]


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in (*NAMES, "toy"):
        sys.modules.pop(name, None)


def every_image(dims, values):
    return torch.tensor(list(itertools.product(range(values), repeat=dims)))


# Proposition 1


@pytest.fixture
def masked():
    import construction

    generator = torch.Generator().manual_seed(0)
    model = construction.Masked(dims=5, values=3, hidden=32, generator=generator).double()
    return model, construction.Sequential(model, generator)


def test_a_conditional_depends_on_earlier_variables_alone(masked):
    model, _ = masked
    x = every_image(5, 3)
    found = model(x).detach()
    for i in range(5):
        for prefix in {tuple(row[:i].tolist()) for row in x}:
            same = (x[:, :i] == torch.tensor(prefix)).all(dim=1)
            own = found[same, i]
            torch.testing.assert_close(own, own[:1].expand_as(own), rtol=0, atol=0)


def test_probabilities_of_all_images_sum_to_one(masked):
    model, _ = masked
    assert math.isclose(model.log_prob(every_image(5, 3)).exp().sum().item(), 1, rel_tol=1e-12)


def test_the_elbo_of_as_many_layers_as_variables_is_the_autoregressive_likelihood(masked):
    import construction

    model, vae = masked
    x = every_image(5, 3)
    bound, kl = construction.elbo(vae, x)
    # By hand, one variable after the other, of a network that has seen what is known alone.
    likelihood = torch.zeros(len(x), dtype=torch.float64)
    for i in range(5):
        known = torch.where(torch.arange(5) < i, x, torch.zeros_like(x))
        likelihood += model(known)[torch.arange(len(x)), i, x[:, i]]
    assert kl.shape == (243, 5)
    torch.testing.assert_close(bound, likelihood, rtol=1e-13, atol=0)
    torch.testing.assert_close(bound, model.log_prob(x), rtol=1e-13, atol=0)


# Proposition 2


@pytest.fixture
def tree():
    import construction

    return construction.Quadtree(4, 2, 3, torch.Generator().manual_seed(1)).double()


def test_a_small_tree_is_summed_over_all_its_states():
    import construction

    tree = construction.Quadtree(2, 2, 3, torch.Generator().manual_seed(1)).double()
    x = every_image(4, 2).view(-1, 2, 2)
    root, leaf = tree.root.softmax(dim=0), tree.tables[0].softmax(dim=-1)
    by_hand = [
        sum(root[z] * torch.stack([leaf[c, z, v] for c, v in enumerate(pixels)]).prod() for z in range(3))
        for pixels in x.flatten(1)
    ]  # fmt: skip
    torch.testing.assert_close(tree.log_prob(x).exp(), torch.stack(by_hand), rtol=1e-12, atol=0)
    assert math.isclose(sum(by_hand).item(), 1, rel_tol=1e-12)


def test_three_layers_have_the_likelihood_of_sixteen_steps(tree):
    import construction

    x = torch.randint(0, 2, (20, 4, 4), generator=torch.Generator().manual_seed(2))
    bound = construction.tree_elbo(tree, x)
    torch.testing.assert_close(bound, tree.log_prob(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(bound, tree.chain_rule(x), rtol=1e-12, atol=0)


def test_another_posterior_leaves_the_bound_loose(tree):
    import construction

    x = torch.randint(0, 2, (20, 4, 4), generator=torch.Generator().manual_seed(2))
    assert (construction.tree_elbo(tree, x, exact=False) < tree.log_prob(x) - 1e-3).all()


# The runner


TOY = """'Numbers are added.'
TITLE, PAPER, PAPER_IN_SHORT, RULE = "Toy", "it holds.", "it holds", "More than 0."
def pieces(settings):
    return [{"seed": seed} for seed in settings["seeds"]]
def measure(piece, context):
    log = context.data / "log"
    log.write_text((log.read_text() if log.is_file() else "") + f"{piece['seed']} ")
    if piece["seed"] == context.settings.get("broken"):
        raise ValueError("broken")
    if piece["seed"] == context.settings.get("stopped"):
        import vdvae_repr as vr
        raise vr.Terminated("stopped by SIGTERM")
    return [{"value": piece["seed"] + context.settings["more"]}]
def verdicts(rows, settings):
    from claim import AGREES, DISAGREES, Verdict
    found = rows.value.min()
    return [Verdict("it holds", str(found), AGREES if found > 0 else DISAGREES)]
def in_short(rows):
    return str(rows.value.min())
def summary(rows):
    return rows[["seed", "value"]]
def draw(rows, figure):
    figure.subplots().plot(rows.value)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A claim of three pieces; `run(size)` runs it, and returns which pieces were measured."""
    import claim
    import run

    monkeypatch.setattr(claim, "HERE", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "toy.py").write_text(TOY)
    log = tmp_path / "log"

    def start(settings="", size="local"):
        (tmp_path / "toy.toml").write_text(f"seeds = [1, 2, 3]\nmore = 0\n[{size}]\n{settings}\n")
        log.write_text("")
        good = run.run("toy", size, tmp_path, tmp_path / "work", tmp_path / "out", jobs=1)
        return good, log.read_text().split()

    return start


def test_what_is_done_is_not_done_again(toy, tmp_path):
    assert toy() == (True, ["1", "2", "3"])
    page = (tmp_path / "out" / "toy.md").read_text()
    assert toy() == (True, [])
    assert (tmp_path / "out" / "toy.md").read_text() == page
    assert toy("seeds = [3, 4]") == (True, ["3", "4"])  # other settings: nothing is taken over
    assert pd.read_csv(tmp_path / "out" / "toy.csv").value.tolist() == [3, 4]


def test_a_piece_that_fails_stops_no_other_and_is_done_again(toy, tmp_path, capsys):
    assert toy("broken = 2") == (False, ["1", "2", "3"])
    assert not (tmp_path / "out" / "toy.md").exists()
    assert "seed-2: FAILED (broken)" in capsys.readouterr().out
    assert toy("broken = 2") == (False, ["2"])


def test_a_piece_that_is_ended_by_sigterm_ends_the_run(toy, tmp_path):
    with pytest.raises(vr.Terminated):
        toy("stopped = 2")
    assert (tmp_path / "log").read_text().split() == ["1", "2"]


def test_the_page_says_what_the_rows_say_by_the_rule(toy, tmp_path):
    toy()
    page = (tmp_path / "out" / "toy.md").read_text()
    assert "**At this scale: agrees.**" in page
    assert "More than 0." in page
    assert "Numbers are added." in page
    assert "seeds = [1, 2, 3]" in page
    toy("more = -1")
    assert "**At this scale: disagrees.**" in (tmp_path / "out" / "toy.md").read_text()


def test_the_table_says_what_has_not_been_run(toy, tmp_path):
    import page

    text = "# Title\n\n<!-- claims -->\nbefore\n<!-- end of claims -->\n\nrest\n"
    readme = tmp_path / "README.md"
    readme.write_text(text)
    toy()
    page.write_index(tmp_path / "out", ("toy",), readme)
    row = "| [Toy](../results/claims/toy.md) | it holds | 1 | agrees | "
    assert f"{row}`benchmarks/claims/run.py --size local toy` |" in readme.read_text()
    page.write_index(tmp_path / "nothing", ("toy",), readme)
    found = readme.read_text()
    assert "| Toy | it holds | not run yet | not run yet |" in found
    assert found.startswith("# Title\n\n<!-- claims -->\n")
    assert found.endswith("<!-- end of claims -->\n\nrest\n")
    assert "before" not in found


def test_a_claim_runs_whole(tmp_path, monkeypatch):
    """The constructions, on the embedded digits: from images to the page."""
    import run

    assert run.run("construction", "smoke", tmp_path, tmp_path / "work", tmp_path / "out", jobs=1)
    rows = pd.read_csv(tmp_path / "out" / "construction.csv")
    assert rows.groupby("proposition").layers.first().tolist() == [16, 3]
    assert (
        rows.largest_relative_difference < rows.precision.map({"float64": 1e-12, "float32": 1e-5})
    ).all()
    assert "**At this scale: agrees.**" in (tmp_path / "out" / "construction.md").read_text()


def test_an_interrupted_training_goes_on(tmp_path):
    """A model of one stochastic layer a resolution; the second try starts from the first one's checkpoint."""
    import claim

    settings = claim.read_settings("unpooling", "smoke")
    settings["train"] |= {"steps": 2, "checkpoint_every": 1}
    context = claim.Context(settings, tmp_path, tmp_path)
    source = claim.images(context).select(range(40))
    run = claim.train(context, {}, {"seed": 0}, source)
    run = claim.train(context, {}, {"seed": 0}, source, steps=3)
    log = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert log == [1, 2, 3]


# Rules


def runs(**columns):
    return pd.DataFrame(columns)


def answers(claim, rows, size="local"):
    import claim as shared

    settings = shared.read_settings(claim, size)
    return [verdict.answer for verdict in shared.module(claim).verdicts(rows, settings)]


@pytest.mark.parametrize(
    ("bits", "expected"),
    [([4.0, 3.9, 3.8], "agrees"), ([3.8, 3.9, 4.0], "disagrees"), ([3.9, 4.2, 3.9], "not told")],
)
def test_depth_is_judged_by_its_slope(bits, expected):
    rows = [
        {"layers": n, "bits_per_dim": b + noise}
        for noise in (0, 0.01) for n, b in zip((3, 6, 12), bits, strict=True)
    ]  # fmt: skip
    assert answers("depth", pd.DataFrame(rows)) == [expected]


def test_depths_have_equal_parameters_and_the_layers_asked_for():
    import claim
    import depth

    import vdvae_repr as vr

    settings = claim.read_settings("depth", "smoke")
    for layers in (3, 6):
        table = settings["model"] | depth.architecture(settings, layers)
        model = vr.VDVAE(vr.ModelConfig(shift=0.0, scale=1.0, **table))
        assert len(model.layers) == layers
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == pytest.approx(settings["parameters"], rel=0.05)


def unpooled(nearest, warmed, learned, dead=(0, 0, 0)):
    rows = []
    for seed in range(3):
        noise = 0.001 * seed
        for unpool, warm, bits, count in (
            ("nearest", False, nearest, dead[0]),
            ("nearest", True, warmed, dead[1]),
            ("transposed", False, learned, dead[2]),
        ):
            own = {"unpool": unpool, "kl_warmup": warm, "seed": seed, "layers_dead": count}
            rows.append(own | {"bits_per_dim": bits + noise * (1 + (unpool == "nearest"))})
    return pd.DataFrame(rows)


def test_unpooling_is_judged_within_its_margin():
    assert answers("unpooling", unpooled(4.0, 4.0, 4.1, dead=(1, 1, 4))) == ["agrees", "agrees"]
    assert answers("unpooling", unpooled(4.3, 4.0, 4.1, dead=(1, 1, 1))) == [
        "disagrees",
        "not told",
    ]
    assert answers("unpooling", unpooled(4.0, 4.0, 4.1, dead=(3, 1, 0)))[0] == "disagrees"


def test_skipping_is_judged_by_runs_that_are_unstable():
    log = [
        {"step": step, "bits_per_dim": bits, "gradient_norm": 1.0, "skipped": 0}
        for step, bits in ((1, 8), (2, 5), (3, 5.5))
    ]
    import skipping

    assert not skipping.read_log(log, 5.2, spike=1.0)["unstable"]
    assert skipping.read_log(log, 6.5, spike=1.0)["unstable"]  # it ended far above
    assert skipping.read_log(log, None, spike=1.0)["unstable"]  # it was stopped
    assert skipping.read_log(log, None, spike=1.0)["bits_per_dim"] == 8
    assert skipping.read_log(log, 5.2, spike=0.4)["unstable"]  # it rose on the way
    rows = [
        {"lr": 0.01, "skip": skip, "seed": seed, "unstable": not skip, "skipped": 2 * skip, "updates": 1000}
        | {"bits_per_dim": 5 + 0.01 * seed if skip else 6.0}
        for seed in range(5) for skip in (True, False)
    ]  # fmt: skip
    assert answers("skipping", pd.DataFrame(rows)) == ["agrees", "agrees", "agrees"]
    same = pd.DataFrame(rows).assign(unstable=False, bits_per_dim=5.0)
    assert answers("skipping", same) == ["not told", "not told", "agrees"]


def test_the_rivals_are_judged_by_paired_runs_and_times():
    rows = [
        {"model": model, "seed": seed, "last": last, "sample_seconds": seconds}
        | {"bits_per_dim": bits + 0.01 * seed * (model == "vdvae")}
        for seed in (0, 1)
        for model, bits, seconds in (("vdvae", 4.0, 0.1), ("pixelcnn", 4.5, 9.0))
        for last in (True, np.nan)
    ]  # fmt: skip
    assert answers("autoregressive", pd.DataFrame(rows)) == ["agrees", "agrees"]
    swapped = pd.DataFrame(rows).replace({"vdvae": "pixelcnn", "pixelcnn": "vdvae"})
    assert answers("autoregressive", swapped) == ["disagrees", "disagrees"]


def transferred(best, pairs, learned):
    """Accuracies of ten new classes, by what both have more than the network and than random weights."""
    rows = []
    for number in range(10):
        own = {"network": "trained", "division": number % 5, "class": number}
        noise = 0.002 * number
        for shots in (1, 5):
            for place, gain in (("best", best), *((name, pairs) for name in PAIRS)):
                told = {"network": 0.5, "vdvae": 0.3, "both": 0.5 + gain + noise}
                if place == "best":
                    told["both, random VDVAE"] = told["both"] - learned - noise
                rows += [
                    own
                    | {"shots": shots, "place": place, "of": of, "accuracy": value, "weight": 0.25}
                    for of, value in told.items()
                ]
    return pd.DataFrame(rows)


PAIRS = ("8x8", "16x16", "32x32")


def test_transfer_is_judged_over_new_classes():
    told = answers("transfer", transferred(best=0.05, pairs=-0.05, learned=0.1))
    assert told == ["agrees"] * 2 + ["disagrees"] * 2 + ["agrees"] * 2
    import transfer

    assert transfer.least_weights(transferred(0, 0, 0), 1, ["best"], 0.25) == "5 times of 5"
    assert transfer.least_weights(transferred(0, 0, 0), 1, ["8x8", "32x32"], 0.1) == "0 times of 10"
    # where nothing adds, nothing that adds was learned
    assert answers("transfer", transferred(-0.009, -0.009, 0.05)) == ["not told"] * 6
    assert answers("transfer", transferred(0.05, -0.009, -0.05))[4:] == ["disagrees"] * 2
    beside = transferred(0.05, 0.05, 0.05).assign(network="random", accuracy=0.0)
    rows = pd.concat([transferred(-0.05, -0.05, -0.05), beside])
    told = answers("transfer", rows)  # of the trained one alone
    assert told == ["disagrees"] * 4 + ["not told"] * 2


def test_transfer_takes_each_class_as_new_once_and_first_those_of_the_file(tmp_path):
    import claim
    import transfer

    sides = ["base"] * 6 + ["novel"] * 2 + ["val"] * 2
    listed = pd.DataFrame({"class": list("abcdefghij"), "split": sides})
    listed.to_csv(tmp_path / "split.csv", index=False)
    settings = {"groups": 5, "class_split": "{data}/split.csv"}
    context = claim.Context(settings, tmp_path, tmp_path)
    found = transfer.divisions(tuple("abcdefghij"), context)
    assert found[0] == {"novel": ["g", "h"], "val": ["i", "j"], "base": list("abcdef")}
    assert sorted(k for division in found for k in division["novel"]) == list("abcdefghij")
    for division in found:
        assert sorted(k for side in division.values() for k in side) == list("abcdefghij")


def test_transfer_keeps_what_the_task_scores_and_chooses_by_other_classes(tiny, people, tmp_path):
    import transfer

    import vdvae_repr as vr

    source = people(6, 8)
    stores = [
        vr.extract(tiny, source, tmp_path / f"{r}.h5", layers=f"{r}x{r}", pool="avg:4")
        for r in (4, 8)
    ]
    split = tmp_path / "split.csv"
    sides = ["novel"] * 3 + ["val"] * 3 + ["base"] * 2
    pd.DataFrame({"class": stores[0].label_names, "split": sides}).to_csv(split, index=False)
    settings = {"ways": 2, "queries": 3, "episodes": 30, "seed": 0, "weights": [0.5, 1.0]}
    settings["pairs"] = {"8x8": "4x4.0"}
    base = np.isin(np.array(stores[0].label_names)[source.labels], stores[0].label_names[6:])
    division = transfer.Division(0, split, base, 1, settings)
    every = division.alone(stores[0], upto=False)
    task = vr.FewShot(ways=2, shots=1, queries=3, episodes=30, class_split=split)
    rows = vr.probe(
        stores[0], task, selections="single", heads=transfer.HEAD, controls=(), cache=None
    ).rows
    assert [choice.row for choice in every] == [*(row.layer for row in rows), "all"]
    (row,) = [row for row in rows if row.chosen]
    assert transfer.best(every[:-1]).row == row.layer
    assert set(every[0].by_class) == set(stores[0].label_names[:3])
    X = stores[0].matrix("4x4.0")[0][base]
    found = transfer.spread(stores[0], ("4x4.0",), base)
    assert found == pytest.approx(X.var(axis=0).sum() ** 0.5, rel=1e-5)
    ours = division.alone(stores[1], upto=True)
    told = pd.DataFrame(division.rows(stores[1], stores[1], stores[0], ours))
    assert told.groupby(["place", "of"]).size().to_dict() == {
        ("best", "vdvae"): 3,
        ("best", "network"): 3,
        ("best", "both"): 3,
        ("best", "both, random VDVAE"): 3,
        ("8x8", "vdvae"): 3,
        ("8x8", "network"): 3,
        ("8x8", "both"): 3,
    }
    by_kind = told[told.place == "best"].pivot(index="class", columns="of", values="accuracy")
    assert by_kind["both"].equals(by_kind["both, random VDVAE"])  # here they are one store
    alone = told[(told.place == "8x8") & (told.of == "network")].set_index("class").accuracy
    assert alone.to_dict() == next(c for c in every if c.row == "4x4.0").by_class


def test_what_varies_is_divided_into_structure_and_texture():
    import where

    rng = np.random.default_rng(0)
    blocks = rng.normal(size=(6, 2, 4, 4, 3)).repeat(2, axis=2).repeat(2, axis=3)
    texture = rng.normal(size=(6, 2, 8, 8, 3))
    texture -= (
        texture.reshape(6, 2, 4, 2, 4, 2, 3).mean(axis=(3, 5)).repeat(2, axis=2).repeat(2, axis=3)
    )
    structure, rest = where.variances(blocks, 4)
    assert (structure > 0.5).all()
    np.testing.assert_allclose(rest, 0, atol=1e-12)
    structure, rest = where.variances(texture, 4)
    np.testing.assert_allclose(structure, 0, atol=1e-12)
    total = (blocks + texture).var(axis=0, ddof=1).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(sum(where.variances(blocks + texture, 4)), total)


def test_ssim_of_flat_images_is_that_of_their_means():
    import where

    a, b = (np.full((16, 16, 3), level, np.uint8) for level in (100, 150))
    assert where.ssim(a, a) == pytest.approx(1)
    c1 = 2.55**2
    assert where.ssim(a, b) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))


# What is committed


def test_committed_pages_are_those_of_their_tables():
    import page
    import run

    for size, place in run.PLACES.items():
        for name in run.CLAIMS if size != "smoke" else ():
            if (place / f"{name}.csv").is_file():
                rows, settings = page.read_rows(name, place), page.read_settings(name, size)
                pictures = sorted(p.name for p in place.glob(f"{name}_*.png"))
                text = (place / f"{name}.md").read_text(encoding="utf-8")
                assert page.page(name, size, rows, settings, pictures) == text, name
                assert (place / f"{name}.png").is_file()


def test_readme_holds_the_table_of_what_is_committed():
    import page
    import run

    text = page.README.read_text(encoding="utf-8")
    own = text.split("<!-- claims -->")[1].split("<!-- end of claims -->")[0].strip()
    assert own == page.index(run.RESULTS, run.CLAIMS, page.LINKS)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (("agrees", "agrees"), "agrees"),
        (("disagrees", "not told"), "1 disagrees, 1 not told"),
        (("agrees", "disagrees", "not told"), "in part: 1 agrees, 1 disagrees, 1 not told"),
        (("agrees", "not told", "not told"), "in part: 1 agrees, 2 not told"),
    ],
)
def test_a_claim_that_fails_is_not_called_partly_right(answers, told):
    from claim import Verdict, overall

    assert overall([Verdict("what", "figures", answer) for answer in answers]) == told
