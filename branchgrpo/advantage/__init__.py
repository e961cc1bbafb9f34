"""Advantage estimators: one file and one line each."""

TABLE = {
    "depthwise": "branchgrpo.advantage.depthwise:DepthWise",
    "group": "branchgrpo.advantage.group:GroupRelative",
}
