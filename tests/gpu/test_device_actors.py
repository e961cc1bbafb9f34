"""The service on a local Ray with every actor on fractions of one card, in both layouts: the
iterations are those of one process on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.in_process import Service
from support.small_runs import carried, embedded
from support.training import Memory, run_of

from branchgrpo.config.schema import Config
from branchgrpo.training.loop import train
from cluster.ray_service import RayService

SMALL = {
    "run.iterations": "2",
    "sampling.steps": "4",
    "method.splits": "[0, 1]",
    "method.leaves": "4",
    "rollout.workers": "1",
    "rollout.threads": "1",
    "rollout.prompts": "2",
    "evaluation.steps": "2",
    "gates.on_policy_tolerance": "1e-3",  # TF32, and batches of other sizes
    "gates.fingerprint_tolerance": "3e-2",
}
SHARES = {
    "separate": {"rollout": 0.4, "reward_workers": 0.2, "learner": 0.4},
    "shared": {"reward_workers": 0.2, "learner": 0.8},  # ranks grow the trees as well
}


def placed(layout: str, device: str) -> Config:
    """The roles on shares of a card; on the CPU they reserve none."""
    changes = SMALL | {"cluster.layout": layout}
    changes |= {"rollout.workers": "0"} if layout == "shared" else {}
    share = SHARES[layout] if device.startswith("cuda") else {}
    return embedded(**changes, **{f"{role}.gpus": str(part) for role, part in share.items()})


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    from cluster import session

    session.start("local", 256, dashboard=False)
    yield
    session.stop()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """Records of the same run in one process, on the CPU."""
    loaded, log = embedded(**SMALL), Memory()
    assert train(run_of(loaded, Service(loaded), tmp_path_factory.mktemp("cpu"), log=log)).complete
    return log.updates


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("layout", SHARES)
def test_two_iterations(
    wanted: list[dict[str, float]], device: str, layout: str, tmp_path: Path
) -> None:
    import ray

    reserved = list[float]()

    def watch(made: RayService, done: int) -> None:
        del made, done
        there, free = ray.cluster_resources(), ray.available_resources()
        reserved.append(there.get("GPU", 0.0) - free.get("GPU", 0.0))

    found = carried(tmp_path / "run", placed(layout, device), watch)
    records = [record for record in found.records if "reward/total" in record]
    assert [record["update/version"] for record in records] == [1, 2] and len(wanted) == 2
    for name in ("tree/forwards", "tree/edges", "update/edges", "update/forwards"):
        assert records[0][name] == wanted[0][name], name
    for record, other in zip(records, wanted, strict=True):
        assert record["reward/total"] == pytest.approx(other["reward/total"], abs=0.02)
        assert record["update/ratio_deviation"] <= 1e-2
    norm = wanted[0]["update/gradient_norm"]
    assert records[0]["update/gradient_norm"] == pytest.approx(norm, rel=0.05)
    share = sum(SHARES[layout].values()) if device.startswith("cuda") else 0.0
    assert max(reserved) == pytest.approx(share, abs=1e-3)
