"""HunyuanVideo-1.5 text-to-video on a small random folder, against diffusers' own pipeline."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from support import model_checks as checks
from support import model_folder_checks as folder_checks
from support.records import records
from torch import Tensor

from branchgrpo.algo.plan import ode_plan
from branchgrpo.estimate.denoiser import training
from branchgrpo.models.hunyuan_video import TOKENS, HunyuanVideoModel
from branchgrpo.models.small.hunyuan_video import BEFORE, small_hunyuan_video
from branchgrpo.rollout.sampler import Sampler
from branchgrpo.types import Subtree, TreeKey

pytestmark = pytest.mark.networks

PLAIN = ["the number 38 in black on yellow", "a red circle"]
QUOTING = ['the words "red 38" and “blue” in black', "a red circle"]
"""The first quotes, the second does not."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> checks.Family:
    folder = small_hunyuan_video(tmp_path_factory.mktemp("hunyuan-video"))
    return checks.Family(partial(HunyuanVideoModel, frames=5), folder, "guidance_scale")


def grown(
    model: Any, prompts: list[str], steps: int = 4, shift: float | None = None
) -> tuple[Tensor, Tensor]:
    """Noise and clean latents of a video for each prompt, in one forward a step."""
    trees = tuple(Subtree(TreeKey("run", 0, row, 0), row, 0) for row in range(len(prompts)))
    plan = ode_plan(model.options.schedule(steps, shift))
    sampler = Sampler(model, 5, torch.float32, 2)
    roots = sampler.roots(plan, trees)
    cond = model.encode(records(prompts))
    return roots, sampler.grow(
        plan, subtrees=trees, x=roots, start=0, stop=steps, conditioning=cond
    ).frontier


def drawn(
    pipe: Any, options: HunyuanVideoModel, prompts: list[str], roots: Tensor, steps: int = 4
) -> tuple[Tensor, np.ndarray]:
    """The stock pipeline's latents [B, *S] and frames [B, F, H, W, 3], 0 … 1, after the model
    card's lines."""
    exec("\n".join(options.setup_code()), {"pipe": pipe})
    # fewer masked tokens, to be quick; the default call has them all
    pipe.vision_num_semantic_tokens, pipe.tokenizer_2_max_length = 9, 48
    call = options.stock_call()
    if "negative_prompt" in call:  # the pipeline wants as many as prompts
        call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
    latents: Tensor = pipe(
        prompt=list(prompts),
        num_inference_steps=steps,
        latents=roots.clone(),
        output_type="latent",
        **call,
    ).frames
    with torch.no_grad():
        video = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return latents, pipe.video_processor.postprocess_video(video, output_type="np")


