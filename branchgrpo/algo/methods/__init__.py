"""Method families: one file and one line each. A method turns an iteration number into a
BranchPlan."""

REGISTRY = {
    "branchgrpo": "branchgrpo.algo.methods.branch:BranchMethod",
    "chains": "branchgrpo.algo.methods.chains:ChainMethod",
    "trunk": "branchgrpo.algo.methods.trunk:TrunkMethod",
    "tempflow": "branchgrpo.algo.methods.tempflow:TempFlowMethod",
    "treegrpo": "branchgrpo.algo.methods.treegrpo:TreeMethod",
}
