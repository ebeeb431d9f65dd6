"""Decoding against scikit-learn's Ridge as brain-diffuser writes it, and image scores as it has them."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from sklearn.linear_model import Ridge, RidgeCV

import vdvae_repr as vr
from vdvae_repr.brain import decoding
from vdvae_repr.brain.responses import read_responses
from vdvae_repr.config import StudentConfig
from vdvae_repr.data.source import Source
from vdvae_repr.heads.linear import ALPHAS
from vdvae_repr.model.student import Student


@pytest.fixture(scope="module")
def store(tiny, people, tmp_path_factory):
    source = people(20, num_people=8)
    path = tmp_path_factory.mktemp("decoding") / "s.h5"
    splits = ["train", "train", "test", "train"] * 40
    split = Source(
        name="seen", ids=source.ids, reader=source.reader, labels=source.labels, splits=splits
    )
    return vr.extract(tiny, split, path)


@pytest.fixture(scope="module")
def bold(store):
    """300 voxels that see two of the five layers, through noise, on a scale of their own; seen twice."""
    rng = np.random.default_rng(0)
    X = np.hstack([store.matrix(layer)[0] for layer in ("1x1.0", "8x8.0")]).astype(np.float64)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    signal = X @ rng.normal(size=(X.shape[1], 300)) / X.shape[1] ** 0.5
    return (300 * (signal + rng.normal(size=(2, *signal.shape)))).astype(np.float32)


def brain_diffuser(responses, latents, train, test, alpha):
    """Its vdvae_regression.py, on arrays."""
    train_fmri, test_fmri = responses[train], responses[test]
    mean, scale = train_fmri.mean(axis=0), train_fmri.std(axis=0, ddof=1)
    train_fmri, test_fmri = (train_fmri - mean) / scale, (test_fmri - mean) / scale
    reg = Ridge(alpha=alpha, max_iter=10000, fit_intercept=True)
    reg.fit(train_fmri, latents[train])
    pred = reg.predict(test_fmri)
    std_norm = (pred - np.mean(pred, axis=0)) / np.std(pred, axis=0)
    return pred, std_norm * np.std(latents[train], axis=0) + np.mean(latents[train], axis=0)


@pytest.mark.parametrize("alpha", [50_000.0, 3.0])
def test_predictions_are_brain_diffusers(store, bold, tmp_path, alpha, monkeypatch):
    monkeypatch.setattr(decoding, "AT_ONCE", 70)  # several blocks of voxels and of dimensions
    decoder = vr.brain.fit(bold, store, alpha=alpha)
    train, test = store.rows("train"), store.rows("test")
    latents = store.matrix()[0].astype(np.float64)
    plain, expected = brain_diffuser(
        bold.mean(axis=0).astype(np.float64), latents, train, test, alpha
    )
    found = decoder.predict(bold, store, tmp_path / "p.h5")
    assert found.store.ids == tuple(store.ids[row] for row in test)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found.store.matrix()[0], expected, atol=1e-5 * largest)
    found = decoder.predict(bold, store, tmp_path / "p.h5", restandardise=False, overwrite=True)
    np.testing.assert_allclose(found.store.matrix()[0], plain, atol=1e-5 * largest)
    # R2 of each layer, of all its dimensions together.
    start = 0
    for spec, r2 in zip(store.layers, found.layers["r2"], strict=True):
        own = slice(start, start := start + spec.num_dims)
        truth = latents[test, own]
        errors = ((truth - plain[:, own]) ** 2).sum()
        assert r2 == pytest.approx(1 - errors / ((truth - truth.mean(axis=0)) ** 2).sum(), abs=1e-5)


def test_a_penalty_too_small_for_responses_of_few_voxels_is_one_line(store, bold, tmp_path):
    """The inner products of 120 images by 20 voxels are singular to rounding."""
    decoder = vr.brain.fit(bold[:, :, :20], store, layers="1x1", alpha=1e-30)
    with pytest.raises(vr.TaskError, match="alpha: 1e-30 is too small a penalty"):
        decoder.predict(bold[:, :, :20], store, tmp_path / "p.h5")


def test_each_layer_has_the_penalty_that_leave_one_out_finds(store, bold):
    decoder = vr.brain.fit(bold, store, layers=["1x1", "4x4", "8x8"])
    train = store.rows("train")
    responses = bold.mean(axis=0)[train].astype(np.float64)
    responses = (responses - responses.mean(axis=0)) / responses.std(axis=0, ddof=1)
    scale = (responses**2).sum() / len(responses)
    for name, alpha in zip(decoder.layers, decoder.alphas, strict=True):
        latents = store.matrix(name)[0][train].astype(np.float64)
        expected = RidgeCV(ALPHAS * scale).fit(responses, latents).alpha_
        assert alpha == pytest.approx(expected), name


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_torch_fits_and_predicts_what_numpy_does(store, bold, tmp_path, alpha, monkeypatch):
    expected = vr.brain.fit(bold, store, alpha=alpha)
    predicted = expected.predict(bold, store, tmp_path / "numpy.h5")
    monkeypatch.setattr(decoding.Algebra, "on", classmethod(lambda cls, device: cls(torch)))
    found = vr.brain.fit(bold, store, alpha=alpha)
    np.testing.assert_allclose(found.alphas, expected.alphas, rtol=1e-12)
    by_torch = expected.predict(bold, store, tmp_path / "torch.h5")
    here, there = predicted.store.matrix()[0], by_torch.store.matrix()[0]
    np.testing.assert_allclose(there, here, atol=1e-6 * np.abs(here).max())
    np.testing.assert_allclose(by_torch.layers["r2"], predicted.layers["r2"], atol=1e-9)


def test_layers_that_are_seen_are_told_and_others_are_not(store, bold, tmp_path, monkeypatch):
    """Voxels that see noise alone predict no layer; of 20 such brains one is told by chance at most."""
    seen = vr.brain.fit(bold, store).predict(bold, store, tmp_path / "p.h5")
    assert {"1x1.0", "8x8.0"} <= set(seen.told)
    monkeypatch.setattr(decoding, "PERMUTATIONS", 200)
    told = []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=(160, 60))
        decoder = vr.brain.fit(noise, store, alpha=60.0)
        found = decoder.predict(noise, store, tmp_path / f"{seed}.h5", seed=seed)
        told.append(bool(found.told))
        assert (found.layers["r2"] < 0.3).all()
    assert np.mean(told) <= 0.05


def test_a_decoder_is_saved_without_coefficients(store, bold, tmp_path):
    decoder = vr.brain.fit(bold, store, layers="8x8")
    path = tmp_path / "decoder.npz"
    decoder.save(path)
    assert path.stat().st_size < 1.1 * decoder.responses.nbytes + 20_000
    again = vr.brain.Decoder.load(path)
    assert again.alphas == decoder.alphas
    first = decoder.predict(bold, store, tmp_path / "a.h5")
    second = again.predict(bold, store, tmp_path / "b.h5")
    np.testing.assert_array_equal(first.store.matrix()[0], second.store.matrix()[0])
    assert "1x1.0" not in [spec.name for spec in second.store.layers]
    with pytest.raises(vr.TaskError, match="exists already"):
        decoder.save(path)
    decoder.save(path, overwrite=True)
    other = tmp_path / "other.npz"
    np.savez(other, a=1)
    for action in (
        lambda: decoder.save(other, overwrite=True),
        lambda: vr.brain.Decoder.load(other),
    ):
        with pytest.raises(vr.TaskError, match=r"exists already|expected a decoder"):
            action()


def test_one_or_two_images_are_not_restandardised(store, bold, tmp_path):
    """Of one it would give the training mean, of two that and a deviation, whatever was seen."""
    decoder = vr.brain.fit(bold, store, layers="1x1", alpha=10.0)
    test = store.rows("test")
    for count in (1, 2, 3):
        responses = read_responses(bold, store).to(test[:count])
        if count < 3:
            with pytest.raises(
                vr.TaskError, match=rf"3 images.*found {count}; .*restandardise=False"
            ):
                decoder.predict(responses, store, tmp_path / "p.h5", overwrite=True)
        found = decoder.predict(
            responses, store, tmp_path / "p.h5", restandardise=count > 2, overwrite=True
        )
        assert len(found.store) == count


def test_responses_in_memory_are_predicted_from_as_they_are_fitted_on(store, bold, tmp_path):
    """Voxels that were left out are told by their numbers."""
    holes = bold.copy()
    holes[:, 2, 7] = np.nan
    read = read_responses(holes, store)
    decoder = vr.brain.fit(read, store, layers="1x1", alpha=10.0)
    expected = vr.brain.fit(holes, store, layers="1x1", alpha=10.0).predict(
        holes, store, tmp_path / "a.h5"
    )
    found = decoder.predict(read, store, tmp_path / "b.h5")
    np.testing.assert_array_equal(found.store.matrix()[0], expected.store.matrix()[0])
    with pytest.raises(vr.TaskError, match="expected voxel 0, which was fitted on"):
        decoder.predict(read.of(read.voxels > 0), store, tmp_path / "c.h5")


def test_what_cannot_be_decoded_is_refused(store, bold, tiny, people, tmp_path):
    decoder = vr.brain.fit(bold, store, layers="1x1", alpha=10.0)
    out = tmp_path / "p.h5"
    holes = bold.copy()
    holes[:, 2, 7] = np.nan
    other = vr.extract(tiny, people(4, seed=3), tmp_path / "o.h5", layers="1x1")
    for responses, like, split, message in (
        (bold[:, :, :9], store, "test", "the 300 voxels that were fitted on, found 9"),
        (bold, store, "val", "images of split val, found none"),
        (bold, store, "train", "was fitted on"),
        (holes, store, "test", "others of voxel 7"),
        (bold[:, :24], other, "test", "the images that were fitted on"),
    ):
        with pytest.raises(vr.TaskError, match=message):
            decoder.predict(responses, like, out, split=split)
    with pytest.raises(vr.TaskError, match="above 0"):
        vr.brain.fit(bold, store, alpha=0.0)
    with pytest.raises(vr.TaskError, match="at least 3 images of split val, found 0"):
        vr.brain.fit(bold, store, split="val")
    # A voxel that is unknown of some image is left out of fit and prediction alike.
    fitted = vr.brain.fit(holes, store, layers="1x1", alpha=10.0)
    assert len(fitted.voxels) == 299
    assert (
        fitted.predict(holes, store, out).store.ids
        == decoder.predict(bold, store, tmp_path / "q.h5").store.ids
    )


def test_image_scores_are_brain_diffusers(tiny):
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (9, 32, 32, 3)).astype(np.uint8)
    noise = rng.integers(-60, 60, originals.shape)
    decoded = np.clip(originals.astype(int) // 2 + 64 + noise, 0, 255).astype(np.uint8)
    found = vr.brain.score_images(decoded, originals)
    flat = [images.reshape(9, -1).astype(float) for images in (originals, decoded)]
    r = np.corrcoef(*flat)[:9, 9:]
    assert found.pixcorr == pytest.approx(np.diag(r).mean())
    ssim = [
        structural_similarity(
            rgb2gray(a), rgb2gray(b), gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, data_range=1.0,
        )
        for a, b in zip(decoded, originals, strict=True)
    ]  # fmt: skip
    assert found.ssim == pytest.approx(np.mean(ssim))
    assert abs(found.shuffled_pixcorr) < 0.1 < found.pixcorr
    assert found.identification is None
    # Its pairwise comparison, on features.
    truth, predicted = rng.normal(size=(9, 30)), rng.normal(size=(9, 30))
    predicted += 0.4 * truth
    r = np.corrcoef(truth, predicted)[:9, 9:]
    expected = np.mean(np.sum(r < np.diag(r), axis=0)) / 8
    assert vr.brain.two_way_identification(truth, predicted) == pytest.approx(expected)
    by_layer = vr.brain.score_images(originals, originals, tiny, "4x4.0")
    assert by_layer.identification == 1
    assert by_layer.encoder == "tiny 4x4.0"
    with pytest.raises(vr.TaskError, match="expected 2 images or more of one size"):
        vr.brain.score_images(decoded[:1], originals[:1])


def test_what_is_said_of_images_that_are_scored_names_which(caplog):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, 2))
    encoder = vr.TorchEncoder(net, layers=["0"], size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    originals = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), np.uint8)
    vr.brain.score_images(255 - originals, originals, encoder)
    said = [record.getMessage() for record in caplog.records if "enlarged" in record.getMessage()]
    line = "4 of 4 images are enlarged to 32 pixels a side, from 12"
    assert said == [f"originals: {line}", f"decoded: {line}"]


@pytest.mark.parametrize("sides", ["both", "test"])
def test_images_that_were_fitted_on_or_are_predicted_twice_are_refused(
    tiny, people, tmp_path, sides
):
    """By responses that see nothing, copies of training images would be predicted beyond chance."""
    source = people(10, num_people=4)
    images = np.stack([source.reader(row) for row in range(40)])
    images[30:] = images[:10] if sides == "both" else images[[30] * 10]
    store = vr.extract(tiny, images, tmp_path / "s.h5", layers="1x1")
    noise = np.random.default_rng(0).normal(size=(40, 30))
    np.savez(tmp_path / "r.npz", r=noise, splits=["train"] * 30 + ["test"] * 10)
    decoder = vr.brain.fit(tmp_path / "r.npz", store, alpha=1.0)
    first = "0 in the images fitted on" if sides == "both" else "30 in the images to predict"
    with pytest.raises(
        vr.TaskError, match=rf"3[01] in the images to predict is the same image as {first}"
    ):
        decoder.predict(tmp_path / "r.npz", store, tmp_path / "p.h5")
    assert not (tmp_path / "p.h5").exists()
    blind = vr.extract(tiny, images, tmp_path / "b.h5", layers="1x1", images=False)
    found = decoder.predict(tmp_path / "r.npz", blind, tmp_path / "p.h5")
    assert "holds no images: whether some were fitted on" in found.notes[-1]
    assert "without ids" in found.notes[0]


def test_latents_that_give_no_images_back_are_not_fitted(tiny, people, bold, tmp_path):
    pooled = vr.extract(tiny, people(5), tmp_path / "a.h5", layers="8x8", pool="avg")
    with pytest.raises(vr.StoreError, match="latents pooled by avg, which give no images back"):
        vr.brain.fit(bold[:, :30], pooled, split=None)
    config = StudentConfig(
        image_size=16, width=8, zdim=4, bottom_up="16x1,16d4,4x1", top_down="4x2", layers="all",
        shift=-127.5, scale=1 / 64,
    )  # fmt: skip
    student = vr.extract(Student(config), people(5), tmp_path / "s.h5")
    with pytest.raises(vr.StoreError, match=r"what a student, student, predicts"):
        vr.brain.fit(bold[:, :30], student, split=None)


def test_what_is_scored_is_checked():
    """SSIM of other types is another number, or 1 of images that differ; NaN is never more alike."""
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    for other in (images.astype(np.float32), images / 255, images.astype(np.int64)):
        for pair, name in (((other, images), "decoded"), ((images, other), "originals")):
            with pytest.raises(
                vr.TaskError, match=rf"{name}: expected uint8.* found {other.dtype}"
            ):
                vr.brain.score_images(*pair)
    X = np.random.default_rng(0).normal(size=(6, 9))
    for pair, message in (
        ((X, np.full((6, 9), np.nan)), "predicted: expected finite numbers"),
        ((X * np.inf, X), "truth: expected finite numbers"),
        ((X, X[:4]), r"found \(6, 9\) and \(4, 9\)"),
        ((X[:1], X[:1]), "2 images or more"),
    ):
        with pytest.raises(vr.TaskError, match=message):
            vr.brain.two_way_identification(*pair)


def test_correlations_that_are_alike_count_one_half():
    """So that what tells nothing is at chance, as where all predictions are one."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(10, 20))
    for nothing in (np.ones((10, 20)), np.full((10, 20), 0.1), np.repeat(truth[:1], 10, axis=0)):
        assert vr.brain.two_way_identification(truth, nothing) == 0.5
    # Of images that are there twice, which are told from the others alone.
    twice = np.repeat(truth[:5], 2, axis=0)
    assert vr.brain.two_way_identification(twice, twice) == pytest.approx((8 + 0.5) / 9)
    # One prediction that is constant is at chance against each other image, on either side.
    one = truth.copy()
    one[3] = 0.7
    assert vr.brain.two_way_identification(truth, one) == pytest.approx((9 + 0.5) / 10)


