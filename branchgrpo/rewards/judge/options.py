"""A judge: any vision-language model behind an OpenAI-style chat endpoint (vLLM, SGLang, …)."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from pydantic import Field

from branchgrpo.errors import UserError, one_line
from branchgrpo.rewards.base import Footprint, Refusal, Resources, RewardOptions, Scorer, evenly
from branchgrpo.rewards.http import protocol
from branchgrpo.rewards.judge.asking import Judge, Manner, NoAnswer, shown
from branchgrpo.rewards.judge.template import Absent, Template, filled, template
from branchgrpo.types import F32, U8, Sample

LETTERS = ("A", "B")


class JudgeReward(RewardOptions):
    """Scores 0 … 1: the probability of yes, or a rubric's criteria and what they come to. A picture
    without an answer has no score: reward_workers.on_failure decides."""

    name: Literal["judge"] = Field("judge", description="the reward")
    url: str = Field(description="base address of the endpoint, as http://HOST:8000/v1")
    model: str = Field(description="the model's name, as the endpoint serves it")
    token_env: str = Field(
        "",
        description="environment variable, of the reward workers, with the endpoint's key; empty: "
        "none is sent",
    )
    template: str = Field(
        "yes-no",
        description="what is asked: yes-no, unified-reward, edit, questions, or a .yaml file",
    )
    concurrency: int = Field(8, ge=1, description="questions of a worker that are asked at once")
    timeout_seconds: float = Field(120.0, gt=0, description="longest silence of the endpoint")
    retries: int = Field(
        4,
        ge=0,
        le=100,
        description="further tries of a question: no answer, an error of the server, a refusal, or "
        "an answer that cannot be read",
    )
    backoff_seconds: float = Field(
        1.0,
        ge=0,
        description="wait before the first further try; doubles each time, half of it at random, "
        "at most 60 s",
    )
    max_calls: int = Field(
        0, ge=0, description="requests that a worker may make in all; 0 = any number"
    )
    temperature: float = Field(0.0, ge=0, description="of the judge's answers")
    longest_side: int = Field(1024, ge=16, description="pictures are reduced to so many pixels")
    frames: int = Field(4, ge=1, description="frames of a video that are shown, evenly spaced")
    answers: str = Field(
        "",
        description="folder for what was asked and answered, a .jsonl file for each worker; empty: "
        "not kept",
    )

    def asking(self) -> Template:
        """The template. Raises UserError for one that is wrong."""
        return template("rewards.judge.template", self.template)

    @property
    def elsewhere(self) -> bool:
        return True

    def reported(self) -> tuple[str, ...]:
        return ("score", *self.asking().criteria)

    def check(self) -> None:
        """Raises UserError for a wrong template, and a URL that cannot be one. The network is not
        touched."""
        self.asking()
        try:
            parts = urlsplit(self.url)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            fits = False
        if not fits or parts.query or "@" in parts.netloc or set(self.url) & set(" \t\r\n"):
            raise UserError(f"rewards.judge.url: expected http(s)://HOST:PORT/v1, got {self.url!r}")

    def refusal(self, sample: Sample, height: int, width: int) -> Refusal | None:
        del height, width
        asking = self.asking()
        try:
            for question, _ in asking.list_of(sample):
                asking.asked(sample, question)
        except Absent as error:
            return Refusal("metadata that the judge's template needs", f"{error}")
        if asking.pictures[0] == "sources" and not sample.images:
            return Refusal("no picture for the judge to compare with", repr(sample.prompt))
        return None

    def footprint(self, frames: int) -> Footprint:
        del frames
        return Footprint()  # another machine's

    def build(self, resources: Resources) -> JudgeScorer:
        self.check()
        return JudgeScorer(self)


class JudgeScorer(Scorer):
    """Asks about each picture."""

    def __init__(self, options: JudgeReward):
        self.options, self.template = options, options.asking()
        self.reports = options.reported()
        log = None
        if options.answers:
            folder = Path(options.answers).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            log = folder / f"{socket.gethostname()}-{os.getpid()}.jsonl"
        token = protocol.token_of("rewards.judge.token_env", options.token_env)
        keys = (field.name for field in fields(Manner))
        manner = Manner(**{key: getattr(options, key) for key in keys})
        self.judge = Judge(options.url, options.model, manner, token=token, log=log)

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        """Raises NoAnswer where no picture has an answer; single ones without have no number."""
        found = self._together(
            [partial(self._one, *both) for both in zip(pixels, samples, strict=True)]
        )
        names = ("score", *self.template.criteria)
        rows = [dict.fromkeys(names, np.nan) if row is None else row for row in found]
        return {name: np.array([row[name] for row in rows], np.float32) for name in names}

    def preferences(self, pixels: U8, sample: Sample, pairs: Sequence[tuple[int, int]]) -> F32:
        """[pairs] how probably the first of each is the better picture, asked in both orders since
        judges favour a place."""
        if not self.template.pair:
            raise UserError(
                f"rewards.judge.template: expected one with pair, which pairwise asks, got "
                f"{self.options.template}"
            )
        text = filled(self.template.pair, sample)
        before = self._sources(sample)
        parts = [self._pictures(one) for one in pixels]

        def first(one: int, other: int) -> float:
            both = [
                part
                for letter, place in zip(LETTERS, (one, other), strict=True)
                for part in ({"type": "text", "text": f"{letter}:"}, *parts[place])
            ]
            content = [*before, *both, {"type": "text", "text": text}]
            return self.judge.yes(content, LETTERS, self.template.system)

        orders = [order for one, other in pairs for order in ((one, other), (other, one))]
        found = self._together([partial(first, *order) for order in orders])
        values = np.array([np.nan if value is None else value for value in found], np.float32)
        better: F32 = ((values[::2] + 1 - values[1::2]) / 2).astype(np.float32)
        return better

    def _together(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """What each comes to, None for one without an answer; a few at a time. Raises NoAnswer
        where none has one."""
        reasons = list[str]()

        def tried(task: Callable[[], Any]) -> Any:
            try:
                return task()
            except NoAnswer as error:
                reasons.append(str(error))
                return None

        with ThreadPoolExecutor(self.options.concurrency) as pool:
            found = list(pool.map(tried, tasks))
        if reasons:
            print(f"{len(reasons)} of {len(found)}: {reasons[-1]}", file=sys.stderr)
        if reasons and len(reasons) == len(found):
            raise NoAnswer(reasons[-1])
        return found

    def _one(self, video: U8, sample: Sample) -> dict[str, float]:
        """Score and criteria of a picture or video u8 [F, H, W, 3]."""
        template = self.template
        shown_first = self._sources(sample) if "sources" in template.pictures else []
        pictures = [*shown_first, *self._pictures(video)]
        if template.answer != "yes_no":
            content = [*pictures, {"type": "text", "text": template.asked(sample)}]
            criteria = self.judge.text(content, template.read, template.max_tokens, template.system)
            return {"score": template.score(criteria), **criteria}
        values = []
        for question, right in template.list_of(sample):
            content = [*pictures, {"type": "text", "text": template.asked(sample, question)}]
            yes = self.judge.yes(content, ("yes", "no"), template.system)
            values.append(yes if right else 1 - yes)
        return {"score": float(np.mean(values))}

    def _sources(self, sample: Sample) -> Iterable[Any]:
        try:
            return [shown(one.open(), self.options.longest_side) for one in sample.images]
        except OSError as error:
            raise UserError(
                f"prompts: expected pictures that reward workers can read, got {one_line(error)}"
            ) from error

    def _pictures(self, video: U8) -> list[Any]:
        chosen = evenly(len(video), self.options.frames)
        return [shown(Image.fromarray(video[i]), self.options.longest_side) for i in chosen]
