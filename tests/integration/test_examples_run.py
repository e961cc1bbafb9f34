"""Every worked example runs as it stands, shrunk by keys of its own command line. They share one
Ray."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.small_cluster import environment, head

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SMALL = {
    "run.iterations": "2",
    "rollout.workers": "1",
    "rollout.prompts": "1",
    "evaluation.pictures": "2",
    "evaluation.prompts": "4",
    "evaluation.prompts_between": "2",
}
RUN = {
    "01_quickstart.py": "ocr/likelihood",
    "02_my_reward.py": "background/score",
    "03_my_method.py": "ocr/likelihood",
    "04_my_model.py": "colour",
}
"""Which score each prints, before → after."""
LEARNS = {"run.iterations": "40", "rollout.prompts": "4", "evaluation.prompts": "6"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with head() as ray:
        yield ray.address


def run(name: str, address: str, folder: Path, **keys: str) -> str:
    """What it prints; it runs elsewhere than in the repository."""
    arguments = [f"{key}={value}" for key, value in (SMALL | {"run.folder": "runs"} | keys).items()]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        env=environment() | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_examples_are_run_here() -> None:
    others = {"branchgrpo_in_200_lines.py"}  # tests/contracts
    assert {file.name for file in EXAMPLES.glob("*.py")} == RUN.keys() | others


@pytest.mark.parametrize("name", [name for name in RUN if name != "04_my_model.py"])
def test_it_runs(name: str, address: str, tmp_path: Path) -> None:
    told = run(name, address, tmp_path)
    assert re.search(rf"^{RUN[name]}: \d\.\d{{3}} → \d\.\d{{3}}$", told, re.MULTILINE)
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "weights" / "model_index.json").is_file()
    assert (folder / "38.png").is_file() == (name == "01_quickstart.py")


def test_the_model_of_ones_own_learns_its_colours(address: str, tmp_path: Path) -> None:
    told = run("04_my_model.py", address, tmp_path, **LEARNS)
    (found,) = re.findall(r"^colour: (\S+) → (\S+)$", told, re.MULTILINE)
    before, after = map(float, found)
    assert before < 0.6 and after > before + 0.2
    (folder,) = (tmp_path / "runs").glob("painter-*")
    assert (folder / "weights" / "painter" / "weights.safetensors").is_file()
