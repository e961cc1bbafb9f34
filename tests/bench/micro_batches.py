"""What a learner rank's micro-batches take of its device, and what summing hundreds of bfloat16
gradients loses. Prints JSON; `before` is the same by the old way of computing.

Device memory is counted on the meta device: bytes of all storages alive there at the same time,
while the shards of one iteration of FLUX.1-dev at 720² (`flux.1-dev-1node` with the preset
`dancegrpo`: 16 chains of 20 prompts, two ranks) are gone through; before, all micro-batches were
made first.

The gradient is that of the embedded model in bfloat16 after so many micro-batches of one parent,
summed by the policy update; the reference sums the same gradients in float64; before, they were
summed in bfloat16. Errors are norms of differences, relative to the reference's norm.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.records import records
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import topology
from branchgrpo.config import load as configs
from branchgrpo.learner import shard
from branchgrpo.learner.batches import MicroBatches, Texts
from branchgrpo.learner.policy import PolicyUpdate, Tally
from branchgrpo.learner.portions import Portions
from branchgrpo.learner.texts import PromptTexts
from branchgrpo.models.base import Adapter
from branchgrpo.types import BranchPlan, Conditioning, LearnerShard, TreeCredit, TreeHeader, TreeKey

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LATENT = (2025, 64)
TEXT = {"text": (512, 4096), "pooled": (768,)}
RANKS = 2
PROMPTS = 20


class MetaBytes(TorchDispatchMode):
    """The most bytes of storages on the meta device that were alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **kwargs or {})
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor) and value.device.type == "meta":
                storage = value.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {
            name: (reference, size)
            for name, (reference, size) in self.alive.items()
            if not reference.expired()
        }
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return found


class OnMeta(Adapter):
    """What micro-batches need of a model: where their text goes."""

    encode = velocity = decode = fingerprint_conditioning = save = truncated = None

    def __init__(self) -> None:
        self.device = torch.device("meta")


def trees_of(
    plan: BranchPlan, prompts: int, each: int
) -> tuple[list[TreeHeader], list[TreeCredit]]:
    """Trees of random credit, all of whose random edges are kept."""
    topo, draw = topology(plan), np.random.default_rng(0)
    trees, credits = [], []
    for prompt in range(prompts):
        for tree in range(each):
            trees.append(
                TreeHeader(
                    key=TreeKey("bench", 0, prompt, tree),
                    prompt_index=prompt,
                    policy_version=0,
                    log_prob=np.zeros(topo.nodes, np.float32),
                    leaf_reward=np.zeros(topo.leaves, np.float32),
                )
            )
            advantage = draw.normal(size=topo.nodes).astype(np.float32)
            credits.append(TreeCredit(np.zeros_like(advantage), advantage, topo.stochastic))
    return trees, credits


def device_memory() -> dict[str, Any]:
    """GB on the device for the micro-batches of one iteration of one rank."""
    config = configs.load(CONFIGS / "flux.1-dev-1node.yaml", preset="dancegrpo")
    plan = config.method.plan(0, static(config.sampling.steps, 3.0))
    prompts = PROMPTS
    trees, credits = trees_of(plan, prompts, plan.chains)
    steps = config.learner.optimiser_steps
    shards = [
        ranks[0] for ranks in shard.split(plan, credits, ranks=RANKS, optimiser_steps=steps, seed=0)
    ]
    latent, model = torch.zeros(LATENT), OnMeta()

    def encoded(dtype: str, name: str) -> Conditioning:
        arrays = {key: np.zeros((prompts, *shape), dtype) for key, shape in TEXT.items()}
        return Conditioning(arrays, prompts, dict.fromkeys(TEXT, name))

    def batches(one: LearnerShard, texts: Texts) -> MicroBatches:
        return MicroBatches(
            plan,
            shard=one,
            trees=trees,
            latents=lambda tree, node: latent,
            texts=texts,
            size=config.learner.micro_batch,
            device=model.device,
        )

    with MetaBytes() as now:
        portions = Portions(config.learner.micro_batch, model.device, sharded=False)
        parts = encoded("uint16", "bfloat16").split()
        texts = PromptTexts(list, parts, trees, shards, model=model)
        for one in shards:
            portions.run(batches(one, texts), lambda first, rows: None)
    cond = model.conditioning(encoded("float32", "float32"))
    kept = []
    for one in shards:
        made = batches(one, lambda prompts: {name: cond[name][list(prompts)] for name in cond})
        size = made.size
        kept += [made.take(first, size) for first in range(0, len(made), size)]
    storages = {
        value.untyped_storage()._cdata: value.untyped_storage().nbytes()
        for value in tree_leaves([cond, *map(vars, kept)])
        if isinstance(value, torch.Tensor)
    }
    return {
        "parents": sum(len(one.parents) for one in shards),
        "micro-batches": len(kept),
        "device_gb": now.most / 1e9,
        "before": sum(storages.values()) / 1e9,
    }


