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
from torch.distributed.tensor import DTensor, distribute_tensor

from branchgrpo.learner.fsdp import gathered
from branchgrpo.learner.policy import PolicyUpdate

MOMENTS = ("exp_avg", "exp_avg_sq")
FILES = ("weights", "ema", *MOMENTS)
"""Files of a checkpoint, each with the suffix .safetensors."""
SECOND = "second"
"""One more, of losses with a second set of weights."""
NORM = "norm_reference"
"""And what ‖v‖ is measured by."""


def capture(
    policy: PolicyUpdate, keep: bool
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """(JSON state, tensors by file and name) in main memory; tensors are whole, and {} where not
    `keep`. Every rank must call it."""
    masters, state = policy.named_masters(), policy.optimiser.state
    tensors: dict[str, Mapping[str, Tensor]] = {"weights": masters, "ema": policy.ema}
    if policy.second is not None:
        tensors[SECOND] = policy.second.tensors
    for moment in MOMENTS:
        tensors[moment] = {
            name: state[master][moment] for name, master in masters.items() if master in state
        }
    # fewer of those that had no gradient in some, as a denoiser whose noise levels none trained
    steps = {
        name: float(state[master]["step"]) for name, master in masters.items() if master in state
    }
    most = max(steps.values(), default=0.0)
    found = {
        "steps": most,
        "fewer_steps": {name: count for name, count in steps.items() if count != most},
        "schedule": {"last_epoch": policy.scheduler.last_epoch},
    }
    return found, {file: dict(gathered(parts, keep)) for file, parts in tensors.items()}


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
    fused = policy.optimiser.defaults["fused"]  # then it counts steps on the device
    for name in tensors[MOMENTS[0]]:
        moments = {moment: spread(tensors[moment][name], masters[name]) for moment in MOMENTS}
        policy.optimiser.state[masters[name]] = {
            "step": torch.tensor(
                float(state.get("fewer_steps", {}).get(name, state["steps"])),
                device=masters[name].device if fused else "cpu",
            ),
            **moments,
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
    """A whole tensor in the way `like` is held: on its device, and sharded as it is."""
    whole = whole.to(like.device, like.dtype)
    return (
        distribute_tensor(whole, like.device_mesh, like.placements)
        if isinstance(like, DTensor)
        else whole.clone()
    )
