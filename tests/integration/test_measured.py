"""`eval` of runs, whatever they exported, and their model cards: small random models of the real
families, whole runs in one process."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from rich.console import Console
from support.drawn import sampled
from support.in_process import Service

from branchgrpo.algo import noise
from branchgrpo.app.results import Result
from branchgrpo.config import load as configs
from branchgrpo.config.schema import Config
from branchgrpo.config.shipped import QUICKSTART
from branchgrpo.errors import UserError
from branchgrpo.models.flux import FluxModel
from branchgrpo.models.small.flux2_klein import small_flux2_klein
from branchgrpo.models.small.hunyuan_video import small_hunyuan_video
from branchgrpo.models.small.qwen_image import small_qwen_image
from branchgrpo.models.small.sd3 import small_sd3
from branchgrpo.models.small.wan import small_wan, small_wan22
from branchgrpo.models.small.z_image import small_z_image
from branchgrpo.report.contact_sheet import evenly, kept
from branchgrpo.report.sinks import read
from branchgrpo.report.terminal import Display
from branchgrpo.runs.measured import chosen, listing, prepared, write
from branchgrpo.training.carry_out import carry_out, measure
from branchgrpo.types import EVALUATION, TreeKey

CONFIG = """
run: {name: small, iterations: 2, seed: 3}
prompts: TRAIN
held_out: HELD_OUT
sampling: {steps: 5}
method: {name: branchgrpo, splits: [0, 1], leaves: 4, stochastic: splits, kernel: dance, eta: 0.5}
advantage: {name: depthwise}
loss: {name: clipped, clip_range: 1.0e-3}
rewards: [{name: jpeg}]
rollout: {workers: 1, prompts: 2, cpus: 1, max_batch: 8}
learner: {learning_rate: 1.0e-2, micro_batch: 4, cpus: 1}
evaluation: {prompts: 3, prompts_between: 3, pictures: 3, every: 1, steps: 4}
checkpoint: {every: 1}
gates: {on_policy_tolerance: 1.0e-4}
"""
HELD_OUT = ["the number 38 in black on yellow", "a red circle above a star", "a blue star"]


@dataclass(frozen=True)
class Case:
    family: str
    form: str
    model: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


LORA = {"lora_rank": 2, "lora_alpha": 6}
CASES = {
    "sd3, adapters": Case("sd3", "lora", LORA),
    "sd3, no T5, transformer": Case(
        "sd3 without t5", "transformer", {"true_cfg": 2.0}, {"learner.learning_rate": "1e-4"}
    ),
    "flux, transformer, a shift": Case(
        "flux",
        "transformer",
        {"true_cfg": 2.0, "negative_prompt": "a red circle"},
        {"sampling.shift": "2.0"},
    ),
    "flux, pipeline of adapters, a shift": Case(
        "flux", "pipeline", LORA, {"sampling.shift": "2.0", "evaluation.width": "48"}
    ),
    "flux, nothing, the mean of weights": Case(
        "flux", "none", {}, {"learner.ema": "0.5", "evaluation.weights": "ema"}
    ),
    "qwen, adapters": Case(
        "qwen_image",
        "lora",
        LORA | {"true_cfg": 3.0},
        {"learner.learning_rate": "0.2", "evaluation.height": "48"},
    ),
    "klein, adapters": Case(
        "flux2_klein", "lora", LORA | {"true_cfg": 3.0}, {"learner.learning_rate": "0.1"}
    ),
    "z-image, adapters": Case(
        "z_image",
        "lora",
        LORA | {"true_cfg": 3.0, "cfg_normalization": 1.0, "cfg_truncation": 0.9},
        {"learner.learning_rate": "0.1"},
    ),
    "wan, adapters": Case(
        "wan",
        "lora",
        LORA | {"frames": 5, "evaluation_frames": 9, "true_cfg": 3.0},
        {"learner.learning_rate": "0.1", "evaluation.height": "48"},
    ),
    "wan2.2, adapters": Case(
        "wan 2.2",
        "lora",
        LORA | {"frames": 5, "evaluation_frames": 9, "true_cfg": 3.0},
        {"learner.learning_rate": "0.1"},
    ),
    "hunyuan, adapters": Case(
        "hunyuan_video",
        "lora",
        LORA | {"frames": 5, "evaluation_frames": 9, "true_cfg": 3.0},
        {"learner.learning_rate": "0.1", "evaluation.height": "48"},
    ),
    "wan a14b, adapters": Case(
        "wan a14b",
        "lora",
        LORA | {"frames": 5, "true_cfg": 3.0, "true_cfg_2": 2.0},
        {"learner.learning_rate": "0.1", "method.splits": "[0, 2]"},
    ),
    "wan a14b, one transformer": Case(
        "wan a14b",
        "transformer",
        {"frames": 5, "true_cfg": 1.0, "train_denoisers": "low"},
        {"learner.learning_rate": "1e-3", "method.splits": "[0, 2]"},
    ),
    "wan, nothing, adapters": Case(
        "wan",
        "none",
        LORA | {"frames": 5, "true_cfg": 1.0},
        {"sampling.shift": "5.0", "learner.learning_rate": "0.3"},
    ),
}


def base(family: str, folder: Path) -> dict[str, Any]:
    """Keys of `model`."""
    if family == "flux":
        return {
            "name": "flux",
            "path": "embedded:tiny-flux",
            "guidance": 2.0,
            "max_sequence_length": 16,
        }
    write: Callable[[Path], Path] = {
        "sd3": small_sd3,
        "sd3 without t5": partial(small_sd3, t5=False),
        "qwen_image": small_qwen_image,
        "flux2_klein": small_flux2_klein,
        "z_image": small_z_image,
        "hunyuan_video": small_hunyuan_video,
        "wan": small_wan,
        "wan 2.2": small_wan22,
        "wan a14b": partial(small_wan, two=True),
    }[family]
    return {"name": family.partition(" ")[0], "path": str(write(folder))}


def display() -> Display:
    return Display("test", 1, "jpeg/score", Console(file=StringIO()))


def small_run(case: Case, folder: Path) -> tuple[Config, dict[str, Any]]:
    """A run that has ended in FOLDER/run."""
    (folder / "train.txt").write_text("the number 7\na red circle\na green square on white\n")
    (folder / "held.txt").write_text("\n".join(HELD_OUT) + "\n")
    model = {
        "height": 32,
        "width": 32,
        "max_sequence_length": 24,
        **base(case.family, folder / "base"),
        **case.model,
    }
    text = CONFIG.replace("TRAIN", str(folder / "train.txt")).replace(
        "HELD_OUT", str(folder / "held.txt")
    )
    (folder / "run.yaml").write_text(f"{text}model: {json.dumps(model)}\n")
    config = configs.load(
        folder / "run.yaml",
        {"run.export": case.form, "run.folder": str(folder / "evals"), **case.keys},
    )
    summary = carry_out(
        config,
        service=Service(config),
        folder=folder / "run",
        display=display(),
        interrupted=lambda: False,
    )
    return config, summary


def measured(
    run: Path, checkpoint: int | None = None, config: Path | None = None
) -> dict[str, Any]:
    """What `eval` finds."""
    target = chosen(
        run,
        config=config,
        texts={"evaluation.diversity": "0"},
        checkpoint=checkpoint,
        default=QUICKSTART,
    )
    with prepared(target) as (found, folder):
        found.model.check()
        row, _ = measure(
            found,
            service=Service(found),
            display=display(),
            picture=folder / "samples.png",
            title=target.name,
        )
        write(target, folder, row)
    kept_row = json.loads((folder / "eval.json").read_text())
    assert kept_row["settings"]["height"] == found.evaluated.picture_size[0]
    drawn = f"; {found.evaluation_steps} Euler steps, "
    assert all(drawn in line for line in listing(row).splitlines())
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".webp") == [
        "eval.json",
        "samples.npz",
        "samples.png",
    ]
    return row


QUICK = (
    "sd3, adapters",
    "flux, pipeline of adapters, a shift",
    "flux, nothing, the mean of weights",
    "wan, nothing, adapters",
)


@pytest.fixture(
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def ended(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Config, dict[str, Any], Path]:
    torch.manual_seed(0)  # adapters begin alike, whatever ran before
    config, summary = small_run(CASES[request.param], tmp_path)
    return config, summary, tmp_path / "run"


def test_eval_finds_what_the_run_found_and_the_card_draws_it(
    ended: tuple[Config, dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, summary, run = ended
    before, after = (summary["held_out"]["jpeg/score"][when] for when in ("before", "after"))
    on_the_way = {
        record["iteration"]: record["held_out/jpeg/score"]
        for record in read(run / "metrics.jsonl")
        if "held_out/jpeg/score" in record
    }
    assert len({round(value, 5) for value in (before, on_the_way[1], after)}) == 3, (
        "nothing was learnt that could be told apart"
    )
    moved = min(abs(after - before), abs(after - on_the_way[1]), abs(before - on_the_way[1]))
    near = 0.1 * moved
    assert measured(run)["held_out"]["jpeg/score"]["mean"] == pytest.approx(after, abs=near)
    assert measured(run, 1)["held_out"]["jpeg/score"]["mean"] == pytest.approx(
        on_the_way[1], abs=near
    )
    assert measured(run, 2)["held_out"]["jpeg/score"]["mean"] == pytest.approx(after, abs=near)
    with pytest.raises(
        UserError,
        match=r"--checkpoint: expected one of iteration 7 in .*, found "
        r"1, 2$",
    ):
        chosen(run, config=None, texts={}, checkpoint=7, default=QUICKSTART)
    wanted = kept(run / "samples" / "after.npz")[0]  # of videos a few frames
    result = Result(folder=run, config=config, summary=summary, metrics=[])
    drawn = np.stack([np.stack(one) for one in frames(result.sample(HELD_OUT))])
    assert np.abs(drawn[:, evenly(drawn.shape[1], wanted.shape[1])] - 1.0 * wanted).max() <= 1.0
    earlier = np.stack([np.stack(one) for one in frames(result.sample(HELD_OUT, checkpoint=1))])
    assert np.abs(earlier - 1.0 * drawn).max() > 1.0
    assert sampled(run, HELD_OUT, monkeypatch) == pytest.approx(drawn, abs=1.0)
    if config.run.export == "none":
        assert not (run / "weights").exists()
        return
    pictures = card_pictures(config, run / "weights", monkeypatch)
    shown = pictures[:, evenly(pictures.shape[1], wanted.shape[1])]
    assert np.abs(shown * 255 - wanted).max() <= 1.0 and wanted.std() > 5
    card = (run / "weights" / "README.md").read_text()
    assert (
        f"| jpeg/score | {before:.4f} | {after:.4f} |" in card
        and "3 held-out prompts" in card
        and "licence of the base model" in card
    )


def frames(pictures: list[Any]) -> list[list[np.ndarray]]:
    """Of each picture or video."""
    videos = [one if isinstance(one, list) else [one] for one in pictures]
    return [[np.asarray(frame) for frame in video] for video in videos]


def card_pictures(config: Config, weights: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The card's code, run from its text; only noise and prompts are those of evaluation. [P, F, H,
    W, 3], 0 … 1."""
    (code,) = re.findall(r"```python\n(.*?)```", (weights / "README.md").read_text(), re.DOTALL)
    model: Any = config.evaluated
    pipeline = getattr(diffusers, model.pipeline)
    shape = model.build("cpu", ("denoiser",)).latent_shape
    roots = torch.stack(
        [
            noise.draw(config.run.seed, TreeKey("card", EVALUATION, row, 0), 0, shape)
            for row in range(len(HELD_OUT))
        ]
    )
    original = pipeline.__call__

    def drawn(self: Any, prompt: str, **keys: Any) -> Any:
        assert isinstance(prompt, str)
        self.set_progress_bar_config(disable=True)
        keys |= (
            {"negative_prompt": [keys["negative_prompt"]] * len(HELD_OUT)}
            if "negative_prompt" in keys
            else {}
        )
        # a list of its own: Z-Image's pipeline writes its template into what it is given
        return original(self, prompt=list(HELD_OUT), latents=roots, output_type="np", **keys)

    monkeypatch.setattr(pipeline, "__call__", drawn)
    monkeypatch.chdir(weights)
    names: dict[str, Any] = {}
    exec(code, names)
    return np.asarray(names["frames"] if "frames" in names else names["images"][:, None])


