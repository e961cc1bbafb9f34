"""A whole run in one process: the embedded model, the recogniser, the run folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from rich.console import Console
from safetensors.torch import load_file
from support import wandb_records
from support.in_process import Service
from support.small_trees import quickstart
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.util.tensor_util import make_ndarray

from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.report import contact_sheet, looks
from branchgrpo.report.sinks import read
from branchgrpo.report.terminal import Display
from branchgrpo.training.carry_out import carry_out, measure
from branchgrpo.types import EVALUATION

TINY = {
    "run.iterations": "2",
    "run.export": "none",
    "sampling.steps": "6",
    "method.splits": "[1, 3]",
    "method.leaves": "4",
    "rollout.workers": "2",
    "rollout.prompts": "2",
    "rollout.threads": "1",
    "reward_workers.threads": "1",
    "learner.threads": "1",
    "evaluation.prompts": "8",
    "evaluation.prompts_between": "4",
    "evaluation.pictures": "3",
    "evaluation.every": "1",
    "evaluation.diversity": "2",
    "evaluation.steps": "4",
}
SCORES = {"total", "ocr/exact", "ocr/edit", "ocr/likelihood"}


def display() -> Display:
    return Display("test", 1, "ocr/exact", Console(file=StringIO()))


def run(folder: Path, **keys: str) -> tuple[Config, Service, dict[str, Any]]:
    """carry_out on the tiny config; keys have __ for dots."""
    config = quickstart(TINY | {key.replace("__", "."): value for key, value in keys.items()})
    service = Service(config)
    summary = carry_out(
        config, service=service, folder=folder, display=display(), interrupted=lambda: False
    )
    return config, service, summary


@dataclass
class Whole:
    """A run without anything special, but that W&B (offline) and MLflow (in files) got it too;
    tests may look at it and not change it."""

    folder: Path
    config: Config
    service: Service
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        keys = {"run__wandb": "mine", "run__mlflow": f"file://{folder.parent}/mlruns"}
        config, service, summary = run(folder, **keys)
    return Whole(folder=folder, config=config, service=service, summary=summary)


def test_looks_on_the_way_are_kept(whole: Whole) -> None:
    """Before training, at the check after the first iteration, and at the end; the leaves are of
    the iteration's own trees."""
    found = looks.read(whole.folder)
    records = read(whole.folder / "metrics.jsonl")
    assert [look["iteration"] for look in found] == [0, 1, 2]
    for look, record in zip(found, (*records[:2], records[-1]), strict=True):
        assert look["prompts"] == 4 and look["alarms"] == {}
        for score in SCORES:
            assert look["held_out"][score]["mean"] == pytest.approx(record[f"held_out/{score}"])
            assert look["held_out"][score]["error"] >= 0
    for look, record in zip(found[1:], records[1:3], strict=True):
        counts, edges = look["rewards"]["counts"], look["rewards"]["edges"]
        assert sum(counts) == record["tree/leaves"] == 8
        assert edges[0] <= record["reward/total"] <= edges[-1]
        assert look["flat_groups"] == record["reward/flat_groups"]
        assert sum(sum(one["counts"]) for one in look["advantage"]) == record["update/edges"]
        best, worst = look["leaves"][:4], look["leaves"][4:]
        assert len(best) == len(worst) == 4
        assert sum(one["reward"] for one in look["leaves"]) / 8 == pytest.approx(
            record["reward/total"]
        )
        for one in look["leaves"]:
            assert one["reward"] == one["parts"]["ocr/likelihood"]
        pixels, captions, rewards = contact_sheet.kept(
            whole.folder / looks.LEAVES.format(look["iteration"])
        )
        assert pixels.shape == (8, 1, 32, 32, 3)
        assert captions == [one["prompt"] for one in look["leaves"]]
        assert rewards.tolist() == [one["reward"] for one in look["leaves"]]
    assert [path.name for path in (whole.folder / "samples" / "way").iterdir()] == ["000001.npz"]
    pixels, captions, _ = contact_sheet.kept(whole.folder / looks.WAY.format(1))
    before, prompts, _ = contact_sheet.kept(whole.folder / "samples" / "before.npz")
    assert captions == prompts and pixels.shape == before.shape
    assert 0 < np.abs(pixels.astype(int) - before).mean() < 30  # the same noise, other weights


def checks(folder: Path) -> list[int]:
    """Iterations of the records that hold a held-out score."""
    return [
        record["iteration"]
        for record in read(folder / "metrics.jsonl")
        if "held_out/total" in record
    ]


