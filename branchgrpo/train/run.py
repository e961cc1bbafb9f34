"""One run on a service that is ready: held-out check, training, held-out check, and the run
folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.report import contact_sheet as sheet
from branchgrpo.report import summary as report
from branchgrpo.report.sinks import MetricsLog, open_sinks, read
from branchgrpo.runs.folder import checkpoints
from branchgrpo.runs.identity import checked_alike, saved_config
from branchgrpo.runs.lease import Lease, read_object, write_whole
from branchgrpo.runs.model_card import write_card
from branchgrpo.service import Display, Service
from branchgrpo.train.evaluate import Scores
from branchgrpo.train.loop import Trainer
from branchgrpo.train.stages import Stages
from branchgrpo.types import F32, U8


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
    if resumed and before is None:
        before = _known(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
    experiment = _Experiment(
        config=config,
        service=service,
        folder=folder,
        display=display,
        interrupted=interrupted,
        lease=lease,
    )
    experiment.stages.add("start_up", start_up)
    sinks = open_sinks(config.run.wandb, config.run.mlflow, folder, configs.plain(config))
    with MetricsLog(folder, sinks) as log:
        if before is None:
            before = experiment.before(log)
        _keep(folder, before)
        after, diversity = experiment.train(log, before, resumed, origin)
    _keep(folder, before, after)
    display.phase("drawing the curve")
    records, outcome = read(folder / "metrics.jsonl"), experiment.trainer.outcome
    report.curve(
        folder / "curve.png", records, config.metric, f"{config.run.name}, seed {config.run.seed}"
    )
    summary = report.summary(
        config.run.name,
        seed=config.run.seed,
        before=before,
        after=after,
        metric=config.metric,
        records=records,
        seconds=experiment.stages.now(),
        stopped_by=outcome.stopped_by,
    )
    summary["gates"] = outcome.gates
    summary["diversity"] = report.interval(diversity) if diversity is not None else None
    write_whole(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_card(folder, config, summary, display.note)
    display.note(f"run folder: {folder}")
    return summary


class _Experiment:
    """The parts of a run that need its service, and how many seconds each took."""

    def __init__(
        self,
        config: Config,
        service: Service,
        folder: Path,
        display: Display,
        interrupted: Callable[[], bool],
        lease: Lease | None,
    ):
        self.config = config
        self.service = service
        self.folder = folder
        self.display = display
        self.interrupted, self.lease = interrupted, lease
        self.trainer = Trainer(
            config=config,
            service=service,
            run=folder.name,
            display=display,
            interrupted=self._interrupted,
            where=checkpoints(config, folder),
        )
        self.stages = Stages()
        if lease:
            self.stages = Stages(lease.earlier["seconds"])
            lease.seconds = self.stages.own
            service.earlier.update(lease.earlier["restarts"])
            self.trainer.earlier = {
                name: lease.earlier[name] for name in ("reissued", "recoveries")
            }
        self.pictures = min(config.evaluation.pictures, config.evaluation.prompts)

    def _interrupted(self) -> bool:
        """Asked between iterations. Raises StaleFence when another driver has taken the run
        over."""
        if self.lease:
            self.lease.put(
                restarts=self.service.restarts(),
                reissued=self.trainer.reissued,
                recoveries=self.trainer.recoveries,
            )
        return self.interrupted()

    def phase(self, text: str) -> None:
        self.display.phase(text)
        self.service.report({"phase": text})

    def before(self, log: MetricsLog) -> Scores:
        """The check before training."""
        count = self.config.evaluation.prompts
        self.phase(f"held-out check before training: {count} prompts")
        with self.stages("evaluation_before"):
            scores, pixels = self.trainer.surviving(
                lambda: self.trainer.evaluate(count, self.pictures), log
            )
        _sheet(
            self.config,
            trainer=self.trainer,
            path=self.folder / "samples" / "before.png",
            scores=scores,
            pixels=pixels,
            title="before training",
        )
        return scores

    def train(
        self, log: MetricsLog, before: Scores, resumed: bool, origin: str
    ) -> tuple[Scores, F32 | None]:
        """Training and what comes after it: scores and diversity of the trained model."""
        trainer = self.trainer
        outcome = self.trainer.outcome
        start = _between(self.config, before)
        reached = -1
        if not trainer.begin(log if resumed or origin else None, origin):
            log.rewind(-1)
            log.write(0, start)
        self.display.update(0, start)
        while reached != outcome.iterations:  # a failure in the last check may take the run back
            self.phase("training")
            with self.stages("training"):
                reached = trainer.train(log).iterations
            after, pixels, diversity = trainer.surviving(self._last, log)
        log.write(
            outcome.iterations,
            {
                **_between(self.config, after),
                "time/training": outcome.seconds,
                "checkpoint/iteration": trainer.saved,
            },
        )
        _sheet(
            self.config,
            trainer=trainer,
            path=self.folder / "samples" / "after.png",
            scores=after,
            pixels=pixels,
            title=f"after {outcome.iterations} iterations",
        )
        return after, diversity

    def _last(self) -> tuple[Scores, U8 | None, F32 | None]:
        """The last check, and the weights."""
        self.phase("held-out check after training")
        evaluation = self.config.evaluation
        with self.stages("evaluation_after"):
            scores, pixels = self.trainer.evaluate(evaluation.prompts, self.pictures)
        diversity = (
            self.trainer.evaluator.diversity(self.trainer.outcome.version)
            if evaluation.diversity
            else None
        )
        if self.config.run.export != "none":
            self.phase("writing weights")
            self.service.learners.export((self.folder / "weights").resolve())
        return scores, pixels, diversity


def _keep(folder: Path, before: Scores, after: Scores | None = None) -> None:
    """Scores of each held-out prompt."""
    known = {"before": before} | ({"after": after} if after else {})
    kept = {
        when: {name: values.tolist() for name, values in scores.items()}
        for when, scores in known.items()
    }
    write_whole(folder / "held_out.json", json.dumps(kept) + "\n")


def _known(folder: Path, config: Config) -> Scores | None:
    """Scores before training, where an earlier part of this run measured them, and by what the
    config says now."""
    known, saved = read_object(folder / "held_out.json"), saved_config(folder)
    if not known or not saved or not checked_alike(saved, config):
        return None
    return {name: np.array(values, np.float32) for name, values in known["before"].items()}


def measure(
    config: Config, service: Service, display: Display, picture: Path | None = None, title: str = ""
) -> tuple[dict[str, Any], Scores]:
    """The row of a model as it is: scores of the held-out prompts with 95 % intervals, diversity;
    and the scores [P]."""
    trainer = Trainer(
        config=config,
        service=service,
        run="eval",
        display=display,
        interrupted=lambda: False,
        where="",
    )
    evaluation = config.evaluation
    display.phase(f"held-out check: {evaluation.prompts} prompts")
    scores, pixels = trainer.evaluate(
        evaluation.prompts, min(evaluation.pictures, evaluation.prompts) if picture else 0
    )
    if picture:
        _sheet(
            config,
            trainer=trainer,
            path=picture,
            scores=scores,
            pixels=pixels,
            title=title or config.model.path,
        )
    diversity = trainer.evaluator.diversity(0) if evaluation.diversity else None
    row = {"held_out": {name: report.interval(values) for name, values in scores.items()}}
    return row | {
        "diversity": report.interval(diversity) if diversity is not None else None
    }, scores


def _between(config: Config, scores: Scores) -> dict[str, float]:
    """What the checks on the way would have shown."""
    return {
        f"held_out/{key}": float(values[: config.evaluation.prompts_between].mean())
        for key, values in scores.items()
    }


def _sheet(
    config: Config, trainer: Trainer, path: Path, scores: Scores, pixels: Any, title: str
) -> None:
    """A contact sheet of the first held-out prompts."""
    path.parent.mkdir(exist_ok=True)
    values = np.asarray(scores[config.metric][: len(pixels)])
    texts = trainer.evaluator.held_out[: len(pixels)]
    sheet.pictures(
        path, pixels=pixels, captions=texts, scores=values, metric=config.metric, title=title
    )
    sheet.keep(path.with_suffix(".npz"), pixels, texts, values)
