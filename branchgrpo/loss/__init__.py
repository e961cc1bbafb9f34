"""Policy losses: one file and one line each."""

TABLE = {
    "clipped": "branchgrpo.loss.clipped:ClippedLoss",
    "guard": "branchgrpo.loss.guard:GuardLoss",
    "dppo": "branchgrpo.loss.dppo:DivergenceLoss",
}
