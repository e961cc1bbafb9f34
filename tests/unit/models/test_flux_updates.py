"""Options of the FLUX family in the actors: token budget, behaviour velocity, another config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.records import records
from support.small_flux import PROMPTS, SMALL, velocity
from support.small_trees import quickstart
from torch import Tensor

from actors.learner import Learner
from actors.rollout import RolloutWorker
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import assemble, topology
from branchgrpo.learner import shard
from branchgrpo.learner.payloads import PayloadStore
from branchgrpo.models import weights as wire
from branchgrpo.service import UpdateRequest
from branchgrpo.types import (
    Conditioning,
    SegmentRequest,
    Subtree,
    TreeKey,
)

pytestmark = pytest.mark.networks


LORA = {"model.lora_rank": "4"}


class Case:
    """A learner and one batch for it: two trees, grown in one segment."""

    def __init__(self, **options: str):
        self.config = quickstart(SMALL | options)
        self.worker, self.learner = RolloutWorker(self.config, 0), Learner(self.config, 0, list)
        self.plan = self.config.method.plan(0, static(5, 3.0))
        self.worker.ready(), self.learner.join(1, "")
        _, *self.conditioning = self.worker.encode(records(PROMPTS))
        subtrees = tuple(Subtree(TreeKey("test", 0, prompt, 0), prompt, 0) for prompt in range(2))
        header, payload, _ = self.worker.grow(
            self.plan,
            SegmentRequest(version=0, subtrees=subtrees, start=0, stop=5),
            *self.conditioning,
        )
        draw = np.random.default_rng(0)
        self.segments = [(header, payload)]
        self.scores = {
            (prompt, 0): draw.normal(size=(1, 4)).astype(np.float32) for prompt in range(2)
        }

    def update(self) -> Any:
        return self.learner.update(
            UpdateRequest(
                plan=self.plan,
                iteration=0,
                segments=self.segments,
                conditioning=self.conditioning,
                scores=self.scores,
            )
        )

    def gradient(self) -> Tensor:
        return torch.cat(
            [value.grad.flatten().double() for value in self.learner.model.trainable().values()]
        )


def counted(learner: Learner) -> list[int]:
    """Rows of every forward from now on."""
    rows: list[int] = []
    forward: Callable[..., Tensor] = learner.model.forward

    def spy(x: Tensor, *rest: Any) -> Tensor:
        rows.append(len(x))
        return forward(x, *rest)

    learner.model.forward = spy
    return rows


@pytest.mark.parametrize("guided", [False, True])
def test_a_token_budget_limits_micro_batches_and_not_the_gradient(guided: bool) -> None:
    options = {"model.true_cfg": "2.0"} if guided else {}
    copies, plain = 2 if guided else 1, Case(**options)
    tokens = copies * (plain.learner.model.latent_shape[0] + 16)  # of one parent, with its text
    plain.update()
    for budget, parents in ((4 * tokens - 1, 3), (1, 1)):
        case = Case(**options, **{"learner.token_budget": str(budget)})
        rows = counted(case.learner)
        case.update()
        assert max(rows) == parents * copies
        assert float((case.gradient() - plain.gradient()).norm()) <= 1e-5 * float(
            plain.gradient().norm()
        )
    wide = Case(**options, **{"learner.token_budget": str(10**9), "learner.micro_batch": "2"})
    rows = counted(wide.learner)
    wide.update()
    assert max(rows) == 2 * copies


def test_payloads_hold_the_behaviour_velocity_that_guard_needs() -> None:
    case = Case(
        **{"loss.name": "guard", "learner.optimiser_steps": "2", "learner.learning_rate": "0.001"}
    )
    trees = assemble(
        case.plan,
        [header for header, _ in case.segments],
        case.config.credit.leaf_rewards(case.scores),
    )
    steps = [
        ranks[0]
        for ranks in shard.split(
            case.plan,
            credits=case.config.credit.assign(case.plan, trees, 0, case.scores),
            ranks=1,
            optimiser_steps=2,
            seed=0,
        )
    ]
    store = PayloadStore(
        fetch=list, plan=case.plan, trees=trees, segments=case.segments, shards=steps
    )
    topo = topology(case.plan)
    cond = case.worker.model.conditioning(Conditioning.joined(case.conditioning))
    case.update()  # the learner's weights move, the rollout's are the behaviour policy's
    parents = [(tree, node) for one in steps for tree, node in one.parents.tolist()]
    assert len(set(parents)) == len(parents) == 2 * (1 + 2 + 2 + 4)
    for tree, node in parents:
        sigma = torch.tensor([float(case.plan.sigmas[topo.step[node] + 1])])
        wanted = velocity(
            case.worker.model,
            (
                store.latents(tree, node)[None],
                sigma,
                {name: array[tree : tree + 1] for name, array in cond.items()},
            ),
        )[0]
        torch.testing.assert_close(store.behaviour(tree, node), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, LORA], ids=["full", "lora"])
def test_configure_begins_again_with_the_untrained_model(options: dict[str, str]) -> None:
    extra = options | {
        "learner.learning_rate": "0.001",
        "learner.ema": "0.5",
        "loss.kl_beta": "0.1",
        "learner.warmup": "3",
    }
    case = Case(**extra)
    learner, worker = case.learner, case.worker
    digest, fingerprint = wire.digest_of(learner.model.trainable()), learner.fingerprint()
    first = case.update()
    trained = wire.digest_of(learner.model.trainable())
    _, update, *chunks = learner.publish()
    assert worker.load_weights(update, *chunks) == trained != digest
    assert np.array_equal(worker.fingerprint(), learner.fingerprint()) and not np.array_equal(
        worker.fingerprint(), fingerprint
    )
    learner.skips = 2

    learner.configure(case.config)
    worker.configure(case.config)
    assert (learner.version, learner.skips, worker.version) == (0, 0, 0)
    assert wire.digest_of(learner.model.trainable()) == wire.digest_of(learner.policy.ema) == digest
    assert np.array_equal(worker.fingerprint(), fingerprint) and np.array_equal(
        learner.fingerprint(), fingerprint
    )
    again = case.update()  # the optimiser, its schedule and the gates are new as well
    assert again == first and wire.digest_of(learner.model.trainable()) == trained
    assert first.on_policy_deviation <= case.config.gates.on_policy_tolerance


def test_configure_takes_the_new_config() -> None:
    case = Case()
    other = quickstart(
        SMALL
        | LORA
        | {"loss.kl_beta": "0.5", "learner.learning_rate": "0.01", "learner.warmup": "0"}
    )
    case.learner.configure(other)
    case.worker.configure(other)
    assert case.learner.config is other and case.learner.model.adapted and case.worker.model.adapted
    case.config = other
    assert case.update().learning_rate == pytest.approx(0.01)
    assert all(".lora_" in name for name in case.learner.publish()[1].names)
