"""Verification and few-shot tasks: on data whose answer is known, and against direct computations."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq
from scipy.spatial import KDTree
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.preprocessing import normalize

import vdvae_repr as vr
from vdvae_repr.data.faces import read_pairs
from vdvae_repr.data.open import open_source
from vdvae_repr.data.source import Source
from vdvae_repr.probing.features import Columns, Features
from vdvae_repr.probing.head import Head
from vdvae_repr.probing.task import Scored
from vdvae_repr.report import pictures
from vdvae_repr.tasks.few_shot import _gram_pca

PEOPLE, EACH = 12, 8

ATLAS = ("single", "cumulative", "without", "pruned")


def colored(noise, seed=0):
    """People who differ in color by LFW's names, with noise."""
    rng = np.random.default_rng(seed)
    base = rng.integers(40, 215, (PEOPLE, 1, 1, 1, 3))
    spread = rng.integers(-noise, noise + 1, (PEOPLE, EACH, 16, 16, 3))
    images = (base + spread).clip(0, 255).astype(np.uint8).reshape(-1, 16, 16, 3)
    names = [f"P{person:02d}" for person in range(PEOPLE)]
    return Source(
        name="colored",
        ids=tuple(f"{name}/{name}_{number:04d}.png" for name in names for number in range(1, EACH + 1)),
        reader=lambda index: images[index],
        labels=np.repeat(np.arange(PEOPLE), EACH),
        label_names=tuple(names),
    )  # fmt: skip


