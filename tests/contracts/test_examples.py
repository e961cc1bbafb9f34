"""What is in examples/: the parts of one's own do what they say, without a run.
tests/integration/test_examples_run.py runs them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from support.records import records
from support.small_trees import header, plan_of, quickstart

from branchgrpo.algo.tree import topology
from branchgrpo.config import references
from branchgrpo.errors import UserError
from branchgrpo.models import weights as wire
from branchgrpo.rewards.base import Resources
from branchgrpo.types import Sample

EXAMPLES = Path(__file__).parents[2] / "examples"
REWARD, METHOD, MODEL = (
    str(EXAMPLES / name) for name in ("02_my_reward.py", "03_my_method.py", "04_my_model.py")
)


def module(path: str, name: str) -> ModuleType:
    found = references.parse(f"{path}:{name}").load()
    return sys.modules[found.__module__]


def solid(*colours: tuple[int, int, int]) -> np.ndarray:
    """A picture of each colour, u8 [L, 1, 8, 8, 3]."""
    return np.broadcast_to(
        np.array(colours, np.uint8)[:, None, None, None], (len(colours), 1, 8, 8, 3)
    ).copy()


def test_the_function_scores_backgrounds() -> None:
    (reward,) = quickstart({"rewards": f"[{{name: '{REWARD}:background'}}]"}).rewards
    prompts = [f"the number 1 in red on {colour}" for colour in ("white", "black", "white")]
    pixels = solid((245, 245, 245), (245, 245, 245), (245, 245, 245))
    pixels[2, 0, :3] = 0  # a number, not the background
    scores = reward.build(Resources()).score(pixels, records(prompts))["score"]
    np.testing.assert_allclose(scores, [1, 1 - 225 / 255, 1], rtol=1e-6)


def test_it_knows_every_background_of_the_quick_start() -> None:
    colours, prompts = (
        module(REWARD, "background").BACKGROUNDS,
        EXAMPLES.parent / "branchgrpo/assets",
    )
    for file in ("train.txt", "heldout.txt"):
        lines = (prompts / "prompts" / file).read_text(encoding="utf-8").splitlines()
        assert {line.rpartition(" on ")[2] for line in lines} <= colours.keys()


def test_the_class_has_keys_and_two_scores() -> None:
    keys = f"[{{name: '{REWARD}:Ink', wanted: 0.25, threshold: 10}}]"
    (reward,) = quickstart({"rewards": keys}).rewards
    pixels = solid((9, 9, 9), (9, 9, 9))
    pixels[0, 0, :2] = 200  # a quarter of the pixels
    found = reward.build(Resources()).score(pixels, records(["", ""]))
    np.testing.assert_allclose(found["ink"], [0.25, 0])
    np.testing.assert_allclose(found["score"], [1, 0.75])
    assert (reward.title, reward.reported()) == ("Ink", ("score", "ink"))
    with pytest.raises(UserError, match="wanted"):
        quickstart({"rewards": keys.replace("0.25", "2")})


def test_the_method_splits_elsewhere_every_iteration() -> None:
    config = quickstart({"method.name": f"{METHOD}:Roving", "method.splits": "3"})
    plans = [config.method.plan(iteration, config.schedule(), 0) for iteration in range(50)]
    assert config.method.plan(7, config.schedule(), 0).fanout == plans[7].fanout
    for plan in plans:
        assert len(plan.splits) == 3 and topology(plan).leaves == 8
        assert plan.stochastic == tuple(step in plan.splits for step in range(plan.steps))
    # every step but the last is split at some time
    assert {step for plan in plans for step in plan.splits} == set(range(19))
    with pytest.raises(UserError, match=r"splits: expected at most 19, got 20"):
        quickstart({"method.name": f"{METHOD}:Roving", "method.splits": "20"})


def test_the_estimator_ranks() -> None:
    advantage = quickstart({"advantage.name": f"{METHOD}:Ranks"}).advantage
    plan = plan_of(2, 2, 1, 1)
    trees = [header(plan, [0.0, 3.0, 100.0, 3.0]), header(plan, [7.0, 7.0, 7.0, 7.0], prompt=1)]
    first, equal = advantage.credit(plan, trees)
    topo = topology(plan)
    np.testing.assert_allclose(first.node_reward[topo.level(1)], [1.5, 51.5])
    np.testing.assert_allclose(first.advantage[topo.level(1)], [-1, 1])
    np.testing.assert_allclose(first.advantage[topo.level(4)], [-1, 0, 1, 0])
    assert not equal.advantage.any() and (equal.keep == topo.stochastic).all()


def test_the_model_draws_a_colour_and_its_weights_travel(tmp_path: Path) -> None:
    example = module(MODEL, "Painter")
    torch.manual_seed(0)
    example.write(tmp_path / "start", example.network())
    keys = {"model.name": f"{MODEL}:Painter", "model.path": str(tmp_path / "start")}
    options = quickstart(keys).model
    model = options.build("cpu")
    prompts = ["paint it red", "a blue picture"]
    words = model.conditioning(model.encode(records(prompts)))
    x, levels = torch.randn(2, *model.latent_shape), torch.tensor([0.9, 0.5])
    # untrained: x̂0 = (1 − σ)/4 / ((1 − σ)²/4 + σ²) · x, whatever the words
    clean = x - levels[:, None] * model.velocity(x, levels, words)
    gain = torch.tensor([0.025 / (0.0025 + 0.81), 0.125 / (0.0625 + 0.25)])
    torch.testing.assert_close(clean, gain[:, None] * x)
    assert model.decode(x).shape == (2, 1, 16, 16, 3)
    with torch.no_grad():
        for value in model.trainable().values():
            value.add_(0.1)
    model.save(tmp_path / "trained", tmp_path / "start", "pipeline")
    again = quickstart(keys | {"model.path": str(tmp_path / "trained")}).model.build("cpu")
    assert wire.digest_of(again.trainable()) == wire.digest_of(model.trainable())
    again.load(options.build("cpu").trainable())
    torch.testing.assert_close(again.velocity(x, levels, words), (x - clean) / levels[:, None])


def test_its_reward_knows_what_was_asked_for() -> None:
    from PIL import Image

    score = module(MODEL, "painted").painted
    images = [Image.new("RGB", (4, 4), (230, 30, 30))] * 2
    same, other = score(images, [Sample(prompt="paint it red"), Sample(prompt="a black picture")])
    assert same == 1.0 and 0 < other < 0.8
