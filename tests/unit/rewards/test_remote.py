"""The remote reward against its real server, and against messages made by hand. Loopback only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import msgpack
import numpy as np
import pytest
from support.records import record, records
from support.remote_peers import (
    PIXELS,
    PROMPTS,
    TOKEN,
    Failing,
    Plain,
    Stub,
    client,
    entry,
    one_line,
    plain,
    running,
    scores,
    trickling,
    unwaited,
)

from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.http import client as remote
from branchgrpo.rewards.http import protocol
from branchgrpo.rewards.http.protocol import MB
from branchgrpo.rewards.http.records import sample_bytes
from branchgrpo.rewards.ocr import OcrReward
from branchgrpo.types import Picture, Sample


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return unwaited(monkeypatch)


# Scores


def test_ocr_behind_http_scores_bit_for_bit_as_here() -> None:
    from test_ocr import NUMBERS, TARGET, picture

    local = OcrReward(target=TARGET, train_on="edit").build(Resources())
    pixels = np.stack([picture(number) for number in NUMBERS])
    prompts = [f"number {number}" for number in NUMBERS[1:] + NUMBERS[:1]]
    with running(local) as url:
        far = client(url, report=("likelihood", "exact"))
        found = far.score(pixels, records(prompts))
    wanted = local.score(pixels, records(prompts))
    assert (far.trains_on, far.reports) == ("edit", ("likelihood", "exact"))
    assert set(found) == set(wanted) and wanted["likelihood"].max() > 0
    for name in wanted:
        assert found[name].dtype == np.float32 and found[name].tobytes() == wanted[name].tobytes()


def test_the_wire_is_as_documented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    (tmp_path / "netrc").write_text(
        "machine 127.0.0.1 login somebody password else\n", encoding="utf-8"
    )
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))  # must not replace the token
    (tmp_path / "source.png").write_bytes(b"bytes of a file")
    alone, full = (
        record(PROMPTS[0]),
        Sample(
            prompt=PROMPTS[1],
            id="7",
            negative_prompt="a wolf",
            images=(Picture(str(tmp_path / "source.png")), Picture("row 3", b"others")),
            metadata={"count": 2},
        ),
    )
    stub = Stub((200, scores(0.1, -2.0, 3.0)))
    with stub.serving() as url:
        found = client(url + "/", token_env="REWARD_TOKEN").score(
            PIXELS[:3, ::-1], [alone, full, alone]
        )
        client(url).score(PIXELS[:3], [alone, full, alone])
    (path, headers, body), (_, unguarded, _) = stub.seen
    assert (
        path == "/score"
        and headers["Authorization"] == f"Bearer {TOKEN}"
        and "Authorization" not in unguarded
    )
    assert msgpack.unpackb(body) == {
        "version": 2,
        "pixels": {"shape": [3, 2, 8, 6, 3], "data": PIXELS[:3, ::-1].tobytes()},
        "samples": [
            entry(prompt=PROMPTS[0]),
            {
                "prompt": PROMPTS[1],
                "id": "7",
                "negative_prompt": "a wolf",
                "images": [b"bytes of a file", b"others"],
                "metadata": '{"count": 2}',
            },
        ],
        "rows": [0, 1, 0],
    }
    assert found["score"].tolist() == [np.float32(0.1), -2.0, 3.0]


def test_large_batches_are_split_by_batch_and_by_size() -> None:
    scorer, local = Plain(), Plain()
    big = np.random.default_rng(1).integers(0, 256, (5, 1, 256, 512, 3), np.uint8)  # 393 kB each
    with running(scorer, max_bytes=3 * MB) as url:
        small = plain(url, batch=2).score(PIXELS, records(PROMPTS))
        large = plain(url, max_mb=1).score(big, records(PROMPTS))
    assert scorer.batches == [2, 2, 1, 2, 2, 1]
    for name in ("bright", "length"):
        assert np.array_equal(
            small[name], local.score(PIXELS, records(PROMPTS))[name].astype(np.float32)
        )
        assert np.array_equal(
            large[name], local.score(big, records(PROMPTS))[name].astype(np.float32)
        )


def test_requests_fill_the_limit_and_never_pass_it() -> None:
    scorer = Plain()
    # a record is sent once in a request, however many pictures were drawn for it
    picture, text = PIXELS[0].nbytes + 5, 128 + len("wört".encode()) + len("{}")
    row = picture + text
    with running(scorer, max_bytes=3 * picture + text + protocol.OVERHEAD) as url:
        plain(url).score(PIXELS, records(["wört"] * 5))
    with running(scorer, max_bytes=3 * picture + text + protocol.OVERHEAD - 1) as url:
        plain(url).score(PIXELS, records(["wört"] * 5))
    with (
        running(scorer, max_bytes=row) as url,
        pytest.raises(UserError, match=rf"max_mb.*{row} bytes, got {row}") as caught,
    ):
        plain(url).score(PIXELS, records(["wört"] * 5))
    with running(scorer, max_bytes=3 * row + protocol.OVERHEAD) as url:
        plain(url).score(PIXELS, [record("wört") for _ in range(5)])  # five objects
    assert scorer.batches == [3, 2, 2, 2, 1, 3, 2] and one_line(str(caught.value))


@pytest.mark.parametrize("prompt", ["", "x" * 31, "x" * 32, "x" * 300, "x" * 70_000])
@pytest.mark.parametrize("frames", [1, 300])
def test_the_overhead_covers_a_request(prompt: str, frames: int) -> None:
    pixels = np.zeros((70, frames, 2, 3, 3), np.uint8)
    bare = [record(prompt) for _ in range(70)]
    full = Sample(
        prompt=prompt,
        id="é",
        images=tuple(Picture("", bytes(length)) for length in (1, 300, 70_000)),
        metadata={"names": ["猫", 1.5, None]},
    )
    for samples in (bare, [bare[0]] * 70, [full] * 70, [full, *bare[1:]]):
        size = sum(map(protocol.row_bytes, pixels)) + sum(
            map(sample_bytes, {id(sample): sample for sample in samples}.values())
        )
        assert len(protocol.pack_request(pixels, samples)) <= size + protocol.OVERHEAD


def test_many_clients_at_once_are_all_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "sleep", lambda seconds: sleep(seconds / 50))
    scorer = Plain()

    def ask(index: int) -> bool:
        far, right = plain(url, retries=100), True
        for turn in range(3):
            pixels = np.full((2, 1, 2, 2, 3), 3 * index + turn, np.uint8)
            right &= (
                far.score(pixels, records(["p", "qq"]))["bright"].tolist()
                == [np.float32(3 * index + turn) / np.float32(7)] * 2
            )
        return right

    with running(scorer, queue=3) as url, ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(12)))
    assert scorer.batches == [2] * 36 and len(scorer.threads) == 1


# Failures


@pytest.mark.parametrize(
    "failure",
    [
        (503, b""),
        (429, b"\xc1"),
        (502, b"<html>"),
        (504, msgpack.packb({"version": 2, "error": "later"})),
        None,
    ],
)
def test_two_failures_then_success(failure: Any, waits: list[float]) -> None:
    stub = Stub(failure, failure, (200, scores(3.0)))
    with stub.serving() as url:
        assert client(url, backoff_seconds=4.0).score(PIXELS[:1], records(["a"]))[
            "score"
        ].tolist() == [3.0]
    assert len({body for _, _, body in stub.seen}) == 1 and len(stub.seen) == 3
    assert len(waits) == 2 and 2 <= waits[0] <= 4 <= waits[1] <= 8


def test_waits_double_up_to_a_minute_and_are_not_all_alike(waits: list[float]) -> None:
    with Stub((503, b"")).serving() as url, pytest.raises(RuntimeError):
        client(url, retries=9, backoff_seconds=1.0).score(PIXELS[:1], records(["a"]))
    longest = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True))
    assert len({wait / most for wait, most in zip(waits, longest, strict=True)}) == 9


def test_gives_up_with_url_count_and_last_cause(waits: list[float]) -> None:
    stub = Stub(None, (503, msgpack.packb({"version": 2, "error": "busy:\nlater\x1b[31m"})))
    with stub.serving() as url, pytest.raises(RuntimeError) as caught:
        client(url, retries=3).score(PIXELS[:1], records(["a"]))
    assert (
        str(caught.value)
        == f"remote reward {url}: no answer in 4 tries, the last: HTTP 503: busy: later [31m"
    )
    assert len(stub.seen) == 4 and len(waits) == 3


def test_a_silent_server_is_given_up(waits: list[float]) -> None:
    stub = Stub((200, scores(1.0)))
    with stub.serving() as url:
        far = client(url, timeout_seconds=0.1, retries=1)
        stub.silent = True
        with pytest.raises(
            RuntimeError, match="no answer in 2 tries, the last: ReadTimeout"
        ) as caught:
            far.score(PIXELS[:1], records(["a"]))
    assert url in str(caught.value) and one_line(str(caught.value)) and len(waits) == 1


@pytest.mark.waits
@pytest.mark.parametrize("where", ["headers", "body"])
def test_a_server_that_trickles_is_given_up(where: str, waits: list[float]) -> None:
    """A byte every 50 ms: never silent, never done."""
    stub = Stub((200, scores(1.0)))
    with trickling(where) as trickler, stub.serving() as url:
        far = client(url, timeout_seconds=2.0, deadline_seconds=0.5, retries=1)
        far.url = trickler
        begun = monotonic()
        with pytest.raises(
            RuntimeError,
            match=r"no answer in 2 tries, the last: .*no whole answer in 0\.5 s "
            r"\(deadline_seconds\)",
        ) as caught:
            far.score(PIXELS[:1], records(["a"]))
        assert 1.0 <= monotonic() - begun < 5 and one_line(str(caught.value)) and len(waits) == 1
        far.url = url  # the next request has a session of its own
        assert far.score(PIXELS[:1], records(["a"]))["score"].tolist() == [1.0]
        with pytest.raises(UserError, match=r"expected a reward server at .*deadline_seconds"):
            client(trickler, timeout_seconds=2.0, deadline_seconds=0.3)


def test_a_server_that_goes_away_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub((200, scores(1.0)))
    with stub.serving() as url:
        far = client(url, retries=1)
    far.session.close()  # else the old connection still finds the stub's thread
    with pytest.raises(
        RuntimeError, match=r"no answer in 2 tries, the last: ConnectionError: .*refused"
    ) as caught:
        far.score(PIXELS[:1], records(["a"]))
    assert one_line(str(caught.value))
    with ExitStack() as again:
        monkeypatch.setattr(
            remote,
            "sleep",
            lambda seconds: again.enter_context(stub.serving(int(url.rpartition(":")[2]))),
        )
        assert far.score(PIXELS[:1], records(["a"]))["score"].tolist() == [1.0]


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 500])
def test_what_a_further_try_cannot_mend_is_not_tried(status: int, waits: list[float]) -> None:
    stub = Stub((status, msgpack.packb({"version": 2, "error": "no"})))
    with stub.serving() as url, pytest.raises(RuntimeError) as caught:
        client(url).score(PIXELS[:1], records(["a"]))
    assert str(caught.value) == f"remote reward {url}: HTTP {status}: no"
    assert len(stub.seen) == 1 and not waits


def test_errors_of_the_scorer_arrive(capfd: pytest.CaptureFixture[str]) -> None:
    scorer = Failing(UserError("rewards.plain.target: expected text"))
    with running(scorer) as url:
        far = plain(url)
        with pytest.raises(
            UserError, match=rf"{url}: HTTP 422: rewards.plain.target: expected text"
        ):
            far.score(PIXELS, records(PROMPTS))
        assert not capfd.readouterr().err
        scorer.outcome = KeyError("weights\nare gone")
        with pytest.raises(RuntimeError, match=rf"{url}: HTTP 500: KeyError: .*weights.*are gone"):
            far.score(PIXELS, records(PROMPTS))
        assert "Traceback" in capfd.readouterr().err
        scorer.outcome = {"bright": np.ones(5), "length": np.zeros(5)}
        assert far.score(PIXELS, records(PROMPTS))["bright"].tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        ({"bright": np.ones(5)}, r"scores: expected a score 'length', got \['bright'\]"),
        (
            {"bright": np.ones(4), "length": np.ones(5)},
            r"scores.bright: expected shape \(5,\), got \(4,\)",
        ),
        (
            {"bright": np.array([1, 1, 1, np.nan, 1]), "length": np.ones(5)},
            "scores.bright: expected finite scores, got nan for picture 3",
        ),
        (
            {"bright": np.full(5, 1e39), "length": np.ones(5)},
            "scores.bright: expected finite scores, got inf for picture 0",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_scorer_that_breaks_its_word(outcome: Any, line: str) -> None:
    with (
        running(Failing(outcome)) as url,
        pytest.raises(RuntimeError, match=f"HTTP 500: ProtocolError: {line}"),
    ):
        plain(url).score(PIXELS, records(PROMPTS))
