"""What a judge is asked, and how its answer becomes a score: a YAML file."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from branchgrpo.errors import UserError, one_line
from branchgrpo.rewards.base import existing
from branchgrpo.types import Sample

SHIPPED = Path(__file__).parents[2] / "assets" / "judges"
QUESTION = "question"
PLACE = re.compile(r"\{(prompt|negative_prompt|id|question|metadata\.[^{}]+)\}")
"""What stands for a part of the record."""


class Absent(ValueError):
    """A record lacks what a template asks for, or an answer does."""


class Criterion(BaseModel):
    """A number that the judge gives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float = Field(0.0, description="what becomes 0")
    high: float = Field(10.0, description="what becomes 1")
    weight: float = Field(1.0, gt=0, description="in the score")
    pattern: str = Field("", description="answer: text: regular expression, its first group is it")

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.low == self.high:
            raise ValueError(f"expected low and high that differ, got {self.low} for both")
        if self.pattern and re.compile(self.pattern).groups < 1:
            raise ValueError(f"pattern: expected a group, got {self.pattern!r}")
        return self

    def scaled(self, value: float) -> float:
        """0 … 1. Raises Absent for a number that is out of range."""
        low, high = sorted((self.low, self.high))
        if not low <= value <= high:
            raise Absent(f"expected a number from {low:g} to {high:g}, got {value:g}")
        return (value - self.low) / (self.high - self.low)


class Template(BaseModel):
    """A question about pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str = Field("", description="the system message; empty: none")
    text: str = Field(
        description="the question; {prompt}, {negative_prompt}, {id}, {metadata.KEY} and "
        "{question} stand for parts of the record"
    )
    pictures: tuple[Literal["sources", "after"], ...] = Field(
        ("after",),
        min_length=1,
        description="which pictures come before the question: the record's own, and the one that "
        "was drawn",
    )
    answer: Literal["yes_no", "json", "text"] = Field(
        "yes_no",
        description="yes_no: the probability of yes against no, of the first token; json: an "
        "object with the criteria's names; text: the criteria's patterns",
    )
    criteria: dict[str, Criterion] = Field(
        default_factory=dict, description="numbers of a json or text answer, by name"
    )
    combine: Literal["mean", "minimum", "geometric"] = Field(
        "mean", description="how several criteria make a score: all are 0 … 1 by then"
    )
    questions: str = Field(
        "",
        description="metadata key with a list of questions, each a text or an object with question "
        "and perhaps answer (yes or no; yes); each is asked on its own, the score is the mean",
    )
    pair: str = Field(
        "",
        description="pairwise: the question about two pictures, the first A, the second B; the "
        "answer's first token is A or B",
    )
    max_tokens: int = Field(512, ge=1, description="of a json or text answer")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.answer == "yes_no") == bool(self.criteria):
            raise ValueError(f"criteria: expected some unless answer is yes_no, got {self.answer}")
        bare = [name for name, one in self.criteria.items() if not one.pattern]
        if self.answer == "text" and bare:
            raise ValueError(f"criteria.{bare[0]}.pattern: expected one with answer: text")
        if bool(self.questions) != ("{question}" in self.text):
            raise ValueError("questions: expected a key where text has {question}, and only there")
        return self

    def asked(self, sample: Sample, question: str = "") -> str:
        """The question about a record. Raises Absent for metadata that it lacks."""
        return filled(self.text, sample, question)

    def list_of(self, sample: Sample) -> list[tuple[str, bool]]:
        """The questions of a record, and whether yes is right. One empty question where the
        template has no list. Raises Absent for what is no list of questions."""
        if not self.questions:
            return [("", True)]
        found = sample.metadata.get(self.questions)
        if not isinstance(found, list) or not found:
            raise Absent(f"expected questions in metadata.{self.questions}, a list, got {found!r}")
        return [_question(entry, self.questions) for entry in found]

    def read(self, answer: str) -> dict[str, float]:
        """The criteria of an answer, 0 … 1 each. Raises Absent for one that cannot be read."""
        return self._of_json(answer) if self.answer == "json" else self._of_text(answer)

    def score(self, criteria: dict[str, float]) -> float:
        """One number of all criteria."""
        weights = {name: self.criteria[name].weight for name in criteria}
        total = sum(weights.values())
        if self.combine == "minimum":
            return min(criteria.values())
        if self.combine == "geometric":
            product = 1.0
            for name, value in criteria.items():
                product *= value ** (weights[name] / total)
            return product
        return sum(weights[name] * value for name, value in criteria.items()) / total

    def _of_json(self, answer: str) -> dict[str, float]:
        found = _object(answer)
        values = {}
        for name, criterion in self.criteria.items():
            value = found.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise Absent(f"expected a number {name} in the answer, got {value!r}")
            values[name] = criterion.scaled(float(value))
        return values

    def _of_text(self, answer: str) -> dict[str, float]:
        values = {}
        for name, criterion in self.criteria.items():
            found = re.search(criterion.pattern, answer)
            try:
                values[name] = criterion.scaled(float(found[1]) if found else float("nan"))
            except (ValueError, TypeError) as error:
                raise Absent(f"expected {name} in the answer, got {one_line(answer)!r}") from error
        return values


def filled(text: str, sample: Sample, question: str = "") -> str:
    """A text with the parts of a record in their places. Raises Absent for metadata that it
    lacks."""

    def part(found: re.Match[str]) -> str:
        name = found[1]
        if name == QUESTION:
            return question
        if not name.startswith("metadata."):
            return str(getattr(sample, name))
        key = name.removeprefix("metadata.")
        if key not in sample.metadata:
            raise Absent(f"expected metadata {key!r} of the record, got {sorted(sample.metadata)}")
        value = sample.metadata[key]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return PLACE.sub(part, text)


def _question(entry: Any, key: str) -> tuple[str, bool]:
    question = entry.get(QUESTION) if isinstance(entry, dict) else entry
    right = str(entry.get("answer", "yes") if isinstance(entry, dict) else "yes").strip().lower()
    if not isinstance(question, str) or not question.strip() or right not in ("yes", "no"):
        raise Absent(
            f"expected questions in metadata.{key}, each a text or an object with question and an "
            f"answer of yes or no, got {entry!r}"
        )
    return question, right == "yes"


def _object(answer: str) -> dict[str, Any]:
    """The JSON object in an answer, perhaps among other words. Raises Absent where none is."""
    decoder = json.JSONDecoder()
    for start in (place for place, sign in enumerate(answer) if sign == "{"):
        try:
            found, _ = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    raise Absent(f"expected a JSON object in the answer, got {one_line(answer)!r}")


def template(key: str, name: str) -> Template:
    """A shipped template, or one of a file. Raises UserError for what is none."""
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}
    path = shipped.get(name) or existing(key, name, f"a .yaml file or one of {', '.join(shipped)},")
    try:
        return _read(path, path.stat().st_mtime_ns)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{key}: {path}: {where and f'{where}: '}{first['msg']}") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: expected YAML, cannot read {path}: {one_line(error)}") from error


@lru_cache(maxsize=16)  # every record of a prompt file is held against it
def _read(path: Path, changed: int) -> Template:
    del changed
    return Template.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
