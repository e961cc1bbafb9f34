"""A run that goes on with another config: what changes only its course is followed (each key:
test_changed_keys.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.interrupted import config, interrupted, newest, service_for
from support.quiet_display import Quiet
from support.small_drivers import begun

from branchgrpo.checkpoint.store import Store, open_saved
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError
from branchgrpo.learner.rates import rate_factor
from branchgrpo.report.sinks import read
from branchgrpo.runs.folder import driving
from branchgrpo.runs.identity import (
    MEANING,
    checked_alike,
    identity,
    shown,
)
from branchgrpo.training.carry_out import carry_out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    return interrupted(tmp_path_factory.mktemp("trained"))


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
        ("evaluation.height", "48"),
        ("sampling.steps", "5"),
        ("run.seed", "1"),
        ("rewards.0.weight", "2.0"),
        ("evaluation.rewards", "[{name: jpeg}]"),
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
