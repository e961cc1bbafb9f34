"""Drivers of runs that begin, are cut off, and live in another process, shared by the tests of run
folders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.runs.folder import Driver, driving
from support.small_trees import quickstart

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from branchgrpo.runs.lease import Lease
Lease(Path(sys.argv[1]), 1)
print('held', flush=True)
time.sleep(600)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has claimed number 1."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def begun(loaded: Config, resume: str = "", ended: str = "failed") -> tuple[Driver, list[str]]:
    """A run that came as far as writing its config, and what was said."""
    said: list[str] = []
    with driving(loaded, resume, said.append) as driver:
        (driver.folder / "config.yaml").write_text(configs.dump(loaded))
        driver.ended = ended
    return driver, said


def cut_off(loaded: Config) -> Path:
    """Its driver was killed."""
    folder = begun(loaded)[0].folder
    (folder / "drivers" / "000001.progress.json").unlink()
    claim = folder / "drivers" / "000001.json"
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"began": 1}))
    return folder


def config(folder: Path, name: str = "flux", seed: int = 0, **options: str) -> Config:
    """The quick start with run folders in `folder`; section__key for section.key."""
    return quickstart(
        {"run.folder": str(folder), "run.name": name, "run.seed": str(seed)}
        | {key.replace("__", "."): value for key, value in options.items()}
    )
