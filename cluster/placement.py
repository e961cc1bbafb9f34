"""Does the cluster have the resources? Asked before any actor is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from cluster import ray_private
from cluster.errors import PlacementError

Bundle = dict[str, float]


def bundle(options: Mapping[str, Any]) -> Bundle:
    """What an actor of these options reserves, as Ray names it."""
    reserved = {"CPU": options.get("num_cpus"), "GPU": options.get("num_gpus")} | options.get(
        "resources", {}
    )
    return {name: float(amount) for name, amount in reserved.items() if amount}


def require_here(wanted: dict[str, list[Bundle]]) -> None:
    """Refuse what this machine can never hold, before a Ray is started on it, which takes long.
    Raises PlacementError."""
    have = ray_private.resources_here()
    if any(amount > have.get(name, 0.0) for name, amount in _needed(wanted).items()):
        raise PlacementError(_lacking(wanted, have, "on this machine"))


def lack(wanted: Mapping[str, Sequence[Bundle]], seconds: float) -> str:
    """What is missing, in one line, for all actors of all roles to fit at once; empty when they do
    within `seconds`.

    The reservation is given back at once: it also asks an autoscaler for nodes, and tells whether
    bundles fit on single nodes, which totals do not.
    """
    bundles = [one for role in wanted.values() for one in role if one]
    if not bundles:
        return ""
    group = placement_group(bundles, strategy="PACK")
    ready = group.wait(timeout_seconds=max(seconds, 0.1))
    have = {} if ready else ray.available_resources()
    remove_placement_group(group)
    return "" if ready else _lacking(wanted, have, "free")


def _needed(wanted: Mapping[str, Sequence[Bundle]]) -> Bundle:
    """Of all actors together."""
    bundles = [one for role in wanted.values() for one in role]
    return {
        name: sum(one.get(name, 0.0) for one in bundles)
        for name in sorted({name for one in bundles for name in one})
    }


def _lacking(wanted: Mapping[str, Sequence[Bundle]], have: Mapping[str, float], where: str) -> str:
    """Says what is missing of what is wanted."""
    need = _needed(wanted)
    roles = ", ".join(
        f"{len(role)} {name} × {_text(role[0])}" for name, role in wanted.items() if role
    )
    missing = {
        name: amount - have.get(name, 0.0)
        for name, amount in need.items()
        if amount > have.get(name, 0.0)
    }
    lack = (
        f"missing {_text(missing)}"
        if missing
        else "enough in all, but no node has room for one of the bundles"
    )
    there = _text({name: have.get(name, 0.0) for name in need})
    return f"cluster: expected room for {roles} (in all {_text(need)}), {there} {where}: {lack}"


def placed(group: PlacementGroup) -> bool:
    """Has it all its room? Does not wait."""
    return bool(placement_group_table(group)["state"] == "CREATED")


def _text(resources: Mapping[str, float]) -> str:
    return (
        " + ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items())) or "nothing"
    )
