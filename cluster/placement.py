"""Does the cluster have the resources? Asked before any actor is made."""

from __future__ import annotations

from collections import Counter

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.errors import PlacementError

Bundle = dict[str, float]


def bundle(cpus: float, gpus: float) -> Bundle:
    """One actor's resources as Ray names them."""
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}


def require(wanted: dict[str, list[Bundle]], seconds: float) -> None:
    """Wait until all actors of all roles fit at once. Raises PlacementError, saying what is missing.

    The reservation is given back at once: it also asks an autoscaler for nodes, and tells whether bundles fit
    on single nodes, which totals do not.
    """
    bundles = [one for role in wanted.values() for one in role if one]
    if not bundles:
        return
    group = placement_group(bundles, strategy="PACK")
    ready = group.wait(timeout_seconds=max(seconds, 0.1))
    remove_placement_group(group)
    if ready:
        return
    need, have = Counter[str](), ray.available_resources()
    for one in bundles:
        need.update(one)
    roles = ", ".join(f"{len(role)} {name} × {_text(role[0])}" for name, role in wanted.items())
    missing = {name: amount - have.get(name, 0.0) for name, amount in need.items() if amount > have.get(name, 0.0)}
    lack = f"missing {_text(missing)}" if missing else "enough in all, but no node has room for one of the bundles"
    free = _text({name: have.get(name, 0.0) for name in need})
    raise PlacementError(f"cluster: expected room for {roles} (in all {_text(dict(need))}), {free} free after {seconds:g} s: {lack}")


def _text(resources: Bundle) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items())) or "nothing"
