"""Encoded prompts of every family: they keep their dtype on the road, and may be encoded and sent
apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from support.model_checks import inputs, velocity
from support.records import records

from branchgrpo.models.flux import FluxModel
from branchgrpo.models.flux2_klein import Flux2KleinModel
from branchgrpo.models.hunyuan_video import HunyuanVideoModel
from branchgrpo.models.pipeline import PipelineAdapter
from branchgrpo.models.pipeline_options import PipelineModel
from branchgrpo.models.qwen_image import QwenImageModel
from branchgrpo.models.sd3 import SD3Model
from branchgrpo.models.small.flux2_klein import small_flux2_klein
from branchgrpo.models.small.hunyuan_video import small_hunyuan_video
from branchgrpo.models.small.qwen_image import small_qwen_image
from branchgrpo.models.small.sd3 import small_sd3
from branchgrpo.models.small.wan import small_wan
from branchgrpo.models.small.z_image import small_z_image
from branchgrpo.models.wan import WanModel
from branchgrpo.models.z_image import ZImageModel
from branchgrpo.types import Conditioning, Sample

pytestmark = pytest.mark.networks

PROMPTS = ["the number 38 in black on yellow", "a red circle", "a circle"]
Options = Callable[..., PipelineModel]
SIZE = {"height": 32, "width": 32, "max_sequence_length": 16}


@pytest.fixture(
    scope="module",
    params=["flux", "sd3", "qwen_image", "flux2_klein", "z_image", "wan", "hunyuan_video"],
)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Options of a small model of it."""
    folder = tmp_path_factory.mktemp(request.param)
    made = {
        "flux": lambda: partial(FluxModel, path="embedded:tiny-flux"),
        "sd3": lambda: partial(SD3Model, path=str(small_sd3(folder))),
        "qwen_image": lambda: partial(QwenImageModel, path=str(small_qwen_image(folder))),
        "flux2_klein": lambda: partial(Flux2KleinModel, path=str(small_flux2_klein(folder))),
        "z_image": lambda: partial(ZImageModel, path=str(small_z_image(folder))),
        "wan": lambda: partial(WanModel, path=str(small_wan(folder)), frames=5),
        "hunyuan_video": lambda: partial(
            HunyuanVideoModel, path=str(small_hunyuan_video(folder)), frames=5
        ),
    }
    return partial(made[request.param](), **SIZE)


def build(family: Options, dtype: str, scale: float) -> PipelineAdapter:
    torch.manual_seed(0)
    options = family(dtype=dtype, true_cfg=scale, negative_prompt="a blue square on white")
    found = options.build("cpu")
    assert isinstance(found, PipelineAdapter)
    return found


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_bfloat16_is_not_widened_and_velocities_are_the_same_to_the_bit(
    family: Options,
    scale: float,
) -> None:
    model = build(family, "bfloat16", scale)
    found = model.encode(records(PROMPTS))
    assert found.dtypes["text"] == "bfloat16"
    own = model.conditioning(found)
    wide = {name: array.float() for name, array in own.items()}  # as they travelled before
    assert own["text"].dtype == torch.bfloat16
    assert found.arrays["text"].nbytes == wide["text"].nbytes // 2
    x, sigma = inputs(model, len(PROMPTS))
    assert torch.equal(velocity(model, x, sigma, own), velocity(model, x, sigma, wide))


def test_each_record_has_its_own_negative_prompt(family: Options) -> None:
    """As encodings of those texts by themselves, beside the prompt's; without one, the model's."""
    guided, plain = build(family, "float32", 3.0), build(family, "float32", 1.0)
    texts = ["", "a red circle", "", "the number 12", "a red circle"]
    wanted = [text or "a blue square on white" for text in texts]
    samples = [
        Sample(prompt=prompt, negative_prompt=text)
        for prompt, text in zip([*PROMPTS, *PROMPTS[:2]], texts, strict=True)
    ]
    whole = guided.encode(samples)
    alone = Conditioning.joined([guided.encode([sample]) for sample in samples])
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(array, alone.arrays[name], rtol=1e-6, atol=2e-6)
        for row, (sample, text) in enumerate(zip(samples, wanted, strict=True)):
            pair = [plain.encode(records([one])).arrays[name][0] for one in (sample.prompt, text)]
            for found, expected in zip(array[row], pair, strict=True):
                length = len(expected) if expected.ndim else None
                np.testing.assert_allclose(found[:length], expected, rtol=1e-6, atol=2e-6)
    texts = [sample.prompt for sample in samples]
    assert guided.truncated(samples) == plain.truncated(records(texts))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_encoded_apart_they_are_those_encoded_at_once(family: Options, scale: float) -> None:
    """In two batches, one object a prompt; texts of different lengths among them."""
    model = build(family, "float32", scale)
    whole = model.encode(records(PROMPTS))
    parts = [
        *model.encode(records(PROMPTS[1:])).split(),
        *model.encode(records(PROMPTS[:1])).split(),
    ]
    assert [part.rows for part in parts] == [1, 1, 1]
    joined = Conditioning.joined([parts[2], parts[0], parts[1]])
    assert joined.rows == 3 and joined.arrays.keys() == whole.arrays.keys()
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(joined.arrays[name], array, rtol=0, atol=1e-5, err_msg=name)


def test_parts_that_do_not_fit_are_refused() -> None:
    one = Conditioning({"text": np.zeros((1, 2, 3), np.float32)}, 1)
    for other in (
        Conditioning({"text": np.zeros((1, 2, 3), np.uint16)}, 1, {"text": "bfloat16"}),
        Conditioning({"words": np.zeros((1, 2, 3), np.float32)}, 1),
        Conditioning({"text": np.zeros((1, 6), np.float32)}, 1),
    ):
        with pytest.raises(ValueError, match="expected parts with the same arrays"):
            Conditioning.joined([one, other])
