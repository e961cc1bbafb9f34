"""Requests and replies between driver and workers that get lost: every task's result counts
once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = """
import json, sys
from pathlib import Path
from cluster import session
session.start("local", 128, dashboard=False)
from support.small_actors import pool, results, Worker
made = pool(Path(sys.argv[1]), 2, max_attempts=9, max_restarts=99)
found = results(made, [(Worker.task, key) for key in range(40)])
print(json.dumps([found, made.restarts, made.workers.created]))
made.stop()
session.stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["req", "resp"])
def test_lost_requests_and_replies(tmp_path: Path, lost: str) -> None:
    """A sixth of all calls fails, six times; a call whose reply is lost has run, and is repeated
    all the same."""
    failures = {
        f"{kind}_failure_prob": 100 // 6 if kind == lost else 0
        for kind in ("req", "resp", "in_flight")
    } | {"num_failures": 6}
    tests = Path(__file__).parents[1]
    environment = os.environ | {
        "RAY_testing_rpc_failure": json.dumps({"CoreWorkerService.grpc_client.PushTask": failures}),
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found, restarts, made = json.loads(done.stdout.splitlines()[-1])
    assert sorted(key for key, _, _ in found) == list(range(40))
    assert restarts and set(restarts) <= {"unavailable", "died"}
    assert 2 + sum(restarts.values()) == made
