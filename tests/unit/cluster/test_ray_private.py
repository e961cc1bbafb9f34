"""Every private call of Ray, alone: what a version of Ray must still have, and still do. Those
that need a Ray that runs are in tests/faults/test_deaths.py."""

from __future__ import annotations

import inspect
import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from ray._private import ray_constants
from ray._raylet import Config
from ray.util.metrics import Counter

from cluster import ray_private
from cluster.ray_private import CLUSTERS

ROOT = Path(__file__).resolve().parents[3]
PRIVATE = re.compile(
    r"\bray\._|_raylet|\b_private\b|\._record\(|\._actor_id\b|__ray_call__|_internal_kv|"
    r"ray\.experimental|ray\.autoscaler\._|ray\.util\.state"
)


def test_no_other_file_calls_what_is_private() -> None:
    files = [
        path
        for folder in ("actors", "branchgrpo", "cluster")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "ray_private.py"
    ]
    assert len(files) > 100 and PRIVATE.search((ROOT / "cluster" / "ray_private.py").read_text())
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if PRIVATE.search(line.replace("ray.__version__", ""))
    ]
    assert found == []


def test_rays_on_this_machine_are_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(re.fullmatch(r"\S+:\d+", one) for one in ray_private.addresses_here())
    found = {"10.0.0.2:1", "10.0.0.1:1"}
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: found)
    assert ray_private.addresses_here() == ["10.0.0.1:1", "10.0.0.2:1"]


def test_on_loopback_this_machine_s_address_is_127_0_0_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CLUSTERS, raising=False)
    before = ray_private.node_ip_address()
    with ray_private.loopback():
        assert ray_private.node_ip_address() == "127.0.0.1" and os.environ[CLUSTERS] == "0"
    assert ray_private.node_ip_address() == before and ip_address(before)
    assert CLUSTERS not in os.environ


def test_an_environment_that_speaks_of_clusters_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLUSTERS, "1")
    before = ray_constants.ENABLE_RAY_CLUSTER
    with ray_private.loopback():
        assert os.environ[CLUSTERS] == "1" and before == ray_constants.ENABLE_RAY_CLUSTER
    assert os.environ[CLUSTERS] == "1"


def test_variables_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Config.health_check_period_ms()
    with monkeypatch.context() as patched:
        patched.setenv("RAY_health_check_period_ms", str(before + 1))
        assert Config.health_check_period_ms() == before
        ray_private.read_environment()
        assert Config.health_check_period_ms() == before + 1
    ray_private.read_environment()
    assert Config.health_check_period_ms() == before


def test_session_folders_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    folder = ray_private.temporary_folder()
    assert folder.parent == tmp_path
    for name in ("session_2026-01-01_00-00-00_000000_7", "session_2026-01-01_00-00-00_000000_77"):
        (folder / name).mkdir(parents=True)
    assert [path.name[-2:] for path in ray_private.session_folders(7)] == ["_7"]


def test_how_long_a_start_waits_for_the_dashboard() -> None:
    """It is read where the process is waited for."""
    from ray._private import node, services

    name = "RAY_DASHBOARD_STARTUP_TIMEOUT_S"
    assert any(name in inspect.getsource(module) for module in (node, services))
    before = ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S
    with pytest.raises(ZeroDivisionError), ray_private.dashboard_seconds(before + 1):
        assert before + 1 == ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S
        raise ZeroDivisionError
    assert before == ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S


def test_what_this_machine_has() -> None:
    found = ray_private.resources_here()
    assert 1 <= found["CPU"] <= (os.cpu_count() or 1) and found["GPU"] >= 0


@pytest.mark.parametrize("ignore", ["0", "1"])
def test_an_upload_honours_ignore_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignore: str
) -> None:
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", ignore)
    for name in ("kept", "large", "larger"):
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("large\n")
    (tmp_path / ".rayignore").write_text("larger\n")
    visited: list[Path] = []
    ray_private.walk_upload(tmp_path, visited.append)
    names = {path.name for path in visited if path.is_file()}
    assert names == {".gitignore", ".rayignore", "kept"} | ({"large"} if ignore == "1" else set())
    assert ray_private.UPLOAD_BYTES >= 100 << 20


def test_a_counter_is_exported_at_0(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter("branchgrpo_test", "of a test", ("run", "role"))
    counter.set_default_tags({"run": "r"})
    sent: list[tuple[Any, ...]] = []

    class Writer:
        def record(self, *arguments: Any, **options: Any) -> None:
            sent.append((*arguments, *options.values()))

    monkeypatch.setattr(counter, "_metric", Writer())
    ray_private.export_zero(counter, {"role": "rollout"})
    counter.inc(2.0, {"role": "rollout"})
    assert [value for value, *_ in sent] == [0.0, 2.0] and sent[0][1:] == sent[1][1:]
    with pytest.raises(ValueError):
        counter.inc(0.0, {"role": "rollout"})
