"""The table of the BranchGRPO paper (arXiv 2509.06040: FLUX.1-dev, HPDv2.1; hardware and seeds not
given) beside the same methods here: the embedded model, its OCR reward, equal wall-clock, in turns.
Prints Markdown, and the figures as JSON with --json.

uv run python tests/bench/paper.py --folder runs/paper [--seeds 3] [--budget 150s]

What is compared are ratios to DanceGRPO: seconds an iteration, and what training added to the
reward. The paper gives rewards alone; the gain is over its row of the untrained FLUX. The same
command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

UNTRAINED = 0.313
"""HPSv2.1 of FLUX.1-dev."""


@dataclass(frozen=True)
class Published:
    """A row of the paper's table."""

    name: str
    nfe_old: float
    nfe_new: float
    seconds: float  # an iteration
    reward: float  # HPSv2.1


PAPER = {
    "dancegrpo": Published("DanceGRPO (1.0)", 20, 20, 698, 0.360),
    "dancegrpo-tf06": Published("DanceGRPO (0.6)", 20, 12, 469, 0.353),
    "mixgrpo-20-5": Published("MixGRPO (20,5)", 20, 5, 289, 0.359),
    "branchgrpo": Published("BranchGRPO", 13.68, 13.68, 493, 0.363),
    "branchgrpo-widthprune": Published("BranchGRPO-WidPru", 13.68, 8.625, 314, 0.364),
    "branchgrpo-depthprune": Published("BranchGRPO-DepPru", 13.68, 8.625, 314, 0.369),
    "branchgrpo-mix": Published("BranchGRPO-Mix", 13.68, 4.25, 148, 0.363),
}
"""By what the method is called here: a preset, or a file of FILES."""

FILES = ROOT / "docs" / "benchmarks" / "paper"

REFERENCE = "dancegrpo"


def row(preset: str, rows: dict[str, Any]) -> dict[str, Any]:
    """The figures of one method: the paper's, and `rows` of compare.json."""
    paper, first, own = PAPER[preset], PAPER[REFERENCE], rows[preset]
    gain, base = (rows[name]["gain"]["total"] for name in (preset, REFERENCE))
    return {
        "method": paper.name,
        "preset": preset,
        "nfe": {
            "paper": [paper.nfe_old, paper.nfe_new],
            "edges": [own["nfe_old"]["edges"], own["nfe_new"]["edges"]],
            "forwards": [own["nfe_old"]["forwards"], own["nfe_new"]["forwards"]],
        },
        "seconds": {
            "paper": paper.seconds,
            "ours": own["seconds_per_iteration"]["median"],
            "paper ratio": paper.seconds / first.seconds,
            "ratio": own["seconds_ratio"],
        },
        "gain": {
            "paper": paper.reward - UNTRAINED,
            "paper ratio": (paper.reward - UNTRAINED) / (first.reward - UNTRAINED),
            "ours": gain,
            "ratio": gain["mean"] / base["mean"] if base["mean"] > 0 else None,
            "difference": (own["difference"] or {}).get("total"),
        },
        "iterations": own["iterations"],
    }


def markdown(found: list[dict[str, Any]]) -> str:
    """The table. Ours in pairs: counted edges a leaf as the paper counts, then forwards."""
    heads = [
        "method",
        "NFE old/new: paper",
        "ours, edges",
        "ours, forwards",
        "s/iteration ÷ DanceGRPO: paper",
        "ours",
        "gain ÷ DanceGRPO's: paper",
        "ours",
        "gain − DanceGRPO's: paper, HPSv2.1",
        "ours, OCR",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for one in found:
        nfe, seconds, gain = one["nfe"], one["seconds"], one["gain"]
        ahead = gain["paper"] - (PAPER[REFERENCE].reward - UNTRAINED)
        first = one["preset"] == REFERENCE
        cells = [
            one["method"],
            *("/".join(f"{value:.4g}" for value in nfe[key]) for key in nfe),
            f"{seconds['paper ratio']:.2f}",
            f"{seconds['ratio']:.2f}",
            f"{gain['paper ratio']:.2f}",
            "–" if gain["ratio"] is None else f"{gain['ratio']:.2f}",
            "–" if first else f"{ahead:+.3f}",
            "–" if first else _difference(gain["difference"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference(found: dict[str, float] | None) -> str:
    """A mean over seeds with its t interval, where there is one."""
    if not found:
        return "–"
    low, high = found.get("low"), found.get("high")
    known = low is not None and high is not None
    return f"{found['mean']:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if known else "")


def main() -> None:
    """Compare, then print what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the comparison is kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="150s", help="training of each run, as of compare")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    chosen, keys = parser.parse_known_args()
    own = {path.stem: str(path) for path in FILES.glob("*.yaml")}
    command = [sys.executable, str(ROOT / "run.py"), "compare"]
    command += [
        *(own.get(name, name) for name in PAPER),
        "--seeds",
        str(chosen.seeds),
        "--budget",
        chosen.budget,
    ]
    subprocess.run([*command, "--folder", str(chosen.folder), *keys], check=True)
    rows = json.loads((chosen.folder / "compare.json").read_text(encoding="utf-8"))["rows"]
    found = [row(preset, rows) for preset in PAPER]
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
