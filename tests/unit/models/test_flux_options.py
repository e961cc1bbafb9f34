"""Options of the FLUX family on the embedded model: guidance by a negative prompt, LoRA, the frozen
base; and the actors that use them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_trees import quickstart
from torch import Tensor

from actors.learner import Learner
from actors.rollout import RolloutWorker
from branchgrpo.algo import kernels
from branchgrpo.algo.plan import ode_plan
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import assemble, topology
from branchgrpo.learner import shard
from branchgrpo.learner.batches import MicroBatch
from branchgrpo.learner.payloads import PayloadStore
from branchgrpo.learner.policy import PolicyUpdate, Tally
from branchgrpo.models import weights as wire
from branchgrpo.models.flux import Flux, FluxModel
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.service import SegmentRequest, UpdateRequest
from branchgrpo.types import Subtree, TreeKey

pytestmark = pytest.mark.networks

PROMPTS = ["the number 38 in black on yellow", "a red circle on white"]
NEGATIVE = "the number 12 in red on white"
SMALL = {
    "sampling.steps": "5",
    "method.splits": "[0, 2]",
    "method.leaves": "4",
    "method.stochastic": "all",
    "learner.threads": "1",
    "rollout.threads": "1",
}
LORA = {"model.lora_rank": "4"}


def build(**options: object) -> Flux:
    torch.manual_seed(0)
    return FluxModel(
        path="embedded:tiny-flux",
        height=32,
        width=32,
        guidance=2.5,
        max_sequence_length=16,
        **options,
    ).build("cpu")


def inputs(model: Flux, rows: int = 4) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(x, σ, conditioning) that one forward takes."""
    draw = torch.Generator().manual_seed(3)
    return (
        torch.randn(rows, *model.latent_shape, generator=draw),
        torch.linspace(1.0, 0.1, rows),
        model.fingerprint_conditioning(rows),
    )


def velocity(model: Flux, at: tuple[Tensor, Tensor, dict[str, Tensor]] | None = None) -> Tensor:
    with torch.no_grad():
        return model.velocity(*(at or inputs(model)))


def move(model: Flux, size: float = 0.05) -> None:
    """Change every trainable parameter."""
    draw = torch.Generator().manual_seed(5)
    model.load(
        {
            name: value.detach() + size * torch.randn(value.shape, generator=draw)
            for name, value in model.trainable().items()
        }
    )


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
        plan, subtrees=trees, x=roots, start=0, stop=steps, conditioning=model.encode(PROMPTS)
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
        velocity(plain, (x, sigma, plain.conditioning(plain.encode(texts))))
        for texts in (PROMPTS, [NEGATIVE] * 2)
    )
    both = guided.conditioning(guided.encode(PROMPTS))
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
        == 2 * plain.tokens(plain.conditioning(plain.encode(PROMPTS)))
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
    assert policy.step(plan, [rows], tally) > 0
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


class Case:
    """A learner and one batch for it: two trees, grown in one segment."""

    def __init__(self, **options: str):
        self.config = quickstart(SMALL | options)
        self.worker, self.learner = RolloutWorker(self.config, 0), Learner(self.config, 0, list)
        self.plan = self.config.method.plan(0, static(5, 3.0))
        self.worker.ready(), self.learner.join(1, "")
        _, self.conditioning = self.worker.encode(PROMPTS)
        subtrees = tuple(Subtree(TreeKey("test", 0, prompt, 0), prompt, 0) for prompt in range(2))
        header, payload, _ = self.worker.grow(
            self.plan,
            SegmentRequest(version=0, subtrees=subtrees, start=0, stop=5),
            self.conditioning,
        )
        draw = np.random.default_rng(0)
        self.segments = [(header, payload)]
        self.scores = {
            (prompt, 0): draw.normal(size=(1, 4)).astype(np.float32) for prompt in range(2)
        }

    def update(self) -> Any:
        return self.learner.update(
            UpdateRequest(plan=self.plan, iteration=0, segments=self.segments, scores=self.scores),
            self.conditioning,
        )

    def gradient(self) -> Tensor:
        return torch.cat(
            [value.grad.flatten().double() for value in self.learner.model.trainable().values()]
        )


def counted(learner: Learner) -> list[int]:
    """Rows of every forward from now on."""
    rows: list[int] = []
    forward: Callable[..., Tensor] = learner.model.forward

    def spy(x: Tensor, *rest: Any) -> Tensor:
        rows.append(len(x))
        return forward(x, *rest)

    learner.model.forward = spy
    return rows