def test_another_config_wins_and_the_run_says_what_its_weights_are_of(tmp_path: Path) -> None:
    """The same run by a config file that asks for fewer prompts, names another model and knows
    nothing of adapters."""
    _, _ = small_run(CASES["flux, pipeline of adapters, a shift"], tmp_path)
    shutil.rmtree(tmp_path / "run" / "weights")
    text = (tmp_path / "run.yaml").read_text().replace("prompts: 3", "prompts: 2")
    model = {
        "name": "flux",
        "path": "elsewhere",
        "height": 32,
        "width": 32,
        "guidance": 2.0,
        "max_sequence_length": 16,
    }
    (tmp_path / "other.yaml").write_text(re.sub("model: {.*}", f"model: {json.dumps(model)}", text))
    target = chosen(
        tmp_path / "run",
        config=tmp_path / "other.yaml",
        texts={},
        checkpoint=None,
        default=QUICKSTART,
    )
    found: Any = target.config.model
    assert (found.path, found.lora_rank, found.lora_alpha, target.config.evaluation.prompts) == (
        "embedded:tiny-flux",
        2,
        6,
        2,
    )
    assert target.saved and target.saved.iteration == 2 and target.config.evaluation.diversity == 2


def test_a_pipelines_folder_is_measured_by_the_quick_start(tmp_path: Path) -> None:
    folder = FluxModel(path="embedded:tiny-flux").folder()
    target = chosen(folder, config=None, texts={}, checkpoint=None, default=QUICKSTART)
    assert (
        target.config.model.path == str(folder)
        and target.config.evaluation.diversity == 32
        and target.saved is target.weights is None
    )
    with pytest.raises(UserError, match="--checkpoint: expected the folder of a run"):
        chosen(folder, config=None, texts={}, checkpoint=3, default=QUICKSTART)
    (tmp_path / "config.yaml").write_text(QUICKSTART.read_text())
    with pytest.raises(UserError, match="expected weights/ or checkpoints, found neither"):
        chosen(tmp_path, config=None, texts={}, checkpoint=None, default=QUICKSTART)


def test_what_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    target = chosen(
        FluxModel(path="embedded:tiny-flux").folder(),
        config=None,
        texts={"run.folder": str(tmp_path)},
        checkpoint=None,
        default=QUICKSTART,
    )
    with pytest.raises(RuntimeError), prepared(target):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