def write_pairs(path, people, folds, count, seed):
    rng = np.random.default_rng(seed)
    lines = [f"{folds}\t{count}" if folds > 1 else str(count)]
    for fold in range(folds):
        own = people[fold * len(people) // folds : (fold + 1) * len(people) // folds]
        for _ in range(count):
            i, j = rng.choice(EACH, 2, replace=False) + 1
            lines.append(f"P{rng.choice(own):02d}\t{i}\t{j}")
        for _ in range(count):
            a, b = rng.choice(own, 2, replace=False)
            i, j = rng.integers(1, EACH + 1, 2)
            lines.append(f"P{a:02d}\t{i}\tP{b:02d}\t{j}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def faces(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("v")
    store = vr.extract(tiny, colored(60), folder / "s.h5", layers="<=4x4", mirror=True)
    write_pairs(folder / "test.txt", range(6), 1, 120, 0)
    write_pairs(folder / "train.txt", range(6, 12), 1, 120, 1)
    write_pairs(folder / "folds.txt", range(12), 4, 60, 2)
    return store, folder


def test_pairs_of_ones_own_give_the_figures_of_lfws_list(faces, tmp_path):
    """The same pairs as a table: people are those of the labels, which here are those of the names."""
    store, folder = faces
    lists = [read_pairs(folder / f"{name}.txt", store.ids) for name in ("test", "train")]
    lines = ["a,b,same,split"]
    for pairs, split in zip(lists, ("test", "train"), strict=True):
        for row in zip(pairs.first, pairs.second, pairs.same, strict=True):
            lines.append(f"{store.ids[row[0]]},{store.ids[row[1]]},{int(row[2])},{split}")
    (tmp_path / "own.csv").write_text("\n".join(lines) + "\n")
    options = {"layers": "4x4.0", "heads": ["cosine"]}
    own = vr.probe(store, vr.FaceVerification(pairs=tmp_path / "own.csv"), **options).rows
    lfw = vr.probe(
        store,
        vr.FaceVerification(pairs=folder / "test.txt", pairs_train=folder / "train.txt"),
        **options,
    ).rows
    assert len(own) > 4
    for row, other in zip(own, lfw, strict=True):
        assert (row.protocol, other.protocol) == ("pairs", "lfw-view1")
        assert replace(row, seconds=0, protocol="") == replace(other, seconds=0, protocol="")


def test_the_difference_over_folds_is_that_of_the_values(faces, tmp_path):
    """Of folds of several sizes, which count alike in the value, and so in the difference."""
    store, _ = faces
    name = "P{:02d}/P{:02d}_{:04d}.png".format
    rng = np.random.default_rng(0)
    lines = ["a,b,same,fold"]
    for fold, count in enumerate((40, 6, 6)):
        for _ in range(count):
            one, other = 4 * fold + rng.choice(4, 2, replace=False)
            i, j = rng.choice(EACH, 2, replace=False) + 1
            lines.append(f"{name(one, one, i)},{name(one, one, j)},1,{fold}")
            lines.append(f"{name(one, one, i)},{name(other, other, j)},0,{fold}")
    (tmp_path / "own.csv").write_text("\n".join(dict.fromkeys(lines)) + "\n")
    task = vr.FaceVerification(pairs=tmp_path / "own.csv", far=[])
    how = {"layers": "4x4.0", "heads": ["cosine"], "controls": ("pixels", "pca"), "cache": None}
    report = vr.probe(store, task, **how)
    assert {row.protocol for row in report.rows} == {"pairs"}
    folds = task.bind(store).test.fold
    assert len(set(np.bincount(folds))) > 1
    assert len(report.comparisons) == 2
    for found in report.comparisons:
        assert found.value - found.versus_value == pytest.approx(found.difference, abs=1e-12)


def test_view_1_takes_its_threshold_from_the_training_pairs(faces):
    store, folder = faces
    options = {"pairs": folder / "test.txt", "pairs_train": folder / "train.txt"}
    report = vr.probe(store, vr.FaceVerification(**options))
    rows, lines = report.rows, report.notes
    assert "threshold from 240 pairs; with the mirrored" in lines[0]
    assert {row.protocol for row in rows} == {"lfw-view1"}
    problem = vr.FaceVerification(**options).bind(store)
    known, test = problem.choose, problem.test
    X = store.matrix("4x4.0")[0] + store.mirrored().matrix("4x4.0")[0]
    rows_of = np.unique(np.concatenate([known.first, known.second]))
    unit = normalize(X - X[rows_of].mean(axis=0))
    similarity = {
        name: np.sum(unit[pairs.first] * unit[pairs.second], axis=1)
        for name, pairs in (("known", known), ("test", test))
    }
    edges = np.unique(similarity["known"])
    right = [np.mean((similarity["known"] >= edge) == known.same) for edge in edges]
    found = {
        row.metric: row for row in rows
        if (row.head, row.model, row.layer) == ("cosine", "tiny", "4x4.0")
    }  # fmt: skip
    expected = np.mean((similarity["test"] >= edges[np.argmax(right)] - 1e-9) == test.same)
    assert found["accuracy"].value == pytest.approx(expected, abs=0.01)
    assert found["auc"].value == pytest.approx(roc_auc_score(test.same, similarity["test"]))
    far, tar, _ = roc_curve(test.same, similarity["test"], drop_intermediate=False)
    crossing = brentq(lambda x: np.interp(x, far, tar) - (1 - x), 0, 1)
    assert found["eer"].value == pytest.approx(crossing, abs=1e-6)
    assert found["tar"].value == pytest.approx(tar[far <= 0.1].max())
    for metric in ("accuracy", "auc", "eer", "tar"):
        assert found[metric].ci_low <= found[metric].value <= found[metric].ci_high
    assert {row.at for row in rows if row.metric == "tar"} == {
        0.1
    }  # 120 impostors are too few, and the notice says so
    assert "120 impostors are too few for FAR 0.01, 0.001" in lines[0]
    shuffled = [r for r in rows if r.model == "shuffled-labels" and r.metric == "accuracy"]
    assert all(abs(row.value - 0.5) < 0.2 for row in shuffled)
    # The curve of a row passes through its points, with their intervals, and has its AUC and EER.
    for curve in report.curves:
        for row in rows:
            if (row.head, row.model, row.layer) == (curve.head, curve.model, curve.layer) and (
                row.chosen or row.model == "shuffled-labels"
            ):
                if row.metric == "tar":
                    (at,) = np.flatnonzero(np.isclose(curve.x, 0.1))
                    assert curve.y[at] == pytest.approx(row.value)
                    if curve.model == "tiny":
                        assert curve.low[at] <= row.value <= curve.high[at]
                elif row.metric in ("auc", "eer"):
                    assert curve.figures[row.metric.upper()] == pytest.approx(row.value)
    own = next(curve for curve in report.curves if curve.model == "tiny")
    for side in (own.x, own.y, own.low, own.high):
        assert side[-1] == 1 or side is own.low
        assert (np.diff(side) >= 0).all()


def test_resamples_of_people_keep_the_balance_of_the_pair_list(faces):
    store, folder = faces
    options = {"pairs": folder / "test.txt", "pairs_train": folder / "train.txt"}
    problem = vr.FaceVerification(**options).bind(store)
    times = np.concatenate(list(problem.independent("auc", 0).draws()))
    same = problem.test.same
    assert times[:, same].mean() == pytest.approx(1, abs=0.03)
    assert times[:, ~same].mean() == pytest.approx(1, abs=0.03)


def test_view_2_states_standard_error_and_deviation_over_folds(faces):
    store, folder = faces
    rows = vr.probe(
        store, vr.FaceVerification(pairs=folder / "folds.txt"), layers="4x4.0", heads=["cosine"]
    ).rows
    row = next(row for row in rows if row.model == "tiny" and row.metric == "accuracy")
    assert row.protocol == "lfw-view2"
    assert row.se == pytest.approx(row.std / 2)  # four folds
    half = stats.t.ppf(0.975, 3) * row.se
    assert (row.ci_low, row.ci_high) == pytest.approx((row.value - half, min(1, row.value + half)))
    assert row.value > 0.7


def test_view_2_without_mirrored_images_says_so_in_its_rows(faces, tiny, tmp_path):
    _, folder = faces
    store = vr.extract(tiny, colored(60), tmp_path / "s.h5", layers="1x1")
    rows = vr.probe(store, vr.FaceVerification(pairs=folder / "folds.txt"), heads=["cosine"]).rows
    assert {row.protocol for row in rows} == {"lfw-view2-unmirrored"}


def test_view_2_chooses_no_row_of_several(faces):
    """All its pairs are tested on; a row chosen on them would be above chance where nothing is known."""
    store, folder = faces
    task = vr.FaceVerification(pairs=folder / "folds.txt")
    report = vr.probe(store, task, layers="all", heads=["cosine"])
    rows, lines = report.rows, report.notes
    assert len({row.layer for row in rows if row.model == "tiny"}) > 1
    assert not any(row.chosen for row in rows if row.model == "tiny")
    (compared,) = [row for row in rows if row.versus]  # all together, which is no choice
    assert (compared.model, compared.layer) == ("tiny", "0:2")
    assert "no pairs are left to choose a row on" in lines[0]
    report = vr.probe(store, task, layers="4x4.0", heads=["cosine"])
    (alone,) = [row for row in report.rows if row.versus]
    assert (alone.model, alone.layer, alone.chosen, alone.p_value) == ("tiny", "4x4.0", True, None)
    assert {found.why for found in report.comparisons} == {
        "4 independent units are too few for a test, which takes 6"
    }


@pytest.mark.parametrize("head", ["cosine", "cosine-whitened"])
@pytest.mark.parametrize("view", [1, 2])
def test_components_are_those_of_the_training_images(faces, head, view):
    """PCA of pixels and whitening, each fold by scikit-learn on the images that none of its pairs are of."""
    from sklearn.decomposition import PCA

    store, folder = faces
    lists = {"pairs": folder / "folds.txt"}
    if view == 1:
        lists = {"pairs": folder / "test.txt", "pairs_train": folder / "train.txt"}
    rows = vr.probe(store, vr.FaceVerification(**lists), layers="4x4.0", heads=[head]).rows
    problem = vr.FaceVerification(**lists).bind(store)
    images = store.images().astype(float)
    both = (images + images[:, :, ::-1]).reshape(len(images), -1)
    layer = (store.matrix("4x4.0")[0] + store.mirrored().matrix("4x4.0")[0]).astype(float)
    test, known = problem.test, problem.choose
    folds = np.unique(test.fold)

    def training(fold):
        here = test.fold == fold
        of, some = (test, ~here) if known is None else (known, slice(None))
        tested = np.union1d(test.first[here], test.second[here])
        return here, np.setdiff1d(np.union1d(of.first[some], of.second[some]), tested)

    def expected(X, components):
        similarity = np.zeros(len(test.same))
        for fold in folds:
            here, learnt_of = training(fold)
            fitted = PCA(components, svd_solver="full").fit(X[learnt_of])
            own = fitted.transform(X)
            if head == "cosine-whitened":
                deviations = np.sqrt(fitted.explained_variance_)
                beyond_rounding = deviations > 1e-6 * deviations[0]
                own = (own / deviations)[:, beyond_rounding][:, :128]
            own = normalize(own)
            similarity[here] = np.sum(own[test.first[here]] * own[test.second[here]], axis=1)
        return roc_auc_score(test.same, similarity)

    found = {(r.model, r.dims): r for r in rows if r.metric == "auc"}
    sizes = [size for model, size in found if model == "pca"]
    largest = min(len(training(fold)[1]) for fold in folds) - 1
    assert max(sizes) == min(layer.shape[1], largest)
    for size in sizes:  # products in float32 may change the order of a pair or two
        assert found["pca", size].value == pytest.approx(expected(both, size), abs=1e-4)
    if head == "cosine-whitened":
        value = found["tiny", layer.shape[1]].value
        size = min(128, largest, layer.shape[1])
        assert value == pytest.approx(expected(layer, size), abs=1e-6)
    assert sum(r.chosen for r in rows if (r.model, r.metric) == ("pca", "accuracy")) == 1


@pytest.mark.parametrize("dims", [8, 500])
def test_a_layer_that_is_0_everywhere_tells_nothing_and_ends_no_probe(faces, dims):
    """Of verification by either head, and of few-shot episodes."""
    store, folder = faces
    dead = Features("x", "x", (Columns.of_array("x", np.zeros((len(store), dims), np.float32)),))
    pairs = {"pairs": folder / "test.txt", "pairs_train": folder / "train.txt"}
    problem = vr.FaceVerification(**pairs).bind(store)
    for head in problem.heads.values():
        (auc,) = problem.figures("auc", [[problem.score(head, dead)]], seed=0)
        assert auc.value == 0.5
    episodes = vr.FewShot(ways=4, shots=1, queries=3, episodes=5).bind(store)
    for head in (*episodes.heads.values(), Head("own", RidgeClassifier())):
        (accuracy,) = episodes.figures("accuracy", [[episodes.score(head, dead)]], seed=0)
        assert accuracy.value == pytest.approx(1 / 4)


def test_verification_refuses_what_it_cannot_do(faces, tmp_path):
    store, folder = faces
    twice = "2\t1\nP00\t1\t2\nP00\t1\tP01\t1\nP02\t1\t2\nP02\t3\tP00\t2\n"
    (tmp_path / "twice.txt").write_text(twice)
    with pytest.raises(vr.TaskError, match=r"twice\.txt: P00/P00_0002\.png is in 2 folds"):
        vr.probe(store, vr.FaceVerification(pairs=tmp_path / "twice.txt"))
    (tmp_path / "none.txt").write_text("2\t0\n")
    with pytest.raises(vr.DataError, match="line 1: expected at least one pair of each kind"):
        vr.probe(store, vr.FaceVerification(pairs=tmp_path / "none.txt"))
    with pytest.raises(vr.TaskError, match="give pairs=FILE"):
        vr.probe(store, "face_verification")
    with pytest.raises(vr.TaskError, match="give pairs_train=FILE"):
        vr.probe(store, vr.FaceVerification(pairs=folder / "test.txt"))
    with pytest.raises(vr.TaskError, match="in the training pairs and in the test pairs"):
        vr.probe(
            store, vr.FaceVerification(pairs=folder / "test.txt", pairs_train=folder / "test.txt")
        )
    with pytest.raises(vr.TaskError, match=r"far=0\.001: expected at least 10 impostor"):
        vr.probe(
            store,
            vr.FaceVerification(
                pairs=folder / "test.txt", pairs_train=folder / "train.txt", far=[0.001]
            ),
        )
    with pytest.raises(TypeError, match="pairs"):
        vr.FaceId(pairs=folder / "test.txt")


def test_few_shot_accuracy_and_its_error_are_those_of_the_episodes(tiny, tmp_path):
    store = vr.extract(tiny, colored(60), tmp_path / "s.h5", layers="4x4.0")
    options = {"ways": 3, "shots": 2, "queries": 4, "episodes": 40}
    rows = vr.probe(store, vr.FewShot(**options), heads=["nearest-prototype"], cache=None).rows
    row = next(row for row in rows if row.model == "tiny")
    assert (row.protocol, row.n_train, row.n_test, row.chance) == ("few-shot", 6, 12, 1 / 3)
    problem = vr.FewShot(**options).bind(store)
    X, found = store.matrix("4x4.0")[0], []
    for episode in problem.episodes:
        assert len(set(episode.classes)) == 3
        assert not set(episode.support) & set(episode.query)
        support = X[episode.support].reshape(3, 2, -1).mean(axis=1)
        distance = ((X[episode.query][:, None] - support) ** 2).sum(axis=2)
        found.append(np.mean(distance.argmin(axis=1) == np.repeat(np.arange(3), 4)))
    assert row.value == pytest.approx(np.mean(found))
    assert row.se == pytest.approx(np.std(found, ddof=1) / np.sqrt(40))
    k = 12 * row.value  # Clopper and Pearson's, on twelve classes
    bounds = stats.beta.ppf(0.025, k, 13 - k), stats.beta.ppf(0.975, k + 1, 12 - k)
    assert (row.interval, row.units, row.at) == ("clopper-pearson", 12, 2)
    assert (row.ci_low, row.ci_high) == pytest.approx(bounds)
    assert all(row.chosen for row in rows if row.model in ("tiny", "pixels", "random-init"))
    pca = [row for row in rows if row.model == "pca"]
    assert [row.dims for row in pca if row.chosen] == [row.dims]  # as many as the layer's
    assert row.p_value is not None
    shuffled = next(row for row in rows if row.model == "shuffled-labels")
    assert shuffled.value < row.value
    again = vr.probe(store, vr.FewShot(**options), heads=["nearest-prototype"], cache=None).rows
    assert [r.value for r in again] == [r.value for r in rows]


def test_of_several_layers_none_is_chosen_where_nothing_is_set_apart(tiny, tmp_path):
    store = vr.extract(
        tiny, colored(60), tmp_path / "s.h5", layers="<=8x8", features=["mean", "kl"]
    )
    found = vr.probe(
        store, vr.FewShot(episodes=5, ways=3), heads=["nearest-prototype-cosine"], selections=ATLAS
    )
    notices = found.notes
    assert not any(row.chosen for row in found.rows if row.model == "tiny")
    assert any("no pruning" in line for line in notices)  # it would be by images that are asked for


@pytest.mark.parametrize(
    ("option", "least"), [("ways", 2), ("shots", 1), ("queries", 1), ("episodes", 2)]
)
def test_episodes_too_small_to_say_anything_are_refused(option, least):
    with pytest.raises(
        vr.TaskError, match=f"{option}: expected at least {least}, found {least - 1}"
    ):
        vr.FewShot(**{option: least - 1})


@pytest.mark.parametrize("option", ["ways", "shots", "episodes"])
@pytest.mark.parametrize("value", [None, True, 2.0])
def test_numbers_of_episodes_that_are_none_are_refused_in_a_line(option, value):
    with pytest.raises(vr.TaskError, match=f"{option}: expected .*, found {type(value).__name__}"):
        vr.FewShot(**{option: value})


def test_queries_are_fifteen_unless_classes_are_small(tiny, tmp_path, monkeypatch):
    store = vr.extract(tiny, colored(60), tmp_path / "s.h5", layers="1x1")
    assert vr.FewShot(shots=2, episodes=2).bind(store).queries == EACH - 2
    monkeypatch.setattr("vdvae_repr.tasks.few_shot.QUERIES", 4)
    assert vr.FewShot(shots=2, episodes=2).bind(store).queries == 4


@pytest.mark.parametrize("features", [["mean"], ["mean", "delta"]])
def test_a_curve_over_shots_is_drawn_of_each_feature(tiny, tmp_path, features):
    store = vr.extract(tiny, colored(60), tmp_path / "s.h5", layers="4x4.0", features=features)
    rows = vr.probe(
        store,
        vr.FewShot(shots=[1, 2], ways=3, episodes=5),
        features=features,
        heads=["nearest-prototype-cosine"],
    ).rows
    (tmp_path / "out").mkdir()
    pictures.write(rows, [], pictures.Figures(tmp_path / "out"))
    ends = [""] if len(features) == 1 else ["-mean", "-delta"]
    expected = {f"{stem}{end}.png" for stem in ("layers", "shots") for end in ends}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected


def test_images_without_labels_have_no_classes(tiny, images, tmp_path):
    store = vr.extract(tiny, images, tmp_path / "s.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match=r"expected labelled images .* found no label"):
        vr.FewShot().bind(store)


def test_class_split_says_what_is_novel_and_where_layers_are_chosen(tiny, tmp_path):
    store = vr.extract(tiny, colored(60), tmp_path / "s.h5", layers="<=4x4")
    sides = ["base"] * 4 + ["val"] * 4 + ["novel"] * 4
    lines = [f"P{person:02d},{side}," for person, side in enumerate(sides)]
    lines.append('P11,novel,"a\nb"')
    del lines[11]
    (tmp_path / "split.csv").write_text("\n".join(["class,split,note", *lines]))
    options = {"ways": 3, "queries": 4, "episodes": 20, "class_split": tmp_path / "split.csv"}
    report = vr.probe(
        store, vr.FewShot(**options), heads=["simpleshot-cl2n", "nearest-prototype-cosine"]
    )
    rows, notices = report.rows, report.notes
    assert "chosen on episodes of 4 val classes" in notices[0]
    assert (
        "split.csv: lines 13 to 14 are one row, for quotation marks in column 'note'" in notices[0]
    )
    for head in ("simpleshot-cl2n", "nearest-prototype-cosine"):
        ours = [row for row in rows if row.model == "tiny" and row.head == head]
        assert sum(row.chosen for row in ours) == 1
        assert sum(row.versus is not None for row in ours) == 1
    problem = vr.FewShot(**options).bind(store)
    assert {int(k) for episode in problem.episodes for k in episode.classes} == {8, 9, 10, 11}
    assert set(store.labels[problem.base]) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,split\n", "expected columns class and split, found name, split"),
        ("class,split\nP00,train\n", "line 2: expected base, val or novel, found 'train'"),
        ("class,split\nP99,base\n", "line 2: .* has no class 'P99'"),
        ("class,split\nP00,base\nP00,novel\n", "class 'P00' is named twice"),
        ("class,split\nP00,base\nP01,novel\n", "expected at least 5 novel classes of 5 .* found 1"),
        ("class,split\nP00,val\nP01,novel\n", "expected base classes with images, .* found none"),
    ],
)
def test_what_is_wrong_with_a_class_split_is_named(tiny, tmp_path, text, message):
    store = vr.extract(tiny, colored(60), tmp_path / "s.h5", layers="1x1")
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(vr.TaskError, match=message):
        vr.probe(store, vr.FewShot(queries=4, class_split=tmp_path / "split.csv"))


def test_a_class_split_names_classes_as_a_table_and_a_file_system_write_them(tiny, tmp_path):
    """Unicode has two forms of é, of which macOS writes one and spreadsheets the other."""
    source = colored(60)
    names = ("Emile\u0301", " q", *source.label_names[2:])
    source = replace(source, label_names=names)
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1")
    sides = ["base"] * 4 + ["novel"] * (len(names) - 4)
    lines = [
        f"{name},{side}" for name, side in zip(("Emil\u00e9", "q", *names[2:]), sides, strict=True)
    ]
    (tmp_path / "split.csv").write_text("\n".join(["class,split", *lines]), encoding="utf-8")
    problem = vr.FewShot(queries=4, class_split=tmp_path / "split.csv").bind(store)
    assert set(store.labels[problem.base]) == {0, 1, 2, 3}
    (tmp_path / "split.csv").write_text("class,split\nP2,base\n")
    with pytest.raises(vr.TaskError, match=r"has no class 'P2'; did you mean 'P\d2'"):
        vr.FewShot(class_split=tmp_path / "split.csv").bind(store)


def test_components_from_inner_products_are_scikit_learns():
    from sklearn.decomposition import PCA

    X = np.random.default_rng(0).normal(size=(30, 50))
    fit, items = np.arange(20), np.arange(15, 30)
    ours = _gram_pca(X @ X.T, fit, items)[:, :10]
    theirs = PCA(10, svd_solver="full").fit(X[fit]).transform(X[items])
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-8)


