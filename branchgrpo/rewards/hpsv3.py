"""HPSv3 (Ma et al. 2025, https://arxiv.org/abs/2508.03789): human preference, learnt by fine-tuning
Qwen2-VL-7B.

The picture and a text that ends in the token <|Reward|> go through Qwen2-VL; a head of three layers
reads the last hidden state at that token and gives the mean of a preference, which is the score,
and the logarithm of its variance. As in the published inference, a picture is resized (Pillow's
bicubic) to sides that are multiples of 28, of about 256 × 28 × 28 pixels, whatever its size;
positions count tokens; the head computes in float32.

The published text is not part of this package: `template` names the published module that holds it,
or a file with it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from branchgrpo.errors import UserError, one_line
from branchgrpo.rewards.base import (
    BYTES,
    Footprint,
    PictureOptions,
    PictureScorer,
    Refusal,
    Resources,
)
from branchgrpo.rewards.common.checkpoints import check_checkpoint, fit, given, read_state
from branchgrpo.rewards.common.qwen2_vl import (
    EMBEDDING,
    Reader,
    base_folder,
    check_base,
    checked_template,
    filled,
    own_names,
    refusal,
)
from branchgrpo.types import F32, U8, Sample

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

KEY = "rewards.hpsv3"
FILE = "HPSv3.safetensors"
TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28
PARTS = ("INSTRUCTION", "prompt_with_special_token")
"""The published module's names of the text's two halves."""


class HpsV3Reward(PictureOptions):
    """Score: the mean of the preference. `path` holds the published file, HPSv3.safetensors, with
    the weights of the whole network and of its head (`rm_head.…`); `base` what else the network
    needs."""

    file_keys: ClassVar[tuple[str, ...]] = ("path", "base", "template")

    name: Literal["hpsv3"] = Field("hpsv3", description="the reward")
    path: str = Field("", description="folder with HPSv3.safetensors, or that file")
    base: str = Field(
        "",
        description="Qwen2-VL folder with config, tokenizer and processor "
        "(Qwen2-VL-7B-Instruct; its weights are not read); empty: path",
    )
    template: str = Field(
        "",
        description="the text around a prompt: hpsv3/dataset/data_collator_qwen.py of the "
        "published package, whose text is read and nothing run; or a text file with {text_prompt} "
        "and <|Reward|>",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "bfloat16", description="dtype of the weights and of the forward pass"
    )
    batch: int = Field(8, ge=1, description="pictures per forward")

    def check(self) -> None:
        file, base = self.files()
        check_checkpoint(f"{KEY}.path", file)
        check_base(KEY, base)
        self.text()

    def refusal(self, sample: Sample, height: int, width: int) -> Refusal | None:
        del height, width
        return refusal(sample)

    def files(self) -> tuple[Path, Path]:
        """The checkpoint and the base's folder. Raises UserError for one that is missing."""
        found = given(f"{KEY}.path", self.path, f"a folder with {FILE}")
        file = found / FILE if found.is_dir() else found
        if not file.is_file():
            raise UserError(f"{KEY}.path: expected {FILE} in {found}, found none")
        return file, base_folder(KEY, self.base, file.parent)

    def text(self) -> str:
        """The template. Raises UserError unless it holds the prompt's place and the token once."""
        what = "hpsv3/dataset/data_collator_qwen.py of the package hpsv3, or a text file"
        path = given(f"{KEY}.template", self.template, what)
        try:
            source = path.read_text(encoding="utf-8")
            text = in_module(source, path) if path.suffix == ".py" else source
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{KEY}.template: expected {what}: {one_line(error)}") from error
        return checked_template(KEY, self.template, text, [TOKEN])

    def footprint(self, frames: int) -> Footprint:
        # Qwen2-VL-7B without its language head: 7.07 B numbers read 256 tokens of a picture and
        # some 550 of text, 0.68 B see its patches
        tokens, each = PIXELS // (28 * 28) + 550, BYTES[self.dtype]
        return Footprint(
            weights=each * 7.75e9,
            activations=each * 2.0 * self.batch * tokens * 18944,
            flops=min(frames, self.frames) * (2 * 6.53e9 * tokens + 2 * 0.68e9 * 4 * 256),
        )

    def shrunk(self, folder: Path) -> Self | None:
        from branchgrpo.rewards.small.hpsv3 import save_hpsv3

        return self.model_copy(update=save_hpsv3(folder))

    def build(self, resources: Resources) -> HpsV3:
        return HpsV3(self, resources.device)


def in_module(source: str, path: Path) -> str:
    """The text of a published module, which is not run. Raises ValueError where it has none."""
    found = {
        target.id: node.value.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    halves = [found.get(name) for name in PARTS]
    if not all(isinstance(half, str) for half in halves):
        raise ValueError(f"{path} has no texts {' and '.join(PARTS)}")
    return "".join(map(str, halves))


class HpsV3(PictureScorer):
    """The loaded network."""

    def __init__(self, options: HpsV3Reward, device: str):
        from torch import nn

        super().__init__(options)
        file, base = options.files()
        state = own_names(read_state(f"{KEY}.path", file))
        head = {name: state.pop(name) for name in [*state] if name.startswith("rm_head.")}
        if not head or EMBEDDING not in state:
            raise UserError(
                f"{KEY}.path: expected rm_head.… and a Qwen2-VL's weights in {file}, got "
                f"{len(head)} of the head and {len(state)} others"
            )
        self.template = options.text()
        self.reader = Reader(
            KEY,
            path=file,
            base=base,
            state=state,
            tokens=[TOKEN],
            dtype=options.dtype,
            device=device,
        )
        hidden = state[EMBEDDING].shape[1]
        self.head = nn.Sequential(
            *(nn.Linear(hidden, 1024), nn.ReLU(), nn.Dropout(0.05)),
            *(nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)),
        )
        fit(
            f"{KEY}.path",
            path=file,
            module=self.head,
            state={name.removeprefix("rm_head."): value.float() for name, value in head.items()},
        )
        self.head.eval().requires_grad_(False).to(device)

    def networks(self) -> Iterable[nn.Module]:
        return (self.reader.model, self.head)

    def pictures(self, pictures: U8, prompts: list[str]) -> F32:
        states = self.reader.states(
            [filled(KEY, self.template, prompt) for prompt in prompts],
            "image",
            images=[resized(picture) for picture in pictures],
        )
        scores: F32 = self.head(states)[:, 0, 0].cpu().numpy()
        return scores


def resized(picture: U8) -> Image:
    """A picture u8 [H, W, 3] with sides that are multiples of 28, of about PIXELS pixels."""
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    found = Image.fromarray(picture)
    size = smart_resize(*picture.shape[:2], factor=28, min_pixels=PIXELS, max_pixels=PIXELS)
    return found.resize(size[::-1], Image.Resampling.BICUBIC)
