"""The page of one run: report.html in its folder."""

from __future__ import annotations

from branchgrpo.pages import curves, sections
from branchgrpo.pages.facts import Facts
from branchgrpo.pages.sections import section
from branchgrpo.pages.style import SCRIPT, STYLE
from branchgrpo.report.page import page, text
from branchgrpo.runs.listing import CUT_OFF, LIVE, RunRow

REFRESH = 30
"""Seconds after which the page of a run that goes on loads itself anew."""
FILES = ("config.yaml", "metrics.jsonl", "summary.json", "held_out.jsonl", "curve.png")


def run_page(facts: Facts) -> str:
    """HTML that stands alone."""
    row = facts.row
    alarms = "".join(f'<p class="alarm">{text(line)}</p>' for line in sections.alarms(facts))
    others = [name for name in facts.measured if name != "total" and name not in facts.gold]
    body = (
        _head(facts)
        + section("Alarms", alarms, "alarms")
        + section("Reward", curves.rewards(facts), "reward")
        + section("Held-out scores", curves.scores(facts, others), "scores")
        + section("Only measured, not trained on", curves.scores(facts, facts.gold), "gold")
        + section("Held-out pictures", sections.sheets(facts), "pictures")
        + section("Trees that were trained on", sections.batches(facts), "leaves")
        + section("Pages of trees", sections.trees(facts), "trees")
        + section("What trees tell", curves.flat(facts), "flat")
        + section("Where the seconds go", curves.phases(facts), "phases")
        + section("Cost", sections.cost(facts), "cost")
        + section("What differs from the defaults", sections.settings(facts), "settings")
        + section("Where it comes from", sections.origins(facts), "origin")
    )
    refresh = REFRESH if row.state == LIVE else 0
    return page(row.name, body, style=STYLE, script=SCRIPT, refresh=refresh)


def ended(row: RunRow) -> str:
    """A run's state in words."""
    return row.state if row.state in (LIVE, CUT_OFF) else f"ended by: {row.state}"


def change(row: RunRow) -> str:
    """Score before → after; nothing where it is not known."""
    if row.before is None:
        return ""
    if row.after is None:
        return f"{row.before:.3f}"
    return f"{row.before:.3f} → {row.after:.3f}"


def _head(facts: Facts) -> str:
    row = facts.row
    planned = f" of {row.planned}" if row.planned else ""
    model = facts.config.get("model", {}).get("path", "")
    chips = [
        ended(row),
        f"iteration {row.iterations}{planned}",
        row.method,
        f"seed {row.seed}",
        str(model),
        row.started[:16].replace("T", " ") + " UTC" if row.started else "",
    ]
    shown = "".join(f'<span class="chip">{text(chip)}</span>' for chip in chips if chip)
    score = ""
    if told := change(row):
        known = facts.summary.get("held_out", {}).get(row.metric, {})
        interval = ""
        if "low" in known:
            interval = (
                f"<small>{known['difference']:+.3f}, 95 % interval [{known['low']:+.3f}, "
                f"{known['high']:+.3f}] over {known['n']} prompts</small>"
            )
        score = f'<p class="score">{text(row.metric)} {told} {interval}</p>'
    links = " · ".join(
        f'<a href="{name}">{name}</a>' for name in FILES if (facts.folder / name).is_file()
    )
    files = f'<p class="quiet">{links}</p>' if links else ""
    return f'<h1>{text(row.name)}</h1><p class="top">{shown}</p>{score}{files}'
