"""A run that goes on with another config: what changes only its course is followed. Each key of
learner, loss, evaluation, checkpoint and async is followed or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.in_process import Service
from support.quiet_display import Quiet
from support.small_drivers import begun
from support.small_trees import quickstart
from support.training import CHANGEABLE, Memory, run_of

from branchgrpo.checkpoint.store import Store, open_saved
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError
from branchgrpo.learner.policy import rate_factor
from branchgrpo.report.sinks import read
from branchgrpo.runs.folder import driving
from branchgrpo.runs.identity import (
    MEANING,
    checked_alike,
    identity,
    leaves,
    shown,
)
from branchgrpo.training.carry_out import carry_out
from branchgrpo.training.loop import step
from branchgrpo.training.run import Run
from branchgrpo.training.state import TrainState
from branchgrpo.types import EVALUATION


def config(**options: str) -> Config:
    return quickstart(CHANGEABLE | options)


SERVICES: list[Service] = []


def service_for(loaded: Config) -> Service:
    """One for all: loading the recogniser takes longer than an iteration."""
    if not SERVICES:
        SERVICES.append(Service(loaded))
    return SERVICES[0].configure(loaded)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A run of two iterations that was interrupted, by a driver that noted losses."""
    parent = tmp_path_factory.mktemp("trained")
    loaded, asked = config(**{"run.folder": str(parent)}), [False, True]
    with driving(loaded, "") as driver:
        service = service_for(loaded)
        service.lost = {"died": 2}
        summary = carry_out(
            loaded,
            service=service,
            folder=driver.folder,
            display=Quiet(),
            interrupted=lambda: asked.pop(0),
            start_up=1.0,
            lease=driver.lease,
        )
        service.lost = {}
        driver.ended = summary["stopped_by"]
    return driver.folder, loaded


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("fence-*"))


def test_a_new_run_begins_at_a_checkpoint_whose_tensors_mean_the_same(
    trained: tuple[Path, Config], tmp_path: Path
) -> None:
    folder, loaded = trained
    place = {"run.folder": str(tmp_path)}
    with pytest.raises(
        UserError,
        match=r"^--resume: the checkpoint: expected model\.dtype "
        r"float32, got bfloat16$",
    ):
        begun(config(**place, **{"model.dtype": "bfloat16"}), str(newest(folder)))
    assert not any(tmp_path.iterdir())
    driver, said = begun(config(**place, **{"learner.ema": "0"}), str(newest(folder)))
    assert (
        driver.origin == str(newest(folder))
        and not driver.resumed
        and said == ["learner.ema: a mean → no mean"]
    )
    assert open_saved(newest(folder)).state()["driver"]["is"] == identity(loaded)
    older = Store(tmp_path / "older")
    older.save(1, older.claim(), {"driver": {"iteration": 1}}, {})
    said = begun(config(**place), older.newest().path)[1]  # type: ignore[union-attr]
    assert said == [
        "the checkpoint does not say "
        f"{', '.join(key for key in MEANING if key in identity(config()))}: not "
        "compared with what it is now"
    ]


def test_seconds_and_losses_are_those_of_all_drivers(
    trained: tuple[Path, Config], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained[0], tmp_path / trained[0].name))
    first = json.loads((folder / "summary.json").read_text())["seconds"]
    loaded = config(**{"run.folder": str(tmp_path), "run.iterations": "3"})
    with driving(loaded, "auto", lambda line: None) as driver:
        assert driver.resumed and driver.folder == folder
        service = service_for(loaded)
        summary = carry_out(
            loaded,
            service=service,
            folder=folder,
            display=Quiet(),
            interrupted=lambda: False,
            start_up=2.0,
            resumed=True,
            lease=driver.lease,
        )
    seconds = summary["seconds"]
    assert (
        seconds["start_up"] == pytest.approx(3.0)
        and seconds["evaluation_before"] == first["evaluation_before"] > 0
    )
    assert (
        seconds["training"] > first["training"]
        and seconds["evaluation_after"] > first["evaluation_after"]
    )
    assert seconds["total"] == pytest.approx(
        sum(value for key, value in seconds.items() if key != "total")
    )
    records = read(folder / "metrics.jsonl")
    assert [record["service/restarts"] for record in records if "service/restarts" in record] == [
        2.0,
        2.0,
        2.0,
    ] and service.restarts() == {}
    service.earlier.clear()
    assert records[-1]["checkpoint/iteration"] == 3.0  # its last act


