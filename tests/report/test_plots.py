import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import vdvae_repr as vr
from vdvae_repr.output import is_own
from vdvae_repr.report import pictures
from vdvae_repr.results import CONTROLS, Confusion, Curve, Result, table

LAYERS = ["1x1.0", "4x4.0", "4x4.1", "8x8.0", "8x8.1", "8x8.2"]
TOGETHER = ["<=1x1", "<=4x4", "<=8x8"]


def row(model, head, value, layer=None, **columns):
    defaults = {
        "task": "face_id", "protocol": "closed-set", "source": "people", "metric": "rank1", "dims": 16,
        "feature": "mean" if layer else None, "selection": "single" if layer else None,
        "n_train": 100, "n_test": 100,
        "chance": 0.1, "ci_low": value - 0.05, "ci_high": value + 0.03,
    }  # fmt: skip
    return Result(model=model, head=head, value=value, layer=layer, **(defaults | columns))


def run(heads=("knn", "ridge"), names=LAYERS, chosen=3, **columns):
    """Rows as a task makes them; knn's first, values by layer random."""
    rng = np.random.default_rng(len(names))
    rows = []
    for head in heads:
        for index, name in enumerate(names):
            value = 0.4 + rng.random() / 10
            rows.append(row("faces64", head, value, name, chosen=index == chosen, **columns))
            rows.append(row("random-init", head, value - 0.2, name, chosen=index == 0, **columns))
        for size, value in ((8, 0.3), (16, 0.36), (32, 0.33)):
            rows.append(row("pca", head, value, dims=size, chosen=size == 32, **columns))
        rows.append(row("pixels", head, 0.28 if head == "knn" else 0.27, **columns))
        rows.append(row("shuffled-labels", head, 0.11, names[0], **columns))
    return rows


def few_shot(shots, ways=5, **options):
    return run(
        task="few_shot", protocol="few-shot", metric="accuracy", chance=1 / ways, n_train=ways * shots,
        **options,
    )  # fmt: skip


def curve(kind, x, y, model="faces64", **columns):
    return Curve(kind=kind, head="ridge", model=model, layer=None, x=x, y=y, **columns)


def confused(classes, counts):
    return Confusion(
        head="ridge", n_train=60, model="faces64", layer="8x8.0", selection="single", feature="mean",
        pool=None, classes=tuple(classes), counts=np.array(counts),
    )  # fmt: skip


def line(ax, label):
    (found,) = (artist for artist in ax.lines if artist.get_label() == label)
    return found


def values(rows, **columns):
    return [r.value for r in rows if all(getattr(r, name) == v for name, v in columns.items())]


def stars(ax):
    drawn = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    return np.concatenate([np.zeros((0, 2)), *drawn]).tolist()


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


