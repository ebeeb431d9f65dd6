"""What each task and head gives on a small problem, beside its version, by which scores on the disk are told.

Where this fails, what is computed has changed: raise `version` of the task, or of the head's class, and write
the new digest down. Then no score that the earlier code left in a cache is taken for one of the new code.
"""

import hashlib

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import Pipeline

import vdvae_repr as vr
from vdvae_repr.data.source import Source
from vdvae_repr.heads.linear import GroupedRidge
from vdvae_repr.probing import controls
from vdvae_repr.probing.features import Columns, Features
from vdvae_repr.probing.head import Head

PEOPLE, EACH = 6, 12
LABELS = np.repeat(np.arange(PEOPLE), EACH)
DIGESTS = {
    "closed-set nearest-neighbor": ([1, 2], "6e58bcc16167"),
    "closed-set ridge": ([1, 2], "be755c8eaa00"),
    "closed-set linear-lbfgs": ([1, 2], "8245854187c0"),
    "open-set nearest-neighbor": ([1, 2], "af139808c1f9"),
    "open-set ridge": ([1, 2], "11136aaeeed4"),
    "open-set linear-lbfgs": ([1, 2], "a06792dbc9a4"),
    "classification knn": ([2, 2], "1714f047b4db"),
    "classification knn-dino": ([2, 2], "8650da623c97"),
    "classification ridge": ([2, 2], "180ef5bc7968"),
    "classification linear-lbfgs": ([2, 2], "c48651708541"),
    "closed-set linear-sgd": ([1, 1], "d72d099e2a4b"),
    "open-set linear-sgd": ([1, 1], "5444952cd9ef"),
    "classification linear-sgd": ([2, 1], "7aab3febdda3"),
    "few_shot nearest-prototype": ([3, 1], "d9a9884fcd07"),
    "few_shot nearest-prototype-cosine": ([3, 1], "5adcec8e52df"),
    "few_shot simpleshot-cl2n": ([3, 1], "6b73a5e54202"),
    "few_shot logistic": ([3, 2], "cff4f1af319e"),
    "few_shot ridge": ([3], "2cecf23dd8bf"),
    "omniglot_oneshot nearest-prototype": ([2, 1], "ed4d66859820"),
    "omniglot_oneshot nearest-prototype-cosine": ([2, 1], "bfb78664e452"),
    "omniglot_oneshot logistic": ([2, 2], "93f59de33c6d"),
    "omniglot_oneshot ridge": ([2], "501a90a47dd8"),
    "face_verification cosine": ([1, 1], "1c9b38dd7573"),
    "face_verification cosine-whitened": ([1, 1], "6c29e4e558e7"),
    "factors ridge:run": ([4, 1, 1], "bb9a99b27100"),
    "factors ridge:size": ([4, 1, 1], "d5bf49b6011b"),
}
CONTROLS = (2, "a670a1e4b792")


@pytest.fixture(scope="module")
def store(tiny, tmp_path_factory):
    images = np.random.default_rng(0).integers(0, 256, (len(LABELS), 16, 16, 3), dtype=np.uint8)
    names = tuple(f"P{person}" for person in range(PEOPLE))
    source = Source(
        name="noise",
        ids=tuple(f"{name}/{name}_{i:04d}.png" for name in names for i in range(1, EACH + 1)),
        reader=lambda index: images[index],
        labels=LABELS,
        label_names=names,
        splits=("train", "test") * (len(LABELS) // 2),
        factors={
            "run": np.tile(np.arange(EACH) // 2, PEOPLE),
            "size": np.random.default_rng(1).normal(size=len(LABELS)),
        },
    )
    folder = tmp_path_factory.mktemp("versions")
    lines = [
        f"{n}/{n}_{i:04d}.png,{n}/{n}_{i + 1:04d}.png,1,{k % 2}"
        for k, n in enumerate(names)
        for i in range(1, EACH, 2)
    ]
    lines += [
        f"{a}/{a}_{i:04d}.png,{b}/{b}_{i:04d}.png,0,{k}"
        for k in (0, 1)
        for a, b in ((names[k], names[k + 2]), (names[k + 2], names[k + 4]))
        for i in range(1, EACH + 1)
    ]
    (folder / "pairs.csv").write_text("\n".join(["a,b,same,fold", *lines]) + "\n")
    return vr.extract(tiny, source, folder / "s.h5", layers="1x1")


def tasks(store):
    pairs = store.path.parent / "pairs.csv"
    return {
        "closed-set": vr.FaceId(),
        "open-set": vr.FaceId(protocol="open-set", far=[0.6]),
        "classification": vr.Classification(),
        "few_shot": vr.FewShot(ways=3, shots=2, queries=3, episodes=20),
        "omniglot_oneshot": vr.OmniglotOneShot(),
        "face_verification": vr.FaceVerification(pairs=pairs, far=[]),
        "factors": vr.Factors(categories="run"),
    }


def made(dims):
    """Features that tell people, and the factor, a little."""
    rng = np.random.default_rng(dims)
    X = rng.normal(size=(len(LABELS), dims)) + 0.5 * rng.normal(size=(PEOPLE, dims))[LABELS]
    X[:, 0] += np.random.default_rng(1).normal(size=len(LABELS))
    # Of float64, so that no machine's products in float32 round them otherwise.
    return Features("made", None, (Columns.of_array("made", X),))


def digest(arrays):
    sha = hashlib.sha256()
    for array in arrays:
        sha.update((np.round(np.asarray(array, np.float64), 2) + 0.0).tobytes())
    return sha.hexdigest()[:12]


def versions(task, head):
    steps = [head.estimator]
    if isinstance(head.estimator, Pipeline):
        steps = [step for _, step in head.estimator.steps]
    if getattr(head, "grouped", False):
        steps.append(GroupedRidge)
    return [task.version, *(step.version for step in steps if hasattr(step, "version"))]


def outcomes(store):
    for name, task in tasks(store).items():
        problem = task.bind(store)
        for head in problem.heads.values():
            if isinstance(head.estimator, vr.SGDProbe):
                head = Head(head.name, clone(head.estimator).set_params(steps=20))
            scored = [
                problem.score(head, made(dims), 0, shuffled)
                for dims in (5, 200)
                for shuffled in (False, True)
            ]
            found = digest([item.outcome for item in scored])
            yield f"{name} {head.name}", (versions(task, head), found)


def test_outputs_change_with_versions_alone(store):
    assert dict(outcomes(store)) == DIGESTS


def test_controls_change_with_their_version_alone(store):
    X = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)
    (block,) = controls.pca(X, np.arange(20), [5])[0].columns[0].blocks()
    assert (controls.VERSION, digest([np.abs(block)])) == CONTROLS
