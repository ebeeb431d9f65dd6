"""A report as `probe` makes it, made by hand: two heads, five layers singly and together, controls."""

import numpy as np

from vdvae_repr.probing.report import Report
from vdvae_repr.results import Comparison, Confusion, Curve, Result, Similarity

LAYERS = ("1x1.0", "4x4.0", "4x4.1", "8x8.0", "8x8.1")
VALUES = {
    "nearest": (0.111, 0.222, 0.333, 0.255, 0.244),
    "ridge": (0.151, 0.252, 0.353, 0.454, 0.405),
}


def row(head, layer, value, **columns):
    known = {
        "task": "face_id", "protocol": "closed-set", "model": "tiny", "source": "people", "dims": 16,
        "weights_sha256": "ab" * 32, "n_train": 60, "n_test": 50, "units": 20, "metric": "rank1",
        "chance": 0.05, "feature": "mean", "selection": "single", "interval": "bootstrap",
    }  # fmt: skip
    interval = {"ci_low": value - 0.05, "ci_high": value + 0.05}
    return Result(head=head, layer=layer, value=value, **(known | interval | columns))


def rows_of(head, values):
    best = max(values)
    for layer, value in zip(LAYERS, values, strict=True):
        yield row(head, layer, value, training_score=value)
        yield row(head, layer, value + 0.1, metric="rank5", chance=0.25, training_score=value)
    for number, value in enumerate(values[1:], start=2):
        chosen = {"chosen": True, "versus": "pixels", "difference": 0.1, "p_value": 0.0123}
        yield row(
            head, f"0:{number}", value + 0.04, selection="cumulative", training_score=value + 0.04,
            dims=16 * number, **(chosen if value == best else {}),
        )  # fmt: skip
    control = {"role": "control", "weights_sha256": None}
    bare = control | {"selection": None, "feature": None}
    yield row(head, None, best - 0.06, model="pixels", chosen=True, **bare)
    yield row(head, None, best - 0.12, model="pca", chosen=True, **bare)
    for layer, value in zip(LAYERS, values, strict=True):
        yield row(head, layer, value - 0.08, model="random-init", chosen=value == best, **control)
    yield row(head, "8x8.0", 0.049, model="shuffled-labels", chosen=True, **control)


def compared(head, versus, difference, p, verdict):
    return Comparison(
        task="face_id", protocol="closed-set", head=head, n_train=60, model="tiny", layer="0:4",
        selection="cumulative", feature="mean", pool=None, metric="rank1", at=None, value=0.494,
        versus=versus, versus_layer=None, versus_dims=768, versus_value=0.394, difference=difference,
        diff_low=difference - 0.05, diff_high=difference + 0.05, p_raw=p / 3, p_value=p, units=20, why=None,
        verdict=verdict,
    )  # fmt: skip


def confused(classes, counts, head="ridge"):
    return Confusion(
        head=head, n_train=60, model="tiny", layer="0:4", selection="cumulative", feature="mean", pool=None,
        classes=tuple(classes), counts=np.array(counts),
    )  # fmt: skip


def made_report():
    rows = [row for head, values in VALUES.items() for row in rows_of(head, values)]
    ranks = np.arange(1.0, 21.0)
    names = tuple(LAYERS)
    cka = np.clip(np.eye(5) + 0.1, 0, 1)
    return Report(
        rows=rows,
        comparisons=[
            compared("nearest", "pixels", -0.02, 0.6, "no difference told"),
            compared("ridge", "pixels", 0.1, 0.0123, "better"),
            compared("ridge", "pca", 0.16, 0.009, "better"),
        ],
        curves=[
            Curve("cmc", head, model, "0:4" if model == "tiny" else None, ranks, 1 - 0.6 / ranks)
            for head in VALUES
            for model in ("tiny", "pixels")
        ],
        confusions=[confused(["cat", "dog", "=owl"], [[12, 7, 1], [2, 13, 0], [0, 0, 15]])],
        notes=["no splits: half of each person's images"],
        headlines=["face_id, closed-set: 20 people, 60 gallery + 50 probe images · tiny"],
        more_heads=["linear-lbfgs"],
        nats={"1x1.0": 2.0, "0:2": 10.5, "0:3": 20.0, "0:4": 55.0, "0:5": 60.0},
        similarity={"mean": Similarity(cka, cka * 0.01, names, names)},
        record={"version": "0.1.0", "created": "2026-11-27T00:00:00+00:00", "command": "vdvae-repr probe"},
    )  # fmt: skip
