"""Held-out reward by iteration of presets at several optimiser steps per rollout, in one process
without Ray. Prints JSON.

uv run python tests/bench/optimiser_steps.py [--iterations 60] [--seeds 2] [--presets
branchgrpo-flash branchgrpo-antithetic]

The rate falls with the root of the number of steps, as one of AdamW is about as long whatever the
gradient: 1e-4, 7.1e-5, 5e-5.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.in_process import Service  # noqa: E402

from branchgrpo.config import load as configs  # noqa: E402
from branchgrpo.report.sinks import read  # noqa: E402
from branchgrpo.report.terminal import Display  # noqa: E402
from branchgrpo.training.carry_out import carry_out  # noqa: E402

RATE = 1e-4


def run(preset: str, steps: int, seed: int, iterations: int, folder: Path) -> dict[str, object]:
    """One run: its rate, and (iteration, reward on 128 held-out prompts) of every check."""
    rate = RATE / math.sqrt(steps)
    keys = {
        "run.seed": str(seed),
        "run.iterations": str(iterations),
        "run.max_minutes": "0",
        "run.export": "none",
        "learner.optimiser_steps": str(steps),
        "learner.learning_rate": f"{rate:.3g}",
        "learner.schedule": "constant",
        "learner.warmup": "10",
        "learner.threads": "1",
        "reward_workers.threads": "1",
        "rollout.workers": "1",
        "rollout.threads": "1",
        "evaluation.prompts": "128",
        "evaluation.prompts_between": "128",
        "evaluation.every": "20",
        "gates.enabled": "false",
        "checkpoint.every_minutes": "0",
    }
    config = configs.load(ROOT / "configs" / "quickstart.yaml", keys, preset)
    carry_out(
        config,
        service=Service(config),
        folder=folder,
        display=Display("bench", iterations, config.metric, Console(file=io.StringIO())),
        interrupted=lambda: False,
    )
    records = read(folder / "metrics.jsonl")
    checks = [
        [record["iteration"], round(record["held_out/total"], 4)]
        for record in records
        if "held_out/total" in record
    ]
    ratios = [
        record["update/ratio_deviation"] for record in records if "update/ratio_deviation" in record
    ]
    clipped = [
        record["update/clip_fraction"] for record in records if "update/clip_fraction" in record
    ]
    return {
        "preset": preset,
        "optimiser_steps": steps,
        "learning_rate": config.learner.learning_rate,
        "seed": seed,
        "held_out_reward": checks,
        "mean_ratio_deviation": sum(ratios) / len(ratios),
        "mean_clip_fraction": sum(clipped) / len(clipped),
    }


def main() -> None:
    """Seeds are the outer loop, so that what is there after an interruption compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--presets", nargs="+", default=["branchgrpo-flash", "branchgrpo-antithetic"]
    )
    found = parser.parse_args()
    for seed in range(found.seeds):
        for preset in found.presets:
            for steps in (1, 2, 4):
                with TemporaryDirectory() as folder:
                    print(
                        json.dumps(
                            run(
                                preset,
                                steps=steps,
                                seed=seed,
                                iterations=found.iterations,
                                folder=Path(folder) / "run",
                            )
                        ),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
