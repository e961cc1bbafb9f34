"""What a grid came to, of folders made by hand."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
from rich.console import Console
from support.small_comparison import compared

from branchgrpo.comparison import report
from branchgrpo.comparison.budget import Budget
from branchgrpo.comparison.grid import Grid, read
from branchgrpo.comparison.grid_tables import markdown, notes, terminal
from branchgrpo.comparison.points import best_of, edges, fail
from branchgrpo.comparison.runs import Comparison
from branchgrpo.config.schema import Config
from branchgrpo.report.terminal import Display

pytestmark = pytest.mark.heavy

RATE, CLIP = "learner.learning_rate", "loss.clip_range"


def tuned(folder: Path) -> Comparison:
    values = read([f"{RATE}=1e-4,2e-4,4e-4", f"{CLIP}=1e-3,1e-2"])
    return compared(folder, ["dancegrpo", "nft"], grid=Grid(values, 2, Budget(seconds=60)))


def end(comparison: Comparison, run: tuple[str, int, int], *scores: float, alarm: str = "") -> None:
    """A run of the grid has ended with these scores, prompt by prompt."""
    assert comparison.tuning is not None
    folder = comparison.tuning.path(*run)
    folder.mkdir(parents=True)
    (folder / "held_out.json").write_text(json.dumps({"after": {"total": scores}}))
    summary = {"stopped_by": "max_minutes", "alarms": [alarm] if alarm else []}
    (folder / "summary.json").write_text(json.dumps(summary))


def point(score: float | None, alarm: bool = False, **keys: Any) -> dict[str, Any]:
    return {"score": score, "alarms": ["colour/score"] * alarm, "keys": keys}


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([point(0.1), point(0.3), point(0.3)], 2),  # of equals the first
        ([point(None), point(-1.0)], 2),
        ([point(0.1), point(0.9, alarm=True), point(None)], 1),
        ([point(0.1, alarm=True), point(0.2, alarm=True), point(None)], 2),
        ([point(None), point(None)], None),
    ],
)
def test_the_best_has_the_highest_score_of_those_without_an_alarm(
    points: list[dict[str, Any]], best: int | None
) -> None:
    assert best_of(points) == best


def test_edges_are_the_ends_of_numbers() -> None:
    points = [
        point(0.0, rate=rate, steps=1, old=old)
        for rate in (1e-4, 2e-4, 4e-4)
        for old in ("behaviour", "recompute")
    ]
    assert edges(points, 1) == {"rate": "lowest"}
    assert edges(points, 4) == {}
    assert edges(points, 6) == {"rate": "highest"}


@pytest.fixture
def made(tmp_path: Path) -> Comparison:
    """dancegrpo is best at 4e-4 and 1e-3 in the mean of two seeds; its second point fails once, its
    third gives an alarm. All of nft fails."""
    comparison = tuned(tmp_path / "made")
    comparison.open()
    assert comparison.tuning is not None
    for method, number, seed in comparison.tuning.runs:
        first, run = seed == 1000, (method, number, seed)
        if method == "nft" or (number == 2 and not first):
            folder = comparison.tuning.path(*run)
            folder.mkdir(parents=True)
            fail(folder, "Diverged: 3 steps | in a row")
        elif number == 3:
            end(comparison, run, 0.9, 0.9, alarm="colour/ink")
        elif number == 5:
            end(comparison, run, *((0.2, 0.4) if first else (0.6, 0.8)))
        else:
            end(comparison, run, *((0.7, 0.7) if first else (0.1, 0.1)))
    return comparison


def test_scores_are_means_over_prompts_and_seeds(made: Comparison) -> None:
    assert made.tuning is not None and made.tuning.left() == []
    found = made.tuning.found()
    assert (found["finished"], found["seeds"], found["prompts"]) == (True, [1000, 1001], 2)
    dance = found["methods"]["dancegrpo"]
    scores = [one["score"] for one in dance["points"]]
    assert scores == pytest.approx([0.4, None, 0.9, 0.4, 0.5, 0.4])
    assert dance["points"][4]["by_seed"] == pytest.approx([0.3, 0.7])
    assert dance["points"][4]["keys"] == {RATE: 4e-4, CLIP: 1e-3} and dance["best"] == 5
    assert dance["edges"] == {RATE: "highest", CLIP: "lowest"}
    assert dance["points"][1]["failed"] == ["Diverged: 3 steps | in a row"]
    nft = found["methods"]["nft"]
    assert (nft["best"], nft["carried"], nft["without"]) == (None, {}, [CLIP])


def test_nothing_is_chosen_before_the_grid_is_done(made: Comparison) -> None:
    assert made.tuning is not None
    rmtree(made.tuning.path("nft", 1, 1001))
    assert made.tuning.left() == [("nft", 1, 1001)]
    found = made.tuning.found()
    assert not found["finished"] and {one["best"] for one in found["methods"].values()} == {None}
    assert notes(found)[1:] == ["The grid is not done: nothing is chosen yet."]


def test_the_report_says_how_methods_were_tuned(made: Comparison) -> None:
    assert made.tuning is not None
    text = markdown(made.tuning.found())
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 6 + 3
    assert rows[0][:3] == ["| method", RATE, CLIP]
    assert rows[6] == ["| dancegrpo", "0.0004", "0.001", "0.500", "0.300, 0.700", "best |"]
    assert rows[4][-1] == "alarm: colour/ink fell |"
    assert "failed: Diverged: 3 steps \\| in a row" in text.splitlines()[3]
    said = " ".join(terminal(made.tuning.found()).split())
    assert "on 2 training prompts that they did not train on" in said
    assert "not as many points for each method" in said and "2 runs of 60 s" in said
    assert f"{RATE} 0.0004 is the highest, an edge of the grid: a wider one might be better" in said
    assert f"nft: all of 3 points failed, compared as it is; it has no {CLIP}." in said


class Began(Exception):
    """A run would begin."""


def begin(config: Config) -> Any:
    raise Began(config)


def test_the_best_is_carried_into_runs_settings_and_report(made: Comparison) -> None:
    assert made.tuning is not None

    display = Display("test", 1, "ocr/exact", Console(file=StringIO()))
    with pytest.raises(Began):
        made.run(begin, display, lambda: False)
    again = tuned(made.folder)
    again.open()
    for comparison in (made, again):
        config = comparison.configs["dancegrpo", 1]
        assert (config.learner.learning_rate, config.loss.clip_range) == (4e-4, 1e-3)
        plain = compared(made.folder, ["nft"]).configs["nft", 1].learner
        assert comparison.configs["nft", 1].learner == plain
        assert comparison.settings()["dancegrpo"][CLIP] == 1e-3
        assert comparison.settings()["nft"][CLIP] is None
    rmtree(made.folder / "grid")  # grid.json has what was found
    again = tuned(made.folder)
    again.open()
    assert again.tuning and again.tuning.left() == []
    assert again.configs["dancegrpo", 0].learner.learning_rate == 4e-4
    report.write(again, "ocr/exact")
    written = json.loads((made.folder / "compare.json").read_text())
    assert written["grid"] == json.loads((made.folder / "grid.json").read_text())
    assert "| dancegrpo | 0.0004 | 0.001 | 0.500 |" in (made.folder / "compare.md").read_text()
