"""Reaching a Ray that runs already, in time that a person waits: as a driver, or only the board in
its head."""

from __future__ import annotations

import logging
import os

import ray

from cluster import ray_private
from cluster.actor import NAMESPACE
from cluster.address import authenticate
from cluster.board import Board
from cluster.errors import PlacementError, one_line
from cluster.local import joining
from cluster.session import Session


def connect(address: str) -> Session:
    """Become a driver of a Ray that runs: at `address`; or, with "auto" or nothing, at RAY_ADDRESS,
    else the one on this machine.

    Never starts one. Raises PlacementError, in one line.
    """
    found = _addresses(address)
    if len(found) > 1:
        raise PlacementError(
            "no Ray found: expected RAY_ADDRESS or --address, got several on this machine: "
            f"{', '.join(found)}"
        )
    (target,) = found
    authenticate(target)
    try:
        with joining(target):
            context = ray.init(
                address=target,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (RuntimeError, ConnectionError, ray.exceptions.RayError) as error:
        raise PlacementError(f"cannot connect to Ray at {target}: {one_line(error)}") from error
    url = str(context.dashboard_url or "")
    return Session(target, f"http://{url}" if url else "", local=False)


def boards(address: str) -> list[Board]:
    """Of the Ray at `address`, see `connect`; where no address is given, of every Ray on this
    machine that lets us in. Raises PlacementError, in one line, where there is none."""
    found, refused = [], []
    for target in _addresses(address):
        try:
            authenticate(target)
        except PlacementError as error:
            refused.append(error)
        else:
            found.append(Board.at(target))
    if not found:
        raise refused[0]
    return found


def _addresses(address: str) -> list[str]:
    """HOST:PORT of the one Ray that is meant; of all that have a process on this machine where none
    is named."""
    target = os.environ.get("RAY_ADDRESS", "") if address in ("", "auto") else address
    if target in ("", "auto"):
        if here := ray_private.addresses_here():
            return here
        raise PlacementError(
            "no Ray found: expected RAY_ADDRESS or --address, and none runs on this machine"
        )
    if target == "local" or "://" in target:
        hint = (
            ": that is the dashboard's, for ray job submit; run this on a node of the "
            "cluster, or submit it"
            if target.startswith("http")
            else ""
        )
        raise PlacementError(
            f"Ray address: expected HOST:PORT of a cluster that runs, got {target}{hint}"
        )
    return [target]
