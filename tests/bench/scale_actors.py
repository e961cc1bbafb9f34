"""Roles that sleep, for scale.py; a light module, since every actor imports it."""

from __future__ import annotations

from typing import Any

import layout_actors

from branchgrpo.service import RestoredState


class Rank(layout_actors.Rank):
    """One that can begin again."""

    def restore(self, where: str, origin: str = "") -> RestoredState:
        """There are no checkpoints."""
        self.version = 0
        return RestoredState(driver=None, damaged=())

    def configure(self, config: Any) -> None: ...