def test_what_is_scored_is_refused_in_one_line():
    X = np.random.default_rng(0).normal(size=(6, 9))
    for pair, message in (
        ((X[:, :1], X[:, :1]), "expected two features of an image or more, .* found 1"),
        ((X, np.ma.masked_less(X, 0)), "predicted: expected real numbers, found a masked array"),
        ((X.astype(complex), X), "truth: expected real numbers, found complex128"),
    ):
        with pytest.raises(vr.TaskError, match=message):
            vr.brain.two_way_identification(*pair)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    hidden = np.ma.masked_less(images, 9)
    for pair, message in (
        (
            (images.transpose(0, 3, 1, 2),) * 2,
            r"channels to the end: images.transpose\(0, 2, 3, 1\)",
        ),
        ((images[..., :2],) * 2, r"expected images \(N, H, W, 3\), found \(4, 16, 16, 2\)$"),
        ((images[:, :10],) * 2, "expected images of 11x11 pixels or more, .* found 10x16"),
        ((images, hidden), "originals: expected pixels, found a masked array"),
    ):
        with pytest.raises(vr.TaskError, match=message):
            vr.brain.score_images(*pair)


@pytest.mark.parametrize("alpha", ["3", [1, 2], True, np.nan, 0, np.ones(1)])
def test_a_penalty_is_a_number_above_0(store, bold, alpha):
    with pytest.raises(vr.TaskError, match="alpha: expected a number above 0, found"):
        vr.brain.fit(bold, store, alpha=alpha)


