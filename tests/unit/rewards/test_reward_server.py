"""The server of remote rewards against requests made by hand. Loopback only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import records
from support.remote_peers import (
    PIXELS,
    PROMPTS,
    TOKEN,
    Plain,
    client,
    entry,
    one_line,
    request_bytes,
)

from branchgrpo.rewards.http import protocol
from branchgrpo.rewards.http.protocol import MB, Offer, ProtocolError
from branchgrpo.rewards.http.server import RewardServer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


# The server

VERSION_1 = msgpack.packb(
    {
        "version": 1,
        "pixels": {"shape": [1, 1, 2, 2, 3], "data": bytes(12)},
        "prompts": ["a"],
    }
)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"", "request: expected msgpack, got 0 bytes"),
        (b"\xc1", "request: expected msgpack"),
        (request_bytes()[:-1], "request: expected msgpack"),
        (request_bytes() + b"\xc0", "request: expected msgpack"),
        (request_bytes(version=1), "request.version: expected 2, got 1"),
        (request_bytes(version=2.0), "request.version: expected 2, got 2.0"),
        (request_bytes(version="2"), "request.version: expected 2, got '2'"),
        (VERSION_1, "request.version: expected 2, got 1"),
        (msgpack.packb(None), "request: expected dict, got None"),
        (request_bytes(samples=...), "request: expected the keys"),
        (request_bytes(rows=...), "request: expected the keys"),
        (request_bytes(extra=0), "request: expected the keys"),
        (request_bytes(samples="a"), "request.samples: expected list, got 'a'"),
        (request_bytes(samples=["a"]), r"request.samples\[0\]: expected dict, got 'a'"),
        (request_bytes(samples=[], rows=[0]), r"rows\[0\]: expected one of 0 samples, .*, got 0"),
        *(
            (request_bytes(samples=[entry(**changes)]), rf"request.samples\[0\]{line}")
            for changes, line in (
                ({"prompt": ...}, ": expected the keys"),
                ({"more": 1}, ": expected the keys"),
                ({"prompt": b"a"}, ".prompt: expected str, got bytes of 1"),
                ({"id": 3}, ".id: expected str, got 3"),
                ({"negative_prompt": None}, ".negative_prompt: expected str, got None"),
                ({"images": b"a"}, ".images: expected list, got bytes of 1"),
                ({"images": ["a.png"]}, r".images\[0\]: expected bytes, got 'a.png'"),
                ({"images": [b""] * 65}, ".images: expected at most 64, got 65"),
                ({"metadata": {}}, ".metadata: expected str, got dict of 0"),
                ({"metadata": "{"}, ".metadata: expected JSON, got '{'"),
                ({"metadata": "[" * 100_000}, r".metadata: expected JSON, got '\[+'$"),
                ({"metadata": "[]"}, ".metadata: expected dict, got list of 0"),
            )
        ),
        (request_bytes(rows={}), "request.rows: expected list, got dict of 0"),
        *(
            (request_bytes(rows=[row]), rf"request.rows\[0\]: expected one of 1 sam.*, got {row}$")
            for row in (1, -1, True, 0.0)
        ),
        (request_bytes(rows=[]), "request.rows: expected one for each of 1 pictures, got 0"),
        (request_bytes(rows=[0, 0]), "request.rows: expected one for each of 1 pictures, got 2"),
        (request_bytes(pixels=[]), "request.pixels: expected dict, got list of 0"),
        (request_bytes(pixels={"data": bytes(12)}), "request.pixels: expected the keys"),
        (
            request_bytes(pixels={"shape": [1, 1, 2, 2, 3], "data": "x" * 12}),
            "request.pixels.data: expected bytes",
        ),
        (
            request_bytes(pixels={"shape": {}, "data": bytes(12)}),
            "request.pixels.shape: expected list",
        ),
        (
            request_bytes(pixels={"shape": [1, 2, 2, 3], "data": bytes(12)}),
            r"request.pixels.shape: expected \[L, F, H, W, 3\].*got \[1, 2, 2, 3\]",
        ),
        (
            request_bytes(pixels={"shape": [1, 1, 2, 6, 1], "data": bytes(12)}),
            "request.pixels.shape",
        ),
        (
            request_bytes(pixels={"shape": [1, -1, -2, 2, 3], "data": bytes(12)}),
            "request.pixels.shape",
        ),
        (
            request_bytes(pixels={"shape": [1, 1, True, 4, 3], "data": bytes(12)}),
            "request.pixels.shape",
        ),
        (
            request_bytes(pixels={"shape": [1, 1, 2.0, 2, 3], "data": bytes(12)}),
            "request.pixels.shape",
        ),
        (
            request_bytes(pixels={"shape": [0, 1, 2, 2, 3], "data": b""}, rows=[]),
            "request.pixels.shape",
        ),
        (
            request_bytes(pixels={"shape": [1, 2**63, 2, 2, 3], "data": b""}),
            "request.pixels.data: expected 110680464442257309696 bytes",
        ),
        (
            request_bytes(pixels={"shape": [2**64 - 1, 1, 2, 2, 3], "data": b""}),
            "request.pixels.shape: expected at most 65536 pictures",
        ),
        (
            request_bytes(pixels={"shape": [1, 1, 2, 2, 3], "data": bytes(11)}),
            "request.pixels.data: expected 12 bytes.*, got 11",
        ),
        (
            request_bytes(pixels={"shape": [1, 1, 2, 2, 3], "data": bytes(13)}),
            "request.pixels.data: expected 12 bytes.*, got 13",
        ),
        (request_bytes(samples=[msgpack.Timestamp(1)]), "request: expected msgpack.*max_ext_len"),
        (
            request_bytes(samples=[msgpack.ExtType(5, b"cos\nsystem")]),
            "request: expected msgpack.*max_ext_len",
        ),
        (msgpack.packb({1: 2}), "request: expected msgpack"),
        (b"\x81\xa1a\xa1\xff", "request: expected msgpack.*utf-8"),
        (b"\xdd\xff\xff\xff\xff", "request: expected msgpack"),  # 4 billion entries
        (b"\xdc\x10\x00" * 400, "request: expected msgpack"),
        (b"\xdf\xff\xff\xff\xff", "request: expected msgpack"),
        (b"\xc6\xff\xff\xff\xff", "request: expected msgpack"),
        (b"\x91" * 2000 + b"\xc0", "request: expected msgpack"),  # nested
        (
            msgpack.packb({str(index): 0 for index in range(65)}),
            "request: expected msgpack.*max_map_len",
        ),
    ],
)
def test_requests_that_are_none(body: bytes, line: str) -> None:
    scorer = Plain()
    status, found = RewardServer(scorer, "plain", MB).answer(body)
    assert status == 400 and not scorer.batches
    with pytest.raises(ProtocolError, match=line) as caught:
        protocol.unpack_request(body, MB)
    assert one_line(str(caught.value)) and msgpack.unpackb(found) == {
        "version": 2,
        "error": protocol.one_line(str(caught.value)),
    }


def test_a_request_of_the_wrong_kind_is_not_sent() -> None:
    for pixels, line in (  # each is wrong in one way
        (PIXELS / 255, "uint8, got float64"),
        (PIXELS[0], "L, F, H, W, 3"),
        (PIXELS[..., :1], "L, F, H, W, 3"),
        (PIXELS[:4], "one for each of 4"),
    ):
        with pytest.raises(ProtocolError, match=line):
            protocol.pack_request(pixels, records(PROMPTS))


KEYS = ["version", "pixels", "samples", "rows", "shape", "data", "prompt", "images", "metadata"]
SMALL = RewardServer(Plain(), "plain", MB)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60, database=None)
@given(st.binary(max_size=200) | TREES.map(msgpack.packb))
def test_no_bytes_break_the_server(body: bytes) -> None:
    status, found = SMALL.answer(body)
    assert status == 400 and set(msgpack.unpackb(found)) == {"version", "error"}


@settings(deadline=None, max_examples=150, database=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(request_bytes()) - 1), st.integers(0, 255)),
        min_size=1,
        max_size=3,
    )
)
def test_no_damage_breaks_the_server(changes: list[tuple[int, int]]) -> None:
    body = bytearray(request_bytes())
    for place, value in changes:
        body[place] = value
    status, found = SMALL.answer(bytes(body))
    assert status in (200, 400) and msgpack.unpackb(found)["version"] == 2


PROGRAM = """
import os, signal, sys
import branchgrpo.rewards.http.server as server
heavy = {"torch", "ray", "yaml", "requests", "PIL"} & set(sys.modules)
assert not heavy, heavy
from branchgrpo.rewards.base import RewardOptions, Scorer

class Last(Scorer):
    def score(self, pixels, samples):
        os.kill(os.getpid(), signal.NUMBER)  # asked to end with a request in hand
        return {"score": pixels.mean((1, 2, 3, 4))}

class Options(RewardOptions):
    def build(self, resources):
        got = resources.threads, resources.device, os.environ["OMP_NUM_THREADS"]
        assert got == (3, "cpu", "3"), got
        return Last()

options, ready = Options(label="last"), lambda url: print(url, flush=True)
server.serve(options, port=0, token_env="REWARD_TOKEN", max_mb=1, threads=3, ready=ready)
assert not {"torch", "ray"} & set(sys.modules)
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_of_its_own_answers_what_it_holds_and_ends(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    program = PROGRAM.replace("NUMBER", number.name)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as process:
        assert process.stdout and process.stderr
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), process.stderr.read()
        far = client(url, token_env="REWARD_TOKEN")
        assert far.offer == Offer("last", ("score",), "score", MB)
        found = far.score(PIXELS, records(PROMPTS))["score"]
        out, err = process.communicate(timeout=20)
    assert np.array_equal(found, PIXELS.mean((1, 2, 3, 4)).astype(np.float32))
    assert (process.returncode, out, err) == (0, "ended\n", "")
