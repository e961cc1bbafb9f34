"""What `branchgrpo prompts` shows: what was read of a config's prompt files, and what a run could
not use."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from branchgrpo.config.schema import Config
from branchgrpo.data import check as prompt_check
from branchgrpo.data import prompts
from branchgrpo.data.lists import Prompts
from branchgrpo.errors import UserError

EXAMPLES = 10
"""Prompts that are shown of each list, evenly spaced."""


def report(config: Config, as_json: bool) -> int:
    """Print what was read. Returns the exit code: 0 where a run could use it, else 2."""
    found = gather(config)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        Console(highlight=False).print(render(found))
    return 0 if found["usable"] else 2


def gather(config: Config) -> dict[str, Any]:
    """As plain values: `facts` of both lists, None for one that cannot be read; how many held-out
    texts are trained on too; what else is wrong, a line each; whether a run could use them."""
    found: dict[str, Any] = {
        "usable": False,
        "prompts": None,
        "held_out": None,
        "overlap": None,
        "problems": [],
    }
    train, held_out = _read(config, found["problems"])
    if (
        not found["problems"]
        and train is not None
        and held_out is not None
        and (reason := prompt_check.shortage(config, train, held_out))
    ):
        found["problems"].append(reason)
    for key, texts in (("prompts", train), ("held_out", held_out)):
        if texts is not None:
            found[key] = facts(config, key, texts)
            if reason := prompt_check.pictureless(config, key, texts):
                found["problems"].append(reason)
    if train is not None and held_out is not None:
        divided = config.held_out.startswith(prompts.SPLIT)
        found["overlap"] = 0 if divided else int(prompts.shared(train, held_out).sum())
        found["usable"] = not (
            found["problems"] or found["prompts"]["refused"] or found["held_out"]["refused"]
        )
    return found


def _read(config: Config, problems: list[str]) -> tuple[Prompts | None, Prompts | None]:
    """The lists, as far as they can be read; what is wrong goes to `problems`."""
    try:
        return prompts.lists(config)
    except UserError as error:
        problems.append(str(error))
    found: list[Prompts | None] = []
    for key, source in (("prompts", config.prompts), ("held_out", config.held_out)):
        try:
            split, folder = source.startswith(prompts.SPLIT), config.evaluation.suites
            found.append(None if split else prompts.read(key, source, folder))
        except UserError as error:
            found.append(None)
            if str(error) not in problems:
                problems.append(str(error))
    return found[0], found[1]


def facts(config: Config, key: str, texts: Prompts) -> dict[str, Any]:
    """Of one list: what its file became, the longest, EXAMPLES, and what each reward would refuse,
    by kind."""
    _, first = max((len(sample.prompt), -place) for place, sample in enumerate(texts))
    longest = -first
    shown = sorted({int((index + 0.5) * len(texts) / EXAMPLES) for index in range(EXAMPLES)})
    return {
        "source": getattr(config, key),
        "file": texts.source,
        "format": texts.format,
        "prompts": len(texts),
        "blank": texts.blank,
        "repeated": texts.repeated,
        "longest": {
            "characters": len(texts[longest].prompt),
            texts.unit: texts.number(longest),
            "text": texts[longest].prompt,
        },
        "examples": [_example(texts, place) for place in shown],
        "refused": [
            {
                "reward": one.reward,
                "kind": one.kind,
                "count": one.count,
                "first": [{one.unit: number, "what": what} for number, what in one.first],
            }
            for one in prompt_check.refused(config, key, texts)
        ],
    }


def _example(texts: Prompts, place: int) -> dict[str, Any]:
    """A record, with what it has beside its prompt."""
    sample = texts[place]
    found = {
        texts.unit: texts.number(place),
        "text": sample.prompt,
        "id": sample.id,
        "negative_prompt": sample.negative_prompt,
        "images": [picture.path for picture in sample.images],
        "metadata": dict(sample.metadata),
    }
    return {name: value for name, value in found.items() if value}


def render(found: dict[str, Any]) -> RenderableType:
    """Both lists for a terminal, then what a run could not use."""
    parts: list[RenderableType] = []
    for key in ("prompts", "held_out"):
        if found[key] is not None:
            parts += [_list(key, found[key]), Text()]
    if found["overlap"] is not None:
        share = (
            f"{found['overlap']:,} of {found['held_out']['prompts']:,} held-out prompts are "
            "trained on too"
        )
        parts.append(Text(share, style="yellow" if found["overlap"] else "green"))
    refused = [key for key in ("prompts", "held_out") if found[key] and found[key]["refused"]]
    errors = found["problems"] + [
        f"{key}: rewards cannot score all of them, see refused" for key in refused
    ]
    parts += [Text(f"error: {line}", style="bold red") for line in errors]
    parts += [Text("a run can use them", style="green")] if found["usable"] else []
    return Group(*parts)


def _list(key: str, known: dict[str, Any]) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    longest = known["longest"]
    unit = next(name for name in longest if name not in ("characters", "text"))
    rows = {
        "read": f"{known['source']} as {known['format']}",
        "prompts": (
            f"{known['prompts']:,} different; left out: {known['repeated']:,} repeated, "
            f"{known['blank']:,} blank or null"
        ),
        "longest": (
            f"{longest['characters']:,} characters, {unit} {longest[unit]:,}: "
            f"{prompt_check.shortened(longest['text'])}"
        ),
        "examples": "\n".join(
            f"{unit} {example[unit]:,}: {prompt_check.shortened(example['text'])}"
            for example in known["examples"]
        ),
        "refused": "\n".join(_refused(one, unit) for one in known["refused"])
        or "none: every reward can score all",
    }
    for name, text in rows.items():
        table.add_row(
            name,
            Text(
                text.replace("\r", " "),
                style="red" if name == "refused" and known["refused"] else "",
            ),
        )
    return Group(Text(key, style="bold"), table)


def _refused(one: dict[str, Any], unit: str) -> str:
    named = "".join(f"\n  {unit} {what[unit]:,}: {what['what']}" for what in one["first"])
    return f"{one['count']:,} by {one['reward']}: {one['kind']}{named}"
