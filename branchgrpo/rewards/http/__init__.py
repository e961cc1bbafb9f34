"""Rewards over HTTP: the protocol, its server and its client."""
