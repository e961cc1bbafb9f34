"""Before any test imports Ray, or anything that takes long to compile; and the fast lane."""

import os
import sys
from pathlib import Path

import pytest

import cluster

__all__ = ["cluster"]

# Some container images set it. Each actor of each run would then compile torch, diffusers and
# transformers once more.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

FAST_FOLDERS = {Path(__file__).parent / folder for folder in ("unit", "contracts")}
"""Their tests start no Ray and carry out no run; test_house.py sees to it."""


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `fast` what lies in those folders, is not slow, builds no networks, does not wait."""
    for item in items:
        other = any(item.get_closest_marker(name) for name in ("slow", "networks", "waits"))
        if FAST_FOLDERS & set(item.path.parents) and not other:
            item.add_marker("fast")
