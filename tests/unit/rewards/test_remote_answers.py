"""Answers of a reward server that are none."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import pytest
from support.records import records
from support.remote_peers import (
    PIXELS,
    PROMPTS,
    Stub,
    client,
    one_line,
    scores,
    unwaited,
)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return unwaited(monkeypatch)


def answer(**changes: Any) -> bytes:
    return msgpack.packb(
        {
            key: value
            for key, value in ({"version": 2, "trains_on": "score", "scores": {}} | changes).items()
            if value is not ...
        }
    )


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"", "response: expected msgpack, got 0 bytes that are not"),
        (b"<html>", "response: expected msgpack"),
        (scores(1.0, 2.0)[:-1], "response: expected msgpack"),
        (scores(1.0, 2.0) + b"\x00", "response: expected msgpack.*extra"),
        (msgpack.packb([1]), "response: expected dict, got list of 1"),
        (answer(version=1), "response.version: expected 2, got 1"),
        (answer(version=True), "response.version: expected 2, got True"),
        (answer(version=...), "response.version: expected 2, got None"),
        (
            answer(scores=...),
            r"response: expected the keys \['scores', 'trains_on', 'version'\], got "
            r"\['version', 'trains_on'\]",
        ),
        (answer(more=1), "response: expected the keys .* 'more'"),
        (
            answer(trains_on="other"),
            "response.trains_on: expected 'score' as at the start, got 'other'",
        ),
        (answer(trains_on=b"score"), "response.trains_on: expected str, got bytes of 5"),
        (answer(scores=[1.0, 2.0]), "response.scores: expected dict, got list of 2"),
        (answer(scores={}), r"response.scores: expected the keys \['score'\], got \[\]"),
        (
            answer(scores={"beauty": {"data": bytes(8)}}),
            r"response.scores: expected the keys \['score'\], got \['beauty'\]",
        ),
        (
            answer(scores={"score": {"data": bytes(8)}, "beauty": {"data": bytes(8)}}),
            "response.scores: expected the keys",
        ),
        (
            answer(scores={"score": bytes(8)}),
            "response.scores.score: expected dict, got bytes of 8",
        ),
        (
            answer(scores={"score": {"data": "12345678"}}),
            "response.scores.score.data: expected bytes, got '12345678'",
        ),
        (scores(1.0), "response.scores.score.data: expected 8 bytes for 2 pictures, got 4"),
        (
            scores(1.0, math.nan),
            "response.scores.score: expected finite scores, got nan for picture 1",
        ),
        (
            scores(-math.inf, 1.0),
            "response.scores.score: expected finite scores, got -inf for picture 0",
        ),
    ],
)
def test_answers_that_are_none(body: bytes, line: str, waits: list[float]) -> None:
    stub = Stub((200, body))
    with (
        stub.serving() as url,
        pytest.raises(RuntimeError, match=f"remote reward {url}: {line}") as caught,
    ):
        client(url).score(PIXELS[:2], records(PROMPTS[:2]))
    assert len(stub.seen) == 1 and not waits and one_line(str(caught.value))


def test_an_answer_over_the_limit_is_refused() -> None:
    with (
        Stub((200, bytes(1_500_000))).serving() as url,
        pytest.raises(RuntimeError, match=rf"{url}: expected an answer of at most 1000000 bytes"),
    ):
        client(url, max_mb=1).score(PIXELS[:1], records(["a"]))
