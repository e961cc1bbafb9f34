"""What models of diffusers have in common: loading, guidance, LoRA, text, decoding in batches,
export.

A family is a subclass of `PipelineModel` (pipeline_options.py: its options and the names of its
classes) and one of `PipelineAdapter` (how its latents, text and pixels look).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

from branchgrpo.errors import UserError, one_line
from branchgrpo.models import lora
from branchgrpo.models.base import ALL_PARTS, Adapter, Part
from branchgrpo.models.decoding import Decoding
from branchgrpo.models.files import json_file
from branchgrpo.models.pipeline_options import SCHEDULER, PipelineModel
from branchgrpo.models.skeleton import class_named, hollow, is_network
from branchgrpo.models.texts import packed, pair, seen, unwanted
from branchgrpo.types import U8, Conditioning, Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class PipelineAdapter(Adapter):
    """A loaded pipeline. Prompts are encoded and pixels decoded by diffusers' own code."""

    pipe: Any  # diffusers' pipeline, without the parts that were not asked for

    def __init__(self, options: PipelineModel, device: str, parts: tuple[Part, ...] = ALL_PARTS):
        import diffusers
        import torch

        from branchgrpo.models.offload import Offloaded
        from branchgrpo.models.weights import dtype_named

        self.options = options
        self.decoding = Decoding(options.decode_batch)
        self.device = torch.device(device)
        self.dtype = dtype_named(options.dtype)
        folder, pipeline = options.folder(), getattr(diffusers, options.pipeline)
        kind = getattr(diffusers, options.transformer)
        denoisers = {
            part: self._load_denoiser(kind, part) if "denoiser" in parts else None
            for part in options.denoisers
        }
        index = json_file("model.path", folder / "model_index.json")
        absent = {
            part: None
            for part in options.text_parts
            if "encoders" not in parts or (index.get(part) or [None])[-1] is None
        }
        dtypes = {"vae": dtype_named(options.decoder_dtype or options.dtype), "default": self.dtype}
        given: dict[str, Any] = dict(absent) | ({} if "decoder" in parts else {"vae": None})
        for part in (*options.text_parts, "vae"):
            # transformers would fill what a file lacks with random numbers
            if part not in given and is_network(index[part]):
                given[part] = self._network(
                    class_named(index[part]), folder / part, dtypes.get(part, self.dtype)
                )
        self.pipe = self._pipeline(pipeline, {**denoisers, **given, "dtype": dtypes})
        encoders = [getattr(self.pipe, part) for part in options.text_parts]
        encoders = [part for part in encoders if isinstance(part, torch.nn.Module)]
        resting = encoders if options.offload_encoders and self.device.type != "cpu" else []
        for module in self.pipe.components.values():
            if isinstance(module, torch.nn.Module) and module not in denoisers.values():
                module.eval().requires_grad_(False)
                if module not in resting:  # those may have no room beside the denoiser
                    module.to(self.device)
        self.offloaded = Offloaded(resting, self.device)
        if "decoder" in parts and options.vae_tiling:
            self.pipe.vae.enable_tiling()
        self.denoiser = self.joined(denoisers) if "denoiser" in parts else None
        if "denoiser" in parts and options.compile:
            for block in self.blocks_of(self.denoiser):
                block.compile()
        self.prepare()

    def _pipeline(self, kind: Any, given: dict[str, Any]) -> Any:
        """diffusers' pipeline with these parts; what it is not given it loads."""
        return kind.from_pretrained(self.options.folder(), **given)

    def joined(self, denoisers: dict[str, Any]) -> Any:
        """The denoiser, of the pipeline's parts that denoise."""
        return denoisers["transformer"]

    def learning(self) -> dict[str, Any]:
        """Those of these parts that train."""
        return {"transformer": self.module}

    def _load_denoiser(self, transformer: Any, part: str) -> Any:
        options = self.options
        found = self._network(transformer, options.folder() / part, self.dtype)
        if options.lora_rank or part not in options.trained_denoisers:
            found.requires_grad_(False)
        if options.lora_rank and part in options.trained_denoisers:
            from peft import LoraConfig

            alpha, targets = options.alpha, list(options.adapted_layers)
            # without weights, adapters get none either
            place = self.device if self.device.type == "meta" else nullcontext()
            try:
                with place:
                    found.add_adapter(
                        LoraConfig(r=options.lora_rank, lora_alpha=alpha, target_modules=targets)
                    )
            except ValueError as error:
                raise UserError(
                    "model.lora_targets: expected names of layers of "
                    f"{options.transformer}, got {', '.join(targets)}"
                ) from error
            for value in filter(lambda one: one.requires_grad, found.parameters()):
                value.data = value.data.to(self.dtype)  # the learner has float32 masters
            if options.lora_path:
                lora.load(found, options.lora_file(part))
            self.adapted = True
        if options.attention:
            try:
                found.set_attention_backend(options.attention)
            except (ValueError, RuntimeError, ImportError) as error:
                raise UserError(
                    f"model.attention: diffusers cannot use {options.attention!r} here: "
                    f"{one_line(error)}"
                ) from error
        if options.gradient_checkpointing:
            found.enable_gradient_checkpointing()
        return found.to(self.device).eval()

    def _network(self, kind: Any, folder: Path, dtype: torch.dtype) -> Any:
        """A part with its weights; on the meta device without."""
        return (hollow if self.device.type == "meta" else whole)(kind, folder, dtype)

    def prepare(self) -> None:
        """Set latent_shape and what else forwards need; the denoiser may be missing."""
        raise NotImplementedError

    @abstractmethod
    def texts(self, texts: list[str]) -> dict[str, Tensor]:
        """Encodings of n texts, n rows each; what varies in length pads with zeros at the end, on
        dimension 1."""

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """`velocity` without guidance; cond as `texts` gives it."""

    @abstractmethod
    def pixels(self, x0: Tensor) -> Tensor:
        """Latents [b, *S], at most decode_batch, to pixels −1 … 1 [b, 3, F, H, W]."""

    @abstractmethod
    def tokenize(self, texts: list[str]) -> tuple[list[int], int]:
        """Lengths of the texts in tokens of the longest encoder, and how many it takes."""

    @abstractmethod
    def probe_texts(
        self, rows: int, generator: torch.Generator, length: int = 8
    ) -> dict[str, Tensor]:
        """Random arrays as `texts` gives them, of `length` tokens at most."""

    def guide(self, wanted: Tensor, unwanted: Tensor) -> Tensor:
        """Classifier-free guidance of two velocities."""
        return unwanted + self.options.true_cfg * (wanted - unwanted)

    @property
    def decoder(self) -> nn.Module | None:
        found: nn.Module | None = self.pipe.vae
        return found

    def in_evaluation(self, height: int, width: int) -> Adapter:
        options = self.options.in_evaluation(height, width)
        if options == self.options:
            return self
        found = copy(self)
        found.options, found.decoding = options, Decoding(options.decode_batch)
        found.prepare()
        return found

    def encode(self, samples: list[Sample]) -> Conditioning:
        options, count = self.options, len(samples)
        negatives = [unwanted(options, sample) for sample in samples] if options.guided else []
        # mostly one for all
        different = {(one.prompt, one.images): one for one in negatives}
        with self.offloaded.on_device():
            rows = self.rows([*(seen(options, one) for one in samples), *different.values()])
        if negatives:
            order = {key: count + index for index, key in enumerate(different)}
            places = [order[one.prompt, one.images] for one in negatives]
            rows = pair(
                {name: array[:count] for name, array in rows.items()},
                {name: array[places] for name, array in rows.items()},
            )
        return packed(rows, count)

    def rows(self, shown: list[Sample]) -> dict[str, Tensor]:
        """Encodings of n of models.texts.seen, n rows each. Families that take pictures override
        it."""
        return self.texts([sample.prompt for sample in shown])

    def truncated(self, samples: list[Sample]) -> int:
        lengths, limit = self.tokenize([sample.prompt for sample in samples])
        return sum(length > limit for length in lengths)

    def velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        if not self.options.guided:
            return self.forward(x, sigma, cond)
        return self.guide(*self.both(x, sigma, cond))

    def both(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The velocities, wanted and unwanted, that guidance goes by: one batch."""
        import torch

        twice = {name: torch.cat([array[:, 0], array[:, 1]]) for name, array in cond.items()}
        return self.forward(torch.cat([x, x]), torch.cat([sigma, sigma]), twice).chunk(2)

    def without_gradient(self) -> AbstractContextManager[None]:
        if not self.options.compile:
            return super().without_gradient()
        from branchgrpo.models.compiled import as_in_training

        return as_in_training(self.denoiser, self.options.gradient_checkpointing)

    def decode(self, x0: Tensor) -> U8:
        found = self.decoding.run(self.pixels, x0)
        self.decodings_halved = self.decoding.halved
        return found

    def fingerprint_conditioning(self, rows: int, length: int = 8) -> dict[str, Tensor]:
        import torch

        texts = self.probe_texts(rows, torch.Generator().manual_seed(1), length)
        found = {name: array.to(self.device) for name, array in texts.items()}
        return (
            found
            if not self.options.guided
            else {name: torch.stack([array, array.flip(0)], 1) for name, array in found.items()}
        )

    def save(self, folder: Path, source: Path, form: str, shift: float | None = None) -> None:
        learning = self.learning()
        if form == "lora":
            for part, module in learning.items():
                lora.save(folder / lora.file_of(part), module, self.options.lora_alphas)
            return
        if form == "pipeline":
            index = json_file("model.path", source / "model_index.json")
            # others are single-file copies of the weights
            kept = {"model_index.json", *index} - learning.keys()
            copytree(
                source,
                folder,
                ignore=lambda at, names: [
                    name for name in names if Path(at) == source and name not in kept
                ],
                dirs_exist_ok=True,
            )
            # so that the stock pipeline's own call has the schedule of training
            if shift is not None:
                (folder / SCHEDULER).unlink()
                (folder / SCHEDULER).write_text(
                    json.dumps(self.options.scheduler_config(shift), indent=2) + "\n",
                    encoding="utf-8",
                )
        whole = {part: folder / part for part in learning}
        places = whole if form == "pipeline" else self.options.denoisers_in(folder)
        for part, module in learning.items():
            if self.adapted:  # a stock pipeline loads plain weights: merge the adapters into a copy
                module = deepcopy(module)
                module.fuse_lora()
                module.unload_lora()
            module.save_pretrained(places[part])


def whole(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network with every weight from its files. Raises UserError where some are missing, or of
    another shape."""
    try:
        found, told = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"model.path: {folder} does not fit {kind.__name__}: {one_line(error)}"
        ) from error
    wrong = sorted(str(name) for name in [*told["missing_keys"], *told["mismatched_keys"]])
    if wrong:
        raise UserError(
            f"model.path: expected all weights of {kind.__name__} in {folder}, which lacks "
            f"{len(wrong)} of them, as {wrong[0]}"
        )
    return found
