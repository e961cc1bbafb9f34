"""Several methods on the same prompts, seeds, reward and evaluation, one after another; goes on
where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np

from branchgrpo.comparison.budget import Budget
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.data.records import row_of
from branchgrpo.errors import UserError
from branchgrpo.files.whole import write_whole
from branchgrpo.report.terminal import Display
from branchgrpo.runs.places import root
from branchgrpo.service import Service
from branchgrpo.training.carry_out import carry_out, measure
from branchgrpo.training.evaluate import Scores


def _shared(config: Config) -> dict[str, Any]:
    """What must be the same for all methods: anything else would not compare them, or not fit the
    actors that are there."""
    roles = {
        "rollout": config.rollout,
        "reward_workers": config.reward_workers,
        "learner": config.learner,
    }
    found = {
        f"{name}.{key}": getattr(role, key)
        for name, role in roles.items()
        for key in ("cpus", "gpus", "threads")
    }
    found |= {
        "rollout.workers": config.rollout.workers,
        "reward_workers.workers": config.reward_workers.workers,
        "learner.ranks": config.learner.ranks,
    }
    found |= {f"evaluation.{key}": getattr(config.evaluation, key) for key in ("height", "width")}
    found |= {
        f"model.{key}": value
        for key, value in config.model
        if key == "lora_path" or not key.startswith("lora_")
    }
    # a mean of its weights is a method's own choice
    found |= {f"evaluation.{key}": value for key, value in config.evaluation if key != "weights"}
    return (
        found
        | {key: getattr(config, key) for key in ("prompts", "held_out", "rewards", "cluster")}
        | {"shift": config.sampling.shift}
    )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


class Comparison:
    """The runs of a comparison and where they are kept. Seeds are the outer loop, so that methods
    take turns. change: of each config, after it was loaded."""

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
    ):
        if gain is not None and not 0 < gain < math.inf:
            raise UserError(f"--gain: expected a gain of the held-out reward above 0, got {gain:g}")
        self.gain = gain
        # what a run is called → a preset's name or file
        presets = {Path(method).name.removesuffix(".yaml"): method for method in methods}
        if len(presets) != len(methods):
            raise UserError(f"compare: expected different methods, got {' '.join(methods)}")
        if (
            taken := {"run.seed", "run.name", "run.iterations", "run.max_minutes"}
            & overrides.keys()
        ):
            raise UserError(
                f"compare: expected --seeds and --budget instead of --{min(taken)}, which "
                "each run sets itself"
            )
        fixed = (
            budget.overrides() | {"run.export": "none", "evaluation.diversity": "32"} | overrides
        )
        first = {
            name: change(configs.load(base, fixed, preset)) for name, preset in presets.items()
        }
        shared = {name: _shared(one) for name, one in first.items()}
        for name, parts in shared.items():
            for key, value in parts.items():
                if value != next(iter(shared.values()))[key]:
                    raise UserError(
                        f"compare: expected the same {key} for all methods, got another with {name}"
                    )
        # the same for all, whatever they train with
        steps = max(one.evaluation_steps for one in first.values())
        fixed["evaluation.steps"] = str(steps)
        self.configs: dict[tuple[str, int], Config] = {}
        for seed in range(seeds):
            for name, preset in presets.items():
                own = fixed | {"run.seed": str(seed), "run.name": name}
                self.configs[name, seed] = change(configs.load(base, own, preset))
        self.methods, self.seeds = list(presets), list(range(seeds))
        one = next(iter(self.configs.values()))
        digest = hashlib.sha256(
            "\n".join(one.model_dump_json() for one in self.configs.values()).encode()
        )
        for sample in chain(*prompts.lists(one)):
            row = row_of(sample)  # without more than a prompt, that alone
            text = json.dumps(row, sort_keys=True) if len(row) > 1 else sample.prompt
            digest.update(b"\n" + text.encode())
        self.digest = digest.hexdigest()
        self.folder = folder or root(one) / f"compare-{self.digest[:8]}"

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
        return [run for run in self.configs if not self.done(*run)]

    def run(
        self, form: Callable[[Config], Service], display: Display, interrupted: Callable[[], bool]
    ) -> bool:
        """Do what is left; `form` gives the service, set up anew for a config. False when it was
        interrupted."""
        todo = self.open()
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
            before = self._untrained(config, service, display)
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
        for method in self.methods:
            tree = self.configs[method, self.seeds[0]].model_dump(mode="json", by_alias=True)
            found[method] = _flat(
                {key: value for key, value in tree.items() if key not in configs.METHOD_SECTIONS}
            )
            del found[method]["run.name"]
        keys = [
            key
            for key in next(iter(found.values()))
            if len({repr(one.get(key)) for one in found.values()}) > 1
        ]
        return {method: {key: one.get(key) for key in keys} for method, one in found.items()}

    def complete(self, method: str) -> list[int]:
        """Seeds whose run is done."""
        return [seed for seed in self.seeds if self.done(method, seed)]

    def done(self, method: str, seed: int) -> bool:
        summary = self.path(method, seed) / "summary.json"
        if not summary.is_file():
            return False
        try:
            return bool(
                json.loads(summary.read_text(encoding="utf-8"))["stopped_by"] != "interrupted"
            )
        except (ValueError, KeyError):  # cut off while it was written
            return False

    def _untrained(self, config: Config, service: Service, display: Display) -> Scores:
        """Scores of the untrained model, measured once a seed: evaluation noise depends on it."""
        path = self.untrained_path(config.run.seed)
        if path.is_file():
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return {name: np.array(values, np.float32) for name, values in kept["scores"].items()}
        row, scores = measure(config, service, display, path.with_suffix(".png"))
        write_whole(
            path,
            json.dumps(row | {"scores": {name: values.tolist() for name, values in scores.items()}})
            + "\n",
        )
        return scores
