"""What the method needs of a text-to-image or text-to-video model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from branchgrpo.algo.schedule import Schedule, static
from branchgrpo.errors import UserError
from branchgrpo.models import places
from branchgrpo.models.places import EMBEDDED
from branchgrpo.types import U8, Component, Conditioning, Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Part = Literal["denoiser", "encoders", "decoder"]
"""What of a model a process loads: learners need only the denoiser."""

ALL_PARTS: tuple[Part, ...] = ("denoiser", "encoders", "decoder")


class ModelOptions(Component):
    """Options every family has."""

    # keys that say how it is computed: they may change at any time; all others say what it is
    computing: ClassVar[tuple[str, ...]] = ("offload_encoders",)
    attention_layers: ClassVar[tuple[str, ...]] = ()  # where LoRA adapters go unless told otherwise
    any_size: ClassVar[bool] = False  # evaluation may draw pictures of another size than training

    path: str = Field(
        description="folder in diffusers layout; OWNER/NAME on the Hugging Face Hub, see "
        "docs/models.md; or embedded:NAME for one shipped with the package"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the weights and of the forward pass"
    )
    offload_encoders: bool = Field(
        False,
        description="on GPUs: text encoders rest in pinned main memory and are on the card only "
        "while they encode",
    )

    def folder(self) -> Path:
        """Where the weights are. Raises UserError when the folder or its model_index.json is
        missing."""
        return places.folder_of(self.path)

    @property
    def embedded(self) -> bool:
        """It is shipped with the package."""
        return self.path.startswith(EMBEDDED)

    @property
    def precomputed(self) -> bool:
        """Prompts are encoded before training, by a job of its own."""
        return False

    @property
    def adapter_rank(self) -> int:
        """Rank of the LoRA adapters that train in place of the weights; 0 = the weights train."""
        return 0

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of what it draws, in pixels; 0 where that is not known."""
        return 0, 0

    @property
    def frames_drawn(self) -> int:
        """Frames of what it draws in training."""
        return 1

    @property
    def pictures_taken(self) -> tuple[int, int]:
        """How many pictures of a record it sees: at least, at most. Rewards may see more."""
        return 0, 0

    @property
    def memory_advice(self) -> str:
        """A key and a value by which an update takes less memory; empty: none, or it is set."""
        return ""

    def needed_files(self) -> list[str]:
        there = self.embedded or places.on_hub(self.path)
        return [] if there else [str(Path(self.path) / "model_index.json")]

    def shared_folders(self) -> dict[str, str]:
        """Folders that driver and workers must share, by config key."""
        return {}

    def check(self) -> None:
        """Raise UserError for what the folder's files tell to be wrong; loads no weights."""
        self.folder()

    def check_size(self, section: str = "model") -> None:
        """Raise UserError for a size that it cannot draw, by keys of this section."""

    def in_evaluation(self, height: int, width: int) -> Self:
        """These options as held-out pictures are drawn: of this size in pixels, where the family
        has `any_size`; 0 = as in training."""
        del height, width
        return self

    def schedule(self, steps: int, shift: float | None = None) -> Schedule:
        """Noise levels of so many denoising steps: those that the family's pipeline makes of its
        default call. shift: a static one in place of the model's own. Raises UserError where the
        model's scheduler is not known."""
        return static(steps, shift or 1.0)

    @property
    def text_tokens(self) -> int:
        """Of the longest prompt, as the denoiser gets it; 0 where that is not known."""
        return 0

    @property
    def decoded_at_once(self) -> int:
        """Pictures or videos the decoder takes at once."""
        return 1

    @property
    def sizes_of(self) -> str:
        """Whose published sizes `without_weights` goes by; empty: the model's own files."""
        return ""

    def without_weights(self, parts: tuple[Part, ...]) -> Adapter | None:
        """These parts on torch's meta device: shapes and dtypes alone, from config files. None
        where the family does not tell. Raises UserError where the files are missing."""
        del parts
        return None

    def text_encoders(self) -> int:
        """Parameters of the text encoders; 0 where that is not known."""
        return 0

    def shrunk(self, folder: Path) -> Self:
        """These options on a narrow and shallow model of the same classes with random weights,
        written to `folder`, for small pictures: all else stays. What is shipped with the package is
        small already. Raises UserError where the family makes none."""
        if self.embedded:
            return self
        raise UserError(
            "model.name: expected a family that makes a small model of its own (`shrunk`), "
            f"got {self.called}"
        )

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> Adapter:
        """Load these parts of the model."""
        raise NotImplementedError


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
