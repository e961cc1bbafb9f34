"""Ray, and nothing but Ray: sessions, elastic worker pools, groups of ranks, weight publishing."""

import os

# Ray reads this when it is imported: `uv run` would otherwise make it rebuild the environment in
# every worker.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
