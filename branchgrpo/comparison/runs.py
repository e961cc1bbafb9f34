"""Several methods on the same prompts, seeds, reward and evaluation, one after another; goes on
where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from shutil import rmtree
from typing import Any

from branchgrpo.comparison.budget import Budget
from branchgrpo.comparison.common import differing, done, flat, untrained, value_of
from branchgrpo.comparison.grid import Grid
from branchgrpo.comparison.tuning import Tuning
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.data.records import row_of
from branchgrpo.errors import UserError
from branchgrpo.files.whole import write_whole
from branchgrpo.report.terminal import Display
from branchgrpo.runs.places import root
from branchgrpo.service import Service
from branchgrpo.training.carry_out import carry_out

TAKEN = "run.seed", "run.name", "run.iterations", "run.max_minutes"
"""Keys that each run sets itself."""


class Comparison:
    """The runs of a comparison and where they are kept. Seeds are the outer loop, so that methods
    take turns. change: of each config, after it was loaded. grid: what each method is tuned with
    before."""

    def __init__(
        self,
        base: Path,
        methods: list[str],
        seeds: int,
        budget: Budget,
        overrides: dict[str, str],
        folder: Path | None = None,
        gain: float | None = None,
        change: Callable[[Config], Config] = lambda config: config,
        grid: Grid | None = None,
    ):
        if gain is not None and not 0 < gain < math.inf:
            raise UserError(f"--gain: expected a gain of the held-out reward above 0, got {gain:g}")
        self.gain = gain
        # what a run is called → a preset's name or file
        self.presets = {Path(method).name.removesuffix(".yaml"): method for method in methods}
        if len(self.presets) != len(methods):
            raise UserError(f"compare: expected different methods, got {' '.join(methods)}")
        _require_free(overrides, grid)
        self.base, self.budget, self.change = base, budget, change
        self.overrides = {"run.export": "none", "evaluation.diversity": "32"} | overrides
        first = {name: self.load(name) for name in self.presets}
        for name, config in first.items():
            if key := differing(config, next(iter(first.values()))):
                raise UserError(
                    f"compare: expected the same {key} for all methods, got another with {name}"
                )
        # the same for all, whatever they train with
        steps = max(one.evaluation_steps for one in first.values())
        self.overrides["evaluation.steps"] = str(steps)
        self.methods, self.seeds = list(self.presets), list(range(seeds))
        self.tuning = Tuning(grid, self.methods, self.load) if grid else None
        self.configs = self._configs()
        one = next(iter(self.configs.values()))
        digest = hashlib.sha256(
            "\n".join(one.model_dump_json() for one in self.configs.values()).encode()
        )
        for sample in chain(*prompts.lists(one)):
            row = row_of(sample)  # without more than a prompt, that alone
            text = json.dumps(row, sort_keys=True) if len(row) > 1 else sample.prompt
            digest.update(b"\n" + text.encode())
        if grid:
            digest.update(f"\ngrid {grid.request()}".encode())
        self.digest = digest.hexdigest()
        self.folder = folder or root(one) / f"compare-{self.digest[:8]}"
        if self.tuning:
            self.tuning.folder = self.folder

    def load(
        self,
        method: str,
        seed: int = 0,
        budget: Budget | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> Config:
        """The config of a run. budget: another than the comparison's. keys: on top of all."""
        own = (budget or self.budget).overrides() | self.overrides
        own |= {"run.seed": str(seed), "run.name": method} | dict(keys or {})
        return self.change(configs.load(self.base, own, self.presets[method]))

    def _configs(self) -> dict[tuple[str, int], Config]:
        """Of each (method, seed), with what the grid found for the method, once it is done."""
        found = {}
        for seed in self.seeds:
            for name in self.methods:
                keys = self.tuning.carried(name) if self.tuning else None
                found[name, seed] = self.load(name, seed, keys=keys)
        return found

    def open(self) -> list[tuple[str, int]]:
        """Make or reopen the folder; which runs are still to be done. Raises UserError when it
        holds another comparison."""
        request = self.folder / "request.json"
        if self.folder.exists() and not (
            request.is_file() or (self.folder.is_dir() and not any(self.folder.iterdir()))
        ):
            raise UserError(
                f"compare: expected a comparison, or nothing, at {self.folder}, found "
                "something else; give another --folder"
            )
        if request.is_file():
            try:
                known = json.loads(request.read_text(encoding="utf-8"))
                digest, gain = known["digest"], known.get("gain")
            except (ValueError, KeyError, TypeError, AttributeError):
                digest, gain = None, None
            if digest != self.digest:
                raise UserError(
                    f"compare: {self.folder} holds another comparison; expected the same "
                    "methods, seeds, budget and keys, or another --folder"
                )
            if gain != self.gain:
                begun = f"--gain {gain:g}" if gain is not None else "no --gain"
                raise UserError(
                    f"compare: {self.folder} was begun with {begun}; the gain whose time "
                    f"counts is named before the runs, got {self.gain}"
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(
                request,
                json.dumps(
                    {
                        "digest": self.digest,
                        "methods": self.methods,
                        "seeds": self.seeds,
                        "gain": self.gain,
                    },
                    indent=1,
                )
                + "\n",
            )
        if self.tuning:
            self.configs = self._configs()
        return [run for run in self.configs if not self.done(*run)]

    def run(
        self, form: Callable[[Config], Service], display: Display, interrupted: Callable[[], bool]
    ) -> bool:
        """Do what is left; `form` gives the service, set up anew for a config. False when it was
        interrupted."""
        todo = self.open()
        if self.tuning:
            if not self.tuning.run(form, display, interrupted):
                return False
            self.configs = self._configs()
        for number, (method, seed) in enumerate(todo):
            if interrupted():
                return False
            config = self.configs[method, seed]
            title = (
                f"run {len(self.configs) - len(todo) + number + 1} of {len(self.configs)}: "
                f"{method}, seed {seed}"
            )
            display.begin(title, config.run.iterations, config.run.max_minutes)
            service = form(config)
            before = untrained(self.untrained_path(seed), config, service, display)
            folder = self.path(method, seed)
            if folder.exists():  # cut off: it has no complete summary.json
                rmtree(folder)
            summary = carry_out(
                config,
                service=service,
                folder=folder,
                display=display,
                interrupted=interrupted,
                before=before,
            )
            if summary["stopped_by"] == "interrupted":
                return False
        return True

    def path(self, method: str, seed: int) -> Path:
        """The run folder of one run."""
        return self.folder / f"{method}-seed{seed}"

    def untrained_path(self, seed: int) -> Path:
        """Where the untrained model's row is kept."""
        return self.folder / f"untrained-seed{seed}.json"

    def settings(self) -> dict[str, dict[str, Any]]:
        """Of each method its keys, dotted, that are not the same for all; what the method itself is
        left out."""
        found = {}
        tuned = self.tuning.grid.values if self.tuning else {}
        for method in self.methods:
            tree = self.configs[method, self.seeds[0]].model_dump(mode="json", by_alias=True)
            found[method] = flat(
                {key: value for key, value in tree.items() if key not in configs.METHOD_SECTIONS}
            )
            found[method] |= {
                key: value_of(tree, key)
                for key in tuned
                if self.tuning and key not in self.tuning.without[method]
            }
            del found[method]["run.name"], found[method]["run.label"]
        keys = [
            key
            for key in dict.fromkeys(chain(*found.values()))
            if len({repr(one.get(key)) for one in found.values()}) > 1
        ]
        return {method: {key: one.get(key) for key in keys} for method, one in found.items()}

    def complete(self, method: str) -> list[int]:
        """Seeds whose run is done."""
        return [seed for seed in self.seeds if self.done(method, seed)]

    def done(self, method: str, seed: int) -> bool:
        return done(self.path(method, seed))


def _require_free(overrides: dict[str, str], grid: Grid | None) -> None:
    """Raise UserError for keys that a comparison, or its grid, sets itself."""
    if taken := set(TAKEN) & overrides.keys():
        raise UserError(
            f"compare: expected --seeds and --budget instead of --{min(taken)}, which "
            "each run sets itself"
        )
    for key in grid.values if grid else ():
        if key.partition(".")[0] == "run":
            raise UserError(f"--grid: expected keys of methods, got {key}, which each run sets")
        if key in overrides:
            raise UserError(f"--grid: {key}: expected it in the grid alone, got --{key} as well")
