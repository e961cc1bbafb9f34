"""Branch noise by its moments, and by what its key may and may not change."""

from __future__ import annotations

import math

import pytest
import torch

from branchgrpo.algo import noise
from branchgrpo.types import TreeKey

KEY = TreeKey("run", 4, 7, 1)
COUNT = 200_000
FORMS = [("correlated", 4.0), ("correlated", 1.0), ("scaled", 4.0), ("antithetic", 4.0)]


def siblings(form: str, scale: float, children: int = 2) -> torch.Tensor:
    return noise.branch(
        form,
        scale=scale,
        seed=11,
        key=KEY,
        parent=1,
        children=list(range(3, 3 + children)),
        shape=(COUNT,),
    ).double()


@pytest.mark.parametrize(("form", "scale"), FORMS)
def test_each_child_is_standard_normal(form: str, scale: float) -> None:
    error = 5 / math.sqrt(COUNT)  # five standard errors
    for child in siblings(form, scale, 4):
        assert abs(child.mean()) < error
        assert abs(child.square().mean() - 1) < math.sqrt(2) * error
        assert abs((child**3).mean()) < math.sqrt(15) * error
        assert abs((child**4).mean() - 3) < math.sqrt(96) * error


@pytest.mark.parametrize(("form", "scale"), FORMS[:3])
def test_correlation_of_siblings(form: str, scale: float) -> None:
    rho = 1 / (1 + scale**2) if form == "correlated" else 0.0
    found = torch.corrcoef(siblings(form, scale, 3))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(found[a, b] - rho) < 5 * (1 - rho**2) / math.sqrt(COUNT)


def test_antithetic_siblings_are_opposite_in_pairs() -> None:
    first, second, third, fourth = siblings("antithetic", 4.0, 4)
    assert torch.equal(first, -second)
    assert torch.equal(third, -fourth)
    assert abs(torch.corrcoef(torch.stack([first, third]))[0, 1]) < 5 / math.sqrt(COUNT)


def test_siblings_share_one_part_and_other_families_do_not() -> None:
    """(ξ_b·√(1+s²) − s·η_b) is ξ_0 for every child of a parent; another parent has another one."""
    scale, shape = 4.0, (1000,)

    def shared(parent: int, children: list[int]) -> torch.Tensor:
        own = torch.stack([noise.draw(11, KEY, child, shape) for child in children])
        return (
            noise.branch(
                "correlated",
                scale=scale,
                seed=11,
                key=KEY,
                parent=parent,
                children=children,
                shape=shape,
            )
            * math.sqrt(1 + scale**2)
            - scale * own
        )

    first, other = shared(1, [3, 4, 5]), shared(2, [6, 7, 8])
    torch.testing.assert_close(first[0], first[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(first[0], first[2], rtol=0, atol=1e-5)
    into_parent = noise.draw(11, KEY, 1, shape)  # already part of the parent's own latent
    correlation = torch.corrcoef(torch.stack([first[0], other[0], into_parent])).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(1000)


@pytest.mark.parametrize("form", ["correlated", "scaled", "antithetic"])
def test_an_only_child_needs_no_sibling(form: str) -> None:
    alone = noise.branch(form, scale=4.0, seed=11, key=KEY, parent=1, children=[3], shape=(6, 2))
    assert alone.shape == (1, 6, 2)
    assert torch.equal(alone[0], noise.draw(11, KEY, 3, (6, 2)))
    # neither scale nor parent matter
    assert torch.equal(
        alone, noise.branch(form, scale=1.0, seed=11, key=KEY, parent=9, children=[3], shape=(6, 2))
    )


@pytest.mark.parametrize("form", ["correlated", "scaled", "antithetic"])
def test_same_key_same_noise(form: str) -> None:
    first = noise.branch(form, scale=4.0, seed=11, key=KEY, parent=1, children=[3, 4], shape=(6, 2))
    torch.randn(3)  # no global state
    assert torch.equal(
        first,
        noise.branch(
            form,
            scale=4.0,
            seed=11,
            key=TreeKey("run", 4, 7, 1),
            parent=1,
            children=[3, 4],
            shape=(6, 2),
        ),
    )
    assert first.dtype == torch.float32


def test_every_part_of_the_key_changes_the_noise() -> None:
    shape = (2000,)
    drawn = {
        "base": noise.draw(11, KEY, 3, shape),
        "seed": noise.draw(12, KEY, 3, shape),
        "iteration": noise.draw(11, TreeKey("run", 5, 7, 1), 3, shape),
        "evaluation": noise.draw(11, TreeKey("run", -1, 7, 1), 3, shape),
        "prompt": noise.draw(11, TreeKey("run", 4, 8, 1), 3, shape),
        "tree": noise.draw(11, TreeKey("run", 4, 7, 2), 3, shape),
        "swapped": noise.draw(11, TreeKey("run", 7, 4, 1), 3, shape),
        "node": noise.draw(11, KEY, 4, shape),
        "stream": noise.draw(11, KEY, 3, shape, stream=1),
    }
    correlation = torch.corrcoef(torch.stack(list(drawn.values()))).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(2000)


def test_std_factor_is_the_scale_at_scaled_splits_alone() -> None:
    assert noise.std_factor("scaled", 4.0, 2) == 4.0
    assert noise.std_factor("scaled", 4.0, 1) == 1.0
    for form in ("correlated", "antithetic"):
        assert noise.std_factor(form, 4.0, 2) == 1.0