# every key


Reading = Callable[[Config, Path], Any]
"""(config, a copy of the folder) → something that follows the key."""


def resumed(loaded: Config, folder: Path) -> tuple[Run, Service, list[dict[str, float]]]:
    """Gone on from the checkpoint of iteration 2."""
    service, log, state = service_for(loaded), Memory(), TrainState()
    run = run_of(loaded, service, folder / "checkpoints", log=log, resumed=True)
    run.begin(state)
    assert state.iteration == 2
    step(run, state)
    return run, service, log.records


def stat(name: str) -> Reading:
    return lambda loaded, folder: resumed(loaded, folder)[2][-1][name]


def moved(loaded: Config, folder: Path) -> list[float]:
    """Where an update takes the weights."""
    learner = resumed(loaded, folder)[1].learner
    return [float(value.detach().double().sum()) for value in learner.policy.masters]


def mean(loaded: Config, folder: Path) -> list[float]:
    return [
        float(value.detach().double().sum())
        for value in resumed(loaded, folder)[1].learner.policy.ema.values()
    ]


def group(key: str) -> Reading:
    return lambda loaded, folder: resumed(loaded, folder)[1].learner.policy.optimiser.param_groups[
        0
    ][key]


def kept(loaded: Config, folder: Path) -> list[int]:
    """Iterations of the checkpoints that are there after the next one."""
    resumed(loaded, folder)
    return sorted(int(path.name.split("-")[3]) for path in (folder / "checkpoints").glob("fence-*"))


def ahead(loaded: Config, folder: Path) -> int:
    return len(resumed(loaded, folder)[0].ahead.pending)


def checked(loaded: Config, folder: Path) -> bool:
    """Is there a check after the next iteration?"""
    return "held_out/total" in resumed(loaded, folder)[2][-1]


AT_START, WHOLE = "read when actors are started, and held in no checkpoint", "seen in a whole run"
FOLLOWED: dict[str, tuple[str, Reading | str, dict[str, str]]] = {
    # key: another value, what follows it (or why nothing can keep it from that), what it needs
    # beside
    "learner.learning_rate": ("0.01", stat("update/learning_rate"), {}),
    "learner.weight_decay": ("0.5", moved, {}),
    "learner.betas": ("[0.5, 0.5]", moved, {}),
    "learner.max_grad_norm": ("1e-9", moved, {}),
    "learner.optimiser_steps": ("2", stat("update/optimiser_steps"), {}),
    "learner.schedule": ("linear", stat("update/learning_rate"), {}),
    "learner.warmup": ("20", stat("update/learning_rate"), {}),
    "learner.final_rate": ("0.9", stat("update/learning_rate"), {"learner.schedule": "cosine"}),
    "learner.ema": ("0.01", mean, {}),  # it warms up: below what the step allows
    "learner.ema_every": ("9", mean, {}),
    "loss.clip_range": ("10.0", stat("update/clip_fraction"), {"learner.optimiser_steps": "2"}),
    "loss.kl_beta": ("0.5", stat("update/kl"), {}),
    "checkpoint.every": ("0", kept, {"checkpoint.every_minutes": "1000"}),
    "checkpoint.every_minutes": ("1e-9", kept, {"checkpoint.every": "0"}),
    "checkpoint.keep": ("3", kept, {}),
    "async.max_staleness": ("1", ahead, {}),
    "evaluation.prompts": ("5", WHOLE, {}),
    "evaluation.steps": ("3", WHOLE, {}),
    "evaluation.weights": ("ema", WHOLE, {}),
    "evaluation.every": ("1", checked, {}),
    "evaluation.every_seconds": ("1e-9", checked, {}),
    "evaluation.diversity": ("2", WHOLE, {}),
    "evaluation.prompts_between": ("2", WHOLE, {}),
    "evaluation.pictures": ("1", WHOLE, {}),
    "evaluation.metric": ("ocr/edit", WHOLE, {}),
    "learner.ranks": ("2", AT_START, {}),
    "learner.max_ranks": ("2", AT_START, {}),
    "learner.parallel": ("fsdp", AT_START, {}),
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
STATE = {"steps", "schedule", "version", "skips", "driver"}
DRIVER = {"iteration", "seconds", "gates", "is", "method"}


def sections() -> set[str]:
    return {
        key
        for key, _ in leaves(shown(config()))
        if key.split(".")[0] in ("learner", "loss", "evaluation", "checkpoint", "async")
    }


def test_each_key_is_followed_or_refused() -> None:
    assert sections() == FOLLOWED.keys() | REFUSED_KEYS


KNOWN: dict[str, Any] = {}
"""What probes gave without the change."""


@pytest.mark.parametrize(
    "key", [key for key, (_, reading, _) in FOLLOWED.items() if not isinstance(reading, str)]
)
def test_a_change_of_the_course_is_followed(
    key: str, trained: tuple[Path, Config], tmp_path: Path
) -> None:
    value, reading, beside = FOLLOWED[key]
    assert not isinstance(reading, str)
    before = repr(
        (reading.__qualname__, reading.__closure__ and reading.__closure__[0].cell_contents, beside)
    )
    if before not in KNOWN:
        KNOWN[before] = reading(
            config(**beside), Path(shutil.copytree(trained[0], tmp_path / "old"))
        )
    assert (
        reading(
            config(**beside | {key: value}), Path(shutil.copytree(trained[0], tmp_path / "new"))
        )
        != KNOWN[before]
    )


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
    assert summary["diversity"]["n"] == 2 and summary["metric"] == "ocr/edit"
    # prompts_between
    assert read(folder / "metrics.jsonl")[-1]["held_out/total"] == pytest.approx(
        sum(scores[:2]) / 2
    )
    # pictures
    assert (folder / "samples" / "after.png").stat().st_size < (
        trained[0] / "samples" / "after.png"
    ).stat().st_size
    assert len(wanted) == 7


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
        loaded = config(**{"run.folder": str(tmp_path), key: FOLLOWED[key][0]})
        assert [line for line in begun(loaded, str(folder))[1] if line.startswith(f"{key}: ")], key


def test_another_loss_is_followed(trained: tuple[Path, Config], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained[0], tmp_path / "run"))
    again = Path(shutil.copytree(trained[0], tmp_path / "again"))
    assert moved(config(loss="{name: guard}"), folder) != moved(config(), again)


