"""What the service costs: publishing, dispatch, scaling, hiding the learner, failures. Prints JSON;
one flag for each figure.

The pool, the rank group, publishing and the driver's loop are the real ones; tasks sleep, unless
said otherwise, so that cores are not what is measured. Other programs may run beside: metrics are
medians of runs that take turns, and the load is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[2]
FIGURES = {
    "publish": (
        "service_publish",
        "500 MB of float32 from one learner to 4 workers on a node ÷ the memcpy limit",
    ),
    "dispatch": ("service_pool", "200 tasks of 100 ms on 4 workers"),
    "scaling": ("service_pool", "1, 2, 4 and 8 workers, 20 tasks of 100 ms each"),
    "hidden": ("service_loop", "part of the learner's time that async.max_staleness 1 hides"),
    "goodput": ("service_pool", "4 workers killed in 160 tasks ÷ none killed"),
    "many": ("service_pool", "driver's CPU seconds per task with 8 to 64 workers"),
    "recovery": ("service_loop", "rollout worker or learner killed in a real run, in iterations"),
}
STORE_MB = 3072


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, (_, text) in FIGURES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--workers", type=int, default=64, help="of --many, at most")
    found = parser.parse_args()
    chosen = [name for name in FIGURES if getattr(found, name)] or list(FIGURES)
    folders = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]
    sys.path[1:1] = folders
    # actors import these modules too
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, str(Path(__file__).parent)])
    from cluster import session

    rows: dict[str, object] = {"cores": os.cpu_count()}
    session.start("local", STORE_MB, dashboard=False)
    try:
        for name in chosen:
            began, before = perf_counter(), os.getloadavg()[0]
            measure = getattr(import_module(FIGURES[name][0]), name)
            row = measure(found.workers) if name == "many" else measure()
            rows[name] = row | {
                "load before": before,
                "load after": os.getloadavg()[0],
                "seconds": perf_counter() - began,
            }
            print(name, json.dumps(rows[name]), file=sys.stderr, flush=True)
    finally:
        session.stop()
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
