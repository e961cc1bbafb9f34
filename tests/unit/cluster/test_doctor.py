"""Each check on facts that are right and wrong, and all of them on this machine; no Ray. The rest
is in integration/test_control_ray.py."""

from __future__ import annotations

import shutil
import socket
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.doctor_facts import GB, ROOT, facts, quickstart, state

from branchgrpo.app import roles
from branchgrpo.config import load as configs
from branchgrpo.errors import UserError
from cluster.doctor import checks, storage
from cluster.doctor import diagnosis as doctor
from cluster.doctor.diagnosis import examine
from cluster.doctor.finding import Finding
from cluster.doctor.machines import DRIVER
from cluster.session import Session

# Every check runs


def test_a_check_that_raises_is_a_failure_and_stops_no_other() -> None:
    def broken() -> str:
        raise UserError("model.path: expected a folder,\n got none")

    found = examine(
        {"one": broken, "two": lambda: "fine", "three": lambda: Finding("warn", "small", "grow it")}
    )
    assert found["one"] == Finding("fail", "UserError: model.path: expected a folder, got none")
    assert found["two"] == Finding("ok", "fine") and found["three"].state == "warn"
    assert doctor.exit_code(found) == 1
    del found["one"]
    assert doctor.exit_code(found) == 0  # warnings are none
    assert doctor.listing(found)[1] == {
        "check": "three",
        "state": "warn",
        "text": "small",
        "advice": "grow it",
    }


def test_what_a_person_sees() -> None:
    console = Console(file=StringIO(), width=80, color_system=None)
    console.print(
        doctor.render(
            {"disk": Finding("fail", "0 [free]", "delete something"), "ports": Finding("ok", "all")}
        )
    )
    assert isinstance(console.file, StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines == ["fail disk 0 [free]", "→ delete something", "ok ports all"]


# Versions


def test_the_same_versions_everywhere() -> None:
    assert (
        state(
            checks.versions({DRIVER: facts(), "a": facts(), "b": facts()}),
            "Python 3.11.7",
            "torch 2.15.0",
            "2 nodes and here",
        )
        == "ok"
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"python": "3.12.1"}, "b has Python 3.12.1, 3.11.7 is here"),
        ({"packages": {"ray": "2.60.0", "torch": "2.11.0"}}, "b has torch 2.11.0, 2.15.0 is here"),
        (
            {"code": {"branchgrpo": "none", "actors": "bbbb", "cluster": "cccc"}},
            "b has branchgrpo's code none, aaaa is here",
        ),
    ],
)
def test_a_node_that_differs_is_named(changed: dict[str, Any], words: str) -> None:
    finding = checks.versions({DRIVER: facts(), "a": facts(), "b": facts(**changed)})
    assert state(finding, words, "same environment") == "fail" and "a has" not in finding.text


def test_a_node_that_cannot_answer_is_named() -> None:
    assert (
        state(
            checks.versions({DRIVER: facts(), "b": ModuleNotFoundError("No module named 'x'")}),
            "b: ModuleNotFoundError",
        )
        == "fail"
    )


