import re

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from vdvae_repr.data import toy
from vdvae_repr.data.toy import (
    CHOICES,
    IDENTITY,
    NUISANCE,
    draw_identity,
    draw_nuisance,
    render,
    toy_faces,
)
from vdvae_repr.errors import DataError


@pytest.fixture(scope="module")
def faces():
    return toy_faces(20, 10, size=32)


@pytest.fixture
def face():
    """One face, light skin and short hair, in neutral pose, light and expression."""
    identity = {f"identity_{name}": np.mean(limits) for name, limits in IDENTITY.items()}
    nuisance = {f"nuisance_{name}": np.mean(limits) for name, limits in NUISANCE.items()}
    choices = {f"identity_{name}": 1 for name in CHOICES}
    neutral = {"nuisance_yaw": 0.0, "nuisance_light": 0.0, "nuisance_smile": 0.0}
    return identity | nuisance | choices | neutral | {"identity_skin": 0.2}


def changed_place(face, size=64, **changes):
    """Where two renderings differ: top, bottom, left and right, as fractions of the frame."""
    before, after = (render(factors, size).astype(int) for factors in (face, face | changes))
    rows, columns = np.nonzero(np.abs(before - after).max(axis=2) > 4)
    return rows.min() / size, rows.max() / size, columns.min() / size, columns.max() / size


