"""Advantage estimators: one file and one line each."""

TABLE = {
    "depthwise": "branchgrpo.algo.advantage.depthwise:DepthWise",
    "group": "branchgrpo.algo.advantage.group:GroupRelative",
}
