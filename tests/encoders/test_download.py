"""Released weights, from a server on this machine that does what servers do."""

import errno
import hashlib
import http.client
import io
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import vdvae_repr as vr
from vdvae_repr.cli import app
from vdvae_repr.config import Config, TrainConfig
from vdvae_repr.encoders import download
from vdvae_repr.encoders.download import check_hash, fetch, released_file
from vdvae_repr.model import published, weights
from vdvae_repr.model.published import RELEASES, Release
from vdvae_repr.training.checkpoints import read_start


@pytest.fixture(scope="module")
def content(tiny):
    buffer = io.BytesIO()
    torch.save(tiny.state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture
def server(content):
    """Answers as its attributes say; `asked` has the Range of every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            say = self.server
            say.asked.append(self.headers.get("Range"))
            body, start = say.content, 0
            if say.ranges and self.headers.get("Range"):
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                if self.headers.get("If-Range", say.etag) != say.etag:
                    start = 0
            if start and start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
            self.send_response(206 if start else say.status)
            self.send_header("Content-Type", say.kind)
            self.send_header("ETag", say.etag)
            self.send_header("Content-Length", str(len(body) - start + say.lie))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            sent = body[start:]
            if say.breaks:
                sent = sent[: say.breaks.pop(0)]
            self.wfile.write(sent)
            self.close_connection = True

        def log_message(self, *arguments):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.content, found.asked, found.breaks = content, [], []
    found.ranges, found.status, found.kind, found.lie, found.etag = (
        True,
        200,
        "application/octet-stream",
        0,
        '"a"',
    )
    found.url = f"http://127.0.0.1:{found.server_port}/tiny-model-ema.th"
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def release(server, tiny, tmp_path, monkeypatch):
    """A release called openai:tiny on that server, and an empty cache."""
    preset = tmp_path / "preset.toml"
    preset.write_text(Config(model=tiny.config).to_toml())
    known = Release(url=server.url, preset=str(preset), bits_per_dim=8.0)
    monkeypatch.setitem(RELEASES, "tiny", known)
    monkeypatch.setenv("VDVAE_REPR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tiny-model-ema.th"


def test_what_is_missing_is_said_with_address_and_place(release, server):
    with pytest.raises(vr.CheckpointError) as refusal:
        vr.load("openai:tiny")
    for part in (str(release), server.url, 'vr.load("openai:tiny", download=True)'):
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not server.asked


def test_it_is_fetched_hashed_and_loaded(release, tiny, content):
    model = vr.load("openai:tiny", download=True)
    assert model.name == "openai:tiny"
    assert weights.weights_sha256(model) == weights.weights_sha256(tiny)
    assert release.read_bytes() == content
    digest, name = release.with_name(f"{release.name}.sha256").read_text().split()
    assert (digest, name) == (hashlib.sha256(content).hexdigest(), release.name)
    assert sorted(path.suffix for path in release.parent.iterdir()) == [".lock", ".sha256", ".th"]


def test_it_is_taken_wherever_a_vdvae_is_named(release, server, tiny, images):
    vr.load("openai:tiny", download=True)
    start, step = read_start("openai:tiny")
    assert step == 0
    for key, value in tiny.state_dict().items():
        assert torch.equal(start["model"][key], value)
        assert torch.equal(start["average"][key], value)
    named = vr.LatentTransformer("openai:tiny", layers="1x1").fit_transform(images)
    assert np.array_equal(named, vr.LatentTransformer(tiny, layers="1x1").fit_transform(images))


def test_training_starts_from_what_it_fetches(release, tiny, tmp_path):
    config = Config(
        model=tiny.config, train=TrainConfig(steps=2, batch_size=2, lr=1e-4, skip_threshold=1e9)
    )
    (tmp_path / "tiny.toml").write_text(config.to_toml())
    command = ["train", tmp_path / "tiny.toml", "--data", "toy-faces:4x3", "--out", tmp_path / "r"]
    command = [str(word) for word in [*command, "--init-from", "openai:tiny"]]
    missing = CliRunner().invoke(app, command)
    assert "download=True" in str(missing.exception)
    done = CliRunner().invoke(app, [*command, "--download"])
    assert done.exit_code == 0, done.output
    assert release.is_file()


def test_other_networks_are_refused_where_a_vdvae_is_needed(images):
    with pytest.raises(vr.CheckpointError, match=r"timm:resnet10t@random: expected .* a VDVAE"):
        read_start("timm:resnet10t@random")
    with pytest.raises(vr.CheckpointError, match=r"timm:resnet10t@random: expected a VDVAE"):
        vr.LatentTransformer("timm:resnet10t@random").fit(images)


@pytest.mark.parametrize("name", ["timm:resnet18", "facenet:vggface2"])
def test_published_weights_that_cannot_serve_are_not_asked_for(name, images, tmp_path, monkeypatch):
    """Their cache is empty, so that a load would say how to fetch them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for call in (
        lambda: read_start(name),
        lambda: vr.LatentTransformer(name).fit(images),
        lambda: vr.distill(name, images, tmp_path / "r"),
        lambda: vr.evaluate(name, images),
        lambda: vr.export_model(name, tmp_path / "x.pt2"),
    ):
        with pytest.raises(vr.CheckpointError, match=f"^{name}: expected a VDVAE") as refusal:
            call()
        assert "fetch" not in str(refusal.value)


def test_what_is_there_is_not_fetched_again(release, server):
    vr.load("openai:tiny", download=True)
    vr.load("openai:tiny", download=True)
    vr.load("openai:tiny")
    assert len(server.asked) == 1


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(release, server, content):
    server.breaks = [1000, 2000]
    released_file("openai:tiny", download=True)
    assert server.asked == [None, "bytes=1000-", "bytes=3000-"]
    assert release.read_bytes() == content


def test_the_next_run_goes_on_where_the_last_one_stopped(release, server, content, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.breaks = [1000]
    with pytest.raises(vr.CheckpointError, match=r"broke off .*1,000 bytes are kept") as refusal:
        vr.load("openai:tiny", download=True)
    assert "\n" not in str(refusal.value)
    assert not release.exists()
    vr.load("openai:tiny", download=True)
    assert server.asked == [None, "bytes=1000-"]
    assert release.read_bytes() == content


def test_a_server_that_knows_no_ranges_begins_again(release, server, content):
    server.ranges, server.breaks = False, [1000]
    vr.load("openai:tiny", download=True)
    assert release.read_bytes() == content


def test_another_version_of_the_file_is_never_joined_to_the_first(
    release, server, content, monkeypatch
):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.content, server.breaks = bytes(len(content)), [1000]
    with pytest.raises(vr.CheckpointError, match="are kept"):
        vr.load("openai:tiny", download=True)
    server.content, server.etag = content, '"b"'
    vr.load("openai:tiny", download=True)
    assert release.read_bytes() == content


@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream"])
def test_a_web_page_is_not_kept(release, server, kind):
    server.content, server.kind = b"<!DOCTYPE html><html>Sign in</html>", kind
    with pytest.raises(vr.CheckpointError, match="web page") as refusal:
        vr.load("openai:tiny", download=True)
    assert "\n" not in str(refusal.value)
    assert not [path for path in release.parent.iterdir() if path.suffix in (".th", ".part")]


def test_a_length_too_long_is_no_end(release, server, content):
    """The server promises more bytes than there are, and has none of them when asked again."""
    server.lie = 100
    vr.load("openai:tiny", download=True)
    assert release.read_bytes() == content


def test_a_length_too_short_leaves_a_file_that_is_refused(release, server):
    server.lie = -2000
    with pytest.raises(vr.CheckpointError, match="cut short") as refusal:
        vr.load("openai:tiny", download=True)
    assert "\n" not in str(refusal.value)
    assert not [path for path in release.parent.iterdir() if path.suffix in (".th", ".part")]


@pytest.mark.parametrize("status", [404, 500])
def test_an_error_of_the_server_is_one_line(release, server, status):
    server.status = status
    with pytest.raises(vr.CheckpointError, match=f"HTTP {status}") as refusal:
        vr.load("openai:tiny", download=True)
    assert "\n" not in str(refusal.value)


def test_no_server_is_one_line(server, tmp_path):
    url = "http://127.0.0.1:9/none.th"
    with pytest.raises(
        vr.CheckpointError, match=r"cannot be fetched .*save the file as"
    ) as refusal:
        fetch(url, tmp_path / "none.th")
    assert "\n" not in str(refusal.value)


def test_a_file_that_has_changed_is_refused_at_the_next_load(release, content):
    vr.load("openai:tiny", download=True)
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    release.write_bytes(bytes(damaged))
    with pytest.raises(vr.CheckpointError, match=r"its SHA-256 is .*the file has changed"):
        vr.load("openai:tiny")


def test_a_file_put_there_by_hand_is_taken_and_hashed(release, content):
    release.parent.mkdir()
    release.write_bytes(content)
    vr.load("openai:tiny")
    check_hash(release)
    assert release.with_name(f"{release.name}.sha256").is_file()


def test_the_released_files_are_those_of_the_readme():
    assert len({release.file for release in RELEASES.values()}) == 8
    for name, release in published.RELEASES.items():
        assert release.file.startswith(f"{name}-iter-")
        assert release.file.endswith("-model-ema.th")
        vr.ModelConfig.from_preset(release.preset)
    with pytest.raises(vr.CheckpointError, match="did you mean 'imagenet64'"):
        vr.load("openai:imagenet_64")


@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLError("DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
    ],
)
def test_a_connection_that_fails_while_it_is_read_is_a_break(
    release, server, content, monkeypatch, error
):
    """These are OSErrors alone, as those of a full disk are; the next request goes on."""
    read, calls = http.client.HTTPResponse.read1, []

    def failing(response, size):
        calls.append(size)
        if len(calls) == 2:
            raise error
        return read(response, 1000 if len(calls) == 1 else size)

    monkeypatch.setattr(http.client.HTTPResponse, "read1", failing)
    released_file("openai:tiny", download=True)
    assert server.asked == [None, "bytes=1000-"]
    assert release.read_bytes() == content


def test_a_connection_that_never_brings_a_byte_is_no_full_disk(release, server, monkeypatch):
    def failing(response, size):
        raise ssl.SSLError("WRONG_VERSION_NUMBER")

    monkeypatch.setattr(http.client.HTTPResponse, "read1", failing)
    with pytest.raises(vr.CheckpointError, match=r"cannot be fetched \(.*WRONG_VERSION") as refusal:
        released_file("openai:tiny", download=True)
    assert "make room" not in str(refusal.value)
