"""One run on a service that is ready, and its folder; or one held-out check alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.data import suites
from branchgrpo.files.whole import write_whole
from branchgrpo.pages.written import Reports
from branchgrpo.report import categories
from branchgrpo.report import summary as report
from branchgrpo.report.about import About
from branchgrpo.report.looks import Looks
from branchgrpo.report.machine import Machine
from branchgrpo.report.saved import SavedPictures
from branchgrpo.report.settings import settings
from branchgrpo.report.sinks import MetricsLog, open_sinks, read
from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.runs import provenance
from branchgrpo.runs.lease import Lease
from branchgrpo.runs.model_card import write_card
from branchgrpo.runs.places import checkpoints
from branchgrpo.service import Display, Service
from branchgrpo.training import alarms
from branchgrpo.training.diversity import Diversity, summarised
from branchgrpo.training.evaluate import Evaluator, Scores
from branchgrpo.training.hooks import HOOKS, Page
from branchgrpo.training.loop import train
from branchgrpo.training.run import Run
from branchgrpo.training.run_folder import RunFolder, draw, known_before
from branchgrpo.training.state import TrainState


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
    cards: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Train by `config` and write `folder` as docs/run-folder.md says; returns summary.json.

    start_up: seconds that went before. before: scores of the untrained model, where they are known
    already. origin: a checkpoint that a new run begins at, in place of the untrained model.
    resumed: the folder is of a run that was not finished, which goes on from its newest checkpoint.
    lease: of the folder; it is told what the run spends. cards: GPUs by name, where they are known.
    """
    diversity: Diversity = {}
    if resumed and before is None:
        before, diversity = known_before(folder, config)
    _describe(config, folder, lease.number if lease else 1, cards)
    keeper = RunFolder(config, folder, before, diversity)
    plain = configs.plain(config)
    sinks = open_sinks(config.all_sinks, folder, plain)
    about = About(config=plain, metric=config.metric)
    with (
        Reports(folder, display.note) as reports,
        MetricsLog(folder, sinks, about, Machine()) as log,
    ):
        run = Run(
            config,
            service,
            name=folder.name,
            log=log,
            display=display,
            hooks=(*HOOKS, Page(reports)),
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
        reports.ended = state.stopped_by
    display.phase("drawing the curve")
    summary = _summarised(run, state, folder, keeper.scores["before"])
    write_card(folder, config, summary, display.note)
    reports.write(state.stopped_by)
    display.note(f"run folder: {folder}")
    return summary


def _describe(config: Config, folder: Path, driver: int, cards: Sequence[str] | None) -> None:
    """The folder, what the run is, and where this driver of it comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
    provenance.write(folder, driver, provenance.own(config, cards))


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


def measure(
    config: Config, service: Service, display: Display, picture: Path | None = None, title: str = ""
) -> tuple[dict[str, Any], Scores]:
    """The row of a model as it is: scores of the held-out prompts with 95 % intervals, diversity,
    what they were drawn with, means by category; and the scores [P]."""
    evaluator = Evaluator(config, service, RolloutCollector(config, service, "eval"))
    options = config.evaluation
    display.phase(f"held-out check: {options.prompts} prompts")
    count = min(options.pictures, options.prompts) if picture else 0
    saved = SavedPictures(picture.with_name(f"{picture.stem}-saved")) if picture else None
    scores, pixels = evaluator.scores(0, options.prompts, count, saved.save if saved else None)
    if saved and options.save:
        saved.write(evaluator.held_out, scores, config.run.seed)
    if picture and pixels is not None:
        draw(config, picture, scores, pixels, evaluator.held_out, title=title or config.model.path)
    diversity = evaluator.diversity(0) if options.diversity else {}
    held_out = {name: report.interval(values) for name, values in scores.items()}
    row: dict[str, Any] = {"held_out": held_out, "diversity": summarised(diversity) or None}
    row["settings"] = settings(config)
    if key := suites.category(config):
        row["categories"] = categories.means(scores, evaluator.held_out, key)
    return row, scores
