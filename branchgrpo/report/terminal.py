"""What a person sees of a run: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from threading import Lock
from time import perf_counter
from types import TracebackType
from typing import Self

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from branchgrpo.config.secrets import masked_text
from branchgrpo.report.sinks import PHASES, smooth

RECENT = 50
"""Iterations that the pace, the trend and the sparkline look back on."""


class Display:
    """Shows a training run. Start-up and finish are phases: each lasts until the next one or the
    end.

    On a terminal that can move its cursor there is a panel, redrawn at most four times a second;
    anywhere else every phase, note and iteration is a plain line. Leaving the block always restores
    the terminal.

    iterations: planned; 0 = until max_minutes. metric: the held-out score to show, as reward/score.
    max_minutes: time limit of training, 0 = none; the ETA knows it.
    """

    def __init__(
        self,
        title: str,
        iterations: int,
        metric: str,
        console: Console | None = None,
        max_minutes: float = 0.0,
    ):
        self.console = console or Console()
        self.title, self.progress = title, Progress(iterations, metric, max_minutes)
        self._phase: tuple[str, float] | None = None  # text, when it began
        self._part = (0, 0)  # done of all, within the phase
        self._lock = Lock()  # the panel is drawn by a thread of its own
        moves = (
            self.console.is_terminal
            and not self.console.is_dumb_terminal
            and self.console.encoding.startswith("utf")
        )
        self._live = (
            Live(get_renderable=self._draw, console=self.console, refresh_per_second=4)
            if moves
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._end_phase(broken=kind is not None)
        finally:
            if self._live:
                self._live.stop()

    def begin(self, title: str, iterations: int, max_minutes: float) -> None:
        """Another run begins: its progress starts from nothing."""
        self._end_phase()
        with self._lock:
            self.title, self.progress = (
                title,
                Progress(iterations, self.progress.metric, max_minutes),
            )
        self._print(title)

    def phase(self, text: str) -> None:
        """A step of start-up or finish begins, and the one before it ends."""
        self._end_phase()
        with self._lock:
            self._phase, self._part = (text, perf_counter()), (0, 0)
        if not self._live:
            self._print(f"{text} ...")

    def advance(self, done: int, total: int) -> None:
        """How far the present phase is. Where there is no panel: a line for each tenth."""
        with self._lock:
            before, self._part = self._part[0], (done, total)
        if not self._live and 10 * done // total > 10 * before // total:
            self._print(f"  {done} of {total}")

    def note(self, text: str) -> None:
        """A line that stays."""
        self._print(text)

    def update(self, iteration: int, values: Mapping[str, float]) -> None:
        """`iteration` iterations are done; the metrics of the last one under their names in
        metrics.jsonl.

        update(0, …) may give the held-out score before training. Any figure may be missing.
        """
        with self._lock:
            self.progress.add(iteration, values, perf_counter())
        if not self._live:
            self._print(line(self.progress))

    def _end_phase(self, broken: bool = False) -> None:
        with self._lock:
            phase, self._phase = self._phase, None
        if phase:
            self._print(
                f"{phase[0]}: "
                f"{'stopped after ' if broken else ''}{perf_counter() - phase[1]:.1f} s",
                style="red" if broken else "dim",
            )

    def _print(self, text: str, style: str = "") -> None:
        encoding, text = self.console.encoding, masked_text(text)
        # a log in ASCII is no reason to stop training
        text = text.encode(encoding, "replace").decode(encoding)
        self.console.print(Text(text, style=style if self._live else ""), soft_wrap=True)

    def _draw(self) -> RenderableType:
        with self._lock:
            parts: list[RenderableType] = (
                [panel(self.title, self.progress)] if self.progress.values else []
            )
            if self._phase:
                (text, begun), (done, total) = self._phase, self._part
                parts.append(
                    Text(
                        f"{masked_text(text)}{f' {done}/{total}' if total else ''} … "
                        f"{perf_counter() - begun:.0f} s",
                        style="bold cyan",
                    )
                )
                if total:
                    parts.append(ProgressBar(total=total, completed=done))
            return Group(*parts)


class Progress:
    """How far a run is and how it does."""

    def __init__(self, iterations: int, metric: str, max_minutes: float = 0.0):
        self.iterations = iterations
        self.metric = metric
        self.max_minutes = max_minutes
        self.iteration = 0
        self.values: dict[str, float] = {}  # of the last iteration
        self.rewards: deque[float] = deque(maxlen=RECENT)
        self.held_out: list[tuple[int, float]] = []  # (iteration, score)
        self.scores: dict[str, float] = {}  # the last held-out scores, by reward/score
        self.begun = 0.0
        # when training began, when each iteration ended
        self.stamps: deque[float] = deque(maxlen=RECENT + 1)

    def add(self, iteration: int, values: Mapping[str, float], now: float) -> None:
        """Take in an iteration that ended at `now`, in seconds of any clock."""
        self.iteration, self.values = iteration, dict(values)
        if iteration > 0:
            if not self.stamps:
                self.begun = now - values.get("time/iteration", 0.0)
                self.stamps.append(self.begun)
            self.stamps.append(now)
        if "reward/total" in values:
            self.rewards.append(values["reward/total"])
        self.scores |= {
            name.removeprefix("held_out/"): value
            for name, value in values.items()
            if name.startswith("held_out/")
        }
        if f"held_out/{self.metric}" in values:
            self.held_out.append((iteration, values[f"held_out/{self.metric}"]))

    @property
    def elapsed(self) -> float:
        """Seconds of training up to the last iteration."""
        return self.stamps[-1] - self.begun if self.stamps else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds from the last iteration to the end of training; None before the first one."""
        if not self.stamps:
            return None
        if not self.iterations:
            return max(0.0, 60 * self.max_minutes - self.elapsed)
        left = (
            (self.iterations - self.iteration)
            * (self.stamps[-1] - self.stamps[0])
            / (len(self.stamps) - 1)
        )
        return max(
            0.0, min(left, 60 * self.max_minutes - self.elapsed) if self.max_minutes else left
        )

    @property
    def others(self) -> dict[str, float]:
        """Held-out scores beside the one that decides, by reward/score: where there are several
        rewards."""
        several = len({name.partition("/")[0] for name in self.scores}) > 1
        return (
            {name: value for name, value in self.scores.items() if name != self.metric}
            if several
            else {}
        )

    @property
    def done(self) -> str:
        """Iterations done, of those planned."""
        return f"{self.iteration}/{self.iterations}" if self.iterations else str(self.iteration)

    @property
    def trend(self) -> str:
        """Arrow: where the exponential mean of the reward went in ten iterations, against how much
        the reward jumps."""
        means = smooth(self.rewards)
        if len(means) < 5:
            return "→"  # too early to say
        centre = sum(self.rewards) / len(self.rewards)
        spread = (sum((reward - centre) ** 2 for reward in self.rewards) / len(self.rewards)) ** 0.5
        change = means[-1] - means[max(0, len(means) - 11)]
        return "↑" if change > 0.1 * spread else "↓" if change < -0.1 * spread else "→"


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
