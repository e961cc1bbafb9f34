"""Encoding all prompts once, before training."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from actors.encoder import Encoder
from actors.pools import Encoders
from branchgrpo.app import roles
from branchgrpo.app.roles import actor_options, retry_policy
from branchgrpo.config.schema import Config
from branchgrpo.data import prompts
from branchgrpo.data.encodings import Encodings, encode_missing
from branchgrpo.report.terminal import Display
from branchgrpo.types import Sample
from cluster.admission import place_alone
from cluster.byte_counter import DriverByteCounter
from cluster.worker_pool import WorkerPool


def encode(config: Config, display: Display) -> int:
    """Encode the prompts of a config with model.encode: precompute that are not encoded yet, on the
    resources of those who grow trees; returns how many."""
    config = roles.without_learners(config)
    train, held_out = prompts.lists(config)
    store, judged = Encodings.open(config.model), Encodings.open(config.evaluated)
    if judged.folder == store.folder:
        return _encode(config, store, chain(train, held_out), display)
    # records have pictures, which are encoded at the size that is drawn
    larger = config.model_copy(update={"model": config.evaluated})
    return _encode(config, store, train, display) + _encode(larger, judged, held_out, display)


def _encode(config: Config, store: Encodings, samples: Iterable[Sample], display: Display) -> int:
    samples = store.missing(samples)
    if samples:
        display.phase(f"encoding {len(samples)} prompts into {store.folder}")
        pool = WorkerPool(
            cls=Encoder,
            role="encoder",
            count=config.rollout.begun,
            resources=actor_options(config.rollout),
            arguments=(config,),
            byte_counter=DriverByteCounter(),
            retry_policy=retry_policy(config),
        )
        try:
            place_alone(pool, config.cluster.wait_seconds, display.note)
            pool.wait_ready()
            encode_missing(Encoders(pool), store, samples, display.advance)
        finally:
            pool.stop()
    return len(samples)
