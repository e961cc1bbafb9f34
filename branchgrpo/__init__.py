"""BranchGRPO: tree rollouts and dense credit for reinforcement learning of flow models, on Ray."""

__version__ = "0.1.0"
