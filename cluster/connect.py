"""Connecting to a Ray that runs already, in time that a person waits."""

from __future__ import annotations

import logging
import os

import ray

from cluster.errors import PlacementError
from cluster.pool import NAMESPACE
from cluster.reach import greet
from cluster.session import Session


def connect(address: str) -> Session:
    """Connect to a Ray that runs: at `address`; or, with "auto" or nothing, at RAY_ADDRESS, else the one on this machine.

    Never starts one. Raises PlacementError, in one line.
    """
    target = os.environ.get("RAY_ADDRESS", "") if address in ("", "auto") else address
    if target in ("", "auto"):
        target = _on_this_machine()
    if target == "local" or "://" in target:
        hint = ": that is the dashboard's, for ray job submit; run this on a node of the cluster, or submit it" if target.startswith("http") else ""
        raise PlacementError(f"Ray address: expected HOST:PORT of a cluster that runs, got {target}{hint}")
    greet(target)
    try:
        context = ray.init(address=target, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, ConnectionError, ray.exceptions.RayError) as error:
        raise PlacementError(f"cannot connect to Ray at {target}: {' '.join(str(error).split())}") from error
    url = str(context.dashboard_url or "")
    return Session(target, f"http://{url}" if url else "", local=False)


def _on_this_machine() -> str:
    """The address of the only Ray that has a process here."""
    from ray._private.services import find_gcs_addresses  # what ray.init(address="auto") asks, which takes any of several

    found = sorted(find_gcs_addresses())
    if len(found) == 1:
        return str(found[0])
    several = f", got several on this machine: {', '.join(found)}" if found else ", and none runs on this machine"
    raise PlacementError(f"no Ray found: expected RAY_ADDRESS or --address{several}")