DRAWN = {
    "layers": lambda ax: vr.plot.layers(run(), ax=ax),
    "layers, one head": lambda ax: vr.plot.layers(run(), "rank1", "ridge", ax),
    "layers together": lambda ax: vr.plot.layers(run(names=TOGETHER, chosen=1), ax=ax),
    "one layer": lambda ax: vr.plot.layers(run(names=["8x8.0"], chosen=0), ax=ax),
    "cumulative": lambda ax: vr.plot.cumulative(run(names=TOGETHER, chosen=1), [2, 40, 900], ax=ax),
    "shots": lambda ax: vr.plot.shots([*few_shot(1), *few_shot(5)], ax=ax),
    "cmc": lambda ax: vr.plot.cmc([curve("cmc", [1, 2, 3], [0.4, 0.6, 0.7])], ax),
    "roc": lambda ax: vr.plot.roc([curve("roc", [0, 0.01, 1], [0.2, 0.4, 1])], ax),
    "detection": lambda ax: vr.plot.detection([curve("dir", [0, 0.01, 1], [0.2, 0.4, 1])], ax),
    "similarity": lambda ax: vr.plot.similarity(np.eye(6), LAYERS, ax=ax),
    "confusion": lambda ax: vr.plot.confusion(confused("ab", [[1, 2], [0, 4]]), ax),
    "factors": lambda ax: vr.plot.factors(np.full((6, 2), 0.5), LAYERS, ["pose", "hair"], ax),
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_on_the_axes_given_or_on_its_own(name, tmp_path):
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    assert DRAWN[name](right) is right
    assert not left.has_data()
    assert right.has_data()
    assert right.get_xlabel()
    assert right.get_ylabel()
    own = DRAWN[name](None)
    assert own.figure is not figure
    own.figure.savefig(tmp_path / "plot.png")
    if own.get_legend():  # beside the data
        own.figure.canvas.draw()
        assert own.get_legend().get_window_extent().x0 >= own.get_window_extent().x1


def test_layers_are_drawn_from_the_coarsest_with_the_rows_values():
    rows = run(names=LAYERS[::-1])
    ax = vr.plot.layers(rows)
    assert [text.get_text() for text in ax.get_xticklabels()] == LAYERS
    for head in ("knn", "ridge"):
        x, y = line(ax, head).get_data()
        assert list(x) == list(range(6))
        assert list(y) == values(rows, model="faces64", head=head)[::-1]
    assert line(ax, "knn").get_color() != line(ax, "ridge").get_color()


def test_intervals_are_those_of_the_rows():
    rows = run(["knn"])
    ax = vr.plot.layers(rows)
    (area,) = (c for c in ax.collections if len(c.get_paths()[0].vertices) > 2 * len(LAYERS))
    own = [r for r in rows if r.model == "faces64"]
    corners = {tuple(np.round(v, 9)) for v in area.get_paths()[0].vertices}
    for x, r in enumerate(own):
        assert {(x, round(r.ci_low, 9)), (x, round(r.ci_high, 9))} <= corners
    assert "95 % interval" in legend(ax)
    without = vr.plot.layers([row("faces64", "knn", 0.5, "1x1.0", ci_low=None, ci_high=None)])
    assert "95 % interval" not in legend(without)


@pytest.mark.parametrize("chosen", [0, 4])
def test_the_star_is_at_the_chosen_layer(chosen):
    rows = run(chosen=chosen)
    expected = [[chosen, r.value] for r in rows if r.model == "faces64" and r.chosen]
    assert stars(vr.plot.layers(rows)) == expected
    assert stars(vr.plot.layers(rows, head="ridge")) == expected[1:]
    none = vr.plot.layers(run(chosen=None))
    assert stars(none) == []
    assert "chosen without test data" not in legend(none)


def test_bands_cover_the_resolutions():
    ax = vr.plot.layers(run())
    extents = [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches]
    assert [(box.x0, box.x1) for box in extents] == [
        pytest.approx(ends) for ends in ((-0.5, 0.5), (0.5, 2.5), (2.5, 5.5))
    ]
    assert [(text.get_text(), text.get_position()[0]) for text in ax.texts] == [
        ("1x1", 0), ("4x4", 1.5), ("8x8", 4),
    ]  # fmt: skip
    assert not vr.plot.layers(run(names=TOGETHER)).patches


def test_controls_are_drawn_at_their_chosen_row_or_at_their_best():
    ax = vr.plot.layers(run(), head="ridge")
    assert set(line(ax, "pca").get_ydata()) == {0.33}  # chosen, though 0.36 is there
    assert set(line(ax, "pixels").get_ydata()) == {0.27}  # not chosen, the only one
    assert set(line(ax, "shuffled-labels").get_ydata()) == {0.11}
    assert set(line(ax, "chance").get_ydata()) == {0.1}
    assert line(ax, "chance").get_linestyle() == ":"
    random = values(run(), model="random-init", head="ridge")
    assert list(line(ax, "random-init").get_ydata()) == random
    both = vr.plot.layers(run())
    assert set(line(both, "pixels, best head").get_ydata()) == {0.28}
    errors = [row("faces64", "knn", 0.3, "1x1.0", metric="error")]
    errors += [row("pca", "knn", value, metric="error") for value in (0.5, 0.4)]
    ax = vr.plot.layers(errors)
    assert set(line(ax, "pca").get_ydata()) == {0.4}  # the best error is the lowest
    assert "lower is better" in ax.get_ylabel()


def test_layers_taken_together_are_drawn_in_the_order_of_the_rows():
    rows = run(["knn"], names=["0:4", "<=4x4", "0:12"])
    ax = vr.plot.layers(rows)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0:4", "<=4x4", "0:12"]
    assert list(line(ax, "faces64").get_ydata()) == values(rows, model="faces64")
    both = vr.plot.layers(run(names=["<=8x8", "8x8.1", "<=4x4", "8x8.0"]))
    names = [text.get_text() for text in both.get_xticklabels()]
    assert names == ["8x8.0", "8x8.1", "<=8x8", "<=4x4"]


def test_the_first_metric_is_drawn_unless_another_is_asked_for():
    rows = [*run(), *run(["knn"], metric="rank5", chance=0.5)]
    assert vr.plot.layers(rows).get_ylabel() == "rank-1 identification rate"
    ax = vr.plot.layers(rows, metric="rank5")
    assert ax.get_ylabel() == "rank-5 identification rate"
    assert set(line(ax, "chance").get_ydata()) == {0.5}


def test_panels_hold_what_layers_draws_of_each_head():
    rows = run()
    panels = [ax for ax in vr.plot.layer_panels(rows).axes if ax.has_data()]
    for head, panel in zip(("knn", "ridge"), panels, strict=True):
        alone = vr.plot.layers(rows, head=head)
        assert panel.get_title(loc="left") == head
        assert [a.get_label() for a in panel.lines] == [a.get_label() for a in alone.lines]
        for drawn, expected in zip(panel.lines, alone.lines, strict=True):
            assert drawn.get_color() == expected.get_color()
            assert list(drawn.get_ydata()) == list(expected.get_ydata())
    (shown,) = panels[0].figure.legends
    assert [text.get_text() for text in shown.get_texts()] == [
        "faces64", "pixels", "pca", "random-init", "shuffled-labels", "chance", "95 % interval",
        "chosen without test data",
    ]  # fmt: skip


def test_cumulative_is_drawn_over_the_nats_given():
    rows = run(names=TOGETHER, chosen=2)
    ax = vr.plot.cumulative(rows, np.array([2.0, 40, 900]))
    assert ax.get_xscale() == "log"
    assert "nats an image" in ax.get_xlabel()
    assert list(line(ax, "ridge").get_xdata()) == [2, 40, 900]
    assert list(line(ax, "ridge").get_ydata()) == values(rows, model="faces64", head="ridge")
    assert [x for x, _ in stars(ax)] == [900, 900]
    named = [(text.get_text(), text.get_position()[0]) for text in ax.texts]
    assert named == list(zip(TOGETHER, [2, 40, 900], strict=True))
    close = vr.plot.cumulative(rows, [2, 900, 900.1])
    assert [text.get_text() for text in close.texts] == TOGETHER[
        :2
    ]  # the third would cover the second
    assert vr.plot.cumulative(rows, [0, 40, 900]).get_xscale() == "linear"
    for wrong in ([2, 40], [2, 40, -1], [2, 40, np.nan], 3):
        with pytest.raises(vr.TaskError, match="expected 3 nats"):
            vr.plot.cumulative(rows, wrong)


def test_shots_are_those_of_the_layer_that_validation_chose():
    rows = [*few_shot(5, chosen=2), *few_shot(1, chosen=3)]
    ax = vr.plot.shots(rows)
    x, y = line(ax, "ridge (8x8.0, 4x4.1)").get_data()
    assert list(x) == [1, 5]
    one, five = (
        values(rows, model="faces64", head="ridge", chosen=True, n_train=n) for n in (5, 25)
    )
    assert list(y) == one + five
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "5"]
    assert ax.get_ylabel() == "accuracy, 5 ways"
    assert set(line(ax, "pca, best head").get_ydata()) == {0.33}


