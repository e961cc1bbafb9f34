"""Wan2.2 A14B, whose two denoisers change at a noise level, on small random checkpoints, against
diffusers' own pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support import small_wan_i2v
from support.small_trees import quickstart
from support.small_wan import NEGATIVE, build, drawn, inputs, move, options, sampled, stock

from branchgrpo.algo.plan import ode_plan
from branchgrpo.errors import UserError
from branchgrpo.estimate import denoiser
from branchgrpo.models.small.wan import small_wan
from branchgrpo.models.small.wan import small_wan_i2v as small_folder
from branchgrpo.models.wan import Wan, WanModel
from branchgrpo.runs import model_card
from branchgrpo.types import Picture, Sample

pytestmark = pytest.mark.networks

HIGH, LOW = "transformer", "transformer_2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_wan(tmp_path_factory.mktemp("a14b"), two=True)


def parted(model: Wan, x: Any, sigma: Any, cond: dict[str, Any], part: str) -> torch.Tensor:
    """The velocity of one denoiser, called as diffusers would."""
    with torch.no_grad():
        found: torch.Tensor = getattr(model.module, part)(
            hidden_states=x,
            timestep=model.timestep(sigma),
            encoder_hidden_states=cond["text"],
            return_dict=False,
        )[0]
    return found


@pytest.mark.parametrize("scales", [(1.0, 0.0), (5.0, 0.0), (4.0, 2.5)])
@pytest.mark.parametrize(("frames", "height", "width", "steps"), [(5, 32, 48, 4), (9, 48, 32, 7)])
def test_the_ode_video_is_diffusers(
    folder: Path, frames: int, height: int, width: int, scales: tuple[float, float], steps: int
) -> None:
    model = build(
        folder,
        frames=frames,
        height=height,
        width=width,
        true_cfg=scales[0],
        true_cfg_2=scales[1],
        negative_prompt=NEGATIVE,
    )
    model.options.check()
    # the denoiser changes within the schedule
    levels = model.options.schedule(steps).levels[:-1]
    assert 0 < int((model.options.timesteps(levels) >= 875).sum()) < steps
    roots, found = sampled(model, steps)
    wanted, made = drawn(stock(folder), model, roots, steps)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    pixels = model.decode(found)
    assert np.abs(pixels - made * 255).max() <= 0.5 + 0.03
    assert made.std() > 0.05 and np.ptp(made[:, 1:] - made[:, :-1]) > 0.1


def test_the_second_scale_matters(folder: Path) -> None:
    first, second = (build(folder, true_cfg=4.0, true_cfg_2=scale) for scale in (0.0, 2.5))
    assert float((sampled(first)[1] - sampled(second)[1]).abs().max()) > 0.01


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize(("frames", "size", "steps"), [(5, (32, 48), 4), (9, (48, 32), 7)])
def test_videos_of_a_first_frame_are_diffusers(
    tmp_path: Path, frames: int, size: tuple[int, int], scale: float, steps: int
) -> None:
    folder = small_folder(tmp_path / "i2v", two=True)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 72, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "first.png")
    sample = Sample(prompt="a red circle", images=(Picture(str(tmp_path / "first.png")),))
    second = {"true_cfg_2": 2.5} if scale > 1 else {}
    keys = {"height": size[0], "width": size[1], "frames": frames, "true_cfg": scale, **second}
    model = small_wan_i2v.build(folder, **keys, negative_prompt=NEGATIVE)
    model.options.check()
    plan = ode_plan(model.options.schedule(steps))
    roots, found = small_wan_i2v.grown(model, [sample], plan, small_wan_i2v.TREES[:1])
    pipe = small_wan_i2v.stock(folder)
    wanted, made = small_wan_i2v.drawn(pipe, model, sample, roots, steps)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert np.abs(model.decode(found) - made * 255).max() <= 0.5 + 0.03


def test_each_row_goes_through_the_denoiser_of_its_noise_level(folder: Path) -> None:
    model = build(folder, true_cfg=1.0)
    x, _, cond = inputs(model, 4)
    # time steps 999, 500, 875 and 874: the boundary itself is the first's
    sigma = torch.tensor([1.0, 0.5, 0.8751, 0.8749])
    assert model.timestep(sigma).tolist() == [999, 500, 875, 874]
    with torch.no_grad():
        found = model.velocity(x, sigma, cond)
    for row, part in enumerate([HIGH, LOW, HIGH, LOW]):
        alone = {name: array[row : row + 1] for name, array in cond.items()}
        own = x[row : row + 1], sigma[row : row + 1], alone
        torch.testing.assert_close(
            found[row : row + 1], parted(model, *own, part), rtol=0, atol=1e-5
        )
        other = parted(model, *own, LOW if part == HIGH else HIGH)
        assert float((found[row : row + 1] - other).abs().max()) > 0.1


def test_the_files_know_the_time_steps_of_forwards(folder: Path) -> None:
    """Those of a plan's steps, without torch, and those of its forwards."""
    model = build(folder)
    for steps in (3, 10, 40):
        levels = model.options.schedule(steps, 12.0).levels
        assert model.timestep(torch.from_numpy(levels)).tolist() == [
            *model.options.timesteps(levels)
        ]


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("trained", ["both", "high", "low"])
def test_what_trains(folder: Path, trained: str, rank: int) -> None:
    model = build(folder, train_denoisers=trained, lora_rank=rank, true_cfg=3.0)
    parts = {"both": {HIGH, LOW}, "high": {HIGH}, "low": {LOW}}[trained]
    names = model.trainable().keys()
    assert {name.partition(".")[0] for name in names} == parts
    whole = {
        name
        for name, _ in model.module.named_parameters()
        if name.partition(".")[0] in parts and (not rank or ".lora_" in name)
    }
    assert names == whole and len(whole) == len(parts) * (32 if rank else len(whole) // len(parts))
    assert any("lora" in name for name, _ in model.module.named_parameters()) == bool(rank)
    move(model, 0.1)
    x, sigma, cond = inputs(model, 2)
    for level, part in ((0.95, HIGH), (0.3, LOW)):
        out = model.velocity(x, torch.full_like(sigma, level), cond)
        assert out.requires_grad == (part in parts)
        if part in parts:
            gradients = torch.autograd.grad(
                out.square().mean(), list(model.trainable().values()), allow_unused=True
            )
            moved = {
                name.partition(".")[0]
                for name, gradient in zip(names, gradients, strict=True)
                if gradient is not None
            }
            assert moved == {part}


@pytest.mark.parametrize("rank", [0, 2])
def test_the_base_is_what_both_were(folder: Path, rank: int) -> None:
    model = build(folder, lora_rank=rank, train_denoisers="high" if rank else "both", true_cfg=3.0)
    model.freeze_base()
    given = inputs(model, 4)
    with torch.no_grad():
        before = model.velocity(*given)
        learning = model.trainable().keys()
        move(model, 0.1)
        after = model.velocity(*given)
    assert torch.equal(model.base_velocity(*given), before)
    assert float((after - before).abs().max()) > 0.01 and model.trainable().keys() == learning
    with torch.no_grad():
        assert torch.equal(model.velocity(*given), after)


def test_checkpointing_keeps_the_gradient(folder: Path) -> None:
    gradients = []
    for again in (False, True):
        model = build(folder, lora_rank=2, gradient_checkpointing=again, true_cfg=3.0)
        move(model, 0.1)
        assert model.module.transformer_2.gradient_checkpointing == again
        loss = model.velocity(*inputs(model, 4)).square().mean()
        found = torch.autograd.grad(loss, list(model.trainable().values()))
        gradients.append(torch.cat([one.flatten() for one in found]))
    assert float(gradients[0].norm()) > 0
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_the_blocks_of_both_are_compiled_and_sharded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: reached.append(self))
    model = options(folder, compile=True).build("cpu", ("denoiser",))
    both = [*model.module.transformer.blocks, *model.module.transformer_2.blocks]
    assert reached == model.blocks_of(model.module) == both
    with model.without_gradient():
        assert model.velocity(*inputs(model)).requires_grad


