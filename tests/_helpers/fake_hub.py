"""A local stand-in of the hub's HTTP API for uploads, as `huggingface_hub` speaks with it."""

import base64
import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

USER = "someone"
TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz"
"""What the client sends."""


class Hub:
    """What was uploaded: visibility by repository, and content by repository and file."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, str] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.url = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers the requests of `create_repo` and `upload_folder`; weights go to the large files."""

    hub: Hub

    def do_GET(self) -> None:
        if not self._is_authorized():
            return
        if self.path == "/api/whoami-v2":
            self._reply({"name": USER, "type": "user"})
        else:
            self._reply({"error": "Entry not found"}, 404)

    def do_HEAD(self) -> None:
        self._reply({}, 404)

    def do_PUT(self) -> None:
        """A large file, at the address that the batch request was given."""
        self.hub.objects[self.path.rpartition("/")[2]] = self._body()
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if not self._is_authorized():
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._reply({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [("lfs" if x.endswith(".safetensors") else "regular", x) for x in names]
            files = [{"path": x, "uploadMode": mode, "shouldIgnore": False} for mode, x in modes]
            self._reply({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            answers = [
                {**x, "actions": {"upload": {"href": f"{self.hub.url}/objects/{x['oid']}"}}}
                for x in wanted
            ]
            self._reply({"objects": answers, "transfer": "basic"})
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._reply({"error": "Not found"}, 404)

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != USER:
            self._reply({"error": "You don't have the rights to create a model here"}, 403)
            return
        self.hub.repos[repo] = asked.get("visibility", "public")
        self._reply({"url": f"{self.hub.url}/{repo}"})

    def _commit(self, body: bytes) -> None:
        repo = "/".join(self.path.split("/")[3:5])
        files = self.hub.files.setdefault(repo, {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        self._reply({"commitUrl": f"{self.hub.url}/{repo}/commit/1", "commitOid": "1" * 40})

    def _is_authorized(self) -> bool:
        right = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if not right:
            self._reply({"error": "Invalid username or password."}, 401)
        return right

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _reply(self, content: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, *, token: str) -> Iterator[Hub]:
    """Let `huggingface_hub` talk to a hub on this machine that accepts this token alone."""
    from huggingface_hub import constants, hf_api

    hub = Hub(token)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        with monkeypatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", hub.url)
            patch.setattr(hf_api.api, "endpoint", hub.url)
            patch.setattr(constants, "HF_HUB_OFFLINE", False)
            patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
            patch.setenv("HF_TOKEN", TOKEN)
            yield hub
        server.shutdown()
