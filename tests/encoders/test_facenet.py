"""FaceNet's network: its stages and its embedding, and weights of one's own."""

import json

import numpy as np
import pytest
import torch
from facenet_pytorch import fixed_image_standardization

import vdvae_repr as vr
from vdvae_repr.encoders.load import random_twin


@pytest.fixture(scope="module")
def facenet():
    return vr.load("facenet:vggface2@random")


def test_facenet_fills_a_store(facenet, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)
    pictures = pictures.repeat(16, axis=1).repeat(16, axis=2)  # 192 high, 160 wide
    store = vr.extract(facenet, pictures, tmp_path / "f.h5", batch_size=2)
    X, _, _ = store.matrix("embedding", "activation")
    assert X.shape == (3, 512)
    inputs = torch.from_numpy(pictures[:, 16:176]).permute(0, 3, 1, 2).float()  # the central square
    with torch.no_grad():  # the package's own preprocessing
        expected = facenet.net(fixed_image_standardization(inputs)).numpy()
        first = facenet.net.conv2d_2b(
            facenet.net.conv2d_2a(facenet.net.conv2d_1a(fixed_image_standardization(inputs)))
        )
    np.testing.assert_allclose(X, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(X, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(store["conv2d_2b"].activation[:], first, rtol=1e-3, atol=1e-5)
    assert [spec.name for spec in store.layers][-2:] == ["block8", "embedding"]
    assert store.images().shape == (3, 64, 64, 3)
    assert store.attrs["model"] == "facenet:vggface2@random"
    assert json.loads(store.attrs["config"])["image_size"] == 160
    with pytest.raises(vr.LayerError, match="activation alone"):
        vr.extract(facenet, pictures, tmp_path / "x.h5", features=["mean"])
    store.verify()


def test_facenet_takes_weights_from_a_file(facenet, tmp_path):
    state = {key: value.clone() for key, value in facenet.net.state_dict().items()}
    state["last_linear.weight"] += 1
    # The published files hold the classifier too.
    classifier = {"logits.weight": torch.zeros(2, 512), "logits.bias": torch.zeros(2)}
    torch.save(state | classifier, tmp_path / "own.pt")
    loaded = vr.load(f"facenet:vggface2@{tmp_path / 'own.pt'}")
    assert loaded.name == "facenet:vggface2"
    found = loaded.net.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    torch.save({"last_linear.weight": state["last_linear.weight"]}, tmp_path / "part.pt")
    with pytest.raises(vr.CheckpointError, match=r"part\.pt: fills 1 of") as refusal:
        vr.load(f"facenet:vggface2@{tmp_path / 'part.pt'}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("people", "loads", "refuses"),
    [(8631, "vggface2", "casia-webface"), (10575, "casia-webface", "vggface2")],
)
def test_weights_of_the_other_set_are_refused(facenet, tmp_path, people, loads, refuses):
    """Told by the people of its classifier, of whom facenet-pytorch's README counts as many."""
    classifier = {"logits.weight": torch.zeros(people, 512), "logits.bias": torch.zeros(people)}
    torch.save(facenet.net.state_dict() | classifier, tmp_path / "w.pt")
    assert vr.load(f"facenet:{loads}@{tmp_path / 'w.pt'}").name == f"facenet:{loads}"
    with pytest.raises(
        vr.CheckpointError, match=f"expected weights of {refuses}.*facenet:{loads}@"
    ):
        vr.load(f"facenet:{refuses}@{tmp_path / 'w.pt'}")


def test_published_weights_are_those_of_torchs_cache(facenet, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    state = facenet.net.state_dict() | {"logits.weight": torch.zeros(8631, 512)}
    torch.save(state, tmp_path / "checkpoints" / "20180402-114759-vggface2.pt")
    loaded = vr.load("facenet:vggface2")
    assert loaded.name == "facenet:vggface2"
    assert torch.equal(loaded.net.last_linear.weight, facenet.net.last_linear.weight)


def test_a_random_twin_shares_the_architecture_and_nothing_else(facenet):
    config = facenet.identity()["config"]
    first, again, other = (
        dict(random_twin(config, "", seed).net.named_parameters()) for seed in (1, 1, 2)
    )
    own = dict(facenet.net.named_parameters())
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in own.items()}
    assert all(torch.equal(again[key], value) for key, value in first.items())
    for key in (key for key, value in first.items() if value.ndim > 1):
        assert not torch.equal(other[key], first[key])
        assert not torch.equal(own[key], first[key])