def piped(model: Wan, form: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stock pipeline, as the code of the model card beside the weights makes it."""
    config = quickstart({"run.export": "none"})
    config = config.model_copy(
        update={"model": model.options, "run": config.run.model_copy(update={"export": form})}
    )
    text = model_card.text(config, config.model, {"held_out": {}, "iterations": 1})
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(out)
    found: dict[str, Any] = {}
    exec(code[: code.index("prompt = ")], found)
    found["pipe"].set_progress_bar_config(disable=True)
    return found["pipe"]


EXPORTS = [
    ("lora", 2, "both"),
    ("lora", 2, "low"),
    ("pipeline", 2, "both"),
    ("pipeline", 0, "high"),
    ("transformer", 0, "both"),
    ("transformer", 2, "low"),
]


@pytest.mark.parametrize(("form", "rank", "trained"), EXPORTS)
def test_exports_draw_the_policys_video(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    rank: int,
    trained: str,
) -> None:
    model = build(
        folder,
        lora_rank=rank,
        lora_alpha=3 * rank,
        train_denoisers=trained,
        true_cfg=3.0,
        negative_prompt=NEGATIVE,
    )
    _, base = sampled(model)
    move(model, 0.2 if rank else 0.01)
    roots, found = sampled(model)
    assert float((found - base).abs().max()) > 0.05
    out = tmp_path / "out"
    model.save(out, folder, form)
    parts = model.options.trained_denoisers
    if form != "pipeline":  # a file or a folder for each
        assert len(list(out.iterdir())) == len(parts)
    wanted, _ = drawn(piped(model, form, out, monkeypatch), model, roots)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_run_begins_with_what_another_exported(folder: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"lora_rank": 2, "lora_alpha": 2, "true_cfg": 1.0}
    model = build(folder, **keys)
    move(model, 0.2)
    model.save(tmp_path / "both", folder, "lora")
    given = inputs(model, 4)
    with torch.no_grad():
        found = model.velocity(*given)
        again = build(folder, **keys, lora_path=str(tmp_path / "both"))
        again.options.check()
        torch.testing.assert_close(again.velocity(*given), found, rtol=0, atol=1e-6)
    # one of them, by its own file
    low = tmp_path / "both" / "pytorch_lora_weights_2.safetensors"
    alone = build(folder, **keys, lora_path=str(low), train_denoisers="low")
    wanted = load_file(low)
    for name, value in alone.trainable().items():
        layer = name.removeprefix(f"{LOW}.").replace(".default", "")
        assert torch.equal(value, wanted[f"transformer.{layer}"])
    with pytest.raises(UserError, match=r"model\.lora_path: expected a folder with pytorch_lora_"):
        options(folder, **keys, lora_path=str(low)).check()


REFUSED = [
    (
        {"true_cfg_2": 3.0, "true_cfg": 1.0},
        "model.true_cfg_2: expected 0, or with true_cfg above 1",
    ),
    ({"true_cfg_2": 0.5}, "model.true_cfg_2: expected 0, or with true_cfg above 1 at least 1"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_bad_options_are_one_line(folder: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        options(folder, **keys).check()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_folders_are_checked(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    for name, changes, message in (
        ("none", {LOW: [None, None]}, "expected a transformer_2 in"),
        ("ratio", {"boundary_ratio": 1.5}, "expected a boundary_ratio between 0 and 1"),
        ("text", {"boundary_ratio": "high"}, "expected a number as boundary_ratio in"),
        ("tokens", {"expand_timesteps": True}, "without expand_timesteps"),
    ):
        copytree(folder, tmp_path / name)
        (tmp_path / name / "model_index.json").write_text(json.dumps(index | changes))
        with pytest.raises(UserError, match=message):
            options(tmp_path / name).check()
    plain = small_wan(tmp_path / "plain")
    for key, value in (("true_cfg_2", 3.0), ("train_denoisers", "low")):
        with pytest.raises(UserError, match=rf"model\.{key}: expected none of a model with one"):
            options(plain, **{key: value}).check()


@pytest.mark.parametrize("trained", ["both", "high", "low"])
def test_one_of_them_is_counted_in_a_forward_and_both_in_memory(
    folder: Path, tmp_path: Path, trained: str
) -> None:
    keys: dict[str, Any] = {"lora_rank": 4, "true_cfg": 1.0}
    one = options(small_wan(tmp_path / "one"), **keys).without_weights(("denoiser",))
    two = options(folder, train_denoisers=trained, **keys).without_weights(("denoiser",))
    for measure in (denoiser.forward, denoiser.training):
        flops = [measure(model, model.latent_shape, 8).flops for model in (one, two)]
        assert flops[0] == flops[1] > 0
    counts = [sum(value.numel() for value in model.module.parameters()) for model in (one, two)]
    learning = [sum(value.numel() for value in model.trainable().values()) for model in (one, two)]
    times = 2 if trained == "both" else 1
    assert learning[1] == times * learning[0]
    assert counts[1] - learning[1] == 2 * (counts[0] - learning[0])


def test_a_small_model_is_of_the_large_ones_form(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"true_cfg": 4.0, "true_cfg_2": 3.0, "train_denoisers": "low"}
    known = WanModel(path="/nowhere/Wan2.2-T2V-A14B-Diffusers", **keys)
    small = known.shrunk(tmp_path / "known")
    small.check()
    assert small.boundary_ratio == 0.875 and small.trained_denoisers == (LOW,)
    assert small.frozen_steps(np.array([1.0, 0.9, 0.8, 0.0], np.float32)) == (True, True, False)
    # as the stock pipeline's arguments
    assert small.stock_guidance() == {"guidance_scale": 4.0, "guidance_scale_2": 3.0}
