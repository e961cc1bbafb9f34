"""The tool that made the embedded model still loads; it runs for an hour, so no test runs it."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from tools import tiny_flux


@pytest.mark.parametrize("name", [one.name for one in pkgutil.iter_modules(tiny_flux.__path__)])
def test_each_module_loads_with_all_that_it_imports(name: str) -> None:
    importlib.import_module(f"tools.tiny_flux.{name}")
