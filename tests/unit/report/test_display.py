"""Plain lines off a terminal, a panel on one, and a terminal that is whole afterwards."""

from __future__ import annotations

import re
from io import BytesIO, StringIO, TextIOWrapper

import pytest
from rich.console import Console

from branchgrpo.report.panel import clock, line, panel, sparkline
from branchgrpo.report.progress import Progress
from branchgrpo.report.terminal import Display

VALUES = {
    "reward/total": 0.412,
    "reward/spread": 0.1,
    "time/grow": 0.42,
    "time/score": 0.2,
    "time/update": 0.12,
    "time/publish": 0.03,
    "time/iteration": 0.81,
    "tree/trees": 4,
    "tree/leaves": 64,
    "tree/forwards": 632,
    "tree/edges": 120,
    "update/forwards": 60,
    "update/edges": 96,
    "update/clip_fraction": 0.0,
    "update/gradient_norm": 0.41,
    "update/ratio_deviation": 1e-4,
    "update/skipped_steps": 0,
    "update/version": 12,
}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm-256color")
    return Console(force_terminal=True, file=StringIO(), width=80, height=30)


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_off_a_terminal_everything_is_one_plain_line() -> None:
    console = Console(force_terminal=False, file=StringIO(), width=40)
    with Display("run", 160, "ocr/exact", console) as display:
        display.phase("starting Ray")
        display.note("gate [on-policy] passed, :smile: is no picture")
        display.phase("training")
        display.update(1, VALUES | {"held_out/ocr/exact": 0.38})
        display.update(2, VALUES)
        display.update(3, {})
    text = written(console)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    lines = text.splitlines()
    assert lines[0] == "starting Ray ..."
    assert lines[1] == "gate [on-policy] passed, :smile: is no picture"
    assert re.fullmatch(r"starting Ray: \d+\.\d s", lines[2])
    assert lines[3] == "training ..."
    assert [one.split(" ")[0] for one in lines[4:7]] == ["1/160", "2/160", "3/160"]
    assert re.fullmatch(r"training: \d+\.\d s", lines[7])
    assert len(lines) == 8


def test_an_iteration_in_one_line() -> None:
    progress = Progress(160, "ocr/exact")
    progress.add(0, {"held_out/ocr/exact": 0.38}, 90.0)
    assert line(progress) == "0/160 exact 0.38"
    progress.add(1, VALUES, 100.81)
    progress.add(2, VALUES, 101.61)
    assert line(progress) == (
        "2/160 reward 0.412 (→) exact 0.38 | 0.81 s: grow .42 score .20 update .12 publish .03 | "
        # (0.81 + 0.80) / 2 · 158 = 127.19 s
        "fwd 632 train 60 edges 96/120 | clip 0.00 gn 0.41 v12 | eta 2:07"
    )
    progress.add(3, VALUES | {"update/skipped_steps": 1}, 102.41)
    assert "v12 skipped 1 |" in line(progress)


@pytest.mark.parametrize("missing", sorted(VALUES))
def test_any_figure_may_be_missing(missing: str) -> None:
    progress = Progress(160, "ocr/exact")
    progress.add(1, {name: value for name, value in VALUES.items() if name != missing}, 1.0)
    Console(file=StringIO()).print(panel("run", progress))
    assert line(progress).startswith("1/160")


def test_figures_that_are_not_finite_do_no_harm(terminal: Console) -> None:
    progress = Progress(160, "ocr/exact")
    for iteration in range(1, 9):
        progress.add(
            iteration,
            VALUES | {"reward/total": float("nan"), "update/gradient_norm": float("inf")},
            float(iteration),
        )
    terminal.print(panel("run", progress))
    assert "reward nan (→)" in line(progress)


