"""The answer of a probe: what it says follows from rows and comparisons alone, in 30 lines of 80 columns."""

from itertools import product

import pytest

from vdvae_repr.probing.report import Report
from vdvae_repr.report.summary import answer, asked_of, lead
from vdvae_repr.results import UNDECIDED, Comparison, Result

VERDICTS = ("better", "worse", "no difference told")


def row(layer, value, score, head="ridge", model="faces64", **columns):
    known = {
        "task": "face_id", "protocol": "closed-set", "source": "s", "dims": 10, "n_train": 20, "n_test": 20,
        "metric": "rank1", "chance": 0.05, "feature": "mean",
        "selection": "single" if layer and "x" in layer else "cumulative",
    }  # fmt: skip
    told = known | {"role": "model"} | columns
    return Result(head=head, model=model, layer=layer, value=value, training_score=score, **told)


def beaten(layer, value, rival, difference, head="ridge", verdict="better", **columns):
    known = {
        "task": "face_id", "protocol": "closed-set", "n_train": 20, "model": "faces64", "feature": "mean",
        "selection": "single", "pool": None, "metric": "rank1", "at": None, "versus_layer": None,
        "versus_dims": 10, "diff_low": difference - 0.05, "diff_high": difference + 0.05, "p_raw": 0.01,
        "p_value": 0.03, "units": 20, "why": None,
    }  # fmt: skip
    told = known | columns
    return Comparison(
        head=head, layer=layer, value=value, versus=rival, versus_value=value - difference,
        difference=difference, verdict=verdict, **told,
    )  # fmt: skip


def three(head="ridge", **columns):
    """The best of test data is picked by nobody; training data pick `0:3`, and `8x8.0` of single layers."""
    return [
        row("4x4.0", 0.9, 0.1, head, **columns),
        row("8x8.0", 0.35, 0.5, head, **columns),
        row("0:3", 0.61, 0.7, head, chosen=True, versus="pca", difference=0.11, **columns),
    ]


def test_what_is_shown_was_picked_by_training_data_and_the_rival_is_the_worst():
    found = [beaten("0:3", 0.61, "pixels", 0.3), beaten("0:3", 0.61, "pca", 0.11)]
    text = answer(three(), found, ["face_id: 20 people"], ["more heads: knn"])
    lines = text.splitlines()
    assert lines[0] == "face_id: 20 people"
    assert lines[1].split() == ["picked", "single", "picked", "set", "best", "control"]
    assert lines[2].split() == ["ridge", "8x8.0", ".350", "0:3", ".610*", "pca", ".500"]
    assert lines[3].strip() == "better than every control: +.110 [.060, .160] beside pca"
    assert lines[4] == "rank1, chance .050 · picked by training data, * compared"
    assert ".900" not in text


@pytest.mark.parametrize("verdict", VERDICTS)
def test_it_says_the_verdict_in_words(verdict):
    found = [beaten("0:3", 0.61, "pca", -0.11, verdict=verdict, p_value=0.07)]
    assert f"{verdict}" in answer(three(), found)
    assert "-.110 [-.160, -.060] beside pca" in answer(three(), found)


@pytest.mark.parametrize(
    ("p_values", "difference", "said"),
    [
        (
            (0.07, 0.01),
            0.11,
            "no difference told (p .070 after Holm): +.110 [.060, .160] beside pca",
        ),
        ((0.07, 0.01), 0.04, "no difference told: +.040 [-.010, .090] beside pca"),
        ((None, None), 0.11, "no difference told (no p): +.110 [.060, .160] beside pca"),
        (
            (0.01, 0.2),
            0.11,
            "no difference told (p .200 beside pixels): +.110 [.060, .160] beside pca",
        ),
    ],
)
def test_where_the_interval_leaves_out_0_and_nothing_is_told_it_says_the_p(
    p_values, difference, said
):
    found = [
        beaten("0:3", 0.61, rival, gap, verdict=VERDICTS[2], p_value=p)
        for rival, gap, p in zip(("pca", "pixels"), (difference, 0.3), p_values, strict=True)
    ]
    assert answer(three(), found).splitlines()[2].strip() == said


