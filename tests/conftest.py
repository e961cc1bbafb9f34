"""Before any test imports Ray, or anything that takes long to compile; the fast lane; and how tests
are shared out among processes."""

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
CORES = len(os.sched_getaffinity(0))
if WORKERS > 1:  # before torch is loaded; programs that tests start have it too
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // WORKERS)))

# Ray gives its workers a niceness of 15: beside another process of tests they would stand still.
os.environ.setdefault("RAY_worker_niceness", "0")

from support.turns import Turns  # noqa: E402

import cluster  # noqa: E402

__all__ = ["cluster"]

# Some container images set it. Each actor of each run would then compile torch, diffusers and
# transformers once more.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

FAST_FOLDER = Path(__file__).parent / "unit"
"""Its tests start no Ray and carry out no run; test_house.py sees to it."""
GPU_FOLDER = Path(__file__).parent / "gpu"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The fast lane reads no other folder: each process of tests would import what they need."""
    own = Path(__file__).parent
    others = own / "contracts", own / "integration", own / "faults"
    return True if config.option.markexpr == "fast" and collection_path in others else None


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `fast` what lies in that folder, is not slow or heavy, builds no networks, does not
    wait; and as `gpu` what lies in tests/gpu."""
    for item in items:
        if GPU_FOLDER in item.path.parents:
            item.add_marker("gpu")
        other = any(map(item.get_closest_marker, ("slow", "heavy", "networks", "waits")))
        if FAST_FOLDER in item.path.parents and not other:
            item.add_marker("fast")


WORKER_BYTES = 6 << 30
"""What a process of tests and the Ray that it starts may need at their worst."""
MOST_WORKERS = 6
"""Files are not cut: more would wait for the longest."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes of `-n auto`: as many as cores and memory carry. None where files or folders are
    named, whose output then comes as it is printed: `-n 2` asks for two."""
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        config.option.dist = "no"
        return 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(CORES, memory // WORKER_BYTES, MOST_WORKERS))


class OnePerFile(LoadFileScheduling):
    """Tests of a file go to one process, as they share runs and a Ray; and all that use a GPU, as
    they share its memory."""

    def _split_scope(self, nodeid: str) -> str:
        return "gpu" if nodeid.startswith("tests/gpu/") else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OnePerFile:
    return OnePerFile(config, log)


TURNS = Turns(Path(__file__), Path(__file__).parent) if WORKERS > 1 else None


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the time limit
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, Any, Any]:
    """In turns, where several processes run tests: see the mark `alone`."""
    if not TURNS:
        return (yield)
    TURNS.begin(alone=item.get_closest_marker("alone") is not None)
    try:
        return (yield)
    finally:
        TURNS.end(goes_on=nextitem is not None and nextitem.path == item.path)
