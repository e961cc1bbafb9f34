"""Prompts: files, checks and encodings."""
