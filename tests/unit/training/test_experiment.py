"""A whole run in one process: the embedded model, the recogniser, the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file
from support.in_process import Service
from support.small_trees import quickstart

from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.report.sinks import read
from branchgrpo.report.terminal import Display
from branchgrpo.training import evaluate as evaluation
from branchgrpo.training import loop as trainer
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


def run(
    folder: Path, interrupted: Callable[[], bool] = lambda: False, **keys: str
) -> tuple[Config, Service, dict[str, Any]]:
    """carry_out on the tiny config; keys have __ for dots."""
    config = quickstart(TINY | {key.replace("__", "."): value for key, value in keys.items()})
    service = Service(config)
    return (
        config,
        service,
        carry_out(
            config, service=service, folder=folder, display=display(), interrupted=interrupted
        ),
    )


def checks(folder: Path) -> list[int]:
    """Iterations of the records that hold a held-out score."""
    return [
        record["iteration"]
        for record in read(folder / "metrics.jsonl")
        if "held_out/total" in record
    ]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A second passes whenever the trainer looks: every iteration takes 3 s (it looks at both ends
    and twice between)."""
    ticks = count()
    monkeypatch.setattr(trainer, "perf_counter", lambda: float(next(ticks)))
    yield


def test_run_folder_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config, service, summary = run(folder)
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
        summary["diversity"]["n"],
    ) == (2, "iterations", "ocr/exact", 2)
    assert 0 < summary["diversity"]["mean"] < 1
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
    assert [(weights, version) for weights, version, _ in service.published] == [
        ("policy", 1),
        ("policy", 2),
    ]


def test_scores_known_before_are_not_measured_again(tmp_path: Path) -> None:
    config, *_ = run(tmp_path / "measured")
    known = json.loads((tmp_path / "measured" / "held_out.json").read_text())
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
    assert json.loads((tmp_path / "known" / "held_out.json").read_text()) == known
    assert (
        not (tmp_path / "known" / "samples" / "before.png").exists()
        and "evaluation_before" not in summary["seconds"]
    )
    row, scores = measure(config, Service(config), display())
    assert {name: values.tolist() for name, values in scores.items()} == known["before"] and row[
        "diversity"
    ]["n"] == 2


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


@pytest.mark.parametrize(("every", "expected"), [("0", [0, 5]), ("2", [0, 2, 4, 5]), ("5", [0, 5])])
def test_checks_by_iterations(tmp_path: Path, every: str, expected: list[int]) -> None:
    run(
        tmp_path / "run",
        run__iterations="5",
        evaluation__every=every,
        evaluation__diversity="0",
        rollout__prompts="1",
    )
    assert checks(tmp_path / "run") == expected


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [("0", [0, 5]), ("6", [0, 2, 4, 5]), ("7", [0, 3, 5]), ("0.1", [0, 1, 2, 3, 4, 5])],
)
def test_checks_by_seconds(tmp_path: Path, seconds: str, expected: list[int]) -> None:
    # iterations end at 3, 6, 9, 12, 15 s
    run(
        tmp_path / "run",
        run__iterations="5",
        evaluation__every="0",
        evaluation__every_seconds=seconds,
        evaluation__diversity="0",
        rollout__prompts="1",
    )
    assert checks(tmp_path / "run") == expected


@pytest.mark.usefixtures("clock")
def test_without_iterations_the_time_limit_ends_training(tmp_path: Path) -> None:
    _, _, summary = run(
        tmp_path / "run",
        run__iterations="0",
        run__max_minutes="0.125",
        evaluation__every="0",
        learner__schedule="constant",
    )  # 7.5 s: 3 iterations of 3 s
    assert (summary["stopped_by"], summary["iterations"]) == ("max_minutes", 3)
    assert read(tmp_path / "run" / "metrics.jsonl")[-1]["time/training"] == 9.0 and checks(
        tmp_path / "run"
    ) == [0, 3]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("ending", ["max_minutes", "interrupted"])
def test_the_last_iteration_is_checked_once(tmp_path: Path, ending: str) -> None:
    """A check on the way that falls on the end is left to the check after training, however
    training ends."""
    asked = count(1)
    keys = {
        "max_minutes": {
            "run__iterations": "0",
            "run__max_minutes": "0.08",
            "learner__schedule": "constant",
        },
        "interrupted": {"run__iterations": "9"},
    }[ending]  # 4.8 s: 2 iterations of 3 s
    _, _, summary = run(
        tmp_path / "run",
        lambda: ending == "interrupted" and next(asked) == 2,
        evaluation__diversity="0",
        **keys,
    )
    assert (summary["stopped_by"], summary["iterations"]) == (ending, 2)
    assert checks(tmp_path / "run") == [0, 1, 2]


def test_checks_on_the_way_see_no_other_prompts(tmp_path: Path) -> None:
    """Else the curve would begin and end with other prompts than it has between."""
    keys = {
        "evaluation__prompts": "4",
        "evaluation__prompts_between": "9",
        "evaluation__diversity": "0",
    }
    _, service, _ = run(tmp_path / "run", **keys)
    encoded = [
        len(arguments[0]) for method, arguments in service.rollout_pool.calls if method == "encode"
    ]
    assert encoded == [4, 2, 4, 2, 4]  # before, iteration 1, its check, iteration 2, after


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


def test_evaluation_has_steps_of_its_own(tmp_path: Path) -> None:
    _, service, _ = run(tmp_path / "run", evaluation__steps="3")
    grown = {
        (arguments[1].subtrees[0].key.iteration, arguments[0].steps)
        for method, arguments in service.rollout_pool.calls
        if method == "grow"
    }
    assert grown == {(EVALUATION, 3), (0, 6), (1, 6)}


def test_pairwise_distance() -> None:
    even = np.stack([np.full((2, 1, 3), value, np.uint8) for value in (0, 51, 255)])
    assert evaluation.pairwise_distance(even) == pytest.approx((0.2 + 1.0 + 0.8) / 3)
    one_of_four = np.zeros((2, 4), np.uint8)
    one_of_four[1, 2] = 255
    assert evaluation.pairwise_distance(one_of_four) == 0.5
    assert evaluation.pairwise_distance(np.zeros((4, 8), np.uint8)) == 0.0
