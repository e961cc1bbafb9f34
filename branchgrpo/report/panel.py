"""A run on a terminal: one line an iteration, or the live panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.bar import Bar
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from branchgrpo.report.progress import Progress
from branchgrpo.report.sinks import PHASES, smooth


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(values: Sequence[float]) -> str:
    """One block character a value, from the lowest to the highest. Values that are not finite are
    blank."""
    finite = [value for value in values if abs(value) < float("inf")]  # false for NaN too
    if not finite:
        return " " * len(values)
    low, width = min(finite), (max(finite) - min(finite)) or 1.0
    return "".join(
        "▁▂▃▄▅▆▇█"[round(7 * (value - low) / width)] if abs(value) < float("inf") else " "
        for value in values
    )


def line(progress: Progress) -> str:
    """An iteration as one line; metrics that are missing are left out."""
    values, metric = progress.values, progress.metric

    def known(*entries: tuple[str, str]) -> str:
        return " ".join(form.format(values[key]) for form, key in entries if key in values)

    # of several rewards, each may have a "score"
    name = metric if progress.others else metric.split("/")[-1]
    score = f"{name} {progress.held_out[-1][1]:.3g}" if progress.held_out else ""
    score = " ".join(
        filter(None, [score, *(f"{other} {value:.3g}" for other, value in progress.others.items())])
    )
    reward = known((f"reward {{:.3f}} ({progress.trend})", "reward/total"))
    phases = " ".join(
        f"{phase} {values[f'time/{phase}']:.2f}".replace(" 0.", " .")
        for phase in PHASES
        if f"time/{phase}" in values
    )
    edges = f"edges {_of(values)}" if {"update/edges", "tree/edges"} <= values.keys() else ""
    skipped = (
        known(("skipped {:.0f}", "update/skipped_steps"))
        if values.get("update/skipped_steps")
        else ""
    )
    parts = [
        " ".join(filter(None, [progress.done, reward, score])),
        known(("{:.2f} s", "time/iteration")) + (f": {phases}" if phases else ""),
        " ".join(
            filter(
                None,
                [
                    known(("fwd {:.0f}", "tree/forwards"), ("train {:.0f}", "update/forwards")),
                    edges,
                ],
            )
        ),
        " ".join(
            filter(
                None,
                [
                    known(
                        ("clip {:.2f}", "update/clip_fraction"),
                        ("gn {:.2g}", "update/gradient_norm"),
                        ("v{:.0f}", "update/version"),
                    ),
                    skipped,
                ],
            )
        ),
        f"eta {clock(progress.eta)}" if progress.eta is not None else "",
    ]
    return " | ".join(filter(None, parts))


def panel(title: str, progress: Progress) -> Panel:
    """The live panel; metrics that are missing show as –."""
    values = progress.values

    def get(key: str, form: str = ".0f") -> str:
        return format(values[key], form) if key in values else "–"

    rows = Table.grid(padding=(0, 2, 0, 0), expand=True)
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(ratio=1)
    rows.add_row("progress", _bar(progress))
    means = smooth(progress.rewards)
    colour = {"↑": "green", "↓": "red"}.get(progress.trend, "")
    reward = Text.assemble(
        (get("reward/total", ".3f"), "bold"),
        " ",
        (progress.trend, colour),
        f"  mean {means[-1]:.3f}" if means else "",
    )
    reward.append(f"  spread {get('reward/spread', '.3f')}  ").append(
        sparkline(list(progress.rewards)[-24:]), style="cyan"
    )
    rows.add_row("reward", reward)
    rows.add_row("held out", _held_out(progress))
    rows.add_row("seconds", _seconds(values))
    rows.add_row(
        "rollout",
        f"{get('tree/trees')} trees, {get('tree/leaves')} leaves, {get('tree/forwards')} "
        f"forwards, {get('tree/edges')} stochastic edges",
    )
    rows.add_row(
        "training",
        f"{get('update/forwards')} forwards, edges kept {_of(values)}, skipped steps "
        f"{get('update/skipped_steps')}",
    )
    norm, deviation = get("update/gradient_norm", ".2g"), get("update/ratio_deviation", ".1e")
    rows.add_row(
        "policy",
        f"clipped {get('update/clip_fraction', '.0%')}, gradient norm {norm}, |ratio − 1| "
        f"{deviation}, weights v{get('update/version')}",
    )
    return Panel(
        rows, title=Text(title, style="bold"), title_align="left", border_style="cyan", width=None
    )


def _of(values: Mapping[str, float]) -> str:
    """Trained edges of stochastic ones."""
    return "/".join(
        f"{values[key]:.0f}" if key in values else "–" for key in ("update/edges", "tree/edges")
    )


def _bar(progress: Progress) -> Table:
    eta = "–" if progress.eta is None else clock(progress.eta)
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    text = Text.assemble((progress.done, "bold"), f"  {clock(progress.elapsed)}  eta {eta}")
    total, completed = (
        (progress.iterations, progress.iteration)
        if progress.iterations
        else (60 * progress.max_minutes, progress.elapsed)
    )
    grid.add_row(ProgressBar(total=total, completed=completed), text)
    return grid


def _held_out(progress: Progress) -> Text:
    if not progress.held_out:
        return Text(f"{progress.metric} –")
    (start_at, start), (last_at, last) = progress.held_out[0], progress.held_out[-1]
    text = Text.assemble(f"{progress.metric} ", (f"{last:.3g}", "bold"), f" at {last_at}")
    if last_at > start_at:
        text.append(f", {start:.3g} at {start_at} (").append(
            f"{last - start:+.3g}", style="green" if last > start else "red"
        ).append(")")
    for name, value in progress.others.items():
        text.append(f"  {name} {value:.3g}")
    return text


def _seconds(values: Mapping[str, float]) -> Table:
    """Each phase, below it its seconds and a bar: its share of the iteration."""
    known = [phase for phase in PHASES if f"time/{phase}" in values]
    whole = (
        max(values.get("time/iteration", 0.0), sum(values[f"time/{phase}"] for phase in known))
        or 1.0
    )
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    for _ in ("all", *known):
        grid.add_column(ratio=1, no_wrap=True)
    total = f"{values['time/iteration']:.2f}" if "time/iteration" in values else "–"
    grid.add_row("all", *known, style="dim")
    grid.add_row(Text(total, style="bold"), *(f"{values[f'time/{phase}']:.2f}" for phase in known))
    grid.add_row("", *(Bar(whole, 0, values[f"time/{phase}"], color="cyan") for phase in known))
    return grid
