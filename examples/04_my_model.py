"""A model of one's own: a small network that paints pictures in the colour that a prompt asks for.

    python examples/04_my_model.py run.iterations=60

At first it paints any colour, whatever the prompt says. A family that one of diffusers' pipelines
loads needs less: branchgrpo/models/sd3.py is an example.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

import branchgrpo as bg
from branchgrpo.models.base import ALL_PARTS, Adapter, ModelOptions, Part
from branchgrpo.types import U8, Conditioning

if TYPE_CHECKING:
    from torch import Tensor

COLOURS = {
    "red": (230, 30, 30),
    "green": (30, 180, 60),
    "blue": (30, 60, 230),
    "yellow": (240, 220, 20),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
}
WEIGHTS = Path("painter") / "weights.safetensors"


class Painter(ModelOptions):
    """The keys of its section in a config; loading them needs no torch."""

    size: int = Field(16, ge=1, description="height and width of a picture")

    @property
    def picture_size(self) -> tuple[int, int]:
        return self.size, self.size

    def build(self, device: str, parts: tuple[Part, ...] = ALL_PARTS) -> Painting:
        """Learners ask for the denoiser alone, which here is all there is."""
        return Painting(self, device)


class Painting(Adapter):
    """A loaded Painter. A latent is a colour: three numbers, −1 … 1."""

    def __init__(self, options: Painter, device: str):
        import torch
        from safetensors.torch import load_file

        self.device, self.dtype = torch.device(device), torch.float32
        self.size, self.latent_shape = options.size, (3,)  # S
        self.denoiser = network().to(self.device)  # what trains
        self.denoiser.load_state_dict(load_file(options.folder() / WEIGHTS, device=device))

    def encode(self, samples: list[bg.Sample]) -> Conditioning:
        """Which of the colours a prompt names: arrays of P rows, under names of one's own."""
        words = [[colour in sample.prompt.split() for colour in COLOURS] for sample in samples]
        return Conditioning({"words": np.array(words, np.float32)}, len(samples))

    def truncated(self, samples: list[bg.Sample]) -> int:
        """No prompt is too long."""
        return 0

    def velocity(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """dx/dσ = (x − x̂0)/σ, x̂0 the colour that x [B, 3] will become: for colours spread as
        N(0, ½²) it is known; the network adds what it has learnt."""
        import torch

        level = sigma[:, None]
        known = 0.25 * (1 - level) / (0.25 * (1 - level) ** 2 + level**2) * x
        return (x - known - self.denoiser(torch.cat([x, cond["words"], level], 1))) / level

    def decode(self, x0: Tensor) -> U8:
        """Pixels u8 [B, F, H, W, 3] of colours [B, 3]; F = 1, a picture."""
        colours = ((x0 / 2 + 0.5).clamp(0, 1) * 255).byte().cpu().numpy()
        return np.broadcast_to(colours[:, None, None, None], (len(x0), 1, self.size, self.size, 3))

    def fingerprint_conditioning(self, rows: int) -> dict[str, Tensor]:
        """Any fixed one: weights are compared by it."""
        import torch

        return {"words": torch.eye(len(COLOURS), device=self.device)[:rows]}

    def tokens(self, cond: dict[str, Tensor]) -> int:
        return 1

    def save(self, folder: Path, source: Path, form: str, shift: float | None = None) -> None:
        """Write the present weights, as `build` loads them."""
        write(folder, self.module)


def network() -> Any:
    """Of a colour, the words and σ. It adds nothing at first."""
    import torch

    last = torch.nn.Linear(64, 3)
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return torch.nn.Sequential(torch.nn.Linear(3 + len(COLOURS) + 1, 64), torch.nn.SiLU(), last)


def write(folder: Path, module: Any) -> None:
    """A folder in the layout that all models have: model_index.json names its parts."""
    from safetensors.torch import save_file

    (folder / WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"painter": ["examples", "Painter"]}))
    save_file(module.state_dict(), folder / WEIGHTS)


def painted(images: list[Any], samples: list[bg.Sample]) -> list[float]:
    """1 − the mean distance of a picture's pixels from the colour that was asked for."""
    scores = []
    for image, sample in zip(images, samples, strict=True):
        wanted = next(rgb for word, rgb in COLOURS.items() if word in sample.prompt.split())
        scores.append(1.0 - float(np.abs(np.asarray(image, float) - wanted).mean()) / 255)
    return scores


def main() -> None:
    import torch

    overrides = dict(argument.split("=", 1) for argument in sys.argv[1:])
    place = Path(overrides.get("run.folder", "runs")).resolve() / "painter"
    shutil.rmtree(place, ignore_errors=True)
    torch.manual_seed(0)
    write(place, network())
    (place / "train.txt").write_text("\n".join(f"paint it {word}" for word in COLOURS))
    (place / "held_out.txt").write_text("\n".join(f"a {word} picture" for word in COLOURS))
    own = {
        "model.name": f"{__file__}:Painter",
        "model.path": str(place),
        "prompts": str(place / "train.txt"),
        "held_out": str(place / "held_out.txt"),
        "evaluation.rewards": [],  # the quick start's own, which goes by its prompts
        "run.name": "painter",
        "run.iterations": 60,
        "learner.learning_rate": 1e-2,
        "evaluation.prompts": len(COLOURS),
        "evaluation.prompts_between": len(COLOURS),
    }
    config = bg.load_config("quickstart", preset="branchgrpo-flash", overrides=own | overrides)
    result = bg.train(config, rewards=[painted])
    score = result.summary["held_out"]["painted/score"]
    print(f"colour: {score['before']:.3f} → {score['after']:.3f}")
    print(f"{result.folder / 'samples' / 'after.png'}; the weights: {result.folder / 'weights'}")


if __name__ == "__main__":
    main()
