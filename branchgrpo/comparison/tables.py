"""Tables of a comparison: Markdown for a file, and at most 100 columns for a terminal."""

from __future__ import annotations

import io
from textwrap import fill
from typing import Any

from branchgrpo.report.sinks import PHASES

Metrics = dict[str, Any]

WIDTH = 100
"""Columns of a terminal."""

SHOWN = {"learner.learning_rate", "learner.optimiser_steps"}
"""Keys that have columns of their own."""


def markdown(found: Metrics) -> str:
    """The text of compare.md: what came out, what was run, and what the columns mean."""
    parts = [_lines(_results(found))]
    if found["reference"]:
        parts += [
            _lines(_costs(found)),
            "\n\n".join(fill(text, 120) for text in notes(found)) + "\n",
        ]
    return "\n".join(parts)


def terminal(found: Metrics) -> str:
    """The same in plain text, lines of at most 100 characters."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    file = io.StringIO()
    console = Console(file=file, width=WIDTH, color_system=None, force_terminal=False)
    tables = [
        _results(found, brief=True),
        *([_costs(found, brief=True)] if found["reference"] else []),
    ]
    for heads, rows in tables:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for index, head in enumerate(heads):
            # rich would take room from the widest first
            whole = index == 0 and max((len(row[0]) for row in rows), default=0) <= 24
            head = head.replace(str(found["reference"]), "ref.")
            table.add_column(
                head, justify="left" if index == 0 else "right", overflow="fold", no_wrap=whole
            )
        for row in rows:
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        console.print(table)
    if found["reference"]:
        console.print(f"ref.: {found['reference']}", markup=False, highlight=False)
    for method, row in found["rows"].items():
        others = {key: value for key, value in row.get("settings", {}).items() if key not in SHOWN}
        if others:
            console.print(
                f"{method}: "
                + ", ".join(f"{key} {_plain(value)}" for key, value in others.items()),
                markup=False,
                highlight=False,
            )
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    lines += ["\n" + fill(text, WIDTH) for text in notes(found)] if found["reference"] else []
    return "\n".join(lines) + "\n"


def notes(found: Metrics) -> list[str]:
    """What the columns mean, and what may not be read from them: paragraphs."""
    goal, reference = found["level"], found["reference"]
    text = [
        f"± and [ ]: 95 % intervals, Student's t over n seeds; − {reference}: paired by "
        "seed, on the same held-out prompts. *: called different,"
        " since the interval excludes 0, and so does a bootstrap over seeds and prompts. "
        "Each difference is judged by itself: of twenty"
        " equal methods one is called different."
    ]
    if found["seeds"] < 2:
        text.insert(
            0,
            "One seed: how far apart two runs of one method lie is not known, so nothing "
            "is claimed: no interval, no method called different, no time.",
        )
    elif goal["gain"] is None:
        text.append("Time to a gain: –, since no method's gain is surely above 0.")
    else:
        how = (
            "named before the runs" if goal["named"] else f"half of {goal['best']}'s gain, the best"
        )
        text.append(
            f"s to +{goal['gain']:.3f} of reward ({how}): seconds of training until the "
            "mean over seeds is above the untrained model"
            " by that much and by more than the noise of a check, at a check and at the "
            "next; –: never."
            f" ÷ {reference}: as a part of its seconds; without an interval where only some "
            "of the seeds (m of n) reach the gain by themselves."
        )
    text.append(
        "Leaves: of an iteration. Steps: optimiser steps per rollout. NFE per leaf: old = "
        "rollout, new = training;"
        " forwards are rows sent through the model, edges denoising steps of the tree (as "
        "papers count). s/iteration: median over all iterations of all seeds;"
        f" ratio: to {reference}'s. Diversity: mean 1 − cosine between pictures of "
        "one prompt, in a reward's features or else the autoencoder's latents."
    )
    return text


def _lines(table: tuple[list[str], list[list[str]]]) -> str:
    heads, rows = table
    return (
        "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows))
        + "\n"
    )


def _results(found: Metrics, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: what came out. brief: without the metric's difference and diversity."""
    metric = found["metric"]
    reference = found["reference"]
    gain = found["level"]["gain"]
    scores = ["total", *([metric] if metric != "total" else [])]
    heads = ["method", "n"]
    for score in scores:
        heads += [
            "reward" if score == "total" else score,
            *([f"− {reference}"] if reference and (score == "total" or not brief) else []),
        ]
    heads += [] if brief else ["diversity"]
    if reference:
        heads += [f"s to +{gain:.3f}" if gain is not None else "s to a gain", f"÷ {reference}"]
    rows = []
    for method, row in found["rows"].items():
        cells = [method, str(len(row["seeds"]))]
        for score in scores:
            cells.append(_score(row["held_out"].get(score)))
            if reference and (score == "total" or not brief):
                cells.append(
                    _difference((row.get("difference") or {}).get(score), len(row["seeds"]))
                )
        cells += [] if brief else [_digits(row["diversity"], 3)]
        if reference:
            time = row.get("time_to_gain") or {"seconds": None, "ratio": None, "by_seed": []}
            cells += [_digits(time["seconds"], 0), _ratio(time, method == reference)]
        rows.append(cells)
    return heads, rows


