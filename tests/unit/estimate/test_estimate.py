"""Whole estimates of shipped configs: figures that were counted elsewhere, and what commands
say."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from support.records import records
from support.small_trees import QUICKSTART

from branchgrpo.app import fits
from branchgrpo.config import load
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import config_file
from branchgrpo.errors import UserError
from branchgrpo.estimate import denoiser
from branchgrpo.estimate.cards import CARDS
from branchgrpo.estimate.counting import counted
from branchgrpo.estimate.estimate import Estimate, estimate, of_model
from branchgrpo.estimate.report import render
from branchgrpo.models.base import Adapter
from branchgrpo.models.skeleton import PUBLISHED, published
from cluster import nodes

pytestmark = pytest.mark.networks


SEPARATE: dict[str, Any] = {
    "cluster__layout": "separate",
    "rollout__workers": 5,
    "rollout__prompts": 20,
    "reward_workers__workers": 1,
    "reward_workers__gpus": 1,
    "learner__ranks": 2,
    "learner__gpus": 1,
}
"""Eight GPUs, a role each: what was counted by hand."""


def shipped(name: str, **keys: Any) -> Config:
    overrides = {key.replace("__", "."): str(value) for key, value in keys.items()}
    return load.load(config_file(name), overrides)


def bare(config: Config) -> Adapter:
    found = config.model.without_weights(("denoiser",))
    assert found
    return found


@pytest.mark.parametrize(
    ("side", "teraflops"),
    [(720, 37.3), (1024, 74.4)],  # 2025 and 4096 tokens, and 512 of text
)
def test_a_forward_of_flux(side: int, teraflops: float) -> None:
    size = {"model__height": side, "model__width": side}
    config = shipped("flux.1-dev-1node", model__lora_rank=0, run__export="none", **size)
    model = bare(config)
    work = denoiser.forward(model, model.latent_shape, config.model.text_tokens)
    assert round(work.flops / 1e12, 1) == teraflops
    tokens = (side // 16) ** 2 + 512
    # 57 blocks of attention of width 3072: two products of tokens × tokens
    assert work.attention == 57 * 4 * tokens**2 * 3072


@pytest.mark.parametrize(("frames", "teraflops"), [(17, 63), (81, 566)])
def test_a_guided_pair_of_wan(frames: int, teraflops: float) -> None:
    config = shipped(
        "wan2.1-1.3b-1node", model__lora_rank=0, run__export="none", model__frames=frames
    )
    model = bare(config)
    work = denoiser.forward(model, model.latent_shape, config.model.text_tokens)
    assert round(work.flops / 1e12) == teraflops


BILLIONS = {
    "FLUX.1-dev": 11.9,
    "FLUX.1-Kontext-dev": 11.9,
    "FLUX.2-klein-base-4B": 3.9,
    "HunyuanVideo-1.5-Diffusers-480p_t2v": 8.3,
    "Qwen-Image": 20.4,
    "Qwen-Image-Edit-2509": 20.4,
    "Qwen-Image-Edit-2511": 20.4,
    "Wan2.1-T2V-1.3B-Diffusers": 1.4,
    "Wan2.1-T2V-14B-Diffusers": 14.3,
    "Wan2.1-I2V-14B-480P-Diffusers": 16.4,
    "Wan2.2-TI2V-5B-Diffusers": 5.0,
    "Wan2.2-I2V-A14B-Diffusers": 28.6,  # of both denoisers
    "Wan2.2-T2V-A14B-Diffusers": 28.6,
    "stable-diffusion-3.5-large": 8.1,
    "Z-Image": 6.2,
    "stable-diffusion-3.5-medium": 2.2,
}
"""Parameters of the denoisers of published folders, as their authors state them."""


@pytest.mark.parametrize(("name", "billions"), BILLIONS.items())
def test_published_sizes(name: str, billions: float) -> None:
    base = {
        "FLUX.1": "flux.1-dev-1node",
        "FLUX.2": "flux.2-klein-1gpu",
        "Hunyua": "hunyuan-video-1.5-1node",
        "Qwen-I": "qwen-image-1node",
        "Wan2.1": "wan2.1-1.3b-1node",
        "Wan2.2": "wan2.2-5b-1gpu",
        "Z-Imag": "z-image-1gpu",
    }
    pictured = {
        "Kontext": "flux.1-kontext-1gpu",
        "Edit": "qwen-image-edit-1node",
        "-I2V-": "wan2.2-5b-i2v-1gpu",
    }
    known = next((of for part, of in pictured.items() if part in name), base.get(name[:6]))
    config = shipped(
        known or "sd3.5-medium-1node",
        model__lora_rank=0,
        run__export="none",
        model__path=f"/nowhere/{name}",
    )
    assert config.model.sizes_of == name
    numbers = sum(value.numel() for value in bare(config).module.parameters())
    assert round(numbers / 1e9, 1) == billions


def test_each_published_folder_is_tried_above() -> None:
    assert set(published()) == {*BILLIONS}
    assert all((PUBLISHED / name).is_dir() for name in published())


def test_a_model_of_unknown_sizes_is_refused() -> None:
    config = shipped("flux.1-dev-1node", model__path="/nowhere/FLUX.9")
    with pytest.raises(UserError, match=r"model.path: expected .* got /nowhere/FLUX.9"):
        estimate(config)


def test_few_blocks_of_a_real_denoiser_tell_of_all() -> None:
    model = bare(load.load(QUICKSTART))
    x, sigma, cond = denoiser._inputs(model, model.latent_shape, 16)

    def call() -> None:
        model.velocity(x, sigma, cond).square().mean().backward()
        model.module.zero_grad()

    whole = counted(call)
    few = denoiser.training(model, model.latent_shape, 16)
    assert few.flops == whole.flops
    assert few.peak <= whole.peak


@pytest.fixture(scope="module")
def flux() -> Estimate:
    return estimate(shipped("flux.1-dev-1node", **SEPARATE), CARDS["h100"])


def test_flux_on_one_node(flux: Estimate) -> None:
    """Against sums by hand: weights 23.9 GB, 5 + 1 + 2 GPUs, 203 forwards a tree; and seconds
    within the band of an independent count: 113 ms a forward; to train as long thrice, since frozen
    weights want no gradients and checkpointing a second forward."""
    rollout, learner, reward = flux.needs
    assert (rollout.role, learner.role, reward.role) == ("rollout", "learner", "reward")
    assert 23.8e9 < learner.resident["weights"] < 24.1e9
    assert flux.cards == 8 and not flux.problems
    assert flux.counts.grown == 20 * 203
    assert flux.times
    assert flux.times.growing == pytest.approx(20 * 203 * 0.113 / 5, rel=0.15)
    assert flux.times.updating == pytest.approx(flux.counts.trained * 3 * 0.113 / 2, rel=0.15)
    assert flux.times.idle == pytest.approx(0.62, abs=0.05)
    assert json.loads(json.dumps(flux.listing()))["needs"][1]["peak"] == learner.peak


def test_larger_held_out_pictures_count_for_memory_alone(flux: Estimate) -> None:
    """What a rollout worker holds beside weights, twice 720 × 720: forwards by tokens, decoding by
    pixels; that a check takes longer is no iteration's time."""
    keys = {"evaluation__height": 1440, "evaluation__width": 720}
    found = estimate(shipped("flux.1-dev-1node", **SEPARATE, **keys), CARDS["h100"])
    assert flux.model and found.model and flux.times == found.times
    assert found.model.evaluated == 2.0
    assert found.model.decoding == pytest.approx(2 * flux.model.decoding, rel=0.15)
    tokens = [2 * 45 * 45 + 512, 45 * 45 + 512]
    ratio = found.model.evaluation.peak / flux.model.evaluation.peak
    assert ratio == pytest.approx(tokens[0] / tokens[1], rel=0.1)
    assert found.needs[0].smallest > flux.needs[0].smallest
    assert [need.peak for need in found.needs[1:]] == [need.peak for need in flux.needs[1:]]


