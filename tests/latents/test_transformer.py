import copy
import pickle
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import vdvae_repr as vr


def test_features_are_the_stores(tiny, images, tmp_path):
    store = vr.extract(tiny, images, tmp_path / "s.h5", features=("delta",), layers="8x8")
    head = vr.LatentTransformer(tiny, layers="8x8", feature="delta", pool="avg:2", batch_size=5)
    found = head.fit_transform(images)
    np.testing.assert_allclose(found, store.matrix("8x8", "delta", "avg:2")[0], atol=1e-4)
    names = head.get_feature_names_out()
    assert (len(names), names[0], names[-1]) == (found.shape[1], "8x8.0_delta_0", "8x8.1_delta_15")


def test_it_clones_pickles_and_is_searched_over(tiny, images):
    labels = np.arange(12) % 2
    pipeline = make_pipeline(vr.LatentTransformer(tiny, pool="avg"), LogisticRegression())
    search = GridSearchCV(pipeline, {"latenttransformer__layers": ["4x4", "8x8"]}, cv=2)
    search.fit(images, labels)
    fitted = search.best_estimator_
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict(images), fitted.predict(images))
    assert clone(fitted[0]).get_params()["layers"] == fitted[0].layers


def test_images_of_any_size_and_files(tiny, images, tmp_path):
    large = [Image.fromarray(image).resize((40, 32)) for image in images[:3]]
    paths = []
    for index, image in enumerate(large):
        paths.append(str(tmp_path / f"{index}.png"))
        image.save(paths[-1])
    head = vr.LatentTransformer(tiny, layers="1x1").fit(None)
    assert np.array_equal(head.transform(large), head.transform(paths))


@pytest.mark.parametrize("kind", ["array", "pil"])
@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda X: (X / 255).astype(np.uint8), "images are black, 0 everywhere, as image 0"),
        (lambda X: X // 128, "255 is read as white; the brightest pixel found is 1"),
        (lambda X: X, ""),
    ],
)
def test_images_that_are_black_or_dark_are_said(tiny, images, caplog, kind, change, line):
    """Floats from 0 to 1 that are cast to whole numbers are 0."""
    given = change(np.minimum(images, 254))
    head = vr.LatentTransformer(tiny, layers="1x1").fit(None)
    head.transform(given if kind == "array" else [Image.fromarray(image) for image in given])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(line)
    assert not line or line in said[0]
    with pytest.raises(vr.DataError, match=r"of values from 0 to 1, \(255 \* X\)"):
        head.transform(images / 255)
    with pytest.raises(vr.DataError, match=r"of values from 0 to 1, \(255 \* X\)"):
        head.transform(torch.from_numpy(images / 255).bfloat16())


@pytest.mark.parametrize(("opacity", "count"), [(0, 1), (100, 1), (200, 0)])
def test_pictures_that_white_shows_through_are_said(tiny, images, caplog, opacity, count):
    clear = np.concatenate([images, np.full_like(images[..., :1], opacity)], axis=3)
    head = vr.LatentTransformer(tiny, layers="1x1", batch_size=5).fit(None)
    head.transform([Image.fromarray(image) for image in clear])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == count
    assert all("X: 12 images of less than half of full opacity" in line for line in said)


@pytest.mark.parametrize(("bits", "few"), [(12, True), (13, True), (15, True), (16, False)])
def test_pictures_of_16_bits_that_hold_fewer_are_said(tiny, images, caplog, bits, few):
    deep = np.minimum(images[..., 0], 254).astype(np.uint16) << (bits - 8)
    deep[3] = 0 if bits == 13 else deep[3]
    vr.LatentTransformer(tiny, layers="1x1", batch_size=5).fit(None).transform(
        [Image.fromarray(image) for image in deep]
    )
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == few + (bits == 13)
    assert few == any("images of 16 bits, none above" in line for line in said)


