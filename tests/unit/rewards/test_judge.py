"""A judge, against an endpoint on loopback that speaks the real protocol: right, slow, broken and
refusing."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.chat_endpoint import Endpoint, completion, endpoint, pictures, texts

from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.judge.asking import NoAnswer
from branchgrpo.rewards.judge.options import JudgeReward, JudgeScorer
from branchgrpo.types import Picture, Sample

PIXELS = np.stack([np.full((1, 8, 8, 3), 40 * n, np.uint8) for n in range(4)])
SAMPLES = [Sample(prompt="a grey square")] * 4
EASY = {"retries": 2, "backoff_seconds": 0.0}


def scorer(made: Endpoint, **keys: Any) -> JudgeScorer:
    return JudgeReward(url=made.url, model="judge", **(EASY | keys)).build(Resources())


def yes_by_light(request: dict[str, Any]) -> tuple[int, bytes]:
    """Yes the more probable, the lighter the last picture is."""
    p = 0.1 + float(pictures(request)[-1].mean()) / 255
    return 200, completion("Yes", {"Yes": p * 0.7, " yes": p * 0.2, "No": (1 - p) * 0.9, "Hm": 0.1})


def scored_by(answer: Callable[[dict[str, Any]], tuple[int, bytes]], **keys: Any) -> Any:
    with endpoint(answer) as made:
        return scorer(made, **keys).score(PIXELS, SAMPLES), made


def test_the_score_is_the_probability_of_yes_over_all_its_spellings() -> None:
    found, made = scored_by(yes_by_light)
    assert found["score"] == pytest.approx(0.1 + np.arange(4) * 40 / 255, abs=1e-6)
    first = made.requests[0]
    assert (first["model"], first["max_tokens"], first["logprobs"]) == ("judge", 1, True)
    assert 'show "a grey square"' in texts(first)[-1] and first["temperature"] == 0
    assert sorted(int(pictures(one)[0][0, 0, 0]) for one in made.requests) == [0, 40, 80, 120]


def test_a_rubric_in_json_among_other_words(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), (200, 0, 0)).save(tmp_path / "before.png")
    sample = Sample(prompt="make it dark", images=(Picture(str(tmp_path / "before.png")),))
    answer = 'Sure {not json}: {"followed": 8, "kept": 5, "quality": 10.0} done'
    with endpoint(lambda _: (200, completion(answer))) as made:
        found = scorer(made, template="edit").score(PIXELS[:1], [sample])
    assert found["followed"][0] == pytest.approx(0.8) and found["kept"][0] == 0.5
    assert found["score"][0] == pytest.approx((0.8 * 0.5 * 1.0) ** (1 / 3))
    before, after = pictures(made.requests[0])
    assert before.shape == (10, 20, 3) and before[0, 0].tolist() == [200, 0, 0]
    assert after.shape == (8, 8, 3)


def test_numbers_in_lines_of_text() -> None:
    text = "Alignment Score (1-5): 4.5\nCoherence Score (1-5): 3\nStyle Score (1-5): 1"
    found, _ = scored_by(lambda _: (200, completion(text)), template="unified-reward")
    assert [float(found[name][0]) for name in ("alignment", "coherence", "style")] == [
        0.875,
        0.5,
        0.0,
    ]
    assert found["score"][0] == pytest.approx((0.875 + 0.5) / 3)


def test_questions_of_the_metadata_are_asked_one_by_one() -> None:
    asked = [{"question": "Is there a cup?"}, {"question": "Is it red?", "answer": "no"}]
    sample = Sample(prompt="a cup", metadata={"questions": asked})

    def answer(request: dict[str, Any]) -> tuple[int, bytes]:
        p = 0.9 if "cup" in texts(request)[-1] else 0.2
        return 200, completion("yes", {"yes": p, "no": 1 - p})

    with endpoint(answer) as made:
        found = scorer(made, template="questions").score(PIXELS[:2], [sample] * 2)
    assert found["score"] == pytest.approx([(0.9 + 0.8) / 2] * 2) and len(made.requests) == 4


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (500, b'{"error": {"message": "boom"}}', "HTTP 500: {'message': 'boom'}"),
        (503, b"<html>gateway</html>", "HTTP 503: <html>gateway</html>"),
        (200, b"not json", "expected a chat completion, got 'not json'"),
        (200, b'{"choices": []}', "expected a chat completion"),
        (200, completion("I cannot", {"I": 0.9}), "expected yes or no as the first token"),
        (200, completion("yes"), "an answer without top_logprobs"),
        (200, completion(message={"refusal": "I won't"}), "refused: I won't"),
    ],
)
def test_what_cannot_be_used_is_asked_again_and_then_has_no_score(
    status: int, body: bytes, words: str
) -> None:
    with endpoint(lambda _: (status, body)) as made:
        with pytest.raises(NoAnswer) as caught:
            scorer(made).score(PIXELS[:1], SAMPLES[:1])
        assert words in str(caught.value) and "in 3 tries" in str(caught.value)
        assert len(made.requests) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ('{"followed": 8, "kept": 5}', "expected a number quality"),
        ('{"followed": 11, "kept": 5, "quality": 1}', "from 0 to 10, got 11"),
        ('{"followed": true, "kept": 5, "quality": 1}', "expected a number followed"),
        ("[8, 5, 1]", "expected a JSON object"),
        ("", "an empty answer"),
    ],
)
def test_wrong_json_is_asked_again_at_another_temperature(answer: str, words: str) -> None:
    good = completion('{"followed": 1, "kept": 1, "quality": 1}')
    said = iter([completion(answer), good])
    with endpoint(lambda _: (200, next(said))) as made:
        sample = Sample(prompt="x", images=(Picture("x", _png()),))
        found = scorer(made, template="edit").score(PIXELS[:1], [sample])
        assert found["score"][0] == pytest.approx(0.1)
        assert [one["temperature"] for one in made.requests] == [0.0, 0.5]
    with (
        endpoint(lambda _: (200, completion(answer))) as made,
        pytest.raises(NoAnswer, match=words),
    ):
        scorer(made, template="edit").score(PIXELS[:1], [sample])


def _png() -> bytes:
    from io import BytesIO

    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


def test_an_answer_that_was_cut_off_is_none() -> None:
    body = completion('{"followed": 1, "kept": 1, "quality": 1', finish_reason="length")
    sample = Sample(prompt="x", images=(Picture("x", _png()),))
    with endpoint(lambda _: (200, body)) as made, pytest.raises(NoAnswer, match="max_tokens"):
        scorer(made, template="edit").score(PIXELS[:1], [sample])


def test_a_picture_without_an_answer_has_no_number_and_the_others_keep_theirs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Never a silent 0; and when the batch is tried again, only that picture is asked about."""

    def answer(request: dict[str, Any]) -> tuple[int, bytes]:
        return (500, b"{}") if pictures(request)[0].mean() == 80 else yes_by_light(request)

    with endpoint(answer) as made:
        judge = scorer(made)
        found = judge.score(PIXELS, SAMPLES)["score"]
        assert np.isnan(found).tolist() == [False, False, True, False]
        assert "1 of 4: judge" in capsys.readouterr().err
        before = len(made.requests)
        again = judge.score(PIXELS, SAMPLES)["score"]
        assert np.array_equal(found, again, equal_nan=True)
        assert Counter(one.mean() for one in map(_first, made.requests[before:])) == {80.0: 3}