def test_seeds_are_whole_numbers(store, bold):
    with pytest.raises(vr.ConfigError, match="seed: expected a whole number"):
        vr.brain.fit(bold, store, alpha=1.0, seed="a")


def test_responses_are_predicted_from_in_a_store_of_another_order(
    store, bold, tiny, people, tmp_path
):
    """The same images have the same predictions, whatever their rows."""
    source = people(20, num_people=8)
    splits = ["train", "train", "test", "train"] * 40
    split = Source(
        name="seen", ids=source.ids, reader=source.reader, labels=source.labels, splits=splits
    )
    turned = vr.extract(tiny, split.select(range(159, -1, -1)), tmp_path / "t.h5", layers="1x1")
    read = read_responses(bold, store)
    decoder = vr.brain.fit(read, store, layers="1x1", alpha=10.0)
    first = decoder.predict(read, store, tmp_path / "a.h5").store
    second = decoder.predict(read, turned, tmp_path / "b.h5").store
    place = [second.ids.index(image_id) for image_id in first.ids]
    np.testing.assert_allclose(second.matrix()[0][place], first.matrix()[0], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({"crop": 12}, r"resized: bicubic.*, found .*the central square of 12 pixels"),
        ({"resize": "bilinear"}, r"resized: bicubic.*, found .*resized: bilinear"),
        ({"pool": "avg"}, r"z mean, of .*, found .*pooled avg"),
        ({"z": "sample", "features": "mean"}, r"z mean, .*, found .*z sample"),
    ],
)
def test_latents_that_were_read_otherwise_are_not_predicted(
    store, bold, tiny, people, tmp_path, options, other
):
    decoder = vr.brain.fit(bold, store, layers="1x1", alpha=10.0)
    again = vr.extract(tiny, people(20, num_people=8), tmp_path / "o.h5", layers="1x1", **options)
    with pytest.raises(vr.TaskError, match=rf"expected latents read as .*{other}"):
        decoder.predict(bold, again, tmp_path / "p.h5", split=None)
    assert not (tmp_path / "p.h5").exists()