@pytest.mark.parametrize("guided", [False, True])
def test_a_token_budget_limits_micro_batches_and_not_the_gradient(guided: bool) -> None:
    options = {"model.true_cfg": "2.0"} if guided else {}
    copies, plain = 2 if guided else 1, Case(**options)
    tokens = copies * (plain.learner.model.latent_shape[0] + 16)  # of one parent, with its text
    plain.update()
    for budget, parents in ((4 * tokens - 1, 3), (1, 1)):
        case = Case(**options, **{"learner.token_budget": str(budget)})
        rows = counted(case.learner)
        case.update()
        assert max(rows) == parents * copies
        assert float((case.gradient() - plain.gradient()).norm()) <= 1e-5 * float(
            plain.gradient().norm()
        )
    wide = Case(**options, **{"learner.token_budget": str(10**9), "learner.micro_batch": "2"})
    rows = counted(wide.learner)
    wide.update()
    assert max(rows) == 2 * copies


def test_payloads_hold_the_behaviour_velocity_that_guard_needs() -> None:
    case = Case(
        **{"loss.name": "guard", "learner.optimiser_steps": "2", "learner.learning_rate": "0.001"}
    )
    trees = assemble(
        case.plan,
        [header for header, _ in case.segments],
        case.config.credit.leaf_rewards(case.scores),
    )
    steps = [
        ranks[0]
        for ranks in shard.split(
            case.plan,
            credits=case.config.credit.assign(case.plan, trees, 0, case.scores),
            ranks=1,
            optimiser_steps=2,
            seed=0,
        )
    ]
    store = PayloadStore(
        fetch=list, plan=case.plan, trees=trees, segments=case.segments, shards=steps
    )
    topo = topology(case.plan)
    cond = case.worker.model.conditioning(case.conditioning)
    case.update()  # the learner's weights move, the rollout's are the behaviour policy's
    parents = [(tree, node) for one in steps for tree, node in one.parents.tolist()]
    assert len(set(parents)) == len(parents) == 2 * (1 + 2 + 2 + 4)
    for tree, node in parents:
        sigma = torch.tensor([float(case.plan.sigmas[topo.step[node] + 1])])
        wanted = velocity(
            case.worker.model,
            (
                store.latents(tree, node)[None],
                sigma,
                {name: array[tree : tree + 1] for name, array in cond.items()},
            ),
        )[0]
        torch.testing.assert_close(store.behaviour(tree, node), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, LORA], ids=["full", "lora"])
def test_configure_begins_again_with_the_untrained_model(options: dict[str, str]) -> None:
    extra = options | {
        "learner.learning_rate": "0.001",
        "learner.ema": "0.5",
        "loss.kl_beta": "0.1",
        "learner.warmup": "3",
    }
    case = Case(**extra)
    learner, worker = case.learner, case.worker
    digest, fingerprint = wire.digest_of(learner.model.trainable()), learner.fingerprint()
    first = case.update()
    trained = wire.digest_of(learner.model.trainable())
    _, update, *chunks = learner.publish()
    assert worker.load_weights(update, *chunks) == trained != digest
    assert np.array_equal(worker.fingerprint(), learner.fingerprint()) and not np.array_equal(
        worker.fingerprint(), fingerprint
    )
    learner.skips = 2

    learner.configure(case.config)
    worker.configure(case.config)
    assert (learner.version, learner.skips, worker.version) == (0, 0, 0)
    assert wire.digest_of(learner.model.trainable()) == wire.digest_of(learner.policy.ema) == digest
    assert np.array_equal(worker.fingerprint(), fingerprint) and np.array_equal(
        learner.fingerprint(), fingerprint
    )
    again = case.update()  # the optimiser, its schedule and the gates are new as well
    assert again == first and wire.digest_of(learner.model.trainable()) == trained
    assert first.on_policy_deviation <= case.config.gates.on_policy_tolerance


def test_configure_takes_the_new_config() -> None:
    case = Case()
    other = quickstart(
        SMALL
        | LORA
        | {"loss.kl_beta": "0.5", "learner.learning_rate": "0.01", "learner.warmup": "0"}
    )
    case.learner.configure(other)
    case.worker.configure(other)
    assert case.learner.config is other and case.learner.model.adapted and case.worker.model.adapted
    case.config = other
    assert case.update().learning_rate == pytest.approx(0.01)
    assert all(".lora_" in name for name in case.learner.publish()[1].names)
