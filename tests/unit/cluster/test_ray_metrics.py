"""The table of metrics, and how values become metrics. Ray's own classes are met in
tests/integration/test_metrics_endpoint.py."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from branchgrpo.report import sinks as metrics
from cluster import errors, metric_table, ray_metrics
from cluster.metric_table import METRICS
from cluster.ray_metrics import RunMetrics
from cluster.restart_budget import NOT_COUNTED

Sent = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What reaches Ray: name, value, labels."""
    found: Sent = []

    class Writer:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]):
            self.name = name
            self.keys = tag_keys
            self.default = {}

        def set_default_tags(self, tags: dict[str, str]) -> Writer:
            self.default = tags
            return self

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert set(self.keys) == {*self.default, *tags}
            found.append((self.name.removeprefix("branchgrpo_"), value, {**self.default, **tags}))

        inc = set

        def _record(self, value: float, tags: dict[str, str]) -> None:
            assert value == 0.0
            self.set(value, tags)

    monkeypatch.setattr(ray_metrics, "Gauge", Writer)
    monkeypatch.setattr(ray_metrics, "Counter", Writer)
    return found


@pytest.fixture
def made(sent: Sent) -> Iterator[RunMetrics]:
    one = RunMetrics("run-1", metrics.PHASES)
    sent.clear()  # counters at 0
    yield one
    one.close()


def test_the_table_is_consistent() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    values = [source for metric in METRICS for source in metric.sources]
    assert len(set(values)) == len(values)
    for metric in METRICS:
        # Ray adds _total
        assert re.fullmatch(r"branchgrpo_[a-z_]+[a-z]", metric.name) and not metric.name.endswith(
            "_total"
        ), metric.name
        assert (
            metric.exported
            == f"ray_{metric.name}" + {"gauge": "", "counter": "_total"}[metric.kind]
        )
        assert metric.description and metric.unit and metric.panel and "run" not in metric.labels
        for source, labels in metric.sources.items():
            assert set(labels) == set(metric.labels), source


def test_each_figure_of_the_table_is_one_that_the_method_writes() -> None:
    text = "".join(
        path.read_text(encoding="utf-8") for path in Path(metrics.__file__).parents[1].rglob("*.py")
    )
    for metric in METRICS:
        for source in metric.sources:
            kind, _, rest = source.partition("/")
            assert f'"{source}"' in text or (kind == "update" and f'"{rest}"' in text), source


def test_figures_become_metrics_with_their_labels(made: RunMetrics, sent: Sent) -> None:
    made.iteration(
        {
            "reward/total": 0.5,
            "reward/ocr/exact": 0.25,
            "held_out/total": 0.75,
            "reward/spread": 0.125,
            "reward/flat_groups": 0.5,
            "spread/0": 0.25,
            "tree/effective_samples": 9.5,
            "reward/retries": 2.0,
            "reward/dropped_groups": 0.0,
            "time/iteration": 9.5,
            "time/grow": 4.0,
            "tree/forwards": 320,
            "update/forwards": 60.0,
            "update/version": 3.0,
            "update/kl": math.nan,
            "update/loss": 1.0,
            "time/training": 99.0,
            "splits/0": 4.0,
        }
    )
    run = {"run": "run-1"}
    nan = next(found for found in sent if found[0] == "kl")
    assert math.isnan(nan[1])  # of a gauge: Ray then shows none
    assert [found for found in sent if found is not nan] == [
        ("reward_mean", 0.5, run | {"score": "total"}),
        ("reward_mean", 0.25, run | {"score": "ocr/exact"}),
        ("held_out_mean", 0.75, run | {"score": "total"}),
        ("reward_spread", 0.125, run),
        ("flat_groups", 0.5, run),
        ("effective_samples", 9.5, run),
        ("retries", 2.0, run | {"role": "reward"}),
        ("iterations", 1.0, run),
        ("phase_seconds", 4.0, run | {"phase": "grow"}),
        ("forwards", 320, run | {"phase": "rollout"}),
        ("forwards", 60.0, run | {"phase": "training"}),
        ("weight_version", 3.0, run | {"role": "learner", "worker": "learner-0"}),
    ]


