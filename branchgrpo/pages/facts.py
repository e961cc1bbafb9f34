"""All that the files of a run folder say, for its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from branchgrpo.config import load as configs
from branchgrpo.config.defaults import Difference, differing
from branchgrpo.errors import UserError, one_line
from branchgrpo.report import contact_sheet, looks
from branchgrpo.report.page import picture
from branchgrpo.runs import listing, provenance
from branchgrpo.runs.identity import saved_config
from branchgrpo.runs.lease import read_object
from branchgrpo.runs.listing import RunRow
from branchgrpo.types import U8

CHECKS = 14
"""Checks whose pictures a page shows at most: the first, the last, and some evenly between."""

TREES = 2
"""Trees whose pictures a page shows."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A picture as a page has it."""

    source: str  # a data: address
    caption: str
    score: float
    small: bool  # to be enlarged without smoothing
    frames: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of one run."""

    folder: Path
    row: RunRow
    config: Mapping[str, Any]  # resolved, nested; {} where it cannot be read
    records: Sequence[Mapping[str, Any]]  # metrics.jsonl
    looks: Sequence[looks.Look]
    summary: Mapping[str, Any]  # {} until the run has ended
    origins: Sequence[provenance.Provenance]
    differences: Sequence[Difference]
    unread: str = ""  # why these are not known
    # names of checks (before, iteration 20, …, after), each with its pictures
    sheets: Sequence[tuple[str, Sequence[Shot]]] = ()
    # iteration and leaves of it, in the order of its look
    leaves: Sequence[tuple[int, Sequence[Shot]]] = ()
    trees: Sequence[Path] = ()  # pages of trees, in the folder
    grown: Sequence[tuple[Path, str]] = ()  # of these a few of the newest, and their pictures

    @property
    def measured(self) -> list[str]:
        """Held-out scores, what training maximises first."""
        names = {
            name.removeprefix("held_out/"): None
            for record in self.records
            for name in record
            if name.startswith("held_out/")
        }
        return sorted(names, key=lambda name: name != "total")

    @property
    def gold(self) -> list[str]:
        """Those of rewards that are only measured."""
        found = self.config.get("evaluation", {}).get("rewards") or []
        titles = [
            one.get("label") or str(one.get("name", "")).rpartition(":")[2]
            for one in found
            if isinstance(one, Mapping)
        ]
        return [name for name in self.measured if name.rpartition("/")[0] in titles]

    def figure(self, name: str) -> NDArray[np.float64]:
        """Of every record; NaN where it is missing."""
        return np.array(
            [np.nan if record.get(name) is None else record[name] for record in self.records],
            np.float64,
        )


def read(folder: Path, state: str = "") -> Facts:
    """Of a run folder. state: of the run, where that is known better than its files tell. What is
    missing or damaged is left out."""
    summary = read_object(folder / "summary.json") or {}
    row = listing.row_of(folder)
    found = looks.read(folder)
    differences, unread = _differences(folder)
    pages = sorted((folder / "trees").glob("*.html"))
    newest = [path for path in pages if path.name[:6] == pages[-1].name[:6]][:TREES]
    return Facts(
        folder=folder,
        row=replace(row, state=state) if state else row,
        config=saved_config(folder) or {},
        records=listing.records_of(folder),
        looks=found,
        summary={} if state == listing.LIVE else summary,
        origins=provenance.read(folder),
        differences=differences,
        unread=unread,
        sheets=_sheets(folder, found),
        leaves=_leaves(folder, found),
        trees=pages,
        grown=[(path, shown) for path in newest if (shown := _tree(path.with_suffix(".png")))],
    )


def _differences(folder: Path) -> tuple[Sequence[Difference], str]:
    """Needs the components that the config names; secrets that were masked are not there."""
    path = folder / "config.yaml"
    if not path.is_file():
        return (), "there is no config.yaml"
    try:
        return _differing(path, path.stat().st_mtime_ns), ""
    except UserError as error:
        return (), one_line(error)


@lru_cache(maxsize=8)
def _differing(path: Path, changed: int) -> tuple[Difference, ...]:
    return tuple(differing(configs.load(path, {})))


def chosen(count: int, most: int = CHECKS) -> list[int]:
    """Of so many places at most `most`, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, most)})


def _sheets(folder: Path, found: Sequence[looks.Look]) -> list[tuple[str, Sequence[Shot]]]:
    places = [("before", folder / "samples" / "before.npz")]
    numbers = [look["iteration"] for look in found]
    ways = [(f"iteration {number}", folder / looks.WAY.format(number)) for number in numbers]
    ways = [(name, path) for name, path in ways if path.is_file()]
    places += [ways[place] for place in chosen(len(ways))]
    places.append(("after", folder / "samples" / "after.npz"))
    return [(name, shots) for name, path in places if (shots := shots_of(path))]


def _leaves(folder: Path, found: Sequence[looks.Look]) -> list[tuple[int, Sequence[Shot]]]:
    numbers = [look["iteration"] for look in found if look.get("leaves")]
    paths = [(number, folder / looks.LEAVES.format(number)) for number in numbers]
    there = [(number, path) for number, path in paths if path.is_file()]
    few = (there[place] for place in chosen(len(there)))
    return [(number, shots) for number, path in few if (shots := shots_of(path))]


def shots_of(path: Path) -> tuple[Shot, ...]:
    """Of an .npz file of contact_sheet.keep; none where it cannot be read."""
    try:
        return _shots(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError):
        return ()


@lru_cache(maxsize=64)
def _shots(path: Path, changed: int) -> tuple[Shot, ...]:
    """A page is written again and again while its run goes on."""
    pixels, captions, scores = contact_sheet.kept(path)
    return tuple(
        Shot(
            source=picture(_strip(one), most=256 * min(2, len(one))),
            caption=caption,
            score=float(score),
            small=max(one.shape[1:3]) <= 64,
            frames=len(one),
        )
        for one, caption, score in zip(pixels, captions, scores, strict=True)
    )


def _tree(path: Path) -> str:
    """A tree's picture as a data: address; nothing where there is none."""
    try:
        return _drawn(path, path.stat().st_mtime_ns)
    except OSError:
        return ""


@lru_cache(maxsize=8)
def _drawn(path: Path, changed: int) -> str:
    from PIL import Image

    with Image.open(path) as found:
        return picture(np.asarray(found.convert("RGB")), most=1100, quality=75)


def _strip(frames: U8) -> U8:
    """Frames [F, H, W, 3] side by side."""
    return frames[0] if len(frames) == 1 else np.concatenate(list(frames), axis=1)