def _first(request: dict[str, Any]) -> np.ndarray:
    return pictures(request)[0]


def test_an_endpoint_that_is_silent_or_gone_is_tried_again() -> None:
    def slow(_: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(0.5)
        return 200, completion("yes", {"yes": 1.0})

    with endpoint(slow) as made, pytest.raises(NoAnswer, match=r"in 3 tries.*timed out"):
        scorer(made, timeout_seconds=0.05).score(PIXELS[:1], SAMPLES[:1])
    with pytest.raises(NoAnswer, match="in 3 tries"):  # its port is closed now
        scorer(made).score(PIXELS[:1], SAMPLES[:1])


def test_a_request_that_is_refused_is_the_user_s_to_mend() -> None:
    body = b'{"error": "model judge does not exist"}'
    with endpoint(lambda _: (404, body)) as made:
        with pytest.raises(UserError, match="HTTP 404: model judge does not exist"):
            scorer(made).score(PIXELS[:1], SAMPLES[:1])
        assert len(made.requests) == 1


def test_the_budget_ends_the_run_in_words() -> None:
    with endpoint(yes_by_light) as made:
        judge = scorer(made, max_calls=5, concurrency=1)
        judge.score(PIXELS, SAMPLES)
        with pytest.raises(UserError, match=r"rewards.judge.max_calls: 5 calls were made"):
            judge.score(PIXELS + 1, SAMPLES)
        assert len(made.requests) == 5


def test_so_many_questions_are_asked_at_once() -> None:
    both = threading.Barrier(2, timeout=10)  # passes only if two are in flight

    def answer(request: dict[str, Any]) -> tuple[int, bytes]:
        both.wait()
        return yes_by_light(request)

    assert len(scored_by(answer, concurrency=2)[0]["score"]) == 4


def test_the_key_is_sent_and_the_answers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    found, made = scored_by(yes_by_light, token_env="JUDGE_KEY", answers=str(tmp_path / "said"))
    assert {one["Authorization"] for one in made.headers} == {"Bearer sesame"}
    (log,) = (tmp_path / "said").glob("*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(line["score"] for line in lines) == pytest.approx(sorted(found["score"]))
    assert all("grey square" in line["question"] and line["answer"] == "Yes" for line in lines)
    assert "sesame" not in log.read_text() and "base64" not in log.read_text()


def test_of_two_pictures_both_orders_are_asked() -> None:
    """An endpoint that favours the first place by 0.2, and the lighter picture: the place cancels
    out."""

    def answer(request: dict[str, Any]) -> tuple[int, bytes]:
        first, second = (float(one.mean()) for one in pictures(request))
        p = min(1.0, max(0.0, 0.5 + (first - second) / 400 + 0.2))
        assert texts(request)[:2] == ["A:", "B:"]
        return 200, completion("A", {"A": max(p, 1e-9), "B": max(1 - p, 1e-9)})

    with endpoint(answer) as made:
        found = scorer(made).preferences(PIXELS, SAMPLES[0], [(0, 1), (2, 1)])
    assert found == pytest.approx([0.4, 0.6]) and len(made.requests) == 4


def test_records_that_a_template_cannot_ask_about_are_refused_beforehand() -> None:
    def refused(template: str, **keys: Any) -> Any:
        reward = JudgeReward(url="http://h/v1", model="m", template=template)
        return reward.refusal(Sample(prompt="x", **keys), 0, 0)

    assert refused("yes-no") is None
    assert "questions in metadata.questions" in refused("questions").detail
    assert refused("questions", metadata={"questions": ["a?"]}) is None
    assert "expected questions in" in refused("questions", metadata={"questions": [3]}).detail
    assert refused("edit").kind == "no picture for the judge to compare with"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("text: [", "expected YAML"),
        ("answer: yes_no", "text: Field required"),
        ("{text: a, answer: json}", "expected some unless answer is yes_no"),
        ("{text: a, answer: text, criteria: {b: {}}}", "criteria.b.pattern: expected one"),
        ("{text: a, questions: q}", "expected a key where text has {question}"),
        ("{text: a, answer: json, criteria: {b: {low: 1, high: 1}}}", "low and high that differ"),
    ],
)
def test_wrong_templates_are_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        JudgeReward(url="http://h/v1", model="m", template=str(path)).check()
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("rewards.judge.template: ")


@pytest.mark.parametrize(
    "url", ["h:1/v1", "ftp://h/v1", "http://u:p@h/v1", "http://h/v1?x", "http://"]
)
def test_wrong_addresses_are_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"rewards.judge.url: expected http"):
        JudgeReward(url=url, model="m").check()


def test_parts_of_a_record_stand_in_a_template(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text('text: "{id}: {prompt}, not {negative_prompt}; {metadata.tags} {other}"')
    reward = JudgeReward(url="http://h/v1", model="m", template=str(path))
    sample = Sample(prompt="a {prompt}", id="7", negative_prompt="b", metadata={"tags": [1, "é"]})
    assert reward.asking().asked(sample) == '7: a {prompt}, not b; [1, "é"] {other}'
    refused = reward.refusal(Sample(prompt="x"), 0, 0)
    assert refused and "metadata 'tags'" in refused.detail
