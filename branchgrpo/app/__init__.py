"""Composition root and commands: the only place that imports the method, its actors and the
cluster."""
