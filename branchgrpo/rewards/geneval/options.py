"""GenEval's rules over a detector of transformers' classes, with CLIP for colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from branchgrpo.errors import UserError, one_line
from branchgrpo.models.files import check_weights, json_file
from branchgrpo.rewards.base import Footprint, Refusal, Resources, RewardOptions, Scorer, evenly
from branchgrpo.rewards.common.checkpoints import given
from branchgrpo.rewards.common.clip import check_clip
from branchgrpo.rewards.geneval.rules import COLOURS, BadTask, Detection, judged, task_of
from branchgrpo.types import F32, U8, Sample

if TYPE_CHECKING:
    from torch import nn

DETECTOR, CLIP = "rewards.geneval.detector", "rewards.geneval.clip"

GREY = 153
"""What is around an object that a mask cuts out."""

PHRASES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
"""What a picture of an object of a colour is called; features are means over them."""


class GenEvalReward(RewardOptions):
    """Scores: `score`, the share of what the record's metadata ask for; `strict`, 1 where all is
    there, as GenEval reports it. A video's scores are means over some of its frames."""

    file_keys: ClassVar[tuple[str, ...]] = ("detector", "clip")

    name: Literal["geneval"] = Field("geneval", description="the reward")
    detector: str = Field(
        "",
        description="folder of a detector that transformers loads, as DETR or Mask2Former on COCO",
    )
    clip: str = Field(
        "", description="folder of a transformers CLIPModel, for colours; empty: none are asked for"
    )
    train_on: Literal["score", "strict"] = Field("score", description="the score that trains")
    threshold: float = Field(0.3, gt=0, lt=1, description="confidence of an object that counts")
    counting_threshold: float = Field(
        0.9, gt=0, lt=1, description="the same for records with the tag counting"
    )
    most: int = Field(16, ge=1, description="objects of a class that are looked at, the surest")
    batch: int = Field(8, ge=1, description="pictures per forward of the detector")
    frames: int = Field(
        4,
        ge=1,
        description="frames of a video that are scored, evenly spaced; more than it has: all",
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype of both networks")

    def reported(self) -> tuple[str, ...]:
        return "strict", "score"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names that the detector has for what it finds."""
        found = json_file(DETECTOR, self._detector() / "config.json").get("id2label")
        if not isinstance(found, dict) or not found:
            raise UserError(f"{DETECTOR}: expected id2label in {self.detector}/config.json")
        return tuple(str(name) for name in found.values())

    def _detector(self) -> Path:
        return given(DETECTOR, self.detector, "a folder of a detector that transformers loads")

    def check(self) -> None:
        check_weights(DETECTOR, self._detector())
        _ = self.classes
        if self.clip:
            check_clip(CLIP, self.clip)

    def refusal(self, sample: Sample, height: int, width: int) -> Refusal | None:
        del height, width
        try:
            task = task_of(sample.metadata, self.classes)
        except BadTask as error:
            return Refusal("metadata that are no GenEval task", f"{error}: {sample.prompt!r}")
        if not self.clip and any(wanted.color for wanted in task.include):
            return Refusal("a colour, for which geneval.clip is needed", repr(sample.prompt))
        return None

    def footprint(self, frames: int) -> Footprint:
        del frames
        folders = [Path(one).expanduser() for one in (self.detector, self.clip) if one]
        files = [path for folder in folders for path in folder.glob("*.safetensors")]
        return Footprint(weights=float(sum(path.stat().st_size for path in files)))

    def build(self, resources: Resources) -> GenEval:
        self.check()
        return GenEval(self, resources.device)


class GenEval(Scorer):
    """The loaded networks."""

    def __init__(self, options: GenEvalReward, device: str):
        import torch
        from transformers import AutoConfig, AutoImageProcessor

        self.options, self.device = options, device
        self.trains_on, self.reports = options.train_on, options.reported()
        self.dtype = getattr(torch, options.dtype)
        folder = options._detector()
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self.masks = "segment" in " ".join(config.architectures or ()).lower()
        kind = _class_of(self.masks)
        try:
            self.processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self.detector: Any = kind.from_pretrained(
                folder, dtype=self.dtype, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, ImportError) as error:  # Mask2Former's classes need scipy
            raise UserError(
                f"{DETECTOR}: transformers cannot load {folder}: {one_line(error)}"
            ) from error
        self.detector.eval().to(device)
        self.names: dict[int, str] = dict(enumerate(options.classes))
        self.colours = _Colours(options, device) if options.clip else None

    def networks(self) -> Iterable[nn.Module]:
        yield self.detector
        if self.colours:
            yield self.colours.model

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        chosen = evenly(pixels.shape[1], self.options.frames)
        flat = pixels[:, chosen].reshape(-1, *pixels.shape[2:])
        tasks = [task_of(sample.metadata, self.options.classes) for sample in samples]
        found = [
            one
            for first in range(0, len(flat), self.options.batch)
            for one in self.detect(flat[first : first + self.options.batch])
        ]
        verdicts = []
        for index, (picture, objects) in enumerate(zip(flat, found, strict=True)):
            task = tasks[index // len(chosen)]
            least = self.options.counting_threshold if task.counting else self.options.threshold
            classes = {
                name: [one for one in many if one.confidence > least][: self.options.most]
                for name, many in objects.items()
            }
            verdicts.append(judged(task, classes, _Named(self.colours, picture)))
        shape = len(pixels), len(chosen)
        return {
            "score": np.array([one.share for one in verdicts], np.float32).reshape(shape).mean(1),
            "strict": np.array([one.correct for one in verdicts], np.float32)
            .reshape(shape)
            .mean(1),
        }

    def detect(self, pictures: U8) -> list[dict[str, list[Detection]]]:
        """Objects of each class in pictures u8 [B, H, W, 3], the surest first."""
        import torch

        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        with torch.inference_mode():
            out = self.detector(**inputs)
        sizes = [picture.shape[:2] for picture in pictures]
        least = min(self.options.threshold, self.options.counting_threshold)
        found = []
        for boxes, scores, labels, masks in self._instances(out, sizes, least):
            classes: dict[str, list[Detection]] = {}
            for place in np.argsort(-scores, kind="stable"):
                box, mask = tuple(boxes[place].tolist()), masks[place] if masks else None
                one = Detection(box, float(scores[place]), mask)
                classes.setdefault(self.names[int(labels[place])], []).append(one)
            found.append(classes)
        return found

    def _instances(self, out: Any, sizes: Sequence[Any], least: float) -> Iterable[_Instances]:
        """Of each picture: boxes [n, 4], confidences [n], classes [n] and perhaps n masks."""
        if not self.masks:
            for one in self.processor.post_process_object_detection(
                out, threshold=least, target_sizes=sizes
            ):
                boxes, scores = one["boxes"].float().cpu(), one["scores"].float().cpu()
                yield boxes.numpy(), scores.numpy(), one["labels"].cpu().numpy(), []
            return
        for one in self.processor.post_process_instance_segmentation(
            out, threshold=least, target_sizes=sizes, return_binary_maps=True
        ):
            maps = one["segmentation"] if one["segments_info"] else ()
            there = [
                (box, info["score"], info["label_id"], mask)
                for info, mask in zip(one["segments_info"], np.asarray(maps) > 0, strict=True)
                if (box := _box(mask)) is not None
            ]
            yield (
                np.array([box for box, *_ in there], np.float32).reshape(-1, 4),
                np.array([score for _, score, *_ in there], np.float32),
                np.array([label for _, _, label, _ in there], int),
                [mask for *_, mask in there],
            )


_Instances = tuple[F32, F32, Any, list[Any]]


class _Named:
    """Names the colours of objects in one picture."""

    def __init__(self, colours: _Colours | None, picture: U8):
        self.colours, self.picture = colours, picture

    def __call__(self, objects: Sequence[Detection], name: str) -> Sequence[str]:
        assert self.colours is not None  # refused otherwise
        return self.colours.of(self.picture, objects, name)


class _Colours:
    """CLIP, asked which colour an object has."""

    def __init__(self, options: GenEvalReward, device: str):
        import torch
        from transformers import CLIPModel, CLIPProcessor

        folder = check_clip(CLIP, options.clip)
        self.device, self.dtype = device, getattr(torch, options.dtype)
        self.model: Any = CLIPModel.from_pretrained(
            folder, dtype=self.dtype, local_files_only=True, use_safetensors=True
        )
        self.model.eval().to(device)
        self.processor: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        self.known: dict[str, Any] = {}

    def of(self, picture: U8, objects: Sequence[Detection], name: str) -> list[str]:
        """The most likely of COLOURS of each object."""
        import torch
        from torch.nn.functional import normalize

        crops = [_cut_out(picture, one) for one in objects]
        inputs = self.processor(images=crops, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            seen = normalize(
                _features(
                    self.model.get_image_features(
                        pixel_values=inputs["pixel_values"].to(self.dtype)
                    )
                ).float(),
                dim=-1,
            )
            best = (seen @ self._texts(name).T).argmax(1).tolist()
        return [COLOURS[index] for index in best]

    def _texts(self, name: str) -> Any:
        """[colours, D] features of what objects of a class are called, in each colour."""
        import torch
        from torch.nn.functional import normalize

        if name not in self.known:
            texts = [phrase.format(colour, name) for colour in COLOURS for phrase in PHRASES]
            inputs = self.processor(
                text=texts, padding=True, truncation=True, return_tensors="pt"
            ).to(self.device)
            with torch.inference_mode():
                found = normalize(_features(self.model.get_text_features(**inputs)).float(), dim=-1)
            means = found.reshape(len(COLOURS), len(PHRASES), -1).mean(1)
            self.known[name] = normalize(means, dim=-1)
        return self.known[name]


def _features(found: Any) -> Any:
    """Newer transformers wrap them."""
    return getattr(found, "pooler_output", found)


def _class_of(masks: bool) -> Any:
    from transformers import AutoModelForObjectDetection, AutoModelForUniversalSegmentation

    return AutoModelForUniversalSegmentation if masks else AutoModelForObjectDetection


def _box(mask: Any) -> tuple[float, float, float, float] | None:
    """Around what a mask [H, W] covers; None where that is nothing."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _cut_out(picture: U8, one: Detection) -> Image.Image:
    """An object alone: what is around it in its box is grey, where there is a mask."""
    if one.mask is not None:
        picture = np.where(one.mask[..., None], picture, np.uint8(GREY))
    return Image.fromarray(picture).crop(_whole(one.box, picture))


def _whole(box: Sequence[float], picture: U8) -> tuple[int, int, int, int]:
    """A box in whole pixels, within the picture, of at least one."""
    height, width = picture.shape[:2]
    left = min(max(0, int(box[0])), width - 1)
    upper = min(max(0, int(box[1])), height - 1)
    right = min(width, max(left + 1, round(box[2])))
    lower = min(height, max(upper + 1, round(box[3])))
    return left, upper, right, lower
