"""What does not go with a loss on leaves is refused in a line, and what it needs is derived."""

from __future__ import annotations

import numpy as np
import pytest
from support.small_trees import header, plan_of, quickstart

from branchgrpo.errors import UserError

CHAINS = "{name: chains, chains: 4, root: private, stochastic: none}"
GROUP = "{name: group}"

REFUSED = {
    "no random steps": (
        {"method": CHAINS, "advantage": GROUP},
        r"loss: expected a loss on leaves \(nft, awm, dgpo, crd\) with chains without random "
        r"steps, got clipped, which trains those",
    ),
    "one root": (
        {
            "method": "{name: chains, chains: 4, stochastic: none}",
            "advantage": GROUP,
            "loss": "{name: nft}",
        },
        r"method\.root: expected private with stochastic: none, got shared: all chains of a group "
        r"would be equal",
    ),
    "old side": (
        {"loss": "{name: awm}", "learner.old": "recompute"},
        r"learner\.old: expected behaviour with the loss awm, which has no ratio of edges, got "
        r"recompute",
    ),
    "shards": (
        {"loss": "{name: crd}", "learner.parallel": "fsdp"},
        r"learner\.parallel: expected ddp with the loss crd, which holds a second set of weights, "
        r"got fsdp",
    ),
    "shards of edges": (
        {"loss.mean_beta": "1", "learner.parallel": "fsdp"},
        r"learner\.parallel: expected ddp with the loss clipped, which holds a second set of "
        r"weights, got fsdp",
    ),
    "depths": (
        {"loss": "{name: nft}", "pruning": "[{name: width}, {name: depth}]"},
        r"pruning: expected only rules that leave out leaves with the loss nft, got "
        r"\['width', 'depth'\]",
    ),
    "siblings": (
        {"loss": "{name: nft}", "advantage": "{name: sibling}"},
        r"advantage: expected an estimator that compares leaves with the loss nft, got sibling",
    ),
    "steps": (
        {"loss": "{name: dgpo}", "pruning": "[{name: steps}]"},
        r"pruning: expected only rules that leave out leaves with the loss dgpo, got \['steps'\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_a_line(case: str) -> None:
    keys, line = REFUSED[case]
    with pytest.raises(UserError, match=f"(^|^--|: ){line}$"):
        quickstart(keys)


@pytest.mark.parametrize("loss", ["nft", "awm", "dgpo", "crd"])
def test_trees_and_chains_go_with_it(loss: str) -> None:
    for keys in (
        {},  # the quick start's trees
        {"method": CHAINS, "advantage": GROUP},
        {"method": "{name: tempflow}"},
        {"pruning": "[{name: width}]"},
    ):
        found = quickstart(keys | {"loss": f"{{name: {loss}}}"})
        assert found.credit.trained == "leaves" and not found.keeps_behaviour_mean
        sampled = loss in ("nft", "crd")
        assert found.grown_with == ("second" if sampled else "policy")
    for keys in ({}, {"loss.mean_beta": "1"}):  # the mean is for the loss alone
        found = quickstart(keys)
        assert found.credit.trained == "edges" and found.grown_with == "policy"


def test_without_a_second_set_weights_may_lie_in_shards() -> None:
    for loss in ("{name: awm, mean_beta: 0}", "{name: dgpo, clip_range: 0}"):
        found = quickstart({"loss": loss, "learner.parallel": "fsdp"})
        assert found.loss.second == "none"


def test_the_base_is_kept_where_it_is_taken() -> None:
    for loss, kept in (
        ("{name: nft}", True),
        ("{name: nft, kl_beta: 0}", False),
        ("{name: dgpo, kl_beta: 0}", True),  # ω compares with it
        ("{name: crd}", False),
        ("{name: clipped}", False),
        ("{name: clipped, kl_beta: 0.1}", True),
    ):
        assert quickstart({"loss": loss}).loss.needs_base is kept, loss


def test_forwards_without_a_gradient_are_counted() -> None:
    for loss, steps, wanted in (
        ("{name: nft}", 1, 2),  # of the old weights, and of the base
        ("{name: nft, kl_beta: 0}", 1, 1),
        ("{name: awm}", 1, 2),
        ("{name: awm}", 2, 2.5),  # and of the second step's points before the first
        ("{name: dgpo}", 1, 4),  # score and base before; base and mean beside the gradient
        ("{name: crd}", 1, 2),  # score and old before
        ("{name: clipped}", 3, 0),
        ("{name: clipped, kl_beta: 1}", 3, 1),
        ("{name: guard, kl_beta: 1, mean_beta: 1}", 1, 2),
    ):
        assert quickstart({"loss": loss}).loss.compared(steps) == wanted, loss


def test_leaves_are_trained_by_what_they_earn_and_width_leaves_some_out() -> None:
    plan = plan_of(2, 1, 2, 1)  # 4 leaves, whose last edges have no noise
    trees = [header(plan, [1.0, 2.0, 4.0, 9.0], tree=tree) for tree in range(2)]
    for keys, kept in (
        ({}, [True] * 4),
        ({"pruning": "[{name: width}]"}, [False, True, False, True]),  # the better of each pair
    ):
        credit = quickstart(keys | {"loss": "{name: nft}", "advantage": "{name: group}"}).credit
        for found in credit.assign(plan, trees, 0, {}):
            assert found.keep.tolist() == [False] * (len(found.keep) - 4) + kept
            spread = np.array([1.0, 2.0, 4.0, 9.0] * 2).std(ddof=1)
            wanted = (np.array([1.0, 2.0, 4.0, 9.0]) - 4.0) / spread
            assert np.allclose(found.advantage[-4:], wanted)
