"""One run on a service that is ready: held-out check, training, held-out check, and the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from branchgrpo import config as configs
from branchgrpo import report, sheet
from branchgrpo.config import Config
from branchgrpo.metrics import MetricsLog, read
from branchgrpo.service import Service
from branchgrpo.trainer import Display, Scores, Trainer


def carry_out(
    config: Config,
    service: Service,
    folder: Path,
    display: Display,
    interrupted: Callable[[], bool],
    start_up: float = 0.0,
    before: Scores | None = None,
) -> dict[str, Any]:
    """Train by `config` and write `folder` (which must not exist) as docs/run-folder.md says; returns summary.json.

    start_up: seconds that went before. before: scores of the untrained model, where they are known already.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
    trainer = Trainer(config, service, folder.name, display, interrupted)
    evaluation, seconds = config.evaluation, {"start_up": start_up}
    pictures = min(evaluation.pictures, evaluation.prompts)
    if before is None:
        display.phase(f"held-out check before training: {evaluation.prompts} prompts")
        started = perf_counter()
        before, pixels = trainer.evaluate(evaluation.prompts, pictures)
        seconds["evaluation_before"] = perf_counter() - started
        _sheet(config, trainer, folder / "samples" / "before.png", before, pixels, "before training")
    with MetricsLog(folder) as log:
        start = _between(config, before)
        log.write(0, start)
        display.update(0, start)
        display.phase("training")
        started = perf_counter()
        outcome = trainer.train(log)
        seconds["training"] = perf_counter() - started
        display.phase("held-out check after training")
        started = perf_counter()
        after, pixels = trainer.evaluate(evaluation.prompts, pictures)
        seconds["evaluation_after"] = perf_counter() - started
        log.write(outcome.iterations, {**_between(config, after), "time/training": outcome.seconds})
    kept = {when: {name: values.tolist() for name, values in scores.items()} for when, scores in (("before", before), ("after", after))}
    (folder / "held_out.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")
    _sheet(config, trainer, folder / "samples" / "after.png", after, pixels, f"after {outcome.iterations} iterations")
    diversity = trainer.diversity() if evaluation.diversity else None
    if config.run.export != "none":
        display.phase("writing weights")
        service.learners.call("save", (folder / "weights").resolve())
    display.phase("drawing the curve")
    records = read(folder / "metrics.jsonl")
    report.curve(folder / "curve.png", records, config.metric, f"{config.run.name}, seed {config.run.seed}")
    summary = report.summary(config.run.name, config.run.seed, before, after, config.metric, records, seconds, outcome.stopped_by)
    summary["gates"] = outcome.gates
    summary["diversity"] = report.interval(diversity) if diversity is not None else None
    write_whole(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    display.note(f"run folder: {folder}")
    return summary


def measure(config: Config, service: Service, display: Display, picture: Path | None = None) -> tuple[dict[str, Any], Scores]:
    """The row of a model as it is: scores of the held-out prompts with 95 % intervals, diversity; and the scores [P]."""
    trainer, evaluation = Trainer(config, service, "eval", display, lambda: False), config.evaluation
    display.phase(f"held-out check: {evaluation.prompts} prompts")
    scores, pixels = trainer.evaluate(evaluation.prompts, min(evaluation.pictures, evaluation.prompts) if picture else 0)
    if picture:
        _sheet(config, trainer, picture, scores, pixels, config.model.path)
    diversity = trainer.diversity() if evaluation.diversity else None
    row = {"held_out": {name: report.interval(values) for name, values in scores.items()}}
    return row | {"diversity": report.interval(diversity) if diversity is not None else None}, scores


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _between(config: Config, scores: Scores) -> dict[str, float]:
    """What the checks on the way would have shown."""
    return {f"held_out/{key}": float(values[: config.evaluation.prompts_between].mean()) for key, values in scores.items()}


def _sheet(config: Config, trainer: Trainer, path: Path, scores: Scores, pixels: Any, title: str) -> None:
    """A contact sheet of the first held-out prompts."""
    path.parent.mkdir(exist_ok=True)
    values = np.asarray(scores[config.metric][: len(pixels)])
    sheet.pictures(path, pixels, trainer.held_out[: len(pixels)], values, config.metric, title)