def test_prompts_travel_in_bfloat16(flux: Estimate) -> None:
    """Of T5 512 tokens of 4096 numbers, of CLIP 768 numbers, for each of 20 prompts."""
    assert flux.sent["text"] == 20 * 2 * (512 * 4096 + 768)


def test_text_is_as_large_as_what_a_model_makes_of_it() -> None:
    config = load.load(QUICKSTART)
    model = config.model.build("cpu", ("denoiser", "encoders"))
    packed = model.encode(records(["word " * 99]))  # as many tokens as it takes
    counted = estimate(config).model
    assert counted and counted.text == packed.nbytes


def test_further_forwards_are_work_of_the_update(flux: Estimate) -> None:
    keys = {"learner__old": "recompute", "learner__optimiser_steps": 4}
    config = shipped("flux.1-dev-1node", **SEPARATE, **keys)
    found = of_model(config, flux.model, CARDS["h100"])
    assert flux.model and flux.times and found.times
    again = 0.75 * found.counts.trained
    assert found.update_flops - flux.update_flops == pytest.approx(again * flux.model.forward.flops)
    seconds = again * CARDS["h100"].seconds(flux.model.forward) / 2  # by two ranks
    assert found.times.updating - flux.times.updating == pytest.approx(seconds)


def test_what_rests_in_main_memory_is_shown(flux: Estimate) -> None:
    keys = {"reward_workers__offload": "true"}
    found = of_model(shipped("flux.1-dev-1node", **SEPARATE, **keys), flux.model)
    console = Console(width=200, file=StringIO())
    console.print(render(found, 0))
    assert isinstance(console.file, StringIO)
    (line,) = [line for line in console.file.getvalue().splitlines() if line[:11] == "main memory"]
    assert "reward 3.7 GB a process, pinned, and up to twice as much" in line


