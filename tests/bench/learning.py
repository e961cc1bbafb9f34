"""Held-out scores by iteration of variants of the quick start, counted in iterations, so that a
busy machine does not change them: every run is one process with one thread, without Ray. Prints a
JSON line a run.

uv run python tests/bench/learning.py VARIANTS.yaml [--only NAME …] [--seeds 0 1] [--iterations 200]
[--jobs 2] [--out FILE]

VARIANTS.yaml: name → config keys, with dots, and `preset`; --iterations holds where there is no
`run.iterations`. Runs that FILE holds are not made again.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

FIXED = {
    "run.max_minutes": "0",
    "run.export": "none",
    "learner.schedule": "constant",
    "learner.threads": "1",
    "reward_workers.threads": "1",
    "rollout.workers": "1",
    "rollout.threads": "1",
    "evaluation.prompts": "256",
    "evaluation.prompts_between": "64",
    "evaluation.diversity": "32",
    "evaluation.pictures": "32",
    "gates.enabled": "false",
    "checkpoint.every_minutes": "0",
}
MEANS = ("reward/std", "reward/flat_groups", "tree/effective_samples", "update/grad_norm")
SECONDS = (
    "time/iteration",
    "time/encode",
    "time/grow",
    "time/score",
    "time/update",
    "time/publish",
)


def run(name: str, keys: dict[str, str], seed: int, iterations: int) -> dict[str, Any]:
    """One run: the scores of every check, means over its last fifth, and the summary's scores."""
    from rich.console import Console
    from support.in_process import Service

    from branchgrpo.config import load as configs
    from branchgrpo.report.sinks import read
    from branchgrpo.report.terminal import Display
    from branchgrpo.training.carry_out import carry_out

    preset, iterations = keys.get("preset"), int(keys.get("run.iterations", iterations))
    own = {key: value for key, value in keys.items() if key not in ("preset", "run.iterations")}
    length = {"run.iterations": str(iterations), "evaluation.every": str(max(1, iterations // 5))}
    config = configs.load(
        ROOT / "configs" / "quickstart.yaml", FIXED | length | {"run.seed": str(seed)} | own, preset
    )
    with TemporaryDirectory() as folder:
        summary = carry_out(
            config,
            service=Service(config),
            folder=Path(folder) / "run",
            display=Display("bench", iterations, config.metric, Console(file=io.StringIO())),
            interrupted=lambda: False,
        )
        records = read(Path(folder) / "run" / "metrics.jsonl")
    checks = [
        {"iteration": record["iteration"]}
        | {
            key.removeprefix("held_out/"): round(value, 4)
            for key, value in record.items()
            if key.startswith("held_out/")
        }
        for record in records
        if "held_out/total" in record
    ]
    trained = [record for record in records if "time/iteration" in record]
    late = trained[-max(1, iterations // 5) :]

    def means(names: tuple[str, ...], rows: list[Any]) -> dict[str, float]:
        found = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
        return {name: round(sum(all_) / len(all_), 4) for name, all_ in found.items() if all_}

    return {
        "variant": name,
        "keys": keys,
        "seed": seed,
        "iterations": summary["iterations"],
        "held_out": summary["held_out"],
        "diversity": summary["diversity"],
        "checks": checks,
        "late": means(MEANS, late),
        "seconds": means(SECONDS, trained),
        "forwards_per_leaf": summary["forwards_per_leaf"],
        "alarms": len(summary["alarms"]),
    }


def main() -> None:
    """Seeds are the outer loop, so that what is there after an interruption compares."""
    import yaml

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", type=Path)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    variants = {
        name: {key: str(value) for key, value in keys.items()}
        for name, keys in yaml.safe_load(chosen.variants.read_text(encoding="utf-8")).items()
    }
    known = set()
    if chosen.out and chosen.out.is_file():
        rows = [json.loads(line) for line in chosen.out.read_text(encoding="utf-8").splitlines()]
        known = {(row["variant"], row["seed"]) for row in rows}
    wanted = [
        (name, variants[name], seed, chosen.iterations)
        for seed in chosen.seeds
        for name in chosen.only or variants
        if (name, seed) not in known
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(run, *one) for one in wanted]):
            line = json.dumps(done.result())
            print(line, flush=True)
            if chosen.out:
                with chosen.out.open("a", encoding="utf-8") as out:
                    out.write(line + "\n")


if __name__ == "__main__":
    main()
