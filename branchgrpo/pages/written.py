"""Pages as files: report.html in a run's folder, and one beside it of several runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from branchgrpo.errors import StaleFence, UserError, one_line
from branchgrpo.files.whole import write_whole
from branchgrpo.pages import facts
from branchgrpo.pages.compare_page import compare_page
from branchgrpo.pages.run_page import run_page
from branchgrpo.runs.folder import is_run
from branchgrpo.runs.listing import LIVE

NAME = "report.html"


class Reports:
    """Writes report.html while a run goes on, and when the block ends: `ended` says how the run
    did."""

    def __init__(self, folder: Path, note: Callable[[str], None]):
        """note: where it is told, once, that the page cannot be written: training goes on."""
        self.folder, self.note = folder, note
        self.told, self.ended = False, "failed"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, StaleFence):  # or it is another driver's by now
            self.write(self.ended)

    def write(self, state: str = LIVE) -> None:
        """Anew, as far as the run is. state: live, or how it ended."""
        try:
            write(self.folder, state)
        except OSError as error:
            if not self.told:
                self.note(f"{self.folder / NAME} cannot be written: {one_line(error)}")
            self.told = True


def write(folder: Path, state: str = "") -> Path:
    """report.html of a run folder, whole or not at all. state: of the run, where that is known
    better than its files tell."""
    path = folder / NAME
    write_whole(path, run_page(facts.read(folder, state)))
    return path


def report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """The page of a run, in its folder, or of several, beside the first; or at `out`. Raises
    UserError for what is no run folder, or cannot be written."""
    for folder in folders:
        if not is_run(folder):
            raise UserError(f"report: expected run folders, got {folder}, which has no config.yaml")
    known = [facts.read(folder) for folder in folders]
    if len(known) == 1:
        path, document = out or folders[0] / NAME, run_page(known[0])
    else:
        names = "\n".join(str(folder.resolve()) for folder in folders)
        digest = hashlib.sha256(names.encode()).hexdigest()[:8]
        path = out or folders[0].resolve().parent / f"report-{digest}.html"
        document = compare_page(known, path.resolve().parent)
    try:
        write_whole(path, document)
    except OSError as error:
        raise UserError(
            f"report: expected a place that can be written, got {path}: {one_line(error)}"
        ) from error
    return path