def test_all_weights_on_one_ddp_rank_are_refused_before_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {"model.lora_rank": "0", "run.export": "none"}
    config = load.load(config_file("flux.1-dev-1node"), keys)
    # as the driver hears of them, by labels of Ray's nodes
    labels = {"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 1.0, "node:10.0.0.1": 1.0}
    there = [{"Alive": True, "Resources": labels}, {"Alive": True, "Resources": {"CPU": 4.0}}]
    gone = {"Alive": False, "Resources": {"accelerator_type:L4": 1.0}}
    monkeypatch.setattr("ray.nodes", lambda: [*there, gone])
    assert nodes.accelerators() == ["H100"]
    with pytest.raises(UserError) as error:
        fits.require(config, nodes.accelerators())
    (line,) = str(error.value).splitlines()
    assert line.startswith("learner: expected at most 85.5 GB, a h100, got 2")
    assert "learner.parallel: fsdp" in line
    monkeypatch.setattr("ray.nodes", lambda: there[1:])
    fits.require(config, nodes.accelerators())
    fits.require(config, ["a card that nobody knows"])
    fits.require(config, [])


def test_the_quick_start_uses_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    config = load.load(QUICKSTART)
    fits.require(config, ["NVIDIA H100 80GB HBM3"])
    assert fits.dry_run(config, "h100", as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cards"] == 0 and found["times"] is None and not found["problems"]
    assert found["sizes_of"] == ""  # its own files
    assert fits.dry_run(config, "", as_json=False) == 0
    shown = capsys.readouterr().out
    assert "1.36 M parameters" in " ".join(shown.split()) or "1.4 M parameters" in shown


def test_what_does_not_fit_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    config = shipped("flux.1-dev-1node", **SEPARATE)
    assert fits.dry_run(config, "rtx4090", as_json=True) == 1
    lines = json.loads(capsys.readouterr().out)["problems"]
    assert [line.partition(":")[0] for line in lines] == ["rollout", "learner"]