@pytest.mark.parametrize(
    ("verdict", "difference", "said"),
    [
        (
            "better",
            0.11,
            "The model is better than each of them; nearest, raw pixels: +.110 [.060, .160].",
        ),
        ("worse", -0.11, "The model is worse than raw pixels: -.110 [-.160, -.060]."),
        (VERDICTS[2], 0.04, "No difference from raw pixels can be told: +.040 [-.010, .090]."),
    ],
)
def test_the_sentence_names_what_every_control_reaches(verdict, difference, said):
    found = [
        beaten("0:3", 0.61, rival, gap, verdict=verdict)
        for rival, gap in (("random-init", 0.3), ("pixels", difference))
    ]
    asked = list(asked_of(three(), found))
    sentence = lead(asked).sentence
    singles = [row for row in asked[0].own if row.selection == "single"]
    first = max(singles, key=lambda row: row.training_score)
    alone = f"Of single layers {first.layer} was first on training data: {first.value:.3f}. "
    alone += "4x4.0 alone scored 0.900 on the test images, but nothing seen before them said so. "
    controls = f"random weights .310, raw pixels {0.61 - difference:.3f}"
    told = f"(chance .050). {alone}Controls reach: {controls}. ".replace(" 0.", " .")
    assert sentence.endswith(told + said)


def test_the_lead_names_what_a_set_holds_as_far_as_rows_tell():
    two = [
        row("1x1.0", 0.2, 0.3),
        row("4x4.0", 0.3, 0.4),
        row("0:2", 0.4, 0.5, chosen=True),
    ]
    assert lead(list(asked_of(two, []))).sentence.startswith(
        "The first 2 layers together (0:2, 1x1.0 to 4x4.0) of faces64 reach"
    )
    sentence = lead(list(asked_of(three(), []))).sentence  # of 0:3 two rows alone tell the layers
    assert sentence.startswith("The first 3 layers together (0:3) of faces64 reach")


@pytest.mark.parametrize(("metric", "said"), [("rank1", False), ("error", True)])
def test_a_single_layer_that_did_better_on_test_images_is_named(metric, said):
    """Of rank 1 the single layer at .3 is worse than the set at .4; of an error it is better."""
    rows = [row("8x8.0", 0.3, 0.1, metric=metric)]
    rows.append(row("0:3", 0.4, 0.5, metric=metric, chosen=True))
    sentence = lead(list(asked_of(rows, []))).sentence
    assert ("8x8.0 alone scored .300 on the test images" in sentence) is said


def test_the_lead_says_at_most_two_other_heads_and_counts_the_rest():
    heads = {"own": "better", "knn": "worse", "svm": "better", "mlp": UNDECIDED, "sgd": "better"}
    rows = [row("8x8.0", 0.5, 0.5 - 0.1 * n, head, chosen=True) for n, head in enumerate(heads)]
    found = [beaten("8x8.0", 0.5, "pixels", 0.1, head, said) for head, said in heads.items()]
    asked = list(asked_of(rows, found))
    others = " By knn .500, worse than raw pixels. By svm .500, better than every control."
    assert lead(asked).sentence.endswith(f"{others} And 2 more heads below.")
    assert lead([asked[0], asked[3]]).sentence.endswith(
        " By mlp .500, no difference told beside raw pixels."
    )
    assert " By " not in lead(asked[:1]).sentence


def test_of_errors_it_says_that_lower_is_better():
    rows = [row("0:3", 0.355, 0.5, metric="error", chance=0.95, chosen=True)]
    text = answer(rows, [beaten("0:3", 0.355, "pixels", 0.145, metric="error")])
    assert "error, lower is better, chance .950 · * the only row, and compared" in text
    assert "better than every control: +.145" in text


