"""Files of 10 million prompts (1 GB): as text, and as records with metadata in JSON Lines. Seconds
to index and to deal, peak memory of a process that does nothing else. Prints JSON.

uv run python tests/bench/prompts.py [--lines 10000000] [--iterations 1000] [--batch 32]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

FILLING = "a detailed oil painting of a quiet harbour at dawn, soft light, low fog, wide angle, "
SHORTER = "a detailed oil painting of a quiet harbour, "


def text(number: int) -> str:
    """About 100 bytes, beginning with the number."""
    return f"{number:08d} {FILLING}{number % 997} é\n"


def record(number: int) -> str:
    """The same of a record with an id, and with a category and a count as metadata."""
    row = f'"prompt": "{number:08d} {SHORTER}{number % 97} é", "id": {number}, "topic": "harbour"'
    return f'{{{row}, "count": {number % 9}}}\n'


FORMS: dict[str, tuple[str, Callable[[int], str]]] = {
    "text": ("prompts.txt", text),
    "records": ("prompts.jsonl", record),
}


def write(path: Path, lines: int, line: Callable[[int], str]) -> None:
    """So many lines."""
    with path.open("w", encoding="utf-8") as file:
        for begin in range(0, lines, 10_000):
            file.write("".join(map(line, range(begin, min(begin + 10_000, lines)))))


def measure(path: Path, iterations: int, batch: int) -> dict[str, float]:
    """Index, deal and read, in a process that did nothing else."""
    from branchgrpo.data import prompts

    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, spent = perf_counter(), process_time()
    found = prompts.read("prompts", str(path))
    indexed, spent = perf_counter(), process_time() - spent
    prompts.deal(len(found), batch, 0, 0)
    shuffled = perf_counter()
    for iteration in range(iterations):
        for index in prompts.deal(len(found), batch, iteration, 0):
            if int(found[index].prompt[:8]) != index:
                raise SystemExit(f"expected prompt {index}, got {found[index].prompt!r}")
    dealt = perf_counter()
    return {
        "lines": len(found),
        "bytes": path.stat().st_size,
        "seconds to index": indexed - begun,
        "of which busy": spent,
        "bytes of memory a prompt": (found.digests.nbytes + found._starts.nbytes) / len(found),
        "seconds to shuffle an epoch": shuffled - indexed,
        f"seconds per deal and read of {batch}": (dealt - shuffled) / iterations,
        "peak memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "of which imports MB": imported / 1024,
    }


def main() -> None:
    """Write a file of each form, measure it in a process of its own, remove it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=10_000_000, help="lines of each file")
    parser.add_argument("--iterations", type=int, default=1000, help="iterations dealt")
    parser.add_argument("--batch", type=int, default=32, help="prompts of each")
    parser.add_argument("--measure", type=Path, help="measure this file, in this process")
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(chosen.measure, chosen.iterations, chosen.batch), indent=1))
        return
    options = ["--iterations", str(chosen.iterations), "--batch", str(chosen.batch)]
    found: dict[str, Any] = {}
    for name, (file, line) in FORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / file
            write(path, chosen.lines, line)
            done = subprocess.run(
                [sys.executable, __file__, "--measure", str(path), *options],
                check=True,
                stdout=subprocess.PIPE,
            )
        found[name] = json.loads(done.stdout)
    for key, name in (
        ("seconds to index", "ratio of seconds to index"),
        ("of which busy", "ratio of busy seconds to index"),
    ):
        found[name] = found["records"][key] / found["text"][key]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
