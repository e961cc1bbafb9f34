"""What the functions of the API return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchgrpo.config.schema import Config
from branchgrpo.errors import UserError
from branchgrpo.types import Sample

if TYPE_CHECKING:
    from branchgrpo.app.drawing import Drawing


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run that has ended."""

    folder: Path  # absolute; what is in it: docs/run-folder.md
    config: Config = field(repr=False)
    summary: dict[str, Any] = field(repr=False)  # summary.json
    metrics: list[dict[str, Any]] = field(repr=False)  # metrics.jsonl, a record an iteration
    _loaded: dict[int | None, Drawing] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def sample(
        self,
        prompts: str | Sample | Sequence[str | Sample],
        *,
        count: int = 1,
        seed: int | None = None,
        steps: int = 0,
        checkpoint: int | None = None,
    ) -> list[Any]:
        """`count` pictures of each prompt by the trained weights, prompt by prompt: PIL images, of
        videos lists of them. Drawn in this process, on a GPU where there is one.

        seed: of the noise; by default the run's, with which the first held-out prompts give the
        pictures of samples/after.png. steps: of denoising; 0 = those of the held-out check.
        checkpoint: draw by the weights of that iteration's checkpoint. Raises UserError where the
        run wrote neither weights nor checkpoints, or has not that one.
        """
        given = [prompts] if isinstance(prompts, (str, Sample)) else list(prompts)
        samples = [Sample(prompt=one) if isinstance(one, str) else one for one in given]
        check_wanted(samples, count, steps)
        chosen = self.config.run.seed if seed is None else seed
        drawing = self._drawing(checkpoint)
        return drawing.pictures(samples, count=count, seed=chosen, steps=steps)

    def _drawing(self, checkpoint: int | None) -> Drawing:
        """The newest model that was drawn with is kept, and goes with the result."""
        from branchgrpo.app.drawing import Drawing
        from branchgrpo.runs.measured import weights_of

        if checkpoint not in self._loaded:
            target = weights_of(self.folder, self.config, checkpoint)
            self._loaded.clear()
            self._loaded[checkpoint] = Drawing(target)
        return self._loaded[checkpoint]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a held-out check found."""

    folder: Path  # absolute; eval.json, samples.png
    config: Config = field(repr=False)
    # eval.json: `held_out` by reward/score, `diversity` by what was compared: mean,
    # low and high (95 %), n
    summary: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison found."""

    folder: Path  # absolute; compare.json, compare.md, pictures, and the run folders
    finished: bool  # False: interrupted; the same call goes on
    summary: dict[str, Any] = field(repr=False)  # compare.json: `rows` by method and more
    table: str = field(repr=False)  # for print


def check_wanted(samples: Sequence[Sample], count: int, steps: int) -> None:
    """Raise UserError for what cannot be drawn."""
    if not samples or count < 1 or steps < 0 or steps == 1:
        raise UserError(
            "sample: expected at least one prompt, at least 1 picture of each, and 0 or at least 2 "
            f"steps, got {len(samples)} prompts, {count} pictures and {steps} steps"
        )
