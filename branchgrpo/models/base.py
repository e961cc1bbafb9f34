"""What the method needs of a text-to-image or text-to-video model."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field

from branchgrpo.algo.schedule import Schedule, static
from branchgrpo.errors import UserError
from branchgrpo.models import places
from branchgrpo.models.adapter import Adapter
from branchgrpo.models.places import EMBEDDED
from branchgrpo.types import F32, Component

__all__ = ["ALL_PARTS", "Adapter", "ModelOptions", "Part"]

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

    @property
    def trained_denoisers(self) -> tuple[str, ...]:
        """Folders beside model_index.json whose weights train."""
        return ("transformer",)

    def denoisers_in(self, weights: Path) -> dict[str, Path]:
        """Where in a folder `run.export: transformer` writes those, by name."""
        return {"transformer": weights}

    def frozen_steps(self, levels: F32) -> tuple[bool, ...]:
        """[T] whether a step, from each but the last of these noise levels [T+1], is taken by
        weights that don't train; empty: none is."""
        del levels
        return ()

    def frozen_by(self) -> str:
        """The key, and its value, that has some weights frozen; empty: none."""
        return ""

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

    def at_sizes(self) -> Self:
        """These options with the files that `without_weights` goes by. Raises UserError where there
        are none."""
        return self

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