@pytest.mark.parametrize("origin", [False, True])
def test_the_rate_is_the_configs_and_the_place_in_the_schedule_the_checkpoints(
    trained: tuple[Path, Config], tmp_path: Path, origin: bool
) -> None:
    folder = Path(shutil.copytree(trained[0], tmp_path / "run"))
    changed = config(
        **{
            "learner.learning_rate": "0.02",
            "learner.schedule": "cosine",
            "learner.warmup": "4",
            "run.iterations": "10",
        }
    )
    service = service_for(changed)
    where = (
        (str(tmp_path / "empty"), str(newest(folder)))
        if origin
        else (str(folder / "checkpoints"), "")
    )
    service.learners.restore(*where)
    policy = service.learner.policy
    assert policy.scheduler.last_epoch == 2
    for position in range(2, 8):
        expected = 0.02 * rate_factor(changed.learner, position, 10)
        assert (
            policy.optimiser.param_groups[0]["lr"] == policy.scheduler.get_last_lr()[0] == expected
        )
        for value in policy.masters:
            value.grad = torch.ones_like(value)
        policy.optimiser.step()
        policy.scheduler.step()


def test_scores_before_training_are_measured_again_where_the_check_is_another(
    trained: tuple[Path, Config], tmp_path: Path
) -> None:
    folder, saved = Path(shutil.copytree(trained[0], tmp_path / "run")), shown(trained[1])
    assert checked_alike(
        saved,
        config(
            **{"learner.learning_rate": "1", "evaluation.pictures": "3", "evaluation.every": "3"}
        ),
    )
    for key, value in (
        ("evaluation.prompts", "5"),
        ("evaluation.steps", "3"),
        ("sampling.steps", "5"),
        ("run.seed", "1"),
        ("rewards.0.weight", "2.0"),
    ):
        assert not checked_alike(saved, config(**{key: value})), key
    (folder / "held_out.json").write_text("")  # damaged: measured again too
    changed = config(**{"run.iterations": "2"})
    summary = carry_out(
        changed,
        service=service_for(changed),
        folder=folder,
        display=Quiet(),
        interrupted=lambda: False,
        resumed=True,
    )
    assert (
        summary["held_out"]["total"]["before"]
        == json.loads((trained[0] / "summary.json").read_text())["held_out"]["total"]["before"]
    )
