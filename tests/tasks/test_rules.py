"""Rules of a fair comparison: what is fitted, chosen and resampled, against scikit-learn and by hand."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler, normalize

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.heads.few_shot import HEADS
from vdvae_repr.heads.linear import LogisticProbe
from vdvae_repr.probing.controls import RandomTwin, pca
from vdvae_repr.probing.engine import Entry, _choose
from vdvae_repr.probing.features import Columns, Features
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.task import Scored
from vdvae_repr.tasks.identification import Identification

PEOPLE, EACH = 6, 12  # of a person's images every second is for training, and two make a run
LABELS = np.repeat(np.arange(PEOPLE), EACH)
EVEN = np.arange(PEOPLE * EACH) % 2 == 0
SIDES = {"base": (0, 1), "val": (2, 3), "novel": (4, 5)}


@pytest.fixture(scope="module")
def store(tiny, tmp_path_factory):
    """Images of noise, which say nothing of the six people, by LFW's names and in six runs."""
    images = np.random.default_rng(0).integers(0, 256, (len(LABELS), 16, 16, 3), dtype=np.uint8)
    names = tuple(f"P{person:02d}" for person in range(PEOPLE))
    source = Source(
        name="noise",
        ids=tuple(f"{name}/{name}_{i:04d}.png" for name in names for i in range(1, EACH + 1)),
        reader=lambda index: images[index],
        labels=LABELS,
        label_names=names,
        splits=tuple(np.where(EVEN, "train", "test")),
        factors={"run": np.tile(np.arange(EACH) // 2, PEOPLE)},
    )
    return vr.extract(tiny, source, tmp_path_factory.mktemp("rules") / "s.h5", layers="1x1")


@pytest.fixture(scope="module")
def class_split(tmp_path_factory):
    path = tmp_path_factory.mktemp("split") / "split.csv"
    lines = [f"P{k:02d},{side}" for side, classes in SIDES.items() for k in classes]
    path.write_text("\n".join(["class,split", *lines]) + "\n")
    return path


def few_shot(store, **options):
    return vr.FewShot(**({"queries": 4, "episodes": 15} | options)).bind(store)


def made_of(X):
    return Features("made", None, (Columns.of_array("made", X.astype(np.float32)),))


def separable(classes, seed=0):
    """Features of noise, in which some classes lie far from one another."""
    X = np.random.default_rng(seed).normal(size=(len(LABELS), PEOPLE))
    return X + 100 * np.eye(PEOPLE)[LABELS] * np.isin(LABELS, classes)[:, None]


def scored(outcome, training_score=None):
    return Scored(Features("made", None, ()), np.asarray(outcome), training_score)


# What is chosen, and what it is compared with


def test_the_best_training_score_is_chosen():
    """The highest is marked, the first of equals, and nothing else."""
    entries = [Entry((scored([0], score),)) for score in (0.2, None, 0.7, 0.7, 0.1)]
    assert [entry.chosen for entry in _choose(entries)] == [False, False, True, False, False]


def test_of_initialisations_the_mean_training_score_chooses():
    """One lucky draw does not choose a layer; what may not be chosen is not."""
    luck, steady = (
        Entry(tuple(scored([0], s) for s in draws)) for draws in ((1, 0, 0), (0.5,) * 3)
    )
    never = Entry((scored([0], 0.9),), choosable=False)
    assert [entry.chosen for entry in _choose([luck, steady, never])] == [False, True, False]


@pytest.mark.parametrize("best", ["pixels", "pca", "random-init"])
def test_a_row_is_compared_with_every_rival_and_carries_the_worst(store, monkeypatch, best):
    """Of PCA with the size that training data chose, not with the one that tests best."""
    (layer,) = store.layers

    def score(self, head, features, seed, shuffled=False):
        hits = 30 if features.model == best else 12 if features.model == "tiny" else 20
        if features.model == "pca" and features.dims != layer.num_dims:
            hits = 36
        ranks = np.where(np.random.default_rng(hits).permutation(36) < hits, 0, 5)
        return replace(scored(ranks, training_score=-features.dims), features=features)

    monkeypatch.setattr(Identification, "score", score)
    report = vr.probe(store, "face_id", heads=["nearest-neighbor"], cache=None)
    found = {c.versus: c for c in report.comparisons}
    assert set(found) == {"pixels", "pca", "random-init"}
    assert found["pca"].versus_dims == layer.num_dims
    for versus, comparison in found.items():
        hits = 30 if versus == best else 20
        assert comparison.difference == pytest.approx((12 - hits) / 36)
        assert comparison.p_value >= comparison.p_raw
    (row,) = [row for row in report.rows if row.versus]
    worst = found[best]
    assert (row.model, row.chosen, row.versus) == ("tiny", True, best)
    assert (row.difference, row.diff_low, row.diff_high, row.p_value) == (
        worst.difference, worst.diff_low, worst.diff_high, worst.p_value,
    )  # fmt: skip


def test_what_is_worse_than_a_control_is_said_to_be_worse(tiny, tmp_path, people):
    """As 0.100 beside pixels 0.317, which read as a win with p 0.0026."""
    source = people(20, num_people=10)
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1")
    task = vr.Classification()
    problem = task.bind(store)
    right = {"tiny": 10, "pixels": 32}

    def score(features):
        ranks = np.where(np.random.default_rng(0).permutation(100) < right[features.model], 0, 9)
        outcome = [ranks, np.zeros_like(ranks)]  # and which class is predicted
        return replace(scored(outcome, training_score=0.5), features=features)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Identification, "score", lambda self, head, features, *a: score(features))
        report = vr.probe(store, task, heads=["ridge"], controls=("pixels",), cache=None)
    (comparison,) = report.comparisons
    assert problem.n_test == 100
    assert (comparison.verdict, comparison.value, comparison.versus_value) == ("worse", 0.10, 0.32)
    assert comparison.diff_high < 0
    assert comparison.p_value < 0.01


def test_chance_of_noise_in_unequal_classes_is_the_larger(tiny, tmp_path):
    """Of 90 and 10 images of noise a guess is right in 90 %, and balanced in half; of two, no top 5."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 16, 16, 3), dtype=np.uint8)
    source = Source(
        name="noise",
        ids=tuple(f"{i}" for i in range(200)),
        reader=lambda i: images[i],
        labels=np.tile(np.arange(10) == 9, 20).astype(np.int64),
        label_names=("many", "few"),
        splits=("train",) * 100 + ("test",) * 100,
    )
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1")
    rows = vr.probe(store, "classification", heads=["ridge"], controls=(), cache=None).rows
    chance = {row.metric: row.chance for row in rows}
    assert chance == {"accuracy": pytest.approx(0.9), "balanced_accuracy": 0.5}
    assert {row.interval for row in rows if row.metric == "accuracy"} == {"wilson"}


def test_few_shot_layers_are_chosen_on_val_classes(store, class_split):
    """Where val classes alone are separable the training score is 1, where novel ones are, accuracy is."""
    problem = few_shot(store, ways=2, class_split=class_split)
    val, novel = (
        problem.score(problem.heads["nearest-prototype"], made_of(separable(SIDES[side])), seed=0)
        for side in ("val", "novel")
    )
    assert val.training_score == 1
    assert val.outcome.shape == (15, 2, 4)  # episodes, ways, queries
    assert val.outcome.mean() < 0.7
    assert novel.training_score < 0.7
    assert novel.outcome.mean() == 1
    trained = np.concatenate([episode.classes for episode in problem.training])
    assert set(trained) == set(SIDES["val"])


# What is fitted, and on what


def test_cl2n_centres_on_what_is_outside(store, class_split):
    """Centred on the base classes, or on those outside the episode, accuracies are scikit-learn's."""
    X = separable([]) + 0.7 * np.random.default_rng(1).normal(size=(PEOPLE, PEOPLE))[LABELS]

    def accuracies(problem, centre):
        for episode in problem.episodes:
            own = normalize(X - X[centre(episode)].mean(axis=0))
            y, truth = np.repeat(range(problem.ways), 2), np.repeat(range(problem.ways), 4)
            head = NearestCentroid().fit(own[episode.support], y)
            yield np.mean(head.predict(own[episode.query]) == truth)

    for options, centre in (
        ({"ways": 4}, lambda episode: ~np.isin(LABELS, episode.classes)),
        ({"ways": 2, "class_split": class_split}, lambda _: np.isin(LABELS, SIDES["base"])),
    ):
        problem = few_shot(store, shots=2, **options)
        outcome = problem.score(problem.heads["simpleshot-cl2n"], made_of(X), seed=0).outcome
        found = outcome.mean(axis=(1, 2))
        np.testing.assert_allclose(found, list(accuracies(problem, centre)))
        everything = list(accuracies(problem, lambda _: slice(None)))
        assert not np.allclose(found, everything)  # the data can tell


@pytest.mark.parametrize("name", list(HEADS))
@pytest.mark.parametrize("dims", [6, 200])  # by columns, and by inner products
def test_episodes_at_once_are_episodes_one_by_one(store, class_split, name, dims, monkeypatch):
    """A copy of the head is a user's estimator, which is fitted on each episode by itself."""
    rng = np.random.default_rng(dims)
    centres = rng.normal(size=(PEOPLE, dims)) * 2 / np.sqrt(dims)
    X = (centres[LABELS] + rng.normal(size=(len(LABELS), dims))) * rng.uniform(0.5, 2, dims) + 3
    for options in ({"ways": 4}, {"ways": 2, "class_split": class_split}):
        problem = few_shot(store, shots=2, **options)
        (components, *_) = few_shot(store, shots=2, **options).pca(X, [5])
        loop = Head(name, clone(HEADS[name]))
        for features in (made_of(X), components):
            for shuffled in (False, True):
                expected = problem.score(loop, features, 1, shuffled)
                for size in (2**28, 1):  # together, and one by one
                    monkeypatch.setattr("vdvae_repr.tasks.few_shot.BATCH_BYTES", size)
                    found = problem.score(problem.heads[name], features, 1, shuffled)
                    np.testing.assert_array_equal(found.outcome, expected.outcome)
                    assert found.training_score == expected.training_score


PIXELS = np.random.default_rng(0).normal(size=(len(LABELS), 30))


def components(problem):
    """Return the five leading ones that a problem makes of `PIXELS`."""
    (found,) = next(f for f in problem.pca(PIXELS, [5]) if f.dims == 5).columns[0].blocks()
    return found


def are_components(found, fitted, items=slice(None)):
    """Check that they are scikit-learn's, but for signs, fitted on rows `fitted`."""
    expected = PCA(5, svd_solver="full").fit(PIXELS[fitted]).transform(PIXELS[items])
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)


