"""Checkpoints: files, manifests, storage, and which is the newest valid one."""
