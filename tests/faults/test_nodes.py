"""Nodes that go, come, and are about to go; learners that change their number: several nodes on
this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._raylet import GcsClient
from ray.autoscaler._private.constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.experimental.internal_kv import _internal_kv_get
from support.small_actors import Rank, UnfitHere, Worker, until
from support.small_runs import Run, Stage, busy, carried, config, same

from cluster import capacity, local, nodes, session
from cluster.byte_counter import DriverByteCounter
from cluster.errors import RankGroupError
from cluster.rank_group import RankGroup
from cluster.ray_service import RayService
from cluster.retry_policy import RetryPolicy
from cluster.tasks import wait
from cluster.worker_pool import WorkerPool

GROW = "grow"
"""Marks the nodes of rollout workers."""
STAYING = {
    "rollout.resource": GROW,
    "rollout.cpus": "0",
    "learner.cpus": "0",
    "learner.resource": "stay",
    "reward_workers.cpus": "0",
}
# as many grow in both, so that trees are cut alike
LAYOUTS = {"separate": {}, "shared": {"cluster.layout": "shared", "rollout.workers": "1"}}
both = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that tells soon when a node is gone."""
    quick = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 4,
    }
    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1, "object_store_memory": 128 << 20, "resources": {"stay": 1},
            "_system_config": quick | {"max_direct_call_object_size": local.INLINE_BYTES},
        },
    )  # fmt: skip
    session.start(made.address, 128, dashboard=False)
    yield made
    session.stop()
    made.shutdown()


def node(cluster: Cluster, cpus: int = 0, **resources: float) -> Any:
    """A further node, known to the cluster."""
    made = cluster.add_node(num_cpus=cpus, object_store_memory=128 << 20, resources=resources)
    cluster.wait_for_nodes()
    return made


class Ground(Stage):
    """A stage whose rollout workers are all on one node."""

    def __init__(self, cluster: Cluster):
        super().__init__()
        self.node = node(cluster, **{GROW: 1})


@pytest.fixture(scope="module")
def ground(cluster: Cluster) -> Iterator[Ground]:
    made = Ground(cluster)
    yield made
    made.end()


