"""Losses: one file and one line each."""

REGISTRY = {
    "clipped": "branchgrpo.algo.loss.clipped:ClippedLoss",
    "guard": "branchgrpo.algo.loss.guard:GuardLoss",
    "dppo": "branchgrpo.algo.loss.dppo:DivergenceLoss",
    "nft": "branchgrpo.algo.loss.nft:NegativeAwareLoss",
    "awm": "branchgrpo.algo.loss.awm:MatchingLoss",
    "dgpo": "branchgrpo.algo.loss.dgpo:GroupPreferenceLoss",
    "crd": "branchgrpo.algo.loss.crd:CentredRewardLoss",
}
