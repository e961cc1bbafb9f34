"""A run goes on only as what it was: what that is, and how it is compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.small_trees import quickstart
from support.training import CHANGEABLE

from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError
from branchgrpo.runs.identity import (
    MEANING,
    identity,
    identity_of,
    model_digest,
    require_same,
    shown,
)

ASSETS = Path(__file__).parents[3] / "branchgrpo" / "assets" / "tiny-flux"


def config(**options: str) -> Config:
    return quickstart(CHANGEABLE | options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, somewhere else."""
    return Path(shutil.copytree(ASSETS, tmp_path_factory.mktemp("model") / "tiny"))


def test_the_digest_is_of_what_the_model_computes(model: Path, tmp_path: Path) -> None:
    assert model_digest(model) == model_digest(ASSETS)
    (model / "README.md").write_text("a card")
    assert model_digest(model) == model_digest(ASSETS)
    other = Path(shutil.copytree(model, tmp_path / "other"))
    weights = load_file(other / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(
        {name: value + 0.001 for name, value in weights.items()},
        other / "transformer" / "diffusion_pytorch_model.safetensors",
    )
    # trained further: all headers and sizes are equal
    assert model_digest(other) != model_digest(model)
    shutil.copytree(model, other, dirs_exist_ok=True)
    assert model_digest(other) == model_digest(model)
    text = other / "text_encoder" / "config.json"
    text.write_text(text.read_text().replace('"hidden_act"', '"hidden_art"'))
    assert model_digest(other) != model_digest(model)


REFUSED = {
    "model.dtype": "bfloat16",
    "model.lora_rank": "8",
    "model.lora_alpha": "64",
    "model.lora_targets": "[to_q]",
    "model.height": "16",
    "model.true_cfg": "2.0",
    "model.negative_prompt": "a star",
    "rollout.storage_dtype": "bfloat16",
    "learner.ema": "0",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_a_run_is_does_not_change(key: str) -> None:
    rank = {"model.lora_rank": "4", "model.lora_alpha": "8"}
    old, new = identity(config(**rank)), identity(config(**rank | {key: REFUSED[key]}))
    assert json.loads(json.dumps(old)) == old
    with pytest.raises(
        UserError,
        match=rf"^--resume: it: expected {key} [^\n]+, got [^\n]+: a "
        r"run goes on only as what it was$",
    ):
        require_same(old, new, "it")
    if key in MEANING:
        with pytest.raises(UserError, match=rf"^--resume: it: expected {key} [^\n]+, got [^\n]+$"):
            require_same(old, new, "it", meaning_alone=True)
    else:
        (line,) = require_same(old, new, "it", meaning_alone=True)
        assert line.startswith(f"{key}: ") and " → " in line


def test_another_family_of_methods_and_another_model_are_refused(
    model: Path, tmp_path: Path
) -> None:
    old = identity(config())
    chains = {"method": "{name: chains}", "advantage": "{name: group}", "pruning": "[]"}
    with pytest.raises(UserError, match=r"expected method\.name branchgrpo, got chains"):
        require_same(
            old,
            identity(
                quickstart(
                    {
                        key: value
                        for key, value in CHANGEABLE.items()
                        if not key.startswith("method.")
                    }
                    | chains
                )
            ),
            "it",
        )
    moved = identity(config(**{"model.path": str(model)}))
    assert require_same(old, moved, "it") == []  # the same files, elsewhere
    shutil.copytree(model, tmp_path / "other")
    text = tmp_path / "other" / "transformer" / "config.json"
    text.write_text(text.read_text() + "\n")
    other = identity(config(**{"model.path": str(tmp_path / "other")}))
    with pytest.raises(
        UserError,
        match=r"expected model\.path embedded:tiny-flux \(files "
        rf"{old['model.files']}\), got {tmp_path}/other \(files ",
    ):
        require_same(old, other, "it", meaning_alone=True)


def test_ways_of_writing_and_of_computing_are_not_what_a_run_is() -> None:
    for options, others in (
        ({"model.lora_rank": "4"}, {"model.lora_rank": "4", "model.lora_alpha": "8"}),
        ({"model.lora_rank": "0"}, {"model.lora_rank": "0", "model.lora_alpha": "8"}),
        ({"learner.ema": "0.5"}, {"learner.ema": "0.9"}),
        (
            {},
            {
                "model.gradient_checkpointing": "true",
                "model.decode_batch": "2",
                "model.vae_tiling": "true",
                "model.offload_encoders": "true",
            },
        ),
    ):
        assert identity(config(**options)) == identity(config(**others))
    loaded = config()
    assert identity_of(shown(loaded), loaded) | {"model.files": ""} == identity(loaded) | {
        "model.files": ""
    }
    assert len(require_same({}, identity(loaded), "it")) == 1  # older ones say nothing
