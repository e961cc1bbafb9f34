"""Batched frontier against one node per forward, on the same tree of the embedded model. Prints
JSON.

uv run python tests/bench/frontier.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from time import perf_counter

import torch
from support.records import records

from branchgrpo.config import load as configs
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.types import Subtree, TreeKey

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def main() -> None:
    """Interleave both forms and report the ratio of medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each form")
    repeats = parser.parse_args().repeats
    config = configs.load(QUICKSTART, preset="branchgrpo")
    model = config.model.build("cpu")
    plan = config.method.plan(0, config.schedule())
    conditioning = model.encode(records(["the number 38 in black on yellow"]))
    subtrees = (Subtree(TreeKey("bench", 0, 0, 0), 0, 0),)
    samplers = {
        "batched": Sampler(model, 0, torch.float32, 64),
        "one node per forward": Sampler(model, 0, torch.float32, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    leaves, forwards = {}, {}
    for repeat in range(repeats + 1):  # the first is warm-up
        for name, sampler in samplers.items():
            begun = perf_counter()
            grown = sampler.grow(
                plan,
                subtrees=subtrees,
                x=sampler.roots(plan, subtrees),
                start=0,
                stop=plan.steps,
                conditioning=conditioning,
            )
            if repeat:
                seconds[name].append(perf_counter() - begun)
            leaves[name], forwards[name] = grown.frontier, grown.forwards
    difference = float((leaves["batched"] - leaves["one node per forward"]).abs().max())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "seconds": medians,
        "ratio": medians["one node per forward"] / medians["batched"],
        "largest difference of leaf latents": difference,
        "forwards per leaf": forwards["batched"] / config.method.leaves,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