@pytest.mark.parametrize("kind", ["no queries", "a drawing twice", "a drawing that is not there"])
def test_runs_that_cannot_be_scored_are_refused(tiny, people, tmp_path, kind):
    source = people(2, num_people=6)  # three people in each of two runs, known and asked for once
    labels, splits = source.labels.copy(), np.array(["train", "test"] * 6)
    if kind == "no queries":
        splits[6:], labels[6:] = "train", np.arange(6)
    else:
        row, label = (2, 0) if kind == "a drawing twice" else (3, 5)
        labels[row] = label
    factors = {"run": np.repeat([1, 2], 6)}
    source = replace(source, labels=labels, splits=tuple(splits), factors=factors)
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match=r"run [12]: expected queries, and one known drawing"):
        vr.OmniglotOneShot().bind(store)


@pytest.mark.shared_data
def test_modified_hausdorff_baseline_has_lakes_error(shared_data, tiny, tmp_path):
    """Lake et al.'s own baseline, 38.8 % on the 20 runs, through the loader and the scorer."""
    source = open_source("omniglot-runs", root=shared_data / "omniglot")
    assert (len(source), source.splits.count("test")) == (800, 400)
    ink = [
        np.argwhere(~np.asarray(image.convert("1"))).astype(float) for image in source.read(0, 800)
    ]
    ink = [points - points.mean(axis=0) for points in ink]
    near = [KDTree(points) for points in ink]
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1")
    problem = vr.OmniglotOneShot().bind(store)
    wrong = []
    for query in problem.split.test:
        known = problem.split.train[problem.runs[problem.split.train] == problem.runs[query]]
        there = [near[other].query(ink[query])[0].mean() for other in known]
        nearest, least = -1, np.inf
        # The larger of two ways counts, so no other is nearer once one way is not.
        for place in np.argsort(there):
            if there[place] >= least:
                break
            back = near[query].query(ink[known[place]])[0].mean()
            if max(there[place], back) < least:
                nearest, least = known[place], max(there[place], back)
        wrong.append(source.labels[nearest] != source.labels[query])
    zeros = Columns.of_array("hausdorff", np.zeros((800, 1), np.float32))
    blank = Features("hausdorff", None, (zeros,))
    scored = Scored(blank, np.array(wrong, float))
    [figure] = problem.figures("error", [[scored]], 0)
    assert figure.value == pytest.approx(0.388, abs=0.0006)
    assert figure.low < 0.388 < figure.high
    assert figure.chance == 0.95
    rows = vr.probe(store, "omniglot_oneshot", heads=["nearest-prototype"]).rows
    assert {row.scaling for row in rows} == {"raw"}
    pixels = next(row for row in rows if row.model == "pixels")
    assert 0.5 < pixels.value < 0.95  # 16x16 pixels say little, but something
    with pytest.raises(vr.TaskError, match="extract the data omniglot-runs"):
        vr.probe(vr.extract(tiny, colored(9), tmp_path / "c.h5", layers="1x1"), "omniglot_oneshot")


