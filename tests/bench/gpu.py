"""What a card does: forwards, updates, whole iterations, memory, weights on the road. Prints a JSON
line for each result as it comes, and at the end all of them.

    python tests/bench/gpu.py --out gpu.json                         # all parts, a card of 80 GB
    python tests/bench/gpu.py --parts 1,2,images --limit 60
    python tests/bench/gpu.py --device cpu --small                   # that it works, without a card

It needs torch and transformers, and of Ray nothing. What else it needs may travel beside the tree
to a machine that has no network:

    python tests/bench/gpu.py wheels build/wheels --python 3.12      # where there is one
    python3 tests/bench/gpu.py --wheels build/wheels --out gpu.json  # there

Weights are random and made on the device: no model is needed. Each part is a process of its own, so
that what does not fit, or takes too long, costs no other part anything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
PATHS = (str(BENCH.parents[1]), str(BENCH.parent), str(BENCH))

PARTS = {
    "1": ("forwards:eager", "forwards by rows"),
    "1-compiled": ("forwards:compiled", "forwards by rows, compiled"),
    "1-attention": ("forwards:attention", "attention backends"),
    "1-adapters": ("forwards:adapters", "dtypes of adapters"),
    "2": ("forwards:backward", "forward and backward by micro-batch"),
    "3": ("forwards:ratio", "|ratio − 1| of unchanged weights"),
    "3-compiled": ("forwards:ratio_compiled", "|ratio − 1|, compiled"),
    "4": ("runs:one_tree", "a tree grown and updated"),
    "5": ("runs:parents", "memory of an update by parents"),
    "6": ("holding:road", "publishing and loading weights"),
    "7": ("holding:decoders_and_scorers", "decoders and a scorer"),
    "8": ("holding:turns_and_switches", "what rests in main memory; switching"),
    "9": ("holding:videos", "Wan2.1"),
    "10": ("runs:quick_start", "the quick start"),
    "images": ("runs:images", "images a GPU and second of a published workload"),
}
START = 30.0
"""Seconds a part's process may take beside its limit: imports, and the case in hand."""


def selected(text: str) -> list[str]:
    """Names of parts; a number stands for all of that number. Raises SystemExit for an unknown
    one."""
    if not text:
        return list(PARTS)
    found = []
    for word in text.split(","):
        names = [name for name in PARTS if name == word or name.startswith(f"{word}-")]
        if not names:
            raise SystemExit(f"--parts: expected some of {', '.join(PARTS)}, got {word!r}")
        found += names
    return found


def child(name: str, options: argparse.Namespace) -> None:
    """Run one part in this process; a JSON line for each result."""
    from gpu_parts.card import Setting, described

    function = PARTS[name][0]
    module, _, attribute = function.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            device=options.device,
            small=options.small,
            folder=Path(folder),
            ends=time.monotonic() + options.limit,
        )
        tell({"card": described(options.device)})
        for row in getattr(import_module(f"gpu_parts.{module}"), attribute)(setting):
            tell({"row": row})


def tell(value: dict[str, Any]) -> None:
    """To the parent, whatever libraries print."""
    print(f"\n@ {json.dumps(value)}", flush=True)


def run_part(name: str, options: argparse.Namespace, path: list[str]) -> dict[str, Any]:
    """A part in a process of its own, which is ended when its time is up: what it has told until
    then counts."""
    words = ["--device", options.device, "--limit", str(options.limit), "--part", name]
    words += ["--small"] if options.small else []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if options.small:  # one thread is as many as small shapes can use
        environment["OMP_NUM_THREADS"] = "1"
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, __file__, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    timer = threading.Timer(options.limit + START, process.kill)
    timer.start()
    found: dict[str, Any] = {"part": name, "what": PARTS[name][1], "rows": []}
    other: list[str] = []
    assert process.stdout
    for line in process.stdout:
        if line.startswith("@ "):
            value = json.loads(line[2:])
            if "card" in value:
                found |= value
                continue
            found["rows"].append(value["row"])
            print(json.dumps({"part": name} | value["row"]), flush=True)
        elif line.strip():
            other.append(line.rstrip())
    code = process.wait()
    timer.cancel()
    found["seconds"] = time.monotonic() - begun
    if code:
        ended = "its time was up" if found["seconds"] >= options.limit + START else "failed"
        found |= {"ended": ended, "exit_code": code, "last_lines": other[-20:]}
        print(json.dumps({key: found[key] for key in ("part", "ended", "last_lines")}), flush=True)
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = "; ".join(f"{name}: {what}" for name, (_, what) in PARTS.items())
    parser.add_argument("--parts", default="", help=f"some of them, by commas; {names}")
    parser.add_argument("--device", default="cuda", help="a torch device")
    parser.add_argument("--small", action="store_true", help="shapes for machines without a card")
    parser.add_argument("--limit", type=float, default=60, help="seconds of a part")
    parser.add_argument("--out", type=Path, help="a JSON file of all results")
    parser.add_argument("--wheels", type=Path, help="folder of packages to use before others")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:2] == ["wheels"]:
        parser = argparse.ArgumentParser(prog="gpu.py wheels")
        parser.add_argument("folder", type=Path)
        parser.add_argument("--python", default="3.12", help="version of the other machine's")
        found = parser.parse_args(sys.argv[2:])
        wheels = import_module("gpu_parts.wheels")
        size = wheels.download(found.folder, found.python)
        print(json.dumps({"wheels": str(found.folder), "mb": round(size, 1)}))
        return
    options = parsed()
    if options.part:
        child(options.part, options)
        return
    parts = selected(options.parts)
    with tempfile.TemporaryDirectory() as target:
        if options.wheels:
            import_module("gpu_parts.wheels").unpack(options.wheels, Path(target))
        path = [target, *PATHS, *filter(None, [os.environ.get("PYTHONPATH", "")])]
        results = [run_part(name, options, path) for name in parts]
    cards = [part.pop("card") for part in results if "card" in part]
    card = cards[0] if cards else {}
    document = {"card": card, "small": options.small, "limit": options.limit, "parts": results}
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if any(part.get("exit_code") for part in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
