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
from branchgrpo.methods.adaptive import SplitChooser
from branchgrpo.methods.branch import BranchMethod
from branchgrpo.plan import ode_plan
from branchgrpo.service import Service
from branchgrpo.types import EVALUATION, F32, U8, BranchPlan, StepStats

DIVERSITY_PICTURES = 4
"""Pictures of a prompt whose distances are measured."""

Scores = dict[str, F32]
"""Scores [P] of held-out prompts: `total`, which training maximises, and those reported, by reward/score."""


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
    seconds: float = 0.0  # spent in iterations
    stopped_by: str = "iterations"  # or "max_minutes", "interrupted"
    gates: dict[str, float] = field(default_factory=dict)  # what each start-up gate measured


class Trainer:
    """Trains one config on one service. `interrupted` is asked between iterations."""

    def __init__(self, config: Config, service: Service, run: str, display: Display, interrupted: Callable[[], bool]):
        self.config, self.service, self.display, self.interrupted = config, service, display, interrupted
        self.train_prompts, self.held_out = prompts.lists(config)
        self.forest = Forest(config, service, run)
        self.outcome = Outcome()
        self.told: set[str] = set()
        self.method = config.method
        self.chooser: SplitChooser | None = None
        if isinstance(config.method, BranchMethod) and config.method.adapt_every:
            self.chooser = SplitChooser(config.method, config.sampling.steps, config.run.seed)

    def train(self, log: Log) -> Outcome:
        """The main loop, until the last iteration, the time limit or an interruption."""
        config, outcome = self.config, self.outcome
        while True:
            started, iteration = perf_counter(), outcome.iterations
            plan = self.method.plan(iteration, config.sampling.steps, config.sampling.shift, config.run.seed)
            chosen = prompts.deal(len(self.train_prompts), config.rollout.prompts, iteration, config.run.seed)
            texts = [self.train_prompts[index] for index in chosen]
            harvest = self.forest.grow(plan, iteration, outcome.version, chosen, texts, config.rollout.trees_per_prompt * plan.chains)
            grown = perf_counter()
            self._tell(harvest, len(texts))
            stats = self.service.learners.call("update", plan, iteration, harvest.segments, harvest.conditioning, harvest.scores)[0]
            updated = perf_counter()
            self._publish(stats)
            outcome.iterations += 1
            ended = perf_counter()
            outcome.seconds += ended - started
            times = {"time/update": updated - grown, "time/publish": ended - updated, "time/iteration": ended - started, "time/training": outcome.seconds}
            values = figures(harvest, stats, self.service.driver_bytes()) | times | self._adapt(plan, harvest)
            ending = self._ending()
            if not ending:  # behind the last iteration there is the whole check
                values |= self._check(ended - started)
            log.write(outcome.iterations, values)
            self.display.update(outcome.iterations, values)
            if ending:
                outcome.stopped_by = ending
                break
        return outcome

    def _tell(self, harvest: Harvest, prompts: int) -> None:
        """Say once what does not end a run, and is easily overlooked: long prompts, dropped groups. Each iteration's count is in the metrics."""
        told = {}
        if harvest.truncated:
            told["truncated"] = (
                f"{harvest.truncated} of {prompts} prompts are longer than the text encoders take and were cut (said once; prompts/truncated counts)"
            )
        if harvest.dropped:
            row, reason = next(iter(harvest.dropped.items()))
            told["dropped"] = f"{len(harvest.dropped)} of {prompts} prompt groups dropped (said once; reward/dropped_groups counts): row {row}: {reason}"
        for kind, text in told.items():
            if kind not in self.told:
                self.told.add(kind)
                self.display.note(text)

    def _ending(self) -> str:
        """Why training ends behind the present iteration; empty when it goes on."""
        run, outcome = self.config.run, self.outcome
        if outcome.iterations == run.iterations:
            return "iterations"
        if run.max_minutes and outcome.seconds > 60 * run.max_minutes:
            return "max_minutes"
        return "interrupted" if self.interrupted() else ""

    def evaluate(self, count: int, pictures: int = 0) -> tuple[Scores, U8 | None]:
        """Scores of the first `count` held-out prompts under the ODE sampler, always from the same noise, and the
        pixels [pictures, F, H, W, 3] of the first ones."""
        harvest, found = self._sample(count, 1, pictures)
        scores = {"total": harvest.total()} | {name: harvest.part(name) for name in harvest.parts}
        return scores, np.stack([found[row, 0] for row in range(pictures)]) if pictures else None

    def diversity(self) -> F32:
        """[prompts] mean distance between a prompt's pictures: root mean square over pixels, on a scale of 0 … 1."""
        count = self.config.evaluation.diversity
        _, found = self._sample(count, DIVERSITY_PICTURES, count)
        return np.array([pairwise_distance(np.stack([found[row, tree] for tree in range(DIVERSITY_PICTURES)])) for row in range(count)], np.float32)

    def _sample(self, count: int, trees: int, pictures: int) -> tuple[Harvest, dict[tuple[int, int], U8]]:
        """`trees` pictures of each of the first `count` held-out prompts; pixels [F, H, W, 3] of the first `pictures` prompts."""
        texts, options = self.held_out[:count], self.config.evaluation
        averaged = options.weights == "ema" and self.outcome.version > 0
        if averaged:
            self.service.publish("ema")
        plan = ode_plan(options.steps or self.config.sampling.steps, self.config.sampling.shift)
        harvest = self.forest.grow(plan, EVALUATION, self.outcome.version, list(range(len(texts))), texts, trees)
        found: dict[tuple[int, int], U8] = {}
        for subtrees, reference in harvest.media:
            if any(subtree.prompt < pictures for subtree in subtrees):
                pixels = self.service.rollouts.fetch(reference).pixels
                found |= {(subtree.prompt, subtree.key.tree): picture for subtree, picture in zip(subtrees, pixels, strict=True)}
        if averaged:
            self.service.publish()
        self.service.driver_bytes()  # evaluation's messages are not the training iteration's
        return harvest, found

    def _adapt(self, plan: BranchPlan, harvest: Harvest) -> dict[str, float]:
        if not self.chooser:
            return {}
        self.chooser.observe(plan, np.stack([harvest.rewards[key] for key in sorted(harvest.rewards)]))
        self.method = self.chooser.method
        return {f"splits/{index}": float(step) for index, step in enumerate(plan.splits)}

    def _check(self, seconds: float) -> dict[str, float]:
        """The held-out check, when it is due behind an iteration that took `seconds`."""
        options, iteration, total = self.config.evaluation, self.outcome.iterations, self.outcome.seconds
        due = options.every > 0 and iteration % options.every == 0
        due |= options.every_seconds > 0 and total // options.every_seconds > (total - seconds) // options.every_seconds
        if not due:
            return {}
        scores, _ = self.evaluate(min(options.prompts_between, options.prompts))
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


def pairwise_distance(pixels: U8) -> float:
    """Mean over pairs of pictures [n, …] of their root mean square difference, 0 … 1."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float64) / 255.0
    pairs = [np.sqrt(np.square(one - other).mean()) for index, one in enumerate(flat) for other in flat[index + 1 :]]
    return float(np.mean(pairs))


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
        "tree/edges_all": stats.edges_all,
        "latents/bytes": sum(header.payload_bytes for header in headers),
        "driver/bytes": driver_bytes,
        "prompts/truncated": harvest.truncated,
        "reward/retries": harvest.retries,
        "reward/dropped_groups": len(harvest.dropped),
    }
    names = (
        "forwards",
        "edges",
        "clip_fraction",
        "kl",
        "learning_rate",
        "ratio_deviation",
        "gradient_norm",
        "loss",
        "skipped_steps",
        "optimiser_steps",
        "weight_entropy",
        "advantage_abs",
        "fetched_bytes",
        "version",
    )
    return values | {f"update/{name}": float(getattr(stats, name)) for name in names}
