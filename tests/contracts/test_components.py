"""What every component keeps, of each table and of a plug-in of each kind: its options are
described and checked, it is written and read back, it travels, and it works on a CPU.

Two rewards are not built here, for want of weights: image_reward and video_align, whose small
checkpoints are made, layer by layer, where they are held against the originals
(tests/unit/rewards/test_image_reward.py, test_video_align.py).
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from support.own_parts import MEMBERS, own_parts
from support.remote_peers import Plain, running
from support.small_clips import aesthetic_reward, clip_folder, clip_reward, hps_reward
from support.small_models import small_qwen_image, small_sd3
from support.small_trees import header, plan_of, quickstart
from support.small_wan import save_small_wan

from branchgrpo.algo.loss.base import Edges
from branchgrpo.algo.schedule import static
from branchgrpo.algo.tree import topology
from branchgrpo.config import load as config
from branchgrpo.config.registry import TABLES
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError
from branchgrpo.report.sinks import MetricsLog, check_sinks, open_sinks
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.pickscore import PickScoreReward
from branchgrpo.sinks import base
from branchgrpo.types import BranchPlan, TreeHeader

SECTIONS = {
    "rewards": "rewards.0",
    "models": "model",
    "methods": "method",
    "advantage": "advantage",
    "pruning": "pruning.0",
    "loss": "loss",
    "sinks": "sinks.0",
}
"""Where a config names a component of each table."""

SHIPPED = [(kind, name) for kind, table in TABLES.items() for name in table.shipped]
EVERY = SHIPPED + [(kind, f"own:{name}") for kind, names in MEMBERS.items() for name in names]

NEEDED = {
    "remote": {"url": "http://127.0.0.1:1"},
    "trunk": {"children": "4"},
    "wandb": {"project": "mine"},
    "mlflow": {"uri": "http://127.0.0.1:9"},
    **{name: {"path": "embedded:tiny-flux"} for name in ("sd3", "qwen_image", "wan")},
    "flux": {"path": "embedded:tiny-flux", "height": "32", "width": "32"},
    "own:OwnFlux": {"path": "embedded:tiny-flux", "height": "32", "width": "32"},
}
"""Keys that a component must be given, or is small by."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_parts(tmp_path_factory.mktemp("own"))


def loaded(own: Path, kind: str, name: str, **more: str) -> Config:
    """The quick start with this component."""
    section = SECTIONS[kind]
    keys = {f"{section}.name": name.replace("own:", f"{own}:")}
    given = NEEDED.get(name, {}) | more
    return quickstart(keys | {f"{section}.{key}": value for key, value in given.items()})


def component(found: Config, kind: str) -> Any:
    first = SECTIONS[kind].partition(".")[0]
    part: Any = getattr(found, first)
    return part[0] if isinstance(part, tuple) else part


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A component's class and those of the sections in it."""
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation)


def refused(own: Path, kind: str, name: str, **more: str) -> str:
    with pytest.raises(UserError) as caught:
        loaded(own, kind, name, **more)
    assert "\n" not in str(caught.value), caught.value
    return str(caught.value)


def test_every_table_has_a_plug_in_here() -> None:
    assert set(MEMBERS) == set(TABLES) == set(SECTIONS)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_options_are_described_and_the_class_says_what_it_is(
    own: Path, kind: str, name: str
) -> None:
    table, found = TABLES[kind], TABLES[kind].find(name.replace("own:", f"{own}:"))
    assert issubclass(found, table.base) and found.__doc__
    assert found.model_fields["name"].default == name.replace("own:", f"{own}:")
    assert found.model_config["extra"] == "forbid" and found.model_config["frozen"]
    nameless = [
        f"{model.__name__}.{key}"
        for model in sections(found)
        for key, field in model.model_fields.items()
        if not field.description
    ]
    assert not nameless
    assert getattr(found, table.must) is not getattr(table.base, table.must)


