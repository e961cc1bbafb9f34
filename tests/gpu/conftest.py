"""The tests of a card: `uv run pytest tests/gpu`. Where there is none they are left out, in one
line; BRANCHGRPO_TEST_DEVICE=cpu lets them check the CPU in its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.on_device import Small, small_families

DEVICE = os.environ.get("BRANCHGRPO_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "")
NO_CARD = (
    "tests/gpu left out: no CUDA device here; BRANCHGRPO_TEST_DEVICE=cpu checks the CPU by them"
)

if not DEVICE:
    collect_ignore_glob = ["test_*.py"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line, not one a test."""
    if not DEVICE:
        terminalreporter.write_line(NO_CARD)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """That nothing else was asked for is no failure."""
    if not DEVICE and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(scope="session")
def device() -> str:
    """The torch device that is checked."""
    return DEVICE


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Float32 products and convolutions are float32's: differences are of devices alone."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Small]:
    """Every family, small."""
    return small_families(Path(tmp_path_factory.mktemp("families")))


@pytest.fixture(scope="session")
def roles(device: str) -> dict[str, str]:
    """Overrides that put every actor on the device."""
    share = "0.25" if device.startswith("cuda") else "0"
    return {f"{role}.gpus": share for role in ("rollout", "reward_workers", "learner")}