@pytest.fixture(scope="module")
def undisturbed(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Without faults."""
    return ground.played(tmp_path_factory.mktemp("plain") / "plain-run", config(**STAYING))


def drain(which: Any, seconds: float) -> None:
    """Tell the cluster that this node will go."""
    deadline = int(1000 * (time.time() + seconds))
    accepted, why = GcsClient(address=ray.get_runtime_context().gcs_address).drain_node(
        which.node_id, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "spot", deadline
    )
    assert accepted, why


@pytest.mark.slow
def test_a_node_that_holds_prefixes_is_lost(
    cluster: Cluster, ground: Ground, undisturbed: Run, tmp_path: Path
) -> None:
    """All rollout workers are on it, and what they have grown in this iteration."""
    first = ground.node

    def sabotage(made: RayService, iteration: int) -> None:
        if iteration == 2 and ground.node is first:
            assert {worker.place.node for worker in made.rollout_pool.workers} == {first.node_id}
            ground.node = node(cluster, **{GROW: 1})

            def remove(process: int) -> None:
                cluster.remove_node(first, allow_graceful=False)

            busy(made, 0, remove)

    found = ground.played(tmp_path / "run", config(**STAYING), sabotage)
    same(found, undisturbed)
    lost = found.service.rollout_pool.restarts
    # one that was started there before it was known is lost too
    assert sum(lost.values()) >= 2 and set(lost) <= {"node", "unavailable", "died"}
    assert {worker.place.node for worker in found.service.rollout_pool.workers if worker.place} == {
        ground.node.node_id
    }


@both
@pytest.mark.slow
def test_learners_change_their_number_behind_a_checkpoint(
    ground: Ground, undisturbed: Run, tmp_path: Path, layout: str
) -> None:
    places: list[int] = []
    options = STAYING | LAYOUTS[layout] | {"checkpoint.every": "2"}

    def sabotage(made: RayService, iteration: int) -> None:
        made.scaling.desired, made.last_look = 2, 0.0
        places.append(len(made.learner_group.places))

    play = ground.played if layout == "separate" else carried
    found = play(tmp_path / "run", config(**options), sabotage)
    assert places == [1, 1, 1, 2]  # after iteration 2 comes the checkpoint
    assert (
        "learners formed anew: 1 → 2 ranks" in found.notes
        and found.service.learner_group.restarts == {"scaled": 1}
    )
    assert found.service.scaling.reservation is None
    one, other = found.records[3], undisturbed.records[3]
    assert one["update/version"] == other["update/version"] == 3
    # where ranks grow too, trees are cut for one more: latents differ in their last digits
    within = {"separate": 0.0, "shared": 1e-4}[layout]
    assert one["reward/total"] == pytest.approx(other["reward/total"], rel=within, abs=0.0)
    assert one["update/gradient_norm"] == pytest.approx(other["update/gradient_norm"], rel=1e-3)
    assert [record["iteration"] for record in found.records] == [
        record["iteration"] for record in undisturbed.records
    ]


@both
@pytest.mark.slow
def test_a_drained_node_is_left_in_good_order(
    cluster: Cluster, ground: Ground, undisturbed: Run, tmp_path: Path, layout: str
) -> None:
    """Workers and learner move, a checkpoint is written first, and no budget counts it: none is
    allowed here."""
    ground.end()
    leaving = ground.node
    options = (
        STAYING
        | LAYOUTS[layout]
        | {
            "learner.resource": GROW,
            "cluster.max_restarts": "0",
            "checkpoint.every": "100",
        }
    )

    def sabotage(made: RayService, iteration: int) -> None:
        if iteration == 0:
            assert {place.node for place in made._places()} >= {leaving.node_id}
        if iteration == 2 and ground.node is leaving:
            ground.node = node(cluster, **{GROW: 1})
            drain(leaving, 300)
            made.last_look = 0.0

    found = carried(tmp_path / "run", config(**options), sabotage)
    same(found, undisturbed)
    assert "learners formed anew: 1 of 1 ranks are on nodes that will go" in found.notes
    assert {record.get("checkpoint/iteration") for record in found.records[1:4]} == {0.0, 3.0}
    workers = {"separate": 2, "shared": 1}[layout]
    lost = found.service.rollout_pool.restarts
    # who has no place yet when ranks move makes room for them, and is made again
    assert lost["preempted"] == workers and set(lost) <= {"preempted", "scaled"}
    assert found.service.learner_group.restarts == {"preempted": 1}
    assert found.records[-2]["service/recoveries"] == 0
    cluster.remove_node(leaving)


def asked() -> Any:
    """What the autoscaler would be asked for."""
    return json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or b"null")


@pytest.mark.slow
def test_ranks_without_room_wait_for_it_and_training_goes_on(
    cluster: Cluster, ground: Ground, tmp_path: Path
) -> None:
    """They take it after the first checkpoint at which a node for them is there."""
    ground.end()
    second, places = [], list[int]()
    options = STAYING | {
        "learner.resource": "",
        "learner.cpus": "1",
        "checkpoint.every": "1",
    }

    def sabotage(made: RayService, iteration: int) -> None:
        made.scaling.desired, made.last_look = 2, 0.0
        places.append(len(made.learner_group.places))
        if iteration == 2:
            assert made._status()["refused"] == {"learner": "waits for room for 1 ranks"}
            second.append(node(cluster, 1))
            assert made.scaling.reservation and made.scaling.reservation.wait(30)

    found = carried(tmp_path / "run", config(**options), sabotage)
    assert places == [1, 1, 1, 2] and len(found.records) == 6
    cluster.remove_node(second[0])


def following(cluster: Cluster, service: RayService, desired: int, seconds: float = 300.0) -> None:
    """Until the pool wants, and has, so many workers."""
    deadline = time.monotonic() + seconds
    while (
        service.rollout_pool.desired,
        sum(worker.state == "ready" for worker in service.rollout_pool.workers),
    ) != (desired, desired):
        assert time.monotonic() < deadline, (
            service.rollout_pool.desired,
            service.rollout_pool.states(),
        )
        service.follow()
        wait(service.rollout_pool)


def test_auto_follows_nodes_that_come_and_go(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = node(cluster, 2, **{GROW: 1})
    resources = {"num_cpus": 1, "resources": {GROW: 0.001}}
    pool = WorkerPool(
        cls=Worker,
        role="rollout",
        count=1,
        resources=resources,
        arguments=(str(tmp_path),),
        byte_counter=DriverByteCounter(),
        retry_policy=RetryPolicy(task_timeout_seconds=300.0, max_restarts=2),
    )
    service = RayService(
        rollouts=pool,
        rewards=[],
        rank_groups=[],
        byte_counter=DriverByteCounter(),
        limits={"rollout": (1, 4)},
        max_failures=0,
        run="",
        phases=(),
        auto=True,
        request=6,
    )
    try:
        assert asked() == [{"CPU": 1.0, GROW: 0.001}] * 6
        service.form()
        following(cluster, service, 2)
        second = node(cluster, 1, **{GROW: 1})
        following(cluster, service, 3)
        third = node(cluster, 8, **{GROW: 1})
        following(cluster, service, 4)  # the most that it may have
        # those who stay have their places by now
        monkeypatch.setattr(capacity, "PLACING_SECONDS", 2.0)
        cluster.remove_node(third)
        cluster.remove_node(second)
        following(cluster, service, 2)
        assert pool.restarts == {"node": 2}
    finally:
        service.stop()
        assert asked() == []
        cluster.remove_node(first)


@pytest.mark.slow
def test_a_newcomer_starts_on_another_node_than_one_where_it_could_not(
    cluster: Cluster, tmp_path: Path
) -> None:
    first, bad = node(cluster, **{"slot": 1}), None
    pool = WorkerPool(
        cls=UnfitHere,
        role="rollout",
        count=1,
        resources={"num_cpus": 0, "resources": {"slot": 1}},
        arguments=(str(tmp_path),),
        byte_counter=DriverByteCounter(),
        retry_policy=RetryPolicy(task_timeout_seconds=300.0),
    )
    told = list[str]()
    pool.note = told.append
    try:
        pool.wait_ready()
        bad = node(cluster, **{"slot": 1})
        (tmp_path / "unfit").write_text(bad.node_id)
        pool.desired = 2
        until(pool, lambda: bool(pool.restarts))
        good = node(cluster, **{"slot": 1})
        until(pool, lambda: [worker.state for worker in pool.workers] == ["ready", "ready"])
        assert {worker.place.node for worker in pool.workers if worker.place} == {
            first.node_id,
            good.node_id,
        }
        assert pool.restarts == {"start": 1} and pool.workers.avoided.nodes() == {bad.node_id}
        (line,) = told
        said = (
            "could not start (ModuleNotFoundError: No module named 'broken'); rollout-2 "
            "replaces it, restart 1 of 20"
        )
        assert line == f"rollout-1 on {nodes.address(bad.node_id)} {said}"
        cluster.remove_node(good)
    finally:
        pool.stop()
        for one in (first, bad):
            if one:
                cluster.remove_node(one)


@pytest.mark.slow
def test_a_group_starts_on_another_node_than_one_where_it_could_not(
    cluster: Cluster, tmp_path: Path
) -> None:
    first = node(cluster, **{"slot": 1})
    rank_group = RankGroup(
        cls=Rank,
        role="learner",
        ranks=1,
        resources={"num_cpus": 0, "resources": {"slot": 1}},
        make=lambda rank: (str(tmp_path), rank),
        byte_counter=DriverByteCounter(),
        deadlines=(300.0, 10.0, 5.0),
    )
    rank_group.form()
    other = node(cluster, **{"slot": 1})
    try:
        (tmp_path / "unfit-0-a").touch()
        with pytest.raises(RankGroupError, match="rank 0 could not start: ModuleNotFoundError"):
            rank_group.form()
        assert rank_group.room.avoided.nodes() == {first.node_id} and rank_group.restarts == {
            "start": 1
        }
        rank_group.form()
        assert rank_group.places[0].node == other.node_id
    finally:
        rank_group.stop()
        for one in (first, other):
            cluster.remove_node(one)