def test_few_shot_pca_is_of_classes_outside(store, class_split):
    """It is fitted on the base classes; without a split, for each episode on the classes not in it."""
    problem = few_shot(store, ways=3)
    for found, episode in zip(components(problem), problem.episodes, strict=True):
        items = np.concatenate([episode.support, episode.query])
        are_components(found, ~np.isin(LABELS, episode.classes), items)
    split = few_shot(store, ways=2, class_split=class_split)
    are_components(components(split), np.isin(LABELS, SIDES["base"]))


def test_pca_of_the_other_tasks_is_of_training_images(store):
    """Gallery, training images and known drawings are what it is fitted on."""
    for task in (vr.FaceId(), vr.Classification()):
        are_components(components(task.bind(store)), EVEN)
    are_components(components(vr.OmniglotOneShot().bind(store)), EVEN)
    open_set = vr.FaceId(protocol="open-set", far=[0.6]).bind(store)
    strangers = np.isin(LABELS, LABELS[open_set.split.test[open_set.stranger]])
    are_components(components(open_set), EVEN & ~strangers)


def test_dimensions_are_pruned_on_base_images(store, class_split):
    """With a class split nothing is learned of val and novel images."""
    fitted = few_shot(store, ways=2, class_split=class_split).fitted
    assert sorted(fitted) == np.flatnonzero(np.isin(LABELS, SIDES["base"])).tolist()


