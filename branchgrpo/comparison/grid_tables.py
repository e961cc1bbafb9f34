"""How the methods of a comparison were tuned, as a table and in words."""

from __future__ import annotations

from textwrap import fill
from typing import Any

from branchgrpo.comparison.budget import Budget
from branchgrpo.comparison.tables import WIDTH

Found = dict[str, Any]
"""grid.json."""


def markdown(grid: Found) -> str:
    """For compare.md: every point of every method, and what to know of them."""
    keys = list(grid["keys"])
    lines = ["method", *keys, "reward", "by seed", ""]
    rows = [lines, ["---"] * len(lines)]
    for method, found in grid["methods"].items():
        for number, point in enumerate(found["points"], 1):
            rows.append(
                [
                    method,
                    *(_value(point["keys"].get(key)) for key in keys),
                    _score(point["score"]),
                    ", ".join(map(_score, point["by_seed"])),
                    _remark(point, number == found["best"]),
                ]
            )
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{table}\n\n" + "\n\n".join(fill(text, 120) for text in notes(grid)) + "\n"


def terminal(grid: Found) -> str:
    """The words alone, lines of at most 100 characters."""
    return "".join(f"\n{fill(text, WIDTH)}\n" for text in notes(grid))


def notes(grid: Found) -> list[str]:
    """How the methods were tuned, what was carried, and what to doubt: paragraphs."""
    seeds, budget = grid["seeds"], Budget(**grid["budget"])
    methods = grid["methods"]
    counts = {len(found["points"]) for found in methods.values()}
    alike = f"{min(counts)} points for each method"
    if len(counts) > 1:
        alike = "not as many points for each method, since keys or values do not fit some"
    text = [
        f"Tuned: {', '.join(grid['keys'])}; {alike}. Each point: {len(seeds)} "
        f"run{'s' * (len(seeds) > 1)} of {budget}. The highest mean over them of the reward at "
        f"their end is best, on {grid['prompts']} training prompts that they did not train on. The "
        "held-out prompts took no part."
    ]
    if not grid["finished"]:
        return [*text, "The grid is not done: nothing is chosen yet."]
    return text + [_sentence(method, found) for method, found in methods.items()]


def _sentence(method: str, found: Found) -> str:
    """What was tried of one method, what was best, and whether a wider grid might be better."""
    points = found["points"]
    said = [_choice(found)]
    for key, end in found["edges"].items():
        value = _value(points[found["best"] - 1]["keys"][key])
        said.append(f"{key} {value} is the {end}, an edge of the grid: a wider one might be better")
    if found["without"]:
        said.append(f"it has no {', '.join(found['without'])}")
    said += [f"{_words(one['keys'])} left out, {one['why']}" for one in found["refused"]]
    return f"{method}: {'; '.join(said)}."


def _choice(found: Found) -> str:
    points = found["points"]
    if not points:
        return "nothing to tune, compared as it is"
    count = f"{len(points)} point{'s' * (len(points) > 1)}"
    if not found["best"]:
        return f"all of {count} failed, compared as it is"
    best = points[found["best"] - 1]
    alarm = ", though it gave the alarm, as all that did not fail" if best["alarms"] else ""
    return f"best of {count}: {_words(best['keys'])} ({_score(best['score'])}){alarm}"


def _remark(point: Found, best: bool) -> str:
    said = ["best"] if best else []
    said += [f"alarm: {', '.join(point['alarms'])} fell"] if point["alarms"] else []
    # a cell is one line, without the mark between cells
    said += [f"failed: {one}".replace("|", "\\|") for one in dict.fromkeys(point["failed"])]
    return "; ".join(said)


def _words(keys: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in keys.items())


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
