"""What a sink is: options that open it for a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from branchgrpo.errors import UserError
from branchgrpo.files.masks import masked_text
from branchgrpo.types import F32, U8, Component

if TYPE_CHECKING:
    from PIL.Image import Image

FLUSH_SECONDS = 60
"""How long the end of a run waits for a tracking server that does not answer."""


class Sink(Protocol):
    """Where copies of the metrics go."""

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Send an iteration's metrics; returns at once, and does not raise when the server is
        away."""

    def close(self, failed: bool) -> None:
        """Send the rest and mark the run as finished or failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A picture or video, ready to be looked at."""

    frames: U8  # [F, H, W, 3] as it was drawn
    caption: str
    tile: Image  # of a size to look at; of a video a few frames side by side
    labelled: Image  # the tile with its caption below


class RichSink(Sink):
    """Base of sinks that take more than figures. Each method does nothing unless it is overridden;
    as `Sink.write`, it returns at once and does not raise when the server is away."""

    def pictures(self, iteration: int, tag: str, shown: Sequence[Shown]) -> None:
        """Send pictures. tag: what they are of, such as held_out or leaves/best; the same tag comes
        again at later iterations."""

    def histograms(self, iteration: int, values: Mapping[str, F32]) -> None:
        """Send what is to be shown as histograms: finite values [n], n > 0, by tag, such as
        reward/leaves."""


class SinkOptions(Component):
    """Base of all sinks."""

    package: ClassVar[str] = ""  # an optional package of ours that it needs; empty: none

    def check(self, key: str) -> None:
        """Raise UserError, which names the key of the config, for what can be seen to be wrong
        before anything starts: a package that is not installed."""
        if self.package and find_spec(self.package) is None:
            raise UserError(
                f"{key}: expected the package {self.package}, which is not installed: "
                f"pip install 'branchgrpo[{self.package}]'"
            )

    def open(self, key: str, folder: Path, config: Mapping[str, Any]) -> Sink:
        """The sink of one run. A resumed folder goes on with its run.

        key: of the config, for errors. folder: the run's. config: nested, without secrets. Raises
        UserError where it refuses to start.
        """
        raise NotImplementedError


def identity(folder: Path) -> str:
    """Names a run folder among all: comparisons have folders of equal names."""
    return f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"


def first_line(error: Exception) -> str:
    return masked_text(next(iter(str(error).splitlines()), type(error).__name__))