def test_shots_never_pick_the_best_layer_on_the_test_classes():
    rows = few_shot(1, chosen=None)
    with pytest.raises(vr.TaskError, match=r"no chosen layer; pass layer=, one of 1x1.0, 4x4.0"):
        vr.plot.shots(rows)
    ax = vr.plot.shots(rows, layer="8x8.1")
    assert list(line(ax, "knn (8x8.1)").get_ydata()) == values(
        rows, model="faces64", head="knn", layer="8x8.1"
    )
    random = max(values(rows, model="random-init", layer="8x8.1"))
    assert list(line(ax, "random-init, best head").get_ydata()) == [random]


def areas(ax):
    """Corners of the areas that are filled, by color."""
    return {
        to_hex(c.get_facecolor()[0][:3]): {tuple(v) for v in c.get_paths()[0].vertices.tolist()}
        for c in ax.collections
    }


def test_curves_are_drawn_with_bands_and_figures():
    x, y = np.array([0, 1e-3, 1e-1, 1]), np.array([0.1, 0.4, 0.8, 1])
    known = curve("roc", x, y, low=y - 0.1, high=y + 0.1, figures={"AUC": 0.8234, "EER": 0.2})
    control = curve("roc", x, y / 2, "random-init", low=y / 3, high=y)
    ax = vr.plot.roc([known, control, curve("cmc", [1, 2], [0.5, 1])])
    drawn = line(ax, "faces64 (AUC 0.823, EER 0.200)")
    assert np.array_equal(drawn.get_xydata(), np.stack([x, y], axis=1))
    assert ax.get_xscale() == "log"
    assert ax.get_xlim() == pytest.approx((1e-2, 1))  # of 1,000 impostors ten
    assert np.array_equal(*line(ax, "chance").get_data())
    ((color, corners),) = areas(ax).items()  # of the model alone
    assert color == to_hex(drawn.get_color())
    assert {(0.1, y[2] - 0.1), (0.1, y[2] + 0.1)} <= corners
    assert "95 % interval" in legend(ax)
    open_set = vr.plot.detection([curve("dir", x, y), control_of("dir")])
    assert "identification" in open_set.get_ylabel()
    assert open_set.get_xlim() == pytest.approx((1e-2, 1))


