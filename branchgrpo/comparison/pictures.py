"""Pictures of a comparison: held-out scores against cost, and what each method draws for the same
prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from branchgrpo.comparison.runs import Comparison
from branchgrpo.comparison.statistics import F64
from branchgrpo.data import prompts
from branchgrpo.models.pictures import opened
from branchgrpo.report import contact_sheet as sheet
from branchgrpo.report.sinks import read
from branchgrpo.report.summary import Record, series
from branchgrpo.types import F32, U8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

Column = tuple[U8, list[str], F32 | None]
"""Pixels [P, F, H, W, 3], captions, scores [P] where they have any."""

MARGIN = 170
"""Pixels for the prompts beside the rows."""


def curves(comparison: Comparison, path: Path, scores: list[str]) -> None:
    """A PNG: held-out scores against training seconds and against forwards; mean and range over
    seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2 * len(scores)), dpi=120, layout="constrained")
    axes = figure.subplots(len(scores), 2, squeeze=False, sharey="row")
    for row, score in enumerate(scores):
        for column, (x, label) in enumerate(
            (
                ("seconds", "seconds of training"),
                ("forwards", "forwards of the model, rollout and training"),
            )
        ):
            for index, method in enumerate(comparison.methods):
                found = [
                    course(read(comparison.path(method, seed) / "metrics.jsonl"), score, x)
                    for seed in comparison.complete(method)
                ]
                if found:
                    _draw(axes[row, column], found, method, index)
            axes[row, column].set_xlabel(label)
            axes[row, column].grid(alpha=0.25)
        axes[row, 0].set_ylabel("held-out reward" if score == "total" else f"held-out {score}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False
    )
    figure.savefig(path)


def course(records: list[Record], score: str, x: str) -> tuple[F64, F64]:
    """(x, score) at the held-out checks of a run."""
    forwards = np.cumsum(
        np.nan_to_num(series(records, "tree/forwards"))
        + np.nan_to_num(series(records, "update/forwards"))
    )
    seconds = np.nan_to_num(series(records, "time/training"))
    values = series(records, f"held_out/{score}")
    there = np.isfinite(values)
    found: F64 = (seconds if x == "seconds" else forwards)[there]
    return found, values[there]


def _draw(axis: Axes, found: list[tuple[F64, F64]], label: str, index: int) -> None:
    """Mean over seeds as a line, their range as a band, as far as all of them went."""
    grid = np.linspace(0.0, min(float(x[-1]) for x, _ in found), 60)
    values = np.stack([np.interp(grid, x, y) for x, y in found])
    colour, style = f"C{index % 10}", ("-", "--", ":")[index // 10 % 3]
    axis.plot(
        grid,
        values.mean(0),
        color=colour,
        linestyle=style,
        linewidth=2,
        label=f"{label} ({len(found)} seed{'s' * (len(found) > 1)})",
    )
    if len(found) > 1:
        axis.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def samples(comparison: Comparison, path: Path, metric: str) -> None:
    """A PNG: rows are the first held-out prompts, columns the untrained model and each method, of
    the first seed that most methods have finished; each picture with its score. Nothing is drawn
    where no run kept its pictures."""
    kept = {seed: _kept(comparison, seed) for seed in comparison.seeds}
    seed = max(comparison.seeds, key=lambda seed: len(kept[seed]))
    if not kept[seed]:
        return
    columns: dict[str, Column] = {name: sheet.kept(file) for name, file in kept[seed].items()}
    pixels, captions, _ = next(iter(columns.values()))
    before = _sources(comparison, pixels)
    columns = ({} if before is None else {"before": (before, captions, None)}) | columns
    title = (
        f"held-out prompts, the same noise in each row, seed {seed}; below each picture its "
        f"{metric}"
    )
    _grid(columns, captions, title).save(path)


def _sources(comparison: Comparison, like: U8) -> U8 | None:
    """What the first held-out pictures are made of, the first of each record, in the shape of
    `like` [P, F, H, W, 3]; None where the model takes none."""
    from PIL import ImageOps

    config = next(iter(comparison.configs.values()))
    if not config.model.pictures_taken[1]:
        return None
    samples = prompts.lists(config)[1][: len(like)]
    size = like.shape[3], like.shape[2]
    found = [
        np.asarray(ImageOps.pad(opened(one.images[0]), size, color="#eeeeee")) for one in samples
    ]
    return np.broadcast_to(np.stack(found)[:, None], like.shape)


def _kept(comparison: Comparison, seed: int) -> dict[str, Path]:
    """Files of pictures by column."""
    files = {"untrained": comparison.untrained_path(seed).with_suffix(".npz")}
    files |= {
        method: comparison.path(method, seed) / "samples" / "after.npz"
        for method in comparison.methods
        if comparison.done(method, seed)
    }
    return {name: file for name, file in files.items() if file.is_file()}


def _grid(columns: dict[str, Column], captions: list[str], title: str) -> Image:
    """Columns beside each other."""
    from PIL import Image as images
    from PIL import ImageDraw

    pixels = next(iter(columns.values()))[0]
    frames = pixels.shape[1]
    size = sheet.tile_size(pixels.shape[2], pixels.shape[3], 256 if frames == 1 else 128)
    wide = frames * (size[1] + 2) - 2
    small = sheet.font(13)
    bold = sheet.font(13, bold=True)
    narrow = sheet.font(11, bold=True)
    heads = [sheet.wrap(name, narrow, wide, most=3) for name in columns]
    titles = sheet.wrap(title, small, MARGIN + len(columns) * (wide + sheet.GAP), most=3)
    top = sheet.GAP + sheet.LINE * (len(titles) + max(map(len, heads)) + 1)
    pitch = size[0] + sheet.LINE + sheet.GAP
    drawn = images.new(
        "RGB",
        (MARGIN + len(columns) * (wide + sheet.GAP) + sheet.GAP, top + len(captions) * pitch),
        "white",
    )
    draw = ImageDraw.Draw(drawn)
    for number, line in enumerate(titles):
        draw.text(
            (sheet.GAP, sheet.GAP // 2 + number * sheet.LINE), line, fill="#555555", font=small
        )
    for row, caption in enumerate(captions):
        for number, line in enumerate(
            sheet.wrap(caption, small, MARGIN - 2 * sheet.GAP, most=max(1, size[0] // sheet.LINE))
        ):
            draw.text(
                (sheet.GAP, top + row * pitch + number * sheet.LINE), line, fill="black", font=small
            )
    for column, (head, (pictures, _, scores)) in enumerate(
        zip(heads, columns.values(), strict=True)
    ):
        x = MARGIN + column * (wide + sheet.GAP)
        for number, line in enumerate(head):
            draw.text(
                (x, top - sheet.LINE * (len(head) - number) - 4), line, fill="black", font=narrow
            )
        for row, picture in enumerate(pictures):
            y = top + row * pitch
            drawn.paste(sheet.strip(picture, size), (x, y))
            draw.rectangle((x - 1, y - 1, x + wide, y + size[0]), outline="#bbbbbb")
            score = "" if scores is None else f"{scores[row]:.3f}"
            draw.text((x, y + size[0] + 2), score, fill="#1f4e8c", font=bold)
    return drawn