def test_tensorboard_shows_what_the_run_saw_and_was(whole: Whole) -> None:
    events = plugin_event_accumulator.EventAccumulator(
        str(whole.folder / "tensorboard"), {plugin_event_accumulator.TENSORS: 0}
    ).Reload()
    shown = {event.step: make_ndarray(event.tensor_proto) for event in events.Tensors("held_out")}
    assert set(shown) == {0, 1, 2}
    assert {len(items) for items in shown.values()} == {2 + 3}  # width, height and three pictures
    assert shown[0][2] != shown[2][2]
    for tag, kind in SEEN.items():
        assert events.SummaryMetadata(tag).plugin_data.plugin_name == kind
        assert [event.step for event in events.Tensors(tag)] == [1, 2]
    assert b"learning_rate" in make_ndarray(events.Tensors("config")[0].tensor_proto).item()
    assert "system/cpu_percent" in events.Tags()["tensors"]


SEEN = {
    "leaves/best": "images",
    "leaves/worst": "images",
    "reward/leaves": "histograms",
    "advantage/depth0": "histograms",
}
"""Beside held-out pictures, after each iteration."""


def test_wandb_has_what_the_run_saw_and_was(whole: Whole) -> None:
    found = wandb_records.kept(whole.folder, lambda found: len(found["history"]) >= 13)
    assert [row["iteration"] for row in found["history"] if "held_out" in row] == [0, 1, 2]
    rows = [row["held_out"] for row in found["history"] if "held_out" in row]
    assert all(row["captions"][0].startswith("exact ") for row in rows)
    for tag, kind in SEEN.items():
        seen = [row[tag]["_type"] for row in found["history"] if tag in row]
        assert seen == [{"images": "images/separated", "histograms": "histogram"}[kind]] * 2
    assert found["config"]["learner"]["learning_rate"] == whole.config.learner.learning_rate


def test_mlflow_has_what_the_run_saw_and_was(whole: Whole) -> None:
    client = MlflowClient(tracking_uri=whole.config.run.mlflow)
    (run,) = client.search_runs([client.get_experiment_by_name("branchgrpo").experiment_id])
    assert run.info.status == "FINISHED"
    names = [one.path for one in client.list_artifacts(run.info.run_id, "images")]
    for tag, steps in {"held_out": "012", "leaves~best": "12", "leaves~worst": "12"}.items():
        for step in steps:
            wanted = re.compile(rf"images/{tag}~00[+%]step[+%]{step}[+%]")
            assert any(wanted.match(name) for name in names), (tag, step)
    assert {"reward/leaves/median", "advantage/depth0/p90", "system/memory_gb"} <= set(
        run.data.metrics
    )
    assert run.data.params["sampling.steps"] == "6"
    text = Path(client.download_artifacts(run.info.run_id, "config.yaml")).read_text()
    assert yaml.safe_load(text) == configs.plain(whole.config)


