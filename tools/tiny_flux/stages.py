"""The order of the training stages and the work folder that lets an interrupted run resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from branchgrpo.models.small.flux import TinyFluxSizes, make_tiny_flux, sizes_as_dict
from tools.tiny_flux.autoencoder import (
    encode_pictures,
    reconstruction_psnr,
    set_latent_scale,
    train_autoencoder,
)
from tools.tiny_flux.common import Progress
from tools.tiny_flux.render import draw_set

if TYPE_CHECKING:
    from diffusers import FluxPipeline

DRAWINGS = 40_000
TEST_DRAWINGS = 1_000  # the last of the drawings; no stage trains on them

Record = dict[str, float]
# (stage name, its steps) -> the stage's progress report
StageProgress = Callable[[str, int], Progress]


@dataclass(frozen=True)
class PretrainPlan:
    """Seed and steps of the stages; with the sizes they determine the weights."""

    seed: int = 0
    vae_steps: int = 2000
    flow_steps: int = 6500
    distil_steps: int = 450


@dataclass(frozen=True)
class WorkFolder:
    """Keeps the weights after each finished stage."""

    folder: Path

    def run(
        self,
        name: str,
        settings: dict[str, Any],
        modules: dict[str, torch.nn.Module],
        train: Callable[[], Record],
    ) -> Record:
        """Load what an earlier run with the same settings made of ``modules``, or train and save
        them."""
        path = self.folder / f"{name}.pt"
        if path.exists():
            saved = torch.load(path, weights_only=True)
            if saved["settings"] == settings:
                for key, module in modules.items():
                    module.load_state_dict(saved["modules"][key])
                return dict(saved["record"])
        record = train()
        states = {key: module.state_dict() for key, module in modules.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save({"settings": settings, "record": record, "modules": states}, path)
        return record


def run_stages(
    plan: PretrainPlan,
    work: WorkFolder,
    progress: StageProgress,
    sizes: TinyFluxSizes | None = None,
) -> tuple[FluxPipeline, dict[str, Record]]:
    """Run the stages that ``work`` does not hold yet; return the trained pipeline and a record of
    each stage."""
    from tools.tiny_flux.distil import distil_guidance
    from tools.tiny_flux.flow import FlowData, train_flow

    sizes = sizes or TinyFluxSizes()
    drawings = draw_set(DRAWINGS, plan.seed)
    captions, pictures = drawings.captions[:-TEST_DRAWINGS], drawings.pictures[:-TEST_DRAWINGS]
    pipe = make_tiny_flux(sizes, seed=plan.seed)
    settings: dict[str, Any] = {"sizes": sizes_as_dict(sizes), "seed": plan.seed}
    records: dict[str, Record] = {}

    def stage(name: str, steps: int, parts: tuple[str, ...], train: Callable[..., Record]) -> None:
        """Run one stage; its settings are its own steps and those of the stages before it."""
        settings[name] = steps
        modules = {part: pipe.components[part] for part in parts}
        report = progress(name, steps)
        records[name] = work.run(
            name,
            dict(settings),
            modules,
            lambda: train(steps=steps, seed=plan.seed, progress=report),
        )
        report(steps, records[name]["loss"])

    stage(
        "vae", plan.vae_steps, ("vae",), lambda **how: train_autoencoder(pipe.vae, pictures, **how)
    )
    set_latent_scale(pipe.vae, pictures)
    records["vae"]["psnr"] = round(
        reconstruction_psnr(pipe.vae, drawings.pictures[-TEST_DRAWINGS:]), 2
    )

    data = FlowData.of(pipe, captions, encode_pictures(pipe.vae, pictures))
    resume = work.folder / "flow-partial.pt"
    stage(
        "flow",
        plan.flow_steps,
        ("transformer", "text_encoder", "text_encoder_2"),
        lambda **how: train_flow(pipe, data, resume=resume, settings=dict(settings), **how),
    )
    stage(
        "distil",
        plan.distil_steps,
        ("transformer",),
        lambda **how: distil_guidance(pipe, data, **how),
    )
    return pipe, records
