"""A model that is linear in its latents, its noise level and its prompt: small, exact and quick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from branchgrpo.models.base import Adapter
from branchgrpo.types import U8, Conditioning, Sample

WIDTH = 6  # of a prompt's embedding


class LinearDenoiser(nn.Module):
    """v = A·x + B·prompt + c·σ, in float64, so that the rows of a batch don't depend on its
    size."""

    def __init__(self, size: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.mix = nn.Parameter(
            torch.randn(size, size, generator=generator, dtype=torch.float64) / size
        )
        self.prompt = nn.Parameter(
            torch.randn(size, WIDTH, generator=generator, dtype=torch.float64) / WIDTH
        )
        self.level = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        return (
            x.double() @ self.mix.T
            + prompt.double() @ self.prompt.T
            + sigma.double()[:, None] * self.level
        )


class LinearModel(Adapter):
    """Latents of any shape; `largest_batch` remembers how many rows one forward had at most."""

    def __init__(self, latent_shape: tuple[int, ...] = (3, 4), seed: int = 0):
        self.device = torch.device("cpu")
        self.latent_shape = latent_shape
        self.denoiser = LinearDenoiser(int(np.prod(latent_shape)), seed)
        self.largest_batch = self.rows = 0

    def encode(self, samples: list[Sample]) -> Conditioning:
        rows = [
            np.random.default_rng(list(prompt.encode())).standard_normal(WIDTH)
            for prompt in (sample.prompt for sample in samples)
        ]
        return Conditioning({"prompt": np.stack(rows).astype(np.float32)}, len(samples))

    def velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        self.largest_batch, self.rows = max(self.largest_batch, len(x)), self.rows + len(x)
        out: Tensor = self.denoiser(x.flatten(1), sigma, cond["prompt"])
        return out.float().reshape(x.shape)

    def truncated(self, samples: list[Sample]) -> int:
        return 0

    def decode(self, x0: Tensor) -> U8:
        """The latents' signs as grey pixels."""
        grey = (x0.float().flatten(1) > 0).to(torch.uint8).mul(255)
        return grey.numpy()[:, None, None, :, None].repeat(3, axis=-1)

    def fingerprint_conditioning(self, rows: int) -> dict[str, Tensor]:
        return {"prompt": torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))}

    def save(self, folder: Path, source: Path, form: str, shift: float | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.denoiser.state_dict(), folder / "denoiser.pt")