def test_responses_that_were_not_measured_are_said_of_what_is_predicted(store, bold, tmp_path):
    decoder = vr.brain.fit(bold, store, layers="1x1", alpha=10.0)
    test = store.rows("test")
    for value, said in ((0, "one value in every voxel"), (-99999, "far from all others")):
        empty = bold.copy()
        empty[:, test[:2]] = value
        found = decoder.predict(empty, store, tmp_path / f"{value}.h5")
        assert any(said in line for line in found.notes)
        read = read_responses(empty, store)
        again = decoder.predict(read, store, tmp_path / f"{value}-again.h5")
        assert sum(said in line for line in again.notes) == 1
    plain = decoder.predict(bold, store, tmp_path / "p.h5")
    assert not any("counts as measured" in line for line in plain.notes)
    assert len(plain.store) == len(test)


def test_a_decoder_of_an_earlier_schema_is_fitted_anew(store, bold, tmp_path):
    decoder = vr.brain.fit(bold, store, layers="1x1", alpha=10.0)
    decoder.save(tmp_path / "d.npz")
    with np.load(tmp_path / "d.npz") as found:
        arrays = dict(found)
    about = str(arrays["about"]).replace("vdvae-repr/decoder/2", "vdvae-repr/decoder/1")
    np.savez(tmp_path / "d.npz", **arrays | {"about": np.array(about)})
    with pytest.raises(vr.TaskError, match=r"\(schema vdvae-repr/decoder/1; fit anew\)"):
        type(decoder).load(tmp_path / "d.npz")
    decoder.save(tmp_path / "d.npz", overwrite=True)
    assert type(decoder).load(tmp_path / "d.npz").ids == decoder.ids
    np.savez(tmp_path / "other.npz", about=np.array('{"schema": "another"}'))
    with pytest.raises(vr.TaskError, match="exists already"):
        decoder.save(tmp_path / "other.npz", overwrite=True)
