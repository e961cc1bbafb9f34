"""What pyproject.toml puts into the wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TOOL = PROJECT["tool"]["setuptools"]


def test_every_package_is_listed() -> None:
    found = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for top in ("actors", "branchgrpo", "cluster")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert found | set(TOOL["package-dir"]) == set(TOOL["packages"])
    assert TOOL["packages"] == sorted(TOOL["packages"])


def test_every_other_file_is_data_of_a_package() -> None:
    kept = set[Path]()
    for package, patterns in TOOL["package-data"].items():
        folder = ROOT / TOOL["package-dir"].get(package, package.replace(".", "/"))
        for pattern in patterns:
            kept |= set(folder.glob(pattern))
    for top in ("actors", "branchgrpo", "cluster", "configs"):
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert path in kept, path.relative_to(ROOT)


def test_the_version_is_that_of_the_code() -> None:
    from branchgrpo import __version__

    assert TOOL["dynamic"]["version"] == {"attr": "branchgrpo.__version__"}
    assert len(__version__.split(".")) == 3
