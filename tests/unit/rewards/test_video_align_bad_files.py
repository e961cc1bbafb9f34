"""Files that VideoAlign cannot read are refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_video_align import (
    options,
    written,
)

from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Resources

pytestmark = pytest.mark.networks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("video_align"))


def changed(at: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(at / "one" / "model.safetensors")
    change(state)
    save_file(state, at / "one" / "model.safetensors", {"format": "pt"})


def replaced(at: Path, name: str, content: bytes) -> None:
    (at / "one" / "model.safetensors").unlink()
    (at / "one" / name).write_bytes(content)


def pickled(at: Path) -> None:
    replaced(at, "model.pth", b"")
    torch.save({"a": np.random.default_rng()}, at / "one" / "model.pth")


def unmerged(at: Path) -> None:
    replaced(at, "model.pth", b"")
    torch.save(
        {f"base_model.model.lm_head.lora_{part}.default.weight": torch.ones(1, 1) for part in "AB"},
        at / "one" / "model.pth",
    )


HEAD, QUERY = "rm_head.weight", "model.language_model.layers.1.self_attn.q_proj.weight"


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no checkpoint": (
        lambda at: (at / "one").rename(at / "gone"),
        "video_align.path: expected a VideoReward folder, found nothing",
    ),
    "no weights": (
        lambda at: (at / "one" / "model.safetensors").unlink(),
        r"expected \*.safetensors or model.pth in .*, got none",
    ),
    "adapters alone": (
        lambda at: replaced(at, "adapter_model.safetensors", b""),
        "adapter_model.safetensors alone: merge them first",
    ),
    "truncated": (
        lambda at: replaced(at, "model.safetensors", b"\x10\0\0\0\0\0\0\0{}"),
        "model.safetensors is truncated",
    ),
    "a pickle": (pickled, "weights_only"),
    "LoRA without its config": (
        unmerged,
        "expected peft_lora_config.lora_alpha in a model_config.json",
    ),
    "no head": (
        lambda at: changed(at, lambda state: state.pop(HEAD)),
        r"expected rm_head.weight \[1 or 3, 32\]",
    ),
    "a head of two": (
        lambda at: changed(at, lambda state: state.update({HEAD: torch.ones(2, 32)})),
        r"got \(2, 32\)",
    ),
    "a tensor less": (
        lambda at: changed(at, lambda state: state.pop(QUERY)),
        r"expected language_model.layers.1.self_attn.q_proj.weight \(32, 32\), got none",
    ),
    "few embeddings": (
        lambda at: changed(
            at,
            lambda state: state.update(
                {"model.language_model.embed_tokens.weight": torch.ones(9, 32)}
            ),
        ),
        "expected embeddings of 266 tokens, the tokenizer's of .*, got 9",
    ),
    "no base": (
        lambda at: (at / "base").rename(at / "gone"),
        "video_align.base: expected a Qwen2-VL folder, found nothing",
    ),
    "another base": (
        lambda at: (at / "base" / "config.json").write_text('{"model_type": "llama"}'),
        "expected model_type qwen2_vl .*, got llama",
    ),
    "no processor": (
        lambda at: (at / "base" / "processor_config.json").unlink(),
        "video_align.base: expected preprocessor_config.json or processor_config.json",
    ),
    "no chat template": (
        lambda at: (at / "base" / "chat_template.jinja").unlink(),
        "expected a chat template",
    ),
    "no template": (
        lambda at: (at / "template.txt").unlink(),
        "video_align.template: expected a text file, found nothing",
    ),
    "a template without a token": (
        lambda at: (at / "template.txt").write_text("{text_prompt} <|VQ_reward|>"),
        r"expected <\|MQ_reward\|> once in .*, found it 0 times",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_give_one_line(case: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    spoil, message = BAD[case]
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        options(tmp_path).check()
        options(tmp_path).build(Resources())
    assert "\n" not in str(caught.value)
