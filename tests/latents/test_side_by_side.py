"""Layers of several encoders as those of one store: names, values, what is refused, probes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import vdvae_repr as vr


@pytest.fixture
def source(people):
    return people(6, 4)


@pytest.fixture
def net():
    torch.manual_seed(0)
    inside = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, 2, 1), torch.nn.Conv2d(5, 6, 3, 2, 1))
    return vr.TorchEncoder(
        inside, layers=["0", "1"], size=16, mean=(0.5,) * 3, std=(0.5,) * 3, name="net"
    )


@pytest.fixture
def two(tiny, net, source, tmp_path):
    return (
        vr.extract(tiny, source, tmp_path / "vae.h5", layers="<=8x8"),
        vr.extract(net, source, tmp_path / "net.h5"),
    )


def test_values_are_those_of_each_store(two):
    vae, net = two
    both = vr.side_by_side(vae, net)
    assert [spec.name for spec in both.layers] == [*(s.name for s in vae.layers), "0", "1"]
    assert [spec.index for spec in both.layers] == list(range(len(vae.layers) + 2))
    assert both.features == ("mean+activation",)
    X, labels, ids = both.matrix("8x8.0,1")
    expected = np.concatenate([vae.matrix("8x8.0")[0], net.matrix("1")[0]], axis=1)
    np.testing.assert_array_equal(X, expected)
    assert (labels.tolist(), ids) == (vae.labels.tolist(), vae.ids)
    np.testing.assert_array_equal(
        both.matrix("4x4,0", pool="avg")[0],
        np.concatenate([vae.matrix("4x4", pool="avg")[0], net.matrix("0", pool="avg")[0]], axis=1),
    )
    np.testing.assert_array_equal(both.images(), vae.images())
    rows = getattr(both["1"], "mean+activation")[[5, 2]]
    np.testing.assert_array_equal(rows, net["1"].activation[[5, 2]])


def test_weights_multiply_values(two):
    vae, net = two
    both = vr.side_by_side(vae, net, weights=(2, 0.5))
    expected = np.concatenate([2 * vae.matrix("4x4")[0], 0.5 * net.matrix("0")[0]], axis=1)
    np.testing.assert_array_equal(both.matrix("4x4,0")[0], expected)
    np.testing.assert_array_equal(
        np.concatenate(list(both.columns("0")), axis=1), expected[:, -320:]
    )
    alike, plain = vr.side_by_side(vae, net), vr.side_by_side(vae, net, weights=(1, 1))
    spec = both.layers[-1]
    assert alike.digest(spec, alike.features[0]) == plain.digest(spec, plain.features[0])
    assert alike.digest(spec, alike.features[0]) != both.digest(spec, both.features[0])


def test_layers_of_one_name_are_called_by_their_encoder(tiny, source, two, tmp_path):
    vae, net = two
    twin = vr.extract(tiny, source, tmp_path / "twin.h5", layers="4x4", features=("mean", "delta"))
    both = vr.side_by_side(vae, twin, net)
    names = [spec.name for spec in both.layers]
    assert names == [
        *(f"tiny.{spec.name}" for spec in vae.layers),
        *(f"tiny (2).{spec.name}" for spec in twin.layers),
        "0",
        "1",
    ]
    np.testing.assert_array_equal(both.matrix("tiny")[0], vae.matrix()[0])
    with pytest.raises(vr.LayerError, match=r"no layer matches '4x4\.0'"):
        both.matrix("4x4.0")
    pair = vr.side_by_side(vae, twin)
    with pytest.raises(vr.StoreError, match=r"two layers would be called 'tiny\.1x1\.0'"):
        vr.side_by_side(pair, vae, twin)  # whose names the pair has given already
    assert pair.features == ("mean",)  # that both have
    assert pair.matrix("4x4")[0].shape[1] == 2 * vae.matrix("4x4")[0].shape[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, None),
        ({"z": "sample", "features": "mean"}, "b.h5 is of z sample, resize bicubic, "),
        ({"resize": "bilinear"}, "b.h5 is of z mean, resize bilinear, "),
    ],
)
def test_stores_that_were_read_otherwise_are_said(tiny, source, two, tmp_path, options, said):
    vae, net = two
    other = vr.extract(tiny, source, tmp_path / "b.h5", layers="16x16", **options)
    notices = [line for line in vr.side_by_side(vae, net, other).notices if "is of z" in line]
    assert len(notices) == (said is not None)
    assert said is None or said in notices[0]


def test_mirrored_images_and_closing(tiny, source, tmp_path):
    stores = [
        vr.extract(tiny, source, tmp_path / f"{r}.h5", layers=r, mirror=True)
        for r in ("4x4", "8x8")
    ]
    with vr.side_by_side(*stores) as both:
        turned = both.mirrored()
        assert turned.reads_mirrored
        np.testing.assert_array_equal(turned.matrix("8x8")[0], stores[1].mirrored().matrix()[0])
        np.testing.assert_array_equal(turned.images(), both.images()[:, :, ::-1])
        assert both.verify() == ()
        with pytest.raises(vr.StoreError, match="has no kl of all encoders"):
            both.kl  # noqa: B018
    for store in stores:
        with pytest.raises(vr.StoreError, match="is closed"):
            store.matrix()


def test_other_images_are_refused_in_one_line(tiny, net, source, people, two, tmp_path):
    vae, first = two
    n = len(source)

    def store(name, other):
        return vr.extract(net, other, tmp_path / f"{name}.h5")

    turned = store("turned", source.select(list(range(n))[::-1]))
    fewer = store("fewer", source.select(range(n - 1)))
    pixels = replace(people(6, 4, seed=3), ids=source.ids)
    labels = replace(source, labels=np.roll(source.labels, 1))
    splits = replace(source, splits=("train",) * 12 + ("test",) * (n - 12))
    for stores, message in (
        ((vae, turned), "found the same in another order; extract both from the same images"),
        ((vae, fewer), "others, as .*, which only one of them has"),
        ((vae, store("pixels", pixels)), "found others under the same ids"),
        ((vae, store("labels", labels)), "expected the labels of"),
        ((vae, store("splits", splits)), "expected the splits of"),
        ((vae,), "expected two stores or more, found 1"),
        ((vae, "net.h5"), "expected open stores, found str"),
    ):
        with pytest.raises(vr.StoreError, match=message) as refused:
            vr.side_by_side(*stores)
        assert "\n" not in str(refused.value)
    for weights, message in (
        ((1,), "expected one of each of 2 stores, found 1"),
        ((1, -1), "expected positive numbers"),
        ((1, float("nan")), "expected positive numbers"),
    ):
        with pytest.raises(vr.StoreError, match=message):
            vr.side_by_side(vae, first, weights=weights)


def test_a_probe_joins_layers_of_two_encoders(two):
    """What is told of both together is what is told of their columns in one store."""
    vae, net = two
    task = vr.FewShot(ways=3, shots=1, queries=2, episodes=20)
    options = {"heads": "nearest-prototype", "selections": "joint", "cache": None}

    def values(store, layers, **more):
        report = vr.probe(store, task, layers=layers, progress=False, **options, **more)
        own = {(r.model, r.layer): r.value for r in report.rows if r.role == "model"}
        return own, report

    both = vr.side_by_side(vae, net)
    found, report = values(both, ["8x8.0,1", "1"], controls=("pixels", "random-init"), beside=[net])
    assert found["tiny+torch:net", "1"] == found["torch:net", "1"]  # the same episodes
    assert ("tiny+torch:net", "8x8.0,1") in found
    assert any("no random-init: layers of several encoders" in note for note in report.notes)
    assert "random-init" in report.rows[0].controls_left_out
    light = vr.side_by_side(vae, net, weights=(1e-6, 1))
    (alone,) = values(light, "8x8.0,1", controls=())[0].values()
    assert alone == found["torch:net", "1"]  # what weighs nothing decides nothing
