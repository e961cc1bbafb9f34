"""A Ray that does not come up: made slow or impossible for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_local_ray import ROOT, run

SLOW = """
import os, sys, time
if any(part.endswith("dashboard/agent.py") for part in sys.orig_argv) and os.environ["ONCE"]:
    try:
        open(os.environ["ONCE"], "x").close()
    except FileExistsError:
        pass
    else:
        time.sleep(20)  # Ray gives it 15
"""

START = """
import ray
from cluster import session
session.start("local", 128, dashboard=False, note=lambda text: print("told:", text))
print("resources", ray.cluster_resources()["object_store_memory"])
session.stop()
"""


def test_a_ray_that_cannot_start_is_one_line(tmp_path: Path) -> None:
    deep = tmp_path / "/".join(["a-folder-with-a-long-name"] * 6)  # a socket's path takes 107 bytes
    deep.mkdir(parents=True)
    done = run(
        "train",
        steps="--cluster.dashboard",
        seed="false",
        iterations="--run.folder",
        folder=str(tmp_path / "runs"),
        RAY_TMPDIR=str(deep),
    )
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert (
        done.stderr.startswith("error: Ray cannot start on this machine: OSError: ")
        and "107" in done.stderr
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_an_agent_that_is_slow_once_costs_a_try(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "ONCE": str(tmp_path / "once")}
    done = subprocess.run(
        [sys.executable, "-c", START],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told, resources = done.stdout.splitlines()
    assert (
        told.startswith("told: Ray did not start in ")
        and "trying again" in told
        and resources.startswith("resources ")
    )


@pytest.mark.slow
def test_a_ray_that_never_comes_up_is_one_line_that_names_its_logs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW.replace('"x"', '"w"'))
    code = START.replace(
        "import ray\n", "import ray\nfrom cluster import errors, local\nlocal.TRIES = 1\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "ONCE": str(tmp_path / "once")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    line = done.stderr.splitlines()[-1]
    assert (
        done.returncode == 1
        and line.startswith("cluster.errors.PlacementError: Ray did not start in ")
        and "timed out during startup" in line
    )
    (folder,) = [word.rstrip(":") for word in line.split() if word.endswith("/logs:")]
    assert "Timed out waiting for file" in (Path(folder) / "raylet.out").read_text()
