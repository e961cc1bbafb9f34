"""Keys that all models of diffusers have: size, guidance, LoRA, memory, text."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from branchgrpo.models.base import ModelOptions


class PipelineKeys(ModelOptions):
    """What a config may say of a model that one of diffusers' pipelines loads."""

    computing: ClassVar[tuple[str, ...]] = (
        "gradient_checkpointing",
        "compile",
        "attention",
        "vae_tiling",
        "decode_batch",
        "encode",
        "encodings",
        *ModelOptions.computing,
    )

    height: int = Field(720, ge=16, description="picture height in pixels")
    width: int = Field(720, ge=16, description="picture width in pixels")
    true_cfg: float = Field(
        1.0,
        ge=1,
        description="classifier-free guidance, away from negative_prompt, in rollouts and "
        "training; 1 = none",
    )
    negative_prompt: str = Field("", description="true_cfg guides away from it or a record's own")
    lora_rank: int = Field(
        0, ge=0, description="train LoRA adapters of this rank; 0 = train all weights"
    )
    lora_alpha: int = Field(0, ge=0, description="their scale is alpha / rank; 0 = twice the rank")
    lora_targets: tuple[str, ...] = Field(
        (),
        description="names of the layers they go into; empty = the family's attention projections",
    )
    lora_path: str = Field(
        "",
        description="begin with this adapter: a safetensors file or a folder with one, of the "
        "same rank, alpha and layers; empty: a new one",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="the learner keeps no activations inside a block and computes them again: "
        "less memory, more time",
    )
    compile: bool = Field(
        False,
        description="torch.compile of the denoiser's repeated blocks; the first forward takes "
        "minutes",
    )
    attention: str = Field(
        "",
        description="diffusers' attention backend, as flash or _native_cudnn; empty: diffusers' "
        "default",
    )
    vae_tiling: bool = Field(False, description="decode in tiles: less memory, faint seams")
    decode_batch: int = Field(
        16,
        ge=1,
        description="pictures or videos the autoencoder decodes at once; halved where they don't "
        "fit into a GPU's memory",
    )
    encode: Literal["inline", "precompute"] = Field(
        "inline",
        description="text encoders in every rollout worker, or all prompts once before training",
    )
    encodings: str = Field(
        "encodings",
        description="where precompute keeps them; one folder for each model and set of text keys "
        "below it",
    )
