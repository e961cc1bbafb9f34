"""The encoded prompts that a rank trains on, fetched by reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from branchgrpo.learner.payloads import Fetch
from branchgrpo.models.base import Adapter
from branchgrpo.types import Conditioning, Shard, TreeHeader


class PromptTexts:
    """Encodings of the prompts of a rank's shards, once each, in main memory and in their own
    dtypes; called, it gives those of some of them."""

    def __init__(
        self,
        fetch: Fetch,
        references: Sequence[Any],
        trees: Sequence[TreeHeader],
        shards: Iterable[Shard],
        model: Adapter,
    ):
        """references: → Conditioning of one row, by prompt index."""
        self.model = model
        prompts = sorted({trees[tree].prompt_index for one in shards for tree in one.trees})
        fetched: list[Conditioning] = fetch([references[prompt] for prompt in prompts])
        self.parts = dict(zip(prompts, fetched, strict=True))

    @property
    def bytes(self) -> int:
        """Bytes that were fetched."""
        return sum(part.nbytes for part in self.parts.values())

    def tokens(self) -> int:
        """The most tokens that a latent makes with any of the prompts."""
        model = self.model
        return max(model.tokens(model.conditioning(part)) for part in self.parts.values())

    def __call__(self, prompts: Sequence[int]) -> dict[str, Tensor]:
        """A row for each of these prompt indices, on the device, as long as the longest of them."""
        rows = sorted(set(prompts))
        cond = self.model.conditioning(Conditioning.joined([self.parts[row] for row in rows]))
        place = torch.tensor([rows.index(prompt) for prompt in prompts], device=self.model.device)
        return {name: array[place] for name, array in cond.items()}
