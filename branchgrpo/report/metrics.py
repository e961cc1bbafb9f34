"""An iteration's metrics, under their names in metrics.jsonl."""

from __future__ import annotations

import numpy as np

from branchgrpo.algo.credit import Credit
from branchgrpo.algo.spread import effective_samples, sibling_spreads
from branchgrpo.rollout.batch import RolloutBatch, Scouted
from branchgrpo.types import BranchPlan, StepStats


def of_iteration(
    plan: BranchPlan, batch: RolloutBatch, stats: StepStats, *, credit: Credit, driver_bytes: int
) -> dict[str, float]:
    """An iteration's metrics under their names in metrics.jsonl (docs/run-folder.md lists them)."""
    leaves = batch.leaf_rewards()
    rows = sorted({row for row, _ in batch.rewards})
    spread = np.mean(
        [
            np.concatenate([batch.rewards[key] for key in batch.rewards if key[0] == row]).std()
            for row in rows
        ]
    )
    headers = [header for header, _ in batch.segments]
    values = {
        "reward/total": float(leaves.mean()),
        "reward/spread": float(spread),
        "reward/flat_groups": credit.flat_groups(batch.scores),
        "tree/effective_samples": effective_samples(plan, batch.rewards),
    }
    siblings = sibling_spreads(plan, batch.rewards)
    values |= {f"spread/{index}": value for index, value in enumerate(siblings)}
    values |= {f"reward/{name}": float(batch.part(name).mean()) for name in batch.parts}
    values |= {f"time/{phase}": seconds for phase, seconds in batch.seconds.items()}
    values |= {
        "tree/trees": len(leaves),
        "tree/leaves": leaves.size,
        "tree/forwards": batch.forwards,
        "tree/batches_halved": batch.halved,
        "tree/edges": stats.edges_stochastic,
        "tree/edges_all": stats.edges_all,
        "latents/bytes": sum(header.payload_bytes for header in headers),
        "driver/bytes": driver_bytes,
        "prompts/truncated": batch.truncated,
        "reward/retries": batch.retries,
        "reward/dropped_groups": len(batch.dropped),
    }
    values |= _of_scouts(batch.scouted) if batch.scouted else {}
    names = (
        "forwards",
        "edges",
        "clip_fraction",
        "kl",
        "learning_rate",
        "ratio_deviation",
        "first_ratio_deviation",
        "gradient_norm",
        "loss",
        "skipped_steps",
        "optimiser_steps",
        "weight_entropy",
        "advantage_abs",
        "fetched_bytes",
        "version",
    )
    values |= {f"update/{name}": float(getattr(stats, name)) for name in names}
    if stats.velocity_norm is not None:
        values["update/velocity_norm"] = stats.velocity_norm
    return values | {"update/batches_halved": float(stats.halved)}


def _of_scouts(scouted: Scouted) -> dict[str, float]:
    return {
        "tree/scout_forwards": scouted.forwards,
        "scout/total": scouted.reward,
        "scout/agreement": scouted.agreement,
    }


def overlooked(batch: RolloutBatch, prompts: int) -> dict[str, str]:
    """Lines, by kind, on what does not end a run and is easily overlooked in an iteration of so
    many prompts."""
    told = {}
    if batch.truncated:
        cut = (
            f"{batch.truncated} of {prompts} prompts are longer than the text encoders take "
            "and were cut"
        )
        told["truncated"] = f"{cut} (said once; prompts/truncated counts)"
    if batch.dropped:
        row, reason = next(iter(batch.dropped.items()))
        told["dropped"] = (
            f"{len(batch.dropped)} of {prompts} prompt groups dropped (said once; "
            f"reward/dropped_groups counts): row {row}: {reason}"
        )
    return told
