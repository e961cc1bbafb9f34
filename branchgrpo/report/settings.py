"""How held-out pictures were drawn: what a score depends on beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from branchgrpo.config.schema import Config
from branchgrpo.models.pipeline_options import PipelineModel

SAMPLER = "Euler"
"""Of every held-out picture: the deterministic steps of algo.plan.ode_plan."""


def settings(config: Config) -> dict[str, Any]:
    """Which prompts, sampler, steps, size in pixels, guidance by the stock pipeline's names, seed
    and weights."""
    model = config.evaluated
    height, width = model.picture_size
    found: dict[str, Any] = {
        "prompts": config.held_out,
        "sampler": SAMPLER,
        "steps": config.evaluation_steps,
        "height": height,
        "width": width,
        "frames": model.frames_drawn,
        "guidance": {},
        "shift": config.sampling.shift,
        "weights": config.evaluation.weights,
        "seed": config.run.seed,
    }
    if isinstance(model, PipelineModel):
        told = model.stock_call() | model.stock_guidance()
        found["guidance"] = {
            key: value for key, value in told.items() if "guidance" in key or "cfg" in key
        }
    return found


def words(found: Mapping[str, Any]) -> str:
    """The same in a few words, to stand beside a number."""
    parts = [f"{found['steps']} {found['sampler']} steps"]
    if found["height"]:
        frames = f", {found['frames']} frames" if found["frames"] > 1 else ""
        parts.append(f"{found['height']}×{found['width']}{frames}")
    parts += [f"{name} {value:g}" for name, value in found["guidance"].items()]
    if found["shift"] is not None:
        parts.append(f"shift {found['shift']:g}")
    return ", ".join(parts)
