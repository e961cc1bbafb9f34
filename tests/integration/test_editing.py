"""Editing from end to end in one process: small random models that see a picture, or two, pictures
and targets in a file, a reward that goes by the metadata and one that is only measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from support.in_process import Service
from support.small_trees import quickstart

from branchgrpo.app.check import check
from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError
from branchgrpo.models.small.flux import small_flux
from branchgrpo.models.small.qwen_image import small_qwen_image_edit
from branchgrpo.report.settings import words
from branchgrpo.report.sinks import read
from branchgrpo.report.summary import table
from branchgrpo.report.terminal import Display
from branchgrpo.training.carry_out import carry_out

pytestmark = pytest.mark.networks

REWARD = '''
import numpy as np

def near(images, samples):
    """As near to the record's grey, and as far from its picture, as it gets."""
    found = []
    for image, sample in zip(images, samples, strict=True):
        assert sample.id.startswith("edit-") and len(sample.images) == COUNT
        before = np.asarray(sample.images[0].open().resize(image.size)).astype(float)
        after = np.asarray(image).astype(float)
        apart = np.abs(after - before).mean() / 255
        found.append(apart - abs(after.mean() - sample.metadata["grey"]) / 255)
    return found
'''
KEYS = {
    "run.iterations": "3",
    "run.export": "lora",
    "sampling.steps": "4",
    "method.splits": "[0, 1]",
    "method.leaves": "4",
    "rollout.prompts": "2",
    "rollout.threads": "1",
    "learner.threads": "1",
    "learner.learning_rate": "0.01",
    "learner.warmup": "0",
    "evaluation.prompts": "3",
    "evaluation.prompts_between": "2",
    "evaluation.pictures": "2",
    "evaluation.steps": "2",
    "evaluation.every": "0",
    "evaluation.category": "grey",
    "evaluation.rewards": "[{name: jpeg}]",
    "model.height": "32",
    "model.width": "32",
    "model.source_height": "32",
    "model.source_width": "32",
    "model.lora_rank": "2",
    "model.max_sequence_length": "16",
}
MODELS: dict[str, tuple[Callable[[Path], Path], dict[str, str]]] = {
    "flux_kontext": (partial(small_flux, pipeline="FluxKontextPipeline"), {}),
    "qwen_image_edit": (small_qwen_image_edit, {"model.pictures": "2"}),
}
"""What writes a small one, and its keys."""


GREYS = ["100", "110", "120"]
"""Of the held-out records, as categories."""


def records(folder: Path, name: str, count: int, first: int, pictures: int) -> Path:
    """A .jsonl file with so many pictures a record beside it."""
    draw, rows = np.random.default_rng(first), []
    for index in range(first, first + count):
        names = [f"{index}-{place}.png" for place in range(pictures)]
        for file in names:
            pixels = draw.integers(0, 256, (20 + index, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / file)
        row = {"prompt": f"make it {index}", "id": f"edit-{index}", "images": names}
        rows.append(row | {"grey": 10 * index})
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module", params=MODELS)
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder, (small, own) = tmp_path_factory.mktemp("editing"), MODELS[request.param]
    count = int(own.get("model.pictures", "1"))
    (folder / "own.py").write_text(REWARD.replace("COUNT", str(count)))
    keys = KEYS | own
    keys |= {
        "model.name": request.param,
        "model.path": str(small(folder / "model")),
        "prompts": str(records(folder, "train.jsonl", 5, 0, pictures=count)),
        "held_out": str(records(folder, "held-out.jsonl", 3, 10, pictures=count)),
        "rewards": json.dumps([{"name": f"{folder / 'own.py'}:near"}]),
    }
    found = quickstart(keys)
    check(found)
    return found


def test_an_editing_run_trains_and_exports_what_the_stock_pipeline_loads(
    config: Config, tmp_path: Path
) -> None:
    service, folder = Service(config), tmp_path / "run"
    display = Display("test", 1, config.metric, Console(file=StringIO()))
    summary: Any = carry_out(
        config, service=service, folder=folder, display=display, interrupted=lambda: False
    )
    steps = [row for row in read(folder / "metrics.jsonl") if "update/gradient_norm" in row]
    assert len(steps) == 3 and all(row["update/gradient_norm"] > 0 for row in steps)

    # what is only measured: at held-out checks alone, beside what trains
    assert set(summary["held_out"]) == {"total", "near/score", "jpeg/score"}
    asked = [arguments[0].rewards for _, arguments in service.reward_pools[0].calls]
    assert set(asked) == {(0,), (0, 1)}
    assert not any(name.startswith("reward/jpeg") for row in steps for name in row)

    # records beside their scores
    rows = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["edit-10", "edit-11", "edit-12"]
    assert [row["grey"] for row in rows] == [100, 110, 120]
    assert rows[0].keys() >= {"before", "after"} and rows[0]["after"].keys() == {
        "total",
        "near/score",
        "jpeg/score",
    }
    held_out = json.loads((folder / "held_out.json").read_text())
    assert [row["after"]["total"] for row in rows] == pytest.approx(held_out["after"]["total"])
    # and by their metadata
    assert list(held_out["categories"]["before"]) == list(summary["categories"]) == GREYS
    for row, grey in zip(rows, GREYS, strict=True):
        mean = held_out["categories"]["after"][grey]
        assert mean["n"] == 1 and mean["near/score"] == pytest.approx(row["after"]["near/score"])
    drawn = words(summary["settings"])
    assert drawn.startswith("2 Euler steps, 32×32, ") and "true_cfg_scale" in drawn
    card = (folder / "weights" / "README.md").read_text()
    assert f"| near/score, {GREYS[0]} (1) | " in card and card.count(f" | {drawn} |") == 3 * 4
    console = Console(file=StringIO(), width=100)
    console.print(table(summary))
    assert isinstance(console.file, StringIO)
    assert f"held-out scores: {drawn}" in " ".join(console.file.getvalue().split())

    model: Any = config.model
    pipe = getattr(diffusers, model.pipeline).from_pretrained(model.path)
    pipe.load_lora_weights(folder / "weights")
    trained = {
        name: value for name, value in pipe.transformer.named_parameters() if "lora_B" in name
    }
    assert trained and any(bool(torch.count_nonzero(value)) for value in trained.values())
    assert "pipe(prompt=prompt, image=picture" in (folder / "weights" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda names: None, "got 1 of 4 without"),
        (lambda names: [*names[1:], "gone.png"], "none at"),
        (lambda names: [*names, names[0]], "{} pictures"),
    ],
)
def test_records_without_the_pictures_are_refused_before_anything_starts(
    config: Config, tmp_path: Path, change: Callable[[list[str]], Any], words: str
) -> None:
    count, _ = config.model.pictures_taken
    path = records(tmp_path, "own.jsonl", 4, 0, pictures=count)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2] |= {"images": change(rows[2]["images"])}
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError) as caught:
        check(config.model_copy(update={"prompts": str(path)}))
    assert words.format(count + 1) in str(caught.value) and "line 3" in str(caught.value)
    assert f"expected {count} pictures with each record" in str(caught.value)
    assert "1 of 4 without" in str(caught.value) and "\n" not in str(caught.value)