GREY = np.random.default_rng(5).integers(64, 255, (6, 16, 16)).astype(np.uint8)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            [Image.fromarray(g.astype(np.uint16) << 4) for g in GREY],
            "6 images of 16 bits, none above 40",
        ),
        (
            [
                Image.fromarray(GREY[0]),
                *(Image.fromarray(g.astype(np.uint16) << 4) for g in GREY[1:4]),
            ],
            "3 images of 16 bits, none above 40",
        ),
        (
            [Image.fromarray(np.dstack([g, g, g, g // 3])) for g in GREY],
            "6 images of less than half",
        ),
        (
            [Image.fromarray(g * 0) for g in GREY[:2]] + [Image.fromarray(GREY[0])],
            "2 images are black",
        ),
        (GREY // 128, "the brightest pixel found is 1"),
        ((GREY / 255**2).astype(np.float32), "the brightest pixel found is 1"),
        (torch.from_numpy(GREY // 64), "the brightest pixel found is 3"),
        ([Image.fromarray(g.astype(np.uint16) << 8) for g in GREY], ""),
        (GREY, ""),
        ((GREY / 255).astype(np.float32), ""),
    ],
)
def test_images_given_to_posterior_are_looked_at_as_those_of_a_transformer(
    tiny, caplog, given, line
):
    """What is said is the same of both, where both take it."""
    tiny.posterior(given, "1x1")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(line)
    assert not line or line in said[0]
    if isinstance(given, list):
        caplog.clear()
        vr.LatentTransformer(tiny, layers="1x1").fit(None).transform(given)
        again = [record.getMessage() for record in caplog.records]
        assert again == [text.replace("images: ", "X: ", 1) for text in said]


def spoilt(tiny, parameter, value):
    """The model with one weight that is not what training leaves."""
    net = copy.deepcopy(tiny)
    with torch.no_grad():
        net.get_parameter(parameter).view(-1)[0] = value
    return net


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_features_that_are_not_finite_are_refused(tiny, images, value):
    """A scikit-learn estimator that takes NaN, as trees do, would learn from them."""
    net = spoilt(tiny, "bottom_up.in_conv.weight", value)
    read = net._read(torch.from_numpy(images).permute(0, 3, 1, 2), net.layers[1:2])
    assert not read["4x4.0"].mean.isfinite().all()
    head = vr.LatentTransformer(tiny, layers="4x4").fit(images)
    head.model_ = net
    for call in (head.transform, lambda images: net.posterior(images, "4x4")):
        with pytest.raises(
            vr.DataError, match=r"of layer .*: expected finite values.* for image '0'"
        ) as told:
            call(images)
        assert "\n" not in str(told.value)


def test_one_image_far_from_the_others_is_named(tiny, images):
    head = vr.LatentTransformer(tiny, layers="all", feature="kl", batch_size=5).fit(images)
    expected = head.transform(images)
    read = head._read

    def with_infinity(pixels, ids):
        values = read(pixels, ids)
        if "7" in ids:
            values["4x4.0"][ids.index("7"), 3] = np.inf
        return values

    head._read = with_infinity
    with pytest.raises(vr.DataError, match=r"kl of layer 4x4\.0: .* for image '7',"):
        head.transform(images)
    del head._read
    assert np.array_equal(head.transform(images), expected)


def test_bad_input_is_named(tiny, images):
    with pytest.raises(vr.LayerError, match="unknown feature 'means'"):
        vr.LatentTransformer(tiny, feature="means").fit(images)
    head = vr.LatentTransformer(tiny, layers="1x1").fit(images)
    with pytest.raises(vr.DataError, match=r"image 0: expected uint8 .* found float64"):
        head.transform(images / 255)
    with pytest.raises(vr.DataError, match=r"none\.png: cannot be read"):
        head.transform(["none.png"])


@pytest.mark.parametrize(
    "given",
    [
        {"z": "foo"},
        {"batch_size": 0},
        {"seed": 1.5},
        {"seed": 2**70},
        {"crop": 8.5},
        {"device": "cuda"},
        {"device": "gpu"},
    ],
)
def test_arguments_of_other_kinds_are_one_line(tiny, images, given):
    (name,) = given
    with pytest.raises(vr.ConfigError, match=f"^{name}: expected") as refusal:
        vr.LatentTransformer(tiny, **given).fit(images)
    assert "\n" not in str(refusal.value)


def test_a_device_is_that_of_the_model_or_a_devices_name(tiny, images):
    """Torch calls the CPU cpu:0 too; no name, as of a variable that is not set, is no device."""
    vr.LatentTransformer(tiny, device="cpu:0").fit(images)
    with pytest.raises(vr.VDVAEReprError, match="device"):
        vr.LatentTransformer("faces64", device="").fit(images)


@pytest.fixture
def paths(images, tmp_path):
    names = [str(tmp_path / f"{index}.png") for index in range(6)]
    for name, image in zip(names, images, strict=False):
        Image.fromarray(image).save(name)
    return names


def test_rows_come_in_the_order_of_positions_whatever_the_index(tiny, paths):
    """As `df.sample(frac=1)` and `train_test_split` leave a series, or a table of one column."""
    head = vr.LatentTransformer(tiny, layers="1x1").fit(None)
    whole, order = head.transform(paths), [4, 0, 5]
    shuffled = pd.Series(paths).iloc[order]
    for given in (shuffled, shuffled.to_frame(), shuffled.to_numpy(), tuple(shuffled)):
        assert np.array_equal(head.transform(given), whole[order])


def test_what_is_no_list_of_images_is_one_line(tiny, paths):
    head = vr.LatentTransformer(tiny, layers="1x1").fit(None)
    for given in (iter(paths), dict(enumerate(paths)), paths[0], None):
        with pytest.raises(vr.DataError, match="X: expected a list or an array of images or paths"):
            head.transform(given)


def test_files_are_read_and_refused_as_a_source_reads_them(tiny, tmp_path):
    """A TIFF of signed numbers; 16-bit colors that a PNG calls transparent, which are white."""
    head = vr.LatentTransformer(tiny, layers="1x1").fit(None)
    signed = tmp_path / "s.tif"
    Image.fromarray(np.full((16, 16), 200, np.uint8)).save(signed, tiffinfo={339: 2})
    with pytest.raises(vr.DataError, match="a TIFF of signed numbers"):
        head.transform([signed])
    clear = tmp_path / "t.png"
    row = b"\0" + np.full((16, 3), 1000, ">u2").tobytes()
    head_of = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    chunks = {b"IHDR": head_of, b"tRNS": struct.pack(">HHH", 1000, 1000, 1000)}
    chunks |= {b"IDAT": zlib.compress(row * 16), b"IEND": b""}
    clear.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks.items()
        )
    )
    white = np.full((1, 16, 16, 3), 255, np.uint8)
    assert np.array_equal(head.transform([clear]), head.transform(white))


def test_what_a_mask_hides_is_refused(tiny, images):
    """By whatever takes an array: NumPy and torch leave masks out."""
    hidden = np.ma.masked_array(images, mask=images < 9)
    head = vr.LatentTransformer(tiny, layers="1x1").fit(None)
    for call in (head.transform, tiny.posterior):
        for given in (hidden, list(hidden)):
            with pytest.raises(vr.DataError, match="expected pixels, found a masked array"):
                call(given)
    z = np.ma.masked_array(np.zeros((2, 4, 1, 1)), mask=True)
    with pytest.raises(vr.LayerError, match=r"layer 1x1\.0: expected latents, found a masked arr"):
        tiny.decode({"1x1.0": z})
    assert np.array_equal(head.transform(np.ma.masked_array(images)), head.transform(images))


def test_parameters_set_after_fit_count_from_the_next_fit_on(tiny, images):
    head = vr.LatentTransformer(tiny, layers="4x4").fit(images)
    before, names = head.transform(images), list(head.get_feature_names_out())
    head.set_params(feature="delta", layers="8x8", pool="avg", z="sample", seed=3)
    assert np.array_equal(head.transform(images), before)
    assert list(head.get_feature_names_out()) == names
    assert head.fit(images).get_feature_names_out()[0] == "8x8.0_delta_0"
