"""The JPEG reward against Pillow used straight."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from support.records import records

from branchgrpo.rewards.base import Resources
from branchgrpo.rewards.jpeg import JpegReward


def videos(*shape: int) -> np.ndarray:
    """Noise of rising strength on grey, so that sizes differ: [L, F, H, W, 3]."""
    noise = np.random.default_rng(0).integers(-60, 61, shape)
    strength = np.linspace(0.1, 1, shape[0] * shape[1]).reshape(shape[0], shape[1], 1, 1, 1)
    return (128 + strength * noise).astype(np.uint8)


@pytest.mark.parametrize(("want", "sign"), [("small", -1), ("large", 1)])
@pytest.mark.parametrize("quality", [30, 95])
def test_the_score_is_the_size_of_the_file(tmp_path, want: str, sign: int, quality: int) -> None:
    pixels = videos(3, 1, 40, 56, 3)
    expected = []
    for picture in pixels[:, 0]:
        Image.fromarray(picture).save(tmp_path / "picture.jpg", quality=quality)
        expected.append(sign * (tmp_path / "picture.jpg").stat().st_size / 1000)
    found = (
        JpegReward(want=want, quality=quality).build(Resources()).score(pixels, records([""] * 3))
    )
    assert found["score"].dtype == np.float32
    np.testing.assert_allclose(found["score"], expected, rtol=1e-6)
    assert len(set(expected)) == 3


def test_a_video_scores_the_mean_of_frames_in_the_middle_of_its_parts() -> None:
    pixels = videos(2, 7, 24, 24, 3)
    single = (
        JpegReward()
        .build(Resources())
        .score(pixels[:, [1, 5]].reshape(4, 1, 24, 24, 3), records([""] * 4))["score"]
    )
    # of 7: ⌊1.75⌋ and ⌊5.25⌋
    found = JpegReward(frames=2).build(Resources()).score(pixels, records([""] * 2))["score"]
    np.testing.assert_allclose(found, single.reshape(2, 2).mean(1), rtol=1e-6)
    assert JpegReward(frames=9).build(Resources()).score(pixels, records([""] * 2))[
        "score"
    ].shape == (2,)


@pytest.mark.parametrize(
    "keys",
    [{"quality": 0}, {"quality": 101}, {"want": "tiny"}, {"frames": 0}, {"dtype": "float32"}],
)
def test_bad_options(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        JpegReward(**keys)
