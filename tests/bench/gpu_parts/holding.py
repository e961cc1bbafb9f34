"""Parts 6 to 9: weights on the road, decoders and a scorer, what rests in main memory, Wan2.1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from support.records import records

from branchgrpo.models import weights as wire
from branchgrpo.models.offload import Offloaded
from branchgrpo.rewards.base import Resources
from gpu_parts.card import GB, Row, Setting, attempts, matmul_tflops
from gpu_parts.forwards import RANK, Forwards, chosen, inputs, row_tflop
from gpu_parts.random_models import FAMILIES, write_folder
from gpu_parts.scorers import PickScoreShape

SIZES = {"flux": (720, 720), "sd3": (384, 384), "wan": (480, 832)}


def family(setting: Setting, name: str, **keys: Any) -> Any:
    """A family's options at the size of the shipped config, in bfloat16."""
    height, width = (32, 48) if setting.small else SIZES[name]
    if setting.small and name != "wan":
        width = height
    folder = write_folder(setting.folder / name, name, setting.small)
    text = {"max_sequence_length": 16} if setting.small else {}
    frames = {"frames": 5} if setting.small and name == "wan" else {}
    sizes = {"height": height, "width": width} | text | frames
    return FAMILIES[name](name=name, path=str(folder), dtype="bfloat16", **sizes, **keys)


def road(setting: Setting) -> Iterator[Row]:
    """Publishing weights and loading them again: adapters, and 2 GB as a part of full weights."""
    kinds = {"adapters": [(32, 3072)] * 1000, "part of full weights": [(4096, 4096)] * 60}

    def sent(case: Row) -> Row:
        shapes = [(8, 8)] * 4 if setting.small else kinds[case["weights"]]
        draw = torch.Generator(setting.device).manual_seed(0)
        tensors, held = (
            {
                f"layer {index}": torch.randn(
                    shape, generator=draw, device=setting.device, dtype=torch.bfloat16
                )
                for index, shape in enumerate(shapes)
            }
            for _ in range(2)
        )
        size = sum(value.nbytes for value in tensors.values()) / GB
        update, chunks = wire.pack_weights(1, tensors, 256 << 20)
        pack = setting.seconds(lambda: wire.pack_weights(1, tensors, 256 << 20))
        load = setting.seconds(lambda: wire.load_weights(update, chunks, held))
        digest = setting.seconds(lambda: wire.digest_of(tensors))
        assert wire.digest_of(held) == update.digest
        return {
            "gb": size,
            "pack_gb_s": size / pack,
            "load_gb_s": size / load,
            "digest_gb_s": size / digest,
        }

    yield from attempts(setting, [{"weights": kind} for kind in kinds], sent)


def decoders(setting: Setting) -> Iterator[Row]:
    """Decoding latents to pixels, by family and batch."""

    def decoded(case: Row) -> Row:
        options = family(setting, case["family"], decode_batch=case["batch"])
        model = options.build(setting.device, ("decoder",))
        draw = torch.Generator(setting.device).manual_seed(0)
        shape = (case["batch"], *model.latent_shape)
        x = torch.randn(shape, generator=draw, device=setting.device)
        seconds = setting.seconds(lambda: model.decode(x), repeats=2)
        return {"ms": 1e3 * seconds, "ms_picture": 1e3 * seconds / case["batch"]}

    batches = {"flux": (1, 4, 16), "sd3": (1, 16), "wan": (1, 2)}
    cases = [
        {"family": name, "batch": batch}
        for name, sizes in batches.items()
        for batch in (sizes[:1] if setting.small else sizes)
    ]
    yield from attempts(setting, cases, decoded)


def scorers(setting: Setting) -> Iterator[Row]:
    """Scoring pictures of 384² by a network of PickScore's shape."""

    def scored(case: Row) -> Row:
        options = PickScoreShape(dtype=case["dtype"], narrow=setting.small)
        scorer = options.build(Resources(device=setting.device))
        draw = np.random.default_rng(0)
        side = 64 if setting.small else 384
        pixels = draw.integers(0, 256, (case["pictures"], 1, side, side, 3), dtype=np.uint8)
        texts = ["a"] * case["pictures"]
        seconds = setting.seconds(lambda: scorer.score(pixels, records(texts)))
        return {"ms": 1e3 * seconds, "ms_picture": 1e3 * seconds / case["pictures"]}

    count = 4 if setting.small else 32
    cases = [{"pictures": count, "dtype": dtype} for dtype in ("float32", "bfloat16")]
    yield from attempts(setting, cases, scored)