# What is resampled


def p_is_scipys(problem, head, one, other, unit):
    """Check p of two outcomes against all permutations within units, by their summed differences."""
    a, b = (problem.items(problem.metrics[0], scored(x)) for x in (one, other))
    gaps = np.array([(a.adds - b.adds)[unit == k].sum() for k in np.unique(unit)]) / a.shares.sum()
    theirs = permutation_test(
        (gaps, np.zeros(len(gaps))), lambda x, y: np.sum(x - y), permutation_type="samples",
        n_resamples=np.inf,
    )  # fmt: skip
    found = problem.compare([scored(one)], [scored(other)], problem.heads[head], 0)
    assert found.p == pytest.approx(theirs.pvalue)
    assert abs(found.value) == pytest.approx(abs(gaps.sum()))
    assert found.units == len(gaps)
    assert found.low < found.value < found.high


def test_faces_resample_people_and_classes_images(store):
    """Of three people always told and three never, intervals are wide; of as many images, narrow."""
    faces, classes = vr.FaceId().bind(store), vr.Classification().bind(store)
    ranks = np.where(LABELS[faces.split.test] < 3, 0, PEOPLE - 1)
    (figure,) = faces.figures("rank1", [[scored(ranks)]], 0)
    assert (figure.low, figure.high) == pytest.approx(tuple(binomtest(3, 6).proportion_ci()))
    assert (figure.units, figure.interval) == (6, "clopper-pearson")
    predicted = np.zeros_like(ranks)
    (figure,) = classes.figures("accuracy", [[scored([ranks, predicted])]], 0)
    wilson = binomtest(18, 36).proportion_ci(method="wilson")
    assert (figure.low, figure.high) == pytest.approx(tuple(wilson))
    assert (figure.units, figure.interval) == (36, "wilson")


