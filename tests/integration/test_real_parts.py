"""What large models use, together on a local Ray: encodings made before training, sharded learners
with adapters, rewards in other environments and behind HTTP, and an export that a stock pipeline
loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.small_trees import METHOD
from test_local_ray import ROOT, run

TOKEN = {"SCORER_TOKEN": "only-for-this-test"}
SMALL = {
    "run.iterations": "2",
    "run.export": "lora",
    "model.encode": "precompute",
    "model.lora_rank": "4",
    "model.lora_alpha": "12",
    "model.gradient_checkpointing": "true",
    "rollout.workers": "2",
    "rollout.cpus": "0.25",
    "reward_workers.cpus": "0.25",
    "learner.cpus": "0.25",
    "learner.threads": "1",
    "learner.ranks": "2",
    "learner.parallel": "fsdp",
    "learner.learning_rate": "0.003",
    "learner.warmup": "0",
    "combine": "advantage",
    "evaluation.prompts": "8",
    "evaluation.pictures": "8",
    "cluster.dashboard": "false",
}


@pytest.fixture(scope="module")
def scorer() -> Iterator[str]:
    """A JPEG reward behind HTTP; gives its url."""
    command = [
        sys.executable,
        str(ROOT / "run.py"),
        "serve-reward",
        "jpeg",
        "--port",
        "0",
        "--token-env",
        "SCORER_TOKEN",
        "--reward.quality",
        "80",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **TOKEN}
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving jpeg at http://127.0.0.1:"), line
    yield line.split()[-1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0


def arguments(folder: Path, scorer: str) -> list[str]:
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        "".join(
            json.dumps({"prompt": f"the number {number} in red on white"}) + "\n"
            for number in range(10, 40)
        )
    )
    rewards = [
        {"name": "ocr", "target": r"number (\d+)"},
        {
            "name": "jpeg",
            "label": "elsewhere",
            "weight": 0.1,
            "runtime_env": {"env_vars": {"WHERE": "another process"}},
        },
        {"name": "remote", "url": scorer, "token_env": "SCORER_TOKEN", "weight": 0.1},
    ]
    keys = SMALL | {
        "prompts": str(prompts),
        "held_out": "split:8",
        "model.encodings": str(folder / "encodings"),
        "rewards": json.dumps(rewards),
    }
    given = (part for key, value in keys.items() for part in (f"--{key}", value))
    return ["--preset", METHOD, *given]


@pytest.mark.slow
def test_encode_then_train_then_load(
    tmp_path: Path, scorer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from diffusers import FluxPipeline

    for key, value in TOKEN.items():
        monkeypatch.setenv(key, value)
    given = arguments(tmp_path, scorer)
    encoded = run("encode", *given)
    # 30 and the negative one
    assert encoded.returncode == 0 and "30 prompts encoded" in encoded.stdout, (
        encoded.stdout + encoded.stderr
    )
    (store,) = (tmp_path / "encodings").iterdir()
    before = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    again = run("encode", *given)
    assert "all prompts were encoded already" in again.stdout, again.stdout + again.stderr

    done = run("train", *given, "--run.folder", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == before
    (folder,) = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert {"ocr/exact", "elsewhere/score", "remote/score"} < summary["held_out"].keys()
    assert (
        summary["gates"]["on_policy_deviation"] <= 1e-5
        and summary["gates"]["fingerprint_difference"] <= 1e-4
    )
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records[1:3]:
        assert (
            record["reward/retries"]
            == record["reward/dropped_groups"]
            == record["prompts/truncated"]
            == 0
        )
        parts = [
            record[name]
            for name in ("reward/ocr/likelihood", "reward/elsewhere/score", "reward/remote/score")
        ]
        assert record["reward/total"] == pytest.approx(
            parts[0] + 0.1 * parts[1] + 0.1 * parts[2], abs=1e-4
        )

    (file,) = (folder / "weights").glob("*.safetensors")
    pipe = FluxPipeline.from_pretrained(ROOT / "branchgrpo" / "assets" / "tiny-flux")
    call = {
        "prompt": "the number 38 in black on yellow",
        "height": 32,
        "width": 32,
        "guidance_scale": 1.0,
        "num_inference_steps": 4,
        "max_sequence_length": 16,
    }
    plain = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images
    pipe.load_lora_weights(folder / "weights", weight_name=file.name)
    adapted = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert float(abs(plain - adapted).max()) > 1e-3
