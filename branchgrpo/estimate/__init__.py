"""What a run will need, before anything is loaded: memory by role, GPUs, work and seconds."""