@pytest.mark.shared_data
def test_eigenfaces_of_orl_reach_their_known_rate(shared_data, tiny, tmp_path):
    """All 199 components of images 1 to 5, cosine, tested on 6 to 10: 0.865, by a direct computation."""
    # Any layer of 199 dimensions or more has this control, which the model itself has no part in.
    config = replace(
        tiny.config, image_size=64, bottom_up="64d8,8d8,1x1", top_down="1x1,8m1,64m8", width=4
    )
    store = vr.extract(
        vr.VDVAE(config).eval(), shared_data / "orl_faces", tmp_path / "orl.h5", layers="8x8"
    )
    rows = vr.probe(store, "face_id", heads=["nearest-neighbor"], controls="pca").rows
    (row,) = [r for r in rows if (r.model, r.dims, r.metric) == ("pca", 199, "rank1")]
    assert row.value == pytest.approx(0.865, abs=0.02)
    assert (row.n_train, row.n_test) == (200, 200)


@pytest.mark.parametrize(("stray", "outside"), [(0, "no class is"), (1, "no more than 1 image is")])
def test_as_many_ways_as_classes_take_base_statistics_from_the_support(
    tiny, tmp_path, people, stray, outside
):
    """Against SimpleShot written out: centred on the support's mean, length 1, nearest class mean.

    A class of a single image is no more than that: nothing is fitted on it.
    """
    source = people(6, num_people=4)
    if stray:
        source = replace(source, labels=np.r_[source.labels[:18], 3, np.full(5, -1)])
    else:
        source = replace(source, labels=np.r_[source.labels[:18], np.full(6, -1)])
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="4x4")
    task = vr.FewShot(ways=3, shots=2, queries=2, episodes=20)
    report = vr.probe(store, task, heads=["simpleshot-cl2n"])
    rows, said = report.rows, report.notes
    assert any(f"{outside} outside an episode: base statistics" in line for line in said)
    assert any("1 class of fewer than 4 images left out" in line for line in said) == bool(stray)
    problem = task.bind(store)
    X = store.matrix("4x4")[0].astype(np.float64)
    accuracies = []
    for episode in problem.episodes:
        support, query = X[episode.support], X[episode.query]
        mean = support.mean(axis=0)
        support, query = support - mean, query - mean
        support /= np.linalg.norm(support, axis=1, keepdims=True)
        query /= np.linalg.norm(query, axis=1, keepdims=True)
        centres = support.reshape(3, 2, -1).mean(axis=1)
        distances = ((query[:, None] - centres) ** 2).sum(axis=2)
        accuracies.append(np.mean(distances.argmin(axis=1) == np.repeat(np.arange(3), 2)))
    ours = next(row for row in rows if row.model == "tiny")
    assert ours.value == pytest.approx(np.mean(accuracies), abs=1e-9)
    assert {row.model for row in rows} >= {"pixels", "pca", "random-init"}
