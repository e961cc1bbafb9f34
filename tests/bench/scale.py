"""Cost against size: the real loop, service, pools and rank group on one machine, whose actors
sleep. What passes through the driver is real, and what never does is not there. Prints JSON.

uv run python tests/bench/scale.py [--rows 8x64x2 64x512x16 256x512x64] [--picture scale.png]

A row is WORKERSxPROMPTSxRANKS, with a reward worker for each eight that grow. Each actor is a
process of 50 MB or so, and two of them start in a second: the last row takes 20 GB and ten minutes.

    driver_ms_a_task    CPU milliseconds of the driver's process (Ray's threads in it, too)
    kb_a_task           through the driver
    driver_mb           its resident memory at the end
    worker_s, rank_s    seconds beyond a usual iteration when one of them is killed, until the
                        iteration after is done: process, imports and joining, without a model
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
STORE_MB = 1024
ITERATIONS = 4
"""Of which the first, which starts what is lazy, is left out."""
AFTER = 0.3
"""Seconds into an iteration at which something is killed."""


class Counted:
    """Tasks of a service's pools, and bytes through the driver."""

    def __init__(self, service: Any):
        self.tasks = self.bytes = 0
        for pool in service.pools:
            pool.submit = self._counting(pool.submit)
        take = service.byte_counter.take

        def taken() -> int:
            found: int = take()
            self.bytes += found
            return found

        service.byte_counter.take = taken

    def _counting(self, submit: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: Any, **options: Any) -> None:
            self.tasks += 1
            submit(*arguments, **options)

        return counted


def measured(workers: int, prompts: int, ranks: int) -> dict[str, Any]:
    """A row. The service is composed as always."""
    import layout_simulated
    import scale_actors

    from branchgrpo.config import load as configs
    from branchgrpo.training.recovery import Recovery
    from branchgrpo.training.run import Run
    from branchgrpo.training.state import TrainState

    layout_simulated.actors.Rank = scale_actors.Rank
    options = layout_simulated.NODE | {
        "run.iterations": "1000",
        "rollout.prompts": str(prompts),
        "rollout.workers": str(workers),
        "reward_workers.workers": str(max(1, workers // 8)),
        "learner.ranks": str(ranks),
        "learner.max_ranks": str(ranks),
    }
    config = configs.load(layout_simulated.QUICKSTART, options, "branchgrpo-mix")
    kept, began = layout_simulated.Kept(), time.perf_counter()
    with layout_simulated.sleeping(config) as service:
        started = time.perf_counter() - began
        counted = Counted(service)
        run = Run(
            config,
            service,
            name="scale",
            log=kept,  # type: ignore[arg-type]
            display=kept,  # type: ignore[arg-type]
            hooks=(),
        )
        state = TrainState(begun=True)
        recovery = Recovery(run, state)

        def iteration() -> float:
            """Seconds until one is done."""
            since, until = time.perf_counter(), state.iteration + 1
            while state.iteration < until:
                before = state.recoveries
                with recovery:
                    layout_simulated.step(run, state)
                if state.recoveries > before:  # it went back to the beginning
                    until = state.iteration + 1
            return time.perf_counter() - since

        iteration()
        counted.tasks, counted.bytes, cpu = 0, 0, time.process_time()
        usual = median(iteration() for _ in range(ITERATIONS - 1))
        cpu = time.process_time() - cpu
        tasks, sent = counted.tasks, counted.bytes
        memory = psutil.Process().memory_info().rss
        victim = next(one for one in service.rollout_pool.workers if one.place)
        lost = {"worker_s": hit(victim.place.process, iteration) - usual}
        lost["rank_s"] = hit(service.learner_group.places[0].process, iteration) - usual
    return {
        "workers": workers,
        "prompts": prompts,
        "ranks": ranks,
        "tasks_an_iteration": tasks / (ITERATIONS - 1),
        "driver_ms_a_task": 1000 * cpu / tasks,
        "kb_a_task": sent / tasks / 1000,
        "driver_mb": memory / 1e6,
        "iteration_s": usual,
        "started_s": started,
        **lost,
    }


def hit(process: int, iteration: Callable[[], float]) -> float:
    """Seconds of an iteration in which a process is killed, and the next one where the loss is
    found only then."""
    timer = threading.Timer(AFTER, os.kill, (process, signal.SIGKILL))
    timer.start()
    took = iteration()
    timer.join()
    return took


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Each figure by the number of workers."""
    from matplotlib.figure import Figure

    names = ("driver_ms_a_task", "kb_a_task", "driver_mb", "worker_s", "rank_s")
    figure = Figure(figsize=(3 * len(names), 2.8), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names)), names, strict=True):
        axis.plot([row["workers"] for row in rows], [row[name] for row in rows], marker="o")
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("rollout workers")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = ["8x64x2", "64x512x16", "256x512x64"]
    parser.add_argument("--rows", nargs="+", default=sizes, metavar="WORKERSxPROMPTSxRANKS")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    folders = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    sys.path[1:1] = folders
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)  # actors import these modules too
    os.environ.setdefault("LAYOUT_SCALE", "0.005")
    from cluster import session

    session.start("local", STORE_MB, dashboard=False)
    try:
        rows = [measured(*map(int, row.split("x"))) for row in options.rows]
    finally:
        session.stop()
    if options.picture:
        draw(rows, options.picture)
    print(json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