@pytest.mark.parametrize(
    ("rewards", "arrow"),
    [(range(20), "↑"), (range(20, 0, -1), "↓"), ([1, 2] * 10, "→"), ([1, 9], "→"), ([1] * 9, "→")],
)
def test_trend(rewards: list[float], arrow: str) -> None:
    progress = Progress(100, "ocr/exact")
    for iteration, reward in enumerate(rewards, 1):
        progress.add(iteration, {"reward/total": float(reward)}, 0.0)
    assert progress.trend == arrow


def test_eta_follows_recent_iterations_and_knows_the_time_limit() -> None:
    progress = Progress(200, "ocr/exact", max_minutes=2.0)
    assert progress.eta is None
    progress.add(1, {"time/iteration": 30.0}, 30.0)  # a slow first one
    assert progress.eta == pytest.approx(90)  # 199 · 30 s is more than the limit leaves
    for iteration in range(2, 101):
        progress.add(iteration, {}, 29.5 + iteration / 4)
    assert progress.elapsed == pytest.approx(54.5)
    assert progress.eta == pytest.approx(100 * 0.25)
    progress.add(200, {}, 130.0)
    assert progress.eta == 0


def test_clock_and_sparkline() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 121, 3725)] == [
        "0:00",
        "1:00",
        "2:01",
        "1:02:05",
    ]
    assert sparkline([0, 7, float("nan"), 3.5, float("inf")]) == "▁█ ▅ "
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([float("nan")]) == " "


def test_the_panel_shows_the_figures_in_80_columns() -> None:
    console = Console(force_terminal=False, file=StringIO(), width=80)
    progress = Progress(160, "ocr/exact")
    progress.add(0, {"held_out/ocr/exact": 0.02}, 0.0)
    progress.add(20, VALUES | {"held_out/ocr/exact": 0.38}, 20.0)
    console.print(panel("quickstart", progress))
    text = written(console)
    assert "…" not in text  # nothing is cut
    for part in (
        "quickstart",
        "20/160",
        "0.412",
        "ocr/exact 0.38 at 20, 0.02 at 0 (+0.36)",
        "0.42",
        "632 forwards",
        "edges kept 96/120",
        "v12",
    ):
        assert part in text


def test_several_rewards_are_told_apart() -> None:
    progress = Progress(160, "hps/score")
    progress.add(0, {"held_out/hps/score": 0.25, "held_out/pickscore/score": 21.5}, 0.0)
    assert line(progress) == "0/160 hps/score 0.25 pickscore/score 21.5"
    progress.add(20, VALUES | {"held_out/hps/score": 0.31, "held_out/pickscore/score": 22.0}, 20.0)
    progress.add(21, VALUES, 21.0)
    assert "hps/score 0.31 pickscore/score 22 |" in line(progress)
    console = Console(force_terminal=False, file=StringIO(), width=120)
    console.print(panel("run", progress))
    assert "hps/score 0.31 at 20, 0.25 at 0 (+0.06)  pickscore/score 22" in written(console)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_the_terminal_is_restored(terminal: Console, error: type[BaseException] | None) -> None:
    try:
        with Display("run", 160, "ocr/exact", terminal) as display:
            display.phase("starting Ray")
            display.note("a note")
            display.phase("training")
            display.update(1, VALUES)
            if error:
                raise error
    except (KeyboardInterrupt, RuntimeError) as raised:
        assert type(raised) is error
    text = written(terminal)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "a note" in plain and "1/160" in plain
    assert ("training: stopped after" in plain) == (error is not None)
    terminal.print("afterwards")
    assert written(terminal).endswith("afterwards\n")


def test_a_log_in_ascii_does_not_stop_the_run() -> None:
    file = TextIOWrapper(BytesIO(), encoding="ascii", write_through=True)
    with Display("run", 160, "ocr/exact", Console(file=file, force_terminal=False)) as display:
        display.note("|ratio − 1|")
        display.update(1, VALUES)
    assert isinstance(file.buffer, BytesIO)
    assert file.buffer.getvalue().startswith(b"|ratio ? 1|\n1/160 reward 0.412 (?)")
