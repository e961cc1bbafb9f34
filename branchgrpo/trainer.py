"""The driver's loop: plan → grow trees → score leaves → update → publish → log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from branchgrpo import prompts
from branchgrpo.config import Config
from branchgrpo.errors import GateError
from branchgrpo.forest import Forest, Harvest
from branchgrpo.plan import ode_plan
from branchgrpo.service import Service
from branchgrpo.types import EVALUATION, F32, U8, StepStats

Scores = dict[str, F32]
"""Reported scores [P] of held-out prompts, by reward/score."""


class Display(Protocol):
    """What a person sees."""

    def phase(self, text: str) -> None:
        """A step of start-up or finish begins."""

    def note(self, text: str) -> None:
        """Something worth keeping."""

    def update(self, iteration: int, values: Mapping[str, float]) -> None:
        """An iteration ended."""


class Log(Protocol):
    """Where figures go."""

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Keep an iteration's figures."""


@dataclass
class Outcome:
    """What a training loop reached."""

    iterations: int = 0
    version: int = 0
    stopped_by: str = "iterations"  # or "max_minutes", "interrupted"
    gates: dict[str, float] = field(default_factory=dict)  # what each start-up gate measured


class Trainer:
    """Trains one config on one service. `interrupted` is asked between iterations."""

    def __init__(self, config: Config, service: Service, run: str, display: Display, interrupted: Callable[[], bool]):
        self.config, self.service, self.display, self.interrupted = config, service, display, interrupted
        self.train_prompts = prompts.read("prompts", config.prompts)
        self.held_out = prompts.read("held_out", config.held_out)
        self.forest = Forest(config, service, run)
        self.outcome = Outcome()

    def train(self, log: Log) -> Outcome:
        """The main loop, until the last iteration, the time limit or an interruption."""
        config, outcome, begun = self.config, self.outcome, perf_counter()
        while outcome.iterations < config.run.iterations:
            started, iteration = perf_counter(), outcome.iterations
            plan = config.method.plan(iteration, config.sampling.steps, config.sampling.shift)
            chosen = prompts.deal(len(self.train_prompts), config.rollout.prompts, iteration, config.run.seed)
            texts = [self.train_prompts[index] for index in chosen]
            harvest = self.forest.grow(plan, iteration, outcome.version, chosen, texts, config.rollout.trees_per_prompt)
            grown = perf_counter()
            stats = self.service.learners.call("update", plan, iteration, harvest.segments, harvest.conditioning, harvest.rewards)[0]
            updated = perf_counter()
            self._publish(stats)
            outcome.iterations += 1
            ended = perf_counter()
            times = {"time/update": updated - grown, "time/publish": ended - updated, "time/iteration": ended - started}
            values = figures(harvest, stats, self.service.driver_bytes()) | times | self._check(outcome.iterations)
            log.write(outcome.iterations, values)
            self.display.update(outcome.iterations, values)
            if self.interrupted():
                outcome.stopped_by = "interrupted"
                break
            if config.run.max_minutes and perf_counter() - begun > 60 * config.run.max_minutes:
                outcome.stopped_by = "max_minutes"
                break
        return outcome

    def evaluate(self, count: int, pictures: int = 0) -> tuple[Scores, U8 | None]:
        """Scores of the first `count` held-out prompts under the ODE sampler, always from the same noise, and the
        pixels [pictures, F, H, W, 3] of the first ones."""
        texts = self.held_out[:count]
        plan = ode_plan(self.config.sampling.steps, self.config.sampling.shift)
        harvest = self.forest.grow(plan, EVALUATION, self.outcome.version, list(range(len(texts))), texts, trees=1)
        found: dict[int, U8] = {}
        for subtrees, reference in harvest.media:
            if any(subtree.prompt < pictures for subtree in subtrees):
                pixels = self.service.rollouts.fetch(reference).pixels
                found |= {subtree.prompt: picture for subtree, picture in zip(subtrees, pixels, strict=True)}
        self.service.driver_bytes()  # evaluation's messages are not the training iteration's
        scores = {name: harvest.part(name) for name in harvest.parts}
        return scores, np.stack([found[row] for row in range(pictures)]) if pictures else None

    def _check(self, iteration: int) -> dict[str, float]:
        evaluation = self.config.evaluation
        if not evaluation.every or iteration % evaluation.every or iteration == self.config.run.iterations:
            return {}
        scores, _ = self.evaluate(evaluation.prompts_between)
        return {f"held_out/{name}": float(values.mean()) for name, values in scores.items()}

    def _publish(self, stats: StepStats) -> None:
        """Publish, and once, after the first step that changed anything, check that the workers changed with it."""
        gate = self.config.gates.enabled and "probe_difference" not in self.outcome.gates and stats.optimiser_steps > 0
        before = self.service.rollouts.broadcast("probe") if gate else []
        self.outcome.version = self.service.publish()
        if not np.isnan(stats.on_policy_deviation):
            self.outcome.gates["on_policy_deviation"] = stats.on_policy_deviation
        if gate:
            self._probe_gate(before)

    def _probe_gate(self, before: list[F32]) -> None:
        learner, bound = self.service.learners.call("probe")[0], self.config.gates.probe_tolerance
        for worker, (old, new) in enumerate(zip(before, self.service.rollouts.broadcast("probe"), strict=True)):
            difference, change = float(np.abs(new - learner).max()), float(np.abs(new - old).max())
            self.outcome.gates["probe_difference"] = max(difference, self.outcome.gates.get("probe_difference", 0.0))
            if change == 0.0:
                raise GateError(f"gate weights arrive: rollout-{worker} computes the same velocity as before the first publish")
            if not difference <= bound:
                raise GateError(f"gate weights arrive: expected rollout-{worker}'s velocity within {bound:g} of the learner's, got {difference:.3g}")


def figures(harvest: Harvest, stats: StepStats, driver_bytes: int) -> dict[str, float]:
    """An iteration's figures under their names in metrics.jsonl (docs/run-folder.md lists them)."""
    leaves = np.stack([harvest.rewards[key] for key in sorted(harvest.rewards)])
    rows = sorted({row for row, _ in harvest.rewards})
    spread = np.mean([np.concatenate([harvest.rewards[key] for key in harvest.rewards if key[0] == row]).std() for row in rows])
    headers = [header for header, _ in harvest.segments]
    values = {"reward/total": float(leaves.mean()), "reward/spread": float(spread)}
    values |= {f"reward/{name}": float(harvest.part(name).mean()) for name in harvest.parts}
    values |= {f"time/{phase}": seconds for phase, seconds in harvest.seconds.items()}
    values |= {
        "tree/trees": len(leaves),
        "tree/leaves": leaves.size,
        "tree/forwards": sum(header.forwards for header in headers),
        "tree/edges": stats.edges_stochastic,
        "latents/bytes": sum(header.payload_bytes for header in headers),
        "driver/bytes": driver_bytes,
    }
    update = {
        "forwards": stats.forwards, "edges": stats.edges, "clip_fraction": stats.clip_fraction, "ratio_deviation": stats.ratio_deviation,
        "gradient_norm": stats.gradient_norm, "loss": stats.loss, "skipped_steps": stats.skipped_steps, "optimiser_steps": stats.optimiser_steps,
        "weight_entropy": stats.weight_entropy, "advantage_abs": stats.advantage_abs, "fetched_bytes": stats.fetched_bytes, "version": stats.version,
    }  # fmt: skip
    return values | {f"update/{name}": float(value) for name, value in update.items()}
