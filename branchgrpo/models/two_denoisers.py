"""Pipelines with two denoisers, as Wan2.2 A14B's: `transformer` from a noise level on, their
`boundary_ratio`, and `transformer_2` below it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.models import lora, scheduler
from branchgrpo.models.files import json_file
from branchgrpo.models.pipeline import PipelineAdapter
from branchgrpo.models.video import VideoOptions
from branchgrpo.types import F32

if TYPE_CHECKING:
    from torch import Tensor, nn

HIGH, LOW = "transformer", "transformer_2"
"""Folders of the denoisers for much noise, and for little."""

TRAINED = {"both": (HIGH, LOW), "high": (HIGH,), "low": (LOW,)}
"""By the values of `train_denoisers`."""


class TwoDenoiserOptions(VideoOptions):
    """Options of a family whose folders may have a `boundary_ratio` in model_index.json; without
    one they have one denoiser, and neither key has a meaning."""

    guidance_key_2: ClassVar[str] = "guidance_scale_2"  # what the stock pipeline calls true_cfg_2

    true_cfg_2: float = Field(
        0.0,
        ge=0,
        description="of a model with two denoisers: guidance of that for low noise; 0 = true_cfg",
    )
    train_denoisers: Literal["both", "high", "low"] = Field(
        "both",
        description="of a model with two denoisers: which train, that for high noise, for low, or "
        "both; steps of the other are not trained",
    )

    def check(self) -> None:
        super().check()
        if self.boundary_ratio is None:
            for key, value in (
                ("true_cfg_2", self.true_cfg_2),
                ("train_denoisers", TRAINED[self.train_denoisers] != TRAINED["both"]),
            ):
                if value:
                    raise UserError(
                        f"model.{key}: expected none of a model with one denoiser (no "
                        f"boundary_ratio in its model_index.json), got {getattr(self, key)}"
                    )
            return
        if not 0 < self.boundary_ratio < 1 or self.index().get("expand_timesteps"):
            raise UserError(
                "model.path: expected a boundary_ratio between 0 and 1 without expand_timesteps in "
                f"{self.folder() / 'model_index.json'}, got {self.boundary_ratio}, "
                f"{bool(self.index().get('expand_timesteps'))}"
            )
        if 0 < self.true_cfg_2 < 1 or (self.true_cfg_2 and not self.guided):
            raise UserError(
                "model.true_cfg_2: expected 0, or with true_cfg above 1 at least 1, since the "
                f"pipeline guides by both or by none, got {self.true_cfg_2:g} with true_cfg "
                f"{self.true_cfg:g}"
            )

    def index(self) -> dict[str, Any]:
        """model_index.json. Raises UserError where it cannot be read."""
        return json_file("model.path", self.folder() / "model_index.json")

    @property
    def boundary_ratio(self) -> float | None:
        """The part of all time steps from which on the first denoiser is used; None: there is but
        one."""
        found = self.index().get("boundary_ratio")
        if found is None or type(found) in (int, float):
            return found
        raise UserError(
            "model.path: expected a number as boundary_ratio in "
            f"{self.folder() / 'model_index.json'}, got {found!r}"
        )

    @property
    def denoisers(self) -> tuple[str, ...]:
        return (HIGH,) if self.boundary_ratio is None else (HIGH, LOW)

    @property
    def trained_denoisers(self) -> tuple[str, ...]:
        return (HIGH,) if self.boundary_ratio is None else TRAINED[self.train_denoisers]

    def denoisers_in(self, weights: Path) -> dict[str, Path]:
        if len(self.denoisers) == 1:
            return super().denoisers_in(weights)
        return {part: weights / part for part in self.trained_denoisers}

    @property
    def boundary(self) -> float:
        """The least time step of the first denoiser."""
        return (self.boundary_ratio or 0.0) * scheduler.TRAIN_TIMESTEPS

    def frozen_steps(self, levels: F32) -> tuple[bool, ...]:
        if self.trained_denoisers == self.denoisers:
            return ()
        high = self.timesteps(levels[:-1]) >= self.boundary
        return tuple(bool(one) for one in (high if self.trained_denoisers == (LOW,) else ~high))

    def frozen_by(self) -> str:
        frozen = self.trained_denoisers != self.denoisers
        return f"model.train_denoisers: {self.train_denoisers}" if frozen else ""

    def timesteps(self, levels: NDArray[np.float32]) -> NDArray[np.float32]:
        """[T] that the stock scheduler gives its denoiser at noise levels."""
        return scheduler.timesteps(self.scheduler_config(), levels)

    def stock_guidance(self) -> dict[str, Any]:
        second = {self.guidance_key_2: self.true_cfg_2} if self.true_cfg_2 else {}
        return {**super().stock_guidance(), **second}

    # adapters: a file for each denoiser, since the stock loader takes them one by one

    def lora_place(self, part: str) -> str:
        path = Path(self.lora_path).expanduser()
        if len(self.denoisers) == 1:
            return super().lora_place(part)
        if not path.is_dir() and len(self.trained_denoisers) > 1:
            raise UserError(
                f"model.lora_path: expected a folder with {lora.file_of(HIGH)} and "
                f"{lora.file_of(LOW)}, a file for each denoiser, got {path}"
            )
        return str(path / lora.file_of(part) if path.is_dir() else path)

    def lora_load(self) -> list[str]:
        if len(self.denoisers) == 1:
            return super().lora_load()
        into = {HIGH: "", LOW: ", load_into_transformer_2=True"}
        return [
            f'pipe.load_lora_weights(".", weight_name="{lora.file_of(part)}"{into[part]})'
            for part in self.trained_denoisers
        ]


class TwoDenoiserAdapter(PipelineAdapter):
    """A loaded model of one denoiser or two."""

    options: TwoDenoiserOptions

    @cached_property
    def two(self) -> bool:
        """There are two denoisers."""
        return len(self.options.denoisers) > 1

    def joined(self, denoisers: dict[str, Any]) -> Any:
        if not self.two:
            return super().joined(denoisers)
        from branchgrpo.models.routed import TwoDenoisers

        return TwoDenoisers(
            denoisers[HIGH],
            denoisers[LOW],
            boundary=self.options.boundary,
            learning=self.options.trained_denoisers,
        )

    def learning(self) -> dict[str, Any]:
        found: dict[str, Any] = self.module.trained() if self.two else super().learning()
        return found

    def blocks_of(self, module: nn.Module) -> list[nn.Module]:
        if not self.two:
            return super().blocks_of(module)
        of_one = super().blocks_of
        return [block for part in module.children() for block in of_one(part)]

    @property
    def one_pass(self) -> Any:
        return next(iter(self.learning().values()))

    def in_step(self, on: bool) -> None:
        for module in (self.module, self.base) if self.two else ():
            if module is not None:
                module.in_step = on

    def velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        import torch

        options = self.options
        if not (options.guided and options.true_cfg_2 and self.two):
            return super().velocity(x, sigma, cond)
        wanted, unwanted = self.both(x, sigma, cond)
        high = self.timestep(sigma) >= self.module.boundary
        scale = torch.where(high, options.true_cfg, options.true_cfg_2)
        return unwanted + scale.view(-1, *[1] * (x.ndim - 1)) * (wanted - unwanted)

    def timestep(self, sigma: Tensor) -> Tensor:
        """[B] that the stock scheduler gives the denoiser at noise levels [B]."""
        raise NotImplementedError