def test_what_is_returned(faces):
    assert faces.images.shape == (200, 32, 32, 3)
    assert faces.images.dtype == np.uint8
    assert faces.labels.dtype == np.int64
    assert faces.labels.tolist() == [i // 10 for i in range(200)]
    assert faces.ids[:2] == ("person_00/00", "person_00/01")
    assert list(faces.ids) == sorted(set(faces.ids))
    assert faces.label_names[-1] == "person_19"
    assert len({image.tobytes() for image in faces.images}) == 200


@pytest.mark.parametrize("size", [16, 33, 128])
def test_any_size_shows_the_same_face(size):
    small, large = (toy_faces(1, 1, size=s).images[0].astype(float) for s in (size, 2 * size))
    shrunk = large.reshape(size, 2, size, 2, 3).mean(axis=(1, 3))
    assert small.shape == (size, size, 3)
    assert np.abs(small - shrunk).mean() < 3


def test_the_seed_decides():
    one, again, other = (toy_faces(2, 2, size=16, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.images, again.images)
    assert not np.array_equal(one.images, other.images)


def test_more_people_and_images_extend_the_same_set():
    small, large = toy_faces(2, 2, size=16, seed=3), toy_faces(4, 5, size=16, seed=3)
    chosen = [large.ids.index(name) for name in small.ids]
    assert chosen == [0, 1, 5, 6]
    assert np.array_equal(small.images, large.images[chosen])
    for name, values in small.factors.items():
        assert np.array_equal(values, large.factors[name][chosen]), name


def test_factors_stay_in_their_ranges(faces):
    assert {name.partition("_")[0] for name in faces.factors} == {"identity", "nuisance"}
    for name, (low, high) in {
        **{f"identity_{name}": limits for name, limits in IDENTITY.items()},
        **{f"nuisance_{name}": limits for name, limits in NUISANCE.items()},
    }.items():
        assert faces.factors[name].dtype == np.float64
        assert low <= faces.factors[name].min() < faces.factors[name].max() <= high
    for name, count in CHOICES.items():
        assert faces.factors[f"identity_{name}"].dtype == np.int64
        assert set(faces.factors[f"identity_{name}"]) <= set(range(count))


def test_the_docstring_gives_every_range():
    documented = dict(re.findall(r"(?:identity|nuisance)_(\w+) +(\S+\.\.\S+) ", toy.__doc__))
    ranges = {name: tuple(map(float, text.split(".."))) for name, text in documented.items()}
    assert ranges == IDENTITY | NUISANCE | {name: (0, n - 1) for name, n in CHOICES.items()}


def test_identity_is_constant_per_person_and_nuisance_varies(faces):
    for name, values in faces.factors.items():
        distinct = [len(set(row)) for row in values.reshape(20, 10)]
        assert distinct == [1 if name.startswith("identity_") else 10] * 20, name


def test_factors_are_independent():
    people = [draw_identity(np.random.default_rng([0, i, 0])) for i in range(4000)]
    images = [draw_nuisance(np.random.default_rng([0, i, 1])) for i in range(4000)]
    values = [list((a | b).values()) for a, b in zip(people, images, strict=True)]
    correlation = np.corrcoef(np.array(values, dtype=float).T)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)  # five standard errors


def test_light_brightens_the_side_it_comes_from(face):
    left, right = (
        render(face | {"nuisance_light": angle}, 64)[20:50, 16:48].mean(axis=(0, 2))
        for angle in (-50.0, 50.0)
    )
    assert left[:16].mean() > right[:16].mean() + 10
    assert right[16:].mean() > left[16:].mean() + 10


def test_a_neutral_face_is_symmetric_and_turning_left_mirrors_turning_right(face):
    for pose in (0.0, 20.0):
        one, other = (
            render(face | {"nuisance_yaw": yaw, "identity_hair_style": 0}, 64).astype(float)
            for yaw in (pose, -pose)
        )
        assert (
            np.abs(one - other[:, ::-1]).mean() < 1.5
        )  # eyes glint and hair strands are not mirrored


def test_a_shift_of_a_pixel_moves_the_person_by_a_pixel(face):
    still = render(face, 64)
    right = render(face | {"nuisance_shift_x": 2 / 64}, 64)
    assert np.abs(right[:, 1:].astype(int) - still[:, :-1]).max() <= 1
    down = render(face | {"nuisance_shift_y": 2 / 64}, 64)
    on_face = slice(16, 50), slice(20, 44)  # the background stays where it is
    assert np.abs(np.roll(down, -1, axis=0)[on_face].astype(int) - still[on_face]).max() <= 1


@pytest.mark.parametrize(
    ("change", "turn", "zoom"),
    [({"nuisance_roll": 8.0}, -8, 1.0), ({"nuisance_scale": 1.08}, 0, 1.08)],
)
def test_roll_and_scale_are_those_of_pillow(face, change, turn, zoom):
    """Pillow turns counterclockwise; the light comes from the viewer, so that it turns with nothing."""
    face |= {"nuisance_light": 0.0, "nuisance_light_height": 0.0}
    still, changed = (Image.fromarray(render(f, 128)) for f in (face, face | change))
    box = [64 - 64 / zoom] * 2 + [64 + 64 / zoom] * 2
    moved = still.rotate(turn, Image.Resampling.BICUBIC).resize((128, 128), box=box)
    on_face = slice(32, 100), slice(40, 88)
    expected, found, before = (np.asarray(i, float)[on_face] for i in (moved, changed, still))
    assert np.abs(found - expected).mean() < 0.4 * np.abs(found - before).mean()


def test_the_light_stays_when_the_head_rolls(face):
    """Of a light from the left the shadow lies right, and rolling moves it no nearer to the chin."""
    lit = face | {"nuisance_light": -50.0, "nuisance_light_height": 0.0}
    for roll in (-8.0, 8.0):
        image = render(lit | {"nuisance_roll": roll}, 64).astype(float).mean(axis=2)
        left, right = image[24:44, 20:28].mean(), image[24:44, 36:44].mean()
        assert left > right + 10


def test_each_nuisance_changes_its_own_place(face):
    top, _, left, right = changed_place(face, nuisance_mouth_open=1.0)
    assert top > 0.6
    assert 0.25 < left < right < 0.75
    top, *_ = changed_place(face, nuisance_shirt=0.7)
    assert top > 0.8
    background = render(face | {"nuisance_background_hue": 0.7}, 64)
    assert np.array_equal(background[24:48, 20:44], render(face, 64)[24:48, 20:44])
    assert (background[0, [0, -1]] != render(face, 64)[0, [0, -1]]).any()


def test_identity_factors_change_their_own_place(face):
    top, bottom, *_ = changed_place(face, identity_eye_color=2)
    assert 0.3 < top < bottom < 0.5
    _, bottom, *_ = changed_place(face, identity_hair_color=4)
    assert bottom < 0.6


def test_pixels_know_the_identity_but_not_all_of_it(faces):
    gallery = np.arange(200) % 10 < 5
    pixels = faces.images.reshape(200, -1) / 255
    nearest = KNeighborsClassifier(1, metric="cosine").fit(pixels[gallery], faces.labels[gallery])
    assert 0.15 < nearest.score(pixels[~gallery], faces.labels[~gallery]) < 0.85  # chance: 0.05


@pytest.mark.parametrize(
    "arguments",
    [{"num_people": 0}, {"images_per_person": 0}, {"size": 15}, {"seed": -1}],
)
def test_bad_arguments_are_one_line(arguments):
    with pytest.raises(DataError, match="expected at least 1 person") as caught:
        toy_faces(**arguments)
    assert "\n" not in str(caught.value)
