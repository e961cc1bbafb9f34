"""GenEval's rules over a detector of transformers' classes, with CLIP for colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from branchgrpo.errors import UserError, one_line
from branchgrpo.models.files import check_weights, json_file
from branchgrpo.rewards.base import Footprint, Refusal, Resources, RewardOptions, Scorer, evenly
from branchgrpo.rewards.common.checkpoints import given
from branchgrpo.rewards.common.clip import check_clip
from branchgrpo.rewards.geneval.colours import KEY as CLIP
from branchgrpo.rewards.geneval.colours import Colours
from branchgrpo.rewards.geneval.rules import BadTask, Detection, judged, task_of
from branchgrpo.types import F32, U8, Sample

if TYPE_CHECKING:
    from torch import nn

DETECTOR = "rewards.geneval.detector"


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
        self.colours = Colours(options.clip, options.dtype, device) if options.clip else None

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

    def __init__(self, colours: Colours | None, picture: U8):
        self.colours, self.picture = colours, picture

    def __call__(self, objects: Sequence[Detection], name: str) -> Sequence[str]:
        assert self.colours is not None  # refused otherwise
        return self.colours.of(self.picture, objects, name)


def _class_of(masks: bool) -> Any:
    from transformers import AutoModelForObjectDetection, AutoModelForUniversalSegmentation

    return AutoModelForUniversalSegmentation if masks else AutoModelForObjectDetection


def _box(mask: Any) -> tuple[float, float, float, float] | None:
    """Around what a mask [H, W] covers; None where that is nothing."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
