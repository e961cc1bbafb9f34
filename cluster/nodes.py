"""The cluster's nodes: which there are, which of them will go, and what each could hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.actor import ActorHandle

from cluster import ray_private

ACCELERATOR = "accelerator_type:"
"""Before the kind of a node's GPUs among its resources."""


def draining() -> set[str]:
    """Ids of nodes that will end soon: preempted, or given back by an autoscaler."""
    return ray_private.draining_nodes()


def alive() -> set[str]:
    """Ids of nodes that are there."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def addresses() -> dict[str, str]:
    """How people know nodes, by their ids: the address, and some of the id, since a machine may
    have several."""
    return {
        node["NodeID"]: f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"
        for node in ray.nodes()
    }


def address(node: str) -> str:
    """How people know a node, by its id; of one that nobody knows: "an unknown node"."""
    return addresses().get(node, node[:6] or "an unknown node")


def of(actor: ActorHandle[Any]) -> str:
    """Id of the node where an actor is, was, or was to be; empty while nobody knows. Dead actors
    are known, too."""
    return ray_private.node_of_actor(actor)


def fits(resources: Mapping[str, float], without: Collection[str]) -> bool:
    """Is there a node, other than these, that could hold as much if it were free?"""
    there = [
        node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in without
    ]
    return any(
        all(one.get(name, 0.0) >= amount for name, amount in resources.items()) for one in there
    )


def accelerators() -> list[str]:
    """Kinds of GPU that living nodes have, as Ray calls them: H100, A100-40G."""
    named = {name for node in ray.nodes() if node["Alive"] for name in node["Resources"]}
    return sorted(name.removeprefix(ACCELERATOR) for name in named if name.startswith(ACCELERATOR))
