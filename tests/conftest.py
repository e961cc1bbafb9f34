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

FAST = {Path(__file__).parent / folder for folder in ("unit", "contracts")}
"""Folders whose tests start no Ray and carry out no run (test_house.py sees to it)."""


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `fast` what lies in those folders and is not slow."""
    for item in items:
        if FAST & set(item.path.parents) and not item.get_closest_marker("slow"):
            item.add_marker("fast")
