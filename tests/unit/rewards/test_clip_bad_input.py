"""What the CLIP-like rewards refuse, in one line that says what was expected and what came."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_clips import (
    aesthetic_reward,
    clip_reward,
    hps_reward,
    refused,
)

from branchgrpo.rewards.aesthetic import AestheticReward
from branchgrpo.rewards.clip import ClipReward
from branchgrpo.rewards.hps import HpsReward
from branchgrpo.rewards.pickscore import PickScoreReward
from branchgrpo.rewards.small.clips import NARROW_H, head_weights, save_clip


@pytest.fixture(scope="module")
def hps(tmp_path_factory: pytest.TempPathFactory) -> HpsReward:
    return hps_reward(tmp_path_factory.mktemp("hps"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipReward:
    return clip_reward(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip-model"))


@pytest.fixture(scope="module")
def aesthetic(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AestheticReward:
    return aesthetic_reward(folder, tmp_path_factory.mktemp("head"))


class Code:
    """Unpickling it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_empty_and_missing_paths(aesthetic: AestheticReward, tmp_path: Path) -> None:
    for kind in (HpsReward, ClipReward, PickScoreReward, AestheticReward):
        assert "path: expected" in refused(kind(path=str(tmp_path / "nowhere")))
    assert "head: expected" in refused(
        aesthetic.model_copy(update={"head": str(tmp_path / "nowhere")})
    )
    for empty in (
        ClipReward(),
        PickScoreReward(),
        AestheticReward(),
        aesthetic.model_copy(update={"head": ""}),
    ):
        assert "got an empty path" in refused(empty)


@pytest.mark.parametrize(
    "save", [torch.save, lambda found, path: path.write_bytes(pickle.dumps(found, 2))]
)
def test_code_in_a_pickle_never_runs(
    hps: HpsReward, clip: ClipReward, aesthetic: AestheticReward, tmp_path: Path, save: Any
) -> None:
    save({"state_dict": {"visual.proj": Code(tmp_path / "ran")}}, tmp_path / "evil.pt")
    for options, key in ((hps, "path"), (clip, "path"), (aesthetic, "head")):
        assert "weights_only refuses" in refused(
            options.model_copy(update={key: str(tmp_path / "evil.pt")}), build=True
        )
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_checkpoint(
    hps: HpsReward, aesthetic: AestheticReward, tmp_path: Path
) -> None:
    path = tmp_path / "file.pt"
    options = (
        hps.model_copy(update={"path": str(path)}),
        aesthetic.model_copy(update={"head": str(path)}),
    )
    for content, message in (
        (Path(hps.path).read_bytes()[:5000], "is truncated"),
        (b"version https://git-lfs", "is none"),
        (b"", "is none"),
    ):
        path.write_bytes(content)
        assert all(message in refused(option) for option in options)
    torch.save({"state_dict": 3}, path)
    assert all("expected a state dict" in refused(option, build=True) for option in options)
    assert "it is a folder" in refused(hps.model_copy(update={"path": str(tmp_path)}))


def test_weights_of_another_architecture(
    hps: HpsReward, clip: ClipReward, aesthetic: AestheticReward, tmp_path: Path
) -> None:
    assert "expected shape (160,) visual.class_embedding, got shape (32,)" in refused(
        hps.model_copy(update={"path": clip.path}), build=True
    )
    state = torch.load(hps.path)["state_dict"]
    torch.save(
        {name: tensor for name, tensor in state.items() if name != "logit_scale"},
        tmp_path / "less.pt",
    )
    torch.save(state | {"extra": torch.ones(3)}, tmp_path / "more.pt")
    assert "expected shape () logit_scale, got no tensor" in refused(
        hps.model_copy(update={"path": str(tmp_path / "less.pt")}), build=True
    )
    assert "expected no tensor extra, got shape (3,)" in refused(
        hps.model_copy(update={"path": str(tmp_path / "more.pt")}), build=True
    )
    torch.save(head_weights(768), tmp_path / "wide.pth")
    wide = aesthetic.model_copy(update={"head": str(tmp_path / "wide.pth")})
    assert (
        "expected a head on the 24 features of rewards.aesthetic.path, got one on 768"
        in refused(wide, build=True)
    )
    assert "layers.0.weight" in refused(aesthetic.model_copy(update={"head": hps.path}), build=True)


def test_folders_that_hold_no_whole_clip_model(
    folder: Path, aesthetic: AestheticReward, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    options = (PickScoreReward(path=str(copy)), aesthetic.model_copy(update={"path": str(copy)}))
    weights = load_file(copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    name = "visual_projection.weight"
    for state, message in (
        (
            {key: tensor for key, tensor in weights.items() if key != name},
            f"expected shape (24, 32) {name}, got no tensor",
        ),
        (
            weights | {name: torch.ones(24, 48)},
            f"expected shape (24, 32) {name}, got shape (24, 48)",
        ),
    ):
        save_file(state, copy / "model.safetensors", {"format": "pt"})
        assert all(message in refused(option, build=True) for option in options)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert all("a pickle, which can run code" in refused(option) for option in options)
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    assert all(
        "expected a transformers CLIPModel folder (model_type clip), got model_type bert"
        in refused(option)
        for option in options
    )
    (copy / "config.json").unlink()
    assert all("config.json, which is missing" in refused(option) for option in options)


def test_architectures_that_are_none(clip: ClipReward, hps: HpsReward, tmp_path: Path) -> None:
    import open_clip

    text = NARROW_H["text_cfg"] | {"hf_tokenizer_name": "someone/tokenizer"}
    for config, message in (
        ({"embed_dim": 3}, "has no vision_cfg"),
        (NARROW_H | {"text_cfg": text}, "has hf_tokenizer_name"),
        ([], "expected a JSON object"),
    ):
        (tmp_path / "model.json").write_text(json.dumps(config))
        for options in (clip, hps):
            assert message in refused(
                options.model_copy(update={"model": str(tmp_path / "model.json")})
            )
    (tmp_path / "model.json").write_text(
        json.dumps(NARROW_H | {"vision_cfg": NARROW_H["vision_cfg"] | {"image_size": [224, 112]}})
    )
    torch.save(
        open_clip.CLIP(**json.loads((tmp_path / "model.json").read_text())).state_dict(),
        tmp_path / "oblong.pt",
    )
    oblong = HpsReward(path=str(tmp_path / "oblong.pt"), model=str(tmp_path / "model.json"))
    assert "rewards.hps.model: expected a square image_size, got 224 × 112" in refused(
        oblong, build=True
    )
