"""What the method needs of a text-to-image or text-to-video model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.table import Component
from branchgrpo.types import U8, Conditioning

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

EMBEDDED = "embedded:"


class ModelOptions(Component):
    """Options every family has."""

    path: str = Field(description="folder in diffusers layout, or embedded:NAME for one shipped with the package")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype of the weights and of the forward pass")

    def folder(self) -> Path:
        """Where the weights are. Raises UserError when the folder or its model_index.json is missing."""
        if self.path.startswith(EMBEDDED):
            folder = Path(__file__).parent.parent / "assets" / self.path.removeprefix(EMBEDDED)
        else:
            folder = Path(self.path).expanduser()
        if not (folder / "model_index.json").is_file():
            raise UserError(f"model.path: expected a diffusers folder with model_index.json, found none at {folder}")
        return folder

    def check(self) -> None:
        """Raise UserError for what the folder's configs tell to be wrong; loads no weights."""
        self.folder()

    def build(self, device: str, denoiser_only: bool = False) -> Adapter:
        """Load the model; learners need only the denoiser."""
        raise NotImplementedError


class Adapter(ABC):
    """A loaded model. Latents are [B, *S]; `S` is whatever shape the denoiser takes them in."""

    device: torch.device
    latent_shape: tuple[int, ...]  # S
    denoiser: nn.Module  # what is trained; may be wrapped, for example by DDP

    @abstractmethod
    def encode(self, prompts: list[str]) -> Conditioning:
        """Text conditioning of P prompts. Needs the text encoders."""

    @abstractmethod
    def velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """dx/dσ at x [B, *S], sigma [B]; cond arrays have B rows. Returns [B, *S]."""

    @abstractmethod
    def decode(self, x0: Tensor) -> U8:
        """Clean latents [B, *S] to pixels u8 [B, F, H, W, 3]. Needs the decoder."""

    @abstractmethod
    def probe_conditioning(self, rows: int) -> dict[str, Tensor]:
        """Fixed pseudo-random conditioning of the right shapes, so that weights can be compared without prompts."""

    @abstractmethod
    def save(self, folder: Path, source: Path) -> None:
        """Write a pipeline folder with the present weights; what is not trained comes from `source`."""

    def conditioning(self, conditioning: Conditioning) -> dict[str, Tensor]:
        """Its arrays as tensors on this device, P rows each."""
        import torch

        return {name: torch.from_numpy(array.copy()).to(self.device) for name, array in conditioning.arrays.items()}

    @property
    def module(self) -> Any:
        """The denoiser, unwrapped."""
        return getattr(self.denoiser, "module", self.denoiser)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by their name in the denoiser; the names survive wrapping."""
        return {name: value for name, value in self.module.named_parameters() if value.requires_grad}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite trainable parameters. Raises ValueError unless the names are exactly theirs."""
        import torch

        own = self.trainable()
        if own.keys() != tensors.keys():
            raise ValueError(f"weights: expected {len(own)} parameters, got {len(tensors)}; differing: {sorted(own.keys() ^ tensors.keys())[:3]}")
        with torch.no_grad():
            for name, value in tensors.items():
                own[name].copy_(value)
