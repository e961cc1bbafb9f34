"""The text around a prompt that Qwen2-VL reads."""

from __future__ import annotations

TOKENS = {"vq": "<|VQ_reward|>", "mq": "<|MQ_reward|>", "ta": "<|TA_reward|>"}

TEMPLATE = """
Rate a generated video by three criteria, each on its own, from 0 (worst) to 10 (best).

Visual quality: how sharp, detailed, plausible and well composed single frames are. \
Broken bodies, impossible scenes and harmful content are worst.
Rating of visual quality: <|VQ_reward|>

Motion quality: how stable, natural, smooth and clear the motion is from frame to frame. \
A video in which hardly anything moves rates low.
Rating of motion quality: <|MQ_reward|>

Text alignment: how well subjects, actions, surroundings, style and camera follow the prompt.
Prompt: {text_prompt}
Rating of text alignment: <|TA_reward|>
"""
