"""Options that families of videos have in common: how many frames, in training and in
evaluation."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Self

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models.pipeline_options import PipelineModel


class VideoOptions(PipelineModel):
    """Of a model whose latents are [channels, frames, rows, columns]. The first latent frame is one
    of the video; each further one stands for `period` of them."""

    output: ClassVar[str] = "frames"

    frames: int = Field(17, ge=1, description="frames of a video in training: 1 + a multiple of 4")
    evaluation_frames: int = Field(
        0, ge=0, description="frames of a video in evaluation; 0 = frames"
    )

    def check(self) -> None:
        super().check()
        for key, count in (
            ("frames", self.frames),
            ("evaluation_frames", self.evaluation_frames or self.frames),
        ):
            if (count - 1) % self.period():
                raise UserError(
                    f"model.{key}: expected 1 + a multiple of {self.period()}, got {count}"
                )

    @abstractmethod
    def period(self) -> int:
        """Frames per latent frame, but for the first, which stands alone."""

    @abstractmethod
    def channels(self) -> int:
        """Of the latents."""

    @property
    def frames_drawn(self) -> int:
        return self.frames

    def shape(self) -> tuple[int, ...]:
        """Shape of a video's latents."""
        return (
            self.channels(),
            (self.frames - 1) // self.period() + 1,
            self.height // self.scale(),
            self.width // self.scale(),
        )

    def in_evaluation(self, height: int, width: int) -> Self:
        longer = {"frames": self.evaluation_frames or self.frames}
        return super().in_evaluation(height, width).model_copy(update=longer)

    def picture_tokens(self) -> int:
        return 0  # the pipelines of videos tell their scheduler no size

    def family_call(self) -> dict[str, Any]:
        return {"num_frames": self.frames, **super().family_call()}

    def small_keys(self) -> dict[str, Any]:
        longer = min(self.evaluation_frames, 9)
        few = {"frames": min(self.frames, 5), "evaluation_frames": longer}
        return {**super().small_keys(), **few}
