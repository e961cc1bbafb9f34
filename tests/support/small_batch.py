"""Trees of the embedded model for one update, and what an update made of them: what tests of
several ranks share."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.spawn import start_processes

from actors.learner import Learner
from actors.rollout import RolloutWorker
from branchgrpo.config.schema import Config
from branchgrpo.learner.fsdp import full
from branchgrpo.models import weights as wire
from branchgrpo.service import UpdateRequest
from branchgrpo.types import (
    SegmentRequest,
    Subtree,
    TreeKey,
)
from support.records import records
from support.small_trees import quickstart

PROMPTS = [
    "the number 38 in black on yellow",
    "the number 12 in red on white",
    "a red circle on white",
]
LIBRARIES = ("torch", "peft", "diffusers.pipelines.flux.pipeline_flux")
OPTIONS = {
    "sampling.steps": "5",
    "method.splits": "[0, 2]",
    "method.leaves": "4",
    "method.stochastic": "all",
    "learner.micro_batch": "7",
    "learner.threads": "1",
    "rollout.threads": "1",
    "learner.learning_rate": "0.001",
    "learner.timeout_seconds": "240",
}


def config(ranks: int, options: dict[str, str] | None = None) -> Config:
    return quickstart(OPTIONS | {"learner.ranks": str(ranks)} | (options or {}))


def batch(changes: dict[str, str] | None = None) -> tuple[UpdateRequest]:
    """The argument of Learner.update: three trees, in two segments each. changes: of the config."""
    options = config(1, changes)
    worker = RolloutWorker(options, 0)
    worker.ready()
    schedule = options.schedule()
    plan = options.plan(options.method.start(schedule.steps, 0), 0, schedule)
    _, *conditioning = worker.encode(records(PROMPTS))
    trees = tuple(
        Subtree(TreeKey("test", 0, prompt, 0), prompt, 0) for prompt in range(len(PROMPTS))
    )
    clean = options.credit.trained == "leaves"
    first = SegmentRequest(version=0, subtrees=trees, start=0, stop=1, clean=clean)
    trunk, payload, *frontier = worker.grow(plan, first, *conditioning)
    halves = tuple(Subtree(tree.key, tree.prompt_index, node) for tree in trees for node in (1, 2))
    segments = [(trunk, payload)]
    for part in (slice(0, 3), slice(3, 6)):
        request = SegmentRequest(
            version=0, subtrees=halves[part], start=1, stop=plan.steps, clean=clean
        )
        texts = [conditioning[prompt] for prompt in request.prompts]
        header, rest, _ = worker.grow(plan, request, *texts, *frontier[part])
        segments.append((header, rest))
    draw = np.random.default_rng(0)
    scores = {
        (prompt, 0): draw.normal(size=(1, 4)).astype(np.float32) for prompt in range(len(PROMPTS))
    }
    return (
        UpdateRequest(
            plan=plan, iteration=0, segments=segments, conditioning=conditioning, scores=scores
        ),
    )


def outcome(learner: Learner, arguments: tuple[Any, ...]) -> dict[str, Any]:
    stats = learner.update(*arguments)
    parameters = learner.model.trainable()
    return {
        "stats": stats,
        "gradient": {name: full(value.grad).clone() for name, value in parameters.items()},
        "weights": {name: full(value.detach()).clone() for name, value in parameters.items()},
        "digest": wire.digest_of(
            {name: full(value.detach()) for name, value in parameters.items()}
        ),
    }


def two_ranks(main: Callable[..., None], folder: Path, ranks: int = 2) -> list[dict[str, Any]]:
    """What two processes (or so many) that ran main(rank, address, folder) left in
    folder/rankN.pt. They meet on the loopback device.

    They are forked from a process that has imported the libraries, which takes each of them ten
    seconds otherwise."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    multiprocessing.set_forkserver_preload(list(LIBRARIES))
    arguments = (main, address, str(folder))
    start_processes(_rank, arguments, nprocs=ranks, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(ranks)]


def _rank(rank: int, main: Callable[..., None], address: str, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    main(rank, address, folder)