def test_p_of_faces_and_of_drawings_is_that_of_people_and_of_runs(store):
    """Images of a person, and queries of a run, change sides together."""
    faces = vr.FaceId().bind(store)
    drawings = vr.OmniglotOneShot().bind(store)
    person, run = LABELS[faces.split.test], store.factors["run"][drawings.split.test]
    for problem, unit, head in ((faces, person, "ridge"), (drawings, run, "ridge")):
        one, other = (np.isin(unit, units).astype(int) for units in ((0, 1, 2, 3), (4,)))
        p_is_scipys(problem, head, one, other, unit)


def test_few_shot_is_of_classes_however_many_episodes(store):
    """Ten times the episodes of the same images change neither interval nor p but by what they draw."""
    X = made_of(separable([0, 1, 2]) + np.random.default_rng(5).normal(size=(len(LABELS), PEOPLE)))
    noise = made_of(separable([], seed=1))
    for episodes in (30, 300):
        problem = few_shot(store, ways=3, episodes=episodes)
        head = problem.heads["nearest-prototype"]
        one, other = (problem.score(head, features).outcome for features in (X, noise))
        asked = np.concatenate([episode.query for episode in problem.episodes])
        right = [o.ravel().astype(float) for o in (one, other)]
        gaps = np.array([(right[0] - right[1])[LABELS[asked] == k].sum() for k in range(PEOPLE)])
        theirs = permutation_test(
            (gaps, np.zeros(6)), lambda x, y: np.sum(x - y), permutation_type="samples"
        )
        found = problem.compare([scored(one)], [scored(other)], head, 0)
        assert (found.p, found.units) == (pytest.approx(theirs.pvalue), PEOPLE)
        assert found.value == pytest.approx(one.mean() - other.mean())
        (figure,) = problem.figures("accuracy@1", [[scored(one)]], 0)
        assert figure.value == pytest.approx(one.mean())
        assert figure.high - figure.low > 0.4  # of six classes
        assert figure.se == pytest.approx(one.mean(axis=(1, 2)).std(ddof=1) / episodes**0.5)


