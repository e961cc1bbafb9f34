"""How commands end: exit codes, a line for each mistake, and pipes that nobody reads."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.small_trees import QUICKSTART

from branchgrpo.app import exits
from branchgrpo.errors import UserError

ROOT = QUICKSTART.parents[1]


@pytest.mark.parametrize(
    ("arguments", "code"),
    # argparse itself passes over a closed pipe
    [(["config", "--schema"], exits.UNREAD), (["config"], exits.UNREAD), (["--help"], 0)],
)
def test_output_that_nobody_reads_ends_without_a_trace(arguments: list[str], code: int) -> None:
    """As `run.py config --schema | head -0`: the reader is gone before anything is written."""
    running = subprocess.Popen(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    running.stdout.close()
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (code, "")


def test_another_broken_pipe_keeps_its_trace() -> None:
    def broken() -> int:
        raise BrokenPipeError("a server's")

    with pytest.raises(BrokenPipeError):
        exits.exit_code(broken)


def test_a_line_for_each_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    def bad() -> int:
        raise UserError("one\ntwo, got 'sftp://me:hunter2@host/x'")

    assert exits.exit_code(bad) == 2
    assert (
        capsys.readouterr().err == "error: one\nerror: two, got 'sftp://me:***masked***@host/x'\n"
    )
