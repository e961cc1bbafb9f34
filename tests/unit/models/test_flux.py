"""FLUX.1 against diffusers' own pipeline, on the embedded folder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import model_checks as checks
from support import model_folder_checks as folder_checks

from branchgrpo.algo import kernels
from branchgrpo.algo.methods.branch import BranchMethod
from branchgrpo.algo.schedule import static
from branchgrpo.errors import UserError
from branchgrpo.models.flux import FluxModel

pytestmark = pytest.mark.networks


@pytest.fixture(scope="module")
def family() -> checks.Family:
    return checks.Family(
        FluxModel, FluxModel(path="embedded:tiny-flux").folder(), "true_cfg_scale", text=16
    )


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 24)])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_ode_path_is_diffusers_pipeline(
    family: checks.Family, height: int, width: int, scale: float, steps: int
) -> None:
    checks.draws_the_pipelines_pictures(family, height, width, scale, steps=steps)


def test_a_schedule_that_follows_the_size_is_the_pipelines(
    family: checks.Family, tmp_path: Path
) -> None:
    """FLUX.1-dev's scheduler shifts by the number of the picture's tokens; the embedded one does
    not."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    shutil.copytree(family.folder, tmp_path / "dynamic")
    FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_image_seq_len=64, base_image_seq_len=4
    ).save_pretrained(tmp_path / "dynamic" / "scheduler")
    sized = replace(family, folder=tmp_path / "dynamic")
    small, large = (sized.make(height=side, width=side).schedule(7).levels for side in (32, 64))
    assert np.abs(small - large).max() > 0.05
    for side, steps in ((32, 7), (64, 4)):
        checks.draws_the_pipelines_pictures(sized, side, side, 1.0, steps=steps)


@pytest.mark.parametrize("rank", [0, 2])
def test_exports_draw_the_policys_picture(family: checks.Family, rank: int, tmp_path: Path) -> None:
    folder_checks.exports_draw_the_policys_picture(family, rank, tmp_path)


def test_only_the_wanted_parts_are_loaded(family: checks.Family) -> None:
    folder_checks.only_the_wanted_parts_are_loaded(family)


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointing_keeps_the_gradient(family: checks.Family, rank: int) -> None:
    checks.checkpointing_keeps_the_gradient(family, rank)


def test_long_prompts_are_counted(family: checks.Family) -> None:
    # T5 ends a text with one token
    checks.long_prompts_are_counted(family, " ".join(["circle"] * 15), " ".join(["circle"] * 16))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_blocks_give_the_same_velocity_and_gradient(family: checks.Family) -> None:
    plain, compiled = family.build(("denoiser",)), family.build(("denoiser",), compile=True)
    x, sigma = checks.inputs(plain, 2)
    cond = plain.fingerprint_conditioning(2)
    found = []
    for model in (plain, compiled):
        out = model.velocity(x, sigma, cond)
        out.square().mean().backward()
        found.append(
            (
                out.detach(),
                torch.cat([value.grad.flatten() for value in model.trainable().values()]),
            )
        )
    torch._dynamo.reset()
    (v, gradient), (other, others) = found
    torch.testing.assert_close(other, v, rtol=0, atol=1e-4)
    assert float((others - gradient).norm()) <= 1e-4 * float(gradient.norm())
    blocks = compiled.blocks_of(compiled.module)
    assert len(blocks) == 5 and all(block._compiled_call_impl is not None for block in blocks)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("again", [False, True], ids=["plain", "checkpointed"])
def test_compiled_rollouts_and_training_are_one_graph(family: checks.Family, again: bool) -> None:
    """So the velocities, and with them the ratios of an unchanged policy, agree to the last bit:
    what rollouts compute needs no graphs beside those of training, and keeps nothing for a
    backward."""
    model = family.build(
        ("denoiser",), compile=True, lora_rank=2, gradient_checkpointing=again, dtype="bfloat16"
    )
    x, sigma = checks.inputs(model, 2)
    cond = model.fingerprint_conditioning(2)
    graphs = torch._dynamo.utils.counters["stats"]
    trained = model.velocity(x, sigma, cond)
    trained.square().mean().backward()
    compiled = graphs["unique_graphs"]
    assert compiled
    with torch.no_grad(), model.without_gradient():
        grown = model.velocity(x, sigma, cond)
    with pytest.raises(RuntimeError):  # nothing is there for it
        grown.square().mean().backward()
    assert graphs["unique_graphs"] == compiled
    assert torch.equal(grown.detach(), trained.detach())
    assert model.denoiser.is_gradient_checkpointing == again
    plan = BranchMethod(splits=(0,), leaves=2).plan(0, static(3, 3.0))
    steps = torch.tensor([0, 1])
    (old, std), (new, _) = (
        kernels.transition(plan, steps, x, v.detach()) for v in (grown, trained)
    )
    y = old + std * torch.randn(old.shape, generator=torch.Generator().manual_seed(1))
    ratio = torch.exp(kernels.log_prob(y, new, std) - kernels.log_prob(y, old, std))
    assert torch.equal(ratio, torch.ones(2))
    with torch.no_grad():
        model.velocity(x, sigma, cond)
    assert graphs["unique_graphs"] > compiled  # or the case would show nothing
    torch._dynamo.reset()


def test_an_attention_backend_is_used(family: checks.Family) -> None:
    model = family.build(("denoiser",), attention="_native_math")
    assert {
        block.attn.processor._attention_backend.value for block in model.blocks_of(model.module)
    } == {"_native_math"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "fastest"}, ["model.attention: diffusers cannot use 'fastest' here"]),
        # its package is not installed
        ({"attention": "flash"}, ["model.attention: diffusers cannot use 'flash' here"]),
        (
            {"lora_rank": 2, "lora_targets": ("to_z",)},
            ["model.lora_targets: expected names of layers of FluxTransformer2DModel, got to_z"],
        ),
    ],
)
def test_what_the_model_lacks_is_one_line(
    family: checks.Family, options: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        family.build(("denoiser",), **options)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words)
