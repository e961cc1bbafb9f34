"""The whole service on a local Ray: the real embedded model, recogniser, actors and object
store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.in_process import Service as InProcess
from support.small_trees import METHOD

from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import assemble, topology
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.rollout.collect import RolloutCollector
from branchgrpo.service import Service, UpdateRequest
from branchgrpo.types import (
    Picture,
    Sample,
    SegmentHeader,
    SegmentRequest,
    StepStats,
)
from cluster.ray_private import call_in_actor
from cluster.worker import Attempt

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
PROGRAM = """
import atexit, runpy, sys
compute = {"torch", "diffusers", "transformers", "peft", "onnxruntime"}
atexit.register(lambda: print("loaded:", sorted(compute & sys.modules.keys())))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(
    *arguments: str, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """run.py as a person starts it; at its end it tells what it has loaded that computes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT / "run.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=environment,
    )


def test_two_iterations_of_the_quick_start(tmp_path: Path) -> None:
    from diffusers import FluxPipeline

    done = run(
        "train",
        "--run.iterations",
        "2",
        "--run.folder",
        str(tmp_path / "runs"),
        "--evaluation.prompts",
        "8",
        "--evaluation.pictures",
        "4",
        HOME=str(tmp_path),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"  # the driver only directs
    # with the dashboard, Ray makes one
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    (folder,) = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["iterations"] == 2 and summary["stopped_by"] == "iterations"
    assert summary["held_out"]["ocr/exact"]["n"] == 8
    assert summary["gates"]["fingerprint_difference"] <= 1e-4
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == [0, 1, 2, 2]
    assert (
        records[1]["update/edges"] == 64
        and records[1]["update/version"] == 1
        and records[2]["update/version"] == 2
    )
    for name in (
        "config.yaml",
        "curve.png",
        "samples/before.png",
        "samples/after.png",
        "weights/model_index.json",
    ):
        assert (folder / name).stat().st_size > 0, name
    # its trees, before training and as the next iteration would train on them
    shown = run("tree", str(folder), HOME=str(tmp_path))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    (page,) = (folder / "trees").glob("000000-000002-prompt*.html")
    assert page.read_text(encoding="utf-8").count('class="node"') == 2 * 79
    assert page.with_suffix(".png").stat().st_size > 0
    assert len(list((folder / "trees").glob("00000[02]-prompt*.html"))) == 2  # of the checks
    trained = FluxPipeline.from_pretrained(folder / "weights").transformer.state_dict()
    base = FluxPipeline.from_pretrained(
        ROOT / "branchgrpo" / "assets" / "tiny-flux"
    ).transformer.state_dict()
    assert any(not np.array_equal(trained[name].float(), base[name].float()) for name in base)


OWN = """
def place(images, samples):
    assert len({id(sample) for sample in samples}) == 1, "pictures of several records"
    return [
        100 * index + sample.metadata["count"] + len(sample.images[0].read())
        for index, sample in enumerate(samples)
    ]

place.grouped = True
"""


def config_for(folder: Path, workers: int, fork_depth: int, ranks: int) -> Config:
    """With a reward of one's own beside the config's, which says how records reach it."""
    (folder / "own.py").write_text(OWN)
    ocr = yaml.safe_load(QUICKSTART.read_text())["rewards"][0]
    own = {"name": f"{folder / 'own.py'}:place", "weight": 0.0}
    changes = {
        "rewards": json.dumps([ocr, own]),
        "rollout.workers": workers,
        "rollout.cpus": 0.25,
        "rollout.fork_depth": fork_depth,
        "rollout.prompts": 2,
        "reward_workers.cpus": 0.25,
        "learner.cpus": 0.25,
        "learner.threads": 1,
        "learner.ranks": ranks,
    }
    return configs.load(QUICKSTART, {key: str(value) for key, value in changes.items()}, METHOD)


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    from cluster import session

    session.start("local", 256, dashboard=False)
    yield
    session.stop()


def one_iteration(
    config: Config, service: Service
) -> tuple[dict[str, object], list[tuple[SegmentHeader, Any]]]:
    """Grow, score, update and publish once; what every variant of the service must agree on, and
    the segments."""
    plan = config.method.plan(0, config.schedule())
    samples = [
        Sample(
            prompt=prompt,
            images=(Picture(__file__) if count == 1 else Picture("row 2", b"bytes"),),
            metadata={"count": count},
        )
        for count, prompt in enumerate(
            ("the number 38 in black on yellow", "the number 52 in red on white"), 1
        )
    ]
    batch = RolloutCollector(config, service, "test").collect(
        plan, iteration=0, version=0, prompts=[5, 9], samples=samples, trees=1
    )
    trees = assemble(plan, [header for header, _ in batch.segments], batch.rewards)
    request = UpdateRequest(
        plan=plan,
        iteration=0,
        segments=batch.segments,
        conditioning=batch.conditioning,
        scores=batch.scores,
    )
    stats = service.learners.start_update(request, 1.0).result()
    base = service.rollouts.fingerprints()[0]
    version = service.publish()
    fingerprints = service.rollouts.fingerprints()
    return {
        "nodes": [tree.log_prob.shape for tree in trees],
        "log_prob": np.stack([tree.log_prob for tree in trees]),
        "reward": np.stack([tree.leaf_reward for tree in trees]),
        "change": fingerprints[0] - base,
        "stats": stats,
        "version": version,
        "own": {key: scores.tolist() for key, scores in batch.parts["place/score"].items()},
        "forwards": sum(header.forwards for header, _ in batch.segments),
        "segments": sorted(
            (header.start, header.stop, len(header.subtrees)) for header, _ in batch.segments
        ),
    }, batch.segments


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_same_trees_and_update_for_any_cut_workers_and_ranks(tmp_path: Path) -> None:
    """Trees in one piece in this process, and cut in pieces on a Ray with two ranks."""
    import ray

    from branchgrpo.app.service import ray_service

    alone = config_for(tmp_path, workers=1, fork_depth=0, ranks=1)
    several = config_for(tmp_path, workers=3, fork_depth=2, ranks=2)
    whole, _ = one_iteration(alone, InProcess(alone))
    service = ray_service(several)
    grown: list[tuple[int, SegmentRequest]] = []  # worker, and what it was to grow
    dispatcher = service.rollout_pool.dispatcher
    watch = dispatcher.watch

    def spy(attempt: Attempt, reference: Any) -> None:
        if attempt.task and attempt.task.method == "grow":
            grown.append((attempt.worker.index, attempt.task.arguments[1]))
        watch(attempt, reference)

    dispatcher.watch = spy  # type: ignore[method-assign]
    try:
        service.form()
        cut, segments = one_iteration(several, service)
        places = ray.experimental.get_object_locations([payload for _, payload in segments])
        # payloads live in the object store, not in the driver
        assert all(place["node_ids"] for place in places.values())
        (scorer,) = service.reward_pools[0].workers
        loaded = call_in_actor(scorer.handle, lambda worker: "torch" in sys.modules)
        assert not ray.get(loaded)  # the recogniser does without
    finally:
        service.stop()
    topo = topology(configs.load(QUICKSTART, preset=METHOD).method.plan(0, static(20, 3.0)))
    assert whole["segments"] == [(0, 20, 2)]
    pieces: list[tuple[int, int, int]] = cut["segments"]  # type: ignore[assignment]
    # after the split at step 6
    assert {(start, stop) for start, stop, _ in pieces} == {(0, 7), (7, 20)}
    assert sum(count for start, _, count in pieces if start == 7) == 2 * 4
    assert (
        whole["forwards"]
        == cut["forwards"]
        == 2 * sum(len(topo.level(level)) for level in range(20))
    )
    assert np.allclose(whole["log_prob"], cut["log_prob"], atol=1e-5)  # type: ignore[arg-type]
    assert np.allclose(whole["reward"], cut["reward"], atol=1e-3)  # type: ignore[arg-type]
    one, two = whole["stats"], cut["stats"]
    assert isinstance(one, StepStats) and isinstance(two, StepStats)
    assert (one.forwards, one.edges) == (two.forwards, two.edges) == (30, 60)
    assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-3)
    # Adam's first step is the gradient's sign: where a gradient is rounding noise, so is its sign.
    # test_ddp.py holds gradients to 1e-4 and parameters to 1e-5; here the policies must have moved
    # alike, in units of the move.
    moved = np.abs(whole["change"]).max()  # type: ignore[call-overload]
    apart = np.abs(np.subtract(whole["change"], cut["change"])).max()
    assert moved > 0 and apart < 0.02 * moved
    assert whole["version"] == cut["version"] == 1
    sizes = (1 + Path(__file__).stat().st_size, 2 + len(b"bytes"))
    wanted = [100.0 * leaf for leaf in range(topo.leaves)]
    assert (
        whole["own"]
        == cut["own"]
        == {(row, 0): [score + size for score in wanted] for row, size in enumerate(sizes)}
    )
    trunks = {
        subtree.key: worker
        for worker, request in grown
        if request.start == 0
        for subtree in request.subtrees
    }
    below = [
        (worker, trunks[subtree.key])
        for worker, request in grown
        if request.start == 7
        for subtree in request.subtrees
    ]
    # prefix latents were read where they were not made
    assert any(reader != producer for reader, producer in below)
