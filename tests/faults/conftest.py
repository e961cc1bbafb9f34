"""A local Ray for each module, and groups of tiny ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.small_actors import Rank

from cluster.byte_counter import DriverByteCounter
from cluster.rank_group import RankGroup


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    from cluster import session

    session.start("local", 256, dashboard=False)
    yield
    session.stop()


@pytest.fixture
def rank_group(tmp_path: Path) -> Iterator[RankGroup]:
    made = RankGroup(
        cls=Rank,
        role="learner",
        ranks=2,
        resources={"num_cpus": 0},
        make=lambda rank: (str(tmp_path), rank),
        byte_counter=DriverByteCounter(),
        deadlines=(60.0, 4.0, 1.0),
    )
    made.max_failures = 20
    made.form()
    yield made
    made.stop()


@pytest.fixture
def notes(rank_group: RankGroup) -> list[str]:
    told = list[str]()
    rank_group.note = told.append
    return told
