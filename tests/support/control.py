"""What a person starts beside a run: programs of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


COMMAND = """
import json, sys
from cluster import controller
from cluster.connect import boards
from cluster.errors import PlacementError
for name, arguments in json.loads(sys.argv[1]):
    try:
        watched = controller.find(boards(""), arguments.pop(0))
        if name == "wait":
            note = lambda text: print(json.dumps(text), flush=True)
            controller.wait(watched, *arguments, note=note)
        else:
            print(json.dumps(getattr(watched, name)(*arguments)), flush=True)
    except PlacementError as error:
        print(json.dumps(["error", str(error)]), flush=True)
"""


DOCTOR = """
import json, sys
from branchgrpo.app import checks
from cluster.doctor import diagnosis as doctor
folder = sys.argv[1]
def machine(files, cuda):
    if "default_worker" in sys.argv[0]:
        found = checks.machine(files, cuda)
        return found | {"packages": found["packages"] | {"torch": "0.0.1"}}
    return checks.machine(files, cuda)
needs = doctor.Needs(
    machine=machine if sys.argv[2] == "old" else checks.machine,
    object_store_mb=64,
    published_bytes=1 << 20,
    files=["/sys/no/model_index.json"],
    folders={"good": folder, "closed": "/sys/kernel"},
)
print(json.dumps(doctor.listing(doctor.diagnose("auto", needs))))
"""


JOB = """
import json, sys, time
from cluster import session
from cluster.admission import admitted, until_placed
from cluster.errors import PlacementError
from cluster.byte_counter import DriverByteCounter
from cluster.retry_policy import RetryPolicy
from cluster.worker_pool import WorkerPool
class Worker:
    def __init__(self, index):
        pass
    def ready(self):
        pass
name, address, cpus, wait, work = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
session.start(address, 128, dashboard=False)
say = lambda what, text="": print(json.dumps([what, text, time.time()]), flush=True)
retry_policy = RetryPolicy(task_timeout_seconds=300.0)
pools = [
    WorkerPool(Worker, role, 1, {"num_cpus": cpus}, (), DriverByteCounter(), retry_policy)
    for role in ("rollout", "reward")
]
try:
    wanted = {pool.role: [{"CPU": cpus}] for pool in pools}
    with admitted(wanted, wait, name, lambda text: say("told", text)):
        until_placed(pools)
    for pool in pools:
        pool.wait_ready()
    say("begun")
    time.sleep(work)
    say("done")
except PlacementError as error:
    say("error", str(error))
"""


def begin(address: str, code: str, *arguments: str, **changed: str) -> subprocess.Popen[str]:
    """Another process, as a person starts it in another terminal."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    environment |= {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT), **changed}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answers(process: subprocess.Popen[str]) -> list[Any]:
    """Its lines of JSON."""
    out, trouble = process.communicate(timeout=300)
    assert process.returncode == 0, trouble
    return [json.loads(line) for line in out.splitlines()]
