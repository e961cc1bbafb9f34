"""What looking costs the quick start: CPU seconds of pictures, trees and pages ÷ those of all. The
real workers in one process with one thread, without Ray, so that a busy machine does not change it.
Prints JSON.

uv run python tests/bench/looking.py [--iterations 100]

    trees       `evaluation.trees`: grown with pictures of their nodes, the page and the PNG
    leaves      best and worst leaves of the trees that were trained on, and histograms
    held_out    pictures of the held-out checks; the checks themselves are no part of it
    page        report.html
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]

ONE = {
    "run.max_minutes": "0",
    "run.export": "none",
    "learner.threads": "1",
    "reward_workers.threads": "1",
    "rollout.workers": "1",
    "rollout.threads": "1",
}


class Spent:
    """CPU seconds of this process by part; of parts within parts each has its own."""

    def __init__(self) -> None:
        self.seconds = Counter[str]()
        self.inner = [0.0]

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Count a method as this part from now on."""
        act = getattr(owner, method)

        @functools.wraps(act)
        def counted(*arguments: Any, **options: Any) -> Any:
            self.inner.append(0.0)
            began = time.process_time()
            try:
                return act(*arguments, **options)
            finally:
                took = time.process_time() - began
                self.seconds[part] += took - self.inner.pop()
                self.inner[-1] += took

        setattr(owner, method, counted)


def measured(iterations: int) -> dict[str, Any]:
    """Of a run of so many iterations."""
    from rich.console import Console
    from support.in_process import Service

    from branchgrpo.config import load as configs
    from branchgrpo.pages.written import Reports
    from branchgrpo.report.terminal import Display
    from branchgrpo.training.carry_out import carry_out
    from branchgrpo.training.hooks import Leaves
    from branchgrpo.training.run import Run
    from branchgrpo.training.trees import TreePictures

    spent = Spent()
    watched: list[tuple[Callable[..., Any] | type, str, str]] = [
        (TreePictures, "draw", "trees"),
        (Leaves, "__call__", "leaves"),
        (Run, "look", "held_out"),
        (Run, "_keep", "held_out"),
        (Reports, "write", "page"),
    ]
    for owner, method, part in watched:
        spent.watch(owner, method, part)
    texts = ONE | {"run.iterations": str(iterations)}
    config = configs.load(ROOT / "configs" / "quickstart.yaml", texts)
    service = Service(config)
    display = Display("looking", iterations, config.metric, Console(file=io.StringIO()))
    with TemporaryDirectory() as folder:
        began = time.process_time()
        carry_out(
            config,
            service=service,
            folder=Path(folder) / "run",
            display=display,
            interrupted=lambda: False,
        )
        total = time.process_time() - began
    parts = dict(spent.seconds)
    return {
        "share": sum(parts.values()) / total,
        "parts": {name: seconds / total for name, seconds in parts.items()},
        "cpu_seconds": total,
        "iterations": iterations,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=100)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    print(json.dumps(measured(options.iterations), indent=1))


if __name__ == "__main__":
    main()
