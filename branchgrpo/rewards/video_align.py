"""VideoReward of VideoAlign (Liu et al. 2025, https://arxiv.org/abs/2501.13918): visual quality,
motion quality and text alignment of a video from Qwen2-VL.

The video and a text that holds one special token per criterion go through Qwen2-VL; a linear head
without bias reads the last hidden state at these tokens, and each score is normalised by a mean and
a standard deviation. As in the published inference, rotary positions count tokens (they are not
Qwen2-VL's own three-dimensional ones), frames are sampled evenly at `fps`, and each is resized to a
multiple of 28 × 28 pixels of 100,352 to `max_pixels` pixels.

The published text (`detailed_special` in VideoAlign's prompt_template.py) is not part of this
package: the default template asks for the same three criteria in other words. **For the published
scores, put that text, with its line breaks, into a file and name it in `template`.**
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Footprint, Refusal, Resources, RewardOptions, Scorer, existing
from branchgrpo.rewards.common.checkpoints import given
from branchgrpo.rewards.common.qwen2_vl import (
    EMBEDDING,
    Reader,
    base_folder,
    check_base,
    checked_template,
    filled,
    refusal,
)
from branchgrpo.rewards.http import limits
from branchgrpo.rewards.video_align_files import (
    KEY,
    model_config,
    normal,
    weights,
    weights_file,
)
from branchgrpo.rewards.video_align_text import TEMPLATE, TOKENS
from branchgrpo.types import F32, U8, Sample

if TYPE_CHECKING:
    from torch import Tensor, nn

Score = Literal["overall", "vq", "mq", "ta"]
MIN_PIXELS = 128 * 28 * 28
MIN_FRAMES, MAX_FRAMES = 4, 768
PAIR = 2  # Qwen2-VL sees frames in pairs


class VideoAlignReward(RewardOptions):
    """Scores: vq, mq, ta (normalised) and overall, their sum. A picture is scored as a video that
    stands still.

    `path` holds either merged weights (*.safetensors, with `rm_head.weight`) or the published
    layout: model.pth, or checkpoint-N/model.pth of which the highest N counts, with LoRA weights
    that are merged on loading, and model_config.json, which says how.
    """

    file_keys: ClassVar[tuple[str, ...]] = ("path", "base", "template")

    name: Literal["video_align"] = Field("video_align", description="the reward")
    path: str = Field("", description="folder of the VideoReward checkpoint")
    base: str = Field(
        "",
        description="Qwen2-VL folder with config, tokenizer and processor "
        "(Qwen2-VL-2B-Instruct); empty: path",
    )
    template: str = Field(
        "",
        description="file of the text around a prompt, with {text_prompt} and the three special "
        "tokens; empty: our own wording",
    )
    train_on: Score = Field("overall", description="the score that trains")
    report: tuple[Score, ...] = Field(
        ("overall", "vq", "mq", "ta"), min_length=1, description="the scores that are reported"
    )
    video_fps: float = Field(16.0, gt=0, description="frames per second of the videos")
    fps: float = Field(
        2.0, gt=0, description="frames per second that are scored, at least 4 frames in all"
    )
    frames: int = Field(0, ge=0, description="score this many frames instead, made even; 0: by fps")
    max_pixels: int = Field(
        200704, ge=MIN_PIXELS, description="pixels of a frame after resizing, at most"
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "bfloat16", description="dtype of the weights and of the forward pass"
    )
    batch: int = Field(4, ge=1, description="videos per forward")

    def reported(self) -> tuple[str, ...]:
        return self.report

    def check(self) -> None:
        folder, base = self.folders()
        weights_file(folder)
        check_base(KEY, base)
        self.text()

    def refusal(self, sample: Sample, height: int, width: int) -> Refusal | None:
        del height, width
        return refusal(sample)

    def folders(self) -> tuple[Path, Path]:
        """The checkpoint's folder and the base's. Raises UserError for one that is missing."""
        folder = given(f"{KEY}.path", self.path, "a VideoReward folder")
        return folder, base_folder(KEY, self.base, folder)

    def text(self) -> str:
        """The template. Raises UserError unless it holds the prompt's place and each special token
        once."""
        if not self.template:
            return TEMPLATE
        text = existing(f"{KEY}.template", self.template, "a text file").read_text(encoding="utf-8")
        return checked_template(KEY, self.template, text, list(TOKENS.values()))

    def footprint(self, frames: int) -> Footprint:
        # Qwen2-VL-2B: 1.54 B read a token for four patches of two frames, and some 500 of text;
        # 0.67 B see the patches
        shown = max(MIN_FRAMES, self.frames or int(frames / self.video_fps * self.fps))
        tokens = shown // PAIR * self.max_pixels // (28 * 28)
        each = 4 if self.dtype == "float32" else 2
        return Footprint(
            weights=each * 2.21e9,
            activations=each * 8.0 * self.batch * 4 * tokens * 1280,
            flops=2 * 1.54e9 * (tokens + 500) + 2 * 0.67e9 * 4 * tokens,
        )

    def shrunk(self, folder: Path) -> Self | None:
        from branchgrpo.rewards.small.video_align import save_video_align

        return self.model_copy(update=save_video_align(folder))

    def build(self, resources: Resources) -> VideoAlign:
        return VideoAlign(self, resources.device)


class VideoAlign(Scorer):
    """The loaded network. The head runs in float32 whatever the dtype: in bfloat16 scores would
    come in steps of 1/64."""

    def __init__(self, options: VideoAlignReward, device: str):
        from transformers import AutoConfig

        folder, base = options.folders()
        hidden = AutoConfig.from_pretrained(check_base(KEY, base)).text_config.hidden_size
        training = model_config(folder)
        state = weights(folder, training)
        head = state.pop("rm_head.weight", None)
        embedding = state.get(EMBEDDING)
        if head is None or tuple(head.shape) not in ((1, hidden), (3, hidden)) or embedding is None:
            got = "none" if head is None or embedding is None else tuple(head.shape)
            raise UserError(
                f"{KEY}.path: expected rm_head.weight [1 or 3, {hidden}] and a Qwen2-VL's "
                f"weights in {folder}, got {got}"
            )
        self.options = options
        self.head = head.float().to(device)
        self.template = options.text()
        self.trains_on, self.reports = options.train_on, options.report
        self.normal = normal(training)
        self.reader = Reader(
            KEY,
            path=folder,
            base=base,
            state=state,
            tokens=list(TOKENS.values()),
            dtype=options.dtype,
            device=device,
        )
        # frames come resized
        self.reader.processor.video_processor.cap_pixels_per_frame = False

    def networks(self) -> Iterable[nn.Module]:
        return (self.reader.model,)

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        chosen = sampled(pixels.shape[1], self.options)
        each = len(chosen) * max(MIN_PIXELS, pixels.shape[2] * pixels.shape[3])
        rows = limits.batches(len(pixels), self.options.batch, each)
        prompts = [sample.prompt for sample in samples]
        parts = [self._criteria(pixels[part][:, chosen], prompts[part]) for part in rows]
        raw = np.concatenate(parts)
        scores = {
            name: (raw[:, place] - mean) / std
            for place, (name, (mean, std)) in enumerate(self.normal.items())
        }
        return {"overall": sum(scores.values(), np.zeros(len(pixels), np.float32)), **scores}

    def _criteria(self, videos: U8, prompts: list[str]) -> F32:
        """The head's numbers [B, 3] for videos u8 [B, F, H, W, 3]."""
        found = self.reader.states(
            [filled(KEY, self.template, prompt) for prompt in prompts],
            "video",
            videos=[resized(video, self.options.max_pixels) for video in videos],
            videos_kwargs={"do_resize": False},
        )
        rows = self.head.expand(3, -1)  # one row for all three, or one each
        raw: F32 = (found * rows).sum(-1).cpu().numpy()
        return raw


