"""Models of the Hub, in a cache as the Hub's own client lays it out, or downloaded from a stand-in
on this machine. No other network is asked."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import pytest
from support.small_trees import quickstart

from branchgrpo.errors import UserError
from branchgrpo.models import places
from branchgrpo.models.flux import FluxModel
from branchgrpo.runs.identity import identity

ASSET = Path(places.__file__).parents[1] / "assets" / "tiny-flux"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with the model acme/tiny: blobs, and links to them."""
    root = tmp_path / "models--acme--tiny"
    (root / "refs").mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(path for path in ASSET.rglob("*") if path.is_file())):
        blob, link = root / "blobs" / str(number), root / "snapshots" / COMMIT
        blob.write_bytes(file.read_bytes())
        link = link / file.relative_to(ASSET)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize("path", ["acme/tiny", "acme/tiny@main", f"acme/tiny@{COMMIT}"])
def test_a_name_is_found_in_the_cache(cache: Path, path: str) -> None:
    model = FluxModel(path=path, height=32, width=32)
    assert model.folder() == cache / "models--acme--tiny" / "snapshots" / COMMIT
    model.check()
    assert model.needed_files() == []  # every node has a cache of its own
    found = identity(quickstart({"model.path": path}))
    assert found["model.path"] == path
    assert found["model.files"] == identity(quickstart())["model.files"]


def test_a_name_that_is_not_there_is_refused_in_one_line(cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        FluxModel(path="acme/other").check()
    assert str(caught.value).startswith("model.path: expected a folder, or a model of the Hub")
    assert f"in the cache {cache}" in str(caught.value) and "acme/other" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("black-forest-labs/FLUX.1-dev", True),
        ("a/b@v1.0", True),
        ("/models/FLUX.1-dev", False),
        ("models", False),
        ("a/b/c", False),
        ("./a/b", False),
        ("~/a", False),
        ("embedded:tiny-flux", False),
    ],
)
def test_what_is_a_name(path: str, named: bool) -> None:
    assert places.on_hub(path) is named


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not places.on_hub("acme/tiny")


class Hub(BaseHTTPRequestHandler):
    """Has acme/tiny as the Hub has it: what a revision is and holds, and its files; `asked` are
    those that were sent."""

    asked: list[str]
    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        path, name = self.path.partition("?")[0], ""
        if path.startswith("/api/models/acme/tiny/tree/"):
            rows = [
                {"type": "file", "path": file, "size": len(data), "oid": "0" * 40}
                for file, data in self.files.items()
            ]
            body, kind = json.dumps(rows).encode(), "application/json"
        elif path.startswith("/api/models/acme/tiny"):
            siblings = [{"rfilename": file} for file in self.files]
            found = {"id": "acme/tiny", "modelId": "acme/tiny", "sha": COMMIT, "siblings": siblings}
            body, kind = json.dumps(found).encode(), "application/json"
        elif path.startswith("/acme/tiny/resolve/"):
            name = path.split("/", 5)[5]
            body, kind = self.files.get(name, b""), "application/octet-stream"
        else:
            body, kind = b"", ""
        self.send_response(200 if kind and (body or not name) else 404)
        self.send_header("Content-Type", kind or "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET" and name:
            self.asked.append(name)
        return body

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    """Its address, and what it has; beside the model's parts what nobody needs."""
    own = [path for path in ASSET.rglob("*") if path.is_file()]
    files = {path.relative_to(ASSET).as_posix(): path.read_bytes() for path in own}
    kind = type("Own", (Hub,), {"asked": [], "files": files | {"flux1-dev.safetensors": b"x"}})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", kind
        server.shutdown()


def test_what_is_not_there_is_downloaded_once(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    """By the Hub's own client, in a process that begins with the stand-in's address: the parts that
    the pipeline is made of, and no other file."""
    address, kind = hub
    online = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    keys = dict(os.environ) | online | {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    code = "import sys; from branchgrpo.models import places; print(places.snapshot(sys.argv[1]))"

    def asked_for(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, name]
        return subprocess.run(command, env=keys, capture_output=True, text=True, timeout=120)

    done = asked_for("acme/tiny")
    assert not done.returncode, done.stderr
    folder = Path(done.stdout.split()[-1])
    assert folder.is_relative_to(tmp_path)
    wanted = {
        name: data for name, data in kind.files.items() if "/" in name or name == places.INDEX
    }
    found = {path for path in folder.rglob("*") if path.is_file()}
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in found} == wanted
    assert sorted(kind.asked) == sorted(wanted)
    assert asked_for("acme/tiny").stdout == done.stdout and len(kind.asked) == len(wanted)
    gone = asked_for("acme/other").stderr.strip().splitlines()[-1]
    assert "model.path: expected a folder, or a model of the Hub" in gone and "acme/other" in gone
