"""Advantage estimators: one file and one line each."""

REGISTRY = {
    "depthwise": "branchgrpo.algo.advantage.depthwise:DepthWise",
    "group": "branchgrpo.algo.advantage.group:GroupRelative",
    "sibling": "branchgrpo.algo.advantage.sibling:SiblingCentred",
}