@pytest.mark.parametrize("prompts", [PLAIN, QUOTING])
@pytest.mark.parametrize(("scale", "negative"), [(1.0, ""), (6.0, ""), (3.0, 'no "12" in red')])
@pytest.mark.parametrize(("frames", "height", "width", "steps"), [(5, 32, 48, 7), (9, 48, 32, 4)])
def test_the_ode_video_is_diffusers(
    family: checks.Family,
    frames: int,
    height: int,
    width: int,
    steps: int,
    scale: float,
    negative: str,
    prompts: list[str],
) -> None:
    size = {"frames": frames, "height": height, "width": width}
    model = family.build(**size, true_cfg=scale, negative_prompt=negative)
    roots, found = grown(model, prompts, steps)
    wanted, made = drawn(family.stock(), model.options, prompts, roots, steps)
    assert roots.shape == (2, 8, (frames - 1) // 4 + 1, height // 16, width // 16)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    pixels = model.decode(found)
    assert pixels.shape == made.shape == (2, frames, height, width, 3)
    assert np.abs(pixels - made * 255).max() <= 0.5 + 0.03
    # there is something to see, it moves, and the two differ
    assert made.std() > 0.05 and np.ptp(made[:, 1:] - made[:, :-1]) > 0.1
    assert float((wanted[0] - wanted[1]).abs().max()) > 0.1


def test_the_default_call_is_ours_too(family: checks.Family) -> None:
    """The pipeline as its folder makes it, told of nothing but the size: 1000 tokens of text, of
    which we send those that are read, and its guider's own scale, our default."""
    model = family.options(path=str(family.folder), height=32, width=48).build("cpu")
    assert (model.options.true_cfg, model.options.max_sequence_length) == (6.0, TOKENS)
    assert model.options.setup_code()[:-1] == ["pipe.guider = pipe.guider.new(guidance_scale=6.0)"]
    roots, found = grown(model, QUOTING)
    wanted = (
        family.stock()(
            prompt=list(QUOTING),
            height=32,
            width=48,
            num_frames=5,
            num_inference_steps=4,
            latents=roots.clone(),
            output_type="latent",
        )
    ).frames
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert model.texts(QUOTING)["text"].shape[1] < 40


def test_the_folders_shift_is_5(family: checks.Family) -> None:
    """w(t) = 5t / (1 + 4t) of t = 1, 3/4, 1/2, 1/4; and times are not whole."""
    times = np.array([1.0, 0.75, 0.5, 0.25])
    levels = family.make().schedule(4).levels
    np.testing.assert_allclose(levels, [*(5 * times / (1 + 4 * times)), 0.0], rtol=1e-6)
    scheduler = family.stock().scheduler
    scheduler.set_timesteps(sigmas=times.tolist())
    np.testing.assert_allclose(scheduler.timesteps.numpy(), 1000 * levels[:-1], rtol=1e-6)


def test_what_is_quoted_is_read_apart(family: checks.Family) -> None:
    """By ByT5, byte by byte, zeros where a prompt quotes nothing; and it changes the velocity."""
    model = family.build()
    found = model.texts(QUOTING)
    said = 'Text "red 38". Text "blue". '
    assert found["quoted_mask"].sum(1).tolist() == [len(said) + 1, 0]  # and its end
    assert not found["quoted"][1].any() and found["quoted"][0].any(1).all()
    assert model.texts(PLAIN)["quoted"].shape == (2, 1, 24)
    x, sigma = checks.inputs(model, 1)
    cond = checks.encoded(model, QUOTING[:1])
    without = cond | {"quoted_mask": torch.zeros_like(cond["quoted_mask"])}
    both = [checks.velocity(model, x, sigma, one) for one in (cond, without)]
    assert float((both[0] - both[1]).abs().max()) > 0.01


def test_padding_is_zero_and_masked(family: checks.Family) -> None:
    model = family.build(("encoders",))
    prompts = list(QUOTING)
    found, lengths = model.texts(prompts), model.tokenize(prompts)[0]
    assert prompts == QUOTING and lengths[0] > lengths[1]
    assert found["mask"].sum(1).tolist() == [min(length, 24) for length in lengths]
    assert not found["text"][1, lengths[1] :].any() and found["text"][1, lengths[1] - 1].any()


def test_the_instruction_has_as_many_tokens_as_the_pipeline_cuts(family: checks.Family) -> None:
    pipe = family.stock()
    text = f"<|im_start|>system\n{pipe.system_message}<|im_end|>\n<|im_start|>user\n"
    ids = pipe.tokenizer(text)["input_ids"]
    assert len(ids) == BEFORE == pipe.prompt_template_encode_start_idx
    # the prompt's three tokens, and five after it
    assert family.build(("encoders",)).tokenize(["a red circle"]) == ([8], 24)


def test_text_and_the_negative_text_matter(family: checks.Family) -> None:
    checks.text_matters(family)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rows_are_independent(family: checks.Family, scale: float) -> None:
    checks.rows_are_independent(family, scale)


def test_guided_velocity_is_that_of_two_plain_calls(family: checks.Family) -> None:
    def combined(wanted: Tensor, unwanted: Tensor) -> Tensor:
        return unwanted + checks.SCALE * (wanted - unwanted)

    checks.guidance_is_two_plain_calls(family, combined)


def test_adapters_sit_in_attention(family: checks.Family) -> None:
    own = ("to_q", "to_k", "to_v", "to_out.0")
    joint = (*own, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    layers = {
        *(f"transformer_blocks.{block}.attn.{layer}" for block in (0, 1) for layer in joint),
        *(f"context_embedder.token_refiner.refiner_blocks.0.attn.{layer}" for layer in own),
    } - {"transformer_blocks.1.attn.to_add_out"}  # whose output nobody reads
    checks.adapters_sit_in(family, layers)


@pytest.mark.parametrize(
    ("form", "rank"), [("lora", 2), ("pipeline", 2), ("transformer", 0), ("transformer", 2)]
)
def test_exports_draw_the_policys_video(
    family: checks.Family, tmp_path: Path, form: str, rank: int
) -> None:
    from diffusers import HunyuanVideo15Transformer3DModel

    model = family.build(lora_rank=rank, lora_alpha=3 * rank, true_cfg=3.0)
    shift = checks.SHIFT if form == "pipeline" else None
    untrained = grown(model, QUOTING, shift=shift)[1]
    checks.move(model)
    roots, found = grown(model, QUOTING, shift=shift)
    assert float((found - untrained).abs().max()) > 0.02
    model.save(tmp_path / "out", family.folder, form, shift)
    pipe = family.stock(tmp_path / "out" if form == "pipeline" else None)
    if form == "lora":  # as the model card does
        code = model.options.lora_code.replace('"."', repr(str(tmp_path / "out")))
        exec(code, {"pipe": pipe})
    if form == "transformer":
        pipe.transformer = HunyuanVideo15Transformer3DModel.from_pretrained(tmp_path / "out")
    wanted, _ = drawn(pipe, model.options, QUOTING, roots)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_only_the_wanted_parts_are_loaded(family: checks.Family) -> None:
    folder_checks.only_the_wanted_parts_are_loaded(family)


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointing_keeps_the_gradient(family: checks.Family, rank: int) -> None:
    checks.checkpointing_keeps_the_gradient(family, rank)


def test_long_prompts_are_counted(family: checks.Family) -> None:
    # the template has 5 tokens after the text
    checks.long_prompts_are_counted(family, " circle" * 19, " circle" * 20)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_probes_have_the_texts_shapes(family: checks.Family, scale: float) -> None:
    checks.probes_have_the_texts_shapes(family, scale)


def test_bfloat16_is_near(family: checks.Family) -> None:
    checks.bfloat16_is_near(family)


def test_blocks_are_compiled(family: checks.Family, monkeypatch: pytest.MonkeyPatch) -> None:
    checks.blocks_are_compiled(family, monkeypatch)


def test_tokens_and_shapes(family: checks.Family) -> None:
    model = family.build(("denoiser",), height=48, evaluation_frames=9, true_cfg=3.0)
    assert model.latent_shape == (8, 2, 3, 2)
    assert model.in_evaluation(64, 0).latent_shape == (8, 3, 4, 2)
    # of the video, of text, of quotations, and one of no picture; twice, for guidance
    assert model.tokens(model.fingerprint_conditioning(1, 20)) == 2 * (12 + 20 + 20 + 1)


@pytest.mark.parametrize("again", [False, True])
def test_without_values_it_is_the_same_denoiser(family: checks.Family, again: bool) -> None:
    """What is counted on the meta device: the velocity and its gradient by the denoiser's parts are
    those of its own forward."""
    model = family.build(lora_rank=2, gradient_checkpointing=again, true_cfg=3.0)
    checks.move(model)
    x, sigma = checks.inputs(model, 2)
    cond, found = checks.encoded(model, QUOTING), []
    own = model.denoiser
    for call in (own, model.by_shapes):
        model.denoiser = call if call is own else _Calls(own, call)
        velocity = model.velocity(x, sigma, cond)
        model.denoiser = own
        values = list(model.trainable().values())
        gradient = torch.autograd.grad(velocity.square().mean(), values)
        found.append(torch.cat([velocity.flatten(), *(one.flatten() for one in gradient)]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    bare = model.options.without_weights(("denoiser",))
    assert training(bare, bare.latent_shape, 16).flops > 0


class _Calls:
    """A denoiser that another function computes."""

    def __init__(self, own: Any, call: Any):
        self.own, self.call = own, call

    def __call__(self, **given: Any) -> Any:
        return self.call(**given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


def changed(family: checks.Family, folder: Path, path: str, **keys: Any) -> HunyuanVideoModel:
    """Options of a copy of the folder, where one of the files has these keys."""
    copytree(family.folder, folder)
    file = folder / path
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    found: Any = family.make(path=str(folder))
    return found


def test_bad_folders_sizes_and_options_are_one_line(family: checks.Family, tmp_path: Path) -> None:
    folder_checks.folders_are_checked(family, tmp_path)
    folder_checks.refused(family.make(height=40), "expected multiples of 16, got 40×32")
    folder_checks.refused(family.make(frames=16), "model.frames: expected 1 + a multiple of 4")
    folder_checks.refused(
        family.make(attention="flash"), "model.attention: expected one that takes a mask"
    )
    family.make(attention="native", height=64, frames=9).check()


@pytest.mark.parametrize(
    ("path", "keys", "message"),
    [
        (
            "model_index.json",
            {"guider": ["diffusers", "AdaptiveProjectedGuidance"]},
            "expected a guider ClassifierFreeGuidance in",
        ),
        ("model_index.json", {"guider": [None, None]}, "expected a guider ClassifierFreeGuidance"),
        ("guider/guider_config.json", {"guidance_rescale": 0.7}, "got guidance_rescale: 0.7"),
        ("guider/guider_config.json", {"stop": 0.5}, "expected plain guidance of every step in"),
        ("transformer/config.json", {"use_meanflow": True}, "got use_meanflow: True"),
        ("transformer/config.json", {"patch_size": 2}, "of patches of one latent"),
    ],
)
def test_what_is_not_known_is_refused(
    family: checks.Family, tmp_path: Path, path: str, keys: dict[str, Any], message: str
) -> None:
    folder_checks.refused(changed(family, tmp_path / "copy", path, **keys), message)
    changed(family, tmp_path / "same", path).check()
