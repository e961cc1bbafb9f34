"""Scouts, and what is grown again after them, by the real workers: from the same noise, to the
bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.in_process import Service
from support.records import records
from support.small_trees import quickstart

from branchgrpo.algo.tree import assemble
from branchgrpo.config.schema import Config
from branchgrpo.rewards.base import Scorer
from branchgrpo.rollout import scouts
from branchgrpo.rollout.batch import RolloutBatch
from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.types import F32, U8, Sample
from tests.reference import slow_ranks

pytestmark = pytest.mark.networks

SMALL = {
    "sampling.steps": "4",
    "rollout.workers": "2",
    "rollout.tasks_per_worker": "2",
    "rollout.threads": "1",
    "rollout.max_batch": "1",  # a row's last bits may depend on those beside it
    "learner.threads": "1",
    "rewards": "[{name: jpeg}]",
    "advantage": "{name: group}",
}
CHAINS, CANDIDATES = 3, 7
METHOD = "name: chains, chains: 3, root: private"
LEAVES = {
    "method": f"{{{METHOD}, stochastic: none, tail: dpm, tail_ratio: 1.0}}",
    "loss": "{name: nft}",
}
EDGES = {"method": f"{{{METHOD}, stochastic: all}}", "loss": "{name: clipped}"}
PROMPTS = ["the number 38 in black on yellow", "the number 12 in red on white"]
SCOUTS = {"method.scouts": str(CANDIDATES), "method.scout_steps": "2"}


def grown(config: Config, service: Service | None = None) -> RolloutBatch:
    """Iteration 5 as training grows it."""
    method = config.method.start(config.sampling.steps, config.run.seed)
    return scouts.collect(
        config,
        RolloutCollector(config, service or Service(config), "test"),
        config.plan(method, 5, config.schedule()),
        method.scouting(config.schedule()),
        iteration=5,
        version=0,
        prompts=[4, 9],
        samples=records(PROMPTS),
        encoded=None,
    )


def candidates(config: Config) -> dict[int, dict[int, float]]:
    """Every candidate's reward by prompt and number, by a collection of their plan alone."""
    plan = config.method.scouting(config.schedule())
    assert plan is not None
    batch = RolloutCollector(config, Service(config), "test").collect(
        plan,
        iteration=5,
        version=0,
        prompts=[4, 9],
        samples=records(PROMPTS),
        trees=config.rollout.trees_per_prompt * CANDIDATES,
    )
    found: dict[int, dict[int, float]] = {}
    for (row, tree), (reward,) in batch.rewards.items():
        found.setdefault(row, {})[tree] = float(reward)
    return found


def kept(config: Config, batch: RolloutBatch) -> dict[tuple[int, int], list[Any]]:
    """Of every tree: log-probs, then number and latent of each node that is kept."""
    plan = config.method.plan(5, config.schedule())
    headers = [header for header, _ in batch.segments]
    found: dict[tuple[int, int], list[Any]] = {
        (tree.prompt_index, tree.key.tree): [tree.log_prob]
        for tree in assemble(plan, headers, batch.rewards)
    }
    for header, payload in batch.segments:
        for row, node, latent in zip(payload.subtree, payload.node, payload.latents, strict=True):
            tree = header.subtrees[int(row)]
            found[tree.prompt_index, tree.key.tree] += [np.array(node), latent]
    return found


@pytest.mark.parametrize("form", [LEAVES, EDGES])
def test_what_is_grown_again_is_what_a_run_without_scouts_has(form: dict[str, str]) -> None:
    """One of as many chains as there are candidates."""
    config = quickstart(SMALL | form | SCOUTS)
    plain = quickstart(SMALL | form | {"method.chains": str(CANDIDATES)})
    batch, every = grown(config), grown(plain)
    assert len(every.rewards) == 2 * CANDIDATES and every.scouted is None
    found, expected = kept(config, batch), kept(plain, every)
    assert len(found) == 2 * CHAINS
    for name, arrays in found.items():
        assert len(arrays) > 2  # there are latents
        for one, other in zip(arrays, expected[name], strict=True):
            assert np.array_equal(one, other), name
        assert np.array_equal(batch.scores[name], every.scores[name])


