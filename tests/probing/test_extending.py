"""docs/extending.md: its tasks run as they stand, and say what scikit-learn says."""

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, r2_score

import vdvae_repr as vr

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the page's examples define, run one after the other."""
    names = {"__name__": "extending"}
    folder = tmp_path_factory.mktemp("extending")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # The examples run; what they find, the tests below look at without controls.
        patch.setattr("vdvae_repr.probing.controls.INITIALISATIONS", 1)
        patch.setattr("vdvae_repr.probing.task.PERMUTATIONS", 1)
        for block in re.findall(
            r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
        ):
            exec(compile(block, str(PAGE), "exec"), names)
    yield names
    for task in ("attribute", "retrieval"):
        del vr.Task.known[task]


def test_an_attribute_is_regressed_on_other_people(page):
    """R2 of the package's ridge regression, and of any regressor, is what scikit-learn says it is."""
    store, task = page["store"], page["Attribute"](factor="nuisance_background_brightness")
    head = page["KNeighborsRegressor"](3)
    report = vr.probe(store, task, heads={"own": head}, controls=(), layers="4x4.0", cache=None)
    (row,) = report.rows
    problem = task.bind(store)
    train, test = problem.split.train, problem.split.test
    assert not set(store.labels[train]) & set(store.labels[test])
    X, y = store.matrix("4x4.0")[0], store.factors["nuisance_background_brightness"]
    assert row.value == pytest.approx(
        r2_score(y[test], head.fit(X[train], y[train]).predict(X[test]))
    )
    assert (row.task, row.protocol, row.metric) == ("attribute", "attribute", "r2")
    ridge = vr.RidgeRegressor().fit(X[train], y[train])
    (row,) = vr.probe(store, task, controls=(), layers="4x4.0", cache=None).rows
    assert row.value == pytest.approx(ridge.score(X[test], y[test]), rel=1e-5)
    assert row.ci_low < row.value < row.ci_high


def test_retrieval_is_mean_average_precision(page):
    store = page["store"]
    (row,) = vr.probe(store, "retrieval", controls=(), layers="4x4.0", cache=None).rows
    X, y, _ = store.matrix("4x4.0")
    X = X - X.mean(axis=0)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    others = ~np.eye(len(y), dtype=bool)
    expected = [
        average_precision_score(y[others[i]] == y[i], (X @ X[i])[others[i]]) for i in range(len(y))
    ]
    assert row.value == pytest.approx(np.mean(expected))
    assert row.controls_left_out == "pixels, pca, random-init, shuffled-labels"


def test_a_task_is_known_by_name_and_takes_no_name_of_the_packages(page):
    assert vr.Task.named("attribute") == page["Attribute"]()
    with pytest.raises(
        vr.TaskError, match="face_id: is a task of this package; call yours otherwise"
    ):

        class Mine(vr.Task):
            name = "face_id"

    assert vr.Task.known["face_id"] is vr.FaceId


def test_options_of_a_task_of_ones_own_are_the_commands_too(page):
    from vdvae_repr.cli import _task_help, _task_of, _task_options, _tasks

    _tasks.cache_clear()
    task = _task_of("attribute", _task_options("attribute", ["--factor", "nuisance_light"]))
    assert task == page["Attribute"](factor="nuisance_light")
    assert ("  --factor", "The factor to predict.") in _task_help()
