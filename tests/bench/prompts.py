"""A text file of 10 million prompts (1 GB): seconds to index and to deal, peak memory of the
process. Prints JSON.

uv run python tests/bench/prompts.py [--lines 10000000] [--iterations 1000] [--batch 32]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time

FILLING = "a detailed oil painting of a quiet harbour at dawn, soft light, low fog, wide angle, "


def write(path: Path, lines: int) -> None:
    """About 100 bytes a line; each begins with its number."""
    with path.open("w", encoding="utf-8") as file:
        for begin in range(0, lines, 10_000):
            file.write(
                "".join(
                    f"{number:08d} {FILLING}{number % 997} é\n"
                    for number in range(begin, min(begin + 10_000, lines))
                )
            )


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
    """Write the file, measure in a process of its own, remove the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=10_000_000, help="lines of the file")
    parser.add_argument("--iterations", type=int, default=1000, help="iterations dealt")
    parser.add_argument("--batch", type=int, default=32, help="prompts of each")
    parser.add_argument("--measure", type=Path, help="measure this file, in this process")
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(chosen.measure, chosen.iterations, chosen.batch), indent=1))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.txt"
        write(path, chosen.lines)
        options = [
            "--measure",
            str(path),
            "--iterations",
            str(chosen.iterations),
            "--batch",
            str(chosen.batch),
        ]
        subprocess.run([sys.executable, __file__, *options], check=True)


if __name__ == "__main__":
    main()