# Tokens


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o600, "ok"), (0o644, "fail"), (0o640, "warn"), (0o604, "fail")]
)
def test_the_token_file_is_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, expected: str
) -> None:
    path = tmp_path / "token"
    path.write_text("x")
    path.chmod(mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    finding = checks.token_file({DRIVER: checks.token_mode()})
    assert (
        state(finding, str(path), *([] if expected == "ok" else [f"chmod 600 {path}", f"{mode:o}"]))
        == expected
    )


def test_no_token_file_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    assert state(checks.token_file({DRIVER: checks.token_mode()})) == "ok"


# Resources


def test_gpus_that_ray_counts_and_torch_sees() -> None:
    two = facts(cuda=["GPU"] * 2)
    assert (
        state(
            checks.gpus({"a": 2, "b": 0}, {DRIVER: facts(), "a": two, "b": facts()}, {}),
            "2 on 1 of 2 nodes",
        )
        == "ok"
    )
    assert (
        state(
            checks.gpus({"a": 2}, {DRIVER: facts(), "a": facts(cuda=["GPU"])}, {}),
            "a: Ray counts 2, torch sees 1",
        )
        == "fail"
    )
    assert (
        state(checks.gpus({"a": 2}, {DRIVER: facts(), "a": facts()}, {}), "torch sees 0") == "fail"
    )
    assert (
        state(
            checks.gpus({"a": 1}, {DRIVER: facts(), "a": two}, {}),
            "Ray counts 1, torch sees 2",
            "--num-gpus",
        )
        == "warn"
    )
    assert state(checks.gpus({}, {DRIVER: two}, {}), "sees 2 GPUs here") == "ok"


def test_gpus_that_the_config_wants() -> None:
    eight = {"rollout": (4, 1.0), "reward": (2, 0.5), "learner": (3, 1.0)}
    words = (
        "the config wants 8 (4 rollout × 1, 2 reward × 0.5, 3 learner × 1), none are here",
        "--address",
    )
    assert state(checks.gpus({}, {DRIVER: facts()}, eight), *words) == "fail"
    two = facts(cuda=["GPU"] * 2)
    assert (
        state(
            checks.gpus({}, {DRIVER: two}, {"learner": (2, 1.0)}),
            "torch sees 2 GPUs here, the config wants 2",
        )
        == "ok"
    )
    assert (
        state(
            checks.gpus({"a": 2, "b": 0}, {DRIVER: facts(), "a": two, "b": facts()}, eight),
            "wants 8",
            "2 are on 2 nodes",
        )
        == "fail"
    )
    assert (
        state(
            checks.gpus({"a": 2}, {DRIVER: facts(), "a": two}, {"reward": (4, 0.5)}),
            "2 on 1 of 1 node",
            "wants 2",
        )
        == "ok"
    )
    four_nodes = configs.load(ROOT / "configs" / "flux.1-dev-4nodes-full.yaml", {})
    assert (
        sum(count * each for count, each in roles.gpus(four_nodes).values()) >= 8
        and roles.gpus(quickstart()) == {}
    )


def test_the_object_store_holds_two_versions_of_the_weights() -> None:
    assert state(storage.object_store({"a": 4 * GB, "b": 3 * GB}, GB, GB), "3.0 GiB on b") == "ok"
    assert (
        state(
            storage.object_store({"a": 4 * GB, "b": 2 * GB - 1}, GB, GB),
            "on b",
            "two versions",
            str(2 * GB),
        )
        == "fail"
    )
    assert (
        state(storage.object_store({"a": GB}, 2 * GB, 0), "cluster.object_store_mb, 2.0 GiB")
        == "warn"
    )


def test_shared_memory_holds_the_object_store() -> None:
    assert (
        state(storage.shared_memory({DRIVER: facts()}, {}, GB), "7.0 GiB of 8.0 GiB free") == "ok"
    )
    assert (
        state(
            storage.shared_memory({DRIVER: facts(shm=[64 << 20, 64 << 20])}, {}, GB),
            "64.0 MiB",
            "--shm-size",
        )
        == "warn"
    )
    assert (
        state(
            storage.shared_memory({DRIVER: facts(), "a": facts()}, {"a": 9 * GB}, GB),
            "a: 8.0 GiB for an object store of 9.0 GiB",
        )
        == "warn"
    )
    assert (
        state(storage.shared_memory({DRIVER: facts(shm=None)}, {}, GB), "no /dev/shm on driver")
        == "warn"
    )


def test_disk_for_a_checkpoint(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert (
        state(
            storage.disk(str(tmp_path / "not" / "yet"), 1 << 20), f"free at {tmp_path};", "12.0 MiB"
        )
        == "ok"
    )
    assert state(storage.disk(str(tmp_path), free), "about") == "fail"  # twelve bytes for each
    assert state(storage.disk(str(tmp_path), 0), "three times the trained weights") == "ok"
    assert state(storage.disk("s3://bucket/runs", 10), "not known") == "ok"


def test_what_a_submitted_job_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for name, size in (("run.py", 100), ("data/one", 600), ("data/deep/two", 500), ("notes", 300)):
        (tmp_path / name).write_bytes(bytes(size))
    monkeypatch.delenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", raising=False)
    # all of it, and not more
    assert state(storage.working_dir(tmp_path, 1500), f"{tmp_path}: 0.0 MiB to upload") == "ok"
    assert state(storage.working_dir(tmp_path, 1050), "in data", ".rayignore") == "warn"
    (tmp_path / ".gitignore").write_text("data/\n")
    assert state(storage.working_dir(tmp_path, 450)) == "ok"
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")  # then Ray uploads what git ignores
    assert state(storage.working_dir(tmp_path, 450), "in data") == "warn"
    (tmp_path / ".rayignore").write_text("one\ndeep/\n.gitignore\n.rayignore\n")
    assert state(storage.working_dir(tmp_path, 400)) == "ok"
    assert state(storage.working_dir(tmp_path, 399), "in notes") == "warn"


def test_clocks_that_differ_more_than_the_question_took() -> None:
    assert state(checks.clocks({"a": (0.5, 0.1), "b": (5.0, 4.0)})) == "ok"
    assert state(checks.clocks({"a": (0.5, 0.1), "b": (-5.0, 0.1)}), "b -5.00", "NTP") == "warn"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, "warn"), ("3", "warn"), ("60", "ok"), ("300", "ok"), ("soon", "warn")],
)
def test_a_submitted_job_has_time_to_save(seconds: str | None, expected: str) -> None:
    environment = {checks.IN_JOB: "{}"} | ({checks.GRACE: seconds} if seconds else {})
    assert state(checks.job_stop(environment), checks.GRACE) == expected
    assert state(checks.job_stop({})) == "ok"


def test_ports() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as open_one,
        socket.create_server(("127.0.0.1", 0)) as gone,
    ):
        address, closed = (f"127.0.0.1:{server.getsockname()[1]}" for server in (open_one, gone))
        gone.close()
        assert (
            state(
                checks.ports(Session(address, f"http://{address}", False)),
                f"GCS {address}; dashboard {address};",
            )
            == "ok"
        )
        assert (
            state(
                checks.ports(Session(address, f"http://{closed}", False)),
                f"dashboard {closed} closed",
                "ray job submit",
            )
            == "warn"
        )
        assert (
            state(
                checks.ports(Session(address, "", False)),
                "dashboard not served",
                "--include-dashboard",
            )
            == "warn"
        )
        assert (
            state(checks.ports(Session(closed, f"http://{address}", False)), f"GCS {closed} closed")
            == "fail"
        )


# Files
