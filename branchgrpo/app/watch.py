"""The commands status, scale and stop."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console

from cluster import controller
from cluster.connect import boards
from cluster.status import render


def watch(found: argparse.Namespace) -> int:
    """status, scale and stop: of a run that goes on. Returns the exit code."""
    watched = controller.find(boards(found.address), found.run)
    if found.command == "status":
        status = watched.status()
        print(json.dumps(status, indent=1)) if found.json else Console().print(render(status))
        return 0
    if found.command == "stop":
        watched.stop()
        print(
            json.dumps({"stopping": True})
            if found.json
            else "the run ends after the present iteration"
        )
        return 0
    counts = {
        role: getattr(found, role)
        for role in ("rollout", "reward", "learner")
        if getattr(found, role) is not None
    }
    changed = watched.scale(counts)
    if found.json:
        print(json.dumps(changed, indent=1))
    else:
        print(
            "\n".join(
                f"{role}: {change['from']} → {change['to']}, {change['when']}"
                for role, change in changed.items()
            )
        )
    if found.wait:
        controller.wait(
            watched,
            counts,
            found.timeout,
            note=lambda text: print(text, file=sys.stderr, flush=True),
        )
    return 0
