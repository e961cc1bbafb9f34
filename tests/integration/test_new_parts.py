"""What `branchgrpo new` writes passes the test that it writes beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from branchgrpo.app.main import main
from branchgrpo.app.new import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_passes_its_own_test(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["branchgrpo", "new", kind, "own_part"])
    assert main() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own_part.py", "test_own_part.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own_part.py"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout
    said = capsys.readouterr().out.splitlines()
    member = "own_part" if kind == "reward" else "OwnPart"
    assert len(said) == 2 and f"--{KINDS[kind]}.name ./own_part.py:{member}" in said[1]
