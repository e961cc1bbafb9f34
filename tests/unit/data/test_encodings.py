"""Encodings made before training: shards, manifest, resuming, and the same conditioning as encoding
in place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import in_process
from support.records import records
from support.small_trees import quickstart

from actors.encoder import Encoder
from actors.pools import Encoders
from actors.rollout import RolloutWorker
from branchgrpo.config.schema import Config
from branchgrpo.data import encodings
from branchgrpo.data.encodings import Encodings, encode_missing, folder_of
from branchgrpo.data.shards import write_shard
from branchgrpo.errors import UserError
from branchgrpo.types import Sample

PROMPTS = [f"the number {number} in red on white" for number in range(10, 30)]
LONG = "the number 38 in black on yellow " * 5


def config(folder: Path, **options: str) -> Config:
    return quickstart(
        {"model.encode": "precompute", "model.encodings": str(folder), "rollout.threads": "1"}
        | options
    )


class Counting(in_process.Pool):
    """Encoders that stop after some tasks, as an interruption does."""

    def __init__(self, loaded: Config, stop_after: int = 10**9):
        super().__init__([Encoder(loaded, 0)])
        self.broadcast(Encoder.ready)
        encode, self.done = self.workers[0].encode, 0

        def counted(shown: list[Sample], path: Path) -> tuple[str, int]:
            if self.done == stop_after:
                raise KeyboardInterrupt
            self.done += 1
            return encode(shown, path)

        self.workers[0].encode = counted


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "SHARD", 6)


def store_of(loaded: Config) -> Encodings:
    return Encodings.open(loaded.model)


@pytest.mark.networks
@pytest.mark.parametrize("guided", [False, True])
def test_read_back_they_are_those_of_the_encoders(tmp_path: Path, guided: bool) -> None:
    loaded = config(
        tmp_path,
        **({"model.true_cfg": "2.0", "model.negative_prompt": "a red circle"} if guided else {}),
    )
    told: list[tuple[int, int]] = []
    own = Sample(prompt=PROMPTS[5], negative_prompt="a green square")
    count = 22 + guided  # with what its record does not want, where anybody asks
    assert (
        encode_missing(
            Encoders(Counting(loaded)),
            store_of(loaded),
            [*records([*PROMPTS, PROMPTS[3], LONG, loaded.model.negative_prompt]), own],
            lambda *at: told.append(at),
        )
        == count
    )
    assert told == [(6, count), (12, count), (18, count), (count, count)]
    worker = RolloutWorker(loaded, 0)
    inline = RolloutWorker(
        quickstart(
            {
                "model.true_cfg": str(loaded.model.true_cfg),
                "model.negative_prompt": "a red circle",
            }
        ),
        0,
    )
    worker.ready(), inline.ready()
    assert (
        worker.model.pipe.text_encoder is None
        and worker.model.pipe.text_encoder_2 is None
        and worker.model.pipe.tokenizer is None
    )
    chosen = [*records([PROMPTS[7], LONG, PROMPTS[0], PROMPTS[7]]), own]
    (one, *found), (other, *wanted) = worker.encode(chosen), inline.encode(chosen)
    assert one.truncated == other.truncated == 1
    assert len(found) == len(wanted) == len(chosen)
    assert one.bytes == other.bytes == sum(part.nbytes for part in found)
    for part, expected in zip(found, wanted, strict=True):
        assert part.rows == 1 and part.arrays.keys() == expected.arrays.keys()
        for name, array in expected.arrays.items():
            np.testing.assert_allclose(part.arrays[name], array, atol=2e-6)
    assert worker.model.decode(torch.zeros(1, *worker.model.latent_shape)).shape == (
        1,
        1,
        32,
        32,
        3,
    )


def test_an_interrupted_job_goes_on(tmp_path: Path) -> None:
    loaded = config(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        encode_missing(
            Encoders(Counting(loaded, stop_after=2)),
            store_of(loaded),
            records(PROMPTS),
            lambda *_: None,
        )
    assert len(store_of(loaded).missing(records(PROMPTS))) == len(PROMPTS) - 12
    pool = Counting(loaded)
    assert (
        encode_missing(Encoders(pool), store_of(loaded), records(PROMPTS), lambda *_: None) == 8
        and pool.done == 2
    )
    assert not store_of(loaded).missing(records(PROMPTS))
    manifest = json.loads((folder_of(loaded.model) / encodings.MANIFEST).read_text())
    assert list(manifest["shards"].values()) == [6, 6, 6, 2] and all(
        (folder_of(loaded.model) / name).is_file() for name in manifest["shards"]
    )
    assert (
        encode_missing(
            Encoders(Counting(loaded, stop_after=0)),
            store_of(loaded),
            records(PROMPTS),
            lambda *_: None,
        )
        == 0
    )


def test_more_prompts_later_are_added(tmp_path: Path) -> None:
    loaded = config(tmp_path)
    encode_missing(
        Encoders(Counting(loaded)), store_of(loaded), records(PROMPTS[:6]), lambda *_: None
    )
    encode_missing(
        Encoders(Counting(loaded)), store_of(loaded), records(PROMPTS[3:9]), lambda *_: None
    )
    store = store_of(loaded)
    assert not store.missing(records(PROMPTS[:9])) and store.missing(records(PROMPTS)) == records(
        PROMPTS[9:]
    )


def test_other_text_keys_have_another_folder(tmp_path: Path) -> None:
    folders = {
        folder_of(config(tmp_path, **options).model)
        for options in (
            {},
            {"model.max_sequence_length": "12"},
            {"model.guidance": "2"},
            {"model.dtype": "bfloat16"},
        )
    }
    assert len(folders) == 3  # guidance is no matter of text


def test_what_is_missing_or_damaged_is_one_line(tmp_path: Path) -> None:
    loaded = config(tmp_path)
    store = store_of(loaded)
    with pytest.raises(
        UserError, match=r"expected the encoding of 'the number 10 .* found none: branchgrpo encode"
    ):
        store.conditioning(records(PROMPTS[:1]))
    encode_missing(Encoders(Counting(loaded)), store, records(PROMPTS[:6]), lambda *_: None)
    (shard,) = folder_of(loaded.model).glob("*.safetensors")
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"expected the safetensors file .* cannot be read"):
        store_of(loaded)
    shard.write_bytes(data)
    path = folder_of(loaded.model) / encodings.MANIFEST
    path.write_text(path.read_text().replace(": 6", ": 7"))
    with pytest.raises(UserError, match=r"expected 7 prompts in .*, got 6"):
        store_of(loaded)
    path.write_text("{")
    with pytest.raises(UserError, match=r"expected .*manifest.json, which cannot be read"):
        store_of(loaded)


def test_encodings_of_strangers(tmp_path: Path) -> None:
    """A manifest names shards beside it alone, and a shard must hold what one holds: one line, and
    nothing waits for ever."""
    loaded = config(tmp_path)
    folder = folder_of(loaded.model)
    folder.mkdir(parents=True)
    path, shard = folder / encodings.MANIFEST, folder / "shard-a.safetensors"
    for shards in (
        None,
        [],
        {"../shard-a.safetensors": 1},
        {"/dev/zero": 1},
        {"shard-a.safetensors": "1"},
        {"shard-a.safetensors": True},
    ):
        path.write_text(json.dumps({"version": 1, "shards": shards}))
        with pytest.raises(
            UserError, match=r"expected shards in .*, shard-NAME.safetensors and their counts"
        ):
            store_of(loaded)
    path.write_text(json.dumps({"version": 1, "shards": {shard.name: 2}}))
    os.mkfifo(shard)
    with pytest.raises(UserError, match=r"it is a FIFO, not a regular file"):
        store_of(loaded)
    shard.unlink()
    digests, too_long = torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    for tensors in (
        {},
        {"digests": digests},
        {"digests": digests.int(), "too_long": too_long},
        {"digests": too_long, "too_long": too_long.clone()},
        {"digests": digests, "too_long": too_long, "text": torch.zeros(3, 4)},
    ):
        save_file(tensors, shard)
        with pytest.raises(
            UserError, match=r"expected digests \[n, 16\], too_long \[n\] and arrays of n rows in"
        ):
            store_of(loaded)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_they_keep_their_dtype(tmp_path: Path, dtype: str) -> None:
    loaded = config(tmp_path, **{"model.dtype": dtype})
    encode_missing(
        Encoders(Counting(loaded)), store_of(loaded), records(PROMPTS[:3]), lambda *_: None
    )
    found = store_of(loaded).conditioning(records(PROMPTS[:2]))
    encoder = Encoder(loaded, 0)
    encoder.ready()
    wanted = encoder.model.rows(records(PROMPTS[:3]))
    assert found.nbytes == sum(array[:2].nbytes for array in wanted.values())
    for name, array in encoder.model.conditioning(found).items():
        assert array.dtype == getattr(torch, dtype) and torch.equal(array, wanted[name][:2])


def test_shards_with_other_lengths_and_masks_of_integers_are_read(tmp_path: Path) -> None:
    """As families with texts of different lengths write them, and older versions did."""
    loaded = config(tmp_path)
    store, draw = store_of(loaded), torch.Generator().manual_seed(0)
    texts = torch.randn(3, 5, 4, generator=draw, dtype=torch.bfloat16)
    for shard, (prompt, width, mask) in enumerate(
        ((0, 3, torch.int64), (1, 5, torch.float32), (2, 4, torch.bool))
    ):
        arrays = {
            "text": texts[prompt : prompt + 1, :width],
            "mask": torch.ones(1, width, dtype=mask),
        }
        path = store.folder / f"shard-{shard}.safetensors"
        write_shard(path, records(PROMPTS[prompt : prompt + 1]), arrays, [False])
        store.commit(path.name, 1)
    found = store_of(loaded).conditioning(records(PROMPTS[:3]))
    assert found.dtypes == {"text": "bfloat16"} and found.arrays["mask"].dtype == np.float32
    assert found.arrays["mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 1, 1, 1, 0]]
    wanted = texts.clone()
    wanted[0, 3:], wanted[2, 4:] = 0, 0
    np.testing.assert_array_equal(found.arrays["text"], wanted.view(torch.uint16).numpy())