def control_of(kind):
    return curve(kind, [0, 0.5, 1], [0.1, 0.2, 0.3], "pixels")


def test_cmc_ends_at_its_last_rank_where_guesses_are_right_too():
    ax = vr.plot.cmc([curve("cmc", [1, 2, 3, 4], [0.2, 0.4, 0.5, 1])])
    assert ax.get_xlim() == (1, 4)
    assert line(ax, "chance").get_xydata().tolist() == [[1, 0.25], [4, 1]]
    assert legend(ax) == ["faces64", "chance"]


def test_controls_are_told_apart_by_line_and_marker_and_never_by_greys():
    axes = [
        vr.plot.layers(run(["knn"])),
        vr.plot.cmc([curve("cmc", [1, 2], [0.5, 1], name) for name in CONTROLS]),
    ]
    for ax in axes:
        looks = {
            name: (line(ax, name).get_linestyle(), line(ax, name).get_marker()) for name in CONTROLS
        }
        styles = {(*map(str, (line(ax, n)._unscaled_dash_pattern, looks[n][1])),) for n in CONTROLS}
        assert len(styles) == len(CONTROLS) == len({marker for _, marker in looks.values()})
        assert {to_hex(line(ax, name).get_color()) for name in CONTROLS} == {"#000000"}


def with_sets(chosen="0:3", **columns):
    """Rows as probe makes them: each single layer is followed by all layers up to it."""
    rows = []
    for head in ("knn", "ridge"):
        for index, name in enumerate(LAYERS):
            rows.append(
                row("faces64", head, 0.3 + index / 100, name, chosen=name == chosen, **columns)
            )
            if index:
                label = f"0:{index + 1}"
                kind = {"selection": "cumulative", "chosen": label == chosen} | columns
                rows.append(row("faces64", head, 0.4 + index / 100, label, **kind))
        sets = {"selection": "without", "chosen": chosen == "1x1,8x8"} | columns
        rows.append(row("faces64", head, 0.2, "1x1,8x8", **sets))
    return rows


