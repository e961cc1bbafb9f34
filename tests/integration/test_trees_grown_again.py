"""Trees that are grown again from a checkpoint are those that were trained on; and what is shown of
their nodes is what these would have become."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from support.in_process import Service
from support.small_loop import SMALL
from support.small_trees import quickstart

from branchgrpo.algo import noise
from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.report.terminal import Display
from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.rollout.trees import GrownTree, grow
from branchgrpo.runs.measured import grown_with, put_together
from branchgrpo.service import UpdateRequest
from branchgrpo.training.carry_out import carry_out
from branchgrpo.types import TreeKey

pytestmark = pytest.mark.networks

TREES = {"evaluation.trees": "1", "evaluation.every": "2", "checkpoint.every": "2"}
CASES: dict[str, dict[str, str]] = {
    "edges": {},
    "what is sampled with": {
        "loss": "{name: nft, old: {start: 0.9}}",
        "advantage": "{name: group}",
    },
    "splits that move": {
        "method": "{name: treegrpo, fanout: 2, window: {size: 2, strategy: geometric}}",
    },
}


class Watched(Service):
    """A service that remembers every update's request."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.requests: dict[int, UpdateRequest] = {}
        begin = self.learner.update

        def update(request: UpdateRequest, *rest: Any) -> Any:
            self.requests[request.iteration] = request
            return begin(request, *rest)

        self.learner.update = update  # type: ignore[method-assign]


def config(**options: str) -> Config:
    small = {
        key: value
        for key, value in SMALL.items()
        if "method" not in options or not key.startswith("method.")
    }
    return quickstart(small | TREES | {"evaluation.pictures": "2"} | options)


def run(folder: Path, loaded: Config) -> Watched:
    service = Watched(loaded)
    carry_out(
        loaded,
        service=service,
        folder=folder,
        display=Display("test", 4, loaded.metric, Console(file=io.StringIO())),
        interrupted=lambda: False,
    )
    return service


def again(loaded: Config, folder: Path, iteration: int) -> list[GrownTree]:
    """The first prompts' trees of an iteration, by what the folder holds."""
    found = put_together(grown_with(loaded, folder, iteration), folder / "put-together")
    service = Service(found)
    method = found.method.start(found.sampling.steps, found.run.seed)
    known, _ = prompts.lists(found)
    chosen = prompts.deal(len(known), found.rollout.prompts, iteration, found.run.seed)
    return grow(
        RolloutCollector(found, service, "again"),
        method,
        iteration=iteration,
        version=0,
        prompts=chosen,
    )


@pytest.mark.parametrize("case", CASES)
def test_the_same_trees_get_the_same_credit(tmp_path: Path, case: str) -> None:
    loaded = config(**CASES[case])
    service = run(tmp_path / "run", loaded)
    for iteration in (0, 2):
        request = service.requests[iteration]
        grown = again(loaded, tmp_path / "run", iteration)
        assert len(grown) == len(request.scores)
        assert grown[0].plan.splits == request.plan.splits
        np.testing.assert_array_equal(grown[0].plan.sigmas, request.plan.sigmas)
        for tree, scores in zip(grown, request.scores.values(), strict=True):
            np.testing.assert_allclose(tree.reward, scores[0], atol=1e-3)
        logs = np.concatenate([header.log_prob.ravel() for header, _ in request.segments])
        own = np.concatenate([tree.log_prob[tree.topology.stochastic] for tree in grown])
        np.testing.assert_allclose(np.sort(own), np.sort(logs), atol=1e-4)


def test_checks_leave_pages_of_trees(tmp_path: Path) -> None:
    loaded = config()
    run(tmp_path / "run", loaded)
    pages = sorted(path.name for path in (tmp_path / "run" / "trees").iterdir())
    iterations = {name.partition("-")[0] for name in pages}
    assert iterations == {"000000", "000002", "000004"}
    assert {Path(name).suffix for name in pages} == {".html", ".png"}
    assert len(pages) == 6


def test_a_node_shows_what_it_would_have_become(tmp_path: Path) -> None:
    """x̂0 = x − σ·v of the root, by the model alone; whatever workers grew what."""
    loaded = config(**{"rollout.workers": "2", "rollout.fork_depth": "1", "rollout.max_batch": "1"})
    service = Service(loaded)
    collector = RolloutCollector(loaded, service, "test")
    method = loaded.method.start(loaded.sampling.steps, loaded.run.seed)
    grown = grow(collector, method, iteration=3, version=0, prompts=[5])
    (tree,) = grown
    assert sorted(tree.pixels) == sorted(
        [0, 1, 2, *range(tree.topology.nodes - tree.topology.leaves, tree.topology.nodes)]
    )
    worker = service.rollout_pool.workers[0]
    model = worker.model
    root = noise.draw(loaded.run.seed, TreeKey("test", 3, 5, 0), 0, model.latent_shape)[None]
    cond = model.conditioning(model.encode([tree.sample]))
    with torch.no_grad():
        v = model.velocity(root, torch.ones(1), cond)
    expected = model.decode(root - v)[0, 0]
    assert np.abs(tree.pixels[0].astype(int) - expected.astype(int)).max() <= 1
