"""Each family's noise levels against diffusers' scheduler classes, which make their own, at the
published models' configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from branchgrpo.algo.plan import with_tail
from branchgrpo.algo.schedule import Schedule, static
from branchgrpo.errors import UserError
from branchgrpo.models.flux import FluxModel
from branchgrpo.models.flux2_klein import Flux2KleinModel
from branchgrpo.models.hunyuan_video import HunyuanVideoModel
from branchgrpo.models.pipeline_options import PipelineModel
from branchgrpo.models.qwen_image import QwenImageModel
from branchgrpo.models.sd3 import SD3Model
from branchgrpo.models.wan import WanModel
from branchgrpo.models.z_image import ZImageModel
from branchgrpo.types import BranchPlan

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
DEV = EULER | {
    "use_dynamic_shifting": True,
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
QWEN = EULER | {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
UNIPC = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
}

CASES: dict[str, tuple[type[PipelineModel], dict[str, Any]]] = {
    "FLUX.1-dev": (FluxModel, DEV),
    "FLUX.1-schnell": (FluxModel, EULER | {"shift": 1.0}),
    "FLUX, linear": (FluxModel, DEV | {"time_shift_type": "linear"}),
    "FLUX, a file with the class' defaults": (FluxModel, EULER | {"use_dynamic_shifting": True}),
    "SD3.5": (SD3Model, EULER | {"shift": 3.0}),
    "SD3, by size": (SD3Model, DEV),
    "Qwen-Image": (QwenImageModel, QWEN),
    "FLUX.2-klein": (Flux2KleinModel, DEV),
    "FLUX.2-klein, linear": (Flux2KleinModel, DEV | {"time_shift_type": "linear"}),
    "FLUX.2-klein, static": (Flux2KleinModel, EULER | {"shift": 3.0}),
    "Z-Image": (ZImageModel, EULER | {"shift": 6.0}),
    "Z-Image, by size": (ZImageModel, DEV),
    "HunyuanVideo-1.5, 480p": (HunyuanVideoModel, EULER | {"shift": 5.0}),
    "Wan2.1": (WanModel, UNIPC | {"flow_shift": 3.0}),
    "Wan2.1, 720p": (WanModel, UNIPC | {"flow_shift": 5.0}),
    "Wan2.1, Euler": (WanModel, EULER | {"shift": 3.0}),
}


def model(
    folder: Path, kind: type[PipelineModel], scheduler: dict[str, Any], side: int = 512
) -> PipelineModel:
    """Options of a folder that holds no more than what a schedule is made of."""
    vae = {"block_out_channels": [8] * 4, "temperal_downsample": [False, True, True]}
    for name, content in (
        ("model_index.json", {}),
        ("scheduler/scheduler_config.json", scheduler),
        ("vae/config.json", vae),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return kind(path=str(folder), height=side, width=side)


def of_diffusers(
    options: PipelineModel, config: dict[str, Any], steps: int, side: int
) -> np.ndarray:
    """What the family's pipeline does before its loop."""
    import diffusers
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    tokens = (side // 16) ** 2
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = (
        calculate_shift(tokens, *(scheduler.config[name] for name in names))
        if scheduler.config.use_dynamic_shifting
        else None
    )
    if mu is not None and isinstance(options, Flux2KleinModel):
        mu = compute_empirical_mu(tokens, steps)
    extra = {} if mu is None else {"mu": mu}
    given = (FluxModel, Flux2KleinModel, QwenImageModel, ZImageModel, HunyuanVideoModel)
    if isinstance(options, given):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist(), **extra)
    else:
        scheduler.set_timesteps(steps, **extra)
    found: np.ndarray = scheduler.sigmas.numpy()
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("side", "steps"), [(512, 10), (1024, 28)])
def test_a_familys_levels_are_those_of_its_own_scheduler(
    case: str, side: int, steps: int, tmp_path: Path
) -> None:
    kind, config = CASES[case]
    options = model(tmp_path, kind, config, side)
    found = options.schedule(steps).levels
    assert found.dtype == np.float32 and found[0] == 1.0 and found[-1] == 0.0
    # UniPC's begin 1e-6 below 1
    np.testing.assert_allclose(found, of_diffusers(options, config, steps, side), rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_number_is_a_static_shift_in_the_familys_way(case: str, tmp_path: Path) -> None:
    kind, config = CASES[case]
    options = model(tmp_path, kind, config)
    changed = config | {
        "use_dynamic_shifting": False,
        "flow_shift" if "flow_shift" in config else "shift": 2.5,
    }
    np.testing.assert_allclose(
        options.schedule(12, 2.5).levels, of_diffusers(options, changed, 12, 512), rtol=0, atol=2e-6
    )
    assert options.scheduler_config(2.5) == changed
    if kind is FluxModel:  # exactly σ = 2.5·t/(1 + 1.5·t)
        t = np.linspace(1.0, 0.0, 13)
        np.testing.assert_allclose(
            options.schedule(12, 2.5).levels, 2.5 * t / (1 + 1.5 * t), rtol=0, atol=1e-7
        )


def test_where_the_families_end() -> None:
    """Ten steps, shift 3: SD3 shifts levels that were shifted already, FLUX does not."""
    np.testing.assert_allclose(
        static(10, 3.0).levels[-4:], [0.5625, 0.4286, 0.25, 0.0], rtol=0, atol=5e-5
    )


def test_sd3_ends_low(tmp_path: Path) -> None:
    levels = model(tmp_path, SD3Model, EULER | {"shift": 3.0}).schedule(10).levels
    np.testing.assert_allclose(levels[-4:], [0.465, 0.278, 0.0089, 0.0], rtol=0, atol=5e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_tail_keeps_to_the_familys_levels(case: str, tmp_path: Path) -> None:
    """All of its steps are the schedule's own; half of them every other one; one step goes straight
    to 0."""
    kind, config = CASES[case]
    schedule = model(tmp_path, kind, config).schedule(12)
    np.testing.assert_allclose(schedule.tail(4, 8), schedule.levels[4:], rtol=0, atol=1e-7)
    np.testing.assert_allclose(schedule.tail(4, 4), schedule.levels[4::2], rtol=0, atol=1e-7)
    np.testing.assert_allclose(schedule.tail(4, 1), [schedule.levels[4], 0.0], rtol=0, atol=1e-7)
    between = schedule.tail(4, 3)
    # steps 6⅔ and 9⅓
    assert (
        schedule.levels[7] < between[1] < schedule.levels[6]
        and schedule.levels[10] < between[2] < schedule.levels[9]
    )
    plan = with_tail(
        BranchPlan(schedule.levels, (1,) * 12, ("dance",) * 4 + ("ode",) * 8, (0.3,) * 12),
        0.5,
        schedule,
    )
    np.testing.assert_allclose(
        plan.sigmas, np.concatenate([schedule.levels[:4], schedule.tail(4, 4)]), rtol=0, atol=0
    )


def test_the_terminal_level_is_the_last_before_0() -> None:
    schedule = Schedule(np.array([1.0, 0.5, 0.25]), 1.0, 0.1)
    # 1 − (1 − t)·0.9/0.75
    np.testing.assert_allclose(schedule.levels, [1.0, 0.4, 0.1, 0.0], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "config", "shift", "words"),
    [
        (
            FluxModel,
            {"_class_name": "DDIMScheduler"},
            None,
            "expected FlowMatchEulerDiscreteScheduler in",
        ),
        (SD3Model, UNIPC, 3.0, "expected FlowMatchEulerDiscreteScheduler in"),
        (FluxModel, DEV | {"use_karras_sigmas": True}, None, "plain flow matching in"),
        (WanModel, UNIPC | {"use_flow_sigmas": False}, None, "use_flow_sigmas: false"),
        (FluxModel, DEV | {"num_train_timesteps": 500}, None, "num_train_timesteps: 500"),
        (
            WanModel,
            EULER | {"use_dynamic_shifting": True},
            None,
            "sampling.shift: expected a number",
        ),
    ],
)
def test_a_scheduler_that_is_not_known_is_one_line(
    kind: type[PipelineModel],
    config: dict[str, Any],
    shift: float | None,
    words: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError) as caught:
        model(tmp_path, kind, config).schedule(5, shift)
    assert words in str(caught.value) and "\n" not in str(caught.value)
