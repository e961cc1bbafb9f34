"""What the processes of a run find in their environment, unless it says otherwise."""

from __future__ import annotations

import os


def prepare() -> None:
    """Before anything heavy is imported, and before Ray's processes, which inherit it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # torch's idle threads soon sleep: actors share cores, and spinning starves the others
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