def test_where_nothing_is_picked_it_says_so_and_what_is_compared():
    rows = [row("8x8.0", 0.3, None), row("0:3", 0.4, None, dims=30, versus="pca")]
    text = answer(rows, [beaten("0:3", 0.4, "pca", 0.1, selection="cumulative")])
    said = " ".join(text.splitlines()[:2])
    assert said.startswith("No row is picked, as no data are set apart to choose on")
    assert "0:3, is compared, which is no choice" in said
    assert "*" not in text
    assert text.splitlines()[2].split() == ["single", "set", "best", "control"]
    assert "is shown, which is no choice" in " ".join(answer(rows, []).splitlines()[:2])


def test_too_few_to_tell_and_controls_that_did_not_run_are_said_before_the_figures():
    rows = three(controls_left_out="pca, shuffled-labels")
    why = "4 independent units are too few for a test, which takes 6"
    found = [beaten("0:3", 0.61, "pixels", 0.1, verdict=VERDICTS[2], why=why, p_value=None)]
    lines = answer(rows, found).splitlines()
    assert lines[:2] == [f"No p: {why}.", "Not run, so not beaten: pca."]


def test_models_beside_are_named():
    other = row("layer4", 0.7, 0.6, model="timm:resnet50", chosen=True)
    text = answer([*three(), other], [beaten("0:3", 0.61, "pca", 0.1)])
    assert "ridge beside: timm:resnet50 layer4 .700" in text


def test_a_model_beside_is_compared_in_words():
    other = row("layer4", 0.7, 0.6, model="timm:resnet50", chosen=True)
    versus = beaten("0:3", 0.61, "timm:resnet50", -0.09, verdict="worse")
    text = answer([*three(), other], [beaten("0:3", 0.61, "pca", 0.1)], others=[versus])
    words = "ridge beside: timm:resnet50 layer4 .700 (worse than it: -.090 [-.140, -.040])"
    assert words in text.replace("\n", " ")


@pytest.mark.parametrize("heads", [1, 5, 12, 40])
def test_it_fits_whatever_it_is_of_and_cuts_no_figure(heads):
    """Of up to forty heads with long names, several parts, features and poolings."""
    rows, found = [], []
    for number, shots in product(range(heads), (1, 5)):
        head = f"head-of-a-very-long-name-indeed-{number}"
        told = {"n_train": 5 * shots, "at": shots, "feature": "prior_log_std", "pool": "avg:4"}
        rows += three(head, task="few_shot", metric="accuracy", **told)
        found.append(
            beaten("0:3", 0.61, "random-init", 0.11, head, VERDICTS[2], task="few_shot", **told)
        )
    text = answer(rows, found, [f"few_shot: {'x' * 100}"] * 12, ["every row: --rows"])
    lines = text.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    shown = [line for line in lines if "~" in line and ".610*" in line]
    assert all("random .500" in line for line in shown)
    assert len(shown) >= min(2 * heads, 5)


def test_notes_stand_below_the_figures_as_far_as_there_is_room():
    found = [beaten("0:3", 0.61, "pca", 0.11)]
    notes = ["gallery: split train; 20 images of no split left out", "y" * 90, "short"]
    lines = answer(three(), found, footer=["every row: --rows"], notes=notes).splitlines()
    wrapped = [f"- {notes[0]}", "- " + "y" * 78, "  " + "y" * 12, "- short"]
    assert lines[-5:] == [*wrapped, "every row: --rows"]
    many = answer(three(), found, notes=["note " * 30] * 40).splitlines()
    assert len(many) == 30
    assert max(map(len, many)) <= 80
    assert many[-1] == f"  and {80 - 25} lines more: report.notes"
    assert any(".610*" in line for line in many)


def test_a_printed_report_says_its_notes_but_where_scores_are_kept():
    notes = ["gallery: split train, probe: split test", "scores are kept in s.h5.scores"]
    report = Report(rows=three(), comparisons=[beaten("0:3", 0.61, "pca", 0.11)], notes=notes)
    assert f"- {notes[0]}" in str(report).splitlines()
    assert "are kept" not in str(report)
    assert notes[0] not in report.answer()  # which the command line prints beneath them


def test_of_nothing_it_says_so():
    assert answer([], []) == "nothing was scored"
