"""The second set of weights: how it follows, and that the model computes with it and back."""

from __future__ import annotations

import pytest
import torch
from support.small_adapter import SmallAdapter
from support.small_leaves import LeafCase
from torch import Tensor

from branchgrpo.learner.policy import Tally
from branchgrpo.learner.second import SecondWeights
from branchgrpo.learner.shown import Shown

NFT = "{name: nft, old: {start: 0.25, flat: 1, rate: 0.1}}"


def velocity(model: SmallAdapter) -> Tensor:
    kind = next(model.denoiser.parameters()).dtype
    x = torch.linspace(-1, 1, 12).view(2, 6)
    with torch.no_grad():
        return model.velocity(x, torch.tensor([0.3, 0.8]), {"text": torch.ones(2, 3)}).to(kind)


def test_it_follows_the_trained_weights_after_each_iteration() -> None:
    case = LeafCase(NFT)
    second, masters = case.policy.second, case.policy.named_masters()
    assert second is not None
    wanted = {name: value.clone() for name, value in second.tensors.items()}
    for iteration, decay in enumerate((0.25, 0.35, 0.45, 0.5, 0.5)):
        object.__setattr__(case.task, "iteration", iteration)
        case.training.step(case.task, case.batches(case.shards()[0][0]), Tally())
        case.training.end(case.task)
        for name, value in second.tensors.items():
            wanted[name] = decay * wanted[name] + (1 - decay) * masters[name].detach()
            assert torch.allclose(value, wanted[name], atol=1e-6)
            assert not torch.equal(value, masters[name])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_model_computes_with_it_meanwhile(kind: torch.dtype) -> None:
    model = SmallAdapter(1)
    model.denoiser.to(kind)
    parameters = model.trainable()
    masters: dict[str, Tensor] = {
        name: value if kind == torch.float32 else value.detach().float()
        for name, value in parameters.items()
    }
    second, own = SecondWeights(masters, dict(parameters)), velocity(model)
    for value in second.tensors.values():
        value.add_(0.5)
    kept = {name: value.clone() for name, value in second.tensors.items()}
    other = SmallAdapter(1)
    other.denoiser.to(kind)
    with torch.no_grad():
        for name, value in other.trainable().items():
            value.copy_(kept[name])
    with second.shown():
        assert torch.equal(velocity(model), velocity(other))
    with pytest.raises(RuntimeError, match="boom"), second.shown():
        raise RuntimeError("boom")
    assert torch.equal(velocity(model), own) and not torch.equal(own, velocity(other))
    assert all(torch.equal(value, kept[name]) for name, value in second.tensors.items())
    assert model.trainable().keys() == masters.keys()


def test_it_is_shown_to_a_model_that_grows_trees_too() -> None:
    case = LeafCase(NFT)
    shown, own = Shown(case.policy), velocity(case.model)
    assert case.policy.second is not None
    with case.policy.second.shown():
        second = velocity(case.model)
    shown.show("second")
    assert torch.equal(velocity(case.model), second) and not torch.equal(own, second)
    shown.show("policy")
    assert torch.equal(velocity(case.model), own)


def test_losses_without_one_have_none() -> None:
    case = LeafCase("{name: awm, mean_beta: 0}")
    assert case.policy.second is None
    case.training.end(case.task)
    with pytest.raises(KeyError):
        case.policy.named("second")
