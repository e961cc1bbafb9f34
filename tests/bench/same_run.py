"""Are two runs the same? Prints as JSON how far the learned metrics of two run folders are apart,
such as those of a commit and of the commit before a change of structure:

    git worktree add ../before COMMIT
    (cd ../before && python run.py train --run.iterations 30 --run.folder /tmp/before)
    python run.py train --run.iterations 30 --run.folder /tmp/after
    python tests/bench/same_run.py /tmp/before/* /tmp/after/*

Seconds, bytes of messages and counts of actors are left out: they say how a run went, not what it
learned.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

COURSE = ("time/", "elapsed", "driver/", "service/", "checkpoint/")


def learned(folder: Path) -> dict[str, float]:
    """Every learned number of a run, by where it stands."""
    found = dict[str, float]()
    for row, line in enumerate((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        for name, value in json.loads(line).items():
            if not name.startswith(COURSE) and value is not None:
                found[f"row {row}: {name}"] = float(value)
    held_out: dict[str, Any] = json.loads((folder / "held_out.json").read_text(encoding="utf-8"))
    for when, scores in held_out.items():
        for name, values in scores.items():
            for index, value in enumerate(values):
                found[f"held out {when}: {name} of prompt {index}"] = float(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="a run folder")
    parser.add_argument("after", type=Path, help="another one")
    chosen = parser.parse_args()
    before, after = learned(chosen.before), learned(chosen.after)
    apart = {name: abs(before[name] - after[name]) for name in before.keys() & after.keys()}
    worst = max(apart, key=lambda name: apart[name])
    result = {
        "numbers": len(apart),
        "only in one": sorted(before.keys() ^ after.keys()),
        "different": sum(value > 0 for value in apart.values()),
        "largest difference": apart[worst],
        "where": worst if apart[worst] else None,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
