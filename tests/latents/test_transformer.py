import pickle

import numpy as np
import pytest
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


def test_bad_input_is_named(tiny, images):
    with pytest.raises(vr.LayerError, match="unknown feature 'means'"):
        vr.LatentTransformer(tiny, feature="means").fit(images)
    head = vr.LatentTransformer(tiny, layers="1x1").fit(images)
    with pytest.raises(vr.DataError, match=r"image 0: expected uint8 .* found float64"):
        head.transform(images / 255)
    with pytest.raises(vr.DataError, match=r"none\.png: cannot be read"):
        head.transform(["none.png"])


@pytest.mark.parametrize(
    "given", [{"z": "foo"}, {"batch_size": 0}, {"seed": 1.5}, {"seed": 2**70}, {"crop": 8.5}]
)
def test_arguments_of_other_kinds_are_one_line(tiny, images, given):
    (name,) = given
    with pytest.raises(vr.ConfigError, match=f"^{name}: expected") as refusal:
        vr.LatentTransformer(tiny, **given).fit(images)
    assert "\n" not in str(refusal.value)
