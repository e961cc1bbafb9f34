"""Policy losses: one file and one line each."""

TABLE = {"clipped": "branchgrpo.loss.clipped:ClippedLoss"}