def test_run_folder_is_complete(whole: Whole) -> None:
    folder, config, summary = whole.folder, whole.config, whole.summary
    for name in ("curve.png", "samples/before.png", "samples/after.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name
    assert configs.load(folder / "config.yaml") == config
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert not (folder / "weights").exists()

    records = read(folder / "metrics.jsonl")
    held_out = json.loads((folder / "held_out.json").read_text())
    assert [record["iteration"] for record in records] == [0, 1, 2, 2] and checks(folder) == [
        0,
        1,
        2,
    ]
    for when, record in (("before", records[0]), ("after", records[-1])):
        assert held_out[when].keys() == SCORES and {
            len(values) for values in held_out[when].values()
        } == {8}
        assert held_out[when]["total"] == held_out[when]["ocr/likelihood"]  # what trains, weight 1
        # as the checks on the way
        assert record["held_out/total"] == pytest.approx(np.mean(held_out[when]["total"][:4]))
        assert summary["held_out"]["ocr/edit"][when] == pytest.approx(
            np.mean(held_out[when]["ocr/edit"])
        )
    assert held_out["before"]["total"] != held_out["after"]["total"]
    assert (
        records[-1]["time/training"]
        == records[-2]["time/training"]
        == pytest.approx(sum(record["time/iteration"] for record in records[1:3]))
    )

    assert (
        summary["iterations"],
        summary["stopped_by"],
        summary["metric"],
    ) == (2, "iterations", "ocr/exact")
    assert summary["diversity"].keys() == {"pixels", "latents"}
    for compared, found in summary["diversity"].items():
        kept = held_out["diversity"]
        assert found["n"] == 2 and 0 < found["mean"] < 1
        assert found["mean"] == pytest.approx(np.mean(kept["after"][compared]))
        assert found["before"] == pytest.approx(np.mean(kept["before"][compared]))
        assert found["ratio"] == found["mean"] / found["before"] != 1
    assert (
        summary["gates"]["on_policy_deviation"] <= 1e-5
        and summary["gates"]["fingerprint_difference"] <= 1e-4
    )
    assert summary["seconds"].keys() == {
        "start_up",
        "evaluation_before",
        "training",
        "evaluation_after",
        "total",
    }
    # a tree of 6 steps split at 1 and 3 has 1, 1, 2, 2, 4, 4 parents by level; random are the steps
    # 1 and 3
    assert summary["forwards_per_leaf"] == {"rollout": 14 / 4, "training": 3 / 4}
    assert summary["edges_per_leaf"] == {"all": 17 / 4, "stochastic": 6 / 4, "trained": 6 / 4}
    assert [(weights, version) for weights, version, _ in whole.service.published] == [
        ("policy", 1),
        ("policy", 2),
    ]


def test_scores_known_before_are_not_measured_again(whole: Whole, tmp_path: Path) -> None:
    config = whole.config
    known = json.loads((whole.folder / "held_out.json").read_text())
    before = {name: np.array(values, np.float32) for name, values in known["before"].items()}
    summary = carry_out(
        config,
        service=Service(config),
        folder=tmp_path / "known",
        display=display(),
        interrupted=lambda: False,
        before=before,
    )
    # the folder's name plays no part
    again = json.loads((tmp_path / "known" / "held_out.json").read_text())
    diversity = known.pop("diversity")
    assert again.pop("diversity") == {"after": diversity["after"]} and again == known
    assert (
        not (tmp_path / "known" / "samples" / "before.png").exists()
        and "evaluation_before" not in summary["seconds"]
    )
    row, scores = measure(config, Service(config), display())
    assert {name: values.tolist() for name, values in scores.items()} == known["before"]
    assert row["diversity"]["latents"]["mean"] == pytest.approx(
        np.mean(diversity["before"]["latents"])
    )


def test_the_mean_of_the_weights_is_evaluated_and_exported(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _, service, _ = run(
        folder, learner__ema="0.5", evaluation__weights="ema", run__export="pipeline"
    )
    names = [(weights, version) for weights, version, _ in service.published]
    step, check = [("policy", 1)], [("ema", 1), ("policy", 1)]
    # the checks at 1 and 2, diversity
    assert names == [*step, *check, ("policy", 2), *[("ema", 2), ("policy", 2)] * 2]
    digests = [digest for *_, digest in service.published]
    for mean, policy in ((1, 2), (4, 5), (6, 7)):
        assert digests[policy] == digests[0 if policy == 2 else 3] != digests[mean]
    assert digests[4] == digests[6]

    learner = service.learner
    saved = load_file(folder / "weights" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all((saved[name] == value).all() for name, value in learner.policy.ema.items())
    assert any((saved[name] != value).any() for name, value in learner.model.trainable().items())
    again = quickstart(TINY | {"model.path": str(folder / "weights")})
    _, scores = measure(again, Service(again), display())
    assert {name: values.tolist() for name, values in scores.items()} == json.loads(
        (folder / "held_out.json").read_text()
    )["after"]


def test_the_policy_is_evaluated_unless_the_mean_is_asked_for(tmp_path: Path) -> None:
    _, service, _ = run(tmp_path / "run", learner__ema="0.5")
    assert {weights for weights, *_ in service.published} == {"policy"}


def test_adaptive_splits_move_during_training(tmp_path: Path) -> None:
    config, service, _ = run(tmp_path / "run", method__adapt_every="1", run__iterations="3")
    records = [
        record for record in read(tmp_path / "run" / "metrics.jsonl") if "splits/0" in record
    ]
    splits = [(int(record["splits/0"]), int(record["splits/1"])) for record in records]
    assert splits[0] == (1, 3) == config.method.splits
    # steps that were never tried come first: two of 0, 2, 4, then the third
    assert not {1, 3} & set(splits[1])
    assert {0, 2, 4} - set(splits[1]) <= set(splits[2])
    for record, chosen in zip(records, splits, strict=True):
        parents = [2 ** sum(split < step for split in chosen) for step in range(6)]
        assert record["tree/forwards"] == 2 * sum(parents)  # two prompts
        assert record["update/forwards"] == 2 * 3
    grown = [
        (arguments[1].subtrees[0].key.iteration, arguments[0])
        for method, arguments in service.rollout_pool.calls
        if method == "grow"
    ]
    for iteration, chosen in enumerate(splits):
        assert all(
            tuple(np.flatnonzero(np.array(plan.fanout) > 1)) == chosen
            for number, plan in grown
            if number == iteration
        )


def test_evaluation_has_steps_of_its_own(whole: Whole) -> None:
    grown = {
        (arguments[1].subtrees[0].key.iteration, arguments[0].steps)
        for method, arguments in whole.service.rollout_pool.calls
        if method == "grow"
    }
    assert grown == {(EVALUATION, 4), (0, 6), (1, 6)}
