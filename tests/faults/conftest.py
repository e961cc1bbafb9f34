"""A local Ray for each module, and the run without faults that others are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from small_runs import Run, carried, config


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    from cluster import session

    session.start("local", 256, dashboard=False)
    yield
    session.stop()


@pytest.fixture(scope="module")
def plain(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Without faults."""
    return carried(tmp_path_factory.mktemp("plain") / "plain-run", config())
