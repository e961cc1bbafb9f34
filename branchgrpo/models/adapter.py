"""A loaded model, as the method uses it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchgrpo.types import U8, Conditioning, Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Adapter(ABC):
    """A loaded model. Latents are [B, *S]; `S` is whatever shape the denoiser takes them in.
    Evaluation may draw larger: `in_evaluation` is the same model at that size."""

    device: torch.device
    dtype: torch.dtype  # of forwards: what published weights are in
    latent_shape: tuple[int, ...]  # S
    denoiser: Any  # the module that is trained
    base: nn.Module | None = None  # as it was before training, once `freeze_base` made a copy
    adapted = False  # LoRA adapters train, not the denoiser's own weights
    decodings_halved = 0  # how often batches for the decoder were, for want of memory

    @abstractmethod
    def encode(self, samples: list[Sample]) -> Conditioning:
        """Conditioning of P records. Needs the encoders."""

    @abstractmethod
    def velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """dx/dσ at x [B, *S], sigma [B]; cond arrays have B rows. Returns [B, *S]."""

    @abstractmethod
    def decode(self, x0: Tensor) -> U8:
        """Clean latents [B, *S] to pixels u8 [B, F, H, W, 3]. Needs the decoder."""

    @property
    def decoder(self) -> nn.Module | None:
        """The network behind `decode`, where there is one."""
        return None

    def pixels(self, x0: Tensor) -> Tensor:
        """Latents [b, *S] to pixels −1 … 1 [b, 3, F, H, W], of families with a decoder."""
        raise NotImplementedError

    @abstractmethod
    def fingerprint_conditioning(self, rows: int, length: int = 8) -> dict[str, Tensor]:
        """Fixed pseudo-random conditioning of the right shapes, of texts of `length` tokens at
        most, so that weights can be compared without prompts."""

    @abstractmethod
    def save(self, folder: Path, source: Path, form: str, shift: float | None = None) -> None:
        """Write the present weights: `pipeline`, a whole folder, with what is not trained copied
        from `source` and this static shift in its scheduler's config (None: as it is there);
        `transformer`, the denoiser alone; or `lora`, the adapters alone."""

    def in_evaluation(self, height: int, width: int) -> Adapter:
        """The same networks as `ModelOptions.in_evaluation` has them; this very model where that
        changes nothing."""
        del height, width
        return self

    @abstractmethod
    def truncated(self, samples: list[Sample]) -> int:
        """How many of these have prompts that are longer than the encoders take. Needs them."""

    def rows(self, shown: list[Sample]) -> dict[str, Tensor]:
        """Encodings of n of models.texts.seen: of families that are encoded before training."""
        raise NotImplementedError

    def tokenize(self, texts: list[str]) -> tuple[list[int], int]:
        """Lengths of those texts in tokens of the longest encoder, and how many it takes."""
        raise NotImplementedError

    def conditioning(self, conditioning: Conditioning) -> dict[str, Tensor]:
        """Its arrays as tensors on this device, in their own dtypes, P rows each."""
        from branchgrpo.models.weights import to_torch

        return {
            name: to_torch(array, conditioning.dtypes.get(name, array.dtype.name)).to(self.device)
            for name, array in conditioning.arrays.items()
        }

    @property
    def module(self) -> Any:
        """The denoiser."""
        return self.denoiser

    @property
    def one_pass(self) -> Any:
        """The network that a forward of one latent goes through: the denoiser, unless that is
        several."""
        return self.module

    def in_step(self, on: bool) -> None:
        """Whether forwards are collectives: weights are in shards, and every rank must go through
        the same networks as often, whatever its rows. A denoiser that is one network does."""
        del on

    def without_gradient(self) -> AbstractContextManager[None]:
        """Within it, forwards whose gradient nobody wants. What they give must be that of forwards
        in training, or the ratio of an unchanged policy is not 1."""
        import torch

        return torch.no_grad()

    def tokens(self, cond: dict[str, Tensor]) -> int:
        """Rows of the denoiser's sequence for one latent, text included: what its memory grows
        with."""
        raise NotImplementedError

    def blocks_of(self, module: nn.Module) -> list[nn.Module]:
        """The repeated blocks of the denoiser (or of its frozen copy), in which its weights are
        sharded."""
        import torch

        lists = [part for part in module.children() if isinstance(part, torch.nn.ModuleList)]
        return [block for blocks in lists for block in blocks]

    def freeze_base(self) -> None:
        """Keep what `base_velocity` needs: nothing with LoRA, whose adapters are switched off; else
        a copy of the denoiser."""
        if not self.adapted:
            self.base = copy.deepcopy(self.module).eval().requires_grad_(False)

    def base_velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """`velocity` of the model as it was before training, without a gradient."""
        import torch

        trained, learning = self.denoiser, self.trainable().keys()
        try:
            if self.adapted:
                self.denoiser = self.module
                self.denoiser.disable_adapters()
            else:
                self.denoiser = self.base
            with torch.no_grad():
                return self.velocity(x, sigma, cond)
        finally:
            if self.adapted:
                self.denoiser.enable_adapters()
                # peft lets all adapters learn again, also those that must not
                for name in self.trainable().keys() - learning:
                    self.module.get_parameter(name).requires_grad_(False)
            self.denoiser = trained

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by their name in the denoiser; the names survive wrapping."""
        return {
            name: value for name, value in self.module.named_parameters() if value.requires_grad
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite trainable parameters. Raises ValueError unless the names are theirs."""
        import torch

        own = self.trainable()
        if own.keys() != tensors.keys():
            raise ValueError(
                f"weights: expected {len(own)} parameters, got {len(tensors)}; differing: "
                f"{sorted(own.keys() ^ tensors.keys())[:3]}"
            )
        with torch.no_grad():
            for name, value in tensors.items():
                own[name].copy_(value)
