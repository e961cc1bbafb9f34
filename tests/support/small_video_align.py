"""A small Qwen2-VL with VideoAlign's head, in the folders that the reward reads."""

from __future__ import annotations

from pathlib import Path

from branchgrpo.rewards.small.video_align import processor, small_config, small_model
from branchgrpo.rewards.video_align import VideoAlignReward

TEXT = "\nvisual <|VQ_reward|>\nmotion <|MQ_reward|>\nprompt - {text_prompt} <|TA_reward|>\n"


def options(folder: Path, name: str = "one", **more: object) -> VideoAlignReward:
    given = {
        "path": str(folder / name),
        "base": str(folder / "base"),
        "template": str(folder / "template.txt"),
        "dtype": "float32",
    }
    return VideoAlignReward(**(given | more))


def written(at: Path) -> Path:
    """Folders base, one (a head of 1 row) and three (a head of 3), and a template."""
    made = processor()
    made.save_pretrained(at / "base")
    small_config(made, 400).save_pretrained(at / "base")  # a larger vocabulary than training leaves
    for name, outputs in (("one", 1), ("three", 3)):
        small_model(made, outputs).save_pretrained(at / name)
    (at / "template.txt").write_text(TEXT, encoding="utf-8")
    return at