def sampled(count: int, options: VideoAlignReward) -> list[int]:
    """Which of a video's frames are scored: evenly spaced from the first to the last, an even
    number where there are two."""
    import torch

    if options.frames:
        wanted = max(PAIR, round(options.frames / PAIR) * PAIR)
    else:
        at_most = min(MAX_FRAMES, count) // PAIR * PAIR
        wanted = (
            round(min(max(count / options.video_fps * options.fps, MIN_FRAMES), at_most) / PAIR)
            * PAIR
        )
    places: list[int] = (
        torch.linspace(0, count - 1, max(1, min(wanted, count))).round().long().tolist()
    )
    return places


def resized(video: U8, max_pixels: int) -> Tensor:
    """Frames [F, 3, h, w] of a video u8 [F, H, W, 3], values 0 … 255: sides multiples of 28, area
    between the bounds, bicubic."""
    import torch
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    x = torch.from_numpy(np.ascontiguousarray(video)).permute(0, 3, 1, 2).float()
    size = smart_resize(
        x.shape[2], x.shape[3], factor=28, min_pixels=MIN_PIXELS, max_pixels=max_pixels
    )
    return (
        torch.nn.functional.interpolate(
            x, size=size, mode="bicubic", align_corners=False, antialias=True
        )
        .clamp(0, 255)
        .round()
    )
