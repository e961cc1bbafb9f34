"""Pruning rules: one file and one line each. Rules AND together; they touch the gradient only."""

REGISTRY = {
    "width": "branchgrpo.algo.pruning.width:WidthPruning",
    "depth": "branchgrpo.algo.pruning.depth:DepthPruning",
    "steps": "branchgrpo.algo.pruning.steps:StepPruning",
}
