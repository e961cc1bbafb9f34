"""How a second set of weights follows the trained ones."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Decay(BaseModel):
    """η of second ← η·second + (1 − η)·trained, by the number of the update: `start` for `flat`
    updates, then rising."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: float = Field(0.0, ge=0, lt=1, description="η at first")
    flat: int = Field(0, ge=0, description="updates until it rises")
    rate: float = Field(0.001, ge=0, description="rise of η with each update after those")
    most: float = Field(0.5, ge=0, lt=1, description="largest η")

    def at(self, update: int) -> float:
        """η after the update of this number, from 1."""
        return max(self.start, min(self.start + self.rate * (update - self.flat), self.most))
