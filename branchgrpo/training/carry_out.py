"""One run on a service that is ready, and its folder; or one held-out check alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.data import suites
from branchgrpo.data.records import prompts_of, row_of
from branchgrpo.files.whole import write_whole
from branchgrpo.models.pictures import opened
from branchgrpo.report import categories, contact_sheet
from branchgrpo.report import summary as report
from branchgrpo.report.about import About
from branchgrpo.report.looks import Looks
from branchgrpo.report.machine import Machine
from branchgrpo.report.settings import settings
from branchgrpo.report.sinks import MetricsLog, open_sinks, read
from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.runs.identity import checked_alike, saved_config
from branchgrpo.runs.lease import Lease, read_object
from branchgrpo.runs.model_card import write_card
from branchgrpo.runs.places import checkpoints
from branchgrpo.service import Display, Service
from branchgrpo.training import alarms
from branchgrpo.training.diversity import Diversity, summarised
from branchgrpo.training.evaluate import Evaluator, Scores
from branchgrpo.training.hooks import HOOKS
from branchgrpo.training.loop import train
from branchgrpo.training.run import Run
from branchgrpo.training.state import TrainState
from branchgrpo.types import F32, U8, Sample


def carry_out(
    config: Config,
    service: Service,
    folder: Path,
    display: Display,
    interrupted: Callable[[], bool],
    start_up: float = 0.0,
    before: Scores | None = None,
    origin: str = "",
    resumed: bool = False,
    lease: Lease | None = None,
) -> dict[str, Any]:
    """Train by `config` and write `folder` as docs/run-folder.md says; returns summary.json.

    start_up: seconds that went before. before: scores of the untrained model, where they are known
    already. origin: a checkpoint that a new run begins at, in place of the untrained model.
    resumed: the folder is of a run that was not finished, which goes on from its newest checkpoint.
    lease: of the folder; it is told what the run spends.
    """
    diversity: Diversity = {}
    if resumed and before is None:
        before, diversity = _known(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
    keeper = RunFolder(config, folder, before, diversity)
    plain = configs.plain(config)
    sinks = open_sinks(config.all_sinks, folder, plain)
    about = About(config=plain, metric=config.metric)
    with MetricsLog(folder, sinks, about, Machine()) as log:
        run = Run(
            config,
            service,
            name=folder.name,
            log=log,
            display=display,
            hooks=HOOKS,
            checkpoints=checkpoints(config, folder),
            weights=(folder / "weights").resolve(),
            interrupted=interrupted,
            keeper=keeper,
            looks=Looks(folder),
            before=before,
            diversity=diversity,
            origin=origin,
            resumed=resumed,
            lease=lease,
        )
        run.stages.add("start_up", start_up)
        state = train(run)
    display.phase("drawing the curve")
    summary = _summarised(run, state, folder, keeper.scores["before"])
    write_card(folder, config, summary, display.note)
    display.note(f"run folder: {folder}")
    return summary


def _summarised(run: Run, state: TrainState, folder: Path, before: Scores) -> dict[str, Any]:
    """Draw curve.png and write summary.json, which it returns."""
    config = run.config
    records = read(folder / "metrics.jsonl")
    title = f"{config.run.name}, seed {config.run.seed}"
    report.curve(folder / "curve.png", records, config.metric, title)
    summary = report.summary(
        config.run.name,
        seed=config.run.seed,
        before=before,
        after=run.after,
        metric=config.metric,
        records=records,
        seconds=run.stages.now(),
        stopped_by=state.stopped_by,
    )
    summary["gates"] = state.gates
    summary["alarms"] = [*run.hacked, *([alarms.NORM] if run.inflated else [])]
    summary["settings"] = settings(config)
    if key := suites.category(config):
        held_out = run.evaluator.held_out
        summary["categories"] = categories.both(before, run.after, held_out, key)
    summary["diversity"] = summarised(run.diversity["after"], run.diversity["before"]) or None
    write_whole(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


class RunFolder:
    """Where a run keeps what its held-out checks find: held_out.json, by category too
    where there are any, held_out.jsonl with the records beside their scores, and contact sheets of
    the first ones under samples/."""

    def __init__(self, config: Config, folder: Path, before: Scores | None, diversity: Diversity):
        """before, diversity: what is known of the untrained model."""
        self.config, self.folder = config, folder
        self.scores: dict[str, Scores] = {}
        self.diversity: dict[str, Diversity] = {}
        self.samples: Sequence[Sample] = ()
        if before is not None:
            self._write("before", before, diversity)

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
        if pixels is not None:
            path = self.folder / "samples" / f"{when}.png"
            draw(self.config, path, scores, pixels, samples, title=title)

    def _write(self, when: str, scores: Scores, diversity: Diversity) -> None:
        self.scores[when] = scores
        kept: dict[str, Any] = _lists(self.scores)
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


def _known(folder: Path, config: Config) -> tuple[Scores | None, Diversity]:
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


def measure(
    config: Config, service: Service, display: Display, picture: Path | None = None, title: str = ""
) -> tuple[dict[str, Any], Scores]:
    """The row of a model as it is: scores of the held-out prompts with 95 % intervals, diversity,
    what they were drawn with, means by category; and the scores [P]."""
    evaluator = Evaluator(config, service, RolloutCollector(config, service, "eval"))
    options = config.evaluation
    display.phase(f"held-out check: {options.prompts} prompts")
    count = min(options.pictures, options.prompts) if picture else 0
    scores, pixels = evaluator.scores(0, options.prompts, count)
    if picture and pixels is not None:
        draw(config, picture, scores, pixels, evaluator.held_out, title=title or config.model.path)
    diversity = evaluator.diversity(0) if options.diversity else {}
    held_out = {name: report.interval(values) for name, values in scores.items()}
    row: dict[str, Any] = {"held_out": held_out, "diversity": summarised(diversity) or None}
    row["settings"] = settings(config)
    if key := suites.category(config):
        row["categories"] = categories.means(scores, evaluator.held_out, key)
    return row, scores


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
