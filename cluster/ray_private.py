"""Every call of Ray that its public interface lacks, and nothing else: a new version of Ray is
tried here first.

Tried with Ray 2.55 and 2.60, and with the versions between by import. Earlier ones lack some:
2.54 the folder for temporary files and how long the dashboard may take, 2.52 `include_gitignore`,
2.51 tokens.
tests/unit/cluster/test_ray_private.py has a test for each function; those that need a Ray that
runs are in tests/faults/test_deaths.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants, services
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.runtime_env import packaging
from ray._private.state import available_resources_per_node as _available_resources_per_node
from ray._private.state import state
from ray._private.utils import get_num_cpus
from ray._raylet import Config, GcsClient  # type: ignore[attr-defined]
from ray.actor import ActorHandle
from ray.util.metrics import Counter

UPLOAD_BYTES: int = packaging.GCS_STORAGE_MAX_SIZE
"""The most that `ray job submit --working-dir` takes."""

CLUSTERS: str = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
"""The variable without which Ray makes clusters of several machines. "0", as on Windows and macOS:
every process of Ray takes 127.0.0.1 for its node's address and listens there alone."""


# nodes and actors of the cluster that this process is connected to


def draining_nodes() -> set[str]:
    """Ids of nodes that will end soon: preempted, or given back by an autoscaler. Ray Train asks in
    the same way; there is no public call."""
    return set(state.get_draining_nodes())


def available_resources_per_node() -> dict[str, dict[str, float]]:
    """What is free on each node, by its id. The public call has sums alone."""
    return {node: dict(free) for node, free in _available_resources_per_node().items()}


def node_of_actor(actor: ActorHandle[Any]) -> str:
    """Id of the node where an actor is, was, or was to be; empty while nobody knows. Dead actors
    are known, too, unlike to ray.util.state, which also asks the dashboard."""
    entry = state.actor_table(actor._actor_id.hex())
    return str(entry.get("Address", {}).get("NodeID", ""))


def call_in_actor(actor: ActorHandle[Any], function: Callable[..., Any]) -> ray.ObjectRef[Any]:
    """Run a function, which gets the actor's object, in an actor of any class. Ray Train and Ray
    Data call actors so; publicly the class must have such a method."""
    found: ray.ObjectRef[Any] = actor.__ray_call__.remote(function)
    return found


# the head


def gcs_client(address: str) -> Any:
    """A client of the head at HOST:PORT for `internal_kv_put`, `_keys`, `_multi_get`, `_del`,
    `get_all_job_info` and `drain_node`, which all take `timeout`; Ray's own state commands use it.
    Publicly only drivers, which appear among the jobs, read and write the head's store. Ray ends a
    process that finds no head there."""
    return GcsClient(address=address)


def addresses_here() -> list[str]:
    """HOST:PORT of every Ray that has a process on this machine, sorted: what
    ray.init(address="auto") looks at, which takes any of them."""
    return sorted(str(one) for one in services.find_gcs_addresses())


def node_ip_address() -> str:
    """What a Ray that is started now takes for this machine's address."""
    return str(services.get_node_ip_address())


def read_environment() -> None:
    """Let Ray's C++ side read the RAY_ variables again, which it read when it was imported:
    ray.init changes RAY_AUTH_MODE in this way."""
    Config.initialize("")


# starting a Ray


def start(inline_bytes: int, **options: Any) -> Any:
    """ray.init, with task results up to this size inside Ray's messages; larger ones stay in the
    object store. `_system_config` is how Ray's own tests set it."""
    return ray.init(_system_config={"max_direct_call_object_size": inline_bytes}, **options)


def session_folders(process: int) -> list[Path]:
    """Where Rays that this process started keep their logs and sockets."""
    return list(Path(get_default_ray_temp_dir()).glob(f"session_*_{process}"))


def temporary_folder() -> Path:
    """The parent of all session folders."""
    return Path(get_default_ray_temp_dir())


@contextmanager
def dashboard_seconds(seconds: int) -> Iterator[None]:
    """A Ray that is started in this block waits so long for its dashboard: Ray reads the variable
    RAY_DASHBOARD_STARTUP_TIMEOUT_S when it is imported."""
    before = ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S
    ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = seconds
    try:
        yield
    finally:
        ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S = before


@contextmanager
def loopback() -> Iterator[None]:
    """Ray's processes that begin in this block, and this one, take 127.0.0.1 for their address;
    nothing changes where the environment says otherwise, see CLUSTERS."""
    if CLUSTERS in os.environ:
        yield
        return
    before = ray_constants.ENABLE_RAY_CLUSTER
    os.environ[CLUSTERS] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[CLUSTERS]


def resources_here() -> Mapping[str, float]:
    """CPU and GPU that a Ray which is started on this machine counts."""
    gpus = get_accelerator_manager_for_resource("GPU").get_current_node_num_accelerators()
    return {"CPU": float(get_num_cpus(override_docker_cpu_warning=True)), "GPU": float(gpus)}


# uploads and metrics


def walk_upload(folder: Path, visit: Callable[[Path], None]) -> None:
    """Visit every file and folder that `ray job submit --working-dir` would upload: what
    .rayignore and .gitignore name is left out."""
    packaging._dir_travel(
        folder,
        excludes=[],
        handler=visit,
        include_gitignore=os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0")
        != "1",
        logger=logging.Logger("silent", 100),
    )


def export_zero(counter: Counter, labels: Mapping[str, str]) -> None:
    """Export a counter before its first event: `inc`, which does the same, refuses 0."""
    counter._record(0.0, tags=dict(labels))
