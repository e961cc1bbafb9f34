"""Ctrl-C and SIGTERM, which end a run in good order."""

from __future__ import annotations

import signal
import sys
from threading import current_thread, main_thread
from types import TracebackType
from typing import Any, Self


class Interruption:
    """The first Ctrl-C or SIGTERM ends training after the iteration in flight, the second ends the
    program.

    Before anybody has looked, which is after the first iteration, there is nothing to save: the
    first ends the program. Signals are taken within the block, and only on the main thread, since
    Python lets no other one take them.
    """

    def __init__(self) -> None:
        self.asked = self.looked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if current_thread() is main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: Any) -> None:
        del frame
        if self.asked or not self.looked:
            raise KeyboardInterrupt(signal.Signals(number).name)
        self.asked = True
        print(
            "\nfinishing this iteration, then writing what was reached; once more ends at once",
            file=sys.stderr,
        )

    def __call__(self) -> bool:
        self.looked = True
        return self.asked