def test_tables_are_imported_without_heavy_packages() -> None:
    code = (
        "import sys; from branchgrpo.config.registry import TABLES; "
        "[table.find(name) for table in TABLES.values() for name in table.shipped]; "
        "print([m for m in ('torch', 'ray', 'diffusers', 'transformers', 'onnxruntime', "
        "'open_clip') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_config_with_it_is_written_read_back_and_sent(
    own: Path, kind: str, name: str, tmp_path: Path
) -> None:
    found = loaded(own, kind, name)
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(found), encoding="utf-8")
    assert config.load(path) == found == pickle.loads(pickle.dumps(found))
    assert component(found, kind).called == name.removeprefix("own:")
    with pytest.raises(ValueError, match="frozen"):
        component(found, kind).name = "other"


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_bad_keys_are_one_line_that_names_them(own: Path, kind: str, name: str) -> None:
    section, part = SECTIONS[kind], component(loaded(own, kind, name), kind)
    found = refused(own, kind, name, nonsense="1")
    assert found.startswith(f"--{section}.nonsense: unknown key of "), found
    for key, field in type(part).model_fields.items():
        if key == "name" or field.annotation is str or not isinstance(getattr(part, key), float):
            continue
        found = refused(own, kind, name, **{key: "many"})
        assert found.startswith(f"--{section}.{key}: expected "), found
        assert found.endswith("got 'many'"), found


