"""Factors: scores of ridge regression against scikit-learn, on factors whose answer is known."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, cross_val_predict
from sklearn.preprocessing import StandardScaler

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.heads.linear import ALPHAS, GroupedRidge, RidgeRegressor
from vdvae_repr.latents.store import JoinedStore
from vdvae_repr.probing.features import Columns, Features
from vdvae_repr.probing.statistics import pearson
from vdvae_repr.report import pictures
from vdvae_repr.results import layer_by_factor
from vdvae_repr.tasks import factors as factors_task
from vdvae_repr.tasks.factors import FactorHead


def knowing(source, **factors):
    """The same images, of which other factors are known."""
    splits = factors.pop("splits", ())
    return Source(
        name="known", ids=source.ids, reader=source.reader, labels=source.labels,
        label_names=source.label_names, factors=factors, splits=splits,
    )  # fmt: skip


@pytest.fixture(scope="module")
def problem(tiny, people, tmp_path_factory):
    rng = np.random.default_rng(0)
    factors = {"size": rng.uniform(-3, 9, 240), "kind": rng.choice(["a", "b", "b", "c"], 240)}
    source = knowing(people(20, num_people=12), **factors)
    path = tmp_path_factory.mktemp("factors") / "s.h5"
    store = vr.extract(tiny, source, path, layers="1x1")
    return vr.Factors().bind(store)


def measured(problem, name, X):
    features = Features("x", None, (Columns.of_array("x", X.astype(np.float32)),))
    head = problem.heads[name]
    scored = problem.score(head, features, 0)
    figures = {m: problem.figures(m, [[scored]], 0)[0] for m in problem.metrics_of(head)}
    assert all(figure.low <= figure.value <= figure.high for figure in figures.values())
    return figures, scored


@pytest.mark.parametrize("dims", [10, 500])
def test_scores_are_scikit_learns(problem, dims):
    rng = np.random.default_rng(1)
    size, kind = problem.factors["size"], problem.factors["kind"]
    X = rng.normal(size=(240, dims)) * rng.uniform(0.1, 9, dims)
    X[:, :2] += np.column_stack([size, kind])
    A = StandardScaler().fit(X[problem.split.train]).transform(X)
    fitted, tested = A[problem.split.train], A[problem.split.test]

    def by_scikit_learn(targets):
        """Ridge regression, its penalty found by leaving each person out."""
        search = GridSearchCV(
            Ridge(),
            {"alpha": ALPHAS * dims},
            cv=LeaveOneGroupOut(),
            scoring="neg_mean_squared_error",
        )
        search.fit(fitted, targets, groups=problem.groups)
        return search, search.predict(tested)

    search, predicted = by_scikit_learn(size[problem.split.train])
    figures, scored = measured(problem, "ridge:size", X)
    truth = size[problem.split.test]
    assert list(figures) == ["r2", "pearson"]
    assert figures["r2"].value == pytest.approx(r2_score(truth, predicted), abs=1e-6)
    assert figures["pearson"].value == pytest.approx(pearsonr(truth, predicted)[0], abs=1e-6)
    assert (figures["r2"].chance, figures["pearson"].chance) == (0, 0)
    left_out = 1 + search.best_score_ / size[problem.split.train].var()
    assert scored.training_score == pytest.approx(left_out, abs=1e-6)
    # Categories: one regression of +1 and -1 each, with one penalty for all.
    search, predicted = by_scikit_learn(2.0 * np.eye(3)[kind[problem.split.train]] - 1)
    figures, scored = measured(problem, "ridge:kind", X)
    assert list(figures) == ["balanced_accuracy"]
    truth = kind[problem.split.test]
    expected = balanced_accuracy_score(truth, predicted.argmax(axis=1))
    assert figures["balanced_accuracy"].value == pytest.approx(expected)
    assert scored.outcome[0].mean() == pytest.approx(1 - expected)
    assert figures["balanced_accuracy"].chance == pytest.approx(1 / 3)
    left_out = cross_val_predict(
        search.best_estimator_,
        fitted,
        2.0 * np.eye(3)[kind[problem.split.train]] - 1,
        groups=problem.groups,
        cv=LeaveOneGroupOut(),
    )
    expected = balanced_accuracy_score(kind[problem.split.train], left_out.argmax(axis=1))
    assert scored.training_score == pytest.approx(expected)


def test_correlation_is_scipys_under_any_weights():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40)) + 1e6
    times = rng.integers(0, 4, (5, 40)).astype(float)
    expected = [pearsonr(np.repeat(x, row), np.repeat(y, row))[0] for row in times.astype(int)]
    np.testing.assert_allclose(pearson(x, y, times), expected, atol=1e-8)
    assert np.isnan(pearson(np.ones(40), y, times)).all()


def test_what_is_the_factor_knows_it_and_noise_does_not(problem):
    noise = np.random.default_rng(2).normal(size=(240, 40))
    size = problem.factors["size"][:, None]

    def r2(X):
        return measured(problem, "ridge:size", X)[0]["r2"].value

    assert r2(0.5 * size + 100) > 0.999
    assert r2(np.hstack([size, noise])) > 0.99
    assert abs(r2(noise)) < 0.2
    kind = np.eye(3)[problem.factors["kind"]]
    assert measured(problem, "ridge:kind", kind)[0]["balanced_accuracy"].value == pytest.approx(1)
    features = Features("x", None, (Columns.of_array("x", size.astype(np.float32)),))
    shuffled = problem.score(problem.heads["ridge:size"], features, 0, shuffled=True)
    known = problem.score(problem.heads["ridge:size"], features, 0)
    assert problem.figures("r2", [[shuffled]], 0)[0].value < 0.1
    told = problem.compare([known], [shuffled], problem.heads["ridge:size"], 0)
    assert told.p == 2 / 2**6  # of six people, every one in the same direction
    assert told.low > 0


def test_a_factor_of_people_is_not_learned_as_who_they_are(problem):
    """Told by nothing but who people are: the penalty must be found on people left out."""
    rng = np.random.default_rng(4)
    person = np.repeat(np.arange(12), 20)
    X = rng.normal(size=(12, 50))[person] + 0.1 * rng.normal(size=(240, 50))
    value = rng.normal(size=12)[person]
    problem.factors["own"] = value
    problem.heads["ridge:own"] = FactorHead("ridge:own", RidgeRegressor(), "own")
    try:
        _, scored = measured(problem, "ridge:own", X)
    finally:
        del problem.factors["own"], problem.heads["ridge:own"]
    A = StandardScaler().fit(X[problem.split.train]).transform(X)
    known = value[problem.split.train]
    by_image = RidgeCV(ALPHAS * 50).fit(A[problem.split.train], known)
    assert 1 + by_image.best_score_ / known.var() > 0.9  # what a person's other images say
    assert scored.training_score < 0.3


def test_intervals_of_few_people_are_students(tiny, people, tmp_path):
    """A factor of people, of whom three are tested: by leaving each out, and R2 is at most 1."""
    source = knowing(people(8, num_people=6), own=np.repeat(np.arange(6) + 0.5, 8))
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1")
    rows = vr.probe(store, "factors").rows
    numbers = [row for row in rows if row.metric == "r2"]
    told = [row for row in numbers if row.interval]
    assert {row.interval for row in told} == {"student"}
    assert all(row.ci_low < row.ci_high <= 1 for row in told)


def test_a_person_is_on_one_side(problem, tiny, people, tmp_path):
    labels = np.repeat(np.arange(12), 20)
    sides = [set(labels[side]) for side in (problem.split.train, problem.split.test)]
    assert [len(side) for side in sides] == [6, 6]
    assert not sides[0] & sides[1]
    assert "fitted on 6 people, drawn with seed 0, tested on the others" in problem.split.text
    source = people(20)
    mixed = knowing(source, size=np.arange(120.0), splits=("train", "test") * 60)
    store = vr.extract(tiny, mixed, tmp_path / "m.h5", layers="1x1")
    other = vr.Factors().bind(store)
    assert "6 people are on both sides" in other.split.text
    np.testing.assert_array_equal(other.split.train, np.arange(0, 120, 2))


def test_one_of_a_kind_is_said_as_one(tiny, people, tmp_path):
    """Of the six people the first is on both sides; one image has no label, and one no split."""
    source = people(20)
    splits = np.repeat(["train", "test"], 60)
    splits[[0, 119]] = "test", ""
    mixed = knowing(source, size=np.arange(120.0), splits=tuple(splits))
    mixed = replace(mixed, labels=np.where(np.arange(120) == 1, -1, source.labels))
    text = vr.Factors().bind(vr.extract(tiny, mixed, tmp_path / "m.h5", layers="1x1")).split.text
    for line in (
        "; 1 unlabelled image left out",
        "; 1 image of no split left out",
        "; 1 person is on both sides, so",
    ):
        assert line in text, text


def test_a_factor_of_one_person_has_no_interval_and_warns_of_nothing(tiny, people, tmp_path):
    source = people(20)
    splits = tuple(np.tile(["train", "test"], 60))
    one = knowing(source, size=np.random.default_rng(0).normal(size=120), splits=splits)
    one = replace(one, labels=np.zeros(120, int), label_names=("ada",))
    store = vr.extract(tiny, one, tmp_path / "o.h5", layers="1x1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = vr.probe(store, "factors", controls=()).rows
    assert {row.metric for row in rows} == {"r2", "pearson"}
    assert all(row.ci_low is None and row.ci_high is None for row in rows)


def test_text_and_factors_that_do_not_vary(tiny, people, tmp_path):
    side = np.where(np.arange(48) % 2, "left", "right")
    length = np.array([f"{x:.3f}" for x in np.linspace(0, 1, 48)])
    source = knowing(
        people(8), side=side, length=length, always=np.ones(48), never=np.zeros(48, int)
    )
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1")
    report = vr.probe(store, "factors")
    rows, lines = report.rows, report.notes
    assert "always, never left out" in lines[0]
    assert {(row.head, row.metric) for row in rows} == {
        ("ridge:side", "balanced_accuracy"),
        ("ridge:length", "r2"),
        ("ridge:length", "pearson"),
    }
    np.testing.assert_array_equal(vr.Factors().bind(store).factors["length"], length.astype(float))
    infinite = np.where(np.arange(48) == 9, np.inf, np.linspace(0, 1, 48))
    gap = vr.extract(tiny, knowing(people(8), length=infinite), tmp_path / "g.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match="expected a finite number as length of 0-9"):
        vr.probe(gap, "factors")
    constant = vr.extract(
        tiny, knowing(people(8), always=np.ones(48)), tmp_path / "c.h5", layers="1x1"
    )
    with pytest.raises(vr.TaskError, match="that vary among the images, found always"):
        vr.probe(constant, "factors")


def test_factors_that_vary_on_no_side_alone_are_not_called_the_same_on_all(tiny, people, tmp_path):
    rare, kinds = np.full(48, 5.0), np.full(48, "x", object)
    rare[9], kinds[[9, 10]] = 6, ("y", "z")
    source = knowing(people(8), rare=rare, kinds=kinds, always=np.ones(48))
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1")
    with pytest.raises(
        vr.TaskError,
        match=r"found kinds, rare, the same on all images of a side \(fitted on 3 people, drawn with seed 0",
    ):
        vr.probe(store, "factors")


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (
            1e-155,
            r"tiny: expected numbers that differ by 1e-140 and more, found a range of .*; multiply",
        ),
        (
            1e-300,
            r"tiny: expected numbers that differ by 1e-140 and more, found a range of .*; multiply",
        ),
        (1e155, r"tiny: expected numbers below 1e\+150, found .*; divide them"),
    ],
)
def test_numbers_whose_squares_float64_does_not_hold_are_refused(
    tiny, people, tmp_path, factor, message
):
    source = people(8)
    given = knowing(source, tiny=source.factors["bright"] * factor)
    store = vr.extract(tiny, given, tmp_path / "s.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match=message):
        vr.probe(store, "factors")
    with pytest.raises(ValueError, match=message.partition("tiny")[2].lstrip(": ")):
        RidgeRegressor().fit(np.arange(48.0)[:, None], source.factors["bright"] * factor)


def test_a_unit_of_a_factor_changes_no_score(problem):
    """R2 and r of sizes in other units, down to what is taken, are those of the sizes."""
    rng = np.random.default_rng(1)
    X, size = rng.normal(size=(240, 10)), problem.factors["size"]
    X[:, 0] += size
    expected = measured(problem, "ridge:size", X)[0]
    try:
        for unit in (2.0**-460, 2.0**460):
            problem.factors["size"] = size * unit
            figures = measured(problem, "ridge:size", X)[0]
            for metric, figure in figures.items():
                assert figure.value == pytest.approx(expected[metric].value, rel=1e-9)
    finally:
        problem.factors["size"] = size


def test_images_that_lack_a_factor_are_left_out_and_counted(tiny, people, tmp_path):
    """Scores are those of the other images alone, as if the source held no more."""
    place = np.arange(48)
    length = np.array(["nan" if i in (3, 40) else f"{i / 47:.4f}" for i in place])
    floor = np.array(["nan" if i == 9 else f"floor {i % 3}" for i in place])
    splits = tuple(np.where(place % 2, "train", "test"))
    whole = knowing(
        people(8), length=length, floor=floor, nothing=np.full(48, np.nan), splits=splits
    )
    store = vr.extract(tiny, whole, tmp_path / "s.h5", layers="1x1")
    report = vr.probe(store, "factors")
    assert any("; left out are 3 images that lack floor (1), length (2)" in n for n in report.notes)
    kept = whole.select([i for i in place if i not in (3, 9, 40)])
    fewer = vr.probe(vr.extract(tiny, kept, tmp_path / "f.h5", layers="1x1"), "factors")
    assert {(row.head, row.metric) for row in report.rows} == {
        ("ridge:length", "r2"),
        ("ridge:length", "pearson"),
        ("ridge:floor", "balanced_accuracy"),
    }
    for row, other in zip(report.rows, fewer.rows, strict=True):
        assert (row.head, row.metric, row.model) == (other.head, other.metric, other.model)
        assert row.value == pytest.approx(other.value, rel=1e-2), (
            row
        )  # permutations of labels round
    few = knowing(people(8), length=np.where(place < 12, place / 12, np.nan))
    few = vr.extract(tiny, few, tmp_path / "few.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match=r"at least 10 .* found .*36 images that lack length"):
        vr.probe(few, "factors")


def test_every_task_counts_the_images_that_it_leaves_out(tiny, people, tmp_path):
    whole = people(8)
    labels = np.where(np.arange(48) % 8 == 5, -1, whole.labels)  # 6 of 48 images, one a person
    age = np.array([str(20 + i) for i in range(48)])
    store = vr.extract(
        tiny, replace(knowing(whole, age=age), labels=labels), tmp_path / "s.h5", layers="1x1"
    )
    (tmp_path / "c.csv").write_text(
        "class,split\n" + "".join(f"{name},{side}\n" for name, side in zip(
            whole.label_names, ["base", "base", "novel", "novel"], strict=False))
    )  # fmt: skip
    shots = vr.FewShot(ways=2, queries=2, episodes=3, class_split=tmp_path / "c.csv")
    texts = {
        name: task.bind(store).split.text
        for name, task in {
            "factors": vr.Factors(),
            "open-set": vr.FaceId(protocol="open-set"),
            "closed-set": vr.FaceId(),
            "few-shot": shots,
        }.items()
    }
    assert all("6 unlabelled images left out" in text for text in texts.values()), texts
    assert "2 classes that" in texts["few-shot"]
    store = vr.extract(
        tiny, knowing(whole, age=age, sex=np.tile(["1", "2"], 24)), tmp_path / "w.h5", layers="1x1"
    )
    problem = vr.Factors().bind(store)  # as a table writes them
    metrics = {name: problem.metrics_of(head)[0] for name, head in problem.heads.items()}
    assert metrics == {"ridge:age": "r2", "ridge:sex": "r2"}
    assert "sex is 2 whole numbers, read as numbers: categories reads them as codes" in (
        problem.split.text
    )
    assert "age is" not in problem.split.text
    assert "far from all others" not in problem.split.text
    coded = np.where(np.arange(48) % 7 == 2, "999", age)
    store = vr.extract(tiny, knowing(whole, age=coded), tmp_path / "coded.h5", layers="1x1")
    assert "age: 999 stands 7 times, far from all others (20 to 67)" in (
        vr.Factors().bind(store).split.text
    )
    splits = tuple(np.array(["train", "test", "", "gallery"])[np.arange(48) % 4])
    other = knowing(whole, age=age, splits=splits)
    problem = vr.Factors(numbers=["age"]).bind(
        vr.extract(tiny, other, tmp_path / "o.h5", layers="1x1")
    )
    assert problem.n_train + problem.n_test == 24
    assert "; 12 images of no split left out; 12 images of split gallery left out" in (
        problem.split.text
    )
    assert "categories" not in problem.split.text


def test_what_two_stores_do_not_share_is_said(tiny, people, tmp_path):
    def store(name, first, **factors):
        source = knowing(people(2, num_people=6), **factors)
        ids = tuple(f"{first}{image_id}" for image_id in source.ids)
        return vr.extract(tiny, replace(source, ids=ids), tmp_path / f"{name}.h5", layers="1x1")

    number, word = np.arange(12.0), np.array(["a", "b"] * 6)
    one = store("one", "x", hair=word, age=number, sex=word)
    other = store(
        "other", "y", Hair=word, age=np.array([*"012345678", "9", "10", "?"]), sex=word[::-1]
    )
    text = vr.Factors().bind(JoinedStore(one, other)).split.text
    assert f"hair left out, which {other.path} lacks" in text
    assert f"Hair left out, which {one.path} lacks" in text
    assert f"age is numbers in {one.path} alone" in text
    assert "sex" not in text
    assert "age of 1 test image is none of the training images', as ?" in text


def test_whole_numbers_are_numbers_and_a_declared_type_wins(tiny, people, tmp_path):
    """Degrees of yaw as whole numbers are told from the layer that holds them; codes only if declared."""
    rng = np.random.default_rng(0)
    yaw, code = rng.integers(-25, 26, 48), rng.integers(0, 3, 48)
    source = knowing(
        people(8), yaw=yaw, code=code, glasses=code == 1, text=np.array([f"{c:03d}" for c in code])
    )
    store = vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1")

    def kinds(**options):
        problem = vr.Factors(**options).bind(store)
        return {
            name: problem.metrics_of(head)[0].partition("_")[0]
            for name, head in problem.heads.items()
        }

    assert kinds() == {
        "ridge:yaw": "r2", "ridge:code": "r2", "ridge:glasses": "balanced", "ridge:text": "balanced",
    }  # fmt: skip
    declared = kinds(categories="code", numbers=["text", "glasses"])
    assert declared == {
        "ridge:yaw": "r2", "ridge:code": "balanced", "ridge:glasses": "r2", "ridge:text": "r2",
    }  # fmt: skip
    problem = vr.Factors().bind(store)
    X = np.column_stack([yaw, rng.normal(size=(48, 3))])
    assert measured(problem, "ridge:yaw", X)[0]["r2"].value > 0.95
    for options, message in (
        ({"numbers": "code", "categories": ["yaw", "code"]}, "found 'code' in both"),
        (
            {"categories": "pose"},
            r"categories: expected factors of .*, code, .*, yaw; found 'pose'",
        ),
        ({"numbers": [3]}, "numbers: expected names of factors, found int 3"),
    ):
        with pytest.raises(vr.TaskError, match=message):
            vr.Factors(**options).bind(store)
    named = vr.extract(
        tiny, knowing(people(8), side=np.where(code == 1, "left", "right")), tmp_path / "t.h5",
        layers="1x1",
    )  # fmt: skip
    with pytest.raises(vr.TaskError, match="numbers: expected a number as side of each image"):
        vr.Factors(numbers="side").bind(named)


def test_ids_of_many_digits_are_told_apart(tiny, people, tmp_path):
    """As float64 they are all the same number; shorter ones are numbers."""
    long, short = 20230000000000000000, 2023
    numbers = np.repeat(np.arange(6), 8) % 3
    source = knowing(
        people(8),
        id=np.array([str(long + int(n)) for n in numbers]),
        year=np.array([str(short + int(n)) for n in numbers]),
    )
    problem = vr.Factors().bind(vr.extract(tiny, source, tmp_path / "s.h5", layers="1x1"))
    metrics = {head.name: problem.metrics_of(head) for head in problem.heads.values()}
    assert metrics == {"ridge:id": ("balanced_accuracy",), "ridge:year": ("r2", "pearson")}
    assert len(np.unique(problem.factors["id"])) == 3


def test_a_score_is_kept_by_the_version_of_what_solves_it(problem, monkeypatch):
    """Of the grouped regression, and of the estimator, by whose columns another is fitted."""

    def digests():
        return [
            FactorHead("ridge:size", RidgeRegressor(), "size", grouped=grouped).digest
            for grouped in (True, False)
        ]

    (grouped, by_columns), other = digests(), problem.heads["ridge:kind"].digest
    assert len({grouped, by_columns, other}) == 3
    monkeypatch.setattr(GroupedRidge, "version", GroupedRidge.version + 1)
    later, still = digests()
    assert later != grouped
    assert still == by_columns


def test_a_store_that_knows_no_factors_is_refused(tiny, images, tmp_path):
    store = vr.extract(tiny, images, tmp_path / "s.h5", layers="1x1")
    with pytest.raises(vr.TaskError, match=r"knows no factors .* columns of a CSV .*toy-faces"):
        vr.probe(store, "factors")


def test_toy_faces_from_end_to_end(tiny, tmp_path):
    path = tmp_path / "s.h5"
    store = vr.extract(tiny, "toy-faces:24x4", path, layers="<=8x8", features=["mean", "delta"])
    heads = ["ridge:nuisance_background_brightness", "ridge:identity_hair_style"]
    rows = vr.probe(store, "factors", heads=heads).rows
    assert {(r.protocol, r.n_train, r.n_test) for r in rows} == {("factors", 48, 48)}
    columns = {"r2": heads[:1], "pearson": heads[:1], "balanced_accuracy": heads[1:]}
    for metric, known in columns.items():
        table = layer_by_factor(rows, metric)
        assert list(table.index) == ["1x1.0", "4x4.0", "8x8.0", "8x8.1"]
        assert [f"ridge:{name}" for name in table.columns] == known
        for row in rows:
            if (row.model, row.selection, row.metric) == ("tiny", "single", metric):
                assert table.loc[row.layer, row.head.removeprefix("ridge:")] == row.value
    with pytest.raises(vr.TaskError, match="r2, pearson, balanced_accuracy; found 'accuracy'"):
        layer_by_factor(rows, "accuracy")
    bright = [
        r
        for r in rows
        if (r.head, r.metric) == (heads[0], "r2") and r.chosen and r.model in ("tiny", "pixels")
    ]
    assert len(bright) == 2
    assert all(row.value > 0.5 for row in bright)  # even random weights see how bright it is
    pictures.write(rows, [], pictures.Figures(tmp_path))
    for metric in columns:
        assert (tmp_path / f"factors-{metric}.png").stat().st_size > 1000
        assert len((tmp_path / f"factors-{metric}.csv").read_text().splitlines()) == 5
    both = vr.probe(
        store, "factors", layers="1x1", heads=heads[:1], features=["mean", "delta"], beside=[store]
    ).rows
    assert list(layer_by_factor(both, "r2").index) == [
        "1x1.0 tiny mean", "1x1.0 tiny delta", "1x1.0 tiny (2) mean", "1x1.0 tiny (2) delta",
    ]  # fmt: skip


def test_codes_that_python_alone_reads_as_numbers_are_categories():
    for values in (["0_1", "1_2"], ["\u0661", "\u0662"]):
        assert factors_task._numbers(np.array(values)) is None
    assert factors_task._numbers(np.array(["1.5", "2"])).tolist() == [1.5, 2.0]


@pytest.mark.parametrize(("first", "kind"), [(2**63, np.uint64), (2**53, np.int64)])
def test_ids_that_float64_does_not_tell_apart_are_categories(first, kind):
    assert factors_task._are_codes(np.array([first, first + 1], kind))
    assert not factors_task._are_codes(np.array([0, 2**53], kind))
