"""A small run whose processes are killed and stopped at random, beside the same run undisturbed:
every iteration must be equal, bit by bit.

`python tests/faults/chaos.py --seed 0 --strokes 20` starts a Ray of its own, prints JSON and exits
with 0 when all is equal. A stroke picks a role, one of its processes, an act and a moment, all by
seed: SIGKILL, SIGSTOP for good, or SIGSTOP for some seconds. A driver that dies is submitted again
with `--resume auto`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent)]

from support.small_cluster import Head, environment, head  # noqa: E402
from support.small_runs import ROOT, small  # noqa: E402
from support.small_trees import METHOD  # noqa: E402

from branchgrpo.report.sinks import read  # noqa: E402

ROLES = {
    "rollout": ("ray::RolloutWorker",),
    "reward": ("ray::RewardWorker",),
    "learner": ("ray::Learner", "ray::SharedLearner"),
}
"""How the processes of each begin their command line; the driver is known otherwise."""
LAYOUTS = {"separate": {}, "shared": {"cluster.layout": "shared", "rollout.workers": "1"}}
WEIGHTS = (6, 3, 5, 4)
"""How often each of those, and the driver, is struck."""
ACTS = ("kill", "stop", "pause")
HOW = ("elapsed", "time/", "service/", "checkpoint/", "driver/")
"""Beginnings of metrics that tell how a run went, not what it learned."""
PAUSE_SECONDS = 2.0
PROGRESS_SECONDS = 240.0
"""Within which a run must get on by an iteration, whatever befell it."""
STARTS = 6
"""Drivers in a row that may fail to start."""


@dataclass
class Stroke:
    """What was done to which process."""

    iteration: int  # done when it came
    role: str
    act: str
    process: int


class Driver:
    """A run that is submitted again whenever its driver dies."""

    def __init__(self, folder: Path, iterations: int, ray: Head, layout: str):
        self.folder, self.told = folder, folder / "told"
        folder.mkdir(parents=True)
        options = {
            "run.iterations": str(iterations),
            "run.folder": str(folder / "runs"),
            "cluster.address": ray.address,
            "cluster.dashboard": "false",
            "cluster.max_restarts": "200",
            "cluster.max_attempts": "50",
            "cluster.straggler_seconds": "2",
            "learner.ranks": "2",
            "learner.timeout_seconds": "45",
            "learner.stall_seconds": "3",
            "reward_workers.workers": "2",
            "checkpoint.every": "2",
            "checkpoint.keep": "1000",
            "rollout.prompts": "2",
        }
        keys = small() | options | LAYOUTS[layout]
        parts = [part for key, value in keys.items() for part in (f"--{key}", value)]
        own = ("--preset", METHOD, "--resume", "auto")
        self.command = [sys.executable, str(ROOT / "run.py"), "train", *own, *parts]
        self.begun, self.failed = 0, 0
        self.submit()

    def submit(self) -> None:
        """Once more."""
        with self.told.open("a") as file:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment(), stdout=file, stderr=file
            )
        self.begun += 1

    def records(self) -> list[dict[str, Any]]:
        """Of the iterations that are done."""
        return [
            record
            for log in self.folder.glob("runs/*/metrics.jsonl")
            for record in read(log)
            if "update/loss" in record
        ]

    def done(self) -> int:
        """Iterations."""
        return max((int(record["iteration"]) for record in self.records()), default=0)

    def ended(self) -> bool:
        """Is the run over? A driver that died before is submitted again. Raises RuntimeError when
        it cannot start any more."""
        code = self.process.poll()
        if code is None:
            self.failed *= self.done() < 1
        elif code:
            self.failed += code != -signal.SIGKILL
            if self.failed > STARTS:
                raise RuntimeError(f"driver exited with {code}: {self.told.read_text()[-2000:]}")
            time.sleep(1.0)
            self.submit()
        return code == 0

    def until(self, iteration: int) -> bool:
        """Wait until so many iterations are done, or the run is over; returns whether it goes
        on."""
        deadline = time.monotonic() + PROGRESS_SECONDS
        while not self.ended():
            if self.done() >= iteration:
                return True
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"iteration {iteration} was not reached in {PROGRESS_SECONDS:g} s: "
                    f"{self.told.read_text()[-3000:]}"
                )
            time.sleep(0.05)
        return False

    def result(self) -> dict[str, Any]:
        """What must be equal: learned metrics of each iteration, held-out scores, all that each
        checkpoint holds."""
        (folder,) = self.folder.glob("runs/*")
        found: dict[str, Any] = {"held-out": json.loads((folder / "held_out.json").read_text())}
        for record in self.records():
            kept = {name: value for name, value in record.items() if not name.startswith(HOW)}
            found[f"iteration {record['iteration']}"] = kept
        for path in sorted(folder.glob("checkpoints/fence-*-iteration-*")):
            iteration = int(path.name.split("-")[3])
            for file in path.glob("*.safetensors"):
                found[f"checkpoint {iteration} {file.name}"] = sha256(file.read_bytes()).hexdigest()
        return found


def processes(ray: Head, role: str) -> list[int]:
    """Those of a role that live, in this Ray, in the order of their start."""
    found = []
    for process in ray.processes():
        with suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_text().startswith(ROLES[role]):
                found.append(process)
    return sorted(found)


def strike(driver: Driver, ray: Head, chance: random.Random, stopped: set[int]) -> Stroke:
    """One stroke on a process that lives and is not stopped."""
    while True:
        (role,) = chance.choices([*ROLES, "driver"], WEIGHTS)
        act = chance.choice(ACTS)
        time.sleep(chance.uniform(0.0, 0.6))
        if driver.ended():
            raise RuntimeError("the run was over before its strokes were")
        those = (
            [driver.process.pid]
            if role == "driver"
            else [one for one in processes(ray, role) if one not in stopped]
        )
        if those:
            break
    process = chance.choice(those)
    # nobody submits again what has not ended
    act = "kill" if role == "driver" and act == "stop" else act
    done = driver.done()
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL if act == "kill" else signal.SIGSTOP)
        if act == "stop":
            stopped.add(process)
        if act == "pause":
            time.sleep(chance.uniform(0.5, PAUSE_SECONDS))
            os.kill(process, signal.SIGCONT)
    return Stroke(done, role, act, process)


@contextmanager
def run(folder: Path, iterations: int, ray: Head, layout: str) -> Iterator[Driver]:
    made = Driver(folder, iterations, ray, layout)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()


def different(name: str, one: Any, other: Any) -> str:
    """Where two results differ, in words."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        return f"{name}: {', '.join(keys)}"
    return (
        name
        if one and other
        else f"{name}: only in the {'undisturbed' if one else 'disturbed'} run"
    )