def decoders_and_scorers(setting: Setting) -> Iterator[Row]:
    """Both halves of part 7."""
    yield from decoders(setting)
    yield from scorers(setting)


def turns(setting: Setting) -> Iterator[Row]:
    """A turn of networks that rest in main memory: a scorer of 2 GB, and 9.5 GB, the size of
    T5-XXL's encoder."""

    def turn(case: Row) -> Row:
        side, layers = (64, 2) if setting.small else (4096, round(case["gb"] * GB / 2**25))
        kind = {"bias": False, "dtype": torch.bfloat16, "device": setting.device}
        module = torch.nn.Sequential(*(torch.nn.Linear(side, side, **kind) for _ in range(layers)))
        size = sum(value.nbytes for value in module.requires_grad_(False).parameters()) / GB
        resting: list[Offloaded] = []
        first = setting.seconds(
            lambda: resting.append(Offloaded([module], setting.device)), repeats=1, warm=0
        )

        def empty() -> None:
            with resting[0].on_device():
                setting.wait()

        seconds = setting.seconds(empty)
        return {"is_gb": size, "first_rest_s": first, "turn_s": seconds, "gb_s": size / seconds}

    yield from attempts(setting, [{"gb": 2.0}, {"gb": 9.5}], turn)


def switched(setting: Setting) -> Iterator[Row]:
    """A forward of growing after a backward of training, and the other way round: the first after a
    switch against the second."""
    keys = {"lora_rank": RANK, "gradient_checkpointing": True}
    model = family(setting, "sd3", true_cfg=1.0, **keys).build(setting.device, ("denoiser",))
    grown, trained = inputs(model, 4), inputs(model, 2)

    def grow() -> None:
        with torch.no_grad():
            model.velocity(*grown)

    def train() -> None:
        model.velocity(*trained).square().mean().backward()

    def first(case: Row) -> Row:
        one, other = (grow, train) if case["to"] == "growing" else (train, grow)
        other()
        if case["allocator"] == "emptied":
            setting.forget()
        return {
            "first_ms": 1e3 * setting.seconds(one, repeats=1, warm=0),
            "second_ms": 1e3 * setting.seconds(one, repeats=1, warm=0),
        }

    grow(), train()
    cases = [
        {"to": to, "allocator": allocator}
        for to in ("growing", "training")
        for allocator in ("kept", "emptied")
    ]
    yield from attempts(setting, cases, first)


def turns_and_switches(setting: Setting) -> Iterator[Row]:
    """Both halves of part 8."""
    yield from turns(setting)
    yield from switched(setting)


def videos(setting: Setting) -> Iterator[Row]:
    """Wan2.1-1.3B, 480 × 832 × 17, a pair for guidance: forwards, and forward and backward."""
    keys = {"lora_rank": RANK, "gradient_checkpointing": True}
    model = family(setting, "wan", **keys).build(setting.device, ("denoiser",))
    forwards = Forwards(setting, model)
    cases = [{"rows": n} for n in chosen(setting, (1, 2, 4, 8))]
    yield from attempts(setting, cases, forwards)
    tflop, peak = row_tflop(model.options), matmul_tflops(setting)

    def both(case: Row) -> Row:
        arguments = inputs(model, case["micro_batch"])

        def work() -> None:
            model.velocity(*arguments).square().mean().backward()

        seconds = setting.seconds(work, repeats=1)
        rate = case["micro_batch"] * 4 * tflop / seconds
        return {"ms": 1e3 * seconds, "tflops": rate, "share_of_matmul": rate / peak}

    yield from attempts(setting, [{"micro_batch": n} for n in chosen(setting, (1, 2, 4))], both)
