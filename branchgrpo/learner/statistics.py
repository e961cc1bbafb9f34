"""What an update did, from what was counted on the way."""

from __future__ import annotations

import numpy as np

from branchgrpo.algo.tree import topology
from branchgrpo.learner.policy import Tally
from branchgrpo.types import BranchPlan, StepStats, TreeCredit


def step_stats(
    plan: BranchPlan,
    credits: list[TreeCredit],
    *,
    tally: Tally,
    norms: list[float],
    version: int,
    learning_rate: float,
    on_policy: float,
    first_ratio: float,
    fetched_bytes: int,
    velocity_norm: float | None,
) -> StepStats:
    """Statistics of an update on the trees that have these credits.

    tally: over all ranks. norms: of each optimiser step's gradient, not finite where it was
    skipped. version: of the weights now. learning_rate: of the last step. on_policy: what the gate
    found, NaN where it did not run. first_ratio: largest |ratio − 1| of the first micro-batches.
    velocity_norm: None where it was not measured.
    """
    random = topology(plan).stochastic
    kept = np.concatenate([one.advantage[one.keep] for one in credits])
    finite = [norm for norm in norms if np.isfinite(norm)]
    return StepStats(
        version=version,
        loss=tally.loss / max(1, len(norms)),
        ratio_deviation=tally.deviation / max(1.0, tally.edges),
        on_policy_deviation=on_policy,
        first_ratio_deviation=first_ratio,
        clip_fraction=tally.clipped / max(1.0, tally.edges),
        kl=tally.kl / max(1.0, tally.edges),
        learning_rate=learning_rate,
        gradient_norm=float(np.mean(finite)) if finite else 0.0,
        optimiser_steps=len(finite),
        skipped_steps=len(norms) - len(finite),
        forwards=int(tally.forwards),
        halved=int(tally.halved),
        edges=len(kept),
        edges_stochastic=int(random.sum()) * len(credits),
        edges_all=(len(random) - 1) * len(credits),
        weight_entropy=float(np.mean([one.weight_entropy for one in credits])),
        advantage_abs=float(np.abs(kept).mean()) if len(kept) else 0.0,
        fetched_bytes=fetched_bytes,
        velocity_norm=velocity_norm,
    )
