"""Peak memory of all processes of a run, Ray's own included: proportional set size, sampled. Prints
JSON.

uv run python tests/bench/memory.py [arguments of run.py …]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RUN = Path(__file__).parents[2] / "run.py"


def tree(root: int) -> set[int]:
    """Process ids below `root`, itself included, and of what left its tree but belongs to its
    session's Ray."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, queue = set(), [root]
    while queue:
        process = queue.pop()
        found.add(process)
        queue += children.get(process, [])
    return found


def proportional_kb(process: int) -> int:
    """Memory of a process, shared pages split among those that share them."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def peak_of(arguments: list[str]) -> dict[str, Any]:
    """Of `run.py` with these arguments, sampled twice a second: the largest sum at one time."""
    process = subprocess.Popen([sys.executable, str(RUN), *arguments], stdout=sys.stderr)
    peak = 0
    processes = 0
    seen = set[int]()
    while process.poll() is None:
        seen |= tree(process.pid)  # Ray's daemons may leave the tree: once seen, always counted
        total = sum(proportional_kb(one) for one in seen)
        if total > peak:
            peak, processes = total, sum(proportional_kb(one) > 0 for one in seen)
        time.sleep(0.5)
    return {"peak_gb": peak / 1e6, "processes": processes, "exit_code": process.returncode}


if __name__ == "__main__":
    print(json.dumps(peak_of(sys.argv[1:] or ["train"]), indent=1))
