"""Blocks of code in the documents, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^( *)```(\S*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
BETWEEN = {"&&", "||", "|", ";", "&", ";;"}
ASSIGNED = re.compile(r"[A-Za-z_]\w*=")
OURS = re.compile(r"(uv run )?(branchgrpo|run\.py|python3? (-m|run\.py|tests/|examples/)) ?")
VALUES = {
    "…": "",
    "N": "1",
    "NAME": "dancegrpo",
    "METHOD…": "dancegrpo",
    "PRESET": "dancegrpo",
    "PRESET…": "dancegrpo",
    "CONFIG": "my.yaml",
    "--KEY": "--run.seed",
    "VALUE": "1",
}
"""What stands for the reader's own, and something that may stand there."""


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    line: int  # of its fence
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All blocks of all pages in these languages."""
    found = [block for page in PAGES for block in blocks_of(page)]
    return [block for block in found if block.language in languages]


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        indent = len(match[1])
        body = "\n".join(line[indent:] for line in match[3].splitlines())
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page.relative_to(ROOT).as_posix(), line, match[2], body)


def spans() -> Iterator[tuple[str, str]]:
    """Commands of ours within texts and tables, by page: those with more than a name."""
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for span in SPAN.findall(text):
            if (match := OURS.match(span)) and span[match.end() :].strip():
                yield page.relative_to(ROOT).as_posix(), span


def commands(text: str) -> Iterator[list[str]]:
    """Commands of a shell's lines: their words, without variables before them, what they are piped
    to, and `uv run`."""
    for line in text.replace("\\\n", " ").splitlines():
        if "$(" in line:  # of another shell
            line = line.partition("$(")[0] + "value"
        words = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        words.whitespace_split = True
        yield from _split(list(words))


def _split(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, ";"]:
        if word not in BETWEEN:
            command.append(word)
            continue
        if bare := _bare(command):
            yield bare
        command = []


def _bare(words: list[str]) -> list[str]:
    """A command without variables, redirections, brackets around what may be left out, `uv run`."""
    while words and ASSIGNED.match(words[0]):
        words = words[1:]
    for sign in (">", "<"):
        if sign in words:
            words = words[: words.index(sign)]
    words = [word.strip("[]") if word[:1] in "[-" or word[-1:] == "]" else word for word in words]
    words = [found for word in words if (found := VALUES.get(word, word))]
    if words[:2] == ["uv", "run"]:
        rest = [word for word in words[2:] if not word.startswith("--group")]
        return ["python", *rest] if rest[:1] == ["run.py"] else rest
    return words
