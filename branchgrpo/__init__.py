"""BranchGRPO: tree rollouts and dense credit for reinforcement learning of flow models.

This package is the method alone: pure torch and numpy, no Ray.
"""
