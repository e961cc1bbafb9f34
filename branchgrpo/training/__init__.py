"""The training loop, evaluation, and one run from its first check to its summary."""
