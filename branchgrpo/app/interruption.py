"""Ctrl-C and SIGTERM, which end a run in good order."""

from __future__ import annotations

import signal
import sys
from typing import Any


class Interruption:
    """The first Ctrl-C or SIGTERM ends training after the iteration in flight, the second ends the
    program.

    Before anybody has looked, which is after the first iteration, there is nothing to save: the
    first ends the program.
    """

    def __init__(self) -> None:
        self.asked = self.looked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

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