def _costs(found: Metrics, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: what was run, and what it cost. brief: forwards alone, ranges over seeds, no
    phases, no other settings."""
    rows = {method: row for method, row in found["rows"].items() if "learning_rate" in row}
    others = [key for key in next(iter(rows.values()))["settings"] if key not in SHOWN]
    heads = ["method", "rate", "leaves", "steps", *([] if brief else others)]
    if brief:
        heads += ["NFE", "s/iter", "diversity", "iterations", "seconds"]
    else:
        heads += [
            "NFE old, forwards (edges)",
            "NFE new, forwards (edges)",
            "s/iteration",
            "ratio",
            f"seconds: {', '.join(PHASES)}",
        ]
        heads += ["iterations (optimiser steps)", "seconds"]
    cells = []
    for method, row in rows.items():
        pace = row["seconds_per_iteration"]
        steps = row["optimiser_steps"]
        nfe = (row["nfe_old"], row["nfe_new"])
        line = [
            method,
            f"{row['learning_rate']:g}",
            _digits(row["leaves"]),
            str(steps["per_rollout"]),
        ]
        speed = [f"{pace['median']:.2f}", f"{row['seconds_ratio']:.2f}"]
        if brief:
            line += [
                "/".join(_digits(part["forwards"]) for part in nfe),
                speed[0],
                _digits(row["diversity"], 3),
            ]
            line += [_range(row["iterations"]), _range(row["training_seconds"])]
        else:
            line += [
                *(_plain(row["settings"][key]) for key in others),
                *(f"{_digits(part['forwards'])} ({_digits(part['edges'])})" for part in nfe),
                *speed,
            ]
            line.append(", ".join(_digits(value) for value in pace["phases"].values()))
            line.append(
                ", ".join(
                    f"{count} ({taken})"
                    for count, taken in zip(row["iterations"], steps["taken"], strict=True)
                )
            )
            line.append(", ".join(f"{seconds:.0f}" for seconds in row["training_seconds"]))
        cells.append(line)
    return heads, cells


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low}–{high}"


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _digits(value: float | None, digits: int | None = None) -> str:
    """A number with so many digits after the point; with up to two where none are named."""
    if value is None:
        return "–"
    return f"{value:.2f}".rstrip("0").rstrip(".") if digits is None else f"{value:.{digits}f}"


def _score(value: Metrics | None) -> str:
    if value is None:
        return "–"
    return f"{value['mean']:.3f}" + (
        f" ± {value['high'] - value['mean']:.3f}" if value["high"] is not None else ""
    )


def _difference(value: Metrics | None, seeds: int) -> str:
    """With its interval, a star where methods are called different, and its n where that is not the
    row's."""
    if value is None:
        return "–"
    spread = f" ± {value['high'] - value['mean']:.3f}" if value["high"] is not None else ""
    return (
        f"{value['mean']:+.3f}{spread}".replace("-", "−")
        + (" *" if value["different"] else "")
        + (f" (n {value['n']})" if value["n"] != seeds else "")
    )


def _ratio(time: Metrics, reference: bool) -> str:
    """The part of the reference's seconds; where it has no interval, how many seeds reached the
    gain."""
    if time["seconds"] is None:
        return "–"
    if reference:
        return "1"
    there = f"({sum(one is not None for one in time['by_seed'])} of {len(time['by_seed'])})"
    if time["ratio"] is None:
        return f"– {there}"
    ratio = time["ratio"]
    return f"{ratio['mean']:.2f}" + (
        f" [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio["low"] is not None else f" {there}"
    )
