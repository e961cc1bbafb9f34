"""The batch script for SLURM, really run, with `srun` and `scontrol` of a few lines: two nodes on
loopback, cut by the signal before the time limit, queued again, going on to the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.small_cluster import Head, environment
from support.small_runs import ROOT, small

from branchgrpo.report.sinks import read

SCRIPT = ROOT / "cluster" / "deploy" / "branchgrpo.sbatch"
SRUN = """#!/usr/bin/env bash
echo "srun $*" >>"$SLURM_LOG"
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$SLURM_LOG"
[[ $1 == show ]] && tr ' ' '\\n' <<<"$3"
true
"""
ITERATIONS = 12


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    found = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_bash_can_parse_it_and_slurm_can_read_its_options() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    # SLURM reads none after the first command
    assert options and all(line.startswith("#") for line in lines[: options[-1]])
    said = dict(lines[number].removeprefix("#SBATCH --").partition("=")[::2] for number in options)
    # the script's grace ends before SLURM's, or the job would time out and not be queued again
    assert said["signal"].startswith("B:USR1@")
    (grace,) = (line for line in lines if line.startswith("grace="))
    assert int(grace.partition(":-")[2].partition("}")[0]) < int(said["signal"].rpartition("@")[2])
    assert "requeue" in said and said["open-mode"] == "append"


def free_job() -> int:
    """A job's number whose ports are free."""
    for job in range(os.getpid(), os.getpid() + 100):
        first = 20000 + job % 1000 * 3
        try:
            for port in range(first, first + 3):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return job
    raise RuntimeError("no free ports")


class Queue:
    """One job of SLURM's on two nodes, which both are this machine."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.log, self.told = folder / "runs", folder / "log", folder / "told"
        self.token = folder / "home" / "auth_token"
        self.job = free_job()
        programs = folder / "bin"
        programs.mkdir()
        for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.environment = environment(token="") | {
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "SLURM_LOG": str(self.log),
            "SLURM_JOB_ID": str(self.job),
            "SLURM_JOB_NODELIST": "127.0.0.1 127.0.0.1",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_CPUS_PER_TASK": "1",
            "BRANCHGRPO_RUNS": str(self.runs),
            "BRANCHGRPO_RAY_START": "--node-ip-address=127.0.0.1 --include-log-monitor=false "
            f"--object-store-memory={128 << 20}",
        }

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """The script, as SLURM starts it. Nothing that it started may be left after it."""
        with self.told.open("ab") as file:
            script = subprocess.Popen(
                ["bash", str(SCRIPT), *arguments],
                cwd=self.runs.parent,
                env=self.environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        session = Head("", "", script, self.told)
        try:
            yield script
            assert script.wait(300) == 0, self.told.read_text()
            deadline = time.monotonic() + 60
            while session.processes():
                assert time.monotonic() < deadline, session.processes()
                time.sleep(0.1)
        finally:
            session.end()
            shutil.rmtree(f"/tmp/ray-{self.job}", ignore_errors=True)

    def called(self) -> list[str]:
        """What was asked of SLURM."""
        return self.log.read_text().splitlines()


def iterations(runs: Path) -> list[int]:
    logs = runs.glob("*/metrics.jsonl")
    return [record["iteration"] for log in logs for record in read(log) if "update/loss" in record]


@pytest.mark.slow
def test_a_job_saves_before_its_time_is_over_and_goes_on_when_it_is_queued_again(
    tmp_path: Path,
) -> None:
    # of two nodes with one CPU each all is needed
    sizes = {"rollout.cpus": "0.75", "run.iterations": str(ITERATIONS)}
    # an iteration takes some seconds, as `branchgrpo stop` does until it is heard
    sizes |= {"model.pause": "0.1"}
    keys = small() | sizes | {"cluster.dashboard": "false"}
    arguments = [part for key, value in keys.items() for part in (f"--{key}", value)]
    queue = Queue(tmp_path)
    with queue.started("quickstart", *arguments) as script:
        deadline = time.monotonic() + 300
        while not iterations(queue.runs):
            assert time.monotonic() < deadline and script.poll() is None, queue.told.read_text()
            time.sleep(0.05)
        script.send_signal(signal.SIGUSR1)
    assert queue.called()[-1] == f"scontrol requeue {queue.job}", queue.told.read_text()
    (folder,) = queue.runs.iterdir()
    assert json.loads((folder / "summary.json").read_text())["stopped_by"] == "interrupted"
    assert len(iterations(queue.runs)) < ITERATIONS

    # a token that nobody else can read, and no command line says
    assert queue.token.stat().st_mode & 0o777 == 0o600 and len(queue.token.read_text()) == 64
    assert queue.token.read_text() not in queue.log.read_text() + queue.told.read_text()

    with queue.started("quickstart", *arguments):
        pass
    assert iterations(queue.runs) == list(range(1, ITERATIONS + 1)), queue.told.read_text()
    assert list(queue.runs.iterdir()) == [folder]
    assert json.loads((folder / "summary.json").read_text())["stopped_by"] == "iterations"
    calls = queue.called()
    assert sum(call.startswith("scontrol requeue") for call in calls) == 1
    assert sum("ray start --address=" in call for call in calls) == 2

    # queued again all the same, as after a node's failure at the very end
    with queue.started("quickstart", *arguments):
        pass
    assert queue.called() == calls and "nothing to do" in queue.told.read_text()
