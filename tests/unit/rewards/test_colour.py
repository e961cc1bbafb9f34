"""The colours of ink and ground, against pictures drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.colour import PALETTE, ColourReward
from branchgrpo.types import Sample

WHITE, BLACK, RED, YELLOW = (PALETTE[name] for name in ("white", "black", "red", "yellow"))


def drawn(ground: tuple[int, ...], ink: tuple[int, ...] | None, edge: bool = True) -> np.ndarray:
    """[1, 32, 32, 3]: a square of ink with a mixed edge, as averaging down gives it."""
    picture = np.empty((32, 32, 3), np.float64)
    picture[:] = ground
    if ink:
        if edge:
            picture[9:23, 9:23] = (np.array(ground) + np.array(ink)) / 2
        picture[10:22, 10:22] = ink
    return picture.round().astype(np.uint8)[None]


def scores(picture: np.ndarray, prompt: str) -> tuple[float, float, float]:
    found = ColourReward().build(Resources()).score(picture[None], [Sample(prompt=prompt)])
    return float(found["ink"][0]), float(found["ground"][0]), float(found["score"][0])


@pytest.mark.parametrize("ground", ["white", "black", "yellow", "cyan", "pink"])
@pytest.mark.parametrize("ink", ["red", "green", "blue", "purple", "orange"])
def test_every_pair_of_colours_is_seen(ink: str, ground: str) -> None:
    picture = drawn(PALETTE[ground], PALETTE[ink])
    assert scores(picture, f"the number 38 in {ink} on {ground}") == (1, 1, 1)
    other = "red" if ink != "red" else "blue"
    assert scores(picture, f"the number 38 in {other} on {ground}") == (0, 1, 0)
    other = "white" if ground != "white" else "black"
    assert scores(picture, f"the number 38 in {ink} on {other}") == (1, 0, 0)


def test_a_picture_of_one_colour_has_no_ink() -> None:
    assert scores(drawn(WHITE, None), "a in white on white") == (0, 1, 0)


def test_noise_below_the_jitter_of_the_task_changes_nothing() -> None:
    noise = np.random.default_rng(0).integers(-14, 15, (1, 32, 32, 3))
    picture = np.clip(drawn(YELLOW, RED).astype(int) + noise, 0, 255).astype(np.uint8)
    assert scores(picture, "the number 1 in red on yellow") == (1, 1, 1)


def test_a_video_has_the_mean_of_its_frames() -> None:
    video = np.concatenate([drawn(WHITE, RED), drawn(WHITE, BLACK)])
    reward = ColourReward(frames=2)
    found = reward.build(Resources()).score(video[None], [Sample(prompt="x in red on white")])
    assert {name: float(values[0]) for name, values in found.items()} == {
        "score": 0.5,
        "ink": 0.5,
        "ground": 1.0,
    }


def test_prompts_without_colours_are_refused_beforehand() -> None:
    reward = ColourReward()
    refused = reward.refusal(Sample(prompt="a fox"), 0, 0)
    assert refused and refused.kind == "no colours that target finds"
    refused = reward.refusal(Sample(prompt="a fox in beige on white"), 0, 0)
    assert refused and refused.detail == "beige in 'a fox in beige on white'"
    assert reward.refusal(Sample(prompt="a fox in red on white"), 0, 0) is None
    with pytest.raises(UserError, match="a colour that palette lacks"):
        scores(drawn(WHITE, RED), "a fox in beige on white")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"target": r"in (\w+) on (\w+)"}, "expected groups ink and ground"),
        ({"target": "("}, "expected a regular expression"),
        ({"palette": {"red": (256, 0, 0), "blue": (0, 0, 1)}}, "from 0 to 255"),
    ],
)
def test_wrong_options_are_refused(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ColourReward(**keys)  # type: ignore[arg-type]
