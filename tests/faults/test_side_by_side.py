"""Runs of one name beside one another: two seeds are started at once, twice, with --resume auto,
and one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.small_cluster import environment, head
from support.small_runs import ROOT, small

from branchgrpo.report.sinks import read

SECONDS = 300
SEEDS = range(2)
LITTLE = {
    "run.iterations": "2",
    "sampling.steps": "4",
    "method.splits": "[0, 1]",
    "method.leaves": "4",
    "rollout.workers": "1",
    "rollout.prompts": "1",
    "evaluation.prompts": "2",
    "evaluation.prompts_between": "2",
    "evaluation.pictures": "1",
    "evaluation.steps": "2",
    "checkpoint.every": "1",
    "rollout.cpus": "0.1",
    "reward_workers.cpus": "0.1",
    "learner.cpus": "0.1",
    "gates.enabled": "false",
    "rewards": "[{name: jpeg}]",
}


def until(there: Callable[[], Any], told: Callable[[], str]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := there()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_two_seeds_at_once_twice_and_one_is_killed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with ExitStack() as stack, head() as cluster:
        options = (
            small()
            | LITTLE
            | {"run.folder": str(runs), "run.name": "flux", "cluster.address": cluster.address}
        )

        def start(seed: int, name: str) -> subprocess.Popen[bytes]:
            keys = [
                part
                for key, value in (options | {"run.seed": str(seed)}).items()
                for part in (f"--{key}", value)
            ]
            file = stack.enter_context((tmp_path / name).open("wb"))
            command = [sys.executable, str(ROOT / "run.py"), "train", "--resume", "auto", *keys]
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment() | {"OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=file,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        def told() -> str:
            return "\n".join(
                f"{file.name}: {file.read_text()}" for file in sorted(tmp_path.glob("*-*"))
            )

        def claims() -> list[Path]:
            return sorted(runs.glob("*/run.json"))

        first = {seed: start(seed, f"first-{seed}") for seed in SEEDS}
        until(lambda: len(claims()) == 2, told)
        second = {seed: start(seed, f"second-{seed}") for seed in SEEDS}
        until(lambda: len(claims()) == 4, told)
        (cut,) = [path.parent for path in claims() if _claimed_by(path.parent) == first[1].pid]
        until(
            lambda: (
                (cut / "metrics.jsonl").exists()
                and any(record["iteration"] for record in read(cut / "metrics.jsonl"))
            ),
            told,
        )
        os.kill(first[1].pid, signal.SIGKILL)
        first[1].wait()
        assert not (cut / "summary.json").exists()
        first[1] = start(1, "again-1")
        drivers = (*first.values(), *second.values())
        assert [process.wait(SECONDS) for process in drivers] == [0] * 4, told()

    folders = sorted(runs.iterdir())
    notices = [json.loads((folder / "run.json").read_text()) for folder in folders]
    assert len(folders) == len({notice["started"] for notice in notices}) == 4
    assert sorted(notice["seed"] for notice in notices) == [0, 0, 1, 1]
    for folder in folders:
        records = read(folder / "metrics.jsonl")
        assert [record["iteration"] for record in records] == [0, 1, 2, 2], folder
        assert json.loads((folder / "summary.json").read_text())["stopped_by"] == "iterations"
        assert len(list((folder / "drivers").glob("??????.json"))) == (2 if folder == cut else 1)
    for seed in SEEDS:  # those of one seed drew the same, each in its own folder
        one, other = [
            read(folder / "metrics.jsonl")
            for folder in folders
            if json.loads((folder / "run.json").read_text())["seed"] == seed
        ]
        assert [record.get("reward/total") for record in one] == [
            record.get("reward/total") for record in other
        ]
        assert "this run is live, it is left alone" in (
            tmp_path / f"second-{seed}"
        ).read_text().replace("\n", " ")
    assert f"going on in {cut}" in (tmp_path / "again-1").read_text()


def _claimed_by(folder: Path) -> int:
    return int(json.loads((folder / "drivers" / "000001.json").read_text())["pid"])
