"""Bytes of encoded prompts that roles read in an iteration. Prints JSON:

    uv run python tests/bench/texts.py [--prompts 64] [--workers 24] [--ranks 8]

Prompts have the shapes of FLUX.1-dev in bfloat16, 512 × 4096 and 768; they are packed, split and
shared out as in a run: every task takes its own prompts, every rank those of its shards, as even
shares. `before` is one object of all prompts in float32, which every worker and rank reads whole.
"""

from __future__ import annotations

import argparse
import json
import math

import torch

from branchgrpo.models.base import packed

SHAPES = {"text": (512, 4096), "pooled": (768,)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=64, help="of an iteration")
    parser.add_argument("--workers", type=int, default=24, help="that grow trees")
    parser.add_argument("--ranks", type=int, default=8, help="that train")
    chosen = parser.parse_args()
    tensors = {
        name: torch.zeros(2, *shape, dtype=torch.bfloat16)  # alike, so two stand for all
        for name, shape in SHAPES.items()
    }
    wide = chosen.prompts * sum(tensor[0].float().numpy().nbytes for tensor in tensors.values())
    one, other = (part.nbytes for part in packed(tensors, 2).split())
    assert one == other

    def share(count: int) -> int:
        """Bytes of the largest of so many even shares; several workers have part of a tree."""
        return one * math.ceil(chosen.prompts / count)

    rows = {
        "a prompt": (wide // chosen.prompts, one),
        "a worker, an iteration": (wide, share(chosen.workers)),
        "a rank, an iteration": (wide, share(chosen.ranks)),
        "all, an iteration": (
            wide * (chosen.workers + chosen.ranks),
            chosen.workers * share(chosen.workers) + chosen.ranks * share(chosen.ranks),
        ),
    }
    result = {
        "prompts": chosen.prompts,
        "workers": chosen.workers,
        "ranks": chosen.ranks,
        "bytes": {name: {"before": old, "now": new} for name, (old, new) in rows.items()},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
