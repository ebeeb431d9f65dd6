"""Seeds and counts as NumPy has them, as of `for seed in np.arange(5)`."""

import json

import numpy as np
import pytest

import vdvae_repr as vr
from vdvae_repr.config import TrainConfig

ONE_LAYER = {"layers": "4x4", "selections": "single", "cache": None, "progress": False}


@pytest.fixture
def store(tiny, people, tmp_path):
    with vr.extract(tiny, people(4), tmp_path / "s.h5", layers="<=4x4") as store:
        yield store


def probed(store, tiny, folder, seed, two):
    report = vr.probe(store, "face_id", **ONE_LAYER, controls="random-init", seed=seed)
    report.save(folder)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [(row["model"], row["value"], row["seed"]) for row in rows]


def few_shot(store, tiny, folder, seed, two):
    task = vr.FewShot(ways=two, shots=(two - 1, two), queries=two, episodes=two + 2)
    report = vr.probe(store, task, **ONE_LAYER, controls=(), heads="nearest-prototype", seed=seed)
    report.save(folder)
    return [row.value for row in report.rows]


def compared(store, tiny, folder, seed, two):
    return vr.compare(store, store, seed=seed).shuffled.tolist()


def extracted(store, tiny, folder, seed, two):
    with vr.extract(
        tiny, store.images()[:4], folder / "z.h5", layers=two - 2, z="sample", features="z",
        seed=seed, draws=two, batch_size=two, crop=two + 14, num_workers=two - 1,
    ) as drawn:  # fmt: skip
        return drawn["1x1.0"].z[:].tolist(), drawn.info.seed


def drawn(store, tiny, folder, seed, two):
    return tiny.sample(two, seed=seed).tolist()


def read(store, tiny, folder, seed, two):
    return tiny.posterior(store.images()[:2], z="sample", seed=seed)["1x1.0"].z.tolist()


def decoded(store, tiny, folder, seed, two):
    (batch,) = store.decode(tiny, first=two - 1, rest="sample", seed=seed)
    return batch[1].tolist()


def evaluated(store, tiny, folder, seed, two):
    images = store.images()[:4]
    return vr.evaluate(tiny, images, seed=seed, batch_size=two, importance_samples=two).to_json()


def transformed(store, tiny, folder, seed, two):
    from vdvae_repr import LatentTransformer

    transformer = LatentTransformer(tiny, layers="1x1", z="sample", seed=seed)
    return transformer.fit_transform(store.images()[:2]).tolist()


def trained(store, tiny, folder, seed, two):
    vr.train(
        vr.Config(model=tiny.config, train=TrainConfig(steps=two, batch_size=two, lr=1e-3)),
        store.images(), folder / "run", seed=seed, log_every=two - 1, accumulate=two - 1,
        crop=two + 14, recompute=[two + 2], num_workers=two - 1,
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in lines if "loss" in row]


def brain_data(store, tiny, folder, seed, two):
    paths = vr.brain.synthetic_nsd(
        folder, store, {"A": "1x1.0"}, voxels=two, sessions=two, seed=seed
    )
    return vr.brain.read_nsd(paths["betas"], paths["design"], subject=two - 1).values.tolist()


def fitted(store, tiny, folder, seed, two):
    responses = np.random.default_rng(0).normal(size=(len(store), 5))
    decoder = vr.brain.fit(responses, store, layers="1x1", split=None, seed=seed)
    return decoder.alphas


CALLS = (
    probed, few_shot, compared, extracted, drawn, read, decoded, evaluated, transformed, trained, brain_data,
    fitted,
)  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_numbers_of_numpy_are_taken_as_pythons(call, store, tiny, tmp_path):
    results = []
    for kind in (int, np.int64):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        results.append(call(store, tiny, folder, kind(3), kind(2)))
    assert json.dumps(results[0]) == json.dumps(results[1])


@pytest.mark.parametrize("seed", [-1, True, 1.5, "1"], ids=repr)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_seed_is_one_line(call, seed, store, tiny, tmp_path):
    with pytest.raises(vr.VDVAEReprError, match=r"seed(: expected| must be)"):
        call(store, tiny, tmp_path, seed, 2)