def gradient_error(micro_batches: int) -> dict[str, Any]:
    """Relative error of the gradient after so many micro-batches."""
    torch.manual_seed(0)
    options = {"model.dtype": "bfloat16", "learner.old": "recompute", "method.stochastic": "all"}
    options |= {"learner.max_grad_norm": "1e9"}
    config = configs.load(CONFIGS / "quickstart.yaml", options, "branchgrpo-antithetic")
    model = config.model.build("cpu")
    plan = config.method.plan(0, config.schedule())
    prompts = 8
    trees, credits = trees_of(plan, prompts, 1 + micro_batches // prompts)
    ((one,),) = shard.split(plan, credits, ranks=1, optimiser_steps=1, seed=0)
    some = np.linspace(0, len(one.parents) - 1, micro_batches).astype(int)
    parts = (one.parents[some], one.edges[some], one.advantage[some], one.weight[some])
    policy = PolicyUpdate(config, model, 1)
    exact = [torch.zeros_like(value, dtype=torch.float64) for value in policy.parameters]
    rounded = [torch.zeros_like(value) for value in policy.parameters]
    add = policy.gradients.add

    def watched() -> None:
        for index, value in enumerate(policy.parameters):
            if value.grad is not None:
                exact[index] += value.grad.double()
                rounded[index] += value.grad
        add()

    def latents(tree: int, node: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(1000 * tree + node)
        return torch.randn(model.latent_shape, generator=draw)

    encodings = model.encode(records([f"the number {n} in red" for n in range(prompts)])).split()
    policy.gradients.add = watched  # type: ignore[method-assign]
    batches = MicroBatches(
        plan,
        shard=LearnerShard(*parts),
        trees=trees,
        latents=latents,
        texts=PromptTexts(list, encodings, trees, [LearnerShard(*parts)], model=model),
        size=1,
        device=model.device,
    )
    tally = Tally()
    norm = policy.step(plan, batches, tally)
    found = [master.grad.double() / min(1.0, 1e9 / norm) for master in policy.masters]

    def error(sums: list[torch.Tensor]) -> float:
        off = torch.cat([(a.double() - b).flatten() for a, b in zip(sums, exact, strict=True)])
        return float(off.norm() / torch.cat([value.flatten() for value in exact]).norm())

    return {
        "micro-batches": int(tally.forwards),
        "gradient_error": error(found),
        "before": error(rounded),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--micro_batches", type=int, default=768, help="whose gradients are summed")
    chosen = parser.parse_args()
    memory, gradient = device_memory(), gradient_error(chosen.micro_batches)
    row = {
        "device_gb": memory["device_gb"],
        "gradient_error": gradient["gradient_error"],
        "before": {"device_gb": memory["before"], "gradient_error": gradient["before"]},
        "memory": {name: memory[name] for name in ("parents", "micro-batches")},
        "gradient": {"micro-batches": gradient["micro-batches"]},
    }
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
