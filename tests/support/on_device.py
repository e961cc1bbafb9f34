"""What the tests of a card share: small random models of every family, built on a device; a device
that runs out of memory; what a device holds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from branchgrpo.models.flux import FluxModel
from branchgrpo.models.flux2_klein import Flux2KleinModel
from branchgrpo.models.hunyuan_video import HunyuanVideoModel
from branchgrpo.models.qwen_image import QwenImageModel
from branchgrpo.models.sd3 import SD3Model
from branchgrpo.models.small.flux2_klein import small_flux2_klein
from branchgrpo.models.small.hunyuan_video import small_hunyuan_video
from branchgrpo.models.small.qwen_image import small_qwen_image
from branchgrpo.models.small.sd3 import small_sd3
from branchgrpo.models.small.wan import small_wan as write_small_wan
from branchgrpo.models.small.z_image import small_z_image
from branchgrpo.models.z_image import ZImageModel
from branchgrpo.types import Subtree, TreeKey
from support import small_wan

PROMPTS = ["the number 38 in black on yellow", "a red circle"]
FAMILIES = (
    "flux",
    "sd3",
    "qwen_image",
    "flux2_klein",
    "z_image",
    "wan",
    "wan_a14b",
    "hunyuan_video",
)
TREES = tuple(Subtree(TreeKey("test", 0, prompt, 0), prompt, 0) for prompt in range(2))


@dataclass(frozen=True)
class Small:
    """A family's options, for a folder of random weights."""

    options: Callable[..., Any]

    def build(self, device: str, **keys: Any) -> Any:
        """The model; its adapters, if it has some, differ from nothing, alike on every device."""
        model = self.options(**keys).build(device)
        if model.adapted:
            draw = torch.Generator().manual_seed(5)
            model.load(
                {
                    name: 0.05 * torch.randn(value.shape, generator=draw)
                    for name, value in model.trainable().items()
                }
            )
        return model


def small_families(folder: Path) -> dict[str, Small]:
    """Every family, on folders that this writes."""
    sizes = {"height": 32, "width": 32, "true_cfg": 3.0, "negative_prompt": "the number 12"}

    def pictures(kind: Callable[..., Any], path: str, text: int) -> Small:
        base = sizes | {"path": path, "max_sequence_length": text}
        return Small(lambda **keys: kind(**base | keys))

    wan = write_small_wan(folder / "wan")
    two = write_small_wan(folder / "wan-a14b", two=True)
    return {
        "flux": pictures(FluxModel, "embedded:tiny-flux", 16),
        "sd3": pictures(SD3Model, str(small_sd3(folder / "sd3")), 24),
        "qwen_image": pictures(QwenImageModel, str(small_qwen_image(folder / "qwen")), 24),
        "flux2_klein": pictures(Flux2KleinModel, str(small_flux2_klein(folder / "klein")), 24),
        "z_image": pictures(ZImageModel, str(small_z_image(folder / "z-image")), 24),
        "wan": Small(lambda **keys: small_wan.options(wan, **keys)),
        "wan_a14b": Small(lambda **keys: small_wan.options(two, **keys)),
        "hunyuan_video": pictures(
            partial(HunyuanVideoModel, frames=5),
            str(small_hunyuan_video(folder / "hunyuan-video")),
            24,
        ),
    }


def ratio_off(device: str) -> float:
    """Largest |ratio − 1| of unchanged weights that differences of batches alone may make in
    float32: a learner whose inputs were rounded to bfloat16 has 2e-4. On a card products are of
    TF32, and the bound is that of its start-up gate."""
    return 1e-3 if device.startswith("cuda") else 1e-5


def forward(model: Any, rows: int = 2) -> tuple[Tensor, dict[str, Tensor]]:
    """(velocity of fixed inputs, gradients of its mean square by name), in main memory."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(rows, *model.latent_shape, generator=draw).to(model.device)
    sigma = torch.linspace(0.9, 0.1, rows).to(model.device)
    v = model.velocity(x, sigma, model.fingerprint_conditioning(rows))
    trained = model.trainable()
    gradients = torch.autograd.grad(v.square().mean(), list(trained.values()), allow_unused=True)
    return v.detach().cpu(), {
        name: value.float().cpu()
        for name, value in zip(trained, gradients, strict=True)
        if value is not None
    }


def relative(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def held_bytes(device: str) -> int:
    """Bytes of tensors that live on the device; on the CPU of those that Python knows."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in gc.get_objects()
        if issubclass(type(value), torch.Tensor) and value.device.type == "cpu"
    }
    return sum(storages.values())


def peak_bytes(device: str, work: Callable[[], object]) -> int:
    """Most bytes that are held at once of what the work makes: by torch's own count on a card, on
    the CPU by its record of what is taken and given back. Once before, for what stays."""
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    assert found.profiler and found.profiler.kineto_results
    events = found.profiler.kineto_results.events()
    changes = sorted(
        ((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"),
        key=itemgetter(0),
    )
    return max(accumulate(count for _, count in changes))


@contextmanager
def room_for(
    model: Any, call: str, work: Callable[[int], object], *, fits: int, too_many: int
) -> Iterator[None]:
    """Meanwhile the device has room for `fits` rows in one `call` of the model, and not for
    `too_many`.

    On a card the process may not reserve more than `work(fits)` did; work(rows) makes the call. On
    the CPU, which has no such bound, the call raises what a card's would.
    """
    if model.device.type == "cuda":
        bound, more = _reserved(work, fits), _reserved(work, too_many)
        assert more > 1.2 * bound, f"{too_many} rows take {more} bytes, {fits} rows {bound}"
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(bound / torch.cuda.mem_get_info()[1])
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    whole = getattr(model, call)

    def bounded(x: Tensor, *others: Any) -> Any:
        if len(x) > fits:
            raise torch.OutOfMemoryError(f"{len(x)} rows of {call} do not fit")
        return whole(x, *others)

    setattr(model, call, bounded)
    try:
        yield
    finally:
        delattr(model, call)


def _reserved(work: Callable[[int], object], rows: int) -> int:
    """Most bytes that torch reserves for it."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work(rows)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_reserved()
