"""What `train CONFIG --smoke` makes of a config; whole runs are in tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_trees import quickstart

from branchgrpo.app.check import check
from branchgrpo.app.parser import parse
from branchgrpo.app.smoke import LEARNER_SHARE, roles, shrunk
from branchgrpo.config import load as configs
from branchgrpo.config.registry import TABLES
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import config_file, names
from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.small.stand_in import stand_in

KEPT = ("method", "advantage", "pruning", "loss", "combine", "sampling", "async_", "gates")
"""Sections that smoke leaves alone."""


@pytest.mark.networks
@pytest.mark.parametrize("name", names())
def test_a_shipped_config_shrinks_to_one_that_is_ready(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = configs.load(config_file(name))
    small = shrunk(given, tmp_path)
    check(small)  # every file is there, and whole
    assert all(getattr(small, key) == getattr(given, key) for key in KEPT)
    assert small.model.called == given.model.called and small.model.dtype == given.model.dtype
    assert small.model.adapter_rank == given.model.adapter_rank
    here = ["jpeg" if one.elsewhere else one.called for one in given.rewards]
    assert [reward.called for reward in small.rewards] == here
    assert max(small.model.picture_size) <= 64 and small.rollout.prompts <= 2
    assert small.learner.parallel == given.learner.parallel and small.run.iterations <= 2
    assert small.run.export == given.run.export and Path(small.run.folder).parent == tmp_path
    told = capsys.readouterr().out
    for index, (now, before) in enumerate(zip(small.rewards, given.rewards, strict=True)):
        assert (f"rewards.{index} " in told) == (now != before)
    assert f"iterations {small.run.iterations} (was {given.run.iterations})" in told


@pytest.mark.networks
def test_held_out_pictures_that_are_larger_stay_so(tmp_path: Path) -> None:
    keys = {"evaluation.height": "1024", "evaluation.width": "360"}
    given = configs.load(config_file("sd3.5-medium-1gpu"), keys)
    small = shrunk(given, tmp_path)
    check(small)
    assert small.model.picture_size == (32, 32) and given.model.picture_size[1] > 360
    assert small.evaluated.picture_size == (64, 32)


def two_nodes() -> Config:
    """Five rollout workers, two reward workers and four ranks, a GPU each."""
    keys = {"rollout.workers": "5", "reward_workers.workers": "2", "learner.ranks": "4"}
    gpus = {f"{role}.gpus": "1" for role in ("rollout", "reward_workers", "learner")}
    return quickstart(keys | gpus | {"rollout.resource": "spot"})


@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
@pytest.mark.parametrize("cores", [1, 2, 16])
def test_roles_fit_the_machine(cores: int, gpus: int) -> None:
    found = roles(two_nodes(), cores, gpus)
    rollout, reward, learner = found["rollout"], found["reward_workers"], found["learner"]
    counts = rollout.workers, reward.workers, learner.ranks
    assert learner.ranks == min(2, gpus or cores) and not rollout.resource
    for key, have in (("cpus", cores), ("gpus", gpus)):
        wanted = [getattr(role, key) for role in (rollout, reward, learner)]
        assert sum(a * b for a, b in zip(wanted, counts, strict=True)) <= have + 1e-9
        assert all(wanted) == bool(have)
    if gpus:
        assert learner.gpus == LEARNER_SHARE and 2 * learner.gpus > 1  # none beside another


@pytest.mark.networks
@pytest.mark.parametrize("name", ["hps", "clip", "pickscore", "aesthetic", "video_align"])
def test_a_reward_without_its_files_is_a_small_one_of_its_class(name: str, tmp_path: Path) -> None:
    given = TABLES["rewards"].find(name)(path=str(tmp_path / "gone"), weight=0.5)
    small, why = stand_in(given, tmp_path / "small")
    assert type(small) is type(given) and small.weight == 0.5 and str(tmp_path / "gone") in why
    small.check()
    assert small.build(Resources()).trains_on


def test_a_reward_that_makes_no_small_one_is_the_size_of_a_jpeg(tmp_path: Path) -> None:
    given = TABLES["rewards"].find("image_reward")(path=str(tmp_path / "gone"), weight=2.0)
    small, why = stand_in(given, tmp_path)
    assert small.called == "jpeg" and small.title == "image_reward" and small.weight == 2.0
    assert why.startswith("jpeg (rewards.image_reward.path: expected ")
    there = TABLES["rewards"].find("ocr")()
    assert stand_in(there, tmp_path) == (there, "")


def test_a_file_that_is_there_and_wrong_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"\0" * 7)
    with pytest.raises(UserError, match=r"^rewards\.clip\.path: "):
        stand_in(TABLES["rewards"].find("clip")(path=str(path)), tmp_path)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(UserError, match=r"^prompts: expected at least one prompt"):
        shrunk(quickstart({"prompts": str(empty)}), tmp_path)


def test_what_does_not_go_together_small_is_told(tmp_path: Path) -> None:
    given = quickstart({"rollout.max_workers": "4"})
    broken = given.model_copy(
        update={"learner": given.learner.model_copy(update={"ranks": 3, "max_ranks": 0})}
    )
    with pytest.raises(UserError, match=r"^learner\.ranks: expected 1 … 0"):
        shrunk(broken, tmp_path)


def test_it_is_an_option_of_train_that_excludes_resume() -> None:
    assert parse(["train", "--smoke"])[0].smoke and not parse([])[0].smoke
    with pytest.raises(SystemExit):
        parse(["train", "--smoke", "--resume", "auto"])
