"""Calls of a chat endpoint that speaks OpenAI's protocol (vLLM, SGLang and others): a few at a
time, tried again, counted, and written down."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random
from threading import Lock
from time import sleep, time
from typing import TYPE_CHECKING, Any

from branchgrpo.errors import UserError, one_line
from branchgrpo.rewards.judge.template import Absent

if TYPE_CHECKING:
    from PIL.Image import Image
    from requests import Response


RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which the same question may be answered later."""

LONGEST_WAIT = 60.0
"""Seconds between two tries, at most."""

TOP = 20
"""Most likely tokens that are asked for, as many as the protocol has."""


OTHER_ANSWERS = 0.5
"""Temperature of a question whose answer could not be read."""

KEPT = 1 << 14
"""Answers that are known, at most."""


class NoAnswer(RuntimeError):
    """The judge gave no answer that can be used, however often it was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How it is asked; see JudgeReward's keys of the same names."""

    temperature: float
    retries: int
    backoff_seconds: float
    timeout_seconds: float
    max_calls: int


class Judge:
    """An endpoint. Threads may ask at once; what was answered lately is not asked again."""

    def __init__(self, url: str, model: str, manner: Manner, *, token: str, log: Path | None):
        self.model, self.manner = model, manner
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.log = log
        self.random = Random()
        self.known: dict[str, Any] = {}
        self.calls = 0
        self._lock = Lock()

    def yes(self, content: Sequence[Any], words: tuple[str, str], system: str = "") -> float:
        """The probability of the first word against the second, as the answer's first token.
        Raises NoAnswer."""
        body = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP}
        found: float = self._asked(
            content, system, body, lambda choice: probability(choice, *words), "first token"
        )
        return found

    def text(
        self, content: Sequence[Any], read: Callable[[str], Any], max_tokens: int, system: str = ""
    ) -> Any:
        """What `read` makes of the answer's text; Absent from it asks again. Raises NoAnswer."""
        body = {"max_tokens": max_tokens}
        return self._asked(content, system, body, lambda choice: read(said(choice)), "text")

    def _asked(
        self,
        content: Sequence[Any],
        system: str,
        body: Mapping[str, Any],
        read: Callable[[Mapping[str, Any]], Any],
        kind: str,
    ) -> Any:
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": list(content)})
        options = self.manner
        request = {
            "model": self.model,
            "messages": messages,
            "temperature": options.temperature,
            "seed": 0,
            **body,
        }
        name = hashlib.sha256(json.dumps([request, kind], sort_keys=True).encode()).hexdigest()
        with self._lock:
            if name in self.known:
                return self.known[name]
        cause, tries = "", options.retries + 1
        for index in range(tries):
            if index:
                wait = min(LONGEST_WAIT, options.backoff_seconds * 2 ** (index - 1))
                sleep(wait * self.random.uniform(0.5, 1.0))
            answer, cause = self._tried(request)
            if answer is None:
                continue
            try:
                found = read(answer)
            except Absent as error:
                cause = str(error)
                self._write(request, answer, cause)
                # the same answer again would be as bad
                request["temperature"] = max(options.temperature, OTHER_ANSWERS)
                continue
            self._write(request, answer, found)
            with self._lock:
                if len(self.known) >= KEPT:
                    self.known.clear()
                self.known[name] = found
            return found
        raise NoAnswer(f"judge {self.url}: no answer to use in {tries} tries, the last: {cause}")

    def _tried(self, request: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str]:
        """The first choice of an answer, or why there is none. Raises UserError for what another
        try cannot mend, and where the budget is spent."""
        import requests

        self._count()
        try:
            response = requests.post(
                self.url,
                json=request,
                headers=self.headers,
                timeout=self.manner.timeout_seconds,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            return None, one_line(error)
        if response.status_code in RETRIED:
            return None, f"HTTP {response.status_code}: {_error(response)}"
        if response.status_code != 200:
            raise UserError(
                f"rewards.judge: {self.url} refuses the request, HTTP {response.status_code}: "
                f"{_error(response)}"
            )
        try:
            choice = response.json()["choices"][0]
            if not isinstance(choice["message"], dict):
                raise TypeError("no message")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return None, f"expected a chat completion, got {one_line(response.text)!r} ({error})"
        if refusal := choice["message"].get("refusal"):
            return None, f"refused: {one_line(str(refusal))}"
        return choice, ""

    def _count(self) -> None:
        with self._lock:
            if 0 < self.manner.max_calls <= self.calls:
                raise UserError(
                    f"rewards.judge.max_calls: {self.calls} calls were made by this worker, which "
                    "is all that it may make"
                )
            self.calls += 1

    def _write(self, request: Mapping[str, Any], answer: Mapping[str, Any], found: Any) -> None:
        """A line of the log: the question without its pictures, the answer, what it came to."""
        if not self.log:
            return
        content = request["messages"][-1]["content"]
        line = {
            "time": time(),
            "question": "\n".join(part["text"] for part in content if part["type"] == "text"),
            "pictures": sum(part["type"] != "text" for part in content),
            "answer": answer["message"].get("content"),
            "score": found,
        }
        with self._lock, self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def said(choice: Mapping[str, Any]) -> str:
    """The text of an answer. Raises Absent where it has none, or was cut off."""
    if choice.get("finish_reason") == "length":
        raise Absent("an answer that was cut off at max_tokens")
    text = choice["message"].get("content")
    if not isinstance(text, str) or not text.strip():
        raise Absent("an empty answer")
    return text


def probability(choice: Mapping[str, Any], wanted: str, other: str) -> float:
    """p(wanted) / (p(wanted) + p(other)), over all ways to write a word as the first token. Raises
    Absent where neither is among the likely ones."""
    try:
        tokens = choice["logprobs"]["content"][0]["top_logprobs"]
        likely = [(str(one["token"]), float(one["logprob"])) for one in tokens]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Absent("an answer without top_logprobs") from error
    sums = {
        word: sum(math.exp(p) for token, p in likely if _word(token) == word.lower())
        for word in (wanted, other)
    }
    total = sum(sums.values())
    if not total > 0:
        raise Absent(f"expected {wanted} or {other} as the first token, got {likely[:3]}")
    return sums[wanted] / total


def _word(token: str) -> str:
    """Without the blanks and marks that tokenizers put before or after it."""
    return token.strip().strip("▁Ġ.,!\"'").lower()


def _error(response: Response) -> str:
    try:
        found = response.json()
        return one_line(str(found.get("error", found) if isinstance(found, dict) else found))
    except ValueError:
        return one_line(response.text)


def shown(picture: Image, longest: int) -> dict[str, Any]:
    """A picture as part of a message: PNG, reduced to so many pixels on the longer side."""
    picture = picture.convert("RGB")
    if max(picture.size) > longest:
        picture.thumbnail((longest, longest))
    file = BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