def test_layers_up_to_one_are_drawn_at_it_and_starred_where_they_are_chosen():
    ax = vr.plot.layers(with_sets(), head="ridge")
    x, y = line(ax, "faces64, all layers up to it").get_data()
    assert list(x) == [1, 2, 3, 4, 5]
    assert list(y) == [0.4 + index / 100 for index in range(1, 6)]
    assert stars(ax) == [[2, pytest.approx(0.42)]]
    assert [text.get_text() for text in ax.get_xticklabels()] == [*LAYERS, "1x1,8x8"]
    left_out = vr.plot.layers(with_sets("1x1,8x8"), head="ridge")
    assert stars(left_out) == [[6, 0.2]]


def test_what_is_saved_holds_the_star_of_a_set(tmp_path):
    for chosen, names in (("0:3", LAYERS), ("1x1,8x8", [*LAYERS, "1x1,8x8"])):
        kept = pictures._by_layer(with_sets(chosen))
        ax = vr.plot.layers(kept, head="knn")
        assert len(stars(ax)) == 1
        assert [text.get_text() for text in ax.get_xticklabels()] == names


def test_models_beside_are_in_the_plot_under_their_files_name():
    same = [row("other", "ridge", 0.6, name) for name in LAYERS]
    network = [row("timm:net", "ridge", 0.7, name, feature="activation") for name in ("a", "b")]
    called = {"other": "other (b.h5)", "timm:net": "timm:net (c.h5)"}
    rows = [*run(["ridge"]), *same, *network]
    ax = vr.plot.layers(rows, called=called)
    assert list(line(ax, "other (b.h5)").get_xdata()) == list(range(6))  # layers of equal names
    assert list(line(ax, "timm:net (c.h5)").get_xdata()) == [6, 7]
    assert [text.get_text() for text in ax.get_xticklabels()] == [*LAYERS, "a", "b"]
    colors = {line(ax, name).get_color() for name in ("faces64", *called.values())}
    assert len(colors) == 3
    (panels,) = (p for p in vr.plot.layer_panels(rows, called=called).axes if p.has_data())
    assert line(panels, "timm:net (c.h5)")


def test_names_above_panels_stay_off_titles_and_off_other_panels():
    """Sets of layers, and a model beside of a long name, as `--atlas --beside` draws."""
    beside = [
        row("timm:test_resnet@random", h, 0.6, f"act{i}") for h in ("a", "b") for i in range(6)
    ]
    rows = [*run(["a", "b"]), *beside]
    rows += [row("faces64", head, 0.5, "30 % by kl", selection="pruned") for head in ("a", "b")]
    called = {"timm:test_resnet@random": "timm:test_resnet@random (Bt.h5)"}
    figure = vr.plot.layer_panels(rows, called=called)
    figure.draw_without_rendering()  # a layout that collapses warns, which is an error here
    panels = [ax for ax in figure.axes if ax.has_data()]
    boxes = [ax.get_window_extent() for ax in panels]
    for ax in panels:
        title, *_ = (t for t in ax.get_children() if getattr(t, "get_text", str)() in ("a", "b"))
        names = [text.get_window_extent() for text in ax.texts]
        assert len(names) == 5
        assert not any(box.overlaps(name) for box in boxes for name in names)
        above = title.get_window_extent()
        assert not any(above.overlaps(other) for other in [*names, *boxes])
        assert 0 < above.y0 - ax.get_window_extent().y1 < 60


def test_few_shot_has_a_panel_a_head_and_a_column_of_shots():
    rows = [*few_shot(5), *few_shot(1)]
    titles = [ax.get_title(loc="left") for ax in vr.plot.layer_panels(rows).axes if ax.has_data()]
    assert titles == ["knn, 1 shot", "knn, 5 shots", "ridge, 1 shot", "ridge, 5 shots"]
    panels = [ax for ax in vr.plot.shot_panels(rows).axes if ax.has_data()]
    assert [ax.get_title(loc="left") for ax in panels] == ["knn", "ridge"]
    for ax in panels:
        assert list(line(ax, "faces64 (8x8.0)").get_xdata()) == [1, 5]
        assert line(ax, "pixels")
    assert "shots" in table(rows).splitlines()[0].split()


