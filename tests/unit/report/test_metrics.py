"""Metrics of a run reach both files and come back; copies reach W&B and MLflow."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from support.small_trees import quickstart
from tensorboard.backend.event_processing import event_accumulator

from branchgrpo.errors import UserError
from branchgrpo.report.sinks import MetricsLog, check_sinks, open_sinks, read, smooth
from branchgrpo.sinks import base
from branchgrpo.sinks.base import SinkOptions

pytestmark = pytest.mark.heavy


def test_records_come_back_with_nulls_for_what_json_lacks(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "run") as log:
        log.write(1, {"reward/total": 0.5, "update/loss": float("nan"), "tree/leaves": 64})
        log.write(2, {"reward/total": 0.75, "update/loss": float("inf")})
    records = read(tmp_path / "run" / "metrics.jsonl")
    elapsed = [record.pop("elapsed") for record in records]
    assert 0 <= elapsed[0] <= elapsed[1] < 60
    assert records == [
        {"iteration": 1, "reward/total": 0.5, "update/loss": None, "tree/leaves": 64.0},
        {"iteration": 2, "reward/total": 0.75, "update/loss": None},
    ]


def test_a_record_is_on_disk_when_write_returns_and_stays_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), MetricsLog(tmp_path) as log:
        log.write(1, {"reward/total": 0.5})
        assert len(read(tmp_path / "metrics.jsonl")) == 1
        raise RuntimeError("boom")
    assert read(tmp_path / "metrics.jsonl")[0]["reward/total"] == 0.5


def test_tensorboard_has_the_same_scalars(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for iteration in range(1, 4):
            log.write(
                iteration, {"reward/total": iteration / 4, "held_out/ocr/exact": iteration / 8}
            )
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"reward/total", "held_out/ocr/exact"}
    assert [(event.step, event.value) for event in events.Scalars("reward/total")] == [
        (1, 0.25),
        (2, 0.5),
        (3, 0.75),
    ]
    assert [(event.step, event.value) for event in events.Scalars("held_out/ocr/exact")] == [
        (1, 0.125),
        (2, 0.25),
        (3, 0.375),
    ]


def test_tensorboard_shows_an_iteration_that_was_done_again_once(tmp_path: Path) -> None:
    """Also one that another driver has done, whose checkpoint was older than its last metrics."""

    def shown() -> list[tuple[int, float]]:
        return [
            (event.step, event.value)
            for event in event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
            .Reload()
            .Scalars("reward/total")
        ]

    with MetricsLog(tmp_path) as log:
        for iteration in range(4):
            log.write(iteration, {"reward/total": float(iteration)})
        log.rewind(1)  # a failure: back to the checkpoint of iteration 1
        for iteration in (2, 3, 4):
            log.write(iteration, {"reward/total": 10.0 + iteration})
    assert shown() == [(0, 0.0), (1, 1.0), (2, 12.0), (3, 13.0), (4, 14.0)]
    time.sleep(1.1)  # names of event files tell seconds; drivers are further apart
    with MetricsLog(tmp_path) as log:
        log.rewind(3)
        log.write(4, {"reward/total": 24.0})
    expected = [(0, 0.0), (1, 1.0), (2, 12.0), (3, 13.0), (4, 24.0)]
    assert (
        shown()
        == expected
        == [
            (record["iteration"], record["reward/total"])
            for record in read(tmp_path / "metrics.jsonl")
        ]
    )


@pytest.mark.parametrize("cut", range(len('{"iteration": 2}')))
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n' + '{"iteration": 2}'[:cut], encoding="utf-8")
    assert read(path) == [{"iteration": 1}]


def test_a_whole_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2}', encoding="utf-8")
    assert [record["iteration"] for record in read(path)] == [1, 2]


@pytest.mark.parametrize("bad", ["{", "", "3", json.dumps([1])])
def test_any_other_bad_line_is_an_error_that_names_it(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n' + bad + '\n{"iteration": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        read(path)
    # last, but not torn: its end was written
    path.write_text('{"iteration": 1}\n' + bad + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        read(path)


def test_smooth_starts_at_the_first_value_and_weights_the_newest() -> None:
    assert smooth([]) == []
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    # weights 0.5 and 0.25 of the two newest, over their sum
    assert smooth([1.0, 4.0], weight=0.5) == pytest.approx([1.0, (0.5 * 4 + 0.25 * 1) / 0.75])


# W&B and MLflow: the real packages (extras of the dev group), offline and with MLflow's file store.
# A real server was not tried.

CONFIG = {"run": {"name": "quick", "seed": 1}, "rewards": [{"name": "ocr"}]} | {
    f"key{index}": index for index in range(230)
}


def chosen(wandb: str = "", mlflow: str = "") -> dict[str, SinkOptions]:
    """The sinks of run.wandb and run.mlflow."""
    return quickstart({"run.wandb": wandb, "run.mlflow": mlflow}).all_sinks


def log_and_resume(folder: Path, wandb: str, mlflow: str) -> None:
    """Two iterations; then, from an earlier checkpoint, the second one again and a third that
    fails."""
    with MetricsLog(folder, open_sinks(chosen(wandb, mlflow), folder, CONFIG)) as log:
        log.write(1, {"reward/ocr/exact": 0.5, "update/loss": math.nan})
        log.write(2, {"reward/ocr/exact": 0.75})
    with (
        pytest.raises(RuntimeError, match="boom"),
        MetricsLog(folder, open_sinks(chosen(wandb, mlflow), folder, CONFIG)) as log,
    ):
        log.write(2, {"reward/ocr/exact": 1.0})
        log.write(3, {"reward/ocr/exact": 1.25})
        raise RuntimeError("boom")


@pytest.fixture
def mlflow_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return f"file://{tmp_path}/mlruns"


def test_mlflow_gets_parameters_and_figures_and_a_resumed_folder_goes_on_with_its_run(
    tmp_path: Path, mlflow_uri: str
) -> None:
    from mlflow import MlflowClient

    log_and_resume(tmp_path / "quick-1", "", mlflow_uri)
    with MetricsLog(
        tmp_path / "other" / "quick-1",
        open_sinks(chosen(mlflow=mlflow_uri), tmp_path / "other" / "quick-1", {}),
    ) as log:
        log.write(1, {"reward/ocr/exact": 0.0})
    client = MlflowClient(tracking_uri=mlflow_uri)
    place = client.get_experiment_by_name("branchgrpo").experiment_id
    runs = {run.info.status: run for run in client.search_runs([place])}
    # of equal names, but two folders
    assert [run.info.run_name for run in runs.values()] == ["quick-1"] * 2
    run = runs["FAILED"]
    assert (
        len(run.data.params) == 233
        and run.data.params["run.seed"] == "1"
        and run.data.params["key229"] == "229"
    )
    history = client.get_metric_history(run.info.run_id, "reward/ocr/exact")
    assert [(found.step, found.value) for found in history] == [
        (1, 0.5),
        (2, 0.75),
        (2, 1.0),
        (3, 1.25),
    ]
    (loss,) = client.get_metric_history(run.info.run_id, "update/loss")
    assert math.isnan(loss.value)
    assert runs["FINISHED"].data.metrics == {"reward/ocr/exact": 0.0}


def test_training_goes_on_without_its_mlflow_server(
    tmp_path: Path,
    mlflow_uri: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient, MlflowException

    def lost(*_: object, **__: object) -> None:
        raise MlflowException("connection refused")

    with MetricsLog(
        tmp_path / "run", open_sinks(chosen(mlflow=mlflow_uri), tmp_path / "run", CONFIG)
    ) as log:
        log.write(1, {"reward/total": 0.5})
        client, deadline = MlflowClient(tracking_uri=mlflow_uri), time.monotonic() + 30
        place = client.get_experiment_by_name("branchgrpo").experiment_id
        # the first one is sent
        while not client.search_runs([place], "metrics.`reward/total` > 0"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monkeypatch.setattr(MlflowClient, "log_batch", lost)
        log.write(2, {"reward/total": 0.5})
        log.write(3, {"reward/total": 0.5})
    assert len(read(tmp_path / "run" / "metrics.jsonl")) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "run.mlflow: 2 records were not sent; the run folder has them"
    ]


def test_a_tracking_server_that_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        UserError, match=r"^run\.mlflow: cannot start a run at http://127\.0\.0\.1:9: [^\n]+$"
    ):
        open_sinks(chosen(mlflow="http://127.0.0.1:9"), tmp_path / "run", {})


def test_wandb_gets_the_figures_offline_and_a_resumed_folder_goes_on_with_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_and_resume(tmp_path / "quick-1", "my-project", "")
    wanted, deadline = (b"0.75", b"1.25"), time.monotonic() + 30
    while True:  # W&B's own process writes, and goes on after the end
        files = {
            path: path.read_bytes()
            for path in (tmp_path / "quick-1" / "wandb").glob("offline-run-*/*.wandb")
        }
        kept = [[text for text in files.values() if value in text] for value in wanted]
        if all(kept):
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (name,) = {path.name for path in files}  # the id of both runs
    assert name.startswith("run-quick-1-") and len(files) == 2
    for text in (b"my-project", b"reward/ocr/exact", b"key229", b"iteration"):
        assert text in kept[0][0], text


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_one_line(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    wanted = chosen(**{package: "somewhere"})
    with pytest.raises(
        UserError,
        match=rf"^run\.{package}: expected the package {package}, which is not installed: pip "
        rf"install 'branchgrpo\[{package}\]'$",
    ):
        check_sinks(wanted)
    with pytest.raises(UserError, match=package):
        open_sinks(wanted, tmp_path, {})
    check_sinks({})
    assert open_sinks(chosen(), tmp_path, {}) == []
    # named in the list of sinks, the line says so
    key = {"wandb": "project", "mlflow": "uri"}[package]
    listed = quickstart({"sinks.0.name": package, f"sinks.0.{key}": "somewhere"}).all_sinks
    assert list(listed.values()) == list(wanted.values())
    with pytest.raises(UserError, match=rf"^sinks\.0: expected the package {package}, which"):
        check_sinks(listed)


def test_each_sink_is_closed_whatever_another_one_raises(tmp_path: Path) -> None:
    closed = []

    class Broken:
        def write(self, iteration: int, values: object) -> None:
            pass

        def close(self, failed: bool) -> None:
            closed.append(failed)
            raise OSError("cannot close")

    with pytest.raises(OSError, match="cannot close"), MetricsLog(tmp_path, [Broken(), Broken()]):
        pass
    with pytest.raises(OSError, match="cannot close"), MetricsLog(tmp_path, [Broken()]):
        raise RuntimeError("boom")
    assert closed == [False, False, True]
