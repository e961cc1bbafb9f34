"""Method families: one file and one line each. A method turns an iteration number into a BranchPlan."""

TABLE = {
    "branchgrpo": "branchgrpo.methods.branch:BranchMethod",
    "chains": "branchgrpo.methods.chains:ChainMethod",
    "trunk": "branchgrpo.methods.trunk:TrunkMethod",
    "tempflow": "branchgrpo.methods.temporal:TemporalMethod",
}
