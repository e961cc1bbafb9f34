"""Which text a prompt asks for, and whether the OCR reward can score it."""

from __future__ import annotations

import re

from branchgrpo.rewards import ocr_network as network
from branchgrpo.rewards.base import Refusal
from branchgrpo.types import Sample

QUOTED = r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|‘((?:[^’]|’(?=\w))+)’(?!\w)'
"""The first quotation of a prompt, quotes of other kinds within it included. An apostrophe ends
none."""

SINGLE = r"(?<!\w)'([^']+)'(?!\w)"
"""A quotation in straight single quotes, which may as well be two apostrophes."""

NO_TEXT = "no text that target finds"
OTHER_QUOTES = (
    'text in quotes that target does not look for; the default target finds "…", “…”, '
    "„…“, «…» and ‘…’"
)
NO_METADATA = "no text under the metadata key target_key"
EMPTY = "an empty text"
NESTED = (
    "quotes within quotes of the same kind, which leave open where the text ends; two kinds tell"
)
UNKNOWN = (
    "a character that the recogniser does not know, so that likelihood has no value; "
    "train_on and report can do without it"
)
TOO_LONG = "a text that the picture's frames cannot hold, so that likelihood is always 0"


def wanted(sample: Sample, pattern: str, key: str) -> tuple[str, Refusal | None]:
    """The text that a record asks for: what its metadata have under `key`, or, of no key, what
    `pattern` finds in its prompt; or why there is none."""
    if not key:
        return find(pattern, sample.prompt)
    text = sample.metadata.get(key)
    # a number is a text that was written without quotes
    if isinstance(text, bool) or not isinstance(text, str | int):
        return "", Refusal(NO_METADATA, f"{key}: {text!r}, of {sample.prompt!r}")
    text = str(text)
    return (text, None) if text.strip() else ("", Refusal(EMPTY, repr(sample.prompt)))


def find(pattern: str, prompt: str) -> tuple[str, Refusal | None]:
    """The text that a prompt asks for, of the first group that took part in the match; or why there
    is none."""
    found = re.search(pattern, prompt)
    if not found:
        quoted = re.search(QUOTED, prompt) or re.search(SINGLE, prompt)
        return "", Refusal(OTHER_QUOTES if quoted else NO_TEXT, repr(prompt))
    text = next((group for group in found.groups() if group is not None), "")
    if not text.strip():
        return "", Refusal(EMPTY, repr(prompt))
    if _nested(found, text):
        return "", Refusal(NESTED, repr(prompt))
    return text, None


def _nested(found: re.Match[str], text: str) -> bool:
    """Whether another quotation of the same kind begins within this one."""
    first, last = found.group()[0], found.group()[-1]
    if first in "“„«‘":
        return first in text
    # a straight quote with a letter right after it has begun one: "say "hi" twice"
    return last == '"' and re.match(r'\w[^"]*"', found.string[found.end() :]) is not None


def unlikely(text: str, width: int) -> Refusal | None:
    """Why a text has no likelihood in a picture resized to this width; 0: of whatever width."""
    known = network.known_characters()
    if strange := sorted(set(text) - known):
        return Refusal(UNKNOWN, f"{', '.join(map(repr, strange))} in {text!r}")
    if width and (needed := network.frames_needed(text)) > (frames := network.frames_of(width)):
        return Refusal(TOO_LONG, f"{text!r} needs {needed} frames, there are {frames}")
    return None
