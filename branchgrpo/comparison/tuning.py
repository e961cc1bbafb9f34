"""Each method of a comparison is tried at the same points of a grid; the best goes into the
comparison.

The comparison's held-out prompts are out of sight: a part of the training prompts judges the
points, and the grid's runs train on the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np

from branchgrpo.comparison.common import differing, untrained, value_of
from branchgrpo.comparison.grid import Grid, Keys
from branchgrpo.comparison.points import Found, best_of, edges, ended, fail, outcome
from branchgrpo.config import trained_steps
from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.errors import Diverged, GateError, UserError, kind_and_line
from branchgrpo.files.whole import write_whole
from branchgrpo.report.terminal import Display
from branchgrpo.service import Service
from branchgrpo.training.carry_out import carry_out

Load = Callable[..., Config]
"""(method, seed, budget, keys) → the config of a run."""

RECORD = "grid.json"
PART = 4
"""Of the training prompts at most one in so many judges."""


class Tuning:
    """The runs of a grid, in a folder of their own, and what they found. Seeds are the outer loop
    and methods the inner one, so that they take turns."""

    def __init__(self, grid: Grid, methods: Sequence[str], load: Load):
        """Raises UserError for keys that no method has, and values that none takes."""
        self.grid = grid
        self.methods = list(methods)
        self.folder: Path | None = None  # the comparison's
        self._load = load
        self.judged = _judged(load(methods[0], 0, None, {}))
        self.without: dict[str, list[str]] = {}  # keys that a method does not have
        self.refused: dict[str, list[tuple[Keys, str]]] = {}  # points that it does not take
        self.points: dict[str, list[Keys]] = {}  # those that are tried
        for method in methods:
            self._lay_out(method)
        self._require_taken()

    def _lay_out(self, method: str) -> None:
        plain = self.config(method, {}, self.grid.run_seeds[0])
        tree = plain.model_dump(mode="json", by_alias=True)
        self.without[method] = [key for key in self.grid.values if not _has(tree, key)]
        self.points[method], self.refused[method] = [], []
        for keys in self.grid.points(key for key in self.grid.values if _has(tree, key)):
            try:
                self._load(method, 0, None, keys)  # it may be carried into the comparison
                tried = self.config(method, keys, self.grid.run_seeds[0])
            except UserError as error:
                self.refused[method].append((keys, str(error).splitlines()[0]))
                continue
            if key := differing(plain, tried):
                raise UserError(
                    f"--grid: expected keys that methods may differ in, got {key}, which is the "
                    "same for all"
                )
            self.points[method].append(keys)

    def _require_taken(self) -> None:
        taken = [keys.items() for points in self.points.values() for keys in points]
        for key, values in self.grid.values.items():
            for value in values:
                if any((key, value) in items for items in taken):
                    continue
                raise UserError(f"--grid: {self._why_not(key, value)}")

    def _why_not(self, key: str, value: str) -> str:
        """Why no method takes it."""
        for method in self.methods:
            try:
                self._load(method, 0, None, {key: value})
            except UserError as error:
                return str(error).splitlines()[0].removeprefix("--")
        return f"{key}: expected values that go with others of the grid, got {value} with none"

    def config(self, method: str, keys: Mapping[str, str], seed: int) -> Config:
        """Of a run of the grid."""
        # no checkpoints: what is cut off is done anew, and many runs would fill a disk
        own = {"checkpoint.every": "0", "checkpoint.every_minutes": "0", "run.name": method}
        return self._load(method, seed, self.grid.budget, own | self.judged | dict(keys))

    def check(self, check: Callable[[Config], None]) -> None:
        """Of every method a run by `check`, and of every point that it trains what it could."""
        for method, points in self.points.items():
            for keys in points:
                config = self.config(method, keys, self.grid.run_seeds[0])
                if keys is points[0]:
                    check(config)
                trained_steps.check(config)

    # runs

    @property
    def runs(self) -> list[tuple[str, int, int]]:
        """(method, point, seed) of all of them, in their order; points are counted from 1."""
        most = max(map(len, self.points.values()))
        return [
            (method, number, seed)
            for seed in self.grid.run_seeds
            for number in range(1, most + 1)
            for method in self.methods
            if number <= len(self.points[method])
        ]

    def left(self) -> list[tuple[str, int, int]]:
        """Those still to be done."""
        if self._recorded():
            return []
        return [run for run in self.runs if not ended(self.path(*run))]

    def path(self, method: str, number: int, seed: int) -> Path:
        """The run folder of one run."""
        assert self.folder is not None
        return self.folder / "grid" / f"{method}-point{number}-seed{seed}"

    def run(
        self, form: Callable[[Config], Service], display: Display, interrupted: Callable[[], bool]
    ) -> bool:
        """Do what is left, as Comparison.run does, and write grid.json. False when it was
        interrupted."""
        if self._recorded():
            return True
        todo, count = self.left(), len(self.runs)
        for place, (method, number, seed) in enumerate(todo, count - len(todo) + 1):
            if interrupted():
                return False
            keys = self.points[method][number - 1]
            config = self.config(method, keys, seed)
            title = f"grid, run {place} of {count}: {method}, {words(keys)}, seed {seed}"
            display.begin(title, config.run.iterations, config.run.max_minutes)
            service = form(config)
            folder = self.path(method, number, seed)
            if folder.exists():  # cut off
                rmtree(folder)
            folder.mkdir(parents=True)
            path = folder.parent / f"untrained-seed{seed}.json"
            before = untrained(path, config, service, display)
            try:
                summary = carry_out(
                    config,
                    service=service,
                    folder=folder,
                    display=display,
                    interrupted=interrupted,
                    before=before,
                )
            except (Diverged, GateError) as error:
                display.note(f"counts as worst: {kind_and_line(error)}")
                fail(folder, kind_and_line(error))
                service.recover(error)
                continue
            if summary["stopped_by"] == "interrupted":
                return False
        assert self.folder is not None
        write_whole(self.folder / RECORD, json.dumps(self.found(), indent=1) + "\n")
        return True

    # what came out

    def carried(self, method: str) -> Keys:
        """Keys of its best point; none while the grid is not done, where it has no point, and where
        all failed."""
        recorded = self._recorded()
        return dict(recorded["methods"][method]["carried"]) if recorded else {}

    def found(self) -> Found:
        """The contents of grid.json, as far as the grid is done."""
        if recorded := self._recorded():
            return recorded
        return {
            "finished": not self.left(),
            "keys": {key: list(values) for key, values in self.grid.values.items()},
            "seeds": self.grid.run_seeds,
            "budget": {
                "iterations": self.grid.budget.iterations,
                "seconds": self.grid.budget.seconds,
            },
            "held_out": self.judged["held_out"],
            "prompts": int(self.judged["evaluation.prompts"]),
            "methods": {method: self._of_method(method) for method in self.methods},
        }

    def _of_method(self, method: str) -> Found:
        points = [
            self._of_point(method, number) for number in range(1, len(self.points[method]) + 1)
        ]
        best = None if self.left() else best_of(points)
        return {
            "points": points,
            "best": best,
            "carried": self.points[method][best - 1] if best else {},
            "edges": edges(points, best) if best else {},
            "without": self.without[method],
            "refused": [{"keys": keys, "why": why} for keys, why in self.refused[method]],
        }

    def _of_point(self, method: str, number: int) -> Found:
        keys = self.points[method][number - 1]
        tree = self._load(method, 0, None, keys).model_dump(mode="json", by_alias=True)
        point: Found = {"keys": {key: value_of(tree, key) for key in keys}, "by_seed": []}
        point |= {"alarms": [], "failed": []}
        for seed in self.grid.run_seeds:
            folder = self.path(method, number, seed)
            if not ended(folder):
                continue
            score, alarms, failed = outcome(folder)
            point["by_seed"].append(score)
            point["alarms"] += [one for one in alarms if one not in point["alarms"]]
            point["failed"] += [failed] if failed else []
        whole = len(point["by_seed"]) == self.grid.seeds and not point["failed"]
        return point | {"score": float(np.mean(point["by_seed"])) if whole else None}

    def _recorded(self) -> Found:
        """grid.json of a grid that is done; empty where there is none."""
        if self.folder is None:
            return {}
        try:
            found: Found = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
            return found if found["finished"] else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def words(keys: Mapping[str, Any]) -> str:
    """Keys and values for people."""
    return ", ".join(f"{key} {value}" for key, value in keys.items())


def _judged(config: Config) -> Keys:
    """Keys by which a part of the training prompts judges, at the end of a run alone."""
    train, held_out = prompts.lists(config)
    apart = len(train) - int(prompts.shared(held_out, train).sum())
    options = config.evaluation
    count = min(options.prompts, options.prompts_between, apart // PART)
    if count < 2:
        raise UserError(
            f"--grid: expected at least {2 * PART} training prompts that are not held out, of "
            f"which one in {PART} judges, got {apart}"
        )
    found = {"held_out": f"{prompts.SPLIT}{count}:{config.held_out}", "evaluation.category": ""}
    found |= {f"evaluation.{key}": str(count) for key in ("prompts", "prompts_between")}
    found |= {f"evaluation.{key}": "0" for key in ("every", "every_seconds", "diversity")}
    return found | {"evaluation.pictures": "1"}


def _has(tree: Found, key: str) -> bool:
    try:
        value_of(tree, key)
    except LookupError:
        return False
    return True
