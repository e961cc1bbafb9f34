"""Pruning rules: one file and one line each. Rules AND together; they touch the gradient only."""

TABLE = {
    "width": "branchgrpo.pruning.width:WidthPruning",
    "depth": "branchgrpo.pruning.depth:DepthPruning",
    "steps": "branchgrpo.pruning.steps:StepPruning",
}
