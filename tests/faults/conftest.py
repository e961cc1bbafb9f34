"""A local Ray for each module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    from cluster import session

    session.start("local", 256, dashboard=False)
    yield
    session.stop()
