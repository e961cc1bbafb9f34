"""What the OCR reward computes without torch, and before its network is loaded, against torch and
the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from branchgrpo.files.onnx_metadata import metadata
from branchgrpo.rewards import ctc
from branchgrpo.rewards import ocr_network as network


@pytest.mark.parametrize(
    ("size", "width"),
    [((32, 32), 48), ((64, 192), 144), ((700, 30), 77), ((48, 9), 9), ((1, 5), 16)],
)
def test_resizing_is_bilinear_between_centres(size: tuple[int, int], width: int) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(pictures).permute(0, 3, 1, 2).double(),
        size=(48, width),
        mode="bilinear",
        align_corners=False,
    )
    found = network.resized(pictures, 48, width)
    assert found.dtype == np.float32
    # places are rounded to float32: of 700 pixels, 4e-5 of one
    assert found == pytest.approx(wanted.permute(0, 2, 3, 1).numpy(), abs=0.02)


def test_a_ramp_stays_a_ramp_between_the_outermost_centres() -> None:
    ramp = np.broadcast_to(np.array([0, 100, 200], np.uint8)[None, None, :, None], (1, 2, 3, 3))
    # centres of three pixels at 1/6, 3/6, 5/6, of six at 1/12, 3/12, …
    wanted = [0, 25, 75, 125, 175, 200]
    assert network.resized(ramp, 2, 6)[0, 1, :, 2] == pytest.approx(wanted, abs=1e-4)


def test_likelihoods_of_long_texts_of_unlike_lengths() -> None:
    draw = np.random.default_rng(1)
    probability = draw.dirichlet(np.full(30, 0.1), size=(5, 25)).astype(np.float32)
    targets = [[1, 1, 2], [3], [4, 5, 6, 7, 7, 7, 8], [9] * 13, [9] * 14]
    log_p = torch.from_numpy(probability).double().clamp_min(ctc.SMALLEST).log()
    wanted = -torch.nn.functional.ctc_loss(
        log_p.transpose(0, 1),
        torch.tensor([code for codes in targets for code in codes]),
        torch.full((5,), 25),
        torch.tensor([len(codes) for codes in targets]),
        reduction="none",
    ).numpy()
    assert np.isinf(wanted[4]) and np.isfinite(wanted[:4]).all()
    assert ctc.log_likelihood(probability, targets) == pytest.approx(wanted, rel=1e-9)


def test_the_file_tells_the_characters_and_the_width_the_frames() -> None:
    loaded = network.session(1)
    assert metadata(network.recogniser()) == loaded.get_modelmeta().custom_metadata_map
    assert network.known_characters() == set(network.alphabet_of(loaded)) - {""}
    name = loaded.get_inputs()[0].name
    for width in (*range(16, 34), 100, 191, 193, 450):
        line = np.zeros((1, 3, network.HEIGHT, width), np.float32)
        assert loaded.run(None, {name: line})[0].shape[1] == network.frames_of(width), width


def test_a_file_that_is_cut_off_has_no_metadata(tmp_path: Path) -> None:
    from google.protobuf.message import DecodeError

    (tmp_path / "cut.onnx").write_bytes(network.recogniser().read_bytes()[:-10])
    with pytest.raises(DecodeError):
        metadata(tmp_path / "cut.onnx")
