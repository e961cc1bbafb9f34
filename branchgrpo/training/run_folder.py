"""Where a run keeps what its held-out checks find."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from branchgrpo.config.schema import Config
from branchgrpo.data import suites
from branchgrpo.data.records import prompts_of, row_of
from branchgrpo.files.whole import write_whole
from branchgrpo.models.pictures import opened
from branchgrpo.report import categories, contact_sheet
from branchgrpo.report.saved import SavedPictures
from branchgrpo.report.tree.write import write as write_trees
from branchgrpo.rollout.trees import GrownTree
from branchgrpo.runs.identity import checked_alike, saved_config
from branchgrpo.runs.lease import read_object
from branchgrpo.training.diversity import Diversity
from branchgrpo.training.evaluate import Scores
from branchgrpo.types import F32, U8, Sample


class RunFolder:
    """Where a run keeps what its held-out checks find: held_out.json, by category too where there
    are any, held_out.jsonl with the records beside their scores, contact sheets of the first ones
    under samples/, and there under saved/ the first `evaluation.save` pictures as they are."""

    def __init__(self, config: Config, folder: Path, before: Scores | None, diversity: Diversity):
        """before, diversity: what is known of the untrained model."""
        self.config, self.folder = config, folder
        self.scores: dict[str, Scores] = {}
        self.diversity: dict[str, Diversity] = {}
        self.samples: Sequence[Sample] = ()
        place = folder / "samples" / "saved"
        self.saved = {when: SavedPictures(place / when) for when in ("before", "after")}
        if before is not None:
            self._write("before", before, diversity)

    def save(self, when: str, index: int, frames: U8) -> None:
        """See branchgrpo.training.keeper.Keeper."""
        self.saved[when].save(index, frames)

    def keep(
        self,
        when: str,
        *,
        scores: Scores,
        diversity: Diversity,
        pixels: U8 | None,
        samples: Sequence[Sample],
        title: str,
    ) -> None:
        """See branchgrpo.training.keeper.Keeper."""
        self.samples = samples
        self._write(when, scores, diversity)
        rows = [row_of(sample) for sample in samples[: len(scores["total"])]]
        for known, found in self.scores.items():
            for index, row in enumerate(rows):
                row[known] = {name: float(values[index]) for name, values in found.items()}
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_whole(self.folder / "held_out.jsonl", lines)
        if self.config.evaluation.save:
            self.saved[when].write(samples, scores, self.config.run.seed)
        if pixels is not None:
            path = self.folder / "samples" / f"{when}.png"
            draw(self.config, path, scores, pixels, samples, title=title)

    def keep_trees(self, iteration: int, grown: Sequence[GrownTree], note: str) -> None:
        """See branchgrpo.training.keeper.TreeKeeper."""
        for prompt in dict.fromkeys(tree.key.prompt for tree in grown):
            trees = [tree for tree in grown if tree.key.prompt == prompt]
            page = self.folder / "trees" / f"{iteration:06d}-prompt{prompt}.html"
            write_trees(page, self.folder.name, {iteration: trees}, note)

    def _write(self, when: str, scores: Scores, diversity: Diversity) -> None:
        self.scores[when] = scores
        kept: dict[str, Any] = _lists(self.scores)
        if self.samples:
            kept["prompts"] = prompts_of(self.samples[: len(scores["total"])])
        if diversity:
            self.diversity[when] = diversity
        if self.diversity:
            kept["diversity"] = _lists(self.diversity)
        if (key := suites.category(self.config)) and self.samples:
            kept["categories"] = {
                name: categories.means(known, self.samples, key)
                for name, known in self.scores.items()
            }
        write_whole(self.folder / "held_out.json", json.dumps(kept) + "\n")


def _lists(values: Mapping[str, Mapping[str, F32]]) -> dict[str, dict[str, list[float]]]:
    return {
        name: {score: one.tolist() for score, one in known.items()}
        for name, known in values.items()
    }


def known_before(folder: Path, config: Config) -> tuple[Scores | None, Diversity]:
    """Scores and diversity before training, where an earlier part of this run measured them, and by
    what the config says now."""
    known, saved = read_object(folder / "held_out.json"), saved_config(folder)
    if not known or not saved or not checked_alike(saved, config):
        return None, {}
    scores, diversity = (
        {name: np.array(values, np.float32) for name, values in found.items()}
        for found in (known["before"], known.get("diversity", {}).get("before", {}))
    )
    return scores, diversity


def draw(
    config: Config,
    path: Path,
    scores: Scores,
    pixels: U8,
    samples: Sequence[Sample],
    *,
    title: str,
) -> None:
    """A contact sheet of the first held-out prompts, and what it was made of."""
    path.parent.mkdir(exist_ok=True)
    values = np.asarray(scores[config.metric][: len(pixels)])
    captions = prompts_of(samples[: len(pixels)])
    most = config.model.pictures_taken[1]  # what was edited stands left of what was drawn
    sources = [[opened(one) for one in sample.images[:most]] for sample in samples[: len(pixels)]]
    contact_sheet.pictures(
        path,
        pixels=pixels,
        captions=captions,
        scores=values,
        metric=config.metric,
        title=title,
        sources=sources,
    )
    contact_sheet.keep(path.with_suffix(".npz"), pixels, captions, values)
