"""`branchgrpo train CONFIG --smoke`: one iteration of everything. Shipped configs of every kind,
made small, in one process with the real roles or by the command itself, on Ray. That every single
one can be made small is in unit/app/test_smoke.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from rich.console import Console
from support.in_process import Pool, Service

from actors.encoder import Encoder
from actors.pools import Encoders
from branchgrpo.app.check import check
from branchgrpo.app.smoke import shrunk
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import config_file, names
from branchgrpo.data import prompts
from branchgrpo.data.encodings import Encodings, encode_missing
from branchgrpo.report.terminal import Display
from branchgrpo.training.carry_out import carry_out

ROOT = Path(__file__).parents[2]
OFTEN = "quickstart"
KINDS = ("flux.1-dev-1node-full", "flux.1-dev-4nodes-full", "wan2.1-1.3b-1node")
"""All weights in shards, roles apart that grow ahead, adapters and a video."""
ALIKE = (
    *("flux.1-dev-1gpu", "sd3.5-medium-1node", "wan2.1-1.3b-1gpu", "bench/sd3.5-medium-384-tree"),
    *("paper/branchgrpo", "paper/depprune", "paper/mix", "paper/widprune"),
    *("paper/dancegrpo-tf06", "paper/mixgrpo"),
)
"""Each is of a kind with another that runs: see `kind`."""
HERE = [name for name in names() if name not in (*KINDS, *ALIKE)]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for the sockets of a Ray."""
    with TemporaryDirectory(prefix="s-", dir="/tmp") as folder:
        yield Path(folder)


def encoded(config: Config) -> None:
    """Encode its prompts, as a run on Ray does before it begins."""
    store = Encodings.open(config.model)
    samples = chain(*prompts.lists(config))
    encoder = Encoder(config, 0)
    encoder.ready()
    encode_missing(Encoders(Pool([encoder])), store, samples, told=lambda done, count: None)


def kind(config: Config) -> tuple[object, ...]:
    """What a run's road depends on; the rest are numbers, and components with tests of their
    own."""
    learner, model = config.learner, config.model
    ahead = config.async_.max_staleness > 0
    adapted = model.adapter_rank > 0
    return model.called, adapted, learner.parallel, config.cluster.layout, ahead, config.method.name


@pytest.mark.slow
def test_a_config_of_every_kind_runs() -> None:
    loaded = {name: configs.load(config_file(name)) for name in names()}
    run = [config for name, config in loaded.items() if name not in ALIKE]
    assert {kind(loaded[name]) for name in ALIKE} <= {kind(config) for config in run}
    seen = {reward.called for config in run for reward in config.rewards}
    assert seen == {reward.called for config in loaded.values() for reward in config.rewards}


@pytest.mark.parametrize(
    "name",
    [name if name == OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in HERE],
)
def test_a_shipped_config_made_small_goes_all_the_way(name: str, tmp_path: Path) -> None:
    small = shrunk(configs.load(config_file(name)), tmp_path)
    check(small)
    if small.model.precomputed:
        encoded(small)
    folder = tmp_path / "runs" / "run"
    display = Display("smoke", 1, small.metric, console=Console(quiet=True))
    with display:
        summary = carry_out(
            small,
            service=Service(small),
            folder=folder,
            display=display,
            interrupted=lambda: False,
        )
    gated(summary, small)
    assert list((folder / "checkpoints").iterdir()) and list((folder / "weights").iterdir())
    assert json.loads((folder / "held_out.json").read_text()).keys() == {
        "before",
        "after",
        "prompts",
    }


def gated(summary: dict[str, Any], config: Config) -> None:
    """The gates were passed; a loss on leaves has no ratio to check."""
    edges = config.loss.process == "reverse"
    assert ("on_policy_deviation" in summary["gates"]) == edges


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_command_passes(name: str, tmp_path: Path, short: Path) -> None:
    environment = {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(short),
        "HPS_ROOT": str(tmp_path / "hps"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "branchgrpo", "train", name, "--smoke"],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith(f"smoke: everything is written to {short}/branchgrpo-smoke-")
    assert lines[-1].startswith("smoke: passed in ") and lines[-1].endswith(" s")
    (folder,) = short.glob("branchgrpo-smoke-*/runs/*")
    summary = json.loads((folder / "summary.json").read_text())
    gated(summary, configs.load(config_file(name)))
    assert list((folder / "checkpoints").iterdir()) and list((folder / "weights").iterdir())
    assert json.loads((folder / "held_out.json").read_text()).keys() == {
        "before",
        "after",
        "prompts",
    }


@pytest.mark.slow
def test_one_that_fails_says_so(tmp_path: Path, short: Path) -> None:
    """A reward of one's own that cannot score: nothing stands in for it."""
    (tmp_path / "own.py").write_text(
        "def broken(images, samples):\n    raise ValueError('no such scale')\n"
    )
    keys = ["--rewards.0.name=./own.py:broken", "--evaluation.rewards=[]"]
    done = subprocess.run(
        [sys.executable, "-m", "branchgrpo", "train", "--smoke", *keys],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(short)},
    )
    assert done.returncode != 0 and "no such scale" in done.stderr
    assert "smoke: passed" not in done.stdout