def test_a_report_draws_what_it_holds():
    rows = with_sets(task="face_id")
    nats = {"1x1.0": 1.0} | {f"0:{k}": float(k) for k in range(2, 7)}
    curves = [curve(kind, [0.5, 1], [0.5, 1]) for kind in ("cmc", "roc", "dir")]
    plot = vr.Report(rows=rows, curves=curves, nats=nats).plot
    spent = plot.cumulative(head="ridge")
    assert list(line(spent, "faces64").get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert stars(spent) == [[3, pytest.approx(0.42)]]
    assert plot.layers(head="knn").get_ylabel() == spent.get_ylabel()
    for ax in (plot.cmc(), plot.roc("ridge"), plot.detection()):
        assert line(ax, "faces64")
    factors = [
        row("m", f"ridge:{name}", 0.5, "1x1.0", task="factors", metric="r2") for name in "ab"
    ]
    shown = vr.Report(rows=factors).plot.factors()
    assert [label.get_text() for label in shown.get_xticklabels()] == ["a", "b"]


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_figures_are_written_in_each_format_known_as_ours_and_always_the_same(kind, tmp_path):
    for name in ("a", "b"):
        vr.Report(rows=run()).save(tmp_path / name, formats=[kind])
    path = tmp_path / "a" / f"layers.{kind}"
    assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert is_own(path)
    if kind == "png":
        with Image.open(path) as picture:
            assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    vr.Report(rows=run()).save(tmp_path / "a")  # takes the place of what was there
    kinds = sorted(p.suffix for p in (tmp_path / "a").iterdir())
    assert kinds == [".csv", ".html", ".json", ".jsonl", ".png"]
    path.write_bytes(b"a figure of someone's own")
    if kind != "png":
        with pytest.raises(vr.TaskError, match=f"layers.{kind}: exists"):
            vr.Report(rows=run()).save(tmp_path / "a")


def test_an_unknown_format_is_refused():
    with pytest.raises(vr.TaskError, match="formats: expected png, pdf, svg, found 'jpg'"):
        vr.Report(rows=run()).save("nowhere", formats=["jpg"])


def test_similarity_shows_the_matrix_from_0_to_1_with_lines_between_resolutions():
    matrix = np.random.default_rng(0).random((6, 3))
    ax = vr.plot.similarity(matrix, LAYERS, LAYERS[:3], models=("faces64", "other"))
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("layer of faces64", "layer of other")
    (image,) = ax.images
    assert np.array_equal(image.get_array(), matrix)
    assert image.get_clim() == (0, 1)
    across = [a.get_ydata()[0] for a in ax.lines if a.get_ydata()[0] == a.get_ydata()[1]]
    down = [a.get_xdata()[0] for a in ax.lines if a.get_xdata()[0] == a.get_xdata()[1]]
    assert (across, down) == ([0.5, 2.5], [0.5])
    assert [text.get_text() for text in ax.get_yticklabels()] == LAYERS
    assert [text.get_text() for text in ax.get_xticklabels()] == LAYERS[:3]
    shuffled = vr.plot.similarity(matrix, LAYERS, LAYERS[:3], shuffled=[[-0.02, 0.031]])
    assert shuffled.get_title(loc="left") == "Similarity of layers (images shuffled: -0.02 to 0.03)"


def test_a_confusion_shows_shares_of_each_true_class_and_writes_counts():
    counts = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    ax = vr.plot.confusion(confused(["cat", "dog", "owl"], counts))
    (image,) = ax.images
    np.testing.assert_allclose(image.get_array(), [[0.75, 0.25, 0], [0.25, 0.75, 0], [0, 0, 0]])
    assert image.get_clim() == (0, 1)
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {(0, 0): "6", (1, 0): "2", (0, 1): "1", (1, 1): "3"}  # x is what is predicted
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    for names in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [text.get_text() for text in names] == ["cat", "dog", "owl"]
    assert ax.get_title(loc="left") == "ridge, 8x8.0: 9 of 12 test images are told right"
    report = vr.Report(rows=run(), confusions=[confused("ab", np.eye(2)), confused("abc", counts)])
    report.confusions[0] = replace(report.confusions[0], head="knn")
    assert len(report.plot.confusion().get_xticklabels()) == 2
    assert len(report.plot.confusion("ridge").get_xticklabels()) == 3


@pytest.mark.parametrize("number", [2, 9, 20, 40, 41, 500])
@pytest.mark.parametrize("name", ["", "a name as long as that of one of ImageNet's"])
def test_a_confusion_of_any_number_of_classes_is_legible_or_leaves_names_out(number, name):
    counts = np.full((number, number), 7) + 1000 * np.eye(number, dtype=int)
    ax = vr.plot.confusion(confused([f"{k}{name}" for k in range(number)], counts))
    ax.figure.canvas.draw()
    assert len(ax.texts) == (number**2 if number <= 20 else 0)
    shown = ax.get_xticklabels(), ax.get_yticklabels()
    assert {len(names) for names in shown} == {number if number <= 40 else 0}
    for names in shown:
        boxes = [text.get_window_extent() for text in names]
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))
        assert all(text.get_fontsize() >= 5 for text in names)
    for one, other in pairwise(ax.texts[:number]):  # counts side by side
        assert not one.get_window_extent().overlaps(other.get_window_extent())
    assert min(ax.get_window_extent().size) > 200  # pixels, of 100 an inch


