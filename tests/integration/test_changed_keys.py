"""A run that goes on with another config follows or refuses each key of learner, loss, evaluation,
checkpoint and async."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.interrupted import config, interrupted, newest, service_for
from support.quiet_display import Quiet
from support.small_drivers import begun
from support.training import Memory, run_of

from branchgrpo.checkpoint.store import open_saved
from branchgrpo.config.schema import Config
from branchgrpo.report.contact_sheet import kept
from branchgrpo.report.sinks import read
from branchgrpo.runs.identity import (
    leaves,
    shown,
)
from branchgrpo.training.carry_out import carry_out
from branchgrpo.training.loop import step
from branchgrpo.training.state import TrainState
from branchgrpo.types import EVALUATION


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    return interrupted(tmp_path_factory.mktemp("trained"))


@dataclass(frozen=True)
class Course:
    """What a run did that went on by an iteration."""

    record: dict[str, float]
    moved: list[float]  # where the update took the weights
    mean: list[float]  # of the weights
    second: list[float]  # of the loss' second set
    kept: list[int]  # iterations of the checkpoints that are there after the next one
    ahead: int  # batches that are grown ahead

    @property
    def checked(self) -> bool:
        """Is there a check after this iteration?"""
        return "held_out/total" in self.record


COURSES: dict[str, Course] = {}
"""By what the config changes: each is carried out once."""


def course(trained: tuple[Path, Config], parent: Path, **options: str) -> Course:
    """Gone on from the checkpoint of iteration 2, in a copy of the folder."""
    if repr(options) not in COURSES:
        folder = Path(shutil.copytree(trained[0], parent / f"course-{len(COURSES)}"))
        service, log, state = service_for(config(**options)), Memory(), TrainState()
        run = run_of(config(**options), service, folder / "checkpoints", log=log, resumed=True)
        run.begin(state)
        assert state.iteration == 2
        step(run, state)
        policy = service.learner.policy
        COURSES[repr(options)] = Course(
            record=log.records[-1],
            moved=[float(value.detach().double().sum()) for value in policy.masters],
            mean=[float(value.detach().double().sum()) for value in policy.ema.values()],
            second=[
                float(value.double().sum())
                for value in (policy.second.tensors.values() if policy.second else ())
            ],
            kept=sorted(
                int(path.name.split("-")[3]) for path in (folder / "checkpoints").glob("fence-*")
            ),
            ahead=len(run.ahead.pending),
        )
    return COURSES[repr(options)]


Reading = Callable[[Course], Any]


def stat(name: str) -> Reading:
    return lambda found: found.record[name]


AT_START, WHOLE = "read when actors are started, and held in no checkpoint", "seen in a whole run"


HELD = {"loss.mean_beta": "1", "loss.mean.start": "0"}


FOLLOWED: dict[str, tuple[str, Reading | str, dict[str, str]]] = {
    # key: another value, what follows it (or why nothing can keep it from that), what it needs
    # beside
    "learner.learning_rate": ("0.01", stat("update/learning_rate"), {}),
    "learner.weight_decay": ("0.5", attrgetter("moved"), {}),
    "learner.betas": ("[0.5, 0.5]", attrgetter("moved"), {}),
    "learner.max_grad_norm": ("1e-9", attrgetter("moved"), {}),
    "learner.optimiser_steps": ("2", stat("update/optimiser_steps"), {}),
    "learner.schedule": ("linear", stat("update/learning_rate"), {}),
    "learner.warmup": ("20", stat("update/learning_rate"), {}),
    "learner.final_rate": ("0.9", stat("update/learning_rate"), {"learner.schedule": "cosine"}),
    # of the learner's own forward: exactly 1
    "learner.old": ("recompute", stat("update/ratio_deviation"), {}),
    "learner.ema": ("0.01", attrgetter("mean"), {}),  # it warms up: below what the step allows
    "learner.ema_every": ("9", attrgetter("mean"), {}),
    "loss.clip_range": ("10.0", stat("update/clip_fraction"), {"learner.optimiser_steps": "2"}),
    "loss.kl_beta": ("0.5", stat("update/kl"), {}),
    "loss.mean_beta": ("100", attrgetter("moved"), {"learner.optimiser_steps": "2"}),
    "loss.mean.start": ("0.5", attrgetter("second"), {"loss.mean_beta": "1"}),
    "loss.mean.flat": ("1", attrgetter("second"), HELD),
    "loss.mean.rate": ("0.1", attrgetter("second"), HELD),
    "loss.mean.most": ("0.001", attrgetter("second"), HELD),
    "checkpoint.every": ("0", attrgetter("kept"), {"checkpoint.every_minutes": "1000"}),
    "checkpoint.every_minutes": ("1e-9", attrgetter("kept"), {"checkpoint.every": "0"}),
    "checkpoint.keep": ("3", attrgetter("kept"), {}),
    "async.max_staleness": ("1", attrgetter("ahead"), {}),
    "evaluation.prompts": ("5", WHOLE, {}),
    "evaluation.steps": ("3", WHOLE, {}),
    "evaluation.height": ("64", WHOLE, {}),
    "evaluation.width": ("64", WHOLE, {}),
    "evaluation.weights": ("ema", WHOLE, {}),
    "evaluation.every": ("1", attrgetter("checked"), {}),
    "evaluation.every_seconds": ("1e-9", attrgetter("checked"), {}),
    "evaluation.diversity": ("2", WHOLE, {}),
    "evaluation.prompts_between": ("2", WHOLE, {}),
    "evaluation.pictures": ("1", WHOLE, {}),
    "evaluation.save": ("2", WHOLE, {}),
    "evaluation.trees": ("1", AT_START, {}),
    "evaluation.category": ("topic", WHOLE, {}),
    "evaluation.suites": ("elsewhere", AT_START, {}),
    "evaluation.metric": ("ocr/edit", WHOLE, {}),
    "evaluation.kept_mb": ("1", AT_START, {}),
    "evaluation.alarm": ("1", AT_START, {}),
    "evaluation.norm_alarm": ("0.2", AT_START, {}),
    "evaluation.rewards": ("[{name: jpeg}]", AT_START, {}),
    "learner.ranks": ("2", AT_START, {}),
    "learner.max_ranks": ("2", AT_START, {}),
    "learner.parallel": ("fsdp", AT_START, {}),
    "learner.shard": ("2", AT_START, {"learner.parallel": "fsdp", "learner.ranks": "2"}),
    "learner.reduce": ("bfloat16", AT_START, {}),
    "learner.backend": ("gloo", AT_START, {}),
    "learner.cpus": ("2", AT_START, {}),
    "learner.gpus": ("1", AT_START, {}),
    "learner.threads": ("2", AT_START, {}),
    "learner.resource": ("learner", AT_START, {}),
    "learner.micro_batch": ("1", AT_START, {}),
    "learner.token_budget": ("100", AT_START, {}),
    "learner.max_skips": ("7", AT_START, {}),
    "learner.timeout_seconds": ("9", AT_START, {}),
    "learner.stall_factor": ("9", AT_START, {}),
    "learner.stall_seconds": ("9", AT_START, {}),
    "learner.publish_chunk_mb": ("1", AT_START, {}),
}


REFUSED_KEYS = {"checkpoint.folder", "loss.name"}
"""checkpoint.folder where its new place has none (test_run_folder); the loss' name replaces its
section (below)."""


STATE = {"steps", "fewer_steps", "schedule", "version", "skips", "driver"}


DRIVER = {"iteration", "seconds", "gates", "stopped_by", "is", "method"}


def sections() -> set[str]:
    return {
        key
        for key, _ in leaves(shown(config()))
        if key.split(".")[0] in ("learner", "loss", "evaluation", "checkpoint", "async")
    }


def test_each_key_is_followed_or_refused() -> None:
    assert sections() == FOLLOWED.keys() | REFUSED_KEYS


TOGETHER = (
    ("learner.learning_rate", "async.max_staleness", "evaluation.every", "checkpoint.keep"),
    ("learner.schedule", "learner.optimiser_steps", "evaluation.every_seconds"),
    ("learner.warmup", "loss.kl_beta"),
)
"""Keys that one run changes at once: what follows each can be moved by no other of them."""


@pytest.mark.parametrize(
    "key", [key for key, (_, reading, _) in FOLLOWED.items() if not isinstance(reading, str)]
)
def test_a_change_of_the_course_is_followed(
    key: str, trained: tuple[Path, Config], tmp_path: Path
) -> None:
    _, reading, beside = FOLLOWED[key]
    assert not isinstance(reading, str)
    keys = next((keys for keys in TOGETHER if key in keys), (key,))
    changed = course(trained, tmp_path, **beside | {each: FOLLOWED[each][0] for each in keys})
    assert reading(changed) != reading(course(trained, tmp_path, **beside))


def test_the_last_check_is_as_the_config_says_now(
    trained: tuple[Path, Config], tmp_path: Path
) -> None:
    """All of these keys changed at once, each seen by itself."""
    folder = Path(shutil.copytree(trained[0], tmp_path / "run"))
    wanted = {key: value for key, (value, reading, _) in FOLLOWED.items() if reading == WHOLE}
    loaded = config(**{"run.iterations": "3"} | wanted)
    service = service_for(loaded)
    service.rollout_pool.calls.clear()
    service.published.clear()
    summary = carry_out(
        loaded,
        service=service,
        folder=folder,
        display=Quiet(),
        interrupted=lambda: False,
        resumed=True,
    )
    scores = json.loads((folder / "held_out.json").read_text())["after"]["total"]
    assert summary["held_out"]["total"]["n"] == len(scores) == 5  # prompts; before and after
    assert {
        arguments[0].steps
        for method, arguments in service.rollout_pool.calls
        if method == "grow" and arguments[1].subtrees[0].key.iteration == EVALUATION
    } == {3}
    assert "ema" in {weights for weights, *_ in service.published}
    assert summary["diversity"]["latents"]["n"] == 2 and summary["metric"] == "ocr/edit"
    # prompts_between
    assert read(folder / "metrics.jsonl")[-1]["held_out/total"] == pytest.approx(
        sum(scores[:2]) / 2
    )
    # pictures, height and width
    assert kept(folder / "samples" / "after.npz")[0].shape == (1, 1, 64, 64, 3)
    saved = folder / "samples" / "saved" / "after"
    lines = [json.loads(line) for line in (saved / "samples.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["000000.png", "000001.png"]  # save
    assert [line["scores"]["total"] for line in lines] == pytest.approx(scores[:2])
    picture = np.asarray(Image.open(saved / lines[0]["file"]))
    assert (picture == kept(folder / "samples" / "after.npz")[0][0, 0]).all()
    assert summary["categories"]["none"]["n"] == 5  # of prompts without metadata
    assert len(wanted) == 11


def test_what_is_read_at_the_start_is_in_no_checkpoint(
    trained: tuple[Path, Config], tmp_path: Path
) -> None:
    """Nothing that is restored could override it; and the change is told."""
    state = open_saved(newest(trained[0])).state()
    assert (
        state.keys() == STATE
        and state["driver"].keys() <= DRIVER
        and state["schedule"].keys() == {"last_epoch"}
    )
    folder = Path(shutil.copytree(trained[0], tmp_path / trained[0].name))
    for key in [key for key, (_, reading, _) in FOLLOWED.items() if reading == AT_START]:
        value, _, beside = FOLLOWED[key]
        loaded = config(**beside | {"run.folder": str(tmp_path), key: value})
        assert [line for line in begun(loaded, str(folder))[1] if line.startswith(f"{key}: ")], key


def test_another_loss_is_followed(trained: tuple[Path, Config], tmp_path: Path) -> None:
    assert course(trained, tmp_path, loss="{name: guard}").moved != course(trained, tmp_path).moved