def test_p_of_open_set_is_that_of_known_people_at_the_thresholds_found(store):
    """Unknown people only set the threshold; three known ones are too few for a test."""
    problem = vr.FaceId(protocol="open-set", far=[0.6]).bind(store)
    rng = np.random.default_rng(3)
    stranger = problem.stranger
    score = rng.normal(size=problem.n_test) + 2 * ~stranger
    own = ~stranger & (rng.random(problem.n_test) < 0.9)
    threshold = np.sort(score[stranger])[::-1][int(0.6 * stranger.sum())]
    items = problem.items("dir@0.6", scored(np.stack([score, own])))
    expected = np.where(~stranger, own & (score > threshold), 0) / (~stranger).sum()
    np.testing.assert_allclose(items.adds / items.shares.sum(), expected)
    (figure,) = problem.figures("dir@0.6", [[scored(np.stack([score, own]))]], 0)
    assert figure.value == pytest.approx(expected.sum())
    found = problem.compare(
        [scored(np.stack([score, own]))],
        [scored(np.stack([-score, own]))],
        problem.heads["ridge"],
        0,
    )
    assert (found.units, found.p) == (3, None)
    assert found.why == "3 independent units are too few for a test, which takes 6"


def test_p_of_verification_is_that_of_people(store, tmp_path):
    """A pair changes sides with its person, one of two people with both; the difference counts it once."""
    for name, i in (("test", 1), ("train", 3)):
        lines = [f"P{k:02d}\t{i}\t{i + 1}" for k in range(PEOPLE)]
        lines += [f"P{k:02d}\t{i}\tP{(k + 1) % PEOPLE:02d}\t{i + 1}" for k in range(PEOPLE)]
        (tmp_path / f"{name}.txt").write_text("\n".join([str(PEOPLE), *lines]) + "\n")
    lists = {"pairs": tmp_path / "test.txt", "pairs_train": tmp_path / "train.txt"}
    problem = vr.FaceVerification(**lists).bind(store)
    same = problem.test.same

    def outcome(right):
        return scored(np.stack([np.where(right, same, ~same), np.full(same.shape, 0.5), same]))

    one, other = np.ones((2, len(same)), bool)
    other[[0, 1, 2, PEOPLE]] = False  # pairs of 0, 1 and 2, and of 0 with 1
    found = problem.compare([outcome(one)], [outcome(other)], problem.heads["cosine"], 0)
    of_people = np.array([2, 2, 1])  # each of the three, and the pair of two with either of them
    flips = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1)
    assert found.p == pytest.approx(np.mean(np.abs(of_people @ flips) >= 4))
    assert found.value == pytest.approx(4 / 12)
    (figure,) = problem.figures("accuracy", [[outcome(other)]], 0)
    assert (figure.value, figure.units) == (pytest.approx(8 / 12), PEOPLE)


# Controls


def test_shuffled_labels_leave_chance(store):
    """Features that tell everyone tell no more than chance once training labels are shuffled."""
    X = made_of(separable(range(PEOPLE)))
    faces = vr.FaceId().bind(store)
    drawings = vr.OmniglotOneShot().bind(store)
    for problem, name in ((faces, "nearest-neighbor"), (drawings, "nearest-prototype")):

        def right(seed, shuffled, problem=problem, head=problem.heads[name]):
            return np.mean(problem.score(head, X, seed, shuffled).outcome == 0)

        assert right(0, False) == 1
        assert np.mean([right(seed, True) for seed in range(10)]) == pytest.approx(1 / 6, abs=0.1)


def test_random_weights_are_those_of_the_seed(store):
    """The untrained twin is the same for a seed, and another for another."""
    found = []
    for seed in (0, 0, 1):
        with RandomTwin(store, ["1x1.0"], ["mean"], seed) as twin:
            found.append(twin.store.matrix("1x1.0")[0])
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0.1 * np.abs(found[0]).max()


def test_a_model_that_is_random_has_other_twins(tiny, tmp_path, people):
    """Its own weights are the twin's of seed 0: another initialisation takes their place."""
    from vdvae_repr.model.weights import random_weights

    model = random_weights(tiny.config, "tiny", 0).eval()
    store = vr.extract(model, people(4), tmp_path / "s.h5", layers="1x1")
    own, found = store.matrix("1x1.0")[0], []
    for seed in range(3):
        with RandomTwin(store, ["1x1.0"], ["mean"], seed) as twin:
            found.append(twin.store.matrix("1x1.0")[0])
    for number, features in enumerate(found):
        assert not np.allclose(features, own)
        assert not any(np.allclose(features, other) for other in found[:number])