def test_files_that_are_missing_are_one_line(own: Path, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    for kind in ("rewards", "models"):
        for name in TABLES[kind].shipped:
            part = component(loaded(own, kind, name), kind)
            keys = [key for key in (*part.file_keys, "path") if key in type(part).model_fields]
            if not keys:
                continue
            with pytest.raises(UserError) as caught:
                part.model_copy(update=dict.fromkeys(keys, gone)).check()
            assert "\n" not in str(caught.value), caught.value
            assert gone in str(caught.value) and "expected" in str(caught.value), caught.value


# Rewards

SMALL_REWARDS = ("jpeg", "ocr", "remote", "own:Bright", "own:brightness")
ELSEWHERE = {"image_reward", "video_align"}
"""See above."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("clips")
    path = clip_folder(folder / "clip")
    return {
        "hps": hps_reward(folder),
        "clip": clip_reward(folder),
        "aesthetic": aesthetic_reward(path, folder),
        "pickscore": PickScoreReward(path=str(path)),
    }


def test_every_reward_is_built_somewhere(clips: dict[str, Any]) -> None:
    names = {name for kind, name in EVERY if kind == "rewards"}
    assert names == set(SMALL_REWARDS) | set(clips) | ELSEWHERE


def scored(options: Any) -> None:
    """Three pictures and two videos: what the scorer promises, finite, the same twice."""
    options.check()
    scorer = options.build(Resources())
    assert set(scorer.reports) == set(options.reported()) or not options.reported()
    for frames in (1, 3):
        draw = np.random.default_rng(frames)
        pixels = draw.integers(0, 256, (3, frames, 32, 32, 3), np.uint8)
        prompts = ["the number 38", "a fox with the number 7", "number 100"]
        found = scorer.score(pixels, prompts)
        assert {scorer.trains_on, *scorer.reports} <= set(found)
        for name in {scorer.trains_on, *scorer.reports}:
            assert np.shape(found[name]) == (3,) and np.isfinite(found[name]).all(), name
        again = scorer.score(pixels[::-1].copy(), prompts[::-1])
        np.testing.assert_allclose(
            found[scorer.trains_on], again[scorer.trains_on][::-1], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", SMALL_REWARDS)
def test_rewards_score(name: str, own: Path) -> None:
    with ExitStack() as serving:
        more = {}
        if name == "remote":
            url = serving.enter_context(running(Plain()))
            more = {"url": url, "report": "bright", "train_on": "bright"}
        scored(component(loaded(own, "rewards", name, **more), "rewards"))


@pytest.mark.parametrize("name", ["hps", "clip", "aesthetic", "pickscore"])
def test_rewards_with_weights_score(name: str, clips: dict[str, Any]) -> None:
    scored(clips[name])


# Models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "sd3": small_sd3(folder / "sd3"),
        "qwen_image": small_qwen_image(folder / "qwen"),
        "wan": save_small_wan(folder / "wan"),
    }


@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "models"])
def test_models_do_what_the_method_asks(name: str, own: Path, folders: dict[str, Path]) -> None:
    more = {"height": "32", "width": "48", "max_sequence_length": "24"}
    if name in folders:
        more["path"] = str(folders[name])
    found = loaded(own, "models", name, **more)
    options = found.model
    options.check()
    assert options.schedule(5).levels.shape == (6,) and options.picture_size == (32, 48)
    assert not options.adapter_rank and set(options.computing) <= set(type(options).model_fields)
    model = options.build("cpu")
    cond = model.conditioning(model.encode(["a red cube", "the number 38"]))
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        velocity = model.velocity(x, torch.tensor([0.9, 0.2]), cond)
    assert velocity.shape == x.shape and velocity.isfinite().all() and model.tokens(cond) > 0
    pixels = model.decode(x[:1])
    assert pixels.dtype == np.uint8 and pixels.shape[0] == 1 and pixels.shape[2:] == (32, 48, 3)
    trained = {key: value.detach() + 1 for key, value in model.trainable().items()}
    model.load(trained)
    assert all(torch.equal(value, trained[key]) for key, value in model.trainable().items())


# Methods

STEPS = (11, 16, 25)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "methods"])
def test_plans_are_valid_and_pure(name: str, own: Path, steps: int) -> None:
    method = TABLES["methods"].find(name.replace("own:", f"{own}:"))()
    method.check(steps)
    schedule = static(steps, 3.0)
    run = method.start(steps, 7)
    for iteration in (0, 1, 50, 1000):
        plan: BranchPlan = run.plan(iteration, schedule)  # checks itself
        again = method.plan(iteration, schedule, 7)
        assert np.array_equal(plan.sigmas, again.sigmas)
        assert (plan.fanout, plan.kernel, plan.noise_scale) == (
            again.fanout,
            again.kernel,
            again.noise_scale,
        )
        assert plan.sigmas[0] == 1 and plan.sigmas[-1] == 0 and any(plan.stochastic)
        assert plan.comb == (method.shape == "comb")
        # trees split, the others do not
        assert bool(plan.splits) == (method.shape != "chain")
        assert plan.chains > 1 or len(plan.splits) > 0


@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "methods"])
def test_a_methods_state_is_json_and_goes_back(name: str, own: Path) -> None:
    found = TABLES["methods"].find(name.replace("own:", f"{own}:"))
    learns = {"adapt_every": 1, "stochastic": "splits"}
    method = found(**(learns if "adapt_every" in found.model_fields else {}))
    schedule, run = static(16, 3.0), method.start(16, 3)
    for iteration in range(3):
        plan = run.plan(iteration, schedule)
        rewards = np.random.default_rng(iteration).normal(size=(2, topology(plan).leaves))
        run.observe(plan, rewards.astype(np.float32))
    other = method.start(16, 3)
    other.load(json.loads(json.dumps(run.state())))
    assert other.state() == run.state()
    assert other.plan(3, schedule).fanout == run.plan(3, schedule).fanout


# Credit

PLANS = {"tree": plan_of(2, 1, 2, 1), "chain": plan_of(1, 1, 1, 1)}


def trees(plan: BranchPlan) -> list[TreeHeader]:
    leaves = topology(plan).leaves
    draw = np.random.default_rng(0)
    return [
        header(plan, draw.normal(size=leaves).tolist(), prompt=prompt, tree=tree)
        for prompt in range(2)
        for tree in range(2)
    ]


@pytest.mark.parametrize("shape", PLANS)
@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "advantage"])
def test_estimators_give_credit(name: str, own: Path, shape: str) -> None:
    estimator = component(loaded(own, "advantage", name), "advantage")
    plan = PLANS[shape]
    found = estimator.credit(plan, trees(plan))
    again = estimator.credit(plan, trees(plan))
    assert len(found) == 4 and isinstance(estimator.compares_in_tree, bool)
    for one, other in zip(found, again, strict=True):
        assert np.isfinite(one.advantage).all() and np.array_equal(one.advantage, other.advantage)
        assert np.array_equal(one.keep, topology(plan).stochastic)
    # better leaves of a prompt earn more: of its last edges, which are those into its leaves
    last = topology(plan).level(plan.steps - 1)
    rewards = np.concatenate([one.node_reward[last] for one in found[:2]])
    advantages = np.concatenate([one.advantage[last] for one in found[:2]])
    assert np.array_equal(np.argsort(rewards), np.argsort(advantages))


@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "pruning"])
def test_rules_keep_some_and_leave_out_some(name: str, own: Path) -> None:
    rule = component(loaded(own, "pruning", name), "pruning")
    plan = plan_of(2, 1, 2, 1, 1, 1, 1, 1)
    given = trees(plan)
    masks = rule.keep(plan, given, 3, 5)
    assert len(masks) == len(given) and isinstance(rule.prunes_combs, bool)
    random = topology(plan).stochastic
    for mask, other in zip(masks, rule.keep(plan, given, 3, 5), strict=True):
        assert mask.dtype == bool and mask.shape == random.shape and np.array_equal(mask, other)
        assert 0 < (mask & random).sum() < random.sum()


# Losses


@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "loss"])
def test_losses_pull_towards_what_earned_more(name: str, own: Path) -> None:
    loss = component(loaded(own, "loss", name), "loss")
    log_prob = torch.zeros(2, 3, requires_grad=True)
    advantage = torch.tensor([[1.0, -2.0, 0.0], [0.5, -0.5, 3.0]])
    edges = Edges(
        log_prob=log_prob,
        old_log_prob=torch.zeros(2, 3),
        advantage=advantage,
        std=torch.full((2, 1), 0.3),
        dt=torch.full((2, 1), -0.1),
        mean_drift=torch.zeros(2, 1),
    )
    value, ratio, cut = loss(edges)
    assert value.shape == ratio.shape == cut.shape == (2, 3)
    assert not ratio.requires_grad and cut.dtype == torch.bool and not cut.any()
    assert torch.equal(ratio, torch.ones(2, 3))
    value.sum().backward()
    assert torch.equal(-log_prob.grad.sign(), advantage.sign())  # type: ignore[union-attr]
    assert isinstance(loss.needs_behaviour_mean, bool) and loss.kl_beta == 0


# Sinks. W&B and MLflow are opened in tests/unit/report/test_metrics.py, with the real packages.


def test_a_sink_of_ones_own_gets_the_metrics(own: Path, tmp_path: Path) -> None:
    found = loaded(own, "sinks", "own:Lines", file="mine.txt")
    check_sinks(found.all_sinks)
    with MetricsLog(tmp_path, open_sinks(found.all_sinks, tmp_path, config.plain(found))) as log:
        log.write(1, {"b": 2.0, "a": 1.0})
    assert (tmp_path / "mine.txt").read_text() == "1 a b\ndone\n"
    with (
        pytest.raises(RuntimeError, match="boom"),
        MetricsLog(tmp_path, open_sinks(found.all_sinks, tmp_path, {})),
    ):
        raise RuntimeError("boom")
    assert (tmp_path / "mine.txt").read_text().endswith("failed\n")


@pytest.mark.parametrize("name", [name for kind, name in EVERY if kind == "sinks"])
def test_sinks_without_their_package_are_one_line(
    name: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    found = loaded(own, "sinks", name)
    if not component(found, "sinks").package:
        return check_sinks(found.all_sinks)
    with pytest.raises(UserError, match=r"^sinks\.0: expected the package [^\n]+$"):
        check_sinks(found.all_sinks)
