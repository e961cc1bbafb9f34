"""The device that is measured: what it is, how long work takes on it, what that holds at most, how
fast it multiplies, and how much of a time it computes."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

GB = 1e9

Row = dict[str, Any]
"""One result: what was tried, and the figures."""


@dataclass
class Setting:
    """What a part is run on. small: shapes for machines without a card."""

    device: str
    small: bool
    folder: Path  # for files that it needs
    ends: float  # time.monotonic() after which no case begins

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def left(self) -> float:
        """Seconds in which cases may begin."""
        return self.ends - time.monotonic()

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Give back what nobody holds, and count the peak from here."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """Most bytes of tensors on the device since `forget`; on the CPU of the whole process since
        it began."""
        if self.cuda:
            return torch.cuda.max_memory_allocated() / GB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB

    def seconds(self, work: Callable[[], object], repeats: int = 3, warm: int = 1) -> float:
        """Median seconds of some calls after a warm-up, each waited for."""
        for _ in range(warm):
            work()
        self.wait()
        found = []
        for _ in range(repeats):
            begun = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - begun)
        return statistics.median(found)


def described(device: str) -> Row:
    """The card's name, memory and driver, and the versions of what computes."""
    import platform

    import diffusers
    import peft
    import transformers

    found: Row = {
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    if not device.startswith("cuda"):
        return found | {"card": platform.processor() or platform.machine()}
    card = torch.cuda.get_device_properties(0)
    return found | {
        "card": card.name,
        "gb": card.total_memory / GB,
        "capability": f"{card.major}.{card.minor}",
        "cards": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver(),
    }


def _driver() -> str:
    """Version of the kernel's driver; empty where nvidia-smi is not there."""
    import shutil
    import subprocess

    if not shutil.which("nvidia-smi"):
        return ""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    return done.stdout.strip().partition("\n")[0]


def attempts(
    setting: Setting, cases: list[Row], work: Callable[[Row], Row], needs: float = 0.0
) -> Iterator[Row]:
    """Each case with its figures; one that does not fit, or that cannot be done here, says so. No
    case begins with less than `needs` seconds left."""
    for index, case in enumerate(cases):
        if setting.left() < needs:
            yield {"left_out": len(cases) - index, "why": "out of time", "first": case}
            return
        setting.forget()
        begun = time.perf_counter()
        try:
            found = work(case) | {"peak_gb": setting.peak_gb()}
        except torch.OutOfMemoryError:
            found = {"out_of_memory": True, "peak_gb": setting.peak_gb()}
        # a figure as well: this backend, or this dtype, does not work here
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        yield case | found | {"took": time.perf_counter() - begun}


def matmul_tflops(setting: Setting, dtype: torch.dtype = torch.bfloat16) -> float:
    """TFLOP/s of a large matrix product of random numbers: the rate that shares are of."""
    size = 8192 if setting.cuda else 256
    draw = torch.Generator(setting.device).manual_seed(0)
    left, right = (
        torch.randn(size, size, generator=draw, device=setting.device).to(dtype) for _ in range(2)
    )
    calls = 10 if setting.cuda else 2

    def products() -> None:
        for _ in range(calls):
            left @ right

    return calls * 2 * size**3 / setting.seconds(products) / 1e12


def busy_share(setting: Setting, work: Callable[[], object]) -> tuple[float, float]:
    """(seconds of the work, share of them in which a kernel or a copy ran); the share is 0 on the
    CPU, where it says nothing."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    setting.wait()
    if not setting.cuda:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun, 0.0
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        begun = time.perf_counter()
        work()
        setting.wait()
        seconds = time.perf_counter() - begun
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in found.events()
        if event.device_type == DeviceType.CUDA
    )
    return seconds, covered(spans) / 1e6 / seconds


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of spans that are sorted by their beginnings."""
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
