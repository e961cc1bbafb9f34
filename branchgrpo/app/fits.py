"""Does a config fit the GPUs? Asked before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable

from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError
from branchgrpo.estimate.cards import Card, card, recognised
from branchgrpo.estimate.estimate import Estimate, estimate


def here() -> list[str]:
    """Names of the GPUs that torch sees on this machine."""
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def smallest(names: Iterable[str]) -> Card | None:
    """Of the GPUs of these names the one with the least memory; None where none is known."""
    known = [found for name in names if (found := recognised(name))]
    return min(known, key=lambda one: one.memory, default=None)


def dry_run(config: Config, card_name: str, as_json: bool) -> int:
    """`train --dry-run`: what the run would need; loads and starts nothing. Returns the exit
    code."""
    from rich.console import Console

    from branchgrpo.estimate.report import render

    names = here()
    found = estimate(config, card(card_name) if card_name else smallest(names))
    if as_json:
        print(json.dumps(found.listing() | {"gpus_here": len(names)}, indent=1))
    else:
        Console().print(render(found, len(names)))
    return int(bool(found.problems))


def require(config: Config, names: Iterable[str]) -> None:
    """Raise UserError, a line for each role, for what cannot fit GPUs of these names. Configs that
    reserve none, and GPUs that are not known, are let pass."""
    if uses_gpus(config) and (there := smallest(names)):
        found = estimate(config, there)
        if found.problems:
            raise UserError("\n".join(found.problems))


def uses_gpus(config: Config) -> bool:
    """Some role reserves one."""
    return any(role.gpus for role in (config.rollout, config.reward_workers, config.learner))


def line(found: Estimate) -> str:
    """The largest process of each role that is on GPUs, in one line."""
    from branchgrpo.estimate.placing import size

    parts = [f"{need.role} {size(need.peak)}" for need in found.needs if need.device == "cuda"]
    memory = f"{', '.join(parts)} a process" if parts else "no role is on GPUs"
    if found.card:
        memory += f"; a {found.card.name} has {size(found.card.memory)}"
    return memory
