"""Whole runs in one process that lose something on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.in_process import Service
from support.quiet_display import Quiet
from support.small_loop import config, weights

from branchgrpo.config.schema import Config
from branchgrpo.report import looks
from branchgrpo.report.sinks import read
from branchgrpo.training.carry_out import carry_out


class Lost(Exception):
    """A failure of machines."""


class Failing(Service):
    """Loses something at the nth call of one method of the learners."""

    faults = (Lost,)

    def __init__(self, loaded: Config, method: str, at: int, gone: bool):
        super().__init__(loaded)
        self.method = method
        self.left = at
        self.gone = gone
        ranks = self.learners.ranks
        call = ranks.call

        def failing(method: Any, *arguments: Any) -> list[Any]:
            if method.__name__ == self.method:
                self.left -= 1
                if self.left == 0:
                    raise Lost
            return call(method, *arguments)

        ranks.call = failing  # type: ignore[method-assign]

    def recover(self, error: Exception) -> bool:
        return self.gone


EXPORTED = {
    "evaluation.weights": "ema",
    "run.export": "transformer",
    "evaluation.every": "1",
    "evaluation.prompts": "2",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run without failures: its folder and weights."""
    folder, service = tmp_path_factory.mktemp("whole") / "run", Service(config(**EXPORTED))
    carry_out(
        config(**EXPORTED),
        service=service,
        folder=folder,
        display=Quiet(),
        interrupted=lambda: False,
    )
    return folder, weights(service)


@pytest.mark.parametrize(
    ("method", "at", "gone"),
    [("checkpoint", 1, False), ("checkpoint", 2, True), ("publish", 3, False), ("export", 1, True)],
)
def test_a_failure_anywhere_gives_the_same_run(
    whole: tuple[Path, str], tmp_path: Path, method: str, at: int, gone: bool
) -> None:
    """Also at the last checkpoint, and when the weights are written after the last check."""
    service = Failing(config(**EXPORTED), method, at, gone)
    summary = carry_out(
        config(**EXPORTED),
        service=service,
        folder=tmp_path / "cut",
        display=Quiet(),
        interrupted=lambda: False,
    )
    assert (
        service.left <= 0 and summary["iterations"] == 4 and summary["stopped_by"] == "iterations"
    )
    assert weights(service) == whole[1]
    one, other = (
        [
            (record["iteration"], record.get("reward/total"))
            for record in read(folder / "metrics.jsonl")
        ]
        for folder in (whole[0], tmp_path / "cut")
    )
    assert one == other
    assert (tmp_path / "cut" / "held_out.json").read_text() == (
        whole[0] / "held_out.json"
    ).read_text()
    one, other = looks.read(whole[0]), looks.read(tmp_path / "cut")
    assert [look["iteration"] for look in one] == [0, 1, 2, 3, 4]
    assert one == other


def test_a_resumed_run_folder_is_that_of_one_run(whole: tuple[Path, str], tmp_path: Path) -> None:
    asked = [False, True, False, False, False]
    carry_out(
        config(**EXPORTED),
        service=Service(config(**EXPORTED)),
        folder=tmp_path,
        display=Quiet(),
        interrupted=lambda: asked.pop(0),
    )
    assert json.loads((tmp_path / "summary.json").read_text())["stopped_by"] == "interrupted"
    carry_out(
        config(**EXPORTED),
        service=Service(config(**EXPORTED)),
        folder=tmp_path,
        display=Quiet(),
        interrupted=lambda: False,
        resumed=True,
    )
    one, other = (json.loads((path / "held_out.json").read_text()) for path in (whole[0], tmp_path))
    assert one == other
    # 2: the check at the end of the first part
    iterations = [record["iteration"] for record in read(tmp_path / "metrics.jsonl")]
    assert iterations == [0, 1, 2, 2, 3, 4, 4]