@pytest.mark.parametrize("form", [LEAVES, EDGES])
def test_the_best_and_the_worst_of_the_candidates_are_grown_again(form: dict[str, str]) -> None:
    config = quickstart(SMALL | form | SCOUTS)
    batch, told = grown(config), candidates(config)
    numbers = {row: [tree for at, tree in batch.rewards if at == row] for row in told}
    assert numbers == {row: slow_ranks.best_and_worst(told[row], CHAINS) for row in told}
    again = {row: [float(batch.rewards[row, tree][0]) for tree in numbers[row]] for row in told}
    assert batch.scouted is not None
    assert batch.scouted.agreement == pytest.approx(
        np.mean(
            [
                slow_ranks.spearman([told[row][tree] for tree in numbers[row]], again[row])
                for row in told
            ]
        )
    )
    assert batch.scouted.reward == pytest.approx(
        np.mean([reward for of in told.values() for reward in of.values()]), rel=1e-6
    )
    assert batch.scouted.forwards == 2 * CANDIDATES * 2
    assert batch.forwards == batch.scouted.forwards + 2 * CHAINS * 4
    assert sorted(batch.seconds) == ["encode", "grow", "score", "scout"]
    assert 0 < batch.seconds["scout"] < batch.seconds["grow"] + batch.seconds["score"]


def test_more_trees_a_prompt_are_as_many_more_candidates() -> None:
    config = quickstart(SMALL | LEAVES | SCOUTS | {"rollout.trees_per_prompt": "2"})
    batch, told = grown(config), candidates(config)
    assert len(told[0]) == 2 * CANDIDATES
    expected = {row: slow_ranks.best_and_worst(told[row], 2 * CHAINS) for row in told}
    assert list(batch.rewards) == [(row, tree) for row in expected for tree in expected[row]]


def test_scouts_keep_no_latents() -> None:
    service = Service(quickstart(SMALL | LEAVES | SCOUTS))
    grown(service.config, service)
    asked = [request for name, (_, request, *_) in service.rollout_pool.calls if name == "grow"]
    plans = {request.stop: request.clean for request in asked}
    assert plans == {2: False, 4: True}  # by their steps
    worker = service.rollout_pool.workers[0]
    for name, arguments in service.rollout_pool.calls:
        if name == "grow":
            _, payload, *_ = worker.grow(*arguments)
            assert len(payload.latents) == (len(arguments[1].subtrees) if arguments[1].clean else 0)


def test_rewards_that_compare_pictures_see_whole_groups_in_both_passes() -> None:
    keys = {"rewards": "[{name: pairwise, of: {name: jpeg}}]"}
    batch = grown(quickstart(SMALL | LEAVES | SCOUTS | keys))
    assert len(batch.rewards) == 2 * CHAINS
    # shares of the other pictures: of 3 pictures their mean is a half
    for row in range(2):
        rewards = [float(batch.rewards[key][0]) for key in batch.rewards if key[0] == row]
        assert np.mean(rewards) == pytest.approx(0.5)


class Failing(Scorer):
    """Scores pictures by their means, of the prompt of 12 only so many."""

    def __init__(self, left: int):
        self.left = left

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        asked = sum("12" in sample.prompt for sample in samples)
        self.left -= asked
        if asked and self.left < 0:
            raise ConnectionError("no route to the scorer")
        return {"score": pixels.reshape(len(pixels), -1).mean(1).astype(np.float32)}


@pytest.mark.parametrize("left", [0, CANDIDATES])
def test_a_prompt_whose_rewards_fail_in_either_pass_is_dropped(left: int) -> None:
    keys = {
        "reward_workers.on_failure": "drop_group",
        "reward_workers.retries": "0",
        "rollout.tasks_per_worker": "1",
    }
    config = quickstart(SMALL | LEAVES | SCOUTS | keys)
    service = Service(config)
    scorer = Failing(left)
    for worker in service.reward_pools[0].workers:
        worker.scorers = [("jpeg", scorer)]
    batch = grown(config, service)
    assert {row for row, _ in batch.rewards} == {0} and len(batch.rewards) == CHAINS
    assert list(batch.dropped) == [1] and "no route" in batch.dropped[1]
    assert batch.scouted is not None and -1 <= batch.scouted.agreement <= 1
