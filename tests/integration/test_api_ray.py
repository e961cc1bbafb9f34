"""`import branchgrpo as bg` on a local Ray, as in a notebook: from a thread, with a function of
one's own as reward."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import branchgrpo as bg
from branchgrpo.report.contact_sheet import kept
from branchgrpo.report.sinks import read

KEYS = {
    "run.iterations": 2,
    "sampling.steps": 6,
    "method.splits": [1, 2, 3],
    "method.leaves": 8,
    "cluster.dashboard": False,
    "rollout.workers": 1,
    "rollout.prompts": 1,
    "rollout.cpus": 0.25,
    "reward_workers.cpus": 0.25,
    "learner.cpus": 0.25,
    "evaluation.prompts": 4,
    "evaluation.prompts_between": 2,
    "evaluation.pictures": 4,
    "evaluation.steps": 6,
}


@pytest.mark.slow
def test_train_evaluate_and_sample_from_a_thread(tmp_path: Path) -> None:
    scale = 100.0  # of this function: nobody can import what closes over it

    def bright(images: list[Any], samples: list[bg.Sample]) -> list[float]:
        assert len(images) == len(samples)
        assert all(sample.prompt.startswith("the number ") for sample in samples)
        return [float(np.asarray(image).mean()) / scale for image in images]

    overrides = KEYS | {"run.folder": tmp_path / "runs"}
    config = bg.load_config("quickstart", preset="branchgrpo", overrides=overrides)
    found = list[Any]()

    def work() -> None:
        try:
            found.append(bg.train(config, rewards=[bright, ("ocr", 0.5)], quiet=True))
            found.append(bg.evaluate(found[0], quiet=True))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    for one in found:
        if isinstance(one, BaseException):
            raise one
    result, evaluation = found

    assert result.folder.parent == tmp_path / "runs" and result.summary["iterations"] == 2
    assert result.metrics == read(result.folder / "metrics.jsonl")
    trained = [record for record in result.metrics if "update/loss" in record]
    assert [record["iteration"] for record in trained] == [1, 2]
    for record in trained:
        assert 0 < record["reward/bright/score"] < 255 / scale
        total = record["reward/bright/score"] + 0.5 * record["reward/ocr/likelihood"]
        assert record["reward/total"] == pytest.approx(total, rel=1e-4)
    held_out = result.summary["held_out"]["bright/score"]
    assert evaluation.summary["held_out"]["bright/score"]["mean"] == pytest.approx(
        held_out["after"], rel=1e-4
    )

    pixels, prompts, _ = kept(result.folder / "samples" / "after.npz")
    drawn = np.stack([np.asarray(image) for image in result.sample(prompts)])
    assert np.abs(drawn - 1.0 * pixels[:, 0]).max() <= 1.0
    assert drawn.mean(axis=(1, 2, 3)).mean() / scale == pytest.approx(held_out["after"], abs=0.01)
    one, other = result.sample(prompts[0], count=2, seed=5, steps=4)
    assert one.size == (32, 32) and np.abs(np.asarray(one) - 1.0 * np.asarray(other)).max() > 10
