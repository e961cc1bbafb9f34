"""The memory that a reward server takes, whatever a peer sends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MEMORY = """
import re
import numpy as np
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.http.protocol import MB, pack_request
from branchgrpo.rewards.ocr import OcrReward
from branchgrpo.rewards.http.server import RewardServer
from branchgrpo.types import Sample

def peak():  # of this program: ru_maxrss would count its parent's before exec
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

def ask(*shape, prompt='"ab"'):
    pixels = np.zeros(shape, np.uint8)
    return made.answer(pack_request(pixels, [Sample(prompt=prompt)] * shape[0]))[0]

made = RewardServer(OcrReward().build(Resources()), "ocr", 8 * MB)
assert ask(4, 1, 32, 64, 3) == 200
before = peak()
shapes = [(1, 1, 1, 300_000), (1, 1, 300_000, 1), (1, 1, 1, 500)]
shapes += [(500, 1, 1, 1), (1, 1, 1600, 1600)]
found = [ask(*shape, 3) for shape in shapes]
found += [ask(1, 1, 16, 512, 3), ask(2, 300, 64, 64, 3)]
found += [
    ask(1, 1, 1, 1, 3, prompt='"' + "a" * length + '"') for length in (8000, 7_000_000)
]
print(*found, round(peak() - before))
"""


def test_the_memory_of_a_server_is_bounded() -> None:
    """Right requests of up to 8 MB, of every shape: the peak of a process of its own, beyond what
    it took for one of 4 small pictures."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    *statuses, grown = map(int, done.stdout.split())
    assert statuses == [422, 422, 422, 200, 200, 200, 200, 200, 422]
    assert grown < 400  # MB; beside a request of 8 MB. Before, the first of them took 21.8 GB
