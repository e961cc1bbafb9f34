"""Does a long run grow? Memory, open files, threads and the object store of the quick start's
processes, sampled. Prints JSON.

uv run python tests/bench/soak.py [--iterations 200] [--picture docs/images/soak.png]

A role's own memory is its anonymous pages, shared ones split (PSS). All private pages (USS) would
not do: the kernel calls private what no other process has mapped at the moment, so pages of
libraries come and go with other programs, and a page of the object store counts for the first that
touches it. Object store: as Ray reports it to Prometheus. A slope is a least-squares fit after the
first fifth of the run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from urllib.request import urlopen

import numpy as np
from memory import tree

from branchgrpo.report.sinks import read

RUN = Path(__file__).parents[2] / "run.py"
SECONDS = 2.0
"""Between samples, and between Ray's reports of its object store."""

NOTABLE = 0.02
"""Drifts up to this part of the mean are passed over."""

ACTORS = {"ray::RolloutWorker": "rollout", "ray::RewardWorker": "reward", "ray::Learner": "learner"}
DAEMONS = {
    "/raylet/raylet": "raylet",
    "/gcs/gcs_server": "gcs",
    "dashboard": "dashboard, agents",
    "Agent": "dashboard, agents",
}
ROLES = ("driver", *ACTORS.values(), "raylet", "gcs", "dashboard, agents", "other")
MEMORY = {"Rss": "RSS MB", "Pss_Anon": "own MB"}
STORE = {
    'ray_object_store_used_memory{Component="raylet"': "used MB",
    'ray_object_store_num_local_objects{Component="raylet"': "objects",
    'ray_object_store_memory{Component="raylet",Location="SPILLED"': "spilled MB",
    'ray_owned_objects{Component="core_worker"': "references owned",
}

Sample = dict[tuple[str, str], float]
"""(role, quantity) → value; ("", "iteration") among them."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=200, help="at least 10 (default: 200)")
    parser.add_argument("--picture", type=Path, help="a PNG of all curves")
    parser.add_argument("--samples", type=Path, help="all samples as JSON lines")
    found = parser.parse_args()
    before = os.getloadavg()[0]
    # short: names of sockets, which may have 107 characters, begin with it
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        samples, pace, watched = watch(found.iterations, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if found.samples:
        found.samples.write_text(
            "".join(
                json.dumps({" ".join(key).strip(): value for key, value in sample.items()}) + "\n"
                for sample in samples
            )
        )
    after = found.iterations // 5
    curves = gathered(samples)
    fits = {key: fit(*curve, after, found.iterations) for key, curve in curves.items()}
    if found.picture:
        draw(found.picture, curves, fits, after)
    rows: dict[str, dict[str, object]] = defaultdict(dict)
    for (role, quantity), row in fits.items():
        rows[role][quantity] = row
    growing = [
        " ".join(key)
        for key, row in fits.items()
        if row["per 100"] > 2 * row["error"] and row["drift"] > NOTABLE
    ]
    head = {
        "iterations": found.iterations,
        "fitted from": after,
        "samples": len(samples),
        "s/iteration": pace,
        "load before": before,
    }
    print(
        json.dumps(
            head
            | {
                "sampling, part of a core": watched,
                f"grows by more than {NOTABLE:.0%}, and 2 errors": growing,
            }
            | rows,
            indent=1,
        )
    )


def watch(iterations: int, folder: Path) -> tuple[list[Sample], float, float]:
    """Samples of a run between its first iteration and its last, median seconds of an iteration,
    CPU time that sampling took ÷ time."""
    keys = {
        "run.folder": folder / "runs",
        "run.iterations": iterations,
        "run.max_minutes": 0,
        "run.export": "none",
        "checkpoint.every": 20,
    }
    # as many before and after as between
    keys |= {"evaluation.prompts": 64, "cluster.address": "local"}
    command = [
        sys.executable,
        str(RUN),
        "train",
        *(text for key, value in keys.items() for text in (f"--{key}", str(value))),
    ]
    environment = os.environ | {
        "RAY_TMPDIR": str(folder),
        "RAY_metrics_report_interval_ms": str(round(1000 * SECONDS)),
    }
    began = time.monotonic()
    samples = list[Sample]()
    done = 0
    process = subprocess.Popen(command, stdout=sys.stderr, env=environment)
    try:
        while process.poll() is None and done < iterations:
            time.sleep(SECONDS)
            metrics = next(folder.glob("runs/*/metrics.jsonl"), None)
            done = int(read(metrics)[-1]["iteration"]) if metrics and metrics.stat().st_size else 0
            if 0 < done < iterations:
                samples.append({("", "iteration"): done} | processes(process.pid) | store(folder))
        spent = resource.getrusage(resource.RUSAGE_SELF)
        watched = (spent.ru_utime + spent.ru_stime) / (time.monotonic() - began)
        if process.wait():
            raise SystemExit(f"soak: the run ended with exit code {process.returncode}")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    seconds = [
        record["time/iteration"]
        for record in read(next(folder.glob("runs/*/metrics.jsonl")))
        if "time/iteration" in record
    ]
    return samples, median(seconds), watched


def processes(driver: int) -> Sample:
    """What each role's processes have together."""
    found: Sample = defaultdict(float)
    for process in tree(driver):
        try:
            values, pages = measure(Path(f"/proc/{process}"))
            role = (
                "driver"
                if process == driver
                else named(Path(f"/proc/{process}/cmdline").read_bytes())
            )
        except OSError:  # it ended meanwhile
            continue
        for quantity, value in values.items():
            found[role, quantity] += value
            found["all", quantity] += value
        found["object store", "touched MB"] += pages
    return found


