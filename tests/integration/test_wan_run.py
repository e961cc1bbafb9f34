"""A whole run of Wan2.1 on a small random checkpoint."""

from __future__ import annotations

from functools import reduce
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file
from support.in_process import Service
from support.small_wan import (
    NEGATIVE,
    PROMPTS,
)

from branchgrpo.config import load as configs
from branchgrpo.models.small.wan import small_wan
from branchgrpo.report.terminal import Display
from branchgrpo.training.carry_out import carry_out
from branchgrpo.types import EVALUATION, LeafMedia, ScoreRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_wan(tmp_path_factory.mktemp("wan"))


CONFIG = """
run: {name: wan, iterations: 1, export: lora}
model:
  {name: wan, path: FOLDER, height: 32, width: 48, frames: 5, evaluation_frames: 9,
   true_cfg: 3.0, max_sequence_length: 24, lora_rank: 2,
  gradient_checkpointing: true}
prompts: PROMPTS
held_out: HELD_OUT
sampling: {steps: 4, shift: 3.0}
method: {name: branchgrpo, splits: [0, 1], leaves: 4, stochastic: splits, kernel: dance, eta: 0.5}
advantage: {name: depthwise}
loss: {name: clipped, clip_range: 1.0e-3}
rewards: [{name: jpeg}]
rollout: {workers: 2, prompts: 2, cpus: 1, max_batch: 8}
learner: {learning_rate: 1.0e-2, micro_batch: 3}
evaluation: {prompts: 3, prompts_between: 2, pictures: 2, every: 1}
"""


def test_a_run_trains_on_short_videos_and_is_judged_by_long_ones(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, NEGATIVE]) + "\n")
    (tmp_path / "held.txt").write_text(
        "\n".join(f"{text}, at night" for text in [*PROMPTS, NEGATIVE]) + "\n"
    )
    paths = {
        "FOLDER": folder,
        "PROMPTS": tmp_path / "prompts.txt",
        "HELD_OUT": tmp_path / "held.txt",
    }
    (tmp_path / "wan.yaml").write_text(
        reduce(lambda text, name: text.replace(name, str(paths[name])), paths, CONFIG)
    )
    config = configs.load(tmp_path / "wan.yaml")
    service = Service(config)
    seen: set[tuple[bool, tuple[int, ...]]] = set()
    scorer = service.reward_pools[0].workers[0]
    score = scorer.score

    def spy(request: ScoreRequest, media: LeafMedia) -> Any:
        seen.update(
            (subtree.key.iteration == EVALUATION, media.pixels.shape[1:])
            for subtree in request.subtrees
        )
        return score(request, media)

    scorer.score = spy
    before = service.rollout_pool.workers[0].fingerprint()
    summary = carry_out(
        config,
        service=service,
        folder=tmp_path / "run",
        display=Display("wan", 1, "jpeg/score", Console(file=StringIO())),
        interrupted=lambda: False,
    )
    assert seen == {(False, (5, 32, 48, 3)), (True, (9, 32, 48, 3))}
    assert (
        summary["gates"]["on_policy_deviation"] <= 1e-5
        and summary["gates"]["fingerprint_difference"] <= 1e-4
    )
    assert [
        np.array_equal(worker.fingerprint(), before) for worker in service.rollout_pool.workers
    ] == [
        False,
        False,
    ]
    found = {path.name for path in (tmp_path / "run" / "samples").iterdir()}
    assert found == {"leaves-000001.npz"} | {
        f"{when}.{kind}" for when in ("before", "after") for kind in ("npz", "png", "webp")
    }
    assert len(load_file(next((tmp_path / "run" / "weights").glob("*.safetensors")))) == 32
