"""What a person sees of a run: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from time import perf_counter
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from branchgrpo.config.secrets import masked_text
from branchgrpo.report.panel import line, panel
from branchgrpo.report.progress import Progress


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
