"""What the runs of a comparison have in common: the keys that must be the same, the untrained
model's scores, and when a run is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from branchgrpo.config.schema import Config
from branchgrpo.files.whole import write_whole
from branchgrpo.service import Display, Service
from branchgrpo.training.carry_out import measure
from branchgrpo.training.evaluate import Scores


def shared(config: Config) -> dict[str, Any]:
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


def differing(config: Config, other: Config) -> str:
    """The first of those keys that is not the same; empty where all are."""
    theirs = shared(other)
    return next((key for key, value in shared(config).items() if value != theirs[key]), "")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


def value_of(tree: Any, dotted: str) -> Any:
    """What nested dicts and lists have at a dotted key. Raises LookupError where there is none."""
    for part in dotted.split("."):
        if isinstance(tree, list) and part.isdecimal():
            tree = tree[int(part)]
        elif isinstance(tree, dict):
            tree = tree[part]
        else:
            raise LookupError(dotted)
    return tree


def untrained(path: Path, config: Config, service: Service, display: Display) -> Scores:
    """Scores of the untrained model, measured once a seed, since evaluation noise depends on it,
    and kept at `path`."""
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


def done(folder: Path) -> bool:
    """Has the run of this folder come to its end?"""
    summary = folder / "summary.json"
    if not summary.is_file():
        return False
    try:
        return bool(json.loads(summary.read_text(encoding="utf-8"))["stopped_by"] != "interrupted")
    except (ValueError, KeyError):  # cut off while it was written
        return False