def test_factors_writes_the_numbers_into_the_cells():
    matrix = np.arange(12).reshape(6, 2) / 12
    matrix[0, 0] = np.nan
    ax = vr.plot.factors(matrix, LAYERS, ["pose", "hair"], metric="r2")
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {
        (j, i): f"{matrix[i, j]:.2f}"[1:] for i in range(6) for j in range(2) if (i, j) != (0, 0)
    }
    ax = vr.plot.factors(matrix, LAYERS, ["pose", "hair"], chance={"hair": 0.25})
    np.testing.assert_allclose(ax.images[0].get_array()[:, 1], (matrix[:, 1] - 0.25) / 0.75)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["pose", "hair (chance 0.25)"]


def test_factors_have_plain_names_and_their_groups_stand_above():
    names = ["identity_eye_size", "identity_jaw", "nuisance_light", "age_group"]
    ax = vr.plot.factors(np.full((6, 4), 0.5), LAYERS, names)
    shown = [label.get_text() for label in ax.get_xticklabels()]
    assert shown == ["eye size", "jaw", "light", "age group"]
    above = {t.get_text(): t.get_position()[0] for t in ax.texts if t.get_position()[1] > 1}
    assert {name: above[name] for name in ("identity", "nuisance")} == {
        "identity": 0.5,
        "nuisance": 2,
    }


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: vr.plot.layers([]), "found none"),
        (lambda: vr.plot.layers(run(), metric="auc"), "no metric 'auc'; pass metric=, one of rank1"),
        (lambda: vr.plot.layers(run(), head="tree"), "no head 'tree'; pass head=, one of knn, ridge"),
        (lambda: vr.plot.layers([row("pixels", "knn", 0.5)]), "rows of pixels alone"),
        (lambda: vr.plot.layers([*run(), *run(feature="delta")]), "one feature, found mean, delta"),
        (lambda: vr.plot.layers([*run(), *run(source="others")]), "one source, found people, others"),
        (lambda: vr.plot.layers([*few_shot(1), *few_shot(5)]), "one row of layer 1x1.0 by knn, found 2"),
        (lambda: vr.plot.layers([*run(), *run()]), "one row of layer 1x1.0 by knn, found 2"),
        (lambda: vr.plot.layer_panels([]), "found none"),
        (lambda: vr.plot.shots(run()), "protocol few-shot, found none"),
        (lambda: vr.plot.shots(few_shot(1), layer="7x7.0"), "no layer '7x7.0'; pass layer="),
        (lambda: vr.plot.shots([*few_shot(1), *few_shot(1, 20)]), "one number of ways, found 5, 20"),
        (lambda: vr.plot.cmc([]), "curves of kind 'cmc', found none"),
        (lambda: vr.plot.cmc({"a": ([1, 2], [0.5, 1])}), "expected a list of curves, found dict"),
        (lambda: vr.plot.cmc([curve("cmc", [1, 2], [0.5])]), "faces64: expected arrays of one length"),
        (lambda: vr.plot.roc([curve("roc", [0.0], [0.5])]), "false accept rates above zero"),
        (lambda: vr.plot.similarity(np.eye(5), LAYERS), "6 rows and 6 columns"),
        (lambda: vr.plot.confusion(confused("ab", np.eye(3))), "2 rows and 2 columns"),
        (lambda: vr.Report(rows=run()).plot.confusion(), "expected a report of classification"),
        (
            lambda: vr.Report(confusions=[confused("ab", np.eye(2))]).plot.confusion("knn"),
            "expected one of the heads ridge, found knn",
        ),
        (lambda: vr.plot.factors(np.ones((6, 3)), LAYERS, ["pose"]), "6 rows and 1 columns"),
    ],
)  # fmt: skip
def test_what_makes_no_picture_is_refused_in_one_line(draw, message):
    with pytest.raises(vr.TaskError, match=message) as caught:
        draw()
    assert "\n" not in str(caught.value)


