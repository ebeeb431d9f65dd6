"""FaceNet's network in a store, and random twins. timm's networks: tests/latents/test_options.py."""

import json

import numpy as np
import pytest
import torch
from facenet_pytorch import fixed_image_standardization

import vdvae_repr as vr
from vdvae_repr.model.backbones import load_backbone, random_twin


@pytest.fixture(scope="module")
def facenet():
    notices = []
    backbone = load_backbone("facenet:vggface2@random", notice=notices.append)
    assert not notices  # random weights were asked for
    return backbone


def test_facenet_fills_a_store(facenet, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)
    pictures = pictures.repeat(16, axis=1).repeat(18, axis=2)  # 192 high, 180 wide
    store = vr.extract(facenet, pictures, tmp_path / "f.h5", batch_size=2)
    X, _, _ = store.matrix(feature="activation")
    assert X.shape == (3, 512)
    inputs = torch.from_numpy(store.images()).permute(0, 3, 1, 2).float()
    assert inputs.shape[2:] == (160, 160)
    with torch.no_grad():  # the package's own preprocessing
        expected = facenet.network(fixed_image_standardization(inputs)).numpy()
    np.testing.assert_allclose(X, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(X, axis=1), 1, rtol=1e-5)
    assert np.abs(X[0] - X[1]).max() > 1e-3
    assert store.attrs["model"] == "facenet:vggface2@random"
    assert json.loads(store.attrs["config"])["image_size"] == 160
    with pytest.raises(vr.LayerError, match="activation alone"):
        vr.extract(facenet, pictures, tmp_path / "x.h5", features=["mean"])
    store.verify()


def test_facenet_takes_weights_from_a_file(facenet, tmp_path):
    state = {key: value.clone() for key, value in facenet.network.state_dict().items()}
    state["last_linear.weight"] += 1
    # The published files hold the classifier too.
    classifier = {"logits.weight": torch.zeros(2, 512), "logits.bias": torch.zeros(2)}
    torch.save(state | classifier, tmp_path / "own.pt")
    loaded = load_backbone(f"facenet:vggface2@{tmp_path / 'own.pt'}")
    assert loaded.name == "facenet:vggface2"
    found = loaded.network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    torch.save({"last_linear.weight": state["last_linear.weight"]}, tmp_path / "part.pt")
    with pytest.raises(vr.CheckpointError, match=r"part\.pt: cannot be loaded") as refusal:
        load_backbone(f"facenet:vggface2@{tmp_path / 'part.pt'}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["facenet:vggface2", "timm:resnet10t"])
def test_a_random_twin_shares_the_architecture_and_nothing_else(facenet, name):
    one = facenet if name == facenet.config.backbone else load_backbone(f"{name}@random")
    outside = torch.get_rng_state()
    twins = [random_twin(one.config.to_json(), seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), outside)
    first, again, other = (dict(twin.network.named_parameters()) for twin in twins)
    own = dict(one.network.named_parameters())
    assert {key: value.shape for key, value in first.items()} == {
        key: value.shape for key, value in own.items()
    }
    assert all(torch.equal(again[key], value) for key, value in first.items())
    kernels = [key for key, value in first.items() if value.ndim > 1]  # norms start alike
    for key in kernels:
        assert not torch.equal(other[key], first[key])
        assert not torch.equal(own[key], first[key])
    assert twins[0].config == one.config
    assert twins[0].name == f"{name}@random"
    assert not twins[0].training
