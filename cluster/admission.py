"""Runs that start together: one at a time takes its room, all of it at once; the others wait and
hold nothing.

Actors that are placed one by one would let two runs each hold what the other waits for. A placement
group for all of them is granted as a whole; it is given back and its actors made while no other run
of ours may ask, so that none comes between. Those
of a run that trains already may: then this one has not all its room in time, gives all back, and
says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray

from cluster import placement
from cluster.board import Board
from cluster.capacity import PLACING_SECONDS
from cluster.errors import PlacementError
from cluster.placement import Bundle
from cluster.rank_group import RankGroup
from cluster.tasks import wait
from cluster.worker_pool import WorkerPool

TRY_SECONDS = 10.0
"""How long one run asks before others may: an autoscaler looks every 5 s for what is asked."""
PAUSE_SECONDS = 0.5
SAY_SECONDS = 300.0
"""How often a run that waits says so, unless the reason changes."""


@contextmanager
def admitted(
    wanted: Mapping[str, Sequence[Bundle]], seconds: float, run: str, note: Callable[[str], None]
) -> Iterator[None]:
    """Room for all actors of all roles; the block makes them, and waits `until_placed`.

    seconds: how long to wait for it; while another run starts, time stands still. note: hears what
    is waited for, seldom. Raises PlacementError, saying what is missing.
    """
    context = ray.get_runtime_context()
    board = Board.at(context.gcs_address)
    mine = {"run": run or "a program without a run", "job": context.get_job_id()}
    bundles = {role: [one for one in every if one] for role, every in wanted.items()}
    # the first try is short, to say soon what is missing
    left = seconds
    said = ""
    spoken = 0.0
    retry_policy = 1.0
    while True:
        begun, other = time.monotonic(), board.take_turn(mine)
        if not other:
            try:
                lack = placement.lack(bundles, min(left, retry_policy))
                if not lack:
                    yield
                    return
            finally:
                board.end_turn()
            left, retry_policy = left - (time.monotonic() - begun), TRY_SECONDS
            if left <= 0:
                raise PlacementError(lack.replace(" free: ", f" free after {seconds:g} s: "))
        why = f"waiting for {other}, which is starting" if other else f"waiting for room: {lack}"
        if (why.partition(",")[0] != said) or time.monotonic() - spoken > SAY_SECONDS:
            said, spoken = why.partition(",")[0], time.monotonic()
            note(why)
        time.sleep(PAUSE_SECONDS)


def until_placed(
    pools: Sequence[WorkerPool],
    rank_groups: Sequence[RankGroup] = (),
    seconds: float = PLACING_SECONDS,
) -> None:
    """Until every wanted worker's process runs, and ranks have their room. Raises PlacementError
    when that takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        for pool in pools:
            pool.poll()
        waiting = [
            worker.name for pool in pools for worker in pool.workers if not worker.find_place()
        ]
        waiting += [rank_group.role for rank_group in rank_groups if rank_group.room.waiting]
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise PlacementError(
                f"cluster: expected a place for every actor within {seconds:g} s, others "
                f"took the room of {', '.join(waiting)}"
            )
        wait(*pools)


def place_alone(pool: WorkerPool, seconds: float, note: Callable[[str], None]) -> None:
    """Room for the workers of one pool, see `admitted`."""
    with admitted(
        {pool.role: [placement.bundle(pool.resources)] * pool.desired}, seconds, "", note
    ):
        until_placed([pool])
