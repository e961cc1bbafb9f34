"""The encoder: turns records into encodings before training, so that training needs no encoders."""

from __future__ import annotations

from pathlib import Path

from actors.devices import use_threads
from branchgrpo.config.schema import Config
from branchgrpo.data.shards import write_shard
from branchgrpo.models.base import Part
from branchgrpo.types import Sample


class Encoder:
    """Plain class; the cluster makes an actor of it."""

    def __init__(self, config: Config, index: int):
        use_threads(config.rollout.compute_threads)
        self.config, self.index = config, index

    def ping(self) -> None:
        """Is it alive?"""

    def ready(self) -> None:
        """Load the encoders; of models that take pictures, the autoencoder is one."""
        alone = self.config.model.model_copy(update={"offload_encoders": False})
        parts: tuple[Part, ...] = ("encoders", "decoder")
        self.model = alone.build(
            self.config.rollout.device, parts if alone.pictures_taken[1] else parts[:1]
        )

    def __repr__(self) -> str:
        return f"encoder-{self.index}"

    def encode(self, shown: list[Sample], path: Path) -> tuple[str, int]:
        """Write the encodings of n of models.texts.seen to the shard `path`, which other nodes
        must see. Returns its name and n."""
        lengths, limit = self.model.tokenize([sample.prompt for sample in shown])
        too_long = [length > limit for length in lengths]
        write_shard(path, shown, self.model.rows(shown), too_long)
        return path.name, len(shown)
