"""Before any test imports Ray."""

import cluster

__all__ = ["cluster"]
