"""A run that goes on with another config: what is refused, what is followed and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.small_drivers import begun, config, cut_off

from branchgrpo.errors import UserError
from branchgrpo.runs.places import checkpoints

# what was cut off before it wrote, and what an attempt leaves


def tree(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_refused_attempt_changes_nothing(tmp_path: Path) -> None:
    rank4 = {"model__lora_rank": "4", "model__lora_alpha": "8"}
    folder = cut_off(config(tmp_path, **rank4))
    before = tree(folder)
    for resume in ("auto", str(folder)):
        with pytest.raises(
            UserError,
            match=rf"^--resume: {folder}: expected model\.lora_alpha "
            r"8, got 64: a run goes on only as what it was$",
        ):
            begun(config(tmp_path, **rank4 | {"model__lora_alpha": "64"}), resume)
    assert tree(folder) == before
    (folder / "run.json").unlink()  # an older run: config.yaml says it, all but the digest
    with pytest.raises(
        UserError,
        match=r"expected model\.lora_rank 4, got 8; model\.lora_alpha "
        r"8, got 16: ",
    ):
        begun(config(tmp_path, model__lora_rank="8"), str(folder))
    driver, said = begun(config(tmp_path, **rank4), str(folder))
    assert (
        driver.resumed
        and (f"{folder} does not say model.files: not compared with what it is now") in said
    )


def test_what_is_followed_is_told_in_a_line_each(tmp_path: Path) -> None:
    folder = cut_off(config(tmp_path))
    changed = config(
        tmp_path,
        learner__learning_rate="0.5",
        run__iterations="7",
        rewards__0__weight="2.0",
        learner__betas="[0.5, 0.9]",
    )
    driver, said = begun(changed, str(folder))
    now = config(tmp_path)
    assert driver.resumed and set(said[1:]) == {
        f"run.iterations: {now.run.iterations} → 7",
        f"learner.learning_rate: {now.learner.learning_rate} → 0.5",
        "rewards.0.weight: 1.0 → 2.0",
        "learner.betas: [0.9, 0.999] → [0.5, 0.9]",
    }
    assert begun(changed, str(folder))[1] == [f"going on in {folder}"]


def test_checkpoints_that_moved_are_followed_and_a_place_without_any_is_refused(
    tmp_path: Path,
) -> None:
    loaded = config(tmp_path, checkpoint__folder=str(tmp_path / "c"))
    folder = cut_off(loaded)
    place = Path(checkpoints(loaded, folder))
    other = config(tmp_path, checkpoint__folder=str(tmp_path / "d"))
    (place / "fence-0001-iteration-00000002-1-1-1").mkdir(parents=True)
    with pytest.raises(
        UserError,
        match=r"checkpoint\.folder: expected the place of its "
        r"checkpoints, .*/c/flux-.*, got .*/d/flux-.*, which has "
        r"none$",
    ):
        begun(other, str(folder))
    (tmp_path / "d").mkdir()
    place.rename(Path(checkpoints(other, folder)))
    assert f"checkpoint.folder: {tmp_path / 'c'} → {tmp_path / 'd'}" in begun(other, str(folder))[1]