def test_factors_of_one_layer_have_room_for_their_names(tmp_path):
    names = [f"nuisance_background_{i}" for i in range(23)]
    ax = vr.plot.factors(np.full((1, 23), 0.5), ["4x4.0"], names, metric="r2")
    ax.figure.savefig(tmp_path / "one.png")  # a warning of no room would be an error
    assert ax.get_window_extent().height > 20


def test_plots_need_neither_torch_nor_pyplot():
    code = (
        "import sys, vdvae_repr as vr; from vdvae_repr.results import Curve; vr.plot.layers; vr.Report; "
        "from vdvae_repr.report import pictures; assert 'matplotlib' not in sys.modules; "
        "vr.plot.cmc([Curve('cmc', 'h', 'm', None, [1, 2], [0.5, 0.6])]); "
        "print([m for m in ('torch', 'sklearn', 'matplotlib.pyplot') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


NAMES = (
    "$x$",
    "$",
    r"a$b$\frac{1}",
    "\u732b",
    "\x1b[2J",
    "a\nb",
    "_hidden",
    "x" * 300,
    "\u202eabc",
    "\udc80",
    "",
)


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn_as_text(name):
    """As titles, labels, ticks and legends, without a warning, a formula or a line break."""
    rows = [
        row(name or "m", f"{name}{head}", 0.5, f"{name}{index}", source=name)
        for head in "ab"
        for index in range(10)
    ]
    axes = [
        vr.plot.layers(rows),
        vr.plot.cumulative(rows, range(10)),
        vr.plot.similarity(np.eye(10), [f"{name}{i}" for i in range(10)], models=(name, name)),
        vr.plot.factors(np.eye(10), [name] * 10, [f"{name}{i}" for i in range(10)], metric=name),
        vr.plot.cmc([curve("cmc", [1, 2], [0.5, 1], f"{name}a")]),
        vr.plot.confusion(confused([f"{name}{i}" for i in range(10)], np.eye(10))),
    ]
    for figure in [ax.figure for ax in axes] + [vr.plot.layer_panels(rows[:10])]:
        figure.canvas.draw()
        for text in figure.findobj(Text):
            shown, is_formula = text._preprocess_math(text.get_text())
            assert not is_formula
            assert "\n" not in shown
    labels = axes[0].get_legend_handles_labels()[1]
    assert len(labels) >= 2  # of both heads


def test_a_dollar_and_letters_of_a_font_stay():
    assert vr.plot.drawable("caf\u00e9 \u03b2") == "caf\u00e9 \u03b2"
    assert Text(0, 0, vr.plot.drawable("$5")).get_text() == r"\$5"


@pytest.mark.parametrize("name", ["a/b", "..", "a\nb", "light (left)", "x" * 300])
def test_pictures_of_factors_have_names_that_a_file_may_have(name, tmp_path):
    from vdvae_repr.report.pictures import _file_name

    made = _file_name("rate_accuracy", f"ridge:{name}", "mean")
    (tmp_path / f"{made}.png").touch()
    assert [path.name for path in tmp_path.iterdir()] == [f"{made}.png"]
    assert made != _file_name("rate_accuracy", f"ridge:{name}_", "mean")
