"""What checkpoints cost learner ranks with sharded weights: memory beside what they hold, and how
long training stops. A random FLUX on gloo ranks of this machine; main memory stands for the
host's. Prints JSON.

uv run python tests/bench/checkpoints.py [--ranks 4] [--heads 36] [--repeats 3]

    save_ratio      most memory that a rank takes to save ÷ its shard (weights, mean, both moments)
    restore_ratio   most that it has to restore, its shard included ÷ its shard
    stopped_share   seconds that training stops ÷ seconds until the checkpoint is there
    whole           the same where rank 0 writes whole files and every rank reads them
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from actors.learner import Learner
from branchgrpo.checkpoint.store import Store
from branchgrpo.learner.state import captured
from branchgrpo.models.small.flux import TinyFluxSizes, build_tiny_flux
from branchgrpo.service import CheckpointRequest

TESTS = Path(__file__).parents[1]

POLL = 0.005
"""Seconds between two looks whether a checkpoint is there."""


class Memory:
    """Resident memory of this process from now on, in bytes."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is not there to be used again
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is the present
        self.before = self._now("VmRSS")

    def most(self) -> int:
        """More than there was at the beginning."""
        return self._now("VmHWM") - self.before

    def _now(self, key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def held(learner: Learner) -> int:
    """Bytes of what a checkpoint has of this rank, as far as they are there."""
    values = [value for named in captured(learner.policy).values() for value in named.values()]
    local = [getattr(value, "_local_tensor", value) for value in values]
    return sum(value.numel() * value.element_size() for value in local)


def saving(learner: Learner, where: Path, iteration: int) -> dict[str, float]:
    """One checkpoint."""
    dist.barrier()
    memory, began = Memory(), time.perf_counter()
    request = CheckpointRequest(where=str(where), iteration=iteration, fence=1, wait=False)
    told = learner.checkpoint(request)
    stopped = time.perf_counter() - began
    while told.pending:
        time.sleep(POLL)
        told = learner.checkpointed(wait=False)
    assert not told.failed, told.failed
    dist.barrier()  # where rank 0 writes, the others wait for it
    written = time.perf_counter() - began
    return {"bytes": memory.most(), "stopped": stopped, "written": written}


def restoring(learner: Learner, where: Path) -> int:
    """Bytes, of a policy that has just begun."""
    learner.configure(learner.config)
    before, memory = held(learner), Memory()
    saved = Store(where).newest(readers=learner.checkpoints.readers)
    assert saved
    learner.checkpoints.take(saved, learner.policy)
    return before + memory.most()


def rank_main(rank: int, address: str, folder: str) -> None:
    sys.path.insert(0, str(TESTS))
    from support.small_batch import config

    place = Path(folder)
    options = json.loads((place / "options.json").read_text())
    ranks = options["ranks"]
    keys = {"learner.parallel": "fsdp", "learner.ema": "0.9", "model.path": str(place / "model")}
    learner = Learner(config(ranks, keys), rank, list)
    learner.join(ranks, address)
    for master in learner.policy.masters:
        master.grad = torch.ones_like(master)
    learner.policy.optimiser.step()
    learner.policy.optimiser.zero_grad()
    found: dict[str, Any] = {"shard": held(learner), "whole": {}}
    rounds = range(1, options["repeats"] + 1)
    found["save"] = [saving(learner, place / "shards", number) for number in rounds]
    learner.checkpoints.settle()  # the copy goes
    learner.checkpoints.shards = False
    found["whole"]["save"] = [saving(learner, place / "whole", number) for number in rounds]
    found["restore"] = restoring(learner, place / "shards")
    found["whole"]["restore"] = restoring(learner, place / "whole")
    torch.save(found, place / f"rank{rank}.pt")
    dist.destroy_process_group()


def ratios(ranks: list[dict[str, Any]], shards: list[int]) -> dict[str, float]:
    """Of one form."""
    pairs = list(zip(ranks, shards, strict=True))
    times = ranks[0]["save"]
    return {
        "save_ratio": max(one["bytes"] / shard for found, shard in pairs for one in found["save"]),
        "restore_ratio": max(found["restore"] / shard for found, shard in pairs),
        "stopped_share": statistics.median(one["stopped"] / one["written"] for one in times),
        "stopped_seconds": statistics.median(one["stopped"] for one in times),
        "written_seconds": statistics.median(one["written"] for one in times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--heads", type=int, default=36, help="of 28: width of the transformer")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from support.small_batch import two_ranks

    with TemporaryDirectory() as folder:
        place = Path(folder)
        build_tiny_flux(place / "model", TinyFluxSizes(heads=options.heads))
        (place / "options.json").write_text(json.dumps(vars(options)))
        ranks = two_ranks(rank_main, place, options.ranks)
    shards = [one["shard"] for one in ranks]
    found = ratios(ranks, shards) | {"shard_mb": max(shards) / 1e6, "ranks": options.ranks}
    found["whole"] = ratios([one["whole"] for one in ranks], shards)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
