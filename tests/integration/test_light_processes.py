"""What never computes with torch never loads it: the driver, and a reward worker whose scorers do
without. Each is asked in a fresh interpreter; on a real Ray, in test_local_ray.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAST = """
compute = ("torch", "diffusers", "transformers", "peft", "onnxruntime")
print(*[name for name in compute if name in sys.modules])
"""

DRIVER = """
import pkgutil, sys
from importlib import import_module
from pathlib import Path
from branchgrpo.app.check import check
from branchgrpo.config import load
from branchgrpo.config.shipped import config_file
from branchgrpo.report.sinks import MetricsLog

for room in ("checkpoint", "report", "rollout", "runs", "training"):
    package = import_module(f"branchgrpo.{room}")  # but for what workers alone need
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if module.name not in ("branchgrpo.rollout.sampler", "branchgrpo.rollout.segment"):
            import_module(module.name)
for module in ("train", "service", "encode", "fits", "roles", "results"):
    import_module(f"branchgrpo.app.{module}")
check(load.load(config_file("quickstart"), {}))
with MetricsLog(Path(sys.argv[1])) as log:
    log.write(0, {"score": 1.0})
"""

REWARDS = """
import sys
import numpy as np
from actors.reward import RewardWorker
from branchgrpo.config import load
from branchgrpo.config.shipped import config_file
from branchgrpo.types import LeafMedia, Sample, ScoreRequest, Subtree

rewards = "[{name: ocr}, {name: jpeg}, {name: './examples/02_my_reward.py:background'}]"
overrides = {"rewards": rewards, "reward_workers.threads": "1"}
config = load.load(config_file("quickstart"), overrides)
worker = RewardWorker(config, (0, 1, 2), 0)
worker.ready()
subtree = Subtree(key=None, prompt_index=0, node=0)
media = LeafMedia(np.full((2, 1, 32, 32, 3), 255, np.uint8), (subtree,))
sample = Sample(prompt='the number "38" in black on yellow')
request = ScoreRequest(
    rewards=(0, 1, 2), subtrees=(subtree,), places=((0, 0),), samples=(sample,)
)
scores = worker.score(request, media)
assert scores.ok.all(), scores.reason
"""


THREADS = """
import torch
from actors.devices import use_threads
print(torch.get_num_threads())
use_threads(2)
print(torch.get_num_threads())
"""


def loaded(program: str, *arguments: str) -> list[str]:
    """Lines that a program prints; the last names what it has loaded that computes."""
    done = subprocess.run(
        [sys.executable, "-c", program + LAST, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_driver_computes_nothing(tmp_path: Path) -> None:
    assert loaded(DRIVER, str(tmp_path)) == [""]


def test_a_reward_worker_loads_what_its_scorers_need() -> None:
    """… and who loads torch later has the worker's threads."""
    before, *threads, after = loaded(REWARDS + LAST + THREADS)
    assert before == "onnxruntime" and after == "torch onnxruntime"
    assert threads == ["1", "2"]
