"""The update: shards, the policy loss, the optimiser and its state."""
