"""The list of runs, by their folders alone."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from support.small_drivers import config, cut_off, holder
from support.small_trees import quickstart
from support.written_run import written_run

from branchgrpo.app.parser import parse
from branchgrpo.app.report import closing, table
from branchgrpo.config import load as configs
from branchgrpo.runs.listing import LIVE, listed, metric_of, row_of


def test_runs_are_told_by_their_files(tmp_path: Path) -> None:
    done = written_run(tmp_path, name="done", seed=3, ended="iterations")
    cut = cut_off(config(tmp_path / "deeper" / "place", name="cut"))
    (tmp_path / "no-run").mkdir()
    rows = listed(tmp_path)
    assert [row.name for row in rows] == [cut.name, done.name]  # the newest first
    assert rows[0].state == "cut off" and rows[0].before is rows[0].after is None
    assert rows[0].metric == "ocr/exact" and rows[0].iterations == 0
    found = rows[1]
    assert (found.state, found.seed, found.iterations, found.planned) == ("iterations", 3, 60, 200)
    assert (found.metric, found.before, found.after) == ("ocr/exact", 0.1, 0.7)
    assert found.method.startswith("branchgrpo, ")
    assert json.loads(json.dumps(found.plain()))["folder"] == str(done)
    console = Console(width=200, file=StringIO())
    console.print(table(rows))
    text = console.file.getvalue()
    assert "ocr/exact 0.100 → 0.700" in text and "60/200" in text and "cut off" in text


def test_a_run_is_live_while_its_driver_is(tmp_path: Path) -> None:
    folder = cut_off(config(tmp_path))
    for file in (folder / "drivers").iterdir():
        file.unlink()
    with holder(folder) as process:
        assert row_of(folder).state == LIVE
        process.kill()
        process.wait()
        assert row_of(folder).state == "cut off"


def test_scores_of_a_run_that_goes_on_are_those_of_its_checks(tmp_path: Path) -> None:
    found = row_of(written_run(tmp_path))
    assert (found.before, found.after, found.state) == (0.0, 0.6, "failed")


def test_damaged_files_hide_no_run(tmp_path: Path) -> None:
    folder = written_run(tmp_path, ended="iterations")
    for name in ("summary.json", "run.json", "metrics.jsonl", "config.yaml"):
        (folder / name).write_text("{ damaged\n[\n")
    found = row_of(folder)
    assert found.name == folder.name and found.started and found.iterations == 0


def test_the_score_that_decides_is_the_config_s() -> None:
    for keys in ({}, {"evaluation.metric": "ocr/edit"}, {"rewards.0.label": "read"}):
        found = quickstart(keys)
        assert metric_of(configs.plain(found)) == found.metric


def test_listing_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; import branchgrpo.runs.listing, branchgrpo.app.report;"
        "print({'torch', 'ray', 'diffusers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_end_of_a_run_names_commands_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    folder = written_run(tmp_path / "my runs", ended="iterations")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "report.html").touch()
    lines = closing(config(tmp_path), folder, summary)
    assert lines[:3] == [
        "ocr/exact 0.100 → 0.700 on held-out prompts",
        f"look: {folder / 'report.html'}",
        "next:",
    ]
    assert len(lines) == 6
    for line in lines[3:]:
        program, *arguments = shlex.split(line)
        assert program == "branchgrpo" and str(folder.parent) in arguments[1]
        parse(arguments)
    assert [shlex.split(line)[1] for line in lines[3:]] == ["tree", "sample", "eval"]
    assert lines[4].endswith(" 'a prompt of yours'")
    without = {"run__export": "none", "checkpoint__every_minutes": "0"}
    lines = closing(config(tmp_path, **without), folder, summary)
    assert [shlex.split(line)[1] for line in lines[3:]] == ["report", "runs"]
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")  # called by uv run
    lines = closing(config(tmp_path), folder, summary)
    assert [shlex.split(line)[:4] for line in lines[3:]] == [
        ["uv", "run", "branchgrpo", name] for name in ("tree", "sample", "eval")
    ]