def named(title: bytes) -> str:
    """The role of a process by its command line."""
    text = title.replace(b"\0", b" ").decode(errors="replace")
    actor = next((role for begin, role in ACTORS.items() if text.startswith(begin)), None)
    program = " ".join(text.split()[:4])  # others' names are among the arguments of the raylet
    return actor or next((role for part, role in DAEMONS.items() if part in program), "other")


def measure(process: Path) -> tuple[dict[str, float], float]:
    """What one process has, and its share of the object store's pages, in MB. Raises OSError when
    it has ended."""
    sizes = {
        line.split()[0].rstrip(":"): int(line.split()[1]) * 1024 / 1e6
        for line in (process / "smaps_rollup").read_text().splitlines()[1:]
    }
    found = {quantity: sizes[name] for name, quantity in MEMORY.items()}
    found["files"] = len(list((process / "fd").iterdir()))
    found["threads"] = len(list((process / "task").iterdir()))
    found["processes"] = 1
    return found, sizes["Pss_Shmem"]


def store(folder: Path) -> Sample:
    """The object store, as Ray's agent serves it."""
    port = next(folder.glob("ray/session_2*/metrics_export_port_*")).read_text()
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: Sample = defaultdict(float)
    for line in lines:
        for begin, quantity in STORE.items():
            if line.startswith(begin):
                found["object store", quantity] += float(line.rsplit(" ", 1)[1]) / (
                    1e6 if quantity.endswith("MB") else 1
                )
    return found


Curve = tuple[np.ndarray, np.ndarray]
"""Iterations and values [N]."""


def gathered(samples: list[Sample]) -> dict[tuple[str, str], Curve]:
    """A curve of each quantity that was ever there; without processes it is 0."""
    iterations = np.array([sample["", "iteration"] for sample in samples])
    order = {role: index for index, role in enumerate(("object store", "all", *ROLES))}
    keys = sorted(
        {key for sample in samples for key in sample if key[0]}, key=lambda key: order[key[0]]
    )
    return {
        key: (iterations, np.array([sample.get(key, 0.0) for sample in samples])) for key in keys
    }


def fit(x: np.ndarray, y: np.ndarray, after: int, end: int) -> dict[str, float]:
    """Mean, slope per 100 iterations with its standard error, and the slope's way from `after` to
    `end` ÷ the mean (drift).

    The error is that of independent residuals times √((1 + ρ) / (1 − ρ)), ρ the correlation of
    neighbours.
    """
    x, y = x[x >= after], y[x >= after]
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    residual = y - y.mean() - slope * centred
    squares = float(residual @ residual)
    repeats = min(0.95, max(0.0, float(residual[1:] @ residual[:-1]) / squares)) if squares else 0.0
    error = math.sqrt(
        squares / (len(x) - 2) / float(centred @ centred) * (1 + repeats) / (1 - repeats)
    )
    mean = float(y.mean())
    row = {
        "mean": mean,
        "per 100": 100 * slope,
        "error": 100 * error,
        "drift": slope * (end - after) / mean if mean else 0.0,
    }
    # what is constant has slope 0, not 1e-15 or −0
    return {name: float(f"{round(value, 9):.4g}") + 0.0 for name, value in row.items()}


def draw(
    path: Path,
    curves: dict[tuple[str, str], Curve],
    fits: dict[tuple[str, str], dict[str, float]],
    after: int,
) -> None:
    """A PNG: a panel for each quantity, a line for each role."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(12, 11), dpi=110, layout="constrained")
    last = int(next(iter(curves.values()))[0][-1]) + 1
    figure.suptitle(
        f"{last} iterations of the quick start, by role; fitted right of the dotted line",
        fontweight="bold",
    )
    panels = (
        ("resident memory (RSS)", "RSS MB", "MB", False),
        ("own memory (anonymous pages) − its mean", "own MB", "MB", True),
        ("open file descriptors", "files", "descriptors", False),
        ("threads", "threads", "threads", False),
    )
    axes = figure.subplots(3, 2, sharex=True)
    for axis, (title, quantity, unit, shifted) in zip(axes.flat, panels, strict=False):
        for index, role in enumerate(role for role in ROLES if (role, quantity) in curves):
            (x, y), row = curves[role, quantity], fits[role, quantity]
            numbers = f" {row['mean']:.0f}; {row['per 100']:+.1f} ± {row['error']:.1f} per 100"
            axis.plot(
                x,
                y - row["mean"] if shifted else y,
                color=f"C{index}",
                linewidth=1.2,
                label=role + (numbers if shifted else ""),
            )
        axis.set_title(title)
        axis.set_ylabel(unit)
        if not shifted:  # relative growth looks the same at every level
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_locator(NullLocator())
    axes[0, 1].legend(fontsize=7, frameon=False, ncols=2, loc="upper center")
    low, high = axes[0, 1].get_ylim()
    axes[0, 1].set_ylim(low, high + 0.45 * (high - low))
    bottom = (
        (
            "object store",
            "MB",
            {"in use": "used MB", "its pages that were ever used": "touched MB"},
        ),
        (
            "objects",
            "objects",
            {"in the object store": "objects", "references that processes own": "references owned"},
        ),
    )
    for axis, (title, unit, lines) in zip(axes[2], bottom, strict=True):
        for index, (name, quantity) in enumerate(lines.items()):
            axis.plot(
                *curves["object store", quantity], color=f"C{index}", linewidth=1.2, label=name
            )
        axis.set(title=title, ylabel=unit, ylim=(0, None), xlabel="iteration")
        axis.legend(frameon=False, loc="lower right")
    for axis in axes.flat:
        axis.axvline(after, color="grey", linestyle=":", linewidth=1)
        axis.grid(alpha=0.25)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
