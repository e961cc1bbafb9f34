"""The encoder: turns prompts into text encodings before training, so that training needs no text
encoders."""

from __future__ import annotations

from pathlib import Path

from actors.devices import use_threads
from branchgrpo.config.schema import Config
from branchgrpo.data.encodings import write_shard


class Encoder:
    """Plain class; the cluster makes an actor of it."""

    def __init__(self, config: Config, index: int):
        use_threads(config.rollout.compute_threads)
        self.config, self.index = config, index

    def ping(self) -> None:
        """Is it alive?"""

    def ready(self) -> None:
        """Load the text encoders."""
        alone = self.config.model.model_copy(update={"offload_encoders": False})
        self.model = alone.build(self.config.rollout.device, ("encoders",))

    def __repr__(self) -> str:
        return f"encoder-{self.index}"

    def encode(self, texts: list[str], path: Path) -> tuple[str, int]:
        """Write the encodings of n texts to the shard `path`, which other nodes must see. Returns
        its name and n."""
        lengths, limit = self.model.tokenize(texts)
        write_shard(path, texts, self.model.texts(texts), [length > limit for length in lengths])
        return path.name, len(texts)
