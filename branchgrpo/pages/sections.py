"""Parts of a run's page beside its curves: pictures, histograms, alarms, settings, where it comes
from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from branchgrpo.pages.charts import COLOURS, bars
from branchgrpo.pages.facts import Facts, Shot
from branchgrpo.report.page import data, text

NORM, NORM_ALARM = "update/velocity_norm", "alarm/norm"


def section(title: str, body: str, name: str) -> str:
    """With a heading that can be linked to; nothing where there is nothing."""
    return f'<section id="{name}"><h2>{text(title)}</h2>{body}</section>' if body else ""


def slider(name: str, checks: Sequence[str], body: str) -> str:
    """What is shown of one check at a time: parts of `body` with data-at are of that check's
    number. The last one first."""
    last = len(checks) - 1
    control = (
        f'<p class="slider"><input type="range" min="0" max="{last}" value="{last}" step="1" '
        f'aria-label="check" data-names="{text(data(list(checks)))}">'
        f"<output>{text(checks[-1])}</output></p>"
    )
    return f'<div data-slider="{name}">{control}{body}</div>'


def at(number: int, last: int, tag: str, body: str, more: str = "") -> str:
    """A part that is shown of one check."""
    hidden = "" if number == last else " hidden"
    return f'<{tag} data-at="{number}"{hidden}{more}>{body}</{tag}>'


def _image(shot: Shot, more: str = "") -> str:
    kind = ' class="pixels"' if shot.small else ""
    return f'<img src="{shot.source}" alt="{text(shot.caption)}"{kind}{more}>'


def _kind(shots: Sequence[Shot], small: str = "") -> str:
    """Class of a grid of pictures. Videos, as strips of frames, are wider."""
    return "shots strips" if shots[0].frames > 1 else f"shots {small}".strip()


# pictures


def sheets(facts: Facts) -> str:
    """Held-out pictures: before training, and right of it those of a check."""
    if not facts.sheets:
        return ""
    names = [name for name, _ in facts.sheets]
    last, first = len(names) - 1, facts.sheets[0][1]
    metric, found = facts.row.metric.rpartition("/")[2], ""
    for place, shot in enumerate(first):
        images = scores = ""
        for number, (name, shots) in enumerate(facts.sheets):
            if place < len(shots):
                own = shots[place]
                hidden = "" if number == last else " hidden"
                images += _image(own, f' data-at="{number}"{hidden} title="{text(name)}"')
                scores += at(number, last, "b", f"{own.score:.3f}")
        tall = " tall" if shot.frames > 1 else ""
        found += (
            f'<figure><div class="pair{tall}">{_image(shot)}<div>{images}</div></div>'
            f"<figcaption>{text(shot.caption)}<br>{text(metric)} {shot.score:.3f} → {scores}"
            "</figcaption></figure>"
        )
    note = '<p class="quiet">Left: before training. Right: the same prompt and noise at</p>'
    return note + slider("sheets", names, f'<div class="{_kind(first)}">{found}</div>')


def batches(facts: Facts) -> str:
    """Of the trees that were trained on at each check: best and worst leaves, and histograms."""
    looks = {look["iteration"]: look for look in facts.looks if look.get("rewards")}
    shots = dict(facts.leaves)
    numbers = [number for number in looks if number in shots] or list(looks)[-1:]
    if not numbers:
        return ""
    last = len(numbers) - 1
    body = "".join(
        at(place, last, "div", _batch(looks[number], shots.get(number, ())))
        for place, number in enumerate(numbers)
    )
    return slider("batches", [f"iteration {number}" for number in numbers], body)


def _batch(look: dict[str, Any], shots: Sequence[Shot]) -> str:
    leaves = list(zip(look.get("leaves", ()), shots, strict=False))
    half = len(leaves) // 2
    found = ""
    for title, part in (("Best leaves", leaves[:half]), ("Worst leaves", leaves[half:])):
        if part:
            figures = "".join(_leaf(leaf, shot) for leaf, shot in part)
            kind = _kind(shots, "leaves")
            found += f'<h3>{title}</h3><div class="{kind}">{figures}</div>'
    rewards = look["rewards"]
    drawn = bars(rewards["edges"], rewards["counts"], label="leaf rewards")
    flat = look.get("flat_groups")
    told = "" if flat is None else f'<p class="quiet">{flat:.0%} of groups are flat</p>'
    charts = f"<figure><h3>Leaf rewards</h3>{drawn}{told}</figure>"
    for one in look.get("advantage", ()):
        title = f"|advantage|, step {one['step']}"
        drawn = bars(one["edges"], one["counts"], label=title, colour=COLOURS[3])
        charts += f"<figure><h3>{title}</h3>{drawn}</figure>"
    return f'{found}<div class="charts">{charts}</div>'


def _leaf(leaf: dict[str, Any], shot: Shot) -> str:
    parts = ", ".join(
        f"{text(name)} {value:.3g}" for name, value in leaf["parts"].items() if value is not None
    )
    return (
        f"<figure>{_image(shot)}<figcaption>{text(leaf['prompt'])}<br>reward "
        f'<b>{shot.score:.3f}</b> <span class="quiet">({parts}; prompt {leaf["prompt_index"]}, '
        f"tree {leaf['tree']}, leaf {leaf['leaf']})</span></figcaption></figure>"
    )


def trees(facts: Facts) -> str:
    """The newest trees, and links to the pages of all in the folder."""
    links = [f'<a href="trees/{text(path.name)}">{text(path.stem)}</a>' for path in facts.trees]
    drawn = "".join(
        f'<figure><a href="trees/{text(path.name)}"><img src="{source}" '
        f'alt="the tree {text(path.stem)}"></a><figcaption>{text(path.stem)}</figcaption></figure>'
        for path, source in facts.grown
    )
    return f'<div class="grown">{drawn}</div><p>{" · ".join(links)}</p>' if links else ""


# words


def alarms(facts: Facts) -> list[str]:
    """What is wrong, or worth knowing, in sentences."""
    told = dict(facts.looks[-1].get("alarms", {})) if facts.looks else {}
    found = [f"Reward hacking? {words}." for words in told.values()]
    last = {name: value for one in facts.records for name, value in one.items()}
    bound = facts.config.get("evaluation", {}).get("norm_alarm")
    if last.get(NORM_ALARM) and last.get(NORM) is not None:
        found.append(
            f"Reward hacking? The velocity's norm is {last[NORM]:.3g} times what it was when the "
            f"run began, more than {bound} away from 1."
        )
    counts = (
        ("update/skipped_steps", "optimiser steps were skipped: the gradient was not finite."),
        ("reward/dropped_groups", "groups of a prompt were left out for want of a reward."),
        ("prompts/truncated", "prompts were cut short by the text encoders."),
    )
    for name, words in counts:
        if total := sum(one.get(name) or 0 for one in facts.records):
            found.append(f"{total:.0f} {words}")
    flat = [one["reward/flat_groups"] for one in facts.records if one.get("reward/flat_groups")]
    if flat and sum(flat) > 0.5 * sum("reward/total" in one for one in facts.records):
        found.append(
            "More than half of all groups were flat: their leaves are alike, and teach nothing."
        )
    if last.get("service/recoveries"):
        found.append(f"{last['service/recoveries']:.0f} failures, after which work was done again.")
    return found


def cost(facts: Facts) -> str:
    """What the run took, once it has ended."""
    if not facts.summary.get("seconds"):
        return ""
    seconds, pace = facts.summary["seconds"], facts.summary.get("seconds_per_iteration", {})
    rows = [(name.replace("_", " "), f"{value:.1f} s") for name, value in seconds.items()]
    if pace.get("median") is not None:
        rows.append(("median of an iteration", f"{pace['median']:.3g} s"))
    for name in ("forwards_per_leaf", "edges_per_leaf"):
        for part, value in facts.summary.get(name, {}).items():
            if value is not None:
                rows.append((f"{name.replace('_', ' ')}, {part}", f"{value:.3g}"))
    for name, row in (facts.summary.get("diversity") or {}).items():
        ratio = "" if row.get("ratio") is None else f" (× {row['ratio']:.3g} of before)"
        rows.append((f"diversity, {name}", f"{row['mean']:.3g}{ratio}"))
    return table(["", ""], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], code: Sequence[int] = ()) -> str:
    """code: columns that are set as such."""
    titles = "".join(f"<th>{text(one)}</th>" for one in head)
    top = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""

    def cell(place: int, value: str) -> str:
        return f"<code>{text(value)}</code>" if place in code else text(value)

    body = "".join(
        "<tr>" + "".join(f"<td>{cell(place, one)}</td>" for place, one in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def settings(facts: Facts) -> str:
    """Keys of the config that are not as they would be without it."""
    if facts.unread:
        return f'<p class="quiet">Not known: {text(facts.unread)}</p>'
    rows = [
        (one.key, plain(one.value), "" if one.default is None else plain(one.default))
        for one in facts.differences
    ]
    return table(["key", "this run", "default"], rows, code=(0, 1, 2)) if rows else ""


def plain(value: Any) -> str:
    """A value of a config in a few words."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(plain, value))}]"
    return "null" if value is None else str(value)


def origins(facts: Facts) -> str:
    """Where the run comes from; of each driver, if there were several."""
    found = ""
    for number, one in enumerate(facts.origins, 1):
        git, rows = one.get("git"), list[tuple[str, str]]()
        rows.append(("command", f"<code>{text(one.get('command', ''))}</code>"))
        rows.append(("folder", f"<code>{text(one.get('folder', ''))}</code>"))
        if git:
            clean = {True: "clean", False: "with changes", None: "not known whether clean"}
            state = clean[git.get("clean")]
            rows.append(("git", f"<code>{text(git.get('commit', ''))}</code>, {state}"))
        else:
            rows.append(("git", "none"))
        versions = one.get("versions", {})
        told = ", ".join(f"{name} {value}" for name, value in versions.items())
        rows.append(("versions", text(told)))
        cards = one.get("cards")
        rows.append(("host", text(one.get("host", ""))))
        rows.append(("cards", "not known" if cards is None else text(", ".join(cards) or "none")))
        rows.append(("seed", text(one.get("seed", ""))))
        if len(facts.origins) > 1:
            found += f"<h3>Driver {number}</h3>"
        found += (
            "<dl>" + "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in rows) + "</dl>"
        )
    return found
