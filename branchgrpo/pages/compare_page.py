"""The page of several runs beside one another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from branchgrpo.pages import curves
from branchgrpo.pages.charts import COLOURS, NARROW, WIDE, Series, legend, lines
from branchgrpo.pages.facts import Facts, Shot
from branchgrpo.pages.run_page import change, ended
from branchgrpo.pages.sections import plain, section
from branchgrpo.pages.style import SCRIPT, STYLE
from branchgrpo.report.page import page, text
from branchgrpo.report.sinks import smooth
from branchgrpo.runs.identity import leaves

MOST_KEYS = 60
"""Differing keys that are shown at most."""


def compare_page(runs: Sequence[Facts], place: Path) -> str:
    """HTML that stands alone. place: the folder that it will be in, for links."""
    names = [facts.row.name for facts in runs]
    key = legend(list(zip(names, map(_colour, range(len(runs))), strict=True)))
    scores = list(dict.fromkeys(name for facts in runs for name in facts.measured))
    held_out = "".join(_chart(runs, name) for name in scores)
    body = (
        f"<h1>{len(runs)} runs</h1>"
        + _table(runs, place)
        + section("Training reward, smoothed", key + _rewards(runs), "reward")
        + section(
            "Held-out scores",
            key + f'<div class="charts">{held_out}</div>' + curves.ERRORS if held_out else "",
            "scores",
        )
        + section("Held-out pictures", _pictures(runs), "pictures")
        + section("What differs", _settings(runs), "settings")
    )
    return page(" · ".join(names), body, style=STYLE, script=SCRIPT)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _table(runs: Sequence[Facts], place: Path) -> str:
    head = ("run", "method", "seed", "iterations", "score", "before → after", "difference", "state")
    rows = ""
    for facts in runs:
        row = facts.row
        link = os.path.relpath(facts.folder.resolve() / "report.html", place)
        name = text(row.name)
        if (facts.folder / "report.html").is_file():
            name = f'<a href="{text(Path(link).as_posix())}">{name}</a>'
        known = facts.summary.get("held_out", {}).get(row.metric, {})
        difference = ""
        if "low" in known:
            difference = f"{known['difference']:+.3f} [{known['low']:+.3f}, {known['high']:+.3f}]"
        cells = (row.method, row.seed, row.iterations, row.metric, change(row), difference)
        shown = "".join(f"<td>{text(cell)}</td>" for cell in (*cells, ended(row)))
        rows += f"<tr><td>{name}</td>{shown}</tr>"
    titles = "".join(f"<th>{one}</th>" for one in head)
    return (
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>'
        '</div><p class="quiet">Difference with its 95 % interval over prompts.</p>'
    )


def _rewards(runs: Sequence[Facts]) -> str:
    series = []
    for index, facts in enumerate(runs):
        reward = facts.figure("reward/total")
        there = np.isfinite(reward)
        if there.any():
            x, y = facts.figure("iteration")[there], np.array(smooth(reward[there]))
            few = curves.few(len(x))
            name = facts.row.name
            series.append(Series(name=name, x=x[few], y=y[few], colour=_colour(index)))
    label, words = "training reward", curves.at_each(series)
    return "".join(
        f'<div class="{kind}">'
        + curves.figure(lines(series, label=label, size=size, words=words))
        + "</div>"
        for kind, size in (("desk", WIDE), ("phone", NARROW))
    )


def _chart(runs: Sequence[Facts], score: str) -> str:
    drawn = [curves.of_score(one, score, _colour(index)) for index, one in enumerate(runs)]
    chart = lines(drawn, label=f"held out {score}", words=curves.at_each(drawn))
    return curves.figure(chart, title=score)


def _pictures(runs: Sequence[Facts]) -> str:
    """The same prompts by each run, at its last check; and before training."""
    known = [(facts, facts.sheets[-1]) for facts in runs if facts.sheets]
    if not known:
        return ""
    prompts = list(dict.fromkeys(shot.caption for _, (_, shots) in known for shot in shots))
    found = ""
    for prompt in prompts:
        tiles = ""
        first = known[0][0].sheets[0]
        for name, shots in [
            (first[0], first[1]),
            *((f"{facts.row.name}, {when}", shots) for facts, (when, shots) in known),
        ]:
            tiles += "".join(_tile(shot, name) for shot in shots if shot.caption == prompt)
        found += f'<h3>{text(prompt)}</h3><div class="shots leaves">{tiles}</div>'
    return found


def _tile(shot: Shot, name: str) -> str:
    kind = ' class="pixels"' if shot.small else ""
    return (
        f'<figure><img src="{shot.source}" alt="{text(shot.caption)}"{kind}>'
        f"<figcaption>{text(name)}<br><b>{shot.score:.3f}</b></figcaption></figure>"
    )


def _settings(runs: Sequence[Facts]) -> str:
    """Keys of which the runs have different values."""
    tables = [dict(leaves(facts.config)) for facts in runs]
    keys = [
        key
        for key in dict.fromkeys(key for one in tables for key in one)
        if len({plain(one.get(key, "")) for one in tables}) > 1
    ][:MOST_KEYS]
    if not keys:
        return '<p class="quiet">Nothing.</p>'
    head = "".join(f"<th>{text(facts.row.name)}</th>" for facts in runs)
    rows = "".join(
        f"<tr><td><code>{text(key)}</code></td>"
        + "".join(
            f"<td><code>{text(plain(one[key])) if key in one else '–'}</code></td>"
            for one in tables
        )
        + "</tr>"
        for key in keys
    )
    top = f"<thead><tr><th>key</th>{head}</tr></thead>"
    return f'<div class="scroll"><table>{top}<tbody>{rows}</tbody></table></div>'
