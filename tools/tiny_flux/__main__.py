"""Command line: ``python -m tools.tiny_flux --out FOLDER``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from branchgrpo.models.small.flux import save_tiny_flux
from tools.tiny_flux.common import Progress as StepProgress
from tools.tiny_flux.stages import PretrainPlan, WorkFolder, run_stages


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the model, save it and print how well it draws."""
    from diffusers import FluxPipeline

    from tools.tiny_flux.evaluate import guidance_table, sample_sheet

    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    plan = PretrainPlan(
        **{field.name: getattr(options, field.name) for field in fields(PretrainPlan)}
    )
    work = WorkFolder(options.work or options.out.with_name(options.out.name + "-work"))
    console = Console()
    with _progress_bars(console) as bars:

        def progress(stage: str, steps: int) -> StepProgress:
            bar = bars.add_task(stage, total=steps, loss=float("nan"))
            return lambda step, loss: bars.update(bar, completed=step, loss=loss)

        pipe, stages = run_stages(plan, work, progress)

    save_tiny_flux(pipe, options.out)
    saved = FluxPipeline.from_pretrained(options.out)
    table = guidance_table(saved, seed=plan.seed)
    figures = {"plan": asdict(plan), "stages": stages, "held_out_by_guidance": table}
    (options.out / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    if options.sheet is not None:
        sample_sheet(saved, seed=plan.seed).save(options.sheet)
    console.print_json(data=figures)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    default = PretrainPlan()
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny_flux",
        description="Train the embedded small text-to-image model from drawn pictures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the model, in FluxPipeline's layout"
    )
    parser.add_argument(
        "--work", type=Path, help="folder that keeps finished stages; OUT-work if not given"
    )
    parser.add_argument(
        "--sheet", type=Path, help="PNG file for a sheet of samples; none if not given"
    )
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="seed of drawings, weights and batches"
    )
    parser.add_argument(
        "--vae-steps", type=int, default=default.vae_steps, help="steps of the autoencoder"
    )
    parser.add_argument(
        "--flow-steps", type=int, default=default.flow_steps, help="steps of flow matching"
    )
    parser.add_argument(
        "--distil-steps",
        type=int,
        default=default.distil_steps,
        help="steps of guidance distillation",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads that torch uses")
    return parser.parse_args(arguments)


def _progress_bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:>6}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


if __name__ == "__main__":
    main()
