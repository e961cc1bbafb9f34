"""Options of the FLUX family on the embedded model: guidance by a negative prompt, LoRA, the frozen
base; and the actors that use them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.records import records
from support.small_flux import PROMPTS, build, inputs, move, velocity
from support.small_trees import quickstart

from branchgrpo.algo import kernels
from branchgrpo.algo.plan import ode_plan
from branchgrpo.algo.schedule import static
from branchgrpo.learner.batches import MicroBatch, MicroBatches
from branchgrpo.learner.policy import PolicyUpdate, Tally
from branchgrpo.models.flux import FluxModel
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.types import Subtree, TreeKey

pytestmark = pytest.mark.networks

NEGATIVE = "the number 12 in red on white"


@pytest.mark.parametrize(("scale", "negative"), [(3.0, NEGATIVE), (1.5, "")])
def test_the_guided_ode_path_is_diffusers_pipeline(scale: float, negative: str) -> None:
    from diffusers import FluxPipeline

    model, steps = build(true_cfg=scale, negative_prompt=negative), 8
    trees = tuple(
        Subtree(TreeKey("run", 0, prompt, tree), prompt, 0)
        for prompt, tree in ((0, 0), (1, 0), (1, 1))
    )
    sampler, plan = Sampler(model, 5, torch.float32, 2), ode_plan(static(steps, 3.0))
    roots = sampler.roots(plan, trees)
    found = sampler.grow(
        plan,
        subtrees=trees,
        x=roots,
        start=0,
        stop=steps,
        conditioning=model.encode(records(PROMPTS)),
    ).frontier

    pipe = FluxPipeline.from_pretrained(model.options.folder())
    pipe.set_progress_bar_config(disable=True)
    calls: dict[str, Any] = {
        "prompt": [PROMPTS[tree.prompt_index] for tree in trees],
        "height": 32,
        "width": 32,
        "num_inference_steps": steps,
        "guidance_scale": 2.5,
        "max_sequence_length": 16,
        "output_type": "latent",
    }
    wanted = pipe(
        **calls, negative_prompt=negative, true_cfg_scale=scale, latents=roots.clone()
    ).images
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    plain = pipe(**calls, latents=roots.clone()).images
    assert float((plain - wanted).abs().max()) > 0.1  # the guidance does something


def test_guided_velocity_is_that_of_two_plain_calls() -> None:
    scale = 3.0
    guided, plain = build(true_cfg=scale, negative_prompt=NEGATIVE), build()
    x, sigma, _ = inputs(plain, 2)
    wanted, unwanted = (
        velocity(plain, (x, sigma, plain.conditioning(plain.encode(records(texts)))))
        for texts in (PROMPTS, [NEGATIVE] * 2)
    )
    both = guided.conditioning(guided.encode(records(PROMPTS)))
    assert {name: tuple(array.shape[:2]) for name, array in both.items()} == {
        "text": (2, 2),
        "pooled": (2, 2),
    }
    found = velocity(guided, (x, sigma, both))
    torch.testing.assert_close(found, unwanted + scale * (wanted - unwanted), rtol=0, atol=2e-5)
    assert float((found - wanted).abs().max()) > 0.1
    alone = [
        velocity(
            guided,
            (
                x[row : row + 1],
                sigma[row : row + 1],
                {name: array[row : row + 1] for name, array in both.items()},
            ),
        )
        for row in range(2)
    ]
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=2e-5)  # rows are independent
    assert (
        guided.tokens(both)
        == 2 * plain.tokens(plain.conditioning(plain.encode(records(PROMPTS))))
        == 2 * (plain.latent_shape[0] + 16)
    )


def test_lora_trains_its_adapters_alone_and_begins_at_the_base() -> None:
    model, base = build(lora_rank=4), build()
    names = set(model.trainable())
    layers = {name.rpartition(".lora_")[0] for name in names}
    attention = {
        name
        for name, part in base.denoiser.named_modules()
        if name.endswith(tuple(f".{target}" for target in FluxModel.attention_layers))
        and hasattr(part, "weight")
    }
    assert layers == attention and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert all(min(value.shape) == 4 for value in model.trainable().values())
    assert sum(value.numel() for value in model.trainable().values()) < 0.5 * sum(
        value.numel() for value in base.trainable().values()
    )
    assert torch.equal(velocity(model), velocity(base))


def test_lora_targets_and_alpha() -> None:
    model, base = build(lora_rank=2, lora_alpha=6, lora_targets=("to_q",)), build()
    trained = model.trainable()
    assert {name.rpartition(".lora_")[0].rpartition(".")[2] for name in trained} == {"to_q"}
    move(model)
    for name, part in base.denoiser.named_modules():  # the adapted layer is W + alpha / rank · B·A
        if name.endswith(".to_q"):
            down, up = (trained[f"{name}.lora_{which}.default.weight"] for which in "AB")
            with torch.no_grad():
                part.weight.add_(6 / 2 * up @ down)
    torch.testing.assert_close(velocity(model), velocity(base), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 4])
def test_base_velocity_stays_that_of_the_untrained_model(rank: int) -> None:
    model = build(lora_rank=rank)
    untrained, at = velocity(model), inputs(model)
    model.freeze_base()
    assert torch.equal(model.base_velocity(*at), untrained)
    move(model)
    moved = velocity(model)
    assert float((moved - untrained).abs().max()) > 0.01
    base = model.base_velocity(*at)
    assert torch.equal(base, untrained) and not base.requires_grad
    assert torch.equal(velocity(model), moved)  # the adapters, or the trained denoiser, are back
    assert all(value.requires_grad for value in model.trainable().values())


def test_base_velocity_between_forward_and_backward_keeps_the_adapters_gradient() -> None:
    model = build(lora_rank=4)
    move(model)
    at, found = inputs(model), []
    for with_base in (False, True):
        out = model.velocity(*at)
        if with_base:
            model.base_velocity(*at)
        found.append(torch.autograd.grad(out.square().mean(), list(model.trainable().values())))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True)) and any(
        one.any() for one in found[0]
    )


def test_base_velocity_that_fails_leaves_the_policy_as_it_was() -> None:
    for rank in (0, 4):
        model = build(lora_rank=rank)
        model.freeze_base()
        move(model)
        moved, denoiser = velocity(model), model.denoiser
        with pytest.raises(KeyError):
            model.base_velocity(*inputs(model)[:2], {})
        assert model.denoiser is denoiser and torch.equal(velocity(model), moved)


@pytest.mark.parametrize("rank", [0, 4])
def test_what_is_saved_is_a_stock_pipeline_with_the_trained_velocity(
    rank: int, tmp_path: Path
) -> None:
    from diffusers import FluxPipeline

    model = build(lora_rank=rank)
    move(model)
    before, weights = velocity(model), copy.deepcopy(model.trainable())
    model.save(tmp_path / "out", model.options.folder(), "pipeline")
    # saving changes nothing
    assert torch.equal(velocity(model), before) and model.trainable().keys() == weights.keys()
    pipe = FluxPipeline.from_pretrained(tmp_path / "out")
    assert not [
        name for name in pipe.transformer.state_dict() if "lora" in name or "base_layer" in name
    ]
    x, sigma, cond = inputs(model)
    with torch.no_grad():
        found = pipe.transformer(
            hidden_states=x,
            timestep=sigma,
            guidance=torch.full((len(x),), 2.5),
            pooled_projections=cond["pooled"],
            encoder_hidden_states=cond["text"],
            txt_ids=torch.zeros(cond["text"].shape[1], 3),
            img_ids=model.img_ids,
            return_dict=False,
        )[0]
    torch.testing.assert_close(found, before, rtol=0, atol=1e-5)
    assert velocity(
        FluxModel(
            **model.options.model_dump() | {"path": str(tmp_path / "out"), "lora_rank": 0}
        ).build("cpu")
    ).allclose(before, atol=1e-5)


class AsGiven(MicroBatches):
    """One micro-batch that was made by hand."""

    def __init__(self, rows: MicroBatch):
        self.rows, self.size = rows, len(rows.x)

    def __len__(self) -> int:
        return len(self.rows.x)

    def take(self, first: int, count: int) -> MicroBatch:
        assert (first, count) == (0, len(self))
        return self.rows


@pytest.mark.parametrize("rank", [0, 4])
def test_kl_to_the_base_is_0_at_the_start_and_has_a_gradient_later(rank: int) -> None:
    config = quickstart(
        {"model.lora_rank": str(rank), "loss.kl_beta": "1.0", "method.stochastic": "all"}
    )
    model, plan = build(lora_rank=rank), config.method.plan(0, static(20, 3.0))
    model.freeze_base()
    policy = PolicyUpdate(config, model, 1)
    x, _, cond = inputs(model, 3)
    steps, nothing = torch.tensor([0, 5, 12]), torch.zeros(3, 2)
    rows = MicroBatch(
        x=x,
        y=torch.stack([x, x], 1),
        sigma=torch.from_numpy(plan.sigmas)[steps],
        steps=steps,
        cond=cond,
        old=nothing,
        advantage=nothing,
        weight=nothing + 1 / 6,
        present=nothing == 0,
    )
    edges, mean = policy.edges(plan, rows)
    assert not policy.kl(plan, rows, mean, edges.std).any()
    still = {name: value.detach().clone() for name, value in model.trainable().items()}
    frozen = {
        name: value.clone()
        for name, value in model.module.state_dict().items()
        if name not in still
    }
    move(model, 0.01)
    tally, before = Tally(), [value.detach().clone() for value in policy.parameters]
    assert policy.step(plan, AsGiven(rows), tally) > 0
    with torch.no_grad():
        model.load(dict(zip(still, before, strict=True)))
        _, std = kernels.transition(plan, steps, x, x)
        new, old = (
            kernels.transition(plan, steps, x, v)[0].double()
            for v in (model.velocity(x, rows.sigma, cond), model.base_velocity(x, rows.sigma, cond))
        )
    # both children of each parent
    wanted = 2 * ((new - old).square().flatten(1).mean(1) / (2 * std.flatten().double() ** 2)).sum()
    assert tally.kl == pytest.approx(float(wanted), rel=1e-4)
    assert all(
        torch.equal(frozen[name], value)
        for name, value in model.module.state_dict().items()
        if name in frozen
    )
