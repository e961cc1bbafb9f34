"""A submitted job: it trains, says how it ended, and when it is stopped it saves and leaves nothing
after."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.small_cluster import RAY, Head, environment, head
from support.small_runs import ROOT
from test_drivers import arguments

from branchgrpo.report.sinks import read

GRACE = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}
ACTORS = (
    "ray::rollout",
    "ray::reward",
    "ray::learner",
    "ray::Rollout",
    "ray::Reward",
    "ray::Learner",
)


def job(cluster: Head, *options: str) -> subprocess.CompletedProcess[str]:
    """`ray job …`, as a person types it in the project's folder."""
    shell = environment() | {"RAY_API_SERVER_ADDRESS": cluster.dashboard}
    return subprocess.run(
        [str(RAY), "job", *options],
        cwd=ROOT,
        env=shell,
        capture_output=True,
        text=True,
        timeout=240,
    )


def submitted(
    cluster: Head, name: str, *command: str, wait: bool
) -> subprocess.CompletedProcess[str]:
    how = [] if wait else ["--no-wait"]
    kept = [
        "--submission-id",
        name,
        "--metadata-json",
        '{"team": "small"}',
        "--runtime-env-json",
        json.dumps(GRACE),
    ]
    return job(
        cluster,
        "submit",
        *how,
        *kept,
        "--working-dir",
        ".",
        "--",
        sys.executable,
        "run.py",
        *command,
    )


@pytest.mark.slow
def test_a_job_that_is_stopped_saves_and_leaves_nothing(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with head(dashboard=True) as cluster:
        wrong = submitted(cluster, "wrong", "train", "--rollout.wrokers", "3", wait=True)
        assert (
            wrong.returncode == 1
            and "error: " in wrong.stdout
            and "rollout.wrokers" in wrong.stdout
            and "Traceback" not in wrong.stdout
        )
        assert "FAILED" in job(cluster, "status", "wrong").stdout.upper()

        begun = submitted(
            cluster,
            "small",
            *arguments(runs, **{"run.iterations": "1000", "checkpoint.every": "1000"})[2:],
            wait=False,
        )
        assert begun.returncode == 0, begun.stdout + begun.stderr
        deadline = time.monotonic() + 300
        while not any(
            record["iteration"] >= 2 for log in runs.glob("*/metrics.jsonl") for record in read(log)
        ):
            assert time.monotonic() < deadline, job(cluster, "logs", "small").stdout
            time.sleep(0.2)
        assert [process for name in ACTORS for process in cluster.processes(name)]
        stopped = job(cluster, "stop", "small")
        logs = job(cluster, "logs", "small").stdout
        assert (
            stopped.returncode == 0 and "STOPPED" in job(cluster, "status", "small").stdout.upper()
        ), stopped.stdout + stopped.stderr + logs
        (folder,) = runs.iterdir()
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["stopped_by"] == "interrupted" and summary["iterations"] >= 2
        assert list(
            (folder / "checkpoints").glob(f"fence-*-iteration-{summary['iterations']:08d}-*")
        ), logs
        assert f"{summary['iterations']}/1000 reward" in logs  # progress as plain lines
        deadline = time.monotonic() + 120
        while left := [process for name in ACTORS for process in cluster.processes(name)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
