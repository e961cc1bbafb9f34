"""The model of examples/04_my_model.py, whose forwards take as long as they are told: for runs in
which it matters what happens when, not what is painted. Its actors load torch alone, and so start
in a third of the time that the embedded model's take."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "04_my_model.py"
SLOW = '''

class Slow(Painter):
    """A painter with a pause."""

    pause: float = Field(0.0, ge=0, description="seconds of a forward; with gradients five times")

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> Painting:
        return SlowPainting(self, device)


class SlowPainting(Painting):
    def __init__(self, options: Slow, device: str):
        super().__init__(options, device)
        self.pause = options.pause

    def velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        import time

        import torch

        time.sleep(self.pause * (5 if torch.is_grad_enabled() else 1))
        return super().velocity(x, sigma, cond)
'''


@cache
def slow_painter(pause: float = 0.02) -> dict[str, str]:
    """Options of a run: the model with random weights, and the reward that goes with it; their
    files lie in a folder that goes with the process."""
    import torch

    folder = Path(tempfile.mkdtemp(prefix="painter-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "slow_painter.py"
    file.write_text(EXAMPLE.read_text().partition("def main(")[0] + SLOW)
    names: dict[str, object] = {"__name__": "slow_painter"}
    exec(compile(file.read_text(), str(file), "exec"), names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        names["write"](folder, names["network"]())  # type: ignore[operator]
    colours = list(names["COLOURS"])  # type: ignore[call-overload]
    pairs = [f"paint it {one} on {two}" for one in colours for two in colours if one != two]
    (folder / "train.txt").write_text("\n".join(pairs))
    (folder / "held_out.txt").write_text("\n".join(f"a {colour} picture" for colour in colours))
    return {
        "prompts": str(folder / "train.txt"),
        "held_out": str(folder / "held_out.txt"),
        "model.name": f"{file}:Slow",
        "model.path": str(folder),
        "model.pause": str(pause),
        "rewards": f"[{{name: '{file}:painted'}}]",
        "evaluation.rewards": "[]",
    }
