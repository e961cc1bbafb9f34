"""A comparison and an evaluation on a local Ray, as a person starts them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_local_ray import ROOT, run

KEYS = [
    "--cluster.dashboard",
    "false",
    "--rollout.workers",
    "1",
    "--rollout.prompts",
    "1",
    "--rollout.cpus",
    "0.25",
    "--reward_workers.cpus",
    "0.25",
    "--learner.cpus",
    "0.25",
    "--evaluation.prompts",
    "8",
    "--evaluation.prompts_between",
    "4",
    "--evaluation.pictures",
    "2",
    "--evaluation.diversity",
    "2",
]


@pytest.mark.slow
def test_compare_then_eval(tmp_path: Path) -> None:
    folder = tmp_path / "compared"
    request = [
        "compare",
        "branchgrpo-splits",
        "dancegrpo",
        "--budget",
        "1",
        "--folder",
        str(folder),
        *KEYS,
    ]
    done = run(*request, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout[done.stdout.index("\n method ") : done.stdout.index("written to ")]
    assert (
        "One seed" in told
        and max(map(len, told.splitlines())) <= 100
        and str(folder) in done.stdout
    )
    assert "| dancegrpo | 1 |" in (folder / "compare.md").read_text()
    for name in ("compare.png", "compare-samples.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    rows = json.loads((folder / "compare.json").read_text())["rows"]
    assert list(rows) == ["untrained", "branchgrpo-splits", "dancegrpo"]

    # 20 steps: split at 3, 6, 9, 12 there are 4·1 + 3·(2 + 4 + 8) + 7·16 parents, of which 1 + 2 +
    # 4 + 8 are trained
    splits, chains = rows["branchgrpo-splits"], rows["dancegrpo"]
    assert (splits["nfe_old"]["forwards"], splits["nfe_new"]["forwards"]) == (158 / 16, 15 / 16)
    assert chains["nfe_old"]["forwards"] == 20.0
    (record,) = [
        json.loads(line)
        for line in (folder / "dancegrpo-seed0" / "metrics.jsonl").read_text().splitlines()
        if "update/forwards" in line
    ]
    assert record["reward/spread"] > 1e-6, "rewards tie: pick another seed"
    # all but the last step, whose noise nobody would see
    assert chains["nfe_new"]["forwards"] == 19.0
    for name in ("branchgrpo-splits", "dancegrpo"):
        assert rows[name]["held_out"]["total"]["n"] == 1 and rows[name]["iterations"] == [1]
        scores = json.loads((folder / f"{name}-seed0" / "held_out.json").read_text())
        assert (
            scores["before"] == json.loads((folder / "untrained-seed0.json").read_text())["scores"]
            and scores["after"] != scores["before"]
        )

    measured = run(
        "eval",
        str(ROOT / "branchgrpo" / "assets" / "tiny-flux"),
        "--run.folder",
        str(tmp_path / "runs"),
        *KEYS,
        timeout=600,
    )
    assert measured.returncode == 0, measured.stdout + measured.stderr
    (evaluated,) = (tmp_path / "runs").iterdir()
    assert (evaluated / "samples.png").stat().st_size > 0
    row = json.loads((evaluated / "eval.json").read_text())
    for name, value in rows["untrained"]["held_out"].items():
        assert (
            row["held_out"][name]["mean"] == pytest.approx(value["mean"], abs=1e-5)
            and row["held_out"][name]["n"] == 8
        ), name
        assert f"{name:16} {row['held_out'][name]['mean']:.4f}" in measured.stdout
    assert np.isclose(
        row["diversity"]["latents"]["mean"], rows["untrained"]["diversity"], atol=1e-4
    )

    again = run(*request, timeout=100)  # all is done: the table, without Ray
    assert (
        again.returncode == 0
        and told in "\n" + again.stdout
        and "Ray" not in again.stdout + again.stderr
    )
