"""The command sample: pictures of one's own prompts by a run's weights."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchgrpo.config.shipped import QUICKSTART
from branchgrpo.errors import UserError

if TYPE_CHECKING:
    from branchgrpo.app.drawing import Drawing
    from branchgrpo.data.lists import Prompts
    from branchgrpo.types import U8, Sample

SHEET = "sheet.png"
ON_SHEET = 64
"""Pictures on the sheet: the first ones."""


def add(command: argparse.ArgumentParser) -> None:
    """Its options."""
    command.add_argument("folder", type=Path, help="a run folder, or a pipeline folder")
    command.add_argument("texts", nargs="*", metavar="PROMPT", help="what to draw")
    command.add_argument(
        "--prompts",
        dest="file",
        default="",
        metavar="FILE",
        help="draw the prompts of a file as well, of any form that a run takes",
    )
    command.add_argument("--n", type=int, default=8, help="pictures of each prompt (default: 8)")
    command.add_argument("--seed", type=int, help="of the noise (default: the run's)")
    command.add_argument(
        "--checkpoint",
        type=int,
        metavar="N",
        help="weights of iteration N's checkpoint (default: what the run wrote, else its newest "
        "checkpoint)",
    )
    command.add_argument(
        "--steps", type=int, default=0, help="of denoising (default: the held-out check's)"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="a new folder (default: samples/drawn-DATE-TIME in the run folder)",
    )


def sample(found: argparse.Namespace) -> int:
    """The command sample. Returns the exit code."""
    from branchgrpo.app.results import check_wanted
    from branchgrpo.data.check import pictureless
    from branchgrpo.runs.measured import chosen

    if not found.folder.is_dir():
        raise UserError(
            f"sample: expected a run folder or a pipeline's, found none at {found.folder}"
        )
    seed: int | None = found.seed
    if seed is not None and not 0 <= seed < 2**63:
        raise UserError(f"--seed: expected a number from 0 to 2^63 - 1, got {seed}")
    samples = _samples(found.texts, found.file)
    check_wanted(samples, found.n, found.steps)
    target = chosen(
        found.folder, config=None, texts={}, checkpoint=found.checkpoint, default=QUICKSTART
    )
    if reason := pictureless(target.config, "sample", samples):
        raise UserError(reason)
    target.config.model.check()
    from branchgrpo.app.drawing import Drawing

    folder = _folder(found.out, found.folder)
    try:
        sheet = _write(
            folder,
            Drawing(target),
            samples,
            count=found.n,
            seed=target.config.run.seed if seed is None else seed,
            steps=found.steps,
            title=target.name,
        )
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise
    print(f"{len(samples) * found.n} files and samples.jsonl in {folder}\n{sheet}")
    return 0


def _samples(texts: Sequence[str], file: str) -> Prompts:
    """What is to be drawn: texts, then a file's records."""
    from branchgrpo.data.lists import Listed
    from branchgrpo.data.prompts import read
    from branchgrpo.types import Sample

    if not all(text.strip() for text in texts):
        raise UserError("sample: expected prompts with some text, got an empty one")
    records = list(read("--prompts", file)) if file else []
    return Listed([Sample(prompt=text) for text in texts] + records, file or "command line")


def _folder(out: Path | None, source: Path) -> Path:
    """The new folder that everything goes to."""
    from branchgrpo.runs.folder import is_run
    from branchgrpo.runs.places import named

    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    try:
        if out is None:
            inside = is_run(source)
            place = source / "samples" if inside else Path()
            return named(place, f"drawn-{stamp}" if inside else f"{source.name}-drawn-{stamp}")
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"--out: expected a new or empty folder, got {out}, which holds files")
    except OSError as error:
        raise UserError(
            f"--out: expected a folder that can be written, got {out or source}: {error.strerror}"
        ) from error
    return out


def _write(
    folder: Path,
    drawing: Drawing,
    samples: Sequence[Sample],
    *,
    count: int,
    seed: int,
    steps: int,
    title: str,
) -> Path:
    """Draw and write all pictures, their list, and a sheet of the first ones; returns its path."""
    import numpy as np

    from branchgrpo.data.records import row_of
    from branchgrpo.report import contact_sheet
    from branchgrpo.report.saved import file_of, save, write_list

    rows: list[dict[str, Any]] = []
    shown: list[U8] = []
    for index, pixels in enumerate(_drawn(drawing, samples, count, seed, steps)):
        record = samples[index // count]
        save(folder, index, pixels)
        own = {"file": file_of(index, len(pixels))}
        rows.append(own | row_of(record) | own | {"seed": seed, "number": index % count})
        if index < ON_SHEET:
            shown.append(pixels)
    write_list(folder, rows)
    contact_sheet.pictures(
        folder / SHEET,
        pixels=np.stack(shown),
        captions=[samples[index // count].prompt for index in range(len(shown))],
        scores=None,
        metric="",
        title=f"{title}, seed {seed}",
    )
    return folder / SHEET


def _drawn(
    drawing: Drawing, samples: Sequence[Sample], count: int, seed: int, steps: int
) -> Iterator[U8]:
    """Pictures [F, H, W, 3], prompt by prompt, as many prompts at once as make a batch; progress is
    shown."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    at_once = max(1, drawing.config.rollout.max_batch // count)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task("drawing", total=len(samples) * count)
        for first in range(0, len(samples), at_once):
            some = samples[first : first + at_once]
            pixels = drawing.pixels(some, count, seed, steps, first=first)
            for one in pixels.reshape(-1, *pixels.shape[2:]):
                yield one
                progress.advance(task)
