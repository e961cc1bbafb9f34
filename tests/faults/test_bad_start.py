"""What cannot start says so in one line, soon. Bad values of config keys are in
integration/test_bad_input.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgpack
import pytest
import requests
from support.small_cluster import TOKEN, Head, environment, head
from support.small_runs import ROOT, small

SECONDS = 120
"""Most that a refusal may take here, where others work too; alone it takes less than 5."""
NO_MSGPACK = b"\xc1<html>"


def said(*arguments: str, token: str = TOKEN, seconds: float = SECONDS) -> str:
    """The line of run.py that refuses."""
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(token), capture_output=True, text=True, timeout=seconds
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), (
        done.stdout + done.stderr
    )
    return lines[0]


@pytest.fixture(scope="module")
def running() -> Iterator[Head]:
    with head() as found:
        yield found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"run: {iterations: [\n", "PATH:2: expected YAML, but while parsing a flow node"),
        (b"- a\n- b\n", "config: expected a mapping of sections in PATH, got list"),
        (b"\xff\xfe\x00", "config: PATH is UTF-16: save as UTF-8"),
        (None, "config: expected a YAML file, cannot read PATH"),
    ],
)
def test_files_that_are_no_config(text: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    if text is not None:
        path.write_bytes(text)
    assert words.replace("PATH", str(path)) in said("train", str(path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run.iterations", "1.5"], "--run.iterations: expected a valid integer"),
        (["--run.iterations", "["], "--run.iterations: expected a valid integer, got '['"),
        (["--run.iterations"], "command line: expected a value after --run.iterations"),
        (
            ["--rewards", '[{"name": "beauty"}]'],
            "--rewards: rewards.0.name: expected one of aesthetic, ",
        ),
        (["--cluster.address", "nonsense"], "Ray address: expected HOST:PORT, got 'nonsense'"),
        (["--cluster.address", "127.0.0.1:1"], "no Ray found: expected one at 127.0.0.1:1"),
    ],
)
def test_command_lines_that_cannot_be(arguments: list[str], words: str, tmp_path: Path) -> None:
    assert words in said("train", "--run.folder", str(tmp_path / "runs"), *arguments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("option", "missing"),
    [(("--learner.gpus", "64"), "64 GPU"), (("--rollout.resource", "spot"), "0.002 spot")],
)
def test_what_this_machine_can_never_hold_is_refused_before_a_ray_is_started(
    option: tuple[str, str], missing: str, tmp_path: Path
) -> None:
    found = said("train", *option, "--run.folder", str(tmp_path / "runs"))
    assert found.startswith("error: cluster: expected room for 2 rollout") and found.endswith(
        f"on this machine: missing {missing}"
    )


@pytest.mark.slow
def test_what_a_cluster_has_not(running: Head) -> None:
    found = said(
        "train",
        "--learner.gpus",
        "64",
        "--cluster.address",
        running.address,
        "--cluster.wait_seconds",
        "1",
    )
    assert "64 GPU), " in found and found.endswith("free after 1 s: missing 64 GPU")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "has"),
    [
        ("", "RAY_AUTH_MODE=(not set) and no token"),
        ("beef" * 16, "RAY_AUTH_MODE=token and another token"),
    ],
)
@pytest.mark.parametrize("command", [("train", "--cluster.address"), ("status", "--address")])
def test_no_token_and_another_token(
    running: Head, command: tuple[str, str], token: str, has: str
) -> None:
    found = said(*command, running.address, token=token)
    assert found.startswith(
        f"error: the Ray at {running.address} asks for a token: expected RAY_AUTH_MODE=token"
    ) and found.endswith(f"got {has}")
    assert "beef" not in found


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """An HTTP server that always says this."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_reward_server_that_speaks_no_msgpack_ends_the_run(running: Head, tmp_path: Path) -> None:
    """The reward's worker asks it, not the driver: the models are being loaded meanwhile."""
    with answering(NO_MSGPACK) as url:
        keys = small() | {
            "rollout.workers": "1",
            "rewards": json.dumps([{"name": "remote", "url": url}]),
            "cluster.address": running.address,
            "run.folder": str(tmp_path / "runs"),
        }
        found = said(
            "train",
            *(part for key, value in keys.items() for part in (f"--{key}", value)),
            seconds=300,
        )
    assert (
        "error: rewards.remote.url: expected a reward server of protocol version 2 at "
        f"{url}, got health: expected msgpack" in found
    )
    assert not (tmp_path / "runs").exists()


def test_a_reward_server_answers_bytes_that_are_no_msgpack_and_goes_on() -> None:
    command = [sys.executable, str(ROOT / "run.py"), "serve-reward", "jpeg", "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_PROXY": "*"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout and server.stderr
        url = server.stdout.readline().split()[-1]
        with requests.Session() as session:
            session.trust_env = False  # no proxy
            refused = session.post(f"{url}/score", data=NO_MSGPACK, timeout=SECONDS)
            assert refused.status_code == 400
            (line,) = msgpack.unpackb(refused.content)["error"].splitlines()
            assert line.startswith("request: expected msgpack, got 7 bytes that are not")
            assert session.get(f"{url}/health", timeout=SECONDS).status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 0 and not server.stderr.read()


@pytest.mark.slow
def test_a_working_directory_over_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate(600 << 20)  # takes no room on the disk
    command = [sys.executable, str(ROOT / "run.py"), "doctor", "--address", "local", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=SECONDS
    )
    (found,) = [finding for finding in json.loads(done.stdout) if finding["check"] == "working dir"]
    assert (
        found["state"] == "warn"
        and "more than 512.0 MiB" in found["text"]
        and "600.0 MiB or more of it in data.bin" in found["text"]
    )
