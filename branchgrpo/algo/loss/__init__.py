"""Policy losses: one file and one line each."""

REGISTRY = {
    "clipped": "branchgrpo.algo.loss.clipped:ClippedLoss",
    "guard": "branchgrpo.algo.loss.guard:GuardLoss",
    "dppo": "branchgrpo.algo.loss.dppo:DivergenceLoss",
}
