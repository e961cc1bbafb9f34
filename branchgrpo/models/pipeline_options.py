"""Options that all models of diffusers have: what their keys come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from branchgrpo.algo.schedule import Schedule
from branchgrpo.errors import UserError
from branchgrpo.models import lora, scheduler, skeleton
from branchgrpo.models.base import Adapter, ModelOptions, Part
from branchgrpo.models.files import check_pipeline, json_file
from branchgrpo.models.pipeline_keys import PipelineKeys

SMALL_TOKENS = 24
"""Text tokens per prompt, at most, of a model that was made small."""

SCHEDULER = "scheduler/scheduler_config.json"

JOINT_ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
"""diffusers' names of the projections where pictures and text attend to one another."""


class PipelineModel(PipelineKeys):
    """Options of a model that one of diffusers' pipelines loads."""

    any_size: ClassVar[bool] = True
    pipeline: ClassVar[str]  # diffusers' class
    also_loads: ClassVar[tuple[str, ...]] = ()  # classes that wrote folders which it loads too
    transformer: ClassVar[str]  # diffusers' class of the denoiser
    text_parts: ClassVar[tuple[str, ...]]  # parts of the pipeline that encode text
    # those of them that a folder may lack (null in model_index.json)
    optional_parts: ClassVar[tuple[str, ...]] = ()
    # the stock loader bears tensors `LAYER.alpha` beside A and B; others refuse the file
    lora_alphas: ClassVar[bool] = False
    lora_code: ClassVar[str] = 'pipe.load_lora_weights(".")'  # Python that calls that loader
    unit: ClassVar[int]  # of the patch: height and width are multiples of so many latents' pixels
    # diffusers' classes whose schedules are known
    schedulers: ClassVar[tuple[str, ...]] = (scheduler.EULER,)
    guidance_key: ClassVar[str]  # what the stock pipeline calls true_cfg
    output: ClassVar[str] = "images"  # the attribute of its result that holds what it drew
    decoder_dtype: ClassVar[str] = ""  # dtype of the autoencoder, where it must not be the model's

    def check(self) -> None:
        folder = self.folder()
        index = check_pipeline("model.path", folder, self.pipeline, *self.also_loads)
        for part in (*self.denoisers, "vae", "scheduler", *self.text_parts):
            if part not in self.optional_parts and not (index.get(part) or [None])[-1]:
                raise UserError(
                    f"model.path: expected a {part} in {folder / 'model_index.json'}, which "
                    "names none"
                )
        for part in self.denoisers:
            wanted, found = self.transformer, self.denoiser_config(part).get("_class_name")
            if found != wanted:
                raise UserError(f"model.path: expected a {wanted} in {folder / part}, got {found}")
        self.scheduler_config()
        for part in self.trained_denoisers if self.lora_path else ():
            self.lora_file(part)
        self.check_size()

    def check_size(self, section: str = "model") -> None:
        unit = self.unit * self.scale()
        if self.height % unit or self.width % unit:
            raise UserError(
                f"{section}.height, {section}.width: expected multiples of {unit}, got "
                f"{self.height}×{self.width}"
            )

    def in_evaluation(self, height: int, width: int) -> Self:
        size = {"height": height or self.height, "width": width or self.width}
        return self.model_copy(update=size)

    def scheduler_config(self, shift: float | None = None) -> dict[str, Any]:
        """scheduler_config.json; with a number, that static shift in place of the model's own.
        Raises UserError for one that is not known."""
        return scheduler.read(self.folder() / SCHEDULER, self.schedulers, shift)

    def schedule(self, steps: int, shift: float | None = None) -> Schedule:
        found = self.scheduler_config(shift)
        return Schedule(
            self.times(found, steps),
            scheduler.shift(found, self.picture_tokens()),
            float(found.get("shift_terminal") or 0.0),
        )

    def times(self, config: dict[str, Any], steps: int) -> NDArray[np.float64]:
        """[T] the schedule before its shift: what the family's pipeline gives its scheduler, or
        leaves to it."""
        del config
        return scheduler.even_times(steps)

    def picture_tokens(self) -> int:
        """Tokens of a picture, by which a dynamic shift is chosen; 0 where the pipeline tells its
        scheduler no size."""
        unit = self.unit * self.scale()
        return (self.height // unit) * (self.width // unit)

    @property
    def denoisers(self) -> tuple[str, ...]:
        """Parts of the pipeline that denoise."""
        return ("transformer",)

    def denoiser_config(self, part: str = "transformer") -> dict[str, Any]:
        """config.json of a denoiser. Raises UserError where it cannot be read."""
        return json_file("model.path", self.folder() / part / "config.json")

    def scale(self) -> int:
        """Pixels per latent, along each side. Raises UserError when the autoencoder's config is
        missing."""
        path = self.folder() / "vae" / "config.json"
        channels = json_file("model.path", path).get("block_out_channels")
        if not isinstance(channels, list):
            raise UserError(
                f"model.path: expected a list block_out_channels in {path}, got {channels}"
            )
        return int(2 ** (len(channels) - 1))

    @property
    def adapted_layers(self) -> tuple[str, ...]:
        """Names, or their ends, of the layers that LoRA adapts."""
        return self.lora_targets or self.attention_layers

    @property
    def alpha(self) -> int:
        """Of LoRA."""
        return self.lora_alpha or 2 * self.lora_rank

    def lora_file(self, part: str) -> lora.LoraFile:
        """The adapter of a denoiser to begin with. Raises UserError where it is not one of this
        model, or of another rank, alpha or layers."""
        layers = lora.layers(self.folder() / part, self.adapted_layers)
        return lora.check(self.lora_place(part), layers, self.lora_rank, self.alpha)

    def lora_place(self, part: str) -> str:
        """The file of that adapter, or a folder with no other."""
        del part
        return self.lora_path

    def lora_load(self) -> list[str]:
        """Python that loads exported adapters into the stock pipeline."""
        return [self.lora_code]

    def stock_call(self) -> dict[str, Any]:
        """Arguments of the stock pipeline's call, steps apart, that draws what these options do."""
        size = {"height": self.height, "width": self.width}
        found = {**size, **self.family_call(), **self.stock_guidance()}
        return found | ({"negative_prompt": self.negative_prompt} if self.guided else {})

    def stock_guidance(self) -> dict[str, Any]:
        """What the stock pipeline is told of guidance, by its own names."""
        return {self.guidance_key: self.true_cfg}

    def family_call(self) -> dict[str, Any]:
        """Those of them that the family has beside size and guidance."""
        return {"max_sequence_length": getattr(self, "max_sequence_length", 0)}

    def text_keys(self) -> dict[str, Any]:
        """The options that text encodings depend on, beside the model's own files."""
        return {"max_sequence_length": getattr(self, "max_sequence_length", 0), "dtype": self.dtype}

    def shrunk(self, folder: Path) -> Self:
        if self.embedded:
            return super().shrunk(folder)
        self.write_small(folder)
        return self.model_copy(update={"path": str(folder), **self.small_keys()})

    def write_small(self, folder: Path) -> None:
        """A narrow and shallow model of the family's classes, with random weights."""
        ModelOptions.shrunk(self, folder)

    def small_keys(self) -> dict[str, Any]:
        """Keys that differ for it. An adapter to begin with would be of the large one."""
        long, short = (48, 32) if self.height != self.width else (32, 32)
        height, width = (long, short) if self.height > self.width else (short, long)
        found: dict[str, Any] = {"height": height, "width": width, "lora_path": ""}
        tokens = getattr(self, "max_sequence_length", 0)
        return found | ({"max_sequence_length": min(SMALL_TOKENS, tokens)} if tokens else {})

    @property
    def precomputed(self) -> bool:
        return self.encode == "precompute"

    @property
    def adapter_rank(self) -> int:
        return self.lora_rank

    @property
    def memory_advice(self) -> str:
        return "" if self.gradient_checkpointing else "model.gradient_checkpointing: true"

    @property
    def picture_size(self) -> tuple[int, int]:
        return self.height, self.width

    def setup_code(self) -> list[str]:
        """Python that tells the stock pipeline what its call takes no arguments for."""
        return []

    def picture_code(self) -> list[str]:
        """Python that opens what a record shows, as `picture` of the stock call; empty where it
        sees none."""
        return []

    def needed_files(self) -> list[str]:
        return [*super().needed_files(), *([self.lora_path] if self.lora_path else [])]

    def shared_folders(self) -> dict[str, str]:
        return {"model.encodings": self.encodings} if self.precomputed else {}

    @property
    def guided(self) -> bool:
        """Every forward of the denoiser is two, one of them for the negative prompt."""
        return self.true_cfg > 1

    @property
    def text_tokens(self) -> int:
        return int(getattr(self, "max_sequence_length", 0))

    @property
    def decoded_at_once(self) -> int:
        return self.decode_batch

    @property
    def sizes_of(self) -> str:
        folder = Path(self.path).expanduser()
        there = self.embedded or (folder / "model_index.json").is_file()
        return "" if there else folder.name.partition("@")[0]

    def without_weights(self, parts: tuple[Part, ...]) -> Adapter:
        # the adapter's file, compiling and other attention change no shape
        plain = {"lora_path": "", "compile": False, "attention": "", "path": str(self._sizes())}
        with skeleton.silent():
            return self.model_copy(update=plain).build("meta", parts)

    def at_sizes(self) -> Self:
        return self.model_copy(update={"path": str(self._sizes())})

    def text_encoders(self) -> int:
        return skeleton.text_parameters(self._sizes(), self.text_parts)

    def _sizes(self) -> Path:
        """Where the config.json of each part is."""
        return self.folder() if self.embedded else skeleton.folder_of_sizes(self.path)