@pytest.mark.parametrize(
    ("method", "name", "value", "labels", "message"),
    [
        ("set", "branchgrpo_nothing", 1.0, {}, "expected the name of a gauge"),
        ("set", "branchgrpo_trees", 1.0, {}, "expected the name of a gauge"),
        ("add", "branchgrpo_kl", 1.0, {}, "expected the name of a counter"),
        ("set", "branchgrpo_queue_length", 1.0, {}, r"expected the labels \['role'\], got \[\]"),
        (
            "add",
            "branchgrpo_trees",
            1.0,
            {"role": "rollout"},
            r"expected the labels \[\], got \['role'\]",
        ),
        ("add", "branchgrpo_trees", -1.0, {}, "at least 0, got -1.0"),
        ("add", "branchgrpo_trees", math.nan, {}, "finite"),
    ],
)
def test_what_the_table_lacks_is_an_error(
    made: RunMetrics,
    sent: Sent,
    method: str,
    name: str,
    value: float,
    labels: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(made, method)(name, value, **labels)
    assert sent == []


def test_nothing_added_is_nothing_sent(made: RunMetrics, sent: Sent) -> None:
    made.add("branchgrpo_restarts", 0, role="rollout", cause="killed")
    made.add("branchgrpo_restarts", role="rollout", cause="killed")
    assert sent == [("restarts", 1.0, {"run": "run-1", "role": "rollout", "cause": "killed"})]


def test_counters_begin_at_0_with_all_labels_that_are_known(sent: Sent) -> None:
    one = RunMetrics("run-1", metrics.PHASES)
    one.close()
    begun = {
        (name, *sorted((key, text) for key, text in labels.items() if key != "run"))
        for name, value, labels in sent
        if value == 0.0
    }
    assert len(begun) == len(sent)
    assert {
        ("iterations",),
        ("recoveries",),
        ("skipped_steps",),
        ("phase_seconds", ("phase", "grow")),
        ("retries", ("role", "reward")),
    } <= begun
    assert {("stale_rejections", ("cause", cause)) for cause in ("fence", "policy")} <= begun
    counters = {
        metric.name.removeprefix("branchgrpo_") for metric in METRICS if metric.kind == "counter"
    }
    # those the run begins for its own roles
    assert {name for name, *_ in begun} == counters - {"restarts"}


def test_every_cause_of_a_loss_is_known() -> None:
    """Of those that are written in the code, and those that errors are told by."""
    folder = Path(metric_table.__file__).parent
    source = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    written = set(
        re.findall(
            r'(?:\bremove\(\s*\w+,\s*|\.fail\(\s*|leaving = .*|leaving: str = )"(\w+)"', source
        )
    )
    assert (
        {"scaled", "unresponsive", "lost", "start", "node"} <= written <= set(metric_table.CAUSES)
    )
    assert {*errors.CAUSE_WORDS, *NOT_COUNTED, "died", "error"} <= set(metric_table.CAUSES)


def wait_for(sent: Sent, count: int) -> None:
    deadline = monotonic() + 20
    while len(sent) < count:
        assert monotonic() < deadline
        sleep(0.01)


def test_gauges_are_sent_again_until_forgotten_and_counters_are_not(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_metrics, "REFRESH_SECONDS", 0.01)
    one = RunMetrics("run-1", metrics.PHASES)
    sent.clear()
    kept: dict[str, Any] = {"role": "rollout", "worker": "rollout-0"}
    one.set("branchgrpo_weight_version", 1.0, **kept)
    one.set("branchgrpo_weight_version", 2.0, **kept)
    one.set("branchgrpo_weight_version", 2.0, role="rollout", worker="rollout-1")
    one.add("branchgrpo_trees", 5.0)
    one.forget(worker="rollout-1")
    before = len(sent)
    wait_for(sent, before + 3)
    assert sent[before:] == [("weight_version", 2.0, {"run": "run-1"} | kept)] * (
        len(sent) - before
    )
    one.close()
    after = len(sent)
    sleep(0.05)
    assert len(sent) == after
