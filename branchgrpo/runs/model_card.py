"""The model card of exported weights: what they are, what they scored, and the stock call that
draws what was evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchgrpo.models import scheduler
from branchgrpo.models.files import json_file
from branchgrpo.models.pipeline_options import PipelineModel
from branchgrpo.report.settings import settings, words

if TYPE_CHECKING:
    from branchgrpo.config.schema import Config

PACKAGES = ("branchgrpo", "diffusers", "transformers", "peft", "torch")


def write_card(
    folder: Path, config: Config, summary: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Write README.md beside a run's weights and say the call; neither where nothing was
    exported."""
    model: Any = config.evaluated
    if config.run.export == "none" or not isinstance(model, PipelineModel):
        return
    weights = folder / "weights"
    weights.mkdir(exist_ok=True)
    (weights / "README.md").write_text(text(config, model, summary), encoding="utf-8")
    say(
        f"{weights / 'README.md'} has the code that draws with these weights: {call(config, model)}"
    )


def text(config: Config, model: PipelineModel, summary: Mapping[str, Any]) -> str:
    """The card, in Markdown."""
    base, rows = Path(model.path.removeprefix("embedded:")).name, summary["held_out"]
    drawn = words(settings(config))
    scores = [
        f"| {name} | {one['before']:.4f} | {one['after']:.4f} | {one['difference']:+.4f} "
        f"[{one['low']:+.4f}, {one['high']:+.4f}] | {drawn} |"
        for name, one in rows.items()
    ]
    for category, found in summary.get("categories", {}).items():
        scores += [
            f"| {name}, {category} ({found['n']}) | {found[name]['before']:.4f} | "
            f"{found[name]['after']:.4f} | {found[name]['difference']:+.4f} | {drawn} |"
            for name in rows
        ]
    count = next((one["n"] for one in rows.values()), 0)
    what = {
        "pipeline": "the whole pipeline",
        "transformer": f"what trained alone, as `{model.transformer}`: "
        + " and ".join(f"`{part}`" for part in model.trained_denoisers),
        "lora": "LoRA adapters",
    }[config.run.export]
    adapters = f", LoRA of rank {model.lora_rank}" if model.lora_rank else ""
    lines = [
        f"# {config.run.name}",
        "",
        f"{base}, trained by reinforcement learning (branchgrpo, method family "
        f"`{config.method.called}`{adapters}, {summary['iterations']} iterations, seed "
        f"{config.run.seed}) against "
        f"{', '.join(reward.title for reward in config.rewards)}. This folder holds {what}.",
        "",
        "## Use",
        "",
        "Run beside this file; what was evaluated was drawn this way." + _remark(model),
        "",
        "```python",
        *_code(config, model),
        "```",
        "",
        "## Scores",
        "",
        f"{count} held-out prompts (`{config.held_out}`), the same noise before and after; the "
        "95 % interval is over prompts.",
        "",
        "| score | before | after | difference | drawn with |",
        "|---|---|---|---|---|",
        *scores,
        "",
        "## Licence and versions",
        "",
        f"The licence of the base model, {base}, applies to these weights as well.",
        "",
        ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name))),
    ]
    return "\n".join(lines) + "\n"


def call(config: Config, model: PipelineModel) -> str:
    """How the stock pipeline is called to draw as evaluation did."""
    keys = {
        "num_inference_steps": config.evaluation_steps,
        **model.stock_call(),
    }
    told = ", ".join(f"{name}={value!r}" for name, value in keys.items())
    given = ", image=picture" if model.pictures_taken[1] else ""
    return f"pipe(prompt=prompt{given}, {told})"  # some pipelines take a picture first


def _code(config: Config, model: PipelineModel) -> list[str]:
    """Lines of Python that make the pipeline and call it."""
    form = config.run.export
    base = "." if form == "pipeline" else str(model.folder().resolve())
    kind = "bfloat16" if model.dtype == "bfloat16" else "float32"
    dtype = f"torch.{kind}"
    if model.decoder_dtype and model.decoder_dtype != model.dtype:
        dtype = f'{{"default": torch.{kind}, "vae": torch.{model.decoder_dtype}}}'
    given = "".join(f", {part}=None" for part in _absent(model))
    names, lines = [model.pipeline], []
    if form == "transformer":
        names.append(model.transformer)
        for part, place in model.denoisers_in(Path()).items():
            lines.append(
                f'{part} = {model.transformer}.from_pretrained("{place}", dtype=torch.{kind})'
            )
            given = f", {part}={part}{given}"
    lines.append(f'pipe = {model.pipeline}.from_pretrained("{base}"{given}, dtype={dtype})')
    if form == "lora":
        lines += model.lora_load()
    if changes := _scheduler(config, model):
        lines.append(
            f"pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, {changes})"
        )
    lines += model.setup_code()
    if model.vae_tiling:
        lines.append("pipe.vae.enable_tiling()")
    prompt = "a photo of a cat" if not model.embedded else "the number 38 in black on yellow"
    if opens := model.picture_code():
        prompt = "make it night"
        lines += opens
    return [
        "import torch",
        *(["from PIL import Image"] if opens else []),
        f"from diffusers import {', '.join(sorted(names))}",
        "",
        *lines,
        f'prompt = "{prompt}"',
        f"{model.output} = {call(config, model)}.{model.output}",
    ]


def _scheduler(config: Config, model: PipelineModel) -> str:
    """What the folder's scheduler must be told, beside what an exported pipeline says already."""
    known, shift = model.scheduler_config(config.sampling.shift), config.sampling.shift
    parts = []
    if shift is not None and config.run.export != "pipeline":
        parts += ["use_dynamic_shifting=False", f"{scheduler.shift_key(known)}={shift!r}"]
    if known["_class_name"] == scheduler.UNIPC:
        parts += ["solver_order=1", "disable_corrector=list(range(1000))"]
    return ", ".join(parts)


def _remark(model: PipelineModel) -> str:
    if model.scheduler_config()["_class_name"] != scheduler.UNIPC:
        return ""
    return (
        " It took Euler's steps (solver_order 1 and no corrector); without that line the "
        "scheduler takes second-order ones on the same noise levels."
    )


def _absent(model: PipelineModel) -> list[str]:
    """Parts that the folder lacks, which the stock pipeline wants to be told."""
    index = json_file("model.path", model.folder() / "model_index.json")
    return [part for part in model.optional_parts if not (index.get(part) or [None])[-1]]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
