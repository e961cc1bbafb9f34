"""What training has reached, whole: weights, their exponential mean, AdamW's state and the
schedule's, for any number of ranks.

Nothing else is random or has a memory: noise, prompts, plans and shards are functions of seed and
iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, distribute_tensor

from branchgrpo.checkpoint.shards import Shards
from branchgrpo.learner.fsdp import gathered
from branchgrpo.learner.policy import PolicyUpdate
from branchgrpo.learner.saved_shards import load

MOMENTS = ("exp_avg", "exp_avg_sq")
FILES = ("weights", "ema", *MOMENTS)
"""Files of a checkpoint, each with the suffix .safetensors."""
SECOND = "second"
"""One more, of losses with a second set of weights."""
NORM = "norm_reference"
"""And what ‖v‖ is measured by."""


def captured(policy: PolicyUpdate) -> dict[str, Mapping[str, Tensor]]:
    """What a checkpoint has of tensors, by file and name, as this rank holds them."""
    masters, state = policy.named_masters(), policy.optimiser.state
    tensors: dict[str, Mapping[str, Tensor]] = {"weights": masters, "ema": policy.ema}
    if policy.second is not None:
        tensors[SECOND] = policy.second.tensors
    for moment in MOMENTS:
        tensors[moment] = {
            name: state[master][moment] for name, master in masters.items() if master in state
        }
    return tensors


def progress(policy: PolicyUpdate) -> dict[str, Any]:
    """What it has beside tensors, as JSON."""
    masters, state = policy.named_masters(), policy.optimiser.state
    # fewer of those that had no gradient in some, as a denoiser whose noise levels none trained
    steps = {
        name: float(state[master]["step"]) for name, master in masters.items() if master in state
    }
    most = max(steps.values(), default=0.0)
    return {
        "steps": most,
        "fewer_steps": {name: count for name, count in steps.items() if count != most},
        "schedule": {"last_epoch": policy.scheduler.last_epoch},
    }


def in_whole(policy: PolicyUpdate, keep: bool) -> dict[str, dict[str, Tensor]]:
    """Tensors by file and name in main memory, whole, and {} where not `keep`. Every rank must call
    it."""
    return {file: dict(gathered(named, keep)) for file, named in captured(policy).items()}


def in_shards(policy: PolicyUpdate) -> dict[str, Tensor]:
    """FILE/NAME → the tensor, as this rank holds it."""
    return {
        f"{file}/{name}": value.detach()
        for file, named in captured(policy).items()
        for name, value in named.items()
    }


def restore(
    policy: PolicyUpdate, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Set a new policy to a captured state, whatever number of ranks that had. Raises ValueError
    where names or shapes differ."""
    masters, learnt = policy.named_masters(), tensors["weights"]
    if masters.keys() != learnt.keys():
        raise ValueError(
            f"checkpoint: expected weights of {len(masters)} parameters, got {len(learnt)}; "
            f"differing: {sorted(masters.keys() ^ learnt.keys())[:3]}"
        )
    with torch.no_grad():
        for name, master in masters.items():
            if master.shape != learnt[name].shape:
                raise ValueError(
                    f"checkpoint: {name}: expected shape {tuple(master.shape)}, got "
                    f"{tuple(learnt[name].shape)}"
                )
            master.copy_(spread(learnt[name], master))
        for name, mean in policy.ema.items():
            mean.copy_(spread(tensors["ema"].get(name, learnt[name]), mean))
        for name, value in policy.second.tensors.items() if policy.second else ():
            value.copy_(tensors.get(SECOND, {}).get(name, learnt[name]))
    moments = {
        name: {moment: spread(tensors[moment][name], masters[name]) for moment in MOMENTS}
        for name in masters
        if name in tensors[MOMENTS[0]]
    }
    _go_on(policy, state, moments)


def restore_shards(
    policy: PolicyUpdate, state: Mapping[str, Any], shards: Shards, group: ProcessGroup | None
) -> None:
    """As `restore`, of a checkpoint in shards that fits the policy: each rank reads what it is to
    hold. group: of ranks that hold shards; every one must call it. Raises Damaged."""
    masters = policy.named_masters()
    second = policy.second.tensors if policy.second else {}
    moments = {
        name: {moment: torch.zeros_like(masters[name].detach()) for moment in MOMENTS}
        for name in shards.named(MOMENTS[0])
    }
    wanted: dict[str, Mapping[str, Tensor]] = {"weights": masters, "ema": policy.ema}
    wanted[SECOND] = second
    for moment in MOMENTS:
        wanted[moment] = {name: found[moment] for name, found in moments.items()}
    there = shards.tensors
    load(
        shards,
        {
            f"{file}/{name}": value.detach()
            for file, named in wanted.items()
            for name, value in named.items()
            if f"{file}/{name}" in there
        },
        group,
    )
    with torch.no_grad():  # what the checkpoint has none of begins at the weights
        for file, named in (("ema", policy.ema), (SECOND, second)):
            for name, value in named.items():
                if f"{file}/{name}" not in there:
                    value.copy_(masters[name])
    _go_on(policy, state, moments)


def _go_on(
    policy: PolicyUpdate, state: Mapping[str, Any], moments: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Set AdamW's state and the place in the schedule, once the weights are there."""
    masters = policy.named_masters()
    fused = policy.optimiser.defaults["fused"]  # then it counts steps on the device
    for name, found in moments.items():
        policy.optimiser.state[masters[name]] = {
            "step": torch.tensor(
                float(state.get("fewer_steps", {}).get(name, state["steps"])),
                device=masters[name].device if fused else "cpu",
            ),
            **found,
        }
    policy.follow()
    _set_schedule(policy, int(state["schedule"]["last_epoch"]))


def _set_schedule(policy: PolicyUpdate, position: int) -> None:
    """The place in the schedule is the checkpoint's; rate, warm-up and form are those of the config
    as it is now."""
    scheduler = policy.scheduler
    rates = [
        base * factor(position)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    scheduler.load_state_dict(
        {
            "last_epoch": position,
            "_step_count": position + 1,
            "_last_lr": rates,
            "lr_lambdas": [None] * len(rates),
        }
    )
    for group, rate in zip(policy.optimiser.param_groups, rates, strict=True):
        group["lr"] = rate


def spread(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the way `like` is held: on its device, and sharded as it is. Every rank has
    read it: nothing is sent."""
    whole = whole.to(like.device, like.dtype)
    return (
        distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
        if isinstance(like, DTensor)
        else whole.clone()
    )
