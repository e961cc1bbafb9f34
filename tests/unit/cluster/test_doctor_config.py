"""What the doctor finds of a config: its files, prompts, storage, and this machine."""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from support.doctor_facts import facts, quickstart, state

from branchgrpo.app import checks as own
from cluster.doctor import storage
from cluster.doctor.diagnosis import Needs, diagnose, examine
from cluster.doctor.machines import DRIVER, Answers, Machines


def test_every_node_has_the_model(tmp_path: Path) -> None:
    there, gone = tmp_path / "model_index.json", tmp_path / "gone" / "model_index.json"
    there.write_text("{}")
    found = own.machine([str(there), str(gone)], cuda=False)["files"]
    assert found == {str(there): True, str(gone): False}
    path = str(there)
    assert (
        state(storage.files({DRIVER: facts(files={path: True}), "a": facts(files={path: True})}))
        == "ok"
    )
    assert (
        state(
            storage.files({DRIVER: facts(files={path: True}), "a": facts(files={path: False})}),
            f"a: {path}",
            "mount",
        )
        == "fail"
    )


class Apart(Machines):
    """Two machines that each have a disk of their own where they should share one."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def call(self, function: Any, folder: str, *rest: Any) -> Answers:
        def on(disk: str) -> Any:
            found = function(
                disk + folder,
                *(
                    [disk + file for file in given] if isinstance(given, list) else given
                    for given in rest
                ),
            )
            return (
                [file.removeprefix(disk) for file in found]
                if isinstance(found, list)
                else found and found.removeprefix(disk)
            )

        return {name: on(str(self.folder / name)) for name in ("a", "b")}


def test_storage_that_only_looks_shared(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "mnt" / "runs").mkdir(parents=True)
    assert (
        state(
            storage.shared_folder(Apart(tmp_path), "/mnt/runs"),
            "/mnt/runs is not the same folder everywhere: a, b",
            "mount",
        )
        == "fail"
    )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_storage_that_can_be_written(tmp_path: Path) -> None:
    with Machines() as machines:
        assert (
            state(storage.shared_folder(machines, str(tmp_path / "not" / "yet")), "writable")
            == "ok"
        )
        assert not list(tmp_path.iterdir())  # nothing is left, and nothing was made
        assert state(storage.shared_folder(machines, "memory://runs"), "writable") == "ok"
        (tmp_path / "file").write_text("x")
        assert (
            state(
                storage.shared_folder(machines, str(tmp_path / "file")),
                "cannot be written",
                "NotADirectoryError",
            )
            == "fail"
        )


@pytest.mark.skipif(
    os.geteuid() == 0 and not os.path.isdir("/sys/kernel"),
    reason="needs a folder that root may not write",
)
def test_storage_that_is_read_only(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    # root may write anywhere but there
    folder = "/sys/kernel" if os.geteuid() == 0 else str(closed)
    with Machines() as machines:
        assert (
            state(
                storage.shared_folder(machines, folder),
                f"{folder} cannot be written",
                "driver: PermissionError",
            )
            == "fail"
        )


# The config's part


def test_what_a_config_wants() -> None:
    config = quickstart(run__folder="some/runs")
    assert own.files(config) == []  # the model is in the package
    given = quickstart(
        model__path="/models/flux",
        rewards="[{name: pickscore, path: /clip, processor: /words}, {name: ocr}]",
    )
    assert own.files(given) == ["/models/flux/model_index.json", "/clip", "/words"]
    assert own.folders(config) == {"run.folder": os.path.abspath("some/runs")}
    assert (
        own.folders(quickstart(checkpoint__folder="s3://bucket/x"))["checkpoint.folder"]
        == "s3://bucket/x"
    )
    assert own.folders(quickstart(checkpoint__folder="here"))[
        "checkpoint.folder"
    ] == os.path.abspath("here")
    found = examine(own.own(config))
    wanted = {"model", "prompts", "rewards.0 (ocr)", "evaluation.rewards.0 (colour)"}
    assert set(found) == wanted and all(finding.state == "ok" for finding in found.values())


def test_a_model_and_a_reward_that_are_not_there(tmp_path: Path) -> None:
    rewards = json.dumps([{"name": "pickscore", "path": str(tmp_path / "none")}])
    found = examine(own.own(quickstart(rewards=rewards, model__path=str(tmp_path / "no-model"))))
    assert state(found["model"], "UserError: model.path", "no-model") == "fail"
    assert own.trained(quickstart(model__path=str(tmp_path / "no-model"))) == 0
    assert state(found["rewards.0 (pickscore)"], "UserError", str(tmp_path / "none")) == "fail"


def test_prompts_that_are_not_there_and_too_few(tmp_path: Path) -> None:
    found = examine(own.own(quickstart(prompts=str(tmp_path / "none.txt"))))
    assert state(found["prompts"], "prompts: expected a file of prompts", "none.txt") == "fail"
    assert (
        state(
            examine(own.own(quickstart(evaluation__prompts="9999")))["prompts"],
            "at least 9999 prompts",
        )
        == "fail"
    )


def test_numbers_that_are_trained() -> None:
    config = quickstart()
    (path,) = (config.model.folder() / "transformer").glob("*.safetensors")
    with safe_open(path, "numpy") as file:
        assert own.trained(config) == sum(
            prod(file.get_slice(name).get_shape()) for name in file.keys()
        )
    assert (
        own.published(config)
        == 4 * own.trained(config)
        == 2 * own.published(quickstart(model__dtype="bfloat16"))
    )


def test_code_is_told_apart_by_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "doctored"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    before = own.code("doctored")
    assert before == own.code("doctored") != "none" and own.code(
        "no_such_package"
    ) == "none" == own.version("no-such-package")
    (package / "__init__.py").write_text("a = 2\n")
    assert own.code("doctored") != before


def test_this_machine_alone(tmp_path: Path) -> None:
    needs = Needs(
        machine=own.machine,
        own={"model": lambda: "there"},
        folders={"run.folder": str(tmp_path)},
        checkpoints=str(tmp_path),
        object_store_mb=1,
    )
    found = diagnose("local", needs)
    assert "only this machine" in found["ray"].text
    for name in (
        "versions",
        "gpus",
        "working dir",
        "job stop",
        "disk",
        "files on nodes",
        "storage run.folder",
        "model",
    ):
        assert found[name].state == "ok", found[name]
    assert {"ports", "object store", "clocks"}.isdisjoint(found)  # what only a cluster has


def test_an_address_where_nothing_answers_is_a_failure_and_the_rest_is_looked_at(
    tmp_path: Path,
) -> None:
    found = diagnose(
        "127.0.0.1:1", Needs(machine=own.machine, folders={"run.folder": str(tmp_path)})
    )
    assert state(found["ray"], "127.0.0.1:1", "only this machine") == "fail"
    assert found["storage run.folder"].state == "ok"
