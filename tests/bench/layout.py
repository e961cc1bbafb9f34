"""What it costs that roles own their processors, and what turns on the same ones save. Prints JSON.

uv run python tests/bench/layout.py [--measured] [--simulated]

measured: the quick start on this machine, separate and shared, taking turns: seconds an iteration,
and, in runs of their own, since sampling slows what it looks at, peak memory (PSS) of all
processes. simulated: idle GPUs on a node of eight, where the loop,
service, pools and rank group are the real ones and actors sleep (layout_actors.py has the seconds).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from memory import peak_of

ROOT = Path(__file__).parents[2]
WARM_UP, ITERATIONS = 2, 8
RUN = [
    *("train", "--run.max_minutes", "0", "--run.export", "none"),
    *("--evaluation.prompts", "32", "--evaluation.pictures", "1", "--evaluation.every", "0"),
]
LAYOUTS = {
    "separate": [],
    "shared": [
        *("--cluster.layout", "shared", "--rollout.workers", "0"),
        *("--learner.ranks", "2", "--learner.cpus", "0.75", "--learner.threads", "1"),
    ],
}
"""As configs/quickstart.yaml has it, and two ranks of one thread each that also grow trees."""
STORE_MB = 256


def measured(pairs: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    peaks: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    processes = dict[str, int]()
    for _ in range(pairs):
        for name, options in LAYOUTS.items():
            seconds[name] += timed(options)
            print(name, median(seconds[name][-ITERATIONS:]), file=sys.stderr, flush=True)
        for name, options in LAYOUTS.items():
            with tempfile.TemporaryDirectory() as folder:
                found = peak_of(arguments(options, WARM_UP, folder))
            if found["exit_code"]:
                raise RuntimeError(f"{name}: the run ended with {found['exit_code']}")
            peaks[name].append(found["peak_gb"])
            processes[name] = found["processes"]
            print(name, found, file=sys.stderr, flush=True)
    middle = {name: median(values) for name, values in seconds.items()}
    memory = {name: median(values) for name, values in peaks.items()}
    return {
        "seconds_ratio": middle["shared"] / middle["separate"],
        "memory_ratio": memory["shared"] / memory["separate"],
        "memory_gb": memory,
        "s an iteration": middle,
        "each": seconds,
        "peak GB": peaks,
        "processes": processes,
    }


def arguments(options: list[str], iterations: int, folder: str) -> list[str]:
    """Of run.py."""
    return [*RUN, "--run.iterations", str(iterations), *options, "--run.folder", folder]


def timed(options: list[str]) -> list[float]:
    """Seconds of each of ITERATIONS, after WARM_UP of them."""
    with tempfile.TemporaryDirectory() as folder:
        run = arguments(options, WARM_UP + ITERATIONS, folder)
        subprocess.run([sys.executable, str(ROOT / "run.py"), *run], stdout=sys.stderr, check=True)
        (log,) = Path(folder).glob("*/metrics.jsonl")
        records = [json.loads(line) for line in log.read_text().splitlines()]
    took = [float(row["time/iteration"]) for row in records if "time/iteration" in row]
    assert len(took) == WARM_UP + ITERATIONS
    return took[WARM_UP:]


def simulated() -> dict[str, Any]:
    folders = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    sys.path[1:1] = folders
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)  # actors import these modules too
    from cluster import session

    session.start("local", STORE_MB, dashboard=False)
    try:
        from layout_simulated import simulated

        return simulated()
    finally:
        session.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measured", action="store_true", help="that part alone")
    parser.add_argument("--simulated", action="store_true", help="that part alone")
    parser.add_argument(
        "--pairs",
        type=int,
        default=2,
        help="times each layout is run for its seconds, and again for its memory",
    )
    found = parser.parse_args()
    every = found.measured == found.simulated
    rows: dict[str, Any] = {"cores": os.cpu_count(), "load before": os.getloadavg()[0]}
    began = perf_counter()
    if every or found.simulated:
        rows |= simulated()
    if every or found.measured:
        rows |= measured(found.pairs)
    rows |= {"load after": os.getloadavg()[0], "seconds": perf_counter() - began}
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
