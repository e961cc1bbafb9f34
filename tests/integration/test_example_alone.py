"""examples/branchgrpo_in_200_lines.py as a program of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parents[2] / "examples" / "branchgrpo_in_200_lines.py"


def test_it_runs_without_ray() -> None:
    program = (
        f"import runpy, sys; sys.argv = ['x', '--iterations', '1']; "
        f"runpy.run_path({str(FILE)!r}, run_name='__main__'); assert 'ray' not in sys.modules"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        cwd=FILE.parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"1: reward 0\.\d{3}, read right \d+%\n", done.stdout)