def play(seed: int, strokes: int, folder: Path, layout: str) -> dict[str, Any]:
    """Both runs, on one Ray; what was done and what differs."""
    iterations = strokes + 3
    chance = random.Random(seed)
    begun = time.monotonic()
    done, stopped = list[Stroke](), set[int]()
    with head() as ray:
        with run(folder / "undisturbed", iterations, ray, layout) as driver:
            driver.until(iterations + 1)
            wanted = driver.result()
        calm = time.monotonic() - begun
        with run(folder / "disturbed", iterations, ray, layout) as driver:
            for stroke in range(strokes):
                driver.until(stroke + 1)
                done.append(strike(driver, ray, chance, stopped))
                print(f"{time.monotonic() - begun:6.1f} s: {done[-1]}", file=sys.stderr, flush=True)
            while driver.until(iterations + 1):
                pass
            found, drivers = driver.result(), driver.begun
    differing = [
        different(name, wanted.get(name), found.get(name))
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    return {
        "layout": layout,
        "seed": seed,
        "strokes": [asdict(one) for one in done],
        "by_role": dict(Counter(f"{one.role} {one.act}" for one in done)),
        "iterations": sum(name.startswith("iteration") for name in wanted),
        "checkpoints": len({name.split()[1] for name in wanted if name.startswith("checkpoint")}),
        "drivers": drivers,
        "compared": len(wanted),
        "differing": differing,
        "seconds": {
            "undisturbed": round(calm, 1),
            "disturbed": round(time.monotonic() - begun - calm, 1),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strokes", type=int, default=20)
    parser.add_argument("--layout", choices=LAYOUTS, default="separate")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        found = play(given.seed, given.strokes, Path(folder), given.layout)
    print(json.dumps(found, indent=1))
    return 1 if found["differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