def test_random_init_is_the_mean_of_three(store):
    """Its value is that of three stores of its own, seed by seed; shuffled-labels has 20 permutations."""
    controls = ("random-init", "shuffled-labels")
    rows = vr.probe(store, "face_id", heads=["ridge"], controls=controls, cache=None, seed=4).rows
    value = {r.model: r.value for r in rows if r.metric == "rank1"}
    problem, found = vr.FaceId().bind(store), []
    head = problem.heads["ridge"]
    for seed in (4, 5, 6):
        with RandomTwin(store, ["1x1.0"], ["mean"], seed) as twin:
            X = made_of(twin.store.matrix("1x1.0")[0])
            found.append(np.mean(problem.score(head, X, 4).outcome == 0))
    assert value["random-init"] == pytest.approx(np.mean(found))
    X = made_of(store.matrix("1x1.0")[0])
    shuffled = [np.mean(problem.score(head, X, seed, True).outcome == 0) for seed in range(4, 24)]
    assert value["shuffled-labels"] == pytest.approx(np.mean(shuffled))


# Refusals, and the linear head


def test_a_store_without_labels_is_refused(tiny, images, tmp_path):
    """Tasks that need classes say so in one line."""
    bare = vr.extract(tiny, images, tmp_path / "s.h5", layers="1x1")
    for task, found in (
        ("face_id", "2 labelled people, found 0"),
        (vr.FaceId(protocol="open-set"), "found 0 in the gallery"),
        ("classification", "2 labelled classes, found 0"),
    ):
        with pytest.raises(vr.TaskError, match=found) as refused:
            vr.probe(bare, task)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
def test_linear_head_predicts_what_scikit_learn_predicts(C):
    """With more dimensions than samples, wherever the two highest decision values differ by 1e-4."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 5
    X = rng.normal(size=(60, 200)) + 0.4 * rng.normal(size=(5, 200))[y]
    new = rng.normal(size=(5000, 200))
    scaler = StandardScaler().fit(X)
    # L-BFGS stops short of the optimum where C is large.
    theirs = LogisticRegression(C=C, solver="newton-cg", tol=1e-10, max_iter=10_000)
    values = theirs.fit(scaler.transform(X), y).decision_function(scaler.transform(new))
    second, first = np.sort(values, axis=1)[:, -2:].T
    clear = first - second > 1e-4
    assert clear.mean() > 0.99
    ours = LogisticProbe(Cs=[C], tol=1e-8).fit(X, y)
    np.testing.assert_array_equal(ours.predict(new)[clear], values.argmax(axis=1)[clear])


def test_pca_has_as_many_dimensions_as_pixels_have_rank():
    """Of images that differ in three ways, three components, however many are asked for."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 50))
    for features in pca(X, np.arange(30), [2, 16, 200]):
        (block,) = features.columns[0].blocks()
        assert features.dims == block.shape[1] <= 3


def test_what_scores_all_rows_alike_picks_none(tiny, tmp_path):
    """A val of one white image, among black and white ones, is told by every row."""
    images = np.zeros((25, 16, 16, 3), np.uint8)
    images[::2] = 255
    images ^= np.random.default_rng(0).integers(0, 32, images.shape, dtype=np.uint8)
    source = Source(
        name="two",
        ids=tuple(f"{i}" for i in range(25)),
        reader=lambda i: images[i],
        labels=np.arange(25) % 2,
        label_names=("white", "black"),
        splits=("train",) * 12 + ("test",) * 12 + ("val",),
    )
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="<=4x4")
    report = vr.probe(store, "classification", heads=["knn"], controls=["pca"], cache=None)
    own = [row for row in report.rows if row.model == "tiny"]
    assert {row.training_score for row in own} == {1.0}
    assert not any(row.chosen for row in own)
    assert {found.layer for found in report.comparisons} == {"0:2"}  # all there is
    text = " ".join(str(report).split())
    assert "No row is picked, as all rows score alike on the data to choose on" in text
    assert "*" not in text
